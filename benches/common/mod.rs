//! What the benches share: two servers set up as a busy database is, the engine between them, and `RESULTS.md`.
//!
//! | module | what |
//! |---|---|
//! | [`cpu`] | processor time of servers and the engine |
//! | [`figures`] | medians and goals |
//! | [`peers`] | the server's own subscription, pgcopydb |
//! | [`proxy`] | a network that takes its time |
//! | [`rows`] | whether two databases are equal |

#![allow(dead_code, reason = "each bench uses its own part")]

pub mod cpu;
pub mod figures;
pub mod peers;
pub mod proxy;
pub mod rows;

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use walferry::demo::{
    ClusterOptions, DEFAULT_DATABASE, PgBinaries, Server, ServerOptions, SourceAndTarget, compare_servers,
};

/// Whatever goes wrong ends the bench.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The database that is moved.
pub const DB: &str = DEFAULT_DATABASE;

/// A source and a target, with fsync.
pub struct Bench {
    /// Both servers.
    pub sides: SourceAndTarget,
    path: OsString,
    version: String,
}

/// The engine, at work. Dropped, it is killed: one that is halted would stay for ever.
pub struct Engine(Child);

impl Engine {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Engine {
    /// Waits for its own end; gives the largest resident memory that it had, in bytes, and seconds of processor time.
    pub async fn finished(mut self) -> Result<(u64, f64)> {
        let (mut peak, mut seconds) = (0, 0.0);
        loop {
            // One that has just ended has no such line.
            peak = cpu::peak_memory(self.0.id()).unwrap_or(peak);
            seconds = cpu::of_process(self.0.id())?.unwrap_or(seconds);
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok((peak, seconds)),
                Some(status) => return Err(format!("the engine ended: {status}").into()),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    /// Starts both; `source` changes the source's settings.
    pub async fn start(source: impl FnOnce(ServerOptions) -> ServerOptions) -> Result<Self> {
        Self::start_with(source, |options| options).await
    }

    /// Starts both; `source` and `target` change their settings.
    pub async fn start_with(
        source: impl FnOnce(ServerOptions) -> ServerOptions,
        target: impl FnOnce(ServerOptions) -> ServerOptions,
    ) -> Result<Self> {
        let tuned = |options: ServerOptions| {
            options
                .fsync(true)
                .setting("shared_buffers", "1GB")
                .setting("max_wal_size", "8GB")
                .setting("max_connections", "300")
        };
        Self::start_as(|options| source(tuned(options)), |options| target(tuned(options))).await
    }

    /// Starts both with the settings that initdb writes, but for `wal_level`.
    pub async fn start_untuned() -> Result<Self> {
        let plain = |options: ServerOptions| {
            options
                .fsync(true)
                .setting("shared_buffers", "128MB")
                .setting("max_wal_senders", "10")
                .setting("max_replication_slots", "10")
        };
        Self::start_as(plain, plain).await
    }

    async fn start_as(
        source: impl FnOnce(ServerOptions) -> ServerOptions,
        target: impl FnOnce(ServerOptions) -> ServerOptions,
    ) -> Result<Self> {
        let binaries = PgBinaries::find(None).await?;
        let bin = binaries.program("pg_dump");
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let paths = bin.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&rest));
        let path = std::env::join_paths(paths)?;
        let version = binaries.version();
        let mut options = ClusterOptions::new(binaries.clone(), binaries);
        options.source_options = source(options.source_options);
        options.target_options = target(options.target_options);
        let sides = SourceAndTarget::start(options).await?;
        if !encrypted() {
            for server in [&sides.source, &sides.target] {
                let file = server.data_dir().join("pg_hba.conf");
                let rules = std::fs::read_to_string(&file)?;
                std::fs::write(&file, rules.replace("hostssl", "host"))?;
                server.sql("postgres", "SELECT pg_reload_conf()").await?;
            }
        }
        Ok(Self { sides, path, version })
    }

    /// The source, as its users reach it.
    pub fn source_uri(&self) -> String {
        reached_by(self.sides.source_uri(DB))
    }

    /// The target, as its users reach it.
    pub fn target_uri(&self) -> String {
        reached_by(self.sides.target_uri(DB))
    }

    /// The source's answer to one question.
    pub async fn ask(&self, sql: &str) -> Result<String> {
        Ok(self.sides.source.sql(DB, sql).await?[0][0].clone().unwrap_or_default())
    }

    /// A CHECKPOINT on both sides: nobody pays for what another left.
    pub async fn checkpoint(&self) -> Result<()> {
        for server in [&self.sides.source, &self.sides.target] {
            server.sql("postgres", "CHECKPOINT").await?;
        }
        Ok(())
    }

    /// Where PostgreSQL's programs are found first.
    pub fn path(&self) -> &OsString {
        &self.path
    }

    /// PostgreSQL's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Starts `migrate`.
    pub fn engine(&self, arguments: &[&str]) -> Result<Engine> {
        self.engine_to(&self.target_uri(), arguments)
    }

    /// Makes a database on the target that is as walferry's is now, for a peer.
    pub async fn copy_database(&self, name: &str) -> Result<()> {
        let target = &self.sides.target;
        target.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {DB}")).await?;
        target.sql(name, "DROP SCHEMA walferry CASCADE").await?;
        Ok(())
    }

    /// Drops the migration and what it made on the source.
    pub fn remove(&self) -> Result<ExitStatus> {
        self.command(&["remove", "--force"])
    }

    /// Runs one of walferry's commands to its end.
    pub fn command(&self, arguments: &[&str]) -> Result<ExitStatus> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).env("PATH", &self.path);
        command.env("SOURCE_SERVICE_URI", self.source_uri());
        command.env("TARGET_SERVICE_URI", self.target_uri()).env("RUST_LOG", "walferry=warn");
        Ok(command.status()?)
    }

    /// Starts `migrate`, by this way to the target.
    pub fn engine_to(&self, target_uri: &str, arguments: &[&str]) -> Result<Engine> {
        let child = Command::new(env!("CARGO_BIN_EXE_walferry"))
            .args(["migrate", "--confirm-delay", "0", "--passwords-file"])
            .arg(self.sides.target.socket_dir().join("passwords"))
            .args(arguments)
            .args((!arguments.contains(&"--listen")).then_some(["--listen", "none"]).into_iter().flatten())
            .env("SOURCE_SERVICE_URI", self.source_uri())
            .env("TARGET_SERVICE_URI", target_uri)
            .env("RUST_LOG", "walferry=warn")
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Engine(child))
    }

    /// Runs `migrate` until it is in sync.
    pub fn sync(&self) -> Result<()> {
        let status = self.engine(&["--until", "synced"])?.0.wait()?;
        if status.success() { Ok(()) } else { Err("the first migration failed".into()) }
    }

    /// Waits until `sql` is true on the target.
    pub async fn reached(&self, engine: &mut Engine, sql: &str) -> Result<Duration> {
        let began = Instant::now();
        let alive = || match engine.0.try_wait()? {
            Some(status) => Err(format!("the engine ended: {status}").into()),
            None => Ok(()),
        };
        arrived(&self.sides.target, DB, sql, alive).await?;
        Ok(began.elapsed())
    }

    /// Ends the engine in order; gives the largest resident memory that it had, in bytes.
    pub fn end(&self, mut engine: Engine) -> Result<u64> {
        let peak = cpu::peak_memory(engine.id())?;
        signal(engine.id(), "TERM")?;
        engine.0.wait()?;
        Ok(peak)
    }

    /// Every row of every table must be equal before a time counts.
    pub async fn assert_equal(&self) -> Result<()> {
        let comparison = compare_servers(&self.sides.source, &self.sides.target, DB).await?;
        if comparison.tables_equal() { Ok(()) } else { Err(format!("the sides differ: {comparison}").into()) }
    }

    /// Prints lines, and puts them into `RESULTS.md` in place of the section of this name.
    pub fn record(&self, section: &str, command: &str, lines: &[String]) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.md");
        let section = &if encrypted() { section.to_owned() } else { format!("{section}, without TLS") };
        let command =
            &if encrypted() { command.to_owned() } else { format!("WALFERRY_BENCH_TLS=off {command}") };
        let now = jiff::Timestamp::now().to_string();
        let day = now.split('T').next().unwrap_or_default();
        let cores = std::thread::available_parallelism()?;
        let head = format!(
            "## {section}\n\n`{command}`, {day}, {cores} cores of {}, PostgreSQL {} on both sides, fsync on, {}.\n\n",
            processor(),
            self.version,
            if encrypted() { "TLS" } else { "without TLS" }
        );
        let text = head + &lines.join("\n") + "\n";
        std::io::stdout().write_all(text.as_bytes())?;
        let old = std::fs::read_to_string(&path).unwrap_or_else(|_| "# Results\n".to_owned());
        let mut kept = String::new();
        let mut skips = false;
        for line in old.lines() {
            if line.starts_with("## ") {
                skips = line == format!("## {section}");
            }
            if !skips {
                kept += line;
                kept.push('\n');
            }
        }
        std::fs::write(path, format!("{}\n\n{text}", kept.trim_end()))?;
        Ok(())
    }
}

/// Whether connections use TLS: unless `WALFERRY_BENCH_TLS` is `off`.
pub fn encrypted() -> bool {
    std::env::var("WALFERRY_BENCH_TLS").as_deref() != Ok("off")
}

/// A server's URI, with or without TLS.
pub fn reached_by(uri: String) -> String {
    match uri.split_once("sslmode=") {
        Some((server, _)) if !encrypted() => format!("{server}sslmode=disable"),
        _ => uri,
    }
}

/// Waits until `sql` is true; `alive` says when that has become hopeless.
pub async fn arrived(
    server: &Server,
    database: &str,
    sql: &str,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    let client = server.client(database).await?;
    let question = client.prepare(sql).await?;
    while !client.query_one(&question, &[]).await?.get::<_, bool>(0) {
        alive()?;
        if began.elapsed() > PATIENCE {
            return Err("it does not catch up".into());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Nothing is measured of a program that failed.
pub fn ended_well(what: &str, status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { Err(format!("{what} failed: {status}").into()) }
}

/// Runs a bench on two threads.
pub fn block_on(bench: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(bench)
}

/// A number from the environment.
pub fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is no number").into()),
        Err(_) => Ok(default),
    }
}

/// A line on the terminal while a bench is at work.
pub fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Sends a signal to a process: `TERM`, `STOP`, `CONT`.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(format!("no process {pid} for SIG{name}").into()) }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How long one run may take.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// So exact is a time, and so cheap the asking.
const POLL: Duration = Duration::from_millis(5);

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    name.trim_start_matches([':', '\t', ' ']).to_owned()
}
