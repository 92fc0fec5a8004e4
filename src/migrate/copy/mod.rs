//! The initial copy: rows from the source's snapshot into the target, untouched.
//!
//! Several tables are copied at once, and a large one in several ctid ranges at once, by `jobs` pairs of sessions that
//! all read the same snapshot. A table's ranges commit one by one; the table counts as copied when all of them have,
//! and one that is found half copied at a restart is emptied and copied afresh.
//!
//! A snapshot does not protect a table from DDL: what ALTER TABLE or TRUNCATE wrote anew it does not show, so such a table
//! looks empty; and columns go by their names of now. So after each piece, while its lock still keeps DDL out, the table
//! is held against what it was at the snapshot. Where it is another by now, its rows are not taken, and it is left to the
//! next snapshot. The lock ends with the piece: whoever waits for it holds up everybody who comes after.

mod binary;
mod pieces;
#[cfg(test)]
mod tests;
mod unchecked;
mod writing;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, OnceCell};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::apply::Writer;
use crate::catalog::{self, SourceClient, Table, TableColumn, TargetClient};
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::{COPY_PIECE_BYTES_MIN, COPY_WAKE_BYTES, TABLES_PER_TRANSACTION};
use crate::pg::{QualifiedName, RelationId, SourceLsn, Sql};
use crate::source::Dialect;
use crate::status::{Metrics, StatusHandle, TableState};
use crate::store::AsCopied;
use crate::store::{Origin, RelationRow, RelationState, Store};
use crate::wire::{self, ConnInfo, RelayError, Session, SessionOptions, relay};

use super::joined;
use super::snapshot;
use pieces::{Emptied, Manner, Piece};

/// What a copy needs.
#[derive(Debug, Clone)]
pub struct Copy {
    /// The source.
    pub source: ConnInfo,
    /// The target.
    pub target: ConnInfo,
    /// Who writes the rows there.
    pub writer: Writer,
    /// A session on the source that sees what is there now, in no transaction.
    pub looking: Arc<SourceClient>,
    /// A session on the target, for the state of each table, and to wake the WAL writer; in no transaction.
    pub control: Arc<TargetClient>,
    /// The migration's name.
    pub migration: String,
    /// The run's number: see [`Store::begin_attempt`].
    pub attempt: i64,
    /// The database, by its name on the source.
    pub dbname: String,
    /// The exported snapshot to read. Whoever made it keeps it alive.
    pub snapshot: String,
    /// Its point.
    pub copy_lsn: SourceLsn,
    /// Ctid ranges can be read without reading the whole table (server 14).
    pub ranges: bool,
    /// The target's triggers and foreign keys are there already: they must not act.
    pub as_replica: bool,
    /// The tables are copied already, and are replaced: each is emptied and copied in one transaction, together with
    /// what is recorded of it, in the state that is given.
    pub replaces: bool,
    /// Until then at the latest: see [`super::objects::statements_until`].
    pub deadline: Option<Instant>,
    /// Pairs of sessions.
    pub jobs: usize,
    /// Where progress is shown.
    pub status: StatusHandle,
    /// Where progress is counted.
    pub metrics: Metrics,
}

/// One table's copy as it goes on.
#[derive(Debug)]
struct Ongoing {
    row: RelationRow,
    pieces_left: usize,
    /// Its only piece's transaction holds its rows and what is recorded of it: none is ever there without the other. What
    /// is replaced is never cut into pieces.
    whole: bool,
    begun: bool,
    /// It is another than at the snapshot by now: what is left of it is not copied.
    changed: bool,
    /// Rows of pieces that have not ended: to be shown, no more.
    rows_under_way: u64,
}

/// A piece's table, when the piece is copied.
struct Counted {
    row: RelationRow,
    rows_under_way: u64,
    /// See [`Ongoing::whole`].
    whole: bool,
    /// This was its last piece.
    finished: bool,
}

/// What the workers share.
struct Shared {
    tables: Vec<Table>,
    manners: OnceCell<Vec<Manner>>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    ongoing: Mutex<HashMap<QualifiedName, Ongoing>>,
    bytes: AtomicU64,
    /// Says that the target's WAL has grown.
    grown: Notify,
}

impl Copy {
    /// Copies `tables` as they are at the snapshot, whose rows in `walferry.relation` are `rows`. Gives those that were
    /// rewritten, redefined, renamed or dropped since: they are not copied.
    ///
    /// # Errors
    /// When either side fails; the tables that were finished stay finished.
    pub async fn run(&self, tables: Vec<Table>, rows: Vec<RelationRow>) -> Result<Vec<QualifiedName>> {
        // An extension's table is emptied when it is copied, of some rows alone.
        let fresh = !self.replaces;
        let own = rows.iter().zip(&tables).filter(|(_, table)| fresh && table.extension.is_none());
        let half: Vec<&QualifiedName> =
            own.filter(|(row, _)| row.state == RelationState::Copying).map(|(row, _)| &row.name).collect();
        for half in half.chunks(TABLES_PER_TRANSACTION) {
            let truncate = Sql::new("TRUNCATE ")
                .list(half.iter().copied(), ", ", |sql, name| sql.text("ONLY ").name(name));
            let mut session = self.writing_session().await?;
            session.execute(&truncate).await.map_err(|error| error.into_failure(Side::Target))?;
            session.close().await;
        }
        let pieces = pieces::pieces(&tables, self.ranges && !self.replaces, self.jobs);
        let mut ongoing = HashMap::new();
        let mut counts = vec![0; tables.len()];
        pieces.iter().for_each(|piece| counts[piece.table] += 1);
        for (row, pieces_left) in rows.into_iter().zip(counts) {
            let (whole, begun, changed) = (pieces_left == 1, false, false);
            let of = Ongoing { row, pieces_left, whole, begun, changed, rows_under_way: 0 };
            ongoing.insert(of.row.name.clone(), of);
        }
        let workers = self.jobs.min(pieces.len());
        let shared = Arc::new(Shared {
            tables,
            manners: OnceCell::new(),
            pieces,
            next: AtomicUsize::new(0),
            ongoing: Mutex::new(ongoing),
            bytes: AtomicU64::new(0),
            grown: Notify::new(),
        });
        let mut work = JoinSet::new();
        for _ in 0..workers {
            let (copy, shared) = (self.clone(), Arc::clone(&shared));
            work.spawn(async move { copy.work(&shared).await }.in_current_span());
        }
        tokio::select! {
            copied = joined(work) => copied?,
            never = self.wake_wal_writer(&shared.grown) => match never {},
        }
        Ok(shared.changed())
    }

    /// Has the target's WAL writer flush what the jobs write.
    ///
    /// COPY goes round in a few buffers (`GetAccessStrategy`: 16 MB, or an eighth of `shared_buffers`), and takes one
    /// again only when the WAL of its page is on disk. The WAL writer looks by itself every 200 ms, too seldom for that: so
    /// COPY would flush, and wait for the disk, up to version 15 while other jobs wait to extend the table. What wakes it
    /// is a commit that does not wait (`XLogSetAsyncXactLSN`): one that took an identifier and wrote nothing.
    async fn wake_wal_writer(&self, grown: &Notify) -> Infallible {
        loop {
            grown.notified().await;
            if let Err(error) = self.control.query_typed("SELECT txid_current()", &[]).await {
                // The copy is slower without it, no more.
                tracing::debug!(%error, "the target's WAL writer is not woken");
                std::future::pending::<()>().await;
            }
        }
    }

    /// How each table goes over. One that is copied late may hold rows already, which are not ours to remove.
    async fn manners(&self, tables: &[Table]) -> Result<Vec<Manner>> {
        let found = catalog::target_tables(&self.control).await?;
        let found: HashMap<_, _> = found.into_iter().map(|table| (table.name.clone(), table)).collect();
        let manner = |table: &Table| {
            let there = found.get(&table.name);
            let manner = Manner::of(table, there);
            let emptied = if self.replaces { Emptied::again(there) } else { manner.emptied };
            Manner { freeze: manner.freeze && !self.as_replica, emptied, ..manner }
        };
        Ok(tables.iter().map(manner).collect())
    }

    async fn work(&self, shared: &Shared) -> Result<()> {
        let manners = shared.manners.get_or_try_init(|| self.manners(&shared.tables));
        let (mut source, mut target, manners) =
            tokio::try_join!(self.reading_session(), self.writing_session(), manners)?;
        while let Some(piece) = shared.pieces.get(shared.next.fetch_add(1, Ordering::Relaxed)) {
            let table = &shared.tables[piece.table];
            if shared.with(&table.name, |ongoing| ongoing.changed) {
                continue;
            }
            self.begin(shared, piece).await?;
            let manner = manners[piece.table].clone();
            let copied = self.copy(&mut source, &mut target, shared, piece, manner).await?;
            let same = copied.is_some() && self.is_as_at_the_snapshot(table).await?;
            let unlocked = source.execute(&Sql::new(UNLOCK)).await;
            unlocked.map_err(|error| error.into_failure(Side::Source))?;
            let Some(rows) = copied.filter(|_| same) else {
                if copied.is_some() {
                    let undone = target.execute(&Sql::new("ROLLBACK")).await;
                    undone.map_err(|error| error.into_failure(Side::Target))?;
                }
                tracing::warn!(table = %table.name, "changed on the source since the snapshot: it is copied on another");
                shared.with(&table.name, |ongoing| ongoing.changed = true);
                continue;
            };
            let counted = self.count(shared, piece, rows);
            if counted.whole {
                self.record(&mut target, &counted.row).await?;
            }
            self.commit(&mut target).await?;
            self.end(&counted).await?;
        }
        source.close().await;
        target.close().await;
        Ok(())
    }

    /// Whether the table that was read is the one that the snapshot has: of that file, under that name, with those columns.
    /// Others may have been added.
    async fn is_as_at_the_snapshot(&self, table: &Table) -> Result<bool> {
        let Some(now) = catalog::table_now(&self.looking, table.oid).await? else { return Ok(false) };
        let there = |column: &TableColumn| {
            let now = now.columns.iter().find(|now| now.0 == column.number);
            now.is_some_and(|(_, name, of, modifier)| {
                (name, *of, *modifier) == (&column.name, column.type_oid, column.type_modifier)
            })
        };
        Ok(now.filenode == table.filenode && now.name == table.name && table.columns.iter().all(there))
    }

    /// Locks what has the table's name now; whether that is the table, as it was at the snapshot.
    async fn locked(&self, source: &mut Session, table: &Table) -> Result<bool> {
        let failed = |error: wire::Error| failed(&table.name, Side::Source, error);
        let lock = Sql::new("LOCK TABLE ONLY ").name(&table.name).text(" IN ACCESS SHARE MODE");
        match source.execute(&lock).await {
            Err(error) if is_gone(&error) => return Ok(false),
            locked => locked.map_err(failed)?,
        }
        let held = Sql::new(
            "SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation = ",
        )
        .number(table.oid.get());
        let held = source.query(&held).await.map_err(failed)?;
        Ok(!held.is_empty() && self.is_as_at_the_snapshot(table).await?)
    }

    /// A session on the source that sees the snapshot, and holds no lock but those of the statement at hand up to the next
    /// [`UNLOCK`].
    ///
    /// # Errors
    /// When the source fails, or the snapshot is gone.
    pub async fn reading_session(&self) -> Result<Session> {
        let options = SessionOptions::new("walferry copy");
        let connected = Session::connect(&self.source, &options).await;
        let mut session = connected.map_err(|error| error.into_failure(Side::Source))?;
        let begin = Sql::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT ")
            .literal(&self.snapshot)
            .text("; SAVEPOINT unlocked");
        session.execute(&begin).await.map_err(|error| {
            let state = error.server().map(|server| server.sqlstate());
            snapshot::gone(state).unwrap_or_else(|| error.into_failure(Side::Source))
        })?;
        Ok(session)
    }

    async fn copy(
        &self,
        source: &mut Session,
        target: &mut Session,
        shared: &Shared,
        piece: &Piece,
        mut manner: Manner,
    ) -> Result<Option<u64>> {
        let table = &shared.tables[piece.table];
        let failed = |side: Side| move |error: wire::Error| failed(&table.name, side, error);
        if manner.emptied == Emptied::NotOurs {
            return self.leave(source, target, table).await.map(Some);
        }
        if manner.binary {
            let known = binary::is_as_known(source, table).await.map_err(failed(Side::Source))?;
            manner.binary = known && binary::converts(source) && binary::converts(target);
        }
        if self.as_replica {
            manner.begun = unchecked::any(&self.control, &table.name).await?;
        }
        // COPY takes nothing but tables by itself; what it selects may be a view by now.
        let selects = piece.pages.is_some() || table.extension.is_some();
        if selects
            && !Dialect::new(source.server_version()).refuses_views()
            && !self.locked(source, table).await?
        {
            return Ok(None);
        }
        let (from, to) = pieces::statements(table, piece, &manner);
        let (binary, freeze) = (manner.binary, manner.freezes(piece));
        tracing::debug!(table = %table.name, pages = ?piece.pages, binary, freeze, "copying");
        let from = match source.copy_out(&from).await {
            Err(error) if is_gone(&error) => return Ok(None),
            from => from.map_err(failed(Side::Source))?,
        };
        let unchecked = if manner.begun {
            let by_role = self.writer.key().is_some();
            unchecked::take_away(target, &self.control, &table.name, by_role).await?
        } else {
            Sql::default()
        };
        let to = target.copy_in(&to).await.map_err(failed(Side::Target))?;
        let progressed = |rows, bytes| self.progressed(shared, &table.name, rows, bytes);
        let relayed = relay(from, to, progressed).await;
        let relayed = relayed.map_err(|error| match error {
            RelayError::Source(error) => failed(Side::Source)(error),
            RelayError::Target(error) => failed(Side::Target)(error),
        })?;
        if relayed.rows_read != relayed.rows_written {
            return Err(Definite::new(format!("table {} arrived incomplete", table.name))
                .detail(format!("{} rows were read, {} were written", relayed.rows_read, relayed.rows_written))
                .hint("a trigger or rule on the target drops rows: remove it, then run `walferry migrate` again")
                .into());
        }
        if manner.begun {
            target.execute(&unchecked).await.map_err(failed(Side::Target))?;
        }
        Ok(Some(relayed.rows_written))
    }

    /// An extension's table that this role may not write to: that is well where only the extension's own rows are in it.
    async fn leave(&self, source: &mut Session, target: &mut Session, table: &Table) -> Result<u64> {
        let condition = table.extension.as_ref().map_or("", |of| of.condition.as_str());
        let some =
            Sql::new("SELECT FROM ONLY ").name(&table.name).text(" ").catalog(condition).text(" LIMIT 1");
        let found = source.query(&some).await.map_err(|error| failed(&table.name, Side::Source, error))?;
        if found.is_empty() {
            target
                .execute(&Sql::new("BEGIN"))
                .await
                .map_err(|error| failed(&table.name, Side::Target, error))?;
            return Ok(0);
        }
        let grant = Sql::new("GRANT SELECT, INSERT, DELETE ON ")
            .name(&table.name)
            .text(" TO ")
            .ident(self.target.user());
        Err(Definite::new(format!("table {} cannot be copied: the target's is not ours to write to", table.name))
            .detail("it belongs to an extension, and the source has rows of its own in it")
            .hint(format!(
                "leave such tables out with --no-replicate-extension-tables; or on the target, as a superuser:\n{grant};"
            ))
            .into())
    }

    async fn begin(&self, shared: &Shared, piece: &Piece) -> Result<()> {
        let name = &shared.tables[piece.table].name;
        let row = shared.with(name, |table| {
            let first = !std::mem::replace(&mut table.begun, true);
            if !self.replaces {
                table.row.enter(RelationState::Copying);
            }
            if first {
                (table.row.rows_copied, table.row.bytes_copied) = (0, 0);
            }
            first.then(|| (table.row.clone(), table.whole))
        });
        if let Some((row, whole)) = row {
            // A small one is over before somebody could look.
            let seen = !whole || !self.replaces && shared.tables[piece.table].bytes >= COPY_PIECE_BYTES_MIN;
            if seen {
                Store::new(&self.control, &self.migration).set_relation(&row).await?;
            }
            self.show(&row, 0, TableState::Copying);
        }
        Ok(())
    }

    /// What is to be recorded now that the piece is copied.
    fn count(&self, shared: &Shared, piece: &Piece, rows: u64) -> Counted {
        self.metrics.copied(rows, 0);
        let copied = &shared.tables[piece.table];
        shared.with(&copied.name, |table| {
            table.pieces_left -= 1;
            table.row.rows_copied = table.row.rows_copied.saturating_add_unsigned(rows);
            table.rows_under_way = table.rows_under_way.saturating_sub(rows);
            let finished = table.pieces_left == 0;
            if finished {
                if !self.replaces {
                    table.row.enter(RelationState::Copied);
                }
                table.row.copy_lsn = Some(self.copy_lsn);
                table.row.origin = Some(origin(copied));
                table.row.definition = Some(AsCopied::of(copied));
                table.rows_under_way = 0;
            }
            let (rows_under_way, whole) = (table.rows_under_way, table.whole);
            Counted { row: table.row.clone(), rows_under_way, whole, finished }
        })
    }

    async fn end(&self, counted: &Counted) -> Result<()> {
        let Counted { row, rows_under_way, whole, finished } = counted;
        if *finished {
            if !whole {
                Store::new(&self.control, &self.migration).set_relation(row).await?;
            }
            tracing::info!(table = %row.name, rows = row.rows_copied, bytes = row.bytes_copied, "table copied");
        }
        let done = if self.replaces { TableState::Streaming } else { TableState::Copied };
        self.show(row, *rows_under_way, if *finished { done } else { TableState::Copying });
        Ok(())
    }

    fn progressed(&self, shared: &Shared, name: &QualifiedName, rows: u64, bytes: u64) {
        self.metrics.copied(0, bytes);
        let before = shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before / COPY_WAKE_BYTES != (before + bytes) / COPY_WAKE_BYTES {
            shared.grown.notify_one();
        }
        let (row, under_way) = shared.with(name, |table| {
            table.rows_under_way += rows;
            table.row.bytes_copied = table.row.bytes_copied.saturating_add_unsigned(bytes);
            (table.row.clone(), table.rows_under_way)
        });
        self.show(&row, under_way, TableState::Copying);
    }

    fn show(&self, row: &RelationRow, rows_under_way: u64, state: TableState) {
        self.status.update_database(&self.dbname, |database| {
            if let Some(table) = database.table_mut(&row.name) {
                table.state = state;
                table.rows_copied = row.rows_copied.unsigned_abs() + rows_under_way;
                table.bytes_copied = row.bytes_copied.unsigned_abs();
            }
        });
    }
}

impl Shared {
    fn changed(&self) -> Vec<QualifiedName> {
        let ongoing = self.ongoing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut changed: Vec<QualifiedName> =
            ongoing.iter().filter(|(_, table)| table.changed).map(|(name, _)| name.clone()).collect();
        changed.sort();
        changed
    }

    fn with<T>(&self, name: &QualifiedName, change: impl FnOnce(&mut Ongoing) -> T) -> T {
        let mut ongoing = self.ongoing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(ongoing.get_mut(name).expect("every table has its row"))
    }
}

/// Gives up the locks of the piece that was read; the snapshot stays.
const UNLOCK: &str = "ROLLBACK TO SAVEPOINT unlocked";

/// Whether the table, its schema or a column of it is there no more, by this name.
fn is_gone(error: &wire::Error) -> bool {
    error.server().is_some_and(|error| ["42P01", "42703", "3F000", "42809"].contains(&error.sqlstate()))
}

/// What is recorded of a table: which one it is, and what it is when it is copied.
pub(super) fn origin(table: &Table) -> Origin {
    Origin { id: RelationId::new(table.oid.get()), filenode: table.filenode, attributes: table.attributes }
}

/// The failure that an operator sees: which table, and where to look when the server has no hint.
fn failed(table: &QualifiedName, side: Side, error: wire::Error) -> Failure {
    let mut definite = match error.into_failure(side) {
        Failure::Definite(definite) => definite,
        transient @ Failure::Transient(_) => return transient,
    };
    definite.cause = format!("table {table} cannot be copied: {}", definite.cause);
    if definite.hint.is_empty() {
        definite.hint = format!("the {side}'s log says more: mend it, then run `walferry migrate` again");
    }
    definite.into()
}
