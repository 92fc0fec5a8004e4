//! Where a pipeline is.
//!
//! ```text
//! waiting ─▶ checking ─▶ schema ─▶ copying ─▶ indexing ─▶ catching_up ◀─▶ syncing ─▶ cutting_over ─▶ done
//!                                                                            ◀────────────┘
//!     any but done ─▶ failed, stopped          failed, stopped ─▶ the phase that the work goes on from
//! ```
//!
//! `walferry.migration` holds the phase that the work is in, and beside it what ended the last run: so a restart
//! goes on where it was, and `failed` and `stopped` are what is shown while nothing runs.

use std::fmt;
use std::str::FromStr;

/// A pipeline's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not begun.
    Waiting,
    /// Looking at both sides.
    Checking,
    /// Making the slot, the publications and the tables.
    Schema,
    /// Copying rows.
    Copying,
    /// Building indexes and constraints.
    Indexing,
    /// Applying what was written since the snapshot.
    CatchingUp,
    /// Following the source closely.
    Syncing,
    /// Handing over.
    CuttingOver,
    /// Handed over.
    Done,
    /// Ended by a failure.
    Failed,
    /// Ended on request.
    Stopped,
}

/// Text that is no phase's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown phase {0:?}")]
pub struct PhaseError(String);

impl Phase {
    /// All of them, in order.
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

    /// The name, as stored and shown.
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

    /// Whether the work may go from here to `next`. Staying is always legal.
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{
            CatchingUp, Checking, Copying, CuttingOver, Done, Failed, Indexing, Schema, Stopped, Syncing, Waiting,
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
            | (Indexing, CatchingUp)
            | (CatchingUp, Syncing)
            | (Syncing, CatchingUp | CuttingOver)
            | (CuttingOver, Done | Syncing) => true,
            _ => false,
        }
    }

    /// Whether `remove` leaves nothing half copied behind.
    pub const fn safe_to_remove(self) -> bool {
        matches!(self, Self::Syncing | Self::Done)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = PhaseError;

    fn from_str(text: &str) -> Result<Self, PhaseError> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| PhaseError(text.to_owned()))
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
        "....xx...xx", // indexing
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
    fn names_and_back() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
        assert_eq!("Syncing".parse::<Phase>(), Err(PhaseError("Syncing".to_owned())));
    }
}
