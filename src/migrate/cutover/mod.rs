//! The end of the source's writes, and of the migration.
//!
//! | step | what holds when it is done |
//! |---|---|
//! | check | it follows within the bound, everything is followed, the fence can be put up |
//! | fence | nobody should be able to write any more, and no transaction is open that has written |
//! | drain | everything that committed before a mark in the source's WAL, written after the fence, is applied |
//! | carry | what replication does not carry is as on the source |
//! | prove | up to a second mark no change came that committed after the first one; sequences stand as they were carried |
//!
//! Then the stream is ended: nothing is applied any more. If still no change has come after the first mark, what acts by its
//! rows is brought, as jobs are; `done` is recorded in one statement with the answer, and from then on nothing is written
//! to the target.
//!
//! The engine does the work, beside its stream, when a command asks for it (`ask`). A failure before `done`, the
//! timeout, and whoever changes their mind lead to the same end: the fence is taken down, the answer says why, and the
//! migration goes on following. All that this takes is recorded before the fence is put up, so that the next start can do
//! it for an engine that was killed. Only where it is not known whether `done` was recorded nothing is undone: the next
//! attempt reads it.
//!
//! A fence is not proof, and a proof says nothing of what comes after it: a writer that no fence stops and that writes
//! after the second mark is lost. Hence the check of open transactions just before that mark, and, without a fence, some
//! time to watch.

mod ask;
mod carry;
mod fence;
mod held;
mod record;
mod sessions;
mod state;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::catalog::{self, SequenceValues, SourceClient, Table, TableKind, TargetClient};
use crate::config::FenceKind;
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{REQUEST_POLL, UNFENCED_WATCH};
use crate::pg::{SourceLsn, Sql};
use crate::status::TableState;
use crate::store::Request;
use crate::store::{RelationRow, RelationState, Store};

use super::attempt::Attempt;
use super::pairing::Recorded;
use super::uncarried::Again;
use super::{Phase, fenced};

pub use ask::cutover;
pub(super) use fence::lower;
pub(super) use record::Fence;
pub use record::{CutoverRequest, CutoverState, CutoverStatus, CutoverStep, DoneStep};

use fence::Before;
use held::Held;
use record::CutoverError;
use sessions::first_names;
use state::{Effect, Event, State};

/// What `walferry.request` calls it.
pub(super) const COMMAND: &str = "cutover";

/// What a fence leaves on the source, as it is listed there.
pub(super) const FENCED: &str = "default_transaction_read_only = on";

/// A cutover under way.
#[derive(Debug)]
pub(super) struct Cutover {
    id: i64,
    wanted: CutoverRequest,
    status: CutoverStatus,
    began: Instant,
    fenced_at: Option<Instant>,
    state: State,
    /// Who the fence may not reach.
    before: Before,
    /// The version of the source's schema when it was compared.
    schema_version: String,
    /// What is kept from being written to.
    held: Option<Held>,
    /// Shows on the target that the engine is at it, whatever becomes of its other connections.
    seen: Option<TargetClient>,
    /// What comes last.
    acting: Again,
    /// What it waits for, for whoever wants to know why it took too long.
    waits_for: String,
}

impl Cutover {
    fn new(id: i64, wanted: CutoverRequest) -> Self {
        Self {
            id,
            wanted,
            status: CutoverStatus::default(),
            state: State::Checking,
            began: Instant::now(),
            fenced_at: None,
            before: Before::default(),
            schema_version: String::new(),
            held: None,
            seen: None,
            acting: Again::default(),
            waits_for: String::new(),
        }
    }

    fn on(&mut self, event: Event) {
        self.state = std::mem::replace(&mut self.state, State::Over).on(event);
    }

    /// One that an engine before this one began; `status` is what it has recorded.
    fn found(id: i64, status: CutoverStatus) -> Self {
        let state = State::found(status.fence.clone(), status.error.clone().unwrap_or_else(engine_ended));
        Self { status, state, ..Self::new(id, CutoverRequest::default()) }
    }

    /// What is recorded of it.
    fn answer(&self) -> serde_json::Value {
        let state = match &self.state {
            State::Concluding(_) | State::Unknown(_) | State::Done => CutoverState::Done,
            State::Answering { fenced: true, .. } => CutoverState::GivenUp,
            State::Answering { fenced: false, .. } => CutoverState::Refused,
            _ => CutoverState::Running,
        };
        let (fence, error) = (self.state.fence().cloned(), self.state.error().cloned());
        let status = CutoverStatus { state, fence, error, ..self.status.clone() };
        serde_json::to_value(status).expect("plain data becomes JSON")
    }

    /// When it is given up, as long as it may be.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.state.deadline(self.request_deadline())
    }

    fn request_deadline(&self) -> Instant {
        self.began + self.wanted.timeout()
    }

    /// `done` is recorded, or may be: nothing may be undone.
    pub(super) const fn may_be_done(&self) -> bool {
        self.state.may_be_done()
    }

    /// Whether the source is fenced, or may be.
    pub(super) fn is_fenced(&self) -> bool {
        self.state.fence().is_some()
    }

    /// How somebody opens the source's database, if it is.
    pub(super) fn opened_by(&self, dbname: &str) -> Option<String> {
        let fence = self.state.fence().filter(|fence| fence.kind != FenceKind::None)?;
        Some(fence::if_fenced(dbname, Some(fence)))
    }
}

impl Attempt<'_> {
    /// Does what commands have asked for. True: a cutover is proven, and the stream is to be ended.
    ///
    /// A signal is heard at any time but while a cutover is given up. Whatever the target was being asked then is left as a
    /// kill would leave it.
    pub(super) async fn serve_requests(&mut self, synced: bool) -> Result<bool> {
        while let Some((cutover, refusal)) = self.unless_told(self.begin_cutover()).await?.flatten() {
            tracing::info!(request = cutover.id, fence = ?cutover.wanted.fence, "asked to cut over");
            self.cutover = Some(cutover);
            let done = match refusal {
                Some(refusal) => Err(refusal.into()),
                None => self.cut_over(synced).await,
            };
            let Err(failure) = done else { return Ok(true) };
            self.give_up(&failure).await?;
            self.refuse_copied_again().await?;
            if synced {
                self.migration.show(self.phase.get());
            }
        }
        Ok(false)
    }

    /// Takes the next request, if there is one; with why it is refused at once.
    async fn begin_cutover(&self) -> Result<Option<(Cutover, Option<Definite>)>> {
        while let Some(request) = self.store().next_request().await? {
            let (wanted, refusal) = match wanted(&request) {
                Ok(wanted) => (wanted, None),
                Err(refusal) => (CutoverRequest::default(), Some(refusal)),
            };
            let cutover = Cutover::new(request.id, wanted);
            if self.store().take(request.id, &cutover.answer()).await? {
                return Ok(Some((cutover, refusal)));
            }
        }
        Ok(None)
    }

    async fn be_seen(&self) -> Result<Option<TargetClient>> {
        let client = self.migration.sides.target_client().await?;
        Store::new(&client, &self.migration.sides.name).be_seen().await?;
        Ok(Some(client))
    }

    /// All steps, in time, unless somebody changes their mind. They have a session of their own on the source: one that still
    /// waits for a lock when they are given up would keep whoever comes next from asking.
    async fn cut_over(&mut self, synced: bool) -> Result<()> {
        let source = Arc::clone(&self.source);
        let done = self.steps_in_time(synced).await;
        self.source = source;
        done
    }

    async fn steps_in_time(&mut self, synced: bool) -> Result<()> {
        let target = Arc::clone(&self.target);
        let store = Store::new(&target, &self.migration.sides.name);
        let mut stop = self.migration.stop.clone();
        let (id, timeout) = (self.under_way().id, self.under_way().wanted.timeout());
        let deadline = self.under_way().request_deadline();
        tokio::select! {
            done = self.steps(synced) => return done,
            given_up = given_up(&store, id) => return Err(given_up),
            _ = stop.wait_for(|stop| *stop) => {
                return Err(Definite::new("the engine was told to stop").hint(AGAIN).into());
            }
            () = sleep_until(deadline) => {}
        }
        let cause = format!("it took longer than {} s", timeout.as_secs_f64());
        let waits_for = std::mem::take(&mut self.under_way().waits_for);
        Err(Definite::new(cause)
            .detail(if waits_for.is_empty() { waits_for } else { format!("it waited for {waits_for}") })
            .hint("mend that, or give it a longer --timeout, then run `walferry cutover` again")
            .into())
    }

    async fn steps(&mut self, synced: bool) -> Result<()> {
        let mut began = Instant::now();
        self.under_way().seen = self.be_seen().await?;
        self.source = Arc::new(self.migration.sides.source_client().await?);
        if !synced || self.phase.get() != Phase::Syncing {
            return Err(Definite::new("the migration is not in sync yet").hint(WHEN_SYNCED).into());
        }
        let client = fence::connect(&self.migration.sides.source).await?;
        loop {
            let (event, step) = match self.under_way().state.effect() {
                Effect::Check => (Event::Checked(self.check(&client).await?), Some(CutoverStep::Check)),
                Effect::Record(_) => (self.record_fence().await?, None),
                Effect::Raise(fence) => (self.raise(&client, &fence).await?, Some(CutoverStep::Fence)),
                Effect::Drain => (self.drain(&client).await?, Some(CutoverStep::Drain)),
                Effect::Carry => (self.carry(&client).await?, Some(CutoverStep::Carry)),
                Effect::Prove { fence, sequences } => {
                    (self.prove(&client, &fence, &sequences).await?, Some(CutoverStep::Prove))
                }
                Effect::EndStream => return Ok(()),
                effect @ (Effect::Conclude | Effect::Lower(_) | Effect::Answer(_) | Effect::Nothing) => {
                    unreachable!("{effect:?} comes after the stream or a failure")
                }
            };
            self.under_way().on(event);
            if let Some(step) = step {
                self.stepped(step, &mut began).await?;
            }
        }
    }

    async fn stepped(&mut self, step: CutoverStep, began: &mut Instant) -> Result<()> {
        let seconds = began.elapsed().as_secs_f64();
        self.under_way().status.steps.push(DoneStep { step, seconds });
        tracing::info!(seconds, "{}", step.as_str());
        self.report_cutover().await?;
        self.under_way().waits_for.clear();
        *began = Instant::now();
        Ok(())
    }

    async fn report_cutover(&mut self) -> Result<()> {
        let (id, answer) = (self.under_way().id, self.under_way().answer());
        self.store().report(id, &answer).await
    }

    /// Refuses what would not end well, before anything is changed. Gives the fence, with all that it takes to lower it.
    async fn check(&mut self, client: &SourceClient) -> Result<Fence> {
        let wal = catalog::current_wal(client).await?;
        let lag = wal.bytes_since(self.progress.now().applied().unwrap_or(SourceLsn::ZERO));
        let bound = self.under_way().wanted.lag_bytes_max;
        if lag > bound {
            return Err(Definite::new("the target is too far behind")
                .detail(format!("{lag} bytes of WAL are not applied, --max-lag is {bound}"))
                .hint(
                    "wait until the source is less busy, or give a larger --max-lag: it takes as much longer",
                )
                .into());
        }
        // Behind the lag: what holds the target up may be a lock, which a look at its tables waits for.
        self.refuse_uncopied().await?;
        self.refuse_prepared(client).await?;
        self.refuse_without_slot(client).await?;
        let readable = catalog::sequence_values(client).await?;
        if !readable.unreadable.is_empty() {
            let names: Vec<String> = readable.unreadable.iter().map(ToString::to_string).collect();
            return Err(Definite::new("sequences of the source cannot be read")
                .detail(first_names(&names))
                .hint(format!(
                    "on the source, then `walferry cutover` again:\n{}",
                    Sql::new("GRANT SELECT ON SEQUENCE ")
                        .list(&readable.unreadable, ", ", Sql::name)
                        .text(" TO ")
                        .ident(self.migration.sides.source.user())
                        .text(";")
                ))
                .into());
        }
        let kind = self.under_way().wanted.fence;
        let several = self.migration.status.snapshot().databases.len() > 1;
        fence::refuse(client, kind, self.migration.fence_commands.as_ref(), several).await?;
        self.refuse_drift(client).await?;
        let previous = catalog::read_only_default(client).await?;
        if previous.on
            && let Some(before) = fenced::unrecorded(client, &self.row.dbname).await?
        {
            let warning = format!("it was so before the fence: {}; {}", before.cause, before.hint);
            self.under_way().status.warnings.push(warning);
        }
        let since = catalog::moment(client).await?;
        Ok(Fence { kind, previous: previous.setting, since })
    }

    /// Refuses what was made, changed or dropped on the source beside its tables, unless that is accepted.
    async fn refuse_drift(&mut self, client: &SourceClient) -> Result<()> {
        let accepted = self.under_way().wanted.accept_drift;
        self.under_way().waits_for = "the source's schema to be compared".to_owned();
        let (version, warnings) = self.refuse_schema_drift(client, accepted).await?;
        let cutover = self.under_way();
        cutover.status.warnings.extend(warnings);
        cutover.schema_version = version;
        Ok(())
    }

    /// Refuses tables that the target does not have as they are.
    async fn refuse_uncopied(&mut self) -> Result<()> {
        self.under_way().waits_for =
            "the source's tables: somebody may have locked one (pg_locks)".to_owned();
        let tables = self.look_at_source_tables(true).await?;
        let relations = self.store().relations().await?;
        let copied = |row: &&RelationRow| row.state == RelationState::Copied;
        let mut left: Vec<String> =
            relations.iter().filter(|row| !copied(row)).map(|row| row.name.to_string()).collect();
        let snapshot = self.migration.status.snapshot();
        let shown = snapshot.database(&self.row.dbname).map_or(&[][..], |database| &database.tables);
        left.extend(shown.iter().filter(|t| t.state == TableState::Failed).map(|t| t.name.to_string()));
        if !left.is_empty() {
            return Err(Definite::new("tables are not copied")
                .detail(first_names(&left))
                .hint(WHEN_SYNCED)
                .into());
        }
        self.refuse_redefined(&tables).await?;
        let relations = self.store().relations().await?;
        // One that is not in the stream may have been made anew under its name.
        let recorded = Recorded::new(&relations);
        let anew = |table: &Table| !table.is_followed() && recorded.named(&table.name).is_some();
        let followed = |table: &Table| recorded.of(table).is_some() || anew(table);
        let others = tables.iter().filter(|table| table.kind == TableKind::Plain && !followed(table));
        let mut missing: Vec<String> = others.map(|table| table.name.to_string()).collect();
        missing.extend(carry::missing_tables(&self.target, tables.iter().filter(|t| followed(t))).await?);
        if missing.is_empty() {
            return Ok(());
        }
        Err(Definite::new("tables of the source are not followed, or not on the target")
            .detail(first_names(&missing))
            .hint(
                "they were made after the migration began, or dropped on the target; make them there and have them \
                 followed, as docs/ddl.md says, or drop them on the source",
            )
            .into())
    }

    /// A prepared transaction can be committed by a session that is read only, too.
    async fn refuse_prepared(&self, client: &SourceClient) -> Result<()> {
        let prepared = catalog::prepared_transactions(client).await?;
        let here = prepared.into_iter().filter(|transaction| transaction.database == self.row.dbname);
        let ids: Vec<String> = here.map(|transaction| transaction.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        Err(Definite::new(
            "prepared transactions wait on the source: no fence keeps them from being committed",
        )
        .detail(first_names(&ids))
        .hint("COMMIT PREPARED or ROLLBACK PREPARED them, then run `walferry cutover` again")
        .into())
    }

    /// From here on whoever starts lowers the fence.
    async fn record_fence(&mut self) -> Result<Event> {
        self.enter(Phase::CuttingOver).await?;
        self.report_cutover().await?;
        Ok(Event::Recorded)
    }

    async fn raise(&mut self, client: &SourceClient, fence: &Fence) -> Result<Event> {
        let cutover = self.under_way();
        cutover.fenced_at = (fence.kind != FenceKind::None).then(Instant::now);
        cutover.waits_for = "the fence".to_owned();
        let commands = self.migration.fence_commands.as_ref();
        let before = fence::raise(client, &self.row.dbname, fence.kind, commands).await?;
        self.under_way().before = before;
        loop {
            let writers = self.writers(client).await?;
            if writers.is_empty() {
                return Ok(Event::Raised);
            }
            self.under_way().waits_for =
                format!("open transactions of the source: {}", first_names(&writers));
            sleep(REQUEST_POLL).await;
        }
    }

    /// Who has written in a transaction that is still open. That there is one is shown to every user.
    async fn writers(&self, client: &SourceClient) -> Result<Vec<String>> {
        let writing = catalog::writing_transactions(client).await?;
        let here = writing.into_iter().filter(|writer| writer.database.as_ref() == Some(&self.row.dbname));
        // Autovacuum has no user.
        let named =
            here.filter_map(|writer| Some(format!("server process {} of {}", writer.pid, writer.user?)));
        Ok(named.collect())
    }

    async fn drain(&mut self, client: &SourceClient) -> Result<Event> {
        let mark = catalog::mark_wal(client).await?;
        self.under_way().status.source_lsn = Some(mark.to_string());
        self.wait_applied(mark).await;
        self.refuse_new_partitions().await?;
        self.refuse_written_since(mark)?;
        // Somebody may have redefined one while the fence went up.
        let tables = self.look_at_source_tables(true).await?;
        self.refuse_redefined(&tables).await?;
        if !self.under_way().wanted.accept_drift {
            let version = self.under_way().schema_version.clone();
            self.refuse_later_schema_drift(client, &version).await?;
        }
        Ok(Event::Drained(mark))
    }

    async fn carry(&mut self, client: &SourceClient) -> Result<Event> {
        let mut again = self.copied_again().await?;
        self.under_way().waits_for = "locks on tables that are copied at cutover".to_owned();
        let held = Held::lock(&self.migration.sides.source, &again).await?;
        self.under_way().held = Some(held);
        self.under_way().acting = again.take_acting();
        // Then the stream has all of them that somebody wrote before.
        let mark = catalog::mark_wal(client).await?;
        self.wait_applied(mark).await;
        self.refuse_written()?;
        self.under_way().waits_for = "what replication does not carry".to_owned();
        let deadline = self.under_way().request_deadline();
        let carried = self.carry_rest(client, again, deadline).await?;
        self.under_way().status.warnings.extend(carried.warnings);
        Ok(Event::Carried(carried.sequences))
    }

    async fn prove(
        &mut self,
        client: &SourceClient,
        fence: &Fence,
        carried: &SequenceValues,
    ) -> Result<Event> {
        if fence.kind != FenceKind::None {
            let cutover = self.under_way();
            if !fence::refuse_fallen(client, fence, &cutover.before).await?.is_empty() {
                sleep(UNFENCED_WATCH).await;
                let left = fence::refuse_fallen(client, fence, &cutover.before).await?;
                cutover.status.warnings.extend(sessions::staying(&left));
            }
        } else {
            sleep(UNFENCED_WATCH).await;
        }
        self.refuse_prepared(client).await?;
        let writers = self.writers(client).await?;
        if !writers.is_empty() {
            return Err(written(&format!("open transactions that have written: {}", first_names(&writers))));
        }
        let mark = catalog::mark_wal(client).await?;
        self.wait_applied(mark).await;
        self.refuse_written()?;
        self.refuse_held().await?;
        self.under_way().waits_for = "large objects to be compared".to_owned();
        if self.large_objects_differ().await? {
            return Err(written("large objects are others than those that were carried"));
        }
        let now = catalog::sequence_values(client).await?;
        let moved = now.values.iter().find(|value| !carried.values.contains(value));
        match moved {
            Some(value) => Err(written(&format!("sequence {} moved", value.name))),
            None => Ok(Event::Proven),
        }
    }

    async fn wait_applied(&mut self, mark: SourceLsn) {
        self.under_way().waits_for = format!("everything up to {mark} to be applied");
        self.progress.applied(mark).await;
    }

    /// Whether the stream brought a change that was written after the fence.
    fn refuse_written(&self) -> Result<()> {
        let mark = self.cutover.as_ref().and_then(|cutover| cutover.state.mark());
        self.refuse_written_since(mark.expect("it is drained"))
    }

    fn refuse_written_since(&self, mark: SourceLsn) -> Result<()> {
        match self.progress.now().last_change.filter(|change| *change >= mark) {
            Some(change) => {
                Err(written(&format!("a change committed at {change}, the fence was up at {mark}")))
            }
            None => Ok(()),
        }
    }

    /// Whether somebody writes, or waits to write, to what the stream lacks.
    async fn refuse_held(&self) -> Result<()> {
        match self.cutover.as_ref().and_then(|cutover| cutover.held.as_ref()) {
            Some(held) => held.refuse_written().await,
            None => Ok(()),
        }
    }

    /// After the stream was ended: records `done` where a cutover is proven, and says whether it is.
    pub(super) async fn conclude(&mut self) -> Result<bool> {
        let Some(cutover) = &self.cutover else { return Ok(false) };
        let recorded = if matches!(cutover.state, State::Ending(_)) {
            self.record_proven().await
        } else {
            let ended = || Definite::new("the stream ended").hint(AGAIN);
            Err(cutover.state.error().cloned().map_or_else(ended, Definite::from).into())
        };
        match recorded {
            Ok(()) => Ok(true),
            // The answer of the target, if it gave one, may be lost: the next attempt reads what it holds.
            Err(Failure::Transient(transient)) => Err(transient.into()),
            Err(failure) => {
                self.give_up(&failure).await?;
                self.refuse_copied_again().await.map(|()| false)
            }
        }
    }

    /// Ends the attempt where tables were copied again: its stream knows nothing of that, the next one copies them afresh.
    async fn refuse_copied_again(&self) -> Result<()> {
        let rows = self.store().relations().await?;
        if rows.iter().all(|row| row.state != RelationState::Copying) {
            return Ok(());
        }
        let cause = "tables have to be copied again, before the others are followed on";
        Err(Transient::new(Side::Target, cause).into())
    }

    async fn record_proven(&mut self) -> Result<()> {
        self.refuse_written()?;
        self.refuse_held().await?;
        if self.bring_acting().await? {
            self.refuse_held().await?;
        }
        self.record_done().await
    }

    async fn record_done(&mut self) -> Result<()> {
        let cutover = self.under_way();
        cutover.on(Event::StreamEnded);
        cutover.status.fenced_seconds = cutover.fenced_at.map(seconds_since);
        let (id, answer) = (cutover.id, cutover.answer());
        let (target, name) = (Arc::clone(&self.target), self.row.name.clone());
        match Store::new(&target, &name).answer(id, &answer, &mut self.phase, Phase::Done).await {
            Ok(()) => self.under_way().on(Event::Answered),
            Err(Failure::Transient(transient)) => {
                self.under_way().on(Event::AnswerLost);
                return Err(transient.into());
            }
            Err(refused) => return Err(refused),
        }
        self.migration.show(Phase::Done);
        if let Some(Cutover { status, .. }) = self.cutover.take() {
            tracing::info!(
                source_lsn = status.source_lsn,
                fenced_seconds = status.fenced_seconds,
                "cut over"
            );
        }
        Ok(())
    }

    /// Takes the fence down, if there is one, and says why.
    ///
    /// # Errors
    /// When the fence could not be taken down; or when that could not be recorded, which the next attempt does.
    pub(super) async fn give_up(&mut self, failure: &Failure) -> Result<()> {
        let cutover = self.under_way();
        if cutover.state.may_fail() {
            cutover.on(Event::Failed(failure.into()));
        }
        self.undo().await
    }

    /// The rest of [`Self::give_up`], from where it is.
    async fn undo(&mut self) -> Result<()> {
        if let Effect::Lower(fence) = self.under_way().state.effect() {
            self.lower(&fence).await?;
            self.under_way().on(Event::Lowered);
        }
        let phase = self.phase.get();
        let next = if phase == Phase::CuttingOver { Phase::Syncing } else { phase };
        let cutover = self.under_way();
        let (id, answer) = (cutover.id, cutover.answer());
        let error = cutover.state.error().cloned();
        let (target, name) = (Arc::clone(&self.target), self.row.name.clone());
        Store::new(&target, &name).answer(id, &answer, &mut self.phase, next).await?;
        self.under_way().on(Event::Answered);
        self.cutover = None;
        let (cause, detail) = error.map(|error| (error.cause, error.detail)).unwrap_or_default();
        tracing::warn!(cause, detail, "cutover given up: the migration goes on following");
        Ok(())
    }

    async fn lower(&mut self, fence: &Fence) -> Result<()> {
        let undisturbed = match self.under_way().held.take() {
            Some(held) => held.release().await,
            None => Vec::new(),
        };
        let commands = self.migration.fence_commands.as_ref();
        let warnings = lower(&self.migration.sides.source, fence, commands).await?;
        // Tables that are not kept are copied afresh.
        if let Err(failure) = self.store().keep(&undisturbed).await {
            tracing::debug!(%failure, "tables that were to be copied at cutover are copied again");
        }
        let warnings = warnings.into_iter().chain(self.take_acting_away().await?);
        let cutover = self.under_way();
        cutover.status.warnings.extend(warnings);
        cutover.status.fenced_seconds = cutover.fenced_at.map(seconds_since);
        Ok(())
    }

    /// Gives up what an engine that ended in the middle of a cutover left behind; or an attempt before this one of the
    /// same engine, which handed it on.
    pub(super) async fn settle_cutover(&mut self, left: Option<Cutover>) -> Result<()> {
        let open = self.store().last_request(COMMAND).await?.filter(|request| !request.answered);
        let Some(request) = open else {
            self.tell_of_fence().await?;
            if self.phase.get() == Phase::CuttingOver {
                self.enter(Phase::Syncing).await?;
            }
            return Ok(());
        };
        let mut left = match left.filter(|left| left.id == request.id) {
            Some(left) => left,
            None => Cutover::found(request.id, status(&self.row.dbname, &request)?),
        };
        if left.state.may_fail() {
            left.on(Event::Failed(engine_ended()));
        }
        let knows_of_fence = left.is_fenced();
        self.cutover = Some(left);
        self.undo().await?;
        if !knows_of_fence {
            self.tell_of_fence().await?;
        }
        Ok(())
    }

    /// Says so where the source is read only, and no cutover is recorded that made it so.
    async fn tell_of_fence(&self) -> Result<()> {
        if left_fence(&self.store(), &self.row.dbname).await?.is_some() {
            return Ok(());
        }
        fenced::tell(&self.source, &self.row.dbname).await
    }

    fn under_way(&mut self) -> &mut Cutover {
        self.cutover.as_mut().expect("a cutover is under way")
    }
}

/// The fence that a cutover left up on the source's database: of one that is done, or whose engine ended.
pub(super) async fn left_fence(store: &Store<'_>, dbname: &str) -> Result<Option<Fence>> {
    let request = store.last_request(COMMAND).await?;
    Ok(request.map(|request| status(dbname, &request)).transpose()?.and_then(|status| status.fence))
}

/// What a fence left on the source, and how it is undone.
pub(super) fn left_on_source(dbname: &str, fence: &Fence) -> Option<String> {
    let undo = || fence::by_hand(dbname, fence);
    let read_only = fence.kind == FenceKind::ReadOnly;
    read_only.then(|| format!("{FENCED} of database {dbname:?} (to undo it: {})", undo()))
}

fn wanted(request: &Request) -> Result<CutoverRequest, Definite> {
    let known = (request.command == COMMAND).then(|| serde_json::from_value(request.arguments.clone()).ok());
    known.flatten().ok_or_else(|| {
        Definite::new("the engine does not know this request")
            .hint("run the command with the same version of walferry as the engine")
    })
}

/// What the engine has written of a request that was taken.
fn status(dbname: &str, request: &Request) -> Result<CutoverStatus> {
    let status = request.answer.clone().and_then(|answer| serde_json::from_value(answer).ok());
    status.ok_or_else(|| {
        Definite::new("walferry's own tables on the target are damaged")
            .detail(format!("walferry.request holds an unknown answer to request {}", request.id))
            .hint(fence::if_fenced(dbname, None))
            .into()
    })
}

async fn given_up(store: &Store<'_>, id: i64) -> Failure {
    loop {
        sleep(REQUEST_POLL).await;
        let asked = match store.request(id).await {
            Err(failure) => return failure,
            Ok(None) => true,
            Ok(Some(request)) => wanted(&request).is_ok_and(|wanted| wanted.given_up),
        };
        if asked {
            return Definite::new("it was given up on request").hint(AGAIN).into();
        }
    }
}

fn engine_ended() -> CutoverError {
    (&Definite::new("the engine ended during the cutover").hint(AGAIN)).into()
}

fn written(detail: &str) -> Failure {
    Definite::new("somebody writes to the source after the fence")
        .detail(detail)
        .hint("stop that writer (pg_stat_activity on the source), then run `walferry cutover` again")
        .into()
}

fn seconds_since(instant: Instant) -> f64 {
    instant.elapsed().as_secs_f64()
}

const AGAIN: &str = "run `walferry cutover` again";

const WHEN_SYNCED: &str = "run `walferry cutover` again when `walferry status` shows the phase syncing";

const _: () = assert!(UNFENCED_WATCH.as_millis() > Duration::from_millis(100).as_millis());
