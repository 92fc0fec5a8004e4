//! The fence: what keeps the source from being written to, put up and taken down.
//!
//! `read-only` is a setting of the database: sessions that begin from then on cannot write, and those that began before
//! are ended, since it does not reach them. A session may still switch its own transactions to read-write. So a fence is
//! never believed: nothing may have been written after it (see [`super`]).
//!
//! Taken down, the setting is put back as it was, and sessions that began meanwhile are ended: their clients would stay
//! read only for as long as they keep them. A statement that was to put the fence up and has not ended yet, of an engine
//! that was killed say, is ended first: it would put it up again afterwards.

use std::collections::HashSet;
use std::process::{ExitStatus, Stdio};

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::catalog::{self, OtherSession, SourceClient};
use crate::config::{FenceCommands, FenceKind};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{
    ENGINE_LOCK_POLL, FENCE_LOCK_TIMEOUT, FENCE_SESSIONS_WAIT, REQUEST_POLL, UNFENCE_TIMEOUT,
};
use crate::pg::Sql;
use crate::wire::ConnInfo;

use super::Fence;
use super::held::HOLDING;
use super::sessions::{self, Fate, first_names};

/// Where a fence's command finds the name of the database that it is for.
const DATABASE_VARIABLE: &str = "WALFERRY_DATABASE";

/// The `application_name` of the session that puts it up.
const RAISING: &str = "walferry fence";

/// A session for what a cutover does on the source: its statements wait for no lock without end.
///
/// # Errors
/// When the source cannot be reached.
pub(super) async fn connect(source: &ConnInfo) -> Result<SourceClient> {
    connect_as(source, RAISING).await
}

pub(super) async fn connect_as(source: &ConnInfo, name: &str) -> Result<SourceClient> {
    let client = SourceClient::connect(source, name).await?;
    let patience = i64::try_from(FENCE_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    let bound = Sql::new("SET lock_timeout = ").number(patience);
    client.run("a bound on locks", &bound).await?;
    Ok(client)
}

/// Refuses what could not be put up, before anybody is kept from writing. `several`: the migration has other databases,
/// which are fenced and given up each by itself.
///
/// # Errors
/// What stands in the way, and what to do.
pub(super) async fn refuse(
    client: &SourceClient,
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
        (FenceKind::Command, Some(_)) => refuse_subscriptions(client).await,
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

async fn refuse_read_only(client: &SourceClient) -> Result<()> {
    let default = catalog::read_only_default(client).await?;
    if !default.mine {
        return Err(Definite::new("the source cannot be fenced by this role")
            .detail("ALTER DATABASE … SET needs the privileges of the database's owner")
            .hint(format!(
                "on the source: {}; or stop all writers and use --fence none",
                Sql::new("GRANT ").ident(&default.owner).text(" TO ").ident(&default.me)
            ))
            .into());
    }
    if !default.exempt.is_empty() {
        let roles: Vec<String> = default.exempt.iter().map(|(role, _)| role.clone()).collect();
        let reset = |(role, database): &(String, Option<String>)| {
            let alter = Sql::new("ALTER ROLE ").ident(role);
            let alter = match database {
                Some(database) => alter.text(" IN DATABASE ").ident(database),
                None => alter,
            };
            alter.text(" RESET default_transaction_read_only;").to_string()
        };
        let resets: Vec<String> = default.exempt.iter().map(reset).collect();
        return Err(Definite::new("roles of the source are exempt from the fence")
            .detail(format!("default_transaction_read_only is off for: {}", first_names(&roles)))
            .hint(format!("on the source, then `walferry cutover` again:\n{}", resets.join("\n")))
            .into());
    }
    refuse_subscriptions(client).await?;
    // A session that is not ours to end, but goes by itself, is somebody who looks at the server now and then.
    let (first, began) = (Before::now(client).await?, Instant::now());
    loop {
        let left = sessions::with(Fate::InTheWay, &first.left(client).await?);
        if left.is_empty() {
            return Ok(());
        }
        refuse_late(client, began, &left).await?;
    }
}

/// Refuses subscriptions, which write to a database that is read only, too.
async fn refuse_subscriptions(client: &SourceClient) -> Result<()> {
    let enabled = catalog::enabled_subscriptions(client).await?;
    if enabled.is_empty() {
        return Ok(());
    }
    let disable = |name: &String| Sql::new("ALTER SUBSCRIPTION ").ident(name).text(" DISABLE;").to_string();
    let disable: Vec<String> = enabled.iter().map(disable).collect();
    let disable = disable.join(" ");
    Err(Definite::new("subscriptions of the source write to it: no fence keeps them from that")
        .detail(first_names(&enabled))
        .hint(format!("{disable} in that database, then run `walferry cutover` again; make them on the target afterwards"))
        .into())
}

/// Gives up sessions that are there too long, else waits a little.
async fn refuse_late(client: &SourceClient, since: Instant, left: &[OtherSession]) -> Result<()> {
    if since.elapsed() < FENCE_SESSIONS_WAIT {
        sleep(REQUEST_POLL).await;
        return Ok(());
    }
    let me = catalog::current_user(client).await?;
    Err(sessions::not_ended(left, &me).into())
}

/// The sessions that the fence may not reach: those that began before it was up.
///
/// When a session began is hidden from who is no member of its role, `pg_signal_backend` or not. So those count alone that
/// were there then: clients connect again as soon as they are ended, and are not in the way.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// By the source's clock.
    until: String,
    processes: HashSet<i32>,
}

impl Before {
    async fn now(client: &SourceClient) -> Result<Self> {
        let until = catalog::moment(client).await?;
        let there = catalog::other_sessions(client, None, &until).await?;
        Ok(Self { until, processes: sessions::pids(&there).into_iter().collect() })
    }

    /// Those of them that are still there.
    async fn left(&self, client: &SourceClient) -> Result<Vec<OtherSession>> {
        let mut there = catalog::other_sessions(client, None, &self.until).await?;
        there.retain(|session| self.processes.contains(&session.pid));
        Ok(there)
    }
}

/// Puts it up, and ends all sessions that it does not reach; gives who they were.
///
/// # Errors
/// When it does not stand; it may stand in part, and has to be taken down.
pub(super) async fn raise(
    client: &SourceClient,
    dbname: &str,
    kind: FenceKind,
    commands: Option<&FenceCommands>,
) -> Result<Before> {
    match (kind, commands) {
        (FenceKind::None | FenceKind::Command, None) | (FenceKind::None, Some(_)) => {}
        (FenceKind::Command, Some(commands)) => run("--fence-command", &commands.up, dbname).await?,
        (FenceKind::ReadOnly, _) => {
            catalog::set_read_only_default(client, dbname, Some("on")).await?;
            wait_begun(client).await?;
            let before = Before::now(client).await?;
            end_all(client, &before).await?;
            return Ok(before);
        }
    }
    Ok(Before::default())
}

/// Waits for sessions that were about to begin when the setting changed: they may have read the one before, and are not
/// to be seen until they have begun. Those that come later have the new one.
async fn wait_begun(client: &SourceClient) -> Result<()> {
    let first = catalog::beginning_sessions(client).await?;
    let began = Instant::now();
    loop {
        let now = catalog::beginning_sessions(client).await?;
        let left: Vec<String> =
            first.iter().filter(|pid| now.contains(pid)).map(|pid| format!("server process {pid}")).collect();
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= FENCE_SESSIONS_WAIT {
            return Err(Definite::new("sessions of the source take long to begin: they could go on writing")
                .detail(first_names(&left))
                .hint("see what their clients wait for, then run `walferry cutover` again")
                .into());
        }
        sleep(REQUEST_POLL).await;
    }
}

/// Ends all sessions that began before, and waits until they are gone.
async fn end_all(client: &SourceClient, before: &Before) -> Result<()> {
    let began = Instant::now();
    loop {
        let there = before.left(client).await?;
        let mine = sessions::with(Fate::Ended, &there);
        let left = [mine.clone(), sessions::with(Fate::InTheWay, &there)].concat();
        if left.is_empty() {
            return Ok(());
        }
        catalog::end_sessions(client, &sessions::pids(&mine)).await?;
        refuse_late(client, began, &left).await?;
    }
}

/// Refuses to go on where it does not stand any more, or where a session is left that it does not reach, as [`raise`] has
/// given them. Gives those that may stay.
///
/// # Errors
/// Who or what.
pub(super) async fn refuse_fallen(
    client: &SourceClient,
    fence: &Fence,
    before: &Before,
) -> Result<Vec<OtherSession>> {
    if fence.kind != FenceKind::ReadOnly {
        return Ok(Vec::new());
    }
    if !catalog::read_only_default(client).await?.on {
        return Err(Definite::new("somebody took the fence down")
            .detail("default_transaction_read_only of the source's database is not on any more")
            .hint("run `walferry cutover` again when nobody needs to write there")
            .into());
    }
    refuse_subscriptions(client).await?;
    let began = Instant::now();
    loop {
        let there = before.left(client).await?;
        let left = [Fate::Ended, Fate::InTheWay].map(|fate| sessions::with(fate, &there)).concat();
        if left.is_empty() {
            return Ok(sessions::with(Fate::Stays, &there));
        }
        // A worker may be in one of its short transactions just now.
        refuse_late(client, began, &left).await?;
    }
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
    let (dbname, by_hand) = (source.dbname(), by_hand(source.dbname(), fence));
    let refused = match tried.await {
        Ok(Err(Failure::Definite(definite))) => definite,
        Ok(done) => return done,
        Err(_) => {
            let cause = format!("the fence on database {dbname:?} of the source cannot be taken down yet");
            let detail = format!("it cannot be written to; to open it by hand, there: {by_hand}");
            return Err(Transient::new(Side::Source, cause).detail(detail).into());
        }
    };
    let Definite { cause, detail, .. } = refused;
    Err(Definite::new(format!("the fence on database {dbname:?} of the source cannot be taken down"))
        .detail(if detail.is_empty() { cause } else { format!("{cause}: {detail}") })
        .hint(format!(
            "it cannot be written to; undo it there: {by_hand} Then run `walferry migrate`, which tries it again, too"
        ))
        .into())
}

/// The same where it is not known whether the database is fenced, and perhaps not by which fence either.
pub(super) fn if_fenced(dbname: &str, fence: Option<&Fence>) -> String {
    let by_hand = fence
        .map_or_else(|| catalog::read_only_by_hand(dbname, None).to_string(), |fence| by_hand(dbname, fence));
    format!("if database {dbname:?} of the source is still fenced, this opens it, there: {by_hand}")
}

/// How somebody takes a fence down without us.
pub(super) fn by_hand(dbname: &str, fence: &Fence) -> String {
    match fence.kind {
        FenceKind::ReadOnly => catalog::read_only_by_hand(dbname, fence.previous.as_deref()).to_string(),
        FenceKind::None => String::new(),
        FenceKind::Command => "what --fence-command did.".to_owned(),
    }
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
            end_own_sessions(&client, RAISING).await?;
            end_own_sessions(&client, HOLDING).await?;
            let previous = fence.previous.as_deref();
            catalog::set_read_only_default(&client, source.dbname(), previous).await?;
            // One that takes longer is read only until its client connects again.
            if let Err(failure) = wait_begun(&client).await {
                tracing::debug!(%failure, "the fence is down");
            }
            end_read_only_sessions(&client, fence).await
        }
    }
}

async fn end_own_sessions(client: &SourceClient, name: &str) -> Result<()> {
    while catalog::end_own_sessions(client, name).await? > 0 {
        sleep(REQUEST_POLL).await;
    }
    Ok(())
}

/// Ends sessions that began while the source was fenced, so that their clients connect again; names those that stay.
async fn end_read_only_sessions(client: &SourceClient, fence: &Fence) -> Result<Vec<String>> {
    let moment = catalog::moment(client).await?;
    let there = catalog::other_sessions(client, Some(&fence.since), &moment).await?;
    let mine = sessions::pids(&sessions::with(Fate::Ended, &there));
    catalog::end_sessions(client, &mine).await?;
    let left = [Fate::Stays, Fate::InTheWay].map(|fate| sessions::with(fate, &there)).concat();
    let warning = || {
        format!(
            "sessions that began while the source was fenced are read only until they connect again: {}",
            first_names(&sessions::named(&left))
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
