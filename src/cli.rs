//! The command line: what can be typed, and what each command does with it.
//!
//! Only here and in `main` are the arguments and the environment read, signals caught, and standard output written.
//! Results go to standard output, all else to standard error. A password never reaches either: clap's own messages are
//! cleaned of what looks like a connection string.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Config, Environment, LogFormat, Output, RawConfig, Secret, has_password};
use crate::demo::{self, ShowOptions, Stage};
use crate::error::{Definite, Exit, Failure};
use crate::migrate::{self, Migration, Sides};
use crate::status::{self, HttpServer, MetricsRegistry, Observed, Screen, StatusHandle, StatusSnapshot};

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
    engine: EngineArgs,
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
    /// What to do with a change that the target cannot take as it is: `stop` with an error [default: stop]
    #[arg(long, value_name = "stop")]
    on_conflict: Option<String>,
    /// What to do about a column that was added on the source: `follow` adds it on the target where that is safe, `stop`
    /// ends with an error that has the statement [default: stop]
    #[arg(long, value_name = "follow|stop")]
    ddl: Option<String>,
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
    publication: Vec<String>,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Tables copied at the same time, 1 to 32 [default: the number of cores, 2 to 8]
    #[arg(short, long, value_name = "N")]
    jobs: Option<String>,
    /// Leave both servers up, and say how to reach them, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// PostgreSQL's major version on the source, 14 to 18 [default: the newest on this machine]
    #[arg(long, value_name = "N")]
    source_version: Option<u32>,
    /// PostgreSQL's major version on the target [default: the newest on this machine]
    #[arg(long, value_name = "N")]
    target_version: Option<u32>,
}

#[derive(Debug, Args)]
struct SideArgs {
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
}

#[derive(Debug, Args)]
struct MethodArgs {
    /// How to move: by `replication`, or by `pg_dump`: one dump and restore, and what is written to the source after its
    /// start is not carried [default: replication where that is possible, else pg_dump]
    #[arg(long, value_name = "replication|pg_dump")]
    method: Option<String>,
}

#[derive(Debug, Args)]
struct EngineArgs {
    /// Tables copied at the same time, 1 to 32 [default: the number of cores, 2 to 8]
    #[arg(short, long, value_name = "N")]
    jobs: Option<String>,
    /// Where the status is served over HTTP, without authentication; `none`: nowhere [default: 127.0.0.1:9464]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Up to so many bytes behind (512kB, 16MB), a database counts as synced and ready [default: 16MB]
    #[arg(long, value_name = "BYTES")]
    max_lag: Option<String>,
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
                raw.json = args.json;
            }
            Command::Migrate(args) => {
                args.sides.put(&mut raw);
                args.engine.put(&mut raw);
                raw.method.clone_from(&args.method.method);
                raw.until.clone_from(&args.until);
                raw.confirm_delay.clone_from(&args.confirm_delay);
                raw.spill_dir.clone_from(&args.spill_dir);
                raw.spill_max.clone_from(&args.spill_max);
                raw.on_conflict.clone_from(&args.on_conflict);
                raw.ddl.clone_from(&args.ddl);
            }
            Command::Status(args) => {
                args.sides.put(&mut raw);
                (raw.json, raw.avn) = (args.json, args.avn);
            }
            Command::Remove(args) => {
                args.sides.put(&mut raw);
                raw.force = args.force;
            }
            Command::Tail(args) => {
                raw.source.clone_from(&args.source);
                raw.name.clone_from(&args.name);
            }
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

impl SideArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.source.clone_from(&self.source);
        raw.target.clone_from(&self.target);
        raw.name.clone_from(&self.name);
    }
}

impl EngineArgs {
    fn put(&self, raw: &mut RawConfig) {
        raw.jobs.clone_from(&self.jobs);
        raw.listen.clone_from(&self.listen);
        raw.max_lag.clone_from(&self.max_lag);
    }
}

/// What the environment says of the two sides.
///
/// # Errors
/// A usage error where a variable is not UTF-8.
pub fn environment() -> Result<Environment, Definite> {
    let read = |name: &str| match env::var(name) {
        Ok(text) => Ok(Some(Secret::new(text))),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Definite::usage(format!("{name} is not valid UTF-8"))),
    };
    Ok(Environment { source: read("SOURCE_SERVICE_URI")?, target: read("TARGET_SERVICE_URI")? })
}

/// Runs one command to its end.
///
/// # Errors
/// What ended it; [`exit_of`] has the exit code.
pub async fn run(command: &Command, config: &Config, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        Command::Check(_) => check(config).await,
        Command::Migrate(_) => migrate(config, screen).await,
        Command::Status(_) => show_status(config).await,
        Command::Remove(_) => remove(config).await,
        Command::Tail(args) => tail(args, config).await,
        Command::Demo(args) => show_demo(args, config).await,
    }
}

/// The exit code of a failure.
pub const fn exit_of(failure: &Failure) -> Exit {
    match failure {
        Failure::Definite(definite) => definite.exit,
        Failure::Transient(_) => Exit::Transient,
    }
}

/// Writes a failure for a person, or as one line of JSON.
///
/// # Errors
/// When `out` cannot be written to.
pub fn report(failure: &Failure, format: LogFormat, out: &mut impl Write) -> io::Result<()> {
    match format {
        LogFormat::Text => writeln!(out, "walferry: {failure}"),
        LogFormat::Json => {
            let (class, side, cause, detail, hint) = match failure {
                Failure::Definite(it) => ("definite", None, &it.cause, &it.detail, it.hint.as_str()),
                Failure::Transient(it) => ("transient", Some(it.side.as_str()), &it.cause, &it.detail, ""),
            };
            let line = serde_json::json!({
                "level": "ERROR", "class": class, "side": side, "cause": cause, "detail": detail, "hint": hint,
                "exit_code": exit_of(failure).code(),
            });
            writeln!(out, "{line}")
        }
    }
}

const AFTER_HELP: &str = "\
Start with:
  export SOURCE_SERVICE_URI='postgres://user:password@old.example.com/shop'
  export TARGET_SERVICE_URI='postgres://avnadmin:password@pg-xy.aivencloud.com:12345/shop'
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
  6  an error that may pass lasted too long";

async fn check(config: &Config) -> Result<Exit, Failure> {
    let report = migrate::check(&Sides::new(config)?, config.method).await?;
    let text = match config.output {
        Output::Text => report.render_table(terminal_width()),
        Output::Json | Output::Avn => {
            let json = serde_json::to_string_pretty(&report).map_err(|error| unexpected(&error))?;
            format!("{json}\n")
        }
    };
    print(&text)?;
    Ok(if report.failed() { Exit::Check } else { Exit::Fine })
}

async fn migrate(config: &Config, screen: &Screen) -> Result<Exit, Failure> {
    // A mistake in it is told before anything is begun.
    Sides::new(config)?;
    let stop = stop_on_signals("stopping after the batch at hand; once more to stop at once")?;
    observed(config, screen, async |status, metrics| {
        Migration::new(config, status, metrics, stop)?.run().await
    })
    .await
}

async fn show_status(config: &Config) -> Result<Exit, Failure> {
    config.target()?;
    let snapshot = migrate::status(&Sides::new(config)?).await?;
    let text = match config.output {
        Output::Text => status::text(&snapshot),
        Output::Json => format!("{:#}\n", status::json::full(&snapshot)),
        Output::Avn => format!("{:#}\n", status::json::avn(&snapshot)),
    };
    print(&text)?;
    Ok(Exit::Fine)
}

async fn remove(config: &Config) -> Result<Exit, Failure> {
    let dropped = migrate::remove(&Sides::new(config)?, config.force).await?;
    let lines: String = dropped.iter().map(|object| format!("dropped {object}\n")).collect();
    print(if lines.is_empty() { "nothing to drop\n" } else { &lines })?;
    Ok(Exit::Fine)
}

async fn tail(args: &TailArgs, config: &Config) -> Result<Exit, Failure> {
    let source = Sides::source(config)?;
    let stop = stop_on_signals("stopping")?;
    let line = |line: &str| {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush())
    };
    migrate::tail(&source, config.name.as_str(), &args.publication, stop, line).await?;
    Ok(Exit::Fine)
}

async fn show_demo(args: &DemoArgs, config: &Config) -> Result<Exit, Failure> {
    let options = ShowOptions {
        source_version: args.source_version,
        target_version: args.target_version,
        jobs: config.jobs,
        keep: args.keep,
    };
    let out = io::stdout();
    let columns = out.is_terminal().then(terminal_width);
    demo::show(
        &options,
        Stage::new(out, columns),
        stop_on_signals("stopping: servers and files are removed")?,
    )
    .await
}

/// Runs `work` while HTTP and the terminal show what it writes to its status.
async fn observed(
    config: &Config,
    screen: &Screen,
    work: impl AsyncFnOnce(StatusHandle, MetricsRegistry) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let status = StatusHandle::new(StatusSnapshot::new(config.name.as_str()));
    let metrics = MetricsRegistry::new().map_err(|error| unexpected(&error))?;
    let (ended, has_ended) = watch::channel(false);
    // The address is taken before any work is done, so that a mistake in it costs nothing.
    let server = match config.listen {
        None => None,
        Some(address) => {
            let server = HttpServer::bind(address).await?;
            tracing::info!(address = %server.address(), "status over http");
            let lag_bytes_max = config.lag_bytes_max;
            let observed = Observed { status: status.clone(), metrics: metrics.clone(), lag_bytes_max };
            Some(tokio::spawn(server.serve(observed, told(has_ended.clone()))))
        }
    };
    let terminal = tokio::spawn(status::show(screen.clone(), status.clone(), told(has_ended)));
    let result = work(status, metrics).await;
    ended.send_replace(true);
    // Neither can change how the work ended.
    let _ = terminal.await;
    if let Some(server) = server {
        let _ = server.await;
    }
    result
}

/// Completes when `signal` is true, or when nobody can make it true any more.
pub async fn told(mut signal: watch::Receiver<bool>) {
    let _ = signal.wait_for(|told| *told).await;
}

/// Becomes true with the first SIGINT or SIGTERM. The second one ends the process at once.
fn stop_on_signals(said: &'static str) -> Result<watch::Receiver<bool>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| unexpected(&error))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| unexpected(&error))?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !first {
                std::process::exit(i32::from(Exit::Unexpected.code()));
            }
            tracing::info!("{said}");
            stop.send_replace(true);
        }
    });
    Ok(stopped)
}

/// Columns of the terminal, or what a wide page has.
fn terminal_width() -> u16 {
    comfy_table::Table::new().width().unwrap_or(120)
}

/// Prints a result. Who closes the pipe early (`| head`) has read enough.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Definite::new("cannot write to standard output").detail(error.to_string()).into())
        }
        _ => Ok(()),
    }
}

fn unexpected(error: &dyn std::error::Error) -> Failure {
    Definite::new("unexpected failure").detail(error.to_string()).exit(Exit::Unexpected).into()
}

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
    use crate::error::{Side, Transient};

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
                    --until synced --max-lag 1MB --on-conflict stop --method replication --log-format json --verbose";
        let cli = read(line).expect("it is right");
        let config = Config::resolve(&cli.raw(Environment::default())).expect("it is right");
        assert_eq!(config.source().map(Secret::expose), Ok("host=a"));
        assert_eq!(config.target().map(Secret::expose), Ok("host=b"));
        assert_eq!((config.name.as_str(), config.jobs, config.listen), ("prod", 3, None));
        assert_eq!((config.confirm_delay.as_millis(), config.lag_bytes_max), (500, 1 << 20));
        assert_eq!(config.until, Some(crate::config::Until::Synced));
        assert_eq!(config.method, Some(crate::config::Method::Replication));
        assert_eq!((config.log_format, cli.log_format()), (LogFormat::Json, LogFormat::Json));
        assert!(config.verbose && !config.force);

        let cli = read("walferry remove --force").expect("it is right");
        assert!(cli.raw(Environment::default()).force);
        let cli = read("walferry status --avn").expect("it is right");
        let config = Config::resolve(&cli.raw(Environment::default())).expect("it is right");
        assert_eq!(config.output, Output::Avn);
    }

    #[test]
    fn the_demo_does_not_see_the_environment() {
        let environment = Environment { source: Some(Secret::new("host=prod")), target: None };
        let raw = read("walferry demo").expect("it is right").raw(environment);
        assert!(raw.environment.source.is_none());
    }

    #[tokio::test]
    async fn the_first_signal_asks_to_stop() {
        let stopped = stop_on_signals("stopping").expect("signals can be caught");
        assert!(!*stopped.borrow());
        let me = std::process::id().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &me]).status().expect("kill runs");
        assert!(sent.success());
        let in_time = std::time::Duration::from_secs(5);
        tokio::time::timeout(in_time, told(stopped)).await.expect("the signal arrives");
    }

    #[test]
    fn failures_for_people_and_programs() {
        let check = |failure: Failure, format, expected: &str| {
            let mut out = Vec::new();
            report(&failure, format, &mut out).expect("memory");
            assert_eq!(String::from_utf8_lossy(&out), expected);
        };
        let gone = || Definite::new("slot is gone").detail("slot walferry_x").hint("run walferry migrate");
        check(
            gone().into(),
            LogFormat::Text,
            "walferry: slot is gone\n  detail: slot walferry_x\n  hint: run walferry migrate\n",
        );
        check(
            gone().into(),
            LogFormat::Json,
            "{\"cause\":\"slot is gone\",\"class\":\"definite\",\"detail\":\"slot walferry_x\",\"exit_code\":5,\
             \"hint\":\"run walferry migrate\",\"level\":\"ERROR\",\"side\":null}\n",
        );
        let closed = || Transient::new(Side::Target, "connection closed");
        check(closed().into(), LogFormat::Text, "walferry: target: connection closed\n");
        check(
            closed().into(),
            LogFormat::Json,
            "{\"cause\":\"connection closed\",\"class\":\"transient\",\"detail\":\"\",\"exit_code\":6,\
             \"hint\":\"\",\"level\":\"ERROR\",\"side\":\"target\"}\n",
        );
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
