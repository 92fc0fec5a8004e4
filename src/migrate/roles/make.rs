//! One role: CREATE ROLE with what every role may have, then one by one what a target may refuse.
//!
//! A password goes as the server keeps it, also a new one: so it is not in the target's log, whatever that logs.

use std::collections::HashMap;

use super::passwords::PasswordFile;
use super::settings::set_all;
use super::statements::{Refused, Within, attempt, execute};
use crate::catalog::{Role, Setting, TargetClient, UserFacts};
use crate::config::Secret;
use crate::error::Result;
use crate::pg::{ServerVersion, Sql};

/// What makes roles.
pub(super) struct Maker<'a> {
    pub(super) target: &'a TargetClient,
    /// The source's passwords; none where they cannot be read.
    pub(super) hashes: Option<HashMap<String, Option<Secret>>>,
    pub(super) passwords: PasswordFile,
    /// The source's settings of roles.
    pub(super) settings: Vec<Setting>,
    /// Whether they may log in at once.
    pub(super) open: bool,
}

/// What became of one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// It is there now; `password`: with a new one.
    New { password: bool },
    /// Another session has made it meanwhile.
    Existing,
    /// The target does not let it be made.
    Refused,
}

impl Maker<'_> {
    /// Makes a role that the target lacks.
    pub(super) async fn make(&mut self, role: &Role, refused: &mut Vec<Refused>) -> Result<Made> {
        let known = self.hashes.as_ref().and_then(|hashes| hashes.get(&role.name));
        let (verifier, password) = match known {
            Some(hash) => (hash.clone(), false),
            None if role.login => (Some(self.passwords.verifier(&role.name)), true),
            None => (None, false),
        };
        let create = create(role, self.open);
        let full = match &verifier {
            Some(verifier) => create.clone().text(" PASSWORD ").literal(verifier.expose()),
            None => create.clone(),
        };
        match attempt(self.target, &full, Within::Transaction).await? {
            None => {}
            // Somebody else's transaction made it between our look and now.
            Some(error) if matches!(error.state(), Some("42710" | "23505")) => return Ok(Made::Existing),
            Some(error) => {
                refused.push(Refused::new(create, &error));
                return Ok(Made::Refused);
            }
        }
        let mut more = attributes(role);
        more.extend(comment(role));
        refused.extend(execute(self.target, &more, Within::Transaction).await?);
        let own = self.settings.iter().filter(|setting| setting.role.as_ref() == Some(&role.name));
        let own: Vec<(Sql, &Setting)> =
            own.map(|setting| (Sql::new("ALTER ROLE ").ident(&role.name), setting)).collect();
        refused.extend(set_all(self.target, &own, Within::Transaction).await?);
        Ok(Made::New { password })
    }
}

/// Without a password, and so fit to be shown.
fn create(role: &Role, open: bool) -> Sql {
    let mut sql = Sql::new("CREATE ROLE ").ident(&role.name);
    sql = sql.text(if role.login && open { " LOGIN" } else { " NOLOGIN" });
    sql = sql.text(if role.inherit { " INHERIT" } else { " NOINHERIT" });
    if role.connection_limit != -1 {
        sql = sql.text(" CONNECTION LIMIT ").number(role.connection_limit);
    }
    match &role.valid_until {
        Some(until) => sql.text(" VALID UNTIL ").literal(until),
        None => sql,
    }
}

/// What not every user that makes roles may give.
fn attributes(role: &Role) -> Vec<Sql> {
    [
        (role.superuser, " SUPERUSER"),
        (role.create_db, " CREATEDB"),
        (role.create_role, " CREATEROLE"),
        (role.replication, " REPLICATION"),
        (role.bypass_rls, " BYPASSRLS"),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .map(|(_, attribute)| Sql::new("ALTER ROLE ").ident(&role.name).text(attribute))
    .collect()
}

/// Which attributes of a role the target's `user` may not give, as far as PostgreSQL's own rules go.
pub(in crate::migrate) fn leaves(role: &Role, user: &UserFacts, target: ServerVersion) -> Vec<&'static str> {
    // Before 16, CREATEROLE is enough for CREATEDB; from then on, one gives what one has.
    let newer = target.major() >= 16;
    [
        (role.superuser, false, "SUPERUSER"),
        (role.create_db, !newer || user.create_db, "CREATEDB"),
        (role.replication, newer && user.replication, "REPLICATION"),
        (role.bypass_rls, newer && user.bypass_rls, "BYPASSRLS"),
    ]
    .into_iter()
    .filter(|(wanted, given, _)| *wanted && !given && !user.superuser)
    .map(|(_, _, attribute)| attribute)
    .collect()
}

fn comment(role: &Role) -> Option<Sql> {
    let comment = role.comment.as_deref()?;
    Some(Sql::new("COMMENT ON ROLE ").ident(&role.name).text(" IS ").literal(comment))
}
