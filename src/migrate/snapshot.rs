//! The slot, and the snapshots that copies are made on.
//!
//! The first snapshot comes with the migration's own slot: what commits from its consistent point on is streamed. A
//! run that finds unfinished tables needs another snapshot, since the first died with its session: a temporary slot
//! gives one, with a later point of its own, from which on those tables take part in the stream.

use crate::catalog::{self, SourceClient};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{ENGINE_LOCK_POLL, ENGINE_LOCK_WAIT, SLOT_LOCK_TIMEOUT, SLOT_TRIES_MAX};
use crate::pg::{SlotName, SourceLsn, Sql, TimelineId};
use crate::source;
use crate::source::replication::{CreatedSlot, ReplicationSession};
use crate::wire::ConnInfo;

/// An exported snapshot. It lives as long as this does.
#[derive(Debug)]
pub struct Snapshot {
    /// Transactions that commit at or after this point are not in the snapshot.
    pub consistent_point: SourceLsn,
    /// The source's timeline.
    pub timeline: TimelineId,
    /// What SET TRANSACTION SNAPSHOT takes.
    pub id: String,
    /// Stays idle: any command would end the snapshot.
    session: ReplicationSession,
}

impl Snapshot {
    /// The session, and with it a temporary slot; the snapshot ends with its next command.
    pub fn into_session(self) -> ReplicationSession {
        self.session
    }
}

/// Creates the slot (a temporary one with `temporary`) and exports its snapshot.
///
/// The server waits until every transaction that has written so far is over. That wait is bounded, and tried again,
/// so that nothing queues up behind it; meanwhile the log says who is waited for.
///
/// # Errors
/// A definite failure when a transaction outlasts all tries, or no slot is free; a transient one when the connection
/// fails.
pub async fn create(
    source: &ConnInfo,
    control: &SourceClient,
    slot: &SlotName,
    temporary: bool,
) -> Result<Snapshot> {
    let mut waited_for = String::new();
    for _ in 0..SLOT_TRIES_MAX {
        let connected = ReplicationSession::connect(source, "walferry slot").await;
        let mut session = connected.map_err(|error| error.into_failure(Side::Source))?;
        let identity = session.identify().await?;
        match session.create_slot(slot, temporary, SLOT_LOCK_TIMEOUT).await {
            Ok(CreatedSlot { consistent_point, snapshot }) => {
                let timeline = identity.timeline;
                return Ok(Snapshot { consistent_point, timeline, id: snapshot, session });
            }
            Err(error) if error.state() == Some("55P03") => {
                waited_for = oldest_writers(control).await?;
                tracing::warn!(%waited_for, "the slot waits for transactions that have written");
            }
            Err(error) => return Err(not_created(control, error).await),
        }
    }
    Err(Definite::new("the replication slot cannot be created: older transactions do not end")
        .detail(waited_for)
        .hint("end them (COMMIT, ROLLBACK, or SELECT pg_terminate_backend(pid)), then run `walferry migrate` again")
        .into())
}

/// The failure of a session that cannot take a snapshot, where `state` says that it is gone: it ends with the session that
/// exported it, and the next attempt makes another one.
pub fn gone(state: Option<&str>) -> Option<Failure> {
    let cause = "the snapshot ended with the connection that held it";
    (state == Some("22023")).then(|| Transient::new(Side::Source, cause).into())
}

/// A snapshot without a slot, for what is not in the stream: nobody is waited for. It lives as long as this does.
#[derive(Debug)]
pub struct Exported {
    /// What SET TRANSACTION SNAPSHOT takes.
    pub id: String,
    /// Its transaction stays open.
    _client: SourceClient,
}

/// Exports such a snapshot.
///
/// # Errors
/// When the source cannot be reached, or does not answer.
pub async fn export(info: &ConnInfo) -> Result<Exported> {
    let client = SourceClient::connect(info, "walferry snapshot").await?;
    client.run("a snapshot", &Sql::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")).await?;
    let row =
        client.query_one("SELECT pg_export_snapshot()", &[]).await.map_err(client.failed("a snapshot"))?;
    Ok(Exported { id: row.get(0), _client: client })
}

/// Drops a slot that nobody uses; says whether there was one.
///
/// # Errors
/// When it is in use, or the source does not let us.
pub async fn drop_slot(control: &SourceClient, slot: &SlotName) -> Result<bool> {
    let Some(found) = catalog::slot(control, slot.as_str()).await? else { return Ok(false) };
    if found.active {
        return Err(in_use(slot, found.active_pid).into());
    }
    catalog::drop_slot(control, slot.as_str()).await?;
    Ok(true)
}

/// Ends the session of ours that made the temporary slot, where the source has not noticed that it broke: an idle
/// walsender has no timeout. Whoever calls this holds the migration's lock, so nobody needs that session.
///
/// # Errors
/// When the source does not answer, or the session does not end.
pub async fn end_temporary(control: &SourceClient, slot: &SlotName) -> Result<()> {
    let began = tokio::time::Instant::now();
    loop {
        if !catalog::end_temporary_slot(control, slot.as_str()).await? {
            return Ok(());
        }
        if began.elapsed() >= ENGINE_LOCK_WAIT {
            return Err(in_use(slot, None).into());
        }
        tokio::time::sleep(ENGINE_LOCK_POLL).await;
    }
}

/// Waits until the source has noticed that our stream ended.
///
/// # Errors
/// A transient failure when it does not.
pub async fn wait_released(control: &SourceClient, slot: &SlotName) -> Result<()> {
    let began = tokio::time::Instant::now();
    loop {
        let found = catalog::slot(control, slot.as_str()).await?;
        let Some(pid) = found.filter(|found| found.active).and_then(|found| found.active_pid) else {
            return Ok(());
        };
        if began.elapsed() >= ENGINE_LOCK_WAIT {
            return Err(in_use(slot, Some(pid)).into());
        }
        tokio::time::sleep(ENGINE_LOCK_POLL).await;
    }
}

/// The failure of a slot that another connection uses. A walsender whose client died goes away within
/// `wal_sender_timeout`, so this is tried again.
pub fn in_use(slot: &SlotName, pid: Option<i32>) -> Transient {
    let by = pid.map_or(String::new(), |pid| format!(" by server process {pid}"));
    Transient::new(Side::Source, format!("replication slot {slot} is in use{by}"))
        .detail("another engine, or one that died and whose connection the source has not given up yet")
}

async fn not_created(control: &SourceClient, error: source::Error) -> Failure {
    if error.state() != Some("53400") {
        return error.into();
    }
    match catalog::passing_slots(control).await {
        Ok(1..) => {
            Transient::new(Side::Source, "the source has no free replication slot until a copy of ours ends")
                .detail(error.to_string())
                .into()
        }
        _ => Definite::new("the source has no free replication slot")
            .detail(error.to_string())
            .hint(
                "drop an unused slot (SELECT * FROM pg_replication_slots), or raise max_replication_slots, or have a database \
                 dumped instead of followed: --dump-db",
            )
            .into(),
    }
}

async fn oldest_writers(control: &SourceClient) -> Result<String> {
    let writers = catalog::oldest_writers(control).await?;
    Ok(if writers.is_empty() {
        "a transaction that is not visible to this role".to_owned()
    } else {
        writers.join("; ")
    })
}
