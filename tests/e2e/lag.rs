//! What the engine says of itself while it is idle, busy, and cut off from its target.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;
use walferry::demo::{StopMode, WriterOptions, Writers, load_shop};

use super::harness::{DATABASE, Engine, PATIENCE, Pair, lsn, wait_for};

/// Every metric that is there from the beginning of the stream on.
const METRICS: [&str; 20] = [
    "walferry_applied_changes_total",
    "walferry_applied_lsn",
    "walferry_applied_transactions_total",
    "walferry_batch_changes",
    "walferry_batch_seconds",
    "walferry_build_info",
    "walferry_commit_latency_seconds",
    "walferry_confirmed_lsn",
    "walferry_copy_bytes_total",
    "walferry_copy_rows_total",
    "walferry_durable_lsn",
    "walferry_errors_total",
    "walferry_phase",
    "walferry_received_bytes_total",
    "walferry_received_lsn",
    "walferry_reconnects_total",
    "walferry_replication_lag_bytes",
    "walferry_replication_lag_seconds",
    "walferry_slot_retained_bytes",
    "walferry_source_wal_lsn",
];

fn seconds(detail: &Value) -> f64 {
    detail["lag_seconds"].as_f64().unwrap_or(f64::MAX)
}

fn bytes(detail: &Value) -> u64 {
    detail["lag_bytes"].as_u64().unwrap_or(u64::MAX)
}

fn position(detail: &Value, name: &str) -> u64 {
    detail[name].as_str().map_or(0, lsn)
}

async fn wait_idle(engine: &mut Engine) {
    let idle = |detail: &Value| bytes(detail) == 0 && seconds(detail) == 0.0;
    let began = Instant::now();
    engine.wait_until("no lag", idle).await;
    eprintln!("no lag after {:.1} s", began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_what_it_is() {
    let pair = Pair::with(|options| options.databases.push("other".to_owned())).await;
    let source = &pair.cluster.source;
    load_shop(source, DATABASE).await.unwrap();
    source.sql("other", "CREATE TABLE filler (a int, b text)").await.unwrap();
    let mut engine = pair.migrate().arguments(&["--database", DATABASE]).start();
    let mut codes = BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while engine.phase().await != "syncing" {
        engine.assert_lives("syncing");
        assert!(Instant::now() < deadline, "{}", engine.log());
        codes.extend(engine.get("/readyz").await.map(|(code, _)| code));
        if let Some((code, _)) = engine.get("/healthz").await {
            assert_eq!(code, 200);
        }
    }
    assert!(codes.contains(&503), "ready before anything was copied: {codes:?}");
    wait_idle(&mut engine).await;
    assert_eq!(engine.get("/readyz").await.unwrap().0, 200);

    // Another database's WAL is no lag of ours, and moves our position.
    let filled = Instant::now();
    let begun = pair.source_wal().await;
    for _ in 0..8 {
        let fill = "INSERT INTO filler SELECT g, repeat('x', 200) FROM generate_series(1, 40000) g";
        source.sql("other", fill).await.unwrap();
        let detail = engine.wait_until("its status", |_| true).await;
        assert!(seconds(&detail) < 5.0 && filled.elapsed() < PATIENCE, "{}", seconds(&detail));
    }
    let end = pair.source_wal().await;
    engine.wait_applied(end).await;
    wait_idle(&mut engine).await;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let began = Instant::now();
    // As far as the transaction that is made for that, once there was much to keep.
    let followed = async || lsn(&pair.source_value(confirmed).await) >= begun + (32 << 20);
    wait_for("the slot follows while only another database writes", PATIENCE, followed).await;
    eprintln!("the idle position was confirmed after {:?}", began.elapsed());
    let stored = async || pair.progress().await >= end;
    wait_for("the idle position is stored", PATIENCE, stored).await;

    busy(&pair, &mut engine).await;
    without_target(&pair, &mut engine).await;
    wait_idle(&mut engine).await;
    metrics(&engine).await;
    assert_eq!(engine.get("/nosuch").await.unwrap().0, 404);
    let (code, page) = engine.get("/").await.unwrap();
    assert!(code == 200 && page.contains("syncing"), "{page}");
    let (code, avn) = engine.get("/v1/project/p/service/s/migration").await.unwrap();
    assert!(code == 200 && avn.contains("\"syncing\""), "{avn}");
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

/// While the shop writes, positions only grow and stand in order, and the lag is what lies between them.
async fn busy(pair: &Pair, engine: &mut Engine) {
    let options = WriterOptions { shop_rate: 80, ..WriterOptions::default() };
    let writers = Writers::start(&pair.cluster.source, DATABASE, options).await.unwrap();
    let mut last = [0; 4];
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let detail = engine.wait_until("its status", |_| true).await;
        let names = ["received_lsn", "applied_lsn", "durable_lsn", "confirmed_lsn"];
        let positions = names.map(|name| position(&detail, name));
        assert!(positions.is_sorted_by(|a, b| a >= b), "{positions:?}");
        assert!(
            positions.iter().zip(last).all(|(now, before)| *now >= before),
            "{positions:?} after {last:?}"
        );
        last = positions;
        assert!(bytes(&detail) < 16 << 20 && seconds(&detail) < 10.0, "{detail:#}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(writers.stop().await.errors, 0);
    wait_idle(engine).await;
}

/// The target stops, the source writes: the lag grows with the time and the bytes, and is gone when the target is back.
async fn without_target(pair: &Pair, engine: &mut Engine) {
    pair.cluster.target.stop(StopMode::Fast).await.unwrap();
    let before = engine.wait_until("its status", |_| true).await;
    let applied = position(&before, "applied_lsn");
    let owner = pair.owner().await;
    let began = Instant::now();
    let mut last = 0;
    while began.elapsed() < Duration::from_secs(6) {
        owner.batch_execute("INSERT INTO shop.click (at, page) SELECT now(), repeat('x', 80) FROM generate_series(1, 500)")
            .await
            .unwrap();
        sleep(Duration::from_millis(200)).await;
        let detail = engine.wait_until("its status", |_| true).await;
        assert!(bytes(&detail) >= last, "{} after {last}", bytes(&detail));
        last = bytes(&detail);
    }
    let wal = pair.source_wal().await;
    // The lag is reckoned just after the position is shown.
    let looked = |detail: &Value| {
        let at = position(detail, "source_wal_lsn");
        at >= wal && bytes(detail) == at - position(detail, "applied_lsn")
    };
    let detail = engine.wait_until("a look at the source", looked).await;
    let passed = began.elapsed().as_secs_f64();
    assert_eq!(position(&detail, "applied_lsn"), applied);
    assert_eq!(bytes(&detail), position(&detail, "source_wal_lsn") - applied);
    eprintln!("{passed:.1} s without a target: lag {:.1} s, {} bytes", seconds(&detail), bytes(&detail));
    assert!((seconds(&detail) - passed).abs() < 2.5, "{} s of lag after {passed} s", seconds(&detail));
    assert_eq!(engine.get("/healthz").await.unwrap().0, 200);
    let metric = engine.metric("walferry_replication_lag_seconds").await.unwrap();
    assert!(metric >= seconds(&detail) && metric < seconds(&detail) + 5.0, "{metric}");
    assert!(!detail["error"].as_str().unwrap().is_empty(), "the status says what is wrong: {detail:#}");
    assert_eq!(engine.get("/readyz").await.unwrap().0, 503, "not ready without a target");
    pair.cluster.target.start_again().await.unwrap();
    wait_idle(engine).await;
    let ready = async || engine.get("/readyz").await.is_some_and(|(code, _)| code == 200);
    wait_for("ready again", PATIENCE, ready).await;
    let detail = engine.wait_until("its status", |_| true).await;
    assert_eq!(detail["error"], "", "what is mended is not shown any more");
    assert_eq!(detail["phase"], "syncing");
}

/// Every line is one that Prometheus reads, and every metric is there.
async fn metrics(engine: &Engine) {
    // What is not known yet (the slot, right after a reconnect) is left out of a scrape.
    wait_for("every metric", PATIENCE, async || {
        let text = engine.get("/metrics").await.unwrap().1;
        METRICS.iter().all(|name| text.contains(name))
    })
    .await;
    let (code, text) = engine.get("/metrics").await.unwrap();
    assert_eq!(code, 200);
    let mut names = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let of_ours = |of: &str| of.starts_with("walferry_") || of.starts_with("process_");
            let rest = comment.strip_prefix("HELP ").or_else(|| comment.strip_prefix("TYPE "));
            assert!(rest.is_some_and(of_ours), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        let name = series.split('{').next().unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
        let labels = series.strip_prefix(name).unwrap();
        if name.starts_with("process_") {
            assert_eq!(labels, "", "{line}");
            continue;
        }
        let labelled = labels.contains("database=\"defaultdb\"") || name == "walferry_build_info";
        assert!(labelled && labels.starts_with('{') && labels.ends_with('}'), "{line}");
        let name = ["_bucket", "_sum", "_count"].iter().fold(name, |name, end| name.trim_end_matches(end));
        names.insert(name.to_owned());
    }
    for name in METRICS {
        assert!(names.contains(name), "no {name} in {names:?}");
    }
}

/// Whoever looks after the source's disk needs to know what it keeps for the migration as soon as it keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_watched_while_rows_are_copied() {
    let pair = Pair::start().await;
    pair.source(
        "SET ROLE app_owner;
         CREATE FUNCTION held(int) RETURNS boolean LANGUAGE sql
             AS 'SELECT pg_advisory_xact_lock_shared(42)::text = $$$$';
         CREATE TABLE t (a int PRIMARY KEY CHECK (public.held(a))); INSERT INTO t VALUES (1);
         CREATE TABLE u (a int PRIMARY KEY, b text)",
    )
    .await;
    let holder = pair.cluster.target.client(DATABASE).await.unwrap();
    holder.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
    let mut engine = pair.migrate().start();
    let copying = |detail: &Value| {
        let phase = detail["phase"].as_str().unwrap_or_default();
        assert!(["waiting", "checking", "schema", "copying"].contains(&phase), "{detail:#}");
        phase == "copying" && detail["slot"]["retained_bytes"].is_u64()
    };
    engine.wait_until("the slot", copying).await;
    pair.source("INSERT INTO u SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g").await;
    engine
        .wait_until("the lag", |detail| {
            copying(detail) && bytes(detail) < u64::MAX && bytes(detail) > 2_000_000
        })
        .await;
    let retained =
        async || engine.metric("walferry_slot_retained_bytes").await.is_some_and(|bytes| bytes > 2e6);
    wait_for("the WAL that is kept", PATIENCE, retained).await;
    holder.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;
}
