//! The publications on the source.
//!
//! Two: one for the tables whose rows can be identified, and one with `publish = 'insert, truncate'` (on a
//! source of version 10, which sends no TRUNCATE, `'insert'`) for the others.
//! A table without replica identity must be in no publication that publishes updates or deletes: the source would
//! reject its own UPDATE and DELETE. So FOR ALL TABLES is never used.
//!
//! A partitioned table is published by its root, so that a partition made later is published too (its changes then
//! stop the stream with a definite error, rather than being missed), unless one of its partitions has no identity, or
//! the source is older than 13: then its leaves are published, and the log tells of one that is made later.

use tokio_postgres::Client;

use crate::error::{Definite, Result, Side};
use crate::pg::{QualifiedName, Sql};
use crate::source::catalog::{Persistence, Table, TableKind};
use crate::source::{self, Dialect};

/// What goes into which publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publications {
    /// Tables with a replica identity: all changes.
    pub identified: Vec<QualifiedName>,
    /// Tables without: inserts and truncates.
    pub inserts_only: Vec<QualifiedName>,
    /// What the source understands.
    dialect: Dialect,
}

impl Publications {
    /// Sorts the source's tables.
    pub fn of(tables: &[Table], dialect: Dialect) -> Self {
        let mut publications = Self { identified: Vec::new(), inserts_only: Vec::new(), dialect };
        let logged = || tables.iter().filter(|table| table.persistence == Persistence::Permanent);
        let leaves_of = |root: &QualifiedName| {
            let root = root.clone();
            logged().filter(move |t| t.kind == TableKind::Plain && t.partition_of.as_ref() == Some(&root))
        };
        for table in logged() {
            let whole_root = |root: &QualifiedName| {
                dialect.publishes_partitioned_tables() && leaves_of(root).all(Table::has_identity)
            };
            match (&table.partition_of, table.kind) {
                (None, TableKind::Partitioned) if whole_root(&table.name) => {
                    publications.identified.push(table.name.clone());
                }
                (None, TableKind::Plain) => publications.push(table),
                (Some(root), TableKind::Plain) if !whole_root(root) => publications.push(table),
                (Some(_), _) | (None, TableKind::Partitioned) => {}
            }
        }
        publications
    }

    fn push(&mut self, table: &Table) {
        let list = if table.has_identity() { &mut self.identified } else { &mut self.inserts_only };
        list.push(table.name.clone());
    }

    /// Makes both anew under `names` (identified, inserts only).
    ///
    /// # Errors
    /// When the role may not: it needs CREATE on the database and must own the tables.
    pub async fn create(&self, client: &Client, names: &[String]) -> Result<()> {
        let [identified, inserts_only] = names else {
            return Err(Definite::new("the migration does not name two publications").into());
        };
        drop_all(client, names).await?;
        let create = |name: &str, tables: &[QualifiedName]| {
            let sql = Sql::new("CREATE PUBLICATION ").ident(name);
            if tables.is_empty() {
                return sql;
            }
            sql.text(" FOR TABLE ").list(tables, ", ", |sql, table| sql.text("ONLY ").name(table))
        };
        let publish = match self.dialect.publishes_truncate() {
            true => " WITH (publish = 'insert, truncate')",
            false => " WITH (publish = 'insert')",
        };
        let inserts = create(inserts_only, &self.inserts_only).text(publish);
        for sql in [create(identified, &self.identified), inserts] {
            client.batch_execute(sql.as_str()).await.map_err(|error| failure(error, "a new publication"))?;
        }
        Ok(())
    }
}

/// Drops the publications that are there; says which.
///
/// # Errors
/// When the source does not let us.
pub async fn drop_all(client: &Client, names: &[String]) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    for name in names {
        let there = client.query_opt("SELECT FROM pg_publication WHERE pubname = $1", &[name]).await;
        if there.map_err(|error| failure(error, "the publications"))?.is_some() {
            let sql = Sql::new("DROP PUBLICATION IF EXISTS ").ident(name);
            client
                .batch_execute(sql.as_str())
                .await
                .map_err(|error| failure(error, "the end of a publication"))?;
            dropped.push(name.clone());
        }
    }
    Ok(dropped)
}

fn failure(error: tokio_postgres::Error, what: &'static str) -> crate::error::Failure {
    source::Error::new(what, error).into_failure(Side::Source)
}

#[cfg(test)]
mod tests;
