//! Other versions of PostgreSQL on either side: `WALFERRY_TEST_VERSIONS=14-15,16-17,15-18`.

use std::time::Duration;

use rand::Rng;
use walferry::demo::{PgBinaries, TriggerControl, WriterOptions, Writers, load_shop};

use super::harness::{DATABASE, Pair, random};

/// Source and target versions; nothing given: those that the other tests run with.
pub fn pairs() -> Vec<(Option<u32>, Option<u32>)> {
    let given = std::env::var("WALFERRY_TEST_VERSIONS").unwrap_or_default();
    let pairs = given.split(',').filter(|text| !text.is_empty()).map(|text| {
        let (source, target) = text.split_once('-').unwrap_or((text, text));
        (Some(source.trim().parse().unwrap()), Some(target.trim().parse().unwrap()))
    });
    let pairs: Vec<_> = pairs.collect();
    if pairs.is_empty() { vec![(None, None)] } else { pairs }
}

/// Each source version once.
pub async fn sources() -> Vec<PgBinaries> {
    let mut majors: Vec<_> = pairs().into_iter().map(|(source, _)| source).collect();
    majors.sort();
    majors.dedup();
    let mut found = Vec::new();
    for major in majors {
        found.push(PgBinaries::find(major).await.unwrap());
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_moves_between_versions() {
    let mut random = random("versions");
    for (source, target) in pairs() {
        let (source, target) =
            (PgBinaries::find(source).await.unwrap(), PgBinaries::find(target).await.unwrap());
        let words = format!("{} to {}", source.version(), target.version());
        let grants = target.major() >= 15;
        let pair = Pair::of(source, target, |options| {
            if !grants {
                options.triggers = TriggerControl::AivenExtras;
            }
        })
        .await;
        load_shop(&pair.cluster.source, DATABASE).await.unwrap();
        let options = WriterOptions { shop_rate: 60, ..WriterOptions::default() };
        let writers = Writers::start(&pair.cluster.source, DATABASE, options).await.unwrap();
        for phase in ["copying", "catching_up"] {
            let mut engine = pair.migrate().start();
            engine.wait_phase(phase).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            engine.kill9().await;
        }
        let mut engine = pair.migrate().start();
        engine.wait_phase("syncing").await;
        pair.assert_written(&mut engine, 50).await;
        let counts = writers.stop().await;
        assert_eq!(counts.errors, 0, "{counts:?}");
        pair.assert_ends_equal(engine).await;
        eprintln!("PostgreSQL {words}: {} transactions while it moved", counts.transactions());
        pair.assert_removes().await;
    }
}
