//! Changes that do not fit the target's rows, and what each policy does with them.

use std::time::Duration;

use tokio::time::sleep;

use super::harness::{Engine, PATIENCE, Pair, wait_for};

/// A change that does not fit, in a table `T` of its own.
struct Case {
    name: &'static str,
    /// On the target.
    by_hand: &'static str,
    /// On the source.
    change: &'static str,
    kind: &'static str,
    /// The rows afterwards that a policy leaves; where the source's cannot win, why it stops.
    source_wins: Result<&'static str, &'static str>,
    skip: &'static str,
    /// Key, the source's row and the target's, as recorded.
    recorded: [&'static str; 3],
}

/// `a|b|c` of each row: what every table holds before.
const BEFORE: &str = "1|one|1 2|two|2 3|three|3";

const CASES: [Case; 9] = [
    Case {
        name: "insert_exists",
        by_hand: "INSERT INTO T VALUES (9, 'their_row', 90)",
        change: "INSERT INTO T VALUES (9, 'our_row', 9)",
        kind: "insert_exists",
        source_wins: Ok("1|one|1 2|two|2 3|three|3 9|our_row|9"),
        skip: "1|one|1 2|two|2 3|three|3 9|their_row|90",
        recorded: [
            r#"{"a": "9"}"#,
            r#"{"a": "9", "b": "our_row", "c": "9"}"#,
            r#"{"a": "9", "b": "their_row", "c": "90"}"#,
        ],
    },
    Case {
        name: "update_missing",
        by_hand: "DELETE FROM T WHERE a = 2",
        change: "UPDATE T SET b = NULL WHERE a = 2",
        kind: "update_missing",
        source_wins: Ok("1|one|1 2||2 3|three|3"),
        skip: "1|one|1 3|three|3",
        recorded: [r#"{"a": "2"}"#, r#"{"a": "2", "b": null, "c": "2"}"#, ""],
    },
    Case {
        name: "new_key_missing",
        by_hand: "DELETE FROM T WHERE a = 2",
        change: "UPDATE T SET a = 20 WHERE a = 2",
        kind: "update_missing",
        source_wins: Ok("1|one|1 3|three|3 20|two|2"),
        skip: "1|one|1 3|three|3",
        recorded: [r#"{"a": "2"}"#, r#"{"a": "20", "b": "two", "c": "2"}"#, ""],
    },
    Case {
        name: "new_key_exists",
        by_hand: "INSERT INTO T VALUES (20, 'their_row', 99)",
        change: "UPDATE T SET a = 20, b = 'moved' WHERE a = 2",
        kind: "insert_exists",
        source_wins: Ok("1|one|1 3|three|3 20|moved|2"),
        skip: "1|one|1 2|two|2 3|three|3 20|their_row|99",
        recorded: [
            r#"{"a": "2"}"#,
            r#"{"a": "20", "b": "moved", "c": "2"}"#,
            r#"{"a": "20", "b": "their_row", "c": "99"}"#,
        ],
    },
    Case {
        name: "old_key_missing_new_exists",
        by_hand: "UPDATE T SET a = 20, b = 'their_row' WHERE a = 2",
        change: "UPDATE T SET a = 20 WHERE a = 2",
        kind: "update_missing",
        source_wins: Ok("1|one|1 3|three|3 20|two|2"),
        skip: "1|one|1 3|three|3 20|their_row|2",
        recorded: [
            r#"{"a": "2"}"#,
            r#"{"a": "20", "b": "two", "c": "2"}"#,
            r#"{"a": "20", "b": "their_row", "c": "2"}"#,
        ],
    },
    Case {
        name: "delete_missing",
        by_hand: "DELETE FROM T WHERE a = 1",
        change: "DELETE FROM T WHERE a = 1",
        kind: "delete_missing",
        source_wins: Ok("2|two|2 3|three|3"),
        skip: "2|two|2 3|three|3",
        recorded: [r#"{"a": "1"}"#, "", ""],
    },
    Case {
        name: "another_unique",
        by_hand: "INSERT INTO T VALUES (50, 'their_row', 11)",
        change: "INSERT INTO T VALUES (11, 'our_row', 11)",
        kind: "insert_exists",
        source_wins: Err("another row has the value in a unique index"),
        skip: "1|one|1 2|two|2 3|three|3 50|their_row|11",
        recorded: [
            r#"{"a": "11"}"#,
            r#"{"a": "11", "b": "our_row", "c": "11"}"#,
            r#"{"a": "50", "b": "their_row", "c": "11"}"#,
        ],
    },
    Case {
        name: "another_unique_updated",
        by_hand: "INSERT INTO T VALUES (50, 'their_row', 11)",
        change: "UPDATE T SET c = 11 WHERE a = 3",
        kind: "insert_exists",
        source_wins: Err("another row has the value in a unique index"),
        skip: "1|one|1 2|two|2 3|three|3 50|their_row|11",
        recorded: [
            r#"{"a": "3"}"#,
            r#"{"a": "3", "b": "three", "c": "11"}"#,
            r#"{"a": "50", "b": "their_row", "c": "11"}"#,
        ],
    },
    Case {
        name: "refused",
        by_hand: "ALTER TABLE T ADD CONSTRAINT not_bad CHECK (b <> 'bad')",
        change: "UPDATE T SET b = 'bad' WHERE a = 3",
        kind: "refused",
        source_wins: Err("the target refuses the source's row"),
        skip: BEFORE,
        recorded: [
            r#"{"a": "3"}"#,
            r#"{"a": "3", "b": "bad", "c": "3"}"#,
            r#"{"a": "3", "b": "three", "c": "3"}"#,
        ],
    },
];

async fn rows(pair: &Pair, table: &str) -> String {
    let sql = format!(
        "SELECT string_agg(concat_ws('|', a, coalesce(b, ''), c), ' ' ORDER BY a) FROM {table} WHERE a < 100"
    );
    pair.target_value(&sql).await
}

async fn recorded(pair: &Pair, table: &str, of: &str) -> String {
    let sql = format!(
        "SELECT concat_ws('; ', {of}) FROM walferry.conflict WHERE table_name = '{table}' ORDER BY id DESC LIMIT 1"
    );
    pair.target_value(&sql).await
}

const RECORDED: &str = "kind, resolution, coalesce(key::text, ''), coalesce(source_row::text, ''), \
                        coalesce(target_row::text, '')";

/// `T` becomes the table's name.
fn of(table: &str, sql: &str) -> String {
    sql.replace(" T ", &format!(" {table} "))
}

/// The change in a transaction, with changes that fit before and after it.
fn transaction(table: &str, change: &str) -> String {
    let fits = |a: u32| format!("INSERT INTO {table} (a, b, c) VALUES ({a}, 'fits', {a})");
    format!("BEGIN; {}; {}; {}; COMMIT", fits(100), of(table, change), fits(101))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies() {
    let pair = Pair::start().await;
    for Case { name, .. } in &CASES {
        for policy in ["wins", "skip"] {
            let table = format!("{policy}_{name}");
            let sql = format!(
                "SET ROLE app_owner; CREATE TABLE {table} (a int PRIMARY KEY, b text, c int UNIQUE); \
                 INSERT INTO {table} VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3)"
            );
            pair.source(&sql).await;
        }
    }
    for (policy, prefix) in [("source-wins", "wins"), ("skip", "skip")] {
        let launch =
            pair.migrate().arguments(&["--on-conflict", policy]).secret("their_row").secret("our_row");
        let mut engine = launch.start();
        engine.wait_phase("syncing").await;
        let source = pair.owner().await;
        let mut counted = 0;
        for case in &CASES {
            let table = format!("{prefix}_{}", case.name);
            pair.target(&of(&table, case.by_hand)).await;
            source.batch_execute(&transaction(&table, case.change)).await.unwrap();
            let expected = match (policy, case.source_wins) {
                ("source-wins", Err(why)) => {
                    let log = engine.wait_exit(5, PATIENCE).await;
                    for part in [&format!("conflict ({}) in table public.{table} at ", case.kind), why] {
                        assert!(log.contains(part), "{}: no {part:?} in {log}", case.name);
                    }
                    let wanted = [&[case.kind, "stopped"], &case.recorded[..]].concat().join("; ");
                    assert_eq!(recorded(&pair, &table, RECORDED).await, wanted, "{}", case.name);
                    let whole = format!("SELECT count(*) FROM {table} WHERE a >= 100");
                    assert_eq!(pair.target_value(&whole).await, "0", "{}", case.name);
                    // Mended by hand, it goes on.
                    pair.target(&format!("DELETE FROM {table} WHERE a = 50")).await;
                    pair.target(&format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS not_bad")).await;
                    (engine, counted) = (launch.start(), 0);
                    engine.wait_phase("syncing").await;
                    continue;
                }
                ("source-wins", Ok(rows)) => rows,
                _ => case.skip,
            };
            counted += 1;
            engine.wait_drained(&pair).await;
            assert_eq!(rows(&pair, &table).await, expected, "{policy} {}", case.name);
            let resolution = if policy == "skip" { "skipped" } else { policy };
            let wanted = [&[case.kind, resolution], &case.recorded[..]].concat().join("; ");
            assert_eq!(recorded(&pair, &table, RECORDED).await, wanted, "{policy} {}", case.name);
            let whole = format!("SELECT count(*) FROM {table} WHERE a >= 100");
            assert_eq!(pair.target_value(&whole).await, "2", "{policy} {}", case.name);
        }
        if policy == "skip" {
            assert_eq!(conflicts_counted(&engine).await, f64::from(counted));
        }
        if policy == "source-wins" {
            engine.terminate(0).await;
            continue;
        }
        // To leave out what is not about one row would leave out more than is said.
        pair.target(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'; \
             CREATE TRIGGER no BEFORE TRUNCATE ON skip_refused EXECUTE FUNCTION no(); \
             ALTER TABLE skip_refused ENABLE ALWAYS TRIGGER no",
        )
        .await;
        source.batch_execute("TRUNCATE skip_refused").await.unwrap();
        let log = engine.wait_exit(5, PATIENCE).await;
        for part in ["conflict (refused) in table public.skip_refused at ", "--on-conflict skip stops here"] {
            assert!(log.contains(part), "no {part:?} in {log}");
        }
    }
    for table in pair.compare().await.tables.iter().filter(|table| table.name.name.starts_with("wins_")) {
        assert!(table.equal(), "{table:?}");
    }
    pair.assert_removes().await;
}

/// All conflicts that the engine has counted since its start.
async fn conflicts_counted(engine: &Engine) -> f64 {
    let (_, text) = engine.get("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with("walferry_conflicts_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Values that are not sent, rows without a key, columns that cannot be updated; and a batch in which much does not fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_wins_whole_rows_or_not_at_all() {
    let pair = Pair::start().await;
    let tables = "SET ROLE app_owner;
        CREATE TABLE large (a int PRIMARY KEY, b text, c int); ALTER TABLE large ALTER b SET STORAGE EXTERNAL;
        CREATE TABLE whole (a int, b text, c int); ALTER TABLE whole ALTER b SET STORAGE EXTERNAL;
        ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE made (a int PRIMARY KEY, b int GENERATED ALWAYS AS IDENTITY, c int GENERATED ALWAYS AS (a * 2) STORED);
        CREATE TABLE many (a int PRIMARY KEY, b text);
        INSERT INTO large SELECT n, repeat('large ', 2000), n FROM generate_series(1, 3) n;
        INSERT INTO whole SELECT n, repeat('large ', 2000), n FROM generate_series(1, 3) n;
        INSERT INTO made (a) SELECT generate_series(1, 3);
        INSERT INTO many SELECT n, 'x' FROM generate_series(1, 3000) n";
    pair.source(tables).await;
    let launch = pair.migrate().arguments(&["--on-conflict", "source-wins"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let source = pair.owner().await;

    pair.target(
        "DELETE FROM whole WHERE a = 1; INSERT INTO made (a) VALUES (4); DELETE FROM many WHERE a % 3 = 0",
    )
    .await;
    pair.target("INSERT INTO many SELECT n, 'theirs' FROM generate_series(3001, 3500) n").await;
    source
        .batch_execute("UPDATE whole SET c = 10 WHERE a = 1; INSERT INTO made (a) VALUES (0), (4)")
        .await
        .unwrap();
    let much = "BEGIN; UPDATE many SET b = 'y'; INSERT INTO many SELECT n, 'z' FROM generate_series(3001, 4000) n; COMMIT";
    source.batch_execute(much).await.unwrap();
    pair.assert_follows(&mut engine).await;
    let counts = "SELECT string_agg(concat(kind, ' ', n), ', ' ORDER BY table_name, kind) FROM
                  (SELECT table_name, kind, count(*) n FROM walferry.conflict GROUP BY 1, 2) c";
    let counts = pair.target_value(counts).await;
    assert_eq!(counts, "insert_exists 1, insert_exists 500, update_missing 1000, update_missing 1");
    assert_eq!(conflicts_counted(&engine).await, 1502.0);

    // In the middle of a transaction that is applied in parts.
    pair.target("DELETE FROM many WHERE a BETWEEN 101 AND 110").await;
    let rows = |first: u32, last: u32| {
        format!("INSERT INTO many SELECT n, 'part' FROM generate_series({first}, {last}) n")
    };
    let parts = format!(
        "BEGIN; {}; UPDATE many SET b = 'late' WHERE a BETWEEN 101 AND 110; {}; DELETE FROM many WHERE a = 110; COMMIT",
        rows(10_001, 90_000),
        rows(90_001, 170_000)
    );
    source.batch_execute(&parts).await.unwrap();
    pair.assert_follows(&mut engine).await;
    assert_eq!(conflicts_counted(&engine).await, 1512.0);
    assert_eq!(
        pair.target_value("SELECT count(*) FROM walferry.conflict WHERE source_row ->> 'b' = 'late'").await,
        "10"
    );

    // The large value is on neither side's way.
    pair.target("DELETE FROM large WHERE a = 2").await;
    source.batch_execute("UPDATE large SET c = 20 WHERE a = 2").await.unwrap();
    let log = engine.wait_exit(5, PATIENCE).await;
    for part in ["conflict (update_missing) in table public.large at ", "was not sent", "walferry resync"] {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    assert_eq!(recorded(&pair, "large", "source_row").await, r#"{"a": "2", "c": "20"}"#);
    pair.target("INSERT INTO large VALUES (2, repeat('large ', 2000), 2)").await;
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
}

/// What was left out is recorded once, and what fits is applied once, however often the engine dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resolved_once_when_killed() {
    let pair = Pair::start().await;
    pair.source(
        "SET ROLE app_owner; CREATE TABLE part (a int PRIMARY KEY, b int); CREATE TABLE log (n int); \
         INSERT INTO part SELECT n, 0 FROM generate_series(1, 400) n",
    )
    .await;
    let launch = pair.migrate().arguments(&["--on-conflict", "skip"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.target("DELETE FROM part WHERE a % 2 = 0").await;
    let source = pair.owner().await;
    let writes = async {
        for a in 1..=400 {
            let sql = format!(
                "BEGIN; UPDATE part SET b = b + 1 WHERE a = {a}; INSERT INTO log VALUES ({a}); COMMIT"
            );
            source.batch_execute(&sql).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    };
    let kills = async {
        for left_out in [20, 60, 100, 140] {
            let reached = async || {
                let sql = "SELECT count(*) FROM walferry.conflict";
                pair.target_value(sql).await.parse::<u32>().unwrap() >= left_out
            };
            wait_for("changes are left out", PATIENCE, reached).await;
            std::mem::replace(&mut engine, launch.start()).kill9().await;
        }
    };
    tokio::join!(writes, kills);
    engine.wait_phase("syncing").await;
    engine.wait_drained(&pair).await;
    let conflicts = "SELECT concat_ws(' ', count(*), count(DISTINCT key ->> 'a'), min(kind), min(resolution)) FROM walferry.conflict";
    assert_eq!(pair.target_value(conflicts).await, "200 200 update_missing skipped");
    let applied = "SELECT concat_ws(' ', count(*), min(b), max(b), (SELECT count(*) FROM log), (SELECT count(DISTINCT n) FROM log)) FROM part";
    assert_eq!(pair.target_value(applied).await, "200 1 1 400 400");
    engine.terminate(0).await;
    pair.assert_removes().await;
}

/// Tables that went their own way on the target become the source's again, while it is written to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resync() {
    let pair = Pair::start().await;
    pair.source(
        r#"SET ROLE app_owner; CREATE TABLE item (a int PRIMARY KEY, b text);
           CREATE TABLE part (a int REFERENCES item) PARTITION BY LIST (a); CREATE TABLE one PARTITION OF part FOR VALUES IN (1);
           CREATE TABLE two PARTITION OF part FOR VALUES IN (2); CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."A.b" (a int);
           INSERT INTO item VALUES (1, 'x'), (2, 'y'); INSERT INTO part VALUES (1), (2); INSERT INTO "Odd"."A.b" VALUES (1)"#,
    )
    .await;
    let resync = |tables: &[&str]| pair.command("resync").arguments(tables);
    resync(&["public.item"]).run().await.assert(5, &["no migration \"default\"", "walferry migrate"]);
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    resync(&["public.item"]).run().await.assert(5, &["another engine runs this migration", "stop it first"]);
    engine.terminate(0).await;
    for (table, hint) in [
        ("public.items", "did you mean public.item?"),
        ("other.item", "did you mean public.item?"),
        ("public.nothing_like_it", "`walferry status` lists its tables"),
        ("item", "give schema.table"),
        ("shop.public.item", "its databases: defaultdb"),
    ] {
        resync(&["public.item", table]).run().await.assert(2, &[hint]);
    }
    let copied = "SELECT count(*) FROM walferry.relation WHERE state = 'copied'";
    assert_eq!(pair.target_value(copied).await, "4", "nothing was marked");

    pair.target(r#"UPDATE item SET b = 'theirs'; DELETE FROM two; INSERT INTO "Odd"."A.b" VALUES (9)"#).await;
    pair.source("SET ROLE app_owner; INSERT INTO item VALUES (3, 'z'); DELETE FROM part WHERE a = 2; DELETE FROM item WHERE a = 2").await;
    let named = ["public.ITEM", "defaultdb.public.part", r#""Odd"."A.b""#];
    let tables = ["public.item", "public.one", "public.two", r#""Odd"."A.b""#];
    let lines = tables.map(|table| format!("{table} of database \"defaultdb\" is copied afresh"));
    resync(&named).run().await.assert(0, &lines.each_ref().map(String::as_str));
    assert_eq!(pair.target_value(copied).await, "0");
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.source("SET ROLE app_owner; INSERT INTO item VALUES (4, 'w'); INSERT INTO part VALUES (1)").await;
    pair.assert_ends_equal(engine).await;
}

/// What fits, and was once taken for what does not: keys that several rows have for a while, tables that others refer to
/// emptied, a column that the target had first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_conflicts() {
    let pair = Pair::start().await;
    pair.source(
        "SET ROLE app_owner; CREATE TABLE item (a int PRIMARY KEY); INSERT INTO item VALUES (1);
         CREATE TABLE list (v text, pos int PRIMARY KEY DEFERRABLE); ALTER TABLE list REPLICA IDENTITY FULL;
         INSERT INTO list SELECT nullif(n % 3, 0), n FROM generate_series(1, 50) n;
         CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (a int PRIMARY KEY, p int REFERENCES parent);
         CREATE UNLOGGED TABLE scratch (p int REFERENCES parent); CREATE TABLE skipped (p int REFERENCES parent);
         CREATE TABLE root (a int PRIMARY KEY) PARTITION BY LIST (a); CREATE TABLE leaf PARTITION OF root DEFAULT;
         CREATE TABLE branch (a int REFERENCES root, b int, PRIMARY KEY (a, b)) PARTITION BY LIST (b);
         CREATE TABLE twig PARTITION OF branch DEFAULT;
         INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1), (2, 2);
         INSERT INTO scratch VALUES (1); INSERT INTO skipped VALUES (1);
         INSERT INTO root VALUES (1); INSERT INTO branch VALUES (1, 1)",
    )
    .await;
    let launch = pair.migrate().arguments(&["--skip-table", "public.skipped"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let source = pair.owner().await;

    // What the target looked like when the stream began is known for a while.
    pair.target("ALTER TABLE item ADD COLUMN b text").await;
    source.batch_execute("ALTER TABLE item ADD COLUMN b text").await.unwrap();
    source.batch_execute("INSERT INTO item VALUES (2, 'two')").await.unwrap();

    source.batch_execute("UPDATE list SET pos = pos + 1").await.unwrap();
    source.batch_execute("UPDATE list SET pos = 60 - pos; DELETE FROM list WHERE v IS NULL").await.unwrap();

    pair.target("CREATE TABLE only_here (p int REFERENCES parent, c int REFERENCES child)").await;
    source.batch_execute("TRUNCATE parent CASCADE; INSERT INTO parent VALUES (3), (4)").await.unwrap();
    source.batch_execute("INSERT INTO child VALUES (3, 3); TRUNCATE root CASCADE").await.unwrap();
    source.batch_execute("INSERT INTO root VALUES (2); INSERT INTO branch VALUES (2, 2)").await.unwrap();
    assert_same(&pair, &mut engine).await;

    // One whose copy holds the TRUNCATE already.
    engine.terminate(0).await;
    pair.command("resync").arguments(&["public.child"]).run().await.assert(0, &["public.child"]);
    source.batch_execute("TRUNCATE parent CASCADE; INSERT INTO parent VALUES (5)").await.unwrap();
    source.batch_execute("INSERT INTO child VALUES (5, 5)").await.unwrap();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    assert_same(&pair, &mut engine).await;
    pair.target("DROP TABLE only_here").await;
    engine.terminate(0).await;
    pair.assert_removes().await;
}

/// What is followed is the source's.
async fn assert_same(pair: &Pair, engine: &mut Engine) {
    engine.wait_drained(pair).await;
    for table in ["item", "list", "parent", "child", "root", "branch"] {
        let rows = format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t");
        assert_eq!(pair.target_value(&rows).await, pair.source_value(&rows).await, "{table}");
    }
}
