//! The pipeline, and what goes on beside it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::apply::{Applier, ApplyError, Tables, TargetSession};
use crate::config::{Ddl, Until};
use crate::engine::{self, Clocks, Finish, Run};
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::{SEQUENCES_INTERVAL, TICK};
use crate::pg::{EndLsn, SourceLsn};
use crate::source::catalog;
use crate::source::gap::{Expected, refuse_gap};
use crate::source::replication::ReplicationSession;
use crate::status::TableState;

use super::attempt::{Attempt, Ended};
use super::dump::{Archive, Wave};
use super::{Phase, STREAM_NAME, objects, sequences, snapshot};

impl Attempt<'_> {
    /// Streams and applies until told to stop. With an `archive`, its foreign keys are made as soon as every table is
    /// at the same point.
    pub(super) async fn follow(
        &mut self,
        mut session: TargetSession,
        archive: Option<Arc<Archive>>,
        clocks: &Clocks,
    ) -> Result<Ended> {
        let rows = self.store().relations().await?;
        let last_copy = rows.iter().filter_map(|row| row.copy_lsn).max().unwrap_or(SourceLsn::ZERO);
        if let Some(archive) = archive {
            if self.stored().await?.position() < last_copy {
                let (finish, again) = self.stream(session, Some(last_copy), clocks).await?;
                if finish == Finish::Stopped {
                    return Ok(Ended::Stopped);
                }
                session = again;
            }
            let (target, jobs) = (&self.migration.sides.target, self.migration.jobs);
            let wave = Wave::ForeignKeys;
            objects::make_wave(target, &self.target, &self.row.name, &archive, wave, jobs).await?;
        }
        self.stream(session, None, clocks).await?;
        sequences::carry(&self.source, &self.target).await?;
        Ok(Ended::Stopped)
    }

    async fn stored(&self) -> Result<EndLsn> {
        let progress = self.store().progress().await?;
        let missing = || {
            Definite::new("walferry.progress has no row for this migration").hint("`walferry remove --force`")
        };
        Ok(progress.ok_or_else(missing)?.0)
    }

    async fn stream(
        &mut self,
        session: TargetSession,
        run_to: Option<SourceLsn>,
        clocks: &Clocks,
    ) -> Result<(Finish, TargetSession)> {
        // The position is read when the lock is held: nobody moves it any more.
        let stored = self.stored().await?;
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let tables = Tables::new(source, target, &self.row.name, self.store().relations().await?).await?;
        let applier = Applier::new(session, tables, self.migration.ddl == Ddl::Follow);
        let stream = self.open(stored).await?;
        tracing::info!(slot = %self.row.slot, from = %stored, "streaming");
        self.migration.status.update_database(&self.row.dbname, |database| {
            for table in database.tables.iter_mut().filter(|table| table.state == TableState::Copied) {
                table.state = TableState::Streaming;
            }
        });
        let run = Run {
            dbname: self.row.dbname.clone(),
            stored,
            confirm_delay: self.migration.confirm_delay,
            run_to,
            status: self.migration.status.clone(),
            metrics: self.metrics.clone(),
            clocks: clocks.clone(),
        };
        let (stop, stopped) = watch::channel(false);
        let engine = engine::run(run, applier, stream, stopped);
        tokio::pin!(engine);
        let ended = tokio::select! {
            ended = &mut engine => ended,
            failure = self.accompany(run_to.is_none(), &stop) => {
                let Err(failure) = failure;
                return Err(failure);
            }
        };
        match ended {
            engine::Ended::Finished(finish, applier) => Ok((finish, applier.into_session())),
            engine::Ended::Failed(ApplyError::Failure(failure)) => Err(failure),
            engine::Ended::Failed(ApplyError::Conflict(conflict)) => {
                self.metrics.conflict(conflict.kind);
                if let Err(error) = conflict.record(&self.target, &self.row.name).await {
                    tracing::warn!(%error, "the conflict could not be recorded in walferry.conflict");
                }
                Err(conflict.into_failure())
            }
        }
    }

    /// Compares everything that could mean a gap, then starts the stream.
    async fn open(
        &self,
        stored: EndLsn,
    ) -> Result<(crate::wire::CopyBothReader, crate::wire::CopyBothWriter)> {
        let (replication, slot) = self.without_gap(stored).await?;
        if let Some(pid) = slot.filter(|slot| slot.active).and_then(|slot| slot.active_pid) {
            return Err(self.in_use(pid).await?);
        }
        let started = replication.start(&self.row.slot, stored, &self.row.publications).await;
        started.map_err(|error| error.into_failure(Side::Source))
    }

    /// Refuses a gap before anything is done that a gap would make worse.
    pub(super) async fn refuse_gap(&self) -> Result<()> {
        self.without_gap(self.stored().await?).await.map(|_| ())
    }

    async fn without_gap(&self, stored: EndLsn) -> Result<(ReplicationSession, Option<catalog::SlotInfo>)> {
        let at_source = |error: crate::source::Error| error.into_failure(Side::Source);
        let connected = ReplicationSession::connect(&self.migration.sides.source, STREAM_NAME).await;
        let mut replication = connected.map_err(|error| error.into_failure(Side::Source))?;
        let identity = replication.identify().await.map_err(at_source)?;
        let slot = catalog::slot(&self.source, self.row.slot.as_str()).await.map_err(at_source)?;
        let expected = Expected {
            system_id: self.row.system_id,
            slot: self.row.slot.clone(),
            dbname: self.row.dbname.clone(),
            stored,
        };
        refuse_gap(&expected, &identity, slot.as_ref())?;
        Ok((replication, slot))
    }

    /// We hold the lock, so a walsender of ours that still has the slot is one whose engine is gone: it ends soon.
    async fn in_use(&self, pid: i32) -> Result<Failure> {
        let sql = "SELECT application_name FROM pg_stat_activity WHERE pid = $1";
        let row = self.source.query_opt(sql, &[&pid]).await;
        let row = row.map_err(|error| {
            crate::source::Error::new("who uses the slot", error).into_failure(Side::Source)
        })?;
        let name: Option<String> = row.and_then(|row| row.get(0));
        if name.as_deref().is_none_or(|name| name == STREAM_NAME) {
            return Ok(snapshot::in_use(&self.row.slot, Some(pid)).into());
        }
        let by = name.unwrap_or_default();
        Ok(Definite::new(format!("replication slot {} is in use by another program", self.row.slot))
            .detail(format!("server process {pid} of the source, application_name {by:?}"))
            .hint(format!(
                "end it (SELECT pg_terminate_backend({pid}) on the source), then run `walferry migrate` again"
            ))
            .into())
    }

    /// What goes on beside the stream: the phase follows the lag, sequences are refreshed, and whoever wants the
    /// migration to end is heard. Never ends by itself.
    async fn accompany(
        &mut self,
        last_run: bool,
        stop: &watch::Sender<bool>,
    ) -> Result<std::convert::Infallible> {
        let mut asked = self.migration.stop.clone();
        let mut tick = tokio::time::interval(TICK);
        let mut carry =
            tokio::time::interval_at(tokio::time::Instant::now() + SEQUENCES_INTERVAL, SEQUENCES_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        carry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut synced = false;
        loop {
            tokio::select! {
                _ = asked.wait_for(|asked| *asked), if !*stop.borrow() => { stop.send_replace(true); }
                _ = carry.tick() => {
                    sequences::carry(&self.source, &self.target).await?;
                    self.look_at_source_tables().await?;
                }
                _ = tick.tick(), if last_run && !synced => {
                    if !self.is_synced() {
                        continue;
                    }
                    synced = true;
                    if self.phase == Phase::CatchingUp {
                        self.enter(Phase::Syncing).await?;
                    }
                    self.migration.show(Phase::Syncing);
                    if self.migration.until == Some(Until::Synced) {
                        stop.send_replace(true);
                    }
                }
            }
        }
    }

    /// The stream runs, and what is not applied yet is within the bound.
    fn is_synced(&self) -> bool {
        let snapshot = self.migration.status.snapshot();
        let database = snapshot.database(&self.row.dbname);
        database
            .and_then(|database| database.lag_bytes)
            .is_some_and(|lag| lag <= self.migration.lag_bytes_max)
    }
}
