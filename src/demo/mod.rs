//! Servers of one's own: PostgreSQL's programs, temporary servers, the sample shop, writers, and a comparison.
//!
//! The `demo` command, the end-to-end tests and the benchmarks stand on this. It is no part of a migration: nothing
//! here is used on servers that belong to somebody.

mod account;
mod binaries;
mod cluster;
mod compare;
mod endpoint;
mod error;
mod options;
mod packages;
mod sample;
mod server;
mod shop_writes;
mod show;
mod tls;
mod watchdog;
mod writers;

pub use binaries::PgBinaries;
pub use cluster::{
    APP_OWNER, AVNADMIN, ClusterOptions, DEFAULT_DATABASE, Login, SourceAndTarget, TriggerControl,
    prepare_source, prepare_target,
};
pub use compare::{
    Comparison, SequenceComparison, SequenceState, TableComparison, compare_databases, compare_servers,
};
pub use endpoint::Endpoint;
pub use error::{DemoError, Result};
pub use options::ServerOptions;
pub use sample::{SHOP_KEYLESS, load_pgbench, load_shop};
pub use server::{Server, StopMode};
pub use shop_writes::{SHOP_WRITES, ShopWrite};
pub use show::{ShowOptions, Stage, show};
pub use writers::{WriterCounts, WriterOptions, Writers};

/// The last `lines` lines of `text`.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
