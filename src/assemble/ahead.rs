//! A transaction in progress whose changes are handed out before its commit has come.
//!
//! Whoever reads the stream knows that it has committed on the source, and asks for it at its first block. Where its
//! commit stands among the others is not known: it is given up when another one comes first, or when a part of it is
//! rolled back. The spool has it all the time, so it is given up at no loss; only where the spool fails, that cannot be.

use std::collections::HashSet;

use super::stream::Streams;
use super::{AssembleError, Assembler, Relations, Segment};
use crate::pg::{CommitLsn, PgTimestamp, RelationId, SourceLsn, Xid};
use crate::proto::{Message, StreamCommit};

/// The transaction, and what it announced.
#[derive(Debug)]
pub(super) struct Ahead {
    pub(super) xid: Xid,
    first_change: SourceLsn,
    pub(super) relations: Relations,
}

impl Assembler {
    /// The transaction whose first block was begun by the message at `at`, if it may go ahead: nothing else is in
    /// progress, and nothing committed since its first change. What runs beside others is likely to be overtaken.
    ///
    /// `at` is the position that came with the message: for a Stream Start, where the block's first change stands.
    pub fn may_go_ahead(&self, at: SourceLsn) -> Option<Xid> {
        let alone = self.open.is_none()
            && !self.is_recognising()
            && at > SourceLsn::ZERO
            && at >= self.previous_end.max(self.applied).position();
        self.streams.as_ref().and_then(Streams::begun_alone).filter(|_| alone)
    }

    /// Hands out what comes of the transaction for which [`Assembler::may_go_ahead`] was just asked.
    ///
    /// # Panics
    /// When there is none.
    pub fn go_ahead(&mut self, at: SourceLsn, sent_at: PgTimestamp) {
        let xid = self.may_go_ahead(at).expect("it was asked for");
        self.ahead = Some(Ahead { xid, first_change: at, relations: Relations::default() });
        let open = Segment::begin(xid, CommitLsn::new(at.get()), sent_at);
        self.open = Some(Segment { ahead: true, ..open });
    }

    /// Whether, since this was asked last, a transaction was given up that went ahead.
    pub fn gave_up(&mut self) -> bool {
        std::mem::take(&mut self.gave_up)
    }

    /// The last segment of what went ahead.
    pub(super) fn commit_ahead(
        &mut self,
        commit: StreamCommit,
        ahead: Ahead,
        announced: &HashSet<RelationId>,
    ) -> Result<Option<Segment>, AssembleError> {
        let StreamCommit { xid, commit_lsn, end_lsn, commit_time } = commit;
        let rest = self.open.take().expect("what goes ahead is open");
        if commit_lsn.position() < ahead.first_change {
            return Err(AssembleError::BeforeItsChanges {
                xid,
                commit: commit_lsn,
                first: ahead.first_change,
            });
        }
        self.begin(commit_lsn, commit_time, xid)?;
        // Begun by the rules, with what is there of it already.
        self.open = Some(Segment { commit_lsn, commit_time, ahead: false, ..rest });
        self.know(ahead.relations, announced);
        self.commit(commit_lsn, end_lsn)
    }
}

impl Ahead {
    /// Whether it is not given up before this message, which is not of a block.
    pub(super) fn goes_on(&self, message: &Message) -> bool {
        match message {
            Message::StreamStart(_)
            | Message::StreamStop
            | Message::Relation(_)
            | Message::Type(_)
            | Message::Message(_) => true,
            Message::StreamAbort(abort) => abort.xid != self.xid,
            Message::StreamCommit(commit) => commit.xid == self.xid,
            _ => false,
        }
    }
}
