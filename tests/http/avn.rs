//! Aiven's own client against the path of Aiven's API: what it prints is what it would print of Aiven.

#![allow(clippy::print_stderr, reason = "a test that cannot be run says so")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walferry::status::Method;
use walferry::store::Phase;

use super::access::{Files, TOKEN};
use super::{Running, json};

/// The package, and its version: what it prints is compared word by word.
const PACKAGE: &str = "aiven-client==4.18.0";

/// The client, ready to run.
struct Avn {
    /// Where its package is, unless it is installed.
    package: Option<PathBuf>,
    home: tempfile::TempDir,
    url: String,
    token: &'static str,
    /// What the server's certificate is trusted by.
    authority: Option<PathBuf>,
}

impl Avn {
    /// The installed one, else one that pip unpacks once. `None`, and a line that says so, where there is neither.
    fn find(running: &Running) -> Option<Self> {
        let home = tempfile::tempdir().expect("a temporary directory");
        let url = format!("http://{}", running.address);
        if Command::new("avn").arg("--version").output().is_ok_and(|output| output.status.success()) {
            return Some(Self { package: None, home, url, token: "none", authority: None });
        }
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE.replace("==", "-"));
        if !place.exists() {
            let unpacked = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE, "--target"];
            let pip = Command::new("python3").args(pip).arg(unpacked.path()).output();
            if let Some(said) = pip.map_or_else(|error| Some(error.to_string()), |output| failure(&output)) {
                eprintln!("skipped: {PACKAGE} cannot be had from pip: {said}");
                return None;
            }
            // Another test program may have been faster.
            let _ = std::fs::rename(unpacked.path(), &place);
        }
        Some(Self { package: Some(place), home, url, token: "none", authority: None })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(if self.package.is_some() { "python3" } else { "avn" });
        if let Some(package) = &self.package {
            command.args(["-m", "aiven.client"]).env("PYTHONPATH", package);
        }
        command.env("HOME", self.home.path()).env("AIVEN_CONFIG_DIR", self.home.path());
        command.env("AIVEN_WEB_URL", &self.url).env("AIVEN_AUTH_TOKEN", self.token);
        // What the caller's shell says beats it.
        command.env_remove("REQUESTS_CA_BUNDLE").env_remove("CURL_CA_BUNDLE");
        command.envs(self.authority.as_ref().map(|path| ("AIVEN_CA_CERT", path)));
        command
    }

    /// What `avn … service migration-status` printed, and its log.
    async fn status(&self, arguments: &[&str]) -> (String, String) {
        let mut command = self.command();
        command.args(arguments).args(["service", "migration-status", "my pg", "--project", "my-project"]);
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
        assert_eq!(failure(&output), None);
        (text(&output.stdout), text(&output.stderr))
    }
}

fn failure(output: &Output) -> Option<String> {
    (!output.status.success()).then(|| format!("{}: {}", output.status, text(&output.stderr).trim()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn avn_prints_the_status() {
    let running = Running::start().await;
    let Some(avn) = Avn::find(&running) else { return };
    let set = |dbname: &str, phase, method, error: &str| {
        running.status.update_database(dbname, |database| {
            (database.phase, database.method) = (phase, method);
            database.error = error.to_owned();
        });
    };
    let check = async |status: &str, method: &str, error: &str| {
        let (printed, _) = avn.status(&[]).await;
        let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
        let words: Vec<&str> =
            [status, method].into_iter().chain(error.split(' ')).filter(|it| !it.is_empty()).collect();
        assert_eq!(lines.first(), Some(&vec!["STATUS", "METHOD", "ERROR"]), "{printed}");
        assert_eq!(lines.last(), Some(&words), "{printed}");
    };
    use Method::{PgDump, Replication};
    set("shop", Phase::Waiting, Replication, "");
    check("waiting", "replication", "").await;
    set("shop", Phase::Copying, Replication, "");
    check("running", "replication", "").await;
    set("shop", Phase::Syncing, Replication, "");
    check("syncing", "replication", "").await;
    // One replicates, one falls back: no method is both's.
    set("stock", Phase::Indexing, PgDump, "");
    check("running", "", "").await;
    set("stock", Phase::Done, PgDump, "");
    check("done", "", "").await;
    set("shop", Phase::Done, PgDump, "");
    check("done", "pg_dump", "").await;
    set("shop", Phase::Failed, PgDump, "slot is gone");
    check("failed", "pg_dump", "slot is gone").await;

    let (_, log) = avn.status(&["--show-http"]).await;
    for part in [
        "/v1/project/my-project/service/my%20pg/migration",
        "200 OK",
        "migration_detail",
        "\"dbname\": \"stock\"",
    ] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    let answer = running.get("/v1/project/p/service/s/migration").await.json();
    let expected = json!([
        {"dbname": "shop", "error": "slot is gone", "method": "pg_dump", "status": "failed"},
        {"dbname": "stock", "error": "", "method": "pg_dump", "status": "done"},
    ]);
    assert_eq!(answer["migration_detail"], expected);
}

#[tokio::test]
async fn avn_gives_the_token() {
    let files = Files::make();
    let running = Running::at("127.0.0.1:0", files.access(true, true)).await;
    let Some(mut avn) = Avn::find(&running) else { return };
    running.status.update_database("shop", |database| database.phase = Phase::Syncing);
    avn.url = format!("https://localhost:{}", running.address.port());
    avn.authority = Some(files.authority.clone());
    avn.token = TOKEN;
    let (printed, _) = avn.status(&[]).await;
    assert!(printed.contains("syncing"), "{printed}");
}
