//! The task that watches the source beside the stream: how far its WAL is, what its clock says, how the slot does.
//!
//! It has a session of its own and outlives the runs: lag goes on being right while the target is down or the stream
//! is reconnecting. It alone writes the lag.

use std::future::Future;

use tokio::time::{Instant, MissedTickBehavior, timeout};
use tracing::Instrument;

use crate::catalog;
use crate::catalog::SourceClient;
use crate::error::{Result, Side, Transient};
use crate::limits::{MONITOR_INTERVAL, MONITOR_TIMEOUT, SLOT_INTERVAL};
use crate::pg::{SlotName, SourceLsn};
use crate::status::{SlotStatus, StatusHandle};
use crate::wire::ConnInfo;

use super::lag::LagClock;
use super::progress::{Progress, local_micros};

/// What the monitor needs.
#[derive(Debug, Clone)]
pub struct MonitorInput {
    /// The source.
    pub source: ConnInfo,
    /// The database, by its name on the source.
    pub dbname: String,
    /// The slot to watch.
    pub slot: SlotName,
    /// Where all of it is shown.
    pub status: StatusHandle,
}

/// The running task; it ends when this is dropped.
#[derive(Debug)]
pub struct Monitor {
    task: tokio::task::JoinHandle<()>,
}

impl Monitor {
    /// Starts watching.
    pub fn start(input: MonitorInput, progress: Progress) -> Self {
        Self { task: tokio::spawn(watch_source(input, progress).in_current_span()) }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch_source(input: MonitorInput, progress: Progress) {
    let began = Instant::now();
    let mut lag = LagClock::new();
    let mut client: Option<SourceClient> = None;
    let mut slot_asked: Option<Instant> = None;
    let mut tick = tokio::time::interval(MONITOR_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let ask_slot = slot_asked.is_none_or(|asked| asked.elapsed() >= SLOT_INTERVAL);
        let looking = look(&input, &progress, client.take(), ask_slot);
        tokio::pin!(looking);
        // A source that does not answer keeps nobody from seeing that.
        let looked = loop {
            tokio::select! {
                looked = &mut looking => break looked,
                _ = tick.tick() => show(&input, &progress, &mut lag, began),
            }
        };
        match looked {
            Ok((watching, wal)) => {
                lag.source_wal(began.elapsed(), wal);
                client = Some(watching);
                slot_asked = if ask_slot { Some(Instant::now()) } else { slot_asked };
            }
            Err(failure) => tracing::debug!(%failure, "cannot watch the source"),
        }
        show(&input, &progress, &mut lag, began);
    }
}

fn show(input: &MonitorInput, progress: &Progress, lag: &mut LagClock, began: Instant) {
    let reached = progress.now();
    if let Some(applied) = reached.applied() {
        lag.applied(applied);
    }
    lag.oldest_unapplied(reached.oldest_unapplied);
    let now = lag.lag(began.elapsed(), progress.source_now());
    progress.update(|reached| reached.lag = now);
    input.status.update_database(&input.dbname, |database| {
        database.lag_bytes = now.bytes;
        database.lag_seconds = now.seconds;
    });
}

/// Asks the source, and gives the session back where it is still good.
async fn look(
    input: &MonitorInput,
    progress: &Progress,
    client: Option<SourceClient>,
    ask_slot: bool,
) -> Result<(SourceClient, SourceLsn)> {
    let client = match client {
        Some(client) => client,
        None => SourceClient::connect(&input.source, "walferry monitor").await?,
    };
    let wal = in_time(catalog::current_wal(&client)).await?;
    input.status.update_database(&input.dbname, |database| database.source_wal = Some(wal));
    if !ask_slot {
        return Ok((client, wal));
    }
    let asked = local_micros();
    let source = in_time(catalog::clock(&client)).await?;
    let middle = asked + (local_micros() - asked) / 2;
    progress.update(|reached| reached.clock_offset = Some(source.unix_micros() - middle));
    let slot = in_time(catalog::slot(&client, input.slot.as_str())).await?;
    input.status.update_database(&input.dbname, |database| {
        database.slot = slot.map(|slot| SlotStatus {
            name: input.slot.clone(),
            retained_bytes: slot.retained_bytes.unwrap_or(0),
            safe_bytes: slot.safe_wal_size,
            wal_status: slot.wal_status.unwrap_or_default(),
        });
    });
    Ok((client, wal))
}

/// The answer, or a failure after which the session is of no use any more.
async fn in_time<T>(asked: impl Future<Output = Result<T, catalog::Error>>) -> Result<T> {
    match timeout(MONITOR_TIMEOUT, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let cause = format!("no answer within {} s", MONITOR_TIMEOUT.as_secs());
            Err(Transient::new(Side::Source, cause).into())
        }
    }
}

const _: () = assert!(MONITOR_INTERVAL.as_millis() <= SLOT_INTERVAL.as_millis());
