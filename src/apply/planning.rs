//! What the planner has to be told, and what it says.

use std::collections::{HashMap, HashSet};

use crate::assemble::Segment;
use crate::error::{Failure, Result};
use crate::pg::{Relation, RelationId};
use crate::plan::{Form, Plan, PlanError, Reason, Step, TargetTable};

use super::Applier;
use super::ddl::{self, Misfit, Remedy};
use super::failure::not_planned;

/// What of a batch is planned.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) form: Form,
    /// Segments, from the first on.
    pub(super) segments: usize,
    /// Why not all of them.
    pub(super) stopped: Option<Failure>,
    /// What was altered in the same transaction by batches before this one.
    pub(super) altered_before: HashMap<RelationId, TargetTable>,
}

impl Applier {
    /// Plans whole segments, up to one that cannot be applied.
    ///
    /// # Errors
    /// Transient ones.
    pub(super) async fn plan(&mut self, segments: &[Segment], form: Form) -> Result<Planned> {
        let altered = self.altered.clone();
        self.planner.begin(form);
        for (index, segment) in segments.iter().enumerate() {
            match self.plan_segment(segment).await {
                Ok(()) => {}
                Err(Failure::Definite(definite)) => {
                    // Those before it once more, without what was planned of this one.
                    self.undo(altered);
                    let before = Box::pin(self.plan(&segments[..index], form)).await?;
                    let stopped = before.stopped.or(Some(definite.into()));
                    return Ok(Planned { stopped, ..before });
                }
                Err(transient) => return Err(transient),
            }
        }
        let triggers = segments.iter().any(|segment| self.planner.has_triggers(segment));
        if triggers && form == Form::Set {
            self.undo(altered);
            let mut planned = Box::pin(self.plan(segments, Form::Ordered)).await?;
            planned.plan.ordered = Some(Reason::Triggers);
            return Ok(planned);
        }
        let plan = self.planner.finish().map_err(|error| not_planned(&error))?;
        Ok(Planned { plan, form, segments: segments.len(), stopped: None, altered_before: altered })
    }

    /// Goes back to what was altered before; what is known of the other tables is forgotten.
    pub(super) fn undo(&mut self, altered: HashMap<RelationId, TargetTable>) {
        for (id, table) in std::mem::replace(&mut self.altered, altered) {
            if self.altered.get(&id) != Some(&table) {
                self.planner.forget(id);
            }
        }
    }

    async fn plan_segment(&mut self, segment: &Segment) -> Result<()> {
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
        let emptied = self.planner.emptied(segment);
        if !emptied.is_empty() {
            self.planner.learn_references(self.tables.references_to(&emptied).await?);
        }
        let (mut next, mut asked) = (0, HashSet::new());
        while let Err(error) = self.planner.plan(segment, &mut next) {
            let PlanError::Shape { relation, error: shape } = &error else { return Err(not_planned(&error)) };
            let Some(table) = self.planner.table(relation.id) else { return Err(not_planned(&error)) };
            // It may have been made to fit since it was looked at; what this transaction alters nobody else sees.
            if !self.altered.contains_key(&relation.id) && asked.insert(relation.id) {
                let now = self.tables.of(relation, segment.commit_lsn).await?;
                if now != **table {
                    self.planner.learn(relation.id, now);
                    continue;
                }
            }
            let misfit = Misfit {
                error: shape,
                relation,
                table,
                changed_before: self.planner.changed_before(segment, next, relation.id),
            };
            match ddl::remedy(&self.tables, self.planner.types(), &misfit, self.options.follow_ddl).await? {
                Remedy::Stop(failure) => return Err(failure),
                Remedy::Accept(table) => self.planner.learn(relation.id, table),
                Remedy::Alter(statements, table) => {
                    for sql in statements {
                        let step = Step::alter(sql, relation, segment.commit_lsn);
                        self.planner.push(step).map_err(|error| not_planned(&error))?;
                    }
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
}
