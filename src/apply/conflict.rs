//! Changes that do not fit the target's rows.
//!
//! Each is described without its values for logs and errors, and with them in `walferry.conflict`, where only the
//! target's own people can read them. What was resolved is recorded in the transaction that resolved it.

use tokio_postgres::types::PgLsn;

use crate::catalog::TargetClient;
use crate::config::OnConflict;
use crate::error::{Definite, Failure};
use crate::pg::{CommitLsn, QualifiedName};
use crate::plan::{Kind, NamedValues, Step};
use crate::store::record_conflict;
use crate::wire::ServerError;

/// A change that does not fit.
#[derive(Debug)]
pub struct Conflict {
    /// What does not fit.
    pub kind: ConflictKind,
    pub(super) commit_lsn: CommitLsn,
    pub(super) table: QualifiedName,
    detail: String,
    hint: &'static str,
    statement: String,
    rows: Rows,
}

/// What does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConflictKind {
    /// The target has the row that is new, or another one with its value in a unique index.
    InsertExists,
    /// The target lacks the row that changed.
    UpdateMissing,
    /// The target lacks the row that is gone.
    DeleteMissing,
    /// The change touched another number of rows than one.
    MultipleRows,
    /// The target refuses the row.
    Refused,
}

/// What became of a change that did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolution {
    /// Nothing: the migration stopped before it.
    Stopped,
    /// The target has what the source has.
    SourceWon,
    /// It was left out.
    Skipped,
}

/// The rows of a conflict, as JSON objects of the values' text.
#[derive(Default)]
struct Rows {
    key: Option<String>,
    source: Option<String>,
    target: Option<String>,
}

/// Which rows there are, not what is in them.
impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, source, target } = self;
        write!(f, "Rows({}, {}, {})", key.is_some(), source.is_some(), target.is_some())
    }
}

impl ConflictKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::InsertExists, Self::UpdateMissing, Self::DeleteMissing, Self::MultipleRows, Self::Refused];

    /// As metrics and `walferry.conflict` have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateMissing => "update_missing",
            Self::DeleteMissing => "delete_missing",
            Self::MultipleRows => "multiple_rows",
            Self::Refused => "refused",
        }
    }
}

impl Resolution {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::SourceWon => "source-wins",
            Self::Skipped => "skipped",
        }
    }
}

impl Conflict {
    /// A step that touched another number of rows than one.
    pub(super) fn row_count(step: &Step, rows: u64) -> Self {
        let kind = match (step.kind, rows) {
            (Kind::Update, 0) => ConflictKind::UpdateMissing,
            (Kind::Delete, 0) => ConflictKind::DeleteMissing,
            _ => ConflictKind::MultipleRows,
        };
        Self::new(step, kind, format!("{} touched {rows} rows instead of 1", step.kind.as_str()))
    }

    /// A step that the target refused.
    pub(super) fn refused(step: &Step, error: &ServerError) -> Self {
        let unique = error.sqlstate() == "23505";
        let kind = if unique { ConflictKind::InsertExists } else { ConflictKind::Refused };
        Self { hint: hint(error.sqlstate()), ..Self::new(step, kind, error.to_string()) }
    }

    fn new(step: &Step, kind: ConflictKind, detail: String) -> Self {
        Self {
            kind,
            commit_lsn: step.commit_lsn,
            table: step.relation.name.clone(),
            detail,
            hint: MEND_ROW,
            statement: step.statement.sql.to_string(),
            rows: Rows::default(),
        }
    }

    /// The change's key, and its row as the source has it.
    pub(super) fn is_of(&mut self, key: &NamedValues, source: &NamedValues) {
        (self.rows.key, self.rows.source) = (json(key), json(source));
    }

    /// The target's row that is in its way.
    pub(super) fn found(&mut self, target: Option<&NamedValues>) {
        self.rows.target = target.and_then(json);
    }

    /// What does not fit, without values.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// Why a policy other than to stop does not resolve it.
    pub(super) fn unresolved(mut self, policy: OnConflict, why: &str) -> Self {
        if policy != OnConflict::Stop {
            self.detail = format!("{}; --on-conflict {} stops here: {why}", self.detail, policy.as_str());
        }
        self
    }

    /// The parameters of [`record_conflict`].
    pub(super) fn params(&self, migration: &str, resolution: Resolution) -> [Option<String>; 10] {
        let Self { kind, commit_lsn, table, statement, rows, .. } = self;
        [
            Some(migration.to_owned()),
            Some(PgLsn::from(commit_lsn.get()).to_string()),
            Some(table.schema.clone()),
            Some(table.name.clone()),
            Some(kind.as_str().to_owned()),
            Some(resolution.as_str().to_owned()),
            Some(statement.clone()),
            rows.key.clone(),
            rows.source.clone(),
            rows.target.clone(),
        ]
    }

    /// Puts the change that stopped the migration into `walferry.conflict`, for the operator to look at.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn record(&self, client: &TargetClient, migration: &str) -> Result<(), tokio_postgres::Error> {
        let params = self.params(migration, Resolution::Stopped);
        let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            params.iter().map(|param| param as _).collect();
        client.execute(record_conflict().as_str(), &params).await.map(|_| ())
    }

    /// The failure that the operator sees.
    pub fn into_failure(self) -> Failure {
        let Self { kind, commit_lsn, table, detail, hint, .. } = self;
        Definite::new(format!("conflict ({}) in table {table} at {commit_lsn}", kind.as_str()))
            .detail(detail)
            .hint(format!(
                "nothing was skipped; look at the change on the target: SELECT * FROM walferry.conflict ORDER BY id \
                 DESC LIMIT 1; {hint}, then run `walferry migrate` again"
            ))
            .into()
    }
}

/// An object of the values' text; `None` without values. Columns keep their order.
fn json(values: &NamedValues) -> Option<String> {
    if values.is_empty() {
        return None;
    }
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let pair = |(name, value): &(String, Option<bytes::Bytes>)| {
        let value = value.as_ref().map_or("null".to_owned(), |value| quoted(&String::from_utf8_lossy(value)));
        format!("{}: {value}", quoted(name))
    };
    Some(format!("{{{}}}", values.iter().map(pair).collect::<Vec<_>>().join(", ")))
}

const MEND_ROW: &str = "mend the target's row";

/// What to do about a value, or a row, that the target refuses. An enum's new label, a wider domain or a dropped
/// constraint makes no announcement in the stream.
fn hint(sqlstate: &str) -> &'static str {
    match sqlstate {
        "22P02" | "22001" | "22003" | "42704" | "42883" => {
            "the target's type lacks what the source's has: make the type there what it is on the source (ALTER TYPE with \
             ADD VALUE for a new label, ALTER TABLE with ALTER COLUMN and TYPE for a longer or wider one)"
        }
        "22021" | "22P05" => {
            "it holds text that the target's encoding cannot hold: mend the row on the source, start afresh with \
             `walferry remove --force`"
        }
        "23502" => {
            "the target's column is NOT NULL and the source's is not: ALTER TABLE with ALTER COLUMN and DROP NOT NULL there"
        }
        "23514" | "23P01" => {
            "the target's constraint is not the source's: make it there what it is on the source (ALTER TABLE \
             with DROP CONSTRAINT, or ALTER DOMAIN); `walferry check` prints what differs"
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

    #[test]
    fn rows_as_json() {
        let named =
            |name: &str, value: Option<&'static str>| (name.to_owned(), value.map(bytes::Bytes::from));
        assert_eq!(json(&Vec::new()), None);
        let row = vec![named("b \"x\"", Some("1\n\\")), named("a", None)];
        assert_eq!(json(&row).as_deref(), Some(r#"{"b \"x\"": "1\n\\", "a": null}"#));
    }
}
