//! What keeps a database from being written to, and who still could.

use tokio_postgres::SimpleQueryMessage;

use super::{Error, SourceClient, ask};
use crate::pg::{Oid, SourceLsn, Sql};

/// The database's `default_transaction_read_only`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnlyDefault {
    /// What ALTER DATABASE … SET has for it; `None` without.
    pub setting: Option<String>,
    /// Whether new sessions are read only by that setting.
    pub on: bool,
    /// Whether the current user may change it: that needs the privileges of the database's owner.
    pub mine: bool,
    /// That owner.
    pub owner: String,
    /// Whether that owner is a superuser, whose privileges nobody is given lightly.
    pub owner_superuser: bool,
    /// The current user.
    pub me: String,
    /// Roles that have another setting of their own, which wins over the database's, each with its database where the
    /// setting is for that one alone.
    pub exempt: Vec<(String, Option<String>)>,
}

/// Somebody's session in the current database: neither Walferry's own nor a walsender.
///
/// Process, user and application name are shown to everybody; the rest to members of its role and of `pg_read_all_stats`
/// alone (10 to 18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherSession {
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub user: String,
    /// Whether that is a superuser.
    pub superuser: bool,
    /// What it calls itself; may be empty.
    pub application_name: String,
    /// `backend_type`: `client backend`, or what a background worker calls itself; `None` where it is hidden.
    pub backend_type: Option<String>,
    /// Whether it is in a transaction; not, where that is hidden.
    pub in_transaction: bool,
    /// Whether the current user may end it.
    pub mine_to_end: bool,
}

impl OtherSession {
    /// Columns of it, of `pg_stat_activity a` and `pg_roles r`; but not whether it may be ended.
    const COLUMNS: &str = "a.pid, a.usename::text AS \"user\", coalesce(r.rolsuper, false) AS superuser, \
         coalesce(a.application_name, '') AS application_name, a.backend_type, a.xact_start IS NOT NULL AS in_transaction";

    fn of(row: &ask::Answer, mine_to_end: bool) -> Result<Self, Error> {
        Ok(Self {
            pid: row.get("pid")?,
            user: row.get("user")?,
            superuser: row.get("superuser")?,
            application_name: row.get("application_name")?,
            backend_type: row.get("backend_type")?,
            in_transaction: row.get("in_transaction")?,
            mine_to_end,
        })
    }
}

/// What the current database has for `default_transaction_read_only`.
///
/// # Errors
/// When the server does not answer.
pub async fn read_only_default(client: &SourceClient) -> Result<ReadOnlyDefault, Error> {
    let sql = Sql::new(
        "WITH setting AS (SELECT s.setdatabase, s.setrole, split_part(c, '=', 2) AS value \
         FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE c LIKE 'default\\_transaction\\_read\\_only=%'), \
         own AS (SELECT s.value FROM setting s WHERE s.setdatabase = \
         (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.setrole = 0) \
         SELECT (SELECT value FROM own) AS setting, coalesce((SELECT value::bool FROM own), false) AS \"on\", \
         pg_has_role(d.datdba, 'USAGE') AS mine, o.rolname::text AS owner, o.rolsuper AS owner_superuser, \
         current_user::text AS me, d.datname::text AS database, ARRAY(SELECT r.rolname::text \
         FROM setting s JOIN pg_roles r ON r.oid = s.setrole WHERE s.setdatabase = 0 AND NOT s.value::bool ORDER BY 1) \
         AS exempt, ARRAY(SELECT r.rolname::text FROM setting s JOIN pg_roles r ON r.oid = s.setrole \
         WHERE s.setdatabase = d.oid AND NOT s.value::bool ORDER BY 1) AS exempt_here \
         FROM pg_database d JOIN pg_roles o ON o.oid = d.datdba WHERE d.datname = current_database()",
    );
    let row = ask::row(client, "the database's settings", &sql, &[]).await?;
    let (everywhere, here): (Vec<String>, Vec<String>) = (row.get("exempt")?, row.get("exempt_here")?);
    let database: String = row.get("database")?;
    let here = here.into_iter().map(|role| (role, Some(database.clone())));
    Ok(ReadOnlyDefault {
        setting: row.get("setting")?,
        on: row.get("on")?,
        mine: row.get("mine")?,
        owner: row.get("owner")?,
        owner_superuser: row.get("owner_superuser")?,
        me: row.get("me")?,
        exempt: everywhere.into_iter().map(|role| (role, None)).chain(here).collect(),
    })
}

/// The databases whose own setting makes new sessions read only, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn read_only_databases(client: &SourceClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT d.datname::text AS name FROM pg_database d JOIN pg_db_role_setting s ON s.setdatabase = d.oid \
         AND s.setrole = 0, unnest(s.setconfig) c WHERE c LIKE 'default\\_transaction\\_read\\_only=%' \
         AND split_part(c, '=', 2)::bool ORDER BY 1",
    );
    let rows = ask::rows(client, "the databases that are read only", &sql, &[]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}

/// Sets it for sessions that begin from now on, or with `None` takes the setting away.
///
/// # Errors
/// When the server does not answer, or refuses.
pub async fn set_read_only_default(
    client: &SourceClient,
    dbname: &str,
    setting: Option<&str>,
) -> Result<(), Error> {
    let alter = read_only_statement(dbname, setting);
    client.run("another default_transaction_read_only", &alter).await
}

/// The statement that does that.
fn read_only_statement(dbname: &str, setting: Option<&str>) -> Sql {
    let alter = Sql::new("ALTER DATABASE ").ident(dbname);
    match setting {
        Some(setting) => alter.text(" SET default_transaction_read_only = ").literal(setting),
        None => alter.text(" RESET default_transaction_read_only"),
    }
}

/// The same for whoever pastes it.
pub fn read_only_by_hand(dbname: &str, setting: Option<&str>) -> Sql {
    by_hand([read_only_statement(dbname, setting)])
}

/// Statements for whoever pastes them, all at once or line by line, into a session that a fence has made read only, too.
pub fn by_hand(statements: impl IntoIterator<Item = Sql>) -> Sql {
    let sql = Sql::new("BEGIN READ WRITE; ");
    statements.into_iter().fold(sql, |sql, statement| sql.sql(&statement).text("; ")).text("COMMIT;")
}

/// The server's clock, as text to compare with when sessions began.
///
/// # Errors
/// When the server does not answer.
pub async fn moment(client: &SourceClient) -> Result<String, Error> {
    let sql = Sql::new("SELECT clock_timestamp()::text AS now");
    ask::row(client, "the time", &sql, &[]).await?.get("now")
}

/// Sessions of the current database that began from `since` to `until`; and those of which that is not shown, as it is
/// to members of their roles and of `pg_read_all_stats` alone.
///
/// # Errors
/// When the server does not answer.
pub async fn other_sessions(
    client: &SourceClient,
    since: Option<&str>,
    until: &str,
) -> Result<Vec<OtherSession>, Error> {
    let sql = Sql::new("SELECT ").text(OtherSession::COLUMNS).text(
        ", coalesce((pg_has_role(a.usesysid, 'USAGE') \
         OR pg_has_role('pg_signal_backend', 'USAGE')) AND (me.rolsuper OR NOT r.rolsuper), false) AS mine \
         FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid \
         JOIN pg_roles me ON me.rolname = current_user \
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usename IS NOT NULL \
         AND a.pid NOT IN (SELECT pid FROM pg_stat_replication) \
         AND coalesce(a.backend_start >= $1::text::timestamptz, true) \
         AND coalesce(a.backend_start <= $2::text::timestamptz, true) \
         AND NOT (a.usename = current_user AND a.application_name LIKE 'walferry%') ORDER BY a.pid",
    );
    let rows = ask::rows(client, "the other sessions", &sql, &[&since, &until]).await?;
    rows.iter().map(|row| OtherSession::of(row, row.get("mine")?)).collect()
}

/// Subscriptions of the current database that are enabled. Their workers write whatever the database's
/// `default_transaction_read_only` says, and begin anew when they are ended (measured on 14 to 17).
///
/// # Errors
/// When the server does not answer.
pub async fn enabled_subscriptions(client: &SourceClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT s.subname::text AS name FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
         WHERE d.datname = current_database() AND s.subenabled ORDER BY 1",
    );
    let rows = ask::rows(client, "the subscriptions", &sql, &[]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}

/// Processes of sessions that are about to begin in the current database, and may have read their settings. Nothing else
/// tells of them before they have begun.
///
/// # Errors
/// When the server does not answer.
pub async fn beginning_sessions(client: &SourceClient) -> Result<Vec<i32>, Error> {
    // InitPostgres: the lock on the database is taken before the settings are read, and given up when the session is to be
    // seen in pg_stat_activity.
    let sql = Sql::new(
        "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_database'::regclass \
         AND objid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND mode = 'RowExclusiveLock' AND granted AND pid <> pg_backend_pid()",
    );
    let rows = ask::rows(client, "the sessions that are about to begin", &sql, &[]).await?;
    rows.iter().map(|row| row.get("pid")).collect()
}

/// Sessions that wait for a table that this session has locked, or for somebody who waits for it.
///
/// # Errors
/// When the server does not answer.
pub async fn waiting_for_me(client: &SourceClient) -> Result<Vec<OtherSession>, Error> {
    // Autovacuum has no user.
    let sql = Sql::new("SELECT ").text(OtherSession::COLUMNS).text(
        " FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid WHERE a.usename IS NOT NULL \
         AND a.pid IN (SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'relation') \
         AND pg_backend_pid() = ANY (pg_blocking_pids(a.pid)) ORDER BY a.pid",
    );
    let rows = ask::rows(client, "who waits for locked tables", &sql, &[]).await?;
    rows.iter().map(|row| OtherSession::of(row, false)).collect()
}

/// Who holds a lock that writers to the table take.
///
/// # Errors
/// When the server does not answer.
pub async fn writing_to(client: &SourceClient, table: Oid) -> Result<Vec<OtherSession>, Error> {
    let sql = Sql::new("SELECT ")
        .text(OtherSession::COLUMNS)
        .text(
            " FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid WHERE a.usename IS NOT NULL \
             AND a.pid IN (SELECT pid FROM pg_locks WHERE granted AND locktype = 'relation' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mode IN \
             ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') AND relation = $1) AND a.pid <> pg_backend_pid() ORDER BY a.pid",
        );
    let rows = ask::rows(client, "who writes to a table", &sql, &[&table.get()]).await?;
    rows.iter().map(|row| OtherSession::of(row, false)).collect()
}

/// Roles with sessions in the current database that the current user may not end, and might with a membership: not
/// superusers, nor those that are walsenders alone.
///
/// # Errors
/// When the server does not answer.
pub async fn roles_out_of_reach(client: &SourceClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT DISTINCT r.rolname::text AS name FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid \
         WHERE a.datname = current_database() AND NOT r.rolsuper AND NOT pg_has_role(r.oid, 'USAGE') \
         AND NOT pg_has_role('pg_signal_backend', 'USAGE') \
         AND a.pid NOT IN (SELECT pid FROM pg_stat_replication) ORDER BY 1",
    );
    let rows = ask::rows(client, "whose sessions there are", &sql, &[]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}

/// The statement with which somebody else ends sessions, with its semicolon.
pub fn end_by_hand(pids: &[i32]) -> Sql {
    let pids = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Sql::new("SELECT pg_terminate_backend(pid) FROM unnest(")
        .literal(&format!("{{{pids}}}"))
        .text("::int[]) pid;")
}

/// Superusers with sessions in the current database of which the current user is not shown what they are.
///
/// # Errors
/// When the server does not answer.
pub async fn hidden_superusers(client: &SourceClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT DISTINCT r.rolname::text AS name FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid \
         WHERE a.datname = current_database() AND r.rolsuper AND a.backend_type IS NULL \
         AND a.pid NOT IN (SELECT pid FROM pg_stat_replication) ORDER BY 1",
    );
    let rows = ask::rows(client, "whose sessions are hidden", &sql, &[]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}

/// Ends sessions; those that are gone already do not matter.
///
/// # Errors
/// When the server does not answer, or one of them is not the current user's to end.
pub async fn end_sessions(client: &SourceClient, pids: &[i32]) -> Result<(), Error> {
    let sql = Sql::new("SELECT pg_terminate_backend(pid) FROM unnest($1::int4[]) pid");
    ask::rows(client, "the end of sessions", &sql, &[&pids]).await.map(|_| ())
}

/// Ends the current user's other sessions of this name in the current database; says how many there were.
///
/// # Errors
/// When the server does not answer.
pub async fn end_own_sessions(client: &SourceClient, application_name: &str) -> Result<usize, Error> {
    let sql = Sql::new(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
         AND usename = current_user AND application_name = $1::text AND pid <> pg_backend_pid()",
    );
    let rows = ask::rows(client, "the end of our own sessions", &sql, &[&application_name]).await?;
    Ok(rows.len())
}

/// Writes a mark into the WAL, has it flushed, and gives its position: whatever committed before this call did so before
/// it, and whatever commits after this call does so beyond it. The transaction changes nothing, and comes in the stream all the
/// same: before 14 as one without changes, as any does.
///
/// # Errors
/// When the server does not answer.
pub async fn mark_wal(client: &SourceClient) -> Result<SourceLsn, Error> {
    let question = "a mark in the WAL";
    // A message outside a transaction would not be flushed, and the position that the server calls flushed may be in the
    // middle of a record. Not synchronous_commit = on, which waits for a synchronous standby.
    let sql = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; \
               SELECT pg_logical_emit_message(true, 'walferry', '')::text; COMMIT";
    let answers = client.simple_query(sql).await.map_err(client.failed(question))?;
    let position = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    position
        .and_then(|position| position.parse().ok())
        .ok_or_else(|| Error::unexpected(client.side(), question, "it has no position"))
}
