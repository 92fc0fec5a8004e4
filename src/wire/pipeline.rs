//! Many statements in one go, with one Sync for all or for each group. Manual: "Extended Query", "Pipelining".
//!
//! A [`Pipeline`] is a buffer of messages; [`Session::run`] writes it while it reads the answers, so neither side waits
//! for the other however long it is. Statements between two Syncs are one transaction unless a transaction block is open.
//! After an error the server skips to the next Sync, and so the answers are counted.
//!
//! Parameters and results are text. Which statement failed is told by its place among the executes.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::{BufMut, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use super::channel::Progress;
use super::error::{Error, Result};
use super::inbox::Inbox;
use super::server_error::ServerError;
use super::session::{Row, Session, affected};
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

    /// Empties the pipeline, and keeps its memory.
    pub fn clear(&mut self) {
        self.buffer.clear();
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

impl Session {
    /// Runs a pipeline, adding a Sync if there is none at its end, and empties it.
    ///
    /// # Errors
    /// When a statement fails: the first one is reported, and groups after its own have been run all the same. When
    /// the connection breaks.
    pub async fn run(&mut self, pipeline: &mut Pipeline) -> Result<Outcome, PipelineError> {
        if !pipeline.synced {
            pipeline.sync();
        }
        let result = self.exchange(pipeline).await;
        pipeline.clear();
        match result {
            Ok(Replies { failure: Some((execute, error)), .. }) => {
                Err(PipelineError { execute: Some(execute), error: error.into() })
            }
            Ok(Replies { outcome, .. }) => Ok(outcome),
            Err(error) => {
                self.lose(&error);
                Err(PipelineError { execute: None, error })
            }
        }
    }

    async fn exchange(&mut self, pipeline: &Pipeline) -> Result<Replies> {
        self.begin()?;
        let mut replies = Replies::default();
        replies.outcome.affected.reserve(pipeline.executes);
        let mut rest: &[u8] = &pipeline.buffer;
        for &executes in &pipeline.syncs {
            loop {
                match self.channel.inbox.next_tag()? {
                    Some(b'Z') => break,
                    Some(tag) => replies.take(tag, &mut self.channel.inbox)?,
                    None => {
                        poll_fn(|cx| match self.channel.poll(cx, &mut rest) {
                            Poll::Ready(Ok(Progress::Read)) => Poll::Ready(Ok(())),
                            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                            Poll::Ready(Ok(Progress::Written)) | Poll::Pending => Poll::Pending,
                        })
                        .await?;
                    }
                }
            }
            self.end()?;
            self.begin()?;
            // Those that the server skipped after an error.
            replies.outcome.affected.resize(executes, 0);
        }
        self.release();
        Ok(replies)
    }
}

/// The answers so far.
#[derive(Default)]
struct Replies {
    outcome: Outcome,
    failure: Option<(usize, ServerError)>,
}

impl Replies {
    fn take(&mut self, tag: u8, inbox: &mut Inbox) -> Result<()> {
        match tag {
            // ParseComplete, BindComplete, CloseComplete
            b'1' | b'2' | b'3' => {}
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
