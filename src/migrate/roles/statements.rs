//! Statements that the target may refuse.

use crate::catalog::{Error, TargetClient};
use crate::error::Result;
use crate::limits::{REFUSALS_LOGGED_MAX, STATEMENTS_PER_QUERY};
use crate::pg::Sql;

/// A statement that the target refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it was, fit to be run by somebody who may; without a password or a setting's value.
    pub statement: Sql,
    /// What the target said.
    pub reason: String,
}

impl Refused {
    pub(super) fn new(statement: Sql, error: &Error) -> Self {
        let reason = match (error.message(), error.state()) {
            (Some(message), Some(state)) => format!("{message} (SQLSTATE {state})"),
            _ => error.to_string(),
        };
        Self { statement, reason }
    }
}

/// Where statements are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::migrate) enum Within {
    /// In the session's transaction, which goes on after a refusal.
    Transaction,
    /// In transactions of their own.
    Session,
}

/// Runs statements, many at a time; those that the target refuses are left out and returned.
///
/// # Errors
/// When the target fails otherwise.
pub(in crate::migrate) async fn execute(
    target: &TargetClient,
    statements: &[Sql],
    within: Within,
) -> Result<Vec<Refused>> {
    let mut refused = Vec::new();
    for some in statements.chunks(STATEMENTS_PER_QUERY) {
        let together = Sql::default().list(some, "; ", Sql::sql);
        if attempt(target, &together, within).await?.is_none() {
            continue;
        }
        for statement in some {
            if let Some(error) = attempt(target, statement, within).await? {
                refused.push(Refused::new(statement.clone(), &error));
            }
        }
    }
    Ok(refused)
}

/// Runs `sql`, all of it or nothing; returns what the target said if it refused.
///
/// # Errors
/// When the connection is lost, or the target fails for a reason that may pass.
pub(in crate::migrate) async fn attempt(
    target: &TargetClient,
    sql: &Sql,
    within: Within,
) -> Result<Option<Error>> {
    let text = match within {
        Within::Transaction => Sql::new("SAVEPOINT walferry; ").sql(sql).text("; RELEASE SAVEPOINT walferry"),
        // Several statements of one query are one transaction.
        Within::Session => sql.clone(),
    };
    let Err(error) = target.run("a statement about roles", &text).await else { return Ok(None) };
    if error.state().is_none() || error.is_transient() {
        return Err(error.into());
    }
    if within == Within::Transaction {
        run(target, &Sql::new("ROLLBACK TO SAVEPOINT walferry")).await?;
    }
    Ok(Some(error))
}

/// Runs what nobody can refuse.
pub(super) async fn run(target: &TargetClient, sql: &Sql) -> Result<()> {
    Ok(target.run("a transaction for roles", sql).await?)
}

/// Says what was refused, and what to run: the first ones one by one, all of them as a number.
pub(super) fn log_refused(refused: &[Refused]) {
    for Refused { statement, reason } in refused.iter().take(REFUSALS_LOGGED_MAX) {
        tracing::warn!(%statement, reason, "not carried: the target refuses it; run it as somebody who may");
    }
    let more = refused.len().saturating_sub(REFUSALS_LOGGED_MAX);
    if more > 0 {
        tracing::warn!(more, "more that the target refuses, not shown");
    }
}
