//! Every bound of the program, each with its reason.

use std::time::Duration;

/// Bytes of one message from a server. PostgreSQL's own limit on a message is 1 GiB (`PQ_LARGE_MESSAGE_LIMIT`).
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Columns of one relation. The server's limit is 1,600 (`MaxHeapAttributeNumber`); what comes above it is damage.
pub const COLUMNS_MAX: usize = 1_600;

/// One attempt to connect, where the conninfo names no `connect_timeout`: TCP, TLS and authentication together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Silence after which the kernel asks whether the peer still lives, where the conninfo says nothing. The system's own
/// default of two hours would leave a migration hanging on a dead connection.
pub const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);

/// Time between two such questions.
pub const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered questions after which the connection is given up: a dead peer is noticed within a minute.
pub const KEEPALIVES_COUNT: u32 = 3;

/// Bytes asked of the socket in one gulp. Large enough that a reader who is behind wakes seldom; one such buffer a
/// connection is in use at a time, more only while slices of older ones are held.
pub const READ_BYTES: usize = 256 << 10;

/// Room left in a read buffer below which a new one is taken. A small message that comes alone shares its buffer with
/// the next ones instead of pinning a whole one.
pub const READ_BYTES_MIN: usize = 32 << 10;

const _: () = assert!(READ_BYTES_MIN < READ_BYTES);

/// Bytes of COPY rows or statements gathered before they are written to the socket.
pub const SEND_BYTES: usize = 64 << 10;

/// SCRAM iterations computed before other tasks get their turn: about a millisecond. Their number itself has no bound,
/// since the server's administrator chooses it; the time to connect bounds it.
pub const SCRAM_ITERATIONS_SLICE: u32 = 4_096;

/// Notifications held for a listener that is busy. They only say "look again", so what comes above is dropped.
pub const NOTIFICATIONS_MAX: usize = 64;
