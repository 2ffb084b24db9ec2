//! Which type a block has, by the call that allocated it: the compiler hands the type's descriptor to the runtime's function in a register, so
//! that the instructions before the call name it, also in stripped files. What is not clear from them has no type.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

use super::{
    bytes::{half, varint},
    code::instructions,
    program::Program,
};
use crate::heap::Memory;

/// The longest way from a function's beginning to a call that is read, bytes.
const LONGEST_CODE: u64 = 256 << 10;

/// Places in `abi.Type`: `TFlag`, `Str`; and the flag that says that a `*` stands before the name (src/internal/abi/type.go).
const FLAGS: usize = 20;
const NAME: usize = 40;
const DESCRIPTOR: usize = 48;
const EXTRA_STAR: u8 = 2;

/// The longest name that is shown, bytes.
const LONGEST_NAME: u32 = 200;

/// How the type of a function with captured variables begins, which no source names.
const CLOSURE: &str = "struct { F uintptr";

/// What a function of the runtime makes of the type that it is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Makes {
    /// A pointer to one.
    Pointer,
    /// A slice of them.
    Slice,
    /// The type itself: a channel, a map, a value in an interface.
    Itself,
}

/// How a function of the runtime is told a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// By a register for arguments (src/cmd/compile/abi-internal.md).
    By(Register, Makes),
    /// It makes this.
    Always(&'static str),
}

/// What the function of that name allocates.
fn allocates(name: &[u8], minor: u32) -> Option<Told> {
    let of = name.strip_prefix(b"runtime.")?;
    let by = |register, makes| Some(Told::By(register, makes));
    match of {
        b"newobject" => by(Register::RAX, Makes::Pointer),
        b"makeslice" | b"makeslice64" | b"makeslicecopy" | b"newarray" | b"moveSlice"
        | b"moveSliceNoCap" => by(Register::RAX, Makes::Slice),
        // Its arguments changed in Go 1.20; there are more of its kind since Go 1.27.
        b"growslice" if minor < 20 => by(Register::RAX, Makes::Slice),
        _ if of.starts_with(b"growslice") => by(Register::RSI, Makes::Slice),
        b"makechan" | b"makechan64" | b"makemap" | b"makemap64" | b"convT" | b"convTnoptr" => {
            by(Register::RAX, Makes::Itself)
        }
        b"makemap_small" => Some(Told::Always("map")),
        b"convTstring" | b"concatstrings" | b"slicebytetostring" | b"slicerunetostring"
        | b"intstring" => Some(Told::Always("string")),
        b"stringtoslicebyte" | b"concatbytes" => Some(Told::Always("[]uint8")),
        b"stringtoslicerune" => Some(Told::Always("[]int32")),
        _ if of.starts_with(b"mapassign") => by(Register::RAX, Makes::Itself),
        _ if of.starts_with(b"concatstring") => Some(Told::Always("string")),
        _ if of.starts_with(b"concatbyte") => Some(Told::Always("[]uint8")),
        _ if of.starts_with(b"mallocgc") => by(Register::RBX, Makes::Pointer),
        _ => None,
    }
}

/// Whether a function belongs to the runtime, which allocates for its callers.
fn is_of_runtime(name: &[u8]) -> bool {
    name.starts_with(b"runtime.") || name.starts_with(b"internal/runtime/")
}

/// The address that the last of some instructions, a call, finds in a register; `None` where that may differ.
fn handed(code: &[Instruction], register: Register) -> Option<u64> {
    let (call, before) = code.split_last()?;
    let mut factory = InstructionInfoFactory::new();
    let (place, set) = before.iter().enumerate().rev().find(|(_, instruction)| {
        let info = factory.info(instruction);
        let is_set = info.used_registers().iter().any(|used| {
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            writes && used.register().full_register() == register
        });
        // A call changes all of them.
        is_set || instruction.flow_control() == FlowControl::Call
    })?;
    let is_address = set.mnemonic() == Mnemonic::Lea
        && set.op0_register() == register
        && set.is_ip_rel_memory_operand();
    // Whoever jumps in between brings something else along; behind an end nobody comes from before.
    let between = set.next_ip()..=call.ip();
    let leads_there = code.iter().any(|instruction| {
        matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        ) && between.contains(&instruction.near_branch_target())
    });
    let goes_on = before.get(place..)?.iter().all(|instruction| {
        matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch
        )
    });
    (is_address && goes_on && !leads_there).then(|| set.ip_rel_memory_address())
}

impl Program {
    /// The type of what was allocated at a stack of addresses that calls return to, leaf first: as of the value that leads to it, such as
    /// `*main.Entry`, `[]uint8` or `chan int`.
    #[must_use]
    pub fn allocated_type(&self, memory: &dyn Memory, bias: u64, stack: &[u64]) -> Option<String> {
        let returns = stack.iter().find_map(|address| {
            let place = address.wrapping_sub(bias);
            let name = self.functions.name_of(place.wrapping_sub(1))?;
            (!is_of_runtime(name)).then_some(place)
        })?;
        let function = self.functions.range_of(returns.wrapping_sub(1))?;
        let bytes = returns.checked_sub(function.start)?;
        let mut code = vec![0; usize::try_from(bytes.min(LONGEST_CODE)).ok()?];
        let read = memory.read(function.start.wrapping_add(bias), &mut code);
        if read as u64 != bytes {
            return None;
        }
        let code: Vec<Instruction> = instructions(&code, function.start).collect();
        let call = code.last()?;
        if call.next_ip() != returns || call.code() != Code::Call_rel32_64 {
            return None;
        }
        let target = call.near_branch_target();
        let callee = self.functions.name_of(target)?;
        match allocates(callee, self.version.minor()?)? {
            Told::Always(name) => Some(name.to_owned()),
            Told::By(register, makes) => {
                let descriptor = handed(&code, register)?;
                let name = self.type_name(memory, bias, descriptor)?;
                Some(match makes {
                    _ if name.starts_with(CLOSURE) => "closure".to_owned(),
                    Makes::Pointer => format!("*{name}"),
                    Makes::Slice => format!("[]{name}"),
                    Makes::Itself => name,
                })
            }
        }
    }

    /// The name of the type whose descriptor lies at an address of the file.
    fn type_name(&self, memory: &dyn Memory, bias: u64, descriptor: u64) -> Option<String> {
        let mut bytes = [0; DESCRIPTOR];
        let read = memory.read(descriptor.wrapping_add(bias), &mut bytes);
        if read != bytes.len() || descriptor < self.places.types {
            return None;
        }
        let name = self
            .places
            .types
            .checked_add(u64::from(half(&bytes, NAME)?))?;
        // A byte of flags, the length, the bytes (`abi.Name`).
        let mut head = [0; 8];
        let read = memory.read(name.wrapping_add(bias), &mut head);
        let (length, taken) = varint(head.get(1..read)?)?;
        if length == 0 || length > LONGEST_NAME {
            return None;
        }
        let mut text = vec![0; usize::try_from(length).ok()?];
        let begin = name.checked_add(1)?.checked_add(taken as u64)?;
        if memory.read(begin.wrapping_add(bias), &mut text) != text.len() {
            return None;
        }
        let text = String::from_utf8(text).ok()?;
        let has_star = bytes.get(FLAGS)? & EXTRA_STAR != 0;
        Some(if has_star {
            text.strip_prefix('*')?.to_owned()
        } else {
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Makes, Told, allocates, handed};
    use crate::runtime::go::code::instructions;
    use iced_x86::Register;

    fn handed_in(code: &[u8]) -> Option<u64> {
        let code: Vec<_> = instructions(code, 0x1000).collect();
        handed(&code, Register::RAX)
    }

    #[test]
    fn the_address_before_a_call_is_the_type_and_what_may_be_another_is_not() {
        // lea rax, [rip+0x10]; mov ebx, 5; call
        let clear = [
            0x48, 0x8d, 0x05, 0x10, 0, 0, 0, 0xbb, 5, 0, 0, 0, 0xe8, 0, 0, 0, 0,
        ];
        assert_eq!(handed_in(&clear), Some(0x1017));
        // xor eax, eax before the call.
        let mut other = clear.to_vec();
        other.splice(7..12, [0x31, 0xc0, 0x90, 0x90, 0x90]);
        assert_eq!(handed_in(&other), None);
        // je to the second instruction, from before.
        let mut joined = vec![0x74, 0x07];
        joined.extend_from_slice(&clear);
        assert_eq!(handed_in(&joined), None);
        // A call in between.
        let mut called = clear.to_vec();
        called.splice(7..12, [0xe8, 0, 0, 0, 0]);
        assert_eq!(handed_in(&called), None);
        assert_eq!(handed_in(&[]), None);
    }

    #[test]
    fn the_function_says_where_its_type_stands() {
        let by = |register, makes| Some(Told::By(register, makes));
        assert_eq!(
            allocates(b"runtime.growslice", 19),
            by(Register::RAX, Makes::Slice)
        );
        assert_eq!(
            allocates(b"runtime.growslice", 27),
            by(Register::RSI, Makes::Slice)
        );
        assert_eq!(
            allocates(b"runtime.concatstring3", 27),
            Some(Told::Always("string"))
        );
        assert_eq!(allocates(b"main.makechan", 27), None);
    }
}
