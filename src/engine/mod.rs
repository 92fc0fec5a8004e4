//! One pipeline: what happens becomes an event, an event becomes effects, and this shell carries them out.
//!
//! ```text
//!   source ──▶ reader task ──▶ select() ──▶ State::on(event) ──▶ effects ──▶ apply task ──▶ target
//!              decode,           ▲  ▲                              │
//!              assemble     tick ┘  └ done ◀───────────────────────┤
//!   source ◀── status update ◀─────────────────────────────────────┘
//! ```
//!
//! One task owns the [`State`]; nothing is locked. A failure of either side ends the run: the next one reads the
//! stored position and goes on from there, so there is one way to start and it is tried out all the time.
//!
//! Not here: when to run again, and what a migration is.

mod monitor;
mod reader;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::apply::{Applied, Applier, ApplyError};
use crate::assemble::Assembler;
use crate::error::{Result, Side};
use crate::limits::{PING_AFTER, QUEUE_COST_MAX, READER_QUEUE_MAX, TICK};
use crate::pg::{EndLsn, PgTimestamp, SourceLsn};
use crate::plan::Batch;
use crate::proto::StandbyStatusUpdate;
use crate::spill::{SpillDir, SpillError};
use crate::status::{Metrics, StatusHandle};
use crate::wire::{CopyBothReader, CopyBothWriter};

pub use monitor::{Clocks, Monitor, MonitorInput};
pub use state::Finish;

use reader::Incoming;
use state::{Effect, Event, Positions, State};

/// What a run needs besides its connections.
#[derive(Debug, Clone)]
pub struct Run {
    /// The database, by its name on the source.
    pub dbname: String,
    /// The position stored on the target.
    pub stored: EndLsn,
    /// How long a durable position waits before it is confirmed.
    pub confirm_delay: Duration,
    /// Finish as soon as everything that commits before this position is durable.
    pub run_to: Option<SourceLsn>,
    /// Where transactions in progress are kept, if the stream has them.
    pub spill: Option<SpillDir>,
    /// Where the positions are shown.
    pub status: StatusHandle,
    /// Where things are counted.
    pub metrics: Metrics,
    /// What the monitor and the run tell each other.
    pub clocks: Clocks,
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
}

impl<E: Into<ApplyError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Streams, applies and confirms until told to stop, or until `run_to` is reached.
pub async fn run(
    run: Run,
    applier: Applier,
    stream: (CopyBothReader, CopyBothWriter),
    stop: watch::Receiver<bool>,
) -> Ended {
    let (reader, writer) = stream;
    let (sender, incoming) = mpsc::channel(READER_QUEUE_MAX);
    let memory = Arc::new(Semaphore::new(QUEUE_COST_MAX));
    let mut readers = JoinSet::new();
    let assembler = Assembler::resuming(run.stored);
    let assembler = match &run.spill {
        Some(spill) => assembler.streaming(spill.clone()),
        None => assembler,
    };
    readers.spawn(reader::read(reader, assembler, Arc::clone(&memory), sender, run.metrics.clone()));
    let shell = Shell {
        state: State::new(run.stored, run.confirm_delay, run.run_to),
        began: Instant::now(),
        heard: Instant::now(),
        applier: Some(Box::new(applier)),
        work: JoinSet::new(),
        writer,
        memory,
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
    /// Here while no work is under way.
    applier: Option<Box<Applier>>,
    work: JoinSet<(Box<Applier>, Work)>,
    writer: CopyBothWriter,
    memory: Arc<Semaphore>,
}

/// What the apply task did.
enum Work {
    Applied { batch: Batch, outcome: Result<Applied, ApplyError>, took: Duration },
    Stored(Result<()>),
}

impl Shell {
    async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>, mut stop: watch::Receiver<bool>) -> Ended {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            // Whatever flows in, stopping, finished work and the clock come first.
            let event = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    Ok(Event::Stop)
                }
                Some(done) = self.work.join_next(), if !self.work.is_empty() => self.done(done),
                _ = tick.tick() => Ok(Event::Tick),
                received = incoming.recv() => self.received(received),
            };
            let event = match event {
                Ok(event) => event,
                Err(ended) => return ended,
            };
            let ticked = matches!(event, Event::Tick);
            for effect in self.state.on(event, self.began.elapsed()) {
                match self.carry_out(effect).await {
                    Ok(None) => {}
                    Ok(Some((finish, applier))) => {
                        self.show();
                        return Ended::Finished(finish, applier);
                    }
                    Err(failure) => return failure.into(),
                }
            }
            if ticked {
                self.show();
            }
        }
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<Option<(Finish, Box<Applier>)>> {
        match effect {
            Effect::Apply(batch) => {
                let mut applier = self.applier.take().expect("one batch at a time");
                self.work.spawn(async move {
                    let began = Instant::now();
                    let outcome = applier.apply(&batch).await;
                    (applier, Work::Applied { batch, outcome, took: began.elapsed() })
                });
            }
            Effect::Store(to) => {
                let mut applier = self.applier.take().expect("one batch at a time");
                let previous = EndLsn::new(self.state.positions().durable.get());
                self.work.spawn(async move {
                    let stored = applier.store(previous, to).await;
                    (applier, Work::Stored(stored))
                });
            }
            Effect::Report(positions) => self.report(positions).await?,
            Effect::Release(cost) => self.memory.add_permits(cost),
            Effect::Finish(finish) => return Ok(self.applier.take().map(|applier| (finish, applier))),
        }
        Ok(None)
    }

    fn done(&mut self, done: Result<(Box<Applier>, Work), tokio::task::JoinError>) -> Result<Event, Ended> {
        // The task is never cancelled while it is waited for: a panic there is a panic here.
        let (applier, work) = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        self.applier = Some(applier);
        match work {
            Work::Stored(stored) => Ok(stored.map(|()| Event::Stored)?),
            Work::Applied { batch, outcome, took } => {
                self.count(&batch, outcome?, took);
                Ok(Event::Applied)
            }
        }
    }

    fn received(&mut self, received: Option<Incoming>) -> Result<Event, Ended> {
        self.heard = Instant::now();
        match received {
            Some(Incoming::Segment(segment)) => Ok(Event::Received(segment)),
            Some(Incoming::Keepalive { wal_end, reply_requested, in_transaction }) => {
                Ok(Event::Keepalive { wal_end, reply_requested, in_transaction })
            }
            Some(Incoming::Failed(failure)) => Err(failure.into()),
            Some(Incoming::SpillFailed(error)) => Err(Ended::SpillFailed(error)),
            None => unreachable!("the reader says why it ends"),
        }
    }

    async fn report(&mut self, positions: Positions) -> Result<()> {
        let quiet = self.heard.elapsed();
        let update = StandbyStatusUpdate {
            written: positions.received,
            flushed: positions.confirmed,
            applied: positions.applied,
            sent_at: PgTimestamp::from_unix_micros(jiff::Timestamp::now().as_microsecond()),
            reply_requested: quiet >= PING_AFTER,
        };
        let mut message = BytesMut::new();
        update.encode(&mut message);
        self.writer.send(&message).await.map_err(|error| error.into_failure(Side::Source))
    }

    fn count(&self, batch: &Batch, applied: Applied, took: Duration) {
        let Run { metrics, status, dbname, clocks, .. } = &self.run;
        metrics.batch(applied.changes.iter().sum(), took.as_secs_f64());
        if let Some(reason) = applied.ordered {
            metrics.ordered_batch(reason);
        }
        if let Some(now) = clocks.source_now() {
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

    fn show(&self) {
        let Positions { received, applied, durable, confirmed } = self.state.positions();
        self.run.clocks.set_oldest_unapplied(self.state.oldest_unapplied());
        self.run.status.update_database(&self.run.dbname, |database| {
            database.received = Some(received);
            database.applied = Some(applied);
            database.durable = Some(durable);
            database.confirmed = Some(confirmed).filter(|confirmed| *confirmed > SourceLsn::ZERO);
            database.spill_bytes = self.run.spill.as_ref().map_or(0, SpillDir::used);
        });
    }
}
