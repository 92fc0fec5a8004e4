//! What must hold for any bytes whatever: the fuzz targets, callable from a test.
//!
//! Each function takes bytes and panics where an invariant does not hold. `proto-tests/fuzz` feeds them what libFuzzer
//! makes up, `tests/corpus.rs` what was worth keeping of it.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Bytes, BytesMut};
use walferry::assemble::{Assembler, Change, Segment, TakeError};
use walferry::limits::{CHANGE_COST, SEGMENT_COST_MAX};
use walferry::pg::{CommitLsn, EndLsn, PgTimestamp, Relation, SourceLsn, Xid};
use walferry::proto::{
    Blocked, DecodeError, Delete, Insert, Layout, Message, OldTuple, ReplicationFrame, StandbyStatusUpdate,
    Truncate, Tuple, Update,
};
use walferry::spill::SpillDir;

use crate::session::messages;
use crate::tuples;

/// Reads `bytes` as everything, and to the last column; what is accepted must be what would be written.
///
/// # Panics
/// If it is not.
pub fn fuzz_frames(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut out = BytesMut::new();
    if let Ok(update) = StandbyStatusUpdate::decode(bytes.clone()) {
        update.encode(&mut out);
        assert_eq!(out, bytes);
    }
    if let Ok(frame) = ReplicationFrame::decode(bytes.clone()) {
        out.clear();
        frame.encode(&mut out);
        assert_eq!(out, bytes);
        if let ReplicationFrame::XLogData(data) = frame {
            read_message(&data.payload);
        }
    }
    read_message(&bytes);
}

fn read_message(bytes: &Bytes) {
    let _ = read_laid_out(bytes, Layout::PLAIN);
    let _ = read_laid_out(bytes, Layout { parallel: true, ..Layout::PLAIN });
    let whole = read_laid_out(bytes, Layout::BLOCK);
    match (Message::decode_blocked(bytes), whole) {
        (Ok(Blocked::Change(part)), Ok((xid, _))) => assert_eq!(Some(part), xid),
        // A change is not looked into before its transaction commits.
        (Ok(Blocked::Change(_)), Err(_)) => {}
        (Ok(Blocked::Other(xid, message)), whole) => assert_eq!(Ok((xid, message)), whole),
        (Err(error), whole) => assert_eq!(Err(error), whole),
    }
}

fn read_laid_out(bytes: &Bytes, layout: Layout) -> Result<(Option<Xid>, Message), DecodeError> {
    let (xid, message) = Message::decode(bytes.clone(), layout)?;
    assert_eq!(xid.is_some(), layout.in_block && message.has_xid());
    for tuple in tuples(&message) {
        let columns: Vec<_> = tuple.columns().collect();
        assert_eq!((columns.len(), tuple.columns().len()), (tuple.len(), tuple.len()));
        let value_bytes: usize = columns.iter().filter_map(|v| v.bytes().map(|b| b.len() + 4)).sum();
        assert_eq!(tuple.byte_len(), tuple.len() + value_bytes);
        for value in columns {
            assert_eq!(tuple.value_bytes(value).as_deref(), value.bytes());
        }
    }
    let mut out = BytesMut::new();
    message.encode(xid, &mut out);
    if out != bytes {
        // An explicit `pg_catalog` is written short.
        assert_eq!(out.len() + "pg_catalog".len(), bytes.len());
        assert_eq!(Message::decode(out.freeze(), layout), Ok((xid, message.clone())));
    }
    Ok((xid, message))
}

/// Feeds the session to an assembler that takes transactions in progress, to one whose transactions go ahead wherever
/// they may, and to one that does neither.
///
/// # Panics
/// If what comes out is not what went in.
pub fn fuzz_session(bytes: &[u8]) {
    let messages = messages(bytes);
    let nothing_kept = feed(Assembler::new(), &messages, false, |_| {});
    let parent = tempfile::tempdir().expect("a directory");
    let spill = SpillDir::create(parent.path(), "spill", u64::MAX).expect("a spill directory");
    let kept = |goes_ahead| {
        let taken = feed(Assembler::new().streaming(spill.clone()), &messages, goes_ahead, |seen| {
            if seen.in_progress.is_empty() {
                assert_eq!(spill.used(), 0, "bytes on disk, and no transaction in progress");
            }
        });
        assert_eq!(spill.used(), 0, "bytes on disk, and no assembler");
        taken
    };
    let taken = kept(false);
    assert!(taken >= nothing_kept, "whoever takes transactions in progress takes no less");
    assert!(taken >= kept(true), "what goes ahead is looked into, committed or not");
}

/// Feeds the messages, up to the first that is refused; gives how many were taken.
fn feed(mut assembler: Assembler, messages: &[Bytes], goes_ahead: bool, check: impl Fn(&Seen)) -> usize {
    let mut seen = Seen::default();
    for (taken, message) in messages.iter().enumerate() {
        match feed_one(&mut assembler, &mut seen, message) {
            Ok(()) => {
                if goes_ahead {
                    go_ahead(&mut assembler, &mut seen);
                }
                check(&seen);
            }
            Err(TakeError::Decode(_) | TakeError::Order(_)) => return taken,
            Err(TakeError::Spill(error)) => panic!("the disk is in order, but: {error}"),
        }
    }
    messages.len()
}

fn feed_one(assembler: &mut Assembler, seen: &mut Seen, message: &Bytes) -> Result<(), TakeError> {
    let _ = assembler.may_block(message);
    let segment = assembler.take(message.clone())?;
    if assembler.gave_up() {
        assert!(seen.ahead.take().is_some(), "only what went ahead is given up");
    }
    seen.taken(message);
    seen.came(segment);
    while assembler.has_replay() {
        seen.came(assembler.replay()?);
    }
    assert_eq!(assembler.in_block(), seen.block.is_some());
    assert_eq!(assembler.in_transaction(), seen.open.is_some() || seen.ahead.is_some());
    Ok(())
}

/// Has the transaction go ahead whose first block has begun, if it may.
fn go_ahead(assembler: &mut Assembler, seen: &mut Seen) {
    // What it changes first stands behind what is complete.
    let at = seen.previous_end.position().max(SourceLsn::new(1));
    let Some(xid) = assembler.may_go_ahead(at) else { return };
    assembler.go_ahead(at, PgTimestamp::from_micros(0));
    seen.ahead = Some(Ahead { xid, at: CommitLsn::new(at.get()), came: 0, first: true });
}

/// What an assembler has taken, looked at in the plainest way: whole messages, kept in memory.
#[derive(Default)]
struct Seen {
    /// The transaction that is known to commit.
    open: Option<Open>,
    /// The transaction that goes ahead of its commit.
    ahead: Option<Ahead>,
    in_progress: HashMap<Xid, Vec<(Xid, Message)>>,
    rolled_back: HashSet<(Xid, Xid)>,
    /// The transaction whose block comes in.
    block: Option<Xid>,
    previous_end: EndLsn,
}

struct Open {
    xid: Xid,
    commit_lsn: CommitLsn,
    /// Where it ends, once that is known.
    end: Option<EndLsn>,
    /// Changes that have not come out.
    changes: VecDeque<Message>,
    first: bool,
}

struct Ahead {
    xid: Xid,
    /// What stands for its commit until that has come.
    at: CommitLsn,
    /// So many of its changes have come out.
    came: usize,
    first: bool,
}

impl Seen {
    fn taken(&mut self, bytes: &Bytes) {
        if let Some(block) = self.block {
            match Message::decode_blocked(bytes).expect("it was taken") {
                Blocked::Other(_, Message::StreamStop) => self.block = None,
                Blocked::Other(..) => {}
                Blocked::Change(part) => {
                    let kept = self.in_progress.get_mut(&block).expect("its block began");
                    // One that is no message may wait there, too; its commit is refused.
                    if let Ok((_, message)) = Message::decode(bytes.clone(), Layout::BLOCK) {
                        kept.push((part, message));
                    }
                }
            }
            return;
        }
        match Message::decode(bytes.clone(), Layout::PLAIN).expect("it was taken").1 {
            Message::Begin(begin) => self.begin(begin.xid, begin.final_lsn, VecDeque::new()),
            Message::Commit(commit) => {
                let open = self.open.as_mut().expect("it began");
                assert_eq!(open.commit_lsn, commit.commit_lsn);
                open.end = Some(commit.end_lsn);
            }
            Message::StreamStart(start) => {
                let known = self.in_progress.insert(start.xid, Vec::new());
                assert_eq!(known.is_some(), !start.first, "a first block, and only a first, comes first");
                if let Some(known) = known {
                    self.in_progress.insert(start.xid, known);
                }
                self.block = Some(start.xid);
            }
            Message::StreamAbort(abort) if abort.xid == abort.subxid => {
                self.in_progress.remove(&abort.xid);
                self.rolled_back.retain(|(xid, _)| *xid != abort.xid);
            }
            Message::StreamAbort(abort) if self.in_progress.contains_key(&abort.xid) => {
                self.rolled_back.insert((abort.xid, abort.subxid));
            }
            Message::StreamCommit(commit) => {
                let kept = self.in_progress.remove(&commit.xid).expect("its block began");
                let committed = |part: &Xid| !self.rolled_back.contains(&(commit.xid, *part));
                let changes =
                    kept.into_iter().filter(|(part, _)| committed(part)).map(|(_, message)| message);
                let ahead = self.ahead.take();
                assert!(
                    ahead.as_ref().is_none_or(|ahead| ahead.xid == commit.xid),
                    "overtaken, and not given up"
                );
                let (came, first) = ahead.map_or((0, true), |ahead| (ahead.came, ahead.first));
                let changes = changes.filter(is_change).skip(came).collect();
                self.rolled_back.retain(|(xid, _)| *xid != commit.xid);
                self.begin(commit.xid, commit.commit_lsn, changes);
                let open = self.open.as_mut().expect("it began");
                (open.end, open.first) = (Some(commit.end_lsn), first);
            }
            message if is_change(&message) => {
                self.open.as_mut().expect("it began").changes.push_back(message);
            }
            _ => {}
        }
    }

    fn begin(&mut self, xid: Xid, commit_lsn: CommitLsn, changes: VecDeque<Message>) {
        assert!(self.open.is_none(), "one transaction at a time");
        assert!(commit_lsn.position() >= self.previous_end.position(), "in commit order");
        self.open = Some(Open { xid, commit_lsn, end: None, changes, first: true });
    }

    fn came(&mut self, segment: Option<Segment>) {
        let Some(segment) = segment else { return };
        if segment.ahead {
            return self.came_ahead(segment);
        }
        let open = self.open.as_mut().expect("of the open transaction");
        assert_eq!((segment.xid, segment.commit_lsn), (open.xid, open.commit_lsn));
        assert_eq!(segment.first, open.first);
        open.first = false;
        assert!(segment.cost >= CHANGE_COST * (segment.changes.len() + 1), "whatever keeps memory counts");
        for change in segment.changes {
            assert_eq!(Some(message_of(change)), open.changes.pop_front());
        }
        match segment.end {
            Some(end) => {
                assert!(open.changes.is_empty(), "{} changes did not come out", open.changes.len());
                assert_eq!(Some(end), open.end);
                assert!(end.position() > segment.commit_lsn.position());
                self.previous_end = end;
                self.open = None;
            }
            None => assert!(segment.cost >= SEGMENT_COST_MAX, "cut before it was large"),
        }
    }

    fn came_ahead(&mut self, segment: Segment) {
        let ahead = self.ahead.as_mut().expect("it went ahead");
        assert_eq!((segment.xid, segment.commit_lsn), (ahead.xid, ahead.at));
        assert_eq!((segment.first, segment.end), (ahead.first, None));
        ahead.first = false;
        assert!(segment.cost >= SEGMENT_COST_MAX, "cut before it was large");
        let changes =
            self.in_progress[&ahead.xid].iter().map(|(_, message)| message).filter(|m| is_change(m));
        let mut changes = changes.skip(ahead.came);
        ahead.came += segment.changes.len();
        for change in segment.changes {
            assert_eq!(Some(&message_of(change)), changes.next());
        }
    }
}

/// The message that a change came from, each of its tuples as wide as its relation.
fn message_of(change: Change) -> Message {
    let id_of = |relation: &Relation, tuples: &[&Tuple]| {
        assert!(tuples.iter().all(|tuple| tuple.len() == relation.columns.len()));
        relation.id
    };
    match change {
        Change::Insert { relation, new } => {
            Message::Insert(Insert { relation: id_of(&relation, &[&new]), new })
        }
        Change::Update { relation, old, new } => {
            let old_tuple = old.as_ref().map_or(&new, OldTuple::tuple);
            Message::Update(Update { relation: id_of(&relation, &[old_tuple, &new]), old, new })
        }
        Change::Delete { relation, old } => {
            Message::Delete(Delete { relation: id_of(&relation, &[old.tuple()]), old })
        }
        Change::Truncate { relations, cascade, restart_identity } => {
            let relations = relations.iter().map(|relation| relation.id).collect();
            Message::Truncate(Truncate { relations, cascade, restart_identity })
        }
    }
}

fn is_change(message: &Message) -> bool {
    matches!(message, Message::Insert(_) | Message::Update(_) | Message::Delete(_) | Message::Truncate(_))
}
