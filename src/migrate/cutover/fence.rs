//! The fence: what keeps the source from being written to, put up and taken down.
//!
//! `read-only` is a setting of the database: sessions that begin from then on cannot write, and those that began before
//! are ended, since it does not reach them. A session may still switch its own transactions to read-write. So a fence is
//! never believed: nothing may have been written after it (see [`super`]).
//!
//! Taken down, the setting is put back as it was, and sessions that began meanwhile are ended: their clients would stay
//! read only for as long as they keep them. A statement that was to put the fence up and has not ended yet, of an engine
//! that was killed say, is ended first: it would put it up again afterwards.

use std::process::{ExitStatus, Stdio};

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use crate::config::{FenceCommands, FenceKind};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{
    CUTOVER_NAMES_MAX, ENGINE_LOCK_POLL, FENCE_LOCK_TIMEOUT, FENCE_SESSIONS_WAIT, REQUEST_POLL,
    UNFENCE_TIMEOUT,
};
use crate::migrate::source_failed;
use crate::source::catalog::OtherSession;
use crate::source::{self, catalog};
use crate::wire::{ConnInfo, control};

use super::Fence;

/// Where a fence's command finds the name of the database that it is for.
const DATABASE_VARIABLE: &str = "WALFERRY_DATABASE";

/// The `application_name` of the session that puts it up.
const RAISING: &str = "walferry fence";

/// A session for what a cutover does on the source: it may write, and its statements wait for no lock without end.
///
/// # Errors
/// When the source cannot be reached.
pub(super) async fn connect(source: &ConnInfo) -> Result<Client> {
    connect_as(source, RAISING).await
}

async fn connect_as(source: &ConnInfo, name: &str) -> Result<Client> {
    let client = control(source, name).await.map_err(|error| error.into_failure(Side::Source))?;
    let patience = i64::try_from(FENCE_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    let settings = crate::pg::Sql::new("SET default_transaction_read_only = off; SET lock_timeout = ");
    let set = client.batch_execute(settings.number(patience).as_str()).await;
    set.map_err(|cause| source_failed(source::Error::new("a session that may write", cause)))?;
    Ok(client)
}

/// Refuses what could not be put up, before anybody is kept from writing. `several`: the migration has other databases,
/// which are fenced and given up each by itself.
///
/// # Errors
/// What stands in the way, and what to do.
pub(super) async fn refuse(
    client: &Client,
    kind: FenceKind,
    commands: Option<&FenceCommands>,
    several: bool,
) -> Result<()> {
    match (kind, commands) {
        (FenceKind::None, _) => Ok(()),
        (FenceKind::Command, Some(commands)) if several && !names_database(commands) => {
            Err(Definite::new("the commands for a fence do not say which database they are for")
                .detail("the migration has several, and opening one would open others that are done")
                .hint(format!("use ${DATABASE_VARIABLE} in --fence-command and in --unfence-command"))
                .into())
        }
        (FenceKind::Command, Some(_)) => Ok(()),
        (FenceKind::Command, None) => Err(Definite::new("the engine has no commands for a fence")
            .detail("they are given to `walferry migrate`, so that nobody else chooses what its machine runs")
            .hint("stop it, and start it again with --fence-command and --unfence-command")
            .into()),
        (FenceKind::ReadOnly, _) => refuse_read_only(client).await,
    }
}

fn names_database(commands: &FenceCommands) -> bool {
    [&commands.up, &commands.down].iter().all(|command| command.contains(DATABASE_VARIABLE))
}

async fn refuse_read_only(client: &Client) -> Result<()> {
    let default = catalog::read_only_default(client).await.map_err(source_failed)?;
    if !default.mine {
        return Err(Definite::new("the source cannot be fenced by this role")
            .detail("ALTER DATABASE … SET needs the privileges of the database's owner")
            .hint("make the role a member of the owner's, or stop all writers and use --fence none")
            .into());
    }
    if !default.exempt.is_empty() {
        return Err(Definite::new("roles of the source are exempt from the fence")
            .detail(format!("default_transaction_read_only is off for: {}", some(&default.exempt)))
            .hint("ALTER ROLE … RESET default_transaction_read_only on the source, then run `walferry cutover` again")
            .into());
    }
    // A session that is not ours to end, but goes by itself, is somebody who looks at the server now and then.
    let moment = catalog::moment(client).await.map_err(source_failed)?;
    let foreign = |sessions: Vec<OtherSession>| sessions.into_iter().filter(|session| !session.mine_to_end);
    let there = catalog::other_sessions(client, None, &moment).await.map_err(source_failed)?;
    let first: Vec<i32> = foreign(there).map(|session| session.pid).collect();
    let began = Instant::now();
    loop {
        let there = catalog::other_sessions(client, None, &moment).await.map_err(source_failed)?;
        let left: Vec<_> = foreign(there).filter(|session| first.contains(&session.pid)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= FENCE_SESSIONS_WAIT {
            return Err(not_ended(&left).into());
        }
        sleep(REQUEST_POLL).await;
    }
}

/// Puts it up.
///
/// # Errors
/// When it does not stand; it may stand in part, and has to be taken down.
pub(super) async fn raise(
    client: &Client,
    dbname: &str,
    kind: FenceKind,
    commands: Option<&FenceCommands>,
) -> Result<()> {
    match (kind, commands) {
        (FenceKind::None | FenceKind::Command, None) | (FenceKind::None, Some(_)) => Ok(()),
        (FenceKind::Command, Some(commands)) => run("--fence-command", &commands.up, dbname).await,
        (FenceKind::ReadOnly, _) => {
            catalog::set_read_only_default(client, dbname, Some("on")).await.map_err(source_failed)?;
            let moment = catalog::moment(client).await.map_err(source_failed)?;
            end_all(client, None, &moment).await
        }
    }
}

/// Ends all sessions that began up to `until`, and waits until they are gone.
async fn end_all(client: &Client, since: Option<&str>, until: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let there = catalog::other_sessions(client, since, until).await.map_err(source_failed)?;
        if there.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= FENCE_SESSIONS_WAIT {
            return Err(not_ended(&there).into());
        }
        let mine: Vec<i32> =
            there.iter().filter(|session| session.mine_to_end).map(|session| session.pid).collect();
        catalog::end_sessions(client, &mine).await.map_err(source_failed)?;
        sleep(REQUEST_POLL).await;
    }
}

/// Refuses to go on where it does not stand any more, or where a session is left that it does not reach.
///
/// # Errors
/// Who or what.
pub(super) async fn refuse_fallen(client: &Client, fence: &Fence) -> Result<()> {
    if fence.kind != FenceKind::ReadOnly {
        return Ok(());
    }
    if !catalog::read_only_default(client).await.map_err(source_failed)?.on {
        return Err(Definite::new("somebody took the fence down")
            .detail("default_transaction_read_only of the source's database is not on any more")
            .hint("run `walferry cutover` again when nobody needs to write there")
            .into());
    }
    let left = catalog::other_sessions(client, None, &fence.since).await.map_err(source_failed)?;
    if left.is_empty() { Ok(()) } else { Err(not_ended(&left).into()) }
}

/// Takes it down, and says what somebody should know. Done twice, it does no harm.
///
/// # Errors
/// When it could not be taken down in time: it still stands, or may.
pub(crate) async fn lower(
    source: &ConnInfo,
    fence: &Fence,
    commands: Option<&FenceCommands>,
) -> Result<Vec<String>> {
    let tried = timeout(UNFENCE_TIMEOUT, async {
        loop {
            match lower_once(source, fence, commands).await {
                Err(Failure::Transient(transient)) => {
                    tracing::warn!(cause = transient.cause, "the fence is not down yet");
                    sleep(ENGINE_LOCK_POLL).await;
                }
                done => return done,
            }
        }
    });
    let refused = match tried.await {
        Ok(Err(Failure::Definite(definite))) => definite,
        Ok(done) => return done,
        Err(_) => {
            let cause = "the fence cannot be taken down yet: the source cannot be written to";
            return Err(Transient::new(Side::Source, cause).into());
        }
    };
    let by_hand = match fence.kind {
        FenceKind::ReadOnly => {
            catalog::read_only_statement(source.dbname(), fence.previous.as_deref()).to_string()
        }
        FenceKind::None | FenceKind::Command => "what --fence-command did".to_owned(),
    };
    let Definite { cause, detail, .. } = refused;
    Err(Definite::new("the fence on the source cannot be taken down: it cannot be written to")
        .detail(if detail.is_empty() { cause } else { format!("{cause}: {detail}") })
        .hint(format!(
            "undo it on the source: {by_hand}; then run `walferry migrate`, which tries it again, too"
        ))
        .into())
}

async fn lower_once(
    source: &ConnInfo,
    fence: &Fence,
    commands: Option<&FenceCommands>,
) -> Result<Vec<String>> {
    match fence.kind {
        FenceKind::None => Ok(Vec::new()),
        FenceKind::Command => {
            let missing = || Definite::new("no --unfence-command is given: give it, or `true` if it is down");
            let down = &commands.ok_or_else(missing)?.down;
            run("--unfence-command", down, source.dbname()).await.map(|()| Vec::new())
        }
        FenceKind::ReadOnly => {
            let client = connect_as(source, "walferry unfence").await?;
            while catalog::end_own_sessions(&client, RAISING).await.map_err(source_failed)? > 0 {
                sleep(REQUEST_POLL).await;
            }
            let previous = fence.previous.as_deref();
            catalog::set_read_only_default(&client, source.dbname(), previous)
                .await
                .map_err(source_failed)?;
            end_read_only_sessions(&client, fence).await
        }
    }
}

/// Ends sessions that began while the source was fenced, so that their clients connect again; names those that stay.
async fn end_read_only_sessions(client: &Client, fence: &Fence) -> Result<Vec<String>> {
    let moment = catalog::moment(client).await.map_err(source_failed)?;
    let there = catalog::other_sessions(client, Some(&fence.since), &moment).await.map_err(source_failed)?;
    let (mine, left): (Vec<OtherSession>, Vec<OtherSession>) =
        there.into_iter().partition(|session| session.mine_to_end);
    let mine: Vec<i32> = mine.iter().map(|session| session.pid).collect();
    catalog::end_sessions(client, &mine).await.map_err(source_failed)?;
    let warning = || {
        format!(
            "sessions that began while the source was fenced are read only until they connect again: {}",
            some(&named(&left))
        )
    };
    Ok(if left.is_empty() { Vec::new() } else { vec![warning()] })
}

/// Runs one of the operator's commands to its end; it finds in its environment which database it is for. When nobody waits for it any more, what it started is ended too.
async fn run(option: &'static str, command: &str, dbname: &str) -> Result<()> {
    let mut shell = Command::new("/bin/sh");
    // In a process group of its own: Ctrl-C on the engine's terminal is not meant for it.
    shell
        .arg("-c")
        .arg(command)
        .env(DATABASE_VARIABLE, dbname)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let failed = |detail: String| {
        Definite::new(format!("{option} failed"))
            .detail(detail)
            .hint("its own messages are in the engine's log")
    };
    let mut child = shell.spawn().map_err(|error| failed(format!("/bin/sh cannot be run: {error}")))?;
    let mut group = Group(child.id());
    let status: ExitStatus = child.wait().await.map_err(|error| failed(error.to_string()))?;
    group.0 = None;
    if status.success() { Ok(()) } else { Err(failed(status.to_string()).into()) }
}

/// The processes of a command that has not ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0 else { return };
        let kill = ["-c", "kill -s KILL -- \"-$0\"", &group.to_string()].map(str::to_owned);
        // It may have ended just now.
        let _ = std::process::Command::new("/bin/sh").args(kill).stderr(Stdio::null()).status();
    }
}

fn not_ended(left: &[OtherSession]) -> Definite {
    Definite::new("sessions of the source cannot be ended: they could go on writing")
        .detail(some(&named(left)))
        .hint(
            "have them end, as their role or as an administrator: SELECT pg_terminate_backend(pid); then run `walferry \
             cutover` again; or stop all writers and use --fence none",
        )
}

fn named(sessions: &[OtherSession]) -> Vec<String> {
    sessions.iter().map(|session| format!("server process {} of {}", session.pid, session.user)).collect()
}

/// The first of some names.
pub(super) fn some(names: &[String]) -> String {
    let more = names.len().saturating_sub(CUTOVER_NAMES_MAX);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
