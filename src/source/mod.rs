//! What is asked of the source, and the stream of its changes.
//!
//! | module | what it does |
//! |---|---|
//! | [`catalog`] | questions over plain SQL sessions; many are asked of the target too |
//! | [`replication`] | the walsender session: slot, snapshot, stream |
//! | [`gap`] | whether the stream can go on without losing a change |
//! | [`Dialect`] | what differs between servers 10 and 18 |
//!
//! Questions change nothing and rely on `search_path = pg_catalog` alone. Who connects, and when, is decided elsewhere.

mod dialect;
mod error;
pub mod gap;
pub mod history;
pub mod replication;
mod slot_info;

pub use dialect::Dialect;
pub use error::Error;
pub use slot_info::SlotInfo;
