//! Findings about what was made, changed or dropped on the source beside its tables since the migration began.

use super::report::counted;
use super::{Finding, PreflightInput, Report, Sides};
use crate::config::Method;
use crate::error::{Failure, Result, Side};
use crate::migrate::Phase;
use crate::migrate::schema_drift::{Look, NOT_RECORDED};
use crate::store::Store;

const ID: &str = "source-schema-drift";

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    if !input.resuming || !input.target_database_exists {
        return;
    }
    match look(sides, input).await {
        Ok(found) => found.into_iter().for_each(|finding| report.push(finding)),
        Err(Failure::Definite(definite)) => {
            report.push(Finding::fail(ID, "schema", format!("{}: {}", definite.cause, definite.detail)));
        }
        Err(Failure::Transient(transient)) => {
            let side = transient.side;
            report.push(Finding::unreachable(side, &transient.into()));
        }
    }
}

async fn look(sides: &Sides<'_>, input: &PreflightInput) -> Result<Vec<Finding>> {
    let database = &sides.source_facts.database;
    let store = Store::new(sides.target, &input.migration);
    let row = store.begun().await?;
    let phase = row.filter(|row| row.method == Method::Replication).map(|row| row.phase);
    // Before the schema is made there is nothing to compare with; after the cutover the source is what it may be.
    if phase.is_none_or(|phase| matches!(phase, Phase::Schema | Phase::Done)) {
        return Ok(Vec::new());
    }
    let (source, target, filter) = (sides.source, sides.target, &input.tables);
    let look = Look { source, target, store, filter, dbname: database };
    let subject = format!("indexes, views and functions of database {database}");
    let Some(drift) = look.drift().await? else {
        return Ok(vec![Finding::info(ID, subject, NOT_RECORDED)]);
    };
    if drift.is_empty() {
        let cause = format!("the {} has what was made and changed on the {}", Side::Target, Side::Source);
        return Ok(vec![Finding::ok(ID, subject, cause)]);
    }
    let count = counted(drift.len(), "object");
    let finding = |drift: &crate::store::SchemaDrift| {
        let cause = format!(
            "{} on the source since the start, and not on the target: {count} like this; cutover is refused",
            drift.change.as_str()
        );
        Finding::warning(ID, drift.object.clone(), cause).hint(drift.statement.clone())
    };
    Ok(drift.iter().map(finding).collect())
}
