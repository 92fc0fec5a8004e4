//! The connection that writes to the target, and what it must be before it may.

use crate::catalog;
use crate::config::Secret;
use crate::error::{Definite, Result, Side};
use crate::limits::{ENGINE_LOCK_POLL, ENGINE_LOCK_TOLD_AFTER, ENGINE_LOCK_WAIT};
use crate::pg::Sql;
use crate::store::apply_role;
use crate::store::lock::{advisory, lock_name, of_holders};
use crate::wire::{ConnInfo, Session, SessionOptions};

use super::Writer;

/// A session that holds the migration's advisory lock and acts as a replica.
#[derive(Debug)]
pub struct TargetSession {
    session: Session,
    migration: String,
    /// Of a role's session: what its writes in schema `walferry` need.
    key: Option<Secret>,
}

impl TargetSession {
    /// Connects, takes the lock, and switches triggers and foreign keys off.
    ///
    /// The lock of an engine that was just killed lasts until the server notices, so this waits for it a little. A
    /// session of our own that broke may live on at the server, which did not hear of it: `lost` is its process, and
    /// is ended if it holds the lock.
    ///
    /// # Errors
    /// When another engine holds the lock; when `session_replication_role` cannot be set though triggers or foreign
    /// keys would act; and as any connection.
    pub async fn connect(info: &ConnInfo, migration: &str, lost: Option<i32>) -> Result<Self> {
        let mut target = Self::lock(info, migration, lost).await?;
        become_replica(&mut target.session, false).await?;
        target.pin_planner().await?;
        Ok(target)
    }

    /// Gives the lock to a session of the role that is to write the rows, where there is one. Nobody gets in between: for a
    /// moment both hold it.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn hand_over(self, writer: &Writer) -> Result<Self> {
        let Some(key) = writer.key().filter(|_| self.key.is_none()).cloned() else { return Ok(self) };
        let session = writer.connect(&SessionOptions::new("walferry apply")).await?;
        let mut target = Self { session, migration: self.migration.clone(), key: Some(key) };
        let name = lock_name(&target.migration);
        // Somebody may hold that very key.
        while target.query(&advisory("pg_try_advisory_lock", &name, rand::random())).await?.as_deref()
            != Some("t")
        {}
        become_replica(&mut target.session, true).await?;
        target.pin_planner().await?;
        self.session.close().await;
        Ok(target)
    }

    /// Connects and takes the lock, for work that changes no rows: triggers and foreign keys act as ever.
    ///
    /// # Errors
    /// When another engine holds the lock, and as any connection.
    pub async fn lock(info: &ConnInfo, migration: &str, lost: Option<i32>) -> Result<Self> {
        let options = SessionOptions::new("walferry apply");
        let session = Session::connect(info, &options).await.map_err(|e| e.into_failure(Side::Target))?;
        let mut target = Self { session, migration: migration.to_owned(), key: None };
        target.take_lock(lost).await?;
        Ok(target)
    }

    /// The migration that it writes for.
    pub fn migration(&self) -> &str {
        &self.migration
    }

    /// What writes in schema `walferry` need, where the session is not its owner's.
    pub(super) const fn key(&self) -> Option<&Secret> {
        self.key.as_ref()
    }

    /// The server's process.
    pub const fn process_id(&self) -> i32 {
        self.session.process_id()
    }

    /// The connection itself.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    async fn take_lock(&mut self, mut lost: Option<i32>) -> Result<()> {
        let began = tokio::time::Instant::now();
        let mut told = false;
        loop {
            if self.try_lock().await? {
                return Ok(());
            }
            if let Some(pid) = lost.take() {
                let end = self.of_others("pg_terminate_backend(a.pid)").text(" AND a.pid = ").number(pid);
                self.query(&end).await?;
            }
            if began.elapsed() >= ENGINE_LOCK_TOLD_AFTER && !told {
                told = true;
                let holder = self.lock_holder().await?.unwrap_or_default();
                tracing::warn!(
                    holder,
                    wait_s = ENGINE_LOCK_WAIT.as_secs(),
                    "another engine runs this migration, or was just killed: waiting whether it ends"
                );
            }
            if began.elapsed() >= ENGINE_LOCK_WAIT {
                let holder = self.lock_holder().await?;
                return Err(Definite::new("another engine runs this migration")
                    .detail(holder.unwrap_or_else(|| "it holds the advisory lock on the target".to_owned()))
                    .hint("stop it first, or give this migration another --name")
                    .into());
            }
            // Two that begin at the same time see each other, and both step back: not for the same time.
            tokio::time::sleep(ENGINE_LOCK_POLL.mul_f64(rand::random_range(0.5..=1.5))).await;
        }
    }

    /// Takes a lock of a key that nobody else knows, and looks whether another engine has one. Of two that do so at the same
    /// time, at least one sees the other.
    async fn try_lock(&mut self) -> Result<bool> {
        let others = self.of_others("a.pid").text(" LIMIT 1");
        if self.query(&others).await?.is_some() {
            return Ok(false);
        }
        let (name, key) = (lock_name(&self.migration), rand::random());
        if self.query(&advisory("pg_try_advisory_lock", &name, key)).await?.as_deref() != Some("t") {
            return Ok(false);
        }
        let alone = self.query(&others).await?.is_none();
        if !alone {
            self.query(&advisory("pg_advisory_unlock", &name, key)).await?;
        }
        Ok(alone)
    }

    fn of_others(&self, what: &'static str) -> Sql {
        let name = lock_name(&self.migration);
        of_holders(what, &[name.as_str()]).text(" AND a.pid <> pg_catalog.pg_backend_pid()")
    }

    async fn lock_holder(&mut self) -> Result<Option<String>> {
        let what = "format('server process %s, connected since %s from %s', a.pid, a.backend_start, \
                    coalesce(a.client_addr::text, 'a local socket'))";
        let sql = self.of_others(what);
        self.query(&sql).await
    }

    /// A key's index is always the way: stale statistics must not turn a row's look-up into a scan. One plan serves
    /// all executions. Commits do not wait for the disk: nothing is confirmed to the source before it is there.
    async fn pin_planner(&mut self) -> Result<()> {
        let sql =
            Sql::new("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; ")
                .text(
                    "SET plan_cache_mode = force_generic_plan; SET jit = off; SET synchronous_commit = off",
                );
        self.session.execute(&sql).await.map(|_| ()).map_err(|e| e.into_failure(Side::Target))
    }

    async fn query(&mut self, sql: &Sql) -> Result<Option<String>> {
        query(&mut self.session, sql).await
    }
}

/// Switches triggers and foreign keys off for the session: directly where that is granted (superuser, or GRANT SET ON
/// PARAMETER), else by Aiven's function. A session of the `role` that writes rows does it by way of the target's user.
///
/// # Errors
/// When neither is possible, and there is a trigger or foreign key that would act.
pub async fn become_replica(session: &mut Session, role: bool) -> Result<()> {
    if role {
        query(session, &Sql::new(apply_role::BECOME_REPLICA)).await?;
    } else if session.execute(&Sql::new("SET session_replication_role = replica")).await.is_ok() {
        return Ok(());
    }
    let extras = catalog::extension_has(catalog::SESSION_REPLICATION_ROLE);
    if !role && query(session, &extras).await?.as_deref() == Some("t") {
        query(session, &by_aiven_extras()).await?;
    }
    let role = query(session, &Sql::new("SHOW session_replication_role")).await?;
    if role.as_deref() == Some("replica") || !has_triggers(session).await? {
        return Ok(());
    }
    Err(Definite::new("triggers and foreign keys of the target cannot be switched off for this session")
        .detail("neither SET session_replication_role nor aiven_extras.session_replication_role is allowed")
        .hint(
            "on the target run CREATE EXTENSION aiven_extras (Aiven), or as superuser: GRANT SET ON PARAMETER \
             session_replication_role TO the migrating role",
        )
        .into())
}

/// The statement by which Aiven's function makes a session a replica.
pub fn by_aiven_extras() -> Sql {
    catalog::call_extension(
        catalog::SESSION_REPLICATION_ROLE,
        "aiven_extras.session_replication_role(role)",
        "'replica'::text AS role",
    )
}

/// Foreign keys are triggers too.
async fn has_triggers(session: &mut Session) -> Result<bool> {
    let sql = Sql::new("SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid ")
        .text("JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgenabled <> 'D' ")
        .text("AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'walferry'))");
    Ok(query(session, &sql).await?.as_deref() == Some("t"))
}

/// The first column of the first row.
async fn query(session: &mut Session, sql: &Sql) -> Result<Option<String>> {
    let rows = session.query(sql).await.map_err(|e| e.into_failure(Side::Target))?;
    Ok(rows.first().and_then(|row| row.text(0)).map(str::to_owned))
}

const _: () = assert!(ENGINE_LOCK_WAIT.as_millis() > ENGINE_LOCK_POLL.as_millis());
