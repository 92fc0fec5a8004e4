//! LOGIN, for roles that were made without it: see [`crate::migrate::open`].

use super::statements::{Refused, Within, attempt, log_refused, run};
use crate::catalog::TargetClient;
use crate::error::Result;
use crate::pg::Sql;
use crate::store::Store;

/// The statement that lets a role log in.
pub(in crate::migrate) fn login(role: &str) -> Sql {
    Sql::new("ALTER ROLE ").ident(role).text(" LOGIN")
}

/// Gives LOGIN to the roles that `migration` has made in the database of `target` and that wait for it. Gives their names;
/// where the target refuses, that is logged, and the role goes on waiting.
///
/// # Errors
/// When the target does not answer.
pub(in crate::migrate) async fn give_login(target: &TargetClient, migration: &str) -> Result<Vec<String>> {
    let store = Store::new(target, migration);
    if store.shut_roles().await?.is_empty() {
        return Ok(Vec::new());
    }
    run(target, &Sql::new("BEGIN")).await?;
    let (mut opened, mut gone, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    // With the rows locked, nobody else alters the same roles: the server would refuse one of both.
    for name in store.lock_shut_roles().await? {
        let sql = login(&name);
        match attempt(target, &sql, Within::Transaction).await? {
            None => opened.push(name),
            Some(error) if error.state() == Some(UNDEFINED_OBJECT) => gone.push(name),
            Some(error) => refused.push(Refused::new(sql, &error)),
        }
    }
    store.opened_roles(&[opened.as_slice(), gone.as_slice()].concat()).await?;
    run(target, &Sql::new("COMMIT")).await?;
    log_refused(&refused);
    Ok(opened)
}

/// Somebody has dropped the role.
const UNDEFINED_OBJECT: &str = "42704";
