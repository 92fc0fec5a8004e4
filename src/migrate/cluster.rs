//! A migration as a whole: a run for each of its databases, beside each other.
//!
//! Each database has a slot, publications, a phase and an error of its own, and remembers them in its own schema
//! `walferry`: [`Migration`] is one of them. One that fails does not stop the others, and the process goes on while any
//! is alive. Only [`DATABASES_COPIED_MAX`] at a time go through the phases up to `indexing`; all follow at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::config::{Config, Method, Selection};
use crate::error::{Definite, Exit, Failure, Result};
use crate::limits::{
    DATABASES_COPIED_MAX, QUEUE_COST_MAX, QUEUES_COST_MAX, RETRY_FOR_AT_START, RETRY_PAUSE_MAX,
    RETRY_PAUSE_MIN, SEGMENT_COST_MAX,
};
use crate::status::{MetricsRegistry, StatusHandle};
use crate::wire::Environment;

use super::retry::{Context, jittered};
use super::select::{Choice, Chosen, select};
use super::{Migration, Phase, Sides, passwords_file};

/// A migration to run: all its databases.
#[derive(Debug)]
pub struct Cluster {
    sides: Sides,
    selection: Selection,
    config: Config,
    status: StatusHandle,
    metrics: MetricsRegistry,
    stop: watch::Receiver<bool>,
}

/// How the run of one database ended.
type End = (String, Result<Exit>);

impl Cluster {
    /// A migration as configured.
    ///
    /// # Errors
    /// A usage error when a connection string is missing or wrong.
    pub fn new(
        config: &Config,
        status: StatusHandle,
        metrics: MetricsRegistry,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, Definite> {
        let (sides, selection) = (Sides::new(config)?, config.selection.clone());
        Ok(Self { sides, selection, config: config.clone(), status, metrics, stop })
    }

    /// Does the whole job and then keeps syncing, until told to stop; run again, it goes on.
    ///
    /// # Errors
    /// What ended it, of the database that ended worst: each is recorded on the target too, where that can be reached.
    pub async fn run(&self) -> Result<Exit> {
        let Some(mut choice) = self.choose().await? else { return Ok(Exit::Fine) };
        let turns = Turns::new();
        let gathering = Gathering::of(choice.databases.len());
        for database in &choice.databases {
            let method = choice.method_of(self.config.method, database).unwrap_or_default();
            self.status.update_database(&database.name, |shown| shown.method = method);
        }
        // Those that have a slot go on with their copy first: it keeps the source's WAL.
        let (begun, new): (Vec<_>, Vec<_>) =
            std::mem::take(&mut choice.databases).into_iter().partition(is_being_copied);
        let mut work = JoinSet::new();
        let several = begun.len() + new.len() > 1;
        for database in begun.into_iter().chain(new) {
            let turn = if is_being_copied(&database) { turns.now() } else { None };
            let span = tracing::info_span!("database", name = database.name);
            let migration = self.migration(&database, &choice, &turns, gathering.member());
            let run = async move {
                let mut context = Context { turn, ..Context::default() };
                let ended = migration.run(&mut context).await;
                if several {
                    log(&ended);
                }
                ((database.name, ended), context.monitor)
            };
            work.spawn(run.instrument(span));
        }
        let mut ends = Vec::new();
        // The slot of one that failed keeps the source's WAL: that goes on to be seen while others live.
        let mut monitors = Vec::new();
        while let Some(ended) = work.join_next().await {
            let (end, monitor) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            ends.push(end);
            monitors.extend(monitor);
        }
        worst(self.tell_of_dumps(ends))
    }

    /// Says last of all which databases are dumped and not followed, and since when. One that nobody wanted dumped ends with
    /// an exit code of its own.
    fn tell_of_dumps(&self, mut ends: Vec<End>) -> Vec<End> {
        let snapshot = self.status.snapshot();
        for (name, end) in &mut ends {
            let Some(database) = snapshot.database(name).filter(|database| database.phase == Phase::Done)
            else {
                continue;
            };
            let (Some(cause), hint) = (database.not_followed(), database.after_a_dump()) else { continue };
            let reason = &database.method_reason;
            tracing::warn!(
                database = name,
                reason,
                hint = hint.as_deref().map(tracing::field::display),
                "dumped, {cause}"
            );
            if database.dumped_unasked() && exit_of(end) == Exit::Fine {
                *end = Ok(Exit::Dumped);
            }
        }
        ends
    }

    /// Tries until both sides answer, for a short while: what never worked is most likely a mistake. `None`: told to
    /// stop.
    async fn choose(&self) -> Result<Option<Choice>> {
        let (began, mut pause) = (Instant::now(), RETRY_PAUSE_MIN);
        let mut stop = self.stop.clone();
        loop {
            let chosen = tokio::select! {
                chosen = select(&self.sides, &self.selection) => chosen,
                _ = stop.wait_for(|stop| *stop) => return Ok(None),
            };
            let transient = match chosen {
                Ok(choice) => return Ok(Some(choice)),
                Err(Failure::Transient(transient)) if began.elapsed() < RETRY_FOR_AT_START => transient,
                Err(failure) => return Err(failure),
            };
            tracing::warn!(side = %transient.side, cause = transient.cause, detail = %transient.detail, "trying again");
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(None),
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    fn migration(&self, database: &Chosen, choice: &Choice, turns: &Turns, arrival: Arrival) -> Migration {
        let config = &self.config;
        Migration {
            sides: self.sides.database(&database.name),
            method: if choice.is_dumped(&database.name) { Some(Method::PgDump) } else { config.method },
            entrance: self.sides.target.clone(),
            on_target: database.on_target,
            creates_databases: config.creates_databases,
            selection: choice.selection.clone(),
            filter: choice.filter.clone(),
            turns: turns.clone(),
            arrival: Arc::new(arrival),
            queue_cost_max: queue_cost_max(self.status.snapshot().databases.len()),
            tools: OnceCell::new(),
            jobs: config.jobs,
            confirm_delay: config.confirm_delay,
            spill_dir: config.spill_dir.clone(),
            spill_bytes_max: config.spill_bytes_max,
            until: config.until,
            ddl: config.ddl,
            lag_bytes_max: config.lag_bytes_max,
            passwords_file: passwords_file(config, &Environment::from_process()),
            opens_target: config.opens_target,
            on_conflict: config.on_conflict,
            contents: config.contents.clone(),
            fence_commands: config.fence_commands.clone(),
            status: self.status.clone(),
            metrics: self.metrics.clone(),
            stop: self.stop.clone(),
        }
    }
}

/// Who may copy: at most [`DATABASES_COPIED_MAX`] at a time, in the order in which they asked.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Semaphore>);

/// Goes back when it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

impl Turns {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(DATABASES_COPIED_MAX)))
    }

    /// A turn, if there is one without waiting.
    pub(super) fn now(&self) -> Option<Turn> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    /// A turn, when it comes.
    pub(super) async fn wait(&self) -> Turn {
        Arc::clone(&self.0).acquire_owned().await.expect("the semaphore is never closed")
    }
}

/// Databases that are not yet where `--until` wants them. With the last one all may end.
#[derive(Debug, Clone)]
pub(super) struct Gathering {
    missing: watch::Sender<usize>,
}

/// One of them. It also counts as there when it is dropped: who failed is not waited for.
#[derive(Debug)]
pub(super) struct Arrival {
    missing: watch::Sender<usize>,
    arrived: AtomicBool,
}

impl Gathering {
    fn of(databases: usize) -> Self {
        Self { missing: watch::Sender::new(databases) }
    }

    fn member(&self) -> Arrival {
        Arrival { missing: self.missing.clone(), arrived: AtomicBool::new(false) }
    }
}

impl Arrival {
    /// This one is there.
    pub(super) fn arrive(&self) {
        if !self.arrived.swap(true, Ordering::Relaxed) {
            self.missing.send_modify(|missing| *missing -= 1);
        }
    }

    /// Waits until all are there.
    pub(super) async fn of_all(&self) {
        // The sender is ours.
        let _ = self.missing.subscribe().wait_for(|missing| *missing == 0).await;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrive();
    }
}

/// The memory of one of so many databases.
fn queue_cost_max(databases: usize) -> usize {
    (QUEUES_COST_MAX / databases.max(1)).clamp(SEGMENT_COST_MAX, QUEUE_COST_MAX)
}

fn is_being_copied(database: &Chosen) -> bool {
    database.begun.as_ref().is_some_and(|row| row.phase.copies())
}

/// Says at once how a database ended that is not the only one: the others may go on for weeks.
fn log(ended: &Result<Exit>) {
    match ended {
        Ok(Exit::Fine) => tracing::info!("ended"),
        Ok(_) => tracing::error!("a check failed: this database is not migrated"),
        Err(failure) => {
            let (cause, detail, hint) = match failure {
                Failure::Definite(it) => (&it.cause, &it.detail, it.hint.as_str()),
                Failure::Transient(it) => (&it.cause, &it.detail, ""),
            };
            tracing::error!(cause, %detail, %hint, "failed: this database is not migrated any further");
        }
    }
}

/// The end of the whole: that of the database that ended worst.
pub(super) fn worst(ends: Vec<End>) -> Result<Exit> {
    let count = ends.len();
    if count <= 1 {
        return ends.into_iter().next().map_or(Ok(Exit::Fine), |(_, end)| end);
    }
    let exit = ends.iter().map(|(_, end)| exit_of(end)).max_by_key(|exit| gravity(*exit));
    let exit = exit.unwrap_or(Exit::Fine);
    let failed = |end: &Result<Exit>| !matches!(exit_of(end), Exit::Fine | Exit::Dumped);
    let failed: Vec<&End> = ends.iter().filter(|(_, end)| failed(end)).collect();
    if failed.iter().all(|(_, end)| end.is_ok()) {
        return Ok(exit);
    }
    let texts = failed.iter().map(|(name, end)| match end {
        Ok(_) => format!("database {name:?}: a check failed"),
        Err(failure) => format!("database {name:?}: {failure}"),
    });
    let cause = format!("{} of {count} databases failed", failed.len());
    Err(Definite::new(cause).detail(texts.collect::<Vec<_>>().join("\n  ")).exit(exit).into())
}

fn exit_of(end: &Result<Exit>) -> Exit {
    match end {
        Ok(exit) => *exit,
        Err(Failure::Definite(definite)) => definite.exit,
        Err(Failure::Transient(_)) => Exit::Transient,
    }
}

/// What needs a person outweighs what a new start may mend.
const fn gravity(exit: Exit) -> u8 {
    match exit {
        Exit::Fine => 0,
        Exit::Dumped => 1,
        Exit::Transient => 2,
        Exit::Differs => 3,
        Exit::Usage => 4,
        Exit::Check => 5,
        Exit::Definite => 6,
        Exit::Unexpected => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Side, Transient};

    #[test]
    fn the_worst_end_is_the_end() {
        let lost = || Err(Transient::new(Side::Source, "connection closed").into());
        let gone = || Err(Definite::new("the slot is gone").hint("start afresh").into());
        let check = |ends: Vec<Result<Exit>>, code: u8, parts: &[&str]| {
            let named = ends.into_iter().enumerate().map(|(index, end)| (format!("db{index}"), end));
            let end = worst(named.collect());
            assert_eq!(exit_of(&end).code(), code);
            let text = end.err().map(|failure| failure.to_string()).unwrap_or_default();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            assert_eq!(text.is_empty(), parts.is_empty(), "{text}");
        };
        check(vec![], 0, &[]);
        check(vec![Ok(Exit::Fine), Ok(Exit::Fine)], 0, &[]);
        check(vec![Ok(Exit::Fine), Ok(Exit::Check)], 3, &[]);
        check(vec![Ok(Exit::Dumped)], 7, &[]);
        check(vec![Ok(Exit::Fine), Ok(Exit::Dumped)], 7, &[]);
        check(vec![Ok(Exit::Dumped), Ok(Exit::Check), Ok(Exit::Fine)], 3, &[]);
        check(vec![Ok(Exit::Dumped), lost()], 6, &["1 of 2 databases failed"]);
        check(vec![gone()], 5, &["the slot is gone\n  hint: start afresh"]);
        check(vec![Ok(Exit::Fine), lost()], 6, &["1 of 2 databases failed", "\"db1\"", "connection closed"]);
        check(
            vec![gone(), lost(), Ok(Exit::Check), Ok(Exit::Fine)],
            5,
            &[
                "3 of 4",
                "\"db0\": the slot is gone",
                "hint: start afresh",
                "\"db1\"",
                "\"db2\": a check failed",
            ],
        );
    }

    #[test]
    fn memory_is_shared() {
        let check = |databases: usize, mebibytes: usize| {
            assert_eq!(queue_cost_max(databases), mebibytes << 20, "{databases}");
        };
        check(0, 64);
        check(1, 64);
        check(2, 64);
        check(4, 32);
        check(8, 16);
        check(32, 4);
        check(100, 4);
    }

    #[tokio::test]
    async fn all_are_there_when_the_last_has_come_or_failed() {
        let gathering = Gathering::of(3);
        let (first, second, third) = (gathering.member(), gathering.member(), gathering.member());
        first.arrive();
        first.arrive();
        second.arrive();
        assert_eq!(*gathering.missing.borrow(), 1);
        drop(third);
        first.of_all().await;
        drop((first, second));
        assert_eq!(*gathering.missing.borrow(), 0);
    }
}
