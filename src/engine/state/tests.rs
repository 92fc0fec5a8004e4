//! Scripts: events in, effects out, rule by rule. Random histories are in [`histories`].

#![allow(clippy::unwrap_used)]

use super::*;
use crate::assemble::Change;
use crate::engine::memory::Memory;
use crate::pg::{CommitLsn, Landmark, Xid};

mod histories;

const DELAY: Duration = Duration::from_secs(30);

thread_local! {
    /// What the scripts of one test hold: each event has taken its memory before it is fed.
    static MEMORY: Memory = Memory::new(usize::try_from(u32::MAX).unwrap());
}

/// A state and its clock; checks the invariants at every step, and writes the effects down in short.
struct Script {
    state: State,
    now: Duration,
    /// The end of the target's WAL, and of what is on its disk. Nothing that the source says is near these numbers.
    wal: u64,
    disk: u64,
}

impl Script {
    fn new(stored: u64, confirm_delay: Duration) -> Self {
        Self::of(State::new(Resume::at(EndLsn::new(stored)), confirm_delay, None))
    }

    fn running_to(stored: u64, run_to: u64) -> Self {
        Self::of(State::new(Resume::at(EndLsn::new(stored)), DELAY, Some(SourceLsn::new(run_to))))
    }

    /// Nothing is made on the source until there is a transaction to know the history by.
    fn of(mut state: State) -> Self {
        state.marked_at = Some(Duration::MAX);
        Self { state, now: Duration::ZERO, wal: 7_000_000, disk: 7_000_000 }
    }

    fn wait(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    /// Feeds the event, expects the effects; before them, the memory that is given back.
    fn on(&mut self, event: Event, expected: &[&str]) -> &mut Self {
        let what = format!("{event:?}");
        let before = self.state.positions();
        let (held, finished) = (MEMORY.with(Memory::held), self.state.finished);
        let effects = self.state.on(event, self.now);
        let released = held - MEMORY.with(Memory::held);
        let after = self.state.positions();
        check_positions(before, after);
        // After the end, what comes is dropped.
        let released = (released > 0 && !finished).then(|| format!("release {released}"));
        let effects: Vec<String> = released.into_iter().chain(effects.iter().map(short)).collect();
        assert_eq!(effects, expected, "after {what} at {:?}: {after:?}", self.now);
        let due = self.state.next_deadline();
        assert!(self.state.finished == due.is_none(), "after {what}: {due:?}");
        assert!(due.is_none_or(|due| due > self.now), "after {what} at {:?}: due at {due:?}", self.now);
        self
    }

    /// So long from now the state does something by itself, and nothing before.
    fn due(&mut self, millis: u64, expected: &[&str]) -> &mut Self {
        let due = self.now + Duration::from_millis(millis);
        assert_eq!(self.state.next_deadline(), Some(due));
        self.now = due - Duration::from_nanos(1);
        self.tick(&[]);
        self.now = due;
        self.tick(expected)
    }

    fn whole(&mut self, commit_lsn: u64, end: u64, expected: &[&str]) -> &mut Self {
        self.on(received(segment(commit_lsn, true, Some(end), 1)), expected)
    }

    fn keepalive(&mut self, wal_end: u64, expected: &[&str]) -> &mut Self {
        self.on(keepalive(wal_end, false, false), expected)
    }

    fn part(&mut self, commit_lsn: u64, first: bool, end: Option<u64>, expected: &[&str]) -> &mut Self {
        self.on(received(segment(commit_lsn, first, end, 5)), expected)
    }

    /// A part that goes ahead, and has a change.
    fn ahead(&mut self, at: u64, first: bool, expected: &[&str]) -> &mut Self {
        let change = Change::Truncate { relations: Vec::new(), cascade: false, restart_identity: false };
        let part = Segment { ahead: true, changes: vec![change], ..segment(at, first, None, 5) };
        self.on(received(part), expected)
    }

    fn gave_up(&mut self, expected: &[&str]) -> &mut Self {
        self.on(Event::GaveUp, expected)
    }

    fn abandoned(&mut self, expected: &[&str]) -> &mut Self {
        assert!(matches!(self.state.under_way.front(), Some(UnderWay::Abandon)), "nothing is abandoned");
        self.on(Event::Done(None), expected)
    }

    /// The oldest batch is done; if it was committed, that is on the target's disk already.
    fn applied(&mut self, expected: &[&str]) -> &mut Self {
        assert!(matches!(self.state.under_way.front(), Some(UnderWay::Batch { .. })), "no batch");
        let done = self.done(true);
        self.on(done, expected)
    }

    /// The position is stored, and on the target's disk already.
    fn stored(&mut self, expected: &[&str]) -> &mut Self {
        assert!(matches!(self.state.under_way.front(), Some(UnderWay::Store(_))), "no store");
        let done = self.done(true);
        self.on(done, expected)
    }

    /// The batch is committed, or the position stored, and the disk has nothing new.
    fn in_memory(&mut self, expected: &[&str]) -> &mut Self {
        assert!(!matches!(self.state.under_way.front(), None | Some(UnderWay::Flush)), "no commit");
        let done = self.done(false);
        self.on(done, expected)
    }

    /// The flush is done.
    fn flushed(&mut self, expected: &[&str]) -> &mut Self {
        assert!(matches!(self.state.under_way.front(), Some(UnderWay::Flush)), "no flush");
        let done = self.done(true);
        self.on(done, expected)
    }

    /// By itself the target wrote what it had this long before its WAL's end; nobody is told yet.
    fn writes_all_but(&mut self, rest: u64) -> &mut Self {
        self.disk = self.wal - rest;
        self
    }

    /// What the shell says when the oldest thing under way is done: each commit takes 10 bytes of WAL.
    fn done(&mut self, to_disk: bool) -> Event {
        if matches!(self.state.under_way.front(), Some(UnderWay::Batch { end: None, .. })) {
            return Event::Done(None);
        }
        self.wal += 10;
        if to_disk {
            self.disk = self.wal;
        }
        Event::Done(Some(Written { end: TargetLsn::new(self.wal), flushed: TargetLsn::new(self.disk) }))
    }

    /// `applied durable`.
    fn at(&self) -> (u64, u64) {
        let Positions { applied, durable, .. } = self.state.positions();
        (applied.get(), durable.get())
    }

    fn tick(&mut self, expected: &[&str]) -> &mut Self {
        self.on(Event::Deadline, expected)
    }

    fn stop(&mut self, expected: &[&str]) -> &mut Self {
        self.on(Event::Stop, expected)
    }
}

fn segment(commit_lsn: u64, first: bool, end: Option<u64>, cost: usize) -> Segment {
    Segment {
        xid: Xid::new(1),
        commit_lsn: CommitLsn::new(commit_lsn),
        commit_time: PgTimestamp::from_micros(i64::try_from(commit_lsn).unwrap()),
        ahead: false,
        comes_again: false,
        first,
        changes: Vec::new(),
        cost,
        end: end.map(EndLsn::new),
    }
}

fn received(segment: Segment) -> Event {
    let held = MEMORY.with(|memory| memory.hold_now(segment.cost));
    Event::Received(segment, held)
}

/// A transaction of so many changes, which cost nothing.
fn changes(commit_lsn: u64, changes: usize) -> Event {
    let change = Change::Truncate { relations: Vec::new(), cascade: false, restart_identity: false };
    let whole = segment(commit_lsn, true, Some(commit_lsn + 1), 1);
    received(Segment { changes: vec![change; changes], ..whole })
}

fn keepalive(wal_end: u64, reply_requested: bool, in_transaction: bool) -> Event {
    Event::Keepalive { wal_end: SourceLsn::new(wal_end), reply_requested, in_transaction }
}

fn check_positions(before: Positions, after: Positions) {
    let Positions { received, applied, durable, confirmed } = after;
    assert!(received >= applied && applied >= durable && durable >= confirmed, "{after:?}");
    assert!(received >= before.received && applied >= before.applied, "{before:?} to {after:?}");
    assert!(durable >= before.durable && confirmed >= before.confirmed, "{before:?} to {after:?}");
}

/// `apply previous: commit_lsn… =end`, `store previous: =end`, `flush`, `report received applied durable confirmed`,
/// `answer received applied durable`, `mark`.
fn short(effect: &Effect) -> String {
    match effect {
        Effect::Apply(batch) => {
            let commits: Vec<String> =
                batch.segments.iter().map(|segment| segment.commit_lsn.get().to_string()).collect();
            assert_eq!(batch.cost, batch.segments.iter().map(|segment| segment.cost).sum::<usize>());
            let end = batch.end().map_or(String::new(), |end| format!(" ={}", end.get()));
            format!("apply {}: {}{end}", batch.previous.get(), commits.join(" "))
        }
        Effect::Store { previous, to } => format!("store {}: ={}", previous.get(), to.get()),
        Effect::Abandon => "abandon".to_owned(),
        Effect::Flush => "flush".to_owned(),
        Effect::Report(Positions { received, applied, durable, confirmed }) => {
            format!("report {} {} {} {}", received.get(), applied.get(), durable.get(), confirmed.get())
        }
        Effect::Answer(Positions { received, applied, durable, .. }) => {
            format!("answer {} {} {}", received.get(), applied.get(), durable.get())
        }
        Effect::Mark => "mark".to_owned(),
        Effect::Finish(finish) => format!("finish {finish:?}"),
    }
}

#[test]
fn what_comes_while_a_batch_is_under_way_is_the_next_batch() {
    let mut script = Script::new(100, DELAY);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.whole(130, 140, &[]).whole(140, 150, &[]);
    script.applied(&["release 1", "apply 120: 130 140 =150"]);
    script.applied(&["release 2"]);
    script.whole(160, 170, &["apply 150: 160 =170"]).applied(&["release 1"]);
}

#[test]
fn what_goes_ahead_is_committed_or_never_happened() {
    // Its commit comes next.
    let mut script = Script::new(100, DELAY);
    script.ahead(110, true, &["apply 100: 110"]).ahead(110, false, &["apply 100: 110"]);
    assert!(script.state.is_ahead() && script.state.last_change().is_none());
    script.applied(&["release 5"]).applied(&["release 5"]);
    script.part(130, false, Some(140), &["apply 100: 130 =140"]);
    assert!(!script.state.is_ahead(), "it is known to commit");
    assert_eq!(script.state.last_change(), Some(SourceLsn::new(130)));
    script.applied(&["release 5"]);
    assert_eq!(script.at(), (140, 140));

    // Another one commits first: what was asked for is undone, before anything else.
    let mut script = Script::new(100, DELAY);
    script.ahead(110, true, &["apply 100: 110"]).ahead(110, false, &["apply 100: 110"]);
    script.ahead(110, false, &[]).gave_up(&["release 5", "abandon"]);
    script.whole(120, 125, &[]).applied(&["release 5"]).applied(&["release 5"]);
    assert!(script.state.is_ahead(), "it may fail yet");
    script.abandoned(&["apply 100: 120 =125"]);
    assert!(!script.state.is_ahead() && script.state.last_change().is_none());
    script.applied(&["release 1"]).part(130, true, None, &["apply 125: 130"]);
    script.part(130, false, Some(140), &["apply 125: 130 =140"]);
    script.applied(&["release 5"]).applied(&["release 5"]);
    assert_eq!(script.at(), (140, 140));

    // It was still queued, behind another one.
    let mut script = Script::new(100, DELAY);
    script.whole(110, 115, &["apply 100: 110 =115"]).whole(120, 125, &[]);
    script.ahead(116, true, &[]).gave_up(&["release 5"]);
    script.applied(&["release 1", "apply 115: 120 =125"]).applied(&["release 1"]);
    assert_eq!(script.at(), (125, 125));

    // Behind the parts of another large one, that one stays.
    let mut script = Script::new(100, DELAY);
    script.part(110, true, None, &["apply 100: 110"]).part(110, false, None, &["apply 100: 110"]);
    script.part(110, false, Some(115), &[]).ahead(116, true, &[]).gave_up(&["release 5"]);
    script.applied(&["release 5", "apply 100: 110 =115"]).applied(&["release 5"]).applied(&["release 5"]);
    assert_eq!(script.at(), (115, 115));

    // Nothing came of it yet.
    Script::new(100, DELAY).gave_up(&[]);
    // Asked to stop, it is not waited for.
    let mut script = Script::new(100, DELAY);
    script.ahead(110, true, &["apply 100: 110"]).stop(&[]);
    script.applied(&["release 5", "report 100 100 100 0", "finish Stopped"]);
}

#[test]
fn batches_have_a_bound() {
    let check = |events: Vec<Event>, batches: &[&str]| {
        let mut script = Script::new(100, DELAY);
        // Until this first one is applied, the others gather, or leave behind it when they are many.
        script.whole(110, 111, &["apply 100: 110 =111"]);
        let mut effects: Vec<Effect> =
            events.into_iter().flat_map(|event| script.state.on(event, Duration::ZERO)).collect();
        while !script.state.under_way.is_empty() {
            let done = script.done(true);
            effects.extend(script.state.on(done, Duration::ZERO));
            assert!(script.state.under_way.len() <= UNDER_WAY_MAX);
        }
        assert_eq!((script.state.queued, MEMORY.with(Memory::held)), ((0, 0), 0));
        let mut seen = Vec::new();
        for effect in &effects {
            if let Effect::Apply(batch) = effect {
                assert!(batch.cost <= BATCH_COST_MAX || batch.segments.len() == 1);
                seen.push(short(effect));
            }
        }
        assert_eq!(seen, batches);
    };
    let of_cost = |costs: &[usize], batches: &[&str]| {
        let whole = |(&cost, at)| received(segment(at, true, Some(at + 1), cost));
        check(costs.iter().zip((200..).step_by(10)).map(whole).collect(), batches);
    };
    let (most, half) = (BATCH_COST_MAX, BATCH_COST_MAX / 2);
    of_cost(&[half, half, 1], &["apply 111: 200 210 =211", "apply 211: 220 =221"]);
    of_cost(&[half + 1, half], &["apply 111: 200 =201", "apply 201: 210 =211"]);
    of_cost(&[1, most, 1], &["apply 111: 200 =201", "apply 201: 210 =211", "apply 211: 220 =221"]);
    // One row may be larger than any bound.
    of_cost(&[64 * most, 1], &["apply 111: 200 =201", "apply 201: 210 =211"]);

    let of_changes = |numbers: &[usize], batches: &[&str]| {
        let whole = |(&number, at)| changes(at, number);
        check(numbers.iter().zip((200..).step_by(10)).map(whole).collect(), batches);
    };
    let (most, half) = (BATCH_CHANGES_MAX, BATCH_CHANGES_MAX / 2);
    of_changes(&[half, half, 1], &["apply 111: 200 210 =211", "apply 211: 220 =221"]);
    of_changes(&[half + 1, half], &["apply 111: 200 =201", "apply 201: 210 =211"]);
    of_changes(&[1, most], &["apply 111: 200 =201", "apply 201: 210 =211"]);
    of_changes(&[2 * most, 1], &["apply 111: 200 =201", "apply 201: 210 =211"]);
}

#[test]
fn a_full_batch_leaves_behind_another_and_a_small_one_waits() {
    let mut script = Script::new(100, DELAY);
    let of_cost = |at, cost| received(segment(at, true, Some(at + 1), cost));
    script.whole(110, 111, &["apply 100: 110 =111"]);
    script.on(of_cost(200, BATCH_COST_MAX - 1), &[]).wait(10).tick(&[]);
    script.on(of_cost(210, 1), &["apply 111: 200 210 =211"]);
    // There is no third.
    script.on(of_cost(220, BATCH_COST_MAX), &[]).whole(230, 231, &[]);
    // They are done in their order, and the next one leaves when there is room.
    assert_eq!(script.at(), (100, 100));
    script.applied(&["release 1", "apply 211: 220 =221"]);
    assert_eq!(script.at(), (111, 111));
    script.applied(&[&format!("release {BATCH_COST_MAX}")]);
    assert_eq!(script.at(), (211, 211));
    // What is left is small: it leaves when nothing is under way.
    script.applied(&[&format!("release {BATCH_COST_MAX}"), "apply 221: 230 =231"]);
    script.applied(&["release 1"]);
    assert_eq!(script.at(), (231, 231));

    // Full by the number of changes.
    let mut script = Script::new(100, DELAY);
    script.whole(110, 111, &["apply 100: 110 =111"]);
    script.on(changes(200, BATCH_CHANGES_MAX - 1), &[]).on(changes(210, 1), &["apply 111: 200 210 =211"]);
}

#[test]
fn a_large_transaction_is_applied_alone_and_in_parts() {
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.whole(130, 140, &[]).part(200, true, None, &[]);
    // The first part does not go along with what was there before it.
    script.applied(&["release 1", "apply 120: 130 =140"]).applied(&["release 1", "apply 140: 200"]);
    // The next one leaves behind it, however small; there is no third.
    script.part(200, false, None, &["apply 140: 200"]).part(200, false, None, &[]);
    script.applied(&["release 5", "apply 140: 200"]);
    assert_eq!(script.state.oldest_unapplied(), Some(PgTimestamp::from_micros(200)));
    // In the middle nothing moves, whatever is asked and however long it takes.
    script.applied(&["release 5"]).applied(&["release 5"]);
    assert_eq!(script.state.oldest_unapplied(), Some(PgTimestamp::from_micros(200)));
    script.on(keepalive(150, true, true), &["answer 150 140 140"]);
    script.wait(60_000).tick(&["report 150 140 140 140"]);
    // Nor does the last part with what comes after it.
    script.part(200, false, None, &["apply 140: 200"]);
    script.part(200, false, Some(210), &["apply 140: 200 =210"]).whole(220, 230, &[]);
    script.applied(&["release 5"]);
    assert_eq!(script.at(), (140, 140));
    script.applied(&["release 5", "apply 210: 220 =230"]).applied(&["release 1"]);
    assert_eq!(script.state.oldest_unapplied(), None);
}

#[test]
fn oldest_unapplied() {
    let mut script = Script::new(100, DELAY);
    let check = |script: &Script, expected: Option<i64>| {
        assert_eq!(script.state.oldest_unapplied(), expected.map(PgTimestamp::from_micros));
    };
    check(&script, None);
    script.whole(110, 120, &["apply 100: 110 =120"]).whole(130, 140, &[]);
    check(&script, Some(110));
    script.applied(&["release 1", "apply 120: 130 =140"]);
    check(&script, Some(130));
    script.applied(&["release 1"]).keepalive(500, &[]);
    check(&script, None);
    script.wait(10_000).tick(&["store 140: =500", "report 500 500 140 0"]).whole(510, 520, &[]);
    check(&script, Some(510));
    // Of several under way it is the oldest, also when that is a flush or a part.
    script.stored(&["apply 500: 510 =520"]).part(530, true, None, &[]);
    script.in_memory(&["release 1", "apply 520: 530"]);
    check(&script, Some(530));
    script.applied(&["release 5"]);
    check(&script, Some(530));
    script.part(530, false, Some(540), &["apply 520: 530 =540"]).whole(550, 560, &[]);
    check(&script, Some(530));
    script.wait(5_000).tick(&["flush", "report 560 520 500 0"]).applied(&["release 5"]);
    check(&script, Some(550));
    script.flushed(&["apply 540: 550 =560"]);
    check(&script, Some(550));
}

#[test]
fn the_last_change_counts_from_when_it_is_received() {
    let mut script = Script::new(100, DELAY);
    let check = |script: &Script, expected: Option<u64>| {
        assert_eq!(script.state.last_change(), expected.map(SourceLsn::new));
    };
    script.whole(110, 120, &["apply 100: 110 =120"]);
    check(&script, None);
    script.on(changes(130, 2), &[]);
    check(&script, Some(130));
    script.whole(140, 150, &[]).keepalive(500, &[]).applied(&["release 1", "apply 120: 130 140 =150"]);
    check(&script, Some(130));
    script.stop(&[]).on(changes(510, 1), &[]);
    check(&script, Some(510));
}

#[test]
fn keepalives_count_only_when_nothing_is_left_to_apply() {
    let mut script = Script::new(100, DELAY);
    // Quiet: applied at once, stored rarely.
    script.keepalive(105, &[]);
    assert_eq!(script.state.positions().applied.get(), 105);
    // Under way, then queued: it waits for what came before it.
    script.whole(110, 120, &["apply 100: 110 =120"]).whole(130, 140, &[]).keepalive(150, &[]);
    assert_eq!(script.state.positions().applied.get(), 105);
    script.applied(&["release 1", "apply 120: 130 =140"]);
    assert_eq!(script.state.positions().applied.get(), 120);
    script.applied(&["release 1"]);
    assert_eq!(script.state.positions().applied.get(), 150);
    // Being received: not at all, not even when that is over.
    script.on(keepalive(155, false, true), &[]);
    assert_eq!(script.state.positions().applied.get(), 150);
    script.whole(160, 170, &["apply 140: 160 =170"]).on(keepalive(158, false, true), &[]);
    script.applied(&["release 1"]);
    assert_eq!(script.state.positions().applied.get(), 170);
    // Less than what is applied: the server starts over from its restart_lsn.
    script.keepalive(90, &[]);
    assert_eq!(script.state.positions().applied.get(), 170);
    assert_eq!(script.state.positions().received.get(), 170);
}

#[test]
fn a_keepalive_between_the_parts_of_a_large_transaction_moves_nothing() {
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(105, &[]);
    script.part(200, true, None, &["apply 100: 200"]).applied(&["release 5"]);
    script.on(keepalive(106, false, true), &[]);
    script.wait(20_000).tick(&["report 106 105 100 100"]);
    // Neither does one that was waiting for what comes before the transaction.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).keepalive(150, &[]);
    script.part(200, true, None, &[]);
    script.applied(&["release 1", "apply 120: 200"]).applied(&["release 5"]);
    assert_eq!(script.state.positions().applied.get(), 120);
}

#[test]
fn an_idle_position_is_stored_before_it_is_confirmed_and_rarely() {
    let mut script = Script::new(100, Duration::ZERO);
    script.wait(5_000).keepalive(200, &["report 200 200 100 100"]);
    script.wait(4_990).keepalive(300, &["report 300 300 100 100"]);
    script.wait(10).tick(&["store 100: =300"]);
    // Meanwhile nothing else begins, nothing is confirmed.
    script.whole(400, 410, &[]).wait(1_000).tick(&["report 410 300 100 100"]);
    script.stored(&["apply 300: 400 =410"]).wait(1_000).tick(&["report 410 300 300 300"]);
    script.applied(&["release 1"]);
    // A commit stores its own position, and the time counts from there.
    script.keepalive(500, &[]).wait(9_999).tick(&["report 500 500 410 410"]);
    script.wait(1).tick(&["store 410: =500"]).stored(&[]);
    // Nothing new, nothing to store.
    script.wait(60_000).tick(&["report 500 500 500 500"]);
}

#[test]
fn reports_come_on_time() {
    let mut script = Script::new(100, Duration::ZERO);
    script.wait(999).tick(&[]).wait(1).tick(&["report 100 100 100 100"]);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    // Also while a batch takes long.
    for _ in 0..3 {
        script.wait(999).tick(&[]).wait(1).tick(&["report 120 100 100 100"]);
    }
    // Not for each batch, which would be many.
    script.wait(10).applied(&["release 1"]).whole(130, 140, &["apply 120: 130 =140"]).applied(&["release 1"]);
    script.wait(990).tick(&["report 140 140 140 140"]);
}

#[test]
fn confirmations_ripen_in_order() {
    let mut script = Script::new(100, DELAY);
    script.tick(&[]);
    let mut apply = |millis: u64, previous: u64, end: u64| {
        script.now = Duration::from_millis(millis);
        let effects = script.state.on(received(segment(end - 1, true, Some(end), 1)), script.now);
        assert_eq!(short(&effects[0]), format!("apply {previous}: {} ={end}", end - 1));
        let done = script.done(true);
        script.state.on(done, script.now);
    };
    apply(1_000, 100, 200);
    apply(1_050, 200, 300);
    // A step later: an entry of its own.
    apply(1_100, 300, 400);
    apply(5_000, 400, 500);
    let mut confirmed = |millis: u64| {
        script.now = Duration::from_millis(millis);
        script.state.on(Event::Deadline, script.now);
        // Whatever is confirmed in this moment has ripened in this moment.
        script.state.ripe.get()
    };
    assert_eq!(confirmed(30_099), 0);
    assert_eq!(confirmed(30_100), 100);
    // Both wait for the younger one.
    assert_eq!(confirmed(31_000), 100);
    assert_eq!(confirmed(31_099), 100);
    assert_eq!(confirmed(31_100), 300);
    assert_eq!(confirmed(31_199), 300);
    assert_eq!(confirmed(31_200), 400);
    assert_eq!(confirmed(35_099), 400);
    assert_eq!(confirmed(35_100), 500);
    script.wait(1_000).tick(&["report 500 500 500 500"]);
}

#[test]
fn what_was_resumed_from_ripens_too() {
    // The run before may have stored it a moment ago.
    let mut script = Script::new(100, DELAY);
    script.now = Duration::from_secs(1_000);
    script.tick(&["report 100 100 100 0"]).wait(30_099).tick(&["report 100 100 100 0"]);
    script.wait(1_000).tick(&["report 100 100 100 100"]);
    Script::new(100, Duration::ZERO).wait(1_000).tick(&["report 100 100 100 100"]);
}

#[test]
fn a_question_is_answered_at_once_and_confirms_nothing() {
    let mut script = Script::new(100, DELAY);
    script.on(keepalive(100, true, false), &["answer 100 100 100"]);
    // Asked once, answered once.
    script.wait(1).tick(&[]);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.on(keepalive(120, true, false), &["answer 120 100 100"]);
    script.applied(&["release 1"]);
    script.on(keepalive(120, true, false), &["answer 120 120 120"]);
    // Nothing is stored or flushed for it, nor in the middle of a transaction.
    script.on(keepalive(200, true, false), &["answer 200 200 120"]);
    script.on(keepalive(320, true, true), &["answer 320 200 120"]);
    // However often it asks, what is confirmed is said on time, and before the answer.
    for _ in 0..9 {
        script.wait(100).on(keepalive(320, true, true), &["answer 320 200 120"]);
    }
    script.wait(99).on(keepalive(320, true, true), &["report 320 200 120 0", "answer 320 200 120"]);
    assert_eq!(script.state.positions().confirmed, SourceLsn::ZERO);
}

/// What is stored at 300, the last transaction that of 110 to 120.
fn known() -> Resume {
    let landmark = Landmark {
        commit_lsn: CommitLsn::new(110),
        end: EndLsn::new(120),
        xid: Xid::new(1),
        commit_time: PgTimestamp::from_micros(110),
    };
    Resume { landmark: Some(landmark), ..Resume::at(EndLsn::new(300)) }
}

/// A transaction that comes again, from where a stream is opened at its commit.
fn again(commit_lsn: u64, end: u64) -> Event {
    received(Segment { comes_again: true, ..segment(commit_lsn, true, Some(end), 1) })
}

#[test]
fn the_last_transaction_is_not_confirmed_away() {
    let mut script = Script::new(100, Duration::ZERO);
    script.on(again(110, 120), &["apply 100: 110 =120"]).applied(&["release 1"]);
    script.wait(1_000).tick(&["report 120 120 120 110"]);
    // Neither by a keepalive, stored or not, nor by one that may not come again.
    script.keepalive(300, &[]).wait(10_000).tick(&["store 120: =300", "report 300 300 120 110"]);
    script.stored(&[]).wait(1_000).tick(&["report 300 300 300 110"]);
    script.whole(310, 320, &["apply 300: 310 =320"]).applied(&["release 1"]);
    script.wait(1_000).tick(&["report 320 320 320 110"]);
    // The next one of its kind is as good, in a batch with others, too.
    script.on(again(330, 340), &["apply 320: 330 =340"]).on(again(350, 360), &[]).whole(370, 380, &[]);
    script.applied(&["release 1", "apply 340: 350 370 =380"]).wait(1_000).tick(&["report 380 340 340 330"]);
    script.applied(&["release 2"]).wait(1_000).tick(&["report 380 380 380 350"]);

    // Resumed from: it has come again.
    let resume = known();
    assert_eq!(resume.opened_at(), SourceLsn::new(110));
    let mut script = Script::of(State::new(resume, Duration::ZERO, None));
    script.wait(1_000).tick(&["report 300 300 300 110"]);
}

#[test]
fn a_transaction_is_made_where_the_source_would_keep_much() {
    let (file, much) = (MARK_BYTES, MARK_BYTES_HURRY);
    // There is none since the last copy of a table.
    let resume = known();
    let state = |copied| State::new(resume, DELAY, None).with_copies_of(SourceLsn::new(copied));
    assert_eq!(state(111).on(Event::Deadline, Duration::ZERO).len(), 1);
    assert_eq!(state(110).on(Event::Deadline, Duration::ZERO).len(), 0);
    // There is none yet: at once, and again when it did not come.
    let mut script = Script::of(State::new(Resume::at(EndLsn::new(100)), Duration::ZERO, None));
    script.state.marked_at = None;
    script.tick(&["mark"]).wait(900).tick(&[]).wait(9_100).tick(&["mark", "report 100 100 100 100"]);
    script.on(again(110, 120), &["apply 100: 110 =120"]).applied(&["release 1"]);
    // Nothing is written: never. Less than a file's: never.
    script.wait(601_000).tick(&["report 120 120 120 110"]);
    script.keepalive(119 + file, &[&format!("store 120: ={}", 119 + file)]).stored(&[]);
    // A file's: when the last one is ten minutes old.
    script.keepalive(120 + file, &["mark"]).keepalive(121 + file, &[]);
    let applied = 121 + file;
    script.wait(599_000);
    script.tick(&[
        &format!("store {}: ={applied}", 119 + file),
        &format!("report {applied} {applied} {} 110", 119 + file),
    ]);
    script.stored(&[]).wait(1_000).tick(&["mark", &format!("report {applied} {applied} {applied} 110")]);
    // Much more: sooner.
    script.keepalive(120 + much, &[]).wait(9_999);
    let (before, applied) = (applied, 120 + much);
    let store = format!("store {before}: ={applied}");
    script.tick(&[&store, &format!("report {applied} {applied} {before} 110")]).stored(&[]);
    script.wait(1).tick(&["mark"]);
    // One follows the last that changes rows, soon where it was large.
    for (in_parts, millis) in [(false, 600_000), (true, 10_000)] {
        let mut script = Script::new(100, Duration::ZERO);
        script.state.last =
            Some(Last { commit: SourceLsn::new(110), end: SourceLsn::new(120), empty: false, in_parts });
        script.state.marked_at = Some(Duration::ZERO);
        let marks = |script: &mut Script| {
            let effects = script.state.on(Event::Deadline, script.now);
            effects.iter().filter(|effect| matches!(effect, Effect::Mark)).count()
        };
        script.wait(millis - 1);
        assert_eq!(marks(&mut script), 0, "{in_parts}");
        script.wait(1);
        assert_eq!(marks(&mut script), 1, "{in_parts}");
    }
    // Not while something is under way, and not by a pipeline that ends.
    script.wait(10_000).whole(
        much * 2,
        much * 2 + 1,
        &[
            &format!("apply {applied}: {} ={}", much * 2, much * 2 + 1),
            &format!("report {} {applied} {applied} 110", much * 2 + 1),
        ],
    );
    let at = much * 2 + 1;
    script.stop(&[]).applied(&["release 1", &format!("report {at} {at} {at} 110"), "finish Stopped"]);
    let mut script = Script::running_to(100, 200);
    script.state.marked_at = None;
    script.tick(&[]);
}

#[test]
fn deadlines_are_named() {
    // The first event tells the time; then the source hears of us once a second.
    let mut script = Script::new(100, Duration::ZERO);
    assert_eq!(script.state.next_deadline(), Some(Duration::ZERO));
    script.tick(&[]).due(1_000, &["report 100 100 100 100"]).due(1_000, &["report 100 100 100 100"]);
    // A commit that is not on the disk; on it, nothing but the report.
    script.wait(500).whole(110, 120, &["apply 100: 110 =120"]);
    script.in_memory(&["release 1"]).due(200, &["flush"]).due(300, &["report 120 120 100 100"]);
    script.flushed(&[]).due(1_000, &["report 120 120 120 120"]);
    script.whole(130, 140, &["apply 120: 130 =140"]).applied(&["release 1"]);
    script.due(1_000, &["report 140 140 140 140"]);
    // While a batch is under way, later.
    script.whole(150, 160, &["apply 140: 150 =160"]).in_memory(&["release 1"]);
    script.whole(170, 180, &["apply 160: 170 =180"]).wait(4_500).tick(&["report 180 160 140 140"]);
    script.due(500, &["flush"]).in_memory(&["release 1"]).flushed(&[]);
    // A position that only keepalives moved, ten seconds after the last commit.
    script.keepalive(500, &[]).wait(9_900).tick(&["report 500 500 180 180"]);
    script.due(100, &["store 180: =500"]).due(900, &["report 500 500 180 180"]);
    // Behind it nothing is flushed, though somebody waits: its commit says how far the disk is.
    script.stop(&[]).tick(&[]).in_memory(&["flush"]).flushed(&["report 500 500 500 500", "finish Stopped"]);
    assert_eq!(script.state.next_deadline(), None);

    // A transaction to know the history by: at once, and again when it did not come.
    let mut script = Script::of(State::new(Resume::at(EndLsn::new(100)), Duration::ZERO, None));
    script.state.marked_at = None;
    script.tick(&["mark"]).wait(9_900).tick(&["report 100 100 100 100"]).due(100, &["mark"]);
    // Not while a batch is under way.
    script.wait(9_900).tick(&["report 100 100 100 100"]).whole(110, 120, &["apply 100: 110 =120"]);
    script.due(1_000, &["report 120 100 100 100"]).applied(&["release 1", "mark"]);
    // Inside a large transaction the report alone is due, whatever else would be.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).keepalive(150, &[]).part(200, true, None, &[]);
    script.in_memory(&["release 1", "apply 120: 200"]).applied(&["release 5"]);
    script.due(1_000, &["report 150 120 100 100"]).due(1_000, &["report 150 120 100 100"]);
}

#[test]
fn stop() {
    // With nothing to do, at once; and nothing comes after.
    let mut script = Script::new(100, DELAY);
    script.stop(&["report 100 100 100 0", "finish Stopped"]);
    script.wait(60_000).tick(&[]).stop(&[]).whole(110, 120, &[]).keepalive(500, &[]);

    // The batch under way is finished, what is queued is left.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).whole(130, 140, &[]).stop(&[]);
    script.wait(10).tick(&[]).whole(150, 160, &[]);
    script.applied(&["release 1", "report 160 120 120 120", "finish Stopped"]);

    // What has ripened is confirmed, whether a report is due or not.
    let mut script = Script::new(100, DELAY);
    script.whole(110, 120, &["apply 100: 110 =120"]).applied(&["release 1"]);
    script.wait(30_000).tick(&["report 120 120 120 0"]);
    script.wait(200).stop(&["report 120 120 120 120", "finish Stopped"]);

    // An idle position is stored first.
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(200, &[]).stop(&["store 100: =200"]).keepalive(300, &[]);
    script.stored(&["store 200: =300"]).stored(&["report 300 300 300 300", "finish Stopped"]);

    // That is what is applied, not what is received.
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(150, &[]).on(keepalive(155, false, true), &[]).stop(&["store 100: =150"]);

    // One is being stored: it is awaited, and what came meanwhile is left.
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(200, &[]).wait(10_000).tick(&["store 100: =200", "report 200 200 100 100"]);
    script.stop(&[]).whole(210, 220, &[]);
    script.stored(&["report 220 200 200 200", "finish Stopped"]);

    // Of two under way both are finished.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 111, &["apply 100: 110 =111"]);
    script.on(changes(200, BATCH_CHANGES_MAX), &["apply 111: 200 =201"]).whole(210, 211, &[]).stop(&[]);
    script.applied(&["release 1"]).applied(&["release 1", "report 211 201 201 201", "finish Stopped"]);

    // In the middle of a large transaction: it is rolled back, and comes again.
    let mut script = Script::new(100, Duration::ZERO);
    script.part(200, true, None, &["apply 100: 200"]).part(200, false, None, &["apply 100: 200"]).stop(&[]);
    script.applied(&["release 5"]).applied(&["release 5", "report 100 100 100 100", "finish Stopped"]);
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(150, &[]).part(200, true, None, &["apply 100: 200"]).applied(&["release 5"]);
    script.stop(&["report 150 150 100 100", "finish Stopped"]);
}

#[test]
fn a_stop_waits_for_the_disk() {
    // At once, not when the time has come.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]).stop(&["flush"]);
    script.wait(10).tick(&[]).flushed(&["report 120 120 120 120", "finish Stopped"]);
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).stop(&[]);
    script.in_memory(&["release 1", "flush"]).flushed(&["report 120 120 120 120", "finish Stopped"]);
    // A flush is under way already.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.wait(200).tick(&["flush"]).stop(&[]).flushed(&["report 120 120 120 120", "finish Stopped"]);
    // An idle position is stored, then flushed, with what was committed before it.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]).keepalive(150, &[]);
    script.stop(&["store 120: =150"]).in_memory(&["flush"]);
    script.flushed(&["report 150 150 150 150", "finish Stopped"]);
}

#[test]
fn a_stop_inside_a_large_transaction_does_not_wait_for_the_disk() {
    // Nothing can be flushed there; what was committed before it is not confirmed.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).part(200, true, None, &[]);
    script.in_memory(&["release 1", "apply 120: 200"]).applied(&["release 5"]);
    script.stop(&["report 120 120 100 100", "finish Stopped"]);
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).part(200, true, None, &[]);
    script.in_memory(&["release 1", "apply 120: 200"]).stop(&[]);
    script.applied(&["release 5", "report 120 120 100 100", "finish Stopped"]);
}

#[test]
fn run_to() {
    // Already there.
    Script::running_to(100, 100).tick(&["report 100 100 100 0", "finish Reached"]);
    Script::running_to(100, 50).whole(110, 120, &["report 120 100 100 0", "finish Reached"]);

    // By a transaction that ends there, or beyond.
    for end in [200, 205] {
        let mut script = Script::running_to(100, 200);
        script.whole(110, 120, &["apply 100: 110 =120"]).applied(&["release 1"]);
        script.whole(199, end, &[&format!("apply 120: 199 ={end}")]);
        script.applied(&["release 1", &format!("report {end} {end} {end} 0"), "finish Reached"]);
    }

    // By a keepalive, which is stored at once.
    let mut script = Script::running_to(100, 200);
    script.keepalive(199, &[]).keepalive(200, &["store 100: =200"]);
    script.stored(&["report 200 200 200 0", "finish Reached"]);

    // By the first transaction that commits later: it is not begun, and no batch takes it along.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.whole(130, 140, &[]).whole(200, 210, &[]).whole(220, 230, &[]);
    script.applied(&["release 1", "apply 120: 130 =140"]);
    script.applied(&["release 1", "report 230 140 140 0", "finish Reached"]);
    let mut script = Script::running_to(100, 200);
    script.part(200, true, None, &["report 100 100 100 0", "finish Reached"]);

    // An idle position that is due is stored on the way.
    let mut script = Script::running_to(100, 200);
    script.keepalive(150, &[]).wait(10_000);
    script.whole(210, 220, &["store 100: =150", "report 220 150 100 0"]);
    script.stored(&["report 220 150 150 0", "finish Reached"]);

    // A large one that is open is finished, and the one after it is left.
    let mut script = Script::running_to(100, 200);
    script.part(199, true, None, &["apply 100: 199"]).applied(&["release 5"]);
    script.part(199, false, Some(201), &["apply 100: 199 =201"]).whole(202, 210, &[]);
    script.applied(&["release 5", "report 210 201 201 0", "finish Reached"]);

    // Stopped before.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]).stop(&[]);
    script.applied(&["release 1", "report 120 120 120 0", "finish Stopped"]);
}

#[test]
fn run_to_waits_for_the_disk() {
    // By a transaction that ends there.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.whole(190, 200, &["apply 120: 190 =200"]).in_memory(&["release 1", "flush"]);
    script.wait(10).tick(&[]).flushed(&["report 200 200 200 0", "finish Reached"]);
    // By a keepalive.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.keepalive(200, &["store 120: =200"]).in_memory(&["flush"]);
    script.flushed(&["report 200 200 200 0", "finish Reached"]);
    // By the first transaction that commits later.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.whole(200, 210, &["flush"]).flushed(&["report 210 120 120 0", "finish Reached"]);
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]).whole(200, 210, &[]);
    script.in_memory(&["release 1", "flush"]).flushed(&["report 210 120 120 0", "finish Reached"]);
    // It was stored there, and that is on the disk: nothing to wait for.
    let mut script = Script::running_to(100, 120);
    script.keepalive(130, &["store 100: =130"]).stored(&["report 130 130 130 0", "finish Reached"]);
}

#[test]
fn a_commit_is_durable_when_the_disk_has_all_of_it() {
    let mut script = Script::new(100, Duration::ZERO);
    let mut commit = |at: u64, wrote_all_but: Option<u64>, durable: u64| {
        let apply = format!("apply {}: {at} ={}", at - 10, at + 10);
        script.whole(at, at + 10, &[&apply]);
        if let Some(rest) = wrote_all_but {
            script.writes_all_but(rest);
        }
        script.in_memory(&["release 1"]);
        assert_eq!(script.at(), (at + 10, durable), "committed at {at}");
    };
    commit(110, None, 100);
    commit(130, None, 100);
    // Just not the second one; just the second one; and nothing later said so again.
    commit(150, Some(1), 120);
    commit(170, Some(10), 140);
    commit(190, None, 140);
    commit(210, Some(0), 200);
    // Only what is durable is confirmed.
    script.wait(999).tick(&["flush"]).wait(1).tick(&["report 220 220 200 200"]);
    script.flushed(&[]).wait(1_000).tick(&["report 220 220 220 220"]);
}

#[test]
fn the_disk_is_asked_when_idle() {
    let mut script = Script::new(100, Duration::ZERO);
    // What is on the disk already needs nothing.
    script.whole(110, 120, &["apply 100: 110 =120"]).applied(&["release 1"]).wait(900).tick(&[]);
    script.whole(130, 140, &["apply 120: 130 =140"]).in_memory(&["release 1"]);
    script.wait(199).tick(&["report 140 140 120 120"]).wait(1).tick(&["flush"]);
    // Not twice at once.
    script.wait(500).tick(&[]).wait(500).tick(&["report 140 140 120 120"]);
    // Nothing leaves behind it that is small.
    script.whole(150, 160, &[]).flushed(&["apply 140: 150 =160"]);
    assert_eq!(script.at(), (140, 140));
    // The next commit has its own 200 ms; the oldest one counts.
    script.in_memory(&["release 1"]).wait(150).whole(170, 180, &["apply 160: 170 =180"]);
    script.in_memory(&["release 1"]).wait(49).tick(&[]).wait(1).tick(&["flush"]);
    script.flushed(&[]).wait(500).tick(&[]);
    assert_eq!(script.at(), (180, 180));
    // A stored position is a commit, too.
    script.keepalive(500, &[]).wait(9_300).tick(&["report 500 500 180 180"]);
    script.wait(200).tick(&["store 180: =500"]).in_memory(&[]);
    script.wait(199).tick(&[]).wait(1).tick(&["flush"]).flushed(&[]);
    assert_eq!(script.at(), (500, 500));
}

#[test]
fn a_keepalive_does_not_hold_a_flush_up() {
    // The source sends one after each commit; its position is stored rarely.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]).keepalive(150, &[]);
    script.wait(199).tick(&[]).wait(1).tick(&["flush"]).flushed(&[]);
    assert_eq!(script.at(), (150, 120));
}

#[test]
fn the_disk_is_asked_less_often_when_busy() {
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.whole(130, 140, &["apply 120: 130 =140"]);
    script.wait(4_999).tick(&["report 140 120 100 100"]).wait(1).tick(&["flush"]);
    // Behind the batch, whose commit is then on the disk with the others; not twice at once.
    script.in_memory(&["release 1"]).wait(4_999).tick(&["report 140 140 100 100"]).wait(1).tick(&[]);
    script.flushed(&[]);
    assert_eq!(script.at(), (140, 140));
    // What the next batch's commit tells is enough.
    script.whole(150, 160, &["apply 140: 150 =160"]).in_memory(&["release 1"]);
    script.whole(170, 180, &["apply 160: 170 =180"]).wait(900).applied(&["release 1"]);
    script.whole(190, 200, &["apply 180: 190 =200"]).wait(900).tick(&["report 200 180 180 180"]);
}

#[test]
fn full_batches_without_end_do_not_hold_a_flush_up() {
    let mut script = Script::new(100, Duration::ZERO);
    let full = |at| changes(at, BATCH_CHANGES_MAX);
    script.on(full(110), &["apply 100: 110 =111"]).on(full(120), &["apply 111: 120 =121"]);
    script.on(full(130), &[]).on(full(140), &[]).on(full(150), &[]);
    script.in_memory(&["release 1", "apply 121: 130 =131"]).wait(4_999);
    script.in_memory(&["release 1", "apply 131: 140 =141", "report 151 121 100 100"]).wait(1);
    script.in_memory(&["release 1", "flush"]);
    script.in_memory(&["release 1", "apply 141: 150 =151"]).flushed(&[]);
    assert_eq!(script.at(), (141, 141));
}

#[test]
fn nothing_is_flushed_inside_a_large_transaction() {
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).part(200, true, None, &[]);
    script.in_memory(&["release 1", "apply 120: 200"]).applied(&["release 5"]);
    script.wait(5_000).tick(&["report 120 120 100 100"]);
    // Both parts leave at once, though a flush is due.
    script.part(200, false, None, &["apply 120: 200"]).part(200, false, None, &["apply 120: 200"]);
    script.applied(&["release 5"]).applied(&["release 5"]);
    script.part(200, false, Some(210), &["apply 120: 200 =210", "flush"]).in_memory(&["release 5"]);
    script.flushed(&[]);
    assert_eq!(script.at(), (210, 210));
}

#[test]
fn what_is_durable_ripens_from_when_the_disk_has_it() {
    let mut script = Script::new(100, DELAY);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.wait(20_000).tick(&["flush", "report 120 120 100 0"]);
    script.wait(20_000).flushed(&["report 120 120 120 100"]);
    script.wait(30_099).tick(&["report 120 120 120 100"]);
    script.wait(1_000).tick(&["report 120 120 120 120"]);
}

#[test]
#[should_panic(expected = "a transaction came that is already")]
fn what_is_durable_may_not_come_again() {
    Script::new(100, DELAY).whole(90, 100, &[]);
}

#[test]
#[should_panic(expected = "a transaction came that is already")]
fn what_is_in_memory_may_not_come_again() {
    let mut script = Script::new(100, DELAY);
    script.whole(110, 120, &["apply 100: 110 =120"]).in_memory(&["release 1"]);
    script.whole(110, 120, &["apply 120: 110 =120"]);
}
