//! Functions of the source's owners that will run on the target: as whom, and whose they are.

use super::report::{counted, listed};
use super::{Finding, PreflightInput, Sides};
use crate::catalog::{self, Error, Role, Table};
use crate::migrate::filter::moved;
use crate::migrate::roles::is_carried;
use crate::pg::QualifiedName;

const ID: &str = "target-owner-code";

/// What the owners of tables have had run for each row runs as whoever writes the rows. On the target that is a role made
/// for this, where it can be had; else the target's user, who may more: read what Walferry keeps there.
pub(super) async fn findings(
    sides: &Sides<'_>,
    tables: &[Table],
    input: &PreflightInput,
) -> Result<Vec<Finding>, Error> {
    let user = &sides.target_facts.user;
    let of_rows = catalog::owner_code(sides.source).await?;
    let roles = catalog::roles(sides.source).await?;
    let makes = user.superuser || user.create_role;
    let mut findings = Vec::new();
    if !of_rows.is_empty() {
        let secured = secured(sides, tables, input, &roles).await?;
        let (functions, called) = (counted(of_rows.len(), "function"), owned(&of_rows));
        findings.push(of_writer(&user.name, makes, &secured, functions, &called));
    }
    // Whose owner stays behind, that stays with the target's user.
    let there = catalog::roles(sides.target).await?;
    let stays_behind = |role: &Role| {
        !is_carried(role, &input.ignored_roles) || !makes && there.iter().all(|there| there.name != role.name)
    };
    let behind: Vec<String> = roles.into_iter().filter(stays_behind).map(|role| role.name).collect();
    let of_objects = catalog::code_of_objects_of(sides.source, &behind).await?;
    if !of_objects.is_empty() {
        let cause = format!(
            "run on the target in the name of {}, when statistics are gathered and materialised views filled whose owners \
             are not carried: {}",
            user.name,
            owned(&of_objects)
        );
        let hint = "read them before; or have the owners carried, so that the functions run as them";
        findings.push(Finding::warning(ID, counted(of_objects.len(), "function"), cause).hint(hint));
    }
    Ok(findings)
}

/// As whom functions run that are called for each row.
fn of_writer(user: &str, makes: bool, secured: &[QualifiedName], functions: String, called: &str) -> Finding {
    let apart = "where their owners are not trusted with that, leave their tables out with --skip-table, or have them drop what \
                 calls the functions until the cutover is done";
    if makes && secured.is_empty() {
        let cause = format!(
            "run on the target, whenever rows are copied or applied, as a role that is made for that, which may what the owners \
             of the tables may, and no more: {called}"
        );
        let hint = format!("they can reach the rows of each other's tables: read them before; {apart}");
        return Finding::info(ID, functions, cause).hint(hint);
    }
    let cause =
        format!("run on the target in the name of {user}, whenever rows are copied or applied: {called}");
    let remedy = if makes {
        let tables: Vec<String> = secured.iter().map(ToString::to_string).collect();
        format!(
            "no role can be made for them: it would not see all rows of {}, which have row-level security, and owners that are \
             not carried or may make roles, replicate or bypass it",
            listed(&tables)
        )
    } else {
        format!("let {user} make roles (CREATEROLE), so that they run as one that may less")
    };
    Finding::warning(ID, functions, cause).hint(format!("{remedy}; or read them before; {apart}"))
}

/// Tables that move, and whose rows only their owner sees on the target, or not even he: one of whom the role that writes rows
/// is no member, since he is not carried, or may more than own.
async fn secured(
    sides: &Sides<'_>,
    tables: &[Table],
    input: &PreflightInput,
    roles: &[Role],
) -> Result<Vec<QualifiedName>, Error> {
    let plain = |role: &&Role| {
        is_carried(role, &input.ignored_roles)
            && !(role.superuser || role.create_role || role.replication || role.bypass_rls)
    };
    let plain: Vec<&str> = roles.iter().filter(plain).map(|role| role.name.as_str()).collect();
    let moved: Vec<Table> = moved(tables, &input.tables, &sides.source_facts.database);
    let found = catalog::secured_tables(sides.source).await?.into_iter();
    let found = found.filter(|(name, owner)| {
        owner.as_ref().is_none_or(|owner| !plain.contains(&owner.as_str()))
            && moved.iter().any(|table| table.name == *name)
    });
    Ok(found.map(|(name, _)| name).collect())
}

fn owned(found: &[catalog::OwnerCode]) -> String {
    let one = |code: &catalog::OwnerCode| {
        let by = code.called_by.first().map_or("", String::as_str);
        let more = code.called_by.len().saturating_sub(1);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} of {} ({by}{more})", code.function, code.owner)
    };
    listed(&found.iter().map(one).collect::<Vec<String>>())
}
