//! How fast a backlog is applied, side by side with others: `cargo bench --bench catchup`.
//!
//! A source and a target server; on the target a database for each contender, all equal to the source. A backlog is
//! written while nobody follows; then one contender after the other applies it, in another order each round, both
//! servers fresh from a CHECKPOINT. A time counts only where the contender's rows are equal to the source's.
//!
//! | backlog | what |
//! |---|---|
//! | a | TPC-B transactions: three updates and an insert each |
//! | b | one transaction of many inserts (bigint key, int, 60 characters) |
//! | c | many transactions of one insert each |
//!
//! | contender | what is timed |
//! |---|---|
//! | walferry | from the start of its process |
//! | subscription | from `ALTER SUBSCRIPTION … ENABLE`; values as text or binary, transactions whole or streamed |
//! | decoding alone | the source decodes all of it and sends nothing |
//! | sending alone | from the connection of a client that reads as walferry does, and throws all of it away |
//! | pgcopydb follow | from the start of its process |
//!
//! pgcopydb 0.10 stalls in backlog b: its one transaction spans several files of WAL.
//!
//! Then walferry alone, by way of a network of 20 ms there and back: see [`round_trip`].
//!
//! | setting | meaning |
//! |---|---|
//! | `WALFERRY_BENCH_SCALE=0.1` | makes the backlogs smaller |
//! | `WALFERRY_BENCH_PGBENCH_SCALE` | of pgbench's tables, 50 |
//! | `WALFERRY_BENCH_RUNS` | rounds, 5 |
//! | `WALFERRY_BENCH_PEER_RUNS` | rounds with pgcopydb, 3 |
//! | `WALFERRY_BENCH_PEER_SECONDS` | so long is waited for pgcopydb, 300 |
//! | `WALFERRY_BENCH_ONLY=ac` | these backlogs |
//! | `WALFERRY_BENCH_TLS=off` | connects all of them without TLS, to see what a walsender's small packets cost by themselves |
//! | `WALFERRY_BENCH_DELAY_MS` | of the network, there and back, 20; 0 leaves that part out |

#[path = "../common/mod.rs"]
mod common;

mod backlog;
mod contenders;
mod reading;
mod report;
mod round_trip;

use backlog::{BACKLOGS, Backlog};
use common::rows::Rows;
use common::{Bench, DB, Result, say, setting};
use contenders::{Contender, Kind};
use walferry::demo::{Server, compare_databases};

/// What the environment sets.
struct Settings {
    scale: f64,
    pgbench_scale: u32,
    runs: usize,
    peer_runs: usize,
    wanted: String,
    delay_ms: u64,
}

fn main() -> Result<()> {
    common::block_on(run())
}

async fn run() -> Result<()> {
    let settings = Settings {
        scale: setting("WALFERRY_BENCH_SCALE", 1.0)?,
        pgbench_scale: setting("WALFERRY_BENCH_PGBENCH_SCALE", 50)?,
        runs: setting("WALFERRY_BENCH_RUNS", 5)?,
        peer_runs: setting("WALFERRY_BENCH_PEER_RUNS", 3)?,
        wanted: std::env::var("WALFERRY_BENCH_ONLY").unwrap_or_else(|_| "abc".to_owned()),
        delay_ms: setting("WALFERRY_BENCH_DELAY_MS", 20)?,
    };
    let mut report = report::Report::new(&settings).await?;
    for backlog in BACKLOGS.iter().filter(|backlog| settings.wanted.contains(backlog.name)) {
        let changes = (backlog.changes as f64 * settings.scale) as u64;
        // The servers of the backlog before are gone first.
        drop(report.bench.take());
        let bench = prepare(&settings, backlog).await?;
        let contenders = rounds(&bench, &settings, backlog, changes).await?;
        let delayed = match settings.delay_ms {
            0 => None,
            delay => Some(round_trip::measure(&bench, backlog, changes, settings.runs, delay).await?),
        };
        report.add(backlog, changes, &contenders, delayed.as_ref());
        report.bench = Some(bench);
    }
    report.record()
}

/// Fresh servers, with what this backlog needs and no more; walferry is in sync.
async fn prepare(settings: &Settings, backlog: &Backlog) -> Result<Bench> {
    // No vacuum while somebody is timed; it is done between the rounds. An engine that is halted looks like one that
    // is gone; but with no bound at all (0) a walsender looks for replies after every single message.
    let source = |options: walferry::demo::ServerOptions| {
        options
            .setting("autovacuum", "off")
            .setting("synchronous_commit", "off")
            .setting("wal_sender_timeout", "30min")
    };
    // All databases fit in, so that nobody finds another's pages there in place of its own. The launcher of
    // subscriptions waits 5 s between two starts otherwise.
    let target = |options: walferry::demo::ServerOptions| {
        options
            .setting("autovacuum", "off")
            .setting("shared_buffers", "4GB")
            .setting("wal_retrieve_retry_interval", "1ms")
            .setting("wal_receiver_status_interval", "1s")
    };
    let bench = Bench::start_with(source, target).await?;
    let server = &bench.sides.source;
    let mut published = "marker".to_owned();
    if backlog.is_pgbench() {
        walferry::demo::load_pgbench(server, DB, settings.pgbench_scale).await?;
        published += ", pgbench_accounts, pgbench_tellers, pgbench_branches";
    }
    let tables =
        format!("SET ROLE app_owner; {} CREATE TABLE marker (id bigserial PRIMARY KEY)", backlog.tables);
    server.sql(DB, &tables).await?;
    for table in ["wide", "narrow"].iter().filter(|table| backlog.tables.contains(*table)) {
        published = format!("{published}, {table}");
    }
    bench.sync()?;
    server.sql(DB, &format!("CREATE PUBLICATION bench FOR TABLE {published}")).await?;
    let without_key = if backlog.is_pgbench() { "FOR TABLE pgbench_history" } else { "" };
    let publication =
        format!("CREATE PUBLICATION bench_ins {without_key} WITH (publish = 'insert, truncate')");
    server.sql(DB, &publication).await?;
    Ok(bench)
}

async fn rounds(
    bench: &Bench,
    settings: &Settings,
    backlog: &Backlog,
    changes: u64,
) -> Result<Vec<Contender>> {
    let source = &bench.sides.source;
    let mut contenders = Contender::all(bench, backlog.name).await?;
    for round in 0..settings.runs {
        let count = contenders.len();
        let mut turns: Vec<usize> = (0..count).map(|index| (index + round) % count).collect();
        turns.retain(|&index| {
            let slow = matches!(contenders[index].kind, Kind::Pgcopydb(_));
            !slow || (round < settings.peer_runs && contenders[index].trouble.is_none())
        });
        for &index in &turns {
            contenders[index].set_up(bench).await?;
        }
        say(&format!("backlog {}, round {} of {}", backlog.name, round + 1, settings.runs))?;
        let marker = backlog.write(source, changes).await?;
        let mut measured = Vec::new();
        for &index in &turns {
            let contender = &mut contenders[index];
            match contender.measure(bench, marker).await {
                Ok(one) => measured.push((index, one)),
                // A peer that cannot do it is a result; walferry and the server itself must.
                Err(error) if matches!(contender.kind, Kind::Pgcopydb(_)) => {
                    contender.trouble = Some(error.to_string());
                }
                Err(error) => return Err(format!("{}: {error}", contender.name).into()),
            }
        }
        let rows = Rows::of(source, DB).await?;
        for (index, one) in measured {
            let contender = &mut contenders[index];
            match differing(&rows, &bench.sides.target, contender).await? {
                None => contender.count(&one)?,
                Some(text) if matches!(contender.kind, Kind::Pgcopydb(_)) => contender.trouble = Some(text),
                Some(text) => return Err(format!("{}: {text}", contender.name).into()),
            }
        }
        vacuum(bench, &contenders).await?;
    }
    for contender in &contenders {
        contender.remove(bench).await?;
        if contender.seconds.is_empty() || contender.trouble.is_some() || is_behind(contender, settings) {
            continue;
        }
        if let Some(database) = contender.database() {
            let (source, target) = (source.client(DB).await?, bench.sides.target.client(database).await?);
            let comparison = compare_databases(&source, &target).await?;
            if !comparison.tables_equal() {
                return Err(format!("{}: {comparison}", contender.name).into());
            }
        }
    }
    Ok(contenders)
}

/// Whether it did not take part in the last rounds.
fn is_behind(contender: &Contender, settings: &Settings) -> bool {
    matches!(contender.kind, Kind::Pgcopydb(_)) && settings.peer_runs < settings.runs
}

/// Which tables of a contender's are not the source's.
async fn differing(rows: &Rows, target: &Server, contender: &Contender) -> Result<Option<String>> {
    let Some(database) = contender.database() else { return Ok(None) };
    let differing = rows.differing(&Rows::of(target, database).await?);
    Ok((!differing.is_empty()).then(|| format!("these tables differ: {}", differing.join(", "))))
}

/// What autovacuum would have done meanwhile.
async fn vacuum(bench: &Bench, contenders: &[Contender]) -> Result<()> {
    for database in contenders.iter().filter_map(Contender::database) {
        bench.sides.target.client(database).await?.batch_execute("VACUUM (ANALYZE)").await?;
    }
    Ok(())
}
