//! Whatever can be said survives being written and read; whatever else comes is an error, never a panic.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use proto_tests::{Fixture, fuzz_frames};
use walferry::pg::{
    Column, CommitLsn, EndLsn, Oid, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity,
    SourceLsn, Xid,
};
use walferry::proto::{
    AbortPlace, Begin, BeginPrepare, Blocked, Commit, CommitPrepared, Delete, Insert, Layout, LogicalMessage,
    Message, OldTuple, Origin, OriginLsn, Prepare, Prepared, PrimaryKeepalive, ReplicationFrame,
    RollbackPrepared, StandbyStatusUpdate, StreamAbort, StreamCommit, StreamStart, Truncate, Tuple,
    TupleValue, Type, Update, XLogData,
};

proptest! {
    #[test]
    fn messages_survive(message in message(), xid in xid(), in_block: bool) {
        let (mut out, layout) = (BytesMut::new(), layout(&message, in_block));
        let xid = Some(xid).filter(|_| in_block && message.has_xid());
        message.encode(xid, &mut out);
        let bytes = out.freeze();
        prop_assert_eq!(Message::decode(bytes.clone(), layout), Ok((xid, message.clone())));
        if in_block && !layout.parallel {
            match Message::decode_blocked(&bytes) {
                Ok(Blocked::Change(part)) => prop_assert_eq!(Some(part), xid),
                other => prop_assert_eq!(other, Ok(Blocked::Other(xid, message))),
            }
        }
    }

    #[test]
    fn frames_survive(frame in frame()) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        prop_assert_eq!(ReplicationFrame::decode(out.freeze()), Ok(frame));
    }

    #[test]
    fn status_updates_survive(update in status_update()) {
        let mut out = BytesMut::new();
        update.encode(&mut out);
        prop_assert_eq!(StandbyStatusUpdate::decode(out.freeze()), Ok(update));
    }

    #[test]
    fn values_survive(values in vec(value(), 0..40)) {
        let values = || values.iter().map(OwnedValue::borrowed);
        let tuple = Tuple::from_values(values());
        prop_assert_eq!(tuple.len(), values().count());
        prop_assert!(tuple.columns().eq(values()));
        for (ours, foreign) in tuple.columns().zip(values()) {
            for value in [ours, foreign] {
                let bytes = tuple.value_bytes(value);
                prop_assert_eq!(bytes.as_deref(), value.bytes());
            }
        }
    }

    #[test]
    fn prefixes_are_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let (mut out, layout) = (BytesMut::new(), layout(&message, false));
        message.encode(None, &mut out);
        let end = cut.index(out.len());
        prop_assert!(Message::decode(out.freeze().slice(..end), layout).is_err());
    }

    #[test]
    fn random_bytes_do_no_harm(tag in prop::sample::select(b"BMCORYIUDTSEcAbPKrpwk".to_vec()), mut bytes in vec(any::<u8>(), 0..200)) {
        fuzz_frames(&bytes);
        bytes.insert(0, tag);
        fuzz_frames(&bytes);
    }
}

/// Every captured frame with bytes changed, left out and put in: each position of the short ones, some of the long.
#[test]
fn mutations_do_no_harm() {
    for fixture in Fixture::all() {
        // The rows of a streamed fixture are alike.
        let payloads = fixture.payloads().into_iter().map(|(payload, _)| payload);
        let step = if fixture.streamed() { fixture.frames.len() / 100 + 1 } else { 1 };
        for frame in fixture.frames.iter().cloned().chain(payloads).step_by(step) {
            for at in 0..frame.len().min(300) {
                for replacement in [0x00, 0x01, 0x7f, 0x80, 0xff, frame[at] ^ 0x20, b'n', b't'] {
                    let mut changed = frame.to_vec();
                    changed[at] = replacement;
                    fuzz_frames(&changed);
                }
                let mut shorter = frame.to_vec();
                shorter.remove(at);
                fuzz_frames(&shorter);
                let mut longer = frame.to_vec();
                longer.insert(at, 0);
                fuzz_frames(&longer);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum OwnedValue {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl OwnedValue {
    fn borrowed(&self) -> TupleValue<'_> {
        match self {
            Self::Null => TupleValue::Null,
            Self::Unchanged => TupleValue::Unchanged,
            Self::Text(bytes) => TupleValue::Text(bytes),
            Self::Binary(bytes) => TupleValue::Binary(bytes),
        }
    }
}

fn value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        Just(OwnedValue::Null),
        Just(OwnedValue::Unchanged),
        vec(any::<u8>(), 0..50).prop_map(OwnedValue::Text),
        vec(any::<u8>(), 0..50).prop_map(OwnedValue::Binary),
    ]
}

fn tuple() -> impl Strategy<Value = Tuple> {
    vec(value(), 0..12).prop_map(|values| Tuple::from_values(values.iter().map(OwnedValue::borrowed)))
}

fn old_tuple() -> impl Strategy<Value = OldTuple> {
    prop_oneof![tuple().prop_map(OldTuple::Key), tuple().prop_map(OldTuple::Full)]
}

fn text() -> impl Strategy<Value = String> {
    "[^\\x00]{0,20}"
}

fn name() -> impl Strategy<Value = QualifiedName> {
    let schema = prop_oneof!["[^\\x00]{1,20}", Just("pg_catalog".to_owned())];
    (schema, text()).prop_map(|(schema, name)| QualifiedName { schema, name })
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..100).prop_map(Bytes::from)
}

fn lsn() -> impl Strategy<Value = SourceLsn> {
    any::<u64>().prop_map(SourceLsn::new)
}

fn time() -> impl Strategy<Value = PgTimestamp> {
    any::<i64>().prop_map(PgTimestamp::from_micros)
}

fn relation_id() -> impl Strategy<Value = RelationId> {
    any::<u32>().prop_map(RelationId::new)
}

fn column() -> impl Strategy<Value = Column> {
    (text(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(|(name, type_oid, type_modifier, key)| {
        Column { name, type_oid: Oid::new(type_oid), type_modifier, type_name: None, key }
    })
}

fn relation() -> impl Strategy<Value = Relation> {
    let identity = prop::sample::select(vec![
        ReplicaIdentity::Default,
        ReplicaIdentity::Nothing,
        ReplicaIdentity::Full,
        ReplicaIdentity::Index,
    ]);
    (relation_id(), name(), identity, vec(column(), 0..12))
        .prop_map(|(id, name, identity, columns)| Relation { id, name, identity, columns })
}

/// Of version 1.
fn first_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u64>(), time(), any::<u32>()).prop_map(|(lsn, commit_time, xid)| {
            Message::Begin(Begin { final_lsn: CommitLsn::new(lsn), commit_time, xid: Xid::new(xid) })
        }),
        (any::<bool>(), lsn(), text(), bytes()).prop_map(|(transactional, lsn, prefix, content)| {
            Message::Message(LogicalMessage { transactional, lsn, prefix, content })
        }),
        (any::<u64>(), any::<u64>(), time()).prop_map(|(commit, end, commit_time)| {
            let (commit_lsn, end_lsn) = (CommitLsn::new(commit), EndLsn::new(end));
            Message::Commit(Commit { commit_lsn, end_lsn, commit_time })
        }),
        (any::<u64>(), text())
            .prop_map(|(lsn, name)| Message::Origin(Origin { lsn: OriginLsn::new(lsn), name })),
        relation().prop_map(Message::Relation),
        (any::<u32>(), name()).prop_map(|(oid, name)| Message::Type(Type { oid: Oid::new(oid), name })),
        (relation_id(), tuple()).prop_map(|(relation, new)| Message::Insert(Insert { relation, new })),
        (relation_id(), prop::option::of(old_tuple()), tuple())
            .prop_map(|(relation, old, new)| Message::Update(Update { relation, old, new })),
        (relation_id(), old_tuple()).prop_map(|(relation, old)| Message::Delete(Delete { relation, old })),
        (vec(relation_id(), 0..20), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| {
                Message::Truncate(Truncate { relations, cascade, restart_identity })
            }
        ),
    ]
}

fn xid() -> impl Strategy<Value = Xid> {
    any::<u32>().prop_map(Xid::new)
}

fn prepared() -> impl Strategy<Value = Prepared> {
    (xid(), text()).prop_map(|(xid, gid)| Prepared { xid, gid })
}

fn prepare() -> impl Strategy<Value = Prepare> {
    (lsn(), any::<u64>(), time(), prepared()).prop_map(|(prepare_lsn, end, prepare_time, prepared)| Prepare {
        prepare_lsn,
        end_lsn: EndLsn::new(end),
        prepare_time,
        prepared,
    })
}

/// Of transactions in progress, and of prepared ones.
fn later_message() -> impl Strategy<Value = Message> {
    let place = (lsn(), time()).prop_map(|(lsn, time)| AbortPlace { lsn, time });
    prop_oneof![
        (xid(), any::<bool>()).prop_map(|(xid, first)| Message::StreamStart(StreamStart { xid, first })),
        Just(Message::StreamStop),
        (xid(), any::<u64>(), any::<u64>(), time()).prop_map(|(xid, commit, end, commit_time)| {
            let (commit_lsn, end_lsn) = (CommitLsn::new(commit), EndLsn::new(end));
            Message::StreamCommit(StreamCommit { xid, commit_lsn, end_lsn, commit_time })
        }),
        (xid(), xid(), prop::option::of(place))
            .prop_map(|(xid, subxid, place)| Message::StreamAbort(StreamAbort { xid, subxid, place })),
        prepare().prop_map(|p| Message::BeginPrepare(BeginPrepare {
            prepare_lsn: p.prepare_lsn,
            end_lsn: p.end_lsn,
            prepare_time: p.prepare_time,
            prepared: p.prepared,
        })),
        prepare().prop_map(Message::Prepare),
        prepare().prop_map(Message::StreamPrepare),
        (any::<u64>(), any::<u64>(), time(), prepared()).prop_map(|(commit, end, commit_time, prepared)| {
            let (commit_lsn, end_lsn) = (CommitLsn::new(commit), EndLsn::new(end));
            Message::CommitPrepared(CommitPrepared { commit_lsn, end_lsn, commit_time, prepared })
        }),
        (any::<u64>(), any::<u64>(), time(), time(), prepared()).prop_map(
            |(prepare_end, rollback_end, prepare_time, rollback_time, prepared)| {
                Message::RollbackPrepared(RollbackPrepared {
                    prepare_end_lsn: EndLsn::new(prepare_end),
                    rollback_end_lsn: EndLsn::new(rollback_end),
                    prepare_time,
                    rollback_time,
                    prepared,
                })
            }
        ),
    ]
}

/// The layout in which a message is written as it is.
fn layout(message: &Message, in_block: bool) -> Layout {
    Layout { in_block, parallel: matches!(message, Message::StreamAbort(abort) if abort.place.is_some()) }
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![first_message(), later_message()]
}

fn frame() -> impl Strategy<Value = ReplicationFrame> {
    prop_oneof![
        (lsn(), lsn(), time(), bytes()).prop_map(|(wal_start, wal_end, sent_at, payload)| {
            ReplicationFrame::XLogData(XLogData { wal_start, wal_end, sent_at, payload })
        }),
        (lsn(), time(), any::<bool>()).prop_map(|(wal_end, sent_at, reply_requested)| {
            ReplicationFrame::PrimaryKeepalive(PrimaryKeepalive { wal_end, sent_at, reply_requested })
        }),
    ]
}

fn status_update() -> impl Strategy<Value = StandbyStatusUpdate> {
    (lsn(), lsn(), lsn(), time(), any::<bool>()).prop_map(
        |(written, flushed, applied, sent_at, reply_requested)| StandbyStatusUpdate {
            written,
            flushed,
            applied,
            sent_at,
            reply_requested,
        },
    )
}
