//! Functions of users that run in the name of whoever writes rows.

use super::{Error, SideClient, SourceClient, ask};
use crate::pg::Sql;

/// A function that is neither the server's nor an extension's; or one of the server's that runs SQL which it gets as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerCode {
    /// As `ALTER FUNCTION` names it.
    pub function: String,
    /// Whose it is; of one of the server's: whose is what calls it.
    pub owner: String,
    /// What calls it, in the server's words: `constraint positive on table public.t`.
    pub called_by: Vec<String>,
}

/// Those that run when rows are written, as whoever writes them, and that somebody else than the current user and superusers
/// owns: called by CHECK constraints of tables and domains, defaults of columns and domains, generated columns, partition
/// keys, indexes, and triggers and rules that act on a replica, too; directly, by an operator or by a range's type.
///
/// # Errors
/// When the server does not answer.
pub async fn owner_code(client: &SideClient) -> Result<Vec<OwnerCode>, Error> {
    let acting = Sql::new(
        "SELECT 'pg_constraint'::regclass::oid AS classid, k.oid AS objid, coalesce(c.relowner, t.typowner) AS owner, \
           pg_get_expr(k.conbin, k.conrelid) AS text FROM pg_constraint k LEFT JOIN pg_class c ON c.oid = k.conrelid \
           LEFT JOIN pg_type t ON t.oid = k.contypid WHERE k.contype = 'c' \
         UNION ALL SELECT 'pg_attrdef'::regclass, d.oid, c.relowner, pg_get_expr(d.adbin, d.adrelid) \
         FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid \
         UNION ALL SELECT 'pg_type'::regclass, oid, typowner, pg_get_expr(typdefaultbin, 0) FROM pg_type \
         WHERE typtype = 'd' AND typdefaultbin IS NOT NULL \
         UNION ALL SELECT 'pg_class'::regclass, i.indexrelid, c.relowner, concat_ws(', ', \
           pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)) \
         FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL \
         UNION ALL SELECT 'pg_class'::regclass, s.partrelid, c.relowner, pg_get_expr(s.partexprs, s.partrelid) \
         FROM pg_partitioned_table s JOIN pg_class c ON c.oid = s.partrelid WHERE s.partexprs IS NOT NULL \
         UNION ALL SELECT 'pg_trigger'::regclass, g.oid, c.relowner, pg_get_triggerdef(g.oid) \
         FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid WHERE g.tgenabled IN ('A', 'R') AND NOT g.tgisinternal \
         UNION ALL SELECT 'pg_rewrite'::regclass, w.oid, c.relowner, pg_get_ruledef(w.oid) \
         FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class WHERE w.ev_enabled IN ('A', 'R')",
    );
    // A GiST index asks its range's type how far apart two values are; the type makes each value canonical.
    let of_types = Sql::new(
        "SELECT 'pg_class'::regclass::oid AS classid, i.indexrelid AS objid, r.rngsubdiff::oid AS function FROM pg_index i \
         JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam AND m.amname = 'gist' \
         JOIN pg_attribute a ON a.attrelid = i.indexrelid JOIN pg_type t ON t.oid = a.atttypid \
         JOIN pg_range r ON r.rngtypid IN (t.oid, t.typbasetype) \
         OR (to_jsonb(r) ->> 'rngmultitypid')::oid IN (t.oid, t.typbasetype) \
         UNION ALL SELECT 'pg_type'::regclass, rngtypid, rngcanonical FROM pg_range",
    );
    read(client, &acting, &of_types, &[]).await
}

/// Those that run, as whoever makes them, when statistics of expressions are gathered, and materialised views filled, that
/// these roles own. What else calls functions of users is in [`owner_code`] whoever owns it.
///
/// # Errors
/// When the server does not answer.
pub async fn code_of_objects_of(client: &SourceClient, roles: &[String]) -> Result<Vec<OwnerCode>, Error> {
    let acting = Sql::new(
        "SELECT 'pg_statistic_ext'::regclass::oid AS classid, s.oid AS objid, s.stxowner AS owner, \
           pg_get_statisticsobjdef(s.oid) AS text FROM pg_statistic_ext s JOIN pg_roles o ON o.oid = s.stxowner \
           WHERE o.rolname = ANY ($1::text[]) \
         UNION ALL SELECT 'pg_rewrite'::regclass, w.oid, c.relowner, pg_get_viewdef(c.oid) FROM pg_rewrite w \
         JOIN pg_class c ON c.oid = w.ev_class AND c.relkind = 'm' JOIN pg_roles o ON o.oid = c.relowner \
         WHERE o.rolname = ANY ($1::text[])",
    );
    let none = Sql::new("SELECT 0::oid AS classid, 0::oid AS objid, 0::oid AS function WHERE false");
    read(client, &acting, &none, &[&roles]).await
}

/// `acting` is what calls functions; `of_types` says which ones a type has called.
async fn read(
    client: &SideClient,
    acting: &Sql,
    of_types: &Sql,
    params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Vec<OwnerCode>, Error> {
    // The server's own functions are no dependencies: what is called is read in the text.
    let sql = Sql::new("WITH acting AS (")
        .sql(acting)
        .text("), of_types AS (")
        .sql(of_types)
        .text(
            "), called AS ( \
             SELECT a.classid, a.objid, CASE d.refclassid WHEN 'pg_operator'::regclass THEN o.oprcode::oid \
             WHEN 'pg_proc'::regclass THEN d.refobjid END AS function FROM acting a \
             JOIN pg_depend d ON d.classid = a.classid AND d.objid = a.objid \
             LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid \
             UNION ALL SELECT classid, objid, function FROM of_types) \
             SELECT p.oid::regprocedure::text AS function, r.rolname::text AS owner, \
             array_agg(DISTINCT pg_describe_object(a.classid, a.objid, 0)) AS called_by FROM called a \
             JOIN pg_proc p ON p.oid = a.function JOIN pg_roles r ON r.oid = p.proowner \
             WHERE p.oid >= 16384 AND NOT r.rolsuper AND r.rolname <> current_user AND NOT EXISTS (SELECT FROM pg_depend e \
             WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') GROUP BY p.oid, r.rolname \
             UNION ALL SELECT 'pg_catalog.' || f.name, r.rolname::text, \
             array_agg(DISTINCT pg_describe_object(a.classid, a.objid, 0)) \
             FROM acting a JOIN pg_roles r ON r.oid = a.owner AND NOT r.rolsuper AND r.rolname <> current_user \
             CROSS JOIN LATERAL (SELECT m[1] AS name FROM regexp_matches(a.text, '(?:^|[^.\"])\\m(",
        )
        .text(RUN_TEXT)
        .text(")\\(', 'g') m) f GROUP BY f.name, r.rolname ORDER BY 1, 2");
    let code = |row: &ask::Answer| {
        Ok(OwnerCode {
            function: row.get("function")?,
            owner: row.get("owner")?,
            called_by: row.get("called_by")?,
        })
    };
    ask::rows(client, "the functions that writing rows calls", &sql, params).await?.iter().map(code).collect()
}

/// The server's functions that run SQL, or a view's functions, by what they get as text or name; and the one that can change
/// what a session's later statements mean.
const RUN_TEXT: &str =
    "(?:query|table|schema|database|cursor)_to_xml(?:schema|_and_xmlschema)?|ts_stat|ts_rewrite|set_config";
