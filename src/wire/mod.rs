//! Connections to a server: conninfo, TLS, authentication, queries, COPY, replication's COPY BOTH, pipelines.
//!
//! Our own frontend of protocol 3, since no released driver has COPY BOTH, forwards COPY data untouched, or lets many
//! statements share a Sync. For catalog queries it hands a connection over to tokio-postgres ([`control()`]).
//!
//! Not here: what replication messages mean (`proto`), SQL that asks something of a catalog (`source`, `apply`), and
//! trying again after a failure: an [`Error`] says whether that may help.
//!
//! No password, key or row's value is in any error, log line or `Debug` text.

mod auth;
mod body;
mod bounds;
mod channel;
mod connect;
mod conninfo;
mod control;
mod copy;
mod environment;
mod error;
mod inbox;
mod incoming;
mod passfile;
mod pipeline;
mod replication;
mod scram;
mod server_error;
mod service;
mod session;
mod sqlstate;
mod stall;
mod stream;
mod tcp;
mod tls;
mod verifier;

pub use connect::SessionOptions;
pub use conninfo::{ChannelBinding, ConnInfo, ConnInfoError, Host, SslMode, TargetSessionAttrs};
pub use control::{answers, control, control_listening};
pub use copy::{CopyIn, CopyOut, RelayError, Relayed, relay};
pub use environment::Environment;
pub use error::{AuthenticationError, Error, Result};
pub use pipeline::{Outcome, Pipeline, PipelineError};
pub use replication::{CopyBothReader, CopyBothWriter};
pub use server_error::ServerError;
pub use session::{Row, Session, TransactionStatus};
pub use tcp::Pace;
pub use tls::TlsError;
