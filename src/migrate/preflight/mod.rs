//! What is looked at before a migration, and again whenever somebody asks: `walferry check`.
//!
//! Each look is a [`Finding`]: that all is well, or what is wrong and the command that changes it, in the words of
//! whoever runs the server. Nothing is changed on either side (one setting is tried out in a transaction that is
//! rolled back). What cannot be looked at is a finding too; a check never ends early because one question failed.
//!
//! Not here: who connects, and running `pg_dump`. One call looks at one database and at both servers; for more
//! databases, [`run_database`] looks at each further one.

mod hints;
mod method;
mod report;
mod server;
mod source_database;
mod standby;
mod target;

use tokio_postgres::Client;

use crate::config::Method;
use crate::error::Side;
use crate::pg::{ServerVersion, SlotName};
use crate::source::Error;
use crate::source::catalog::{self, ServerFacts, Table};

pub(super) use report::listed;
pub use report::{Finding, Report, Severity};
pub use server::pg_dump;

/// What the migration is going to be.
#[derive(Debug, Clone)]
pub struct PreflightInput {
    /// The source's databases that are to be migrated.
    pub databases: Vec<String>,
    /// How many slots, and as many walsenders, are needed at once: one for each database.
    pub slots_needed: u64,
    /// The migration's slots by name.
    pub slots: Vec<SlotName>,
    /// The `application_name` of our replication connections.
    pub application_name: String,
    /// The migration was started before: its slots exist, and its target is not empty.
    pub resuming: bool,
    /// The target session is in the database that will be written to; otherwise that one is yet to be created, and
    /// the session only serves to look at the server.
    pub target_database_exists: bool,
    /// How it is to be moved; `None`: by replication where that is possible.
    pub method: Option<Method>,
    /// Tables without replica identity are to get REPLICA IDENTITY FULL.
    pub replica_identity_full: bool,
    /// Extensions to be left out.
    pub excluded_extensions: Vec<String>,
    /// What is known of `pg_dump`.
    pub pg_dump: PgDump,
}

/// What is known of `pg_dump`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PgDump {
    /// Nobody looked: no finding.
    NotLooked,
    /// There is none.
    Missing,
    /// It has this version.
    Found(ServerVersion),
}

impl Default for PreflightInput {
    fn default() -> Self {
        Self {
            databases: Vec::new(),
            slots_needed: 1,
            slots: Vec::new(),
            application_name: "walferry".to_owned(),
            resuming: false,
            target_database_exists: true,
            method: Some(Method::Replication),
            replica_identity_full: false,
            excluded_extensions: Vec::new(),
            pg_dump: PgDump::NotLooked,
        }
    }
}

/// Looks at both servers, and at the databases that the two sessions are in.
pub async fn run(source: &Client, target: &Client, input: &PreflightInput) -> Report {
    let mut report = Report::default();
    let Some(sides) = Sides::reach(&mut report, source, target).await else { return report };
    server::check(&mut report, &sides, input).await;
    databases(&mut report, &sides, input).await;
    method::settle(&mut report, input.method);
    report
}

/// Looks at the databases that the two sessions are in, and not at the servers: the method is to be given, as a look at
/// the servers has found it.
pub async fn run_database(source: &Client, target: &Client, input: &PreflightInput) -> Report {
    let mut report = Report::default();
    let Some(sides) = Sides::reach(&mut report, source, target).await else { return report };
    databases(&mut report, &sides, input).await;
    method::settle(&mut report, input.method);
    report
}

async fn databases(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    let tables = match catalog::tables(sides.source).await {
        Ok(tables) => tables,
        Err(error) => return report.push(Finding::unanswered("source-tables", Side::Source, error)),
    };
    source_database::check(report, sides, &tables, input).await;
    target::check(report, sides, &tables, input).await;
}

/// Both sessions, and what their servers are.
struct Sides<'a> {
    source: &'a Client,
    target: &'a Client,
    source_facts: ServerFacts,
    target_facts: ServerFacts,
}

impl<'a> Sides<'a> {
    async fn reach(report: &mut Report, source: &'a Client, target: &'a Client) -> Option<Self> {
        let source_facts =
            reached(report, "source-reachable", Side::Source, catalog::server_facts(source).await);
        let target_facts =
            reached(report, "target-reachable", Side::Target, catalog::server_facts(target).await);
        Some(Self { source, target, source_facts: source_facts?, target_facts: target_facts? })
    }
}

fn reached(
    report: &mut Report,
    id: &'static str,
    side: Side,
    facts: Result<ServerFacts, Error>,
) -> Option<ServerFacts> {
    match facts {
        Ok(facts) => {
            let cause = format!(
                "PostgreSQL {}, database {} of {}",
                server::version_text(facts.version),
                facts.database,
                report::size(facts.database_bytes)
            );
            report.push(Finding::ok(id, side.as_str(), cause));
            Some(facts)
        }
        Err(error) => {
            report.push(Finding::unanswered(id, side, error));
            None
        }
    }
}

/// The names of those tables that `of` holds for.
fn names(tables: &[Table], of: impl Fn(&Table) -> bool) -> Vec<&crate::pg::QualifiedName> {
    tables.iter().filter(|table| of(table)).map(|table| &table.name).collect()
}
