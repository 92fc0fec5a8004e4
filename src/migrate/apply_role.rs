//! The role that writes rows where they have code of the source's owners run: see [`crate::apply::Writer`].
//!
//! It is a member of the owners of what the database holds, since their tables and functions are theirs to grant rights on, and
//! of nobody who may more than that; what belongs to others it may write to. One session applies the changes of all tables
//! of a database, in transactions of their own: so it is one role for all of them, and where one table calls for it, it
//! writes all. It has the name of the migration's slot, which no other database or migration has.
//!
//! It is asked for when there are tables to write to, before the first row. What of the source's owners runs on the target is
//! what the schema brought there, or what somebody makes there later: whoever is to be kept out meanwhile is (the target is
//! shut). Where the role cannot be had before it has ever written, rows are written by the target's user, and the log says
//! so; from then on a role that cannot log in is a failure, since whose code it is to hold could have brought that about.

use std::collections::HashSet;

use crate::apply::{Writer, by_aiven_extras, random_secret};
use crate::catalog::{self, ReplicaRole, TargetClient};
use crate::error::{Definite, Result, Side};
use crate::limits::TABLES_PER_TRANSACTION;
use crate::pg::{QualifiedName, Sql};
use crate::store::Store;
use crate::wire::SessionOptions;

use super::attempt::Attempt;
use super::roles::{Within, carry_owners};

impl Attempt<'_> {
    /// Who writes the rows; with rights on all tables that are there now.
    pub(super) async fn writer(&self) -> Result<Writer> {
        let decide = || Box::pin(self.decide_writer());
        let writer = self.writer.get_or_try_init(decide).await?.clone();
        if writer.key().is_some() {
            Box::pin(entitle(&self.target, self.row.slot.as_str())).await?;
        }
        Ok(writer)
    }

    async fn decide_writer(&self) -> Result<Writer> {
        let user = Writer::user(self.migration.sides.target.clone());
        let store = self.store();
        let proven = store.apply_role().await? == Some(true);
        let calls = catalog::owner_code(&self.source).await?;
        if calls.is_empty() && !proven && catalog::owner_code(&self.target).await?.is_empty() {
            return Ok(user);
        }
        if self.phase.get().copies() {
            // What is theirs is to be known as theirs.
            carry_owners(&self.source, &self.target, &self.migration.sides.ignored_roles).await?;
        }
        let reason = match self.make_writer().await? {
            Ok(writer) => return Ok(writer),
            Err(reason) => reason,
        };
        if proven {
            return Err(Definite::new("the role that writes the rows cannot be used any more")
                .detail(reason)
                .hint(
                    "mend that on the target (where it may not log in: a line in pg_hba.conf that lets it in from here with a \
                     password), then run `walferry migrate` again; rows are not written by the target's user once it has \
                     written any",
                )
                .into());
        }
        if store.apply_role().await?.is_some() {
            drop_role(&self.target, self.row.slot.as_str()).await?;
            store.forget_apply_role().await?;
        }
        let user_name = self.migration.sides.target.user();
        tracing::warn!(
            reason,
            user = user_name,
            "functions of the source's owners that are called for each row run in the name of the target's user: no role can \
             be made for them; `walferry check` lists them (target-owner-code)"
        );
        Ok(user)
    }

    /// The role, or why there is none.
    async fn make_writer(&self) -> Result<Result<Writer, String>> {
        let (target, name, store) = (&self.target, self.row.slot.as_str(), self.store());
        let replica = match catalog::replica_role(target).await? {
            ReplicaRole::Set => {
                Sql::new("SELECT pg_catalog.set_config('session_replication_role', 'replica', false)")
            }
            ReplicaRole::AivenExtras => by_aiven_extras(),
            ReplicaRole::AivenExtrasAvailable | ReplicaRole::Refused => Sql::new("SELECT 1"),
        };
        store.create_for_apply_role(&replica).await?;
        if let Err(reason) = make(target, name, &store).await? {
            return Ok(Err(reason));
        }
        let key = random_secret();
        store.set_apply_role(name, &key).await?;
        entitle(target, name).await?;
        let secured = catalog::secured_tables(&self.source).await?;
        if let Some(table) = beyond(&store, target, name, &secured).await? {
            return Ok(Err(format!("the target's user cannot give it what table {table} wants")));
        }
        let writer = Writer::role(self.migration.sides.target.clone(), name, key);
        match writer.log_in(&SessionOptions::new("walferry")).await? {
            Ok(session) => session.close().await,
            Err(error) => match error.server() {
                // The last one: it may not connect to the database.
                Some(server) if server.class() == "28" || server.sqlstate() == "42501" => {
                    return Ok(Err(error.to_string()));
                }
                _ => return Err(error.into_failure(Side::Target)),
            },
        }
        store.prove_apply_role().await?;
        tracing::info!(
            role = name,
            "rows are written by a role made for that: they call functions of the source's owners"
        );
        Ok(Ok(writer))
    }
}

/// Makes the role where it is not there, or says why that cannot be.
async fn make(target: &TargetClient, name: &str, store: &Store<'_>) -> Result<Result<(), String>> {
    let ours = store.apply_role().await?.is_some();
    let options = catalog::dialect(target).await?.self_grant();
    let there = target.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&name]).await;
    let there = there.map_err(target.failed("the role that writes"))?.is_some();
    if there && !ours {
        return Ok(Err(format!("there is a role {name:?} that this migration did not make")));
    }
    let plain = " NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT";
    let role = Sql::default().ident(name);
    let sql = if there {
        // It may have given itself settings.
        Sql::new("ALTER ROLE ").sql(&role).text(" NOLOGIN; ALTER ROLE ").sql(&role).text(" RESET ALL")
    } else {
        Sql::new("CREATE ROLE ").sql(&role).text(plain)
    };
    // Who is a member of it sees its sessions, and may end them.
    let sql = sql.text("; GRANT ").sql(&role).text(" TO CURRENT_USER").text(options);
    // All of it or nothing.
    let sql = sql.text("; ").sql(&store.note_apply_role());
    Ok(match super::roles::attempt(target, &sql, Within::Session).await? {
        None => Ok(()),
        Some(error) => Err(error.to_string()),
    })
}

/// The statements that drop the role, with all that it may. What code of the rows' owners has given to it is not dropped: it
/// becomes the target's user's.
pub(super) fn dropping(role: &Sql) -> Sql {
    let give = Sql::new("REASSIGN OWNED BY ").sql(role).text(" TO CURRENT_USER");
    give.text("; DROP OWNED BY ").sql(role).text("; DROP ROLE ").sql(role).text(";")
}

/// Drops the role, with all that it may; says whether there was one.
///
/// # Errors
/// When the target refuses.
pub(super) async fn drop_role(target: &TargetClient, name: &str) -> Result<bool> {
    const WHAT: &str = "the end of the role that writes";
    let there = target.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&name]).await;
    if there.map_err(target.failed(WHAT))?.is_none() {
        return Ok(false);
    }
    let role = Sql::default().ident(name);
    let sql = dropping(&role);
    target.run(WHAT, &sql).await?;
    Ok(true)
}

/// The roles that a migration of this name has made for the rows of this database, where it is not known which one it is.
///
/// # Errors
/// When the target does not answer.
pub(super) async fn named(target: &TargetClient, migration: &str) -> Result<Vec<String>> {
    // A migration's name holds nothing but a-z, 0-9 and _.
    let pattern = format!("^walferry_{migration}_[0-9a-f]{{8}}$");
    let sql = "SELECT r.rolname::text FROM pg_roles r JOIN pg_namespace n ON n.nspname = 'walferry'
               WHERE r.rolname ~ $1 AND has_schema_privilege(r.oid, n.oid, 'USAGE') ORDER BY 1";
    let rows = target.query(sql, &[&pattern]).await;
    let rows = rows.map_err(target.failed("the roles that wrote rows"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Roles that own something in this database and have no right that is more than ownership, nor a way to get one.
const OWNERS: &str = "SELECT o.rolname::text FROM pg_roles o WHERE o.oid IN (SELECT refobjid FROM pg_shdepend
    WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o'
        AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND o.rolname NOT IN (current_user, $1::text) AND NOT pg_has_role($1::text::name, o.oid, 'MEMBER')
    AND NOT EXISTS (SELECT FROM pg_roles g WHERE pg_has_role(o.oid, g.oid, 'MEMBER')
        AND g.rolname <> 'pg_database_owner' AND (g.oid < 16384 OR g.rolsuper OR g.rolcreaterole OR g.rolreplication
            OR g.rolbypassrls OR g.rolname = current_user))";

const SCHEMAS: &str = "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_'
    AND nspname NOT IN ('information_schema', 'walferry') AND has_schema_privilege(oid, 'USAGE WITH GRANT OPTION')
    AND NOT has_schema_privilege($1::text::name, oid, 'USAGE')";

/// Tables of the target that the role has no rights on: whether its user can give them, and could write to them himself.
const TABLES: &str = "SELECT n.nspname::text, c.relname::text, pg_has_role(c.relowner, 'USAGE'),
        has_table_privilege(c.oid, 'INSERT') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
    AND n.nspname NOT IN ('information_schema', 'walferry') AND NOT (
        has_table_privilege($1::text::name, c.oid, 'SELECT') AND has_table_privilege($1::text::name, c.oid, 'INSERT')
        AND has_table_privilege($1::text::name, c.oid, 'UPDATE') AND has_table_privilege($1::text::name, c.oid, 'DELETE')
        AND has_table_privilege($1::text::name, c.oid, 'TRUNCATE'))";

/// Gives the role what it needs to write to the tables that are there, as far as the target's user can.
async fn entitle(target: &TargetClient, name: &str) -> Result<()> {
    let failed = target.failed("the rights of the role that writes");
    let role = Sql::default().ident(name);
    let newer = catalog::dialect(target).await?.grants_by_option();
    let mut grants = Vec::new();
    for row in target.query(OWNERS, &[&name]).await.map_err(&failed)? {
        let grant = Sql::new("GRANT ").ident(row.get(0)).text(" TO ").sql(&role);
        // It is not to become them.
        grants.push(if newer { grant.text(" WITH INHERIT TRUE, SET FALSE") } else { grant });
    }
    let database: Option<String> = {
        let sql = "SELECT current_database()::text WHERE NOT has_database_privilege($1::text::name, current_database(), 'CONNECT')";
        target.query_opt(sql, &[&name]).await.map_err(&failed)?.map(|row| row.get(0))
    };
    grants.extend(
        database
            .map(|database| Sql::new("GRANT CONNECT ON DATABASE ").ident(&database).text(" TO ").sql(&role)),
    );
    for row in target.query(SCHEMAS, &[&name]).await.map_err(&failed)? {
        grants.push(Sql::new("GRANT USAGE ON SCHEMA ").ident(row.get(0)).text(" TO ").sql(&role));
    }
    super::roles::execute(target, &grants, Within::Session).await?;
    let found = target.query(TABLES, &[&name]).await.map_err(&failed)?;
    let ours = found.iter().filter(|row| row.get(2));
    let ours: Vec<QualifiedName> =
        ours.map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    let grants: Vec<Sql> = ours
        .chunks(TABLES_PER_TRANSACTION)
        .map(|some| {
            Sql::new("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ")
                .list(some, ", ", |sql, table| sql.name(table))
                .text(" TO ")
                .sql(&role)
        })
        .collect();
    super::roles::execute(target, &grants, Within::Session).await?;
    Ok(())
}

/// A table of the migration that the target's user could write to, and the role cannot: for want of a right, or since it is
/// among the `secured` ones, which show all rows to their owner alone, or not even to him.
async fn beyond(
    store: &Store<'_>,
    target: &TargetClient,
    name: &str,
    secured: &[(QualifiedName, Option<String>)],
) -> Result<Option<QualifiedName>> {
    let failed = target.failed("the tables that the role cannot write to");
    let relations: HashSet<QualifiedName> =
        store.relations().await?.into_iter().map(|row| row.name).collect();
    let table =
        |row: &tokio_postgres::Row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    let lacks = target.query(TABLES, &[&name]).await.map_err(&failed)?;
    let lacks = lacks.iter().filter(|row| row.get(3)).map(table);
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p') AND NOT pg_has_role($1::text::name, c.relowner, 'USAGE')";
    let others = target.query(sql, &[&name]).await.map_err(&failed)?;
    let others: HashSet<QualifiedName> = others.iter().map(table).collect();
    let hidden = secured.iter().filter(|(name, owner)| owner.is_none() || others.contains(name));
    Ok(lacks.chain(hidden.map(|(name, _)| name.clone())).find(|name| relations.contains(name)))
}
