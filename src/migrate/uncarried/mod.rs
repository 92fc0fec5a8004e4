//! What the stream does not bring: it is copied at the start, and brought up to date when the source is at rest.
//!
//! | what | at the start | at cutover |
//! |---|---|---|
//! | tables without replica identity | copied with the others; inserts and truncates are followed | replaced by a new copy |
//! | unlogged tables | copied with the others | replaced by a new copy |
//! | tables of extensions, their users' rows | copied; followed where that is possible | these rows removed and copied again, where not followed |
//! | those of extensions that act by their rows | nothing | copied as the last of all (`acting`) |
//! | large objects | copied | compared, and what differs copied |
//! | materialised views | filled, where the source's are | the same, anew |
//!
//! A table that is copied again is replaced in one target transaction, together with its `copy_lsn`, so whoever looks at
//! the target sees it as it was or as it is, and a stream that begins afterwards brings what comes after the copy. Each
//! step can be repeated, and a run that is killed between two leaves nothing to mend.
//!
//! A stream that runs meanwhile knows nothing of that. It brings nothing of a table that is locked on the source from before
//! the copy's snapshot on; else what it brings may come twice, or have come before the table was emptied. So the tables are
//! recorded as `copying` beforehand, until the end is well or it is known that they were locked all the time: whoever
//! begins a stream without that copies them afresh.
//!
//! Not here: sequences, and who sees to it that the source is at rest.

mod acting;
mod identities;
mod large_objects;
pub mod views;

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::apply::Tables;
use crate::catalog::{self, ExtensionTable, Table, TableKind, TargetClient};
use crate::config::{Contents, Keyless};
use crate::error::{Result, Side, Transient};
use crate::pg::{QualifiedName, SourceLsn};
use crate::store::{RelationRow, RelationState};

pub use identities::{before, put_back};
pub use views::Which;

use super::attempt::Attempt;
use super::copy::Copy;
use super::late_copy::announced;
use super::objects::statements_until;
use super::pairing::Listed;
use super::{foreign_keys, publications, snapshot};
use large_objects::LargeObjects;

/// The tables without those of extensions that are left to the target, and without those whose rows we may not all see: of
/// these, a part would be worse than nothing.
pub fn with_extensions(tables: Vec<Table>, contents: &Contents) -> Vec<Table> {
    let mut tables = with_wanted_extensions(tables, contents);
    tables.retain(|table| !table.is_hidden());
    tables
}

/// The tables without those of extensions that are left to the target.
pub fn with_wanted_extensions(tables: Vec<Table>, contents: &Contents) -> Vec<Table> {
    let taken =
        |of: &ExtensionTable| contents.extension_tables && !contents.excluded_extensions.contains(&of.name);
    tables.into_iter().filter(|table| table.extension.as_ref().is_none_or(taken)).collect()
}

impl Attempt<'_> {
    /// Brings everything up to date that the stream does not. The stream runs on, and has brought all that the source wrote.
    /// When nothing came of it afterwards either, the record of `done` says so; else the attempt has to end, and the next
    /// one copies the tables in question afresh. Whoever gives it up at the `deadline` leaves no long statement to
    /// the target.
    ///
    /// # Errors
    /// When a side does not answer, or something cannot be read or written: what was done stays done.
    pub(super) async fn bring_up_to_date(&self, again: Again, deadline: Instant) -> Result<()> {
        let Again { tables, mut rows, streamed } = again;
        // Where nothing of it is in the stream, the position means nothing, and no slot has to wait for others. A slot that
        // cannot be made leaves nothing to copy afresh.
        let slot = if streamed.is_empty() { None } else { Some(self.snapshot().await?) };
        for row in &mut rows {
            row.enter(RelationState::Copied);
            if streamed.contains(&row.name) {
                self.store().copy_again(&row.name).await?;
                row.enter(RelationState::Copying);
            }
        }
        if let Some(snapshot) = slot {
            self.replace(&snapshot.id, snapshot.consistent_point, tables, rows, deadline).await?;
            self.carry_large_objects(&snapshot.id).await?;
        } else {
            let wal = catalog::current_wal(&self.source).await?;
            let snapshot = snapshot::export(&self.migration.sides.source).await?;
            self.replace(&snapshot.id, wal, tables, rows, deadline).await?;
            self.carry_large_objects(&snapshot.id).await?;
        }
        views::refresh(&self.source, &self.target_until(deadline).await?, Which::All).await
    }

    /// Validates foreign keys that the target could not hold against its rows so far: those of tables whose rows were not
    /// what the source had. Gives what is to be said of those that do not hold.
    ///
    /// # Errors
    /// When a side does not answer.
    pub(super) async fn validate_again(&self, deadline: Instant) -> Result<Vec<String>> {
        let keys = foreign_keys::unvalidated(&self.source, &self.target).await?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        foreign_keys::validate(&self.target_until(deadline).await?, &keys).await
    }

    /// A session of its own: one that is given up in the middle of a statement leaves it to the server.
    async fn target_until(&self, deadline: Instant) -> Result<TargetClient> {
        let target = self.migration.sides.target_client().await?;
        let bound = target.batch_execute(statements_until(deadline).as_str()).await;
        bound.map_err(|error| catalog::Error::new(Side::Target, "a bound on statements", error))?;
        Ok(target)
    }

    async fn replace(
        &self,
        snapshot: &str,
        at: SourceLsn,
        tables: Vec<Table>,
        rows: Vec<RelationRow>,
        deadline: Instant,
    ) -> Result<()> {
        let copy = Copy { replaces: true, deadline: Some(deadline), ..self.copy(snapshot, at, true).await? };
        match copy.run(tables, rows).await?.first() {
            None => Ok(()),
            Some(table) => {
                let cause = format!("table {table} was rewritten or redefined while it was copied again");
                Err(Transient::new(Side::Source, cause).into())
            }
        }
    }

    /// Whether large objects of the source are others than those that were carried: written, made or dropped since. The
    /// target's are the same afterwards.
    ///
    /// # Errors
    /// When a side does not answer.
    pub(super) async fn large_objects_differ(&self) -> Result<bool> {
        let snapshot = snapshot::export(&self.migration.sides.source).await?;
        self.carry_large_objects(&snapshot.id).await
    }

    /// The large objects, as the exported `snapshot` shows them. Says whether there was anything to do.
    pub(super) async fn carry_large_objects(&self, snapshot: &str) -> Result<bool> {
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

    /// What [`Self::bring_up_to_date`] copies again.
    ///
    /// # Errors
    /// When a side does not answer.
    pub(super) async fn copied_again(&self) -> Result<Again> {
        let all = self.source_tables().await?;
        let mut again = Again::default();
        let [identified, inserts_only] = &self.row.publications[..] else { return Ok(again) };
        let identified = publications::members(&self.source, std::slice::from_ref(identified)).await?;
        let inserts_only = publications::members(&self.source, std::slice::from_ref(inserts_only)).await?;
        let ignored = self.migration.contents.keyless == Keyless::Ignore;
        let rows = self.store().relations().await?;
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let mut known = Tables::new(source, target, &self.row.name, rows.clone()).await?;
        let of_source = Listed::new(&all);
        for mut row in rows.into_iter().filter(|row| row.state != RelationState::Waiting) {
            // One that is not in the stream may have been made anew under its name.
            let found = of_source.of(&row).or_else(|| of_source.named(&row.name));
            let Some(table) = found.filter(|table| table.kind == TableKind::Plain) else { continue };
            let streamed = inserts_only.contains(&table.name);
            // A publication of the table above names what is not in the stream, too.
            if table.is_followed() && identified.contains(&table.name) || streamed && ignored {
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
#[derive(Debug, Default)]
pub struct Again {
    /// As the target names them.
    pub tables: Vec<Table>,
    /// What is recorded of each.
    rows: Vec<RelationRow>,
    /// Those of which something is in the stream, by their names on the target.
    pub streamed: HashSet<QualifiedName>,
}
