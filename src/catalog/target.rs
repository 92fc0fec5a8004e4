//! Tables as the one who writes to them needs to know them: keys, operators, triggers.

use std::collections::{HashMap, HashSet};

use super::operators::Operators;
use super::tables::{self, Index, Scope, TableColumn, TableKind};
use super::{Error, TargetClient, ask, dialect};
use crate::pg::{Oid, QualifiedName, Sql};

/// A table to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    /// `pg_class.oid` on this server.
    pub oid: Oid,
    /// Schema and name.
    pub name: QualifiedName,
    /// Whether rows are in it or in its partitions.
    pub kind: TableKind,
    /// Columns in order, without dropped ones.
    pub columns: Vec<TargetColumn>,
    /// What identifies a row: the primary key; else the narrowest unique index over NOT NULL columns that is neither
    /// deferrable nor partial nor over expressions; else a deferrable primary key; else empty.
    pub key: Vec<KeyColumn>,
    /// The key is a DEFERRABLE primary key: good to find rows by, but ON CONFLICT refuses it.
    pub key_deferrable: bool,
    /// Has a trigger or a rule that fires under `session_replication_role = replica`: ENABLE REPLICA or ALWAYS. A partitioned
    /// table's partitions may have more of them.
    pub has_replica_triggers: bool,
    /// Has a trigger that fires otherwise, a foreign key's included (on either side of it).
    pub has_origin_triggers: bool,
    /// Foreign keys of other tables refer to it.
    pub is_referenced: bool,
    /// Of a table that an extension has for rows of its users: which these are, `WHERE …` or empty for all.
    pub condition: Option<String>,
    /// Whether the current user may insert and delete rows.
    pub writable: bool,
}

/// A column of a table to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetColumn {
    /// The column.
    pub column: TableColumn,
    /// Its type's default btree equality, if there is one (json, xml, point have none).
    pub equality_operator: Option<QualifiedName>,
    /// What it and the text that it is compared with are to be cast to; `None` where the operator says it.
    pub cast: Option<QualifiedName>,
}

/// A column of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name, not quoted.
    pub name: String,
    /// Equality as the key's index has it: `OPERATOR(schema.=)` with it can use the index.
    pub equality_operator: QualifiedName,
}

impl TargetTable {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|column| column.column.name == name)
    }
}

/// The table of that name, if there is one: a view or foreign table is none.
///
/// # Errors
/// When the server does not answer.
pub async fn target_table(client: &TargetClient, name: &QualifiedName) -> Result<Option<TargetTable>, Error> {
    Ok(read(client, Scope::Named(name)).await?.pop())
}

/// Every user table of the current database, by schema and name.
///
/// # Errors
/// When the server does not answer.
pub async fn target_tables(client: &TargetClient) -> Result<Vec<TargetTable>, Error> {
    read(client, Scope::User).await
}

/// The columns of a table's index, without those that are only included; none where one is an expression, or where there
/// is no such index.
///
/// # Errors
/// When the server does not answer.
pub async fn index_columns(
    client: &TargetClient,
    index: &QualifiedName,
    table: &str,
) -> Result<Vec<String>, Error> {
    let sql = Sql::new("SELECT a.attname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid ")
        .text("JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace ")
        .text("CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (number, place) ")
        .text("JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number ")
        .text("WHERE n.nspname = $1 AND c.relname = $2 AND t.relname = $3 ")
        .text("AND i.indexprs IS NULL AND k.place <= i.indnkeyatts ORDER BY k.place");
    let rows = ask::rows(client, "an index", &sql, &[&index.schema, &index.name, &table]).await?;
    rows.iter().map(|row| row.get("attname")).collect()
}

async fn read(client: &TargetClient, scope: Scope<'_>) -> Result<Vec<TargetTable>, Error> {
    let dialect = dialect(client).await?;
    // Nothing is indexed by confrelid: what asks for each table goes through all constraints each time.
    let sql = Sql::new(
        "SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind, \
         EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled IN ('R', 'A')) \
         OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.ev_enabled IN ('R', 'A')) \
         AS replica_triggers, \
         EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled IN ('O', 'A') AND ",
    )
    .text(tables::FIRES_ON_CHANGES)
    .text(
        ") AS origin_triggers, c.oid IN (SELECT k.confrelid FROM pg_constraint k WHERE k.contype = 'f' \
         AND k.conrelid <> k.confrelid) AS referenced, (SELECT x.condition FROM pg_extension e, \
         unnest(e.extconfig, e.extcondition) x(oid, condition) WHERE x.oid = c.oid) AS condition, \
         coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT') \
         AND has_table_privilege(c.oid, 'DELETE') AND NOT row_security_active(c.oid), false) AS writable FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ",
    )
    .text(scope.filter())
    .text(" ORDER BY 2, 3");
    let params = scope.params();
    // All are asked at once, and take one round trip.
    let (rows, mut columns, mut indexes) = tokio::try_join!(
        ask::rows(client, "the target's tables", &sql, &params),
        tables::columns(client, dialect, scope),
        tables::indexes(client, dialect, scope),
    )?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let operators = Operators::read(client, types_of(&columns)).await?;
    let mut tables = Vec::with_capacity(rows.len());
    for row in &rows {
        let oid: u32 = row.get("oid")?;
        let columns = columns.remove(&oid).unwrap_or_default();
        let indexes = indexes.remove(&oid).unwrap_or_default();
        let (key, key_deferrable) = key(&indexes, &columns, &operators);
        let with_operator = |column: TableColumn| {
            let equality_operator = operators.of_type(column.type_oid.get()).cloned();
            let cast = operators.cast(column.type_oid.get()).cloned();
            TargetColumn { column, equality_operator, cast }
        };
        tables.push(TargetTable {
            oid: Oid::new(oid),
            name: row.name()?,
            kind: tables::kind(row)?,
            columns: columns.into_iter().map(with_operator).collect(),
            key,
            key_deferrable,
            has_replica_triggers: row.get("replica_triggers")?,
            has_origin_triggers: row.get("origin_triggers")?,
            is_referenced: row.get("referenced")?,
            condition: row.get("condition")?,
            writable: row.get("writable")?,
        });
    }
    Ok(tables)
}

fn types_of(columns: &HashMap<u32, Vec<TableColumn>>) -> Vec<u32> {
    let distinct: HashSet<u32> = columns.values().flatten().map(|column| column.type_oid.get()).collect();
    distinct.into_iter().collect()
}

/// The key, and whether it is a deferrable one. `indexes` come with the primary key first.
fn key(indexes: &[Index], columns: &[TableColumn], operators: &Operators) -> (Vec<KeyColumn>, bool) {
    let unique = indexes.iter().find(|index| index.identifies() && index.not_null(columns));
    let deferrable = || indexes.iter().find(|index| index.primary && index.covers_all());
    let Some(index) = unique.or_else(deferrable) else { return (Vec::new(), false) };
    let named = index.column_names(columns);
    let with_operator = |(name, class): (String, &u32)| {
        let equality_operator = operators.of_class(*class)?.clone();
        Some(KeyColumn { name, equality_operator })
    };
    let key: Option<Vec<_>> = named.into_iter().zip(&index.operator_classes).map(with_operator).collect();
    (key.unwrap_or_default(), !index.immediate)
}
