//! The end of a migration: everything that Walferry made goes, on both sides. Rows and tables stay.

use crate::apply::TargetSession;
use crate::apply::store::{ChangedIdentity, MigrationRow, Store};
use crate::error::{Definite, Failure, Result, Side};
use crate::pg::Sql;
use crate::source::catalog;

use super::phase::safe_to_remove;
use super::uncarried::{before, put_back};
use super::{Phase, Sides, publications, snapshot, unknown_phase};

/// Drops slot, publications and the migration's rows; says what was dropped.
///
/// The source's side goes first, since the target's side knows its names.
///
/// # Errors
/// When an engine is at work; when the phase leaves something half done and `force` is not given; when a side cannot
/// be reached.
pub async fn remove(sides: &Sides, force: bool) -> Result<Vec<String>> {
    let target = sides.target_client().await?;
    let store = Store::new(&target, &sides.name);
    let row = if store.exists().await? { store.migration().await? } else { None };
    let Some(row) = row else { return Ok(Vec::new()) };
    let phase = Phase::from_name(&row.phase).ok_or_else(|| unknown_phase(&row.phase))?;
    if !safe_to_remove(phase) && !force {
        return Err(Definite::new(format!("the migration is not finished: its phase is {phase}"))
            .detail("tables that are not copied completely would stay on the target as they are")
            .hint("to give it up all the same: `walferry remove --force`")
            .into());
    }
    // With the lock in hand no engine can be at work, and none can begin.
    let lock = TargetSession::connect(&sides.target, &sides.name, None).await?;
    let identities = store.identities().await?;
    let source = match sides.source_client().await {
        Ok(source) => source,
        Err(failure) if force => {
            store.remove().await?;
            return Err(left_on_source(&row, &identities, &failure).into());
        }
        Err(failure) => return Err(failure),
    };
    let mut dropped = Vec::new();
    let slot =
        catalog::slot(&source, row.slot.as_str()).await.map_err(|error| error.into_failure(Side::Source))?;
    if slot.is_some() {
        snapshot::drop_slot(&source, &row.slot).await?;
        dropped.push(format!("replication slot {} on the source", row.slot));
    }
    for name in publications::drop_all(&source, &row.publications).await? {
        dropped.push(format!("publication {name} on the source"));
    }
    // Not before: a publication of updates makes the source refuse them where nothing identifies a row.
    for name in put_back(&source, &identities).await? {
        dropped
            .push(format!("REPLICA IDENTITY FULL of table {name} on the source: it has again what it had"));
    }
    store.remove().await?;
    dropped.push(format!("migration {:?} in schema walferry on the target", sides.name));
    drop(lock);
    Ok(dropped)
}

/// The target's side is gone, the source's side could not be reached: how to drop that by hand.
fn left_on_source(row: &MigrationRow, identities: &[ChangedIdentity], failure: &Failure) -> Definite {
    let drop_slot = Sql::new("SELECT pg_drop_replication_slot(").literal(row.slot.as_str()).text(")");
    let drop_publications =
        Sql::new("DROP PUBLICATION ").list(&row.publications, ", ", |sql, name| sql.ident(name));
    let identities: String =
        identities.iter().map(|changed| format!("; {}", before(&changed.name, changed))).collect();
    Definite::new("the target's side is removed, the source could not be reached")
        .detail(failure.to_string())
        .hint(format!("if the source still lives, run there: {drop_slot}; {drop_publications}{identities}"))
}
