//! Who else can do it: the server's own subscription, and pgcopydb.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use walferry::demo::{Login, Server};

use super::{DB, PATIENCE, Result, reached_by};

/// The role of peers that need a superuser on both sides.
pub struct Superuser(Login);

impl Superuser {
    /// Makes it. Its password has nothing that must be encoded: not every peer can.
    pub async fn create(source: &Server, target: &Server) -> Result<Self> {
        let login = Login { role: "peer".to_owned(), password: "peer".to_owned() };
        for server in [source, target] {
            server.sql("postgres", "CREATE ROLE peer LOGIN SUPERUSER PASSWORD 'peer'").await?;
        }
        Ok(Self(login))
    }

    /// As walferry reaches it.
    pub fn uri(&self, server: &Server, database: &str) -> String {
        reached_by(self.0.uri(server, database))
    }
}

/// The server's own apply worker, with a slot of the same name.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its name, and its database's on the target.
    pub name: String,
    /// Whether values come in their binary form.
    pub binary: bool,
    /// Whether transactions come while they are in progress.
    pub streaming: bool,
}

impl Subscription {
    /// Makes it, without letting it begin: nothing is copied, and it begins where the source is now.
    pub async fn create(&self, source: &Server, target: &Server, source_uri: &str) -> Result<()> {
        let name = &self.name;
        let slot = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
        source.sql(DB, &slot).await?;
        let on = |on| if on { "on" } else { "off" };
        let (binary, streaming) = (on(self.binary), on(self.streaming));
        // The server may have been started with a home directory that is not its own.
        let source_uri = format!("{source_uri}&sslcert=/nowhere").replace('\'', "''");
        let sql = format!(
            "CREATE SUBSCRIPTION {name} CONNECTION '{source_uri}' PUBLICATION {PUBLICATIONS} WITH (create_slot = false, \
             slot_name = '{name}', enabled = false, copy_data = false, binary = {binary}, streaming = {streaming})"
        );
        target.client(name).await?.batch_execute(&sql).await?;
        Ok(())
    }

    /// Lets it begin.
    pub async fn enable(&self, target: &Server) -> Result<()> {
        let name = &self.name;
        target.sql(name, &format!("ALTER SUBSCRIPTION {name} ENABLE")).await?;
        Ok(())
    }

    /// Stops it; returns when nothing of it runs on either side.
    pub async fn disable(&self, source: &Server, target: &Server) -> Result<()> {
        let name = &self.name;
        target.sql(name, &format!("ALTER SUBSCRIPTION {name} DISABLE")).await?;
        let began = Instant::now();
        let active = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{name}' AND active");
        let running =
            format!("SELECT 1 FROM pg_stat_subscription WHERE subname = '{name}' AND pid IS NOT NULL");
        while !source.sql(DB, &active).await?.is_empty() || !target.sql(name, &running).await?.is_empty() {
            if began.elapsed() > PATIENCE {
                return Err(format!("subscription {name} does not stop").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Drops it and its slot.
    pub async fn remove(&self, source: &Server, target: &Server) -> Result<()> {
        let name = &self.name;
        let client = target.client(name).await?;
        client.batch_execute(&format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")).await?;
        client.batch_execute(&format!("DROP SUBSCRIPTION {name}")).await?;
        source.sql(DB, &format!("SELECT pg_drop_replication_slot('{name}')")).await?;
        Ok(())
    }
}

/// What subscriptions subscribe to. A table without a replica identity is in the second, as with walferry.
pub const PUBLICATIONS: &str = "bench, bench_ins";

/// pgcopydb, following.
///
/// Version 0.10 stalls in a transaction that spans several files of WAL, and leaves a transaction out that ends just
/// where it is told to end.
pub struct Pgcopydb {
    program: PathBuf,
    work: TempDir,
    source: String,
    target: String,
    /// Its database on the target.
    database: String,
}

/// Its slot's and its replication origin's name.
const PGCOPYDB: &str = "pgcopydb";

impl Pgcopydb {
    /// The program; none where it is not installed.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join("pgcopydb")).find(|file| file.is_file())
    }

    /// For a database of the target; none where the program or, on the source, wal2json is not installed.
    pub async fn find(
        peer: &Superuser,
        source: &Server,
        target: &Server,
        database: &str,
    ) -> Result<Option<Self>> {
        let Some(program) = Self::program() else { return Ok(None) };
        let probe = "SELECT pg_create_logical_replication_slot('probe', 'wal2json', true)";
        if source.sql(DB, probe).await.is_err() {
            return Ok(None);
        }
        let work = tempfile::Builder::new().prefix("walferry-bench-").tempdir()?;
        let (source, target) = (peer.uri(source, DB), peer.uri(target, database));
        Ok(Some(Self { program, work, source, target, database: database.to_owned() }))
    }

    /// Its version: `0.10`.
    pub async fn version(program: &PathBuf) -> Result<String> {
        let output = Command::new(program).arg("--version").output().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().find_map(|line| line.strip_prefix("pgcopydb version ")).unwrap_or("?").to_owned())
    }

    /// Makes its slot and its replication origin: what is written from now on is what it has to apply.
    ///
    /// Its table on the source goes again until it runs: another contender would find a table that is not its own.
    pub async fn set_up(&self, source: &Server, target: &Server) -> Result<()> {
        self.remove(source, target).await?;
        std::fs::create_dir_all(self.work.path())?;
        self.run(&["stream", "setup", "--slot-name", PGCOPYDB, "--origin", PGCOPYDB]).await?;
        source.sql(DB, "DROP SCHEMA pgcopydb CASCADE").await?;
        Ok(())
    }

    /// Makes its table again, where all that it needs to know stands.
    pub async fn prepare(&self, source: &Server) -> Result<()> {
        let start = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'pgcopydb'";
        let start = source.sql(DB, start).await?.pop().and_then(|mut row| row.pop().flatten());
        let start = start.ok_or("pgcopydb has no slot")?;
        source.sql(DB, "CREATE SCHEMA pgcopydb").await?;
        self.run(&["stream", "sentinel", "create", "--startpos", &start]).await?;
        self.run(&["stream", "sentinel", "set", "apply"]).await
    }

    /// Follows up to `end`, and ends then.
    pub fn follow(&self, end: &str) -> Result<Child> {
        let arguments = ["follow", "--slot-name", PGCOPYDB, "--origin", PGCOPYDB, "--endpos", end];
        Ok(self.command(&arguments)?.args(["--resume", "--not-consistent"]).spawn()?)
    }

    /// The end of what it said.
    pub fn said(&self) -> String {
        let text = std::fs::read(self.work.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Drops all that it made, and ends what of it is still connected.
    pub async fn remove(&self, source: &Server, target: &Server) -> Result<()> {
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'peer'";
        source.sql(DB, end).await?;
        target.sql(&self.database, end).await?;
        source.sql(DB, "DROP SCHEMA IF EXISTS pgcopydb CASCADE").await?;
        let slot = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'pgcopydb'";
        source.sql(DB, slot).await?;
        let origin =
            "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = 'pgcopydb'";
        target.sql(&self.database, origin).await?;
        let _ = std::fs::remove_dir_all(self.work.path().join("dir"));
        Ok(())
    }

    async fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments)?.spawn()?.wait().await?;
        if status.success() { Ok(()) } else { Err(format!("pgcopydb failed: {}", self.said()).into()) }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.work.path().join("log"))?;
        let mut command = Command::new(&self.program);
        command.args(arguments);
        // Not all of its commands take it, and those must not share the user's own.
        command.env("XDG_DATA_HOME", self.work.path().join("data")).env("TMPDIR", self.work.path());
        if !arguments.contains(&"sentinel") {
            command.arg("--dir").arg(self.work.path().join("dir"));
        }
        command.env("PGCOPYDB_SOURCE_PGURI", &self.source).env("PGCOPYDB_TARGET_PGURI", &self.target);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        // It has children, which end with the group.
        command.process_group(0);
        Ok(command)
    }
}

/// Ends a peer's process and its children, which are a group of their own.
pub async fn end(mut peer: Child) -> Result<()> {
    if let Some(pid) = peer.id() {
        let kill = |signal: &'static str| {
            let mut kill = Command::new("kill");
            kill.args([signal, "--", &format!("-{pid}")]).stderr(Stdio::null());
            kill
        };
        kill("-TERM").status().await?;
        let _ = tokio::time::timeout(Duration::from_secs(10), peer.wait()).await;
        // Some may have ended by themselves, or all.
        kill("-KILL").status().await?;
        peer.wait().await?;
    }
    Ok(())
}
