//! Transactions in progress: their blocks on disk, what of them was rolled back, and their replay.
//!
//! A block's changes go to the transaction's spool as they came, each with its subtransaction. A subtransaction that is
//! rolled back is remembered, and its changes are left out when the transaction commits.
//!
//! Relations. The server announces a table in each streamed transaction anew, and again after a part of it was rolled
//! back; so a replay needs only what its own spool says. After the commit the server takes what was announced there for
//! known everywhere (`cleanup_rel_sync_cache` in `pgoutput.c`), unless the same table was announced elsewhere since:
//! `announced` has what is to be kept.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{AssembleError, Relations, TakeError};
use crate::limits::{SPILL_LEFT_OUT_BYTES_MAX, SPILL_READ_BYTES, SPILL_ROLLED_BACK_MAX};
use crate::pg::{RelationId, Xid};
use crate::proto::{Blocked, Layout, Message, StreamAbort, StreamCommit, StreamStart};
use crate::spill::{SpillDir, SpillError, Spool, SpoolReader};

/// The transactions in progress of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    spill: SpillDir,
    transactions: HashMap<Xid, InProgress>,
    block: Option<Xid>,
    /// That transaction, between the start of its first block and the next message.
    begun: Option<Xid>,
}

#[derive(Debug)]
struct InProgress {
    spool: Spool,
    rolled_back: HashSet<Xid>,
    /// Tables that were announced here last.
    announced: HashSet<RelationId>,
    /// Why not all of it is in the spool: it goes ahead, and did not need it so far.
    lost: Option<SpillError>,
}

/// A transaction that committed, as it is read back.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) commit: StreamCommit,
    reader: SpoolReader,
    rolled_back: HashSet<Xid>,
    pub(super) announced: HashSet<RelationId>,
    pub(super) relations: Relations,
}

impl Streams {
    pub(super) fn new(spill: SpillDir) -> Self {
        Self { spill, transactions: HashMap::new(), block: None, begun: None }
    }

    /// The transaction whose block is being received.
    pub(super) fn block(&self) -> Option<Xid> {
        self.block
    }

    /// The transaction whose first block has just begun, if no other is in progress.
    pub(super) fn begun_alone(&self) -> Option<Xid> {
        self.begun.filter(|_| self.transactions.len() == 1)
    }

    pub(super) fn may_block(&self, payload: &[u8]) -> bool {
        let current = self.block.and_then(|xid| self.transactions.get(&xid));
        let writes = current.is_some_and(|transaction| transaction.spool.writes_with(payload.len()));
        writes || Message::is_of_stream(payload)
    }

    pub(super) fn begin_block(&mut self, start: StreamStart) -> Result<(), TakeError> {
        match (start.first, self.transactions.contains_key(&start.xid)) {
            (true, false) => {
                let (rolled_back, announced, lost) = (HashSet::new(), HashSet::new(), None);
                let spool = self.spill.spool(start.xid)?;
                self.transactions.insert(start.xid, InProgress { spool, rolled_back, announced, lost });
            }
            (false, true) => {}
            (true, true) => return Err(AssembleError::StreamedTwice(start.xid).into()),
            (false, false) => return Err(AssembleError::NoFirstBlock(start.xid).into()),
        }
        self.block = Some(start.xid);
        self.begun = self.block.filter(|_| start.first);
        Ok(())
    }

    /// Takes a message of the block of `xid`. What goes `ahead` may fail to be kept: that matters where it is given up.
    pub(super) fn take(&mut self, xid: Xid, payload: &Bytes, ahead: bool) -> Result<(), TakeError> {
        self.begun = None;
        let transaction = self.transactions.get_mut(&xid).expect("a block's transaction is known");
        let what = match Message::decode_blocked(payload)? {
            Blocked::Change(part) => {
                return Ok(transaction.keep(ahead, |spool| spool.append(part, payload))?);
            }
            Blocked::Other(Some(part), Message::Relation(relation)) => {
                transaction.announced.insert(relation.id);
                return Ok(transaction.keep(ahead, |spool| spool.append(part, payload))?);
            }
            Blocked::Other(_, Message::StreamStop) => {
                self.block = None;
                return Ok(transaction.keep(ahead, Spool::end_block)?);
            }
            Blocked::Other(_, message) => match message {
                // Where the transaction came from and what an application wrote into the WAL change no row.
                Message::Origin(_) | Message::Message(_) => return Ok(()),
                Message::Begin(_) => "Begin",
                Message::Commit(_) => "Commit",
                Message::StreamStart(_) => "Stream Start",
                Message::StreamStop => "Stream Stop",
                Message::StreamCommit(_) => "Stream Commit",
                Message::StreamAbort(_) => "Stream Abort",
                Message::BeginPrepare(_)
                | Message::Prepare(_)
                | Message::CommitPrepared(_)
                | Message::RollbackPrepared(_)
                | Message::StreamPrepare(_) => "a prepared transaction",
                Message::Relation(_)
                | Message::Type(_)
                | Message::Insert(_)
                | Message::Update(_)
                | Message::Delete(_)
                | Message::Truncate(_) => "a change without its transaction",
            },
        };
        Err(AssembleError::InBlock { what, xid }.into())
    }

    /// Forgets what is rolled back. A transaction of which nothing came may be rolled back, too: the server had begun
    /// to stream it when it noticed.
    ///
    /// # Errors
    /// When more would have to be remembered than may be.
    pub(super) fn abort(&mut self, abort: StreamAbort) -> Result<(), SpillError> {
        if abort.subxid == abort.xid {
            self.transactions.remove(&abort.xid);
        } else if let Some(transaction) = self.transactions.get_mut(&abort.xid) {
            transaction.rolled_back.insert(abort.subxid);
            transaction.announced.clear();
            let remembered: usize = self.transactions.values().map(|each| each.rolled_back.len()).sum();
            if remembered > SPILL_ROLLED_BACK_MAX {
                return Err(SpillError::RolledBack { max: SPILL_ROLLED_BACK_MAX });
            }
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, commit: StreamCommit) -> Result<Replay, TakeError> {
        let transaction = self.transactions.remove(&commit.xid);
        let transaction = transaction.ok_or(AssembleError::NotStreamed(commit.xid))?;
        let reader = transaction.spool.into_reader(commit.xid)?;
        let InProgress { rolled_back, announced, .. } = transaction;
        Ok(Replay { commit, reader, rolled_back, announced, relations: Relations::default() })
    }

    /// Forgets one that went ahead and commits; gives the tables that it announced last.
    pub(super) fn commit_ahead(&mut self, xid: Xid) -> HashSet<RelationId> {
        self.transactions.remove(&xid).expect("what goes ahead is in progress").announced
    }

    /// Why the transaction is not kept, if it is not.
    pub(super) fn lost(&mut self, xid: Xid) -> Option<SpillError> {
        self.transactions.get_mut(&xid).and_then(|transaction| transaction.lost.take())
    }

    pub(super) fn announced_elsewhere(&mut self, relation: RelationId) {
        for transaction in self.transactions.values_mut() {
            transaction.announced.remove(&relation);
        }
    }
}

impl InProgress {
    fn keep(
        &mut self,
        ahead: bool,
        to: impl FnOnce(&mut Spool) -> Result<(), SpillError>,
    ) -> Result<(), SpillError> {
        if self.lost.is_some() {
            return Ok(());
        }
        match to(&mut self.spool) {
            Err(lost) if ahead => self.lost = Some(lost),
            kept => return kept,
        }
        Ok(())
    }
}

impl Replay {
    /// The next message that is not rolled back, and the bytes that it keeps in memory: its own, and of the buffer that
    /// it came in what is left out before it. No message where a long part was left out: there is more.
    pub(super) fn next(&mut self) -> Result<Option<(Option<Message>, usize)>, TakeError> {
        let mut left_out = 0;
        while let Some((part, payload)) = self.reader.read()? {
            let bytes = payload.len();
            if !self.rolled_back.contains(&part) {
                let kept = bytes + left_out.min(SPILL_READ_BYTES);
                return Ok(Some((Some(Message::decode(payload, Layout::BLOCK)?.1), kept)));
            }
            left_out += bytes;
            if left_out >= SPILL_LEFT_OUT_BYTES_MAX {
                return Ok(Some((None, 0)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
