//! Every bound of the program, each with its reason.

use std::time::Duration;

/// Bytes of one message from a server. PostgreSQL's own limit on a message is 1 GiB (`PQ_LARGE_MESSAGE_LIMIT`).
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Bytes of an authentication request. As libpq has it: whoever asks is a stranger yet.
pub const AUTHENTICATION_BYTES_MAX: usize = 2_000;

/// Bytes of a message that is neither a row nor free text nor a description of columns. As libpq has it
/// (`VALID_LONG_MESSAGE_TYPE`), for an error of a stranger, too.
pub const SMALL_MESSAGE_BYTES_MAX: usize = 30_000;

/// Bytes of an error, a notice, or a description of columns. 1,664 columns with names of 63 bytes take 140 kB; a server's
/// error may quote a value of a row, and one that is longer than this is of no use to anybody.
pub const LARGE_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Parameters that a server reports. It has some 15; an extension may have its own reported.
pub const PARAMETERS_MAX: usize = 200;

/// Messages of one answer that are no rows: those of a pipeline, of a script, and what a server says unasked. A thousand
/// statements need some thousands; sessions ask for no notices.
pub const ANSWER_MESSAGES_MAX: usize = 1 << 18;

const _: () = assert!(PIPELINE_EXECUTES_MAX * 100 < ANSWER_MESSAGES_MAX);

/// Bytes of an answer's rows on a session of our own, where none is held (skipped rows), or a row may be as large as rows
/// can be (those of a conflict).
pub const ANSWER_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

/// The same of a question whose answer is held in memory: positions, names, a handful of rows.
pub const QUERY_BYTES_MAX: usize = 16 << 20;

/// The same of the questions that go out together on a control connection. A hundred thousand tables take some 70 MB in the
/// largest answer, and the checks ask for them several times at once.
pub const CONTROL_ANSWERS_BYTES_MAX: usize = 256 << 20;

/// What a row takes in memory besides its bytes, and each value of it: a NULL is four bytes on the wire.
pub const ROW_COST: usize = 64;

/// The same of each of its values.
pub const VALUE_COST: usize = 24;

/// Columns of one relation. The server's limit is 1,600 (`MaxHeapAttributeNumber`); what comes above it is damage.
pub const COLUMNS_MAX: usize = 1_600;

/// One attempt to connect, where the conninfo names no `connect_timeout`: TCP, TLS and authentication together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Objects of the schema that one transaction makes. A table takes some five locks (itself, its TOAST table and index, a
/// sequence, an index), and all sessions of a server share 64 for each of some 120 (`max_locks_per_transaction`), so that
/// this takes an eighth.
pub const SCHEMA_ENTRIES_PER_TRANSACTION: usize = 200;

/// Tables that one transaction locks where it need not lock all of them: as above, at one or two locks each.
pub const TABLES_PER_TRANSACTION: usize = 100;

/// Times that a foreign key is tried again that another one's locks came in the way of: each time one of the two is made.
pub const DEADLOCK_TRIES_MAX: usize = 20;

/// Rows of Walferry's own tables that one statement writes: so that a thousand tables take a way to the server and back.
pub const ROWS_PER_STATEMENT: usize = 1_000;

/// Relations of one TRUNCATE. CASCADE over partitioned tables names each leaf, so tens of thousands occur; at a
/// million their identifiers take 4 MiB.
pub const TRUNCATE_RELATIONS_MAX: usize = 1 << 20;

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

/// Memory that a change needs besides its bytes, as counted against the bounds below: its message, its row among the net
/// changes, and what is sent of it.
pub const CHANGE_COST: usize = 250;

/// Memory that one segment may hold: a larger transaction is handed on in several. What the last one holds is applied
/// after all has been received, so it is not much: some ten thousand rows.
pub const SEGMENT_COST_MAX: usize = 4 << 20;

/// Memory that one batch may hold. Large enough that a target commit's cost does not show, and that two batches are more
/// work than a long way to the target takes.
pub const BATCH_COST_MAX: usize = 16 << 20;

/// Changes that one batch may hold. The more there are, the more merge; but each waits for all, and a batch that fails in
/// set form is applied again row by row.
pub const BATCH_CHANGES_MAX: usize = 64_000;

/// Batches sent to the target and not done: one is executed, the next one is there when it ends. A third would only wait.
pub const UNDER_WAY_MAX: usize = 2;

/// How long a commit may stay off the target's disk, when nothing else is to be done, before it is asked to write it:
/// as long as its WAL writer sleeps by default. Other sessions' WAL can hold that up for 10 s and more.
pub const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// The same while batches are applied: each tells how far the disk is, and would wait for one that is asked for.
pub const FLUSH_AFTER_BUSY: Duration = Duration::from_secs(5);

/// Memory of everything received and not yet applied. The reader stops reading beyond it, and the source waits.
pub const QUEUE_COST_MAX: usize = 64 << 20;

const _: () = assert!(SEGMENT_COST_MAX <= BATCH_COST_MAX && BATCH_COST_MAX < QUEUE_COST_MAX);

/// The same of all databases together, where that leaves each of them room for one segment: less would not do.
pub const QUEUES_COST_MAX: usize = 128 << 20;

const _: () = assert!(QUEUE_COST_MAX <= QUEUES_COST_MAX);

/// Statements prepared on one apply session; when there are more, all are dropped and prepared anew. Each costs the
/// target some 10 kB.
pub const PREPARED_STATEMENTS_MAX: usize = 1_000;

/// Executes between two Syncs of a pipeline: enough that the Sync does not show, few enough that an error is
/// noticed soon.
pub const PIPELINE_EXECUTES_MAX: usize = 1_000;

/// How often the source hears our positions, whatever apply does. A tenth of the default `wal_sender_timeout` would
/// do; sooner lets the source forget WAL sooner.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How often a position that only keepalives moved is stored. Each is a commit on the target.
pub const IDLE_STORE_INTERVAL: Duration = Duration::from_secs(10);

/// Rows of a table below which they are inserted one by one: a COPY is parsed and planned anew each time.
pub const COPY_ROWS_MIN: usize = 6;

/// Updated or deleted rows of a table from which on they are put in the order of their keys: an eighth less time for
/// 400,000 changes of pgbench (measured). Few rows lie on pages of their own in any order.
pub const SORT_ROWS_MIN: usize = 256;

/// Bytes of a row above which it is applied by itself: arrays and COPY would hold it several times.
pub const SET_ROW_BYTES_MAX: usize = 1 << 20;

/// A table that failed in set form is ordered for at most 2 to the power of one less batches.
pub const FAILING_TIMES_MAX: u32 = 11;

/// Batches without a failure after which a table's earlier ones are forgotten.
pub const FAILING_FORGOTTEN_AFTER: i32 = 100;

/// Forms of UPDATE remembered for one table, one for each set of columns that came: unchanged TOAST makes several.
pub const UPDATE_FORMS_MAX: usize = 64;

/// Positions that became durable within one step of time wait for `confirm_delay` together: at most
/// `confirm_delay` / step of them are remembered.
pub const CONFIRM_STEP: Duration = Duration::from_millis(100);

/// How often a transaction is made on the source while nothing commits there that is for us, so that the WAL since the last
/// one need not be kept. It costs the source a hundred bytes and a flush.
pub const MARK_INTERVAL: Duration = Duration::from_secs(600);

/// WAL since the last transaction for which none is made: the source keeps whole files, of this size unless it was built or
/// initialised otherwise. A source that writes nothing is left alone.
pub const MARK_BYTES: u64 = 16 << 20;

/// WAL since the last transaction for which ten minutes are too long: a busy database beside ours writes 60 GB in that time.
pub const MARK_BYTES_HURRY: u64 = 64 << 20;

/// How soon another one is made then, and where there was none yet: what was made before has come by then, or failed.
pub const MARK_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// How long the source may take for it. Nobody waits for it.
pub const MARK_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(MARK_TIMEOUT.as_secs() < MARK_INTERVAL_MIN.as_secs() && MARK_BYTES < MARK_BYTES_HURRY);

/// Sequences whose values one statement reads: few round trips for thousands of them, and a statement that stays
/// far from the server's limits on plan size and locks.
pub const SEQUENCES_PER_QUERY: usize = 200;

/// How long a dump's snapshot waits to lock the source's tables against being emptied meanwhile: it holds back nobody
/// before it has all of them but those who want to change a table, and who waits is tried again.
pub const TABLES_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a dump's snapshot is taken anew because a table was made or dropped between the look at them and the locks.
pub const TABLES_LOCK_TRIES_MAX: usize = 10;

/// How long a start waits for the lock of an engine that may just have been killed: its server process ends when it
/// has finished the statement that it is at.
pub const ENGINE_LOCK_WAIT: Duration = Duration::from_secs(15);

/// How long it waits in silence: the sessions of most killed engines are gone by then.
pub const ENGINE_LOCK_TOLD_AFTER: Duration = Duration::from_secs(1);

const _: () = assert!(ENGINE_LOCK_TOLD_AFTER.as_secs() < ENGINE_LOCK_WAIT.as_secs());

/// How long a removal that goes by names waits for the sessions of an engine that was just killed. One whose machine is
/// gone may last for hours: that is for somebody to decide.
pub const SESSIONS_GONE_WAIT: Duration = Duration::from_secs(3);

/// How long a password lets the role that writes rows log in, where an engine is killed before it makes that NOLOGIN again: as
/// long as a slow login takes.
pub const WRITER_PASSWORD_LIFE: Duration = Duration::from_secs(60);

/// How often that lock is tried.
pub const ENGINE_LOCK_POLL: Duration = Duration::from_millis(100);

/// How long a commit that was streamed may stay invisible to other sessions: an instant, but for a source that waits
/// for a synchronous standby.
pub const VISIBLE_WAIT: Duration = Duration::from_secs(10);

/// Between two looks at that.
pub const VISIBLE_POLL: Duration = Duration::from_millis(5);

/// At most so often it is shown how far a pipeline is, while it has more to apply: the coarsest that shows lag as it is.
pub const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// How often it is looked whether a pipeline is in sync.
pub const TICK: Duration = Duration::from_millis(100);

/// Segments and keepalives handed on and not yet looked at. Their memory is bounded elsewhere; this bounds their
/// number.
pub const READER_QUEUE_MAX: usize = 4_096;

/// Segments and keepalives looked at in one go: enough that taking them one by one does not show.
pub const RECEIVE_MANY: usize = 256;

/// A transaction that is sent this long after it committed means that we are behind, and latency does not count.
pub const BEHIND_AFTER: Duration = Duration::from_millis(100);

/// The pause between two reads of the socket when behind: the socket's buffers hold what comes meanwhile.
pub const GULP_PAUSE: Duration = Duration::from_millis(10);

/// The same after a gulp of at least [`GULP_FULL`], and at most [`GULP_FULL_MAX`] where that holds: a near source fills
/// the socket again within it, and would wait for us through a longer one. The runtime's clock has ticks of 1 ms, so half
/// of that is one tick.
pub const GULP_PAUSE_FULL: Duration = Duration::from_micros(500);

/// The least gulp that was a full [`GULP_BUFFER`].
pub const GULP_FULL: usize = 16 << 10;

/// The greatest gulp that [`GULP_PAUSE_FULL`] follows. After more, we have read beside the source for a while, message by
/// message: the longer pause gathers them anew (measured: with TLS 1.85 s against 2.3 for 200,000 transactions of one
/// insert). Without TLS it does not hold for a large transaction, of which the source has much to send in little time
/// (measured: 2.4 s against 2.65 for 1,000,000 inserts in one transaction).
pub const GULP_FULL_MAX: usize = 64 << 10;

/// Bytes of TLS records read from the socket at once. By itself, the TLS library reads 4 KiB (measured: 3.8 s against 4.4
/// for 1,000,000 inserts in one transaction).
pub const TLS_READ_BYTES: usize = 64 << 10;

/// Receive buffer of the stream from a near source. What does not fit in waits in the source's send buffer, where small
/// packets become large ones: with TLS that takes 40 % off the CPU time of the source (measured: 4.3 s against 2.7 s for
/// 400,000 changes).
pub const GULP_BUFFER: usize = 32 << 10;

/// A source that accepts a connection within this time is near: a buffer of [`GULP_BUFFER`] a round trip is still faster
/// than a walsender.
pub const NEAR: Duration = Duration::from_millis(1);

/// After this much silence the source is asked for a sign of life.
pub const PING_AFTER: Duration = Duration::from_secs(15);

/// Without any sign of life for this long the connection is given up: more than the server's own
/// `wal_receiver_timeout`, since a walsender that decodes a large transaction answers late.
pub const RECEIVE_TIMEOUT: Duration = Duration::from_secs(120);

const _: () = assert!(PING_AFTER.as_secs() * 2 < RECEIVE_TIMEOUT.as_secs());

/// How often the source's WAL position is read: the resolution of the lag in seconds.
pub const MONITOR_INTERVAL: Duration = Duration::from_secs(1);

/// One question of the monitor, which a healthy source answers within a round trip.
pub const MONITOR_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the source's last word on its WAL position counts: then the lag is not known, and whoever asks whether the
/// migration is ready hears that it is not.
pub const LAG_KNOWN_FOR: Duration = Duration::from_secs(5);

const _: () = assert!(MONITOR_INTERVAL.as_millis() < LAG_KNOWN_FOR.as_millis());

/// How often the slot and the source's clock are read.
pub const SLOT_INTERVAL: Duration = Duration::from_secs(5);

/// How long one try to create a slot waits for running write transactions. While it waits, nothing else waits for it.
pub const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Tries to create a slot: with [`SLOT_LOCK_TIMEOUT`], transactions of ten minutes are outwaited.
pub const SLOT_TRIES_MAX: usize = 60;

/// The least piece of a large table that is copied by itself, in bytes: below, a transaction's start and end show.
pub const COPY_PIECE_BYTES_MIN: u64 = 64 << 20;

/// Pieces that all tables together are cut into, for each job: when the first job finds nothing left to do, the others
/// have at most a sixteenth of its work still to do, or a table below [`COPY_SHARED_BYTES_MIN`].
pub const COPY_PIECES_PER_JOB: usize = 16;

/// A table that is smaller is copied by one job, frozen and in its own order: no vacuum has to freeze it, and its indexes
/// are made sooner. Several jobs are no faster on one table where servers and engine share few cores: pgbench's of 640 MB
/// with its primary key took 4.04 s by one job and 4.15 s by two (medians of 6, in turns; PostgreSQL 15, 2 cores). Where
/// each connection is slow it has its price: 50 s at 20 MB a second, which several would share.
pub const COPY_SHARED_BYTES_MIN: u64 = 1 << 30;

/// A table that is smaller is not emptied before it is copied, to have its rows frozen: that takes a few new files and
/// a commit that waits for the disk, and vacuum is soon done with it.
pub const COPY_FREEZE_BYTES_MIN: u64 = 1 << 20;

/// Bytes of rows after which the target's WAL writer is woken while tables are copied: below the 16 MB of buffers after
/// which COPY itself waits for the WAL, and above what the WAL writer thinks worth a flush (`wal_writer_flush_after`,
/// 1 MB). Each time takes a transaction identifier.
pub const COPY_WAKE_BYTES: u64 = 4 << 20;

/// Silence after which the kernel asks whether the peer still lives, where the conninfo says nothing. The system's own
/// default of two hours would leave a migration hanging on a dead connection.
pub const KEEPALIVES_IDLE: Duration = Duration::from_secs(10);

/// Time between two such questions.
pub const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(5);

/// Unanswered questions after which the connection is given up.
pub const KEEPALIVES_COUNT: u32 = 6;

/// How long what was sent may stay unacknowledged (`TCP_USER_TIMEOUT`), where the conninfo says nothing. The kernel asks no
/// questions while data is in flight, and would send it again for a quarter of an hour (962 s, measured). A peer that dies is
/// noticed within a minute, also where something is sent just before the kernel would have asked: this begins then. The rest
/// of the minute is what the kernel's timers take.
pub const USER_TIMEOUT: Duration = Duration::from_secs(40);

const _: () = assert!(
    KEEPALIVES_IDLE.as_secs() + KEEPALIVES_INTERVAL.as_secs() * KEEPALIVES_COUNT as u64
        <= USER_TIMEOUT.as_secs()
        && KEEPALIVES_IDLE.as_secs() + USER_TIMEOUT.as_secs() + KEEPALIVES_INTERVAL.as_secs() < 60
);

/// How often a connection that has heard nothing looks whether its peer takes no data, and lives. The kernel would give up
/// such a peer after [`USER_TIMEOUT`], too, though it may only be busy with a long statement.
pub const STALL_LOOK: Duration = Duration::from_secs(10);

const _: () = assert!(STALL_LOOK.as_secs() * 3 < USER_TIMEOUT.as_secs());

/// Bytes asked of the socket in one gulp. Large enough that a reader who is behind wakes seldom; one such buffer a
/// connection is in use at a time, more only while slices of older ones are held.
pub const READ_BYTES: usize = 256 << 10;

/// Room left in a read buffer below which a new one is taken. A small message that comes alone shares its buffer with
/// the next ones instead of pinning a whole one.
pub const READ_BYTES_MIN: usize = 32 << 10;

const _: () = assert!(READ_BYTES_MIN < READ_BYTES);

/// Bytes of COPY rows or statements gathered before they are written to the socket.
pub const SEND_BYTES: usize = 64 << 10;

/// Memory that an emptied pipeline keeps for the next one: a batch's. What a single large row took is given back.
pub const PIPELINE_BYTES_KEPT: usize = 32 << 20;

/// Bytes of one message of COPY rows that were put together, header included: what a server's COPY reads at once
/// (`RAW_BUF_SIZE`). Rows that are longer stay as they are.
pub const COPY_MESSAGE_BYTES: usize = 64 << 10;

/// SCRAM iterations computed before other tasks get their turn: about a millisecond. Their number itself has no bound,
/// since the server's administrator chooses it; the time to connect bounds it.
pub const SCRAM_ITERATIONS_SLICE: u32 = 4_096;

/// How long a control connection is silent about what was asked until somebody makes sure that the server still answers:
/// what it usually answers takes far less, and a new connection costs it little.
pub const CONTROL_PATIENCE: Duration = Duration::from_secs(30);

/// How often that is looked at. With [`CONNECT_TIMEOUT`], a server that hangs is noticed after about a minute.
pub const CONTROL_LOOK: Duration = Duration::from_secs(5);

/// How long a new connection's first question may then take: one that has just been let in has nothing to wait for.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

const _: () = assert!(
    CONTROL_PATIENCE.as_secs()
        + CONTROL_LOOK.as_secs()
        + CONNECT_TIMEOUT.as_secs()
        + ANSWER_PATIENCE.as_secs()
        <= 60
);

/// Between two looks whether the server still answers that `pg_dump` works on. It is given up when two find it silent.
pub const DUMP_LOOK: Duration = Duration::from_secs(30);

/// How long `pg_dump` may take for a schema at all, locks that others hold included: ten thousand tables take it seconds.
pub const DUMP_MAX: Duration = Duration::from_secs(2 * 3_600);

/// How long one answer may take in `check`, whoever else is answered: its questions are of the catalog, at most some hundred
/// thousand rows of it.
pub const CHECK_STATEMENT_MAX: Duration = Duration::from_secs(300);

/// How long one statement of a control connection may take at all: longer than the longest cutover, whose materialised
/// views are filled on one.
pub const CONTROL_STATEMENT_MAX: Duration = Duration::from_secs(4 * 3_600);

const _: () = assert!(CUTOVER_TIMEOUT_MAX.as_secs() < CONTROL_STATEMENT_MAX.as_secs());

/// Notifications held for a listener that is busy. They only say "look again", so what comes above is dropped.
pub const NOTIFICATIONS_MAX: usize = 64;

/// Samples of the source's WAL position that one pipeline's lag clock keeps. At one a second this is a lag of half an
/// hour at full resolution, in 48 KiB; beyond that the resolution halves, and stays within 0.1 % of the time spanned.
pub const LAG_SAMPLES_MAX: usize = 2_048;

/// Connections to the HTTP server at once. Its readers are a browser, a Prometheus and a load balancer or two, and where
/// more come, those that say nothing go. A quarter of the files that a process may open on most machines.
pub const HTTP_CONNECTIONS_MAX: usize = 256;

/// Answers at once, but for `/healthz`. Each is held in memory until it is read: 1.5 MB of 10,000 tables.
pub const HTTP_ANSWERS_MAX: usize = 32;

const _: () = assert!(HTTP_ANSWERS_MAX < HTTP_CONNECTIONS_MAX);

/// For the TLS handshake, and then for all headers of the request. A client that has something to ask does so at once.
pub const HTTP_HEADERS_TIMEOUT: Duration = Duration::from_secs(3);

/// All headers of a request: more than a browser sends, and the least that hyper can do with.
pub const HTTP_HEADERS_BYTES_MAX: usize = 8 * 1_024;

/// The whole life of one connection to the HTTP server, which serves one request: longer than any answer takes, and
/// short enough that connections that read nothing do not keep memory.
pub const HTTP_CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Until the next connection is accepted after one could not be.
pub const HTTP_ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The file of a token, or of a key: any key is far smaller, and a device has no end.
pub const HTTP_SECRET_FILE_BYTES_MAX: u64 = 64 * 1_024;

/// A token of fewer characters could be guessed.
pub const HTTP_TOKEN_CHARS_MIN: usize = 16;

/// How long answers that are under way when the process ends may still take.
pub const HTTP_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Tables that the HTML page lists for one database, those that failed or are being copied first; `/status` has all.
pub const PAGE_TABLES_MAX: usize = 200;

/// Bytes of a migration's name. The server allows 63 for a slot's name; the rest is for what is put around it.
pub const MIGRATION_NAME_BYTES_MAX: usize = 40;

/// Databases that are copied at the same time, with `--jobs` connections on either side each: while one makes its indexes,
/// the other keeps the network busy. More would only divide the same, and each has a slot that keeps the source's WAL.
pub const DATABASES_COPIED_MAX: usize = 2;

/// Databases that are looked into at the same time, each on one connection: enough to hide the way to a far server.
pub const DATABASES_LOOKED_AT: usize = 8;

/// Connections to a target's database besides those of the jobs: to ask, to apply, to look at what goes on; and one to
/// spare.
pub const CONNECTIONS_BESIDE_JOBS: usize = 4;

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

/// Names that one finding of a check lists; the rest is counted. Whoever repairs that many things has a pattern by then.
pub const FINDING_NAMES_MAX: usize = 20;

/// Lines of a finding's hint in the table for people, which should fit a screen; the JSON has all of them.
pub const FINDING_LINES_SHOWN: usize = 3;

/// How long a transaction has been writing when a check mentions it: the creation of a slot waits for its end.
pub const LONG_TRANSACTION: Duration = Duration::from_secs(30);

/// The first pause before a failed attempt is repeated.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause: a server that comes back is noticed within it.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long attempts go on without anything achieved: longer than a maintenance window's failover, shorter than the
/// time in which nobody looks at an alert.
pub const RETRY_FOR: Duration = Duration::from_secs(3_600);

/// The same before both sides were reached for the first time: what never worked is most likely a mistake.
pub const RETRY_FOR_AT_START: Duration = Duration::from_secs(5);

/// Snapshots on which tables are copied that were rewritten or emptied before they could be read on the one before. Each
/// time it is these tables alone, which takes less; where that many do not do, the next attempt goes on, after a pause.
pub const COPY_ROUNDS_MAX: usize = 10;

/// An attempt that lasted this long was of use, whatever ended it: a copy, for example.
pub const STEADY_AFTER: Duration = Duration::from_secs(60);

const _: () = assert!(RETRY_PAUSE_MAX.as_secs() < RETRY_FOR.as_secs());

/// How often sequences are carried over while following. They are set exactly when the stream is stopped.
pub const SEQUENCES_INTERVAL: Duration = Duration::from_secs(30);

/// How often the source is asked for new partitions, beside the stream: one question to the catalog. Rows of a new one
/// arrive so much later.
pub const PARTITIONS_INTERVAL: Duration = Duration::from_secs(2);

/// After so long the target is asked again to take a partition that it has refused: its stream may have been behind, or
/// somebody may have made room.
pub const PARTITIONS_RETRY: Duration = Duration::from_secs(60);

/// To attach a partition takes a lock that readers of the default partition hold up, and that holds up others. Whoever
/// reads for longer is let go on; it is tried again after [`PARTITIONS_RETRY`].
pub const PARTITION_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a look waits until all before it is applied, so that partitions can be dropped: a stream that is further behind is
/// for the next look, half a minute later.
pub const PARTITION_DROP_WAIT: Duration = Duration::from_secs(10);

/// A writer's pause before it connects again to a source that restarts.
pub const DEMO_RECONNECT_DELAY: Duration = Duration::from_millis(100);

/// Writers end after their present transaction, which is short; one that waits for a server that hangs is cut off.
pub const DEMO_WRITERS_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows that a comparison of two servers of one's own holds of each side: rows of some kB make a few MB.
pub const DEMO_COMPARE_BATCH_ROWS: u32 = 500;

/// Any one step of the demo: its longest takes a few seconds on a machine with nothing else to do.
pub const DEMO_STEP_TIMEOUT: Duration = Duration::from_secs(180);

/// How often the demo asks its engine how far it is: often enough to look alive.
pub const DEMO_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// One such question, over loopback.
pub const DEMO_STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of one answer: some 200 for each of the demo's tables.
pub const DEMO_STATUS_BYTES_MAX: u64 = 1 << 20;

/// How often the changing line is written where it cannot be redrawn.
pub const DEMO_LINE_EVERY: Duration = Duration::from_secs(2);

/// The time over which the rate of transactions is measured.
pub const DEMO_RATE_WINDOW: Duration = Duration::from_secs(2);

/// How long the demo shows a migration that is in sync.
pub const DEMO_SYNC_FOR: Duration = Duration::from_secs(6);

/// How long the demo's burst of writes lasts: the engine misses the second half of it.
pub const DEMO_BURST_FOR: Duration = Duration::from_secs(5);

/// When in the burst the engine is killed: pgbench needs a moment to connect.
pub const DEMO_KILL_AFTER: Duration = Duration::from_millis(2_500);

const _: () = assert!(DEMO_KILL_AFTER.as_millis() < DEMO_BURST_FOR.as_millis());

/// How long the source is asked whether a large transaction has committed, so that it need not wait for its commit.
/// Nothing is received meanwhile.
pub const AHEAD_ASK: Duration = Duration::from_secs(1);

/// How long setting sequences on the target waits for a lock while the stream goes on: a transaction that is being
/// applied may have emptied a table with RESTART IDENTITY, and need this connection to go on.
pub const SEQUENCES_LOCK_WAIT: Duration = Duration::from_secs(2);

/// Bytes of a transaction in progress that are gathered before they are written to its spool.
pub const SPILL_WRITE_BYTES: usize = 256 << 10;

/// Bytes of a spool read at a time. Slices of it are what a segment holds.
pub const SPILL_READ_BYTES: usize = 256 << 10;

/// Bytes that all spools of one pipeline may take where nothing else is asked for: a transaction of some ten million
/// rows. Beyond it the source keeps its unfinished transactions itself.
pub const SPILL_BYTES_MAX_DEFAULT: u64 = 8 << 30;

/// Subtransactions of unfinished transactions that are remembered as rolled back: some 10 MB.
pub const SPILL_ROLLED_BACK_MAX: usize = 1 << 20;

/// Bytes of a spool that are left out at a stretch before others get their turn: a second's reading.
pub const SPILL_LEFT_OUT_BYTES_MAX: usize = 64 << 20;

/// How long what the target said of all its tables is taken for what they are now: one question instead of thousands
/// when a backlog begins, and nothing old when somebody changes them later.
pub const TARGET_TABLES_RECENT: Duration = Duration::from_secs(30);

/// How long a cutover may take before it is given up and the source can be written to again, where nothing else is asked
/// for: what people call a short interruption ends somewhere.
pub const CUTOVER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// The most of it: large materialised views may have to be filled again.
pub const CUTOVER_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

const _: () = assert!(CUTOVER_TIMEOUT_DEFAULT.as_secs() <= CUTOVER_TIMEOUT_MAX.as_secs());

/// How long a command waits for a running engine to take its request: an engine that follows hears of it at once, and
/// needs longer only while it reconnects.
pub const REQUEST_TAKEN_WAIT: Duration = Duration::from_secs(10);

/// Age of a request that nobody has taken beyond which nobody waits for it any more.
pub const REQUEST_STALE_AFTER: Duration = Duration::from_secs(15);

const _: () = assert!(REQUEST_TAKEN_WAIT.as_secs() < REQUEST_STALE_AFTER.as_secs());

/// Between two looks at what became of a request, or at who is left on the source.
pub const REQUEST_POLL: Duration = Duration::from_millis(50);

/// How long the engine of a request may be away before it is given up for ended: longer than it takes to connect again.
pub const REQUEST_ENGINE_WAIT: Duration = Duration::from_secs(5);

/// How long `cutover` waits for the target's roles to get LOGIN once all is done: the engine does that within a second,
/// unless its connection breaks right then.
pub const TARGET_OPENED_WAIT: Duration = Duration::from_secs(10);

/// How much longer than its timeout a cutover is waited for: the fence has to be taken down.
pub const CUTOVER_ANSWER_WAIT: Duration = Duration::from_secs(60);

/// How long the source's sessions have to be gone when they are ended: an ended one finishes what it is at within
/// milliseconds, and the source cannot be written to meanwhile. Before the fence, one that cannot be ended has as long to
/// go by itself.
pub const FENCE_SESSIONS_WAIT: Duration = Duration::from_secs(5);

/// How long the setting that fences a source waits for others that hold the database's entry.
pub const FENCE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a fence may take to come down, tries of all kinds together, before that is reported as a failure of its own.
pub const UNFENCE_TIMEOUT: Duration = Duration::from_secs(30);

const _: () = assert!(UNFENCE_TIMEOUT.as_secs() < CUTOVER_ANSWER_WAIT.as_secs());

/// How long after a cutover's time is over a statement of it may go on that nobody waits for any more: whoever asked is
/// to hear that it took too long, and not which statement the server has ended for that.
pub const LATE_STATEMENT_GRACE: Duration = Duration::from_secs(1);

/// How long a source without a fence has to stay unwritten: who has stopped its writers loses that time, and a writer
/// that was forgotten is likely to write in it.
pub const UNFENCED_WATCH: Duration = Duration::from_secs(2);

/// Statements for objects that differ that one failure of a cutover has: a schema of thousands may be dropped at once.
pub const SCHEMA_DRIFT_SHOWN_MAX: usize = 100;

/// Names of sessions that one failure of a cutover lists.
pub const CUTOVER_NAMES_MAX: usize = 10;

/// Statements about roles and privileges that go to the target in one query: a way to it costs as much as many of them.
/// One that is refused has all of its query run again one by one.
pub const STATEMENTS_PER_QUERY: usize = 100;

/// Statements that the target refuses and that are logged one by one: more would bury the rest of the log.
pub const REFUSALS_LOGGED_MAX: usize = 50;

/// Large objects that one transaction of the target takes over, or drops: each is locked, and a server has locks for some
/// thousands of objects.
pub const LARGE_OBJECTS_PER_STEP: usize = 256;

/// Large objects whose first bytes are moved at once, so that small ones do not cost a round trip each.
pub const LARGE_OBJECTS_AT_ONCE: usize = 16;

/// First bytes of a large object that are moved together with those of others: of all of them as much as one chunk.
pub const LARGE_OBJECT_FIRST_BYTES: usize = 64 << 10;

/// Bytes of a large object that are read, compared and written in one go: each job holds a few copies of that, and so
/// does either server.
pub const LARGE_OBJECT_CHUNK_BYTES: usize = 1 << 20;

const _: () = assert!(LARGE_OBJECTS_AT_ONCE * LARGE_OBJECT_FIRST_BYTES <= LARGE_OBJECT_CHUNK_BYTES);

/// Chunks of a large object whose hashes are compared at once: they take 100 kB a side.
pub const LARGE_OBJECT_CHUNKS_COMPARED: i64 = 1_000;

/// How often the source is asked, beside the stream, whether it rejects writes of its own for what is published: one
/// question to the catalog, which takes it 0.15 s for 10,000 tables.
pub const IDENTITIES_INTERVAL: Duration = Duration::from_secs(5);

/// The pause after that is as many times as long as the question took, if that is more.
pub const IDENTITIES_PAUSE: u32 = 50;

/// How long a change of a table's replica identity waits for those who use the table: all others queue up behind it.
pub const IDENTITY_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before that is tried again, in which the queue empties.
pub const IDENTITY_RETRY_PAUSE: Duration = Duration::from_secs(3);

/// How often it is tried: within two minutes most reports end.
pub const IDENTITY_TRIES_MAX: usize = 24;

/// Sessions on the source besides one for each job: control, walsender, snapshot, and a monitor.
pub const SOURCE_CONNECTIONS: u64 = 4;

/// Sessions on the target besides one for each job: control, apply, and a command.
pub const TARGET_CONNECTIONS: u64 = 3;

/// How long an expression may take when it is tried on one row, in milliseconds: one that takes longer has found what it
/// names.
pub const EXPRESSION_TRIAL_MILLISECONDS_MAX: i64 = 2_000;
