//! Schemas of real applications, which the tester fetches: CONTRIBUTING.md says from where.
//!
//! `WALFERRY_TEST_SCHEMAS` is a directory with one directory for each application. Its `*.sql` are loaded in the order of
//! their names by the owner of the source's database; `administrator.sql`, if there is one, before them and on both sides by
//! the superuser: the extensions that users may not make. Statements that a server refuses are counted, as an application's
//! own installer counts them. Rows are made by types; a table whose constraints refuse them all stays empty.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use walferry::demo::{PgBinaries, Server};

use super::harness::{DATABASE, Pair};
use super::schema::definitions_by;
use super::versions::asked_pairs;

/// What a phase may take, on a machine busy with other things.
const PATIENCE: Duration = Duration::from_secs(900);

/// Rows for every table, a transaction each: `walferry_test.first` is the first one's number.
const ROWS: &str = include_str!("applications.sql");

/// Tables without a row.
const EMPTY: &str = "
    SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
        AND (xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM (SELECT FROM %s LIMIT 1) t', c.oid::regclass), false, true, '')))[1]::text = '0'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn each_moves_with_its_schema_unchanged() {
    let Some(directory) = std::env::var_os("WALFERRY_TEST_SCHEMAS") else {
        eprintln!("skipped: WALFERRY_TEST_SCHEMAS names no directory");
        return;
    };
    for (source, target) in asked_pairs().await {
        for application in sorted(Path::new(&directory), |path| path.is_dir()) {
            let pair = Pair::of(source.clone(), target.clone(), |_| {}).await;
            moves(&pair, &target, &application).await;
        }
    }
}

async fn moves(pair: &Pair, tools: &PgBinaries, application: &Path) {
    let name = application.file_name().unwrap().to_string_lossy().into_owned();
    let refused = load(pair, application).await;
    let made = rows(pair, 1).await;
    eprintln!("{name}: {refused} statements refused, {made}");

    mend(pair).await;
    let mut engine = pair.migrate().start();
    let syncing = |detail: &serde_json::Value| detail["phase"] == "syncing";
    engine.wait_until_within(PATIENCE, "syncing", syncing).await;
    rows(pair, 100).await;
    let ended = pair.command("cutover").arguments(&["--timeout", "10m"]).run_for(PATIENCE).await;
    ended.assert(0, &["done: the target has all that was written to the source"]);
    let log = engine.wait_exit(0, PATIENCE).await;
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{name}: {comparison}\n{log}");
    assert_same_schema(pair, tools, &name).await;
    eprintln!("{name}: {} tables, {} rows", comparison.tables.len(), comparison.rows_source());
}

/// Does what `check` says of functions that name things without their schemas.
async fn mend(pair: &Pair) {
    let check = pair.command("check").arguments(&["--json"]).run_for(PATIENCE).await;
    let report: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
    let found =
        report["findings"].as_array().unwrap().iter().filter(|found| found["id"] == "source-search-path");
    let hints: Vec<&str> = found.filter_map(|found| found["hint"].as_str()).collect();
    for command in
        hints.iter().flat_map(|hint| hint.lines()).filter(|line| line.starts_with("ALTER FUNCTION"))
    {
        eprintln!("{command}");
        pair.source(command).await;
    }
}

/// Loads the schema; returns how many statements were refused.
async fn load(pair: &Pair, application: &Path) -> usize {
    let administrator = application.join("administrator.sql");
    // An application's installer makes its roles.
    pair.source("ALTER ROLE app_owner CREATEROLE").await;
    let source = &pair.cluster.source;
    if administrator.exists() {
        for server in [source, &pair.cluster.target] {
            run(server.superuser_tool("psql", DATABASE), &administrator).await;
        }
    }
    let mut refused = 0;
    let files = sorted(application, |path| {
        path.extension().is_some_and(|extension| extension == "sql") && *path != administrator
    });
    for file in files {
        refused += run(owner_psql(pair, source), &file).await;
    }
    refused
}

fn owner_psql(pair: &Pair, server: &Server) -> Command {
    let login = &pair.cluster.source_login;
    server.tool("psql", &login.role, &login.password, DATABASE)
}

/// Every object is as `pg_dump | psql` would have brought it: a server that reads an expression anew may print it with other
/// casts, and a newer one with other words.
async fn assert_same_schema(pair: &Pair, tools: &PgBinaries, name: &str) {
    let pg_dump = |uri: String| {
        let mut command = tools.command("pg_dump");
        command.arg(format!("--dbname={uri}"));
        command
    };
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    target.sql("postgres", "CREATE DATABASE reference").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut dump = pg_dump(source.superuser_uri(DATABASE));
    dump.args(["--schema-only", "--exclude-schema=walferry", "--no-publications", "--file"]).arg(file.path());
    assert!(dump.status().await.unwrap().success());
    let refused = run(target.superuser_tool("psql", "reference"), file.path()).await;

    let reference = definitions_by(pg_dump(target.superuser_uri("reference"))).await;
    let ours = definitions_by(pg_dump(target.superuser_uri(DATABASE))).await;
    let theirs = definitions_by(pg_dump(source.superuser_uri(DATABASE))).await;
    let headings = |of: &BTreeSet<String>| -> BTreeSet<String> {
        of.iter().map(|entry| entry.lines().next().unwrap_or_default().to_owned()).collect()
    };
    let known: BTreeSet<String> = reference.union(&theirs).cloned().collect();
    let missing: Vec<_> = reference.difference(&ours).collect();
    let gone: BTreeSet<_> = headings(&theirs).difference(&headings(&ours)).cloned().collect();
    let more: Vec<_> = ours.difference(&known).collect();
    assert!(
        missing.is_empty() && gone.is_empty() && more.is_empty(),
        "{name}: missing: {missing:#?}\n{gone:#?}\nmore: {more:#?}"
    );
    eprintln!("{name}: {} objects; pg_dump | psql was refused {refused}", theirs.len());
}

async fn run(mut psql: Command, file: &Path) -> usize {
    psql.args(["--no-psqlrc", "--quiet", "--output=/dev/null", "--file"]).arg(file);
    let output = psql.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let refused: Vec<&str> = said.lines().filter(|line| line.contains("ERROR:")).collect();
    for line in refused.iter().take(5) {
        eprintln!("{line}");
    }
    refused.len()
}

/// Makes rows with numbers from `first` in every table that takes them, and from the second time on changes and deletes
/// some; returns which tables have none.
async fn rows(pair: &Pair, first: u32) -> String {
    let client = pair.cluster.source.client(DATABASE).await.unwrap();
    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    client.batch_execute(&format!("SET walferry_test.first = '{first}'")).await.unwrap();
    client.batch_execute(ROWS).await.unwrap();
    let empty = pair.source(EMPTY).await;
    let empty: Vec<String> = empty.into_iter().flatten().flatten().collect();
    format!("{} tables without rows: {}", empty.len(), empty.join(" "))
}

fn sorted(directory: &Path, wanted: impl Fn(&PathBuf) -> bool) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(wanted).collect();
    found.sort();
    found
}
