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

/// Bytes of a migration's name. The server allows 63 for a slot's name; the rest is for what is put around it.
pub const MIGRATION_NAME_BYTES_MAX: usize = 40;

/// Jobs where none are asked for, on the smallest machine: even there the network is the bottleneck, not the CPU.
pub const JOBS_DEFAULT_MIN: usize = 2;

/// Jobs where none are asked for, on the largest machine: each is a COPY that the live source has to serve.
pub const JOBS_DEFAULT_MAX: usize = 8;

/// Jobs that can be asked for. Each is a connection on either side, and `max_connections` is 100 by default.
pub const JOBS_MAX: usize = 32;

/// How long a durable position is held back where nothing else is asked for: longer than an asynchronous standby
/// usually lags, so that a target that fails over can be replayed.
pub const CONFIRM_DELAY_DEFAULT: Duration = Duration::from_secs(30);

/// How long it can be held back at most: the source keeps all WAL of that time.
pub const CONFIRM_DELAY_MAX: Duration = Duration::from_secs(3_600);

/// The lag up to which a database counts as synced and ready where nothing else is asked for: one WAL segment. Less
/// would make a busy source flicker.
pub const LAG_BYTES_MAX_DEFAULT: u64 = 16 << 20;

/// How often the bars on a terminal are drawn: fast enough to look alive, slow enough to cost nothing.
pub const TERMINAL_REFRESH: Duration = Duration::from_millis(250);

/// How often progress is logged where there is no terminal.
pub const PROGRESS_LOG_EVERY: Duration = Duration::from_secs(10);

/// Tables with a bar of their own, of one database: those that are copied at the same time by default.
pub const TERMINAL_TABLES_MAX: usize = JOBS_DEFAULT_MAX;

/// Databases shown on a terminal, which has 24 lines; `walferry status` shows all.
pub const TERMINAL_DATABASES_MAX: usize = 8;

/// The time over which the copy's rate is measured: long enough to be steady, short enough to notice a stall.
pub const RATE_WINDOW: Duration = Duration::from_secs(10);
