//! What a pipeline knows and decides, without a socket, a clock or a task.
//!
//! ```text
//!   Event ──▶ State::on ──▶ Effects        received ≥ applied ≥ durable ≥ confirmed, always
//! ```
//!
//! The shell in [`super`] turns what happens into events and carries the effects out. Time is an argument: how long
//! the pipeline has run. At most one [`Effect::Apply`] or [`Effect::Store`] is under way at any moment.
//!
//! Keepalives: the field "current end of WAL" holds how far the server has decoded and sent. All that commits before
//! it is already in the stream ahead of the keepalive, so once that is applied, the position may be taken as applied
//! too; but only when no transaction is being received. It is stored in `walferry.progress` before it is confirmed.

use std::collections::VecDeque;
use std::time::Duration;

use crate::assemble::Segment;
use crate::limits::{BATCH_CHANGES_MAX, BATCH_COST_MAX, CONFIRM_STEP, IDLE_STORE_INTERVAL, STATUS_INTERVAL};
use crate::pg::{EndLsn, PgTimestamp, SourceLsn};
use crate::plan::Batch;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A segment came from the source.
    Received(Segment),
    /// A keepalive came from the source.
    Keepalive {
        /// How far the server has sent.
        wal_end: SourceLsn,
        /// Whether it wants an answer at once.
        reply_requested: bool,
        /// Whether it came in the middle of a transaction.
        in_transaction: bool,
    },
    /// The batch under way is done: committed if it ended with a whole transaction.
    Applied,
    /// The position under way is in `walferry.progress`.
    Stored,
    /// Time went by.
    Tick,
    /// Somebody wants the pipeline to end.
    Stop,
}

/// Something to do.
#[derive(Debug)]
pub enum Effect {
    /// Apply the batch, then say [`Event::Applied`].
    Apply(Batch),
    /// Move `walferry.progress` to this position, then say [`Event::Stored`].
    Store(EndLsn),
    /// Tell the source the positions.
    Report(Positions),
    /// Let the reader hold this much more.
    Release(usize),
    /// End the pipeline; an unfinished target transaction is rolled back.
    Finish(Finish),
}

/// Why a pipeline ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Somebody asked for it.
    Stopped,
    /// The position that it was to run to is applied.
    Reached,
}

/// How far each stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    /// Read from the socket.
    pub received: SourceLsn,
    /// Committed on the target.
    pub applied: SourceLsn,
    /// On the target's disk, and in `walferry.progress`.
    pub durable: SourceLsn,
    /// Sent to the source as flushed.
    pub confirmed: SourceLsn,
}

/// One pipeline's knowledge.
#[derive(Debug)]
pub struct State {
    positions: Positions,
    queue: VecDeque<Segment>,
    under_way: Option<UnderWay>,
    /// A large transaction is applied in part, the target transaction is open: when it committed on the source.
    open: Option<PgTimestamp>,
    /// A keepalive's position that holds once everything queued before it is applied.
    idle_mark: Option<SourceLsn>,
    /// The position resumed from, until the first event tells the time. It ages like any other: the run before may
    /// have stored it just now.
    resumed: Option<SourceLsn>,
    /// Durable for `confirm_delay`.
    ripe: SourceLsn,
    /// Durable positions that are younger, oldest first.
    aging: VecDeque<Aging>,
    confirm_delay: Duration,
    run_to: Option<SourceLsn>,
    reported_at: Duration,
    stored_at: Duration,
    reply_requested: bool,
    stopping: bool,
    finished: bool,
}

/// A durable position, and since when.
#[derive(Debug)]
struct Aging {
    since: Duration,
    ripens_at: Duration,
    position: SourceLsn,
}

#[derive(Debug)]
enum UnderWay {
    Batch { end: Option<EndLsn>, cost: usize, oldest: PgTimestamp },
    Store(EndLsn),
}

impl State {
    /// Resumes from the stored position.
    ///
    /// `run_to`: finish as soon as everything that commits before that position is durable, and before anything that
    /// commits later is begun.
    pub fn new(stored: EndLsn, confirm_delay: Duration, run_to: Option<SourceLsn>) -> Self {
        let at = stored.position();
        Self {
            positions: Positions { received: at, applied: at, durable: at, confirmed: SourceLsn::ZERO },
            queue: VecDeque::new(),
            under_way: None,
            open: None,
            idle_mark: None,
            resumed: Some(at),
            ripe: SourceLsn::ZERO,
            aging: VecDeque::new(),
            confirm_delay,
            run_to,
            reported_at: Duration::ZERO,
            stored_at: Duration::ZERO,
            reply_requested: false,
            stopping: false,
            finished: false,
        }
    }

    /// How far each stage is.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// When the oldest transaction that was received and is not applied committed on the source.
    pub fn oldest_unapplied(&self) -> Option<PgTimestamp> {
        match &self.under_way {
            Some(UnderWay::Batch { oldest, .. }) => Some(*oldest),
            _ => self.open.or_else(|| self.queue.front().map(|segment| segment.commit_time)),
        }
    }

    /// Takes an event at `now`, and says what to do, in order; after [`Effect::Finish`] nothing any more.
    ///
    /// # Panics
    /// When the shell breaks its word: an `Applied` or `Stored` that answers nothing.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.finished {
            return effects;
        }
        if let Some(position) = self.resumed.take() {
            self.durable(position, now);
        }
        match event {
            Event::Received(segment) => self.received(segment),
            Event::Keepalive { wal_end, reply_requested, in_transaction } => {
                self.positions.received = self.positions.received.max(wal_end);
                if !in_transaction {
                    self.idle_mark = Some(wal_end);
                }
                self.reply_requested |= reply_requested;
            }
            Event::Applied => self.applied(now, &mut effects),
            Event::Stored => self.stored(now),
            Event::Tick => {}
            Event::Stop => self.stopping = true,
        }
        self.advance_idle();
        self.proceed(now, &mut effects);
        self.report(now, &mut effects);
        self.finish(&mut effects);
        effects
    }

    fn received(&mut self, segment: Segment) {
        self.idle_mark = None;
        if let Some(end) = segment.end {
            assert!(end.position() > self.positions.durable, "a transaction came that is already durable");
            self.positions.received = self.positions.received.max(end.position());
        }
        self.queue.push_back(segment);
    }

    fn applied(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let Some(UnderWay::Batch { end, cost, oldest }) = self.under_way.take() else {
            unreachable!("a batch was applied that was not under way");
        };
        effects.push(Effect::Release(cost));
        self.open = end.is_none().then_some(oldest);
        if let Some(end) = end {
            assert!(end.position() >= self.positions.applied, "applied went back");
            self.positions.applied = end.position();
            self.durable(end.position(), now);
        }
    }

    fn stored(&mut self, now: Duration) {
        let Some(UnderWay::Store(end)) = self.under_way.take() else {
            unreachable!("a position was stored that was not under way");
        };
        self.durable(end.position(), now);
    }

    fn durable(&mut self, position: SourceLsn, now: Duration) {
        self.positions.durable = position;
        self.stored_at = now;
        if self.confirm_delay.is_zero() {
            self.ripe = position;
            return;
        }
        // Positions within one step share an entry, which ripens when the last of them surely has.
        match self.aging.back_mut() {
            Some(last) if now.saturating_sub(last.since) < CONFIRM_STEP => last.position = position,
            _ => {
                let ripens_at = now + self.confirm_delay + CONFIRM_STEP;
                self.aging.push_back(Aging { since: now, ripens_at, position });
            }
        }
    }

    /// Nothing waits and nothing is being received: what the keepalive said is applied.
    fn advance_idle(&mut self) {
        let quiet = self.queue.is_empty() && self.under_way.is_none() && self.open.is_none();
        if let Some(mark) = self.idle_mark.filter(|_| quiet) {
            self.positions.applied = self.positions.applied.max(mark);
        }
    }

    /// Starts the next work, if none is under way.
    fn proceed(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.under_way.is_some() {
            return;
        }
        let may_start = !self.stopping && !self.reached();
        if may_start && let Some(batch) = self.next_batch() {
            let oldest = batch.segments.first().map_or(PgTimestamp::default(), |first| first.commit_time);
            self.under_way = Some(UnderWay::Batch { end: batch.end(), cost: batch.cost, oldest });
            effects.push(Effect::Apply(batch));
        } else if self.open.is_none() && self.positions.applied > self.positions.durable {
            let reaches = self.run_to.is_some_and(|run_to| self.positions.applied >= run_to);
            let urgent = self.reply_requested || self.stopping || reaches;
            if urgent || now.saturating_sub(self.stored_at) >= IDLE_STORE_INTERVAL {
                let end = EndLsn::new(self.positions.applied.get());
                self.under_way = Some(UnderWay::Store(end));
                effects.push(Effect::Store(end));
            }
        }
    }

    fn next_batch(&mut self) -> Option<Batch> {
        let mut segments: Vec<Segment> = Vec::new();
        let (mut cost, mut changes) = (0, 0);
        while let Some(next) = self.queue.front() {
            let part = next.end.is_none() || !next.first;
            if self.is_beyond(next) {
                break;
            }
            let full = cost + next.cost > BATCH_COST_MAX || changes + next.changes.len() > BATCH_CHANGES_MAX;
            if !segments.is_empty() && (part || full) {
                break;
            }
            cost += next.cost;
            changes += next.changes.len();
            segments.extend(self.queue.pop_front());
            if part {
                break;
            }
        }
        let previous = EndLsn::new(self.positions.durable.get());
        (!segments.is_empty()).then_some(Batch { segments, previous, cost })
    }

    /// Tells the source, on time or because it asked.
    fn report(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(oldest) = self.aging.front().filter(|oldest| oldest.ripens_at <= now) {
            self.ripe = oldest.position;
            self.aging.pop_front();
        }
        let due = now.saturating_sub(self.reported_at) >= STATUS_INTERVAL;
        if !due && !self.reply_requested {
            return;
        }
        let storing = matches!(self.under_way, Some(UnderWay::Store(_)));
        self.confirm(if self.reply_requested { self.positions.durable } else { self.ripe });
        self.reported_at = now;
        // Asked for an answer while a position is being stored: answer now, and again when it is stored.
        self.reply_requested &= storing;
        effects.push(Effect::Report(self.positions));
    }

    fn confirm(&mut self, position: SourceLsn) {
        self.positions.confirmed = self.positions.confirmed.max(position);
        assert!(self.positions.confirmed <= self.positions.durable, "confirmed beyond durable");
    }

    /// Asked when nothing is under way.
    fn reached(&self) -> bool {
        let durable = self.run_to.is_some_and(|run_to| self.positions.durable >= run_to);
        let next_is_beyond = self.queue.front().is_some_and(|next| self.is_beyond(next));
        self.open.is_none() && (durable || next_is_beyond)
    }

    /// Whether a segment begins a transaction that the pipeline is not to run to.
    fn is_beyond(&self, segment: &Segment) -> bool {
        segment.first && self.run_to.is_some_and(|run_to| segment.commit_lsn.position() >= run_to)
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if self.under_way.is_some() {
            return;
        }
        let finish = if self.stopping { Finish::Stopped } else { Finish::Reached };
        if self.stopping || self.reached() {
            self.finished = true;
            self.confirm(self.ripe);
            effects.push(Effect::Report(self.positions));
            effects.push(Effect::Finish(finish));
        }
    }
}

#[cfg(test)]
mod tests;
