//! Walferry moves live PostgreSQL databases to Aiven for PostgreSQL.
//!
//! Data flows one way, and a module imports only what stands below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`demo`] | servers of one's own: for the demo, the tests and the benchmarks |
//! | [`migrate`] | the migration: preflight, schema, copy, follow, remove; its phases |
//! | [`engine`] | one pipeline: what happens becomes events, events become effects |
//! | [`status`] | what a migration shows of itself: snapshot, lag, metrics, HTTP, terminal |
//! | [`apply`] | the target session: batches, positions, conflicts; and all that is remembered |
//! | [`plan`] | transactions in, statements out |
//! | [`assemble`] | messages in, transactions out |
//! | [`source`] | catalog queries, the slot, the replication session |
//! | [`wire`] | PostgreSQL connections: conninfo, TLS, SCRAM, COPY, pipelining |
//! | [`proto`] | the replication protocol: bytes in, enums out |
//! | [`config`] | what the user gave, validated once |
//! | [`migrate`] | what is checked before a migration |
//! | [`source`] | catalog queries, on either side |
//! | [`wire`] | connections to a server: conninfo, TLS, authentication, COPY, pipelining |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod assemble;
pub mod demo;
pub mod engine;
//! | [`cli`] | the commands, and what can be typed |
//! | [`status`] | what a migration shows of itself: snapshot, lag, metrics, HTTP, terminal |
//! | [`config`] | options as typed, and as checked |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod cli;
pub mod config;
pub mod error;
pub mod limits;
pub mod migrate;
pub mod pg;
pub mod plan;
pub mod proto;
pub mod status;
pub mod source;
pub mod wire;
