//! Changes that do not fit the target's rows.
//!
//! The policy is to stop: nothing is skipped, the change is described without its values, and its parameters are put
//! into `walferry.conflict`, where only the target's own people can read them.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::error::{Definite, Failure};
use crate::pg::{CommitLsn, QualifiedName};
use crate::plan::{Input, Kind, Step};
use crate::wire::ServerError;

/// A change that does not fit.
#[derive(Debug)]
pub struct Conflict {
    /// What does not fit, as metrics have it.
    pub kind: &'static str,
    commit_lsn: CommitLsn,
    table: QualifiedName,
    detail: String,
    hint: &'static str,
    statement: String,
    parameters: Vec<Option<String>>,
}

impl Conflict {
    /// A step that touched another number of rows than one.
    pub(super) fn row_count(step: &Step, rows: u64) -> Self {
        let kind = match (step.kind, rows) {
            (Kind::Update, 0) => "update_missing",
            (Kind::Delete, 0) => "delete_missing",
            _ => "multiple_rows",
        };
        Self::new(step, kind, format!("{} touched {rows} rows instead of 1", step.kind.as_str()))
    }

    /// A step that the target refused.
    pub(super) fn refused(step: &Step, error: &ServerError) -> Self {
        let kind = if error.sqlstate() == "23505" { "insert_exists" } else { "refused" };
        Self { hint: hint(error.sqlstate()), ..Self::new(step, kind, error.to_string()) }
    }

    fn new(step: &Step, kind: &'static str, detail: String) -> Self {
        let text = |value: &bytes::Bytes| String::from_utf8_lossy(value).into_owned();
        let params = match &step.input {
            Input::Params(params) => &params[..],
            // Never the last word: the rows are inserted one by one then.
            Input::Copy(_) => &[],
        };
        Self {
            kind,
            commit_lsn: step.commit_lsn,
            table: step.relation.name.clone(),
            detail,
            hint: MEND_ROW,
            statement: step.statement.sql.to_string(),
            parameters: params.iter().map(|value| value.as_ref().map(text)).collect(),
        }
    }

    /// Puts the change into `walferry.conflict`, for the operator to look at.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn record(&self, client: &Client, migration: &str) -> Result<(), tokio_postgres::Error> {
        let sql = "INSERT INTO walferry.conflict
                       (migration, commit_lsn, schema_name, table_name, kind, parameters, statement)
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let lsn = PgLsn::from(self.commit_lsn.get());
        let (schema, table) = (&self.table.schema, &self.table.name);
        client
            .execute(sql, &[&migration, &lsn, schema, table, &self.kind, &self.parameters, &self.statement])
            .await
            .map(|_| ())
    }

    /// The failure that the operator sees.
    pub fn into_failure(self) -> Failure {
        let Self { kind, commit_lsn, table, detail, hint, .. } = self;
        Definite::new(format!("conflict ({kind}) in table {table} at {commit_lsn}"))
            .detail(detail)
            .hint(format!(
                "nothing was skipped; look at the change on the target: SELECT * FROM walferry.conflict ORDER BY id \
                 DESC LIMIT 1; {hint}, then run `walferry migrate` again"
            ))
            .into()
    }
}

const MEND_ROW: &str = "mend the target's row";

/// What to do about a value, or a row, that the target refuses. An enum's new label, a wider domain or a dropped
/// constraint makes no announcement in the stream.
fn hint(sqlstate: &str) -> &'static str {
    match sqlstate {
        "22P02" | "22001" | "22003" | "42704" | "42883" => {
            "the target's type lacks what the source's has: make the type there what it is on the source (a new label: \
             ALTER TYPE … ADD VALUE …; a longer or wider one: ALTER TABLE … ALTER COLUMN … TYPE …)"
        }
        "22021" | "22P05" => {
            "it holds text that the target's encoding cannot hold: mend the row on the source, start afresh with \
             `walferry remove --force`"
        }
        "23502" => {
            "the target's column is NOT NULL and the source's is not: ALTER TABLE … ALTER COLUMN … DROP NOT NULL there"
        }
        "23514" | "23P01" => {
            "the target's constraint is not the source's: make it there what it is on the source (ALTER TABLE … DROP \
             CONSTRAINT …, ALTER DOMAIN …)"
        }
        _ => MEND_ROW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints() {
        #[track_caller]
        fn check(sqlstate: &str, expected: &str) {
            assert!(hint(sqlstate).contains(expected), "{sqlstate}: {}", hint(sqlstate));
        }
        check("22P02", "ADD VALUE");
        check("22001", "ALTER COLUMN");
        check("22003", "ALTER COLUMN");
        check("42704", "what it is on the source");
        check("23502", "DROP NOT NULL");
        check("23514", "CONSTRAINT");
        check("23505", "mend the target's row");
        check("23503", "mend the target's row");
    }
}
