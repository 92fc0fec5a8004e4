//! Rows that are hard to find, and rows that are wide.

use crate::harness::Pair;

/// Tables, and what is done to them, one transaction each.
struct Case {
    tables: &'static str,
    writes: &'static [&'static str],
}

const CASES: &[Case] = &[
    // Equal to an operator, and not the same: the key changes, and so does the value.
    Case {
        tables: "
            CREATE TABLE equal_float (k float8 PRIMARY KEY, v float4); INSERT INTO equal_float VALUES (0, 0), ('NaN', 1);
            CREATE TABLE equal_numeric (k numeric PRIMARY KEY, v numeric); INSERT INTO equal_numeric VALUES (1.0, 1.0), (2, 2);
            CREATE TABLE equal_char (k char(5) PRIMARY KEY, v char(5)); INSERT INTO equal_char VALUES ('a', 'b');
            CREATE TABLE equal_interval (k interval PRIMARY KEY, v interval); INSERT INTO equal_interval VALUES ('1 day', '24:00');
            CREATE EXTENSION IF NOT EXISTS citext;
            CREATE TABLE equal_citext (k citext PRIMARY KEY, v citext); INSERT INTO equal_citext VALUES ('a', 'b'), ('é', 'x');
            CREATE TABLE equal_jsonb (k jsonb PRIMARY KEY, v jsonb); INSERT INTO equal_jsonb VALUES ('1.0', '1.0');
            CREATE TABLE equal_array (k numeric[] PRIMARY KEY, v json); INSERT INTO equal_array VALUES ('{1.0,NULL}', '[1]');
            CREATE TABLE equal_full (k numeric PRIMARY KEY, v float8); ALTER TABLE equal_full REPLICA IDENTITY FULL;
            INSERT INTO equal_full VALUES (1.0, 0), (2.0, '-0')",
        writes: &[
            "UPDATE equal_float SET k = '-0', v = '-0' WHERE k = 0",
            "BEGIN; UPDATE equal_float SET k = 0 WHERE k = 0; UPDATE equal_float SET v = 0 WHERE k = 0;
             UPDATE equal_float SET k = '-0' WHERE k = 0; UPDATE equal_float SET v = 7 WHERE k = 0; COMMIT",
            "BEGIN; UPDATE equal_numeric SET k = 1.00, v = 1.00 WHERE k = 1; UPDATE equal_numeric SET v = 1.000 WHERE k = 1;
             UPDATE equal_numeric SET k = 1.0 WHERE k = 1; UPDATE equal_numeric SET v = 1.0000 WHERE k = 1; COMMIT",
            "BEGIN; DELETE FROM equal_numeric WHERE k = 2; INSERT INTO equal_numeric VALUES (2.00, 3); COMMIT",
            "UPDATE equal_char SET k = 'a  ', v = 'b '",
            "UPDATE equal_interval SET k = '24:00', v = '1 day'",
            "UPDATE equal_citext SET k = 'A', v = 'B' WHERE k = 'a'; UPDATE equal_citext SET v = 'y' WHERE k = 'a'",
            "UPDATE equal_jsonb SET k = '1.00', v = '1.00'",
            "UPDATE equal_array SET k = '{1.00,NULL}', v = '[1 ]'",
            "UPDATE equal_full SET k = 1.00, v = '-0' WHERE k = 1; UPDATE equal_full SET v = 0 WHERE k = 2",
            "DELETE FROM equal_float WHERE k = 0; DELETE FROM equal_citext WHERE k = 'É'; DELETE FROM equal_full WHERE k = 1",
        ],
    },
    // Composite and other types as one of several columns of the key, or of an index that is the identity.
    Case {
        tables: "
            CREATE TYPE part AS (a int, b text); CREATE TYPE color AS ENUM ('red', 'blue');
            CREATE DOMAIN color_domain AS color; CREATE DOMAIN part_domain AS part;
            CREATE TABLE keys_of_types (p part, c color_domain, r regclass, d part_domain, v int,
                PRIMARY KEY (r, p, c, d));
            INSERT INTO keys_of_types SELECT ROW(g, 'x' || g)::part, 'red', 'keys_of_types', ROW(g, NULL)::part, g
                FROM generate_series(1, 20) g;
            CREATE TABLE index_of_types (v int, ps part[] NOT NULL, cs color[] NOT NULL, r regtype NOT NULL,
                UNIQUE (ps, cs, r));
            ALTER TABLE index_of_types REPLICA IDENTITY USING INDEX index_of_types_ps_cs_r_key;
            INSERT INTO index_of_types SELECT g, ARRAY[ROW(g, 'x'), NULL]::part[], '{blue,NULL}', 'part'
                FROM generate_series(1, 20) g;
            CREATE DOMAIN looser AS int; CREATE TABLE no_longer_valid (k looser PRIMARY KEY, v int);
            INSERT INTO no_longer_valid SELECT g, g FROM generate_series(-5, 5) g;
            ALTER DOMAIN looser ADD CHECK (VALUE > 0) NOT VALID",
        writes: &[
            "UPDATE keys_of_types SET v = v + 1",
            "UPDATE keys_of_types SET p = ROW(-v, NULL), c = 'blue' WHERE v < 5",
            "DELETE FROM keys_of_types WHERE v > 15",
            "INSERT INTO keys_of_types SELECT p, c, 'pg_class', d, v FROM keys_of_types",
            "UPDATE index_of_types SET v = v + 1",
            "UPDATE index_of_types SET ps = ps || ps, r = 'int' WHERE v < 5",
            "DELETE FROM index_of_types WHERE v > 15",
            "UPDATE no_longer_valid SET v = v + 1; UPDATE no_longer_valid SET k = k + 100 WHERE k < -3",
            "DELETE FROM no_longer_valid WHERE k <= 0",
        ],
    },
    // Exactly one of several equal rows, where no type has an equality; and rows that differ in nothing but text.
    Case {
        tables: r#"
            CREATE TABLE same (j json, x xml, p point, b box, "q ""c""" polygon, js json[], l line, e text);
            ALTER TABLE same REPLICA IDENTITY FULL;
            INSERT INTO same SELECT '{"a" : 1}', '<a  b="1"/>', '(1,-0)', '(1,1),(0,0)', '((0,0),(1,1))',
                ARRAY['{}', NULL, ' [ ]']::json[], '{1,2,3}', '' FROM generate_series(1, 5);
            INSERT INTO same SELECT '{"a": 1}', '<a b="1"/>', '(1,0)', '(1,1),(0,0)', '((0,0),(1,1))',
                ARRAY['{}', NULL, '[]']::json[], '{1,2,3}', '' FROM generate_series(1, 5);
            INSERT INTO same SELECT FROM generate_series(1, 5)"#,
        writes: &[
            "UPDATE same SET e = 'first' WHERE ctid = (SELECT min(ctid) FROM same)",
            "UPDATE same SET e = 'last' WHERE ctid = (SELECT max(ctid) FROM same)",
            "DELETE FROM same WHERE ctid = (SELECT min(ctid) FROM same WHERE e = '')",
            "DELETE FROM same WHERE ctid = (SELECT min(ctid) FROM same WHERE j::text = '{\"a\": 1}')",
            "DELETE FROM same WHERE ctid = (SELECT min(ctid) FROM same WHERE j IS NULL)",
            "UPDATE same SET p = '(1,0)' WHERE ctid = (SELECT min(ctid) FROM same WHERE p::text = '(1,-0)')",
            "INSERT INTO same SELECT * FROM same",
            "DELETE FROM same WHERE ctid IN (SELECT min(ctid) FROM same GROUP BY j::text, e)",
            "UPDATE same SET j = NULL, x = NULL WHERE ctid IN (SELECT min(ctid) FROM same GROUP BY j::text, e)",
        ],
    },
    Case {
        tables: r#"
            CREATE TABLE "Identity" ("Id" int GENERATED ALWAYS AS IDENTITY (MINVALUE -5) PRIMARY KEY, "v ""1""" text,
                "Twice" text GENERATED ALWAYS AS ("v ""1""" || "v ""1""") STORED, " " int GENERATED BY DEFAULT AS IDENTITY);
            INSERT INTO "Identity" ("v ""1""") SELECT E'\\.' || chr(g) FROM generate_series(1, 40) g"#,
        writes: &[
            r#"INSERT INTO "Identity" ("v ""1""") SELECT E'\t' || chr(g) FROM generate_series(1, 40) g"#,
            r#"UPDATE "Identity" SET "v ""1""" = "v ""1""" || E'\\' WHERE "Id" % 2 = 0"#,
            r#"UPDATE "Identity" SET "Id" = DEFAULT WHERE "Id" % 3 = 0"#,
            r#"DELETE FROM "Identity" WHERE "Id" % 5 = 0"#,
        ],
    },
    // Some values of a row stay as they are outside it, others change, in every combination.
    Case {
        tables: "
            CREATE FUNCTION long(seed text) RETURNS text LANGUAGE sql
                AS $$ SELECT string_agg(md5(seed || g), '') FROM generate_series(1, 200) g $$;
            CREATE TABLE toasts (k int PRIMARY KEY, a text, b bytea, c jsonb, d text[], e text, n int);
            ALTER TABLE toasts ALTER a SET STORAGE EXTERNAL, ALTER e SET STORAGE MAIN;
            CREATE TABLE toast_key (k text PRIMARY KEY, a text, n int); ALTER TABLE toast_key ALTER k SET STORAGE EXTERNAL;
            CREATE TABLE toast_full (LIKE toasts); ALTER TABLE toast_full REPLICA IDENTITY FULL;
            INSERT INTO toasts SELECT g, long('a' || g), decode(long('b' || g), 'hex'), to_jsonb(long('c' || g)),
                ARRAY[long('d' || g), NULL], long('e' || g), 0 FROM generate_series(0, 31) g;
            INSERT INTO toast_full SELECT * FROM toasts;
            INSERT INTO toast_key SELECT repeat(left(long('k' || g), 40), 60), long('a'), 0 FROM generate_series(1, 8) g",
        writes: &[
            "UPDATE toasts SET n = 1",
            "UPDATE toasts SET a = CASE WHEN k & 1 = 0 THEN a ELSE long('A' || k) END,
                b = CASE WHEN k & 2 = 0 THEN b ELSE NULL END, c = CASE WHEN k & 4 = 0 THEN c ELSE '1.0' END,
                d = CASE WHEN k & 8 = 0 THEN d ELSE d || long('D' || k) END, e = CASE WHEN k & 16 = 0 THEN e ELSE '' END",
            "BEGIN; UPDATE toasts SET a = long('x' || k) WHERE k < 8; UPDATE toasts SET n = 2 WHERE k < 8;
             UPDATE toasts SET b = '\\x00', k = k + 100 WHERE k < 4; UPDATE toasts SET c = '{}' WHERE k < 110; COMMIT",
            "UPDATE toast_full SET n = 1; UPDATE toast_full SET a = long('y'), k = k + 100 WHERE k < 8",
            "DELETE FROM toast_full WHERE k % 3 = 0; DELETE FROM toasts WHERE k % 3 = 0",
            "UPDATE toast_key SET n = 1; UPDATE toast_key SET k = k || 'x' WHERE k < '8'",
            "DELETE FROM toast_key WHERE k < '4'",
        ],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_find_their_rows() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    for case in CASES {
        owner.batch_execute(case.tables).await.unwrap_or_else(|error| panic!("{}: {error:?}", case.tables));
    }
    for sql in [WIDE, UNICODE] {
        owner.batch_execute(sql).await.unwrap();
    }
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    for write in CASES.iter().flat_map(|case| case.writes).chain(WIDE_WRITES).chain(UNICODE_WRITES) {
        owner.batch_execute(write).await.unwrap_or_else(|error| panic!("{write}: {error:?}"));
        // One transaction to a batch, so that what follows does not hide what it did.
        engine.wait_drained(&pair).await;
    }
    pair.assert_ends_equal(engine).await;
}

/// As many columns as a table can have; in a row of 8 kB most of them are NULL or short.
const WIDE: &str = "
DO $$ BEGIN
    EXECUTE (SELECT format('CREATE TABLE wide (id int PRIMARY KEY, %s)',
                    string_agg(format('%I %s', 'Column ' || g, CASE g % 3 WHEN 0 THEN 'int2' WHEN 1 THEN 'text' ELSE 'bool' END), ', '))
             FROM generate_series(2, 1600) g);
    EXECUTE 'CREATE TABLE wide_full (LIKE wide)';
    EXECUTE 'ALTER TABLE wide_full REPLICA IDENTITY FULL';
END $$;
INSERT INTO wide (id, \"Column 2\", \"Column 1600\") VALUES (1, true, 'copied'), (2, NULL, NULL);
INSERT INTO wide_full (id, \"Column 2\") VALUES (1, true), (1, true), (2, NULL);
CREATE FUNCTION fill(id int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    EXECUTE (SELECT format('INSERT INTO wide VALUES (%s, %s)', id,
                    string_agg(CASE g % 3 WHEN 0 THEN g::text WHEN 1 THEN quote_literal(g % 9) ELSE 'true' END, ', '))
             FROM generate_series(2, 1600) g);
END $$";

const WIDE_WRITES: &[&str] = &[
    "SELECT fill(g) FROM generate_series(10, 30) g",
    "UPDATE wide SET \"Column 1599\" = 7; UPDATE wide SET \"Column 4\" = NULL WHERE id > 20",
    "UPDATE wide SET id = id + 100 WHERE id > 25",
    "INSERT INTO wide_full SELECT * FROM wide WHERE id < 15",
    "UPDATE wide_full SET \"Column 1600\" = 'x' WHERE ctid = (SELECT min(ctid) FROM wide_full)",
    "DELETE FROM wide_full WHERE ctid IN (SELECT max(ctid) FROM wide_full GROUP BY id)",
    "DELETE FROM wide WHERE id IN (1, 10, 126)",
];

/// Every character there is: 4,096 to a row.
const UNICODE: &str = "
CREATE TABLE unicode (first int PRIMARY KEY, t text, a text[]);
INSERT INTO unicode SELECT g / 4096, string_agg(chr(g), '' ORDER BY g) FROM generate_series(1, 1114111) g
WHERE g NOT BETWEEN 55296 AND 57343 GROUP BY 1";

const UNICODE_WRITES: &[&str] = &[
    "INSERT INTO unicode SELECT first + 1000, t, ARRAY[left(t, 100), NULL] FROM unicode",
    "UPDATE unicode SET t = reverse(t), a = ARRAY[[right(t, 100)]] WHERE first % 2 = 0",
];
