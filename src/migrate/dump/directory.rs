//! Where `pg_dump` writes: for our eyes only, since what a superuser's dump holds are also the passwords of user mappings.
//!
//! A directory goes with its run, but for one that is killed. So each holds a lock while it is used, and whoever makes one
//! removes those that nobody holds.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;

const PREFIX: &str = "walferry-dump-";
const LOCK: &str = "lock";
const PENDING: &str = "lock.pending";

/// A temporary directory, until it is dropped.
#[derive(Debug)]
pub(super) struct Directory {
    directory: TempDir,
    _lock: File,
}

impl Directory {
    /// Makes one among temporary files.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn make(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        let private = Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(parent)?;
        // Who sweeps meanwhile finds no lock that nobody holds yet.
        let pending = directory.path().join(PENDING);
        let lock = File::create_new(&pending)?;
        lock.lock()?;
        fs::rename(pending, directory.path().join(LOCK))?;
        Ok(Self { directory, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes what killed runs of this user have left. What cannot be looked at stays.
fn sweep(parent: &Path) {
    let Ok(me) = fs::metadata("/proc/self") else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == me.uid());
        if !ours || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let held = File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if held && let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::debug!(%error, directory = %entry.path().display(), "a killed run's directory stays");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let used = Directory::make(parent.path()).unwrap();
        assert_eq!(fs::metadata(used.path()).unwrap().permissions().mode() & 0o777, 0o700);
        // As a kill leaves it: the lock goes with the process.
        let left = parent.path().join(format!("{PREFIX}left"));
        let another = parent.path().join("another");
        for directory in [&left, &another] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join(LOCK), "").unwrap();
            fs::write(directory.join("schema.dump"), "secret").unwrap();
        }
        let new = Directory::make(parent.path()).unwrap();
        assert!(!left.exists() && another.exists() && used.path().exists() && new.path().exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }

    #[test]
    fn what_others_make_meanwhile_stays() {
        let parent = tempfile::tempdir().unwrap();
        let make = || {
            for _ in 0..300 {
                let made = Directory::make(parent.path()).unwrap();
                fs::write(made.path().join("schema.dump"), "").unwrap();
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(make))));
    }
}
