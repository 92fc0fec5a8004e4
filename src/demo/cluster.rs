//! A source and a target with the roles that users have: no superuser on either side.

use rand::RngExt;
use rand::distr::Alphanumeric;

use super::{PgBinaries, Result, Server, ServerOptions};
use crate::pg::Sql;

/// A running source and target. Dropped, both are gone.
#[derive(Debug)]
pub struct SourceAndTarget {
    /// The cluster that data leaves.
    pub source: Server,
    /// The cluster that data goes to.
    pub target: Server,
    /// The owner of the source's databases and of all in them: LOGIN and REPLICATION.
    pub source_login: Login,
    /// The target's administrator, as Aiven has it: LOGIN, CREATEDB and CREATEROLE.
    pub target_login: Login,
}

/// What a [`SourceAndTarget`] is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The source's version.
    pub source: PgBinaries,
    /// The target's version.
    pub target: PgBinaries,
    /// The source's settings.
    pub source_options: ServerOptions,
    /// The target's settings.
    pub target_options: ServerOptions,
    /// Databases to make, on both sides.
    pub databases: Vec<String>,
    /// Whether the target has these databases too; it has `defaultdb` in any case.
    pub target_databases: bool,
    /// How the target's administrator may switch triggers off.
    pub triggers: TriggerControl,
    /// Whether the target's administrator may stream from it, as Aiven's may: what a way back needs.
    pub target_replication: bool,
}

/// How a role that is no superuser may set `session_replication_role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerControl {
    /// `GRANT SET ON PARAMETER` (15 and newer).
    Granted,
    /// Functions of a schema `aiven_extras`, as the extension of that name has them.
    AivenExtras,
    /// Not at all.
    None,
}

/// A role and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The role.
    pub role: String,
    /// Its password.
    pub password: String,
}

/// The owner of a source's databases.
pub const APP_OWNER: &str = "app_owner";

/// The administrator of a target.
pub const AVNADMIN: &str = "avnadmin";

/// The database that a target has from the beginning, and the one that a source has unless told otherwise.
pub const DEFAULT_DATABASE: &str = "defaultdb";

/// Not the extension: functions with its names, parameters and privileges, for servers that do not have it.
const AIVEN_EXTRAS: &str = include_str!("sample/aiven_extras.sql");

impl ClusterOptions {
    /// Both sides with their default settings, one database on both, triggers switched off by a grant.
    pub fn new(source: PgBinaries, target: PgBinaries) -> Self {
        Self {
            source,
            target,
            source_options: ServerOptions::default(),
            target_options: ServerOptions::default(),
            databases: vec![DEFAULT_DATABASE.to_owned()],
            target_databases: true,
            triggers: TriggerControl::Granted,
            target_replication: false,
        }
    }
}

impl SourceAndTarget {
    /// Starts both and makes roles and databases.
    ///
    /// # Errors
    /// When a server does not start, or refuses a statement.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let (source, target) = tokio::try_join!(
            Server::start(&options.source, options.source_options),
            Server::start(&options.target, options.target_options),
        )?;
        let source_login = prepare_source(&source, &options.databases).await?;
        let mut databases = vec![DEFAULT_DATABASE.to_owned()];
        if options.target_databases {
            databases.extend(options.databases.into_iter().filter(|name| name != DEFAULT_DATABASE));
        }
        let target_login = prepare_target(&target, &databases, options.triggers).await?;
        if options.target_replication {
            let alter = Sql::new("ALTER ROLE ").ident(AVNADMIN).text(" REPLICATION");
            target.sql("postgres", alter.as_str()).await?;
        }
        Ok(Self { source, target, source_login, target_login })
    }

    /// The source's URI for its owner: TCP, TLS verified.
    pub fn source_uri(&self, database: &str) -> String {
        self.source_login.uri(&self.source, database)
    }

    /// The target's URI for its administrator: TCP, TLS verified.
    pub fn target_uri(&self, database: &str) -> String {
        self.target_login.uri(&self.target, database)
    }
}

impl Login {
    /// A role with a password of its own, some of whose characters a URI must encode.
    pub fn new(role: &str) -> Self {
        let random: String = rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect();
        Self { role: role.to_owned(), password: format!("{random}/@:% '") }
    }

    /// The URI of this role on `server`: TCP, TLS verified.
    pub fn uri(&self, server: &Server, database: &str) -> String {
        server.uri(&self.role, &self.password, database)
    }

    async fn create(&self, server: &Server, attributes: &'static str) -> Result<()> {
        let create = Sql::new("CREATE ROLE ").ident(&self.role).text(" LOGIN ").text(attributes);
        let create = create.text(" PASSWORD ").literal(&self.password);
        server.sql("postgres", create.as_str()).await?;
        Ok(())
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("role", &self.role).field("password", &"***").finish()
    }
}

/// Makes a source of a fresh server: [`APP_OWNER`] with LOGIN and REPLICATION, and `databases` that it owns.
///
/// # Errors
/// When the server refuses a statement.
pub async fn prepare_source(server: &Server, databases: &[String]) -> Result<Login> {
    let login = Login::new(APP_OWNER);
    login.create(server, "REPLICATION").await?;
    create_databases(server, databases, APP_OWNER).await?;
    Ok(login)
}

/// Makes a target of a fresh server: [`AVNADMIN`] with LOGIN, CREATEDB and CREATEROLE, and `databases` that it owns.
///
/// # Errors
/// When the server refuses a statement.
pub async fn prepare_target(
    server: &Server,
    databases: &[String],
    triggers: TriggerControl,
) -> Result<Login> {
    let login = Login::new(AVNADMIN);
    login.create(server, "CREATEDB CREATEROLE").await?;
    match triggers {
        TriggerControl::Granted => {
            let grant = Sql::new("GRANT SET ON PARAMETER session_replication_role TO ").ident(AVNADMIN);
            server.sql("postgres", grant.as_str()).await?;
        }
        // In the template, so that databases made later have them too.
        TriggerControl::AivenExtras => {
            server.sql("template1", AIVEN_EXTRAS).await?;
        }
        TriggerControl::None => {}
    }
    create_databases(server, databases, AVNADMIN).await?;
    Ok(login)
}

async fn create_databases(server: &Server, databases: &[String], owner: &str) -> Result<()> {
    for database in databases {
        let create = Sql::new("CREATE DATABASE ").ident(database).text(" OWNER ").ident(owner);
        server.sql("postgres", create.as_str()).await?;
    }
    Ok(())
}
