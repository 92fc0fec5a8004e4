//! Servers and the engine between them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use walferry::demo::{ClusterOptions, Comparison, PgBinaries, SourceAndTarget, compare_servers};

/// Pairs of servers that work at the same time: tests of one program run side by side, and each of these is three
/// busy processes.
static PAIRS: Semaphore = Semaphore::const_new(2);

/// Waits for its turn: for tests that have servers of their own.
pub async fn turn() -> SemaphorePermit<'static> {
    PAIRS.acquire().await.unwrap()
}

/// What a condition may take, on a machine busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
pub const POLL: Duration = Duration::from_millis(20);

/// The database that is moved.
pub const DATABASE: &str = "defaultdb";

/// A source, a target, and what an engine between them needs.
pub struct Pair {
    pub cluster: SourceAndTarget,
    path: OsString,
    library_path: Option<PathBuf>,
    directory: TempDir,
    began: Instant,
    _permit: SemaphorePermit<'static>,
}

/// How the program is to be started.
#[derive(Clone)]
pub struct Launch {
    pub source: String,
    pub target: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, OsString)>,
    secrets: Vec<String>,
    directory: PathBuf,
}

/// A running `migrate`. Dropped, it is killed.
pub struct Engine {
    child: Child,
    address: String,
    log: PathBuf,
    secrets: Vec<String>,
    watch: ArgumentWatch,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Looks at the arguments of the engine and of every program that it runs.
struct ArgumentWatch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pair {
    /// One database on both sides, as users have it.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The same with other options.
    pub async fn with(change: impl FnOnce(&mut ClusterOptions)) -> Self {
        let binaries = PgBinaries::find(None).await.unwrap();
        Self::of(binaries.clone(), binaries, change).await
    }

    /// The same with these versions.
    pub async fn of(
        source: PgBinaries,
        target: PgBinaries,
        change: impl FnOnce(&mut ClusterOptions),
    ) -> Self {
        let permit = turn().await;
        let began = Instant::now();
        let pg_dump = source.program("pg_dump");
        let bin = pg_dump.parent().unwrap();
        let mut options = ClusterOptions::new(source, target);
        change(&mut options);
        let cluster = SourceAndTarget::start(options).await.unwrap();
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(bin.to_path_buf()).chain(std::env::split_paths(&rest));
        let path = std::env::join_paths(paths).unwrap();
        // An installed PostgreSQL finds its own libraries; an unpacked one has them beside its programs.
        let library_path = Some(bin.with_file_name("lib")).filter(|lib| lib.join("libpq.so.5").exists());
        let directory = tempfile::tempdir().unwrap();
        Self { cluster, path, library_path, directory, began, _permit: permit }
    }

    /// `migrate`, with nothing held back, its status on a free port.
    pub fn migrate(&self) -> Launch {
        self.command("migrate").arguments(&["--confirm-delay", "0", "--verbose"])
    }

    /// Any command.
    pub fn command(&self, command: &str) -> Launch {
        let passwords = [&self.cluster.source_login.password, &self.cluster.target_login.password];
        let mut environment = vec![("PATH".to_owned(), self.path.clone())];
        environment.extend(self.library_path.iter().map(|path| ("LD_LIBRARY_PATH".to_owned(), path.into())));
        Launch {
            source: self.cluster.source_uri(DATABASE),
            target: self.cluster.target_uri(DATABASE),
            arguments: vec![command.to_owned()],
            environment,
            secrets: passwords.into_iter().flat_map(|password| forms(password)).collect(),
            directory: self.directory.path().to_path_buf(),
        }
    }

    pub async fn source(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.cluster.source.sql(DATABASE, sql).await.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    pub async fn target(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.cluster.target.sql(DATABASE, sql).await.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// The first value of the first row.
    pub async fn source_value(&self, sql: &str) -> String {
        value(self.source(sql).await)
    }

    /// The first value of the first row.
    pub async fn target_value(&self, sql: &str) -> String {
        value(self.target(sql).await)
    }

    /// A session on the source with the rights of the databases' owner.
    pub async fn owner(&self) -> Client {
        let client = self.cluster.source.client(DATABASE).await.unwrap();
        client.batch_execute("SET SESSION AUTHORIZATION app_owner").await.unwrap();
        client
    }

    /// Where the source's WAL ends now.
    pub async fn source_wal(&self) -> u64 {
        lsn(&self.source_value("SELECT pg_current_wal_insert_lsn()").await)
    }

    pub async fn compare(&self) -> Comparison {
        compare_servers(&self.cluster.source, &self.cluster.target, DATABASE).await.unwrap()
    }

    /// Waits until all that was written up to now is applied, then every row of every table must be equal.
    pub async fn assert_follows(&self, engine: &mut Engine) {
        engine.wait_drained(self).await;
        let comparison = self.compare().await;
        assert!(comparison.tables_equal(), "{comparison}\n{}", engine.log());
    }

    /// Waits until so many more transactions are applied.
    pub async fn assert_written(&self, engine: &mut Engine, more: u64) {
        let applied = |detail: &Value| detail["transactions_applied"].as_u64().unwrap_or(0);
        let before = applied(&engine.detail().await.unwrap_or_default());
        let what = format!("{more} more transactions applied");
        engine.wait_until(&what, |detail| applied(detail) >= before + more).await;
    }

    /// Ends the engine in order; then rows and sequences must be equal.
    pub async fn assert_ends_equal(&self, mut engine: Engine) {
        engine.wait_drained(self).await;
        engine.terminate(0).await;
        let comparison = self.compare().await;
        assert!(comparison.equal(), "{comparison}\n{}", engine.log());
    }

    /// Cuts over, with the source fenced; then rows and sequences must be equal.
    pub async fn assert_cuts_over(&self, mut engine: Engine) {
        let ended = self.command("cutover").run().await;
        ended.assert(0, &["source fenced", "done: the target has all that was written to the source"]);
        engine.wait_exit(0, PATIENCE).await;
        let comparison = self.compare().await;
        assert!(comparison.equal(), "{comparison}\n{}", engine.log());
    }

    /// Removes the migration: nothing of it may be left on either side.
    pub async fn assert_removes(&self) {
        let ended = self.command("remove").run().await;
        ended.assert(0, &["dropped replication slot"]);
        let left =
            "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
        assert_eq!(self.source_value(left).await, "0", "slots and publications are left");
        assert_eq!(
            self.target_value("SELECT count(*) FROM pg_namespace WHERE nspname = 'walferry'").await,
            "0"
        );
    }

    /// The name of the migration's slot.
    pub async fn slot(&self) -> String {
        self.target_value("SELECT slot_name FROM walferry.migration").await
    }

    /// The position stored on the target.
    pub async fn progress(&self) -> u64 {
        lsn(&self.target_value("SELECT end_lsn FROM walferry.progress").await)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        eprintln!("{test}: {:.0} s", self.began.elapsed().as_secs_f64());
    }
}

impl Launch {
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    #[must_use]
    pub fn source(mut self, uri: impl Into<String>) -> Self {
        self.source = uri.into();
        self
    }

    #[must_use]
    pub fn target(mut self, uri: impl Into<String>) -> Self {
        self.target = uri.into();
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.retain(|(present, _)| present != name);
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// A password that no output may hold.
    #[must_use]
    pub fn secret(mut self, text: &str) -> Self {
        self.secrets.extend(forms(text));
        self
    }

    /// Starts `migrate` with its status on a free port.
    pub fn start(&self) -> Engine {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let log = tempfile::Builder::new().prefix("engine-").suffix(".log").tempfile_in(&self.directory);
        let (file, log) = log.unwrap().keep().unwrap();
        let mut command = self.process();
        command.args(["--listen", &address]).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().unwrap();
        let watch = ArgumentWatch::start(child.id().unwrap(), self.secrets.clone());
        Engine { child, address, log, secrets: self.secrets.clone(), watch }
    }

    /// Runs the command to its end.
    pub async fn run(&self) -> Ended {
        self.run_for(PATIENCE).await
    }

    /// The same with another bound.
    pub async fn run_for(&self, bound: Duration) -> Ended {
        let mut command = self.process();
        if self.arguments[0] == "migrate" && !self.arguments.iter().any(|argument| argument == "--listen") {
            command.args(["--listen", "none"]);
        }
        let output = timeout(bound, command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{:?} does not end", self.arguments)).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ended = Ended { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
        assert_clean(&ended.stdout, &self.secrets);
        assert_clean(&ended.stderr, &self.secrets);
        ended
    }

    pub fn process(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG") || name == "RUST_LOG") {
                command.env_remove(name);
            }
        }
        command.env("SOURCE_SERVICE_URI", &self.source).env("TARGET_SERVICE_URI", &self.target);
        command.env("HOME", &self.directory).env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(&self.arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

impl Engine {
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Status code and body of one GET; `None` while nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let ask = async {
            let mut stream = TcpStream::connect(&self.address).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            let code = head.split(' ').nth(1)?.parse().ok()?;
            Some((code, body.to_owned()))
        };
        timeout(Duration::from_secs(5), ask).await.ok().flatten()
    }

    /// The migrated database's detail of `/status`; `None` while nobody listens or nothing is known.
    pub async fn detail(&self) -> Option<Value> {
        let (code, body) = self.get("/status").await?;
        assert_eq!(code, 200, "{body}");
        let status: Value = serde_json::from_str(&body).unwrap();
        Some(status["migration_detail"][0].clone()).filter(|detail| !detail.is_null())
    }

    /// The details of all databases, by name.
    pub async fn details(&self) -> BTreeMap<String, Value> {
        let Some((_, body)) = self.get("/status").await else { return BTreeMap::new() };
        let status: Value = serde_json::from_str(&body).unwrap();
        let details = status["migration_detail"].as_array().unwrap().iter();
        details.map(|detail| (detail["dbname"].as_str().unwrap().to_owned(), detail.clone())).collect()
    }

    /// Waits until the details of all databases are as wanted.
    pub async fn wait_details(&mut self, what: &str, met: impl Fn(&BTreeMap<String, Value>) -> bool) {
        let deadline = Instant::now() + PATIENCE * 3;
        loop {
            let details = self.details().await;
            if met(&details) {
                return;
            }
            self.assert_lives(what);
            assert!(Instant::now() < deadline, "not in time: {what}: {details:#?}\n{}", self.log());
            sleep(POLL).await;
        }
    }

    pub async fn phase(&self) -> String {
        let detail = self.detail().await.unwrap_or_default();
        detail["phase"].as_str().unwrap_or_default().to_owned()
    }

    /// The gauge or counter of this name, labels included as they are printed.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the detail of `/status` is as wanted.
    pub async fn wait_until(&mut self, what: &str, met: impl Fn(&Value) -> bool) -> Value {
        self.wait_until_within(PATIENCE, what, met).await
    }

    /// The same with another bound.
    pub async fn wait_until_within(
        &mut self,
        bound: Duration,
        what: &str,
        met: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + bound;
        let mut last = Value::Null;
        loop {
            if let Some(detail) = self.detail().await {
                if met(&detail) {
                    return detail;
                }
                last = detail;
            }
            self.assert_lives(what);
            if Instant::now() >= deadline {
                last["tables"] = Value::Null;
                panic!("not in time: {what}: {last:#}\n{}", self.log());
            }
            sleep(POLL).await;
        }
    }

    /// Waits until it is in this phase, or beyond: through a copy and its indexes, say, which take their time on a
    /// machine busy with other things.
    pub async fn wait_phase(&mut self, phase: &str) {
        const ORDER: [&str; 7] =
            ["waiting", "checking", "schema", "copying", "indexing", "catching_up", "syncing"];
        let place = |name: &str| ORDER.iter().position(|other| *other == name);
        let wanted = place(phase);
        let there = |detail: &Value| place(detail["phase"].as_str().unwrap()) >= wanted;
        self.wait_until_within(PATIENCE * 3, phase, there).await;
    }

    /// Waits until everything that the source has written up to now is applied.
    pub async fn wait_drained(&mut self, pair: &Pair) {
        let end = pair.source_wal().await;
        self.wait_applied(end).await;
    }

    pub async fn wait_applied(&mut self, end: u64) {
        let applied = |detail: &Value| detail["applied_lsn"].as_str().map_or(0, lsn);
        let what = format!("applied up to {end}");
        self.wait_until_within(PATIENCE * 2, &what, |detail| applied(detail) >= end).await;
    }

    /// It must not have ended.
    #[track_caller]
    pub fn assert_lives(&mut self, what: &str) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the engine ended ({status}), waited for: {what}\n{}", self.log());
        }
    }

    /// SIGKILL.
    pub async fn kill9(mut self) {
        self.assert_lives("a kill");
        self.child.start_kill().unwrap();
        let status = self.child.wait().await.unwrap();
        assert_eq!(status.signal(), Some(9), "{}", self.log());
        self.check();
    }

    /// SIGTERM; it must end with this code.
    pub async fn terminate(&mut self, code: i32) {
        self.signal("TERM");
        self.wait_exit(code, PATIENCE).await;
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// It must end by itself with this code; returns its log.
    pub async fn wait_exit(&mut self, code: i32, bound: Duration) -> String {
        let status = timeout(bound, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it does not end\n{}", self.log())).unwrap();
        assert_eq!(status.code(), Some(code), "{status}\n{}", self.log());
        self.check();
        self.log()
    }

    /// Programs whose arguments have been looked at.
    pub fn programs(&self) -> Vec<String> {
        self.watch.seen.lock().unwrap().clone()
    }

    /// The largest resident memory that it ever had, in bytes.
    pub fn resident_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    fn check(&mut self) {
        self.watch.finish();
        assert_clean(&self.log(), &self.secrets);
    }
}

impl Ended {
    /// Each line of the error that is a statement, as its reader pastes it.
    pub fn statements(&self) -> Vec<String> {
        let lines = self.stderr.lines().skip_while(|line| !line.starts_with("walferry: ")).map(str::trim);
        lines.filter(|line| line.ends_with(';')).map(str::to_owned).collect()
    }

    /// The exit code, and parts of the output.
    #[track_caller]
    pub fn assert(&self, code: i32, parts: &[&str]) {
        let Self { status, stdout, stderr } = self;
        assert_eq!(status.code(), Some(code), "{stdout}\n{stderr}");
        for part in parts {
            assert!(stdout.contains(part) || stderr.contains(part), "no {part:?} in\n{stdout}\n{stderr}");
        }
    }
}

impl ArgumentWatch {
    fn start(pid: u32, secrets: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopped, programs) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for pid in std::iter::once(pid).chain(children(pid)) {
                    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let arguments = String::from_utf8_lossy(&arguments).into_owned();
                    let clean = secrets.iter().all(|secret| !arguments.contains(secret));
                    assert!(clean, "a password is in the arguments of {pid}");
                    let program = arguments.split('\0').next().unwrap_or_default();
                    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
                    let mut programs = programs.lock().unwrap();
                    if !program.is_empty() && !programs.contains(&program) {
                        programs.push(program);
                    }
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    fn finish(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no password in any program's arguments");
        }
    }
}

impl Drop for ArgumentWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Processes that `pid` has started, whatever thread of it did.
fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>()).flatten().collect()
}

/// A password as it is, and as a URI has it.
fn forms(password: &str) -> Vec<String> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let encoded = password.bytes().map(|byte| match byte {
        byte if plain(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    vec![password.to_owned(), encoded.collect()]
}

/// No password and no panic.
#[track_caller]
fn assert_clean(text: &str, secrets: &[String]) {
    assert!(secrets.iter().all(|secret| !text.contains(secret)), "a password was written");
    assert!(!text.contains("internal error") && !text.contains("panicked"), "{text}");
}

/// `16/B374D848` as a number.
pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap_or_else(|| panic!("{text:?} is no position"));
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

fn value(rows: Vec<Vec<Option<String>>>) -> String {
    rows.into_iter().next().expect("a row").into_iter().next().flatten().unwrap_or_default()
}

/// Polls until `met` says so.
pub async fn wait_for<F: Future<Output = bool>>(what: &str, bound: Duration, met: impl Fn() -> F) {
    let deadline = Instant::now() + bound;
    while !met().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(POLL).await;
    }
}

/// Random choices that can be repeated: the seed is printed, and taken from `WALFERRY_TEST_SEED`.
pub fn random(test: &str) -> StdRng {
    let given = std::env::var("WALFERRY_TEST_SEED").ok().map(|text| text.parse().unwrap());
    let seed: u64 = given.unwrap_or_else(rand::random);
    eprintln!("{test}: WALFERRY_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A file of the sample databases, if they are there: what needs it is skipped otherwise.
pub fn data(path: &str) -> Option<String> {
    let root = std::env::var_os("WALFERRY_TEST_DATA").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    std::fs::read_to_string(root.join(path)).ok()
}
