//! Who may ask, and by what name.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::*;

pub(super) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const AVN_PATH: &str = "/v1/project/p/service/s/migration";

/// Files for one server.
pub(super) struct Files {
    directory: tempfile::TempDir,
    /// What the server's certificate is trusted by.
    pub authority: PathBuf,
}

impl Files {
    pub fn make() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let made = made.expect("a certificate");
        let files = Self { authority: directory.path().join("cert"), directory };
        fs::write(&files.authority, made.cert.pem()).expect("written");
        files.write("key", &made.signing_key.serialize_pem(), 0o600);
        files.write("token", &format!("{TOKEN}\n"), 0o600);
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
        path
    }

    pub fn access(&self, token: bool, tls: bool) -> Access {
        let (token_file, certificate, key) = (self.path("token"), self.path("cert"), self.path("key"));
        let tls = tls.then_some((certificate.as_path(), key.as_path()));
        Access::read(token.then_some(token_file.as_path()), tls).expect("they are right")
    }
}

fn request(path: &str, headers: &[(&str, &str)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\n{lines}\r\n")
}

/// A page of somebody else's whose name leads here is not the operator.
#[tokio::test]
async fn only_names_of_this_machine_are_answered_on_loopback() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let running = Running::at(address, Access::default()).await;
        let check = async |host: &str, status: u16| {
            for path in ["/", "/healthz", "/status", "/metrics", AVN_PATH] {
                let answer = running.send(&request(path, &[("Host", host)])).await;
                assert_eq!(answer.status, status, "{host:?} {path}");
                assert!(status == 200 || !answer.body.contains("migration"), "{}", answer.body);
            }
        };
        let port = running.address.port();
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:65535"] {
            check(host, 200).await;
        }
        check(&format!("localhost:{port}"), 200).await;
        for host in [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost,evil.example",
        ] {
            check(host, 421).await;
        }
        let twice = request("/status", &[("Host", "localhost"), ("Host", "evil.example")]);
        assert_eq!(running.send(&twice).await.status, 400);
        assert_eq!(running.send(&request("/status", &[])).await.status, 400);
        let whole = "GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(running.send(whole).await.status, 421);
        let old = "GET /healthz HTTP/1.0\r\n\r\n";
        assert_eq!(running.send(old).await.status, 200);
    }
}

#[tokio::test]
async fn any_name_is_answered_elsewhere() {
    let files = Files::make();
    let running = Running::at("0.0.0.0:0", files.access(true, false)).await;
    let bearer = format!("Bearer {TOKEN}");
    let answer =
        running.send(&request("/status", &[("Host", "walferry:9464"), ("Authorization", &bearer)])).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn without_the_token_nothing_is_said() {
    let files = Files::make();
    let access = files.access(true, false);
    assert!(!format!("{access:?}").contains(TOKEN));
    let running = Running::at("127.0.0.1:0", access).await;
    let ask = async |path: &str, authorization: &str| {
        running.send(&request(path, &[("Host", "localhost"), ("Authorization", authorization)])).await
    };
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let right = [
        format!("Bearer {TOKEN}"),
        format!("bearer  {TOKEN}"),
        format!("aivenv1 {TOKEN}"),
        basic(&format!("anybody:{TOKEN}")),
    ];
    let wrong = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        TOKEN.to_owned(),
        format!("Bearer {}", &TOKEN[1..]),
        format!("Bearer {TOKEN}0"),
        format!("Bearer {}", TOKEN.to_uppercase()),
        format!("Digest {TOKEN}"),
        basic(TOKEN),
        basic(&format!("{TOKEN}:")),
        format!("Basic {TOKEN}"),
    ];
    for path in ["/", "/status", "/metrics", "/readyz", AVN_PATH, "/elsewhere"] {
        let without = running.get(path).await;
        assert_eq!((without.status, without.body.as_str()), (401, "a token is needed\n"), "{path}");
        assert!(without.header("www-authenticate").contains("realm=\"walferry\""));
        for wrong in &wrong {
            assert_eq!(ask(path, wrong).await.status, 401, "{path} {wrong:?}");
        }
        for right in &right {
            assert_ne!(ask(path, right).await.status, 401, "{path} {right:?}");
        }
    }
    assert_eq!(ask(AVN_PATH, &right[2]).await.json()["migration"]["status"], json!("waiting"));
    assert_eq!(running.get("/healthz").await.status, 200, "load balancers know no token");
}

#[tokio::test]
async fn over_tls() {
    let files = Files::make();
    let running = Running::at("127.0.0.1:0", files.access(true, true)).await;
    let plain = {
        let mut stream = TcpStream::connect(running.address).await.expect("the server listens");
        let bearer = format!("Bearer {TOKEN}");
        let request = request("/status", &[("Host", "localhost"), ("Authorization", &bearer)]);
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("in time");
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    for (path, authorization, status) in [
        ("/status", format!("Bearer {TOKEN}"), 200),
        (AVN_PATH, format!("aivenv1 {TOKEN}"), 200),
        (AVN_PATH, String::new(), 401),
        ("/healthz", String::new(), 200),
    ] {
        let answer = over(&files, &running, path, &authorization).await;
        assert_eq!(answer.status, status, "{path} {authorization:?}");
    }

    // Clients that begin no handshake, or half of one.
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(running.address).await.expect("the kernel's queue has room");
        stream.write_all(&[22, 3, 1]).await.expect("the kernel takes it");
        silent.push(stream);
    }
    assert_eq!(over(&files, &running, "/healthz", "").await.status, 200);
}

async fn over(files: &Files, running: &Running, path: &str, authorization: &str) -> Answer {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.authority).expect("a certificate")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(running.address).await.expect("the server listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let talk = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS");
        let headers = [("Host", "localhost"), ("Authorization", authorization)];
        stream.write_all(request(path, &headers).as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an end that is no cut");
        Answer::parse(&text)
    };
    timeout(Duration::from_secs(5), talk).await.expect("an answer in time")
}

#[test]
fn files_that_others_can_read_are_refused() {
    let files = Files::make();
    let token = |path: &Path| Access::read(Some(path), None).expect_err("refused").to_string();
    let check = |path: &Path, part: &str| {
        let error = Access::read(Some(path), None).expect_err(part);
        assert_eq!(error.cause, "the file of --listen-token-file cannot be used");
        assert!(error.detail.contains(part) && error.hint.contains("umask 077"), "{error:?}");
        assert!(!format!("{error:?}").contains(TOKEN));
    };
    for mode in [0o644, 0o604, 0o660, 0o622, 0o601] {
        check(&files.write("open", TOKEN, mode), "chmod 0600");
    }
    check(&files.write("short", "0123456789abcde\n", 0o600), "16 or more printable");
    check(&files.write("empty", "\n", 0o600), "16 or more printable");
    check(&files.write("two", &format!("{TOKEN}\n{TOKEN}\n"), 0o600), "one line");
    check(&files.write("long", &"a".repeat(70_000), 0o600), "larger than");
    check(&files.path("nowhere"), "No such file");
    check(files.directory.path(), "not a plain file");
    assert!(token(Path::new("/dev/null")).contains("cannot be used"));

    let key = |key: &Path| Access::read(None, Some((&files.path("cert"), key))).expect_err("refused").detail;
    let text = fs::read_to_string(files.path("key")).expect("a key");
    assert!(key(&files.write("open key", &text, 0o644)).contains("chmod 0600"));
    assert!(key(&files.path("token")).contains("token: "));
    let another = Files::make();
    assert!(key(&another.path("key")).contains("key"));
    let error = Access::read(None, Some((&files.path("token"), &files.path("key")))).expect_err("refused");
    assert_eq!(error.cause, "the file of --listen-cert cannot be used");
}
