//! What may change on the source's tables while a migration follows them.
//!
//! A table that loses its replica identity while it is published with updates makes the source reject its own UPDATE
//! and DELETE. It is taken out of that publication at once: the source is not to be harmed; and since its changes are
//! missed from then on, the migration stops and says so. A table made later is not carried: the log says so.

use std::collections::HashSet;

use crate::error::{Definite, Failure, Result, Side};
use crate::pg::{QualifiedName, Sql};
use crate::source::catalog::{self, Persistence, Table, TableKind};
use crate::source::{self};

use super::attempt::Attempt;

impl Attempt<'_> {
    /// Looks, and acts.
    pub(super) async fn look_at_source_tables(&mut self) -> Result<()> {
        let tables = catalog::tables(&self.source).await.map_err(|error| error.into_failure(Side::Source))?;
        let relations = self.store().relations().await?;
        let carried: HashSet<&QualifiedName> = relations.iter().map(|row| &row.name).collect();
        for table in
            tables.iter().filter(|table| table.kind == TableKind::Plain && !carried.contains(&table.name))
        {
            if self.told.insert(table.name.clone()) {
                tracing::warn!(table = %table.name, "made on the source after the copy began: it is not carried");
            }
        }
        let lost = self.without_identity(&tables).await?;
        let Some(first) = lost.first() else { return Ok(()) };
        let publication = &self.row.publications[0];
        for table in &lost {
            let sql = Sql::new("ALTER PUBLICATION ").ident(publication).text(" DROP TABLE ").name(table);
            self.source.batch_execute(sql.as_str()).await.map_err(failure)?;
        }
        let names: Vec<String> = lost.iter().map(ToString::to_string).collect();
        Err(Definite::new(format!("table {first} lost its replica identity on the source"))
            .detail(format!(
                "taken out of publication {publication}, so that the source can go on writing: {}",
                names.join(", ")
            ))
            .hint("its changes are no longer carried; start afresh after `walferry remove --force`")
            .into())
    }

    /// Tables published with updates that nothing identifies any more; for a partition, the table published for it.
    async fn without_identity(&self, tables: &[Table]) -> Result<Vec<QualifiedName>> {
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_publication p
                   JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
                   JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1";
        let rows = self.source.query(sql, &[&self.row.publications[0]]).await.map_err(failure)?;
        let published: HashSet<QualifiedName> = rows
            .iter()
            .map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)))
            .collect();
        let unidentified = tables.iter().filter(|table| {
            table.kind == TableKind::Plain
                && table.persistence == Persistence::Permanent
                && !table.has_identity()
        });
        let mut lost: Vec<QualifiedName> = unidentified
            .map(|table| {
                table.partition_of.as_ref().filter(|root| published.contains(*root)).unwrap_or(&table.name)
            })
            .filter(|name| published.contains(*name))
            .cloned()
            .collect();
        lost.sort();
        lost.dedup();
        Ok(lost)
    }
}

fn failure(error: tokio_postgres::Error) -> Failure {
    source::Error::new("the published tables", error).into_failure(Side::Source)
}
