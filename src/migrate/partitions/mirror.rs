//! Partitions that were attached elsewhere, detached or dropped since.
//!
//! At the cutover all is applied, so that whatever the source's rows fit the target's do, too. A table that is followed is
//! attached where the source has it, and detached where the source has done that: it is kept, and its rows are as on the
//! source. One that the source has dropped is kept as it is, and named; with `--ddl follow` it is dropped. The catalog does
//! not tell where in the WAL that was, but that it was before it was read: so it is dropped as soon as all is applied that
//! was written by then, while the stream goes on.

use std::collections::HashSet;

use tokio::time::timeout;

use crate::catalog;
use crate::config::Ddl;
use crate::error::{Definite, Result, Side};
use crate::limits::{PARTITION_DROP_WAIT, PARTITION_LOCK_TIMEOUT};
use crate::migrate::attempt::Attempt;
use crate::pg::{QualifiedName, Sql};
use crate::store::AsCopied;
use crate::store::RelationRow;

use super::hierarchy::Hierarchy;
use super::make::{PartitionWork, Refused, detach, existing};

/// The tables of the migration, and how partitions hang together on the source and on the target.
struct Hierarchies {
    rows: Vec<RelationRow>,
    of_source: Hierarchy,
    of_target: Hierarchy,
}

impl Attempt<'_> {
    /// Makes the target's hierarchy what the source's is, as far as followed tables go. Gives what somebody should know.
    ///
    /// # Errors
    /// When a partition cannot be attached on the target.
    pub(in crate::migrate) async fn mirror_partitions(&self) -> Result<Vec<String>> {
        let Hierarchies { rows, of_source, of_target } = self.hierarchies().await?;
        let names: Vec<QualifiedName> = rows.iter().map(|row| row.name.clone()).collect();
        let on_target: HashSet<QualifiedName> = existing(&self.target, &names).await?;
        for name in names.iter().filter(|name| of_source.parent(name).is_some() && on_target.contains(*name))
        {
            let path = of_source.upwards(name);
            let wanted = PartitionWork::of(&path, &path.iter().cloned().collect(), &of_target);
            match self.make_partition(&wanted, &of_source, &of_target).await {
                Ok(()) => {}
                Err(Refused::Other(failure)) => return Err(failure),
                Err(Refused::ByTarget(error)) => {
                    let cause =
                        format!("table {name} cannot be attached on the target as it is on the source");
                    let detail = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                    let hint = "attach it there yourself, then run `walferry cutover` again";
                    return Err(Definite::new(cause).detail(detail).hint(hint).into());
                }
            }
        }
        let mut warnings = self.settle_detached(&rows, &of_source, &of_target, true).await?;
        let dropped = self.dropped(&rows).await?;
        let gone = names.iter().filter(|name| dropped.contains(*name) && !on_target.contains(*name));
        warnings
            .extend(gone.map(|name| format!("table {name} was dropped on the source, and on the target")));
        // Those that were detached on the target by an attempt before.
        let detached = rows.iter().filter(|row| {
            row.definition.as_ref().is_some_and(AsCopied::was_partition)
                && of_source.parent(&row.name).is_none()
                && of_target.parent(&row.name).is_none()
                && !dropped.contains(&row.name)
        });
        warnings.extend(detached.map(|row| format!("partition {}: detached, as on the source", row.name)));
        Ok(warnings)
    }

    /// With `--ddl follow`, drops partitions that the source has dropped, once nothing of theirs can come any more. One that
    /// cannot be dropped now is tried again.
    ///
    /// # Errors
    /// When a side does not answer.
    pub(in crate::migrate) async fn drop_partitions(&mut self) -> Result<()> {
        if self.migration.ddl != Ddl::Follow {
            return Ok(());
        }
        let Hierarchies { rows, of_source, of_target } = self.hierarchies().await?;
        let left = left(&rows, &of_source, &of_target);
        let dropped = self.dropped(&left).await?;
        if dropped.is_empty() {
            return Ok(());
        }
        let mark = catalog::mark_wal(&self.source).await?;
        if timeout(PARTITION_DROP_WAIT, self.progress.applied(mark)).await.is_err() {
            return Ok(());
        }
        let target = self.migration.sides.target_client().await?;
        let lock = i64::try_from(PARTITION_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        for name in dropped {
            let drop = Sql::new("DROP TABLE ").name(&name);
            let sql = Sql::new("SET lock_timeout = ").number(lock).text("; ").sql(&drop);
            match target.batch_execute(sql.as_str()).await {
                Ok(()) => tracing::info!(table = %name, "dropped, as on the source"),
                Err(error) => {
                    let detail = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                    let cause = format!("{name}: {detail}");
                    if self.misfits.insert(cause) {
                        tracing::warn!(table = %name, detail, statement = %drop, "cannot be dropped on the target yet, as on the source");
                    }
                }
            }
        }
        Ok(())
    }

    /// The tables that go from the target, too, when the source drops them.
    ///
    /// # Errors
    /// When the target does not answer.
    pub(in crate::migrate) async fn dropped_too(&self) -> Result<HashSet<QualifiedName>> {
        match self.migration.ddl {
            Ddl::Follow => Ok(Hierarchy::read(&self.target).await?.into_names()),
            Ddl::Stop => Ok(HashSet::new()),
        }
    }

    /// Detaches on the target what the source has detached: the target would refuse rows that do not fit the partition any
    /// more. Says what somebody should know.
    pub(in crate::migrate) async fn detach_partitions(&self) -> Result<()> {
        let Hierarchies { rows, of_source, of_target } = self.hierarchies().await?;
        self.settle_detached(&rows, &of_source, &of_target, false).await.map(drop)
    }

    async fn hierarchies(&self) -> Result<Hierarchies> {
        let rows = self.store().relations().await?;
        let (of_source, of_target) =
            tokio::try_join!(Hierarchy::read(&self.source), Hierarchy::read(&self.target),)?;
        Ok(Hierarchies { rows, of_source, of_target })
    }

    /// Those that the source has no more. One that was renamed, or moved to another schema, is there.
    async fn dropped(&self, rows: &[RelationRow]) -> Result<HashSet<QualifiedName>> {
        let ids = |row: &RelationRow| row.origin.map(|origin| origin.id.get());
        let wanted: Vec<u32> = rows.iter().filter_map(ids).collect();
        let names: Vec<QualifiedName> = rows.iter().map(|row| row.name.clone()).collect();
        let sql = "SELECT c.oid FROM pg_class c WHERE c.oid = ANY ($1)";
        let found = self.source.query(sql, &[&wanted]).await;
        let found =
            found.map_err(|error| catalog::Error::new(Side::Source, "the tables that are there", error));
        let found: HashSet<u32> = found?.iter().map(|row| row.get(0)).collect();
        // Another one of its name is for a copy, or for somebody to decide.
        let named = existing(&self.source, &names).await?;
        let gone = |row: &&RelationRow| {
            ids(row).is_some_and(|id| !found.contains(&id)) && !named.contains(&row.name)
        };
        Ok(rows.iter().filter(gone).map(|row| row.name.clone()).collect())
    }

    /// What is a partition on the target alone; `at_the_end` what was dropped on the source, too.
    async fn settle_detached(
        &self,
        rows: &[RelationRow],
        of_source: &Hierarchy,
        of_target: &Hierarchy,
        at_the_end: bool,
    ) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let left = left(rows, of_source, of_target);
        let dropped = self.dropped(&left).await?;
        let names: Vec<QualifiedName> = left.into_iter().map(|row| row.name).collect();
        let on_source = existing(&self.source, &names).await?;
        for name in names {
            let Some(parent) = of_target.parent(&name) else { continue };
            let is_dropped = dropped.contains(&name);
            if is_dropped && !at_the_end || !is_dropped && !on_source.contains(&name) {
                continue;
            }
            let (statement, done) = match (!is_dropped, self.migration.ddl) {
                (true, _) => (detach(parent, &name), "detached, as on the source"),
                (false, Ddl::Follow) => (Sql::new("DROP TABLE ").name(&name), "dropped, as on the source"),
                (false, _) => {
                    warnings.push(format!(
                        "partition {name} of {parent} was dropped on the source: the target keeps it"
                    ));
                    continue;
                }
            };
            match self.target.batch_execute(statement.as_str()).await {
                Ok(()) => {
                    tracing::info!(table = %name, of = %parent, done, "partition");
                    warnings.push(format!("partition {name} of {parent}: {done}"));
                }
                Err(error) => {
                    let detail = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                    warnings.push(format!(
                        "partition {name} of {parent} is left as it is: {detail}; to do: {statement}"
                    ));
                }
            }
        }
        Ok(warnings)
    }
}

/// Those that are partitions on the target alone.
fn left(rows: &[RelationRow], of_source: &Hierarchy, of_target: &Hierarchy) -> Vec<RelationRow> {
    let left =
        |row: &&RelationRow| of_source.parent(&row.name).is_none() && of_target.parent(&row.name).is_some();
    rows.iter().filter(left).cloned().collect()
}
