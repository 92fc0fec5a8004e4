//! The end of a migration: everything that Walferry made goes, on both sides, of all its databases. Rows and tables stay.
//!
//! The target knows what was made on the source. Where it is dead, or knows nothing, only names tell: `--force` goes by
//! them. Where the source is dead, `--force` removes the target's side. Either way it is said what is left, and how to drop
//! that by hand.

use tokio::task::JoinSet;

use crate::apply::TargetSession;
use crate::catalog::{self, SourceClient, TargetClient};
use crate::config::Method;
use crate::error::{Definite, Exit, Failure, Result};
use crate::pg::Sql;
use crate::store::{ChangedIdentity, MigrationRow, RelationState, Store};

use super::cluster::worst;
use super::leftovers::{Leftovers, unseen_by_hand};
use super::open::{by_hand as login_by_hand, open_all, shut};
use super::preflight::listed;
use super::select::{Looked, look, not_begun};
use super::uncarried::{before, put_back};
use super::{Phase, Sides, apply_role, cutover, fenced, publications, snapshot};

/// What was dropped, and how it ended.
#[derive(Debug)]
pub struct Removed {
    /// Each thing, as text fit for a person.
    pub dropped: Vec<String>,
    /// Of the database that ended worst.
    pub ended: Result<Exit>,
}

/// What the target knows of one database.
enum Known {
    Begun(Box<MigrationRow>),
    /// What is there cannot be understood.
    Damaged,
}

impl Known {
    fn is_done(&self) -> bool {
        matches!(self, Self::Begun(row) if row.phase == Phase::Done)
    }
}

/// What becomes of roles that a database which is removed has made.
struct Roles {
    /// All databases of the migration are done.
    all_done: bool,
    /// One that goes on.
    heir: Option<String>,
}

/// Drops slots, publications and the migration's rows of the databases in `only`, or of all where there are none.
///
/// Nothing at all is dropped where one of them is not finished and `force` is not given.
///
/// # Errors
/// When the target cannot be reached: with `force` the source's side is removed all the same. When neither side knows
/// anything of one of those in `only`: then nothing is dropped. What fails in one database does not keep the others.
pub async fn remove(sides: &Sides, only: &[String], force: bool) -> Result<Removed> {
    let target = match sides.target_client().await {
        Ok(target) => target,
        Err(failure) => return Ok(without_target(sides, only, force, &failure).await),
    };
    let looked = look(sides, &target).await?;
    let begun: Vec<String> =
        looked.iter().filter(|it| !matches!(it.begun, Ok(None))).map(|it| it.name.clone()).collect();
    if only.iter().any(|name| begun.contains(name)) {
        refuse_unknown(sides, only, &begun, &begun)?;
    }
    let not_done = |it: &&Looked| matches!(&it.begun, Ok(Some(row)) if row.phase != Phase::Done);
    let unfinished: Vec<String> = looked.iter().filter(not_done).map(|it| it.name.clone()).collect();
    let all_done = unfinished.is_empty();
    let mut ends = Vec::new();
    let mut known = Vec::new();
    for Looked { name, begun } in looked.into_iter().filter(|it| only.is_empty() || only.contains(&it.name)) {
        match begun {
            Ok(None) => {}
            Ok(Some(row)) => match finished(&sides.database(&name), &row, force).await {
                Ok(()) => known.push((name, Known::Begun(Box::new(row)))),
                Err(failure) => ends.push((name, Err(failure))),
            },
            Err(Failure::Definite(damaged)) if force => {
                let (database, cause, detail) = (&name, &damaged.cause, &damaged.detail);
                tracing::warn!(database, cause, detail, "what it made on the source goes by name");
                known.push((name, Known::Damaged));
            }
            Err(failure) => ends.push((name, Err(failure))),
        }
    }
    let heir = unfinished.into_iter().find(|name| known.iter().all(|(known, _)| known != name));
    if known.is_empty() && ends.is_empty() {
        return by_name(sides, only, &begun, force).await;
    }
    let mut dropped = Vec::new();
    if !ends.is_empty() && !force {
        ends.extend(known.into_iter().map(|(name, _)| (name, Ok(Exit::Fine))));
        return Ok(Removed { dropped, ended: worst(ends) });
    }
    if let Some(heir) = heir.as_ref().filter(|_| !force) {
        for (name, _) in known.iter().filter(|(_, known)| known.is_done()) {
            refuse_shut(&sides.database(name), heir).await?;
        }
    }
    let several = known.len() > 1;
    let mut work = JoinSet::new();
    for (name, known) in known {
        let (sides, roles) = (sides.database(&name), Roles { all_done, heir: heir.clone() });
        work.spawn(async move {
            let mut dropped = Vec::new();
            let ended = match known {
                Known::Begun(row) => remove_database(&sides, &row, roles, force, &mut dropped).await,
                Known::Damaged => remove_damaged(&sides, &mut dropped).await,
            };
            (name, dropped, ended)
        });
    }
    for (name, objects, ended) in work.join_all().await {
        let named = |object| if several { format!("{object}, database {name:?}") } else { object };
        dropped.extend(objects.into_iter().map(named));
        ends.push((name, ended.map(|()| Exit::Fine)));
    }
    Ok(Removed { dropped, ended: worst(ends) })
}

/// Refuses a name in `only` that is not `known`: it is misspelt, or removed already. `begun`: what the target has.
fn refuse_unknown(sides: &Sides, only: &[String], known: &[String], begun: &[String]) -> Result<()> {
    let Some(name) = only.iter().find(|name| !known.contains(name)) else { return Ok(()) };
    let refusal = Definite::new(format!("{}: nothing is dropped", not_begun(&sides.name, Some(name))));
    Err(if begun.is_empty() {
        refusal.hint("give the --target and the --name that it was begun with")
    } else {
        refusal
            .detail(format!("it has been begun in {}", listed(begun)))
            .hint("give --database one of these; case counts")
    }
    .into())
}

/// Refuses to forget roles that wait for their LOGIN until `heir` is done, too. Of a database that is given up, they go to
/// the other at once: nobody is to be kept from that.
async fn refuse_shut(sides: &Sides, heir: &str) -> Result<()> {
    let waiting = Store::new(&sides.target_client().await?, &sides.name).shut_roles().await?;
    if waiting.is_empty() {
        return Ok(());
    }
    let name = sides.target.dbname();
    Err(Definite::new(format!("roles of database {name:?} wait for their LOGIN: nothing is dropped"))
        .detail(format!("NOLOGIN on the target until database {heir:?} is done, too: {}", listed(&waiting)))
        .hint(
            "remove it when all are done; or let them log in from now on: stop `walferry migrate`, and start it again \
             with --open-target; or `walferry remove --force`, which leaves them to the other database's end",
        )
        .into())
}

async fn finished(sides: &Sides, row: &MigrationRow, force: bool) -> Result<()> {
    if force || row.phase.is_safe_to_remove() {
        return Ok(());
    }
    let target = sides.target_client().await?;
    Err(Definite::new(format!("the migration is not finished: its phase is {}", row.phase))
        .detail(half_done(&Store::new(&target, &sides.name)).await?)
        .hint(
            "to give it up all the same: `walferry remove --force`; for one database only: `--database NAME`",
        )
        .into())
}

/// What would stay on the target, and not be what it seems.
async fn half_done(store: &Store<'_>) -> Result<String> {
    let rows = store.relations().await?;
    let left: Vec<String> = rows
        .iter()
        .filter(|row| row.state != RelationState::Copied)
        .map(|row| row.name.to_string())
        .collect();
    if left.is_empty() {
        return Ok(
            "every table was copied; what comes after that (indexes, constraints, later changes) would be \
                   missing on the target"
                .to_owned(),
        );
    }
    Ok(format!("these tables are not copied completely and would stay so on the target: {}", listed(&left)))
}

/// Both sides of one database: the source's goes first, since the target's knows its names.
async fn remove_database(
    sides: &Sides,
    row: &MigrationRow,
    roles: Roles,
    force: bool,
    dropped: &mut Vec<String>,
) -> Result<()> {
    // With the lock in hand no engine can be at work, and none can begin.
    let lock = TargetSession::lock(&sides.target, &sides.name, None).await?;
    let target = sides.target_client().await?;
    let store = Store::new(&target, &sides.name);
    if row.method == Method::Replication {
        let identities = store.identities().await?;
        let source = match sides.source_client().await {
            Ok(source) => source,
            Err(failure) if force => {
                let fence = fenced(sides, &store, row.phase).await;
                settle_roles(sides, &target, &roles).await?;
                drop_writer(&target, row.slot.as_str(), dropped).await;
                store.remove().await?;
                return Err(left_on_source(row, &identities, fence, &failure).into());
            }
            Err(failure) => return Err(source_unreachable(&failure)),
        };
        match settle_fence(sides, &store, row.phase).await {
            Err(failure) if force => tracing::warn!(%failure, "the fence may still stand"),
            settled => settled?,
        }
        drop_on_source(&source, row, &identities, dropped).await?;
    }
    settle_roles(sides, &target, &roles).await?;
    drop_writer(&target, row.slot.as_str(), dropped).await;
    dropped.push(forget(sides, &store).await?);
    drop(lock);
    Ok(())
}

/// Roles that wait for their LOGIN get it where all is done, and an engine was killed before it gave it to them. Where
/// another database goes on, they wait for its end. Else they are left as they are: nobody has said that the target may be
/// written to, and what is there may be half copied.
async fn settle_roles(sides: &Sides, target: &TargetClient, roles: &Roles) -> Result<()> {
    let store = Store::new(target, &sides.name);
    let waiting = store.shut_roles().await?;
    if waiting.is_empty() {
        return Ok(());
    }
    if let Some(heir) = &roles.heir {
        // Its run has to know of all of them: memberships are carried among those.
        let client = sides.database(heir).target_client().await?;
        Store::new(&client, &sides.name).add_roles(&store.roles().await?, &waiting).await?;
        let roles = listed(&waiting);
        tracing::info!(roles, database = heir, "NOLOGIN on the target until this database is done");
        // It may have come to its end before it had them.
        let mut left = shut(sides, target).await?;
        left.unfinished.retain(|name| name != sides.target.dbname());
        if left.unfinished.is_empty() {
            open_all(sides, target).await?;
        }
        return Ok(());
    }
    if roles.all_done {
        open_all(sides, target).await?;
    }
    let left = store.shut_roles().await?;
    if !left.is_empty() {
        let (roles, hint) = (listed(&left), login_by_hand(&left));
        tracing::warn!(roles, %hint, "left NOLOGIN on the target, as the migration made them");
    }
    Ok(())
}

async fn drop_on_source(
    source: &SourceClient,
    row: &MigrationRow,
    identities: &[ChangedIdentity],
    dropped: &mut Vec<String>,
) -> Result<()> {
    let slot = catalog::slot(source, row.slot.as_str()).await?;
    if slot.is_some() {
        snapshot::drop_slot(source, &row.slot).await?;
        dropped.push(format!("replication slot {} on the source", row.slot));
    }
    for name in publications::drop_all(source, &row.publications).await? {
        dropped.push(format!("publication {name} on the source"));
    }
    // Not before: a publication of updates makes the source refuse them where nothing identifies a row.
    for name in put_back(source, identities).await? {
        dropped
            .push(format!("REPLICA IDENTITY FULL of table {name} on the source: it has again what it had"));
    }
    Ok(())
}

/// The target's side of it goes unread, the source's by name.
async fn remove_damaged(sides: &Sides, dropped: &mut Vec<String>) -> Result<()> {
    let _lock = TargetSession::lock(&sides.target, &sides.name, None).await?;
    let source = sides.source_client().await.map_err(|failure| source_unreachable(&failure))?;
    let found = Leftovers::find(&source, &sides.name).await?;
    dropped.extend(found.drop_all(&source).await?);
    let target = sides.target_client().await?;
    for role in apply_role::named(&target, &sides.name).await? {
        drop_writer(&target, &role, dropped).await;
    }
    dropped.push(forget(sides, &Store::new(&target, &sides.name)).await?);
    Ok(())
}

/// Drops the role that wrote the rows, if there is one. Where it cannot be dropped, it is nobody's: it has no LOGIN, and its
/// password ended long ago.
async fn drop_writer(target: &TargetClient, role: &str, dropped: &mut Vec<String>) {
    match apply_role::drop_role(target, role).await {
        Ok(true) => dropped.push(format!("role {role} on the target")),
        Ok(false) => {}
        Err(failure) => {
            let hint = apply_role::dropping(&Sql::default().ident(role));
            tracing::warn!(role, %failure, %hint, "left on the target: it may not log in; drop it by hand");
        }
    }
}

/// Takes down the fence of a cutover whose engine ended. That of one that is done stays: whoever still writes to the
/// source would lose what he writes.
async fn settle_fence(sides: &Sides, store: &Store<'_>, phase: Phase) -> Result<()> {
    let dbname = sides.source.dbname();
    let Some(fence) = cutover::left_fence(store, dbname).await? else {
        return fenced::tell(&sides.source_client().await?, dbname).await;
    };
    if phase != Phase::Done {
        for warning in cutover::lower(&sides.source, &fence, None).await? {
            tracing::warn!("{warning}");
        }
    } else if let Some(setting) = cutover::left_on_source(sides.source.dbname(), &fence) {
        tracing::warn!("left on the source, so that nobody writes to it by mistake: {setting}");
    }
    Ok(())
}

/// What a cutover that did not come to its end may have left on a source that cannot be reached.
async fn fenced(sides: &Sides, store: &Store<'_>, phase: Phase) -> Option<String> {
    let dbname = sides.source.dbname();
    let fence = cutover::left_fence(store, dbname).await.ok().flatten();
    let fence = fence.filter(|_| phase != Phase::Done)?;
    Some(
        cutover::left_on_source(dbname, &fence).unwrap_or_else(|| "undo what --fence-command did".to_owned()),
    )
}

async fn forget(sides: &Sides, store: &Store<'_>) -> Result<String> {
    store.remove().await?;
    Ok(format!("migration {:?} in schema walferry on the target", sides.name))
}

/// The databases of the source in which something was left, by name. One that cannot be entered is named in the log.
async fn leftovers(sides: &Sides, only: &[String]) -> Result<Vec<(String, SourceClient, Leftovers)>> {
    let source = sides.source_client().await?;
    let mut found = Vec::new();
    for database in catalog::all_databases(&source).await? {
        let meant = only.is_empty() || only.contains(&database.name);
        if database.template || !database.connectable || !meant {
            continue;
        }
        let name = database.name;
        match sides.database(&name).source_client().await {
            Ok(client) => {
                fenced::tell(&client, &name).await?;
                let left = Leftovers::find(&client, &sides.name).await?;
                if !left.is_empty() {
                    found.push((name, client, left));
                }
            }
            Err(failure) => {
                tracing::warn!(database = name, %failure, "cannot be asked whether a migration left something there");
            }
        }
    }
    Ok(found)
}

fn list(found: &[(String, SourceClient, Leftovers)]) -> String {
    let each = found.iter().map(|(name, _, left)| format!("in database {name:?}: {}", left.list()));
    if found.is_empty() { "nothing".to_owned() } else { each.collect::<Vec<_>>().join("; ") }
}

fn by_hand(found: &[(String, SourceClient, Leftovers)]) -> String {
    match found {
        [(_, _, only)] => only.by_hand(),
        several => {
            let each =
                several.iter().map(|(name, _, left)| format!("in database {name:?}: {}", left.by_hand()));
            each.collect::<Vec<_>>().join(" ")
        }
    }
}

async fn drop_all(found: &[(String, SourceClient, Leftovers)]) -> Removed {
    tracing::warn!(found = list(found), "found on the source by name: dropped, as far as it is not in use");
    let (mut dropped, mut ends) = (Vec::new(), Vec::new());
    for (name, client, left) in found {
        let ended = left.drop_all(client).await.map(|objects| {
            let named =
                |object| if found.len() > 1 { format!("{object}, database {name:?}") } else { object };
            dropped.extend(objects.into_iter().map(named));
            Exit::Fine
        });
        ends.push((name.clone(), ended));
    }
    Removed { dropped, ended: worst(ends) }
}

/// The target is there, and knows of no such migration, or only `begun` others than `only`; the source may.
async fn by_name(sides: &Sides, only: &[String], begun: &[String], force: bool) -> Result<Removed> {
    let found = match leftovers(sides, only).await {
        Ok(found) => found,
        Err(failure) => {
            tracing::warn!(%failure, "the source cannot be asked whether a migration left something there");
            Vec::new()
        }
    };
    let known: Vec<String> = found.iter().map(|(name, ..)| name.clone()).collect();
    refuse_unknown(sides, only, &known, begun)?;
    if force || found.is_empty() {
        return Ok(if found.is_empty() {
            Removed { dropped: Vec::new(), ended: Ok(Exit::Fine) }
        } else {
            drop_all(&found).await
        });
    }
    let cause = format!(
        "the target knows of no migration {:?}, but the source has what one of that name left",
        sides.name
    );
    Err(Definite::new(cause)
        .detail(list(&found))
        .hint(format!(
            "if they are of no migration to another target: `walferry remove --force`; by hand, on the source: {}",
            by_hand(&found)
        ))
        .into())
}

/// How a removal ends whose target cannot be reached: the source's side is removed with `force`, else listed.
async fn without_target(sides: &Sides, only: &[String], force: bool, failure: &Failure) -> Removed {
    let ended = |definite: Definite| Removed { dropped: Vec::new(), ended: Err(definite.into()) };
    let found = match leftovers(sides, only).await {
        Ok(found) => found,
        Err(other) => {
            return ended(
                Definite::new("neither side can be reached: nothing is dropped")
                    .detail(format!("{failure}; {other}"))
                    .hint(format!(
                        "if the source still lives, run there, in each database: {}",
                        unseen_by_hand(&sides.name)
                    )),
            );
        }
    };
    let detail = format!("{failure}\nfound on the source by name: {}", list(&found));
    if !force {
        let hint = match by_hand(&found) {
            nothing if nothing.is_empty() => "make the target reachable".to_owned(),
            by_hand => format!(
                "make the target reachable; if it is gone for good: `walferry remove --force`, or by hand, on the \
                 source: {by_hand}"
            ),
        };
        let cause = "the target cannot be reached, and it alone knows what was made: nothing is dropped";
        return ended(Definite::new(cause).detail(detail).hint(hint));
    }
    let removed = drop_all(&found).await;
    if removed.ended.is_err() {
        return removed;
    }
    let left = Definite::new("the source's side is removed, the target could not be reached")
        .detail(detail)
        .hint("if the target still lives, run there: DROP SCHEMA walferry CASCADE, or `walferry remove --force` again");
    Removed { ended: Err(left.into()), ..removed }
}

fn source_unreachable(failure: &Failure) -> Failure {
    Definite::new("the source cannot be reached: nothing is dropped")
        .detail(failure.to_string())
        .hint(
            "make it reachable; if it is gone for good: `walferry remove --force` removes the target's side",
        )
        .into()
}

/// The target's side is gone, the source's side could not be reached: how to drop that by hand.
fn left_on_source(
    row: &MigrationRow,
    identities: &[ChangedIdentity],
    fence: Option<String>,
    failure: &Failure,
) -> Definite {
    let drop_slot = Sql::new("SELECT pg_drop_replication_slot(").literal(row.slot.as_str()).text(")");
    let drop_publications =
        Sql::new("DROP PUBLICATION ").list(&row.publications, ", ", |sql, name| sql.ident(name));
    let identities = identities.iter().map(|changed| before(&changed.name, changed));
    let statements = catalog::by_hand([drop_slot, drop_publications].into_iter().chain(identities));
    Definite::new("the target's side is removed, the source could not be reached")
        .detail(failure.to_string())
        .hint(format!(
            "if the source still lives, run there: {statements}{}",
            fence.map_or_else(String::new, |fence| format!(" it is fenced: {fence}"))
        ))
}
