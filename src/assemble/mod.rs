//! Messages in, transactions out.
//!
//! pgoutput sends a transaction when it commits: Begin, then for each change a Relation (at first use, and after the
//! table changed) and the change, then Commit. The [`Assembler`] checks that order, resolves relation identifiers,
//! and hands out [`Segment`]s: a whole transaction each, or one part of a transaction that is larger than
//! [`limits::SEGMENT_COST_MAX`](crate::limits::SEGMENT_COST_MAX).
//!
//! Not here: sockets, clocks, the target's tables, and what to do about a change.
//!
//! Invariants: segments come in commit order; `first` and `end` bracket each transaction exactly once; each tuple of
//! a segment has as many columns as its relation; whatever keeps memory counts in a segment's cost, an empty
//! transaction too.
//!
//! One assembler serves one replication connection: the server announces relations anew on the next.

use std::collections::HashMap;
use std::sync::Arc;

use crate::limits::{CHANGE_COST, SEGMENT_COST_MAX};
use crate::pg::{Column, CommitLsn, EndLsn, Oid, PgTimestamp, QualifiedName, Relation, RelationId, Xid};
use crate::proto::{Message, OldTuple, Tuple};

/// One transaction of the source, or a part of a large one.
#[derive(Debug)]
pub struct Segment {
    /// The transaction's identifier on the source.
    pub xid: Xid,
    /// Where its commit record starts.
    pub commit_lsn: CommitLsn,
    /// When it committed, by the source's clock.
    pub commit_time: PgTimestamp,
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
}

/// Puts one connection's messages together.
#[derive(Debug, Default)]
pub struct Assembler {
    relations: HashMap<RelationId, Arc<Relation>>,
    /// Of types that are not builtin: announced before each relation that has them.
    types: HashMap<Oid, QualifiedName>,
    open: Option<Segment>,
    previous_end: EndLsn,
}

impl Assembler {
    /// Starts with no relation known, as a new connection does, and takes whatever transaction comes first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with no relation known, and refuses a transaction that commits before `stored`: it is applied already.
    pub fn resuming(stored: EndLsn) -> Self {
        Self { previous_end: stored, ..Self::default() }
    }

    /// Whether a transaction is being received.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Takes the next message; `bytes` is what it measured on the wire.
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
            Message::Commit(commit) => self.commit(commit.commit_lsn, commit.end_lsn).map(Some),
            Message::Relation(relation) => {
                // The changes that follow keep it, even when it is announced anew for each of them.
                if let Some(open) = &mut self.open {
                    open.cost += bytes + relation.columns.len() * size_of::<Column>();
                }
                self.announce(relation);
                Ok(None)
            }
            Message::Type(named) => {
                self.types.insert(named.oid, named.name);
                Ok(None)
            }
            Message::Insert(insert) => {
                let relation = self.relation(insert.relation, [&insert.new])?;
                self.change(Change::Insert { relation, new: insert.new }, bytes)
            }
            Message::Update(update) => {
                let old = update.old.as_ref().map(OldTuple::tuple);
                let relation = self.relation(update.relation, old.into_iter().chain([&update.new]))?;
                self.change(Change::Update { relation, old: update.old, new: update.new }, bytes)
            }
            Message::Delete(delete) => {
                let relation = self.relation(delete.relation, [delete.old.tuple()])?;
                self.change(Change::Delete { relation, old: delete.old }, bytes)
            }
            Message::Truncate(truncate) => {
                let mut relations = Vec::with_capacity(truncate.relations.len());
                for id in truncate.relations {
                    relations.push(self.relation(id, [])?);
                }
                let (cascade, restart_identity) = (truncate.cascade, truncate.restart_identity);
                self.change(Change::Truncate { relations, cascade, restart_identity }, bytes)
            }
            // Where a change came from and what an application wrote into the WAL do not change a row.
            Message::Origin(_) | Message::Message(_) => Ok(None),
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
        if commit_lsn.position() < self.previous_end.position() {
            return Err(AssembleError::OutOfOrder { previous: self.previous_end, commit: commit_lsn });
        }
        self.open = Some(Segment {
            xid,
            commit_lsn,
            commit_time,
            first: true,
            changes: Vec::new(),
            cost: CHANGE_COST,
            end: None,
        });
        Ok(())
    }

    fn commit(&mut self, commit_lsn: CommitLsn, end: EndLsn) -> Result<Segment, AssembleError> {
        let mut segment = self.open.take().ok_or(AssembleError::Outside { what: "Commit" })?;
        if segment.commit_lsn != commit_lsn {
            return Err(AssembleError::CommitMismatch { begin: segment.commit_lsn, commit: commit_lsn });
        }
        if end.position() <= commit_lsn.position() {
            return Err(AssembleError::EndMismatch { commit: commit_lsn, end });
        }
        segment.end = Some(end);
        self.previous_end = end;
        Ok(segment)
    }

    fn change(&mut self, change: Change, bytes: usize) -> Result<Option<Segment>, AssembleError> {
        let open = self.open.as_mut().ok_or(AssembleError::Outside { what: "change" })?;
        open.changes.push(change);
        open.cost += bytes + CHANGE_COST;
        if open.cost < SEGMENT_COST_MAX {
            return Ok(None);
        }
        let rest = Segment {
            xid: open.xid,
            commit_lsn: open.commit_lsn,
            commit_time: open.commit_time,
            first: false,
            changes: Vec::new(),
            cost: CHANGE_COST,
            end: None,
        };
        Ok(self.open.replace(rest))
    }

    /// Keeps a relation for the changes that follow, its columns' types by name where they were named.
    fn announce(&mut self, mut relation: Relation) {
        for column in &mut relation.columns {
            column.type_name = self.types.get(&column.type_oid).cloned();
        }
        self.relations.insert(relation.id, Arc::new(relation));
    }

    fn relation<'a>(
        &self,
        id: RelationId,
        tuples: impl IntoIterator<Item = &'a Tuple>,
    ) -> Result<Arc<Relation>, AssembleError> {
        let relation = self.relations.get(&id).ok_or(AssembleError::UnknownRelation(id))?;
        let announced = relation.columns.len();
        for tuple in tuples {
            if tuple.len() != announced {
                return Err(AssembleError::Width { relation: id, sent: tuple.len(), announced });
            }
        }
        Ok(Arc::clone(relation))
    }
}

#[cfg(test)]
mod tests;
