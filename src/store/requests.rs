//! What commands ask of the running engine: `walferry.request`.
//!
//! A command writes its request and notifies; the engine that holds the migration's lock takes it, writes how far it is
//! into `answer`, and `answered_at` when it is through. A request whose `answer` is NULL was taken by nobody: it can be
//! withdrawn, and after a while it is stale, so that none is carried out that nobody waits for any more. The engine
//! looks when it is notified and when it begins to follow.

use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::lock::{advisory, lock_name, of_holders};
use super::{CurrentPhase, Phase, Store, failure};
use crate::error::Result;
use crate::limits::REQUEST_STALE_AFTER;
use crate::pg::Sql;

/// Something asked of the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its number; later ones have greater numbers.
    pub id: i64,
    /// What is to be done: `cutover`.
    pub command: String,
    /// How.
    pub arguments: Value,
    /// How far it is, as of the last report; `None` before it was taken.
    pub answer: Option<Value>,
    /// Whether that is the last word.
    pub answered: bool,
}

/// The channel that says that there is something to read.
const CHANNEL: &str = "walferry_request";

/// The advisory lock's name that shows an engine at work on a request.
fn at_work(migration: &str) -> String {
    format!("walferry {migration} at work")
}

/// One is enough, unless somebody guesses.
const KEYS_TRIED_MAX: usize = 8;

const COLUMNS: &str =
    "SELECT id, command, arguments::text, answer::text, answered_at IS NOT NULL FROM walferry.request ";

impl Store<'_> {
    /// Has notifications of new requests sent to this session.
    pub async fn listen(&self) -> Result<()> {
        let listen = Sql::new("LISTEN ").ident(CHANNEL);
        self.client().batch_execute(listen.as_str()).await.map_err(failure)
    }

    /// Asks for something; gives the request's number, or `None` while another one is open.
    pub async fn ask(&self, command: &str, arguments: &Value) -> Result<Option<i64>> {
        self.forget_stale_requests().await?;
        let sql = "WITH asked AS (
                       INSERT INTO walferry.request (migration, command, arguments)
                       SELECT $1, $2, $3::text::jsonb WHERE NOT EXISTS (
                           SELECT FROM walferry.request WHERE migration = $1 AND answered_at IS NULL)
                       RETURNING id)
                   SELECT id, pg_catalog.pg_notify($4, '')::text FROM asked";
        let arguments = arguments.to_string();
        let params: [&(dyn ToSql + Sync); 4] = [&self.name(), &command, &arguments, &CHANNEL];
        let row = self.client().query_opt(sql, &params).await.map_err(failure)?;
        Ok(row.map(|row| row.get(0)))
    }

    /// The oldest request that nobody has taken, if it is not stale.
    pub async fn next_request(&self) -> Result<Option<Request>> {
        self.forget_stale_requests().await?;
        let sql = Sql::new(COLUMNS)
            .text("WHERE migration = $1 AND answered_at IS NULL AND answer IS NULL ORDER BY id LIMIT 1");
        self.read_request(&sql, &[&self.name()]).await
    }

    /// The last request for `command` that was taken.
    pub async fn last_request(&self, command: &str) -> Result<Option<Request>> {
        let sql = Sql::new(COLUMNS)
            .text("WHERE migration = $1 AND command = $2 AND answer IS NOT NULL ORDER BY id DESC LIMIT 1");
        self.read_request(&sql, &[&self.name(), &command]).await
    }

    /// One request; `None` once it is withdrawn, or the migration removed.
    pub async fn request(&self, id: i64) -> Result<Option<Request>> {
        let sql = Sql::new(COLUMNS).text("WHERE migration = $1 AND id = $2");
        self.read_request(&sql, &[&self.name(), &id]).await
    }

    /// Takes a request back that nobody has taken; says whether that was so.
    pub async fn withdraw(&self, id: i64) -> Result<bool> {
        let sql = "DELETE FROM walferry.request WHERE migration = $1 AND id = $2 AND answer IS NULL";
        let gone = self.client().execute(sql, &[&self.name(), &id]).await.map_err(failure)?;
        Ok(gone > 0)
    }

    /// Asks whoever took the request to give it up.
    pub async fn give_up(&self, id: i64) -> Result<()> {
        let sql = "UPDATE walferry.request SET arguments = arguments || '{\"given_up\": true}'
                   WHERE migration = $1 AND id = $2";
        self.execute(sql, &[&self.name(), &id]).await
    }

    /// Takes a request, with a first report; says whether it was still there.
    pub async fn take(&self, id: i64, answer: &Value) -> Result<bool> {
        let sql = "UPDATE walferry.request SET answer = $3::text::jsonb
                   WHERE migration = $1 AND id = $2 AND answer IS NULL";
        let params: [&(dyn ToSql + Sync); 3] = [&self.name(), &id, &answer.to_string()];
        let taken = self.client().execute(sql, &params).await.map_err(failure)?;
        Ok(taken > 0)
    }

    /// Records how far the request is.
    pub async fn report(&self, id: i64, answer: &Value) -> Result<()> {
        let sql = "UPDATE walferry.request SET answer = $3::text::jsonb WHERE migration = $1 AND id = $2";
        self.execute(sql, &[&self.name(), &id, &answer.to_string()]).await
    }

    /// Records the last word on the request, and the migration's phase: both or neither. Where that is `done`, tables that
    /// were copied again are as they should be.
    ///
    /// # Errors
    /// A transient failure, and nothing is recorded, where a later run has begun: its statements may reach
    /// the server long after it lost the connection, when the next one has read that nothing is recorded, and has acted on it.
    ///
    /// # Panics
    /// When the move to that phase is not legal.
    pub async fn answer(&self, id: i64, answer: &Value, phase: &mut CurrentPhase, next: Phase) -> Result<()> {
        let step = phase.step(next);
        let sql = "WITH moved AS (
                       UPDATE walferry.migration SET phase = $5, updated_at = pg_catalog.clock_timestamp()
                       WHERE name = $1 AND phase IN ($4, $5) AND attempt = $6 RETURNING name),
                   kept AS (
                       UPDATE walferry.relation r SET state = 'copied' FROM moved
                       WHERE r.migration = moved.name AND state = 'copying' AND copy_lsn IS NOT NULL AND $5 = 'done'),
                   answered AS (
                       UPDATE walferry.request r SET answer = $3::text::jsonb, answered_at = pg_catalog.clock_timestamp()
                       FROM moved WHERE r.migration = moved.name AND r.id = $2)
                   SELECT FROM moved";
        let answer = answer.to_string();
        let params: [&(dyn ToSql + Sync); 6] =
            [&self.name(), &id, &answer, &step.from, &step.to, &step.attempt];
        if self.client().query_opt(sql, &params).await.map_err(failure)?.is_none() {
            return Err(self.overtaken().await);
        }
        phase.stepped(next);
        Ok(())
    }

    /// Shows that an engine is at work on a request, for as long as this session lives: between two attempts it does not
    /// hold the migration's lock.
    pub async fn be_seen(&self) -> Result<()> {
        // Whoever has taken a key can only make us take another one.
        for _ in 0..KEYS_TRIED_MAX {
            let sql = advisory("pg_try_advisory_lock", &at_work(self.name()), rand::random());
            if self.one(sql.as_str(), &[]).await?.get(0) {
                break;
            }
        }
        Ok(())
    }

    /// Whether an engine is at work: it holds the migration's lock, or shows itself otherwise.
    pub async fn engine_runs(&self) -> Result<bool> {
        let names = [lock_name(self.name()), at_work(self.name())];
        let holders = of_holders("a.pid", &[names[0].as_str(), names[1].as_str()]);
        let sql = Sql::new("SELECT EXISTS (").sql(&holders).text(")");
        Ok(self.one(sql.as_str(), &[]).await?.get(0))
    }

    async fn forget_stale_requests(&self) -> Result<()> {
        let sql = "DELETE FROM walferry.request WHERE migration = $1 AND answer IS NULL
                       AND requested_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2)";
        self.execute(sql, &[&self.name(), &REQUEST_STALE_AFTER.as_secs_f64()]).await
    }

    async fn read_request(&self, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Option<Request>> {
        let row = self.client().query_opt(sql.as_str(), params).await.map_err(failure)?;
        // The server has checked that it is JSON.
        let json = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        Ok(row.map(|row| Request {
            id: row.get(0),
            command: row.get(1),
            arguments: json(row.get(2)),
            answer: row.get::<_, Option<&str>>(3).map(json),
            answered: row.get(4),
        }))
    }
}
