//! Streams captured from real servers: what they mean, that nothing shorter passes, and that they can be written again.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use proto_tests::{Fixture, frame_line, tuples};
use walferry::pg::ReplicaIdentity;
use walferry::proto::{DecodeError, Message, OldTuple, ReplicationFrame, TupleValue};

/// Tag, two positions and a time.
const XLOGDATA_HEAD: usize = 1 + 8 + 8 + 8;

#[test]
fn captured_streams_mean_what_is_expected() {
    for fixture in Fixture::all() {
        assert_eq!(fixture.frames.len(), fixture.expected.len(), "{}", fixture.name);
        for (number, frame) in fixture.frames.iter().enumerate() {
            let line = frame_line(frame.clone(), fixture.layouts[number]);
            assert_eq!(line.as_ref(), Ok(&fixture.expected[number]), "{} frame {number}", fixture.name);
        }
    }
}

#[test]
fn no_proper_prefix_passes() {
    for fixture in Fixture::all() {
        for (number, frame) in fixture.frames.iter().enumerate() {
            // Cut after its own head, XLogData holds nothing: servers before 14 send such frames.
            let nothing = |end: &usize| frame[0] == b'w' && *end == XLOGDATA_HEAD;
            for end in (0..frame.len()).filter(|end| !nothing(end)) {
                let line = frame_line(frame.slice(..end), fixture.layouts[number]);
                let refused = matches!(
                    line,
                    Err(DecodeError::Missing { .. } | DecodeError::Count { .. } | DecodeError::Length { .. })
                );
                assert!(refused, "{} frame {number} cut to {end} bytes: {line:?}", fixture.name);
            }
        }
    }
}

#[test]
fn no_byte_more_passes() {
    for fixture in Fixture::all() {
        for (number, frame) in fixture.frames.iter().enumerate() {
            for extra in [0, b'n', 0xff] {
                let mut longer = frame.to_vec();
                longer.push(extra);
                let line = frame_line(longer.into(), fixture.layouts[number]);
                // Where nothing was sent, one byte is the beginning of something.
                let nothing = frame[0] == b'w' && frame.len() == XLOGDATA_HEAD;
                let refused = match line {
                    Err(DecodeError::Trailing { bytes: 1, .. }) => !nothing,
                    Err(_) => nothing,
                    Ok(_) => false,
                };
                assert!(refused, "{} frame {number} and {extra:#04x}: {line:?}", fixture.name);
            }
        }
    }
}

#[test]
fn what_is_decoded_encodes_to_the_same_bytes() {
    for fixture in Fixture::all() {
        for (number, frame) in fixture.frames.iter().enumerate() {
            let decoded = ReplicationFrame::decode(frame.clone()).unwrap();
            let mut out = BytesMut::new();
            decoded.encode(&mut out);
            assert_eq!(out, frame, "{} frame {number}", fixture.name);
            if let ReplicationFrame::XLogData(data) = decoded
                && !data.payload.is_empty()
            {
                out.clear();
                let (xid, message) = Message::decode(data.payload.clone(), fixture.layouts[number]).unwrap();
                assert_eq!(xid.is_some(), message.has_xid() && fixture.layouts[number].in_block);
                message.encode(xid, &mut out);
                assert_eq!(out, data.payload, "{} message {number}", fixture.name);
            }
        }
    }
}

#[test]
fn values_are_slices_of_the_message() {
    for fixture in Fixture::all() {
        for (payload, layout) in fixture.payloads() {
            let (_, message) = Message::decode(payload.clone(), layout).unwrap();
            for tuple in tuples(&message) {
                assert_eq!(tuple.columns().len(), tuple.len());
                assert_eq!(tuple.columns().count(), tuple.len());
                for value in tuple.columns() {
                    let slice = tuple.value_bytes(value);
                    assert_eq!(slice.as_deref(), value.bytes());
                    assert!(slice.is_none_or(|s| s.is_empty() || lies_within(&s, &payload)));
                }
            }
        }
    }
}

/// A fixture that lost a case would make the tests above say less than they seem to.
#[test]
fn every_stream_has_every_case() {
    for fixture in Fixture::all() {
        let messages =
            fixture.payloads().into_iter().map(|(p, layout)| Message::decode(p, layout).unwrap().1);
        let seen: BTreeSet<&str> = messages.flat_map(|message| cases(&message)).collect();
        let expected = if fixture.streamed() { STREAMED_CASES } else { CASES };
        for case in expected {
            let sent = match *case {
                "text" => !fixture.name.ends_with("binary"),
                "binary" => fixture.name.ends_with("binary"),
                // A server sends them from 14 on.
                "message in transaction" | "message beside" => !fixture.name.starts_with("pg13"),
                // Where each change is streamed, nothing is small enough to come whole.
                "begin" | "begin prepare" | "prepare" if fixture.name.contains("/v4") => false,
                "begin prepare" | "prepare" | "commit prepared" | "rollback prepared" | "stream prepare" => {
                    !fixture.name.contains("/v2")
                }
                _ => true,
            };
            assert!(!sent || seen.contains(case), "{} has no {case}", fixture.name);
        }
        assert!(fixture.expected.iter().any(|line| line.starts_with("k ")), "{}", fixture.name);
    }
}

const CASES: &[&str] = &[
    "begin",
    "message in transaction",
    "message beside",
    "commit",
    "origin",
    "identity default",
    "identity nothing",
    "identity full",
    "identity index",
    "relation without columns",
    "name beyond ASCII",
    "type",
    "type of pg_catalog",
    "insert",
    "update",
    "update with key",
    "update with full",
    "delete with key",
    "delete with full",
    "truncate",
    "truncate cascade",
    "truncate restart identity",
    "truncate of several",
    "null",
    "unchanged",
    "text",
    "binary",
    "empty value",
    "long value",
    "tuple without columns",
];

const STREAMED_CASES: &[&str] = &[
    "begin",
    "message in transaction",
    "type",
    "insert",
    "update",
    "update with key",
    "delete with key",
    "truncate",
    "null",
    "text",
    "stream start, first",
    "stream start, further",
    "stream stop",
    "stream commit",
    "stream abort of all",
    "stream abort of a part",
    "begin prepare",
    "prepare",
    "commit prepared",
    "rollback prepared",
    "stream prepare",
];

fn cases(message: &Message) -> Vec<&'static str> {
    let mut cases = Vec::new();
    match message {
        Message::Begin(_) => cases.push("begin"),
        Message::Message(m) => {
            cases.push(if m.transactional { "message in transaction" } else { "message beside" });
        }
        Message::Commit(_) => cases.push("commit"),
        Message::Origin(_) => cases.push("origin"),
        Message::Relation(m) => {
            cases.push(match m.identity {
                ReplicaIdentity::Default => "identity default",
                ReplicaIdentity::Nothing => "identity nothing",
                ReplicaIdentity::Full => "identity full",
                ReplicaIdentity::Index => "identity index",
            });
            cases.extend(m.columns.is_empty().then_some("relation without columns"));
            cases.extend((!m.name.name.is_ascii()).then_some("name beyond ASCII"));
        }
        Message::Type(m) => {
            cases.push("type");
            cases.extend((m.name.schema == "pg_catalog").then_some("type of pg_catalog"));
        }
        Message::Insert(_) => cases.push("insert"),
        Message::Update(m) => cases.push(match m.old {
            None => "update",
            Some(OldTuple::Key(_)) => "update with key",
            Some(OldTuple::Full(_)) => "update with full",
        }),
        Message::Delete(m) => cases.push(match m.old {
            OldTuple::Key(_) => "delete with key",
            OldTuple::Full(_) => "delete with full",
        }),
        Message::Truncate(m) => {
            cases.push("truncate");
            cases.extend(m.cascade.then_some("truncate cascade"));
            cases.extend(m.restart_identity.then_some("truncate restart identity"));
            cases.extend((m.relations.len() > 1).then_some("truncate of several"));
        }
        Message::StreamStart(m) => {
            cases.push(if m.first { "stream start, first" } else { "stream start, further" })
        }
        Message::StreamStop => cases.push("stream stop"),
        Message::StreamCommit(_) => cases.push("stream commit"),
        Message::StreamAbort(m) if m.subxid == m.xid => cases.push("stream abort of all"),
        Message::StreamAbort(_) => cases.push("stream abort of a part"),
        Message::BeginPrepare(_) => cases.push("begin prepare"),
        Message::Prepare(_) => cases.push("prepare"),
        Message::CommitPrepared(_) => cases.push("commit prepared"),
        Message::RollbackPrepared(_) => cases.push("rollback prepared"),
        Message::StreamPrepare(_) => cases.push("stream prepare"),
    }
    for tuple in tuples(message) {
        cases.extend(tuple.is_empty().then_some("tuple without columns"));
        for value in tuple.columns() {
            cases.push(match value {
                TupleValue::Null => "null",
                TupleValue::Unchanged => "unchanged",
                TupleValue::Text(_) => "text",
                TupleValue::Binary(_) => "binary",
            });
            cases.extend(value.bytes().is_some_and(<[u8]>::is_empty).then_some("empty value"));
            cases.extend(value.bytes().is_some_and(|bytes| bytes.len() > 8_192).then_some("long value"));
        }
    }
    cases
}

fn lies_within(part: &Bytes, all: &Bytes) -> bool {
    let (part, all) = (part.as_ptr_range(), all.as_ptr_range());
    all.start <= part.start && part.end <= all.end
}
