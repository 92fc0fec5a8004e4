//! REPLICA IDENTITY FULL for tables that have no replica identity, if asked for: then their updates and deletes are in
//! the stream. It is recorded on the target before it is done on the source, so that `remove` puts back what was there.
//!
//! It takes an exclusive lock on the table for an instant. Whoever wants to use the table queues up behind one who waits
//! for that, so the wait is short, and tried again.

use crate::catalog::{self, SourceClient, Table};
use crate::config::Keyless;
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::{IDENTITY_LOCK_TIMEOUT, IDENTITY_RETRY_PAUSE, IDENTITY_TRIES_MAX};
use crate::migrate::attempt::Attempt;
use crate::migrate::report::objects_on_source;
use crate::pg::{QualifiedName, RelationId, ReplicaIdentity, Sql};
use crate::store::ChangedIdentity;

impl Attempt<'_> {
    /// The source's `tables`, which are about to be published, with the identities that they are to have.
    pub(in crate::migrate) async fn identified(&self, tables: Vec<Table>) -> Result<Vec<Table>> {
        if self.migration.contents.keyless != Keyless::Full {
            return Ok(tables);
        }
        let changed: Vec<ChangedIdentity> = tables.iter().filter(changeable).map(changed).collect();
        if changed.is_empty() {
            return Ok(tables);
        }
        self.store().begin_identities(&changed).await?;
        let objects = objects_on_source(&self.store(), &self.row).await?;
        self.migration
            .status
            .update_database(&self.row.dbname, |database| database.objects_on_source = objects);
        for ChangedIdentity { name, .. } in &changed {
            alter(&self.source, name, &identity(name, "FULL")).await?;
            tracing::info!(table = %name, "given REPLICA IDENTITY FULL on the source");
        }
        self.source_tables().await
    }

    /// Says so where REPLICA IDENTITY FULL is asked for when the tables are published and copied already.
    pub(in crate::migrate) fn tell_of_keyless(&self, tables: &[Table]) {
        let names: Vec<String> =
            tables.iter().filter(changeable).map(|table| table.name.to_string()).collect();
        if self.migration.contents.keyless == Keyless::Full && !names.is_empty() {
            tracing::warn!(
                tables = names.join(", "),
                "--replica-identity-full comes too late for tables that are published without: they are copied again at \
                 cutover"
            );
        }
    }
}

/// Puts back what the tables had, as far as they still are as we left them; gives the names of these.
///
/// # Errors
/// When the source does not answer, or a table is in use for too long.
pub async fn put_back(source: &SourceClient, changed: &[ChangedIdentity]) -> Result<Vec<QualifiedName>> {
    let mut done = Vec::new();
    for table in changed {
        // As long as somebody publishes its updates, the source would refuse them.
        let sql = "SELECT n.nspname::text, c.relname::text, EXISTS (SELECT FROM pg_publication p, pg_publication_tables t
                       WHERE t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
                           AND (p.pubupdate OR p.pubdelete))
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE c.oid = $1 AND c.relreplident = 'f'";
        let found = source.query_opt(sql, &[&table.id.get()]).await.map_err(failure)?;
        let Some(row) = found else { continue };
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if row.get(2) {
            tracing::warn!(table = %name, "keeps REPLICA IDENTITY FULL: another publication needs it");
            continue;
        }
        alter(source, &name, &before(&name, table)).await?;
        done.push(name);
    }
    Ok(done)
}

/// The statement that puts back what the table had.
pub fn before(name: &QualifiedName, changed: &ChangedIdentity) -> Sql {
    identity(name, if changed.was_nothing { "NOTHING" } else { "DEFAULT" })
}

fn changeable(table: &&Table) -> bool {
    table.is_leaf() && table.is_followed() && !table.has_identity() && table.takes_full
}

fn changed(table: &Table) -> ChangedIdentity {
    ChangedIdentity {
        id: RelationId::new(table.oid.get()),
        name: table.name.clone(),
        // An index that is gone identifies nothing either.
        was_nothing: table.replica_identity != ReplicaIdentity::Default,
    }
}

fn identity(name: &QualifiedName, kind: &'static str) -> Sql {
    Sql::new("ALTER TABLE ONLY ").name(name).text(" REPLICA IDENTITY ").text(kind)
}

async fn alter(source: &SourceClient, name: &QualifiedName, statement: &Sql) -> Result<()> {
    let timeout = i64::try_from(IDENTITY_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    let sql = Sql::new("SET LOCAL lock_timeout = ").number(timeout).text("; ").sql(statement);
    for attempt in 0..IDENTITY_TRIES_MAX {
        if attempt > 0 {
            tracing::warn!(table = %name, "in use on the source: its replica identity is changed when it is free");
            tokio::time::sleep(IDENTITY_RETRY_PAUSE).await;
        }
        match source.batch_execute(sql.as_str()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => {}
            Err(error) => return Err(failure(error)),
        }
    }
    Err(Definite::new(format!("the replica identity of table {name} cannot be changed: the table is in use"))
        .detail("transactions hold locks on it for minutes")
        .hint(format!("end them, or run {statement} on the source yourself; then run the command again"))
        .into())
}

fn failure(error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(Side::Source, "another replica identity", error).into()
}
