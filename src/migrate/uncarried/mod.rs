//! What the stream does not bring: it is copied at the start, and brought up to date when the source is at rest.
//!
//! | what | at the start | at cutover |
//! |---|---|---|
//! | tables without replica identity | copied with the others; inserts and truncates are followed | emptied and copied again |
//! | unlogged tables | copied with the others | emptied and copied again |
//! | tables of extensions, their users' rows | copied; followed where that is possible | these rows removed and copied again, where not followed |
//! | large objects | copied | compared, and what differs copied |
//! | materialised views | filled, where the source's are | the same, anew |
//!
//! A table that is copied again is replaced in one target transaction, together with its `copy_lsn`, so whoever looks at
//! the target sees it as it was or as it is, and a stream that begins afterwards brings what comes after the copy. Each
//! step can be repeated, and a run that is killed between two leaves nothing to mend.
//!
//! A stream that runs meanwhile knows nothing of that. It brings nothing as long as the source is at rest; should it
//! bring something all the same, it may come twice, or have come before the table was emptied. So then the tables are
//! recorded as `copying` beforehand and until the end is well: whoever begins a stream without that copies them afresh.
//!
//! Not here: sequences, and who sees to it that the source is at rest.

mod identities;
mod large_objects;
pub mod views;

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::apply::Tables;
use crate::apply::store::{RelationRow, RelationState};
use crate::config::{Contents, Keyless};
use crate::error::{Result, Side};
use crate::pg::{QualifiedName, SourceLsn};
use crate::source;
use crate::source::catalog::{self, ExtensionTable, Table, TableKind};

pub use identities::{before, put_back};
pub use views::Which;

use super::attempt::Attempt;
use super::copy::Copy;
use super::drift::is;
use super::late::announced;
use super::objects::statements_until;
use super::{publications, snapshot, source_failed};
use large_objects::LargeObjects;

/// The tables without those of extensions that are left to the target.
pub fn with_extensions(tables: Vec<Table>, contents: &Contents) -> Vec<Table> {
    let taken =
        |of: &ExtensionTable| contents.extension_tables && !contents.excluded_extensions.contains(&of.name);
    tables.into_iter().filter(|table| table.extension.as_ref().is_none_or(taken)).collect()
}

impl Attempt<'_> {
    /// Brings everything up to date that the stream does not. The stream runs on, and has brought all that the source wrote.
    /// When nothing came of it afterwards either, [`crate::apply::store::Store::keep_copied_again`] says so; else the attempt has to end, and the
    /// next one copies the tables in question afresh. Whoever gives it up at the `deadline` leaves no long statement to
    /// the target.
    ///
    /// # Errors
    /// When a side does not answer, or something cannot be read or written: what was done stays done.
    pub(super) async fn bring_up_to_date(&self, deadline: Instant) -> Result<()> {
        let Again { tables, mut rows, streamed } = self.copied_again().await?;
        // Where nothing of it is in the stream, the position means nothing, and no slot has to wait for others. A slot that
        // cannot be made leaves nothing to copy afresh.
        let slot = if streamed.is_empty() { None } else { Some(self.snapshot().await?) };
        for row in &mut rows {
            row.state = RelationState::Copied;
            if streamed.contains(&row.name) {
                self.store().copy_again(&row.name).await?;
                row.state = RelationState::Copying;
            }
        }
        if let Some(snapshot) = slot {
            self.replace(&snapshot.id, snapshot.consistent_point, tables, rows, deadline).await?;
            self.carry_large_objects(&snapshot.id).await?;
        } else {
            let wal = catalog::current_wal(&self.source).await.map_err(source_failed)?;
            let snapshot = snapshot::export(&self.migration.sides.source).await?;
            self.replace(&snapshot.id, wal, tables, rows, deadline).await?;
            self.carry_large_objects(&snapshot.id).await?;
        }
        // A session of its own: one that is given up in the middle of a statement leaves it to the server.
        let target = self.migration.sides.target_client().await?;
        let bound = target.batch_execute(statements_until(deadline).as_str()).await;
        bound
            .map_err(|error| source::Error::new("a bound on statements", error).into_failure(Side::Target))?;
        views::refresh(&self.source, &target, Which::All).await
    }

    async fn replace(
        &self,
        snapshot: &str,
        at: SourceLsn,
        tables: Vec<Table>,
        rows: Vec<RelationRow>,
        deadline: Instant,
    ) -> Result<()> {
        Copy { again: Some(deadline), ..self.copy(snapshot, at, true).await? }.run(tables, rows).await
    }

    /// The large objects, as the exported `snapshot` shows them.
    pub(super) async fn carry_large_objects(&self, snapshot: &str) -> Result<()> {
        let large_objects = LargeObjects {
            source: self.migration.sides.source.clone(),
            target: self.migration.sides.target.clone(),
            migration: self.row.name.clone(),
            attempt: self.number,
            snapshot: snapshot.to_owned(),
            version: self.source_version().await?,
            jobs: self.migration.jobs,
        };
        large_objects.carry(&self.source, &self.target).await
    }

    async fn copied_again(&self) -> Result<Again> {
        let all = self.source_tables().await?;
        let mut again = Again::default();
        let [identified, inserts_only] = &self.row.publications[..] else { return Ok(again) };
        let identified = publications::members(&self.source, std::slice::from_ref(identified)).await?;
        let inserts_only = publications::members(&self.source, std::slice::from_ref(inserts_only)).await?;
        let ignored = self.migration.contents.keyless == Keyless::Ignore;
        let rows = self.store().relations().await?;
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let mut known = Tables::new(source, target, &self.row.name, rows.clone()).await?;
        for mut row in rows.into_iter().filter(|row| row.state != RelationState::Waiting) {
            // One that is not in the stream may have been made anew under its name.
            let by_name = || all.iter().find(|table| table.name == row.name);
            let found = all.iter().find(|table| is(&row, table)).or_else(by_name);
            let Some(table) = found.filter(|table| table.kind == TableKind::Plain) else { continue };
            let streamed = inserts_only.contains(&table.name);
            if identified.contains(&table.name) || streamed && ignored {
                continue;
            }
            row.name = known.prepared(&announced(table)).await?;
            again.streamed.extend(streamed.then(|| row.name.clone()));
            again.tables.push(Table { name: row.name.clone(), ..table.clone() });
            again.rows.push(row);
        }
        if !again.rows.is_empty() {
            let names: Vec<String> = again.rows.iter().map(|row| row.name.to_string()).collect();
            tracing::info!(tables = names.join(", "), "copying tables again that are not followed");
        }
        Ok(again)
    }
}

/// Tables to copy again.
#[derive(Default)]
struct Again {
    tables: Vec<Table>,
    /// What is recorded of each.
    rows: Vec<RelationRow>,
    /// Those of which something is in the stream, by their names on the target.
    streamed: HashSet<QualifiedName>,
}
