//! Definitions that change while the stream runs: followed, or stopped at with the statement that the target needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::harness::{DATABASE, PATIENCE, Pair, wait_for};

/// What is done on the source, where the engine stops, and what its hint says.
struct Case {
    name: &'static str,
    /// Before the migration, on the source.
    tables: &'static str,
    /// While the engine runs, each one simple query: one transaction unless it says otherwise.
    writes: &'static [&'static str],
    /// One after the other: the cause, and the statement, which is run on the target as it is.
    stops: &'static [(&'static str, &'static str)],
    /// What the target answers at the first stop: all before the change, and nothing from it on.
    held: (&'static str, &'static str),
    /// On the target, when all is applied: what the source did besides.
    then: &'static str,
}

const NOTHING: &str = "";

const CASES: &[Case] = &[
    Case {
        name: "a column added",
        tables: "CREATE TABLE added (a int PRIMARY KEY); INSERT INTO added VALUES (1), (2)",
        writes: &[
            "INSERT INTO added VALUES (3)",
            "ALTER TABLE added ADD COLUMN \"It's\" varchar(9) DEFAULT 'a\\''b' NOT NULL",
            "INSERT INTO added VALUES (4, 'new')",
            "UPDATE added SET \"It's\" = 'old' WHERE a = 1; DELETE FROM added WHERE a = 2",
        ],
        stops: &[(
            "table public.added has no column \"It's\" on the target",
            "ALTER TABLE \"public\".\"added\" ADD COLUMN \"It's\" character varying(9) NOT NULL DEFAULT  E'a\\\\''b'; \
             ALTER TABLE \"public\".\"added\" ALTER COLUMN \"It's\" SET DEFAULT 'a\\''b'::character varying",
        )],
        held: ("SELECT array_agg(a ORDER BY a) FROM added", "{1,2,3}"),
        then: NOTHING,
    },
    Case {
        name: "a column with a default added between two rows of a transaction",
        tables: "CREATE TABLE defaulted (a int PRIMARY KEY); INSERT INTO defaulted VALUES (1)",
        writes: &[
            "INSERT INTO defaulted VALUES (2); ALTER TABLE defaulted ADD COLUMN c int; \
             ALTER TABLE defaulted ALTER c SET DEFAULT 5; INSERT INTO defaulted VALUES (3)",
            "INSERT INTO defaulted VALUES (4)",
        ],
        stops: &[(
            "table public.defaulted has no column \"c\" on the target",
            "ALTER TABLE \"public\".\"defaulted\" ADD COLUMN \"c\" integer; \
             ALTER TABLE \"public\".\"defaulted\" ALTER COLUMN \"c\" SET DEFAULT 5",
        )],
        held: ("SELECT count(*) FROM defaulted", "1"),
        then: NOTHING,
    },
    Case {
        name: "a column renamed, in a transaction of its own",
        tables: "CREATE TABLE renamed (a int PRIMARY KEY, b text); INSERT INTO renamed VALUES (1, 'x')",
        writes: &[
            "INSERT INTO renamed VALUES (2, 'x')",
            "ALTER TABLE renamed RENAME COLUMN b TO c",
            "UPDATE renamed SET c = 'y' WHERE a = 1",
        ],
        stops: &[(
            "table public.renamed has no column \"c\" on the target",
            "ALTER TABLE \"public\".\"renamed\" RENAME COLUMN \"b\" TO \"c\"",
        )],
        held: ("SELECT count(*) FROM renamed WHERE b = 'x'", "2"),
        then: NOTHING,
    },
    Case {
        name: "a column dropped that the target needs",
        tables: "CREATE TABLE needed (a int PRIMARY KEY, b text NOT NULL, c text);
                 INSERT INTO needed VALUES (1, 'x', 'x')",
        writes: &["INSERT INTO needed VALUES (2, 'x', 'x'); ALTER TABLE needed DROP COLUMN b", "INSERT INTO needed VALUES (3, 'x')"],
        stops: &[(
            "column \"b\" of table public.needed is not on the source any more, and NOT NULL on the target",
            "ALTER TABLE \"public\".\"needed\" DROP COLUMN \"b\"",
        )],
        held: ("SELECT count(*) FROM needed", "2"),
        then: NOTHING,
    },
    Case {
        name: "a column dropped that the target does not need",
        tables: "CREATE TABLE unneeded (a int PRIMARY KEY, b text); INSERT INTO unneeded VALUES (1, 'x')",
        writes: &["ALTER TABLE unneeded DROP COLUMN b", "INSERT INTO unneeded VALUES (2)"],
        stops: &[],
        held: (NOTHING, NOTHING),
        then: "ALTER TABLE unneeded DROP COLUMN b",
    },
    Case {
        name: "types changed",
        tables: "CREATE TYPE mood AS ENUM ('sad', 'ok');
                 CREATE TABLE typed (a int PRIMARY KEY, i int, t timestamptz, n numeric(10, 4), v varchar(9), e text);
                 INSERT INTO typed SELECT g, g, '2001-02-03 04:05:06.789+05', 1.2345, 'abcdefghi', 'ok'
                 FROM generate_series(1, 5) g",
        writes: &[
            "UPDATE typed SET i = 2147483647 WHERE a = 1",
            "ALTER TABLE typed ALTER COLUMN i TYPE bigint",
            "UPDATE typed SET i = i + 1 WHERE a < 3",
            "ALTER TABLE typed ALTER COLUMN t TYPE timestamp",
            "UPDATE typed SET t = '2001-02-03 04:05:06.789' WHERE a = 3",
            "ALTER TABLE typed ALTER COLUMN n TYPE numeric(10, 2)",
            "UPDATE typed SET n = 1.23 WHERE a = 3",
            "ALTER TABLE typed ALTER COLUMN v TYPE varchar(3) USING left(v, 3)",
            "UPDATE typed SET v = 'x' WHERE a = 3",
            "ALTER TABLE typed ALTER COLUMN e TYPE mood USING e::mood",
            "UPDATE typed SET e = 'sad' WHERE a = 3; INSERT INTO typed VALUES (6)",
        ],
        stops: &[
            (
                "column \"i\" of table public.typed has another type on the source than on the target",
                "ALTER TABLE \"public\".\"typed\" ALTER COLUMN \"i\" TYPE bigint",
            ),
            ("column \"t\" of table public.typed has another type", "ALTER TABLE \"public\".\"typed\" ALTER COLUMN \"t\" TYPE timestamp without time zone"),
            ("column \"n\" of table public.typed has another type", "ALTER TABLE \"public\".\"typed\" ALTER COLUMN \"n\" TYPE numeric(10,2)"),
            (
                "column \"v\" of table public.typed has another type",
                "ALTER TABLE \"public\".\"typed\" ALTER COLUMN \"v\" TYPE character varying(3) USING left(v, 3)",
            ),
            (
                "column \"e\" of table public.typed has another type",
                "ALTER TABLE \"public\".\"typed\" ALTER COLUMN \"e\" TYPE public.mood USING e::public.mood",
            ),
        ],
        held: ("SELECT i FROM typed WHERE a = 1", "2147483647"),
        then: NOTHING,
    },
    Case {
        name: "an enum's new label",
        tables: "CREATE TYPE colour AS ENUM ('red'); CREATE TABLE coloured (a int PRIMARY KEY, c colour)",
        writes: &["INSERT INTO coloured VALUES (1, 'red')", "ALTER TYPE colour ADD VALUE 'blue'", "INSERT INTO coloured VALUES (2, 'blue')"],
        stops: &[("conflict (refused) in table public.coloured", "ALTER TYPE public.colour ADD VALUE 'blue'")],
        held: (NOTHING, NOTHING),
        then: NOTHING,
    },
    Case {
        name: "a column that comes and goes in one transaction",
        tables: "CREATE TABLE passing (a int PRIMARY KEY); INSERT INTO passing VALUES (1)",
        writes: &[
            "INSERT INTO passing VALUES (2)",
            "BEGIN; INSERT INTO passing VALUES (3); ALTER TABLE passing ADD COLUMN b int; INSERT INTO passing VALUES (4, 4);
             UPDATE passing SET a = 10 WHERE a = 1; ALTER TABLE passing DROP COLUMN b; INSERT INTO passing VALUES (5);
             DELETE FROM passing WHERE a = 2; COMMIT",
            "INSERT INTO passing VALUES (6)",
        ],
        stops: &[(
            "table public.passing has no column \"b\" on the target",
            "ALTER TABLE \"public\".\"passing\" ADD COLUMN \"b\" integer",
        )],
        held: ("SELECT array_agg(a ORDER BY a) FROM passing", "{1,2}"),
        then: "ALTER TABLE passing DROP COLUMN b",
    },
    Case {
        name: "TRUNCATE before and after a new column, in one transaction",
        tables: "CREATE TABLE emptied (a int PRIMARY KEY); INSERT INTO emptied VALUES (1)",
        writes: &["BEGIN; INSERT INTO emptied VALUES (2); TRUNCATE emptied; INSERT INTO emptied VALUES (3);
                   ALTER TABLE emptied ADD COLUMN b int DEFAULT 7; INSERT INTO emptied VALUES (4); TRUNCATE emptied;
                   INSERT INTO emptied VALUES (5); INSERT INTO emptied VALUES (6, 8); COMMIT"],
        stops: &[(
            "table public.emptied has no column \"b\" on the target",
            "ALTER TABLE \"public\".\"emptied\" ADD COLUMN \"b\" integer DEFAULT '7'; ALTER TABLE \"public\".\"emptied\" ALTER COLUMN \"b\" SET DEFAULT 7",
        )],
        held: ("SELECT array_agg(a ORDER BY a) FROM emptied", "{1}"),
        then: NOTHING,
    },
    Case {
        name: "a wider type in the middle of a transaction",
        tables: "CREATE TABLE wider (a int PRIMARY KEY, b int); INSERT INTO wider VALUES (1, 1)",
        writes: &[
            "BEGIN; INSERT INTO wider VALUES (2, 2); ALTER TABLE wider ALTER COLUMN b TYPE bigint;
             INSERT INTO wider VALUES (3, 30000000000); UPDATE wider SET b = 4 WHERE a = 1; COMMIT",
        ],
        stops: &[(
            "column \"b\" of table public.wider has another type",
            "ALTER TABLE \"public\".\"wider\" ALTER COLUMN \"b\" TYPE bigint",
        )],
        held: ("SELECT count(*) FROM wider", "1"),
        then: NOTHING,
    },
    Case {
        name: "a column needed, and dropped in the middle of a transaction",
        tables: "CREATE TABLE left_out (a int PRIMARY KEY, b int NOT NULL); INSERT INTO left_out VALUES (1, 1)",
        writes: &["BEGIN; INSERT INTO left_out VALUES (2, 2); ALTER TABLE left_out DROP COLUMN b; INSERT INTO left_out VALUES (3); COMMIT"],
        stops: &[(
            "column \"b\" of table public.left_out is not on the source any more",
            "ALTER TABLE \"public\".\"left_out\" ALTER COLUMN \"b\" DROP NOT NULL",
        )],
        held: ("SELECT count(*) FROM left_out", "1"),
        then: "ALTER TABLE left_out DROP COLUMN b",
    },
    Case {
        name: "a narrower type in the middle of a transaction: the table is copied again",
        tables: "CREATE TABLE narrower (a int PRIMARY KEY, b text); INSERT INTO narrower VALUES (1, 'abc');
                 CREATE TABLE refers (a int REFERENCES narrower, b int PRIMARY KEY); INSERT INTO refers VALUES (1, 1)",
        writes: &[
            "BEGIN; INSERT INTO narrower VALUES (2, 'def'); INSERT INTO refers VALUES (2, 2);
             ALTER TABLE narrower ALTER COLUMN b TYPE varchar(2) USING right(b, 2);
             INSERT INTO narrower VALUES (3, 'gh'); UPDATE narrower SET b = 'i' WHERE a = 1; COMMIT",
            "INSERT INTO narrower VALUES (4, 'jk'); INSERT INTO refers VALUES (4, 4)",
        ],
        stops: &[(
            "column \"b\" of table public.narrower has another type",
            "ALTER TABLE \"public\".\"narrower\" ALTER COLUMN \"b\" TYPE character varying(2) USING left(b, 2)",
        )],
        held: ("SELECT (SELECT count(*) FROM narrower) + (SELECT count(*) FROM refers)", "2"),
        then: NOTHING,
    },
    Case {
        name: "a column renamed in the middle of a transaction: the table is copied again",
        tables: "CREATE TABLE turned (a int PRIMARY KEY, b text); INSERT INTO turned VALUES (1, 'x')",
        writes: &["BEGIN; INSERT INTO turned VALUES (2, 'x'); ALTER TABLE turned RENAME COLUMN b TO c; INSERT INTO turned VALUES (3, 'x'); COMMIT"],
        stops: &[(
            "table public.turned has no column \"c\" on the target",
            "ALTER TABLE \"public\".\"turned\" RENAME COLUMN \"b\" TO \"c\"",
        )],
        held: ("SELECT count(*) FROM turned", "1"),
        then: NOTHING,
    },
    Case {
        name: "tables renamed, in and between transactions",
        tables: "CREATE SCHEMA archive; CREATE TABLE called (a int PRIMARY KEY); INSERT INTO called VALUES (1)",
        writes: &[
            "INSERT INTO called VALUES (2)",
            "BEGIN; INSERT INTO called VALUES (3); ALTER TABLE called RENAME TO \"Other\"; INSERT INTO \"Other\" VALUES (4); COMMIT",
            "INSERT INTO \"Other\" VALUES (5); ALTER TABLE \"Other\" SET SCHEMA archive",
            "INSERT INTO archive.\"Other\" VALUES (6)",
        ],
        stops: &[(
            "table public.called was renamed on the source",
            "ALTER TABLE \"public\".\"called\" SET SCHEMA \"archive\"; ALTER TABLE \"archive\".\"called\" RENAME TO \"Other\"",
        )],
        held: ("SELECT array_agg(a ORDER BY a) FROM called", "{1,2}"),
        then: NOTHING,
    },
    Case {
        name: "a column of partitions",
        tables: "CREATE TABLE parts (a int, PRIMARY KEY (a)) PARTITION BY RANGE (a);
                 CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
                 CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
                 INSERT INTO parts SELECT generate_series(1, 15)",
        writes: &["ALTER TABLE parts ADD COLUMN b int DEFAULT 3", "UPDATE parts SET b = 4 WHERE a % 2 = 0", "INSERT INTO parts VALUES (16)"],
        stops: &[(
            "table public.parts_1 has no column \"b\" on the target",
            "ALTER TABLE \"public\".\"parts\" ADD COLUMN \"b\" integer DEFAULT '3'; ALTER TABLE \"public\".\"parts\" ALTER COLUMN \"b\" SET DEFAULT 3",
        )],
        held: (NOTHING, NOTHING),
        then: NOTHING,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_for_the_target() {
    let pair = Pair::start().await;
    let only = std::env::var("WALFERRY_TEST_CASE").unwrap_or_default();
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(&only)).collect();
    let owner = pair.owner().await;
    for case in &cases {
        run(&owner, case.tables).await;
    }
    let target = target(&pair).await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    for case in &cases {
        // What it says is of the source as it finds it: that is to be after all of them.
        engine.signal("STOP");
        for write in case.writes {
            run(&owner, write).await;
        }
        engine.signal("CONT");
        for (number, (cause, statement)) in case.stops.iter().enumerate() {
            let log = engine.wait_exit(5, PATIENCE).await;
            assert!(log.contains(cause), "{}: no {cause:?} in {log}", case.name);
            let said = statement.split(" USING ").next().unwrap();
            let said = if log.contains("conflict (") { "ADD VALUE" } else { said };
            assert!(log.contains(said), "{}: no {said:?} in {log}", case.name);
            if number == 0 && !case.held.0.is_empty() {
                assert_eq!(pair.target_value(case.held.0).await, case.held.1, "{}: {log}", case.name);
            }
            if number == 0 && case.name.contains("comes and goes") {
                // Nothing done, it ends the same way.
                pair.migrate().run().await.assert(5, &[cause]);
            }
            run(&target, statement).await;
            engine = pair.migrate().start();
        }
        engine.wait_drained(&pair).await;
        run(&target, case.then).await;
        let comparison = pair.compare().await;
        assert!(comparison.tables_equal(), "{}: {comparison}\n{}", case.name, engine.log());
    }
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

async fn target(pair: &Pair) -> Client {
    let client = pair.cluster.target.client(DATABASE).await.unwrap();
    client.batch_execute("SET ROLE avnadmin").await.unwrap();
    client
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// With `--ddl follow` the engine goes on by itself where all is certain, and stops where it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_columns_are_followed() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    run(
        &owner,
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN small AS int DEFAULT 3;
         CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20);
         CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL; INSERT INTO whole VALUES (1), (2);
         CREATE TABLE large (a int PRIMARY KEY, b text); INSERT INTO large VALUES (1, 'x');
         CREATE TABLE gap (a int PRIMARY KEY, gone int); ALTER TABLE gap DROP COLUMN gone; INSERT INTO gap VALUES (1)",
    )
    .await;
    for table in ["volatile", "renamed", "rewritten", "in_domain", "twice", "refused"] {
        run(
            &owner,
            &format!("CREATE TABLE {table} (a int PRIMARY KEY, b text); INSERT INTO {table} VALUES (1)"),
        )
        .await;
    }
    let target = target(&pair).await;
    let launch = pair.migrate().arguments(&["--ddl", "follow"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let followed = [
        "INSERT INTO t VALUES (21); ALTER TABLE t ADD COLUMN b text; UPDATE t SET b = 'x' WHERE a < 3",
        "ALTER TABLE t ADD COLUMN \"C d\" varchar(20) NOT NULL DEFAULT E'it''s a \\\\ \"q\"'; INSERT INTO t VALUES (22)",
        "ALTER TABLE t ADD e int[] DEFAULT '{1,2}', ADD f timestamptz DEFAULT now(), ADD g mood DEFAULT 'ok', ADD h numeric(9, 2);
         UPDATE t SET h = 1.50, e = '{3,NULL}', g = 'sad' WHERE a = 4; DELETE FROM t WHERE a = 5",
        // What older rows hold is not what newer ones get; rows of the same transaction are older ones, too.
        "BEGIN; INSERT INTO t VALUES (30); ALTER TABLE t ADD i int DEFAULT 1; ALTER TABLE t ALTER i SET DEFAULT 2;
         INSERT INTO t VALUES (31); ALTER TABLE t ADD j text COLLATE \"C\"; UPDATE t SET j = 'j' WHERE a = 6; COMMIT",
        "BEGIN; ALTER TABLE t ADD k int DEFAULT 8; ALTER TABLE t ALTER k DROP DEFAULT; INSERT INTO t VALUES (32); COMMIT",
        "BEGIN; DELETE FROM whole WHERE a = 1; ALTER TABLE whole ADD b int DEFAULT 5; UPDATE whole SET a = 3; COMMIT",
        "ALTER TABLE gap ADD b int DEFAULT 5; UPDATE gap SET b = 6; ALTER TABLE gap ADD c int; INSERT INTO gap VALUES (2, 3, 4)",
        // More than is held at once: the statement goes into a target transaction that is open already.
        "BEGIN; INSERT INTO large SELECT g, repeat(md5(g::text), 7) FROM generate_series(2, 40000) g;
         ALTER TABLE large ADD c int DEFAULT 4; UPDATE large SET b = 'y', c = a WHERE a % 2 = 0;
         ALTER TABLE large ADD d int DEFAULT 5; UPDATE large SET b = 'y' WHERE a % 3 = 0; COMMIT",
    ];
    for writes in followed {
        run(&owner, writes).await;
        if writes.contains("large") {
            // Dead in the middle of it, it has done nothing; or all of it.
            sleep(Duration::from_millis(300)).await;
            engine.kill9().await;
            engine = launch.start();
        }
        engine.wait_drained(&pair).await;
        let comparison = pair.compare().await;
        assert!(comparison.tables_equal(), "{writes}: {comparison}\n{}", engine.log());
    }
    let definition =
        "SELECT string_agg(format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull,
            pg_get_expr(adbin, adrelid)), E'\\n' ORDER BY attnum, attname)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid IN ('t'::regclass, 'large'::regclass) AND attnum > 0 AND attname <> 'f'";
    assert_eq!(pair.source_value(definition).await, pair.target_value(definition).await);

    // (on the source; why not; what to run on the target)
    let stops = [
        (
            "BEGIN; INSERT INTO t VALUES (40); TRUNCATE t; INSERT INTO t VALUES (41); ALTER TABLE t ADD l int DEFAULT 3;
             INSERT INTO t VALUES (42); COMMIT",
            "rewritten or emptied since its copy",
            "ALTER TABLE t ADD l int DEFAULT 3",
        ),
        (
            "ALTER TABLE volatile ADD c float8 DEFAULT random(); UPDATE volatile SET b = 'x'",
            "rewritten or emptied since its copy",
            "ALTER TABLE volatile ADD c float8",
        ),
        (
            "ALTER TABLE renamed RENAME b TO c; UPDATE renamed SET c = 'x'",
            "may have been renamed",
            "ALTER TABLE renamed RENAME b TO c",
        ),
        (
            "ALTER TABLE rewritten ADD c int DEFAULT 5; ALTER TABLE rewritten ALTER b TYPE text COLLATE \"C\" USING b || 'x';
             ALTER TABLE rewritten ALTER c DROP DEFAULT; UPDATE rewritten SET c = 6",
            "rewritten or emptied since its copy",
            "ALTER TABLE rewritten ADD c int DEFAULT 5; ALTER TABLE rewritten ALTER c DROP DEFAULT",
        ),
        (
            "ALTER TABLE in_domain ADD c small; UPDATE in_domain SET b = 'x'",
            "it has a domain's type",
            "ALTER TABLE in_domain ADD c small",
        ),
        (
            "ALTER TABLE twice ADD c int DEFAULT 1; ALTER TABLE twice DROP c; ALTER TABLE twice ADD c int DEFAULT 2;
             UPDATE twice SET b = 'x'",
            "another column that was added since the copy is not announced",
            "ALTER TABLE twice ADD c int DEFAULT 2",
        ),
    ];
    for (writes, why, statement) in stops {
        run(&owner, writes).await;
        let log = engine.wait_exit(5, PATIENCE).await;
        assert!(log.contains(why) && log.contains("on the target run: ALTER TABLE"), "{writes}: {log}");
        run(&target, statement).await;
        engine = launch.start();
        engine.wait_phase("syncing").await;
    }
    // One that the target does not take.
    run(&target, "ALTER TYPE mood RENAME TO feeling").await;
    run(&owner, "ALTER TABLE refused ADD c mood; INSERT INTO refused VALUES (2, 'x', 'sad')").await;
    let log = engine.wait_exit(5, PATIENCE).await;
    let said =
        "mend that there, or run yourself: ALTER TABLE \"public\".\"refused\" ADD COLUMN \"c\" public.mood";
    assert!(log.contains(said), "{log}");
    run(&target, "ALTER TYPE feeling RENAME TO mood").await;
    engine = launch.start();
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
}

/// Tables of the target that have more than the source's, in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_has_more_columns_in_another_order() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    let tables = "CREATE TABLE plain (a int PRIMARY KEY, b text, c numeric(9, 3));
        CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY, a int PRIMARY KEY, b text);
        CREATE TABLE wide (a int PRIMARY KEY, i int, v varchar(5), n numeric)";
    run(&owner, tables).await;
    run(
        &owner,
        "INSERT INTO plain SELECT g, 'x', g / 7.0 FROM generate_series(1, 9) g;
         INSERT INTO always (a, b) SELECT g, 'x' FROM generate_series(1, 9) g;
         INSERT INTO wide SELECT g, g, g, g FROM generate_series(1, 9) g",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    let target = target(&pair).await;
    run(
        &target,
        "ALTER TABLE plain ADD extra timestamptz, ADD more int NOT NULL DEFAULT 7;
         ALTER TABLE plain DROP COLUMN b, ADD COLUMN b text; UPDATE plain SET b = 'x';
         ALTER TABLE always ADD extra text; UPDATE always SET extra = 'kept';
         ALTER TABLE always DROP COLUMN b, ADD COLUMN b text; UPDATE always SET b = 'x';
         ALTER TABLE wide ALTER i TYPE bigint, ALTER v TYPE varchar(50), ALTER n TYPE numeric",
    )
    .await;
    let mut engine = pair.migrate().start();
    for write in [
        "UPDATE plain SET b = 'y' WHERE a < 4; DELETE FROM plain WHERE a = 5; INSERT INTO plain VALUES (10, 'z', 1.5)",
        "UPDATE plain SET a = a + 100 WHERE a > 7",
        "UPDATE always SET b = 'y' WHERE a < 4; UPDATE always SET id = DEFAULT WHERE a > 6; DELETE FROM always WHERE a = 5",
        "INSERT INTO always (a, b) VALUES (11, 'n')",
        "UPDATE wide SET i = -i, v = 'abcde' WHERE a < 5; INSERT INTO wide VALUES (10, 10, 'x', 10)",
    ] {
        run(&owner, write).await;
    }
    engine.wait_drained(&pair).await;
    for (query, more) in [
        (
            "SELECT string_agg((a, b, c)::text, ' ' ORDER BY a) FROM plain",
            "SELECT DISTINCT more::text FROM plain",
        ),
        (
            "SELECT string_agg((id, a, b)::text, ' ' ORDER BY a) FROM always",
            "SELECT extra FROM always WHERE a = 9",
        ),
        ("SELECT string_agg((a, i, v, n)::text, ' ' ORDER BY a) FROM wide", "SELECT ''"),
    ] {
        assert_eq!(pair.source_value(query).await, pair.target_value(query).await, "{}", engine.log());
        assert!(["7", "kept", ""].contains(&pair.target_value(more).await.as_str()), "{more}");
    }
    assert!(engine.log().contains("left as it is on the target"), "{}", engine.log());
    engine.terminate(0).await;
}

/// Somebody who writes all the time: each statement with the next number in place of `$n`.
struct Writing {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writing {
    async fn start(pair: &Pair, statements: &'static [&'static str]) -> Self {
        let owner = pair.owner().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            for n in 1_000_000.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                for statement in statements {
                    run(&owner, &statement.replace("$n", &n.to_string())).await;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Tables that come and go while others are written to all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_made_dropped_and_made_again() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    let parted = "CREATE TABLE parted (a int PRIMARY KEY, b int REFERENCES other) PARTITION BY RANGE (a);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
        CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200)";
    run(&owner, "CREATE TABLE other (a int PRIMARY KEY); CREATE TABLE leaves (a int PRIMARY KEY)").await;
    run(&owner, parted).await;
    run(
        &owner,
        "INSERT INTO other VALUES (1); INSERT INTO parted SELECT g, 1 FROM generate_series(0, 150) g",
    )
    .await;
    run(&owner, "INSERT INTO leaves VALUES (1)").await;
    let target = target(&pair).await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;

    // A partition made later, with triggers and foreign keys as the others have them.
    let writing = Writing::start(
        &pair,
        &["INSERT INTO other VALUES ($n)", "UPDATE parted SET b = $n WHERE a % 50 = $n % 50"],
    )
    .await;
    let third = "CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM (200) TO (300)";
    run(&owner, third).await;
    run(
        &owner,
        "INSERT INTO parted SELECT g, 1 FROM generate_series(200, 250) g; DELETE FROM parted WHERE a = 201",
    )
    .await;
    let copied = async || {
        let state = "SELECT state FROM walferry.relation WHERE table_name = 'parted_3' UNION ALL SELECT ''";
        pair.target_value(state).await == "copied"
    };
    wait_for("the new partition", PATIENCE, copied).await;
    engine.wait_phase("syncing").await;
    pair.assert_written(&mut engine, 20).await;

    // A table that is published by hand.
    let late = "CREATE TABLE late (a int PRIMARY KEY, b text)";
    run(&owner, late).await;
    run(&owner, "INSERT INTO late SELECT g, 'x' FROM generate_series(1, 100) g").await;
    let publication = pair.target_value("SELECT publications[1] FROM walferry.migration").await;
    pair.source(&format!("ALTER PUBLICATION {publication} ADD TABLE ONLY late")).await;
    run(&owner, "UPDATE late SET b = 'y' WHERE a < 10").await;
    let log = engine.wait_exit(5, PATIENCE).await;
    assert!(log.contains("changes came to table public.late, which is not part of the migration"), "{log}");
    run(&target, late).await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    run(&owner, "UPDATE late SET b = 'z' WHERE a < 5; DELETE FROM late WHERE a = 50").await;
    pair.assert_written(&mut engine, 20).await;

    // A partition dropped and made again: another table of the same name. The copy is met by a kill.
    run(
        &owner,
        "DROP TABLE parted_2; CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200)",
    )
    .await;
    run(&owner, "INSERT INTO parted SELECT g, 1 FROM generate_series(120, 130) g").await;
    let copying = async || {
        let state = "SELECT state || coalesce(source_oid::text, '') FROM walferry.relation WHERE table_name = 'parted_2'";
        pair.target_value(state).await.starts_with("copying")
    };
    wait_for("the copy", PATIENCE, copying).await;
    engine.kill9().await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_written(&mut engine, 20).await;
    writing.stop().await;
    pair.assert_follows(&mut engine).await;

    // A table dropped: the target keeps it, and all goes on, after a restart, too.
    run(&owner, "INSERT INTO leaves VALUES (2); DROP TABLE leaves; INSERT INTO other VALUES (2)").await;
    engine.wait_drained(&pair).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM leaves").await, "2");
    engine.terminate(0).await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    run(&owner, "INSERT INTO other VALUES (3)").await;
    engine.wait_drained(&pair).await;
    assert!(
        engine.log().contains("dropped on the source: the target keeps it table=public.leaves"),
        "{}",
        engine.log()
    );
    run(&target, "DROP TABLE leaves").await;
    engine.terminate(0).await;

    // A table that is not published by its root, dropped and made again: it stops until it is published.
    run(&owner, "DROP TABLE late; CREATE TABLE late (a int PRIMARY KEY, b text); INSERT INTO late VALUES (1, 'again')")
        .await;
    // What an older engine left behind knows names only.
    pair.target(
        "ALTER TABLE walferry.relation DROP source_filenode, DROP source_attributes; UPDATE walferry.relation
         SET source_oid = NULL WHERE table_name <> 'late'; DROP TABLE walferry.version",
    )
    .await;
    let ended = pair.migrate().run().await;
    ended.assert(5, &["table public.late of the source is another than the one that was copied"]);
    pair.source(&format!("ALTER PUBLICATION {publication} ADD TABLE ONLY late")).await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    run(&owner, "INSERT INTO late VALUES (2, 'again')").await;
    pair.assert_follows(&mut engine).await;

    // Two tables change places, as when a table is rebuilt beside the one in use.
    run(&owner, "CREATE TABLE late_new (a int PRIMARY KEY, b text, c int); INSERT INTO late_new SELECT a, b, 1 FROM late")
        .await;
    pair.source(&format!("ALTER PUBLICATION {publication} ADD TABLE ONLY late_new")).await;
    run(&owner, "BEGIN; ALTER TABLE late RENAME TO late_old; ALTER TABLE late_new RENAME TO late; COMMIT")
        .await;
    run(&owner, "INSERT INTO late VALUES (3, 'new', 3)").await;
    let log = engine.wait_exit(5, PATIENCE).await;
    let statement = "ALTER TABLE \"public\".\"late\" RENAME TO \"late_old\"";
    assert!(log.contains(statement), "{log}");
    run(&target, statement).await;
    pair.migrate()
        .run()
        .await
        .assert(5, &["changes came to table public.late, which is not part of the migration"]);
    run(&target, "CREATE TABLE late (a int PRIMARY KEY, b text, c int)").await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    run(&owner, "UPDATE late SET c = 5 WHERE a = 1; INSERT INTO late_old VALUES (9, 'old')").await;
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

/// Somebody else changes the migration's publications: changes are missed, so it stops, and the tables are copied again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_changed_by_somebody_else() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    run(
        &owner,
        "CREATE TABLE a (a int PRIMARY KEY, b text); CREATE TABLE refers (a int PRIMARY KEY REFERENCES a);
         CREATE TABLE keyless (a int); CREATE TABLE parted (a int PRIMARY KEY) PARTITION BY LIST (a);
         CREATE TABLE parted_1 PARTITION OF parted DEFAULT;
         INSERT INTO a SELECT g, 'x' FROM generate_series(1, 50) g; INSERT INTO refers SELECT generate_series(1, 50);
         INSERT INTO parted VALUES (1)",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let [all, inserts] = [1, 2].map(|n| format!("SELECT publications[{n}] FROM walferry.migration"));
    let (all, inserts) = (pair.target_value(&all).await, pair.target_value(&inserts).await);
    // (what somebody does; what is missed; the cause; what mends it)
    let mut cases = vec![
        (
            format!("ALTER PUBLICATION {all} DROP TABLE a"),
            "UPDATE a SET b = 'missed' WHERE a = 1; INSERT INTO a VALUES (51, 'missed')",
            "table public.a is no longer in the migration's publications".to_owned(),
        ),
        (
            format!("ALTER PUBLICATION {all} SET (publish = 'insert')"),
            "DELETE FROM refers WHERE a = 3; DELETE FROM a WHERE a = 3; INSERT INTO parted VALUES (2); DELETE FROM parted WHERE a = 1",
            format!("publication {all} of the source publishes other operations than it did"),
        ),
        (
            format!("ALTER PUBLICATION {inserts} SET (publish = 'truncate')"),
            "INSERT INTO keyless VALUES (1)",
            format!("publication {inserts} of the source publishes other operations than it did"),
        ),
    ];
    if pair.cluster.source.binaries().major() >= 15 {
        cases.push((
            format!("ALTER PUBLICATION {all} DROP TABLE a; ALTER PUBLICATION {all} ADD TABLE ONLY a WHERE (a > 10)"),
            "UPDATE a SET b = 'filtered' WHERE a = 5",
            format!("publication {all} of the source has a row filter or a column list"),
        ));
        cases.push((
            format!("ALTER PUBLICATION {all} DROP TABLE a; ALTER PUBLICATION {all} ADD TABLE ONLY a (a)"),
            "UPDATE a SET b = 'left out' WHERE a = 6",
            format!("publication {all} of the source has a row filter or a column list"),
        ));
    }
    for (change, missed, cause) in cases {
        // While it runs it looks every half minute: a start is quicker.
        engine.terminate(0).await;
        for statement in change.split("; ") {
            pair.source(statement).await;
        }
        run(&owner, missed).await;
        let ended = pair.migrate().run().await;
        ended.assert(5, &[&cause]);
        let log = ended.stderr;
        let hint = log.split("on the source run: ").nth(1).and_then(|rest| rest.split("; then run").next());
        for statement in hint.unwrap_or_else(|| panic!("{log}")).split("; ") {
            pair.source(statement).await;
        }
        engine = pair.migrate().start();
        engine.wait_phase("syncing").await;
        pair.assert_follows(&mut engine).await;
    }
    engine.terminate(0).await;
    pair.source(&format!("DROP PUBLICATION {all}")).await;
    let cause = format!("publication {all} of the source is gone");
    pair.migrate().run().await.assert(5, &[&cause, "walferry remove --force"]);
    let ended = pair.command("remove").arguments(&["--force"]).run().await;
    ended.assert(0, &["dropped replication slot"]);
}

/// Changes of tables that are gone by the time that they are read: there is nothing to apply them to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_tables_that_are_gone() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    let tables = "CREATE TABLE again (k int PRIMARY KEY); INSERT INTO again VALUES (1);
                  CREATE TABLE parts (k int PRIMARY KEY) PARTITION BY RANGE (k);
                  CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)";
    owner.batch_execute(tables).await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    let publication = pair.source_value("SELECT pubname FROM pg_publication WHERE pubname !~ '_ins$'").await;
    for sql in [
        "INSERT INTO again VALUES (2)",
        "DROP TABLE again",
        "CREATE TABLE again (k int PRIMARY KEY, v text)",
        &format!("ALTER PUBLICATION {publication} ADD TABLE again"),
        "INSERT INTO again VALUES (3, 'new')",
        "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200)",
        "INSERT INTO parts VALUES (1), (101)",
        "DROP TABLE parts_2",
        "INSERT INTO parts VALUES (2)",
    ] {
        owner.batch_execute(sql).await.unwrap();
    }
    pair.target("ALTER TABLE public.again ADD v text").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    owner.batch_execute("INSERT INTO again VALUES (4, 'newer')").await.unwrap();
    pair.assert_follows(&mut engine).await;
    pair.assert_ends_equal(engine).await;
}
