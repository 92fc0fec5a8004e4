//! The target's tables as the planner wants them: those of the migration only.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Client;

use super::store::RelationRow;
use crate::error::{Definite, Failure, Result, Side};
use crate::pg::{QualifiedName, SourceLsn};
use crate::plan::{TargetColumn, TargetTable};
use crate::source::catalog::{self, Generated, Identity};

/// Asks the target's catalog.
#[derive(Debug)]
pub struct Tables {
    client: Arc<Client>,
    /// The tables that are copied, with the point from which on changes are streamed to them.
    copy_lsn: HashMap<QualifiedName, SourceLsn>,
}

impl Tables {
    /// The tables of `rows`, asked for through `client`.
    pub fn new(client: Arc<Client>, rows: Vec<RelationRow>) -> Self {
        let copied = rows.into_iter().filter_map(|row| Some((row.name, row.copy_lsn?)));
        Self { client, copy_lsn: copied.collect() }
    }

    /// All of them.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn all(&self) -> Result<Vec<TargetTable>> {
        let found =
            catalog::target_tables(&self.client).await.map_err(|error| error.into_failure(Side::Target))?;
        let known = found.into_iter().filter_map(|table| {
            let copy_lsn = *self.copy_lsn.get(&table.name)?;
            Some(target_table(table, copy_lsn))
        });
        Ok(known.collect())
    }

    /// One of them, as it is now.
    ///
    /// # Errors
    /// A definite failure when the table is not part of the migration, or is gone from the target.
    pub async fn one(&self, name: &QualifiedName) -> Result<TargetTable> {
        let copy_lsn = *self.copy_lsn.get(name).ok_or_else(|| not_ours(name))?;
        let found = catalog::target_table(&self.client, name)
            .await
            .map_err(|error| error.into_failure(Side::Target))?;
        Ok(target_table(found.ok_or_else(|| gone(name))?, copy_lsn))
    }
}

fn target_table(table: catalog::TargetTable, copy_lsn: SourceLsn) -> TargetTable {
    let key: Vec<String> = table.key.iter().map(|column| column.name.clone()).collect();
    let columns = table.columns.into_iter().map(|target| {
        // The key's own operator uses its index whatever the type's default is.
        let by_key = table.key.iter().find(|key| key.name == target.column.name);
        TargetColumn {
            generated: target.column.generated != Generated::No,
            identity_always: target.column.identity == Identity::Always,
            equality: by_key.map(|key| key.equality_operator.clone()).or(target.equality_operator),
            cast: target.cast,
            name: target.column.name,
        }
    });
    let columns = columns.collect();
    TargetTable { name: table.name, columns, key, copy_lsn, has_triggers: table.has_replica_triggers }
}

fn not_ours(name: &QualifiedName) -> Failure {
    Definite::new(format!("changes came to table {name}, which is not part of the migration"))
        .detail("it was made on the source after the copy began; nothing was skipped")
        .hint("drop it on the source, or start afresh after `walferry remove --force`")
        .into()
}

fn gone(name: &QualifiedName) -> Failure {
    Definite::new(format!("table {name} is gone from the target"))
        .detail("changes came to it; nothing was skipped")
        .hint("make it again as it was, or start afresh after `walferry remove --force`")
        .into()
}
