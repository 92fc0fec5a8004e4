//! A new partition on the target.
//!
//! `pg_dump` of the one table says what it is like: its columns in their order, storage, constraints and indexes of its own.
//! It is made as a table by itself, with its indexes, and attached then: the server finds that the indexes are those of the
//! table above, and makes what is missing of triggers and foreign keys, as it did on the source.

use std::collections::HashSet;

use crate::catalog::{SideClient, Table, TargetClient};
use crate::error::{Failure, Result};
use crate::limits::PARTITION_LOCK_TIMEOUT;
use crate::migrate::attempt::Attempt;
use crate::pg::{QualifiedName, Sql};

use super::hierarchy::Hierarchy;

/// What has to be done on the target for one partition.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionWork {
    /// To be made, those above before those below.
    made: Vec<QualifiedName>,
    /// To be attached, those below before those above.
    attached: Vec<QualifiedName>,
}

impl PartitionWork {
    /// `path` leads from the partition to the topmost table, as on the source.
    pub(super) fn of(path: &[QualifiedName], there: &HashSet<QualifiedName>, of_target: &Hierarchy) -> Self {
        let below = path.split_last().map_or(&[][..], |(_, below)| below);
        let made = below.iter().rev().filter(|name| !there.contains(name)).cloned().collect();
        let attached = below.iter().zip(path.iter().skip(1));
        let attached = attached.filter(|(name, parent)| of_target.parent(name) != Some(parent));
        Self { made, attached: attached.map(|(name, _)| name.clone()).collect() }
    }
}

/// Why the target did not take a partition.
pub(super) enum Refused {
    ByTarget(tokio_postgres::Error),
    Other(Failure),
}

impl From<tokio_postgres::Error> for Refused {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::ByTarget(error)
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl Attempt<'_> {
    /// Makes those of the `partitions` that the target lacks; gives those that it has then.
    pub(super) async fn make_partitions(&mut self, partitions: Vec<Table>) -> Result<Vec<Table>> {
        let of_source = Hierarchy::read(&self.source).await?;
        let mut taken = Vec::new();
        for table in partitions {
            let oid = table.oid.get();
            let path = of_source.upwards(&table.name);
            let there = existing(&self.target, &path).await?;
            if path.len() < 2 || path.last().is_none_or(|root| !there.contains(root)) {
                self.unfollowed.others.insert(oid);
                tracing::warn!(table = %table.name, "made on the source after the copy began: it is not carried");
                continue;
            }
            let of_target = Hierarchy::read(&self.target).await?;
            let wanted = PartitionWork::of(&path, &there, &of_target);
            match self.make_partition(&wanted, &of_source, &of_target).await {
                Ok(()) => taken.push(table),
                Err(Refused::Other(failure)) => return Err(failure),
                Err(Refused::ByTarget(error)) => {
                    self.unfollowed.refused.insert(oid);
                    let detail = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                    let hint =
                        "make it there as it is on the source, attached; it is tried again within a minute";
                    tracing::error!(table = %table.name, detail, %hint, "the target cannot take a new partition");
                }
            }
        }
        Ok(taken)
    }

    pub(super) async fn make_partition(
        &self,
        wanted: &PartitionWork,
        of_source: &Hierarchy,
        of_target: &Hierarchy,
    ) -> Result<(), Refused> {
        if wanted.attached.is_empty() && wanted.made.is_empty() {
            return Ok(());
        }
        let (mut before, mut after) = (Sql::default(), Sql::default());
        if !wanted.made.is_empty() {
            let tools = self.migration.tools(self.source_version().await?).await?;
            let archive = tools.dump_tables(&self.migration.sides.source, &wanted.made).await?;
            (before, after) = archive.around_attach(&self.left_out().await?);
        }
        let attach = |name: &QualifiedName| {
            let partition = of_source.get(name)?;
            let sql =
                Sql::new("ALTER TABLE ONLY ").name(&partition.parent).text(" ATTACH PARTITION ").name(name);
            Some(sql.text(" ").catalog(&partition.bound).text(";\n"))
        };
        let mut attached = Sql::default();
        for name in &wanted.attached {
            // It may be attached elsewhere yet, as it was on the source.
            if let Some(parent) = of_target.parent(name) {
                attached = attached.sql(&detach(parent, name));
            }
            attached = attached.sql(&attach(name).unwrap_or_default());
        }
        let timeout = i64::try_from(PARTITION_LOCK_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        let script = |room: &Sql| {
            let begin = Sql::new("BEGIN;\nSET LOCAL lock_timeout = ").number(timeout).text(";\n");
            begin.sql(room).sql(&before).text("\n").sql(&attached).sql(&after).text(";\nCOMMIT")
        };
        let target = self.migration.sides.target_client().await?;
        match target.batch_execute(script(&Sql::default()).as_str()).await {
            Err(error) if error.code().is_some_and(|code| code.code() == OVERLAPS) => {
                target.batch_execute("ROLLBACK").await?;
                let room = room(wanted, of_source, of_target);
                target.batch_execute(script(&room).as_str()).await?;
            }
            made => made?,
        }
        self.give_owner(&target, &wanted.made, of_source).await?;
        Ok(())
    }

    /// Gives what was made to the owner of the table above, as it is on the target.
    async fn give_owner(
        &self,
        target: &TargetClient,
        made: &[QualifiedName],
        of_source: &Hierarchy,
    ) -> Result<(), Refused> {
        for name in made {
            let Some(parent) = of_source.parent(name) else { continue };
            let sql = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = $1::text::regclass
                       AND relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)";
            let parent = Sql::default().name(parent).to_string();
            let Some(row) = target.query_opt(sql, &[&parent]).await? else { continue };
            let alter = Sql::new("ALTER TABLE ").name(name).text(" OWNER TO ").ident(row.get::<_, &str>(0));
            if let Err(error) = target.batch_execute(alter.as_str()).await {
                let detail = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                tracing::warn!(table = %name, detail, statement = %alter, "the owner of a new partition stays another");
            }
        }
        Ok(())
    }
}

/// `invalid_object_definition`: among others, a bound that another partition has.
const OVERLAPS: &str = "42P17";

pub(super) fn detach(parent: &QualifiedName, name: &QualifiedName) -> Sql {
    Sql::new("ALTER TABLE ONLY ").name(parent).text(" DETACH PARTITION ").name(name).text(";\n")
}

/// Detaches what the source does not have there any more: it is kept, beside the table.
fn room(wanted: &PartitionWork, of_source: &Hierarchy, of_target: &Hierarchy) -> Sql {
    let mut sql = Sql::default();
    for parent in wanted.attached.iter().filter_map(|name| of_source.parent(name)) {
        for name in of_target.below(parent).filter(|name| of_source.parent(name) != Some(parent)) {
            tracing::warn!(table = %name, of = %parent, "detached on the target: a new partition takes its place");
            sql = sql.sql(&detach(parent, name));
        }
    }
    sql
}

/// Those of the names that a side has.
pub(super) async fn existing(client: &SideClient, names: &[QualifiedName]) -> Result<HashSet<QualifiedName>> {
    let quoted: Vec<String> = names.iter().map(|name| Sql::default().name(name).to_string()).collect();
    let sql = "SELECT to_regclass(name) IS NOT NULL FROM unnest($1::text[]) WITH ORDINALITY n (name, at) ORDER BY at";
    let rows = client.query(sql, &[&quoted]).await;
    let rows = rows.map_err(client.failed("the tables that are there"))?;
    let there = names.iter().zip(&rows).filter(|(_, row)| row.get::<_, bool>(0));
    Ok(there.map(|(name, _)| name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_done() {
        let name = |name: &str| QualifiedName::new("public", name);
        let check = |there: &[&str], of_target: &[(&str, &str)], made: &[&str], attached: &[&str]| {
            let path = ["leaf", "middle", "root"].map(name);
            let there = there.iter().map(|of| name(of)).collect();
            let found = PartitionWork::of(&path, &there, &Hierarchy::example(of_target));
            let names = |names: &[&str]| names.iter().map(|of| name(of)).collect::<Vec<_>>();
            assert_eq!(found, PartitionWork { made: names(made), attached: names(attached) }, "{there:?}");
        };
        check(&["root"], &[], &["middle", "leaf"], &["leaf", "middle"]);
        check(&["root", "middle"], &[("middle", "root")], &["leaf"], &["leaf"]);
        check(&["root", "middle", "leaf"], &[("middle", "root")], &[], &["leaf"]);
        check(&["root", "middle", "leaf"], &[("middle", "root"), ("leaf", "root")], &[], &["leaf"]);
        check(&["root", "middle", "leaf"], &[("middle", "root"), ("leaf", "middle")], &[], &[]);
    }
}
