//! Why a walsender did not do what it was asked for.

use crate::error::{Definite, Failure, Side};
use crate::wire;

/// A replication command that failed, or was not answered as expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The answer is not what PostgreSQL's manual promises.
    #[error("asking for {question} failed: unexpected answer: {what}")]
    Answer {
        /// What was asked for: `the system's identity`.
        question: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
    /// The session failed, or the server refused.
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
    /// The server's SQLSTATE, where it gave one.
    pub fn state(&self) -> Option<&str> {
        match self {
            Self::Wire { cause, .. } => cause.server().map(wire::ServerError::sqlstate),
            Self::Answer { .. } => None,
        }
    }

    /// Whether asking again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Wire { cause, .. } => cause.is_transient(),
            Self::Answer { .. } => false,
        }
    }
}

impl From<Error> for Failure {
    /// The failure that the operator sees: transient where asking again may help.
    fn from(error: Error) -> Self {
        match error {
            Error::Wire { cause, .. } => cause.into_failure(Side::Source),
            Error::Answer { .. } => Definite::new(format!("{}: {error}", Side::Source)).into(),
        }
    }
}
