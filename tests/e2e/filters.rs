//! Tables and databases that are left out, by options and by a configuration file.

use walferry::demo::compare_servers;

use crate::harness::{Launch, PATIENCE, Pair};

const DATABASES: [&str; 3] = ["Shop", "other", "third"];

/// Tables of `Shop`, and whether their rows are moved.
const TABLES: [(&str, bool); 6] = [
    ("\"Orders\"", true),
    ("item", true),
    ("log_1", true),
    ("log_2", false),
    ("audit", false),
    ("\"odd.name*\"", false),
];

const FILTER: [&str; 8] = [
    "--with-table",
    "Shop.public.Orders",
    "--with-table",
    "public.lo?",
    "--with-table",
    "Shop.*.item",
    "--skip-table",
    "public.*_2",
];

async fn fill(pair: &Pair) {
    let shop = "SET ROLE app_owner;
        CREATE TABLE audit (a int PRIMARY KEY, b text);
        CREATE TABLE item (a int PRIMARY KEY, audited int CONSTRAINT to_audit REFERENCES audit);
        CREATE TABLE \"Orders\" (a int PRIMARY KEY, item int CONSTRAINT to_item REFERENCES item);
        CREATE TABLE \"odd.name*\" (a int PRIMARY KEY);
        CREATE TABLE log (a int, at int, PRIMARY KEY (a, at)) PARTITION BY LIST (at);
        CREATE TABLE log_1 PARTITION OF log FOR VALUES IN (1);
        CREATE TABLE log_2 PARTITION OF log FOR VALUES IN (2);
        CREATE VIEW looks AS SELECT * FROM audit JOIN \"Orders\" USING (a)";
    pair.cluster.source.sql("Shop", shop).await.unwrap();
    for database in ["other", "third"] {
        let sql = "SET ROLE app_owner; CREATE TABLE item2 (a int PRIMARY KEY); INSERT INTO item2 VALUES (1)";
        pair.cluster.source.sql(database, sql).await.unwrap();
    }
}

async fn write(pair: &Pair, from: u32) {
    let sql = format!(
        "SET ROLE app_owner;
         INSERT INTO audit SELECT g, 'x' FROM generate_series({from}, {from} + 99) g;
         INSERT INTO item SELECT a, a FROM audit WHERE a >= {from};
         INSERT INTO \"Orders\" SELECT a, a FROM item WHERE a >= {from};
         INSERT INTO \"odd.name*\" SELECT a FROM item WHERE a >= {from};
         INSERT INTO log SELECT a, 1 + a % 2 FROM item WHERE a >= {from};
         UPDATE audit SET b = b || 'y'; UPDATE \"Orders\" SET item = {from} WHERE a % 3 = 0"
    );
    pair.cluster.source.sql("Shop", &sql).await.unwrap();
}

/// Moved tables are equal, the others are there and empty.
async fn assert_moved(pair: &Pair) {
    for (table, moved) in TABLES {
        let rows = format!("SELECT t::text FROM public.{table} t ORDER BY 1");
        let source = pair.cluster.source.sql("Shop", &rows).await.unwrap();
        let target = pair.cluster.target.sql("Shop", &rows).await.unwrap();
        assert!(!source.is_empty());
        assert_eq!(target, if moved { source } else { Vec::new() }, "{table}");
    }
}

async fn refused(launch: &Launch, arguments: &[&str], parts: &[&str]) {
    launch.clone().arguments(arguments).run().await.assert(2, parts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_tables_of_one_database() {
    let pair = Pair::with(|options| {
        options.databases = DATABASES.map(str::to_owned).to_vec();
        options.databases.push("defaultdb".to_owned());
        options.target_databases = false;
    })
    .await;
    fill(&pair).await;
    write(&pair, 1).await;
    let launch = pair.migrate();
    // Case counts; a name with a dot or a star is quoted; nothing is begun by any of these.
    refused(
        &launch,
        &["--with-table", "Shop.public.orders"],
        &["--with-table Shop.public.orders means no table"],
    )
    .await;
    refused(
        &launch,
        &["--with-table", "*.*", "--skip-table", "nope.*"],
        &["--skip-table nope.* means no table"],
    )
    .await;
    refused(&launch, &["--with-table", "Orders"], &["neither schema.table nor"]).await;
    refused(&launch, &["--database", "shop"], &["the source has no database \"shop\"", "Shop"]).await;
    refused(&launch, &["--ignore-dbs", "Shop,other,third,defaultdb"], &["no database to migrate"]).await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(pair.source_value(slots).await, "0");

    let check = pair.command("check").arguments(&FILTER).arguments(&["--json"]).run().await;
    check.assert(
        0,
        &["to_audit of public.item to public.audit", "3 tables not moved", r#"public.\"odd.name*\""#],
    );
    let filtered = launch.clone().arguments(&FILTER);
    let mut engine = filtered.start();
    engine.wait_phase("syncing").await;
    assert_eq!(engine.details().await.keys().collect::<Vec<_>>(), ["Shop"]);
    write(&pair, 101).await;
    engine.wait_drained(&pair).await;
    assert_moved(&pair).await;
    assert!(engine.log().contains("not made: it refers to a table that is not moved"), "{}", engine.log());
    engine.terminate(0).await;
    let keys = "SELECT conname FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace ORDER BY 1";
    let keys = pair.cluster.target.sql("Shop", keys).await.unwrap();
    assert_eq!(keys, [[Some("to_item".to_owned())]]);
    // The databases without a match are not moved, neither whole nor in part.
    let others = "SELECT count(*) FROM pg_database WHERE datname IN ('other', 'third')";
    assert_eq!(pair.target_value(others).await, "0");
    assert_eq!(pair.source_value(slots).await, "1");

    refused(&launch, &["--with-table", "public.*"], &["begun with other tables", "--skip-table public.*_2"])
        .await;
    let again = launch.arguments(&["--until", "synced"]).run_for(PATIENCE * 2).await;
    again.assert(0, &["streaming"]);
    write(&pair, 201).await;
    let again = filtered.arguments(&["--until", "synced"]).run_for(PATIENCE * 2).await;
    again.assert(0, &["streaming"]);
    pair.command("remove").run().await.assert(0, &["dropped replication slot"]);
    assert_eq!(pair.source_value(slots).await, "0");
    files(&pair).await;
}

/// The same two servers, named by a file, and one key of it by `-c`.
async fn files(pair: &Pair) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("walferry.toml");
    let (login, target) = (&pair.cluster.source_login, pair.cluster.target_uri("defaultdb"));
    let text = format!(
        "target = {target:?}\nuntil = \"synced\"\nlisten = \"none\"\nskip-table = [\"other.public.nothing\"]\n\
         [migration]\nhost = \"localhost\"\nport = 1\ndbname = \"third\"\nusername = {:?}\npassword = {:?}\n\
         ignore_dbs = \"Shop,defaultdb\"\n",
        login.role, login.password
    );
    std::fs::write(&path, text).unwrap();
    let port = format!("migration.port={}", pair.cluster.source.port());
    let mut launch = pair.migrate().source("").target("");
    launch.arguments.extend([
        "--config".to_owned(),
        path.to_str().unwrap().to_owned(),
        "-c".to_owned(),
        port,
    ]);
    launch.clone().run().await.assert(2, &["--skip-table other.public.nothing means no table"]);
    launch.arguments.extend(["--skip-table".to_owned(), "other.public.item2".to_owned()]);
    // The server's certificate is not looked at, as with Aiven's `ssl`.
    let ended = launch.run_for(PATIENCE * 2).await;
    ended.assert(0, &["database{name=\"third\"}", "database{name=\"other\"}"]);
    assert!(!ended.stderr.contains("name=\"Shop\""), "{}", ended.stderr);
    let found = compare_servers(&pair.cluster.source, &pair.cluster.target, "third").await.unwrap();
    assert!(found.equal(), "{found}");
    let rows = pair.cluster.target.sql("other", "SELECT * FROM item2").await.unwrap();
    assert!(rows.is_empty(), "{rows:?}");
}
