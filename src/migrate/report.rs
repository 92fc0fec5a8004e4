//! A migration's status as its tables tell it: also when no engine runs.

use crate::catalog::{self, SourceClient};
use crate::config::Selection;
use crate::error::{Definite, Failure, Result};
use crate::status::{DatabaseStatus, Method, SlotStatus, StatusSnapshot, TableState, TableStatus};
use crate::store::{MigrationRow, RelationState, Store};

use super::fenced::{self, Fenced};
use super::select::{Looked, look, not_begun, remembered, selected};
use super::{Phase, Sides, cutover};

/// What is known of the migration: of the databases in `only`, or of all where there are none. The source need not be
/// reachable: then its side is left out, and what is not begun, too.
///
/// # Errors
/// When the target cannot be reached, or knows of no such migration.
pub async fn status(sides: &Sides, only: &[String]) -> Result<StatusSnapshot> {
    let target = sides.target_client().await?;
    let looked = look(sides, &target).await?;
    let mut rows: Vec<(&str, &MigrationRow)> = Vec::new();
    let mut damaged = Vec::new();
    for Looked { name, begun } in
        looked.iter().filter(|looked| only.is_empty() || only.contains(&looked.name))
    {
        match begun {
            Ok(row) => rows.extend(row.as_ref().map(|row| (name.as_str(), row))),
            Err(failure) => damaged.push((name, failure)),
        }
    }
    if let (true, Some((_, failure))) = (rows.is_empty(), damaged.first()) {
        return Err(Failure::clone(failure));
    }
    if rows.is_empty() {
        let none = Definite::new(not_begun(&sides.name, None)).hint("`walferry migrate` begins one");
        return Err(fenced::with_unrecorded(sides, none).await.into());
    }
    let known = |name: &String| looked.iter().any(|it| it.name == *name && !matches!(it.begun, Ok(None)));
    for name in only.iter().filter(|name| !known(name)) {
        tracing::warn!("{}", not_begun(&sides.name, Some(name)));
    }
    let mut snapshot = StatusSnapshot::new(&sides.name);
    for (name, row) in &rows {
        let client = sides.database(name).target_client().await?;
        snapshot.databases.push(database(&Store::new(&client, &sides.name), row).await?);
    }
    for (name, failure) in damaged {
        let mut database = DatabaseStatus::new(name.clone());
        database.phase = Phase::Failed;
        database.set_error(failure);
        snapshot.databases.push(database);
    }
    if let Err(failure) = add_source(sides, &rows, only, &mut snapshot).await {
        tracing::warn!(%failure, "the source cannot be asked");
    }
    Ok(snapshot)
}

/// What the source says, and the databases that wait for their turn.
async fn add_source(
    sides: &Sides,
    rows: &[(&str, &MigrationRow)],
    only: &[String],
    snapshot: &mut StatusSnapshot,
) -> Result<()> {
    // Of a dump the source knows nothing, and when all are dumps, it may be gone.
    if only.len() == rows.len() && rows.iter().all(|(_, row)| row.method == Method::PgDump) {
        return Ok(());
    }
    let client = sides.source_client().await?;
    let read_only = fenced::read_only_databases(&client).await?;
    for ((_, row), database) in rows.iter().zip(&mut snapshot.databases) {
        let unrecorded = read_only.contains(&row.dbname)
            && !database.objects_on_source.iter().any(|object| object.starts_with(cutover::FENCED));
        if unrecorded {
            Fenced::new(&row.dbname).log();
        }
        if row.method == Method::Replication {
            ask(&client, row, database).await?;
        }
    }
    if only.is_empty() {
        let selection = remembered(&Selection::default(), rows);
        let on_source = catalog::all_databases(&client).await?;
        for name in selected(sides, &on_source, &selection, rows).await? {
            snapshot.database_mut(&name);
        }
        snapshot.databases.sort_by(|a, b| a.dbname.cmp(&b.dbname));
    }
    Ok(())
}

/// What the migration has made, or changed, on the source.
///
/// # Errors
/// When the target does not answer.
pub(super) async fn objects_on_source(store: &Store<'_>, row: &MigrationRow) -> Result<Vec<String>> {
    if row.method == Method::PgDump {
        return Ok(Vec::new());
    }
    let mut objects = vec![format!("replication slot {}", row.slot)];
    objects.extend(row.publications.iter().map(|name| format!("publication {name}")));
    let identities = store.identities().await?;
    objects
        .extend(identities.iter().map(|changed| format!("REPLICA IDENTITY FULL of table {}", changed.name)));
    let fence = cutover::left_fence(store, &row.dbname).await?;
    objects.extend(fence.and_then(|fence| cutover::left_on_source(&row.dbname, &fence)));
    Ok(objects)
}

async fn database(store: &Store<'_>, row: &MigrationRow) -> Result<DatabaseStatus> {
    let mut database = DatabaseStatus::new(row.dbname.clone());
    database.phase = row.shown_phase();
    database.method = row.method;
    database.method_reason.clone_from(&row.method_reason);
    database.dumped_at.clone_from(&row.dumped_at);
    database.error.clone_from(&row.error);
    database.started_at = row.started_at;
    if let Some((end, _)) = store.progress().await? {
        (database.applied, database.durable) = (Some(end.position()), Some(end.position()));
    }
    database.objects_on_source = objects_on_source(store, row).await?;
    database.roles_shut = store.shut_roles().await?;
    database.schema_drift = store.schema_drift().await?;
    for relation in store.relations().await? {
        database.tables.push(TableStatus {
            state: match relation.state {
                RelationState::Waiting => TableState::Waiting,
                RelationState::Copying => TableState::Copying,
                RelationState::Copied => TableState::Copied,
            },
            name: relation.name,
            rows_copied: relation.rows_copied.unsigned_abs(),
            bytes_copied: relation.bytes_copied.unsigned_abs(),
            rows_estimated: u64::try_from(relation.rows_estimated).ok(),
            bytes_estimated: relation.bytes_estimated.unsigned_abs(),
        });
    }
    Ok(database)
}

async fn ask(client: &SourceClient, row: &MigrationRow, database: &mut DatabaseStatus) -> Result<()> {
    let wal = catalog::current_wal(client).await?;
    let slot = catalog::slot(client, row.slot.as_str()).await?;
    database.source_wal = Some(wal);
    database.lag_bytes = database.applied.map(|applied| wal.bytes_since(applied));
    database.confirmed = slot.as_ref().and_then(|slot| slot.confirmed_flush_lsn);
    database.slot = slot.map(|slot| SlotStatus {
        name: row.slot.clone(),
        retained_bytes: slot.retained_bytes.unwrap_or(0),
        safe_bytes: slot.safe_wal_size,
        wal_status: slot.wal_status.unwrap_or_default(),
    });
    Ok(())
}
