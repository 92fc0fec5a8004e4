//! Peers that are no servers, or lie: each is a listener that speaks the protocol badly, and counts what it got rid of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walferry::error::Side;
use walferry::pg::Sql;
use walferry::wire::{ConnInfo, Environment, Error, Session, SessionOptions, control};

/// More than any bound: a liar that is believed so far has shown what it wanted.
const ENOUGH: usize = 400 << 20;

/// What may be on its way in buffers of both ends, besides what is read.
const ON_ITS_WAY: usize = 16 << 20;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("small");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// A header that promises so many bytes.
fn header(tag: u8, length: u32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

/// Up to the first ReadyForQuery, as a server of version 13: to a newer one more is said before anybody asks.
fn welcome() -> Vec<u8> {
    [message(b'R', &[0; 4]), parameter("server_version", "13.9"), message(b'K', &[0; 8]), message(b'Z', b"I")]
        .concat()
}

/// Reads one message of the client's; its type, and 0 for the first one, which has none.
async fn heard(stream: &mut TcpStream, first: bool) -> std::io::Result<u8> {
    let tag = if first { 0 } else { stream.read_u8().await? };
    let length = stream.read_u32().await?;
    let mut body = vec![0; usize::try_from(length).expect("small") - 4];
    stream.read_exact(&mut body).await?;
    Ok(tag)
}

/// What it says: at first, and then over and over.
#[derive(Clone)]
struct Lie {
    begin: Vec<u8>,
    again: Vec<u8>,
}

/// Listens; lies to each client after the startup message, or lets it in, and lies when so many questions are answered. Gives
/// how many bytes it got rid of.
async fn liar(lets_in: Option<usize>, lie: Lie) -> (ConnInfo, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (lie, count) = (lie.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                heard(&mut stream, true).await?;
                if let Some(answered) = lets_in {
                    stream.write_all(&welcome()).await?;
                    for _ in 0..answered {
                        heard(&mut stream, false).await?;
                        stream.write_all(&[message(b'C', b"SET\0"), message(b'Z', b"I")].concat()).await?;
                    }
                    heard(&mut stream, false).await?;
                }
                stream.write_all(&lie.begin).await?;
                let (mut back, mut stream) = stream.into_split();
                // Else what the client says would fill the way.
                tokio::spawn(async move { tokio::io::copy(&mut back, &mut tokio::io::sink()).await });
                if lie.again.is_empty() {
                    std::future::pending::<()>().await;
                }
                let piece = lie.again.repeat((64 << 10) / lie.again.len() + 1);
                while count.load(Ordering::Relaxed) < ENOUGH {
                    stream.write_all(&piece).await?;
                    count.fetch_add(piece.len(), Ordering::Relaxed);
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    let text = format!(
        "host=127.0.0.1 port={port} user=u password=p dbname=d sslmode=disable require_auth=none,md5,password"
    );
    (ConnInfo::parse(&text, &Environment::default()).expect("valid"), sent)
}

/// How an attempt to connect ends, and how much was taken in.
async fn connecting(begin: Vec<u8>, again: &[u8]) -> (String, usize) {
    let (info, sent) = liar(None, Lie { begin, again: again.to_vec() }).await;
    let options = SessionOptions::default();
    let ended = tokio::time::timeout(Duration::from_secs(12), Session::connect(&info, &options));
    let error = match ended.await {
        Ok(Ok(_)) => "let in".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "still at it".to_owned(),
    };
    (error, sent.load(Ordering::Relaxed))
}

#[track_caller]
fn check(what: &str, (error, taken): (String, usize), expected: &str, bound: usize) {
    assert!(error.contains(expected), "{what}: {error}");
    assert!(taken <= bound + ON_ITS_WAY, "{what}: {taken} bytes were taken: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_listened_to_for_long() {
    let letters = [b'x'; 64];
    let huge = "the server sent a message of type";
    let ended = connecting(header(b'E', 1 << 30), &letters).await;
    check("an error", ended, huge, 0);
    let sasl = [header(b'R', 1 << 30), vec![0, 0, 0, 10]].concat();
    let ended = connecting(sasl, b"SCRAM-SHA-256\0").await;
    check("a list of mechanisms", ended, huge, 0);
    for (what, unasked) in [
        ("parameters", parameter("a", "b")),
        ("notices", message(b'N', b"SNOTICE\0\0")),
        ("notifications", message(b'A', b"\0\0\0\0a\0b\0")),
        ("data", message(b'd', b"row")),
    ] {
        let ended = connecting(Vec::new(), &unasked).await;
        check(what, ended, "while authenticating", 0);
    }
    for (what, request) in [
        ("cleartext, again and again", vec![0, 0, 0, 3]),
        ("md5, again and again", vec![0, 0, 0, 5, 1, 2, 3, 4]),
    ] {
        let request = message(b'R', &request);
        let (info, _) = liar(None, Lie { begin: Vec::new(), again: request }).await;
        let error = Session::connect(&info, &SessionOptions::default()).await.expect_err(what);
        assert!(error.to_string().contains("a second time"), "{what}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_start_is_not_waited_for_at_any_price() {
    let in_at_once = message(b'R', &[0; 4]);
    let value = "v".repeat(20_000);
    let many: Vec<u8> = (0..300).flat_map(|number| parameter(&format!("n{number}"), &value)).collect();
    let ended = connecting([in_at_once.clone(), many].concat(), &parameter("server_version", "15")).await;
    check("many parameters", ended, "more than 200 parameters", 0);
    let ended = connecting([in_at_once.clone(), header(b'S', 1 << 30)].concat(), b"x").await;
    check("a large parameter", ended, "a message of type 'S'", 0);
    let ended = connecting([in_at_once, header(b'E', 1 << 30)].concat(), b"x").await;
    check("a large error", ended, "a message of type 'E'", 0);
}

/// How a question to a liar ends, on either kind of connection, and how much was taken in.
async fn asking(begin: Vec<u8>, again: &[u8]) -> [(String, usize); 2] {
    const PATIENCE: Duration = Duration::from_secs(60);
    let lie = Lie { begin, again: again.to_vec() };
    let (info, sent) = liar(Some(0), lie.clone()).await;
    let mut session = Session::connect(&info, &SessionOptions::default()).await.expect("let in");
    let ended = tokio::time::timeout(PATIENCE, session.query(&Sql::new("SELECT 1"))).await;
    let error = ended.map_or("still at it".to_owned(), |ended| ended.expect_err("a lie").to_string());
    let own = (error, sent.load(Ordering::Relaxed));
    drop(session);

    let (info, sent) = liar(Some(0), lie).await;
    let client = control(&info, "test").await.expect("let in");
    let ended = tokio::time::timeout(PATIENCE, client.simple_query("SELECT 1")).await;
    let error = match ended {
        Ok(ended) => Error::from(ended.expect_err("a lie")).into_failure(Side::Source).to_string(),
        Err(_) => "still at it".to_owned(),
    };
    [own, (error, sent.load(Ordering::Relaxed))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_has_an_end() {
    let columns = message(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let row = message(b'D', &[&[0, 1, 0, 0, 0x75, 0x30][..], &[b'x'; 30_000]].concat());
    let [own, control] = asking(columns.clone(), &row).await;
    check("rows", own, "the server sent an answer of more than 16 MiB", 16 << 20);
    check("rows, control", control, "an answer of more than 256 MiB, and is not listened to", 256 << 20);
    let [own, control] = asking(message(b'T', &[0, 0]), &message(b'D', &[0, 0])).await;
    check("empty rows", own, "an answer of more than 16 MiB", 16 << 20);
    check("empty rows, control", control, "an answer of more than 256 MiB", 64 << 20);
    for tag in *b"ENTSACnt" {
        let what = format!("a large {}", char::from(tag));
        let sent = format!("the server sent a message of type {:?}", char::from(tag));
        let [own, control] = asking(header(tag, 1 << 30), b"x").await;
        check(&what, own, &sent, 1 << 20);
        assert!(control.0.contains("the server sends more than a server has to say"), "{}", control.0);
        check(&what, control, &sent, 1 << 20);
    }
    let [own, control] = asking(header(b'D', 1 << 30), b"x").await;
    check("a large row", own, "an answer of more than 16 MiB", 16 << 20);
    check("a large row, control", control, "an answer of more than 256 MiB", 0);
    for (what, unasked) in
        [("notices", message(b'N', b"SNOTICE\0C00000\0MM\0\0")), ("parameters", parameter("a", "b"))]
    {
        let [own, control] = asking(Vec::new(), &unasked).await;
        check(what, own, "messages that answer nothing", 8 << 20);
        check(what, control, "messages that answer nothing", 8 << 20);
    }
}

/// Lets everybody in, answers so many questions, and falls silent.
async fn silent(answered: usize) -> String {
    let (info, _) = liar(Some(answered), Lie { begin: Vec::new(), again: Vec::new() }).await;
    format!("postgres://u:p@127.0.0.1:{}/d?sslmode=disable", info.hosts()[0].port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn a_check_does_not_wait_for_a_server_that_fell_silent() {
    // A session on the source begins with settings.
    let (source, target) = (silent(1).await, silent(0).await);
    let mut check = tokio::process::Command::new(env!("CARGO_BIN_EXE_walferry"));
    check.args(["check", "--source", &source, "--target", &target]).kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(100), check.output()).await.expect("it ends");
    let ended = ended.expect("it runs");
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    for part in ["asking for ", "the server answers neither here nor on a new connection"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}
