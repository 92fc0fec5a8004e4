//! What differs between servers 10 and 18, in one place: each method is an expression or a list of columns.

use tokio_postgres::Client;

use super::server::server_version;
use crate::pg::ServerVersion;
use crate::source::Error;

/// The expressions that one server understands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect(ServerVersion);

impl Dialect {
    pub(super) const fn new(version: ServerVersion) -> Self {
        Self(version)
    }

    pub(super) async fn of(client: &Client) -> Result<Self, Error> {
        Ok(Self::new(server_version(client).await?))
    }

    /// `pg_index i`: how many columns are keys. The rest are INCLUDEd ones (11).
    pub(super) const fn key_columns(self) -> &'static str {
        if self.0.major() >= 11 { "i.indnkeyatts" } else { "i.indnatts" }
    }

    /// `pg_attribute a`: `s` stored (12), `v` virtual (18), or empty.
    pub(super) const fn generated(self) -> &'static str {
        if self.0.major() >= 12 { "a.attgenerated::text" } else { "''::text" }
    }

    /// `pg_attribute a`: what rows have that are older than the column (11), as text.
    pub(super) const fn missing(self) -> &'static str {
        // An array of one value, of a type that is known at run time alone.
        if self.0.major() >= 11 {
            "CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END"
        } else {
            "NULL::text"
        }
    }

    /// `pg_class c`: rows, -1 for unknown. Before 14, a table never analysed has 0 pages and 0 rows.
    pub(super) const fn row_estimate(self) -> &'static str {
        if self.0.major() >= 14 {
            "c.reltuples::float8"
        } else {
            "CASE WHEN c.relpages = 0 THEN -1 ELSE c.reltuples::float8 END"
        }
    }

    /// `pg_replication_slots s`: state of the WAL that the slot needs (13) and why the slot is of no use (17).
    pub(super) const fn slot_state(self) -> &'static str {
        match self.0.major() {
            ..=12 => {
                "NULL::text AS wal_status, NULL::int8 AS safe_wal_size, NULL::text AS invalidation_reason"
            }
            13..=16 => "s.wal_status, s.safe_wal_size, NULL::text AS invalidation_reason",
            17.. => "s.wal_status, s.safe_wal_size, s.invalidation_reason",
        }
    }

    /// `pg_database d`: provider (15) and its locale, whose column was renamed (17).
    pub(super) const fn locale(self) -> &'static str {
        match self.0.major() {
            ..=14 => "'c'::text AS provider, NULL::text AS locale",
            15..=16 => "d.datlocprovider::text AS provider, d.daticulocale::text AS locale",
            17.. => "d.datlocprovider::text AS provider, d.datlocale::text AS locale",
        }
    }

    /// `pg_available_extension_versions v`: whether CREATE on the database is enough to create it (13).
    pub(super) const fn trusted(self) -> &'static str {
        if self.0.major() >= 13 { "v.trusted" } else { "false" }
    }
}
