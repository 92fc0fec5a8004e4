//! Owners of the source's tables write code that will run on the target: what they get by it.

use super::harness::{DATABASE, Launch, PATIENCE, Pair, wait_for};
use super::roles::{may_log_in, passwords};

/// Whether the owner of the source's databases may log in on the target, as its catalog has it.
const LOGIN: &str = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'app_owner'";

/// Takes the name of a sequence for a view while somebody who has looked the name up waits to read it: the owner's function
/// must not run as him.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_a_sequence_is_not_read_as_a_view() {
    let pair = Pair::start().await;
    pair.source(
        "CREATE ROLE mallory; GRANT mallory TO app_owner; CREATE SCHEMA m AUTHORIZATION mallory; SET ROLE mallory;
         CREATE TABLE m.t (a int PRIMARY KEY); CREATE SEQUENCE m.s;
         CREATE FUNCTION m.steal() RETURNS bigint LANGUAGE plpgsql AS
             'BEGIN CREATE TABLE m.stolen AS SELECT current_user; RETURN 1; END'",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let mallory = pair.cluster.source.client(DATABASE).await.unwrap();
    mallory
        .batch_execute(
            "SET ROLE mallory; BEGIN; ALTER SEQUENCE m.s RENAME TO was;
             CREATE VIEW m.s AS SELECT m.steal() AS last_value, true AS is_called, 0 AS log_cnt;
             GRANT SELECT ON m.s TO app_owner",
        )
        .await
        .unwrap();
    let cutover = tokio::spawn(pair.command("cutover").process().output());
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'm.was'::regclass";
    let looks = pair.cluster.source.client(DATABASE).await.unwrap();
    let waits = async || mallory.query_one(waits, &[]).await.unwrap().get::<_, bool>(0);
    wait_for("somebody to read the sequence", PATIENCE, waits).await;
    mallory.batch_execute("COMMIT").await.unwrap();
    let output = cutover.await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let stolen = "SELECT count(*) FROM pg_class WHERE relname = 'stolen'";
    assert_eq!(
        looks.query_one(stolen, &[]).await.unwrap().get::<_, i64>(0),
        0,
        "mallory's function ran as ours"
    );
    // Whoever owns what is read can only have it left out.
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
}

/// Two databases; the one that is begun first has the only role that is made.
async fn two_databases() -> (Pair, Launch, tempfile::TempDir) {
    let pair =
        Pair::with(|options| options.databases = ["defaultdb", "zoo"].map(str::to_owned).to_vec()).await;
    for name in [DATABASE, "zoo"] {
        let table = "SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)";
        pair.cluster.source.sql(name, table).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    let launch = pair.migrate().arguments(&["--passwords-file", file.to_str().unwrap()]);
    (pair, launch, directory)
}

/// Nobody whom the migration made gets in before its last database is done; and then everybody does, whenever the engine is
/// killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_is_shut_until_all_is_done() {
    let (pair, launch, directory) = two_databases().await;
    pair.source("CREATE ROLE nobody").await;
    let mut engine = launch.start();
    let sync = |detail: &serde_json::Value| detail["phase"] == "syncing";
    engine.wait_details("both sync", |all| all.len() == 2 && all.values().all(sync)).await;
    let password = passwords(&directory.path().join("passwords"))["app_owner"].clone();
    assert!(!may_log_in(&pair, "app_owner", &password).await, "the target is open while rows are applied");

    // One of both alone would be of no use to its application.
    let one = pair.command("cutover").arguments(&["--database", "zoo"]).run().await;
    one.assert(
        5,
        &[
            "only when all databases of the migration are done",
            "NOLOGIN until then: app_owner",
            "--open-target",
        ],
    );
    let given_up = pair.command("cutover").arguments(&["--timeout", "1ms"]).run().await;
    given_up.assert(5, &["it took longer"]);
    assert_eq!(pair.target_value(LOGIN).await, "f", "open though the source may be written to");

    // A kill between the end and their LOGIN: whoever holds a row of it keeps the engine from that.
    let recorded = "SELECT count(*) FROM walferry.role WHERE shut";
    let mut holders = Vec::new();
    for name in [DATABASE, "zoo"] {
        let holder = pair.cluster.target.client(name).await.unwrap();
        holder.batch_execute("BEGIN; LOCK TABLE walferry.role IN EXCLUSIVE MODE").await.unwrap();
        holders.push(holder);
    }
    let cutover = tokio::spawn(pair.command("cutover").process().output());
    for name in [DATABASE, "zoo"] {
        let phase = "SELECT phase = 'done' FROM walferry.migration";
        let done = async || pair.cluster.target.sql(name, phase).await.unwrap()[0][0].as_deref() == Some("t");
        wait_for("done", PATIENCE, done).await;
    }
    engine.kill9().await;
    drop(holders);
    assert_eq!(pair.target_value(LOGIN).await, "f");
    launch.run().await.assert(0, &["the target is open", "app_owner"]);
    assert!(may_log_in(&pair, "app_owner", &password).await);
    assert_eq!(pair.target_value("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'nobody'").await, "f");
    // The command has waited for that.
    let output = cutover.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("NOLOGIN"), "{said}");
    assert_eq!(pair.target_value(recorded).await, "0");
}

/// Who wants it open has it open from then on. What is given up stays shut, and that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_is_opened_on_request() {
    let (pair, launch, _directory) = two_databases().await;
    let launch = launch.arguments(&["--until", "synced"]);
    launch.run().await.assert(0, &["made NOLOGIN", "app_owner"]);
    assert_eq!(pair.target_value(LOGIN).await, "f");
    launch.arguments(&["--open-target"]).run().await.assert(0, &["the target is open"]);
    assert_eq!(pair.target_value(LOGIN).await, "t");

    pair.target("ALTER ROLE app_owner NOLOGIN").await;
    for name in [DATABASE, "zoo"] {
        pair.cluster.target.sql(name, "UPDATE walferry.role SET shut = true").await.unwrap();
    }
    let given_up = pair.command("remove").run().await;
    given_up.assert(0, &["left NOLOGIN on the target", r#"ALTER ROLE "app_owner" LOGIN;"#]);
    assert_eq!(pair.target_value(LOGIN).await, "f");
}
