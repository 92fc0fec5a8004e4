//! What the source's schema was, what it is, and what the target's is: what is left to be done on the target. Pure.
//!
//! An object drifts where the source's is not the one that is recorded and the target's is not the source's. Two are the same
//! where their texts are. Servers of different versions may spell one object in two ways: there an object that was made on
//! the source counts as there when one of its name is; one that was changed has to have the same text, or to be a view that
//! the target spells as its own.
//!
//! What hangs on a table that one side lacks is left out: the list of tables is compared elsewhere, and so are columns.

use std::collections::{HashMap, HashSet};

use crate::catalog::{SchemaObject, SchemaObjectKey, SchemaObjectKind, Table};
use crate::pg::{QualifiedName, Sql};
use crate::store::{RecordedObject, SchemaDrift};

use super::defaults::{Defaults, Hierarchy};
use super::differing::Differing;

pub(super) type Place<'a> = (SchemaObjectKind, &'a QualifiedName, &'a str);

/// What is compared.
#[derive(Debug, Default)]
pub(super) struct Compared<'a> {
    /// What is recorded.
    pub then: &'a [RecordedObject],
    /// The source's, in the order in which they were made.
    pub now: &'a [SchemaObject],
    /// The target's.
    pub there: &'a [SchemaObject],
    /// The source's tables.
    pub tables: &'a [Table],
    /// The target's tables.
    pub tables_there: &'a [Table],
    /// What is not meant: tables that are not moved, and foreign keys that are not made, by table and name.
    pub left_out: LeftOut,
    /// Both servers spell an object in the same way.
    pub same_words: bool,
    /// Views of the source that are the target's, though both are spelt in different ways.
    pub same_views: HashSet<SchemaObjectKey>,
}

/// What the migration leaves out.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// Tables.
    pub tables: HashSet<QualifiedName>,
    /// Constraints, with their tables.
    pub constraints: HashSet<(QualifiedName, String)>,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What is left to be done, in an order in which it can be.
    pub drift: Vec<SchemaDrift>,
    /// The target has these by now: they are what is to be recorded.
    pub taken: Vec<RecordedObject>,
    /// And these are not recorded any more.
    pub gone: Vec<SchemaObjectKey>,
}

/// Those that are not what is recorded, or of which that is not certain: as recorded, and as they are now.
pub(super) fn differing<'a>(
    then: &'a [RecordedObject],
    now: &'a [SchemaObject],
) -> Vec<(Option<&'a RecordedObject>, Option<&'a SchemaObject>)> {
    let mut recorded: HashMap<Place<'_>, &RecordedObject> =
        then.iter().map(|object| (object.key.place(), object)).collect();
    let mut differing = Vec::new();
    for object in now {
        let then = recorded.remove(&object.key.place());
        if then.is_none_or(|then| then.statement.as_ref() != Some(&object.statement)) {
            differing.push((then, Some(object)));
        }
    }
    let mut left: Vec<&RecordedObject> = recorded.into_values().collect();
    left.sort_by_key(|object| std::cmp::Reverse(object.oid));
    differing.extend(left.into_iter().map(|then| (Some(then), None)));
    differing
}

/// Those that differ, to be recorded as uncertain: nobody knows which of them the target has.
pub(super) fn doubted(then: &[RecordedObject], now: &[SchemaObject]) -> Vec<RecordedObject> {
    let doubted = differing(then, now).into_iter().filter_map(|(then, now)| {
        let object = now.map(RecordedObject::from).or_else(|| then.cloned())?;
        Some(RecordedObject { statement: None, ..object })
    });
    doubted.collect()
}

/// What is to be recorded of a schema that was dumped between two looks.
pub(super) fn certain(before: &[SchemaObject], after: &[SchemaObject]) -> Vec<RecordedObject> {
    let first: Vec<RecordedObject> = before.iter().map(RecordedObject::from).collect();
    let mut objects = doubted(&first, after);
    let places: HashSet<Place<'_>> = objects.iter().map(|object| object.key.place()).collect();
    let same: Vec<RecordedObject> = after
        .iter()
        .filter(|object| !places.contains(&object.key.place()))
        .map(RecordedObject::from)
        .collect();
    objects.extend(same);
    objects
}

impl<'a> Compared<'a> {
    /// Compares them.
    pub(super) fn outcome(&self) -> Outcome {
        let there: HashMap<Place<'_>, &SchemaObject> =
            self.there.iter().map(|object| (object.key.place(), object)).collect();
        let (tables, tables_there) = (Hierarchy::new(self.tables), Hierarchy::new(self.tables_there));
        let views: HashSet<QualifiedName> = self.now.iter().filter_map(|object| object.key.view()).collect();
        let mut outcome = Outcome::default();
        let mut drifting = Vec::new();
        for (then, now) in differing(self.then, self.now) {
            let key = now.map(|now| &now.key).or_else(|| then.map(|then| &then.key));
            let Some(key) = key else { continue };
            let found = Differing { key, then, now, there: there.get(&key.place()).copied() };
            if self.is_settled(found) {
                outcome.gone.extend(then.map(|then| then.key.clone()));
                outcome.taken.extend(now.map(RecordedObject::from));
            } else if self.is_meant(found, &tables, &tables_there, &views) {
                drifting.push(found);
            }
        }
        outcome.drift = self.statements(&drifting, &tables);
        outcome
    }

    fn is_settled(&self, Differing { then, now, there, .. }: Differing<'_>) -> bool {
        match (now, there) {
            (None, None) => true,
            (Some(now), Some(there)) => {
                // Where a label is may be said in two ways.
                now.statement == there.statement
                    || now.key.kind == SchemaObjectKind::EnumLabel
                    || self.same_views.contains(&now.key)
                    || (then.is_none() && !self.same_words)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Whether it is to be done at all.
    fn is_meant(
        &self,
        Differing { key, now, .. }: Differing<'_>,
        tables: &Hierarchy<'_>,
        tables_there: &Hierarchy<'_>,
        views: &HashSet<QualifiedName>,
    ) -> bool {
        // One that is left over does no harm, and a column that the target keeps may need it.
        let kept = matches!(
            key.kind,
            SchemaObjectKind::Sequence
                | SchemaObjectKind::Domain
                | SchemaObjectKind::Enum
                | SchemaObjectKind::EnumLabel
        );
        if kept && now.is_none() {
            return false;
        }
        let Some(relation) = key.relation() else { return true };
        if self.left_out.tables.contains(relation)
            || self.left_out.constraints.contains(&(relation.clone(), key.name.clone()))
        {
            return false;
        }
        if let Some((table, table_there)) = tables.named(relation).zip(tables_there.named(relation)) {
            // What a partition has of the table above comes and goes with it, which the cutover sees to.
            let above = |table: &Table| (table.bounds.is_some(), table.partition_of.clone());
            if above(table) != above(table_there) {
                return false;
            }
            let has = |table: &Table| table.columns.iter().any(|column| column.name == key.name);
            return key.kind != SchemaObjectKind::Default || has(table) && has(table_there);
        }
        // That of a view goes with it.
        views.contains(relation) && tables.named(relation).is_none() && tables_there.named(relation).is_none()
    }

    /// First what goes away of tables, and what gets another name; then what was made and changed; then the rest that goes away.
    fn statements(&self, drifting: &[Differing<'a>], tables: &Hierarchy<'_>) -> Vec<SchemaDrift> {
        let remade: HashSet<QualifiedName> =
            drifting.iter().filter(|found| found.is_remade()).filter_map(|found| found.key.view()).collect();
        let defaults = Defaults::new(self.now, drifting, tables);
        let mut sorted: [Vec<SchemaDrift>; 3] = Default::default();
        for found in drifting {
            let key = found.key;
            if key.relation().is_some_and(|relation| remade.contains(relation)) {
                continue;
            }
            let place = match found.now {
                Some(now) if self.label_before(now).is_some() => 0,
                Some(_) => 1,
                None => {
                    if key.relation().is_some() {
                        0
                    } else {
                        2
                    }
                }
            };
            let statement = match key.kind {
                SchemaObjectKind::Default => defaults.statement(*found),
                _ => Some(self.statement(*found)),
            };
            let change = found.change();
            let drift = |statement| SchemaDrift { change, object: key.to_string(), statement };
            sorted[place].extend(statement.map(drift));
        }
        sorted.concat()
    }

    fn statement(&self, found: Differing<'_>) -> String {
        let (now, there) = match (found.now, found.there) {
            (Some(now), None) => {
                let renamed = self.label_before(now).map(|before| {
                    let sql =
                        Sql::new("ALTER TYPE ").name(&now.key.of).text(" RENAME VALUE ").literal(before);
                    ended(sql.text(" TO ").literal(&now.key.name).as_str())
                });
                return renamed.unwrap_or_else(|| ended(&now.statement));
            }
            (None, there) => {
                return there.map(|there| ended(there.key.drop().as_str())).unwrap_or_default();
            }
            (Some(now), Some(there)) => (now, there),
        };
        if !found.is_remade() {
            return ended(&now.statement);
        }
        if now.key.kind == SchemaObjectKind::Constraint
            && there.statement.strip_suffix(" NOT VALID") == Some(&now.statement)
        {
            let validate = Sql::new("ALTER TABLE ").name(&now.key.of).text(" VALIDATE CONSTRAINT ");
            return ended(validate.ident(&now.key.name).as_str());
        }
        if now.key.kind == SchemaObjectKind::Sequence {
            return ended(&now.statement.replacen("CREATE", "ALTER", 1));
        }
        let mut statements = vec![ended(there.key.drop().as_str()), ended(&now.statement)];
        if let Some(view) = now.key.view() {
            let on_it = self.now.iter().filter(|object| object.key.relation() == Some(&view));
            statements.extend(on_it.map(|object| ended(&object.statement)));
        }
        statements.join(" ")
    }

    /// What the label of an enum was recorded as, and still is on the target.
    fn label_before(&self, now: &SchemaObject) -> Option<&'a str> {
        let same = |object: &&RecordedObject| {
            object.key.kind == SchemaObjectKind::EnumLabel && object.oid == now.oid && object.key != now.key
        };
        let before =
            &self.then.iter().find(same).filter(|_| now.key.kind == SchemaObjectKind::EnumLabel)?.key;
        self.there.iter().any(|there| there.key == *before).then_some(before.name.as_str())
    }
}

fn ended(statement: &str) -> String {
    format!("{statement};")
}

#[cfg(test)]
mod tests;
