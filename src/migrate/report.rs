//! A migration's status as its tables tell it: also when no engine runs.

use crate::apply::store::{MigrationRow, RelationState, Store};
use crate::error::{Definite, Result, Side};
use crate::source::catalog;
use crate::status::{DatabaseStatus, Method, SlotStatus, StatusSnapshot, TableState, TableStatus};

use super::{Phase, Sides, unknown_phase};

/// What is known of the migration. The source need not be reachable: then its side is left out.
///
/// # Errors
/// When the target cannot be reached, or knows of no such migration.
pub async fn status(sides: &Sides) -> Result<StatusSnapshot> {
    let client = sides.target_client().await?;
    let store = Store::new(&client, &sides.name);
    let row = if store.exists().await? { store.migration().await? } else { None };
    let row = row.ok_or_else(|| {
        Definite::new(format!("no migration {:?} has been begun on this target", sides.name))
            .hint("`walferry migrate` begins one")
    })?;
    let mut database = database(&store, &row).await?;
    if row.method == Method::Replication
        && let Err(failure) = ask(sides, &row, &mut database).await
    {
        tracing::warn!(%failure, "the source cannot be asked");
    }
    Ok(StatusSnapshot { migration: sides.name.clone(), databases: vec![database] })
}

async fn database(store: &Store<'_>, row: &MigrationRow) -> Result<DatabaseStatus> {
    let mut database = DatabaseStatus::new(row.dbname.clone());
    let shown = if row.ended.is_empty() { &row.phase } else { &row.ended };
    database.phase = Phase::from_name(shown).ok_or_else(|| unknown_phase(shown))?;
    database.method = row.method;
    database.method_reason.clone_from(&row.method_reason);
    database.error.clone_from(&row.error);
    database.started_at = row.started_at;
    if let Some((end, _)) = store.progress().await? {
        (database.applied, database.durable) = (Some(end.position()), Some(end.position()));
    }
    if row.method == Method::Replication {
        database.objects_on_source = vec![format!("replication slot {}", row.slot)];
        database.objects_on_source.extend(row.publications.iter().map(|name| format!("publication {name}")));
    }
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

async fn ask(sides: &Sides, row: &MigrationRow, database: &mut DatabaseStatus) -> Result<()> {
    let client = sides.source_client().await?;
    let wal = catalog::current_wal(&client).await.map_err(|error| error.into_failure(Side::Source))?;
    let slot =
        catalog::slot(&client, row.slot.as_str()).await.map_err(|error| error.into_failure(Side::Source))?;
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
