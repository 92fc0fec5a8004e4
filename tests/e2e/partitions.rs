//! Partitions that come and go on the source while they are followed.

use super::harness::{PATIENCE, Pair};

const TABLES: &str = "
    CREATE TABLE other (a int PRIMARY KEY);
    CREATE TABLE log (at int NOT NULL, a int NOT NULL, b int REFERENCES other, note text DEFAULT 'none')
        PARTITION BY RANGE (at);
    CREATE INDEX by_note ON log (note);
    CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (100);
    ALTER TABLE log_1 ADD PRIMARY KEY (a, at);
    CREATE TABLE keyed (at int, a int, PRIMARY KEY (a, at)) PARTITION BY LIST (at);
    CREATE TABLE keyed_1 PARTITION OF keyed FOR VALUES IN (1);
    CREATE TABLE keyed_2 PARTITION OF keyed FOR VALUES IN (2);
    CREATE TABLE alone (at int NOT NULL, a int NOT NULL, PRIMARY KEY (a, at));
    INSERT INTO other VALUES (1); INSERT INTO log SELECT g, g, 1 FROM generate_series(0, 99) g;
    INSERT INTO keyed SELECT 1 + g % 2, g FROM generate_series(1, 50) g; INSERT INTO alone VALUES (3, 7)";

/// The definition of each partition, as a server describes it.
const DEFINITIONS: &str = "
    SELECT c.relname, c.relkind, pg_get_expr(c.relpartbound, c.oid), i.inhparent::regclass, c.reloptions,
        (SELECT string_agg(a.attname || format_type(a.atttypid, a.atttypmod) || a.attnotnull || coalesce(pg_get_expr(d.adbin, d.adrelid), ''), ',' ORDER BY a.attnum)
         FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attrelid = c.oid AND a.attnum > 0),
        (SELECT string_agg(pg_get_indexdef(x.indexrelid) || x.indisvalid, ',' ORDER BY pg_get_indexdef(x.indexrelid)) FROM pg_index x WHERE x.indrelid = c.oid),
        (SELECT string_agg(conname || pg_get_constraintdef(k.oid), ',' ORDER BY conname) FROM pg_constraint k WHERE k.conrelid = c.oid)
    FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid AND c.relkind IN ('r', 'p')
    WHERE c.relispartition ORDER BY 1";

/// New partitions are made, copied and followed by themselves; what harms the source is not published with updates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_partitions_are_taken_in() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute(TABLES).await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    for sql in [
        // Its first row arrives with it; it has no key, unlike the first one, and the source can go on writing.
        "BEGIN; CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (100) TO (200) WITH (fillfactor = 70);
         INSERT INTO log SELECT g, g, 1 FROM generate_series(100, 150) g; COMMIT",
        "UPDATE log SET note = 'new' WHERE at = 100; DELETE FROM log WHERE at = 101",
        "CREATE TABLE log_3 (note text DEFAULT 'own', b int, a int PRIMARY KEY, at int NOT NULL CHECK (at > 10));
         CREATE INDEX own ON log_3 (b, a); INSERT INTO log_3 VALUES ('x', 1, 1, 250);
         ALTER TABLE log ATTACH PARTITION log_3 FOR VALUES FROM (200) TO (300)",
        "CREATE TABLE \"Log 4\" PARTITION OF log FOR VALUES FROM (300) TO (400) PARTITION BY LIST (b);
         CREATE TABLE log_4_1 PARTITION OF \"Log 4\" FOR VALUES IN (1);
         CREATE TABLE log_4_rest PARTITION OF \"Log 4\" DEFAULT; INSERT INTO log VALUES (350, 1, 1), (351, 1, NULL)",
        "CREATE TABLE log_rest PARTITION OF log DEFAULT; INSERT INTO log VALUES (1000, 1, 1)",
        "CREATE UNLOGGED TABLE log_5 PARTITION OF log FOR VALUES FROM (400) TO (500); INSERT INTO log VALUES (450, 1, 1)",
    ] {
        owner.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let followed = "SELECT count(*) FROM walferry.relation WHERE table_name ~* '^log' AND state = 'copied'";
    let all = async || pair.target_value(followed).await == "7";
    super::harness::wait_for("all partitions", PATIENCE * 2, all).await;
    engine.wait_phase("syncing").await;
    owner
        .batch_execute(
            "INSERT INTO log SELECT g, g, 1 FROM generate_series(160, 199) g; INSERT INTO log VALUES (1001, 1, 1), (352, 2, 1);
             UPDATE log SET note = 'later' WHERE at IN (250, 5, 170); UPDATE log SET at = 60 WHERE at = 5; TRUNCATE log_rest;
             INSERT INTO log VALUES (451, 1, 1); UPDATE log SET b = NULL WHERE at = 450",
        )
        .await
        .unwrap();
    // One transaction, so that no look at the catalog shows it; one is moved elsewhere, one is gone for good.
    owner
        .batch_execute(
            "BEGIN; ALTER TABLE keyed DETACH PARTITION keyed_1; INSERT INTO keyed_1 VALUES (1, 77);
             ALTER TABLE keyed ATTACH PARTITION keyed_1 FOR VALUES IN (1); COMMIT;
             ALTER TABLE keyed ATTACH PARTITION alone FOR VALUES IN (3);
             ALTER TABLE keyed DETACH PARTITION keyed_2; INSERT INTO keyed_2 VALUES (2, 999)",
        )
        .await
        .unwrap();
    // Updates of the one without a key, and the unlogged one, come at cutover.
    engine.wait_drained(&pair).await;
    // A superuser's session, which nobody else may end.
    drop(owner);
    let ended = pair.command("cutover").run().await;
    ended.assert(0, &["done: the target has all", "partition public.keyed_2", "detached, as on the source"]);
    engine.wait_exit(0, PATIENCE).await;
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}\n{}", engine.log());
    let (source, target) = (pair.source(DEFINITIONS).await, pair.target(DEFINITIONS).await);
    assert_eq!(source, target);
    pair.assert_removes().await;
}

/// What retention drops: the log says what becomes of it on the target, and the cutover names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_dropped() {
    for (ddl, said, at_cutover, kept) in [
        (
            "follow",
            "the target drops it, too, when all before that is applied table=public.log_1",
            "table public.log_1 was dropped on the source, and on the target",
            "other",
        ),
        (
            "stop",
            "the target keeps it table=public.log_1",
            "partition public.log_1 of public.log was dropped on the source: the target keeps it",
            "log_1, other",
        ),
    ] {
        let pair = Pair::start().await;
        let owner = pair.owner().await;
        owner.batch_execute(TABLES).await.unwrap();
        let mut engine = pair.migrate().arguments(&["--ddl", ddl]).start();
        engine.wait_phase("syncing").await;
        // Each start looks at once; else it is looked every half minute.
        engine.terminate(0).await;
        owner
            .batch_execute(
                "DROP TABLE log_1; DROP TABLE other CASCADE;
                 ALTER TABLE keyed DETACH PARTITION keyed_2; ALTER TABLE keyed_2 RENAME TO kept",
            )
            .await
            .unwrap();
        drop(owner);
        let mut engine = pair.migrate().arguments(&["--ddl", ddl]).start();
        engine.wait_phase("syncing").await;
        let told = async || engine.log().matches("dropped on the source: ").count() == 2;
        super::harness::wait_for("the look at the source's tables", PATIENCE * 2, told).await;
        let log = engine.log();
        assert!(log.contains(said) && log.contains("the target keeps it table=public.other"), "{log}");
        let there = "SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class WHERE relname IN ('log_1', 'other')";
        // At its place in the stream, which goes on; and it stays away when it begins anew.
        let settled = async || pair.target_value(there).await == kept;
        super::harness::wait_for("what is dropped", PATIENCE, settled).await;
        pair.source("SET ROLE app_owner; INSERT INTO keyed VALUES (1, 100)").await;
        engine.wait_drained(&pair).await;
        engine.terminate(0).await;
        // One that was renamed is not dropped, whatever name it has: somebody has to follow.
        pair.target("ALTER TABLE keyed_2 RENAME TO kept").await;
        assert_eq!(pair.target_value("SELECT count(*) FROM kept").await, "25");
        let mut engine = pair.migrate().arguments(&["--ddl", ddl]).start();
        engine.wait_phase("syncing").await;
        // CASCADE took a foreign key with it.
        let refused = pair.command("cutover").run().await;
        refused.assert(5, &["ALTER TABLE \"public\".\"log\" DROP CONSTRAINT \"log_b_fkey\""]);
        pair.target("ALTER TABLE log DROP CONSTRAINT log_b_fkey").await;
        let plain = "table public.other was dropped on the source: the target keeps it";
        pair.command("cutover").run().await.assert(0, &["done: the target has all", at_cutover, plain]);
        engine.wait_exit(0, PATIENCE).await;
        assert_eq!(pair.target_value(there).await, kept);
    }
}

/// Taken out of the publication and put back, between two looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_that_were_changed_and_changed_back() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute("CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE u (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let name = pair.target_value("SELECT publications[1] FROM walferry.migration").await;
    for (there, missed, back) in [
        (
            format!("ALTER PUBLICATION {name} DROP TABLE t"),
            "INSERT INTO t VALUES (2)",
            format!("ALTER PUBLICATION {name} ADD TABLE ONLY t"),
        ),
        (
            format!("ALTER PUBLICATION {name} SET (publish = 'update')"),
            "INSERT INTO u VALUES (3)",
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"),
        ),
    ] {
        engine.terminate(0).await;
        pair.source(&there).await;
        owner.batch_execute(missed).await.unwrap();
        pair.source(&back).await;
        engine = pair.migrate().start();
        engine.wait_phase("syncing").await;
        pair.assert_follows(&mut engine).await;
        assert!(engine.log().contains("published otherwise for a while"), "{}", engine.log());
    }
    engine.terminate(0).await;
    pair.assert_removes().await;
}
