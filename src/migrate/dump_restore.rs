//! Method `pg_dump`: a database that is moved once, as one snapshot of the source shows it.
//!
//! For a source that cannot do logical replication, or where somebody wants it so. The schema comes by `pg_dump`, the
//! rows by our own copy, several tables and ranges at once; then what replication would make, too. Nothing is made on
//! the source: neither slot nor publication. What is written there after the snapshot is not carried, and the log says so
//! at the beginning and at the end.
//!
//! Invariants: all rows are of one moment. An emptied or rewritten table looks empty to an older snapshot, so every table
//! is locked in ACCESS SHARE mode, as `pg_dump` does, before the snapshot is taken and until all rows are counted. The
//! snapshot dies with its session: a run that finds the rows incomplete empties all tables and begins with them anew.
//! Rows count as copied only when each table has as many on the target as on the snapshot; done comes after everything.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;

use crate::apply::TargetSession;
use crate::catalog::{self, Generated, SourceClient, Table, TableColumn, TableKind};
use crate::config::Method;
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{TABLES_LOCK_TIMEOUT, TABLES_LOCK_TRIES_MAX};
use crate::pg::{QualifiedName, SourceLsn, Sql};
use crate::store::{MigrationRow, RelationRow, RelationState};
use crate::wire::{ConnInfo, ServerError, Session, SessionOptions};

use super::attempt::{Attempt, Ended, gone, relation_row};
use super::copy::Copy;
use super::dump::Archive;
use super::filter::moved;
use super::preflight::listed;
use super::uncarried::with_extensions;
use super::{Migration, Phase, foreign_keys, joined};

/// A snapshot of the source, exported, with all its tables locked against being emptied, rewritten or dropped.
struct Exported {
    /// Its transaction ends with it.
    client: SourceClient,
    /// What SET TRANSACTION SNAPSHOT takes.
    id: String,
    /// When it was taken, by the source's clock.
    taken_at: String,
    /// The tables that have rows of their own.
    tables: Vec<Table>,
}

/// What counts the rows of tables, some at a time.
#[derive(Clone)]
struct Counting {
    side: Side,
    /// On the source: what reads its snapshot.
    copy: Copy,
    target: ConnInfo,
    names: Arc<Vec<QualifiedName>>,
    next: Arc<AtomicUsize>,
    counts: Arc<Mutex<HashMap<QualifiedName, i64>>>,
}

impl Migration {
    /// Says of one that is done, and of this method, what that means.
    pub(super) fn show_moved_once(&self, row: &MigrationRow) {
        if row.method != Method::PgDump {
            return;
        }
        tracing::warn!("done before: {NOT_CARRIED}");
        self.status.update_database(&row.dbname, |database| {
            (database.method, database.phase) = (row.method, Phase::Done);
            database.method_reason.clone_from(&row.method_reason);
            database.dumped_at.clone_from(&row.dumped_at);
            database.started_at = row.started_at;
            database.clear_error();
        });
    }
}

impl Attempt<'_> {
    /// Dumps and restores, from the stored phase on. `session` holds the migration's lock.
    pub(super) async fn move_once(&mut self, session: TargetSession) -> Result<Ended> {
        let reason = self.row.method_reason.as_str();
        let reason = if reason.is_empty() { "asked for" } else { reason };
        tracing::warn!(reason, "method pg_dump: one dump and restore; {NOT_CARRIED}");
        self.migration.status.update_database(&self.row.dbname, |database| {
            database.method = Method::PgDump;
            database.method_reason.clone_from(&self.row.method_reason);
            database.dumped_at.clone_from(&self.row.dumped_at);
            database.started_at = self.row.started_at;
            database.clear_error();
        });
        let mut stop = self.migration.stop.clone();
        let ended = tokio::select! {
            moved = self.dump_and_restore() => moved.map(|()| Ended::Done),
            _ = stop.wait_for(|stop| *stop) => Ok(Ended::Stopped),
        };
        if matches!(ended, Ok(Ended::Stopped)) && self.phase.get() != Phase::Indexing {
            tracing::warn!("stopped before all rows were there: the next run copies all of them afresh");
        }
        drop(session);
        ended
    }

    async fn dump_and_restore(&mut self) -> Result<()> {
        let written = written(&self.source).await?;
        self.carry_roles().await?;
        let (archive, taken_at) = if self.phase.get() == Phase::Indexing {
            tracing::info!("all rows are there; the rest of the schema is made as the source has it now");
            (self.archive(None).await?, None)
        } else {
            let (archive, taken_at) = self.dump_rows().await?;
            self.store().set_dumped_at(&taken_at).await?;
            self.migration
                .status
                .update_database(&self.row.dbname, |database| database.dumped_at.clone_from(&taken_at));
            self.enter(Phase::Indexing).await?;
            (archive, Some(taken_at))
        };
        self.migration.show(Phase::Indexing);
        self.show_tables().await?;
        self.index(&archive).await?;
        let left_out = self.left_out().await?;
        self.making(&archive).foreign_keys(&left_out).await?;
        let keys = foreign_keys::unvalidated(&self.source, &self.target).await?;
        foreign_keys::validate(&self.target, &keys).await?;
        self.enter(Phase::Done).await?;
        if let Some(taken_at) = taken_at {
            self.tell_of_changes(&written, &taken_at).await;
        }
        Ok(())
    }

    /// Schema and rows of one snapshot. Gives the archive of its schema, and when that was.
    async fn dump_rows(&mut self) -> Result<(Arc<Archive>, String)> {
        self.migration.show(self.phase.get());
        let snapshot = Exported::open(self.migration).await?;
        let taken_at = snapshot.taken_at.clone();
        let tables = snapshot.tables.len();
        tracing::info!(
            taken_at,
            tables,
            "snapshot taken; until it ends, the source's TRUNCATE, DROP and ALTER TABLE wait"
        );
        let archive = self.archive(Some(&snapshot.id)).await?;
        if self.phase.get() == Phase::Schema {
            self.making(&archive).schema().await?;
            self.enter(Phase::Copying).await?;
        } else {
            tracing::warn!("the snapshot of the last run is gone: all tables are emptied and copied afresh");
        }
        self.refuse_another_shape(&snapshot.tables).await?;
        let rows = self.start_over(&snapshot.tables).await?;
        // No stream follows, so no position of it matters.
        let copy = self.copy(&snapshot.id, SourceLsn::ZERO, false).await?;
        // Their locks keep them as they are.
        let changed = copy.run(snapshot.tables.clone(), rows).await?;
        if let Some(table) = changed.first() {
            return Err(
                Transient::new(Side::Source, format!("table {table} changed though it was locked")).into()
            );
        }
        self.carry_large_objects(&snapshot.id).await?;
        self.prove_rows(&copy, &snapshot.tables).await?;
        snapshot.end().await?;
        Ok((archive, taken_at))
    }

    /// The tables as this run finds them, each to be emptied where an earlier one may have left rows.
    async fn start_over(&self, tables: &[Table]) -> Result<Vec<RelationRow>> {
        let store = self.store();
        let rows: Vec<RelationRow> = tables.iter().map(relation_row).collect();
        store.begin_relations(&rows).await?;
        let found: HashSet<&QualifiedName> = tables.iter().map(|table| &table.name).collect();
        for row in store.relations().await? {
            if !found.contains(&row.name) {
                return Err(gone(&row).into());
            }
            store.copy_again(&row.name).await?;
        }
        self.show_tables().await?;
        let known = store.relations().await?;
        let known: HashMap<_, _> = known.into_iter().map(|row| (row.name.clone(), row)).collect();
        let of = |table: &Table| known.get(&table.name).cloned();
        Ok(tables.iter().filter_map(of).collect())
    }

    /// The target's tables were made by this run or by an earlier one; the source's may be others since.
    async fn refuse_another_shape(&self, tables: &[Table]) -> Result<()> {
        let found = catalog::target_tables(&self.target).await?;
        let found: HashMap<_, _> = found.iter().map(|table| (&table.name, table)).collect();
        for table in tables.iter().filter(|table| table.extension.is_none()) {
            let there = found.get(&table.name);
            let same = there.is_some_and(|there| {
                let columns = there.columns.iter().map(|column| shape(&column.column));
                columns.eq(table.columns.iter().map(shape))
            });
            if !same {
                let what = if there.is_some() { "has other columns" } else { "is not there" };
                return Err(Definite::new(format!(
                    "table {} {what} on the target: the source's tables changed since the dump began",
                    table.name
                ))
                .hint(
                    "start afresh: `walferry remove --force`, empty the target's database, then `walferry migrate`",
                )
                .into());
            }
        }
        Ok(())
    }

    /// Compares the rows of every table on the snapshot with the target's, by number.
    async fn prove_rows(&self, copy: &Copy, tables: &[Table]) -> Result<()> {
        let mut rows = self.store().relations().await?;
        // Beside its users' rows, an extension has its own in its tables: other ones in another version.
        let own = tables.iter().filter(|table| table.extension.is_none());
        let own: HashSet<&QualifiedName> = own.map(|table| &table.name).collect();
        rows.retain(|row| own.contains(&row.name));
        let names: Arc<Vec<_>> = Arc::new(rows.iter().map(|row| row.name.clone()).collect());
        let counting = |side| Counting {
            side,
            copy: copy.clone(),
            target: self.migration.sides.target.clone(),
            names: Arc::clone(&names),
            next: Arc::default(),
            counts: Arc::default(),
        };
        let jobs = self.migration.jobs;
        let (source, target) =
            tokio::try_join!(counting(Side::Source).run(jobs), counting(Side::Target).run(jobs))?;
        for row in &rows {
            let (there, here) = (source.get(&row.name), target.get(&row.name));
            if there != here || there != Some(&row.rows_copied) || row.state != RelationState::Copied {
                let text = |count: Option<&i64>| count.map_or("none".to_owned(), i64::to_string);
                let (there, here, copied) = (text(there), text(here), row.rows_copied);
                return Err(Definite::new(format!("table {} is not what it is on the source", row.name))
                    .detail(format!("rows on the source: {there}, copied: {copied}, on the target: {here}"))
                    .hint(
                        "see that nobody writes to the target, then run `walferry migrate` again: it copies afresh",
                    )
                    .into());
            }
        }
        let total: i64 = rows.iter().map(|row| row.rows_copied).sum();
        tracing::info!(tables = rows.len(), rows = total, "every table has as many rows as on the source");
        Ok(())
    }

    /// Names the tables that were written to meanwhile, as far as the source's statistics tell. It is help, no proof.
    async fn tell_of_changes(&self, before: &HashMap<QualifiedName, i64>, taken_at: &str) {
        let (Ok(after), Ok(moved)) = (written(&self.source).await, self.store().relations().await) else {
            return;
        };
        let moved: HashSet<&QualifiedName> = moved.iter().map(|row| &row.name).collect();
        let mut changed: Vec<String> = after
            .iter()
            .filter(|(name, _)| moved.contains(name))
            .filter(|(name, count)| before.get(*name) != Some(*count))
            .map(|(name, _)| name.to_string())
            .collect();
        changed.sort();
        if changed.is_empty() {
            tracing::info!(taken_at, "the source's statistics show no change since the snapshot");
        } else {
            let tables = listed(&changed);
            tracing::warn!(taken_at, tables, "changed on the source since about the snapshot: NOT carried");
        }
    }
}

impl Exported {
    /// Locks, then looks: in this isolation level the first question fixes what is seen.
    async fn open(migration: &Migration) -> Result<Self> {
        for _ in 0..TABLES_LOCK_TRIES_MAX {
            let client = migration.sides.source_client().await?;
            let before = leaves(&client, migration).await?;
            let timeout = TABLES_LOCK_TIMEOUT.as_millis().try_into().unwrap_or(i64::MAX);
            let begin =
                Sql::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = ")
                    .number(timeout);
            client.batch_execute(begin.as_str()).await.map_err(refused)?;
            if !before.is_empty() {
                let lock = Sql::new("LOCK TABLE ")
                    .list(&before, ", ", |sql, table| sql.text("ONLY ").name(&table.name))
                    .text(" IN ACCESS SHARE MODE");
                match client.batch_execute(lock.as_str()).await {
                    Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => continue,
                    locked => locked.map_err(refused)?,
                }
            }
            let taken = client.query_one("SELECT pg_export_snapshot(), clock_timestamp()::text", &[]).await;
            let taken = taken.map_err(refused)?;
            let (id, taken_at) = (taken.get(0), taken.get(1));
            let tables = leaves(&client, migration).await?;
            let before: HashSet<_> = before.iter().map(|known| known.oid).collect();
            let locked = |table: &Table| before.contains(&table.oid);
            if tables.iter().all(locked) {
                return Ok(Self { client, id, taken_at, tables });
            }
        }
        Err(Transient::new(Side::Source, "tables are made and dropped all the time: they cannot be locked")
            .into())
    }

    /// It must have lived until now, and its locks with it.
    async fn end(self) -> Result<()> {
        self.client.batch_execute("COMMIT").await.map_err(refused)
    }
}

impl Counting {
    async fn run(self, jobs: usize) -> Result<HashMap<QualifiedName, i64>> {
        let mut work = JoinSet::new();
        for _ in 0..jobs.min(self.names.len()) {
            let counting = self.clone();
            work.spawn(async move { counting.work().await });
        }
        joined(work).await?;
        Ok(std::mem::take(&mut self.counted()))
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<QualifiedName, i64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(&self) -> Result<()> {
        let mut session = match self.side {
            Side::Source => self.copy.reading_session().await?,
            Side::Target => {
                let connected = Session::connect(&self.target, &SessionOptions::new("walferry copy")).await;
                connected.map_err(|error| error.into_failure(Side::Target))?
            }
        };
        while let Some(name) = self.names.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let sql = Sql::new("SELECT count(*) FROM ONLY ").name(name);
            let rows = session.query(&sql).await.map_err(|error| error.into_failure(self.side))?;
            let count = rows.first().and_then(|row| row.text(0)).and_then(|text| text.parse().ok());
            let count = count.ok_or_else(|| {
                Definite::new(format!("the rows of table {name} on the {} cannot be counted", self.side))
            })?;
            self.counted().insert(name.clone(), count);
        }
        session.close().await;
        Ok(())
    }
}

const NOT_CARRIED: &str = "changes made on the source after its start are NOT carried";

/// The tables to be moved that have rows of their own.
async fn leaves(client: &SourceClient, migration: &Migration) -> Result<Vec<Table>> {
    let tables = catalog::tables(client).await?;
    let tables = with_extensions(tables, &migration.contents);
    Ok(moved(&tables, &migration.filter, migration.sides.source.dbname())
        .into_iter()
        .filter(|table| table.kind == TableKind::Plain)
        .collect())
}

/// How often rows of each table were written, as the source counts them.
async fn written(source: &SourceClient) -> Result<HashMap<QualifiedName, i64>> {
    let sql =
        "SELECT schemaname::text, relname::text, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables";
    let rows = source.query(sql, &[]).await.map_err(refused)?;
    let count = |row: &tokio_postgres::Row| {
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        (name, row.get::<_, Option<i64>>(2).unwrap_or(0))
    };
    Ok(rows.iter().map(count).collect())
}

/// What must be the same of a column for its values to be.
fn shape(column: &TableColumn) -> (&str, &str, i32, bool) {
    (&column.name, &column.type_own_name, column.type_modifier, column.generated == Generated::No)
}

fn refused(error: tokio_postgres::Error) -> Failure {
    if let Some(failure) =
        error.as_db_error().map(ServerError::from_db_error).as_ref().and_then(locks_refused)
    {
        return failure;
    }
    catalog::Error::new(Side::Source, "a snapshot of the source", error).into()
}

/// What the locks on all tables at once may meet.
fn locks_refused(error: &ServerError) -> Option<Failure> {
    if error.lacks_locks() {
        let failure = Definite::new("the source cannot lock all its tables at once")
            .detail(error.message().unwrap_or_default())
            .hint(
                "raise max_locks_per_transaction on the source, which restarts it; pg_dump needs that, too",
            );
        return Some(failure.into());
    }
    if error.sqlstate() != SqlState::LOCK_NOT_AVAILABLE.code() {
        return None;
    }
    let cause = "a table of the source cannot be locked: somebody changes or empties it in a transaction that is open";
    let failure = Transient::new(Side::Source, cause)
        .detail("SELECT pid, relation::regclass FROM pg_locks WHERE mode = 'AccessExclusiveLock' tells who");
    Some(failure.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_of_locks_is_told_from_one_of_memory() {
        let refused = |message, hint| locks_refused(&ServerError::of("53200", message, hint));
        let setting = "You might need to increase \"max_locks_per_transaction\".";
        let Some(Failure::Definite(definite)) = refused("out of shared memory", Some(setting)) else {
            panic!("somebody has to raise it");
        };
        assert!(definite.hint.contains("raise max_locks_per_transaction"), "{definite}");
        // It passes, and is tried again.
        assert_eq!(refused("out of memory", None), None);
    }
}
