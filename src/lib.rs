//! Walferry moves live PostgreSQL databases to Aiven for PostgreSQL.
//!
//! Data flows one way, and a module imports only what stands below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | the commands, and what can be typed |
//! | `demo` | servers of one's own: for the demo, the tests and the benchmarks |
//! | [`migrate`] | the migration: preflight, schema, copy, follow, cutover, remove; its phases |
//! | [`engine`] | one pipeline: what happens becomes events, events become effects |
//! | [`status`] | what a migration shows of itself: snapshot, lag, metrics, HTTP, terminal |
//! | [`apply`] | the target session: batches, positions, conflicts |
//! | [`store`] | schema `walferry` on the target: all that is remembered |
//! | [`catalog`] | questions to the catalogs of either side |
//! | [`plan`] | transactions in, statements out |
//! | [`assemble`] | messages in, transactions out |
//! | [`spill`] | transactions in progress, on disk |
//! | [`source`] | the slot, the replication session, gaps |
//! | [`wire`] | PostgreSQL connections: conninfo, TLS, authentication, COPY, pipelining |
//! | [`proto`] | the replication protocol: bytes in, enums out |
//! | [`config`] | options as typed, and as checked |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod apply;
pub mod assemble;
pub mod catalog;
pub mod cli;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod engine;
pub mod error;
pub mod limits;
pub mod migrate;
pub mod pg;
pub mod plan;
pub mod proto;
pub mod source;
pub mod spill;
pub mod status;
pub mod store;
pub mod wire;
