//! What the engine relies on and the manual does not say: what a keepalive's WAL end means, which transactions an
//! exported snapshot holds, and where a block of a transaction in progress says that it stands. Runs on every source version that `versions` runs on: for a few seconds on each, or, where
//! `WALFERRY_TEST_VERSIONS` names them, for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::BytesMut;
use rand::RngExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use walferry::catalog::{self, SourceClient};
use walferry::demo::{PgBinaries, Server, ServerOptions};
use walferry::pg::{SlotName, SourceLsn, Xid};
use walferry::proto::{Layout, Message, ReplicationFrame, StandbyStatusUpdate, TupleValue};
use walferry::source::replication::{ReplicationSession, StreamOptions};
use walferry::wire::{ConnInfo, CopyBothReader, CopyBothWriter, Environment};

use super::harness::{lsn, random, turn};
use super::versions::{self, on_each_version};

mod a_block_says_where_its_first_change_stands {
    super::on_each_version!(super::blocks_of);
}

/// And what became of a transaction can be asked.
async fn blocks_of(major: u32) {
    let Some(binaries) = versions::source(major).await else { return };
    let _turn = turn().await;
    let server = server(&binaries).await;
    let client = server.client("here").await.unwrap();
    let xid = async || {
        let row = client.query_one("SELECT (txid_current() % (1::bigint << 32))::text", &[]).await.unwrap();
        Xid::new(row.get::<_, &str>(0).parse().unwrap())
    };
    let other = SourceClient::new(server.client("here").await.unwrap());
    for (end, committed) in [("COMMIT", true), ("ROLLBACK", false)] {
        client.batch_execute("BEGIN; INSERT INTO t VALUES (0, 0)").await.unwrap();
        let xid = xid().await;
        assert!(!catalog::has_committed(&other, xid).await.unwrap(), "in progress");
        client.batch_execute(end).await.unwrap();
        assert_eq!(catalog::has_committed(&other, xid).await.unwrap(), committed, "{end}");
        let not_begun = Xid::new(xid.get() + 1_000_000);
        assert!(!catalog::has_committed(&other, not_begun).await.unwrap(), "not begun");
    }
    if major < 14 {
        return;
    }
    let small = "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'; SELECT pg_reload_conf()";
    for sql in small.split("; ") {
        server.sql("here", sql).await.unwrap();
    }
    let slot = SlotName::new("blocks").unwrap();
    let mut session = ReplicationSession::connect(&conninfo(&server), "blocks").await.unwrap();
    let created = session.create_slot(&slot, false, Duration::from_secs(10)).await.unwrap();
    let wal = async || {
        lsn(&server.sql("here", "SELECT pg_current_wal_insert_lsn()").await.unwrap()[0][0].clone().unwrap())
    };
    // Others commit before it, between its changes, and after.
    let mut random = random("blocks");
    let mut bounds = BTreeMap::new();
    for _ in 0..rounds(20, 100) {
        let rows = random.random_range(2_000..6_000);
        let insert = format!("INSERT INTO t SELECT 0, n FROM generate_series(1, {rows}) n");
        client.batch_execute("BEGIN").await.unwrap();
        let xid = xid().await;
        other.batch_execute("INSERT INTO t VALUES (1, 1)").await.unwrap();
        let before = wal().await;
        client.batch_execute("INSERT INTO t VALUES (0, 0)").await.unwrap();
        let after = wal().await;
        client.batch_execute(&format!("{insert}; SAVEPOINT s; {insert}")).await.unwrap();
        other.batch_execute("INSERT INTO t VALUES (1, 2)").await.unwrap();
        client.batch_execute("COMMIT").await.unwrap();
        bounds.insert(xid, (before, after));
    }
    let end = wal().await;
    let options = StreamOptions { streaming: true, ..StreamOptions::default() };
    let session = ReplicationSession::connect(&conninfo(&server), "blocks").await.unwrap();
    let from = created.consistent_point;
    let (mut reader, writer) = session.start(&slot, from, &["p".to_owned()], options).await.unwrap();
    let (_stored, told) = watch::channel(from.get());
    let asker = tokio::spawn(ask(writer, told, Duration::from_millis(5)));
    let (mut layout, mut seen, mut commits) = (Layout::PLAIN, BTreeMap::new(), 0);
    loop {
        let payload =
            timeout(Duration::from_secs(60), reader.next()).await.expect("it ends").unwrap().unwrap();
        match ReplicationFrame::decode(payload).unwrap() {
            ReplicationFrame::PrimaryKeepalive(keepalive) if keepalive.wal_end.get() >= end => break,
            ReplicationFrame::PrimaryKeepalive(_) => {}
            ReplicationFrame::XLogData(data) => match Message::decode(data.payload, layout).unwrap().1 {
                Message::StreamStart(start) => {
                    layout = Layout::BLOCK;
                    if start.first {
                        let (before, after) = bounds[&start.xid];
                        assert!(before <= data.wal_start.get() && data.wal_start.get() < after, "{start:?}");
                        seen.insert(start.xid, data.wal_start);
                    }
                }
                Message::StreamStop => layout = Layout::PLAIN,
                Message::StreamCommit(commit) => {
                    assert!(seen[&commit.xid] < commit.commit_lsn.position(), "{commit:?}");
                    commits += 1;
                }
                _ => {}
            },
        }
    }
    asker.abort();
    assert_eq!(commits, bounds.len(), "PostgreSQL {}", binaries.version());
}

/// A server with databases `here` and `elsewhere`, each with a table `t (writer int, n int)`.
pub(super) async fn server(binaries: &PgBinaries) -> Server {
    // A short timeout makes the server ask by itself, too.
    let options = ServerOptions::default().setting("wal_sender_timeout", "1s");
    let server = Server::start(binaries, options).await.unwrap();
    for database in ["here", "elsewhere"] {
        let client = server.client("postgres").await.unwrap();
        client.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        server
            .sql(database, "CREATE TABLE t (writer int, n int); CREATE PUBLICATION p FOR TABLE t")
            .await
            .unwrap();
    }
    server
}

pub(super) fn conninfo(server: &Server) -> ConnInfo {
    let none: [(&str, &str); 0] = [];
    ConnInfo::parse(&server.superuser_uri("here"), &Environment::from_map(none)).unwrap()
}

/// How often a test does its work.
fn rounds(few: u32, many: u32) -> u32 {
    if versions::asked_for() { many } else { few }
}

/// Sessions that write without pause, large and small transactions, some rolled back.
struct Busy {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<i32>>,
}

impl Busy {
    async fn start(server: &Server, writers: i32, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let database = if writer % 3 == 2 { "elsewhere" } else { "here" };
            let client = server.client(database).await.unwrap();
            let stopped = stopped.clone();
            tasks.push(tokio::spawn(async move {
                let mut random: rand::rngs::StdRng =
                    rand::SeedableRng::seed_from_u64(seed.wrapping_add(writer as u64));
                let mut last = 0;
                while !*stopped.borrow() {
                    let rows = if random.random_range(0..20) == 0 { 2_000 } else { random.random_range(1..4) };
                    let insert =
                        format!("INSERT INTO t SELECT {writer}, {last} + g FROM generate_series(1, {rows}) g");
                    match random.random_range(0..6) {
                        0 => client.batch_execute(&format!("BEGIN; {insert}; ROLLBACK")).await.unwrap(),
                        1 => {
                            let begin = format!("BEGIN; {insert}; SAVEPOINT s; INSERT INTO t VALUES (-1, 0)");
                            client.batch_execute(&begin).await.unwrap();
                            sleep(Duration::from_millis(random.random_range(0..5))).await;
                            client.batch_execute("ROLLBACK TO s; COMMIT").await.unwrap();
                            last += rows;
                        }
                        2 => client
                            .batch_execute("SELECT pg_logical_emit_message(false, 'x', 'y'); CREATE TEMP TABLE x (); DROP TABLE x")
                            .await
                            .unwrap(),
                        _ => {
                            client.batch_execute(&insert).await.unwrap();
                            last += rows;
                        }
                    }
                    if random.random_range(0..30) == 0 {
                        sleep(Duration::from_millis(random.random_range(0..60))).await;
                    }
                }
                last
            }));
        }
        Self { stop, tasks }
    }

    /// The last number of each writer.
    async fn stop(self) -> Vec<i32> {
        self.stop.send_replace(true);
        let mut last = Vec::new();
        for task in self.tasks {
            last.push(task.await.unwrap());
        }
        last
    }
}

/// What one connection has seen.
#[derive(Debug, Default)]
struct Seen {
    /// Numbers received, in order, by writer.
    numbers: BTreeMap<i32, Vec<i32>>,
    /// Of the transaction at hand.
    open: Option<Vec<(i32, i32)>>,
    /// Everything that ends before is applied: what a migration would have stored.
    stored: u64,
    keepalives: u32,
    in_transaction: u32,
    transactions: u32,
}

impl Seen {
    fn take(&mut self, payload: bytes::Bytes) {
        match ReplicationFrame::decode(payload).unwrap() {
            ReplicationFrame::PrimaryKeepalive(keepalive) => {
                if self.open.is_some() {
                    self.in_transaction += 1;
                } else {
                    self.keepalives += 1;
                    self.stored = self.stored.max(keepalive.wal_end.get());
                }
            }
            ReplicationFrame::XLogData(data) => match Message::decode(data.payload, Layout::PLAIN).unwrap().1
            {
                Message::Begin(begin) => {
                    let commit = begin.final_lsn.get();
                    assert!(
                        commit >= self.stored,
                        "a transaction that committed at {commit} came after the end of WAL was said to be {}",
                        self.stored
                    );
                    self.open = Some(Vec::new());
                }
                Message::Insert(insert) => {
                    let number = |value: TupleValue<'_>| match value {
                        TupleValue::Text(text) => std::str::from_utf8(text).unwrap().parse::<i32>().unwrap(),
                        other => panic!("{other:?}"),
                    };
                    let values: Vec<i32> = insert.new.columns().map(number).collect();
                    self.open.as_mut().unwrap().push((values[0], values[1]));
                }
                Message::Commit(commit) => {
                    for (writer, number) in self.open.take().unwrap() {
                        self.numbers.entry(writer).or_default().push(number);
                    }
                    self.transactions += 1;
                    self.stored = self.stored.max(commit.end_lsn.get());
                }
                _ => {}
            },
        }
    }
}

/// Asks for a keepalive again and again, and confirms what is stored.
async fn ask(mut writer: CopyBothWriter, stored: watch::Receiver<u64>, every: Duration) {
    loop {
        let position = SourceLsn::new(*stored.borrow());
        let update = StandbyStatusUpdate {
            written: position,
            flushed: position,
            applied: position,
            sent_at: walferry::pg::PgTimestamp::default(),
            reply_requested: true,
        };
        let mut message = BytesMut::new();
        update.encode(&mut message);
        if writer.send(&message).await.is_err() {
            return;
        }
        sleep(every).await;
    }
}

async fn stream(server: &Server, slot: &SlotName, from: u64) -> (CopyBothReader, CopyBothWriter) {
    // The walsender of the connection before may still be at it.
    for _ in 0..500 {
        let session = ReplicationSession::connect(&conninfo(server), "keepalive").await.unwrap();
        match session.start(slot, SourceLsn::new(from), &["p".to_owned()], StreamOptions::default()).await {
            Ok(stream) => return stream,
            Err(error) if error.state() == Some("55006") => sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the slot stays in use");
}

mod nothing_that_commits_before_a_keepalive_comes_after_it {
    super::on_each_version!(super::keepalives_of);
}

async fn keepalives_of(major: u32) {
    let Some(binaries) = versions::source(major).await else { return };
    let _turn = turn().await;
    let mut random = random("keepalive");
    let server = server(&binaries).await;
    let slot = SlotName::new("keepalive").unwrap();
    let mut session = ReplicationSession::connect(&conninfo(&server), "keepalive").await.unwrap();
    let created = session.create_slot(&slot, false, Duration::from_secs(10)).await.unwrap();
    drop(session);
    let mut seen = Seen { stored: created.consistent_point.get(), ..Seen::default() };
    let busy = Busy::start(&server, 6, random.random()).await;
    for round in 0..rounds(3, 8) {
        let (mut reader, writer) = stream(&server, &slot, seen.stored).await;
        let (stored, told) = watch::channel(seen.stored);
        let asker = tokio::spawn(ask(writer, told, Duration::from_millis(random.random_range(1..6))));
        let until = Duration::from_millis(random.random_range(200..1_500));
        let read = async {
            loop {
                seen.take(reader.next().await.unwrap().expect("the stream goes on"));
                stored.send_replace(seen.stored);
            }
        };
        // Cut off wherever it is, in the middle of a transaction, say: the next round goes on from what is stored.
        let _ = timeout(until, read).await;
        seen.open = None;
        asker.abort();
        assert!(seen.keepalives > round, "no keepalive");
    }
    let last = busy.stop().await;
    let end = lsn(&server.sql("here", "SELECT pg_current_wal_lsn()").await.unwrap()[0][0].clone().unwrap());
    let (mut reader, writer) = stream(&server, &slot, seen.stored).await;
    let (_stored, told) = watch::channel(seen.stored);
    let asker = tokio::spawn(ask(writer, told, Duration::from_millis(5)));
    while seen.stored < end {
        let next = timeout(Duration::from_secs(60), reader.next()).await.expect("it ends");
        seen.take(next.unwrap().unwrap());
    }
    asker.abort();
    let version = binaries.version();
    eprintln!(
        "PostgreSQL {version}: {} transactions, {} keepalives between them, {} inside",
        seen.transactions, seen.keepalives, seen.in_transaction
    );
    for (writer, last) in (0..).zip(last) {
        let numbers = seen.numbers.remove(&writer).unwrap_or_default();
        let expected: Vec<i32> = if writer % 3 == 2 { Vec::new() } else { (1..=last).collect() };
        assert!(numbers == expected, "PostgreSQL {version}: lost or doubled of writer {writer}");
    }
    assert_eq!(seen.numbers.len(), 0, "{:?}", seen.numbers.keys());
}

mod a_transaction_is_in_the_snapshot_or_in_the_stream {
    super::on_each_version!(super::snapshots_of);
}

async fn snapshots_of(major: u32) {
    let Some(binaries) = versions::source(major).await else { return };
    let _turn = turn().await;
    let mut random = random("snapshot");
    let server = server(&binaries).await;
    let busy = Busy::start(&server, 6, random.random()).await;
    let mut checked = Vec::new();
    for round in 0..rounds(2, 6) {
        let slot = SlotName::new(&format!("round_{round}")).unwrap();
        let mut session = ReplicationSession::connect(&conninfo(&server), "snapshot").await.unwrap();
        let created = session.create_slot(&slot, false, Duration::from_secs(30)).await.unwrap();
        let client = server.client("here").await.unwrap();
        let begin =
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", created.snapshot);
        client.batch_execute(&begin).await.unwrap();
        let rows = client.query("SELECT writer, n FROM t", &[]).await.unwrap();
        let copied: BTreeSet<(i32, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(copied.len(), rows.len());
        client.batch_execute("COMMIT").await.unwrap();
        drop(session);
        sleep(Duration::from_millis(random.random_range(0..300))).await;
        checked.push((slot, created.consistent_point.get(), copied));
    }
    busy.stop().await;
    let end = lsn(&server.sql("here", "SELECT pg_current_wal_lsn()").await.unwrap()[0][0].clone().unwrap());
    let all: BTreeSet<(i32, i32)> = {
        let client = server.client("here").await.unwrap();
        let rows = client.query("SELECT writer, n FROM t", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    for (slot, consistent_point, copied) in checked {
        // `stored` starts at the consistent point: a transaction that committed before it fails there.
        let mut seen = Seen { stored: consistent_point, ..Seen::default() };
        let (mut reader, writer) = stream(&server, &slot, consistent_point).await;
        let (_stored, told) = watch::channel(0);
        let asker = tokio::spawn(ask(writer, told, Duration::from_millis(5)));
        while seen.stored < end {
            let next = timeout(Duration::from_secs(60), reader.next()).await.expect("it ends");
            seen.take(next.unwrap().unwrap());
        }
        asker.abort();
        let streamed: BTreeSet<(i32, i32)> = seen
            .numbers
            .iter()
            .flat_map(|(writer, numbers)| numbers.iter().map(move |number| (*writer, *number)))
            .collect();
        eprintln!(
            "PostgreSQL {}: {} rows in the snapshot, {} in the stream",
            binaries.version(),
            copied.len(),
            streamed.len()
        );
        assert_eq!(copied.intersection(&streamed).next(), None, "both copied and streamed");
        assert!(copied.union(&streamed).eq(all.iter()), "neither copied nor streamed");
    }
}
