//! How a server is set up, and its cluster made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tokio::process::Command;

use super::account::Account;
use super::endpoint::{Endpoint, output};
use super::tls::write_certificates;
use super::{DemoError, PgBinaries, Result};

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    settings: BTreeMap<String, String>,
}

impl Default for ServerOptions {
    /// Fit for logical replication; without fsync, which only a machine that loses power would miss.
    fn default() -> Self {
        let settings = [
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_connections", "100"),
            ("shared_buffers", "64MB"),
            ("max_wal_size", "1GB"),
            ("fsync", "off"),
            ("timezone", "UTC"),
            ("log_line_prefix", "%m [%p] %q%u@%d "),
            // Files in the data directory: nothing is left in shared memory after `kill -9`.
            ("dynamic_shared_memory_type", "mmap"),
        ];
        Self { settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into() }
    }
}

impl ServerOptions {
    /// Sets one parameter of `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Whether the server flushes its writes for real.
    #[must_use]
    pub fn fsync(self, on: bool) -> Self {
        self.setting("fsync", if on { "on" } else { "off" })
    }

    fn configuration(&self) -> String {
        let line = |(name, value): (&String, &String)| format!("{name} = '{}'\n", value.replace('\'', "''"));
        self.settings.iter().map(line).collect()
    }
}

const HBA: &str = "\
local   all         postgres             trust
local   replication postgres             trust
hostssl all         all         all      scram-sha-256
hostssl replication all         all      scram-sha-256
";

/// Makes a cluster with its settings and certificates in `directory`.
pub(super) async fn make_cluster(
    binaries: &PgBinaries,
    account: Account,
    directory: &Path,
    options: &ServerOptions,
) -> Result<()> {
    let data = directory.join("data");
    let mut command = binaries.blocking_command("initdb");
    account.run(&mut command);
    command.args(["--username=postgres", "--auth=scram-sha-256", "--auth-local=trust", "--no-sync"]);
    command.args(["--encoding=UTF8", "--locale=C", "--pgdata"]).arg(&data);
    output(&mut Command::from(command)).await?;
    configure(account, directory, options)?;
    fs::write(data.join("pg_hba.conf"), HBA).map_err(DemoError::io("write pg_hba.conf"))
}

/// Makes a standby of a server in `directory`, with settings and certificates of its own and a physical slot.
pub(super) async fn copy_cluster(
    primary: &Endpoint,
    account: Account,
    directory: &Path,
    slot: &str,
    options: &ServerOptions,
) -> Result<()> {
    let mut command = primary.superuser_tool("pg_basebackup", "postgres").into_std();
    account.run(&mut command);
    // The database is for synchronizing slots (17); older ones leave it out of `primary_conninfo`.
    command.args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--dbname=dbname=postgres"]);
    command.args(["--create-slot", "--slot", slot, "--pgdata"]).arg(directory.join("data"));
    output(&mut Command::from(command)).await?;
    configure(account, directory, options)
}

/// Writes certificates, and settings after those that are there.
fn configure(account: Account, directory: &Path, options: &ServerOptions) -> Result<()> {
    write_certificates(directory, account)?;
    let place = |name: &str| directory.join(name).to_string_lossy().replace('\'', "''");
    let own = format!(
        "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nssl = on\nssl_cert_file = '{}'\n\
         ssl_key_file = '{}'\npassword_encryption = 'scram-sha-256'\nlogging_collector = off\n",
        directory.to_string_lossy().replace('\'', "''"),
        place("server.crt"),
        place("server.key"),
    );
    let conf = directory.join("data").join("postgresql.conf");
    let mut text = fs::read_to_string(&conf).map_err(DemoError::io("read postgresql.conf"))?;
    text.push_str(&own);
    text.push_str(&options.configuration());
    fs::write(conf, text).map_err(DemoError::io("write postgresql.conf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_and_overridden() {
        let text = ServerOptions::default().fsync(true).setting("x.y", "it's").configuration();
        assert!(text.contains("fsync = 'on'\n") && text.contains("x.y = 'it''s'\n"), "{text}");
    }
}
