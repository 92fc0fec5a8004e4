//! What a table's shape keeps for set form, and what is gathered of a batch.

use std::collections::HashMap;
use std::sync::Arc;

use super::net::Net;
use super::{Reason, Statement};
use crate::pg::CommitLsn;

/// What a table's shape has for set form.
#[derive(Debug)]
pub(super) struct SetForm {
    /// Why updates and deletes go row by row, if they do.
    pub(super) merges: Result<(), Reason>,
    /// The same of updates alone.
    pub(super) updates: Result<(), Reason>,
    /// A row that was deleted and inserted again can be updated instead.
    pub(super) replaces: bool,
    pub(super) net: Net,
    /// The last change's transaction.
    pub(super) commit_lsn: CommitLsn,
    pub(super) copy: Option<Arc<Statement>>,
    pub(super) delete: Option<Arc<Statement>>,
    /// By the columns that are given.
    pub(super) by_columns: HashMap<Vec<usize>, Arc<Statement>>,
}

/// Nothing of it works before the shape is known.
impl Default for SetForm {
    fn default() -> Self {
        Self {
            merges: Err(Reason::Values),
            updates: Err(Reason::Values),
            replaces: false,
            net: Net::default(),
            commit_lsn: CommitLsn::default(),
            copy: None,
            delete: None,
            by_columns: HashMap::new(),
        }
    }
}

impl SetForm {
    /// Nothing is gathered yet.
    pub(super) fn new(
        merges: Result<(), Reason>,
        updates: Result<(), Reason>,
        replaces: bool,
        key: Vec<usize>,
    ) -> Self {
        Self { merges, updates, replaces, net: Net::new(key), ..Self::default() }
    }
}
