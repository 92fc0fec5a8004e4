//! Large objects: with their identifiers, contents, owners and privileges. Manual: "Large Objects".
//!
//! Nobody but a superuser reads `pg_largeobject`, so all goes through the server's functions. What is on the source and
//! not on the target is copied, what is on both is compared by size and hash, each side computing its own, and of what
//! differs those chunks are moved that do. So the first copy, a copy that goes on after a kill, and bringing all up to
//! date at the end are one and the same.
//!
//! The identifiers are dealt with in ranges, by several jobs at once; a range is some transactions of the target.
//! `walferry.large_object` has those that this migration made, recorded in the transaction that made them: no others are
//! changed or dropped. One that is the target's own, under an identifier of the source's, is a definite failure.
//!
//! Comments and security labels stay behind.

mod access;
mod contents;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::Row;
use tracing::Instrument;

use crate::catalog::{self, SideClient, SourceClient, TargetClient};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::LARGE_OBJECTS_PER_STEP;
use crate::pg::{ServerVersion, Sql};
use crate::store::Store;
use crate::wire::ConnInfo;
use access::{Access, Roles};

/// What carries large objects.
#[derive(Debug, Clone)]
pub struct LargeObjects {
    /// The source.
    pub source: ConnInfo,
    /// The target.
    pub target: ConnInfo,
    /// The migration's name.
    pub migration: String,
    /// The run's number.
    pub attempt: i64,
    /// The exported snapshot to read. Whoever made it keeps it alive.
    pub snapshot: String,
    /// The source's version.
    pub version: ServerVersion,
    /// Pairs of sessions.
    pub jobs: usize,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Tally {
    copied: u64,
    changed: u64,
    dropped: u64,
    bytes: u64,
    /// Roles that own some, or may use some, and that the target has not, or not for us to give something to.
    roles_missing: BTreeSet<String>,
}

/// Identifiers after the first number, up to the second one.
type Range = (u32, u32);

/// One job: a session on either side.
struct Job<'a> {
    all: &'a LargeObjects,
    source: SourceClient,
    target: TargetClient,
    roles: Roles,
    tally: Tally,
}

/// One on the target, and whether this migration made it.
struct There {
    access: Access,
    ours: bool,
}

impl LargeObjects {
    /// Makes the target's the same as the source's, but for those that the target has of its own. Says whether any was not.
    ///
    /// # Errors
    /// When a side does not answer; when one may not be read, or is in the way.
    pub async fn carry(&self, source: &SourceClient, target: &TargetClient) -> Result<bool> {
        if !self.any(source, target).await? {
            return Ok(false);
        }
        let next = Arc::new(Mutex::new(Some(0)));
        let mut work = JoinSet::new();
        for _ in 0..self.jobs {
            let (all, next) = (self.clone(), Arc::clone(&next));
            work.spawn(async move { all.work(&next).await }.in_current_span());
        }
        let mut tally = Tally::default();
        while let Some(done) = work.join_next().await {
            tally.add(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?);
        }
        let Tally { copied, changed, dropped, bytes, roles_missing } = tally;
        tracing::info!(copied, changed, dropped, bytes, "large objects carried");
        for role in roles_missing {
            tracing::warn!(
                %role,
                "owns, or may use, large objects of the source; the target has no such role, or gives it nothing of ours"
            );
        }
        Ok(copied + changed + dropped > 0)
    }

    async fn any(&self, source: &SourceClient, target: &TargetClient) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)";
        let row = source.query_one(sql, &[]).await.map_err(source.failed(QUESTION)).map_err(failure)?;
        if row.get(0) {
            return Ok(true);
        }
        Store::new(target, &self.migration).has_large_objects().await
    }

    async fn work(&self, next: &Mutex<Option<u32>>) -> Result<Tally> {
        let source = SourceClient::connect(&self.source, "walferry copy").await?;
        let begin = Sql::new("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT ")
            .literal(&self.snapshot);
        source.run(QUESTION, &begin).await.map_err(failure)?;
        let target = TargetClient::connect(&self.target, "walferry copy").await?;
        let roles = Roles::read(&target).await?;
        let mut job = Job { all: self, source, target, roles, tally: Tally::default() };
        while let Some((range, here)) = job.next(next).await? {
            job.bring(range, here).await?;
        }
        Ok(job.tally)
    }
}

impl Job<'_> {
    /// The next range, and what the source has in it. The last range has no end, so that nothing is left out.
    async fn next(&self, next: &Mutex<Option<u32>>) -> Result<Option<(Range, HashMap<u32, Access>)>> {
        let mut next = next.lock().await;
        let Some(after) = *next else { return Ok(None) };
        let sql = Sql::new("SELECT m.oid, ")
            .text(access::COLUMNS)
            .text(" FROM pg_largeobject_metadata m WHERE m.oid > $1 ORDER BY m.oid LIMIT $2");
        let limit = i64::try_from(LARGE_OBJECTS_PER_STEP).unwrap_or(i64::MAX);
        let rows = self.ask(Side::Source, &sql, &[&after, &limit]).await?;
        let last = rows.get(LARGE_OBJECTS_PER_STEP - 1).map(|row| row.get::<_, u32>(0));
        *next = last;
        let here = rows.iter().map(|row| (row.get(0), Access::of(row, 1))).collect();
        Ok(Some(((after, last.unwrap_or(u32::MAX)), here)))
    }

    /// Makes the target's of one range the same as the source's.
    async fn bring(&mut self, range: Range, here: HashMap<u32, Access>) -> Result<()> {
        let mut ids: Vec<u32> = here.keys().copied().collect();
        ids.sort_unstable();
        while self.drop_some(range, &ids).await? {}
        if ids.is_empty() {
            return Ok(());
        }
        let there = self.there(&ids).await?;
        let (known, new): (Vec<u32>, Vec<u32>) = ids.iter().copied().partition(|id| there.contains_key(id));
        if let Some(id) = known.iter().find(|id| !there[id].ours) {
            return Err(in_the_way(*id).into());
        }
        let differing = self.differing(&known).await?;
        self.begin().await?;
        self.create(&new).await?;
        for &(id, size) in &differing {
            self.change(id, size).await?;
        }
        let fresh = Access::new(&self.roles.me);
        for id in &ids {
            let has = there.get(id).map_or(&fresh, |there| &there.access);
            let (statements, missing) = self.roles.statements(*id, &here[id], has);
            self.tally.roles_missing.extend(missing);
            if let Some(statements) = statements {
                self.target.run(QUESTION, &statements).await?;
            }
        }
        self.commit().await?;
        self.tally.copied += new.len() as u64;
        self.tally.changed += differing.len() as u64;
        Ok(())
    }

    /// Those of `ids` that are on the target.
    async fn there(&self, ids: &[u32]) -> Result<HashMap<u32, There>> {
        let sql = Sql::new("SELECT m.oid, ")
            .text(access::COLUMNS)
            .text(" FROM pg_largeobject_metadata m WHERE m.oid = ANY ($1)");
        let rows = self.ask(Side::Target, &sql, &[&ids]).await?;
        let ours: HashSet<u32> = self.store().large_objects_among(ids).await?.into_iter().collect();
        let there = |row: &Row| {
            let id = row.get(0);
            (id, There { ours: ours.contains(&id), access: Access::of(row, 1) })
        };
        Ok(rows.iter().map(there).collect())
    }

    /// Drops some that we made in the range and that the source has no more; says whether there may be others.
    async fn drop_some(&mut self, (after, last): Range, here: &[u32]) -> Result<bool> {
        let gone = self.store().large_objects_but(after, last, here).await?;
        if gone.is_empty() {
            return Ok(false);
        }
        self.begin().await?;
        let sql = Sql::new("SELECT lo_unlink(m.oid) FROM pg_largeobject_metadata m WHERE m.oid = ANY ($1)");
        let dropped = self.ask(Side::Target, &sql, &[&gone]).await?;
        self.store().forget_large_objects(&gone).await?;
        self.commit().await?;
        self.tally.dropped += dropped.len() as u64;
        Ok(gone.len() == LARGE_OBJECTS_PER_STEP)
    }

    /// Begins a transaction of the target, as the run that is the migration's: another one may have taken over.
    async fn begin(&self) -> Result<()> {
        self.target.run(QUESTION, &Sql::new("BEGIN")).await?;
        if !self.store().lock_attempt(self.all.attempt).await? {
            return Err(Transient::new(Side::Target, "the migration's lock was lost during the copy").into());
        }
        Ok(())
    }

    fn store(&self) -> Store<'_> {
        Store::new(&self.target, &self.all.migration)
    }

    async fn commit(&self) -> Result<()> {
        Ok(self.target.run(QUESTION, &Sql::new("COMMIT")).await?)
    }

    async fn ask(
        &self,
        side: Side,
        sql: &Sql,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let client: &SideClient = match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        };
        client.query(sql.as_str(), params).await.map_err(client.failed(QUESTION)).map_err(failure)
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.copied += other.copied;
        self.changed += other.changed;
        self.dropped += other.dropped;
        self.bytes += other.bytes;
        self.roles_missing.extend(other.roles_missing);
    }
}

fn in_the_way(id: u32) -> Definite {
    Definite::new(format!("large object {id} of the target is in the way of the source's"))
        .detail("it was not put there by this migration, and is left as it is")
        .hint(format!(
            "if nobody needs it, drop it on the target, then run `walferry migrate` again:\nSELECT lo_unlink({id});"
        ))
}

const QUESTION: &str = "the large objects";

fn failure(error: catalog::Error) -> Failure {
    if error.side() == Side::Source && error.state() == Some("42501") {
        return Definite::new("a large object of the source may not be read")
            .detail(error.to_string())
            .hint("`walferry check` prints the statement that lets us; run it on the source")
            .into();
    }
    error.into()
}
