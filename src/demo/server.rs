//! A temporary PostgreSQL server with TLS and SCRAM, gone with its owner.
//!
//! One directory directly under the system's temporary directory holds everything: the cluster, its log, its
//! certificates and its unix socket. Over TCP only TLS with SCRAM is let in; over the unix socket only the superuser.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::RngExt;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::account::Account;
use super::endpoint::{Endpoint, LOG_LINES, output, rows};
use super::options::{ServerOptions, copy_cluster, make_cluster};
use super::watchdog::Watchdog;
use super::{DemoError, PgBinaries, Result, tail};
use crate::limits::{
    DEMO_POLL_INTERVAL, DEMO_PORT_ATTEMPTS, DEMO_PORT_RANGE, DEMO_SERVER_START_TIMEOUT,
    DEMO_SERVER_STOP_TIMEOUT,
};

/// A running server, or one that was stopped and can start again. Dropped, it is gone.
#[derive(Debug)]
pub struct Server {
    binaries: PgBinaries,
    account: Account,
    port: u16,
    /// None while the server is stopped.
    postmaster: Mutex<Option<Child>>,
    watchdog: Watchdog,
}

/// How a server is stopped. Manual: "Shutting Down the Server".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for every client to leave.
    Smart,
    /// Sends every client away, and waits for walsenders to send and have confirmed what is left.
    Fast,
    /// Without a checkpoint: the next start recovers.
    Immediate,
}

impl StopMode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

impl Server {
    /// Makes a cluster and starts it; returns when it answers.
    ///
    /// # Errors
    /// When the cluster cannot be made, or the server does not answer in time; with the end of its log.
    pub async fn start(binaries: &PgBinaries, options: ServerOptions) -> Result<Self> {
        let account = Account::find()?;
        let watchdog = Watchdog::start(binaries, account)?;
        make_cluster(binaries, account, watchdog.directory(), &options).await?;
        Self::begin(binaries, account, watchdog).await
    }

    /// Makes a standby of this server, which streams from it by a physical slot of that name, and starts it; returns when
    /// it answers.
    ///
    /// # Errors
    /// When there is such a slot, or as [`Server::start`].
    pub async fn standby(&self, slot: &str, options: ServerOptions) -> Result<Self> {
        let watchdog = Watchdog::start(&self.binaries, self.account)?;
        copy_cluster(&self.endpoint(), self.account, watchdog.directory(), slot, &options).await?;
        Self::begin(&self.binaries, self.account, watchdog).await
    }

    /// Starts what is in the watchdog's directory, on a free port.
    async fn begin(binaries: &PgBinaries, account: Account, watchdog: Watchdog) -> Result<Self> {
        let mut server =
            Self { binaries: binaries.clone(), account, port: 0, postmaster: Mutex::new(None), watchdog };
        for attempt in 1.. {
            server.port = free_port()?;
            match server.start_again().await {
                // Another process took the port between our look and the server's.
                Err(DemoError::Server { log, .. })
                    if attempt < DEMO_PORT_ATTEMPTS && log.contains("could not bind") => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(server)
    }

    /// The TCP port, kept over restarts.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The programs that it runs.
    pub const fn binaries(&self) -> &PgBinaries {
        &self.binaries
    }

    /// The cluster's directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// The certificate authority's certificate: `sslrootcert`.
    pub fn ca_file(&self) -> PathBuf {
        self.directory().join("ca.crt")
    }

    /// The directory of the unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.directory()
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let bytes = fs::read(self.log_file()).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes), lines)
    }

    /// The superuser's URI: over the unix socket, without a password.
    pub fn superuser_uri(&self, database: &str) -> String {
        let directory = encode(&self.directory().to_string_lossy());
        format!("postgresql://postgres@/{}?host={directory}&port={}", encode(database), self.port)
    }

    /// A role's URI: over TCP with TLS, the server's certificate verified.
    pub fn uri(&self, role: &str, password: &str, database: &str) -> String {
        let [role, password, database] = [role, password, database].map(encode);
        let ca = encode(&self.ca_file().to_string_lossy());
        let port = self.port;
        format!(
            "postgresql://{role}:{password}@localhost:{port}/{database}?sslmode=verify-full&sslrootcert={ca}"
        )
    }

    /// Where it can be reached as superuser.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.binaries, self.directory(), self.port)
    }

    /// A connection as superuser. It ends when the client is dropped.
    ///
    /// # Errors
    /// When the server does not answer, or the database does not exist.
    pub async fn client(&self, database: &str) -> Result<Client> {
        self.endpoint().client(database).await
    }

    /// Runs statements as superuser, in one transaction; returns their rows as text.
    ///
    /// # Errors
    /// When the server refuses one.
    pub async fn sql(&self, database: &str, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        rows(&self.client(database).await?, text).await
    }

    /// One of PostgreSQL's programs, its environment set for this role and database: over TCP with TLS.
    pub fn tool(&self, tool: &str, role: &str, password: &str, database: &str) -> tokio::process::Command {
        let mut command = self.binaries.command(tool);
        command.env("PGHOST", "localhost").env("PGPORT", self.port.to_string()).env("PGUSER", role);
        command.env("PGPASSWORD", password).env("PGDATABASE", database);
        command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", self.ca_file());
        command.kill_on_drop(true);
        command
    }

    /// One of PostgreSQL's programs, its environment set for the superuser: over the unix socket.
    pub fn superuser_tool(&self, tool: &str, database: &str) -> tokio::process::Command {
        self.endpoint().superuser_tool(tool, database)
    }

    /// Runs `pgbench` as superuser to its end; returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn pgbench(&self, database: &str, args: &[&str]) -> Result<String> {
        output(self.superuser_tool("pgbench", database).args(args)).await
    }

    /// Stops the server; one that is stopped stays so.
    ///
    /// # Errors
    /// When it does not stop in time: a smart stop waits for clients, a fast one for walsenders.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        let Some(mut postmaster) = self.take_postmaster() else { return Ok(()) };
        let seconds = DEMO_SERVER_STOP_TIMEOUT.as_secs().to_string();
        let mut pg_ctl = self.binaries.blocking_command("pg_ctl");
        self.account.run(&mut pg_ctl);
        pg_ctl.args([
            "stop",
            "--silent",
            "--wait",
            "--mode",
            mode.as_str(),
            "--timeout",
            &seconds,
            "--pgdata",
        ]);
        let mut pg_ctl = tokio::process::Command::from(pg_ctl);
        let stopped = output(pg_ctl.arg(self.data_dir())).await;
        if stopped.is_ok() {
            return reap(&mut postmaster).await;
        }
        *self.lock() = Some(postmaster);
        let what = format!("the server did not stop within {seconds} s (mode {})", mode.as_str());
        Err(DemoError::Server { what, log: self.log_tail(LOG_LINES) })
    }

    /// Starts a stopped server again, on its port.
    ///
    /// # Errors
    /// When it does not answer in time.
    ///
    /// # Panics
    /// When the server was not stopped.
    pub async fn start_again(&self) -> Result<()> {
        assert!(self.lock().is_none(), "the server is running");
        let deadline = Instant::now() + DEMO_SERVER_START_TIMEOUT;
        loop {
            let logged = fs::metadata(self.log_file()).map_or(0, |m| m.len());
            let mut postmaster = self.spawn_postmaster()?;
            let ready = self.wait_ready(&mut postmaster, deadline).await;
            let Err(what) = ready else {
                *self.lock() = Some(postmaster);
                return Ok(());
            };
            let _ = postmaster.kill();
            reap(&mut postmaster).await?;
            let bytes = fs::read(self.log_file()).unwrap_or_default();
            let since = usize::try_from(logged).unwrap_or(0).min(bytes.len());
            let log = tail(&String::from_utf8_lossy(&bytes[since..]), LOG_LINES);
            // After `kill -9` the old backends need a moment to notice.
            let pass = log.contains("pre-existing shared memory block") && Instant::now() < deadline;
            if !pass {
                return Err(DemoError::Server { what, log });
            }
            sleep(DEMO_POLL_INTERVAL).await;
        }
    }

    /// Stops and starts again.
    ///
    /// # Errors
    /// As [`Server::stop`] and [`Server::start_again`].
    pub async fn restart(&self, mode: StopMode) -> Result<()> {
        self.stop(mode).await?;
        self.start_again().await
    }

    /// Kills the postmaster with SIGKILL; the server counts as stopped. Its backends notice and end by themselves.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn kill9(&self) -> Result<()> {
        let Some(mut postmaster) = self.take_postmaster() else { return Ok(()) };
        postmaster.kill().map_err(DemoError::io("kill the postmaster"))?;
        reap(&mut postmaster).await
    }

    fn directory(&self) -> &Path {
        self.watchdog.directory()
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("server.log")
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_postmaster(&self) -> Option<Child> {
        self.lock().take()
    }

    fn spawn_postmaster(&self) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.map_err(DemoError::io("open the server's log"))?;
        let log_too = log.try_clone().map_err(DemoError::io("open the server's log"))?;
        let mut command = self.binaries.blocking_command("postgres");
        self.account.run(&mut command);
        command.arg("-D").arg(self.data_dir()).args(["-p", &self.port.to_string()]);
        // A group of its own: Ctrl-C on the terminal is for the owner, who stops the server in order.
        command.stdin(Stdio::null()).stdout(log).stderr(log_too).process_group(0);
        command.spawn().map_err(DemoError::io("run postgres"))
    }

    /// Waits until the server answers on its unix socket, which is in its own directory: no other server can answer.
    async fn wait_ready(&self, postmaster: &mut Child, deadline: Instant) -> Result<(), String> {
        loop {
            if let Ok(Some(status)) = postmaster.try_wait() {
                return Err(format!("the server ended by itself: {status}"));
            }
            match self.client("postgres").await {
                Ok(client) if client.simple_query("SELECT 1").await.is_ok() => return Ok(()),
                _ if Instant::now() >= deadline => return Err("the server does not answer".to_owned()),
                _ => sleep(DEMO_POLL_INTERVAL).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let postmaster = self.take_postmaster();
        if postmaster.is_none() {
            // A killed postmaster left its pid file: by now that number may be another process.
            let data = self.data_dir();
            let _ = fs::rename(data.join("postmaster.pid"), data.join("postmaster.dead"));
        }
        self.watchdog.finish();
        if let Some(mut postmaster) = postmaster {
            // It has ended by now; if not, it must, or the wait would not end.
            let _ = postmaster.kill();
            let _ = postmaster.wait();
        }
    }
}

/// Below the range that outgoing connections get their ports from, so that a stopped server's port stays free.
pub(super) fn free_port() -> Result<u16> {
    let mut refused = None;
    for _ in 0..DEMO_PORT_ATTEMPTS {
        let port = rand::rng().random_range(DEMO_PORT_RANGE);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => refused = Some(error),
        }
    }
    let source = refused.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
    Err(DemoError::Io { what: "find a free port".to_owned(), source })
}

async fn reap(child: &mut Child) -> Result<()> {
    while child.try_wait().map_err(DemoError::io("wait for the postmaster"))?.is_none() {
        sleep(DEMO_POLL_INTERVAL).await;
    }
    Ok(())
}

/// Percent-encodes what RFC 3986 does not let stand unencoded in every part of a URI.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_percent_encoded() {
        assert_eq!(encode("a-b_c.~9"), "a-b_c.~9");
        assert_eq!(encode("p@ss/ w%rd é"), "p%40ss%2F%20w%25rd%20%C3%A9");
    }
}
