//! The fence: who puts it up can take it down, and so can whoever pastes what is printed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use walferry::catalog::TargetClient;
use walferry::store::{CurrentPhase, Phase, Store};

use super::super::harness::{DATABASE, Engine, Launch, PATIENCE, Pair, wait_for};
use super::super::peers::signal_all;
use super::{PREVIOUS, Shop};

/// What makes the database's owner's role powerless while the fence is up.
const DISOWN: &str = "ALTER DATABASE defaultdb OWNER TO landlord";

const FENCE: &str = "ALTER DATABASE defaultdb SET default_transaction_read_only = on";

/// The statement that a message offers, as its reader would mark it.
fn statement(text: &str) -> &str {
    let from =
        text.find("BEGIN READ WRITE; ALTER DATABASE").unwrap_or_else(|| panic!("no statement in {text}"));
    let length = text[from..].find("COMMIT;").expect("its end") + "COMMIT;".len();
    &text[from..from + length]
}

/// Runs it on the source in sessions that the fence made read only: whole, and line by line.
async fn paste(pair: &Pair, statement: &str) {
    for whole in [true, false] {
        pair.cluster.source.sql("postgres", FENCE).await.unwrap();
        let mut psql = pair.cluster.source.superuser_tool("psql", DATABASE);
        psql.args(["-X", "-v", "ON_ERROR_STOP=1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = if whole {
            psql.args(["-c", statement]).stdin(Stdio::null()).output().await.unwrap()
        } else {
            let mut psql = psql.stdin(Stdio::piped()).spawn().unwrap();
            let mut input = psql.stdin.take().unwrap();
            let lines = format!(
                "DO $$ BEGIN ASSERT current_setting('transaction_read_only')::bool; END $$;\n{statement}\n"
            );
            input.write_all(lines.as_bytes()).await.unwrap();
            drop(input);
            psql.wait_with_output().await.unwrap()
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {said}");
        let on = "SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text LIKE '%read_only=on%'";
        assert_eq!(pair.source_value(on).await, "0", "{statement}");
    }
}

impl Shop {
    async fn fenced(&self, launch: &Launch) -> (Engine, tokio::process::Child, tokio_postgres::Client) {
        let mut engine = launch.start();
        engine.wait_phase("syncing").await;
        let blocked = self.hang().await;
        let command = self.spawn(&self.cutover(&["--timeout", "10m"]));
        self.wait_fenced(&mut engine).await;
        (engine, command, blocked)
    }
}

/// A fenced source is none for `target_session_attrs=read-write`: for Walferry it is one all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_write_in_the_uri() {
    let shop = Shop::with_the_rest().await;
    let pair = &shop.pair;
    let uri = pair.cluster.source_uri(DATABASE);
    let joint = if uri.contains('?') { '&' } else { '?' };
    let uri = format!("{uri}{joint}target_session_attrs=read-write");
    let launch = pair.migrate().source(&uri);
    // Given up.
    let (mut engine, command, blocked) = shop.fenced(&launch).await;
    let pid = command.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let output = command.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(5) && stderr.contains("given up on request"), "{stderr}");
    drop(blocked);
    shop.assert_open().await;
    engine.wait_until("it goes on following", |detail| detail["phase"] == "syncing").await;
    engine.terminate(0).await;
    // Killed: the next engine finds the source fenced.
    let (engine, command, blocked) = shop.fenced(&launch).await;
    engine.kill9().await;
    drop((command, blocked));
    shop.assert_fenced().await;
    let status = pair.command("status").arguments(&["--json"]).source(&uri).run().await;
    status.assert(0, &["default_transaction_read_only = on", "source_wal"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    shop.assert_open().await;
    // Everything that is carried is carried from a fenced source.
    pair.source(
        "SET ROLE app_owner; UPDATE log SET line = 'two'; UPDATE cart SET b = 2; SELECT lo_put(4711, 0, 'L')",
    )
    .await;
    let ended = shop.cutover(&["--json"]).source(&uri).run().await;
    ended.assert(0, &["\"state\": \"done\""]);
    engine.wait_exit(0, PATIENCE).await;
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}");
    assert_eq!(pair.target_value("SELECT convert_from(lo_get(4711), 'UTF8')").await, "Large");
    let removed = pair.command("remove").source(&uri).run().await;
    removed.assert(0, &["dropped replication slot", "left on the source"]);
    paste(pair, statement(&removed.stderr)).await;
}

/// A fence that cannot be taken down: each message that says so opens the source, as it stands there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undone_by_hand() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    pair.source("CREATE ROLE landlord").await;
    let (mut engine, command, blocked) = shop.fenced(&pair.migrate()).await;
    pair.cluster.source.sql("postgres", DISOWN).await.unwrap();
    drop(blocked);
    let pid = command.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let log = engine.wait_exit(5, PATIENCE).await;
    let cause = "the fence on database \"defaultdb\" of the source cannot be taken down";
    let place = log.find(cause).unwrap_or_else(|| panic!("{log}"));
    let mut statements = vec![statement(&log[place..]).to_owned()];
    let output = command.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && stderr.contains("the engine ended"), "{stderr}");
    statements.push(statement(&stderr).to_owned());
    shop.assert_fenced().await;
    let status = pair.command("status").run().await;
    status.assert(0, &["default_transaction_read_only = on of database"]);
    statements.push(statement(&status.stdout).to_owned());
    let refused = shop.cutover(&[]).run().await;
    refused.assert(5, &["no engine runs this migration", "the source may still be fenced"]);
    statements.push(statement(&refused.stderr).to_owned());
    let again = pair.migrate().run().await;
    again.assert(5, &[cause]);
    statements.push(statement(&again.stderr).to_owned());
    let removed = pair.command("remove").run().await;
    removed.assert(5, &["its phase is cutting_over"]);
    // Nobody can be asked, and the target's side goes: it says how to undo the rest.
    pair.cluster.source.stop(walferry::demo::StopMode::Fast).await.unwrap();
    let removed = pair.command("remove").arguments(&["--force"]).run().await;
    removed.assert(5, &["the source could not be reached", "it is fenced"]);
    let (dropped, fenced) = removed.stderr.split_once("it is fenced: ").unwrap();
    statements.push(statement(fenced).to_owned());
    pair.cluster.source.start_again().await.unwrap();
    let mut psql = pair.cluster.source.superuser_tool("psql", DATABASE);
    let dropping = dropped.split("run there: ").nth(1).unwrap().trim();
    psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-c", dropping]);
    assert!(psql.status().await.unwrap().success(), "{dropped}");
    let previous = PREVIOUS.rsplit('=').next().unwrap();
    for text in &statements {
        assert!(text.contains(previous), "{text}");
        paste(pair, text).await;
    }
    shop.assert_open().await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    wait_for("nobody streams", PATIENCE, async || pair.source_value(slots).await == "0").await;
}

/// The source restarts in the middle: the command waits for what becomes of it, as long as the engine does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_restarts() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let (mut engine, command, blocked) = shop.fenced(&pair.migrate()).await;
    pair.cluster.source.stop(walferry::demo::StopMode::Immediate).await.unwrap();
    drop(blocked);
    // Longer than an engine may be away.
    let tries = async || engine.log().matches("the fence is not down yet").count();
    wait_for("the engine tries", PATIENCE, async || tries().await >= 1).await;
    let began = Instant::now();
    wait_for("a while", PATIENCE, async || began.elapsed().as_secs() >= 8 && tries().await >= 10).await;
    pair.cluster.source.start_again().await.unwrap();
    let output = command.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(!stderr.contains("the engine ended") && stderr.contains("walferry: source: "), "{stderr}");
    shop.assert_open().await;
    engine.wait_until("it goes on following", |detail| detail["phase"] == "syncing").await;
    pair.assert_cuts_over(engine).await;
}

/// Whoever ends the engine while nobody can take the fence down is told how it is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn stopped_while_the_source_is_gone() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let (mut engine, command, blocked) = shop.fenced(&pair.migrate()).await;
    pair.cluster.source.stop(walferry::demo::StopMode::Immediate).await.unwrap();
    drop(blocked);
    // The first finds it gone in the middle, and tries for half a minute; the next one cannot begin.
    let tries = async || engine.log().matches("trying again").count() >= 2;
    wait_for("the engine tries", PATIENCE, tries).await;
    engine.signal("TERM");
    let log = engine.wait_exit(6, PATIENCE).await;
    let said = &log[log.rfind("trying again").unwrap()..];
    assert!(said.contains("defaultdb"), "{said}");
    let statement = statement(said).to_owned();
    drop(command);
    pair.cluster.source.start_again().await.unwrap();
    shop.assert_fenced().await;
    paste(pair, &statement).await;
    shop.assert_open().await;
}

/// The target loses what it knew while the source is fenced: an engine that lives opens the source; without one everybody
/// who looks at the source finds it, and says how it is opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_by_the_target() {
    const FORGET: &str = "DROP SCHEMA walferry CASCADE";
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let (mut engine, command, blocked) = shop.fenced(&pair.migrate()).await;
    pair.target(FORGET).await;
    drop(blocked);
    engine.wait_exit(5, PATIENCE).await;
    drop(command);
    shop.assert_open().await;
    pair.command("remove").arguments(&["--force"]).run().await.assert(0, &["dropped replication slot"]);
    pair.target("DROP TABLE orders, numbers CASCADE; DROP SEQUENCE free_numbers").await;

    let (engine, command, blocked) = shop.fenced(&pair.migrate()).await;
    engine.kill9().await;
    drop((command, blocked));
    pair.target(FORGET).await;
    shop.assert_fenced().await;
    for (arguments, code) in [
        (&["status"][..], 5),
        (&["status", "--json"], 5),
        (&["check"], 3),
        (&["cutover"], 5),
        (&["migrate"], 3),
        (&["remove"], 5),
        (&["remove", "--force"], 0),
        (&["status"], 5),
        (&["remove"], 0),
    ] {
        let said = pair.command(arguments[0]).arguments(&arguments[1..]).run().await;
        said.assert(code, &["database \"defaultdb\" of the source is read only", "BEGIN READ WRITE;"]);
        let text = format!("{}{}", said.stdout, said.stderr);
        paste(pair, statement(&text)).await;
        pair.cluster.source.sql("postgres", FENCE).await.unwrap();
    }
    // Begun anew: the engine says it, and so does a cutover.
    pair.target("DROP TABLE orders, numbers CASCADE; DROP SEQUENCE free_numbers").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let log = engine.log();
    assert!(log.contains("is read only") && log.contains("BEGIN READ WRITE;"), "{log}");
    let status = pair.command("status").run().await;
    status.assert(0, &["is read only", "BEGIN READ WRITE;"]);
    let ended = shop.cutover(&[]).run().await;
    ended.assert(0, &["it was so before the fence", "BEGIN READ WRITE;"]);
    engine.wait_exit(0, PATIENCE).await;
}

/// The target has the request, and lacks the commit that recorded its fence: whoever finds the source read only says so. What
/// an attempt before this one sends is not recorded any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_record_alone_is_lost() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let (engine, command, blocked) = shop.fenced(&pair.migrate()).await;
    engine.kill9().await;
    drop((command, blocked));
    pair.target("UPDATE walferry.request SET answer = answer || '{\"fence\": null}'").await;
    pair.target("UPDATE walferry.migration SET phase = 'syncing'").await;
    let attempt: i64 = pair.target_value("SELECT attempt FROM walferry.migration").await.parse().unwrap();
    let request: i64 = pair.target_value("SELECT id FROM walferry.request").await.parse().unwrap();
    let mut engine = pair.migrate().start();
    let answer =
        "SELECT coalesce(answer ->> 'state', '') FROM walferry.request WHERE answered_at IS NOT NULL";
    let answered = async || pair.target(answer).await.len() == 1;
    wait_for("it is given up", PATIENCE, answered).await;
    engine.wait_until("the engine follows", |detail| detail["phase"] == "syncing").await;
    let log = engine.log();
    assert!(log.contains("database \"defaultdb\" of the source is read only"), "{log}");
    paste(pair, statement(&log)).await;

    let target = TargetClient::new(super::connect(&pair.cluster.target_uri(DATABASE)).await.unwrap());
    let store = Store::new(&target, "default");
    let mut row = store.migration().await.unwrap().unwrap();
    for (phase, next) in [(Phase::CuttingOver, Phase::Done), (Phase::Syncing, Phase::Syncing)] {
        row.phase = phase;
        let mut of_before = CurrentPhase::of(&row, attempt);
        let late = store.answer(request, &json!({"state": "done"}), &mut of_before, next).await;
        let refusal = late.expect_err("a later attempt has begun").to_string();
        assert!(refusal.contains("a later attempt of this migration has begun"), "{refusal}");
        assert_eq!(of_before.get(), phase);
    }
    assert_eq!(pair.target_value(answer).await, "refused");
    assert_eq!(pair.target_value("SELECT phase FROM walferry.migration").await, "syncing");
    pair.assert_cuts_over(engine).await;
}

/// A session that has read its settings before the fence was up, and is not to be seen before it has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_about_to_begin() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let late = format!("{}&options=-c%20post_auth_delay%3D4", shop.clerk);
    let late = tokio::spawn(async move {
        let Some(client) = super::connect(&late).await else { return false };
        // Whoever is let in writes when the migration is done.
        for _ in 0..100 {
            if client.batch_execute("INSERT INTO orders (clerk, note) VALUES (9, 'late')").await.is_err() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    });
    let begins = "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND mode = 'RowExclusiveLock'
                  AND classid = 'pg_database'::regclass AND pid <> pg_backend_pid()";
    wait_for("it is about to begin", PATIENCE, async || pair.source_value(begins).await != "0").await;
    let seen = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk'";
    assert_eq!(pair.source_value(seen).await, "0");
    shop.cutover(&[]).run().await.assert(0, &["done: the target has all"]);
    engine.wait_exit(0, PATIENCE).await;
    assert!(!late.await.unwrap(), "it wrote to a source that was cut over");
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{comparison}");
}

/// No process of the target answers any more, while the source is fenced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn a_target_that_hangs() {
    let shop = Shop::start().await;
    let pair = &shop.pair;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let blocked = shop.hang().await;
    let command = shop.spawn(&shop.cutover(&["--timeout", "10m"]));
    shop.wait_fenced(&mut engine).await;
    signal_all(&pair.cluster.target, "STOP");
    let began = Instant::now();
    let on = "SELECT EXISTS (SELECT FROM pg_db_role_setting WHERE setconfig::text LIKE '%only=on%')";
    wait_for("the source is open", PATIENCE * 3, async || pair.source_value(on).await == "f").await;
    let took = began.elapsed();
    eprintln!("open after {took:?}");
    assert!(took < Duration::from_secs(70), "open after {took:?}");
    shop.assert_open().await;
    signal_all(&pair.cluster.target, "CONT");
    drop(blocked);
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;
    let output = command.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    pair.assert_cuts_over(engine).await;
}
