//! Every bound of the program, each with its reason.

use std::time::Duration;

/// Bytes of one message from a server. PostgreSQL's own limit on a message is 1 GiB (`PQ_LARGE_MESSAGE_LIMIT`).
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Columns of one relation. The server's limit is 1,600 (`MaxHeapAttributeNumber`); what comes above it is damage.
pub const COLUMNS_MAX: usize = 1_600;

/// One attempt to connect, where the conninfo names no `connect_timeout`: TCP, TLS and authentication together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Samples of the source's WAL position that one pipeline's lag clock keeps. At one a second this is a lag of half an
/// hour at full resolution, in 48 KiB; beyond that the resolution halves, and stays within 0.1 % of the time spanned.
pub const LAG_SAMPLES_MAX: usize = 2_048;

/// Connections that the HTTP server serves at once. Its readers are a browser, a Prometheus and a load balancer or
/// two; more of them wait in the kernel's queue.
pub const HTTP_CONNECTIONS_MAX: usize = 32;

/// The whole life of one connection to the HTTP server, which serves one request: longer than any answer takes, and
/// short enough that connections that send nothing do not keep the others out.
pub const HTTP_CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long answers that are under way when the process ends may still take.
pub const HTTP_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Tables that the HTML page lists for one database, those that failed or are being copied first; `/status` has all.
pub const PAGE_TABLES_MAX: usize = 200;
