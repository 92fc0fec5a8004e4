//! What differs between servers 10 and 18, in one place: each method is an expression, a list of columns, or an answer.

use super::replication::StreamOptions;
use crate::pg::{ServerVersion, Sql};

/// What one server understands, and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect(ServerVersion);

impl Dialect {
    /// That of this version.
    pub const fn new(version: ServerVersion) -> Self {
        Self(version)
    }

    /// Sessions can be told to read no views of users (`restrict_nonsystem_relation_kind`): from these minor versions on.
    pub fn refuses_views(self) -> bool {
        let since = [120_020, 130_016, 140_013, 150_008, 160_004].into_iter();
        let mut of_major = since.filter(|since| since / 10_000 == self.0.major());
        of_major.next().map_or(self.0.major() >= 17, |since| self.0.get() >= since)
    }

    /// `pg_index i`: how many columns are keys. The rest are INCLUDEd ones (11).
    pub(crate) const fn key_columns(self) -> &'static str {
        if self.0.major() >= 11 { "i.indnkeyatts" } else { "i.indnatts" }
    }

    /// `pg_attribute a`: `s` stored (12), `v` virtual (18), or empty.
    pub(crate) const fn generated(self) -> &'static str {
        if self.0.major() >= 12 { "a.attgenerated::text" } else { "''::text" }
    }

    /// `pg_attribute a`: what rows have that are older than the column (11), as text.
    pub(crate) const fn missing(self) -> &'static str {
        // An array of one value, of a type that is known at run time alone.
        if self.0.major() >= 11 {
            "CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END"
        } else {
            "NULL::text"
        }
    }

    /// `pg_class c`: rows, -1 for unknown. Before 14, a table never analysed has 0 pages and 0 rows.
    pub(crate) const fn row_estimate(self) -> &'static str {
        if self.0.major() >= 14 {
            "c.reltuples::float8"
        } else {
            "CASE WHEN c.relpages = 0 THEN -1 ELSE c.reltuples::float8 END"
        }
    }

    /// `pg_replication_slots s`: state of the WAL that the slot needs (13) and why the slot is of no use (17).
    pub(crate) const fn slot_state(self) -> &'static str {
        match self.0.major() {
            ..=12 => {
                "NULL::text AS wal_status, NULL::int8 AS safe_wal_size, NULL::text AS invalidation_reason"
            }
            13..=16 => "s.wal_status, s.safe_wal_size, NULL::text AS invalidation_reason",
            17.. => "s.wal_status, s.safe_wal_size, s.invalidation_reason",
        }
    }

    /// `pg_database d`: provider (15) and its locale, whose column was renamed (17).
    pub(crate) const fn locale(self) -> &'static str {
        match self.0.major() {
            ..=14 => "'c'::text AS provider, NULL::text AS locale",
            15..=16 => "d.datlocprovider::text AS provider, d.daticulocale::text AS locale",
            17.. => "d.datlocprovider::text AS provider, d.datlocale::text AS locale",
        }
    }

    /// `pg_roles`: whether the current user may SET ROLE to it, which a membership may leave out (16).
    pub(crate) const fn assumable(self) -> &'static str {
        if self.0.major() >= 16 { "pg_has_role(oid, 'SET')" } else { "pg_has_role(oid, 'MEMBER')" }
    }

    /// `pg_auth_members m`, grouped: what memberships give (16).
    pub(crate) const fn membership_options(self) -> &'static str {
        if self.0.major() >= 16 {
            "bool_or(m.inherit_option) AS inherit, bool_or(m.set_option) AS set"
        } else {
            "NULL::bool AS inherit, NULL::bool AS set"
        }
    }

    /// GRANT of a role to oneself, its privileges included: who made it has the right to grant it and no more (16).
    pub const fn self_grant(self) -> &'static str {
        if self.0.major() >= 16 { " WITH INHERIT TRUE, SET TRUE" } else { "" }
    }

    /// Whether a GRANT of a role says what comes with it (16): its privileges, and whether the member may become it.
    pub const fn grants_by_option(self) -> bool {
        self.0.major() >= 16
    }

    /// Whether tables have the privilege MAINTAIN (17).
    pub const fn has_maintain(self) -> bool {
        self.0.major() >= 17
    }

    /// `pg_database`: whether its collation is another than the one that its indexes were made with, as far as that is
    /// recorded (15).
    pub(crate) const fn database_collation_changed(self) -> &'static str {
        if self.0.major() >= 15 {
            "datcollversion <> pg_database_collation_actual_version(oid)"
        } else {
            "false"
        }
    }

    /// `pg_settings`: names of those that make room for sessions besides clients and workers: walsenders by themselves (12),
    /// and autovacuum's processes (renamed in 18).
    pub(crate) const fn other_session_settings(self) -> &'static str {
        match self.0.major() {
            ..=11 => "'autovacuum_max_workers'",
            12..=17 => "'autovacuum_max_workers', 'max_wal_senders'",
            18.. => "'autovacuum_worker_slots', 'max_wal_senders'",
        }
    }

    /// Whether transactions in progress can be had (14).
    pub const fn streams(self) -> bool {
        self.0.major() >= 14
    }

    /// Whether messages can be had (14).
    pub const fn sends_messages(self) -> bool {
        self.0.major() >= 14
    }

    /// Options of CREATE_REPLICATION_SLOT: standbys keep a copy of one that stays (17).
    pub(crate) const fn slot_options(self, temporary: bool) -> &'static str {
        if self.0.major() >= 17 && !temporary { "(SNAPSHOT 'export', FAILOVER)" } else { "EXPORT_SNAPSHOT" }
    }

    /// Options of START_REPLICATION besides the publications: the newest protocol that the server speaks, and of what is
    /// wanted all that it can. Values stay text (`binary` is not asked for), changes come whatever their origin (the
    /// default), and a prepared transaction comes when it commits (`two_phase` is not asked for).
    pub fn stream_options(self, wanted: StreamOptions) -> Sql {
        let major = self.0.major();
        let sql = Sql::new(", proto_version ").text(match major {
            ..=13 => "'1'",
            14 => "'2'",
            15 => "'3'",
            16.. => "'4'",
        });
        let sql = if wanted.streaming && self.streams() { sql.text(", streaming 'on'") } else { sql };
        if wanted.messages && self.sends_messages() { sql.text(", messages 'on'") } else { sql }
    }

    /// `pg_available_extension_versions v`: whether CREATE on the database is enough to create it (13).
    pub(crate) const fn trusted(self) -> &'static str {
        if self.0.major() >= 13 { "v.trusted" } else { "false" }
    }

    /// A function that hashes bytes, and gives what can be hashed again (11; MD5 is refused where OpenSSL keeps to FIPS).
    pub const fn digest(self) -> &'static str {
        if self.0.major() >= 11 { "sha256" } else { "md5" }
    }

    /// Whether UPDATE and DELETE of a published table fail where its replica identity has a generated column (18); with
    /// REPLICA IDENTITY FULL that is any.
    pub(crate) const fn rejects_generated_identity(self) -> bool {
        self.0.major() >= 18
    }

    /// `pg_constraint k`: whether it is no part of one of the table above (11).
    pub(crate) const fn constraint_of_itself(self) -> &'static str {
        if self.0.major() >= 11 { "k.conparentid = 0" } else { "true" }
    }

    /// `pg_trigger g`: whether it is no copy of one of the table above. Before 13 such a one is an internal one.
    pub(crate) const fn trigger_of_itself(self) -> &'static str {
        if self.0.major() >= 13 { "g.tgparentid = 0" } else { "true" }
    }

    /// `pg_trigger g`: what makes it, in the words of 12 and newer.
    pub(crate) const fn trigger_definition(self) -> &'static str {
        if self.0.major() >= 12 {
            "pg_get_triggerdef(g.oid)"
        } else {
            "replace(pg_get_triggerdef(g.oid), ' EXECUTE PROCEDURE ', ' EXECUTE FUNCTION ')"
        }
    }

    /// `pg_proc p`: `f` function, `p` procedure (11), `a` aggregate, `w` window function.
    pub(crate) const fn routine_kind(self) -> &'static str {
        if self.0.major() >= 11 {
            "p.prokind::text"
        } else {
            "CASE WHEN p.proisagg THEN 'a' WHEN p.proiswindow THEN 'w' ELSE 'f' END"
        }
    }

    /// Whether TRUNCATE is in the stream (11).
    pub const fn publishes_truncate(self) -> bool {
        self.0.major() >= 11
    }

    /// Whether a range of pages is read without the rest of the table: by a TID range scan (14).
    pub const fn scans_page_ranges(self) -> bool {
        self.0.major() >= 14
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_can_be_refused_from_some_minor_versions_on() {
        let check = |version: u32, expected: bool| {
            assert_eq!(Dialect::new(ServerVersion::new(version)).refuses_views(), expected, "{version}");
        };
        for version in [100_023, 110_022, 120_019, 130_015, 140_012, 150_007, 160_003] {
            check(version, false);
        }
        for version in [120_020, 120_022, 130_016, 140_013, 150_008, 160_004, 170_000, 180_001] {
            check(version, true);
        }
    }
}
