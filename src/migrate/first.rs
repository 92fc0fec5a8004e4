//! The first copy of a database: slot, publications, schema, and all rows.
//!
//! The schema and the rows are those of one snapshot. DDL goes on meanwhile: a table that was rewritten, redefined or
//! renamed before its rows were read is copied on another snapshot, with a point of its own from which on the stream has
//! it; one that was dropped is left out. Neither ends the migration.

use std::sync::Arc;

use crate::apply::Tables;
use crate::catalog::{self, ExtensionTable, Table};
use crate::error::{Result, Side, Transient};
use crate::limits::COPY_ROUNDS_MAX;
use crate::pg::{QualifiedName, Sql};
use crate::store::{RelationRow, RelationState};

use super::Phase;
use super::attempt::Attempt;
use super::copy::origin;
use super::dump::Archive;
use super::late_copy::announced;
use super::pairing::Listed;
use super::snapshot::{self, Snapshot};
use super::uncarried::with_extensions;

impl Attempt<'_> {
    /// Slot, publications and tables where they are not there yet; then all rows that are not there yet. Gives the archive
    /// of the schema where it was made now.
    pub(super) async fn copy_all(&mut self) -> Result<Option<Arc<Archive>>> {
        self.migration.show(self.phase.get());
        let makes_schema = self.phase.get() == Phase::Schema;
        let before = if makes_schema { self.schema_objects().await? } else { Vec::new() };
        let mut snapshot = self.snapshot().await?;
        let mut archive = None;
        if makes_schema {
            let dumped = self.archive(Some(&snapshot.id)).await?;
            self.record_definitions(&before).await?;
            self.making(&dumped).schema().await?;
            self.enter(Phase::Copying).await?;
            archive = Some(dumped);
        }
        self.show_tables().await?;
        let mut of_the_schema = archive.is_some();
        for _ in 0..COPY_ROUNDS_MAX {
            let left = self.copy_round(&snapshot, of_the_schema).await?;
            if left.is_empty() {
                self.carry_large_objects(&snapshot.id).await?;
                return Ok(archive);
            }
            drop(snapshot);
            snapshot = self.snapshot().await?;
            of_the_schema = false;
        }
        Err(Transient::new(Side::Source, "tables are rewritten or emptied faster than they are copied")
            .into())
    }

    /// Copies what is not copied yet, on one snapshot; gives what is left for another. The target's tables are those
    /// `of_the_schema` that this snapshot shows, or of an earlier one.
    async fn copy_round(&self, snapshot: &Snapshot, of_the_schema: bool) -> Result<Vec<QualifiedName>> {
        let all = self.tables_at(Some(snapshot)).await?;
        let rows = self.store().relations().await?;
        let mut known = match of_the_schema {
            true => None,
            false => {
                let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
                Some(Tables::new(source, target, &self.row.name, rows.clone()).await?)
            }
        };
        let of_source = Listed::new(&all);
        let (mut tables, mut left) = (Vec::new(), Vec::new());
        for mut row in rows.into_iter().filter(|row| row.state != RelationState::Copied) {
            let Some(table) = of_source.of(&row).or_else(|| of_source.named(&row.name)).cloned() else {
                self.leave_out(&row).await?;
                continue;
            };
            // One that was made again before it was copied is the one from now on.
            if row.origin != Some(origin(&table)) {
                self.store().set_origin(&row.name, origin(&table)).await?;
            }
            match &mut known {
                Some(known) => row.name = known.prepared(&announced(&table)).await?,
                // Renamed before the schema was dumped.
                None if row.name != table.name => {
                    self.store().rename_relation(&row.name, &table.name).await?;
                    row.name.clone_from(&table.name);
                }
                None => {}
            }
            if table.extension.as_ref().is_some_and(ExtensionTable::acts) {
                row.enter(RelationState::Copied);
                row.copy_lsn = Some(snapshot.consistent_point);
                self.store().set_relation(&row).await?;
                continue;
            }
            tables.push(Table { name: row.name.clone(), ..table });
            left.push(row);
        }
        if left.is_empty() {
            return Ok(Vec::new());
        }
        self.copy(&snapshot.id, snapshot.consistent_point, false).await?.run(tables, left).await
    }

    /// The source's tables as one snapshot shows them: this one, or one of now.
    pub(super) async fn tables_at(&self, taken: Option<&Snapshot>) -> Result<Vec<Table>> {
        let client = self.migration.sides.source_client().await?;
        let begin = Sql::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        let begin = match taken {
            Some(snapshot) => begin.text("; SET TRANSACTION SNAPSHOT ").literal(&snapshot.id),
            None => begin,
        };
        let begun = client.run("the tables of a snapshot", &begin).await;
        begun.map_err(|error| snapshot::gone(error.state()).unwrap_or_else(|| error.into()))?;
        let tables = catalog::tables(&client).await?;
        Ok(with_extensions(tables, &self.migration.contents))
    }

    /// A table that was dropped before it was copied. What the stream may still bring of it has nowhere to go.
    async fn leave_out(&self, row: &RelationRow) -> Result<()> {
        if row.state == RelationState::Copying {
            let truncate = Sql::new("TRUNCATE ONLY ").name(&row.name);
            self.target.run("a half-copied table to be emptied", &truncate).await?;
        }
        self.store().remove_relation(&row.name).await?;
        tracing::warn!(
            table = %row.name,
            "dropped on the source before it was copied: it is left out, the target keeps it, empty"
        );
        Ok(())
    }
}
