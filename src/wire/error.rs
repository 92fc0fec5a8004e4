//! What can go wrong on a connection, and what an operator is told about it.

use std::io;
use std::time::Duration;

use super::body;
use super::server_error::ServerError;
use super::sqlstate;
use super::tls::TlsError;
use crate::error::{Definite, Failure, Side, Transient};

/// Why a connection could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's name has no address.
    #[error("could not resolve host \"{host}\": {source}")]
    Resolve {
        /// The name as given.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No connection to the address.
    #[error("could not connect to {host}: {source}")]
    Connect {
        /// Host and port.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("connecting to {host} took longer than {} s", after.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
        /// The bound.
        after: Duration,
    },
    /// No TLS session as asked for.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// We could not or would not authenticate as the server asks.
    #[error("{0}")]
    Authentication(#[from] AuthenticationError),
    /// The server refused.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("server {host} is not {wanted}")]
    SessionAttributes {
        /// Host and port.
        host: String,
        /// The value of `target_session_attrs`.
        wanted: &'static str,
    },
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(io::Error),
    /// The server closed the connection.
    #[error("connection closed by the server")]
    Closed,
    /// A message that cannot be decoded.
    #[error("malformed {0} message from the server")]
    Malformed(&'static str),
    /// A message that has no place here.
    #[error("unexpected message {tag:?} from the server while {doing}")]
    Unexpected {
        /// The message's type.
        tag: char,
        /// What was going on.
        doing: &'static str,
    },
    /// No answer in time.
    #[error("the server did not answer within {} s when asked for {question}", after.as_secs())]
    Silent {
        /// What was asked for.
        question: &'static str,
        /// The bound.
        after: Duration,
    },
    /// More than a server has to say.
    #[error("the server sent {0}")]
    Excess(String),
    /// A message that PostgreSQL's protocol cannot carry.
    #[error("cannot be sent: {0}")]
    Unsendable(&'static str),
    /// An earlier operation was given up half-way.
    #[error("connection is in the middle of an earlier operation")]
    Busy,
}

/// Why we are not who we say we are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// The server asks for a password and there is none.
    #[error("the server asks for a password, and none was given")]
    NoPassword,
    /// The server asks for a method that is not implemented.
    #[error("the server asks for {0} authentication, which is not supported")]
    Unsupported(&'static str),
    /// The server is not content with one answer.
    #[error("the server asks to authenticate a second time")]
    Again,
    /// `require_auth` has other methods.
    #[error("the server wants \"{0}\" authentication, and require_auth does not allow it")]
    NotAllowed(&'static str),
    /// Others could read the password on its way.
    #[error("the server asks for the password in clear text, and the connection is not encrypted")]
    ClearText,
    /// `channel_binding=require` cannot be had.
    #[error("channel binding is required, but {0}")]
    ChannelBinding(&'static str),
    /// The SCRAM exchange went wrong on the server's side: it may not be the server it claims to be.
    #[error("SCRAM authentication failed: {0}")]
    Scram(&'static str),
}

/// Result of whatever uses a connection.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<io::Error> for Error {
    /// Errors of the TLS session come out of reads and writes, too: a server says that it refuses a client certificate
    /// only after the handshake.
    fn from(error: io::Error) -> Self {
        match TlsError::from_io(error) {
            Ok(error) => Self::Tls(error),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            Err(error) => Self::Io(error),
        }
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        Self::Server(Box::new(error))
    }
}

impl Error {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            // The resolver has no error kinds; "Temporary failure in name resolution" is EAI_AGAIN.
            Self::Resolve { source, .. } => source.to_string().contains("emporary failure"),
            // A socket file that does not exist may only be that of a server that restarts.
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Timeout { .. } | Self::Silent { .. } | Self::Io(_) | Self::Closed => true,
            Self::SessionAttributes { .. } => true,
            Self::Tls(error) => error.is_transient(),
            Self::Server(error) => error.is_transient(),
            Self::Authentication(_) | Self::Malformed(_) | Self::Unexpected { .. } | Self::Excess(_) => false,
            Self::Unsendable(_) | Self::Busy => false,
        }
    }

    /// What the server said, where it said something.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }

    /// What is to be done about what a server said, and why: never the server's own message.
    pub fn advice(error: &ServerError, side: Side) -> (&'static str, &'static str) {
        let verdict = sqlstate::judge(error, side);
        (verdict.cause, verdict.hint)
    }

    /// The failure that an operator sees, with what to do about it.
    pub fn into_failure(self, side: Side) -> Failure {
        let advice = Advice::new(&self, side);
        if self.is_transient() {
            let detail = [advice.detail, advice.hint].into_iter().filter(|text| !text.is_empty());
            let detail = detail.collect::<Vec<_>>().join("; ");
            Transient::new(side, advice.cause).detail(detail).into()
        } else {
            let cause = format!("{side}: {}", advice.cause);
            Definite::new(cause).detail(advice.detail).hint(advice.hint).into()
        }
    }
}

/// The words for an operator.
struct Advice {
    cause: String,
    detail: String,
    hint: String,
}

impl Advice {
    fn new(error: &Error, side: Side) -> Self {
        let conninfo = match side {
            Side::Source => "--source (SOURCE_SERVICE_URI)",
            Side::Target => "--target (TARGET_SERVICE_URI)",
        };
        let advice =
            |cause: &str, hint: String| Self { cause: cause.to_owned(), detail: error.to_string(), hint };
        match error {
            Error::Resolve { .. } => advice("host not found", format!("check the host name in {conninfo}")),
            Error::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => advice(
                "connection refused",
                format!("check that the server runs and listens there, and the port in {conninfo}"),
            ),
            Error::Connect { .. } | Error::Timeout { .. } => advice(
                "server cannot be reached",
                format!("check host and port in {conninfo}, firewalls and allowed addresses"),
            ),
            Error::Tls(tls) => advice(tls.cause(), tls.hint(conninfo)),
            Error::Authentication(AuthenticationError::NoPassword) => advice(
                "password needed",
                format!("put it into {conninfo}, PGPASSWORD, or a password file (PGPASSFILE) of mode 0600"),
            ),
            Error::Authentication(AuthenticationError::ClearText) => advice(
                "password would be sent in clear text",
                format!(
                    "set sslmode=require, or a higher one, in {conninfo}; where nobody can listen in, \
                     require_auth=password allows it"
                ),
            ),
            Error::Authentication(_) => advice("authentication failed", String::new()),
            Error::Server(server) => Self::for_server_error(server, side, conninfo),
            Error::SessionAttributes { .. } => advice(
                "no suitable server",
                format!("check target_session_attrs and the hosts in {conninfo}"),
            ),
            Error::Io(_) | Error::Closed | Error::Silent { .. } => {
                Self { cause: error.to_string(), detail: String::new(), hint: String::new() }
            }
            Error::Malformed(_) | Error::Unexpected { .. } => advice(
                "the server does not keep to the protocol",
                format!("check that {conninfo} names a PostgreSQL server, not a transaction pooler"),
            ),
            Error::Excess(_) => advice(sqlstate::EXCESS.cause, sqlstate::EXCESS.hint.to_owned()),
            Error::Unsendable(_) | Error::Busy => {
                advice("connection misused", "please report this".to_owned())
            }
        }
    }

    fn for_server_error(error: &ServerError, side: Side, conninfo: &str) -> Self {
        let message = error.message().unwrap_or_default();
        let (cause, hint) = match error.sqlstate() {
            _ if error.is_poolers() => (
                "a connection pooler answers, not the server itself",
                format!(
                    "give the server's own host and port in {conninfo}: neither replication nor our locks pass a pooler"
                ),
            ),
            "22021" | "22P05" => (
                "text that cannot be converted",
                "mend the row on the source, then run `walferry migrate` again; if it says the same again, start \
                 afresh after `walferry remove --force`"
                    .to_owned(),
            ),
            "28P01" => ("wrong password or user", format!("check user and password in {conninfo}")),
            "28000" if message.contains("pg_hba.conf") => (
                "server does not let us in from here",
                "add this machine and role to the server's pg_hba.conf, or to the service's allowed addresses; a \
                 replication connection may need a line of its own, and sslmode matters"
                    .to_owned(),
            ),
            "28000" if message.contains("client certificate") => {
                ("server wants a client certificate", format!("set sslcert and sslkey in {conninfo}"))
            }
            "28000" => ("role may not log in", format!("check the user in {conninfo}, and that it has LOGIN")),
            "3D000" => ("database does not exist", format!("check the database in {conninfo}")),
            _ => {
                let verdict = sqlstate::judge(error, side);
                (verdict.cause, verdict.hint.to_owned())
            }
        };
        let detail = match error.detail() {
            Some(detail) => format!("{error}: {detail}"),
            None => error.to_string(),
        };
        let hint = if hint.is_empty() { error.hint().unwrap_or_default().to_owned() } else { hint };
        Self { cause: cause.to_owned(), detail, hint }
    }
}

impl From<body::Malformed> for Error {
    fn from(body::Malformed(message): body::Malformed) -> Self {
        Self::Malformed(message)
    }
}
