//! Partitions that were attached elsewhere, detached or dropped since, at the cutover.
//!
//! Then all is applied, so that whatever the source's rows fit the target's do, too. A table that is followed is attached
//! where the source has it, and detached where the source has done that: it is kept, and its rows are as on the source.
//! One that the source has dropped is kept as it is, and named; with `--ddl follow` it is dropped.

use std::collections::HashSet;

use crate::config::Ddl;
use crate::error::{Definite, Result, Side};
use crate::migrate::attempt::Attempt;
use crate::pg::{QualifiedName, Sql};

use super::hierarchy::Hierarchy;
use super::make::{Refused, Wanted, detach, existing};

impl Attempt<'_> {
    /// Makes the target's hierarchy what the source's is, as far as followed tables go. Gives what somebody should know.
    ///
    /// # Errors
    /// When a partition cannot be attached on the target.
    pub(in crate::migrate) async fn mirror_partitions(&self) -> Result<Vec<String>> {
        let (names, of_source, of_target) = self.hierarchies().await?;
        let on_target: HashSet<QualifiedName> = existing(&self.target, Side::Target, &names).await?;
        for name in names.iter().filter(|name| of_source.parent(name).is_some() && on_target.contains(*name))
        {
            let path = of_source.upwards(name);
            let wanted = Wanted::of(&path, &path.iter().cloned().collect(), &of_target);
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
        self.settle_detached(&names, &of_source, &of_target, true).await
    }

    /// The tables that go from the target at the cutover if the source does not have them then.
    ///
    /// # Errors
    /// When the target does not answer.
    pub(in crate::migrate) async fn dropped_at_cutover(&self) -> Result<HashSet<QualifiedName>> {
        match self.migration.ddl {
            Ddl::Follow => Ok(Hierarchy::read(&self.target, Side::Target).await?.into_names()),
            Ddl::Stop => Ok(HashSet::new()),
        }
    }

    /// Detaches on the target what the source has detached: the target would refuse rows that do not fit the partition any
    /// more. Says what somebody should know.
    pub(in crate::migrate) async fn detach_partitions(&self) -> Result<()> {
        let (names, of_source, of_target) = self.hierarchies().await?;
        self.settle_detached(&names, &of_source, &of_target, false).await.map(drop)
    }

    /// The tables of the migration, and how partitions hang together on the source and on the target.
    async fn hierarchies(&self) -> Result<(Vec<QualifiedName>, Hierarchy, Hierarchy)> {
        let rows = self.store().relations().await?;
        let names = rows.into_iter().map(|row| row.name).collect();
        let (of_source, of_target) = tokio::try_join!(
            Hierarchy::read(&self.source, Side::Source),
            Hierarchy::read(&self.target, Side::Target),
        )?;
        Ok((names, of_source, of_target))
    }

    /// What is a partition on the target alone; `at_the_end` what was dropped on the source, too.
    async fn settle_detached(
        &self,
        names: &[QualifiedName],
        of_source: &Hierarchy,
        of_target: &Hierarchy,
        at_the_end: bool,
    ) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let left =
            names.iter().filter(|name| of_source.parent(name).is_none() && of_target.parent(name).is_some());
        let left: Vec<QualifiedName> = left.cloned().collect();
        let on_source = existing(&self.source, Side::Source, &left).await?;
        for name in left {
            let Some(parent) = of_target.parent(&name) else { continue };
            if !at_the_end && !on_source.contains(&name) {
                continue;
            }
            let (statement, done) = match (on_source.contains(&name), self.migration.ddl) {
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
