//! Which databases a migration is of.
//!
//! Without `--database` all of the source are, but templates, those of the provider, and the maintenance database
//! `postgres` where it holds nothing. A run that is given no choice goes on with the one that the migration was begun
//! with: each database of the target remembers it ([`MigrationRow::selection`]). What was chosen of tables holds for the
//! whole migration, and cannot be changed. Databases without a table that `--with-table` means are not moved.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::catalog::{self, Database, TargetClient};
use crate::config::{Method, Selection, TableFilter, TablePattern};
use crate::error::{Definite, Failure, Result};
use crate::limits::DATABASES_LOOKED_AT;
use crate::pg::QualifiedName;
use crate::store::{MigrationRow, Store};

use super::{Phase, Sides};

/// Databases that providers keep for themselves.
const OF_PROVIDERS: [&str; 7] = [
    "_aiven",
    "alloydbadmin",
    "alloydbmetadata",
    "azure_maintenance",
    "azure_sys",
    "cloudsqladmin",
    "rdsadmin",
];

/// The database that every cluster has for connecting to.
const MAINTENANCE: &str = "postgres";

/// The databases of a run, and what was chosen.
#[derive(Debug)]
pub(super) struct Choice {
    /// In the order of their names; at least one.
    pub(super) databases: Vec<Chosen>,
    /// To be remembered with each.
    pub(super) selection: Selection,
    /// Its tables.
    pub(super) filter: TableFilter,
}

impl Choice {
    /// How a database is to be moved; `None`: by replication where that is possible. What was begun stays as it is.
    pub(super) fn method_of(&self, given: Option<Method>, database: &Chosen) -> Option<Method> {
        let meant = || if self.is_dumped(&database.name) { Some(Method::PgDump) } else { given };
        database.begun.as_ref().map_or_else(meant, |row| Some(row.method))
    }

    /// Whether it is to be dumped while others may be followed.
    pub(super) fn is_dumped(&self, name: &str) -> bool {
        self.selection.dumped_databases.iter().any(|dumped| dumped == name)
    }
}

/// One database of a run.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) name: String,
    /// The target has a database of this name.
    pub(super) on_target: bool,
    /// What the target remembers of its migration.
    pub(super) begun: Option<MigrationRow>,
}

/// A database of the target, and whether the migration was begun in it.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) name: String,
    pub(super) begun: Result<Option<MigrationRow>>,
}

/// Chooses.
///
/// # Errors
/// When a side cannot be reached; a usage error when nothing is left, or the source lacks a database that is named.
pub(super) async fn select(sides: &Sides, given: &Selection) -> Result<Choice> {
    let on_source = async {
        let source = sides.source_client().await?;
        Ok(catalog::all_databases(&source).await?)
    };
    let looked = async { look(sides, &sides.target_client().await?).await };
    let (on_source, looked) = tokio::join!(on_source, looked);
    let looked = looked?;
    let on_source = match on_source {
        Ok(on_source) => on_source,
        Err(failure) => return done_without_source(looked, given).ok_or(failure),
    };
    let mut begun: Vec<(&str, &MigrationRow)> = Vec::new();
    for Looked { name, begun: row } in &looked {
        match row {
            Ok(row) => begun.extend(row.as_ref().map(|row| (name.as_str(), row))),
            // The database's own attempt says it again.
            Err(Failure::Definite(_)) => {}
            Err(failure) => return Err(failure.clone()),
        }
    }
    if let Some((name, row)) = begun.iter().find(|(_, row)| !row.selection.same_tables(given))
        && given.names_tables()
    {
        return Err(other_tables(name, &row.selection).into());
    }
    let selection = remembered(given, &begun);
    let filter = filter(&selection)?;
    refuse_missing(given, &on_source)?;
    for (name, _) in begun.iter().filter(|(name, _)| !has(&on_source, name)) {
        tracing::warn!(database = name, "gone from the source: it is not followed any more");
    }
    let names = selected(sides, &on_source, &selection, &begun).await?;
    refuse_undumped(given, &names)?;
    let databases = names.into_iter().map(|name| {
        let row = begun.iter().find(|(of, _)| *of == name).map(|(_, row)| (*row).clone());
        let on_target = looked.iter().any(|looked| looked.name == name);
        Chosen { name, on_target, begun: row }
    });
    Ok(Choice { databases: databases.collect(), selection, filter })
}

/// The databases that are meant, where all of them are done: the source may be gone by then.
fn done_without_source(looked: Vec<Looked>, given: &Selection) -> Option<Choice> {
    let mut databases = Vec::new();
    for Looked { name, begun } in looked.into_iter().filter(|looked| given.takes_database(&looked.name)) {
        match begun {
            Ok(None) => {}
            Ok(Some(row)) if row.phase == Phase::Done => {
                databases.push(Chosen { name, on_target: true, begun: Some(row) });
            }
            Ok(Some(_)) | Err(_) => return None,
        }
    }
    let named = given.databases.iter().all(|name| databases.iter().any(|database| database.name == *name));
    (named && !databases.is_empty()).then(|| Choice {
        databases,
        selection: given.clone(),
        filter: TableFilter::default(),
    })
}

/// The source's databases that `selection` takes; at least one.
///
/// # Errors
/// Same as [`select`].
pub(super) async fn selected(
    sides: &Sides,
    on_source: &[Database],
    selection: &Selection,
    begun: &[(&str, &MigrationRow)],
) -> Result<Vec<String>> {
    let names: Vec<&str> = begun.iter().map(|(name, _)| *name).collect();
    let mut names = wanted(on_source, selection, &names);
    let asked_for = selection.databases.iter().map(String::as_str).chain(begun.iter().map(|(name, _)| *name));
    if let Some(at) = names.iter().position(|name| name == MAINTENANCE)
        && !asked_for.into_iter().any(|name| name == MAINTENANCE)
        && !holds_anything(&sides.database(MAINTENANCE)).await?
    {
        tracing::debug!(database = MAINTENANCE, "holds nothing: left out");
        names.remove(at);
    }
    if names.is_empty() {
        return Err(none_left(on_source, selection).into());
    }
    with_tables(sides, names, &filter(selection)?, begun).await
}

/// Those of the databases that have tables to move. Every pattern has to mean some table, or it is a mistake; but what was
/// there when the migration was begun may be gone by now.
async fn with_tables(
    sides: &Sides,
    names: Vec<String>,
    filter: &TableFilter,
    begun: &[(&str, &MigrationRow)],
) -> Result<Vec<String>> {
    if filter.takes_all() {
        return Ok(names);
    }
    let mut left: Vec<(&str, &TablePattern)> = filter.patterns().collect();
    let mut with_tables = Vec::new();
    for name in names {
        let tables = match tables_of(&sides.database(&name)).await? {
            Some(tables) => tables,
            // Its own attempt says why; what it holds is not known.
            None => {
                left.retain(|(_, pattern)| !pattern.concerns(&name));
                with_tables.push(name);
                continue;
            }
        };
        left.retain(|(_, pattern)| !tables.iter().any(|table| pattern.matches(&name, table)));
        let is_begun = begun.iter().any(|(of, _)| *of == name);
        if is_begun || !filter.has_with() || tables.iter().any(|table| filter.means(&name, table)) {
            with_tables.push(name);
        } else {
            tracing::info!(database = name, "has no table that --with-table means: not migrated");
        }
    }
    match left.first() {
        Some((option, pattern)) if begun.is_empty() => Err(Definite::usage(format!(
            "{option} {pattern} means no table of the databases that are migrated"
        ))
        .hint("patterns are [db.]schema.table with * and ?; case counts, a name with a dot is quoted")
        .into()),
        _ => Ok(with_tables),
    }
}

async fn tables_of(sides: &Sides) -> Result<Option<Vec<QualifiedName>>> {
    match sides.source_client().await {
        Ok(client) => catalog::table_names(&client).await.map(Some).map_err(Failure::from),
        Err(Failure::Definite(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The databases of the source that the migration takes and was not begun in yet.
///
/// # Errors
/// When a side does not answer.
pub(super) async fn databases_waiting(sides: &Sides) -> Result<Vec<String>> {
    let target = sides.target_client().await?;
    let mut begun = Vec::new();
    for looked in look(sides, &target).await? {
        begun.extend(looked.begun?.map(|row| (looked.name, row)));
    }
    let rows: Vec<(&str, &MigrationRow)> = begun.iter().map(|(name, row)| (name.as_str(), row)).collect();
    if rows.iter().all(|(_, row)| row.phase == Phase::Done) {
        return Ok(Vec::new());
    }
    let source = sides.source_client().await?;
    let on_source = catalog::all_databases(&source).await?;
    let selection = remembered(&Selection::default(), &rows);
    let mut names = selected(sides, &on_source, &selection, &rows).await?;
    names.retain(|name| rows.iter().all(|(begun, _)| begun != name));
    Ok(names)
}

/// The databases in `only` that the migration was begun in; all of them where there are none.
///
/// # Errors
/// When one of those in `only` is none, or there are none at all; when the target does not answer.
pub(super) async fn databases_begun(sides: &Sides, only: &[String]) -> Result<Vec<String>> {
    let target = sides.target_client().await?;
    let mut names = Vec::new();
    for looked in look(sides, &target).await? {
        if (only.is_empty() || only.contains(&looked.name)) && looked.begun?.is_some() {
            names.push(looked.name);
        }
    }
    let missing = only.iter().find(|name| !names.contains(name));
    if names.is_empty() || missing.is_some() {
        return Err(Definite::new(not_begun(&sides.name, missing))
            .hint("`walferry migrate` begins one")
            .into());
    }
    Ok(names)
}

/// That there is no such migration: at all, or in one database.
pub(super) fn not_begun(migration: &str, database: Option<&String>) -> String {
    let of = database.map_or_else(String::new, |name| format!(", in its database {name:?}"));
    format!("no migration {migration:?} has been begun on this target{of}")
}

fn filter(selection: &Selection) -> Result<TableFilter> {
    selection.tables().map_err(|reason| Definite::usage(reason).into())
}

fn other_tables(name: &str, begun: &Selection) -> Definite {
    let options = |option: &'static str, patterns: &[String]| {
        patterns.iter().map(|pattern| format!("{option} {pattern}")).collect::<Vec<_>>()
    };
    let mut with = options("--with-table", &begun.with_tables);
    with.extend(options("--skip-table", &begun.skip_tables));
    let with = if with.is_empty() { "all tables".to_owned() } else { with.join(" ") };
    Definite::usage("the migration was begun with other tables")
        .detail(format!("database {name:?} was begun with {with}"))
        .hint(
            "give no --with-table and no --skip-table to go on with those; for others give another --name, or start \
             afresh after `walferry remove --force`",
        )
}

/// Looks into every database of the target that may hold something of the migration.
///
/// # Errors
/// When the target does not say which it has.
pub(super) async fn look(sides: &Sides, target: &TargetClient) -> Result<Vec<Looked>> {
    let found = catalog::all_databases(target).await?;
    let permits = Arc::new(Semaphore::new(DATABASES_LOOKED_AT));
    let mut work = JoinSet::new();
    for database in found.into_iter().filter(|database| !database.template) {
        let (sides, permits) = (sides.database(&database.name), Arc::clone(&permits));
        let ours = database.connectable && !is_of_provider(&database.name);
        work.spawn(async move {
            let _permit = permits.acquire().await;
            let begun = if ours { begun(&sides).await } else { Ok(None) };
            Looked { name: database.name, begun }
        });
    }
    let mut looked = work.join_all().await;
    looked.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(looked)
}

/// Anybody may own a database of the target: what is not ours there is as if it were not there. Where we are to write to
/// such a database, its check and its attempt fail.
async fn begun(sides: &Sides) -> Result<Option<MigrationRow>> {
    let target = sides.target.clone().tables_only();
    let client = match (Sides { target, ..sides.clone() }).target_client().await {
        Ok(client) => client,
        Err(Failure::Definite(definite)) => {
            let (database, cause) = (sides.target.dbname(), definite.cause);
            tracing::warn!(database, cause, "this database of the target cannot be looked into");
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    let store = Store::new(&client, &sides.name);
    if let Some(stranger) = store.stranger().await? {
        let (database, owner) = (sides.target.dbname(), stranger.owner);
        if sides.strangers.lock().is_ok_and(|mut told| told.insert(database.to_owned())) {
            tracing::warn!(
                "database {database:?} of the target has a schema walferry of {owner:?}: it is not read"
            );
        }
        return Ok(None);
    }
    store.begun().await
}

/// What is given, else what the databases that are begun remember.
pub(super) fn remembered(given: &Selection, begun: &[(&str, &MigrationRow)]) -> Selection {
    let selections: Vec<(&str, &Selection)> =
        begun.iter().map(|(name, row)| (*name, &row.selection)).collect();
    let mut selection = if given.names_databases() { given.clone() } else { of_all(&selections) };
    let tables =
        selections.iter().map(|(_, selection)| *selection).find(|selection| selection.names_tables());
    let tables = if given.names_tables() { given } else { tables.unwrap_or(given) };
    let dumped = |selection: &&Selection| !selection.dumped_databases.is_empty();
    let before = selections.iter().map(|(_, selection)| *selection).find(dumped);
    let of_dumps = Some(given).filter(dumped).or(before).unwrap_or(given);
    selection.dumped_databases.clone_from(&of_dumps.dumped_databases);
    selection.with_tables.clone_from(&tables.with_tables);
    selection.skip_tables.clone_from(&tables.skip_tables);
    selection
}

/// The choices of the runs before this one, taken together: a database that any of them took is taken.
fn of_all(begun: &[(&str, &Selection)]) -> Selection {
    let mut selection = Selection::default();
    // Those that were begun by a run for all databases.
    let all: Vec<&Selection> = begun
        .iter()
        .map(|(_, selection)| *selection)
        .filter(|selection| selection.databases.is_empty())
        .collect();
    match all.first() {
        None => {
            selection.databases =
                begun.iter().flat_map(|(_, selection)| selection.databases.clone()).collect();
        }
        Some(first) => {
            let taken = |name: &String| begun.iter().any(|(of, _)| of == name);
            let ignored =
                |name: &&String| all.iter().all(|all| all.ignored_databases.contains(name)) && !taken(name);
            selection.ignored_databases = first.ignored_databases.iter().filter(ignored).cloned().collect();
        }
    }
    selection.databases.extend(begun.iter().map(|(name, _)| (*name).to_owned()).filter(|_| all.is_empty()));
    selection.databases.sort();
    selection.databases.dedup();
    selection
}

/// Refuses databases that are to be dumped and are not moved at all.
fn refuse_undumped(given: &Selection, moved: &[String]) -> Result<(), Definite> {
    match given.dumped_databases.iter().find(|name| !moved.contains(name)) {
        Some(name) => {
            Err(Definite::usage(format!("--dump-db names database {name:?}, which is not migrated"))
                .detail(format!("migrated: {}", super::preflight::listed(moved)))
                .hint("give it as the source spells it; see --database and --ignore-dbs"))
        }
        None => Ok(()),
    }
}

/// Refuses databases that are named and not there.
fn refuse_missing(given: &Selection, on_source: &[Database]) -> Result<(), Definite> {
    for name in given.ignored_databases.iter().filter(|name| !has(on_source, name)) {
        tracing::warn!(database = name, "--ignore-dbs names a database that the source does not have");
    }
    match given.databases.iter().find(|name| !has(on_source, name)) {
        Some(missing) => Err(Definite::usage(format!("the source has no database {missing:?}"))
            .detail(format!("it has: {}", listed(on_source)))
            .hint("give --database as the source spells it; case counts")),
        None => Ok(()),
    }
}

fn has(on_source: &[Database], name: &str) -> bool {
    on_source.iter().any(|database| database.name == name && !database.template)
}

/// Those that are meant. One that is named or begun is, whether we may enter it or not: who tries says why not.
fn wanted(on_source: &[Database], selection: &Selection, begun: &[&str]) -> Vec<String> {
    let takes = |database: &&Database| {
        let known = selection.databases.contains(&database.name) || begun.contains(&database.name.as_str());
        !database.template
            && selection.takes_database(&database.name)
            && (known || (database.connectable && !is_of_provider(&database.name)))
    };
    on_source.iter().filter(takes).map(|database| database.name.clone()).collect()
}

fn none_left(on_source: &[Database], selection: &Selection) -> Definite {
    let cause = Definite::usage("there is no database to migrate").detail(format!(
        "the source has: {}; a database postgres that holds nothing is left out",
        listed(on_source)
    ));
    if selection.names_databases() {
        cause.hint("see --database and --ignore-dbs")
    } else {
        cause.hint(
            "the source's role needs CONNECT on the databases; to move one all the same: --database NAME",
        )
    }
}

fn listed(databases: &[Database]) -> String {
    let names = databases.iter().filter(|database| !database.template && !is_of_provider(&database.name));
    names.map(|database| format!("{:?}", database.name)).collect::<Vec<_>>().join(", ")
}

fn is_of_provider(name: &str) -> bool {
    OF_PROVIDERS.contains(&name)
}

/// Whether there is anything to move in the maintenance database. Who may not enter it has nothing there.
async fn holds_anything(sides: &Sides) -> Result<bool> {
    let client = match sides.source_client().await {
        Ok(client) => client,
        Err(Failure::Definite(definite)) => {
            tracing::warn!(
                database = sides.source.dbname(),
                cause = definite.cause,
                "cannot be entered: left out"
            );
            return Ok(false);
        }
        Err(failure) => return Err(failure),
    };
    Ok(catalog::holds_anything(&client).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::DatabaseLocale;

    fn database(name: &str) -> Database {
        Database {
            name: name.to_owned(),
            owner: "app".to_owned(),
            template: name.starts_with("template"),
            connectable: name != "closed",
            connections_max: None,
            locale: DatabaseLocale {
                encoding: "UTF8".to_owned(),
                collate: "C".to_owned(),
                ctype: "C".to_owned(),
                provider: "c".to_owned(),
                locale: None,
            },
            icu_rules: None,
        }
    }

    fn selection(only: &[&str], ignored: &[&str]) -> Selection {
        let own = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        Selection { databases: own(only), ignored_databases: own(ignored), ..Selection::default() }
    }

    #[test]
    fn which_databases() {
        let on_source =
            ["My-App", "closed", "postgres", "rdsadmin", "select", "template0", "template1"].map(database);
        let check = |only: &[&str], ignored: &[&str], begun: &[&str], expected: &[&str]| {
            let found = wanted(&on_source, &selection(only, ignored), begun);
            assert_eq!(found, expected, "{only:?} {ignored:?} {begun:?}");
        };
        check(&[], &[], &[], &["My-App", "postgres", "select"]);
        check(&[], &["postgres", "gone"], &[], &["My-App", "select"]);
        check(&["select"], &[], &[], &["select"]);
        check(&["select", "gone"], &[], &["gone"], &["select"]);
        check(&["closed", "rdsadmin"], &[], &[], &["closed", "rdsadmin"]);
        check(&[], &["postgres"], &["closed"], &["My-App", "closed", "select"]);
        check(&["select"], &["select"], &[], &[]);
        for missing in ["my-app", "template1"] {
            let refused = refuse_missing(&selection(&["select", missing], &[]), &on_source);
            assert!(refused.expect_err(missing).cause.contains(missing));
        }
        assert!(refuse_missing(&selection(&["closed"], &["gone"]), &on_source).is_ok());
    }

    #[test]
    fn a_run_without_a_choice_goes_on_with_the_earlier_ones() {
        type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);
        let check = |begun: &[Row<'_>], only: &[&str], ignored: &[&str]| {
            let owned: Vec<(&str, Selection)> =
                begun.iter().map(|(name, only, ignored)| (*name, selection(only, ignored))).collect();
            let rows: Vec<(&str, &Selection)> = owned.iter().map(|(name, chosen)| (*name, chosen)).collect();
            assert_eq!(of_all(&rows), selection(only, ignored), "{begun:?}");
        };
        check(&[], &[], &[]);
        check(&[("a", &["a"], &[]), ("b", &["a", "b"], &[])], &["a", "b"], &[]);
        check(&[("a", &["a", "c"], &[])], &["a", "c"], &[]);
        check(&[("a", &["a"], &[]), ("b", &[], &[])], &[], &[]);
        check(&[("a", &[], &["x"]), ("b", &[], &["x", "y"])], &[], &["x"]);
        check(&[("a", &[], &["x"]), ("x", &["x"], &[])], &[], &[]);
    }
}
