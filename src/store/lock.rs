//! The advisory lock that keeps a second engine out of a migration's database.

use crate::pg::Sql;

/// What the first half of the advisory lock's key is the hash of.
pub(crate) fn lock_name(migration: &str) -> String {
    format!("walferry {migration}")
}

/// Takes, or gives up, the advisory lock of this name and key.
pub(crate) fn advisory(function: &'static str, name: &str, key: i32) -> Sql {
    let sql = Sql::new("SELECT pg_catalog.").text(function).text("(pg_catalog.hashtext(").literal(name);
    sql.text("), ").number(key).text(")")
}

/// Asks for `what` of each session `a` that holds a lock of one of these names.
///
/// Any role that may connect can take any advisory lock, and see which ones are held. So a key is new each time, and a lock
/// says something only where it is held by somebody who could do anything to the migration anyhow: our own role, or one that
/// has the privileges of the owner of schema walferry, or a role that writes rows for him. A lock of one key, the name's
/// hash alone, is that of a release before this one.
pub(crate) fn of_holders(what: &'static str, names: &[&str]) -> Sql {
    Sql::new("SELECT ")
        .text(what)
        .text(" FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid) ")
        .text("WHERE l.locktype = 'advisory' AND l.granted AND l.database = ")
        .text("(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) ")
        .text("AND (l.objsubid = 2 AND l.classid IN (")
        .list(names, ", ", |sql, name| sql.text("pg_catalog.hashtext(").literal(name).text(")::oid"))
        .text(") OR l.objsubid = 1 AND (l.classid::int8 << 32 | l.objid::int8) IN (")
        .list(names, ", ", |sql, name| sql.text("pg_catalog.hashtextextended(").literal(name).text(", 0)"))
        .text(")) AND (a.usename = current_user OR EXISTS (SELECT FROM pg_catalog.pg_namespace n ")
        .text("WHERE n.nspname = 'walferry' AND (pg_catalog.pg_has_role(a.usesysid, n.nspowner, 'USAGE') ")
        .text("OR a.usename ~ '^walferry_' AND pg_catalog.pg_has_role(n.nspowner, a.usesysid, 'MEMBER'))))")
}
