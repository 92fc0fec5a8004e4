//! What the stream never brings: indexes, constraints, defaults, views, functions, triggers, rules, sequences, domains and
//! enums that were made, changed or dropped on the source since the start.
//!
//! What the source's were is recorded when the schema is made ([`crate::store::RecordedObject`]): read before the snapshot
//! that is dumped, and once more when the dump is there. `pg_dump` shows some as of its snapshot and some as they are when
//! it asks, so one that is not the same both times is recorded as uncertain, and counts as changed until the target has
//! what the source has. The same holds for one that differs when a later run dumps what is left to be made.
//!
//! Whatever the target has as the source has it is recorded as such by the running engine, so that a change which is taken
//! back on the source is noticed, too.
//!
//! Not here: tables, partitions and columns (`definitions`, `drift`); other types, policies, comments, owners and privileges, which
//! nobody compares.

mod compare;
mod defaults;
mod differing;
mod wording;

pub(super) use wording::worded;

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::{self, SchemaObject, SchemaObjectKey, SourceClient, Table, TargetClient};
use crate::config::TableFilter;
use crate::error::{Definite, Result};
use crate::limits::{FENCE_LOCK_TIMEOUT, SCHEMA_DRIFT_SHOWN_MAX};
use crate::pg::Sql;
use crate::store::Store;
use crate::store::{RecordedObject, SchemaDrift};

use super::attempt::Attempt;
use super::filter::{broken, moved};
use super::preflight::listed;
use compare::{Compared, LeftOut, Outcome, certain, differing, doubted};

/// What is looked at.
pub(super) struct Look<'a> {
    /// The source's database.
    pub source: &'a SourceClient,
    /// The target's. It may wait for whoever has locked a table.
    pub target: &'a TargetClient,
    /// What is recorded.
    pub store: Store<'a>,
    /// The tables that are moved.
    pub filter: &'a TableFilter,
    /// The database's name.
    pub dbname: &'a str,
}

impl Look<'_> {
    /// How the source differs from what is recorded; `None` where an older Walferry recorded nothing.
    ///
    /// # Errors
    /// When a side does not answer.
    pub(super) async fn drift(&self) -> Result<Option<Vec<SchemaDrift>>> {
        Ok(self.outcome().await?.map(|outcome| outcome.drift))
    }

    async fn outcome(&self) -> Result<Option<Outcome>> {
        let Some(then) = self.store.definitions().await? else { return Ok(None) };
        let now = catalog::schema_objects(self.source).await?;
        if differing(&then, &now).is_empty() {
            return Ok(Some(Outcome::default()));
        }
        let there = catalog::schema_objects(self.target).await?;
        let tables_there = catalog::tables_unsized(self.target).await?;
        let tables = catalog::tables_unsized(self.source).await?;
        let source = catalog::server_version(self.source).await?;
        let target = catalog::server_version(self.target).await?;
        let left_out = self.left_out(&tables).await?;
        let same_words = source.major() == target.major();
        let worded = worded_otherwise(&then, &now, &there).filter(|_| !same_words);
        let same_views = wording::same_views(self.target, worded).await?;
        let compared = Compared {
            then: &then,
            now: &now,
            there: &there,
            tables: &tables,
            tables_there: &tables_there,
            left_out,
            same_words,
            same_views,
        };
        Ok(Some(compared.outcome()))
    }

    async fn left_out(&self, tables: &[Table]) -> Result<LeftOut> {
        if self.filter.takes_all() {
            return Ok(LeftOut::default());
        }
        let moved = moved(tables, self.filter, self.dbname);
        let references = catalog::references(self.source).await?;
        let broken = broken(&references, tables, &moved);
        let constraints =
            broken.into_iter().map(|reference| (reference.from.clone(), reference.name.clone()));
        let mut left: LeftOut = LeftOut { constraints: constraints.collect(), ..LeftOut::default() };
        left.tables.extend(tables.iter().map(|table| table.name.clone()));
        for table in &moved {
            left.tables.remove(&table.name);
            // One of which some partitions are moved is meant, too.
            if let Some(root) = &table.partition_of {
                left.tables.remove(root);
            }
        }
        Ok(left)
    }
}

impl Attempt<'_> {
    /// What the source's schema is before its snapshot.
    pub(super) async fn schema_objects(&self) -> Result<Vec<SchemaObject>> {
        Ok(catalog::schema_objects(&self.source).await?)
    }

    /// Records what was there `before` and is there now, when the schema was dumped in between.
    pub(super) async fn record_definitions(&self, before: &[SchemaObject]) -> Result<()> {
        if self.store().definitions().await?.is_some() {
            return self.doubt_definitions().await;
        }
        let after = self.schema_objects().await?;
        self.store().begin_definitions(&certain(before, &after)).await
    }

    /// The schema was dumped once more: of what differs from what is recorded, the target may get either.
    pub(super) async fn doubt_definitions(&self) -> Result<()> {
        let Some(then) = self.store().definitions().await? else { return Ok(()) };
        let now = self.schema_objects().await?;
        self.store().set_definitions(&doubted(&then, &now)).await
    }

    /// Looks, and records what it finds, for `status` and for the next look. Nothing ends for it.
    pub(super) async fn look_at_schema(&mut self) {
        if let Err(failure) = self.find_schema_drift().await {
            tracing::warn!(%failure, "the source's indexes, views and functions cannot be compared: tried again");
        }
    }

    async fn find_schema_drift(&mut self) -> Result<()> {
        let version = catalog::schema_version(&self.source).await?;
        if self.schema_version.as_ref() == Some(&version) {
            return Ok(());
        }
        let target = self.impatient_target().await?;
        let source = Arc::clone(&self.source);
        let drift = self.schema_drift(&source, &target).await?;
        self.schema_version = drift.is_none_or(|drift| drift.is_empty()).then_some(version);
        Ok(())
    }

    /// A session of its own, which waits for no lock without end: the text of a view takes one on its tables.
    async fn impatient_target(&self) -> Result<TargetClient> {
        let target = self.migration.sides.target_client().await?;
        let patience = i64::try_from(FENCE_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        let bound = Sql::new("SET lock_timeout = ").number(patience);
        target.run("a bound on locks", &bound).await?;
        Ok(target)
    }

    /// How the source differs: told, recorded and shown. `None` where nobody knows.
    async fn schema_drift(
        &self,
        source: &SourceClient,
        target: &TargetClient,
    ) -> Result<Option<Vec<SchemaDrift>>> {
        let store = self.store();
        let (filter, dbname) = (&self.migration.filter, self.row.dbname.as_str());
        let look =
            Look { source, target, store: Store::new(target, &self.migration.sides.name), filter, dbname };
        let Some(Outcome { drift, taken, gone }) = look.outcome().await? else { return Ok(None) };
        store.forget_definitions(&gone).await?;
        store.set_definitions(&taken).await?;
        if store.set_schema_drift(&drift).await? {
            tell(&drift);
        }
        let shown = drift.iter().map(|drift| SchemaDrift { statement: String::new(), ..drift.clone() });
        self.migration.status.update_database(dbname, |database| database.schema_drift = shown.collect());
        Ok(Some(drift))
    }

    /// Refuses what the target has not as the source has it by now. Gives the version of the schema that was looked at, and
    /// what somebody should know: what is `accepted` all the same, or that nothing is known.
    pub(super) async fn refuse_schema_drift(
        &mut self,
        source: &SourceClient,
        accepted: bool,
    ) -> Result<(String, Vec<String>)> {
        let version = catalog::schema_version(source).await?;
        let target = self.impatient_target().await?;
        let Some(drift) = self.schema_drift(source, &target).await? else {
            return Ok((version, vec![NOT_RECORDED.to_owned()]));
        };
        if !drift.is_empty() && !accepted {
            return Err(refusal(&drift).into());
        }
        let left = drift.iter().map(|drift| format!("left as it is on the target: {}", described(drift)));
        Ok((version, left.collect()))
    }

    /// The same, unless the version is still this one.
    pub(super) async fn refuse_later_schema_drift(
        &mut self,
        source: &SourceClient,
        version: &str,
    ) -> Result<()> {
        let now = catalog::schema_version(source).await?;
        if now == version { Ok(()) } else { self.refuse_schema_drift(source, false).await.map(drop) }
    }
}

/// Views of the source that differ from what is recorded, with the target's, whose text is another.
fn worded_otherwise<'a>(
    then: &'a [RecordedObject],
    now: &'a [SchemaObject],
    there: &'a [SchemaObject],
) -> impl Iterator<Item = (&'a SchemaObject, &'a SchemaObject)> {
    let views = there.iter().filter(|object| object.key.view().is_some());
    let there: HashMap<&SchemaObjectKey, &SchemaObject> = views.map(|object| (&object.key, object)).collect();
    differing(then, now).into_iter().filter_map(move |(_, now)| {
        let now = now?;
        there.get(&now.key).map(|there| (now, *there)).filter(|(now, there)| now.statement != there.statement)
    })
}

/// Of the objects of a migration that has no record of them.
pub(super) const NOT_RECORDED: &str = "an older Walferry began this migration: which indexes, views and functions were changed on the source since \
     then is not known";

/// What an operator is told of one: `index public.by_name made`.
fn described(drift: &SchemaDrift) -> String {
    format!("{} {}", drift.object, drift.change.as_str())
}

fn tell(drift: &[SchemaDrift]) {
    let objects: Vec<String> = drift.iter().map(described).collect();
    if objects.is_empty() {
        tracing::info!("the target has what was made and changed on the source");
    } else {
        let (count, objects) = (objects.len(), listed(&objects));
        tracing::warn!(
            count,
            objects,
            "the source's schema has changed since the start, the target's has not: cutover is refused; `walferry status` \
             has the statements"
        );
    }
}

fn refusal(drift: &[SchemaDrift]) -> Definite {
    let shown = &drift[..drift.len().min(SCHEMA_DRIFT_SHOWN_MAX)];
    let objects: Vec<String> = shown.iter().map(described).collect();
    let statements: Vec<&str> = shown.iter().map(|drift| drift.statement.trim_end_matches(';')).collect();
    let more = drift.len() - shown.len();
    let more = if more == 0 { String::new() } else { format!("; and {more} more: `walferry status --json`") };
    Definite::new("the source's schema has changed since the start, the target's has not")
        .detail(objects.join(", "))
        .hint(format!(
            "on the target run: {}{more}; then run `walferry cutover` again; or with --accept-drift: it leaves the target as it is",
            statements.join("; ")
        ))
}
