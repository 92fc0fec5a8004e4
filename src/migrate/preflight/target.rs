//! Findings about the database that data goes to.

use std::collections::BTreeSet;

use super::report::{counted, listed};
use super::{Finding, PreflightInput, Report, Severity, Sides, hints};
use crate::catalog::{
    self, AvailableExtension, DatabaseLocale, Error, Extension, OtherContents, Provider, ReplicaRole,
    SchemaPrivilege, ServerFacts, Stranger, Table, TargetTable,
};
use crate::pg::{QualifiedName, Sql};

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, tables: &[Table], input: &PreflightInput) {
    if input.target_database_exists {
        let found = catalog::tables(sides.target).await;
        report.add("target-empty", found.map(|found| [empty(&own(found), tables, sides, input.resuming)]));
        let found = catalog::target_tables(sides.target).await;
        report.add("target-extension-tables", found.map(|found| not_ours(&found, tables, sides)));
        let found = catalog::other_contents(sides.target).await;
        let found = found.map(|found| large_objects(&found, sides, input.resuming));
        report.add("target-large-objects", found);
        report.push(database_privilege(&sides.target_facts));
        let found = catalog::schema_privilege(sides.target, "public").await;
        report.add("target-schema-public", found.map(|found| [schema_public(found, sides, tables)]));
        report.push(locale(sides));
    }
    let found = catalog::stranger_with_our_schema(sides.target).await;
    report.add("target-walferry-schema", found.map(|stranger| schema_walferry(stranger, sides)));
    let found = catalog::replica_role(sides.target).await;
    report.add("target-replication-role", found.map(|found| [replica_role(found, sides, tables, input)]));
    report.add("target-extensions", extensions(sides, input).await);
}

/// Those that extensions did not make.
fn own(mut tables: Vec<Table>) -> Vec<Table> {
    tables.retain(|table| table.extension.is_none());
    tables
}

/// Tables of extensions that belong to whoever made the extension.
fn not_ours(found: &[TargetTable], source: &[Table], sides: &Sides<'_>) -> Option<Finding> {
    let wanted = |there: &TargetTable| source.iter().any(|table| table.name == there.name);
    let refused: Vec<_> = found
        .iter()
        .filter(|there| there.condition.is_some() && !there.writable && wanted(there))
        .map(|there| &there.name)
        .collect();
    if refused.is_empty() {
        return None;
    }
    let user = &sides.target_facts.user.name;
    let cause = format!(
        "may not write to tables of extensions; where the source has rows of its users in them, the copy stops: {}",
        listed(&refused)
    );
    let grant = |name: &&QualifiedName| {
        hints::command(Sql::new("GRANT SELECT, INSERT, DELETE ON ").name(name).text(" TO ").ident(user))
    };
    let commands: Vec<String> = refused.iter().map(grant).collect();
    let hint = format!("as a superuser:\n{}\nor: --no-replicate-extension-tables", commands.join("\n"));
    Some(Finding::warning("target-extension-tables", format!("role {user}"), cause).hint(hint))
}

fn empty(found: &[Table], source: &[Table], sides: &Sides<'_>, resuming: bool) -> Finding {
    let id = "target-empty";
    let subject = format!("target database {}", sides.target_facts.database);
    if resuming {
        return Finding::ok(id, subject, "holds what the migration has made so far");
    }
    if found.is_empty() {
        return Finding::ok(id, subject, "has no tables");
    }
    let filled: Vec<_> = found.iter().filter(|table| table.pages > 0).map(|table| &table.name).collect();
    let clashing: Vec<_> = found
        .iter()
        .map(|table| &table.name)
        .filter(|name| source.iter().any(|table| table.name == **name))
        .collect();
    let hint = "give --target an empty database, or drop these tables";
    if !filled.is_empty() {
        let cause = format!("has data in {}: {}", counted(filled.len(), "table"), listed(&filled));
        Finding::fail(id, subject, cause).hint(hint)
    } else if !clashing.is_empty() {
        let cause =
            format!("has {} of the source already: {}", counted(clashing.len(), "table"), listed(&clashing));
        Finding::fail(id, subject, cause).hint(hint)
    } else {
        let names: Vec<_> = found.iter().map(|table| &table.name).collect();
        Finding::warning(id, subject, format!("has tables of its own, all empty: {}", listed(&names)))
            .hint(hint)
    }
}

fn large_objects(found: &OtherContents, sides: &Sides<'_>, resuming: bool) -> Option<Finding> {
    if resuming || found.large_objects == 0 {
        return None;
    }
    let count = counted(usize::try_from(found.large_objects).unwrap_or(usize::MAX), "large object");
    let cause =
        format!("has {count} of its own, which stay; one under an identifier of the source's stops the copy");
    let subject = format!("target database {}", sides.target_facts.database);
    Some(Finding::info("target-large-objects", subject, cause))
}

fn database_privilege(facts: &ServerFacts) -> Finding {
    let id = "target-create";
    let subject = format!("role {}", facts.user.name);
    if facts.user.creates_in_database {
        return Finding::ok(id, subject, format!("may create schemas in {}", facts.database));
    }
    let grant =
        Sql::new("GRANT CREATE ON DATABASE ").ident(&facts.database).text(" TO ").ident(&facts.user.name);
    Finding::fail(id, subject, format!("may not create schemas in {}", facts.database))
        .hint(hints::command(grant))
}

/// Since 15, nobody but its owner may create objects in the schema public of a new database.
fn schema_public(found: SchemaPrivilege, sides: &Sides<'_>, tables: &[Table]) -> Finding {
    let id = "target-schema-public";
    let user = &sides.target_facts.user.name;
    let subject = format!("role {user}");
    let severity = if tables.iter().any(|table| table.name.schema == "public") {
        Severity::Fail
    } else {
        Severity::Warning
    };
    match found {
        SchemaPrivilege::Create => Finding::ok(id, subject, "may create tables in schema public"),
        SchemaPrivilege::Missing => {
            Finding::info(id, subject, "there is no schema public; it will be created if needed")
        }
        SchemaPrivilege::Refused => {
            let grant = Sql::new("GRANT USAGE, CREATE ON SCHEMA public TO ").ident(user);
            Finding::new(id, severity, subject, "may not create tables in schema public")
                .hint(hints::command(grant))
        }
    }
}

fn schema_walferry(stranger: Option<Stranger>, sides: &Sides<'_>) -> Option<Finding> {
    let (stranger, user) = (stranger?, &sides.target_facts.user.name);
    let finding = Finding::fail("target-walferry-schema", format!("role {user}"), stranger.cause());
    Some(finding.hint(stranger.hint()))
}

fn locale(sides: &Sides<'_>) -> Finding {
    let id = "target-locale";
    let (source, target) = (&sides.source_facts.locale, &sides.target_facts.locale);
    let subject = "encoding and collation";
    if source == target {
        return Finding::ok(id, subject, format!("both have {}", describe(source)));
    }
    let cause = format!("the source has {}, the target {}", describe(source), describe(target));
    let hint = "drop this empty database and create it with the source's ENCODING, \
                LC_COLLATE and LC_CTYPE from template0";
    if source.encoding == target.encoding {
        return Finding::warning(id, subject, format!("{cause}: text may sort otherwise")).hint(hint);
    }
    if source.encoding == "SQL_ASCII" {
        return Finding::warning(
            id,
            subject,
            format!("{cause}: text that is not valid there is refused when copied"),
        )
        .hint(hint);
    }
    if target.encoding == "UTF8" {
        return Finding::warning(id, subject, format!("{cause}: text is converted")).hint(hint);
    }
    Finding::fail(id, subject, format!("{cause}, which cannot hold all of it")).hint(hint)
}

fn describe(locale: &DatabaseLocale) -> String {
    let icu = locale.locale.as_deref().map(|name| format!(", locale {name}")).unwrap_or_default();
    format!("{}, collate {}, ctype {}{icu}", locale.encoding, locale.collate, locale.ctype)
}

fn replica_role(found: ReplicaRole, sides: &Sides<'_>, tables: &[Table], input: &PreflightInput) -> Finding {
    let id = "target-replication-role";
    let user = &sides.target_facts.user.name;
    let subject = format!("role {user}");
    let grant = hints::command(Sql::new("GRANT SET ON PARAMETER session_replication_role TO ").ident(user));
    let hint = match found {
        ReplicaRole::Set => return Finding::ok(id, subject, "may set session_replication_role"),
        ReplicaRole::AivenExtras | ReplicaRole::AivenExtrasAvailable if !input.target_database_exists => {
            return Finding::ok(id, subject, "will use aiven_extras, created with the database");
        }
        ReplicaRole::AivenExtras => {
            return Finding::ok(id, subject, "may use aiven_extras.session_replication_role()");
        }
        ReplicaRole::AivenExtrasAvailable => {
            format!("CREATE EXTENSION aiven_extras CASCADE;\nor as a superuser:\n{grant}")
        }
        ReplicaRole::Refused => {
            format!(
                "as a superuser:\n{grant}\nor install the extension aiven_extras, then:\nCREATE EXTENSION aiven_extras CASCADE;"
            )
        }
    };
    let triggered = super::names(tables, |table| table.has_triggers);
    let cause = "may neither set session_replication_role nor use aiven_extras";
    if triggered.is_empty() {
        return Finding::warning(
            id,
            subject,
            format!("{cause}; the source has no triggers and no foreign keys, so it works without"),
        )
        .hint(hint);
    }
    let cause = format!(
        "{cause}, so triggers and foreign keys would fire again for {}",
        counted(triggered.len(), "table")
    );
    Finding::fail(id, subject, format!("{cause}: {}", listed(&triggered))).hint(hint)
}

async fn extensions(sides: &Sides<'_>, input: &PreflightInput) -> Result<Vec<Finding>, Error> {
    let available = catalog::available_extensions(sides.target).await?;
    let installed = catalog::extensions(sides.target).await?;
    let wanted = catalog::extensions(sides.source).await?;
    // Aiven's own helps to migrate, and is not carried.
    let carried =
        |found: &Extension| found.name != "aiven_extras" && !input.excluded_extensions.contains(&found.name);
    let wanted: Vec<Extension> = wanted.into_iter().filter(carried).collect();
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|wanted| !available.iter().any(|found| found.name == wanted.name))
        .map(|wanted| wanted.name.as_str())
        .collect();
    let mut findings = Vec::new();
    if missing.is_empty() {
        findings.push(Finding::ok(
            "target-extensions",
            "extensions",
            "the target has every one of the source's",
        ));
    } else {
        let cause = "used on the source, and not available on the target";
        let hint = "drop them on the source with what uses them, ask the target's provider for them, or leave them \
                    out with --excluded-extensions";
        findings.push(Finding::fail("target-extensions", listed(&missing), cause).hint(hint));
    }
    findings.extend(wanted.iter().filter_map(|wanted| {
        let installed = installed.iter().find(|found| found.name == wanted.name);
        let available = available.iter().find(|found| found.name == wanted.name)?;
        version(wanted, installed, available)
    }));
    let refused: Vec<&Extension> = wanted
        .iter()
        .filter(|wanted| !installed.iter().any(|found| found.name == wanted.name))
        .filter(|wanted| available.iter().any(|found| found.name == wanted.name && !found.trusted))
        .collect();
    findings.extend(untrusted(&refused, &sides.target_facts));
    let mut dropped = BTreeSet::new();
    for wanted in &wanted {
        // One that goes with another is to be made with the rest, and then as the source has it.
        let there =
            installed.iter().find(|found| found.name == wanted.name && !dropped.contains(&found.name));
        if let Some(there) = there {
            findings.extend(elsewhere(sides, wanted, there, &mut dropped).await?);
        }
    }
    findings.extend(excluded(sides, input, &installed).await?);
    Ok(findings)
}

/// What would have to be made on the target, and needs an extension that is not made there.
async fn excluded(
    sides: &Sides<'_>,
    input: &PreflightInput,
    installed: &[Extension],
) -> Result<Option<Finding>, Error> {
    let there = |name: &String| installed.iter().any(|found| found.name == *name);
    let absent: Vec<String> = input.excluded_extensions.iter().filter(|name| !there(name)).cloned().collect();
    if absent.is_empty() {
        return Ok(None);
    }
    let id = "source-excluded-extensions";
    let needing = catalog::dependents_of(sides.source, &absent).await?;
    if needing.is_empty() {
        return Ok(Some(Finding::ok(id, listed(&absent), "left out, and nothing depends on them")));
    }
    let cause = format!("left out, but needed by: {}", listed(&needing));
    let hint = "drop what needs them on the source, or do not leave them out";
    Ok(Some(Finding::fail(id, listed(&absent), cause).hint(hint)))
}

/// The dump names what an extension has by the source's schema.
async fn elsewhere(
    sides: &Sides<'_>,
    wanted: &Extension,
    there: &Extension,
    dropped: &mut BTreeSet<String>,
) -> Result<Option<Finding>, Error> {
    if wanted.schema == there.schema {
        return Ok(None);
    }
    let id = "target-extension-schema";
    let cause =
        format!("in schema {} on the source, made in schema {} on the target", wanted.schema, there.schema);
    let needing = catalog::dependents_of(sides.source, std::slice::from_ref(&wanted.name)).await?;
    if needing.is_empty() {
        let cause = format!("{cause}; nothing depends on it by name, as far as the source's catalog tells");
        return Ok(Some(Finding::info(id, &wanted.name, cause)));
    }
    let moved = if there.relocatable {
        let alter =
            Sql::new("ALTER EXTENSION ").ident(&wanted.name).text(" SET SCHEMA ").ident(&wanted.schema);
        hints::command(alter)
    } else {
        let mut names = catalog::extensions_needing(sides.target, &wanted.name).await?;
        dropped.extend(names.iter().cloned());
        names.push(wanted.name.clone());
        let drop = Sql::new("DROP EXTENSION ").list(&names, ", ", |sql, name| sql.ident(name));
        format!("{}\n{}", hints::command(drop), create_in_schema(wanted))
    };
    let hint = format!("on the target, as its owner:\n{}{moved}", schema_of(wanted, &sides.target_facts));
    let cause = format!("{cause}, and needed by: {}", listed(&needing));
    Ok(Some(Finding::fail(id, &wanted.name, cause).hint(hint)))
}

/// Makes the extension's schema and lets Walferry use it, whoever runs this: lines, or nothing where that is so anyhow.
fn schema_of(extension: &Extension, target: &ServerFacts) -> String {
    if ["public", "pg_catalog"].contains(&extension.schema.as_str()) {
        return String::new();
    }
    let schema = hints::command(Sql::new("CREATE SCHEMA IF NOT EXISTS ").ident(&extension.schema));
    let grant = Sql::new("GRANT USAGE ON SCHEMA ").ident(&extension.schema).text(" TO ");
    format!("{schema}\n{}\n", hints::command(grant.ident(&target.user.name)))
}

fn create_in_schema(extension: &Extension) -> String {
    let create = Sql::new("CREATE EXTENSION ").ident(&extension.name).text(" SCHEMA ");
    hints::command(create.ident(&extension.schema))
}

fn version(
    wanted: &Extension,
    installed: Option<&Extension>,
    available: &AvailableExtension,
) -> Option<Finding> {
    let found = installed.map_or(&available.default_version, |installed| &installed.version);
    if *found == wanted.version {
        return None;
    }
    let id = "target-extension-version";
    let cause = format!("version {} on the source, {found} on the target", wanted.version);
    let same = available.versions.contains(&wanted.version);
    if installed.is_none() && same {
        let create =
            Sql::new("CREATE EXTENSION ").ident(&wanted.name).text(" WITH VERSION ").ident(&wanted.version);
        let hint = format!("for the same version, beforehand: {}", hints::command(create));
        return Some(Finding::info(id, &wanted.name, cause).hint(hint));
    }
    let severity = if same { Severity::Info } else { Severity::Warning };
    let hint = format!("read the extension's notes on the difference; on the source, perhaps: {}", {
        hints::command(Sql::new("ALTER EXTENSION ").ident(&wanted.name).text(" UPDATE"))
    });
    Some(Finding::new(id, severity, &wanted.name, cause).hint(hint))
}

/// Aiven lets its users create the extensions that it offers, trusted or not.
fn untrusted(refused: &[&Extension], target: &ServerFacts) -> Option<Finding> {
    if refused.is_empty() || target.user.superuser || target.provider == Provider::Aiven {
        return None;
    }
    let names: Vec<&str> = refused.iter().map(|extension| extension.name.as_str()).collect();
    let create = |extension: &&Extension| schema_of(extension, target) + &create_in_schema(extension);
    let commands: Vec<String> = refused.iter().map(create).collect();
    let cause = format!("role {} may not create them: they are not trusted extensions", target.user.name);
    let hint = format!("as a superuser, beforehand:\n{}", commands.join("\n"));
    Some(Finding::fail("target-extension-privilege", listed(&names), cause).hint(hint))
}
