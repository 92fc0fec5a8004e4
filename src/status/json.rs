//! The status as JSON, in the shape that Aiven's API and `aiven-db-migrate` have.
//!
//! `{"migration": {"error", "method", "status"}, "migration_detail": [{"dbname", "error", "method", "status", …}]}`.
//! The plain form has just these keys; the full one has more of them in each detail. Positions are text as
//! PostgreSQL prints them, times are RFC 3339 in UTC.

use serde::Serialize;
use serde_json::Value;

use super::snapshot::{DatabaseStatus, ServiceStatus, StatusSnapshot, TableStatus};
use crate::config::Method;
use crate::pg::{PgTimestamp, SourceLsn};
use crate::store::SchemaDrift;

/// The whole migration's status, made of its databases'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overall {
    /// The databases' errors; empty without one.
    pub error: String,
    /// The method that all databases have, else empty.
    pub method: &'static str,
    /// `waiting`, `running`, `syncing`, `done` or `failed`.
    pub status: &'static str,
}

impl Overall {
    /// Failed if any has failed, else running or waiting if any is, else what all are, else done.
    pub fn of(snapshot: &StatusSnapshot) -> Self {
        let databases = &snapshot.databases;
        let any = |status| databases.iter().any(|database| ServiceStatus::of(database.phase) == status);
        let all = |status| databases.iter().all(|database| ServiceStatus::of(database.phase) == status);
        let status = if any(ServiceStatus::Failed) {
            ServiceStatus::Failed
        } else if any(ServiceStatus::Running) {
            ServiceStatus::Running
        } else if databases.is_empty() || any(ServiceStatus::Waiting) {
            ServiceStatus::Waiting
        } else if all(ServiceStatus::Syncing) {
            ServiceStatus::Syncing
        } else {
            ServiceStatus::Done
        };
        Self { error: errors(databases), method: common_method(databases), status: status.as_str() }
    }
}

/// The status with all its keys: `status --json` and `/status`.
pub fn full(snapshot: &StatusSnapshot) -> Value {
    document(snapshot, |database| value(&Detail::of(database)))
}

/// The status with just Aiven's keys: `status --avn` and the path of Aiven's API.
pub fn avn(snapshot: &StatusSnapshot) -> Value {
    document(snapshot, |database| value(&AvnDetail::of(database)))
}

#[derive(Serialize)]
struct AvnDetail<'a> {
    dbname: &'a str,
    error: &'a str,
    method: &'static str,
    status: &'static str,
}

#[derive(Serialize)]
struct Detail<'a> {
    #[serde(flatten)]
    avn: AvnDetail<'a>,
    phase: &'static str,
    hint: &'a str,
    method_reason: &'a str,
    dumped_at: Option<&'a str>,
    source_wal_lsn: Option<String>,
    received_lsn: Option<String>,
    applied_lsn: Option<String>,
    durable_lsn: Option<String>,
    confirmed_lsn: Option<String>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<f64>,
    slot: Option<Slot<'a>>,
    objects_on_source: &'a [String],
    roles_shut: &'a [String],
    schema_drift: &'a [SchemaDrift],
    spill_bytes: u64,
    tables: Vec<Table<'a>>,
    transactions_applied: u64,
    changes_applied: Value,
    started_at: Option<String>,
    updated_at: Option<String>,
}

#[derive(Serialize)]
struct Slot<'a> {
    name: &'a str,
    retained_bytes: u64,
    safe_bytes: Option<i64>,
    wal_status: &'a str,
}

#[derive(Serialize)]
struct Table<'a> {
    schema: &'a str,
    name: &'a str,
    state: &'static str,
    rows_copied: u64,
    bytes_copied: u64,
    rows_estimated: Option<u64>,
    bytes_estimated: u64,
}

impl<'a> AvnDetail<'a> {
    fn of(database: &'a DatabaseStatus) -> Self {
        Self {
            dbname: &database.dbname,
            error: &database.error,
            method: database.method.as_str(),
            status: ServiceStatus::of(database.phase).as_str(),
        }
    }
}

impl<'a> Detail<'a> {
    fn of(database: &'a DatabaseStatus) -> Self {
        let slot = database.slot.as_ref().map(|slot| Slot {
            name: slot.name.as_str(),
            retained_bytes: slot.retained_bytes,
            safe_bytes: slot.safe_bytes,
            wal_status: &slot.wal_status,
        });
        let changes = database.changes_applied.by_kind();
        Self {
            avn: AvnDetail::of(database),
            phase: database.phase.as_str(),
            hint: &database.hint,
            method_reason: &database.method_reason,
            dumped_at: Some(database.dumped_at.as_str()).filter(|at| !at.is_empty()),
            source_wal_lsn: lsn(database.source_wal),
            received_lsn: lsn(database.received),
            applied_lsn: lsn(database.applied),
            durable_lsn: lsn(database.durable),
            confirmed_lsn: lsn(database.confirmed),
            lag_bytes: database.lag_bytes,
            lag_seconds: database.lag_seconds,
            slot,
            objects_on_source: &database.objects_on_source,
            roles_shut: &database.roles_shut,
            schema_drift: &database.schema_drift,
            spill_bytes: database.spill_bytes,
            tables: database.tables.iter().map(Table::of).collect(),
            transactions_applied: database.transactions_applied,
            changes_applied: changes
                .into_iter()
                .map(|(kind, count)| (kind.to_owned(), Value::from(count)))
                .collect(),
            started_at: database.started_at.map(time),
            updated_at: database.updated_at.map(time),
        }
    }
}

impl<'a> Table<'a> {
    fn of(table: &'a TableStatus) -> Self {
        Self {
            schema: &table.name.schema,
            name: &table.name.name,
            state: table.state.as_str(),
            rows_copied: table.rows_copied,
            bytes_copied: table.bytes_copied,
            rows_estimated: table.rows_estimated,
            bytes_estimated: table.bytes_estimated,
        }
    }
}

fn document(snapshot: &StatusSnapshot, detail: impl Fn(&DatabaseStatus) -> Value) -> Value {
    let details: Vec<_> = snapshot.databases.iter().map(detail).collect();
    serde_json::json!({ "migration": value(&Overall::of(snapshot)), "migration_detail": details })
}

/// Turning these into JSON cannot fail: all keys are text, and a number that JSON does not have becomes null.
fn value(part: &impl Serialize) -> Value {
    serde_json::to_value(part).unwrap_or(Value::Null)
}

fn errors(databases: &[DatabaseStatus]) -> String {
    let failed: Vec<_> = databases.iter().filter(|database| !database.error.is_empty()).collect();
    match failed.as_slice() {
        [only] => only.error.clone(),
        several => several
            .iter()
            .map(|database| format!("{}: {}", database.dbname, database.error))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn common_method(databases: &[DatabaseStatus]) -> &'static str {
    let first = databases.first().map(|database| database.method);
    let same = databases.iter().all(|database| Some(database.method) == first);
    if same { first.map_or("", Method::as_str) } else { "" }
}

fn lsn(position: Option<SourceLsn>) -> Option<String> {
    position.map(|position| position.to_string())
}

pub(super) fn time(at: PgTimestamp) -> String {
    jiff::Timestamp::from_microsecond(at.unix_micros()).map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pg::{QualifiedName, SlotName};
    use crate::status::snapshot::{SlotStatus, TableState};
    use crate::store::Phase;

    fn migration(databases: &[(Phase, Method, &str)]) -> StatusSnapshot {
        let mut snapshot = StatusSnapshot::new("default");
        for (index, (phase, method, error)) in databases.iter().enumerate() {
            let database = snapshot.database_mut(&format!("db{index}"));
            database.phase = *phase;
            database.method = *method;
            database.error = (*error).to_owned();
        }
        snapshot
    }

    #[test]
    fn overall() {
        use Method::{PgDump, Replication};
        use Phase::*;
        let check = |databases: &[(Phase, Method, &str)], error: &str, method: &str, status: &str| {
            let overall = Overall::of(&migration(databases));
            assert_eq!(
                (overall.error.as_str(), overall.method, overall.status),
                (error, method, status),
                "{databases:?}"
            );
        };
        check(&[], "", "", "waiting");
        check(&[(Waiting, Replication, "")], "", "replication", "waiting");
        check(&[(Stopped, PgDump, "")], "", "pg_dump", "waiting");
        check(&[(Syncing, Replication, ""), (CuttingOver, Replication, "")], "", "replication", "syncing");
        check(&[(Done, Replication, ""), (Done, PgDump, "")], "", "", "done");
        check(&[(Syncing, Replication, ""), (Done, PgDump, "")], "", "", "done");
        check(&[(Syncing, Replication, ""), (Copying, Replication, "")], "", "replication", "running");
        check(&[(Waiting, Replication, ""), (CatchingUp, Replication, "")], "", "replication", "running");
        check(&[(Waiting, Replication, ""), (Syncing, Replication, "")], "", "replication", "waiting");
        check(
            &[(Copying, Replication, ""), (Failed, Replication, "slot is gone")],
            "slot is gone",
            "replication",
            "failed",
        );
        check(&[(Failed, PgDump, "a"), (Failed, PgDump, "b")], "db0: a, db1: b", "pg_dump", "failed");
    }

    #[test]
    fn the_plain_form_has_just_the_keys_of_the_api() {
        let snapshot = migration(&[(Phase::Indexing, Method::Replication, "")]);
        let expected = json!({
            "migration": {"error": "", "method": "replication", "status": "running"},
            "migration_detail": [{"dbname": "db0", "error": "", "method": "replication", "status": "running"}],
        });
        assert_eq!(avn(&snapshot), expected);
    }

    #[test]
    fn the_full_form_has_more() {
        let mut snapshot = migration(&[(Phase::Syncing, Method::Replication, "")]);
        let database = &mut snapshot.databases[0];
        database.applied = Some(SourceLsn::new(0x1_0000_00FF));
        database.lag_bytes = Some(7);
        database.lag_seconds = Some(f64::NAN);
        database.started_at = Some(PgTimestamp::from_micros(1));
        database.slot = Some(SlotStatus {
            name: SlotName::new("walferry_default").expect("a slot's name"),
            retained_bytes: 10,
            safe_bytes: Some(-1),
            wal_status: "unreserved".to_owned(),
        });
        let mut table = TableStatus::new(QualifiedName::new("public", "Odd \"name\""), None, 8192);
        table.state = TableState::Streaming;
        database.tables.push(table);
        let detail = full(&snapshot)["migration_detail"][0].clone();
        let check = |pointer: &str, expected: Value| {
            assert_eq!(detail.pointer(pointer), Some(&expected), "{pointer}");
        };
        check("/dbname", json!("db0"));
        check("/status", json!("syncing"));
        check("/phase", json!("syncing"));
        check("/applied_lsn", json!("1/FF"));
        check("/durable_lsn", Value::Null);
        check("/lag_bytes", json!(7));
        check("/lag_seconds", Value::Null);
        check("/slot/safe_bytes", json!(-1));
        check("/tables/0/name", json!("Odd \"name\""));
        check("/tables/0/state", json!("streaming"));
        check("/changes_applied/insert", json!(0));
        check("/started_at", json!("2000-01-01T00:00:00.000001Z"));
    }
}
