//! What the benches share: two servers set up as a busy database is, the engine between them, and `RESULTS.md`.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use walferry::demo::{
    ClusterOptions, DEFAULT_DATABASE, PgBinaries, ServerOptions, SourceAndTarget, compare_servers,
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

impl Bench {
    /// Starts both; `source` changes the source's settings.
    pub async fn start(source: impl FnOnce(ServerOptions) -> ServerOptions) -> Result<Self> {
        let binaries = PgBinaries::find(None).await?;
        let bin = binaries.program("pg_dump");
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let paths = bin.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&rest));
        let path = std::env::join_paths(paths)?;
        let version = binaries.version();
        let tuned = |options: ServerOptions| {
            options
                .fsync(true)
                .setting("shared_buffers", "1GB")
                .setting("max_wal_size", "8GB")
                .setting("max_connections", "300")
        };
        let mut options = ClusterOptions::new(binaries.clone(), binaries);
        options.source_options = source(tuned(options.source_options));
        options.target_options = tuned(options.target_options);
        Ok(Self { sides: SourceAndTarget::start(options).await?, path, version })
    }

    /// The source's answer to one question.
    pub async fn ask(&self, sql: &str) -> Result<String> {
        Ok(self.sides.source.sql(DB, sql).await?[0][0].clone().unwrap_or_default())
    }

    /// Starts `migrate`; its log goes to `log`.
    pub fn engine(&self, arguments: &[&str]) -> Result<Child> {
        let child = Command::new(env!("CARGO_BIN_EXE_walferry"))
            .args(["migrate", "--listen", "none", "--confirm-delay", "0"])
            .args(arguments)
            .env("SOURCE_SERVICE_URI", self.sides.source_uri(DB))
            .env("TARGET_SERVICE_URI", self.sides.target_uri(DB))
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "walferry=warn".to_owned()))
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(child)
    }

    /// Runs `migrate` until it is in sync.
    pub fn sync(&self) -> Result<()> {
        let status = self.engine(&["--until", "synced"])?.wait()?;
        if status.success() { Ok(()) } else { Err("the first migration failed".into()) }
    }

    /// Waits until `sql` is true on the target.
    pub async fn reached(&self, engine: &mut Child, sql: &str) -> Result<Duration> {
        let began = Instant::now();
        let target = self.sides.target.client(DB).await?;
        while !target.query_one(sql, &[]).await?.get::<_, bool>(0) {
            if let Some(status) = engine.try_wait()? {
                return Err(format!("the engine ended: {status}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err("the engine does not catch up".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(began.elapsed())
    }

    /// Ends the engine in order; gives the largest resident memory that it had, in bytes.
    pub fn end(&self, mut engine: Child) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", engine.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
        Command::new("kill").args(["-TERM", &engine.id().to_string()]).status()?;
        engine.wait()?;
        Ok(peak * 1024)
    }

    /// Every row of every table must be equal before a time counts.
    pub async fn assert_equal(&self) -> Result<()> {
        let comparison = compare_servers(&self.sides.source, &self.sides.target, DB).await?;
        if comparison.tables_equal() { Ok(()) } else { Err(format!("the sides differ: {comparison}").into()) }
    }

    /// Prints lines, and puts them into `RESULTS.md` in place of the section of this name.
    pub fn record(&self, section: &str, command: &str, lines: &[String]) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.md");
        let now = jiff::Timestamp::now().to_string();
        let day = now.split('T').next().unwrap_or_default();
        let cores = std::thread::available_parallelism()?;
        let head = format!(
            "## {section}\n\n`{command}`, {day}, {cores} cores of {}, PostgreSQL {} on both sides, fsync on, TLS.\n\n",
            processor(),
            self.version
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

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const PATIENCE: Duration = Duration::from_secs(600);

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    name.trim_start_matches([':', '\t', ' ']).to_owned()
}
