//! What happens to the source's tables while they are copied.

use super::harness::{DATABASE, Engine, PATIENCE, Pair, wait_for};

/// The first to be copied, being the largest, and the others.
const TABLES: &str = "
    CREATE TABLE large (id int PRIMARY KEY, body text); ALTER TABLE large ALTER body SET STORAGE PLAIN;
    INSERT INTO large SELECT g, repeat(md5(g::text), 122) FROM generate_series(1, 12000) g;
    CREATE TABLE rewritten (id int PRIMARY KEY, v text);
    CREATE TABLE emptied (id int PRIMARY KEY, v text); CREATE TABLE vacuumed (id int PRIMARY KEY, v text);
    CREATE TABLE swapped (id int PRIMARY KEY, v text, w text); CREATE TABLE again (id int PRIMARY KEY, v text);
    CREATE TABLE longer (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text);
    CREATE TABLE dropped (id int PRIMARY KEY); CREATE TABLE refers (id int PRIMARY KEY, d int REFERENCES dropped);
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (50);
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (50) TO (1000);
    INSERT INTO rewritten SELECT g, 'old' FROM generate_series(1, 100) g;
    INSERT INTO emptied SELECT * FROM rewritten; INSERT INTO vacuumed SELECT * FROM rewritten;
    INSERT INTO swapped SELECT g, 'v', 'w' FROM generate_series(1, 100) g; INSERT INTO again SELECT * FROM rewritten;
    INSERT INTO longer SELECT * FROM rewritten; INSERT INTO keyless SELECT v FROM rewritten;
    INSERT INTO dropped SELECT generate_series(1, 110); INSERT INTO refers SELECT id, id FROM rewritten;
    INSERT INTO parted SELECT * FROM rewritten";

/// Each one transaction, while `large` is being copied.
const MEANWHILE: &[&str] = &[
    "ALTER TABLE rewritten ALTER v TYPE text USING upper(v)",
    "UPDATE emptied SET v = 'new' WHERE id < 10",
    "TRUNCATE emptied",
    "INSERT INTO emptied VALUES (200, 'new')",
    "DELETE FROM vacuumed WHERE id > 50",
    "VACUUM FULL vacuumed",
    "UPDATE vacuumed SET v = 'new' WHERE id < 10",
    "ALTER TABLE swapped RENAME v TO x; ALTER TABLE swapped RENAME w TO v; ALTER TABLE swapped RENAME x TO w",
    "ALTER TABLE again DROP v; ALTER TABLE again ADD v text DEFAULT 'added'",
    "ALTER TABLE longer ADD w int DEFAULT 5",
    "ALTER TABLE keyless ALTER v TYPE text USING upper(v)",
    "UPDATE dropped SET id = -id WHERE id > 100",
    "DROP TABLE dropped CASCADE",
    "INSERT INTO refers VALUES (200, 200)",
    "UPDATE parted SET v = 'new'",
    "DROP TABLE parted_1",
];

/// Runs `meanwhile` on the source while the engine has the snapshot, and no table but `large` at most.
async fn while_large_is_copied(pair: &Pair, engine: &Engine, meanwhile: &[&str]) {
    let made = "SELECT FROM pg_class WHERE oid = to_regclass('public.large')";
    wait_for("the schema", PATIENCE * 2, async || !pair.target(made).await.is_empty()).await;
    engine.signal("STOP");
    let owner = pair.owner().await;
    owner.batch_execute("SET lock_timeout = '30s'").await.unwrap();
    for statement in meanwhile {
        owner.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let copied = "SELECT count(*) FROM walferry.relation WHERE state = 'copied' AND table_name <> 'large'";
    assert_eq!(pair.target_value(copied).await, "0", "{}", engine.log());
    engine.signal("CONT");
}

/// Rows of a rewritten table are newer than the snapshot, and a dropped one has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_rewritten_redefined_and_dropped() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute(TABLES).await.unwrap();
    let mut engine = pair.migrate().arguments(&["--jobs", "1", "--ddl", "follow"]).start();
    while_large_is_copied(&pair, &engine, MEANWHILE).await;
    engine.wait_phase("syncing").await;
    for table in ["dropped", "parted_1"] {
        let said = format!(
            "dropped on the source before it was copied: it is left out, the target keeps it, empty table=public.{table}"
        );
        assert!(engine.log().contains(&said), "{}", engine.log());
        assert_eq!(pair.target_value(&format!("SELECT count(*) FROM {table}")).await, "0");
        pair.cluster.target.sql(DATABASE, &format!("DROP TABLE {table}")).await.unwrap();
    }
    // The columns of `swapped` are in another order by now.
    let swapped = "SELECT count(*) FROM swapped WHERE v = 'w' AND w = 'v'";
    assert_eq!(pair.target_value(swapped).await, pair.source_value(swapped).await);
    for server in [&pair.cluster.source, &pair.cluster.target] {
        server.sql(DATABASE, "DROP TABLE swapped").await.unwrap();
    }
    owner
        .batch_execute("UPDATE longer SET v = 'new' WHERE id = 1; UPDATE again SET v = 'new' WHERE id = 1")
        .await
        .unwrap();
    pair.assert_follows(&mut engine).await;
    // The fence ends no session of a superuser.
    drop(owner);
    let refused = pair.command("cutover").run().await;
    refused.assert(5, &["detail: default of column v of public.again made\n"]);
    on_target(&pair, &for_the_target(&refused.stderr).unwrap()).await;
    pair.assert_cuts_over(engine).await;
    pair.assert_removes().await;
}

/// The statements of a hint for the target.
fn for_the_target(said: &str) -> Option<String> {
    let statements = said.rsplit_once("on the target run: ")?.1.split("; then run").next()?;
    Some(statements.replace(" (with the USING of the source, if it had one)", ""))
}

async fn on_target(pair: &Pair, statements: &str) {
    let client = pair.cluster.target.client(DATABASE).await.unwrap();
    let sql = format!("SET ROLE avnadmin; {statements}");
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// DDL that no later change follows: what the engine cannot know from the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redefined_without_a_later_change() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute("CREATE TABLE one (id int PRIMARY KEY, v text); INSERT INTO one SELECT g, 'one' FROM generate_series(1, 100) g").await.unwrap();
    owner.batch_execute("CREATE TABLE two (id int PRIMARY KEY, v text); INSERT INTO two SELECT g, 'two' FROM generate_series(1, 50) g").await.unwrap();
    for table in
        ["upper", "again", "swapped", "vacuumed", "emptied", "added", "volatile", "wider", "computed"]
    {
        let sql = format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, n int, v text, w text); INSERT INTO {table} SELECT g, g, 'v', 'w' FROM generate_series(1, 100) g"
        );
        owner.batch_execute(&sql).await.unwrap();
    }
    owner
        .batch_execute(
            "CREATE TABLE recomputed (id int PRIMARY KEY, n int, c int GENERATED ALWAYS AS (n * 2) STORED);
             INSERT INTO recomputed SELECT g, g FROM generate_series(1, 100) g;
             CREATE TABLE leaves (id int PRIMARY KEY, n int, c int GENERATED ALWAYS AS (n * 2) STORED) PARTITION BY LIST (id);
             CREATE TABLE leaf_1 PARTITION OF leaves FOR VALUES IN (1); CREATE TABLE leaf_2 PARTITION OF leaves FOR VALUES IN (2);
             INSERT INTO leaves VALUES (1, 1), (2, 2)",
        )
        .await
        .unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;

    // Two tables take each other's names.
    owner.batch_execute("BEGIN; ALTER TABLE one RENAME TO three; ALTER TABLE two RENAME TO one; ALTER TABLE three RENAME TO two; COMMIT").await.unwrap();
    owner.batch_execute("UPDATE one SET v = 'new' WHERE id = 1; DELETE FROM two WHERE id = 2").await.unwrap();
    let ended = pair.migrate().run().await;
    ended.assert(5, &["was renamed on the source"]);
    on_target(&pair, &for_the_target(&ended.stderr).unwrap_or_else(|| panic!("{}", ended.stderr))).await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;

    for statement in [
        "ALTER TABLE upper ALTER v TYPE text USING upper(v)",
        "ALTER TABLE again DROP w; ALTER TABLE again ADD w text DEFAULT 'added'",
        "ALTER TABLE swapped RENAME v TO x; ALTER TABLE swapped RENAME w TO v; ALTER TABLE swapped RENAME x TO w",
        "VACUUM FULL vacuumed",
        "TRUNCATE emptied",
        "INSERT INTO emptied VALUES (1, 1, 'new')",
        "ALTER TABLE added ADD x int DEFAULT 5",
        "ALTER TABLE volatile ADD x float8 NOT NULL DEFAULT random()",
        "ALTER TABLE wider ALTER n TYPE bigint USING n * 1000",
        "ALTER TABLE computed ADD twice int GENERATED ALWAYS AS (n * 2) STORED",
        "ALTER TABLE recomputed DROP c; ALTER TABLE recomputed ADD c int GENERATED ALWAYS AS (n * 3) STORED",
        "ALTER TABLE leaves DROP c; ALTER TABLE leaves ADD c int GENERATED ALWAYS AS (n * 3) STORED",
    ] {
        owner.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    // The fence ends no session of a superuser.
    drop(owner);
    let mut said = String::new();
    for _ in 0..20 {
        engine.wait_phase("syncing").await;
        let ended = pair.command("cutover").run().await;
        if ended.status.success() {
            break;
        }
        ended.assert(5, &[]);
        let text = format!("{}{}", ended.stdout, ended.stderr);
        if let Some(statements) = for_the_target(&text) {
            on_target(&pair, &statements).await;
        }
        said.push_str(&text);
    }
    engine.wait_exit(0, PATIENCE).await;
    for part in [
        "tables of the source were redefined since they were copied",
        "ALTER TABLE \"public\".\"added\" ADD COLUMN \"x\" integer DEFAULT '5'",
        "ALTER TABLE \"public\".\"wider\" ALTER COLUMN \"n\" TYPE bigint",
        "ALTER TABLE \"public\".\"volatile\" ALTER COLUMN \"x\" SET NOT NULL",
        "ADD COLUMN \"twice\" integer GENERATED ALWAYS AS ((n * 2)) STORED",
        "ALTER TABLE \"public\".\"recomputed\" ADD COLUMN \"c\" integer GENERATED ALWAYS AS ((n * 3)) STORED",
        "ALTER TABLE \"public\".\"leaves\" ADD COLUMN \"c\" integer GENERATED ALWAYS AS ((n * 3)) STORED",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    for (table, again) in
        [("upper", true), ("again", true), ("volatile", true), ("vacuumed", false), ("emptied", false)]
    {
        let line =
            format!("its rows are not those that were copied: it is copied again table=public.{table} ");
        assert_eq!(engine.log().contains(&line), again, "{table}: {}", engine.log());
    }
    let swapped = "SELECT count(*) FROM swapped WHERE v = 'w' AND w = 'v'";
    assert_eq!(pair.target_value(swapped).await, "100");
    let comparison = pair.compare().await;
    let differs = comparison.to_string();
    assert!(
        differs.contains("1 tables and 0 sequences differ") && differs.contains("public.swapped"),
        "{differs}\n{}",
        engine.log()
    );
}
