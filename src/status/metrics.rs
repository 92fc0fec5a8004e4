//! Metrics for Prometheus, in its text format.
//!
//! What the snapshot says (positions, lag, phase, tables, applied counts) is turned into metrics when somebody scrapes:
//! it cannot differ from `/status`, and a database that is gone leaves no metric behind. What the snapshot does not
//! hold (bytes, batches, latencies, reconnects, errors) is counted by [`Metrics`] where it happens. There is no global
//! registry. Positions are bytes since the start of WAL: a float has them exactly up to 8 PiB.

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::snapshot::{DatabaseStatus, StatusSnapshot};
use crate::error::{Failure, Side};
use crate::store::Phase;

/// All metrics of one process.
#[derive(Debug, Clone)]
pub struct MetricsRegistry {
    counted: Arc<Counted>,
}

/// What one database's pipeline counts. Cheap to clone and to call.
#[derive(Debug, Clone)]
pub struct Metrics {
    counted: Arc<Counted>,
    database: String,
    received_bytes: IntCounter,
    batch_changes: Histogram,
    batch_seconds: Histogram,
    commit_latency: Histogram,
    copy_rows: IntCounter,
    copy_bytes: IntCounter,
}

/// The metrics could not be made or written: names are fixed, so this is a mistake of ours.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the metrics")]
pub struct MetricsError(#[from] prometheus::Error);

#[derive(Debug)]
struct Counted {
    registry: Registry,
    received_bytes: IntCounterVec,
    batch_changes: HistogramVec,
    batch_seconds: HistogramVec,
    commit_latency: HistogramVec,
    copy_rows: IntCounterVec,
    copy_bytes: IntCounterVec,
    conflicts: IntCounterVec,
    ordered_batches: IntCounterVec,
    reconnects: IntCounterVec,
    errors: IntCounterVec,
}

impl MetricsRegistry {
    /// A registry in which nothing has been counted.
    ///
    /// # Errors
    /// None that can happen with fixed names; the library's signatures have them.
    pub fn new() -> Result<Self, MetricsError> {
        let counted = Counted::new()?;
        let build = IntGaugeVec::new(
            Opts::new("walferry_build_info", "1, with the program's version"),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        counted.registry.register(Box::new(build))?;
        counted.registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self { counted: Arc::new(counted) })
    }

    /// The handle of one database's pipeline. Its counters start at 0 at once, so that a rate sees the first event.
    pub fn database(&self, dbname: &str) -> Metrics {
        let counted = &self.counted;
        for side in [Side::Source, Side::Target] {
            counted.reconnects.with_label_values(&[dbname, side.as_str()]);
        }
        for class in [DEFINITE, TRANSIENT] {
            counted.errors.with_label_values(&[dbname, class]);
        }
        Metrics {
            database: dbname.to_owned(),
            received_bytes: counted.received_bytes.with_label_values(&[dbname]),
            batch_changes: counted.batch_changes.with_label_values(&[dbname]),
            batch_seconds: counted.batch_seconds.with_label_values(&[dbname]),
            commit_latency: counted.commit_latency.with_label_values(&[dbname]),
            copy_rows: counted.copy_rows.with_label_values(&[dbname]),
            copy_bytes: counted.copy_bytes.with_label_values(&[dbname]),
            counted: Arc::clone(counted),
        }
    }

    /// Everything as Prometheus reads it.
    ///
    /// # Errors
    /// None that can happen with fixed names; the library's signatures have them.
    pub fn encode(&self, snapshot: &StatusSnapshot) -> Result<String, MetricsError> {
        let mut families = self.counted.registry.gather();
        families.extend(from_snapshot(snapshot)?);
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Metrics {
    /// Bytes read from the replication socket.
    pub fn received_bytes(&self, bytes: u64) {
        self.received_bytes.inc_by(bytes);
    }

    /// A batch of so many changes was committed after so many seconds of work.
    pub fn batch(&self, changes: u64, seconds: f64) {
        self.batch_changes.observe(changes as f64);
        self.batch_seconds.observe(seconds);
    }

    /// Seconds from a transaction's commit on the source to its commit on the target.
    pub fn commit_latency(&self, seconds: f64) {
        self.commit_latency.observe(seconds.max(0.0));
    }

    /// Rows and bytes of COPY data that have reached the target.
    pub fn copied(&self, rows: u64, bytes: u64) {
        self.copy_rows.inc_by(rows);
        self.copy_bytes.inc_by(bytes);
    }

    /// A change met the target in a state in which it could not be applied as it is: `insert_exists`, say.
    pub fn conflict(&self, kind: &'static str) {
        self.conflicts(kind, 1);
    }

    /// So many such changes.
    pub fn conflicts(&self, kind: &'static str, count: u64) {
        self.counted.conflicts.with_label_values(&[self.database.as_str(), kind]).inc_by(count);
    }

    /// Counts a batch that was applied step by step.
    pub fn ordered_batch(&self, reason: &'static str) {
        self.counted.ordered_batches.with_label_values(&[self.database.as_str(), reason]).inc();
    }

    /// A connection was made again.
    pub fn reconnect(&self, side: Side) {
        self.counted.reconnects.with_label_values(&[self.database.as_str(), side.as_str()]).inc();
    }

    /// Something failed, whether it is tried again or not.
    pub fn error(&self, failure: &Failure) {
        let class = match failure {
            Failure::Definite(_) => DEFINITE,
            Failure::Transient(_) => TRANSIENT,
        };
        self.counted.errors.with_label_values(&[self.database.as_str(), class]).inc();
    }
}

const DEFINITE: &str = "definite";
const TRANSIENT: &str = "transient";

/// From one change to the largest batch.
const BATCH_CHANGES: [f64; 11] =
    [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 100_000.0, 1_000_000.0];

/// From a small batch on a local network to one that waits for a busy disk.
const BATCH_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// From a quiet stream to a night's outage.
const COMMIT_LATENCY_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3_600.0, 36_000.0];

impl Counted {
    fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name, help, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registered(&registry, counter)
        };
        let histogram = |name, help, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(options, &["database"])?)
        };
        Ok(Self {
            received_bytes: counter(
                "walferry_received_bytes_total",
                "Bytes read from the replication socket",
                &["database"],
            )?,
            batch_changes: histogram("walferry_batch_changes", "Changes in a batch", &BATCH_CHANGES)?,
            batch_seconds: histogram(
                "walferry_batch_seconds",
                "Seconds of work for a batch, commit included",
                &BATCH_SECONDS,
            )?,
            commit_latency: histogram(
                "walferry_commit_latency_seconds",
                "Seconds from a commit on the source to the same commit on the target",
                &COMMIT_LATENCY_SECONDS,
            )?,
            copy_rows: counter("walferry_copy_rows_total", "Rows copied", &["database"])?,
            copy_bytes: counter("walferry_copy_bytes_total", "Bytes of COPY data copied", &["database"])?,
            ordered_batches: counter(
                "walferry_ordered_batches_total",
                "Batches applied step by step, in the source's order, by reason",
                &["database", "reason"],
            )?,
            conflicts: counter(
                "walferry_conflicts_total",
                "Changes that the target could not take as they were",
                &["database", "kind"],
            )?,
            reconnects: counter(
                "walferry_reconnects_total",
                "Connections made again",
                &["database", "side"],
            )?,
            errors: counter(
                "walferry_errors_total",
                "Failures, those that were tried again included",
                &["database", "class"],
            )?,
            registry,
        })
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// What the snapshot says, in a registry of its own that lives for one scrape.
fn from_snapshot(snapshot: &StatusSnapshot) -> prometheus::Result<Vec<MetricFamily>> {
    let scrape = Scrape::new()?;
    for database in &snapshot.databases {
        scrape.fill(database);
    }
    Ok(scrape.registry.gather())
}

struct Scrape {
    registry: Registry,
    phase: IntGaugeVec,
    lag_bytes: IntGaugeVec,
    lag_seconds: GaugeVec,
    positions: [IntGaugeVec; 5],
    slot_retained_bytes: IntGaugeVec,
    spill_bytes: IntGaugeVec,
    slot_safe_bytes: IntGaugeVec,
    tables: IntGaugeVec,
    transactions: IntCounterVec,
    changes: IntCounterVec,
}

impl Scrape {
    fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let counter = |name, help, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let of_database = &["database"];
        Ok(Self {
            phase: gauge(
                "walferry_phase",
                "1 for the phase that the pipeline is in",
                &["database", "phase"],
            )?,
            lag_bytes: gauge(
                "walferry_replication_lag_bytes",
                "Bytes of WAL between the source's position and the applied one",
                of_database,
            )?,
            lag_seconds: registered(
                &registry,
                GaugeVec::new(
                    Opts::new("walferry_replication_lag_seconds", "Seconds that the target is behind"),
                    of_database,
                )?,
            )?,
            positions: [
                gauge("walferry_source_wal_lsn", "The source's WAL position, in bytes", of_database)?,
                gauge("walferry_received_lsn", "Read from the socket up to here", of_database)?,
                gauge("walferry_applied_lsn", "Committed on the target up to here", of_database)?,
                gauge("walferry_durable_lsn", "On the target's disk up to here", of_database)?,
                gauge("walferry_confirmed_lsn", "Confirmed to the source up to here", of_database)?,
            ],
            slot_retained_bytes: gauge(
                "walferry_slot_retained_bytes",
                "Bytes of WAL that the source keeps for the slot",
                of_database,
            )?,
            slot_safe_bytes: gauge(
                "walferry_slot_safe_bytes",
                "Bytes that may be written before the slot can be lost; absent without a limit",
                of_database,
            )?,
            spill_bytes: gauge(
                "walferry_spill_bytes",
                "Bytes of transactions in progress that are kept on disk here",
                of_database,
            )?,
            tables: gauge("walferry_tables", "Tables by state", &["database", "state"])?,
            transactions: counter(
                "walferry_applied_transactions_total",
                "Source transactions committed on the target",
                of_database,
            )?,
            changes: counter(
                "walferry_applied_changes_total",
                "Changes committed on the target",
                &["database", "kind"],
            )?,
            registry,
        })
    }

    fn fill(&self, database: &DatabaseStatus) {
        let name = database.dbname.as_str();
        let set = |gauge: &IntGaugeVec, value: Option<i64>| {
            if let Some(value) = value {
                gauge.with_label_values(&[name]).set(value);
            }
        };
        for phase in Phase::ALL {
            let here = i64::from(phase == database.phase);
            self.phase.with_label_values(&[name, phase.as_str()]).set(here);
        }
        set(&self.lag_bytes, database.lag_bytes.map(as_gauge));
        if let Some(seconds) = database.lag_seconds {
            self.lag_seconds.with_label_values(&[name]).set(seconds);
        }
        let positions =
            [database.source_wal, database.received, database.applied, database.durable, database.confirmed];
        for (gauge, position) in self.positions.iter().zip(positions) {
            set(gauge, position.map(|position| as_gauge(position.get())));
        }
        let slot = database.slot.as_ref();
        set(&self.slot_retained_bytes, slot.map(|slot| as_gauge(slot.retained_bytes)));
        set(&self.slot_safe_bytes, slot.and_then(|slot| slot.safe_bytes));
        set(&self.spill_bytes, Some(as_gauge(database.spill_bytes)));
        for (state, count) in database.tables_by_state() {
            self.tables.with_label_values(&[name, state.as_str()]).set(as_gauge(count as u64));
        }
        self.transactions.with_label_values(&[name]).inc_by(database.transactions_applied);
        for (kind, count) in database.changes_applied.by_kind() {
            self.changes.with_label_values(&[name, kind]).inc_by(count);
        }
    }
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Definite, Transient};
    use crate::pg::SourceLsn;

    fn registry() -> MetricsRegistry {
        MetricsRegistry::new().expect("fixed names")
    }

    #[track_caller]
    fn check(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn counted() {
        let registry = registry();
        let shop = registry.database("shop");
        let clone = shop.clone();
        shop.received_bytes(10);
        clone.received_bytes(5);
        shop.batch(40, 0.003);
        shop.commit_latency(-1.0);
        shop.copied(7, 70);
        shop.conflict("insert_exists");
        shop.ordered_batch("failed");
        shop.reconnect(Side::Target);
        shop.error(&Definite::new("slot is gone").into());
        shop.error(&Transient::new(Side::Source, "connection closed").into());
        registry.database("other \"db\"\n").received_bytes(1);
        let text = registry.encode(&StatusSnapshot::new("default")).expect("fixed names");
        check(
            &text,
            &[
                "walferry_received_bytes_total{database=\"shop\"} 15",
                "walferry_received_bytes_total{database=\"other \\\"db\\\"\\n\"} 1",
                "walferry_batch_changes_bucket{database=\"shop\",le=\"30\"} 0",
                "walferry_batch_changes_bucket{database=\"shop\",le=\"100\"} 1",
                "walferry_batch_changes_sum{database=\"shop\"} 40",
                "walferry_batch_seconds_bucket{database=\"shop\",le=\"0.005\"} 1",
                "walferry_commit_latency_seconds_sum{database=\"shop\"} 0",
                "walferry_copy_rows_total{database=\"shop\"} 7",
                "walferry_copy_bytes_total{database=\"shop\"} 70",
                "walferry_conflicts_total{database=\"shop\",kind=\"insert_exists\"} 1",
                "walferry_ordered_batches_total{database=\"shop\",reason=\"failed\"} 1",
                "walferry_reconnects_total{database=\"shop\",side=\"source\"} 0",
                "walferry_reconnects_total{database=\"shop\",side=\"target\"} 1",
                "walferry_errors_total{class=\"definite\",database=\"shop\"} 1",
                "walferry_errors_total{class=\"transient\",database=\"shop\"} 1",
                concat!("walferry_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            ],
        );
    }

    #[test]
    fn the_process_is_measured_by_the_names_that_others_use() {
        let text = registry().encode(&StatusSnapshot::new("default")).expect("fixed names");
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse::<f64>().expect("a number")
        };
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads"] {
            assert!(value(name) > 0.0, "{name}");
        }
        assert!(value("process_open_fds") < value("process_max_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }

    #[test]
    fn from_the_snapshot_and_gone_with_it() {
        let registry = registry();
        let mut snapshot = StatusSnapshot::new("default");
        let database = snapshot.database_mut("shop");
        database.phase = Phase::CatchingUp;
        database.lag_bytes = Some(1234);
        database.lag_seconds = Some(1.5);
        database.applied = Some(SourceLsn::new(1 << 40));
        database.transactions_applied = 3;
        database.changes_applied.updates = 9;
        for _ in 0..2 {
            // A second scrape must not count twice.
            let text = registry.encode(&snapshot).expect("fixed names");
            check(
                &text,
                &[
                    "walferry_phase{database=\"shop\",phase=\"catching_up\"} 1",
                    "walferry_phase{database=\"shop\",phase=\"syncing\"} 0",
                    "walferry_replication_lag_bytes{database=\"shop\"} 1234",
                    "walferry_replication_lag_seconds{database=\"shop\"} 1.5",
                    "walferry_applied_lsn{database=\"shop\"} 1099511627776",
                    "walferry_tables{database=\"shop\",state=\"copying\"} 0",
                    "walferry_applied_transactions_total{database=\"shop\"} 3",
                    "walferry_applied_changes_total{database=\"shop\",kind=\"update\"} 9",
                ],
            );
            assert!(!text.contains("walferry_durable_lsn"), "an unknown position is not 0:\n{text}");
            assert!(!text.contains("walferry_slot_"), "{text}");
        }
        let text = registry.encode(&StatusSnapshot::new("default")).expect("fixed names");
        assert!(!text.contains("shop"), "{text}");
    }
}
