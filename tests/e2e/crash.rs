//! `kill -9` at any moment: nothing is lost, nothing is applied twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use walferry::demo::{Endpoint, WriterOptions, Writers, load_pgbench, load_shop};

use super::harness::{DATABASE, PATIENCE, Pair, lsn, random, wait_for};

/// Where one kill is to strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    SlotCreated,
    Schema,
    Copying,
    Indexing,
    Stream,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment() {
    let mut random = random("crash");
    let kills = std::env::var("WALFERRY_TEST_KILLS").ok().map_or(22, |text| text.parse().unwrap());
    let pair = Pair::start().await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    load_shop(source, DATABASE).await.unwrap();
    load_pgbench(source, DATABASE, 3).await.unwrap();
    let options = WriterOptions {
        shop_clients: 3,
        shop_rate: 120,
        pgbench_clients: 2,
        pgbench_rate: 40,
        ..WriterOptions::default()
    };
    let writers = Writers::start(source, DATABASE, options).await.unwrap();
    let watcher = Watcher::start(source.endpoint(), target.endpoint());

    use Place::{Copying, Indexing, Schema, SlotCreated, Stream};
    let early = [SlotCreated, Schema, Copying, Copying, Copying, Indexing, Indexing, Indexing];
    let places = early.into_iter().chain(std::iter::repeat(Stream)).take(kills);
    let mut struck: BTreeMap<String, u32> = BTreeMap::new();
    let launch = pair.migrate().arguments(&["--jobs", "2"]);
    let mut programs = Vec::new();
    for place in places {
        let mut engine = launch.start();
        let pause = match place {
            SlotCreated => {
                let slots = "SELECT FROM pg_replication_slots WHERE NOT temporary";
                let made = async || !pair.source(slots).await.is_empty();
                wait_for("a slot", PATIENCE, made).await;
                0
            }
            Schema => {
                engine.wait_phase("schema").await;
                random.random_range(0..300)
            }
            Copying => {
                engine.wait_phase("copying").await;
                random.random_range(0..700)
            }
            Indexing => {
                engine.wait_phase("indexing").await;
                random.random_range(0..500)
            }
            Stream => {
                // One in four may strike anything from the start of the process on.
                if random.random_range(0..4) > 0 {
                    engine.wait_phase("catching_up").await;
                }
                random.random_range(0..1_500)
            }
        };
        sleep(Duration::from_millis(pause)).await;
        let phase = engine.phase().await;
        programs.extend(engine.programs());
        engine.kill9().await;
        *struck.entry(phase).or_default() += 1;
    }
    eprintln!("crash: kills by phase: {struck:?}");
    assert!(struck.contains_key("copying"), "no kill struck the copy: {struck:?}");
    assert!(
        struck.contains_key("catching_up") || struck.contains_key("syncing"),
        "no kill struck the stream: {struck:?}"
    );
    assert!(programs.iter().any(|program| program == "pg_dump"), "{programs:?}");

    // Each kill leaves a backlog: on a machine that is busy with other things the writers would outrun the last engine.
    let mut engine = launch.start();
    engine.wait_phase("catching_up").await;
    let counts = writers.stop().await;
    engine.wait_phase("syncing").await;
    eprintln!("crash: {} transactions, {} conflicts", counts.transactions(), counts.conflicts);
    assert_eq!(counts.errors, 0, "{counts:?}");
    let ending = Instant::now();
    pair.assert_ends_equal(engine).await;
    eprintln!("crash: drained and compared in {:?}", ending.elapsed());
    let samples = watcher.stop().await;
    eprintln!("crash: {samples} samples of the positions");
    assert!(samples > 100, "{samples}");
    pair.assert_removes().await;
}

/// Compares all the time what the source was told with what the target holds.
struct Watcher {
    stop: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl Watcher {
    fn start(source: Endpoint, target: Endpoint) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let (source, target) =
                (source.client(DATABASE).await.unwrap(), target.client(DATABASE).await.unwrap());
            let mut samples = 0;
            while !*stopped.borrow() {
                sleep(Duration::from_millis(10)).await;
                // In this order: both only grow, so that the second may be ahead by what happened between.
                let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE NOT temporary";
                let Some(row) = source.query_opt(sql, &[]).await.unwrap() else { continue };
                let Some(confirmed) = row.get::<_, Option<String>>(0) else { continue };
                let there = "SELECT to_regclass('walferry.progress') IS NOT NULL";
                if !target.query_one(there, &[]).await.unwrap().get::<_, bool>(0) {
                    continue;
                }
                let sql = "SELECT end_lsn::text FROM walferry.progress";
                let Some(row) = target.query_opt(sql, &[]).await.unwrap() else { continue };
                let stored: String = row.get(0);
                assert!(lsn(&confirmed) <= lsn(&stored), "{confirmed} is confirmed, {stored} is stored");
                samples += 1;
            }
            samples
        });
        Self { stop, task }
    }

    async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

/// SIGTERM and SIGINT are no crash: they end it soon, with 0, wherever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_in_any_phase() {
    let pair = Pair::start().await;
    let source = &pair.cluster.source;
    load_shop(source, DATABASE).await.unwrap();
    load_pgbench(source, DATABASE, 1).await.unwrap();
    let options = WriterOptions { shop_rate: 60, ..WriterOptions::default() };
    let writers = Writers::start(source, DATABASE, options).await.unwrap();
    for (phase, signal) in [
        ("schema", "TERM"),
        ("copying", "INT"),
        ("copying", "TERM"),
        ("indexing", "TERM"),
        ("catching_up", "INT"),
        ("syncing", "TERM"),
    ] {
        let mut engine = pair.migrate().start();
        engine.wait_phase(phase).await;
        engine.signal(signal);
        engine.wait_exit(0, PATIENCE).await;
        assert_eq!(pair.target_value("SELECT ended FROM walferry.migration").await, "stopped", "{phase}");
    }
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert_eq!(writers.stop().await.errors, 0);
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}
