//! TLS modes, authentication, settings, and the control client.

use std::os::unix::fs::PermissionsExt;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use walferry::error::{Failure, Side};
use walferry::pg::Sql;
use walferry::wire::{ConnInfo, Environment, Session, SessionOptions, control, control_listening};

use crate::server::Server;

/// The TLS version of the session, or the cause that an operator sees.
async fn outcome(conninfo: &ConnInfo) -> String {
    match Session::connect(conninfo, &SessionOptions::default()).await {
        Ok(mut session) => {
            let sql =
                Sql::new("SELECT coalesce(version, 'plain') FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
            let rows = session.query(&sql).await.expect("query");
            session.close().await;
            rows[0].text(0).expect("a version").to_owned()
        }
        Err(error) => match error.into_failure(Side::Source) {
            Failure::Definite(failure) => {
                let text = failure.to_string();
                assert!(!text.contains("pass word"), "{text}");
                failure.cause
            }
            Failure::Transient(failure) => format!("transient: {}", failure.cause),
        },
    }
}

#[tokio::test]
async fn every_way_in() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    let (ca, other, none) = (server.path("ca.crt"), server.path("other.crt"), server.path("none.crt"));
    let client = format!("sslcert={} sslkey={}", server.path("client.crt"), server.path("client.key"));
    let check = async |options: String, expected: &str| {
        assert_eq!(outcome(&server.conninfo(&options)).await, expected, "{options}");
    };
    let scram = "user=scram password='pass word'";
    // Compared with the name asked for, not the address connected to.
    check(format!("{scram} sslmode=verify-full sslrootcert={ca} host=127.0.0.2"), "TLSv1.3").await;
    for (mode, expected) in
        [("disable", "plain"), ("allow", "plain"), ("prefer", "TLSv1.3"), ("require", "TLSv1.3")]
    {
        check(format!("{scram} sslmode={mode}"), expected).await;
        let with_missing_root = format!("{scram} sslmode={mode} sslrootcert={none}");
        check(with_missing_root, expected).await;
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        check(format!("{scram} sslmode={mode} sslrootcert={ca}"), "TLSv1.3").await;
        check(
            format!("{scram} sslmode={mode} sslrootcert={other}"),
            "source: server's certificate is not trusted",
        )
        .await;
    }
    // As libpq: a root certificate is used in every mode, and `prefer` then goes without TLS.
    check(format!("{scram} sslmode=prefer sslrootcert={other}"), "plain").await;
    check(format!("{scram} sslmode=verify-ca sslrootcert={none}"), "source: root certificate missing").await;
    check(format!("{scram} sslmode=verify-full"), "source: root certificate missing").await;
    // The server's own certificate in the root file is trusted as such.
    check(format!("{scram} sslmode=verify-full sslrootcert={}", server.path("server.crt")), "TLSv1.3").await;
    check(format!("{scram} sslmode=verify-ca sslrootcert={ca} host=db.example"), "TLSv1.3").await;
    check(
        format!("{scram} sslmode=verify-full sslrootcert={ca} host=db.example"),
        "source: server's certificate is for another host",
    )
    .await;
    check(
        format!("{scram} sslmode=verify-full sslrootcert={ca} host=127.0.0.1"),
        "source: server's certificate is for another host",
    )
    .await;
    check(
        format!("{scram} sslmode=require ssl_max_protocol_version=TLSv1.2 channel_binding=require"),
        "TLSv1.2",
    )
    .await;
    check(format!("{scram} sslmode=require channel_binding=require"), "TLSv1.3").await;
    check(format!("{scram} sslmode=require channel_binding=disable"), "TLSv1.3").await;
    check(format!("{scram} sslmode=disable channel_binding=require"), "source: authentication failed").await;
    check("user=md5 password=five channel_binding=require".into(), "source: authentication failed").await;

    // A verifier of 250,000 iterations.
    check("user=patient password=many".into(), "TLSv1.3").await;
    check("user=md5 password=five".into(), "TLSv1.3").await;
    let cleartext = "source: password would be sent in clear text";
    check("user=plain password=clear sslmode=disable".into(), cleartext).await;
    check("user=plain password=clear sslmode=allow".into(), cleartext).await;
    check("user=plain password=clear sslmode=disable require_auth=!md5".into(), cleartext).await;
    check("user=plain password=clear sslmode=disable require_auth=password".into(), "plain").await;
    check("user=plain password=clear".into(), "TLSv1.3").await;
    let refused = "source: authentication failed";
    check("user=plain password=clear require_auth=scram-sha-256".into(), refused).await;
    check("user=md5 password=five require_auth=scram-sha-256,none".into(), refused).await;
    check("user=md5 password=five require_auth=!password".into(), "TLSv1.3").await;
    check(format!("{scram} require_auth=!password,!md5,!none"), "TLSv1.3").await;
    check(format!("{scram} require_auth=!scram-sha-256"), refused).await;
    let local = format!("user=postgres host={} hostaddr=''", server.path(""));
    check(format!("{local} require_auth=!none"), refused).await;
    check(format!("{local} require_auth=none"), "plain").await;
    check("user=md5 password=six".into(), "source: wrong password or user").await;
    check("user=scram password=wrong".into(), "source: wrong password or user").await;
    let full = format!("{scram} sslmode=verify-full sslrootcert={ca}");
    check(format!("{full} sslcrl={}", server.path("none.crl")), "TLSv1.3").await;
    check(format!("{full} sslcrl={}", server.path("revoked.crl")), "source: server's certificate is revoked")
        .await;
    let may_be = "source: server's certificate may be revoked";
    check(format!("{full} sslcrl={}", server.path("over.crl")), may_be).await;
    let unusable = "source: certificate or key file unusable";
    for file in ["ca.crt", "missing"] {
        check(format!("{full} sslcrl={}", server.path(file)), unusable).await;
    }
    let by_ca = format!("{scram} sslmode=verify-ca sslrootcert={ca} host=db.example");
    check(format!("{by_ca} sslcrl={}", server.path("none.crl")), "TLSv1.3").await;
    check(format!("{full} sslnegotiation=direct"), "transient: no TLS session").await;

    check("user=plain password=wrong".into(), "source: wrong password or user").await;
    check("user=scram".into(), "source: password needed").await;
    check(format!("{scram} dbname=nowhere"), "source: database does not exist").await;

    check("user=tlsonly password=x sslmode=disable".into(), "source: server does not let us in from here")
        .await;
    check("user=tlsonly password=x sslmode=allow".into(), "TLSv1.3").await;
    check("user=notls password=x sslmode=require".into(), "source: server does not let us in from here")
        .await;
    check("user=notls password=x sslmode=prefer".into(), "plain").await;

    check(format!("user=cert sslmode=verify-full sslrootcert={ca} {client}"), "TLSv1.3").await;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(server.path("client.key"), open).expect("chmod");
    check(format!("user=cert sslmode=require {client}"), "source: certificate or key file unusable").await;
    check("user=cert sslmode=require".into(), "source: server wants a client certificate").await;

    check(format!("{scram} hostaddr=127.0.0.1 port=1"), "transient: connection refused").await;
    check(format!("{scram} host=nowhere.invalid hostaddr=''"), "source: host not found").await;
    check(
        format!("{scram} host=localhost,localhost hostaddr=127.0.0.1,127.0.0.1 port=1,{}", server.port),
        "TLSv1.3",
    )
    .await;
    check(format!("user=postgres host={} hostaddr='' sslmode=verify-full", server.path("")), "plain").await;
    check(format!("{scram} target_session_attrs=read-write"), "TLSv1.3").await;
    check(format!("{scram} target_session_attrs=primary"), "TLSv1.3").await;
    check(format!("{scram} target_session_attrs=prefer-standby"), "TLSv1.3").await;
    check(format!("{scram} target_session_attrs=standby"), "transient: no suitable server").await;

    settings(&server).await;
    control_client(&server).await;
}

async fn settings(server: &Server) {
    for replication in [false, true] {
        let options = SessionOptions {
            application_name: "a test".into(),
            replication,
            settings: vec![("LOCK_timeout", "7s".into())],
            search_path_late: replication,
        };
        let conninfo =
            server.scram("options='-c statement_timeout=5 -c work_mem=1234kB -c search_path=public'");
        let mut session = Session::connect(&conninfo, &options).await.expect("connect");
        assert_eq!(session.server_version().major(), 15);
        assert_eq!(session.parameter("TimeZone"), Some("UTC"));
        for (name, expected) in [
            ("SHOW search_path", "pg_catalog, pg_temp"),
            ("SHOW statement_timeout", "0"),
            ("SHOW lock_timeout", "7s"),
            ("SHOW idle_session_timeout", "0"),
            ("SHOW row_security", "off"),
            ("SHOW work_mem", "1234kB"),
            ("SHOW IntervalStyle", "postgres"),
            ("SHOW application_name", "a test"),
        ] {
            let rows = session.query(&Sql::new(name)).await.expect("show");
            assert_eq!(rows[0].text(0), Some(expected), "{name}");
        }
        // What scripts of extensions read, and may keep for the database.
        let reset = "SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path'";
        let rows = session.query(&Sql::new(reset)).await.expect("the value of RESET");
        assert_eq!(rows[0].text(0), Some(if replication { "public" } else { "pg_catalog, pg_temp" }));
        if replication {
            let rows = session.query(&Sql::new("IDENTIFY_SYSTEM")).await.expect("IDENTIFY_SYSTEM");
            assert_eq!(rows[0].named("dbname"), Some("postgres"));
        }
        let error = session.execute(&Sql::new("SELECT 'secret'::int")).await.expect_err("not a number");
        assert_eq!(error.to_string(), "22P02 (invalid_text_representation)");
        session.execute(&Sql::new("SELECT 1; SELECT 2")).await.expect("usable after an error");
    }
}

async fn control_client(server: &Server) {
    let client =
        control(&server.scram("sslmode=require channel_binding=require"), "a client").await.expect("connect");
    let row = client
        .query_one(
            "SELECT current_setting('search_path'), current_setting('application_name'), $1::int8",
            &[&7_i64],
        )
        .await
        .expect("query");
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("pg_catalog, pg_temp", "a client", 7_i64));
    // What code of others may leave in the session does not take a catalog's place.
    client.batch_execute("CREATE TEMP TABLE pg_locks (a int)").await.expect("a table");
    let locks: i64 = client.query_one("SELECT count(*) FROM pg_locks", &[]).await.expect("locks").get(0);
    assert!(locks > 0, "somebody's own table");
    let error = client.simple_query("SELECT 'secret'::int").await.expect_err("not a number");
    let error = walferry::wire::Error::from(error);
    assert_eq!(error.to_string(), "22P02 (invalid_text_representation)");
}

#[tokio::test]
async fn notifications() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    let (client, mut heard) = control_listening(&server.scram(""), "a listener").await.expect("connect");
    client.batch_execute("LISTEN walferry; NOTIFY walferry, 'look'").await.expect("listen");
    let notification = heard.recv().await.expect("a notification");
    assert_eq!((notification.channel(), notification.payload()), ("walferry", "look"));
    drop(client);
    assert!(heard.recv().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_connection_that_the_server_ends_is_over() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    let (client, mut heard) = control_listening(&server.scram(""), "a listener").await.expect("connect");
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("query");
    let other = control(&server.scram(""), "another").await.expect("connect");
    other.execute("SELECT pg_terminate_backend($1)", &[&row.get::<_, i32>(0)]).await.expect("terminate");
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), heard.recv()).await;
    assert!(ended.expect("the connection is over").is_none() && client.is_closed());
}

/// Servers that are none: each answers the first message with some bytes, and then closes, or waits.
#[tokio::test]
async fn no_real_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    async fn check(answer: &'static [u8], stays: bool, options: &str, expected: &str) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let _ = stream.read(&mut [0; 2048]).await;
                let _ = stream.write_all(answer).await;
                if stays {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
        });
        let text = format!("host=127.0.0.1 port={port} user=u {options}");
        let conninfo = ConnInfo::parse(&text, &Environment::default()).expect("valid");
        assert_eq!(outcome(&conninfo).await, expected, "{options} {answer:?}");
        server.abort();
    }
    check(b"N", false, "sslmode=require", "source: server offers no TLS").await;
    check(b"N", false, "sslmode=verify-full sslrootcert=/none", "source: server offers no TLS").await;
    check(b"H", false, "sslmode=require", "source: no TLS session").await;
    check(b"S", false, "sslmode=require", "transient: no TLS session").await;
    // Plain text behind the answer is taken for the handshake, never for a message.
    check(b"SR\0\0\0\x08\0\0\0\0", false, "sslmode=require", "source: no TLS session").await;
    check(b"", false, "sslmode=disable", "transient: connection closed by the server").await;
    check(b"", true, "sslmode=disable connect_timeout=1", "transient: server cannot be reached").await;
    let protocol = "source: the server does not keep to the protocol";
    check(b"HTTP/1.1 400 Bad Request", false, "sslmode=disable", protocol).await;
    check(b"R\0\0\0\x03", false, "sslmode=disable", protocol).await;
    check(b"R\0\0\0\x06\0\0", false, "sslmode=disable", protocol).await;
    check(b"R\0\0\0\x08\0\0\0\x07", false, "sslmode=disable", "source: authentication failed").await;
}

/// The hash follows the certificate's signature; Ed25519 has none, so plain SCRAM it is.
#[tokio::test]
async fn channel_binding_by_signature_algorithm() {
    let server = Server::start(&PKCS_ECDSA_P384_SHA384);
    assert_eq!(outcome(&server.scram("sslmode=require channel_binding=require")).await, "TLSv1.3");
    let server = Server::start(&PKCS_ED25519);
    assert_eq!(outcome(&server.scram("sslmode=require")).await, "TLSv1.3");
    let required = outcome(&server.scram("sslmode=require channel_binding=require")).await;
    assert_eq!(required, "source: authentication failed");
}

/// As `psql` would: the variables that a child process gets mean the same connection.
#[tokio::test]
async fn libpq_programs_connect_alike() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    let conninfo = server.scram(&format!("sslmode=verify-full sslrootcert={}", server.path("ca.crt")));
    let output = std::process::Command::new("/usr/lib/postgresql/15/bin/psql")
        .args(["-XAtc", "SELECT current_user"])
        .env_clear()
        .envs(conninfo.libpq_environment(true))
        .output()
        .expect("psql");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "scram", "{output:?}");
    let again = Environment::from_map(conninfo.libpq_environment(true));
    assert_eq!(ConnInfo::parse("", &again).expect("valid"), conninfo);
}

/// A certificate of X.509 version 1, with a common name only: enough for `require`, and for `verify-full` if it is in the
/// root file itself.
#[tokio::test]
async fn a_certificate_of_version_1() {
    let server = Server::start(&PKCS_ECDSA_P256_SHA256);
    server.use_version_1_certificate();
    let root = server.path("own.crt");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    for (options, expected) in [
        ("sslmode=require channel_binding=require".to_owned(), "TLSv1.3"),
        ("sslmode=require ssl_max_protocol_version=TLSv1.2".to_owned(), "TLSv1.2"),
        (format!("sslmode=verify-full sslrootcert={root}"), "TLSv1.3"),
        (
            format!("sslmode=verify-full sslrootcert={root} host=other"),
            "source: server's certificate is for another host",
        ),
        (
            format!("sslmode=verify-ca sslrootcert={}", server.path("ca.crt")),
            "source: server's certificate is not valid",
        ),
    ] {
        assert_eq!(outcome(&server.scram(&options)).await, expected, "{options}");
    }
}

#[tokio::test]
async fn tls_at_once() {
    let server = Server::start_version(17, &PKCS_ECDSA_P256_SHA256);
    let direct = format!("sslrootcert={} sslnegotiation=direct", server.path("ca.crt"));
    assert_eq!(outcome(&server.scram(&format!("{direct} sslmode=verify-full"))).await, "TLSv1.3");
    assert_eq!(
        outcome(&server.scram(&format!("{direct} sslmode=require channel_binding=require"))).await,
        "TLSv1.3"
    );
}
