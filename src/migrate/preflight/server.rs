//! Findings about the two servers as a whole.

use super::failover::failover;
use super::report::{counted, listed, size};
use super::{Finding, PgDump, PreflightInput, Report, Severity, Sides, hints, standby};
use crate::catalog::{self, Database, PreparedTransaction, ServerFacts, WritingTransaction};
use crate::error::Side;
use crate::limits::LONG_TRANSACTION;
use crate::migrate::creation::create_statement;
use crate::pg::{ServerVersion, Sql};
use crate::source::Dialect;
use crate::source::SlotInfo;

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    let (source, target) = (&sides.source_facts, &sides.target_facts);
    report.push(source_version(source));
    report.add("source-truncate", Ok(truncate(source.version)));
    report.push(target_version(source.version, target.version, input.wanted.skip_version_check));
    report.push(same_cluster(source, target));
    report.push(recovery("source-recovery", Side::Source, source));
    report.push(recovery("target-recovery", Side::Target, target));
    report.add("source-read-only", Ok(read_only("source-read-only", Side::Source, source)));
    report.add("target-read-only", Ok(read_only("target-read-only", Side::Target, target)));
    report.push(wal_level(source));
    report.push(replication_privilege(source));

    let found = catalog::slots(sides.source).await;
    if let Ok(found) = &found {
        report.add("source-failover", Ok(failover(source, found)));
    }
    report.add("source-slots", found.map(|found| slots(source, &found, input)));
    match catalog::wal_senders_used(sides.source).await {
        Ok(used) => report.push(wal_senders(source, used, input)),
        Err(error) => report.push(Finding::unanswered("source-wal-senders", &error)),
    }
    report.push(slot_retention(source));
    report.add("source-idle-slot-timeout", Ok(idle_slot_timeout(source)));
    report.push(synchronous_standbys(source, &input.application_name));
    let found = catalog::writing_transactions(sides.source).await;
    report.add("source-long-transactions", found.map(|found| [long_transactions(&found)]));
    let found = catalog::prepared_transactions(sides.source).await;
    report.add("source-prepared-transactions", found.map(|found| [prepared_transactions(&found)]));
    databases(report, sides, input).await;
    match input.pg_dump {
        PgDump::NotLooked => {}
        PgDump::Missing => report.push(pg_dump(None, source.version)),
        PgDump::Found(found) => report.push(pg_dump(Some(found), source.version)),
    }
}

/// Whether `pg_dump` of that version can dump a source of this one: a `pg_dump` refuses newer servers.
pub fn pg_dump(found: Option<ServerVersion>, source: ServerVersion) -> Finding {
    let (id, subject) = ("pg-dump", "pg_dump");
    let needed = source.major();
    let hint = format!(
        "install PostgreSQL's client programs, version {needed} or later: apt-get install postgresql-client-{needed}"
    );
    match found {
        None => Finding::fail(id, subject, "not found on the path").hint(hint),
        Some(found) if found.major() < needed => {
            let cause = format!("version {} cannot dump a server of version {needed}", version_text(found));
            Finding::fail(id, subject, cause).hint(hint)
        }
        Some(found) => Finding::ok(id, subject, format!("version {}", version_text(found))),
    }
}

/// `15.18`; `9.6.24` before 10.
pub(super) fn version_text(version: ServerVersion) -> String {
    let number = version.get();
    if version.major() >= 10 {
        format!("{}.{}", number / 10_000, number % 10_000)
    } else {
        format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
    }
}

fn source_version(source: &ServerFacts) -> Finding {
    let cause = format!("PostgreSQL {}", version_text(source.version));
    if source.version.major() < SOURCE_MAJOR_MIN {
        Finding::fail(
            "source-version",
            "source",
            format!("{cause} has no logical replication (10 and later do)"),
        )
        .hint("upgrade the source first, or move it once with pg_dump and pg_restore")
    } else {
        Finding::ok("source-version", "source", cause)
    }
}

fn truncate(source: ServerVersion) -> Option<Finding> {
    if Dialect::new(source).publishes_truncate() {
        return None;
    }
    let cause = format!("version {} does not send it: the target keeps the rows", source.major());
    let hint = "use DELETE instead for as long as the migration runs";
    Some(Finding::warning("source-truncate", "TRUNCATE", cause).hint(hint))
}

fn target_version(source: ServerVersion, target: ServerVersion, skipped: bool) -> Finding {
    let (id, subject) = ("target-version", "target");
    let cause = format!("PostgreSQL {}", version_text(target));
    let needed = source.major().max(TARGET_MAJOR_MIN);
    if target.major() >= needed {
        return Finding::ok(id, subject, cause);
    }
    let severity = if skipped { Severity::Warning } else { Severity::Fail };
    let cause = format!("{cause} is too old: {needed} or later is needed for this source");
    Finding::new(id, severity, subject, cause).hint(format!(
        "avn service update SERVICE -c pg_version={needed}\nor, on your own risk: --skip-db-version-check"
    ))
}

/// Physical copies share the system identifier, so the start time has to agree too.
fn same_cluster(source: &ServerFacts, target: &ServerFacts) -> Finding {
    let id = "same-cluster";
    let identified =
        source.system_id.is_none() || target.system_id.is_none() || source.system_id == target.system_id;
    if !identified || source.started != target.started {
        return Finding::ok(id, "source and target", "two different servers");
    }
    let subject = "source and target";
    if source.database == target.database {
        Finding::fail(id, subject, format!("both are database {} of one server", source.database))
            .hint("give --target the URI of the Aiven service")
    } else {
        Finding::warning(id, subject, "both are databases of one server")
            .hint("give --target the URI of the Aiven service, unless this is meant")
    }
}

fn recovery(id: &'static str, side: Side, facts: &ServerFacts) -> Finding {
    if facts.in_recovery {
        Finding::fail(id, side.as_str(), "is a standby").hint("connect to the primary")
    } else {
        Finding::ok(id, side.as_str(), "is a primary")
    }
}

fn read_only(id: &'static str, side: Side, facts: &ServerFacts) -> Option<Finding> {
    if !facts.read_only {
        return None;
    }
    let off =
        Sql::new("ALTER ROLE ").ident(&facts.user.name).text(" SET default_transaction_read_only = off");
    let hint = format!("see why (a full disk, perhaps), then:\n{}", hints::command(off));
    Some(Finding::fail(id, side.as_str(), "default_transaction_read_only is on").hint(hint))
}

fn wal_level(source: &ServerFacts) -> Finding {
    let id = "source-wal-level";
    if source.wal_level == "logical" {
        Finding::ok(id, "wal_level", "logical")
    } else {
        Finding::fail(id, "wal_level", format!("{}, but logical is needed", source.wal_level))
            .hint(hints::wal_level(source.provider))
    }
}

fn replication_privilege(source: &ServerFacts) -> Finding {
    let id = "source-replication-privilege";
    let subject = format!("role {}", source.user.name);
    if source.user.replication {
        Finding::ok(id, subject, "may open replication connections")
    } else {
        Finding::fail(id, subject, "may not open replication connections")
            .hint(hints::replication(source.provider, &source.user.name))
    }
}

fn slots(source: &ServerFacts, found: &[SlotInfo], input: &PreflightInput) -> Vec<Finding> {
    let ours = |slot: &&SlotInfo| input.slots.iter().any(|name| name.as_str() == slot.name);
    let existing: Vec<&SlotInfo> = found.iter().filter(ours).collect();
    let mut findings = Vec::new();
    if !input.resuming && !existing.is_empty() {
        let names: Vec<&str> = existing.iter().map(|slot| slot.name.as_str()).collect();
        let drop = |name: &&str| {
            hints::command(Sql::new("SELECT pg_drop_replication_slot(").literal(name).text(")"))
        };
        let finding = Finding::fail(
            "source-slot-name",
            listed(&names),
            "exists already, but no migration goes with it",
        )
        .hint(format!(
            "use another --name, or drop it:\n{}",
            names.iter().map(drop).collect::<Vec<_>>().join("\n")
        ));
        findings.push(finding);
    }
    let existing = existing.len() as u64;
    let needed =
        if input.resuming { input.slots_needed.saturating_sub(existing) } else { input.slots_needed };
    // One that a database of this run copies a table by goes when that is copied: it is waited for.
    let used = found.iter().filter(|slot| !is_passing(slot)).count() as u64;
    findings.push(room(
        "source-slots",
        "max_replication_slots",
        source.max_replication_slots,
        used,
        needed,
        source,
    ));
    findings
}

/// A temporary slot of a copy that is under way.
fn is_passing(slot: &SlotInfo) -> bool {
    slot.temporary && slot.name.starts_with("walferry_") && slot.name.ends_with("_copy")
}

/// All of a migration's walsenders count as one with its slots: where it runs already, it has them.
fn wal_senders(source: &ServerFacts, used: u64, input: &PreflightInput) -> Finding {
    let needed = if input.resuming { 0 } else { input.slots_needed };
    room("source-wal-senders", "max_wal_senders", source.max_wal_senders, used, needed, source)
}

fn room(
    id: &'static str,
    setting: &'static str,
    max: u64,
    used: u64,
    needed: u64,
    source: &ServerFacts,
) -> Finding {
    let cause = format!("{used} of {max} in use, {needed} more needed");
    if used.saturating_add(needed) <= max {
        return Finding::ok(id, setting, cause);
    }
    let value = used.saturating_add(needed).max(10).to_string();
    Finding::fail(id, setting, cause).hint(hints::parameter(source.provider, setting, &value, true))
}

fn slot_retention(source: &ServerFacts) -> Finding {
    let (id, subject) = ("source-slot-retention", "max_slot_wal_keep_size");
    match source.max_slot_wal_keep_size {
        None => Finding::ok(
            id,
            subject,
            "unlimited: the source keeps WAL for as long as it is needed; watch its disk",
        ),
        Some(bytes) => {
            let cause = format!(
                "limited to {}: if more WAL is written while the copy runs or the target is away, the slot is lost and \
                 the migration starts again",
                size(bytes)
            );
            Finding::warning(id, subject, cause).hint(hints::parameter(source.provider, subject, "-1", false))
        }
    }
}

fn idle_slot_timeout(source: &ServerFacts) -> Option<Finding> {
    let (id, subject) = ("source-idle-slot-timeout", "idle_replication_slot_timeout");
    let timeout = source.idle_replication_slot_timeout?;
    let cause =
        format!("{} s: while the migration is stopped for longer, its slot is lost", timeout.as_secs());
    Some(Finding::warning(id, subject, cause).hint(hints::parameter(source.provider, subject, "0", false)))
}

fn synchronous_standbys(source: &ServerFacts, application_name: &str) -> Finding {
    let (id, subject) = ("source-synchronous-standbys", "synchronous_standby_names");
    match &source.synchronous_standby_names {
        None => Finding::info(id, subject, "cannot be read"),
        Some(names) if standby::matches(names, application_name) => {
            let cause = format!(
                "{names} matches {application_name}: commits on the source would wait for the target"
            );
            Finding::warning(id, subject, cause).hint("list the standbys by name, without *")
        }
        Some(_) => Finding::ok(id, subject, "commits on the source do not wait for us"),
    }
}

fn long_transactions(found: &[WritingTransaction]) -> Finding {
    let (id, subject) = ("source-long-transactions", "writing transactions");
    let hidden = found.iter().filter(|transaction| transaction.age.is_none()).count();
    let long: Vec<&WritingTransaction> = found
        .iter()
        .filter(|transaction| transaction.age.is_some_and(|age| age >= LONG_TRANSACTION))
        .collect();
    if !long.is_empty() {
        let each: Vec<String> = long.iter().map(|transaction| describe(transaction)).collect();
        let end = |transaction: &&WritingTransaction| {
            hints::command(Sql::new("SELECT pg_terminate_backend(").number(transaction.pid).text(")"))
        };
        let cause = format!("the slot cannot be created before they end: {}", listed(&each));
        return Finding::warning(id, subject, cause)
            .hint(format!("wait, or end them:\n{}", long.iter().map(end).collect::<Vec<_>>().join("\n")));
    }
    if hidden > 0 {
        let cause = format!("{} of other roles, whose age this role may not see", counted(hidden, "session"));
        return Finding::info(id, subject, cause).hint("GRANT pg_read_all_stats to it to see more");
    }
    Finding::ok(id, subject, format!("none older than {} s", LONG_TRANSACTION.as_secs()))
}

fn describe(transaction: &WritingTransaction) -> String {
    let seconds = transaction.age.map(|age| age.as_secs()).unwrap_or_default();
    let database = transaction.database.as_deref().unwrap_or("no database");
    format!("pid {} in {database} for {seconds} s", transaction.pid)
}

fn prepared_transactions(found: &[PreparedTransaction]) -> Finding {
    let (id, subject) = ("source-prepared-transactions", "prepared transactions");
    if found.is_empty() {
        return Finding::ok(id, subject, "none");
    }
    let each: Vec<String> = found
        .iter()
        .map(|transaction| {
            format!("{} in {} for {} s", transaction.id, transaction.database, transaction.age.as_secs())
        })
        .collect();
    let end = |transaction: &PreparedTransaction| {
        let rollback = hints::command(Sql::new("ROLLBACK PREPARED ").literal(&transaction.id));
        format!("{rollback} -- in {}", transaction.database)
    };
    Finding::warning(id, subject, format!("the slot cannot be created before they end: {}", listed(&each)))
        .hint(format!("COMMIT PREPARED each, or\n{}", found.iter().map(end).collect::<Vec<_>>().join("\n")))
}

async fn databases(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    let source = catalog::all_databases(sides.source).await;
    let target = catalog::databases(sides.target).await;
    let like = source.as_deref().unwrap_or_default().to_vec();
    report.add("source-databases", source.map(|found| missing_at_source(&found, input)));
    report.add("target-databases", target.map(|found| [missing_at_target(&found, &like, sides, input)]));
}

fn missing_at_source(found: &[Database], input: &PreflightInput) -> Option<Finding> {
    let found: Vec<&String> = found.iter().filter(|found| !found.template).map(|found| &found.name).collect();
    let missing: Vec<&String> = input.databases.iter().filter(|name| !found.contains(name)).collect();
    if missing.is_empty() {
        return None;
    }
    let cause = format!("the source has no such database; it has {}", listed(&found));
    Some(
        Finding::fail("source-databases", listed(&missing), cause)
            .hint("give --database as the source spells it; case counts"),
    )
}

fn missing_at_target(
    found: &[String],
    like: &[Database],
    sides: &Sides<'_>,
    input: &PreflightInput,
) -> Finding {
    let id = "target-databases";
    // A session in the one database to be written to proves that it exists, whatever its name.
    let renamed = input.databases.len() <= 1 && input.target_database_exists;
    let missing: Vec<&String> =
        input.databases.iter().filter(|name| !renamed && !found.contains(name)).collect();
    let user = &sides.target_facts.user;
    if missing.is_empty() {
        return Finding::ok(id, "target", "has every database");
    }
    let may = user.create_db || user.superuser;
    if may && input.creates_databases {
        return Finding::ok(id, listed(&missing), "will be created");
    }
    let create = |name: &&String| {
        let like = like.iter().find(|database| database.name == **name);
        hints::command(like.map_or_else(|| Sql::new("CREATE DATABASE ").ident(name), create_statement))
    };
    let commands: Vec<String> = missing.iter().map(create).collect();
    let commands = commands.join("\n");
    if may {
        let cause = "the target lacks them, and --no-createdb is given";
        return Finding::fail(id, listed(&missing), cause).hint(commands);
    }
    let cause = format!("the target lacks them, and role {} may not create databases", user.name);
    let allow = hints::command(Sql::new("ALTER ROLE ").ident(&user.name).text(" CREATEDB"));
    Finding::fail(id, listed(&missing), cause).hint(format!("{allow}\nor create them:\n{commands}"))
}

/// The oldest source with `pgoutput`.
const SOURCE_MAJOR_MIN: u32 = 10;

/// The oldest target that is tested.
const TARGET_MAJOR_MIN: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_in_the_way() {
        let transaction = |pid, seconds: Option<u64>| WritingTransaction {
            pid,
            database: Some("app".to_owned()),
            user: None,
            age: seconds.map(std::time::Duration::from_secs),
        };
        let check = |found: &[WritingTransaction], severity, words: &str| {
            let finding = long_transactions(found);
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(format!("{} {}", finding.cause, finding.hint).contains(words), "{finding:?}");
        };
        check(&[], Severity::Ok, "none older than 30 s");
        check(&[transaction(1, Some(29))], Severity::Ok, "none older than 30 s");
        check(&[transaction(1, Some(29)), transaction(2, None)], Severity::Info, "1 session of other roles");
        let found = [transaction(7, Some(90)), transaction(2, None)];
        check(&found, Severity::Warning, "pid 7 in app for 90 s");
        check(&found, Severity::Warning, "SELECT pg_terminate_backend(7);");
    }

    #[test]
    fn truncate_from_old_sources() {
        let severity = |version| truncate(ServerVersion::new(version)).map(|finding| finding.severity);
        assert_eq!(severity(100_023), Some(Severity::Warning));
        assert_eq!(severity(110_022), None);
    }

    #[test]
    fn versions_of_the_target() {
        let check = |source: u32, target: u32, skipped, expected| {
            let finding = target_version(ServerVersion::new(source), ServerVersion::new(target), skipped);
            assert_eq!(finding.severity, expected, "{source} {target} {skipped}: {finding:?}");
        };
        check(150_001, 150_001, false, Severity::Ok);
        check(160_000, 150_018, false, Severity::Fail);
        check(160_000, 150_018, true, Severity::Warning);
        check(130_000, 140_000, false, Severity::Fail);
        check(130_000, 140_000, true, Severity::Warning);
    }

    #[test]
    fn pg_dump_versions() {
        let check = |found: Option<u32>, source: u32, expected| {
            let finding = pg_dump(found.map(ServerVersion::new), ServerVersion::new(source));
            assert_eq!(finding.severity, expected, "{found:?} {source}");
        };
        check(Some(150_018), 150_001, Severity::Ok);
        check(Some(180_000), 100_023, Severity::Ok);
        check(Some(140_010), 150_001, Severity::Fail);
        check(None, 150_001, Severity::Fail);
        assert_eq!(version_text(ServerVersion::new(90_624)), "9.6.24");
    }
}
