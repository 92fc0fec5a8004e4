//! The tables of the migration: which table of the target a relation of the source means, and what it is like.
//!
//! A relation is known by its identifier on the source, which a new name does not change. Where the source renamed a
//! table, the stream stops until the target's has the new name, too; then `walferry.relation` takes it over. A name
//! that means another table than the one that was copied is refused.

use std::collections::HashMap;
use std::sync::Arc;

use super::ddl::{self, Misfit, Remedy};
use crate::catalog::{self, Generated, Identity, SourceClient, TargetClient};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{TARGET_TABLES_RECENT, VISIBLE_POLL, VISIBLE_WAIT};
use crate::pg::{CommitLsn, Oid, QualifiedName, Relation, RelationId, SourceLsn, Sql, Xid, shell_word};
use crate::plan::{
    Carried, Shape, TableReference, TargetColumn, TargetTable, TargetType, TypeNames, is_builtin,
};
use crate::store::{RelationRow, Store};

/// Asks the catalogs of both sides.
#[derive(Debug)]
pub struct Tables {
    pub(super) source: Arc<SourceClient>,
    pub(super) target: Arc<TargetClient>,
    migration: String,
    rows: Vec<RelationRow>,
    /// All tables of the target as they were at the start, each until it is asked for, for a short while.
    first: HashMap<QualifiedName, catalog::TargetTable>,
    began: tokio::time::Instant,
    /// What the source's catalog calls types; `None` for one that is gone.
    types: HashMap<Oid, Option<QualifiedName>>,
}

impl Tables {
    /// The tables of `rows`.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn new(
        source: Arc<SourceClient>,
        target: Arc<TargetClient>,
        migration: &str,
        rows: Vec<RelationRow>,
    ) -> Result<Self> {
        let found = catalog::target_tables(&target).await?;
        let first = found.into_iter().map(|table| (table.name.clone(), table)).collect();
        let (migration, types, began) = (migration.to_owned(), HashMap::new(), tokio::time::Instant::now());
        Ok(Self { source, target, migration, rows, first, began, types })
    }

    /// Waits until the source's catalog shows what the transaction did. Its commit is streamed as soon as it is in the
    /// WAL; sessions see it a little later, with a synchronous standby much later.
    ///
    /// # Errors
    /// A transient failure when it takes too long, or the source does not answer.
    pub(super) async fn wait_until_visible(&self, xid: Xid) -> Result<()> {
        let began = tokio::time::Instant::now();
        loop {
            if !catalog::is_in_progress(&self.source, xid).await? {
                return Ok(());
            }
            if began.elapsed() >= VISIBLE_WAIT {
                return Err(Transient::new(Side::Source, "a committed transaction is not visible yet")
                    .detail(format!("transaction {xid}; a synchronous standby may be missing"))
                    .into());
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    /// The row of a relation, by its identifier, or by its name where the identifier was never recorded.
    pub(super) fn row(&self, relation: &Relation) -> Option<&RelationRow> {
        self.position(relation).map(|position| &self.rows[position])
    }

    /// The target's table for `relation`, as it is now, to apply what commits at `commit_lsn`.
    ///
    /// Of a table that is gone from the source, nothing is wanted that commits before the copy of the one that has its
    /// name now, nor anything where none has: such a table is said to hold it already.
    ///
    /// # Errors
    /// A definite failure when the table is not part of the migration, is another than the one that was copied, is
    /// gone from the target, or is renamed on the source alone.
    pub(super) async fn of(&mut self, relation: &Relation, commit_lsn: CommitLsn) -> Result<TargetTable> {
        let Some(position) = self.position(relation) else {
            if catalog::table_name(&self.source, relation.id).await?.is_some() {
                return Err(not_ours(&relation.name));
            }
            tracing::warn!(table = %relation.name, "made and dropped on the source since the start: left out");
            return Ok(held_already(relation, SourceLsn::new(u64::MAX)));
        };
        if let Some(origin) = self.rows[position].origin.filter(|origin| origin.id != relation.id) {
            let copied_later = |at: &SourceLsn| commit_lsn.position() < *at;
            if let Some(copy_lsn) = self.rows[position].copy_lsn.filter(copied_later) {
                return Ok(held_already(relation, copy_lsn));
            }
            // The one that was copied may live on under another name.
            self.follow_name(position, origin.id).await?;
            let free = self.rows[position].name != relation.name;
            return Err(if free { not_ours(&relation.name) } else { another(&relation.name) });
        }
        let found = self.found(position, relation).await?;
        let copy_lsn = self.rows[position].copy_lsn.ok_or_else(|| not_ours(&relation.name))?;
        Ok(target_table(found, copy_lsn))
    }

    /// The name of the target's table for `relation`, which is to be copied: it must take all that the source has.
    ///
    /// # Errors
    /// As [`Tables::of`]; and a definite failure, with the statement to run, when it does not take all.
    pub async fn prepared(&mut self, relation: &Arc<Relation>) -> Result<QualifiedName> {
        let Some(position) = self.position(relation) else { return Err(not_ours(&relation.name)) };
        let mut table = Arc::new(target_table(self.found(position, relation).await?, SourceLsn::ZERO));
        let types: TypeNames = self.types(relation).await?.into_iter().collect();
        let mut asked = false;
        while let Err(error) = Shape::new(Arc::clone(relation), Arc::clone(&table), &types) {
            if !std::mem::replace(&mut asked, true) {
                // It may have been made to fit since it was looked at.
                table = Arc::new(target_table(self.found(position, relation).await?, SourceLsn::ZERO));
                continue;
            }
            let misfit = Misfit { error: &error, relation, table: &table, changed_before: false };
            match ddl::remedy(self, &types, &misfit, false).await? {
                Remedy::Accept(as_announced) => table = Arc::new(as_announced),
                Remedy::Stop(failure) => return Err(failure),
                Remedy::Alter(..) => unreachable!("nothing is to be followed"),
            }
        }
        Ok(table.name.clone())
    }

    async fn found(&mut self, position: usize, relation: &Relation) -> Result<catalog::TargetTable> {
        let by_identifier = self.rows[position].origin.is_some();
        if by_identifier && self.rows[position].name != relation.name {
            self.follow_name(position, relation.id).await?;
        }
        let mut found = self.look_up(position).await?;
        if found.is_none() && by_identifier {
            self.follow_name(position, relation.id).await?;
            found = self.look_up(position).await?;
        }
        found.ok_or_else(|| gone(&self.rows[position].name))
    }

    /// What the source calls the types of a relation's columns that are not builtin, those that are still there.
    ///
    /// # Errors
    /// When the source does not answer.
    pub(super) async fn types(&mut self, relation: &Relation) -> Result<Vec<(Oid, QualifiedName)>> {
        let own: Vec<Oid> =
            relation.columns.iter().map(|column| column.type_oid).filter(|oid| !is_builtin(*oid)).collect();
        let new: Vec<Oid> = own.iter().copied().filter(|oid| !self.types.contains_key(oid)).collect();
        if !new.is_empty() {
            let mut names: HashMap<_, _> =
                catalog::type_names(&self.source, &new).await?.into_iter().collect();
            self.types.extend(new.into_iter().map(|oid| (oid, names.remove(&oid))));
        }
        let named = own.into_iter().filter_map(|oid| Some((oid, self.types.get(&oid)?.clone()?)));
        Ok(named.collect())
    }

    /// The foreign keys of the target that refer to these of its tables.
    ///
    /// # Errors
    /// When the target does not answer.
    pub(super) async fn references_to(&self, tables: &[QualifiedName]) -> Result<Vec<TableReference>> {
        let found = catalog::references_to(&self.target, tables).await?;
        Ok(found.into_iter().map(|(from, to)| TableReference { from, to }).collect())
    }

    /// Records that a table has to be copied again at the next start.
    ///
    /// # Errors
    /// When the target does not answer.
    pub(super) async fn copy_again(&self, table: &QualifiedName) -> Result<()> {
        Store::new(&self.target, &self.migration).copy_again(table).await
    }

    fn position(&self, relation: &Relation) -> Option<usize> {
        let known = |row: &RelationRow| row.origin.is_some_and(|origin| origin.id == relation.id);
        let by_identifier = self.rows.iter().position(known);
        by_identifier.or_else(|| self.rows.iter().position(|row| row.name == relation.name))
    }

    async fn look_up(&mut self, position: usize) -> Result<Option<catalog::TargetTable>> {
        let name = &self.rows[position].name;
        let recent = self.began.elapsed() < TARGET_TABLES_RECENT;
        match self.first.remove(name).filter(|_| recent) {
            Some(table) => Ok(Some(table)),
            None => Ok(catalog::target_table(&self.target, name).await?),
        }
    }

    /// Takes the name over that the source's table has now, if the target's has it already. What is applied meanwhile
    /// may have been announced under any name that the table ever had.
    async fn follow_name(&mut self, position: usize, id: RelationId) -> Result<()> {
        let old = self.rows[position].name.clone();
        let Some(new) = catalog::table_name(&self.source, id).await? else {
            return Ok(());
        };
        if new == old {
            return Ok(());
        }
        let there = async |name: &QualifiedName| {
            catalog::target_table(&self.target, name).await.map(|table| table.is_some())
        };
        let free = self.rows.iter().all(|row| row.name != new);
        if !free || there(&old).await? || !there(&new).await? {
            let in_the_way = self.rows.iter().find(|row| row.name == new).and_then(|row| row.origin);
            let goes_to = match in_the_way {
                Some(origin) => catalog::table_name(&self.source, origin.id).await?,
                None => None,
            };
            return Err(renamed(&old, &new, free, goes_to.as_ref()));
        }
        Store::new(&self.target, &self.migration).rename_relation(&old, &new).await?;
        tracing::info!(from = %old, to = %new, "table renamed");
        self.rows[position].name = new;
        Ok(())
    }
}

fn target_table(found: catalog::TargetTable, copy_lsn: SourceLsn) -> TargetTable {
    let key: Vec<String> = found.key.iter().map(|column| column.name.clone()).collect();
    let columns = found.columns.iter().map(|column| target_column(&found, column)).collect();
    let (key_deferrable, has_triggers) = (found.key_deferrable, found.has_replica_triggers);
    TargetTable { name: found.name, columns, key, key_deferrable, copy_lsn, has_triggers }
}

/// What commits before `copy_lsn` is not applied to it.
fn held_already(relation: &Relation, copy_lsn: SourceLsn) -> TargetTable {
    let (columns, key) = (Vec::new(), Vec::new());
    let (key_deferrable, has_triggers) = (false, false);
    TargetTable { name: relation.name.clone(), columns, key, key_deferrable, copy_lsn, has_triggers }
}

fn target_column(table: &catalog::TargetTable, found: &catalog::TargetColumn) -> TargetColumn {
    // The key's own operator uses its index whatever the type's default is.
    let by_key = table.key.iter().find(|key| key.name == found.column.name);
    let by_type = || found.equality_operator.clone();
    let column = &found.column;
    TargetColumn {
        name: column.name.clone(),
        of: TargetType {
            oid: column.type_oid,
            name: QualifiedName::new(column.type_schema.clone(), column.type_own_name.clone()),
            modifier: column.type_modifier,
            base: column.base.clone(),
        },
        required: column.not_null && !column.has_default && column.identity == Identity::No,
        generated: column.generated != Generated::No,
        identity_always: column.identity == Identity::Always,
        equality: by_key.map(|key| key.equality_operator.clone()).or_else(by_type),
        cast: found.cast.clone(),
        carried: match (column.in_arrays, column.is_built_in_array) {
            (true, _) => Carried::InArrays,
            (false, true) => Carried::AsText,
            (false, false) => Carried::Alone,
        },
    }
}

fn not_ours(name: &QualifiedName) -> Failure {
    let pattern = shell_word(&name.to_string());
    Definite::new(format!("changes came to table {name}, which is not part of the migration"))
        .detail("it was made on the source after the copy began; nothing was skipped")
        .hint(format!(
            "make it on the target as it is on the source (pg_dump --schema-only --no-owner -t {pattern} of the source, \
             into psql on the target), then run `walferry migrate` again: it copies the table and goes on"
        ))
        .into()
}

fn another(name: &QualifiedName) -> Failure {
    Definite::new(format!("table {name} of the source is another than the one that was copied"))
        .detail("it was dropped and made again, or another was renamed to it; nothing was skipped")
        .hint("run `walferry migrate` again: it copies the table afresh and goes on")
        .into()
}

fn gone(name: &QualifiedName) -> Failure {
    Definite::new(format!("table {name} is gone from the target"))
        .detail("changes came to it; nothing was skipped")
        .hint("make it again as it was, or start afresh after `walferry remove --force`")
        .into()
}

/// What gives a table another name, and another schema where that is meant.
fn rename(from: &QualifiedName, to: &QualifiedName) -> Vec<String> {
    let mut statements = Vec::new();
    let mut now = from.clone();
    if from.schema != to.schema {
        statements.push(Sql::new("ALTER TABLE ").name(&now).text(" SET SCHEMA ").ident(&to.schema));
        now.schema.clone_from(&to.schema);
    }
    if from.name != to.name {
        statements.push(Sql::new("ALTER TABLE ").name(&now).text(" RENAME TO ").ident(&to.name));
    }
    statements.iter().map(ToString::to_string).collect()
}

/// `free`: no other followed table has the new name; else it `goes_to` that name, or is gone.
fn renamed(old: &QualifiedName, new: &QualifiedName, free: bool, goes_to: Option<&QualifiedName>) -> Failure {
    let aside = QualifiedName::new(&new.schema, "walferry_aside");
    let statements = match goes_to {
        _ if free => rename(old, new),
        Some(other) if other == old => [rename(new, &aside), rename(old, new), rename(&aside, old)].concat(),
        Some(other) if other != new => [rename(new, other), rename(old, new)].concat(),
        _ => Vec::new(),
    };
    let hint = if statements.is_empty() {
        format!(
            "another followed table has the name {new} on the target: drop it there, or rename it, then run \
             `walferry migrate` again"
        )
    } else {
        format!("on the target run: {}; then run `walferry migrate` again", statements.join("; "))
    };
    Definite::new(format!("table {old} was renamed on the source"))
        .detail(format!("it is {new} there now; nothing was skipped"))
        .hint(hint)
        .into()
}
