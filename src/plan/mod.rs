//! Transactions in, statements out.
//!
//! The [`Planner`] turns each change of a segment into a [`Step`]: a statement that is prepared once, and its
//! parameters as the source's bytes. This is ordered mode: row by row, in the source's order, each step expected to
//! touch exactly one row. [`merge()`] makes fewer steps of them, to the same end. What comes out depends on what goes in
//! alone.
//!
//! Not here: sockets, clocks, transactions, and what to do when a step touches no row.
//!
//! Invariants: a change to a table whose copy already holds it (`commit_lsn < copy_lsn`) makes no step; an unchanged
//! TOAST value is left out of SET, never written as NULL; generated columns are never written.

mod merge;
mod statements;
mod table;
mod types;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::assemble::{Change, Segment};
use crate::pg::{CommitLsn, EndLsn, Oid, QualifiedName, Relation, RelationId, Sql};
use crate::proto::{OldTuple, Tuple, TupleValue};

pub use merge::{INSERT_ROWS, merge};
pub use table::{Shape, ShapeError, TargetColumn, TargetTable, TypeNames};
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
    /// For an INSERT: the same for [`INSERT_ROWS`] rows at once.
    pub many: Option<Arc<Statement>>,
}

/// One statement's execution.
#[derive(Debug, Clone)]
pub struct Step {
    /// What to execute.
    pub statement: Arc<Statement>,
    /// Its parameters, in text format; `None` is NULL.
    pub params: Vec<Option<Bytes>>,
    /// What the step does to its table.
    pub kind: Kind,
    /// The table on the source; for TRUNCATE the first of those that are emptied.
    pub relation: Arc<Relation>,
    /// The transaction that it belongs to.
    pub commit_lsn: CommitLsn,
    /// How many rows it must touch; `None` for any number.
    pub rows: Option<u64>,
    /// For an UPDATE that leaves the key as it is and for a DELETE: how many of the last parameters are the key.
    pub key: Option<usize>,
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
}

impl Batch {
    /// The position that `walferry.progress` moves to with this batch; `None` in the middle of a large transaction.
    pub fn end(&self) -> Option<EndLsn> {
        self.segments.last().and_then(|segment| segment.end)
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
    fn new(sql: Sql) -> Arc<Self> {
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), sql, many: None })
    }

    fn with_many(sql: Sql, many: Option<Sql>) -> Arc<Self> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, sql, many: many.map(Self::new) })
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
                Some(_) => {
                    self.shapes.remove(&relation.id);
                    self.tables.remove(&relation.id);
                }
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
        self.shapes.remove(&id);
        self.tables.insert(id, Arc::new(table));
    }

    /// Takes what the source's catalog calls a type that is not builtin.
    pub fn learn_type(&mut self, oid: Oid, name: QualifiedName) {
        self.types.insert(oid, name);
    }

    /// Forgets a relation's table: it is to be asked for again.
    pub fn forget(&mut self, id: RelationId) {
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

    /// Makes the steps of `segment` and appends them to `steps`.
    ///
    /// # Errors
    /// When a change has no right statement; `steps` then holds those before it.
    pub fn plan(&mut self, segment: &Segment, steps: &mut Vec<Step>) -> Result<(), PlanError> {
        self.plan_from(segment, &mut 0, steps)
    }

    /// The same from the change at `next` on, which moves on with each that is planned: after an error that was mended,
    /// it goes on from there.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn plan_from(
        &mut self,
        segment: &Segment,
        next: &mut usize,
        steps: &mut Vec<Step>,
    ) -> Result<(), PlanError> {
        if segment.first && *next == 0 {
            self.touched.clear();
        }
        for change in segment.changes.iter().skip(*next) {
            match change {
                Change::Truncate { relations, restart_identity, .. } => {
                    self.truncate(segment.commit_lsn, relations, *restart_identity, steps)?;
                }
                Change::Insert { relation, new } => {
                    let Some(shape) = self.shape(relation, segment.commit_lsn)? else {
                        *next += 1;
                        continue;
                    };
                    let statement = shape.insert();
                    let params = shape.values(new, shape.written(), Kind::Insert, segment.commit_lsn)?;
                    steps.push(step(segment, relation, Kind::Insert, statement, params, None));
                }
                Change::Update { relation, old, new } => {
                    let Some(shape) = self.shape(relation, segment.commit_lsn)? else {
                        *next += 1;
                        continue;
                    };
                    let (statement, params) = shape.update(old.as_ref(), new, segment.commit_lsn)?;
                    let key = shape.finds_again(old.as_ref());
                    steps.push(step(segment, relation, Kind::Update, statement, params, key));
                }
                Change::Delete { relation, old } => {
                    let Some(shape) = self.shape(relation, segment.commit_lsn)? else {
                        *next += 1;
                        continue;
                    };
                    let (statement, params) = shape.delete(old, segment.commit_lsn)?;
                    let key = shape.finds_again(None);
                    steps.push(step(segment, relation, Kind::Delete, statement, params, key));
                }
            }
            *next += 1;
        }
        if segment.end.is_none() {
            self.touched
                .extend(segment.changes.iter().flat_map(Change::relations).map(|relation| relation.id));
        }
        Ok(())
    }

    /// The table's shape, or `None` where its copy already holds what commits at `commit_lsn`.
    fn shape(
        &mut self,
        relation: &Arc<Relation>,
        commit_lsn: CommitLsn,
    ) -> Result<Option<&mut Shape>, PlanError> {
        let fits = self.shapes.get_mut(&relation.id).is_some_and(|shape| shape.adopt(relation));
        if !fits {
            let table = self.tables.get(&relation.id);
            let table = table.ok_or_else(|| PlanError::UnknownTable(relation.name.clone()))?;
            // What was sent before the copy need not fit the table as it was copied.
            if commit_lsn.position() < table.copy_lsn {
                return Ok(None);
            }
            match Shape::new(Arc::clone(relation), Arc::clone(table), &self.types) {
                Ok(shape) => self.shapes.insert(relation.id, shape),
                Err(error) => return Err(PlanError::Shape { relation: Arc::clone(relation), error }),
            };
        }
        let shape = self.shapes.get_mut(&relation.id);
        Ok(shape.filter(|shape| commit_lsn.position() >= shape.table().copy_lsn))
    }

    fn truncate(
        &mut self,
        commit_lsn: CommitLsn,
        relations: &[Arc<Relation>],
        restart_identity: bool,
        steps: &mut Vec<Step>,
    ) -> Result<(), PlanError> {
        let (mut kept, mut names) =
            (Vec::with_capacity(relations.len()), Vec::with_capacity(relations.len()));
        for relation in relations {
            if let Some(shape) = self.shape(relation, commit_lsn)? {
                kept.push(relation);
                names.push(shape.table().name.clone());
            }
        }
        if let Some(first) = kept.first() {
            let names: Vec<&QualifiedName> = names.iter().collect();
            steps.push(Step {
                statement: Statement::new(statements::truncate(&names, restart_identity)),
                params: Vec::new(),
                kind: Kind::Truncate,
                relation: Arc::clone(first),
                commit_lsn,
                rows: None,
                key: None,
            });
        }
        Ok(())
    }
}

impl Step {
    /// A table of the target altered, for changes of `relation` in the transaction that commits at `commit_lsn`.
    pub fn alter(sql: Sql, relation: &Arc<Relation>, commit_lsn: CommitLsn) -> Self {
        let (statement, relation) = (Statement::new(sql), Arc::clone(relation));
        Self { statement, params: Vec::new(), kind: Kind::Alter, relation, commit_lsn, rows: None, key: None }
    }
}

fn step(
    segment: &Segment,
    relation: &Arc<Relation>,
    kind: Kind,
    statement: Arc<Statement>,
    params: Vec<Option<Bytes>>,
    key: Option<usize>,
) -> Step {
    let (relation, commit_lsn) = (Arc::clone(relation), segment.commit_lsn);
    Step { statement, params, kind, relation, commit_lsn, rows: Some(1), key }
}

#[cfg(test)]
mod tests;
