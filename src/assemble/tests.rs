//! Each legal and illegal order of messages, and what becomes of large transactions.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::*;
use crate::pg::{Oid, QualifiedName, ReplicaIdentity, SourceLsn};
use crate::proto::{
    Begin, Commit, Delete, Insert, LogicalMessage, Origin, OriginLsn, Truncate, TupleValue, Type, Update,
};

fn begin(commit_lsn: u64) -> Message {
    Message::Begin(Begin {
        final_lsn: CommitLsn::new(commit_lsn),
        commit_time: PgTimestamp::from_micros(7),
        xid: xid(commit_lsn),
    })
}

/// The transaction that commits at `commit_lsn` is also called so.
fn xid(commit_lsn: u64) -> Xid {
    Xid::new(u32::try_from(commit_lsn).unwrap())
}

fn commit(commit_lsn: u64, end: u64) -> Message {
    Message::Commit(Commit {
        commit_lsn: CommitLsn::new(commit_lsn),
        end_lsn: EndLsn::new(end),
        commit_time: PgTimestamp::from_micros(7),
    })
}

pub(super) fn relation(id: u32, columns: usize) -> Message {
    let column = |n: usize| Column {
        name: format!("c{n}"),
        type_oid: Oid::new(25),
        type_modifier: -1,
        type_name: None,
        key: n == 0,
    };
    Message::Relation(Relation {
        id: RelationId::new(id),
        name: QualifiedName::new("public", format!("t{id}")),
        identity: ReplicaIdentity::Default,
        columns: (0..columns).map(column).collect(),
    })
}

fn tuple(columns: usize) -> Tuple {
    Tuple::from_values((0..columns).map(|_| TupleValue::Text(b"x")))
}

fn insert(id: u32, columns: usize) -> Message {
    Message::Insert(Insert { relation: RelationId::new(id), new: tuple(columns) })
}

fn update(id: u32, old: Option<OldTuple>, columns: usize) -> Message {
    Message::Update(Update { relation: RelationId::new(id), old, new: tuple(columns) })
}

fn delete(id: u32, columns: usize) -> Message {
    Message::Delete(Delete { relation: RelationId::new(id), old: OldTuple::Key(tuple(columns)) })
}

fn truncate(ids: &[u32]) -> Message {
    let relations = ids.iter().copied().map(RelationId::new).collect();
    Message::Truncate(Truncate { relations, cascade: true, restart_identity: false })
}

fn beside() -> [Message; 3] {
    [
        Message::Origin(Origin { lsn: OriginLsn::new(5), name: "elsewhere".to_owned() }),
        Message::Type(Type { oid: Oid::new(99_999), name: QualifiedName::new("public", "mood") }),
        Message::Message(LogicalMessage {
            transactional: false,
            lsn: SourceLsn::new(5),
            prefix: "app".to_owned(),
            content: Bytes::from_static(b"hello"),
        }),
    ]
}

/// A segment in short: `>` where it is the first, its changes, and where it ends.
fn short(segment: &Segment) -> String {
    let change = |change: &Change| match change {
        Change::Insert { relation, new } => format!("I{}/{}", relation.id, new.len()),
        Change::Update { relation, old, .. } => match old {
            None => format!("U{}", relation.id),
            Some(OldTuple::Key(_)) => format!("U{}k", relation.id),
            Some(OldTuple::Full(_)) => format!("U{}o", relation.id),
        },
        Change::Delete { relation, .. } => format!("D{}", relation.id),
        Change::Truncate { relations, cascade, restart_identity } => {
            let ids: Vec<String> = relations.iter().map(|relation| relation.id.to_string()).collect();
            format!("T{}{}{}", ids.join("+"), u8::from(*cascade), u8::from(*restart_identity))
        }
    };
    let changes: Vec<String> = segment.changes.iter().map(change).collect();
    let end = segment.end.map_or(String::new(), |end| format!(" ={}", end.get()));
    format!(
        "{}{} [{}]{end}",
        if segment.first { ">" } else { "" },
        segment.commit_lsn.get(),
        changes.join(" ")
    )
}

/// Feeds the messages; gives the segments in short, and the error that ended it.
fn run(
    mut assembler: Assembler,
    messages: impl IntoIterator<Item = Message>,
) -> (Vec<String>, Option<AssembleError>) {
    let mut segments = Vec::new();
    for message in messages {
        match assembler.push(message, 10) {
            Ok(None) => {}
            Ok(Some(segment)) => {
                assert_eq!(segment.xid, xid(segment.commit_lsn.get()));
                assert_eq!(segment.commit_time, PgTimestamp::from_micros(7));
                segments.push(short(&segment));
            }
            Err(error) => return (segments, Some(error)),
        }
    }
    assert!(!assembler.in_transaction());
    (segments, None)
}

#[test]
fn legal_orders() {
    let check = |messages: Vec<Message>, expected: &[&str]| {
        assert_eq!(
            run(Assembler::new(), messages),
            (expected.iter().map(ToString::to_string).collect(), None)
        );
    };
    check(vec![], &[]);
    check(vec![begin(10), commit(10, 11)], &[">10 [] =11"]);
    // A transaction may commit exactly where the one before ended.
    check(vec![begin(10), commit(10, 20), begin(20), commit(20, 30)], &[">10 [] =20", ">20 [] =30"]);
    check(
        vec![begin(10), relation(1, 2), insert(1, 2), update(1, None, 2), delete(1, 2), commit(10, 20)],
        &[">10 [I1/2 U1 D1] =20"],
    );
    check(
        vec![
            begin(10),
            relation(1, 2),
            update(1, Some(OldTuple::Key(tuple(2))), 2),
            update(1, Some(OldTuple::Full(tuple(2))), 2),
            commit(10, 20),
        ],
        &[">10 [U1k U1o] =20"],
    );
    // Relations are known beyond the transaction that they were announced in, and may come before any.
    check(
        vec![
            relation(1, 2),
            begin(10),
            relation(2, 0),
            commit(10, 20),
            begin(30),
            insert(1, 2),
            insert(2, 0),
        ]
        .into_iter()
        .chain([truncate(&[2, 1]), commit(30, 40)])
        .collect(),
        &[">10 [] =20", ">30 [I1/2 I2/0 T2+110] =40"],
    );
    // What does not change a row may stand anywhere.
    let [a, b, c] = beside();
    let [d, e, f] = beside();
    check(
        vec![a, b, c, begin(10), d, relation(1, 1), e, insert(1, 1), f, commit(10, 20)],
        &[">10 [I1/1] =20"],
    );
}

/// The last transaction applied comes first, and is not handed out; any other is another history.
#[test]
fn what_comes_first_is_recognised() {
    let landmark = Landmark {
        commit_lsn: CommitLsn::new(100),
        end: EndLsn::new(110),
        xid: xid(100),
        commit_time: PgTimestamp::from_micros(7),
    };
    let check = |landmark: Landmark, messages: Vec<Message>, expected: Result<&[&str], Found>| {
        let resume = Resume { landmark: Some(landmark), ..Resume::at(EndLsn::new(150)) };
        let (segments, error) = run(Assembler::going_on(&resume), messages);
        let (expected, refused) = match expected {
            Ok(expected) => (expected, None),
            Err(found) => (&[][..], Some(AssembleError::OtherHistory { expected: landmark, found })),
        };
        assert_eq!((segments, error), (expected.iter().map(ToString::to_string).collect(), refused));
    };
    let comes = || {
        vec![
            begin(100),
            relation(1, 1),
            insert(1, 1),
            commit(100, 110),
            begin(150),
            insert(1, 1),
            commit(150, 160),
        ]
    };
    check(landmark, comes(), Ok(&[">150 [I1/1] =160"]));
    let found = || Err(Found::Transaction(xid(100), CommitLsn::new(100)));
    check(Landmark { xid: xid(99), ..landmark }, comes(), found());
    check(Landmark { commit_time: PgTimestamp::from_micros(8), ..landmark }, comes(), found());
    check(Landmark { end: EndLsn::new(109), ..landmark }, comes(), found());
    check(Landmark { end: EndLsn::new(111), ..landmark }, comes(), found());
    // Another place is that of another one.
    check(Landmark { commit_lsn: CommitLsn::new(99), ..landmark }, comes(), found());
    let later = Err(Found::Transaction(xid(150), CommitLsn::new(150)));
    check(landmark, vec![begin(150), relation(1, 1), insert(1, 1), commit(150, 160)], later);
}

#[test]
fn illegal_orders() {
    let check = |messages: Vec<Message>, expected: AssembleError| {
        let (_, error) = run(Assembler::new(), messages);
        assert_eq!(error, Some(expected));
    };
    check(vec![begin(10), begin(20)], AssembleError::Nested { outer: xid(10), inner: xid(20) });
    check(vec![commit(10, 20)], AssembleError::Outside { what: "Commit" });
    check(vec![begin(10), commit(10, 20), commit(10, 20)], AssembleError::Outside { what: "Commit" });
    for change in [insert(1, 2), update(1, None, 2), delete(1, 2), truncate(&[1])] {
        check(vec![relation(1, 2), change], AssembleError::Outside { what: "change" });
    }
    let unknown = AssembleError::UnknownRelation(RelationId::new(9));
    for change in [insert(9, 2), update(9, None, 2), delete(9, 2), truncate(&[1, 9])] {
        check(vec![begin(10), relation(1, 2), change], unknown.clone());
    }
    let width = |sent| AssembleError::Width { relation: RelationId::new(1), sent, announced: 2 };
    for (change, sent) in [
        (insert(1, 1), 1),
        (insert(1, 3), 3),
        (insert(1, 0), 0),
        (update(1, None, 3), 3),
        (update(1, Some(OldTuple::Key(tuple(2))), 1), 1),
        (update(1, Some(OldTuple::Key(tuple(1))), 2), 1),
        (update(1, Some(OldTuple::Full(tuple(3))), 2), 3),
        (delete(1, 1), 1),
    ] {
        check(vec![begin(10), relation(1, 2), change], width(sent));
    }
    let mismatch = |begin, commit| AssembleError::CommitMismatch {
        begin: CommitLsn::new(begin),
        commit: CommitLsn::new(commit),
    };
    check(vec![begin(10), commit(11, 20)], mismatch(10, 11));
    check(vec![begin(10), commit(9, 20)], mismatch(10, 9));
    for end in [10, 9, 0] {
        let (commit_lsn, at) = (CommitLsn::new(10), EndLsn::new(end));
        check(vec![begin(10), commit(10, end)], AssembleError::EndMismatch { commit: commit_lsn, end: at });
    }
    for early in [19, 10, 0] {
        let (previous, commit_lsn) = (EndLsn::new(20), CommitLsn::new(early));
        check(
            vec![begin(10), commit(10, 20), begin(early)],
            AssembleError::OutOfOrder { previous, commit: commit_lsn },
        );
    }
}

#[test]
fn what_is_applied_already_is_refused() {
    let check = |stored: u64, commit_lsn: u64, refused: bool| {
        let messages = [begin(commit_lsn), relation(1, 2), insert(1, 2), commit(commit_lsn, commit_lsn + 5)];
        let (segments, error) = run(Assembler::resuming(EndLsn::new(stored)), messages);
        let (applied, at) = (EndLsn::new(stored), CommitLsn::new(commit_lsn));
        let expected =
            refused.then_some(AssembleError::Unheard { xid: xid(commit_lsn), commit: at, applied });
        assert_eq!((segments.is_empty(), error), (refused, expected), "stored {stored}, commit {commit_lsn}");
        // One without changes is nothing that could be lost.
        let (_, error) = run(
            Assembler::resuming(EndLsn::new(stored)),
            [begin(commit_lsn), commit(commit_lsn, commit_lsn + 5)],
        );
        assert_eq!(error, None);
    };
    check(100, 99, true);
    // The transaction that ended exactly at the stored position.
    check(100, 95, true);
    check(100, 100, false);
    check(100, 101, false);
    check(0, 0, false);
}

#[test]
fn messages_say_where() {
    let check = |error: AssembleError, text: &str| assert_eq!(error.to_string(), text);
    let (commit, end) = (CommitLsn::new(0x10), EndLsn::new(0x20));
    check(
        AssembleError::Nested { outer: Xid::new(1), inner: Xid::new(2) },
        "transaction 2 begins inside transaction 1",
    );
    check(AssembleError::Outside { what: "Commit" }, "Commit outside a transaction");
    check(
        AssembleError::OutOfOrder { previous: end, commit },
        "transaction at 0/10 after one that ended at 0/20",
    );
    check(
        AssembleError::CommitMismatch { begin: commit, commit: CommitLsn::new(0x11) },
        "commit at 0/11 of a transaction that was announced for 0/10",
    );
    check(
        AssembleError::EndMismatch { commit, end: EndLsn::new(0x10) },
        "transaction at 0/10 is said to end at 0/10, which is not after it",
    );
}

#[test]
fn a_relation_announced_again_holds_from_there() {
    let mut assembler = Assembler::new();
    let mut feed = |message| assembler.push(message, 10).unwrap();
    for message in [begin(10), relation(1, 2), insert(1, 2), relation(1, 3), insert(1, 3)] {
        assert!(feed(message).is_none());
    }
    let segment = feed(commit(10, 20)).unwrap();
    let widths = segment.changes.iter().map(|change| match change {
        Change::Insert { relation, new } => (relation.columns.len(), new.len()),
        _ => unreachable!(),
    });
    assert_eq!(widths.collect::<Vec<_>>(), [(2, 2), (3, 3)]);
    // The earlier width is gone, in the next transaction too.
    feed(begin(30));
    let error = assembler.push(insert(1, 2), 10).unwrap_err();
    assert_eq!(error, AssembleError::Width { relation: RelationId::new(1), sent: 2, announced: 3 });
}

#[test]
fn large_transactions_come_in_segments() {
    // Bytes of each change, how many of them.
    for (bytes, count) in [(100, 50_000), (1 << 20, 40), (3 << 20, 7), (SEGMENT_COST_MAX, 3), (1, 3)] {
        let mut assembler = Assembler::new();
        let mut segments = Vec::new();
        assembler.push(begin(10), 10).unwrap();
        assembler.push(relation(1, 1), 10).unwrap();
        for _ in 0..count {
            segments.extend(assembler.push(insert(1, 1), bytes).unwrap());
            assert!(assembler.in_transaction());
            assert_eq!(assembler.in_large_transaction(), !segments.is_empty());
        }
        segments.extend(assembler.push(commit(10, 20), 10).unwrap());
        assert!(!assembler.in_transaction() && !assembler.in_large_transaction());

        let changes: usize = segments.iter().map(|segment| segment.changes.len()).sum();
        assert_eq!(changes, count);
        for (index, segment) in segments.iter().enumerate() {
            assert_eq!(segment.first, index == 0);
            let end = (index + 1 == segments.len()).then_some(EndLsn::new(20));
            assert_eq!(segment.end, end);
            assert_eq!((segment.xid, segment.commit_lsn), (xid(10), CommitLsn::new(10)));
            // A segment is cut by the change that makes it too large, and holds no more than that one too much.
            let held: usize = segment.changes.len() * (bytes + CHANGE_COST);
            assert!(segment.cost >= held, "cost {} for {held}", segment.cost);
            assert!(segment.cost <= SEGMENT_COST_MAX + bytes + CHANGE_COST, "cost {}", segment.cost);
            assert!(end.is_some() || segment.cost >= SEGMENT_COST_MAX);
        }
        assert_eq!(segments.len() > 1, count * (bytes + CHANGE_COST) >= SEGMENT_COST_MAX);
    }
}

/// Otherwise a target that stands still would let them pile up without bound.
#[test]
fn nothing_is_free() {
    let mut assembler = Assembler::new();
    assembler.push(begin(10), 10).unwrap();
    let empty = assembler.push(commit(10, 20), 10).unwrap().unwrap();
    assert!(empty.cost >= size_of::<Segment>());

    let columns = 1_000;
    assembler.push(begin(30), 10).unwrap();
    let mut messages = 0;
    let segment = loop {
        assembler.push(relation(1, columns), columns * 13).unwrap();
        messages += 1;
        if let Some(segment) = assembler.push(insert(1, columns), columns * 6).unwrap() {
            break segment;
        }
    };
    let each = columns * (13 + size_of::<Column>());
    assert!(segment.cost >= messages * each);
    assert!(messages <= SEGMENT_COST_MAX / each + 1, "{messages} announcements held");
}

/// Type messages come before the relation that has the types, and are not repeated for each.
#[test]
fn types_are_told_by_name() {
    let mood = || Message::Type(Type { oid: Oid::new(16_400), name: QualifiedName::new("public", "mood") });
    let typed = |oid: u32| {
        let Message::Relation(mut announced) = relation(1, 2) else { unreachable!() };
        announced.columns[1].type_oid = Oid::new(oid);
        Message::Relation(announced)
    };
    let mut assembler = Assembler::new();
    let mut check = |messages: Vec<Message>, expected: Option<&str>| {
        let messages = [begin(1)].into_iter().chain(messages).chain([insert(1, 2), commit(1, 2)]);
        assembler.previous_end = EndLsn::new(0);
        let segment = messages.filter_map(|message| assembler.push(message, 0).unwrap()).next().unwrap();
        let Change::Insert { relation, .. } = &segment.changes[0] else { unreachable!() };
        assert_eq!(relation.columns[0].type_name, None);
        assert_eq!(relation.columns[1].type_name.as_ref().map(|name| name.name.as_str()), expected);
    };
    check(vec![typed(25)], None);
    check(vec![typed(16_400)], None);
    check(vec![mood(), typed(16_400)], Some("mood"));
    check(vec![typed(16_400)], Some("mood"));
    check(vec![typed(25)], None);
}
