//! Figures of several runs, and goals.

/// One figure of several runs.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds a run's.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Whether there was no run.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one; of an even number the lower of the two in the middle. None without runs.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }

    /// The greatest; 0 without runs.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    /// `1.23 s`.
    pub fn seconds(&self) -> String {
        self.median().map_or_else(|| NONE.to_owned(), |median| format!("{median:.2} s"))
    }

    /// `1.10–1.40 s`.
    pub fn spread(&self) -> String {
        let min = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        if self.is_empty() { NONE.to_owned() } else { format!("{min:.2}–{:.2} s", self.max()) }
    }
}

/// A figure and how great it may be, or must be.
#[derive(Debug)]
pub struct Goal {
    what: String,
    reached: Option<f64>,
    limit: Limit,
    /// What it is more than: it was not measured to its end.
    open: bool,
}

#[derive(Debug)]
enum Limit {
    AtLeast(f64),
    AtMost(f64, &'static str),
}

/// Where there is nothing to show.
pub const NONE: &str = "–";

impl Goal {
    /// A ratio that must be so great.
    pub fn at_least(what: impl Into<String>, least: f64, reached: Option<f64>) -> Self {
        Self { what: what.into(), reached, limit: Limit::AtLeast(least), open: false }
    }

    /// A figure that may be so great, in this unit: `""` for a ratio.
    pub fn at_most(what: impl Into<String>, most: f64, unit: &'static str, reached: Option<f64>) -> Self {
        Self { what: what.into(), reached, limit: Limit::AtMost(most, unit), open: false }
    }

    /// The figure is one that the true one is greater than.
    #[must_use]
    pub fn open(self, open: bool) -> Self {
        Self { open, ..self }
    }

    fn row(&self) -> String {
        let (goal, unit, kept): (_, _, fn(f64, f64) -> bool) = match self.limit {
            Limit::AtLeast(least) => (format!("≥ {least}"), "", |reached, goal| reached >= goal),
            Limit::AtMost(most, unit) => (format!("≤ {most}{unit}"), unit, |reached, goal| reached <= goal),
        };
        let (Limit::AtLeast(number) | Limit::AtMost(number, _)) = self.limit;
        let (reached, verdict) = match self.reached {
            Some(reached) => {
                let more = if self.open { "> " } else { "" };
                (format!("{more}{reached:.2}{unit}"), if kept(reached, number) { "yes" } else { "no" })
            }
            None => (NONE.to_owned(), "not measured"),
        };
        format!("| {} | {goal} | {reached} | {verdict} |", self.what)
    }
}

/// The goals as a table.
pub fn goals(goals: &[Goal]) -> Vec<String> {
    let head = ["", "| what | goal | measured | reached |", "|---|---|---|---|"];
    head.into_iter().map(str::to_owned).chain(goals.iter().map(Goal::row)).collect()
}

/// `a / b`, where there are both.
pub fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?)
}
