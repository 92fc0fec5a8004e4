//! The account that servers run as: PostgreSQL refuses to run as root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::{DemoError, Result};

/// Who runs a server: the caller, or an unprivileged account where the caller is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Account {
    /// The caller.
    Own,
    /// Another account.
    Other {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Account {
    /// The caller's own account; for root `postgres`, or else `nobody`.
    pub fn find() -> Result<Self> {
        if !is_root()? {
            return Ok(Self::Own);
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(DemoError::io("read /etc/passwd"))?;
        let ids = ["postgres", "nobody"].iter().find_map(|name| ids_of(&passwd, name));
        ids.map(|(uid, gid)| Self::Other { uid, gid }).ok_or(DemoError::NoAccount)
    }

    /// Makes `command` run as this account, from a directory that every account can enter.
    pub fn run(self, command: &mut Command) {
        command.current_dir("/");
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives `path` to this account.
    pub fn own(self, path: &Path) -> Result<()> {
        match self {
            Self::Own => Ok(()),
            Self::Other { uid, gid } => {
                chown(path, Some(uid), Some(gid)).map_err(DemoError::io(format!("chown {}", path.display())))
            }
        }
    }

    /// Whether this account can enter `directory`, as far as the mode bits for everybody say.
    pub fn can_enter(self, directory: &Path) -> bool {
        let open = |path: &Path| fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        let Ok(full) = directory.canonicalize() else { return false };
        self == Self::Own || full.ancestors().all(open)
    }
}

/// Makes `directory` and its parents, open to everybody's reading.
pub(super) fn make_open_directory(directory: &Path) -> Result<()> {
    let mut missing: Vec<_> = directory.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(directory).map_err(DemoError::io(format!("make {}", directory.display())))?;
    while let Some(made) = missing.pop() {
        // Another process may have made it between: then its mode is that process's business.
        let _ = fs::set_permissions(made, Permissions::from_mode(0o755));
    }
    Ok(())
}

/// The standard library does not tell the user id, but a new file's owner does.
fn is_root() -> Result<bool> {
    let file = tempfile::tempfile().map_err(DemoError::io("make a temporary file"))?;
    Ok(file.metadata().map_err(DemoError::io("look at a temporary file"))?.uid() == 0)
}

fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_from_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\npostgres2:x:7:8::/:/bin/sh\npostgres:x:101:104:a,b:/:/x\n";
        assert_eq!(ids_of(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(passwd, "nobody"), None);
    }
}
