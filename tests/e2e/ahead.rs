//! Large transactions that are applied before their commit has come: alone, overtaken, rolled back in part, refused,
//! killed, and where a table's copy holds them already.

use tokio_postgres::Client;
use walferry::demo::StopMode;

use super::harness::{Engine, Launch, PATIENCE, Pair, wait_for};
use super::streaming::{pair_with_table, spilling, spooled};

/// Statements, and whether they are the other session's.
type Statements<'a> = Vec<(bool, &'a str)>;

/// What the log says how often: that one goes ahead, and that it is given up.
fn counts(engine: &Engine) -> (usize, usize) {
    let log = engine.log();
    let count = |text: &str| log.matches(text).count();
    (count("goes ahead of its commit"), count("that went ahead is overtaken"))
}

/// A migration in sync whose engine has stopped, and two sessions of the source.
async fn stopped() -> (tempfile::TempDir, Pair, Launch, Client, Client) {
    let pair = pair_with_table().await;
    let directory = tempfile::tempdir().unwrap();
    let sql = "CREATE TABLE last (k int PRIMARY KEY, n int UNIQUE);
               INSERT INTO last SELECT k, k FROM generate_series(1, 10) k;
               INSERT INTO big SELECT -k, 0, 'before' FROM generate_series(1, 1000) k";
    pair.owner().await.batch_execute(sql).await.unwrap();
    let launch = spilling(&pair, directory.path());
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    let (one, other) = (pair.owner().await, pair.owner().await);
    (directory, pair, launch, one, other)
}

/// Statements of one session, those of the `other` between them.
async fn write(one: &Client, other: &Client, statements: &[(bool, &str)]) {
    for (others, sql) in statements {
        let session = if *others { other } else { one };
        session.batch_execute(sql).await.unwrap();
    }
}

/// Rows of 150 bytes, 9 MB: several parts.
const ROWS: &str = "INSERT INTO big SELECT k, 0, repeat(md5(k::text), 4) FROM generate_series(1, 60000) k";
const MORE: &str =
    "INSERT INTO big SELECT k, 0, repeat(md5(k::text), 4) FROM generate_series(60001, 100000) k";
const UPDATE: &str = "UPDATE big SET part = part + 1 WHERE k % 3 = 0; DELETE FROM big WHERE k % 5 = 0";

/// How many wait for `last` on the target.
const WAITING: &str = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'last'::regclass";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_all_orders() {
    let (directory, pair, launch, one, other) = stopped().await;
    let (this, others) = (false, true);
    let small = "INSERT INTO small SELECT coalesce(max(k), 0) + 1 FROM small";
    let cases: [(&str, Statements<'_>, (usize, usize)); 9] = [
        ("alone", vec![(this, "BEGIN"), (this, ROWS), (this, UPDATE), (this, "COMMIT")], (1, 0)),
        (
            "with savepoints that are kept",
            vec![(this, "BEGIN"), (this, UPDATE), (this, "SAVEPOINT a"), (this, UPDATE), (this, "COMMIT")],
            (1, 0),
        ),
        (
            "others before it and after it",
            vec![(others, small), (this, "BEGIN"), (this, UPDATE), (this, "COMMIT"), (others, small)],
            (1, 0),
        ),
        (
            "overtaken",
            vec![(this, "BEGIN"), (this, MORE), (others, small), (this, UPDATE), (this, "COMMIT")],
            (1, 1),
        ),
        (
            "others since its first change",
            vec![
                (this, "BEGIN"),
                (this, "UPDATE big SET part = 7 WHERE k = -1"),
                (others, small),
                (this, UPDATE),
                (this, "COMMIT"),
            ],
            (0, 0),
        ),
        (
            "rolled back in part",
            vec![
                (this, "BEGIN"),
                (this, UPDATE),
                (this, "SAVEPOINT a; DELETE FROM big; ROLLBACK TO a"),
                (this, UPDATE),
                (this, "COMMIT"),
            ],
            (1, 1),
        ),
        ("rolled back", vec![(this, "BEGIN"), (this, "DELETE FROM big"), (this, "ROLLBACK")], (0, 0)),
        (
            "emptied",
            vec![(this, "BEGIN"), (this, UPDATE), (this, "TRUNCATE big"), (this, ROWS), (this, "COMMIT")],
            (1, 0),
        ),
        (
            "overtaken by another large one",
            vec![
                (this, "BEGIN"),
                (this, "UPDATE big SET part = 1 WHERE k > 1000"),
                (others, "BEGIN"),
                (others, "UPDATE big SET part = 2 WHERE k < 1000; UPDATE big SET part = 3 WHERE k < 1000"),
                (others, "UPDATE big SET part = 2 WHERE k < 1000; UPDATE big SET part = 4 WHERE k < 1000"),
                (others, "COMMIT"),
                (this, "UPDATE big SET part = 5 WHERE k > 2000"),
                (this, "COMMIT"),
            ],
            (1, 1),
        ),
    ];
    for (name, statements, expected) in cases {
        write(&one, &other, &statements).await;
        let mut engine = launch.start();
        engine.wait_drained(&pair).await;
        assert_eq!(counts(&engine), expected, "{name}\n{}", engine.log());
        pair.assert_ends_equal(engine).await;
        assert_eq!(spooled(directory.path()), 0, "{name}");
    }
    pair.assert_removes().await;
}

/// The target refuses a part: that means nothing, as long as the part may be rolled back yet. It is tried once more when
/// all is known, and refused for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_target_refuses() {
    let (_directory, pair, launch, one, other) = stopped().await;
    pair.target("DELETE FROM big WHERE k = -50").await;
    write(&one, &other, &[(false, "BEGIN"), (false, UPDATE), (false, ROWS), (false, "COMMIT")]).await;
    let log = launch.start().wait_exit(5, PATIENCE).await;
    let ahead = log.find("goes ahead of its commit").expect("it goes ahead");
    let refused = log.find("the target refuses what may be rolled back yet").expect("refused");
    let conflict = log.find("conflict (delete_missing) in table public.big").expect("a conflict");
    assert!(ahead < refused && refused < conflict, "{log}");
    assert_eq!(log.matches("goes ahead of its commit").count(), 1, "{log}");
    assert_eq!(pair.target_value("SELECT count(*) FROM walferry.conflict").await, "1");
    assert_eq!(pair.target_value("SELECT count(*) FROM big").await, "999", "nothing of it is there");
    pair.target("INSERT INTO big VALUES (-50, 0, 'before')").await;
    pair.assert_ends_equal(launch.start()).await;
}

/// It is overtaken while the target is at a part that fails in set form: what is undone waits behind that failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overtaken_behind_a_failure() {
    let (_directory, pair, launch, one, other) = stopped().await;
    let swap = "UPDATE last SET n = 99 WHERE k = 1; UPDATE last SET n = 1 WHERE k = 2; UPDATE last SET n = 2 WHERE k = 1";
    write(&one, &other, &[(false, "BEGIN"), (false, swap), (false, ROWS)]).await;
    write(&one, &other, &[(true, "INSERT INTO small VALUES (1)"), (false, UPDATE), (false, "COMMIT")]).await;
    let locker = pair.cluster.target.client(super::harness::DATABASE).await.unwrap();
    locker.batch_execute("BEGIN; LOCK TABLE last").await.unwrap();
    let mut engine = launch.start();
    wait_for("a lock", PATIENCE, async || pair.target_value(WAITING).await == "1").await;
    wait_for("another commit", PATIENCE, async || counts(&engine) == (1, 1)).await;
    locker.batch_execute("ROLLBACK").await.unwrap();
    engine.wait_drained(&pair).await;
    // Once when it was ahead, and once when its turn came.
    let failed = "walferry_ordered_batches_total{database=\"defaultdb\",reason=\"failed\"}";
    assert_eq!(engine.metric(failed).await, Some(2.0), "{}", engine.log());
    pair.assert_ends_equal(engine).await;
}

/// A spool that cannot be kept does not matter where its transaction goes ahead, and does where it is overtaken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_disk_takes() {
    let (_directory, pair, launch, one, other) = stopped().await;
    let launch = launch.arguments(&["--spill-max", "1MB"]);
    let lost = "transactions in progress cannot be kept here";
    write(&one, &other, &[(false, "BEGIN"), (false, ROWS), (false, "COMMIT")]).await;
    let mut engine = launch.start();
    engine.wait_drained(&pair).await;
    assert_eq!((counts(&engine), engine.log().contains(lost)), ((1, 0), false), "{}", engine.log());
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
    write(&one, &other, &[(false, "BEGIN"), (false, MORE), (true, "INSERT INTO small VALUES (1)")]).await;
    write(&one, &other, &[(false, UPDATE), (false, "COMMIT")]).await;
    let mut engine = launch.start();
    engine.wait_drained(&pair).await;
    assert!(engine.log().contains(lost), "{}", engine.log());
    pair.assert_ends_equal(engine).await;
}

/// Killed, and the target killed, while a part of one is applied and its commit has not come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle() {
    let (_directory, pair, launch, one, other) = stopped().await;
    write(&one, &other, &[(false, "BEGIN"), (false, ROWS), (false, UPDATE)]).await;
    let last = "UPDATE last SET n = n + 100";
    write(&one, &other, &[(false, last), (false, "COMMIT")]).await;
    // What comes last waits for a lock: all before it is applied, and nothing is committed.
    let until_it_waits = async |pair: &Pair| {
        wait_for("a lock", PATIENCE, async || pair.target_value(WAITING).await == "1").await;
        assert_eq!(pair.target_value("SELECT count(*) FROM big WHERE k > 0").await, "0");
    };
    let locker = pair.cluster.target.client(super::harness::DATABASE).await.unwrap();
    locker.batch_execute("BEGIN; LOCK TABLE last").await.unwrap();
    let engine = launch.start();
    until_it_waits(&pair).await;
    assert_eq!(counts(&engine), (1, 0));
    engine.kill9().await;
    let mut engine = launch.start();
    until_it_waits(&pair).await;
    pair.cluster.target.restart(StopMode::Immediate).await.unwrap();
    engine.wait_drained(&pair).await;
    pair.assert_ends_equal(engine).await;
}

/// A table copied again after the transaction committed has its rows already; the other has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_copy_holds() {
    let (_directory, pair, launch, one, other) = stopped().await;
    let both = "INSERT INTO small SELECT k FROM generate_series(100, 110) k";
    write(&one, &other, &[(false, "BEGIN"), (false, ROWS), (false, both), (false, "COMMIT")]).await;
    pair.command("resync").arguments(&["public.big"]).run().await.assert(0, &["public.big"]);
    let mut engine = launch.start();
    engine.wait_drained(&pair).await;
    assert_eq!(counts(&engine), (0, 0), "{}", engine.log());
    pair.assert_follows(&mut engine).await;
    // The next one is after every copy.
    engine.terminate(0).await;
    write(&one, &other, &[(false, "BEGIN"), (false, UPDATE), (false, "COMMIT")]).await;
    let mut engine = launch.start();
    engine.wait_drained(&pair).await;
    assert_eq!(counts(&engine), (1, 0), "{}", engine.log());
    pair.assert_ends_equal(engine).await;
}
