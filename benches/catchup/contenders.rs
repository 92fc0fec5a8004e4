//! Who applies a backlog: each with a database on the target, and a slot on the source, of its own.

use std::time::{Duration, Instant};

use crate::common::cpu::{Cpu, peak_memory};
use crate::common::figures::Series;
use crate::common::peers::{self, PUBLICATIONS, Pgcopydb, Subscription, Superuser};
use crate::common::{Bench, DB, PATIENCE, Result, arrived, say, setting};
use crate::reading::{self, READING};

/// One of them, and what it has needed.
pub struct Contender {
    /// In the table.
    pub name: String,
    /// Who it is.
    pub kind: Kind,
    /// Times until all is there.
    pub seconds: Series,
    /// Processor time of the source, the target and the engine.
    pub cpu: [Series; 3],
    /// The engine's part of all processor time.
    pub share: Series,
    /// The engine's largest resident memory, in MiB.
    pub peak: Series,
    /// Why there are no more figures.
    pub trouble: Option<String>,
    /// Seconds after which not all was there: it takes longer than that.
    pub more_than: Option<f64>,
}

/// Who it is.
pub enum Kind {
    /// The engine.
    Walferry,
    /// The server's own apply worker.
    Subscription(Subscription),
    /// The source alone: nobody can be faster than it decodes.
    Decoding,
    /// A client that only reads: nobody can be faster than the source sends.
    Reading,
    /// pgcopydb; none where it is not installed.
    Pgcopydb(Option<Box<Pgcopydb>>),
}

/// What one run has needed.
pub struct Measured {
    seconds: f64,
    cpu: Option<Cpu>,
    peak_bytes: Option<u64>,
}

/// The slot that is only decoded.
const DECODING: &str = "decoding";

impl Contender {
    fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            seconds: Series::default(),
            cpu: Default::default(),
            share: Series::default(),
            peak: Series::default(),
            trouble: None,
            more_than: None,
        }
    }

    /// All contenders for a backlog, ready to begin; walferry's database is in sync.
    pub async fn all(bench: &Bench, backlog: &str) -> Result<Vec<Self>> {
        let (source, target) = (&bench.sides.source, &bench.sides.target);
        let mut all = vec![
            Self::new("walferry", Kind::Walferry),
            Self::new("decoding alone", Kind::Decoding),
            Self::new("sending alone", Kind::Reading),
        ];
        for slot in [DECODING, READING] {
            let slot = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            source.sql(DB, &slot).await?;
        }
        let variants: &[(bool, bool)] = match backlog {
            "b" => &[(false, false), (true, false), (false, true), (true, true)],
            _ => &[(false, false), (true, false)],
        };
        for &(binary, streaming) in variants {
            let [values, what] =
                [if binary { "binary" } else { "text" }, if streaming { ", streaming" } else { "" }];
            let name = format!("sub_{values}{}", if streaming { "_streaming" } else { "" });
            bench.copy_database(&name).await?;
            let subscription = Subscription { name, binary, streaming };
            subscription.create(source, target, &bench.source_uri()).await?;
            all.push(Self::new(format!("subscription, {values}{what}"), Kind::Subscription(subscription)));
        }
        bench.copy_database("pgcopydb").await?;
        let peer = Superuser::create(source, target).await?;
        let pgcopydb = Pgcopydb::find(&peer, source, target, "pgcopydb").await?;
        let mut last = Self::new("pgcopydb follow", Kind::Pgcopydb(None));
        match pgcopydb {
            Some(found) => last.kind = Kind::Pgcopydb(Some(Box::new(found))),
            None => last.trouble = Some("not installed, or no wal2json".to_owned()),
        }
        all.push(last);
        Ok(all)
    }

    /// Its database on the target.
    pub fn database(&self) -> Option<&str> {
        match &self.kind {
            Kind::Walferry => Some(DB),
            Kind::Subscription(subscription) => Some(&subscription.name),
            Kind::Decoding | Kind::Reading => None,
            Kind::Pgcopydb(_) => Some("pgcopydb"),
        }
    }

    /// Before a backlog is written.
    pub async fn set_up(&mut self, bench: &Bench) -> Result<()> {
        if let Kind::Pgcopydb(Some(pgcopydb)) = &self.kind
            && self.trouble.is_none()
            && let Err(error) = pgcopydb.set_up(&bench.sides.source, &bench.sides.target).await
        {
            self.trouble = Some(error.to_string());
        }
        Ok(())
    }

    /// Lets it apply what there is, up to this row of `marker`.
    pub async fn measure(&mut self, bench: &Bench, marker: i64) -> Result<Measured> {
        let reached = format!("SELECT EXISTS (SELECT FROM marker WHERE id = {marker})");
        bench.checkpoint().await?;
        match &self.kind {
            Kind::Walferry => walferry(bench, &reached).await,
            Kind::Subscription(subscription) => apply_worker(bench, subscription, &reached).await,
            Kind::Decoding => decoding(bench).await,
            Kind::Reading => sending(bench).await,
            Kind::Pgcopydb(Some(it)) => pgcopydb(bench, it, &reached, &mut self.more_than).await,
            Kind::Pgcopydb(None) => Err("there is no pgcopydb".into()),
        }
    }

    /// Takes a run's figures. Only now: its rows had to be equal first.
    pub fn count(&mut self, measured: &Measured) -> Result<()> {
        self.seconds.push(measured.seconds);
        if let Some(cpu) = measured.cpu {
            for (series, seconds) in self.cpu.iter_mut().zip([cpu.source, cpu.target, cpu.own]) {
                series.push(seconds);
            }
            if matches!(self.kind, Kind::Walferry) {
                self.share.push(cpu.share() * 100.0);
            }
        }
        if let Some(bytes) = measured.peak_bytes {
            self.peak.push(bytes as f64 / f64::from(1 << 20));
        }
        say(&format!("{}: {:.2} s", self.name, measured.seconds))
    }

    /// Drops its slot and what else it needed; its database stays.
    pub async fn remove(&self, bench: &Bench) -> Result<()> {
        let (source, target) = (&bench.sides.source, &bench.sides.target);
        match &self.kind {
            Kind::Subscription(subscription) => subscription.remove(source, target).await,
            Kind::Decoding | Kind::Reading => {
                let slot = if matches!(self.kind, Kind::Reading) { READING } else { DECODING };
                source.sql(DB, &format!("SELECT pg_drop_replication_slot('{slot}')")).await?;
                Ok(())
            }
            Kind::Walferry | Kind::Pgcopydb(_) => Ok(()),
        }
    }
}

async fn walferry(bench: &Bench, reached: &str) -> Result<Measured> {
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    let slot = walferry_slot(bench).await?;
    let before = Cpu::now(source, target, None)?;
    let began = Instant::now();
    let mut engine = bench.engine(&[])?;
    bench.reached(&mut engine, reached).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cpu::now(source, target, Some(engine.id()))? - before;
    let peak_bytes = Some(peak_memory(engine.id())?);
    settle(bench, &slot).await?;
    bench.end(engine)?;
    Ok(Measured { seconds, cpu: Some(cpu), peak_bytes })
}

/// The engine's slot.
async fn walferry_slot(bench: &Bench) -> Result<String> {
    let target = &bench.sides.target;
    let row =
        target.sql(DB, "SELECT slot_name FROM walferry.migration").await?.pop().and_then(|mut row| row.pop());
    Ok(row.flatten().ok_or("the migration has no slot")?)
}

async fn apply_worker(bench: &Bench, subscription: &Subscription, reached: &str) -> Result<Measured> {
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    let before = Cpu::now(source, target, None)?;
    let began = Instant::now();
    subscription.enable(target).await?;
    arrived(target, &subscription.name, reached, || Ok(())).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cpu::now(source, target, None)? - before;
    settle(bench, &subscription.name).await?;
    subscription.disable(source, target).await?;
    Ok(Measured { seconds, cpu: Some(cpu), peak_bytes: None })
}

async fn decoding(bench: &Bench) -> Result<Measured> {
    let source = &bench.sides.source;
    let before = Cpu::now(source, &bench.sides.target, None)?;
    let began = Instant::now();
    let publications = PUBLICATIONS.replace(' ', "");
    let decode = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{DECODING}', NULL, NULL, 'proto_version', '1', \
         'publication_names', '{publications}')"
    );
    source.sql(DB, &decode).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cpu::now(source, &bench.sides.target, None)? - before;
    settle(bench, DECODING).await?;
    Ok(Measured { seconds, cpu: Some(cpu), peak_bytes: None })
}

async fn sending(bench: &Bench) -> Result<Measured> {
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    let before = Cpu::now(source, target, None)?;
    let seconds = reading::read(bench).await?;
    let cpu = Cpu::now(source, target, None)? - before;
    settle(bench, READING).await?;
    Ok(Measured { seconds, cpu: Some(cpu), peak_bytes: None })
}

async fn pgcopydb(
    bench: &Bench,
    pgcopydb: &Pgcopydb,
    reached: &str,
    more_than: &mut Option<f64>,
) -> Result<Measured> {
    let (source, target) = (&bench.sides.source, &bench.sides.target);
    pgcopydb.prepare(source).await?;
    // Past the marker's commit: it applies no transaction that ends just there.
    let end = bench.ask("SELECT pg_current_wal_insert_lsn()").await?;
    let began = Instant::now();
    let mut follow = pgcopydb.follow(&end)?;
    let patience = setting("WALFERRY_BENCH_PEER_SECONDS", 300)?;
    let alive = || match follow.try_wait()? {
        Some(status) => Err(format!("it ended ({status}) before all was there").into()),
        None if began.elapsed().as_secs() > patience => {
            *more_than = Some(began.elapsed().as_secs_f64());
            Err(format!("not all was there after {patience} s").into())
        }
        None => Ok(()),
    };
    let result = arrived(target, "pgcopydb", reached, alive).await;
    let seconds = began.elapsed().as_secs_f64();
    // It would wait for its next look at its files, or for ever.
    peers::end(follow).await?;
    // Another contender would find tables of its.
    let removed = pgcopydb.remove(source, target).await;
    result?;
    removed?;
    Ok(Measured { seconds, cpu: None, peak_bytes: None })
}

/// Waits until the slot begins after all that was applied: else the next run would read it again.
///
/// The source notes where it can begin when it makes a checkpoint, and moves the slot there when that is confirmed: by
/// whoever has the slot, or here.
async fn settle(bench: &Bench, slot: &str) -> Result<()> {
    let end = bench.ask("SELECT pg_current_wal_insert_lsn()").await?;
    let there = format!("SELECT restart_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let began = Instant::now();
    while bench.ask(&there).await? != "t" {
        if began.elapsed() > PATIENCE {
            return Err(format!("the slot {slot} does not move on").into());
        }
        bench.sides.source.sql(DB, "CHECKPOINT").await?;
        if slot == DECODING || slot == READING {
            let advance =
                format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_insert_lsn())");
            bench.sides.source.sql(DB, &advance).await?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
