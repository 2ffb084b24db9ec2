//! Control flow of machine code: does every way through a function pass one of its allocator functions?
//!
//! Owns the walk over x86-64 instructions. Must not know where the code comes from: it is asked for.

use std::collections::{HashMap, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// Bytes that are asked for at once.
const WINDOW: u64 = 512;
/// Most instructions that are looked at to decide on one function, those of the functions that it calls included.
const MOST_INSTRUCTIONS: usize = 20_000;
/// How deep calls are followed.
const DEEPEST: usize = 4;

/// What an allocator function does to the set of live blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// It may add a block, and returns its address, or null.
    Allocates,
    /// It may add a block, and stores its address where an argument points; returns an error code.
    AllocatesInto,
    /// It may add a block and take another away.
    Reallocates,
    /// It only takes one away.
    Frees,
}

impl Role {
    /// Whether a function of this role can do all that it does through `other`.
    fn is_served_by(self, other: Self) -> bool {
        let allocates = |role| matches!(role, Self::Allocates | Self::AllocatesInto);
        self == other || allocates(self) && (allocates(other) || other == Self::Reallocates)
    }
}

/// What the walk needs to know of the file.
pub(super) trait CodeView {
    /// Up to `size` bytes of code at an address; none where there is no code.
    fn code(&self, vaddr: u64, size: u64) -> Option<Vec<u8>>;
    /// The role of the allocator function, of this file or another, whose address the slot at an address holds.
    fn slot(&self, vaddr: u64) -> Option<Role>;
    /// The role of the allocator function that begins at an address.
    fn function(&self, vaddr: u64) -> Option<Role>;
}

/// Finds the allocator functions that need no probe, because whatever they do, they do through another.
pub(super) struct Coverage<'a, V> {
    view: &'a V,
    /// Decisions are final: a function that was once counted on is never found to count on its caller later.
    decided: HashMap<(u64, Role), bool>,
    in_progress: HashSet<(u64, Role)>,
    instructions: usize,
    factory: InstructionInfoFactory,
}

impl<'a, V: CodeView> Coverage<'a, V> {
    pub(super) fn new(view: &'a V) -> Self {
        Self {
            view,
            decided: HashMap::new(),
            in_progress: HashSet::new(),
            instructions: 0,
            factory: InstructionInfoFactory::new(),
        }
    }

    /// Whether every way through the function that returns calls or jumps to another allocator function before that serves for its
    /// role, or fails: returns null, having allocated nothing. Code that cannot be followed counts as a way that does not.
    pub(super) fn is_covered(&mut self, entry: u64, role: Role) -> bool {
        self.instructions = 0;
        self.decide(entry, role, 0)
    }

    fn decide(&mut self, entry: u64, role: Role, depth: usize) -> bool {
        let key = (entry, role);
        if let Some(&decided) = self.decided.get(&key) {
            return decided;
        }
        if depth > DEEPEST || !self.in_progress.insert(key) {
            return false;
        }
        let covered = self.walk(entry, role, depth);
        self.in_progress.remove(&key);
        self.decided.insert(key, covered);
        covered
    }

    fn walk(&mut self, entry: u64, role: Role, depth: usize) -> bool {
        let mut waiting = vec![(entry, Way::default())];
        let mut seen = HashSet::new();
        let mut passes_one = false;
        while let Some((start, mut way)) = waiting.pop() {
            let mut at = start;
            'straight: loop {
                let Some(code) = self.view.code(at, WINDOW).filter(|code| !code.is_empty()) else {
                    return false;
                };
                let mut decoder = Decoder::with_ip(64, &code, at, DecoderOptions::NONE);
                let mut progressed = false;
                while decoder.can_decode() {
                    let instruction = decoder.decode();
                    if instruction.is_invalid() {
                        // It may be cut off by the window.
                        break;
                    }
                    progressed = true;
                    at = instruction.next_ip();
                    if !seen.insert((instruction.ip(), way)) {
                        break 'straight;
                    }
                    self.instructions += 1;
                    if self.instructions > MOST_INSTRUCTIONS {
                        return false;
                    }
                    match self.step(&instruction, role, depth) {
                        Step::On => way.pass(&instruction, &mut self.factory),
                        Step::Covered => {
                            passes_one = true;
                            break 'straight;
                        }
                        Step::Ends => break 'straight,
                        // A helper's null says nothing of what its caller does then.
                        Step::Returns if depth == 0 && way.fails(role) => break 'straight,
                        Step::Returns | Step::Leaves => return false,
                        Step::Jump(target) => {
                            waiting.push((target, way));
                            break 'straight;
                        }
                        Step::Branch(target) => waiting.push((target, way)),
                    }
                }
                if !progressed {
                    return false;
                }
            }
        }
        passes_one
    }

    fn step(&mut self, instruction: &Instruction, role: Role, depth: usize) -> Step {
        let near = instruction.op0_kind() == OpKind::NearBranch64;
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::XbeginXabortXend => Step::On,
            FlowControl::ConditionalBranch if near => {
                let target = instruction.near_branch_target();
                if self.leads_to_allocator(target, role) {
                    // That way is covered; the straight one goes on.
                    Step::On
                } else {
                    Step::Branch(target)
                }
            }
            FlowControl::UnconditionalBranch if near => {
                let target = instruction.near_branch_target();
                if self.leads_to_allocator(target, role) {
                    Step::Covered
                } else {
                    Step::Jump(target)
                }
            }
            FlowControl::Call if near => {
                let target = instruction.near_branch_target();
                if self.leads_to_allocator(target, role) || self.decide(target, role, depth + 1) {
                    Step::Covered
                } else {
                    Step::On
                }
            }
            control @ (FlowControl::IndirectBranch | FlowControl::IndirectCall) => {
                let through_slot = instruction.is_ip_rel_memory_operand()
                    && self.serves(self.view.slot(instruction.ip_rel_memory_address()), role);
                match control {
                    _ if through_slot => Step::Covered,
                    FlowControl::IndirectCall => Step::On,
                    _ => Step::Leaves,
                }
            }
            // A system call comes back.
            FlowControl::Call => Step::On,
            FlowControl::Return => Step::Returns,
            _ if instruction.mnemonic() == Mnemonic::Ud2 => Step::Ends,
            _ => Step::Leaves,
        }
    }

    /// Whether an allocator function of the role begins at the target, or a stub of the procedure linkage table that jumps to
    /// one.
    fn leads_to_allocator(&mut self, target: u64, role: Role) -> bool {
        let Some(other) = self.view.function(target) else {
            return stub_slot(self.view, target)
                .is_some_and(|slot| self.serves(self.view.slot(slot), role));
        };
        // Two functions that count on each other would both go without a probe.
        if !role.is_served_by(other) || self.in_progress.contains(&(target, other)) {
            return false;
        }
        // Whether it gets a probe of its own or counts on a third: decide it now, so that it cannot count on this one.
        self.decide(target, other, 0);
        true
    }

    fn serves(&self, other: Option<Role>, role: Role) -> bool {
        other.is_some_and(|other| role.is_served_by(other))
    }
}

enum Step {
    On,
    Covered,
    Ends,
    Returns,
    /// To where it cannot be followed.
    Leaves,
    Jump(u64),
    Branch(u64),
}

/// What has happened on a way through a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Way {
    /// The register of the result holds zero.
    null: bool,
    /// It called what is not known here.
    called: bool,
}

impl Way {
    fn pass(&mut self, instruction: &Instruction, factory: &mut InstructionInfoFactory) {
        if matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        ) {
            *self = Self {
                null: false,
                called: true,
            };
            return;
        }
        let writes_result = factory
            .info(instruction)
            .used_registers()
            .iter()
            .any(|used| {
                used.register().full_register() == Register::RAX
                    && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
            });
        if writes_result {
            let to_result = |operand| {
                instruction.op_kind(operand) == OpKind::Register
                    && instruction.op_register(operand) == Register::EAX
            };
            self.null = match instruction.mnemonic() {
                Mnemonic::Xor => to_result(0) && to_result(1),
                Mnemonic::Mov => {
                    to_result(0)
                        && instruction.op1_kind() == OpKind::Immediate32
                        && instruction.immediate32() == 0
                }
                _ => false,
            };
        }
    }

    /// Whether a return here means that nothing was done. `realloc` may return null after it has freed.
    fn fails(self, role: Role) -> bool {
        match role {
            Role::Allocates => self.null,
            Role::Reallocates => self.null && !self.called,
            Role::AllocatesInto | Role::Frees => false,
        }
    }
}

/// The slot that a stub of the procedure linkage table jumps through: `[endbr64] [bnd] jmp *slot(%rip)`.
fn stub_slot(view: &impl CodeView, vaddr: u64) -> Option<u64> {
    let code = view.code(vaddr, 16)?;
    let mut decoder = Decoder::with_ip(64, &code, vaddr, DecoderOptions::NONE);
    let mut instruction = decoder.decode();
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        instruction = decoder.decode();
    }
    let jumps = instruction.flow_control() == FlowControl::IndirectBranch
        && instruction.is_ip_rel_memory_operand();
    jumps.then(|| instruction.ip_rel_memory_address())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "tests")]
    use super::*;

    /// Code at 0x1000, and where allocator functions and slots are.
    struct Fake {
        code: Vec<u8>,
        functions: Vec<(u64, Role)>,
        slots: Vec<(u64, Role)>,
    }

    impl CodeView for Fake {
        fn code(&self, vaddr: u64, size: u64) -> Option<Vec<u8>> {
            let from = usize::try_from(vaddr.checked_sub(0x1000)?)
                .ok()
                .filter(|from| *from < self.code.len())?;
            Some(self.code[from..self.code.len().min(from + size as usize)].to_vec())
        }
        fn slot(&self, vaddr: u64) -> Option<Role> {
            self.slots
                .iter()
                .find(|(slot, _)| *slot == vaddr)
                .map(|(_, role)| *role)
        }
        fn function(&self, vaddr: u64) -> Option<Role> {
            self.functions
                .iter()
                .find(|(function, _)| *function == vaddr)
                .map(|(_, role)| *role)
        }
    }

    fn covered(code: &[u8], role: Role) -> bool {
        let fake = Fake {
            code: code.to_vec(),
            functions: vec![
                (0x1000, role),
                (0x1020, Role::Allocates),
                (0x1028, Role::Frees),
                (0x1030, Role::Reallocates),
            ],
            slots: vec![(0x2000, Role::Allocates)],
        };
        Coverage::new(&fake).is_covered(0x1000, role)
    }

    fn padded(code: &[u8]) -> Vec<u8> {
        let mut all = code.to_vec();
        all.resize(0x20, 0xcc);
        all.extend([0xc3; 32]);
        all
    }

    #[test]
    fn doors_are_seen_through() {
        // jmp 0x1020
        assert!(covered(&padded(&[0xe9, 0x1b, 0, 0, 0]), Role::Allocates));
        // endbr64; call 0x1020; ret
        assert!(covered(
            &padded(&[0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0x17, 0, 0, 0, 0xc3]),
            Role::Allocates
        ));
        // jmp *0x2000(%rip), which lies at 0x2000
        assert!(covered(
            &padded(&[0xff, 0x25, 0xfa, 0x0f, 0, 0]),
            Role::Allocates
        ));
        // jmp 0x1008; at 0x1008 a stub: jmp *0x2000
        let mut stub = vec![0xe9, 3, 0, 0, 0, 0xcc, 0xcc, 0xcc];
        stub.extend([0xff, 0x25, 0xf2, 0x0f, 0, 0]);
        assert!(covered(&padded(&stub), Role::Allocates));
        // call 0x1010; ret; at 0x1010: jmp 0x1020
        let mut helper = vec![0xe8, 0x0b, 0, 0, 0, 0xc3];
        helper.resize(0x10, 0xcc);
        helper.extend([0xeb, 0x0e]);
        assert!(covered(&padded(&helper), Role::Allocates));
    }

    #[test]
    fn one_way_around_is_enough_to_need_a_probe() {
        // test %rdi,%rdi; je +2; jmp 0x1020; ret
        assert!(!covered(
            &padded(&[0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0x19, 0xc3]),
            Role::Allocates
        ));
        // ret
        assert!(!covered(&padded(&[0xc3]), Role::Allocates));
        // jmp *%rax
        assert!(!covered(&padded(&[0xff, 0xe0]), Role::Allocates));
        // jmp to itself, and a jump to nowhere
        assert!(!covered(&padded(&[0xeb, 0xfe]), Role::Allocates));
        assert!(!covered(&padded(&[0xe9, 0, 0, 0, 0x40]), Role::Allocates));
        // what does not decode
        assert!(!covered(&padded(&[0x06]), Role::Allocates));
    }

    #[test]
    fn a_way_that_fails_needs_no_probe() {
        // test %rdi,%rdi; je +2; jmp 0x1020; xor %eax,%eax; ret
        let fails = padded(&[0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0x19, 0x31, 0xc0, 0xc3]);
        assert!(covered(&fails, Role::Allocates));
        assert!(
            !covered(&fails, Role::AllocatesInto),
            "zero is success there"
        );
        // The same with `mov $1,%eax`, with `xor %eax,%ecx`, and with a write to %al behind the zero.
        for tail in [
            &[0xb8, 1, 0, 0, 0, 0xc3][..],
            &[0x31, 0xc1, 0xc3],
            &[0x31, 0xc0, 0xb0, 0x01, 0xc3],
        ] {
            let mut code = vec![0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0x19];
            code.extend(tail);
            assert!(!covered(&padded(&code), Role::Allocates), "{tail:x?}");
        }
        // Null and nothing else: there is no function that serves.
        assert!(!covered(&padded(&[0x31, 0xc0, 0xc3]), Role::Allocates));
        // A call on that way may free: test; je +2; jmp 0x1030; call 0x101f; xor; ret
        let frees = [
            0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0x29, 0xe8, 0x13, 0, 0, 0, 0x31, 0xc0, 0xc3,
        ];
        assert!(!covered(&padded(&frees), Role::Reallocates));
        let plain = [0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0x29, 0x31, 0xc0, 0xc3];
        assert!(covered(&padded(&plain), Role::Reallocates));
    }

    #[test]
    fn a_function_serves_its_own_kind_only() {
        assert!(!covered(&padded(&[0xe9, 0x1b, 0, 0, 0]), Role::Frees));
        assert!(!covered(&padded(&[0xe9, 0x1b, 0, 0, 0]), Role::Reallocates));
        assert!(covered(&padded(&[0xe9, 0x23, 0, 0, 0]), Role::Frees));
    }

    #[test]
    fn two_doors_into_each_other_do_not_both_go_without_a_probe() {
        // 0x1000: jmp 0x1020; 0x1020: jmp 0x1000
        let mut code = vec![0xeb, 0x1e];
        code.resize(0x20, 0xcc);
        code.extend([0xeb, 0xde]);
        let fake = Fake {
            code,
            functions: vec![(0x1000, Role::Allocates), (0x1020, Role::Allocates)],
            slots: Vec::new(),
        };
        let mut coverage = Coverage::new(&fake);
        let first = coverage.is_covered(0x1000, Role::Allocates);
        let second = coverage.is_covered(0x1020, Role::Allocates);
        assert!(!(first && second));
        // The other order decides the same.
        let mut coverage = Coverage::new(&fake);
        let second = coverage.is_covered(0x1020, Role::Allocates);
        let first = coverage.is_covered(0x1000, Role::Allocates);
        assert!(!(first && second));
    }

    #[test]
    fn an_endless_maze_is_given_up() {
        // Calls to the next call, each behind the other: more than the budget.
        let mut code = Vec::new();
        for _ in 0..30_000 {
            code.extend([0xe8, 0, 0, 0, 0]);
        }
        assert!(!covered(&code, Role::Allocates));
    }
}
