//! What the demo measures, as it is told while it runs and at its end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::engine::Progress;
use crate::demo::{Comparison, WriterCounts};
use crate::error::Exit;
use crate::limits::DEMO_RATE_WINDOW;
use crate::status::units;

/// Everything that is measured.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Whose servers these are.
    pub versions: String,
    /// How long each part took.
    pub parts: Vec<(&'static str, Duration)>,
    /// From the restart after the kill to the point where the source was then.
    pub caught_up: Duration,
    /// What the source's writers did, and how long they had.
    pub writers: WriterCounts,
    pub written_for: Duration,
    /// What was applied while following.
    pub applied: Rate,
    /// The part of the show that is on.
    pub part: Part,
    lags: [Lag; 3],
    /// The engine's peak, where the system tells.
    pub memory_max: Option<u64>,
}

/// Parts of the show that are behind for reasons of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Part {
    /// What happened during the copy has to be applied.
    #[default]
    AfterCopy,
    /// Nothing but the stream.
    InSync,
    /// What happened while there was no engine has to be applied.
    AfterKill,
}

/// The greatest lag that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Lag {
    bytes: u64,
    seconds: f64,
}

/// How fast a count grows: now, and at most.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: VecDeque<(Instant, u64)>,
    max: u64,
}

impl Figures {
    /// Takes what the engine says into account.
    pub fn observe(&mut self, progress: &Progress, memory: Option<u64>, now: Instant) {
        self.memory_max = self.memory_max.max(memory);
        if !follows(progress) {
            return;
        }
        let lag = &mut self.lags[self.part as usize];
        lag.bytes = lag.bytes.max(progress.lag_bytes.unwrap_or(0));
        lag.seconds = lag.seconds.max(progress.lag_seconds.unwrap_or(0.0));
        self.applied.add(now, progress.transactions_applied);
    }

    /// Where the engine is, in one line.
    pub fn line(&self, progress: &Progress) -> String {
        let mut line = match progress.phase.as_str() {
            "copying" => copy_line(progress),
            phase if follows(progress) => {
                let bytes = progress.lag_bytes.map_or_else(|| "unknown".to_owned(), units::bytes);
                let seconds = progress.lag_seconds.map_or_else(String::new, |it| format!(", {it:.1} s"));
                let rate = units::count(self.applied.per_second());
                let applied = units::count(progress.transactions_applied);
                format!("{phase}: lag {bytes}{seconds}; {rate} transactions/s, {applied} applied")
            }
            phase => phase.to_owned(),
        };
        if !progress.error.is_empty() {
            line.push_str(&format!(" ({})", progress.error));
        }
        line
    }

    /// The figures, for people.
    pub fn text(&self, comparison: &Comparison) -> String {
        let writers = &self.writers;
        let per_second = writers.transactions() as f64 / self.written_for.as_secs_f64().max(0.1);
        let parts: Vec<_> =
            self.parts.iter().map(|(name, took)| format!("{name} {:.1} s", took.as_secs_f64())).collect();
        let lag = |part: Part| {
            let Lag { bytes, seconds } = self.lags[part as usize];
            format!("{}, {seconds:.1} s", units::bytes(bytes))
        };
        let shop: u64 = writers.shop.values().sum();
        let mut lines = vec![
            ("compared", format!("{} rows, every column", units::count(comparison.rows_source()))),
            ("sequences", comparison.sequences.len().to_string()),
            (
                "written",
                format!(
                    "{} transactions during the migration (shop {}, pgbench {}), {per_second:.0}/s",
                    units::count(writers.transactions()),
                    units::count(shop),
                    units::count(writers.pgbench)
                ),
            ),
            ("applied", format!("up to {} transactions/s", units::count(self.applied.max))),
            ("greatest lag", format!("{} while in sync", lag(Part::InSync))),
            ("", format!("{} after the copy; {} after the kill", lag(Part::AfterCopy), lag(Part::AfterKill))),
            ("after kill", format!("caught up in {:.1} s", self.caught_up.as_secs_f64())),
            ("times", parts.join(", ")),
            ("versions", format!("walferry {}, {}", env!("CARGO_PKG_VERSION"), self.versions)),
        ];
        if let Some(memory) = self.memory_max {
            lines.push(("engine memory", format!("{} at its peak", units::bytes(memory))));
        }
        if writers.errors > 0 {
            let last = writers.last_error.as_deref().unwrap_or_default();
            lines.push(("refused", format!("{} transactions, by the source: {last}", writers.errors)));
        }
        lines.iter().map(|(name, value)| format!("\n  {name:<14}{value}")).collect()
    }
}

impl Rate {
    fn add(&mut self, now: Instant, total: u64) {
        // An engine that was started again counts from 0.
        if self.samples.back().is_some_and(|(_, before)| *before > total) {
            self.samples.clear();
        }
        self.samples.push_back((now, total));
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > DEMO_RATE_WINDOW) {
            self.samples.pop_front();
        }
        self.max = self.max.max(self.per_second());
    }

    fn per_second(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back()) else {
            return 0;
        };
        let seconds = to.duration_since(*from).as_secs_f64();
        // Over a moment a rate is chance.
        if seconds * 2.0 >= DEMO_RATE_WINDOW.as_secs_f64() {
            ((after - before) as f64 / seconds) as u64
        } else {
            0
        }
    }
}

/// The last word.
pub(super) fn verdict(comparison: &Comparison) -> (Exit, String) {
    if comparison.equal() {
        let rows = units::count(comparison.rows_source());
        return (
            Exit::Fine,
            format!("equal: {} tables, {rows} rows, 0 differences", comparison.tables.len()),
        );
    }
    (Exit::Differs, format!("different: {comparison}"))
}

fn follows(progress: &Progress) -> bool {
    matches!(progress.phase.as_str(), "catching_up" | "syncing")
}

fn copy_line(progress: &Progress) -> String {
    let tables = &progress.tables;
    let copied = tables.iter().filter(|table| matches!(table.state.as_str(), "copied" | "streaming")).count();
    let rows = units::count(tables.iter().map(|table| table.rows_copied).sum());
    let bytes = units::bytes(tables.iter().map(|table| table.bytes_copied).sum());
    format!("copying: {copied} of {} tables, {rows} rows, {bytes}", tables.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::TableComparison;
    use crate::demo::show::engine::TableProgress;
    use crate::pg::QualifiedName;

    fn following(transactions_applied: u64, lag_bytes: u64) -> Progress {
        Progress {
            phase: "syncing".to_owned(),
            transactions_applied,
            lag_bytes: Some(lag_bytes),
            lag_seconds: Some(0.25),
            ..Progress::default()
        }
    }

    #[test]
    fn lines() {
        let mut figures = Figures::default();
        let start = Instant::now();
        for (second, applied, lag) in [(0, 100, 2048), (1, 1100, 4096), (2, 2100, 1024), (3, 5, 0)] {
            let now = start + Duration::from_secs(second);
            figures.observe(&following(applied, lag), Some(second), now);
        }
        assert_eq!((figures.lags[0].bytes, figures.memory_max, figures.applied.max), (4096, Some(3), 1000));
        let line = figures.line(&following(5, 1024));
        assert_eq!(line, "syncing: lag 1.0 kB, 0.2 s; 0 transactions/s, 5 applied");

        let table = |state: &str, rows_copied| TableProgress {
            state: state.to_owned(),
            rows_copied,
            bytes_copied: 1024,
        };
        let tables = vec![table("copied", 1000), table("copying", 500), table("waiting", 0)];
        let progress = Progress { phase: "copying".to_owned(), tables, ..Progress::default() };
        assert_eq!(figures.line(&progress), "copying: 1 of 3 tables, 1,500 rows, 3.0 kB");
    }

    #[test]
    fn verdicts() {
        let mut comparison = Comparison::default();
        comparison.tables.push(TableComparison {
            name: QualifiedName::new("shop", "customer"),
            rows_source: Some(1234),
            rows_target: Some(1234),
            only_source: 0,
            only_target: 0,
            first_difference: None,
        });
        let equal = (Exit::Fine, "equal: 1 tables, 1,234 rows, 0 differences".to_owned());
        assert_eq!(verdict(&comparison), equal);
        comparison.tables[0].only_target = 1;
        comparison.tables[0].first_difference = Some("first on the target alone: (1)".to_owned());
        let (exit, text) = verdict(&comparison);
        assert_eq!(exit, Exit::Differs);
        assert!(text.contains("shop.customer: 0 rows on the source alone, 1 on the target alone"), "{text}");
    }
}
