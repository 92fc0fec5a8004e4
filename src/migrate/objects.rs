//! What is made on the target besides rows: the schema before the copy, indexes and constraints after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::apply::store::Store;
use crate::error::{Definite, Failure, Result, Side};
use crate::pg::Sql;
use crate::source;
use crate::wire::{self, ConnInfo, Session, SessionOptions};

use super::dump::{Archive, Entry, Wave};
use super::{Phase, joined};

/// Makes the tables and whatever they need, in one transaction with the step to the phase `copying`.
///
/// # Errors
/// When the target refuses a statement; nothing is made then.
pub async fn make_schema(target: &ConnInfo, migration: &str, archive: &Archive) -> Result<()> {
    let script = archive.pre_data().await?;
    let mut session = connect(target).await?;
    let step = Sql::new("UPDATE walferry.migration SET phase = ")
        .literal(Phase::Copying.as_str())
        .text(" WHERE name = ")
        .literal(migration);
    for sql in [Sql::new("BEGIN"), script, step, Sql::new("COMMIT")] {
        session.execute(&sql).await.map_err(|error| refused("the schema", error))?;
    }
    session.close().await;
    Ok(())
}

/// What makes the entries of a wave.
#[derive(Debug)]
struct Wanted {
    target: ConnInfo,
    migration: String,
    archive: Arc<Archive>,
    entries: Vec<Entry>,
    next: AtomicUsize,
}

/// Makes what the archive's post-data section has for `wave` and is not made yet.
///
/// # Errors
/// When the target refuses a statement; what was made before stays made, and is not made again.
pub async fn make_wave(
    target: &ConnInfo,
    control: &Client,
    migration: &str,
    archive: &Arc<Archive>,
    wave: Wave,
    jobs: usize,
) -> Result<()> {
    let row = Store::new(control, migration).migration().await?;
    let made = row.map(|row| row.post_data).unwrap_or_default();
    let entries = archive
        .post_data()
        .await?
        .into_iter()
        .filter(|(of, entry)| *of == wave && !made.contains(&entry.key));
    let entries: Vec<Entry> = entries.map(|(_, entry)| entry).collect();
    // What joins others comes after them, in the archive's order.
    let jobs = if wave == Wave::Rest { 1 } else { jobs.min(entries.len()) };
    let wanted = Arc::new(Wanted {
        target: target.clone(),
        migration: migration.to_owned(),
        archive: Arc::clone(archive),
        entries,
        next: AtomicUsize::new(0),
    });
    let mut work = JoinSet::new();
    for _ in 0..jobs {
        let wanted = Arc::clone(&wanted);
        work.spawn(async move { wanted.make().await });
    }
    joined(work).await
}

impl Wanted {
    async fn make(&self) -> Result<()> {
        let mut session = connect(&self.target).await?;
        while let Some(entry) = self.entries.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.make_entry(&mut session, entry).await?;
        }
        session.close().await;
        Ok(())
    }

    /// One entry, in one transaction with the note that it is made.
    async fn make_entry(&self, session: &mut Session, entry: &Entry) -> Result<()> {
        let script = self.archive.script(std::slice::from_ref(entry)).await?;
        let note = Sql::new("UPDATE walferry.migration SET post_data = post_data || ")
            .literal(&entry.key)
            .text("::text WHERE name = ")
            .literal(&self.migration);
        for sql in [Sql::new("BEGIN"), script, note, Sql::new("COMMIT")] {
            session.execute(&sql).await.map_err(|error| refused(&entry.what, error))?;
        }
        tracing::debug!(object = entry.what, "made");
        Ok(())
    }
}

/// Fills the materialised views, each after those that it reads.
///
/// # Errors
/// When one cannot be filled whatever the order.
pub async fn refresh_materialized_views(target: &Client) -> Result<()> {
    loop {
        let sql = "SELECT schemaname::text, matviewname::text FROM pg_matviews WHERE NOT ispopulated";
        let empty = target.query(sql, &[]).await.map_err(|error| failure("the materialised views", error))?;
        let mut refreshed = 0;
        let mut refusal = None;
        for row in &empty {
            let refresh =
                Sql::new("REFRESH MATERIALIZED VIEW ").ident(row.get(0)).text(".").ident(row.get(1));
            match target.batch_execute(refresh.as_str()).await {
                Ok(()) => refreshed += 1,
                Err(error) => refusal = Some(failure("a materialised view's rows", error)),
            }
        }
        match refusal {
            None => return Ok(()),
            Some(failure) if refreshed == 0 => return Err(failure),
            // One that reads another was tried too early.
            Some(_) => {}
        }
    }
}

/// Statistics for the planner.
///
/// # Errors
/// When the target fails; tables that the role may not analyse are skipped by the server with a warning.
pub async fn analyze(target: &Client) -> Result<()> {
    target.batch_execute("ANALYZE").await.map_err(|error| failure("the statistics", error))
}

async fn connect(target: &ConnInfo) -> Result<Session> {
    let options = SessionOptions::new("walferry schema");
    Session::connect(target, &options).await.map_err(|error| error.into_failure(Side::Target))
}

fn refused(what: &str, error: wire::Error) -> Failure {
    if error.is_transient() {
        return error.into_failure(Side::Target);
    }
    Definite::new("the target refused a part of the schema")
        .detail(format!("{what}: {error}"))
        .hint(
            "make it possible on the target (extension, privilege, role), then run `walferry migrate` again",
        )
        .into()
}

fn failure(question: &'static str, error: tokio_postgres::Error) -> Failure {
    source::Error::new(question, error).into_failure(Side::Target)
}
