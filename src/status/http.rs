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
//! Nothing can be changed from here: every method but GET is refused. There is no authentication, which is why the
//! address is a loopback one unless somebody asks for another. Connections are few, short and serve one request each,
//! so that nobody who can reach the port can hold memory or the last connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Sleep, sleep, timeout};

use super::metrics::MetricsRegistry;
use super::snapshot::{PhaseName, StatusHandle, StatusSnapshot};
use super::table::plain;
use super::{json, page, units};
use crate::error::{Definite, Failure};
use crate::limits::{HTTP_CONNECTION_TIMEOUT, HTTP_CONNECTIONS_MAX, HTTP_SHUTDOWN_TIMEOUT};

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
            Ok(Self { listener, address })
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

    /// Takes over a socket that already listens.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking or has no address.
    pub fn from_listener(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` completes, then lets running answers end within a bound.
    ///
    /// # Errors
    /// None at present: a failing accept is tried again.
    pub async fn serve(
        self,
        observed: Observed,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let listener = BoundedListener {
            listener: self.listener,
            permits: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)),
        };
        let (ended, has_ended) = oneshot::channel();
        let shutdown = async move {
            shutdown.await;
            // Nobody waits any more if the server has ended by itself.
            let _ = ended.send(());
        };
        let server = axum::serve(listener, router(observed)).with_graceful_shutdown(shutdown).into_future();
        tokio::pin!(server);
        tokio::select! {
            result = &mut server => return result,
            _ = has_ended => {}
        }
        timeout(HTTP_SHUTDOWN_TIMEOUT, server).await.unwrap_or(Ok(()))
    }
}

/// Why the migration is not ready, a line for each reason; empty when it is.
pub fn not_ready(snapshot: &StatusSnapshot, lag_bytes_max: u64) -> Vec<String> {
    if snapshot.databases.is_empty() {
        return vec!["no database yet".to_owned()];
    }
    let reason = |database: &super::DatabaseStatus| {
        if database.phase != PhaseName::Syncing {
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

fn router(observed: Observed) -> Router {
    Router::new()
        .route("/", get(show_page))
        .route("/status", get(show_status))
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_ready))
        .route("/v1/project/{project}/service/{service}/migration", get(show_avn))
        .fallback(async || (StatusCode::NOT_FOUND, "not found\n"))
        .layer(middleware::from_fn(only_get))
        .with_state(observed)
}

async fn only_get(request: Request, next: Next) -> Response {
    let mut response = if request.method() == Method::GET {
        next.run(request).await
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")], "only GET\n").into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn show_page(State(observed): State<Observed>) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    let html = page::html(&observed.status.snapshot());
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
}

async fn show_status(State(observed): State<Observed>) -> Response {
    axum::Json(json::full(&observed.status.snapshot())).into_response()
}

async fn show_avn(State(observed): State<Observed>) -> Response {
    axum::Json(json::avn(&observed.status.snapshot())).into_response()
}

async fn show_metrics(State(observed): State<Observed>) -> Response {
    match observed.metrics.encode(&observed.status.snapshot()) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn show_ready(State(observed): State<Observed>) -> Response {
    let reasons = not_ready(&observed.status.snapshot(), observed.lag_bytes_max);
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n"))).into_response()
}

/// Accepts only so many connections at once, each for a bounded time.
struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed, so there is always a permit in the end.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(sleep(HTTP_CONNECTION_TIMEOUT));
        (BoundedStream { stream, deadline, _permit: permit }, peer)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl BoundedStream {
    fn check_deadline(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_deadline(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_deadline(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
