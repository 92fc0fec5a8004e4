//! Findings about the database that data leaves.

use std::collections::{BTreeSet, HashMap};

use super::report::{counted, listed, size};
use super::{Finding, PreflightInput, Report, Sides, hints, names};
use crate::catalog::{self, Error, ExtensionTable, OtherContents, Persistence, Sequence, ServerFacts, Table};
use crate::pg::{QualifiedName, ReplicaIdentity, Sql};

/// `tables`: all, whose definition is carried; `moved`: those whose rows are, too.
pub(super) async fn check(
    report: &mut Report,
    sides: &Sides<'_>,
    tables: &[Table],
    moved: &[Table],
    input: &PreflightInput,
) {
    let facts = &sides.source_facts;
    let extension = catalog::publishes_for_others(sides.source).await;
    let publishes = matches!(extension, Ok(true));
    report.push(publication_privilege(facts, publishes));
    report.push(owners(facts, moved, publishes));
    report.add("source-publication-privilege", extension.map(|_| None));
    report.push(readable(facts, tables));
    if !input.fence_commands {
        report.add("source-fence", fence(sides).await.map(|finding| [finding]));
    }
    let found = catalog::sequences(sides.source).await;
    report.add("source-sequences", found.map(|found| [sequences(facts, &found)]));
    report.push(replica_identity(moved, input));
    report.add("source-replica-identity-full", Ok(identity_full(moved)));
    report.push(row_security(facts, moved));
    report.add("source-extension-tables", Ok(extension_tables(facts, moved)));
    report.add("source-unlogged-tables", Ok(unlogged(moved)));
    let found = catalog::other_contents(sides.source).await;
    report.add("source-other-contents", found.map(|found| others(facts, &found)));
}

/// `extension`: `aiven_extras.pg_create_publication` can be called.
fn publication_privilege(facts: &ServerFacts, extension: bool) -> Finding {
    let id = "source-publication-privilege";
    let subject = format!("role {}", facts.user.name);
    if facts.user.creates_in_database {
        return Finding::ok(id, subject, format!("may create publications in {}", facts.database));
    }
    if extension {
        return Finding::ok(id, subject, "may create publications by aiven_extras.pg_create_publication()");
    }
    let grant =
        Sql::new("GRANT CREATE ON DATABASE ").ident(&facts.database).text(" TO ").ident(&facts.user.name);
    Finding::fail(id, subject, format!("may not create publications in {}", facts.database))
        .hint(hints::command(grant))
}

fn owners(facts: &ServerFacts, tables: &[Table], extension: bool) -> Finding {
    let id = "source-table-owners";
    let foreign = |table: &Table| published(table) && !table.owned_by_me;
    let others = names(tables, foreign);
    let subject = format!("role {}", facts.user.name);
    if others.is_empty() {
        return Finding::ok(id, subject, "has the privileges of every table's owner, as publications need");
    }
    let apart = inherited_apart(tables);
    if extension && apart.is_empty() {
        let cause = format!(
            "publishes {} of others by aiven_extras.pg_create_publication()",
            counted(others.len(), "table")
        );
        return Finding::ok(id, subject, cause);
    }
    let roles: BTreeSet<&str> = tables.iter().filter(|t| foreign(t)).map(|t| t.owner.as_str()).collect();
    let roles: Vec<String> = roles.into_iter().map(str::to_owned).collect();
    let cause = format!(
        "lacks the privileges of the owner of {}, so cannot publish: {}",
        counted(others.len(), "table"),
        listed(&others)
    );
    let cause = if extension {
        let apart = listed(&apart);
        format!(
            "{cause}; aiven_extras cannot publish these apart from the table that they inherit from: {apart}"
        )
    } else {
        cause
    };
    Finding::fail(id, subject, cause).hint(hints::memberships(&roles, &facts.user.name))
}

/// What a fence of kind `read-only` needs. Another kind may be meant: that is said at cutover only.
async fn fence(sides: &Sides<'_>) -> Result<Finding, Error> {
    let (id, user) = ("source-fence", &sides.source_facts.user.name);
    let database = catalog::read_only_default(sides.source).await?;
    let roles = catalog::roles_out_of_reach(sides.source).await?;
    let hidden = catalog::hidden_superusers(sides.source).await?;
    let subject = format!("role {user}");
    let (mut lacks, mut commands) = (Vec::new(), Vec::new());
    if !database.mine {
        lacks.push(format!("those of the database's owner {}", database.owner));
        if !database.owner_superuser {
            commands.push(hints::memberships(&[database.owner], user));
        }
    }
    if !roles.is_empty() {
        lacks.push(format!("those to end sessions of {}", listed(&roles)));
        commands.push(hints::memberships(&["pg_signal_backend".to_owned()], user));
    }
    if !hidden.is_empty() {
        lacks
            .push(format!("that to see which sessions of superusers are no clients: of {}", listed(&hidden)));
        commands.push(hints::memberships(&["pg_read_all_stats".to_owned()], user));
    }
    if lacks.is_empty() {
        return Ok(Finding::ok(id, subject, "may make the source read only at cutover"));
    }
    commands.push(OTHER_FENCES.to_owned());
    let cause = format!("lacks privileges to make the source read only at cutover: {}", lacks.join("; "));
    Ok(Finding::warning(id, subject, cause).hint(commands.join("\n")))
}

/// Tables that inherit from one of which updates are published, and they not, or the other way round.
fn inherited_apart(tables: &[Table]) -> Vec<&QualifiedName> {
    let by_name: HashMap<&QualifiedName, &Table> = tables.iter().map(|table| (&table.name, table)).collect();
    let apart = |table: &Table| {
        let mut parents = table.inherits.iter().filter_map(|name| by_name.get(name));
        parents.any(|parent| parent.has_identity() != table.has_identity())
    };
    names(tables, |table| published(table) && apart(table))
}

fn readable(facts: &ServerFacts, tables: &[Table]) -> Finding {
    let id = "source-select";
    let refused = names(tables, |table| table.extension.is_none() && !table.readable);
    let subject = format!("role {}", facts.user.name);
    if refused.is_empty() {
        return Finding::ok(id, subject, "may read every table");
    }
    let schemas: BTreeSet<&str> = refused.iter().map(|name| name.schema.as_str()).collect();
    let grant = |schema: &str| {
        let user = &facts.user.name;
        let usage = Sql::new("GRANT USAGE ON SCHEMA ").ident(schema).text(" TO ").ident(user);
        let select =
            Sql::new(" GRANT SELECT ON ALL TABLES IN SCHEMA ").ident(schema).text(" TO ").ident(user);
        format!("{}{}", hints::command(usage), hints::command(select))
    };
    let commands: Vec<String> = schemas.into_iter().map(grant).collect();
    Finding::fail(
        id,
        subject,
        format!("may not read {}: {}", counted(refused.len(), "table"), listed(&refused)),
    )
    .hint(commands.join("\n"))
}

fn sequences(facts: &ServerFacts, found: &[Sequence]) -> Finding {
    let id = "source-sequences";
    let refused: Vec<&QualifiedName> =
        found.iter().filter(|found| !found.readable).map(|found| &found.name).collect();
    let subject = format!("role {}", facts.user.name);
    if refused.is_empty() {
        return Finding::ok(id, subject, "may read every sequence");
    }
    let schemas: BTreeSet<&str> = refused.iter().map(|name| name.schema.as_str()).collect();
    let grant = |schema: &str| {
        let select = Sql::new("GRANT SELECT ON ALL SEQUENCES IN SCHEMA ").ident(schema);
        hints::command(select.text(" TO ").ident(&facts.user.name))
    };
    let commands: Vec<String> = schemas.into_iter().map(grant).collect();
    Finding::fail(
        id,
        subject,
        format!("may not read {}: {}", counted(refused.len(), "sequence"), listed(&refused)),
    )
    .hint(commands.join("\n"))
}

/// Partitions have a replica identity each; partitioned tables have no rows.
fn replica_identity(tables: &[Table], input: &PreflightInput) -> Finding {
    let id = "source-replica-identity";
    let without: Vec<&Table> =
        tables.iter().filter(|table| table.is_leaf() && published(table) && !table.has_identity()).collect();
    if without.is_empty() {
        return Finding::ok(id, "tables", "every one has a replica identity");
    }
    let subject = format!("{} without replica identity", counted(without.len(), "table"));
    if input.replica_identity_full {
        let (given, left): (Vec<&Table>, Vec<&Table>) = without.iter().partition(|table| table.takes_full);
        let described = |tables: &[&Table]| {
            let described: Vec<String> = tables.iter().map(|table| describe(table)).collect();
            listed(&described)
        };
        let full = format!(
            "will be given REPLICA IDENTITY FULL until the migration is removed: {}",
            described(&given)
        );
        if left.is_empty() {
            return Finding::info(id, subject, full);
        }
        let mut causes = if given.is_empty() { Vec::new() } else { vec![full] };
        causes.push(format!(
            "copied again at cutover, since the source would reject their updates and deletes with it: {}",
            described(&left)
        ));
        let commands: Vec<String> = left.iter().map(|table| hints::replica_identity(table)).collect();
        return Finding::warning(id, subject, causes.join("; ")).hint(commands.join("\n"));
    }
    let described: Vec<String> = without.iter().map(|table| describe(table)).collect();
    let commands: Vec<String> = without.iter().map(|table| hints::replica_identity(table)).collect();
    if input.keyless_ignored {
        let cause = format!(
            "only inserts and truncates are replicated, updates and deletes are missed: {}",
            listed(&described)
        );
        return Finding::warning(id, subject, cause).hint(commands.join("\n"));
    }
    let bytes = without.iter().map(|table| table.bytes).sum();
    let cause = format!(
        "only inserts and truncates are replicated, updates and deletes are not; so at cutover they are copied again, {}, \
         unless migrate gives them REPLICA IDENTITY FULL for the time being (--replica-identity-full): {}",
        size(bytes),
        listed(&described)
    );
    Finding::warning(id, subject, cause).hint(commands.join("\n"))
}

fn describe(table: &Table) -> String {
    match (table.replica_identity, table.deferrable_primary_key) {
        _ if table.generated_identity => {
            format!("{} (its replica identity has a generated column)", table.name)
        }
        (ReplicaIdentity::Nothing, _) => format!("{} (REPLICA IDENTITY NOTHING)", table.name),
        (ReplicaIdentity::Index, _) => format!("{} (its index is gone)", table.name),
        (_, true) => format!("{} (its primary key is DEFERRABLE)", table.name),
        (_, false) => table.name.to_string(),
    }
}

fn identity_full(tables: &[Table]) -> Option<Finding> {
    let full =
        |table: &Table| table.replica_identity == ReplicaIdentity::Full && table.identity_index.is_none();
    let found = names(tables, |table| table.is_leaf() && published(table) && full(table));
    if found.is_empty() {
        return None;
    }
    let cause = format!(
        "no key, so each update and delete searches the whole table on the target: {}",
        listed(&found)
    );
    let subject = format!("{} with REPLICA IDENTITY FULL", counted(found.len(), "table"));
    Some(Finding::info("source-replica-identity-full", subject, cause))
}

fn row_security(facts: &ServerFacts, tables: &[Table]) -> Finding {
    let id = "source-row-security";
    let hidden = names(tables, |table| table.extension.is_none() && table.rls_applies);
    let subject = format!("role {}", facts.user.name);
    if hidden.is_empty() {
        return Finding::ok(id, subject, "sees every row");
    }
    let cause = format!(
        "row-level security may hide rows of {}: {}",
        counted(hidden.len(), "table"),
        listed(&hidden)
    );
    let bypass = Sql::new("ALTER ROLE ").ident(&facts.user.name).text(" BYPASSRLS");
    Finding::fail(id, subject, cause).hint(hints::command(bypass))
}

fn extension_tables(facts: &ServerFacts, tables: &[Table]) -> Vec<Finding> {
    let id = "source-extension-tables";
    let acts = |table: &Table| table.extension.as_ref().is_some_and(ExtensionTable::acts);
    let of_extensions: Vec<&Table> = tables.iter().filter(|table| table.extension.is_some()).collect();
    let which = |wanted: &dyn Fn(&Table) -> bool| -> Vec<&QualifiedName> {
        of_extensions.iter().filter(|table| wanted(table)).map(|table| &table.name).collect()
    };
    let hidden = which(&Table::is_hidden);
    let later = which(&|table| acts(table) && !table.is_hidden());
    let again = which(&|table| !acts(table) && !table.is_hidden() && !table.is_followed());
    let left = (!hidden.is_empty()).then(|| {
        let cause = format!(
            "may not read every row of tables of extensions, so their rows are not carried: {}",
            listed(&hidden)
        );
        Finding::warning(id, format!("role {}", facts.user.name), cause).hint(LEFT)
    });
    let what = "extension table";
    let later =
        not_replicated(id, what, &later, "their rows act by themselves: carried at cutover, not before");
    let again =
        not_replicated(id, what, &again, "their users' rows are copied at the start, and again at cutover");
    [left, later, again].into_iter().flatten().collect()
}

/// What is done about tables of extensions that are not carried.
const LEFT: &str = "GRANT SELECT on them, and BYPASSRLS where row-level security hides rows, before the migration begins; or make \
                    the rows on the target after the cutover (jobs of pg_cron: cron.schedule)";

fn unlogged(tables: &[Table]) -> Option<Finding> {
    let found = names(tables, |table| table.persistence == Persistence::Unlogged);
    let cause = "not in the WAL: copied at the start, and again at cutover";
    not_replicated("source-unlogged-tables", "unlogged table", &found, cause)
}

fn others(facts: &ServerFacts, found: &OtherContents) -> Vec<Finding> {
    let views = not_replicated(
        "source-materialized-views",
        "materialised view",
        &found.materialized_views.iter().collect::<Vec<_>>(),
        "filled on the target after the copy, and refreshed at cutover",
    );
    let foreign = not_replicated(
        "source-foreign-tables",
        "foreign table",
        &found.foreign_tables.iter().collect::<Vec<_>>(),
        "their definition is carried, not the data behind it; the target must reach that server by itself",
    );
    let objects = (found.large_objects > 0).then(|| large_objects(facts, found));
    [views, foreign, objects].into_iter().flatten().collect()
}

fn large_objects(facts: &ServerFacts, found: &OtherContents) -> Finding {
    let id = "source-large-objects";
    let count = |count: u64| counted(usize::try_from(count).unwrap_or(usize::MAX), "large object");
    if found.large_objects_unreadable > 0 {
        let subject = format!("role {}", facts.user.name);
        let cause = format!(
            "may not read {}, which belong to {}",
            count(found.large_objects_unreadable),
            listed(&found.large_objects_owners)
        );
        return Finding::fail(id, subject, cause)
            .hint(hints::memberships(&found.large_objects_owners, &facts.user.name));
    }
    let cause = "not in the stream: copied at the start, compared and brought up to date at cutover";
    Finding::info(id, count(found.large_objects), cause)
}

fn not_replicated(id: &'static str, what: &str, found: &[&QualifiedName], cause: &str) -> Option<Finding> {
    if found.is_empty() {
        return None;
    }
    Some(Finding::info(id, counted(found.len(), what), format!("{cause}: {}", listed(found))))
}

const OTHER_FENCES: &str =
    "instead, at cutover: stop all writers and use --fence none, or a command of your own (--fence-command)";

/// Whether it is to be published.
fn published(table: &Table) -> bool {
    table.is_followed()
}
