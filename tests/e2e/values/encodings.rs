//! Databases of other encodings: text is converted, names too, and what cannot be is refused.

use tokio_postgres::Client;

use crate::harness::{Engine, Launch, PATIENCE, Pair};

/// A database of this encoding on the source, and one on the target.
async fn databases(pair: &Pair, name: &str, source: &str, target: &str) -> Client {
    let create = |owner: &str, encoding: &str| {
        format!(
            "CREATE DATABASE {name} OWNER {owner} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    };
    pair.cluster.source.sql("postgres", &create("app_owner", source)).await.unwrap();
    pair.cluster.target.sql("postgres", &create("avnadmin", target)).await.unwrap();
    let owner = pair.cluster.source.client(name).await.unwrap();
    owner.batch_execute("SET SESSION AUTHORIZATION app_owner").await.unwrap();
    owner
}

fn migrate(pair: &Pair, database: &str) -> Launch {
    let launch = pair.migrate().arguments(&["--database", database]);
    launch.source(pair.cluster.source_uri(database)).target(pair.cluster.target_uri(database))
}

/// The rows of `tables` as text in UTF-8, in one order on both sides.
async fn rows(pair: &Pair, database: &str, tables: &[&str]) -> [Vec<String>; 2] {
    let mut sides = [Vec::new(), Vec::new()];
    for (side, server) in sides.iter_mut().zip([&pair.cluster.source, &pair.cluster.target]) {
        for table in tables {
            let rows = server.sql(database, &format!("SELECT t::text FROM {table} t")).await.unwrap();
            side.extend(rows.into_iter().flatten().flatten().map(|row| format!("{table}: {row}")));
        }
        side.sort();
    }
    sides
}

async fn assert_same(pair: &Pair, engine: &mut Engine, database: &str, tables: &[&str]) {
    engine.wait_drained(pair).await;
    let [source, target] = rows(pair, database, tables).await;
    assert_eq!(source, target, "{}", engine.log());
}

/// Characters of the encoding in a key, in text, and in names; by copy and by all changes.
async fn moves(pair: &Pair, database: &str, encoding: &str, names: [&str; 3], characters: &str) {
    let [table, key, word] = names;
    let owner = databases(pair, database, encoding, "UTF8").await;
    let setup = format!(
        r#"CREATE TYPE "{word}" AS ENUM ('{word}', 'x');
        CREATE TABLE "{table}" ("{key}" text PRIMARY KEY, "{word}" text, e "{word}" DEFAULT '{word}', c varchar(3000), a text[]);
        CREATE TABLE "f {table}" ("{key}" text, a text[]); ALTER TABLE "f {table}" REPLICA IDENTITY FULL;
        CREATE INDEX "i {word}" ON "{table}" ("{word}") WHERE "{word}" <> '{word}';
        CREATE VIEW "{key}" AS SELECT "{key}" FROM "{table}";
        COMMENT ON TABLE "{table}" IS '{word}';
        CREATE FUNCTION "{word}"() RETURNS text LANGUAGE sql AS $$ SELECT '{word}'::text $$;
        CREATE TABLE chars (c text); INSERT INTO chars {characters};
        INSERT INTO "{table}" SELECT 'c' || c, c, '{word}', c, ARRAY[c, NULL, '"' || c] FROM chars;
        INSERT INTO "f {table}" SELECT c, ARRAY[c] FROM chars"#
    );
    owner.batch_execute(&setup).await.unwrap_or_else(|error| panic!("{error:?}: {setup}"));
    let tables = [&format!("\"{table}\"")[..], &format!("\"f {table}\""), "chars", &format!("\"{key}\"")];
    let mut engine = migrate(pair, database).start();
    engine.wait_phase("syncing").await;
    assert_same(pair, &mut engine, database, &tables).await;
    let changes = [
        format!(r#"INSERT INTO "{table}" SELECT 'i' || c, c, '{word}', c, ARRAY[[c], [c]] FROM chars"#),
        format!(r#"UPDATE "{table}" SET "{word}" = "{word}" || '{word}', c = NULL"#),
        format!(r#"UPDATE "{table}" SET "{key}" = '{word}' || "{key}" WHERE "{key}" LIKE 'i%'"#),
        format!(r#"DELETE FROM "{table}" WHERE "{key}" LIKE 'c%'"#),
        format!(r#"INSERT INTO "f {table}" SELECT * FROM "f {table}""#),
        format!(
            r#"UPDATE "f {table}" SET a = NULL WHERE ctid IN (SELECT min(ctid) FROM "f {table}" GROUP BY "{key}")"#
        ),
        format!(
            r#"DELETE FROM "f {table}" WHERE ctid IN (SELECT max(ctid) FROM "f {table}" GROUP BY "{key}")"#
        ),
    ];
    for change in changes {
        owner.batch_execute(&change).await.unwrap_or_else(|error| panic!("{error:?}: {change}"));
        assert_same(pair, &mut engine, database, &tables).await;
    }
    let word_made = pair.cluster.target.sql(database, &format!("SELECT \"{word}\"()")).await.unwrap();
    assert_eq!(word_made, [[Some(word.to_owned())]]);
    engine.terminate(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_encodings() {
    let pair = Pair::start().await;
    let latin1 = "SELECT chr(g) FROM generate_series(1, 255) g WHERE g NOT BETWEEN 128 AND 159";
    moves(&pair, "latin1", "LATIN1", ["Größe", "Ä \"\"ö", "ßüÿ"], latin1).await;
    // The kanji of level 1, and what the three-byte and the half-width forms look like.
    let kanji = "SELECT string_agg(convert_from(decode(to_hex(r * 256 + c), 'hex'), 'EUC_JP'), '')
        FROM generate_series(176, 206) r, generate_series(161, 254) c GROUP BY r UNION ALL VALUES ('ｱ'), ('丂'), ('a')";
    moves(&pair, "euc_jp", "EUC_JP", ["日本", "列 ｱ", "値段"], kanji).await;
    moves(&pair, "ascii", "SQL_ASCII", ["Größe", "列 ｱ", "値段"], "VALUES ('ä'), ('日本'), ('a')").await;
    the_same_on_both_sides(&pair, "latin1_both", "LATIN1", "'ä'").await;
    the_same_on_both_sides(&pair, "ascii_both", "SQL_ASCII", r"E'\xe4'").await;
}

/// Nothing is converted: not even what is no text, where both sides take any bytes.
async fn the_same_on_both_sides(pair: &Pair, database: &str, encoding: &str, character: &str) {
    let owner = databases(pair, database, encoding, encoding).await;
    let with = |sql: &str| sql.replace("$1", character);
    owner
        .batch_execute(&with(
            r#"CREATE TABLE "Größe" ("ß" text PRIMARY KEY); INSERT INTO "Größe" VALUES ('c' || $1)"#,
        ))
        .await
        .unwrap();
    let mut engine = migrate(pair, database).start();
    engine.wait_phase("syncing").await;
    let change = r#"INSERT INTO "Größe" VALUES ($1), ('x' || $1); UPDATE "Größe" SET "ß" = 'u' || $1 WHERE "ß" = 'c' || $1;
        DELETE FROM "Größe" WHERE "ß" = 'x' || $1"#;
    owner.batch_execute(&with(change)).await.unwrap();
    engine.wait_drained(pair).await;
    let look = format!(r#"SELECT encode(convert_to("ß", '{encoding}'), 'hex') FROM "Größe" ORDER BY "ß""#);
    let rows = pair.cluster.target.sql(database, &look).await.unwrap();
    assert_eq!(rows, [[Some("75e4".to_owned())], [Some("e4".to_owned())]], "{}", engine.log());
    engine.terminate(0).await;
}

/// A source that takes any bytes for text. What is not UTF-8 stops the migration, and is stored nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_text() {
    let pair = Pair::start().await;
    let owner = databases(&pair, "bytes", "SQL_ASCII", "UTF8").await;
    let tables =
        r"CREATE TABLE copied (a int PRIMARY KEY, b text); INSERT INTO copied VALUES (1, 'ä'), (2, E'\xe4')";
    owner.batch_execute(tables).await.unwrap();
    let refused = migrate(&pair, "bytes").run().await;
    refused.assert(5, &["table public.copied cannot be copied", "22021", "mend the row on the source"]);
    let count = async |table: &str| {
        let count = pair.cluster.target.sql("bytes", &format!("SELECT count(*) FROM {table}")).await.unwrap();
        count[0][0].clone().unwrap_or_default()
    };
    assert_eq!(count("copied").await, "0");

    owner.batch_execute("UPDATE copied SET b = 'ä'").await.unwrap();
    let mut engine = migrate(&pair, "bytes").start();
    engine.wait_phase("syncing").await;
    owner.batch_execute(r"INSERT INTO copied VALUES (3, 'x'), (4, E'\xe4')").await.unwrap();
    for _ in 0..2 {
        let log = engine.wait_exit(5, PATIENCE).await;
        assert!(log.contains("conflict (refused) in table public.copied") && log.contains("22021"), "{log}");
        assert!(log.contains("mend the row on the source"), "{log}");
        assert_eq!(count("copied").await, "2");
        engine = migrate(&pair, "bytes").start();
    }
    engine.wait_exit(5, PATIENCE).await;

    // Bytes that this encoding has and UTF-8 does not: the source itself refuses to send them.
    let owner = databases(&pair, "kana", "EUC_JP", "UTF8").await;
    let insert = |a: u32| format!("INSERT INTO odd VALUES ({a}, convert_from('\\xa9a1', 'EUC_JP'))");
    owner
        .batch_execute(&format!("CREATE TABLE odd (a int PRIMARY KEY, b text); {}", insert(1)))
        .await
        .unwrap();
    let refused = migrate(&pair, "kana").run().await;
    refused.assert(5, &["table public.odd cannot be copied", "22P05", "mend the row on the source"]);
    owner.batch_execute("DELETE FROM odd").await.unwrap();
    let mut engine = migrate(&pair, "kana").start();
    engine.wait_phase("syncing").await;
    owner.batch_execute(&insert(2)).await.unwrap();
    let log = engine.wait_exit(5, PATIENCE).await;
    assert!(log.contains("text that cannot be converted") && log.contains("22P05"), "{log}");

    let owner = databases(&pair, "names", "SQL_ASCII", "UTF8").await;
    let names = r"DO $$ BEGIN EXECUTE format('CREATE TABLE %I (a int)', E't\xe4'); END $$";
    owner.batch_execute(names).await.unwrap();
    let refused = migrate(&pair, "names").run().await;
    refused.assert(3, &["asking for the tables failed"]);
}
