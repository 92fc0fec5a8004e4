//! The process's environment as a value.
//!
//! Conninfo defaults come from it. It is read once, at the edge; everything else takes it as an argument, so that
//! tests do not touch the process's state and two migrations in one process cannot disturb each other.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Environment variables, and the name of the operating system's user.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    os_user: Option<String>,
}

impl Environment {
    /// What this process was started with. Variables that are not UTF-8 are left out.
    pub fn from_process() -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let os_user = os_user().or_else(|| variables.get("USER").cloned());
        Self { variables, os_user }
    }

    /// Just these variables.
    pub fn from_map<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let variables: BTreeMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let os_user = variables.get("USER").cloned();
        Self { variables, os_user }
    }

    /// A variable's value, which may be empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The user that this process runs as: the default role name.
    pub(super) fn os_user(&self) -> Option<&str> {
        self.os_user.as_deref()
    }

    /// `~/name`, where there is a home.
    pub(super) fn in_home(&self, name: &str) -> Option<PathBuf> {
        self.get("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(name))
    }
}

/// Shows the variables' names only: one of them may be a password.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// Looks the effective user up in `/etc/passwd`, as libpq does: `USER` may say something else after `su`.
fn os_user() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").ok()?.uid().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}
