//! Progress for whoever started the migration: bars on a terminal, a log line now and then elsewhere.
//!
//! What is shown is made of the snapshot by [`Progress`], which draws nothing and is told the time; [`show`] draws it.
//! Logs go through the same [`Screen`], so that a log line and a bar never share a line. Nothing here is waited for by
//! the migration.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing_subscriber::fmt::MakeWriter;

use super::snapshot::{DatabaseStatus, StatusHandle, StatusSnapshot, TableState, TableStatus};
use super::table::{lag, plain};
use super::{page, units};
use crate::limits::{
    PROGRESS_LOG_EVERY, RATE_WINDOW, TERMINAL_DATABASES_MAX, TERMINAL_REFRESH, TERMINAL_TABLES_MAX,
};
use crate::pg::QualifiedName;
use crate::store::Phase;

/// Standard error, shared by the bars and the log.
#[derive(Debug, Clone)]
pub struct Screen {
    bars: MultiProgress,
    draws: bool,
}

/// Writes log lines above the bars.
#[derive(Debug)]
pub struct ScreenWriter {
    bars: MultiProgress,
}

impl Screen {
    /// Standard error; with bars if `wanted` and it is a terminal.
    pub fn stderr(wanted: bool) -> Self {
        Self { bars: MultiProgress::new(), draws: wanted && io::stderr().is_terminal() }
    }

    /// Whether it draws bars.
    pub fn draws(&self) -> bool {
        self.draws
    }
}

impl MakeWriter<'_> for Screen {
    type Writer = ScreenWriter;

    fn make_writer(&self) -> ScreenWriter {
        ScreenWriter { bars: self.bars.clone() }
    }
}

impl Write for ScreenWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows the progress until `stop` completes.
pub async fn show(screen: Screen, status: StatusHandle, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    let mut timer = interval(if screen.draws { TERMINAL_REFRESH } else { PROGRESS_LOG_EVERY });
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, when there is nothing to show yet.
    timer.tick().await;
    let start = Instant::now();
    let mut progress = Progress::new();
    let mut drawn = Drawn { screen: screen.clone(), bars: Vec::new() };
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = timer.tick() => {}
        }
        let snapshot = status.snapshot();
        if screen.draws {
            drawn.draw(progress.lines(&snapshot, start.elapsed()));
        } else {
            snapshot.databases.iter().for_each(log);
        }
    }
    drawn.draw(Vec::new());
}

/// One line of the display.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Text(String),
    Bar { label: String, done: u64, of: u64, text: String },
}

/// Makes lines of snapshots; remembers what it needs for rates.
struct Progress {
    rates: Vec<(Measured, Rate)>,
    /// Each database's phase, and since when it is in it.
    phases: Vec<(String, Phase, Duration)>,
}

/// What grows: a database, or one of its tables.
type Measured = (String, Option<QualifiedName>);

/// How fast something has grown within the last moments.
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Duration, u64)>,
}

struct Drawn {
    screen: Screen,
    bars: Vec<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        Self { rates: Vec::new(), phases: Vec::new() }
    }

    /// How long the database has been in its phase, as far as we have seen.
    fn in_phase(&mut self, database: &DatabaseStatus, now: Duration) -> Duration {
        match self.phases.iter_mut().find(|(dbname, ..)| *dbname == database.dbname) {
            Some((_, phase, since)) if *phase == database.phase => now.saturating_sub(*since),
            Some((_, phase, since)) => {
                (*phase, *since) = (database.phase, now);
                Duration::ZERO
            }
            None => {
                self.phases.push((database.dbname.clone(), database.phase, now));
                Duration::ZERO
            }
        }
    }

    fn lines(&mut self, snapshot: &StatusSnapshot, now: Duration) -> Vec<Line> {
        let mut lines = Vec::new();
        for database in snapshot.databases.iter().take(TERMINAL_DATABASES_MAX) {
            let in_phase = self.in_phase(database, now);
            match database.phase {
                Phase::Copying => self.copy_lines(&mut lines, database, now),
                _ => lines.push(Line::Text(phase_line(database, in_phase))),
            }
            if !database.error.is_empty() {
                lines.push(Line::Text(format!("  {}", plain(&database.error))));
            }
        }
        if let Some(more @ 1..) = snapshot.databases.len().checked_sub(TERMINAL_DATABASES_MAX) {
            lines.push(Line::Text(format!("and {more} more databases: see walferry status")));
        }
        lines
    }

    fn copy_lines(&mut self, lines: &mut Vec<Line>, database: &DatabaseStatus, now: Duration) {
        let rows: u64 = database.tables.iter().map(|table| table.rows_copied).sum();
        let bytes: u64 = database.tables.iter().map(|table| table.bytes_copied).sum();
        let (done, of) = copied_share(database);
        let text = self.copied((database.dbname.clone(), None), now, (rows, bytes), (done, of));
        lines.push(Line::Bar { label: plain(&database.dbname), done, of, text });
        let running = database.tables.iter().filter(|table| table.state == TableState::Copying);
        let running: Vec<&TableStatus> = running.take(TERMINAL_TABLES_MAX).collect();
        // A table that is done has no rate.
        self.rates.retain(|((dbname, table), _)| {
            *dbname != database.dbname
                || table.as_ref().is_none_or(|name| running.iter().any(|table| table.name == *name))
        });
        for table in running {
            let (done, of) = page::progress(table);
            let measured = (database.dbname.clone(), Some(table.name.clone()));
            let text = self.copied(measured, now, (table.rows_copied, table.bytes_copied), (done, of));
            let label = format!("  {}", plain(&table.name.to_string()));
            lines.push(Line::Bar { label, done, of, text });
        }
    }

    /// How long it will take at this speed, how fast, bytes, rows: a narrow terminal cuts off what matters least.
    fn copied(
        &mut self,
        measured: Measured,
        now: Duration,
        (rows, bytes): (u64, u64),
        (done, of): (u64, u64),
    ) -> String {
        let rate = self.rate(measured);
        rate.add(now, bytes);
        let per_second = rate.per_second();
        let left =
            time_left(bytes, done, of, per_second).map(|left| format!("{} left", units::seconds(left)));
        let speed = (per_second > 0).then(|| format!("{}/s", units::bytes(per_second)));
        let copied = [units::bytes(bytes), format!("{} rows", units::count(rows))];
        left.into_iter().chain(speed).chain(copied).collect::<Vec<_>>().join(", ")
    }

    fn rate(&mut self, measured: Measured) -> &mut Rate {
        let found = self.rates.iter().position(|(known, _)| *known == measured);
        let index = found.unwrap_or_else(|| {
            self.rates.push((measured, Rate::default()));
            self.rates.len() - 1
        });
        &mut self.rates[index].1
    }
}

impl Rate {
    fn add(&mut self, now: Duration, total: u64) {
        // A table that is copied afresh takes its bytes back.
        if self.samples.back().is_some_and(|(_, before)| *before > total) {
            self.samples.clear();
        }
        self.samples.push_back((now, total));
        while self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    fn per_second(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back()) else {
            return 0;
        };
        let seconds = to.saturating_sub(*from).as_secs_f64();
        if seconds > 0.0 { ((after - before) as f64 / seconds) as u64 } else { 0 }
    }
}

impl Drawn {
    fn draw(&mut self, mut lines: Vec<Line>) {
        // What the terminal echoes (^C) comes a line below, and as much of the top is not cleared then: an empty line.
        if !lines.is_empty() {
            lines.insert(0, Line::Text(String::new()));
        }
        for gone in self.bars.drain(lines.len().min(self.bars.len())..) {
            gone.finish_and_clear();
            self.screen.bars.remove(&gone);
        }
        while self.bars.len() < lines.len() {
            self.bars.push(self.screen.bars.add(ProgressBar::no_length()));
        }
        for (bar, line) in self.bars.iter().zip(lines) {
            match line {
                Line::Text(text) => {
                    bar.set_style(style("{wide_msg}"));
                    bar.set_message(text);
                }
                Line::Bar { label, done, of, text } => {
                    bar.set_style(style(BAR));
                    bar.set_prefix(label);
                    bar.set_length(of);
                    bar.set_position(done);
                    bar.set_message(text);
                }
            }
            bar.tick();
        }
    }
}

const BAR: &str = "{prefix:24!} [{bar:16}] {percent:>3}% {wide_msg}";

fn style(template: &'static str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    // The templates are fixed and tested; the plain style is there instead of a panic.
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

fn phase_line(database: &DatabaseStatus, in_phase: Duration) -> String {
    let name = plain(&database.dbname);
    let phase = database.phase;
    match phase {
        Phase::CatchingUp | Phase::Syncing | Phase::CuttingOver => {
            let applied = units::count(database.transactions_applied);
            let transactions =
                if database.transactions_applied == 1 { "transaction" } else { "transactions" };
            format!("{name}: {phase}, lag {}, {applied} {transactions} applied", lag(database))
        }
        Phase::Schema | Phase::Indexing => {
            format!("{name}: {phase}, for {}", units::seconds(in_phase.as_secs_f64()))
        }
        _ => format!("{name}: {phase}"),
    }
}

/// How much of a database is copied, of how much, in bytes of the source's disk.
fn copied_share(database: &DatabaseStatus) -> (u64, u64) {
    let mut done = 0;
    let mut of = 0_u64;
    for table in &database.tables {
        // An empty table is work, too.
        let weight = table.bytes_estimated.max(8192);
        let (part, whole) = page::progress(table);
        of = of.saturating_add(weight);
        done += (weight as f64 * (part as f64 / whole as f64)) as u64;
    }
    (done.min(of), of)
}

/// Seconds left, if what is left goes as fast as what was done in the last moments.
fn time_left(bytes: u64, done: u64, of: u64, per_second: u64) -> Option<f64> {
    if bytes == 0 || done == 0 || per_second == 0 {
        return None;
    }
    let bytes_in_all = bytes as f64 * (of as f64 / done as f64);
    Some((bytes_in_all - bytes as f64).max(0.0) / per_second as f64)
}

fn log(database: &DatabaseStatus) {
    let dbname = database.dbname.as_str();
    let phase = database.phase.as_str();
    match database.phase {
        Phase::Copying => {
            let rows: u64 = database.tables.iter().map(|table| table.rows_copied).sum();
            let bytes: u64 = database.tables.iter().map(|table| table.bytes_copied).sum();
            let finished = |state| matches!(state, TableState::Copied | TableState::Streaming);
            let tables_copied = database.tables.iter().filter(|table| finished(table.state)).count();
            let tables = database.tables.len();
            tracing::info!(database = dbname, phase, tables_copied, tables, rows, bytes, "progress");
        }
        _ => {
            let (lag_bytes, lag_seconds) = (database.lag_bytes, database.lag_seconds);
            let transactions = database.transactions_applied;
            tracing::info!(database = dbname, phase, lag_bytes, lag_seconds, transactions, "progress");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copying(tables: &[(TableState, u64, u64)]) -> StatusSnapshot {
        let mut snapshot = StatusSnapshot::new("default");
        let database = snapshot.database_mut("shop");
        database.phase = Phase::Copying;
        for (index, (state, rows, bytes)) in tables.iter().enumerate() {
            let mut table =
                TableStatus::new(QualifiedName::new("public", format!("t{index}")), Some(100), 1 << 20);
            table.state = *state;
            table.rows_copied = *rows;
            table.bytes_copied = *bytes;
            database.tables.push(table);
        }
        snapshot
    }

    #[test]
    fn copy_has_a_total_and_the_running_tables() {
        let mut progress = Progress::new();
        let mut snapshot = copying(&[
            (TableState::Copied, 100, 1 << 20),
            (TableState::Copying, 0, 0),
            (TableState::Waiting, 0, 0),
        ]);
        progress.lines(&snapshot, Duration::from_secs(0));
        snapshot.databases[0].tables[1].rows_copied = 50;
        snapshot.databases[0].tables[1].bytes_copied = 1 << 19;
        let lines = progress.lines(&snapshot, Duration::from_secs(2));
        let expected = [
            Line::Bar {
                label: "shop".to_owned(),
                done: (1 << 20) + (1 << 19),
                of: 3 << 20,
                text: "6.0 s left, 256.0 kB/s, 1.5 MB, 150 rows".to_owned(),
            },
            Line::Bar {
                label: "  public.t1".to_owned(),
                done: 50,
                of: 100,
                text: "2.0 s left, 256.0 kB/s, 512.0 kB, 50 rows".to_owned(),
            },
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn lines_are_bounded() {
        let mut snapshot = copying(&vec![(TableState::Copying, 1, 1); 1000]);
        for index in 0..100 {
            snapshot.database_mut(&format!("db{index}")).error = "target: connection closed".to_owned();
        }
        let lines = Progress::new().lines(&snapshot, Duration::ZERO);
        assert_eq!(lines.len(), 1 + TERMINAL_TABLES_MAX + 2 * (TERMINAL_DATABASES_MAX - 1) + 1);
        let more = format!("and {} more databases: see walferry status", 101 - TERMINAL_DATABASES_MAX);
        assert_eq!(lines.last(), Some(&Line::Text(more)));
    }

    #[test]
    fn a_phase_is_one_line() {
        let check = |phase, expected: &str| {
            let mut snapshot = StatusSnapshot::new("default");
            let database = snapshot.database_mut("sh\nop");
            database.phase = phase;
            database.lag_bytes = Some(1024);
            database.lag_seconds = Some(0.5);
            database.transactions_applied = 1234;
            let lines = Progress::new().lines(&snapshot, Duration::ZERO);
            assert_eq!(lines, [Line::Text(expected.to_owned())]);
        };
        check(Phase::Checking, "sh\\nop: checking");
        check(Phase::Syncing, "sh\\nop: syncing, lag 1.0 kB, 0.5 s, 1,234 transactions applied");
        check(Phase::Done, "sh\\nop: done");
        check(Phase::Indexing, "sh\\nop: indexing, for 0.0 s");
    }

    #[test]
    fn a_phase_has_its_time() {
        let mut progress = Progress::new();
        let mut check = |phase, at: u64, expected: &str| {
            let mut snapshot = StatusSnapshot::new("default");
            snapshot.database_mut("shop").phase = phase;
            let lines = progress.lines(&snapshot, Duration::from_secs(at));
            assert_eq!(lines, [Line::Text(expected.to_owned())]);
        };
        check(Phase::Schema, 5, "shop: schema, for 0.0 s");
        check(Phase::Schema, 7, "shop: schema, for 2.0 s");
        check(Phase::Indexing, 8, "shop: indexing, for 0.0 s");
        check(Phase::Indexing, 208, "shop: indexing, for 3m 20s");
    }

    #[test]
    fn rates_forget() {
        let mut rate = Rate::default();
        let check = |rate: &mut Rate, at: u64, total: u64, expected: u64| {
            rate.add(Duration::from_secs(at), total);
            assert_eq!(rate.per_second(), expected, "at {at}");
        };
        check(&mut rate, 0, 0, 0);
        check(&mut rate, 1, 100, 100);
        check(&mut rate, 5, 500, 100);
        check(&mut rate, 100, 500, 0);
        check(&mut rate, 101, 700, 200);
        check(&mut rate, 102, 10, 0);
    }

    #[test]
    fn templates_are_valid() {
        for template in ["{wide_msg}", BAR] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[tokio::test]
    async fn ends_when_told() {
        let status = StatusHandle::new(copying(&[(TableState::Copying, 1, 1)]));
        for draws in [true, false] {
            let screen = Screen { bars: MultiProgress::new(), draws };
            show(screen, status.clone(), tokio::time::sleep(Duration::from_millis(300))).await;
        }
    }
}
