//! What a migration knows of itself, and the handle through which everybody sees it.
//!
//! Each pipeline's task writes; HTTP, metrics and the terminal read. Not here: how it is shown (`json`, `table`,
//! `http`, `terminal`). Invariants: a reader never holds a writer up, and the other way round (a snapshot is an `Arc`,
//! copied only when a reader still has the previous one); no lock is held across an await; no text here holds a
//! password, a key or a row's value.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::config::Method;
use crate::error::Failure;
use crate::pg::{PgTimestamp, QualifiedName, SlotName, SourceLsn};
use crate::store::{Phase, SchemaDrift};

/// One migration: all its databases.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusSnapshot {
    /// The migration's name (`--name`).
    pub migration: String,
    /// One entry for each database, in the order in which they are to be shown.
    pub databases: Vec<DatabaseStatus>,
}

/// One database of a migration.
#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseStatus {
    /// Its name on the source.
    pub dbname: String,
    /// How it is moved.
    pub method: Method,
    /// Why it is moved by [`Method::PgDump`] though nobody asked for that; else empty.
    pub method_reason: String,
    /// Of [`Method::PgDump`], once its rows are there: when its snapshot was taken, by the source's clock; else empty.
    pub dumped_at: String,
    /// Where its pipeline is.
    pub phase: Phase,
    /// What stopped it, or is being retried at this moment; else empty.
    pub error: String,
    /// What to do about `error`; may be empty.
    pub hint: String,
    /// The source's WAL position when last asked.
    pub source_wal: Option<SourceLsn>,
    /// The greatest position read from the socket.
    pub received: Option<SourceLsn>,
    /// The greatest position committed on the target.
    pub applied: Option<SourceLsn>,
    /// The greatest position flushed to the target's disk.
    pub durable: Option<SourceLsn>,
    /// The greatest position sent to the source as flushed.
    pub confirmed: Option<SourceLsn>,
    /// Bytes of WAL between `source_wal` and `applied`; `None` while that is not known.
    pub lag_bytes: Option<u64>,
    /// Seconds that the target is behind; `None` while that is not known.
    pub lag_seconds: Option<f64>,
    /// The replication slot on the source.
    pub slot: Option<SlotStatus>,
    /// Everything that the migration made on the source and has not dropped, as text fit for a person.
    pub objects_on_source: Vec<String>,
    /// Roles that the migration made on the target, and that may not log in there yet.
    pub roles_shut: Vec<String>,
    /// Objects of the source's schema that were made, changed or dropped since the start, and that the target has not so;
    /// the engine's own has them without statements.
    pub schema_drift: Vec<SchemaDrift>,
    /// The tables, in the order of their names.
    pub tables: Vec<TableStatus>,
    /// Bytes of transactions in progress that are kept on this machine's disk.
    pub spill_bytes: u64,
    /// Source transactions committed on the target since this process started.
    pub transactions_applied: u64,
    /// Changes committed on the target since this process started.
    pub changes_applied: ChangeCounts,
    /// When the migration of this database started.
    pub started_at: Option<PgTimestamp>,
    /// When this entry was last written; set by [`StatusHandle::update_database`].
    pub updated_at: Option<PgTimestamp>,
}

/// The status that Aiven's API has for a migration and for each of its databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceStatus {
    /// Not begun, or stopped by somebody.
    Waiting,
    /// Under way.
    Running,
    /// Follows the source.
    Syncing,
    /// Over.
    Done,
    /// Stopped by an error.
    Failed,
}

/// A replication slot as the source's `pg_replication_slots` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotStatus {
    /// Its name.
    pub name: SlotName,
    /// Bytes of WAL that the source keeps for it.
    pub retained_bytes: u64,
    /// Bytes that may still be written before the slot can be lost (`safe_wal_size`; negative once it is overdue);
    /// `None` without a limit.
    pub safe_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableStatus {
    /// Schema and name.
    pub name: QualifiedName,
    /// How far it is.
    pub state: TableState,
    /// Rows copied so far.
    pub rows_copied: u64,
    /// Bytes of COPY data copied so far.
    pub bytes_copied: u64,
    /// Rows that the source's statistics promise; `None` without statistics.
    pub rows_estimated: Option<u64>,
    /// Bytes of the table on the source's disk.
    pub bytes_estimated: u64,
}

/// How far a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableState {
    /// Not begun.
    Waiting,
    /// Being copied.
    Copying,
    /// Copied; its changes are not applied yet.
    Copied,
    /// Its changes are applied.
    Streaming,
    /// Stopped by an error.
    Failed,
}

/// Changes by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangeCounts {
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Tables truncated.
    pub truncates: u64,
}

/// The one place where a migration's status is kept: cheap to clone, to write and to read.
#[derive(Debug, Clone)]
pub struct StatusHandle {
    latest: watch::Sender<Arc<StatusSnapshot>>,
}

impl StatusSnapshot {
    /// A migration of which no database is known yet.
    pub fn new(migration: impl Into<String>) -> Self {
        Self { migration: migration.into(), databases: Vec::new() }
    }

    /// The entry of `dbname`.
    pub fn database(&self, dbname: &str) -> Option<&DatabaseStatus> {
        self.databases.iter().find(|database| database.dbname == dbname)
    }

    /// The entry of `dbname` to write to; made, and put last, if it is not there.
    pub fn database_mut(&mut self, dbname: &str) -> &mut DatabaseStatus {
        let found = self.databases.iter().position(|database| database.dbname == dbname);
        let index = found.unwrap_or_else(|| {
            self.databases.push(DatabaseStatus::new(dbname));
            self.databases.len() - 1
        });
        &mut self.databases[index]
    }
}

impl DatabaseStatus {
    /// A database of which nothing is known yet: method replication, phase waiting.
    pub fn new(dbname: impl Into<String>) -> Self {
        Self {
            dbname: dbname.into(),
            method: Method::Replication,
            method_reason: String::new(),
            dumped_at: String::new(),
            phase: Phase::Waiting,
            error: String::new(),
            hint: String::new(),
            source_wal: None,
            received: None,
            applied: None,
            durable: None,
            confirmed: None,
            lag_bytes: None,
            lag_seconds: None,
            slot: None,
            objects_on_source: Vec::new(),
            roles_shut: Vec::new(),
            schema_drift: Vec::new(),
            tables: Vec::new(),
            spill_bytes: 0,
            transactions_applied: 0,
            changes_applied: ChangeCounts::default(),
            started_at: None,
            updated_at: None,
        }
    }

    /// Takes over what a failure says. The phase stays as it is: a transient failure does not change it.
    pub fn set_error(&mut self, failure: &Failure) {
        let (cause, detail, hint) = match failure {
            Failure::Definite(it) => (it.cause.clone(), it.detail.as_str(), it.hint.as_str()),
            Failure::Transient(it) => (format!("{}: {}", it.side, it.cause), it.detail.as_str(), ""),
        };
        self.error = if detail.is_empty() { cause } else { format!("{cause}: {detail}") };
        self.hint = hint.to_owned();
    }

    /// Forgets the error: what was retried has worked.
    pub fn clear_error(&mut self) {
        self.error.clear();
        self.hint.clear();
    }

    /// Whether it is dumped, or to be dumped, though nobody asked for that.
    pub fn dumped_unasked(&self) -> bool {
        self.method == Method::PgDump && !self.method_reason.is_empty()
    }

    /// Of one that is dumped: from when on the source's changes are missing.
    pub fn not_followed(&self) -> Option<String> {
        let since = if self.dumped_at.is_empty() { "the dump began" } else { &self.dumped_at };
        let of_dump = self.method == Method::PgDump;
        of_dump.then(|| format!("not followed: changes made on the source since {since} are NOT carried"))
    }

    /// What is to be done about that.
    pub fn after_a_dump(&self) -> Option<String> {
        let mended = if self.dumped_unasked() { ", mend what kept it from being followed" } else { "" };
        let of_dump = self.method == Method::PgDump;
        of_dump.then(|| {
            format!(
                "if nobody wrote to the source since, point the application at the target; else stop all writers{mended}, and \
                 start afresh: `walferry remove`, empty the target's database, `walferry migrate`"
            )
        })
    }

    /// The entry of table `name` to write to, if it is there.
    pub fn table_mut(&mut self, name: &QualifiedName) -> Option<&mut TableStatus> {
        let found = self.tables.binary_search_by(|table| table.name.cmp(name));
        found.ok().map(|index| &mut self.tables[index])
    }

    /// Shows these tables, in the order of their names, in place of those before.
    pub fn set_tables(&mut self, mut tables: Vec<TableStatus>) {
        tables.sort_by(|one, other| one.name.cmp(&other.name));
        self.tables = tables;
    }

    /// How many tables are in each state, in the states' order.
    pub fn tables_by_state(&self) -> [(TableState, usize); TableState::ALL.len()] {
        TableState::ALL.map(|state| (state, self.tables.iter().filter(|table| table.state == state).count()))
    }
}

impl TableStatus {
    /// A table that waits to be copied.
    pub fn new(name: QualifiedName, rows_estimated: Option<u64>, bytes_estimated: u64) -> Self {
        Self {
            name,
            state: TableState::Waiting,
            rows_copied: 0,
            bytes_copied: 0,
            rows_estimated,
            bytes_estimated,
        }
    }
}

impl ChangeCounts {
    /// All changes together.
    pub const fn total(self) -> u64 {
        self.inserts + self.updates + self.deletes + self.truncates
    }

    /// Each kind's name and count.
    pub const fn by_kind(self) -> [(&'static str, u64); 4] {
        [
            ("insert", self.inserts),
            ("update", self.updates),
            ("delete", self.deletes),
            ("truncate", self.truncates),
        ]
    }
}

impl StatusHandle {
    /// A handle that starts from `snapshot`.
    pub fn new(snapshot: StatusSnapshot) -> Self {
        Self { latest: watch::Sender::new(Arc::new(snapshot)) }
    }

    /// Changes the snapshot.
    pub fn update(&self, change: impl FnOnce(&mut StatusSnapshot)) {
        self.latest.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
    }

    /// Changes the entry of one database (made if it is not there) and sets its `updated_at`.
    pub fn update_database(&self, dbname: &str, change: impl FnOnce(&mut DatabaseStatus)) {
        let now = now();
        self.update(|snapshot| {
            let database = snapshot.database_mut(dbname);
            change(database);
            database.updated_at = Some(now);
        });
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<StatusSnapshot> {
        Arc::clone(&self.latest.borrow())
    }

    /// Waits for changes without asking on a timer.
    pub fn subscribe(&self) -> watch::Receiver<Arc<StatusSnapshot>> {
        self.latest.subscribe()
    }
}

impl ServiceStatus {
    /// What Aiven's API calls a phase.
    pub const fn of(phase: Phase) -> Self {
        match phase {
            Phase::Waiting | Phase::Stopped => Self::Waiting,
            Phase::Checking | Phase::Schema | Phase::Copying | Phase::Indexing | Phase::CatchingUp => {
                Self::Running
            }
            Phase::Syncing | Phase::CuttingOver => Self::Syncing,
            Phase::Done => Self::Done,
            Phase::Failed => Self::Failed,
        }
    }

    /// The name in `status --json` and in Aiven's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Syncing => "syncing",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl TableState {
    /// All states, in the order in which a table passes through them; then the one that ends it early.
    pub const ALL: [Self; 5] = [Self::Waiting, Self::Copying, Self::Copied, Self::Streaming, Self::Failed];

    /// The name that is shown and exported.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Copied => "copied",
            Self::Streaming => "streaming",
            Self::Failed => "failed",
        }
    }
}

macro_rules! display_as_str {
    ($($name:ident),*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        })*
    };
}

display_as_str!(ServiceStatus, TableState);

fn now() -> PgTimestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    PgTimestamp::from_unix_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Definite, Side, Transient};

    #[test]
    fn phases_have_the_names_and_statuses_of_the_design() {
        let check = |name: &str, status: &str| {
            let phase = Phase::from_name(name).expect("a phase of the design");
            assert_eq!((phase.as_str(), ServiceStatus::of(phase).as_str()), (name, status));
        };
        check("waiting", "waiting");
        for name in ["checking", "schema", "copying", "indexing", "catching_up"] {
            check(name, "running");
        }
        check("syncing", "syncing");
        check("cutting_over", "syncing");
        check("done", "done");
        check("failed", "failed");
        check("stopped", "waiting");
        assert_eq!(Phase::from_name("Syncing"), None);
        assert_eq!(Phase::from_name(""), None);
    }

    #[test]
    fn a_reader_keeps_its_snapshot_while_the_writer_goes_on() {
        let handle = StatusHandle::new(StatusSnapshot::new("default"));
        handle.update_database("shop", |database| database.phase = Phase::Copying);
        let before = handle.snapshot();
        handle.update_database("shop", |database| database.phase = Phase::Syncing);
        assert_eq!(before.databases[0].phase, Phase::Copying);
        assert_eq!(handle.snapshot().databases[0].phase, Phase::Syncing);
        assert_eq!(handle.snapshot().databases.len(), 1);
        assert!(handle.snapshot().databases[0].updated_at.is_some());
    }

    #[test]
    fn failures_become_text() {
        let check = |failure: Failure, error: &str, hint: &str| {
            let mut database = DatabaseStatus::new("shop");
            database.set_error(&failure);
            assert_eq!((database.error.as_str(), database.hint.as_str()), (error, hint));
            database.clear_error();
            assert_eq!((database.error.as_str(), database.hint.as_str()), ("", ""));
        };
        let definite = Definite::new("replication slot is gone").detail("slot walferry_x").hint("run resync");
        check(definite.into(), "replication slot is gone: slot walferry_x", "run resync");
        check(Transient::new(Side::Target, "connection closed").into(), "target: connection closed", "");
    }
}
