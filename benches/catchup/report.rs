//! What the bench says in the end.

use crate::Settings;
use crate::backlog::Backlog;
use crate::common::cpu;
use crate::common::figures::{Goal, NONE, Series, goals, ratio};
use crate::common::peers::Pgcopydb;
use crate::common::{Bench, Result};
use crate::contenders::{Contender, Kind};
use crate::round_trip::RoundTrip;

/// Tables that grow backlog by backlog.
pub struct Report {
    /// Whose versions are named.
    pub bench: Option<Bench>,
    figures: Vec<String>,
    goals: Vec<Goal>,
    limits: Vec<String>,
    text: String,
}

/// What walferry's time may be: so many times shorter than the subscription's, so many times the decoding's.
const GOALS: [(&str, f64, f64); 3] = [("a", 3.5, 2.0), ("b", 1.5, 1.3), ("c", 1.4, 2.2)];

impl Report {
    /// Empty.
    pub async fn new(settings: &Settings) -> Result<Self> {
        let pgcopydb = match Pgcopydb::program() {
            Some(program) => format!(
                "pgcopydb is version {}, with wal2json, in {} rounds; it looks for its own files every 10 s and has \
                 waits in its time",
                Pgcopydb::version(&program).await?,
                settings.peer_runs.min(settings.runs),
            ),
            None => "pgcopydb is not installed".to_owned(),
        };
        let text = format!(
            "Medians of {} rounds, interleaved; walferry's time has the start of its process in it. Processor time is \
             that of all processes of the server; autovacuum is off, and its work done between the rounds. Rows were equal before a time counted. {pgcopydb}. Scale {}, pgbench's \
             {}.",
            settings.runs, settings.scale, settings.pgbench_scale
        );
        let figures = [
            "| backlog | changes | contender | median | lowest–highest | changes a second | CPU source | CPU target | CPU own | peak memory |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ];
        let figures = figures.map(str::to_owned).to_vec();
        let limits = [
            "| backlog | walferry | the source sends all of it | all processor time, shared by the cores | times faster than the subscription at most |",
            "|---|---|---|---|---|",
        ];
        let limits = limits.map(str::to_owned).to_vec();
        Ok(Self { bench: None, figures, goals: Vec::new(), limits, text })
    }

    /// Adds a backlog's.
    pub fn add(
        &mut self,
        backlog: &Backlog,
        changes: u64,
        contenders: &[Contender],
        delayed: Option<&RoundTrip>,
    ) {
        self.figures.extend(contenders.iter().map(|contender| row(backlog, changes, contender)));
        if let Some(delayed) = delayed {
            for (name, series) in [("no delay", &delayed.direct), (delayed.name.as_str(), &delayed.delayed)] {
                let rate = series.median().map_or_else(|| NONE.to_owned(), |s| rate(changes, s));
                let (name, spread) = (format!("walferry running, {name}"), series.spread());
                self.figures.push(format!(
                    "| {} | {changes} | {name} | {} | {spread} | {rate} | | | | |",
                    backlog.name,
                    series.seconds()
                ));
            }
        }
        self.add_goals(backlog, contenders, delayed);
    }

    fn add_goals(&mut self, backlog: &Backlog, contenders: &[Contender], delayed: Option<&RoundTrip>) {
        let find = |wanted: fn(&Kind) -> bool| contenders.iter().filter(move |one| wanted(&one.kind));
        let of = |wanted| find(wanted).next().and_then(|one| one.seconds.median());
        let Some(walferry) = find(|kind| matches!(kind, Kind::Walferry)).next() else { return };
        let subscriptions = find(|kind| matches!(kind, Kind::Subscription(_)));
        let key = |one: &&Contender| one.seconds.median().unwrap_or(f64::INFINITY);
        let best = subscriptions.min_by(|one, other| key(one).total_cmp(&key(other)));
        let own = walferry.seconds.median();
        let name = backlog.name;
        if let Some((_, subscription, decoding)) = GOALS.iter().find(|goal| goal.0 == name) {
            let times = ratio(best.and_then(|best| best.seconds.median()), own);
            let what = best.map_or_else(String::new, |best| format!(" ({})", best.name));
            self.goals.push(Goal::at_least(
                format!("{name}: times faster than the best subscription{what}"),
                *subscription,
                times,
            ));
            let times = ratio(own, of(|kind| matches!(kind, Kind::Decoding)));
            self.goals.push(Goal::at_most(format!("{name}: times decoding alone"), *decoding, "", times));
            self.limits.push(limits(name, walferry, of(|kind| matches!(kind, Kind::Reading)), best));
        }
        let source = |one: &Contender| one.cpu[0].median();
        let times = ratio(source(walferry), best.and_then(source));
        self.goals.push(Goal::at_most(
            format!("{name}: times the subscription's CPU on the source"),
            1.1,
            "",
            times,
        ));
        let pgcopydb = find(|kind| matches!(kind, Kind::Pgcopydb(_))).next();
        let (ended, more_than) =
            (pgcopydb.and_then(|one| one.seconds.median()), pgcopydb.and_then(|one| one.more_than));
        let goal = Goal::at_least(
            format!("{name}: times faster than pgcopydb"),
            5.0,
            ratio(ended.or(more_than), own),
        );
        self.goals.push(goal.open(ended.is_none()));
        let share = walferry.share.median();
        self.goals.push(Goal::at_most(format!("{name}: the engine's share of all CPU"), 25.0, " %", share));
        let peak = (!walferry.peak.is_empty()).then(|| walferry.peak.max());
        self.goals.push(Goal::at_most(format!("{name}: peak memory"), 256.0, " MiB", peak));
        if let Some(delayed) = delayed {
            let cost =
                ratio(delayed.direct.median(), delayed.delayed.median()).map(|kept| (1.0 - kept) * 100.0);
            let what = format!("{name}: throughput lost with {}", delayed.name);
            self.goals.push(Goal::at_most(what, 20.0, " %", cost));
        }
    }

    /// Prints it and puts it into `RESULTS.md`.
    pub fn record(mut self) -> Result<()> {
        let bench = self.bench.take().ok_or("WALFERRY_BENCH_ONLY names no backlog")?;
        let mut lines = self.figures;
        lines.extend([String::new(), self.text]);
        lines.extend(goals(&self.goals));
        lines.push(String::new());
        lines.extend(self.limits);
        lines.extend([String::new(), LIMITS.to_owned()]);
        bench.record("catchup", "cargo bench --bench catchup", &lines)
    }
}

/// What no client can undercut here.
fn limits(backlog: &str, walferry: &Contender, sending: Option<f64>, best: Option<&Contender>) -> String {
    let (shared, _) = cpu::shared(&walferry.cpu);
    let times = ratio(best.and_then(|best| best.seconds.median()), sending);
    let shown = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| NONE.to_owned(), |value| format!("{value:.2}{unit}"))
    };
    format!(
        "| {backlog} | {} | {} | {} | {} |",
        walferry.seconds.seconds(),
        shown(sending, " s"),
        shown(shared, " s"),
        shown(times, "")
    )
}

const LIMITS: &str = "What bounds them here. A walsender makes system calls for each message (a send) and for each \
                      record of WAL (a recv), whoever reads, and encrypts each message by itself: that is what \
                      sending takes beyond decoding. Source, target and engine share this machine's cores: none of \
                      them can be done before their processor time is spent. Profiles of the walsender while \
                      walferry reads (perf, PostgreSQL 15): backlog a sends 28 %, recvs 9 %, reading WAL 5 %, \
                      PostgreSQL's own code 47 %; with TLS sends 24 %, recvs 7 %, encryption 26 %, PostgreSQL's own \
                      code 33 %. c: sends 21 %, recvs 16 %, own code 47 %; with TLS 17 %, 10 %, encryption 28 %, own \
                      code 35 %. b taken whole (3.5 s): sends 20 %, recvs 12 %, its file of the transaction's \
                      changes 38 %; taken in progress there is no such file (2.05 s).";

fn row(backlog: &Backlog, changes: u64, contender: &Contender) -> String {
    let head = format!("| {} | {changes} | {}", backlog.name, contender.name);
    if let (true, Some(why)) = (contender.seconds.is_empty(), &contender.trouble) {
        let why = why.replace('|', "/").replace('\n', " ");
        return format!("{head} | {why} | | | | | | |");
    }
    let rate = contender.seconds.median().map_or_else(|| NONE.to_owned(), |s| rate(changes, s));
    let [source, target, own] = &contender.cpu;
    let shown = |series: &Series, show: bool| if show { series.seconds() } else { NONE.to_owned() };
    let walferry = matches!(contender.kind, Kind::Walferry);
    let peak =
        if contender.peak.is_empty() { NONE.to_owned() } else { format!("{:.0} MiB", contender.peak.max()) };
    format!(
        "{head} | {} | {} | {rate} | {} | {} | {} | {peak} |",
        contender.seconds.seconds(),
        contender.seconds.spread(),
        source.seconds(),
        shown(target, !matches!(contender.kind, Kind::Decoding | Kind::Reading)),
        shown(own, walferry),
    )
}

fn rate(changes: u64, seconds: f64) -> String {
    format!("{:.0}", changes as f64 / seconds)
}
