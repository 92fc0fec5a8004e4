//! How fast a backlog is applied: `cargo bench --bench catchup`.
//!
//! A migration is brought in sync and stopped, a backlog is written on the source, then the engine is started and the
//! time taken until all of it is on the target. Both sides are compared before a time counts.
//!
//! | backlog | what |
//! |---|---|
//! | a | TPC-B transactions: three updates and an insert each |
//! | b | one transaction of many inserts (bigint key, int, 60 characters) |
//! | c | many transactions of one insert each |
//!
//! `WALFERRY_BENCH_SCALE=0.1` makes the backlogs smaller, `WALFERRY_BENCH_RUNS` sets how often each is run.

mod common;

use std::time::Instant;

use common::{Bench, DB, Result, median, setting};

struct Backlog {
    name: &'static str,
    changes: u64,
    write: Write,
}

/// How it is written.
enum Write {
    /// By so many clients of pgbench.
    Pgbench { clients: u64, changes: u64 },
    /// By one statement, `{changes}` standing for their number.
    Sql(&'static str),
}

fn main() -> Result<()> {
    common::block_on(run())
}

async fn run() -> Result<()> {
    let scale: f64 = setting("WALFERRY_BENCH_SCALE", 1.0)?;
    let runs: usize = setting("WALFERRY_BENCH_RUNS", 3)?;
    let wanted = std::env::var("WALFERRY_BENCH_ONLY").unwrap_or_else(|_| "abc".to_owned());
    let bench = Bench::start(|options| options).await?;
    prepare(&bench).await?;
    let mut lines = vec![
        "| backlog | changes | decoding alone | walferry | changes a second | peak memory |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for backlog in BACKLOGS.iter().filter(|backlog| wanted.contains(backlog.name)) {
        let changes = (backlog.changes as f64 * scale) as u64;
        let (mut decoding, mut took, mut peak) = (Vec::new(), Vec::new(), 0);
        for _ in 0..runs {
            let measured = measure(&bench, backlog, changes).await?;
            decoding.push(measured.0);
            took.push(measured.1);
            peak = peak.max(measured.2);
        }
        let (decoding, took) = (median(decoding), median(took));
        lines.push(format!(
            "| {} | {changes} | {decoding:.2} s | {took:.2} s | {:.0} | {} MiB |",
            backlog.name,
            changes as f64 / took,
            peak >> 20
        ));
    }
    lines.push(format!("\nMedians of {runs}; walferry's time has its start in it."));
    bench.record("catchup", "cargo bench --bench catchup", &lines)
}

const BACKLOGS: [Backlog; 3] = [
    Backlog { name: "a", changes: 400_000, write: Write::Pgbench { clients: 4, changes: 4 } },
    Backlog {
        name: "b",
        changes: 1_000_000,
        write: Write::Sql(
            "INSERT INTO wide SELECT coalesce((SELECT max(id) FROM wide), 0) + n, n, repeat(md5(n::text), 2)::char(60) \
             FROM generate_series(1, {changes}) n",
        ),
    },
    Backlog {
        name: "c",
        changes: 200_000,
        write: Write::Sql(
            "DO $$ DECLARE base bigint := (SELECT coalesce(max(id), 0) FROM narrow); BEGIN FOR n IN 1..{changes} LOOP \
             INSERT INTO narrow VALUES (base + n, n); COMMIT; END LOOP; END $$",
        ),
    },
];

async fn prepare(bench: &Bench) -> Result<()> {
    let source = &bench.sides.source;
    walferry::demo::load_pgbench(source, DB, 50).await?;
    let tables = "SET ROLE app_owner; CREATE TABLE wide (id bigint PRIMARY KEY, n int, t text); \
                  CREATE TABLE narrow (id bigint PRIMARY KEY, n int); CREATE TABLE marker (id bigserial PRIMARY KEY)";
    source.sql(DB, tables).await?;
    bench.sync()
}

/// Seconds of decoding alone, seconds until all is there, peak memory in bytes.
async fn measure(bench: &Bench, backlog: &Backlog, changes: u64) -> Result<(f64, f64, u64)> {
    let source = &bench.sides.source;
    match &backlog.write {
        Write::Pgbench { clients, changes: each } => {
            let off = "ALTER SYSTEM SET synchronous_commit = off";
            source.sql("postgres", off).await?;
            source.sql("postgres", "SELECT pg_reload_conf()").await?;
            let (clients, each) = (clients.to_string(), (changes / each / clients).to_string());
            source.pgbench(DB, &["-n", "-c", &clients, "-j", "2", "-t", &each]).await?;
        }
        Write::Sql(sql) => {
            let sql = sql.replace("{changes}", &changes.to_string());
            source.client(DB).await?.batch_execute(&sql).await?;
        }
    }
    source.sql(DB, "CHECKPOINT").await?;
    let slot = bench.ask("SELECT slot_name FROM pg_replication_slots").await?;
    let began = Instant::now();
    let decode = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, 'proto_version', '1', \
         'publication_names', '{slot},{slot}_ins')"
    );
    source.sql(DB, &decode).await?;
    let decoding = began.elapsed().as_secs_f64();
    // The last transaction of the backlog: when it is there, all is.
    source.sql(DB, "INSERT INTO marker DEFAULT VALUES").await?;
    let last = bench.ask("SELECT max(id) FROM marker").await?;
    let mut engine = bench.engine(&[])?;
    let reached = format!("SELECT EXISTS (SELECT FROM marker WHERE id = {last})");
    let took = bench.reached(&mut engine, &reached).await?.as_secs_f64();
    let peak = bench.end(engine)?;
    bench.assert_equal().await?;
    Ok((decoding, took, peak))
}
