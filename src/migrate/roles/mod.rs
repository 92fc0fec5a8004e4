//! Roles, and what is theirs: attributes, passwords, memberships and settings; ownership and grants; the database's own
//! properties.
//!
//! | module | what it does |
//! |---|---|
//! | this one | [`carry_roles`]: roles of the cluster, before the schema, whose policies and user mappings name them |
//! | [`make`] | one role: its statement, attributes, settings |
//! | [`passwords`] | the file with the passwords that had to be made |
//! | [`mod@login`] | their LOGIN, which they get last |
//! | [`ownership`], [`grants`] | [`carry_owners`], [`carry_objects`]: who owns what and who may what, once everything is made |
//! | [`database`] | [`carry_database`]: owner, grants, settings, connection limit, comment; [`carry_search_path`] |
//! | [`statements`], [`settings`] | how statements are run and values are spelt |
//!
//! The target's user is no superuser, so each statement may be refused. What is refused is a warning with the statement
//! to run, never the end: rows can be moved without it. All functions look at both sides and do what is missing: run
//! again, they do nothing.
//!
//! A role that the target has already is left as it is, its password above all: who becomes a member of the target's
//! user, or of a role of the server, gets all that it may do, and a name alone does not say that both sides mean the same
//! by it. So memberships are carried among the roles that Walferry makes, and those that the user names. All roles come in
//! one transaction, so one that is there is there with everything.

mod database;
mod grants;
mod login;
mod make;
mod ownership;
mod passwords;
mod settings;
mod statements;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;

use crate::catalog::{self, Membership, Role, SourceClient, TargetClient};
use crate::error::Result;
use crate::pg::Sql;
use crate::store::Store;

pub use database::{carry_database, carry_search_path};
pub use ownership::{carry_objects, carry_owners};
pub use statements::Refused;

pub(super) use login::{give_login, login};
pub(super) use make::leaves;
pub(super) use statements::{Within, attempt, execute};

use make::{Made, Maker};
use passwords::PasswordFile;
use statements::{log_refused, run};

/// Which roles, and where their new passwords go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolesOptions {
    /// Roles to leave out.
    pub ignored: Vec<String>,
    /// Roles on the target already whose memberships are carried: made before, or named by the user.
    pub granted: Vec<String>,
    /// The file for passwords that had to be made; without one, none is made.
    pub passwords_file: Option<PathBuf>,
    /// The migration that remembers, in the database of the target's session, which roles it made.
    pub migration: Option<String>,
    /// Whether roles that may log in on the source may do so here from now on; else somebody has to give them LOGIN later.
    pub open: bool,
}

/// What became of the source's roles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RolesReport {
    /// Made on the target.
    pub made: Vec<String>,
    /// On the target already, and left as they are.
    pub existing: Vec<String>,
    /// Of those made, the ones that may log in on the source, and not here yet.
    pub shut: Vec<String>,
    /// Of those made, the ones with a new password.
    pub new_passwords: Vec<String>,
    /// What the target refused.
    pub refused: Vec<Refused>,
    /// Memberships that were not carried.
    pub left_out: Vec<LeftOut>,
}

/// A membership that was not carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Of which role.
    pub role: String,
    /// Who would be a member.
    pub member: String,
    /// Which of both Walferry did not make, and nobody has named.
    pub existing: Vec<String>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.member, self.role)
    }
}

/// Roles that belong to the server or to whoever runs it: names, and beginnings of names. The superuser that a cluster
/// was made with goes by its identifier, whatever its name.
const RESERVED: [&str; 11] = [
    "_aiven*",
    "alloydb*",
    "azure_*",
    "azuresu",
    "cloudsql*",
    "pg_*",
    "rds_*",
    "rdsadmin",
    "rdsproxyadmin",
    "rdsrepladmin",
    "rdstopmgr",
];

/// Makes the roles of `source` that `target` lacks, with attributes, passwords, settings, comments and memberships.
///
/// # Errors
/// When a side does not answer, or the passwords' file cannot be read or written; nothing is made then. What the target
/// refuses is no error: see [`RolesReport::refused`].
pub async fn carry_roles(
    source: &SourceClient,
    target: &TargetClient,
    options: &RolesOptions,
) -> Result<RolesReport> {
    let wanted = carried(source, &options.ignored).await?;
    run(target, &Sql::new("BEGIN")).await?;
    let report = match carry(source, target, &wanted, options).await {
        Ok(report) => report,
        Err(failure) => {
            // The failure is what matters; a session that is gone has rolled back.
            let _ = run(target, &Sql::new("ROLLBACK")).await;
            return Err(failure);
        }
    };
    run(target, &Sql::new("COMMIT")).await?;
    report.log(options);
    Ok(report)
}

async fn carry(
    source: &SourceClient,
    target: &TargetClient,
    wanted: &[Role],
    options: &RolesOptions,
) -> Result<RolesReport> {
    let hashes = catalog::password_hashes(source).await?;
    let there = catalog::roles(target).await?;
    let settings = catalog::role_settings(source).await?;
    let (database, grant) = catalog::password_grant(source).await?;
    let instead = format!("as a superuser of the source, in database {database}: {grant}");
    let mut maker = Maker {
        target,
        hashes,
        passwords: PasswordFile::read(options.passwords_file.as_deref(), &instead)?,
        settings,
        open: options.open,
    };
    let mut report = RolesReport::default();
    for role in wanted {
        let made = if there.iter().any(|there| there.name == role.name) {
            Made::Existing
        } else {
            maker.make(role, &mut report.refused).await?
        };
        match made {
            Made::Existing => report.existing.push(role.name.clone()),
            Made::Refused => {}
            Made::New { password } => {
                report.made.push(role.name.clone());
                report.shut.extend((role.login && !options.open).then(|| role.name.clone()));
                report.new_passwords.extend(password.then(|| role.name.clone()));
            }
        }
    }
    let granted = catalog::memberships(source).await?;
    let there = catalog::roles(target).await?;
    let members = catalog::memberships(target).await?;
    let ours: BTreeSet<&str> = report.made.iter().chain(&options.granted).map(String::as_str).collect();
    let (grants, left_out) = memberships(wanted, &granted, (&there, &members), &ours);
    report.refused.extend(execute(target, &grants, Within::Transaction).await?);
    report.left_out = left_out;
    if let Some(migration) = &options.migration {
        Store::new(target, migration).add_roles(&report.made, &report.shut).await?;
    }
    // Before the roles are there for good, so that no password can be lost.
    maker.passwords.write(&report.new_passwords)?;
    Ok(report)
}

impl RolesReport {
    fn log(&self, options: &RolesOptions) {
        log_refused(&self.refused);
        if let (Some(file), false) = (&options.passwords_file, self.new_passwords.is_empty()) {
            let file = file.display();
            tracing::warn!(
                roles = self.new_passwords.join(", "), %file,
                "the source does not show their passwords: these roles have new ones, written to the file"
            );
        }
        if !self.shut.is_empty() {
            let roles = self.shut.join(", ");
            tracing::info!(
                roles,
                "made NOLOGIN: they may log in when the migration is done; at once: --open-target"
            );
        }
        if !self.existing.is_empty() {
            let roles = self.existing.join(", ");
            tracing::info!(roles, "on the target already: left as they are");
        }
        if !self.left_out.is_empty() {
            let memberships: Vec<String> = self.left_out.iter().map(LeftOut::to_string).collect();
            tracing::warn!(
                memberships = memberships.join(", "),
                "not carried, since the target had a role of that name: see --grant-existing-roles"
            );
        }
        tracing::info!(made = self.made.len(), existing = self.existing.len(), "roles carried");
    }
}

/// The roles of a cluster that are neither reserved nor in `ignored`, by name.
///
/// # Errors
/// When the server does not answer.
pub(super) async fn carried(source: &SourceClient, ignored: &[String]) -> Result<Vec<Role>> {
    let roles = catalog::roles(source).await?;
    Ok(roles.into_iter().filter(|role| is_carried(role, ignored)).collect())
}

/// Whether a role is neither reserved nor in `ignored`.
pub(super) fn is_carried(role: &Role, ignored: &[String]) -> bool {
    !is_reserved(role) && !ignored.contains(&role.name)
}

/// Whether a role belongs to the server or to whoever runs it.
fn is_reserved(role: &Role) -> bool {
    role.bootstrap
        || RESERVED.iter().any(|reserved| match reserved.strip_suffix('*') {
            Some(beginning) => role.name.starts_with(beginning),
            None => role.name == *reserved,
        })
}

/// Those of `wanted` that the target has and that its user may have to do with: a superuser there is another's.
fn on_both(wanted: &[Role], there: &[Role]) -> BTreeSet<String> {
    // Only a superuser has the privileges of another.
    let ours = |role: &&Role| !role.superuser || role.inherited;
    let there: BTreeSet<&str> = there.iter().filter(ours).map(|role| role.name.as_str()).collect();
    wanted.iter().map(|role| &role.name).filter(|name| there.contains(name.as_str())).cloned().collect()
}

/// What `check` says before anything is made: the memberships that would be left out.
///
/// # Errors
/// When a side does not answer.
pub(super) async fn left_out(
    source: &SourceClient,
    target: &TargetClient,
    wanted: &[Role],
    granted_roles: &[String],
) -> Result<Vec<LeftOut>, catalog::Error> {
    let there = catalog::roles(target).await?;
    let members = catalog::memberships(target).await?;
    let granted = catalog::memberships(source).await?;
    let made = wanted.iter().filter(|role| there.iter().all(|there| there.name != role.name));
    let ours: BTreeSet<&str> =
        made.clone().map(|role| role.name.as_str()).chain(granted_roles.iter().map(String::as_str)).collect();
    // As they are to be.
    let there: Vec<Role> = there.iter().chain(made).cloned().collect();
    Ok(memberships(wanted, &granted, (&there, &members), &ours).1)
}

/// The statements for memberships that the target lacks, and those that are left out since one of both roles is not
/// `ours`. A predefined role of the server can be granted, too.
fn memberships(
    wanted: &[Role],
    granted: &[Membership],
    (there, members): (&[Role], &[Membership]),
    ours: &BTreeSet<&str>,
) -> (Vec<Sql>, Vec<LeftOut>) {
    let names = on_both(wanted, there);
    let predefined = |name: &str| name.starts_with("pg_") && there.iter().any(|role| role.name == name);
    let known: HashMap<(&str, &str), &Membership> =
        members.iter().map(|found| ((found.role.as_str(), found.member.as_str()), found)).collect();
    let lacks = |wanted: &&Membership| {
        let Some(found) = known.get(&(wanted.role.as_str(), wanted.member.as_str())) else { return true };
        let options = match (wanted.options, found.options) {
            (Some(wanted), Some(found)) => (wanted.inherit && !found.inherit) || (wanted.set && !found.set),
            (None, _) | (_, None) => false,
        };
        (wanted.admin && !found.admin) || options
    };
    let is_ours = |name: &String| ours.contains(name.as_str());
    let (carried, left_out): (Vec<_>, Vec<_>) = granted
        .iter()
        .filter(|grant| names.contains(&grant.member))
        .filter(|grant| names.contains(&grant.role) || predefined(&grant.role))
        .filter(lacks)
        .partition(|grant| is_ours(&grant.member) && is_ours(&grant.role));
    let left_out = left_out.into_iter().map(|grant| {
        let existing = [&grant.role, &grant.member].into_iter().filter(|name| !is_ours(name)).cloned();
        LeftOut { role: grant.role.clone(), member: grant.member.clone(), existing: existing.collect() }
    });
    (carried.into_iter().map(membership).collect(), left_out.collect())
}

fn membership(wanted: &Membership) -> Sql {
    let grant = Sql::new("GRANT ").ident(&wanted.role).text(" TO ").ident(&wanted.member);
    let flag = |value: bool| if value { "TRUE" } else { "FALSE" };
    match wanted.options {
        None if wanted.admin => grant.text(" WITH ADMIN OPTION"),
        None => grant,
        Some(options) => grant
            .text(" WITH ADMIN ")
            .text(flag(wanted.admin))
            .text(", INHERIT ")
            .text(flag(options.inherit))
            .text(", SET ")
            .text(flag(options.set)),
    }
}

#[cfg(test)]
mod tests;
