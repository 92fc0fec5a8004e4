//! The schema, by `pg_dump` and `pg_restore`.
//!
//! `pg_dump` reads the schema on the exported snapshot into an archive; `pg_restore` turns sections of the archive
//! into SQL, which Walferry runs itself: the pre-data section in one transaction with the step to the next phase, the
//! entries of the post-data section one by one, each in one transaction with the note that it is made. So a kill at
//! any moment leaves nothing half made.
//!
//! The password goes to the child processes in their environment, never in their arguments.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::error::{Definite, Result};
use crate::pg::{ServerVersion, Sql};
use crate::wire::ConnInfo;

/// `pg_dump` and `pg_restore` of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTools {
    directory: PathBuf,
    /// Their major version.
    pub major: u32,
}

/// A dumped schema. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Archive {
    tools: ClientTools,
    directory: TempDir,
    /// Extensions that are left out.
    excluded: Vec<String>,
    post_data: OnceCell<Vec<(Wave, Entry)>>,
}

/// One entry of an archive's table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    line: String,
    /// The same in every dump of one source.
    pub key: String,
    /// `INDEX`, `CONSTRAINT`, `FK CONSTRAINT`, …: what follows the identifiers, with schema and name.
    pub what: String,
}

/// When an entry of the post-data section is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wave {
    /// Indexes, and constraints that are made of one: at the same time.
    Indexes,
    /// What joins or describes them, and triggers, rules, policies: one after the other, in the archive's order.
    Rest,
    /// Foreign keys: when every table is at the same point.
    ForeignKeys,
}

impl ClientTools {
    /// The installation on this machine that is nearest above a server of `source`: `pg_dump` reads its own major
    /// version and older ones, and writes SQL for its own and newer ones. What stands in PATH comes first.
    ///
    /// # Errors
    /// A definite failure when there is none.
    pub async fn find(source: ServerVersion) -> Result<Self> {
        let needed = source.major();
        let mut nearest: Option<Self> = None;
        let mut seen = Vec::new();
        for directory in directories() {
            let Some(major) = major_of(&directory).await else { continue };
            seen.push(major.to_string());
            if major == needed {
                return Ok(Self { directory, major });
            }
            if major > needed && nearest.as_ref().is_none_or(|nearest| major < nearest.major) {
                nearest = Some(Self { directory, major });
            }
        }
        nearest.ok_or_else(|| {
            let found = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
            Definite::new(format!("pg_dump {needed} or newer is needed"))
                .detail(format!("found in PATH and where packages put PostgreSQL: {found}"))
                .hint(format!(
                    "apt install postgresql-client-{needed}, or put its bin directory first in PATH"
                ))
                .into()
        })
    }

    /// Dumps the schema of the database that `source` names, as the exported `snapshot` shows it.
    ///
    /// # Errors
    /// A definite failure with what `pg_dump` said.
    pub async fn dump(&self, source: &ConnInfo, snapshot: Option<&str>) -> Result<Archive> {
        let directory = tempfile::tempdir().map_err(|error| {
            Definite::new("cannot make a temporary directory").detail(error.to_string()).hint("set TMPDIR")
        })?;
        let mut command = self.command("pg_dump");
        command.args(["--format=custom", "--schema-only", "--no-owner", "--no-privileges"]);
        command.args(["--no-publications", "--no-subscriptions", "--no-security-labels", "--no-password"]);
        command.args(["--exclude-schema=walferry", "--exclude-schema=aiven_extras"]);
        // Else it is the database's own.
        command.arg("--encoding=UTF8");
        if let Some(snapshot) = snapshot {
            command.arg(format!("--snapshot={snapshot}"));
        }
        command.arg("--file").arg(archive_file(&directory)).envs(source.libpq_environment());
        run(command).await?;
        Ok(Archive { tools: self.clone(), directory, excluded: Vec::new(), post_data: OnceCell::new() })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(self.directory.join(tool));
        command.stdin(Stdio::null()).kill_on_drop(true).env("LC_ALL", "C");
        command
    }
}

impl Archive {
    /// Leaves these extensions out.
    #[must_use]
    pub fn without(self, extensions: &[String]) -> Self {
        Self { excluded: extensions.to_vec(), post_data: OnceCell::new(), ..self }
    }

    /// The SQL that makes everything but indexes, constraints, triggers and rules.
    ///
    /// # Errors
    /// A definite failure with what `pg_restore` said.
    pub async fn pre_data(&self) -> Result<Sql> {
        let entries = self.entries("pre-data").await?;
        self.script(&entries).await
    }

    /// The entries of the post-data section, each with its wave.
    ///
    /// # Errors
    /// A definite failure with what `pg_restore` said.
    pub async fn post_data(&self) -> Result<&[(Wave, Entry)]> {
        let read = async || {
            let entries = self.entries("post-data").await?;
            Ok(entries.into_iter().map(|entry| (entry.wave(), entry)).collect())
        };
        self.post_data.get_or_try_init(read).await.map(Vec::as_slice)
    }

    /// The SQL that makes `entries`.
    ///
    /// # Errors
    /// A definite failure with what `pg_restore` said.
    pub async fn script(&self, entries: &[Entry]) -> Result<Sql> {
        let list = tempfile::NamedTempFile::new_in(self.directory.path()).and_then(|file| {
            let lines: Vec<&str> = entries.iter().map(|entry| entry.line.as_str()).collect();
            std::fs::write(file.path(), lines.join("\n"))?;
            Ok(file)
        });
        let list =
            list.map_err(|error| Definite::new("cannot write a temporary file").detail(error.to_string()))?;
        let mut command = self.restore();
        command.args(["--no-owner", "--no-privileges", "--no-tablespaces", "--file=-", "--use-list"]);
        command.arg(list.path()).arg(archive_file(&self.directory));
        Ok(Sql::from_dump(without_settings(&run(command).await?)))
    }

    async fn entries(&self, section: &str) -> Result<Vec<Entry>> {
        let mut command = self.restore();
        command.arg(format!("--section={section}")).arg("--list").arg(archive_file(&self.directory));
        let carried = |entry: &Entry| entry.carried() && !self.excluded.iter().any(|name| entry.makes(name));
        Ok(run(command).await?.lines().filter_map(Entry::parse).filter(carried).collect())
    }

    fn restore(&self) -> Command {
        self.tools.command("pg_restore")
    }
}

impl Entry {
    /// A line such as `3350; 2606 16389 CONSTRAINT public orders orders_pkey owner`.
    fn parse(line: &str) -> Option<Self> {
        let (dump_id, rest) = line.split_once("; ")?;
        dump_id.parse::<u32>().ok()?;
        let mut parts = rest.splitn(3, ' ');
        let (catalog, object) = (parts.next()?, parts.next()?);
        let what = parts.next()?.to_owned();
        // What has no row of its own in a catalog (a comment, an index attached to another) goes by its words.
        let key = if object == "0" { what.clone() } else { format!("{catalog} {object}") };
        Some(Self { line: line.to_owned(), key, what })
    }

    /// Whether a role that is no superuser can and should make it on the target.
    fn carried(&self) -> bool {
        let there_already = ["SCHEMA - public ", "COMMENT - SCHEMA public ", "COMMENT - EXTENSION "];
        let superuser = ["EVENT TRIGGER ", "EXTENSION - aiven_extras "];
        !there_already.iter().chain(&superuser).any(|prefix| self.what.starts_with(prefix))
    }

    /// Whether it is the extension itself.
    fn makes(&self, extension: &str) -> bool {
        let rest = self.what.strip_prefix("EXTENSION - ").and_then(|rest| rest.strip_prefix(extension));
        rest.is_some_and(|rest| rest.starts_with(' '))
    }

    fn wave(&self) -> Wave {
        match kind(&self.what) {
            "INDEX" | "CONSTRAINT" => Wave::Indexes,
            "FK CONSTRAINT" => Wave::ForeignKeys,
            _ => Wave::Rest,
        }
    }
}

/// The leading words in capitals.
fn kind(what: &str) -> &str {
    let words =
        what.split(' ').take_while(|word| word.bytes().all(|b| b.is_ascii_uppercase()) && !word.is_empty());
    let length: usize = words.map(|word| word.len() + 1).sum();
    what.get(..length.saturating_sub(1)).unwrap_or_default()
}

/// Session settings are pinned for all sessions alike, and some of these are unknown to older servers; `\restrict` is
/// for psql.
fn without_settings(script: &str) -> String {
    let unwanted = |line: &&str| {
        let setting =
            ["SET statement_timeout ", "SET lock_timeout ", "SET idle_in_transaction_session_timeout "];
        let newer = ["SET transaction_timeout ", "SET idle_session_timeout ", "\\restrict ", "\\unrestrict "];
        !setting.iter().chain(&newer).any(|prefix| line.starts_with(prefix))
    };
    // The settings stand before the first entry's heading, `\unrestrict` at the very end; what lies between is the
    // user's and is not touched.
    let start = script.find("\n-- Name: ").unwrap_or(script.len());
    let end = script.rfind("\n\\unrestrict ").filter(|end| *end >= start).unwrap_or(script.len());
    let head: Vec<&str> = script[..start].lines().filter(unwanted).collect();
    format!("{}{}", head.join("\n"), &script[start..end])
}

async fn run(mut command: Command) -> Result<String> {
    let tool =
        Path::new(command.as_std().get_program()).file_name().map(|name| name.to_string_lossy().into_owned());
    let tool = tool.unwrap_or_default();
    let output = command.output().await;
    let output =
        output.map_err(|error| Definite::new(format!("cannot run {tool}")).detail(error.to_string()))?;
    if output.status.success() {
        return String::from_utf8(output.stdout)
            .map_err(|_| Definite::new(format!("{tool} wrote something that is not UTF-8")).into());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Definite::new(format!("{tool} failed ({})", output.status)).detail(said).into())
}

fn archive_file(directory: &TempDir) -> PathBuf {
    directory.path().join("schema.dump")
}

fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (root, below) in [("/usr/lib/postgresql", "bin"), ("/usr", "bin"), ("/opt/homebrew/opt", "bin")] {
        let Ok(entries) = std::fs::read_dir(root) else { continue };
        directories.extend(entries.flatten().map(|entry| entry.path().join(below)));
    }
    directories
        .retain(|directory| directory.join("pg_dump").is_file() && directory.join("pg_restore").is_file());
    directories
}

/// From `pg_dump (PostgreSQL) 15.18 (Debian …)`.
async fn major_of(directory: &Path) -> Option<u32> {
    let output = Command::new(directory.join("pg_dump")).arg("--version").output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split(' ').find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let check = |line: &str, key: &str, wave: Wave, carried: bool| {
            let entry = Entry::parse(line).expect(line);
            assert_eq!((entry.key.as_str(), entry.wave(), entry.carried()), (key, wave, carried), "{line}");
        };
        check("3350; 2606 16389 CONSTRAINT public orders PK me", "2606 16389", Wave::Indexes, true);
        check("3351; 1259 16400 INDEX public by name me", "1259 16400", Wave::Indexes, true);
        check("3352; 2606 16401 FK CONSTRAINT public a b me", "2606 16401", Wave::ForeignKeys, true);
        check("3353; 0 0 INDEX ATTACH public x me", "INDEX ATTACH public x me", Wave::Rest, true);
        check("3354; 0 0 COMMENT - EXTENSION hstore ", "COMMENT - EXTENSION hstore ", Wave::Rest, false);
        check("3355; 2615 2200 SCHEMA - public postgres", "2615 2200", Wave::Rest, false);
        let extension = Entry::parse("3354; 3079 16400 EXTENSION - hstore ").expect("an entry");
        assert!(extension.makes("hstore") && !extension.makes("hsto") && !extension.makes("hstore2"));
        assert_eq!(Entry::parse("; comment"), None);
        assert_eq!(Entry::parse(""), None);
    }

    #[test]
    fn settings_go_and_bodies_stay() {
        let script = "--\n-- dump\n--\n\\restrict abc\nSET statement_timeout = 0;\nSET transaction_timeout = 0;\n\
                      SET row_security = off;\n\n--\n-- Name: f; Type: FUNCTION\n--\nSET lock_timeout = 5;\n\n\
                      \\unrestrict abc\n\n";
        let cleaned = without_settings(script);
        assert!(!cleaned.contains("restrict") && !cleaned.contains("_timeout = 0"), "{cleaned}");
        assert!(
            cleaned.contains("SET row_security = off") && cleaned.contains("SET lock_timeout = 5"),
            "{cleaned}"
        );
    }
}
