//! Every version of PostgreSQL as a source, with targets of the same version and newer.
//!
//! One target for each source of 13 to 18, unless `WALFERRY_TEST_VERSIONS` says otherwise: `all`, or pairs such as
//! `13-15,17-18`. A source newer than its target is refused. What is not installed is downloaded.

use std::time::Duration;

use rand::RngExt;
use tokio::sync::Mutex;
use walferry::demo::{PgBinaries, WriterOptions, Writers, load_shop};

use super::harness::{DATABASE, Pair, random};

/// The pairs of source and target of a run where none are given: each source, and each target.
const FEW: [(u32, u32); 6] = [(13, 15), (14, 16), (15, 17), (16, 18), (17, 17), (18, 18)];

/// A pair whose source is newer, which is refused.
const REFUSED: (u32, u32) = (18, 17);

/// Sources that are tested, the oldest ones in long runs only.
const SOURCES: std::ops::RangeInclusive<u32> = 10..=18;

/// Targets that are tested.
const TARGETS: std::ops::RangeInclusive<u32> = 15..=18;

/// Source and target versions, those that are refused aside.
fn pairs() -> Vec<(u32, u32)> {
    let pairs = match std::env::var("WALFERRY_TEST_VERSIONS").unwrap_or_default().as_str() {
        "" => FEW.to_vec(),
        "all" => every_pair(),
        given => given.split(',').map(pair).collect(),
    };
    pairs.into_iter().filter(|(source, target)| source <= target).collect()
}

/// Pairs that are refused: with `all`, every one whose source is newer.
fn refused_pairs() -> Vec<(u32, u32)> {
    match std::env::var("WALFERRY_TEST_VERSIONS").unwrap_or_default().as_str() {
        "" => vec![REFUSED],
        "all" => every_pair().into_iter().filter(|(source, target)| source > target).collect(),
        given => given.split(',').map(pair).filter(|(source, target)| source > target).collect(),
    }
}

fn every_pair() -> Vec<(u32, u32)> {
    SOURCES.flat_map(|source| TARGETS.map(move |target| (source, target))).collect()
}

/// Whether somebody said which versions to test, and has time.
pub fn asked_for() -> bool {
    std::env::var_os("WALFERRY_TEST_VERSIONS").is_some_and(|given| !given.is_empty())
}

/// `13-15`.
fn pair(text: &str) -> (u32, u32) {
    let major = |text: &str| text.trim().parse().unwrap_or_else(|_| panic!("no version: {text:?}"));
    let (source, target) = text.split_once('-').unwrap_or((text, text));
    (major(source), major(target))
}

/// Source and target of each pair that has this source.
async fn from(source: u32) -> Vec<(PgBinaries, PgBinaries)> {
    let mut found = Vec::new();
    for (_, target) in pairs().into_iter().filter(|pair| pair.0 == source) {
        let target = find(target).await;
        found.push((source_of(source, &target).await, target));
    }
    found
}

/// The pairs that somebody asked for; else the one that the other tests run with.
pub async fn asked_pairs() -> Vec<(PgBinaries, PgBinaries)> {
    asked_pairs_and(&[]).await
}

/// The pairs that somebody asked for; else the one that the other tests run with, and these.
pub async fn asked_pairs_and(more: &[(u32, u32)]) -> Vec<(PgBinaries, PgBinaries)> {
    let mut found = Vec::new();
    if !asked_for() {
        let binaries = PgBinaries::find(None).await.unwrap();
        found.push((binaries.clone(), binaries));
    }
    for (source, target) in if asked_for() { pairs() } else { more.to_vec() } {
        let target = find(target).await;
        found.push((source_of(source, &target).await, target));
    }
    found
}

/// The source of each pair that has this version, once.
pub async fn source(major: u32) -> Option<PgBinaries> {
    let (_, target) = pairs().into_iter().find(|pair| pair.0 == major)?;
    Some(source_of(major, &find(target).await).await)
}

/// A source; one older than 14 with the target's client programs.
async fn source_of(major: u32, target: &PgBinaries) -> PgBinaries {
    if major >= 14 {
        return find(major).await;
    }
    let _alone = FINDING.lock().await;
    PgBinaries::find_old(major, target).await.unwrap()
}

async fn find(major: u32) -> PgBinaries {
    let _alone = FINDING.lock().await;
    PgBinaries::find(Some(major)).await.unwrap()
}

/// Tests that want the same version at the same time should not all download it.
static FINDING: Mutex<()> = Mutex::const_new(());

/// A test for each source version, so that they run side by side and each can be asked for by its name.
macro_rules! on_each_version {
    ($check:path) => {
        $crate::versions::on_each_version! {
            $check,
            source_10 10, source_11 11, source_12 12, source_13 13, source_14 14, source_15 15, source_16 16,
            source_17 17, source_18 18,
        }
    };
    ($check:path, $($test:ident $major:literal),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            $check($major).await;
        }
    )*};
}
pub(crate) use on_each_version;

mod the_shop_moves {
    super::on_each_version!(super::the_shop_moves_from);
}

async fn the_shop_moves_from(major: u32) {
    let mut random = random("versions");
    for (source, target) in from(major).await {
        let words = format!("{} to {}", source.version(), target.version());
        let pair = Pair::of(source, target, |_| {}).await;
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
        pair.assert_cuts_over(engine).await;
        eprintln!("PostgreSQL {words}: {} transactions while it moved", counts.transactions());
        pair.assert_removes().await;
    }
}

/// Before 14, a server sends an empty message in place of an origin whose name it cannot find: here one that the
/// transaction itself makes; elsewhere that of a subscription dropped since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_without_a_name_is_no_obstacle() {
    let Some(source) = source(13).await else { return };
    let pair = Pair::of(source, find(15).await, |_| {}).await;
    pair.source("CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t OWNER TO app_owner").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let origin = "SELECT pg_replication_origin_create('x'), pg_replication_origin_session_setup('x')";
    pair.source(&format!("{origin}; INSERT INTO public.t VALUES (1)")).await;
    pair.assert_follows(&mut engine).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM public.t").await, "1");
    pair.assert_ends_equal(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_newer_than_the_target_is_refused() {
    for (source, target) in refused_pairs() {
        let pair = Pair::of(find(source).await, find(target).await, |_| {}).await;
        pair.source("CREATE TABLE public.t (id int PRIMARY KEY)").await;
        let words = format!("is too old: {source} or later is needed for this source");
        let ended = pair.migrate().run().await;
        ended.assert(3, &[words.as_str()]);
        let left =
            "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
        assert_eq!(pair.source_value(left).await, "0");
        assert_eq!(pair.target_value("SELECT count(*) FROM pg_class WHERE relname = 't'").await, "0");
    }
}
