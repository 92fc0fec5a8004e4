//! What removes a server whose owner is gone.
//!
//! Nothing may outlive its owner, whatever ends that one. So a watchdog (a shell in a process group of its own) reads
//! from a pipe that nobody writes to: when the owner drops the server, panics, or is killed, the pipe closes, and the
//! watchdog stops the server at once and removes the directory. What it cannot know is a machine that loses power.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use tempfile::TempDir;

use super::account::Account;
use super::{DemoError, PgBinaries, Result};

/// Removes the server and its directory when the pipe to it closes.
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    /// Nothing is written here: its end is the message.
    pipe: Option<ChildStdin>,
    directory: TempDir,
}

impl Watchdog {
    /// Makes the directory, and starts to watch.
    pub fn start(binaries: &PgBinaries, account: Account) -> Result<Self> {
        // Whoever may enter it reaches the socket, which lets the superuser in without a password.
        let private = Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix("wf-").permissions(private).tempdir();
        let directory = directory.map_err(DemoError::io("make a temporary directory"))?;
        account.own(directory.path())?;
        let mut command = Command::new("/bin/sh");
        account.run(&mut command);
        command
            .args(["-c", WATCHDOG, "walferry-watchdog"])
            .arg(directory.path())
            .arg(binaries.program("pg_ctl"));
        if let Some(lib) = binaries.library_path() {
            command.env("LD_LIBRARY_PATH", lib);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut shell = command.spawn().map_err(DemoError::io("run /bin/sh"))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe, directory })
    }

    /// Where everything of the server is.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Removes everything; returns when it is gone.
    pub fn finish(&mut self) {
        self.pipe = None;
        let _ = self.shell.wait();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `$1` the directory, `$2` pg_ctl. Started while initdb may still be writing, so that removing may take some tries;
/// line 7 of `postmaster.pid` ends with the shared memory segment's id, which a killed postmaster leaves behind.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r _
pid_file="$1/data/postmaster.pid"
segment() { sed -n '7s/.*[^0-9]//p' "$1"; }
if [ -f "$pid_file" ]; then
    "$2" stop -s -w -t 20 -m immediate -D "$1/data"
    if [ -f "$pid_file" ]; then
        kill -9 "$(head -n 1 "$pid_file")"
        ipcrm -m "$(segment "$pid_file")"
    fi
elif [ -f "$1/data/postmaster.dead" ]; then
    ipcrm -m "$(segment "$1/data/postmaster.dead")"
fi
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$1" && exit
    sleep 1
done
"#;
