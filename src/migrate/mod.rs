//! The migration as a whole: what is checked, made, copied, followed and recorded around the pipelines.
//!
//! | module | what it does |
//! |---|---|
//! | [`cluster`], [`mod@select`] | all databases, and which they are |
//! | [`mod@preflight`], [`mod@check`] | what stands in the way, before anything is made |
//! | [`attempt`] | one run of one database from the stored phase on; a transient failure leads to the next one |
//! | [`creation`] | the database itself, on the target |
//! | [`filter`] | which tables |
//! | [`publications`], [`snapshot`] | what is made on the source |
//! | [`roles`] | roles, ownership, grants, the database's properties |
//! | [`apply_role`] | the role that writes rows where they call code of their owners |
//! | [`dump`], [`objects`], [`foreign_keys`] | schema, indexes, constraints |
//! | [`copy`], [`late_copy`], [`sequences`] | rows, and where sequences stand |
//! | [`uncarried`] | what the stream does not bring |
//! | [`partitions`] | partitions that come while the others are followed |
//! | [`follow`], [`drift`] | the pipeline, and what goes on beside it |
//! | [`open`] | the target, shut to the source's roles until all is done |
//! | [`dump_restore`] | the other method: one dump and restore, nothing to follow |
//! | [`mod@cutover`] | the end of the source's writes, and of the migration |
//! | [`mod@tail`] | the changes themselves, to look at |
//! | [`report`], [`mod@resync`] | what is shown of, and done to, a migration that need not run |
//! | [`mod@remove`], [`leftovers`] | its end |
//! | [`fenced`] | a source that is read only, and nobody knows why |
//!
//! All that is remembered is on the target ([`crate::store`]), so that there is one way to start: read the
//! phase and go on.

mod apply_role;
mod attempt;
mod beside;
mod check;
mod cluster;
mod copy;
mod creation;
mod cutover;
mod definitions;
mod drift;
pub mod dump;
mod dump_restore;
mod fenced;
mod filter;
mod first;
mod follow;
mod foreign_keys;
mod late_copy;
mod leftovers;
mod objects;
mod open;
mod pairing;
mod partitions;
pub mod preflight;
mod publications;
mod remove;
mod report;
mod resync;
mod retry;
pub mod roles;
mod schema_drift;
mod select;
mod sequences;
mod snapshot;
mod tail;
mod uncarried;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinSet;
use tokio_postgres::Notification;

use crate::catalog::{SourceClient, TargetClient};
use crate::config::{
    Config, Contents, Ddl, FenceCommands, Method, OnConflict, Selection, TableFilter, Until,
};
use crate::error::{Definite, Exit, Result, Side};
use crate::limits::CHECK_STATEMENT_MAX;
use crate::status::{MetricsRegistry, StatusHandle};
use crate::wire::{ConnInfo, Environment};

pub use crate::store::Phase;
pub use check::check;
pub use cluster::Cluster;
pub use cutover::{CutoverRequest, CutoverState, CutoverStatus, CutoverStep, DoneStep, cutover};
pub use preflight::Report;
pub use remove::{Removed, remove};
pub use report::status;
pub use resync::resync;
pub use tail::tail;

use cluster::{Arrival, Turns};
use dump::ClientTools;
use preflight::CheckOptions;
use retry::Context;

/// The `application_name` of the connection that streams.
const STREAM_NAME: &str = "walferry stream";

/// The two sides, and which migration between them is meant.
#[derive(Debug, Clone)]
pub struct Sides {
    /// The source; as given, its database is the one to connect to first.
    pub source: ConnInfo,
    /// The target; as given, its database is the one to connect to first.
    pub target: ConnInfo,
    /// The migration's name.
    pub name: String,
    /// Roles of the source that are left out.
    pub ignored_roles: Vec<String>,
    /// Roles that are on the target already, and whose memberships are carried.
    pub granted_roles: Vec<String>,
    /// Tables copied, and indexes made, at the same time: so many sessions.
    pub jobs: usize,
    /// What is wanted of the checks.
    pub wanted: CheckOptions,
    /// Databases of the target that the log has named for a schema `walferry` of somebody else's.
    strangers: Arc<Mutex<BTreeSet<String>>>,
}

/// One database of a migration, to run.
#[derive(Debug)]
pub(crate) struct Migration {
    /// Between what: this database, on both sides.
    pub sides: Sides,
    /// How it is to be moved; `None`: by replication where that is possible.
    pub method: Option<Method>,
    /// The target, by the database that is connected to first.
    entrance: ConnInfo,
    /// The target has the database.
    on_target: bool,
    /// Whether it is made there otherwise.
    creates_databases: bool,
    /// What was chosen, to be remembered.
    selection: Selection,
    /// The tables that are moved.
    filter: TableFilter,
    /// Who may copy.
    turns: Turns,
    /// Whether it is where [`Migration::until`] wants it.
    arrival: Arc<Arrival>,
    /// Memory of what is received and not yet applied.
    queue_cost_max: usize,
    /// What dumps the schema, once it was found.
    tools: OnceCell<ClientTools>,
    /// Tables and indexes at the same time.
    pub jobs: usize,
    /// How long a durable position waits before it is confirmed.
    pub confirm_delay: Duration,
    /// Where transactions in progress are kept.
    pub spill_dir: PathBuf,
    /// How many bytes of them; 0: the source keeps them itself.
    pub spill_bytes_max: u64,
    /// Where to end by itself.
    pub until: Option<Until>,
    /// What to do about a column that the source added.
    pub ddl: Ddl,
    /// Where passwords go that had to be made; `None`: nowhere, so none is made.
    pub passwords_file: Option<PathBuf>,
    /// Whether roles may log in on the target before it is done.
    pub opens_target: bool,
    /// What is moved, and how.
    pub contents: Contents,
    /// What to do with a change that does not fit the target's rows.
    pub on_conflict: OnConflict,
    /// Up to so many bytes behind, it counts as synced.
    pub lag_bytes_max: u64,
    /// What puts up, and takes down, a fence of kind `command`.
    pub fence_commands: Option<FenceCommands>,
    /// Where it is shown.
    pub status: StatusHandle,
    /// Where it is counted.
    pub metrics: MetricsRegistry,
    /// Becomes true when it is to end.
    pub stop: watch::Receiver<bool>,
}

impl Sides {
    /// Reads both connection strings.
    ///
    /// # Errors
    /// A usage error when one is missing or wrong.
    pub fn new(config: &Config) -> Result<Self, Definite> {
        Ok(Self {
            source: parse(config.source()?.expose(), Side::Source)?,
            target: parse(config.target()?.expose(), Side::Target)?,
            name: config.name.as_str().to_owned(),
            ignored_roles: config.ignored_roles.clone(),
            granted_roles: config.granted_roles.clone(),
            jobs: config.jobs,
            wanted: CheckOptions {
                skip_version_check: config.skip_version_check,
                total_bytes_max: config.total_bytes_max,
            },
            strangers: Arc::default(),
        })
    }

    /// Reads the source's connection string: all that some commands need.
    ///
    /// # Errors
    /// A usage error when it is missing or wrong.
    pub fn source(config: &Config) -> Result<ConnInfo, Definite> {
        parse(config.source()?.expose(), Side::Source)
    }

    /// Those of one database, which has the same name on both.
    #[must_use]
    pub fn database(&self, name: &str) -> Self {
        let (source, target) = (self.source.with_dbname(name), self.target.with_dbname(name));
        Self { source, target, ..self.clone() }
    }

    /// The same, to ask what is answered soon.
    fn impatient(&self) -> Self {
        let source = self.source.clone().with_statement_max(CHECK_STATEMENT_MAX);
        let target = self.target.clone().with_statement_max(CHECK_STATEMENT_MAX);
        Self { source, target, ..self.clone() }
    }

    /// A session on the source.
    async fn source_client(&self) -> Result<SourceClient> {
        SourceClient::connect(&self.source, "walferry").await
    }

    /// A session on the target that can hear of requests.
    async fn listening_client(&self) -> Result<(TargetClient, mpsc::Receiver<Notification>)> {
        TargetClient::listening(&self.target, "walferry").await
    }

    async fn target_client(&self) -> Result<TargetClient> {
        TargetClient::connect(&self.target, "walferry").await
    }
}

impl Migration {
    async fn run(&self, context: &mut Context) -> Result<Exit> {
        retry::run(self, context).await
    }
}

/// As given, else in the user's home. Without one, as in a container, nothing else would last: `None`.
fn passwords_file(config: &Config, environment: &Environment) -> Option<PathBuf> {
    let home = environment.get("HOME").map(PathBuf::from).filter(|home| home.is_dir());
    let beside = || Some(home?.join(format!("walferry-passwords-{}.jsonl", config.name)));
    config.passwords_file.clone().or_else(beside)
}

/// Sessions on the source may write though it is fenced: each may be needed while it is, and what was made there can be
/// dropped.
fn parse(text: &str, side: Side) -> Result<ConnInfo, Definite> {
    let parsed = ConnInfo::parse(text, &Environment::from_process())
        .map_err(|error| Definite::usage(format!("the {side}'s connection string is wrong: {error}")))?;
    Ok(if side == Side::Source { parsed.writable().tables_only() } else { parsed })
}

/// Completes when `signal` is true, or when nobody can make it true any more.
async fn signalled(signal: &mut watch::Receiver<bool>) {
    let _ = signal.wait_for(|told| *told).await;
}

/// Waits for all tasks; the first failure aborts the others.
async fn joined(mut work: JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = work.join_next().await {
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    }
    Ok(())
}
