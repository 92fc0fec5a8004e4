//! The status over HTTP, for people, Prometheus, load balancers and Aiven's client.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a page for people that reloads itself |
//! | `/status` | the whole status as JSON |
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process lives |
//! | `/readyz` | 200 when every database follows its source within the lag bound, else 503 with the reasons |
//! | `/v1/project/{project}/service/{service}/migration` | as Aiven's API answers |
//!
//! Nothing can be changed from here: every method but GET is refused. Who may ask is in [`access`]. Connections are
//! short and serve one request each, and who says nothing makes room for who does ([`connections`]), so that nobody who
//! can reach the port can hold memory or the last connection.

mod access;
mod connections;
mod rendered;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::metrics::MetricsRegistry;
use super::snapshot::{StatusHandle, StatusSnapshot};
use super::table::plain;
use super::{json, page, units};
use crate::error::{Definite, Failure};
use crate::limits::{
    HTTP_ACCEPT_PAUSE, HTTP_CONNECTION_TIMEOUT, HTTP_HEADERS_BYTES_MAX, HTTP_HEADERS_TIMEOUT,
    HTTP_SHUTDOWN_TIMEOUT,
};
use crate::store::Phase;
use access::Gate;
pub use access::{Access, Token};
use connections::{Connections, Seat};
use rendered::Rendered;

/// What the server shows.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The migration's status.
    pub status: StatusHandle,
    /// The process's metrics.
    pub metrics: MetricsRegistry,
    /// A database that is further behind than so many bytes is not ready.
    pub lag_bytes_max: u64,
}

/// A server whose address is taken, and that does not answer yet.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    access: Access,
}

impl HttpServer {
    /// Takes `address`; port 0 takes any that is free.
    ///
    /// # Errors
    /// Definite: the address is in use, is not one of this machine, or needs a privilege.
    pub async fn bind(address: SocketAddr) -> Result<Self, Failure> {
        let taken = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address, access: Access::default() })
        };
        taken.await.map_err(|error: io::Error| {
            let cause = match error.kind() {
                io::ErrorKind::AddrInUse => format!("{address} is in use"),
                _ => format!("cannot listen on {address}"),
            };
            Definite::new(cause)
                .detail(format!("the status over HTTP: {error}"))
                .hint("choose another address with --listen IP:PORT, or switch HTTP off with --listen none")
                .into()
        })
    }

    /// Asks more of whoever comes.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` completes, then lets running answers end within a bound.
    pub async fn serve(self, observed: Observed, shutdown: impl Future<Output = ()> + Send + 'static) {
        let Self { listener, address, access } = self;
        let answers = Answers {
            router: TowerToHyperService::new(router(observed, Gate::new(address, access.token))),
            tls: access.tls,
        };
        let connections = Connections::default();
        let mut running = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
                Some(_) = running.join_next() => continue,
            };
            let Ok((stream, _)) = accepted else {
                // The process has no files left, most likely: one less that waits is one that can be opened.
                connections.free_one();
                sleep(HTTP_ACCEPT_PAUSE).await;
                continue;
            };
            let (seat, leave) = connections.seat();
            let answers = answers.clone();
            running.spawn(async move {
                // Either way it is over: what it waited for, or why, is of interest to nobody.
                tokio::select! {
                    _ = leave => {}
                    _ = timeout(HTTP_CONNECTION_TIMEOUT, answers.attend(stream, seat)) => {}
                }
            });
        }
        drop(listener);
        connections.free_waiting();
        let ended = async { while running.join_next().await.is_some() {} };
        // What still runs then is ended as `running` is dropped.
        let _ = timeout(HTTP_SHUTDOWN_TIMEOUT, ended).await;
    }
}

/// Why the migration is not ready, a line for each reason; empty when it is.
pub fn not_ready(snapshot: &StatusSnapshot, lag_bytes_max: u64) -> Vec<String> {
    if snapshot.databases.is_empty() {
        return vec!["no database yet".to_owned()];
    }
    let reason = |database: &super::DatabaseStatus| {
        if database.phase != Phase::Syncing {
            return Some(format!("phase is {}", database.phase));
        }
        // What is being retried at this moment makes the lag a guess.
        if !database.error.is_empty() {
            return Some(plain(&database.error));
        }
        match database.lag_bytes {
            None => Some("lag is unknown".to_owned()),
            Some(lag) if lag > lag_bytes_max => {
                Some(format!("lag is {}, more than {}", units::bytes(lag), units::bytes(lag_bytes_max)))
            }
            Some(_) => None,
        }
    };
    let named = |database: &super::DatabaseStatus| {
        Some(format!("{}: {}", plain(&database.dbname), reason(database)?))
    };
    snapshot.databases.iter().filter_map(named).collect()
}

/// What is shown, and the last answers.
#[derive(Debug, Clone)]
struct Shown {
    observed: Observed,
    page: Rendered,
    status: Rendered,
    avn: Rendered,
    metrics: Rendered,
}

fn router(observed: Observed, gate: Arc<Gate>) -> Router {
    Router::new()
        .route("/", get(show_page))
        .route("/status", get(show_status))
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_ready))
        .route("/v1/project/{project}/service/{service}/migration", get(show_avn))
        .fallback(async || (StatusCode::NOT_FOUND, "not found\n"))
        .layer(middleware::from_fn_with_state(gate, admit))
        .with_state(Shown {
            observed,
            page: Rendered::default(),
            status: Rendered::default(),
            avn: Rendered::default(),
            metrics: Rendered::default(),
        })
}

async fn admit(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let mut response = if let Some(refusal) = gate.refuses(&request) {
        refusal
    } else if request.method() != Method::GET {
        (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")], "only GET\n").into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn show_page(State(shown): State<Shown>) -> Response {
    let status = shown.observed.status;
    let html = shown.page.get(move || Ok::<_, Infallible>(page::html(&status.snapshot()).into_bytes())).await;
    let mut response = answer("text/html; charset=utf-8", html);
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

async fn show_status(State(shown): State<Shown>) -> Response {
    let status = shown.observed.status;
    let json = shown.status.get(move || serde_json::to_vec(&json::full(&status.snapshot()))).await;
    answer("application/json", json)
}

async fn show_avn(State(shown): State<Shown>) -> Response {
    let status = shown.observed.status;
    let json = shown.avn.get(move || serde_json::to_vec(&json::avn(&status.snapshot()))).await;
    answer("application/json", json)
}

async fn show_metrics(State(shown): State<Shown>) -> Response {
    let Observed { status, metrics, .. } = shown.observed;
    let text = shown.metrics.get(move || metrics.encode(&status.snapshot()).map(String::into_bytes)).await;
    answer("text/plain; version=0.0.4; charset=utf-8", text)
}

fn answer(content_type: &'static str, made: Result<Bytes, String>) -> Response {
    match made {
        Ok(bytes) => ([(header::CONTENT_TYPE, content_type)], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn show_ready(State(Shown { observed, .. }): State<Shown>) -> Response {
    let reasons = not_ready(&observed.status.snapshot(), observed.lag_bytes_max);
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n"))).into_response()
}

/// What each connection is answered with.
#[derive(Clone)]
struct Answers {
    router: TowerToHyperService<Router>,
    tls: Option<TlsAcceptor>,
}

impl Answers {
    async fn attend(self, stream: TcpStream, seat: Seat) {
        let Some(tls) = &self.tls else { return self.answer(stream, seat).await };
        if let Ok(Ok(stream)) = timeout(HTTP_HEADERS_TIMEOUT, tls.accept(stream)).await {
            self.answer(stream, seat).await;
        }
    }

    async fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin, seat: Seat) {
        let answer = service_fn(async |request: Request<_>| {
            let response = self.router.call(request).await;
            seat.is_answered();
            response
        });
        let mut http = http1::Builder::new();
        http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HTTP_HEADERS_TIMEOUT);
        http.max_buf_size(HTTP_HEADERS_BYTES_MAX);
        // A client that does not speak HTTP, or is gone, is no fault of ours.
        let _ = http.serve_connection(TokioIo::new(stream), answer).await;
    }
}
