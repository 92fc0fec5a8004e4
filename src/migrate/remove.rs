//! The end of a migration: everything that Walferry made goes, on both sides. Rows and tables stay.
//!
//! The target knows what was made on the source. Where it is dead, or knows nothing, only names tell: `--force` goes by
//! them. Where the source is dead, `--force` removes the target's side. Either way it is said what is left, and how to drop
//! that by hand.

use tokio_postgres::Client;

use crate::apply::TargetSession;
use crate::apply::store::{MigrationRow, RelationState, Store};
use crate::config::Method;
use crate::error::{Definite, Failure, Result, Side};
use crate::pg::Sql;
use crate::source::catalog;

use super::leftovers::{Leftovers, unseen_by_hand};
use super::phase::safe_to_remove;
use super::preflight::listed;
use super::{Phase, Sides, publications, snapshot, unknown_phase};

/// Drops slot, publications and the migration's rows; says what was dropped.
///
/// The source's side goes first, since the target's side knows its names.
///
/// # Errors
/// When an engine is at work; when the phase leaves something half done and `force` is not given; when a side cannot
/// be reached: with `force` the other side is removed all the same.
pub async fn remove(sides: &Sides, force: bool) -> Result<Vec<String>> {
    let target = match sides.target_client().await {
        Ok(target) => target,
        Err(failure) => return Err(without_target(sides, force, &failure).await),
    };
    let store = Store::new(&target, &sides.name);
    if !store.exists().await? {
        return by_name(sides, force).await;
    }
    match store.migration().await {
        Ok(None) => by_name(sides, force).await,
        Ok(Some(row)) => known(sides, force, &store, &row).await,
        Err(Failure::Definite(damaged)) if force => {
            tracing::warn!(
                cause = damaged.cause,
                detail = damaged.detail,
                "what it made on the source goes by name"
            );
            let _lock = TargetSession::lock(&sides.target, &sides.name, None).await?;
            let mut dropped = by_name(sides, force).await?;
            dropped.push(forget(sides, &store).await?);
            Ok(dropped)
        }
        Err(failure) => Err(failure),
    }
}

/// The target says what there is.
async fn known(sides: &Sides, force: bool, store: &Store<'_>, row: &MigrationRow) -> Result<Vec<String>> {
    let phase = Phase::from_name(&row.phase).ok_or_else(|| unknown_phase(&row.phase));
    if !force && !safe_to_remove(phase?) {
        return Err(Definite::new(format!("the migration is not finished: its phase is {}", row.phase))
            .detail(half_done(store).await?)
            .hint("to give it up all the same: `walferry remove --force`")
            .into());
    }
    // With the lock in hand no engine can be at work, and none can begin.
    let _lock = TargetSession::lock(&sides.target, &sides.name, None).await?;
    let mut dropped = Vec::new();
    if row.method == Method::Replication {
        match sides.source_client().await {
            Ok(source) => dropped = drop_on_source(&source, row).await?,
            Err(failure) if force => {
                forget(sides, store).await?;
                return Err(left_on_source(row, &failure).into());
            }
            Err(failure) => return Err(source_unreachable(&failure)),
        }
    }
    dropped.push(forget(sides, store).await?);
    Ok(dropped)
}

/// What would stay on the target, and not be what it seems.
async fn half_done(store: &Store<'_>) -> Result<String> {
    let rows = store.relations().await?;
    let left: Vec<String> = rows
        .iter()
        .filter(|row| row.state != RelationState::Copied)
        .map(|row| row.name.to_string())
        .collect();
    if left.is_empty() {
        return Ok(
            "every table was copied; what comes after that (indexes, constraints, later changes) would be \
                   missing on the target"
                .to_owned(),
        );
    }
    Ok(format!("these tables are not copied completely and would stay so on the target: {}", listed(&left)))
}

async fn drop_on_source(source: &Client, row: &MigrationRow) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    let slot =
        catalog::slot(source, row.slot.as_str()).await.map_err(|error| error.into_failure(Side::Source))?;
    if slot.is_some() {
        snapshot::drop_slot(source, &row.slot).await?;
        dropped.push(format!("replication slot {} on the source", row.slot));
    }
    for name in publications::drop_all(source, &row.publications).await? {
        dropped.push(format!("publication {name} on the source"));
    }
    Ok(dropped)
}

async fn forget(sides: &Sides, store: &Store<'_>) -> Result<String> {
    store.remove().await?;
    Ok(format!("migration {:?} in schema walferry on the target", sides.name))
}

/// The target is there, and knows of no such migration; the source may.
async fn by_name(sides: &Sides, force: bool) -> Result<Vec<String>> {
    let source = match sides.source_client().await {
        Ok(source) => source,
        Err(failure) => {
            tracing::warn!(%failure, "the source cannot be asked whether a migration left something there");
            return Ok(Vec::new());
        }
    };
    let found = Leftovers::find(&source, &sides.name).await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    if force {
        tracing::warn!(
            found = found.list(),
            "found on the source by name: dropped, as far as it is not in use"
        );
        return found.drop_all(&source).await;
    }
    let cause = format!(
        "the target knows of no migration {:?}, but the source has what one of that name left",
        sides.name
    );
    Err(Definite::new(cause)
        .detail(found.list())
        .hint(format!(
            "if they are of no migration to another target: `walferry remove --force`; by hand, on the source: {}",
            found.by_hand()
        ))
        .into())
}

/// What ends a removal whose target cannot be reached: the source's side is removed with `force`, else listed.
async fn without_target(sides: &Sides, force: bool, failure: &Failure) -> Failure {
    let source = match sides.source_client().await {
        Ok(source) => source,
        Err(other) => {
            return Definite::new("neither side can be reached: nothing is dropped")
                .detail(format!("{failure}; {other}"))
                .hint(format!("if the source still lives, run there: {}", unseen_by_hand(&sides.name)))
                .into();
        }
    };
    let found = match Leftovers::find(&source, &sides.name).await {
        Ok(found) => found,
        Err(failure) => return failure,
    };
    let listed = if found.is_empty() { "nothing".to_owned() } else { found.list() };
    let detail = format!("{failure}\nfound on the source by name: {listed}");
    if !force {
        return Definite::new("the target cannot be reached, and it alone knows what was made: nothing is dropped")
            .detail(detail)
            .hint(match found.by_hand() {
                nothing if nothing.is_empty() => "make the target reachable".to_owned(),
                by_hand => format!(
                    "make the target reachable; if it is gone for good: `walferry remove --force`, or by hand, on the \
                     source: {by_hand}"
                ),
            })
            .into();
    }
    tracing::warn!(found = listed, "found on the source by name: dropped, as far as it is not in use");
    let dropped = match found.drop_all(&source).await {
        Ok(dropped) => dropped,
        Err(failure) => return failure,
    };
    for object in &dropped {
        tracing::info!("dropped {object}");
    }
    Definite::new("the source's side is removed, the target could not be reached")
        .detail(detail)
        .hint("if the target still lives, run there: DROP SCHEMA walferry CASCADE, or `walferry remove --force` again")
        .into()
}

fn source_unreachable(failure: &Failure) -> Failure {
    Definite::new("the source cannot be reached: nothing is dropped")
        .detail(failure.to_string())
        .hint(
            "make it reachable; if it is gone for good: `walferry remove --force` removes the target's side",
        )
        .into()
}

/// The target's side is gone, the source's side could not be reached: how to drop that by hand.
fn left_on_source(row: &MigrationRow, failure: &Failure) -> Definite {
    let drop_slot = Sql::new("SELECT pg_drop_replication_slot(").literal(row.slot.as_str()).text(")");
    let drop_publications =
        Sql::new("DROP PUBLICATION ").list(&row.publications, ", ", |sql, name| sql.ident(name));
    Definite::new("the target's side is removed, the source could not be reached")
        .detail(failure.to_string())
        .hint(format!("if the source still lives, run there: {drop_slot}; {drop_publications};"))
}
