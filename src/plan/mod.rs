//! Transactions in, statements out.
//!
//! The [`Planner`] turns the changes of a batch into [`Step`]s: statements with the source's bytes as their parameters.
//! In set form ([`Form::Set`]) the changes of each row merge, and each table's become a few statements. In ordered mode
//! each change is a step, in the source's order, expected to touch exactly one row: the reference, and for what set form
//! cannot do. What comes out depends on what goes in alone.
//!
//! Set form may fail where ordered mode does not: where a value of a unique index is handed from row to row. Whoever
//! executes the steps then has the batch planned again, in ordered mode, and says which table it was: one that goes on
//! failing is ordered for a while.
//!
//! Not here: sockets, clocks, transactions, and what to do when a step touches no row.
//!
//! Invariants: a change to a table whose copy already holds it (`commit_lsn < copy_lsn`) makes no step; an unchanged
//! TOAST value is left out of SET, never written as NULL; generated columns are never written. Steps of different tables
//! may change places, except around the barriers: TRUNCATE, an altered table. A changed key, or a row found by all its
//! columns, is one for its table.

mod literal;
mod net;
mod resolve;
mod set;
mod set_form;
mod statements;
mod table;
mod truncate;
mod types;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::assemble::{Change, Segment};
use crate::limits::{FAILING_FORGOTTEN_AFTER, FAILING_TIMES_MAX};
use crate::pg::{CommitLsn, EndLsn, Landmark, Oid, QualifiedName, Relation, RelationId, Sql};
use crate::proto::{OldTuple, Tuple, TupleValue};

pub use resolve::{NamedValues, Resolver, Which};
pub use table::{Carried, Shape, ShapeError, TargetColumn, TargetTable, TypeNames};
pub use truncate::TableReference;
pub use types::{TargetType, is_builtin};

/// Whole transactions in commit order, or one segment of a large one: applied in one target transaction.
#[derive(Debug)]
pub struct Batch {
    /// The segments.
    pub segments: Vec<Segment>,
    /// Where the source transaction before the first of them ended: what `walferry.progress` must hold.
    pub previous: EndLsn,
    /// The sum of their costs.
    pub cost: usize,
}

/// A statement that is prepared once and executed for each change of its form.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process: what a session calls the prepared statement.
    pub id: u64,
    /// The text, with `$1`… for the parameters. The server infers their types from where they stand.
    pub sql: Sql,
}

/// One statement's execution.
#[derive(Debug, Clone)]
pub struct Step {
    /// What to execute.
    pub statement: Arc<Statement>,
    /// What goes with it.
    pub input: Input,
    /// What the step does to its table.
    pub kind: Kind,
    /// The table on the source; for TRUNCATE the first of those that are emptied.
    pub relation: Arc<Relation>,
    /// The transaction that it belongs to; of several, the last.
    pub commit_lsn: CommitLsn,
    /// How many rows it must touch, for whoever executes it to look at before the commit; `None` where the statement
    /// itself fails, or any number will do.
    pub rows: Option<u64>,
    /// The change that it is for, in [`Form::Traced`].
    pub change: Option<Box<Change>>,
}

/// What goes with a statement.
#[derive(Clone)]
pub enum Input {
    /// Parameters in text format; `None` is NULL.
    Params(Vec<Option<Bytes>>),
    /// For `COPY … FROM STDIN`: all rows, in its text format.
    Copy(Bytes),
}

/// How changes become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Merged, table by table, where that can be.
    #[default]
    Set,
    /// Row by row, in the source's order.
    Ordered,
    /// The same, each step with its change, for whoever resolves conflicts.
    Traced,
}

/// Why changes go row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The target's triggers or rules fire for each row, and may look at any table.
    Triggers,
    /// Set form failed, or touched another number of rows.
    Failed,
    /// The table failed in set form again and again.
    Failing,
    /// The table has no key that the source keeps unique (REPLICA IDENTITY FULL).
    Identity,
    /// A key changed.
    KeyChange,
    /// A column whose values cannot be put together: GENERATED ALWAYS AS IDENTITY outside the key, some domains.
    Values,
    /// A row too large to be put together with others.
    Large,
    /// The change does not follow from those before it.
    Sequence,
}

/// What a batch comes to.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to execute, in this order.
    pub steps: Vec<Step>,
    /// Changes by kind, in the order of [`Kind::ALL`]; those that a copy holds already are not among them.
    pub changes: [u64; 4],
    /// Why some of them go row by row, though set form was asked for: the first reason.
    pub ordered: Option<Reason>,
}

/// The kinds of change, as metrics and conflicts name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A row that is gone.
    Delete,
    /// Tables emptied.
    Truncate,
    /// A table of the target altered, so that it fits what follows. Not a change that the source sent.
    Alter,
}

/// A change for which there is no right statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The target's table is not known: see [`Planner::unknown`].
    #[error("table {0} is not known")]
    UnknownTable(QualifiedName),
    /// The two tables do not fit.
    #[error("{error}")]
    Shape {
        /// The table as it was announced.
        relation: Arc<Relation>,
        /// What does not fit.
        error: ShapeError,
    },
    /// An update or delete of a table without replica identity.
    #[error("{kind} of table {table}, which has no replica identity", kind = kind.as_str())]
    NoIdentity {
        /// The table.
        table: QualifiedName,
        /// What came.
        kind: Kind,
    },
    /// A value is missing where none may be.
    #[error("{kind} of table {table} at {commit_lsn} came without the value of column {column:?}", kind = kind.as_str())]
    MissingValue {
        /// The table.
        table: QualifiedName,
        /// What came.
        kind: Kind,
        /// The transaction.
        commit_lsn: CommitLsn,
        /// The column.
        column: String,
    },
    /// A value in binary format, which was not asked for.
    #[error("table {0} came in binary format, which was not asked for")]
    Binary(QualifiedName),
}

/// Makes steps, and remembers each table's shape and statements.
#[derive(Debug, Default)]
pub struct Planner {
    /// By the source's relation, as the shapes. Names may change, on either side.
    tables: HashMap<RelationId, Arc<TargetTable>>,
    /// The announced relation is kept to see whether it is still the one.
    shapes: HashMap<RelationId, Shape>,
    types: TypeNames,
    /// Tables that earlier segments of the transaction changed.
    touched: HashSet<RelationId>,
    form: Form,
    plan: Plan,
    /// Tables with changes that are not steps yet.
    gathered: Vec<RelationId>,
    /// Why changes of a table that was forgotten are not among the steps.
    failed_flush: Option<PlanError>,
    /// Tables that failed in set form.
    failing: HashMap<RelationId, Failing>,
    /// Who refers to tables that are emptied.
    references: Vec<TableReference>,
    /// TRUNCATE leaves sequences alone.
    keeps_sequences: bool,
}

/// A table that failed in set form, not long ago.
#[derive(Debug)]
struct Failing {
    times: u32,
    /// Batches for which it is ordered; below zero, those that went well since.
    left: i32,
}

impl Batch {
    /// The position that `walferry.progress` moves to with this batch; `None` in the middle of a large transaction.
    pub fn end(&self) -> Option<EndLsn> {
        self.segments.last().and_then(|segment| segment.end)
    }

    /// The last of its transactions that comes again from a stream opened at its commit.
    pub fn landmark(&self) -> Option<Landmark> {
        self.last_that_comes_again().and_then(Segment::landmark)
    }

    /// The last segment of that transaction.
    pub fn last_that_comes_again(&self) -> Option<&Segment> {
        self.segments.iter().rev().find(|segment| segment.landmark().is_some())
    }

    /// Whether it is a part of a transaction that goes ahead of its commit.
    pub fn is_ahead(&self) -> bool {
        self.segments.last().is_some_and(|segment| segment.ahead)
    }
}

impl Kind {
    /// Those that the source sends, in the order of the protocol's messages.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    /// `insert`, `update`, `delete`, `truncate` or `alter`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Alter => "alter",
        }
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Statement {
    /// A statement of this text, with a number of its own.
    pub fn new(sql: Sql) -> Arc<Self> {
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), sql })
    }
}

/// How much there is, not what: rows do not belong into logs.
impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Params(params) => write!(f, "Params({})", params.len()),
            Self::Copy(rows) => write!(f, "Copy({} bytes)", rows.len()),
        }
    }
}

impl Reason {
    /// As metrics have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Triggers => "triggers",
            Self::Failed => "failed",
            Self::Failing => "failing",
            Self::Identity => "identity",
            Self::KeyChange => "key_change",
            Self::Values => "values",
            Self::Large => "large",
            Self::Sequence => "sequence",
        }
    }
}

impl Change {
    /// The tables that the change touches.
    fn relations(&self) -> &[Arc<Relation>] {
        match self {
            Self::Insert { relation, .. } | Self::Update { relation, .. } | Self::Delete { relation, .. } => {
                std::slice::from_ref(relation)
            }
            Self::Truncate { relations, .. } => relations,
        }
    }
}

impl Planner {
    /// Starts with no table known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves sequences as they are when tables are emptied: for who does not own them. They are carried by themselves.
    #[must_use]
    pub fn keeping_sequences(self, keeps_sequences: bool) -> Self {
        Self { keeps_sequences, ..self }
    }

    /// The tables of `segment` that [`Planner::learn`] must be told of before it can be planned.
    ///
    /// What was learnt of a table is forgotten when the source announces it in another shape: the target's may have
    /// changed as well.
    pub fn unknown(&mut self, segment: &Segment) -> Vec<Arc<Relation>> {
        let mut unknown: Vec<Arc<Relation>> = Vec::new();
        let mut previous: Option<&Arc<Relation>> = None;
        for relation in segment.changes.iter().flat_map(Change::relations) {
            if previous.is_some_and(|p| Arc::ptr_eq(p, relation)) {
                continue;
            }
            previous = Some(relation);
            match self.shapes.get(&relation.id) {
                Some(shape) if shape.serves(relation) => continue,
                Some(_) => self.forget(relation.id),
                None => {}
            }
            if !self.tables.contains_key(&relation.id) && unknown.iter().all(|other| other.id != relation.id)
            {
                unknown.push(Arc::clone(relation));
            }
        }
        unknown
    }

    /// Takes what the target says of a relation's table, in place of what it said before.
    pub fn learn(&mut self, id: RelationId, table: TargetTable) {
        self.forget(id);
        self.tables.insert(id, Arc::new(table));
    }

    /// Takes what the source's catalog calls a type that is not builtin.
    pub fn learn_type(&mut self, oid: Oid, name: QualifiedName) {
        self.types.insert(oid, name);
    }

    /// Forgets a relation's table: it is to be asked for again.
    pub fn forget(&mut self, id: RelationId) {
        // What was gathered for it goes by what was known of it.
        if let Err(error) = self.flush(id) {
            self.failed_flush.get_or_insert(error);
        }
        self.shapes.remove(&id);
        self.tables.remove(&id);
    }

    /// The table of a relation, as it was learnt.
    pub fn table(&self, id: RelationId) -> Option<&Arc<TargetTable>> {
        self.tables.get(&id)
    }

    /// Whether the transaction changed the table before its change at `next`.
    pub fn changed_before(&self, segment: &Segment, next: usize, id: RelationId) -> bool {
        let mut before = segment.changes.iter().take(next).flat_map(Change::relations);
        self.touched.contains(&id) || before.any(|relation| relation.id == id)
    }

    /// What the source's catalog calls types, as far as it was learnt.
    pub const fn types(&self) -> &TypeNames {
        &self.types
    }

    /// Whether a table of `segment` has triggers that fire even for a replica: they may see any table, so the source's
    /// order must be kept to the letter.
    pub fn has_triggers(&self, segment: &Segment) -> bool {
        let mut relations = segment.changes.iter().flat_map(Change::relations);
        relations.any(|relation| self.tables.get(&relation.id).is_some_and(|table| table.has_triggers))
    }

    /// Begins a batch, and drops what was planned and not taken.
    pub fn begin(&mut self, form: Form) {
        for id in self.gathered.drain(..) {
            if let Some(shape) = self.shapes.get_mut(&id) {
                shape.forget_gathered();
            }
        }
        (self.plan, self.failed_flush) = (Plan::default(), None);
        self.form = form;
        if form == Form::Set {
            self.failing.retain(|_, failing| {
                failing.left -= 1;
                failing.left > -FAILING_FORGOTTEN_AFTER
            });
        }
    }

    /// Plans `segment` from its change at `next` on, which moves on with each that is planned: after an error that was
    /// mended, it goes on from there.
    ///
    /// # Errors
    /// When a change has no right statement.
    pub fn plan(&mut self, segment: &Segment, next: &mut usize) -> Result<(), PlanError> {
        if segment.first && *next == 0 {
            self.touched.clear();
        }
        for change in segment.changes.iter().skip(*next) {
            match change {
                Change::Truncate { relations, restart_identity, .. } => {
                    self.flush_all()?;
                    self.truncate(segment.commit_lsn, relations, *restart_identity)?;
                }
                Change::Insert { relation, .. }
                | Change::Update { relation, .. }
                | Change::Delete { relation, .. } => self.row(segment.commit_lsn, relation, change)?,
            }
            *next += 1;
        }
        if segment.end.is_none() {
            self.touched
                .extend(segment.changes.iter().flat_map(Change::relations).map(|relation| relation.id));
        }
        Ok(())
    }

    /// Puts a step after all that was planned before.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn push(&mut self, step: Step) -> Result<(), PlanError> {
        self.flush_all()?;
        self.plan.steps.push(step);
        Ok(())
    }

    /// Gives what was planned since [`Planner::begin`].
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn finish(&mut self) -> Result<Plan, PlanError> {
        self.flush_all()?;
        match self.failed_flush.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut self.plan)),
        }
    }

    /// Takes note that a table's set form failed. At the second time soon it is ordered for one more batch, then for
    /// three, seven, and so on.
    pub fn failed(&mut self, id: RelationId) {
        let failing = self.failing.entry(id).or_insert(Failing { times: 0, left: 0 });
        failing.times += 1;
        failing.left =
            if failing.times == 1 { 0 } else { 1 << failing.times.min(FAILING_TIMES_MAX).saturating_sub(1) };
    }

    /// One change of a row.
    fn row(
        &mut self,
        commit_lsn: CommitLsn,
        relation: &Arc<Relation>,
        change: &Change,
    ) -> Result<(), PlanError> {
        if !self.fits(relation, commit_lsn)? {
            return Ok(());
        }
        let Some(shape) = self.shapes.get_mut(&relation.id) else { return Ok(()) };
        let mut reason = None;
        if self.form == Form::Set {
            let was_empty = !shape.has_gathered();
            let gathered = if self.failing.get(&relation.id).is_some_and(|failing| failing.left > 0) {
                Err(Reason::Failing)
            } else {
                match change {
                    Change::Insert { new, .. } => shape.gather_insert(new, commit_lsn),
                    Change::Update { old, new, .. } => shape.gather_update(old.as_ref(), new, commit_lsn),
                    Change::Delete { old, .. } => shape.gather_delete(old, commit_lsn),
                    Change::Truncate { .. } => Ok(()),
                }
            };
            match gathered {
                Ok(()) => {
                    if was_empty {
                        self.gathered.push(relation.id);
                    }
                    self.plan.changes[kind(change) as usize] += 1;
                    return Ok(());
                }
                Err(why) => reason = Some(why),
            }
            shape.flush(&mut self.plan.steps)?;
        }
        let kind = kind(change);
        let (statement, params) = match change {
            Change::Insert { new, .. } => {
                (shape.insert(), shape.values(new, shape.written(), kind, commit_lsn)?)
            }
            Change::Update { old, new, .. } => shape.update(old.as_ref(), new, commit_lsn)?,
            Change::Delete { old, .. } => shape.delete(old, commit_lsn)?,
            Change::Truncate { .. } => return Ok(()),
        };
        // One row is inserted, or there is an error: triggers that could do otherwise are seen to beforehand.
        let rows = (self.form != Form::Set || kind != Kind::Insert).then_some(1);
        let traced = (self.form == Form::Traced).then(|| Box::new(change.clone()));
        let (input, relation) = (Input::Params(params), Arc::clone(relation));
        self.plan.steps.push(Step { statement, input, kind, relation, commit_lsn, rows, change: traced });
        self.plan.changes[kind as usize] += 1;
        self.plan.ordered = self.plan.ordered.or(reason);
        Ok(())
    }

    fn flush(&mut self, id: RelationId) -> Result<(), PlanError> {
        match self.shapes.get_mut(&id) {
            Some(shape) => shape.flush(&mut self.plan.steps),
            None => Ok(()),
        }
    }

    fn flush_all(&mut self) -> Result<(), PlanError> {
        for id in std::mem::take(&mut self.gathered) {
            self.flush(id)?;
        }
        Ok(())
    }

    /// Sees to the table's shape; says no where its copy already holds what commits at `commit_lsn`.
    fn fits(&mut self, relation: &Arc<Relation>, commit_lsn: CommitLsn) -> Result<bool, PlanError> {
        if let Some(shape) = self.shapes.get_mut(&relation.id)
            && shape.adopt(relation)
        {
            return Ok(commit_lsn.position() >= shape.table().copy_lsn);
        }
        let table = self.tables.get(&relation.id);
        let table = Arc::clone(table.ok_or_else(|| PlanError::UnknownTable(relation.name.clone()))?);
        // What was sent before the copy need not fit the table as it was copied.
        if commit_lsn.position() < table.copy_lsn {
            return Ok(false);
        }
        self.flush(relation.id)?;
        match Shape::new(Arc::clone(relation), table, &self.types) {
            Ok(shape) => self.shapes.insert(relation.id, shape),
            Err(error) => return Err(PlanError::Shape { relation: Arc::clone(relation), error }),
        };
        Ok(true)
    }
}

impl Step {
    /// A table of the target altered, for changes of `relation` in the transaction that commits at `commit_lsn`.
    pub fn alter(sql: Sql, relation: &Arc<Relation>, commit_lsn: CommitLsn) -> Self {
        let (statement, relation) = (Statement::new(sql), Arc::clone(relation));
        Self {
            statement,
            input: Input::Params(Vec::new()),
            kind: Kind::Alter,
            relation,
            commit_lsn,
            rows: None,
            change: None,
        }
    }
}

const fn kind(change: &Change) -> Kind {
    match change {
        Change::Insert { .. } => Kind::Insert,
        Change::Update { .. } => Kind::Update,
        Change::Delete { .. } => Kind::Delete,
        Change::Truncate { .. } => Kind::Truncate,
    }
}

#[cfg(test)]
mod tests;
