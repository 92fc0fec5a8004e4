//! Servers of one's own: they start with TLS and SCRAM, stop, die and come back.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use walferry::demo::{
    ClusterOptions, DEFAULT_DATABASE, PgBinaries, SHOP_KEYLESS, SHOP_WRITES, Server, ServerOptions,
    SourceAndTarget, StopMode, WriterOptions, Writers, compare_databases, compare_servers, load_pgbench,
    load_shop, prepare_source,
};

#[tokio::test]
async fn a_server_starts_stops_dies_and_comes_back() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let started = Instant::now();
    let server = Server::start(&binaries, ServerOptions::default()).await.unwrap();
    eprintln!("PostgreSQL {}: started in {:?}", binaries.version(), started.elapsed());
    server
        .sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'p@ss/ w%rd'; CREATE TABLE t (id int)")
        .await
        .unwrap();

    // psql reads the URI as libpq does, and verifies the certificate.
    let uri = server.uri("app", "p@ss/ w%rd", "postgres");
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let psql = async |uri: &str| {
        let output =
            binaries.command("psql").args(["-X", "-A", "-t", "-c", query, uri]).output().await.unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(psql(&uri).await, ("t\n".to_owned(), String::new()));
    assert_eq!(psql(&server.superuser_uri("postgres")).await.1, "");
    let plain = psql(&uri.replace("sslmode=verify-full", "sslmode=disable")).await.1;
    assert!(plain.contains("no pg_hba.conf entry"), "{plain}");
    let wrong = psql(&server.uri("app", "wrong", "postgres")).await.1;
    assert!(wrong.contains("password authentication failed"), "{wrong}");

    // The socket lets the superuser in without a password, so nobody else may come to it.
    let mode = std::fs::metadata(server.socket_dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    server.sql("postgres", "INSERT INTO t VALUES (1)").await.unwrap();
    server.kill9().await.unwrap();
    assert!(server.client("postgres").await.is_err());
    server.start_again().await.unwrap();
    for mode in [StopMode::Immediate, StopMode::Fast, StopMode::Smart] {
        server.sql("postgres", "INSERT INTO t VALUES (1)").await.unwrap();
        server.restart(mode).await.unwrap();
    }
    let rows = server.sql("postgres", "SELECT count(*), NULL FROM t").await.unwrap();
    assert_eq!(rows, [[Some("4".to_owned()), None]]);

    let (directory, port) = (server.socket_dir().to_path_buf(), server.port());
    assert!(directory.exists());
    let dropping = Instant::now();
    drop(server);
    eprintln!("gone in {:?}", dropping.elapsed());
    assert!(!directory.exists(), "the directory is left");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "the server is left");
}

#[tokio::test]
async fn nothing_is_left_when_the_owner_is_killed() {
    // The owner is this test in another process, which says where its server is.
    const OWNER: &str = "WALFERRY_TEST_OWNER";
    if let Ok(file) = std::env::var(OWNER) {
        let server =
            Server::start(&PgBinaries::find(None).await.unwrap(), ServerOptions::default()).await.unwrap();
        let text = format!("{} {}", server.port(), server.socket_dir().display());
        std::fs::write(file, text).unwrap();
        return std::future::pending().await;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap());
    owner.args(["--exact", "nothing_is_left_when_the_owner_is_killed"]).env(OWNER, file.path());
    let mut owner = owner.stdout(std::process::Stdio::null()).spawn().unwrap();
    let told = || std::fs::read_to_string(file.path()).unwrap();
    wait_until("the owner's server runs", || !told().is_empty()).await;
    let (port, directory) =
        told().split_once(' ').map(|(p, d)| (p.parse::<u16>().unwrap(), d.to_owned())).unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("its directory is gone", || !std::path::Path::new(&directory).exists()).await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "the server is left");
}

async fn wait_until(what: &str, met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !met() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_log() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let options = ServerOptions::default().setting("shared_buffers", "much");
    let error = Server::start(&binaries, options).await.unwrap_err().to_string();
    assert!(error.contains("invalid value for parameter \"shared_buffers\""), "{error}");
}

#[tokio::test]
async fn the_shop_loads_and_compares() {
    let versions = std::env::var("WALFERRY_TEST_VERSIONS").unwrap_or_default();
    let majors: Vec<u32> =
        versions.split(',').filter(|text| !text.is_empty()).map(|m| m.parse().unwrap()).collect();
    let majors: Vec<_> = if majors.is_empty() { vec![None] } else { majors.into_iter().map(Some).collect() };
    for major in majors {
        let binaries = PgBinaries::find(major).await.unwrap();
        // The target has one version only: the newest output of a type is compared with the oldest.
        let mut options = ClusterOptions::new(binaries.clone(), PgBinaries::find(None).await.unwrap());
        options.databases = vec!["shop".to_owned(), "my \"Shop\" é".to_owned()];
        let cluster = SourceAndTarget::start(options).await.unwrap();
        for database in ["shop", "my \"Shop\" é"] {
            let started = Instant::now();
            load_shop(&cluster.source, database).await.unwrap();
            eprintln!("PostgreSQL {}: loaded in {:?}", binaries.version(), started.elapsed());
            load_pgbench(&cluster.source, database, 1).await.unwrap();
        }
        let started = Instant::now();
        let same = compare_servers(&cluster.source, &cluster.source, "shop").await.unwrap();
        eprintln!("compared {} rows in {:?}", same.rows_source(), started.elapsed());
        assert!(same.equal(), "{same}");
        assert_eq!(same.rows_source(), SHOP_ROWS + 100_011);
        let rows = |name: &str| same.table(name).unwrap().rows_source.unwrap();
        assert_eq!(rows("shop.customer"), 10_000);
        assert_eq!(rows("shop.\"Order\""), 14_000);
        assert_eq!(rows("shop.payment_other"), 3);
        assert_eq!(rows("\"Büro & Co\".\"Größen \"\"Tabelle\"\"\""), 600);
        assert_eq!((rows("shop.note"), rows("shop.urgent_note")), (500, 200));
        let owners =
            "SELECT DISTINCT tableowner, r.rolsuper FROM pg_tables JOIN pg_roles r ON rolname = tableowner
                      WHERE schemaname !~ '^pg_|^information'";
        let owner = [[Some("app_owner".to_owned()), Some("f".to_owned())]];
        assert_eq!(cluster.source.sql("shop", owners).await.unwrap(), owner);
        let empty = compare_servers(&cluster.source, &cluster.target, "shop").await.unwrap();
        assert!(empty.tables.iter().all(|table| !table.equal() && table.rows_target.is_none()), "{empty}");
    }
}

#[tokio::test]
async fn a_planted_difference_is_found() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let server = Server::start(&binaries, ServerOptions::default()).await.unwrap();
    prepare_source(&server, &["shop".to_owned()]).await.unwrap();
    load_shop(&server, "shop").await.unwrap();
    server.sql("postgres", "CREATE DATABASE other TEMPLATE shop").await.unwrap();
    let (source, target) = (server.client("shop").await.unwrap(), server.client("other").await.unwrap());
    let same = compare_databases(&source, &target).await.unwrap();
    assert!(same.equal(), "{same}");

    // (what is done to the target, the table, rows on the source alone, rows on the target alone)
    let planted = [
        ("UPDATE shop.customer SET letter = letter || ' ' WHERE id = 200", "shop.customer", 1, 1),
        ("UPDATE stock.category SET parent = NULL WHERE id = 48", "stock.category", 1, 1),
        ("DELETE FROM shop.order_line WHERE (order_id, line) = (77, 1)", "shop.order_line", 1, 0),
        ("INSERT INTO shop.click SELECT * FROM shop.click LIMIT 1", "shop.click", 0, 1),
        (
            "DELETE FROM public.measurement WHERE ctid = (SELECT max(ctid) FROM public.measurement)",
            "public.measurement",
            1,
            0,
        ),
        ("UPDATE public.\"AllTypes\" SET f8 = '-0' WHERE id = 3", "public.\"AllTypes\"", 1, 1),
        ("UPDATE shop.web_session SET data = '{}' WHERE token = md5('9')::uuid", "shop.web_session", 1, 1),
        ("UPDATE stock.product SET photo = NULL WHERE photo = ''", "stock.product", 500, 500),
        ("ALTER TABLE shop.note ADD COLUMN more text", "shop.note", 500, 500),
        ("DROP TABLE shop.refund", "shop.refund", 280, 0),
        ("CREATE TABLE public.extra AS SELECT 1 AS one", "public.extra", 0, 1),
    ];
    for (statement, _, _, _) in planted {
        target.batch_execute(statement).await.unwrap();
    }
    target.batch_execute("SELECT nextval('shop.invoice_number')").await.unwrap();
    let found = compare_databases(&source, &target).await.unwrap();
    eprintln!("{found}");
    for (statement, name, only_source, only_target) in planted {
        let table = found.table(name).unwrap();
        assert_eq!((table.only_source, table.only_target), (only_source, only_target), "{statement}");
        assert!(!table.equal(), "{statement}");
    }
    // The child of the table that got a column has it too.
    assert!(!found.table("shop.urgent_note").unwrap().equal());
    assert_eq!(found.tables.iter().filter(|table| !table.equal()).count(), planted.len() + 1);
    let sequences: Vec<_> =
        found.sequences.iter().filter(|s| !s.equal()).map(|s| s.name.to_string()).collect();
    assert_eq!(sequences, ["shop.invoice_number"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_make_progress_over_a_crash() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let server = Server::start(&binaries, ServerOptions::default()).await.unwrap();
    prepare_source(&server, &["shop".to_owned()]).await.unwrap();
    load_shop(&server, "shop").await.unwrap();
    load_pgbench(&server, "shop", 1).await.unwrap();
    let options =
        WriterOptions { shop_clients: 4, shop_rate: 400, pgbench_clients: 2, ..WriterOptions::default() };
    let writers = Writers::start(&server, "shop", options).await.unwrap();
    let wait_for = async |more: u64| {
        let wanted = writers.counts().transactions() + more;
        let deadline = Instant::now() + Duration::from_secs(60);
        while writers.counts().transactions() < wanted {
            assert!(Instant::now() < deadline, "no progress: {:?}", writers.counts());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    wait_for(800).await;
    server.kill9().await.unwrap();
    server.start_again().await.unwrap();
    wait_for(400).await;
    server.restart(StopMode::Fast).await.unwrap();
    wait_for(400).await;
    let counts = writers.stop().await;
    eprintln!("{counts:?}");
    assert_eq!(counts.errors, 0, "{counts:?}");
    assert!(counts.disconnects > 0 && counts.pgbench > 0, "{counts:?}");
    assert_eq!(counts.shop.len(), SHOP_WRITES.len(), "every kind took its turn: {counts:?}");

    let busy = "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() AND datname = 'shop'";
    assert_eq!(server.sql("shop", busy).await.unwrap(), [[Some("0".to_owned())]]);
    let history = "SELECT count(*) >= 1 FROM pgbench_history";
    assert_eq!(server.sql("shop", history).await.unwrap(), [[Some("t".to_owned())]]);
}

/// Rows of the shop as loaded.
const SHOP_ROWS: u64 = 108_645;

/// The server's own replication is the proof that the sample and its writers ask for nothing impossible.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_keeps_the_shop_equal() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let cluster = SourceAndTarget::start(ClusterOptions::new(binaries.clone(), binaries)).await.unwrap();
    let (source, target, database) = (&cluster.source, &cluster.target, DEFAULT_DATABASE);
    load_shop(source, database).await.unwrap();

    let login = &cluster.source_login;
    let dump = source.tool("pg_dump", &login.role, &login.password, database).output().await.unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    target.sql("postgres", "CREATE ROLE app_owner").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &dump.stdout).unwrap();
    let mut psql = target.superuser_tool("psql", database);
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(file.path());
    let restored = psql.output().await.unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let restored = compare_servers(source, target, database).await.unwrap();
    assert!(restored.equal(), "{restored}");

    let keyless = SHOP_KEYLESS.join(", ");
    let followed = "SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class c JOIN pg_namespace n
         ON n.oid = relnamespace WHERE relkind = 'r' AND nspname !~ '^pg_|^information' AND NOT c.oid = ANY ($1::regclass[])";
    let followed = followed.replace("$1", &format!("'{{{}}}'", SHOP_KEYLESS.join(",")));
    let followed = source.sql(database, &followed).await.unwrap()[0][0].clone().unwrap();
    let publications = format!(
        "CREATE PUBLICATION keyed FOR TABLE {followed};
         CREATE PUBLICATION keyless FOR TABLE {keyless} WITH (publish = 'insert, truncate')"
    );
    source.sql(database, &publications).await.unwrap();
    source.sql(database, "SELECT pg_create_logical_replication_slot('own', 'pgoutput')").await.unwrap();
    let connection = format!(
        "host={} port={} user=postgres dbname={database}",
        source.socket_dir().display(),
        source.port()
    );
    let subscribe = format!(
        "CREATE SUBSCRIPTION own CONNECTION '{connection}' PUBLICATION keyed, keyless
         WITH (create_slot = false, copy_data = false)"
    );
    target.sql(database, &subscribe).await.unwrap();

    let options = WriterOptions { shop_clients: 3, shop_rate: 300, ..WriterOptions::default() };
    let writers = Writers::start(source, database, options).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    source.restart(StopMode::Immediate).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let counts = writers.stop().await;
    assert_eq!(counts.errors, 0, "{counts:?}");
    let end = source.sql(database, "SELECT pg_current_wal_flush_lsn()").await.unwrap()[0][0].clone().unwrap();
    let passed =
        format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'own'");
    let deadline = Instant::now() + Duration::from_secs(60);
    while source.sql(database, &passed).await.unwrap() != [[Some("t".to_owned())]] {
        assert!(Instant::now() < deadline, "the subscription does not catch up:\n{}", target.log_tail(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = compare_servers(source, target, database).await.unwrap();
    eprintln!("{} transactions later: {after}", counts.transactions());
    assert!(after.tables_equal(), "{after}");
}
