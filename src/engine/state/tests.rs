//! Scripts: events in, effects out, rule by rule. Random histories are in [`histories`].

#![allow(clippy::unwrap_used)]

use super::*;
use crate::pg::{CommitLsn, Xid};

mod histories;

const DELAY: Duration = Duration::from_secs(30);

/// A state and its clock; checks the invariants at every step, and writes the effects down in short.
struct Script {
    state: State,
    now: Duration,
}

impl Script {
    fn new(stored: u64, confirm_delay: Duration) -> Self {
        Self { state: State::new(EndLsn::new(stored), confirm_delay, None), now: Duration::ZERO }
    }

    fn running_to(stored: u64, run_to: u64) -> Self {
        let run_to = Some(SourceLsn::new(run_to));
        Self { state: State::new(EndLsn::new(stored), DELAY, run_to), now: Duration::ZERO }
    }

    fn wait(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    /// Feeds the event, expects the effects.
    fn on(&mut self, event: Event, expected: &[&str]) -> &mut Self {
        let what = format!("{event:?}");
        let before = self.state.positions();
        let effects = self.state.on(event, self.now);
        let after = self.state.positions();
        check_positions(before, after);
        let effects: Vec<String> = effects.iter().map(short).collect();
        assert_eq!(effects, expected, "after {what} at {:?}: {after:?}", self.now);
        self
    }

    fn whole(&mut self, commit_lsn: u64, end: u64, expected: &[&str]) -> &mut Self {
        self.on(Event::Received(segment(commit_lsn, true, Some(end), 1)), expected)
    }

    fn keepalive(&mut self, wal_end: u64, expected: &[&str]) -> &mut Self {
        self.on(keepalive(wal_end, false, false), expected)
    }

    fn applied(&mut self, expected: &[&str]) -> &mut Self {
        self.on(Event::Applied, expected)
    }

    fn stored(&mut self, expected: &[&str]) -> &mut Self {
        self.on(Event::Stored, expected)
    }

    fn tick(&mut self, expected: &[&str]) -> &mut Self {
        self.on(Event::Tick, expected)
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
        first,
        changes: Vec::new(),
        cost,
        end: end.map(EndLsn::new),
    }
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

/// `apply previous: commit_lsn… =end`, `store end`, `report received applied durable confirmed`, `release cost`.
fn short(effect: &Effect) -> String {
    match effect {
        Effect::Apply(batch) => {
            let commits: Vec<String> =
                batch.segments.iter().map(|segment| segment.commit_lsn.get().to_string()).collect();
            assert_eq!(batch.cost, batch.segments.iter().map(|segment| segment.cost).sum::<usize>());
            let end = batch.end().map_or(String::new(), |end| format!(" ={}", end.get()));
            format!("apply {}: {}{end}", batch.previous.get(), commits.join(" "))
        }
        Effect::Store(end) => format!("store {}", end.get()),
        Effect::Report(Positions { received, applied, durable, confirmed }) => {
            format!("report {} {} {} {}", received.get(), applied.get(), durable.get(), confirmed.get())
        }
        Effect::Release(cost) => format!("release {cost}"),
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
fn batches_have_a_bound() {
    let check = |costs: &[usize], batches: &[&str]| {
        let mut script = Script::new(100, DELAY);
        // Until this first one is applied, the others gather.
        script.whole(110, 111, &["apply 100: 110 =111"]);
        for (&cost, commit_lsn) in costs.iter().zip((200..).step_by(10)) {
            script.on(Event::Received(segment(commit_lsn, true, Some(commit_lsn + 1), cost)), &[]);
        }
        let mut seen = Vec::new();
        loop {
            let effects = script.state.on(Event::Applied, Duration::ZERO);
            let [Effect::Release(_), Effect::Apply(batch)] = &effects[..] else { break };
            seen.push(short(&effects[1]));
            assert!(batch.cost <= BATCH_COST_MAX || batch.segments.len() == 1);
        }
        assert_eq!(seen, batches);
    };
    let (most, half) = (BATCH_COST_MAX, BATCH_COST_MAX / 2);
    check(&[half, half, 1], &["apply 111: 200 210 =211", "apply 211: 220 =221"]);
    check(&[half + 1, half], &["apply 111: 200 =201", "apply 201: 210 =211"]);
    check(&[1, most, 1], &["apply 111: 200 =201", "apply 201: 210 =211", "apply 211: 220 =221"]);
    // One row may be larger than any bound.
    check(&[64 * most, 1], &["apply 111: 200 =201", "apply 201: 210 =211"]);
}

#[test]
fn a_large_transaction_is_applied_alone_and_in_parts() {
    let part = |first, end| Event::Received(segment(200, first, end, 5));
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.whole(130, 140, &[]).on(part(true, None), &[]);
    // The first part does not go along with what was there before it.
    script.applied(&["release 1", "apply 120: 130 =140"]).applied(&["release 1", "apply 140: 200"]);
    script.on(part(false, None), &[]);
    script.applied(&["release 5", "apply 140: 200"]);
    assert_eq!(script.state.oldest_unapplied(), Some(PgTimestamp::from_micros(200)));
    // In the middle nothing moves, whatever is asked and however long it takes.
    script.applied(&["release 5"]);
    assert_eq!(script.state.oldest_unapplied(), Some(PgTimestamp::from_micros(200)));
    script.on(keepalive(150, true, true), &["report 150 140 140 140"]);
    script.wait(60_000).tick(&["report 150 140 140 140"]);
    // Nor does the last part with what comes after it.
    script.on(part(false, Some(210)), &["apply 140: 200 =210"]).whole(220, 230, &[]);
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
    script.wait(10_000).tick(&["store 500", "report 500 500 140 0"]).whole(510, 520, &[]);
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
    script.on(Event::Received(segment(200, true, None, 5)), &["apply 100: 200"]).applied(&["release 5"]);
    script.on(keepalive(106, false, true), &[]);
    script.wait(20_000).tick(&["report 106 105 100 100"]);
    // Neither does one that was waiting for what comes before the transaction.
    let mut script = Script::new(100, Duration::ZERO);
    script.whole(110, 120, &["apply 100: 110 =120"]).keepalive(150, &[]);
    script.on(Event::Received(segment(200, true, None, 5)), &[]);
    script.applied(&["release 1", "apply 120: 200"]).applied(&["release 5"]);
    assert_eq!(script.state.positions().applied.get(), 120);
}

#[test]
fn an_idle_position_is_stored_before_it_is_confirmed_and_rarely() {
    let mut script = Script::new(100, Duration::ZERO);
    script.wait(10).tick(&[]);
    script.wait(5_000).keepalive(200, &["report 200 200 100 100"]);
    script.wait(4_990).keepalive(300, &["report 300 300 100 100"]);
    script.wait(10).tick(&["store 300"]);
    // Meanwhile nothing else begins, nothing is confirmed.
    script.whole(400, 410, &[]).wait(1_000).tick(&["report 410 300 100 100"]);
    script.stored(&["apply 300: 400 =410"]).wait(1_000).tick(&["report 410 300 300 300"]);
    script.applied(&["release 1"]);
    // A commit stores its own position, and the time counts from there.
    script.keepalive(500, &[]).wait(9_999).tick(&["report 500 500 410 410"]);
    script.wait(1).tick(&["store 500"]).stored(&[]);
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
        let effects = script.state.on(Event::Received(segment(end - 1, true, Some(end), 1)), script.now);
        assert_eq!(short(&effects[0]), format!("apply {previous}: {} ={end}", end - 1));
        script.state.on(Event::Applied, script.now);
    };
    apply(1_000, 100, 200);
    apply(1_050, 200, 300);
    // A step later: an entry of its own.
    apply(1_100, 300, 400);
    apply(5_000, 400, 500);
    let mut confirmed = |millis: u64| {
        script.now = Duration::from_millis(millis);
        script.state.on(Event::Tick, script.now);
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
fn a_requested_reply_comes_at_once_with_all_that_is_durable() {
    // Nothing to do: what is durable, however young.
    let mut script = Script::new(100, DELAY);
    script.on(keepalive(100, true, false), &["report 100 100 100 100"]);
    // Asked once, answered once.
    script.wait(1).tick(&[]);
    // A batch is under way: what is durable before it.
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.on(keepalive(120, true, false), &["report 120 100 100 100"]);
    script.applied(&["release 1"]);
    script.on(keepalive(120, true, false), &["report 120 120 120 120"]);
    // An idle position is stored first, then confirmed; but the answer does not wait for it.
    script.on(keepalive(200, true, false), &["store 200", "report 200 200 120 120"]);
    script.wait(1).tick(&["report 200 200 120 120"]);
    script.stored(&["report 200 200 200 200"]).wait(1).tick(&[]);
    // Two questions while it is being stored.
    script.on(keepalive(300, true, false), &["store 300", "report 300 300 200 200"]);
    script.on(keepalive(310, true, false), &["report 310 300 200 200"]);
    script.stored(&["store 310", "report 310 310 300 300"]).stored(&["report 310 310 310 310"]);
    // In the middle of a transaction.
    script.on(keepalive(320, true, true), &["report 320 310 310 310"]);
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
    script.keepalive(200, &[]).stop(&["store 200"]).keepalive(300, &[]);
    script.stored(&["store 300"]).stored(&["report 300 300 300 300", "finish Stopped"]);

    // That is what is applied, not what is received.
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(150, &[]).on(keepalive(155, false, true), &[]).stop(&["store 150"]);

    // One is being stored: it is awaited, and what came meanwhile is left.
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(200, &[]).wait(10_000).tick(&["store 200", "report 200 200 100 100"]);
    script.stop(&[]).whole(210, 220, &[]);
    script.stored(&["report 220 200 200 200", "finish Stopped"]);

    // In the middle of a large transaction: it is rolled back, and comes again.
    let part = |first| Event::Received(segment(200, first, None, 5));
    let mut script = Script::new(100, Duration::ZERO);
    script.on(part(true), &["apply 100: 200"]).on(part(false), &[]).stop(&[]);
    script.applied(&["release 5", "report 100 100 100 100", "finish Stopped"]);
    let mut script = Script::new(100, Duration::ZERO);
    script.keepalive(150, &[]).on(part(true), &["apply 100: 200"]).applied(&["release 5"]);
    script.stop(&["report 150 150 100 100", "finish Stopped"]);
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
    script.keepalive(199, &[]).keepalive(200, &["store 200"]);
    script.stored(&["report 200 200 200 0", "finish Reached"]);

    // By the first transaction that commits later: it is not begun, and no batch takes it along.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]);
    script.whole(130, 140, &[]).whole(200, 210, &[]).whole(220, 230, &[]);
    script.applied(&["release 1", "apply 120: 130 =140"]);
    script.applied(&["release 1", "report 230 140 140 0", "finish Reached"]);
    let mut script = Script::running_to(100, 200);
    let part = |commit_lsn, first, end| Event::Received(segment(commit_lsn, first, end, 5));
    script.on(part(200, true, None), &["report 100 100 100 0", "finish Reached"]);

    // An idle position that is due is stored on the way.
    let mut script = Script::running_to(100, 200);
    script.keepalive(150, &[]).wait(10_000);
    script.whole(210, 220, &["store 150", "report 220 150 100 0"]);
    script.stored(&["report 220 150 150 0", "finish Reached"]);

    // A large one that is open is finished, and the one after it is left.
    let mut script = Script::running_to(100, 200);
    script.on(part(199, true, None), &["apply 100: 199"]).applied(&["release 5"]);
    script.on(part(199, false, Some(201)), &["apply 100: 199 =201"]).whole(202, 210, &[]);
    script.applied(&["release 5", "report 210 201 201 0", "finish Reached"]);

    // Stopped before.
    let mut script = Script::running_to(100, 200);
    script.whole(110, 120, &["apply 100: 110 =120"]).stop(&[]);
    script.applied(&["release 1", "report 120 120 120 0", "finish Stopped"]);
}

#[test]
#[should_panic(expected = "already durable")]
fn what_is_durable_may_not_come_again() {
    Script::new(100, DELAY).whole(90, 100, &[]);
}
