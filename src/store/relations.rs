//! `walferry.relation`: a migration's tables, where each is, and which table of either side its name means.

use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, ToSql};

use super::{AsCopied, Store, damaged, failure};
use crate::error::Result;
use crate::limits::ROWS_PER_STATEMENT;
use crate::pg::{Oid, QualifiedName, RelationId, SourceLsn, Sql};

/// `walferry.relation`'s row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationRow {
    /// The table.
    pub name: QualifiedName,
    /// Where it is.
    pub state: RelationState,
    /// The snapshot that its copy was made on: later transactions are streamed.
    pub copy_lsn: Option<SourceLsn>,
    /// Rows copied.
    pub rows_copied: i64,
    /// Bytes copied, as they went over the wire.
    pub bytes_copied: i64,
    /// Rows that were expected.
    pub rows_estimated: i64,
    /// Bytes that were expected, as the table takes on disk.
    pub bytes_estimated: i64,
    /// What the table was on the source when it was copied; `None` where that is not known.
    pub origin: Option<Origin>,
    /// Its definition then; `None` before the copy, and where an older Walferry copied it.
    pub definition: Option<AsCopied>,
    /// The target's table: `pg_class.oid`, from the copy on.
    pub target_oid: Option<Oid>,
}

/// Which table of the source it is, and what it was when it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// `pg_class.oid`.
    pub id: RelationId,
    /// `pg_class.relfilenode`: another one now means that the table was rewritten or emptied since.
    pub filenode: u32,
    /// `pg_class.relnatts`: columns with greater numbers were added since.
    pub attributes: i16,
}

/// How far a table's rows are, as it is stored.
///
/// ```text
/// waiting ─▶ copying ─▶ copied     copied ─▶ copying: its rows are replaced
///    └──────────────────▶┘         (at cutover, by resync, or since it was redefined)
/// ```
///
/// Whether a copied table is streamed to is not stored: it is while the stream runs (`status::TableState::Streaming`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelationState {
    /// Not begun. Set when the table is chosen, at the start or as a new partition.
    Waiting,
    /// Being copied: after a restart it is copied afresh. Set by the copy before a large table's first row, and by whoever
    /// has a copied table copied again, before its rows are touched.
    Copying,
    /// Copied: changes that committed at `copy_lsn` or later are streamed to it. Set by the copy, in the transaction of its
    /// last rows; and where a copy at cutover turns out not to be needed, or was the last one (`done`).
    Copied,
}

impl RelationState {
    /// The name, as stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Copied => "copied",
        }
    }

    /// Whether a table may go from one state to another. Staying is always legal.
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (from, to) if from == to => true,
            // A small table is copied before anybody could have seen it.
            (Self::Waiting | Self::Copying | Self::Copied, Self::Copying | Self::Copied) => true,
            (_, Self::Waiting) => false,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::Waiting, Self::Copying, Self::Copied]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| damaged(format!("walferry.relation holds the unknown state {text:?}")))
    }
}

impl RelationRow {
    /// Goes on to `next`: the only way to change the state of a row that there is.
    ///
    /// # Panics
    /// When [`RelationState::may_become`] has no such move.
    pub fn enter(&mut self, next: RelationState) {
        let legal = self.state.may_become(next);
        assert!(legal, "{} cannot go from {} to {}", self.name, self.state.as_str(), next.as_str());
        self.state = next;
    }
}

impl Store<'_> {
    /// The tables.
    pub async fn relations(&self) -> Result<Vec<RelationRow>> {
        // `status` may look at what an older Walferry made, where the last columns are missing.
        let sql = "SELECT schema_name, table_name, state, copy_lsn, rows_copied, bytes_copied, rows_estimated, bytes_estimated,
                       (to_jsonb(r) ->> 'source_oid')::oid, (to_jsonb(r) ->> 'source_filenode')::oid,
                       (to_jsonb(r) ->> 'source_attributes')::int2, to_jsonb(r) ->> 'source_definition',
                       (to_jsonb(r) ->> 'target_oid')::oid
                   FROM walferry.relation r WHERE migration = $1 ORDER BY schema_name, table_name";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        rows.iter().map(relation).collect()
    }

    /// Records the tables to copy; those that are recorded already stay as they are.
    pub async fn begin_relations(&self, rows: &[RelationRow]) -> Result<()> {
        let sql = "INSERT INTO walferry.relation
                       (migration, schema_name, table_name, state, rows_estimated, bytes_estimated, source_oid,
                        source_filenode, source_attributes)
                   SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::oid[],
                       $8::oid[], $9::int2[]) ON CONFLICT DO NOTHING";
        for rows in rows.chunks(ROWS_PER_STATEMENT) {
            let (mut schemas, mut tables, mut states) = (Vec::new(), Vec::new(), Vec::new());
            let (mut estimates, mut bytes) = (Vec::new(), Vec::new());
            let (mut oids, mut filenodes, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                schemas.push(row.name.schema.as_str());
                tables.push(row.name.name.as_str());
                states.push(row.state.as_str());
                estimates.push(row.rows_estimated);
                bytes.push(row.bytes_estimated);
                let (oid, filenode, count) = origin_params(row.origin);
                oids.push(oid);
                filenodes.push(filenode);
                attributes.push(count);
            }
            let params: [&(dyn ToSql + Sync); 9] =
                [&self.name, &schemas, &tables, &states, &estimates, &bytes, &oids, &filenodes, &attributes];
            self.execute(sql, &params).await?;
        }
        Ok(())
    }

    /// Records which table of the source a name means now, and what it is before it is copied.
    pub async fn set_origin(&self, name: &QualifiedName, origin: Origin) -> Result<()> {
        let sql = "UPDATE walferry.relation SET source_oid = $4, source_filenode = $5, source_attributes = $6
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3";
        let (oid, filenode, attributes) = origin_params(Some(origin));
        self.execute(sql, &[&self.name, &name.schema, &name.name, &oid, &filenode, &attributes]).await
    }

    /// Records what a copied table is now on the source: its rows are those that were copied, and what the stream brought.
    pub async fn set_definition(
        &self,
        name: &QualifiedName,
        origin: Origin,
        definition: &AsCopied,
    ) -> Result<()> {
        let sql =
            "UPDATE walferry.relation SET source_oid = $4, source_filenode = $5, source_attributes = $6,
                       source_definition = $7::text::jsonb, target_oid = pg_catalog.to_regclass($8)::oid
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3 AND state = 'copied'";
        let (oid, filenode, attributes) = origin_params(Some(origin));
        let (definition, quoted) = (definition_text(definition), Sql::default().name(name).to_string());
        let params: [&(dyn ToSql + Sync); 8] =
            [&self.name, &name.schema, &name.name, &oid, &filenode, &attributes, &definition, &quoted];
        self.execute(sql, &params).await
    }

    /// Forgets a table: it is no part of the migration any more.
    pub async fn remove_relation(&self, name: &QualifiedName) -> Result<()> {
        let sql =
            "DELETE FROM walferry.relation WHERE migration = $1 AND schema_name = $2 AND table_name = $3";
        self.execute(sql, &[&self.name, &name.schema, &name.name]).await
    }

    /// Records which table of the source a name means, where that is not known yet.
    pub async fn set_identity(&self, name: &QualifiedName, id: RelationId) -> Result<()> {
        let sql = "UPDATE walferry.relation SET source_oid = $4
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3 AND source_oid IS NULL";
        self.execute(sql, &[&self.name, &name.schema, &name.name, &id.get()]).await
    }

    /// Records that a table was renamed on both sides.
    pub async fn rename_relation(&self, from: &QualifiedName, to: &QualifiedName) -> Result<()> {
        let sql = "UPDATE walferry.relation SET schema_name = $4, table_name = $5
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3";
        self.execute(sql, &[&self.name, &from.schema, &from.name, &to.schema, &to.name]).await
    }

    /// Records that tables were renamed, all at once: names may go round among them.
    pub async fn rename_relations(&self, renamed: &[(&QualifiedName, &QualifiedName)]) -> Result<()> {
        let mut sql = Sql::new("BEGIN");
        let rename = |sql: Sql, from: (&str, &str), to: (&str, &str)| {
            let sql = sql.text("; UPDATE walferry.relation SET schema_name = ").literal(to.0);
            let sql =
                sql.text(", table_name = ").literal(to.1).text(" WHERE migration = ").literal(self.name);
            sql.text(" AND schema_name = ").literal(from.0).text(" AND table_name = ").literal(from.1)
        };
        // No table has an empty schema.
        let places: Vec<String> = (0..renamed.len()).map(|place| place.to_string()).collect();
        for (place, (from, _)) in places.iter().zip(renamed) {
            sql = rename(sql, (&from.schema, &from.name), ("", place));
        }
        for (place, (_, to)) in places.iter().zip(renamed) {
            sql = rename(sql, ("", place), (&to.schema, &to.name));
        }
        self.client.batch_execute(sql.text("; COMMIT").as_str()).await.map_err(failure)
    }

    /// Records that a table has to be copied again, emptied before.
    pub async fn copy_again(&self, name: &QualifiedName) -> Result<()> {
        let sql = "UPDATE walferry.relation SET state = 'copying'
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3 AND state <> 'waiting'";
        self.execute(sql, &[&self.name, &name.schema, &name.name]).await
    }

    /// Records that these tables are as the stream goes on with them, though they were to be copied again.
    pub async fn keep(&self, names: &[QualifiedName]) -> Result<()> {
        let sql = "UPDATE walferry.relation r SET state = 'copied' FROM unnest($2::text[], $3::text[]) k (schema_name, table_name)
                   WHERE r.migration = $1 AND r.state = 'copying' AND r.copy_lsn IS NOT NULL
                       AND r.schema_name = k.schema_name AND r.table_name = k.table_name";
        let (schemas, tables): (Vec<&str>, Vec<&str>) =
            names.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
        self.execute(sql, &[&self.name, &schemas, &tables]).await
    }

    /// Records what became of a table's copy.
    pub async fn set_relation(&self, row: &RelationRow) -> Result<()> {
        self.client.batch_execute(set_relation(self.name, row).as_str()).await.map_err(failure)
    }
}

/// The statement that records what became of a table's copy, for the transaction that copies it: what the source's table
/// was, and which one of the target has its rows.
pub fn set_relation(migration: &str, row: &RelationRow) -> Sql {
    let sql = Sql::new("UPDATE walferry.relation SET state = ").literal(row.state.as_str());
    let sql = match row.origin {
        Some(origin) => sql
            .text(", source_oid = ")
            .number(origin.id.get())
            .text(", source_filenode = ")
            .number(origin.filenode)
            .text(", source_attributes = ")
            .number(origin.attributes),
        None => sql,
    };
    let sql = match &row.definition {
        Some(definition) => sql.text(", source_definition = ").literal(&definition_text(definition)),
        None => sql.text(", source_definition = NULL"),
    };
    let name = Sql::default().name(&row.name).to_string();
    let sql = sql.text(", target_oid = pg_catalog.to_regclass(").literal(&name).text(")::oid");
    let sql = match row.copy_lsn {
        Some(lsn) => sql.text(", copy_lsn = ").literal(&lsn.to_string()),
        None => sql.text(", copy_lsn = NULL"),
    };
    sql.text(", rows_copied = ")
        .number(row.rows_copied)
        .text(", bytes_copied = ")
        .number(row.bytes_copied)
        .text(" WHERE migration = ")
        .literal(migration)
        .text(" AND schema_name = ")
        .literal(&row.name.schema)
        .text(" AND table_name = ")
        .literal(&row.name.name)
}

fn relation(row: &Row) -> Result<RelationRow> {
    Ok(RelationRow {
        name: QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        state: RelationState::parse(row.get(2))?,
        copy_lsn: row.get::<_, Option<PgLsn>>(3).map(|lsn| SourceLsn::new(lsn.into())),
        rows_copied: row.get(4),
        bytes_copied: row.get(5),
        rows_estimated: row.get(6),
        bytes_estimated: row.get(7),
        origin: origin(row),
        definition: match row.get::<_, Option<&str>>(11).map(serde_json::from_str).transpose() {
            Ok(definition) => definition,
            Err(error) => return Err(damaged(format!("walferry.relation.source_definition: {error}"))),
        },
        target_oid: row.get::<_, Option<u32>>(12).map(Oid::new),
    })
}

/// As `walferry.relation` has it.
pub fn definition_text(definition: &AsCopied) -> String {
    serde_json::to_string(definition).expect("plain data becomes JSON")
}

/// All of it or nothing, but for the identifier, which alone says nothing of a rewritten file: zero is no file's.
fn origin(row: &Row) -> Option<Origin> {
    let id = row.get::<_, Option<u32>>(8).map(RelationId::new)?;
    let (filenode, attributes): (Option<u32>, Option<i16>) = (row.get(9), row.get(10));
    Some(Origin { id, filenode: filenode.unwrap_or(0), attributes: attributes.unwrap_or(i16::MAX) })
}

fn origin_params(origin: Option<Origin>) -> (Option<u32>, Option<u32>, Option<i16>) {
    let known = |origin: &Origin| (origin.id.get(), origin.filenode, origin.attributes);
    let known = origin.as_ref().map(known);
    (known.map(|known| known.0), known.map(|known| known.1), known.map(|known| known.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_moves() {
        use RelationState::{Copied, Copying, Waiting};
        let check = |from: RelationState, expected: [bool; 3]| {
            let found = [Waiting, Copying, Copied].map(|next| from.may_become(next));
            assert_eq!(found, expected, "{from:?}");
        };
        check(Waiting, [true, true, true]);
        check(Copying, [false, true, true]);
        check(Copied, [false, true, true]);
    }
}
