//! What waits on disk for its transaction's end: the format, and the directory.
//!
//! One file a transaction, in the order in which its changes came:
//!
//! ```text
//! header   Byte[8] magic "WALFERRY"  Int32 version (1)  Int32 xid  Int32 crc32 of what stands before it
//! record   Int32 length of the message  Int32 xid (the subtransaction)  Byte[length] message
//!          Int32 crc32 of what stands before it in the record
//! ```
//!
//! Integers are big-endian; the checksum is that of IEEE 802.3. The message is one of pgoutput, as it came in a block.
//!
//! Nothing here matters to correctness: the source sends an unfinished transaction again after every reconnect. So
//! nothing is synchronised to the disk, whatever a dead engine left is removed when the next one begins to keep
//! transactions, and what is read back is
//! checked against its checksums and against the number of records and bytes that were written: it is right, or it is
//! an error. Files hold rows: only their owner may read them.
//!
//! Not here: which changes belong together, and what they mean.

mod spool;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pg::Xid;

pub use spool::{Spool, SpoolReader};

/// A directory of spools, of one pipeline. It goes with its last handle.
#[derive(Debug, Clone)]
pub struct SpillDir(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    budget: Budget,
}

/// Bytes that are on disk, and how many may be.
#[derive(Debug, Clone)]
struct Budget {
    used: Arc<AtomicU64>,
    max: u64,
}

/// Why something cannot be put on disk, or read back.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The file system says so.
    #[error("{what} in {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// What it said.
        #[source]
        cause: io::Error,
    },
    /// More would be on disk than may be.
    #[error("transactions in progress need more than the {max} bytes that {path} may hold")]
    Full {
        /// The directory.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
    /// More subtransactions were rolled back than can be remembered.
    #[error("more than {max} subtransactions of unfinished transactions were rolled back")]
    RolledBack {
        /// The bound.
        max: usize,
    },
    /// What is read is not what was written.
    #[error("{path} is damaged at byte {at}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the header or record starts.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl SpillDir {
    /// Makes a directory in `parent` that is called after `name`, for at most `bytes_max`. What earlier ones of that name
    /// left, whose run was killed, is removed.
    ///
    /// # Errors
    /// [`SpillError::Io`] when `parent` is not there or not writable.
    pub fn create(parent: &Path, name: &str, bytes_max: u64) -> Result<Self, SpillError> {
        let cannot = |cause| failed("the spill directory cannot be made", parent, cause);
        for entry in fs::read_dir(parent).map_err(cannot)?.flatten() {
            let of_name = |found: &str| found.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
            if entry.file_name().to_str().is_some_and(of_name) {
                let removed = fs::remove_dir_all(entry.path());
                removed
                    .map_err(|cause| failed("what an earlier run left cannot be removed", parent, cause))?;
            }
        }
        // A name of its own: a run before, whose end takes its time, removes no other's.
        let path = parent.join(format!("{name}.{:08x}", rand::random::<u32>()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(cannot)?;
        Ok(Self(Arc::new(Directory { path, budget: Budget { used: Arc::default(), max: bytes_max } })))
    }

    /// A spool for a transaction.
    ///
    /// # Errors
    /// As [`Spool::append`].
    pub fn spool(&self, xid: Xid) -> Result<Spool, SpillError> {
        Spool::create(self.0.path.join(format!("{xid}.spool")), xid, self.0.budget.clone())
    }

    /// Bytes on disk now.
    pub fn used(&self) -> u64 {
        self.0.budget.used.load(Ordering::Relaxed)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What stays is removed by the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Budget {
    fn take(&self, bytes: u64, path: &Path) -> Result<(), SpillError> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used <= self.max {
            return Ok(());
        }
        self.give_back(bytes);
        let path = path.parent().unwrap_or(path).to_owned();
        Err(SpillError::Full { path, max: self.max })
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn failed(what: &'static str, path: &Path, cause: io::Error) -> SpillError {
    SpillError::Io { what, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
