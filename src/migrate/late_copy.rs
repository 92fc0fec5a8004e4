//! Tables that are copied while the others are followed already.
//!
//! Three kinds: a table that our publications took in since the start and that the target has (a new partition, or one
//! that the operator added), one that was made again on the source under its old name, and one whose changes were
//! missed or fit no definition, which is replaced: what the target has of it stays until all is there anew. They are copied
//! on another snapshot, before the stream starts again from where it was: what commits before that snapshot is in the copy,
//! and is dropped from the stream.

use std::collections::HashSet;
use std::sync::Arc;

use crate::apply::Tables;
use crate::catalog::{self, Generated, Table, TableKind};
use crate::error::{Result, Side, Transient};
use crate::limits::COPY_ROUNDS_MAX;
use crate::pg::{Column, QualifiedName, Relation, RelationId};
use crate::store::{RelationRow, RelationState};

use super::attempt::{Attempt, relation_row};
use super::copy::{Copy, origin};
use super::pairing::{Listed, Recorded};
use super::publications;

impl Attempt<'_> {
    /// Takes the names over that the target's tables have by now: those that took each other's, too.
    pub(super) async fn follow_target_names(&self) -> Result<()> {
        let rows = self.store().relations().await?;
        let there = catalog::tables_by_id(&self.target).await?;
        let mut renamed = Vec::new();
        for row in &rows {
            let Some(name) = row.target_oid.and_then(|oid| there.get(&oid)) else { continue };
            if *name != row.name {
                tracing::info!(from = %row.name, to = %name, "table renamed on the target");
                renamed.push((&row.name, name));
            }
        }
        self.store().rename_relations(&renamed).await
    }

    /// Takes in what is to be followed from now on, and copies what is not copied.
    pub(super) async fn copy_late(&mut self, all: &[Table]) -> Result<()> {
        let published = publications::members(&self.source, &self.row.publications).await?;
        let rows = self.store().relations().await?;
        self.identify(&rows, all, &published).await?;
        self.take_in(&rows, all, &published).await?;
        for _ in 0..COPY_ROUNDS_MAX {
            if self.copy_late_round().await? {
                return self.show_tables().await;
            }
        }
        Err(Transient::new(Side::Source, "tables are rewritten or emptied faster than they are copied")
            .into())
    }

    /// Copies what is not copied on one snapshot. False: some of it changed meanwhile, and is to be copied on another.
    async fn copy_late_round(&mut self) -> Result<bool> {
        let mut left = self.store().relations().await?;
        left.retain(|row| row.state != RelationState::Copied);
        if left.is_empty() {
            return Ok(true);
        }
        // Refused before anything is done: what the target does not take, nobody copies.
        let all = self.source_tables().await?;
        if self.prepared(&all, left).await?.is_empty() {
            return Ok(true);
        }
        self.recognise().await?;
        // The snapshot takes a walsender.
        self.walsender = None;
        let snapshot = self.snapshot().await?;
        let at = self.tables_at(Some(&snapshot)).await?;
        let mut left = self.store().relations().await?;
        left.retain(|row| row.state != RelationState::Copied);
        let pairs = self.prepared(&at, left).await?;
        self.show_tables().await?;
        let names: Vec<String> = pairs.iter().map(|(row, _)| row.name.to_string()).collect();
        tracing::info!(tables = names.join(", "), "copying tables while the others are followed");
        // What the target has of a table stays until all of it is there anew.
        let (mut there, new): (Vec<_>, Vec<_>) =
            pairs.into_iter().partition(|(row, _)| row.state == RelationState::Copying);
        there.iter_mut().for_each(|(row, _)| row.enter(RelationState::Copied));
        let fresh = self.copy(&snapshot.id, snapshot.consistent_point, true).await?;
        let mut changed = false;
        for (copy, pairs) in [(Copy { replaces: true, ..fresh.clone() }, there), (fresh, new)] {
            let (left, tables): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            changed |= !tables.is_empty() && !copy.run(tables, left).await?.is_empty();
        }
        Ok(!changed)
    }

    /// The rows of tables to copy, each with its table, by the target's name, which takes all that the source has; those
    /// that are gone are forgotten.
    async fn prepared(&self, all: &[Table], left: Vec<RelationRow>) -> Result<Vec<(RelationRow, Table)>> {
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let rows = self.store().relations().await?;
        let mut known = Tables::new(source, target, &self.row.name, rows).await?;
        let of_source = Listed::new(all);
        let mut pairs = Vec::with_capacity(left.len());
        for mut row in left {
            let Some(table) = of_source.of(&row) else {
                self.forget(&row).await?;
                continue;
            };
            row.name = known.prepared(&announced(table)).await?;
            self.store().set_origin(&row.name, origin(table)).await?;
            pairs.push((row.clone(), Table { name: row.name, ..table.clone() }));
        }
        Ok(pairs)
    }

    /// Which table of the source each name means; a table that was made again is another one, to be copied afresh.
    async fn identify(
        &self,
        rows: &[RelationRow],
        all: &[Table],
        published: &HashSet<QualifiedName>,
    ) -> Result<()> {
        let of_source = Listed::new(all);
        for row in rows {
            let Some(named) = of_source.named(&row.name) else { continue };
            let id = RelationId::new(named.oid.get());
            let Some(known) = row.origin else {
                self.store().set_identity(&row.name, id).await?;
                continue;
            };
            let still_there = of_source.of(row).is_some();
            if known.id != id && !still_there && published.contains(&row.name) {
                tracing::warn!(table = %row.name, "made again on the source: it is copied afresh");
                self.store().set_origin(&row.name, origin(named)).await?;
                self.store().copy_again(&row.name).await?;
            }
        }
        Ok(())
    }

    /// Tables that are published now, were not part of the migration so far, and are on the target.
    async fn take_in(
        &self,
        rows: &[RelationRow],
        all: &[Table],
        published: &HashSet<QualifiedName>,
    ) -> Result<()> {
        let recorded = Recorded::new(rows);
        for table in all.iter().filter(|table| followable(table) && published.contains(&table.name)) {
            if recorded.named(&table.name).is_some() || recorded.of(table).is_some() {
                continue;
            }
            let there = catalog::target_table(&self.target, &table.name).await;
            if there?.is_some() {
                tracing::info!(table = %table.name, "published since the start: it is followed from now on");
                self.store().begin_relations(&[relation_row(table)]).await?;
            }
        }
        Ok(())
    }

    /// A table that was to be copied, and is gone from the source: what the stream still brings of it has nowhere to go.
    async fn forget(&self, row: &RelationRow) -> Result<()> {
        tracing::warn!(table = %row.name, "gone from the source before it was copied: the target keeps what it has");
        self.store().remove_relation(&row.name).await
    }
}

/// Whether changes of a table are in the stream where it is published.
fn followable(table: &Table) -> bool {
    table.kind == TableKind::Plain && table.is_followed()
}

/// A table as the stream would announce it.
pub(super) fn announced(table: &Table) -> Arc<Relation> {
    let sent = table.columns.iter().filter(|column| column.generated == Generated::No);
    let columns = sent.map(|column| Column {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        type_name: Some(QualifiedName::new(column.type_schema.clone(), column.type_own_name.clone())),
        key: table.identity_columns.contains(&column.name),
    });
    Arc::new(Relation {
        id: RelationId::new(table.oid.get()),
        name: table.name.clone(),
        identity: table.replica_identity,
        columns: columns.collect(),
    })
}
