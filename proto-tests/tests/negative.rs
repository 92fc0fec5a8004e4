//! Damaged bytes, each with the one error that it deserves.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use proto_tests::{decode, from_hex};
use walferry::proto::DecodeError::{Count, Flag, Length, Missing, Tag, Trailing, Utf8};
use walferry::proto::{Blocked, DecodeError, Layout, Message, ReplicationFrame, StandbyStatusUpdate};

/// `public.t` with one key column `a int4`, up to its column count.
const RELATION_HEAD: &str = "52 00000001 7075626c696300 7400 64";

#[test]
fn messages() {
    let check = |hex: &str, expected: DecodeError| {
        assert_eq!(decode(from_hex(hex)), Err(expected), "{hex}");
    };
    check("", Missing { field: "message tag" });
    check("00", Tag { tag: 0, what: "message" });
    check("7a", Tag { tag: b'z', what: "message" });

    check("42", Missing { field: "Begin.final_lsn" });
    check("42 0000000000000001 00000000000002", Missing { field: "Begin.commit_time" });
    check("42 0000000000000001 0000000000000002 000003", Missing { field: "Begin.xid" });
    check("42 0000000000000001 0000000000000002 00000003 00", Trailing { what: "Begin", bytes: 1 });

    check(
        "43 01 0000000000000001 0000000000000002 0000000000000003",
        Flag { field: "Commit.flags", value: 1 },
    );
    check("43 00 0000000000000001", Missing { field: "Commit.end_lsn" });

    check("4d 02 0000000000000001 00 00000000", Flag { field: "Message.flags", value: 2 });
    check("4d 00 0000000000000001 61", Missing { field: "Message.prefix" });
    check("4d 00 0000000000000001 ff00 00000000", Utf8 { field: "Message.prefix" });
    let content = |length, remaining| Length { field: "Message.content", length, remaining };
    check("4d 00 0000000000000001 00 ffffffff", content(-1, 0));
    check("4d 00 0000000000000001 00 80000000 61", content(i32::MIN, 1));
    check("4d 00 0000000000000001 00 7fffffff 61", content(i32::MAX, 1));
    check("4d 00 0000000000000001 00 00000001 61 62", Trailing { what: "Message", bytes: 1 });

    check("4f 0000000000000001 61", Missing { field: "Origin.name" });
    check("4f 0000000000000001 c328 00", Utf8 { field: "Origin.name" });
    check("59 00000001 00 ff00", Utf8 { field: "Type.name" });
    check("59 00000001 ff00 00", Utf8 { field: "Type.schema" });
    check("59 00000001 00 61", Missing { field: "Type.name" });
}

#[test]
fn relations() {
    let check = |hex: &str, expected: DecodeError| {
        let hex = format!("{RELATION_HEAD} {hex}");
        assert_eq!(decode(from_hex(&hex)), Err(expected), "{hex}");
    };
    let count = |count, max| Count { field: "Relation.column_count", count, max };
    check("ffff", count(-1, 0));
    check("8000", count(i16::MIN.into(), 0));
    check("7fff", count(i16::MAX.into(), 0));
    check(&format!("0641 {}", "00".repeat(16_010)), count(1_601, 1_600));
    check("0002 01 6100 00000017 ffffffff", count(2, 1));
    check("0001 02 6100 00000017 ffffffff", Flag { field: "Relation.column.flags", value: 2 });
    check("0001 01 ff00 00000017 ffffffff", Utf8 { field: "Relation.column.name" });
    check("0001 01 6161616161616161616161", Missing { field: "Relation.column.name" });
    check("0001 01 6100 00000017 ffffff", Missing { field: "Relation.column.type_modifier" });
    check("0001 01 6100 00000017 ffffffff 00", Trailing { what: "Relation", bytes: 1 });

    let unknown = from_hex("52 00000001 7075626c696300 7400 78 0000");
    assert_eq!(decode(unknown), Err(Tag { tag: b'x', what: "Relation.identity" }));
    let no_text = from_hex("52 00000001 ff00 7400 64 0000");
    assert_eq!(decode(no_text), Err(Utf8 { field: "Relation.schema" }));
}

#[test]
fn rows() {
    let check = |hex: &str, expected: DecodeError| {
        assert_eq!(decode(from_hex(hex)), Err(expected), "{hex}");
    };
    check("49 000000", Missing { field: "Insert.relation" });
    check("49 00000001", Missing { field: "Insert.new tag" });
    check("49 00000001 4b 0000", Tag { tag: b'K', what: "Insert.new" });
    check("55 00000001 58 0000", Tag { tag: b'X', what: "Update.new" });
    check("55 00000001 4b 0001 6e", Missing { field: "Update.new tag" });
    check("55 00000001 4b 0001 6e 4f 0001 6e", Tag { tag: b'O', what: "Update.new" });
    check("44 00000001 4e 0001 6e", Tag { tag: b'N', what: "Delete.old" });
    check("44 00000001", Missing { field: "Delete.old tag" });
    check("49 00000001 4e 0000 6e", Trailing { what: "Insert", bytes: 1 });
    check("55 00000001 4e 0000 6e", Trailing { what: "Update", bytes: 1 });
    check("44 00000001 4b 0000 6e", Trailing { what: "Delete", bytes: 1 });
}

#[test]
fn tuples() {
    // Each of the places where a tuple can stand; an old one of an update has bytes after it.
    let heads =
        ["49 00000001 4e", "55 00000001 4e", "55 00000001 4f 0000 4e", "44 00000001 4b", "44 00000001 4f"];
    let check = |hex: &str, expected: DecodeError| {
        for head in heads {
            let hex = format!("{head} {hex}");
            assert_eq!(decode(from_hex(&hex)), Err(expected), "{hex}");
        }
    };
    let count = |count, max| Count { field: "TupleData.column_count", count, max };
    check("", Missing { field: "TupleData.column_count" });
    check("00", Missing { field: "TupleData.column_count" });
    check("ffff", count(-1, 0));
    check("8000 6e", count(i16::MIN.into(), 1));
    check("7fff 6e6e", count(i16::MAX.into(), 2));
    check("0001", count(1, 0));
    check(&format!("0641 {}", "6e".repeat(1_601)), count(1_601, 1_600));

    let value = |length, remaining| Length { field: "TupleData.column_value", length, remaining };
    for kind in ["74", "62"] {
        check(&format!("0001 {kind}"), Missing { field: "TupleData.column_value" });
        check(&format!("0001 {kind} 000000"), Missing { field: "TupleData.column_value" });
        check(&format!("0001 {kind} ffffffff"), value(-1, 0));
        check(&format!("0001 {kind} 80000000 61"), value(i32::MIN, 1));
        check(&format!("0001 {kind} 7fffffff 61"), value(i32::MAX, 1));
        check(&format!("0001 {kind} 00000003 6162"), value(3, 2));
        check(&format!("0002 {kind} 00000001 61"), Missing { field: "TupleData.column_kind" });
    }
    check("0001 78", Tag { tag: b'x', what: "TupleData column" });
    check("0001 4e", Tag { tag: b'N', what: "TupleData column" });
}

/// Transactions in progress, and prepared ones.
#[test]
fn streams() {
    let check = |hex: &str, expected: DecodeError| {
        assert_eq!(decode(from_hex(hex)), Err(expected), "{hex}");
    };
    check("53 000000", Missing { field: "StreamStart.xid" });
    check("53 00000001 02", Flag { field: "StreamStart.first", value: 2 });
    check("53 00000001 01 00", Trailing { what: "Stream Start", bytes: 1 });
    check("45 00", Trailing { what: "Stream Stop", bytes: 1 });
    let commit = "63 00000001 00 0000000000000001 0000000000000002 0000000000000003";
    check("63 00000001 01", Flag { field: "StreamCommit.flags", value: 1 });
    check(&commit[..commit.len() - 2], Missing { field: "StreamCommit.commit_time" });
    check(&format!("{commit} 00"), Trailing { what: "Stream Commit", bytes: 1 });
    check("41 00000001 000000", Missing { field: "StreamAbort.subxid" });
    check("41 00000001 00000002 00", Trailing { what: "Stream Abort", bytes: 1 });
    let parallel = Layout { parallel: true, ..Layout::PLAIN };
    let abort = Message::decode(from_hex("41 00000001 00000002"), parallel);
    assert_eq!(abort, Err(Missing { field: "StreamAbort.abort_lsn" }));

    let place = "0000000000000001 0000000000000002 0000000000000003 00000004";
    check(&format!("62 {place} 67"), Missing { field: "BeginPrepare.gid" });
    check(&format!("62 {place} ff00"), Utf8 { field: "BeginPrepare.gid" });
    for tag in ["50", "70"] {
        check(&format!("{tag} 01"), Flag { field: "Prepare.flags", value: 1 });
        check(&format!("{tag} 00 {place} 67"), Missing { field: "Prepare.gid" });
    }
    check("4b 01", Flag { field: "CommitPrepared.flags", value: 1 });
    check(&format!("4b 00 {place} 67"), Missing { field: "CommitPrepared.gid" });
    check("72 01", Flag { field: "RollbackPrepared.flags", value: 1 });
    check(&format!("72 00 {place}"), Missing { field: "RollbackPrepared.rollback_time" });
}

/// What has an xid in a block has none outside, and the other way round.
#[test]
fn blocks() {
    let insert = from_hex("49 00000007 00000001 4e 0000");
    assert_eq!(decode(insert.clone()), Err(Tag { tag: 0, what: "Insert.new" }));
    let (xid, message) = Message::decode(insert.clone(), Layout::BLOCK).unwrap();
    assert_eq!(xid.map(walferry::pg::Xid::get), Some(7));
    assert!(matches!(message, Message::Insert(insert) if insert.relation.get() == 1));
    assert!(matches!(Message::decode_blocked(&insert), Ok(Blocked::Change(xid)) if xid.get() == 7));
    let short = from_hex("49 000000");
    assert_eq!(Message::decode(short.clone(), Layout::BLOCK), Err(Missing { field: "xid" }));
    assert_eq!(Message::decode_blocked(&short), Err(Missing { field: "xid" }));
    assert_eq!(Message::decode_blocked(&from_hex("")), Err(Missing { field: "message tag" }));
    let origin = Message::decode(from_hex("4f 0000000000000001 6100"), Layout::BLOCK).unwrap();
    assert!(matches!(origin, (None, Message::Origin(_))));
}

#[test]
fn truncates() {
    let check = |hex: &str, expected: DecodeError| {
        assert_eq!(decode(from_hex(hex)), Err(expected), "{hex}");
    };
    let count = |count, max| Count { field: "Truncate.relation_count", count, max };
    check("54 ffffffff 00", count(-1, 0));
    check("54 80000000 00 00000001", count(i32::MIN, 1));
    check("54 7fffffff 00 00000001", count(i32::MAX, 1));
    check("54 00000002 00 00000001", count(2, 1));
    check("54 00000001 00 000000", Missing { field: "Truncate.relation" });
    check("54 00000000", Missing { field: "Truncate.options" });
    for options in ["04", "80", "ff"] {
        let value = u8::from_str_radix(options, 16).unwrap();
        check(&format!("54 00000001 {options} 00000001"), Flag { field: "Truncate.options", value });
    }
    check("54 00000001 03 00000001 00000002", Trailing { what: "Truncate", bytes: 4 });
    check(&format!("54 00100001 00 {}", "00".repeat(4_194_308)), count(1_048_577, 1_048_576));
}

#[test]
fn frames() {
    let check = |hex: &str, expected: DecodeError| {
        assert_eq!(ReplicationFrame::decode(from_hex(hex)), Err(expected), "{hex}");
    };
    check("", Missing { field: "replication frame tag" });
    check("72", Tag { tag: b'r', what: "replication frame" });
    check("77", Missing { field: "XLogData.wal_start" });
    check("77 0000000000000001 0000000000000002 00000000000003", Missing { field: "XLogData.sent_at" });
    check("6b 0000000000000001 0000000000000002", Missing { field: "PrimaryKeepalive.reply_requested" });
    check(
        "6b 0000000000000001 0000000000000002 02",
        Flag { field: "PrimaryKeepalive.reply_requested", value: 2 },
    );
    check("6b 0000000000000001 0000000000000002 01 00", Trailing { what: "PrimaryKeepalive", bytes: 1 });

    let check_update = |hex: &str, expected: DecodeError| {
        assert_eq!(StandbyStatusUpdate::decode(from_hex(hex)), Err(expected), "{hex}");
    };
    check_update("6b", Tag { tag: b'k', what: "StandbyStatusUpdate" });
    let fixed = "72 0000000000000001 0000000000000002 0000000000000003 0000000000000004";
    check_update(fixed, Missing { field: "StandbyStatusUpdate.reply_requested" });
    check_update(&format!("{fixed} 03"), Flag { field: "StandbyStatusUpdate.reply_requested", value: 3 });
    check_update(&format!("{fixed} 0100"), Trailing { what: "StandbyStatusUpdate", bytes: 1 });
}

/// Logs and panics show errors and messages; neither may show a row.
#[test]
fn nothing_printed_holds_data() {
    let secret = "736563726574";
    let insert = decode(from_hex(&format!("49 00000001 4e 0001 74 00000006 {secret}"))).unwrap();
    let logical = decode(from_hex(&format!("4d 00 0000000000000001 00 00000006 {secret}"))).unwrap();
    let frame = from_hex(&format!("77 0000000000000001 0000000000000002 0000000000000003 {secret}"));
    let frame = ReplicationFrame::decode(frame).unwrap();
    for text in [format!("{insert:?}"), format!("{logical:?}"), format!("{frame:?}")] {
        assert!(!text.contains("secret") && !text.contains("115"), "{text}");
    }
}
