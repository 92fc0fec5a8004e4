//! Every bound of the program, each with its reason.

use std::time::Duration;

/// Bytes of one message from a server. PostgreSQL's own limit on a message is 1 GiB (`PQ_LARGE_MESSAGE_LIMIT`).
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Columns of one relation. The server's limit is 1,600 (`MaxHeapAttributeNumber`); what comes above it is damage.
pub const COLUMNS_MAX: usize = 1_600;

/// One attempt to connect, where the conninfo names no `connect_timeout`: TCP, TLS and authentication together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Sequences whose values one statement reads: few round trips for thousands of them, and a statement that stays
/// far from the server's limits on plan size and locks.
pub const SEQUENCES_PER_QUERY: usize = 200;

/// Names that one finding of a check lists; the rest is counted. Whoever repairs that many things has a pattern by then.
pub const FINDING_NAMES_MAX: usize = 20;

/// Lines of a finding's hint in the table for people, which should fit a screen; the JSON has all of them.
pub const FINDING_LINES_SHOWN: usize = 3;

/// How long a transaction has been writing when a check mentions it: the creation of a slot waits for its end.
pub const LONG_TRANSACTION: Duration = Duration::from_secs(30);
