//! What the tests share: the captured streams of `fixtures/`, the text that stands for a frame, and the fuzz targets.
//!
//! The text's form is that of `fixtures/capture.py`, which wrote the expected lines with a decoder of its own.

pub mod corpus;
mod fuzz;
mod seeds;
pub mod session;
mod strangers;

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use walferry::pg::{QualifiedName, Relation, Xid};
use walferry::proto::{
    DecodeError, Layout, Message, OldTuple, Prepared, ReplicationFrame, Tuple, TupleValue,
};

pub use fuzz::{fuzz_frames, fuzz_session};
pub use strangers::{fuzz_archive, fuzz_conninfo, fuzz_server, fuzz_spool};

/// What one server sent.
pub struct Fixture {
    /// `pg17/v1-text`.
    pub name: String,
    /// The content of its CopyData messages.
    pub frames: Vec<Bytes>,
    /// How the message in each of them is laid out.
    pub layouts: Vec<Layout>,
    /// What each of them means.
    pub expected: Vec<String>,
}

impl Fixture {
    /// All that have been captured.
    ///
    /// # Panics
    /// If one cannot be read.
    pub fn all() -> Vec<Self> {
        let newest = [("pg14", "v2"), ("pg15", "v3"), ("pg16", "v4"), ("pg17", "v4"), ("pg18", "v4")];
        let names = newest.iter().flat_map(|(version, protocol)| {
            let streamed = format!("{version}/{protocol}-streamed");
            [format!("{version}/v1-text"), format!("{version}/v1-binary"), streamed]
        });
        // A server of version 13 sends text only.
        std::iter::once("pg13/v1-text".to_owned()).chain(names).map(|name| Self::read(&name)).collect()
    }

    fn read(name: &str) -> Self {
        let lines = |extension: &str| {
            let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
            path.push(format!("../fixtures/{name}.{extension}"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        let frames: Vec<Bytes> = lines("hex").iter().map(|line| from_hex(line)).collect();
        let mut layout = Layout { in_block: false, parallel: name.contains("/v4") };
        let mut layouts = Vec::new();
        for frame in &frames {
            layouts.push(layout);
            if let ReplicationFrame::XLogData(data) =
                ReplicationFrame::decode(frame.clone()).expect("a frame")
                && !data.payload.is_empty()
            {
                match Message::decode(data.payload, layout).expect("a message").1 {
                    Message::StreamStart(_) => layout.in_block = true,
                    Message::StreamStop => layout.in_block = false,
                    _ => {}
                }
            }
        }
        Self { name: name.to_owned(), frames, layouts, expected: lines("expected") }
    }

    /// Whether it holds transactions in progress.
    pub fn streamed(&self) -> bool {
        self.name.ends_with("streamed")
    }

    /// The messages inside the frames that have one, and their layouts.
    ///
    /// # Panics
    /// If a frame cannot be decoded.
    pub fn payloads(&self) -> Vec<(Bytes, Layout)> {
        let payload = |frame: &Bytes| match ReplicationFrame::decode(frame.clone()).expect("captured frame") {
            ReplicationFrame::XLogData(data) => Some(data.payload),
            ReplicationFrame::PrimaryKeepalive(_) => None,
        };
        let payloads = self.frames.iter().zip(&self.layouts);
        let payloads = payloads.filter_map(|(frame, layout)| Some((payload(frame)?, *layout)));
        payloads.filter(|(payload, _)| !payload.is_empty()).collect()
    }
}

/// Decodes a message that stands outside of blocks.
///
/// # Errors
/// When it is none.
pub fn decode(bytes: Bytes) -> Result<Message, DecodeError> {
    Message::decode(bytes, Layout::PLAIN).map(|(_, message)| message)
}

/// Bytes from hexadecimal digits; spaces between them are for the reader.
///
/// # Panics
/// If `text` holds anything else.
pub fn from_hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ' ')
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()).expect("hexadecimal digit"))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The tuples that a message holds.
pub fn tuples(message: &Message) -> Vec<&Tuple> {
    match message {
        Message::Insert(m) => vec![&m.new],
        Message::Update(m) => m.old.iter().map(OldTuple::tuple).chain([&m.new]).collect(),
        Message::Delete(m) => vec![m.old.tuple()],
        Message::Begin(_)
        | Message::Message(_)
        | Message::Commit(_)
        | Message::Origin(_)
        | Message::Relation(_)
        | Message::Type(_)
        | Message::Truncate(_)
        | Message::StreamStart(_)
        | Message::StreamStop
        | Message::StreamCommit(_)
        | Message::StreamAbort(_)
        | Message::BeginPrepare(_)
        | Message::Prepare(_)
        | Message::CommitPrepared(_)
        | Message::RollbackPrepared(_)
        | Message::StreamPrepare(_) => Vec::new(),
    }
}

/// The line that stands for a frame of the server.
///
/// # Errors
/// When it cannot be decoded.
pub fn frame_line(frame: Bytes, layout: Layout) -> Result<String, DecodeError> {
    Ok(match ReplicationFrame::decode(frame)? {
        ReplicationFrame::XLogData(data) => format!(
            "w wal_start={} wal_end={} sent_at={} {}",
            data.wal_start,
            data.wal_end,
            data.sent_at.micros(),
            payload_line(data.payload, layout)?
        ),
        ReplicationFrame::PrimaryKeepalive(keepalive) => format!(
            "k wal_end={} sent_at={} reply_requested={}",
            keepalive.wal_end,
            keepalive.sent_at.micros(),
            u8::from(keepalive.reply_requested)
        ),
    })
}

/// Before 14, a server sends nothing in place of an Origin whose name it cannot find.
fn payload_line(payload: Bytes, layout: Layout) -> Result<String, DecodeError> {
    if payload.is_empty() {
        return Ok("Nothing".to_owned());
    }
    let (xid, message) = Message::decode(payload, layout)?;
    let within = xid.map(|xid: Xid| format!("in {xid}: ")).unwrap_or_default();
    Ok(within + &message_line(&message))
}

/// The part of the line that stands for a message.
pub fn message_line(message: &Message) -> String {
    match message {
        Message::Begin(m) => {
            format!("Begin final_lsn={} commit_time={} xid={}", m.final_lsn, m.commit_time.micros(), m.xid)
        }
        Message::Message(m) => format!(
            "Message transactional={} lsn={} prefix={} content={}",
            u8::from(m.transactional),
            m.lsn,
            quoted(m.prefix.as_bytes()),
            quoted(&m.content)
        ),
        Message::Commit(m) => format!(
            "Commit commit_lsn={} end_lsn={} commit_time={}",
            m.commit_lsn,
            m.end_lsn,
            m.commit_time.micros()
        ),
        Message::Origin(m) => {
            let (high, low) = (m.lsn.get() >> 32, m.lsn.get() & 0xFFFF_FFFF);
            format!("Origin lsn={high:X}/{low:X} name={}", quoted(m.name.as_bytes()))
        }
        Message::Relation(m) => relation_line(m),
        Message::Type(m) => format!("Type {} {}", m.oid, name_text(&m.name)),
        Message::Insert(m) => format!("Insert {} new={}", m.relation, tuple_text(&m.new)),
        Message::Update(m) => {
            let old = m.old.as_ref().map(|old| old_text(old) + " ").unwrap_or_default();
            format!("Update {} {old}new={}", m.relation, tuple_text(&m.new))
        }
        Message::Delete(m) => format!("Delete {} {}", m.relation, old_text(&m.old)),
        Message::Truncate(m) => {
            let relations: Vec<String> = m.relations.iter().map(ToString::to_string).collect();
            format!(
                "Truncate cascade={} restart_identity={} relations=[{}]",
                u8::from(m.cascade),
                u8::from(m.restart_identity),
                relations.join(", ")
            )
        }
        Message::StreamStart(m) => format!("Stream Start xid={} first={}", m.xid, u8::from(m.first)),
        Message::StreamStop => "Stream Stop".to_owned(),
        Message::StreamCommit(m) => format!(
            "Stream Commit xid={} commit_lsn={} end_lsn={} commit_time={}",
            m.xid,
            m.commit_lsn,
            m.end_lsn,
            m.commit_time.micros()
        ),
        Message::StreamAbort(m) => {
            let place = m.place.map(|p| format!(" abort_lsn={} abort_time={}", p.lsn, p.time.micros()));
            format!("Stream Abort xid={} subxid={}{}", m.xid, m.subxid, place.unwrap_or_default())
        }
        Message::BeginPrepare(m) => format!(
            "Begin Prepare prepare_lsn={} end_lsn={} prepare_time={} {}",
            m.prepare_lsn,
            m.end_lsn,
            m.prepare_time.micros(),
            prepared_text(&m.prepared)
        ),
        Message::Prepare(m) | Message::StreamPrepare(m) => format!(
            "{} prepare_lsn={} end_lsn={} prepare_time={} {}",
            if matches!(message, Message::Prepare(_)) { "Prepare" } else { "Stream Prepare" },
            m.prepare_lsn,
            m.end_lsn,
            m.prepare_time.micros(),
            prepared_text(&m.prepared)
        ),
        Message::CommitPrepared(m) => format!(
            "Commit Prepared commit_lsn={} end_lsn={} commit_time={} {}",
            m.commit_lsn,
            m.end_lsn,
            m.commit_time.micros(),
            prepared_text(&m.prepared)
        ),
        Message::RollbackPrepared(m) => format!(
            "Rollback Prepared prepare_end_lsn={} rollback_end_lsn={} prepare_time={} rollback_time={} {}",
            m.prepare_end_lsn,
            m.rollback_end_lsn,
            m.prepare_time.micros(),
            m.rollback_time.micros(),
            prepared_text(&m.prepared)
        ),
    }
}

fn prepared_text(prepared: &Prepared) -> String {
    format!("xid={} gid={}", prepared.xid, quoted(prepared.gid.as_bytes()))
}

fn relation_line(relation: &Relation) -> String {
    let columns: Vec<String> = relation
        .columns
        .iter()
        .map(|c| {
            let key = if c.key { " key" } else { "" };
            format!("{} {} {}{key}", quoted(c.name.as_bytes()), c.type_oid, c.type_modifier)
        })
        .collect();
    let identity = char::from(relation.identity.as_byte());
    let name = name_text(&relation.name);
    format!("Relation {} {name} identity={identity} columns=[{}]", relation.id, columns.join(", "))
}

fn name_text(name: &QualifiedName) -> String {
    format!("schema={} name={}", quoted(name.schema.as_bytes()), quoted(name.name.as_bytes()))
}

fn old_text(old: &OldTuple) -> String {
    match old {
        OldTuple::Key(tuple) => format!("key={}", tuple_text(tuple)),
        OldTuple::Full(tuple) => format!("full={}", tuple_text(tuple)),
    }
}

fn tuple_text(tuple: &Tuple) -> String {
    let value_text = |value| match value {
        TupleValue::Null => "n".to_owned(),
        TupleValue::Unchanged => "u".to_owned(),
        TupleValue::Text(bytes) => format!("t{}", bytes_text(bytes)),
        TupleValue::Binary(bytes) => format!("b{}", bytes_text(bytes)),
    };
    format!("({})", tuple.columns().map(value_text).collect::<Vec<_>>().join(", "))
}

/// A long value is given by its length and its FNV-1a hash.
fn bytes_text(bytes: &[u8]) -> String {
    if bytes.len() <= 64 {
        return quoted(bytes);
    }
    let hash = bytes.iter().fold(0x811C_9DC5_u32, |hash, &b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("[{} {hash:08x}]", bytes.len())
}

fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => write!(text, "\\x{byte:02x}").expect("a String takes all"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => write!(text, "\\x{byte:02x}").expect("a String takes all"),
        }
    }
    text + "\""
}
