//! Servers that stop, connections that break, slots and clusters that are not what they were.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use walferry::demo::{StopMode, WriterOptions, Writers, load_shop};

use super::harness::{DATABASE, Engine, PATIENCE, Pair, lsn, wait_for};
use super::proxy::Proxy;

async fn busy_shop() -> (Pair, Writers) {
    let pair = Pair::start().await;
    load_shop(&pair.cluster.source, DATABASE).await.unwrap();
    let options = WriterOptions { shop_rate: 60, ..WriterOptions::default() };
    let writers = Writers::start(&pair.cluster.source, DATABASE, options).await.unwrap();
    (pair, writers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_restart() {
    let (pair, writers) = busy_shop().await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    let mut engine = pair.migrate().start();
    engine.wait_phase("copying").await;
    target.restart(StopMode::Immediate).await.unwrap();
    engine.wait_phase("copying").await;
    source.restart(StopMode::Immediate).await.unwrap();
    engine.wait_phase("indexing").await;
    target.restart(StopMode::Fast).await.unwrap();
    engine.wait_phase("syncing").await;
    for mode in [StopMode::Immediate, StopMode::Fast] {
        pair.assert_written(&mut engine, 30).await;
        target.stop(mode).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        target.start_again().await.unwrap();
    }
    pair.assert_written(&mut engine, 30).await;
    source.restart(StopMode::Immediate).await.unwrap();
    pair.assert_written(&mut engine, 30).await;
    let stopping = Instant::now();
    source.stop(StopMode::Fast).await.unwrap();
    let took = stopping.elapsed();
    eprintln!("servers_restart: fast shutdown of the source took {took:?}");
    assert!(took < Duration::from_secs(15), "the source waited for the engine: {took:?}");
    source.start_again().await.unwrap();
    pair.assert_written(&mut engine, 30).await;
    let counts = writers.stop().await;
    assert_eq!(counts.errors, 0, "{counts:?}");
    let reconnects = engine.metric("walferry_reconnects_total{database=\"defaultdb\",side=\"target\"}").await;
    assert!(reconnects >= Some(3.0), "{reconnects:?}");
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

/// Commits on the target do not wait for its disk: what it forgets in a crash is not confirmed, and comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_target_forgets_comes_again() {
    let (pair, writers) = busy_shop().await;
    let target = &pair.cluster.target;
    // Nothing gets to the disk unless it is asked for.
    pair.cluster.target.sql("postgres", "ALTER SYSTEM SET wal_writer_delay = '10s'").await.unwrap();
    pair.cluster.target.sql("postgres", "SELECT pg_reload_conf()").await.unwrap();
    let mut engine = pair.command("migrate").arguments(&["--confirm-delay", "0"]).start();
    engine.wait_phase("syncing").await;
    let mut forgotten = 0;
    // What is not on the disk may be another session's: then nothing of ours is forgotten.
    for round in 1..=FORGETTING_ROUNDS_MAX {
        halt_with_wal_unflushed(&pair, &mut engine).await;
        let written = pair.progress().await;
        target.restart(StopMode::Immediate).await.unwrap();
        let kept = pair.progress().await;
        let confirmed = lsn(&pair.source_value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await);
        eprintln!("round {round}: {written:X} was written, {kept:X} is kept, {confirmed:X} is confirmed");
        assert!(kept <= written && confirmed <= kept, "{confirmed:X} is confirmed, {kept:X} is kept");
        forgotten += u32::from(kept < written);
        engine.signal("CONT");
        if round >= 4 && forgotten > 0 {
            break;
        }
    }
    assert!(forgotten > 0, "the target never forgot anything");
    pair.assert_written(&mut engine, 30).await;
    assert_eq!(writers.stop().await.errors, 0);
    pair.assert_ends_equal(engine).await;
}

const FORGETTING_ROUNDS_MAX: u32 = 20;

/// Halts the engine while the target's disk does not have all that was committed there: so the engine does not hear of a
/// crash before we have looked.
async fn halt_with_wal_unflushed(pair: &Pair, engine: &mut Engine) {
    let began = Instant::now();
    let unflushed = "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()";
    loop {
        pair.assert_written(engine, 30).await;
        engine.signal("STOP");
        if pair.target_value(unflushed).await == "t" {
            return;
        }
        engine.signal("CONT");
        assert!(began.elapsed() < PATIENCE, "all is on the target's disk, whenever we look");
    }
}

/// With confirmations held back, a shutdown must not wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_of_the_source_does_not_wait_for_confirm_delay() {
    let (pair, writers) = busy_shop().await;
    let source = &pair.cluster.source;
    // The walsender asks each second: what it is told then confirms nothing, and lets it end all the same.
    source.sql("postgres", "ALTER SYSTEM SET wal_sender_timeout = '2s'").await.unwrap();
    source.sql("postgres", "SELECT pg_reload_conf()").await.unwrap();
    let mut engine = pair.command("migrate").arguments(&["--confirm-delay", "1h"]).start();
    engine.wait_phase("catching_up").await;
    let began = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let began = lsn(&pair.source_value(began).await);
    engine.wait_phase("syncing").await;
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(5) {
        pair.assert_written(&mut engine, 30).await;
    }
    let before = lsn(&pair.source_value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await);
    assert!(before < pair.progress().await, "confirmations are held back");
    assert_eq!(before, began, "none of an hour is confirmed");
    let stopping = Instant::now();
    source.stop(StopMode::Fast).await.unwrap();
    let took = stopping.elapsed();
    eprintln!("fast shutdown of the source took {took:?}");
    assert!(took < Duration::from_secs(15), "the source waited: {took:?}");
    source.start_again().await.unwrap();
    pair.assert_written(&mut engine, 30).await;
    assert_eq!(writers.stop().await.errors, 0);
    pair.assert_ends_equal(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_break() {
    let (pair, writers) = busy_shop().await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    let (to_source, to_target) = (Proxy::start(source.port()).await, Proxy::start(target.port()).await);
    let launch = pair.migrate();
    let launch = launch
        .clone()
        .source(to_source.uri(&launch.source, source.port()))
        .target(to_target.uri(&launch.target, target.port()));
    let mut engine = launch.start();
    engine.wait_phase("copying").await;
    for proxy in [&to_source, &to_target] {
        proxy.cut();
        sleep(Duration::from_millis(700)).await;
    }
    engine.wait_phase("indexing").await;
    to_target.cut();
    engine.wait_phase("syncing").await;
    for proxy in [&to_source, &to_target] {
        pair.assert_written(&mut engine, 20).await;
        proxy.cut();
        pair.assert_written(&mut engine, 20).await;
        proxy.delay(Duration::from_millis(30));
        pair.assert_written(&mut engine, 20).await;
        proxy.delay(Duration::ZERO);
        proxy.half_close();
        pair.assert_written(&mut engine, 20).await;
        proxy.pause(true);
        sleep(Duration::from_secs(2)).await;
        engine.assert_lives("a pause is no failure");
        proxy.pause(false);
        pair.assert_written(&mut engine, 20).await;
        proxy.refuse(true);
        proxy.cut();
        sleep(Duration::from_secs(2)).await;
        engine.assert_lives("a server that is not there for a while");
        proxy.refuse(false);
        pair.assert_written(&mut engine, 20).await;
    }
    assert_eq!(writers.stop().await.errors, 0);
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

/// The network forgets a connection: the engine's side breaks, the server's backend goes on waiting. Its lock, its
/// slot and its temporary slot are then still held by a session that nobody uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_server_still_believes_in() {
    let (pair, writers) = busy_shop().await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    // What the source would wait for a silent standby; a minute unless set.
    let client = source.client("postgres").await.unwrap();
    client.batch_execute("ALTER SYSTEM SET wal_sender_timeout = '5s'").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let (to_source, to_target) = (Proxy::start(source.port()).await, Proxy::start(target.port()).await);
    let launch = pair.migrate();
    let launch = launch
        .clone()
        .source(to_source.uri(&launch.source, source.port()))
        .target(to_target.uri(&launch.target, target.port()));
    // Slow enough that each attempt is met in its copy; all but the first hold a temporary slot.
    to_target.delay(Duration::from_millis(20));
    let mut engine = launch.start();
    for tries in 0..3 {
        let copying = |detail: &serde_json::Value| detail["phase"] == "copying" && detail["error"] == "";
        engine.wait_until_within(PATIENCE, &format!("copying after {tries} breaks"), copying).await;
        let holder = "SELECT FROM pg_replication_slots WHERE slot_name LIKE '%_copy' AND active";
        let holds = async || tries == 0 || !pair.source(holder).await.is_empty();
        wait_for("a snapshot", PATIENCE, holds).await;
        to_source.abandon();
        engine.wait_until("a failure is noticed", |detail| detail["error"] != "").await;
    }
    to_target.delay(Duration::ZERO);
    engine.wait_phase("syncing").await;
    pair.assert_written(&mut engine, 20).await;
    to_source.abandon();
    pair.assert_written(&mut engine, 20).await;
    to_target.abandon();
    pair.assert_written(&mut engine, 20).await;
    assert_eq!(writers.stop().await.errors, 0);
    pair.assert_ends_equal(engine).await;
}

/// What the next run says of a slot or a cluster that is not what it was, and that it changes nothing.
async fn refuses(pair: &Pair, parts: &[&str]) {
    let state = "SELECT (SELECT sum(a) FROM t) || ' ' || (SELECT end_lsn FROM walferry.progress)";
    let before = pair.target_value(state).await;
    for _ in 0..2 {
        let ended = pair.migrate().run().await;
        ended.assert(5, parts);
        ended.assert(5, &["  hint: ", "walferry remove --force"]);
    }
    assert_eq!(pair.target_value(state).await, before, "something changed on the target");
}

async fn small() -> Pair {
    let pair = Pair::start().await;
    pair.source(
        "SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, 'x')",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO t VALUES (2, 'y')").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
    pair
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_was_advanced() {
    let pair = small().await;
    let slot = pair.slot().await;
    pair.source("INSERT INTO t VALUES (3, 'z')").await;
    pair.source(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")).await;
    refuses(&pair, &["the replication slot is ahead of the target", &slot]).await;
    pair.command("remove").run().await.assert(0, &["dropped replication slot"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_was_dropped() {
    let pair = small().await;
    let slot = pair.slot().await;
    pair.source("INSERT INTO t VALUES (3, 'z')").await;
    pair.source(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    refuses(&pair, &["the replication slot is gone", &slot]).await;
    // Another program's slot of the same name is none of ours.
    pair.source(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")).await;
    refuses(&pair, &["the replication slot is not ours", &slot]).await;
    pair.source(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    pair.source(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    refuses(&pair, &["the replication slot is ahead of the target", &slot]).await;
    // What the hint says, done, leads to a target that is equal.
    pair.command("remove").arguments(&["--force"]).run().await.assert(0, &["dropped replication slot"]);
    pair.target("DROP TABLE t").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_loses_its_identity() {
    let pair = small().await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source(
        "SET ROLE app_owner; CREATE TABLE late (a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
    )
    .await;
    let log = engine.wait_exit(5, Duration::from_secs(90)).await;
    assert!(log.contains("table public.t lost its replica identity on the source"), "{log}");
    let add =
        log.rsplit_once("on the source run: ").unwrap().1.split("; then run").next().unwrap().to_owned();
    // The source can write to it again.
    pair.source("UPDATE t SET b = 'changed' WHERE a = 1; DELETE FROM t WHERE a = 2").await;
    let log = pair.migrate().start().wait_exit(5, PATIENCE).await;
    assert!(log.contains("made on the source after the copy began") && log.contains("public.late"), "{log}");
    assert!(log.contains("table public.t is no longer in the migration's publications"), "{log}");
    // Who pastes what is printed goes on.
    pair.source("ALTER TABLE public.t REPLICA IDENTITY DEFAULT").await;
    pair.source(&add).await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source("UPDATE t SET b = 'again' WHERE a = 1").await;
    engine.wait_drained(&pair).await;
    assert_eq!(pair.target_value("SELECT b FROM t WHERE a = 1").await, "again");
    engine.terminate(0).await;
    pair.command("remove").arguments(&["--force"]).run().await.assert(0, &["dropped replication slot"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_was_restored() {
    let pair = small().await;
    let source = &pair.cluster.source;
    source.stop(StopMode::Fast).await.unwrap();
    let (data, copy) = (source.data_dir(), source.data_dir().with_file_name("older"));
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&copy).status().unwrap();
    assert!(copied.success());
    source.start_again().await.unwrap();
    pair.source("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(10, 5000) g").await;
    let mut engine = pair.migrate().start();
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
    source.stop(StopMode::Fast).await.unwrap();
    std::fs::rename(&data, data.with_file_name("newer")).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    source.start_again().await.unwrap();
    refuses(&pair, &["the target is ahead of the source"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster() {
    let pair = small().await;
    let other = Pair::start().await;
    other.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY, b text)").await;
    let launch = pair.migrate().source(other.cluster.source_uri(DATABASE));
    let ended = launch.run().await;
    ended.assert(5, &["the source is another cluster than the migration was begun on"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts() {
    let pair = small().await;
    // (done on the target by hand, then on the source, the kind, how it is mended)
    let secret = "nobody may see this";
    let cases = [
        (
            "DELETE FROM t WHERE a = 2",
            "UPDATE t SET b = 'S' WHERE a = 2",
            "update_missing",
            "INSERT INTO t VALUES (2, 'y')",
        ),
        (
            "DELETE FROM t WHERE a = 1",
            "DELETE FROM t WHERE a = 1",
            "delete_missing",
            "INSERT INTO t VALUES (1, 'q')",
        ),
        (
            "INSERT INTO t VALUES (9, 'S')",
            "INSERT INTO t VALUES (9, 'T')",
            "insert_exists",
            "DELETE FROM t WHERE a = 9",
        ),
        (
            "ALTER TABLE t ADD CHECK (a <> 10)",
            "INSERT INTO t VALUES (10, 'S')",
            "refused",
            "ALTER TABLE t DROP CONSTRAINT t_a_check",
        ),
    ];
    for (number, (by_hand, change, kind, mend)) in (1..).zip(cases) {
        let with_secret = |sql: &str| sql.replace("'S'", &format!("'{secret}'"));
        pair.target(&with_secret(by_hand)).await;
        let launch = pair.migrate().secret(secret);
        let mut engine = launch.start();
        engine.wait_phase("syncing").await;
        let stored = pair.progress().await;
        // Of two transactions and one between them that does not fit, none after it may come.
        let mut source = pair.owner().await;
        let transaction = source.transaction().await.unwrap();
        transaction.batch_execute(&format!("INSERT INTO t VALUES ({number}00, 'in it')")).await.unwrap();
        transaction.batch_execute(&with_secret(change)).await.unwrap();
        transaction.commit().await.unwrap();
        source.batch_execute(&format!("INSERT INTO t VALUES ({number}01, 'after')")).await.unwrap();
        let log = engine.wait_exit(5, PATIENCE).await;
        for part in [&format!("conflict ({kind}) in table public.t at "), "walferry.conflict", "hint: "] {
            assert!(log.contains(part), "no {part:?} in {log}");
        }
        let left = format!("SELECT count(*) FROM t WHERE a IN ({number}00, {number}01)");
        assert_eq!(pair.target_value(&left).await, "0", "the transaction is not there, nor what follows");
        let recorded = "SELECT kind || ' ' || table_name || ' ' || commit_lsn FROM walferry.conflict
                        ORDER BY id DESC LIMIT 1";
        let recorded = pair.target_value(recorded).await;
        let at = recorded.strip_prefix(&format!("{kind} t ")).unwrap_or_else(|| panic!("{recorded}"));
        assert!(log.contains(at) && lsn(at) >= stored, "{recorded}");
        assert!(!pair.target_value("SELECT error FROM walferry.migration").await.contains(secret));
        let status = pair.command("status").arguments(&["--json"]).secret(secret).run().await;
        status.assert(0, &["\"phase\": \"failed\"", "conflict ("]);
        // Unmended, it ends the same way, and records it again.
        pair.migrate().secret(secret).run().await.assert(5, &[&format!("conflict ({kind})")]);

        pair.target(mend).await;
        let mut engine = launch.start();
        engine.wait_phase("syncing").await;
        pair.assert_ends_equal(engine).await;
    }
    assert_eq!(pair.target_value("SELECT count(*) FROM walferry.conflict").await, "8");
    let answered = async || pair.source_value("SELECT count(*) FROM pg_replication_slots").await == "1";
    wait_for("the slot is still there", PATIENCE, answered).await;
    pair.assert_removes().await;
}

/// A part of a large transaction does not fit, when parts before it are sent and others wait behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_inside_a_large_transaction() {
    let pair = Pair::start().await;
    let tables = "SET ROLE app_owner; CREATE TABLE many (a bigint PRIMARY KEY, b text, c int UNIQUE); \
                  CREATE TABLE whole (a int PRIMARY KEY, b text); ALTER TABLE whole REPLICA IDENTITY FULL; \
                  INSERT INTO whole VALUES (1, 'x'); INSERT INTO many VALUES (-1, 'x', -1), (-2, 'y', -2)";
    pair.source(tables).await;
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.target("DELETE FROM whole").await;
    let rows = |first: u32, last: u32| {
        format!("INSERT INTO many SELECT n, repeat('b', 60), n FROM generate_series({first}, {last}) n")
    };
    // A unique value goes from row to row on the way: that part is applied again, and is no conflict.
    let hand_over = "UPDATE many SET c = -3 WHERE a = -1; UPDATE many SET c = -1 WHERE a = -2; \
                     UPDATE many SET c = -2 WHERE a = -1";
    let mut source = pair.owner().await;
    let transaction = source.transaction().await.unwrap();
    transaction.batch_execute(&rows(1, 100_000)).await.unwrap();
    transaction.batch_execute(hand_over).await.unwrap();
    transaction.batch_execute(&rows(100_001, 200_000)).await.unwrap();
    transaction.batch_execute("UPDATE whole SET b = 'z'").await.unwrap();
    transaction.batch_execute(&rows(200_001, 300_000)).await.unwrap();
    transaction.commit().await.unwrap();
    let log = engine.wait_exit(5, PATIENCE).await;
    for part in ["conflict (update_missing) in table public.whole at ", "walferry.conflict", "hint: "] {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    assert_eq!(pair.target_value("SELECT count(*) FROM many").await, "2");
    assert_eq!(pair.target_value("SELECT kind FROM walferry.conflict").await, "update_missing");
    pair.target("INSERT INTO whole VALUES (1, 'x')").await;
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM many").await, "300002");
}
