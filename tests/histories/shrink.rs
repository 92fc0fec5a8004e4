//! A failing history without what its failure does not need.

use std::ops::Range;

use crate::cut::Cut;
use crate::generate::History;
use crate::world::{Tally, World};

/// Tries that are made, each of some hundred milliseconds.
const TRIES: usize = 300;

/// Leaves out transactions, then statements, then savepoints, as long as it still fails.
pub async fn shrink(
    world: &mut World,
    history: History,
    cuts: [Cut; 2],
    failure: String,
) -> (History, [Cut; 2], String) {
    let (mut least, mut tries) = ((history, cuts, failure), 0);
    // A cut that is simple to tell, if it fails as well.
    for cut in [Cut::Whole, Cut::Each, Cut::Parts] {
        if let Err(failure) = world.check(&least.0, [cut; 2], &mut Tally::new()).await {
            (least.1, least.2) = ([cut; 2], failure);
            break;
        }
    }
    for part in [Part::Transactions, Part::Steps] {
        let mut size = part.count(&least.0).div_ceil(2);
        while size > 0 && tries < TRIES {
            let (mut from, mut smaller) = (0, false);
            while from < part.count(&least.0) && tries < TRIES {
                let candidate = part.without(&least.0, from..from + size);
                tries += 1;
                match world.check(&candidate, least.1, &mut Tally::new()).await {
                    Ok(()) => from += size,
                    Err(failure) => (least.0, least.2, smaller) = (candidate, failure, true),
                }
            }
            if !smaller || size > 1 {
                size /= 2;
            }
        }
    }
    let mut flat = least.0.clone();
    flat.transactions.iter_mut().for_each(|transaction| transaction.nested = false);
    if let Err(failure) = world.check(&flat, least.1, &mut Tally::new()).await {
        (least.0, least.2) = (flat, failure);
    }
    least
}

/// What is left out.
#[derive(Clone, Copy)]
enum Part {
    Transactions,
    Steps,
}

impl Part {
    fn count(self, history: &History) -> usize {
        match self {
            Self::Transactions => history.transactions.len(),
            Self::Steps => history.transactions.iter().map(|transaction| transaction.steps.len()).sum(),
        }
    }

    fn without(self, history: &History, range: Range<usize>) -> History {
        let (mut history, mut numbers) = (history.clone(), 0..);
        let mut stays = || !numbers.next().is_some_and(|number| range.contains(&number));
        match self {
            Self::Transactions => history.transactions.retain(|_| stays()),
            Self::Steps => history.transactions.iter_mut().for_each(|t| t.steps.retain(|_| stays())),
        }
        history
    }
}
