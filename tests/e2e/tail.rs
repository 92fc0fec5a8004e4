//! `tail`: what changes, as lines of JSON.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::harness::{PATIENCE, Pair, wait_for};

struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    async fn start(pair: &Pair, arguments: &[&str]) -> Self {
        let mut command = pair.command("tail").arguments(arguments).process();
        command.env_remove("TARGET_SERVICE_URI").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let slot = "SELECT FROM pg_replication_slots WHERE temporary AND active AND confirmed_flush_lsn IS NOT NULL
                    AND EXISTS (SELECT FROM pg_stat_replication WHERE pid = active_pid AND state = 'streaming')";
        wait_for("a tail", PATIENCE, async || !pair.source(slot).await.is_empty()).await;
        Self { child, lines }
    }

    /// The next transaction, or what stands outside of any.
    async fn next(&mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time");
            lines.push(serde_json::from_str(&line.unwrap().expect("it goes on")).unwrap());
            let line: &Value = lines.last().unwrap();
            if line["kind"] == "commit" || lines[0]["kind"] != "begin" {
                return lines;
            }
        }
    }

    /// The same without what differs from run to run, and without the relations.
    async fn changes(&mut self) -> Vec<Value> {
        let lines = self.next().await;
        let (first, last) = (&lines[0], &lines[lines.len() - 1]);
        assert_eq!((&first["kind"], &last["kind"]), (&"begin".into(), &"commit".into()));
        assert_eq!(first["commit_lsn"], last["commit_lsn"]);
        assert!(first["commit_time"].as_str().unwrap().ends_with('Z'));
        let inside = lines[1..lines.len() - 1].iter().filter(|line| line["kind"] != "relation");
        let inside = inside.map(|line| {
            assert_eq!(line["xid"], first["xid"]);
            let mut line = line.clone();
            line.as_object_mut().unwrap().remove("xid");
            line
        });
        inside.collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_as_json() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    let sql = "CREATE TABLE t (k int PRIMARY KEY, \"V v\" text, big text);
               ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
               CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL";
    owner.batch_execute(sql).await.unwrap();
    let none = pair.command("tail").run().await;
    none.assert(2, &["migration \"default\" has no publication on the source", "CREATE PUBLICATION"]);
    owner.batch_execute("CREATE PUBLICATION mine FOR TABLE t, whole").await.unwrap();
    let missing = pair.command("tail").arguments(&["--publication", "other"]).run().await;
    missing.assert(2, &["publication \"other\" does not exist on the source"]);

    let mut tail = Tail::start(&pair, &["--publication", "mine"]).await;
    let sql = "BEGIN; INSERT INTO t VALUES (1, 'say \"hi\"', repeat('x', 9000)), (2, NULL, '');
               UPDATE t SET \"V v\" = 'ü' WHERE k = 1; UPDATE t SET k = 3 WHERE k = 2; DELETE FROM t WHERE k = 3;
               INSERT INTO whole VALUES (1, 'x'); UPDATE whole SET b = 'y'; TRUNCATE t, whole; COMMIT";
    owner.batch_execute(sql).await.unwrap();
    let changes = tail.changes().await;
    let table =
        |kind: &str, table: &str| serde_json::json!({"kind": kind, "schema": "public", "table": table});
    let with = |mut line: Value, fields: Value| {
        for (name, value) in fields.as_object().unwrap() {
            line[name] = value.clone();
        }
        line
    };
    let long = "x".repeat(9000);
    let (t, whole) = (|kind| table(kind, "t"), |kind| table(kind, "whole"));
    let emptied = [table("", "t"), table("", "whole")].map(|mut line| {
        line.as_object_mut().unwrap().remove("kind");
        line
    });
    let expected = [
        with(t("insert"), serde_json::json!({"new": {"k": "1", "V v": "say \"hi\"", "big": long}})),
        with(t("insert"), serde_json::json!({"new": {"k": "2", "V v": null, "big": ""}})),
        with(t("update"), serde_json::json!({"new": {"k": "1", "V v": "ü"}, "unchanged": ["big"]})),
        with(t("update"), serde_json::json!({"key": {"k": "2"}, "new": {"k": "3", "V v": null, "big": ""}})),
        with(t("delete"), serde_json::json!({"key": {"k": "3"}})),
        with(whole("insert"), serde_json::json!({"new": {"a": "1", "b": "x"}})),
        with(whole("update"), serde_json::json!({"old": {"a": "1", "b": "x"}, "new": {"a": "1", "b": "y"}})),
        serde_json::json!({"kind": "truncate", "tables": emptied, "cascade": false, "restart_identity": false}),
    ];
    assert_eq!(changes, expected);

    owner.batch_execute("SELECT pg_logical_emit_message(false, 'app', 'hello')").await.unwrap();
    let beside = tail.next().await.remove(0);
    assert_eq!(
        (&beside["kind"], &beside["prefix"], &beside["content"]),
        (&"message".into(), &"app".into(), &"hello".into())
    );

    // It goes as it came: SIGTERM, and nothing is left on the source.
    let pid = tail.child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let status = timeout(PATIENCE, tail.child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
    let gone = async || pair.source("SELECT FROM pg_replication_slots").await.is_empty();
    wait_for("no slot", PATIENCE, gone).await;
}

/// Beside a migration, on its publications, without being in its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_migration() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute("CREATE TABLE t (k int PRIMARY KEY); CREATE TABLE no_key (k int)").await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let mut tail = Tail::start(&pair, &[]).await;
    owner.batch_execute("INSERT INTO t VALUES (1); INSERT INTO no_key VALUES (2)").await.unwrap();
    let new: Vec<Value> = tail.changes().await.into_iter().map(|line| line["new"]["k"].clone()).collect();
    assert_eq!(new, ["1", "2"]);
    tail.child.kill().await.unwrap();
    pair.assert_ends_equal(engine).await;
    let gone = async || pair.source("SELECT FROM pg_replication_slots WHERE temporary").await.is_empty();
    wait_for("no temporary slot", PATIENCE, gone).await;
    pair.assert_removes().await;
}
