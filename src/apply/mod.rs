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
mod ddl;
mod session;
pub mod store;
mod tables;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::assemble::Segment;
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::{PIPELINE_EXECUTES_MAX, PREPARED_STATEMENTS_MAX};
use crate::pg::{EndLsn, PgTimestamp, QualifiedName, Relation, RelationId, Sql};
use crate::plan::{Batch, Kind, PlanError, Planner, Step, TargetTable, merge};
use crate::wire::{self, Pipeline, PipelineError, ServerError};

use ddl::{Misfit, Remedy};

pub use conflict::Conflict;
pub use session::{TargetSession, become_replica};
pub use tables::Tables;

/// Applies batches, one at a time.
#[derive(Debug)]
pub struct Applier {
    target: TargetSession,
    tables: Tables,
    planner: Planner,
    pipeline: Pipeline,
    prepared: HashSet<u64>,
    /// The target transaction of a large source transaction is open.
    open: bool,
    /// Columns that the source added are added here, too, where that is safe.
    follow_ddl: bool,
    /// Tables altered in the open transaction: no other session sees them so.
    altered: HashMap<RelationId, TargetTable>,
    /// Columns that the log has named as the target's alone.
    told: HashSet<(QualifiedName, String)>,
}

/// What of a batch is planned.
#[derive(Debug, Default)]
struct Planned {
    steps: Vec<Step>,
    /// Segments, from the first on.
    segments: usize,
    /// Why not all of them.
    stopped: Option<Failure>,
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
    /// Takes the session over; `follow_ddl` allows it to add columns to the target's tables.
    pub fn new(target: TargetSession, tables: Tables, follow_ddl: bool) -> Self {
        let (planner, pipeline, prepared) = (Planner::new(), Pipeline::new(), HashSet::new());
        let (altered, told) = (HashMap::new(), HashSet::new());
        Self { target, tables, planner, pipeline, prepared, open: false, follow_ddl, altered, told }
    }

    /// Gives the session back as it came: an unfinished transaction is rolled back, what was prepared is forgotten.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn into_session(mut self) -> Result<TargetSession> {
        self.clean().await?;
        Ok(self.target)
    }

    /// Applies `batch`; commits when it ends with a whole transaction.
    ///
    /// Where a transaction has a change that needs another definition of its table, those before it are committed.
    ///
    /// # Errors
    /// When anything fails; the session is of no use then, and its transaction is rolled back.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let planned = self.plan(&batch.segments).await?;
        let mut applied = Applied::default();
        for step in &planned.steps {
            if let Some(count) = applied.changes.get_mut(step.kind as usize) {
                *count += 1;
            }
        }
        let segments = &batch.segments[..planned.segments];
        if let Some(stopped) = planned.stopped {
            if !segments.is_empty() {
                self.execute_merged(batch.previous, segments, planned.steps).await?;
            }
            return Err(stopped.into());
        }
        applied.ordered = self.execute_merged(batch.previous, segments, planned.steps).await?;
        applied.transactions = segments.iter().filter(|segment| segment.end.is_some()).count() as u64;
        Ok(applied)
    }

    /// Fewer steps to the same end, if they get there: a unique value that is handed from row to row may be in the way
    /// when steps are left out. Then the segments are applied again in the source's order, step by step. Says why, where
    /// they are applied so.
    async fn execute_merged(
        &mut self,
        previous: EndLsn,
        segments: &[Segment],
        steps: Vec<Step>,
    ) -> Result<Option<&'static str>, ApplyError> {
        let reason = if segments.iter().any(|segment| !segment.first || segment.end.is_none()) {
            // What came before in the same target transaction cannot be applied again.
            Some("segment")
        } else {
            segments.iter().any(|segment| self.planner.has_triggers(segment)).then_some("triggers")
        };
        if reason.is_some() {
            self.execute(previous, segments, &steps).await?;
            return Ok(reason);
        }
        let single = steps.len() == 1;
        match self.execute(previous, segments, &merge(steps)).await {
            Err(ApplyError::Conflict(_)) if !single => {
                self.clean().await?;
                for (id, _) in self.altered.drain() {
                    self.planner.forget(id);
                }
                let planned = self.plan(segments).await?;
                if let Some(stopped) = planned.stopped {
                    return Err(stopped.into());
                }
                self.execute(previous, segments, &planned.steps).await?;
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

    /// Plans whole segments, up to one that cannot be applied.
    async fn plan(&mut self, segments: &[Segment]) -> Result<Planned> {
        let mut planned = Planned::default();
        for segment in segments {
            let before = planned.steps.len();
            match self.plan_segment(segment, &mut planned.steps).await {
                Ok(()) => planned.segments += 1,
                Err(Failure::Definite(definite)) => {
                    planned.steps.truncate(before);
                    planned.stopped = Some(definite.into());
                    break;
                }
                Err(transient) => return Err(transient),
            }
        }
        Ok(planned)
    }

    async fn plan_segment(&mut self, segment: &Segment, steps: &mut Vec<Step>) -> Result<()> {
        // A table that changed its shape on the source is looked up again: it may have changed here, too.
        let unknown = self.planner.unknown(segment);
        if !unknown.is_empty() {
            self.tables.wait_until_visible(segment.xid).await?;
        }
        for relation in unknown {
            let table = match self.altered.get(&relation.id) {
                Some(table) => table.clone(),
                None => self.tables.of(&relation, segment.commit_lsn).await?,
            };
            self.tell_of_columns(&relation, &table);
            self.planner.learn(relation.id, table);
            for (oid, name) in self.tables.types(&relation).await? {
                self.planner.learn_type(oid, name);
            }
        }
        let mut next = 0;
        while let Err(error) = self.planner.plan_from(segment, &mut next, steps) {
            let PlanError::Shape { relation, error: shape } = &error else { return Err(not_planned(&error)) };
            let Some(table) = self.planner.table(relation.id) else { return Err(not_planned(&error)) };
            let misfit = Misfit {
                error: shape,
                relation,
                table,
                changed_before: self.planner.changed_before(segment, next, relation.id),
            };
            match ddl::remedy(&self.tables, self.planner.types(), &misfit, self.follow_ddl).await? {
                Remedy::Stop(failure) => return Err(failure),
                Remedy::Accept(table) => self.planner.learn(relation.id, table),
                Remedy::Alter(statements, table) => {
                    let alter = |sql| Step::alter(sql, relation, segment.commit_lsn);
                    steps.extend(statements.into_iter().map(alter));
                    self.altered.insert(relation.id, table.clone());
                    self.planner.learn(relation.id, table);
                }
            }
        }
        Ok(())
    }

    /// Columns that only the target has are left alone; once, the log says so.
    fn tell_of_columns(&mut self, relation: &Relation, table: &TargetTable) {
        let sent = |name: &str| relation.columns.iter().any(|column| column.name == name);
        for column in table.columns.iter().filter(|c| !c.generated && !c.required && !sent(&c.name)) {
            if self.told.insert((table.name.clone(), column.name.clone())) {
                tracing::info!(
                    table = %table.name,
                    column = column.name,
                    "not on the source, or not any more: left as it is on the target"
                );
            }
        }
    }

    async fn execute(
        &mut self,
        previous: EndLsn,
        segments: &[Segment],
        steps: &[Step],
    ) -> Result<(), ApplyError> {
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
            let end = segments.last().and_then(|segment| segment.end).filter(|_| last);
            if let Some(end) = end {
                let commit_time = segments.last().map(|segment| segment.commit_time);
                self.push_progress(previous, end, commit_time)?;
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

    /// Rolls back, and forgets what was prepared: what was parsed after a failure was not.
    async fn clean(&mut self) -> Result<()> {
        // Where nothing is open, the server warns, and goes on.
        let clean = Sql::new("ROLLBACK; DEALLOCATE ALL");
        self.target.session().execute(&clean).await.map_err(target_failed)?;
        self.prepared.clear();
        self.open = false;
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        self.pipeline.clear();
        self.push_fixed("COMMIT")?;
        self.pipeline.sync();
        self.run().await.map_err(|error| target_failed(error.error))?;
        self.open = false;
        self.altered.clear();
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
            (Some(step), Some(server)) if !error.error.is_transient() && step.kind == Kind::Alter => {
                ApplyError::Failure(not_altered(step, server))
            }
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

/// The failure of a column that the target does not add.
fn not_altered(step: &Step, error: &ServerError) -> Failure {
    Definite::new(format!("the target refuses a column that was added to table {}", step.relation.name))
        .detail(format!("{error}; nothing was skipped"))
        .hint(format!(
            "on the target make it possible, or run yourself: {}; then run `walferry migrate` again",
            step.statement.sql
        ))
        .into()
}

/// The failure that a change without a right statement is.
fn not_planned(error: &PlanError) -> Failure {
    let definite = Definite::new(error.to_string());
    let (detail, hint) = match error {
        PlanError::NoIdentity { .. } => (
            "nothing was skipped",
            "give the table a primary key or REPLICA IDENTITY FULL on the source, then start afresh after \
             `walferry remove --force`",
        ),
        PlanError::Shape { .. }
        | PlanError::UnknownTable(_)
        | PlanError::MissingValue { .. }
        | PlanError::Binary(_) => {
            ("nothing was skipped", "this is a defect: report it with the table's definition on both sides")
        }
    };
    definite.detail(detail).hint(hint).into()
}
