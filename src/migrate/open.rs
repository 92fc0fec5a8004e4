//! The target stays shut until the migration is done.
//!
//! Roles that Walferry makes, and that may log in on the source, are made NOLOGIN. So nobody writes to the target too early,
//! and no owner can change there what runs in the name of the target's user while rows are applied. They get LOGIN when the
//! last database of the migration is done: roles are of the cluster, and one that may log in may enter each database.
//!
//! `done` is recorded before. The other way round, an application could write to the target while the cutover is given up
//! and the source opened again. A kill in between leaves the target shut, and `done`: the next start finds that, and
//! finishes it. Each database of the migration remembers the roles that its run made; whoever ends last opens all of them.

use std::collections::BTreeSet;

use super::roles::{carried, give_login, login};
use super::select::{Looked, look};
use super::{Migration, Phase, Sides};
use crate::catalog::{self, TargetClient};
use crate::error::{Failure, Result};
use crate::store::Store;

/// The databases of a migration that have roles which wait for their LOGIN, and those that are not done.
#[derive(Debug, Default)]
pub(super) struct Shut {
    /// Begun and not done.
    pub(super) unfinished: Vec<String>,
    /// The roles.
    pub(super) roles: BTreeSet<String>,
}

impl Migration {
    /// Lets the roles log in, unless a database of the migration is not done yet; where that was asked for, even then.
    pub(super) async fn open_when_done(&self) -> Result<()> {
        let ours = self.sides.source.dbname();
        let target = self.sides.target_client().await?;
        let mut shut = shut(&self.sides, &target).await?;
        if shut.roles.is_empty() {
            return Ok(());
        }
        // Those that wait for their turn, too. Each shows that it is done before it looks at the others.
        let shown = &self.status.snapshot().databases;
        let others = shown.iter().filter(|it| it.phase != Phase::Done && it.dbname != ours);
        shut.unfinished.extend(others.map(|it| it.dbname.clone()));
        shut.unfinished.sort();
        shut.unfinished.dedup();
        let all_done = shut.unfinished.is_empty();
        if !all_done && !self.opens_target {
            let unfinished = shut.unfinished.join(", ");
            tracing::warn!(
                unfinished,
                "roles stay NOLOGIN on the target until these databases are done, too"
            );
            return Ok(());
        }
        open_all(&self.sides, &target).await?;
        for database in &self.status.snapshot().databases {
            self.status.update_database(&database.dbname, |shown| shown.roles_shut.clear());
        }
        // By now the source may be gone, and this is help alone.
        if all_done && let Ok(Some(others)) = left_nologin(&self.sides).await {
            tracing::warn!("{others}");
        }
        Ok(())
    }

    /// Lets the roles log in, whatever is done: that was asked for. Those of databases that this run is not of, too.
    pub(super) async fn open_now(&self) -> Result<()> {
        open(&self.sides).await?;
        match open_all(&self.sides, &self.sides.target_client().await?).await {
            // What is damaged elsewhere is no reason not to go on here.
            Err(Failure::Definite(other)) => {
                tracing::warn!(cause = other.cause, "not all roles may log in");
                Ok(())
            }
            opened => opened.map(|_| ()),
        }
    }
}

/// What is still shut.
///
/// # Errors
/// When the target does not answer.
pub(super) async fn shut(sides: &Sides, target: &TargetClient) -> Result<Shut> {
    let mut shut = Shut::default();
    for Looked { name, begun } in look(sides, target).await? {
        let Some(row) = begun? else { continue };
        let client = sides.database(&name).target_client().await?;
        shut.roles.extend(Store::new(&client, &sides.name).shut_roles().await?);
        if row.phase != Phase::Done {
            shut.unfinished.push(name);
        }
    }
    Ok(shut)
}

/// The roles that the migration made, whichever database's run did so.
///
/// # Errors
/// When the target does not answer.
pub(super) async fn made(sides: &Sides, target: &TargetClient) -> Result<Vec<String>> {
    let mut roles = Vec::new();
    for Looked { name, begun } in look(sides, target).await? {
        // What is damaged elsewhere says nothing.
        if let Err(Failure::Definite(_)) | Ok(None) = begun {
            continue;
        }
        begun?;
        let client = sides.database(&name).target_client().await?;
        roles.extend(Store::new(&client, &sides.name).roles().await?);
    }
    Ok(roles)
}

/// Lets all roles that the migration made log in; gives their names.
///
/// # Errors
/// When the target does not answer.
pub(super) async fn open_all(sides: &Sides, target: &TargetClient) -> Result<Vec<String>> {
    let mut opened = Vec::new();
    for Looked { name, begun } in look(sides, target).await? {
        if begun?.is_some() {
            opened.extend(open(&sides.database(&name)).await?);
        }
    }
    Ok(opened)
}

async fn open(sides: &Sides) -> Result<Vec<String>> {
    // A session of its own, for its transaction.
    let opened = give_login(&sides.target_client().await?, &sides.name).await?;
    if !opened.is_empty() {
        tracing::info!(roles = opened.join(", "), "the target is open: these roles may log in");
    }
    Ok(opened)
}

/// Roles that may log in on the source, and that the target had before, where they may not: those of a migration that was
/// removed before its end, say. Nobody gives it to them.
///
/// # Errors
/// When a side does not answer.
pub(super) async fn left_nologin(sides: &Sides) -> Result<Option<String>> {
    let (source, target) = tokio::try_join!(sides.source_client(), sides.target_client())?;
    let wanted = carried(&source, &sides.ignored_roles).await?;
    let there = catalog::roles(&target).await?;
    let closed = wanted.into_iter().filter(|role| role.login).map(|role| role.name);
    let closed: Vec<String> =
        closed.filter(|name| there.iter().any(|there| there.name == *name && !there.login)).collect();
    Ok((!closed.is_empty()).then(|| {
        format!(
            "roles that may log in on the source are NOLOGIN on the target, which had them before; if they should: {}",
            by_hand(&closed)
        )
    }))
}

/// The statements that open the target to these roles, for a person.
pub(super) fn by_hand<'a>(roles: impl IntoIterator<Item = &'a String>) -> String {
    let statements: Vec<String> = roles.into_iter().map(|role| format!("{};", login(role))).collect();
    statements.join(" ")
}
