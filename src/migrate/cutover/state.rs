//! Where a cutover is, and what it does next: events in, one effect out. No clock, no connection.
//!
//! ```text
//!  Checking ─▶ Recording ─▶ Raising ─▶ Draining ─▶ Carrying ─▶ Proving ─▶ Ending ─▶ Concluding ─▶ Done
//!     │            │           │           │           │           │         │         │   │
//!     │            └───────────┴───────────┴─ Failed ──┴───────────┴─────────┴─────────┘   └─ AnswerLost ─▶ Unknown
//!     │                                         ▼
//!     └─ Failed ─▶ Answering ◀─ Lowered ─── Lowering
//!                      └─▶ Over
//! ```
//!
//! Each state asks for one effect, and holds what the steps before it have found. Whoever carries the effect out answers with
//! an event, or ends: then the next attempt begins with what the target holds ([`State::found`]).
//!
//! Whatever happens, and wherever it crashes, in the end the fence is down or `done` is recorded: never neither, never both
//! (`tests::histories`). Three rules bring that about:
//!
//! - The fence is recorded on the target before it is raised on the source. So whoever starts next finds it, and lowers it.
//! - While `done` may be recorded nothing is undone. Where the target's answer is lost, the next attempt reads what it holds;
//!   by then nothing of an earlier attempt can be recorded any more, since the target takes `done` from the latest one alone.
//! - Before the fence is lowered, whatever an earlier attempt has sent that would raise it is ended.

use super::record::{CutoverError, Fence};
use crate::catalog::SequenceValues;
use crate::pg::SourceLsn;

/// Where a cutover is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is changed yet: can it be done?
    Checking,
    /// What it takes to lower the fence is being recorded on the target.
    Recording(Fence),
    /// The fence is being raised on the source. Then transactions that have written there are waited for.
    Raising(Fence),
    /// What committed before a mark, which is made after the fence, is being applied.
    Draining(Fence),
    /// What replication does not carry is being brought up to date.
    Carrying(Drained),
    /// Was anything written after the mark?
    Proving(Carried),
    /// Nothing was: the stream is being ended.
    Ending(Drained),
    /// `done` is being recorded.
    Concluding(Fence),
    /// `done` is recorded, or it is not: the target's answer is lost.
    Unknown(Fence),
    /// The fence is being lowered.
    Lowering {
        /// What is lowered.
        fence: Fence,
        /// Why.
        error: CutoverError,
    },
    /// Why it came to nothing is being recorded. From then on the migration goes on following.
    Answering {
        /// Why.
        error: CutoverError,
        /// The source was fenced meanwhile, or may have been.
        fenced: bool,
    },
    /// Why it came to nothing is recorded.
    Over,
    /// `done` is recorded. The source stays fenced.
    Done,
}

/// All that committed before the mark is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// What keeps the source from being written to.
    pub fence: Fence,
    /// What commits from here on was written after the fence.
    pub mark: SourceLsn,
}

/// The rest was brought up to date, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// How far the stream was then.
    pub drained: Drained,
    /// Where the source's sequences stood.
    pub sequences: SequenceValues,
}

/// What was found, or has become of an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It can be done, with this fence.
    Checked(Fence),
    /// The target holds the fence's record, on its disk.
    Recorded,
    /// The fence stands, and nobody is left who has written before.
    Raised,
    /// The target has all that committed before this mark.
    Drained(SourceLsn),
    /// The rest was brought up to date; the source's sequences stand here.
    Carried(SequenceValues),
    /// Nothing was written after the mark.
    Proven,
    /// Nothing is applied any more, and still nothing was written.
    StreamEnded,
    /// The target has recorded what it was asked to: `done`, or why it came to nothing.
    Answered,
    /// The connection broke before the target said whether it has recorded `done`.
    AnswerLost,
    /// The fence is down.
    Lowered,
    /// A step failed or took too long, or somebody has changed their mind. Of `done`: the target refused to record it.
    Failed(CutoverError),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Look whether it can be done.
    Check,
    /// Record the fence on the target.
    Record(Fence),
    /// Raise it on the source.
    Raise(Fence),
    /// Make a mark in the source's WAL, and wait until the target has what is before it.
    Drain,
    /// Bring what replication does not carry.
    Carry,
    /// Look whether the fence stands, and whether anything was written after the mark.
    Prove {
        /// The fence.
        fence: Fence,
        /// Where the source's sequences stood when they were brought up to date.
        sequences: SequenceValues,
    },
    /// End the stream.
    EndStream,
    /// Record `done`.
    Conclude,
    /// Lower the fence.
    Lower(Fence),
    /// Record why it came to nothing.
    Answer(CutoverError),
    /// Nothing: it is over, or the next attempt has to find out.
    Nothing,
}

impl State {
    /// That of a cutover which an earlier attempt began and did not answer; `fence` is what the target has recorded of it.
    pub fn found(fence: Option<Fence>, error: CutoverError) -> Self {
        match fence {
            Some(fence) => Self::Lowering { fence, error },
            None => Self::Answering { error, fenced: false },
        }
    }

    /// What it waits for.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Checking => Effect::Check,
            Self::Recording(fence) => Effect::Record(fence.clone()),
            Self::Raising(fence) => Effect::Raise(fence.clone()),
            Self::Draining(_) => Effect::Drain,
            Self::Carrying(_) => Effect::Carry,
            Self::Proving(Carried { drained, sequences }) => {
                Effect::Prove { fence: drained.fence.clone(), sequences: sequences.clone() }
            }
            Self::Ending(_) => Effect::EndStream,
            Self::Concluding(_) => Effect::Conclude,
            Self::Lowering { fence, .. } => Effect::Lower(fence.clone()),
            Self::Answering { error, .. } => Effect::Answer(error.clone()),
            Self::Unknown(_) | Self::Over | Self::Done => Effect::Nothing,
        }
    }

    /// What comes next.
    ///
    /// # Panics
    /// On an event that the state's effect does not have.
    #[must_use]
    pub fn on(self, event: Event) -> Self {
        match (self, event) {
            (Self::Checking, Event::Checked(fence)) => Self::Recording(fence),
            (Self::Recording(fence), Event::Recorded) => Self::Raising(fence),
            (Self::Raising(fence), Event::Raised) => Self::Draining(fence),
            (Self::Draining(fence), Event::Drained(mark)) => Self::Carrying(Drained { fence, mark }),
            (Self::Carrying(drained), Event::Carried(sequences)) => {
                Self::Proving(Carried { drained, sequences })
            }
            (Self::Proving(carried), Event::Proven) => Self::Ending(carried.drained),
            (Self::Ending(drained), Event::StreamEnded) => Self::Concluding(drained.fence),
            (Self::Concluding(_), Event::Answered) => Self::Done,
            (Self::Concluding(fence), Event::AnswerLost) => Self::Unknown(fence),
            (Self::Lowering { error, .. }, Event::Lowered) => Self::Answering { error, fenced: true },
            (Self::Answering { .. }, Event::Answered) => Self::Over,
            (Self::Checking, Event::Failed(error)) => Self::Answering { error, fenced: false },
            (state, Event::Failed(error)) if state.may_fail() => {
                let fence = state.fence().expect("it has one from `Recording` on").clone();
                Self::Lowering { fence, error }
            }
            (state, event) => panic!("{event:?} in {state:?}"),
        }
    }

    /// The fence that stands on the source, or may.
    pub fn fence(&self) -> Option<&Fence> {
        match self {
            Self::Recording(fence) | Self::Raising(fence) | Self::Draining(fence) => Some(fence),
            Self::Carrying(drained) | Self::Ending(drained) => Some(&drained.fence),
            Self::Proving(carried) => Some(&carried.drained.fence),
            Self::Concluding(fence) | Self::Unknown(fence) | Self::Lowering { fence, .. } => Some(fence),
            Self::Checking | Self::Answering { .. } | Self::Over | Self::Done => None,
        }
    }

    /// What commits from here on was written after the fence.
    pub fn mark(&self) -> Option<SourceLsn> {
        match self {
            Self::Carrying(drained) | Self::Ending(drained) => Some(drained.mark),
            Self::Proving(carried) => Some(carried.drained.mark),
            Self::Checking | Self::Recording(_) | Self::Raising(_) | Self::Draining(_) => None,
            Self::Concluding(_) | Self::Unknown(_) | Self::Lowering { .. } => None,
            Self::Answering { .. } | Self::Over | Self::Done => None,
        }
    }

    /// Why it comes to nothing.
    pub fn error(&self) -> Option<&CutoverError> {
        match self {
            Self::Lowering { error, .. } | Self::Answering { error, .. } => Some(error),
            _ => None,
        }
    }

    /// When it is given up, of a request that is given up at `of_request`. What concludes or undoes it has bounds of its own.
    pub fn deadline<T>(&self, of_request: T) -> Option<T> {
        match self {
            Self::Checking | Self::Recording(_) | Self::Raising(_) | Self::Draining(_) => Some(of_request),
            Self::Carrying(_) | Self::Proving(_) | Self::Ending(_) => Some(of_request),
            Self::Concluding(_) | Self::Unknown(_) | Self::Lowering { .. } => None,
            Self::Answering { .. } | Self::Over | Self::Done => None,
        }
    }

    /// Whether a failure leads anywhere: what is undone already is undone to its end.
    pub fn may_fail(&self) -> bool {
        self.deadline(()).is_some() || matches!(self, Self::Concluding(_))
    }

    /// `done` is recorded, or may be: nothing may be undone.
    pub const fn may_be_done(&self) -> bool {
        matches!(self, Self::Concluding(_) | Self::Unknown(_) | Self::Done)
    }
}

#[cfg(test)]
mod tests;
