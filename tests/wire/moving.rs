//! Moving data: COPY, pipelines, and COPY BOTH.

use std::time::Duration;

use rcgen::PKCS_ECDSA_P256_SHA256;
use walferry::pg::Sql;
use walferry::wire::{
    ConnInfo, Error, Pipeline, RelayError, Session, SessionOptions, TransactionStatus, relay,
};

use crate::server::Server;

async fn connect(conninfo: &ConnInfo) -> Session {
    Session::connect(conninfo, &SessionOptions::default()).await.expect("connect")
}

async fn one(session: &mut Session, sql: &'static str) -> String {
    let rows = session.query(&Sql::new(sql)).await.expect(sql);
    rows[0].text(0).expect(sql).to_owned()
}

async fn run(session: &mut Session, sql: &'static str) {
    session.execute(&Sql::new(sql)).await.expect(sql);
}

/// Fails rather than hangs.
async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

#[tokio::test]
async fn copies() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    for mode in ["disable", "require"] {
        let conninfo = server.scram(&format!("sslmode={mode}"));
        let (mut source, mut target) = (connect(&conninfo).await, connect(&conninfo).await);
        run(
            &mut source,
            "DROP TABLE IF EXISTS public.a, public.b;
             CREATE TABLE public.a (id int, t text);
             INSERT INTO public.a SELECT i, repeat('x', i % 300) FROM generate_series(1, 100000) i;
             INSERT INTO public.a SELECT 0, string_agg(md5(i::text), '') FROM generate_series(1, 655360) i;
             CREATE TABLE public.b (id int CHECK (id < 1000000), t text)",
        )
        .await;
        relay_all(&mut source, &mut target).await;
        relay_refused(&mut source, &mut target).await;
        // The failed relay left the source sending.
        let mut source = connect(&conninfo).await;
        copy_errors(&mut source, &mut target).await;
    }
}

async fn relay_all(source: &mut Session, target: &mut Session) {
    let rows = source.copy_out(&Sql::new("COPY public.a TO STDOUT")).await.expect("copy out");
    let into = target.copy_in(&Sql::new("COPY public.b FROM STDIN")).await.expect("copy in");
    let (mut rows_seen, mut progress) = (0, 0);
    let relayed = bounded(
        "relay",
        relay(rows, into, |messages, bytes| (rows_seen, progress) = (rows_seen + messages, progress + bytes)),
    )
    .await
    .expect("relay");
    assert_eq!((relayed.rows_read, relayed.rows_written), (100_001, 100_001));
    assert_eq!((relayed.rows_read, relayed.bytes), (rows_seen, progress));
    let differ = "SELECT count(*) FROM (TABLE public.a EXCEPT ALL TABLE public.b) d";
    assert_eq!(one(target, differ).await, "0");
    assert_eq!(one(source, "SELECT max(length(t)) FROM public.a").await, "20971520");
}

/// The target refuses an early row of many: the relay ends at once, and the target can be used again.
async fn relay_refused(source: &mut Session, target: &mut Session) {
    let many =
        Sql::new("COPY (SELECT 999990 + i, repeat('y', 1000) FROM generate_series(1, 200000) i) TO STDOUT");
    let rows = source.copy_out(&many).await.expect("copy out");
    let into = target.copy_in(&Sql::new("COPY public.b FROM STDIN")).await.expect("copy in");
    let error = bounded("refused relay", relay(rows, into, |_, _| ())).await.expect_err("the check fails");
    let RelayError::Target(Error::Server(error)) = error else { panic!("{error}") };
    assert_eq!((error.sqlstate(), error.constraint()), ("23514", Some("b_id_check")));
    assert_eq!(one(target, "SELECT count(*) FROM public.b").await, "100001");
    assert!(matches!(source.query(&Sql::new("SELECT 1")).await, Err(Error::Busy)));
}

async fn copy_errors(source: &mut Session, target: &mut Session) {
    let error = source.copy_out(&Sql::new("SELECT 1")).await.expect_err("not a copy");
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
    let error = source.copy_out(&Sql::new("COPY public.none TO STDOUT")).await.expect_err("no such table");
    assert_eq!(error.server().expect("server").sqlstate(), "42P01");
    let error = source.query(&Sql::new("COPY public.b FROM STDIN")).await.expect_err("nothing to copy");
    assert_eq!(error.server().expect("server").sqlstate(), "57014");

    let failing =
        Sql::new("COPY (SELECT 1 / (500 - i), repeat('z', 10000) FROM generate_series(1, 1000) i) TO STDOUT");
    let rows = source.copy_out(&failing).await.expect("copy out");
    let into = target.copy_in(&Sql::new("COPY public.b FROM STDIN")).await.expect("copy in");
    let error = bounded("failing source", relay(rows, into, |_, _| ())).await.expect_err("division by zero");
    assert!(
        matches!(&error, RelayError::Source(Error::Server(error)) if error.sqlstate() == "22012"),
        "{error}"
    );

    let mut into = target.copy_in(&Sql::new("COPY public.b FROM STDIN")).await.expect("copy in");
    for piece in [&b"1\ta\n2"[..], b"\tb\n", b"3\tc\n"] {
        into.send_data(piece).await.expect("send");
    }
    assert_eq!(into.finish().await.expect("finish"), 3);
    let mut into = target.copy_in(&Sql::new("COPY public.b FROM STDIN")).await.expect("copy in");
    into.send_data(b"1\ta\n").await.expect("send");
    into.abort("a test").await.expect("abort");
    let mut into = target.copy_in(&Sql::new("COPY public.b FROM STDIN")).await.expect("copy in");
    into.send_data(b"not a number\ta\n").await.expect("send");
    let error = into.finish().await.expect_err("not a number");
    assert!(!error.to_string().contains("not a number"), "{error}");
    assert_eq!(one(target, "SELECT count(*) FROM public.b").await, "100004");
}

#[tokio::test]
async fn pipelines() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    for mode in ["disable", "require"] {
        let mut session = connect(&server.scram(&format!("sslmode={mode}"))).await;
        run(
            &mut session,
            "DROP TABLE IF EXISTS public.t; CREATE TABLE public.t (id int PRIMARY KEY, v text)",
        )
        .await;
        let mut pipeline = Pipeline::new();
        a_failing_statement(&mut session, &mut pipeline).await;
        rows_and_groups(&mut session, &mut pipeline).await;
        many(&mut session, &mut pipeline).await;
    }
}

async fn a_failing_statement(session: &mut Session, pipeline: &mut Pipeline) {
    pipeline.parse("ins", &Sql::new("INSERT INTO public.t VALUES ($1, $2)")).expect("parse");
    for id in ["1", "2", "oops", "3"] {
        pipeline.execute("ins", [Some(id.as_bytes()), None]).expect("execute");
    }
    pipeline.sync();
    pipeline.execute("ins", [Some(&b"10"[..]), Some(b"later group")]).expect("execute");
    let error = bounded("failing pipeline", session.run(pipeline)).await.expect_err("not a number");
    assert_eq!((error.execute, error.error.server().expect("server").sqlstate()), (Some(2), "22P02"));
    assert!(!error.to_string().contains("oops"), "{error}");
    assert!(pipeline.is_empty());
    assert_eq!(session.transaction_status(), TransactionStatus::Idle);
    assert_eq!(one(session, "SELECT string_agg(v, ',') FROM public.t").await, "later group");

    run(session, "BEGIN").await;
    pipeline.execute("ins", [Some(&b"10"[..]), None]).expect("execute");
    let error = session.run(pipeline).await.expect_err("duplicate");
    assert_eq!(error.error.server().expect("server").constraint(), Some("t_pkey"));
    assert_eq!(session.transaction_status(), TransactionStatus::Failed);
    run(session, "ROLLBACK").await;
    pipeline.parse("bad", &Sql::new("SELECT nonsense")).expect("parse");
    pipeline.execute("bad", []).expect("execute");
    assert_eq!(session.run(pipeline).await.expect_err("no such column").execute, Some(0));
    assert!(pipeline.parse("zero\0", &Sql::new("SELECT 1")).is_err());
    assert!(pipeline.is_empty());
}

async fn rows_and_groups(session: &mut Session, pipeline: &mut Pipeline) {
    pipeline.parse("", &Sql::new("UPDATE public.t SET v = v || '!'")).expect("parse");
    pipeline.execute("", []).expect("execute");
    pipeline.parse("lsn", &Sql::new("SELECT pg_current_wal_insert_lsn(), NULL, $1")).expect("parse");
    pipeline.sync();
    pipeline.execute("lsn", [Some("é".as_bytes())]).expect("execute");
    pipeline.close("lsn").expect("close");
    let outcome = session.run(pipeline).await.expect("run");
    assert_eq!(outcome.affected, [1, 1]);
    let [(1, row)] = &outcome.rows[..] else { panic!("{outcome:?}") };
    assert!(row.text(0).is_some_and(|lsn| lsn.contains('/')));
    assert_eq!((row.text(1), row.text(2), row.len()), (None, Some("é"), 3));
    pipeline.execute("lsn", [None]).expect("execute");
    let error = session.run(pipeline).await.expect_err("closed");
    assert_eq!(error.error.server().expect("server").sqlstate(), "26000");
}

/// One Sync for 100,000 executes, whose answers alone exceed every socket's buffers.
async fn many(session: &mut Session, pipeline: &mut Pipeline) {
    pipeline.parse("up", &Sql::new("SELECT $1::int, repeat('x', 200) WHERE $1::int >= 0")).expect("parse");
    for _ in 0..2 {
        for id in 0..100_000 {
            let id = id.to_string();
            pipeline.execute("up", [Some(id.as_bytes())]).expect("execute");
        }
        let outcome = bounded("many executes", session.run(pipeline)).await.expect("run");
        assert_eq!(outcome.affected.len(), 100_000);
        assert!(outcome.affected.iter().all(|&rows| rows == 1));
        assert_eq!(outcome.rows.len(), 100_000);
        assert_eq!(outcome.rows[99_999].1.text(0), Some("99999"));
    }
}

/// A slot of the textual test plugin, so that this needs nothing of pgoutput's format: XLogData is `w`, three numbers of
/// eight bytes, and the plugin's text.
#[tokio::test]
async fn copy_both() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    let conninfo = server.scram("sslmode=require");
    let mut sql = connect(&conninfo).await;
    run(&mut sql, "CREATE TABLE public.t (id int, v text); CREATE PUBLICATION p FOR ALL TABLES").await;
    let options = SessionOptions { replication: true, ..SessionOptions::default() };
    let mut sender = Session::connect(&conninfo, &options).await.expect("connect");
    let rows = sender
        .query(&Sql::new("CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'nothing')"))
        .await
        .expect("create slot");
    assert_eq!(rows[0].named("slot_name"), Some("s"));
    let start = Sql::new("START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', publication_names 'p')");
    let (mut reader, mut writer) = sender.copy_both(&start).await.expect("start");

    // From another task, as in earnest: status updates that say 0/0, one asking for a reply.
    let status = [&[b'r'][..], &[0; 32], &[1]].concat();
    let updates = tokio::spawn(async move {
        for _ in 0..20 {
            writer.send(&status).await.expect("send");
        }
        writer
    });
    run(&mut sql, "INSERT INTO public.t SELECT i, repeat('v', 100) FROM generate_series(1, 50000) i").await;
    run(&mut sql, "INSERT INTO public.t VALUES (0, repeat('w', 3000000))").await;
    let (mut inserts, mut keepalives, mut longest, mut buffered) = (0, 0, 0, 0);
    while inserts < 50_001 || keepalives < 20 {
        // Giving up a read over and over loses nothing.
        let payload = match reader.try_next().expect("try_next") {
            Some(payload) => {
                buffered += 1;
                payload
            }
            None => match tokio::time::timeout(Duration::from_micros(200), bounded("stream", reader.next()))
                .await
            {
                Ok(payload) => payload.expect("next").expect("not ended"),
                Err(_) => continue,
            },
        };
        match (payload[0], payload.get(25)) {
            (b'w', Some(b'I')) => inserts += 1,
            (b'k', _) => keepalives += 1,
            _ => {}
        }
        longest = longest.max(payload.len());
    }
    assert!(longest > 3_000_000 && buffered > 10_000, "{longest} {buffered}");

    let mut writer = updates.await.expect("task");
    writer.done().await.expect("done");
    while bounded("end", reader.next()).await.expect("next").is_some() {}
    let mut sender = bounded("finish", reader.finish(writer)).await.expect("finish");
    let rows = sender.query(&Sql::new("IDENTIFY_SYSTEM")).await.expect("a usable session");
    assert_eq!(rows[0].named("dbname"), Some("postgres"));

    let error =
        sender.copy_both(&Sql::new("START_REPLICATION SLOT none LOGICAL 0/0")).await.expect_err("no slot");
    assert_eq!(error.server().expect("server").sqlstate(), "42704");
}

/// What the server says last is what is reported.
#[tokio::test]
async fn a_terminated_session_says_why() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    let conninfo = server.scram("");
    let (mut victim, mut other) = (connect(&conninfo).await, connect(&conninfo).await);
    let kill = Sql::new("SELECT pg_terminate_backend(").number(victim.process_id()).text(", 5000)");
    other.query(&kill).await.expect("terminate");
    let error = victim.query(&Sql::new("SELECT 1")).await.expect_err("terminated");
    assert_eq!(
        error.server().map(|error| error.sqlstate().to_owned()).as_deref(),
        Some("57P01"),
        "{error:?}"
    );
    assert!(error.is_transient());
    assert!(matches!(victim.query(&Sql::new("SELECT 1")).await, Err(Error::Closed)));
    let error =
        walferry::wire::control(&conninfo, "x").await.expect("connect").batch_execute("SELECT 1/0").await;
    assert_eq!(
        Error::from(error.expect_err("zero")).server().map(|e| e.class().to_owned()),
        Some("22".into())
    );
}
