//! A table of the source held against its namesake on the target.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Reason;
use super::set_form::SetForm;
use super::statements::{self, Match};
use super::types::TargetType;
use super::{Kind, OldTuple, PlanError, Statement, Tuple, TupleValue};
use crate::limits::UPDATE_FORMS_MAX;
use crate::pg::{Column, CommitLsn, Oid, QualifiedName, Relation, ReplicaIdentity, SourceLsn};

/// What the target says of one of its tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    /// Schema and name on the target: those of the source, or older ones while a new name is followed.
    pub name: QualifiedName,
    /// Its columns, in the target's order.
    pub columns: Vec<TargetColumn>,
    /// The columns of its primary key, or else of a unique index that may serve as one; empty without.
    pub key: Vec<String>,
    /// The key may be broken within a transaction: it is a DEFERRABLE primary key.
    pub key_deferrable: bool,
    /// The snapshot that the table was copied on: what commits before it is in the copy.
    pub copy_lsn: SourceLsn,
    /// It has triggers that fire even for a replica (ENABLE REPLICA or ALWAYS).
    pub has_triggers: bool,
}

/// One column of a [`TargetTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetColumn {
    /// Its name, not quoted.
    pub name: String,
    /// GENERATED ALWAYS AS (expression): computed here, never written.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: `INSERT` can be told to take a value, `UPDATE` cannot.
    pub identity_always: bool,
    /// Its type.
    pub of: TargetType,
    /// NOT NULL, and nothing fills it in: an INSERT must give it.
    pub required: bool,
    /// The equality operator to find it by: that of its key's index, else its type's own; `None` where there is none.
    pub equality: Option<QualifiedName>,
    /// The type that it and the parameter are cast to for that; `None` where the operator tells the server.
    pub cast: Option<QualifiedName>,
    /// How many of its values go into one parameter.
    pub carried: Carried,
}

/// How many values of a type go into one parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// In an array of the type.
    InArrays,
    /// As text, each to be cast: an array's values, since `unnest` flattens arrays of arrays. Only where the elements are of
    /// one of the server's own types: who owns another can make a cast from text to its arrays, which would run as us.
    AsText,
    /// Not at all. A row; an array of a type of users; a domain over another delimiter, or without array type: a cast could shorten
    /// a value without a word.
    Alone,
}

/// The two tables do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The source sends a column that the target lacks.
    #[error("table {table} has no column {column:?} on the target")]
    NoColumn {
        /// The table.
        table: QualifiedName,
        /// The column.
        column: String,
    },
    /// The target has another type, which may keep less than the source sends.
    #[error("column {column:?} of table {table} has another type on the source than on the target")]
    Type {
        /// The table.
        table: QualifiedName,
        /// The column.
        column: String,
    },
    /// The source does not send a column that the target needs.
    #[error("column {column:?} of table {table} is not on the source any more, and NOT NULL on the target")]
    Required {
        /// The table.
        table: QualifiedName,
        /// The column.
        column: String,
    },
    /// A column of the replica identity cannot be compared.
    #[error(
        "column {column:?} of the replica identity of table {table} has a type without equality on the target"
    )]
    NoEquality {
        /// The table.
        table: QualifiedName,
        /// The column.
        column: String,
    },
}

/// What the source's catalog calls the types that are not builtin.
pub type TypeNames = HashMap<Oid, QualifiedName>;

/// How changes to one announced relation are written to its table.
#[derive(Debug)]
pub struct Shape {
    pub(super) relation: Arc<Relation>,
    pub(super) table: Arc<TargetTable>,
    /// By the source's column: whether it is written.
    pub(super) writes: Vec<Write>,
    /// The columns that are written, as indexes into the relation's.
    pub(super) written: Vec<usize>,
    /// The columns that identify a row, as indexes into the relation's, ascending, and how.
    pub(super) key: Vec<(usize, Match)>,
    pub(super) set: SetForm,
    insert: Option<Arc<Statement>>,
    delete: Option<Arc<Statement>>,
    /// By the columns that are given (those neither unchanged nor left out), and whether the row is replaced.
    updates: HashMap<Vec<usize>, Arc<Statement>>,
}

/// What is done with a value of one of the source's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// The target computes it.
    Never,
    /// `INSERT` and `UPDATE` write it.
    Always,
    /// Only `INSERT` can write it.
    InsertOnly,
}

impl Shape {
    /// Holds the two against each other.
    ///
    /// # Errors
    /// When a column is missing on the target, has a type there that may not keep every value, or one that identifies
    /// rows cannot be compared there; when the target needs a column that is not sent.
    pub fn new(
        relation: Arc<Relation>,
        table: Arc<TargetTable>,
        types: &TypeNames,
    ) -> Result<Self, ShapeError> {
        let mut writes = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            writes.push(write(column, &table, types)?);
        }
        let sent = |name: &str| relation.columns.iter().any(|column| column.name == name);
        if let Some(column) = table.columns.iter().find(|column| column.required && !sent(&column.name)) {
            let (table, column) = (table.name.clone(), column.name.clone());
            return Err(ShapeError::Required { table, column });
        }
        let written = (0..writes.len()).filter(|&i| writes[i] != Write::Never).collect();
        let key = key(&relation, &table)?;
        let (updates, set) = (HashMap::new(), SetForm::default());
        let mut shape =
            Self { relation, table, writes, written, key, set, insert: None, delete: None, updates };
        let merges = shape.merges();
        let updates = merges.and_then(|()| shape.updates_merge());
        shape.set = SetForm::new(merges, updates, shape.replaceable(), shape.key_columns().collect());
        Ok(shape)
    }

    pub(super) fn key_columns(&self) -> impl Iterator<Item = usize> {
        self.key.iter().map(|(index, _)| *index)
    }

    /// Whether a row is known by a key that both sides keep unique and that comes with each change. With REPLICA IDENTITY
    /// FULL the target's own key finds the row, but nothing says that it is unique on the source. Where it is not unique on
    /// the target, one key too many and one too few would make the right number of rows.
    fn merges(&self) -> Result<(), Reason> {
        if self.key.is_empty() || self.relation.identity == ReplicaIdentity::Full || !self.unique_on_target()
        {
            return Err(Reason::Identity);
        }
        let compared = self.key.iter().all(|(_, by)| matches!(by, Match::Equal { .. }));
        if !compared || !self.key.iter().all(|(index, _)| self.is_carried(*index)) {
            return Err(Reason::Values);
        }
        Ok(())
    }

    fn unique_on_target(&self) -> bool {
        let in_key =
            |name: &str| self.key.iter().any(|(index, _)| self.relation.columns[*index].name == name);
        let key = &self.table.key;
        !key.is_empty() && !self.table.key_deferrable && key.iter().all(|column| in_key(column))
    }

    fn updates_merge(&self) -> Result<(), Reason> {
        let indexes = || 0..self.writes.len();
        // Whether such a column changes is only seen row by row.
        if indexes().any(|index| self.writes[index] == Write::InsertOnly && !self.in_key(index)) {
            return Err(Reason::Values);
        }
        let written = indexes().filter(|&index| self.writes[index] == Write::Always);
        if written.into_iter().all(|index| self.is_carried(index)) { Ok(()) } else { Err(Reason::Values) }
    }

    /// An update gives a row anew as a delete and an insert would: no column keeps what it had, or has a default.
    fn replaceable(&self) -> bool {
        let sent = |name: &str| self.relation.columns.iter().any(|column| column.name == name);
        self.updates_merge().is_ok()
            && self.table.columns.iter().all(|column| column.generated || sent(&column.name))
    }

    fn is_carried(&self, index: usize) -> bool {
        let column = self.table.column(&self.relation.columns[index].name);
        column.is_some_and(|column| column.carried != Carried::Alone)
    }

    /// Whether this was made for `relation` as it is announced now.
    pub fn serves(&self, relation: &Arc<Relation>) -> bool {
        Arc::ptr_eq(&self.relation, relation) || self.relation == *relation
    }

    /// As [`Shape::serves`]; an announcement that says the same again is taken over, so that the next look at it is
    /// a short one. Most often it is the same one: then it is not counted anew, which another core does all the time.
    pub(super) fn adopt(&mut self, relation: &Arc<Relation>) -> bool {
        if Arc::ptr_eq(&self.relation, relation) {
            return true;
        }
        let serves = self.serves(relation);
        if serves {
            self.relation = Arc::clone(relation);
        }
        serves
    }

    /// The table on the target.
    pub fn table(&self) -> &TargetTable {
        &self.table
    }

    #[cfg(test)]
    pub(super) fn update_forms(&self) -> usize {
        self.updates.len()
    }

    pub(super) fn written(&self) -> &[usize] {
        &self.written
    }

    pub(super) fn insert(&mut self) -> Arc<Statement> {
        let (relation, written, name) = (&self.relation, &self.written, &self.table.name);
        let insert = || Statement::new(statements::insert(name, &names(relation, written)));
        Arc::clone(self.insert.get_or_insert_with(insert))
    }

    pub(super) fn delete(
        &mut self,
        old: &OldTuple,
        commit_lsn: CommitLsn,
    ) -> Result<(Arc<Statement>, Vec<Option<Bytes>>), PlanError> {
        let mut params = Vec::with_capacity(self.key.len());
        self.push_key(old.tuple(), Kind::Delete, commit_lsn, &mut params)?;
        if self.delete.is_none() {
            self.delete = Some(Statement::new(statements::delete(&self.table.name, &self.named_key())));
        }
        let statement = self.delete.clone().ok_or_else(|| self.no_identity(Kind::Delete))?;
        Ok((statement, params))
    }

    pub(super) fn update(
        &mut self,
        old: Option<&OldTuple>,
        new: &Tuple,
        commit_lsn: CommitLsn,
    ) -> Result<(Arc<Statement>, Vec<Option<Bytes>>), PlanError> {
        let given = self.given(old, new);
        let mut params = self.values(new, &given, Kind::Update, commit_lsn)?;
        let identifying = old.map_or(new, OldTuple::tuple);
        self.push_key(identifying, Kind::Update, commit_lsn, &mut params)?;
        if let Some(statement) = self.updates.get(&given) {
            return Ok((Arc::clone(statement), params));
        }
        let statement = Statement::new(self.update_text(&given));
        if self.updates.len() >= UPDATE_FORMS_MAX {
            self.updates.clear();
        }
        self.updates.insert(given, Arc::clone(&statement));
        Ok((statement, params))
    }

    /// The values of `columns`, which are indexes into the relation's, ascending.
    pub(super) fn values(
        &self,
        tuple: &Tuple,
        columns: &[usize],
        kind: Kind,
        commit_lsn: CommitLsn,
    ) -> Result<Vec<Option<Bytes>>, PlanError> {
        let mut params = Vec::with_capacity(columns.len() + self.key.len());
        let mut wanted = columns.iter().copied().peekable();
        for (index, value) in tuple.columns().enumerate() {
            if wanted.peek() != Some(&index) {
                continue;
            }
            wanted.next();
            params.push(match value {
                TupleValue::Null => None,
                TupleValue::Text(_) => tuple.value_bytes(value),
                TupleValue::Binary(_) => return Err(PlanError::Binary(self.table.name.clone())),
                TupleValue::Unchanged => {
                    let (table, column) =
                        (self.table.name.clone(), self.relation.columns[index].name.clone());
                    return Err(PlanError::MissingValue { table, kind, commit_lsn, column });
                }
            });
        }
        Ok(params)
    }

    /// The columns that an update gives: all that came, less those that the target computes, and less the key where
    /// it did not change.
    fn given(&self, old: Option<&OldTuple>, new: &Tuple) -> Vec<usize> {
        let replaces = self.replaces(old, new);
        let mut given = Vec::with_capacity(self.writes.len());
        for (index, value) in new.columns().enumerate() {
            let wanted = match self.writes[index] {
                Write::Never => false,
                Write::Always => replaces || old.is_some() || !self.in_key(index),
                Write::InsertOnly => replaces,
            };
            if wanted && !matches!(value, TupleValue::Unchanged) {
                given.push(index);
            }
        }
        given
    }

    /// Whether an update must be a delete and an insert, since a column may change that `UPDATE` cannot set. One in
    /// the key changes only where the old key came along and is another; one outside the key may change at any
    /// update, unless the whole old row came along and says otherwise.
    fn replaces(&self, old: Option<&OldTuple>, new: &Tuple) -> bool {
        let insert_only = |index: &usize| self.writes[*index] == Write::InsertOnly;
        (0..self.writes.len()).filter(insert_only).any(|index| match old {
            None => !self.in_key(index),
            Some(OldTuple::Key(_)) if !self.in_key(index) => true,
            Some(OldTuple::Key(old) | OldTuple::Full(old)) => {
                let value = |tuple| Tuple::columns(tuple).nth(index).and_then(TupleValue::bytes);
                value(old) != value(new)
            }
        })
    }

    pub(super) fn in_key(&self, index: usize) -> bool {
        self.key.iter().any(|(key, _)| *key == index)
    }

    fn update_text(&self, given: &[usize]) -> crate::pg::Sql {
        let (table, key) = (&self.table.name, self.named_key());
        let new = names(&self.relation, given);
        if given.is_empty() {
            return statements::touch(table, &key);
        }
        if !given.iter().any(|&index| self.writes[index] == Write::InsertOnly) {
            return statements::update(table, &new, &key);
        }
        // Also columns that only the target has are kept.
        let announced = |name: &str| self.relation.columns.iter().position(|column| column.name == name);
        let kept = self.table.columns.iter().filter(|column| !column.generated);
        let kept = kept.filter(|column| announced(&column.name).is_none_or(|index| !given.contains(&index)));
        let kept: Vec<&str> = kept.map(|column| column.name.as_str()).collect();
        statements::replace(table, &new, &kept, &key)
    }

    pub(super) fn push_key(
        &self,
        tuple: &Tuple,
        kind: Kind,
        commit_lsn: CommitLsn,
        params: &mut Vec<Option<Bytes>>,
    ) -> Result<(), PlanError> {
        if self.key.is_empty() {
            return Err(self.no_identity(kind));
        }
        let mut wanted = self.key.iter().peekable();
        for (index, value) in tuple.columns().enumerate() {
            let Some((_, by)) = wanted.next_if(|(key, _)| *key == index) else { continue };
            params.push(match value {
                TupleValue::Text(_) => tuple.value_bytes(value),
                TupleValue::Null if *by == Match::SameText => None,
                TupleValue::Binary(_) => return Err(PlanError::Binary(self.table.name.clone())),
                TupleValue::Null | TupleValue::Unchanged => {
                    let (table, column) =
                        (self.table.name.clone(), self.relation.columns[index].name.clone());
                    return Err(PlanError::MissingValue { table, kind, commit_lsn, column });
                }
            });
        }
        Ok(())
    }

    pub(super) fn named_key(&self) -> Vec<(&str, Match)> {
        let name = |index: usize| self.relation.columns[index].name.as_str();
        self.key.iter().map(|(index, by)| (name(*index), by.clone())).collect()
    }

    fn no_identity(&self, kind: Kind) -> PlanError {
        PlanError::NoIdentity { table: self.table.name.clone(), kind }
    }
}

impl TargetTable {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// What is done with a column's values.
fn write(column: &Column, table: &TargetTable, types: &TypeNames) -> Result<Write, ShapeError> {
    let named = || (table.name.clone(), column.name.clone());
    let Some(target) = table.column(&column.name) else {
        let (table, column) = named();
        return Err(ShapeError::NoColumn { table, column });
    };
    if target.generated {
        return Ok(Write::Never);
    }
    if !target.of.same_as(column, types.get(&column.type_oid)) {
        let (table, column) = named();
        return Err(ShapeError::Type { table, column });
    }
    Ok(if target.identity_always { Write::InsertOnly } else { Write::Always })
}

/// What identifies a row. With REPLICA IDENTITY FULL the whole old row comes along, so the target's own key serves
/// if the source sends it, and else the text of every column. Both together where the key is deferrable: in the middle of
/// a transaction several rows may have it, of which the others tell the one that is meant; it is still there to find
/// them by its index.
fn key(relation: &Relation, table: &TargetTable) -> Result<Vec<(usize, Match)>, ShapeError> {
    let position = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    let full = relation.identity == ReplicaIdentity::Full;
    let identity: Vec<usize> = if full {
        let own: Option<Vec<usize>> = table.key.iter().map(position).collect();
        let mut own = own.unwrap_or_default();
        own.sort_unstable();
        own
    } else {
        (0..relation.columns.len()).filter(|&index| relation.columns[index].key).collect()
    };
    let by_text = |index: usize| {
        let column = table.column(&relation.columns[index].name);
        column.is_some_and(|column| !column.generated).then_some((index, Match::SameText))
    };
    let whole_row = full && (identity.is_empty() || table.key_deferrable);
    let by_equality = |index: usize| {
        let name = &relation.columns[index].name;
        let missing = || ShapeError::NoEquality { table: table.name.clone(), column: name.clone() };
        let column = table.column(name).ok_or_else(missing)?;
        let operator = column.equality.clone().ok_or_else(missing)?;
        Ok((index, Match::Equal { operator, cast: column.cast.clone() }))
    };
    if whole_row {
        let by = |index: usize| {
            if identity.contains(&index) { Some(by_equality(index)) } else { by_text(index).map(Ok) }
        };
        return (0..relation.columns.len()).filter_map(by).collect();
    }
    identity.into_iter().map(by_equality).collect()
}

pub(super) fn names<'a>(relation: &'a Relation, indexes: &[usize]) -> Vec<&'a str> {
    indexes.iter().map(|&index| relation.columns[index].name.as_str()).collect()
}
