//! Databases of the source that are read only though nobody on the target knows why.
//!
//! What a fence is to be undone with is recorded on the target, which may fail over and lose it. The setting itself is
//! left: whoever finds it without a record says so, and how it is undone. It may be somebody's own will, so it is left to
//! them.

use crate::catalog::{self, SourceClient};
use crate::error::{Definite, Result};

use super::Sides;

/// What is to be said of a database of the source that is read only for no reason that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// What was found.
    pub cause: String,
    /// How it is undone.
    pub hint: String,
}

/// The databases of the source that are read only by a setting of theirs, by name.
///
/// # Errors
/// When the source does not answer.
pub async fn read_only_databases(source: &SourceClient) -> Result<Vec<String>> {
    Ok(catalog::read_only_databases(source).await?)
}

/// What is to be said of `dbname`, if it is one of them, where no fence of it is recorded.
///
/// # Errors
/// When the source does not answer.
pub async fn unrecorded(source: &SourceClient, dbname: &str) -> Result<Option<Fenced>> {
    let found = read_only_databases(source).await?;
    Ok(found.iter().any(|name| name == dbname).then(|| Fenced::new(dbname)))
}

/// Says so in the log, if there is something to be said of `dbname`.
///
/// # Errors
/// When the source does not answer.
pub async fn tell(source: &SourceClient, dbname: &str) -> Result<()> {
    if let Some(fenced) = unrecorded(source, dbname).await? {
        fenced.log();
    }
    Ok(())
}

/// The error of whoever finds that the target knows of no migration: with the databases that a forgotten one may have
/// fenced. A source that cannot be asked adds nothing.
pub async fn with_unrecorded(sides: &Sides, mut error: Definite) -> Definite {
    let Ok(source) = sides.source_client().await else { return error };
    for fenced in read_only_databases(&source).await.unwrap_or_default().iter().map(|name| Fenced::new(name))
    {
        let joint = if error.detail.is_empty() { "" } else { "; " };
        error.detail = format!("{}{joint}{}", error.detail, fenced.cause);
        error.hint = format!("{}; {}", error.hint, fenced.hint);
    }
    error
}

impl Fenced {
    /// What is to be said of a database that is one of [`read_only_databases`], and of which no fence is recorded.
    pub fn new(dbname: &str) -> Self {
        Self {
            cause: format!(
                "database {dbname:?} of the source is read only (default_transaction_read_only = on), and the target does \
                 not know why: a cutover that it has forgotten may have fenced it"
            ),
            hint: format!("to open it, there: {}", catalog::read_only_by_hand(dbname, None)),
        }
    }

    /// Says so in the log.
    pub fn log(&self) {
        tracing::warn!(hint = %self.hint, "{}", self.cause);
    }
}
