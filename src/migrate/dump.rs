//! The schema, by `pg_dump`.
//!
//! `pg_dump` reads the schema on the exported snapshot into an archive, whose table of contents ([`toc`]) has the statements
//! of each object. Walferry runs these itself: what comes before the rows in transactions of some objects each, what comes
//! after them one by one, always with the note that it is made. So a kill at any moment leaves nothing half made.
//!
//! Not carried here: owners and privileges (`roles` brings them), what only a superuser may make, and what hangs on that.
//!
//! The password goes to the child processes in their environment, never in their arguments.

mod directory;
pub mod toc;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use directory::Directory;

use crate::error::{Definite, Result, Side, Transient};
use crate::limits::{DUMP_LOOK, DUMP_MAX};
use crate::pg::{QualifiedName, ServerVersion, Sql};
use crate::wire::{ConnInfo, Session, SessionOptions, answers};

use toc::{Section, TocEntry, TocError};

/// `pg_dump` of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTools {
    directory: PathBuf,
    /// Its major version.
    pub major: u32,
}

/// A dumped schema.
#[derive(Debug, Default)]
pub struct Archive {
    /// What the definitions rely on, for each session that runs them.
    settings: Sql,
    /// In the archive's order.
    entries: Vec<Entry>,
}

/// An object that is to be made, or what hangs on one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    id: i32,
    /// The same in every dump of one source.
    pub key: String,
    /// `INDEX`, `CONSTRAINT`, `FK CONSTRAINT`, …
    pub kind: String,
    /// Schema and name, for a message: with its table's before it where it belongs to one.
    name: String,
    /// The statements that make it.
    pub sql: Sql,
    wave: Wave,
    needs: Vec<i32>,
}

/// When an entry is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wave {
    /// Before the rows: in the archive's order.
    PreData,
    /// Indexes, and constraints that are made of one: at the same time.
    Indexes,
    /// What joins or describes them, and triggers, rules, policies: one after the other, in the archive's order.
    Rest,
    /// Foreign keys: when every table is at the same point.
    ForeignKeys,
    /// What hangs on foreign keys: in the archive's order.
    AfterForeignKeys,
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
    /// A definite failure with what `pg_dump` said, or when its archive cannot be read.
    pub async fn dump(&self, source: &ConnInfo, snapshot: Option<&str>) -> Result<Archive> {
        let snapshot = snapshot.map(|snapshot| format!("--snapshot={snapshot}"));
        self.dump_with(source, snapshot.into_iter()).await
    }

    /// Dumps the definitions of some tables alone, as they are now.
    ///
    /// # Errors
    /// As [`ClientTools::dump`].
    pub async fn dump_tables(&self, source: &ConnInfo, tables: &[QualifiedName]) -> Result<Archive> {
        // A pattern whose parts are quoted means just itself.
        let tables = tables.iter().map(|table| format!("--table={}", Sql::default().name(table)));
        self.dump_with(source, tables).await
    }

    async fn dump_with(&self, source: &ConnInfo, options: impl Iterator<Item = String>) -> Result<Archive> {
        // Its file goes with it.
        let directory = Directory::make(&std::env::temp_dir()).map_err(|error| {
            Definite::new("cannot make a temporary directory").detail(error.to_string()).hint("set TMPDIR")
        })?;
        let mut command = self.command("pg_dump");
        command.args(["--format=custom", "--schema-only", "--no-owner", "--no-privileges"]);
        command.args(["--no-publications", "--no-subscriptions", "--no-security-labels", "--no-password"]);
        command.args(["--exclude-schema=walferry", "--exclude-schema=aiven_extras"]);
        // Else pg_dump reads rows and sequences of extensions, which nobody takes from the archive, and may not be read.
        command.arg("--exclude-table-data=*.*");
        // Else it is the database's own.
        command.arg("--encoding=UTF8");
        command.args(options);
        let file = directory.path().join("schema.dump");
        let session = Session::connect(source, &SessionOptions::new("walferry dump")).await;
        let session = session.map_err(|error| error.into_failure(Side::Source))?;
        let private = session.is_private();
        session.close().await;
        command.arg("--file").arg(&file).envs(source.libpq_environment(private));
        // No variable of the environment has these.
        command.arg(format!("--dbname={}", source.libpq_keepalives()));
        run(command, source).await?;
        let archive = tokio::fs::read(&file).await;
        let archive = archive
            .map_err(|error| Definite::new("cannot read what pg_dump wrote").detail(error.to_string()))?;
        Ok(Archive::read(&archive).map_err(|error| {
            Definite::new("the archive that pg_dump wrote cannot be read")
                .detail(format!("pg_dump {}: {error}", self.major))
                .hint("put the bin directory of a pg_dump of versions 13 to 18 first in PATH")
        })?)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(self.directory.join(tool));
        command.stdin(Stdio::null()).kill_on_drop(true).env("LC_ALL", "C");
        // A service would win over what we say.
        let ours = std::env::vars_os().map(|(name, _)| name);
        ours.filter(|name| name.as_encoded_bytes().starts_with(b"PG")).for_each(|name| {
            command.env_remove(name);
        });
        command
    }
}

impl Archive {
    /// What `pg_dump` wrote.
    ///
    /// # Errors
    /// As [`toc::read`].
    pub fn read(archive: &[u8]) -> Result<Self, TocError> {
        toc::read(archive).map(Self::new)
    }

    fn new(contents: Vec<TocEntry>) -> Self {
        let mut archive = Self { settings: Sql::new(SETTINGS), entries: Vec::with_capacity(contents.len()) };
        let mut section = Section::PreData;
        let (mut waves, mut left_out, mut keys) = (HashMap::new(), HashSet::new(), HashSet::new());
        for mut entry in contents {
            if entry.kind == "STDSTRINGS" {
                archive.settings = archive.settings.sql(&Sql::from_dump(entry.definition));
                continue;
            }
            if entry.section == Section::None {
                entry.section = section;
            }
            section = entry.section;
            let hangs_in_the_air =
                entry.hangs() && entry.needs.iter().any(|needed| left_out.contains(needed));
            if hangs_in_the_air || !entry.carried() {
                left_out.insert(entry.id);
                continue;
            }
            let wave = entry.wave(&waves);
            waves.insert(entry.id, wave);
            let mut made = Entry::new(entry, wave);
            while !keys.insert(made.key.clone()) {
                made.key.push('+');
            }
            archive.entries.push(made);
        }
        archive
    }

    /// Leaves these extensions out, and what hangs on them.
    #[must_use]
    pub fn without(self, extensions: &[String]) -> Self {
        let excluded = |entry: &Entry| entry.kind == "EXTENSION" && extensions.contains(&entry.name);
        let (gone, mut entries): (Vec<Entry>, Vec<Entry>) = self.entries.into_iter().partition(excluded);
        let gone: HashSet<i32> = gone.iter().map(|entry| entry.id).collect();
        entries.retain(|entry| entry.kind != COMMENT || !entry.needs_any(&gone));
        Self { entries, ..self }
    }

    /// What each session that runs the statements has to set first.
    pub const fn settings(&self) -> &Sql {
        &self.settings
    }

    /// What is made in this wave, in the archive's order.
    pub fn of(&self, wave: Wave) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.wave == wave)
    }

    /// The entries of these keys, and those that hang on them.
    pub fn hanging_on(&self, keys: &HashSet<String>) -> HashSet<String> {
        let of_keys = self.entries.iter().filter(|entry| keys.contains(&entry.key));
        let ids: HashSet<i32> = of_keys.map(|entry| entry.id).collect();
        let hanging = self.entries.iter().filter(|entry| entry.kind == COMMENT && entry.needs_any(&ids));
        hanging.map(|entry| entry.key.clone()).chain(keys.iter().cloned()).collect()
    }

    /// For tables that are to be attached to others as partitions: the SQL to run before that, and after it. Their indexes
    /// come before: the server then takes them for those of the table above.
    pub fn around_attach(&self, left_out: &HashSet<String>) -> (Sql, Sql) {
        let left_out = self.hanging_on(left_out);
        let of_itself = |entry: &&Entry| {
            !["TABLE ATTACH", "INDEX ATTACH"].contains(&entry.kind.as_str()) && !left_out.contains(&entry.key)
        };
        let script = |waves: &[Wave]| {
            let entries = waves.iter().flat_map(|wave| self.of(*wave)).filter(of_itself);
            self.settings.clone().list(entries, "", |sql, entry| sql.sql(&entry.sql))
        };
        let before = script(&[Wave::PreData, Wave::Indexes]);
        (before, script(&[Wave::Rest, Wave::ForeignKeys, Wave::AfterForeignKeys]))
    }
}

impl Entry {
    fn new(entry: TocEntry, wave: Wave) -> Self {
        let sql = entry.sql();
        let name = match entry.schema.as_str() {
            "" => entry.tag.clone(),
            schema => format!("{schema}.{}", entry.tag),
        };
        Self { id: entry.id, key: entry.key(), kind: entry.kind, name, sql, wave, needs: entry.needs }
    }

    /// Tells whether two dumps of one source have the same of it.
    pub fn digest(&self) -> String {
        digest(self.sql.as_str())
    }

    /// Whether it may be made twice.
    pub fn is_repeatable(&self) -> bool {
        self.kind == COMMENT
    }

    /// Whether it is one of these schemas itself, or what is said of it.
    pub fn is_about_schema(&self, schemas: &[String]) -> bool {
        match self.kind.as_str() {
            "SCHEMA" => schemas.contains(&self.name),
            COMMENT => self.name.strip_prefix("SCHEMA ").is_some_and(|named| {
                // Quoted where that is needed.
                schemas.iter().any(|schema| named == schema || Sql::default().ident(schema).as_str() == named)
            }),
            _ => false,
        }
    }

    fn needs_any(&self, ids: &HashSet<i32>) -> bool {
        self.needs.iter().any(|needed| ids.contains(needed))
    }
}

/// `INDEX public.by_name`: for a message.
impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl TocEntry {
    /// What has a row of its own in a catalog goes by that; what has none (a comment, an index attached to another), by its
    /// words.
    fn key(&self) -> String {
        if self.object != "0" {
            return format!("{} {}", self.catalog, self.object);
        }
        let schema = if self.schema.is_empty() { "-" } else { &self.schema };
        let words = format!("{} {schema} {} {}", self.kind, self.tag, self.owner);
        // An index on the target has room for a third of a page.
        if words.len() > KEY_BYTES_MAX { digest(&words) } else { words }
    }

    fn sql(&self) -> Sql {
        let definition = Sql::from_dump(self.definition.clone());
        let sql = match self.access_method.as_str() {
            "" => definition,
            _ if self.partitioned => {
                let alter = Sql::new("ALTER TABLE ").ident(&self.schema).text(".").ident(&self.tag);
                definition.sql(&alter.text(" SET ACCESS METHOD ").ident(&self.access_method).text(";"))
            }
            method => {
                Sql::new("SET default_table_access_method = ").ident(method).text(";\n").sql(&definition)
            }
        };
        sql.text("\n")
    }

    /// Whether it describes another entry.
    fn hangs(&self) -> bool {
        self.kind == COMMENT
    }

    /// Whether a role that is no superuser can and should make it on the target.
    fn carried(&self) -> bool {
        let (kind, tag) = (self.kind.as_str(), self.tag.as_str());
        let elsewhere = ["DATABASE", "DATABASE PROPERTIES", "ACL", "DEFAULT ACL", "SECURITY LABEL"];
        let setting = ["ENCODING", "SEARCHPATH"];
        let there_already = kind == "SCHEMA" && tag == "public"
            || self.hangs() && (tag == "SCHEMA public" || tag.starts_with("EXTENSION "));
        let superuser = kind == "EVENT TRIGGER" || kind == "EXTENSION" && tag == "aiven_extras";
        let of_database = self.hangs() && tag.starts_with("DATABASE ");
        !there_already
            && !superuser
            && !of_database
            && self.section != Section::Data
            && !elsewhere.contains(&kind)
            && !setting.contains(&kind)
    }

    /// Not before what it needs: a view that groups by a primary key comes after that, and so does the view's index.
    fn wave(&self, waves: &HashMap<i32, Wave>) -> Wave {
        if self.section == Section::PreData {
            return Wave::PreData;
        }
        let own = match self.kind.as_str() {
            "INDEX" | "CONSTRAINT" => Wave::Indexes,
            "FK CONSTRAINT" => return Wave::ForeignKeys,
            _ => Wave::Rest,
        };
        match self.needs.iter().filter_map(|needed| waves.get(needed)).max() {
            Some(Wave::ForeignKeys | Wave::AfterForeignKeys) => Wave::AfterForeignKeys,
            needed => own.max(needed.copied().unwrap_or(own)),
        }
    }
}

/// What describes an object.
const COMMENT: &str = "COMMENT";

/// As `pg_restore` has them at the head of a script, but for what is pinned for all sessions alike.
const SETTINGS: &str = "SET check_function_bodies = false; SET client_min_messages = warning; \
                        SELECT pg_catalog.set_config('search_path', '', false);\n";

const KEY_BYTES_MAX: usize = 1_000;

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn run(mut command: Command, source: &ConnInfo) -> Result<()> {
    let tool =
        Path::new(command.as_std().get_program()).file_name().map(|name| name.to_string_lossy().into_owned());
    let tool = tool.unwrap_or_default();
    let output = tokio::select! {
        output = command.output() => output,
        // Dropped, it is killed.
        why = hopeless(source) => {
            return Err(Transient::new(Side::Source, format!("{tool} was given up")).detail(why).into());
        }
    };
    let output =
        output.map_err(|error| Definite::new(format!("cannot run {tool}")).detail(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let cause = format!("{tool} failed ({})", output.status);
    if may_pass(&said) {
        return Err(Transient::new(Side::Source, cause).detail(said).into());
    }
    let hint = if said.contains("max_locks_per_transaction") { HINT_LOCKS } else { "" };
    Err(Definite::new(cause).detail(said).hint(hint).into())
}

/// Completes when there is nothing to wait for: `pg_dump` itself waits for any answer without an end.
async fn hopeless(source: &ConnInfo) -> String {
    let began = Instant::now();
    let mut silent = 0;
    while began.elapsed() < DUMP_MAX {
        sleep(DUMP_LOOK).await;
        silent = if answers(source).await { 0 } else { silent + 1 };
        if silent == 2 {
            let after = began.elapsed().as_secs();
            return format!(
                "after {after} s: it waits for the server, which does not answer a new connection either"
            );
        }
    }
    format!("it has waited for the server, or worked, for {} s", DUMP_MAX.as_secs())
}

/// Whether a tool says that its session was broken off. It shows no SQLSTATE; where its words are translated, somebody has
/// to look.
fn may_pass(said: &str) -> bool {
    const BROKEN_OFF: [&str; 7] = [
        "canceling statement due to user request",
        "terminating connection",
        "server closed the connection unexpectedly",
        "could not receive data from server",
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is in recovery mode",
    ];
    BROKEN_OFF.iter().any(|part| said.contains(part))
}

/// `pg_dump` holds a lock on each table until it ends.
const HINT_LOCKS: &str = "on the source, then restart it, and run `walferry migrate` again:\nALTER SYSTEM SET max_locks_per_transaction = 1024;";

fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (root, below) in [("/usr/lib/postgresql", "bin"), ("/usr", "bin"), ("/opt/homebrew/opt", "bin")] {
        let Ok(entries) = std::fs::read_dir(root) else { continue };
        directories.extend(entries.flatten().map(|entry| entry.path().join(below)));
    }
    directories.retain(|directory| directory.join("pg_dump").is_file());
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

    fn entry(id: i32, kind: &str, tag: &str, section: Section, needs: &[i32]) -> TocEntry {
        let (kind, tag, object) = (kind.to_owned(), tag.to_owned(), if kind == COMMENT { 0 } else { id });
        let (catalog, definition) = ("1".to_owned(), format!("-- {kind} {tag}"));
        let (schema, owner) = ("public".to_owned(), "me".to_owned());
        let needs = needs.to_vec();
        TocEntry {
            id,
            catalog,
            object: object.to_string(),
            tag,
            kind,
            section,
            definition,
            schema,
            owner,
            needs,
            ..TocEntry::default()
        }
    }

    #[test]
    fn schemas_that_are_there() {
        let check = |kind: &str, tag: &str, expected: bool| {
            let in_none = TocEntry { schema: String::new(), ..entry(1, kind, tag, Section::PreData, &[]) };
            let entry = Entry::new(in_none, Wave::PreData);
            let there = ["extensions".to_owned(), "Odd one".to_owned()];
            assert_eq!(entry.is_about_schema(&there), expected, "{kind} {tag}");
        };
        check("SCHEMA", "extensions", true);
        check("SCHEMA", "Odd one", true);
        check("SCHEMA", "extension", false);
        check(COMMENT, "SCHEMA extensions", true);
        check(COMMENT, "SCHEMA \"Odd one\"", true);
        check(COMMENT, "SCHEMA extension", false);
        check("TABLE", "extensions", false);
    }

    #[test]
    fn waves() {
        use Section::{None, PostData, PreData};
        let archive = Archive::new(vec![
            entry(1, "ENCODING", "ENCODING", PreData, &[]),
            entry(2, "SCHEMA", "public", PreData, &[]),
            entry(3, COMMENT, "SCHEMA public", None, &[2]),
            entry(4, "TABLE", "FK CONSTRAINT", PreData, &[]),
            entry(5, COMMENT, "TABLE x", None, &[4]),
            entry(6, "CONSTRAINT", "pkey", PostData, &[4]),
            entry(7, COMMENT, "CONSTRAINT pkey", None, &[6]),
            entry(8, "MATERIALIZED VIEW", "grouped", PostData, &[6]),
            entry(9, "INDEX", "of the view", PostData, &[8]),
            entry(10, "INDEX", "other", PostData, &[4]),
            entry(11, "EVENT TRIGGER", "told", PostData, &[]),
            entry(12, COMMENT, "EVENT TRIGGER told", None, &[11]),
            entry(13, "FK CONSTRAINT", "fkey", PostData, &[6]),
            entry(14, COMMENT, "CONSTRAINT fkey", None, &[13]),
        ]);
        let check = |wave: Wave, ids: &[i32]| {
            let found: Vec<i32> = archive.of(wave).map(|entry| entry.id).collect();
            assert_eq!(found, ids, "{wave:?}");
        };
        check(Wave::PreData, &[4, 5]);
        check(Wave::Indexes, &[6, 10]);
        check(Wave::Rest, &[7, 8, 9]);
        check(Wave::ForeignKeys, &[13]);
        check(Wave::AfterForeignKeys, &[14]);
        let hanging = archive.hanging_on(&HashSet::from(["1 13".to_owned()]));
        let both = ["1 13".to_owned(), "COMMENT public CONSTRAINT fkey me".to_owned()];
        assert_eq!(hanging, HashSet::from(both));
    }

    #[test]
    fn extensions_are_left_out_by_their_whole_names() {
        let archive = || {
            Archive::new(vec![
                TocEntry { schema: String::new(), ..entry(1, "EXTENSION", "hstore", Section::PreData, &[]) },
                entry(2, COMMENT, "COLUMN of it", Section::None, &[1]),
            ])
        };
        let left = |extension: &str| archive().without(&[extension.to_owned()]).of(Wave::PreData).count();
        assert_eq!((left("hstore"), left("hsto"), left("hstore2")), (0, 2, 2));
    }

    /// Lets everybody in, as a server of version 13, and answers nothing then.
    #[tokio::test]
    #[ignore = "long"]
    async fn a_server_that_falls_silent_is_not_waited_for() {
        use tokio::io::AsyncWriteExt;
        const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\x0013.9\0\
            K\0\0\0\x0c\0\0\0\x01\0\0\0\x01Z\0\0\0\x05I";
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let mut clients = Vec::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let _ = client.write_all(WELCOME).await;
                clients.push(client);
            }
        });
        let text = format!("host=127.0.0.1 port={port} user=u dbname=d sslmode=disable");
        let source = ConnInfo::parse(&text, &crate::wire::Environment::default()).expect("valid");
        let tools = ClientTools::find(ServerVersion::new(130_009)).await.expect("pg_dump");
        let dumped = tokio::time::timeout(std::time::Duration::from_secs(150), tools.dump(&source, None));
        let failure = dumped.await.expect("it ends").expect_err("nothing is dumped").to_string();
        for part in ["pg_dump was given up", "does not answer a new connection either"] {
            assert!(failure.contains(part), "{part:?} is not in: {failure}");
        }
    }
}
