//! The folder that tools of elfutils, gdb and leakscope share: `BUILDID/debuginfo`, empty where no server has it, and when such
//! knowledge is too old (debuginfod_find_debuginfo(3), CACHE).

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::NamedTempFile;

use crate::apart;

/// How long it is believed that no server has a file, and the file that says otherwise, in seconds.
const MISS: (&str, Duration) = ("cache_miss_s", Duration::from_secs(600));
/// A file that was not read for so long is removed.
const UNUSED: (&str, Duration) = ("max_unused_age_s", Duration::from_secs(604_800));
/// How often such files are looked for; the time of the file is when that was done last.
const CLEAN: (&str, Duration) = ("cache_clean_interval_s", Duration::from_secs(86_400));

/// The name of a debug file in the folder of its build id.
const NAME: &str = "debuginfo";

/// What the cache knows.
pub(super) enum Kept {
    File(File),
    /// No server has it.
    Absence,
    Nothing,
}

/// The folder.
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn place(&self, build_id: &str) -> PathBuf {
        self.folder.join(build_id).join(NAME)
    }

    /// What is known of a build id.
    pub(super) fn find(&self, build_id: &str) -> Kept {
        let path = self.place(build_id);
        let Ok(metadata) = fs::metadata(&path) else {
            return Kept::Nothing;
        };
        if !metadata.is_file() {
            return Kept::Nothing;
        }
        if metadata.len() == 0 {
            let is_new = age(metadata.modified()) < self.setting(MISS);
            return if is_new { Kept::Absence } else { Kept::Nothing };
        }
        match File::open(&path) {
            Ok(file) if is_of(&file, build_id) => Kept::File(file),
            _ => Kept::Nothing,
        }
    }

    /// A file beside the one that it is to become.
    pub(super) fn begin(&self, build_id: &str) -> Result<NamedTempFile, String> {
        let folder = self.folder.join(build_id);
        fs::create_dir_all(&folder)
            .and_then(|()| NamedTempFile::with_prefix_in(format!("{NAME}."), &folder))
            .map_err(|error| unwritable(&folder, &error))
    }

    /// Keeps a file that has come whole, if it is the one that was asked for.
    pub(super) fn keep(&self, build_id: &str, file: NamedTempFile) -> Result<(), String> {
        if !is_of(file.as_file(), build_id) {
            return Err(format!(
                "what it sent for build id {build_id} has another one, or is no ELF file"
            ));
        }
        let path = self.place(build_id);
        file.persist(&path)
            .map(drop)
            .map_err(|error| unwritable(&path, &error.error))
    }

    /// Removes a file's folder where nothing is in it.
    pub(super) fn forget(&self, build_id: &str) {
        // It stays where another program keeps something there.
        let _ = fs::remove_dir(self.folder.join(build_id));
    }

    /// Notes that no server has it. Where that cannot be written, it is asked for again next time.
    pub(super) fn note_absence(&self, build_id: &str) {
        let path = self.place(build_id);
        if let Some(folder) = path.parent()
            && fs::create_dir_all(folder).is_ok()
        {
            // An older one would tell of an older time.
            let _ = fs::remove_file(&path);
            let _ = File::create_new(path);
        }
    }

    /// Removes what nobody has read for a week, once a day. What cannot be removed stays.
    pub(super) fn clean(&self) {
        let (name, _) = CLEAN;
        let mark = self.folder.join(name);
        let interval = self.setting(CLEAN);
        match fs::metadata(&mark) {
            Ok(metadata) if age(metadata.modified()) < interval => return,
            _ => {}
        }
        let _ = fs::create_dir_all(&self.folder);
        if fs::write(&mark, interval.as_secs().to_string()).is_err() {
            return;
        }
        let unused = self.setting(UNUSED);
        for folder in entries(&self.folder).filter(|path| path.is_dir()) {
            for file in entries(&folder) {
                let is_old = fs::symlink_metadata(&file)
                    .is_ok_and(|found| found.is_file() && age(last_use(&found)) >= unused);
                if is_old {
                    let _ = fs::remove_file(file);
                }
            }
            // It stays where something is in it.
            let _ = fs::remove_dir(folder);
        }
    }

    /// A duration that a file of the cache says, or the usual one.
    fn setting(&self, (name, usual): (&str, Duration)) -> Duration {
        fs::read_to_string(self.folder.join(name))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map_or(usual, Duration::from_secs)
    }
}

/// Whether an ELF file has a build id.
fn is_of(file: &File, build_id: &str) -> bool {
    let own = apart::headers(file).ok().and_then(|elf| elf.build_id);
    own.is_some_and(|own| super::super::space::hex(&own) == build_id)
}

/// The later of when it was read and when it was written.
fn last_use(metadata: &Metadata) -> io::Result<SystemTime> {
    Ok(metadata.accessed()?.max(metadata.modified()?))
}

/// How long ago; nothing for times that are not known or to come.
fn age(time: io::Result<SystemTime>) -> Duration {
    time.ok()
        .and_then(|time| time.elapsed().ok())
        .unwrap_or_default()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let listed = fs::read_dir(folder).into_iter().flatten();
    listed.flatten().map(|entry| entry.path())
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("its files cannot be kept in {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{Cache, Kept};
    use std::{
        fs::{self, File, FileTimes},
        path::Path,
        time::{Duration, SystemTime},
    };

    const ID: &str = "00112233445566778899";

    fn set_back(path: &Path, seconds: u64) {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        let times = FileTimes::new().set_accessed(time).set_modified(time);
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_times(times)
            .unwrap();
    }

    #[test]
    fn that_nobody_has_it_is_known_for_ten_minutes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().to_owned());
        assert!(matches!(cache.find(ID), Kept::Nothing));
        cache.note_absence(ID);
        assert!(matches!(cache.find(ID), Kept::Absence));
        let path = folder.path().join(ID).join("debuginfo");
        set_back(&path, 601);
        assert!(matches!(cache.find(ID), Kept::Nothing));
        fs::write(folder.path().join("cache_miss_s"), "1000\n").unwrap();
        assert!(matches!(cache.find(ID), Kept::Absence));
        cache.note_absence(ID);
        assert_eq!(fs::metadata(path).unwrap().len(), 0);
    }

    #[test]
    fn a_file_of_another_build_id_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().to_owned());
        let partial = cache.begin(ID).unwrap();
        fs::copy(std::env::current_exe().unwrap(), partial.path()).unwrap();
        let error = cache.keep(ID, partial).unwrap_err();
        assert!(error.contains("has another one"), "{error}");
        let path = folder.path().join(ID).join("debuginfo");
        fs::copy(std::env::current_exe().unwrap(), path).unwrap();
        assert!(matches!(cache.find(ID), Kept::Nothing));
    }

    #[test]
    fn what_nobody_reads_goes_after_a_week() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().to_owned());
        let other = "aabbccddeeff00112233";
        for id in [ID, other] {
            cache.note_absence(id);
        }
        set_back(&folder.path().join(ID).join("debuginfo"), 604_801);
        cache.clean();
        assert!(!folder.path().join(ID).exists());
        assert!(folder.path().join(other).join("debuginfo").exists());
        // Not looked at again before tomorrow.
        set_back(&folder.path().join(other).join("debuginfo"), 604_801);
        cache.clean();
        assert!(folder.path().join(other).exists());
        set_back(&folder.path().join("cache_clean_interval_s"), 86_401);
        cache.clean();
        assert!(!folder.path().join(other).exists());
    }
}
