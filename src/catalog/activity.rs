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

/// The three oldest transactions that have written, for people; empty where this user may see none.
///
/// # Errors
/// When the server does not answer.
pub async fn oldest_writers(client: &SourceClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT format('server process %s of %s in %s, %s, transaction open since %s', pid, usename, datname, state, \
         xact_start) AS writer FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 3",
    );
    let rows = ask::rows(client, "the running transactions", &sql, &[]).await?;
    rows.iter().map(|row| row.get("writer")).collect()
}

/// A session of any Walferry in the current database other than this one, for people.
///
/// # Errors
/// When the server does not answer.
pub async fn walferry_at_work(client: &SourceClient) -> Result<Option<String>, Error> {
    let sql = Sql::new(
        "SELECT format('server process %s, %s, connected since %s', pid, application_name, backend_start) AS session \
         FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
         AND application_name LIKE 'walferry%' ORDER BY pid LIMIT 1",
    );
    let rows = ask::rows(client, "the sessions of Walferry", &sql, &[]).await?;
    rows.first().map(|row| row.get("session")).transpose()
}

/// The `application_name` of a server process, as far as this user may see it.
///
/// # Errors
/// When the server does not answer.
pub async fn application_name(client: &SourceClient, pid: i32) -> Result<Option<String>, Error> {
    let sql = Sql::new("SELECT application_name AS name FROM pg_stat_activity WHERE pid = $1::int4");
    let rows = ask::rows(client, "who uses the slot", &sql, &[&pid]).await?;
    Ok(rows.first().map(|row| row.get("name")).transpose()?.flatten())
}

/// Whether a transaction is not yet over for others: it holds the lock on its identifier until they see what it did.
///
/// # Errors
/// When the server does not answer.
pub async fn is_in_progress(client: &SourceClient, xid: Xid) -> Result<bool, Error> {
    let sql = Sql::new(
        "SELECT FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = $1::text::xid AND granted",
    );
    Ok(!ask::rows(client, "a transaction", &sql, &[&xid.to_string()]).await?.is_empty())
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
