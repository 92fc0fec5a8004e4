//! The replication session: a real walsender connection (`replication=database`). Manual: "Streaming Replication
//! Protocol".
//!
//! What surprises: START_REPLICATION from behind the slot's `confirmed_flush_lsn` silently skips what lies between,
//! and from beyond the end of WAL it is accepted. So [`super::gap`] decides before this is called.
//!
//! The session that exported a snapshot must stay idle for as long as the snapshot is wanted: any command ends it.

use super::Dialect;
use super::Error;
use super::history::TimelineHistory;
use crate::pg::{ServerVersion, SlotName, SourceLsn, Sql, SystemId, TimelineId};
use crate::wire::{self, ConnInfo, CopyBothReader, CopyBothWriter, Session, SessionOptions};

/// A walsender connection that does nothing yet.
#[derive(Debug)]
pub struct ReplicationSession {
    session: Session,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system_id: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// How far its WAL is flushed.
    pub flushed: SourceLsn,
}

/// What CREATE_REPLICATION_SLOT says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions that commit at or after this point are streamed; all before it are in the snapshot.
    pub consistent_point: SourceLsn,
    /// The exported snapshot's identifier, for SET TRANSACTION SNAPSHOT.
    pub snapshot: String,
}

/// What a stream is to hold besides committed changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// Large transactions in blocks, before they end, where the server can (14).
    pub streaming: bool,
    /// What `pg_logical_emit_message` writes, where the server can (14).
    pub messages: bool,
}

impl ReplicationSession {
    /// Opens the connection.
    ///
    /// # Errors
    /// As any connection; also when the role lacks REPLICATION.
    pub async fn connect(info: &ConnInfo, application_name: &str) -> Result<Self, wire::Error> {
        let options = SessionOptions { replication: true, ..SessionOptions::new(application_name) };
        Ok(Self { session: Session::connect(info, &options).await? })
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        self.session.server_version()
    }

    /// Whether the server can send transactions in progress.
    pub fn can_stream(&self) -> bool {
        Dialect::new(self.server_version()).streams()
    }

    /// Whether the server sends what `pg_logical_emit_message` writes; where not, it sends transactions without changes.
    pub fn can_send_messages(&self) -> bool {
        Dialect::new(self.server_version()).sends_messages()
    }

    /// Asks which cluster this is.
    ///
    /// # Errors
    /// When the server does not answer as documented.
    pub async fn identify(&mut self) -> Result<Identity, Error> {
        const QUESTION: &str = "the system's identity";
        let rows = self
            .session
            .query(&Sql::new("IDENTIFY_SYSTEM"))
            .await
            .map_err(|cause| Error::Wire { question: QUESTION, cause })?;
        let column = |index| rows.first().and_then(|row| row.text(index));
        let identity = || {
            Some(Identity {
                system_id: SystemId::new(column(0)?.parse().ok()?),
                timeline: TimelineId::new(column(1)?.parse().ok()?),
                flushed: column(2)?.parse().ok()?,
            })
        };
        identity().ok_or_else(|| undocumented(QUESTION))
    }

    /// Asks where the timelines before this one were left. `None` where the server has no such file: a cluster's first
    /// timeline has none.
    ///
    /// # Errors
    /// When the server does not answer as documented.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Option<TimelineHistory>, Error> {
        const QUESTION: &str = "the timeline's history";
        let ask = Sql::new("TIMELINE_HISTORY ").number(timeline.get());
        let asked = self.session.query(&ask).await.map_err(|cause| Error::Wire { question: QUESTION, cause });
        let rows = match asked {
            // undefined_file
            Err(error) if error.state() == Some("58P01") => return Ok(None),
            asked => asked?,
        };
        let content = rows.first().and_then(|row| row.text(1));
        content.and_then(TimelineHistory::parse).map(Some).ok_or_else(|| undocumented(QUESTION))
    }

    /// Creates a pgoutput slot and exports its snapshot, which lives until this session's next command or end. Unless it is
    /// temporary, standbys may keep a copy of it where the server knows how (17).
    ///
    /// The server first waits for every transaction of the cluster that has written, for `lock_timeout` at most.
    ///
    /// # Errors
    /// SQLSTATE 55P03 when that took too long; 53400 when all slots are in use; 42710 when the slot exists.
    pub async fn create_slot(
        &mut self,
        slot: &SlotName,
        temporary: bool,
        lock_timeout: std::time::Duration,
    ) -> Result<CreatedSlot, Error> {
        const QUESTION: &str = "the new replication slot";
        let millis = i64::try_from(lock_timeout.as_millis()).unwrap_or(i64::MAX);
        let timeout = Sql::new("SET lock_timeout = ").number(millis);
        self.session.execute(&timeout).await.map_err(|cause| Error::Wire { question: QUESTION, cause })?;
        let create = Sql::new("CREATE_REPLICATION_SLOT ")
            .ident(slot.as_str())
            .text(if temporary { " TEMPORARY" } else { "" })
            .text(" LOGICAL pgoutput ")
            .text(Dialect::new(self.server_version()).slot_options(temporary));
        let rows =
            self.session.query(&create).await.map_err(|cause| Error::Wire { question: QUESTION, cause })?;
        let column = |index| rows.first().and_then(|row| row.text(index));
        let created = || {
            Some(CreatedSlot { consistent_point: column(1)?.parse().ok()?, snapshot: column(2)?.to_owned() })
        };
        created().ok_or_else(|| undocumented(QUESTION))
    }

    /// Starts streaming what commits at or after `from`.
    ///
    /// # Errors
    /// SQLSTATE 55006 while another connection uses the slot.
    pub async fn start(
        self,
        slot: &SlotName,
        from: SourceLsn,
        publications: &[String],
        options: StreamOptions,
    ) -> Result<(CopyBothReader, CopyBothWriter), Error> {
        // A list of quoted names inside one quoted option.
        let names = Sql::default().list(publications, ",", |sql, name| sql.ident(name));
        let start = Sql::new("START_REPLICATION SLOT ")
            .ident(slot.as_str())
            .text(" LOGICAL ")
            .position(from)
            .text(" (publication_names ")
            .replication_literal(names.as_str())
            .sql(&Dialect::new(self.server_version()).stream_options(options))
            .text(")");
        self.session
            .copy_both(&start)
            .await
            .map_err(|cause| Error::Wire { question: "the stream of changes", cause })
    }
}

fn undocumented(question: &'static str) -> Error {
    Error::Answer { question, what: "its row is not as documented".to_owned() }
}
