//! Tables that are copied while the others are followed already.
//!
//! Three kinds: a table that our publications took in since the start and that the target has (a new partition, or one
//! that the operator added), one that was made again on the source under its old name, and one whose changes were
//! missed or fit no definition, which is emptied first. They are copied on another snapshot, before the stream starts
//! again from where it was: what commits before that snapshot is in the copy, and is dropped from the stream.

use std::collections::HashSet;
use std::sync::Arc;

use crate::apply::store::{RelationRow, RelationState};
use crate::apply::{Tables, TargetSession};
use crate::error::{Result, Side};
use crate::pg::{Column, QualifiedName, Relation, RelationId, SourceLsn};
use crate::source::catalog::{self, Generated, Table, TableKind};

use super::attempt::{Attempt, origin, relation_row};
use super::publications;

impl Attempt<'_> {
    /// Takes in what is to be followed from now on, and copies what is not copied.
    pub(super) async fn copy_late(&mut self, session: &mut TargetSession, all: &[Table]) -> Result<()> {
        let published = publications::members(&self.source, &self.row.publications).await?;
        let rows = self.store().relations().await?;
        self.identify(&rows, all, &published).await?;
        self.take_in(&rows, all, &published).await?;
        let rows = self.store().relations().await?;
        let mut left: Vec<RelationRow> =
            rows.iter().filter(|row| row.state != RelationState::Copied).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        // The snapshot takes a walsender.
        self.walsender = None;
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let mut known = Tables::new(source, target, &self.row.name, rows).await?;
        let mut tables = Vec::with_capacity(left.len());
        for mut row in std::mem::take(&mut left) {
            let same = |table: &&Table| match row.origin {
                Some(origin) => table.oid.get() == origin.id.get(),
                None => table.name == row.name,
            };
            let Some(table) = all.iter().find(same) else {
                self.keep_as_it_is(row).await?;
                continue;
            };
            row.name = known.prepared(&announced(table)).await?;
            let mut table = table.clone();
            table.name.clone_from(&row.name);
            self.store().set_origin(&row.name, origin(&table)).await?;
            tables.push(table);
            left.push(row);
        }
        let half = left.iter_mut().zip(&tables).filter(|(row, _)| row.state == RelationState::Copying);
        for (row, table) in half {
            // An extension's table is emptied when it is copied, of some rows alone.
            if table.extension.is_none() {
                session.empty(&row.name).await?;
            }
            row.state = RelationState::Waiting;
        }
        self.show_tables().await?;
        let names: Vec<String> = left.iter().map(|row| row.name.to_string()).collect();
        tracing::info!(tables = names.join(", "), "copying tables while the others are followed");
        let snapshot = self.snapshot().await?;
        self.copy(&snapshot.id, snapshot.consistent_point, true).await?.run(tables, left).await?;
        drop(snapshot);
        self.show_tables().await
    }

    /// Which table of the source each name means; a table that was made again is another one, to be copied afresh.
    async fn identify(
        &self,
        rows: &[RelationRow],
        all: &[Table],
        published: &HashSet<QualifiedName>,
    ) -> Result<()> {
        for row in rows {
            let Some(named) = all.iter().find(|table| table.name == row.name) else { continue };
            let id = RelationId::new(named.oid.get());
            let Some(known) = row.origin else {
                self.store().set_identity(&row.name, id).await?;
                continue;
            };
            let still_there = all.iter().any(|table| table.oid.get() == known.id.get());
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
        for table in all.iter().filter(|table| followable(table) && published.contains(&table.name)) {
            let id = table.oid.get();
            let known = |row: &RelationRow| {
                row.name == table.name || row.origin.is_some_and(|origin| origin.id.get() == id)
            };
            if rows.iter().any(known) {
                continue;
            }
            let there = catalog::target_table(&self.target, &table.name).await;
            if there.map_err(|error| error.into_failure(Side::Target))?.is_some() {
                tracing::info!(table = %table.name, "published since the start: it is followed from now on");
                self.store().begin_relations(&[relation_row(table)]).await?;
            }
        }
        Ok(())
    }

    /// A table that was to be copied, and is gone from the source.
    async fn keep_as_it_is(&self, mut row: RelationRow) -> Result<()> {
        tracing::warn!(table = %row.name, "gone from the source before it was copied: the target keeps what it has");
        row.state = RelationState::Copied;
        row.copy_lsn = row.copy_lsn.or(Some(SourceLsn::ZERO));
        self.store().set_relation(&row).await
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
