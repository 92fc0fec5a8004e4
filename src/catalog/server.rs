//! What a server says of itself, of the current database, and of the current user.

use std::collections::HashMap;
use std::time::Duration;

use super::{Error, SideClient, SourceClient, ask};
use crate::error::Side;
use crate::pg::{PgTimestamp, ServerVersion, Sql, SystemId, TimelineId};
use crate::source::Dialect;

/// A server, as seen from one session of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: ServerVersion,
    /// The cluster's identifier; `None` where this user may not ask.
    pub system_id: Option<SystemId>,
    /// The timeline that WAL is written on; `None` where it cannot be asked (in recovery, by an unprivileged user).
    pub timeline: Option<TimelineId>,
    /// When the server was started: with `system_id`, tells a server from its physical copies.
    pub started: PgTimestamp,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `default_transaction_read_only`: some providers set it when a disk is full.
    pub read_only: bool,
    /// `wal_level`: `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// `max_replication_slots`.
    pub max_replication_slots: u64,
    /// `max_wal_senders`.
    pub max_wal_senders: u64,
    /// `max_slot_wal_keep_size` in bytes; `None` for unlimited, and before 13.
    pub max_slot_wal_keep_size: Option<u64>,
    /// `wal_sender_timeout`; `None` for none.
    pub wal_sender_timeout: Option<Duration>,
    /// `max_worker_processes`.
    pub max_worker_processes: u64,
    /// `max_connections`.
    pub max_connections: u64,
    /// This session's `lock_timeout`; `None` for none.
    pub lock_timeout: Option<Duration>,
    /// `idle_replication_slot_timeout` (18); `None` for none.
    pub idle_replication_slot_timeout: Option<Duration>,
    /// `synchronous_standby_names`; `None` where it cannot be read.
    pub synchronous_standby_names: Option<String>,
    /// `synchronized_standby_slots`; `None` where the server knows none (before 17).
    pub synchronized_standby_slots: Option<String>,
    /// Who runs the server, as far as roles and settings show.
    pub provider: Provider,
    /// The current database's name.
    pub database: String,
    /// The current database's size on disk.
    pub database_bytes: u64,
    /// The current database's encoding and locale.
    pub locale: DatabaseLocale,
    /// The current user.
    pub user: UserFacts,
}

/// A database's encoding and locale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseLocale {
    /// `UTF8`, `SQL_ASCII`, ….
    pub encoding: String,
    /// `datcollate`.
    pub collate: String,
    /// `datctype`.
    pub ctype: String,
    /// `datlocprovider`: `c` (libc), `i` (ICU) or `b` (builtin).
    pub provider: String,
    /// The ICU or builtin locale.
    pub locale: Option<String>,
}

/// What the current user is and may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFacts {
    /// `current_user`.
    pub name: String,
    /// Is a superuser.
    pub superuser: bool,
    /// May open replication connections: the attribute, or membership of `rds_replication`.
    pub replication: bool,
    /// May create databases.
    pub create_db: bool,
    /// May create roles.
    pub create_role: bool,
    /// Passes row-level security.
    pub bypass_rls: bool,
    /// Sees what other roles' sessions do.
    pub reads_all_stats: bool,
    /// Has CREATE on the current database, which schemas, publications and trusted extensions need.
    pub creates_in_database: bool,
}

/// Who runs a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Its owner, or somebody who leaves no trace in the catalogs.
    SelfHosted,
    /// Amazon RDS or Aurora.
    Rds,
    /// Google Cloud SQL.
    CloudSql,
    /// Azure Database for PostgreSQL.
    Azure,
    /// Aiven.
    Aiven,
}

/// The server's version.
///
/// # Errors
/// When the server does not answer.
pub async fn server_version(client: &SideClient) -> Result<ServerVersion, Error> {
    let sql = Sql::new("SELECT current_setting('server_version_num') AS version");
    Ok(ServerVersion::new(ask::row(client, "the server's version", &sql, &[]).await?.parse("version")?))
}

/// What the server's clock says.
///
/// # Errors
/// When the server does not answer.
pub async fn clock(client: &SourceClient) -> Result<PgTimestamp, Error> {
    let sql = Sql::new("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 AS micros");
    let micros: i64 = ask::row(client, "the server's clock", &sql, &[]).await?.get("micros")?;
    Ok(PgTimestamp::from_unix_micros(micros))
}

/// The cluster's identifier; `None` where the current user may not ask.
///
/// # Errors
/// When the server does not answer.
pub async fn system_id(client: &SideClient) -> Result<Option<SystemId>, Error> {
    let question = "the system identifier";
    if !may_execute(client, question, "pg_control_system()").await? {
        return Ok(None);
    }
    let sql = Sql::new("SELECT system_identifier::text AS id FROM pg_control_system()");
    let id: i64 = ask::row(client, question, &sql, &[]).await?.parse("id")?;
    Ok(Some(SystemId::new(id.cast_unsigned())))
}

/// Everything that a server says of itself.
///
/// # Errors
/// When the server does not answer.
pub async fn server_facts(client: &SideClient) -> Result<ServerFacts, Error> {
    let version = server_version(client).await?;
    let (settings, in_recovery, (database, database_bytes, locale), system_id, started, provider, user) = tokio::try_join!(
        Settings::read(client),
        in_recovery(client),
        database(client, Dialect::new(version)),
        system_id(client),
        started(client),
        provider(client),
        user(client),
    )?;
    Ok(ServerFacts {
        version,
        system_id,
        timeline: timeline(client, in_recovery).await?,
        started,
        in_recovery,
        read_only: settings.text("default_transaction_read_only") == Some("on"),
        wal_level: settings.text("wal_level").unwrap_or_default().to_owned(),
        max_replication_slots: settings.count("max_replication_slots")?,
        max_wal_senders: settings.count("max_wal_senders")?,
        max_slot_wal_keep_size: settings.bytes("max_slot_wal_keep_size")?,
        wal_sender_timeout: settings.duration("wal_sender_timeout")?,
        max_worker_processes: settings.count("max_worker_processes")?,
        max_connections: settings.count("max_connections")?,
        lock_timeout: settings.duration("lock_timeout")?,
        idle_replication_slot_timeout: settings.duration("idle_replication_slot_timeout")?,
        synchronous_standby_names: settings.text("synchronous_standby_names").map(str::to_owned),
        synchronized_standby_slots: settings.text("synchronized_standby_slots").map(str::to_owned),
        provider,
        database,
        database_bytes,
        locale,
        user,
    })
}

async fn in_recovery(client: &SideClient) -> Result<bool, Error> {
    let sql = Sql::new("SELECT pg_is_in_recovery() AS answer");
    ask::row(client, "the recovery state", &sql, &[]).await?.get("answer")
}

async fn started(client: &SideClient) -> Result<PgTimestamp, Error> {
    let sql = Sql::new("SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 AS micros");
    let row = ask::row(client, "the server's start time", &sql, &[]).await?;
    Ok(PgTimestamp::from_unix_micros(row.get("micros")?))
}

/// A primary's timeline is taken from the name of the file that it writes to: the control file has it only from the
/// first checkpoint after a promotion on.
async fn timeline(client: &SideClient, in_recovery: bool) -> Result<Option<TimelineId>, Error> {
    let question = "the timeline";
    if !in_recovery {
        let sql = Sql::new("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS timeline");
        let row = ask::row(client, question, &sql, &[]).await?;
        let id = u32::from_str_radix(row.get("timeline")?, 16).map_err(|_| row.unexpected("timeline"))?;
        return Ok(Some(TimelineId::new(id)));
    }
    if !may_execute(client, question, "pg_control_checkpoint()").await? {
        return Ok(None);
    }
    let sql = Sql::new("SELECT timeline_id::text AS timeline FROM pg_control_checkpoint()");
    Ok(Some(TimelineId::new(ask::row(client, question, &sql, &[]).await?.parse("timeline")?)))
}

async fn may_execute(client: &SideClient, question: &'static str, function: &str) -> Result<bool, Error> {
    let sql = Sql::new("SELECT has_function_privilege($1::text, 'EXECUTE') AS answer");
    ask::row(client, question, &sql, &[&function]).await?.get("answer")
}

async fn database(client: &SideClient, dialect: Dialect) -> Result<(String, u64, DatabaseLocale), Error> {
    let sql = Sql::new(
        "SELECT d.datname::text AS name, pg_database_size(d.oid) AS bytes, pg_encoding_to_char(d.encoding)::text \
         AS encoding, d.datcollate::text AS collate, d.datctype::text AS ctype, ",
    )
    .text(dialect.locale())
    .text(" FROM pg_database d WHERE d.datname = current_database()");
    let row = ask::row(client, "the current database", &sql, &[]).await?;
    let locale = DatabaseLocale {
        encoding: row.get("encoding")?,
        collate: row.get("collate")?,
        ctype: row.get("ctype")?,
        provider: row.get("provider")?,
        locale: row.get("locale")?,
    };
    Ok((row.get("name")?, row.count("bytes")?, locale))
}

async fn user(client: &SideClient) -> Result<UserFacts, Error> {
    let sql = Sql::new(
        "SELECT r.rolname::text AS name, r.rolsuper AS superuser, r.rolcreatedb AS create_db, r.rolcreaterole AS \
         create_role, r.rolsuper OR r.rolbypassrls AS bypass_rls, r.rolsuper OR r.rolreplication OR EXISTS (SELECT \
         FROM pg_roles p WHERE p.rolname = 'rds_replication' AND pg_has_role(p.oid, 'MEMBER')) AS replication, \
         pg_has_role('pg_read_all_stats', 'USAGE') AS reads_all_stats, \
         has_database_privilege(current_database(), 'CREATE') AS creates_in_database \
         FROM pg_roles r WHERE r.rolname = current_user",
    );
    let row = ask::row(client, "the current user", &sql, &[]).await?;
    Ok(UserFacts {
        name: row.get("name")?,
        superuser: row.get("superuser")?,
        replication: row.get("replication")?,
        create_db: row.get("create_db")?,
        create_role: row.get("create_role")?,
        bypass_rls: row.get("bypass_rls")?,
        reads_all_stats: row.get("reads_all_stats")?,
        creates_in_database: row.get("creates_in_database")?,
    })
}

/// The roles that each provider makes in every cluster give it away.
async fn provider(client: &SideClient) -> Result<Provider, Error> {
    let sql = Sql::new(
        "SELECT rolname::text AS name FROM pg_roles WHERE rolname IN \
         ('rds_superuser', 'rds_replication', 'cloudsqlsuperuser', 'azure_pg_admin', 'avnadmin') \
         UNION ALL SELECT name FROM pg_available_extensions WHERE name = 'aiven_extras'",
    );
    let rows = ask::rows(client, "the provider's roles", &sql, &[]).await?;
    let names = rows.iter().map(|row| row.get::<String>("name")).collect::<Result<Vec<_>, _>>()?;
    let known = |name: &str| match name {
        "rds_superuser" | "rds_replication" => Some(Provider::Rds),
        "cloudsqlsuperuser" => Some(Provider::CloudSql),
        "azure_pg_admin" => Some(Provider::Azure),
        "avnadmin" | "aiven_extras" => Some(Provider::Aiven),
        _ => None,
    };
    Ok(names.iter().find_map(|name| known(name)).unwrap_or(Provider::SelfHosted))
}

/// Settings with their units, from `pg_settings`: what this server does not know, or does not show, is missing.
struct Settings {
    side: Side,
    found: HashMap<String, (String, Option<String>)>,
}

impl Settings {
    async fn read(client: &SideClient) -> Result<Self, Error> {
        let sql = Sql::new(
            "SELECT name, setting, unit FROM pg_settings WHERE name IN ('wal_level', 'max_replication_slots', \
             'max_wal_senders', 'max_slot_wal_keep_size', 'wal_sender_timeout', 'max_worker_processes', \
             'max_connections', 'lock_timeout', 'default_transaction_read_only', 'idle_replication_slot_timeout', \
             'synchronous_standby_names', 'synchronized_standby_slots')",
        );
        let rows = ask::rows(client, SETTINGS, &sql, &[]).await?;
        let entries = rows.iter().map(|row| Ok((row.get("name")?, (row.get("setting")?, row.get("unit")?))));
        Ok(Self { side: client.side(), found: entries.collect::<Result<_, Error>>()? })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.found.get(name).map(|(setting, _)| setting.as_str())
    }

    fn count(&self, name: &str) -> Result<u64, Error> {
        self.text(name).and_then(|text| text.parse().ok()).ok_or_else(|| self.wrong(name))
    }

    fn bytes(&self, name: &str) -> Result<Option<u64>, Error> {
        self.scaled(name, 0, |unit| match unit {
            "B" => Some(1),
            "kB" => Some(1 << 10),
            "MB" => Some(1 << 20),
            "GB" => Some(1 << 30),
            _ => None,
        })
    }

    fn duration(&self, name: &str) -> Result<Option<Duration>, Error> {
        let millis = self.scaled(name, 1, |unit| match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "min" => Some(60_000),
            _ => None,
        })?;
        Ok(millis.map(Duration::from_millis))
    }

    /// The value in the smallest unit; `None` where it is below `least` (which stands for "no bound") or missing.
    fn scaled(&self, name: &str, least: i64, unit: fn(&str) -> Option<i64>) -> Result<Option<u64>, Error> {
        let Some((setting, found)) = self.found.get(name) else { return Ok(None) };
        let value = setting.parse::<i64>().map_err(|_| self.wrong(name))?;
        let scale = found.as_deref().and_then(unit).ok_or_else(|| self.wrong(name))?;
        let scaled = if value < least { None } else { u64::try_from(value.saturating_mul(scale)).ok() };
        Ok(scaled)
    }

    fn wrong(&self, name: &str) -> Error {
        Error::unexpected(self.side, SETTINGS, format!("{name} is not what it should be"))
    }
}

const SETTINGS: &str = "the settings";
