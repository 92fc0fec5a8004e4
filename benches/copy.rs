//! How fast the initial copy is, side by side with others: `cargo bench --bench copy`.
//!
//! The target's database is made afresh for every run, both servers come from a CHECKPOINT, and the contenders take
//! turns, after a run that does not count: it makes the files that the target's WAL uses again from then on. A time
//! counts only where the rows are equal, and the indexes are as many. All connections use TLS, unless
//! `WALFERRY_BENCH_TLS=off`.
//!
//! | case | what |
//! |---|---|
//! | pgbench | pgbench's tables with their primary keys, without foreign keys |
//! | one table | 2 GB without an index: bigint, int, timestamptz, numeric, 60 to 100 characters |
//!
//! | contender | what is timed |
//! |---|---|
//! | walferry | `migrate --until copied --jobs 2`: slot, schema, rows, primary keys, ANALYZE |
//! | pg_dump and pg_restore | `-Fd -j2`, one after the other: schema, rows, primary keys |
//! | pgcopydb clone | `--table-jobs 2 --index-jobs 2`: schema, rows, primary keys, VACUUM ANALYZE |
//! | psql to psql | `COPY … TO STDOUT` into `COPY … FROM STDIN`: rows, into a table that is there |
//!
//! Foreign keys are left out since `--until copied` ends before it makes them.
//!
//! | setting | meaning |
//! |---|---|
//! | `WALFERRY_BENCH_SCALE=0.1` | makes the one table smaller |
//! | `WALFERRY_BENCH_PGBENCH_SCALE` | of pgbench's tables, 50 |
//! | `WALFERRY_BENCH_RUNS` | rounds, 5 |
//! | `WALFERRY_BENCH_ONLY=pgbench,table` | these cases |

mod common;

use std::process::Stdio;
use std::time::Instant;

use common::cpu::{self, Cpu};
use common::figures::{Goal, NONE, Series, goals, ratio};
use common::peers::{Pgcopydb, Superuser};
use common::rows::Rows;
use common::{Bench, DB, Result, ended_well, say, setting};
use tempfile::TempDir;
use walferry::demo::{AVNADMIN, Server};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Pgbench,
    Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Walferry,
    DumpRestore,
    Pgcopydb,
    Psql,
}

struct Contender {
    kind: Kind,
    seconds: Series,
    /// Of the source, the target, and walferry's own process.
    cpu: [Series; 3],
    peak: Series,
    trouble: Option<String>,
}

/// What the contenders work with.
struct Place {
    bench: Bench,
    peer: Superuser,
    work: TempDir,
}

fn main() -> Result<()> {
    common::block_on(run())
}

async fn run() -> Result<()> {
    let scale: f64 = setting("WALFERRY_BENCH_SCALE", 1.0)?;
    let pgbench_scale: u32 = setting("WALFERRY_BENCH_PGBENCH_SCALE", 50)?;
    let runs: usize = setting("WALFERRY_BENCH_RUNS", 5)?;
    let wanted = std::env::var("WALFERRY_BENCH_ONLY").unwrap_or_else(|_| "pgbench,table".to_owned());
    let mut lines = vec![
        "| case | contender | median | lowest–highest | MB a second | CPU source | CPU target | CPU own | peak memory |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let mut all_goals = Vec::new();
    let mut limits = vec![String::new()];
    let mut place = None;
    for case in [Case::Pgbench, Case::Table].into_iter().filter(|case| wanted.contains(case.setting())) {
        // The servers of the case before are gone first.
        drop(place.take());
        let here = prepare(case, scale, pgbench_scale).await?;
        let contenders = rounds(&here, case, runs).await?;
        let bytes: f64 = here
            .bench
            .ask(
                "SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relkind = 'r' \
                                         AND relnamespace = 'public'::regnamespace",
            )
            .await?
            .parse()?;
        lines.extend(contenders.iter().map(|contender| contender.row(case, bytes)));
        all_goals.extend(goals_of(case, &contenders));
        limits.extend(contenders.iter().filter(|one| one.kind == Kind::Walferry).map(|one| one.limit(case)));
        place = Some(here);
    }
    let bench = place.ok_or("WALFERRY_BENCH_ONLY names no case")?.bench;
    lines.push(format!(
        "\nMedians of {runs} rounds, interleaved, 2 jobs each; the target's database is made afresh for each. `migrate \
         --until copied` makes the slot and the schema, copies the rows, makes indexes and constraints other than foreign \
         keys (there are none here), and runs ANALYZE; pg_restore runs no ANALYZE, pgcopydb clone runs VACUUM ANALYZE, \
         psql copies rows only. MB are the tables' on the source. {} Scale {scale}, pgbench's {pgbench_scale}.",
        match Pgcopydb::program() {
            Some(program) => format!("pgcopydb is version {}.", Pgcopydb::version(&program).await?),
            None => "pgcopydb is not installed.".to_owned(),
        }
    ));
    lines.extend(goals(&all_goals));
    lines.extend(limits);
    lines.push(PROFILE.to_owned());
    bench.record("copy", "cargo bench --bench copy", &lines)
}

/// perf of both cores, `pg_stat_activity` 50 times a second, the log; then runs in turns.
const PROFILE: &str = "Where the time goes in the case pgbench (PostgreSQL 15). By phase: 0.2 s until the first row (checks, \
                       slot, schema), 2.6 s rows, 1.0 s indexes, 0.2 s ANALYZE. Of both cores (perf): 31 % the session that \
                       fills the large table, 15 % the one that reads it, 16 % its index, by two processes, 6 % the engine, \
                       2 % ANALYZE, 1 % the target's WAL writer. The session that fills the table keeps a core busy all the \
                       time. Two that share it wait for each other to extend it (a third of their samples), and write it \
                       out of its order: 4.15 s against 4.04 s in turns. Waking the WAL writer brought the rows from 2.80 \
                       to 2.63 s. No way to more: three and four jobs, 256 MB of maintenance_work_mem, reading a run ahead.";

impl Case {
    const fn setting(self) -> &'static str {
        match self {
            Self::Pgbench => "pgbench",
            Self::Table => "table",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Pgbench => "pgbench",
            Self::Table => "one table",
        }
    }

    const fn contenders(self) -> &'static [Kind] {
        match self {
            Self::Pgbench => &[Kind::Walferry, Kind::DumpRestore, Kind::Pgcopydb],
            Self::Table => &[Kind::Walferry, Kind::Psql],
        }
    }
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Walferry => "walferry",
            Self::DumpRestore => "pg_dump and pg_restore",
            Self::Pgcopydb => "pgcopydb clone",
            Self::Psql => "psql to psql",
        }
    }
}

impl Contender {
    fn row(&self, case: Case, bytes: f64) -> String {
        let head = format!("| {} | {}", case.name(), self.kind.name());
        if let (true, Some(why)) = (self.seconds.is_empty(), &self.trouble) {
            return format!("{head} | {} | | | | | | |", why.replace('|', "/").replace('\n', " "));
        }
        let rate =
            self.seconds.median().map_or_else(|| NONE.to_owned(), |s| format!("{:.0}", bytes / 1e6 / s));
        let peak = if self.peak.is_empty() { NONE.to_owned() } else { format!("{:.0} MiB", self.peak.max()) };
        let [source, target, own] = &self.cpu;
        let own = if self.kind == Kind::Walferry { own.seconds() } else { NONE.to_owned() };
        let (source, target) = (source.seconds(), target.seconds());
        let (median, spread) = (self.seconds.seconds(), self.seconds.spread());
        format!("{head} | {median} | {spread} | {rate} | {source} | {target} | {own} | {peak} |")
    }

    /// What no client can undercut here.
    fn limit(&self, case: Case) -> String {
        let (shared, cores) = cpu::shared(&self.cpu);
        let shared = shared.map_or_else(|| NONE.to_owned(), |seconds| format!("{seconds:.2} s"));
        format!(
            "{}: all processor time of walferry's run, shared by the {cores} cores of source, target and engine, is {shared}.",
            case.name()
        )
    }
}

fn goals_of(case: Case, contenders: &[Contender]) -> Vec<Goal> {
    let walferry = contenders.iter().find(|one| one.kind == Kind::Walferry);
    let others = contenders.iter().filter(|one| one.kind != Kind::Walferry);
    let best = others.filter_map(|one| one.seconds.median()).min_by(f64::total_cmp);
    let (least, of) = match case {
        Case::Pgbench => (1.25, "the better of the others"),
        Case::Table => (1.6, "psql to psql"),
    };
    let times = ratio(best, walferry.and_then(|one| one.seconds.median()));
    let peak = walferry.filter(|one| !one.peak.is_empty()).map(|one| one.peak.max());
    vec![
        Goal::at_least(format!("{}: times faster than {of}", case.name()), least, times),
        Goal::at_most(format!("{}: peak memory", case.name()), 256.0, " MiB", peak),
    ]
}

const TABLE: &str = "CREATE TABLE big (id bigint, n int, at timestamptz, price numeric, note text)";

/// Rows of 2 GB.
const TABLE_ROWS: f64 = 14_000_000.0;

async fn prepare(case: Case, scale: f64, pgbench_scale: u32) -> Result<Place> {
    let quiet = |options: walferry::demo::ServerOptions| options.setting("autovacuum", "off");
    let bench = Bench::start_with(quiet, quiet).await?;
    let source = &bench.sides.source;
    match case {
        Case::Pgbench => {
            let mut pgbench = source.superuser_tool("pgbench", DB);
            pgbench.env("PGOPTIONS", "-c role=app_owner");
            pgbench.args(["--initialize", "--quiet", "--scale", &pgbench_scale.to_string()]);
            pgbench.stdout(Stdio::null()).stderr(Stdio::null());
            ended_well("pgbench", pgbench.status().await?)?;
        }
        Case::Table => {
            let rows = (TABLE_ROWS * scale) as u64;
            let fill = format!(
                "SET ROLE app_owner; {TABLE}; INSERT INTO big SELECT n, (n * 7919) % 1000000, \
                 '2024-01-01 00:00:00+00'::timestamptz + n * interval '1.234567 seconds', (n % 10000000)::numeric / 100, \
                 left(repeat(md5(n::text), 4), 60 + (n % 41)::int) FROM generate_series(1, {rows}::bigint) n"
            );
            source.client(DB).await?.batch_execute(&fill).await?;
        }
    }
    // Else the first to read a row pays for noting on it that it is visible.
    source.client(DB).await?.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
    let peer = Superuser::create(source, &bench.sides.target).await?;
    let work = tempfile::Builder::new().prefix("walferry-bench-").tempdir()?;
    Ok(Place { bench, peer, work })
}

async fn rounds(place: &Place, case: Case, runs: usize) -> Result<Vec<Contender>> {
    let contender = |&kind| Contender {
        kind,
        seconds: Series::default(),
        cpu: Default::default(),
        peak: Series::default(),
        trouble: (kind == Kind::Pgcopydb && Pgcopydb::program().is_none())
            .then(|| "not installed".to_owned()),
    };
    let mut contenders: Vec<_> = case.contenders().iter().map(contender).collect();
    let wanted = Rows::of(&place.bench.sides.source, DB).await?;
    make_target(place, Kind::Walferry).await?;
    measure(place, Kind::Walferry, &wanted).await?;
    ended_well("remove", place.bench.remove()?)?;
    for round in 0..runs {
        for turn in 0..contenders.len() {
            let index = (turn + round) % contenders.len();
            let contender = &mut contenders[index];
            if contender.trouble.is_some() {
                continue;
            }
            make_target(place, contender.kind).await?;
            match measure(place, contender.kind, &wanted).await {
                Ok((seconds, cpu, peak_bytes)) => {
                    say(&format!("{}, {}: {seconds:.2} s", case.name(), contender.kind.name()))?;
                    contender.seconds.push(seconds);
                    for (series, seconds) in contender.cpu.iter_mut().zip([cpu.source, cpu.target, cpu.own]) {
                        series.push(seconds);
                    }
                    if let Some(bytes) = peak_bytes {
                        contender.peak.push(bytes as f64 / f64::from(1 << 20));
                    }
                }
                Err(error) if contender.kind == Kind::Pgcopydb => contender.trouble = Some(error.to_string()),
                Err(error) => return Err(format!("{}: {error}", contender.kind.name()).into()),
            }
            if contender.kind == Kind::Walferry {
                ended_well("remove", place.bench.remove()?)?;
            }
        }
    }
    Ok(contenders)
}

async fn make_target(place: &Place, kind: Kind) -> Result<()> {
    let target = &place.bench.sides.target;
    target.sql("postgres", &format!("DROP DATABASE {DB} WITH (FORCE)")).await?;
    target.sql("postgres", &format!("CREATE DATABASE {DB} OWNER {AVNADMIN}")).await?;
    if kind == Kind::Psql {
        target.sql(DB, &format!("SET ROLE {AVNADMIN}; SET search_path = public; {TABLE}")).await?;
    }
    place.bench.checkpoint().await
}

/// Seconds, processor time, and the engine's peak memory in bytes.
async fn measure(place: &Place, kind: Kind, wanted: &Rows) -> Result<(f64, Cpu, Option<u64>)> {
    let (source, target) = (&place.bench.sides.source, &place.bench.sides.target);
    let before = Cpu::now(source, target, None)?;
    let began = Instant::now();
    let mut own = 0.0;
    let peak_bytes = match kind {
        Kind::Walferry => {
            let engine = place.bench.engine(&["--until", "copied", "--jobs", "2"])?;
            let (peak_bytes, seconds) = engine.finished().await?;
            own = seconds;
            Some(peak_bytes)
        }
        Kind::DumpRestore => {
            dump_restore(place).await?;
            None
        }
        Kind::Pgcopydb => {
            pgcopydb(place).await?;
            None
        }
        Kind::Psql => {
            psql(place).await?;
            None
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cpu { own, ..Cpu::now(source, target, None)? - before };
    let differing = wanted.differing(&Rows::of(target, DB).await?);
    if !differing.is_empty() {
        return Err(format!("these tables differ: {}", differing.join(", ")).into());
    }
    if indexes(source).await? != indexes(target).await? {
        return Err("indexes are missing".into());
    }
    Ok((seconds, cpu, peak_bytes))
}

async fn indexes(server: &Server) -> Result<Vec<Vec<Option<String>>>> {
    let sql = "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1";
    Ok(server.sql(DB, sql).await?)
}

async fn dump_restore(place: &Place) -> Result<()> {
    let sides = &place.bench.sides;
    let directory = place.work.path().join("dump");
    let login = &sides.source_login;
    let mut dump = sides.source.tool("pg_dump", &login.role, &login.password, DB);
    dump.args(["--format=directory", "--jobs=2", "--no-owner", "--no-acl", "--file"]).arg(&directory);
    ended_well("pg_dump", dump.status().await?)?;
    let login = &sides.target_login;
    let mut restore = sides.target.tool("pg_restore", &login.role, &login.password, DB);
    restore.args(["--jobs=2", "--no-owner", "--no-acl", "--dbname", DB]).arg(&directory);
    ended_well("pg_restore", restore.status().await?)?;
    Ok(std::fs::remove_dir_all(directory)?)
}

async fn pgcopydb(place: &Place) -> Result<()> {
    let program = Pgcopydb::program().ok_or("pgcopydb is gone")?;
    let log = std::fs::File::create(place.work.path().join("log"))?;
    let mut clone = tokio::process::Command::new(program);
    clone.args(["clone", "--table-jobs", "2", "--index-jobs", "2", "--no-owner", "--no-acl", "--dir"]);
    clone.arg(place.work.path().join("pgcopydb")).env("PATH", place.bench.path());
    clone.env("XDG_DATA_HOME", place.work.path()).env("TMPDIR", place.work.path());
    clone.env("PGCOPYDB_SOURCE_PGURI", place.peer.uri(&place.bench.sides.source, DB));
    clone.env("PGCOPYDB_TARGET_PGURI", place.peer.uri(&place.bench.sides.target, DB));
    clone.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    let status = clone.status().await?;
    if !status.success() {
        let text = std::fs::read(place.work.path().join("log"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let last: Vec<_> = text.lines().filter(|line| line.contains("ERROR")).collect();
        return Err(format!("it failed: {}", last.join("; ")).into());
    }
    Ok(std::fs::remove_dir_all(place.work.path().join("pgcopydb"))?)
}

async fn psql(place: &Place) -> Result<()> {
    let sides = &place.bench.sides;
    let login = &sides.source_login;
    let mut from = sides.source.tool("psql", &login.role, &login.password, DB);
    from.args(["--quiet", "-c", "COPY big TO STDOUT"]).stdout(Stdio::piped());
    let mut from = from.spawn()?;
    let pipe: Stdio = from.stdout.take().ok_or("psql has no output")?.try_into()?;
    let login = &sides.target_login;
    let mut to = sides.target.tool("psql", &login.role, &login.password, DB);
    to.args(["--quiet", "-c", "COPY big FROM STDIN"]).stdin(pipe);
    ended_well("psql", to.status().await?)?;
    ended_well("psql", from.wait().await?)
}
