//! What a pipeline knows and decides, without a socket, a clock or a task.
//!
//! ```text
//!   Event ──▶ State::on ──▶ Effects        received ≥ applied ≥ durable ≥ confirmed, always
//! ```
//!
//! The shell in [`super`] turns what happens into events and carries the effects out. Time is an argument: how long
//! the pipeline has run. The state names the time at which it next does something by itself
//! ([`State::next_deadline`]), and the shell wakes it then. What is asked for is done in its order, some of it at a
//! time: a batch leaves at once when nothing is under way, and behind others when it is as large as a batch gets.
//!
//! A commit on the target does not wait for the disk. What it held is durable when the target says that its WAL is
//! flushed to beyond it; if that takes long, it is asked to.
//!
//! Keepalives: the field "current end of WAL" holds how far the server has decoded and sent. All that commits before
//! it is already in the stream ahead of the keepalive, so once that is applied, the position may be taken as applied
//! too; but only when no transaction is being received. It is stored in `walferry.progress` before it is confirmed.
//!
//! What is confirmed is never beyond the commit of the last transaction applied, as the target's disk has it: the next
//! stream begins with that one, which proves that the source's history is the one that was applied. While nothing
//! commits that is for us and the source writes WAL all the same, it would have to keep that; so the pipeline has a
//! transaction made there ([`Effect::Mark`]). To stay before the last transaction without one would cost it all that WAL.
//!
//! A keepalive that wants an answer gets one at once that confirms nothing: a walsender that shuts down waits until
//! all is flushed that it sent or, where a receiver names no flushed position, until all is written (`WalSndDone`).

use std::collections::VecDeque;
use std::time::Duration;

use crate::apply::Written;
use crate::assemble::Segment;
use crate::limits::{
    BATCH_CHANGES_MAX, BATCH_COST_MAX, CONFIRM_STEP, FLUSH_AFTER, FLUSH_AFTER_BUSY, IDLE_STORE_INTERVAL,
    MARK_BYTES, MARK_BYTES_HURRY, MARK_INTERVAL, MARK_INTERVAL_MIN, STATUS_INTERVAL, UNDER_WAY_MAX,
};
use crate::pg::{EndLsn, PgTimestamp, Resume, SourceLsn, TargetLsn};
use crate::plan::Batch;

use super::memory::Held;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A segment came from the source, and the memory that it takes.
    Received(Segment, Held),
    /// The transaction that goes ahead comes later, as a whole: what was received of it never happened.
    GaveUp,
    /// A keepalive came from the source.
    Keepalive {
        /// How far the server has sent.
        wal_end: SourceLsn,
        /// Whether it wants an answer at once.
        reply_requested: bool,
        /// Whether it came in the middle of a transaction.
        in_transaction: bool,
    },
    /// The oldest thing under way is done. Where it was committed, this is where the target's WAL was then.
    Done(Option<Written>),
    /// The time has come that [`State::next_deadline`] named. Before that time, this event changes nothing.
    Deadline,
    /// Somebody wants the pipeline to end.
    Stop,
}

/// Something to do.
#[derive(Debug)]
pub enum Effect {
    /// Apply the batch, then say [`Event::Done`].
    Apply(Batch),
    /// Move `walferry.progress` to this position, then say [`Event::Done`].
    Store {
        /// What it holds when all before this is done.
        previous: EndLsn,
        /// What it is to hold.
        to: EndLsn,
    },
    /// Undo the target's open transaction, then say [`Event::Done`].
    Abandon,
    /// Have the target write to its disk what it committed, then say [`Event::Done`].
    Flush,
    /// Tell the source the positions.
    Report(Positions),
    /// The same without saying what is flushed.
    Answer(Positions),
    /// Have a transaction made on the source that changes nothing, and comes.
    Mark,
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
    /// Where the last transaction that changes rows commits, of those received.
    last_change: Option<SourceLsn>,
    queue: VecDeque<(Segment, Held)>,
    /// What the queue costs, and how many changes it has.
    queued: (usize, usize),
    /// What was asked for and is not done, oldest first.
    under_way: VecDeque<UnderWay>,
    /// What `walferry.progress` holds when all of that is done.
    asked: EndLsn,
    /// What `walferry.progress` holds.
    stored: SourceLsn,
    /// The last transaction that it knows to come again: where it commits, and where it ends.
    last: Option<Last>,
    /// Where the last copy of a table was made. One that commits before does not tell that it was of this history.
    copied: SourceLsn,
    /// When that was noted, or the last one asked for.
    marked_at: Option<Duration>,
    /// Committed positions that may not be on the target's disk yet, oldest first.
    in_memory: VecDeque<InMemory>,
    /// Of a large transaction a part was asked for and the rest was not: when it committed on the source.
    open: Option<PgTimestamp>,
    /// A keepalive's position that holds once everything queued before it is applied.
    idle_mark: Option<SourceLsn>,
    /// What was resumed from, until the first event tells the time. It ages like any other: the run before may
    /// have stored it just now.
    resumed: Option<Stored>,
    /// What may be confirmed of what is durable for `confirm_delay`.
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

/// The last transaction applied that comes again.
#[derive(Debug, Clone, Copy)]
struct Last {
    /// Where it commits, and where it ends.
    commit: SourceLsn,
    end: SourceLsn,
    /// It changes nothing: one that the pipeline had made, most likely.
    empty: bool,
    /// It was too large for one batch.
    in_parts: bool,
}

/// What `walferry.progress` holds, and what the source may be told once that is on the disk.
#[derive(Debug, Clone, Copy)]
struct Stored {
    position: SourceLsn,
    confirmable: SourceLsn,
}

/// What may be confirmed of a durable position, and since when it is.
#[derive(Debug)]
struct Aging {
    since: Duration,
    ripens_at: Duration,
    confirmable: SourceLsn,
}

/// A committed position, and where its commit ends in the target's WAL.
#[derive(Debug)]
struct InMemory {
    stored: Stored,
    end: TargetLsn,
    since: Duration,
}

#[derive(Debug)]
enum UnderWay {
    /// The batch's memory is held until it is done.
    Batch {
        end: Option<EndLsn>,
        last: Option<Last>,
        held: Held,
        oldest: PgTimestamp,
        ahead: bool,
    },
    Store(EndLsn),
    Abandon,
    Flush,
}

impl Last {
    fn of(batch: &Batch) -> Option<Self> {
        let segment = batch.last_that_comes_again()?;
        let landmark = segment.landmark()?;
        Some(Self {
            commit: landmark.commit_lsn.position(),
            end: landmark.end.position(),
            empty: segment.first && segment.changes.is_empty(),
            in_parts: !segment.first,
        })
    }
}

impl State {
    /// Resumes from the stored position, which is on the target's disk.
    ///
    /// `run_to`: finish as soon as everything that commits before that position is durable, and before anything that
    /// commits later is begun.
    pub fn new(resume: Resume, confirm_delay: Duration, run_to: Option<SourceLsn>) -> Self {
        let (stored, at) = (resume.end, resume.end.position());
        Self {
            positions: Positions { received: at, applied: at, durable: at, confirmed: SourceLsn::ZERO },
            last_change: None,
            queue: VecDeque::new(),
            queued: (0, 0),
            under_way: VecDeque::new(),
            asked: stored,
            stored: at,
            last: resume.landmark.map(|last| Last {
                commit: last.commit_lsn.position(),
                end: last.end.position(),
                empty: false,
                in_parts: false,
            }),
            copied: SourceLsn::ZERO,
            marked_at: None,
            in_memory: VecDeque::new(),
            open: None,
            idle_mark: None,
            resumed: Some(Stored { position: at, confirmable: resume.opened_at() }),
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

    /// Has a transaction made for the history to be known by, unless one commits after the last copy of a table.
    #[must_use]
    pub fn with_copies_of(self, copied: SourceLsn) -> Self {
        Self { copied, ..self }
    }

    /// How far each stage is.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// Where the last transaction that changes rows commits, of those received, applied or not.
    pub fn last_change(&self) -> Option<SourceLsn> {
        self.last_change
    }

    /// When the oldest transaction that was received and is not applied committed on the source.
    pub fn oldest_unapplied(&self) -> Option<PgTimestamp> {
        let oldest = self.under_way.iter().find_map(|work| match work {
            UnderWay::Batch { oldest, .. } => Some(*oldest),
            UnderWay::Store(_) | UnderWay::Abandon | UnderWay::Flush => None,
        });
        oldest.or(self.open).or_else(|| self.queue.front().map(|(segment, _)| segment.commit_time))
    }

    /// Whether the next thing that is to be done goes ahead of its commit: that it fails need not mean anything.
    pub fn is_ahead(&self) -> bool {
        let next = self.under_way.front();
        matches!(next, Some(UnderWay::Batch { ahead: true, .. } | UnderWay::Abandon))
    }

    /// When the state next has something to do though no other event comes, on the clock of [`Self::on`] and always later
    /// than its last event. `None` after the end.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.finished {
            return None;
        }
        // The first event tells the time.
        if self.resumed.is_some() {
            return Some(Duration::ZERO);
        }
        let rest = [self.store_at(), self.flush_at(), self.mark_at()];
        rest.into_iter().flatten().chain([self.report_at()]).min()
    }

    /// Takes an event at `now`, and says what to do, in order; after [`Effect::Finish`] nothing any more.
    ///
    /// # Panics
    /// When the shell breaks its word: a `Done` that answers nothing.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.finished {
            return effects;
        }
        if let Some(resumed) = self.resumed.take() {
            self.durable(resumed, now);
            // What is known is as young as that, for all that is known.
            self.marked_at = self.marked_at.or_else(|| self.known().map(|_| now));
        }
        match event {
            Event::Received(segment, held) => self.received(segment, held),
            Event::GaveUp => self.gave_up(&mut effects),
            Event::Keepalive { wal_end, reply_requested, in_transaction } => {
                self.positions.received = self.positions.received.max(wal_end);
                if !in_transaction {
                    self.idle_mark = Some(wal_end);
                }
                self.reply_requested |= reply_requested;
            }
            Event::Done(written) => self.done(written, now),
            Event::Deadline => {}
            Event::Stop => self.stopping = true,
        }
        self.advance_idle();
        self.proceed(now, &mut effects);
        self.mark(now, &mut effects);
        self.report(now, &mut effects);
        self.finish(&mut effects);
        effects
    }

    fn received(&mut self, segment: Segment, held: Held) {
        self.idle_mark = None;
        if let Some(end) = segment.end {
            assert!(end > self.asked, "a transaction came that is already applied, or being applied");
            self.positions.received = self.positions.received.max(end.position());
        }
        // The last part of a transaction may have no change left.
        if !segment.ahead && (!segment.changes.is_empty() || !segment.first) {
            self.last_change = Some(segment.commit_lsn.position());
        }
        self.queued.0 += segment.cost;
        self.queued.1 += segment.changes.len();
        self.queue.push_back((segment, held));
    }

    /// Forgets what is queued of the transaction that went ahead, and undoes what was asked for: it is the last that came.
    fn gave_up(&mut self, effects: &mut Vec<Effect>) {
        while self.queue.back().is_some_and(|(last, _)| last.ahead)
            && let Some((part, _)) = self.queue.pop_back()
        {
            self.queued.0 -= part.cost;
            self.queued.1 -= part.changes.len();
        }
        // With others before it in the queue, what is open is theirs. Undoing it does not wait for a place under way.
        if self.queue.is_empty() && self.open.take().is_some() {
            self.under_way.push_back(UnderWay::Abandon);
            effects.push(Effect::Abandon);
        }
    }

    fn done(&mut self, written: Option<Written>, now: Duration) {
        let committed = match self.under_way.pop_front().expect("something was under way") {
            UnderWay::Batch { end, last, held, .. } => {
                drop(held);
                if let Some(last) = last {
                    self.last = Some(last);
                    self.marked_at = Some(now);
                }
                end
            }
            UnderWay::Store(end) => Some(end),
            UnderWay::Abandon | UnderWay::Flush => None,
        };
        if let Some(end) = committed {
            let position = end.position();
            assert!(position >= self.stored, "what is stored went back");
            self.stored = position;
            self.stored_at = now;
            self.positions.applied = self.positions.applied.max(position);
            let end = written.map(|written| written.end).expect("a commit says where it is");
            let confirmable = self.last.map_or(position, |last| last.commit);
            self.in_memory.push_back(InMemory { stored: Stored { position, confirmable }, end, since: now });
        }
        if let Some(Written { flushed, .. }) = written {
            while let Some(oldest) = self.in_memory.front().filter(|oldest| oldest.end <= flushed) {
                let stored = oldest.stored;
                self.in_memory.pop_front();
                self.durable(stored, now);
            }
        }
    }

    fn durable(&mut self, Stored { position, confirmable }: Stored, now: Duration) {
        self.positions.durable = position;
        if self.confirm_delay.is_zero() {
            self.ripe = confirmable;
            return;
        }
        // Positions within one step share an entry, which ripens when the last of them surely has.
        match self.aging.back_mut() {
            Some(last) if now.saturating_sub(last.since) < CONFIRM_STEP => last.confirmable = confirmable,
            _ => {
                let ripens_at = now + self.confirm_delay + CONFIRM_STEP;
                self.aging.push_back(Aging { since: now, ripens_at, confirmable });
            }
        }
    }

    /// Nothing waits and nothing is being received: what the keepalive said is applied.
    fn advance_idle(&mut self) {
        let batch = |work: &UnderWay| matches!(work, UnderWay::Batch { .. });
        let quiet = self.queue.is_empty() && self.open.is_none() && !self.under_way.iter().any(batch);
        if let Some(mark) = self.idle_mark.filter(|_| quiet) {
            self.positions.applied = self.positions.applied.max(mark);
        }
    }

    /// Asks for what can be asked for.
    fn proceed(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while self.may_send(now)
            && let Some((batch, held)) = self.next_batch()
        {
            let oldest = batch.segments.first().map_or(PgTimestamp::default(), |first| first.commit_time);
            let (end, last, ahead) = (batch.end(), Last::of(&batch), batch.is_ahead());
            self.asked = end.unwrap_or(self.asked);
            self.open = end.is_none().then_some(oldest);
            self.under_way.push_back(UnderWay::Batch { end, last, held, oldest, ahead });
            effects.push(Effect::Apply(batch));
        }
        if self.store_at().is_some_and(|at| at <= now) {
            let (previous, to) = (self.asked, EndLsn::new(self.positions.applied.get()));
            self.asked = to;
            self.under_way.push_back(UnderWay::Store(to));
            effects.push(Effect::Store { previous, to });
        } else if self.flush_at().is_some_and(|at| at <= now) {
            self.under_way.push_back(UnderWay::Flush);
            effects.push(Effect::Flush);
        }
    }

    /// Whether the next batch, if there is one, can leave.
    fn may_send(&self, now: Duration) -> bool {
        if self.stopping || self.queue.is_empty() || self.reached() {
            return false;
        }
        let full =
            self.open.is_some() || self.queued.0 >= BATCH_COST_MAX || self.queued.1 >= BATCH_CHANGES_MAX;
        // The next place is a flush's that is due: full batches may come without end.
        let flush = self.flush_at().is_some_and(|at| at <= now);
        self.under_way.is_empty() || (full && self.under_way.len() + usize::from(flush) < UNDER_WAY_MAX)
    }

    /// When a position is to be stored that only keepalives moved.
    fn store_at(&self) -> Option<Duration> {
        let idle = self.under_way.is_empty() && self.open.is_none();
        if !idle || self.positions.applied <= self.stored {
            return None;
        }
        Some(if self.urgent() { Duration::ZERO } else { self.stored_at + IDLE_STORE_INTERVAL })
    }

    /// When the target is to be asked for its disk, if there is room and no transaction is open. Not twice at once; and the
    /// commit of a position that is being stored says the same.
    fn flush_at(&self) -> Option<Duration> {
        let asked = |work: &UnderWay| matches!(work, UnderWay::Flush | UnderWay::Store(_));
        let room = self.under_way.len() < UNDER_WAY_MAX && self.open.is_none();
        if !room || self.under_way.iter().any(asked) {
            return None;
        }
        let patience = if self.under_way.is_empty() { FLUSH_AFTER } else { FLUSH_AFTER_BUSY };
        let oldest = self.in_memory.front()?;
        Some(if self.urgent() { Duration::ZERO } else { oldest.since + patience })
    }

    /// Whether somebody waits for what is applied to be durable.
    fn urgent(&self) -> bool {
        let reaches = self.run_to.is_some_and(|run_to| self.positions.applied >= run_to);
        self.stopping || reaches || self.reached()
    }

    fn next_batch(&mut self) -> Option<(Batch, Held)> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut held: Option<Held> = None;
        let (mut cost, mut changes) = (0, 0);
        while let Some((next, _)) = self.queue.front() {
            let part = next.is_part();
            if self.is_beyond(next) {
                break;
            }
            let full = cost + next.cost > BATCH_COST_MAX || changes + next.changes.len() > BATCH_CHANGES_MAX;
            if !segments.is_empty() && (part || full) {
                break;
            }
            cost += next.cost;
            changes += next.changes.len();
            self.queued.0 -= next.cost;
            self.queued.1 -= next.changes.len();
            let (next, its) = self.queue.pop_front().expect("it was just seen");
            segments.push(next);
            match &mut held {
                Some(held) => held.merge(its),
                None => held = Some(its),
            }
            if part {
                break;
            }
        }
        let previous = self.asked;
        held.map(|held| (Batch { segments, previous, cost }, held))
    }

    /// Tells the source, on time or because it asked.
    fn report(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(oldest) = self.aging.front().filter(|oldest| oldest.ripens_at <= now) {
            self.ripe = oldest.confirmable;
            self.aging.pop_front();
        }
        if self.report_at() <= now {
            self.confirm(self.ripe);
            self.reported_at = now;
            effects.push(Effect::Report(self.positions));
        }
        // After it: a sender that ends looks at what it heard last.
        if std::mem::take(&mut self.reply_requested) {
            effects.push(Effect::Answer(self.positions));
        }
    }

    fn report_at(&self) -> Duration {
        self.reported_at + STATUS_INTERVAL
    }

    /// Has a transaction made to know the history by.
    fn mark(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.mark_at().is_some_and(|at| at <= now) {
            self.marked_at = Some(now);
            effects.push(Effect::Mark);
        }
    }

    /// When one is to be made: where there is none yet, and where the source would keep much WAL for the last one. While
    /// nothing is written at all, one follows the last that changes rows, and no more.
    fn mark_at(&self) -> Option<Duration> {
        let quiet = self.queue.is_empty() && self.open.is_none() && self.under_way.is_empty();
        if !quiet || self.stopping || self.run_to.is_some() {
            return None;
        }
        let interval = match self.known() {
            None => MARK_INTERVAL_MIN,
            Some(last) => match self.positions.applied.bytes_since(last.end) {
                MARK_BYTES_HURRY.. => MARK_INTERVAL_MIN,
                // The source keeps all of its WAL, and spills it to its disk again whenever a stream begins.
                _ if last.in_parts => MARK_INTERVAL_MIN,
                // It may have been open for long: the source keeps what was written meanwhile.
                passed if passed >= MARK_BYTES || !last.empty => MARK_INTERVAL,
                _ => return None,
            },
        };
        Some(self.marked_at.map_or(Duration::ZERO, |at| at.saturating_add(interval)))
    }

    /// The last transaction, if the history is known by it.
    fn known(&self) -> Option<Last> {
        self.last.filter(|last| last.commit >= self.copied)
    }

    fn confirm(&mut self, position: SourceLsn) {
        self.positions.confirmed = self.positions.confirmed.max(position);
        assert!(self.positions.confirmed <= self.positions.durable, "confirmed beyond durable");
    }

    /// Whether nothing more is to be begun.
    fn reached(&self) -> bool {
        let durable = self.run_to.is_some_and(|run_to| self.positions.durable >= run_to);
        let next_is_beyond = self.queue.front().is_some_and(|(next, _)| self.is_beyond(next));
        self.open.is_none() && (durable || next_is_beyond)
    }

    /// Whether a segment begins a transaction that the pipeline is not to run to.
    fn is_beyond(&self, segment: &Segment) -> bool {
        segment.first && self.run_to.is_some_and(|run_to| segment.commit_lsn.position() >= run_to)
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        // Inside a large transaction nothing can be flushed: what is in memory is not confirmed, and the next run sees
        // to it.
        let settled = self.in_memory.is_empty() || self.open.is_some();
        if !self.under_way.is_empty() || !settled {
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
