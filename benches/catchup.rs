//! How fast a backlog is applied: `cargo bench --bench catchup`.
//!
//! A migration is brought in sync and stopped, a backlog is written on the source, then the engine is started and the
//! time taken until all of it is on the target. Both sides are compared before a time counts.
//!
//! | backlog | what |
//! |---|---|
//! | a | TPC-B transactions: three updates and an insert each |
//! | b | one transaction of many inserts (bigint key, int, 60 characters) |
//! | c | many transactions of one insert each |
//!
//! `WALFERRY_BENCH_SCALE=0.1` makes the backlogs smaller, `WALFERRY_BENCH_RUNS` sets how often each is run.

use std::error::Error;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use walferry::demo::{
    ClusterOptions, DEFAULT_DATABASE, PgBinaries, ServerOptions, SourceAndTarget, compare_servers,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DB: &str = DEFAULT_DATABASE;

struct Backlog {
    name: &'static str,
    changes: u64,
    write: fn(&Bench, u64) -> Vec<String>,
}

struct Bench {
    sides: SourceAndTarget,
    path: std::ffi::OsString,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let scale: f64 = setting("WALFERRY_BENCH_SCALE", 1.0)?;
    let runs: usize = setting("WALFERRY_BENCH_RUNS", 3)?;
    let wanted = std::env::var("WALFERRY_BENCH_ONLY").unwrap_or_else(|_| "abc".to_owned());
    let binaries = PgBinaries::find(None).await?;
    let path = std::env::join_paths(
        binaries
            .program("pg_dump")
            .parent()
            .map(std::path::Path::to_owned)
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let tuned = |options: ServerOptions| {
        options
            .fsync(true)
            .setting("shared_buffers", "1GB")
            .setting("max_wal_size", "8GB")
            .setting("autovacuum", "on")
    };
    let mut options = ClusterOptions::new(binaries.clone(), binaries);
    options.source_options = tuned(options.source_options);
    options.target_options = tuned(options.target_options);
    let bench = Bench { sides: SourceAndTarget::start(options).await?, path };
    bench.prepare().await?;
    let mut out = std::io::stdout();
    for backlog in &BACKLOGS {
        if !wanted.contains(backlog.name) {
            continue;
        }
        let mut seconds = Vec::new();
        let changes = (backlog.changes as f64 * scale) as u64;
        for _ in 0..runs {
            let (decoding, took, rss) = bench.measure(backlog, changes).await?;
            writeln!(
                out,
                "{}: {changes} changes in {took:.2} s = {:.0} changes/s (decoding alone {decoding:.2} s, peak {rss})",
                backlog.name,
                changes as f64 / took
            )?;
            seconds.push(took);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        writeln!(out, "{}: median {median:.2} s = {:.0} changes/s", backlog.name, changes as f64 / median)?;
    }
    Ok(())
}

const BACKLOGS: [Backlog; 3] = [
    Backlog { name: "a", changes: 400_000, write: |_, changes| vec![format!("pgbench {}", changes / 4)] },
    Backlog {
        name: "b",
        changes: 1_000_000,
        write: |_, changes| {
            vec![format!(
                "INSERT INTO wide SELECT coalesce((SELECT max(id) FROM wide), 0) + n, n, repeat(md5(n::text), 2)::char(60) \
                 FROM generate_series(1, {changes}) n"
            )]
        },
    },
    Backlog {
        name: "c",
        changes: 200_000,
        write: |_, changes| {
            vec![format!(
                "DO $$ DECLARE base bigint := (SELECT coalesce(max(id), 0) FROM narrow); BEGIN FOR n IN 1..{changes} LOOP \
                 INSERT INTO narrow VALUES (base + n, n); COMMIT; END LOOP; END $$"
            )]
        },
    },
];

impl Bench {
    async fn prepare(&self) -> Result<()> {
        let source = &self.sides.source;
        walferry::demo::load_pgbench(source, DB, 50).await?;
        source
            .sql(
                DB,
                "SET ROLE app_owner; CREATE TABLE wide (id bigint PRIMARY KEY, n int, t text); \
                      CREATE TABLE narrow (id bigint PRIMARY KEY, n int); CREATE TABLE marker (id bigserial PRIMARY KEY)",
            )
            .await?;
        let status = self.engine(&["--until", "synced"])?.wait()?;
        if !status.success() {
            return Err("the first migration failed".into());
        }
        Ok(())
    }

    async fn measure(&self, backlog: &Backlog, changes: u64) -> Result<(f64, f64, String)> {
        let source = &self.sides.source;
        for step in (backlog.write)(self, changes) {
            match step.strip_prefix("pgbench ") {
                Some(transactions) => {
                    source
                        .sql("postgres", "ALTER SYSTEM SET synchronous_commit = off; SELECT pg_reload_conf()")
                        .await
                        .ok();
                    source
                        .pgbench(
                            DB,
                            &[
                                "-n",
                                "-c",
                                "4",
                                "-j",
                                "2",
                                "-t",
                                &(transactions.parse::<u64>()? / 4).to_string(),
                            ],
                        )
                        .await?;
                }
                None => source.client(DB).await?.batch_execute(&step).await?,
            }
        }
        source.sql(DB, "CHECKPOINT").await?;
        let slot = source.sql(DB, "SELECT slot_name FROM pg_replication_slots").await?[0][0]
            .clone()
            .unwrap_or_default();
        let publications = format!("{slot},{slot}_ins");
        let began = Instant::now();
        source
            .sql(DB, &format!(
                "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, 'proto_version', '1', \
                 'publication_names', '{publications}')"
            ))
            .await?;
        let decoding = began.elapsed().as_secs_f64();
        // The last transaction of the backlog: when it is there, all is.
        source.sql(DB, "INSERT INTO marker DEFAULT VALUES").await?;
        let last = source.sql(DB, "SELECT max(id) FROM marker").await?[0][0].clone().unwrap_or_default();
        let mut engine = self.engine(&[])?;
        let began = Instant::now();
        let target = self.sides.target.client(DB).await?;
        let reached = format!("SELECT EXISTS (SELECT FROM marker WHERE id = {last})");
        while !target.query_one(&reached, &[]).await?.get::<_, bool>(0) {
            if let Some(status) = engine.try_wait()? {
                return Err(format!("the engine ended: {status}").into());
            }
            if began.elapsed() > Duration::from_secs(300) {
                return Err("the engine does not catch up".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = began.elapsed().as_secs_f64();
        let rss = std::fs::read_to_string(format!("/proc/{}/status", engine.id())).unwrap_or_default();
        let rss =
            rss.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned();
        Command::new("kill").args(["-TERM", &engine.id().to_string()]).status()?;
        engine.wait()?;
        let comparison = compare_servers(&self.sides.source, &self.sides.target, DB).await?;
        if !comparison.tables_equal() {
            return Err(format!("the sides differ: {comparison}").into());
        }
        Ok((decoding, took, rss))
    }

    fn engine(&self, arguments: &[&str]) -> Result<Child> {
        let child = Command::new(env!("CARGO_BIN_EXE_walferry"))
            .args(["migrate", "--listen", "none", "--confirm-delay", "0"])
            .args(arguments)
            .env("SOURCE_SERVICE_URI", self.sides.source_uri(DB))
            .env("TARGET_SERVICE_URI", self.sides.target_uri(DB))
            .env("RUST_LOG", "walferry=warn")
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(child)
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is no number").into()),
        Err(_) => Ok(default),
    }
}
