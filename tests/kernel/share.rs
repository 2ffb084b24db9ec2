//! The share of stacks that reach their true end, in programs as distributions ship them and in C++ without frame
//! pointers: at least 99.9 % of all allocations.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use leakscope_tests::{
    ALL_SITES, Report, answers, leave_out, prebuilt, python, require_kernel, require_victim, run,
    run_command,
};

/// Of a thousand allocations this many must have a complete stack.
const PER_MILLE: u64 = 999;

#[track_caller]
fn assert_share(what: &str, command: &[&str], least: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut arguments = vec![
        "trace", "--tier", "exact", "--top", ALL_SITES, "--format", "json", "-o",
    ];
    arguments.push(path.to_str().unwrap());
    arguments.push("--");
    arguments.extend(command);
    let finished = run(&arguments).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let text = fs::read_to_string(&path).expect("a report");
    let report: Report = serde_json::from_str(&text).expect("by the contract");
    let mut all = 0;
    let mut complete = 0;
    // Where the others end: the frame, and how many.
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for site in &report.sites {
        all += site.alloc_objects;
        if site.stack_complete {
            complete += site.alloc_objects;
        } else if let Some(frame) = site.frames.last() {
            let end = format!(
                "{} in {}+{:#x}",
                frame.function.as_deref().unwrap_or("?"),
                frame.module.as_deref().unwrap_or("?"),
                frame.offset.unwrap_or(0)
            );
            *ends.entry(end).or_default() += site.alloc_objects;
        }
    }
    let mut ends: Vec<(u64, String)> = ends.into_iter().map(|(end, count)| (count, end)).collect();
    ends.sort_by(|one, other| other.cmp(one));
    ends.truncate(20);
    let losses: Vec<_> = report
        .losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    // A figure that is worth reading even where the test passes.
    let _ = writeln!(
        io::stderr(),
        "{what}: {complete} of {all} stacks complete ({:.4} %), {} sites; {losses:?}; ends: {ends:#?}",
        complete as f64 * 100.0 / all as f64,
        report.sites.len(),
    );
    assert!(all >= least, "{what}: only {all} allocations");
    assert!(
        complete * 1000 >= all * PER_MILLE,
        "{what}: {complete} of {all} stacks complete; {losses:?}; ends: {ends:#?}"
    );
}

/// Debian's interpreter where there is one, else the one on PATH.
fn interpreter() -> Option<String> {
    let debian = Path::new("/usr/bin/python3");
    if debian.exists() {
        return Some(debian.display().to_string());
    }
    python()
        .ok()
        .map(|python| python.executable.display().to_string())
}

const PYTHON_WORK: &str = "
import ctypes, json, re, zlib, decimal, functools, hashlib, sqlite3, xml.etree.ElementTree as tree
kept = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
def compare(a, b):
    bytes(2000 + a[0])
    return a[0] - b[0]
libc = ctypes.CDLL(None)
for turn in range(30):
    data = {str(i): [i * 0.5, 'x' * (i * 13 % 1500), {'deep': [None] * (i % 300)}] for i in range(200)}
    text = json.dumps(data)
    assert json.loads(text) == data
    assert zlib.decompress(zlib.compress(text.encode())) == text.encode()
    kept.append(len(re.findall(r'(\\w+)\\W+(\\w+)', text)))
    numbers = (ctypes.c_int * 40)(*[(i * 7919) % 41 for i in range(40)])
    libc.qsort(numbers, 40, ctypes.sizeof(ctypes.c_int), compare)
    assert list(numbers) == sorted(numbers)
    decimal.Decimal(2).sqrt(decimal.Context(prec=2000 + turn))
    hashlib.sha256(text.encode()).hexdigest()
    database = sqlite3.connect(':memory:')
    database.execute('create table t(a, b)')
    database.executemany('insert into t values (?, ?)', [(i, 'y' * i) for i in range(300)])
    database.execute('select a, count(*) from t group by length(b) % 7 order by 2').fetchall()
    database.close()
    root = tree.fromstring('<a>' + '<b c=\"d\">e</b>' * 300 + '</a>')
    kept.append(len(root))
";

#[test]
fn python_with_its_own_tests() {
    let _alone = require_kernel!();
    if prebuilt() {
        leave_out("python's share is measured where its whole library is");
        return;
    }
    let Some(python) = interpreter() else {
        leave_out("there is no python3");
        return;
    };
    assert_share("python3, a workload", &[&python, "-c", PYTHON_WORK], 10_000);
    let modules = ["test_list", "test_dict", "test_json"];
    let mut check = std::process::Command::new(&python);
    check.args([
        "-c",
        "import test.test_list, test.test_dict, test.test_json",
    ]);
    if run_command(check).is_ok_and(|finished| finished.code() == 0) {
        let mut command = vec![python.as_str(), "-m", "test"];
        command.extend(modules);
        assert_share("python3 -m test", &command, 10_000);
    } else {
        leave_out("python's own test suite is not installed (Debian: libpython3.11-testsuite)");
    }
}

#[test]
fn containers_of_cpp_without_frame_pointers() {
    let _alone = require_kernel!();
    let path = require_victim!("containers-omit");
    assert_share("C++ containers", &[path.to_str().unwrap()], 50_000);
}

#[test]
fn gdb() {
    let _alone = require_kernel!();
    if !answers("gdb", "--version") {
        leave_out("gdb is not installed");
        return;
    }
    assert_share(
        "gdb",
        &["gdb", "-nx", "-batch", "-ex", "info functions", "/bin/true"],
        10_000,
    );
}
