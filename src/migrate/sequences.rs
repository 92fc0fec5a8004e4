//! Sequences, which replication does not carry: read on the source, set on the target.

use tokio_postgres::Client;

use crate::error::{Result, Side};
use crate::limits::SEQUENCES_PER_QUERY;
use crate::pg::Sql;
use crate::source::catalog::SequenceValues;
use crate::source::{self, catalog};

/// Sets every sequence of the target to where its namesake on the source stands now.
///
/// One that the target lacks is left out; one that may not be read on the source too, and logged. Gives what was read.
///
/// # Errors
/// When either side does not answer.
pub async fn carry(source: &Client, target: &Client) -> Result<SequenceValues> {
    let read = catalog::sequence_values(source).await.map_err(|error| error.into_failure(Side::Source))?;
    for name in &read.unreadable {
        tracing::warn!(sequence = %name, "not readable on the source: left as it is on the target");
    }
    for some in read.values.chunks(SEQUENCES_PER_QUERY) {
        // `setval` of a sequence that is not there is NULL.
        let sql = Sql::new("SELECT ").list(some, ", ", |sql, value| {
            let quoted = Sql::default().name(&value.name);
            let sql =
                sql.text("setval(to_regclass(").literal(quoted.as_str()).text("), ").number(value.last_value);
            sql.text(if value.is_called { ", true)" } else { ", false)" })
        });
        let set = target.batch_execute(sql.as_str()).await;
        set.map_err(|error| source::Error::new("the sequences", error).into_failure(Side::Target))?;
    }
    Ok(read)
}
