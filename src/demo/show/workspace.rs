//! The demo's own files, and the engine's process: gone with their owner, whatever ends that one.
//!
//! A shell in a process group of its own reads from a pipe which engine is at work. When the pipe closes (the demo is
//! over, was interrupted, or was killed) it kills that engine with what it has started, and removes the directory.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use tempfile::TempDir;

use crate::demo::{DemoError, Result};

/// A temporary directory, and who removes it.
#[derive(Debug)]
pub(super) struct Workspace {
    shell: Child,
    /// Its end is the message to remove everything.
    pipe: Option<ChildStdin>,
    directory: TempDir,
}

impl Workspace {
    /// Makes the directory, and starts to watch.
    pub fn start() -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("wf-demo-").permissions(Permissions::from_mode(0o700)).tempdir();
        let directory = directory.map_err(DemoError::io("make a temporary directory"))?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WATCHDOG, "walferry-watchdog"]).arg(directory.path()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut shell = command.spawn().map_err(DemoError::io("run /bin/sh"))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe, directory })
    }

    /// Where the demo's own files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The engine's log, of all its runs.
    pub fn engine_log(&self) -> PathBuf {
        self.directory().join("engine.log")
    }

    /// An engine is at work, as the leader of a process group; or none is any more.
    pub fn engine_is(&mut self, pid: Option<u32>) -> Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let line = pid.map_or_else(String::new, |pid| pid.to_string());
        writeln!(pipe, "{line}").map_err(DemoError::io("tell the watchdog"))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.shell.wait();
    }
}

/// `$1` the directory.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
engine=
while read -r line; do engine=$line; done
[ -n "$engine" ] && kill -s KILL -- "-$engine"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$1" && exit
    sleep 1
done
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_with_its_owner() {
        let mut workspace = Workspace::start().expect("there is a shell");
        let directory = workspace.directory().to_path_buf();
        std::fs::write(workspace.engine_log(), "x").expect("the directory is there");
        let mut stands_in = Command::new("sleep");
        let mut engine = stands_in.arg("1000").process_group(0).spawn().expect("sleep runs");
        workspace.engine_is(Some(engine.id())).expect("the shell listens");
        drop(workspace);
        assert!(!directory.exists());
        assert!(!engine.wait().expect("it is ours").success());
    }
}
