//! The `demo` command: a whole migration between two servers of its own, in about a minute.
//!
//! A shop and pgbench's bank are loaded, writers keep both busy, the engine copies and follows, is killed with SIGKILL
//! in the middle of a burst, started again, and goes on from its position; then the writers stop, and every row of
//! both sides is compared. Each wait is for a condition, within a bound. However it ends (an error, a signal, SIGKILL
//! too), servers, engine and files go.

mod engine;
mod figures;
mod stage;
mod workspace;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use engine::{Engine, Progress};
use figures::{Figures, Part, verdict};
pub use stage::Stage;

use super::{
    ClusterOptions, DemoError, PgBinaries, Result, SourceAndTarget, StopMode, WriterCounts, WriterOptions,
    Writers, compare_servers, load_pgbench, load_shop,
};
use crate::error::{Definite, Exit, Failure};
use crate::limits::{DEMO_BURST_FOR, DEMO_KILL_AFTER, DEMO_LOOK_INTERVAL, DEMO_STEP_TIMEOUT, DEMO_SYNC_FOR};
use crate::pg::SourceLsn;
use crate::status::units;

/// What can be chosen.
#[derive(Debug, Clone)]
pub struct ShowOptions {
    /// The source's major version; none: what there is.
    pub source_version: Option<u32>,
    /// The target's.
    pub target_version: Option<u32>,
    /// Tables copied at the same time.
    pub jobs: usize,
    /// Leave the servers up until told to stop.
    pub keep: bool,
}

/// Shows everything, until it is over or `stop` becomes true.
///
/// # Errors
/// When something does not work as it should, or it was interrupted.
pub async fn show(
    options: &ShowOptions,
    mut stage: Stage,
    stop: watch::Receiver<bool>,
) -> Result<Exit, Failure> {
    let mut interrupted = stop.clone();
    let performed = tokio::select! {
        // With --keep both end at the same time.
        biased;
        performed = perform(options, &mut stage, stop) => performed.map_err(Failure::from),
        _ = interrupted.wait_for(|stop| *stop) => {
            Err(Definite::new("interrupted before the end").exit(Exit::Unexpected).into())
        }
    };
    stage.step("servers stopped, files removed");
    performed
}

/// Where the shop and the bank are.
const DATABASE: &str = "shop";

/// 100,000 accounts each.
const PGBENCH_SCALE: u32 = 3;

/// What goes on all the time.
fn steady() -> WriterOptions {
    WriterOptions { shop_rate: 80, pgbench_clients: 2, pgbench_rate: 120, ..WriterOptions::default() }
}

/// What comes on top of it when the engine is killed.
fn burst() -> WriterOptions {
    WriterOptions { shop_rate: 200, pgbench_clients: 4, pgbench_rate: 2_000, ..WriterOptions::default() }
}

/// The migration under way.
struct Performance<'a> {
    stage: &'a mut Stage,
    engine: Engine,
    cluster: SourceAndTarget,
    figures: Figures,
    phase: String,
}

async fn perform(options: &ShowOptions, stage: &mut Stage, stop: watch::Receiver<bool>) -> Result<Exit> {
    let mut show = prepare(options, stage).await?;
    let begun = Instant::now();
    let writers = Writers::start(&show.cluster.source, DATABASE, steady()).await?;
    show.stage.step("writers started: orders, payments, transfers, a few hundred transactions a second");
    show.check().await?;
    show.copy().await?;
    show.sync().await?;
    let more = show.kill_in_a_burst(&writers).await?;
    show.follow_for(DEMO_SYNC_FOR / 2).await?;
    show.figures.writers = sum(writers.stop().await, more);
    show.figures.written_for = begun.elapsed();
    show.drain().await?;
    let exit = show.compare().await?;
    if options.keep {
        show.keep(stop).await;
        return Ok(exit);
    }
    show.remove().await?;
    show.end().await?;
    Ok(exit)
}

/// Two servers, the source full.
async fn prepare<'a>(options: &ShowOptions, stage: &'a mut Stage) -> Result<Performance<'a>> {
    let mut figures = Figures::default();
    let started = Instant::now();
    // What only one side is told holds for the other, too.
    let (source, target) = match (options.source_version, options.target_version) {
        (source, target @ Some(_)) => (source.or(target), target),
        (source, None) => (source, source),
    };
    let (source, target) = (PgBinaries::find(source).await?, PgBinaries::find(target).await?);
    figures.versions = format!("PostgreSQL {} to {}", source.version(), target.version());
    let mut cluster = ClusterOptions::new(source, target);
    cluster.databases = vec![DATABASE.to_owned()];
    stage.line("starting two servers");
    let cluster = SourceAndTarget::start(cluster).await?;
    stage.step(&format!("{}: two servers, TLS, SCRAM, no superuser on either side", figures.versions));
    figures.parts.push(("servers", started.elapsed()));

    let started = Instant::now();
    stage.line("loading");
    tokio::try_join!(
        load_shop(&cluster.source, DATABASE),
        load_pgbench(&cluster.source, DATABASE, PGBENCH_SCALE)
    )?;
    stage.step(&format!("loaded the source: a shop, and pgbench with {PGBENCH_SCALE}00,000 accounts"));
    figures.parts.push(("load", started.elapsed()));
    let (source, target) = (cluster.source_uri(DATABASE), cluster.target_uri(DATABASE));
    let engine = Engine::new(cluster.source.binaries(), source, target, options.jobs)?;
    Ok(Performance { stage, engine, cluster, figures, phase: String::new() })
}

impl Performance<'_> {
    /// `walferry check`, in one line.
    async fn check(&mut self) -> Result<()> {
        let started = Instant::now();
        self.stage.line("walferry check");
        let output = self.engine.run(&["check", "--json"]).await?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let findings = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !output.status.success() {
            let failed = findings.iter().filter(|finding| finding["severity"] == "fail");
            let failed: Vec<_> = failed.map(ToString::to_string).collect();
            let log = format!("{}\n{}", failed.join("\n"), String::from_utf8_lossy(&output.stderr));
            let what = format!("walferry check: {}", output.status);
            return Err(DemoError::Engine { what, log: log.trim().to_owned() });
        }
        let count = |severity: &str| findings.iter().filter(|it| it["severity"] == severity).count();
        let (all, warnings) = (findings.len(), count("warning"));
        self.stage.step(&format!("walferry check: of {all} findings {warnings} to look at, none in the way"));
        self.figures.parts.push(("check", started.elapsed()));
        Ok(())
    }

    /// `walferry migrate`, until it follows.
    async fn copy(&mut self) -> Result<()> {
        let started = Instant::now();
        self.engine.start()?;
        let page = self.engine.address();
        self.stage.step(&format!("walferry migrate: started, status at http://{page}/"));
        self.follow("the copy", |progress| progress.phase == "syncing").await?;
        self.figures.parts.push(("copy and catch up", started.elapsed()));
        self.figures.part = Part::InSync;
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        self.follow_for(DEMO_SYNC_FOR).await
    }

    /// SIGKILL while the source is busiest; then a new engine, until it is where the source was when it started.
    async fn kill_in_a_burst(&mut self, writers: &Writers) -> Result<WriterCounts> {
        let more = Writers::start(&self.cluster.source, DATABASE, burst()).await?;
        self.stage.step("a burst of writes");
        let begun = Instant::now();
        self.follow_for(DEMO_KILL_AFTER).await?;
        self.engine.kill9().await?;
        let (killed, before) = (Instant::now(), sum(writers.counts(), more.counts()).transactions());
        self.stage.step("SIGKILL: the engine is dead in the middle of it");
        while begun.elapsed() < DEMO_BURST_FOR {
            let written = sum(writers.counts(), more.counts()).transactions() - before;
            self.stage.line(&format!("no engine; {} transactions written without it", units::count(written)));
            sleep(DEMO_LOOK_INTERVAL).await;
        }
        let more = more.stop().await;
        let written = sum(writers.counts(), more.clone()).transactions() - before;
        let (written, dead) = (units::count(written), killed.elapsed().as_secs_f64());
        let there = self.source_position().await?;
        let restarted = Instant::now();
        self.figures.part = Part::AfterKill;
        self.engine.start()?;
        self.stage.step(&format!("started again after {dead:.1} s and {written} transactions without it"));
        let caught_up = |it: &Progress| it.phase == "syncing" && applied(it) >= there;
        self.follow("the way back after the kill", caught_up).await?;
        self.figures.part = Part::InSync;
        self.figures.caught_up = restarted.elapsed();
        let seconds = restarted.elapsed().as_secs_f64();
        self.stage.step(&format!("caught up from its position in {seconds:.1} s"));
        Ok(more)
    }

    /// What the writers have left behind arrives, and the engine ends as asked.
    async fn drain(&mut self) -> Result<()> {
        let started = Instant::now();
        let there = self.source_position().await?;
        let written = units::count(self.figures.writers.transactions());
        self.stage.step(&format!("writers stopped after {written} transactions"));
        self.follow("the last writes", |progress| applied(progress) >= there).await?;
        self.stage.step(&format!("lag 0: everything up to {there} is applied"));
        self.engine.terminate().await?;
        self.stage.step("SIGTERM: the engine has ended with exit code 0");
        self.figures.parts.push(("drain", started.elapsed()));
        Ok(())
    }

    /// Every row of every table; the figures, and the verdict.
    async fn compare(&mut self) -> Result<Exit> {
        let started = Instant::now();
        self.stage.line("comparing every table");
        let comparison = compare_servers(&self.cluster.source, &self.cluster.target, DATABASE).await?;
        self.figures.parts.push(("compare", started.elapsed()));
        let (exit, verdict) = verdict(&comparison);
        self.stage.step("compared every table and sequence");
        self.stage.say(&self.figures.text(&comparison));
        self.stage.say(&format!("\n{verdict}\n"));
        if exit != Exit::Fine {
            self.stage.say(&format!("the end of the engine's log:\n{}\n", self.engine.log_tail()));
        }
        Ok(exit)
    }

    /// `walferry remove`; afterwards neither side knows of the migration.
    async fn remove(&mut self) -> Result<()> {
        let output = self.engine.run(&["remove"]).await?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(DemoError::Engine { what: format!("walferry remove: {}", output.status), log });
        }
        let left = "SELECT slot_name FROM pg_replication_slots UNION ALL SELECT pubname FROM pg_publication \
                    UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'walferry'";
        for server in [&self.cluster.source, &self.cluster.target] {
            if let Some(left) = server.sql(DATABASE, left).await?.pop() {
                return Err(self.engine.failure(format!("walferry remove has left {left:?}")));
            }
        }
        self.stage.step("walferry remove: no slot, no publication, no bookkeeping is left");
        Ok(())
    }

    /// Leaves everything as it is until told to stop.
    async fn keep(&mut self, mut stop: watch::Receiver<bool>) {
        let (source, target) = (self.cluster.source_uri(DATABASE), self.cluster.target_uri(DATABASE));
        self.stage.say(&format!(
            "Both servers stay until Ctrl-C. In another terminal:\n\n  export SOURCE_SERVICE_URI='{source}'\n  \
             export TARGET_SERVICE_URI='{target}'\n  walferry status   # or migrate, which goes on, or remove\n"
        ));
        // An error means that nobody can tell any more.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Stops both servers in order, which is faster than to have them removed while they run.
    async fn end(self) -> Result<()> {
        let (source, target) = (&self.cluster.source, &self.cluster.target);
        tokio::try_join!(source.stop(StopMode::Fast), target.stop(StopMode::Fast))?;
        Ok(())
    }

    async fn follow_for(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        self.follow("following", |_| Instant::now() >= until).await
    }

    /// Shows how far the engine is, until `reached`.
    async fn follow(&mut self, what: &str, mut reached: impl FnMut(&Progress) -> bool) -> Result<()> {
        let deadline = Instant::now() + DEMO_STEP_TIMEOUT;
        let mut ticks = interval(DEMO_LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(progress) = self.engine.look().await? {
                self.figures.observe(&progress, self.engine.peak_memory(), Instant::now());
                if self.phase != progress.phase {
                    self.phase.clone_from(&progress.phase);
                    if let Some(news) = news(&self.phase) {
                        self.stage.step(news);
                    }
                }
                self.stage.line(&self.figures.line(&progress));
                if reached(&progress) {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                let seconds = DEMO_STEP_TIMEOUT.as_secs();
                return Err(self.engine.failure(format!("not within {seconds} s: {what}")));
            }
        }
    }

    /// Where the source is: past everything committed before.
    async fn source_position(&self) -> Result<SourceLsn> {
        // The message's commit is flushed, and so is all that was written before it.
        let sql =
            "SELECT pg_logical_emit_message(true, 'demo', ''); COMMIT; SELECT pg_current_wal_flush_lsn()";
        let position = self.cluster.source.sql(DATABASE, sql).await?.pop().and_then(|mut row| row.pop());
        let position = position.flatten().and_then(|text| text.parse().ok());
        position.ok_or_else(|| self.engine.failure("the source does not tell its position"))
    }
}

/// What the engine's entering a phase is worth saying.
fn news(phase: &str) -> Option<&'static str> {
    match phase {
        "schema" => Some("snapshot, replication slot, tables"),
        "copying" => Some("copying every table on one snapshot, while the source is written to"),
        "indexing" => Some("copied; making indexes and constraints"),
        "catching_up" => Some("applying what happened meanwhile"),
        "syncing" => Some("in sync: every commit of the source follows at once"),
        _ => None,
    }
}

fn applied(progress: &Progress) -> SourceLsn {
    progress.applied_lsn.as_deref().and_then(|text| text.parse().ok()).unwrap_or(SourceLsn::ZERO)
}

fn sum(mut counts: WriterCounts, more: WriterCounts) -> WriterCounts {
    for (name, count) in more.shop {
        *counts.shop.entry(name).or_default() += count;
    }
    counts.pgbench += more.pgbench;
    counts.conflicts += more.conflicts;
    counts.disconnects += more.disconnects;
    counts.errors += more.errors;
    counts.last_error = counts.last_error.or(more.last_error);
    counts
}
