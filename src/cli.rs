//! The command line: what can be typed ([`arguments`]), and what each command does with it.
//!
//! Only here and in `main` are the arguments and the environment read, signals caught, and standard output written.
//! Results go to standard output, all else to standard error. A password never reaches either: clap's own messages are
//! cleaned of what looks like a connection string.

mod arguments;

use std::env::{self, VarError};
use std::io::{self, Write};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Config, Environment, ListenAccess, LogFormat, Output, RawConfig, Secret};
use crate::error::{Definite, Exit, Failure};
use crate::migrate::{self, Cluster, CutoverRequest, DoneStep, Sides};
use crate::pg::{plain, plain_json, plain_lines, plain_under};
use crate::status::{
    self, Access, HttpServer, MetricsRegistry, Observed, Screen, StatusHandle, StatusSnapshot,
};

pub use arguments::{Cli, Command, Early};

#[cfg(feature = "demo")]
use arguments::DemoArgs;
use arguments::{ResyncArgs, TailArgs};

/// `raw` with what is in the configuration file that it names.
///
/// # Errors
/// A usage error where the file cannot be read.
pub fn with_file(mut raw: RawConfig) -> Result<RawConfig, Definite> {
    if let Some((path, text)) = &mut raw.file {
        let read = std::fs::read_to_string(&*path);
        let read = read.map_err(|error| {
            Definite::usage(format!("cannot read the configuration file {path}")).detail(error.to_string())
        })?;
        *text = Secret::new(read);
    }
    Ok(raw)
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
        Command::Cutover(_) => cutover(config).await,
        Command::Resync(args) => resync(args, config).await,
        Command::Remove(_) => remove(config).await,
        Command::Tail(args) => tail(args, config).await,
        #[cfg(feature = "demo")]
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
        LogFormat::Text => writeln!(out, "walferry: {}", for_people(failure)),
        LogFormat::Json => {
            let (class, side, cause, detail, hint) = match failure {
                Failure::Definite(it) => ("definite", None, &it.cause, &it.detail, it.hint.as_str()),
                Failure::Transient(it) => ("transient", Some(it.side.as_str()), &it.cause, &it.detail, ""),
            };
            let line = serde_json::json!({
                "level": "ERROR", "class": class, "side": side, "cause": cause, "detail": detail, "hint": hint,
                "exit_code": exit_of(failure).code(),
            });
            writeln!(out, "{}", plain_json(&line.to_string()))
        }
    }
}

/// As it would show itself, with what servers put into it set in, so that no line of theirs looks like one of ours.
fn for_people(failure: &Failure) -> String {
    let (side, cause, detail, hint) = match failure {
        Failure::Definite(it) => (String::new(), &it.cause, &it.detail, it.hint.as_str()),
        Failure::Transient(it) => (format!("{}: ", it.side), &it.cause, &it.detail, ""),
    };
    let mut text = format!("{side}{}", plain_under(cause, UNDER));
    for (label, said) in [("detail", detail.as_str()), ("hint", hint)] {
        if !said.is_empty() {
            text.push_str(&format!("\n  {label}: {}", plain_under(said, UNDER)));
        }
    }
    text
}

/// Deeper than our own labels are.
const UNDER: &str = "    ";

async fn check(config: &Config) -> Result<Exit, Failure> {
    let report = migrate::check(&Sides::new(config)?, config).await?;
    let text = match config.output {
        Output::Text => report.render_table(terminal_width()),
        Output::Json | Output::Avn => {
            let json = serde_json::to_string_pretty(&report).map_err(|error| unexpected(&error))?;
            plain_json(&format!("{json}\n")).into_owned()
        }
    };
    print(&text)?;
    Ok(if report.failed() { Exit::Check } else { Exit::Fine })
}

async fn migrate(config: &Config, screen: &Screen) -> Result<Exit, Failure> {
    // A mistake in it is told before anything is begun.
    Sides::new(config)?;
    let stop = stop_on_signals("stopping after the batch at hand; once more to stop at once")?;
    observed(config, screen, async |status, metrics| Cluster::new(config, status, metrics, stop)?.run().await)
        .await
}

async fn show_status(config: &Config) -> Result<Exit, Failure> {
    config.target()?;
    let snapshot = migrate::status(&Sides::new(config)?, &config.selection.databases).await?;
    let text = match config.output {
        Output::Text => status::text(&snapshot),
        Output::Json => plain_json(&format!("{:#}\n", status::json::full(&snapshot))).into_owned(),
        Output::Avn => plain_json(&format!("{:#}\n", status::json::avn(&snapshot))).into_owned(),
    };
    print(&text)?;
    Ok(Exit::Fine)
}

async fn cutover(config: &Config) -> Result<Exit, Failure> {
    let sides = Sides::new(config)?;
    let stop = stop_on_signals("giving up; once more to leave the engine to it")?;
    let json = config.output != Output::Text;
    let told = move |database: &str, step: &DoneStep| {
        // Who closes the pipe early still waits for the end.
        let line = format!("{}: {} ({:.2} s)\n", plain(database), step.step.as_str(), step.seconds);
        let _ = if json { Ok(()) } else { print(&line) };
    };
    let only = &config.selection.databases;
    let ended = migrate::cutover(&sides, only, &CutoverRequest::new(config), stop, Arc::new(told)).await?;
    if json {
        let databases = ended.iter().map(|(name, status)| status.shown(name)).collect::<Vec<_>>();
        print(&plain_json(&format!("{:#}\n", serde_json::json!({ "databases": databases }))))?;
    }
    for (database, warning) in ended.iter().flat_map(|(name, it)| it.warnings.iter().map(move |w| (name, w)))
    {
        tracing::warn!(database, "{warning}");
    }
    let several = ended.len() > 1;
    let mut failed = Vec::new();
    for (name, status) in ended {
        match status.error {
            Some(error) => failed.push((name, Definite::from(error))),
            None if json => {}
            None => {
                let lsn = status.source_lsn.unwrap_or_default();
                let fenced = status.fenced_seconds;
                let fenced = fenced.map(|s| format!(", {s:.2} s after it was fenced")).unwrap_or_default();
                print(&format!(
                    "{}: done: the target has all that was written to the source up to {lsn}{fenced}\n",
                    plain(&name)
                ))?;
            }
        }
    }
    match failed.len() {
        0 if json => Ok(Exit::Fine),
        0 => {
            print(
                "point the application at the target; when the old cluster is not needed any more: walferry remove\n",
            )?;
            Ok(Exit::Fine)
        }
        1 if !several => Err(failed.remove(0).1.into()),
        count => {
            let texts: Vec<_> =
                failed.iter().map(|(name, error)| format!("database {name:?}: {error}")).collect();
            let cause = format!("{count} databases were not cut over");
            Err(Definite::new(cause).detail(texts.join("\n  ")).exit(failed[0].1.exit).into())
        }
    }
}

async fn resync(args: &ResyncArgs, config: &Config) -> Result<Exit, Failure> {
    let tables = migrate::resync(&Sides::new(config)?, &config.selection.databases, &args.tables).await?;
    let line = |(database, table): &(String, crate::pg::QualifiedName)| {
        let table = table.to_string();
        format!("{} of database {database:?} is copied afresh by the next walferry migrate\n", plain(&table))
    };
    print(&tables.iter().map(line).collect::<String>())?;
    Ok(Exit::Fine)
}

async fn remove(config: &Config) -> Result<Exit, Failure> {
    let removed = migrate::remove(&Sides::new(config)?, &config.selection.databases, config.force).await?;
    let lines: String = removed.dropped.iter().map(|object| format!("dropped {}\n", plain(object))).collect();
    print(if lines.is_empty() && removed.ended.is_ok() { "nothing to drop\n" } else { &lines })?;
    removed.ended
}

async fn tail(args: &TailArgs, config: &Config) -> Result<Exit, Failure> {
    let source = Sides::source(config)?;
    let stop = stop_on_signals("stopping")?;
    let line = |line: &str| {
        let mut out = io::stdout().lock();
        out.write_all(plain_json(line).as_bytes()).and_then(|()| out.flush())
    };
    migrate::tail(&source, config.name.as_str(), &args.publication, stop, line).await?;
    Ok(Exit::Fine)
}

#[cfg(feature = "demo")]
async fn show_demo(args: &DemoArgs, config: &Config) -> Result<Exit, Failure> {
    use std::io::IsTerminal as _;

    use crate::demo::{self, ShowOptions, Stage};

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
            let ListenAccess { token_file, tls } = &config.listen_access;
            let tls = tls.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
            let access = Access::read(token_file.as_deref(), tls)?;
            let server = HttpServer::bind(address).await?.with_access(access);
            tracing::info!(address = %server.address(), "status over http");
            let lag_bytes_max = config.lag_bytes_max;
            let observed = Observed { status: status.clone(), metrics: metrics.clone(), lag_bytes_max };
            Some(tokio::spawn(server.serve(observed, signalled(has_ended.clone()))))
        }
    };
    let terminal = tokio::spawn(status::show(screen.clone(), status.clone(), signalled(has_ended)));
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
pub async fn signalled(mut signal: watch::Receiver<bool>) {
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
    match out.write_all(plain_lines(text).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Definite::new("cannot write to standard output").detail(error.to_string()).into())
        }
        _ => Ok(()),
    }
}

fn unexpected(error: &dyn std::error::Error) -> Failure {
    Definite::new("unexpected failure").detail(error.to_string()).exit(Exit::Unexpected).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Side, Transient};

    #[tokio::test]
    async fn the_first_signal_asks_to_stop() {
        let stopped = stop_on_signals("stopping").expect("signals can be caught");
        assert!(!*stopped.borrow());
        let me = std::process::id().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &me]).status().expect("kill runs");
        assert!(sent.success());
        let in_time = std::time::Duration::from_secs(5);
        tokio::time::timeout(in_time, signalled(stopped)).await.expect("the signal arrives");
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
            Definite::new("table a\nwalferry: done").detail("x\x1b]52;c;eA\x07\n  hint: run this").into(),
            LogFormat::Text,
            "walferry: table a\n    walferry: done\n  detail: x\\u{1b}]52;c;eA\\u{7}\n      hint: run this\n",
        );
        check(
            closed().into(),
            LogFormat::Json,
            "{\"cause\":\"connection closed\",\"class\":\"transient\",\"detail\":\"\",\"exit_code\":6,\
             \"hint\":\"\",\"level\":\"ERROR\",\"side\":\"target\"}\n",
        );
    }
}
