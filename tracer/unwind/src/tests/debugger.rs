//! Real stacks of running programs: the walk against a debugger that has nothing in common with it. Ignored: it needs gdb, and
//! the right to trace its own child.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use super::super::{BuildOptions, End, Lookup, Registers, Table, build, walk};

/// Stops at entries of malloc, and prints registers, mappings, return addresses and the stack at each.
const SCRIPT: &str = r#"
import gdb, random
random.seed(1)
for setting in ("pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on", "debuginfod enabled off",
                "print thread-events off", "breakpoint pending on"):
    gdb.execute("set " + setting)
gdb.execute("break __libc_start_main")
gdb.execute("run", to_string=True)
gdb.execute("delete")
gdb.execute("break *malloc")
number = gdb.breakpoints()[-1].number
for stop in range(STOPS):
    gdb.execute("ignore %d %d" % (number, random.randrange(SKIP)), to_string=True)
    gdb.execute("continue", to_string=True)
    frame = gdb.newest_frame()
    register = lambda name: int(gdb.parse_and_eval("$" + name)) & (1 << 64) - 1
    sp = register("sp")
    print("\n@registers %x %x %x" % (register("pc"), sp, register("rbp")))
    for line in open("/proc/%d/maps" % gdb.selected_inferior().pid):
        print("@map " + line.rstrip())
        first, behind = (int(word, 16) for word in line.split()[0].split("-"))
        if first <= sp < behind:
            end = behind
    print("@stack " + gdb.selected_inferior().read_memory(sp, min(end - sp, 1 << 17)).tobytes().hex())
    while frame is not None:
        # Both are made up from debug information; no return address on the stack belongs to them.
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            print("@frame %x" % frame.pc())
        frame = frame.older()
gdb.execute("kill")
"#;

/// What the debugger saw at one stop.
#[derive(Default)]
struct Stop {
    registers: Option<Registers>,
    /// First address, behind, offset in the file, path.
    mappings: Vec<(u64, u64, u64, String)>,
    stack: Vec<u8>,
    frames: Vec<u64>,
}

fn hexadecimal(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap()
}

fn stops(program: &[&str], count: usize, skip: usize) -> Vec<Stop> {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("stops.py");
    let text = SCRIPT
        .replace("STOPS", &count.to_string())
        .replace("SKIP", &skip.to_string());
    std::fs::write(&script, text).unwrap();
    let output = Command::new("gdb")
        .args(["-nx", "-q", "-batch", "-x"])
        .arg(&script)
        .arg("--args")
        .args(program)
        .output()
        .expect("gdb must be installed");
    let mut stops: Vec<Stop> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.as_slice() {
            ["@registers", ip, sp, bp] => stops.push(Stop {
                registers: Some(Registers {
                    ip: hexadecimal(ip),
                    sp: hexadecimal(sp),
                    bp: hexadecimal(bp),
                }),
                ..Stop::default()
            }),
            ["@map", range, flags, offset, _, _, path] if flags.contains('x') => {
                let (first, behind) = range.split_once('-').unwrap();
                stops.last_mut().unwrap().mappings.push((
                    hexadecimal(first),
                    hexadecimal(behind),
                    hexadecimal(offset),
                    path.to_owned(),
                ));
            }
            ["@stack", bytes] => {
                let bytes = bytes.as_bytes().chunks(2);
                stops.last_mut().unwrap().stack = bytes
                    .map(|pair| hexadecimal(std::str::from_utf8(pair).unwrap()) as u8)
                    .collect();
            }
            ["@frame", pc] => stops.last_mut().unwrap().frames.push(hexadecimal(pc)),
            _ => {}
        }
    }
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(
        stops.len() > count / 2,
        "{program:?}: only {} stops: {problem}",
        stops.len()
    );
    stops
}

/// A file's table and its executable segments: (offset in the file, virtual address).
type Module = (Table, Vec<(u64, u64)>);

fn module(path: &str) -> Option<Module> {
    use object::ObjectSegment;
    let file = std::fs::read(path).ok()?;
    let table = build(&file, &BuildOptions::default()).ok()?;
    let object = object::File::parse(&*file).unwrap();
    let segments = object::Object::segments(&object)
        .map(|segment| (segment.file_range().0, segment.address()))
        .collect();
    Some((table, segments))
}

fn check(program: &[&str], count: usize, skip: usize) {
    let stops = stops(program, count, skip);
    let mut modules: HashMap<String, Option<Module>> = HashMap::new();
    let mut frames = 0;
    for stop in &stops {
        for (_, _, _, path) in &stop.mappings {
            if !modules.contains_key(path) {
                modules.insert(path.clone(), module(path));
            }
        }
        let registers = stop.registers.unwrap();
        let walked = walk(
            registers,
            |address| {
                let (first, _, offset, path) = stop
                    .mappings
                    .iter()
                    .find(|(first, behind, ..)| (*first..*behind).contains(&address))?;
                let Some((table, segments)) = modules[path].as_ref() else {
                    return Some(Lookup::NoTable);
                };
                let in_file = address - first + offset;
                let (from, virtual_address) =
                    segments.iter().rfind(|(from, _)| *from <= in_file)?;
                table
                    .lookup(in_file - from + virtual_address)
                    .map(Lookup::Row)
            },
            |address| {
                let at = usize::try_from(address.checked_sub(registers.sp)?).ok()?;
                let bytes = stop.stack.get(at..)?.first_chunk::<8>()?;
                Some(u64::from_le_bytes(*bytes))
            },
            usize::MAX,
        );
        assert_eq!(
            walked.end,
            End::Complete,
            "{program:?}: {walked:#x?}, {:#x?}",
            stop.frames
        );
        assert_eq!(walked.frames, stop.frames, "{program:?}");
        frames += walked.frames.len();
    }
    println!(
        "{program:?}: {} stacks, {frames} frames, all the same and complete",
        stops.len()
    );
}

#[test]
#[ignore = "needs gdb and the right to trace a child"]
fn stacks_of_running_programs_are_those_that_a_debugger_sees() {
    const PYTHON: &str = "
import threading, json, decimal, re, ctypes, hashlib
def work():
    for i in range(2000):
        json.loads(json.dumps({'a': [str(i)] * 300}))
        re.sub('(a+)b', lambda m: m.group(1) * 100, 'aaab' * 200)
        hashlib.sha256(bytes(100000)).hexdigest()
        str(decimal.Decimal(i) ** 60)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
work()";
    for (program, count, skip) in [
        (
            &[
                "/usr/bin/perl",
                "-e",
                "for (1..3000) { my @a = map { \"$_\" x 9 } 1..50; my $s = join ',', sort @a; $s =~ s/1(.)/$1$1/g }",
            ][..],
            150,
            400,
        ),
        (&["/usr/bin/python3", "-c", PYTHON], 300, 300),
        (
            &[
                "/usr/bin/gdb",
                "-nx",
                "-q",
                "-batch",
                "-ex",
                "info types pthread",
                "/usr/bin/gdb",
            ],
            150,
            300,
        ),
    ] {
        if Path::new(program[0]).exists() {
            check(program, count, skip);
        }
    }
}
