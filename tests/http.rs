//! The HTTP server over a real socket.

#[path = "http/access.rs"]
mod access;
#[path = "http/avn.rs"]
mod avn;
#[path = "http/crowd.rs"]
mod crowd;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use walferry::error::Failure;
use walferry::pg::QualifiedName;
use walferry::status::{
    Access, DatabaseStatus, HttpServer, MetricsRegistry, Observed, StatusHandle, StatusSnapshot, TableStatus,
};
use walferry::store::Phase;

const LAG_BYTES_MAX: u64 = 1000;

struct Running {
    address: SocketAddr,
    status: StatusHandle,
    metrics: MetricsRegistry,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Running {
    async fn start() -> Self {
        Self::at("127.0.0.1:0", Access::default()).await
    }

    async fn at(address: &str, access: Access) -> Self {
        let status = StatusHandle::new(StatusSnapshot::new("default"));
        let metrics = MetricsRegistry::new().expect("fixed names");
        let address = address.parse().expect("an address");
        let server = HttpServer::bind(address).await.expect("a free port").with_access(access);
        let address = server.address();
        let observed =
            Observed { status: status.clone(), metrics: metrics.clone(), lag_bytes_max: LAG_BYTES_MAX };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(server.serve(observed, async {
            let _ = stopped.await;
        }));
        Self { address, status, metrics, stop, server }
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(&format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)).await
    }

    async fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.expect("the server listens");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        // The server closes after one answer.
        let read = stream.read_to_string(&mut text);
        timeout(Duration::from_secs(5), read).await.expect("an answer in time").expect("text");
        Answer::parse(&text)
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let mut lines = head.lines();
        let status_line = lines.next().expect("a status line");
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_lowercase(), value.to_owned())
        };
        Self { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_str(&self.body).expect("JSON")
    }
}

#[tokio::test]
async fn every_path_answers() {
    let running = Running::start().await;
    running.status.update_database("shop", |database| database.phase = Phase::Copying);
    let check = async |path: &str, status: u16, content_type: &str| {
        let answer = running.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, content_type), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    };
    check("/", 200, "text/html; charset=utf-8").await;
    check("/status", 200, "application/json").await;
    check("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8").await;
    check("/healthz", 200, "text/plain; charset=utf-8").await;
    check("/readyz", 503, "text/plain; charset=utf-8").await;
    check("/v1/project/p/service/s/migration", 200, "application/json").await;
    check("/v1/project/p/service/s", 404, "text/plain; charset=utf-8").await;
    check("/elsewhere", 404, "text/plain; charset=utf-8").await;
}

#[tokio::test]
async fn only_get() {
    let running = Running::start().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"] {
        for path in ["/", "/status", "/metrics", "/elsewhere"] {
            let answer = running.ask(method, path).await;
            assert_eq!((answer.status, answer.header("allow")), (405, "GET"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn status_and_the_api_s_form_of_it() {
    let running = Running::start().await;
    let empty =
        json!({"migration": {"error": "", "method": "", "status": "waiting"}, "migration_detail": []});
    assert_eq!(running.get("/status").await.json(), empty);

    running.status.update_database("shop", |database| {
        database.phase = Phase::Syncing;
        database.lag_bytes = Some(12);
    });
    let full = running.get("/status").await.json();
    assert_eq!(full["migration"], json!({"error": "", "method": "replication", "status": "syncing"}));
    assert_eq!(full["migration_detail"][0]["lag_bytes"], json!(12));
    assert_eq!(full["migration_detail"][0]["phase"], json!("syncing"));

    let plain = running.get("/v1/project/my-project/service/my-pg/migration").await.json();
    let expected = json!({
        "migration": {"error": "", "method": "replication", "status": "syncing"},
        "migration_detail": [{"dbname": "shop", "error": "", "method": "replication", "status": "syncing"}],
    });
    assert_eq!(plain, expected);
}

#[tokio::test]
async fn ready_only_when_all_databases_follow_closely() {
    let running = Running::start().await;
    let check = async |status: u16, reason: &str| {
        let answer = running.get("/readyz").await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.contains(reason), "{}", answer.body);
    };
    let set = |dbname: &str, phase, lag| {
        running.status.update_database(dbname, |database| {
            database.phase = phase;
            database.lag_bytes = lag;
        });
    };
    check(503, "no database yet").await;
    set("shop", Phase::Copying, None);
    check(503, "shop: phase is copying").await;
    set("shop", Phase::Syncing, None);
    check(503, "shop: lag is unknown").await;
    set("shop", Phase::Syncing, Some(LAG_BYTES_MAX + 1));
    check(503, "shop: lag is 1001 B, more than 1000 B").await;
    set("shop", Phase::Syncing, Some(LAG_BYTES_MAX));
    check(200, "ready").await;
    running.status.update_database("shop", |it| it.error = "source: connection closed".to_owned());
    check(503, "shop: source: connection closed").await;
    running.status.update_database("shop", DatabaseStatus::clear_error);
    check(200, "ready").await;
    set("blog", Phase::CatchingUp, Some(0));
    check(503, "blog: phase is catching_up").await;
    set("blog", Phase::Syncing, Some(0));
    check(200, "ready").await;
    set("shop", Phase::CuttingOver, Some(0));
    check(503, "shop: phase is cutting_over").await;
    set("shop", Phase::Failed, Some(0));
    check(503, "shop: phase is failed").await;
}

#[tokio::test]
async fn metrics_parse() {
    let running = Running::start().await;
    running.metrics.database("shop").received_bytes(42);
    running.metrics.database("shop").batch(10, 0.5);
    running.status.update_database("shop", |database| {
        database.phase = Phase::Syncing;
        database.lag_seconds = Some(0.25);
    });
    let text = running.get("/metrics").await.body;
    let mut samples = HashMap::new();
    let mut typed = HashMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().expect("HELP or TYPE"), words.next().expect("a name"));
            assert!(["HELP", "TYPE"].contains(&kind), "{line}");
            typed.insert(name, ());
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let value: f64 = value.parse().expect("a number");
        let name = series.split('{').next().expect("a name");
        let of_process = PROCESS_METRICS.contains(&series);
        assert!(of_process || name.starts_with("walferry_"), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        assert!(typed.contains_key(name) || family.is_some_and(|it| typed.contains_key(it)), "{line}");
        let of_database = series.contains("database=\"shop\"");
        assert!(of_process || name == "walferry_build_info" || of_database, "{line}");
        assert!(samples.insert(series, value).is_none(), "twice: {line}");
    }
    let phases = samples.iter().filter(|(series, _)| series.starts_with("walferry_phase{"));
    assert_eq!(phases.map(|(_, value)| value).sum::<f64>(), 1.0);
    assert_eq!(samples["walferry_received_bytes_total{database=\"shop\"}"], 42.0);
    assert_eq!(samples["walferry_replication_lag_seconds{database=\"shop\"}"], 0.25);
    assert_eq!(samples["walferry_batch_changes_count{database=\"shop\"}"], 1.0);
    assert!(PROCESS_METRICS.iter().all(|name| samples.contains_key(name)), "{text}");
}

/// What Prometheus's own libraries call them, whatever the process is.
const PROCESS_METRICS: [&str; 7] = [
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];

#[tokio::test]
async fn the_page_escapes_names() {
    let running = Running::start().await;
    running.status.update_database("<script>alert(1)</script>", |database| {
        let name = QualifiedName::new("public", "<img src=x onerror=alert(1)>");
        database.tables.push(TableStatus::new(name, Some(10), 8192));
    });
    let answer = running.get("/").await;
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
    assert!(!answer.body.contains("<script") && !answer.body.contains("<img"), "{}", answer.body);
    assert!(answer.body.contains("&lt;script&gt;"), "{}", answer.body);
}

#[tokio::test]
async fn an_address_in_use_is_a_definite_error_with_a_hint() {
    let running = Running::start().await;
    match HttpServer::bind(running.address).await {
        Err(Failure::Definite(failure)) => {
            assert_eq!(failure.cause, format!("{} is in use", running.address));
            assert!(failure.hint.contains("--listen"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn stops_when_told_though_a_connection_is_open() {
    let running = Running::start().await;
    let silent = TcpStream::connect(running.address).await.expect("the server listens");
    assert_eq!(running.get("/healthz").await.status, 200);
    running.stop.send(()).expect("the server waits for it");
    let stopped = timeout(Duration::from_secs(10), running.server).await.expect("it stops");
    stopped.expect("no panic");
    assert!(TcpStream::connect(running.address).await.is_err(), "the port is free again");
    drop(silent);
}
