//! Transactions in progress: what of them comes out, in which order, and what may not come.

use bytes::{Bytes, BytesMut};

use crate::assemble::tests;
use crate::assemble::{AssembleError, Assembler, Change, Segment, TakeError};
use crate::limits::SEGMENT_COST_MAX;
use crate::pg::{CommitLsn, EndLsn, Landmark, PgTimestamp, RelationId, Resume, SourceLsn, Xid};
use crate::proto::{
    Begin, BeginPrepare, Commit, DecodeError, Insert, Message, Prepared, StreamAbort, StreamCommit,
    StreamStart, Truncate, Tuple, TupleValue,
};
use crate::spill::SpillDir;

/// A message, and its subtransaction where it stands in a block.
type Sent = (Option<u32>, Message);

fn start(xid: u32, first: bool) -> Sent {
    (None, Message::StreamStart(StreamStart { xid: Xid::new(xid), first }))
}

fn stop() -> Sent {
    (None, Message::StreamStop)
}

fn abort(xid: u32, subxid: u32) -> Sent {
    (None, Message::StreamAbort(StreamAbort { xid: Xid::new(xid), subxid: Xid::new(subxid), place: None }))
}

fn commit(xid: u32, at: u64) -> Sent {
    commit_ending(xid, at, at + 5)
}

fn commit_ending(xid: u32, at: u64, end: u64) -> Sent {
    let (commit_lsn, end_lsn) = (CommitLsn::new(at), EndLsn::new(end));
    let commit_time = PgTimestamp::from_micros(7);
    (None, Message::StreamCommit(StreamCommit { xid: Xid::new(xid), commit_lsn, end_lsn, commit_time }))
}

fn relation(xid: u32, id: u32, columns: usize) -> Sent {
    (Some(xid), tests::relation(id, columns))
}

fn insert(xid: u32, id: u32, value: &str, columns: usize) -> Sent {
    let new = Tuple::from_values((0..columns).map(|_| TupleValue::Text(value.as_bytes())));
    (Some(xid), Message::Insert(Insert { relation: RelationId::new(id), new }))
}

/// A transaction that comes whole.
fn whole(at: u64, inside: Vec<Sent>) -> Vec<Sent> {
    let (commit_lsn, commit_time) = (CommitLsn::new(at), PgTimestamp::from_micros(7));
    let begin = Message::Begin(Begin { final_lsn: commit_lsn, commit_time, xid: Xid::new(1) });
    let commit = Message::Commit(Commit { commit_lsn, end_lsn: EndLsn::new(at + 5), commit_time });
    let inside = inside.into_iter().map(|(_, message)| (None, message));
    [(None, begin)].into_iter().chain(inside).chain([(None, commit)]).collect()
}

struct Fed {
    _parent: tempfile::TempDir,
    spill: SpillDir,
    assembler: Assembler,
}

impl Fed {
    fn new() -> Self {
        let parent = tempfile::tempdir().expect("a directory");
        let spill = SpillDir::create(parent.path(), "spill", 1 << 30).expect("a spill directory");
        let assembler = Assembler::new().streaming(spill.clone());
        Self { _parent: parent, spill, assembler }
    }

    fn feed(&mut self, messages: impl IntoIterator<Item = Sent>) -> Result<Vec<Segment>, TakeError> {
        let mut segments = Vec::new();
        for (xid, message) in messages {
            let mut out = BytesMut::new();
            message.encode(xid.map(Xid::new), &mut out);
            segments.extend(self.assembler.take(out.freeze())?);
            while self.assembler.has_replay() {
                segments.extend(self.assembler.replay()?);
            }
        }
        Ok(segments)
    }
}

/// `xid@commit: value value=end`, a segment each.
fn short(segments: &[Segment]) -> Vec<String> {
    let change = |change: &Change| match change {
        Change::Insert { new, .. } => {
            let first = new.columns().next().and_then(TupleValue::bytes).unwrap_or_default();
            String::from_utf8_lossy(first).into_owned()
        }
        _ => unreachable!("only inserts were fed"),
    };
    let segment = |segment: &Segment| {
        assert!(segment.first);
        let changes: Vec<String> = segment.changes.iter().map(change).collect();
        let end = segment.end.expect("whole").get();
        format!("{}@{}: {} ={end}", segment.xid, segment.commit_lsn.get(), changes.join(" "))
    };
    segments.iter().map(segment).collect()
}

/// The last transaction applied may come in progress again.
#[test]
fn what_comes_first_is_recognised() {
    let landmark = Landmark {
        commit_lsn: CommitLsn::new(100),
        end: EndLsn::new(105),
        xid: Xid::new(7),
        commit_time: PgTimestamp::from_micros(7),
    };
    let check = |landmark: Landmark, expected: Result<&[&str], &str>| {
        let mut fed = Fed::new();
        let resume = Resume { landmark: Some(landmark), ..Resume::at(EndLsn::new(150)) };
        fed.assembler = Assembler::going_on(&resume).streaming(fed.spill.clone());
        let first = [start(7, true), relation(7, 1, 1), insert(7, 1, "a", 1), stop(), commit(7, 100)];
        let next = [start(8, true), relation(8, 1, 1), insert(8, 1, "b", 1), stop(), commit(8, 150)];
        match (fed.feed(first.into_iter().chain(next)), expected) {
            (Ok(segments), Ok(expected)) => assert_eq!(short(&segments), expected),
            (Err(TakeError::Order(error)), Err(found)) => {
                assert!(matches!(error, AssembleError::OtherHistory { .. }), "{error:?}");
                assert!(error.to_string().contains(found), "{error}");
            }
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    };
    check(landmark, Ok(&["8@150: b =155"]));
    let found = Err("transaction 7 that committed at 0/64");
    check(Landmark { xid: Xid::new(6), ..landmark }, found);
    check(Landmark { commit_time: PgTimestamp::from_micros(8), ..landmark }, found);
    check(Landmark { end: EndLsn::new(104), ..landmark }, found);
    check(Landmark { commit_lsn: CommitLsn::new(101), ..landmark }, found);
}

#[test]
fn what_commits_comes_out() {
    let check = |messages: Vec<Sent>, expected: &[&str]| {
        let mut fed = Fed::new();
        assert_eq!(short(&fed.feed(messages).expect("legal")), expected);
        assert_eq!(fed.spill.used(), 0, "nothing is left on disk");
        assert!(!fed.assembler.in_transaction() && !fed.assembler.in_large_transaction());
    };
    let block = |xid, first, inside: Vec<Sent>| [vec![start(xid, first)], inside, vec![stop()]].concat();
    // In one block and in several, in commit order, with others between them.
    check(
        [block(7, true, vec![relation(7, 1, 1), insert(7, 1, "a", 1)]), vec![commit(7, 10)]].concat(),
        &["7@10: a =15"],
    );
    check(
        [
            block(7, true, vec![relation(7, 1, 1), insert(7, 1, "a", 1)]),
            block(8, true, vec![relation(8, 1, 1), insert(8, 1, "x", 1)]),
            whole(10, vec![relation(0, 2, 1), insert(0, 2, "w", 1)]),
            block(7, false, vec![insert(7, 1, "b", 1)]),
            block(8, false, vec![insert(8, 1, "y", 1)]),
            vec![commit(8, 20), commit(7, 30)],
        ]
        .concat(),
        &["1@10: w =15", "8@20: x y =25", "7@30: a b =35"],
    );
    // Exactly the part that is rolled back is left out, whatever it stands between.
    check(
        [
            block(7, true, vec![relation(7, 1, 1), insert(7, 1, "a", 1), insert(9, 1, "b", 1)]),
            block(7, false, vec![insert(10, 1, "c", 1), insert(11, 1, "d", 1)]),
            vec![abort(7, 11), abort(7, 9)],
            block(7, false, vec![relation(7, 1, 1), insert(7, 1, "e", 1)]),
            vec![commit(7, 10)],
        ]
        .concat(),
        &["7@10: a c e =15"],
    );
    // All of it, before its end and without anything that came.
    check(
        [block(7, true, vec![relation(7, 1, 1), insert(7, 1, "a", 1)]), vec![abort(7, 9), abort(7, 7)]]
            .concat(),
        &[],
    );
    check(vec![abort(7, 7), abort(7, 8)], &[]);
    // An empty one commits, too: positions move with it.
    check([block(7, true, vec![]), vec![commit(7, 10)]].concat(), &["7@10:  =15"]);
}

fn block(xid: u32, first: bool, inside: Vec<Sent>) -> Vec<Sent> {
    [vec![start(xid, first)], inside, vec![stop()]].concat()
}

/// Rows of which each nearly fills a segment.
fn wide(xid: u32, values: &[&str]) -> Vec<Sent> {
    let row = |value: &&str| insert(xid, 1, &format!("{value}{}", "~".repeat(SEGMENT_COST_MAX)), 1);
    values.iter().map(row).collect()
}

/// `xid@commit`, whether it goes ahead, its first part, the first letters of its values, and its end.
fn parts(segments: &[Segment]) -> Vec<String> {
    let letter = |change: &Change| match change {
        Change::Insert { new, .. } => {
            let value =
                new.columns().next().and_then(TupleValue::bytes).and_then(|value| value.first().copied());
            char::from(value.expect("a value"))
        }
        _ => unreachable!("only inserts were fed"),
    };
    let part = |segment: &Segment| {
        let ahead = if segment.ahead { "ahead " } else { "" };
        let first = if segment.first { "first " } else { "" };
        let values: String = segment.changes.iter().map(letter).collect();
        let end = segment.end.map_or(String::new(), |end| format!(" ={}", end.get()));
        format!("{}@{}: {ahead}{first}{values}{end}", segment.xid, segment.commit_lsn.get())
    };
    segments.iter().map(part).collect()
}

/// A transaction 7 whose first change stands at 50 goes ahead with `a`; gives what was handed out.
fn ahead() -> Fed {
    let mut fed = Fed::new();
    fed.feed(whole(10, vec![])).expect("legal");
    assert!(fed.feed([start(7, true)]).expect("legal").is_empty());
    assert_eq!(fed.assembler.may_go_ahead(SourceLsn::new(50)), Some(Xid::new(7)));
    fed.assembler.go_ahead(SourceLsn::new(50), PgTimestamp::from_micros(9));
    assert!(fed.assembler.in_transaction());
    let inside = [vec![relation(7, 1, 1)], wide(7, &["a"]), vec![stop()]].concat();
    assert_eq!(parts(&fed.feed(inside).expect("legal")), ["7@50: ahead first a"]);
    fed
}

#[test]
fn what_goes_ahead_comes_as_it_comes() {
    let mut fed = ahead();
    // Others in progress do not overtake it, nor do those that are rolled back.
    let others = block(8, true, vec![relation(8, 1, 1), insert(8, 1, "x", 1)]);
    assert!(fed.feed([others, vec![abort(8, 8)]].concat()).expect("legal").is_empty());
    let more = fed.feed(block(7, false, [wide(7, &["b"]), vec![insert(9, 1, "c", 1)]].concat()));
    assert_eq!(parts(&more.expect("legal")), ["7@50: ahead b"]);
    assert!(fed.spill.used() > 2 * SEGMENT_COST_MAX as u64, "kept as well");
    assert_eq!(parts(&fed.feed([commit(7, 90)]).expect("legal")), ["7@90: c =95"]);
    assert_eq!((fed.spill.used(), fed.assembler.gave_up()), (0, false));
    assert!(!fed.assembler.in_transaction());
    // What it announced is known from here on, and the order goes on from its end.
    assert_eq!(
        parts(&fed.feed(whole(95, vec![insert(0, 1, "w", 1)])).expect("legal")),
        ["1@95: first w =100"]
    );
    let error = fed.feed(whole(99, vec![])).expect_err("before the last one's end");
    assert_eq!(error.to_string(), "transaction at 0/63 after one that ended at 0/64");
}

#[test]
fn what_is_overtaken_never_happened() {
    let check = |overtaken_by: Vec<Sent>, between: &[&str], whole: &[&str]| {
        let mut fed = ahead();
        assert_eq!(parts(&fed.feed(overtaken_by).expect("legal")), between);
        assert!(fed.assembler.gave_up() && !fed.assembler.gave_up(), "said once");
        assert!(!fed.assembler.in_transaction());
        // Nothing of it goes ahead any more.
        assert!(fed.feed(block(7, false, wide(7, &["b"]))).expect("legal").is_empty());
        assert_eq!(parts(&fed.feed([commit(7, 90)]).expect("legal")), whole);
        assert_eq!((fed.spill.used(), fed.assembler.gave_up()), (0, false));
    };
    let all = ["7@90: first a", "7@90: b", "7@90:  =95"];
    check(whole(60, vec![]), &["1@60: first  =65"], &all);
    let other = block(8, true, vec![relation(8, 1, 1), insert(8, 1, "x", 1)]);
    check([other, vec![commit(8, 60)]].concat(), &["8@60: first x =65"], &all);
    check(vec![abort(7, 9)], &[], &all);
    // Of all that is rolled back nothing comes.
    let mut fed = ahead();
    assert!(fed.feed([abort(7, 7)]).expect("legal").is_empty());
    assert!(fed.assembler.gave_up());
    assert_eq!(fed.spill.used(), 0);
}

#[test]
fn what_runs_beside_others_does_not_go_ahead() {
    let may = |messages: Vec<Sent>, at: u64| {
        let mut fed = Fed::new();
        fed.feed(messages).expect("legal");
        fed.assembler.may_go_ahead(SourceLsn::new(at)).map(Xid::get)
    };
    let begun = || vec![start(7, true)];
    assert_eq!(may(begun(), 50), Some(7));
    assert_eq!(may(begun(), 0), None, "where it stands is not known");
    // Only from its first change on.
    assert_eq!(may([begun(), vec![relation(7, 1, 1)]].concat(), 50), None);
    assert_eq!(may([begun(), vec![stop()]].concat(), 50), None);
    assert_eq!(may([begun(), vec![stop(), start(7, false)]].concat(), 50), None);
    // Another one is in progress, or committed since.
    assert_eq!(may([block(8, true, vec![]), begun()].concat(), 50), None);
    assert_eq!(may([block(8, true, vec![]), vec![abort(8, 8)], begun()].concat(), 50), Some(7));
    assert_eq!(may([whole(46, vec![]), begun()].concat(), 50), None);
    assert_eq!(may([whole(45, vec![]), begun()].concat(), 50), Some(7));
}

#[test]
fn what_goes_ahead_is_held_to_the_rules() {
    let check = |messages: Vec<Sent>, expected: &str| {
        let error = ahead().feed(messages).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    };
    check(
        vec![(None, tests::relation(1, 1)), (None, insert(0, 1, "w", 1).1)],
        "change outside a transaction",
    );
    check(vec![whole(60, vec![]).remove(1)], "Commit outside a transaction");
    check(block(7, false, vec![insert(7, 2, "b", 1)]), "change to relation 2, which was never announced");
    check(vec![commit(7, 49)], "transaction 7 commits at 0/31, though its first change stands at 0/32");
    check(
        vec![commit_ending(7, 60, 60)],
        "transaction at 0/3C is said to end at 0/3C, which is not after it",
    );
    check(vec![commit(8, 60)], "commit of transaction 8, of which no block came");
}

#[test]
fn relations_hold_as_the_server_takes_them_to() {
    let check = |messages: Vec<Sent>, last_width: usize| {
        let mut fed = Fed::new();
        fed.feed(messages).expect("legal");
        let fed = fed.feed(whole(100, vec![insert(0, 1, "w", last_width)]));
        fed.unwrap_or_else(|error| panic!("{last_width} columns: {error}"));
    };
    let block = |inside: Vec<Sent>| [vec![start(7, true)], inside, vec![stop()]].concat();
    // Known everywhere once it is committed.
    check([block(vec![relation(7, 1, 2)]), vec![commit(7, 50)]].concat(), 2);
    // Not when it was announced elsewhere since.
    let other = || whole(10, vec![relation(0, 1, 3), insert(0, 1, "x", 3)]);
    check([block(vec![relation(7, 1, 2)]), other(), vec![commit(7, 50)]].concat(), 3);
    check([other(), block(vec![relation(7, 1, 2)]), vec![commit(7, 50)]].concat(), 2);
    // Nor when it, or a part of it, was rolled back after.
    check([other(), block(vec![relation(7, 1, 2)]), vec![abort(7, 7)]].concat(), 3);
    check([other(), block(vec![relation(9, 1, 2)]), vec![abort(7, 9), commit(7, 50)]].concat(), 3);
}

#[test]
fn a_replay_knows_its_own_relations_only() {
    let mut fed = Fed::new();
    fed.feed(whole(10, vec![relation(0, 1, 1)])).expect("legal");
    let error = fed.feed([start(7, true), insert(7, 1, "a", 1), stop(), commit(7, 20)]).expect_err("unknown");
    assert_eq!(error.to_string(), AssembleError::UnknownRelation(RelationId::new(1)).to_string());
}

#[test]
fn illegal_orders() {
    let check = |messages: Vec<Sent>, expected: &str| {
        let error = Fed::new().feed(messages).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    };
    let begun = || vec![start(7, true), relation(7, 1, 1)];
    let with = |message: Sent| [begun(), vec![message]].concat();
    check(with(start(7, false)), "Stream Start inside a block, or a transaction, of 7");
    check(with(start(8, true)), "Stream Start inside a block, or a transaction, of 7");
    check(with(commit(7, 9)), "Stream Commit inside a block, or a transaction, of 7");
    check(with(abort(7, 7)), "Stream Abort inside a block, or a transaction, of 7");
    check(with(whole(10, vec![]).remove(0)), "Begin inside a block, or a transaction, of 7");
    check(with(whole(10, vec![]).remove(1)), "Commit inside a block, or a transaction, of 7");
    check(vec![stop()], "Stream Stop outside a block");
    check(vec![commit(7, 9)], "commit of transaction 7, of which no block came");
    check(
        vec![start(7, true), stop(), start(7, true)],
        "transaction 7 is streamed from its start a second time",
    );
    check(vec![start(7, false)], "a further block of transaction 7, of which the first did not come");
    check(
        vec![start(7, true), stop(), abort(7, 7), start(7, false)],
        "a further block of transaction 7, of which the first did not come",
    );
    let open = whole(10, vec![]).remove(0);
    check(vec![open.clone(), start(7, true)], "Stream Start inside a block, or a transaction, of 1");
    check(vec![start(7, true), stop(), open, commit(7, 20)], "transaction 7 begins inside transaction 1");
    check(
        [whole(10, vec![]), vec![start(7, true), stop(), commit(7, 9)]].concat(),
        "transaction at 0/9 after one that ended at 0/F",
    );
    check(
        [begun(), vec![stop(), commit_ending(7, 9, 9)]].concat(),
        "transaction at 0/9 is said to end at 0/9, which is not after it",
    );
    let prepared = Prepared { xid: Xid::new(7), gid: "g".to_owned() };
    let begin_prepare = Message::BeginPrepare(BeginPrepare {
        prepare_lsn: SourceLsn::new(1),
        end_lsn: EndLsn::new(2),
        prepare_time: PgTimestamp::from_micros(7),
        prepared,
    });
    let begin_prepare = (None, begin_prepare);
    check(with(begin_prepare.clone()), "a prepared transaction inside a block, or a transaction, of 7");
    check(vec![begin_prepare], "a prepared transaction, which was not asked for");
}

/// A block's rows are looked at when its transaction commits, and held to the same rules.
#[test]
fn illegal_rows() {
    let check = |inside: Vec<Sent>, expected: &str| {
        let messages = [vec![start(7, true)], inside, vec![stop()]].concat();
        let mut fed = Fed::new();
        assert!(fed.feed(messages.clone()).expect("not looked at").is_empty());
        assert_eq!(fed.feed([commit(7, 10)]).expect_err(expected).to_string(), expected);
        // They do no harm where they do not count.
        let mut fed = Fed::new();
        fed.feed(messages).expect("not looked at");
        assert_eq!(short(&fed.feed([abort(7, 8), commit(7, 10)]).expect("legal")), ["7@10:  =15"]);
    };
    let announced = relation(7, 1, 2);
    check(vec![announced.clone(), insert(8, 1, "a", 1)], "tuple of 1 columns for relation 1 of 2");
    check(vec![announced.clone(), insert(8, 1, "a", 3)], "tuple of 3 columns for relation 1 of 2");
    check(vec![announced.clone(), insert(8, 9, "a", 2)], "change to relation 9, which was never announced");
    let truncate = Truncate {
        relations: vec![RelationId::new(1), RelationId::new(9)],
        cascade: false,
        restart_identity: false,
    };
    check(
        vec![announced, (Some(8), Message::Truncate(truncate))],
        "change to relation 9, which was never announced",
    );
}

#[test]
fn a_row_that_is_none_is_refused_at_its_commit() {
    let check = |row: &[u8], expected: DecodeError| {
        let mut fed = Fed::new();
        fed.feed([start(7, true), relation(7, 1, 1)]).expect("legal");
        fed.assembler.take(Bytes::copy_from_slice(row)).expect("not looked at");
        let error = fed.feed([stop(), commit(7, 10)]).expect_err("no row");
        assert!(matches!(&error, TakeError::Decode(error) if *error == expected), "{error}");
        drop(fed.assembler);
        assert_eq!(fed.spill.used(), 0);
    };
    let count = |count, max| DecodeError::Count { field: "TupleData.column_count", count, max };
    let length = |length| DecodeError::Length { field: "TupleData.column_value", length, remaining: 0 };
    check(b"I\0\0\0\x07\0\0\0\x01N\xff\xff", count(-1, 0));
    check(b"I\0\0\0\x07\0\0\0\x01N\x7f\xff", count(i16::MAX.into(), 0));
    check(b"I\0\0\0\x07\0\0\0\x01N\0\x01t\xff\xff\xff\xff", length(-1));
    check(b"I\0\0\0\x07\0\0\0\x01N\0\x01t\x7f\xff\xff\xff", length(i32::MAX));
    check(b"I\0\0\0\x07\0\0\0\x01N\0\x01nn", DecodeError::Trailing { what: "Insert", bytes: 1 });
}

#[test]
fn nothing_in_progress_without_being_asked_for() {
    for (_, message) in [start(7, true), stop(), commit(7, 9), abort(7, 7)] {
        let mut out = BytesMut::new();
        message.encode(None, &mut out);
        let error = Assembler::new().take(out.freeze()).expect_err("not asked for");
        assert_eq!(error.to_string(), "a transaction in progress, which was not asked for");
    }
}

#[test]
fn what_is_no_message_of_a_block_is_refused() {
    for bytes in [&b"I"[..], b"I\0\0\0", b"Q", b"", b"E\0", b"R\0\0\0\x07x"] {
        let mut fed = Fed::new();
        fed.feed([start(7, true)]).expect("legal");
        let error = fed.assembler.take(Bytes::copy_from_slice(bytes)).expect_err("no message");
        assert!(matches!(error, TakeError::Decode(_)), "{bytes:?}: {error}");
    }
}

#[test]
fn large_ones_come_in_segments() {
    let mut fed = Fed::new();
    let value = "v".repeat(100_000);
    let mut messages = vec![start(7, true), relation(7, 1, 1)];
    for n in 0..600 {
        messages.push(insert(7, 1, &value, 1));
        if n % 40 == 0 {
            messages.extend([stop(), start(7, false)]);
        }
    }
    messages.push(stop());
    assert!(fed.feed(messages).expect("legal").is_empty());
    assert!(fed.spill.used() > 60_000_000);
    let segments = fed.feed([commit(7, 10)]).expect("legal");
    assert!(segments.len() > 2);
    for (n, segment) in segments.iter().enumerate() {
        assert_eq!((segment.first, segment.end.is_some()), (n == 0, n + 1 == segments.len()));
        assert!(segment.cost < SEGMENT_COST_MAX + 200_000);
    }
    assert_eq!(segments.iter().map(|segment| segment.changes.len()).sum::<usize>(), 600);
    assert_eq!(fed.spill.used(), 0);
}
