//! The stream of the source's changes, and whether it can go on.
//!
//! | module | what it does |
//! |---|---|
//! | [`replication`] | the walsender session: slot, snapshot, stream |
//! | [`gap`] | whether the stream can go on without losing a change |
//! | [`Dialect`] | what differs between servers 10 and 18 |
//!
//! Who connects, and when, is decided elsewhere.

mod dialect;
mod error;
pub mod gap;
pub mod history;
pub mod replication;
mod slot_info;

pub use dialect::Dialect;
pub use error::Error;
pub use slot_info::SlotInfo;
