//! Large transactions that come before they end: hundreds at a time, rolled back in parts, killed, damaged, too many.

use std::path::Path;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio_postgres::Client;
use walferry::demo::ClusterOptions;

use super::harness::{Engine, Launch, PATIENCE, Pair, random, wait_for};

/// What the engine may hold, whatever the transactions.
const RESIDENT_MAX: u64 = 256 << 20;

/// The least that a server can be told: it streams what is larger.
fn eager(options: &mut ClusterOptions) {
    let settings = options.source_options.clone().setting("logical_decoding_work_mem", "64kB");
    let settings = settings.setting("max_connections", "300");
    options.source_options = settings.setting("max_prepared_transactions", "10");
}

pub async fn pair_with_table() -> Pair {
    let pair = Pair::with(eager).await;
    let sql = "CREATE TABLE big (k int PRIMARY KEY, part int NOT NULL, v text);
               CREATE TABLE small (k int PRIMARY KEY, at timestamptz DEFAULT now());";
    pair.owner().await.batch_execute(sql).await.unwrap();
    pair
}

pub fn spilling(pair: &Pair, directory: &Path) -> Launch {
    pair.migrate().arguments(&["--spill-dir", directory.to_str().unwrap()])
}

/// Bytes of all spools in the directory.
pub fn spooled(directory: &Path) -> u64 {
    let pipelines = std::fs::read_dir(directory).unwrap().flatten();
    let spools =
        pipelines.flat_map(|pipeline| std::fs::read_dir(pipeline.path()).into_iter().flatten().flatten());
    spools.filter_map(|spool| spool.metadata().ok()).map(|metadata| metadata.len()).sum()
}

async fn wait_spooled(directory: &Path, bytes: u64) {
    wait_for("a spool", PATIENCE, async || spooled(directory) >= bytes).await;
}

/// A transaction with savepoints inside savepoints, of which some are undone.
struct Writer {
    client: Client,
    first: u32,
    written: u32,
    savepoints: Vec<u32>,
}

impl Writer {
    async fn begin(pair: &Pair, first: u32) -> Self {
        let client = pair.owner().await;
        client.batch_execute("BEGIN").await.unwrap();
        Self { client, first, written: 0, savepoints: Vec::new() }
    }

    async fn step(&mut self, rows: u32, random: &mut StdRng) {
        let from = self.first + self.written;
        let part = self.savepoints.len();
        let mut sql = format!(
            "INSERT INTO big SELECT k, {part}, repeat(md5(k::text), 4) FROM generate_series({from}, {}) k;",
            from + rows - 1
        );
        self.written += rows;
        match random.random_range(0..4) {
            0 | 1 => {
                sql += &format!("SAVEPOINT s{};", self.written);
                self.savepoints.push(self.written);
            }
            2 if !self.savepoints.is_empty() => {
                let to = self.savepoints.swap_remove(random.random_range(0..self.savepoints.len()));
                self.savepoints.retain(|savepoint| *savepoint < to);
                sql += &format!("ROLLBACK TO s{to}; RELEASE s{to};");
            }
            _ => sql += &format!("UPDATE big SET part = -1 WHERE k >= {from} AND k % 7 = 0;"),
        }
        self.client.batch_execute(&sql).await.unwrap();
    }

    async fn end(self, commits: bool) {
        self.client.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
    }
}

async fn report(engine: &Engine, what: &str) {
    let resident = engine.resident_max();
    eprintln!("{what}: peak memory {} MiB", resident >> 20);
    assert!(resident < RESIDENT_MAX, "{resident} bytes");
}

/// Two hundred at a time, each larger than the source wants to hold, while small ones go by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_a_time() {
    let mut random = random("streaming");
    let pair = pair_with_table().await;
    let directory = tempfile::tempdir().unwrap();
    let launch = spilling(&pair, directory.path());
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let mut writers = Vec::new();
    for n in 0..200 {
        writers.push(Writer::begin(&pair, n * 10_000).await);
    }
    let beside = pair.owner().await;
    for round in 0..4 {
        writers.shuffle(&mut random);
        for (n, writer) in writers.iter_mut().enumerate() {
            writer.step(150, &mut random).await;
            if n % 20 == 0 {
                let sql = format!("INSERT INTO small VALUES ({})", round * 1_000 + n);
                beside.batch_execute(&sql).await.unwrap();
            }
        }
        if round == 1 {
            engine.kill9().await;
            engine = launch.start();
            engine.wait_phase("syncing").await;
        }
    }
    wait_spooled(directory.path(), 1 << 20).await;
    // The small ones do not wait for the large ones.
    engine.wait_drained(&pair).await;
    let count = "SELECT count(*) FROM small";
    assert_eq!(pair.source_value(count).await, pair.target_value(count).await);
    let on_disk = engine.metric("walferry_spill_bytes{database=\"defaultdb\"}").await;
    assert!(on_disk > Some(1e6), "{on_disk:?}");
    writers.shuffle(&mut random);
    for writer in writers {
        let commits = random.random_bool(0.7);
        writer.end(commits).await;
    }
    engine.wait_drained(&pair).await;
    report(&engine, "200 transactions in progress").await;
    wait_for("empty spools", PATIENCE, async || spooled(directory.path()) == 0).await;
    assert!(pair.source_value("SELECT count(*) FROM big").await.parse::<u32>().unwrap() > 10_000);
    pair.assert_ends_equal(engine).await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    pair.assert_removes().await;
}

/// Prepared transactions come when they commit, small ones and those that are streamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions() {
    let pair = pair_with_table().await;
    let directory = tempfile::tempdir().unwrap();
    let launch = spilling(&pair, directory.path());
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let owner = pair.owner().await;
    let prepare = async |name: &str, first: u32, rows: u32| {
        let last = first + rows - 1;
        let insert = format!(
            "INSERT INTO big SELECT k, 0, repeat(md5(k::text), 4) FROM generate_series({first}, {last}) k"
        );
        let sql = format!(
            "BEGIN; {insert}; UPDATE big SET part = 1 WHERE k = {last}; PREPARE TRANSACTION '{name}'"
        );
        owner.batch_execute(&sql).await.unwrap();
    };
    prepare("small", 0, 3).await;
    prepare("small, undone", 10, 3).await;
    prepare("large", 10_000, 5_000).await;
    prepare("large, undone", 20_000, 5_000).await;
    prepare("large, across a restart", 30_000, 5_000).await;
    wait_spooled(directory.path(), 1 << 20).await;
    let count = || pair.target_value("SELECT count(*) FROM big");
    owner.batch_execute("INSERT INTO small VALUES (1)").await.unwrap();
    engine.wait_drained(&pair).await;
    assert_eq!(count().await, "0", "what is only prepared is not there");
    for end in ["COMMIT PREPARED 'small'", "ROLLBACK PREPARED 'small, undone'", "COMMIT PREPARED 'large'"] {
        owner.batch_execute(end).await.unwrap();
    }
    owner.batch_execute("ROLLBACK PREPARED 'large, undone'").await.unwrap();
    pair.assert_follows(&mut engine).await;
    assert_eq!(count().await, "5003");
    engine.kill9().await;
    owner.batch_execute("COMMIT PREPARED 'large, across a restart'").await.unwrap();
    let engine = launch.start();
    pair.assert_ends_equal(engine).await;
    assert_eq!(count().await, "10003");
}

/// Definitions that change in the middle of one, and are changed back with a part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_change_inside() {
    let pair = pair_with_table().await;
    let directory = tempfile::tempdir().unwrap();
    let launch = spilling(&pair, directory.path()).arguments(&["--ddl", "follow"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let owner = pair.owner().await;
    let rows = |first: u32, more: &str| {
        let last = first + 4_999;
        format!(
            "INSERT INTO big SELECT k, 0, repeat(md5(k::text), 4){more} FROM generate_series({first}, {last}) k;"
        )
    };
    owner.batch_execute(&format!("{} BEGIN; {}", rows(0, ""), rows(10_000, ""))).await.unwrap();
    wait_spooled(directory.path(), 1 << 20).await;
    let added = "CREATE TYPE mood AS ENUM ('sad', 'happy'); ALTER TABLE big ADD n int DEFAULT 7;";
    owner.batch_execute(&format!("{added} {}", rows(20_000, ", k"))).await.unwrap();
    let undone = "SAVEPOINT a; ALTER TABLE big ADD gone mood;";
    let undone = format!("{undone} {} ROLLBACK TO a;", rows(30_000, ", k, 'sad'"));
    owner.batch_execute(&undone).await.unwrap();
    owner.batch_execute(&format!("UPDATE big SET n = 8 WHERE k = 1; {}", rows(40_000, ", k"))).await.unwrap();
    owner.batch_execute("COMMIT").await.unwrap();
    owner.batch_execute(&rows(50_000, ", k")).await.unwrap();
    pair.assert_follows(&mut engine).await;
    assert_eq!(pair.target_value("SELECT sum(n) FROM big WHERE k < 20000").await, "70001");
    pair.assert_ends_equal(engine).await;
}

/// One that is larger than all memory, taken in progress; and a smaller one that the source keeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_larger_than_memory() {
    let given = std::env::var("WALFERRY_TEST_LARGE_ROWS").ok();
    for (streams, rows) in [(true, "2000000"), (false, "200000")] {
        let rows = given.as_deref().unwrap_or(rows);
        let pair = pair_with_table().await;
        let directory = tempfile::tempdir().unwrap();
        let launch = spilling(&pair, directory.path());
        let mut engine = if streams { launch } else { launch.arguments(&["--spill-max", "0"]) }.start();
        engine.wait_phase("syncing").await;
        let client = pair.owner().await;
        client.batch_execute("BEGIN").await.unwrap();
        let insert = format!("INSERT INTO big SELECT k, 0, md5(k::text) FROM generate_series(1, {rows}) k");
        client.batch_execute(&insert).await.unwrap();
        if streams {
            wait_spooled(directory.path(), 1 << 20).await;
        }
        client.batch_execute("COMMIT").await.unwrap();
        let end = pair.source_wal().await;
        let began = std::time::Instant::now();
        let applied = |detail: &serde_json::Value| {
            detail["applied_lsn"].as_str().is_some_and(|text| super::harness::lsn(text) >= end)
        };
        engine.wait_until_within(Duration::from_secs(1_800), "a large transaction", applied).await;
        eprintln!("{rows} rows, streamed {streams}: {:.1} s after COMMIT", began.elapsed().as_secs_f64());
        assert!(streams || spooled(directory.path()) == 0);
        report(&engine, "one large transaction").await;
        pair.assert_ends_equal(engine).await;
    }
}

/// Killed with spools on disk; damaged; too many for the directory. Each time it goes on from what the source has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_on_disk() {
    let mut random = random("spill");
    let pair = pair_with_table().await;
    let directory = tempfile::tempdir().unwrap();
    let launch = spilling(&pair, directory.path());
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;

    let mut large = Writer::begin(&pair, 0).await;
    large.step(20_000, &mut random).await;
    wait_spooled(directory.path(), 1 << 20).await;
    // The position goes on, past where the large one began.
    pair.owner().await.batch_execute("INSERT INTO small VALUES (1)").await.unwrap();
    engine.wait_drained(&pair).await;
    engine.kill9().await;
    let left = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(left.join("4711.spool"), "of another time").unwrap();
    let mut engine = launch.start();
    wait_for("what was left to go", PATIENCE, async || !left.join("4711.spool").exists()).await;
    engine.wait_phase("syncing").await;
    // What it began before the stored position is sent again, with the next of its changes that are too many.
    large.step(20_000, &mut random).await;
    wait_spooled(directory.path(), 1 << 20).await;
    large.end(true).await;
    pair.assert_follows(&mut engine).await;

    for damage in [Damage::Byte, Damage::Cut, Damage::Gone] {
        let mut large = Writer::begin(&pair, 100_000 * (damage as u32 + 1)).await;
        large.step(20_000, &mut random).await;
        wait_spooled(directory.path(), 1 << 20).await;
        damage.strike(directory.path());
        large.end(true).await;
        pair.assert_follows(&mut engine).await;
        assert!(engine.log().contains("transactions in progress cannot be kept here"), "{}", engine.log());
        // From now on the source keeps them; started again, it takes them again.
        assert_eq!(spooled(directory.path()), 0);
        engine.terminate(0).await;
        engine = launch.start();
        engine.wait_phase("syncing").await;
    }
    engine.terminate(0).await;

    let mut engine = launch.clone().arguments(&["--spill-max", "1MB"]).start();
    engine.wait_phase("syncing").await;
    let mut large = Writer::begin(&pair, 500_000).await;
    large.step(50_000, &mut random).await;
    let full = "need more than the 1048576 bytes";
    wait_for("a full directory", PATIENCE, async || engine.log().contains(full)).await;
    large.end(true).await;
    pair.assert_ends_equal(engine).await;

    // A directory that is not there is said, and does without.
    let mut engine = pair.migrate().arguments(&["--spill-dir", "/nowhere"]).start();
    engine.wait_phase("syncing").await;
    assert!(engine.log().contains("set --spill-dir"), "{}", engine.log());
    let mut large = Writer::begin(&pair, 600_000).await;
    large.step(20_000, &mut random).await;
    large.end(true).await;
    pair.assert_ends_equal(engine).await;
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Byte,
    Cut,
    Gone,
}

impl Damage {
    fn strike(self, directory: &Path) {
        let pipeline = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
        let spool = std::fs::read_dir(pipeline).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&spool).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Self::Byte => {
                bytes[middle] ^= 1;
                std::fs::write(&spool, bytes).unwrap();
            }
            Self::Cut => std::fs::write(&spool, &bytes[..middle]).unwrap(),
            Self::Gone => std::fs::remove_file(&spool).unwrap(),
        }
    }
}
