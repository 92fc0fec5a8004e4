//! The pipeline, and what goes on beside it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::apply::store::RelationRow;
use crate::apply::{Applier, ApplyError, ApplyOptions, Tables, TargetSession};
use crate::config::{Ddl, Keyless, OnConflict, Until};
use crate::engine::{self, Ahead, Finish, Run};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{SEQUENCES_INTERVAL, TICK};
use crate::pg::{EndLsn, SourceLsn};
use crate::source::catalog;
use crate::source::gap::{Expected, refuse_gap};
use crate::source::replication::{ReplicationSession, StreamOptions};
use crate::spill::SpillDir;
use crate::status::TableState;
use crate::wire::{CopyBothReader, CopyBothWriter};

use super::attempt::{Attempt, Ended};
use super::cutover::Cutover;
use super::dump::{Archive, Wave};
use super::retry::Context;
use super::{Migration, Phase, STREAM_NAME, sequences, snapshot, source_failed, told};

/// A connection to stream on from the stored position without a gap.
struct Connected {
    walsender: ReplicationSession,
    slot: Option<catalog::SlotInfo>,
}

/// A stream of changes.
struct Opened {
    stream: (CopyBothReader, CopyBothWriter),
    /// Where its transactions in progress are kept, if it has them.
    spill: Option<SpillDir>,
}

/// Where the last table was copied.
fn last_copy(rows: &[RelationRow]) -> SourceLsn {
    rows.iter().filter_map(|row| row.copy_lsn).max().unwrap_or(SourceLsn::ZERO)
}

impl Attempt<'_> {
    /// Streams and applies until told to stop. With an `archive`, its foreign keys are made as soon as every table is
    /// at the same point.
    pub(super) async fn follow(
        &mut self,
        mut session: TargetSession,
        archive: Option<Arc<Archive>>,
        context: &mut Context,
    ) -> Result<Ended> {
        let rows = self.store().relations().await?;
        let last_copy = last_copy(&rows);
        if let Some(archive) = archive {
            if self.stored().await?.position() < last_copy {
                let (finish, again) = self.stream(session, Some(last_copy), context).await?;
                // It may have ended while a request was being refused.
                self.conclude().await?;
                if finish == Finish::Stopped {
                    return Ok(Ended::Stopped);
                }
                session = again;
            }
            let left_out = self.left_out().await?;
            self.post_data(&archive).make_but(Wave::ForeignKeys, &left_out).await?;
        }
        loop {
            (_, session) = self.stream(session, None, context).await?;
            let cutting_over = self.cutover.is_some();
            if self.conclude().await? {
                return Ok(Ended::Done);
            }
            if !cutting_over {
                break;
            }
            snapshot::wait_released(&self.source, &self.row.slot).await?;
        }
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
        context: &mut Context,
    ) -> Result<(Finish, TargetSession)> {
        // The position is read when the lock is held: nobody moves it any more.
        let store = self.store();
        let (stored, rows) = tokio::try_join!(self.stored(), store.relations())?;
        let copied = last_copy(&rows);
        let (source, target, name) =
            (Arc::clone(&self.source), Arc::clone(&self.target), self.row.name.clone());
        // The source looks for where to begin meanwhile.
        let (tables, Opened { stream, spill }) =
            tokio::try_join!(Tables::new(source, target, &name, rows), self.open(stored, context))?;
        let options = ApplyOptions {
            follow_ddl: self.migration.ddl == Ddl::Follow,
            on_conflict: self.migration.on_conflict,
            keyless_copied_again: self.migration.contents.keyless != Keyless::Ignore,
            ..ApplyOptions::default()
        };
        let applier = Applier::new(session, tables, options);
        tracing::info!(slot = %self.row.slot, from = %stored, in_progress = spill.is_some(), "streaming");
        self.migration.status.update_database(&self.row.dbname, |database| {
            for table in database.tables.iter_mut().filter(|table| table.state == TableState::Copied) {
                table.state = TableState::Streaming;
            }
        });
        // One that commits beyond the position to run to is not to be begun.
        // A conflict is recorded with the position of the commit.
        let stops = self.migration.on_conflict == OnConflict::Stop;
        let may_go_ahead = run_to.is_none() && stops && !context.ahead_failed;
        let run = Run {
            dbname: self.row.dbname.clone(),
            stored,
            confirm_delay: self.migration.confirm_delay,
            run_to,
            queue_cost_max: self.migration.queue_cost_max,
            spill,
            ahead: may_go_ahead.then(|| Ahead { source: Arc::clone(&self.source), copied }),
            status: self.migration.status.clone(),
            metrics: self.metrics.clone(),
            clocks: context.clocks.clone(),
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
            engine::Ended::Finished(finish, applier) => Ok((finish, applier.into_session().await?)),
            engine::Ended::Failed(ApplyError::Failure(failure)) => Err(failure),
            engine::Ended::SpillFailed(error) => {
                context.spill_failed = true;
                let cause = "transactions in progress cannot be kept here: the source keeps them from now on";
                Err(Transient::new(Side::Source, cause).detail(error.to_string()).into())
            }
            engine::Ended::AheadFailed(error) => {
                context.ahead_failed = true;
                let failure = match error {
                    ApplyError::Failure(failure) => failure,
                    ApplyError::Conflict(conflict) => conflict.into_failure(),
                };
                let cause = "the target refuses what may be rolled back yet: large transactions wait for their commit now";
                Err(Transient::new(Side::Target, cause).detail(failure.to_string()).into())
            }
            engine::Ended::Failed(ApplyError::Conflict(conflict)) => {
                self.metrics.conflict(conflict.kind.as_str());
                if let Err(error) = conflict.record(&self.target, &self.row.name).await {
                    tracing::warn!(%error, "the conflict could not be recorded in walferry.conflict");
                }
                Err(conflict.into_failure())
            }
        }
    }

    fn wants_spill(&self, context: &Context) -> bool {
        self.migration.spill_bytes_max > 0 && !context.spill_failed
    }

    /// Where transactions in progress are kept; `None` where that cannot be.
    fn spill_dir(&self, context: &mut Context) -> Option<SpillDir> {
        // The slot's name is this migration's alone, and we hold its lock.
        let Migration { spill_dir, spill_bytes_max, .. } = self.migration;
        let create = || SpillDir::create(spill_dir, self.row.slot.as_str(), *spill_bytes_max);
        match tokio::task::block_in_place(create) {
            Ok(spill) => Some(spill),
            Err(error) => {
                tracing::warn!(%error, "large transactions are not taken before they end: set --spill-dir");
                context.spill_failed = true;
                None
            }
        }
    }

    /// Compares everything that could mean a gap, then starts the stream.
    ///
    /// Large transactions are taken before they end: the source then need not keep them on its disk, which costs it a third
    /// of the time that it takes to decode and send them (`cargo bench --bench catchup`, backlog b).
    async fn open(&mut self, stored: EndLsn, context: &mut Context) -> Result<Opened> {
        let Connected { walsender, slot } = self.without_gap(stored).await?;
        if let Some(pid) = slot.filter(|slot| slot.active).and_then(|slot| slot.active_pid) {
            return Err(self.in_use(pid).await?);
        }
        let wanted = walsender.can_stream() && self.wants_spill(context);
        let spill = if wanted { self.spill_dir(context) } else { None };
        let options = StreamOptions { streaming: spill.is_some(), ..StreamOptions::default() };
        let stream = walsender.start(&self.row.slot, stored, &self.row.publications, options).await;
        let stream = stream.map_err(|error| error.into_failure(Side::Source))?;
        Ok(Opened { stream, spill })
    }

    /// Refuses a gap before anything is done that a gap would make worse.
    pub(super) async fn refuse_gap(&mut self) -> Result<()> {
        let connected = self.without_gap(self.stored().await?).await?;
        self.walsender = Some(connected.walsender);
        Ok(())
    }

    async fn without_gap(&mut self, stored: EndLsn) -> Result<Connected> {
        let mut walsender = match self.walsender.take() {
            Some(walsender) => walsender,
            None => self.migration.walsender().await?,
        };
        let identity = walsender.identify().await.map_err(source_failed)?;
        let slot = catalog::slot(&self.source, self.row.slot.as_str()).await.map_err(source_failed)?;
        let expected = Expected {
            system_id: self.row.system_id,
            slot: self.row.slot.clone(),
            dbname: self.row.dbname.clone(),
            stored,
        };
        refuse_gap(&expected, &identity, slot.as_ref())?;
        Ok(Connected { walsender, slot })
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
        let mut carry = tokio::time::interval_at(Instant::now() + SEQUENCES_INTERVAL, SEQUENCES_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        carry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut synced = false;
        let mut asked_for = false;
        loop {
            if asked_for && self.cutover.is_none() && !*stop.borrow() {
                asked_for = false;
                if self.serve_requests(synced).await? {
                    stop.send_replace(true);
                }
            }
            let deadline = self.cutover.as_ref().map(Cutover::deadline);
            tokio::select! {
                // The source is fenced while the stream ends for a cutover: that has its bound, too.
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(Transient::new(Side::Target, "the stream did not end in time").into());
                }
                () = told(&mut asked), if !*stop.borrow() => {
                    stop.send_replace(true);
                }
                // Nobody ends before the others are there, too: its slot would keep the source's WAL.
                () = self.migration.arrival.of_all(),
                    if synced && self.migration.until == Some(Until::Synced) && !*stop.borrow() =>
                {
                    stop.send_replace(true);
                }
                heard = self.requests.recv() => match heard {
                    Some(_) => asked_for = true,
                    None => return Err(Transient::new(Side::Target, "the control connection was lost").into()),
                },
                _ = carry.tick(), if self.cutover.is_none() => {
                    sequences::refresh(&self.source, &self.target).await?;
                    self.look_at_source_tables().await?;
                }
                _ = tick.tick(), if last_run && !*stop.borrow() && !synced => {
                    if !self.is_synced() {
                        continue;
                    }
                    synced = true;
                    if self.phase == Phase::CatchingUp {
                        self.enter(Phase::Syncing).await?;
                    }
                    self.migration.show(Phase::Syncing);
                    // It may have been asked for while nobody could hear it.
                    asked_for = true;
                    if self.migration.until == Some(Until::Synced) {
                        self.migration.arrival.arrive();
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
