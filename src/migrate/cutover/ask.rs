//! The command: asks the running engine, and waits for its answer.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::config::Method;
use crate::error::{Definite, Failure, Result};
use crate::limits::{
    CUTOVER_ANSWER_WAIT, REQUEST_ENGINE_WAIT, REQUEST_POLL, REQUEST_TAKEN_WAIT, TARGET_OPENED_WAIT,
};
use crate::migrate::open::{by_hand, left_nologin, shut};
use crate::migrate::select::{databases_begun, databases_waiting};
use crate::migrate::{Phase, Sides, fenced};
use crate::store::Request;
use crate::store::Store;

use super::fence::if_fenced;
use super::record::{CutoverRequest, CutoverState, CutoverStatus, DoneStep, Fence};
use super::sessions::first_names;
use super::{AGAIN, COMMAND, WHEN_SYNCED, left_fence, status};

/// Hears of each step: the database, and what is done.
pub type Told = Arc<dyn Fn(&str, &DoneStep) + Send + Sync>;

const MOVED_ONCE: &str = "it is moved by method pg_dump";

/// Asks the running engine to cut over the databases in `only`, or all of the migration where there are none, at the same
/// time; waits until each is done, refused or given up. When `stop` becomes true, the engine is asked to give them up.
///
/// None is asked for where one of them is not ready: an application that needs several moves with all of them. One that
/// is done already says so again; what method `pg_dump` has moved is left out where there are others.
///
/// # Errors
/// When the target cannot be reached, or not for long enough to know how it ended.
pub async fn cutover(
    sides: &Sides,
    only: &[String],
    wanted: &CutoverRequest,
    stop: watch::Receiver<bool>,
    told: Told,
) -> Result<Vec<(String, CutoverStatus)>> {
    let begun = match databases_begun(sides, only).await {
        Err(Failure::Definite(none)) => return Err(fenced::with_unrecorded(sides, none).await.into()),
        begun => begun?,
    };
    let names = followed(sides, begun).await?;
    let mut refused = Vec::new();
    if only.is_empty() {
        let waiting =
            Definite::new("it is not begun yet: it waits until others are copied, or was made later")
                .hint("wait until it is in sync, or name the others with --database");
        for name in databases_waiting(sides).await? {
            refused.push((name, CutoverStatus::refused(&waiting)));
        }
    }
    for name in &names {
        let sides = sides.database(name);
        let target = sides.target_client().await?;
        if let Some(Err(refusal)) = refuse(&sides, &Store::new(&target, &sides.name)).await? {
            refused.push((name.clone(), CutoverStatus::refused(&refusal)));
        }
    }
    if !refused.is_empty() {
        return Ok(refused);
    }
    if !only.is_empty()
        && let Some(refusal) = refuse_while_others_shut(sides, &names).await?
    {
        return Ok(names.into_iter().map(|name| (name, CutoverStatus::refused(&refusal))).collect());
    }
    let mut work = JoinSet::new();
    for name in names {
        let (sides, wanted, stop, told) =
            (sides.database(&name), wanted.clone(), stop.clone(), Arc::clone(&told));
        work.spawn(async move {
            let status = cutover_database(&sides, &wanted, stop, |step| told(&name, step)).await;
            status.map(|status| (name, status))
        });
    }
    let mut ended: Vec<_> = work.join_all().await.into_iter().collect::<Result<_>>()?;
    ended.sort_by(|(one, _), (other, _)| one.cmp(other));
    let all_done = ended.iter().all(|(_, status)| status.state == CutoverState::Done);
    let warning = if all_done { still_shut(sides).await? } else { None };
    if let Some((_, status)) = ended.last_mut() {
        status.warnings.extend(warning);
    }
    Ok(ended)
}

/// Roles are of the cluster: those that the migration made may log in when all its databases are done. An application whose
/// database alone is cut over could write nowhere until then.
async fn refuse_while_others_shut(sides: &Sides, names: &[String]) -> Result<Option<Definite>> {
    let shut = shut(sides, &sides.target_client().await?).await?;
    if shut.roles.is_empty() || !names.iter().any(|name| shut.unfinished.contains(name)) {
        return Ok(None);
    }
    // The engine reaches the source; whoever asks it need not.
    let waiting = databases_waiting(sides).await.unwrap_or_else(|failure| {
        tracing::debug!(%failure, "databases that wait are not known");
        Vec::new()
    });
    let others = shut.unfinished.into_iter().chain(waiting).filter(|name| !names.contains(name));
    let others: Vec<String> = others.collect();
    if others.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        Definite::new("the target's roles may log in only when all databases of the migration are done")
            .detail(format!(
                "not done, and not asked for: {}; NOLOGIN until then: {}",
                first_names(&others),
                first_names(&shut.roles.into_iter().collect::<Vec<_>>())
            ))
            .hint(
                "cut all of them over at the same time; or let them log in from now on: stop `walferry migrate`, and \
                 start it again with --open-target",
            ),
    ))
}

/// The engine opens the target when it has recorded the end: whoever starts an application now can rely on it.
async fn still_shut(sides: &Sides) -> Result<Option<String>> {
    let deadline = Instant::now() + TARGET_OPENED_WAIT;
    loop {
        let left = shut(sides, &sides.target_client().await?).await?;
        if left.roles.is_empty() {
            return Ok(left_nologin(sides).await.unwrap_or_else(|failure| {
                tracing::debug!(%failure, "the roles of both sides cannot be compared");
                None
            }));
        }
        let by_hand = by_hand(&left.roles);
        if !left.unfinished.is_empty() {
            return Ok(Some(format!(
                "roles stay NOLOGIN on the target until databases {} are done, too; at once: {by_hand}",
                first_names(&left.unfinished)
            )));
        }
        if Instant::now() >= deadline {
            return Ok(Some(format!(
                "roles are still NOLOGIN on the target: run `walferry migrate` once more, which ends at once; or \
                 there: {by_hand}"
            )));
        }
        sleep(REQUEST_POLL).await;
    }
}

/// Without those that were dumped and restored: there is nothing to cut over. They are refused where there are no others.
async fn followed(sides: &Sides, names: Vec<String>) -> Result<Vec<String>> {
    let (mut followed, mut moved) = (Vec::new(), Vec::new());
    for name in names {
        let target = sides.database(&name).target_client().await?;
        let row = Store::new(&target, &sides.name).migration().await?;
        let done = row.is_some_and(|row| row.method == Method::PgDump && row.phase == Phase::Done);
        if done { moved.push(name) } else { followed.push(name) }
    }
    if followed.is_empty() {
        return Ok(moved);
    }
    for database in moved {
        tracing::warn!(database, "{MOVED_ONCE}, and done: left as it is");
    }
    Ok(followed)
}

async fn cutover_database(
    sides: &Sides,
    wanted: &CutoverRequest,
    stop: watch::Receiver<bool>,
    mut told: impl FnMut(&DoneStep),
) -> Result<CutoverStatus> {
    let target = sides.target_client().await?;
    let store = Store::new(&target, &sides.name);
    let arguments = serde_json::to_value(wanted).unwrap_or(Value::Null);
    let asked = match refuse(sides, &store).await? {
        Some(Ok(done)) => return Ok(done),
        Some(Err(refusal)) => return Ok(CutoverStatus::refused(&refusal)),
        None => store.ask(COMMAND, &arguments).await?,
    };
    let Some(id) = asked else {
        let other = Definite::new("another cutover is under way").hint("wait for its end: `walferry status`");
        return Ok(CutoverStatus::refused(&other));
    };
    drop(target);
    let (began, told_steps, asked_to_end, fence, told_late) = (Instant::now(), 0, false, None, false);
    let mut waiting = Waiting { sides, id, stop, began, told_steps, asked_to_end, fence, told_late };
    let deadline = waiting.began + REQUEST_TAKEN_WAIT + wanted.timeout() + CUTOVER_ANSWER_WAIT;
    loop {
        // The engine goes on without us: when our own connection breaks, we look again.
        match waiting.wait(&mut told, deadline).await {
            Err(Failure::Transient(transient)) if Instant::now() < deadline => {
                tracing::warn!(cause = transient.cause, "trying again");
                sleep(REQUEST_POLL).await;
            }
            ended => return ended,
        }
    }
}

/// What need not be asked for: it is done, or cannot be.
async fn refuse(sides: &Sides, store: &Store<'_>) -> Result<Option<Result<CutoverStatus, Definite>>> {
    let Some(row) = store.begun().await? else {
        let none = Definite::new("no migration of this name has been begun on this target")
            .hint("`walferry migrate` begins one");
        return Ok(Some(Err(none)));
    };
    let phase = row.phase;
    if row.method == Method::PgDump {
        let hint = match phase {
            Phase::Done => {
                "if nobody wrote there since, point the application at the target; else start afresh"
            }
            _ => "wait until `walferry migrate` is done with it",
        };
        let refusal = Definite::new(format!("{MOVED_ONCE}: there is nothing to cut over"))
            .detail("changes made on the source after its start are NOT carried")
            .hint(hint);
        return Ok(Some(Err(refusal)));
    }
    if phase == Phase::Done {
        let last = store.last_request(COMMAND).await?;
        let last = last.map(|last| status(sides.source.dbname(), &last)).transpose()?;
        return Ok(Some(Ok(last.unwrap_or_default())));
    }
    if !store.engine_runs().await? {
        let start = "start `walferry migrate`, wait for the phase syncing, then run `walferry cutover` again"
            .to_owned();
        let refusal = Definite::new("no engine runs this migration");
        let refusal = if phase == Phase::CuttingOver {
            let dbname = sides.source.dbname();
            let fence = left_fence(store, dbname).await?;
            refusal
                .detail("a cutover was under way when it ended: the source may still be fenced")
                .hint(start + ", which takes the fence down first; " + &if_fenced(dbname, fence.as_ref()))
        } else {
            refusal.hint(start)
        };
        return Ok(Some(Err(refusal)));
    }
    if phase != Phase::Syncing && phase != Phase::CuttingOver {
        let refusal =
            Definite::new(format!("the migration is not in sync: its phase is {phase}")).hint(WHEN_SYNCED);
        return Ok(Some(Err(refusal)));
    }
    Ok(None)
}

/// A request that was made.
struct Waiting<'a> {
    sides: &'a Sides,
    id: i64,
    stop: watch::Receiver<bool>,
    began: Instant,
    told_steps: usize,
    /// We have asked the engine to give it up.
    asked_to_end: bool,
    /// The fence, as the engine told last.
    fence: Option<Fence>,
    /// It takes longer than it should, and that was said.
    told_late: bool,
}

impl Waiting<'_> {
    async fn wait(&mut self, told: &mut impl FnMut(&DoneStep), deadline: Instant) -> Result<CutoverStatus> {
        let target = self.sides.target_client().await?;
        let store = Store::new(&target, &self.sides.name);
        let mut engine_seen = Instant::now();
        loop {
            let Some(request) = store.request(self.id).await? else {
                let gone = Definite::new("the request is gone: the migration was removed");
                return Err(gone.hint(self.if_fenced()).into());
            };
            if let Some(status) = self.look(&store, &request, told).await? {
                return Ok(status);
            }
            let now = Instant::now();
            if store.engine_runs().await? {
                engine_seen = now;
            }
            if now - engine_seen >= REQUEST_ENGINE_WAIT {
                // Another request may have been faster.
                if let Some(Ok(done)) = refuse(self.sides, &store).await? {
                    return Ok(done);
                }
                return Err(self.unanswered("the engine ended during the cutover").into());
            }
            if now >= deadline && !std::mem::replace(&mut self.told_late, true) {
                tracing::warn!(
                    "the engine is still at it, and the source may be fenced: {}",
                    self.if_fenced()
                );
            }
            sleep(REQUEST_POLL).await;
        }
    }

    /// Tells of what is new; gives how it ended, if it did.
    async fn look(
        &mut self,
        store: &Store<'_>,
        request: &Request,
        told: &mut impl FnMut(&DoneStep),
    ) -> Result<Option<CutoverStatus>> {
        let stopping = *self.stop.borrow();
        if request.answer.is_none() {
            let late = self.began.elapsed() >= REQUEST_TAKEN_WAIT;
            if (stopping || late) && store.withdraw(self.id).await? {
                return Ok(Some(CutoverStatus::refused(&not_taken(stopping))));
            }
            return Ok(None);
        }
        let status = status(self.sides.source.dbname(), request)?;
        self.fence.clone_from(&status.fence);
        for step in status.steps.iter().skip(self.told_steps) {
            told(step);
        }
        self.told_steps = self.told_steps.max(status.steps.len());
        if request.answered {
            return Ok(Some(status));
        }
        if stopping && !self.asked_to_end {
            self.asked_to_end = true;
            store.give_up(self.id).await?;
        }
        Ok(None)
    }

    fn if_fenced(&self) -> String {
        if_fenced(self.sides.source.dbname(), self.fence.as_ref())
    }

    fn unanswered(&self, cause: &str) -> Definite {
        let waited = self.began.elapsed().as_secs();
        Definite::new(cause)
            .detail(format!("{waited} s after it was asked for; the source may still be fenced"))
            .hint(format!(
                "start `walferry migrate`: unless `walferry status` shows done, it takes the fence down first; {}",
                self.if_fenced()
            ))
    }
}

fn not_taken(stopping: bool) -> Definite {
    if stopping {
        return Definite::new("it was given up before it began").hint(AGAIN);
    }
    Definite::new("the engine did not take the request")
        .detail(format!(
            "{} s after it was asked for: it connects again, or catches up",
            REQUEST_TAKEN_WAIT.as_secs()
        ))
        .hint(WHEN_SYNCED)
}
