//! Extensions, installed and available.

use tokio_postgres::Client;

use crate::pg::Sql;
use crate::source::{Dialect, Error, ask};

/// An extension of the current database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The schema of its objects.
    pub schema: String,
}

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

/// The extensions of the current database, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn extensions(client: &Client) -> Result<Vec<Extension>, Error> {
    let sql = Sql::new(
        "SELECT e.extname::text AS name, e.extversion AS version, n.nspname::text AS schema \
         FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1",
    );
    let rows = ask::rows(client, "the extensions", &sql, &[]).await?;
    let extension = |row: &ask::Answer| {
        Ok(Extension { name: row.get("name")?, version: row.get("version")?, schema: row.get("schema")? })
    };
    rows.iter().map(extension).collect()
}

/// The extensions that this server has files for, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn available_extensions(client: &Client) -> Result<Vec<AvailableExtension>, Error> {
    let sql = Sql::new(
        "SELECT x.name::text AS name, x.default_version, array_agg(v.version) AS versions, \
         coalesce(bool_or(v.version = x.default_version AND ",
    )
    .text(Dialect::of(client).await?.trusted())
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
