//! Peers that hang, statements that somebody cancels, a target that takes no writes, locks on the source's tables.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use walferry::demo::Server;

use walferry::wire::{ConnInfo, Environment, control};

use super::harness::{DATABASE, PATIENCE, Pair, wait_for};

/// Halts the server with all its processes, or lets them go on.
pub fn signal_all(server: &Server, signal: &str) {
    let pid = std::fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let postmaster = pid.lines().next().unwrap().to_owned();
    let children = std::process::Command::new("pgrep").args(["-P", &postmaster]).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    for pid in std::iter::once(postmaster.as_str()).chain(children.split_whitespace()) {
        // A process may have ended meanwhile.
        let _ = std::process::Command::new("kill").args(["-s", signal, pid]).status().unwrap();
    }
}

async fn one_table() -> Pair {
    let pair = Pair::start().await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    pair
}

/// The source hangs: the host lives, no process of it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_hangs_is_not_ready() {
    let pair = one_table().await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let ready = async || engine.get("/readyz").await.is_some_and(|(code, _)| code == 200);
    wait_for("ready", PATIENCE, ready).await;
    signal_all(&pair.cluster.source, "STOP");
    let began = Instant::now();
    let unready = async || engine.get("/readyz").await.is_some_and(|(code, _)| code == 503);
    wait_for("not ready", PATIENCE, unready).await;
    let took = began.elapsed();
    let lag =
        engine.wait_until("a lag that grows", |detail| detail["lag_seconds"].as_f64() > Some(7.0)).await;
    signal_all(&pair.cluster.source, "CONT");
    eprintln!("not ready after {took:?}");
    assert!(took < Duration::from_secs(10), "not ready only after {took:?}");
    assert_eq!(lag["lag_bytes"], Value::Null, "{lag:#}");
    let ready = async || engine.get("/readyz").await.is_some_and(|(code, _)| code == 200);
    wait_for("ready again", PATIENCE, ready).await;
    pair.source("INSERT INTO t VALUES (2)").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
}

/// Cancels what `found` selects from `pg_stat_activity`, as soon as there is such a statement.
async fn cancel(server: &Server, found: &str) {
    let sql =
        format!("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND {found}");
    let cancelled = async || !server.sql(DATABASE, &sql).await.unwrap().is_empty();
    wait_for(found, PATIENCE * 2, cancelled).await;
}

/// Whoever cancels one statement does not end the migration; nor does a target that takes no writes for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_statements_and_a_read_only_target() {
    let pair = Pair::start().await;
    // Slow enough that its copy, its check and its index are met.
    pair.source(
        "SET ROLE app_owner;
         CREATE FUNCTION public.slow(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.002); RETURN a; END';
         CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g;
         ALTER TABLE t ADD CONSTRAINT slow CHECK (public.slow(a) > 0);
         CREATE INDEX slow_index ON t ((public.slow(b)))",
    )
    .await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    // The slot waits for it.
    let writer = pair.owner().await;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (1001, 1)").await.unwrap();
    let mut engine = pair.migrate().start();
    cancel(source, "application_name = 'walferry slot'").await;
    engine
        .wait_until("a cancelled slot is a failure that may pass", |detail| {
            detail["error"].as_str().is_some_and(|error| error.contains("somebody cancelled the statement"))
        })
        .await;
    writer.batch_execute("COMMIT").await.unwrap();
    cancel(target, "query LIKE '%COPY %FROM STDIN%' AND pid <> pg_backend_pid()").await;
    cancel(target, "query LIKE '%CREATE INDEX%slow_index%' AND pid <> pg_backend_pid()").await;
    engine.wait_phase("syncing").await;
    let walsender = "pid IN (SELECT active_pid FROM pg_replication_slots)";
    cancel(source, walsender).await;
    pair.source("INSERT INTO t VALUES (2000, 1)").await;
    pair.assert_follows(&mut engine).await;

    for (shut, open) in [
        (
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "ALTER SYSTEM RESET default_transaction_read_only",
        ),
        (
            "ALTER DATABASE defaultdb SET default_transaction_read_only = on; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'walferry%'",
            "SET default_transaction_read_only = off; ALTER DATABASE defaultdb RESET default_transaction_read_only",
        ),
    ] {
        target.sql("postgres", shut).await.unwrap();
        target.sql("postgres", "SELECT pg_reload_conf()").await.unwrap();
        pair.source("UPDATE t SET b = b + 1 WHERE a = 2000").await;
        engine
            .wait_until("its own sentence", |detail| {
                detail["error"]
                    .as_str()
                    .is_some_and(|error| error.contains("the target takes no writes: it is read only"))
            })
            .await;
        target.sql("postgres", open).await.unwrap();
        target.sql("postgres", "SELECT pg_reload_conf()").await.unwrap();
        pair.assert_follows(&mut engine).await;
    }
    engine.terminate(0).await;
}

/// The look at the source's tables waits for a lock: nobody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn a_lock_on_the_source_keeps_nobody_from_being_heard() {
    let pair = one_table().await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let holder = pair.cluster.source.client(DATABASE).await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waits =
        "SELECT FROM pg_stat_activity WHERE application_name = 'walferry' AND wait_event_type = 'Lock'";
    wait_for("a look that waits", PATIENCE, async || !pair.source(waits).await.is_empty()).await;
    // The stream goes on, and so does the tick.
    pair.source("SET ROLE app_owner; CREATE TABLE u (a int PRIMARY KEY)").await;
    engine.wait_drained(&pair).await;
    let began = Instant::now();
    engine.signal("TERM");
    engine.wait_exit(0, PATIENCE).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "the signal was heard after {took:?}");
    holder.batch_execute("ROLLBACK").await.unwrap();
}

/// Before the stream, and between two of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_is_heard_while_checks_and_foreign_keys_wait() {
    let pair = one_table().await;
    pair.source("SET ROLE app_owner; CREATE TABLE u (a int REFERENCES t)").await;
    let stops = async |server: &Server, what: &str| {
        let mut engine = pair.migrate().start();
        let waits = "SELECT FROM pg_stat_activity WHERE application_name LIKE 'walferry%' AND wait_event_type = 'Lock'";
        let waiting = async || !server.sql(DATABASE, waits).await.unwrap().is_empty();
        wait_for(what, PATIENCE, waiting).await;
        let began = Instant::now();
        engine.signal("TERM");
        engine.wait_exit(0, PATIENCE).await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{what}: the signal was heard after {took:?}");
        engine.log()
    };
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    let holder = source.client(DATABASE).await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    stops(source, "a check that waits").await;
    drop(holder);
    pair.migrate().arguments(&["--until", "copied"]).run().await.assert(0, &["table copied"]);
    let holder = target.client(DATABASE).await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    stops(target, "a foreign key that waits").await;
    drop(holder);
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated
                AND connamespace = 'public'::regnamespace";
    assert_eq!(pair.target_value(keys).await, "1");
}

/// A cutover looks at the source's tables itself: it says what it waits for, in time, and hears of signals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_the_source_keeps_no_cutover_from_being_answered() {
    let pair = one_table().await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let holder = pair.cluster.source.client(DATABASE).await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let began = Instant::now();
    let ended = pair.command("cutover").arguments(&["--timeout", "2s"]).run().await;
    ended.assert(5, &["it took longer than 2 s", "it waited for the source's tables"]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "the cutover was answered after {took:?}");
    // A second one is under way when the signal comes.
    let mut cutover = pair.command("cutover").process();
    let cutover = cutover.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let taken = "SELECT FROM walferry.request WHERE answered_at IS NULL AND answer IS NOT NULL";
    wait_for("it is taken", PATIENCE, async || !pair.target(taken).await.is_empty()).await;
    let began = Instant::now();
    engine.signal("TERM");
    engine.wait_exit(0, PATIENCE).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "the signal was heard after {took:?}");
    let ended = cutover.wait_with_output().await.unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(told.contains("the engine was told to stop"), "{told}");
    holder.batch_execute("ROLLBACK").await.unwrap();
}

/// Who starts a second engine hears at once why it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_engine_names_the_first() {
    let pair = one_table().await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let mut second = pair.migrate().start();
    const NAMED: &str = "another engine runs this migration, or was just killed";
    wait_for("the first is named", PATIENCE, async || second.log().contains(NAMED)).await;
    // Both clocks are this machine's.
    let log = second.log();
    let line = log.lines().find(|line| line.contains(NAMED)).unwrap();
    let at = line.split_whitespace().next().unwrap();
    let took = pair
        .target_value(&format!(
            "SELECT round(extract(epoch FROM timestamptz '{at}' - max(backend_start)) * 1000)
             FROM pg_stat_activity WHERE application_name = 'walferry apply'"
        ))
        .await;
    eprintln!("named {took} ms after it connected");
    assert!((1000..2000).contains(&took.parse::<i64>().unwrap()), "named after {took} ms: {line}");
    assert!(second.log().contains("server process"), "{}", second.log());
    second.assert_lives("it waits whether the first ends");
    engine.terminate(0).await;
    // It takes over from one that ends in time.
    second.wait_phase("syncing").await;
    second.terminate(0).await;

    // The lock of an earlier release.
    let earlier = pair.cluster.target.client(DATABASE).await.unwrap();
    let lock = "SELECT pg_backend_pid(), pg_advisory_lock(hashtextextended('walferry default', 0))::text";
    let pid: i32 = earlier.query_one(lock, &[]).await.unwrap().get(0);
    let mut third = pair.migrate().start();
    let told = format!("server process {pid},");
    wait_for("the earlier one is named", PATIENCE, async || third.log().contains(&told)).await;
    drop(earlier);
    third.wait_phase("syncing").await;
    third.terminate(0).await;
}

/// An administrator's killer of idle sessions ends the one that looks at the source; the stream has another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_that_looks_at_the_source_is_ended() {
    let pair = Pair::start().await;
    pair.source("CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t OWNER TO app_owner").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name = 'walferry' AND usename = 'app_owner' AND state = 'idle'";
    assert!(!pair.source(end).await.is_empty());
    let noticed = async || engine.log().contains("the control connection was lost");
    wait_for("it is noticed", PATIENCE, noticed).await;
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO public.t VALUES (1)").await;
    pair.assert_follows(&mut engine).await;
}

/// As a network leaves it that died in the middle of a copy: the server has not heard, and keeps the session and its locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_outlived_its_engine_is_ended() {
    let pair = Pair::start().await;
    pair.source("CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t OWNER TO app_owner").await;
    pair.migrate().arguments(&["--until", "synced"]).run().await.assert(0, &[]);
    let login = &pair.cluster.target_login;
    let uri = pair.cluster.target.uri(&login.role, &login.password, DATABASE);
    let info = ConnInfo::parse(&uri, &Environment::default()).unwrap();
    let (left, other) =
        (control(&info, "walferry copy").await.unwrap(), control(&info, "walferry copy").await.unwrap());
    left.batch_execute("BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // Of another migration into the same database.
    other.batch_execute("BEGIN; CREATE TABLE public.another (id int)").await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert!(
        engine.log().contains("ended sessions on the target that outlived their engine"),
        "{}",
        engine.log()
    );
    assert!(left.simple_query("SELECT 1").await.is_err());
    other.batch_execute("ROLLBACK").await.unwrap();
    pair.source("INSERT INTO public.t VALUES (1)").await;
    pair.assert_follows(&mut engine).await;
}
