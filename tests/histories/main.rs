//! Histories on a real server: what the source did, the target has, whichever way it was applied.
//!
//! One source, and two targets that follow it: one in sets, one row by row in the source's order, each with the
//! stream cut into batches of its own. After every batch a target must hold what the source held at that commit.
//! So the source is the model: of every commit all rows of all tables are kept, as text.
//!
//! CONTRIBUTING.md lists what the environment can say.
//!
//! A history that fails is printed, and then again without all that the failure does not need.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod cut;
mod generate;
mod known;
mod shrink;
mod tables;
mod world;

use cut::Cut;
use generate::History;
use known::KNOWN;
use world::{Tally, Way, World};

/// Each table is the busiest of one. A busy machine of two processors takes half a minute.
const HISTORIES: u64 = 29;

#[tokio::test]
async fn random_histories() {
    let given = std::env::var("WALFERRY_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let count =
        std::env::var("WALFERRY_TEST_HISTORIES").ok().map_or(HISTORIES, |count| count.parse().unwrap());
    let own: u64 = rand::random();
    let seeds: Vec<u64> = match given {
        Some(seed) => vec![seed],
        None => (1..count).chain([own]).collect(),
    };
    eprintln!("the last history has WALFERRY_TEST_SEED={}", seeds[seeds.len() - 1]);
    let mut world = World::start().await;
    let mut tally = Tally::new();
    for seed in seeds {
        let history = History::random(seed, &world.tables);
        let cuts = [Cut::Random(seed), Cut::Random(!seed)];
        if let Err(failure) = world.check(&history, cuts, &mut tally).await {
            eprintln!("{history}\n\nWALFERRY_TEST_SEED={seed}, {failure}");
            let (history, cuts, failure) = shrink::shrink(&mut world, history, cuts, failure).await;
            panic!("WALFERRY_TEST_SEED={seed}; the least that fails, cut {cuts:?}:\n{history}\n{failure}");
        }
    }
    report(&tally);
    // One history alone may be of another sort.
    if given.is_none() {
        assert_mostly_sets(&tally);
    }
}

/// Histories that are hard by design, each cut in every way.
#[tokio::test]
async fn known_histories() {
    let mut world = World::start().await;
    let mut tally = Tally::new();
    for transactions in KNOWN {
        let history = History::of(transactions);
        for cut in [Cut::Whole, Cut::Each, Cut::Parts] {
            let checked = world.check(&history, [cut; 2], &mut tally).await;
            checked.unwrap_or_else(|failure| panic!("cut {cut:?}:\n{history}\n{failure}"));
        }
    }
}

fn report(tally: &Tally) {
    for ((database, ordered), batches) in tally {
        eprintln!("{database}: {batches} batches {}", ordered.unwrap_or("in sets"));
    }
}

/// The set form is what is to be proven: most batches must go that way.
fn assert_mostly_sets(tally: &Tally) {
    let count = |in_sets: bool| {
        let wanted = tally.iter().filter(|((database, ordered), _)| {
            *database == Way::Set.database() && ordered.is_none() == in_sets
        });
        wanted.map(|(_, batches)| batches).sum::<usize>()
    };
    assert!(count(true) > count(false), "most batches were not applied in sets: {tally:?}");
}
