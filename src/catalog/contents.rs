//! What a cluster and a database hold besides tables, and what the current user may do with it.

use super::{Error, SideClient, SourceClient, TargetClient, ask};
use crate::pg::{QualifiedName, Sql};

/// What a database holds that replication does not carry; members of extensions aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OtherContents {
    /// Large objects.
    pub large_objects: u64,
    /// Those that the current user may not read.
    pub large_objects_unreadable: u64,
    /// Whose these are.
    pub large_objects_owners: Vec<String>,
    /// Materialised views, by schema and name.
    pub materialized_views: Vec<QualifiedName>,
    /// Foreign tables, by schema and name.
    pub foreign_tables: Vec<QualifiedName>,
}

/// Somebody who owns the schema `walferry`, or what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// He; where there are several, one of them.
    pub owner: String,
    us: String,
    give: Vec<String>,
}

impl Stranger {
    /// What he could do.
    pub fn cause(&self) -> String {
        format!(
            "schema walferry, or what is in it, belongs to {}, who could make this migration believe anything",
            self.owner
        )
    }

    /// What to do about it, in the database.
    pub fn hint(&self) -> String {
        let Self { owner, us, give } = self;
        format!(
            "if {owner} is not to be trusted: DROP SCHEMA walferry CASCADE;\nif it is {us} under another name: {}",
            give.join("\n")
        )
    }
}

/// What the current user may do with a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaPrivilege {
    /// There is no such schema.
    Missing,
    /// It may not create objects in it, or not use them.
    Refused,
    /// It may use the schema and create objects in it.
    Create,
}

/// How a session can get to apply changes as a replica: without firing triggers and foreign keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRole {
    /// `SET session_replication_role = replica` works.
    Set,
    /// `aiven_extras.session_replication_role('replica')` can be called.
    AivenExtras,
    /// Neither, but the extension `aiven_extras` could be created.
    AivenExtrasAvailable,
    /// Not at all.
    Refused,
}

/// What the current database holds besides tables.
///
/// # Errors
/// When the server does not answer.
pub async fn other_contents(client: &SideClient) -> Result<OtherContents, Error> {
    let sql = Sql::new(
        "SELECT count(*) AS large_objects, count(*) FILTER (WHERE NOT readable) AS unreadable, \
         coalesce(array_agg(DISTINCT owner) FILTER (WHERE NOT readable), '{}') AS owners \
         FROM (SELECT pg_get_userbyid(m.lomowner)::text AS owner, pg_has_role(m.lomowner, 'USAGE') \
         OR current_setting('lo_compat_privileges')::bool OR EXISTS (SELECT FROM aclexplode(m.lomacl) a \
         WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))) AS readable \
         FROM pg_largeobject_metadata m) o",
    );
    let row = ask::row(client, "the large objects", &sql, &[]).await?;
    let mut found = OtherContents {
        large_objects: row.count("large_objects")?,
        large_objects_unreadable: row.count("unreadable")?,
        large_objects_owners: row.get("owners")?,
        ..OtherContents::default()
    };
    let sql = Sql::new(
        "SELECT c.relkind::text AS kind, n.nspname::text AS schema, c.relname::text AS name FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('m', 'f') \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'walferry', 'aiven_extras') \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
         AND d.deptype = 'e') ORDER BY 2, 3",
    );
    for row in ask::rows(client, "the materialised views and foreign tables", &sql, &[]).await? {
        let list =
            if row.byte("kind")? == b'm' { &mut found.materialized_views } else { &mut found.foreign_tables };
        list.push(row.name()?);
    }
    Ok(found)
}

/// The cluster's databases that can be connected to, templates aside, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn databases(client: &TargetClient) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT datname::text AS name FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname",
    );
    ask::rows(client, "the databases", &sql, &[]).await?.iter().map(|row| row.get("name")).collect()
}

/// Who owns the schema `walferry`, or what is read in it, where that is neither the current user nor a superuser: all that
/// a migration remembers would be in his hands, and a view of his runs his functions for whoever reads it. That the
/// current user is a member of the owner says nothing: the owner may have granted himself.
///
/// # Errors
/// When the server does not answer.
pub async fn stranger_with_our_schema(client: &TargetClient) -> Result<Option<Stranger>, Error> {
    let sql = Sql::new(
        "SELECT r.rolname::text AS owner, o.name, current_user::text AS us FROM pg_namespace n CROSS JOIN LATERAL \
         (SELECT n.nspowner AS owner, NULL AS name \
         UNION ALL SELECT c.relowner, c.relname::text FROM pg_class c \
         WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')) o JOIN pg_roles r ON r.oid = o.owner \
         WHERE n.nspname = 'walferry' AND NOT r.rolsuper AND r.rolname <> current_user ORDER BY o.name NULLS FIRST",
    );
    let rows = ask::rows(client, "the owners of schema walferry", &sql, &[]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (owner, us): (String, String) = (first.get("owner")?, first.get("us")?);
    let mut give = Vec::new();
    for row in &rows {
        let sql = match row.get::<Option<String>>("name")? {
            None => Sql::new("ALTER SCHEMA walferry"),
            Some(name) => Sql::new("ALTER TABLE ").name(&QualifiedName::new("walferry", name)),
        };
        give.push(sql.text(" OWNER TO ").ident(&us).text(";").as_str().to_owned());
    }
    Ok(Some(Stranger { owner, us, give }))
}

/// What the current user may do with the schema `name`.
///
/// # Errors
/// When the server does not answer.
pub async fn schema_privilege(client: &TargetClient, name: &str) -> Result<SchemaPrivilege, Error> {
    let sql = Sql::new(
        "SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE') AS granted \
         FROM pg_namespace WHERE nspname = $1::text",
    );
    match ask::rows(client, "the privileges on a schema", &sql, &[&name]).await?.first() {
        None => Ok(SchemaPrivilege::Missing),
        Some(row) if row.get("granted")? => Ok(SchemaPrivilege::Create),
        Some(_) => Ok(SchemaPrivilege::Refused),
    }
}

/// How a session of the current user can get to apply changes as a replica. The setting is tried out in a statement of
/// its own, after which it is as before: the session must not be in a transaction.
///
/// # Errors
/// When the server does not answer.
pub async fn replica_role(client: &TargetClient) -> Result<ReplicaRole, Error> {
    let question = "the right to set session_replication_role";
    match client.run(question, &Sql::new("SET LOCAL session_replication_role = replica")).await {
        Ok(()) => return Ok(ReplicaRole::Set),
        Err(error) if error.state() == Some("42501") => {}
        Err(error) => return Err(error),
    }
    let sql = extension_has(SESSION_REPLICATION_ROLE).text(" AS callable, ").text(
        "EXISTS (SELECT FROM pg_available_extensions WHERE name = 'aiven_extras' AND installed_version IS NULL) \
         AS available",
    );
    let row = ask::row(client, question, &sql, &[]).await?;
    if row.get("callable")? {
        Ok(ReplicaRole::AivenExtras)
    } else if row.get("available")? {
        Ok(ReplicaRole::AivenExtrasAvailable)
    } else {
        Ok(ReplicaRole::Refused)
    }
}

/// Whether `aiven_extras.pg_create_publication` can be called: it publishes tables of other owners.
///
/// # Errors
/// When the server does not answer.
pub async fn publishes_for_others(client: &SourceClient) -> Result<bool, Error> {
    let sql = extension_has(PG_CREATE_PUBLICATION).text(" AS answer");
    ask::row(client, "the right to publish tables of others", &sql, &[]).await?.get("answer")
}

/// What the extension `aiven_extras` switches triggers and foreign keys off with, by its identity.
pub const SESSION_REPLICATION_ROLE: &str = "aiven_extras.session_replication_role(text)";

/// What the extension `aiven_extras` makes publications with, by its identity.
pub const PG_CREATE_PUBLICATION: &str = "aiven_extras.pg_create_publication(text, text, text[])";

/// Asks whether the extension `aiven_extras` has a function of this identity that the current user may call.
///
/// A name alone says nothing: anybody who may create a schema may have called his own functions so, and they would run with
/// our privileges. So it must be a member of the extension, and a superuser's: who owns an extension may add to it.
pub fn extension_has(identity: &'static str) -> Sql {
    Sql::new("SELECT ").sql(&is_extensions(identity))
}

/// Calls a function of the extension with these values, given as expressions. It is looked at in the same statement, since it
/// may have been swapped meanwhile; and it is not called with constants, which the planner would do before it has looked.
pub fn call_extension(identity: &'static str, call: &'static str, values: &'static str) -> Sql {
    Sql::new("SELECT ")
        .text(call)
        .text(" FROM (SELECT ")
        .text(values)
        .text(" OFFSET 0) given WHERE ")
        .sql(&is_extensions(identity))
}

fn is_extensions(identity: &'static str) -> Sql {
    Sql::new(
        "EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
         JOIN pg_roles r ON r.oid = p.proowner \
         JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' \
         JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid \
         WHERE e.extname = 'aiven_extras' AND r.rolsuper AND has_function_privilege(p.oid, 'EXECUTE') \
         AND has_schema_privilege(n.oid, 'USAGE') AND n.nspname = 'aiven_extras' AND concat('aiven_extras.', p.proname, '(', oidvectortypes(p.proargtypes), ')') = ",
    )
    .literal(identity)
    .text(")")
}
