//! The target session: batches in, commits out.
//!
//! An [`Applier`] owns one connection to the target. It plans each batch, sends its steps, moves `walferry.progress` in the
//! same transaction, and commits. So whatever happens at whatever moment, the row and the data agree.
//!
//! ```text
//!   send ──▶ plan ──▶ BEGIN, steps, progress, COMMIT, positions, Sync ──▶ (several under way) ──▶ replied ──▶ complete
//!              └────▶ steps that are to be looked at: sent alone, committed when their row counts are right ──▶ complete
//! ```
//!
//! The next batch is planned and sent while the one before it is executed. That is safe, since each statement fails if it
//! does not touch the rows that it should: then the server skips to the end of the batch, and the next one finds a failed
//! transaction and does nothing. Both are then sent anew, the one that failed in the source's order, step by step.
//! A part of a large transaction is in a savepoint for that; parts that turn out to come too early are undone together
//! ([`Applier::send_abandon`]). Where a change does not fit then either, the batch is applied
//! a third time, and the policy decides about each such change (`resolve`).
//!
//! Commits do not wait for the disk (`synchronous_commit = off`). With each comes how far the target's WAL was written
//! then, and how far it is flushed: whoever drives this takes a position as durable when it is.
//!
//! The connection also holds the advisory lock that keeps a second engine out. The lock belongs to the session that
//! writes, not to one beside it: when an engine dies, the lock lasts until the server has finished with what that
//! engine still had in the socket.
//!
//! Not here: what is received, when a batch is cut, when to reconnect.

mod conflict;
mod ddl;
mod failure;
mod planning;
mod resolve;
mod session;
mod tables;
mod unit;
mod writer;

use std::collections::{HashMap, HashSet, VecDeque};

use crate::config::OnConflict;
use crate::error::Result;
use crate::limits::PIPELINE_EXECUTES_MAX;
use crate::pg::{EndLsn, QualifiedName, RelationId, Sql, TargetLsn};
use crate::plan::{Batch, Form, Plan, Planner, Reason, Step, TargetTable};
use crate::wire::{Outcome, Pipeline, PipelineError};

use failure::target_failed;
use planning::Planned;
use unit::Own;

pub use conflict::{Conflict, ConflictKind};
pub use failure::ApplyError;
pub use session::{TargetSession, become_replica, by_aiven_extras};
pub use tables::Tables;
pub use writer::{Writer, random_secret};

/// Applies batches, in their order.
#[derive(Debug)]
pub struct Applier {
    target: TargetSession,
    tables: Tables,
    planner: Planner,
    pipeline: Pipeline,
    prepared: HashSet<u64>,
    own: Own,
    options: ApplyOptions,
    /// The target transaction of a large source transaction is open, once all that was sent is executed.
    open: bool,
    /// Tables altered in the open transaction: no other session sees them so.
    altered: HashMap<RelationId, TargetTable>,
    /// Columns that the log has named as the target's alone.
    told: HashSet<(QualifiedName, String)>,
    /// Tables that the log has named as those whose inserts may be left out.
    left_out: HashSet<RelationId>,
    /// Tables whose updates and deletes are not sent.
    inserts_only: HashSet<RelationId>,
    /// What was sent and is not answered, oldest first.
    sent: VecDeque<Sent>,
    reply: Option<Result<Outcome, PipelineError>>,
    /// What was done before all that is in `sent`.
    done: VecDeque<Done>,
    /// Batches that were planned again after others were planned behind them.
    replanned: u64,
}

/// How to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplyOptions {
    /// Columns that the source added are added here, too, where that is safe.
    pub follow_ddl: bool,
    /// What is tried first.
    pub form: Form,
    /// What to do with a change that does not fit the target's rows.
    pub on_conflict: OnConflict,
    /// Tables without replica identity are copied again at cutover, whatever becomes of their inserts.
    pub keyless_copied_again: bool,
}

/// What a batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Source transactions that are now committed.
    pub transactions: u64,
    /// Changes by kind, in the order of [`crate::plan::Kind::ALL`].
    pub changes: [u64; 4],
    /// Why the batch, or a part of it, went row by row in the source's order.
    pub ordered: Option<Reason>,
    /// Changes that did not fit, and were seen to by the policy, by kind, in the order of [`ConflictKind::ALL`].
    pub conflicts: [u64; 5],
}

/// Where the target's WAL was, just after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Written {
    /// The end of what was written; the commit is before it.
    pub end: TargetLsn,
    /// The end of what is on the disk.
    pub flushed: TargetLsn,
}

/// Something that was sent, and is done.
#[derive(Debug)]
pub enum Done {
    /// A batch is applied; it is committed if it ended with a whole transaction.
    Applied {
        /// The batch.
        batch: Batch,
        /// What it did.
        applied: Applied,
        /// Where its commit is, if it was committed.
        written: Option<Written>,
    },
    /// A position is in `walferry.progress`.
    Stored(Written),
    /// What was open is undone.
    Abandoned,
    /// What was committed before is on the disk.
    Flushed(Written),
}

/// What was sent and is not answered.
#[derive(Debug)]
struct Sent {
    work: Work,
    applied: Applied,
    /// Executes before the first step.
    before: usize,
    /// The table of each step.
    tables: Vec<RelationId>,
}

#[derive(Debug)]
enum Work {
    Batch(Batch),
    Store { previous: EndLsn, to: EndLsn },
    Abandon,
    Flush,
}

/// Why steps were not executed to their end.
enum Stopped {
    /// The step of this table does not fit the target's rows.
    Step(RelationId),
    Other(ApplyError),
}

impl<E: Into<ApplyError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

impl Applier {
    /// Takes the session over.
    pub fn new(target: TargetSession, tables: Tables, options: ApplyOptions) -> Self {
        Self {
            planner: Planner::new().keeping_sequences(target.key().is_some()),
            target,
            tables,
            pipeline: Pipeline::new(),
            prepared: HashSet::new(),
            own: Own::new(),
            options,
            open: false,
            altered: HashMap::new(),
            told: HashSet::new(),
            left_out: HashSet::new(),
            inserts_only: HashSet::new(),
            sent: VecDeque::new(),
            reply: None,
            done: VecDeque::new(),
            replanned: 0,
        }
    }

    /// Names the tables whose updates and deletes are not sent, whatever is announced of them.
    #[must_use]
    pub fn with_inserts_only(self, inserts_only: HashSet<RelationId>) -> Self {
        Self { inserts_only, ..self }
    }

    /// Gives the session back as it came: an unfinished transaction is rolled back, what was prepared is forgotten.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn into_session(mut self) -> Result<TargetSession> {
        assert!(self.sent.is_empty(), "what was sent is completed first");
        // Where nothing is open, the server warns, and goes on.
        self.clean(Sql::new("ROLLBACK; DEALLOCATE ALL")).await?;
        Ok(self.target)
    }

    /// How much was sent for which [`Applier::complete`] was not called.
    pub fn under_way(&self) -> usize {
        self.sent.len() + self.done.len()
    }

    /// Applies one batch: [`Applier::send`], and the wait for it.
    ///
    /// # Errors
    /// As [`Applier::send`] and [`Applier::complete`].
    pub async fn apply(&mut self, batch: Batch) -> Result<Applied, ApplyError> {
        self.send(batch).await?;
        let mut last = Applied::default();
        while self.under_way() > 0 {
            self.replied().await;
            if let Done::Applied { applied, .. } = self.complete().await? {
                last = applied;
            }
        }
        Ok(last)
    }

    /// Plans `batch` and sends it, to be committed if it ends with a whole transaction. What needs a look before the
    /// commit is waited for.
    ///
    /// Where a transaction has a change that needs another definition of its table, those before it are committed.
    ///
    /// # Errors
    /// When anything fails; what was sent before is still to be completed, then the session is of no use.
    ///
    /// # Panics
    /// When a transaction begins inside another, or one goes on that is not open.
    pub async fn send(&mut self, mut batch: Batch) -> Result<(), ApplyError> {
        let begins = batch.segments.first().is_none_or(|segment| segment.first);
        assert!(begins != self.open, "a transaction begins where none is open, and goes on where it is");
        let mut planned = self.plan(&batch.segments, self.options.form).await?;
        let stopped = planned.stopped.take();
        let looked_at = planned.plan.steps.iter().any(|step| step.rows.is_some()) || !self.altered.is_empty();
        if stopped.is_none() && !looked_at {
            return Ok(self.queue(batch, planned.plan)?);
        }
        // What is still under way knows nothing of what this one is to alter.
        let altered = std::mem::replace(&mut self.altered, planned.altered_before.clone());
        let replanned = self.replanned;
        self.finish_sent().await?;
        if self.replanned != replanned {
            // The planner was at an earlier batch since.
            let before = std::mem::replace(&mut self.altered, altered);
            self.undo(before);
            return Box::pin(self.send(batch)).await;
        }
        self.altered = altered;
        batch.segments.truncate(planned.segments);
        let done = if batch.segments.is_empty() { None } else { Some(self.execute(batch, planned).await?) };
        match stopped {
            // Whoever asked for the whole batch would take it for done.
            Some(stopped) => return Err(stopped.into()),
            None => self.done.extend(done),
        }
        Ok(())
    }

    /// Moves `walferry.progress` without a change: a keepalive said that nothing commits before `to`.
    ///
    /// # Errors
    /// When the session is lost.
    pub fn send_store(&mut self, previous: EndLsn, to: EndLsn) -> Result<()> {
        assert!(!self.open && to >= previous, "progress goes forward, and not inside a transaction");
        self.pipeline.clear();
        self.push_store(previous, to)?;
        self.queue_unit(Sent::of(Work::Store { previous, to }))
    }

    /// Undoes the parts of a large transaction that were sent: the rest will not come.
    ///
    /// # Errors
    /// When the session is lost.
    pub fn send_abandon(&mut self) -> Result<()> {
        assert!(self.open, "only what is open can be undone");
        self.pipeline.clear();
        self.push_rollback()?;
        self.undo(HashMap::new());
        self.queue_unit(Sent::of(Work::Abandon))
    }

    /// Has all that was committed written to the disk.
    ///
    /// # Errors
    /// When the session is lost.
    pub fn send_flush(&mut self) -> Result<()> {
        assert!(!self.open, "a flush is a transaction of its own");
        self.pipeline.clear();
        self.push_flush()?;
        self.queue_unit(Sent::of(Work::Flush))
    }

    /// Has all that was committed before, by whomever, written to the disk, and waits for that.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn flush(&mut self) -> Result<(), ApplyError> {
        self.send_flush()?;
        self.complete().await.map(|_| ())
    }

    /// Waits until the oldest of what was sent is answered. Giving up the wait loses nothing.
    pub async fn replied(&mut self) {
        if self.done.is_empty() && self.reply.is_none() {
            self.reply = Some(self.target.session().receive().await);
        }
    }

    /// What the oldest of what was sent did. A batch that failed in set form is applied again, in the source's order;
    /// not to be given up.
    ///
    /// # Errors
    /// When anything fails; the session is of no use then, and its transaction is rolled back.
    pub async fn complete(&mut self) -> Result<Done, ApplyError> {
        if let Some(done) = self.done.pop_front() {
            return Ok(done);
        }
        let reply = match self.reply.take() {
            Some(reply) => reply,
            None => self.target.session().receive().await,
        };
        let sent = self.sent.pop_front().expect("whoever waits has sent something");
        match reply {
            Ok(outcome) => sent.done(&outcome),
            Err(error) => self.failed(sent, error).await,
        }
    }

    fn queue(&mut self, batch: Batch, plan: Plan) -> Result<()> {
        let applied = Applied::of(&batch, &plan);
        let tables = plan.steps.iter().map(|step| step.relation.id).collect();
        self.pipeline.clear();
        let before = self.push_begin(&batch)?;
        for step in &plan.steps {
            self.push_step(step)?;
        }
        self.push_end(&batch)?;
        self.push_commit(&batch)?;
        self.queue_unit(Sent { work: Work::Batch(batch), applied, before, tables })
    }

    fn queue_unit(&mut self, sent: Sent) -> Result<()> {
        self.pipeline.sync();
        self.target.session().send(&mut self.pipeline).map_err(target_failed)?;
        self.sent.push_back(sent);
        Ok(())
    }

    /// Waits for all that was sent.
    async fn finish_sent(&mut self) -> Result<(), ApplyError> {
        let mut done = std::mem::take(&mut self.done);
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.sent.is_empty() {
            outcome = self.complete().await.map(|next| done.push_back(next));
        }
        if outcome.is_err() {
            self.sent.clear();
        }
        done.append(&mut self.done);
        self.done = done;
        outcome
    }

    /// What was sent failed. Whatever was sent after it did nothing.
    async fn failed(&mut self, sent: Sent, error: PipelineError) -> Result<Done, ApplyError> {
        let place = error.execute.and_then(|execute| execute.checked_sub(sent.before));
        let table = place.and_then(|place| sent.tables.get(place)).copied();
        let table = table.filter(|_| error.error.server().is_some_and(|server| !server.is_of_the_server()));
        let (Some(table), Work::Batch(batch)) = (table, sent.work) else {
            return Err(self.failed_around_steps(error.error).into());
        };
        tracing::debug!(table = table.get(), error = %error.error, "set form failed");
        self.planner.failed(table);
        let behind = self.drain().await?;
        self.roll_back(&batch).await?;
        let done = self.ordered(batch).await?;
        for sent in behind {
            match sent.work {
                Work::Batch(batch) => Box::pin(self.send(batch)).await?,
                Work::Store { previous, to } => self.send_store(previous, to)?,
                Work::Abandon => self.send_abandon()?,
                Work::Flush => self.send_flush()?,
            }
        }
        Ok(done)
    }

    /// Waits for the answers to what was sent, of which nothing was done.
    async fn drain(&mut self) -> Result<VecDeque<Sent>> {
        for _ in 0..self.sent.len() {
            match self.target.session().receive().await {
                Ok(_) => unreachable!("what was sent after a failure fails at its first statement"),
                Err(error) if error.error.server().is_none() => return Err(target_failed(error.error)),
                Err(_) => {}
            }
        }
        Ok(std::mem::take(&mut self.sent))
    }

    /// Applies a batch whose row counts are looked at; in the source's order if set form fails.
    async fn execute(&mut self, batch: Batch, planned: Planned) -> Result<Done, ApplyError> {
        let Planned { plan, form, altered_before, .. } = planned;
        let applied = Applied::of(&batch, &plan);
        match self.execute_steps(&batch, &plan.steps).await {
            Ok(written) => Ok(Done::Applied { batch, applied, written }),
            Err(Stopped::Step(table)) => {
                self.roll_back(&batch).await?;
                self.undo(altered_before);
                if form == Form::Set {
                    self.planner.failed(table);
                    self.ordered(batch).await
                } else {
                    self.resolve(batch).await
                }
            }
            Err(Stopped::Other(error)) => Err(error),
        }
    }

    async fn ordered(&mut self, batch: Batch) -> Result<Done, ApplyError> {
        self.replanned += 1;
        let planned = self.plan(&batch.segments, Form::Ordered).await?;
        if let Some(stopped) = planned.stopped {
            return Err(stopped.into());
        }
        let applied = Applied { ordered: Some(Reason::Failed), ..Applied::of(&batch, &planned.plan) };
        match self.execute_steps(&batch, &planned.plan.steps).await {
            Ok(written) => Ok(Done::Applied { batch, applied, written }),
            Err(Stopped::Step(_)) => {
                self.roll_back(&batch).await?;
                self.undo(planned.altered_before);
                self.resolve(batch).await
            }
            Err(Stopped::Other(error)) => Err(error),
        }
    }

    /// Executes steps, some at a time, and looks at each one's row count; commits when all are right.
    async fn execute_steps(&mut self, batch: &Batch, steps: &[Step]) -> Result<Option<Written>, Stopped> {
        let mut chunks = steps.chunks(PIPELINE_EXECUTES_MAX).peekable();
        let mut begun = false;
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let last = chunks.peek().is_none();
            self.pipeline.clear();
            let skipped = if begun { 0 } else { self.push_begin(batch)? };
            begun = true;
            for step in chunk {
                self.push_step(step)?;
            }
            let outcome = match self.target.session().run(&mut self.pipeline).await {
                Ok(outcome) => outcome,
                Err(error) => return Err(self.stopped(chunk, skipped, error)),
            };
            for (step, rows) in chunk.iter().zip(outcome.affected.iter().skip(skipped)) {
                if step.rows.is_some_and(|expected| expected != *rows) {
                    return Err(Stopped::Step(step.relation.id));
                }
            }
            if last {
                break;
            }
        }
        self.finish(batch).await
    }

    /// Commits when all steps are done.
    async fn finish(&mut self, batch: &Batch) -> Result<Option<Written>, Stopped> {
        self.pipeline.clear();
        self.push_end(batch)?;
        self.push_commit(batch)?;
        let outcome = match self.target.session().run(&mut self.pipeline).await {
            Ok(outcome) => outcome,
            Err(error) => return Err(self.stopped(&[], 0, error)),
        };
        if batch.end().is_none() {
            return Ok(None);
        }
        // Whatever else is to be known of new columns is in the catalog now.
        self.undo(HashMap::new());
        Ok(Some(Written::of(&outcome)?))
    }

    /// Undoes a batch that was not committed, and forgets what was prepared: what was parsed after a failure was not.
    async fn roll_back(&mut self, batch: &Batch) -> Result<()> {
        let partial = batch.is_partial();
        self.clean(if partial {
            Sql::new("ROLLBACK TO SAVEPOINT walferry; RELEASE SAVEPOINT walferry; DEALLOCATE ALL")
        } else {
            Sql::new("ROLLBACK; DEALLOCATE ALL")
        })
        .await?;
        self.open = partial;
        Ok(())
    }

    async fn clean(&mut self, sql: Sql) -> Result<()> {
        self.prepared.clear();
        self.target.session().execute(&sql).await.map_err(target_failed)
    }
}

impl Sent {
    fn of(work: Work) -> Self {
        let applied = Applied::default();
        Self { work, applied, before: 0, tables: Vec::new() }
    }

    fn done(self, outcome: &Outcome) -> Result<Done, ApplyError> {
        Ok(match self.work {
            Work::Batch(batch) => {
                let written = batch.end().map(|_| Written::of(outcome)).transpose()?;
                Done::Applied { batch, applied: self.applied, written }
            }
            Work::Store { .. } => Done::Stored(Written::of(outcome)?),
            Work::Abandon => Done::Abandoned,
            Work::Flush => Done::Flushed(Written::of(outcome)?),
        })
    }
}

impl Applied {
    fn of(batch: &Batch, plan: &Plan) -> Self {
        let transactions = batch.segments.iter().filter(|segment| segment.end.is_some()).count() as u64;
        Self { transactions, changes: plan.changes, ordered: plan.ordered, ..Self::default() }
    }

    /// Adds what another part of the same transaction did.
    pub fn add(&mut self, other: Self) {
        self.transactions += other.transactions;
        self.changes.iter_mut().zip(other.changes).for_each(|(sum, count)| *sum += count);
        self.ordered = self.ordered.or(other.ordered);
        self.conflicts.iter_mut().zip(other.conflicts).for_each(|(sum, count)| *sum += count);
    }
}
