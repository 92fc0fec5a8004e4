//! What can be done about a change that does not fit the target's rows: the look at the row in its way, and the
//! statements by which the source's row wins.
//!
//! Only rows that are known by the key of the change are ever overwritten or deleted: another row, which has the same
//! value in another unique index, is one that nobody may guess about.

use std::sync::Arc;

use bytes::Bytes;

use super::statements::{self, Match};
use super::table::Shape;
use super::{Input, Kind, Planner, Statement, Step};
use crate::assemble::Change;
use crate::pg::{CommitLsn, Relation};
use crate::proto::{OldTuple, Tuple, TupleValue};

/// Columns by name, with their values as text; `None` is NULL.
pub type NamedValues = Vec<(String, Option<Bytes>)>;

/// Which of a change's rows is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The row before the change.
    Old,
    /// The row after it; there is none after a delete.
    New,
}

/// A change of [`Form::Traced`](super::Form::Traced), and how its table is written to.
#[derive(Debug)]
pub struct Resolver<'a> {
    shape: &'a mut Shape,
    change: &'a Change,
    relation: &'a Arc<Relation>,
    commit_lsn: CommitLsn,
}

impl Planner {
    /// What can be done about `step`; `None` where it is none for a change of one row.
    pub fn resolver<'a>(&'a mut self, step: &'a Step) -> Option<Resolver<'a>> {
        let change = step.change.as_deref()?;
        let shape = self.shapes.get_mut(&step.relation.id)?;
        Some(Resolver { shape, change, relation: &step.relation, commit_lsn: step.commit_lsn })
    }
}

impl Resolver<'_> {
    /// The key of the row, as far as it is known.
    pub fn key(&self, which: Which) -> NamedValues {
        let Some(tuple) = self.tuple(which) else { return Vec::new() };
        self.named(tuple, |index| self.shape.in_key(index))
    }

    /// The row as the source has it after the change, without values that were not sent.
    pub fn row(&self) -> NamedValues {
        self.tuple(Which::New).map(|tuple| self.named(tuple, |_| true)).unwrap_or_default()
    }

    /// Whether the row has another key after the change.
    pub fn changes_key(&self) -> bool {
        self.tuple(Which::New).is_some() && self.key(Which::Old) != self.key(Which::New)
    }

    /// Whether one row at most has a key: rows that are found by all their columns may be many.
    pub fn is_keyed(&self) -> bool {
        let by_equality = |(_, by): &(usize, Match)| matches!(by, Match::Equal { .. });
        !self.shape.key.is_empty() && self.shape.key.iter().all(by_equality)
    }

    /// A look at the target's row that has the key, and the names of what comes back; `None` without a key.
    pub fn look_up(&self, which: Which) -> Option<(Step, Vec<String>)> {
        if !self.is_keyed() {
            return None;
        }
        let mut params = Vec::with_capacity(self.shape.key.len());
        self.shape.push_key(self.tuple(which)?, self.kind(), self.commit_lsn, &mut params).ok()?;
        Some(self.looks(&self.shape.named_key(), params))
    }

    /// A look at the target's row that has the new row's values in these columns; `None` where they are not all known,
    /// or one cannot be compared.
    pub fn look_up_by(&self, columns: &[String]) -> Option<(Step, Vec<String>)> {
        let new = self.tuple(Which::New)?;
        let (mut key, mut params) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
        for name in columns {
            let index = self.relation.columns.iter().position(|column| column.name == *name)?;
            let value @ TupleValue::Text(_) = new.columns().nth(index)? else { return None };
            let column = self.shape.table().column(name)?;
            let (operator, cast) = (column.equality.clone()?, column.cast.clone());
            key.push((name.as_str(), Match::Equal { operator, cast }));
            params.push(new.value_bytes(value));
        }
        (!key.is_empty()).then(|| self.looks(&key, params))
    }

    /// The target's row that has the new row's key becomes the new row; `None` where not all of it is known.
    pub fn overwrite(&mut self) -> Option<Step> {
        let full = self.full_row().filter(|_| self.is_keyed())?;
        let (statement, params) = self.shape.update(None, &full, self.commit_lsn).ok()?;
        Some(self.step(Kind::Update, statement, params))
    }

    /// The new row as an insert; `None` where not all of it is known.
    pub fn insert(&mut self) -> Option<Step> {
        let full = self.full_row()?;
        let params = self.shape.values(&full, self.shape.written(), Kind::Insert, self.commit_lsn).ok()?;
        let statement = self.shape.insert();
        Some(self.step(Kind::Insert, statement, params))
    }

    /// A delete of the target's row that has the new row's key, for the row with the old key to take its place.
    pub fn make_room(&mut self) -> Option<Step> {
        let new = self.tuple(Which::New).filter(|_| self.is_keyed())?.clone();
        let (statement, params) = self.shape.delete(&OldTuple::Key(new), self.commit_lsn).ok()?;
        Some(self.step(Kind::Delete, statement, params))
    }

    fn looks(&self, key: &[(&str, Match)], params: Vec<Option<Bytes>>) -> (Step, Vec<String>) {
        let table = self.shape.table();
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let statement = Statement::new(statements::look_up(&table.name, &columns, key));
        (self.step(self.kind(), statement, params), columns.into_iter().map(str::to_owned).collect())
    }

    fn step(&self, kind: Kind, statement: Arc<Statement>, params: Vec<Option<Bytes>>) -> Step {
        let (input, relation) = (Input::Params(params), Arc::clone(self.relation));
        Step { statement, input, kind, relation, commit_lsn: self.commit_lsn, rows: Some(1), change: None }
    }

    fn kind(&self) -> Kind {
        super::kind(self.change)
    }

    fn tuple(&self, which: Which) -> Option<&Tuple> {
        match (self.change, which) {
            (Change::Insert { new, .. } | Change::Update { new, .. }, Which::New)
            | (Change::Update { old: None, new, .. }, Which::Old) => Some(new),
            (Change::Update { old: Some(old), .. } | Change::Delete { old, .. }, Which::Old) => {
                Some(old.tuple())
            }
            (Change::Insert { .. }, Which::Old)
            | (Change::Delete { .. }, Which::New)
            | (Change::Truncate { .. }, _) => None,
        }
    }

    /// The new row with every value that is written. One that was not sent is known where the whole old row was.
    fn full_row(&self) -> Option<Tuple> {
        let new = self.tuple(Which::New)?;
        let full = match self.change {
            Change::Update { old: Some(OldTuple::Full(old)), .. } if new.has_unchanged() => {
                let known = |(new, old)| if new == TupleValue::Unchanged { old } else { new };
                Tuple::from_values(new.columns().zip(old.columns()).map(known))
            }
            Change::Insert { .. }
            | Change::Update { .. }
            | Change::Delete { .. }
            | Change::Truncate { .. } => new.clone(),
        };
        let mut written =
            full.columns().enumerate().filter(|(index, _)| self.shape.written().contains(index));
        written.all(|(_, value)| value != TupleValue::Unchanged).then_some(full)
    }

    fn named(&self, tuple: &Tuple, wanted: impl Fn(usize) -> bool) -> NamedValues {
        let sent = self.relation.columns.iter().zip(tuple.columns()).enumerate();
        let sent = sent.filter(|(index, (_, value))| wanted(*index) && *value != TupleValue::Unchanged);
        sent.map(|(_, (column, value))| (column.name.clone(), tuple.value_bytes(value))).collect()
    }
}
