//! The file with the passwords that had to be made: one JSON object a line, `{"role": "…", "password": "…"}`, for its
//! owner's eyes only.
//!
//! A line is on the disk before its role is there for good, so that no password can be lost; a role that was not made
//! then gets the same password the next time.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use postgres_protocol::password;
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde_json::{Value, json};

use crate::config::Secret;
use crate::error::{Definite, Result};

/// The file, as far as it is known, and what is to be added.
pub(super) struct PasswordFile {
    path: Option<PathBuf>,
    /// What makes new passwords needless.
    instead: String,
    /// The file's end is that of a line.
    whole: bool,
    written: HashMap<String, String>,
    new: HashMap<String, String>,
}

impl PasswordFile {
    /// Reads the file, if there is one; `instead` is what makes new passwords needless.
    ///
    /// # Errors
    /// When it cannot be read, or others may read or replace it.
    pub(super) fn read(path: Option<&Path>, instead: &str) -> Result<Self> {
        let (path_kept, instead) = (path.map(Path::to_owned), instead.to_owned());
        let mut file =
            Self { path: path_kept, instead, whole: true, written: HashMap::new(), new: HashMap::new() };
        let Some(path) = path else { return Ok(file) };
        let text = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(file),
            Err(error) => return Err(file.unusable(&error.to_string()).into()),
            // One that is no plain file may be waited for without end when it is opened.
            Ok(metadata) => private(&metadata)
                .map_err(io::Error::other)
                .and_then(|()| text_of(path))
                .map_err(|error| file.unusable(&error.to_string()))?,
        };
        file.whole = text.is_empty() || text.ends_with('\n');
        for line in text.lines() {
            // A line that was cut short is that of a role that was not made.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            if let (Some(role), Some(password)) = (line["role"].as_str(), line["password"].as_str()) {
                file.written.insert(role.to_owned(), password.to_owned());
            }
        }
        Ok(file)
    }

    /// What the server is to keep for this role's password: the file's, or a new one's.
    pub(super) fn verifier(&mut self, role: &str) -> Secret {
        let password = self.written.get(role).cloned().unwrap_or_else(|| {
            let made: String =
                rand::rng().sample_iter(Alphanumeric).take(PASSWORD_CHARS).map(char::from).collect();
            self.new.insert(role.to_owned(), made.clone());
            made
        });
        Secret::new(password::scram_sha_256(password.as_bytes()))
    }

    /// Adds the passwords of those of `roles` that are not there yet.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&self, roles: &[String]) -> Result<()> {
        let mut text = String::new();
        for role in roles {
            if let Some(password) = self.new.get(role) {
                text.push_str(&format!("{}\n", json!({"role": role, "password": password})));
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        if !self.whole {
            text.insert(0, '\n');
        }
        let Some(path) = &self.path else { return Err(nowhere().into()) };
        Self::append(path, &text).map_err(|error| self.unusable(&error.to_string()).into())
    }

    fn append(path: &Path, text: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600);
        let mut file = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => open(&mut options, path)?,
            opened => opened?,
        };
        ours(path, &file)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    fn unusable(&self, reason: &str) -> Definite {
        Definite::new("the file for new passwords cannot be used")
            .detail(format!("{}: {reason}", self.path.as_deref().unwrap_or(Path::new("")).display()))
            .hint(format!(
                "give another one with --passwords-file, or let the source's user read the old passwords: {}",
                self.instead
            ))
    }
}

/// The same as `check` says it.
fn nowhere() -> Definite {
    Definite::new("the file for new passwords cannot be used")
        .detail("there is no home directory, and --passwords-file is not given")
        .hint("give --passwords-file, on a disk that lasts")
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut file = open(OpenOptions::new().read(true), path)?;
    ours(path, &file)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Opens what is there: no link that somebody put there meanwhile, and no pipe to wait at until somebody comes.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ELOOP | libc::ENXIO) => replaced(),
            _ => error,
        }
    })
}

fn replaced() -> io::Error {
    io::Error::other("somebody put another file in its place")
}

/// Whether what was opened is ours, and the path leads to it by itself: not by a link that somebody put there meanwhile.
fn ours(path: &Path, file: &File) -> io::Result<()> {
    let (opened, there) = (file.metadata()?, fs::symlink_metadata(path)?);
    if (opened.dev(), opened.ino()) != (there.dev(), there.ino()) {
        return Err(replaced());
    }
    private(&opened).map_err(io::Error::other)
}

/// Of nobody else, and nobody else's to read.
fn private(metadata: &Metadata) -> Result<(), &'static str> {
    if !metadata.is_file() {
        return Err("it is not a plain file");
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err("group or others have access: run chmod 0600 on it");
    }
    // Where the system does not say who we are, the mode must do.
    let own = fs::metadata("/proc/self").map_or(true, |me| me.uid() == metadata.uid());
    if own { Ok(()) } else { Err("it belongs to another user") }
}

/// Of 62 kinds each: 190 bits.
const PASSWORD_CHARS: usize = 32;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords");
        let mut file = PasswordFile::read(Some(&path), "").unwrap();
        let roles = ["plain", "My \"odd\": role\n"].map(str::to_owned);
        for role in &roles {
            file.verifier(role);
        }
        file.verifier("not made");
        file.write(&roles).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        // As a kill in the middle of a line leaves it.
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}{{\"role\": \"ha")).unwrap();
        let mut again = PasswordFile::read(Some(&path), "").unwrap();
        for role in &roles {
            assert_eq!(again.written[role], file.new[role]);
            again.verifier(role);
        }
        again.verifier("half");
        again.write(&[roles[0].clone(), "half".to_owned()]).unwrap();
        let last = PasswordFile::read(Some(&path), "").unwrap();
        assert_eq!((last.written.len(), &last.written["half"]), (3, &again.new["half"]));
    }

    #[test]
    fn a_file_of_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = |path: &Path| PasswordFile::read(Some(path), "").err().unwrap().to_string();
        assert!(refused(&path).contains("chmod 0600"));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refused(&link).contains("not a plain file"));
        // A link that was put there after the look.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(text_of(&path).is_ok());
        assert!(text_of(&link).unwrap_err().to_string().contains("another file in its place"));
        assert!(
            PasswordFile::append(&link, "x").unwrap_err().to_string().contains("another file in its place")
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert!(refused(directory.path()).contains("not a plain file"));
        let nowhere = directory.path().join("no/such/directory");
        let mut file = PasswordFile::read(Some(&nowhere), "").unwrap();
        file.verifier("a");
        assert!(file.write(&["a".to_owned()]).unwrap_err().to_string().contains("--passwords-file"));
        let mut file = PasswordFile::read(None, "").unwrap();
        file.write(&["a".to_owned()]).unwrap();
        file.verifier("a");
        assert!(file.write(&["a".to_owned()]).unwrap_err().to_string().contains("no home directory"));
    }

    #[test]
    fn a_pipe_in_its_place_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap();
        assert!(made.success());
        let (says, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            says.send(text_of(&pipe).unwrap_err().to_string()).unwrap();
            says.send(PasswordFile::append(&pipe, "x").unwrap_err().to_string()).unwrap();
        });
        let said = || said.recv_timeout(std::time::Duration::from_secs(60)).expect("it does not wait");
        assert_eq!(said(), "it is not a plain file");
        assert_eq!(said(), "somebody put another file in its place");
    }
}
