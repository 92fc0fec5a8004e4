//! What the stream does not bring: tables without replica identity, unlogged ones, large objects, materialised views,
//! tables of extensions. A cutover brings them up to date, whatever befell the one before it.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Child;
use tokio::time::sleep;

use super::harness::{DATABASE, Engine, PATIENCE, POLL, Pair, wait_for};
use super::versions::asked_pairs;

/// Nothing keeps the source from being written to: what is written in the next two seconds ends the cutover.
const UNFENCED: [&str; 4] = ["--fence", "none", "--timeout", "30s"];

async fn started(pair: &Pair, arguments: &[&str]) -> Engine {
    let mut engine = pair.migrate().arguments(arguments).start();
    engine.wait_phase("syncing").await;
    engine
}

/// A cutover that is asked for; the command runs on.
fn asked(pair: &Pair, arguments: &[&str]) -> Child {
    let mut process = pair.command("cutover").arguments(arguments).arguments(&["--json"]).process();
    process.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
}

/// How it ended, as its only database's answer; the exit code has to be this one.
async fn answered(command: Child, code: i32) -> Value {
    let output = command.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{stderr}", String::from_utf8_lossy(&output.stdout));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one object");
    answer["databases"][0].clone()
}

/// Cuts over: the engine ends with it.
async fn cuts_over(pair: &Pair, engine: &mut Engine, arguments: &[&str]) -> Value {
    let answer = answered(asked(pair, arguments), 0).await;
    assert_eq!(answer["state"], "done", "{answer:#}");
    engine.wait_exit(0, PATIENCE).await;
    answer
}

/// A cutover that has brought everything up to date, and is given up then: while nobody should write, somebody does,
/// after `meanwhile`.
async fn given_up_at_the_end(pair: &Pair, write: &str, meanwhile: impl AsyncFnOnce()) {
    let owner = pair.owner().await;
    let mut command = asked(pair, &UNFENCED);
    let carried = "SELECT EXISTS (SELECT FROM walferry.request
                   WHERE answered_at IS NULL AND answer -> 'steps' @> '[{\"step\": \"carry\"}]')";
    // One that ends before that says why.
    while pair.target_value(carried).await != "t" && command.try_wait().unwrap().is_none() {
        sleep(POLL).await;
    }
    meanwhile().await;
    owner.batch_execute(write).await.unwrap();
    let answer = answered(command, 5).await;
    assert_eq!(answer["state"], "given_up", "{answer:#}");
    assert_eq!(answer["error"]["cause"], "somebody writes to the source after the fence", "{answer:#}");
}

async fn assert_same(pair: &Pair, question: &str) {
    let (source, target) = (pair.source(question).await, pair.target(question).await);
    let differs = source.iter().zip(&target).find(|(source, target)| source != target);
    assert_eq!((source.len(), differs), (target.len(), None), "{question}");
}

async fn assert_tables_equal(pair: &Pair) {
    let comparison = pair.compare().await;
    assert!(comparison.tables_equal(), "{comparison}");
}

const TABLES: &str = "
    CREATE TABLE followed (id int PRIMARY KEY, body text); INSERT INTO followed SELECT g, 'x' FROM generate_series(1, 100) g;
    CREATE TABLE keyless (a int, body text); INSERT INTO keyless SELECT g, 'x' FROM generate_series(1, 1000) g;
    CREATE TABLE referenced (a int UNIQUE); INSERT INTO referenced SELECT generate_series(1, 10);
    CREATE TABLE referring (id int PRIMARY KEY, a int REFERENCES referenced (a)); INSERT INTO referring VALUES (1, 1);
    CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE);
    INSERT INTO deferred SELECT generate_series(1, 10);
    CREATE TABLE nothing (a int PRIMARY KEY, b int, EXCLUDE USING btree (b WITH =));
    ALTER TABLE nothing REPLICA IDENTITY NOTHING; INSERT INTO nothing SELECT g, g FROM generate_series(1, 10) g;
    CREATE TABLE parted (a int, b int) PARTITION BY LIST (a);
    CREATE TABLE part_1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE part_2 PARTITION OF parted FOR VALUES IN (0);
    ALTER TABLE part_2 ADD PRIMARY KEY (b);
    INSERT INTO parted SELECT g % 2, g FROM generate_series(1, 10) g;
    CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY); INSERT INTO unlogged SELECT generate_series(1, 100);
    CREATE MATERIALIZED VIEW z_first AS SELECT count(*) FROM keyless;
    CREATE VIEW between_them AS SELECT * FROM z_first;
    CREATE MATERIALIZED VIEW a_last AS SELECT count * 2 AS twice FROM between_them;
    CREATE MATERIALIZED VIEW never AS SELECT * FROM a_last WITH NO DATA";

const CHANGES: &str = "
    UPDATE keyless SET body = 'y' WHERE a % 3 = 0; DELETE FROM keyless WHERE a % 5 = 0; INSERT INTO keyless VALUES (7, 'x'), (7, 'x');
    DELETE FROM referenced WHERE a > 5; INSERT INTO referenced VALUES (11), (NULL), (NULL);
    INSERT INTO referring VALUES (2, 11); UPDATE referring SET a = 11 WHERE id = 1;
    UPDATE deferred SET a = a + 1; DELETE FROM parted WHERE b = 3; UPDATE parted SET b = 50 WHERE b = 5;
    DELETE FROM unlogged WHERE a > 50; INSERT INTO unlogged VALUES (1000); UPDATE followed SET body = 'y' WHERE id = 1";

/// What the target still has is in the way of what comes anew.
const SAME_AGAIN: &str = "
    DELETE FROM referenced WHERE a = 5; INSERT INTO referenced VALUES (5), (13);
    DELETE FROM deferred WHERE a = 4; INSERT INTO deferred VALUES (4);
    UPDATE nothing SET a = a + 100 WHERE a < 3; INSERT INTO nothing VALUES (1, 101), (2, 102), (20, 20);
    DELETE FROM nothing WHERE a = 6; INSERT INTO nothing VALUES (21, 6); INSERT INTO followed VALUES (101, 'behind them')";

const MORE_CHANGES: &str = "
    DELETE FROM keyless WHERE a = 7; DELETE FROM unlogged WHERE a > 40; UPDATE deferred SET a = a + 1;
    INSERT INTO keyless SELECT g, 'more' FROM generate_series(1, 50) g; UPDATE parted SET b = 60 WHERE b = 7";

const CHANGES_AGAIN: &str = "
    UPDATE keyless SET body = 'again' WHERE a < 20; DELETE FROM unlogged WHERE a > 30; INSERT INTO part_1 VALUES (1, 99)";

const LAST_CHANGES: &str = "
    UPDATE keyless SET body = 'last' WHERE a < 10; INSERT INTO keyless SELECT g, 'last' FROM generate_series(1, 50) g;
    INSERT INTO referenced VALUES (12); INSERT INTO referring VALUES (3, 12); DELETE FROM unlogged WHERE a > 20;
    REFRESH MATERIALIZED VIEW z_first; REFRESH MATERIALIZED VIEW a_last";

const VIEWS: &str = "SELECT 1, count FROM z_first UNION ALL SELECT 2, twice FROM a_last ORDER BY 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_views() {
    for (source, target) in asked_pairs().await {
        moved_without_the_stream(Pair::of(source, target, |_| {}).await).await;
    }
}

const COPYING: &str =
    "SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM walferry.relation WHERE state = 'copying'";

async fn moved_without_the_stream(pair: Pair) {
    let owner = pair.owner().await;
    owner.batch_execute(TABLES).await.unwrap();
    let mut engine = started(&pair, &[]).await;
    assert_tables_equal(&pair).await;
    assert_same(&pair, VIEWS).await;
    let filled = "SELECT matviewname, ispopulated FROM pg_matviews ORDER BY 1";
    assert_same(&pair, filled).await;
    owner.batch_execute(CHANGES).await.unwrap();
    engine.wait_drained(&pair).await;
    assert!(!pair.compare().await.tables_equal(), "what is missed has to be missed first");

    owner.batch_execute(SAME_AGAIN).await.unwrap();
    engine.wait_drained(&pair).await;
    let came = "SELECT count(*) FROM (SELECT a FROM referenced WHERE a = 13 UNION ALL SELECT a FROM nothing WHERE a = 20
                UNION ALL SELECT id FROM followed WHERE id = 101) came";
    assert_eq!(pair.target_value(came).await, "3", "what fits is there");
    assert_eq!(pair.target_value("SELECT count(*) FROM walferry.conflict").await, "0");
    for table in ["public.referenced", "public.nothing"] {
        let told = |line: &&str| line.contains("are left out until") && line.contains(table);
        assert_eq!(engine.log().lines().filter(told).count(), 1, "{table}: {}", engine.log());
    }

    // Given up afterwards: whoever writes had to wait, so the stream goes on with what was copied.
    given_up_at_the_end(&pair, "INSERT INTO keyless VALUES (8, 'late')", async || {
        assert_eq!(pair.target_value(COPYING).await, "deferred keyless nothing part_1 referenced");
    })
    .await;
    assert_eq!(pair.target_value(COPYING).await, "");
    let settled =
        async || pair.target("SELECT FROM walferry.relation WHERE state <> 'copied'").await.is_empty();
    engine.wait_until("it follows again", |detail| detail["phase"] == "syncing").await;
    pair.assert_follows(&mut engine).await;
    assert!(!engine.log().contains("copying tables while the others are followed"), "{}", engine.log());

    // Given up in the middle. Nothing of it stays on the target.
    owner.batch_execute(MORE_CHANGES).await.unwrap();
    let reader = pair.cluster.target.client(DATABASE).await.unwrap();
    reader.batch_execute("BEGIN; SELECT FROM z_first").await.unwrap();
    let answer = answered(asked(&pair, &["--fence", "none", "--timeout", "3s"]), 5).await;
    assert_eq!(answer["error"]["cause"], "it took longer than 3 s", "{answer:#}");
    assert_eq!(answer["error"]["detail"], "it waited for what replication does not carry", "{answer:#}");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'REFRESH%' AND state = 'active'";
    wait_for("nothing that goes on", PATIENCE, async || pair.target_value(waiting).await == "0").await;
    wait_for("tables copied afresh", PATIENCE, settled).await;
    engine.wait_until("it follows again", |detail| detail["phase"] == "syncing").await;
    engine.wait_drained(&pair).await;
    let keyless = pair.compare().await;
    assert!(keyless.table("public.keyless").unwrap().equal(), "{keyless}");

    // Killed in the middle.
    owner.batch_execute(CHANGES_AGAIN).await.unwrap();
    let command = asked(&pair, &UNFENCED);
    wait_for("a view that waits", PATIENCE, async || pair.target_value(waiting).await == "1").await;
    engine.kill9().await;
    assert_eq!(pair.target_value(COPYING).await, "deferred keyless nothing part_1 referenced");
    reader.batch_execute("ROLLBACK").await.unwrap();
    drop((command, reader));
    let mut engine = started(&pair, &[]).await;
    assert_eq!(pair.target_value(COPYING).await, "");

    // Changes are under way when it begins: what is in a copy must not come again, what comes after it must.
    owner.batch_execute(LAST_CHANGES).await.unwrap();
    drop(owner);
    let answer = cuts_over(&pair, &mut engine, &[]).await;
    assert_eq!(answer["warnings"], serde_json::json!([]));
    assert_tables_equal(&pair).await;
    assert_same(&pair, VIEWS).await;
    assert_same(&pair, filled).await;
    assert_eq!(engine.log().matches("view=public.z_first").count(), 1, "{}", engine.log());
    pair.assert_removes().await;
}

/// What is copied again needs a slot: without one it is refused, and one that is gone by then ends it at no loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_free_slot() {
    let pair = Pair::with(|options| {
        options.source_options = options.source_options.clone().setting("max_replication_slots", "2");
    })
    .await;
    let owner = pair.owner().await;
    let tables = "CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1); CREATE TABLE keyed (a int PRIMARY KEY)";
    owner.batch_execute(tables).await.unwrap();
    let mut engine = started(&pair, &[]).await;
    owner.batch_execute("UPDATE keyless SET a = 2").await.unwrap();
    let take = "SELECT pg_create_physical_replication_slot('taken')";
    let drop_it = "SELECT pg_drop_replication_slot('taken')";
    let no_slot = "the source has no free replication slot";

    pair.source(take).await;
    let answer = answered(asked(&pair, &UNFENCED), 5).await;
    assert_eq!((&answer["state"], &answer["error"]["cause"]), (&"refused".into(), &no_slot.into()));
    assert!(answer["error"]["detail"].as_str().unwrap().contains("public.keyless"), "{answer:#}");
    pair.source(drop_it).await;

    let blocked = pair.cluster.target.client(DATABASE).await.unwrap();
    blocked.batch_execute("BEGIN; LOCK TABLE keyed").await.unwrap();
    owner.batch_execute("INSERT INTO keyed VALUES (1)").await.unwrap();
    let command = asked(&pair, &UNFENCED);
    let fenced = "SELECT EXISTS (SELECT FROM walferry.request
                  WHERE answered_at IS NULL AND answer -> 'steps' @> '[{\"step\": \"fence\"}]')";
    wait_for("the fence", PATIENCE, async || pair.target_value(fenced).await == "t").await;
    pair.source(take).await;
    drop(blocked);
    let answer = answered(command, 5).await;
    assert_eq!((&answer["state"], &answer["error"]["cause"]), (&"given_up".into(), &no_slot.into()));
    assert_eq!(pair.target_value(COPYING).await, "");
    owner.batch_execute("INSERT INTO keyed VALUES (2)").await.unwrap();
    engine.wait_drained(&pair).await;
    assert!(!engine.log().contains("trying again"), "{}", engine.log());

    pair.source(drop_it).await;
    cuts_over(&pair, &mut engine, &UNFENCED).await;
    assert_tables_equal(&pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_replica_identity_for_the_time_being() {
    for (source, target) in asked_pairs().await {
        identities_for_the_time_being(Pair::of(source, target, |_| {}).await).await;
    }
}

async fn identities_for_the_time_being(pair: Pair) {
    let owner = pair.owner().await;
    let tables = "
        CREATE TABLE keyless (a int, j json, t text); INSERT INTO keyless SELECT g, '[1]', 'x' FROM generate_series(1, 100) g;
        CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING; INSERT INTO nothing VALUES (1), (2);
        CREATE TABLE \"Full\" (a int); ALTER TABLE \"Full\" REPLICA IDENTITY FULL; CREATE TABLE keyed (a int PRIMARY KEY);
        CREATE TABLE parted (a int) PARTITION BY LIST (a); CREATE TABLE part PARTITION OF parted FOR VALUES IN (1, 2, 3)";
    owner.batch_execute(tables).await.unwrap();
    let identities = "SELECT relname, relreplident FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1";
    let before = pair.source(identities).await;
    // A long report does not keep others from the table.
    let reader = pair.owner().await;
    reader.batch_execute("BEGIN; SELECT FROM keyless").await.unwrap();
    let mut engine = pair.migrate().arguments(&["--replica-identity-full"]).start();
    let waits = async || engine.log().contains("in use on the source");
    wait_for("a change of the identity that waits", PATIENCE, waits).await;
    owner.batch_execute("INSERT INTO keyless VALUES (0, NULL, NULL)").await.unwrap();
    reader.batch_execute("COMMIT").await.unwrap();
    engine.wait_phase("syncing").await;
    let changes = "
        UPDATE keyless SET t = 'y' WHERE a % 2 = 0; DELETE FROM keyless WHERE a % 7 = 0; DELETE FROM nothing WHERE a = 1;
        INSERT INTO parted VALUES (1), (2); UPDATE part SET a = 3 WHERE a = 1; DELETE FROM parted WHERE a = 2";
    owner.batch_execute(changes).await.unwrap();
    pair.assert_follows(&mut engine).await;
    let status = pair.command("status").run().await;
    status.assert(
        0,
        &["REPLICA IDENTITY FULL of table public.keyless", "FULL of table public.nothing", "public.part"],
    );
    assert!(!status.stdout.contains("\"Full\"") && !status.stdout.contains("keyed"), "{}", status.stdout);
    // Nothing has to be copied again.
    let answer = cuts_over(&pair, &mut engine, &UNFENCED).await;
    assert_eq!(answer["warnings"], serde_json::json!([]));
    assert!(!engine.log().contains("copying tables again"), "{}", engine.log());
    assert_tables_equal(&pair).await;
    // What somebody else did to it since is his.
    owner.batch_execute("ALTER TABLE part REPLICA IDENTITY NOTHING").await.unwrap();
    pair.assert_removes().await;
    let mut expected = before;
    expected
        .iter_mut()
        .filter(|row| row[0].as_deref() == Some("part"))
        .for_each(|row| row[1] = Some("n".to_owned()));
    assert_eq!(pair.source(identities).await, expected);
}

/// Every large object of a side, whose each is, and who may do what with it.
const LARGE_OBJECTS: &str = "
    SELECT m.oid, length(lo_get(m.oid)), md5(lo_get(m.oid)), CASE pg_get_userbyid(m.lomowner)
               WHEN 'app_owner' THEN 'us' WHEN 'avnadmin' THEN 'us' ELSE pg_get_userbyid(m.lomowner) END,
           ARRAY(SELECT CASE a.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(a.grantee) END || a.privilege_type || a.is_grantable
                 FROM aclexplode(m.lomacl) a WHERE a.grantee <> m.lomowner AND pg_get_userbyid(a.grantee) <> 'elsewhere' ORDER BY 1)
    FROM pg_largeobject_metadata m ORDER BY 1";

const FEW: &str = "
    SELECT lo_from_bytea(1000, ''), lo_from_bytea(1001, 'x'), lo_from_bytea(4294967295, 'the last');
    SELECT lo_from_bytea(1100 + n, convert_to(repeat('a', 65535 + n), 'UTF8')) FROM generate_series(0, 2) n;
    SELECT lo_from_bytea(1200, convert_to(repeat(md5('1'), 100000), 'UTF8')); SELECT lo_put(1200, 5000000, 'after a hole');
    SELECT lo_from_bytea(1201, convert_to(repeat(md5('2'), 100000), 'UTF8')), lo_from_bytea(1202, convert_to(repeat('b', 2000000), 'UTF8'));
    SELECT lo_from_bytea(1300 + n, 'rights') FROM generate_series(0, 4) n;
    ALTER LARGE OBJECT 1300 OWNER TO team; GRANT SELECT ON LARGE OBJECT 1301 TO PUBLIC;
    GRANT SELECT, UPDATE ON LARGE OBJECT 1302 TO team WITH GRANT OPTION; GRANT SELECT ON LARGE OBJECT 1303 TO elsewhere";

const FEW_CHANGES: &str = "
    SELECT lo_put(1000, 0, 'longer'), lo_put(1001, 0, 'y'), lo_put(1200, 2500000, 'in the middle'), lo_unlink(1202), lo_unlink(1101);
    SELECT lo_truncate64(lo_open(1201, 131072), 1500000), lo_truncate64(lo_open(1102, 131072), 0), lo_from_bytea(1400, 'new');
    ALTER LARGE OBJECT 1301 OWNER TO team; REVOKE ALL ON LARGE OBJECT 1301 FROM PUBLIC;
    REVOKE UPDATE ON LARGE OBJECT 1302 FROM team; GRANT UPDATE ON LARGE OBJECT 1304 TO PUBLIC";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects() {
    for (source, target) in asked_pairs().await {
        large_objects_of(Pair::of(source, target, |_| {}).await).await;
    }
}

async fn large_objects_of(pair: Pair) {
    pair.source("CREATE ROLE team; CREATE ROLE elsewhere; GRANT team TO app_owner").await;
    pair.target("CREATE ROLE team; GRANT team TO avnadmin").await;
    let owner = pair.owner().await;
    owner
        .batch_execute(
            "CREATE TABLE t (a int PRIMARY KEY, o oid); INSERT INTO t VALUES (1, 1000);
             CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1), (2)",
        )
        .await
        .unwrap();
    owner.batch_execute(FEW).await.unwrap();
    let many = "SELECT lo_from_bytea(20000 + n, convert_to(repeat(md5(n::text), n), 'UTF8')) FROM generate_series(1, 1500) n";
    owner.batch_execute(many).await.unwrap();
    // Not ours: the migration leaves it alone.
    pair.target("SELECT lo_from_bytea(777, 'of the target')").await;

    // Killed in the middle, wherever that is.
    let ignoring = ["--ignore-keyless", "--ignore-roles", "elsewhere"];
    let engine = pair.migrate().arguments(&ignoring).start();
    let some =
        async || pair.target("SELECT FROM pg_largeobject_metadata OFFSET 300 LIMIT 1").await.len() == 1;
    wait_for("some large objects", PATIENCE, some).await;
    engine.kill9().await;
    let there = pair.target_value("SELECT count(*) FROM walferry.large_object").await;
    eprintln!("killed with {there} large objects on the target");
    let mut engine = started(&pair, &ignoring).await;
    let own = "SELECT lo_unlink(777)";
    assert_eq!(pair.target_value("SELECT lo_get(777)::text").await, "\\x6f662074686520746172676574");
    pair.target(own).await;
    assert_same(&pair, LARGE_OBJECTS).await;
    assert!(engine.log().contains("role=elsewhere"), "{}", engine.log());

    owner.batch_execute(FEW_CHANGES).await.unwrap();
    owner.batch_execute("SELECT lo_unlink(20000 + n) FROM generate_series(2, 1500, 2) n").await.unwrap();
    // Nothing that the stream takes part in was copied: it goes on.
    given_up_at_the_end(&pair, "INSERT INTO t VALUES (2)", async || {}).await;
    assert_same(&pair, LARGE_OBJECTS).await;
    // By now their owners have got their own objects.
    assert_same(&pair, "SELECT oid, pg_get_userbyid(lomowner) FROM pg_largeobject_metadata ORDER BY 1").await;
    assert!(!engine.log().contains("copied afresh"), "{}", engine.log());
    // All gone, but for one that is not ours; and a table without identity, which was left out.
    owner
        .batch_execute(
            "SELECT lo_unlink(oid) FROM pg_largeobject_metadata; UPDATE keyless SET a = 3 WHERE a = 2;
             INSERT INTO keyless VALUES (4)",
        )
        .await
        .unwrap();
    pair.target("SELECT lo_from_bytea(777, 'of the target')").await;
    let answer = cuts_over(&pair, &mut engine, &UNFENCED).await;
    let missing = "tables whose updates and deletes are missing on the target: public.keyless";
    assert_eq!(answer["warnings"], serde_json::json!([missing]));
    assert_eq!(pair.target("SELECT oid FROM pg_largeobject_metadata").await, [[Some("777".to_owned())]]);
    let rows = "SELECT string_agg(a::text, ' ' ORDER BY a) FROM keyless";
    assert_eq!(
        (pair.source_value(rows).await, pair.target_value(rows).await),
        ("1 3 4".into(), "1 2 4".into())
    );

    // One that may not be read, and one that is in the way.
    pair.source("SELECT lo_from_bytea(3000, 'secret')").await;
    pair.assert_removes().await;
    let check = pair.command("check").run().await;
    check.assert(3, &["source-large-objects", "may not read 1 large object"]);
    pair.source("SELECT lo_unlink(3000)").await;
    owner.batch_execute("SELECT lo_from_bytea(777, 'of the source')").await.unwrap();
    pair.target("DROP TABLE t, keyless").await;
    let ended = pair.migrate().run().await;
    ended.assert(5, &["large object 777 of the target is in the way"]);
    assert_eq!(ended.statements(), ["SELECT lo_unlink(777);"]);
    pair.target(&ended.statements()[0]).await;
    pair.migrate().arguments(&["--until", "synced"]).run().await.assert(0, &["streaming"]);
}

/// The copy is interrupted when it has a table without key, whose rows and those that they refer to go before the next one:
/// the stream does not say that they went.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_without_key_after_an_interrupted_copy() {
    let pair = Pair::start().await;
    pair.owner()
        .await
        .batch_execute(
            "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE big (id int PRIMARY KEY, t text);
             CREATE TABLE child (parent int CONSTRAINT child_fkey REFERENCES parent);
             INSERT INTO parent SELECT generate_series(1, 100); INSERT INTO child SELECT generate_series(1, 100);
             INSERT INTO big SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g",
        )
        .await
        .unwrap();
    let engine = pair.migrate().arguments(&["--jobs", "2"]).start();
    let row = "SELECT FROM walferry.relation WHERE table_name = 'big'";
    let target = pair.cluster.target.client(DATABASE).await.unwrap();
    let is_there = async || {
        let known = "SELECT to_regclass('walferry.relation') IS NOT NULL";
        pair.target_value(known).await == "t" && !pair.target(row).await.is_empty()
    };
    wait_for("the tables are known", PATIENCE, is_there).await;
    // Its copy does not end.
    target.batch_execute(&format!("BEGIN; {row} FOR UPDATE")).await.unwrap();
    let copied =
        "SELECT count(*) FROM walferry.relation WHERE state = 'copied' AND table_name IN ('child', 'parent')";
    wait_for("the others are copied", PATIENCE, async || pair.target_value(copied).await == "2").await;
    engine.kill9().await;
    drop(target);
    pair.source("DELETE FROM child WHERE parent < 50; DELETE FROM parent WHERE id < 50").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_cuts_over(engine).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM child").await, "51");
    let key = "SELECT convalidated FROM pg_constraint WHERE conname = 'child_fkey'";
    assert_eq!(pair.target_value(key).await, "t");
}

/// Extensions among the server's files, until this is dropped.
struct Extensions(Vec<PathBuf>);

impl Extensions {
    /// Each with tables for its users' rows; `None` where the server's files cannot be written.
    async fn install(pair: &Pair, names: &[&str]) -> Option<Self> {
        let directory = pair.source_value("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'").await;
        let directory = PathBuf::from(directory).join("extension");
        let mut installed = Self(Vec::new());
        for name in names {
            let control = "default_version = '1.0'\nsuperuser = false\nrelocatable = false\n".to_owned();
            let script = EXTENSION.replace("NAME", name);
            for (file, text) in [(format!("{name}.control"), control), (format!("{name}--1.0.sql"), script)] {
                let file = directory.join(file);
                std::fs::write(&file, text).ok()?;
                installed.0.push(file);
            }
        }
        Some(installed)
    }
}

impl Drop for Extensions {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = std::fs::remove_file(file);
        }
    }
}

const EXTENSION: &str = "
    CREATE TABLE NAME_settings (id int PRIMARY KEY, body text, own bool NOT NULL DEFAULT false);
    INSERT INTO NAME_settings VALUES (1, 'own', true), (2, 'own', true);
    SELECT pg_extension_config_dump('NAME_settings', 'WHERE NOT own');
    CREATE TABLE NAME_jobs (id int PRIMARY KEY, body text); SELECT pg_extension_config_dump('NAME_jobs', '');
    CREATE TABLE NAME_internal (id int); INSERT INTO NAME_internal VALUES (1);
    CREATE TYPE NAME_mood AS ENUM ('sad', 'ok');";

const OURS: &str = "SELECT id, body, own FROM walferry_ours_settings UNION ALL SELECT id + 1000, body, NULL FROM walferry_ours_jobs
    UNION ALL SELECT id + 2000, NULL, NULL FROM walferry_ours_internal ORDER BY 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_extensions() {
    let pair = Pair::start().await;
    let Some(_installed) = Extensions::install(&pair, &["walferry_ours", "walferry_theirs"]).await else {
        eprintln!("skipped: no extension can be put among the server's files");
        return;
    };
    let owner = pair.owner().await;
    let made = "
        CREATE EXTENSION walferry_ours; CREATE EXTENSION walferry_theirs; CREATE EXTENSION citext;
        INSERT INTO walferry_ours_settings VALUES (10, 'ours'), (11, 'ours'); INSERT INTO walferry_ours_jobs VALUES (1, 'a'), (2, 'b');
        CREATE TABLE moods (id int PRIMARY KEY, m walferry_ours_mood); INSERT INTO moods VALUES (1, 'ok')";
    owner.batch_execute(made).await.unwrap();
    pair.target("CREATE EXTENSION walferry_theirs").await;
    let check =
        pair.command("check").arguments(&["--excluded-extensions", "walferry_ours,citext"]).run().await;
    check.assert(3, &["citext, walferry_ours: left out, but needed by: column m of table public.moods\n"]);
    let without_citext = ["--excluded-extensions", "citext"];
    let check = pair.command("check").arguments(&without_citext).run().await;
    check.assert(0, &["target-extension-tables", "public.walferry_theirs_jobs"]);
    assert!(!check.stdout.contains("source-excluded-extensions"), "{}", check.stdout);

    let mut engine = started(&pair, &without_citext).await;
    assert_same(&pair, OURS).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM pg_extension WHERE extname = 'citext'").await, "0");
    let changes = "
        INSERT INTO walferry_ours_jobs VALUES (3, 'c'); UPDATE walferry_ours_jobs SET body = 'x' WHERE id = 1;
        DELETE FROM walferry_ours_jobs WHERE id = 2; DELETE FROM walferry_ours_settings WHERE id = 11;
        UPDATE walferry_ours_settings SET body = 'new' WHERE id = 10; INSERT INTO walferry_ours_settings VALUES (12, 'new')";
    owner.batch_execute(changes).await.unwrap();
    engine.wait_drained(&pair).await;
    let jobs = "SELECT * FROM walferry_ours_jobs ORDER BY id";
    assert_same(&pair, jobs).await;
    given_up_at_the_end(&pair, "INSERT INTO moods VALUES (2, 'sad')", async || {}).await;
    assert_same(&pair, OURS).await;

    // What cannot be written there is said as soon as it has to be.
    owner.batch_execute("INSERT INTO walferry_theirs_settings VALUES (10, 'ours')").await.unwrap();
    let refused = answered(asked(&pair, &UNFENCED), 5).await["error"]["hint"].as_str().unwrap().to_owned();
    assert!(refused.contains("walferry_theirs_settings") && refused.contains("--no-replicate"), "{refused}");
    let grant = refused.lines().find(|line| line.ends_with(';')).unwrap();
    pair.target(grant).await;
    let given = "SELECT has_table_privilege('avnadmin', 'walferry_theirs_settings', 'INSERT')";
    assert_eq!(pair.target_value(given).await, "t");
    engine.terminate(0).await;
    let without = ["--excluded-extensions", "citext", "--no-replicate-extension-tables"];
    let mut engine = started(&pair, &without).await;
    cuts_over(&pair, &mut engine, &UNFENCED).await;
    assert_same(&pair, OURS).await;
    pair.assert_removes().await;

    pair.target("DROP TABLE moods; DROP EXTENSION walferry_ours").await;
    let migrate = pair.migrate().arguments(&["--until", "synced", "--no-replicate-extension-tables"]);
    migrate.run().await.assert(0, &[]);
    assert_eq!(
        pair.target_value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM walferry_ours_settings").await,
        "1 2"
    );
    assert_eq!(pair.target_value("SELECT count(*) FROM walferry_ours_jobs").await, "0");
}

const JOBS: &str = "SELECT coalesce(string_agg(id::text || body, ' ' ORDER BY id), '') FROM pgagent_jobs";

/// Jobs come last: none is on the target before the cutover is done, nor after one that is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_act_by_themselves() {
    let pair = Pair::start().await;
    let there = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pgagent'";
    let taken = pair.source_value(there).await != "0";
    // It is known by its name.
    let installed = if taken { None } else { Extensions::install(&pair, &["pgagent"]).await };
    let Some(_installed) = installed else {
        eprintln!("skipped: no extension can be put among the server's files");
        return;
    };
    let owner = pair.owner().await;
    let made = "CREATE EXTENSION pgagent; INSERT INTO pgagent_jobs VALUES (1, 'a'), (2, 'b');
                ALTER TABLE pgagent_settings ADD job int REFERENCES pgagent_jobs; INSERT INTO pgagent_settings VALUES (10, 'ours', false, 1);
                CREATE TABLE t (a int PRIMARY KEY)";
    owner.batch_execute(made).await.unwrap();
    let mut engine = started(&pair, &[]).await;
    pair.target("ALTER TABLE pgagent_settings ADD job int REFERENCES pgagent_jobs").await;
    assert_eq!(pair.target_value(JOBS).await, "");
    pair.target("INSERT INTO pgagent_jobs VALUES (99, 'own')").await;
    given_up_at_the_end(&pair, "INSERT INTO t VALUES (1)", async || {
        assert_eq!(pair.target_value(JOBS).await, "99own", "a job before the proof");
    })
    .await;
    assert_eq!(pair.target_value(JOBS).await, "99own");

    // Killed when they have come, and nobody knows that it is done.
    let blocked = pair.cluster.target.client(DATABASE).await.unwrap();
    engine.wait_until("it follows again", |detail| detail["phase"] == "syncing").await;
    let mut command = asked(&pair, &UNFENCED);
    engine.wait_until("cutting over", |detail| detail["phase"] == "cutting_over").await;
    blocked.batch_execute("BEGIN; SELECT FROM walferry.migration FOR SHARE").await.unwrap();
    wait_for("jobs", PATIENCE, async || pair.target_value(JOBS).await == "1a 2b").await;
    engine.kill9().await;
    assert_eq!(pair.target_value(JOBS).await, "1a 2b");
    command.kill().await.unwrap();
    // What waits on the server for the killed engine would go on.
    let ours = "FROM pg_stat_activity WHERE application_name LIKE 'walferry%'";
    pair.target(&format!("SELECT pg_terminate_backend(pid) {ours}")).await;
    let gone = async || pair.target(&format!("SELECT {ours}")).await.is_empty();
    wait_for("no session of ours", PATIENCE, gone).await;
    blocked.batch_execute("ROLLBACK").await.unwrap();
    let mut engine = started(&pair, &[]).await;
    assert_eq!(pair.target_value(JOBS).await, "");
    let settings = "SELECT count(*) FROM pgagent_settings WHERE NOT own";
    assert_eq!(pair.target_value(settings).await, "0");
    assert!(engine.log().contains("its rows would act before the cutover is done"), "{}", engine.log());
    let left = "SELECT count(*) FROM walferry.relation WHERE state <> 'copied'";
    assert_eq!(pair.target_value(left).await, "0");

    cuts_over(&pair, &mut engine, &UNFENCED).await;
    assert_eq!(pair.target_value(JOBS).await, "1a 2b");
    assert_eq!(pair.target_value(settings).await, "1");
    assert_eq!(pair.target_value(left).await, "0");
    pair.assert_removes().await;
}
