//! What the stream lacks: nobody writes to it unseen, and a cutover that fails leaves it as it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::super::harness::{DATABASE, PATIENCE, Pair, wait_for};
use super::Shop;

/// Tables whose copies are to be found as they were.
const COUNTS: &str = "SELECT (SELECT count(*) FROM log) || ' ' || (SELECT count(*) FROM cart)";

/// None is left to be copied again.
async fn assert_all_copied(pair: &Pair) {
    let left = "SELECT count(*) FROM walferry.relation WHERE state <> 'copied'";
    assert_eq!(pair.target_value(left).await, "0");
}

/// Whoever writes to what the stream lacks while the source is to be at rest is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_what_the_stream_lacks() {
    let shop = Shop::with_the_rest().await;
    let pair = &shop.pair;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    for statement in [
        "UPDATE log SET line = line || '.'",
        "UPDATE cart SET b = b + 1",
        "SELECT lo_put(4711, 0, convert_to(clock_timestamp()::text, 'UTF8'))",
    ] {
        let writer = pair.owner().await;
        writer.batch_execute("SET search_path = public").await.unwrap();
        let task = tokio::spawn(async move {
            loop {
                writer.batch_execute(statement).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        });
        let why = "somebody writes to the source after the fence";
        shop.refused("given_up", &["--fence", "none"], why).await;
        task.abort();
        assert_all_copied(pair).await;
        engine.wait_until("it goes on", |detail| detail["phase"] == "syncing").await;
    }
    // What came into the stream since is there once.
    pair.source("INSERT INTO log SELECT 'more' FROM generate_series(1, 3)").await;
    engine.wait_drained(pair).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM log WHERE line = 'more'").await, "3");
    let log = engine.log();
    assert!(!log.contains("copying tables while the others are followed"), "the stream went on\n{log}");
    // Who waits is let go on when it is over, and written rows are found by the next one.
    let waiter = pair.owner().await;
    let blocked = shop.hang().await;
    let command = shop.spawn(&shop.cutover(&["--fence", "none", "--timeout", "10m"]));
    engine.wait_until("cutting over", |detail| detail["phase"] == "cutting_over").await;
    drop(blocked);
    let held =
        "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND relation = 'log'::regclass AND granted";
    wait_for("the lock", PATIENCE, async || pair.source_value(held).await == "1").await;
    waiter.batch_execute("UPDATE public.log SET line = 'late'").await.unwrap();
    let output = command.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(5) && stderr.contains("sessions that wait to write"), "{stderr}");
    drop(waiter);
    pair.assert_cuts_over(engine).await;
}

/// A table that the migration's role may read and not lock: whoever writes to it is seen, at rest it comes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_what_may_not_be_locked() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    pair.source(
        "CREATE ROLE stranger; CREATE UNLOGGED TABLE counted (r int PRIMARY KEY, b int);
         INSERT INTO counted VALUES (1, 1); ALTER TABLE counted OWNER TO stranger;
         GRANT SELECT ON counted TO app_owner;
         GRANT USAGE, CREATE ON SCHEMA public TO stranger; SET ROLE stranger;
         CREATE UNLOGGED TABLE ran_as (who text); GRANT INSERT, SELECT ON ran_as TO PUBLIC;
         CREATE FUNCTION ran(counted) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO public.ran_as VALUES (current_user); RETURN ''; END $$;
         CREATE CAST (counted AS text) WITH FUNCTION ran(counted)",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let writer = pair.cluster.source.client(DATABASE).await.unwrap();
    for statement in ["UPDATE public.counted SET b = b + 1", "UPDATE public.counted SET b = b"] {
        let stop = AtomicBool::new(false);
        let writes = async {
            while !stop.load(Ordering::Relaxed) {
                writer.batch_execute(statement).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        };
        let why = "somebody writes to the source after the fence";
        let refused = async {
            let answer = shop.refused("given_up", &["--fence", "none"], why).await;
            assert!(answer["error"].to_string().contains("table public.counted"), "{answer:#}");
            stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(writes, refused);
        engine.wait_until("it goes on", |detail| detail["phase"] == "syncing").await;
    }
    // A transaction that has not written yet, and may at any time.
    writer.batch_execute("BEGIN; LOCK TABLE public.counted IN ROW EXCLUSIVE MODE").await.unwrap();
    let answer = shop.refused("given_up", &["--fence", "none"], "somebody writes to the source").await;
    assert!(
        answer["error"].to_string().contains("sessions that write to table public.counted"),
        "{answer:#}"
    );
    drop(writer);
    engine.wait_until("it goes on", |detail| detail["phase"] == "syncing").await;
    pair.assert_cuts_over(engine).await;
    // Its owner's code did not run in our name.
    assert_eq!(pair.source_value("SELECT count(*) FROM ran_as").await, "0");
}

/// A carry that fails: the rows stay, the source is open, the engine goes on. Neither does a table that is resynchronised
/// lose its rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_carry_that_fails() {
    let shop = Shop::with_the_rest().await;
    let pair = &shop.pair;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    // Of the target alone, so it is not for us to pass over.
    pair.target("ALTER TABLE log ADD CONSTRAINT no_poison CHECK (line <> 'poison')").await;
    pair.source("UPDATE log SET line = 'poison'; INSERT INTO cart VALUES (2, 2)").await;
    let counts = pair.target_value(COUNTS).await;
    shop.refused("given_up", &[], "table public.log cannot be copied").await;
    engine.wait_until("it goes on", |detail| detail["phase"] == "syncing").await;
    shop.assert_open().await;
    assert_all_copied(pair).await;
    let kept = pair.target_value(COUNTS).await;
    assert_eq!(kept.split(' ').next(), counts.split(' ').next());
    pair.source("INSERT INTO orders (clerk) VALUES (77); INSERT INTO log VALUES ('after')").await;
    engine.wait_drained(pair).await;
    assert_eq!(pair.target_value("SELECT count(*) FROM log WHERE line = 'after'").await, "1");
    engine.terminate(0).await;

    let counts = pair.target_value(COUNTS).await;
    pair.command("resync").arguments(&["public.log", "public.orders"]).run().await.assert(0, &["public.log"]);
    pair.migrate().run().await.assert(5, &["table public.log cannot be copied"]);
    assert_eq!(pair.target_value(COUNTS).await, counts);
    pair.target("ALTER TABLE log DROP CONSTRAINT no_poison").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_cuts_over(engine).await;
}

/// Rows that are older than a constraint, and violate it, are the source's: they are copied again as they are, and the
/// constraint is on the target what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_older_than_a_constraint() {
    // Only from 18 on, NOT NULL is one.
    const CONSTRAINTS: &str = "
        SELECT string_agg(concat_ws(' ', coalesce(k.conrelid::regclass::text, k.contypid::regtype::text), k.conname,
            k.conislocal, k.coninhcount, pg_get_constraintdef(k.oid), obj_description(k.oid, 'pg_constraint')), E'\\n'
            ORDER BY k.conname, k.conrelid::regclass::text, k.contypid::regtype::text)
        FROM pg_constraint k WHERE k.connamespace = 'public'::regnamespace AND k.contype <> 'n'";
    let pair = super::pair(|_| {}).await;
    pair.source(
        "SET ROLE app_owner;
         CREATE TABLE plain (v int); INSERT INTO plain VALUES (-1);
         ALTER TABLE plain ADD CONSTRAINT \"Above zero\" CHECK (v > 0) NOT VALID;
         COMMENT ON CONSTRAINT \"Above zero\" ON plain IS 'it''s new';
         CREATE DOMAIN short AS text; CREATE TABLE words (w short[]); INSERT INTO words VALUES ('{long}');
         ALTER DOMAIN short ADD CONSTRAINT brief CHECK (length(VALUE) < 3) NOT VALID;
         CREATE TABLE parts (v int) PARTITION BY RANGE (v);
         CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (0);
         CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (0) TO (MAXVALUE);
         INSERT INTO parts VALUES (-7), (7);
         ALTER TABLE parts ADD CONSTRAINT of_the_root CHECK (v < -9) NOT VALID;
         ALTER TABLE parts_low ADD CONSTRAINT of_the_leaf CHECK (v > -7) NOT VALID;
         CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (a int REFERENCES parent);
         INSERT INTO parent SELECT generate_series(1, 9); INSERT INTO child SELECT generate_series(1, 9);
         CREATE TABLE keyed (a int PRIMARY KEY, b int); INSERT INTO keyed VALUES (1, -1);
         ALTER TABLE keyed ADD CONSTRAINT late CHECK (b > 0) NOT VALID",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    let tables = ["public.plain", "public.words", "public.parts", "public.keyed"];
    pair.command("resync").arguments(&tables).run().await.assert(0, &["public.parts_low"]);
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert_eq!(pair.target_value(CONSTRAINTS).await, pair.source_value(CONSTRAINTS).await);
    // The child's rows are not what the parent has: its key could not be held against them.
    pair.target("ALTER TABLE child DROP CONSTRAINT child_a_fkey").await;
    pair.target("ALTER TABLE child ADD CONSTRAINT child_a_fkey FOREIGN KEY (a) REFERENCES parent NOT VALID")
        .await;
    pair.source("DELETE FROM child WHERE a < 5; DELETE FROM parent WHERE a < 5").await;
    pair.assert_cuts_over(engine).await;
    assert_eq!(pair.target_value(CONSTRAINTS).await, pair.source_value(CONSTRAINTS).await);
    let client = pair.cluster.target.client(DATABASE).await.unwrap();
    let refused = client.batch_execute("INSERT INTO public.parts VALUES (-8)").await;
    assert_eq!(refused.expect_err("it holds").code().map(|code| code.code()), Some("23514"));
}
