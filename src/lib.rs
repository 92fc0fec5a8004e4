//! Walferry moves live PostgreSQL databases to Aiven for PostgreSQL.
//!
//! Data flows one way, and a module imports only what stands below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`migrate`] | what is checked before a migration |
//! | [`source`] | catalog queries, on either side |
//! | [`pg`] | positions, identifiers, names, SQL text |
//! | [`error`], [`limits`] | failures and bounds, for all of the above |

pub mod error;
pub mod limits;
pub mod migrate;
pub mod pg;
pub mod source;
