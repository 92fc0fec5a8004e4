//! What a round trip to the target costs in throughput.
//!
//! The engine is brought in sync by way of a proxy and halted (SIGSTOP); the backlog is written; the time runs from when
//! the engine goes on until all is there. So its start, which is mostly round trips, does not count. With the delay and
//! without in turns, both by way of the proxy.

use std::time::{Duration, Instant};

use crate::backlog::Backlog;
use crate::common::figures::Series;
use crate::common::proxy::Proxy;
use crate::common::rows::Rows;
use crate::common::{Bench, DB, Result, say, signal};

/// Times with the delay and without.
pub struct RoundTrip {
    /// `20 ms there and back`.
    pub name: String,
    /// By way of a proxy that does not delay.
    pub direct: Series,
    /// By way of one that does.
    pub delayed: Series,
}

/// Measures a backlog so often each way.
pub async fn measure(
    bench: &Bench,
    backlog: &Backlog,
    changes: u64,
    runs: usize,
    delay_ms: u64,
) -> Result<RoundTrip> {
    let name = format!("{delay_ms} ms there and back");
    let mut measured = RoundTrip { name, direct: Series::default(), delayed: Series::default() };
    let one_way = Duration::from_micros(delay_ms * 500);
    for run in 0..runs {
        let mut ways = [(Duration::ZERO, &mut measured.direct), (one_way, &mut measured.delayed)];
        if run % 2 == 1 {
            ways.reverse();
        }
        for (delay, series) in ways {
            let seconds = one(bench, backlog, changes, delay).await?;
            say(&format!("backlog {}, {} ms each way: {seconds:.2} s", backlog.name, delay.as_millis()))?;
            series.push(seconds);
        }
    }
    Ok(measured)
}

async fn one(bench: &Bench, backlog: &Backlog, changes: u64, delay: Duration) -> Result<f64> {
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    let proxy = Proxy::start(target.port(), delay).await?;
    let uri = proxy.uri(&bench.target_uri(), target.port());
    let mut engine = bench.engine_to(&uri, &[])?;
    let client = source.client(DB).await?;
    let marker: i64 = client.query_one("INSERT INTO marker DEFAULT VALUES RETURNING id", &[]).await?.get(0);
    let reached = |marker: i64| format!("SELECT EXISTS (SELECT FROM marker WHERE id = {marker})");
    bench.reached(&mut engine, &reached(marker)).await?;
    // What it does once after that is done then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    signal(engine.id(), "STOP")?;
    let marker = backlog.write(source, changes).await?;
    bench.checkpoint().await?;
    let began = Instant::now();
    signal(engine.id(), "CONT")?;
    bench.reached(&mut engine, &reached(marker)).await?;
    let seconds = began.elapsed().as_secs_f64();
    bench.end(engine)?;
    let differing = Rows::of(source, DB).await?.differing(&Rows::of(target, DB).await?);
    if differing.is_empty() { Ok(seconds) } else { Err(format!("these tables differ: {differing:?}").into()) }
}
