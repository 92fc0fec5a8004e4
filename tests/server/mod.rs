//! A throwaway PostgreSQL server on a unix socket.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tokio_postgres::{Client, Config, NoTls};
use walferry::demo::PgBinaries;

/// Runs until it is dropped; its files go too.
pub struct Server {
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts a server with these settings.
    pub fn start(settings: &[&str]) -> Self {
        let server = Self::init();
        server.run(settings);
        server
    }

    /// Starts a standby, which never had a primary, with these settings.
    pub fn start_standby(settings: &[&str]) -> Self {
        let server = Self::init();
        let signal = server.data().join("standby.signal");
        std::fs::write(&signal, "").unwrap();
        PgBinaries::give_to_server(&signal).unwrap();
        server.run(settings);
        server
    }

    fn init() -> Self {
        let dir = tempfile::Builder::new().prefix("walferry-test-").tempdir().unwrap();
        let server = Self { dir };
        PgBinaries::give_to_server(server.dir.path()).unwrap();
        let data = server.data();
        run(program("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data));
        server
    }

    fn run(&self, settings: &[&str]) {
        let data = self.data();
        let mut options = format!(
            "-c listen_addresses= -c fsync=off -c unix_socket_directories={}",
            self.dir.path().display()
        );
        for setting in settings {
            options.push_str(" -c ");
            options.push_str(setting);
        }
        let log = self.dir.path().join("log");
        run(program("pg_ctl").args(["start", "-w", "-o", &options, "-l"]).arg(&log).arg("-D").arg(&data));
    }

    /// A session with `search_path = pg_catalog`, as Walferry's own are.
    pub async fn connect(&self, user: &str, database: &str) -> Client {
        self.session(user, database, "-c search_path=pg_catalog").await
    }

    /// A session, and in it `script`, with the search path of everyone.
    pub async fn script(&self, database: &str, script: &str) {
        self.session("postgres", database, "").await.batch_execute(script).await.unwrap();
    }

    /// A session of this user with these startup options.
    pub async fn session(&self, user: &str, database: &str, options: &str) -> Client {
        let mut config = Config::new();
        config.host_path(self.dir.path()).user(user).dbname(database).options(options);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = program("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(self.data()).output();
    }
}

/// A server program.
fn program(name: &str) -> Command {
    binaries().server_command(name).unwrap()
}

fn binaries() -> &'static PgBinaries {
    static BINARIES: OnceLock<PgBinaries> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let major = std::env::var("WALFERRY_TEST_PG_MAJOR").ok();
        PgBinaries::find_blocking(major.map(|major| major.parse().unwrap())).unwrap()
    })
}

fn run(command: &mut Command) {
    // The server inherits what pg_ctl has open: with pipes, waiting for their end would be waiting for the server's.
    let status = command.stdout(std::process::Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
