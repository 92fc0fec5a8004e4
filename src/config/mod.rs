//! What the user wants, as typed ([`RawConfig`]) and as checked ([`Config`]).
//!
//! Everything is checked here, once, before anything is done. A flag beats the environment, which beats the configuration
//! file. Connection strings stay text: who makes the connection parses them. Not here: reading the command line, the
//! environment and the file, which only `cli` does.

mod file;
mod secret;
mod selection;
mod tables;
mod units;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use file::Merged;
pub use secret::{Secret, has_password};
pub use selection::Selection;
use serde::{Deserialize, Serialize};
pub use tables::{TableFilter, TablePattern};

use crate::error::Definite;
use crate::limits::{
    CONFIRM_DELAY_DEFAULT, CONFIRM_DELAY_MAX, CUTOVER_TIMEOUT_DEFAULT, CUTOVER_TIMEOUT_MAX, JOBS_DEFAULT_MAX,
    JOBS_DEFAULT_MIN, JOBS_MAX, LAG_BYTES_MAX_DEFAULT, MIGRATION_NAME_BYTES_MAX, SPILL_BYTES_MAX_DEFAULT,
};

/// What the user typed, unchecked. `None` is what was not given.
#[derive(Debug, Clone, Default)]
pub struct RawConfig {
    /// `--source`.
    pub source: Option<Secret>,
    /// `--target`.
    pub target: Option<Secret>,
    /// `-c`, each time.
    pub settings: Vec<Secret>,
    /// `--config`: the file's path, and what is in it.
    pub file: Option<(String, Secret)>,
    /// What the environment has.
    pub environment: Environment,
    /// `--name`.
    pub name: Option<String>,
    /// `--database`, each time.
    pub databases: Vec<String>,
    /// `--ignore-dbs`, each time.
    pub ignore_dbs: Vec<String>,
    /// `--dump-db`, each time.
    pub dump_dbs: Vec<String>,
    /// `--with-table`, each time.
    pub with_tables: Vec<String>,
    /// `--skip-table`, each time.
    pub skip_tables: Vec<String>,
    /// `--no-createdb`.
    pub no_createdb: bool,
    /// `--open-target`.
    pub open_target: bool,
    /// `--method`.
    pub method: Option<String>,
    /// `--jobs`.
    pub jobs: Option<String>,
    /// `--listen`.
    pub listen: Option<String>,
    /// `--listen-token-file`.
    pub listen_token_file: Option<String>,
    /// `--listen-insecure`.
    pub listen_insecure: bool,
    /// `--listen-cert`.
    pub listen_cert: Option<String>,
    /// `--listen-key`.
    pub listen_key: Option<String>,
    /// `--confirm-delay`.
    pub confirm_delay: Option<String>,
    /// `--spill-dir`.
    pub spill_dir: Option<String>,
    /// `--spill-max`.
    pub spill_max: Option<String>,
    /// `--until`.
    pub until: Option<String>,
    /// `--max-lag`.
    pub max_lag: Option<String>,
    /// `--on-conflict`.
    pub on_conflict: Option<String>,
    /// `--ddl`.
    pub ddl: Option<String>,
    /// `--fence`.
    pub fence: Option<String>,
    /// `--fence-command`.
    pub fence_command: Option<String>,
    /// `--unfence-command`.
    pub unfence_command: Option<String>,
    /// `--accept-drift`.
    pub accept_drift: bool,
    /// `--timeout`.
    pub timeout: Option<String>,
    /// `--ignore-roles`.
    pub ignore_roles: Vec<String>,
    /// `--grant-existing-roles`.
    pub grant_existing_roles: Vec<String>,
    /// `--passwords-file`.
    pub passwords_file: Option<String>,
    /// `--replica-identity-full`.
    pub replica_identity_full: bool,
    /// `--ignore-keyless`.
    pub ignore_keyless: bool,
    /// `--excluded-extensions`.
    pub excluded_extensions: Vec<String>,
    /// `--no-replicate-extension-tables`.
    pub no_replicate_extension_tables: bool,
    /// `--skip-db-version-check`.
    pub skip_db_version_check: bool,
    /// `--dbs-max-total-size`.
    pub dbs_max_total_size: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--verbose`.
    pub verbose: bool,
    /// `--json`.
    pub json: bool,
    /// `--avn`.
    pub avn: bool,
    /// `--force`.
    pub force: bool,
}

/// The environment's part of a [`RawConfig`].
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `SOURCE_SERVICE_URI`.
    pub source: Option<Secret>,
    /// `TARGET_SERVICE_URI`.
    pub target: Option<Secret>,
}

/// What the user wants, checked.
#[derive(Debug, Clone)]
pub struct Config {
    source: Option<Conninfo>,
    target: Option<Conninfo>,
    /// The migration's name.
    pub name: MigrationName,
    /// Which databases and tables are meant.
    pub selection: Selection,
    /// Whether databases that the target lacks are made there.
    pub creates_databases: bool,
    /// How databases are to be moved; `None`: by replication where that is possible.
    pub method: Option<Method>,
    /// Tables copied, and indexes made, at the same time.
    pub jobs: usize,
    /// Where HTTP listens; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// What it asks of whoever comes.
    pub listen_access: ListenAccess,
    /// How long a durable position is held back before it is confirmed to the source.
    pub confirm_delay: Duration,
    /// Where transactions in progress are kept.
    pub spill_dir: PathBuf,
    /// How many bytes of them; 0: none, the source keeps them itself.
    pub spill_bytes_max: u64,
    /// Where `migrate` ends; `None`: it goes on until stopped.
    pub until: Option<Until>,
    /// Up to so many bytes behind, a database counts as synced and as ready.
    pub lag_bytes_max: u64,
    /// What to do with a change that the target cannot take as it is.
    pub on_conflict: OnConflict,
    /// What to do about a column that the source added.
    pub ddl: Ddl,
    /// What keeps the source from being written to at cutover.
    pub fence: FenceKind,
    /// It is cut over though objects of the source's schema are not on the target.
    pub accept_drift: bool,
    /// What puts up the fence of kind `command`, and takes it down.
    pub fence_commands: Option<FenceCommands>,
    /// How long a cutover may take.
    pub cutover_timeout: Duration,
    /// Roles of the source that are left out.
    pub ignored_roles: Vec<String>,
    /// Roles that the target has already, or has with the server, and whose memberships are carried all the same.
    pub granted_roles: Vec<String>,
    /// Whether roles may log in on the target before the migration is done.
    pub opens_target: bool,
    /// Where passwords go that had to be made; `None`: a file of the migration's name in the user's home.
    pub passwords_file: Option<PathBuf>,
    /// What is moved, beside what always is.
    pub contents: Contents,
    /// Whether the target may be older than the source.
    pub skip_version_check: bool,
    /// How many bytes the databases may take.
    pub total_bytes_max: Option<u64>,
    /// How logs and errors are written.
    pub log_format: LogFormat,
    /// Whether logs tell more.
    pub verbose: bool,
    /// How results are written.
    pub output: Output,
    /// Whether to do what would otherwise be refused.
    pub force: bool,
}

/// What HTTP asks of whoever comes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListenAccess {
    /// The file with the token that has to be known; `None`: there is none.
    pub token_file: Option<PathBuf>,
    /// The files of the certificate and its key; `None`: connections are not encrypted.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// A migration's name: 1 to 40 of `a-z`, `0-9` and `_`, so that it fits into a replication slot's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MigrationName(String);

/// How a database is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// Copied on one snapshot, then kept in sync by logical replication.
    #[default]
    Replication,
    /// Dumped and restored once.
    PgDump,
}

/// Where `migrate` ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When everything is copied.
    Copied,
    /// When every database follows within the lag bound.
    Synced,
}

/// What to do with a change that the target cannot take as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// Stop with a definite error; nothing is skipped.
    #[default]
    Stop,
    /// The target's row becomes what the source has.
    SourceWins,
    /// Leave the change out, and record it.
    Skip,
}

/// What to do about a column that the source added to a table, where adding it to the target's is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ddl {
    /// Add it.
    Follow,
    /// Stop with a definite error that says the statement.
    #[default]
    Stop,
}

/// What keeps the source from being written to while the last changes are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceKind {
    /// Nothing: whoever cuts over has stopped the writers.
    None,
    /// `default_transaction_read_only` of the database, and the end of all sessions that began before.
    #[default]
    ReadOnly,
    /// Commands of the operator's.
    Command,
}

/// Shell commands that put a fence up and take it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceCommands {
    /// `--fence-command`.
    pub up: String,
    /// `--unfence-command`.
    pub down: String,
}

/// What is moved, beside what always is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What to do about tables without replica identity.
    pub keyless: Keyless,
    /// Extensions that are not made on the target.
    pub excluded_extensions: Vec<String>,
    /// The rows of users in tables of extensions are moved.
    pub extension_tables: bool,
}

/// What to do about tables whose updates and deletes cannot be in the stream, since nothing identifies their rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keyless {
    /// Copy them again at cutover.
    #[default]
    CopyAgain,
    /// Give them REPLICA IDENTITY FULL on the source until the migration is removed.
    Full,
    /// Be content with their inserts and truncates.
    Ignore,
}

/// How logs and errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Tables for people.
    Text,
    /// JSON with all keys.
    Json,
    /// JSON with just the keys of Aiven's API.
    Avn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Conninfo {
    text: Secret,
    /// The option that it was given by, where others can see it.
    typed_as: Option<&'static str>,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// A usage error for the first thing that is wrong.
    pub fn resolve(raw: &RawConfig) -> Result<Self, Definite> {
        let Merged { raw, source, target } = &file::merged(raw)?;
        if let (Some(source), Some(target)) = (source, target)
            && source.text == target.text
        {
            return Err(Definite::usage("source and target are the same")
                .hint("give the old cluster as --source and the Aiven service as --target"));
        }
        let confirm_delay = option("--confirm-delay", raw.confirm_delay.as_deref(), units::duration)?;
        let confirm_delay = confirm_delay.unwrap_or(CONFIRM_DELAY_DEFAULT);
        if confirm_delay > CONFIRM_DELAY_MAX {
            return Err(Definite::usage("invalid --confirm-delay: it is longer than one hour")
                .detail("the source keeps all its WAL for so long"));
        }
        let listen = option("--listen", raw.listen.as_deref(), listen)?.unwrap_or(Some(LISTEN_DEFAULT));
        let spill_max = option("--spill-max", raw.spill_max.as_deref(), units::bytes)?;
        let max_lag = option("--max-lag", raw.max_lag.as_deref(), units::bytes)?;
        let total_bytes_max =
            option("--dbs-max-total-size", raw.dbs_max_total_size.as_deref(), units::bytes)?;
        let on_conflict = option("--on-conflict", raw.on_conflict.as_deref(), |text| match text {
            "stop" => Ok(OnConflict::Stop),
            "source-wins" => Ok(OnConflict::SourceWins),
            "skip" => Ok(OnConflict::Skip),
            _ => Err(format!("{text:?} is not known: give stop, source-wins or skip")),
        })?;
        let ddl = option("--ddl", raw.ddl.as_deref(), |text| match text {
            "follow" => Ok(Ddl::Follow),
            "stop" => Ok(Ddl::Stop),
            _ => Err(format!("{text:?} is not known: give follow or stop")),
        })?;
        let timeout = option("--timeout", raw.timeout.as_deref(), units::duration)?;
        let cutover_timeout = timeout.unwrap_or(CUTOVER_TIMEOUT_DEFAULT);
        if cutover_timeout.is_zero() || cutover_timeout > CUTOVER_TIMEOUT_MAX {
            return Err(Definite::usage("invalid --timeout: it is either zero or longer than one hour"));
        }
        Ok(Self {
            source: source.clone(),
            target: target.clone(),
            name: option("--name", raw.name.as_deref(), MigrationName::from_str)?.unwrap_or_default(),
            selection: Selection {
                databases: names("--database", &raw.databases)?,
                ignored_databases: names("--ignore-dbs", &raw.ignore_dbs)?,
                dumped_databases: names("--dump-db", &raw.dump_dbs)?,
                with_tables: patterns("--with-table", &raw.with_tables)?,
                skip_tables: patterns("--skip-table", &raw.skip_tables)?,
            },
            creates_databases: !raw.no_createdb,
            method: option("--method", raw.method.as_deref(), Method::from_str)?,
            jobs: option("--jobs", raw.jobs.as_deref(), jobs)?.unwrap_or_else(jobs_default),
            listen,
            listen_access: listen_access(raw, listen)?,
            confirm_delay,
            spill_dir: raw.spill_dir.as_deref().unwrap_or(SPILL_DIR_DEFAULT).into(),
            spill_bytes_max: spill_max.unwrap_or(SPILL_BYTES_MAX_DEFAULT),
            until: option("--until", raw.until.as_deref(), Until::from_str)?,
            lag_bytes_max: max_lag.unwrap_or(LAG_BYTES_MAX_DEFAULT),
            on_conflict: on_conflict.unwrap_or_default(),
            ddl: ddl.unwrap_or_default(),
            fence: option("--fence", raw.fence.as_deref(), FenceKind::from_str)?.unwrap_or_default(),
            accept_drift: raw.accept_drift,
            fence_commands: fence_commands(raw)?,
            cutover_timeout,
            ignored_roles: names("--ignore-roles", &raw.ignore_roles)?,
            granted_roles: names("--grant-existing-roles", &raw.grant_existing_roles)?,
            opens_target: raw.open_target,
            passwords_file: option("--passwords-file", raw.passwords_file.as_deref(), file)?,
            contents: contents(raw)?,
            skip_version_check: raw.skip_db_version_check,
            total_bytes_max,
            log_format: option("--log-format", raw.log_format.as_deref(), LogFormat::from_str)?
                .unwrap_or_default(),
            verbose: raw.verbose,
            output: output(raw)?,
            force: raw.force,
        })
    }

    /// The source's connection string.
    ///
    /// # Errors
    /// A usage error if none was given.
    pub fn source(&self) -> Result<&Secret, Definite> {
        let missing = || {
            Definite::usage("no source given")
                .hint("set SOURCE_SERVICE_URI, or give --source with a libpq connection string")
        };
        self.source.as_ref().map(|conninfo| &conninfo.text).ok_or_else(missing)
    }

    /// The target's connection string.
    ///
    /// # Errors
    /// A usage error if none was given.
    pub fn target(&self) -> Result<&Secret, Definite> {
        let missing = || {
            Definite::usage("no target given")
                .hint("set TARGET_SERVICE_URI, or give --target with the service's connection string")
        };
        self.target.as_ref().map(|conninfo| &conninfo.text).ok_or_else(missing)
    }

    /// What is allowed and yet unwise, as lines for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (variable, conninfo) in
            [("SOURCE_SERVICE_URI", &self.source), ("TARGET_SERVICE_URI", &self.target)]
        {
            let seen = conninfo.as_ref().filter(|conninfo| has_password(conninfo.text.expose()));
            if let Some(option) = seen.and_then(|conninfo| conninfo.typed_as) {
                warnings.push(format!(
                    "the password in {option} can be seen by everybody on this machine with ps: \
                     use {variable} or PGPASSFILE instead"
                ));
            }
        }
        if let Some(FenceCommands { up, down }) = &self.fence_commands
            && (has_password(up) || has_password(down))
        {
            warnings.push(
                "the password in a fence command can be seen by everybody on this machine with ps: put it into a file \
                 that the command reads"
                    .to_owned(),
            );
        }
        if let Some(address) = self.listen.filter(is_remote) {
            match &self.listen_access {
                ListenAccess { token_file: None, .. } => warnings
                    .push(format!("whoever reaches {address} can read the status: there is no authentication")),
                ListenAccess { tls: None, .. } => warnings.push(format!(
                    "whoever sees what is sent to {address} can read the token: give --listen-cert and --listen-key"
                )),
                ListenAccess { .. } => {}
            }
        }
        warnings
    }
}

impl Default for Contents {
    fn default() -> Self {
        Self { keyless: Keyless::default(), excluded_extensions: Vec::new(), extension_tables: true }
    }
}

impl MigrationName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for MigrationName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for MigrationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MigrationName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=MIGRATION_NAME_BYTES_MAX).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if fits && plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not 1 to {MIGRATION_NAME_BYTES_MAX} of a-z, 0-9 and _"))
        }
    }
}

impl Method {
    /// The name on the command line, in `status` and in Aiven's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::PgDump => "pg_dump",
        }
    }
}

impl OnConflict {
    /// As it is typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::SourceWins => "source-wins",
            Self::Skip => "skip",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Replication, Self::PgDump].into_iter().find(|method| method.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is neither replication nor pg_dump"))
    }
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "copied" => Ok(Self::Copied),
            "synced" => Ok(Self::Synced),
            _ => Err(format!("{text:?} is neither copied nor synced")),
        }
    }
}

impl FromStr for FenceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "read-only" => Ok(Self::ReadOnly),
            "command" => Ok(Self::Command),
            _ => Err(format!("{text:?} is not known: give none, read-only or command")),
        }
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is neither text nor json")),
        }
    }
}

/// Loopback: without a token the status has no authentication.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);

fn option<T>(
    name: &str,
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Definite> {
    let wrong = |reason: String| {
        // The reason quotes what was typed, which may have slipped here from another option.
        let looks_secret = text.is_some_and(has_password);
        let reason = if looks_secret { "it looks like a connection string" } else { &reason };
        Definite::usage(format!("invalid {name}: {reason}"))
    };
    text.map(parse).transpose().map_err(wrong)
}

/// What all lists of an option name, each once.
fn names(option_name: &str, lists: &[String]) -> Result<Vec<String>, Definite> {
    let mut names = Vec::new();
    for list in lists {
        names.extend(option(option_name, Some(list), selection::names)?.unwrap_or_default());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn fence_commands(raw: &RawConfig) -> Result<Option<FenceCommands>, Definite> {
    match (&raw.fence_command, &raw.unfence_command) {
        (None, None) => Ok(None),
        (Some(up), Some(down)) => Ok(Some(FenceCommands { up: up.clone(), down: down.clone() })),
        _ => Err(Definite::usage("--fence-command and --unfence-command go together")
            .detail("a fence that cannot be taken down again would keep the source from being used")),
    }
}

/// The patterns of an option, each once.
fn patterns(option_name: &str, texts: &[String]) -> Result<Vec<String>, Definite> {
    for text in texts {
        option(option_name, Some(text), TablePattern::parse)?;
    }
    let mut texts = texts.to_vec();
    texts.sort();
    texts.dedup();
    Ok(texts)
}

fn contents(raw: &RawConfig) -> Result<Contents, Definite> {
    let keyless = match (raw.replica_identity_full, raw.ignore_keyless) {
        (false, false) => Keyless::CopyAgain,
        (true, false) => Keyless::Full,
        (false, true) => Keyless::Ignore,
        (true, true) => {
            return Err(Definite::usage("--replica-identity-full and --ignore-keyless exclude each other"));
        }
    };
    Ok(Contents {
        keyless,
        excluded_extensions: names("--excluded-extensions", &raw.excluded_extensions)?,
        extension_tables: !raw.no_replicate_extension_tables,
    })
}

fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{text:?} is neither IP:PORT nor none"))
}

fn listen_access(raw: &RawConfig, listen: Option<SocketAddr>) -> Result<ListenAccess, Definite> {
    let token_file = option("--listen-token-file", raw.listen_token_file.as_deref(), file)?;
    let certificate = option("--listen-cert", raw.listen_cert.as_deref(), file)?;
    let key = option("--listen-key", raw.listen_key.as_deref(), file)?;
    let tls = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => return Err(Definite::usage("--listen-cert and --listen-key go together")),
    };
    if raw.listen_insecure && token_file.is_some() {
        return Err(Definite::usage("--listen-token-file and --listen-insecure exclude each other"));
    }
    if let Some(address) = listen.filter(is_remote)
        && !raw.listen_insecure
        && token_file.is_none()
    {
        return Err(Definite::usage(format!("--listen {address} can be reached by others"))
            .detail("the status has the names of tables and servers")
            .hint(
                "give --listen-token-file with the token that they have to know, or --listen-insecure where everybody may                  read it",
            ));
    }
    Ok(ListenAccess { token_file, tls })
}

/// Others can reach it.
fn is_remote(address: &SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.into()) }
}

fn jobs(text: &str) -> Result<usize, String> {
    let jobs = text.parse().ok().filter(|jobs| (1..=JOBS_MAX).contains(jobs));
    jobs.ok_or_else(|| format!("{text:?} is not a number from 1 to {JOBS_MAX}"))
}

fn jobs_default() -> usize {
    let cores = available_parallelism().map_or(JOBS_DEFAULT_MIN, usize::from);
    cores.clamp(JOBS_DEFAULT_MIN, JOBS_DEFAULT_MAX)
}

/// On a disk: `/tmp` is memory on many machines.
const SPILL_DIR_DEFAULT: &str = "/var/tmp";

fn output(raw: &RawConfig) -> Result<Output, Definite> {
    match (raw.json, raw.avn) {
        (false, false) => Ok(Output::Text),
        (true, false) => Ok(Output::Json),
        (false, true) => Ok(Output::Avn),
        (true, true) => Err(Definite::usage("--json and --avn exclude each other")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn typed(set: impl FnOnce(&mut RawConfig)) -> Result<Config, Definite> {
        let mut raw = RawConfig::default();
        set(&mut raw);
        Config::resolve(&raw)
    }

    #[test]
    fn defaults() {
        let config = Config::resolve(&RawConfig::default()).expect("nothing is wrong with nothing");
        assert_eq!(config.name.as_str(), "default");
        assert_eq!(config.listen, Some("127.0.0.1:9464".parse().expect("an address")));
        assert_eq!(config.confirm_delay, Duration::from_secs(30));
        assert_eq!(config.spill_dir, PathBuf::from("/var/tmp"));
        assert_eq!(config.until, None);
        assert_eq!(config.output, Output::Text);
        assert!((JOBS_DEFAULT_MIN..=JOBS_DEFAULT_MAX).contains(&config.jobs));
        assert!(config.warnings().is_empty());
        for missing in [config.source(), config.target()] {
            assert_eq!(missing.expect_err("not given").exit, Exit::Usage);
        }
    }

    #[test]
    fn a_flag_beats_the_environment() {
        let check = |flag: Option<&str>, environment: Option<&str>, expected: Option<&str>| {
            let config = typed(|raw| {
                raw.source = flag.map(Secret::new);
                raw.environment.source = environment.map(Secret::new);
            });
            let config = config.expect("nothing is wrong");
            assert_eq!(config.source().ok().map(Secret::expose), expected);
        };
        check(Some("host=a"), None, Some("host=a"));
        check(None, Some("host=b"), Some("host=b"));
        check(Some("host=a"), Some("host=b"), Some("host=a"));
        check(None, Some(""), None);
        check(None, None, None);
    }

    #[test]
    fn mistakes_are_usage_errors_that_name_the_option() {
        type Set = fn(&mut RawConfig);
        let check = |set: Set, expected: &str| {
            let error = typed(set).expect_err(expected);
            assert_eq!((error.exit, error.cause.as_str()), (Exit::Usage, expected));
        };
        check(|raw| raw.source = Some(Secret::new(" ")), "invalid --source: it is empty");
        check(
            |raw| raw.name = Some("Prod".into()),
            "invalid --name: \"Prod\" is not 1 to 40 of a-z, 0-9 and _",
        );
        check(|raw| raw.name = Some(String::new()), "invalid --name: \"\" is not 1 to 40 of a-z, 0-9 and _");
        check(
            |raw| raw.name = Some("postgres://u:hunter2@h".into()),
            "invalid --name: it looks like a connection string",
        );
        check(|raw| raw.jobs = Some("0".into()), "invalid --jobs: \"0\" is not a number from 1 to 32");
        check(|raw| raw.jobs = Some("x".into()), "invalid --jobs: \"x\" is not a number from 1 to 32");
        check(
            |raw| raw.listen = Some("9464".into()),
            "invalid --listen: \"9464\" is neither IP:PORT nor none",
        );
        for open in ["0.0.0.0:9464", "[::]:1", "10.1.2.3:80", "[::ffff:10.1.2.3]:80"] {
            let error = typed(|raw| raw.listen = Some(open.into())).expect_err(open);
            assert_eq!(error.cause, format!("--listen {open} can be reached by others"));
            assert!(error.hint.contains("--listen-token-file") && error.hint.contains("--listen-insecure"));
        }
        check(
            |raw| (raw.listen_insecure, raw.listen_token_file) = (true, Some("t".into())),
            "--listen-token-file and --listen-insecure exclude each other",
        );
        check(|raw| raw.listen_key = Some("k".into()), "--listen-cert and --listen-key go together");
        check(|raw| raw.listen_cert = Some(String::new()), "invalid --listen-cert: it is empty");
        check(
            |raw| raw.confirm_delay = Some("30".into()),
            "invalid --confirm-delay: \"30\" has no unit: write 30s, 30ms, 30m or 30h",
        );
        check(
            |raw| raw.confirm_delay = Some("2h".into()),
            "invalid --confirm-delay: it is longer than one hour",
        );
        check(
            |raw| raw.until = Some("done".into()),
            "invalid --until: \"done\" is neither copied nor synced",
        );
        check(
            |raw| raw.max_lag = Some("1XB".into()),
            "invalid --max-lag: \"1XB\" has the unknown unit \"XB\": B, kB, MB, GB and TB are known",
        );
        check(
            |raw| raw.on_conflict = Some("last-wins".into()),
            "invalid --on-conflict: \"last-wins\" is not known: give stop, source-wins or skip",
        );
        check(
            |raw| raw.method = Some("dump".into()),
            "invalid --method: \"dump\" is neither replication nor pg_dump",
        );
        check(|raw| raw.ddl = Some("go".into()), "invalid --ddl: \"go\" is not known: give follow or stop");
        check(
            |raw| raw.fence = Some("wall".into()),
            "invalid --fence: \"wall\" is not known: give none, read-only or command",
        );
        check(
            |raw| raw.timeout = Some("2h".into()),
            "invalid --timeout: it is either zero or longer than one hour",
        );
        check(
            |raw| raw.fence_command = Some("true".into()),
            "--fence-command and --unfence-command go together",
        );
        check(
            |raw| raw.ignore_roles = vec!["a,,b".into()],
            "invalid --ignore-roles: \"a,,b\" has an empty name",
        );
        check(|raw| raw.passwords_file = Some(String::new()), "invalid --passwords-file: it is empty");
        check(
            |raw| raw.log_format = Some("xml".into()),
            "invalid --log-format: \"xml\" is neither text nor json",
        );
        check(|raw| (raw.json, raw.avn) = (true, true), "--json and --avn exclude each other");
        check(
            |raw| (raw.replica_identity_full, raw.ignore_keyless) = (true, true),
            "--replica-identity-full and --ignore-keyless exclude each other",
        );
        check(
            |raw| raw.excluded_extensions = vec!["a,,b".into()],
            "invalid --excluded-extensions: \"a,,b\" has an empty name",
        );
        check(
            |raw| {
                raw.source = Some(Secret::new("host=a"));
                raw.environment.target = Some(Secret::new("host=a"));
            },
            "source and target are the same",
        );
    }

    #[test]
    fn warns_of_what_others_can_see() {
        let check = |set: &dyn Fn(&mut RawConfig), expected: &[&str]| {
            let warnings = typed(set).expect("nothing is wrong").warnings();
            assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
            for (warning, part) in warnings.iter().zip(expected) {
                assert!(warning.contains(part) && !warning.contains("hunter2"), "{warning}");
            }
        };
        let secret = || Some(Secret::new("postgres://u:hunter2@h/db"));
        check(&|raw| raw.source = secret(), &["SOURCE_SERVICE_URI or PGPASSFILE"]);
        check(&|raw| raw.target = secret(), &["TARGET_SERVICE_URI or PGPASSFILE"]);
        check(&|raw| raw.environment.source = secret(), &[]);
        check(&|raw| raw.source = Some(Secret::new("host=h user=u")), &[]);
        let command = "psql postgres://u:hunter2@h/db -c 'SELECT 1'";
        check(
            &|raw| (raw.fence_command, raw.unfence_command) = (Some("true".into()), Some(command.into())),
            &["the password in a fence command"],
        );
        let open = |raw: &mut RawConfig, token: bool, tls: bool| {
            raw.listen = Some("0.0.0.0:9464".into());
            raw.listen_insecure = !token;
            raw.listen_token_file = token.then(|| "t".into());
            raw.listen_cert = tls.then(|| "c".into());
            raw.listen_key = tls.then(|| "k".into());
        };
        check(&|raw| open(raw, false, false), &["0.0.0.0:9464 can read the status"]);
        check(&|raw| open(raw, false, true), &["no authentication"]);
        check(&|raw| open(raw, true, false), &["can read the token"]);
        check(&|raw| open(raw, true, true), &[]);
        check(&|raw| raw.listen = Some("[::1]:9464".into()), &[]);
        check(&|raw| raw.listen = Some("none".into()), &[]);
    }

    #[test]
    fn debug_shows_no_password() {
        let mut raw = RawConfig { source: Some(Secret::new("hunter2")), ..RawConfig::default() };
        raw.environment.target = Some(Secret::new("postgres://u:hunter2@h"));
        let config = Config::resolve(&raw).expect("nothing is wrong");
        assert!(!format!("{raw:?}{config:?}").contains("hunter2"));
    }
}
