//! What stands around a database's tables: what acts on its rows besides its clients, what is not carried, and how much
//! room there is for more sessions.

use super::{Error, SideClient, SourceClient, TargetClient, ask, dialect};
use crate::pg::{QualifiedName, Sql};
use crate::source::Dialect;

/// What stands around the tables of the current database; members of extensions aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Triggers and rules that fire for a replica, too: ENABLE REPLICA or ALWAYS.
    pub replica_triggers: Vec<ReplicaTrigger>,
    /// Event triggers.
    pub event_triggers: Vec<String>,
    /// Procedural languages that belong to no extension: made before those were extensions.
    pub languages: Vec<String>,
    /// Foreign servers.
    pub foreign_servers: Vec<String>,
    /// User mappings of them.
    pub user_mappings: Vec<UserMapping>,
    /// Tablespaces other than the default one that hold something of the database.
    pub tablespaces: Vec<String>,
    /// Security labels.
    pub security_labels: u64,
    /// Subscriptions: what they receive is written into this database.
    pub subscriptions: Vec<String>,
    /// Publications, Walferry's own aside.
    pub publications: Vec<String>,
    /// Those of them FOR ALL TABLES that publish updates or deletes.
    pub publications_of_all: Vec<String>,
    /// What sorts otherwise than when the server's library was another: the database, collations that columns have.
    pub changed_collations: Vec<ChangedCollation>,
}

/// A trigger or rule that fires for a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaTrigger {
    /// Its table.
    pub table: QualifiedName,
    /// Its name.
    pub name: String,
    /// A rule.
    pub rule: bool,
    /// ENABLE ALWAYS; else ENABLE REPLICA.
    pub always: bool,
}

/// Whose sessions reach a foreign server by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserMapping {
    /// The role; none: PUBLIC.
    pub role: Option<String>,
    /// The server.
    pub server: String,
    /// Its options are not there, or not shown to the current user: then pg_dump leaves them out.
    pub hidden: bool,
}

/// A collation whose version is another than the one that indexes were made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangedCollation {
    /// The database's default.
    Database(String),
    /// One of its own.
    Named(QualifiedName),
}

/// How many sessions there may be, and are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRoom {
    /// What `max_connections` leaves to roles that are no superusers.
    pub max: u64,
    /// Clients' sessions now, of all roles.
    pub used: u64,
    /// The current role's CONNECTION LIMIT, if it has one.
    pub role_max: Option<u64>,
    /// That role's sessions now.
    pub role_used: u64,
}

/// How many locks on tables the server's sessions can hold together, without what is left of other shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRoom {
    /// `max_locks_per_transaction`.
    pub per_session: u64,
    /// Sessions of all kinds, background processes and prepared transactions included.
    pub sessions: u64,
}

impl LockRoom {
    /// So many.
    pub const fn locks(self) -> u64 {
        self.per_session.saturating_mul(self.sessions)
    }
}

/// What stands around the current database's tables.
///
/// # Errors
/// When the server does not answer.
pub async fn surroundings(client: &SideClient) -> Result<Surroundings, Error> {
    let dialect = dialect(client).await?;
    let mut found =
        Surroundings { replica_triggers: replica_triggers(client).await?, ..Surroundings::default() };
    for (kind, name) in named(client).await? {
        match kind.as_str() {
            "event trigger" => found.event_triggers.push(name),
            "language" => found.languages.push(name),
            "server" => found.foreign_servers.push(name),
            "tablespace" => found.tablespaces.push(name),
            "subscription" => found.subscriptions.push(name),
            "publication" => found.publications.push(name),
            _ => found.publications_of_all.push(name),
        }
    }
    found.user_mappings = user_mappings(client).await?;
    let sql = Sql::new("SELECT count(*) AS labels FROM pg_seclabel");
    found.security_labels = ask::row(client, QUESTION, &sql, &[]).await?.count("labels")?;
    found.changed_collations = changed_collations(client, dialect).await?;
    Ok(found)
}

/// How many sessions there may be, and are.
///
/// # Errors
/// When the server does not answer.
pub async fn session_room(client: &SideClient) -> Result<SessionRoom, Error> {
    let sql = Sql::new(
        "SELECT (SELECT sum(CASE name WHEN 'max_connections' THEN 1 ELSE -1 END * setting::int8)::int8 FROM pg_settings \
         WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')) AS most, \
         count(*) FILTER (WHERE a.backend_type = 'client backend') AS used, \
         count(*) FILTER (WHERE a.backend_type = 'client backend' AND a.usename = current_user) AS role_used, \
         (SELECT rolconnlimit::int8 FROM pg_roles WHERE rolname = current_user) AS role_max FROM pg_stat_activity a",
    );
    let row = ask::row(client, "the sessions", &sql, &[]).await?;
    let role_max: i64 = row.get("role_max")?;
    Ok(SessionRoom {
        max: row.count("most")?,
        used: row.count("used")?,
        role_max: u64::try_from(role_max).ok(),
        role_used: row.count("role_used")?,
    })
}

/// How many locks there may be.
///
/// # Errors
/// When the server does not answer.
pub async fn lock_room(client: &SourceClient) -> Result<LockRoom, Error> {
    let dialect = dialect(client).await?;
    // One more is the launcher of autovacuum.
    let sql = Sql::new("SELECT (sum(setting::int8) FILTER (WHERE name = 'max_locks_per_transaction'))::int8 AS each, ")
        .text("1 + (sum(setting::int8) FILTER (WHERE name <> 'max_locks_per_transaction'))::int8 AS sessions ")
        .text("FROM pg_settings WHERE name IN ('max_locks_per_transaction', 'max_connections', 'max_worker_processes', ")
        .text("'max_prepared_transactions', ")
        .text(dialect.other_session_settings())
        .text(")");
    let row = ask::row(client, "the room for locks", &sql, &[]).await?;
    Ok(LockRoom { per_session: row.count("each")?, sessions: row.count("sessions")? })
}

/// The procedural languages that the current database has.
///
/// # Errors
/// When the server does not answer.
pub async fn language_names(client: &TargetClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new("SELECT lanname::text AS name FROM pg_language");
    ask::rows(client, "the languages", &sql, &[]).await?.iter().map(|row| row.get("name")).collect()
}

/// The languages of the current database that every role may use.
///
/// # Errors
/// When the server does not answer.
pub async fn trusted_languages(client: &TargetClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new("SELECT lanname::text AS name FROM pg_language WHERE lanpltrusted");
    ask::rows(client, "the languages", &sql, &[]).await?.iter().map(|row| row.get("name")).collect()
}

/// A function that only a superuser may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntrustedFunction {
    /// With its parameters.
    pub name: String,
    /// What it is written in: `c`, `internal`, `plperlu`.
    pub language: String,
}

/// Functions in languages that are not trusted and that belong to no extension. Aggregates are none: each of them has
/// `internal` for its language, and whoever may use its functions may make it.
///
/// # Errors
/// When the server does not answer.
pub async fn untrusted_functions(client: &SourceClient) -> Result<Vec<UntrustedFunction>, Error> {
    let sql = Sql::new(
        "SELECT p.oid::regprocedure::text AS name, l.lanname::text AS language \
         FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
         JOIN pg_namespace n ON n.oid = p.pronamespace WHERE NOT l.lanpltrusted AND p.oid >= 16384 \
         AND n.nspname NOT IN ('pg_catalog', 'walferry', 'aiven_extras') AND NOT EXISTS (SELECT FROM pg_depend d \
         WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i')) \
         AND NOT EXISTS (SELECT FROM pg_aggregate a WHERE a.aggfnoid = p.oid) ORDER BY 1",
    );
    let function =
        |row: &ask::Answer| Ok(UntrustedFunction { name: row.get("name")?, language: row.get("language")? });
    ask::rows(client, "the functions", &sql, &[]).await?.iter().map(function).collect()
}

/// Tables whose row-level security holds for their owner, too, and so for whoever makes them on the target.
///
/// # Errors
/// When the server does not answer.
pub async fn forced_row_security(client: &SourceClient) -> Result<Vec<QualifiedName>, Error> {
    let sql = Sql::new(
        "SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relrowsecurity AND c.relforcerowsecurity ORDER BY 1, 2",
    );
    ask::rows(client, "row-level security", &sql, &[]).await?.iter().map(ask::Answer::name).collect()
}

/// Tables with row-level security, each with its owner; without one where it holds for him, too.
///
/// # Errors
/// When the server does not answer.
pub async fn secured_tables(client: &SourceClient) -> Result<Vec<(QualifiedName, Option<String>)>, Error> {
    let sql = Sql::new(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, CASE WHEN NOT c.relforcerowsecurity THEN r.rolname::text END AS owner FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner WHERE c.relrowsecurity \
         AND c.relkind = 'r' ORDER BY 1, 2",
    );
    let table = |row: &ask::Answer| Ok((row.name()?, row.get("owner")?));
    ask::rows(client, "row-level security", &sql, &[]).await?.iter().map(table).collect()
}

const QUESTION: &str = "what is around the tables";

async fn user_mappings(client: &SideClient) -> Result<Vec<UserMapping>, Error> {
    let sql = Sql::new(
        "SELECT CASE WHEN umuser <> 0 THEN usename::text END AS role, srvname::text AS server, \
         umoptions IS NULL AS hidden FROM pg_user_mappings WHERE umid >= 16384 ORDER BY 2, 1",
    );
    let mapping = |row: &ask::Answer| {
        Ok(UserMapping { role: row.get("role")?, server: row.get("server")?, hidden: row.get("hidden")? })
    };
    ask::rows(client, QUESTION, &sql, &[]).await?.iter().map(mapping).collect()
}

async fn replica_triggers(client: &SideClient) -> Result<Vec<ReplicaTrigger>, Error> {
    let sql = Sql::new(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, f.fires, f.rule, f.mode = 'A' AS always FROM \
         (SELECT tgrelid AS relid, tgname::text AS fires, false AS rule, tgenabled AS mode FROM pg_trigger \
         WHERE NOT tgisinternal UNION ALL SELECT ev_class, rulename::text, true, ev_enabled FROM pg_rewrite) f \
         JOIN pg_class c ON c.oid = f.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE f.mode IN ('R', 'A') AND c.oid >= 16384 AND n.nspname NOT IN ('walferry', 'aiven_extras') ORDER BY 1, 2, 3",
    );
    let rows = ask::rows(client, QUESTION, &sql, &[]).await?;
    let trigger = |row: &ask::Answer| {
        let (table, name) = (row.name()?, row.get("fires")?);
        Ok(ReplicaTrigger { table, name, rule: row.get("rule")?, always: row.get("always")? })
    };
    rows.iter().map(trigger).collect()
}

/// Kind and name of all that has only a name. Subscriptions hide some of their columns, not these.
async fn named(client: &SideClient) -> Result<Vec<(String, String)>, Error> {
    let sql = Sql::new(
        "WITH member AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e') \
         SELECT 'event trigger' AS kind, evtname::text AS name FROM pg_event_trigger e \
         WHERE NOT EXISTS (SELECT FROM member WHERE classid = 'pg_event_trigger'::regclass AND objid = e.oid) \
         UNION ALL SELECT 'language', lanname::text FROM pg_language l WHERE oid >= 16384 \
         AND NOT EXISTS (SELECT FROM member WHERE classid = 'pg_language'::regclass AND objid = l.oid) \
         UNION ALL SELECT 'server', srvname::text FROM pg_foreign_server s \
         WHERE NOT EXISTS (SELECT FROM member WHERE classid = 'pg_foreign_server'::regclass AND objid = s.oid) \
         UNION ALL SELECT DISTINCT 'tablespace', t.spcname::text FROM pg_tablespace t JOIN (SELECT reltablespace AS oid \
         FROM pg_class WHERE oid >= 16384 UNION ALL SELECT dattablespace FROM pg_database \
         WHERE datname = current_database()) used ON used.oid = t.oid WHERE t.spcname NOT IN ('pg_default', 'pg_global') \
         UNION ALL SELECT 'subscription', s.subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
         WHERE d.datname = current_database() \
         UNION ALL SELECT 'publication', pubname::text FROM pg_publication WHERE pubname NOT LIKE 'walferry\\_%' \
         UNION ALL SELECT 'publication of all', pubname::text FROM pg_publication WHERE puballtables \
         AND (pubupdate OR pubdelete) ORDER BY 1, 2",
    );
    let rows = ask::rows(client, QUESTION, &sql, &[]).await?;
    rows.iter().map(|row| Ok((row.get("kind")?, row.get("name")?))).collect()
}

async fn changed_collations(client: &SideClient, dialect: Dialect) -> Result<Vec<ChangedCollation>, Error> {
    let sql = Sql::new("SELECT datname::text AS database, NULL::text AS schema, NULL::text AS name FROM pg_database ")
        .text("WHERE datname = current_database() AND ")
        .text(dialect.database_collation_changed())
        .text(" UNION ALL SELECT NULL, n.nspname::text, c.collname::text FROM pg_collation c ")
        .text("JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.collversion <> pg_collation_actual_version(c.oid) ")
        .text("AND EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid AND a.attrelid >= 16384)");
    let rows = ask::rows(client, "the collations' versions", &sql, &[]).await?;
    let collation = |row: &ask::Answer| {
        Ok(match row.get::<Option<String>>("database")? {
            Some(database) => ChangedCollation::Database(database),
            None => ChangedCollation::Named(row.name()?),
        })
    };
    rows.iter().map(collation).collect()
}
