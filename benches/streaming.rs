//! Large transactions, in progress and at their end: `cargo bench --bench streaming`.
//!
//! Each case runs with transactions in progress taken (`on`: kept in the spill directory until they end) and left to
//! the source (`off`), in turns. Both sides are compared before a time counts.
//!
//! | case | what | the time is |
//! |---|---|---|
//! | in sync | one transaction of 2,000,000 inserts, written while the engine follows | from its COMMIT until it is there |
//! | behind | the same, written while the engine is down | from the engine's start until it is there |
//! | 200 at a time | 200 transactions with nested savepoints, a third rolled back | from the last COMMIT until all is there |
//!
//! `WALFERRY_BENCH_SCALE=0.1` makes them smaller, `WALFERRY_BENCH_RUNS` sets how often each is run.

mod common;

use std::time::Instant;

use common::{Bench, DB, Engine, Result, median, setting};
use tokio_postgres::Client;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    InSync,
    Behind,
    Many,
}

fn main() -> Result<()> {
    common::block_on(run())
}

async fn run() -> Result<()> {
    let scale: f64 = setting("WALFERRY_BENCH_SCALE", 1.0)?;
    let runs: usize = setting("WALFERRY_BENCH_RUNS", 3)?;
    let rows = (2_000_000.0 * scale) as u64;
    let mut lines = vec![
        "| case | rows | on | off | peak memory on | off |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for case in [Case::InSync, Case::Behind, Case::Many] {
        // Two hundred are large only where little is held.
        let memory = if case == Case::Many { "1MB" } else { "64MB" };
        let bench = Bench::start(|options| options.setting("logical_decoding_work_mem", memory)).await?;
        let tables = "SET ROLE app_owner; CREATE TABLE wide (id bigint PRIMARY KEY, n int, t text); \
                      CREATE TABLE marker (id bigserial PRIMARY KEY)";
        bench.sides.source.sql(DB, tables).await?;
        bench.sync()?;
        let (mut seconds, mut peaks) = ([Vec::new(), Vec::new()], [0, 0]);
        for _ in 0..runs {
            for (index, arguments) in [ON, OFF].into_iter().enumerate() {
                let (took, peak) = measure(&bench, case, rows, arguments).await?;
                seconds[index].push(took);
                peaks[index] = peak.max(peaks[index]);
            }
        }
        let [on, off] = seconds.map(median);
        let name = match case {
            Case::InSync => "in sync",
            Case::Behind => "behind",
            Case::Many => "200 at a time",
        };
        let [peak_on, peak_off] = peaks.map(|peak| peak >> 20);
        lines.push(format!("| {name} | {rows} | {on:.2} s | {off:.2} s | {peak_on} MiB | {peak_off} MiB |"));
    }
    lines.push(format!("\nMedians of {runs}, on and off in turns."));
    Bench::start(|options| options).await?.record("streaming", "cargo bench --bench streaming", &lines)
}

const ON: &[&str] = &[];
const OFF: &[&str] = &["--spill-max", "0"];

async fn measure(bench: &Bench, case: Case, rows: u64, arguments: &[&str]) -> Result<(f64, u64)> {
    let source = &bench.sides.source;
    source.sql(DB, "TRUNCATE wide").await?;
    let (mut engine, began) = match case {
        Case::Behind => {
            let client = begun(bench, 0, rows).await?;
            client.batch_execute("COMMIT").await?;
            source.sql(DB, "CHECKPOINT").await?;
            source.sql(DB, "INSERT INTO marker DEFAULT VALUES").await?;
            let began = Instant::now();
            (bench.engine(arguments)?, began)
        }
        Case::InSync => {
            let mut engine = bench.engine(arguments)?;
            followed(bench, &mut engine).await?;
            let client = begun(bench, 0, rows).await?;
            // What is in progress is received by the time that this small one is there.
            followed(bench, &mut engine).await?;
            client.batch_execute("COMMIT").await?;
            source.sql(DB, "INSERT INTO marker DEFAULT VALUES").await?;
            (engine, Instant::now())
        }
        Case::Many => {
            let mut engine = bench.engine(arguments)?;
            followed(bench, &mut engine).await?;
            many(bench, rows, &mut engine).await?;
            (engine, Instant::now())
        }
    };
    let last = bench.ask("SELECT max(id) FROM marker").await?;
    bench.reached(&mut engine, &format!("SELECT EXISTS (SELECT FROM marker WHERE id = {last})")).await?;
    let took = began.elapsed().as_secs_f64();
    let peak = bench.end(engine)?;
    bench.assert_equal().await?;
    Ok((took, peak))
}

/// Waits until a small transaction has come through.
async fn followed(bench: &Bench, engine: &mut Engine) -> Result<()> {
    bench.sides.source.sql(DB, "INSERT INTO marker DEFAULT VALUES").await?;
    let last = bench.ask("SELECT max(id) FROM marker").await?;
    bench.reached(engine, &format!("SELECT EXISTS (SELECT FROM marker WHERE id = {last})")).await?;
    Ok(())
}

async fn begun(bench: &Bench, first: u64, rows: u64) -> Result<Client> {
    let client = bench.sides.source.client(DB).await?;
    client.batch_execute("BEGIN").await?;
    insert(&client, first, rows).await?;
    Ok(client)
}

async fn insert(client: &Client, first: u64, rows: u64) -> Result<()> {
    let sql = format!(
        "INSERT INTO wide SELECT n, n, repeat(md5(n::text), 2)::char(60) FROM generate_series({first}, {}) n",
        first + rows - 1
    );
    Ok(client.batch_execute(&sql).await?)
}

/// In three rounds, so that all are open at the same time; each with a savepoint in a savepoint.
async fn many(bench: &Bench, rows: u64, engine: &mut Engine) -> Result<()> {
    let each = rows / 600;
    let mut clients = Vec::new();
    for n in 0..200 {
        clients.push(begun(bench, n * each * 10, each).await?);
    }
    for (round, savepoint) in [(1, "SAVEPOINT one"), (2, "SAVEPOINT two")] {
        for (n, client) in (0..).zip(&clients) {
            client.batch_execute(savepoint).await?;
            insert(client, (n * 10 + round) * each, each).await?;
            if n % 3 == 0 && round == 2 {
                client.batch_execute("ROLLBACK TO one").await?;
            }
        }
    }
    followed(bench, engine).await?;
    for (n, client) in clients.iter().enumerate() {
        client.batch_execute(if n % 3 == 1 { "ROLLBACK" } else { "COMMIT" }).await?;
    }
    bench.sides.source.sql(DB, "INSERT INTO marker DEFAULT VALUES").await?;
    Ok(())
}
