//! Random histories of a source, with a shell that is slow, crashes and comes back at random moments, and a target that
//! crashes, too, and forgets what is not on its disk. Whatever happens, the target gets every change once, in the source's
//! order, and the source forgets nothing that is still needed.
//!
//! The source itself may be another one suddenly: a standby, or a disk of earlier, that lacks the end of the history and
//! writes on, under positions and identifiers that were used before. Then what is applied is a part of the history that
//! survived, from its beginning, or the engine refuses it; and it refuses none that lacks nothing. A standby says where it
//! left the timeline of before, which tells more than positions do; a disk of earlier says nothing. What is refused before
//! the stream begins, the program's own comparison refuses.
//!
//! Tables are copied meanwhile, too: what such a table had by then the source must still have.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::assemble::{AssembleError, Assembler, Change};
use crate::engine::memory::Memory;
use crate::limits::QUEUE_COST_MAX;
use crate::pg::{QualifiedName, Relation, RelationId, ReplicaIdentity, SlotName, SystemId, TimelineId};
use crate::proto::{Begin, Commit, Insert, LogicalMessage, Message, Tuple, TupleValue};
use crate::source::SlotInfo;
use crate::source::gap::{Expected, refuse_gap};
use crate::source::history::TimelineHistory;
use crate::source::replication::Identity;

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
    /// Parts of a transaction go ahead of its commit: of the next one, or of one that others will overtake.
    Ahead {
        overtaken_by: usize,
        parts: usize,
    },
    /// A part of what goes ahead is rolled back.
    GiveUp,
    /// The source sends a keepalive, after it has read on through this much of what is not for us.
    Keepalive {
        read: u64,
        reply_requested: bool,
    },
    /// The target does the oldest thing under way, and nobody hears of it yet.
    Execute,
    /// The oldest thing under way is done.
    Complete,
    /// Other sessions write this much of the target's WAL; all but this much of it goes to the disk.
    Write {
        bytes: u64,
        all_but: u64,
    },
    /// Time goes by, and the shell is late: it wakes the engine after all of it.
    Stall(Duration),
    /// Time goes by, and the engine is woken at each deadline that it names.
    Wait(Duration),
    Stop,
    /// The engine dies; so many of the things under way are done on the target all the same.
    Crash {
        completes: usize,
        start: Start,
    },
    /// The target dies, and has what is on its disk when it is back.
    TargetCrash {
        start: Start,
    },
    /// A table is copied as the source has it now; the engine goes on after that.
    Copy {
        start: Start,
    },
    /// The source has lost what lies beyond a place, and goes on with other transactions; its slot is at what was
    /// confirmed once.
    Failover {
        place: prop::sample::Index,
        told: prop::sample::Index,
        transactions: Vec<Transaction>,
        promoted: bool,
        start: Start,
    },
}

/// How the next engine starts.
#[derive(Debug, Clone, Copy)]
struct Start {
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

fn start() -> impl Strategy<Value = Start> {
    let run_to = prop::option::weighted(0.3, 0..500_u64);
    (run_to, any::<bool>()).prop_map(|(run_to, own_clock)| Start { run_to, own_clock })
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let millis = prop_oneof![Just(0), 1..50_u64, 50..1_500_u64, 5_000..12_000_u64, Just(31_000)];
    let action = prop_oneof![
        10 => (1..12_u8).prop_map(Action::Deliver),
        3 => (0..3_usize, 1..4_usize)
            .prop_map(|(overtaken_by, parts)| Action::Ahead { overtaken_by, parts }),
        1 => Just(Action::GiveUp),
        3 => (prop_oneof![Just(0), 1..120_u64], any::<bool>())
            .prop_map(|(read, reply_requested)| Action::Keepalive { read, reply_requested }),
        3 => Just(Action::Execute),
        10 => Just(Action::Complete),
        3 => (0..40_u64, 0..60_u64).prop_map(|(bytes, all_but)| Action::Write { bytes, all_but }),
        3 => millis.clone().prop_map(|millis| Action::Stall(Duration::from_millis(millis))),
        4 => millis.prop_map(|millis| Action::Wait(Duration::from_millis(millis))),
        1 => Just(Action::Stop),
        2 => (0..=UNDER_WAY_MAX, start()).prop_map(|(completes, start)| Action::Crash { completes, start }),
        2 => start().prop_map(|start| Action::TargetCrash { start }),
        1 => start().prop_map(|start| Action::Copy { start }),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), transactions(), start()).prop_map(
            |(place, told, transactions, start)| {
                let promoted = start.own_clock;
                Action::Failover { place, told, transactions, promoted, start }
            },
        ),
    ];
    prop::collection::vec(action, 0..250)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled(
        transactions in transactions(),
        actions in actions(),
        start in start(),
        delay in prop_oneof![Just(0), Just(50), Just(1_000), Just(30_000)],
        asks in any::<bool>(),
    ) {
        let mut world = World::new(&transactions, Duration::from_millis(delay), start);
        for action in actions {
            world.act(action);
        }
        world.settle(asks);
    }
}

/// Source, engine and target.
struct World {
    source: Source,
    connection: Connection,
    target: Target,
    engine: State,
    /// What the target has not done, oldest first.
    under_way: VecDeque<Effect>,
    /// What the target did and the engine does not know, oldest first: before all that is under way.
    replies: VecDeque<Option<Written>>,
    /// What the engine has received and not given back.
    memory: Memory,
    stopping: bool,
    run_to: Option<SourceLsn>,
    confirm_delay: Duration,
    now: Duration,
    /// When the engine's time started.
    epoch: Duration,
    /// Whether it was woken too early the last time.
    early: bool,
    /// Where the last copy of a table was made.
    copied: SourceLsn,
    /// The source is another one than before, and lacks something that the target has.
    lost: bool,
    /// The engine has refused it.
    refused: bool,
}

/// What the source has committed, and its slot.
struct Source {
    transactions: Vec<Committed>,
    wal_end: u64,
    confirmed: SourceLsn,
    /// What was confirmed, now and before.
    told: Vec<SourceLsn>,
    /// Numbers of changes and moments that no other history has.
    number: u64,
    moment: i64,
    connections: u32,
    timeline: TimelineId,
    /// Where each earlier timeline was left.
    left: Vec<(TimelineId, SourceLsn)>,
}

struct Committed {
    commit_lsn: u64,
    end: u64,
    xid: Xid,
    commit_time: PgTimestamp,
    /// The engine had it made.
    is_mark: bool,
    /// The change's number in the whole history, and its size.
    changes: Vec<(u64, usize)>,
}

/// One walsender, and the assembler that listens to it.
struct Connection {
    messages: VecDeque<Sent>,
    assembler: Assembler,
    ahead: Option<Ahead>,
    /// How far the walsender says that it is.
    sent: u64,
}

/// What goes ahead: the end of its transaction, and how many changes of it came.
struct Ahead {
    end: u64,
    came: usize,
}

/// One message; `reads_to` is where the walsender is once it is sent.
struct Sent {
    message: Message,
    bytes: usize,
    reads_to: Option<u64>,
    /// The commit record that the walsender is about to reach.
    before: u64,
}

struct Target {
    /// The changes that are committed.
    changes: Vec<u64>,
    /// The changes of the open transaction.
    open: Option<Vec<u64>>,
    /// What committed, oldest first; never empty.
    commits: Vec<CommittedHere>,
    /// The end of the WAL, and of what is on the disk.
    wal: u64,
    disk: u64,
    /// `walferry.progress` as the disk has it, now and at each moment before.
    durable: Vec<(Duration, Resume)>,
}

/// One commit on the target.
struct CommittedHere {
    /// `walferry.progress` from then on, and the number of changes.
    progress: Resume,
    changes: usize,
    /// Where it ends in the target's WAL.
    end: u64,
}

impl Source {
    fn new(transactions: &[Transaction]) -> Self {
        let told = vec![SourceLsn::ZERO];
        let mut source = Self {
            transactions: Vec::new(),
            wal_end: START,
            confirmed: SourceLsn::ZERO,
            told,
            number: 0,
            moment: 0,
            connections: 0,
            timeline: TimelineId::new(1),
            left: Vec::new(),
        };
        source.write(transactions);
        source
    }

    /// Commits transactions, and then writes on for a bit.
    fn write(&mut self, transactions: &[Transaction]) {
        for transaction in transactions {
            self.commit(transaction, false);
        }
        self.wal_end += 300;
    }

    fn commit(&mut self, transaction: &Transaction, is_mark: bool) {
        let commit_lsn = self.wal_end + transaction.gap;
        self.wal_end = commit_lsn + 10;
        self.moment += 1;
        let changes = transaction.changes.iter().map(|&size| {
            self.number += 1;
            (self.number, size)
        });
        let changes = changes.collect();
        // A standby goes on with the identifiers that it has not seen.
        let xid = Xid::new(u32::try_from(self.transactions.len()).unwrap());
        let commit_time = PgTimestamp::from_micros(self.moment);
        let end = self.wal_end;
        self.transactions.push(Committed { commit_lsn, end, xid, commit_time, is_mark, changes });
    }

    /// Loses what lies beyond `at`, and commits others.
    fn fail_over(&mut self, at: u64, told: SourceLsn, transactions: &[Transaction]) {
        self.transactions.retain(|transaction| transaction.end <= at);
        self.wal_end = at;
        self.confirmed = told;
        self.told.retain(|before| *before <= told);
        self.write(transactions);
    }

    /// Goes on from there as a standby does that is promoted, on a timeline of its own.
    fn promote(&mut self, at: u64) {
        let later = self.left.iter().position(|(_, left)| left.get() > at);
        let parent = later.map_or(self.timeline, |later| self.left[later].0);
        self.left.truncate(later.unwrap_or(self.left.len()));
        self.left.push((parent, SourceLsn::new(at)));
        self.timeline = TimelineId::new(self.timeline.get() + 1);
    }

    /// Whether this timeline comes from there, and after what is stored.
    fn comes_from(&self, stored: Resume) -> bool {
        let Some(timeline) = stored.timeline.filter(|timeline| *timeline != self.timeline) else {
            return true;
        };
        let end = stored.held().position();
        self.left.iter().any(|(before, left)| *before == timeline && end <= *left)
    }

    /// What the program makes of this source, before a stream begins.
    fn compare(&self, stored: Resume, copied: SourceLsn) -> Result<Resume, crate::error::Definite> {
        let slot = SlotName::new("walferry_default").unwrap();
        let known = SlotInfo::example(self.confirmed.get(), self.confirmed.get());
        let system_id = SystemId::new(7);
        let expected = Expected { system_id, slot, dbname: "shop".to_owned(), stored, copied };
        let identity = Identity { system_id, timeline: self.timeline, flushed: SourceLsn::new(self.wal_end) };
        let file: String =
            self.left.iter().map(|(before, at)| format!("{before}\t{at}\tpromoted\n")).collect();
        refuse_gap(&expected, &identity, Some(&known), TimelineHistory::parse(&file).as_ref())
    }

    /// What a walsender sends that starts there.
    fn connect(&mut self, resume: &Resume) -> Connection {
        let from = resume.opened_at();
        self.connections += 1;
        let mut messages = VecDeque::from([relation(self.wal_end)]);
        for transaction in self.transactions.iter().filter(|t| t.commit_lsn >= from.get()) {
            // What has no changes may come or not, however it was before.
            let empty = transaction.changes.is_empty() && !transaction.is_mark;
            if !empty || self.connections.is_multiple_of(2) {
                messages.extend(transaction.messages());
            }
        }
        let assembler = Assembler::going_on(resume);
        Connection { messages, assembler, ahead: None, sent: self.confirmed.get() }
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
        let (xid, commit_time) = (self.xid, self.commit_time);
        let sent = |message, bytes, reads_to| Sent { message, bytes, reads_to, before: self.commit_lsn };
        let begin = Message::Begin(Begin { final_lsn, commit_time, xid });
        let mut messages = vec![sent(begin, 20, None)];
        if self.is_mark {
            let mark = LogicalMessage {
                transactional: true,
                lsn: SourceLsn::new(self.commit_lsn),
                prefix: "walferry".to_owned(),
                content: Bytes::new(),
            };
            messages.push(sent(Message::Message(mark), 30, None));
        }
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
    fn new() -> Self {
        let start = Resume::at(EndLsn::new(START));
        // Not near the source's positions.
        let (wal, disk) = (1 << 40, 1 << 40);
        let commits = vec![CommittedHere { progress: start, changes: 0, end: wal }];
        Self { changes: Vec::new(), open: None, commits, wal, disk, durable: vec![(Duration::ZERO, start)] }
    }

    /// `walferry.progress`.
    fn progress(&self) -> Resume {
        self.commits.last().unwrap().progress
    }

    /// `walferry.progress` after a crash at this moment.
    fn durable(&self) -> Resume {
        self.durable.last().unwrap().1
    }

    /// From where a crash at `time` has the stream begin, if this was there by then.
    fn durable_at(&self, time: Duration) -> SourceLsn {
        let then = self.durable.iter().rev().find(|(since, _)| *since <= time);
        then.map_or(SourceLsn::ZERO, |(_, resume)| resume.opened_at())
    }

    fn commit(&mut self, progress: Resume) {
        self.changes.extend(self.open.take().unwrap_or_default());
        self.wal += 10;
        self.commits.push(CommittedHere { progress, changes: self.changes.len(), end: self.wal });
    }

    /// The disk has the WAL up to there.
    fn write(&mut self, disk: u64, now: Duration) {
        self.disk = self.disk.max(disk);
        let there = self.commits.iter().rev().find(|commit| commit.end <= self.disk);
        let progress = there.unwrap().progress;
        if progress != self.durable() {
            self.durable.push((now, progress));
        }
    }

    /// What a session reads that has just committed.
    fn written(&self) -> Written {
        Written { end: TargetLsn::new(self.wal), flushed: TargetLsn::new(self.disk) }
    }

    fn crash(&mut self) {
        self.commits.retain(|commit| commit.end <= self.disk);
        self.changes.truncate(self.commits.last().unwrap().changes);
        self.wal = self.disk;
        assert_eq!(self.progress(), self.durable());
    }
}

impl World {
    fn new(transactions: &[Transaction], confirm_delay: Duration, start: Start) -> Self {
        let mut source = Source::new(transactions);
        let resume = Resume::at(EndLsn::new(START));
        let connection = source.connect(&resume);
        let mut world = Self {
            source,
            connection,
            target: Target::new(),
            engine: State::new(resume, confirm_delay, None),
            under_way: VecDeque::new(),
            replies: VecDeque::new(),
            memory: Memory::new(usize::try_from(u32::MAX).unwrap()),
            stopping: false,
            run_to: None,
            confirm_delay,
            now: Duration::ZERO,
            epoch: Duration::ZERO,
            early: false,
            copied: SourceLsn::ZERO,
            lost: false,
            refused: false,
        };
        world.start(start);
        world
    }

    /// A new engine, which knows what the target remembers and nothing else.
    fn start(&mut self, Start { run_to, own_clock }: Start) {
        self.target.open = None;
        let stored = match self.source.compare(self.target.progress(), self.copied) {
            Ok(stored) => stored,
            Err(definite) => return self.refuse(&definite.to_string()),
        };
        if stored != self.target.progress() {
            self.target.commit(stored);
        }
        // The shell has what is stored written to the disk before it begins: the engine takes it as durable.
        self.target.write(self.target.wal, self.now);
        self.connection = self.source.connect(&stored);
        self.run_to = run_to.map(|ahead| SourceLsn::new(stored.end.get() + ahead));
        self.engine = State::new(stored, self.confirm_delay, self.run_to).with_copies_of(self.copied);
        self.epoch = if own_clock { self.now } else { Duration::ZERO };
        self.under_way.clear();
        self.replies.clear();
        self.stopping = false;
        assert_eq!(self.memory.held(), 0, "an engine that is gone holds memory");
        self.check_history(stored.end.position());
    }

    /// The target shows what the source has before that position, unless it is not known yet that this is its source.
    fn check_history(&self, position: SourceLsn) {
        if !self.connection.assembler.is_recognising() {
            assert_eq!(self.target.changes, self.source.before(position), "at {position}");
        }
    }

    fn refuse(&mut self, why: &str) {
        assert!(self.lost, "refused a history that lacks nothing: {why}");
        self.refused = true;
    }

    /// The source loses what lies beyond `place`. What the target has before the first transaction is not proven.
    fn fail_over(
        &mut self,
        place: prop::sample::Index,
        told: prop::sample::Index,
        others: &[Transaction],
        promoted: bool,
    ) -> bool {
        let stored = self.target.progress();
        if stored.landmark.is_none() && stored.end.get() > START {
            return false;
        }
        let length = usize::try_from(self.source.wal_end - START).unwrap();
        let at = START + place.index(length + 1) as u64;
        if !promoted && at < self.copied.get() {
            // Until a transaction after the copy is applied, nothing of a disk of before it shows that.
            return false;
        }
        let told = self.source.told[told.index(self.source.told.len())].min(SourceLsn::new(at));
        if promoted {
            self.source.promote(at);
        }
        self.source.fail_over(at, told, others);
        let proven = stored.landmark.filter(|_| promoted).map_or(stored.end, |landmark| landmark.end);
        self.lost |= at < proven.get() || at < self.copied.get();
        // It may be a standby of one that is no ancestor of the last one's.
        self.lost |= promoted && !self.source.comes_from(stored);
        true
    }

    fn act(&mut self, action: Action) {
        if self.refused {
            return;
        }
        match action {
            Action::Deliver(count) => (0..count).for_each(|_| self.deliver()),
            Action::Ahead { overtaken_by, parts } => self.go_ahead(overtaken_by, parts),
            Action::GiveUp => self.give_up(),
            Action::Keepalive { read, reply_requested } => self.keepalive(read, reply_requested),
            Action::Execute => self.execute(),
            Action::Complete => self.complete(),
            Action::Write { bytes, all_but } => {
                self.target.wal += bytes;
                self.target.write(self.target.wal.saturating_sub(all_but), self.now);
            }
            Action::Stall(time) => {
                self.now += time;
                self.on(Event::Deadline);
            }
            Action::Wait(time) => {
                let end = self.now + time;
                while self.wakes(end) {}
            }
            Action::Stop => {
                self.stopping = true;
                self.on(Event::Stop);
            }
            Action::Crash { completes, start } => {
                (0..completes).for_each(|_| self.execute());
                self.start(start);
            }
            Action::TargetCrash { start } => {
                self.target.crash();
                self.start(start);
            }
            Action::Copy { start } => {
                self.copied = SourceLsn::new(self.source.wal_end);
                self.start(start);
            }
            Action::Failover { place, told, transactions, promoted, start } => {
                if self.fail_over(place, told, &transactions, promoted) {
                    // Nothing of the stream shows what the copy of a table has; where a standby left does.
                    let lacks = self.source.left.last().is_some_and(|(_, left)| *left < self.copied);
                    self.start(start);
                    assert!(self.refused || !promoted || !lacks, "a table has more than the source");
                }
            }
        }
    }

    /// The next message, unless the reader is to hold no more.
    fn deliver(&mut self) {
        if self.refused || self.memory.held() >= QUEUE_COST_MAX || self.deliver_rest() {
            return;
        }
        let Some(sent) = self.connection.messages.pop_front() else { return };
        let segment = match self.connection.assembler.push(sent.message, sent.bytes) {
            Ok(segment) => segment,
            Err(error @ (AssembleError::OtherHistory { .. } | AssembleError::Unheard { .. })) => {
                return self.refuse(&error.to_string());
            }
            Err(error) => panic!("{error}"),
        };
        self.connection.sent = self.connection.sent.max(sent.reads_to.unwrap_or(0));
        if let Some(segment) = segment {
            self.receive(segment);
        }
    }

    fn receive(&mut self, segment: Segment) {
        let held = self.memory.hold_now(segment.cost);
        self.on(Event::Received(segment, held));
    }

    /// Between two transactions, what comes next of one that goes ahead.
    fn go_ahead(&mut self, overtaken_by: usize, parts: usize) {
        // One that commits beyond the position to run to is not to be begun.
        let assembler = &self.connection.assembler;
        if assembler.in_transaction() || assembler.is_recognising() || self.run_to.is_some() {
            return;
        }
        let coming = || self.connection.messages.iter().filter_map(|sent| sent.reads_to);
        let end =
            self.connection.ahead.as_ref().map(|ahead| ahead.end).or_else(|| coming().nth(overtaken_by));
        let Some(end) = end else { return };
        if self.source.transactions.iter().any(|t| t.end == end && t.changes.is_empty()) {
            return;
        }
        for _ in 0..parts {
            let ahead = self.connection.ahead.get_or_insert(Ahead { end, came: 0 });
            let changes = &self.source.transactions.iter().find(|t| t.end == end).unwrap().changes;
            // The last of them comes with the commit, if not alone.
            if ahead.came + 1 >= changes.len() || self.memory.held() >= QUEUE_COST_MAX {
                return;
            }
            let part = Segment {
                ahead: true,
                ..part(&changes[ahead.came..=ahead.came], ahead.came == 0, START, None)
            };
            ahead.came += 1;
            self.receive(part);
        }
    }

    /// The last part of what goes ahead, if it commits next; else it is given up.
    fn deliver_rest(&mut self) -> bool {
        let Some(Ahead { end, came }) = self.connection.ahead else { return false };
        if self.connection.messages.iter().find_map(|sent| sent.reads_to) != Some(end) {
            self.give_up();
            return false;
        }
        while self.connection.messages.pop_front().and_then(|sent| sent.reads_to).is_none() {}
        let transaction = self.source.transactions.iter().find(|t| t.end == end).unwrap();
        let rest =
            part(&transaction.changes[came..], came == 0, transaction.commit_lsn, Some(EndLsn::new(end)));
        let Committed { xid, commit_time, .. } = *transaction;
        let rest = Segment { xid, commit_time, comes_again: true, ..rest };
        self.connection.ahead = None;
        self.connection.sent = self.connection.sent.max(end);
        self.connection.assembler = Assembler::resuming(EndLsn::new(end));
        self.connection.messages.push_front(relation(self.source.wal_end));
        self.receive(rest);
        true
    }

    fn give_up(&mut self) {
        if self.connection.ahead.take().is_some() {
            self.on(Event::GaveUp);
        }
    }

    fn keepalive(&mut self, read: u64, reply_requested: bool) {
        let in_transaction = self.connection.assembler.in_transaction() || self.connection.ahead.is_some();
        if !in_transaction {
            // Everything up to the next commit record has been read.
            let next = self.connection.messages.iter().find(|sent| sent.reads_to.is_some());
            let limit = next.map_or(self.source.wal_end, |sent| sent.before);
            self.connection.sent = (self.connection.sent + read).min(limit);
        }
        let wal_end = SourceLsn::new(self.connection.sent);
        if let Err(error) = self.connection.assembler.passed(wal_end) {
            return self.refuse(&error.to_string());
        }
        self.on(Event::Keepalive { wal_end, reply_requested, in_transaction });
    }

    fn complete(&mut self) {
        if self.replies.is_empty() {
            self.execute();
        }
        if let Some(written) = self.replies.pop_front() {
            self.on(Event::Done(written));
        }
    }

    /// Does on the target the oldest thing that the engine asked for.
    fn execute(&mut self) {
        let Some(effect) = self.under_way.pop_front() else { return };
        let target = &mut self.target;
        let moved = match effect {
            Effect::Store { previous, to } => {
                assert!(target.open.is_none(), "stored inside a transaction");
                Some((previous, to, None))
            }
            Effect::Apply(batch) => {
                check_batch(&batch, target.open.is_some());
                let changes = batch.segments.iter().flat_map(|segment| &segment.changes).map(number);
                target.open.get_or_insert_default().extend(changes);
                batch.end().map(|end| (batch.previous, end, batch.landmark()))
            }
            Effect::Flush => {
                assert!(target.open.is_none(), "flushed inside a transaction");
                target.wal += 10;
                target.write(target.wal, self.now);
                self.replies.push_back(Some(target.written()));
                return;
            }
            Effect::Abandon => {
                assert!(target.open.take().is_some(), "nothing is open");
                None
            }
            other => unreachable!("{other:?}"),
        };
        if let Some((previous, to, landmark)) = moved {
            let progress = target.progress();
            assert_eq!(previous, progress.end, "another engine is at work");
            target.commit(Resume { end: to, landmark: landmark.or(progress.landmark), ..progress });
            // The target shows a state that the source had at a commit, and the position says which.
            assert_eq!(target.changes, self.source.before(to.position()), "at {to}");
        }
        self.replies.push_back(moved.map(|_| target.written()));
    }

    fn under_way(&self) -> usize {
        self.under_way.len() + self.replies.len()
    }

    /// Feeds the engine, checks what it says, carries it out, and gives the number of things.
    fn on(&mut self, event: Event) -> usize {
        let asks = matches!(event, Event::Keepalive { reply_requested: true, .. });
        let before = self.engine.positions();
        let effects = self.engine.on(event, self.now - self.epoch);
        let after = self.engine.positions();
        check_positions(before, after);
        // The engine knows what the target did only when it hears of it.
        assert!(after.durable <= self.target.durable().end.position(), "{after:?} is not on the disk");
        let steps = self.confirm_delay.as_millis() / CONFIRM_STEP.as_millis();
        assert!(
            self.engine.aging.len() as u128 <= steps + 2,
            "{} positions remembered",
            self.engine.aging.len()
        );

        let count = effects.len();
        let (mut answered, mut finished) = (false, None);
        for effect in effects {
            assert!(finished.is_none(), "{effect:?} after the end");
            match effect {
                Effect::Apply(_) | Effect::Store { .. } | Effect::Abandon | Effect::Flush => {
                    let flushes = self.under_way.iter().any(|effect| matches!(effect, Effect::Flush));
                    assert!(!flushes || !matches!(effect, Effect::Flush), "flushed twice at once");
                    // What is given up is not waited for.
                    let max = UNDER_WAY_MAX + usize::from(matches!(effect, Effect::Abandon));
                    self.under_way.push_back(effect);
                    assert!(self.under_way() <= max, "{} things under way", self.under_way());
                }
                Effect::Report(positions) => self.report(positions),
                Effect::Answer(_) => answered = true,
                Effect::Mark => {
                    self.source.commit(&Transaction { gap: 5, changes: Vec::new() }, true);
                    self.source.wal_end += 50;
                    self.connection.messages.extend(self.source.transactions.last().unwrap().messages());
                }
                Effect::Finish(finish) => finished = Some(finish),
            }
        }
        assert_eq!(answered, asks, "a question without an answer");
        // Whoever waits for the deadline waits for something.
        let due = self.engine.next_deadline();
        assert_eq!(finished.is_some(), due.is_none());
        assert!(due.is_none_or(|due| self.epoch + due > self.now), "{due:?} at {:?}", self.now);
        if let Some(finish) = finished {
            self.finish(finish);
        } else if self.under_way() == 0 {
            // Whatever can be done is being done.
            assert!(!self.stopping, "not stopped");
            let open = self.target.open.is_some();
            assert!(open || self.memory.held() == 0, "{} held for nothing", self.memory.held());
            assert!(open || self.run_to.is_none_or(|run_to| after.applied < run_to), "not finished");
        }
        count
    }

    fn report(&mut self, positions: Positions) {
        let confirmed = positions.confirmed;
        // A target that is set back by less than the delay still finds on the source what it lacks, and what it has to
        // know it by.
        let back = self.now.checked_sub(self.confirm_delay);
        let old = back.map_or(SourceLsn::ZERO, |then| self.target.durable_at(then));
        assert!(confirmed <= old, "confirmed {confirmed} too early");
        self.source.confirmed = self.source.confirmed.max(confirmed);
        self.source.told.push(confirmed);
    }

    fn finish(&mut self, finish: Finish) {
        assert_eq!(self.under_way(), 0);
        let stored = self.target.progress();
        let open = self.target.open.is_some();
        // Inside a large transaction nothing can be flushed.
        assert!(open || self.target.durable() == stored, "finished before the disk had it");
        match finish {
            Finish::Stopped => assert!(self.stopping),
            Finish::Reached => {
                let run_to = self.run_to.unwrap();
                assert!(!self.stopping && !open);
                // All that commits before it, and nothing else.
                self.check_history(run_to);
            }
        }
        self.start(Start { run_to: None, own_clock: true });
    }

    /// Nothing goes wrong any more: everything arrives, is applied, and in time durable and confirmed, but for the last
    /// transaction, by which the history is known again.
    fn settle(&mut self, asks: bool) {
        if !self.refused {
            self.start(Start { run_to: None, own_clock: true });
        }
        // What was asked for comes, too.
        for _ in 0..3 {
            while !self.refused && (!self.connection.messages.is_empty() || self.under_way() > 0) {
                self.deliver();
                self.complete();
            }
            if !self.refused {
                self.keepalive(u64::MAX >> 1, asks);
            }
            if self.refused {
                return;
            }
            self.complete_all();
            self.pass(FLUSH_AFTER);
            // What shows that the source has what was copied is asked for so long after the last one that was received.
            let end = self.now + MARK_INTERVAL_MIN;
            while !self.shows_copies() && self.connection.messages.is_empty() && self.now < end {
                self.pass(FLUSH_AFTER);
            }
        }
        let all = SourceLsn::new(self.source.wal_end);
        assert_eq!(self.target.changes, self.source.before(all));
        assert_eq!((self.memory.held(), self.connection.messages.len()), (0, 0));
        self.pass(IDLE_STORE_INTERVAL + FLUSH_AFTER);
        self.pass(self.confirm_delay + CONFIRM_STEP + STATUS_INTERVAL);
        let stored = self.target.durable();
        let confirmed = stored.landmark.unwrap().commit_lsn.position();
        assert_eq!(stored.end.position(), all);
        assert_eq!(
            self.engine.positions(),
            Positions { received: all, applied: all, durable: all, confirmed }
        );
        assert_eq!(self.source.confirmed, confirmed);
        assert!(self.shows_copies(), "{confirmed} does not show what was copied at {}", self.copied);
    }

    /// Whether the history is known by something that was there after the last copy.
    fn shows_copies(&self) -> bool {
        let known = self.target.progress().landmark.map(|landmark| landmark.commit_lsn.position());
        self.copied == SourceLsn::ZERO || known.is_some_and(|known| known >= self.copied)
    }

    fn complete_all(&mut self) {
        while self.under_way() > 0 {
            self.complete();
        }
    }

    /// Nothing happens but the clock and what it sets going.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.wakes(end) {
            self.complete_all();
        }
    }

    /// Goes on to the engine's next deadline and wakes it there, for something; or to `end`, if that is before.
    fn wakes(&mut self, end: Duration) -> bool {
        if self.refused {
            return false;
        }
        let due = self.engine.next_deadline().expect("one that has ended is replaced");
        let due = self.epoch + due;
        // One that has just begun is to be told the time, no more.
        let begins = due <= self.now;
        let then = due.max(self.now).min(end);
        if !begins {
            // Whoever comes too early changes nothing.
            self.now = if due > end { end } else { due - Duration::from_nanos(1) };
            self.early = !self.early;
            if self.early {
                assert_eq!(self.on(Event::Deadline), 0, "before {due:?}");
            }
        }
        self.now = then;
        if due > end {
            return false;
        }
        let count = self.on(Event::Deadline);
        assert!(count > 0 || begins, "nothing was due at {due:?}");
        true
    }
}

/// Whole transactions within the bound, or one part of one: the next one where a transaction is open.
fn check_batch(batch: &Batch, open: bool) {
    assert_eq!(batch.segments[0].first, !open);
    assert!(!batch.segments.is_empty());
    assert_eq!(batch.cost, batch.segments.iter().map(|segment| segment.cost).sum::<usize>());
    if batch.segments.len() > 1 {
        assert!(batch.cost <= BATCH_COST_MAX);
        assert!(batch.segments.iter().all(|segment| segment.first && segment.end.is_some()));
    }
}

/// A part of a transaction, as it goes ahead or ends what did.
fn part(changes: &[(u64, usize)], first: bool, commit_lsn: u64, end: Option<EndLsn>) -> Segment {
    let Message::Relation(relation) = relation(0).message else { unreachable!() };
    let relation = std::sync::Arc::new(relation);
    let insert = |(number, _): &(u64, usize)| Change::Insert {
        relation: std::sync::Arc::clone(&relation),
        new: Tuple::from_values([TupleValue::Text(number.to_string().as_bytes())]),
    };
    let cost = changes.iter().map(|(_, size)| size).sum();
    let changes = changes.iter().map(insert).collect();
    Segment { changes, ..segment(commit_lsn, first, end.map(EndLsn::get), cost) }
}

fn number(change: &Change) -> u64 {
    let Change::Insert { new, .. } = change else { unreachable!() };
    let value = new.columns().next().unwrap();
    let bytes: Bytes = new.value_bytes(value).unwrap();
    std::str::from_utf8(&bytes).unwrap().parse().unwrap()
}
