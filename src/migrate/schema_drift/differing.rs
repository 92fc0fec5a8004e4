//! An object of the source that is not the one that is recorded.

use crate::catalog::{SchemaObject, SchemaObjectKey, SchemaObjectKind};
use crate::store::{RecordedObject, SchemaChange};

/// One that differs from what is recorded.
#[derive(Clone, Copy)]
pub(super) struct Differing<'a> {
    pub key: &'a SchemaObjectKey,
    pub then: Option<&'a RecordedObject>,
    pub now: Option<&'a SchemaObject>,
    pub there: Option<&'a SchemaObject>,
}

impl Differing<'_> {
    /// One of which it is not certain that it was there is changed where the target has it.
    pub(super) fn change(&self) -> SchemaChange {
        let was_there = self.then.is_some_and(|then| then.statement.is_some() || self.there.is_some());
        match (was_there, self.now) {
            (_, None) => SchemaChange::Dropped,
            (true, Some(_)) => SchemaChange::Changed,
            (false, Some(_)) => SchemaChange::Made,
        }
    }

    /// It has to be dropped before it can be made; what is on a view goes with it then.
    pub(super) fn is_remade(&self) -> bool {
        let replaces = |now: &SchemaObject, there: &SchemaObject| {
            matches!(now.key.kind, SchemaObjectKind::View | SchemaObjectKind::Function)
                && now.key.kind == there.key.kind
                && now.shape.starts_with(&there.shape)
        };
        self.now.zip(self.there).is_some_and(|(now, there)| !replaces(now, there))
    }
}
