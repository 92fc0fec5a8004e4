//! What replication does not carry, brought up to date while nobody writes.

use tokio::time::Instant;

use crate::catalog::{self, SequenceValues, SourceClient, Table, TargetClient};
use crate::config::Keyless;
use crate::error::{Definite, Failure, Result, Side};
use crate::migrate::attempt::Attempt;
use crate::migrate::filter::moved;
use crate::migrate::uncarried::Again;
use crate::migrate::{publications, sequences};
use crate::pg::Sql;

use super::sessions::first_names;

/// What was carried, and what was not.
#[derive(Debug)]
pub(super) struct Carried {
    /// Where the target's sequences stand now.
    pub sequences: SequenceValues,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

impl Attempt<'_> {
    /// Refuses where there is no slot, or no walsender, for the snapshot on which tables are copied again that are in the
    /// stream in part. Several databases may want the last one at the same time: who comes too late is given up.
    ///
    /// # Errors
    /// Which of the two, and for which tables.
    pub(super) async fn refuse_without_slot(&self, source: &SourceClient) -> Result<()> {
        let [_, inserts_only] = &self.row.publications[..] else { return Ok(()) };
        if self.migration.contents.keyless == Keyless::Ignore {
            return Ok(());
        }
        let again = publications::members(&self.source, std::slice::from_ref(inserts_only)).await?;
        if again.is_empty() {
            return Ok(());
        }
        let room = catalog::replication_room(source).await?;
        let (missing, setting) = match (room.slots, room.wal_senders) {
            (0, _) => ("replication slot", "max_replication_slots"),
            (_, 0) => ("walsender", "max_wal_senders"),
            _ => return Ok(()),
        };
        let mut names: Vec<String> = again.iter().map(ToString::to_string).collect();
        names.sort();
        Err(Definite::new(format!("the source has no free {missing}"))
            .detail(format!("tables that are copied again need one: {}", first_names(&names)))
            .hint(format!("free one, or raise {setting}; then run `walferry cutover` again"))
            .into())
    }

    /// Sequences, then all that [`crate::migrate::uncarried`] is about; `source` is a session that may write, and what
    /// takes long on the target ends by itself soon after the `deadline`.
    ///
    /// # Errors
    /// When either side refuses, or does not answer in time.
    pub(super) async fn carry_rest(
        &self,
        source: &SourceClient,
        again: Again,
        deadline: Instant,
    ) -> Result<Carried> {
        let target = self.migration.sides.target_client().await?;
        let sequences = sequences::carry(source, &target).await?;
        self.bring_up_to_date(again, deadline).await?;
        let mut warnings = self.mirror_partitions().await?;
        warnings.extend(self.dropped_and_kept().await?);
        warnings.extend(self.validate_again(deadline).await?);
        let missing = missing_sequences(&target, &sequences).await?;
        if !missing.is_empty() {
            warnings.push(format!("sequences that the target does not have: {}", first_names(&missing)));
        }
        if self.migration.contents.keyless == Keyless::Ignore {
            let tables = moved(&self.source_tables().await?, &self.migration.filter, &self.row.dbname);
            let ignored = tables.iter().filter(|table| is_ignored(table)).map(|table| table.name.to_string());
            let ignored: Vec<String> = ignored.collect();
            if !ignored.is_empty() {
                let names = first_names(&ignored);
                warnings.push(format!("tables whose updates and deletes are missing on the target: {names}"));
            }
        }
        let skipped = self.store().skipped_conflicts().await?;
        if skipped > 0 {
            warnings.push(format!(
                "changes that were left out by --on-conflict skip: {skipped}, see walferry.conflict"
            ));
        }
        Ok(Carried { sequences, warnings })
    }
}

impl Attempt<'_> {
    /// Brings what acts by its rows: the last thing before `done`, since it would act on a target that nobody may write to.
    /// Says whether there is anything.
    ///
    /// # Errors
    /// When either side refuses, or does not answer in time: a part may be there.
    pub(super) async fn bring_acting(&mut self) -> Result<bool> {
        let cutover = self.under_way();
        let (acting, deadline) = (std::mem::take(&mut cutover.acting), cutover.request_deadline());
        if acting.tables.is_empty() {
            return Ok(false);
        }
        self.copy_acting(acting, deadline).await.map(|()| true)
    }
}

/// Whether the stream has no updates and deletes of it.
fn is_ignored(table: &Table) -> bool {
    table.is_leaf() && table.is_followed() && !table.has_identity()
}

/// Those of the tables that the target does not have.
pub(super) async fn missing_tables(
    target: &TargetClient,
    tables: impl Iterator<Item = &Table>,
) -> Result<Vec<String>> {
    missing(target, tables.map(|table| Sql::default().name(&table.name).to_string()).collect()).await
}

async fn missing_sequences(target: &TargetClient, sequences: &SequenceValues) -> Result<Vec<String>> {
    let names = sequences.values.iter().map(|value| Sql::default().name(&value.name).to_string());
    missing(target, names.collect()).await
}

/// Those of the quoted names that the target does not have.
async fn missing(target: &TargetClient, names: Vec<String>) -> Result<Vec<String>> {
    let sql = "SELECT name FROM unnest($1::text[]) name WHERE to_regclass(name) IS NULL";
    let rows = target.query(sql, &[&names]).await;
    let rows = rows.map_err(|error| at_target("what it has", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn at_target(question: &'static str, error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(Side::Target, question, error).into()
}
