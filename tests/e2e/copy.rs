//! The initial copy of tables that are large enough for more than one way.

use std::time::Duration;

use super::harness::{PATIENCE, Pair, wait_for};

/// More than 1 GiB: rows that have a page each, so that a few of them make a large table; with holes.
const LARGE: &str = "
    CREATE TABLE large (id bigint PRIMARY KEY, at timestamptz, body text) WITH (fillfactor = 10);
    ALTER TABLE large ALTER body SET STORAGE PLAIN;
    INSERT INTO large SELECT g, timestamptz '2024-01-01' + g * interval '1 s', repeat(md5(g::text), 25)
        FROM generate_series(1, 140000) g;
    ALTER TABLE large RESET (fillfactor);
    DELETE FROM large WHERE id % 11 = 0; UPDATE large SET at = 'infinity' WHERE id % 7 = 0";

/// Each of more than a megabyte, but for the last ones.
const OTHERS: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE plain (id int PRIMARY KEY, body text, n numeric(10, 2), twice int GENERATED ALWAYS AS (id * 2) STORED);
    INSERT INTO plain SELECT g, repeat('x', g % 200), g FROM generate_series(1, 20000) g;
    CREATE TABLE moods (id int GENERATED ALWAYS AS IDENTITY, m mood, body text);
    INSERT INTO moods (m, body) SELECT 'happy', repeat('y', 100) FROM generate_series(1, 20000);
    CREATE TABLE parted (id int, body text) PARTITION BY RANGE (id);
    CREATE TABLE leaf PARTITION OF parted FOR VALUES FROM (0) TO (10000);
    CREATE TABLE leaf_2 PARTITION OF parted DEFAULT;
    INSERT INTO parted SELECT g, repeat('z', 200) FROM generate_series(1, 20000) g;
    CREATE TABLE parent (id int, body text); CREATE TABLE child (more int) INHERITS (parent);
    INSERT INTO parent SELECT g, repeat('p', 200) FROM generate_series(1, 10000) g;
    INSERT INTO child SELECT g, repeat('c', 200), g FROM generate_series(1, 10000) g;
    CREATE TABLE numbers (a numeric, b bool);
    INSERT INTO numbers SELECT g, g % 2 = 0 FROM generate_series(1, 50000) g;
    CREATE TABLE small (id int REFERENCES plain, at timestamptz); INSERT INTO small VALUES (1, now()), (NULL, NULL);
    CREATE TABLE empty (id int, at timestamptz); CREATE TABLE no_columns ();
    INSERT INTO no_columns SELECT FROM generate_series(1, 5)";

/// Pages that hold frozen rows only, and all pages.
const VISIBLE: &str = "SELECT relname, relallvisible, relpages FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname";

async fn target_without_vacuum(pair: &Pair) {
    pair.target("ALTER SYSTEM SET autovacuum = off").await;
    pair.target("SELECT pg_reload_conf()").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_table_in_its_way() {
    let pair = Pair::start().await;
    target_without_vacuum(&pair).await;
    let owner = pair.owner().await;
    owner.batch_execute(LARGE).await.unwrap();
    owner.batch_execute(OTHERS).await.unwrap();
    // Then the WAL writer cannot be woken, and all goes on.
    pair.target("REVOKE EXECUTE ON FUNCTION txid_current() FROM PUBLIC").await;
    let migrate = pair.migrate().arguments(&["--until", "copied", "--jobs", "2"]);
    let ended = migrate.run_for(PATIENCE * 2).await;
    ended.assert(0, &["table copied", "the target's WAL writer is not woken"]);
    let said = |table: &str| {
        let named = format!("table=public.{table} ");
        let lines = ended.stderr.lines().filter(|line| line.contains(" copying ") && line.contains(&named));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let large = said("large");
    assert!(large.len() >= 2, "{}", ended.stderr);
    assert!(
        large.iter().all(|line| line.contains("pages=Some") && line.contains("binary=true")),
        "{large:?}"
    );
    for (table, binary, freeze) in [
        ("plain", true, true),
        ("moods", false, true),
        ("leaf", true, true),
        ("leaf_2", true, true),
        ("parent", true, true),
        ("child", true, true),
        ("numbers", false, true),
        ("small", true, false),
        ("empty", true, false),
        ("no_columns", false, false),
    ] {
        let wanted = format!("pages=None binary={binary} freeze={freeze}");
        let lines = said(table);
        assert!(matches!(&lines[..], [line] if line.contains(&wanted)), "{wanted}: {lines:?}");
    }
    for row in pair.target(VISIBLE).await {
        let [name, visible, pages] = &row[..] else { panic!("{row:?}") };
        let name = name.as_deref().unwrap();
        let frozen = ["plain", "moods", "leaf", "leaf_2", "parent", "child", "numbers"].contains(&name);
        assert_eq!(visible.as_deref() == Some("0"), !frozen, "{name}: {visible:?} of {pages:?}");
        assert!(!frozen || visible == pages, "{name}: {visible:?} of {pages:?}");
    }
    let comparison = pair.compare().await;
    assert!(comparison.tables_equal(), "{comparison}");
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
}

/// Killed with rows of a table on their way that are frozen as they come, and with some ranges of a large one there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_half_way() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute(LARGE).await.unwrap();
    // The one that is copied first, being larger than a range of the other.
    let whole = "
        CREATE TABLE whole (id bigint PRIMARY KEY, body text); ALTER TABLE whole ALTER body SET STORAGE PLAIN;
        INSERT INTO whole SELECT g, repeat(md5(g::text), 122) FROM generate_series(1, 26000) g";
    owner.batch_execute(whole).await.unwrap();
    let migrate = pair.migrate().arguments(&["--jobs", "2"]);
    let coming = "SELECT FROM pg_stat_progress_copy WHERE relid = to_regclass('public.whole') AND tuples_processed > 500";
    let waited = "SELECT state FROM walferry.relation WHERE table_name = 'whole'";
    for kill in 0..3_u64 {
        let engine = migrate.start();
        let comes = async || !pair.target(coming).await.is_empty();
        wait_for("rows on their way", PATIENCE, comes).await;
        tokio::time::sleep(Duration::from_millis(kill * 20)).await;
        engine.kill9().await;
        if pair.target_value(waited).await == "copied" {
            break;
        }
    }
    let mut engine = migrate.start();
    engine.wait_phase("syncing").await;
    let frozen =
        engine.log().lines().any(|line| line.contains("table=public.whole ") && line.contains("freeze=true"));
    assert!(frozen || engine.log().contains("tables_copied"), "{}", engine.log());
    owner.batch_execute("UPDATE whole SET body = 'changed' WHERE id % 100 = 0").await.unwrap();
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}
