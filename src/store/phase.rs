//! The phases of a migration, and which moves between them are legal.
//!
//! `walferry.migration.phase` holds the phase that the work is in, and `ended` how the last run ended: so a restart
//! goes on where it was, and `failed` and `stopped` are what is shown while nothing runs.

use std::fmt;

use super::{MigrationRow, Store, damaged, failure, forgotten};
use crate::error::{Failure, Result, Side, Transient};

/// Where the work on one database is.
///
/// ```text
/// waiting ─▶ checking ─▶ schema ─▶ copying ─▶ indexing ─▶ catching_up ◀─▶ syncing ◀─▶ cutting_over ─▶ done
///                                               └─▶ done (method pg_dump: nothing is followed)
///     any but done ─▶ failed, stopped          failed, stopped ─▶ the phase that the work goes on from
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not begun.
    Waiting,
    /// Looks at both sides.
    Checking,
    /// Makes the tables.
    Schema,
    /// Copies what is there.
    Copying,
    /// Makes indexes and constraints.
    Indexing,
    /// Applies what happened meanwhile.
    CatchingUp,
    /// Follows the source.
    Syncing,
    /// Ends the source's writes and applies the last of them.
    CuttingOver,
    /// Cut over.
    Done,
    /// Stopped by an error that somebody must act on: shown, and not stored.
    Failed,
    /// Stopped by somebody: shown, and not stored.
    Stopped,
}

/// How a run ended without an end of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// By an error that somebody must act on.
    Failed,
    /// By somebody.
    Stopped,
}

/// The phase that a run has its migration in. Nothing changes it but a legal move that the target has taken down:
/// [`Store::enter`], [`Store::answer`](super::Store::answer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurrentPhase {
    phase: Phase,
    attempt: i64,
}

/// What a statement needs that makes a move: where from, where to, and the number of the run.
pub(super) struct PhaseStep {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) attempt: i64,
}

impl Phase {
    /// All phases, in the order in which a pipeline passes through them; then the two that end it early.
    pub const ALL: [Self; 11] = [
        Self::Waiting,
        Self::Checking,
        Self::Schema,
        Self::Copying,
        Self::Indexing,
        Self::CatchingUp,
        Self::Syncing,
        Self::CuttingOver,
        Self::Done,
        Self::Failed,
        Self::Stopped,
    ];

    /// The name that is stored, shown and exported.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Checking => "checking",
            Self::Schema => "schema",
            Self::Copying => "copying",
            Self::Indexing => "indexing",
            Self::CatchingUp => "catching_up",
            Self::Syncing => "syncing",
            Self::CuttingOver => "cutting_over",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// The phase with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name)
    }

    pub(super) fn parse(name: &str) -> Result<Self> {
        Self::from_name(name)
            .ok_or_else(|| damaged(format!("walferry.migration holds the unknown phase {name:?}")))
    }

    /// Whether the work may go from this phase to `next`. Staying is always legal.
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{
            CatchingUp, Checking, Copying, CuttingOver, Done, Failed, Indexing, Schema, Stopped, Syncing,
            Waiting,
        };
        match (self, next) {
            (from, to) if from == to => true,
            (Done, _) => false,
            (_, Failed | Stopped) => true,
            (Failed | Stopped, to) => to != Done,
            (Waiting, Checking)
            | (Checking, Schema)
            | (Schema, Copying)
            | (Copying, Indexing)
            | (Indexing, CatchingUp | Done)
            | (CatchingUp, Syncing)
            | (Syncing, CatchingUp | CuttingOver)
            | (CuttingOver, Done | Syncing) => true,
            _ => false,
        }
    }

    /// Whether rows are still to be copied, or what comes right after them.
    pub const fn copies(self) -> bool {
        matches!(self, Self::Schema | Self::Copying | Self::Indexing)
    }

    /// Whether `remove` leaves nothing half copied behind.
    pub const fn is_safe_to_remove(self) -> bool {
        matches!(self, Self::Syncing | Self::Done)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl RunEnd {
    /// As stored: empty while a run is at work, or when it was killed.
    pub(super) const fn name_of(end: Option<Self>) -> &'static str {
        match end {
            Some(end) => end.phase().as_str(),
            None => "",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Option<Self>> {
        [None, Some(Self::Failed), Some(Self::Stopped)]
            .into_iter()
            .find(|end| Self::name_of(*end) == name)
            .ok_or_else(|| damaged(format!("walferry.migration holds the unknown end {name:?} of a run")))
    }

    /// What is shown of the migration.
    pub const fn phase(self) -> Phase {
        match self {
            Self::Failed => Phase::Failed,
            Self::Stopped => Phase::Stopped,
        }
    }
}

impl CurrentPhase {
    /// As recorded, for the run of this number.
    pub const fn of(row: &MigrationRow, attempt: i64) -> Self {
        Self { phase: row.phase, attempt }
    }

    /// Which one it is.
    pub const fn get(self) -> Phase {
        self.phase
    }

    pub(super) fn step(self, next: Phase) -> PhaseStep {
        assert!(self.phase.may_become(next), "{} cannot become {next}", self.phase);
        PhaseStep { from: self.phase.as_str(), to: next.as_str(), attempt: self.attempt }
    }

    pub(super) fn stepped(&mut self, next: Phase) {
        self.phase = next;
    }
}

impl Store<'_> {
    /// Moves to the phase `next`, on the target first. Where that is done already, an answer of the target was lost.
    ///
    /// # Panics
    /// When the move is not legal.
    ///
    /// # Errors
    /// When the target does not answer; and where a later run has begun, or the phase is not the one that this run left.
    pub async fn enter(&self, phase: &mut CurrentPhase, next: Phase) -> Result<()> {
        let PhaseStep { from, to, attempt } = phase.step(next);
        let sql = "UPDATE walferry.migration SET phase = $3, updated_at = pg_catalog.clock_timestamp()
                   WHERE name = $1 AND phase IN ($2, $3) AND attempt = $4";
        let moved = self.client.execute(sql, &[&self.name, &from, &to, &attempt]).await.map_err(failure)?;
        if moved == 0 {
            return Err(self.overtaken().await);
        }
        phase.stepped(next);
        Ok(())
    }

    /// Why a move found nothing to move.
    pub(super) async fn overtaken(&self) -> Failure {
        match self.migration().await {
            Err(failure) => failure,
            Ok(None) => forgotten("walferry.migration has no row for it").into(),
            Ok(Some(row)) => Transient::new(Side::Target, "a later attempt of this migration has begun")
                .detail(format!(
                    "walferry.migration has the phase {}, which this run did not enter",
                    row.phase
                ))
                .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row for each phase, a column for each next one, both in the order of `ALL`.
    const LEGAL: [&str; 11] = [
        "xx.......xx", // waiting
        ".xx......xx", // checking
        "..xx.....xx", // schema
        "...xx....xx", // copying
        "....xx..xxx", // indexing
        ".....xx..xx", // catching_up
        ".....xxx.xx", // syncing
        "......xxxxx", // cutting_over
        "........x..", // done
        "xxxxxxxx.xx", // failed
        "xxxxxxxx.xx", // stopped
    ];

    #[test]
    fn legal_moves() {
        for (from, row) in Phase::ALL.into_iter().zip(LEGAL) {
            for (to, legal) in Phase::ALL.into_iter().zip(row.bytes()) {
                assert_eq!(from.may_become(to), legal == b'x', "{from} to {to}");
            }
        }
    }

    #[test]
    fn how_a_run_ended_is_read_again() {
        for end in [None, Some(RunEnd::Failed), Some(RunEnd::Stopped)] {
            assert_eq!(RunEnd::parse(RunEnd::name_of(end)), Ok(end));
        }
        assert!(RunEnd::parse("syncing").is_err());
    }
}
