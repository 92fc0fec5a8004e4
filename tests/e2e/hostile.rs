//! Names and messages that are made to act on the terminal of whoever looks, or to look like a line of ours.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use super::harness::{DATABASE, Ended, PATIENCE, Pair};

/// Writes to the clipboard (OSC 52).
const CLIPBOARD: &str = "evil\x1b]52;c;eA\x07";

/// Begins lines like ours.
const LINES: &str = "evil\nwalferry: forged\n  hint: forged\ndropped forged";

/// Turns the order of what follows around, colours it (CSI in one character), and begins a line as the log does.
const TURNED: &str = "evil\u{202e}\u{9b}31m\n2026-01-01T00:00:00Z  INFO forged";

/// No text may act.
#[track_caller]
fn assert_passive(what: &str, text: &str) {
    let acts = |c: char| {
        c != '\n' && c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(acts), "{what}: {text:?}");
}

/// And none of its lines may begin as what is forged does.
#[track_caller]
fn assert_plain(what: &str, text: &str) {
    assert_passive(what, text);
    for forged in
        ["walferry: forged", "  hint: forged", "dropped forged", "2026-01-01T00:00:00Z  INFO forged"]
    {
        assert!(!text.lines().any(|line| line.starts_with(forged)), "{what}: {text}");
    }
}

#[track_caller]
fn check(what: &str, ended: &Ended) -> String {
    assert_plain(what, &ended.stdout);
    assert_plain(what, &ended.stderr);
    format!("{}{}", ended.stdout, ended.stderr)
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_by_people_does_not_act() {
    let pair = Pair::start().await;
    let (clipboard, lines, turned) = (quoted(CLIPBOARD), quoted(LINES), quoted(TURNED));
    let postgres = async |sql: String| pair.cluster.source.sql("postgres", &sql).await.unwrap();
    postgres(format!("CREATE DATABASE {lines} OWNER app_owner")).await;
    postgres(format!("CREATE ROLE {turned} LOGIN")).await;
    let bytes = |text: &str| format!("'{text}'");
    let every = [CLIPBOARD, LINES, TURNED].concat();
    pair.source(&format!(
        "SET ROLE app_owner; CREATE TABLE {clipboard} ({lines} int); CREATE TABLE {turned} (id int PRIMARY KEY);
         CREATE TABLE {lines} (id int PRIMARY KEY, {turned} text); INSERT INTO {lines} VALUES (1, {});
         RESET ROLE; CREATE PUBLICATION {turned} FOR TABLE {lines}",
        bytes(&every),
    ))
    .await;

    for arguments in [&[][..], &["--json"]] {
        let checked = pair.command("check").arguments(arguments).run().await;
        let text = check("check", &checked);
        assert!(text.contains("u{1b}]52") || text.contains("u001b]52"), "it names the table: {text}");
    }
    for evil in [CLIPBOARD, TURNED] {
        let missing = pair.command("check").arguments(&["--database", evil]).run().await;
        check("check of a database that is not there", &missing);
    }
    let missing = pair.command("tail").arguments(&["--publication", CLIPBOARD]).run().await;
    check("tail of a publication that is not there", &missing);
    let mut tail = pair.command("tail").arguments(&["--publication", TURNED]).process();
    let mut tail = tail.env_remove("TARGET_SERVICE_URI").stdout(Stdio::piped()).spawn().unwrap();
    let mut changes = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut change = 10;
    let line = loop {
        change += 1;
        pair.source(&format!("INSERT INTO {lines} VALUES ({change}, {})", bytes(&every))).await;
        if let Ok(line) = timeout(Duration::from_millis(500), changes.next_line()).await {
            let line = line.unwrap().expect("it goes on");
            assert_plain("tail", &line);
            if line.contains("\"insert\"") {
                break line;
            }
        }
    };
    let shown: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&shown["table"], &shown["new"][TURNED]), (&LINES.into(), &every.as_str().into()));
    tail.kill().await.unwrap();

    let mut engine = pair.migrate().start();
    engine
        .wait_details("all follow", |all| all.len() > 1 && all.values().all(|it| it["phase"] == "syncing"))
        .await;
    for arguments in [&[][..], &["--json"], &["--avn"]] {
        let shown = pair.command("status").arguments(arguments).run().await;
        let text = check("status", &shown);
        assert!(text.contains("forged"), "it names the database: {text}");
        assert!(arguments.is_empty() || serde_json::from_str::<Value>(&shown.stdout).is_ok());
    }
    let (_, page) = engine.get("/").await.expect("the page");
    // A line's end is a space there.
    assert_passive("the page", &page);
    let (table, database) = (format!("public.{lines}"), &["--database", DATABASE][..]);
    let resync = async || pair.command("resync").arguments(database).arguments(&[&table]).run().await;
    check("resync while it runs", &resync().await);
    // What comes is in another row's way: the last line names the table.
    pair.target(&format!("INSERT INTO {lines} VALUES (2, 'in the way')")).await;
    pair.source(&format!("INSERT INTO {lines} VALUES (2, {})", bytes(&every))).await;
    engine.wait_details("one has failed", |all| all[DATABASE]["phase"] == "failed").await;
    let shown = pair.command("status").run().await;
    assert!(check("status of what failed", &shown).contains("forged"));
    let refused = pair.command("resync").arguments(&[&table, "--log-format", "json"]).run().await;
    check("a failure as JSON", &refused);
    assert!(refused.stderr.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{refused:?}");
    check("cutover", &pair.command("cutover").arguments(&["--timeout", "10s"]).run().await);
    engine.signal("TERM");
    let log = engine.wait_exit(5, PATIENCE).await;
    assert_plain("migrate", &log);
    assert!(log.contains("forged"), "it names the table: {log}");
    check("resync", &resync().await);
    check("remove", &pair.command("remove").arguments(&["--force"]).run().await);
}
