//! Walferry moves live PostgreSQL databases to Aiven for PostgreSQL.
//!
//! Data flows one way, and a module imports only what stands below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | the commands, and what can be typed |
//! | [`status`] | what a migration shows of itself: snapshot, lag, metrics, HTTP, terminal |
//! | [`config`] | options as typed, and as checked |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod cli;
pub mod config;
pub mod error;
pub mod limits;
pub mod pg;
pub mod status;
