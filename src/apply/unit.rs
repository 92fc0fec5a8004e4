//! What one batch is on the wire, and the statements that go around its steps.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::assemble::Segment;
use crate::error::{Definite, Result};
use crate::limits::PREPARED_STATEMENTS_MAX;
use crate::pg::{EndLsn, Landmark, PgTimestamp, Sql, TargetLsn};
use crate::plan::{Batch, Input, Kind, Statement, Step};
use crate::store::apply_role::MOVE_PROGRESS;
use crate::store::{move_progress, record_conflict};
use crate::wire::Outcome;

use super::conflict::{Conflict, Resolution};
use super::failure::target_failed;
use super::{Applier, Written};

/// The statements that are not about the user's tables.
#[derive(Debug)]
pub(super) struct Own {
    begin: Arc<Statement>,
    savepoint: Arc<Statement>,
    release: Arc<Statement>,
    /// Around steps of which one may not fit.
    attempt: Arc<Statement>,
    keep: Arc<Statement>,
    record: Arc<Statement>,
    progress: Arc<Statement>,
    /// The same for who has no rights there.
    progress_by_role: Arc<Statement>,
    commit: Arc<Statement>,
    rollback: Arc<Statement>,
    written: Arc<Statement>,
    wait_for_disk: Arc<Statement>,
    emit: Arc<Statement>,
    forget: Arc<Statement>,
}

impl Own {
    pub(super) fn new() -> Self {
        let statement = |text| Statement::new(Sql::new(text));
        Self {
            begin: statement("BEGIN"),
            savepoint: statement("SAVEPOINT walferry"),
            release: statement("RELEASE SAVEPOINT walferry"),
            attempt: statement("SAVEPOINT walferry_attempt"),
            keep: statement("RELEASE SAVEPOINT walferry_attempt"),
            record: Statement::new(record_conflict()),
            progress_by_role: statement(MOVE_PROGRESS),
            progress: Statement::new(move_progress()),
            commit: statement("COMMIT"),
            rollback: statement("ROLLBACK"),
            written: statement(
                "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn()",
            ),
            // Not `on`, which waits for a synchronous standby.
            wait_for_disk: statement("SET LOCAL synchronous_commit = local"),
            // An empty transaction flushes nothing.
            emit: statement("SELECT pg_logical_emit_message(true, 'walferry', '')"),
            forget: statement("DEALLOCATE ALL"),
        }
    }
}

impl Batch {
    /// Whether it is a part of a transaction that is larger than one batch.
    pub(super) fn is_partial(&self) -> bool {
        self.segments.iter().any(Segment::is_part)
    }
}

impl Applier {
    /// What comes before the steps; gives the number of executes.
    pub(super) fn push_begin(&mut self, batch: &Batch) -> Result<usize> {
        let mut before = 0;
        if !self.open {
            if self.prepared.len() > PREPARED_STATEMENTS_MAX {
                let forget = Arc::clone(&self.own.forget);
                self.push_own(&forget)?;
                self.prepared.clear();
                before += 1;
            }
            let begin = Arc::clone(&self.own.begin);
            self.push_own(&begin)?;
            before += 1;
        }
        if batch.is_partial() {
            let savepoint = Arc::clone(&self.own.savepoint);
            self.push_own(&savepoint)?;
            before += 1;
        }
        self.open = true;
        Ok(before)
    }

    /// The beginning of steps of which one may not fit.
    pub(super) fn push_attempt(&mut self) -> Result<()> {
        let attempt = Arc::clone(&self.own.attempt);
        self.push_own(&attempt)
    }

    /// Their end, when all did.
    pub(super) fn push_keep(&mut self) -> Result<()> {
        let keep = Arc::clone(&self.own.keep);
        self.push_own(&keep)
    }

    pub(super) fn push_conflict(&mut self, conflict: &Conflict, resolution: Resolution) -> Result<()> {
        let record = Arc::clone(&self.own.record);
        let params = conflict.params(self.target.migration(), resolution);
        self.push_with(&record, &params)
    }

    /// A statement that is executed once, and not prepared for more.
    pub(super) fn push_once(&mut self, step: &Step) -> Result<()> {
        let Input::Params(params) = &step.input else { return self.push_step(step) };
        self.pipeline.parse("", &step.statement.sql).map_err(target_failed)?;
        let params = params.iter().map(|value| value.as_deref());
        self.pipeline.execute("", params).map_err(target_failed)
    }

    pub(super) fn push_step(&mut self, step: &Step) -> Result<()> {
        match &step.input {
            Input::Params(_) if matches!(step.kind, Kind::Truncate | Kind::Alter) => self.push_once(step),
            Input::Params(params) => {
                let name = self.prepare(&step.statement)?;
                let params = params.iter().map(|value| value.as_deref());
                self.pipeline.execute(&name, params).map_err(target_failed)
            }
            Input::Copy(rows) => self.pipeline.copy(&step.statement.sql, rows).map_err(target_failed),
        }
    }

    /// What comes after the steps, up to the commit.
    pub(super) fn push_end(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_partial() {
            let release = Arc::clone(&self.own.release);
            self.push_own(&release)?;
        }
        if let (Some(end), Some(last)) = (batch.end(), batch.segments.last()) {
            self.push_progress(batch.previous, end, Some(last.commit_time), batch.landmark())?;
        }
        Ok(())
    }

    /// The commit of a batch that ends with a whole transaction.
    pub(super) fn push_commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.end().is_none() {
            return Ok(());
        }
        self.open = false;
        let (commit, written) = (Arc::clone(&self.own.commit), Arc::clone(&self.own.written));
        self.push_own(&commit)?;
        self.push_own(&written)
    }

    /// The end of an open transaction. Behind a unit that failed this one, too, has to do nothing: ROLLBACK alone would be
    /// executed.
    pub(super) fn push_rollback(&mut self) -> Result<()> {
        self.open = false;
        let (savepoint, rollback) = (Arc::clone(&self.own.savepoint), Arc::clone(&self.own.rollback));
        self.push_own(&savepoint)?;
        self.push_own(&rollback)
    }

    pub(super) fn push_store(&mut self, previous: EndLsn, to: EndLsn) -> Result<()> {
        let Own { begin, commit, written, .. } = &self.own;
        let (begin, commit, written) = (Arc::clone(begin), Arc::clone(commit), Arc::clone(written));
        self.push_own(&begin)?;
        self.push_progress(previous, to, None, None)?;
        self.push_own(&commit)?;
        self.push_own(&written)
    }

    pub(super) fn push_flush(&mut self) -> Result<()> {
        let Own { begin, wait_for_disk, emit, commit, written, .. } = &self.own;
        for statement in [begin, wait_for_disk, emit, commit, written].map(Arc::clone) {
            self.push_own(&statement)?;
        }
        Ok(())
    }

    fn push_progress(
        &mut self,
        previous: EndLsn,
        to: EndLsn,
        commit_time: Option<PgTimestamp>,
        landmark: Option<Landmark>,
    ) -> Result<()> {
        let (previous, to) = (previous.to_string(), to.to_string());
        let seconds = commit_time.map(|time| format!("{:.6}", time.unix_micros() as f64 / 1e6));
        let last = landmark.map(|last| {
            let micros = last.commit_time.micros();
            let positions = [last.commit_lsn.to_string(), last.end.to_string()];
            positions.into_iter().chain([last.xid.to_string(), micros.to_string()])
        });
        // What is not known stays as it is.
        let last: Vec<Option<String>> =
            last.map_or_else(|| vec![None; 4], |values| values.map(Some).collect());
        let position =
            [Some(self.target.migration().to_owned()), Some(previous), Some(to), seconds].into_iter();
        let key = self.target.key().map(|key| Some(key.expose().to_owned()));
        let Own { progress, progress_by_role, .. } = &self.own;
        let statement = Arc::clone(if key.is_some() { progress_by_role } else { progress });
        let params: Vec<Option<String>> = position.chain(last).chain(key).collect();
        self.push_with(&statement, &params)
    }

    fn push_own(&mut self, statement: &Statement) -> Result<()> {
        self.push_with(statement, &[])
    }

    /// A statement of our own. In a role's session, where code of the rows' owners runs as we do, that may have put another
    /// statement in the place of one that has a name: so there it has none.
    fn push_with(&mut self, statement: &Statement, params: &[Option<String>]) -> Result<()> {
        let name = if self.target.key().is_some() {
            self.pipeline.parse("", &statement.sql).map_err(target_failed)?;
            String::new()
        } else {
            self.prepare(statement)?
        };
        let params = params.iter().map(|value| value.as_deref().map(str::as_bytes));
        self.pipeline.execute(&name, params).map_err(target_failed)
    }

    /// Has the statement parsed where it is not yet, and gives its name.
    fn prepare(&mut self, statement: &Statement) -> Result<String> {
        let mut name = String::with_capacity(16);
        // Writing to a String cannot fail.
        let _ = write!(name, "s{}", statement.id);
        if self.prepared.insert(statement.id) {
            self.pipeline.parse(&name, &statement.sql).map_err(target_failed)?;
        }
        Ok(name)
    }
}

impl Written {
    /// What the last row of a pipeline says.
    pub(super) fn of(outcome: &Outcome) -> Result<Self> {
        let position = |column: usize| -> Option<TargetLsn> {
            let (_, row) = outcome.rows.last()?;
            row.text(column)?.parse().ok()
        };
        match (position(0), position(1)) {
            (Some(end), Some(flushed)) => Ok(Self { end, flushed }),
            _ => Err(Definite::new("the target does not say how far its WAL is")
                .detail("pg_current_wal_insert_lsn and pg_current_wal_flush_lsn gave no positions")
                .hint("it must be a primary")
                .into()),
        }
    }
}
