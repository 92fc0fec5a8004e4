//! The pipeline, and what goes on beside it.

use std::collections::HashSet;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::apply::{Applier, ApplyError, ApplyOptions, Tables, TargetSession};
use crate::catalog;
use crate::config::{Ddl, Keyless, OnConflict, Until};
use crate::engine::{self, Ahead, Finish, Run};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{SEQUENCES_INTERVAL, TICK};
use crate::pg::{QualifiedName, RelationId, Resume, SourceLsn};
use crate::source::gap::{Expected, refuse_gap};
use crate::source::replication::{ReplicationSession, StreamOptions};
use crate::spill::SpillDir;
use crate::status::TableState;
use crate::store::{RelationRow, Store};
use crate::wire::{CopyBothReader, CopyBothWriter};

use super::attempt::{Attempt, Ended};
use super::beside::Beside;
use super::cutover::Cutover;
use super::dump::Archive;
use super::partitions::Unfollowed;
use super::publications::versions;
use super::retry::Context;
use super::{Migration, Phase, STREAM_NAME, foreign_keys, sequences, signalled, snapshot};

/// A connection to stream on from the stored position without a gap.
struct Connected {
    walsender: ReplicationSession,
    /// From where, on the timeline that the source is on.
    resume: Resume,
}

/// A stream of changes.
struct Opened {
    /// From where.
    resume: Resume,
    stream: (CopyBothReader, CopyBothWriter),
    /// Where its transactions in progress are kept, if it has them.
    spill: Option<SpillDir>,
    /// Whether it has messages: then a transaction without changes may not come.
    messages: bool,
}

/// What a look at the source's tables leaves.
struct Looked {
    told: HashSet<QualifiedName>,
    misfits: HashSet<String>,
    schema_version: Option<String>,
    /// It ends the attempt for something that the next one does first.
    again: bool,
    outcome: Result<()>,
}

/// Where the last table was copied.
fn last_copy(rows: &[RelationRow]) -> SourceLsn {
    rows.iter().filter_map(|row| row.copy_lsn).max().unwrap_or(SourceLsn::ZERO)
}

impl<'a> Attempt<'a> {
    /// Streams and applies until told to stop. With an `archive`, its foreign keys are made as soon as every table is
    /// at the same point.
    pub(super) async fn follow(
        &mut self,
        mut session: TargetSession,
        archive: Option<Arc<Archive>>,
        context: &mut Context,
    ) -> Result<Ended> {
        session = session.hand_over(&self.writer().await?).await?;
        context.apply_process = Some(session.process_id());
        let rows = self.store().relations().await?;
        let last_copy = last_copy(&rows);
        if let Some(archive) = archive {
            let ControlFlow::Continue(again) = self.stream_to(last_copy, session, context).await? else {
                return Ok(Ended::Stopped);
            };
            session = again;
            let making = async {
                let mut left_out = self.left_out().await?;
                left_out.extend(self.dropped_foreign_keys(&archive).await?);
                self.making(&archive).foreign_keys(&left_out).await
            };
            if self.unless_told(making).await?.is_none() {
                return Ok(Ended::Stopped);
            }
        }
        let unvalidated = foreign_keys::unvalidated(&self.source, &self.target);
        let Some(keys) = self.unless_told(unvalidated).await? else { return Ok(Ended::Stopped) };
        if !keys.is_empty() {
            // By then the source may have mended what its snapshot violated.
            let now = catalog::current_wal(&self.source).await?;
            let ControlFlow::Continue(again) = self.stream_to(now, session, context).await? else {
                return Ok(Ended::Stopped);
            };
            session = again;
            if self.unless_told(foreign_keys::validate(&self.target, &keys)).await?.is_none() {
                return Ok(Ended::Stopped);
            }
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

    /// The work, unless a signal comes first: then it is given up as a kill would give it up.
    pub(super) async fn unless_told<T>(&self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        let mut stop = self.migration.stop.clone();
        tokio::select! {
            done = work => done.map(Some),
            () = signalled(&mut stop) => Ok(None),
        }
    }

    /// Applies what was written before `end`, where that is not done yet. Breaks when it is stopped meanwhile.
    async fn stream_to(
        &mut self,
        end: SourceLsn,
        session: TargetSession,
        context: &mut Context,
    ) -> Result<ControlFlow<(), TargetSession>> {
        if self.stored().await?.end.position() >= end {
            return Ok(ControlFlow::Continue(session));
        }
        let (finish, session) = self.stream(session, Some(end), context).await?;
        // It may have ended while a request was being refused.
        self.conclude().await?;
        let stopped = finish == Finish::Stopped;
        Ok(if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(session) })
    }

    async fn stored(&self) -> Result<Resume> {
        let progress = self.store().resume().await?;
        let missing = || {
            Definite::new("walferry.progress has no row for this migration").hint("`walferry remove --force`")
        };
        Ok(progress.ok_or_else(missing)?)
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
        let (partitions, identities) = (self.watch(&rows), self.watch_identities());
        let (source, target, name) =
            (Arc::clone(&self.source), Arc::clone(&self.target), self.row.name.clone());
        // The source looks for where to begin meanwhile.
        let (tables, Opened { resume, stream, spill, messages }) =
            tokio::try_join!(Tables::new(source, target, &name, rows), self.open(stored, copied, context))?;
        let options = ApplyOptions {
            follow_ddl: self.migration.ddl == Ddl::Follow,
            on_conflict: self.migration.on_conflict,
            keyless_copied_again: self.migration.contents.keyless != Keyless::Ignore,
            ..ApplyOptions::default()
        };
        let inserts_only = self.inserts_only().await?;
        let applier = Applier::new(session, tables, options).with_inserts_only(inserts_only);
        tracing::info!(slot = %self.row.slot, from = %resume.opened_at(), in_progress = spill.is_some(), "streaming");
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
            resume,
            copied,
            source: Arc::clone(&self.source),
            sends_empty: !messages,
            confirm_delay: self.migration.confirm_delay,
            run_to,
            queue_cost_max: self.migration.queue_cost_max,
            spill,
            ahead: may_go_ahead.then(|| Ahead { source: Arc::clone(&self.source), copied }),
            status: self.migration.status.clone(),
            metrics: self.metrics.clone(),
            progress: context.progress.clone(),
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
            failure = identities => return Err(failure),
            () = partitions.found(), if run_to.is_none() => {
                self.again = true;
                return Err(Transient::new(Side::Source, "there are new partitions: they are taken in first").into());
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

    /// The tables of which the stream has no updates and deletes.
    async fn inserts_only(&self) -> Result<HashSet<RelationId>> {
        let rows = versions::rows(&self.source, self.row.publications.get(1..).unwrap_or_default()).await?;
        Ok(rows.iter().map(|row| RelationId::new(row.table)).collect())
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
    async fn open(&mut self, stored: Resume, copied: SourceLsn, context: &mut Context) -> Result<Opened> {
        let Connected { walsender, resume } = self.connect(stored, copied).await?;
        let wanted = walsender.can_stream() && self.wants_spill(context);
        let spill = if wanted { self.spill_dir(context) } else { None };
        if resume != stored {
            if let (Some(before), Some(timeline)) = (stored.timeline, resume.timeline) {
                tracing::warn!(%timeline, %before, from = %resume.end, "the source failed over; nothing is lost");
            }
            self.store().set_timeline(&resume).await?;
        }
        let options = StreamOptions { streaming: spill.is_some(), messages: true };
        let messages = walsender.can_send_messages();
        let stream =
            walsender.start(&self.row.slot, resume.opened_at(), &self.row.publications, options).await;
        let stream = stream?;
        Ok(Opened { resume, stream, spill, messages })
    }

    /// Refuses a gap before anything is done that a gap would make worse.
    pub(super) async fn refuse_gap(&mut self) -> Result<()> {
        let store = self.store();
        let (stored, rows) = tokio::try_join!(self.stored(), store.relations())?;
        let (connected, _) = self.without_gap(stored, last_copy(&rows)).await?;
        self.walsender = Some(connected.walsender);
        Ok(())
    }

    /// With the server process that uses the slot.
    async fn without_gap(&mut self, stored: Resume, copied: SourceLsn) -> Result<(Connected, Option<i32>)> {
        let mut walsender = match self.walsender.take() {
            Some(walsender) => walsender,
            None => self.migration.walsender().await?,
        };
        let identity = walsender.identify().await?;
        let moved = stored.timeline.is_some_and(|before| before != identity.timeline);
        let history = if moved { walsender.timeline_history(identity.timeline).await? } else { None };
        let slot = catalog::slot(&self.source, self.row.slot.as_str()).await?;
        let expected = Expected {
            system_id: self.row.system_id,
            slot: self.row.slot.clone(),
            dbname: self.row.dbname.clone(),
            stored,
            copied,
        };
        let resume = refuse_gap(&expected, &identity, slot.as_ref(), history.as_ref())?;
        let used_by = slot.filter(|slot| slot.active).and_then(|slot| slot.active_pid);
        Ok((Connected { walsender, resume }, used_by))
    }

    /// The same, where nobody else has the slot.
    async fn connect(&mut self, stored: Resume, copied: SourceLsn) -> Result<Connected> {
        let (connected, used_by) = self.without_gap(stored, copied).await?;
        match used_by {
            Some(pid) => Err(self.in_use(pid).await?),
            None => Ok(connected),
        }
    }

    /// Refuses another history than the one that was applied, before its rows replace what the target has.
    pub(super) async fn recognise(&mut self) -> Result<()> {
        let store = self.store();
        let (stored, rows) = tokio::try_join!(self.stored(), store.relations())?;
        if stored.landmark.is_none() {
            return Ok(());
        }
        let Connected { walsender, resume } = self.connect(stored, last_copy(&rows)).await?;
        let messages = walsender.can_send_messages();
        let options = StreamOptions { streaming: false, messages: true };
        let stream =
            walsender.start(&self.row.slot, resume.opened_at(), &self.row.publications, options).await;
        let (reader, writer) = stream?;
        engine::recognise(reader, &resume, !messages).await?;
        drop(writer);
        snapshot::wait_released(&self.source, &self.row.slot).await
    }

    /// We hold the lock, so a walsender of ours that still has the slot is one whose engine is gone: it ends soon.
    async fn in_use(&self, pid: i32) -> Result<Failure> {
        let name = catalog::application_name(&self.source, pid).await?;
        if name.as_deref().is_none_or(|name| name == STREAM_NAME) {
            return Ok(snapshot::in_use(&self.row.slot, Some(pid)).into());
        }
        let by = name.unwrap_or_default();
        Ok(Definite::new(format!("replication slot {} is in use by another program", self.row.slot))
            .detail(format!("server process {pid} of the source, application_name {by:?}"))
            .hint(format!(
                "end it on the source, then run `walferry migrate` again:\nSELECT pg_terminate_backend({pid});"
            ))
            .into())
    }

    /// What goes on beside the stream: the phase follows the lag, sequences are refreshed, and whoever wants the
    /// migration to end is heard. Never ends by itself.
    ///
    /// Nothing here waits for a server's answer before a signal is heard: a lock that somebody holds on one of the source's
    /// tables keeps a look at them waiting for as long. What asks goes on beside the loop, the look on a session of its
    /// own. A cutover hears of signals by itself.
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
        let (target, name) = (Arc::clone(&self.target), self.row.name.clone());
        let (mut looking, mut asking, mut entering) = (Beside::idle(), Beside::idle(), Beside::idle());
        if last_run {
            looking.start(self.look_beside(true));
        }
        loop {
            let serves = self.cutover.is_none() && !*stop.borrow() && entering.is_idle();
            if asked_for && serves && asking.is_idle() {
                asked_for = false;
                asking.start(async { Ok(Store::new(&target, &name).next_request().await?.is_some()) });
            }
            let deadline = self.cutover.as_ref().and_then(Cutover::deadline);
            tokio::select! {
                // The source is fenced while the stream ends for a cutover: that has its bound, too.
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(Transient::new(Side::Target, "the stream did not end in time").into());
                }
                () = signalled(&mut asked), if !*stop.borrow() => {
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
                found = asking.done() => {
                    if found? && serves {
                        // A cutover looks for itself, and a fence ends all sessions.
                        looking = Beside::idle();
                        if self.serve_requests(synced).await? {
                            stop.send_replace(true);
                        }
                    }
                }
                _ = carry.tick(), if self.cutover.is_none() && looking.is_idle() => {
                    looking.start(self.look_beside(false));
                }
                looked = looking.done() => {
                    let Looked { told, misfits, schema_version, again, outcome } = looked?;
                    // What was told is told once.
                    self.told.extend(told);
                    self.misfits.extend(misfits);
                    self.schema_version = schema_version;
                    self.again |= again;
                    outcome?;
                }
                entered = entering.done() => {
                    self.entered(entered?);
                    // It may have been asked for while nobody could hear it.
                    asked_for = true;
                    if self.migration.until == Some(Until::Synced) {
                        self.migration.arrival.arrive();
                    }
                }
                _ = tick.tick(), if last_run && !*stop.borrow() && !synced => {
                    synced = self.is_synced();
                    if synced {
                        let (store, mut phase) = (Store::new(&target, &name), self.phase);
                        entering.start(async move {
                            if phase.get() == Phase::CatchingUp {
                                store.enter(&mut phase, Phase::Syncing).await?;
                            }
                            Ok(phase)
                        });
                    }
                }
            }
        }
    }

    /// Looks at the source's tables, and carries its sequences, on a session of its own; `at_once`: at the rest of its
    /// schema alone, since the tables were looked at just before.
    fn look_beside(&self, at_once: bool) -> impl Future<Output = Result<Looked>> + Send + use<'a> {
        let mut beside = Attempt {
            migration: self.migration,
            number: self.number,
            source: Arc::clone(&self.source),
            target: Arc::clone(&self.target),
            row: self.row.clone(),
            phase: self.phase,
            metrics: self.metrics.clone(),
            walsender: None,
            told: self.told.clone(),
            misfits: self.misfits.clone(),
            progress: self.progress.clone(),
            schema_version: self.schema_version.clone(),
            requests: tokio::sync::mpsc::channel(1).1,
            cutover: None,
            writer: self.writer.clone(),
            unfollowed: Unfollowed::default(),
            again: false,
        };
        async move {
            beside.source = Arc::new(beside.migration.sides.source_client().await?);
            let mut outcome = Ok(());
            if !at_once {
                sequences::refresh(&beside.source, &beside.target).await?;
                outcome = beside.look_at_tables().await;
            }
            if outcome.is_ok() {
                beside.look_at_schema().await;
                outcome = beside.drop_partitions().await;
            }
            let Attempt { told, misfits, again, schema_version, .. } = beside;
            Ok(Looked { told, misfits, schema_version, again, outcome })
        }
    }

    /// Ends with a failure where something has to be done before the stream goes on.
    async fn look_at_tables(&mut self) -> Result<()> {
        let tables = self.look_at_source_tables(true).await?;
        if self.look_at_definitions(&tables).await?.again.is_empty() {
            return Ok(());
        }
        self.again = true;
        let cause = "tables of the source were redefined since their copy: they are copied again";
        Err(Transient::new(Side::Source, cause).into())
    }

    /// The stream runs, and what is not applied yet is within the bound.
    fn is_synced(&self) -> bool {
        self.progress.now().lag.bytes.is_some_and(|lag| lag <= self.migration.lag_bytes_max)
    }
}
