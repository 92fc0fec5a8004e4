//! Set form: a table's net changes as a few statements, whatever their number.
//!
//! Deletes, then updates by the columns that they give, then inserts. Deletes and updates join arrays of keys and values;
//! inserts are a COPY. Each statement fails if it does not touch as many rows as it should, so that nobody has to look
//! at the count before the commit.
//!
//! Not for set form, and why: see [`Reason`].

use std::sync::Arc;

use bytes::Bytes;

use super::literal::{Arrays, CopyText};
use super::net::{DoesNotFollow, Row};
use super::statements;
use super::table::{Carried, Shape, Write, names};
use super::{Input, Kind, PlanError, Reason, Statement, Step};
use crate::limits::{COPY_ROWS_MIN, SET_ROW_BYTES_MAX, SORT_ROWS_MIN, UPDATE_FORMS_MAX};
use crate::pg::CommitLsn;
use crate::proto::{OldTuple, Tuple, TupleValue};

impl From<DoesNotFollow> for Reason {
    fn from(_: DoesNotFollow) -> Self {
        Self::Sequence
    }
}

impl Shape {
    /// Takes a new row in; says why not.
    pub(super) fn gather_insert(&mut self, new: &Tuple, commit_lsn: CommitLsn) -> Result<(), Reason> {
        if self.written().is_empty() || new.has_unchanged() || new.has_binary() {
            return Err(Reason::Values);
        }
        small(new)?;
        if self.set.merges.is_ok() {
            if !self.set.net.has_key(new) {
                return Err(Reason::KeyChange);
            }
            self.set.net.insert(new)?;
        } else {
            self.set.net.append(new);
        }
        self.set.commit_lsn = commit_lsn;
        Ok(())
    }

    /// Takes a changed row in; says why not.
    pub(super) fn gather_update(
        &mut self,
        old: Option<&OldTuple>,
        new: &Tuple,
        commit_lsn: CommitLsn,
    ) -> Result<(), Reason> {
        self.set.updates?;
        if new.has_binary() {
            return Err(Reason::Values);
        }
        small(new)?;
        let net = &self.set.net;
        // A key that is TOASTed comes along although it did not change.
        let same = |old: &OldTuple| net.key_of(old.tuple()).eq(net.key_of(new));
        if !net.has_key(new) || !old.is_none_or(same) {
            return Err(Reason::KeyChange);
        }
        self.set.net.update(new)?;
        self.set.commit_lsn = commit_lsn;
        Ok(())
    }

    /// Takes a row that is gone in; says why not.
    pub(super) fn gather_delete(&mut self, old: &OldTuple, commit_lsn: CommitLsn) -> Result<(), Reason> {
        self.set.merges?;
        small(old.tuple())?;
        if !self.set.net.has_key(old.tuple()) {
            return Err(Reason::Values);
        }
        self.set.net.delete(old.tuple())?;
        self.set.commit_lsn = commit_lsn;
        Ok(())
    }

    pub(super) fn has_gathered(&self) -> bool {
        !self.set.net.is_empty()
    }

    /// Drops what was taken in.
    pub(super) fn forget_gathered(&mut self) {
        self.set.net.take();
    }

    /// Makes steps of what was taken in.
    pub(super) fn flush(&mut self, steps: &mut Vec<Step>) -> Result<(), PlanError> {
        if self.set.net.is_empty() {
            return Ok(());
        }
        let rows = self.set.net.take();
        let (mut deleted, mut inserted): (Vec<&Tuple>, Vec<&Tuple>) = (Vec::new(), Vec::new());
        let mut updated: Vec<(Vec<usize>, Vec<&Tuple>)> = Vec::new();
        for row in &rows {
            match row {
                Row::Inserted(new) => inserted.push(new),
                Row::Deleted(old) => deleted.push(old),
                Row::Replaced(new) if !self.set.replaces => {
                    deleted.push(new);
                    inserted.push(new);
                }
                Row::Updated(new) | Row::Replaced(new) => self.group(new, &mut updated),
                Row::Gone(_) => {}
            }
        }
        if !deleted.is_empty() {
            self.sort(&mut deleted);
            let statement = self.delete_set();
            steps.push(self.by_arrays(Kind::Delete, statement, &[], &deleted));
        }
        for (given, tuples) in &mut updated {
            self.sort(tuples);
            let statement = self.update_set(given);
            steps.push(self.by_arrays(Kind::Update, statement, given, tuples));
        }
        self.push_inserts(&inserted, steps)
    }

    /// Orders many rows as their index most likely does, so that neighbours on a page come one after the other. Numbers
    /// of any length are so, and texts of one length. A unique value that goes from row to row may find its new row first
    /// then: that fails, and goes on in the source's order.
    fn sort(&self, tuples: &mut [&Tuple]) {
        if tuples.len() >= SORT_ROWS_MIN {
            let net = &self.set.net;
            tuples.sort_by_cached_key(|tuple| {
                let values = net.key_of(tuple).filter_map(TupleValue::bytes);
                values.map(|bytes| (bytes.len(), bytes)).collect::<Vec<_>>()
            });
        }
    }

    /// Puts an update to those that give the same columns.
    fn group<'a>(&self, new: &'a Tuple, groups: &mut Vec<(Vec<usize>, Vec<&'a Tuple>)>) {
        let gives = |index: usize, value: TupleValue<'_>| {
            self.writes[index] == Write::Always
                && !self.in_key(index)
                && !matches!(value, TupleValue::Unchanged)
        };
        // Most often it is the first group's: all columns.
        let same = |given: &[usize]| {
            let wanted = new.columns().enumerate().filter(|(index, value)| gives(*index, *value));
            wanted.map(|(index, _)| index).eq(given.iter().copied())
        };
        match groups.iter_mut().find(|(given, _)| same(given)) {
            Some((_, tuples)) => tuples.push(new),
            None => {
                let given = new.columns().enumerate().filter(|(index, value)| gives(*index, *value));
                groups.push((given.map(|(index, _)| index).collect(), vec![new]));
            }
        }
    }

    /// A statement over arrays: the columns given, the key, and how many rows there are.
    fn by_arrays(&self, kind: Kind, statement: Arc<Statement>, given: &[usize], tuples: &[&Tuple]) -> Step {
        let mut places = vec![None; self.writes.len()];
        for (place, index) in self.carried_columns(given).enumerate() {
            places[index] = Some(place);
        }
        let mut arrays = Arrays::new(given.len() + self.key.len());
        for tuple in tuples {
            for (place, value) in places.iter().zip(tuple.columns()) {
                if let Some(place) = place {
                    arrays.push(*place, value.bytes());
                }
            }
        }
        let mut params = arrays.finish();
        params.push(Some(Bytes::from(tuples.len().to_string())));
        self.set_step(kind, statement, Input::Params(params))
    }

    fn push_inserts(&mut self, inserted: &[&Tuple], steps: &mut Vec<Step>) -> Result<(), PlanError> {
        if inserted.len() < COPY_ROWS_MIN {
            for new in inserted {
                let params = self.values(new, self.written(), Kind::Insert, self.set.commit_lsn)?;
                let statement = self.insert();
                steps.push(self.set_step(Kind::Insert, statement, Input::Params(params)));
            }
            return Ok(());
        }
        let mut text = CopyText::default();
        for new in inserted {
            for (write, value) in self.writes.iter().zip(new.columns()) {
                if *write != Write::Never {
                    text.push(value.bytes());
                }
            }
            text.end_row();
        }
        let statement = self.copy();
        steps.push(self.set_step(Kind::Insert, statement, Input::Copy(text.finish())));
        Ok(())
    }

    fn set_step(&self, kind: Kind, statement: Arc<Statement>, input: Input) -> Step {
        let (relation, commit_lsn) = (Arc::clone(&self.relation), self.set.commit_lsn);
        Step { statement, input, kind, relation, commit_lsn, rows: None, change: None }
    }

    fn copy(&mut self) -> Arc<Statement> {
        let (relation, written, name) = (&self.relation, &self.written, &self.table.name);
        let copy = || Statement::new(statements::copy(name, &names(relation, written)));
        Arc::clone(self.set.copy.get_or_insert_with(copy))
    }

    fn delete_set(&mut self) -> Arc<Statement> {
        if let Some(delete) = &self.set.delete {
            return Arc::clone(delete);
        }
        let delete =
            Statement::new(statements::delete_set(&self.table.name, &self.arrays(&[]), &self.named_key()));
        Arc::clone(self.set.delete.insert(delete))
    }

    fn update_set(&mut self, given: &[usize]) -> Arc<Statement> {
        if let Some(statement) = self.set.by_columns.get(given) {
            return Arc::clone(statement);
        }
        let (table, arrays, key) = (&self.table.name, self.arrays(given), self.named_key());
        let statement = Statement::new(if given.is_empty() {
            statements::touch_set(table, &arrays, &key)
        } else {
            statements::update_set(table, &names(&self.relation, given), &arrays, &key)
        });
        if self.set.by_columns.len() >= UPDATE_FORMS_MAX {
            self.set.by_columns.clear();
        }
        self.set.by_columns.insert(given.to_vec(), Arc::clone(&statement));
        statement
    }

    /// The types of the arrays for the columns given and the key.
    fn arrays(&self, given: &[usize]) -> Vec<statements::Array<'_>> {
        let of = |index: usize| {
            let column = self.table.column(&self.relation.columns[index].name)?;
            Some(statements::Array { of: &column.of.name, as_text: column.carried == Carried::AsText })
        };
        self.carried_columns(given).filter_map(of).collect()
    }

    /// The columns of a statement's arrays, in their order: those given, then the key.
    fn carried_columns(&self, given: &[usize]) -> impl Iterator<Item = usize> {
        given.iter().copied().chain(self.key_columns())
    }
}

/// A large row is not put together with others: arrays and COPY would hold it several times.
fn small(tuple: &Tuple) -> Result<(), Reason> {
    if tuple.byte_len() <= SET_ROW_BYTES_MAX { Ok(()) } else { Err(Reason::Large) }
}
