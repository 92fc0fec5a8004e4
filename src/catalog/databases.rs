//! The databases of a cluster, and what it takes to make one like another.

use super::server::DatabaseLocale;
use super::{Error, SideClient, SourceClient, ask, dialect};
use crate::pg::Sql;

/// A database, as any session of its cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The owner's name.
    pub owner: String,
    /// A template: for others to be made of.
    pub template: bool,
    /// It takes connections, and the current user may connect.
    pub connectable: bool,
    /// How many connections it takes; `None` for any number.
    pub connections_max: Option<i32>,
    /// Encoding and locale.
    pub locale: DatabaseLocale,
    /// Rules that ICU adds to its collation (16).
    pub icu_rules: Option<String>,
}

/// Every database of the cluster, templates included, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn all_databases(client: &SideClient) -> Result<Vec<Database>, Error> {
    let sql = Sql::new(
        "SELECT d.datname::text AS name, pg_get_userbyid(d.datdba)::text AS owner, d.datistemplate AS template, \
         d.datallowconn AND has_database_privilege(d.oid, 'CONNECT') AS connectable, \
         d.datconnlimit AS connections_max, pg_encoding_to_char(d.encoding)::text AS encoding, \
         d.datcollate::text AS collate, d.datctype::text AS ctype, to_jsonb(d) ->> 'daticurules' AS icu_rules, ",
    )
    .text(dialect(client).await?.locale())
    .text(" FROM pg_database d ORDER BY d.datname::text COLLATE \"C\"");
    let rows = ask::rows(client, "the cluster's databases", &sql, &[]).await?;
    rows.iter().map(database).collect()
}

/// Whether the current database holds anything that a user made, members of extensions aside.
///
/// # Errors
/// When the server does not answer.
pub async fn holds_anything(client: &SourceClient) -> Result<bool, Error> {
    // Below 16384 are the identifiers of what initdb made.
    let made = |catalog: &'static str| {
        Sql::new("EXISTS (SELECT FROM ")
            .text(catalog)
            .text(" o WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '")
            .text(catalog)
            .text("'::regclass AND d.objid = o.oid AND d.deptype = 'e'))")
    };
    let sql = Sql::new("SELECT ")
        .list(["pg_class", "pg_proc", "pg_type", "pg_namespace"], " OR ", |sql, name| sql.sql(&made(name)))
        .text(" OR EXISTS (SELECT FROM pg_largeobject_metadata) AS anything");
    ask::row(client, "what a database holds", &sql, &[]).await?.get("anything")
}

fn database(row: &ask::Answer) -> Result<Database, Error> {
    let connections_max: i32 = row.get("connections_max")?;
    Ok(Database {
        name: row.get("name")?,
        owner: row.get("owner")?,
        template: row.get("template")?,
        connectable: row.get("connectable")?,
        connections_max: (connections_max >= 0).then_some(connections_max),
        locale: DatabaseLocale {
            encoding: row.get("encoding")?,
            collate: row.get("collate")?,
            ctype: row.get("ctype")?,
            provider: row.get("provider")?,
            locale: row.get("locale")?,
        },
        icu_rules: row.get("icu_rules")?,
    })
}

/// Bytes that the databases take on the server's disk, together.
///
/// # Errors
/// When the server does not answer, or one of them may not be connected to.
pub async fn bytes_of_databases(client: &SourceClient, names: &[String]) -> Result<u64, Error> {
    let sql = Sql::new(
        "SELECT coalesce(sum(pg_database_size(oid)), 0)::int8 AS bytes FROM pg_database WHERE datname = ANY ($1)",
    );
    let bytes: i64 = ask::row(client, "the databases' sizes", &sql, &[&names]).await?.get("bytes")?;
    Ok(bytes.unsigned_abs())
}
