//! What can be typed: commands and options, as they go into the raw configuration.
//!
//! What is checked here is only how it is written; what it means is checked by [`crate::config`].

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use crate::config::{Environment, LogFormat, RawConfig, Secret, has_password};
use crate::error::Exit;

/// Moves live PostgreSQL databases to Aiven for PostgreSQL, and keeps them in sync until you cut over.
///
/// Neither side needs a superuser. The source goes on working all the time. Every command can be run again: it goes on
/// where it was.
#[derive(Debug, Parser)]
#[command(name = "walferry", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at both sides and say what would stand in the way of a migration; change nothing
    #[command(after_help = "Example:\n  walferry check\n\n\
        Exit code 3: a check failed. Each failure comes with the command that mends it.")]
    Check(CheckArgs),
    /// Copy everything, then follow the source until you stop it; run again, it goes on where it was
    #[command(after_help = "Examples:\n  walferry migrate\n  walferry migrate --jobs 4 --until synced\n\n\
        Ctrl-C or SIGTERM ends it after the batch at hand, with exit code 0; a second one ends it at once.\n\
        Neither loses a change nor applies one twice. Look on with http://127.0.0.1:9464/ or walferry status.")]
    Migrate(Box<MigrateArgs>),
    /// Show how far a migration is, how far behind it is, and what it keeps on the source
    #[command(after_help = "Examples:\n  walferry status\n  walferry status --json\n\n\
        It reads the target, so it works while no migration is running, too.")]
    Status(StatusArgs),
    /// Have the running migration end the source's writes, apply the last of them, and end as done
    #[command(after_help = "Examples:\n  walferry cutover\n  walferry cutover --fence none --timeout 2m\n\n\
        The engine (walferry migrate) does the work. Whatever goes wrong before it is done, and Ctrl-C, takes the fence\n\
        down again, and the migration goes on following: exit code 5, with the reason.")]
    Cutover(CutoverArgs),
    /// Have tables copied afresh by the next `migrate`, while it follows the others; stop the running one before
    #[command(
        after_help = "Examples:\n  walferry resync public.item\n  walferry resync 'public.\"Odd Name\"' shop.stock\n\n\
        The target's rows of these tables are removed then, and copied again on a snapshot of their own. A partitioned\n\
        table means all its partitions."
    )]
    Resync(ResyncArgs),
    /// Drop everything that a migration made on both sides: slots, publications, bookkeeping. Never your data
    #[command(after_help = "Examples:\n  walferry remove\n  walferry remove --name prod --force\n\n\
        Run it when you give a migration up, too: a slot left on the source keeps its WAL until the disk is full.")]
    Remove(RemoveArgs),
    /// Print what changes on the source from now on as JSON lines; touch neither the target nor a running migration
    #[command(
        after_help = "Examples:\n  walferry tail\n  walferry tail --publication orders | jq -c 'select(.kind == \"delete\")'\n\n\
        It looks through a temporary slot, which goes when it ends. Transactions come whole, when they commit."
    )]
    Tail(TailArgs),
    #[cfg(feature = "demo")]
    /// Start two temporary servers on this machine and move a small shop from one to the other
    #[command(
        after_help = "Examples:\n  walferry demo\n  walferry demo --source-version 16 --target-version 18 --keep\n\n\
        It takes about a minute, touches no server but its own, and leaves nothing behind, however it ends. Without\n\
        PostgreSQL on this machine it downloads it (x86_64 Linux, with python3 and pip).\n\
        Exit code 4: the two sides differ."
    )]
    Demo(DemoArgs),
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    sides: SideArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    roles: RoleArgs,
    #[command(flatten)]
    contents: ContentArgs,
    #[command(flatten)]
    wanted: RequirementArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    sides: SideArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    wanted: RequirementArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    roles: RoleArgs,
    /// Where the passwords go that roles get whose old ones the source does not show; readable by you alone [default:
    /// ~/walferry-passwords-NAME.jsonl; without a home it must be given where such passwords are made]
    #[arg(long, value_name = "FILE")]
    passwords_file: Option<String>,
    /// Let the source's roles log in on the target at once, not only when the migration is done; of one that is begun, too
    #[arg(long)]
    open_target: bool,
    #[command(flatten)]
    contents: ContentArgs,
    /// End by itself: `copied` when all is copied, `synced` when it follows within --max-lag [default: go on]
    #[arg(long, value_name = "copied|synced")]
    until: Option<String>,
    /// Keep confirmed positions back for so long (500ms, 30s, 2m, 0), so that a target that fails over to a standby
    /// can be brought up to date; the source keeps its WAL as long [default: 30s]
    #[arg(long, value_name = "DURATION")]
    confirm_delay: Option<String>,
    /// Where large transactions are kept that the source has not ended yet [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    spill_dir: Option<String>,
    /// Up to so many bytes of them (512MB, 8GB); beyond it, and with 0, the source keeps them itself [default: 8GB]
    #[arg(long, value_name = "BYTES")]
    spill_max: Option<String>,
    /// What to do with a change that does not fit the target's rows: `stop` with an error, `source-wins`: the target's row
    /// becomes the source's, `skip`: leave it out. The table walferry.conflict has each [default: stop]
    #[arg(long, value_name = "stop|source-wins|skip")]
    on_conflict: Option<String>,
    /// What to do about a column that was added on the source: `follow` adds it on the target where that is safe, `stop`
    /// ends with an error that has the statement [default: stop]
    #[arg(long, value_name = "follow|stop")]
    ddl: Option<String>,
    /// A shell command that keeps the source from being written to, for `walferry cutover --fence command`
    #[arg(long, value_name = "COMMAND")]
    fence_command: Option<String>,
    /// A shell command that takes that fence down again; it may run more than once
    #[arg(long, value_name = "COMMAND")]
    unfence_command: Option<String>,
}

/// Options of `cutover`.
#[derive(Debug, Args)]
pub struct CutoverArgs {
    #[command(flatten)]
    sides: SideArgs,
    /// What keeps the source from being written to: `read-only` makes its database so and ends all its sessions,
    /// `command` is what the engine was given, `none`: you have stopped all writers [default: read-only]
    #[arg(long, value_name = "none|read-only|command")]
    fence: Option<String>,
    /// Refuse when the target is further behind (512kB, 16MB) [default: 16MB]
    #[arg(long, value_name = "BYTES")]
    max_lag: Option<String>,
    /// Leave the target as it is where indexes, constraints, defaults, views, functions, triggers, rules, sequences, domains
    /// or enums were made, changed or dropped on the source since the start: otherwise that is refused, with the statements for
    /// the target
    #[arg(long)]
    accept_drift: bool,
    /// Give it up when it takes longer (30s, 5m; 1 h at most) [default: 60s]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    sides: SideArgs,
    /// Print JSON with everything
    #[arg(long)]
    json: bool,
    /// Print JSON with just the keys that Aiven's API has
    #[arg(long)]
    avn: bool,
}

/// Options of `resync`.
#[derive(Debug, Args)]
pub struct ResyncArgs {
    #[command(flatten)]
    sides: SideArgs,
    /// The tables: `[database.]schema.table`, parts in double quotes where PostgreSQL wants them
    #[arg(required = true, value_name = "TABLE")]
    pub(super) tables: Vec<String>,
}

/// Options of `remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    sides: SideArgs,
    /// Remove a migration that is half done, too: what is copied stays, incomplete
    #[arg(long)]
    force: bool,
}

/// Options of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The cluster whose changes are printed: a libpq URI or keyword string [env: SOURCE_SERVICE_URI]
    ///
    /// A password given here can be seen by everybody on this machine with ps. Put it into SOURCE_SERVICE_URI or into
    /// the file that PGPASSFILE names instead.
    #[arg(short, long, value_name = "URI", value_parser = secret)]
    source: Option<Secret>,
    /// The migration whose tables are meant [default: default]
    #[arg(long)]
    name: Option<String>,
    /// A publication of the source instead of the migration's; can be given several times
    #[arg(long, value_name = "NAME")]
    pub(super) publication: Vec<String>,
}

/// Options of `demo`.
#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Tables copied at the same time, 1 to 32 [default: the number of cores, 2 to 8]
    #[arg(short, long, value_name = "N")]
    jobs: Option<String>,
    /// Leave both servers up, and say how to reach them, until Ctrl-C
    #[arg(long)]
    pub(super) keep: bool,
    /// PostgreSQL's major version on the source, 14 to 18 [default: the newest on this machine]
    #[arg(long, value_name = "N")]
    pub(super) source_version: Option<u32>,
    /// PostgreSQL's major version on the target [default: the newest on this machine]
    #[arg(long, value_name = "N")]
    pub(super) target_version: Option<u32>,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// A configuration file: TOML, whose keys are called as the options are
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// One key of it, or one of Aiven's: migration.host, .port, .dbname, .username, .password, .ssl, .ignore_dbs
    #[arg(short = 'c', value_name = "KEY=VALUE", value_parser = secret)]
    setting: Vec<Secret>,
}

#[derive(Debug, Args)]
struct SideArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The cluster that data leaves: a libpq URI or keyword string [env: SOURCE_SERVICE_URI]
    ///
    /// A password given here can be seen by everybody on this machine with ps. Put it into SOURCE_SERVICE_URI or into
    /// the file that PGPASSFILE names instead.
    #[arg(short, long, value_name = "URI", value_parser = secret)]
    source: Option<Secret>,
    /// The Aiven service that data goes to: a libpq URI or keyword string [env: TARGET_SERVICE_URI]
    ///
    /// A password given here can be seen by everybody on this machine with ps. Put it into TARGET_SERVICE_URI or into
    /// the file that PGPASSFILE names instead.
    #[arg(short, long, value_name = "URI", value_parser = secret)]
    target: Option<Secret>,
    /// The migration's name: 1 to 40 of a-z, 0-9 and _ [default: default]
    #[arg(long)]
    name: Option<String>,
    /// Just this database; several with commas, or given several times; quoted where a name has a comma: '"a,b"'
    /// [default: all]
    #[arg(long, value_name = "DB,…")]
    database: Vec<String>,
}

#[derive(Debug, Args)]
struct SelectionArgs {
    /// Not these databases of the source, with commas; can be given several times
    #[arg(long, value_name = "DB,…")]
    ignore_dbs: Vec<String>,
    /// Dump these databases once instead of following them, with commas: what is written to them after their start is not
    /// carried; can be given several times
    #[arg(long, value_name = "DB,…")]
    dump_db: Vec<String>,
    /// Just tables that match, and just databases that have some: [db.]schema.table with * and ?, a quoted name stands for
    /// itself; case counts; can be given several times [default: all]
    #[arg(long, value_name = "PATTERN")]
    with_table: Vec<String>,
    /// Make tables that match, and leave them empty: neither rows nor changes; can be given several times
    #[arg(long, value_name = "PATTERN")]
    skip_table: Vec<String>,
    /// Do not create databases that the target lacks: a check fails, with the command that creates them
    #[arg(long)]
    no_createdb: bool,
}

#[derive(Debug, Args)]
struct MethodArgs {
    /// How to move: by `replication`, or by `pg_dump`: one dump and restore, and what is written to the source after its
    /// start is not carried [default: replication where that is possible, else pg_dump]
    #[arg(long, value_name = "replication|pg_dump")]
    method: Option<String>,
}

#[derive(Debug, Args)]
struct RequirementArgs {
    /// Warn only where the target is older than the source, or than what is tested
    #[arg(long)]
    skip_db_version_check: bool,
    /// Fail the check where the source's data takes more than so many bytes (500GB, 2TB)
    #[arg(long, value_name = "BYTES")]
    dbs_max_total_size: Option<String>,
}

#[derive(Debug, Args)]
struct EngineArgs {
    /// Tables copied at the same time, 1 to 32 [default: the number of cores, 2 to 8]
    #[arg(short, long, value_name = "N")]
    jobs: Option<String>,
    /// Where the status is served over HTTP; `none`: nowhere; one that others can reach wants --listen-token-file or
    /// --listen-insecure [default: 127.0.0.1:9464]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// The file with the token that HTTP asks for, as `Authorization: Bearer TOKEN`: one line, for our eyes only (mode 0600)
    #[arg(long, value_name = "FILE")]
    listen_token_file: Option<String>,
    /// Let everybody who reaches --listen read the status
    #[arg(long)]
    listen_insecure: bool,
    /// Serve the status over HTTPS, with this certificate (PEM) and those above it
    #[arg(long, value_name = "FILE")]
    listen_cert: Option<String>,
    /// The certificate's key (PEM, not encrypted), for our eyes only
    #[arg(long, value_name = "FILE")]
    listen_key: Option<String>,
    /// Up to so many bytes behind (512kB, 16MB), a database counts as synced and ready [default: 16MB]
    #[arg(long, value_name = "BYTES")]
    max_lag: Option<String>,
}

#[derive(Debug, Args)]
struct RoleArgs {
    /// Roles of the source to leave out, with what is granted to them, with commas; can be given several times
    #[arg(long, value_name = "ROLE,…")]
    ignore_roles: Vec<String>,
    /// Carry memberships of these roles, too, which the target has already (its own user, `pg_monitor`, say); without it only
    /// those among roles that Walferry makes
    #[arg(long, value_name = "ROLE,…")]
    grant_existing_roles: Vec<String>,
}

impl RoleArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.ignore_roles.clone_from(&self.ignore_roles);
        raw.grant_existing_roles.clone_from(&self.grant_existing_roles);
    }
}

#[derive(Debug, Args)]
struct ContentArgs {
    /// Give tables without replica identity REPLICA IDENTITY FULL on the source, until `remove` puts back what they had
    #[arg(long)]
    replica_identity_full: bool,
    /// Of tables without replica identity, be content with inserts and truncates: do not copy them again at cutover
    #[arg(long)]
    ignore_keyless: bool,
    /// Do not make these extensions on the target, with commas; can be given several times
    #[arg(long, value_name = "EXTENSION,…")]
    excluded_extensions: Vec<String>,
    /// Move the rows that users have in tables of extensions: this is the default
    #[arg(long, overrides_with = "no_replicate_extension_tables")]
    replicate_extension_tables: bool,
    /// Leave the tables of extensions as the target's extensions make them
    #[arg(long, overrides_with = "replicate_extension_tables")]
    no_replicate_extension_tables: bool,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// How logs and errors are written to standard error [default: text]
    #[arg(long, global = true, value_name = "text|json")]
    log_format: Option<String>,
    /// Log more; RUST_LOG says exactly what
    #[arg(short, long, global = true)]
    verbose: bool,
}

/// Why there is nothing to run: a mistake on the command line, or a question that has been answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Early {
    /// How the process ends.
    pub exit: Exit,
    /// What to print: to standard output if `exit` is fine, else to standard error.
    pub text: String,
}

impl Cli {
    /// Reads the arguments, the program's name first.
    ///
    /// # Errors
    /// Help and version, and mistakes.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Early> {
        let arguments: Vec<_> = arguments.into_iter().collect();
        Self::try_parse_from(&arguments).map_err(|error| {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Fine };
            Early { exit, text: without_secrets(error.render().to_string(), &arguments) }
        })
    }

    /// Everything that was typed, with the environment beside it.
    pub fn raw(&self, environment: Environment) -> RawConfig {
        let mut raw = RawConfig { environment, ..RawConfig::default() };
        raw.log_format.clone_from(&self.log.log_format);
        raw.verbose = self.log.verbose;
        match &self.command {
            Command::Check(args) => {
                args.sides.put(&mut raw);
                raw.method.clone_from(&args.method.method);
                args.selection.put(&mut raw);
                args.roles.put(&mut raw);
                args.contents.put(&mut raw);
                args.wanted.put(&mut raw);
                raw.json = args.json;
            }
            Command::Migrate(args) => {
                args.sides.put(&mut raw);
                args.selection.put(&mut raw);
                args.wanted.put(&mut raw);
                args.engine.put(&mut raw);
                raw.method.clone_from(&args.method.method);
                args.contents.put(&mut raw);
                raw.until.clone_from(&args.until);
                raw.confirm_delay.clone_from(&args.confirm_delay);
                raw.spill_dir.clone_from(&args.spill_dir);
                raw.spill_max.clone_from(&args.spill_max);
                raw.on_conflict.clone_from(&args.on_conflict);
                raw.ddl.clone_from(&args.ddl);
                raw.fence_command.clone_from(&args.fence_command);
                raw.unfence_command.clone_from(&args.unfence_command);
                args.roles.put(&mut raw);
                raw.passwords_file.clone_from(&args.passwords_file);
                raw.open_target = args.open_target;
            }
            Command::Cutover(args) => {
                args.sides.put(&mut raw);
                raw.fence.clone_from(&args.fence);
                raw.max_lag.clone_from(&args.max_lag);
                raw.accept_drift = args.accept_drift;
                raw.timeout.clone_from(&args.timeout);
                raw.json = args.json;
            }
            Command::Status(args) => {
                args.sides.put(&mut raw);
                (raw.json, raw.avn) = (args.json, args.avn);
            }
            Command::Resync(args) => args.sides.put(&mut raw),
            Command::Remove(args) => {
                args.sides.put(&mut raw);
                raw.force = args.force;
            }
            Command::Tail(args) => {
                args.config.put(&mut raw);
                raw.source.clone_from(&args.source);
                raw.name.clone_from(&args.name);
            }
            #[cfg(feature = "demo")]
            Command::Demo(args) => {
                // The demo has servers of its own: what the environment names is not to be touched.
                raw.environment = Environment::default();
                raw.jobs.clone_from(&args.jobs);
            }
        }
        raw
    }

    /// How errors are to be written, as far as that can be known before the configuration is checked.
    pub fn log_format(&self) -> LogFormat {
        self.log.log_format.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

impl ConfigArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.settings.clone_from(&self.setting);
        // Read by `with_file`.
        raw.file = self.config.clone().map(|path| (path, Secret::new(String::new())));
    }
}

impl SideArgs {
    fn put(&self, raw: &mut RawConfig) {
        self.config.put(raw);
        raw.source.clone_from(&self.source);
        raw.target.clone_from(&self.target);
        raw.name.clone_from(&self.name);
        raw.databases.clone_from(&self.database);
    }
}

impl SelectionArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.ignore_dbs.clone_from(&self.ignore_dbs);
        raw.dump_dbs.clone_from(&self.dump_db);
        raw.with_tables.clone_from(&self.with_table);
        raw.skip_tables.clone_from(&self.skip_table);
        raw.no_createdb = self.no_createdb;
    }
}

impl ContentArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.replica_identity_full = self.replica_identity_full;
        raw.ignore_keyless = self.ignore_keyless;
        raw.excluded_extensions.clone_from(&self.excluded_extensions);
        raw.no_replicate_extension_tables = self.no_replicate_extension_tables;
    }
}

impl RequirementArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.skip_db_version_check = self.skip_db_version_check;
        raw.dbs_max_total_size.clone_from(&self.dbs_max_total_size);
    }
}

impl EngineArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.jobs.clone_from(&self.jobs);
        raw.listen.clone_from(&self.listen);
        raw.listen_token_file.clone_from(&self.listen_token_file);
        raw.listen_insecure = self.listen_insecure;
        raw.listen_cert.clone_from(&self.listen_cert);
        raw.listen_key.clone_from(&self.listen_key);
        raw.max_lag.clone_from(&self.max_lag);
    }
}

const AFTER_HELP: &str = "\
Start with:
  export SOURCE_SERVICE_URI='postgres://user:password@old.example.com/shop'
  export TARGET_SERVICE_URI='postgres://avnadmin:password@pg-xy.aivencloud.com:12345/defaultdb'
  walferry check && walferry migrate

Put passwords into these variables, or into the file that PGPASSFILE names: what is
typed as an option can be seen by everybody on this machine with ps. An option beats
the variable.

Exit codes:
  0  fine
  1  unexpected
  2  usage or configuration
  3  a check failed
  4  verify found differences
  5  an error that somebody must act on
  6  an error that may pass lasted too long
  7  a database was dumped, and is not followed, though nobody asked for that";

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// `text` without those arguments, and values of arguments, that hold a password.
fn without_secrets(mut text: String, arguments: &[OsString]) -> String {
    for argument in arguments {
        let argument = argument.to_string_lossy();
        if has_password(&argument) {
            let value =
                argument.split_once('=').filter(|_| argument.starts_with('-')).map(|(_, value)| value);
            for secret in [Some(&*argument), value].into_iter().flatten().filter(|it| !it.is_empty()) {
                text = text.replace(secret, "<connection string>");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Config, Output};

    fn read(line: &str) -> Result<Cli, Early> {
        Cli::read(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_typed_reaches_the_configuration() {
        let line = "walferry migrate -s host=a -t host=b --name prod --jobs 3 --listen none --confirm-delay 500ms \
                    --until synced --max-lag 1MB --on-conflict source-wins --method replication --log-format json \
                    --verbose --ignore-roles a,B --passwords-file p --dump-db c,D";
        let cli = read(line).expect("it is right");
        let config = Config::resolve(&cli.raw(Environment::default())).expect("it is right");
        assert_eq!(config.source().map(Secret::expose), Ok("host=a"));
        assert_eq!(config.target().map(Secret::expose), Ok("host=b"));
        assert_eq!((config.name.as_str(), config.jobs, config.listen), ("prod", 3, None));
        assert_eq!((config.confirm_delay.as_millis(), config.lag_bytes_max), (500, 1 << 20));
        assert_eq!(config.until, Some(crate::config::Until::Synced));
        assert_eq!(config.method, Some(crate::config::Method::Replication));
        assert_eq!(config.on_conflict, crate::config::OnConflict::SourceWins);
        assert_eq!(config.selection.dumped_databases, ["D", "c"]);
        assert_eq!((config.log_format, cli.log_format()), (LogFormat::Json, LogFormat::Json));
        assert!(config.verbose && !config.force);
        assert_eq!(
            (config.ignored_roles, config.passwords_file),
            (vec!["B".into(), "a".into()], Some("p".into()))
        );

        let line = "walferry cutover --fence none --max-lag 1kB --timeout 2m --accept-drift --json";
        let config = Config::resolve(&read(line).expect("it is right").raw(Environment::default()));
        let config = config.expect("it is right");
        assert_eq!((config.fence, config.lag_bytes_max), (crate::config::FenceKind::None, 1 << 10));
        assert_eq!((config.cutover_timeout.as_secs(), config.output), (120, Output::Json));
        assert!(config.accept_drift);

        let cli = read("walferry remove --force").expect("it is right");
        assert!(cli.raw(Environment::default()).force);
        let cli = read("walferry status --avn").expect("it is right");
        let config = Config::resolve(&cli.raw(Environment::default())).expect("it is right");
        assert_eq!(config.output, Output::Avn);
    }

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_does_not_see_the_environment() {
        let environment = Environment { source: Some(Secret::new("host=prod")), target: None };
        let raw = read("walferry demo").expect("it is right").raw(environment);
        assert!(raw.environment.source.is_none());
    }

    #[test]
    fn mistakes_do_not_repeat_passwords() {
        for line in [
            "walferry migrate postgres://u:hunter2@h/db",
            "walferry migrate --sorce=postgres://u:hunter2@h/db",
            "walferry postgres://u:hunter2@h/db",
            "walferry migrate --name=a --name=postgres://u:hunter2@h/db",
            "walferry status --json=postgres://u:hunter2@h/db",
        ] {
            let early = read(line).expect_err(line);
            assert_eq!(early.exit, Exit::Usage);
            assert!(!early.text.contains("hunter2"), "{}", early.text);
        }
    }
}
