//! Findings about the source's roles.

use std::collections::BTreeSet;

use super::report::{counted, listed};
use super::{Finding, PreflightInput, Report, Sides, hints};
use crate::catalog::{self, Error, Role};
use crate::migrate::roles::{LeftOut, is_carried, leaves, left_out};
use crate::pg::Sql;

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    let there = match catalog::roles(sides.target).await {
        Ok(there) => there,
        Err(error) => return report.push(Finding::unanswered("target-roles", &error)),
    };
    let found = catalog::roles(sides.source).await.map(|roles| {
        let carried = roles.into_iter().filter(|role| is_carried(role, &input.ignored_roles));
        carried.collect::<Vec<Role>>()
    });
    let roles = match found {
        Ok(roles) => roles,
        Err(error) => return report.push(Finding::unanswered("source-roles", &error)),
    };
    if !input.resuming {
        let found = left_out(sides.source, sides.target, &roles, &input.granted_roles).await;
        report.add("target-role-memberships", found.map(|found| memberships(&found)));
    }
    let (existing, missing): (Vec<Role>, Vec<Role>) =
        roles.into_iter().partition(|role| there.iter().any(|there| there.name == role.name));
    report.push(makes(sides, &missing));
    report.add("target-roles-existing", Ok(left_alone(&existing)));
    report.add("target-role-attributes", Ok(attributes(sides, &missing)));
    report.add("source-role-passwords", passwords(sides, &missing, input).await);
}

fn makes(sides: &Sides<'_>, missing: &[Role]) -> Finding {
    let id = "target-roles";
    let user = &sides.target_facts.user;
    let subject = format!("role {}", user.name);
    if missing.is_empty() {
        return Finding::ok(id, subject, "has every role of the source already");
    }
    let roles = counted(missing.len(), "role");
    if user.superuser || user.create_role {
        return Finding::ok(id, subject, format!("may make the source's {roles}"));
    }
    let cause =
        format!("may not make roles, so these and their grants are not carried: {}", listed(&names(missing)));
    let alter = Sql::new("ALTER ROLE ").ident(&user.name).text(" CREATEROLE");
    Finding::warning(id, subject, cause).hint(hints::command(alter))
}

fn left_alone(existing: &[Role]) -> Option<Finding> {
    if existing.is_empty() {
        return None;
    }
    let cause = format!(
        "on the target already: their passwords, attributes and settings stay as they are there: {}",
        listed(&names(existing))
    );
    Some(Finding::info("target-roles-existing", counted(existing.len(), "role"), cause))
}

/// Whoever becomes a member of a role may do what that one may: of the server's files, where it is
/// `pg_execute_server_program`.
fn memberships(found: &[LeftOut]) -> Option<Finding> {
    if found.is_empty() {
        return None;
    }
    let each: Vec<String> = found.iter().map(LeftOut::to_string).collect();
    let existing: BTreeSet<&str> = found.iter().flat_map(|it| &it.existing).map(String::as_str).collect();
    let existing: Vec<&str> = existing.into_iter().collect();
    let cause = format!(
        "are not carried, since the target has roles of these names, which may mean another thing there: {}",
        listed(&each)
    );
    let hint = format!(
        "to carry them all the same, which gives their members on the target all that these roles may do there: \
         --grant-existing-roles {}",
        existing.join(",")
    );
    Some(Finding::info("target-role-memberships", counted(found.len(), "membership"), cause).hint(hint))
}

fn attributes(sides: &Sides<'_>, missing: &[Role]) -> Option<Finding> {
    let left_out = |role: &Role| {
        let attributes = leaves(role, &sides.target_facts.user, sides.target_facts.version);
        (!attributes.is_empty()).then(|| format!("{} ({})", role.name, attributes.join(", ")))
    };
    let roles: Vec<String> = missing.iter().filter_map(left_out).collect();
    if roles.is_empty() {
        return None;
    }
    let cause =
        format!("are made without what {} may not give: {}", sides.target_facts.user.name, listed(&roles));
    Some(Finding::info("target-role-attributes", counted(roles.len(), "role"), cause))
}

/// As psql's `\\c` takes it.
fn quoted(name: &str) -> String {
    Sql::default().ident(name).to_string()
}

async fn passwords(
    sides: &Sides<'_>,
    missing: &[Role],
    input: &PreflightInput,
) -> Result<Option<Finding>, Error> {
    let hashes = catalog::password_hashes(sides.source).await?.unwrap_or_default();
    let unknown: Vec<&str> = missing
        .iter()
        .filter(|role| role.login && !hashes.contains_key(&role.name))
        .map(|role| role.name.as_str())
        .collect();
    if unknown.is_empty() {
        return Ok(None);
    }
    let user = &sides.source_facts.user.name;
    if !input.passwords_kept {
        let cause = format!(
            "get new passwords, and there is no place for them: {user} may not read the old ones, and there is no home \
             directory: {}",
            listed(&unknown)
        );
        let hint = "give --passwords-file, on a disk that lasts";
        return Ok(Some(
            Finding::fail("source-role-passwords", counted(unknown.len(), "role"), cause).hint(hint),
        ));
    }
    let cause = format!(
        "get new passwords, written to --passwords-file, since {user} may not read the old ones: {}",
        listed(&unknown)
    );
    let grant = Sql::new("GRANT SELECT ON pg_catalog.pg_authid TO ").ident(user);
    // Catalogs that are shared have privileges in each database.
    let database = &sides.source_facts.database;
    let each = |name: &String| format!("\\c {}\n{}", quoted(name), hints::command(grant.clone()));
    let hint = match input.together.as_slice() {
        [] | [_] => format!(
            "to keep them, on the source as a superuser, in database {database}, where alone it counts:\n{}",
            hints::command(grant.clone())
        ),
        several => format!(
            "to keep them, on the source as a superuser, in each database, since it counts only where it is run:\n{}",
            several.iter().map(each).collect::<Vec<_>>().join("\n")
        ),
    };
    let subject = counted(unknown.len(), "role");
    Ok(Some(Finding::info("source-role-passwords", subject, cause).hint(hint)))
}

fn names(roles: &[Role]) -> Vec<&str> {
    roles.iter().map(|role| role.name.as_str()).collect()
}
