//! Method `pg_dump`: what a source that cannot replicate gets, and that nobody mistakes it for more.

use serde_json::Value;
use tokio_postgres::error::SqlState;
use walferry::demo::{ClusterOptions, PgBinaries, TriggerControl};

use super::harness::{Ended, Engine, Pair};

/// What a dump gets wrong easily: foreign keys in a circle and to itself, triggers that write, sequences, views with
/// rows, partitions, inheritance, generated and identity columns, names that need quotes.
const AWKWARD: &str = r#"
    CREATE TABLE husband (id int PRIMARY KEY, wife int NOT NULL);
    CREATE TABLE wife (id int PRIMARY KEY, husband int NOT NULL REFERENCES husband DEFERRABLE);
    INSERT INTO husband SELECT i, i FROM generate_series(1, 500) i;
    INSERT INTO wife SELECT i, i FROM generate_series(1, 500) i;
    ALTER TABLE husband ADD FOREIGN KEY (wife) REFERENCES wife DEFERRABLE;
    CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree);
    INSERT INTO tree SELECT i, nullif(i - 1, 0) FROM generate_series(1, 300) i;

    CREATE TABLE item (id serial PRIMARY KEY, text text, length int GENERATED ALWAYS AS (length(text)) STORED);
    CREATE TABLE audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO public.audit (text) VALUES (NEW.text); RETURN NEW; END';
    CREATE TRIGGER audited BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION audited();
    CREATE TRIGGER refused BEFORE TRUNCATE ON audit EXECUTE FUNCTION audited();
    INSERT INTO item (text) SELECT repeat('x', i % 50) FROM generate_series(1, 1000) i;
    SELECT setval('item_id_seq', 4711);
    CREATE SEQUENCE "Odd ""one""" START 7 INCREMENT 3; SELECT nextval('"Odd ""one"""');
    CREATE MATERIALIZED VIEW totals AS SELECT length, count(*) FROM item GROUP BY 1;
    CREATE MATERIALIZED VIEW of_totals AS SELECT max(count) FROM totals;
    CREATE UNIQUE INDEX ON totals (length);
    CREATE UNLOGGED TABLE cache (key text, value text); INSERT INTO cache VALUES ('k', 'v');
    CREATE TABLE parted (id int, region text) PARTITION BY LIST (region);
    CREATE TABLE "part A" PARTITION OF parted FOR VALUES IN ('a'); CREATE TABLE rest PARTITION OF parted DEFAULT;
    INSERT INTO parted SELECT i, chr(97 + i % 3) FROM generate_series(1, 600) i;
    CREATE TABLE parent (id int); CREATE TABLE child (note text) INHERITS (parent);
    INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 'child');
    CREATE TABLE empty (); CREATE TABLE forced (id int); INSERT INTO forced VALUES (1);
    ALTER TABLE forced ENABLE ROW LEVEL SECURITY;"#;

/// Enough to be caught at it: some 60 MB in one table, and one that is copied after it.
const LARGE: &str = "
    CREATE TABLE large (id int, filler text);
    INSERT INTO large SELECT i, repeat('filler ', 40) FROM generate_series(1, 200000) i;
    CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small SELECT generate_series(1, 100);
    ANALYZE";

fn without_logical(options: &mut ClusterOptions) {
    options.source_options = options.source_options.clone().setting("wal_level", "replica");
}

/// The migration and its one database, as `status --json` has them.
async fn status(pair: &Pair) -> (Value, Value) {
    let ended = pair.command("status").arguments(&["--json"]).run().await;
    ended.assert(0, &[]);
    let status: Value = serde_json::from_str(&ended.stdout).unwrap();
    (status["migration"].clone(), status["migration_detail"][0].clone())
}

/// Neither slot nor publication was made, nor is there anything to be dropped.
async fn assert_nothing_on_the_source(pair: &Pair) {
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(pair.source_value(left).await, "0");
}

fn assert_fell_back(ended: &Ended) {
    ended.assert(0, &["falls back", "NOT carried"]);
}

/// Stops the engine's process while it copies.
async fn caught_copying(engine: &mut Engine) {
    let copying = |detail: &Value| {
        let tables = detail["tables"].as_array().cloned().unwrap_or_default();
        tables.iter().any(|table| table["state"] == "copying" && table["bytes_copied"] != 0)
    };
    engine.wait_until("a table is being copied", copying).await;
    engine.signal("STOP");
    assert!(!engine.log().contains("phase=indexing"), "the copy was too fast:\n{}", engine.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_logical_decoding() {
    let pair = Pair::with(without_logical).await;
    pair.owner().await.batch_execute(AWKWARD).await.unwrap();

    let forced = |command: &str, method: &str| pair.command(command).arguments(&["--method", method]);
    let ended = pair.command("check").run().await;
    assert_fell_back(&ended);
    ended.assert(0, &["wal_level: replica, but logical is needed"]);
    forced("check", "replication").run().await.assert(3, &["source-wal-level", "ALTER SYSTEM SET wal_level"]);
    let ended = forced("check", "pg_dump").run().await;
    ended.assert(0, &["NOT carried"]);
    assert!(!ended.stdout.contains("wal_level"), "{}", ended.stdout);
    forced("migrate", "replication").run().await.assert(3, &["logical is needed"]);
    assert_eq!(pair.target_value("SELECT count(*) FROM pg_namespace WHERE nspname = 'walferry'").await, "0");

    let mut engine = pair.migrate().start();
    let log = engine.wait_exit(7, super::harness::PATIENCE).await;
    for part in ["falls back to pg_dump", "NOT carried", "every table has as many rows", "phase=done"] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    let (made, open) = log.split_once("phase=done").unwrap();
    assert!(made.contains("made NOLOGIN") && open.contains("the target is open"), "{log}");
    let login = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'app_owner'";
    assert_eq!(pair.target_value(login).await, "t");
    let last = log.lines().last().unwrap();
    let since = pair.target_value("SELECT dumped_at FROM walferry.migration").await;
    for part in ["dumped, not followed", &since, "NOT carried", "stop all writers", "walferry remove"] {
        assert!(last.contains(part), "no {part:?} in {last}");
    }
    assert!(engine.programs().iter().any(|program| program == "pg_dump"), "{:?}", engine.programs());
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}\n{log}");
    assert_eq!(comparison.table("public.husband").unwrap().rows_target, Some(500));
    let constraints =
        "SELECT string_agg(conrelid::regclass || ' ' || conname || ' ' || convalidated, ', ' ORDER BY conname)
        FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace";
    assert_eq!(pair.source_value(constraints).await, pair.target_value(constraints).await);
    assert_eq!(
        pair.target_value("SELECT max FROM of_totals").await,
        pair.source_value("SELECT max FROM of_totals").await
    );
    let analyzed = "SELECT count(*) FROM pg_class WHERE relname = 'item' AND reltuples = 1000";
    assert_eq!(pair.target_value(analyzed).await, "1");
    assert_nothing_on_the_source(&pair).await;

    over_and_over(&pair).await;
}

/// A migration that is done stays so, is shown so, and goes without a trace.
async fn over_and_over(pair: &Pair) {
    let (overall, detail) = status(pair).await;
    assert_eq!(overall, serde_json::json!({"error": "", "method": "pg_dump", "status": "done"}));
    assert_eq!((&detail["phase"], &detail["method"]), (&"done".into(), &"pg_dump".into()));
    assert_eq!(detail["method_reason"], "wal_level: replica, but logical is needed");
    assert_eq!(detail["objects_on_source"], serde_json::json!([]));
    let ended = pair.command("status").run().await;
    let since = detail["dumped_at"].as_str().unwrap();
    assert!(since.starts_with("20"), "{since}");
    ended.assert(
        0,
        &["pg_dump (wal_level: replica", "not followed", since, "NOT carried", "stop all writers"],
    );
    for arguments in [&[][..], &["--until", "synced"], &["--method", "pg_dump"]] {
        pair.command("migrate")
            .arguments(arguments)
            .run()
            .await
            .assert(7, &["done before", "NOT carried", since]);
    }
    // Aiven's keys are what they were.
    let plain = pair.command("status").arguments(&["--avn"]).run().await;
    let plain: Value = serde_json::from_str(&plain.stdout).unwrap();
    let detail =
        serde_json::json!({"dbname": "defaultdb", "error": "", "method": "pg_dump", "status": "done"});
    assert_eq!(plain["migration_detail"], serde_json::json!([detail]));
    let other = pair.command("migrate").arguments(&["--method", "replication"]).run().await;
    other.assert(2, &["was begun with method pg_dump"]);
    // The old cluster may be gone by then.
    let gone = pair.migrate().source("postgres://nobody@127.0.0.1:1/defaultdb").run().await;
    gone.assert(7, &["done before"]);
    pair.command("remove").run().await.assert(0, &["dropped migration \"default\""]);
    assert_eq!(pair.target_value("SELECT count(*) FROM pg_namespace WHERE nspname = 'walferry'").await, "0");
    pair.command("remove").run().await.assert(0, &["nothing to drop"]);
}

/// Interrupted, it begins with the rows anew; nothing can empty a table under it; rows too many or too few are never
/// called done; and what came later is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_moment_or_nothing() {
    let pair = Pair::with(without_logical).await;
    pair.owner().await.batch_execute(LARGE).await.unwrap();
    // What ends waiting sessions would end the snapshot.
    pair.source(
        "ALTER ROLE app_owner SET idle_in_transaction_session_timeout = '100ms';
         ALTER ROLE app_owner SET statement_timeout = '100ms'; ALTER ROLE app_owner SET lock_timeout = '1ms'",
    )
    .await;
    let migrate = pair.migrate().arguments(&["--jobs", "1"]);

    let mut engine = migrate.start();
    caught_copying(&mut engine).await;
    let owner = pair.owner().await;
    owner.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
    let emptied = owner.batch_execute("TRUNCATE small").await.unwrap_err();
    assert_eq!(emptied.code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    pair.target("INSERT INTO small VALUES (0)").await;
    engine.signal("CONT");
    let log = engine.wait_exit(5, super::harness::PATIENCE).await;
    assert!(log.contains("table public.small is not what it is on the source"), "{log}");
    assert!(log.contains("rows on the source: 100, copied: 100, on the target: 101"), "{log}");
    let (overall, _) = status(&pair).await;
    assert_eq!((&overall["status"], &overall["method"]), (&"failed".into(), &"pg_dump".into()));
    pair.command("remove").run().await.assert(5, &["not finished", "--force", "every table was copied"]);

    let mut engine = migrate.start();
    caught_copying(&mut engine).await;
    assert!(engine.log().contains("all tables are emptied and copied afresh"), "{}", engine.log());
    engine.kill9().await;

    let mut engine = migrate.start();
    caught_copying(&mut engine).await;
    engine.signal("TERM");
    engine.signal("CONT");
    let log = engine.wait_exit(0, super::harness::PATIENCE).await;
    assert!(log.contains("stopped before all rows were there"), "{log}");
    assert_eq!(status(&pair).await.0["status"], "waiting");

    let mut engine = migrate.start();
    caught_copying(&mut engine).await;
    let late = pair.owner().await;
    late.batch_execute("INSERT INTO small VALUES (-1)").await.unwrap();
    // The server counts it when the session ends.
    drop(late);
    let counted = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'small'";
    super::harness::wait_for("the late row is in the statistics", super::harness::PATIENCE, async || {
        pair.source_value(counted).await == "101"
    })
    .await;
    engine.signal("CONT");
    let log = engine.wait_exit(7, super::harness::PATIENCE).await;
    assert!(
        log.contains("changed on the source since about the snapshot") && log.contains("public.small"),
        "{log}"
    );
    let comparison = pair.compare().await;
    assert!(comparison.table("public.large").unwrap().equal(), "{comparison}");
    let small = comparison.table("public.small").unwrap();
    assert_eq!((small.only_source, small.only_target), (1, 0), "{comparison}");
}

/// Without the privilege to replicate on the source, and without one to switch triggers off on the target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_do_nothing_special() {
    // An older source, for once.
    let target = PgBinaries::find(None).await.unwrap();
    let source = PgBinaries::find_old(13, &target).await.unwrap();
    let pair = Pair::of(source, target, |options| options.triggers = TriggerControl::None).await;
    pair.owner().await.batch_execute(AWKWARD).await.unwrap();
    pair.source("ALTER ROLE app_owner NOREPLICATION").await;
    pair.command("migrate").arguments(&["--method", "replication"]).run().await.assert(3, &["app_owner"]);
    // What the target refuses among the last things, when triggers are there already, does not end the rest.
    pair.owner().await.batch_execute("CREATE TABLE astray (id int REFERENCES tree)").await.unwrap();
    pair.source("SET session_replication_role = replica; INSERT INTO astray VALUES (-1)").await;
    // What a statement mends is no reason to dump by itself.
    let hint = "or dump it instead of following it";
    pair.migrate()
        .run()
        .await
        .assert(3, &["may not open replication connections", hint, "--dump-db defaultdb"]);
    let migrate = pair.migrate().arguments(&["--dump-db", "defaultdb"]);
    let ended = migrate.run().await;
    let parts = ["method pg_dump", "made NOT VALID", "astray_id_fkey", "phase=done", "dumped, not followed"];
    ended.assert(0, &parts);
    let triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(pair.target_value(triggers).await, pair.source_value(triggers).await);
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}");
    assert_nothing_on_the_source(&pair).await;
    pair.command("remove").run().await.assert(0, &["dropped migration"]);
}

/// Nobody writes, so the lag is 0 from the beginning, and there is no time of a last change: neither means that the copy
/// is complete, nor that it has to be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_source_is_synced_when_all_is_copied() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute(LARGE).await.unwrap();
    owner.batch_execute("CREATE SEQUENCE counted; SELECT setval('counted', 4711)").await.unwrap();
    let mut engine = pair.migrate().arguments(&["--jobs", "1", "--until", "synced"]).start();
    caught_copying(&mut engine).await;
    engine.signal("CONT");
    if let Some((code, body)) = engine.get("/readyz").await {
        assert!(code == 503 || engine.log().contains("phase=syncing"), "{code} {body}");
    }
    engine.wait_exit(0, super::harness::PATIENCE).await;
    let comparison = pair.compare().await;
    assert!(comparison.equal() && comparison.rows_source() == 200_100, "{comparison}");
    let (overall, _) = status(&pair).await;
    assert_eq!((&overall["status"], &overall["method"]), (&"waiting".into(), &"replication".into()));
    pair.assert_removes().await;
}
