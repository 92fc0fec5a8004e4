//! Which moves from phase to phase are legal.
//!
//! ```text
//! waiting ─▶ checking ─▶ schema ─▶ copying ─▶ indexing ─▶ catching_up ◀─▶ syncing ◀─▶ cutting_over ─▶ done
//!                                               └─▶ done (method pg_dump: nothing is followed)
//!     any but done ─▶ failed, stopped          failed, stopped ─▶ the phase that the work goes on from
//! ```
//!
//! `walferry.migration.phase` holds the phase that the work is in, and `ended` how the last run ended: so a restart
//! goes on where it was, and `failed` and `stopped` are what is shown while nothing runs.

pub use crate::status::PhaseName as Phase;

/// Whether the work may go from one phase to another. Staying is always legal.
pub fn may_become(from: Phase, to: Phase) -> bool {
    use Phase::{
        CatchingUp, Checking, Copying, CuttingOver, Done, Failed, Indexing, Schema, Stopped, Syncing, Waiting,
    };
    match (from, to) {
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
pub const fn copies(phase: Phase) -> bool {
    matches!(phase, Phase::Schema | Phase::Copying | Phase::Indexing)
}

/// Whether `remove` leaves nothing half copied behind.
pub const fn safe_to_remove(phase: Phase) -> bool {
    matches!(phase, Phase::Syncing | Phase::Done)
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
                assert_eq!(may_become(from, to), legal == b'x', "{from} to {to}");
            }
        }
    }
}
