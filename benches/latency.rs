//! How long a small transaction takes to the target: `cargo bench --bench latency`.
//!
//! Clients insert one row a transaction, on a schedule that does not wait for anybody; each row carries
//! `clock_timestamp()` of its INSERT. The target's table has a column more, filled with `clock_timestamp()` when the row is
//! put there. Both servers are on one machine, so the clocks are one. The source's COMMIT with its flush is in the time,
//! and so the clients' own waiting for it is shown beside it; the target's COMMIT is not. walferry and the subscription
//! take turns, each with a database of its own.
//!
//! | setting | meaning |
//! |---|---|
//! | `WALFERRY_BENCH_RATE` | transactions a second, 1000 |
//! | `WALFERRY_BENCH_SECONDS` | of each run, 30 |
//! | `WALFERRY_BENCH_CLIENTS` | connections that they are spread over, 8 |
//! | `WALFERRY_BENCH_RUNS` | rounds, 3 |

mod common;

use std::time::Duration;

use common::figures::{Goal, Series, goals};
use common::peers::Subscription;
use common::{Bench, DB, Result, arrived, say, setting};
use tokio::time::{Instant, sleep_until};
use walferry::demo::Server;

/// What is written in a run.
#[derive(Debug, Clone, Copy)]
struct Load {
    rate: u32,
    seconds: u32,
    clients: u32,
}

#[derive(Default)]
struct Figures {
    p50: Series,
    p99: Series,
    max: Series,
}

/// What the writers saw.
struct Written {
    /// How late the latest transaction began.
    late_ms: f64,
    /// p50, p99 and the greatest of how long each took.
    waited_ms: [f64; 3],
}

impl Figures {
    fn push(&mut self, [p50, p99, max]: [f64; 3]) {
        self.p50.push(p50);
        self.p99.push(p99);
        self.max.push(max);
    }
}

fn main() -> Result<()> {
    common::block_on(run())
}

async fn run() -> Result<()> {
    let load = Load {
        rate: setting("WALFERRY_BENCH_RATE", 1000)?,
        seconds: setting("WALFERRY_BENCH_SECONDS", 30)?,
        clients: setting("WALFERRY_BENCH_CLIENTS", 8)?,
    };
    let runs: usize = setting("WALFERRY_BENCH_RUNS", 3)?;
    let bench = Bench::start(|options| options).await?;
    let subscription = prepare(&bench).await?;
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    let (mut walferry, mut peer, mut client) = (Figures::default(), Figures::default(), Figures::default());
    let mut late = Series::default();
    let mut first = 1;
    for round in 0..runs {
        let turns = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_walferry in turns {
            let (name, database, figures) = match is_walferry {
                true => ("walferry", DB, &mut walferry),
                false => ("subscription", subscription.name.as_str(), &mut peer),
            };
            let engine = if is_walferry { Some(bench.engine(&[])?) } else { None };
            if !is_walferry {
                subscription.enable(target).await?;
            }
            // What was written for the other comes first.
            there(target, database, first - 1).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let written = write(source, load, first).await?;
            late.push(written.late_ms);
            client.push(written.waited_ms);
            let last = first + i64::from(load.rate * load.seconds) - 1;
            there(target, database, last).await?;
            match engine {
                Some(engine) => {
                    bench.end(engine)?;
                }
                None => subscription.disable(source, target).await?,
            }
            let [p50, p99, max] = figures_of(source, target, database, first).await?;
            say(&format!("{name}: p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"))?;
            figures.push([p50, p99, max]);
            first = last + 1;
        }
    }
    subscription.remove(source, target).await?;
    let mut lines = vec!["| contender | p50 | p99 | max |".to_owned(), "|---|---|---|---|".to_owned()];
    for (name, figures) in
        [("walferry", &walferry), ("subscription", &peer), ("the clients, for the source", &client)]
    {
        let shown = |series: &Series| series.median().map_or(String::new(), |ms| format!("{ms:.2} ms"));
        let (p50, p99) = (shown(&figures.p50), shown(&figures.p99));
        lines.push(format!("| {name} | {p50} | {p99} | {:.2} ms |", figures.max.max()));
    }
    lines.push(format!(
        "\n{} transactions of one insert a second for {} s, from {} clients on a fixed schedule (the latest began {:.0} ms \
         late); medians of {runs} runs each, in turns, the greatest of all under max. From the INSERT on the source, its \
         COMMIT and flush included, until the row is put into the target's table, before that is committed.",
        load.rate,
        load.seconds,
        load.clients,
        late.max()
    ));
    lines.extend(goals(&[
        Goal::at_most("p50", 2.0, " ms", walferry.p50.median()),
        Goal::at_most("p99", 10.0, " ms", walferry.p99.median()),
    ]));
    bench.record("latency", "cargo bench --bench latency", &lines)
}

/// Brings walferry in sync, and makes the subscription with a database like walferry's.
async fn prepare(bench: &Bench) -> Result<Subscription> {
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    let table = "SET ROLE app_owner; CREATE TABLE event (id bigint PRIMARY KEY, at timestamptz NOT NULL); \
                 INSERT INTO event VALUES (0, clock_timestamp())";
    source.sql(DB, table).await?;
    bench.sync()?;
    let column = "ALTER TABLE event ADD COLUMN applied_at timestamptz DEFAULT clock_timestamp()";
    target.sql(DB, column).await?;
    source.sql(DB, "CREATE PUBLICATION bench FOR TABLE event").await?;
    source.sql(DB, "CREATE PUBLICATION bench_ins WITH (publish = 'insert, truncate')").await?;
    let subscription = Subscription { name: "sub".to_owned(), binary: false, streaming: false };
    bench.copy_database(&subscription.name).await?;
    subscription.create(source, target, &bench.source_uri()).await?;
    Ok(subscription)
}

/// Waits until the row and all before it are there.
async fn there(target: &Server, database: &str, id: i64) -> Result<()> {
    arrived(target, database, &format!("SELECT count(*) > {id} FROM event"), || Ok(())).await
}

/// Writes the rows from this number on.
async fn write(source: &Server, load: Load, first: i64) -> Result<Written> {
    let began = Instant::now() + Duration::from_millis(100);
    let mut clients = Vec::new();
    for number in 0..load.clients {
        let client = source.client(DB).await?;
        clients.push(tokio::spawn(async move {
            let insert = client.prepare("INSERT INTO event VALUES ($1, clock_timestamp())").await?;
            let (mut late, mut waited) = (Duration::ZERO, Vec::new());
            for n in (number..load.rate * load.seconds).step_by(load.clients as usize) {
                let due = began + Duration::from_secs(1) * n / load.rate;
                sleep_until(due).await;
                let begun = Instant::now();
                late = late.max(begun - due);
                client.execute(&insert, &[&(first + i64::from(n))]).await?;
                waited.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            Ok::<_, tokio_postgres::Error>((late, waited))
        }));
    }
    let (mut late, mut waited) = (Duration::ZERO, Vec::new());
    for client in clients {
        let (latest, each) = client.await??;
        late = late.max(latest);
        waited.extend(each);
    }
    waited.sort_by(f64::total_cmp);
    let at = |part: f64| waited.get(((waited.len() as f64 * part) as usize).min(waited.len() - 1)).copied();
    let waited_ms = [0.5, 0.99, 1.0].map(|part| at(part).unwrap_or_default());
    Ok(Written { late_ms: late.as_secs_f64() * 1000.0, waited_ms })
}

/// Milliseconds of the rows from this number on: p50, p99, the greatest. All rows must be equal first.
async fn figures_of(source: &Server, target: &Server, database: &str, first: i64) -> Result<[f64; 3]> {
    let sums = "SELECT concat_ws(' ', count(*), sum(hashtextextended((id, at)::text, 0))) FROM event";
    if source.sql(DB, sums).await? != target.sql(database, sums).await? {
        return Err(format!("the rows of {database} differ").into());
    }
    let sql = "SELECT percentile_disc(ARRAY[0.5, 0.99, 1]) WITHIN GROUP \
               (ORDER BY (extract(epoch FROM applied_at - at) * 1000)::float8) FROM event WHERE id >= $1";
    let row = target.client(database).await?.query_one(sql, &[&first]).await?;
    Ok(row.get::<_, Vec<f64>>(0).try_into().map_err(|_| "there are no rows")?)
}
