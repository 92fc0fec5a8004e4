//! Findings about the source's roles.

use super::report::{counted, listed};
use super::{Finding, PreflightInput, Report, Sides, hints};
use crate::error::Side;
use crate::migrate::roles::{is_carried, leaves};
use crate::pg::Sql;
use crate::source::Error;
use crate::source::catalog::{self, Role};

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    let there = match catalog::roles(sides.target).await {
        Ok(there) => there,
        Err(error) => return report.push(Finding::unanswered("target-roles", Side::Target, error)),
    };
    let found = catalog::roles(sides.source).await.map(|roles| {
        let carried = roles.into_iter().filter(|role| is_carried(role, &input.ignored_roles));
        carried.collect::<Vec<Role>>()
    });
    let roles = match found {
        Ok(roles) => roles,
        Err(error) => return report.push(Finding::unanswered("source-roles", Side::Source, error)),
    };
    let (existing, missing): (Vec<Role>, Vec<Role>) =
        roles.into_iter().partition(|role| there.iter().any(|there| there.name == role.name));
    report.push(makes(sides, &missing));
    report.add("target-roles-existing", Side::Target, Ok(left_alone(&existing)));
    report.add("target-role-attributes", Side::Target, Ok(attributes(sides, &missing)));
    report.add("source-role-passwords", Side::Source, passwords(sides, &missing).await);
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

async fn passwords(sides: &Sides<'_>, missing: &[Role]) -> Result<Option<Finding>, Error> {
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
    let cause = format!(
        "get new passwords, written to --passwords-file, since {user} may not read the old ones: {}",
        listed(&unknown)
    );
    let grant = Sql::new("GRANT SELECT ON pg_catalog.pg_authid TO ").ident(user);
    let hint = format!("to keep them, on the source as a superuser: {}", hints::command(grant));
    let subject = counted(unknown.len(), "role");
    Ok(Some(Finding::info("source-role-passwords", subject, cause).hint(hint)))
}

fn names(roles: &[Role]) -> Vec<&str> {
    roles.iter().map(|role| role.name.as_str()).collect()
}
