//! The end of a migration when one side is dead, or knows nothing.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use super::harness::{DATABASE, PATIENCE, Pair};

/// A connection string behind which nobody listens.
const DEAD: &str = "postgres://avnadmin@127.0.0.1:1/defaultdb";

const LEFT: &str = "SELECT (SELECT count(*) FROM pg_replication_slots) || ' slots, '
    || (SELECT count(*) FROM pg_publication) || ' publications'";

const SCHEMAS: &str = "SELECT count(*) FROM pg_namespace WHERE nspname = 'walferry'";

/// Empties the target's database, and moves the source's into it once more.
async fn moved(pair: &Pair, until: &str) {
    emptied(pair).await;
    pair.migrate().arguments(&["--until", until]).run().await.assert(0, &["table copied"]);
}

async fn emptied(pair: &Pair) {
    pair.target("DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS walferry CASCADE; CREATE SCHEMA public")
        .await;
    pair.target("ALTER SCHEMA public OWNER TO avnadmin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_side_dead() {
    let pair = Pair::start().await;
    pair.owner()
        .await
        .batch_execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)")
        .await
        .unwrap();
    let remove = |arguments: &[&str]| pair.command("remove").arguments(arguments);

    // Not finished: refused.
    moved(&pair, "copied").await;
    remove(&[]).run().await.assert(5, &["its phase is catching_up", "walferry remove --force"]);

    // The target is dead: it is said what is left, and how to drop it.
    let slot = pair.slot().await;
    let by_hand = format!("SELECT pg_drop_replication_slot('{slot}'); DROP PUBLICATION");
    let ended = remove(&[]).target(DEAD).run().await;
    ended.assert(5, &["the target cannot be reached", &by_hand, "walferry remove --force", "_ins"]);
    assert_eq!(pair.source_value(LEFT).await, "1 slots, 2 publications");

    // What a live engine uses stays.
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let ended = remove(&["--force"]).target(DEAD).run().await;
    ended.assert(5, &["a Walferry is at work in this database"]);
    engine.assert_lives("a removal that must not touch it");
    assert_eq!(pair.source_value(LEFT).await, "1 slots, 2 publications");
    engine.terminate(0).await;

    // Another migration's, whatever its name begins with, and another's slot stay as well.
    pair.source(
        "SELECT pg_create_logical_replication_slot(name, 'pgoutput') FROM unnest(
             ARRAY['walferry_default_2_00000000', 'walferry_defaul_00000000', 'walferry_default_00000000x']) name;
         CREATE PUBLICATION walferry_default_0000000g",
    )
    .await;
    let ended = remove(&["--force"]).target(DEAD).run().await;
    ended.assert(5, &["the source's side is removed", "the target could not be reached", &slot]);
    assert_eq!(pair.source_value(LEFT).await, "3 slots, 1 publications");
    remove(&[]).run().await.assert(0, &["dropped migration \"default\""]);
    assert_eq!(pair.target_value(SCHEMAS).await, "0");
    remove(&[]).run().await.assert(0, &["nothing to drop"]);
    pair.source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    pair.source("DROP PUBLICATION walferry_default_0000000g").await;

    forgotten_by_the_target(&pair).await;
    the_source_is_dead(&pair).await;
}

/// Its schema was dropped, or cannot be understood.
async fn forgotten_by_the_target(pair: &Pair) {
    let remove = |arguments: &[&str]| pair.command("remove").arguments(arguments);
    moved(pair, "synced").await;
    // An engine that runs does not begin afresh, nor does one that finds what another left.
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    emptied(pair).await;
    pair.source("INSERT INTO a VALUES (1)").await;
    pair.target(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'walferry%'",
    )
    .await;
    let log = engine.wait_exit(5, PATIENCE).await;
    assert!(log.contains("the target has lost what it knew of this migration"), "{log}");
    assert!(!log.contains("replication slot created"), "{log}");
    let words = ["source-leftovers", "replication slot walferry_default_", "pg_drop_replication_slot"];
    pair.command("check").run().await.assert(3, &words);
    let ended = pair.migrate().run().await;
    ended.assert(
        3,
        &["the target knows of none", "walferry remove --force --name default --database defaultdb"],
    );
    assert_eq!(pair.source_value(LEFT).await, "1 slots, 2 publications");
    let other = pair.command("check").arguments(&["--name", "other"]).run().await;
    other.assert(0, &[]);
    assert_eq!(pair.target_value(SCHEMAS).await, "0");
    remove(&[])
        .run()
        .await
        .assert(5, &["the target knows of no migration", "replication slot walferry_default_"]);
    remove(&["--name", "other", "--force"]).run().await.assert(0, &["nothing to drop"]);
    let other = remove(&["--database", "defaultdb,other", "--force"]).run().await;
    other.assert(5, &["no migration \"default\" has been begun on this target, in its database \"other\""]);
    assert_eq!(pair.source_value(LEFT).await, "1 slots, 2 publications");
    let named = remove(&["--database", "defaultdb", "--force"]).run().await;
    named.assert(0, &["dropped replication slot", "dropped publication"]);
    assert_eq!(pair.source_value(LEFT).await, "0 slots, 0 publications");

    moved(pair, "synced").await;
    pair.target("UPDATE walferry.migration SET format = 99").await;
    remove(&[]).run().await.assert(5, &["begun by another version", "walferry remove --force"]);
    remove(&["--force"]).run().await.assert(0, &["dropped replication slot", "dropped migration"]);
    assert_eq!(pair.source_value(LEFT).await, "0 slots, 0 publications");
    assert_eq!(pair.target_value(SCHEMAS).await, "0");
}

/// What a migration of a target that is gone leaves.
async fn left_behind(pair: &Pair) {
    pair.source("SELECT pg_create_logical_replication_slot('walferry_default_0123abcd', 'pgoutput')").await;
    pair.source("CREATE PUBLICATION walferry_default_0123abcd").await;
}

/// Runs it on a source that is fenced, as whoever reads it would.
async fn paste(pair: &Pair, text: &str) {
    let source = &pair.cluster.source;
    let shut = "ALTER DATABASE defaultdb SET default_transaction_read_only = on";
    source.sql("postgres", shut).await.unwrap();
    let mut psql = source.superuser_tool("psql", DATABASE);
    psql.args(["-X", "-v", "ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut psql = psql.stdout(Stdio::null()).spawn().unwrap();
    psql.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = psql.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    source.sql("postgres", "ALTER DATABASE defaultdb RESET default_transaction_read_only").await.unwrap();
}

async fn the_source_is_dead(pair: &Pair) {
    let remove = |arguments: &[&str]| pair.command("remove").arguments(arguments);
    moved(pair, "synced").await;
    remove(&[])
        .source(DEAD)
        .run()
        .await
        .assert(5, &["the source cannot be reached: nothing is dropped", "--force"]);
    assert_eq!(pair.target_value(SCHEMAS).await, "1");
    let neither =
        remove(&["--force"]).source(DEAD).target("postgres://nobody@127.0.0.1:2/defaultdb").run().await;
    neither.assert(5, &["neither side can be reached", "pg_drop_replication_slot(slot_name)", "NOT active"]);
    let ended = remove(&["--force"]).source(DEAD).run().await;
    ended.assert(5, &["the target's side is removed, the source could not be reached"]);
    assert_eq!(pair.target_value(SCHEMAS).await, "0");
    // The hint is what has to be run.
    let hint = ended.stderr.split("run there: ").nth(1).unwrap().trim();
    paste(pair, hint).await;
    assert_eq!(pair.source_value(LEFT).await, "0 slots, 0 publications");
    // So are those that find what was left by its name.
    left_behind(pair).await;
    let named = remove(&[]).run().await;
    named.assert(5, &["the target knows of no migration"]);
    paste(pair, named.stderr.split("by hand, on the source: ").nth(1).unwrap()).await;
    assert_eq!(pair.source_value(LEFT).await, "0 slots, 0 publications");
    left_behind(pair).await;
    paste(pair, neither.stderr.split("in each database: ").nth(1).unwrap()).await;
    assert_eq!(pair.source_value(LEFT).await, "0 slots, 0 publications");

    // A dump that was asked for leaves nothing there, so nobody has to be asked.
    emptied(pair).await;
    let dumped = pair.migrate().arguments(&["--method", "pg_dump"]).run().await;
    dumped.assert(0, &["asked for", "NOT carried", "phase=done"]);
    assert_eq!(pair.source_value(LEFT).await, "0 slots, 0 publications");
    remove(&[]).source(DEAD).run().await.assert(0, &["dropped migration"]);
    assert_eq!(pair.target_value(SCHEMAS).await, "0");
}
