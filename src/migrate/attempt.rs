//! One run of a migration, from the stored phase on.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::{OnceCell, mpsc};
use tokio_postgres::Notification;

use crate::apply::{TargetSession, Writer};
use crate::catalog::{self, SourceClient, Table, TableKind, TargetClient};
use crate::config::{Method, Until};
use crate::engine::{Monitor, MonitorInput, Progress};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::CONNECTIONS_BESIDE_JOBS;
use crate::pg::{EndLsn, QualifiedName, Resume, ServerVersion, SlotName, SourceLsn, SystemId};
use crate::source::Dialect;
use crate::source::replication::ReplicationSession;
use crate::status::{Metrics, TableState, TableStatus};
use crate::store::{CurrentPhase, MigrationRow, RelationRow, RelationState, Store, forgotten};

use super::copy::{Copy, origin};
use super::cutover::Cutover;
use super::dump::{Archive, ClientTools, Wave};
use super::filter::{broken, moved};
use super::objects::Making;
use super::open::made;
use super::partitions::Unfollowed;
use super::publications::{Publications, versions};
use super::report::objects_on_source;
use super::retry::Context;
use super::roles::{
    RolesOptions, carry_database, carry_objects, carry_owners, carry_roles, carry_search_path,
};
use super::snapshot::{self, Snapshot};
use super::uncarried::{Which, views, with_extensions};
use super::{Migration, Phase, STREAM_NAME, objects, sequences, signalled};

/// `pg_constraint`, as an archive's table of contents has it.
const FOREIGN_KEYS_OF: &str = "2606";

/// How an attempt ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// On request, or at what `--until` names.
    Stopped,
    /// The migration is cut over, or dumped and restored, now or since an earlier run.
    Done,
    /// Before it began: the preflight failed.
    CheckFailed,
    /// Something came up that has to be done before the stream goes on: the next attempt does it.
    Again,
}

/// How the database is moved, and why so if nobody asked for it.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    method: Method,
    reason: String,
}

/// What an attempt begins with.
struct Reached {
    source: SourceClient,
    target: TargetClient,
    requests: mpsc::Receiver<Notification>,
    chosen: Chosen,
}

/// The connections and the knowledge of one attempt.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) migration: &'a Migration,
    pub(super) number: i64,
    pub(super) source: Arc<SourceClient>,
    pub(super) target: Arc<TargetClient>,
    pub(super) row: MigrationRow,
    pub(super) phase: CurrentPhase,
    pub(super) metrics: Metrics,
    /// A connection to stream on, on which nothing was started yet.
    pub(super) walsender: Option<ReplicationSession>,
    /// Tables that the log has named as not carried.
    pub(super) told: HashSet<QualifiedName>,
    /// Partitions that are not followed, and why.
    pub(super) unfollowed: Unfollowed,
    /// It ends for something that the next attempt does first.
    pub(super) again: bool,
    /// The version of the source's schema at which the target had all of it.
    pub(super) schema_version: Option<String>,
    /// What the log has said of definitions that the target lacks.
    pub(super) misfits: HashSet<String>,
    /// How far the stream is.
    pub(super) progress: Progress,
    /// Says that somebody asks for something.
    pub(super) requests: mpsc::Receiver<Notification>,
    /// The cutover under way.
    pub(super) cutover: Option<Cutover>,
    /// Who writes rows, once that is decided.
    pub(super) writer: OnceCell<Writer>,
}

impl Migration {
    /// Connects, reads the phase, goes on from there.
    pub(super) async fn attempt(&self, context: &mut Context) -> Result<Ended> {
        // What an attempt before this one has left up is taken down first, whoever wants it to end.
        let fenced = context.fenced.is_some() || context.cutover.is_some();
        let mut stop = self.stop.clone();
        let begun = tokio::select! {
            begun = self.begin_attempt(context) => begun?,
            () = signalled(&mut stop), if !fenced => return Ok(Ended::Stopped),
        };
        let (mut attempt, session) = match begun {
            ControlFlow::Continue(begun) => begun,
            ControlFlow::Break(ended) => return Ok(ended),
        };
        if attempt.row.method == Method::PgDump {
            return attempt.move_once(session).await;
        }
        let ended = match attempt.settle_cutover(context.cutover.take()).await {
            Ok(()) => match attempt.go_on(session, context).await {
                Err(failure) => match attempt.broken_off(failure).await {
                    _ if attempt.again && attempt.cutover.is_none() => Ok(Ended::Again),
                    failure => Err(failure),
                },
                ended => ended,
            },
            Err(failure) => Err(failure),
        };
        context.fenced = attempt.cutover.as_ref().and_then(|cutover| cutover.opened_by(&attempt.row.dbname));
        context.cutover = attempt.cutover.take().filter(|cutover| !cutover.may_be_done());
        ended
    }

    /// Everything up to the migration's lock, and what is recorded of it.
    async fn begin_attempt(
        &self,
        context: &mut Context,
    ) -> Result<ControlFlow<Ended, (Attempt<'_>, TargetSession)>> {
        let sides = &self.sides;
        let Reached { source, target, requests, chosen } = match self.reach(context).await? {
            ControlFlow::Continue(reached) => reached,
            ControlFlow::Break(ended) => return Ok(ControlFlow::Break(ended)),
        };
        let method = chosen.method;
        let locked = async {
            match method {
                Method::Replication => {
                    TargetSession::connect(&sides.target, &sides.name, context.apply_process).await
                }
                // Rows come before whatever could act on them.
                Method::PgDump => {
                    TargetSession::lock(&sides.target, &sides.name, context.apply_process).await
                }
            }
        };
        let (session, asked) = tokio::join!(locked, self.source_system(method, &source));
        // From here on nobody else works at this migration.
        let session = session?;
        let (system_id, walsender) = asked?;
        context.apply_process = Some(session.process_id());
        context.established = true;
        let store = Store::new(&target, &sides.name);
        // What this program does not understand, it leaves as it is: how the run ended is not recorded there.
        store.create().await?;
        context.locked = true;
        let row = match store.migration().await? {
            Some(row) => row,
            None => self.begin(&store, system_id, chosen).await?,
        };
        context.locked_once = true;
        let ended = store.end_leftovers().await?;
        if ended > 0 {
            tracing::warn!(sessions = ended, "ended sessions on the target that outlived their engine");
        }
        self.fits(&row, system_id)?;
        if row.method != method {
            // The session is not what the method needs; next time it is known.
            return Err(Transient::new(Side::Target, "another engine began this migration just now").into());
        }
        let number = store.begin_attempt().await?;
        if self.opens_target {
            self.open_now().await?;
        }
        let phase = CurrentPhase::of(&row, number);
        let metrics = self.metrics.database(sides.source.dbname());
        let (source, target, told) = (Arc::new(source), Arc::new(target), HashSet::new());
        let cutover = None;
        let attempt = Attempt {
            migration: self,
            number,
            source,
            target,
            row,
            phase,
            metrics,
            walsender,
            told,
            unfollowed: Unfollowed::default(),
            again: false,
            schema_version: None,
            misfits: HashSet::new(),
            requests,
            cutover,
            writer: OnceCell::new(),
            progress: context.progress.clone(),
        };
        Ok(ControlFlow::Continue((attempt, session)))
    }

    /// Connects, checks what is not begun, and waits for its turn where there are rows to copy.
    async fn reach(&self, context: &mut Context) -> Result<ControlFlow<Ended, Reached>> {
        if let Some(ended) = self.make_database(context).await? {
            return Ok(ControlFlow::Break(ended));
        }
        loop {
            let sides = &self.sides;
            let (target, source) = tokio::join!(sides.listening_client(), sides.source_client());
            let (target, requests) = target?;
            let begun = Store::new(&target, &sides.name).begun().await?;
            if begun.is_none() && context.locked_once {
                return Err(forgotten("").into());
            }
            if let Some(row) = begun.as_ref().filter(|row| row.phase == Phase::Done) {
                self.refuse_other(row)?;
                self.show_moved_once(row);
                return Ok(ControlFlow::Break(Ended::Done));
            }
            // Of one that is done, the source may be gone.
            let source = source?;
            let chosen = match (&begun, context.passed.take()) {
                (Some(row), _) => Some(Chosen { method: row.method, reason: row.method_reason.clone() }),
                (None, Some(chosen)) => Some(chosen),
                (None, None) => self.passes(&source, &target, true).await?,
            };
            let Some(chosen) = chosen else { return Ok(ControlFlow::Break(Ended::CheckFailed)) };
            let copies = begun.is_none_or(|row| row.phase.copies());
            if copies && context.turn.is_none() {
                context.turn = self.turns.now();
            }
            if !copies || context.turn.is_some() {
                return Ok(ControlFlow::Continue(Reached { source, target, requests, chosen }));
            }
            // It may take hours.
            drop((source, target, requests));
            self.show(Phase::Waiting);
            tracing::info!("waiting until other databases are copied");
            let mut stop = self.stop.clone();
            tokio::select! {
                turn = self.turns.wait() => context.turn = Some(turn),
                _ = stop.wait_for(|stop| *stop) => return Ok(ControlFlow::Break(Ended::Stopped)),
            }
        }
    }

    /// The method, unless something stands in the way. `in_place`: the target's session is in the database to be written
    /// to.
    pub(super) async fn passes(
        &self,
        source: &SourceClient,
        target: &TargetClient,
        in_place: bool,
    ) -> Result<Option<Chosen>> {
        self.show(Phase::Checking);
        let report = super::check::preflight(self, source, target, in_place).await?;
        for finding in &report.findings {
            finding.log();
        }
        if let Some(failed) = report.first_failure() {
            self.status.update_database(self.sides.source.dbname(), |database| {
                database.phase = Phase::Failed;
                database.error = format!("a check failed: {}: {}", failed.subject, failed.cause);
                database.hint.clone_from(&failed.hint);
            });
        }
        self.status.update_database(self.sides.source.dbname(), |database| {
            database.method = report.method;
            database.method_reason.clone_from(&report.method_reason);
        });
        Ok((!report.failed()).then_some(Chosen { method: report.method, reason: report.method_reason }))
    }

    /// Gives the migration its row, with names of its own for what it will make on the source.
    async fn begin(&self, store: &Store<'_>, system_id: SystemId, chosen: Chosen) -> Result<MigrationRow> {
        let unique = format!("walferry_{}_{:08x}", self.sides.name, rand::random::<u32>());
        let slot = SlotName::new(&unique).map_err(|error| Definite::usage(error.to_string()))?;
        let row = MigrationRow {
            name: self.sides.name.clone(),
            dbname: self.sides.source.dbname().to_owned(),
            phase: Phase::Schema,
            ended: None,
            method: chosen.method,
            method_reason: chosen.reason,
            dumped_at: String::new(),
            error: String::new(),
            system_id,
            slot,
            publications: match chosen.method {
                Method::Replication => vec![unique.clone(), format!("{unique}_ins")],
                Method::PgDump => Vec::new(),
            },
            selection: self.selection.clone(),
            started_at: None,
        };
        store.begin(&row).await?;
        Ok(row)
    }

    /// Refuses to go on with another database, another cluster or another method than the migration was begun with.
    fn fits(&self, row: &MigrationRow, system_id: SystemId) -> Result<()> {
        self.refuse_other(row)?;
        if row.system_id == system_id || [row.system_id, system_id].contains(&SYSTEM_UNKNOWN) {
            return Ok(());
        }
        Err(Definite::new("the source is another cluster than the migration was begun on")
            .detail(format!("begun on system {}, this is system {system_id}", row.system_id))
            .hint(HINT_SAME)
            .into())
    }

    /// The part of it that needs no server.
    fn refuse_other(&self, row: &MigrationRow) -> Result<()> {
        if let Some(method) = self.method.filter(|method| *method != row.method) {
            let cause =
                format!("migration {:?} was begun with method {}, not {method}", row.name, row.method);
            let hint = "leave --method out, or start afresh: `walferry remove`, empty the target's database, then \
                        `walferry migrate`";
            return Err(Definite::usage(cause).hint(hint).into());
        }
        let dbname = self.sides.source.dbname();
        if row.dbname == dbname {
            return Ok(());
        }
        let cause =
            format!("migration {:?} is one of database {:?}, not of {dbname:?}", row.name, row.dbname);
        Err(Definite::usage(cause).hint(HINT_SAME).into())
    }

    /// Which cluster the source is, and the connection that was asked where one can stream.
    ///
    /// A role without REPLICATION asks a plain session, which may not know.
    async fn source_system(
        &self,
        method: Method,
        source: &SourceClient,
    ) -> Result<(SystemId, Option<ReplicationSession>)> {
        if method == Method::PgDump {
            let known = catalog::system_id(source).await?;
            return Ok((known.unwrap_or(SYSTEM_UNKNOWN), None));
        }
        let mut walsender = self.walsender().await?;
        let identity = walsender.identify().await?;
        Ok((identity.system_id, Some(walsender)))
    }

    /// The programs that dump a source of this version: looked for once.
    pub(super) async fn tools(&self, source: ServerVersion) -> Result<ClientTools> {
        self.tools.get_or_try_init(|| ClientTools::find(source)).await.cloned()
    }

    /// A connection to stream on.
    pub(super) async fn walsender(&self) -> Result<ReplicationSession> {
        let connected = ReplicationSession::connect(&self.sides.source, STREAM_NAME).await;
        connected.map_err(|error| error.into_failure(Side::Source))
    }

    pub(super) fn show(&self, phase: Phase) {
        self.status.update_database(self.sides.source.dbname(), |database| database.phase = phase);
    }
}

impl Attempt<'_> {
    pub(super) fn store(&self) -> Store<'_> {
        Store::new(&self.target, &self.migration.sides.name)
    }

    async fn go_on(&mut self, session: TargetSession, context: &mut Context) -> Result<Ended> {
        let objects = objects_on_source(&self.store(), &self.row).await?;
        let shut = self.store().shut_roles().await?;
        self.migration.status.update_database(&self.row.dbname, |database| {
            database.objects_on_source = objects;
            database.roles_shut = shut;
            database.started_at = self.row.started_at;
            database.clear_error();
        });
        self.store().listen().await?;
        if let Some(stored) = self.store().resume().await? {
            self.behind_from(stored.end.position());
        }
        // The source keeps WAL from the moment that there is a slot.
        context.monitor.get_or_insert_with(|| {
            let input = MonitorInput {
                source: self.migration.sides.source.clone(),
                dbname: self.row.dbname.clone(),
                slot: self.row.slot.clone(),
                status: self.migration.status.clone(),
            };
            Monitor::start(input, context.progress.clone())
        });
        let mut stop = self.migration.stop.clone();
        let archive = tokio::select! {
            prepared = self.prepare() => prepared?,
            _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
        };
        context.turn = None;
        if self.migration.until == Some(Until::Copied) {
            return Ok(Ended::Stopped);
        }
        self.follow(session, archive, context).await
    }

    /// How far behind the target is counts from here until there is a stream.
    fn behind_from(&self, position: SourceLsn) {
        self.progress.begin(position);
        self.migration
            .status
            .update_database(&self.row.dbname, |database| _ = database.applied.get_or_insert(position));
    }

    /// A failure ends a cutover that is under way, too. Gives the failure that matters more.
    async fn broken_off(&mut self, failure: Failure) -> Failure {
        if self.cutover.as_ref().is_none_or(Cutover::may_be_done) {
            return failure;
        }
        match self.give_up(&failure).await {
            // As long as the fence stands, that is to be tried again, whatever else there is.
            Err(fenced) if self.cutover.as_ref().is_some_and(Cutover::is_fenced) => fenced,
            _ => failure,
        }
    }

    /// Everything before the stream. Gives the archive where foreign keys may still have to be made.
    async fn prepare(&mut self) -> Result<Option<Arc<Archive>>> {
        if matches!(self.phase.get(), Phase::CatchingUp | Phase::Syncing) {
            // The source is not to be harmed, whatever else there is.
            self.refuse_lost_identities().await?;
            self.refuse_gap().await?;
            self.follow_target_names().await?;
            let tables = self.look_at_source_tables(false).await?;
            // What it finds to be copied again comes now.
            self.look_at_definitions(&tables).await?;
            self.tell_of_keyless(&tables);
            let tables = self.take_in_partitions(tables).await?;
            self.copy_late(&tables).await?;
        } else {
            // What comes first takes a while, and walsenders of its own.
            self.walsender = None;
        }
        self.prepare_target().await
    }

    async fn prepare_target(&mut self) -> Result<Option<Arc<Archive>>> {
        let mut archive = None;
        if matches!(self.phase.get(), Phase::Schema | Phase::Copying | Phase::Indexing) {
            self.carry_roles().await?;
        }
        if matches!(self.phase.get(), Phase::Schema | Phase::Copying) {
            archive = self.copy_all().await?;
            self.enter(Phase::Indexing).await?;
        }
        self.show_tables().await?;
        if self.phase.get() == Phase::Syncing {
            self.migration.show(Phase::CatchingUp);
            return Ok(None);
        }
        let archive = match archive {
            Some(archive) => archive,
            None => {
                let archive = self.archive(None).await?;
                self.doubt_definitions().await?;
                archive
            }
        };
        if self.phase.get() == Phase::Indexing {
            self.migration.show(Phase::Indexing);
            self.index(&archive).await?;
            self.enter(Phase::CatchingUp).await?;
        }
        self.migration.show(Phase::CatchingUp);
        Ok(Some(archive))
    }

    /// Roles come first: user mappings and policies of the schema name them; and the path by which extensions' scripts find
    /// what they need. At each start anew, since what the target refused the last time it may allow now.
    pub(super) async fn carry_roles(&self) -> Result<()> {
        // A session of its own, for its transaction.
        let target = self.migration.sides.target_client().await?;
        let store = self.store();
        let sides = &self.migration.sides;
        let mut granted = store.roles().await?;
        granted.extend(made(sides, &self.target).await?);
        granted.extend_from_slice(&sides.granted_roles);
        let options = RolesOptions {
            ignored: sides.ignored_roles.clone(),
            granted,
            passwords_file: self.migration.passwords_file.clone(),
            migration: Some(self.row.name.clone()),
            open: self.migration.opens_target,
        };
        carry_roles(&self.source, &target, &options).await?;
        let shut = store.shut_roles().await?;
        self.migration.status.update_database(&self.row.dbname, |database| database.roles_shut = shut);
        carry_search_path(&self.source, &target).await
    }

    /// What copies on the exported `snapshot`, which has all that commits before `copy_lsn`; `as_replica` where the
    /// target is complete already.
    pub(super) async fn copy(&self, snapshot: &str, copy_lsn: SourceLsn, as_replica: bool) -> Result<Copy> {
        Ok(Copy {
            source: self.migration.sides.source.clone(),
            target: self.migration.sides.target.clone(),
            writer: self.writer().await?,
            looking: Arc::clone(&self.source),
            control: Arc::clone(&self.target),
            migration: self.row.name.clone(),
            attempt: self.number,
            dbname: self.row.dbname.clone(),
            snapshot: snapshot.to_owned(),
            copy_lsn,
            ranges: Dialect::new(self.source_version().await?).scans_page_ranges(),
            as_replica,
            replaces: false,
            deadline: None,
            jobs: self.migration.jobs,
            status: self.migration.status.clone(),
            metrics: self.metrics.clone(),
        })
    }

    /// The migration's own slot with its snapshot, or, when that is there already, another snapshot.
    pub(super) async fn snapshot(&self) -> Result<Snapshot> {
        let source = &self.migration.sides.source;
        if self.store().progress().await?.is_some() {
            let temporary = format!("{}_copy", self.row.slot);
            let temporary = SlotName::new(&temporary).map_err(|error| Definite::new(error.to_string()))?;
            snapshot::end_temporary(&self.source, &temporary).await?;
            return snapshot::create(source, &self.source, &temporary, true).await;
        }
        let tables = moved(&self.source_tables().await?, &self.migration.filter, &self.row.dbname);
        let tables = self.identified(tables).await?;
        let dialect = Dialect::new(self.source_version().await?);
        Publications::of(&tables, dialect).create(&self.source, &self.row.publications).await?;
        versions::remember(&self.source, &self.row.publications, &self.store(), None).await?;
        let rows: Vec<RelationRow> =
            tables.iter().filter(|t| t.kind == TableKind::Plain).map(relation_row).collect();
        self.store().begin_relations(&rows).await?;
        // Nothing was streamed from it yet: a run that made it was killed before it could say so.
        if snapshot::drop_slot(&self.source, &self.row.slot).await? {
            tracing::warn!(slot = %self.row.slot, "dropped the slot of a run that was killed before it used it");
        }
        let snapshot = snapshot::create(source, &self.source, &self.row.slot, false).await?;
        let end = EndLsn::new(snapshot.consistent_point.get());
        let timeline = Some(snapshot.timeline);
        self.store().begin_progress(&Resume { timeline, ..Resume::at(end) }).await?;
        self.behind_from(end.position());
        tracing::info!(slot = %self.row.slot, at = %snapshot.consistent_point, "replication slot created");
        Ok(snapshot)
    }

    /// Entries of the dump that would fail since the rows that they are about are not moved.
    pub(super) async fn left_out(&self) -> Result<HashSet<String>> {
        if self.migration.filter.takes_all() {
            return Ok(HashSet::new());
        }
        let tables = catalog::tables(&self.source).await?;
        let moved = moved(&tables, &self.migration.filter, &self.row.dbname);
        let references = catalog::references(&self.source).await?;
        let broken = broken(&references, &tables, &moved);
        for reference in &broken {
            let (table, to) = (&reference.from, &reference.to);
            tracing::warn!(foreign_key = reference.name, %table, %to, "not made: it refers to a table that is not moved");
        }
        Ok(broken.iter().map(|reference| format!("{FOREIGN_KEYS_OF} {}", reference.oid)).collect())
    }

    /// Those of the dump that the source has dropped since: they may not fit its rows any more.
    pub(super) async fn dropped_foreign_keys(&self, archive: &Archive) -> Result<HashSet<String>> {
        let there = catalog::foreign_keys(&self.source).await?;
        let there: HashSet<String> = there.iter().map(|oid| format!("{FOREIGN_KEYS_OF} {oid}")).collect();
        let dropped = archive.of(Wave::ForeignKeys).filter(|entry| !there.contains(&entry.key));
        Ok(dropped
            .map(|entry| {
                tracing::info!(foreign_key = %entry, "not made: the source has dropped it since");
                entry.key.clone()
            })
            .collect())
    }

    pub(super) async fn index(&self, archive: &Arc<Archive>) -> Result<()> {
        let ignored = &self.migration.sides.ignored_roles;
        // Before functions of theirs run, in indexes and where tables are analysed.
        carry_owners(&self.source, &self.target, ignored).await?;
        for wave in [Wave::Indexes, Wave::Rest] {
            self.making(archive).make(wave).await?;
        }
        objects::analyze(&self.migration.sides.target, &self.target, self.migration.jobs).await?;
        sequences::carry(&self.source, &self.target).await?;
        let sessions = self.migration.jobs + CONNECTIONS_BESIDE_JOBS;
        carry_database(&self.source, &self.target, ignored, sessions).await?;
        carry_objects(&self.source, &self.target, ignored).await?;
        // With their owners' privileges.
        views::refresh(&self.source, &self.target, Which::Empty).await
    }

    /// What makes the schema that `archive` describes.
    pub(super) fn making<'b>(&'b self, archive: &'b Arc<Archive>) -> Making<'b> {
        Making {
            source: &self.source,
            target: &self.migration.sides.target,
            control: &self.target,
            migration: &self.row.name,
            archive,
            jobs: self.migration.jobs,
        }
    }

    pub(super) async fn enter(&mut self, next: Phase) -> Result<()> {
        let (target, mut phase) = (Arc::clone(&self.target), self.phase);
        Store::new(&target, &self.row.name).enter(&mut phase, next).await?;
        self.entered(phase);
        Ok(())
    }

    /// The target has taken the phase down.
    pub(super) fn entered(&mut self, phase: CurrentPhase) {
        let next = phase.get();
        if self.phase != phase {
            tracing::info!(phase = %next, "entered");
        }
        self.phase = phase;
        self.migration.show(next);
    }

    /// The source's tables, as far as they are to be moved.
    pub(super) async fn source_tables(&self) -> Result<Vec<Table>> {
        let tables = catalog::tables(&self.source).await?;
        Ok(with_extensions(tables, &self.migration.contents))
    }

    /// The schema, as `snapshot` shows it or as it is now.
    pub(super) async fn archive(&self, snapshot: Option<&str>) -> Result<Arc<Archive>> {
        let tools = self.migration.tools(self.source_version().await?).await?;
        let dumped = tools.dump(&self.migration.sides.source, snapshot).await?;
        Ok(Arc::new(dumped.without(&self.migration.contents.excluded_extensions)))
    }

    pub(super) async fn source_version(&self) -> Result<ServerVersion> {
        Ok(catalog::server_version(&self.source).await?)
    }

    pub(super) async fn show_tables(&self) -> Result<()> {
        let streaming = !matches!(self.phase.get(), Phase::Schema | Phase::Copying | Phase::Indexing);
        let rows = self.store().relations().await?;
        let tables = rows.into_iter().map(|row| TableStatus {
            state: match row.state {
                RelationState::Copied if streaming => TableState::Streaming,
                RelationState::Copied => TableState::Copied,
                RelationState::Waiting | RelationState::Copying => TableState::Waiting,
            },
            name: row.name,
            rows_copied: row.rows_copied.unsigned_abs(),
            bytes_copied: row.bytes_copied.unsigned_abs(),
            rows_estimated: u64::try_from(row.rows_estimated).ok(),
            bytes_estimated: row.bytes_estimated.unsigned_abs(),
        });
        let tables = tables.collect();
        self.migration.status.update_database(&self.row.dbname, |database| database.set_tables(tables));
        Ok(())
    }
}

/// What stands for the system identifier of a source that does not tell it: no cluster has it.
const SYSTEM_UNKNOWN: SystemId = SystemId::new(0);

const HINT_SAME: &str = "give the same source as when it was begun, or another --name";

pub(super) fn relation_row(table: &Table) -> RelationRow {
    RelationRow {
        name: table.name.clone(),
        state: RelationState::Waiting,
        copy_lsn: None,
        rows_copied: 0,
        bytes_copied: 0,
        // Unknown is -1; a count is far below the bound of an i64.
        rows_estimated: table.row_estimate as i64,
        bytes_estimated: i64::try_from(table.bytes).unwrap_or(i64::MAX),
        origin: Some(origin(table)),
        definition: None,
        target_oid: None,
    }
}

pub(super) fn gone(row: &RelationRow) -> Definite {
    Definite::new(format!("table {} is gone from the source before it was copied", row.name))
        .hint("start afresh: `walferry remove --force`, empty the target's database, then `walferry migrate`")
}
