//! Transactions: those that the creation of a slot would wait for, and what became of one.

use std::time::Duration;

use super::{Error, SourceClient, ask};
use crate::pg::{Sql, Xid};

/// A transaction with an identifier of its own: it has written, or will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritingTransaction {
    /// The session's process.
    pub pid: i32,
    /// The session's database.
    pub database: Option<String>,
    /// The session's user.
    pub user: Option<String>,
    /// How long it has been open; `None` where this user may not see it.
    pub age: Option<Duration>,
}

/// A transaction that waits for COMMIT PREPARED or ROLLBACK PREPARED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedTransaction {
    /// Its identifier, as given to PREPARE TRANSACTION.
    pub id: String,
    /// Its database: only there can it be ended.
    pub database: String,
    /// How long it has been prepared.
    pub age: Duration,
}

/// Writing transactions of the whole cluster but this session's, the oldest first; those of unknown age last. That
/// there is one is shown to every user, its age only to members of its role and of `pg_read_all_stats`.
///
/// # Errors
/// When the server does not answer.
pub async fn writing_transactions(client: &SourceClient) -> Result<Vec<WritingTransaction>, Error> {
    let sql = Sql::new(
        "SELECT pid, datname::text AS database, usename::text AS \"user\", \
         extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age FROM pg_stat_activity \
         WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start NULLS LAST, pid",
    );
    let rows = ask::rows(client, "the writing transactions", &sql, &[]).await?;
    let transaction = |row: &ask::Answer| {
        let age: Option<f64> = row.get("age")?;
        let age = age.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        Ok(WritingTransaction {
            pid: row.get("pid")?,
            database: row.get("database")?,
            user: row.get("user")?,
            age,
        })
    };
    rows.iter().map(transaction).collect()
}

/// Prepared transactions of the whole cluster, the oldest first.
///
/// # Errors
/// When the server does not answer.
pub async fn prepared_transactions(client: &SourceClient) -> Result<Vec<PreparedTransaction>, Error> {
    let sql = Sql::new(
        "SELECT gid AS id, database::text AS database, \
         extract(epoch FROM clock_timestamp() - prepared)::float8 AS age FROM pg_prepared_xacts ORDER BY prepared",
    );
    let rows = ask::rows(client, "the prepared transactions", &sql, &[]).await?;
    let transaction = |row: &ask::Answer| {
        let age: f64 = row.get("age")?;
        let age = Duration::try_from_secs_f64(age.max(0.0)).unwrap_or_default();
        Ok(PreparedTransaction { id: row.get("id")?, database: row.get("database")?, age })
    };
    rows.iter().map(transaction).collect()
}

/// Whether a transaction has committed; not, where it is too long ago to be told.
///
/// # Errors
/// When the server does not answer.
pub async fn has_committed(client: &SourceClient, xid: Xid) -> Result<bool, Error> {
    // An identifier of 32 bits is the last one before the next to be given that ends in them. One of before the first
    // epoch is not there; one of two billion transactions ago is too old.
    let sql = Sql::new(
        "WITH next AS (SELECT txid_snapshot_xmax(txid_current_snapshot()) AS xid), \
         epoch AS (SELECT xid, xid >> 32 << 32 AS start FROM next) \
         SELECT coalesce(CASE WHEN start + $1::bigint < xid THEN txid_status(start + $1) \
         WHEN start > 0 THEN txid_status(start + $1 - (1::bigint << 32)) END = 'committed', false) AS answer FROM epoch",
    );
    ask::row(client, "what became of a transaction", &sql, &[&i64::from(xid.get())]).await?.get("answer")
}
