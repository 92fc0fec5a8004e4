//! The end of a migration: everything that Walferry made goes, on both sides, of all its databases. Rows and tables stay.

use tokio::task::JoinSet;

use crate::apply::TargetSession;
use crate::apply::store::{ChangedIdentity, MigrationRow, Store};
use crate::error::{Definite, Exit, Failure, Result, Side};
use crate::pg::Sql;
use crate::source::catalog;

use super::choose::{Looked, look};
use super::cluster::worst;
use super::phase::safe_to_remove;
use super::uncarried::{before, put_back};
use super::{Phase, Sides, cutover, publications, snapshot, unknown_phase};

/// What was dropped, and how it ended.
#[derive(Debug)]
pub struct Removed {
    /// Each thing, as text fit for a person.
    pub dropped: Vec<String>,
    /// Of the database that ended worst.
    pub ended: Result<Exit>,
}

/// Drops slots, publications and the migration's rows of the databases in `only`, or of all where there are none.
///
/// Nothing at all is dropped where one of them is not finished and `force` is not given.
///
/// # Errors
/// When the target cannot be reached. What fails in one database does not keep the others.
pub async fn remove(sides: &Sides, only: &[String], force: bool) -> Result<Removed> {
    let target = sides.target_client().await?;
    let looked = look(sides, &target).await?;
    let mut ends = Vec::new();
    let mut rows = Vec::new();
    for Looked { name, begun } in looked.into_iter().filter(|it| only.is_empty() || only.contains(&it.name)) {
        match begun.and_then(|row| row.map(|row| finished(&row, force).map(|()| row)).transpose()) {
            Ok(row) => rows.extend(row.map(|row| (name, row))),
            Err(failure) => ends.push((name, Err(failure))),
        }
    }
    let mut dropped = Vec::new();
    if !ends.is_empty() && !force {
        ends.extend(rows.into_iter().map(|(name, _)| (name, Ok(Exit::Fine))));
        return Ok(Removed { dropped, ended: worst(ends) });
    }
    let several = rows.len() > 1;
    let mut work = JoinSet::new();
    for (name, row) in rows {
        let sides = sides.database(&name);
        work.spawn(async move {
            let mut dropped = Vec::new();
            let ended = remove_database(&sides, &row, force, &mut dropped).await;
            (name, dropped, ended)
        });
    }
    for (name, objects, ended) in work.join_all().await {
        let named = |object| if several { format!("{object}, database {name:?}") } else { object };
        dropped.extend(objects.into_iter().map(named));
        ends.push((name, ended.map(|()| Exit::Fine)));
    }
    Ok(Removed { dropped, ended: worst(ends) })
}

fn finished(row: &MigrationRow, force: bool) -> Result<()> {
    let phase = Phase::from_name(&row.phase).ok_or_else(|| unknown_phase(&row.phase))?;
    if safe_to_remove(phase) || force {
        return Ok(());
    }
    Err(Definite::new(format!("the migration is not finished: its phase is {phase}"))
        .detail("tables that are not copied completely would stay on the target as they are")
        .hint(
            "to give it up all the same: `walferry remove --force`; for one database only: `--database NAME`",
        )
        .into())
}

/// Both sides of one database: the source's goes first, since the target's knows its names.
async fn remove_database(
    sides: &Sides,
    row: &MigrationRow,
    force: bool,
    dropped: &mut Vec<String>,
) -> Result<()> {
    // With the lock in hand no engine can be at work, and none can begin.
    let lock = TargetSession::connect(&sides.target, &sides.name, None).await?;
    let target = sides.target_client().await?;
    let store = Store::new(&target, &sides.name);
    let identities = store.identities().await?;
    let source = match sides.source_client().await {
        Ok(source) => source,
        Err(failure) if force => {
            store.remove().await?;
            return Err(left_on_source(row, &identities, &failure).into());
        }
        Err(failure) => return Err(failure),
    };
    let phase = Phase::from_name(&row.phase).ok_or_else(|| unknown_phase(&row.phase))?;
    settle_fence(sides, &store, phase).await?;
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
    Ok(())
}

/// Takes down the fence of a cutover whose engine ended. That of one that is done stays: whoever still writes to the
/// source would lose what he writes.
async fn settle_fence(sides: &Sides, store: &Store<'_>, phase: Phase) -> Result<()> {
    let Some(fence) = cutover::left_fence(store).await? else { return Ok(()) };
    if phase != Phase::Done {
        for warning in cutover::lower(&sides.source, &fence, None).await? {
            tracing::warn!("{warning}");
        }
    } else if let Some(setting) = cutover::left_on_source(sides.source.dbname(), &fence) {
        tracing::warn!("left on the source, so that nobody writes to it by mistake: {setting}");
    }
    Ok(())
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
