//! The corpus: inputs for the fuzz targets, those that captured streams give and those that a run found worth keeping.
//!
//! In the repository it is one text file for each target, `proto-tests/fuzz/NAME.hex`: one input a line, in
//! hexadecimal digits, shorter ones first. libFuzzer wants a file each, which `cargo run -p proto-tests --bin corpus`
//! makes and takes back.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use walferry::pg::RelationId;
use walferry::proto::{Begin, Commit, Insert, Layout, Message, StreamAbort, StreamCommit, Tuple, TupleValue};

use crate::session::{Record, session};
use crate::{Fixture, from_hex, seeds, tuples};

/// A fuzz target.
pub struct Target {
    /// The name, as `cargo fuzz run` takes it.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
    /// Inputs from captured streams.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longer inputs show nothing that shorter ones do not, and take their time.
    pub input_bytes_max: usize,
    /// Bytes of its inputs in the repository, which has two digits for each; the shortest are kept.
    pub corpus_bytes_max: usize,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    target("frames", crate::fuzz_frames, frame_seeds, 1 << 10, 100_000),
    target("session", crate::fuzz_session, session_seeds, 4 << 10, 100_000),
    target("conninfo", crate::fuzz_conninfo, seeds::conninfo, 256, 30_000),
    target("archive", crate::fuzz_archive, seeds::archive, 1 << 10, 30_000),
    target("spool", crate::fuzz_spool, seeds::spool, 512, 30_000),
    target("server", crate::fuzz_server, seeds::server, 1 << 10, 30_000),
];

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    input_bytes_max: usize,
    corpus_bytes_max: usize,
) -> Target {
    Target { name, run, seeds, input_bytes_max, corpus_bytes_max }
}

impl Target {
    /// The inputs that are in the repository.
    ///
    /// # Panics
    /// If the file cannot be read.
    pub fn corpus(&self) -> Vec<Bytes> {
        let path = self.file();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines().filter(|line| !line.starts_with('#')).map(from_hex).collect()
    }

    /// The file in the repository.
    pub fn file(&self) -> PathBuf {
        fuzz_directory().join(self.name).with_extension("hex")
    }

    /// Where `cargo fuzz` has a file for each input.
    pub fn directory(&self) -> PathBuf {
        fuzz_directory().join("corpus").join(self.name)
    }
}

fn fuzz_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// A frame of each kind and length.
fn frame_seeds() -> Vec<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let frames = Fixture::all().into_iter().flat_map(|fixture| fixture.frames);
    let frames = frames.filter(|frame| frame.len() <= TARGETS[0].input_bytes_max);
    let first =
        frames.filter(|frame| seen.insert((frame.len(), frame[0], frame.get(XLOG_DATA_BYTES).copied())));
    first.map(Vec::from).collect()
}

/// Each captured stream, without what an assembler was not asked for, without long values, and without what is alike.
fn session_seeds() -> Vec<Vec<u8>> {
    let excerpts = Fixture::all().iter().flat_map(excerpts).collect::<Vec<_>>();
    excerpts.into_iter().chain([large(false), large(true)]).collect()
}

/// Pieces of a stream: cut where nothing is open, each with the relations that it does not announce itself.
fn excerpts(fixture: &Fixture) -> Vec<Vec<u8>> {
    let mut announced: HashMap<RelationId, Bytes> = HashMap::new();
    let (mut pieces, mut piece, mut size) = (Vec::new(), Vec::new(), 0);
    let (mut kind, mut alike) = (0, 0);
    for (payload, layout) in fixture.payloads() {
        let Some(message) = asked_for(&payload, layout) else { continue };
        alike = if kind == message[0] { alike + 1 } else { 0 };
        kind = message[0];
        let row = matches!(kind, b'I' | b'U' | b'D');
        if row && (alike >= ALIKE_MAX || message.len() > ROW_BYTES_MAX) {
            continue;
        }
        if kind == b'B' && size > PIECE_BYTES && !fixture.streamed() {
            pieces.push(session(&std::mem::take(&mut piece)));
            piece.extend(announced.values().cloned().map(Record::Message));
            size = 0;
        }
        if let Ok((None, Message::Relation(relation))) = Message::decode(message.clone(), Layout::PLAIN) {
            announced.insert(relation.id, message.clone());
        }
        size += message.len();
        piece.push(Record::Message(message));
    }
    pieces.push(session(&piece));
    pieces
}

/// The message as an assembler takes it: prepared transactions end at once, and an abort does not say where.
fn asked_for(payload: &Bytes, layout: Layout) -> Option<Bytes> {
    let (xid, message) = Message::decode(payload.clone(), layout).expect("captured message");
    let message = match message {
        Message::BeginPrepare(m) => Message::Begin(Begin {
            final_lsn: walferry::pg::CommitLsn::new(m.prepare_lsn.get()),
            commit_time: m.prepare_time,
            xid: m.prepared.xid,
        }),
        Message::Prepare(m) => Message::Commit(Commit {
            commit_lsn: walferry::pg::CommitLsn::new(m.prepare_lsn.get()),
            end_lsn: m.end_lsn,
            commit_time: m.prepare_time,
        }),
        Message::StreamPrepare(m) => Message::StreamCommit(StreamCommit {
            xid: m.prepared.xid,
            commit_lsn: walferry::pg::CommitLsn::new(m.prepare_lsn.get()),
            end_lsn: m.end_lsn,
            commit_time: m.prepare_time,
        }),
        Message::CommitPrepared(_) | Message::RollbackPrepared(_) => return None,
        Message::StreamAbort(m) => Message::StreamAbort(StreamAbort { place: None, ..m }),
        message => message,
    };
    debug_assert!(tuples(&message).iter().all(|tuple| tuple.byte_len() < payload.len()));
    let mut out = BytesMut::new();
    message.encode(xid, &mut out);
    Some(out.freeze())
}

/// A transaction of several segments.
fn large(streamed: bool) -> Vec<u8> {
    let hex = |hex: &str| Record::Message(from_hex(hex));
    let xid = if streamed { "00000007" } else { "" };
    let new = Tuple::from_values([TupleValue::Text(&[b'v'; 12_000])]);
    let mut insert = BytesMut::new();
    let message = Message::Insert(Insert { relation: RelationId::new(1), new });
    message.encode(streamed.then_some(walferry::pg::Xid::new(7)), &mut insert);
    let (begin, end) = if streamed {
        ("53 00000007 01", "63 00000007 00 0000000000000010 0000000000000020 0000000000000003")
    } else {
        (
            "42 0000000000000010 0000000000000003 00000007",
            "43 00 0000000000000010 0000000000000020 0000000000000003",
        )
    };
    let relation = hex(&format!("52 {xid} 00000001 7000 7400 64 0001 01 6100 00000019 ffffffff"));
    let mut records = vec![hex(begin), relation, Record::Message(insert.freeze())];
    records.extend([Record::Again(255), Record::Again(255), Record::Again(255)]);
    records.extend(streamed.then(|| hex("45")));
    records.push(hex(end));
    session(&records)
}

/// Where the message starts in XLogData.
const XLOG_DATA_BYTES: usize = 25;

/// Rows of one kind in a row.
const ALIKE_MAX: usize = 3;

/// Longer rows are left out.
const ROW_BYTES_MAX: usize = 400;

/// A piece is cut at the first transaction after as many bytes.
const PIECE_BYTES: usize = 1_500;
