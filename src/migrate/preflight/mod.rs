//! What is looked at before a migration, and again whenever somebody asks: `walferry check`.
//!
//! Each look is a [`Finding`]: that all is well, or what is wrong and the command that changes it, in the words of
//! whoever runs the server. Nothing is changed on either side (one setting is tried out in a statement of its own). What
//! cannot be looked at is a finding too; a check never ends early because one question failed.
//!
//! The questions of several modules go out at the same time on one session, since a server may be far away. So each is
//! whole in itself: a transaction of several statements would take in what others ask in between.
//!
//! Not here: running `pg_dump`. [`run`] looks at one database and at both servers; where there are more
//! databases, [`run_servers`] looks at the servers and [`run_database`] at each database; [`connections()`] at how they
//! are reached.

mod connections;
mod failover;
mod filter;
mod hints;
mod left;
mod locks;
mod method;
mod owner_code;
mod report;
mod roles;
mod schema_drift;
mod search_path;
mod server;
mod source_database;
mod standby;
mod surroundings;
mod target;

use crate::catalog::{self, Error, ServerFacts, SourceClient, Table, TargetClient};
use crate::config::{Contents, Method, TableFilter};
use crate::error::Side;
use crate::migrate::filter::moved;
use crate::migrate::uncarried;
use crate::pg::{ServerVersion, SlotName};

pub use connections::connections;
pub(super) use report::listed;
pub use report::{Finding, Report, Severity};
pub use server::pg_dump;

/// What the migration is going to be.
#[derive(Debug, Clone)]
pub struct PreflightInput {
    /// The source's databases that are to be migrated.
    pub databases: Vec<String>,
    /// The migration's name.
    pub migration: String,
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
    /// Databases that the target lacks are to be created.
    pub creates_databases: bool,
    /// The tables that are to be moved.
    pub tables: TableFilter,
    /// Tables without replica identity are to get REPLICA IDENTITY FULL.
    pub replica_identity_full: bool,
    /// Roles to be left out.
    pub ignored_roles: Vec<String>,
    /// Roles that are on the target already, and whose memberships are carried.
    pub granted_roles: Vec<String>,
    /// Tables without replica identity are not to be copied again at cutover.
    pub keyless_ignored: bool,
    /// Extensions to be left out.
    pub excluded_extensions: Vec<String>,
    /// The rows of users in tables of extensions are to be moved.
    pub extension_tables: bool,
    /// What is known of `pg_dump`.
    pub pg_dump: PgDump,
    /// Tables copied at the same time, each with a session on both sides.
    pub jobs: u64,
    /// What is not to be looked at, and what is not to be surpassed.
    pub wanted: CheckOptions,
    /// The operator has commands that fence the source at cutover.
    pub fence_commands: bool,
    /// There is a place for passwords that have to be made.
    pub passwords_kept: bool,
    /// All databases that are moved, whose sizes count together; empty: the one that is looked at.
    pub together: Vec<String>,
}

/// What the user wants of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckOptions {
    /// A target that is older than the source is warned of only.
    pub skip_version_check: bool,
    /// The databases may take so many bytes together.
    pub total_bytes_max: Option<u64>,
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
            migration: "default".to_owned(),
            slots_needed: 1,
            slots: Vec::new(),
            application_name: "walferry".to_owned(),
            resuming: false,
            target_database_exists: true,
            method: Some(Method::Replication),
            creates_databases: true,
            tables: TableFilter::default(),
            replica_identity_full: false,
            ignored_roles: Vec::new(),
            granted_roles: Vec::new(),
            keyless_ignored: false,
            excluded_extensions: Vec::new(),
            extension_tables: true,
            pg_dump: PgDump::NotLooked,
            jobs: 1,
            wanted: CheckOptions::default(),
            fence_commands: false,
            passwords_kept: true,
            together: Vec::new(),
        }
    }
}

/// Looks at both servers, and at the databases that the two sessions are in.
pub async fn run(source: &SourceClient, target: &TargetClient, input: &PreflightInput) -> Report {
    let mut report = Report::default();
    let Some(sides) = Sides::reach(&mut report, source, target).await else { return report };
    let (servers, databases) = tokio::join!(servers(&sides, input), databases(&sides, input));
    report.extend([servers, databases]);
    method::settle(&mut report, input.method, &input.databases);
    report
}

/// Looks at both servers, and not at the databases that the two sessions are in.
pub async fn run_servers(source: &SourceClient, target: &TargetClient, input: &PreflightInput) -> Report {
    let mut report = Report::default();
    let Some(sides) = Sides::reach(&mut report, source, target).await else { return report };
    report.extend([servers(&sides, input).await]);
    method::settle(&mut report, input.method, &input.databases);
    report
}

/// Looks at the databases that the two sessions are in, and not at the servers: the method is to be given, as a look at
/// the servers has found it.
pub async fn run_database(source: &SourceClient, target: &TargetClient, input: &PreflightInput) -> Report {
    let mut report = Report::default();
    let Some(sides) = Sides::reach(&mut report, source, target).await else { return report };
    report.extend([databases(&sides, input).await]);
    method::settle(&mut report, input.method, &input.databases);
    report
}

async fn servers(sides: &Sides<'_>, input: &PreflightInput) -> Report {
    let mut found: [Report; 2] = Default::default();
    let [servers, roles] = &mut found;
    tokio::join!(Box::pin(server::check(servers, sides, input)), Box::pin(roles::check(roles, sides, input)));
    Report::of(found)
}

async fn databases(sides: &Sides<'_>, input: &PreflightInput) -> Report {
    let mut found: [Report; 7] = Default::default();
    let [left, source, locks, filter, target, surroundings, drift] = &mut found;
    let tables = match catalog::tables(sides.source).await {
        Ok(tables) => with_extensions(tables, input),
        Err(error) => {
            source.push(Finding::unanswered("source-tables", &error));
            return Report::of(found);
        }
    };
    let moved = moved(&tables, &input.tables, &sides.source_facts.database);
    // All at once, they are too much for a thread's stack.
    tokio::join!(
        Box::pin(left::check(left, sides, input)),
        Box::pin(source_database::check(source, sides, &tables, &moved, input)),
        Box::pin(locks::check(locks, sides, &tables)),
        Box::pin(filter::check(filter, sides, &tables, &moved, input)),
        Box::pin(target::check(target, sides, &tables, input)),
        Box::pin(surroundings::check(surroundings, sides, &tables, input)),
        Box::pin(schema_drift::check(drift, sides, input)),
    );
    Report::of(found)
}

/// The tables without those of extensions that are left to the target.
fn with_extensions(tables: Vec<Table>, input: &PreflightInput) -> Vec<Table> {
    let contents = Contents {
        excluded_extensions: input.excluded_extensions.clone(),
        extension_tables: input.extension_tables,
        ..Contents::default()
    };
    uncarried::with_wanted_extensions(tables, &contents)
}

/// Both sessions, and what their servers are.
struct Sides<'a> {
    source: &'a SourceClient,
    target: &'a TargetClient,
    source_facts: ServerFacts,
    target_facts: ServerFacts,
}

impl<'a> Sides<'a> {
    async fn reach(report: &mut Report, source: &'a SourceClient, target: &'a TargetClient) -> Option<Self> {
        let (source_facts, target_facts) =
            tokio::join!(catalog::server_facts(source), catalog::server_facts(target));
        let source_facts = reached(report, "source-reachable", Side::Source, source_facts);
        let target_facts = reached(report, "target-reachable", Side::Target, target_facts);
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
            report.push(Finding::unanswered(id, &error));
            None
        }
    }
}

/// The names of those tables that `of` holds for.
fn names(tables: &[Table], of: impl Fn(&Table) -> bool) -> Vec<&crate::pg::QualifiedName> {
    tables.iter().filter(|table| of(table)).map(|table| &table.name).collect()
}
