//! The cache: what is built once, what is found again, and what is not believed.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{
    BuildOptions, Cache, FileState, Kept, Key, Table, UnwindError, Wanted, build, build_id,
};
use super::made_up::{Frames, INITIAL, TEXT, elf};
use super::{files, pruned};

fn file() -> Vec<u8> {
    let frames =
        Frames::new(false)
            .cie(b"", INITIAL)
            .fde(TEXT, 0x10, &[0x44, 0x0E, 16, 0x44, 0x0E, 24]);
    elf(&[0xE8; 0x40], 0, &[frames.part()])
}

fn key() -> Key {
    Key::BuildId(vec![1, 2, 0xAB].into())
}

fn wanted() -> Wanted {
    of(key())
}

fn of(key: Key) -> Wanted {
    Wanted {
        key,
        state: Some(STATE),
    }
}

const STATE: FileState = FileState {
    device: 1,
    inode: 2,
    size: 3,
    modified: 4,
    changed: 5,
};

/// How the file in a directory is called.
fn name(directory: &Path) -> String {
    let [name] = &names(directory)[..] else {
        panic!("{:?}", names(directory));
    };
    name.clone()
}

fn options(kept: Kept) -> BuildOptions {
    BuildOptions {
        kept,
        ..BuildOptions::default()
    }
}

/// A table through a new cache on a directory, and whether the file had to be loaded.
fn through(directory: &Path, kept: Kept, wanted: &Wanted) -> (Arc<Table>, bool) {
    let cache = Cache::new(options(kept)).with_directory(directory.to_owned());
    let loaded = Cell::new(false);
    let table = cache
        .get_or_build(wanted, |options| {
            loaded.set(true);
            made(&file(), options)
        })
        .unwrap();
    (table, loaded.get())
}

/// What a file's bytes make.
fn made(file: &[u8], options: &BuildOptions) -> Result<Result<Table, UnwindError>, UnwindError> {
    Ok(build(file, options))
}

fn not_again(_: &BuildOptions) -> Result<Result<Table, UnwindError>, UnwindError> {
    panic!("made again")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn memory_holds_what_is_used_and_forgets_the_rest() {
    let cache = Cache::new(options(Kept::Calls));
    let table = cache
        .get_or_build(&wanted(), |options| made(&file(), options))
        .unwrap();
    assert_eq!(cache.usage(), (1, table.bytes()));
    let again = cache.get_or_build(&wanted(), not_again).unwrap();
    assert!(Arc::ptr_eq(&table, &again));
    drop(again);
    assert_eq!(cache.release_unused(), 0);
    drop(table);
    assert_eq!(cache.release_unused(), 1);
    assert_eq!(cache.get(&key()), None);
}

#[test]
fn a_file_that_cannot_be_unwound_is_read_once() {
    let cache = Cache::new(options(Kept::Calls));
    let result = cache.get_or_build(&wanted(), |options| made(b"no", options));
    assert_eq!(result, Err(UnwindError::NotElf));
    let again = cache.get_or_build(&wanted(), not_again);
    assert_eq!(again, Err(UnwindError::NotElf));
    // A file that could not be loaded may be there the next time.
    let other = of(Key::File {
        device: 1,
        inode: 2,
        size: 3,
        modified: 4,
    });
    let failed = cache.get_or_build(&other, |_| Err(UnwindError::NoText));
    assert_eq!(failed, Err(UnwindError::NoText));
    assert!(
        cache
            .get_or_build(&other, |options| made(&file(), options))
            .is_ok()
    );
}

#[test]
fn the_directory_gives_the_table_back() {
    let directory = tempfile::tempdir().unwrap();
    for kept in [Kept::Calls, Kept::Writes, Kept::All] {
        let (built, loaded) = through(directory.path(), kept, &wanted());
        assert!(loaded);
        let (read, loaded) = through(directory.path(), kept, &wanted());
        assert!(!loaded);
        assert_eq!(read, built);
        assert_eq!(read.kept, kept);
    }
    let kept = names(directory.path());
    assert_eq!(kept.len(), 3);
    for (name, end) in kept.iter().zip([".calls", ".full", ".writes"]) {
        assert!(name.starts_with("0102ab-") && name.ends_with(end), "{name}");
    }
    // Files without build-id are not kept there.
    let other = of(Key::File {
        device: 1,
        inode: 2,
        size: 3,
        modified: 4,
    });
    assert!(through(directory.path(), Kept::Calls, &other).1);
    assert_eq!(names(directory.path()).len(), 3);
}

#[test]
fn a_table_goes_through_bytes_unless_they_are_damaged() {
    let table = pruned(&file());
    let good = table.to_bytes().unwrap();
    assert_eq!(Table::from_bytes(&good), Some(table));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert_eq!(Table::from_bytes(&bad), None, "byte {at}");
        assert_eq!(Table::from_bytes(&good[..at]), None, "{at} bytes");
    }
}

#[test]
fn a_changed_byte_or_a_torn_file_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let (built, _) = through(directory.path(), Kept::Calls, &wanted());
    let path = directory.path().join(name(directory.path()));
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let (table, loaded) = through(directory.path(), Kept::Calls, &wanted());
        assert!(loaded, "byte {at}");
        assert_eq!(table, built);
        // And it has been replaced.
        assert_eq!(std::fs::read(&path).unwrap(), good);
    }
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(
            through(directory.path(), Kept::Calls, &wanted()).1,
            "length {length}"
        );
    }
}

#[test]
fn another_files_table_is_not_believed() {
    let others = [
        // Another build-id, or rows of another kind.
        (of(Key::BuildId(vec![1].into())), Kept::Calls),
        (wanted(), Kept::All),
        // The build-id is what a file says of itself: another file may say the same.
        (
            Wanted {
                state: Some(FileState {
                    changed: 6,
                    ..STATE
                }),
                ..wanted()
            },
            Kept::Calls,
        ),
    ];
    for (other, kept) in others {
        let directory = tempfile::tempdir().unwrap();
        through(directory.path(), kept, &other);
        let others_name = name(directory.path());
        let table = std::fs::read(directory.path().join(&others_name)).unwrap();
        std::fs::remove_file(directory.path().join(&others_name)).unwrap();
        through(directory.path(), Kept::Calls, &wanted());
        let own_name = name(directory.path());
        assert_ne!(own_name, others_name);
        assert!(!through(directory.path(), Kept::Calls, &wanted()).1);
        std::fs::write(directory.path().join(&own_name), table).unwrap();
        assert!(through(directory.path(), Kept::Calls, &wanted()).1);
    }
}

#[test]
fn a_file_of_which_the_state_is_unknown_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let unknown = Wanted {
        state: None,
        ..wanted()
    };
    for _ in 0..2 {
        assert!(through(directory.path(), Kept::Calls, &unknown).1);
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_directory_that_is_not_there_costs_nothing() {
    let (table, loaded) = through(Path::new("/nonexistent/leakscope"), Kept::Calls, &wanted());
    assert!(loaded);
    assert_eq!(*table, pruned(&file()));
}

#[test]
fn many_files_are_built_in_order() {
    let files = files();
    let mut requests: Vec<(Wanted, PathBuf)> = files
        .iter()
        .map(|(name, file)| {
            let id = build_id(file).unwrap();
            (of(Key::BuildId(id.into())), name.into())
        })
        .collect();
    requests.push((wanted(), "/nonexistent".into()));
    requests.push(requests[0].clone());

    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(options(Kept::Calls)).with_directory(directory.path().to_owned());
    let make = |path: &PathBuf, options: &BuildOptions| -> anyhow::Result<_> {
        Ok(build(&std::fs::read(path)?, options))
    };
    let tables = cache.build_many(&requests, make, NonZeroUsize::new(3).unwrap());
    assert_eq!(tables.len(), requests.len());
    for (table, (name, file)) in tables.iter().zip(&files) {
        assert_eq!(**table.as_ref().unwrap(), pruned(file), "{name}");
    }
    assert!(tables[files.len()].is_err());
    assert_eq!(
        tables[files.len() + 1].as_ref().unwrap(),
        tables[0].as_ref().unwrap()
    );

    // All of them are in the directory now, and no temporary file is left.
    assert_eq!(names(directory.path()).len(), files.len());
    assert!(
        names(directory.path())
            .iter()
            .all(|name| name.ends_with(".calls"))
    );
    let cache = Cache::new(options(Kept::Calls)).with_directory(directory.path().to_owned());
    let unwanted = |_: &PathBuf, _: &BuildOptions| -> anyhow::Result<Result<Table, UnwindError>> {
        panic!("made again")
    };
    let again = cache.build_many(&requests[..files.len()], unwanted, NonZeroUsize::MIN);
    for (again, table) in again.iter().zip(&tables) {
        assert_eq!(again.as_ref().unwrap(), table.as_ref().unwrap());
    }
}
