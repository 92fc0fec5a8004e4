//! What the catalogs of a server say: facts, slots, tables, sequences, extensions.
//!
//! Works on servers 10 to 18, source or target; what differs between versions is in [`Dialect`]. Every question is
//! independent: inside a transaction with a snapshot the answers agree with each other, outside they are each true
//! at their own moment. A table that goes away in between is left out. Questions change nothing and rely on
//! `search_path = pg_catalog` alone.
//!
//! What is asked of which side, a session says by its type ([`SourceClient`], [`TargetClient`]), and an answer that fails
//! says it in its [`Error`].
//!
//! Sizes are asked of the storage, which takes an ACCESS SHARE lock on each table for a moment: a session that holds
//! ACCESS EXCLUSIVE on one of them keeps the answer waiting, for as long as `lock_timeout` allows.

mod activity;
mod ask;
mod client;
mod contents;
mod databases;
mod definitions;
mod error;
mod expressions;
mod extensions;
mod fence;
mod identities;
mod operators;
mod owner_code;
mod privileges;
mod publications;
mod references;
mod roles;
mod schema_objects;
mod sequences;
mod server;
mod slots;
mod surroundings;
mod tables;
mod target;

use crate::source::Dialect;

pub use activity::{
    PreparedTransaction, WritingTransaction, application_name, has_committed, is_in_progress, oldest_writers,
    prepared_transactions, walferry_at_work, writing_transactions,
};
pub use client::{SideClient, SourceClient, TargetClient};
pub use contents::{
    OtherContents, PG_CREATE_PUBLICATION, ReplicaRole, SESSION_REPLICATION_ROLE, SchemaPrivilege, Stranger,
    call_extension, databases, extension_has, other_contents, publishes_for_others, replica_role,
    schema_privilege, stranger_with_our_schema,
};
pub use databases::{Database, all_databases, bytes_of_databases, holds_anything};
pub use definitions::{DefinedColumn, Definition, definition, table_name, type_names, type_text};
pub use error::Error;
pub use expressions::{Expression, expressions, not_found};
pub use extensions::{
    AvailableExtension, Extension, ExtensionTable, available_extensions, dependents_of, extensions,
    extensions_needing,
};
pub use fence::{
    OtherSession, ReadOnlyDefault, beginning_sessions, by_hand, enabled_subscriptions, end_by_hand,
    end_own_sessions, end_sessions, hidden_superusers, mark_wal, moment, other_sessions, read_only_by_hand,
    read_only_databases, read_only_default, roles_out_of_reach, set_read_only_default, waiting_for_me,
    writing_to,
};
pub use identities::{Unidentified, unidentified};
pub use owner_code::{OwnerCode, code_of_objects_of, owner_code};
pub use privileges::{
    DatabaseProperties, DefaultPrivilege, Object, ObjectKind, Owned, Privilege, database_privileges,
    database_properties, default_privileges, owners, privileges,
};
pub use publications::publications;
pub use references::{Reference, foreign_keys, references, references_to};
pub use roles::{
    Membership, MembershipOptions, Role, Setting, current_user, database_settings, memberships,
    password_grant, password_hashes, role_settings, roles,
};
pub use schema_objects::{SchemaObject, SchemaObjectKey, SchemaObjectKind, schema_objects, schema_version};
pub use sequences::{Sequence, SequenceOwner, SequenceValue, SequenceValues, sequence_values, sequences};
pub use server::{
    DatabaseLocale, Provider, ServerFacts, UserFacts, clock, server_facts, server_version, system_id,
};
pub use slots::{
    ReplicationRoom, current_wal, drop_slot, end_temporary_slot, passing_slots, replication_room, slot,
    slots, slots_named, wal_senders_used,
};
pub use surroundings::{
    ChangedCollation, LockRoom, ReplicaTrigger, SessionRoom, Surroundings, UntrustedFunction, UserMapping,
    forced_row_security, language_names, lock_room, secured_tables, session_room, surroundings,
    trusted_languages, untrusted_functions,
};
pub use tables::{
    Generated, Identity, Persistence, Table, TableColumn, TableKind, TableNow, index_bytes, table_names,
    table_now, tables, tables_by_id, tables_unsized,
};
pub use target::{KeyColumn, TargetColumn, TargetTable, index_columns, target_table, target_tables};

/// What the server behind this session understands.
///
/// # Errors
/// When the server does not answer.
pub async fn dialect(client: &SideClient) -> Result<Dialect, Error> {
    Ok(Dialect::new(server_version(client).await?))
}
