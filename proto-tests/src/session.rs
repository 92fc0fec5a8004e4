//! A session in bytes: the messages of one connection, one after the other, as a fuzzer can change them.
//!
//! ```text
//! record   Int16 n (below 0xFF00)  Byte[n] message    where fewer bytes follow, the message is those
//!          Int16 0xFF00 + n                           the last message again, n times
//! ```
//!
//! Every byte string is a session. Repeating is what makes a large transaction of a short input.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use walferry::pg::{
    Column, CommitLsn, EndLsn, Oid, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Xid,
};
use walferry::proto::{
    Begin, Commit, Delete, Insert, Message, OldTuple, StreamAbort, StreamCommit, StreamStart, Truncate,
    Tuple, TupleValue, Update,
};

/// What a session is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A message: the payload of one XLogData.
    Message(Bytes),
    /// The last message again, as many times.
    Again(u8),
}

/// Messages of one session, repeated ones included: enough for several segments, few enough for many sessions a second.
pub const SESSION_MESSAGES_MAX: usize = 8 << 10;

/// Bytes of one session's messages, repeated ones included: a transaction of two segments fits.
pub const SESSION_BYTES_MAX: usize = 12 << 20;

/// The longest message that a record can hold.
pub const RECORD_BYTES_MAX: usize = AGAIN as usize - 1;

/// Cuts a session into its records.
pub fn records(session: &[u8]) -> Vec<Record> {
    let mut rest = Bytes::copy_from_slice(session);
    let mut records = Vec::new();
    while let Ok(head) = rest.try_get_u16() {
        records.push(match head.checked_sub(AGAIN) {
            Some(times) => Record::Again(u8::try_from(times).expect("below 256")),
            None => Record::Message(rest.split_to(rest.len().min(head.into()))),
        });
    }
    records
}

/// The session of these records.
///
/// # Panics
/// If a message is longer than [`RECORD_BYTES_MAX`].
pub fn session(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        match record {
            Record::Message(message) => {
                assert!(message.len() <= RECORD_BYTES_MAX, "a record holds the message");
                out.put_u16(u16::try_from(message.len()).expect("below 0xFF00"));
                out.put_slice(message);
            }
            Record::Again(times) => out.put_u16(AGAIN + u16::from(*times)),
        }
    }
    out
}

/// The messages of a session, up to its bounds.
pub fn messages(session: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let mut bytes_left = SESSION_BYTES_MAX;
    for record in records(session) {
        let (message, times) = match record {
            Record::Message(message) => (message, 1),
            Record::Again(times) => match messages.last() {
                Some(last) => (Bytes::clone(last), times.into()),
                None => continue,
            },
        };
        for _ in 0..times {
            if messages.len() == SESSION_MESSAGES_MAX || message.len() > bytes_left {
                return messages;
            }
            bytes_left -= message.len();
            messages.push(message.clone());
        }
    }
    messages
}

/// Changes the session in `data[..size]` as a session: whole messages come, go and move, or one is changed by `bytes`,
/// the fuzzer's own way to change bytes. Gives the new size, `size_max` at most.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    size_max: usize,
    seed: u32,
    bytes: impl Fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut random = Random(seed.into());
    let mut records = records(&data[..size]);
    let (at, between) = (random.below(records.len()), random.below(records.len() + 1));
    match random.below(10) {
        0 => return bytes(data, size, size_max),
        1 if !records.is_empty() => drop(records.remove(at)),
        2 if !records.is_empty() => {
            let copy = records[at].clone();
            records.insert(between, copy);
        }
        3 if !records.is_empty() => {
            let other = random.below(records.len());
            records.swap(at, other);
        }
        4 => records.insert(between, Record::Again(u8::try_from(random.below(256)).expect("below 256"))),
        5..=7 => records.insert(between, Record::Message(any_message(&mut random))),
        _ => {
            let Some(Record::Message(message)) = records.get_mut(at) else {
                return bytes(data, size, size_max);
            };
            let mut changed = message.to_vec();
            changed.resize(message.len() + 16, 0);
            let length = bytes(&mut changed, message.len(), message.len() + 16);
            changed.truncate(length.min(RECORD_BYTES_MAX));
            *message = changed.into();
        }
    }
    let session = session(&records);
    if session.len() > size_max {
        return bytes(data, size, size_max);
    }
    data[..session.len()].copy_from_slice(&session);
    session.len()
}

/// One of the messages that a stream of rows has, with numbers so small that they meet again.
fn any_message(random: &mut Random) -> Bytes {
    let small = |random: &mut Random| u32::try_from(random.below(4)).expect("below 4");
    let (xid, subxid) = (Xid::new(small(random)), Xid::new(small(random)));
    let relation = RelationId::new(small(random));
    let commit_lsn = CommitLsn::new(random.below(16) as u64);
    let end_lsn = EndLsn::new(commit_lsn.get() + 1);
    let commit_time = PgTimestamp::from_micros(7);
    let tuple = |random: &mut Random| {
        let values =
            [TupleValue::Text(b"x"), TupleValue::Null, TupleValue::Unchanged, TupleValue::Binary(b"")];
        Tuple::from_values(values.into_iter().take(random.below(4)))
    };
    let message = match random.below(12) {
        0 => Message::Begin(Begin { final_lsn: commit_lsn, commit_time, xid }),
        1 => Message::Commit(Commit { commit_lsn, end_lsn, commit_time }),
        2 | 3 => {
            let column = Column {
                name: "c".to_owned(),
                type_oid: Oid::new(25),
                type_modifier: -1,
                type_name: None,
                key: true,
            };
            let columns = vec![column; random.below(4)];
            let name = QualifiedName::new("public", "t");
            Message::Relation(Relation { id: relation, name, identity: ReplicaIdentity::Full, columns })
        }
        4 => Message::Insert(Insert { relation, new: tuple(random) }),
        5 => {
            let old = Some(OldTuple::Key(tuple(random)));
            Message::Update(Update { relation, old, new: tuple(random) })
        }
        6 => Message::Delete(Delete { relation, old: OldTuple::Full(tuple(random)) }),
        7 => {
            let relations = vec![relation; random.below(3)];
            Message::Truncate(Truncate { relations, cascade: false, restart_identity: true })
        }
        8 => Message::StreamStart(StreamStart { xid, first: random.below(2) == 0 }),
        9 => Message::StreamStop,
        10 => Message::StreamCommit(StreamCommit { xid, commit_lsn, end_lsn, commit_time }),
        _ => Message::StreamAbort(StreamAbort { xid, subxid, place: None }),
    };
    let mut out = BytesMut::new();
    message.encode(Some(subxid).filter(|_| random.below(2) == 0), &mut out);
    out.freeze()
}

/// SplitMix64: the fuzzer gives a seed, the same seed makes the same change.
struct Random(u64);

impl Random {
    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from(mixed >> 33).expect("31 bits").checked_rem(end).unwrap_or_default()
    }
}

/// From here on, an Int16 is a number of repetitions.
const AGAIN: u16 = 0xFF00;
