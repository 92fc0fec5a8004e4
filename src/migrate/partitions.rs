//! Partitions that come while the others are followed.
//!
//! Maintenance makes tomorrow's partition every day, so that is no change of the schema that anybody should have to carry by
//! hand. A partition under a table that the target has is made there as the source has it, published, copied on a later
//! snapshot, and followed. It is in no publication before, so nothing of it is in the stream, and nothing of it is lost:
//! the snapshot is made when it is published, and waits for every transaction that has written by then.
//!
//! The source is asked every other second, beside the stream; a new attempt does the work, before it streams on from where
//! the last one was. What cannot be made on the target is named and tried again later; the others go on, and a cutover is
//! refused as long as it is missing.

mod hierarchy;
mod make;
mod mirror;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::time::{Instant, sleep};

use crate::catalog::{self, SourceClient, Table};
use crate::config::TableFilter;
use crate::error::{Failure, Result, Side, Transient};
use crate::limits::{IDENTITY_LOCK_TIMEOUT, PARTITIONS_INTERVAL, PARTITIONS_RETRY};
use crate::pg::{QualifiedName, Sql};
use crate::store::RelationRow;

use super::attempt::{Attempt, relation_row};
use super::pairing::Recorded;
use super::publications::{self, versions};

/// What was found of partitions that are not followed.
#[derive(Debug, Clone, Default)]
pub(super) struct Unfollowed {
    /// Not under a table that the target has.
    others: HashSet<u32>,
    /// The target could not take them.
    refused: HashSet<u32>,
}

/// Looks for partitions that nobody has looked at yet, and ends when there is one.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    source: Arc<SourceClient>,
    dbname: String,
    publications: Vec<String>,
    filter: &'a TableFilter,
    known: Known,
    unfollowed: Unfollowed,
}

/// The tables that are followed.
#[derive(Debug)]
struct Known {
    ids: HashSet<u32>,
    names: HashSet<QualifiedName>,
}

impl Watch<'_> {
    /// Ends with the first new partition. A source that does not answer is noticed elsewhere.
    pub(super) async fn found(self) {
        let began = Instant::now();
        loop {
            sleep(PARTITIONS_INTERVAL).await;
            let Ok(found) = unpublished(&self.source, &self.publications).await else { continue };
            let again = began.elapsed() >= PARTITIONS_RETRY;
            let new = |partition: &Unpublished| {
                let names = [&partition.name, &partition.root];
                !self.known.has(partition)
                    && !self.unfollowed.others.contains(&partition.oid)
                    && (again || !self.unfollowed.refused.contains(&partition.oid))
                    && self.filter.takes(&self.dbname, names)
            };
            if found.iter().any(new) {
                return;
            }
        }
    }
}

impl<'a> Attempt<'a> {
    /// What looks for new partitions, where `rows` are the tables that are followed.
    pub(super) fn watch(&self, rows: &[RelationRow]) -> Watch<'a> {
        Watch {
            source: Arc::clone(&self.source),
            dbname: self.row.dbname.clone(),
            publications: self.row.publications.clone(),
            filter: &self.migration.filter,
            known: Known::of(rows),
            unfollowed: self.unfollowed.clone(),
        }
    }

    /// Makes what is new on the target, publishes and records it; then it is one of the tables to be copied late. Gives
    /// the tables as they are then.
    pub(super) async fn take_in_partitions(&mut self, mut tables: Vec<Table>) -> Result<Vec<Table>> {
        self.publish_leaves(&tables).await?;
        self.detach_partitions().await?;
        let rows = self.store().relations().await?;
        let recorded = Recorded::new(&rows);
        let new = |table: &&Table| {
            table.is_leaf()
                && table.partition_of.is_some()
                && table.extension.is_none()
                && recorded.of(table).is_none()
                && (table.is_followed() || recorded.named(&table.name).is_none())
        };
        let fresh: Vec<Table> = tables.iter().filter(new).cloned().collect();
        if fresh.is_empty() {
            return Ok(tables);
        }
        let fresh = self.make_partitions(fresh).await?;
        let ids: HashSet<u32> = fresh.iter().map(|table| table.oid.get()).collect();
        let mut fresh = self.identified(fresh).await?;
        fresh.retain(|table| ids.contains(&table.oid.get()));
        for table in &fresh {
            self.publish(table).await?;
            let root = table.partition_of.as_ref().map(ToString::to_string);
            tracing::info!(table = %table.name, of = root, "a new partition: it is copied, and followed from now on");
        }
        let ids: BTreeSet<u32> = fresh.iter().map(|table| table.oid.get()).collect();
        versions::remember(&self.source, &self.row.publications, &self.store(), Some(&ids)).await?;
        let rows: Vec<RelationRow> = fresh.iter().map(relation_row).collect();
        self.store().begin_relations(&rows).await?;
        let mut fresh: HashMap<u32, Table> =
            fresh.into_iter().map(|table| (table.oid.get(), table)).collect();
        for table in &mut tables {
            if let Some(fresh) = fresh.remove(&table.oid.get()) {
                *table = fresh;
            }
        }
        Ok(tables)
    }

    /// Publishes one table as its identity allows.
    async fn publish(&self, table: &Table) -> Result<()> {
        let published = publications::members(&self.source, &self.row.publications).await?;
        if !table.is_followed() || published.contains(&table.name) {
            return Ok(());
        }
        let publication = &self.row.publications[usize::from(!table.has_identity())];
        let add =
            Sql::new("ALTER PUBLICATION ").ident(publication).text(" ADD TABLE ONLY ").name(&table.name);
        alter(&self.source, &add).await
    }

    /// Puts leaves in the place of partitioned tables that an older Walferry published, or somebody else.
    async fn publish_leaves(&self, tables: &[Table]) -> Result<()> {
        let sql = "SELECT p.pubname::text, n.nspname::text, c.relname::text FROM pg_publication p
                   JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
                   JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = ANY ($1) AND c.relkind = 'p'";
        let rows = self.source.query(sql, &[&self.row.publications]).await.map_err(failure)?;
        for row in &rows {
            let publication: String = row.get(0);
            let root = QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            let leaves = tables.iter().filter(|table| {
                table.is_leaf() && table.is_followed() && table.partition_of.as_ref() == Some(&root)
            });
            let leaves: Vec<&Table> = leaves.collect();
            // In one transaction: whatever commits is published by the one name or by the other.
            let mut sql =
                Sql::new("ALTER PUBLICATION ").ident(&publication).text(" DROP TABLE ONLY ").name(&root);
            for (index, publication) in self.row.publications.iter().enumerate() {
                let names = leaves.iter().filter(|leaf| usize::from(!leaf.has_identity()) == index);
                let names: Vec<&QualifiedName> = names.map(|leaf| &leaf.name).collect();
                if !names.is_empty() {
                    let add = sql.text("; ALTER PUBLICATION ").ident(publication).text(" ADD TABLE ");
                    sql = add.list(names, ", ", |sql, name| sql.text("ONLY ").name(name));
                }
            }
            alter(&self.source, &sql).await?;
            let ids: BTreeSet<u32> = leaves.iter().map(|leaf| leaf.oid.get()).collect();
            versions::remember(&self.source, &self.row.publications, &self.store(), Some(&ids)).await?;
            tracing::info!(table = %root, leaves = leaves.len(), "published by its partitions' own names from now on");
        }
        Ok(())
    }

    /// Copies again what somebody took out of a publication and put back, or published otherwise for a while.
    pub(super) async fn refuse_interrupted(
        &self,
        tables: &[Table],
        recorded: &Recorded<'_>,
    ) -> Result<Vec<QualifiedName>> {
        let names = &self.row.publications;
        let store = self.store();
        let (remembered, now) = tokio::try_join!(store.published(), versions::rows(&self.source, names))?;
        let interrupted = versions::interrupted(&remembered, &now);
        let mut again = Vec::new();
        for table in tables.iter().filter(|table| interrupted.tables.contains(&table.oid.get())) {
            if let Some(row) = recorded.of(table) {
                tracing::warn!(table = %row.name, "published otherwise for a while: it is copied again");
                store.copy_again(&row.name).await?;
                again.push(row.name.clone());
            }
        }
        if interrupted.differs {
            store.remember_published(&now).await?;
        }
        Ok(again)
    }

    /// Refuses where partitions came while the source was being fenced.
    pub(super) async fn refuse_new_partitions(&self) -> Result<()> {
        let rows = self.store().relations().await?;
        let known = Known::of(&rows);
        let found = unpublished(&self.source, &self.row.publications).await?;
        let new = found.into_iter().find(|partition| {
            let names = [&partition.name, &partition.root];
            !known.has(partition) && self.migration.filter.takes(&self.row.dbname, names)
        });
        let Some(partition) = new else { return Ok(()) };
        let cause = format!("partition {} was made while the cutover began", partition.name);
        Err(Transient::new(Side::Source, cause).detail("it is copied first").into())
    }
}

impl Known {
    fn of(rows: &[RelationRow]) -> Self {
        Self {
            ids: rows.iter().filter_map(|row| row.origin).map(|origin| origin.id.get()).collect(),
            names: rows.iter().map(|row| row.name.clone()).collect(),
        }
    }

    /// One that is not in the WAL may have been made anew: it is copied again at the end in any case.
    fn has(&self, partition: &Unpublished) -> bool {
        self.ids.contains(&partition.oid) || !partition.logged && self.names.contains(&partition.name)
    }
}

/// A partition that is in none of the publications.
struct Unpublished {
    oid: u32,
    logged: bool,
    name: QualifiedName,
    root: QualifiedName,
}

async fn unpublished(client: &SourceClient, publications: &[String]) -> Result<Vec<Unpublished>> {
    let sql = "WITH RECURSIVE above AS (SELECT c.oid AS leaf, c.oid FROM pg_class c
                   WHERE c.relispartition AND c.relkind = 'r' AND c.relpersistence <> 't'
                       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                       AND d.deptype = 'e')
                       AND NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                                       WHERE r.prrelid = c.oid AND p.pubname = ANY ($1))
                   UNION ALL SELECT a.leaf, i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.oid)
               SELECT l.oid, ln.nspname::text, l.relname::text, rn.nspname::text, r.relname::text,
                   l.relpersistence = 'p' FROM above a
               JOIN pg_class r ON r.oid = a.oid AND NOT r.relispartition JOIN pg_namespace rn ON rn.oid = r.relnamespace
               JOIN pg_class l ON l.oid = a.leaf JOIN pg_namespace ln ON ln.oid = l.relnamespace";
    let rows = client.query(sql, &[&publications]).await.map_err(failure)?;
    let name = |row: &tokio_postgres::Row, at: usize| {
        QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
    };
    let partition = |row: &tokio_postgres::Row| Unpublished {
        oid: row.get(0),
        logged: row.get(5),
        name: name(row, 1),
        root: name(row, 3),
    };
    Ok(rows.iter().map(partition).collect())
}

/// It waits for whoever changes the table's definition, and not for those who write to it.
async fn alter(source: &SourceClient, statement: &Sql) -> Result<()> {
    let timeout = i64::try_from(IDENTITY_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    let sql = Sql::new("SET LOCAL lock_timeout = ").number(timeout).text("; ").sql(statement);
    match source.batch_execute(sql.as_str()).await {
        // Gone since, or in use: the next look knows.
        Err(error) if error.code().is_some_and(|code| ["42P01", "55P03"].contains(&code.code())) => {
            Err(Transient::new(Side::Source, "a partition cannot be published right now")
                .detail(error.to_string())
                .into())
        }
        altered => altered.map_err(failure),
    }
}

fn failure(error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(Side::Source, "the published partitions", error).into()
}
