//! The two kinds of failure that reach an operator.
//!
//! A *definite* failure needs somebody to act: trying again would end the same way. A *transient* one (a cut
//! connection, a server that restarts, a deadlock) is tried again within a bound. Layers below have error enums of
//! their own; where they meet the pipeline they become one of these two. Neither ever holds a password, a key or a
//! row's value.

use std::fmt;

/// Result of whatever can end a pipeline.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why something could not be done, and whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Trying again ends the same way: somebody must act.
    #[error(transparent)]
    Definite(#[from] Definite),
    /// Trying again may help.
    #[error(transparent)]
    Transient(#[from] Transient),
}

/// A failure that needs somebody to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Definite {
    /// What kind of end this is.
    pub exit: Exit,
    /// Short, lower case: `replication slot is gone`.
    pub cause: String,
    /// What was found where; may be empty.
    pub detail: String,
    /// What to do, with the command to run; may be empty.
    pub hint: String,
}

/// A failure that may pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Transient {
    /// Which connection failed.
    pub side: Side,
    /// Short, lower case: `connection closed by the server`.
    pub cause: String,
    /// What was found where; may be empty.
    pub detail: String,
}

/// The cluster that data leaves, or the service that it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The cluster that data leaves.
    Source,
    /// The Aiven service that data goes to.
    Target,
}

/// The process's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: all is well.
    Fine,
    /// 1: a failure that nobody foresaw.
    Unexpected,
    /// 2: the command line, the environment or the configuration is wrong.
    Usage,
    /// 3: a check failed.
    Check,
    /// 4: the two sides differ.
    Differs,
    /// 5: somebody must act.
    Definite,
    /// 6: a transient failure outlasted its retries.
    Transient,
    /// 7: dumped once, and not followed, though nobody asked for that.
    Dumped,
}

impl Exit {
    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::Check => 3,
            Self::Differs => 4,
            Self::Definite => 5,
            Self::Transient => 6,
            Self::Dumped => 7,
        }
    }
}

impl Definite {
    /// A definite failure (exit code 5) with its cause.
    pub fn new(cause: impl Into<String>) -> Self {
        Self { exit: Exit::Definite, cause: cause.into(), detail: String::new(), hint: String::new() }
    }

    /// A mistake in what the user gave (exit code 2).
    pub fn usage(cause: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(cause) }
    }

    /// Adds what was found where.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Sets the exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl Transient {
    /// A transient failure of the connection to `side`.
    pub fn new(side: Side, cause: impl Into<String>) -> Self {
        Self { side, cause: cause.into(), detail: String::new() }
    }

    /// Adds what was found where.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl Side {
    /// `source` or `target`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Definite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        for (label, text) in [("detail", &self.detail), ("hint", &self.hint)] {
            if !text.is_empty() {
                write!(f, "\n  {label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Transient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.side, self.cause)?;
        if !self.detail.is_empty() {
            write!(f, "\n  detail: {}", self.detail)?;
        }
        Ok(())
    }
}
