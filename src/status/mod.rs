//! What a running migration shows of itself: a snapshot, the lag, metrics, HTTP, and the terminal.
//!
//! The pipelines write to one [`StatusHandle`]; all the rest reads from it. Nothing here talks to a database, and
//! nothing here can stop a migration.

mod http;
pub mod json;
mod metrics;
mod page;
mod snapshot;
mod table;
mod terminal;
pub mod units;

pub use crate::config::Method;
pub use http::{Access, HttpServer, Observed, Token, not_ready};
pub use metrics::{Metrics, MetricsError, MetricsRegistry};
pub use snapshot::{
    ChangeCounts, DatabaseStatus, ServiceStatus, SlotStatus, StatusHandle, StatusSnapshot, TableState,
    TableStatus,
};
pub use table::text;
pub use terminal::{Screen, ScreenWriter, show};
