//! Servers of one's own: they start with TLS and SCRAM, stop, die and come back.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::time::Instant;

use walferry::demo::{PgBinaries, Server, ServerOptions, StopMode};

#[tokio::test]
async fn a_server_starts_stops_dies_and_comes_back() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let started = Instant::now();
    let server = Server::start(&binaries, ServerOptions::default()).await.unwrap();
    eprintln!("PostgreSQL {}: started in {:?}", binaries.version(), started.elapsed());
    server
        .sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'p@ss/ w%rd'; CREATE TABLE t (id int)")
        .await
        .unwrap();

    // psql reads the URI as libpq does, and verifies the certificate.
    let uri = server.uri("app", "p@ss/ w%rd", "postgres");
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let psql = async |uri: &str| {
        let output =
            binaries.command("psql").args(["-X", "-A", "-t", "-c", query, uri]).output().await.unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(psql(&uri).await, ("t\n".to_owned(), String::new()));
    assert_eq!(psql(&server.superuser_uri("postgres")).await.1, "");
    let plain = psql(&uri.replace("sslmode=verify-full", "sslmode=disable")).await.1;
    assert!(plain.contains("no pg_hba.conf entry"), "{plain}");
    let wrong = psql(&server.uri("app", "wrong", "postgres")).await.1;
    assert!(wrong.contains("password authentication failed"), "{wrong}");

    server.sql("postgres", "INSERT INTO t VALUES (1)").await.unwrap();
    server.kill9().await.unwrap();
    assert!(server.client("postgres").await.is_err());
    server.start_again().await.unwrap();
    for mode in [StopMode::Immediate, StopMode::Fast, StopMode::Smart] {
        server.sql("postgres", "INSERT INTO t VALUES (1)").await.unwrap();
        server.restart(mode).await.unwrap();
    }
    let rows = server.sql("postgres", "SELECT count(*), NULL FROM t").await.unwrap();
    assert_eq!(rows, [[Some("4".to_owned()), None]]);

    let (directory, port) = (server.socket_dir().to_path_buf(), server.port());
    assert!(directory.exists());
    let dropping = Instant::now();
    drop(server);
    eprintln!("gone in {:?}", dropping.elapsed());
    assert!(!directory.exists(), "the directory is left");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "the server is left");
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_log() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let options = ServerOptions::default().setting("shared_buffers", "much");
    let error = Server::start(&binaries, options).await.unwrap_err().to_string();
    assert!(error.contains("invalid value for parameter \"shared_buffers\""), "{error}");
}
