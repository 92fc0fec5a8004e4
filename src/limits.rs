//! Every bound of the program, each with its reason.

use std::time::Duration;

/// Bytes of one message from a server. PostgreSQL's own limit on a message is 1 GiB (`PQ_LARGE_MESSAGE_LIMIT`).
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Columns of one relation. The server's limit is 1,600 (`MaxHeapAttributeNumber`); what comes above it is damage.
pub const COLUMNS_MAX: usize = 1_600;

/// One attempt to connect, where the conninfo names no `connect_timeout`: TCP, TLS and authentication together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// One step of a download of PostgreSQL: 12 MB, over a slow line.
pub const DEMO_DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// A temporary server's start, recovery after `kill -9` included, on a machine busy with other things.
pub const DEMO_SERVER_START_TIMEOUT: Duration = Duration::from_secs(90);

/// A temporary server's stop: a fast one ends with a checkpoint, and waits for walsenders.
pub const DEMO_SERVER_STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at a temporary server that is starting or stopping.
pub const DEMO_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Ports of temporary servers: below what Linux (32768) and macOS (49152) give to outgoing connections.
pub const DEMO_PORT_RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Ports to try before giving up: with this many, only a machine without free ports fails.
pub const DEMO_PORT_ATTEMPTS: u32 = 20;

/// A writer's pause before it connects again to a source that restarts.
pub const DEMO_RECONNECT_DELAY: Duration = Duration::from_millis(100);

/// Writers end after their present transaction, which is short; one that waits for a server that hangs is cut off.
pub const DEMO_WRITERS_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows that a comparison of two servers of one's own holds of each side: rows of some kB make a few MB.
pub const DEMO_COMPARE_BATCH_ROWS: u32 = 500;
