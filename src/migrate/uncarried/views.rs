//! Materialised views: their rows are computed by the target.
//!
//! One that is not filled on the source stays as it is. What one reads of another is known from the catalog, as far as
//! no function hides it; what is hidden shows as a failure while the other is empty, and is tried again after it. One that
//! cannot be filled whatever the order is named and left as it is: it holds up nothing else.

use std::collections::HashSet;

use tokio_postgres::error::SqlState;

use crate::catalog::{self, SourceClient, TargetClient};
use crate::error::{Definite, Failure, Result, Side};
use crate::pg::{QualifiedName, Sql};

/// Which of the target's materialised views are to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that are empty.
    Empty,
    /// All, those that have rows too.
    All,
}

/// Fills those that are filled on the source, each after those that it reads.
///
/// # Errors
/// When a side does not answer, or the time is up.
pub async fn refresh(source: &SourceClient, target: &TargetClient, which: Which) -> Result<()> {
    let wanted = filled(source).await?;
    if wanted.is_empty() {
        return Ok(());
    }
    let mut left = in_order(target, which).await?;
    left.retain(|name| wanted.contains(name));
    while !left.is_empty() {
        let mut refused = Vec::new();
        for name in &left {
            let refresh = Sql::new("REFRESH MATERIALIZED VIEW ").name(name);
            match target.batch_execute(refresh.as_str()).await {
                Ok(()) => tracing::debug!(view = %name, "refreshed"),
                // One that is given up says nothing about the view.
                Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => return Err(failed(error)),
                Err(error) => match failed(error) {
                    Failure::Definite(refusal) => refused.push((name.clone(), refusal)),
                    failure @ Failure::Transient(_) => return Err(failure),
                },
            }
        }
        if refused.len() == left.len() {
            refused.iter().for_each(|(name, refusal)| tell(name, refusal));
            break;
        }
        left = refused.into_iter().map(|(name, _)| name).collect();
    }
    Ok(())
}

/// A view is filled with its owner's privileges.
fn tell(view: &QualifiedName, refusal: &Definite) {
    let refresh = Sql::new("REFRESH MATERIALIZED VIEW ").name(view);
    tracing::warn!(
        %view,
        cause = refusal.cause,
        detail = refusal.detail,
        then = %refresh,
        "a materialised view cannot be filled on the target: it stays as it is; mend the cause (or GRANT its owner what it reads)"
    );
}

async fn filled(source: &SourceClient) -> Result<HashSet<QualifiedName>> {
    let sql = "SELECT schemaname::text, matviewname::text FROM pg_matviews WHERE ispopulated";
    let rows = source.query(sql, &[]).await;
    let rows = rows.map_err(|error| failure("the materialised views", Side::Source, error))?;
    Ok(rows.iter().map(name).collect())
}

/// One reads another if that is among all that it reads, through views or not; so it reads more of them.
async fn in_order(target: &TargetClient, which: Which) -> Result<Vec<QualifiedName>> {
    let sql = "WITH RECURSIVE
                   direct AS (SELECT DISTINCT r.ev_class AS reader, d.refobjid AS read FROM pg_rewrite r
                              JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class),
                   read AS (SELECT reader, read FROM direct
                            UNION SELECT r.reader, d.read FROM read r JOIN direct d ON d.reader = r.read)
               SELECT n.nspname::text, c.relname::text
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   LEFT JOIN read r ON r.reader = c.oid LEFT JOIN pg_class m ON m.oid = r.read AND m.relkind = 'm'
               WHERE c.relkind = 'm' AND ($1 OR NOT c.relispopulated)
               GROUP BY 1, 2 ORDER BY count(m.oid), 1, 2";
    let rows = target.query(sql, &[&(which == Which::All)]).await;
    let rows = rows.map_err(|error| failure("the materialised views", Side::Target, error))?;
    Ok(rows.iter().map(name).collect())
}

fn name(row: &tokio_postgres::Row) -> QualifiedName {
    QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))
}

fn failed(error: tokio_postgres::Error) -> Failure {
    failure("a materialised view's rows", Side::Target, error)
}

fn failure(question: &'static str, side: Side, error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(side, question, error).into()
}
