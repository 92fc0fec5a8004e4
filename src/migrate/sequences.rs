//! Sequences, which replication does not carry: read on the source, set on the target.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::catalog;
use crate::catalog::{SequenceValues, SourceClient, TargetClient};
use crate::error::Result;
use crate::limits::{SEQUENCES_LOCK_WAIT, SEQUENCES_PER_QUERY};
use crate::pg::Sql;

/// Sets every sequence of the target to where its namesake on the source stands now.
///
/// One that the target lacks is left out; one that may not be read on the source too, and logged. Gives what was read.
///
/// # Errors
/// When either side does not answer.
pub async fn carry(source: &SourceClient, target: &TargetClient) -> Result<SequenceValues> {
    let (read, locked) = set(source, target, Duration::ZERO).await?;
    locked.map_or(Ok(read), |error| Err(error.into()))
}

/// The same while the stream goes on: what is locked on the target is left for the next time.
///
/// # Errors
/// As [`carry`].
pub async fn refresh(source: &SourceClient, target: &TargetClient) -> Result<()> {
    if let (_, Some(error)) = set(source, target, SEQUENCES_LOCK_WAIT).await? {
        tracing::debug!(%error, "sequences are locked on the target: left for later");
    }
    Ok(())
}

/// What was read; and the error, where a lock kept it from being set for so long. Zero waits for as long as it takes.
async fn set(
    source: &SourceClient,
    target: &TargetClient,
    wait: Duration,
) -> Result<(SequenceValues, Option<catalog::Error>)> {
    let read = catalog::sequence_values(source).await?;
    for name in &read.unreadable {
        tracing::warn!(sequence = %name, "not readable on the source: left as it is on the target");
    }
    let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    for some in read.values.chunks(SEQUENCES_PER_QUERY) {
        // `setval` of a sequence that is not there is NULL.
        let sql = Sql::new("SELECT ").list(some, ", ", |sql, value| {
            let quoted = Sql::default().name(&value.name);
            let sql =
                sql.text("setval(to_regclass(").literal(quoted.as_str()).text("), ").number(value.last_value);
            sql.text(if value.is_called { ", true)" } else { ", false)" })
        });
        let sql = Sql::new("SET LOCAL lock_timeout = ").number(wait).text("; ").sql(&sql);
        if let Err(error) = target.run("the sequences", &sql).await {
            let locked = error.state() == Some(SqlState::LOCK_NOT_AVAILABLE.code());
            return if locked { Ok((read, Some(error))) } else { Err(error.into()) };
        }
    }
    Ok((read, None))
}
