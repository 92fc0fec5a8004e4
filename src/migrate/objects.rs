//! What is made on the target besides rows: the schema before the copy, indexes and constraints after it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Client;
use tracing::Instrument;

use crate::apply::store::Store;
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::LATE_STATEMENT_GRACE;
use crate::pg::{QualifiedName, Sql};
use crate::source::{self, catalog};
use crate::wire::{self, ConnInfo, Session, SessionOptions};

use super::dump::{Archive, Entry, Wave};
use super::{Phase, joined};

/// Makes the tables and whatever they need, in one transaction with the step to the phase `copying`.
///
/// # Errors
/// When the target refuses a statement; nothing is made then.
pub async fn make_schema(target: &ConnInfo, migration: &str, archive: &Archive) -> Result<()> {
    let (script, mut session) = tokio::try_join!(archive.pre_data(), connect(target))?;
    let step = Sql::new("UPDATE walferry.migration SET phase = ")
        .literal(Phase::Copying.as_str())
        .text(" WHERE name = ")
        .literal(migration);
    for sql in [Sql::new("BEGIN"), script, step, Sql::new("COMMIT")] {
        session.execute(&sql).await.map_err(|error| refused("the schema", error))?;
    }
    session.close().await;
    Ok(())
}

/// What makes the entries of a wave.
#[derive(Debug)]
struct Wanted {
    target: ConnInfo,
    migration: String,
    archive: Arc<Archive>,
    entries: Vec<Unmade>,
    next: AtomicUsize,
}

/// An entry, and its SQL where somebody has read it ahead.
#[derive(Debug)]
struct Unmade {
    entry: Entry,
    script: Mutex<Option<Sql>>,
}

/// What comes after the rows.
#[derive(Debug)]
pub struct PostData<'a> {
    /// A session on the source.
    pub source: &'a Client,
    /// The target.
    pub target: &'a ConnInfo,
    /// A session on it.
    pub control: &'a Client,
    /// The migration's name.
    pub migration: &'a str,
    /// Where it is described.
    pub archive: &'a Arc<Archive>,
    /// How much of it is made at the same time.
    pub jobs: usize,
}

impl PostData<'_> {
    /// Makes what the archive's post-data section has for `wave` and is not made yet.
    ///
    /// # Errors
    /// When the target refuses a statement; what was made before stays made, and is not made again.
    pub async fn make(&self, wave: Wave) -> Result<()> {
        self.make_but(wave, &HashSet::new()).await
    }

    /// The same without the entries of these keys.
    ///
    /// # Errors
    /// As [`PostData::make`].
    pub async fn make_but(&self, wave: Wave, left_out: &HashSet<String>) -> Result<()> {
        let row = Store::new(self.control, self.migration).migration().await?;
        let made = row.map(|row| row.post_data).unwrap_or_default();
        let entries = self.archive.post_data().await?.iter().filter(|(of, entry)| {
            *of == wave && !made.contains(&entry.key) && !left_out.contains(&entry.key)
        });
        let mut entries: Vec<Entry> = entries.map(|(_, entry)| entry.clone()).collect();
        if wave == Wave::Indexes {
            // So that no job is left alone with the largest at the end.
            let bytes = catalog::index_bytes(self.source).await;
            let bytes = bytes.map_err(|error| error.into_failure(Side::Source))?;
            entries.sort_by_key(|entry| std::cmp::Reverse(bytes.get(&entry.key).copied()));
        }
        // What joins others comes after them, in the archive's order.
        let jobs = if wave == Wave::Rest { 1 } else { self.jobs }.min(entries.len());
        let wanted = Arc::new(Wanted {
            target: self.target.clone(),
            migration: self.migration.to_owned(),
            archive: Arc::clone(self.archive),
            entries: entries.into_iter().map(|entry| Unmade { entry, script: Mutex::default() }).collect(),
            next: AtomicUsize::new(0),
        });
        let mut work = JoinSet::new();
        for _ in 0..jobs {
            let wanted = Arc::clone(&wanted);
            work.spawn(async move { wanted.make().await }.in_current_span());
        }
        joined(work).await
    }
}

impl Wanted {
    async fn make(&self) -> Result<()> {
        let (mut session, ()) = tokio::try_join!(connect(&self.target), self.read_ahead())?;
        while let Some(unmade) = self.entries.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let read = unmade.script.lock().await.take();
            let script = match read {
                Some(script) => script,
                None => self.script(&unmade.entry).await?,
            };
            let making = self.make_entry(&mut session, &unmade.entry, &script);
            tokio::try_join!(making, self.read_ahead())?;
        }
        session.close().await;
        Ok(())
    }

    /// Reads the script of the entry that comes next, whoever makes it.
    async fn read_ahead(&self) -> Result<()> {
        if let Some(Unmade { entry, script }) = self.entries.get(self.next.load(Ordering::Relaxed)) {
            let mut script = script.lock().await;
            if script.is_none() {
                // What fails is said when it is needed.
                *script = self.script(entry).await.ok();
            }
        }
        Ok(())
    }

    async fn script(&self, entry: &Entry) -> Result<Sql> {
        self.archive.script(std::slice::from_ref(entry)).await
    }

    /// One entry, in one transaction with the note that it is made.
    async fn make_entry(&self, session: &mut Session, entry: &Entry, script: &Sql) -> Result<()> {
        let note = Sql::new("UPDATE walferry.migration SET post_data = post_data || ")
            .literal(&entry.key)
            .text("::text WHERE name = ")
            .literal(&self.migration);
        for sql in [&Sql::new("BEGIN"), script, &note, &Sql::new("COMMIT")] {
            session.execute(sql).await.map_err(|error| refused(&entry.what, error))?;
        }
        tracing::debug!(object = entry.what, "made");
        Ok(())
    }
}

/// Statistics for the planner, of several tables at a time, the largest first.
///
/// # Errors
/// When the target fails; tables that the role may not analyse are skipped by the server with a warning.
pub async fn analyze(target: &ConnInfo, control: &Client, jobs: usize) -> Result<()> {
    // A partitioned table takes its partitions with it.
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'm', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
               ORDER BY pg_relation_size(c.oid) DESC";
    let rows = control.query(sql, &[]).await.map_err(|error| failure("the tables to analyse", error))?;
    let names: Arc<Vec<_>> = Arc::new(
        rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect(),
    );
    let next = Arc::new(AtomicUsize::new(0));
    let mut work = JoinSet::new();
    for _ in 0..jobs.min(names.len()) {
        let (target, names, next) = (target.clone(), Arc::clone(&names), Arc::clone(&next));
        work.spawn(async move {
            let mut session = connect(&target).await?;
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let analyzed = session.execute(&Sql::new("ANALYZE ").name(name)).await;
                analyzed.map_err(|error| error.into_failure(Side::Target))?;
            }
            session.close().await;
            Ok(())
        });
    }
    joined(work).await
}

/// Settings of a session whose commits wait for nothing.
///
/// What they write and what says that it is there (`walferry.relation`, `post_data`, the phase) is on one server, whose
/// WAL reaches the disk in its order: after a crash a note is never there without what it speaks of. Nor is anything
/// confirmed to the source that is not on the target's disk, with all that was written before it.
pub(super) fn unhurried() -> Vec<(&'static str, String)> {
    vec![("synchronous_commit", "off".to_owned())]
}

/// Keeps a session's statements from going on for long after the `deadline`, when nobody waits for them any more: a server
/// does not notice that the client of a running statement is gone.
pub(super) fn statements_until(deadline: Instant) -> Sql {
    let left = deadline.saturating_duration_since(Instant::now()) + LATE_STATEMENT_GRACE;
    Sql::new("SET statement_timeout = ").number(i64::try_from(left.as_millis()).unwrap_or(i64::MAX))
}

async fn connect(target: &ConnInfo) -> Result<Session> {
    let options = SessionOptions { settings: unhurried(), ..SessionOptions::new("walferry schema") };
    Session::connect(target, &options).await.map_err(|error| error.into_failure(Side::Target))
}

fn refused(what: &str, error: wire::Error) -> Failure {
    if error.is_transient() {
        return error.into_failure(Side::Target);
    }
    Definite::new("the target refused a part of the schema")
        .detail(format!("{what}: {error}"))
        .hint(
            "make it possible on the target (extension, privilege, role), then run `walferry migrate` again",
        )
        .into()
}

fn failure(question: &'static str, error: tokio_postgres::Error) -> Failure {
    source::Error::new(question, error).into_failure(Side::Target)
}
