//! Constraints of the target that say nothing of the rows which are there: NOT VALID.
//!
//! The source may hold rows that violate such a constraint, and the first copy brings them, since constraints of that kind
//! are made after it. A copy that comes later would be refused. So such constraints are taken away and made again in the
//! transaction that copies: nobody sees the table without them. A table's may be those of the tables that it inherits from,
//! and of the domains of its columns.

use crate::catalog::{self, TargetClient};
use crate::error::{Result, Side};
use crate::pg::{QualifiedName, Sql};
use crate::store::apply_role::HOLD_CONSTRAINTS;
use crate::store::hold_constraints;
use crate::wire::{self, Session};

/// One of them, of a table or of a domain.
struct Constraint {
    of_domain: bool,
    owner: QualifiedName,
    name: String,
    /// None where somebody makes it anew just now.
    definition: Option<String>,
    comment: Option<String>,
}

/// Of tables first those from which others inherit: they hand theirs on.
const CONSTRAINTS: &str = "
    WITH RECURSIVE own AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = $2),
    above(oid, height) AS (SELECT oid, 0 FROM own
        UNION ALL SELECT i.inhparent, height + 1 FROM above JOIN pg_inherits i ON i.inhrelid = above.oid),
    tables AS (SELECT oid, max(height) AS height FROM above GROUP BY oid),
    types(oid) AS (SELECT a.atttypid FROM pg_attribute a JOIN own ON own.oid = a.attrelid
            WHERE a.attnum > 0 AND NOT a.attisdropped
        UNION SELECT part.oid FROM types JOIN pg_type t ON t.oid = types.oid CROSS JOIN LATERAL (
            SELECT t.typelem WHERE t.typelem <> 0 UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
            UNION ALL SELECT f.atttypid FROM pg_attribute f
                WHERE t.typrelid <> 0 AND f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped) part(oid))
    SELECT false, n.nspname::text, c.relname::text, k.conname::text, pg_get_constraintdef(k.oid),
           obj_description(k.oid, 'pg_constraint'), tables.height
        FROM tables JOIN pg_constraint k ON k.conrelid = tables.oid AND k.contype IN ('c', 'n')
            AND NOT k.convalidated AND k.conislocal
            JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    UNION ALL SELECT true, n.nspname::text, t.typname::text, k.conname::text, pg_get_constraintdef(k.oid),
           obj_description(k.oid, 'pg_constraint'), 0
        FROM types JOIN pg_constraint k ON k.contypid = types.oid AND NOT k.convalidated
            JOIN pg_type t ON t.oid = k.contypid JOIN pg_namespace n ON n.oid = t.typnamespace
    ORDER BY 7 DESC, 1, 2, 3, 4";

/// Whether there are any that could keep rows from a table of the target.
///
/// # Errors
/// When the target does not answer.
pub async fn any(target: &TargetClient, table: &QualifiedName) -> Result<bool> {
    Ok(!constraints(target, table).await?.is_empty())
}

/// Begins a transaction of `session` and takes them away; gives what makes them again. `target` asks the same server.
/// `by_role`: the session is of the role that writes rows.
///
/// # Errors
/// When the target does not answer, or refuses.
pub async fn take_away(
    session: &mut Session,
    target: &TargetClient,
    table: &QualifiedName,
    by_role: bool,
) -> Result<Sql> {
    let failed = |error: wire::Error| error.into_failure(Side::Target);
    // Tables that are copied beside this one may have the same ones.
    let lock = if by_role { Sql::new(HOLD_CONSTRAINTS) } else { hold_constraints() };
    session.execute(&Sql::new("BEGIN; ").sql(&lock)).await.map_err(failed)?;
    let constraints = constraints(target, table).await?;
    // Nobody has to hear of what is merged with what tables inherit.
    let quiet = Sql::new("SET LOCAL client_min_messages = warning; ");
    let (mut down, mut up) = (quiet.clone(), quiet);
    for one in &constraints {
        let Some(definition) = &one.definition else { continue };
        down = one.alter(down).text(" DROP CONSTRAINT IF EXISTS ").ident(&one.name).text("; ");
        up = one.alter(up).text(" ADD CONSTRAINT ").ident(&one.name).text(" ");
        up = one.remark(up.catalog(definition).text("; "));
    }
    session.execute(&down).await.map_err(failed)?;
    Ok(up)
}

async fn constraints(target: &TargetClient, table: &QualifiedName) -> Result<Vec<Constraint>> {
    let rows = target.query(CONSTRAINTS, &[&table.schema, &table.name]).await;
    let rows =
        rows.map_err(|error| catalog::Error::new(Side::Target, "the constraints that are not valid", error))?;
    let constraint = |row: &tokio_postgres::Row| Constraint {
        of_domain: row.get(0),
        owner: QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        name: row.get(3),
        definition: row.get(4),
        comment: row.get(5),
    };
    Ok(rows.iter().map(constraint).collect())
}

impl Constraint {
    fn alter(&self, sql: Sql) -> Sql {
        sql.text(if self.of_domain { "ALTER DOMAIN " } else { "ALTER TABLE " }).name(&self.owner)
    }

    fn remark(&self, sql: Sql) -> Sql {
        let Some(comment) = &self.comment else { return sql };
        let sql = sql.text("COMMENT ON CONSTRAINT ").ident(&self.name);
        let sql = sql.text(if self.of_domain { " ON DOMAIN " } else { " ON " }).name(&self.owner);
        sql.text(" IS ").literal(comment).text("; ")
    }
}
