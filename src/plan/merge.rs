//! Fewer steps to the same end.
//!
//! Within one target transaction, and without triggers, steps of different tables do not see each other: so each
//! table's steps are put together, in their order. Of several updates of one row by the same statement the last one
//! says it all. Inserts that follow each other go many to a statement.
//!
//! The end is the same if every step succeeds. One may fail that would not in the source's order, where a value of a
//! unique index is handed from row to row: whoever executes the steps then falls back to the steps as they were.
//!
//! Barriers: TRUNCATE and an altered table, for all tables; a change of a key, or a row found by all its columns, for its table.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Kind, Statement, Step};
use crate::pg::RelationId;

/// Rows of an INSERT of many: few enough that the target's executor needs no memory that it would give back after each.
pub const INSERT_ROWS: usize = 8;

/// One table's steps since the last barrier.
#[derive(Debug, Default)]
struct Group {
    steps: Vec<Step>,
    /// By key: the place of the last update of that row.
    latest: HashMap<Vec<Option<Bytes>>, usize>,
}

/// Makes fewer steps of `steps`, to be executed in one transaction.
pub fn merge(steps: Vec<Step>) -> Vec<Step> {
    let mut merged = Vec::with_capacity(steps.len());
    let mut groups: Vec<Group> = Vec::new();
    let mut places: HashMap<RelationId, usize> = HashMap::new();
    for step in steps {
        if matches!(step.kind, Kind::Truncate | Kind::Alter) {
            flush(&mut groups, &mut merged);
            places.clear();
            merged.push(step);
            continue;
        }
        let place = *places.entry(step.relation.id).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        groups[place].push(step);
    }
    flush(&mut groups, &mut merged);
    merged
}

fn flush(groups: &mut Vec<Group>, merged: &mut Vec<Step>) {
    for group in groups.drain(..) {
        gather_inserts(group.steps, merged);
    }
}

impl Group {
    fn push(&mut self, step: Step) {
        let key = step.key.map(|length| step.params[step.params.len() - length..].to_vec());
        match (step.kind, key) {
            (Kind::Insert | Kind::Truncate | Kind::Alter, _) => {}
            (Kind::Update, Some(key)) => {
                if let Some(&place) = self.latest.get(&key)
                    && Arc::ptr_eq(&self.steps[place].statement, &step.statement)
                {
                    self.steps[place] = step;
                    return;
                }
                self.latest.insert(key, self.steps.len());
            }
            (Kind::Delete, Some(key)) => {
                self.latest.remove(&key);
            }
            (Kind::Update | Kind::Delete, None) => self.latest.clear(),
        }
        self.steps.push(step);
    }
}

/// Puts runs of one INSERT into statements of [`INSERT_ROWS`] rows; what is left over stays single.
fn gather_inserts(steps: Vec<Step>, merged: &mut Vec<Step>) {
    let mut run: Vec<Step> = Vec::new();
    for step in steps {
        let continues = run.last().is_none_or(|last| Arc::ptr_eq(&last.statement, &step.statement));
        if !continues || step.statement.many.is_none() {
            merged.append(&mut run);
        }
        let many: Option<Arc<Statement>> = step.statement.many.clone();
        run.push(step);
        if let Some(many) = many.filter(|_| run.len() == INSERT_ROWS) {
            merged.extend(together(&mut run, many));
        }
    }
    merged.append(&mut run);
}

fn together(run: &mut Vec<Step>, many: Arc<Statement>) -> Option<Step> {
    let rows = run.len() as u64;
    let mut steps = run.drain(..);
    let mut all = steps.next()?;
    all.params.extend(steps.flat_map(|step| step.params));
    Some(Step { statement: many, rows: Some(rows), ..all })
}

#[cfg(test)]
mod tests;
