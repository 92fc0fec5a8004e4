//! What the source's schema was when the target's was made, beside its tables: `walferry.definition`, one row for each
//! index, constraint, default, view, function, trigger, rule and sequence; and how the source's differs by now, as the engine
//! found it last.
//!
//! `walferry.migration.definitions_at` says that they are recorded: an older Walferry recorded none. A NULL `statement` is
//! one that changed while the target's was made: it is not known which of them the target has.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::ToSql;

use super::{Store, damaged, failure};
use crate::catalog::{SchemaObject, SchemaObjectKey, SchemaObjectKind};
use crate::error::Result;
use crate::limits::ROWS_PER_STATEMENT;
use crate::pg::{Oid, QualifiedName};

/// An object of the source's schema, as the target's was made after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedObject {
    /// Which.
    pub key: SchemaObjectKey,
    /// Its identifier on the source.
    pub oid: Oid,
    /// What made it; `None` where that is not certain.
    pub statement: Option<String>,
}

/// An object of the source that the target has not as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDrift {
    /// What happened to it.
    pub change: SchemaChange,
    /// Kind and name, for people.
    pub object: String,
    /// What makes the target's as the source's is: SQL with every semicolon. The body of a function may hold anything, a
    /// password too: so it is empty where everybody may read it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub statement: String,
}

/// What happened to an object of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChange {
    /// It was made.
    Made,
    /// It was changed, or made anew.
    Changed,
    /// It was dropped.
    Dropped,
}

impl SchemaChange {
    /// `made`, `changed` or `dropped`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Changed => "changed",
            Self::Dropped => "dropped",
        }
    }
}

impl From<&SchemaObject> for RecordedObject {
    fn from(object: &SchemaObject) -> Self {
        Self { key: object.key.clone(), oid: object.oid, statement: Some(object.statement.clone()) }
    }
}

impl Store<'_> {
    /// What is recorded; `None` where nothing ever was.
    pub async fn definitions(&self) -> Result<Option<Vec<RecordedObject>>> {
        // What an older Walferry made has neither the column nor the table.
        let sql =
            "SELECT to_jsonb(m) ->> 'definitions_at' IS NOT NULL FROM walferry.migration m WHERE name = $1";
        let row = self.client().query_opt(sql, &[&self.name()]).await.map_err(failure)?;
        if row.is_none_or(|row| !row.get::<_, bool>(0)) {
            return Ok(None);
        }
        let sql = "SELECT kind, schema_name, table_name, name, source_oid, statement FROM walferry.definition
                   WHERE migration = $1";
        let rows = self.client().query(sql, &[&self.name()]).await.map_err(failure)?;
        let object = |row: &tokio_postgres::Row| {
            let kind: &str = row.get(0);
            let known = SchemaObjectKind::from_name(kind);
            let kind = known
                .ok_or_else(|| damaged(format!("walferry.definition holds the unknown kind {kind:?}")))?;
            let of = QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            Ok(RecordedObject {
                key: SchemaObjectKey { kind, of, name: row.get(3) },
                oid: Oid::new(row.get(4)),
                statement: row.get(5),
            })
        };
        rows.iter().map(object).collect::<Result<_>>().map(Some)
    }

    /// Records them for the first time; what a run that was killed over it has left is forgotten.
    pub async fn begin_definitions(&self, objects: &[RecordedObject]) -> Result<()> {
        self.execute("DELETE FROM walferry.definition WHERE migration = $1", &[&self.name()]).await?;
        self.add_definitions(objects).await?;
        let sql =
            "UPDATE walferry.migration SET definitions_at = pg_catalog.clock_timestamp() WHERE name = $1";
        self.execute(sql, &[&self.name()]).await
    }

    /// Records these, each in place of the one that has its key.
    pub async fn set_definitions(&self, objects: &[RecordedObject]) -> Result<()> {
        let keys: Vec<SchemaObjectKey> = objects.iter().map(|object| object.key.clone()).collect();
        self.forget_definitions(&keys).await?;
        self.add_definitions(objects).await
    }

    /// Forgets those of these keys.
    pub async fn forget_definitions(&self, keys: &[SchemaObjectKey]) -> Result<()> {
        let sql = "DELETE FROM walferry.definition d
                   USING unnest($2::text[], $3::text[], $4::text[], $5::text[]) k (kind, schema_name, table_name, name)
                   WHERE d.migration = $1
                       AND (d.kind, d.schema_name, d.table_name, d.name) = (k.kind, k.schema_name, k.table_name, k.name)";
        for keys in keys.chunks(ROWS_PER_STATEMENT) {
            let [kinds, schemas, tables, names] = columns(keys.iter());
            self.execute(sql, &[&self.name(), &kinds, &schemas, &tables, &names]).await?;
        }
        Ok(())
    }

    async fn add_definitions(&self, objects: &[RecordedObject]) -> Result<()> {
        let sql = "INSERT INTO walferry.definition
                       (migration, kind, schema_name, table_name, name, source_oid, statement)
                   SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::oid[], $7::text[])";
        for objects in objects.chunks(ROWS_PER_STATEMENT) {
            let [kinds, schemas, tables, names] = columns(objects.iter().map(|object| &object.key));
            let oids: Vec<u32> = objects.iter().map(|object| object.oid.get()).collect();
            let statements: Vec<Option<&str>> =
                objects.iter().map(|object| object.statement.as_deref()).collect();
            let params: [&(dyn ToSql + Sync); 7] =
                [&self.name(), &kinds, &schemas, &tables, &names, &oids, &statements];
            self.execute(sql, &params).await?;
        }
        Ok(())
    }

    /// Records how the source differs; says whether that is news.
    pub async fn set_schema_drift(&self, drift: &[SchemaDrift]) -> Result<bool> {
        let drift = serde_json::to_string(drift).expect("plain data becomes JSON");
        let sql = "UPDATE walferry.migration SET schema_drift = $2::text::jsonb
                   WHERE name = $1 AND coalesce(schema_drift, '[]') <> $2::text::jsonb";
        let changed = self.client().execute(sql, &[&self.name(), &drift]).await.map_err(failure)?;
        Ok(changed > 0)
    }

    /// How the source differed when the engine looked last; empty where it never did.
    pub async fn schema_drift(&self) -> Result<Vec<SchemaDrift>> {
        let sql =
            "SELECT coalesce(to_jsonb(m) ->> 'schema_drift', '[]') FROM walferry.migration m WHERE name = $1";
        let row = self.client().query_opt(sql, &[&self.name()]).await.map_err(failure)?;
        let Some(row) = row else { return Ok(Vec::new()) };
        serde_json::from_str(row.get(0))
            .map_err(|error| damaged(format!("walferry.migration.schema_drift: {error}")))
    }
}

/// Kinds, schemas, tables and names.
fn columns<'a>(keys: impl Iterator<Item = &'a SchemaObjectKey>) -> [Vec<&'a str>; 4] {
    let mut columns: [Vec<&str>; 4] = Default::default();
    for SchemaObjectKey { kind, of, name } in keys {
        let values = [kind.as_str(), of.schema.as_str(), of.name.as_str(), name.as_str()];
        columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
    columns
}
