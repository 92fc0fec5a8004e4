//! The `walferry` command.

use std::fmt::{Debug, Write as _};
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;

use anyhow::Context;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use walferry::cli::{self, Cli};
use walferry::config::{Config, LogFormat};
use walferry::error::{Definite, Exit, Failure};
use walferry::pg::{Plain, plain_json};
use walferry::status::Screen;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(early) => {
            // Where there is nowhere to write to, there is nobody to tell.
            let _ = match early.exit {
                Exit::Fine => io::stdout().write_all(early.text.as_bytes()),
                _ => io::stderr().write_all(early.text.as_bytes()),
            };
            return ExitCode::from(early.exit.code());
        }
    };
    let format = cli.log_format();
    panic::set_hook(Box::new(move |info| report_panic(info, format)));
    let exit = match panic::catch_unwind(AssertUnwindSafe(|| start(&cli))) {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => report(&error, format),
        // The hook has said where.
        Err(_) => Exit::Unexpected,
    };
    ExitCode::from(exit.code())
}

fn start(cli: &Cli) -> anyhow::Result<Exit> {
    let environment = cli::environment().map_err(Failure::from)?;
    let raw = cli::with_file(cli.raw(environment)).map_err(Failure::from)?;
    let config = Config::resolve(&raw).map_err(Failure::from)?;
    let screen = Screen::stderr(config.log_format == LogFormat::Text);
    start_logging(&config, &screen)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(cli::run(&cli.command, &config, &screen));
    // A task that is stuck in a system call must not keep the process.
    runtime.shutdown_background();
    Ok(result?)
}

fn start_logging(config: &Config, screen: &Screen) -> anyhow::Result<()> {
    let filter = log_filter(std::env::var("RUST_LOG").ok().as_deref(), config.verbose)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(screen.clone());
    let started = match config.log_format {
        LogFormat::Text => {
            lines.fmt_fields(plain_fields()).with_target(false).with_ansi(screen.draws()).try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_writer(JsonLines(screen.clone())).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Message and fields, each in one line and with nothing in it that acts on a terminal: servers and their users have a say
/// in them.
fn plain_fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        let mut plain = Plain(writer);
        match field.name() {
            "message" => write!(plain, "{value:?}"),
            // Of libraries that log another way.
            name if name.starts_with("log.") => Ok(()),
            name => write!(plain, "{name}={value:?}"),
        }
    })
    .delimited(" ")
}

/// The same for JSON, whose own escapes leave some of these characters as they are.
struct JsonLines<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for JsonLines<W> {
    type Writer = JsonLines<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonLines(self.0.make_writer())
    }
}

impl<W: Write> Write for JsonLines<W> {
    /// A line comes as a whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(plain_json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What is logged: as `RUST_LOG` says where it says something, but for tokio-postgres. Below `info` that logs statements with
/// their parameters, which may be rows, and a directive for one of its modules would win over one for all of it.
fn log_filter(wanted: Option<&str>, verbose: bool) -> anyhow::Result<EnvFilter> {
    let default = if verbose { "warn,walferry=debug" } else { "warn,walferry=info" };
    let wanted: Vec<&str> = wanted.unwrap_or_default().split(',').map(str::trim).collect();
    let wanted: Vec<&str> = wanted
        .into_iter()
        .filter(|directive| !directive.is_empty() && !directive.starts_with("tokio_postgres"))
        .collect();
    let wanted = if wanted.is_empty() { default.to_owned() } else { wanted.join(",") };
    let filter = EnvFilter::try_new(wanted)
        .map_err(|error| Failure::from(Definite::usage("invalid RUST_LOG").detail(error.to_string())))?;
    Ok(filter.add_directive("tokio_postgres=info".parse()?))
}

fn report(error: &anyhow::Error, format: LogFormat) -> Exit {
    let unexpected = || {
        let cause = Definite::new("unexpected failure").detail(format!("{error:#}"));
        Failure::from(cause.exit(Exit::Unexpected))
    };
    let failure = error.downcast_ref::<Failure>().cloned().unwrap_or_else(unexpected);
    // Where there is nowhere to write to, the exit code still tells.
    let _ = cli::report(&failure, format, &mut io::stderr().lock());
    cli::exit_of(&failure)
}

/// Says where, and not what: a panic's message may hold what a server sent.
fn report_panic(info: &PanicHookInfo<'_>, format: LogFormat) {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let failure = Definite::new(format!("internal error at {place}"))
        .hint("report this with the version; run the same command again, it goes on where it was")
        .exit(Exit::Unexpected);
    let _ = cli::report(&failure.into(), format, &mut io::stderr().lock());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_have_statements_logged() {
        let check = |wanted: Option<&str>, expected: &[&str]| {
            let filter = log_filter(wanted, false).expect("a filter").to_string();
            let mut found: Vec<&str> = filter.split(',').collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{wanted:?}");
        };
        let default = ["tokio_postgres=info", "walferry=info", "warn"];
        check(None, &default);
        check(Some(" "), &default);
        check(Some("tokio_postgres=trace"), &default);
        check(Some("tokio_postgres::prepare=trace, tokio_postgres::query=debug"), &default);
        check(Some("trace"), &["tokio_postgres=info", "trace"]);
        check(Some("warn,tokio_postgres::query[q{a=1}]=trace"), &["tokio_postgres=info", "warn"]);
        assert!(log_filter(Some("walferry=loud"), false).is_err());
    }

    #[test]
    fn lines_of_json_do_not_act() {
        let mut out = Vec::new();
        JsonLines(&mut out).write_all("{\"name\":\"a\u{9b}31m\u{202e}\"}\n".as_bytes()).expect("memory");
        assert_eq!(String::from_utf8_lossy(&out), "{\"name\":\"a\\u009b31m\\u202e\"}\n");
    }
}
