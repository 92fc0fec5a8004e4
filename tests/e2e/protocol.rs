//! Everything that version 1 of the protocol carries, compared row by row on the target.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::harness::{PATIENCE, POLL, Pair, wait_for};

/// Tables, and what is done to them while the engine follows.
struct Case {
    name: &'static str,
    /// On the source, before the migration.
    tables: &'static str,
    /// On the target, while the engine runs and before the writes.
    on_target: &'static str,
    /// On the source, each one simple query: one transaction unless it says otherwise.
    writes: &'static [&'static str],
}

const NOTHING: &str = "";

/// More than a page of text that does not compress.
const FUNCTIONS: &str = "
CREATE FUNCTION big(seed text) RETURNS text LANGUAGE sql
    AS $$ SELECT string_agg(md5(seed || g), '') FROM generate_series(1, 400) g $$;
CREATE SCHEMA other;
CREATE SCHEMA \"Büro & Co\";";

const CASES: &[Case] = &[
    Case {
        name: "unchanged toast",
        tables: "
            CREATE TABLE toast (a int PRIMARY KEY, big text, b int, big2 text);
            INSERT INTO toast SELECT g, big('x' || g), g, big('y' || g) FROM generate_series(1, 20) g",
        on_target: NOTHING,
        writes: &[
            "UPDATE toast SET b = b + 1",
            "UPDATE toast SET a = a + 100 WHERE a <= 5",
            "UPDATE toast SET big = NULL WHERE a = 6",
            "UPDATE toast SET big2 = big('z'), b = 0 WHERE a = 7",
            "BEGIN; INSERT INTO toast VALUES (50, big('new'), 1, NULL); UPDATE toast SET b = 2 WHERE a = 50;
             UPDATE toast SET big2 = big WHERE a = 50; UPDATE toast SET a = 51 WHERE a = 50; COMMIT",
            "DELETE FROM toast WHERE a = 8",
        ],
    },
    Case {
        name: "unchanged toast under replica identity full",
        tables: "
            CREATE TABLE toast_full (a int, big text, b int);
            ALTER TABLE toast_full REPLICA IDENTITY FULL;
            INSERT INTO toast_full SELECT g, big('x' || g), g FROM generate_series(1, 20) g",
        on_target: NOTHING,
        writes: &[
            "UPDATE toast_full SET b = b + 1",
            "UPDATE toast_full SET big = big('n'), a = -a WHERE a < 5",
            "DELETE FROM toast_full WHERE a > 15",
        ],
    },
    Case {
        name: "key changes",
        tables: "
            CREATE TABLE keys (a int, b text, c int, PRIMARY KEY (b, a));
            INSERT INTO keys SELECT g, 'k' || g, g FROM generate_series(1, 30) g",
        on_target: NOTHING,
        writes: &[
            "UPDATE keys SET a = a + 1000",
            "UPDATE keys SET b = b || 'x', c = NULL WHERE c < 10",
            "BEGIN; UPDATE keys SET a = 1 WHERE c = 10; UPDATE keys SET a = 2 WHERE c = 10;
             DELETE FROM keys WHERE c = 10; INSERT INTO keys VALUES (2, 'k10', 10); COMMIT",
        ],
    },
    Case {
        name: "replica identity index",
        tables: "
            CREATE TABLE by_index (x text, a int NOT NULL, b int NOT NULL, c int PRIMARY KEY, UNIQUE (b, a));
            ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_b_a_key;
            INSERT INTO by_index SELECT 'x', g, g, g FROM generate_series(1, 20) g",
        on_target: NOTHING,
        writes: &[
            "UPDATE by_index SET x = NULL WHERE a < 5",
            "UPDATE by_index SET c = c + 100 WHERE a < 8",
            "UPDATE by_index SET a = a + 100, b = -b WHERE a > 10",
            "DELETE FROM by_index WHERE a = 9",
        ],
    },
    Case {
        name: "replica identity full, with duplicates and NULLs, without a key",
        tables: "
            CREATE TABLE whole (a int, b text, f float8, n numeric);
            ALTER TABLE whole REPLICA IDENTITY FULL;
            INSERT INTO whole VALUES (1, 'x', 0, 1), (1, 'x', 0, 1), (1, 'x', 0, 1), (NULL, NULL, NULL, NULL),
                (NULL, NULL, NULL, NULL), (2, 'y', 'NaN', 'NaN'), (3, '', '-0', 1.50), (4, 'z', 'Infinity', 1.5)",
        on_target: NOTHING,
        writes: &[
            "UPDATE whole SET b = 'one of three' WHERE ctid = (SELECT min(ctid) FROM whole WHERE a = 1)",
            "DELETE FROM whole WHERE ctid = (SELECT min(ctid) FROM whole WHERE b = 'x')",
            "UPDATE whole SET a = 7 WHERE ctid = (SELECT min(ctid) FROM whole WHERE a IS NULL)",
            "DELETE FROM whole WHERE a IS NULL",
            "UPDATE whole SET a = a + 1 WHERE a IN (2, 3, 4)",
            "INSERT INTO whole SELECT * FROM whole",
            "DELETE FROM whole WHERE f = 'NaN'",
        ],
    },
    Case {
        name: "replica identity full with a key, and with types that have no equality",
        tables: "
            CREATE TABLE whole_keyed (a int PRIMARY KEY, j json, p point);
            ALTER TABLE whole_keyed REPLICA IDENTITY FULL;
            INSERT INTO whole_keyed SELECT g, '{\"a\": 1}', point(g, g) FROM generate_series(1, 10) g;
            CREATE TABLE whole_json (a int, j json, p point, x xml);
            ALTER TABLE whole_json REPLICA IDENTITY FULL;
            INSERT INTO whole_json SELECT g, '{\"a\":  1}', point(g, g), '<a/>' FROM generate_series(1, 10) g",
        on_target: NOTHING,
        writes: &[
            "UPDATE whole_keyed SET j = '[]' WHERE a < 5",
            "UPDATE whole_keyed SET a = a + 100 WHERE a > 8",
            "DELETE FROM whole_keyed WHERE a = 7",
            "UPDATE whole_json SET j = '[1 ]' WHERE a < 5",
            "DELETE FROM whole_json WHERE a = 7",
        ],
    },
    Case {
        name: "replica identity nothing, and no key: inserts and truncates",
        tables: "
            CREATE TABLE nothing (a int PRIMARY KEY, b text);
            ALTER TABLE nothing REPLICA IDENTITY NOTHING;
            CREATE TABLE keyless (a int, b text);
            INSERT INTO nothing VALUES (1, 'x'); INSERT INTO keyless VALUES (1, 'x')",
        on_target: NOTHING,
        writes: &[
            "INSERT INTO nothing VALUES (2, 'y')",
            "TRUNCATE keyless",
            "INSERT INTO keyless VALUES (2, 'y'), (2, 'y')",
        ],
    },
    Case {
        name: "partitions",
        tables: "
            CREATE TABLE parted (a int, b text, c int, PRIMARY KEY (a, c)) PARTITION BY LIST (c);
            CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
            CREATE TABLE parted_2 (c int NOT NULL, gone int, b text, a int NOT NULL);
            ALTER TABLE parted_2 DROP COLUMN gone;
            ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
            CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3, 4) PARTITION BY RANGE (a);
            CREATE TABLE parted_3_low PARTITION OF parted_3 FOR VALUES FROM (MINVALUE) TO (100);
            CREATE TABLE other.parted_3_high PARTITION OF parted_3 FOR VALUES FROM (100) TO (MAXVALUE);
            CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
            INSERT INTO parted SELECT g, 'x', g % 6 FROM generate_series(1, 200) g",
        on_target: NOTHING,
        writes: &[
            "UPDATE parted SET b = 'y'",
            "UPDATE parted SET c = 2 WHERE c = 1 AND a < 50",
            "UPDATE parted SET c = 3, a = a + 300 WHERE c = 5",
            "DELETE FROM parted WHERE a % 7 = 0",
            "TRUNCATE parted_1",
            "INSERT INTO parted VALUES (900, 'z', 1), (901, 'z', 4), (902, 'z', 99)",
            "BEGIN; TRUNCATE parted; INSERT INTO parted VALUES (1, 'after', 1), (2, 'after', 2); COMMIT",
        ],
    },
    Case {
        name: "generated and identity columns",
        tables: "
            CREATE TABLE generated (a int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED, b text);
            CREATE TABLE always_key (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b text, big text);
            CREATE TABLE always_other (a int PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY, b text);
            CREATE TABLE by_default (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, b text);
            CREATE TABLE always_full (id int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (1) STORED, b text);
            ALTER TABLE always_full REPLICA IDENTITY FULL;
            INSERT INTO generated (a, b) SELECT g, 'x' FROM generate_series(1, 9) g;
            INSERT INTO always_key (b, big) SELECT 'x', big('a') FROM generate_series(1, 9);
            INSERT INTO always_other (a, b) SELECT g, 'x' FROM generate_series(1, 9) g;
            INSERT INTO by_default (b) SELECT 'x' FROM generate_series(1, 9);
            INSERT INTO always_full (b) SELECT 'x' FROM generate_series(1, 9)",
        on_target: NOTHING,
        writes: &[
            "UPDATE generated SET a = a + 10, b = 'y' WHERE a < 4",
            "UPDATE generated SET b = 'z'; DELETE FROM generated WHERE a = 5",
            "INSERT INTO always_key (b) VALUES ('new'); INSERT INTO always_key OVERRIDING SYSTEM VALUE VALUES (99, 'n')",
            "UPDATE always_key SET b = 'y' WHERE id < 4",
            "UPDATE always_key SET id = DEFAULT WHERE id < 3",
            "DELETE FROM always_key WHERE id = 7",
            "UPDATE always_other SET b = 'y'",
            "UPDATE always_other SET id = DEFAULT WHERE a < 4; UPDATE always_other SET a = a + 10 WHERE a > 6",
            "UPDATE by_default SET id = id + 100 WHERE id > 5; INSERT INTO by_default (b) VALUES ('n')",
            "UPDATE always_full SET b = 'y' WHERE id > 5; UPDATE always_full SET id = DEFAULT WHERE id < 3",
            "DELETE FROM always_full WHERE id = 4; INSERT INTO always_full (b) VALUES ('n')",
        ],
    },
    Case {
        name: "names",
        tables: r#"
            CREATE TABLE "Büro & Co"."Größe ""x"" 日本" ("SELECT" int, "Ä b" text, "c""d" int, "$1" int,
                PRIMARY KEY ("SELECT", "c""d"));
            CREATE TABLE "UPPER" ("ID" int PRIMARY KEY, "user" text);
            CREATE TABLE other."UPPER" ("ID" int PRIMARY KEY, "user" text);
            CREATE TABLE " spaced . dotted " (a int PRIMARY KEY, " " text);
            INSERT INTO "Büro & Co"."Größe ""x"" 日本" SELECT g, 'ö', g FROM generate_series(1, 9) g"#,
        on_target: NOTHING,
        writes: &[
            r#"UPDATE "Büro & Co"."Größe ""x"" 日本" SET "Ä b" = 'ß', "$1" = 1 WHERE "SELECT" < 4"#,
            r#"UPDATE "Büro & Co"."Größe ""x"" 日本" SET "c""d" = 77 WHERE "SELECT" = 5"#,
            r#"DELETE FROM "Büro & Co"."Größe ""x"" 日本" WHERE "SELECT" = 6"#,
            r#"INSERT INTO "UPPER" VALUES (1, 'public'); INSERT INTO other."UPPER" VALUES (1, 'other')"#,
            r#"UPDATE "UPPER" SET "user" = E'a\tb\n\\N'"#,
            r#"INSERT INTO " spaced . dotted " VALUES (1, 'x'); UPDATE " spaced . dotted " SET " " = ''"#,
        ],
    },
    Case {
        name: "truncate",
        tables: "
            CREATE TABLE parents (id serial PRIMARY KEY, b text);
            CREATE TABLE children (id serial PRIMARY KEY, parent int REFERENCES parents, b text);
            CREATE TABLE alone (a int PRIMARY KEY);
            CREATE TABLE base (a int PRIMARY KEY);
            CREATE TABLE derived (b int, PRIMARY KEY (a)) INHERITS (base);
            INSERT INTO parents (b) SELECT 'x' FROM generate_series(1, 9);
            INSERT INTO children (parent, b) SELECT g, 'x' FROM generate_series(1, 9) g;
            INSERT INTO alone SELECT generate_series(1, 9);
            INSERT INTO base SELECT generate_series(1, 9); INSERT INTO derived SELECT generate_series(11, 19)",
        on_target: NOTHING,
        writes: &[
            "TRUNCATE alone, children",
            "INSERT INTO children (parent, b) VALUES (1, 'y'), (2, 'y')",
            "BEGIN; INSERT INTO parents (b) VALUES ('z'); TRUNCATE parents RESTART IDENTITY CASCADE;
             INSERT INTO parents (b) VALUES ('after'); INSERT INTO children (parent, b) VALUES (1, 'after'); COMMIT",
            "INSERT INTO alone VALUES (1); TRUNCATE alone; INSERT INTO alone VALUES (2)",
            "TRUNCATE ONLY base",
            "UPDATE base SET a = a + 100; TRUNCATE base CASCADE",
            "INSERT INTO derived VALUES (1, 1)",
        ],
    },
    Case {
        name: "transactions that end otherwise",
        tables: "CREATE TABLE ends (a int PRIMARY KEY, b text)",
        on_target: NOTHING,
        writes: &[
            "BEGIN; COMMIT",
            "BEGIN; INSERT INTO ends VALUES (1, 'x'); ROLLBACK",
            "BEGIN; INSERT INTO ends VALUES (1, 'x'); SAVEPOINT a; INSERT INTO ends VALUES (2, 'x'); SAVEPOINT b;
             UPDATE ends SET b = 'y'; ROLLBACK TO a; INSERT INTO ends VALUES (3, 'x'); RELEASE a; COMMIT",
            "DO $$ BEGIN INSERT INTO ends VALUES (4, 'x');
                BEGIN INSERT INTO ends VALUES (4, 'twice'); EXCEPTION WHEN unique_violation THEN
                    INSERT INTO ends VALUES (5, 'caught'); END; END $$",
            "BEGIN; INSERT INTO ends VALUES (6, 'x'); DELETE FROM ends WHERE a = 6; COMMIT",
            "BEGIN; DELETE FROM ends WHERE a = 1; INSERT INTO ends VALUES (1, 'again'); COMMIT",
            "SELECT pg_logical_emit_message(true, 'p', 'c'), pg_logical_emit_message(false, 'p', 'c')",
            "CREATE TABLE not_followed (a int); DROP TABLE not_followed",
        ],
    },
    Case {
        name: "uniqueness that is checked late",
        tables: "
            CREATE TABLE late (a int PRIMARY KEY, b int UNIQUE DEFERRABLE, c int UNIQUE DEFERRABLE INITIALLY DEFERRED);
            INSERT INTO late VALUES (1, 1, 1), (2, 2, 2)",
        on_target: NOTHING,
        writes: &["UPDATE late SET b = 3 - b", "UPDATE late SET c = 3 - c"],
    },
    Case {
        name: "a column added and one dropped on both sides",
        tables: "
            CREATE TABLE altered (a int PRIMARY KEY, b text, c text);
            INSERT INTO altered SELECT g, 'x' FROM generate_series(1, 9) g",
        on_target: "ALTER TABLE altered ADD COLUMN d text DEFAULT 'd'",
        writes: &[
            "UPDATE altered SET b = 'before' WHERE a = 1",
            "ALTER TABLE altered ADD COLUMN d text DEFAULT 'd'",
            "UPDATE altered SET d = 'new' WHERE a < 4; INSERT INTO altered VALUES (10, 'x', 'y', NULL)",
            "BEGIN; ALTER TABLE altered ALTER COLUMN b SET DEFAULT 'q'; INSERT INTO altered (a) VALUES (11); COMMIT",
        ],
    },
    Case {
        name: "tables of no column and of the key alone",
        tables: "
            CREATE TABLE empty (); INSERT INTO empty DEFAULT VALUES;
            CREATE TABLE key_alone (a text PRIMARY KEY); INSERT INTO key_alone VALUES ('a'), ('b'), ('c')",
        on_target: NOTHING,
        writes: &[
            "INSERT INTO empty DEFAULT VALUES; INSERT INTO empty DEFAULT VALUES",
            "UPDATE key_alone SET a = a",
            "UPDATE key_alone SET a = a || '!' WHERE a <> 'c'",
            "DELETE FROM key_alone WHERE a = 'c'",
        ],
    },
    Case {
        name: "triggers, rules and policies of the target do not act",
        tables: "
            CREATE TABLE acted (a int PRIMARY KEY, b text);
            CREATE TABLE acted_log (a int PRIMARY KEY);
            CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
                NEW.b := NEW.b || '+'; INSERT INTO acted_log VALUES (NEW.a); RETURN NEW; END $$;
            CREATE TRIGGER act BEFORE INSERT ON acted FOR EACH ROW EXECUTE FUNCTION act();
            CREATE RULE ruled AS ON DELETE TO acted_log DO INSTEAD NOTHING",
        on_target: NOTHING,
        writes: &[
            "INSERT INTO acted VALUES (1, 'x'), (2, 'y')",
            "UPDATE acted SET b = 'z' WHERE a = 1",
            "DELETE FROM acted WHERE a = 2",
        ],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes() {
    let pair = Pair::start().await;
    let only = std::env::var("WALFERRY_TEST_CASE").unwrap_or_default();
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(&only)).collect();
    let owner = pair.owner().await;
    owner.batch_execute(FUNCTIONS).await.unwrap();
    for case in &cases {
        owner.batch_execute(case.tables).await.unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
    }
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let target = pair.cluster.target.client("defaultdb").await.unwrap();
    target.batch_execute("SET ROLE avnadmin").await.unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        target.batch_execute(case.on_target).await.unwrap();
        for write in case.writes {
            owner.batch_execute(write).await.unwrap_or_else(|error| panic!("{write}: {error:?}"));
        }
        engine.wait_drained(&pair).await;
        let comparison = pair.compare().await;
        if !comparison.tables_equal() {
            wrong.push(format!("{}: {comparison}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), engine.log());
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

/// Larger than may be held: it goes to the target in segments, and is seen there all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_300_000_rows() {
    const ROWS: u64 = 300_000;
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner
        .batch_execute(
            "CREATE TABLE big (a int PRIMARY KEY, b text); CREATE TABLE fat (a int PRIMARY KEY, b bytea)",
        )
        .await
        .unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let small = engine.resident_max();
    let insert = format!(
        "BEGIN; INSERT INTO big SELECT g, repeat(md5(g::text), 6) FROM generate_series(1, {ROWS}) g; SAVEPOINT s;
         UPDATE big SET b = 'x' WHERE a % 100 = 0; COMMIT"
    );
    owner.batch_execute(&insert).await.unwrap();
    let end = pair.source_wal().await;
    // The first engine dies with the transaction half applied: rows that nobody sees take space already.
    wait_for("the large transaction", PATIENCE, async || {
        pair.target_value("SELECT pg_relation_size('big') > 1000000").await == "t"
    })
    .await;
    engine.kill9().await;
    assert_eq!(pair.target_value("SELECT count(*) FROM big").await, "0", "nothing of it is seen");

    let began = Instant::now();
    let mut engine = pair.migrate().start();
    let target = pair.cluster.target.client("defaultdb").await.unwrap();
    loop {
        let count: i64 = target.query_one("SELECT count(*) FROM big", &[]).await.unwrap().get(0);
        match count {
            0 => sleep(POLL).await,
            all if all.unsigned_abs() == ROWS => break,
            part => panic!("{part} of {ROWS} rows are seen"),
        }
        engine.assert_lives("the large transaction");
        assert!(began.elapsed() < Duration::from_secs(240), "{}", engine.log());
    }
    engine.wait_applied(end).await;
    eprintln!("{ROWS} rows in one transaction: {:?}", began.elapsed());
    owner.batch_execute("INSERT INTO fat SELECT g, decode(repeat(md5(g::text), 250000), 'hex') FROM generate_series(1, 8) g")
        .await
        .unwrap();
    engine.wait_drained(&pair).await;
    let resident = engine.resident_max();
    eprintln!("resident at most: {} MiB, {} MiB before", resident >> 20, small >> 20);
    assert!(resident < 256 << 20, "{resident} bytes");
    pair.assert_ends_equal(engine).await;
}
