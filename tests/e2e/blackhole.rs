//! A network that swallows packets, between an engine in a network namespace of its own and the servers. Needs root, and
//! iproute2 on Linux; skipped where that is missing.
//!
//! ```text
//!   engine, in the namespace ── veth ──▶ relay ──▶ source        10.213.1.2 ─▶ 10.213.1.1
//!                            └─ veth ──▶ relay ──▶ target        10.213.2.2 ─▶ 10.213.2.1
//! ```
//!
//! Swallowed is what goes back to the engine: the servers hear all that it says, and it hears nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use walferry::demo::Server;

use super::harness::{DATABASE, Launch, PATIENCE, Pair, wait_for};

/// What the bounds promise.
const NOTICED: Duration = Duration::from_secs(60);

/// The namespace, with a way to each side. Dropped, it goes.
struct Net {
    name: String,
}

fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

impl Net {
    /// `None` where this machine does not let us.
    fn new() -> Option<Self> {
        let net = Self { name: format!("walferry-{}", std::process::id()) };
        let name = &net.name;
        let steps = [1, 2].into_iter().flat_map(|side| {
            [
                format!("link add wfh{side} type veth peer name wfn{side} netns {name}"),
                format!("addr add 10.213.{side}.1/30 dev wfh{side}"),
                format!("link set wfh{side} up"),
                format!("-n {name} addr add 10.213.{side}.2/30 dev wfn{side}"),
                format!("-n {name} link set wfn{side} up"),
            ]
        });
        let made = ip(&format!("netns add {name}")) && steps.into_iter().all(|step| ip(&step));
        made.then_some(net)
    }

    fn swallow(&self, side: u8) {
        assert!(ip(&format!("route add blackhole 10.213.{side}.2/32")));
    }

    fn let_pass(&self, side: u8) {
        assert!(ip(&format!("route del blackhole 10.213.{side}.2/32")));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for side in [1, 2] {
            ip(&format!("route del blackhole 10.213.{side}.2/32"));
            ip(&format!("link del wfh{side}"));
        }
        ip(&format!("netns del {}", self.name));
    }
}

/// `uri`, by way of a relay at the near end of that side's veth.
async fn by_relay(uri: &str, server: &Server, side: u8) -> String {
    let port = server.port();
    let listener = TcpListener::bind((format!("10.213.{side}.1"), 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let uri = uri.replace(&format!("@localhost:{port}/"), &format!("@localhost:{own}/"));
    let mark = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{mark}hostaddr=10.213.{side}.1")
}

fn start(net: &Net, launch: &Launch, log: &std::path::Path) -> tokio::process::Child {
    let process = launch.process();
    let process = process.as_std();
    let mut command = tokio::process::Command::new("ip");
    command.args(["netns", "exec", &net.name]).arg(process.get_program()).args(process.get_args());
    command.args(["--listen", "none"]).kill_on_drop(true);
    for (name, value) in process.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let log = std::fs::File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn a_network_that_swallows_packets_is_noticed_within_a_minute() {
    let Some(net) = Net::new() else {
        eprintln!("skipped: no network namespace can be made here (root, iproute2)");
        return;
    };
    for (side, name) in [(1, "source"), (2, "target")] {
        swallowed(&net, side, name).await;
    }
}

async fn swallowed(net: &Net, side: u8, name: &str) {
    let pair = Pair::start().await;
    pair.source(
        "SET ROLE app_owner;
         CREATE FUNCTION public.slow(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.02); RETURN a; END';
         CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t SELECT g, repeat('x', 9000) FROM generate_series(1, 500) g;
         ALTER TABLE t ADD CHECK (public.slow(a) > 0);
         CREATE TABLE written (a bigserial PRIMARY KEY);
         CREATE TABLE pause (seconds int PRIMARY KEY); INSERT INTO pause VALUES (0);
         CREATE MATERIALIZED VIEW v AS SELECT seconds, pg_catalog.pg_sleep(seconds) IS NULL AS slept FROM public.pause",
    )
    .await;
    let (source, target) = (&pair.cluster.source, &pair.cluster.target);
    let launch = pair.migrate();
    let launch = launch
        .clone()
        .source(by_relay(&launch.source, source, 1).await)
        .target(by_relay(&launch.target, target, 2).await);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut engine = start(net, &launch, &path);
    let log = || std::fs::read_to_string(&path).unwrap_or_default();
    // In a cutover, it is tried again once the fence was given up on.
    let tells = |line: &&str| {
        line.contains("connection lost: timed out") || line.contains("trying again") && line.contains(name)
    };
    let told = || log().lines().filter(tells).count();
    let notices = async |stage: &str| {
        let (before, began) = (told(), Instant::now());
        net.swallow(side);
        wait_for(&format!("{stage}: {}", log()), PATIENCE * 2, async || told() > before).await;
        let took = began.elapsed();
        net.let_pass(side);
        eprintln!("{name}, {stage}: noticed after {took:?}");
        assert!(took < NOTICED, "{name}, {stage}: noticed after {took:?}\n{}", log());
    };
    let phase = async |wanted: &str| {
        let sql = format!("SELECT FROM walferry.migration WHERE phase = '{wanted}'");
        let there = async || target.sql(DATABASE, &sql).await.is_ok_and(|rows| !rows.is_empty());
        wait_for(&format!("{wanted}: {}", log()), PATIENCE * 3, there).await;
    };

    let copies = "SELECT FROM pg_stat_progress_copy";
    wait_for("a copy", PATIENCE, async || !pair.target(copies).await.is_empty()).await;
    notices("copy").await;
    phase("syncing").await;
    let followed = async |key: u32| {
        pair.source(&format!("INSERT INTO t VALUES ({key}, 'y')")).await;
        let there = format!("SELECT FROM t WHERE a = {key}");
        wait_for("it goes on", PATIENCE * 3, async || !pair.target(&there).await.is_empty()).await;
    };
    followed(1000).await;
    // With rows in flight, for which a kernel's keepalives do not count.
    let writer = pair.owner().await;
    let writes = tokio::spawn(async move {
        loop {
            writer.batch_execute("INSERT INTO written DEFAULT VALUES").await.unwrap();
        }
    });
    notices("stream").await;
    writes.abort();
    followed(1001).await;

    pair.source("UPDATE pause SET seconds = 100").await;
    wait_for("the pause", PATIENCE, async || pair.target_value("SELECT seconds FROM pause").await == "100")
        .await;
    let fills = "SELECT FROM pg_stat_activity WHERE query LIKE 'REFRESH %' AND state = 'active'";
    let asked = loop {
        let cutover = pair.command("cutover").arguments(&["--timeout", "5m"]);
        let asked = tokio::spawn(async move { cutover.run_for(PATIENCE * 6).await });
        let reached = async || asked.is_finished() || !pair.target(fills).await.is_empty();
        wait_for("a cutover that fills the view", PATIENCE * 2, reached).await;
        if !asked.is_finished() {
            break asked;
        }
        // The stream has only just begun again.
        let ended = asked.await.unwrap();
        assert!(ended.stderr.contains("not in sync yet"), "{ended:?}\n{}", log());
    };
    notices("cutover").await;
    // It is given up, and the source can be written to.
    let ended = asked.await.unwrap();
    assert_ne!(ended.status.code(), Some(0), "{}", ended.stdout);
    followed(1002).await;
    engine.start_kill().unwrap();
    engine.wait().await.unwrap();
}
