//! Functions of users that run in the name of whoever writes rows.

use tokio_postgres::Client;

use crate::pg::Sql;
use crate::source::{Error, ask};

/// A function that is neither the server's nor an extension's, and that runs when rows are written: as whoever writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerCode {
    /// As `ALTER FUNCTION` names it.
    pub function: String,
    /// Whose it is.
    pub owner: String,
    /// What calls it, in the server's words: `constraint positive on table public.t`.
    pub called_by: Vec<String>,
}

/// Those that somebody else than the current user and superusers owns: called by CHECK constraints of tables and domains,
/// defaults, generated columns, indexes, and triggers and rules that act on a replica, too; directly or by an operator.
///
/// # Errors
/// When the server does not answer.
pub async fn owner_code(client: &Client) -> Result<Vec<OwnerCode>, Error> {
    let sql = Sql::new(
        "WITH acting AS ( \
         SELECT 'pg_constraint'::regclass::oid AS classid, oid AS objid FROM pg_constraint WHERE contype = 'c' \
         UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef \
         UNION ALL SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indexprs IS NOT NULL OR indpred IS NOT NULL \
         UNION ALL SELECT 'pg_trigger'::regclass, oid FROM pg_trigger WHERE tgenabled IN ('A', 'R') AND NOT tgisinternal \
         UNION ALL SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite WHERE ev_enabled IN ('A', 'R')) \
         SELECT p.oid::regprocedure::text AS function, pg_get_userbyid(p.proowner)::text AS owner, \
         array_agg(DISTINCT pg_describe_object(a.classid, a.objid, 0)) AS called_by FROM acting a \
         JOIN pg_depend d ON d.classid = a.classid AND d.objid = a.objid \
         LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid \
         JOIN pg_proc p ON p.oid = CASE d.refclassid WHEN 'pg_operator'::regclass THEN o.oprcode::oid \
         WHEN 'pg_proc'::regclass THEN d.refobjid END \
         JOIN pg_roles r ON r.oid = p.proowner \
         WHERE p.oid >= 16384 AND NOT r.rolsuper AND r.rolname <> current_user AND NOT EXISTS (SELECT FROM pg_depend e \
         WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') \
         GROUP BY p.oid, p.proowner ORDER BY 1",
    );
    let code = |row: &ask::Answer| {
        Ok(OwnerCode {
            function: row.get("function")?,
            owner: row.get("owner")?,
            called_by: row.get("called_by")?,
        })
    };
    ask::rows(client, "the functions that writing rows calls", &sql, &[]).await?.iter().map(code).collect()
}
