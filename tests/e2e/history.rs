//! A source whose history is not the one that was applied: its positions fit, its transactions do not. And what the
//! engine relies on to tell, on every source version.

use std::process::Command;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::time::timeout;
use walferry::demo::{APP_OWNER, PgBinaries, Server, ServerOptions, StopMode};
use walferry::pg::{CommitLsn, EndLsn, PgTimestamp, SlotName, SourceLsn, Xid};
use walferry::proto::{Layout, Message, ReplicationFrame, StandbyStatusUpdate};
use walferry::source::replication::{ReplicationSession, StreamOptions};
use walferry::wire::{CopyBothReader, CopyBothWriter};

use super::harness::{DATABASE, Engine, PATIENCE, Pair, lsn, turn, wait_for};
use super::keepalive::{conninfo, server};
use super::versions::{self, on_each_version};

mod a_stream_begins_with_the_transaction_that_it_is_opened_at {
    super::on_each_version!(super::reopened);
}

/// What a stream says of a transaction.
type Told = (CommitLsn, EndLsn, Xid, PgTimestamp);

/// Also that a fast shutdown needs no confirmation, and takes none from an answer that names nothing as flushed.
async fn reopened(major: u32) {
    let Some(binaries) = versions::source(major).await else { return };
    let _turn = turn().await;
    let server = server(&binaries).await;
    let slot = SlotName::new("history").unwrap();
    let mut session = ReplicationSession::connect(&conninfo(&server), "history").await.unwrap();
    let created = session.create_slot(&slot, false, PATIENCE).await.unwrap();
    drop(session);
    for sql in [
        "INSERT INTO t VALUES (1, 1)",
        "SELECT pg_logical_emit_message(true, 'walferry', '')",
        "INSERT INTO t SELECT 2, g FROM generate_series(1, 5000) g",
        "INSERT INTO t VALUES (2, 2); TRUNCATE t",
        "INSERT INTO t VALUES (3, 3)",
    ] {
        server.sql("here", sql).await.unwrap();
    }
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let confirmed = async || server.sql("here", confirmed).await.unwrap()[0][0].clone().unwrap();
    let before = confirmed().await;

    let (mut reader, mut writer) = open(&server, &slot, created.consistent_point).await;
    // What changes nothing comes on all but the newest, what is emitted does on all but the oldest: as one that changes nothing.
    let mut all = Vec::new();
    while all.len() < 5 {
        all.push(next(&mut reader, &mut writer).await);
    }
    let listening = tokio::spawn(async move {
        // Until the server ends it.
        while let Ok(Some(payload)) = reader.next().await {
            answer(payload, &mut writer).await;
        }
    });
    let stopping = Instant::now();
    server.stop(StopMode::Fast).await.unwrap();
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
    timeout(PATIENCE, listening).await.unwrap().unwrap();
    server.start_again().await.unwrap();
    assert_eq!(confirmed().await, before, "an answer that names nothing confirms nothing");

    for told in &all {
        let (mut reader, mut writer) = open(&server, &slot, told.0.position()).await;
        assert_eq!(next(&mut reader, &mut writer).await, *told, "PostgreSQL {}", binaries.version());
    }
}

/// As the engine opens it.
async fn open(server: &Server, slot: &SlotName, from: SourceLsn) -> (CopyBothReader, CopyBothWriter) {
    let free = "SELECT FROM pg_replication_slots WHERE active";
    let is_free = async || server.sql("here", free).await.unwrap().is_empty();
    wait_for("the slot is free", PATIENCE, is_free).await;
    let session = ReplicationSession::connect(&conninfo(server), "history").await.unwrap();
    let options = StreamOptions { streaming: true, messages: true };
    session.start(slot, from, &["p".to_owned()], options).await.unwrap()
}

/// The next transaction.
async fn next(reader: &mut CopyBothReader, writer: &mut CopyBothWriter) -> Told {
    let mut begun = None;
    loop {
        let payload = timeout(PATIENCE, reader.next()).await.expect("in time").unwrap().expect("goes on");
        match answer(payload, writer).await {
            Some(Message::Begin(begin)) => begun = Some(begin),
            Some(Message::Commit(commit)) => {
                let begin = begun.expect("it has begun");
                assert_eq!((begin.final_lsn, begin.commit_time), (commit.commit_lsn, commit.commit_time));
                return (commit.commit_lsn, commit.end_lsn, begin.xid, begin.commit_time);
            }
            _ => {}
        }
    }
}

/// The message; a keepalive is answered: all is written, of what is flushed nothing is said.
async fn answer(payload: bytes::Bytes, writer: &mut CopyBothWriter) -> Option<Message> {
    match ReplicationFrame::decode(payload).unwrap() {
        ReplicationFrame::XLogData(data) => Some(Message::decode(data.payload, Layout::PLAIN).unwrap().1),
        ReplicationFrame::PrimaryKeepalive(keepalive) => {
            let update = StandbyStatusUpdate {
                written: keepalive.wal_end,
                flushed: SourceLsn::ZERO,
                applied: keepalive.wal_end,
                sent_at: PgTimestamp::default(),
                reply_requested: false,
            };
            let mut message = BytesMut::new();
            update.encode(&mut message);
            // The server may be gone.
            let _ = writer.send(&message).await;
            None
        }
    }
}

/// A source of 17 with a standby that keeps a copy of the slot.
async fn with_standby(waits: bool) -> (Pair, Server) {
    let seventeen = PgBinaries::find(Some(17)).await.unwrap();
    let pair = Pair::of(seventeen.clone(), seventeen, |_| {}).await;
    let source = &pair.cluster.source;
    let options = ServerOptions::default()
        .setting("hot_standby_feedback", "on")
        .setting("sync_replication_slots", "on");
    let standby = source.standby("standby", options).await.unwrap();
    let statement = "ALTER SYSTEM SET synchronized_standby_slots = 'standby';";
    let check = pair.command("check").arguments(&["--json"]).run().await;
    check.assert(0, &["by their slots: standby", statement, "ALTER SYSTEM SET sync_replication_slots = on;"]);
    if waits {
        source.sql("postgres", statement).await.unwrap();
        source.sql("postgres", "SELECT pg_reload_conf()").await.unwrap();
        let reloaded = async || pair.source_value("SHOW synchronized_standby_slots").await == "standby";
        wait_for("the setting counts", PATIENCE, reloaded).await;
        pair.command("check").arguments(&["--json"]).run().await.assert(0, &["the stream waits for standby"]);
    }
    pair.source("CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t OWNER TO app_owner").await;
    (pair, standby)
}

/// The standby has the slot, and keeps it when it is promoted: not before the source's slot is beyond where the standby began.
async fn wait_synced(pair: &Pair, standby: &Server) {
    let synced =
        "SELECT FROM pg_replication_slots WHERE synced AND NOT temporary AND invalidation_reason IS NULL";
    let is_synced = async || {
        pair.source("SELECT pg_log_standby_snapshot()").await;
        pair.source("SELECT pg_logical_emit_message(true, 'test', '')").await;
        !standby.sql("postgres", synced).await.unwrap().is_empty()
    };
    wait_for("the standby has the slot", PATIENCE, is_synced).await;
}

/// An engine that follows, whose slot the standby has.
async fn followed(pair: &Pair, standby: &Server) -> Engine {
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO public.t SELECT generate_series(1, 100)").await;
    pair.assert_follows(&mut engine).await;
    wait_synced(pair, standby).await;
    engine
}

/// The same role there: roles come with the rest.
fn uri_on(pair: &Pair, standby: &Server) -> String {
    standby.uri(APP_OWNER, &pair.cluster.source_login.password, DATABASE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_lost_nothing_is_followed() {
    let (pair, standby) = with_standby(true).await;
    let mut engine = followed(&pair, &standby).await;
    // The engine has what the standby has: the source waits for that one first.
    pair.source("INSERT INTO public.t SELECT generate_series(101, 200)").await;
    pair.assert_follows(&mut engine).await;
    pair.cluster.source.kill9().await.unwrap();
    engine.terminate(0).await;

    standby.sql("postgres", "SELECT pg_promote()").await.unwrap();
    standby.sql(DATABASE, "INSERT INTO public.t SELECT generate_series(201, 300)").await.unwrap();
    let launch = pair.migrate().source(uri_on(&pair, &standby));
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let all_came = async || pair.target_value("SELECT count(*) FROM public.t").await == "300";
    wait_for("what the new primary wrote comes", PATIENCE, all_came).await;
    assert!(engine.log().contains("the source failed over; nothing is lost"), "{}", engine.log());
    engine.terminate(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_lost_commits_is_refused() {
    let (pair, standby) = with_standby(false).await;
    let mut engine = followed(&pair, &standby).await;
    for sql in ["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"] {
        standby.sql("postgres", sql).await.unwrap();
    }
    let receives = "SELECT FROM pg_stat_wal_receiver";
    let is_cut = async || standby.sql("postgres", receives).await.unwrap().is_empty();
    wait_for("the standby is cut off", PATIENCE, is_cut).await;
    pair.source("INSERT INTO public.t SELECT generate_series(101, 200)").await;
    pair.assert_follows(&mut engine).await;
    pair.cluster.source.kill9().await.unwrap();
    engine.terminate(0).await;

    standby.sql("postgres", "SELECT pg_promote()").await.unwrap();
    // Far beyond the position that is stored.
    standby.sql(DATABASE, "INSERT INTO public.t SELECT generate_series(1001, 9000)").await.unwrap();
    let wal = "SELECT pg_current_wal_lsn()";
    let wal = standby.sql("postgres", wal).await.unwrap()[0][0].clone().unwrap();
    assert!(lsn(&wal) > pair.progress().await, "the positions fit");
    let ended = pair.migrate().source(uri_on(&pair, &standby)).run_for(PATIENCE).await;
    ended.assert(
        5,
        &[
            "the source's history is another than the one that was applied",
            "a standby was promoted that lacked commits",
        ],
    );
    assert_eq!(pair.target_value("SELECT max(id) FROM public.t").await, "200", "nothing of it is applied");
}

/// The last transaction applied wrote to a table alone that is published no more: it comes again all the same, since the
/// source decodes it by the catalog of its time. Were it to come empty, 15 and newer would leave it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_transaction_is_of_a_table_that_left() {
    let pair = Pair::start().await;
    for table in ["t", "u"] {
        pair.source(&format!("CREATE TABLE public.{table} (id int PRIMARY KEY)")).await;
        pair.source(&format!("ALTER TABLE public.{table} OWNER TO app_owner")).await;
    }
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO public.t VALUES (1)").await;
    pair.source("INSERT INTO public.u VALUES (1)").await;
    pair.assert_follows(&mut engine).await;
    engine.kill9().await;
    let slot = pair.slot().await;
    pair.source(&format!("ALTER PUBLICATION {slot} DROP TABLE public.u")).await;
    pair.source("INSERT INTO public.u VALUES (2)").await;
    let statement = format!("ALTER PUBLICATION \"{slot}\" ADD TABLE ONLY \"public\".\"u\";");
    pair.migrate()
        .run_for(PATIENCE)
        .await
        .assert(5, &["no longer in the migration's publications", &statement]);
    pair.owner().await.batch_execute(&statement).await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO public.t VALUES (2)").await;
    pair.source("INSERT INTO public.u VALUES (3)").await;
    // It is taken in again, and copied again.
    let all_came = async || pair.target_value("SELECT count(*) FROM public.u").await == "3";
    wait_for("the table comes", PATIENCE, all_came).await;
    engine.wait_phase("syncing").await;
    let log = engine.log();
    assert!(!log.contains("history"), "{log}");
    pair.assert_cuts_over(engine).await;
}

/// The source's disk as it was earlier, with other transactions since, beyond the position that is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_disk_is_refused() {
    let pair = Pair::start().await;
    let source = &pair.cluster.source;
    pair.source("CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t OWNER TO app_owner").await;
    pair.source("CREATE TABLE public.u (id int PRIMARY KEY); ALTER TABLE public.u OWNER TO app_owner").await;
    pair.source("INSERT INTO public.u VALUES (7)").await;
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO public.t VALUES (1)").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
    source.stop(StopMode::Fast).await.unwrap();
    let (data, earlier) = (source.data_dir(), source.data_dir().with_extension("earlier"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&data, &earlier);
    source.start_again().await.unwrap();
    // As a release left it that knew nothing of histories.
    let columns = ["last_commit_lsn", "last_end_lsn", "last_xid", "last_commit_micros", "timeline"];
    let dropped: Vec<String> = columns.iter().map(|column| format!("DROP COLUMN {column}")).collect();
    pair.target(&format!(
        "ALTER TABLE walferry.progress {}; DROP TABLE walferry.version",
        dropped.join(", ")
    ))
    .await;
    // The same disk: it goes on.
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.source("INSERT INTO public.t SELECT generate_series(2, 50)").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;

    source.stop(StopMode::Fast).await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&earlier, &data);
    source.start_again().await.unwrap();
    pair.source("INSERT INTO public.t SELECT generate_series(100, 5000)").await;
    // That would have it copied again.
    pair.source("ALTER TABLE public.u ALTER id TYPE int USING id + 1").await;
    assert!(pair.source_wal().await > pair.progress().await, "the positions fit");
    let ended = launch.run_for(PATIENCE).await;
    ended.assert(
        5,
        &["the source's history is another than the one that was applied", "walferry remove --force"],
    );
    assert_eq!(pair.target_value("SELECT count(*) FROM public.t").await, "50", "nothing of it is applied");
    assert_eq!(pair.target_value("SELECT id FROM public.u").await, "7", "nothing of it is copied");
}
