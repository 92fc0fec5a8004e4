//! `walferry.progress`: what the target holds, and by which transaction the source's history is known.

use tokio_postgres::Row;
use tokio_postgres::types::PgLsn;

use super::{Store, damaged, failure};
use crate::error::Result;
use crate::pg::{CommitLsn, EndLsn, Landmark, PgTimestamp, Resume, Sql, TimelineId, Xid};

impl Store<'_> {
    /// Records the position that the stream starts from: the slot's consistent point.
    pub async fn begin_progress(&self, at: &Resume) -> Result<()> {
        let sql = "INSERT INTO walferry.progress (migration, timeline, end_lsn) VALUES ($1, $2, $3)";
        self.execute(sql, &[&self.name, &timeline(at), &PgLsn::from(at.end.get())]).await
    }

    /// The position to resume from, and when its transaction committed; `None` before the slot was made.
    pub async fn progress(&self) -> Result<Option<(EndLsn, Option<PgTimestamp>)>> {
        let sql = "SELECT end_lsn, (extract(epoch FROM commit_time) * 1000000)::bigint
                   FROM walferry.progress WHERE migration = $1";
        let row = self.client.query_opt(sql, &[&self.name]).await.map_err(failure)?;
        Ok(row.map(|row| {
            let time = row.get::<_, Option<i64>>(1).map(PgTimestamp::from_unix_micros);
            (EndLsn::new(u64::from(row.get::<_, PgLsn>(0))), time)
        }))
    }

    /// What the stream goes on from; `None` before the slot was made.
    pub async fn resume(&self) -> Result<Option<Resume>> {
        let sql = "SELECT end_lsn, last_commit_lsn, last_end_lsn, last_xid, last_commit_micros, timeline
                   FROM walferry.progress WHERE migration = $1";
        let row = self.client.query_opt(sql, &[&self.name]).await.map_err(failure)?;
        row.as_ref().map(resume).transpose()
    }

    /// Notes the timeline that the source is on, and from where that is gone on with.
    pub async fn set_timeline(&self, resume: &Resume) -> Result<()> {
        let sql = "UPDATE walferry.progress SET timeline = $2, end_lsn = $3 WHERE migration = $1";
        self.execute(sql, &[&self.name, &timeline(resume), &PgLsn::from(resume.end.get())]).await
    }
}

/// Moves the position, for the transaction that applies what is before it: a division by zero if another engine has moved
/// it. The parameters are text: migration, position before, position after, commit time in seconds, and of the last
/// transaction its commit record's position, its end, its identifier and its commit time in microseconds. What is NULL stays
/// as it is.
pub fn move_progress() -> Sql {
    Sql::new(
        "WITH moved AS (UPDATE walferry.progress SET end_lsn = $3, updated_at = clock_timestamp(), \
         commit_time = coalesce(to_timestamp($4::float8), commit_time), \
         last_commit_lsn = coalesce($5::pg_lsn, last_commit_lsn), \
         last_end_lsn = coalesce($6::pg_lsn, last_end_lsn), last_xid = coalesce($7::int8, last_xid), \
         last_commit_micros = coalesce($8::int8, last_commit_micros) \
         WHERE migration = $1 AND end_lsn = $2 RETURNING 1) SELECT 1 / count(*) FROM moved",
    )
}

fn timeline(resume: &Resume) -> Option<i64> {
    resume.timeline.map(|timeline| i64::from(timeline.get()))
}

fn resume(row: &Row) -> Result<Resume> {
    let position = |column| row.get::<_, Option<PgLsn>>(column).map(u64::from);
    let number = |column| row.get::<_, Option<i64>>(column);
    let small = |value: Option<i64>| {
        let wrong = |_| damaged("walferry.progress has a number that is none of a transaction".to_owned());
        value.map(u32::try_from).transpose().map_err(wrong)
    };
    let known = (position(1), position(2), small(number(3))?, number(4));
    let landmark = match known {
        (Some(commit), Some(end), Some(xid), Some(micros)) => Some(Landmark {
            commit_lsn: CommitLsn::new(commit),
            end: EndLsn::new(end),
            xid: Xid::new(xid),
            commit_time: PgTimestamp::from_micros(micros),
        }),
        _ => None,
    };
    let end = EndLsn::new(u64::from(row.get::<_, PgLsn>(0)));
    if landmark.is_some_and(|last| last.end > end || last.commit_lsn.position() >= last.end.position()) {
        return Err(damaged("walferry.progress names a last transaction beyond its position".to_owned()));
    }
    Ok(Resume { end, landmark, timeline: small(number(5))?.map(TimelineId::new) })
}
