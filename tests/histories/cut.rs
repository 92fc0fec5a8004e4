//! Segments cut into batches, as the engine may cut them.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walferry::assemble::Segment;
use walferry::pg::EndLsn;

/// Where the batches begin and end.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// A batch for each transaction.
    Each,
    /// One batch for all.
    Whole,
    /// Every transaction of several changes in parts, of one change each where they are few.
    Parts,
    /// Anywhere, by this seed.
    Random(u64),
}

impl Cut {
    /// The segments of each batch: whole transactions, or one part of one.
    pub fn batches(self, segments: &[Segment]) -> Vec<Vec<Segment>> {
        let mut rng = StdRng::seed_from_u64(if let Self::Random(seed) = self { seed } else { 0 });
        // Transactions in parts, of a hundred; transactions of a batch, at most.
        let (in_parts, most) = match self {
            Self::Each => (0, 1),
            Self::Whole => (0, usize::MAX),
            Self::Parts => (100, 1),
            Self::Random(_) => {
                let most = [1, 4, 20, usize::MAX];
                ([0, 0, 5, 30][rng.random_range(0..4)], most[rng.random_range(0..4)])
            }
        };
        let mut batches: Vec<Vec<Segment>> = Vec::new();
        let mut room = 0;
        for segment in segments {
            let whole = segment.first && segment.end.is_some();
            if whole && segment.changes.len() > 1 && rng.random_range(0..100) < in_parts {
                let parts = if matches!(self, Self::Parts) { 16 } else { rng.random_range(2..5) };
                batches.extend(
                    split(segment, parts.min(segment.changes.len())).into_iter().map(|part| vec![part]),
                );
                room = 0;
                continue;
            }
            let copy = part(segment, 0..segment.changes.len(), segment.first, segment.end);
            match batches.last_mut().filter(|_| room > 0 && whole) {
                Some(batch) => batch.push(copy),
                None => {
                    batches.push(vec![copy]);
                    room = if most == usize::MAX { most } else { rng.random_range(1..=most) };
                }
            }
            room = if whole { room - 1 } else { 0 };
        }
        batches
    }
}

/// As a transaction comes that is too large to hold.
fn split(segment: &Segment, parts: usize) -> Vec<Segment> {
    let changes = segment.changes.len();
    let cuts = (0..parts).map(|n| n * changes / parts..(n + 1) * changes / parts);
    let end = |n| segment.end.filter(|_| n + 1 == parts);
    cuts.enumerate().map(|(n, range)| part(segment, range, n == 0, end(n))).collect()
}

fn part(segment: &Segment, range: std::ops::Range<usize>, first: bool, end: Option<EndLsn>) -> Segment {
    let changes = segment.changes[range].to_vec();
    let cost = segment.cost * changes.len() / segment.changes.len().max(1);
    let (xid, commit_lsn, commit_time) = (segment.xid, segment.commit_lsn, segment.commit_time);
    Segment { xid, commit_lsn, commit_time, ahead: false, comes_again: true, first, changes, cost, end }
}
