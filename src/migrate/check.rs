//! The checks: of all databases for `walferry check`, and of one before it is begun.

use crate::catalog::{self, SourceClient, TargetClient};
use crate::config::{Config, Contents, Keyless, Method};
use crate::error::{Result, Side};
use crate::pg::{ServerVersion, SlotName};
use crate::status::StatusSnapshot;
use crate::wire::Environment;

use super::dump::ClientTools;
use super::preflight::{self, Finding, PgDump, PreflightInput, Report};
use super::select::{Choice, Chosen, select};
use super::{Migration, Phase, STREAM_NAME, Sides, passwords_file};

/// Looks at both sides and changes nothing: at what a migration as configured would meet.
///
/// # Errors
/// A usage error when the source has no such databases. What cannot be reached is a finding.
pub async fn check(sides: &Sides, config: &Config) -> Result<Report> {
    let sides = &sides.impatient();
    let mut report = Report::default();
    let (source, target) = tokio::join!(sides.source_client(), sides.target_client());
    let (source, target) = match (source, target) {
        (Ok(source), Ok(target)) => (source, target),
        (source, target) => {
            for (side, failure) in [(Side::Source, source.err()), (Side::Target, target.err())] {
                report.findings.extend(failure.map(|failure| Finding::unreachable(side, &failure)));
            }
            return Ok(report);
        }
    };
    let choice = select(sides, &config.selection).await?;
    let input = PreflightInput {
        pg_dump: pg_dump_found(&source, ClientTools::find).await,
        ..input_for(sides, config, &choice, choice.databases.iter().collect())
    };
    if let [only] = choice.databases.as_slice() {
        let mut report = check_database(sides, only, &target, &input, true).await;
        preflight::connections(&mut report, &sides.source, &sides.target).await;
        return Ok(report);
    }
    let servers = preflight::run_servers(&source, &target, &input).await;
    let of_servers = servers.method;
    report = servers;
    preflight::connections(&mut report, &sides.source, &sides.target).await;
    for database in &choice.databases {
        let method = choice.method_of(config.method, database).unwrap_or(of_servers);
        let input =
            PreflightInput { method: Some(method), ..input_for(sides, config, &choice, vec![database]) };
        let found = check_database(sides, database, &target, &input, false).await;
        report.findings.extend(found.findings.into_iter().map(|finding| finding.of_database(&database.name)));
    }
    Ok(report)
}

fn input_for(sides: &Sides, config: &Config, choice: &Choice, databases: Vec<&Chosen>) -> PreflightInput {
    let dumped = |database: &&Chosen| choice.method_of(config.method, database) == Some(Method::PgDump);
    let replicated: Vec<&Chosen> = choice.databases.iter().filter(|database| !dumped(database)).collect();
    let slots: Vec<SlotName> =
        replicated.iter().filter_map(|d| Some(d.begun.as_ref()?.slot.clone())).collect();
    PreflightInput {
        migration: sides.name.clone(),
        method: method_of_all(databases.iter().map(|database| choice.method_of(config.method, database))),
        slots_needed: replicated.len() as u64,
        resuming: databases.iter().any(|database| database.begun.is_some()),
        target_database_exists: databases.iter().all(|database| database.on_target),
        databases: databases.into_iter().map(|database| database.name.clone()).collect(),
        slots,
        tables: choice.filter.clone(),
        ignored_roles: sides.ignored_roles.clone(),
        granted_roles: sides.granted_roles.clone(),
        creates_databases: config.creates_databases,
        application_name: STREAM_NAME.to_owned(),
        jobs: u64::try_from(sides.jobs).unwrap_or(u64::MAX),
        wanted: sides.wanted,
        fence_commands: config.fence_commands.is_some(),
        passwords_kept: passwords_file(config, &Environment::from_process()).is_some(),
        together: choice.databases.iter().map(|database| database.name.clone()).collect(),
        ..with_contents(&config.contents)
    }
}

/// The method that the servers are looked at for. Those that can still fall back decide, as long as there are any.
fn method_of_all(methods: impl Iterator<Item = Option<Method>>) -> Option<Method> {
    let methods: Vec<_> = methods.collect();
    [None, Some(Method::Replication)]
        .into_iter()
        .find(|method| methods.contains(method))
        .unwrap_or(Some(Method::PgDump))
}

fn with_contents(contents: &Contents) -> PreflightInput {
    PreflightInput {
        replica_identity_full: contents.keyless == Keyless::Full,
        keyless_ignored: contents.keyless == Keyless::Ignore,
        excluded_extensions: contents.excluded_extensions.clone(),
        extension_tables: contents.extension_tables,
        ..PreflightInput::default()
    }
}

async fn check_database(
    sides: &Sides,
    database: &Chosen,
    entrance: &TargetClient,
    input: &PreflightInput,
    with_servers: bool,
) -> Report {
    let sides = sides.database(&database.name);
    let mut report = Report::default();
    let source = sides.source_client().await;
    let target = if database.on_target { Some(sides.target_client().await) } else { None };
    let (source, target) = match (source, target.transpose()) {
        (Ok(source), Ok(target)) => (source, target),
        (source, target) => {
            report.findings.extend(source.err().map(|failure| Finding::unreachable(Side::Source, &failure)));
            report.findings.extend(target.err().map(|failure| Finding::unreachable(Side::Target, &failure)));
            return report;
        }
    };
    let target = target.as_ref().unwrap_or(entrance);
    if with_servers {
        preflight::run(&source, target, input).await
    } else {
        preflight::run_database(&source, target, input).await
    }
}

/// The same for a database that is not begun. `in_place`: the target's session is in the database to be written to.
pub(super) async fn preflight(
    migration: &Migration,
    source: &SourceClient,
    target: &TargetClient,
    in_place: bool,
) -> Result<Report> {
    let input = PreflightInput {
        method: migration.method,
        migration: migration.sides.name.clone(),
        databases: vec![migration.sides.source.dbname().to_owned()],
        slots_needed: slots_needed(&migration.status.snapshot()),
        application_name: STREAM_NAME.to_owned(),
        target_database_exists: in_place,
        creates_databases: migration.creates_databases,
        tables: migration.filter.clone(),
        ignored_roles: migration.sides.ignored_roles.clone(),
        granted_roles: migration.sides.granted_roles.clone(),
        pg_dump: pg_dump_found(source, |version| migration.tools(version)).await,
        jobs: u64::try_from(migration.jobs).unwrap_or(u64::MAX),
        wanted: migration.sides.wanted,
        fence_commands: migration.fence_commands.is_some(),
        passwords_kept: migration.passwords_file.is_some(),
        together: migration.status.snapshot().databases.iter().map(|it| it.dbname.clone()).collect(),
        ..with_contents(&migration.contents)
    };
    let mut report = preflight::run(source, target, &input).await;
    let target = if in_place { &migration.sides.target } else { &migration.entrance };
    preflight::connections(&mut report, &migration.sides.source, target).await;
    Ok(report)
}

/// Slots that are still to be made: there has to be room for all of them, or some database would fail in its turn.
fn slots_needed(snapshot: &StatusSnapshot) -> u64 {
    let to_come = snapshot.databases.iter().filter(|database| {
        database.method == Method::Replication
            && database.objects_on_source.is_empty()
            && matches!(database.phase, Phase::Waiting | Phase::Checking)
    });
    (to_come.count() as u64).max(1)
}

async fn pg_dump_found<F>(source: &SourceClient, find: impl FnOnce(ServerVersion) -> F) -> PgDump
where
    F: Future<Output = Result<ClientTools>>,
{
    let Ok(version) = catalog::server_version(source).await else { return PgDump::NotLooked };
    match find(version).await {
        Ok(tools) => PgDump::Found(ServerVersion::new(tools.major * 10_000)),
        Err(_) => PgDump::Missing,
    }
}
