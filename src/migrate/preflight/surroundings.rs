//! Findings about what stands around the tables, on both sides: what acts on their rows, and what is not carried.

use std::collections::HashSet;

use super::report::{counted, listed, size};
use super::{Finding, PreflightInput, Report, Sides, hints, owner_code, search_path};
use crate::catalog::{
    self, ChangedCollation, Error, ReplicaTrigger, SessionRoom, Surroundings, Table, TableKind, UserMapping,
};
use crate::error::Side;
use crate::limits::{SOURCE_CONNECTIONS, TARGET_CONNECTIONS};
use crate::migrate::filter::moved;
use crate::pg::{QualifiedName, Sql};
use crate::store::{Store, Unwritable};

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, tables: &[Table], input: &PreflightInput) {
    let total = match input.together.len() {
        0 | 1 => Ok(sides.source_facts.database_bytes),
        _ => catalog::bytes_of_databases(sides.source, &input.together).await,
    };
    report.add("source-size", total.map(|total| [contents(sides, tables, total, input)]));
    let rooms = tokio::join!(catalog::session_room(sides.source), catalog::session_room(sides.target));
    for (id, side, room, fixed) in [
        ("source-connections", Side::Source, rooms.0, SOURCE_CONNECTIONS),
        ("target-connections", Side::Target, rooms.1, TARGET_CONNECTIONS),
    ] {
        // A migration that runs has them, or had them just now.
        let needed = if input.resuming { 0 } else { fixed + input.jobs };
        report.add(id, room.map(|room| [connections(id, side, room, needed, sides)]));
    }
    let of_target = async {
        if input.target_database_exists { Some(catalog::surroundings(sides.target).await) } else { None }
    };
    let (of_source, of_target) = tokio::join!(catalog::surroundings(sides.source), of_target);
    match of_source {
        Ok(found) => {
            let languages = languages(&found, sides).await;
            report.add("target-languages", languages);
            for finding in source(&found, tables) {
                report.push(finding);
            }
        }
        Err(error) => report.push(Finding::unanswered("source-surroundings", &error)),
    }
    report.add("target-owner-code", owner_code::findings(sides, tables, input).await);
    report.add("target-c-functions", untrusted_functions(sides, input).await);
    report.add("source-search-path", search_path::functions(sides).await);
    report.add("target-row-security", forced(sides, tables, input).await);
    report.add("target-tables", unwritable(sides, input).await);
    if let Some(found) = of_target {
        report.add("target-surroundings", found.map(|found| target(&found)));
    }
}

/// What goes over: the first thing that whoever reads the report wants to know.
fn contents(sides: &Sides<'_>, tables: &[Table], total: u64, input: &PreflightInput) -> Finding {
    let id = "source-size";
    let bytes = sides.source_facts.database_bytes;
    let leaves = tables.iter().filter(|table| table.kind == TableKind::Plain);
    let rows: u64 = leaves.clone().map(|table| table.bytes).sum();
    let cause =
        format!("{} of {}; with indexes {}", counted(leaves.count(), "table"), size(rows), size(bytes));
    match input.wanted.total_bytes_max {
        Some(max) if total > max => {
            let all = if input.together.len() > 1 {
                format!(" (all databases: {})", size(total))
            } else {
                String::new()
            };
            let cause = format!("{cause}{all}: more than {} are not wanted", size(max));
            Finding::fail(id, "what is carried", cause)
                .hint("raise --dbs-max-total-size, and see that the target's plan has the room")
        }
        _ => Finding::info(id, "what is carried", cause),
    }
}

fn connections(id: &'static str, side: Side, room: SessionRoom, needed: u64, sides: &Sides<'_>) -> Finding {
    let facts = match side {
        Side::Source => &sides.source_facts,
        Side::Target => &sides.target_facts,
    };
    let role_left = room.role_max.map(|max| max.saturating_sub(room.role_used));
    if let (Some(max), Some(left)) = (room.role_max, role_left)
        && left < needed
    {
        let cause = format!("CONNECTION LIMIT {max}, {} in use, {needed} more needed", room.role_used);
        let limit = room.role_used.saturating_add(needed);
        let alter = Sql::new("ALTER ROLE ").ident(&facts.user.name).text(" CONNECTION LIMIT ").page(limit);
        return Finding::fail(id, format!("role {}", facts.user.name), cause)
            .hint(format!("fewer --jobs, or:\n{}", hints::command(alter)));
    }
    let cause = format!("{} of {} connections in use, {needed} more needed", room.used, room.max);
    if room.used.saturating_add(needed) <= room.max {
        return Finding::ok(id, side.as_str(), cause);
    }
    let value = facts.max_connections.saturating_add(needed).to_string();
    let more = hints::parameter(facts.provider, "max_connections", &value, true);
    // Sessions come and go: later there may be room.
    Finding::warning(id, side.as_str(), cause).hint(format!("fewer --jobs, or:\n{more}"))
}

/// Only a superuser makes functions in languages that may do anything, unless the target's administrator trusts one.
async fn untrusted_functions(sides: &Sides<'_>, input: &PreflightInput) -> Result<Option<Finding>, Error> {
    let user = &sides.target_facts.user;
    if user.superuser {
        return Ok(None);
    }
    let trusted = match input.target_database_exists {
        true => catalog::trusted_languages(sides.target).await?,
        false => Vec::new(),
    };
    let mut found = catalog::untrusted_functions(sides.source).await?;
    found.retain(|function| !trusted.contains(&function.language));
    if found.is_empty() {
        return Ok(None);
    }
    let names: Vec<String> =
        found.iter().map(|function| format!("{} ({})", function.name, function.language)).collect();
    let cause = format!(
        "role {} may not make them on the target: in languages that only superusers may use, and in no extension: {}",
        user.name,
        listed(&names)
    );
    let hint =
        "have them in an extension that the target offers, or drop them on the source with what uses them";
    Ok(Some(Finding::fail("target-c-functions", counted(found.len(), "function"), cause).hint(hint)))
}

/// Whoever makes a table on the target owns it; where its row-level security is forced, that is not enough to fill it.
async fn forced(
    sides: &Sides<'_>,
    tables: &[Table],
    input: &PreflightInput,
) -> Result<Option<Finding>, Error> {
    let user = &sides.target_facts.user;
    if user.bypass_rls {
        return Ok(None);
    }
    let moved = moved(tables, &input.tables, &sides.source_facts.database);
    let mut found = catalog::forced_row_security(sides.source).await?;
    let own: HashSet<_> =
        moved.iter().filter(|table| table.extension.is_none()).map(|table| &table.name).collect();
    found.retain(|name| own.contains(name));
    if found.is_empty() {
        return Ok(None);
    }
    let bypass = hints::command(Sql::new("ALTER ROLE ").ident(&user.name).text(" BYPASSRLS"));
    let no_force = |name: &QualifiedName| {
        hints::command(Sql::new("ALTER TABLE ").name(name).text(" NO FORCE ROW LEVEL SECURITY"))
    };
    let each: Vec<String> = found.iter().map(no_force).collect();
    let cause = format!(
        "FORCE ROW LEVEL SECURITY keeps it from writing to what it makes on the target: {}",
        listed(&found)
    );
    let hint = format!(
        "on the target, as a superuser:\n{bypass}\nor on the source, until the cutover:\n{}",
        each.join("\n")
    );
    Ok(Some(Finding::fail("target-row-security", format!("role {}", user.name), cause).hint(hint)))
}

/// Of a migration that has begun: somebody may have changed its tables there.
async fn unwritable(sides: &Sides<'_>, input: &PreflightInput) -> Result<Option<Finding>, Error> {
    if !input.resuming {
        return Ok(None);
    }
    let user = &sides.target_facts.user.name;
    let found = Store::new(sides.target, &input.migration).unwritable_tables().await?;
    if found.is_empty() {
        return Ok(None);
    }
    let mend = |table: &Unwritable| {
        let member =
            table.owner.as_ref().map(|owner| Sql::new("GRANT ").ident(owner).text(" TO ").ident(user));
        let unforce = Sql::new("ALTER TABLE ").name(&table.name).text(" NO FORCE ROW LEVEL SECURITY");
        let grant =
            Sql::new("GRANT SELECT, INSERT, UPDATE, DELETE ON ").name(&table.name).text(" TO ").ident(user);
        let grant = (table.refused && table.owner.is_none()).then_some(grant);
        let statements = [member, table.forced.then_some(unforce), grant];
        statements.into_iter().flatten().map(hints::command).collect::<Vec<_>>()
    };
    let statements: Vec<String> = found.iter().flat_map(mend).collect();
    let names: Vec<&QualifiedName> = found.iter().map(|table| &table.name).collect();
    let cause = format!(
        "may not write all that comes to tables of this migration, by row-level security or for want of a privilege: {}",
        listed(&names)
    );
    let hint = format!("on the target, as the tables' owner or a superuser:\n{}", statements.join("\n"));
    Ok(Some(Finding::fail("target-tables", format!("role {user}"), cause).hint(hint)))
}

async fn languages(found: &Surroundings, sides: &Sides<'_>) -> Result<Option<Finding>, Error> {
    if found.languages.is_empty() {
        return Ok(None);
    }
    let there = catalog::language_names(sides.target).await?;
    let missing: Vec<&String> = found.languages.iter().filter(|name| !there.contains(name)).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let available = catalog::available_extensions(sides.target).await?;
    let create = |name: &&&String| {
        let there = available.iter().any(|extension| extension.name == ***name);
        there.then(|| hints::command(Sql::new("CREATE EXTENSION ").ident(name)))
    };
    let mut commands: Vec<String> = missing.iter().filter_map(|name| create(&name)).collect();
    if commands.len() < missing.len() {
        commands.push(
            "drop the functions in those languages on the source, or ask the target's provider".to_owned(),
        );
    }
    let cause = "used on the source, and not there on the target";
    Ok(Some(Finding::fail("target-languages", listed(&missing), cause).hint(commands.join("\n"))))
}

fn source(found: &Surroundings, tables: &[Table]) -> Vec<Finding> {
    let not_carried = |id, what, names: &[String], hint: &str| {
        let subject = counted(names.len(), what);
        let finding = Finding::info(id, subject, format!("not carried: {}", listed(names))).hint(hint);
        (!names.is_empty()).then_some(finding)
    };
    let labels = (found.security_labels > 0).then(|| {
        let subject = counted(usize::try_from(found.security_labels).unwrap_or(usize::MAX), "security label");
        Finding::info("source-security-labels", subject, "not carried")
    });
    let tablespaces = (!found.tablespaces.is_empty()).then(|| {
        let subject = counted(found.tablespaces.len(), "tablespace");
        let cause =
            format!("not carried, what is in them goes to the default one: {}", listed(&found.tablespaces));
        Finding::info("source-tablespaces", subject, cause)
    });
    [
        replica_triggers("source-replica-triggers", &found.replica_triggers),
        changed_collations("source-collation-versions", &found.changed_collations),
        not_carried(
            "source-event-triggers",
            "event trigger",
            &found.event_triggers,
            "make them on the target after the cutover",
        ),
        foreign_servers(found),
        subscriptions(found),
        publications(found, tables),
        tablespaces,
        labels,
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn target(found: &Surroundings) -> Vec<Finding> {
    let subscriptions = (!found.subscriptions.is_empty()).then(|| {
        let disable =
            |name: &String| hints::command(Sql::new("ALTER SUBSCRIPTION ").ident(name).text(" DISABLE"));
        let commands: Vec<String> = found.subscriptions.iter().map(disable).collect();
        let cause = format!("may write to the tables that we write to: {}", listed(&found.subscriptions));
        let subject = counted(found.subscriptions.len(), "subscription");
        Finding::warning("target-subscriptions", subject, cause)
            .hint(format!("unless they are for other tables:\n{}", commands.join("\n")))
    });
    [
        replica_triggers("target-replica-triggers", &found.replica_triggers),
        changed_collations("target-collation-versions", &found.changed_collations),
        subscriptions,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What they do on the source comes over by itself, and they would do it once more.
fn replica_triggers(id: &'static str, found: &[ReplicaTrigger]) -> Option<Finding> {
    if found.is_empty() {
        return None;
    }
    let named: Vec<String> =
        found.iter().map(|trigger| format!("{} on {}", trigger.name, trigger.table)).collect();
    let cause = format!(
        "ENABLE REPLICA or ALWAYS: they act on the target once more, and all goes row by row: {}",
        listed(&named)
    );
    // For sessions that are no replica's, both are what they were.
    let alter = |trigger: &ReplicaTrigger| {
        let sql = Sql::new("ALTER TABLE ").name(&trigger.table);
        let sql = sql.text(if trigger.always { " ENABLE " } else { " DISABLE " });
        hints::command(sql.text(if trigger.rule { "RULE " } else { "TRIGGER " }).ident(&trigger.name))
    };
    let commands: Vec<String> = found.iter().map(alter).collect();
    Some(
        Finding::warning(id, counted(found.len(), "trigger or rule"), cause)
            .hint(format!("unless that is meant, until the cutover:\n{}", commands.join("\n"))),
    )
}

fn changed_collations(id: &'static str, found: &[ChangedCollation]) -> Option<Finding> {
    let first = found.first()?;
    let named: Vec<String> = found
        .iter()
        .map(|collation| match collation {
            ChangedCollation::Database(name) => format!("of database {name}"),
            ChangedCollation::Named(name) => name.to_string(),
        })
        .collect();
    let refresh = |collation: &ChangedCollation| {
        hints::command(match collation {
            ChangedCollation::Database(name) => {
                Sql::new("ALTER DATABASE ").ident(name).text(" REFRESH COLLATION VERSION")
            }
            ChangedCollation::Named(name) => Sql::new("ALTER COLLATION ").name(name).text(" REFRESH VERSION"),
        })
    };
    let reindex = match first {
        ChangedCollation::Database(name) => hints::command(Sql::new("REINDEX DATABASE ").ident(name)),
        ChangedCollation::Named(_) => "REINDEX each index over their columns;".to_owned(),
    };
    let commands: Vec<String> = std::iter::once(reindex).chain(found.iter().map(refresh)).collect();
    let cause = format!(
        "the library sorts otherwise than when indexes were made: rows may not be found, or be there twice: {}",
        listed(&named)
    );
    Some(Finding::warning(id, counted(found.len(), "collation"), cause).hint(commands.join("\n")))
}

fn foreign_servers(found: &Surroundings) -> Option<Finding> {
    if found.foreign_servers.is_empty() {
        return None;
    }
    let cause = format!(
        "the target must reach them by itself; {} of theirs come without what this role may not read: {}",
        counted(found.user_mappings.iter().filter(|mapping| mapping.hidden).count(), "user mapping"),
        listed(&found.foreign_servers)
    );
    // What is not shown to this role, the target's mapping lacks altogether.
    let alter = |mapping: &UserMapping| {
        let sql = Sql::new("ALTER USER MAPPING FOR ");
        let sql = match &mapping.role {
            Some(role) => sql.ident(role),
            None => sql.text("PUBLIC"),
        };
        let sql = sql.text(" SERVER ").ident(&mapping.server);
        hints::command(sql.text(" OPTIONS (ADD user '…', ADD password '…')"))
    };
    let hidden = found.user_mappings.iter().filter(|mapping| mapping.hidden);
    let commands: Vec<String> = hidden.map(alter).collect();
    let subject = counted(found.foreign_servers.len(), "foreign server");
    let finding = Finding::warning("source-foreign-servers", subject, cause);
    if commands.is_empty() {
        return Some(finding);
    }
    Some(finding.hint(format!("on the target, once the schema is there:\n{}", commands.join("\n"))))
}

fn subscriptions(found: &Surroundings) -> Option<Finding> {
    if found.subscriptions.is_empty() {
        return None;
    }
    let cause = format!(
        "write into this database: their rows are carried, they themselves are not: {}",
        listed(&found.subscriptions)
    );
    let hint =
        "at the cutover disable them on the source before the fence, and make them on the target after it";
    let subject = counted(found.subscriptions.len(), "subscription");
    Some(Finding::warning("source-subscriptions", subject, cause).hint(hint))
}

fn publications(found: &Surroundings, tables: &[Table]) -> Option<Finding> {
    if found.publications.is_empty() {
        return None;
    }
    let (id, subject) = ("source-publications", counted(found.publications.len(), "publication"));
    let cause = format!("not carried: {}", listed(&found.publications));
    let hint = "make them on the target after the cutover, and their subscribers anew";
    let rejected = super::names(tables, |table| table.is_leaf() && !table.has_identity());
    let of_all = found.publications_of_all.iter().find(|name| found.publications.contains(name));
    match of_all {
        Some(of_all) if !rejected.is_empty() => {
            let cause = format!(
                "{cause}; {of_all} is FOR ALL TABLES, so the source rejects updates and deletes of tables without replica \
                 identity, with us or without: {}",
                listed(&rejected)
            );
            Some(Finding::warning(id, subject, cause).hint(hint))
        }
        _ => Some(Finding::info(id, subject, cause).hint(hint)),
    }
}
