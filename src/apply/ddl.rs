//! A table whose definition changed on the source: what the target needs, before the next change can be applied.
//!
//! The stream says no DDL. It announces a table anew, with its columns' names and types, and that is held against the
//! target's table. What does not fit stops the stream, with the statement to run on the target. A column that was added
//! is followed without one, on request, where all that matters is certain:
//!
//! - It was added, not renamed: every column of the target is announced, too.
//! - It was not there at the copy, and it is the one that the source's catalog has now: its number is beyond those of
//!   then, all columns from there on are announced, and none of them was dropped.
//! - What older rows hold is known: the catalog keeps it with the column (`attmissingval`, NULL without), for as long
//!   as the table is not rewritten; and it was not, since its file is that of the copy.
//! - Its type is no domain, whose own default might act; it is neither generated nor an identity column, and the table
//!   has no partitions, parents or children, which have rows of their own.
//!
//! The statements then go into the target's transaction right before the change that needs them, so that they are
//! there with it or not at all, and rows of the same transaction from before are older rows.
//!
//! What cannot be seen here, ALTER COLUMN … TYPE … USING that leaves the type as it is, and a column dropped and added again
//! with the same name and type, is found in the catalog: see [`crate::store::AsCopied`].

use std::sync::Arc;

use super::tables::Tables;
use crate::catalog::{self, DefinedColumn, Definition, Generated, Identity};
use crate::error::{Definite, Failure, Result};
use crate::pg::{Column, QualifiedName, Relation, Sql};
use crate::plan::{Carried, ShapeError, TargetColumn, TargetTable, TargetType, TypeNames};

use crate::store::Origin;

/// What to do about a definition that does not fit.
#[derive(Debug)]
pub(super) enum Remedy {
    /// Run these, and take the table for this one then.
    Alter(Vec<Sql>, TargetTable),
    /// It does no harm: take the table for this one.
    Accept(TargetTable),
    /// End.
    Stop(Failure),
}

/// What does not fit, and where.
#[derive(Debug)]
pub(super) struct Misfit<'a> {
    pub(super) error: &'a ShapeError,
    pub(super) relation: &'a Arc<Relation>,
    pub(super) table: &'a Arc<TargetTable>,
    /// The transaction changed the table before.
    pub(super) changed_before: bool,
}

/// Finds the remedy; `follow` allows added columns.
///
/// # Errors
/// When a catalog does not answer.
pub(super) async fn remedy(
    tables: &Tables,
    types: &TypeNames,
    misfit: &Misfit<'_>,
    follow: bool,
) -> Result<Remedy> {
    let definition = catalog::definition(&tables.source, misfit.relation.id).await?;
    let origin = tables.row(misfit.relation).and_then(|row| row.origin);
    if let (Some(definition), ShapeError::Type { column, .. }) = (&definition, misfit.error)
        && let Some(table) = wider(misfit, definition, origin, column, types)
    {
        return Ok(Remedy::Accept(table));
    }
    if let (true, Some(definition), ShapeError::NoColumn { .. }) = (follow, &definition, misfit.error) {
        let added = added(misfit, definition, origin);
        if let Ok(added) = &added {
            return follow_added(tables, types, misfit, added).await;
        }
        if let Err(reason) = added {
            tracing::info!(table = %misfit.table.name, reason, "an added column is not followed");
        }
    }
    let Some((statement, mut advice)) = statement(tables, misfit, definition.as_ref()).await? else {
        let failure = Definite::new(misfit.error.to_string())
            .detail("the table's definition changed on the source; nothing was skipped")
            .hint("make the same change on the target, then run `walferry migrate` again");
        return Ok(Remedy::Stop(failure.into()));
    };
    let mut detail = "the table's definition changed on the source; nothing was skipped".to_owned();
    if needs_copy(misfit, definition.as_ref()) {
        tables.copy_again(&misfit.table.name).await?;
        detail.push_str("; it changed within a transaction that had changed the table's rows before");
        advice.push_str("; it copies the table again, since no definition fits all of that transaction");
    }
    let failure = Definite::new(misfit.error.to_string())
        .detail(detail)
        .hint(format!("on the target run: {statement}; then run `walferry migrate` again{advice}"));
    Ok(Remedy::Stop(failure.into()))
}

/// The columns that were added, if that and what older rows hold is certain; else why it is not.
fn added<'a>(
    misfit: &Misfit<'_>,
    definition: &'a Definition,
    origin: Option<Origin>,
) -> Result<Vec<&'a DefinedColumn>, &'static str> {
    let origin =
        origin.filter(|origin| origin.filenode != 0).ok_or("what the table was at its copy is not known")?;
    if origin.filenode != definition.filenode {
        return Err("the table was rewritten or emptied since its copy");
    }
    if definition.in_hierarchy {
        return Err("the table has partitions, parents or children");
    }
    let (relation, table) = (misfit.relation, misfit.table);
    let announced = |name: &str| relation.columns.iter().find(|column| column.name == name);
    if table.columns.iter().any(|column| !column.generated && announced(&column.name).is_none()) {
        return Err("a column of the target is not announced: it may have been renamed");
    }
    let lacking: Vec<&Column> =
        relation.columns.iter().filter(|column| table.column(&column.name).is_none()).collect();
    let mut added = Vec::with_capacity(lacking.len());
    for column in lacking {
        let found = definition.column(&column.name).ok_or("it is gone from the source, or renamed")?;
        if (found.type_oid, found.type_modifier) != (column.type_oid, column.type_modifier) {
            return Err("its type changed since");
        }
        if found.domain || found.generated != Generated::No || found.identity != Identity::No {
            return Err("it has a domain's type, or is generated");
        }
        if column.key && relation.identity != crate::pg::ReplicaIdentity::Full {
            return Err("it belongs to the replica identity");
        }
        if found.number <= origin.attributes {
            return Err("it was there before the copy");
        }
        if found.missing.is_none() && found.not_null {
            return Err("it is NOT NULL, and older rows have no value for it");
        }
        added.push(found);
    }
    let last = added.last().map_or(0, |column| column.number);
    let since = definition.columns.iter().filter(|c| c.number > origin.attributes && c.number <= last);
    for column in since {
        if column.dropped || announced(&column.name).is_none() {
            return Err("another column that was added since the copy is not announced");
        }
    }
    Ok(added)
}

async fn follow_added(
    tables: &Tables,
    types: &TypeNames,
    misfit: &Misfit<'_>,
    added: &[&DefinedColumn],
) -> Result<Remedy> {
    let mut table = TargetTable::clone(misfit.table);
    let mut statements = Vec::new();
    for column in added {
        let type_text =
            type_text(tables, misfit, column.type_oid, column.type_modifier, &column.name).await?;
        statements.extend(add_column(&table.name, column, &type_text));
        let Some(announced) = misfit.relation.columns.iter().find(|c| c.name == column.name) else {
            continue;
        };
        table.columns.push(TargetColumn {
            name: column.name.clone(),
            of: announced_type(announced, types),
            required: false,
            generated: false,
            identity_always: false,
            equality: None,
            cast: None,
            // Until it is there, and the catalog says more.
            carried: Carried::Alone,
        });
        tracing::info!(table = %table.name, column = column.name, "column added on the target");
        if column.constrained {
            tracing::warn!(table = %table.name, column = column.name, "its constraints and indexes are not carried");
        }
    }
    Ok(Remedy::Alter(statements, table))
}

/// Adds a column with what older rows hold, then gives it the default that newer ones get.
fn add_column(table: &QualifiedName, column: &DefinedColumn, type_text: &str) -> Vec<Sql> {
    let alter = || Sql::new("ALTER TABLE ").name(table);
    let add = alter().text(" ADD COLUMN ").ident(&column.name).text(" ").catalog(type_text);
    let add = match &column.collation {
        Some(collation) => add.text(" COLLATE ").catalog(collation),
        None => add,
    };
    let set = || alter().text(" ALTER COLUMN ").ident(&column.name);
    match (&column.missing, &column.default) {
        (Some(missing), default) => {
            let add = if column.not_null { add.text(" NOT NULL") } else { add };
            let add = add.text(" DEFAULT ").literal(missing);
            let then = match default {
                Some(default) => set().text(" SET DEFAULT ").catalog(default),
                None => set().text(" DROP DEFAULT"),
            };
            vec![add, then]
        }
        (None, Some(default)) => vec![add, set().text(" SET DEFAULT ").catalog(default)],
        (None, None) => vec![add],
    }
}

/// The statement that makes the target fit, and what else there is to say.
async fn statement(
    tables: &Tables,
    misfit: &Misfit<'_>,
    definition: Option<&Definition>,
) -> Result<Option<(String, String)>> {
    // Partitions get their columns from the table above.
    let root = definition.and_then(|definition| definition.root.as_ref());
    let table = root.unwrap_or(&misfit.table.name);
    let alter = || Sql::new("ALTER TABLE ").name(table);
    let announced = |name: &str| misfit.relation.columns.iter().find(|column| column.name == name);
    Ok(match misfit.error {
        ShapeError::NoColumn { column, .. } => {
            let Some(announced) = announced(column) else { return Ok(None) };
            let type_text =
                type_text(tables, misfit, announced.type_oid, announced.type_modifier, column).await?;
            let defined = definition.and_then(|definition| definition.column(column));
            let (add, advice) = addition(table, announced, defined, &type_text);
            let Some(old) = renamed_from(misfit, definition, announced) else {
                return Ok(Some((add, advice)));
            };
            let rename =
                alter().text(" RENAME COLUMN ").ident(&old.name).text(" TO ").ident(column).to_string();
            Some((format!("{rename} (if the column was renamed; if it is a new one: {add})"), advice))
        }
        ShapeError::Type { column, .. } => {
            let Some(announced) = announced(column) else { return Ok(None) };
            let type_text =
                type_text(tables, misfit, announced.type_oid, announced.type_modifier, column).await?;
            let sql = alter().text(" ALTER COLUMN ").ident(column).text(" TYPE ").catalog(&type_text);
            Some((format!("{sql} (with the USING of the source, if it had one)"), String::new()))
        }
        ShapeError::Required { column, .. } => {
            let gone = definition.is_none_or(|definition| definition.column(column).is_none());
            let drop = alter().text(" DROP COLUMN ").ident(column);
            if gone && !misfit.changed_before {
                return Ok(Some((drop.to_string(), String::new())));
            }
            let sql = alter().text(" ALTER COLUMN ").ident(column).text(" DROP NOT NULL");
            Some((sql.to_string(), format!("; later, when it is past that point: {drop}")))
        }
        ShapeError::NoEquality { .. } => None,
    })
}

/// ADD COLUMN, and what to say of the rows that are there.
fn addition(
    table: &QualifiedName,
    announced: &Column,
    defined: Option<&DefinedColumn>,
    type_text: &str,
) -> (String, String) {
    let Some(column) = defined.filter(|column| column.type_oid == announced.type_oid) else {
        let sql = Sql::new("ALTER TABLE ").name(table).text(" ADD COLUMN ").ident(&announced.name).text(" ");
        let advice = "; the source has dropped or changed the column since: do the same later";
        return (sql.catalog(type_text).to_string(), advice.to_owned());
    };
    let statements: Vec<String> =
        add_column(table, column, type_text).iter().map(ToString::to_string).collect();
    let unknown = column.missing.is_none() && (column.default.is_some() || column.not_null)
        || column.identity != Identity::No
        || column.generated != Generated::No;
    let advice = if unknown || column.not_null && column.missing.is_none() {
        "; where the source has written its rows anew for the column, it copies the table again, since what older rows \
         hold is not sent"
    } else {
        ""
    };
    (statements.join("; "), advice.to_owned())
}

/// The one column of the target that may have had another name: neither announced nor on the source.
fn renamed_from<'a>(
    misfit: &Misfit<'a>,
    definition: Option<&Definition>,
    announced: &Column,
) -> Option<&'a TargetColumn> {
    let sent = |name: &str| misfit.relation.columns.iter().any(|column| column.name == name);
    let on_source = |name: &str| definition.is_some_and(|definition| definition.column(name).is_some());
    let mut left =
        misfit.table.columns.iter().filter(|column| !sent(&column.name) && !on_source(&column.name));
    let alike = left.find(|column| column.of.keeps(announced, announced.type_name.as_ref()));
    alike.filter(|_| left.next().is_none())
}

/// Whether no definition of the target fits both what the transaction changed before and what it changes now.
fn needs_copy(misfit: &Misfit<'_>, definition: Option<&Definition>) -> bool {
    if !misfit.changed_before {
        return false;
    }
    match misfit.error {
        // Its NOT NULL is dropped, and earlier changes do without it.
        ShapeError::Required { .. } => false,
        // Added without a default, it does no harm to earlier changes; with one, their rows would get it; renamed, they
        // lack it.
        ShapeError::NoColumn { column, .. } => {
            let sent = |name: &str| misfit.relation.columns.iter().any(|column| column.name == name);
            let renamed = misfit.table.columns.iter().any(|column| !column.generated && !sent(&column.name));
            let defined = definition.and_then(|definition| definition.column(column));
            renamed || defined.is_some_and(|column| column.default.is_some())
        }
        // What came before was converted on the source.
        ShapeError::Type { .. } | ShapeError::NoEquality { .. } => true,
    }
}

/// The table with a column taken for the source's type, if it keeps all that the source can send, and the source never
/// had another: its table was not rewritten since the copy.
fn wider(
    misfit: &Misfit<'_>,
    definition: &Definition,
    origin: Option<Origin>,
    column: &str,
    types: &TypeNames,
) -> Option<TargetTable> {
    let announced = misfit.relation.columns.iter().find(|announced| announced.name == column)?;
    let defined = definition.column(column)?;
    let same_as_now =
        (defined.type_oid, defined.type_modifier) == (announced.type_oid, announced.type_modifier);
    let rewritten =
        origin.is_none_or(|origin| origin.filenode == 0 || origin.filenode != definition.filenode);
    let mut table = TargetTable::clone(misfit.table);
    let found = table.columns.iter_mut().find(|found| found.name == column)?;
    if !same_as_now || rewritten || !found.of.keeps(announced, types.get(&announced.type_oid)) {
        return None;
    }
    tracing::info!(table = %table.name, column, "the target's type is wider than the source's");
    found.of = announced_type(announced, types);
    Some(table)
}

/// A target's type that is the announced one.
fn announced_type(announced: &Column, types: &TypeNames) -> TargetType {
    let name = types.get(&announced.type_oid).or(announced.type_name.as_ref()).cloned();
    let name = name.unwrap_or_else(|| QualifiedName::new("pg_catalog", ""));
    TargetType { oid: announced.type_oid, name, modifier: announced.type_modifier, base: None }
}

/// A type as SQL; by the name that the stream said where the source has it no more.
async fn type_text(
    tables: &Tables,
    misfit: &Misfit<'_>,
    oid: crate::pg::Oid,
    modifier: i32,
    column: &str,
) -> Result<String> {
    let text = catalog::type_text(&tables.source, oid, modifier).await?;
    let said = || {
        let announced = misfit.relation.columns.iter().find(|announced| announced.name == column);
        announced.and_then(|announced| announced.type_name.as_ref()).map(ToString::to_string)
    };
    Ok(text.or_else(said).unwrap_or_else(|| "text".to_owned()))
}
