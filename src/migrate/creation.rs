//! The databases themselves, on the target: made like those of the source, from `template0`.
//!
//! Encoding, locale and owner are the source's; the owner where the target has such a role and we have its privileges. A
//! connection limit is carried where it leaves room for Walferry's own connections. The extension `aiven_extras` is
//! made where the target offers it and triggers could not be switched off without it.

use crate::catalog::{self, Database, ReplicaRole, TargetClient};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::CONNECTIONS_BESIDE_JOBS;
use crate::pg::Sql;

use super::Migration;
use super::attempt::Ended;
use super::retry::Context;

impl Migration {
    /// Makes the target's database where it is missing. Gives how the attempt ended, where it goes no further.
    pub(super) async fn make_database(&self, context: &mut Context) -> Result<Option<Ended>> {
        if self.on_target || context.database_made {
            return Ok(None);
        }
        let source = self.sides.source_client().await?;
        let entrance = TargetClient::connect(&self.entrance, "walferry").await?;
        let Some(chosen) = self.passes(&source, &entrance, false).await? else {
            return Ok(Some(Ended::CheckFailed));
        };
        let name = self.sides.source.dbname();
        let all = catalog::all_databases(&source).await?;
        let like = all
            .into_iter()
            .find(|database| database.name == name)
            .ok_or_else(|| Definite::usage(format!("the source has no database {name:?} any more")))?;
        create(&entrance, &like).await?;
        let extras = self.make_extras().await?;
        self.finish_database(&entrance, &like).await?;
        context.database_made = true;
        // Without it the database itself is looked at: it may need it.
        context.passed = extras.then_some(chosen);
        Ok(None)
    }

    /// Makes the extension aiven_extras where triggers cannot be switched off without it; whether that is settled now. A
    /// database may do without: the checks know.
    async fn make_extras(&self) -> Result<bool> {
        let made = self.sides.target_client().await?;
        let role = catalog::replica_role(&made).await?;
        if role != ReplicaRole::AivenExtrasAvailable {
            return Ok(true);
        }
        let create = Sql::new("CREATE EXTENSION IF NOT EXISTS aiven_extras CASCADE");
        let Err(error) = made.run("the extension aiven_extras", &create).await else {
            return Ok(true);
        };
        let failure = Failure::from(error);
        if matches!(failure, Failure::Transient(_)) {
            return Err(failure);
        }
        tracing::info!(%failure, hint = %create, "the extension aiven_extras is not made");
        Ok(false)
    }

    async fn finish_database(&self, entrance: &TargetClient, like: &Database) -> Result<()> {
        let own = Sql::new("ALTER DATABASE ").ident(&like.name);
        if has_privileges_of(entrance, &like.owner).await? {
            let alter = own.clone().text(" OWNER TO ").ident(&like.owner);
            // Having a role's privileges is not yet being allowed to give it something (16).
            match entrance.run("an owner", &alter).await {
                Ok(()) => {}
                Err(error) if error.state() == Some("42501") => {
                    tracing::warn!(owner = like.owner, hint = %alter, "the database is not given to its owner: no privilege");
                }
                Err(error) => return Err(error.into()),
            }
        } else {
            tracing::info!(owner = like.owner, "not given to its owner: no such role, or not its privileges");
        }
        let Some(limit) = like.connections_max else { return Ok(()) };
        let alter = own.text(" CONNECTION LIMIT ").number(limit);
        let needed = self.jobs + CONNECTIONS_BESIDE_JOBS;
        if usize::try_from(limit).is_ok_and(|limit| limit >= needed) {
            return Ok(entrance.run("the connection limit of a database", &alter).await?);
        }
        tracing::warn!(limit, hint = %alter, "the connection limit is too low for the migration: set it afterwards");
        Ok(())
    }
}

/// The statement that makes a database like that of the source.
pub(super) fn create_statement(like: &Database) -> Sql {
    let (name, locale) = (&like.name, &like.locale);
    let sql = Sql::new("CREATE DATABASE ").ident(name).text(" TEMPLATE template0 ENCODING ");
    let sql = sql.literal(&locale.encoding);
    let sql = match (locale.provider.as_str(), &locale.locale) {
        ("i", Some(icu)) => {
            let sql = sql.text(" LOCALE_PROVIDER icu ICU_LOCALE ").literal(icu);
            match &like.icu_rules {
                Some(rules) => sql.text(" ICU_RULES ").literal(rules),
                None => sql,
            }
        }
        ("b", Some(builtin)) => sql.text(" LOCALE_PROVIDER builtin BUILTIN_LOCALE ").literal(builtin),
        _ => sql.text(" LOCALE_PROVIDER libc"),
    };
    sql.text(" LC_COLLATE ").literal(&locale.collate).text(" LC_CTYPE ").literal(&locale.ctype)
}

async fn create(entrance: &TargetClient, like: &Database) -> Result<()> {
    let statement = create_statement(like);
    let Err(error) = entrance.run("a new database", &statement).await else {
        tracing::info!(statement = %statement, "database created");
        return Ok(());
    };
    match error.state() {
        // Somebody was faster.
        Some("42P04" | "23505") => Ok(()),
        // Somebody makes another of the same template.
        Some("55006") => Err(Transient::new(Side::Target, error.to_string()).into()),
        Some("42809" | "22023" | "42704") => Err(Definite::new("the target cannot make the database as the source has it")
            .detail(error.to_string())
            .hint(format!("make it yourself with a locale that the target has, then run `walferry migrate` again: {statement}"))
            .into()),
        _ => Err(error.into()),
    }
}

/// Whether the role is there, and what it may do is ours to do: who gives a database away to another cannot go on.
async fn has_privileges_of(client: &TargetClient, role: &str) -> Result<bool> {
    let sql =
        "SELECT pg_has_role(oid, 'USAGE') AND pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = $1";
    let row = client.query_opt(sql, &[&role]).await;
    let row = row.map_err(client.failed("the privileges of a role"))?;
    Ok(row.is_some_and(|row| row.get(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::DatabaseLocale;

    #[test]
    fn statements() {
        let check = |provider: &str, locale: Option<&str>, rules: Option<&str>, expected: &str| {
            let database = Database {
                name: "My \"App\"".to_owned(),
                owner: "app".to_owned(),
                template: false,
                connectable: true,
                connections_max: None,
                locale: DatabaseLocale {
                    encoding: "UTF8".to_owned(),
                    collate: "C".to_owned(),
                    ctype: "de_DE.utf8".to_owned(),
                    provider: provider.to_owned(),
                    locale: locale.map(str::to_owned),
                },
                icu_rules: rules.map(str::to_owned),
            };
            let expected = format!(
                "CREATE DATABASE \"My \"\"App\"\"\" TEMPLATE template0 ENCODING 'UTF8' {expected} \
                 LC_COLLATE 'C' LC_CTYPE 'de_DE.utf8'"
            );
            assert_eq!(create_statement(&database).as_str(), expected);
        };
        check("c", None, None, "LOCALE_PROVIDER libc");
        check("i", Some("de"), None, "LOCALE_PROVIDER icu ICU_LOCALE 'de'");
        check("i", Some("de"), Some("&a < b"), "LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a < b'");
        check("b", Some("C.UTF-8"), None, "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'");
    }
}
