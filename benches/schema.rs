//! Whether a large schema costs more for each table than a small one: `cargo bench --bench schema`.
//!
//! One database of 1,000 tables, then one of 10,000, each table with a primary key, one index more and ten rows, every
//! other one with a foreign key. Both servers have their default settings but for `wal_level`. The peer is `pg_dump -Fc`
//! and then `pg_restore -j2` of the same database; `pg_dump -j2` of 10,000 tables takes more locks than such a server has.
//!
//! | step | what is timed |
//! |---|---|
//! | check | `walferry check` |
//! | schema | `migrate`, up to the phase `copying`: preflight, slot, publications, tables |
//! | copy | the phase `copying` |
//! | indexes | the phase `indexing`: indexes, keys, ANALYZE |
//! | start of the stream | the phase `catching_up`, foreign keys included |
//! | changes | an insert into every table, of 500 tables in a transaction (a server has no locks for 10,000), until the target has them |
//! | metrics | one scrape of `/metrics` |
//! | status | `walferry status` |
//! | cutover | `walferry cutover` |
//! | remove | `walferry remove` |
//!
//! | setting | meaning |
//! |---|---|
//! | `WALFERRY_BENCH_TABLES=1000,10000` | how many tables |

mod common;

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::time::Instant;

use common::cpu;
use common::figures::{Goal, NONE, goals};
use common::{Bench, DB, Engine, Result, ended_well, say};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use walferry::demo::AVNADMIN;

/// What one database of so many tables took.
struct Run {
    tables: u32,
    /// Seconds of each step.
    steps: Vec<(&'static str, f64)>,
    migrate_seconds: f64,
    peer_seconds: f64,
    peak_bytes: u64,
}

fn main() -> Result<()> {
    common::block_on(run())
}

async fn run() -> Result<()> {
    let counts = std::env::var("WALFERRY_BENCH_TABLES").unwrap_or_else(|_| "1000,10000".to_owned());
    let mut runs = Vec::new();
    let mut version = None;
    for count in counts.split(',') {
        let bench = Bench::start_untuned().await?;
        runs.push(measure(&bench, count.parse()?).await?);
        version = Some(bench);
    }
    let bench = version.ok_or("WALFERRY_BENCH_TABLES names no number")?;
    bench.record("schema", "cargo bench --bench schema", &report(&runs))
}

fn report(runs: &[Run]) -> Vec<String> {
    let head = runs.iter().map(|run| format!(" {} tables | a table |", run.tables)).collect::<String>();
    let mut lines = vec![format!("| step |{head}"), format!("|---|{}", "---|---|".repeat(runs.len()))];
    let per_table = |run: &Run, seconds: f64| seconds * 1000.0 / f64::from(run.tables);
    let row = |name: &str, of: &dyn Fn(&Run) -> f64| {
        let cells = runs.iter().map(|run| format!(" {:.2} s | {:.2} ms |", of(run), per_table(run, of(run))));
        format!("| {name} |{}", cells.collect::<String>())
    };
    for (index, (name, _)) in runs[0].steps.iter().enumerate() {
        lines.push(row(name, &|run| run.steps[index].1));
    }
    lines.push(row("migrate, to the phase syncing", &|run| run.migrate_seconds));
    lines.push(row("pg_dump and pg_restore", &|run| run.peer_seconds));
    let peaks = runs.iter().map(|run| format!(" {:.0} MiB | {NONE} |", mebibytes(run.peak_bytes)));
    lines.push(format!("| peak memory |{}", peaks.collect::<String>()));
    let mut all = Vec::new();
    let (small, large) = (&runs[0], &runs[runs.len() - 1]);
    let times = Some(large.migrate_seconds / large.peer_seconds);
    all.push(Goal::at_most(
        format!("{} tables: migrate, times pg_dump and pg_restore", large.tables),
        1.25,
        "",
        times,
    ));
    all.push(Goal::at_most("peak memory", 256.0, " MiB", Some(mebibytes(large.peak_bytes))));
    for (before, after) in small.steps.iter().zip(&large.steps) {
        let growth = per_table(large, after.1) / per_table(small, before.1);
        let what = format!("{}: time a table at {}, times that at {}", after.0, large.tables, small.tables);
        all.push(Goal::at_most(what, 1.5, "", Some(growth)));
    }
    lines.extend(goals(&all));
    lines
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Tables of one transaction.
const TABLES_AT_ONCE: u32 = 500;

async fn fill(bench: &Bench, tables: u32) -> Result<()> {
    let client = bench.sides.source.client(DB).await?;
    for first in (1..=tables).step_by(TABLES_AT_ONCE as usize) {
        let mut sql = "SET ROLE app_owner; BEGIN;".to_owned();
        for table in first..=tables.min(first + TABLES_AT_ONCE - 1) {
            sql += &format!(
                "CREATE TABLE t{table} (id bigint PRIMARY KEY, other bigint, body text NOT NULL DEFAULT ''); \
                 CREATE INDEX t{table}_other ON t{table} (other); \
                 INSERT INTO t{table} SELECT n, n, 'a row' FROM generate_series(1, 10) n;"
            );
            if table % 2 == 0 {
                sql +=
                    &format!("ALTER TABLE t{table} ADD FOREIGN KEY (other) REFERENCES t{} (id);", table - 1);
            }
        }
        client.batch_execute(&(sql + "COMMIT")).await?;
    }
    client.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
    bench.checkpoint().await
}

async fn measure(bench: &Bench, tables: u32) -> Result<Run> {
    fill(bench, tables).await?;
    say(&format!("{tables} tables are made"))?;
    let mut steps = Vec::new();
    let mut step = |name: &'static str, began: Instant| -> Result<()> {
        let seconds = began.elapsed().as_secs_f64();
        steps.push((name, seconds));
        say(&format!("{tables} tables: {name}: {seconds:.2} s"))
    };
    let peer_seconds = peer(bench).await?;
    say(&format!("{tables} tables: pg_dump and pg_restore: {peer_seconds:.2} s"))?;

    let began = Instant::now();
    ended_well("check", bench.command(&["check"])?)?;
    step("check", began)?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let migrating = Instant::now();
    let mut engine = bench.engine(&["--jobs", "2", "--listen", &format!("127.0.0.1:{port}")])?;
    let phases = [
        ("schema", "copying"),
        ("copy", "indexing"),
        ("indexes", "catching_up"),
        ("start of the stream", "syncing"),
    ];
    for (name, next) in phases {
        let began = Instant::now();
        phase(bench, &mut engine, next).await?;
        step(name, began)?;
    }
    let migrate_seconds = migrating.elapsed().as_secs_f64();

    let began = Instant::now();
    // The session ends with them: the cutover would have to end it.
    let client = bench.sides.source.client(DB).await?;
    for first in (1..=tables).step_by(TABLES_AT_ONCE as usize) {
        let some = first..=tables.min(first + TABLES_AT_ONCE - 1);
        let touch: String = some.map(|table| format!("INSERT INTO t{table} VALUES (11, 1);")).collect();
        client.batch_execute(&format!("BEGIN; {touch} COMMIT")).await?;
    }
    drop(client);
    let there = format!("SELECT EXISTS (SELECT FROM t{tables} WHERE id = 11)");
    bench.reached(&mut engine, &there).await?;
    step("changes", began)?;
    let began = Instant::now();
    scrape(port).await?;
    step("metrics", began)?;
    let peak_bytes = cpu::peak_memory(engine.id())?;
    let began = Instant::now();
    ended_well("status", bench.command(&["status"])?)?;
    step("status", began)?;
    let began = Instant::now();
    ended_well("cutover", bench.command(&["cutover"])?)?;
    step("cutover", began)?;
    let (peak_bytes, _) = engine.finished().await.map(|(last, cpu)| (last.max(peak_bytes), cpu))?;
    assert_equal(bench, tables).await?;
    let began = Instant::now();
    ended_well("remove", bench.remove()?)?;
    step("remove", began)?;
    Ok(Run { tables, steps, migrate_seconds, peer_seconds, peak_bytes })
}

async fn phase(bench: &Bench, engine: &mut Engine, wanted: &str) -> Result<()> {
    let made = "SELECT to_regclass('walferry.migration') IS NOT NULL";
    bench.reached(engine, made).await?;
    let later = format!(
        "SELECT EXISTS (SELECT FROM walferry.migration WHERE array_position(ARRAY['copying', 'indexing', 'catching_up', \
         'syncing'], phase) >= array_position(ARRAY['copying', 'indexing', 'catching_up', 'syncing'], '{wanted}'))"
    );
    bench.reached(engine, &later).await?;
    Ok(())
}

/// In transactions that default servers have locks for.
async fn assert_equal(bench: &Bench, tables: u32) -> Result<()> {
    for first in (1..=tables).step_by(TABLES_AT_ONCE as usize) {
        let each = |table| {
            format!("SELECT {table} AS t, count(*), sum(hashtextextended(t::text, 0)) FROM t{table} t")
        };
        let some = first..=tables.min(first + TABLES_AT_ONCE - 1);
        let sql = some.map(each).collect::<Vec<_>>().join(" UNION ALL ") + " ORDER BY 1";
        if bench.sides.source.sql(DB, &sql).await? != bench.sides.target.sql(DB, &sql).await? {
            return Err(format!("the sides differ in tables from t{first} on").into());
        }
    }
    Ok(())
}

async fn scrape(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    if text.contains("walferry_tables") { Ok(()) } else { Err("no metrics".into()) }
}

/// Seconds of pg_dump and pg_restore, to a database that is made anew and dropped afterwards.
async fn peer(bench: &Bench) -> Result<f64> {
    let sides = &bench.sides;
    let target = &sides.target;
    target.sql("postgres", &format!("CREATE DATABASE peer OWNER {AVNADMIN}")).await?;
    let work = tempfile::Builder::new().prefix("walferry-bench-").tempdir()?;
    let file = work.path().join("dump");
    bench.checkpoint().await?;
    let began = Instant::now();
    let login = &sides.source_login;
    let mut dump = sides.source.tool("pg_dump", &login.role, &login.password, DB);
    dump.args(["--format=custom", "--no-owner", "--no-acl", "--file"]).arg(&file);
    ended_well("pg_dump", dump.stdout(Stdio::null()).status().await?)?;
    let login = &sides.target_login;
    let mut restore = target.tool("pg_restore", &login.role, &login.password, "peer");
    restore.args(["--jobs=2", "--no-owner", "--no-acl", "--dbname", "peer"]).arg(&file);
    ended_well("pg_restore", restore.status().await?)?;
    let took = began.elapsed();
    target.sql("postgres", "DROP DATABASE peer WITH (FORCE)").await?;
    bench.checkpoint().await?;
    Ok(took.as_secs_f64())
}
