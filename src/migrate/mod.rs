//! The migration as a whole: what is checked, made, copied, followed and recorded around the pipelines.
//!
//! | module | what it does |
//! |---|---|
//! | [`mod@preflight`] | what stands in the way, before anything is made |
//! | [`attempt`] | one run from the stored phase on; a transient failure leads to the next one |
//! | [`publications`], [`snapshot`] | what is made on the source |
//! | [`dump`], [`objects`] | schema, indexes, constraints |
//! | [`copy`], [`late`], [`sequences`] | rows, and what replication does not carry |
//! | [`follow`], [`drift`] | the pipeline, and what goes on beside it |
//! | [`once`] | the other method: one dump and restore, nothing to follow |
//! | [`mod@tail`] | the changes themselves, to look at |
//! | [`report`], [`mod@remove`], [`leftovers`] | what is shown of a migration that need not run, and its end |
//!
//! All that is remembered is on the target ([`crate::apply::store`]), so that there is one way to start: read the
//! phase and go on.

mod attempt;
mod copy;
mod drift;
mod dump;
mod follow;
mod late;
mod leftovers;
mod objects;
mod once;
pub mod phase;
pub mod preflight;
mod publications;
mod remove;
mod report;
mod retry;
mod sequences;
mod snapshot;
mod tail;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::apply::store::Store;
use crate::config::{Config, Ddl, Method, Until};
use crate::error::{Definite, Exit, Failure, Result, Side};
use crate::pg::SlotName;
use crate::status::{MetricsRegistry, StatusHandle};
use crate::wire::{ConnInfo, Environment, control};

pub use phase::Phase;
pub use preflight::Report;
pub use remove::remove;
pub use report::status;
pub use tail::tail;

use preflight::{Finding, PgDump, PreflightInput};

/// The `application_name` of the connection that streams.
const STREAM_NAME: &str = "walferry stream";

/// The two sides, and which migration between them is meant.
#[derive(Debug, Clone)]
pub struct Sides {
    /// The source.
    pub source: ConnInfo,
    /// The target.
    pub target: ConnInfo,
    /// The migration's name.
    pub name: String,
}

/// A migration to run.
#[derive(Debug, Clone)]
pub struct Migration {
    /// Between what.
    pub sides: Sides,
    /// How it is to be moved; `None`: by replication where that is possible.
    pub method: Option<Method>,
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
    /// Up to so many bytes behind, it counts as synced.
    pub lag_bytes_max: u64,
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
        })
    }

    /// Reads the source's connection string: all that some commands need.
    ///
    /// # Errors
    /// A usage error when it is missing or wrong.
    pub fn source(config: &Config) -> Result<ConnInfo, Definite> {
        parse(config.source()?.expose(), Side::Source)
    }

    async fn source_client(&self) -> Result<Client> {
        control(&self.source, "walferry").await.map_err(|error| error.into_failure(Side::Source))
    }

    async fn target_client(&self) -> Result<Client> {
        control(&self.target, "walferry").await.map_err(|error| error.into_failure(Side::Target))
    }
}

impl Migration {
    /// A migration as configured.
    ///
    /// # Errors
    /// A usage error when a connection string is missing or wrong.
    pub fn new(
        config: &Config,
        status: StatusHandle,
        metrics: MetricsRegistry,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, Definite> {
        Ok(Self {
            sides: Sides::new(config)?,
            method: config.method,
            jobs: config.jobs,
            confirm_delay: config.confirm_delay,
            spill_dir: config.spill_dir.clone(),
            spill_bytes_max: config.spill_bytes_max,
            until: config.until,
            ddl: config.ddl,
            lag_bytes_max: config.lag_bytes_max,
            status,
            metrics,
            stop,
        })
    }

    /// Does the whole job and then keeps syncing, until told to stop; run again, it goes on.
    ///
    /// # Errors
    /// What ended it: it is recorded on the target too, where that can be reached.
    pub async fn run(&self) -> Result<Exit> {
        retry::run(self).await
    }
}

fn parse(text: &str, side: Side) -> Result<ConnInfo, Definite> {
    ConnInfo::parse(text, &Environment::from_process())
        .map_err(|error| Definite::usage(format!("the {side}'s connection string is wrong: {error}")))
}

/// Looks at both sides and changes nothing.
///
/// # Errors
/// A usage error when a connection string is missing or wrong. What cannot be reached is a finding.
pub async fn check(sides: &Sides, method: Option<Method>) -> Result<Report> {
    let (source, target) = tokio::join!(sides.source_client(), sides.target_client());
    let (source, target) = match (source, target) {
        (Ok(source), Ok(target)) => (source, target),
        (source, target) => {
            let mut report = Report::default();
            for (side, client) in [(Side::Source, source), (Side::Target, target)] {
                if let Err(failure) = client {
                    report.findings.push(Finding::unreachable(side, &failure));
                }
            }
            return Ok(report);
        }
    };
    preflight(sides, method, &source, &target).await
}

async fn preflight(
    sides: &Sides,
    method: Option<Method>,
    source: &Client,
    target: &Client,
) -> Result<Report> {
    let store = Store::new(target, &sides.name);
    let row = if store.exists().await? { store.migration().await? } else { None };
    let input = PreflightInput {
        databases: vec![sides.source.dbname().to_owned()],
        slots: row.iter().map(|row| row.slot.clone()).collect::<Vec<SlotName>>(),
        application_name: STREAM_NAME.to_owned(),
        resuming: row.is_some(),
        // What was begun stays as it is.
        method: row.map_or(method, |row| Some(row.method)),
        pg_dump: pg_dump_found(source).await,
        ..PreflightInput::default()
    };
    Ok(preflight::run(source, target, &input).await)
}

async fn pg_dump_found(source: &Client) -> PgDump {
    let Ok(version) = crate::source::catalog::server_version(source).await else { return PgDump::NotLooked };
    match dump::ClientTools::find(version).await {
        Ok(tools) => PgDump::Found(crate::pg::ServerVersion::new(tools.major * 10_000)),
        Err(_) => PgDump::Missing,
    }
}

/// Waits for all tasks; the first failure aborts the others.
async fn joined(mut work: JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = work.join_next().await {
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    }
    Ok(())
}

/// The failure of whoever reads a phase that this version does not know.
fn unknown_phase(name: &str) -> Failure {
    Definite::new("walferry's own tables on the target are damaged")
        .detail(format!("walferry.migration holds the unknown phase {name:?}"))
        .hint("start afresh after `walferry remove --force`")
        .into()
}
