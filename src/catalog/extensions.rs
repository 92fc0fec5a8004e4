//! Extensions, installed and available.

use std::collections::HashMap;

use super::{Error, SideClient, SourceClient, TargetClient, ask, dialect};
use crate::pg::Sql;

/// An extension of the current database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The schema of its objects.
    pub schema: String,
    /// Whether they can be moved into another one.
    pub relocatable: bool,
}

/// A table that an extension has for its users' rows, beside its own: what `pg_extension_config_dump` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionTable {
    /// The extension.
    pub name: String,
    /// Which rows are its users': `WHERE …`, or empty for all.
    pub condition: String,
}

impl ExtensionTable {
    /// Whether something beside the application does what its rows say, as soon as they are there: before the cutover the
    /// target is no place for them.
    pub fn acts(&self) -> bool {
        ACTING.contains(&self.name.as_str())
    }
}

/// Extensions whose background workers, or an agent beside the server, run what their tables hold: jobs, and the making and
/// dropping of partitions.
const ACTING: [&str; 3] = ["pg_cron", "pg_partman", "pgagent"];

/// An extension that could be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvailableExtension {
    /// Its name.
    pub name: String,
    /// The version that CREATE EXTENSION would take.
    pub default_version: String,
    /// Every version that it could be created in.
    pub versions: Vec<String>,
    /// CREATE on the database is enough to create its default version.
    pub trusted: bool,
}

/// The extensions of the current database; one that needs another comes after it.
///
/// # Errors
/// When the server does not answer.
pub async fn extensions(client: &SideClient) -> Result<Vec<Extension>, Error> {
    let sql = Sql::new(
        "SELECT e.extname::text AS name, e.extversion AS version, n.nspname::text AS schema, \
         e.extrelocatable AS relocatable \
         FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.oid",
    );
    let rows = ask::rows(client, "the extensions", &sql, &[]).await?;
    let extension = |row: &ask::Answer| {
        Ok(Extension {
            name: row.get("name")?,
            version: row.get("version")?,
            schema: row.get("schema")?,
            relocatable: row.get("relocatable")?,
        })
    };
    rows.iter().map(extension).collect()
}

/// The tables that extensions have for their users' rows, by oid.
///
/// # Errors
/// When the server does not answer.
pub(super) async fn extension_tables(client: &SideClient) -> Result<HashMap<u32, ExtensionTable>, Error> {
    let sql = Sql::new(
        "SELECT x.oid, e.extname::text AS name, x.condition \
         FROM pg_extension e, unnest(e.extconfig, e.extcondition) x(oid, condition)",
    );
    let rows = ask::rows(client, "the extensions' tables", &sql, &[]).await?;
    let table = |row: &ask::Answer| {
        Ok((row.get("oid")?, ExtensionTable { name: row.get("name")?, condition: row.get("condition")? }))
    };
    rows.iter().map(table).collect()
}

/// What depends on extensions and is no part of one, in the server's words; other extensions, too.
///
/// # Errors
/// When the server does not answer.
pub async fn dependents_of(client: &SourceClient, extensions: &[String]) -> Result<Vec<String>, Error> {
    // What belongs to a part of one (an array's type, a table's constraint) goes with it.
    let sql = Sql::new(
        "WITH RECURSIVE gone AS (SELECT oid FROM pg_extension WHERE extname = ANY ($1)), \
         part AS (SELECT 'pg_extension'::regclass::oid AS classid, oid AS objid FROM gone \
         UNION SELECT d.classid, d.objid FROM pg_depend d JOIN part p ON p.classid = d.refclassid \
         AND p.objid = d.refobjid WHERE d.deptype IN ('e', 'a', 'i')) \
         SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) AS what \
         FROM pg_depend d JOIN part p ON p.classid = d.refclassid AND p.objid = d.refobjid \
         WHERE d.deptype = 'n' AND NOT EXISTS (SELECT FROM part o WHERE o.classid = d.classid \
         AND o.objid = d.objid) ORDER BY 1",
    );
    let rows = ask::rows(client, "what depends on extensions", &sql, &[&extensions]).await?;
    rows.iter().map(|row| row.get("what")).collect()
}

/// The extensions that need this one, and those that need them; the last made comes first.
///
/// # Errors
/// When the server does not answer.
pub async fn extensions_needing(client: &TargetClient, extension: &str) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "WITH RECURSIVE needing AS (SELECT oid FROM pg_extension WHERE extname = $1::text \
         UNION SELECT d.objid FROM pg_depend d JOIN needing n ON n.oid = d.refobjid \
         WHERE d.classid = 'pg_extension'::regclass AND d.refclassid = 'pg_extension'::regclass) \
         SELECT extname::text AS name FROM pg_extension JOIN needing USING (oid) WHERE extname <> $1::text \
         ORDER BY oid DESC",
    );
    let rows = ask::rows(client, "the extensions that need another", &sql, &[&extension]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}

/// The extensions that this server has files for, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn available_extensions(client: &TargetClient) -> Result<Vec<AvailableExtension>, Error> {
    let sql = Sql::new(
        "SELECT x.name::text AS name, x.default_version, array_agg(v.version) AS versions, \
         coalesce(bool_or(v.version = x.default_version AND ",
    )
    .text(dialect(client).await?.trusted())
    .text(
        "), false) AS trusted FROM pg_available_extensions x JOIN pg_available_extension_versions v \
         ON v.name = x.name GROUP BY 1, 2 ORDER BY 1",
    );
    let rows = ask::rows(client, "the available extensions", &sql, &[]).await?;
    let extension = |row: &ask::Answer| {
        Ok(AvailableExtension {
            name: row.get("name")?,
            default_version: row.get("default_version")?,
            versions: row.get("versions")?,
            trusted: row.get("trusted")?,
        })
    };
    rows.iter().map(extension).collect()
}
