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
            return Self::Refused { question, state, message };
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

    /// The failure that the operator sees: transient where asking again may help.
    pub fn into_failure(self, side: Side) -> Failure {
        let text = self.to_string();
        match self {
            Self::Wire { cause, .. } => cause.into_failure(side),
            Self::Lost { cause, .. } => Transient::new(side, text).detail(cause.to_string()).into(),
            Self::Refused { ref state, .. } if state_is_transient(state) => Transient::new(side, text).into(),
            Self::Refused { .. } | Self::Answer { .. } => Definite::new(format!("{side}: {text}")).into(),
        }
    }
}

/// Whether a SQLSTATE names something that may pass: a lost connection (class 08), missing resources (53), a server
/// that goes down or comes up (57P01 to 57P05), a serialisation failure, a deadlock, or a lock not had in time.
pub fn state_is_transient(state: &str) -> bool {
    matches!(state, "40001" | "40P01" | "55P03")
        || ["08", "53", "57P0"].iter().any(|class| state.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        for state in ["08006", "53300", "53100", "57P01", "57P03", "40001", "40P01", "55P03"] {
            assert!(state_is_transient(state), "{state}");
        }
        for state in ["42501", "42P01", "57014", "55006", "55000", "58P01", "XX000", "40002"] {
            assert!(!state_is_transient(state), "{state}");
        }
    }

    #[test]
    fn failures() {
        let refused = |state: &str| Error::Refused {
            question: "the tables",
            state: state.to_owned(),
            message: "no".to_owned(),
        };
        let definite = refused("42501").into_failure(Side::Source);
        assert_eq!(definite.to_string(), "source: asking for the tables failed: no (SQLSTATE 42501)");
        assert!(matches!(definite, Failure::Definite(_)));
        assert!(matches!(refused("57P01").into_failure(Side::Target), Failure::Transient(_)));
    }
}
