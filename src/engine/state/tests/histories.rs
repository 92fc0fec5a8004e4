//! Random histories of a source, with a shell that is slow, crashes and comes back at random moments. Whatever happens,
//! the target gets every change once, in the source's order, and the source forgets nothing that is still needed.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::assemble::{Assembler, Change};
use crate::limits::QUEUE_COST_MAX;
use crate::pg::{QualifiedName, Relation, RelationId, ReplicaIdentity};
use crate::proto::{Begin, Commit, Insert, Message, Tuple, TupleValue};

/// Where the slot starts.
const START: u64 = 1_000;

/// One transaction of the source: how far after the one before it commits, and what its changes weigh.
#[derive(Debug, Clone)]
struct Transaction {
    gap: u64,
    changes: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Action {
    /// The source sends some more messages.
    Deliver(u8),
    /// The source sends a keepalive, after it has read on through this much of what is not for us.
    Keepalive {
        read: u64,
        reply_requested: bool,
    },
    /// What is under way is done.
    Complete,
    /// Time goes by.
    Wait(Duration),
    Stop,
    /// The engine dies; what is under way is done on the target all the same, or not.
    Crash {
        completes: bool,
        resume: Resume,
    },
}

/// How the next engine starts.
#[derive(Debug, Clone, Copy)]
struct Resume {
    /// Whether it runs to a position this far from the stored one.
    run_to: Option<u64>,
    /// Whether its time starts at zero.
    own_clock: bool,
}

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let size = prop_oneof![4 => Just(60_usize), 2 => Just(3 << 20), 1 => Just(9 << 20), 1 => Just(40 << 20)];
    let changes = prop_oneof![
        1 => Just(Vec::new()),
        6 => prop::collection::vec(size, 1..8),
    ];
    let transaction = (prop_oneof![Just(0), 1..100_u64], changes);
    prop::collection::vec(transaction.prop_map(|(gap, changes)| Transaction { gap, changes }), 0..30)
}

fn resume() -> impl Strategy<Value = Resume> {
    let run_to = prop::option::weighted(0.3, 0..500_u64);
    (run_to, any::<bool>()).prop_map(|(run_to, own_clock)| Resume { run_to, own_clock })
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let millis = prop_oneof![Just(0), 1..50_u64, 50..1_500_u64, 5_000..12_000_u64, Just(31_000)];
    let action = prop_oneof![
        10 => (1..12_u8).prop_map(Action::Deliver),
        3 => (prop_oneof![Just(0), 1..120_u64], any::<bool>())
            .prop_map(|(read, reply_requested)| Action::Keepalive { read, reply_requested }),
        10 => Just(Action::Complete),
        5 => millis.prop_map(|millis| Action::Wait(Duration::from_millis(millis))),
        1 => Just(Action::Stop),
        2 => (any::<bool>(), resume()).prop_map(|(completes, resume)| Action::Crash { completes, resume }),
    ];
    prop::collection::vec(action, 0..250)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled(
        transactions in transactions(),
        actions in actions(),
        resume in resume(),
        delay in prop_oneof![Just(0), Just(50), Just(1_000), Just(30_000)],
    ) {
        let mut world = World::new(&transactions, Duration::from_millis(delay), resume);
        for action in actions {
            world.act(action);
        }
        world.settle();
    }
}

/// Source, engine and target.
struct World {
    source: Source,
    connection: Connection,
    target: Target,
    engine: State,
    under_way: Option<Effect>,
    /// The cost of what the engine has received and not released.
    held: usize,
    stopping: bool,
    run_to: Option<SourceLsn>,
    confirm_delay: Duration,
    now: Duration,
    /// When the engine's time started.
    epoch: Duration,
    /// The greatest position that was confirmed because the source asked.
    asked: SourceLsn,
}

/// What the source has committed, and its slot.
struct Source {
    transactions: Vec<Committed>,
    wal_end: u64,
    confirmed: SourceLsn,
}

struct Committed {
    commit_lsn: u64,
    end: u64,
    /// The change's number in the whole history, and its size.
    changes: Vec<(u64, usize)>,
}

/// One walsender, and the assembler that listens to it.
struct Connection {
    messages: VecDeque<Sent>,
    assembler: Assembler,
    /// How far the walsender says that it is.
    sent: u64,
}

/// One message; `reads_to` is where the walsender is once it is sent.
struct Sent {
    message: Message,
    bytes: usize,
    reads_to: Option<u64>,
    /// The commit record that the walsender is about to reach.
    before: u64,
}

#[derive(Default)]
struct Target {
    /// The changes that are committed.
    changes: Vec<u64>,
    /// The changes of the open transaction.
    open: Vec<u64>,
    /// `walferry.progress`, now and at each moment before.
    progress: Vec<(Duration, SourceLsn)>,
}

impl Source {
    fn new(transactions: &[Transaction]) -> Self {
        let (mut at, mut number) = (START, 0);
        let commit = |transaction: &Transaction| {
            let (commit_lsn, end) = (at + transaction.gap, at + transaction.gap + 10);
            at = end;
            let changes = transaction.changes.iter().map(|&size| {
                number += 1;
                (number, size)
            });
            Committed { commit_lsn, end, changes: changes.collect() }
        };
        let transactions = transactions.iter().map(commit).collect();
        Self { transactions, wal_end: at + 300, confirmed: SourceLsn::ZERO }
    }

    /// What a walsender sends that starts at `from`.
    fn connect(&self, from: SourceLsn) -> Connection {
        assert!(self.confirmed <= from, "a gap: {} is confirmed, {from} is stored", self.confirmed);
        let mut messages = VecDeque::from([relation(self.wal_end)]);
        for transaction in self.transactions.iter().filter(|t| t.commit_lsn >= from.get()) {
            messages.extend(transaction.messages());
        }
        let assembler = Assembler::resuming(EndLsn::new(from.get()));
        Connection { messages, assembler, sent: self.confirmed.get() }
    }

    /// The changes of all that commits before `position`.
    fn before(&self, position: SourceLsn) -> Vec<u64> {
        let committed = self.transactions.iter().filter(|t| t.commit_lsn < position.get());
        committed.flat_map(|t| t.changes.iter().map(|(number, _)| *number)).collect()
    }
}

impl Committed {
    fn messages(&self) -> Vec<Sent> {
        let (final_lsn, end_lsn) = (CommitLsn::new(self.commit_lsn), EndLsn::new(self.end));
        let commit_time = PgTimestamp::default();
        let sent = |message, bytes, reads_to| Sent { message, bytes, reads_to, before: self.commit_lsn };
        let begin = Message::Begin(Begin { final_lsn, commit_time, xid: Xid::new(1) });
        let mut messages = vec![sent(begin, 20, None)];
        for (number, size) in &self.changes {
            let new = Tuple::from_values([TupleValue::Text(number.to_string().as_bytes())]);
            let insert = Message::Insert(Insert { relation: RelationId::new(1), new });
            messages.push(sent(insert, *size, None));
        }
        let commit = Message::Commit(Commit { commit_lsn: final_lsn, end_lsn, commit_time });
        messages.push(sent(commit, 25, Some(self.end)));
        messages
    }
}

fn relation(before: u64) -> Sent {
    let column = crate::pg::Column {
        name: "id".to_owned(),
        type_oid: crate::pg::Oid::new(20),
        type_modifier: -1,
        type_name: None,
        key: true,
    };
    let message = Message::Relation(Relation {
        id: RelationId::new(1),
        name: QualifiedName::new("public", "t"),
        identity: ReplicaIdentity::Default,
        columns: vec![column],
    });
    Sent { message, bytes: 30, reads_to: None, before }
}

impl Target {
    fn progress(&self) -> SourceLsn {
        self.progress.last().map_or(SourceLsn::new(START), |(_, position)| *position)
    }

    /// What was stored at `time`, if anything was by this run of time.
    fn progress_at(&self, time: Duration) -> SourceLsn {
        let stored = self.progress.iter().rev().find(|(since, _)| *since <= time);
        stored.map_or(SourceLsn::ZERO, |(_, position)| *position)
    }
}

impl World {
    fn new(transactions: &[Transaction], confirm_delay: Duration, resume: Resume) -> Self {
        let source = Source::new(transactions);
        let start = SourceLsn::new(START);
        let connection = source.connect(start);
        let target = Target { progress: vec![(Duration::ZERO, start)], ..Target::default() };
        let mut world = Self {
            source,
            connection,
            target,
            engine: State::new(EndLsn::new(START), confirm_delay, None),
            under_way: None,
            held: 0,
            stopping: false,
            run_to: None,
            confirm_delay,
            now: Duration::ZERO,
            epoch: Duration::ZERO,
            asked: SourceLsn::ZERO,
        };
        world.start(resume);
        world
    }

    /// A new engine, which knows what the target remembers and nothing else.
    fn start(&mut self, resume: Resume) {
        let stored = self.target.progress();
        self.target.open.clear();
        self.run_to = resume.run_to.map(|ahead| SourceLsn::new(stored.get() + ahead));
        self.engine = State::new(EndLsn::new(stored.get()), self.confirm_delay, self.run_to);
        self.epoch = if resume.own_clock { self.now } else { Duration::ZERO };
        self.connection = self.source.connect(stored);
        (self.under_way, self.held, self.stopping) = (None, 0, false);
        assert_eq!(self.target.changes, self.source.before(stored), "stored {stored}");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Deliver(count) => (0..count).for_each(|_| self.deliver()),
            Action::Keepalive { read, reply_requested } => self.keepalive(read, reply_requested),
            Action::Complete => self.complete(),
            Action::Wait(time) => {
                self.now += time;
                self.on(Event::Tick);
            }
            Action::Stop => {
                self.stopping = true;
                self.on(Event::Stop);
            }
            Action::Crash { completes, resume } => {
                if completes && let Some(effect) = self.under_way.take() {
                    self.execute(effect);
                }
                self.start(resume);
            }
        }
    }

    /// The next message, unless the reader is to hold no more.
    fn deliver(&mut self) {
        if self.held >= QUEUE_COST_MAX {
            return;
        }
        let Some(sent) = self.connection.messages.pop_front() else { return };
        let segment = self.connection.assembler.push(sent.message, sent.bytes).unwrap();
        self.connection.sent = self.connection.sent.max(sent.reads_to.unwrap_or(0));
        if let Some(segment) = segment {
            self.held += segment.cost;
            self.on(Event::Received(segment));
        }
    }

    fn keepalive(&mut self, read: u64, reply_requested: bool) {
        let in_transaction = self.connection.assembler.in_transaction();
        if !in_transaction {
            // Everything up to the next commit record has been read.
            let next = self.connection.messages.iter().find(|sent| sent.reads_to.is_some());
            let limit = next.map_or(self.source.wal_end, |sent| sent.before);
            self.connection.sent = (self.connection.sent + read).min(limit);
        }
        let wal_end = SourceLsn::new(self.connection.sent);
        self.on(Event::Keepalive { wal_end, reply_requested, in_transaction });
    }

    fn complete(&mut self) {
        let Some(effect) = self.under_way.take() else { return };
        let done = if matches!(effect, Effect::Store(_)) { Event::Stored } else { Event::Applied };
        self.execute(effect);
        self.on(done);
    }

    /// Does on the target what the engine asked for.
    fn execute(&mut self, effect: Effect) {
        let progress = match effect {
            Effect::Store(end) => Some(end),
            Effect::Apply(batch) => {
                assert_eq!(batch.previous.position(), self.target.progress(), "another engine is at work");
                check_batch(&batch);
                self.target.open.extend(batch.segments.iter().flat_map(|s| &s.changes).map(number));
                batch.end()
            }
            other => unreachable!("{other:?}"),
        };
        if let Some(end) = progress {
            self.target.changes.append(&mut self.target.open);
            self.target.progress.push((self.now, end.position()));
            // The target shows a state that the source had at a commit, and the position says which.
            assert_eq!(self.target.changes, self.source.before(end.position()), "at {end}");
        }
    }

    /// Feeds the engine, checks what it says, and carries it out.
    fn on(&mut self, event: Event) {
        let asks = matches!(event, Event::Keepalive { reply_requested: true, .. });
        // A question while a position was being stored is answered again when it is.
        let asked = asks || self.engine.reply_requested;
        let before = self.engine.positions();
        let effects = self.engine.on(event, self.now - self.epoch);
        check_positions(before, self.engine.positions());
        let steps = self.confirm_delay.as_millis() / CONFIRM_STEP.as_millis();
        assert!(
            self.engine.aging.len() as u128 <= steps + 2,
            "{} positions remembered",
            self.engine.aging.len()
        );

        let (mut reported, mut finished) = (false, None);
        for effect in effects {
            assert!(finished.is_none(), "{effect:?} after the end");
            match effect {
                Effect::Apply(_) | Effect::Store(_) => {
                    assert!(self.under_way.is_none(), "two things under way");
                    self.under_way = Some(effect);
                }
                Effect::Release(cost) => self.held = self.held.checked_sub(cost).unwrap(),
                Effect::Report(positions) => {
                    reported = true;
                    self.report(positions, asked);
                }
                Effect::Finish(finish) => finished = Some(finish),
            }
        }
        assert!(reported || !asks, "a question without an answer");
        if let Some(finish) = finished {
            self.finish(finish);
        } else {
            assert!(self.under_way.is_some() || !self.stopping, "not stopped");
            let idle = self.under_way.is_none() && self.target.open.is_empty();
            assert!(!idle || self.held == 0, "{} held for nothing", self.held);
        }
    }

    fn report(&mut self, positions: Positions, asked: bool) {
        let confirmed = positions.confirmed;
        assert!(confirmed <= self.target.progress(), "confirmed {confirmed} before it was stored");
        if asked {
            assert_eq!(confirmed, positions.durable, "not all that is durable");
            self.asked = self.asked.max(confirmed);
        }
        // A target that is set back by less than the delay still finds on the source what it lacks.
        let back = self.now.checked_sub(self.confirm_delay);
        let old = back.map_or(SourceLsn::ZERO, |then| self.target.progress_at(then));
        assert!(confirmed <= old.max(self.asked), "confirmed {confirmed} too early");
        self.source.confirmed = self.source.confirmed.max(confirmed);
    }

    fn finish(&mut self, finish: Finish) {
        assert!(self.under_way.is_none());
        let stored = self.target.progress();
        match finish {
            Finish::Stopped => assert!(self.stopping),
            Finish::Reached => {
                let run_to = self.run_to.unwrap();
                assert!(!self.stopping && self.target.open.is_empty());
                // All that commits before it, and nothing else.
                assert_eq!(self.target.changes, self.source.before(run_to), "run to {run_to}, at {stored}");
            }
        }
        self.start(Resume { run_to: None, own_clock: true });
    }

    /// Nothing goes wrong any more: everything arrives, is applied, and in time confirmed.
    fn settle(&mut self) {
        self.start(Resume { run_to: None, own_clock: true });
        while !self.connection.messages.is_empty() || self.under_way.is_some() {
            self.deliver();
            self.complete();
        }
        assert_eq!(self.target.changes, self.source.before(SourceLsn::new(self.source.wal_end)));
        assert_eq!(self.held, 0);
        self.keepalive(u64::MAX >> 1, false);
        self.now += IDLE_STORE_INTERVAL;
        self.on(Event::Tick);
        self.complete();
        self.now += self.confirm_delay + CONFIRM_STEP + STATUS_INTERVAL;
        self.on(Event::Tick);
        let all = SourceLsn::new(self.source.wal_end);
        assert_eq!(
            self.engine.positions(),
            Positions { received: all, applied: all, durable: all, confirmed: all }
        );
        assert_eq!(self.source.confirmed, all);
    }
}

/// Whole transactions within the bound, or one part of one.
fn check_batch(batch: &Batch) {
    assert!(!batch.segments.is_empty());
    assert_eq!(batch.cost, batch.segments.iter().map(|segment| segment.cost).sum::<usize>());
    if batch.segments.len() > 1 {
        assert!(batch.cost <= BATCH_COST_MAX);
        assert!(batch.segments.iter().all(|segment| segment.first && segment.end.is_some()));
    }
}

fn number(change: &Change) -> u64 {
    let Change::Insert { new, .. } = change else { unreachable!() };
    let value = new.columns().next().unwrap();
    let bytes: Bytes = new.value_bytes(value).unwrap();
    std::str::from_utf8(&bytes).unwrap().parse().unwrap()
}
