//! TRUNCATE, which PostgreSQL refuses for a table that another one refers to unless both are emptied at once, whatever
//! `session_replication_role` is.
//!
//! The source sends the tables that it emptied and publishes. On the target others may refer to them whose rows stay: one
//! that the source does not publish (unlogged, left out), one whose copy holds the TRUNCATE already, one that only the
//! target has; and for partitions the partitioned table, which is never sent. Then DELETE empties them. The foreign keys
//! do not act on that, and what the other tables hold is not for this TRUNCATE to say. Sequences are not restarted then:
//! they are brought over by themselves.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Input, Kind, PlanError, Planner, Statement, Step, statements};
use crate::assemble::{Change, Segment};
use crate::pg::{CommitLsn, QualifiedName, Relation};

/// A foreign key of the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableReference {
    /// The table that has it.
    pub from: QualifiedName,
    /// The table that it refers to.
    pub to: QualifiedName,
}

impl Planner {
    /// The tables of the target that `segment` empties, as far as they are known: [`Planner::learn_references`] wants to be
    /// told who refers to them, each time anew.
    pub fn emptied(&self, segment: &Segment) -> Vec<QualifiedName> {
        let truncated = segment.changes.iter().filter_map(|change| match change {
            Change::Truncate { relations, .. } => Some(relations),
            Change::Insert { .. } | Change::Update { .. } | Change::Delete { .. } => None,
        });
        let named = truncated.flatten().filter_map(|relation| self.tables.get(&relation.id));
        let names: HashSet<&QualifiedName> = named.map(|table| &table.name).collect();
        names.into_iter().cloned().collect()
    }

    /// Takes who refers to the tables that are emptied, in place of what was said before.
    pub fn learn_references(&mut self, references: Vec<TableReference>) {
        self.references = references;
    }

    pub(super) fn truncate(
        &mut self,
        commit_lsn: CommitLsn,
        relations: &[Arc<Relation>],
        restart_identity: bool,
    ) -> Result<(), PlanError> {
        let mut emptied = Vec::with_capacity(relations.len());
        for relation in relations {
            if self.fits(relation, commit_lsn)?
                && let Some(shape) = self.shapes.get(&relation.id)
            {
                emptied.push((relation, shape.table().name.clone()));
            }
        }
        if emptied.is_empty() {
            return Ok(());
        }
        let mut truncated: HashSet<&QualifiedName> = emptied.iter().map(|(_, name)| name).collect();
        // What is left to DELETE is one that others are not truncated with.
        while let Some(kept) = self
            .references
            .iter()
            .find(|reference| truncated.contains(&reference.to) && !truncated.contains(&reference.from))
        {
            truncated.remove(&kept.to);
        }
        let step = |relation: &Arc<Relation>, sql| Step {
            statement: Statement::new(sql),
            input: Input::Params(Vec::new()),
            kind: Kind::Truncate,
            relation: Arc::clone(relation),
            commit_lsn,
            rows: None,
            change: None,
        };
        let (at_once, one_by_one): (Vec<_>, Vec<_>) =
            emptied.iter().partition(|(_, name)| truncated.contains(name));
        let deletes = one_by_one.iter().map(|(relation, name)| step(relation, statements::delete_all(name)));
        self.plan.steps.extend(deletes);
        if let Some((first, _)) = at_once.first() {
            let names: Vec<&QualifiedName> = at_once.iter().map(|(_, name)| name).collect();
            let restart_identity = restart_identity && !self.keeps_sequences;
            self.plan.steps.push(step(first, statements::truncate(&names, restart_identity)));
        }
        self.plan.changes[Kind::Truncate as usize] += 1;
        Ok(())
    }
}
