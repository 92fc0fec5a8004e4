//! What lives in the source's database and no fence reaches: subscriptions, background workers, sessions of superusers.

use serde_json::Value;
use walferry::demo::{ClusterOptions, Login};

use super::super::extensions::with_packages;
use super::super::harness::{DATABASE, PATIENCE, Pair, wait_for};
use std::time::Duration;

use super::{Shop, Writer};

/// Makes a subscription of the shop's database to another one of the same server, owned by a role whose sessions are ours
/// to end.
async fn subscribe(pair: &Pair) {
    let source = &pair.cluster.source;
    pair.source("CREATE DATABASE upstream").await;
    let publisher =
        "CREATE TABLE numbers (n bigint PRIMARY KEY); CREATE PUBLICATION upstream FOR TABLE numbers";
    source.sql("upstream", publisher).await.unwrap();
    source
        .sql("upstream", "SELECT pg_create_logical_replication_slot('upstream', 'pgoutput')")
        .await
        .unwrap();
    let login = Login::new("subscriber");
    let password = login.password.replace('\'', "''");
    pair.source(&format!(
        "CREATE ROLE subscriber LOGIN SUPERUSER PASSWORD '{password}'; GRANT subscriber TO app_owner;
         GRANT SELECT, INSERT, UPDATE, DELETE ON numbers TO subscriber"
    ))
    .await;
    // libpq in the server looks for the certificate of whoever started it.
    let connection = login.uri(source, "upstream") + "&sslcert=/dev/null/none&sslkey=/dev/null/none";
    let connection = connection.replace('\'', "''");
    let subscribe = format!(
        "SET ROLE subscriber; CREATE SUBSCRIPTION \"Some\" CONNECTION '{connection}' PUBLICATION upstream
         WITH (create_slot = false, slot_name = 'upstream', copy_data = false)"
    );
    pair.source(&subscribe).await;
    source.sql("upstream", "INSERT INTO numbers VALUES (1)").await.unwrap();
    let arrived = "SELECT count(*) FROM numbers";
    wait_for("the subscription works", PATIENCE, async || pair.source_value(arrived).await == "1").await;
    // Its owner was a superuser to make it; its worker begins anew as an ordinary role's, and goes on.
    pair.source("ALTER ROLE subscriber NOSUPERUSER REPLICATION").await;
}

/// A subscription's worker is started anew when it is ended, and writes whatever the database's setting says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    subscribe(pair).await;
    let mut engine = pair.migrate().arguments(&["--database", DATABASE]).start();
    engine.wait_phase("syncing").await;
    let answer = shop.refused("refused", &[], "subscriptions of the source write to it").await;
    assert_eq!(answer["error"]["detail"], "Some", "{answer:#}");
    let hint = answer["error"]["hint"].as_str().unwrap();
    let (disable, _) = hint.split_once(';').unwrap();
    shop.assert_open().await;
    pair.source(disable).await;
    shop.cutover(&[]).run().await.assert(0, &["done: the target has all"]);
    engine.wait_exit(0, PATIENCE).await;
    pair.cluster.source.sql("upstream", "INSERT INTO numbers VALUES (2)").await.unwrap();
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}");
}

/// A superuser's session that stays: whoever may ends it as the hint says, and the cutover goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superusers_session() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let session = pair.cluster.source.client(DATABASE).await.unwrap();
    session.batch_execute("SET application_name = 'night shift'").await.unwrap();
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    // Of what is hidden nobody knows whether it may stay.
    let said = pair.command("check").run().await;
    said.assert(0, &["of superusers", "GRANT \"pg_read_all_stats\" TO \"app_owner\";"]);
    let answer = shop.refused("refused", &[], "cannot be ended").await;
    let detail = answer["error"]["detail"].as_str().unwrap();
    assert!(detail.starts_with(&format!("server process {pid} of ")), "{detail}");
    assert!(detail.ends_with(" (night shift)"), "{detail}");
    let grant = statement(&answer, "GRANT ");
    pair.source(&grant).await;

    let answer = shop.refused("refused", &[], "cannot be ended").await;
    assert!(answer["error"]["detail"].as_str().unwrap().ends_with(" (night shift)"), "{answer:#}");
    assert!(!answer["error"]["hint"].as_str().unwrap().contains("GRANT"), "{answer:#}");
    shop.assert_open().await;
    pair.source(&statement(&answer, "SELECT ")).await;
    wait_for("its end", PATIENCE, async || session.batch_execute("SELECT 1").await.is_err()).await;
    shop.cutover(&[]).run().await.assert(0, &["done: the target has all"]);
    engine.wait_exit(0, PATIENCE).await;
}

/// The statement in an error's hint that begins so.
fn statement(answer: &Value, begins: &str) -> String {
    let hint = answer["error"]["hint"].as_str().unwrap();
    let from = hint.find(begins).unwrap_or_else(|| panic!("no {begins:?} in {hint}"));
    let length = hint[from..].find(';').unwrap_or_else(|| panic!("no end in {hint}"));
    hint[from..from + length].to_owned()
}

/// A scheduler that lives in the database as a superuser: its jobs are others' sessions, and it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn the_launcher_of_pg_cron() {
    let Some(shop) = Shop::with_cron().await else { return };
    let pair = &shop.pair;
    let mut engine = pair.migrate().arguments(&["--excluded-extensions", "pg_cron"]).start();
    engine.wait_phase("syncing").await;
    let launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher'";
    let pid = pair.source_value(launcher).await;
    let answer = shop.refused("refused", &[], "cannot be ended").await;
    let detail = answer["error"]["detail"].as_str().unwrap();
    assert!(detail.contains(&pid) && detail.contains("(pg_cron scheduler)"), "{detail}");
    pair.source(&statement(&answer, "GRANT ")).await;

    // A job that a superuser's worker is at, and that writes at its end.
    let job = "SELECT cron.schedule('slow', '* * * * *',
        'DO $$ BEGIN PERFORM pg_sleep(3000); INSERT INTO public.numbers VALUES (-1); END $$')";
    pair.source(job).await;
    let runs = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_cron'";
    wait_for("the job", 2 * PATIENCE, async || pair.source_value(runs).await == "1").await;
    let answer = shop.refused("refused", &[], "cannot be ended").await;
    let detail = answer["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("(pg_cron)") && !detail.contains(&pid), "{detail}");
    pair.source("SELECT cron.unschedule('slow')").await;
    pair.source(&statement(&answer, "SELECT ")).await;
    wait_for("its end", PATIENCE, async || pair.source_value(runs).await == "0").await;
    pair.source("SELECT cron.schedule('tick', '* * * * *', 'INSERT INTO public.numbers SELECT count(*) FROM public.numbers')").await;

    // Given up after the fence, and done: it lives on, and nothing else is lost.
    let blocked = shop.hang().await;
    let timed_out = shop.refused("given_up", &["--timeout", "8s"], "it took longer than 8 s").await;
    assert!(!timed_out.to_string().contains("server process"), "{timed_out:#}");
    drop(blocked);
    shop.assert_open().await;
    let ended = shop.cutover(&["--json"]).run().await;
    ended.assert(0, &["\"state\": \"done\"", "background workers", "(pg_cron launcher, pg_cron scheduler)"]);
    engine.wait_exit(0, PATIENCE).await;
    assert_eq!(pair.source_value(launcher).await, pid, "it was ended");
    // Its jobs write no more.
    let failed = "SELECT count(*) FROM cron.job_run_details WHERE return_message LIKE '%read-only%'";
    wait_for("a job", 2 * PATIENCE, async || pair.source_value(failed).await != "0").await;
    let numbers = "SELECT count(*) FROM numbers";
    assert_eq!(pair.source_value(numbers).await, pair.target_value(numbers).await);
}

impl Shop {
    /// With `pg_cron` on the source, where the server has it.
    async fn with_cron() -> Option<Self> {
        let binaries = with_packages().await;
        let pair = Pair::of(binaries.clone(), binaries.clone(), |_| {}).await;
        let there = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_cron'";
        if pair.source_value(there).await == "0" {
            eprintln!("skipped: the server has no pg_cron");
            return None;
        }
        drop(pair);
        let cron = |options: &mut ClusterOptions| {
            let source = options.source_options.clone().setting("shared_preload_libraries", "pg_cron");
            let source = source.setting("cron.database_name", DATABASE);
            options.source_options = source.setting("cron.use_background_workers", "on");
        };
        let shop = Self::between(Pair::of(binaries.clone(), binaries, cron).await).await;
        shop.pair.source("CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO app_owner").await;
        Some(shop)
    }
}

/// A role that may end sessions of others, and is not shown when they began: clients that connect again are not in its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_role_that_is_not_ours() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    pair.source("REVOKE clerk FROM app_owner; GRANT pg_signal_backend TO app_owner").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let writers: Vec<Writer> =
        (1..=3).map(|number| Writer::start(&shop.clerk, number, Duration::from_millis(3))).collect();
    let pool: Vec<_> = (0..5).map(|_| tokio::spawn(keep_connected(shop.clerk.clone()))).collect();
    pair.assert_written(&mut engine, 200).await;
    shop.cutover(&[]).run().await.assert(0, &["done: the target has all"]);
    engine.wait_exit(0, PATIENCE).await;
    pool.iter().for_each(tokio::task::JoinHandle::abort);
    let mut written = 0;
    for writer in writers {
        written += writer.end().await.committed;
    }
    let arrived = "SELECT count(*) FROM orders WHERE clerk > 0";
    let arrived: u64 = pair.target_value(arrived).await.parse().unwrap();
    assert!(arrived >= written && written > 100, "{arrived} of {written}");
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}");
}

/// A session that is begun anew whenever it is ended.
async fn keep_connected(uri: String) {
    loop {
        let Some(client) = super::connect(&uri).await else { continue };
        while client.batch_execute("SELECT pg_sleep(0.01)").await.is_ok() {}
    }
}
