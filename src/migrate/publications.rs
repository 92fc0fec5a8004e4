//! The publications on the source.
//!
//! Two: one for the tables whose rows can be identified, and one with `publish = 'insert, truncate'` (on a
//! source of version 10, which sends no TRUNCATE, `'insert'`) for the others.
//! A table without replica identity must be in no publication that publishes updates or deletes: the source would
//! reject its own UPDATE and DELETE. So FOR ALL TABLES is never used.
//!
//! Of a partitioned table its leaves are published, each by its own name, and never the table above them. Published by
//! that one, a partition is in the stream no longer once it is detached: what one transaction writes between DETACH and
//! ATTACH would be missed, and no look at the catalog shows it. And a partition that is made or attached without a replica
//! identity would make the source reject its own UPDATE and DELETE until somebody looks: that cannot happen to one that is
//! in no publication. What is written to a new partition before it is in one is not lost: it is copied on a later snapshot
//! (`partitions`). Both together would send each change once, under the leaf's identifier (measured on 14 to 18), so
//! there is nothing to be gained from the table above.
//!
//! Who neither owns a table nor belongs to its owner cannot publish it, but for `aiven_extras.pg_create_publication`,
//! which knows no ONLY: what it made is looked at before it is committed.

use std::collections::HashSet;

use crate::catalog::{self, SourceClient, Table, TableKind};
use crate::error::{Definite, Result, Side};
use crate::limits::TABLES_PER_TRANSACTION;
use crate::pg::{QualifiedName, Sql};
use crate::source::Dialect;

/// What goes into which publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publications {
    /// Tables with a replica identity: all changes.
    pub identified: Vec<QualifiedName>,
    /// Tables without: inserts and truncates.
    pub inserts_only: Vec<QualifiedName>,
    /// What the source understands.
    dialect: Dialect,
    /// Some of the tables are others' alone.
    others: bool,
}

impl Publications {
    /// Sorts the source's tables.
    pub fn of(tables: &[Table], dialect: Dialect) -> Self {
        let logged = || tables.iter().filter(|table| table.is_followed());
        let others = logged().any(|table| !table.owned_by_me);
        let mut publications = Self { identified: Vec::new(), inserts_only: Vec::new(), dialect, others };
        for table in logged().filter(|table| table.kind == TableKind::Plain) {
            publications.push(table);
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
    /// When the role may not: it needs CREATE on the database and the privileges of the tables' owners, or `aiven_extras`.
    pub async fn create(&self, client: &SourceClient, names: &[String]) -> Result<()> {
        let [identified, inserts_only] = names else {
            return Err(Definite::new("the migration does not name two publications").into());
        };
        drop_all(client, names).await?;
        if self.needs_extension(client).await? {
            self.create_by_extension(client, identified, true).await?;
            return self.create_by_extension(client, inserts_only, false).await;
        }
        let create = |name: &str| Sql::new("CREATE PUBLICATION ").ident(name);
        let publish = operations(self.dialect, false);
        let inserts = create(inserts_only).text(" WITH (publish = ").literal(publish).text(")");
        // Nobody reads them before they are whole. One statement for all tables would lock more than a source has room for.
        let parts =
            additions(identified, &self.identified).chain(additions(inserts_only, &self.inserts_only));
        for sql in [create(identified), inserts].into_iter().chain(parts) {
            client.batch_execute(sql.as_str()).await.map_err(|error| failure(error, "a new publication"))?;
        }
        Ok(())
    }

    /// Whether the role may not do it itself, and the extension is there to do it.
    async fn needs_extension(&self, client: &SourceClient) -> Result<bool> {
        let sql = "SELECT has_database_privilege(current_database(), 'CREATE')";
        let row = client.query_one(sql, &[]).await.map_err(|error| failure(error, "the right to publish"))?;
        if !self.others && row.get(0) {
            return Ok(false);
        }
        Ok(catalog::publishes_for_others(client).await?)
    }

    async fn create_by_extension(
        &self,
        client: &SourceClient,
        name: &String,
        identified: bool,
    ) -> Result<()> {
        let tables = if identified { &self.identified } else { &self.inserts_only };
        let made = |error| failure(error, "a new publication by aiven_extras");
        client.batch_execute("BEGIN").await.map_err(made)?;
        let outcome = self.called(client, name, identified, tables).await;
        let end = if matches!(outcome, Ok(None)) { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(end).await.map_err(made)?;
        match outcome.map_err(made)? {
            None => Ok(()),
            Some(table) => Err(Definite::new(format!("table {table} cannot be published apart from the one that it inherits from"))
                .detail("aiven_extras.pg_create_publication publishes both alike; the source would reject updates of the one without replica identity")
                .hint("on the source make the migrating role a member of the tables' owner, then run `walferry migrate` again")
                .into()),
        }
    }

    /// Makes the publication in the open transaction; gives a table in it that should not be.
    async fn called(
        &self,
        client: &SourceClient,
        name: &String,
        identified: bool,
        tables: &[QualifiedName],
    ) -> Result<Option<QualifiedName>, tokio_postgres::Error> {
        let quoted: Vec<String> = tables.iter().map(|table| Sql::default().name(table).to_string()).collect();
        let sql = catalog::call_extension(
            catalog::PG_CREATE_PUBLICATION,
            "aiven_extras.pg_create_publication(name, operations, VARIADIC tables)",
            "$1::text AS name, $2::text AS operations, $3::text[] AS tables",
        );
        client.execute(sql.as_str(), &[name, &operations(self.dialect, identified), &quoted]).await?;
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                   JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1";
        let found = client.query(sql, &[name]).await?;
        let found =
            found.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
        Ok(found.into_iter().find(|table| !tables.contains(table)))
    }
}

/// What a publication publishes, as its option `publish` has it.
fn operations(dialect: Dialect, identified: bool) -> &'static str {
    match (identified, dialect.publishes_truncate()) {
        (true, true) => "insert, update, delete, truncate",
        (true, false) => "insert, update, delete",
        (false, true) => "insert, truncate",
        (false, false) => "insert",
    }
}

/// The tables that are published by any of the publications: partitions by their own names.
///
/// # Errors
/// When the source does not answer.
pub async fn members(client: &SourceClient, names: &[String]) -> Result<HashSet<QualifiedName>> {
    let sql = "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = ANY ($1)";
    let rows = client.query(sql, &[&names]).await.map_err(|error| failure(error, "the published tables"))?;
    let name =
        |row: &tokio_postgres::Row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(name).collect())
}

/// A publication that does not publish what it did, and the tables whose changes were missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Altered {
    /// The publication.
    pub publication: String,
    /// What is wrong with it.
    pub what: &'static str,
    /// The tables: those that stand in the publication, so a partitioned one for its partitions.
    pub tables: Vec<QualifiedName>,
    /// The statements that mend it, on the source.
    pub mend: Vec<Sql>,
}

/// What somebody else changed: missing publications, other operations, row filters and column lists (15).
///
/// # Errors
/// When the source does not answer.
pub async fn altered(client: &SourceClient, names: &[String]) -> Result<Vec<Altered>> {
    // Columns that a version does not have are NULL so.
    let sql = "SELECT p.pubname::text, coalesce((j ->> 'pubinsert')::bool AND (j ->> 'pubupdate')::bool = (p.pubname = $2)
                   AND (j ->> 'pubdelete')::bool = (p.pubname = $2) AND coalesce((j ->> 'pubtruncate')::bool, true)
                   AND NOT coalesce((j ->> 'pubviaroot')::bool, false), false)
               FROM pg_publication p, to_jsonb(p) j WHERE p.pubname = ANY ($1)";
    let question = |error| failure(error, "the publications");
    let found = client.query(sql, &[&names, &names.first()]).await.map_err(question)?;
    let sql = "SELECT n.nspname::text, c.relname::text, j ->> 'prqual' IS NOT NULL OR j ->> 'prattrs' IS NOT NULL
               FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace, to_jsonb(r) j WHERE p.pubname = $1";
    let mut altered = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let publication = name.clone();
        let Some(row) = found.iter().find(|row| row.get::<_, String>(0) == *name) else {
            altered.push(Altered { publication, what: "is gone", tables: Vec::new(), mend: Vec::new() });
            continue;
        };
        let rows = client.query(sql, &[name]).await.map_err(question)?;
        let tables = |restricted_only: bool| {
            let rows = rows.iter().filter(|row| !restricted_only || row.get(2));
            let names = rows.map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
            names.collect::<Vec<_>>()
        };
        let alter = || Sql::new("ALTER PUBLICATION ").ident(name);
        if !row.get::<_, bool>(1) {
            let dialect = catalog::dialect(client).await?;
            let operations = operations(dialect, index == 0);
            let mend = vec![alter().text(" SET (publish = ").literal(operations).text(")")];
            let what = "publishes other operations than it did";
            altered.push(Altered { publication: publication.clone(), what, tables: tables(false), mend });
        }
        let tables = tables(true);
        if !tables.is_empty() {
            let drop = |table| alter().text(" DROP TABLE ONLY ").name(table);
            let add = |table| alter().text(" ADD TABLE ONLY ").name(table);
            let mend = tables.iter().flat_map(|table| [drop(table), add(table)]).collect();
            altered.push(Altered { publication, what: "has a row filter or a column list", tables, mend });
        }
    }
    Ok(altered)
}

/// Drops the publications that are there; says which.
///
/// # Errors
/// When the source does not let us.
pub async fn drop_all(client: &SourceClient, names: &[String]) -> Result<Vec<String>> {
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

/// The statements that put `tables` into a publication.
fn additions(publication: &str, tables: &[QualifiedName]) -> impl Iterator<Item = Sql> {
    tables.chunks(TABLES_PER_TRANSACTION).map(move |tables| {
        let add = Sql::new("ALTER PUBLICATION ").ident(publication).text(" ADD TABLE ");
        add.list(tables, ", ", |sql, table| sql.text("ONLY ").name(table))
    })
}

fn failure(error: tokio_postgres::Error, what: &'static str) -> crate::error::Failure {
    catalog::Error::new(Side::Source, what, error).into()
}

pub mod versions;

#[cfg(test)]
mod tests;
