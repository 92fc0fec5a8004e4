//! Why a question to a server has no answer.

use crate::error::{Definite, Failure, Side, Transient};
use crate::wire::{self, ServerError};

/// A question that a server did not answer, or not as expected.
#[derive(Debug, thiserror::Error)]
#[error("asking for {question} failed: {cause}")]
pub struct Error {
    side: Side,
    question: &'static str,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    /// The server answered with an error.
    #[error("{message} (SQLSTATE {})", error.sqlstate())]
    Refused { message: String, error: Box<ServerError> },
    /// The connection ended before the answer was complete.
    #[error("the connection was lost")]
    Lost(#[source] tokio_postgres::Error),
    /// The answer is not what PostgreSQL's manual promises.
    #[error("unexpected answer: {0}")]
    Answer(String),
}

impl Error {
    /// What became of `question`: `the tables`.
    pub(crate) fn new(side: Side, question: &'static str, cause: tokio_postgres::Error) -> Self {
        let io = std::error::Error::source(&cause).is_some_and(|inner| inner.is::<std::io::Error>());
        let cause = match cause.as_db_error() {
            Some(error) => {
                let message = error.message().to_owned();
                Cause::Refused { message, error: Box::new(ServerError::from_db_error(error)) }
            }
            None if cause.is_closed() || io => Cause::Lost(cause),
            None => Cause::Answer(cause.to_string()),
        };
        Self { side, question, cause }
    }

    /// An answer that makes no sense, and what is wrong with it.
    pub(super) fn unexpected(side: Side, question: &'static str, what: impl Into<String>) -> Self {
        Self { side, question, cause: Cause::Answer(what.into()) }
    }

    /// Which server was asked.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The server's SQLSTATE, where it answered with an error.
    pub fn state(&self) -> Option<&str> {
        match &self.cause {
            Cause::Refused { error, .. } => Some(error.sqlstate()),
            Cause::Lost(_) | Cause::Answer(_) => None,
        }
    }

    /// The server's primary message, where it answered with an error.
    pub fn message(&self) -> Option<&str> {
        match &self.cause {
            Cause::Refused { message, .. } => Some(message),
            Cause::Lost(_) | Cause::Answer(_) => None,
        }
    }

    /// Whether the connection ended before the answer was complete.
    pub fn is_lost(&self) -> bool {
        matches!(self.cause, Cause::Lost(_))
    }

    /// Whether asking again may help.
    pub fn is_transient(&self) -> bool {
        match &self.cause {
            Cause::Refused { error, .. } => error.is_transient(),
            Cause::Lost(_) => true,
            Cause::Answer(_) => false,
        }
    }
}

impl From<Error> for Failure {
    /// The failure that the operator sees: transient where asking again may help.
    fn from(error: Error) -> Self {
        let (text, passes, side) = (error.to_string(), error.is_transient(), error.side);
        match error.cause {
            Cause::Lost(cause) => Transient::new(side, text).detail(cause.to_string()).into(),
            Cause::Refused { error, .. } => {
                let (cause, hint) = wire::Error::advice(&error, side);
                if passes {
                    let detail = [cause, hint].into_iter().filter(|text| !text.is_empty());
                    let detail = detail.collect::<Vec<_>>().join("; ");
                    return Transient::new(side, text).detail(detail).into();
                }
                let hint = if hint.is_empty() { error.hint().unwrap_or_default() } else { hint };
                Definite::new(format!("{side}: {text}")).hint(hint).into()
            }
            Cause::Answer(_) => Definite::new(format!("{side}: {text}")).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures() {
        let refused = |side: Side, state: &str| -> Failure {
            let (message, error) = ("no".to_owned(), Box::new(ServerError::with_sqlstate(state)));
            Error { side, question: "the tables", cause: Cause::Refused { message, error } }.into()
        };
        let definite = refused(Side::Source, "42501");
        assert_eq!(definite.to_string(), "source: asking for the tables failed: no (SQLSTATE 42501)");
        assert!(matches!(definite, Failure::Definite(_)));
        let transient = refused(Side::Target, "25006");
        assert!(transient.to_string().contains("the target takes no writes: it is read only"), "{transient}");
        for state in ["57P01", "57014", "40001", "55P03"] {
            assert!(matches!(refused(Side::Target, state), Failure::Transient(_)), "{state}");
        }
    }
}
