//! The sessions that write, and what goes with the rows in their transactions.

use crate::apply::become_replica;
use crate::config::Secret;
use crate::error::{Failure, Result, Side, Transient};
use crate::pg::Sql;
use crate::store::apply_role::{HOLD_ATTEMPT, RECORD_COPY};
use crate::store::{RelationRow, attempt_lock, definition_text, set_relation};
use crate::wire::{self, Outcome, Pipeline, Session, SessionOptions};

use super::Copy;
use crate::migrate::objects::{statements_until, unhurried};

impl Copy {
    pub(super) async fn writing_session(&self) -> Result<Session> {
        let options = SessionOptions { settings: unhurried(), ..SessionOptions::new("walferry copy") };
        let mut session = self.writer.connect(&options).await?;
        if let Some(deadline) = self.deadline {
            session.execute(&statements_until(deadline)).await.map_err(failed)?;
        }
        if self.as_replica {
            become_replica(&mut session, self.writer.key().is_some()).await?;
        }
        Ok(session)
    }

    /// Records what became of a table, in the transaction that has its rows.
    pub(super) async fn record(&self, target: &mut Session, row: &RelationRow) -> Result<()> {
        match self.writer.key() {
            None => target.execute(&set_relation(&self.migration, row)).await.map_err(failed),
            Some(key) => ask(target, RECORD_COPY, &self.recorded(key, row)).await.map(|_| ()),
        }
    }

    /// Commits, if this run is still the migration's. Another one, which took the lock over, empties half-copied tables:
    /// rows that arrive afterwards would be there twice.
    pub(super) async fn commit(&self, target: &mut Session) -> Result<()> {
        let ours = match self.writer.key() {
            None => {
                let sql = attempt_lock(&self.migration, self.attempt);
                !target.query(&sql).await.map_err(failed)?.is_empty()
            }
            Some(_) => {
                let params = [Some(self.migration.clone()), Some(self.attempt.to_string())];
                !ask(target, HOLD_ATTEMPT, &params).await?.rows.is_empty()
            }
        };
        if !ours {
            return Err(Transient::new(Side::Target, "the migration's lock was lost during the copy").into());
        }
        target.execute(&Sql::new("COMMIT")).await.map_err(failed)
    }

    /// The parameters of [`RECORD_COPY`].
    fn recorded(&self, key: &Secret, row: &RelationRow) -> [Option<String>; 12] {
        [
            Some(key.expose().to_owned()),
            Some(self.migration.clone()),
            Some(row.name.schema.clone()),
            Some(row.name.name.clone()),
            Some(row.state.as_str().to_owned()),
            row.origin.map(|origin| origin.id.get().to_string()),
            row.origin.map(|origin| origin.filenode.to_string()),
            row.origin.map(|origin| origin.attributes.to_string()),
            row.definition.as_ref().map(definition_text),
            row.copy_lsn.map(|lsn| lsn.to_string()),
            Some(row.rows_copied.to_string()),
            Some(row.bytes_copied.to_string()),
        ]
    }
}

/// Asks by parameters, which no other session sees, of a statement without a name.
async fn ask(target: &mut Session, sql: &'static str, params: &[Option<String>]) -> Result<Outcome> {
    let mut pipeline = Pipeline::new();
    pipeline.parse("", &Sql::new(sql)).map_err(failed)?;
    let params = params.iter().map(|param| param.as_deref().map(str::as_bytes));
    pipeline.execute("", params).map_err(failed)?;
    target.run(&mut pipeline).await.map_err(|error| failed(error.error))
}

fn failed(error: wire::Error) -> Failure {
    error.into_failure(Side::Target)
}
