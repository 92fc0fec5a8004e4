//! Messages in, transactions out.
//!
//! pgoutput sends a transaction when it commits: Begin, then for each change a Relation (at first use, and after the
//! table changed) and the change, then Commit. The [`Assembler`] checks that order, resolves relation identifiers,
//! and hands out [`Segment`]s: a whole transaction each, or one part of a transaction that is larger than
//! [`limits::SEGMENT_COST_MAX`](crate::limits::SEGMENT_COST_MAX).
//!
//! A large transaction may come in blocks before it ends, if that was asked for; `stream` keeps them on disk, and
//! when the transaction commits, they make segments as if they had come just then.
//!
//! One that has committed already on the source, and alone, need not wait for its commit to come (`ahead`): from
//! [`Assembler::go_ahead`] on, its changes make segments as they come ([`Segment::ahead`]), while the disk keeps them as
//! well. When anything else comes first, [`Assembler::gave_up`] says so: what was handed out of it never happened, and
//! the whole of it comes at its commit, from the disk.
//!
//! Not here: sockets, clocks, the target's tables, and what to do about a change.
//!
//! Invariants: segments come in commit order; `first` and `end` bracket each transaction exactly once, but for what was
//! given up; each tuple of a segment has as many columns as its relation; whatever keeps memory counts in a segment's
//! cost, an empty transaction too.
//!
//! The history is known again by the last transaction applied: the stream is opened where that one commits, so that it
//! comes first. It is compared ([`Assembler::going_on`]) and dropped.
//!
//! One assembler serves one replication connection: the server announces relations anew on the next.

mod ahead;
mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::limits::{CHANGE_COST, SEGMENT_COST_MAX};
use crate::pg::{
    Column, CommitLsn, EndLsn, Landmark, Oid, PgTimestamp, QualifiedName, Relation, RelationId, Resume,
    SourceLsn, Xid,
};
use crate::proto::{DecodeError, Layout, Message, OldTuple, Tuple, Type};
use crate::spill::{SpillDir, SpillError};

use ahead::Ahead;
use stream::{Replay, Streams};

/// One transaction of the source, or a part of a large one.
#[derive(Debug)]
pub struct Segment {
    /// The transaction's identifier on the source.
    pub xid: Xid,
    /// Where its commit record starts; of a part that goes ahead, where the transaction's first change stands.
    pub commit_lsn: CommitLsn,
    /// When it committed, by the source's clock; of a part that goes ahead, when its first block was sent.
    pub commit_time: PgTimestamp,
    /// Whether it goes ahead of its transaction's commit: it is not known yet where in the order that comes.
    pub ahead: bool,
    /// Whether the transaction comes again from a stream that is opened at its commit. Of one without changes some
    /// versions send nothing, and some only where they had sent it in blocks.
    pub comes_again: bool,
    /// Whether this is the transaction's first segment.
    pub first: bool,
    /// The changes, in the source's order.
    pub changes: Vec<Change>,
    /// About how many bytes of memory this segment holds on to.
    pub cost: usize,
    /// The position after the commit record, when this is the transaction's last segment.
    pub end: Option<EndLsn>,
}

/// One row change, or one TRUNCATE.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new row.
    Insert {
        /// The table.
        relation: Arc<Relation>,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// The table.
        relation: Arc<Relation>,
        /// The old key when it changed, or the whole old row with REPLICA IDENTITY FULL.
        old: Option<OldTuple>,
        /// The new row; values that did not change may be missing where they are TOASTed.
        new: Tuple,
    },
    /// A row that is gone.
    Delete {
        /// The table.
        relation: Arc<Relation>,
        /// The old key, or the whole old row with REPLICA IDENTITY FULL.
        old: OldTuple,
    },
    /// Tables emptied together.
    Truncate {
        /// The tables, those that CASCADE reached included.
        relations: Vec<Arc<Relation>>,
        /// Whether CASCADE was given.
        cascade: bool,
        /// Whether RESTART IDENTITY was given.
        restart_identity: bool,
    },
}

/// A stream that breaks the protocol's rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// Begin inside a transaction.
    #[error("transaction {inner} begins inside transaction {outer}")]
    Nested {
        /// The transaction that is open.
        outer: Xid,
        /// The one that begins.
        inner: Xid,
    },
    /// A change or Commit outside a transaction. Where a change is also wrong in itself, that is said instead.
    #[error("{what} outside a transaction")]
    Outside {
        /// The message.
        what: &'static str,
    },
    /// Commit names another position than Begin did.
    #[error("commit at {commit} of a transaction that was announced for {begin}")]
    CommitMismatch {
        /// `Begin.final_lsn`.
        begin: CommitLsn,
        /// `Commit.commit_lsn`.
        commit: CommitLsn,
    },
    /// A transaction that ends before its commit record does.
    #[error("transaction at {commit} is said to end at {end}, which is not after it")]
    EndMismatch {
        /// Where its commit record starts.
        commit: CommitLsn,
        /// Where it is said to end.
        end: EndLsn,
    },
    /// A transaction that does not come after the one before.
    #[error("transaction at {commit} after one that ended at {previous}")]
    OutOfOrder {
        /// The end of the transaction before.
        previous: EndLsn,
        /// Where this one commits.
        commit: CommitLsn,
    },
    /// A transaction that commits before its own first change.
    #[error("transaction {xid} commits at {commit}, though its first change stands at {first}")]
    BeforeItsChanges {
        /// The transaction.
        xid: Xid,
        /// Where it commits.
        commit: CommitLsn,
        /// What its first block said.
        first: SourceLsn,
    },
    /// A change to a relation that was never announced.
    #[error("change to relation {0}, which was never announced")]
    UnknownRelation(RelationId),
    /// A tuple with more or fewer columns than its relation.
    #[error("tuple of {sent} columns for relation {relation} of {announced}")]
    Width {
        /// The relation.
        relation: RelationId,
        /// Columns of the tuple.
        sent: usize,
        /// Columns of the relation.
        announced: usize,
    },
    /// The first transaction is not the last one applied.
    #[error("expected transaction {} that committed at {}, found {found}", .expected.xid, .expected.commit_lsn)]
    OtherHistory {
        /// The last one applied.
        expected: Landmark,
        /// What came in its place.
        found: Found,
    },
    /// Of what commits there all is applied, as a keepalive said, and this is not.
    #[error(
        "transaction {xid} commits at {commit}, where the source had said that nothing comes before {applied}"
    )]
    Unheard {
        /// The transaction.
        xid: Xid,
        /// Where it commits.
        commit: CommitLsn,
        /// What commits before it is applied.
        applied: EndLsn,
    },
    /// What comes only on a connection that asked for it.
    #[error("{what}, which was not asked for")]
    NotAskedFor {
        /// The message.
        what: &'static str,
    },
    /// What may not stand between Stream Start and Stream Stop, or a block inside a transaction.
    #[error("{what} inside a block, or a transaction, of {xid}")]
    InBlock {
        /// The message.
        what: &'static str,
        /// The transaction.
        xid: Xid,
    },
    /// Stream Stop without Stream Start.
    #[error("Stream Stop outside a block")]
    NoBlock,
    /// A first block, though there was one already.
    #[error("transaction {0} is streamed from its start a second time")]
    StreamedTwice(Xid),
    /// A further block, though there was no first: a part of the transaction would be missing.
    #[error("a further block of transaction {0}, of which the first did not come")]
    NoFirstBlock(Xid),
    /// Stream Commit of a transaction of which nothing came.
    #[error("commit of transaction {0}, of which no block came")]
    NotStreamed(Xid),
}

/// What came where a known transaction should have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Found {
    /// Another transaction, or the same with another end or time.
    #[error("transaction {0} that committed at {1}")]
    Transaction(Xid, CommitLsn),
    /// None, up to there.
    #[error("none up to {0}")]
    Nothing(SourceLsn),
}

/// What cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It may not come here.
    #[error(transparent)]
    Order(#[from] AssembleError),
    /// A transaction in progress cannot be kept, or cannot be read back.
    #[error(transparent)]
    Spill(#[from] SpillError),
}

/// Puts one connection's messages together.
#[derive(Debug, Default)]
pub struct Assembler {
    relations: Relations,
    open: Option<Segment>,
    previous_end: EndLsn,
    /// What must come first.
    recognising: Option<Landmark>,
    /// What commits before it is applied. It may come again if it has no changes.
    applied: EndLsn,
    /// Transactions without changes come again, too.
    sends_empty: bool,
    commit_time: PgTimestamp,
    streams: Option<Streams>,
    replay: Option<Replay>,
    /// The transaction in progress whose changes go into `open`.
    ahead: Option<Ahead>,
    gave_up: bool,
}

/// What has been announced.
#[derive(Debug, Default)]
struct Relations {
    by_id: HashMap<RelationId, Arc<Relation>>,
    /// Of types that are not builtin: named before each relation that has them.
    types: HashMap<Oid, QualifiedName>,
}

impl Segment {
    /// A transaction without changes so far.
    fn begin(xid: Xid, commit_lsn: CommitLsn, commit_time: PgTimestamp) -> Self {
        let (changes, cost) = (Vec::new(), CHANGE_COST);
        let (ahead, comes_again) = (false, false);
        Self { xid, commit_lsn, commit_time, ahead, comes_again, first: true, changes, cost, end: None }
    }

    /// The transaction that ends here, if it comes again from a stream that is opened at its commit.
    pub fn landmark(&self) -> Option<Landmark> {
        let end = self.end.filter(|_| self.comes_again)?;
        let Self { commit_lsn, xid, commit_time, .. } = *self;
        Some(Landmark { commit_lsn, end, xid, commit_time })
    }

    /// Whether it is not a whole transaction.
    pub const fn is_part(&self) -> bool {
        !self.first || self.end.is_none()
    }
}

impl Assembler {
    /// Starts with no relation known, as a new connection does, and takes whatever transaction comes first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with no relation known, and refuses a transaction with changes that commits before `stored`: nothing like it
    /// was there.
    pub fn resuming(stored: EndLsn) -> Self {
        Self { applied: stored, ..Self::default() }
    }

    /// As [`Assembler::resuming`]; and where a transaction is known that was applied, that one must come first. It is
    /// not handed out.
    pub fn going_on(resume: &Resume) -> Self {
        match resume.landmark {
            Some(landmark) => Self {
                previous_end: EndLsn::new(landmark.commit_lsn.get()),
                recognising: Some(landmark),
                applied: resume.end,
                ..Self::default()
            },
            None => Self::resuming(resume.end),
        }
    }

    /// Takes a transaction without changes for one that comes again, as before 14 it does.
    #[must_use]
    pub fn sent_empty(self, sends_empty: bool) -> Self {
        Self { sends_empty, ..self }
    }

    /// Whether the transaction did not come yet that must come first.
    pub fn is_recognising(&self) -> bool {
        self.recognising.is_some()
    }

    /// Looks at a keepalive: what must come first cannot come after it.
    ///
    /// # Errors
    /// [`AssembleError::OtherHistory`], when it did not come.
    pub fn passed(&self, wal_end: SourceLsn) -> Result<(), AssembleError> {
        match self.recognising {
            Some(expected) if self.open.is_none() && wal_end >= expected.end.position() => {
                Err(AssembleError::OtherHistory { expected, found: Found::Nothing(wal_end) })
            }
            _ => Ok(()),
        }
    }

    /// Takes transactions in progress as well, and keeps them in `spill`.
    #[must_use]
    pub fn streaming(self, spill: SpillDir) -> Self {
        Self { streams: Some(Streams::new(spill)), ..self }
    }

    /// Whether a transaction is being received that is known to commit, or goes ahead.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a large transaction is being received: one in progress, or one of which a part has been handed on.
    pub fn in_large_transaction(&self) -> bool {
        self.in_block() || self.open.as_ref().is_some_and(|open| !open.first)
    }

    /// Whether a block of a transaction in progress is being received.
    pub fn in_block(&self) -> bool {
        self.streams.as_ref().is_some_and(|streams| streams.block().is_some())
    }

    /// When the transaction committed that is being received, or was the last.
    pub fn commit_time(&self) -> PgTimestamp {
        self.commit_time
    }

    /// Whether a transaction that was kept has committed: [`Assembler::replay`] reads from the disk.
    pub fn has_replay(&self) -> bool {
        self.replay.is_some()
    }

    /// Whether [`Assembler::take`] of this message works with the disk, which may take its time.
    pub fn may_block(&self, payload: &[u8]) -> bool {
        self.streams.as_ref().is_some_and(|streams| streams.may_block(payload))
    }

    /// Takes the payload of the next XLogData. While there is a replay afterwards, [`Assembler::replay`] comes first.
    ///
    /// Gives a segment when a transaction ended, or when the open one grew too large to hold.
    ///
    /// # Errors
    /// When it is no message, when it may not come now, or when the disk fails: this assembler is of no use then.
    pub fn take(&mut self, payload: Bytes) -> Result<Option<Segment>, TakeError> {
        assert!(self.replay.is_none(), "what is kept comes before what is new");
        let bytes = payload.len();
        let Some(streams) = &mut self.streams else {
            let (_, message) = Message::decode(payload, Layout::PLAIN)?;
            return Ok(self.push(message, bytes)?);
        };
        if let Some(xid) = streams.block() {
            let ahead = self.ahead.as_mut().filter(|ahead| ahead.xid == xid);
            streams.take(xid, &payload, ahead.is_some())?;
            let (Some(ahead), Some(_)) = (ahead, streams.block()) else { return Ok(None) };
            let (_, message) = Message::decode(payload, Layout::BLOCK)?;
            return Ok(ahead.relations.take(&mut self.open, message, bytes)?);
        }
        let (_, message) = Message::decode(payload, Layout::PLAIN)?;
        if self.ahead.as_ref().is_some_and(|ahead| !ahead.goes_on(&message)) {
            self.ahead.take().and_then(|ahead| streams.lost(ahead.xid)).map_or(Ok(()), Err)?;
            (self.open, self.gave_up) = (None, true);
        }
        match message {
            Message::StreamStart(start) => {
                if let Some(open) = self.open.as_ref().filter(|open| !open.ahead) {
                    return Err(AssembleError::InBlock { what: "Stream Start", xid: open.xid }.into());
                }
                streams.begin_block(start)?;
                Ok(None)
            }
            Message::StreamStop => Err(AssembleError::NoBlock.into()),
            Message::StreamAbort(abort) => {
                streams.abort(abort)?;
                Ok(None)
            }
            Message::StreamCommit(commit) => {
                if let Some(ahead) = self.ahead.take() {
                    let announced = streams.commit_ahead(commit.xid);
                    return Ok(self.commit_ahead(commit, ahead, &announced)?);
                }
                let replay = streams.commit(commit)?;
                self.begin(commit.commit_lsn, commit.commit_time, commit.xid)?;
                self.replay = Some(replay);
                Ok(None)
            }
            message => Ok(self.push(message, bytes)?),
        }
    }

    /// What was announced in a transaction that came in blocks is known everywhere from its commit on.
    fn know(&mut self, mut relations: Relations, announced: &HashSet<RelationId>) {
        for relation in announced.iter().filter_map(|id| relations.by_id.remove(id)) {
            self.announced(&relation);
            self.relations.by_id.insert(relation.id, relation);
        }
    }

    /// The next segment of a transaction that was kept and has committed; `None` when there is none (any more), or not
    /// yet: ask again while [`Assembler::has_replay`].
    ///
    /// # Errors
    /// As [`Assembler::take`].
    pub fn replay(&mut self) -> Result<Option<Segment>, TakeError> {
        let Some(replay) = &mut self.replay else { return Ok(None) };
        while let Some((message, bytes)) = replay.next()? {
            let Some(message) = message else { return Ok(None) };
            let full = replay.relations.take(&mut self.open, message, bytes)?;
            if let Some(full) = full
                && let Some(segment) = to_apply(self.recognising.is_some(), self.applied, full)?
            {
                return Ok(Some(segment));
            }
        }
        let Replay { commit, announced, relations, .. } = self.replay.take().expect("it was there");
        self.know(relations, &announced);
        Ok(self.commit(commit.commit_lsn, commit.end_lsn)?)
    }

    /// Takes a message of a transaction that is known to commit; `bytes` is what it measured on the wire.
    ///
    /// Gives a segment when a transaction ended, or when the open one grew too large to hold.
    ///
    /// # Errors
    /// When the message is not one that may come now: the stream cannot be trusted from here on.
    pub fn push(&mut self, message: Message, bytes: usize) -> Result<Option<Segment>, AssembleError> {
        match message {
            Message::Begin(begin) => {
                self.begin(begin.final_lsn, begin.commit_time, begin.xid)?;
                Ok(None)
            }
            Message::Commit(commit) => self.commit(commit.commit_lsn, commit.end_lsn),
            message => {
                match (&message, &mut self.open) {
                    (Message::Relation(relation), _) => self.announced(relation),
                    (Message::Message(message), Some(open)) if message.transactional => {
                        open.comes_again = true;
                    }
                    _ => {}
                }
                let segment = self.relations.take(&mut self.open, message, bytes)?;
                segment
                    .map_or(Ok(None), |segment| to_apply(self.recognising.is_some(), self.applied, segment))
            }
        }
    }

    fn announced(&mut self, relation: &Relation) {
        if let Some(streams) = &mut self.streams {
            streams.announced_elsewhere(relation.id);
        }
    }

    fn begin(
        &mut self,
        commit_lsn: CommitLsn,
        commit_time: PgTimestamp,
        xid: Xid,
    ) -> Result<(), AssembleError> {
        if let Some(open) = &self.open {
            return Err(AssembleError::Nested { outer: open.xid, inner: xid });
        }
        if let Some(expected) = self.recognising
            && (expected.commit_lsn, expected.xid, expected.commit_time) != (commit_lsn, xid, commit_time)
        {
            let found = Found::Transaction(xid, commit_lsn);
            return Err(AssembleError::OtherHistory { expected, found });
        }
        if commit_lsn.position() < self.previous_end.position() {
            return Err(AssembleError::OutOfOrder { previous: self.previous_end, commit: commit_lsn });
        }
        self.commit_time = commit_time;
        self.open = Some(Segment::begin(xid, commit_lsn, commit_time));
        Ok(())
    }

    /// The last segment of the open transaction; none where that was applied before.
    fn commit(&mut self, commit_lsn: CommitLsn, end: EndLsn) -> Result<Option<Segment>, AssembleError> {
        let mut segment = self.open.take().ok_or(AssembleError::Outside { what: "Commit" })?;
        if segment.commit_lsn != commit_lsn {
            return Err(AssembleError::CommitMismatch { begin: segment.commit_lsn, commit: commit_lsn });
        }
        if end.position() <= commit_lsn.position() {
            return Err(AssembleError::EndMismatch { commit: commit_lsn, end });
        }
        if let Some(expected) = self.recognising.take() {
            if expected.end != end {
                let found = Found::Transaction(segment.xid, commit_lsn);
                return Err(AssembleError::OtherHistory { expected, found });
            }
            self.previous_end = end;
            return Ok(None);
        }
        self.previous_end = end;
        segment.end = Some(end);
        if segment.changes.is_empty() && segment.first && commit_lsn.position() < self.applied.position() {
            return Ok(None);
        }
        segment.comes_again |= self.sends_empty || !segment.changes.is_empty() || !segment.first;
        to_apply(false, self.applied, segment)
    }
}

impl Relations {
    /// Keeps a relation for the changes that follow, its columns' types by name where they were named.
    fn announce(&mut self, mut relation: Relation) -> Arc<Relation> {
        for column in &mut relation.columns {
            column.type_name = self.types.get(&column.type_oid).cloned();
        }
        let relation = Arc::new(relation);
        self.by_id.insert(relation.id, Arc::clone(&relation));
        relation
    }

    fn name_type(&mut self, named: Type) {
        self.types.insert(named.oid, named.name);
    }

    /// Takes a message that neither begins nor ends a transaction into the open segment; gives that one when it is full.
    fn take(
        &mut self,
        open: &mut Option<Segment>,
        message: Message,
        bytes: usize,
    ) -> Result<Option<Segment>, AssembleError> {
        match message {
            Message::Relation(relation) => {
                hold(open, &relation, bytes);
                self.announce(relation);
                Ok(None)
            }
            Message::Type(named) => {
                self.name_type(named);
                Ok(None)
            }
            message => match self.change(message)? {
                Some(change) => add(open, change, bytes),
                None => Ok(None),
            },
        }
    }

    /// The change that a message is; `None` for one that changes no row.
    fn change(&self, message: Message) -> Result<Option<Change>, AssembleError> {
        let not_asked_for = |what| Err(AssembleError::NotAskedFor { what });
        Ok(Some(match message {
            Message::Insert(insert) => {
                let relation = self.find(insert.relation, [&insert.new])?;
                Change::Insert { relation, new: insert.new }
            }
            Message::Update(update) => {
                let old = update.old.as_ref().map(OldTuple::tuple);
                let relation = self.find(update.relation, old.into_iter().chain([&update.new]))?;
                Change::Update { relation, old: update.old, new: update.new }
            }
            Message::Delete(delete) => {
                let relation = self.find(delete.relation, [delete.old.tuple()])?;
                Change::Delete { relation, old: delete.old }
            }
            Message::Truncate(truncate) => {
                let mut relations = Vec::with_capacity(truncate.relations.len());
                for id in truncate.relations {
                    relations.push(self.find(id, [])?);
                }
                let (cascade, restart_identity) = (truncate.cascade, truncate.restart_identity);
                Change::Truncate { relations, cascade, restart_identity }
            }
            // Where a change came from and what an application wrote into the WAL do not change a row.
            Message::Origin(_) | Message::Message(_) => return Ok(None),
            Message::Begin(_) | Message::Commit(_) | Message::Relation(_) | Message::Type(_) => {
                unreachable!("taken before it comes here")
            }
            Message::StreamStart(_)
            | Message::StreamStop
            | Message::StreamCommit(_)
            | Message::StreamAbort(_) => return not_asked_for("a transaction in progress"),
            Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_)
            | Message::StreamPrepare(_) => return not_asked_for("a prepared transaction"),
        }))
    }

    fn find<'a>(
        &self,
        id: RelationId,
        tuples: impl IntoIterator<Item = &'a Tuple>,
    ) -> Result<Arc<Relation>, AssembleError> {
        let relation = self.by_id.get(&id).ok_or(AssembleError::UnknownRelation(id))?;
        let announced = relation.columns.len();
        for tuple in tuples {
            if tuple.len() != announced {
                return Err(AssembleError::Width { relation: id, sent: tuple.len(), announced });
            }
        }
        Ok(Arc::clone(relation))
    }
}

/// The segment, unless it is of the transaction that is being recognised.
fn to_apply(recognising: bool, applied: EndLsn, segment: Segment) -> Result<Option<Segment>, AssembleError> {
    if recognising {
        return Ok(None);
    }
    let Segment { xid, commit_lsn: commit, .. } = segment;
    if commit.position() < applied.position() {
        return Err(AssembleError::Unheard { xid, commit, applied });
    }
    Ok(Some(segment))
}

/// The changes that follow keep a relation, even when it is announced anew for each of them.
fn hold(open: &mut Option<Segment>, relation: &Relation, bytes: usize) {
    if let Some(open) = open {
        open.cost += bytes + relation.columns.len() * size_of::<Column>();
    }
}

/// Puts a change into the open segment; gives that one when it is full.
fn add(open: &mut Option<Segment>, change: Change, bytes: usize) -> Result<Option<Segment>, AssembleError> {
    let segment = open.as_mut().ok_or(AssembleError::Outside { what: "change" })?;
    segment.changes.push(change);
    segment.cost += bytes + CHANGE_COST;
    if segment.cost < SEGMENT_COST_MAX {
        return Ok(None);
    }
    let rest = Segment::begin(segment.xid, segment.commit_lsn, segment.commit_time);
    let rest = Segment { first: false, ahead: segment.ahead, ..rest };
    Ok(open.replace(rest))
}

#[cfg(test)]
mod tests;
