//! One transaction's file: written block by block, read once.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use byteorder::{BigEndian, ByteOrder as _};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{Budget, SpillError, failed};
use crate::limits::{MESSAGE_BYTES_MAX, SPILL_READ_BYTES, SPILL_WRITE_BYTES};
use crate::pg::Xid;

/// A transaction's records on disk. Its file goes with it.
#[derive(Debug)]
pub struct Spool {
    file: SpoolFile,
    /// Records that are not written yet.
    buffer: BytesMut,
    /// Open while a block comes in: hundreds of transactions may be in progress, one has a block at a time.
    open: Option<File>,
    records: u64,
    bytes: u64,
}

/// Reads a spool from its first record to its last.
#[derive(Debug)]
pub struct SpoolReader {
    file: SpoolFile,
    open: File,
    buffer: Bytes,
    /// Where in the file the buffer starts.
    at: u64,
    records_left: u64,
    bytes: u64,
}

/// Removes the file, and gives its bytes back, when it is dropped.
#[derive(Debug)]
struct SpoolFile {
    path: PathBuf,
    budget: Budget,
    taken: u64,
}

const MAGIC: &[u8; 8] = b"WALFERRY";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 4 + 4 + 4;
/// A record's length, xid and checksum.
const RECORD_FRAME_BYTES: usize = 4 + 4 + 4;

impl Spool {
    pub(super) fn create(path: PathBuf, xid: Xid, budget: Budget) -> Result<Self, SpillError> {
        let open = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path);
        let open = open.map_err(|cause| failed("a spool cannot be made", &path, cause))?;
        let mut buffer = BytesMut::with_capacity(SPILL_WRITE_BYTES);
        buffer.put_slice(MAGIC);
        put_u32(&mut buffer, VERSION);
        put_u32(&mut buffer, xid.get());
        let crc = crc32fast::hash(&buffer);
        put_u32(&mut buffer, crc);
        let file = SpoolFile { path, budget, taken: 0 };
        Ok(Self { file, buffer, open: Some(open), records: 0, bytes: HEADER_BYTES as u64 })
    }

    /// Appends a message of the block that is coming in; `xid` is its subtransaction's.
    ///
    /// # Errors
    /// [`SpillError::Full`] or [`SpillError::Io`]: what was appended before stays, but is of no use without this.
    ///
    /// # Panics
    /// If the message is longer than any message of a server.
    pub fn append(&mut self, xid: Xid, message: &[u8]) -> Result<(), SpillError> {
        assert!(message.len() <= MESSAGE_BYTES_MAX, "a message of a server");
        let start = self.buffer.len();
        put_u32(&mut self.buffer, u32::try_from(message.len()).expect("at most 1 GiB"));
        put_u32(&mut self.buffer, xid.get());
        self.buffer.put_slice(message);
        let crc = crc32fast::hash(&self.buffer[start..]);
        put_u32(&mut self.buffer, crc);
        self.records += 1;
        self.bytes += (self.buffer.len() - start) as u64;
        if self.buffer.len() >= SPILL_WRITE_BYTES { self.write() } else { Ok(()) }
    }

    /// Whether appending a message of `bytes` will write to the disk, which may take its time.
    pub fn writes_with(&self, bytes: usize) -> bool {
        self.buffer.len() + bytes + RECORD_FRAME_BYTES >= SPILL_WRITE_BYTES
    }

    /// The block has ended: nothing stays in memory.
    ///
    /// # Errors
    /// As [`Spool::append`].
    pub fn end_block(&mut self) -> Result<(), SpillError> {
        self.write()?;
        self.open = None;
        self.buffer = BytesMut::new();
        Ok(())
    }

    /// The transaction is whole: starts to read it.
    ///
    /// # Errors
    /// [`SpillError`] when the file is not there any more, or is not a spool of this version and transaction.
    pub fn into_reader(mut self, xid: Xid) -> Result<SpoolReader, SpillError> {
        self.end_block()?;
        let path = &self.file.path;
        let open = File::open(path).map_err(|cause| failed("a spool cannot be read", path, cause))?;
        let mut reader = SpoolReader {
            open,
            buffer: Bytes::new(),
            at: 0,
            records_left: self.records,
            bytes: self.bytes,
            file: self.file,
        };
        reader.header(xid)?;
        Ok(reader)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    fn write(&mut self) -> Result<(), SpillError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.take(self.buffer.len() as u64)?;
        let path = &self.file.path;
        let cannot = |cause| failed("a spool cannot be written", path, cause);
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenOptions::new().append(true).open(path).map_err(cannot)?,
        };
        open.write_all(&self.buffer).map_err(cannot)?;
        self.open = Some(open);
        self.buffer.clear();
        Ok(())
    }
}

impl SpoolReader {
    /// The next message, with its subtransaction.
    ///
    /// # Errors
    /// [`SpillError::Damaged`] when it is not as it was written, or when there is more or less in the file.
    pub fn read(&mut self) -> Result<Option<(Xid, Bytes)>, SpillError> {
        if self.records_left == 0 {
            let more = self.at != self.bytes || self.fill(1)?;
            return if more { Err(self.damaged("it is longer than it was written")) } else { Ok(None) };
        }
        self.need(RECORD_FRAME_BYTES)?;
        let length = BigEndian::read_u32(&self.buffer);
        let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
        let length = length.ok_or_else(|| self.damaged("the length of a record cannot be"))?;
        // Not trusted before its checksum is: what the file cannot hold is not made room for.
        if self.at + (length + RECORD_FRAME_BYTES) as u64 > self.bytes {
            return Err(self.damaged("a record is longer than the file"));
        }
        self.need(RECORD_FRAME_BYTES + length)?;
        let mut record = self.buffer.split_to(RECORD_FRAME_BYTES + length);
        let crc = take_u32(&mut record.split_off(record.len() - 4));
        if crc32fast::hash(&record) != crc {
            return Err(self.damaged("the checksum of a record does not fit"));
        }
        self.at += (RECORD_FRAME_BYTES + length) as u64;
        self.records_left -= 1;
        record.advance(4);
        let xid = Xid::new(take_u32(&mut record));
        Ok(Some((xid, record)))
    }

    fn header(&mut self, xid: Xid) -> Result<(), SpillError> {
        self.need(HEADER_BYTES)?;
        let mut header = self.buffer.split_to(HEADER_BYTES);
        let crc = take_u32(&mut header.split_off(HEADER_BYTES - 4));
        if !header.starts_with(MAGIC) || crc32fast::hash(&header) != crc {
            return Err(self.damaged("it does not begin as a spool"));
        }
        header.advance(MAGIC.len());
        if take_u32(&mut header) != VERSION {
            return Err(self.damaged("it is a spool of another version"));
        }
        if take_u32(&mut header) != xid.get() {
            return Err(self.damaged("it is the spool of another transaction"));
        }
        self.at = HEADER_BYTES as u64;
        Ok(())
    }

    fn need(&mut self, bytes: usize) -> Result<(), SpillError> {
        if self.fill(bytes)? { Ok(()) } else { Err(self.damaged("it ends too early")) }
    }

    /// Reads until the buffer holds `bytes`; false where the file ends before.
    fn fill(&mut self, bytes: usize) -> Result<bool, SpillError> {
        if self.buffer.len() < bytes {
            // What is handed out are slices of a buffer, so it is not written to again.
            let wanted = bytes.max(SPILL_READ_BYTES);
            let mut next = Vec::with_capacity(wanted);
            next.extend_from_slice(&self.buffer);
            let missing = (wanted - self.buffer.len()) as u64;
            let rest = (&self.open).take(missing).read_to_end(&mut next);
            rest.map_err(|cause| failed("a spool cannot be read", &self.file.path, cause))?;
            self.buffer = Bytes::from(next);
        }
        Ok(self.buffer.len() >= bytes)
    }

    fn damaged(&self, what: &'static str) -> SpillError {
        SpillError::Damaged { path: self.file.path.clone(), at: self.at, what }
    }
}

impl SpoolFile {
    fn take(&mut self, bytes: u64) -> Result<(), SpillError> {
        self.budget.take(bytes, &self.path)?;
        self.taken += bytes;
        Ok(())
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        // What stays is removed with the directory, at the latest by the next start.
        let _ = fs::remove_file(&self.path);
        self.budget.give_back(self.taken);
    }
}

fn put_u32(out: &mut BytesMut, value: u32) {
    let mut bytes = [0; 4];
    BigEndian::write_u32(&mut bytes, value);
    out.put_slice(&bytes);
}

/// Whoever calls this has seen that four bytes are there.
fn take_u32(bytes: &mut Bytes) -> u32 {
    BigEndian::read_u32(&bytes.split_to(4))
}
