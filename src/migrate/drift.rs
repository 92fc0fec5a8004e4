//! What may change on the source's tables while a migration follows them.
//!
//! A table that loses its replica identity while it is published with updates makes the source reject its own UPDATE
//! and DELETE. It is taken out of that publication at once, before anything else is looked at or waited for: the source is
//! not to be harmed; and since its changes are missed from then on, the migration stops and says so. So it does when
//! somebody else took a table out of our publications, or changed these: what is published then is not all.
//!
//! A table whose changes were missed is recorded as one to be copied again: once it is published as before, the next
//! start does that. What happened and was undone between two looks is not seen.
//!
//! A table made later is not carried, one that is dropped stays on the target: the log says so, once.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::catalog::{self, SourceClient, Table, TableKind};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::{IDENTITIES_INTERVAL, IDENTITIES_PAUSE, IDENTITY_LOCK_TIMEOUT};
use crate::pg::{Oid, QualifiedName, Sql};
use crate::store::{RelationRow, Store};

use super::attempt::Attempt;
use super::filter::moved;
use super::pairing::{Listed, Recorded};
use super::publications::{self, Altered};

impl Attempt<'_> {
    /// Looks, and acts; gives the tables as they are. One that is to be copied again ends what is `following` already.
    pub(super) async fn look_at_source_tables(&mut self, following: bool) -> Result<Vec<Table>> {
        self.refuse_lost_identities().await?;
        let store = self.store();
        let (tables, relations) = tokio::try_join!(self.source_tables(), store.relations())?;
        // One that is followed already is meant, whatever it is called by now.
        let (migration, dbname) = (self.migration, &self.row.dbname);
        let moved = moved(&tables, &migration.filter, dbname);
        let moved: HashSet<Oid> = moved.iter().map(|table| table.oid).collect();
        let recorded = Recorded::new(&relations);
        let meant = |table: &Table| moved.contains(&table.oid) || recorded.of(table).is_some();
        let tables: Vec<Table> = tables.into_iter().filter(meant).collect();
        self.tell_of_made(&tables, &recorded);
        self.tell_of_dropped(&tables, &relations).await?;
        self.refuse_altered_publications(&tables, &recorded).await?;
        let interrupted = self.refuse_interrupted(&tables, &recorded).await?;
        if following && let Some(first) = interrupted.first() {
            self.again = true;
            let cause = format!("table {first} was not published for a while: it is copied again first");
            return Err(Transient::new(Side::Source, cause).into());
        }
        Ok(tables)
    }

    fn tell_of_made(&mut self, tables: &[Table], recorded: &Recorded<'_>) {
        for table in tables.iter().filter(|table| table.kind == TableKind::Plain) {
            // One that is not followed may be made anew: it is copied again at the end in any case.
            let anew = || recorded.named(&table.name).is_some_and(|_| !table.is_followed());
            // A new partition is taken in.
            if table.partition_of.is_some() {
                continue;
            }
            let carried = recorded.of(table).is_some() || anew();
            if !carried && self.told.insert(table.name.clone()) {
                tracing::warn!(table = %table.name, "made on the source after the copy began: it is not carried");
            }
        }
    }

    async fn tell_of_dropped(&mut self, tables: &[Table], relations: &[RelationRow]) -> Result<()> {
        let of_source = Listed::new(tables);
        let gone = relations.iter().filter(|row| of_source.of(row).is_none()).map(|row| &row.name);
        let gone: Vec<&QualifiedName> = gone.filter(|name| !self.told.contains(name)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let dropped = self.dropped_too().await?;
        for table in gone {
            if dropped.contains(table) {
                tracing::info!(%table, "dropped on the source: the target drops it, too, when all before that is applied");
            } else {
                tracing::warn!(%table, "dropped on the source: the target keeps it");
            }
            self.told.insert(table.clone());
        }
        Ok(())
    }

    /// Takes tables out of the publication for which the source rejects its own writes, and ends with that. It needs no
    /// more than the session that is there, and comes before all else.
    pub(super) async fn refuse_lost_identities(&self) -> Result<()> {
        let lost =
            Identities { source: &self.source, store: self.store(), publication: &self.row.publications[0] };
        lost.refuse(None).await
    }

    /// The same, again and again, for as long as the stream goes on: whoever holds a lock on such a table is waited for
    /// in short turns, since others ask on this session. Ends with a failure alone.
    pub(super) fn watch_identities(&self) -> impl Future<Output = Failure> + Send + use<> {
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let (name, publication) = (self.row.name.clone(), self.row.publications[0].clone());
        async move {
            let store = Store::new(&target, &name);
            let watched = Identities { source: &source, store, publication: &publication };
            let mut pause = IDENTITIES_INTERVAL;
            loop {
                sleep(pause).await;
                let began = Instant::now();
                pause = IDENTITIES_INTERVAL;
                match watched.refuse(Some(IDENTITY_LOCK_TIMEOUT)).await {
                    Ok(()) => pause = pause.max(began.elapsed() * IDENTITIES_PAUSE),
                    // A source that does not answer is noticed elsewhere.
                    Err(Failure::Transient(_)) => {}
                    Err(failure) => return failure,
                }
            }
        }
    }

    /// What a cutover says of tables that the source has dropped and the target keeps, but for partitions.
    pub(super) async fn dropped_and_kept(&self) -> Result<Vec<String>> {
        let of_source = catalog::tables_by_id(&self.source).await?;
        let there = catalog::tables_unsized(&self.target).await?;
        let there: HashSet<QualifiedName> =
            there.into_iter().filter(|table| table.bounds.is_none()).map(|table| table.name).collect();
        let relations = self.store().relations().await?;
        let gone = |row: &&RelationRow| match row.origin {
            Some(origin) => !of_source.contains_key(&Oid::new(origin.id.get())),
            None => !of_source.values().any(|name| *name == row.name),
        };
        let kept = relations.iter().filter(gone).filter(|row| there.contains(&row.name));
        Ok(kept
            .map(|row| format!("table {} was dropped on the source: the target keeps it", row.name))
            .collect())
    }

    /// Tables that are not published any more, and publications that are not what they were.
    async fn refuse_altered_publications(&self, tables: &[Table], recorded: &Recorded<'_>) -> Result<()> {
        let names = &self.row.publications;
        let (altered, members) = tokio::try_join!(
            publications::altered(&self.source, names),
            publications::members(&self.source, names),
        )?;
        let logged = |table: &&Table| table.kind == TableKind::Plain && table.is_followed();
        let followed = tables.iter().filter(logged).filter(|table| recorded.of(table).is_some());
        let missing: Vec<&Table> = followed.filter(|table| !members.contains(&table.name)).collect();
        let mut affected: Vec<QualifiedName> = missing.iter().map(|table| table.name.clone()).collect();
        affected.extend(altered.iter().flat_map(|altered| altered.tables.iter().cloned()));
        self.copy_again(&affected, tables, recorded).await?;
        if let Some(altered) = altered.into_iter().next() {
            return Err(changed(altered).into());
        }
        let Some(first) = missing.first() else { return self.refuse_others(tables, recorded, &members) };
        let add = missing.iter().map(|table| {
            let name = &names[usize::from(!table.has_identity())];
            Sql::new("ALTER PUBLICATION ").ident(name).text(" ADD TABLE ONLY ").name(&table.name)
        });
        Err(Definite::new(format!("table {} is no longer in the migration's publications", first.name))
            .detail(format!("its changes are missed; tables that are not published: {}", listed(&missing)))
            .hint(format!(
                "on the source run: {}; then run `walferry migrate` again: it copies them again and goes on",
                joined(add)
            ))
            .into())
    }

    /// A table that has the name of a followed one, and is another: dropped and made again, or swapped.
    fn refuse_others(
        &self,
        tables: &[Table],
        recorded: &Recorded<'_>,
        members: &HashSet<QualifiedName>,
    ) -> Result<()> {
        let other = tables.iter().find(|table| {
            table.kind == TableKind::Plain
                && table.is_followed()
                && table.partition_of.is_none()
                && recorded.named(&table.name).is_some_and(|row| !is_row_of(row, table))
                && !members.contains(&table.name)
                && recorded.of(table).is_none()
        });
        let Some(table) = other else { return Ok(()) };
        let name = &self.row.publications[usize::from(!table.has_identity())];
        let add = Sql::new("ALTER PUBLICATION ").ident(name).text(" ADD TABLE ONLY ").name(&table.name);
        Err(Definite::new(format!(
            "table {} of the source is another than the one that was copied",
            table.name
        ))
        .detail("it was dropped and made again, or another was renamed to it; its changes are not published")
        .hint(format!("on the source run: {add}; then run `walferry migrate` again"))
        .into())
    }

    /// Records that the tables, and for partitioned ones their partitions, are to be copied again.
    async fn copy_again(
        &self,
        affected: &[QualifiedName],
        tables: &[Table],
        recorded: &Recorded<'_>,
    ) -> Result<()> {
        let affected: HashSet<&QualifiedName> = affected.iter().collect();
        for table in tables {
            let root = table.partition_of.as_ref().is_some_and(|root| affected.contains(root));
            if !root && !affected.contains(&table.name) {
                continue;
            }
            if let Some(row) = recorded.of(table) {
                self.store().copy_again(&row.name).await?;
            }
        }
        Ok(())
    }
}

/// What is published with updates.
struct Identities<'a> {
    source: &'a SourceClient,
    store: Store<'a>,
    publication: &'a String,
}

impl Identities<'_> {
    async fn refuse(&self, patience: Option<Duration>) -> Result<()> {
        let Self { source, store, publication } = self;
        let lost = catalog::unidentified(source, publication).await?;
        let Some(first) = lost.first() else { return Ok(()) };
        for table in &lost {
            let sql = Sql::new("SET LOCAL lock_timeout = ");
            let sql =
                sql.number(patience.map_or(0, |patience| i64::try_from(patience.as_millis()).unwrap_or(0)));
            let sql =
                sql.text("; ALTER PUBLICATION ").ident(publication).text(" DROP TABLE ").name(&table.name);
            self.source.batch_execute(sql.as_str()).await.map_err(failure)?;
        }
        // What was missed is copied again. Killed before this is written, the next start finds them unpublished.
        let ids: HashSet<u32> =
            lost.iter().flat_map(|table| table.tables.iter().map(|oid| oid.get())).collect();
        for row in store.relations().await? {
            let lost = match row.origin {
                Some(origin) => ids.contains(&origin.id.get()),
                None => lost.iter().any(|table| table.name == row.name),
            };
            if lost {
                store.copy_again(&row.name).await?;
            }
        }
        let names: Vec<String> = lost.iter().map(|table| table.name.to_string()).collect();
        let add = lost.iter().map(|table| {
            Sql::new("ALTER PUBLICATION ").ident(publication).text(" ADD TABLE ONLY ").name(&table.name)
        });
        Err(Definite::new(format!("table {} lost its replica identity on the source", first.name))
            .detail(format!(
                "taken out of publication {publication}, so that the source can go on writing: {}",
                names.join(", ")
            ))
            .hint(format!(
                "its changes are no longer carried; give it one again, on the source run: {}; then run `walferry \
                 migrate` again: it copies the table again and goes on",
                joined(add)
            ))
            .into())
    }
}

/// Whether the row is that of the table, whatever it is called now.
pub(super) fn is_row_of(row: &RelationRow, table: &Table) -> bool {
    row.origin.map_or_else(|| row.name == table.name, |origin| origin.id.get() == table.oid.get())
}

fn changed(altered: Altered) -> Definite {
    let Altered { publication, what, tables, mend } = altered;
    let cause = Definite::new(format!("publication {publication} of the source {what}"));
    if mend.is_empty() {
        return cause
            .detail("changes are missed from then on")
            .hint("start afresh after `walferry remove --force`");
    }
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    cause.detail(format!("changes of these tables are missed from then on: {}", names.join(", "))).hint(format!(
        "on the source run: {}; then run `walferry migrate` again: it copies these tables again and goes on",
        joined(mend)
    ))
}

fn joined(statements: impl IntoIterator<Item = Sql>) -> String {
    let statements: Vec<String> = statements.into_iter().map(|sql| sql.to_string()).collect();
    statements.join("; ")
}

fn listed(tables: &[&Table]) -> String {
    let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
    names.join(", ")
}

fn failure(error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(Side::Source, "the published tables", error).into()
}
