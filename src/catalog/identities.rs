//! Tables that are published with updates though nothing identifies their rows.

use super::{Error, SourceClient, ask, dialect};
use crate::pg::{Oid, QualifiedName, Sql};

/// A member of a publication for which the source may reject UPDATE and DELETE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unidentified {
    /// The member.
    pub name: QualifiedName,
    /// It, and its partitions at any depth.
    pub tables: Vec<Oid>,
}

/// The members of `publication` of which nothing identifies the rows, or those of one of their partitions, in the same sense
/// as [`Table::identity_columns`](super::Table::identity_columns). One question, which waits for nobody's lock.
///
/// # Errors
/// When the server does not answer.
pub async fn unidentified(client: &SourceClient, publication: &str) -> Result<Vec<Unidentified>, Error> {
    let dialect = dialect(client).await?;
    let with_generated = if dialect.rejects_generated_identity() { "" } else { "false AND " };
    let sql = Sql::new(
        "WITH RECURSIVE below AS (SELECT r.prrelid AS member, r.prrelid AS oid FROM pg_publication_rel r \
         JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1 \
         UNION ALL SELECT b.member, h.inhrelid FROM below b JOIN pg_inherits h ON h.inhparent = b.oid \
         JOIN pg_class c ON c.oid = h.inhrelid WHERE c.relispartition) \
         SELECT n.nspname::text AS schema, m.relname::text AS name, array_agg(b.oid) AS tables \
         FROM below b JOIN pg_class m ON m.oid = b.member JOIN pg_namespace n ON n.oid = m.relnamespace \
         JOIN pg_class c ON c.oid = b.oid GROUP BY 1, 2 \
         HAVING bool_or(c.relkind = 'r' AND c.relpersistence = 'p' AND CASE c.relreplident WHEN 'n' THEN true WHEN 'f' THEN ",
    )
    .text(with_generated)
    .text("EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND ")
    .text(dialect.generated())
    .text(
        " <> '') ELSE NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indislive \
         AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL \
         AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END \
         AND NOT EXISTS (SELECT FROM generate_series(0, ",
    )
    .text(dialect.key_columns())
    .text(
        " - 1) k LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k] \
         WHERE i.indkey[k] = 0 OR ",
    )
    .text(dialect.generated())
    .text(" <> '')) END) ORDER BY 1, 2");
    let rows = ask::rows(client, "the published tables' identities", &sql, &[&publication]).await?;
    let member = |row: &ask::Answer| {
        let tables: Vec<u32> = row.get("tables")?;
        Ok(Unidentified { name: row.name()?, tables: tables.into_iter().map(Oid::new).collect() })
    };
    rows.iter().map(member).collect()
}
