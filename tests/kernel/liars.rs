//! Processes whose memory, names and files say what is not so, as an unprivileged user would write them: whoever looks at them ends in
//! time, takes little memory, and prints nothing that a terminal would obey.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use leakscope_tests::{NOBODY, Tracer, require_kernel, require_victim, run};
use tempfile::TempDir;

/// A process of `nobody`. Killed when dropped.
struct Liar(Child);

impl Drop for Liar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Liar {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let liar = Self(child);
        assert_eq!(line, "ready\n");
        liar
    }

    fn of_nobody(program: &Path, words: &[&str]) -> Self {
        Self::start(Command::new(program).args(words).uid(NOBODY).gid(NOBODY))
    }

    /// Looks at it in every way. Each has the time that anything may take.
    fn is_looked_at(&self) {
        let pid = self.0.id().to_string();
        for arguments in [
            &["doctor", "-p", &pid][..],
            &["heap", "-p", &pid],
            &["heap", "-p", &pid, "--by", "size", "--format", "html"],
            &["trace", "--for", "2s", "-p", &pid],
            &["trace", "--for", "2s", "-p", &pid, "--tier", "sampled"],
            &["trace", "--for", "1s", "-p", &pid, "--tier", "growth"],
        ] {
            let finished = run(arguments).expect("it ends");
            let code = finished.code();
            assert!(matches!(code, 0 | 1), "{arguments:?}: {finished:?}");
            for text in [&finished.stdout, &finished.stderr] {
                let is_obeyed = |letter: char| letter.is_control() && letter != '\n';
                assert!(!text.contains(is_obeyed), "{arguments:?}: {text:?}");
                assert!(!text.contains("panicked"), "{arguments:?}: {text}");
            }
        }
        let tracer = Tracer::start(&["--tier", "exact", "-p", &pid]).expect("started");
        std::thread::sleep(std::time::Duration::from_secs(1));
        let status = fs::read_to_string(format!("/proc/{}/status", tracer.pid())).expect("status");
        tracer.stop().expect("a report");
        let most: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| line.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .expect("its memory");
        // A debug build takes some 60 MiB at rest.
        assert!(most < 256 << 10, "{most} KiB");
    }
}

/// A folder of `nobody`'s.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("opened to others");
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
    folder
}

/// A copy of some library, under a name.
fn copy(folder: &TempDir, program: &Path, name: &str) -> String {
    let path = folder.path().join(name);
    fs::copy(program, &path).expect("copied");
    chown(&path, Some(NOBODY), Some(NOBODY)).expect("given away");
    path.into_os_string().into_string().expect("text")
}

macro_rules! liars {
    ($($name:ident: $words:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let _turn = require_kernel!();
                let program = require_victim!("liar");
                Liar::of_nobody(&program, &$words).is_looked_at();
            }
        )*
    };
}

liars! {
    room_for_terabytes_was_looked_through_page_by_page: ["reserve"];
    a_terabyte_of_one_page_of_zeros_is_no_memory: ["zeros"];
    memory_that_is_mapped_ten_thousand_times_was_read_as_often: ["mapped"];
    as_many_mappings_as_there_may_be: ["pieces"];
    an_arena_that_says_what_is_not_so: ["arena"];
    chunks_that_lead_in_circles: ["chunks"];
    tables_of_methods_that_describe_themselves: ["vtables"];
    a_chain_of_a_million_blocks: ["chain"];
    thousands_of_threads_whose_names_are_no_text: ["threads"];
    a_perf_map_that_is_a_fifo: ["fifo"];
    a_program_that_becomes_itself_again_and_again: ["exec"];
    a_process_that_lets_nobody_read_it: ["hidden"];
}

#[test]
fn pools_and_types_of_cpython_that_lead_in_circles() {
    let _turn = require_kernel!();
    let program = require_victim!("liar");
    let folder = folder();
    let code = copy(&folder, &program, "libpython3.11.so.1.0");
    Liar::of_nobody(&program, &["pools", &code]).is_looked_at();
}

#[test]
fn files_with_names_that_a_terminal_would_obey() {
    let _turn = require_kernel!();
    let program = require_victim!("liar");
    let folder = folder();
    let path = folder.path().to_str().expect("text");
    Liar::of_nobody(&program, &["names", path]).is_looked_at();
}

#[test]
fn a_library_that_is_written_over_and_moved_all_the_time() {
    let _turn = require_kernel!();
    let program = require_victim!("liar");
    let folder = folder();
    let library = copy(&folder, &program, "library.so");
    Liar::of_nobody(&program, &["rewrite", &library]).is_looked_at();
}

#[test]
fn a_program_whose_file_is_a_fifo_by_now() {
    let _turn = require_kernel!();
    let program = require_victim!("liar");
    let folder = folder();
    let path = folder.path().join("program");
    let path = path.to_str().expect("text");
    Liar::of_nobody(&program, &["gone", path]).is_looked_at();
}

#[test]
fn tables_of_gos_runtime_that_lead_in_circles() {
    let _turn = require_kernel!();
    let program = require_victim!("liar_go");
    Liar::of_nobody(&program, &[]).is_looked_at();
}

#[test]
fn memory_that_is_served_by_somebody_who_does_not_answer() {
    let _turn = require_kernel!();
    let program = require_victim!("stuck");
    if !Path::new("/dev/fuse").exists() {
        leakscope_tests::skip("there is no FUSE");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("opened to others");
    // It mounts as a helper of FUSE's does for users, and becomes one.
    Liar::start(Command::new(&program).arg(folder.path())).is_looked_at();
}
