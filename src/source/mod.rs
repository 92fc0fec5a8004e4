//! Questions that are asked over plain SQL sessions.
//!
//! Most are asked of the source, some of the target too. Who connects, and with which session settings, is decided
//! elsewhere; what is asked here relies on `search_path = pg_catalog` alone. Nothing here changes a server.

mod ask;
pub mod catalog;
mod error;

pub use error::{Error, state_is_transient};
