//! A migration's attempts, one after the other.
//!
//! A definite failure ends the migration's run, and is recorded on the target. A transient one leads to the next
//! attempt after a pause that doubles, with jitter, and starts small again when something was achieved. How long
//! nothing may be achieved is bounded.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::engine::{Monitor, Progress};
use crate::error::{Definite, Exit, Failure, Result, Transient};
use crate::limits::{RETRY_FOR, RETRY_FOR_AT_START, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, STEADY_AFTER};
use crate::store::{RunEnd, Store};

use super::attempt::{Chosen, Ended};
use super::cluster::Turn;
use super::cutover::Cutover;
use super::{Migration, Phase};

/// What one attempt leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Context {
    /// Watches the source from the moment that there is a slot.
    pub monitor: Option<Monitor>,
    /// How far the pipeline is.
    pub progress: Progress,
    /// Both sides were reached, so what fails from here on worked before.
    pub established: bool,
    /// The attempt held the migration's lock: how it ends is how the migration ended.
    pub locked: bool,
    /// The target had the migration's row, so one that it lacks later is lost.
    pub locked_once: bool,
    /// The server's process of the last session that applied.
    pub apply_process: Option<i32>,
    /// The right to copy, from before the slot is made until everything is copied.
    pub turn: Option<Turn>,
    /// The target's database was made.
    pub database_made: bool,
    /// What the checks, passed a moment ago, have found to be the method.
    pub passed: Option<Chosen>,
    /// Transactions in progress could not be kept here: from now on the source keeps them.
    pub spill_failed: bool,
    /// The target refused a part of a transaction that went ahead of its commit: from now on none does.
    pub ahead_failed: bool,
    /// A cutover that an attempt did not get to its end: that is still to be recorded, or its fence to be taken down.
    pub cutover: Option<Cutover>,
    /// The last attempt ended while the source was fenced, or may have been: how it is opened.
    pub fenced: Option<String>,
}

/// Attempts, until one ends as it should or nothing helps any more.
///
/// `context` has what the first one begins with, and what the last one leaves.
pub(super) async fn run(migration: &Migration, context: &mut Context) -> Result<Exit> {
    let dbname = migration.sides.source.dbname();
    let metrics = migration.metrics.database(dbname);
    let mut pause = RETRY_PAUSE_MIN;
    let mut applied = None;
    let mut fruitless_since = Instant::now();
    loop {
        context.locked = false;
        let began = Instant::now();
        let ended_as = match migration.attempt(context).await {
            Ok(Ended::Done) => {
                migration.status.update_database(dbname, |database| database.phase = Phase::Done);
                migration.open_when_done().await.map(|()| Ended::Done)
            }
            ended_as => ended_as,
        };
        let failure = match ended_as {
            Ok(Ended::Stopped) => return Ok(ended(migration, context, RunEnd::Stopped, "").await),
            Ok(Ended::Done) => {
                tracing::info!("the migration is done; `walferry remove` drops what it left");
                return Ok(Exit::Fine);
            }
            Ok(Ended::CheckFailed) => return Ok(Exit::Check),
            Ok(Ended::Again) => continue,
            Err(failure) => failure,
        };
        metrics.error(&failure);
        migration.status.update_database(dbname, |database| database.set_error(&failure));
        let before = applied;
        applied = context.progress.now().applied();
        if applied > before || began.elapsed() >= STEADY_AFTER {
            (fruitless_since, pause) = (Instant::now(), RETRY_PAUSE_MIN);
        }
        let bound = if context.established { RETRY_FOR } else { RETRY_FOR_AT_START };
        let transient = match &failure {
            Failure::Transient(transient) if fruitless_since.elapsed() < bound => transient,
            Failure::Transient(_) | Failure::Definite(_) => {
                let failure = with_fence(failure, context.fenced.as_deref());
                ended(migration, context, RunEnd::Failed, &failure.to_string()).await;
                return Err(failure);
            }
        };
        metrics.reconnect(transient.side);
        tracing::warn!(side = %transient.side, cause = transient.cause, detail = %transient.detail, "trying again");
        let mut stop = migration.stop.clone();
        let stopped = tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => false,
            _ = stop.wait_for(|stop| *stop) => true,
        };
        if stopped {
            // Whoever stops it has to know that the source cannot be written to.
            if let Some(fenced) = &context.fenced {
                let failure = with_fence(failure, Some(fenced));
                ended(migration, context, RunEnd::Failed, &failure.to_string()).await;
                return Err(failure);
            }
            return Ok(ended(migration, context, RunEnd::Stopped, "").await);
        }
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// The failure, and how the source is opened where it may be fenced still.
fn with_fence(failure: Failure, fenced: Option<&str>) -> Failure {
    let Some(fenced) = fenced.filter(|fenced| {
        // It may say so already.
        let statement = fenced.rsplit(": ").next().unwrap_or_default();
        !failure.to_string().contains(statement)
    }) else {
        return failure;
    };
    let joined = |text: &str| {
        [text, fenced].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
    };
    match failure {
        Failure::Definite(definite) => Definite { hint: joined(&definite.hint), ..definite }.into(),
        Failure::Transient(transient) => Transient { detail: joined(&transient.detail), ..transient }.into(),
    }
}

/// Shows and records how the run ended. What cannot be recorded now does not change how it ended; and where the lock
/// was not held, somebody else's run is at work.
async fn ended(migration: &Migration, context: &Context, end: RunEnd, error: &str) -> Exit {
    let sides = &migration.sides;
    migration.status.update_database(sides.source.dbname(), |database| database.phase = end.phase());
    let recorded = async {
        let client = sides.target_client().await?;
        let store = Store::new(&client, &sides.name);
        store.refuse_stranger().await?;
        store.set_ended(end, error).await
    };
    if context.locked
        && let Err(failure) = recorded.await
    {
        tracing::debug!(%failure, "how the run ended could not be recorded");
    }
    Exit::Fine
}

/// Between half and all of `pause`.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Side;

    #[test]
    fn whoever_ends_it_is_told_how_the_source_is_opened_once() {
        const OPENS: &str = "if database \"shop\" of the source is still fenced, this opens it, there: BEGIN READ WRITE; COMMIT;";
        let told = |failure: Failure| with_fence(failure, Some(OPENS)).to_string();
        let gone = || Transient::new(Side::Source, "connection refused");
        assert_eq!(told(gone().into()), format!("source: connection refused\n  detail: {OPENS}"));
        let detail = told(gone().detail("port 1").into());
        assert!(detail.ends_with(&format!("detail: port 1; {OPENS}")), "{detail}");
        let hint = told(Definite::new("no").hint("do it").into());
        assert!(hint.ends_with(&format!("hint: do it; {OPENS}")), "{hint}");
        let said = gone().detail("to open it by hand, there: BEGIN READ WRITE; COMMIT;");
        assert_eq!(with_fence(said.clone().into(), Some(OPENS)), said.into());
        assert_eq!(with_fence(gone().into(), None), gone().into());
    }
}
