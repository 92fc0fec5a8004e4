//! The task that reads the source's stream: decodes, assembles, and hands segments on.
//!
//! It takes hold of a segment's memory before it hands the segment on, so what is received and not yet applied is
//! bounded; beyond the bound it stops reading, and the source waits. Status updates do not come from here, so they
//! go out meanwhile. What waits on disk is written and read here, too: only while a thread of the runtime is given to it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{block_in_place, yield_now};
use tokio::time::timeout;

use crate::assemble::{AssembleError, Assembler, Segment, TakeError};
use crate::catalog::{self, SourceClient};
use crate::error::{Definite, Failure, Side, Transient};
use crate::limits::{AHEAD_ASK, BEHIND_AFTER, RECEIVE_TIMEOUT};
use crate::pg::{PgTimestamp, Resume, SourceLsn, Xid};
use crate::proto::{DecodeError, ReplicationFrame};
use crate::source::gap::other_history;
use crate::spill::SpillError;
use crate::status::Metrics;
use crate::wire::{self, CopyBothReader, Pace};

use super::memory::{Held, Memory};

/// What the reader hands on.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A segment, and the memory that it takes.
    Segment(Segment, Held),
    /// What was handed on of the transaction that goes ahead is to be undone.
    GaveUp,
    /// A keepalive, in its place among the segments.
    Keepalive {
        /// How far the server has sent.
        wal_end: SourceLsn,
        /// Whether it wants an answer at once.
        reply_requested: bool,
        /// Whether it came in the middle of a transaction.
        in_transaction: bool,
    },
    /// The stream ended, as it never does by itself.
    Failed(Failure),
    /// Transactions in progress cannot be kept, or were not kept well.
    SpillFailed(SpillError),
}

/// Which transactions in progress may go ahead of their commit.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// Knows which have committed.
    pub source: Arc<SourceClient>,
    /// Where the last table was copied: what began before and ends later may be a part of that copy, or not.
    pub copied: SourceLsn,
}

/// What one message of the stream completes.
enum Taken {
    Segment(Segment),
    Keepalive { wal_end: SourceLsn, reply_requested: bool, in_transaction: bool },
}

impl Ahead {
    /// Whether a transaction may go ahead whose first change stands at `at`.
    async fn may(&self, xid: Xid, at: SourceLsn) -> bool {
        if at < self.copied {
            return false;
        }
        // Where it cannot be told at once, it waits for its commit: that connection may be kept by a lock.
        let committed = timeout(AHEAD_ASK, catalog::has_committed(&self.source, xid)).await;
        matches!(committed, Ok(Ok(true)))
    }
}

/// Reads until the stream fails or nobody listens any more.
pub(super) async fn read(
    mut stream: CopyBothReader,
    mut assembler: Assembler,
    memory: Memory,
    ahead: Option<Ahead>,
    out: mpsc::Sender<Incoming>,
    metrics: Metrics,
) {
    let mut pace = Pace::default();
    loop {
        let next = if assembler.has_replay() {
            block_in_place(|| assembler.replay()).map(|segment| segment.map(Taken::Segment)).map_err(untaken)
        } else {
            match next(&mut stream, pace).await {
                Ok(payload) => {
                    metrics.received_bytes(payload.len() as u64);
                    take(&mut assembler, &mut pace, ahead.as_ref(), payload).await
                }
                Err(failure) => Err(Incoming::Failed(failure)),
            }
        };
        if assembler.gave_up() {
            tracing::debug!("the transaction that went ahead is overtaken, or rolled back in part");
            if out.send(Incoming::GaveUp).await.is_err() {
                return;
            }
        }
        let taken = match next {
            Ok(None) => {
                // A long part of a replay may have been rolled back: who waits for this task gets a chance.
                if assembler.has_replay() {
                    yield_now().await;
                }
                continue;
            }
            Ok(Some(taken)) => taken,
            Err(failed) => {
                let _ = out.send(failed).await;
                return;
            }
        };
        let incoming = match taken {
            Taken::Segment(segment) => {
                let held = memory.hold(segment.cost).await;
                Incoming::Segment(segment, held)
            }
            Taken::Keepalive { wal_end, reply_requested, in_transaction } => {
                Incoming::Keepalive { wal_end, reply_requested, in_transaction }
            }
        };
        if out.send(incoming).await.is_err() {
            return;
        }
    }
}

/// Reads from a stream that is opened as `resume` says until the transaction has come that must come first. Nothing is
/// applied, and nothing is confirmed.
///
/// # Errors
/// That the source's history is another, or that the stream fails.
pub async fn recognise(
    mut stream: CopyBothReader,
    resume: &Resume,
    sends_empty: bool,
) -> Result<(), Failure> {
    let mut assembler = Assembler::going_on(resume).sent_empty(sends_empty);
    let mut pace = Pace::default();
    while assembler.is_recognising() {
        let payload = next(&mut stream, pace).await?;
        match take(&mut assembler, &mut pace, None, payload).await {
            Err(Incoming::Failed(failure)) => return Err(failure),
            Err(Incoming::SpillFailed(error)) => {
                return Err(Transient::new(Side::Source, error.to_string()).into());
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

async fn next(stream: &mut CopyBothReader, pace: Pace) -> Result<Bytes, Failure> {
    if let Some(payload) = stream.try_next().map_err(source_failed)? {
        return Ok(payload);
    }
    stream.set_pace(pace);
    match timeout(RECEIVE_TIMEOUT, stream.next()).await {
        Ok(Ok(Some(payload))) => Ok(payload),
        Ok(Ok(None)) => Err(Transient::new(Side::Source, "the source ended the stream").into()),
        Ok(Err(error)) => Err(source_failed(error)),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Failure {
    let detail = format!("nothing was received for {} s", RECEIVE_TIMEOUT.as_secs());
    Transient::new(Side::Source, "the source is silent").detail(detail).into()
}

async fn take(
    assembler: &mut Assembler,
    pace: &mut Pace,
    ahead: Option<&Ahead>,
    payload: Bytes,
) -> Result<Option<Taken>, Incoming> {
    let undecodable = |error| Incoming::Failed(undecodable(error));
    match ReplicationFrame::decode(payload).map_err(undecodable)? {
        // Before 14, a server sends nothing in place of an Origin whose name it cannot find.
        ReplicationFrame::XLogData(data) if data.payload.is_empty() => Ok(None),
        ReplicationFrame::XLogData(data) => {
            let segment = if assembler.may_block(&data.payload) {
                block_in_place(|| assembler.take(data.payload))
            } else {
                assembler.take(data.payload)
            };
            *pace = pace_of(assembler, data.sent_at);
            let segment = segment.map_err(untaken)?;
            if let Some(ahead) = ahead
                && let Some(xid) = assembler.may_go_ahead(data.wal_start)
                && ahead.may(xid, data.wal_start).await
            {
                tracing::debug!(%xid, "a transaction goes ahead of its commit");
                assembler.go_ahead(data.wal_start, data.sent_at);
            }
            Ok(segment.map(Taken::Segment))
        }
        ReplicationFrame::PrimaryKeepalive(keepalive) => {
            *pace = Pace::Quiet;
            assembler.passed(keepalive.wal_end).map_err(|error| untaken(error.into()))?;
            Ok(Some(Taken::Keepalive {
                wal_end: keepalive.wal_end,
                reply_requested: keepalive.reply_requested,
                in_transaction: assembler.in_transaction(),
            }))
        }
    }
}

/// How eagerly the socket is to be read after a message sent at `sent_at`.
///
/// A walsender sends a small packet for each message. A reader that wakes up for each makes the source pay twice the
/// CPU; one that lets the socket fill in between does not (measured: 1.8 s against 0.9 s for 400,000 changes). `sent_at`
/// and the time of the commit are both the source's, so no clocks are compared.
fn pace_of(assembler: &Assembler, sent_at: PgTimestamp) -> Pace {
    if assembler.in_large_transaction() {
        Pace::Large
    } else if sent_at.seconds_since(assembler.commit_time()) > BEHIND_AFTER.as_secs_f64() {
        Pace::Behind
    } else {
        Pace::Quiet
    }
}

fn source_failed(error: wire::Error) -> Failure {
    error.into_failure(Side::Source)
}

fn untaken(error: TakeError) -> Incoming {
    match error {
        TakeError::Decode(error) => Incoming::Failed(undecodable(error)),
        TakeError::Order(error) => Incoming::Failed(out_of_order(error)),
        TakeError::Spill(error) => Incoming::SpillFailed(error),
    }
}

fn undecodable(error: DecodeError) -> Failure {
    Definite::new("the source sent a message that cannot be decoded")
        .detail(error.to_string())
        .hint(DEFECT)
        .into()
}

fn out_of_order(error: AssembleError) -> Failure {
    if let AssembleError::OtherHistory { .. } | AssembleError::Unheard { .. } = error {
        return other_history(error.to_string()).into();
    }
    Definite::new("the source sent a message that may not come here")
        .detail(error.to_string())
        .hint(DEFECT)
        .into()
}

const DEFECT: &str = "nothing was skipped; report this with the source's version";
