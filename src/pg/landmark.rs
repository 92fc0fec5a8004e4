//! Where a stream goes on, and how the source's history is known again.

use super::{CommitLsn, EndLsn, PgTimestamp, SourceLsn, TimelineId, Xid};

/// A transaction of the source that is applied. No other history has the same one: position, identifier and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landmark {
    /// Where its commit record starts.
    pub commit_lsn: CommitLsn,
    /// The position just after it.
    pub end: EndLsn,
    /// Its identifier on the source.
    pub xid: Xid,
    /// When it committed, by the source's clock.
    pub commit_time: PgTimestamp,
}

/// What a stream goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// All that ends by there is applied; keepalives move it, too.
    pub end: EndLsn,
    /// The last transaction applied that comes again; `None` before there was one.
    pub landmark: Option<Landmark>,
    /// The source's timeline by then; `None` where it was not noted.
    pub timeline: Option<TimelineId>,
}

impl Resume {
    /// From a position of which nothing else is known: a slot's consistent point.
    pub const fn at(end: EndLsn) -> Self {
        Self { end, landmark: None, timeline: None }
    }

    /// The same on another timeline, which begins where the one before was left; `None` when what is applied lies beyond.
    ///
    /// What keepalives said after the last transaction they said of the timeline that was left, and holds no more.
    pub fn on_timeline(self, timeline: TimelineId, left: SourceLsn) -> Option<Self> {
        let end = self.held();
        (end.position() <= left).then_some(Self { end, timeline: Some(timeline), ..self })
    }

    /// What is held of the source's history: up to the end of the last transaction, whatever keepalives said after it.
    pub fn held(&self) -> EndLsn {
        self.landmark.map_or(self.end, |landmark| landmark.end)
    }

    /// Where the stream is opened. The source must not have been told of anything beyond: it would begin there instead.
    pub fn opened_at(&self) -> SourceLsn {
        self.landmark.map_or(self.end.position(), |landmark| landmark.commit_lsn.position())
    }
}
