//! One pipeline: what happens becomes an event, an event becomes effects, and this shell carries them out.
//!
//! ```text
//!   source ──▶ reader task ──▶ select() ──▶ State::on(event) ──▶ effects ──▶ apply task ──▶ target
//!              decode,           ▲  ▲                              │        plan, send │
//!              assemble deadline ┘  └─────────────── done ◀────────┼───────────────────┘
//!   source ◀── status update ◀─────────────────────────────────────┘
//! ```
//!
//! One task owns the [`State`]; nothing is locked. A failure of either side ends the run: the next one reads the
//! stored position and goes on from there, so there is one way to start and it is tried out all the time.
//!
//! Not here: when to run again, and what a migration is.

mod lag;
mod memory;
mod monitor;
mod progress;
mod reader;
pub mod state;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use crate::apply::{Applied, Applier, ApplyError, ConflictKind, Done, Written};
use crate::assemble::Assembler;
use crate::catalog::{self, SourceClient};
use crate::error::{Failure, Result, Side, Transient};
use crate::limits::{MARK_TIMEOUT, PING_AFTER, READER_QUEUE_MAX, RECEIVE_MANY, SHOW_INTERVAL};
use crate::pg::{PgTimestamp, Resume, SourceLsn};
use crate::plan::Batch;
use crate::proto::StandbyStatusUpdate;
use crate::spill::{SpillDir, SpillError};
use crate::status::{Metrics, StatusHandle};
use crate::wire::{CopyBothReader, CopyBothWriter};

pub use lag::Lag;
pub use monitor::{Monitor, MonitorInput};
pub use progress::{Progress, Reached};
pub use reader::{Ahead, recognise};
pub use state::Finish;

use memory::Memory;
use reader::Incoming;
use state::{Effect, Event, Positions, State};
use worker::Worker;

/// What a run needs besides its connections.
#[derive(Debug, Clone)]
pub struct Run {
    /// The database, by its name on the source.
    pub dbname: String,
    /// What is stored on the target.
    pub resume: Resume,
    /// Where the last copy of a table was made.
    pub copied: SourceLsn,
    /// Makes a transaction there for the history to be known by.
    pub source: Arc<SourceClient>,
    /// Whether the source sends transactions without changes (before 14).
    pub sends_empty: bool,
    /// How long a durable position waits before it is confirmed.
    pub confirm_delay: Duration,
    /// Finish as soon as everything that commits before this position is durable.
    pub run_to: Option<SourceLsn>,
    /// Memory of everything received and not yet applied.
    pub queue_cost_max: usize,
    /// Where transactions in progress are kept, if the stream has them.
    pub spill: Option<SpillDir>,
    /// Which of them need not wait for their commit, if any.
    pub ahead: Option<Ahead>,
    /// Where the positions are shown.
    pub status: StatusHandle,
    /// Where things are counted.
    pub metrics: Metrics,
    /// Where they are told to whoever decides by them.
    pub progress: Progress,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// As it was asked to, with all that was applied stored; the session can be used further.
    Finished(Finish, Box<Applier>),
    /// By a failure of either side.
    Failed(ApplyError),
    /// Transactions in progress cannot be kept here, or were damaged: the source can be asked to keep them.
    SpillFailed(SpillError),
    /// The target refused a transaction that went ahead of its commit, and may have been right: parts of it may be rolled
    /// back yet.
    AheadFailed(ApplyError),
}

impl<E: Into<ApplyError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Streams, applies and confirms until told to stop, or until `run_to` is reached.
pub async fn run(
    run: Run,
    mut applier: Applier,
    stream: (CopyBothReader, CopyBothWriter),
    stop: watch::Receiver<bool>,
) -> Ended {
    // What is stored may be in the target's memory alone: an engine before this one wrote it, and did not wait.
    if let Err(error) = applier.flush().await {
        return error.into();
    }
    let (reader, writer) = stream;
    let (sender, incoming) = mpsc::channel(READER_QUEUE_MAX);
    let memory = Memory::new(run.queue_cost_max);
    let mut readers = JoinSet::new();
    let assembler = Assembler::going_on(&run.resume).sent_empty(run.sends_empty);
    let assembler = match &run.spill {
        Some(spill) => assembler.streaming(spill.clone()),
        None => assembler,
    };
    let reading = reader::read(reader, assembler, memory, run.ahead.clone(), sender, run.metrics.clone());
    readers.spawn(reading.in_current_span());
    let shell = Shell {
        state: State::new(run.resume, run.confirm_delay, run.run_to).with_copies_of(run.copied),
        began: Instant::now(),
        heard: Instant::now(),
        shown: None,
        shown_at: Instant::now(),
        ahead: Applied::default(),
        worker: Worker::start(applier),
        marks: JoinSet::new(),
        mark_failed: false,
        writer,
        run,
    };
    let ended = shell.run(incoming, stop).await;
    // The reader goes with the run, and what it keeps on disk with it.
    readers.shutdown().await;
    ended
}

struct Shell {
    run: Run,
    state: State,
    began: Instant,
    /// When the source last said something.
    heard: Instant,
    /// What is shown, and since when.
    shown: Option<Shown>,
    shown_at: Instant,
    /// What the open transaction did that goes ahead.
    ahead: Applied,
    worker: Worker,
    /// Transactions that are being made on the source.
    marks: JoinSet<bool>,
    /// The last one could not be made.
    mark_failed: bool,
    writer: CopyBothWriter,
}

/// What others see of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    positions: Positions,
    last_change: Option<SourceLsn>,
    oldest_unapplied: Option<PgTimestamp>,
}

impl Shell {
    async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>, mut stop: watch::Receiver<bool>) -> Ended {
        let deadline = sleep_until(self.next_deadline());
        tokio::pin!(deadline);
        let mut stopping = false;
        let mut received = Vec::new();
        loop {
            let due = self.next_deadline();
            if deadline.deadline() != due {
                deadline.as_mut().reset(due);
            }
            // Whatever flows in, stopping, finished work and the clock come first.
            let event = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    Some(Event::Stop)
                }
                done = self.worker.done() => match done {
                    Ok(done) => Some(Event::Done(self.done(done))),
                    Err(error @ (ApplyError::Conflict(_) | ApplyError::Failure(Failure::Definite(_))))
                        if self.state.is_ahead() =>
                    {
                        return Ended::AheadFailed(error);
                    }
                    Err(error) => return error.into(),
                },
                () = &mut deadline => {
                    // Others look at the source by it, and nobody else would notice: the stream has its own.
                    if self.run.source.is_closed() {
                        return Failure::from(Transient::new(Side::Source, "the control connection was lost")).into();
                    }
                    self.show();
                    Some(Event::Deadline)
                }
                count = incoming.recv_many(&mut received, RECEIVE_MANY) => {
                    assert!(count > 0, "the reader says why it ends");
                    None
                }
            };
            let ended = match event {
                Some(event) => self.on(event).await,
                None => self.on_received(&mut received).await,
            };
            match ended {
                Ok(None) => self.show_caught_up(),
                Ok(Some(finish)) => {
                    self.show();
                    return Ended::Finished(finish, Box::new(self.worker.end().await));
                }
                Err(ended) => return ended,
            }
        }
    }

    async fn on_received(&mut self, received: &mut Vec<Incoming>) -> Result<Option<Finish>, Ended> {
        self.heard = Instant::now();
        for incoming in received.drain(..) {
            let event = event(incoming)?;
            if let Some(finish) = self.on(event).await? {
                return Ok(Some(finish));
            }
        }
        Ok(None)
    }

    async fn on(&mut self, event: Event) -> Result<Option<Finish>, Ended> {
        for effect in self.state.on(event, self.began.elapsed()) {
            match effect {
                Effect::Apply(batch) => self.worker.apply(batch),
                Effect::Store { previous, to } => self.worker.store(previous, to),
                Effect::Abandon => self.worker.abandon(),
                Effect::Flush => self.worker.flush(),
                Effect::Report(positions) => self.report(positions, positions.confirmed).await?,
                Effect::Answer(positions) => self.report(positions, SourceLsn::ZERO).await?,
                Effect::Mark => self.mark(),
                Effect::Finish(finish) => return Ok(Some(finish)),
            }
        }
        Ok(None)
    }

    fn done(&mut self, (done, took): (Done, Duration)) -> Option<Written> {
        match done {
            Done::Stored(written) | Done::Flushed(written) => Some(written),
            Done::Applied { batch, applied, written } => {
                self.count(&batch, applied, took);
                written
            }
            Done::Abandoned => {
                self.ahead = Applied::default();
                None
            }
        }
    }

    /// Nobody waits for it: it comes in the stream, or is made again.
    fn mark(&mut self) {
        let source = Arc::clone(&self.run.source);
        while let Some(made) = self.marks.try_join_next() {
            self.mark_failed = !made.unwrap_or(false);
        }
        let again = self.mark_failed;
        let marking = async move {
            let failure = match timeout(MARK_TIMEOUT, catalog::mark_wal(&source)).await {
                Ok(Ok(_)) => return true,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            // Said once for all that follow each other.
            if again {
                tracing::debug!(failure, "pg_logical_emit_message failed on the source again");
            } else {
                tracing::warn!(
                    failure,
                    "pg_logical_emit_message failed on the source, which keeps its WAL meanwhile"
                );
            }
            false
        };
        self.marks.spawn(marking.in_current_span());
    }

    async fn report(&mut self, positions: Positions, flushed: SourceLsn) -> Result<()> {
        let quiet = self.heard.elapsed();
        let update = StandbyStatusUpdate {
            written: positions.received,
            flushed,
            applied: positions.applied,
            sent_at: PgTimestamp::from_unix_micros(jiff::Timestamp::now().as_microsecond()),
            reply_requested: quiet >= PING_AFTER,
        };
        let mut message = BytesMut::new();
        update.encode(&mut message);
        self.writer.send(&message).await.map_err(|error| error.into_failure(Side::Source))
    }

    fn count(&mut self, batch: &Batch, mut applied: Applied, took: Duration) {
        let Run { metrics, status, dbname, progress, .. } = &self.run;
        metrics.batch(applied.changes.iter().sum(), took.as_secs_f64());
        if let Some(reason) = applied.ordered {
            metrics.ordered_batch(reason.as_str());
        }
        // The rows of what goes ahead count when it is committed; that they were sent, at once.
        applied.add(std::mem::take(&mut self.ahead));
        if batch.is_ahead() {
            self.ahead = applied;
            return;
        }
        for (kind, count) in
            ConflictKind::ALL.into_iter().zip(applied.conflicts).filter(|(_, count)| *count > 0)
        {
            metrics.conflicts(kind.as_str(), count);
        }
        if let Some(now) = progress.source_now() {
            for segment in batch.segments.iter().filter(|segment| segment.end.is_some()) {
                metrics.commit_latency(now.seconds_since(segment.commit_time));
            }
        }
        status.update_database(dbname, |database| {
            database.transactions_applied += applied.transactions;
            let [inserts, updates, deletes, truncates] = applied.changes;
            database.changes_applied.inserts += inserts;
            database.changes_applied.updates += updates;
            database.changes_applied.deletes += deletes;
            database.changes_applied.truncates += truncates;
        });
    }

    /// The state's own, or before it when something is to be shown.
    fn next_deadline(&self) -> Instant {
        let of_state = self.state.next_deadline().map_or(self.began, |due| self.began + due);
        if self.shown == Some(self.to_show()) {
            return of_state;
        }
        of_state.min(self.shown_at + SHOW_INTERVAL)
    }

    fn to_show(&self) -> Shown {
        Shown {
            positions: self.state.positions(),
            last_change: self.state.last_change(),
            oldest_unapplied: self.state.oldest_unapplied(),
        }
    }

    /// Whoever waits for a position hears of it at once when nothing else is to be done, not when it is shown next.
    fn show_caught_up(&mut self) {
        let applied = self.state.positions().applied;
        let shown = self.shown.map_or(SourceLsn::ZERO, |shown| shown.positions.applied);
        if applied > shown && self.state.oldest_unapplied().is_none() {
            self.show();
        }
    }

    fn show(&mut self) {
        let shown = self.to_show();
        let Positions { received, applied, durable, confirmed } = shown.positions;
        (self.shown, self.shown_at) = (Some(shown), Instant::now());
        self.run.progress.update(|reached| {
            reached.positions = Some(shown.positions);
            reached.last_change = shown.last_change;
            reached.oldest_unapplied = shown.oldest_unapplied;
        });
        self.run.status.update_database(&self.run.dbname, |database| {
            database.received = Some(received);
            database.applied = Some(applied);
            database.durable = Some(durable);
            database.confirmed = Some(confirmed).filter(|confirmed| *confirmed > SourceLsn::ZERO);
            database.spill_bytes = self.run.spill.as_ref().map_or(0, SpillDir::used);
        });
    }
}

fn event(incoming: Incoming) -> Result<Event, Ended> {
    match incoming {
        Incoming::Segment(segment, held) => Ok(Event::Received(segment, held)),
        Incoming::GaveUp => Ok(Event::GaveUp),
        Incoming::Keepalive { wal_end, reply_requested, in_transaction } => {
            Ok(Event::Keepalive { wal_end, reply_requested, in_transaction })
        }
        Incoming::Failed(failure) => Err(failure.into()),
        Incoming::SpillFailed(error) => Err(Ended::SpillFailed(error)),
    }
}
