//! The tables of a migration that has begun, to which the target's user may not write all that comes.

use tokio_postgres::Row;

use super::Store;
use crate::catalog::Error;
use crate::pg::QualifiedName;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritable {
    /// The table.
    pub name: QualifiedName,
    /// Its owner, whose privileges the current user lacks.
    pub owner: Option<String>,
    /// Row-level security holds for its owner, too.
    pub forced: bool,
    /// The current user lacks a privilege.
    pub refused: bool,
}

impl Store<'_> {
    /// None on a target that knows of no migration.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn unwritable_tables(&self) -> Result<Vec<Unwritable>, Error> {
        let failed = self.client.failed("the target's tables");
        let known = "SELECT to_regclass('walferry.relation') IS NOT NULL";
        if !self.client.query_one(known, &[]).await.map_err(&failed)?.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let rows = self.client.query(UNWRITABLE, &[&self.name]).await.map_err(failed)?;
        let table = |row: &Row| Unwritable {
            name: QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            owner: row.get(2),
            forced: row.get(3),
            refused: row.get(4),
        };
        Ok(rows.iter().map(table).collect())
    }
}

const UNWRITABLE: &str = "
    WITH found AS (SELECT r.schema_name, r.table_name, row_security_active(c.oid) AS secured,
        CASE WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN pg_get_userbyid(c.relowner)::text END AS owner,
        c.relrowsecurity AND c.relforcerowsecurity AS forced,
        NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
            AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')) AS refused
        FROM walferry.relation r JOIN pg_namespace n ON n.nspname = r.schema_name
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = r.table_name
        WHERE r.migration = $1 AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
    SELECT schema_name, table_name, owner, secured AND forced, refused FROM found WHERE secured OR refused ORDER BY 1, 2";
