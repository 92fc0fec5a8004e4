//! What goes wrong on the target, and what the operator is to do.

use crate::error::{Definite, Failure, Side};
use crate::plan::{Kind, PlanError, Step};
use crate::wire::{self, PipelineError, ServerError};

use super::{Applier, Conflict, Stopped};

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

impl From<Conflict> for ApplyError {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict(Box::new(conflict))
    }
}

impl From<Definite> for ApplyError {
    fn from(definite: Definite) -> Self {
        Self::Failure(definite.into())
    }
}

impl Applier {
    /// Steps that were looked at failed: `skipped` executes come before the first of them.
    pub(super) fn stopped(&self, steps: &[Step], skipped: usize, error: PipelineError) -> Stopped {
        let place = error.execute.and_then(|execute| execute.checked_sub(skipped));
        let step = place.and_then(|place| steps.get(place)).filter(|_| !is_of_the_server(&error.error));
        match (step, error.error.server()) {
            (Some(step), Some(server)) if step.kind == Kind::Alter => not_altered(step, server).into(),
            (Some(step), Some(_)) => Stopped::Step(step.relation.id),
            (Some(_), None) | (None, _) => self.failed_around_steps(error.error).into(),
        }
    }

    /// What goes around the steps failed. One statement of it divides by zero, if the position is not as it was left.
    pub(super) fn failed_around_steps(&self, error: wire::Error) -> Failure {
        if error.server().is_none_or(|error| error.sqlstate() != DIVISION_BY_ZERO) {
            return target_failed(error);
        }
        let migration = self.target.migration();
        Definite::new("another engine moved the migration's position")
            .detail(format!("walferry.progress of migration {migration:?} is not where this engine left it"))
            .hint("make sure that one engine runs, then run `walferry migrate` again")
            .into()
    }
}

/// Whether the server's state brought it about, and not the rows: then it is no conflict, whether it may pass or not.
pub(super) fn is_of_the_server(error: &wire::Error) -> bool {
    error.is_transient() || error.server().is_some_and(ServerError::is_of_the_server)
}

pub(super) fn target_failed(error: wire::Error) -> Failure {
    error.into_failure(Side::Target)
}

/// The failure of a column that the target does not add.
pub(super) fn not_altered(step: &Step, error: &ServerError) -> Failure {
    Definite::new(format!("the target refuses a column that was added to table {}", step.relation.name))
        .detail(format!("{error}; nothing was skipped"))
        .hint(format!(
            "the target's reason is above; mend that there, or run yourself: {}; then run `walferry migrate` again",
            step.statement.sql
        ))
        .into()
}

/// The failure that a change without a right statement is.
pub(super) fn not_planned(error: &PlanError) -> Failure {
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

const DIVISION_BY_ZERO: &str = "22012";
