//! Compares two databases, row by row and value by value.
//!
//! Each side is read on one snapshot of its own, every table in the order of its rows' text, and the two are merged:
//! nothing is sampled or hashed, a row that exists twice counts twice, and memory holds one batch of rows a side. All
//! columns count, generated ones too. Nothing here waits for replication: quiet writers first, or differences are real.
//!
//! A difference's hint shows rows as they are. That is fit for servers of one's own, and for nothing else.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use tokio_postgres::Client;

use super::endpoint::rows;
use super::{Result, Server};
use crate::limits::DEMO_COMPARE_BATCH_ROWS;
use crate::pg::{QualifiedName, Sql};

/// What two databases have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Every plain table and leaf partition of either side, by name.
    pub tables: Vec<TableComparison>,
    /// Every sequence of either side, by name.
    pub sequences: Vec<SequenceComparison>,
}

/// One table on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableComparison {
    /// The table.
    pub name: QualifiedName,
    /// Its rows on the source; none where there is no such table.
    pub rows_source: Option<u64>,
    /// Its rows on the target; none where there is no such table.
    pub rows_target: Option<u64>,
    /// Rows that the source alone has, counting each as often as it has it more.
    pub only_source: u64,
    /// Rows that the target alone has.
    pub only_target: u64,
    /// The first thing that differs; none where the table is equal.
    pub first_difference: Option<String>,
}

/// One sequence on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceComparison {
    /// The sequence.
    pub name: QualifiedName,
    /// Its state on the source; none where there is no such sequence.
    pub source: Option<SequenceState>,
    /// Its state on the target; none where there is no such sequence.
    pub target: Option<SequenceState>,
}

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceState {
    /// `last_value`.
    pub last_value: i64,
    /// Whether `last_value` was already given out.
    pub is_called: bool,
}

impl Comparison {
    /// Whether everything is equal.
    pub fn equal(&self) -> bool {
        self.tables_equal() && self.sequences.iter().all(SequenceComparison::equal)
    }

    /// Whether all tables are equal; sequences are brought up to date at cutover only.
    pub fn tables_equal(&self) -> bool {
        self.tables.iter().all(TableComparison::equal)
    }

    /// The table of this name: `schema.table`, quoted where needed.
    pub fn table(&self, name: &str) -> Option<&TableComparison> {
        self.tables.iter().find(|table| table.name.to_string() == name)
    }

    /// All rows of the source.
    pub fn rows_source(&self) -> u64 {
        self.tables.iter().filter_map(|table| table.rows_source).sum()
    }
}

impl TableComparison {
    /// Whether both sides have the same rows in the same columns.
    pub const fn equal(&self) -> bool {
        self.first_difference.is_none()
    }
}

impl SequenceComparison {
    /// Whether the sequence stands at the same value on both sides.
    pub fn equal(&self) -> bool {
        self.source == self.target
    }
}

/// One line, and one more for whatever differs.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables: Vec<_> = self.tables.iter().filter(|table| !table.equal()).collect();
        let sequences: Vec<_> = self.sequences.iter().filter(|sequence| !sequence.equal()).collect();
        write!(
            f,
            "{} rows in {} tables, {} sequences: {} tables and {} sequences differ",
            self.rows_source(),
            self.tables.len(),
            self.sequences.len(),
            tables.len(),
            sequences.len()
        )?;
        for table in tables {
            let hint = table.first_difference.as_deref().unwrap_or_default();
            let (source, target) = (table.only_source, table.only_target);
            write!(
                f,
                "\n  {}: {source} rows on the source alone, {target} on the target alone; {hint}",
                table.name
            )?;
        }
        for sequence in sequences {
            write!(f, "\n  {}: source {:?}, target {:?}", sequence.name, sequence.source, sequence.target)?;
        }
        Ok(())
    }
}

/// Compares a database of one server with that of the same name of another.
///
/// # Errors
/// When a server refuses a statement.
pub async fn compare_servers(source: &Server, target: &Server, database: &str) -> Result<Comparison> {
    let (source, target) = tokio::try_join!(source.client(database), target.client(database))?;
    compare_databases(&source, &target).await
}

/// Compares what two sessions see; neither may be in a transaction, and both need to read all tables.
///
/// # Errors
/// When a server refuses a statement: a table dropped meanwhile, for one. The sessions are then good for nothing more.
pub async fn compare_databases(source: &Client, target: &Client) -> Result<Comparison> {
    tokio::try_join!(source.batch_execute(BEGIN), target.batch_execute(BEGIN))?;
    let (tables_source, tables_target) = tokio::try_join!(tables(source), tables(target))?;
    let names: BTreeSet<_> = tables_source.keys().chain(tables_target.keys()).collect();
    let mut comparison = Comparison::default();
    for name in names {
        let sides = (tables_source.get(name), tables_target.get(name));
        comparison.tables.push(compare_table(name, source, target, sides).await?);
    }
    let (sequences_source, sequences_target) = tokio::try_join!(sequences(source), sequences(target))?;
    let names: BTreeSet<_> = sequences_source.keys().chain(sequences_target.keys()).collect();
    comparison.sequences = names
        .into_iter()
        .map(|name| SequenceComparison {
            name: name.clone(),
            source: sequences_source.get(name).copied(),
            target: sequences_target.get(name).copied(),
        })
        .collect();
    tokio::try_join!(source.batch_execute("COMMIT"), target.batch_execute("COMMIT"))?;
    Ok(comparison)
}

/// Columns of a table in order: name and full type.
type Columns = Vec<(String, String)>;

/// The rows of one table of one side, in their text's order.
struct Stream<'a> {
    client: &'a Client,
    batch: VecDeque<String>,
    rows: u64,
}

impl<'a> Stream<'a> {
    async fn open(client: &'a Client, name: &QualifiedName, columns: &Columns) -> Result<Self> {
        let row = Sql::new("DECLARE walferry_rows NO SCROLL CURSOR FOR SELECT ROW(");
        let row = row.list(columns, ", ", |sql, (column, full_type)| match bytes_of(full_type) {
            Some(function) => sql.text(function).text("(t.").ident(column).text(")"),
            None => sql.text("t.").ident(column),
        });
        let cursor = row.text(")::text COLLATE \"C\" FROM ONLY ").name(name).text(" t ORDER BY 1");
        client.batch_execute(cursor.as_str()).await?;
        Ok(Self { client, batch: VecDeque::new(), rows: 0 })
    }

    /// Makes the next row the batch's first; false at the end.
    async fn fill(&mut self) -> Result<bool> {
        if self.batch.is_empty() {
            let fetch = Sql::new("FETCH ").number(DEMO_COMPARE_BATCH_ROWS).text(" FROM walferry_rows");
            let fetched = rows(self.client, fetch.as_str()).await?;
            self.batch = fetched.into_iter().filter_map(|mut row| row.pop().flatten()).collect();
            self.rows += self.batch.len() as u64;
        }
        Ok(!self.batch.is_empty())
    }

    async fn close(self) -> Result<u64> {
        self.client.batch_execute("CLOSE walferry_rows").await?;
        Ok(self.rows)
    }
}

/// Floating point is compared by its bytes: before 12, its exact text is another one.
fn bytes_of(full_type: &str) -> Option<&'static str> {
    match full_type {
        "real" => Some("float4send"),
        "double precision" => Some("float8send"),
        "point" => Some("point_send"),
        "box" => Some("box_send"),
        "path" => Some("path_send"),
        "circle" => Some("circle_send"),
        _ => None,
    }
}

/// Characters of a row that a hint shows.
const HINT_CHARS: usize = 300;

const BEGIN: &str = "
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL search_path = pg_catalog;
SET LOCAL DateStyle = ISO;
SET LOCAL IntervalStyle = postgres;
SET LOCAL TimeZone = 'UTC';
SET LOCAL extra_float_digits = 3;
SET LOCAL bytea_output = hex;
SET LOCAL xmloption = content;
SET LOCAL lc_monetary = 'C';
SET LOCAL quote_all_identifiers = off;
SET LOCAL row_security = off;
SET LOCAL statement_timeout = 0;
SET LOCAL client_encoding = 'UTF8'";

/// Members of extensions and the engine's own schema belong to one side only, or to the server.
const TABLES: &str = "
SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'walferry', 'aiven_extras')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY c.oid, a.attnum";

const SEQUENCES: &str = "
SELECT n.nspname, c.relname
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'walferry', 'aiven_extras')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

async fn compare_table(
    name: &QualifiedName,
    source: &Client,
    target: &Client,
    sides: (Option<&Columns>, Option<&Columns>),
) -> Result<TableComparison> {
    let mut table = TableComparison {
        name: name.clone(),
        rows_source: None,
        rows_target: None,
        only_source: 0,
        only_target: 0,
        first_difference: None,
    };
    match sides {
        (Some(columns), Some(same)) if columns == same => {
            merge(&mut table, source, target, columns).await?;
            return Ok(table);
        }
        (Some(_), Some(_)) => table.first_difference = Some("its columns differ".to_owned()),
        (Some(_), None) => table.first_difference = Some("the target has no such table".to_owned()),
        (None, _) => table.first_difference = Some("the source has no such table".to_owned()),
    }
    if sides.0.is_some() {
        table.rows_source = count(source, name).await?;
    }
    if sides.1.is_some() {
        table.rows_target = count(target, name).await?;
    }
    table.only_source = table.rows_source.unwrap_or(0);
    table.only_target = table.rows_target.unwrap_or(0);
    Ok(table)
}

async fn merge(
    table: &mut TableComparison,
    source: &Client,
    target: &Client,
    columns: &Columns,
) -> Result<()> {
    let mut left = Stream::open(source, &table.name, columns).await?;
    let mut right = Stream::open(target, &table.name, columns).await?;
    loop {
        let order = match tokio::try_join!(left.fill(), right.fill())? {
            (false, false) => break,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (true, true) => left.batch.front().cmp(&right.batch.front()),
        };
        let from_left = if order.is_le() { left.batch.pop_front() } else { None };
        let from_right = if order.is_ge() { right.batch.pop_front() } else { None };
        let (side, row) = match (from_left, from_right) {
            (Some(row), None) => {
                table.only_source += 1;
                ("source", row)
            }
            (None, Some(row)) => {
                table.only_target += 1;
                ("target", row)
            }
            _ => continue,
        };
        table.first_difference.get_or_insert_with(|| {
            let shown: String = row.chars().take(HINT_CHARS).collect();
            format!("first on the {side} alone: {shown}")
        });
    }
    table.rows_source = Some(left.close().await?);
    table.rows_target = Some(right.close().await?);
    Ok(())
}

async fn tables(client: &Client) -> Result<BTreeMap<QualifiedName, Columns>> {
    let mut tables: BTreeMap<QualifiedName, Columns> = BTreeMap::new();
    for row in rows(client, TABLES).await? {
        if let [Some(schema), Some(name), column, full_type] = row.as_slice() {
            let columns = tables.entry(QualifiedName::new(schema, name)).or_default();
            columns.extend(column.clone().zip(full_type.clone()));
        }
    }
    Ok(tables)
}

async fn sequences(client: &Client) -> Result<BTreeMap<QualifiedName, SequenceState>> {
    let mut sequences = BTreeMap::new();
    for row in rows(client, SEQUENCES).await? {
        let [Some(schema), Some(name)] = row.as_slice() else { continue };
        let name = QualifiedName::new(schema, name);
        let select = Sql::new("SELECT last_value, is_called FROM ").name(&name);
        let state = rows(client, select.as_str()).await?.pop().unwrap_or_default();
        if let [Some(last_value), Some(is_called)] = state.as_slice() {
            let last_value = last_value.parse().unwrap_or(0);
            sequences.insert(name, SequenceState { last_value, is_called: is_called == "t" });
        }
    }
    Ok(sequences)
}

async fn count(client: &Client, name: &QualifiedName) -> Result<Option<u64>> {
    let select = Sql::new("SELECT count(*) FROM ONLY ").name(name);
    let counted = rows(client, select.as_str()).await?.pop().and_then(|mut row| row.pop().flatten());
    Ok(counted.and_then(|text| text.parse().ok()))
}
