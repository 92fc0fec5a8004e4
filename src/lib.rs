//! Walferry moves live PostgreSQL databases to Aiven for PostgreSQL.
//!
//! Data flows one way, and a module imports only what stands below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`proto`] | the replication protocol: bytes in, enums out |
//! | [`demo`] | servers of one's own: for the demo, the tests and the benchmarks |
//! | [`status`] | what a migration shows of itself: snapshot, lag, metrics, HTTP, terminal |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod demo;
pub mod error;
pub mod limits;
pub mod pg;
pub mod proto;
pub mod status;
