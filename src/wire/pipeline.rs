//! Many statements in one go, with one Sync for all or for each group. Manual: "Extended Query", "Pipelining".
//!
//! A [`Pipeline`] is a buffer of messages. [`Session::send`] takes it, [`Session::receive`] writes it while it reads the
//! answers, so neither side waits for the other however long it is; several may be sent before the first is answered.
//! Statements between two Syncs are one transaction unless a transaction block is open. After an error the server skips
//! to the next Sync, and so the answers are counted.
//!
//! COPY goes along with its data, without waiting for CopyInResponse: the server takes the messages in their order, and
//! after an error drops the data as it skips everything else ("COPY Operations", `PostgresMain`).
//!
//! Parameters and results are text. Which statement failed is told by its place among the executes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::{BufMut, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use super::channel::Progress;
use super::copy::put_copy_data;
use super::error::{Error, Result};
use super::inbox::Inbox;
use super::server_error::ServerError;
use super::session::{Row, Session, TransactionStatus, affected};
use crate::limits::{PIPELINE_BYTES_KEPT, SEND_BYTES};
use crate::pg::Sql;

/// Statements to be run together. Kept and filled again, it allocates no more.
#[derive(Default)]
pub struct Pipeline {
    buffer: BytesMut,
    executes: usize,
    /// For each Sync, the number of executes before it.
    syncs: Vec<usize>,
    synced: bool,
}

/// What the executes of a pipeline did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The number of rows that each execute affected or returned, in order.
    pub affected: Vec<u64>,
    /// The rows returned, each with the place of its execute. They have no column names.
    pub rows: Vec<(usize, Row)>,
}

/// Why a pipeline did not run to its end.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct PipelineError {
    /// The place of the execute that failed. For a failed parse, that of the execute that would have come next; so, too,
    /// for a Sync whose commit failed (a deferred constraint). `None` if the connection itself failed.
    pub execute: Option<usize>,
    /// What the server said, or how the connection failed.
    #[source]
    pub error: Error,
}

impl Pipeline {
    /// An empty pipeline.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares a statement under a name, which lives as long as the session or until it is closed. The empty name's
    /// statement lives until the next one.
    ///
    /// # Errors
    /// When the text cannot be sent.
    pub fn parse(&mut self, name: &str, sql: &Sql) -> Result<()> {
        self.append(|buffer| frontend::parse(name, sql.as_str(), [], buffer).is_ok())
    }

    /// Runs a prepared statement with text parameters.
    ///
    /// # Errors
    /// When there are more than 65,535 parameters, or they make more than 1 GiB.
    pub fn execute<'a>(
        &mut self,
        name: &str,
        parameters: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<()> {
        self.append(|buffer| {
            let put = |value: Option<&[u8]>, buffer: &mut BytesMut| match value {
                Some(value) => {
                    buffer.put_slice(value);
                    Ok(IsNull::No)
                }
                None => Ok(IsNull::Yes),
            };
            frontend::bind("", name, [], parameters, put, [], buffer).is_ok()
                && frontend::execute("", 0, buffer).is_ok()
        })?;
        self.executes += 1;
        Ok(())
    }

    /// Runs a `COPY … FROM STDIN` with all its data, which is copied.
    ///
    /// # Errors
    /// When the text cannot be sent.
    pub fn copy(&mut self, sql: &Sql, data: &[u8]) -> Result<()> {
        self.parse("", sql)?;
        self.execute("", std::iter::empty())?;
        for part in data.chunks(SEND_BYTES) {
            put_copy_data(&mut self.buffer, part)?;
        }
        frontend::copy_done(&mut self.buffer);
        Ok(())
    }

    /// Forgets a prepared statement.
    ///
    /// # Errors
    /// When the name cannot be sent.
    pub fn close(&mut self, name: &str) -> Result<()> {
        self.append(|buffer| frontend::close(b'S', name, buffer).is_ok())
    }

    /// Ends a group: a transaction of its own unless a transaction block is open.
    pub fn sync(&mut self) {
        frontend::sync(&mut self.buffer);
        self.syncs.push(self.executes);
        self.synced = true;
    }

    /// The bytes gathered.
    pub fn byte_len(&self) -> usize {
        self.buffer.len()
    }

    /// The executes gathered.
    pub const fn executes(&self) -> usize {
        self.executes
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Empties the pipeline, and keeps its memory unless it is very much.
    pub fn clear(&mut self) {
        self.buffer.clear();
        if self.buffer.capacity() > PIPELINE_BYTES_KEPT {
            self.buffer = BytesMut::new();
        }
        self.syncs.clear();
        (self.executes, self.synced) = (0, false);
    }

    /// Appends whole messages, or nothing.
    fn append(&mut self, put: impl FnOnce(&mut BytesMut) -> bool) -> Result<()> {
        let before = self.buffer.len();
        if !put(&mut self.buffer) {
            self.buffer.truncate(before);
            return Err(Error::Unsendable("a zero byte, more than 65,535 parameters, or more than 1 GiB"));
        }
        self.synced = false;
        Ok(())
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipeline({} executes, {} bytes)", self.executes, self.buffer.len())
    }
}

/// A pipeline that was sent, and what has been answered of it.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// For each Sync that is not answered yet, the number of executes before it.
    syncs: VecDeque<usize>,
    replies: Replies,
}

impl Session {
    /// Runs a pipeline, adding a Sync if there is none at its end, and empties it.
    ///
    /// # Errors
    /// When a statement fails: the first one is reported, and groups after its own have been run all the same. When
    /// the connection breaks.
    pub async fn run(&mut self, pipeline: &mut Pipeline) -> Result<Outcome, PipelineError> {
        self.send(pipeline).map_err(|error| PipelineError { execute: None, error })?;
        self.receive().await
    }

    /// Queues a pipeline behind those that are not answered yet, adding a Sync if there is none at its end, and empties
    /// it. Nothing is written before [`Self::receive`] is waited for, and nothing else can be run before all are answered.
    ///
    /// # Errors
    /// When another operation goes on, or the connection is lost.
    pub fn send(&mut self, pipeline: &mut Pipeline) -> Result<()> {
        if self.sent.is_empty() {
            self.begin()?;
        } else if self.is_dead() {
            return Err(Error::Closed);
        }
        if !pipeline.synced {
            pipeline.sync();
        }
        let mut replies = Replies::default();
        replies.outcome.affected.reserve(pipeline.executes);
        self.sent.push_back(Sent { syncs: std::mem::take(&mut pipeline.syncs).into(), replies });
        let output = &mut self.channel.output;
        if output.is_empty() {
            std::mem::swap(output, &mut pipeline.buffer);
        } else {
            output.extend_from_slice(&pipeline.buffer);
        }
        pipeline.clear();
        Ok(())
    }

    /// Waits until the oldest pipeline that was sent is answered, and writes meanwhile what is still to be written.
    /// Giving up the wait loses nothing.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn receive(&mut self) -> Result<Outcome, PipelineError> {
        match self.answer().await {
            Ok(Replies { failure: Some((execute, error)), .. }) => {
                Err(PipelineError { execute: Some(execute), error: error.into() })
            }
            Ok(Replies { outcome, .. }) => Ok(outcome),
            Err(error) => {
                self.sent.clear();
                self.lose(&error);
                Err(PipelineError { execute: None, error })
            }
        }
    }

    async fn answer(&mut self) -> Result<Replies> {
        loop {
            let Some(oldest) = self.sent.front_mut() else { return Err(Error::Closed) };
            match self.channel.inbox.next_tag()? {
                Some(b'Z') => {
                    let status = TransactionStatus::decode(self.channel.inbox.body())?;
                    self.channel.inbox.skip();
                    // Those that the server skipped after an error.
                    let executes = oldest.syncs.pop_front().unwrap_or_default();
                    oldest.replies.outcome.affected.resize(executes, 0);
                    let done = oldest.syncs.is_empty();
                    let replies = if done { self.sent.pop_front().map(|sent| sent.replies) } else { None };
                    self.synced(status);
                    if let Some(replies) = replies {
                        return Ok(replies);
                    }
                }
                Some(tag) => oldest.replies.take(tag, &mut self.channel.inbox)?,
                None => {
                    poll_fn(|cx| match self.channel.poll(cx, &mut &[][..]) {
                        Poll::Ready(Ok(Progress::Read)) => Poll::Ready(Ok(())),
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                        Poll::Ready(Ok(Progress::Written)) | Poll::Pending => Poll::Pending,
                    })
                    .await?;
                }
            }
        }
    }
}

/// The answers so far.
#[derive(Debug, Default)]
struct Replies {
    outcome: Outcome,
    failure: Option<(usize, ServerError)>,
}

impl Replies {
    fn take(&mut self, tag: u8, inbox: &mut Inbox) -> Result<()> {
        match tag {
            // ParseComplete, BindComplete, CloseComplete, CopyInResponse
            b'1' | b'2' | b'3' | b'G' => {}
            b'C' => self.outcome.affected.push(affected(inbox.body())),
            b'I' => self.outcome.affected.push(0),
            b'D' => {
                let row = Row::decode(&Arc::default(), inbox.body())?;
                self.outcome.rows.push((self.outcome.affected.len(), row));
            }
            b'E' => {
                let error = ServerError::decode(inbox.body())?;
                if error.is_fatal() {
                    return Err(error.into());
                }
                self.failure.get_or_insert((self.outcome.affected.len(), error));
            }
            tag => return Err(Error::Unexpected { tag: tag.into(), doing: "running a pipeline" }),
        }
        inbox.skip();
        Ok(())
    }
}
