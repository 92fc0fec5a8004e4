//! A batch with changes that do not fit the target's rows, applied in the source's order.
//!
//! ```text
//!   SAVEPOINT, steps ──▶ all fit ──▶ RELEASE, the next ones
//!        ▲     └──▶ one does not ──▶ ROLLBACK TO, those before it again
//!        │                            └──▶ it alone ──▶ the policy ──▶ stop: the change and both rows, for an error
//!        └──────── walferry.conflict, in the same transaction ◀──────── source-wins, skip
//! ```
//!
//! | what does not fit | source-wins | skip |
//! |---|---|---|
//! | an insert that finds a row with its key | overwrites it | left out |
//! | an update that finds no row | inserts the new row, or overwrites the one with its new key; stops where a value was not sent | left out |
//! | an update whose new key another row has | deletes that one first | left out |
//! | a delete that finds no row | is done | left out |
//! | another row has its value in another unique index | stops: to delete that one would be a guess | left out |
//! | a value or row that the target refuses | stops | left out |
//! | several rows touched instead of one | stops | left out |
//! | TRUNCATE refused, or anything that is not about rows | stops | stops |
//!
//! No policy is asked where nobody did wrong: of a table without replica identity the source sends no deletes and updates,
//! so a row that is long gone there may be in the way of an insert. That is left out, and not recorded, since there may
//! be many; the table is copied again at cutover.

use crate::catalog;
use crate::config::OnConflict;
use crate::error::Result;
use crate::limits::PIPELINE_EXECUTES_MAX;
use crate::pg::{QualifiedName, ReplicaIdentity, Sql};
use crate::plan::{Batch, Form, Kind, NamedValues, Reason, Resolver, Step, Which};
use crate::wire::ServerError;

use super::conflict::{Conflict, ConflictKind, Resolution};
use super::failure::{not_altered, target_failed};
use super::{Applied, Applier, ApplyError, Done, Stopped};

/// A step that does not fit.
struct Misfit {
    /// Its place among those that were tried.
    place: usize,
    why: Why,
}

enum Why {
    /// It touched so many rows.
    Rows(u64),
    Refused(Box<ServerError>),
}

impl Why {
    fn conflict(&self, step: &Step) -> Conflict {
        match self {
            Self::Rows(rows) => Conflict::row_count(step, *rows),
            Self::Refused(error) => Conflict::refused(step, error),
        }
    }
}

impl Applied {
    /// Counts a change that did not fit.
    fn count(&mut self, step: &Step, kind: ConflictKind, resolution: Resolution) {
        let index = ConflictKind::ALL.iter().position(|known| *known == kind);
        self.conflicts[index.expect("all kinds are there")] += 1;
        if resolution == Resolution::Skipped {
            self.changes[step.kind as usize] -= 1;
        }
    }
}

impl Applier {
    /// Applies a batch that was rolled back, since a change of it does not fit.
    pub(super) async fn resolve(&mut self, batch: Batch) -> Result<Done, ApplyError> {
        self.replanned += 1;
        let planned = self.plan(&batch.segments, Form::Traced).await?;
        if let Some(stopped) = planned.stopped {
            return Err(stopped.into());
        }
        let mut applied = Applied { ordered: Some(Reason::Failed), ..Applied::of(&batch, &planned.plan) };
        self.pipeline.clear();
        self.push_begin(&batch)?;
        self.run_own().await?;
        let steps = &planned.plan.steps;
        // Few after one that did not fit, since the next one may not either.
        let (mut next, mut length) = (0, PIPELINE_EXECUTES_MAX);
        let mut count = 0_u64;
        while next < steps.len() {
            let tried = &steps[next..steps.len().min(next + length)];
            match self.attempt(tried).await? {
                None => (next, length) = (next + tried.len(), PIPELINE_EXECUTES_MAX.min(length * 2)),
                Some(Misfit { place: 0, why }) => {
                    if self.comes_with_its_table(&tried[0], &why) {
                        self.leave_to_cutover(&tried[0], &why, &mut applied);
                    } else {
                        self.settle(&tried[0], &why, &mut applied).await?;
                        count += 1;
                    }
                    (next, length) = (next + 1, 1);
                }
                Some(misfit) => length = misfit.place,
            }
        }
        if count > 0 {
            let policy = self.options.on_conflict.as_str();
            tracing::warn!(
                count,
                policy,
                "changes did not fit the target's rows: walferry.conflict has them"
            );
        }
        match self.finish(&batch).await {
            Ok(written) => Ok(Done::Applied { batch, applied, written }),
            Err(Stopped::Other(error)) => Err(error),
            Err(Stopped::Step(_)) => unreachable!("no step is among what comes at the end"),
        }
    }

    /// Executes steps; where one does not fit, none of them was.
    async fn attempt(&mut self, steps: &[Step]) -> Result<Option<Misfit>> {
        self.pipeline.clear();
        self.push_attempt()?;
        for step in steps {
            self.push_step(step)?;
        }
        let misfit = match self.target.session().run(&mut self.pipeline).await {
            Ok(outcome) => {
                let mut counts = steps.iter().zip(outcome.affected.iter().skip(1)).enumerate();
                let wrong = |(_, (step, rows)): &(usize, (&Step, &u64))| {
                    step.rows.is_some_and(|wanted| wanted != **rows)
                };
                counts.find(wrong).map(|(place, (_, rows))| Misfit { place, why: Why::Rows(*rows) })
            }
            Err(error) => {
                let place = error.execute.and_then(|execute| execute.checked_sub(1));
                let step = place.and_then(|place| Some((place, steps.get(place)?)));
                match (step, error.error.server()) {
                    (Some((_, step)), Some(server))
                        if step.kind == Kind::Alter && !server.is_of_the_server() =>
                    {
                        return Err(not_altered(step, server));
                    }
                    (Some((place, _)), Some(server)) if !server.is_of_the_server() => {
                        Some(Misfit { place, why: Why::Refused(Box::new(server.clone())) })
                    }
                    _ => return Err(self.failed_around_steps(error.error)),
                }
            }
        };
        match misfit {
            None => self.keep_attempt().await?,
            Some(_) => self.undo_attempt().await?,
        }
        Ok(misfit)
    }

    async fn keep_attempt(&mut self) -> Result<()> {
        self.pipeline.clear();
        self.push_keep()?;
        self.run_own().await
    }

    async fn undo_attempt(&mut self) -> Result<()> {
        // What was parsed after a failure was not.
        let back =
            "ROLLBACK TO SAVEPOINT walferry_attempt; RELEASE SAVEPOINT walferry_attempt; DEALLOCATE ALL";
        self.clean(Sql::new(back)).await
    }

    /// Whether it is an insert of a table whose deletes and updates are not sent, and a row of that table is in its way.
    fn comes_with_its_table(&self, step: &Step, why: &Why) -> bool {
        let Why::Refused(error) = why else { return false };
        let relation = &step.relation;
        let identified =
            relation.identity == ReplicaIdentity::Full || relation.columns.iter().any(|column| column.key);
        // What is announced of a key with a generated column is a part of it.
        let identified = identified && !self.inserts_only.contains(&relation.id);
        // A trigger's row in another table is not copied with this one.
        let named = error.schema().zip(error.table());
        let own = self
            .planner
            .table(relation.id)
            .is_some_and(|table| named == Some((table.name.schema.as_str(), table.name.name.as_str())));
        self.options.keyless_copied_again
            && step.kind == Kind::Insert
            && !identified
            && own
            && matches!(error.sqlstate(), UNIQUE_VIOLATION | EXCLUSION_VIOLATION)
    }

    fn leave_to_cutover(&mut self, step: &Step, why: &Why, applied: &mut Applied) {
        applied.count(step, why.conflict(step).kind, Resolution::Skipped);
        if self.left_out.insert(step.relation.id) {
            tracing::warn!(
                table = %step.relation.name,
                "without replica identity, so rows that are gone on the source are in the way of new ones: these are left \
                 out until the table is copied again at cutover"
            );
        }
    }

    /// Does with a change that does not fit what the policy says.
    async fn settle(&mut self, step: &Step, why: &Why, applied: &mut Applied) -> Result<(), ApplyError> {
        let mut conflict = why.conflict(step);
        let by_key = self.describe(step, why, &mut conflict).await?;
        let policy = self.options.on_conflict;
        let resolution = match policy {
            OnConflict::Stop => return Err(conflict.into()),
            OnConflict::Skip if is_about_rows(step, why) => Resolution::Skipped,
            OnConflict::Skip => {
                return Err(conflict.unresolved(policy, "it is not about this row alone").into());
            }
            OnConflict::SourceWins => match self.let_the_source_win(step, conflict.kind, by_key).await? {
                Ok(()) => Resolution::SourceWon,
                Err(why) => return Err(conflict.unresolved(policy, &why).into()),
            },
        };
        applied.count(step, conflict.kind, resolution);
        self.pipeline.clear();
        self.push_conflict(&conflict, resolution)?;
        Ok(self.run_own().await?)
    }

    /// Adds key and rows. Says whether the target's row was found by the change's own key.
    async fn describe(&mut self, step: &Step, why: &Why, conflict: &mut Conflict) -> Result<bool> {
        let Some(resolver) = self.planner.resolver(step) else { return Ok(false) };
        let which = match conflict.kind {
            ConflictKind::InsertExists => Which::New,
            ConflictKind::UpdateMissing if resolver.changes_key() => Which::New,
            _ if step.kind == Kind::Insert => Which::New,
            _ => Which::Old,
        };
        let key = resolver.key(if step.kind == Kind::Insert { Which::New } else { Which::Old });
        conflict.is_of(&key, &resolver.row());
        // An update that keeps its key finds its own row by it, which is in nobody's way.
        let own = step.kind == Kind::Update && !resolver.changes_key();
        let exists = conflict.kind == ConflictKind::InsertExists;
        let look = if own && exists { None } else { resolver.look_up(which) };
        let mut found = self.look(look).await?;
        let by_key = found.is_some();
        if let (None, Why::Refused(error), true) = (&found, why, exists) {
            found = self.look_by_index(step, error).await?;
        }
        conflict.found(found.as_ref());
        Ok(by_key)
    }

    /// The row that has a value of another unique index than the key.
    async fn look_by_index(&mut self, step: &Step, error: &ServerError) -> Result<Option<NamedValues>> {
        let (Some(schema), Some(table), Some(index)) = (error.schema(), error.table(), error.constraint())
        else {
            return Ok(None);
        };
        let index = QualifiedName::new(schema, index);
        let columns = catalog::index_columns(&self.tables.target, &index, table).await?;
        let look = self.planner.resolver(step).and_then(|resolver| resolver.look_up_by(&columns));
        self.look(look).await
    }

    async fn look(&mut self, look: Option<(Step, Vec<String>)>) -> Result<Option<NamedValues>> {
        let Some((step, columns)) = look else { return Ok(None) };
        self.pipeline.clear();
        self.push_attempt()?;
        self.push_once(&step)?;
        let outcome = match self.target.session().run(&mut self.pipeline).await {
            Ok(outcome) => outcome,
            // What the target refuses to take it refuses to look for, too.
            Err(error) if error.error.server().is_some_and(|server| !server.is_of_the_server()) => {
                self.undo_attempt().await?;
                return Ok(None);
            }
            Err(error) => return Err(target_failed(error.error)),
        };
        self.keep_attempt().await?;
        let row = outcome.rows.into_iter().next().map(|(_, row)| row);
        Ok(row.map(|row| {
            columns.into_iter().enumerate().map(|(place, name)| (name, row.bytes(place).cloned())).collect()
        }))
    }

    /// Makes the target's row what the source has; says why not.
    async fn let_the_source_win(
        &mut self,
        step: &Step,
        kind: ConflictKind,
        found_by_key: bool,
    ) -> Result<Result<(), String>> {
        let Some(mut resolver) = self.planner.resolver(step) else {
            return Ok(Err("it is not about one row".to_owned()));
        };
        let steps = match remedy(&mut resolver, step, kind, found_by_key) {
            Ok(steps) => steps,
            Err(why) => return Ok(Err(why.to_owned())),
        };
        for remedy in steps {
            if let Some(misfit) = self.attempt(std::slice::from_ref(&remedy)).await? {
                let again = misfit.why.conflict(&remedy);
                return Ok(Err(format!("the source's row does not fit either: {}", again.detail())));
            }
        }
        Ok(Ok(()))
    }

    async fn run_own(&mut self) -> Result<()> {
        match self.target.session().run(&mut self.pipeline).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed_around_steps(error.error)),
        }
    }
}

/// The steps by which the source's row wins, or why there are none.
fn remedy(
    resolver: &mut Resolver<'_>,
    step: &Step,
    kind: ConflictKind,
    found_by_key: bool,
) -> Result<Vec<Step>, &'static str> {
    let incomplete = "a large value that did not change was not sent, so the row cannot be made anew; have the table \
                      copied again: `walferry resync`";
    match (step.kind, kind) {
        (Kind::Delete, ConflictKind::DeleteMissing) => Ok(Vec::new()),
        (Kind::Insert, ConflictKind::InsertExists) | (Kind::Update, ConflictKind::UpdateMissing)
            if found_by_key =>
        {
            resolver.overwrite().map(|step| vec![step]).ok_or(incomplete)
        }
        (Kind::Update, ConflictKind::UpdateMissing) => {
            resolver.insert().map(|step| vec![step]).ok_or(incomplete)
        }
        (Kind::Update, ConflictKind::InsertExists) if found_by_key => {
            Ok(resolver.make_room().into_iter().chain([step.clone()]).collect())
        }
        (_, ConflictKind::InsertExists) => Err(ANOTHER_ROW),
        (_, ConflictKind::MultipleRows) => Err("which row is meant is not known"),
        _ => Err("the target refuses the source's row"),
    }
}

const UNIQUE_VIOLATION: &str = "23505";
const EXCLUSION_VIOLATION: &str = "23P01";

const ANOTHER_ROW: &str =
    "another row has the value in a unique index, and to delete that one would be a guess";

/// Whether leaving the change out leaves out no more than its row: the target refuses a value or a row, not a table.
fn is_about_rows(step: &Step, why: &Why) -> bool {
    let about_rows = match why {
        Why::Rows(_) => true,
        // Values, constraints, and triggers that raise.
        Why::Refused(error) => matches!(error.class(), "22" | "23" | "P0"),
    };
    about_rows && step.change.is_some()
}
