//! Walferry moves live PostgreSQL databases to Aiven for PostgreSQL.
//!
//! Data flows one way, and a module imports only what stands below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`wire`] | connections to a server: conninfo, TLS, authentication, COPY, pipelining |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod error;
pub mod limits;
pub mod pg;
pub mod wire;
