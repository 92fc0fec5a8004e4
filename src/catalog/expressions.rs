//! Expressions that a table's rows go through, and whether their functions find what they name wherever they are called.

use super::{Error, SourceClient, ask};
use crate::limits::EXPRESSION_TRIAL_MILLISECONDS_MAX;
use crate::pg::{QualifiedName, Sql};

/// An expression of an index, a CHECK constraint of a table or of a column's domain, a partition key or a column's default or
/// computed value that calls functions of users or extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// What has it, in the server's words: `index public.by_name`.
    pub of: String,
    /// Its table.
    pub table: QualifiedName,
    /// That has its rows in its partitions.
    partitioned: bool,
    /// As the server spells it, names with their schemas.
    text: String,
    /// The functions that it calls and that take the session's `search_path`, as `ALTER FUNCTION` names them.
    pub functions: Vec<String>,
    /// Their schemas, and its table's.
    pub schemas: Vec<String>,
    /// It runs only code of those who could act as the current user anyhow, and is no default that may write: to try that
    /// would be to do it. That goes for its table's owner, too: what he gives the server's own functions, some of which run
    /// SQL that they get as text (`query_to_xml`, `ts_rewrite`), depends on nothing; nor does his row-level security.
    pub trusted: bool,
    /// Of the functions those in SQL, whose bodies the server can look into without running them.
    sql_functions: Vec<String>,
}

impl Expression {
    /// Whether [`not_found`] sees all that it names.
    pub fn is_tried(&self) -> bool {
        self.trusted || self.sql_functions.len() == self.functions.len()
    }
}

/// The expressions of the current database whose functions take the `search_path` of whoever calls them.
///
/// # Errors
/// When the server does not answer.
pub async fn expressions(client: &SourceClient) -> Result<Vec<Expression>, Error> {
    // From the functions on, of which there are few: from thousands of tables on, it took the square of their number.
    let sql = Sql::new(
        "WITH called AS ( \
         SELECT d.classid, d.objid, p.oid, s.nspname, l.lanname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
         JOIN pg_namespace s ON s.oid = p.pronamespace \
         JOIN pg_depend d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid \
         WHERE l.lanname NOT IN ('c', 'internal') \
         AND d.classid IN ('pg_class'::regclass, 'pg_constraint'::regclass, 'pg_attrdef'::regclass) \
         AND NOT EXISTS (SELECT FROM unnest(p.proconfig) setting WHERE setting LIKE 'search\\_path=%')), found AS ( \
         SELECT 'pg_class'::regclass::oid AS classid, i.indexrelid AS objid, 0 AS part, i.indrelid AS relid, \
           concat_ws(', ', pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)) AS text, false AS writes \
         FROM pg_index i WHERE i.indexrelid IN (SELECT objid FROM called WHERE classid = 'pg_class'::regclass) \
         AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) \
         UNION ALL SELECT 'pg_constraint'::regclass, oid, 0, conrelid, pg_get_expr(conbin, conrelid), false \
         FROM pg_constraint WHERE oid IN (SELECT objid FROM called WHERE classid = 'pg_constraint'::regclass) \
         AND contype = 'c' AND conrelid <> 0 \
         UNION ALL SELECT 'pg_constraint'::regclass, k.oid, 0, a.attrelid, \
           format('(SELECT %s FROM (SELECT (c.%I)::%s AS value) AS v)', pg_get_expr(k.conbin, 0), a.attname, \
           format_type(t.typbasetype, NULL)), false \
         FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid JOIN LATERAL (SELECT a.attrelid, a.attname FROM pg_attribute a \
           JOIN pg_class c ON c.oid = a.attrelid WHERE a.atttypid = t.oid AND a.attnum > 0 AND NOT a.attisdropped \
           AND c.relkind IN ('r', 'p') ORDER BY 1, a.attnum LIMIT 1) a ON true \
         WHERE k.oid IN (SELECT objid FROM called WHERE classid = 'pg_constraint'::regclass) AND k.contype = 'c' \
         UNION ALL SELECT 'pg_class'::regclass, s.partrelid, 0, s.partrelid, pg_get_expr(s.partexprs, s.partrelid), false \
         FROM pg_partitioned_table s WHERE s.partexprs IS NOT NULL \
         AND s.partrelid IN (SELECT objid FROM called WHERE classid = 'pg_class'::regclass) \
         UNION ALL SELECT 'pg_attrdef'::regclass, d.oid, 0, d.adrelid, pg_get_expr(d.adbin, d.adrelid), \
           coalesce(to_jsonb(a) ->> 'attgenerated', '') = '' AND EXISTS (SELECT FROM pg_depend e JOIN pg_proc v ON v.oid = e.refobjid \
           WHERE e.classid = 'pg_attrdef'::regclass AND e.objid = d.oid AND e.refclassid = 'pg_proc'::regclass \
           AND v.provolatile = 'v') \
         FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
         WHERE d.oid IN (SELECT objid FROM called WHERE classid = 'pg_attrdef'::regclass)) \
         SELECT pg_describe_object(f.classid, f.objid, f.part) AS what, n.nspname::text AS schema, c.relname::text AS name, \
         c.relkind = 'p' AS partitioned, f.text, array_agg(DISTINCT p.oid::regprocedure::text) AS functions, \
         array_agg(DISTINCT p.nspname::text) || n.nspname::text AS schemas, \
         coalesce(array_agg(DISTINCT p.oid::regprocedure::text) FILTER (WHERE p.lanname = 'sql'), '{}') AS sql_functions, \
         NOT EXISTS (SELECT FROM pg_depend d LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass \
         AND o.oid = d.refobjid LEFT JOIN pg_proc c ON c.oid = CASE d.refclassid WHEN 'pg_operator'::regclass \
         THEN o.oprcode::oid WHEN 'pg_proc'::regclass THEN d.refobjid END \
         LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid AND t.typtype = 'd' \
         WHERE d.classid = f.classid AND d.objid = f.objid AND coalesce(c.oid, t.oid) >= 16384 \
         AND NOT pg_has_role(coalesce(c.proowner, t.typowner), (SELECT oid FROM pg_roles WHERE rolname = current_user), \
         'MEMBER') AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = coalesce(c.oid, t.oid) AND e.deptype = 'e' \
         AND e.classid IN ('pg_proc'::regclass, 'pg_type'::regclass))) AND NOT f.writes \
         AND pg_has_role(c.relowner, (SELECT oid FROM pg_roles WHERE rolname = current_user), 'MEMBER') AS trusted \
         FROM found f JOIN pg_class c ON c.oid = f.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN called p ON p.classid = f.classid AND p.objid = f.objid \
         WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'walferry') \
         GROUP BY f.classid, f.objid, f.writes, c.relowner, 1, 2, 3, 4, 5 ORDER BY 2, 3, 1",
    );
    let expression = |row: &ask::Answer| {
        Ok(Expression {
            of: row.get("what")?,
            table: row.name()?,
            partitioned: row.get("partitioned")?,
            text: row.get("text")?,
            functions: row.get("functions")?,
            schemas: row.get("schemas")?,
            trusted: row.get("trusted")?,
            sql_functions: row.get("sql_functions")?,
        })
    };
    ask::rows(client, QUESTION, &sql, &[]).await?.iter().map(expression).collect()
}

/// Tries an expression with this `search_path`: on a row, where the table has one. Gives what is not found, in the server's
/// words; what else may go wrong is not asked here.
///
/// What runs here runs as the current user, who may read what the owners of functions and table may not. So where they could
/// not act as him anyhow, nothing is run: the server looks into the bodies of functions in SQL, as it does when they are made.
///
/// # Errors
/// When the server does not answer.
pub async fn not_found(
    client: &SourceClient,
    expression: &Expression,
    search_path: &[String],
) -> Result<Option<String>, Error> {
    if !expression.trusted && expression.sql_functions.is_empty() {
        return Ok(None);
    }
    // Several statements at once are one transaction, which ends with them whatever comes.
    let path = Sql::new("SET TRANSACTION READ ONLY; SET LOCAL search_path = ");
    let path = match search_path {
        [] => path.literal(""),
        schemas => path.list(schemas, ", ", |sql, schema| sql.ident(schema)),
    };
    let sql = path.text("; SET LOCAL statement_timeout = ").number(EXPRESSION_TRIAL_MILLISECONDS_MAX);
    let sql = if expression.trusted {
        let from = if expression.partitioned { " FROM " } else { " FROM ONLY " };
        sql.text("; SELECT ").catalog(&expression.text).text(from).name(&expression.table).text(" c LIMIT 1")
    } else {
        expression.sql_functions.iter().fold(sql, |sql, function| {
            let sql = sql.text("; SELECT pg_catalog.fmgr_sql_validator(").literal(function);
            sql.text("::pg_catalog.regprocedure)")
        })
    };
    let Err(error) = client.run(QUESTION, &sql).await else { return Ok(None) };
    match (error.state(), error.message()) {
        // An object that is not there, or not under this name.
        (Some(state), Some(message)) => Ok(NOT_FOUND.contains(&state).then(|| message.to_owned())),
        _ => Err(error),
    }
}

const QUESTION: &str = "the expressions of tables";

/// `invalid_schema_name`, `undefined_table`, `undefined_column`, `undefined_function`, `undefined_object`.
const NOT_FOUND: [&str; 5] = ["3F000", "42P01", "42703", "42883", "42704"];
