//! Tables of extensions whose rows act by themselves: jobs, and the making and dropping of partitions.
//!
//! Before the cutover is done nothing may act on the target. So they come as the last of all, recorded as `copying` until
//! `done` is: whoever gives a cutover up, an engine that was killed in it included, finds them so and takes their rows away.

use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use crate::catalog::{self, ExtensionTable};
use crate::error::{Failure, Result, Side};
use crate::migrate::attempt::Attempt;
use crate::migrate::snapshot;
use crate::pg::{QualifiedName, Sql};
use crate::store::RelationState;

use super::Again;

impl Again {
    /// Takes those out whose rows act by themselves.
    pub fn take_acting(&mut self) -> Self {
        let all = std::mem::take(self);
        let mut acting = Self::default();
        for (table, row) in all.tables.into_iter().zip(all.rows) {
            let acts = table.extension.as_ref().is_some_and(ExtensionTable::acts);
            let of = if acts { &mut acting } else { &mut *self };
            of.tables.push(table);
            of.rows.push(row);
        }
        // Nothing of theirs is in the stream.
        self.streamed = all.streamed;
        acting
    }
}

impl Attempt<'_> {
    /// Copies them, while they are locked on the source.
    ///
    /// # Errors
    /// When a side does not answer, or something cannot be read or written: a part may be there.
    pub(in crate::migrate) async fn copy_acting(&self, acting: Again, deadline: Instant) -> Result<()> {
        let Again { tables, mut rows, .. } = acting;
        for row in &mut rows {
            self.store().copy_again(&row.name).await?;
            row.enter(RelationState::Copying);
        }
        let wal = catalog::current_wal(&self.source).await?;
        let snapshot = snapshot::export(&self.migration.sides.source).await?;
        self.replace(&snapshot.id, wal, tables, rows, deadline).await
    }

    /// Takes away what a cutover brought that is given up. Gives what somebody should know.
    ///
    /// # Errors
    /// When the target does not answer.
    pub(in crate::migrate) async fn take_acting_away(&self) -> Result<Vec<String>> {
        let rows = self.store().relations().await?;
        let mut left = Vec::new();
        for row in rows.into_iter().filter(|row| row.state == RelationState::Copying) {
            let found = catalog::target_table(&self.target, &row.name).await?;
            if let Some(condition) = found.and_then(|table| table.condition) {
                let rest = Sql::new("DELETE FROM ONLY ").name(&row.name).text(" ").catalog(&condition);
                left.push((row.name, rest));
            }
        }
        let names: Vec<QualifiedName> = left.iter().map(|(name, _)| name.clone()).collect();
        let warnings = self.delete_all(left).await?;
        self.store().keep(&names).await?;
        Ok(warnings)
    }

    /// Runs all, those of tables that others refer to after these. Gives what the target refuses.
    async fn delete_all(&self, mut left: Vec<(QualifiedName, Sql)>) -> Result<Vec<String>> {
        let mut refused = Vec::new();
        loop {
            let (before, mut referred, mut referred_refused) = (left.len(), Vec::new(), Vec::new());
            for (name, delete) in left {
                let Err(error) = self.target.batch_execute(delete.as_str()).await else {
                    tracing::info!(table = %name, "emptied again: its rows would act before the cutover is done");
                    continue;
                };
                let in_the_way = error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION);
                let failure = catalog::Error::new(Side::Target, "rows that act by themselves", error).into();
                let Failure::Definite(why) = failure else { return Err(failure) };
                let cause = why.cause;
                let warning = format!(
                    "{name} on the target keeps rows that act by themselves ({cause}); there: {delete};"
                );
                if in_the_way {
                    referred_refused.push(warning);
                    referred.push((name, delete));
                } else {
                    refused.push(warning);
                }
            }
            if referred.is_empty() || referred.len() == before {
                refused.append(&mut referred_refused);
                return Ok(refused);
            }
            left = referred;
        }
    }
}
