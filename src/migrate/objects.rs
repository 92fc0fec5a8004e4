//! What is made on the target besides rows: the schema before the copy, indexes and constraints after it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::catalog::{self, SourceClient, TargetClient};
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::{DEADLOCK_TRIES_MAX, LATE_STATEMENT_GRACE, SCHEMA_ENTRIES_PER_TRANSACTION};
use crate::pg::{QualifiedName, Sql};
use crate::store::{Store, note_made};
use crate::wire::{self, ConnInfo, ServerError, Session, SessionOptions, TransactionStatus};

use super::dump::{Archive, Entry, Wave};
use super::{foreign_keys, joined};

/// What of the schema is made, and where.
#[derive(Debug)]
pub struct Making<'a> {
    /// A session on the source.
    pub source: &'a SourceClient,
    /// The target.
    pub target: &'a ConnInfo,
    /// A session on it.
    pub control: &'a TargetClient,
    /// The migration's name.
    pub migration: &'a str,
    /// Where it is described.
    pub archive: &'a Arc<Archive>,
    /// How much of it is made at the same time.
    pub jobs: usize,
}

/// What makes the entries of a wave.
#[derive(Debug)]
struct EntryQueue {
    target: ConnInfo,
    migration: String,
    settings: Sql,
    entries: Vec<Entry>,
    next: AtomicUsize,
}

impl Making<'_> {
    /// Makes the tables and whatever they need.
    ///
    /// # Errors
    /// When the target refuses a statement; what was made before stays made, and is not made again.
    pub async fn schema(&self) -> Result<()> {
        let mut left = self.pre_data_left().await?;
        let there = schemas(self.control).await?;
        left.retain(|entry| !entry.is_about_schema(&there));
        let wanted = self.wanted(left);
        let mut session = wanted.connect().await?;
        wanted.make_in_order(&mut session).await?;
        session.close().await;
        Ok(())
    }

    /// What an earlier run made has to be what the source has now, since nobody makes it again.
    async fn pre_data_left(&self) -> Result<Vec<Entry>> {
        let made = Store::new(self.control, self.migration).made().await?;
        let mut left = Vec::new();
        let mut there = 0;
        for entry in self.archive.of(Wave::PreData) {
            match made.get(&entry.key) {
                Some(digest) if *digest == entry.digest() => there += 1,
                Some(_) if entry.is_repeatable() => {
                    there += 1;
                    left.push(entry.clone());
                }
                Some(_) => return Err(changed(&entry.to_string()).into()),
                None => left.push(entry.clone()),
            }
        }
        if there < made.len() {
            return Err(changed("an object that is gone now").into());
        }
        Ok(left)
    }

    /// Makes what the archive has for `wave` and is not made yet.
    ///
    /// # Errors
    /// When the target refuses a statement; what was made before stays made, and is not made again.
    pub async fn make(&self, wave: Wave) -> Result<()> {
        self.make_but(wave, &HashSet::new()).await
    }

    /// Makes foreign keys and what hangs on them, without those of these keys.
    ///
    /// # Errors
    /// As [`Making::make`].
    pub async fn foreign_keys(&self, left_out: &HashSet<String>) -> Result<()> {
        let left_out = self.archive.hanging_on(left_out);
        self.make_but(Wave::ForeignKeys, &left_out).await?;
        self.make_but(Wave::AfterForeignKeys, &left_out).await
    }

    async fn make_but(&self, wave: Wave, left_out: &HashSet<String>) -> Result<()> {
        let made = Store::new(self.control, self.migration).made().await?;
        let left = |entry: &&Entry| !made.contains_key(&entry.key) && !left_out.contains(&entry.key);
        let mut entries: Vec<Entry> = self.archive.of(wave).filter(left).cloned().collect();
        if wave == Wave::Indexes && !entries.is_empty() {
            // So that no job is left alone with the largest at the end.
            let bytes = catalog::index_bytes(self.source).await?;
            entries.sort_by_key(|entry| std::cmp::Reverse(bytes.get(&entry.key).copied()));
        }
        let any_order = matches!(wave, Wave::Indexes | Wave::ForeignKeys);
        let jobs = if any_order { self.jobs } else { 1 }.min(entries.len());
        let wanted = Arc::new(self.wanted(entries));
        let mut work = JoinSet::new();
        for _ in 0..jobs {
            let wanted = Arc::clone(&wanted);
            let make = async move {
                let mut session = wanted.connect().await?;
                if any_order {
                    wanted.make_some(&mut session).await?;
                } else {
                    wanted.make_in_order(&mut session).await?;
                }
                session.close().await;
                Ok(())
            };
            work.spawn(make.in_current_span());
        }
        joined(work).await
    }

    fn wanted(&self, entries: Vec<Entry>) -> EntryQueue {
        EntryQueue {
            target: self.target.clone(),
            migration: self.migration.to_owned(),
            settings: self.archive.settings().clone(),
            entries,
            next: AtomicUsize::new(0),
        }
    }
}

impl EntryQueue {
    async fn connect(&self) -> Result<Session> {
        let mut session = connect(&self.target).await?;
        session.execute(&self.settings).await.map_err(|error| error.into_failure(Side::Target))?;
        Ok(session)
    }

    /// Those that nobody has taken, one by one.
    async fn make_some(&self, session: &mut Session) -> Result<()> {
        while let Some(entry) = self.entries.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.make_one(session, entry).await?;
        }
        Ok(())
    }

    /// All, in transactions of some each: one for all would take more locks than a server has.
    async fn make_in_order(&self, session: &mut Session) -> Result<()> {
        for entries in self.entries.chunks(SCHEMA_ENTRIES_PER_TRANSACTION) {
            let sql = Sql::default().list(entries, "", |sql, entry| sql.sql(&entry.sql));
            match self.make(session, &sql, entries).await {
                Ok(()) => {}
                Err(error) if error.server().is_some() => {
                    // By themselves, each takes the fewest locks, and the one that is refused is known.
                    tracing::debug!(%error, "made one by one");
                    for entry in entries {
                        self.make_one(session, entry).await?;
                    }
                }
                Err(error) => return Err(error.into_failure(Side::Target)),
            }
        }
        Ok(())
    }

    async fn make_one(&self, session: &mut Session, entry: &Entry) -> Result<()> {
        let one = std::slice::from_ref(entry);
        for tries in 1.. {
            match self.make(session, &entry.sql, one).await {
                Ok(()) => break,
                Err(error) if state(&error) == DEADLOCK && tries < DEADLOCK_TRIES_MAX => {}
                Err(error) if state(&error) == VIOLATED && entry.kind == FOREIGN_KEY => {
                    let Some(sql) = foreign_keys::not_valid(&entry.sql) else {
                        return Err(refused(entry, error));
                    };
                    let made = self.make(session, &sql, one).await;
                    // Where the server knows no such key (of a partitioned table), what it said first says more.
                    made.map_err(|_| refused(entry, error))?;
                    tracing::warn!(constraint = %entry, "made NOT VALID: rows violate it; it is validated when later changes are applied");
                    break;
                }
                Err(error) => return Err(refused(entry, error)),
            }
        }
        tracing::debug!(object = %entry, "made");
        Ok(())
    }

    /// In one transaction with the note that they are made.
    async fn make(&self, session: &mut Session, sql: &Sql, entries: &[Entry]) -> wire::Result<()> {
        let made = entries.iter().map(|entry| (entry.key.as_str(), entry.digest()));
        let sql = Sql::new("BEGIN;\n").sql(sql).text(";\n").sql(&note_made(&self.migration, made));
        let done = session.execute(&sql.text(";\nCOMMIT")).await;
        if done.is_err() && session.transaction_status() == TransactionStatus::Failed {
            session.execute(&Sql::new("ROLLBACK")).await?;
        }
        done
    }
}

/// As an archive names them.
const FOREIGN_KEY: &str = "FK CONSTRAINT";

/// `deadlock_detected`.
const DEADLOCK: &str = "40P01";

/// `foreign_key_violation`.
const VIOLATED: &str = "23503";

fn state(error: &wire::Error) -> &str {
    error.server().map_or("", |error| error.sqlstate())
}

fn changed(what: &str) -> Definite {
    Definite::new("the source's schema changed while it was being made on the target")
        .detail(format!("an earlier run made another definition: {what}"))
        .hint("start afresh: `walferry remove --force`, empty the target's database, then `walferry migrate`")
}

/// Statistics for the planner, of several tables at a time, the largest first.
///
/// # Errors
/// When the target fails; tables that the role may not analyse are skipped, by the server where it may use their schema.
pub async fn analyze(target: &ConnInfo, control: &TargetClient, jobs: usize) -> Result<()> {
    // A partitioned table takes its partitions with it.
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'm', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND has_schema_privilege(n.oid, 'USAGE')
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
/// What they write and what says that it is there (`walferry.relation`, `walferry.made`, the phase) is on one server, whose
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

/// The schemas that are there already: an administrator made extensions in them, say.
async fn schemas(target: &TargetClient) -> Result<Vec<String>> {
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_'";
    let rows = target.query(sql, &[]).await.map_err(|error| failure("the schemas", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn connect(target: &ConnInfo) -> Result<Session> {
    let name = "walferry schema";
    let options =
        SessionOptions { settings: unhurried(), search_path_late: true, ..SessionOptions::new(name) };
    Session::connect(target, &options).await.map_err(|error| error.into_failure(Side::Target))
}

/// The failure that an operator sees: which object, and what to do about it.
fn refused(entry: &Entry, error: wire::Error) -> Failure {
    let lacks_locks = lacks_locks(&error);
    if error.is_transient() && !lacks_locks {
        return error.into_failure(Side::Target);
    }
    let hint = if lacks_locks {
        "on the target: raise max_locks_per_transaction, which restarts it (a managed service: ask its support)"
    } else {
        hint(state(&error), &entry.kind)
    };
    let said =
        error.server().and_then(|error| error.hint()).map(|hint| format!(" ({hint})")).unwrap_or_default();
    Definite::new("the target refused a part of the schema")
        .detail(format!("{entry}: {error}{said}"))
        .hint(format!("{hint}; then run `walferry migrate` again: it goes on with this object"))
        .into()
}

/// The locks of all sessions are in one place, whose size is set at the server's start.
fn lacks_locks(error: &wire::Error) -> bool {
    error.server().is_some_and(ServerError::lacks_locks)
}

/// What helps, by what the server said.
fn hint(state: &str, kind: &str) -> &'static str {
    match (state, kind) {
        ("0A000" | "58P01" | "22023", "EXTENSION") => {
            "install the extension on the target, or leave it out with --excluded-extensions"
        }
        ("42501", "EXTENSION") => {
            "CREATE EXTENSION on the target as a role that may, or leave it out with --excluded-extensions"
        }
        ("42501", _) => {
            "grant the target's user what it lacks, or make the object on the target as a role that may"
        }
        ("42P07" | "42710" | "42P06" | "42723" | "42712", _) => {
            "the target has an object of that name that the migration did not make: drop or rename it there"
        }
        ("3F000" | "42P01" | "42703" | "42883" | "42704", _) => {
            "what it names is not found: make it on the target, or let a function that uses names without their schema find them (ALTER FUNCTION … SET search_path = …)"
        }
        ("58P01", _) => "a library of the source is not on the target: install it there",
        _ if state.starts_with("23") || state.starts_with("22") => {
            "rows do not fit it: mend them on the source and, while this migration does not run, on the target"
        }
        ("54000" | "54001" | "54011" | "54023", _) => {
            "the target's limit is lower than the source's: raise it there"
        }
        _ => "see the target's log for more, and mend on the target what it names",
    }
}

fn failure(question: &'static str, error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(Side::Target, question, error).into()
}
