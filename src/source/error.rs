//! Why a question to a server has no answer.

use crate::error::{Definite, Failure, Side, Transient};
use crate::wire;

/// A question that a server did not answer, or not as expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error.
    #[error("asking for {question} failed: {message} (SQLSTATE {state})")]
    Refused {
        /// What was asked for: `the tables`.
        question: &'static str,
        /// The five characters of the server's SQLSTATE.
        state: String,
        /// The server's primary message.
        message: String,
        /// All that the server said.
        error: Box<wire::ServerError>,
    },
    /// The connection ended before the answer was complete.
    #[error("asking for {question} failed: the connection was lost")]
    Lost {
        /// What was asked for.
        question: &'static str,
        /// What ended the connection.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// The answer is not what PostgreSQL's manual promises.
    #[error("asking for {question} failed: unexpected answer: {what}")]
    Answer {
        /// What was asked for.
        question: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
    /// A walsender session failed, or refused.
    #[error("asking for {question} failed: {cause}")]
    Wire {
        /// What was asked for.
        question: &'static str,
        /// What failed.
        #[source]
        cause: wire::Error,
    },
}

impl Error {
    /// What became of `question` on a plain SQL session.
    pub fn new(question: &'static str, cause: tokio_postgres::Error) -> Self {
        if let Some(db) = cause.as_db_error() {
            let (state, message) = (db.code().code().to_owned(), db.message().to_owned());
            let error = Box::new(wire::ServerError::from_db_error(db));
            return Self::Refused { question, state, message, error };
        }
        let io = std::error::Error::source(&cause).is_some_and(|inner| inner.is::<std::io::Error>());
        if cause.is_closed() || io {
            Self::Lost { question, cause }
        } else {
            Self::Answer { question, what: cause.to_string() }
        }
    }

    /// The server's SQLSTATE, where it gave one.
    pub fn state(&self) -> Option<&str> {
        match self {
            Self::Refused { state, .. } => Some(state),
            Self::Wire { cause, .. } => cause.server().map(wire::ServerError::sqlstate),
            Self::Lost { .. } | Self::Answer { .. } => None,
        }
    }

    /// Whether asking again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { error, .. } => error.is_transient(),
            Self::Wire { cause, .. } => cause.is_transient(),
            Self::Lost { .. } => true,
            Self::Answer { .. } => false,
        }
    }

    /// The failure that the operator sees: transient where asking again may help.
    pub fn into_failure(self, side: Side) -> Failure {
        let (text, passes) = (self.to_string(), self.is_transient());
        match self {
            Self::Wire { cause, .. } => cause.into_failure(side),
            Self::Lost { cause, .. } => Transient::new(side, text).detail(cause.to_string()).into(),
            Self::Refused { error, .. } => {
                let (cause, hint) = wire::Error::advice(&error, side);
                if passes {
                    let detail = [cause, hint].into_iter().filter(|text| !text.is_empty());
                    let detail = detail.collect::<Vec<_>>().join("; ");
                    return Transient::new(side, text).detail(detail).into();
                }
                let hint = if hint.is_empty() { error.hint().unwrap_or_default() } else { hint };
                Definite::new(format!("{side}: {text}")).hint(hint).into()
            }
            Self::Answer { .. } => Definite::new(format!("{side}: {text}")).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures() {
        let refused = |state: &str| Error::Refused {
            question: "the tables",
            state: state.to_owned(),
            message: "no".to_owned(),
            error: Box::new(wire::ServerError::with_sqlstate(state)),
        };
        let definite = refused("42501").into_failure(Side::Source);
        assert_eq!(definite.to_string(), "source: asking for the tables failed: no (SQLSTATE 42501)");
        assert!(matches!(definite, Failure::Definite(_)));
        let transient = refused("25006").into_failure(Side::Target);
        assert!(transient.to_string().contains("the target takes no writes: it is read only"), "{transient}");
        for state in ["57P01", "57014", "40001", "55P03"] {
            assert!(matches!(refused(state).into_failure(Side::Target), Failure::Transient(_)), "{state}");
        }
    }
}
