//! What Walferry remembers, all of it on the target: the schema `walferry` of each database.
//!
//! | table | one row for | written by |
//! |---|---|---|
//! | `migration` | a migration of this database | `migrate`, at each step |
//! | `made` | an object of the schema that is made | the transaction that made it |
//! | `relation` | a table of it | the copy; then constant |
//! | `progress` | a migration | each apply transaction, and rarely a keepalive |
//! | `definition` | an object of the source's schema, beside its tables | `migrate`, when the schema is made |
//! | `conflict` | a change that did not fit | apply |
//! | `replica_identity` | a table of the source whose replica identity was changed | `migrate`, before it is |
//! | `published` | a publication, or a table in one | `migrate`, when it publishes it |
//! | `large_object` | a large object that it made | the transaction that made it |
//! | `apply_role` | a migration whose rows a role of their own writes | `migrate` |
//! | `request` | something asked of the running engine | commands |
//!
//! `relation` also says which table of the source a name means: its identifier, which a new name does not change, and
//! from its copy its file and its definition, which tell whether it was rewritten or redefined since ([`AsCopied`]). They
//! may be NULL where an older Walferry began. `target_oid` is the target's table, whatever that is called by now.
//!
//! `conflict` has rows: the change's key, its row as the source has it and the target's row that is in its way, each an
//! object of the values' text. They are of type `json`, which takes what `jsonb` would not: values above 256 MB.
//!
//! Nothing else is needed to go on: a run may end on one machine and go on from another.
//!
//! Nothing outside of this module names a table of the schema. Where a statement belongs to a transaction of somebody else,
//! it is offered as [`Sql`](crate::pg::Sql).

pub mod apply_role;
mod as_copied;
mod conflicts;
mod definitions;
mod large_objects;
mod leftovers;
pub(crate) mod lock;
mod made;
mod migrations;
mod phase;
mod progress;
mod relations;
mod requests;
mod roles;
mod schema;
mod source_objects;
mod unwritable;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use crate::catalog::{self, Stranger, TargetClient};
use crate::error::{Definite, Failure, Result, Side};

pub use as_copied::{AsCopied, Drift};
pub use conflicts::record_conflict;
pub use definitions::{RecordedObject, SchemaChange, SchemaDrift};
pub use made::note_made;
pub use migrations::{MigrationRow, attempt_lock};
pub use phase::{CurrentPhase, Phase, RunEnd};
pub use progress::move_progress;
pub use relations::{Origin, RelationRow, RelationState, definition_text, set_relation};
pub use requests::Request;
pub use source_objects::{ChangedIdentity, PublishedRow, hold_constraints};
pub use unwritable::Unwritable;

/// Reads and writes one migration's rows.
#[derive(Debug)]
pub struct Store<'a> {
    client: &'a TargetClient,
    name: &'a str,
}

impl<'a> Store<'a> {
    /// Speaks for the migration `name`, through `client`.
    pub fn new(client: &'a TargetClient, name: &'a str) -> Self {
        Self { client, name }
    }

    /// The migration, if it was begun. This is what is asked first of a database: nothing of a stranger's is read.
    ///
    /// # Errors
    /// When the schema, or anything that is read in it, is a stranger's.
    pub async fn begun(&self) -> Result<Option<MigrationRow>> {
        self.refuse_stranger().await?;
        if self.exists().await? { self.migration().await } else { Ok(None) }
    }

    /// Who else's the schema, or anything that is read in it, is.
    pub async fn stranger(&self) -> Result<Option<Stranger>> {
        let found = catalog::stranger_with_our_schema(self.client).await;
        found.map_err(Failure::from)
    }

    /// # Errors
    /// When the schema, or anything that is read in it, is a stranger's.
    pub async fn refuse_stranger(&self) -> Result<()> {
        match self.stranger().await? {
            None => Ok(()),
            Some(stranger) => Err(Definite::new(stranger.cause()).hint(stranger.hint()).into()),
        }
    }

    /// Whether the schema is there.
    async fn exists(&self) -> Result<bool> {
        let row = self.one("SELECT pg_catalog.to_regclass('walferry.migration') IS NOT NULL", &[]).await?;
        Ok(row.get(0))
    }

    pub(super) fn client(&self) -> &'a TargetClient {
        self.client
    }

    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    pub(super) async fn one(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.client.query_one(sql, params).await.map_err(failure)
    }

    pub(super) async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<()> {
        self.client.execute(sql, params).await.map(|_| ()).map_err(failure)
    }
}

pub(super) fn damaged(detail: String) -> Failure {
    Definite::new("walferry's own tables on the target are damaged")
        .detail(detail)
        .hint("start afresh after `walferry remove --force`")
        .into()
}

pub(super) fn failure(error: tokio_postgres::Error) -> Failure {
    if matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME)) {
        return forgotten(error.as_db_error().map_or("", |error| error.message())).into();
    }
    catalog::Error::new(Side::Target, "the schema walferry", error).into()
}

/// What a migration was begun with is not there any more. To begin afresh would leave its slot on the source, and count as
/// whole what the target has of the rows.
pub(crate) fn forgotten(detail: &str) -> Definite {
    Definite::new("the target has lost what it knew of this migration: schema walferry")
        .detail(if detail.is_empty() {
            "a failover to a standby that lacked it, or somebody dropped it"
        } else {
            detail
        })
        .hint(
            "drop what is left on the source: `walferry remove --force`, with the --name of the migration; then empty the target's \
             database, and start afresh: `walferry migrate`",
        )
}
