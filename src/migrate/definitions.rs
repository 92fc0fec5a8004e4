//! Definitions of the source's tables, held against what they were at their copy, and against the target's.
//!
//! A table whose rows DDL has changed since its copy, which the stream does not bring, is copied again as soon as the
//! target takes it; what the target lacks is told once, and refuses a cutover, with the statement to run. All else is taken
//! note of: what counts the next time is what the table is now. Tables that are copied again at cutover in any case need
//! only be taken by the target.
//!
//! Not here: tables that came or went, publications, and what has no rows.

use std::collections::HashMap;
use std::sync::Arc;

use crate::apply::Tables;
use crate::catalog::{self, Generated, Identity, Table, TableColumn};
use crate::config::{Ddl, Keyless};
use crate::error::{Definite, Failure, Result};
use crate::pg::{Oid, QualifiedName, RelationId, Sql};
use crate::store::{AsCopied, Drift};
use crate::store::{RelationRow, RelationState};

use super::attempt::Attempt;
use super::copy::origin;
use super::late_copy::announced;
use super::pairing::Listed;
use super::schema_drift::worded;

/// Tables of the source that are not what they were, and what the target lacks of them.
#[derive(Debug, Default)]
pub(super) struct Redefined {
    /// Recorded as to be copied again.
    pub again: Vec<String>,
    /// What has to be done on the target before that, or at all.
    pub refused: Vec<Definite>,
}

/// A table of the source that is not as it is recorded.
struct Drifted<'a> {
    table: &'a Table,
    drift: Drift,
    now: AsCopied,
}

impl Attempt<'_> {
    /// Compares `tables` with what they were when they were copied, and records what is to be copied again.
    pub(super) async fn look_at_definitions(&mut self, tables: &[Table]) -> Result<Redefined> {
        let rows = self.store().relations().await?;
        let mut found = Redefined::default();
        if drifted(&rows, tables).is_empty() {
            return Ok(found);
        }
        // File and columns of different moments would be taken for what never was.
        let tables = self.tables_at(None).await?;
        let drifted = drifted(&rows, &tables);
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let mut known = Tables::new(source, target, &self.row.name, rows.clone()).await?;
        for Drifted { table, drift, now } in drifted {
            let name = match known.prepared(&announced(table)).await {
                Ok(name) => name,
                Err(Failure::Definite(misfit)) => {
                    self.tell_misfit(&misfit);
                    found.refused.push(misfit);
                    continue;
                }
                Err(transient) => return Err(transient),
            };
            if let Some(why) = drift.rows.filter(|_| !self.is_copied_at_cutover(table)) {
                tracing::warn!(table = %name, why, "its rows are not those that were copied: it is copied again");
                self.store().copy_again(&name).await?;
                found.again.push(name.to_string());
            } else {
                self.store().set_definition(&name, origin(table), &now).await?;
            }
        }
        Ok(found)
    }

    /// Refuses tables whose rows have to be copied again, and those that the target has not as the source has them.
    pub(super) async fn refuse_redefined(&mut self, tables: &[Table]) -> Result<()> {
        let found = self.look_at_definitions(tables).await?;
        if !found.again.is_empty() {
            return Err(Definite::new("tables of the source were redefined since they were copied")
                .detail(format!("they are copied again now: {}", found.again.join(", ")))
                .hint("run `walferry cutover` again when `walferry status` shows the phase syncing")
                .into());
        }
        if let Some(misfit) = found.refused.into_iter().next() {
            return Err(for_cutover(misfit).into());
        }
        let target = catalog::tables_unsized(&self.target).await?;
        let rows = self.store().relations().await?;
        let (names, target_names) = (names(tables), names(&target));
        let mut statements = Vec::new();
        let mut of = Vec::new();
        let (on_source, on_target) = (Listed::new(tables), Listed::new(&target));
        for row in &rows {
            let source = on_source.of(row).filter(|table| table.extension.is_none());
            let there = on_target.named(&row.name);
            let Some((source, there)) = source.zip(there) else { continue };
            let before = statements.len();
            statements.extend(columns_as(source, there));
            for statement in self.generated_as(source, there).await? {
                // Those of partitions are the same.
                if !statements.contains(&statement) {
                    statements.push(statement);
                }
            }
            statements.extend(parents_as(&names, source, &target_names, there));
            of.extend((statements.len() > before).then(|| row.name.to_string()));
        }
        if statements.is_empty() {
            return Ok(());
        }
        let statements: Vec<String> = statements.iter().map(ToString::to_string).collect();
        Err(Definite::new("tables of the target are not defined as on the source")
            .detail(of.join(", "))
            .hint(format!("on the target run: {}; then run `walferry cutover` again", statements.join("; ")))
            .into())
    }

    /// Columns that are computed, which the stream does not announce: those that the target lacks, or computes otherwise.
    async fn generated_as(&self, source: &Table, there: &Table) -> Result<Vec<Sql>> {
        if source.columns.iter().all(|column| column.generated == Generated::No) {
            return Ok(Vec::new());
        }
        let id = |table: &Table| RelationId::new(table.oid.get());
        let definition = catalog::definition(&self.source, id(source)).await?;
        let on_target = catalog::definition(&self.target, id(there)).await?;
        let Some((definition, on_target)) = definition.zip(on_target) else { return Ok(Vec::new()) };
        let mut statements = Vec::new();
        for column in source.columns.iter().filter(|column| column.generated != Generated::No) {
            let expression = definition.column(&column.name).and_then(|column| column.default.clone());
            let of = catalog::type_text(&self.source, column.type_oid, column.type_modifier).await;
            let (Some(expression), Some(of)) = (expression, of?) else { continue };
            let stored = if column.generated == Generated::Stored { ") STORED" } else { ") VIRTUAL" };
            let add = Sql::new(" ADD COLUMN ").ident(&column.name).text(" ").catalog(&of);
            let add = add.text(" GENERATED ALWAYS AS (").catalog(&expression).text(stored);
            // One of a partition is that of the table above all.
            let alter = || Sql::new("ALTER TABLE ").name(there.partition_of.as_ref().unwrap_or(&there.name));
            let found = on_target.column(&column.name);
            let same_kind = found.filter(|found| found.generated == column.generated);
            if let Some(found) = same_kind.and_then(|found| found.default.as_ref()) {
                if *found == expression
                    || self.in_words_of_target(there, &column.name, &add).await?.as_ref() == Some(found)
                {
                    continue;
                }
                // The target is as new as the source at least.
                if self.source_version().await?.major() >= 17 {
                    let set = alter().text(" ALTER COLUMN ").ident(&column.name).text(" SET EXPRESSION AS (");
                    statements.push(set.catalog(&expression).text(")"));
                    continue;
                }
            }
            if found.is_some() {
                statements.push(alter().text(" DROP COLUMN ").ident(&column.name));
            }
            statements.push(alter().sql(&add));
        }
        Ok(statements)
    }

    /// How the target words the expression of a column that `add` adds: versions differ in that. `None` where it does not
    /// take it.
    async fn in_words_of_target(&self, there: &Table, column: &str, add: &Sql) -> Result<Option<String>> {
        let alter = || Sql::new("; ALTER TABLE pg_temp.walferry_wording");
        let sql = Sql::new("CREATE TEMPORARY TABLE walferry_wording (LIKE ").name(&there.name).text(")");
        let sql = sql.sql(&alter()).text(" DROP COLUMN ").ident(column).sql(&alter()).sql(add).text(
            "; SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'pg_temp.walferry_wording'::regclass; \
             DROP TABLE pg_temp.walferry_wording",
        );
        worded(&self.target, &sql).await
    }

    fn is_copied_at_cutover(&self, table: &Table) -> bool {
        let keyless = !table.has_identity() && self.migration.contents.keyless != Keyless::Ignore;
        !table.is_followed() || keyless
    }

    fn tell_misfit(&mut self, misfit: &Definite) {
        // It adds columns by itself, with the first change that has them.
        if self.migration.ddl == Ddl::Follow || !self.misfits.insert(misfit.cause.clone()) {
            return;
        }
        let Definite { cause, hint, .. } = misfit;
        tracing::warn!(cause, hint, "redefined on the source: before the next change of it, or cutover");
    }
}

/// The copied tables that are not as they are recorded.
fn drifted<'a>(rows: &[RelationRow], tables: &'a [Table]) -> Vec<Drifted<'a>> {
    let of_source = Listed::new(tables);
    let mut drifted = Vec::new();
    for row in rows.iter().filter(|row| row.state == RelationState::Copied) {
        let Some(table) = of_source.of(row) else { continue };
        let Some(origin) = row.origin else { continue };
        let then = row.definition.clone();
        let then = then.unwrap_or_else(|| AsCopied::with_attributes(table, origin.attributes));
        let drift = then.drift(origin.filenode, table);
        if drift.any || row.name != table.name {
            drifted.push(Drifted { table, drift, now: then.becomes(table) });
        }
    }
    drifted
}

/// What an engine that runs needs to be told otherwise: it goes by the names that it began with.
fn for_cutover(mut misfit: Definite) -> Definite {
    misfit.hint = if misfit.hint.contains(" RENAME TO ") || misfit.hint.contains(" SET SCHEMA ") {
        format!("stop `walferry migrate`; {}, and `walferry cutover`", misfit.hint)
    } else {
        misfit.hint.replace("`walferry migrate`", "`walferry cutover`")
    };
    misfit
}

fn names(tables: &[Table]) -> HashMap<Oid, &QualifiedName> {
    tables.iter().map(|table| (table.oid, &table.name)).collect()
}

fn alter(there: &Table) -> Sql {
    Sql::new("ALTER TABLE ").name(&there.name)
}

/// What makes the target's columns those of the source, as far as values do not say it.
fn columns_as(source: &Table, there: &Table) -> Vec<Sql> {
    let mut statements = Vec::new();
    let column = |name: &str| alter(there).text(" ALTER COLUMN ").ident(name);
    for wanted in &source.columns {
        let Some(found) = there.columns.iter().find(|found| found.name == wanted.name) else { continue };
        if wanted.generated == Generated::No && found.generated != Generated::No {
            statements.push(column(&wanted.name).text(" DROP EXPRESSION"));
        }
        if wanted.not_null && !found.not_null {
            statements.push(column(&wanted.name).text(" SET NOT NULL"));
        }
        // Partitions have the root's, from 17 on in the catalog too.
        if wanted.identity == found.identity || source.bounds.is_some() {
            continue;
        }
        let kind = if wanted.identity == Identity::Always { "ALWAYS" } else { "BY DEFAULT" };
        statements.push(match (wanted.identity, found.identity) {
            (Identity::No, _) => column(&wanted.name).text(" DROP IDENTITY"),
            (_, Identity::No) => column(&wanted.name).text(" ADD GENERATED ").text(kind).text(" AS IDENTITY"),
            _ => column(&wanted.name).text(" SET GENERATED ").text(kind),
        });
    }
    // The application knows nothing of these, and would fail.
    let required = |column: &&TableColumn| {
        let computed = column.generated != Generated::No || column.identity != Identity::No;
        column.not_null && !column.has_default && !computed
    };
    let on_source = |column: &&TableColumn| source.columns.iter().any(|wanted| wanted.name == column.name);
    let left = there.columns.iter().filter(required).filter(|column| !on_source(column));
    statements.extend(left.map(|left| column(&left.name).text(" DROP NOT NULL")));
    statements
}

/// What makes the target's table inherit from what the source's inherits from; partitions are not meant.
fn parents_as(
    names: &HashMap<Oid, &QualifiedName>,
    source: &Table,
    target_names: &HashMap<Oid, &QualifiedName>,
    there: &Table,
) -> Vec<Sql> {
    if source.bounds.is_some() || there.bounds.is_some() {
        return Vec::new();
    }
    // One that is not moved has no name here.
    let of = |table: &Table, names: &HashMap<Oid, &QualifiedName>| -> Option<Vec<QualifiedName>> {
        table.parents.iter().map(|parent| names.get(parent).map(|name| (*name).clone())).collect()
    };
    let Some((wanted, found)) = of(source, names).zip(of(there, target_names)) else { return Vec::new() };
    let left = found.iter().filter(|parent| !wanted.contains(parent));
    let mut statements: Vec<Sql> =
        left.map(|parent| alter(there).text(" NO INHERIT ").name(parent)).collect();
    let lacking = wanted.iter().filter(|parent| !found.contains(parent));
    statements.extend(lacking.map(|parent| alter(there).text(" INHERIT ").name(parent)));
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            columns: vec![TableColumn::example(1, "a", 23), TableColumn::example(2, "b", 25)],
            ..Table::example("t")
        }
    }

    #[test]
    fn columns() {
        let check = |change: fn(&mut Table), on_target: bool, expected: &[&str]| {
            let (mut source, mut target) = (table(), table());
            change(if on_target { &mut target } else { &mut source });
            let said: Vec<String> = columns_as(&source, &target).iter().map(ToString::to_string).collect();
            let expected: Vec<String> = expected
                .iter()
                .map(|end| format!("ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" {end}"))
                .collect();
            assert_eq!(said, expected);
        };
        check(|_| {}, false, &[]);
        check(|t| t.columns[1].not_null = true, false, &["SET NOT NULL"]);
        check(|t| t.columns[1].not_null = true, true, &[]);
        check(|t| t.columns[1].identity = Identity::Always, false, &["ADD GENERATED ALWAYS AS IDENTITY"]);
        check(|t| t.columns[1].identity = Identity::ByDefault, true, &["DROP IDENTITY"]);
        check(|t| t.columns[1].generated = Generated::Stored, true, &["DROP EXPRESSION"]);
        check(|t| t.columns[0].type_modifier = 9, true, &[]);
        let dropped = |t: &mut Table| drop(t.columns.pop());
        check(dropped, false, &[]);
        let (mut source, mut target) = (table(), table());
        source.columns.pop();
        target.columns[1].not_null = true;
        let said = columns_as(&source, &target);
        assert!(said.len() == 1 && said[0].to_string().ends_with("\"b\" DROP NOT NULL"), "{said:?}");
    }

    #[test]
    fn parents() {
        let [p, q] = ["p", "q"].map(|name| QualifiedName::new("public", name));
        let names = HashMap::from([(Oid::new(1), &p), (Oid::new(2), &q)]);
        let of = |parents: &[u32], bounds: Option<&str>| Table {
            parents: parents.iter().copied().map(Oid::new).collect(),
            bounds: bounds.map(str::to_owned),
            ..table()
        };
        let check = |source: Table, there: Table, expected: &[&str]| {
            let said: Vec<String> = parents_as(&names, &source, &names, &there)
                .iter()
                .map(|sql| sql.to_string().replace("\"public\".", ""))
                .collect();
            assert_eq!(said, expected);
        };
        check(of(&[1], None), of(&[1], None), &[]);
        check(of(&[], None), of(&[1], Some("DEFAULT")), &[]);
        check(of(&[1, 9], None), of(&[1], None), &[]);
        check(of(&[1, 2], None), of(&[1], None), &["ALTER TABLE \"t\" INHERIT \"q\""]);
        check(of(&[], None), of(&[1], None), &["ALTER TABLE \"t\" NO INHERIT \"p\""]);
    }
}
