//! Writers that keep a source busy: the shop's transactions, and pgbench's.
//!
//! They write as the databases' owner, go on when the server restarts, and end between two transactions: when
//! [`Writers::stop`] returns, all that they were told is committed stays, and nothing more comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::cluster::APP_OWNER;
use super::endpoint::Endpoint;
use super::sample::become_owner;
use super::shop_writes::NOT_ON_10;
use super::{Result, SHOP_WRITES, Server, ShopWrite};
use crate::limits::{DEMO_RECONNECT_DELAY, DEMO_WRITERS_STOP_TIMEOUT};

/// Writers at work. Dropped, they are cut off wherever they are.
#[derive(Debug)]
pub struct Writers {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    counts: Arc<Mutex<WriterCounts>>,
}

/// Who writes, and how much.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Connections that run [`SHOP_WRITES`]; the database must hold the shop.
    pub shop_clients: u32,
    /// The shop's transactions in a second, all clients together.
    pub shop_rate: u32,
    /// pgbench's connections; the database must hold its tables.
    pub pgbench_clients: u32,
    /// pgbench's transactions in a second, all clients together.
    pub pgbench_rate: u32,
    /// Names of [`SHOP_WRITES`] to leave out.
    pub leave_out: Vec<&'static str>,
}

/// What writers have done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterCounts {
    /// The shop's finished transactions, by name.
    pub shop: BTreeMap<&'static str, u64>,
    /// pgbench's finished transactions; counted every second or so.
    pub pgbench: u64,
    /// Ended by a deadlock or a row that moved meanwhile: a shop would repeat them.
    pub conflicts: u64,
    /// Connections lost or refused.
    pub disconnects: u64,
    /// Anything else that the server refused: none is expected.
    pub errors: u64,
    /// The last of these errors.
    pub last_error: Option<String>,
}

impl Default for WriterOptions {
    /// The shop alone: two clients, a hundred transactions in a second.
    fn default() -> Self {
        Self { shop_clients: 2, shop_rate: 100, pgbench_clients: 0, pgbench_rate: 100, leave_out: Vec::new() }
    }
}

impl WriterCounts {
    /// Finished transactions of every kind.
    pub fn transactions(&self) -> u64 {
        self.shop.values().sum::<u64>() + self.pgbench
    }
}

impl Writers {
    /// Starts writing to `database`.
    ///
    /// # Errors
    /// When the server does not answer now: later it may come and go.
    ///
    /// # Panics
    /// When a rate is 0, or all kinds of the shop's transactions are left out.
    pub async fn start(server: &Server, database: &str, options: WriterOptions) -> Result<Self> {
        let endpoint = server.endpoint();
        endpoint.client(database).await?;
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(Mutex::new(WriterCounts::default()));
        let mut tasks = JoinSet::new();
        let unable: &[&str] = if server.binaries().major() == 10 { &NOT_ON_10 } else { &[] };
        let left_out = |name| options.leave_out.contains(&name) || unable.contains(&name);
        let kept = |write: &ShopWrite| !left_out(write.name);
        let writes: Vec<_> = SHOP_WRITES.into_iter().filter(kept).collect();
        for _ in 0..options.shop_clients {
            let writer = Writer {
                endpoint: endpoint.clone(),
                database: database.to_owned(),
                stopped: stopped.clone(),
                counts: Arc::clone(&counts),
            };
            let pause = Duration::from_secs(1) * options.shop_clients / options.shop_rate;
            tasks.spawn(writer.shop(writes.clone(), pause));
        }
        if options.pgbench_clients > 0 {
            let database = database.to_owned();
            let writer = Writer { endpoint, database, stopped, counts: Arc::clone(&counts) };
            tasks.spawn(writer.pgbench(options.pgbench_clients, options.pgbench_rate));
        }
        Ok(Self { tasks, stop, counts })
    }

    /// What was done so far.
    pub fn counts(&self) -> WriterCounts {
        lock(&self.counts).clone()
    }

    /// Ends the writers after their transactions; returns what was done.
    pub async fn stop(mut self) -> WriterCounts {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // A server that hangs would hold its writers for ever.
        if timeout(DEMO_WRITERS_STOP_TIMEOUT, all).await.is_err() {
            self.tasks.shutdown().await;
        }
        self.counts()
    }
}

/// One task's way to the server.
struct Writer {
    endpoint: Endpoint,
    database: String,
    stopped: watch::Receiver<bool>,
    counts: Arc<Mutex<WriterCounts>>,
}

impl Writer {
    async fn shop(self, writes: Vec<ShopWrite>, pause: Duration) {
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client = None;
        while !*self.stopped.borrow() {
            ticks.tick().await;
            match &client {
                None => client = self.connect().await,
                Some(open) => {
                    if !self.write(open, choose(&writes)).await {
                        client = None;
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Option<Client> {
        if let Ok(client) = self.endpoint.client(&self.database).await
            && become_owner(&client).await.is_ok()
        {
            return Some(client);
        }
        lock(&self.counts).disconnects += 1;
        sleep(DEMO_RECONNECT_DELAY).await;
        None
    }

    /// Runs one transaction; false when the connection is lost.
    async fn write(&self, client: &Client, write: ShopWrite) -> bool {
        let Err(error) = client.batch_execute(write.sql).await else {
            *lock(&self.counts).shop.entry(write.name).or_default() += 1;
            return true;
        };
        let rolled_back = client.batch_execute("ROLLBACK").await.is_ok();
        let mut counts = lock(&self.counts);
        match error.code() {
            _ if !rolled_back => counts.disconnects += 1,
            Some(&SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE) => {
                counts.conflicts += 1
            }
            _ => {
                let text =
                    error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
                counts.errors += 1;
                counts.last_error = Some(format!("{}: {text}", write.name));
            }
        }
        rolled_back
    }

    /// Runs pgbench in short rounds: each connects anew, and the end of the last is soon.
    async fn pgbench(self, clients: u32, rate: u32) {
        let clients = clients.to_string();
        let rate = rate.to_string();
        while !*self.stopped.borrow() {
            let mut pgbench = self.endpoint.superuser_tool("pgbench", &self.database);
            pgbench.env("PGOPTIONS", format!("-c role={APP_OWNER}"));
            pgbench.args(["--no-vacuum", "--time=1", "--client", &clients, "--rate", &rate]);
            let output = pgbench.output().await;
            let Ok(output) = output else {
                lock(&self.counts).errors += 1;
                return;
            };
            let text = String::from_utf8_lossy(&output.stdout);
            lock(&self.counts).pgbench += processed(&text);
            if !output.status.success() {
                lock(&self.counts).disconnects += 1;
                sleep(DEMO_RECONNECT_DELAY).await;
            }
        }
    }
}

fn lock(counts: &Mutex<WriterCounts>) -> MutexGuard<'_, WriterCounts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn choose(writes: &[ShopWrite]) -> ShopWrite {
    let total: u32 = writes.iter().map(|write| write.weight).sum();
    let mut left = rand::rng().random_range(0..total);
    for write in writes {
        match left.checked_sub(write.weight) {
            Some(less) => left = less,
            None => return *write,
        }
    }
    unreachable!("the weights' sum is {total}")
}

/// 97 of `number of transactions actually processed: 97` (or `97/100`).
fn processed(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    line.and_then(|rest| rest.split('/').next()?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_of_pgbench() {
        assert_eq!(processed("x\nnumber of transactions actually processed: 97\nlatency"), 97);
        assert_eq!(processed("number of transactions actually processed: 9/10\n"), 9);
        assert_eq!(processed(""), 0);
    }

    #[test]
    fn every_write_is_chosen() {
        let chosen: std::collections::HashSet<_> = (0..10_000).map(|_| choose(&SHOP_WRITES).name).collect();
        assert_eq!(chosen.len(), SHOP_WRITES.len());
    }
}
