//! The engine as the demo runs it: this program again, as a process of its own that can be killed.
//!
//! It finds both sides in its environment, as a user's would, and PostgreSQL's programs in PATH. Its log goes to a
//! file; how far it is it tells over HTTP.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::{env, fs, io};

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::workspace::Workspace;
use crate::demo::endpoint::LOG_LINES;
use crate::demo::server::free_port;
use crate::demo::{DemoError, PgBinaries, Result, tail};
use crate::limits::{DEMO_STATUS_BYTES_MAX, DEMO_STATUS_TIMEOUT, DEMO_STEP_TIMEOUT};

/// Starts engines, one after the other; whichever runs ends with it.
#[derive(Debug)]
pub(super) struct Engine {
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    jobs: String,
    address: SocketAddr,
    running: Option<Child>,
    workspace: Workspace,
}

/// What an engine says of its one database.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    pub phase: String,
    pub error: String,
    pub applied_lsn: Option<String>,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub transactions_applied: u64,
    pub tables: Vec<TableProgress>,
}

/// What an engine says of a table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct TableProgress {
    pub state: String,
    pub rows_copied: u64,
    pub bytes_copied: u64,
}

impl Engine {
    /// Nothing runs yet. `source` and `target` are URIs.
    pub fn new(binaries: &PgBinaries, source: String, target: String, jobs: usize) -> Result<Self> {
        let program = env::current_exe().map_err(DemoError::io("find this program"))?;
        let workspace = Workspace::start()?;
        let mut environment = vec![
            ("SOURCE_SERVICE_URI", source.into()),
            ("TARGET_SERVICE_URI", target.into()),
            // What a killed engine leaves there goes with the rest.
            ("TMPDIR", workspace.directory().into()),
            ("PATH", before("PATH", binaries.directory())?),
        ];
        if let Some(lib) = binaries.library_path() {
            environment.push(("LD_LIBRARY_PATH", before("LD_LIBRARY_PATH", lib)?));
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let jobs = jobs.to_string();
        Ok(Self { program, environment, jobs, address, running: None, workspace })
    }

    /// Where a running engine answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts an engine that migrates, and goes on syncing.
    pub fn start(&mut self) -> Result<()> {
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.workspace.engine_log());
        let log = log.map_err(DemoError::io("open the engine's log"))?;
        let address = self.address.to_string();
        let mut command = self.command(&["migrate", "--confirm-delay", "0", "--max-lag", MAX_LAG]);
        command.arg("--passwords-file").arg(self.workspace.directory().join("passwords"));
        command.args(["--listen", &address, "--jobs", &self.jobs]);
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(DemoError::io("start the engine"))?;
        self.workspace.engine_is(child.id())?;
        self.running = Some(child);
        Ok(())
    }

    /// Runs another command of this program to its end.
    pub async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments);
        let output = timeout(DEMO_STEP_TIMEOUT, command.kill_on_drop(true).output()).await;
        output
            .unwrap_or_else(|late| Err(late.into()))
            .map_err(DemoError::io(format!("run walferry {}", arguments.join(" "))))
    }

    /// How far the engine is; none while it does not answer yet.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub async fn look(&mut self) -> Result<Option<Progress>> {
        if let Some(child) = &mut self.running
            && let Some(status) = child.try_wait().map_err(DemoError::io("wait for the engine"))?
        {
            self.gone()?;
            return Err(self.failure(format!("the engine ended by itself: {status}")));
        }
        let answer = timeout(DEMO_STATUS_TIMEOUT, get_status(self.address)).await;
        Ok(answer.ok().and_then(Result::ok).and_then(|answer| progress(&answer)))
    }

    /// The most memory that the running engine has had, where the system tells.
    pub fn peak_memory(&self) -> Option<u64> {
        let pid = self.running.as_ref()?.id()?;
        high_water(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    /// SIGKILL, at whatever the engine is doing.
    pub async fn kill9(&mut self) -> Result<()> {
        let Some(mut child) = self.running.take() else { return Ok(()) };
        child.kill().await.map_err(DemoError::io("kill the engine"))?;
        self.gone()
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> Result<()> {
        let Some(child) = &mut self.running else { return Ok(()) };
        let pid = child.id().unwrap_or_default().to_string();
        // The shell's own kill, which every system has.
        let sent = Command::new("/bin/sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().await;
        sent.map_err(DemoError::io("run /bin/sh"))?;
        let ended = timeout(DEMO_STEP_TIMEOUT, child.wait()).await;
        let status: ExitStatus =
            ended.unwrap_or_else(|late| Err(late.into())).map_err(DemoError::io("stop the engine"))?;
        self.gone()?;
        match status.code() {
            Some(0) => Ok(()),
            _ => Err(self.failure(format!("the engine did not end as asked: {status}"))),
        }
    }

    /// A failure with the end of the engine's log.
    pub fn failure(&self, what: impl Into<String>) -> DemoError {
        DemoError::Engine { what: what.into(), log: self.log_tail() }
    }

    /// The end of the engine's log.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(self.workspace.engine_log()).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes), LOG_LINES)
    }

    fn gone(&mut self) -> Result<()> {
        self.running = None;
        self.workspace.engine_is(None)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // What the caller's environment says of other servers must not leak in.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG") || name == "RUST_LOG") {
                command.env_remove(name);
            }
        }
        command.args(arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        // A group of its own: Ctrl-C on the terminal is for the demo, which ends the engine in order.
        command.process_group(0);
        command
    }
}

/// What counts as in sync: the default would hide a burst of the demo's size.
const MAX_LAG: &str = "256kB";

/// The search path `name` of this process, with `directory` before all others.
fn before(name: &str, directory: &std::path::Path) -> Result<OsString> {
    let old = env::var_os(name).unwrap_or_default();
    let others = env::split_paths(&old).filter(|path| !path.as_os_str().is_empty());
    env::join_paths(std::iter::once(directory.to_path_buf()).chain(others))
        .map_err(|error| DemoError::io(format!("put a directory into {name}"))(io::Error::other(error)))
}

async fn get_status(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(DEMO_STATUS_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The first database of an answer; none where there is none yet, or it is not an answer.
fn progress(answer: &str) -> Option<Progress> {
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let mut status: serde_json::Value = serde_json::from_str(body).ok()?;
    serde_json::from_value(status.get_mut("migration_detail")?.get_mut(0)?.take()).ok()
}

/// Bytes of `VmHWM:     12345 kB`.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_says() {
        let answer = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"migration\": {}, \
                      \"migration_detail\": [{\"phase\": \"copying\", \"error\": \"\", \"lag_bytes\": null, \
                      \"tables\": [{\"name\": \"t\", \"state\": \"copying\", \"rows_copied\": 7}]}]}";
        let found = progress(answer).expect("it is one");
        assert_eq!(
            (found.phase.as_str(), found.lag_bytes, found.tables[0].rows_copied),
            ("copying", None, 7)
        );
        assert!(progress("HTTP/1.0 200 OK\r\n\r\n{\"migration\": {}, \"migration_detail\": []}").is_none());
        assert!(progress("HTTP/1.0 200 OK\r\n\r\n{\"migration").is_none());
        assert!(progress("").is_none());
    }

    #[test]
    fn memory() {
        assert_eq!(high_water("Name:\twalferry\nVmHWM:\t   12345 kB\nVmRSS:\t 1 kB\n"), Some(12_641_280));
        assert_eq!(high_water("Name:\twalferry\n"), None);
    }
}
