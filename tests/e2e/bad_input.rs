//! What is wrong with what the user gave: one clear error, nothing broken, and the right run goes on.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use walferry::demo::{StopMode, WriterOptions, Writers, load_shop};
use walferry::pg::{SlotName, SourceLsn};
use walferry::source::replication::{ReplicationSession, StreamOptions};
use walferry::wire::{ConnInfo, Environment};

use super::harness::{DATABASE, Launch, PATIENCE, Pair, wait_for};

/// It ends with this code and these words, once told, and with a hint unless it is one that may pass.
async fn refused(launch: &Launch, code: i32, parts: &[&str]) {
    let ended = launch.run().await;
    ended.assert(code, parts);
    let errors = ended.stderr.lines().filter(|line| line.starts_with("walferry: ")).count();
    // What a check finds is told in the log, finding by finding.
    if code != 3 {
        assert_eq!(errors, 1, "one error, told once:\n{}", ended.stderr);
    }
    if code == 5 {
        assert!(ended.stderr.contains("  hint: "), "no hint:\n{}", ended.stderr);
    }
}

/// Nothing of a migration is there.
async fn untouched(pair: &Pair) {
    let made = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(pair.source_value(made).await, "0");
    assert_eq!(pair.target_value("SELECT count(*) FROM pg_class WHERE relnamespace = 2200").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections() {
    let pair = Pair::start().await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let launch = pair.migrate();
    let (good_source, good_target) = (launch.source.clone(), launch.target.clone());
    let host = |host: &str| good_source.replace("@localhost:", &format!("@{host}:")) + "&hostaddr=127.0.0.1";

    let secret = "hunter2 wrong";
    for (side, wrong) in [
        ("source", launch.clone().source(source.uri("app_owner", secret, DATABASE))),
        ("target", launch.clone().target(target.uri("avnadmin", secret, DATABASE))),
    ] {
        let words = ["password authentication failed", side];
        refused(&wrong.secret(secret), 5, &words).await;
    }
    let nobody = launch.clone().source(source.uri("nobody_there", secret, DATABASE));
    refused(&nobody.secret(secret), 5, &["source"]).await;
    let database = |name: &str| pair.cluster.source_uri(name);
    refused(&launch.clone().source(database("nosuch")), 5, &["\"nosuch\" does not exist"]).await;
    let other = pair.cluster.target_uri("nosuch");
    refused(&launch.clone().target(other), 5, &["\"nosuch\" does not exist"]).await;

    let unresolvable = good_source.replace("@localhost:", "@no-such-host.invalid:");
    let ended = launch.clone().source(unresolvable).run().await;
    assert!(matches!(ended.status.code(), Some(5 | 6)), "{ended:?}");
    ended.assert(ended.status.code().unwrap(), &["no-such-host.invalid", "source"]);

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = good_source.replace(&format!(":{}/", source.port()), &format!(":{free}/"));
    refused(&launch.clone().source(port), 6, &["source", "refused"]).await;
    let port = good_target.replace(&format!(":{}/", target.port()), &format!(":{free}/"));
    refused(&launch.clone().target(port), 6, &["target", "refused"]).await;

    let ca = |uri: &str, from: &Path, to: &Path| {
        let name = |path: &Path| path.to_str().unwrap().replace('/', "%2F");
        assert!(uri.contains(&name(from)));
        uri.replace(&name(from), &name(to))
    };
    let wrong_ca = ca(&good_source, &source.ca_file(), &target.ca_file());
    refused(&launch.clone().source(wrong_ca), 5, &["source", "certificate"]).await;
    let no_ca = ca(&good_target, &target.ca_file(), Path::new("/nonexistent/ca.crt"));
    refused(&launch.clone().target(no_ca), 5, &["target", "/nonexistent/ca.crt"]).await;
    refused(&launch.clone().source(host("wrong.example")), 5, &["source", "wrong.example"]).await;
    let plain = good_source.replace("sslmode=verify-full", "sslmode=disable");
    refused(&launch.clone().source(plain), 5, &["source", "no encryption"]).await;

    refused(&launch.clone().source(""), 2, &["no source given", "SOURCE_SERVICE_URI"]).await;
    refused(&launch.clone().source("postgres://a:b@c:notaport/d"), 2, &["source's connection string"]).await;
    refused(&launch.clone().target(good_source.clone()), 2, &["source and target are the same"]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&launch.clone().arguments(&["--listen", &address]), 5, &["is in use", "--listen"]).await;
    untouched(&pair).await;

    let report = pair.command("check").target(pair.cluster.target_uri("nosuch"));
    report.run().await.assert(3, &["nosuch"]);
    pair.command("check").run().await.assert(0, &["checks passed"]);
    untouched(&pair).await;

    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_not_ready_for_it() {
    let pair = Pair::with(|options| {
        options.source_options = options.source_options.clone().setting("wal_level", "replica");
    })
    .await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let replication = |launch: Launch| launch.arguments(&["--method", "replication"]);
    refused(&replication(pair.migrate()), 3, &["wal_level", "logical"]).await;
    replication(pair.command("check")).run().await.assert(3, &["ALTER SYSTEM SET wal_level"]);
    untouched(&pair).await;
    let source = pair.cluster.source.client("postgres").await.unwrap();
    source.batch_execute("ALTER SYSTEM SET wal_level = logical").await.unwrap();
    pair.cluster.source.restart(StopMode::Fast).await.unwrap();

    pair.target("SET ROLE avnadmin; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (7)").await;
    refused(&pair.migrate(), 3, &["public.t"]).await;
    assert_eq!(pair.target_value("SELECT a FROM t").await, "7", "what was there is left alone");
    assert_eq!(pair.source_value("SELECT count(*) FROM pg_replication_slots").await, "0");
    pair.target("DROP TABLE t").await;

    pair.source("ALTER ROLE app_owner NOREPLICATION").await;
    refused(&replication(pair.migrate()), 3, &["REPLICATION"]).await;
    pair.source("ALTER ROLE app_owner REPLICATION").await;
    pair.target("REVOKE SET ON PARAMETER session_replication_role FROM avnadmin").await;
    pair.source("SET ROLE app_owner; CREATE TABLE u (a int PRIMARY KEY REFERENCES t)").await;
    refused(&pair.migrate(), 3, &["session_replication_role"]).await;
    pair.target("GRANT SET ON PARAMETER session_replication_role TO avnadmin").await;
    untouched(&pair).await;

    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_in_the_way() {
    let pair = Pair::start().await;
    pair.source(
        "SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, 'x');
         CREATE TABLE keyless (a int, b text); INSERT INTO keyless VALUES (1, 'x')",
    )
    .await;
    pair.command("check").run().await.assert(0, &["public.keyless", "REPLICA IDENTITY FULL"]);
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    // The source's own work on a table without a key is not hindered.
    pair.owner()
        .await
        .batch_execute("UPDATE keyless SET b = 'y'; DELETE FROM keyless; INSERT INTO keyless VALUES (2, 'z')")
        .await
        .unwrap();
    engine.wait_drained(&pair).await;
    let rows = pair.target_value("SELECT string_agg(b, ',' ORDER BY a) FROM keyless").await;
    assert_eq!(rows, "x,z", "inserts are carried, updates and deletes are not");

    let second = pair.migrate().run().await;
    second.assert(5, &["another engine runs this migration", "hint: "]);
    engine.assert_lives("the first engine is not disturbed");
    pair.command("remove").run().await.assert(5, &["another engine runs this migration"]);
    engine.terminate(0).await;
    let recorded = pair.target_value("SELECT ended || error FROM walferry.migration").await;
    assert_eq!(recorded, "stopped", "what the second engine met is not the first one's end");

    let slot = pair.slot().await;
    let none: [(&str, &str); 0] = [];
    let uri = pair.cluster.source.superuser_uri(DATABASE);
    let info = ConnInfo::parse(&uri, &Environment::from_map(none)).unwrap();
    let other = ReplicationSession::connect(&info, "another consumer").await.unwrap();
    let name = SlotName::new(&slot).unwrap();
    let from = SourceLsn::new(pair.progress().await);
    let stream =
        other.start(&name, from, std::slice::from_ref(&slot), StreamOptions::default()).await.unwrap();
    let active = "SELECT FROM pg_replication_slots WHERE active";
    wait_for("the slot is in use", PATIENCE, async || !pair.source(active).await.is_empty()).await;
    let ended = pair.migrate().run().await;
    ended.assert(5, &["in use by another program", "another consumer"]);
    assert_eq!(ended.statements().len(), 1, "{ended:?}");
    pair.source(&ended.statements()[0]).await;
    drop(stream);
    wait_for("the slot is free", PATIENCE, async || pair.source(active).await.is_empty()).await;

    pair.source("INSERT INTO t VALUES (2, 'y'); DELETE FROM keyless WHERE a = 2").await;
    pair.target("DELETE FROM keyless").await;
    let mut engine = pair.migrate().start();
    pair.assert_written(&mut engine, 0).await;
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pg_dump() {
    let pair = Pair::start().await;
    let elsewhere = std::fs::read_dir("/usr/lib/postgresql").is_ok_and(|entries| entries.count() > 0)
        || Path::new("/usr/bin/pg_dump").exists();
    if elsewhere {
        eprintln!("skipped: PostgreSQL is installed where it is found without PATH");
        return;
    }
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY)").await;
    let empty = tempfile::tempdir().unwrap();
    symlink("/bin/sh", empty.path().join("sh")).unwrap();
    refused(&pair.migrate().variable("PATH", empty.path()), 3, &["pg_dump"]).await;
    untouched(&pair).await;
    pair.migrate().arguments(&["--until", "synced"]).run().await.assert(0, &[]);
}

/// A file system of one's own, which is small.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let disk = Self { directory };
        disk.run(&["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0777"), "small"]).then_some(disk)
    }

    fn enlarge(&self, megabytes: u32) {
        assert!(self.run(&["-o", &format!("remount,size={megabytes}m")]));
    }

    fn run(&self, arguments: &[&str]) -> bool {
        let mut mount = std::process::Command::new("mount");
        mount.args(arguments).arg(self.directory.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_on_the_target() {
    let Some(disk) = SmallDisk::mount(20) else {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    };
    let pair = Pair::start().await;
    // A directory of the server's account, inside the file system.
    let place = disk.directory.path().join("space");
    std::fs::set_permissions(disk.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let copy = format!("COPY (SELECT 1) TO PROGRAM 'mkdir -m 700 {}'", place.display());
    pair.target(&copy).await;
    let client = pair.cluster.target.client("postgres").await.unwrap();
    let space = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
    client.batch_execute(&space).await.unwrap();
    client.batch_execute("ALTER DATABASE defaultdb SET TABLESPACE small").await.unwrap();
    load_shop(&pair.cluster.source, DATABASE).await.unwrap();
    let mut engine = pair.migrate().start();
    let error = |detail: &serde_json::Value| detail["error"].as_str().unwrap_or_default().to_owned();
    let full = engine.wait_until("the disk is full", |detail| !error(detail).is_empty()).await;
    assert!(error(&full).contains("disk") || error(&full).contains("53100"), "{}", error(&full));
    tokio::time::sleep(Duration::from_secs(1)).await;
    engine.assert_lives("space on the target");
    disk.enlarge(400);
    engine.wait_phase("syncing").await;
    let options = WriterOptions { shop_rate: 50, ..WriterOptions::default() };
    let writers = Writers::start(&pair.cluster.source, DATABASE, options).await.unwrap();
    pair.assert_written(&mut engine, 50).await;
    // Full again, in the stream.
    let used = engine.log().len();
    let fill = disk.directory.path().join("fill");
    let mut filler = std::fs::File::create(&fill).unwrap();
    let block = vec![1; 1 << 20];
    while std::io::Write::write_all(&mut filler, &block).is_ok() {}
    pair.source("SET ROLE app_owner; INSERT INTO shop.click (at, page) SELECT now(), repeat('x', 90) FROM generate_series(1, 20000)")
        .await;
    let log = || engine.log()[used..].to_owned();
    wait_for("the disk is full again", PATIENCE, async || log().contains("trying again")).await;
    std::fs::remove_file(&fill).unwrap();
    drop(filler);
    let counts = writers.stop().await;
    assert_eq!(counts.errors, 0, "{counts:?}");
    pair.assert_ends_equal(engine).await;
    drop(pair);
}

/// The slot waits for every transaction of the cluster that has written, and says for which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_does_not_end() {
    let pair = Pair::start().await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let writer = pair.cluster.source.client("postgres").await.unwrap();
    writer.batch_execute("BEGIN; CREATE TABLE w (a int)").await.unwrap();
    let pid = writer.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    // Killed while it waits: the half-made slot goes with its session.
    let waits =
        "SELECT FROM pg_stat_activity WHERE application_name = 'walferry slot' AND wait_event_type = 'Lock'";
    let waiting = async || !pair.source(waits).await.is_empty();
    let engine = pair.migrate().start();
    wait_for("the slot is being made", PATIENCE, waiting).await;
    engine.kill9().await;
    let mut engine = pair.migrate().start();
    let told = format!("server process {pid} ");
    wait_for("the log says who is waited for", PATIENCE, async || engine.log().contains(&told)).await;
    engine.assert_lives("the end of a transaction");
    writer.batch_execute("COMMIT").await.unwrap();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO t VALUES (2)").await;
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}
