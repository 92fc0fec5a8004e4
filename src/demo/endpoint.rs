//! A server's unix socket, as its superuser uses it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{DemoError, PgBinaries, Result, tail};

/// Where a server can be reached as superuser, and with which programs; stays right over restarts.
#[derive(Debug, Clone)]
pub struct Endpoint {
    binaries: PgBinaries,
    socket_dir: PathBuf,
    port: u16,
}

impl Endpoint {
    pub(super) fn new(binaries: &PgBinaries, socket_dir: &Path, port: u16) -> Self {
        Self { binaries: binaries.clone(), socket_dir: socket_dir.to_path_buf(), port }
    }

    /// A connection as superuser. It ends when the client is dropped.
    ///
    /// # Errors
    /// When the server does not answer, or the database does not exist.
    pub async fn client(&self, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).port(self.port).user("postgres").dbname(database);
        // Notices of servers of one's own are noise in whatever log there is.
        config.options("-c client_min_messages=error");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(client)
    }

    /// One of PostgreSQL's programs, its environment set for the superuser.
    pub fn superuser_tool(&self, tool: &str, database: &str) -> Command {
        let mut command = self.binaries.command(tool);
        command.env("PGHOST", &self.socket_dir).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", database);
        command.kill_on_drop(true);
        command
    }
}

/// Lines of a program's or server's output that an error shows.
pub(super) const LOG_LINES: usize = 15;

/// Runs statements; returns their rows as text.
pub(super) async fn rows(client: &Client, text: &str) -> Result<Vec<Vec<Option<String>>>> {
    let messages = client.simple_query(text).await?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect())
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// Runs a program to its end; returns what it printed.
pub(super) async fn output(command: &mut Command) -> Result<String> {
    let tool = command.as_std().get_program();
    let tool = Path::new(tool).file_name().unwrap_or(tool).to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(DemoError::io(format!("run {tool}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(DemoError::Tool { tool, detail: tail(&String::from_utf8_lossy(&text), LOG_LINES) })
}
