//! How things are set where somebody else runs the server. Each hint is a command, or a line for each command.

use crate::catalog::{Provider, Table};
use crate::pg::{QualifiedName, Sql, shell_word};

/// How `wal_level` becomes `logical`.
pub(super) fn wal_level(provider: Provider) -> String {
    match provider {
        Provider::SelfHosted => parameter(provider, "wal_level", "logical", true),
        Provider::Rds => parameter(provider, "rds.logical_replication", "1", true),
        Provider::CloudSql => parameter(provider, "cloudsql.logical_decoding", "on", true),
        Provider::Azure => format!(
            "{}\n(single server: azure.replication_support = logical)",
            parameter(provider, "wal_level", "logical", true)
        ),
        Provider::Aiven => {
            "Aiven for PostgreSQL has wal_level = logical from the start: ask Aiven's support".to_owned()
        }
    }
}

/// How a server parameter is set.
pub(super) fn parameter(provider: Provider, name: &str, value: &str, restart: bool) -> String {
    match provider {
        Provider::SelfHosted => {
            let then = if restart { "then restart the server" } else { "SELECT pg_reload_conf();" };
            format!("ALTER SYSTEM SET {name} = '{value}';\n{then}")
        }
        Provider::Rds => {
            let (method, then) = if restart {
                ("pending-reboot", "\naws rds reboot-db-instance --db-instance-identifier INSTANCE")
            } else {
                ("immediate", "")
            };
            format!(
                "aws rds modify-db-parameter-group --db-parameter-group-name GROUP --parameters \
                 ParameterName={name},ParameterValue={value},ApplyMethod={method}{then}"
            )
        }
        Provider::CloudSql => format!(
            "gcloud sql instances patch INSTANCE --database-flags={name}={value} (with the flags that it has: the list \
             replaces them)"
        ),
        Provider::Azure => {
            let then = if restart {
                "\naz postgres flexible-server restart --resource-group GROUP --name SERVER"
            } else {
                ""
            };
            format!(
                "az postgres flexible-server parameter set --resource-group GROUP --server-name SERVER --name {name} \
                 --value {value}{then}"
            )
        }
        Provider::Aiven => format!("avn service update SERVICE -c pg.{name}={value}"),
    }
}

/// How a user gets to open replication connections.
pub(super) fn replication(provider: Provider, user: &str) -> String {
    match provider {
        Provider::Rds => command(Sql::new("GRANT rds_replication TO ").ident(user)),
        Provider::CloudSql => command(Sql::new("ALTER USER ").ident(user).text(" WITH REPLICATION")),
        Provider::SelfHosted | Provider::Azure => {
            command(Sql::new("ALTER ROLE ").ident(user).text(" REPLICATION"))
        }
        Provider::Aiven => format!(
            "use avnadmin, which has it, or as avnadmin: {}",
            command(Sql::new("ALTER ROLE ").ident(user).text(" REPLICATION"))
        ),
    }
}

/// How a table's updates and deletes can be published.
pub(super) fn replica_identity(table: &Table) -> String {
    let alter = alter_identity(&table.name);
    match &table.identity_index {
        Some(index) => command(alter.text("USING INDEX ").ident(index)),
        None if table.takes_full => command(alter.text("FULL")),
        None => format!(
            "{}: a unique index over NOT NULL columns, none of them generated, then USING INDEX",
            table.name
        ),
    }
}

/// How a user gets the privileges of these roles.
pub(super) fn memberships(roles: &[String], user: &str) -> String {
    let grant = |role: &String| command(Sql::new("GRANT ").ident(role).text(" TO ").ident(user));
    roles.iter().map(grant).collect::<Vec<_>>().join("\n")
}

/// The name of a database among an option's, which take lists with commas.
pub(super) fn option_name(name: &str) -> String {
    let plain = !name.contains([',', '"']) && name.trim() == name;
    if plain { shell_word(name) } else { shell_word(&format!("\"{}\"", name.replace('"', "\"\""))) }
}

/// The statement, ready to paste.
pub(super) fn command(sql: Sql) -> String {
    sql.text(";").as_str().to_owned()
}

fn alter_identity(name: &QualifiedName) -> Sql {
    Sql::new("ALTER TABLE ").name(name).text(" REPLICA IDENTITY ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_command_lines() {
        let check = |name: &str, expected: &str| assert_eq!(option_name(name), expected);
        check("shop", "shop");
        check("My App", "'My App'");
        check("it's", "'it'\\''s'");
        check("a,b", "'\"a,b\"'");
    }

    #[test]
    fn providers() {
        let check = |provider, setting: &str, privilege: &str| {
            assert!(wal_level(provider).contains(setting), "{}", wal_level(provider));
            assert_eq!(replication(provider, "app"), privilege);
        };
        check(
            Provider::SelfHosted,
            "ALTER SYSTEM SET wal_level = 'logical';",
            "ALTER ROLE \"app\" REPLICATION;",
        );
        check(Provider::Rds, "rds.logical_replication,ParameterValue=1", "GRANT rds_replication TO \"app\";");
        check(Provider::CloudSql, "cloudsql.logical_decoding=on", "ALTER USER \"app\" WITH REPLICATION;");
        check(Provider::Azure, "azure.replication_support = logical", "ALTER ROLE \"app\" REPLICATION;");
        check(
            Provider::Aiven,
            "logical from the start",
            "use avnadmin, which has it, or as avnadmin: ALTER ROLE \"app\" REPLICATION;",
        );
    }
}
