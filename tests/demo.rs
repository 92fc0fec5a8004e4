//! The `demo` command as a new user runs it, to its end and interrupted.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Two demos at once would tell nothing about the time of one.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What was promised to users of a release build, on a machine with nothing else to do.
const TIME_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 180 } else { 90 });

struct Demo {
    child: Child,
    /// Nobody else's files are here.
    directory: tempfile::TempDir,
    started: Instant,
}

impl Demo {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("wfd").tempdir().unwrap();
        // Run by root, servers are another account's.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
        command.arg("demo").env("TMPDIR", directory.path());
        // Neither may be touched, nor be in the way.
        command.env("SOURCE_SERVICE_URI", "host=192.0.2.1").env("PGHOST", "192.0.2.1");
        command.env("PGSSLMODE", "disable").env("RUST_LOG", "");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, directory, started: Instant::now() }
    }

    /// Reads lines until one has `part` in it.
    fn lines_until(&mut self, part: &str) -> String {
        let mut text = String::new();
        for line in BufReader::new(self.child.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            text.push_str(&line);
            text.push('\n');
            if line.contains(part) {
                return text;
            }
        }
        panic!("no {part:?} in\n{text}");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; gives the exit code and what it said.
    fn end(self) -> (Option<i32>, String, tempfile::TempDir) {
        let output = self.child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned(), self.directory)
    }
}

#[tokio::test]
async fn to_its_end() {
    let _only = ONE_AT_A_TIME.lock().await;
    let demo = Demo::start();
    let started = demo.started;
    let (code, text, directory) = demo.end();
    let took = started.elapsed();
    eprintln!("{text}\n{took:?}");
    assert_eq!(code, Some(0));
    let verdict = text.lines().find(|line| line.starts_with("equal: ")).expect("a verdict");
    assert!(verdict.ends_with(", 0 differences"), "{verdict}");
    for part in ["walferry check", "SIGKILL", "caught up", "lag 0", "exit code 0", "no slot", "engine memory"]
    {
        assert!(text.contains(part) || part == "engine memory" && !Path::new("/proc").exists(), "{part}");
    }
    assert!(!text.contains("\x1b["), "control sequences where there is no terminal");
    assert!(!text.contains("postgresql://"), "a password is shown");
    assert!(took < TIME_MAX, "{took:?}");
    nothing_is_left(directory.path());
}

#[tokio::test]
async fn interrupted() {
    let _only = ONE_AT_A_TIME.lock().await;
    for (part, signal) in [("two servers", "-INT"), ("copying every table", "-INT"), ("in sync", "-KILL")] {
        let mut demo = Demo::start();
        demo.lines_until(part);
        demo.signal(signal);
        let (code, text, directory) = demo.end();
        nothing_is_left(directory.path());
        if signal == "-INT" {
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("interrupted before the end"), "{text}");
        }
    }
}

/// Neither a file nor a process: what a watchdog does after its owner is dead takes a moment.
fn nothing_is_left(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        let processes = processes_of(directory);
        if files.is_empty() && processes.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left: {files:?} {processes:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The command lines of processes whose arguments or environment name `directory`: servers, engines, their tools.
fn processes_of(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap().to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let environment = read("environ");
        let is_number = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if is_number
            && (arguments.contains(&directory) || String::from_utf8_lossy(&environment).contains(&directory))
        {
            found.push(arguments);
        }
    }
    found
}
