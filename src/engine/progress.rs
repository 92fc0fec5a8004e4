//! How far a pipeline is. Whoever accompanies it decides by this; status shows the same, and nothing is decided from there.
//!
//! A run and the monitor write it, each its own part. It outlives both: what was applied stays so while the stream is
//! reconnecting.

use tokio::sync::watch;

use crate::pg::{PgTimestamp, SourceLsn};

use super::lag::Lag;
use super::state::Positions;

/// The latest of one pipeline: cheap to clone, to write and to read.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    latest: watch::Sender<Reached>,
}

/// What is known at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reached {
    /// The positions; `None` before the first stream.
    pub positions: Option<Positions>,
    /// Where the last transaction that changes rows commits, of those that this stream has brought.
    pub last_change: Option<SourceLsn>,
    /// How far the target is behind.
    pub lag: Lag,
    /// When the oldest transaction was committed that is received and not applied.
    pub(super) oldest_unapplied: Option<PgTimestamp>,
    /// Source clock less local clock, in microseconds.
    pub(super) clock_offset: Option<i64>,
}

impl Reached {
    /// Committed on the target.
    pub fn applied(&self) -> Option<SourceLsn> {
        self.positions.map(|positions| positions.applied)
    }
}

impl Progress {
    /// What is known now.
    pub fn now(&self) -> Reached {
        *self.latest.borrow()
    }

    /// Before the first stream: what is copied counts from `position` on.
    pub fn begin(&self, position: SourceLsn) {
        let confirmed = SourceLsn::ZERO;
        let positions = Positions { received: position, applied: position, durable: position, confirmed };
        self.update(|reached| _ = reached.positions.get_or_insert(positions));
    }

    /// Waits until everything before `position` is applied.
    pub async fn applied(&self, position: SourceLsn) {
        let reached = |now: &Reached| now.applied() >= Some(position);
        let _ = self.latest.subscribe().wait_for(reached).await;
    }

    /// What the source's clock says now, as far as is known.
    pub fn source_now(&self) -> Option<PgTimestamp> {
        let offset = self.latest.borrow().clock_offset;
        offset.map(|offset| PgTimestamp::from_unix_micros(local_micros().saturating_add(offset)))
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Reached)) {
        self.latest.send_modify(change);
    }
}

pub(super) fn local_micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
