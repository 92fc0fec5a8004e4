//! Foreign keys that the copied rows violate.
//!
//! A source may hold rows that violate a foreign key (written as a replica, or with its triggers off), and mend them later.
//! The key is then made NOT VALID: it says nothing of the rows that are there, and holds for what users write. When the
//! stream has brought what the source has by now, it is validated. Rows that violate it still are the source's own: the
//! key stays as it is, which is said with the query that finds them.

use std::collections::HashSet;

use tokio_postgres::error::SqlState;

use crate::catalog::{self, SourceClient, TargetClient};
use crate::error::{Failure, Result, Side};
use crate::pg::{QualifiedName, Sql};

/// A foreign key of the target that is not validated, though the source's is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unvalidated {
    table: QualifiedName,
    name: String,
    columns: Vec<String>,
    to: QualifiedName,
    to_columns: Vec<String>,
}

/// The statement that makes a foreign key, changed so that the rows which are there may violate it; `None` where it ends as
/// `pg_dump` ends none.
pub fn not_valid(sql: &Sql) -> Option<Sql> {
    let statement = sql.as_str().trim_end().strip_suffix(';')?;
    Some(Sql::from_dump(format!("{statement} NOT VALID;\n")))
}

/// Those that are left to be validated.
///
/// # Errors
/// When a side does not answer.
pub async fn unvalidated(source: &SourceClient, target: &TargetClient) -> Result<Vec<Unvalidated>> {
    let mut left = of_target(target).await?;
    if left.is_empty() {
        return Ok(left);
    }
    let sql =
        "SELECT n.nspname::text, c.relname::text, k.conname::text FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE k.contype = 'f' AND k.convalidated";
    let rows = source.query(sql, &[]).await.map_err(|error| failure(Side::Source, error))?;
    let valid: HashSet<(String, String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    left.retain(|key| valid.contains(&(key.table.schema.clone(), key.table.name.clone(), key.name.clone())));
    Ok(left)
}

async fn of_target(target: &TargetClient) -> Result<Vec<Unvalidated>> {
    let sql = "SELECT n.nspname::text, c.relname::text, k.conname::text, rn.nspname::text, r.relname::text,
                   ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u (number, place)
                         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number ORDER BY u.place),
                   ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u (number, place)
                         JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = u.number ORDER BY u.place)
               FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                   JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
               WHERE k.contype = 'f' AND NOT k.convalidated AND k.conparentid = 0 ORDER BY 1, 2, 3";
    let rows = target.query(sql, &[]).await.map_err(|error| failure(Side::Target, error))?;
    let key = |row: &tokio_postgres::Row| Unvalidated {
        table: QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        name: row.get(2),
        to: QualifiedName::new(row.get::<_, String>(3), row.get::<_, String>(4)),
        columns: row.get(5),
        to_columns: row.get(6),
    };
    Ok(rows.iter().map(key).collect())
}

/// Validates them. Says of each that rows still violate which it is, and how to find them, in the log and to the caller.
///
/// # Errors
/// When the target fails.
pub async fn validate(target: &TargetClient, keys: &[Unvalidated]) -> Result<Vec<String>> {
    let mut violated = Vec::new();
    for key in keys {
        let (table, constraint) = (&key.table, &key.name);
        match target.batch_execute(key.validation().as_str()).await {
            Ok(()) => tracing::info!(%table, constraint, "foreign key validated"),
            Err(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) => {
                tracing::warn!(
                    %table,
                    constraint,
                    find = %key.violations(),
                    then = %key.validation(),
                    "a foreign key stays NOT VALID on the target: rows violate it on both sides"
                );
                violated.push(format!(
                    "foreign key {constraint} of table {table} stays NOT VALID on the target: rows violate it on both sides; \
                     they are found by {}",
                    key.violations()
                ));
            }
            Err(error) => return Err(failure(Side::Target, error)),
        }
    }
    Ok(violated)
}

impl Unvalidated {
    fn validation(&self) -> Sql {
        Sql::new("ALTER TABLE ").name(&self.table).text(" VALIDATE CONSTRAINT ").ident(&self.name)
    }

    /// The query that finds the rows which violate it: without a match, and without a NULL in the key.
    fn violations(&self) -> Sql {
        let pairs: Vec<_> = self.columns.iter().zip(&self.to_columns).collect();
        let matches = Sql::default()
            .list(&pairs, " AND ", |sql, (from, to)| sql.text("r.").ident(to).text(" = f.").ident(from));
        let given = Sql::default()
            .list(&self.columns, " AND ", |sql, from| sql.text("f.").ident(from).text(" IS NOT NULL"));
        Sql::new("SELECT f.* FROM ")
            .name(&self.table)
            .text(" f WHERE ")
            .sql(&given)
            .text(" AND NOT EXISTS (SELECT FROM ")
            .name(&self.to)
            .text(" r WHERE ")
            .sql(&matches)
            .text(")")
    }
}

fn failure(side: Side, error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(side, "the foreign keys", error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements() {
        let made =
            Sql::from_dump("ALTER TABLE ONLY public.a\n    ADD CONSTRAINT k FOREIGN KEY (x);\n\n".to_owned());
        let changed = not_valid(&made).expect("a statement");
        assert_eq!(
            changed.as_str(),
            "ALTER TABLE ONLY public.a\n    ADD CONSTRAINT k FOREIGN KEY (x) NOT VALID;\n"
        );
        assert_eq!(not_valid(&Sql::new("ALTER TABLE a ADD FOREIGN KEY (x)")), None);
        let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let key = Unvalidated {
            table: QualifiedName::new("public", "a"),
            name: "K".to_owned(),
            columns: names(["x", "Y"]),
            to: QualifiedName::new("public", "b"),
            to_columns: names(["u", "v"]),
        };
        assert_eq!(key.validation().as_str(), r#"ALTER TABLE "public"."a" VALIDATE CONSTRAINT "K""#);
        assert_eq!(
            key.violations().as_str(),
            r#"SELECT f.* FROM "public"."a" f WHERE f."x" IS NOT NULL AND f."Y" IS NOT NULL AND NOT EXISTS (SELECT FROM "public"."b" r WHERE r."u" = f."x" AND r."v" = f."Y")"#
        );
    }
}
