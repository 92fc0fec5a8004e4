//! What a database has besides its objects: owner, privileges, settings, connection limit, comment.

use std::collections::BTreeSet;

use super::grants;
use super::ownership::Parties;
use super::settings::{set_all, shown};
use super::statements::{Refused, Within, execute, log_refused};
use crate::catalog::{self, Setting, SourceClient, TargetClient};
use crate::error::Result;
use crate::pg::Sql;

/// Gives the database that `target` is in the properties of the one that `source` is in. Their names may differ.
///
/// To be called once the roles are there; settings act on sessions that begin afterwards. Settings of a role in this
/// database are carried too; what the target has beyond the source's stays.
///
/// # Errors
/// When a side does not answer. What the target refuses is a warning, with the statement to run.
pub async fn carry_database(
    source: &SourceClient,
    target: &TargetClient,
    ignored: &[String],
    sessions: usize,
) -> Result<Vec<Refused>> {
    let parties = Parties::meet(source, target, ignored).await?;
    let (wanted, _) = catalog::database_privileges(source).await?;
    let (found, _) = catalog::database_privileges(target).await?;
    let mut refused = Vec::new();
    let parties = parties.join(target, &BTreeSet::from([wanted.owner.as_str()]), &mut refused).await?;
    let database = Sql::default().catalog(&found.object.identity);
    let alter = || Sql::new("ALTER DATABASE ").sql(&database);
    let mut statements = Vec::new();
    if parties.may_own(&wanted.owner) && found.owner != wanted.owner {
        statements.push(alter().text(" OWNER TO ").ident(&wanted.owner));
    }
    let properties = catalog::database_properties(source).await?;
    let present = catalog::database_properties(target).await?;
    let limit = properties.connection_limit;
    if limit != present.connection_limit {
        let statement = alter().text(" CONNECTION LIMIT ").number(limit);
        if usize::try_from(limit).is_ok_and(|limit| limit < sessions) {
            tracing::warn!(limit, hint = %statement, "too low for the migration: set it after the cutover");
        } else {
            statements.push(statement);
        }
    }
    if let Some(comment) = properties.comment.as_deref().filter(|_| properties.comment != present.comment) {
        statements.push(Sql::new("COMMENT ON DATABASE ").sql(&database).text(" IS ").literal(comment));
    }
    let settings = catalog::database_settings(source).await?;
    let present = catalog::database_settings(target).await?;
    let missing = settings.iter().filter(|setting| !present.contains(setting));
    let missing: Vec<(Sql, &Setting)> =
        missing.filter_map(|setting| Some((parties.alter(&database, setting)?, setting))).collect();
    refused.extend(execute(target, &statements, Within::Session).await?);
    refused.extend(set_all(target, &missing, Within::Session).await?);
    let sides = ((source, &wanted.object), (target, &found.object));
    refused.extend(grants::carry_on_database(&parties, sides.0, sides.1).await?);
    log_refused(&refused);
    Ok(refused)
}

/// Gives the database that `target` is in the `search_path` of the one that `source` is in: before its objects, since the
/// script of an extension may find what it needs by that alone.
///
/// # Errors
/// When a side does not answer. What the target refuses is a warning, with the statement to run.
pub async fn carry_search_path(source: &SourceClient, target: &TargetClient) -> Result<()> {
    let settings = catalog::database_settings(source).await?;
    let present = catalog::database_settings(target).await?;
    let wanted = settings.iter().find(|setting| setting.role.is_none() && setting.name == "search_path");
    let Some(missing) = wanted.filter(|setting| !present.contains(setting)) else { return Ok(()) };
    let (found, _) = catalog::database_privileges(target).await?;
    let alter = Sql::new("ALTER DATABASE ").catalog(&found.object.identity);
    log_refused(&set_all(target, &[(alter, missing)], Within::Session).await?);
    Ok(())
}

impl Parties {
    /// What a setting's statement begins with, if it is one to be carried.
    fn alter(&self, database: &Sql, setting: &Setting) -> Option<Sql> {
        let role = setting.role.as_ref();
        if role.is_some_and(|role| !self.both.contains(role)) {
            return None;
        }
        let alter = match role {
            Some(role) => Sql::new("ALTER ROLE ").ident(role).text(" IN DATABASE ").sql(database),
            None => Sql::new("ALTER DATABASE ").sql(database),
        };
        // It would act on Walferry's own sessions.
        if role.is_none_or(|role| *role == self.me) && HINDRANCES.contains(&setting.name.as_str()) {
            let statement = shown(&alter, setting);
            tracing::warn!(%statement, "not carried: it would hinder the migration; run it after cutover");
            return None;
        }
        Some(alter)
    }
}

/// With one of these, Walferry's sessions could not write, would be another role's, or would not come about at all.
const HINDRANCES: [&str; 6] = [
    "default_transaction_read_only",
    "local_preload_libraries",
    "role",
    "session_authorization",
    "session_preload_libraries",
    "session_replication_role",
];
