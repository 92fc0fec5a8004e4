//! What replication does not carry, brought up to date while nobody writes.

use std::time::Duration;

use tokio_postgres::Client;

use crate::error::{Failure, Result, Side};
use crate::migrate::attempt::Attempt;
use crate::migrate::{objects, sequences};
use crate::pg::Sql;
use crate::source;
use crate::source::catalog::{self, Persistence, SequenceValues, Table, TableKind};

use super::fence::{at_source, some};

/// What was carried, and what was not.
#[derive(Debug)]
pub(super) struct Carried {
    /// Where the target's sequences stand now.
    pub sequences: SequenceValues,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

impl Attempt<'_> {
    /// Sequences, materialised views, in this order; `source` is a session that may write, and `left` what is left of
    /// the time that the cutover has.
    ///
    /// # Errors
    /// When either side refuses, or does not answer in time.
    pub(super) async fn carry_rest(&self, source: &Client, left: Duration) -> Result<Carried> {
        // A session of its own: one that is given up in the middle of a statement leaves it to the server.
        let target = self.migration.sides.target_client().await?;
        let bound = i64::try_from(left.as_millis()).unwrap_or(i64::MAX).max(1);
        let set = target.batch_execute(Sql::new("SET statement_timeout = ").number(bound).as_str()).await;
        set.map_err(|error| at_target("a bound on statements", error))?;
        let sequences = sequences::carry(source, &target).await?;
        objects::refresh_all_materialized_views(&target).await?;
        let mut warnings = Vec::new();
        let missing = missing_sequences(&target, &sequences).await?;
        if !missing.is_empty() {
            warnings.push(format!("sequences that the target does not have: {}", some(&missing)));
        }
        let tables = catalog::tables(source).await.map_err(at_source)?;
        let left_behind: Vec<String> =
            tables.iter().filter(|table| is_left_behind(table)).map(|table| table.name.to_string()).collect();
        if !left_behind.is_empty() {
            let names = some(&left_behind);
            warnings.push(format!("tables whose changes since the copy are missing on the target: {names}"));
        }
        let contents = catalog::other_contents(source).await.map_err(at_source)?;
        if contents.large_objects > 0 {
            warnings.push(format!("large objects that were not carried: {}", contents.large_objects));
        }
        Ok(Carried { sequences, warnings })
    }
}

/// Tables whose changes, or some of them, the stream does not have.
fn is_left_behind(table: &Table) -> bool {
    table.kind == TableKind::Plain && (table.persistence == Persistence::Unlogged || !table.has_identity())
}

/// Those of the tables that the target does not have.
pub(super) async fn missing_tables(
    target: &Client,
    tables: impl Iterator<Item = &Table>,
) -> Result<Vec<String>> {
    missing(target, tables.map(|table| Sql::default().name(&table.name).to_string()).collect()).await
}

async fn missing_sequences(target: &Client, sequences: &SequenceValues) -> Result<Vec<String>> {
    let names = sequences.values.iter().map(|value| Sql::default().name(&value.name).to_string());
    missing(target, names.collect()).await
}

/// Those of the quoted names that the target does not have.
async fn missing(target: &Client, names: Vec<String>) -> Result<Vec<String>> {
    let sql = "SELECT name FROM unnest($1::text[]) name WHERE to_regclass(name) IS NULL";
    let rows = target.query(sql, &[&names]).await;
    let rows = rows.map_err(|error| at_target("what it has", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn at_target(question: &'static str, error: tokio_postgres::Error) -> Failure {
    source::Error::new(question, error).into_failure(Side::Target)
}
