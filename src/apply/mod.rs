//! The target session: batches in, commits out.
//!
//! An [`Applier`] owns one connection to the target. It plans each batch, runs its steps pipelined, moves
//! `walferry.progress` in the same transaction, looks at every step's row count, and only then commits. So whatever
//! happens at whatever moment, the row and the data agree, and a step that touched no row, or two, commits nothing.
//!
//! The connection also holds the advisory lock that keeps a second engine out. The lock belongs to the session that
//! writes, not to one beside it: when an engine dies, the lock lasts until the server has finished with what that
//! engine still had in the socket.
//!
//! Not here: what is received, when a batch is cut, when to reconnect.

mod conflict;
mod session;
pub mod store;
mod tables;

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::error::{Definite, Failure, Result, Side};
use crate::limits::{PIPELINE_EXECUTES_MAX, PREPARED_STATEMENTS_MAX};
use crate::pg::{EndLsn, PgTimestamp, Sql};
use crate::plan::{Batch, PlanError, Planner, Step, merge};
use crate::wire::{self, Pipeline, PipelineError};

pub use conflict::Conflict;
pub use session::TargetSession;
pub use tables::Tables;

/// Applies batches, one at a time.
#[derive(Debug)]
pub struct Applier {
    target: TargetSession,
    tables: Tables,
    planner: Planner,
    pipeline: Pipeline,
    steps: Vec<Step>,
    prepared: HashSet<u64>,
    /// The target transaction of a large source transaction is open.
    open: bool,
}

/// What a batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Source transactions that are now committed.
    pub transactions: u64,
    /// Changes by kind, in the order of [`crate::plan::Kind::ALL`].
    pub changes: [u64; 4],
    /// Why the batch was applied step by step, in the source's order; `None` where steps were merged.
    pub ordered: Option<&'static str>,
}

/// Why a batch was not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// As any failure.
    Failure(Failure),
    /// A change that does not fit the target's rows. Nothing of its transaction is committed.
    Conflict(Box<Conflict>),
}

impl From<Failure> for ApplyError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Definite> for ApplyError {
    fn from(definite: Definite) -> Self {
        Self::Failure(definite.into())
    }
}

impl Applier {
    /// Takes the session over, and learns all tables of the migration.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn new(target: TargetSession, tables: Tables) -> Result<Self> {
        let mut planner = Planner::new();
        for table in tables.all().await? {
            planner.learn(table);
        }
        let (pipeline, steps, prepared) = (Pipeline::new(), Vec::new(), HashSet::new());
        Ok(Self { target, tables, planner, pipeline, steps, prepared, open: false })
    }

    /// Gives the session back, its unfinished transaction rolled back.
    pub fn into_session(self) -> TargetSession {
        self.target
    }

    /// Applies `batch`; commits when it ends with a whole transaction.
    ///
    /// # Errors
    /// When anything fails; the session is of no use then, and its transaction is rolled back.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        self.plan(batch).await?;
        let mut applied = Applied::default();
        for step in &self.steps {
            applied.changes[step.kind as usize] += 1;
        }
        let steps = std::mem::take(&mut self.steps);
        applied.ordered = self.execute_merged(batch, steps).await?;
        applied.transactions = batch.segments.iter().filter(|segment| segment.end.is_some()).count() as u64;
        Ok(applied)
    }

    /// Fewer steps to the same end, if they get there: a unique value that is handed from row to row may be in the way
    /// when steps are left out. Then the batch is applied again in the source's order, step by step. Says why, where it
    /// is applied so.
    async fn execute_merged(
        &mut self,
        batch: &Batch,
        steps: Vec<Step>,
    ) -> Result<Option<&'static str>, ApplyError> {
        let segments = &batch.segments;
        let reason = if segments.iter().any(|segment| !segment.first || segment.end.is_none()) {
            // What came before in the same target transaction cannot be applied again.
            Some("segment")
        } else {
            segments.iter().any(|segment| self.planner.has_triggers(segment)).then_some("triggers")
        };
        if reason.is_some() {
            self.execute(batch, &steps).await?;
            return Ok(reason);
        }
        let single = steps.len() == 1;
        match self.execute(batch, &merge(steps)).await {
            Err(ApplyError::Conflict(_)) if !single => {
                let rollback = self.target.session().execute(&Sql::new("ROLLBACK; DEALLOCATE ALL")).await;
                rollback.map_err(target_failed)?;
                // What was parsed after the failure was not prepared.
                self.prepared.clear();
                self.open = false;
                self.plan(batch).await?;
                let steps = std::mem::take(&mut self.steps);
                self.execute(batch, &steps).await?;
                Ok(Some("failed"))
            }
            outcome => outcome.map(|()| None),
        }
    }

    /// Moves `walferry.progress` without a change: a keepalive said that nothing commits before `to`.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn store(&mut self, previous: EndLsn, to: EndLsn) -> Result<()> {
        assert!(!self.open && to >= previous, "progress goes forward, and not inside a transaction");
        self.pipeline.clear();
        self.push_progress(previous, to, None)?;
        self.pipeline.sync();
        let affected = self.run().await.map_err(|error| target_failed(error.error))?;
        self.progress_moved(affected.last().copied())
    }

    async fn plan(&mut self, batch: &Batch) -> Result<()> {
        self.steps.clear();
        for segment in &batch.segments {
            // A table that changed its shape on the source is looked up again: it may have changed here, too.
            for name in self.planner.unknown(segment) {
                self.planner.learn(self.tables.one(&name).await?);
            }
            self.planner.plan(segment, &mut self.steps).map_err(|error| not_planned(&error))?;
        }
        Ok(())
    }

    async fn execute(&mut self, batch: &Batch, steps: &[Step]) -> Result<(), ApplyError> {
        let mut chunks = steps.chunks(PIPELINE_EXECUTES_MAX).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let last = chunks.peek().is_none();
            self.pipeline.clear();
            let begins = usize::from(!self.open);
            if !self.open {
                self.push_fixed("BEGIN")?;
                self.open = true;
            }
            for step in chunk {
                self.push_step(step)?;
            }
            let end = batch.end().filter(|_| last);
            if let Some(end) = end {
                let commit_time = batch.segments.last().map(|segment| segment.commit_time);
                self.push_progress(batch.previous, end, commit_time)?;
            }
            self.pipeline.sync();
            let affected = match self.run().await {
                Ok(affected) => affected,
                Err(error) => {
                    let step = error.execute.and_then(|index| chunk.get(index.checked_sub(begins)?));
                    return Err(self.failed(step, error));
                }
            };
            for (step, rows) in chunk.iter().zip(affected.iter().skip(begins)) {
                if step.rows.is_some_and(|expected| expected != *rows) {
                    return Err(ApplyError::Conflict(Box::new(Conflict::row_count(step, *rows))));
                }
            }
            if end.is_some() {
                self.progress_moved(affected.last().copied())?;
                self.commit().await?;
            }
            if last {
                return Ok(());
            }
        }
    }

    async fn commit(&mut self) -> Result<()> {
        self.pipeline.clear();
        self.push_fixed("COMMIT")?;
        self.pipeline.sync();
        self.run().await.map_err(|error| target_failed(error.error))?;
        self.open = false;
        // Between transactions is the one moment at which nothing is lost by it.
        if self.prepared.len() > PREPARED_STATEMENTS_MAX {
            self.target.session().execute(&Sql::new("DEALLOCATE ALL")).await.map_err(target_failed)?;
            self.prepared.clear();
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<Vec<u64>, PipelineError> {
        self.target.session().run(&mut self.pipeline).await.map(|outcome| outcome.affected)
    }

    fn push_step(&mut self, step: &Step) -> Result<()> {
        let mut name = String::with_capacity(16);
        // Writing to a String cannot fail.
        let _ = write!(name, "s{}", step.statement.id);
        if self.prepared.insert(step.statement.id) {
            self.pipeline.parse(&name, &step.statement.sql).map_err(target_failed)?;
        }
        self.pipeline.execute(&name, step.params.iter().map(|value| value.as_deref())).map_err(target_failed)
    }

    fn push_fixed(&mut self, text: &'static str) -> Result<()> {
        self.pipeline.parse("", &Sql::new(text)).map_err(target_failed)?;
        self.pipeline.execute("", std::iter::empty()).map_err(target_failed)
    }

    fn push_progress(
        &mut self,
        previous: EndLsn,
        to: EndLsn,
        commit_time: Option<PgTimestamp>,
    ) -> Result<()> {
        let update = Sql::new(
            "UPDATE walferry.progress SET end_lsn = $3, updated_at = clock_timestamp(), \
             commit_time = coalesce(to_timestamp($4::float8), commit_time) WHERE migration = $1 AND end_lsn = $2",
        );
        self.pipeline.parse("", &update).map_err(target_failed)?;
        let (previous, to) = (previous.to_string(), to.to_string());
        let seconds = commit_time.map(|time| format!("{:.6}", time.unix_micros() as f64 / 1e6));
        let name = self.target.migration().as_bytes();
        let params = [
            Some(name),
            Some(previous.as_bytes()),
            Some(to.as_bytes()),
            seconds.as_ref().map(String::as_bytes),
        ];
        self.pipeline.execute("", params).map_err(target_failed)
    }

    fn progress_moved(&self, affected: Option<u64>) -> Result<()> {
        if affected == Some(1) {
            return Ok(());
        }
        Err(Definite::new("another engine moved the migration's position")
            .detail(format!(
                "walferry.progress of migration {:?} is not where this engine left it",
                self.target.migration()
            ))
            .hint("make sure that one engine runs, then run `walferry migrate` again")
            .into())
    }

    fn failed(&self, step: Option<&Step>, error: PipelineError) -> ApplyError {
        match (step, error.error.server()) {
            (Some(step), Some(server)) if !error.error.is_transient() => {
                ApplyError::Conflict(Box::new(Conflict::refused(step, server)))
            }
            _ => ApplyError::Failure(target_failed(error.error)),
        }
    }
}

fn target_failed(error: wire::Error) -> Failure {
    error.into_failure(Side::Target)
}

/// The failure that a change without a right statement is.
fn not_planned(error: &PlanError) -> Failure {
    let definite = Definite::new(error.to_string());
    let (detail, hint) = match error {
        PlanError::Shape(_) => (
            "the table's definition changed on the source; nothing was skipped",
            "make the same change on the target, then run `walferry migrate` again",
        ),
        PlanError::NoIdentity { .. } => (
            "nothing was skipped",
            "give the table a primary key or REPLICA IDENTITY FULL on the source, then start afresh after \
             `walferry remove --force`",
        ),
        PlanError::UnknownTable(_) | PlanError::MissingValue { .. } | PlanError::Binary(_) => {
            ("nothing was skipped", "this is a defect: report it with the table's definition on both sides")
        }
    };
    definite.detail(detail).hint(hint).into()
}
