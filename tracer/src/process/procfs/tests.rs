//! What is read of /proc, of this process and of made-up folders.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const STATUS: &str = "Name:\tx\nTgid:\t77\nPid:\t77\nUid:\t1000\t1001\t1002\t1003\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nVmSwap:\t       4 kB\n";

fn stat(comm: &str, state: char, flags: u64, threads: u32) -> String {
    format!(
        "77 ({comm}) {state} 5 77 77 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 {threads} 0 987654 1000 200 18446744073709551615 1 1"
    )
}

fn proc_root(stat: &str, status: &str, cgroup: Option<&str>, maps: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("77");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("stat"), stat).unwrap();
    fs::write(folder.join("status"), status).unwrap();
    fs::write(folder.join("maps"), maps).unwrap();
    if let Some(cgroup) = cgroup {
        fs::write(folder.join("cgroup"), cgroup).unwrap();
    }
    root
}

#[test]
fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
    let root = proc_root(
        &stat(") R 9 (a b)", 'S', 0x40_0000, 3),
        STATUS,
        Some("0::/a.slice/b\n"),
        b"",
    );
    let process = read_process(root.path(), 77).unwrap();
    assert_eq!(
        process,
        Process {
            pid: 77,
            parent: 5,
            comm: ") R 9 (a b)".to_owned(),
            cgroup: "/a.slice/b".to_owned(),
            cgroups: vec![CgroupMembership {
                controllers: String::new(),
                path: "/a.slice/b".to_owned()
            }],
            uid: 1001,
            is_kernel_thread: false,
            start_time_ticks: 987_654,
            is_zombie: false,
        }
    );
}

#[test]
fn kernel_threads_and_zombies_are_told() {
    let root = proc_root(&stat("kthreadd", 'S', 0x20_8040, 1), STATUS, None, b"");
    assert!(read_process(root.path(), 77).unwrap().is_kernel_thread);
    let root = proc_root(&stat("x", 'Z', 0x40_0000, 1), STATUS, None, b"");
    assert!(read_process(root.path(), 77).unwrap().is_zombie);
    let root = proc_root(&stat("x", 'Z', 0x40_0000, 2), STATUS, None, b"");
    assert!(
        !read_process(root.path(), 77).unwrap().is_zombie,
        "only its first thread has ended"
    );
}

#[test]
fn errors_say_what_is_the_matter() {
    let root = proc_root(&stat("x", 'S', 0, 1), STATUS, None, b"");
    assert!(matches!(
        read_process(root.path(), 78),
        Err(ProcessError::NotFound { pid: 78 })
    ));
    assert!(matches!(
        read_maps(root.path(), 78),
        Err(ProcessError::Gone { pid: 78 })
    ));

    let root = proc_root("77 (x", STATUS, None, b"");
    assert!(matches!(
        read_process(root.path(), 77),
        Err(ProcessError::Malformed { .. })
    ));

    let root = proc_root(
        &stat("x", 'S', 0, 1),
        &STATUS.replace("Tgid:\t77", "Tgid:\t70"),
        None,
        b"",
    );
    assert!(matches!(
        read_process(root.path(), 77),
        Err(ProcessError::Thread {
            pid: 77,
            process: 70
        })
    ));

    let root = proc_root(&stat("x", 'S', 0, 1), STATUS, None, b"");
    fs::remove_file(root.path().join("77/status")).unwrap();
    assert!(matches!(
        read_process(root.path(), 77),
        Err(ProcessError::Gone { pid: 77 })
    ));
    fs::create_dir(root.path().join("77/status")).unwrap();
    let error = read_process(root.path(), 77).unwrap_err();
    assert!(matches!(error, ProcessError::Unreadable { .. }));
    assert!(error.to_string().contains("77/status"), "{error}");
}

#[test]
fn the_cgroup_that_says_most_is_taken() {
    let choose = |text: &str| telling_cgroup(&parse_cgroups(text.as_bytes())).to_owned();
    assert_eq!(choose("0::/user.slice\n"), "/user.slice");
    assert_eq!(choose("9:memory:/m\n1:name=systemd:/s\n0::/v2\n"), "/v2");
    assert_eq!(choose("9:cpu,memory:/m\n1:name=systemd:/s\n0::/\n"), "/m");
    assert_eq!(choose("9:memory:/\n1:name=systemd:/s\n"), "/s");
    assert_eq!(choose("9:memory:/\n3:rdma:/r\n0::/\n"), "/r");
    assert_eq!(choose("0::/\n"), "/");
    assert_eq!(choose("4:memory:/a:b\n"), "/a:b");
    assert_eq!(choose(""), "");
}

#[test]
fn memory_is_read_and_a_zombie_has_none() {
    let root = proc_root("", STATUS, None, b"");
    assert_eq!(
        read_memory(root.path(), 77).unwrap(),
        Memory {
            resident_bytes: 2048 * 1024,
            anonymous_bytes: 1024 * 1024,
            swapped_bytes: 4096,
        }
    );
    let root = proc_root("", "Tgid:\t77\n", None, b"");
    assert_eq!(read_memory(root.path(), 77).unwrap(), Memory::default());
    let root = proc_root("", "VmRSS:\tmany kB\n", None, b"");
    assert!(matches!(
        read_memory(root.path(), 77),
        Err(ProcessError::Malformed { .. })
    ));

    fs::write(
        root.path().join("77/smaps_rollup"),
        "55-66 ---p 00000000 00:00 0 [rollup]\nRss: 16 kB\nAnonymous:  12 kB\nSwap:   4 kB\nSwapPss: 3 kB\n",
    )
    .unwrap();
    assert_eq!(
        exact_anonymous_bytes(root.path(), 77).unwrap(),
        (12 * 1024, 4 * 1024)
    );
}

#[test]
fn maps_lines_of_every_form() {
    let text =
        b"55cddaf4d000-55cddaf52000 r-xp 00002000 fe:1f 247030                     /usr/bin/cat\n\
        7f0000000000-7f0000001000 rw-s 00000000 00:05 9 /a b  c (deleted)\n\
        7f0000001000-7f0000002000 ---p 00000000 00:00 0 \n\
        7f0000002000-7f0000003000 rw-p 00000000 00:00 0                          [anon:my heap]\n\
        7f0000003000-7f0000004000 r--p 00000000 00:01 7 /new\\012line/\xff\xfe\n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
    let maps = parse_maps(text).unwrap();
    assert_eq!(maps.len(), 6);
    assert_eq!(
        maps[0],
        MemoryMap {
            start: 0x55cd_daf4_d000,
            end: 0x55cd_daf5_2000,
            offset: 0x2000,
            readable: true,
            writable: false,
            executable: true,
            shared: false,
            device: Device {
                major: 0xfe,
                minor: 0x1f
            },
            inode: 247_030,
            path: "/usr/bin/cat".into(),
            deleted: false,
        }
    );
    assert!(maps[1].deleted && maps[1].shared && maps[1].is_file());
    assert_eq!(maps[1].path, Path::new("/a b  c"));
    assert!(!maps[2].is_file() && maps[2].path.as_os_str().is_empty());
    assert_eq!(maps[3].path, Path::new("[anon:my heap]"));
    assert!(!maps[3].is_file());
    assert_eq!(maps[4].path.as_os_str().as_bytes(), b"/new\nline/\xff\xfe");
    assert_eq!(maps[5].end, 0xffff_ffff_ff60_1000);
    assert_eq!(maps[0].address_of(0x2010), Some(0x55cd_daf4_d010));
    assert_eq!(maps[0].address_of(0x1fff), None);
    assert_eq!(maps[0].address_of(0x7000), None);
}

#[test]
fn a_maps_line_of_another_form_is_an_error() {
    for line in [
        "55-44 r--p 0 0:0 0",
        "5544 r--p 0 0:0 0",
        "44-55 r--px 0 0:0 0",
        "44-55 r--p 0 00 0",
        "44-55 r--p 0 0:0 x",
        "44-55",
    ] {
        assert_eq!(
            parse_maps(line.as_bytes()),
            Err(line.as_bytes().to_vec()),
            "{line}"
        );
    }
}

#[test]
fn maps_of_a_process_whose_first_thread_has_ended_are_found() {
    let root = proc_root(&stat("x", 'Z', 0, 2), STATUS, None, b"");
    let thread = root.path().join("77/task/79");
    fs::create_dir_all(&thread).unwrap();
    fs::create_dir_all(root.path().join("77/task/77")).unwrap();
    fs::write(root.path().join("77/task/77/maps"), b"").unwrap();
    fs::write(thread.join("maps"), b"1000-2000 r-xp 00000000 00:01 7 /x\n").unwrap();
    assert_eq!(read_maps(root.path(), 77).unwrap().len(), 1);
}

/// A map of `path`, as it stands on this machine's disk.
fn map_of(path: &Path, name: &str) -> MemoryMap {
    let metadata = fs::metadata(path).unwrap();
    MemoryMap {
        start: 0x1000,
        end: 0x2000,
        offset: 0,
        readable: true,
        writable: false,
        executable: true,
        shared: false,
        device: Device::from_stat(metadata.dev()),
        inode: metadata.ino(),
        path: name.into(),
        deleted: false,
    }
}

#[test]
fn a_mapped_file_is_opened_by_range_then_by_name() {
    let root = proc_root("", STATUS, None, b"");
    let folder = root.path().join("77");
    fs::create_dir_all(folder.join("root/lib")).unwrap();
    let file = folder.join("root/lib/x.so");
    fs::write(&file, b"first").unwrap();
    let map = map_of(&file, "/lib/x.so");

    let opened = open_mapped_through(root.path(), 77, &map).unwrap();
    assert_eq!(opened.through, OpenedThrough::Name);

    let subvolume = MemoryMap {
        device: Device {
            major: 0,
            minor: 0xfff,
        },
        ..map.clone()
    };
    let opened = open_mapped_through(root.path(), 77, &subvolume).unwrap();
    assert_eq!(opened.through, OpenedThrough::NameSameInode);

    let marked = folder.join("root/lib/x.so (deleted)");
    fs::write(&marked, b"named so").unwrap();
    let named = MemoryMap {
        deleted: true,
        ..map_of(&marked, "/lib/x.so")
    };
    assert_eq!(
        io::read_to_string(open_mapped(root.path(), 77, &named).unwrap()).unwrap(),
        "named so"
    );

    let replaced = MemoryMap {
        inode: map.inode.wrapping_add(1_000_000),
        ..map
    };
    let error = open_mapped(root.path(), 77, &replaced).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("replaced"), "{error}");

    fs::create_dir_all(folder.join("map_files")).unwrap();
    std::os::unix::fs::symlink(&file, folder.join("map_files/1000-2000")).unwrap();
    let opened = open_mapped_through(root.path(), 77, &replaced).unwrap();
    assert_eq!(opened.through, OpenedThrough::MapFiles);
}

#[test]
fn devices_and_anonymous_memory_are_never_opened() {
    let root = proc_root("", STATUS, None, b"");
    let folder = root.path().join("77");
    fs::create_dir_all(folder.join("map_files")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join("map_files/1000-2000")).unwrap();
    let map = map_of(Path::new("/dev/zero"), "/dev/zero");
    let error = open_mapped(root.path(), 77, &map).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");

    let anonymous = MemoryMap {
        inode: 0,
        path: "[heap]".into(),
        ..map
    };
    assert_eq!(
        open_mapped(root.path(), 77, &anonymous).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn the_test_process_reads_itself() {
    let root = Path::new("/proc");
    let pid = std::process::id();
    let process = read_process(root, pid).unwrap();
    assert_eq!(process.pid, pid);
    assert!(!process.is_kernel_thread && !process.is_zombie && process.start_time_ticks > 0);
    assert!(list_pids(root).unwrap().contains(&pid));

    let executable = std::env::current_exe().unwrap();
    let maps = read_maps(root, pid).unwrap();
    let map = maps
        .iter()
        .find(|map| map.is_file() && map.executable && map.path == executable)
        .unwrap();
    let opened = open_mapped(root, pid, map).unwrap();
    assert_eq!(
        opened.metadata().unwrap().len(),
        fs::metadata(&executable).unwrap().len()
    );

    let memory = read_memory(root, pid).unwrap();
    assert!(memory.resident_bytes >= memory.anonymous_bytes && memory.anonymous_bytes > 0);
    assert!(exact_anonymous_bytes(root, pid).unwrap().0 > 0);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_maps(&bytes);
        let _ = parse_stat(&bytes);
        let _ = parse_cgroups(&bytes);
    }

    #[test]
    fn any_name_survives_stat(comm in "[ -~]{0,15}") {
        let parsed = parse_stat(stat(&comm, 'R', 0, 1).as_bytes());
        let Some(parsed) = parsed else { panic!("not parsed: {comm}") };
        prop_assert_eq!(parsed.comm, comm);
        prop_assert_eq!(parsed.start_time_ticks, 987_654);
    }
}

#[test]
fn the_interpreter_lies_where_the_kernel_put_it() {
    let pid = std::process::id();
    let base = interpreter_base(Path::new("/proc"), pid).unwrap().unwrap();
    let maps = read_maps(Path::new("/proc"), pid).unwrap();
    let map = maps.iter().find(|map| map.start == base).unwrap();
    assert!(
        map.path.to_string_lossy().contains("/ld-"),
        "{}",
        map.path.display()
    );
}

#[test]
fn pages_are_in_memory_once_they_were_touched() {
    let pid = std::process::id();
    let table = fs::File::open(format!("/proc/{pid}/pagemap")).unwrap();
    // So large that the allocator maps it anew.
    let mut block = vec![0_u8; 64 << 20];
    let start = block.as_ptr() as u64;
    let range = start + (8 << 20)..start + (24 << 20);
    let before = pagemap::bytes_in_memory(&table, &range);
    block[(10 << 20)..(12 << 20)].fill(1);
    let after = pagemap::bytes_in_memory(&table, &range);
    assert_eq!(std::hint::black_box(&block)[10 << 20], 1);
    assert_eq!(before, 0);
    // Two huge pages may begin before and end behind.
    assert!((2 << 20..=6 << 20).contains(&after), "{after}");
}
