//! One connection to a server. Manual: "Message Flow".
//!
//! An operation sends its messages and reads up to the ReadyForQuery that ends it. One that is given up half-way (its
//! future or guard dropped) leaves the session [`Error::Busy`] for good, since what the server still says belongs to
//! nobody. A FATAL error or a lost connection ends the session: what comes after is [`Error::Closed`].

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use super::body::Body;
use super::channel::Channel;
use super::connect::{self, SessionOptions};
use super::conninfo::ConnInfo;
use super::error::{Error, Result};
use super::pipeline::Sent;
use super::server_error::ServerError;
use super::stream::Stream;
use crate::limits;
use crate::pg::{ServerVersion, Sql};

/// A session, ready for commands or in the middle of one.
#[derive(Debug)]
pub struct Session {
    pub(super) channel: Channel,
    version: ServerVersion,
    key: (i32, i32),
    status: TransactionStatus,
    state: State,
    /// Pipelines that are not answered yet.
    pub(super) sent: VecDeque<Sent>,
}

/// Whether an operation can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// One is going on, or was given up.
    Busy,
    /// The connection is lost.
    Dead,
}

/// Where the session stands, by its last ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// Outside a transaction block.
    Idle,
    /// In a transaction block.
    InTransaction,
    /// In a transaction block that has failed: only its end is accepted.
    Failed,
}

/// A row of text values.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    columns: Arc<[String]>,
    values: Vec<Option<Bytes>>,
}

impl Session {
    /// Connects to the first of the hosts that will do, each address within `connect_timeout`.
    ///
    /// # Errors
    /// When no host can be reached, or one refuses.
    pub async fn connect(conninfo: &ConnInfo, options: &SessionOptions) -> Result<Self> {
        connect::connect(conninfo, options).await
    }

    pub(super) const fn new(
        channel: Channel,
        version: ServerVersion,
        key: (i32, i32),
        status: TransactionStatus,
    ) -> Self {
        Self { channel, version, key, status, state: State::Ready, sent: VecDeque::new() }
    }

    /// The server's version.
    pub const fn server_version(&self) -> ServerVersion {
        self.version
    }

    /// Whether nobody else can read what is sent: by TLS, or on one machine.
    pub const fn is_private(&self) -> bool {
        matches!(self.channel.stream, Stream::Tls(_) | Stream::Unix(_))
    }

    /// The server process that serves this session.
    pub const fn process_id(&self) -> i32 {
        self.key.0
    }

    pub(super) const fn secret_key(&self) -> i32 {
        self.key.1
    }

    /// A parameter that the server reports, such as `server_encoding`, as last reported.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.channel.inbox.parameter(name)
    }

    /// Where the session stood when its last command ended.
    pub const fn transaction_status(&self) -> TransactionStatus {
        self.status
    }

    /// Runs a command and gives its rows. For small results: they are held in memory.
    ///
    /// # Errors
    /// When the server refuses the command, or the connection breaks.
    pub async fn query(&mut self, sql: &Sql) -> Result<Vec<Row>> {
        self.start_query(sql)?;
        self.channel.inbox.bounds.set_answer_bytes_max(limits::QUERY_BYTES_MAX);
        let mut columns: Arc<[String]> = Arc::new([]);
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.next_tag().await? {
                b'T' => columns = decode_columns(self.channel.inbox.body())?,
                b'D' => rows.push(Row::decode(&columns, self.channel.inbox.body())?),
                b'C' | b'I' | b'd' | b'c' | b'H' => {}
                b'G' => self.refuse_copy_in()?,
                b'E' => failure = failure.or(Some(self.decode_error()?)),
                b'Z' => {
                    self.channel.inbox.bounds.set_answer_bytes_max(limits::ANSWER_BYTES_MAX);
                    self.end()?;
                    return failure.map_or(Ok(rows), |error| Err(error.into()));
                }
                tag => return Err(Error::Unexpected { tag: tag.into(), doing: "running a query" }),
            }
            self.channel.inbox.skip();
        }
    }

    /// Runs one or more statements, without regard to what they return. Several statements without a BEGIN of their own
    /// are one transaction.
    ///
    /// # Errors
    /// When the server refuses a statement, or the connection breaks.
    pub async fn execute(&mut self, sql: &Sql) -> Result<()> {
        self.start_query(sql)?;
        self.drain(None).await
    }

    /// Says goodbye to the server. Dropping a session only closes its socket.
    pub async fn close(mut self) {
        if self.state != State::Ready {
            return;
        }
        frontend::terminate(&mut self.channel.output);
        // The server is free to be gone first.
        if self.channel.flush().await.is_ok() {
            let _ = self.channel.stream.shutdown().await;
        }
    }

    /// Marks the session as being used, and queues a simple Query.
    pub(super) fn start_query(&mut self, sql: &Sql) -> Result<()> {
        self.begin()?;
        let queued = frontend::query(sql.as_str(), &mut self.channel.output);
        if queued.is_err() {
            self.channel.output.clear();
            self.release();
        }
        queued.map_err(|_| Error::Unsendable("a statement with a zero byte, or of more than 1 GiB"))
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        match self.state {
            State::Ready => self.state = State::Busy,
            State::Busy => return Err(Error::Busy),
            State::Dead => return Err(Error::Closed),
        }
        Ok(())
    }

    /// Takes the ReadyForQuery that comes next.
    pub(super) fn end(&mut self) -> Result<()> {
        self.status = TransactionStatus::decode(self.channel.inbox.body())?;
        self.channel.inbox.skip();
        self.release();
        Ok(())
    }

    /// Takes the status of a ReadyForQuery; the session can be used for something else when no pipeline is left.
    pub(super) fn synced(&mut self, status: TransactionStatus) {
        self.status = status;
        if self.sent.is_empty() {
            self.release();
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// After a failure that is not about a statement, there is no connection to go on with.
    pub(super) const fn lose(&mut self, error: &Error) {
        if !matches!(error, Error::Busy) {
            self.state = State::Dead;
        }
    }

    /// Lets the session be used again, after its last ReadyForQuery.
    pub(super) const fn release(&mut self) {
        self.state = State::Ready;
    }

    pub(super) async fn next_tag(&mut self) -> Result<u8> {
        let tag = self.channel.next_tag().await;
        if tag.is_err() {
            self.state = State::Dead;
        }
        tag
    }

    /// The ErrorResponse that comes next, left there; a FATAL one ends everything.
    pub(super) fn decode_error(&mut self) -> Result<ServerError> {
        let error = ServerError::decode(self.channel.inbox.body())?;
        if error.is_fatal() {
            self.state = State::Dead;
            return Err(error.into());
        }
        Ok(error)
    }

    /// Reads to ReadyForQuery, and reports `failure`, else the first error on the way.
    pub(super) async fn drain(&mut self, mut failure: Option<Error>) -> Result<()> {
        loop {
            match self.next_tag().await? {
                b'Z' => {
                    self.end()?;
                    return failure.map_or(Ok(()), Err);
                }
                b'E' => {
                    let error = self.decode_error()?;
                    failure = failure.or(Some(error.into()));
                }
                b'G' => self.refuse_copy_in()?,
                _ => {}
            }
            self.channel.inbox.skip();
        }
    }

    fn refuse_copy_in(&mut self) -> Result<()> {
        frontend::copy_fail("no data was expected", &mut self.channel.output)
            .map_err(|_| Error::Unsendable("CopyFail"))
    }
}

impl TransactionStatus {
    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        match body {
            b"I" => Ok(Self::Idle),
            b"T" => Ok(Self::InTransaction),
            b"E" => Ok(Self::Failed),
            _ => Err(Error::Malformed("ReadyForQuery")),
        }
    }
}

impl Row {
    /// Decodes a DataRow: a count of values, and for each its length (−1 for NULL) and bytes. The values are copied:
    /// a slice would keep the whole read buffer.
    pub(super) fn decode(columns: &Arc<[String]>, body: &[u8]) -> Result<Self> {
        let mut body = Body::new(body, "DataRow");
        let count = usize::try_from(body.i16()?).map_err(|_| Error::Malformed("DataRow"))?;
        // Each value takes four bytes at least.
        let mut values = Vec::with_capacity(count.min(body.rest().len() / 4));
        for _ in 0..count {
            values.push(match body.i32()? {
                -1 => None,
                length => {
                    let length = usize::try_from(length).map_err(|_| Error::Malformed("DataRow"))?;
                    Some(Bytes::copy_from_slice(body.bytes(length)?))
                }
            });
        }
        body.end()?;
        Ok(Self { columns: Arc::clone(columns), values })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether the row has no columns.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// A value as the server sent it; `None` for NULL, and for a column that is not there.
    pub fn bytes(&self, index: usize) -> Option<&Bytes> {
        self.values.get(index)?.as_ref()
    }

    /// A value as text; `None` for NULL, for a column that is not there, and for what is not UTF-8.
    pub fn text(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(index)?).ok()
    }

    /// A named column's value as text, as [`Self::text`]. Rows of a [`super::Pipeline`] have no names.
    pub fn named(&self, column: &str) -> Option<&str> {
        self.text(self.columns.iter().position(|name| name == column)?)
    }
}

/// Shows the columns only.
impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({})", self.columns.join(", "))
    }
}

/// The names in a RowDescription: a count of columns, and for each its name and 18 bytes about its type.
fn decode_columns(body: &[u8]) -> Result<Arc<[String]>> {
    let mut body = Body::new(body, "RowDescription");
    let count = body.i16()?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(body.text()?.into_owned());
        body.bytes(18)?;
    }
    body.end()?;
    Ok(names.into())
}

/// The number of rows in a CommandComplete's tag: `INSERT 0 5`, `COPY 5`, `BEGIN`.
pub(super) fn affected(body: &[u8]) -> u64 {
    let tag = body.strip_suffix(b"\0").unwrap_or(body);
    let digits = tag.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let add = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    if valid { digits.iter().fold(0, add) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_tags() {
        for (tag, expected) in [
            ("INSERT 0 5\0", 5),
            ("COPY 12\0", 12),
            ("UPDATE 0\0", 0),
            ("BEGIN\0", 0),
            ("\0", 0),
            ("DELETE 7", 7),
        ] {
            assert_eq!(affected(tag.as_bytes()), expected, "{tag}");
        }
    }

    #[test]
    fn rows() {
        let columns: Arc<[String]> = Arc::new(["a".to_owned(), "b".to_owned()]);
        let whole = b"\0\x02\0\0\0\x01x\xff\xff\xff\xff";
        let row = Row::decode(&columns, whole).expect("well formed");
        assert_eq!(
            (row.len(), row.text(0), row.text(1), row.named("a"), row.named("c")),
            (2, Some("x"), None, Some("x"), None)
        );
        for length in 0..whole.len() {
            assert!(Row::decode(&columns, &whole[..length]).is_err(), "{length}");
        }
        for bad in [&b"\xff\xff"[..], b"\0\x01\xff\xff\xff\xfe", b"\0\x00x", b"\0\x01\x7f\xff\xff\xffx"] {
            assert!(Row::decode(&columns, bad).is_err(), "{bad:?}");
        }
    }
}
