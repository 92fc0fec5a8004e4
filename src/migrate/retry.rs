//! A migration's attempts, one after the other.
//!
//! A definite failure ends the migration's run, and is recorded on the target. A transient one leads to the next
//! attempt after a pause that doubles, with jitter, and starts small again when something was achieved. How long
//! nothing may be achieved is bounded.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::apply::store::Store;
use crate::engine::{Clocks, Monitor};
use crate::error::{Exit, Failure, Result};
use crate::limits::{RETRY_FOR, RETRY_FOR_AT_START, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN};
use crate::pg::SourceLsn;

use super::attempt::Ended;
use super::{Migration, Phase};

/// What one attempt leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Context {
    /// Watches the source from the moment that there is a slot.
    pub monitor: Option<Monitor>,
    /// What it and the pipeline tell each other.
    pub clocks: Clocks,
    /// Both sides were reached, so what fails from here on worked before.
    pub established: bool,
}

/// Attempts, until one ends as it should or nothing helps any more.
pub(super) async fn run(migration: &Migration) -> Result<Exit> {
    let dbname = migration.sides.source.dbname();
    let metrics = migration.metrics.database(dbname);
    let mut context = Context::default();
    let mut pause = RETRY_PAUSE_MIN;
    let mut achieved = (SourceLsn::ZERO, Instant::now());
    loop {
        let failure = match migration.attempt(&mut context).await {
            Ok(Ended::Stopped) => return ended(migration, Phase::Stopped, "").await,
            Ok(Ended::CheckFailed) => return Ok(Exit::Check),
            Err(failure) => failure,
        };
        metrics.error(&failure);
        migration.status.update_database(dbname, |database| database.set_error(&failure));
        let applied = migration.status.snapshot().database(dbname).and_then(|database| database.applied);
        if applied.is_some_and(|applied| applied > achieved.0) {
            achieved = (applied.unwrap_or_default(), Instant::now());
            pause = RETRY_PAUSE_MIN;
        }
        let bound = if context.established { RETRY_FOR } else { RETRY_FOR_AT_START };
        let transient = match &failure {
            Failure::Transient(transient) if achieved.1.elapsed() < bound => transient,
            Failure::Transient(_) | Failure::Definite(_) => {
                let _ = ended(migration, Phase::Failed, &failure.to_string()).await;
                return Err(failure);
            }
        };
        metrics.reconnect(transient.side);
        tracing::warn!(side = %transient.side, cause = transient.cause, detail = transient.detail, "trying again");
        let mut stop = migration.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            _ = stop.wait_for(|stop| *stop) => return ended(migration, Phase::Stopped, "").await,
        }
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Shows and records how the run ended. What cannot be recorded now does not change how it ended.
async fn ended(migration: &Migration, phase: Phase, error: &str) -> Result<Exit> {
    let sides = &migration.sides;
    migration.status.update_database(sides.source.dbname(), |database| database.phase = phase);
    let recorded = async {
        let client = sides.target_client().await?;
        let store = Store::new(&client, &sides.name);
        if store.exists().await? {
            store.set_ended(phase.as_str(), error).await?;
        }
        Ok::<(), Failure>(())
    };
    if let Err(failure) = recorded.await {
        tracing::debug!(%failure, "how the run ended could not be recorded");
    }
    Ok(Exit::Fine)
}

/// Between half and all of `pause`.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}
