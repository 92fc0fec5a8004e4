//! How fast a replication stream is read: `cargo bench --bench decode`. Results: RESULTS.md.
//!
//! Bytes as the socket's read buffers hold them, several CopyData messages in each, are cut into messages, decoded and
//! assembled into segments, which are dropped: all that the reading task does besides waiting, on one core. A rate is in
//! row messages (Insert, Update, Delete) a second; that of `captured`, where rows are few, in messages of any kind.
//!
//! | figure | stream |
//! |---|---|
//! | `captured` | those of fixtures/, as servers 14 to 18 sent them: short, many relations, long values |
//! | `generated/N` | transactions of 100 inserts and updates of N text columns |
//! | `streamed/8` | the same rows in transactions in progress: in blocks, to the spill directory, and back |
//!
//! Before anything is timed, allocations are counted: the run fails where there are more than
//! [`ALLOCATIONS_PER_ROW_MAX`] a row message, with 8 columns or with 32: none is made for a column, nor for a row.

use std::alloc::System;
use std::io::Write as _;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use walferry::assemble::{Assembler, Change, Segment};
use walferry::limits::READ_BYTES;
use walferry::pg::{
    Column, CommitLsn, EndLsn, Oid, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity,
    SourceLsn, Xid,
};
use walferry::proto::{
    Begin, Commit, Insert, Message, ReplicationFrame, StreamCommit, StreamStart, Tuple, TupleValue, Update,
    XLogData,
};
use walferry::spill::SpillDir;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A list of changes that grows, a segment, a read buffer's user count: few rows in a hundred pay for one of those.
const ALLOCATIONS_PER_ROW_MAX: f64 = 0.2;

const TRANSACTIONS: u64 = 2_000;
const TRANSACTION_ROWS: u64 = 100;
/// Rows of one block of a transaction in progress, and of the transaction.
const BLOCK_ROWS: u64 = 1_000;
const STREAMED_ROWS: u64 = 20_000;
const TABLE: RelationId = RelationId::new(16_384);
const NOW: PgTimestamp = PgTimestamp::from_micros(841_622_400_000_000);

/// What one connection sends, as its read buffers hold it.
struct Stream {
    buffers: Vec<Bytes>,
    rows: u64,
    messages: u64,
}

/// Puts messages into read buffers.
#[derive(Default)]
struct Sender {
    full: Vec<Bytes>,
    buffer: BytesMut,
    at: u64,
    rows: u64,
    messages: u64,
}

fn main() {
    let spill_parent = tempfile::tempdir().expect("a directory");
    let spill = SpillDir::create(spill_parent.path(), "bench", u64::MAX).expect("a spill directory");
    for columns in [8, 32] {
        check_allocations(&format!("generated/{columns}"), &generated(columns), Assembler::new());
        let assembler = Assembler::new().streaming(spill.clone());
        check_allocations(&format!("streamed/{columns}"), &streamed(columns), assembler);
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(30);
    figure(&mut group, "captured", &captured(), Assembler::new);
    for columns in [8, 32] {
        figure(&mut group, &format!("generated/{columns}"), &[generated(columns)], Assembler::new);
    }
    figure(&mut group, "streamed/8", &[streamed(8)], || Assembler::new().streaming(spill.clone()));
    group.finish();
    criterion.final_summary();
}

fn figure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    streams: &[Stream],
    assembler: impl Fn() -> Assembler,
) {
    let counted = |stream: &Stream| if name == "captured" { stream.messages } else { stream.rows };
    group.throughput(Throughput::Elements(streams.iter().map(counted).sum()));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            for stream in streams {
                assert_eq!(read(stream, assembler()), stream.rows, "every row comes out");
            }
        });
    });
}

fn check_allocations(name: &str, stream: &Stream, assembler: Assembler) {
    let region = Region::new(ALLOCATOR);
    let rows = read(stream, assembler);
    let change = region.change();
    let each = (change.allocations + change.reallocations) as f64 / rows as f64;
    writeln!(std::io::stdout(), "{name}: {each:.4} allocations a row message").expect("standard output");
    assert!(each <= ALLOCATIONS_PER_ROW_MAX, "at most {ALLOCATIONS_PER_ROW_MAX} are allowed");
}

/// Reads a stream as the engine's reader does; gives the rows that came out.
fn read(stream: &Stream, mut assembler: Assembler) -> u64 {
    let mut rows = 0;
    for buffer in &stream.buffers {
        let mut rest = buffer.clone();
        while !rest.is_empty() {
            let frame = ReplicationFrame::decode(next(&mut rest)).expect("a frame");
            let ReplicationFrame::XLogData(data) = frame else { continue };
            rows += assembler.take(data.payload).expect("in order").map_or(0, |segment| rows_of(&segment));
            while assembler.has_replay() {
                rows += assembler.replay().expect("undamaged").map_or(0, |segment| rows_of(&segment));
            }
        }
    }
    rows
}

/// Takes a CopyData message off the buffer.
fn next(rest: &mut Bytes) -> Bytes {
    let length = rest.slice(1..5).get_u32();
    let mut message = rest.split_to(1 + usize::try_from(length).expect("below 1 GiB"));
    message.advance(5);
    message
}

fn rows_of(segment: &Segment) -> u64 {
    let row = |change: &&Change| !matches!(change, Change::Truncate { .. });
    segment.changes.iter().filter(row).count() as u64
}

/// The streams in `fixtures/` that hold whole transactions only.
fn captured() -> Vec<Stream> {
    let versions = ["pg14", "pg15", "pg16", "pg17", "pg18"];
    let names =
        versions.iter().flat_map(|version| ["text", "binary"].map(|kind| format!("{version}/v1-{kind}")));
    let read_one = |name: String| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.hex"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut sender = Sender::default();
        text.lines().filter(|line| !line.starts_with('#')).for_each(|line| sender.frame(&from_hex(line)));
        let mut stream = sender.stream();
        stream.rows = read(&stream, Assembler::new());
        stream
    };
    names.map(read_one).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a digit") as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn generated(columns: usize) -> Stream {
    let mut sender = Sender::default();
    for transaction in 0..TRANSACTIONS {
        let xid = Xid::new(u32::try_from(transaction).expect("small"));
        let final_lsn = CommitLsn::new(sender.at + 1_000_000);
        sender.message(None, &Message::Begin(Begin { final_lsn, commit_time: NOW, xid }));
        if transaction == 0 {
            sender.message(None, &Message::Relation(relation(columns)));
        }
        for row in 0..TRANSACTION_ROWS {
            sender.row(None, transaction * TRANSACTION_ROWS + row, columns);
        }
        sender.at = final_lsn.get() + 100;
        let end_lsn = EndLsn::new(sender.at);
        sender.message(None, &Message::Commit(Commit { commit_lsn: final_lsn, end_lsn, commit_time: NOW }));
    }
    sender.stream()
}

fn streamed(columns: usize) -> Stream {
    let mut sender = Sender::default();
    for transaction in 0..TRANSACTIONS * TRANSACTION_ROWS / STREAMED_ROWS {
        let xid = Xid::new(u32::try_from(transaction).expect("small"));
        for block in 0..STREAMED_ROWS / BLOCK_ROWS {
            sender.message(None, &Message::StreamStart(StreamStart { xid, first: block == 0 }));
            if block == 0 {
                sender.message(Some(xid), &Message::Relation(relation(columns)));
            }
            for row in 0..BLOCK_ROWS {
                sender.row(Some(xid), row, columns);
            }
            sender.message(None, &Message::StreamStop);
        }
        let commit_lsn = CommitLsn::new(sender.at + 1_000);
        sender.at = commit_lsn.get() + 100;
        let end_lsn = EndLsn::new(sender.at);
        let commit = StreamCommit { xid, commit_lsn, end_lsn, commit_time: NOW };
        sender.message(None, &Message::StreamCommit(commit));
    }
    sender.stream()
}

fn relation(columns: usize) -> Relation {
    let column = |n| Column {
        name: format!("column_{n}"),
        type_oid: Oid::new(25),
        type_modifier: -1,
        type_name: None,
        key: n == 0,
    };
    let name = QualifiedName::new("public", "measured");
    let identity = ReplicaIdentity::Default;
    Relation { id: TABLE, name, identity, columns: (0..columns).map(column).collect() }
}

impl Sender {
    /// An Insert and an Update in turn.
    fn row(&mut self, xid: Option<Xid>, number: u64, columns: usize) {
        let values: Vec<String> = (0..columns as u64).map(|n| format!("{:012}", number * 31 + n)).collect();
        let new = Tuple::from_values(values.iter().map(|value| TupleValue::Text(value.as_bytes())));
        let message = match number % 2 {
            0 => Message::Insert(Insert { relation: TABLE, new }),
            _ => Message::Update(Update { relation: TABLE, old: None, new }),
        };
        self.message(xid, &message);
        self.rows += 1;
    }

    fn message(&mut self, xid: Option<Xid>, message: &Message) {
        self.at += 100;
        let mut payload = BytesMut::new();
        message.encode(xid, &mut payload);
        let at = SourceLsn::new(self.at);
        let mut frame = BytesMut::new();
        XLogData { wal_start: at, wal_end: at, sent_at: NOW, payload: payload.freeze() }.encode(&mut frame);
        self.frame(&frame);
    }

    fn frame(&mut self, frame: &[u8]) {
        if self.buffer.len() + 5 + frame.len() > READ_BYTES {
            self.full.push(self.buffer.split().freeze());
        }
        self.buffer.put_u8(b'd');
        self.buffer.put_u32(u32::try_from(frame.len() + 4).expect("below 1 GiB"));
        self.buffer.put_slice(frame);
        self.messages += 1;
    }

    fn stream(mut self) -> Stream {
        self.full.push(self.buffer.freeze());
        Stream { buffers: self.full, rows: self.rows, messages: self.messages }
    }
}
