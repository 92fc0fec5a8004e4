//! Roles: what they are, whose members they are, how their sessions are set, and their passwords where those can be
//! read.

use std::collections::HashMap;

use super::{Error, SideClient, SourceClient, ask, dialect};
use crate::config::Secret;
use crate::pg::Sql;

/// A role of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// It is the superuser that the cluster was made with.
    pub bootstrap: bool,
    /// SUPERUSER.
    pub superuser: bool,
    /// INHERIT.
    pub inherit: bool,
    /// CREATEROLE.
    pub create_role: bool,
    /// CREATEDB.
    pub create_db: bool,
    /// LOGIN.
    pub login: bool,
    /// REPLICATION.
    pub replication: bool,
    /// BYPASSRLS.
    pub bypass_rls: bool,
    /// CONNECTION LIMIT; -1 for none.
    pub connection_limit: i32,
    /// VALID UNTIL, as text.
    pub valid_until: Option<String>,
    /// COMMENT ON ROLE.
    pub comment: Option<String>,
    /// The current user has its privileges, without SET ROLE.
    pub inherited: bool,
    /// The current user may SET ROLE to it.
    pub assumable: bool,
}

/// That one role is a member of another, whoever granted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The role.
    pub role: String,
    /// Its member.
    pub member: String,
    /// WITH ADMIN OPTION.
    pub admin: bool,
    /// WITH INHERIT and WITH SET (16); before, both follow from the member's INHERIT.
    pub options: Option<MembershipOptions>,
}

/// What a membership gives besides ADMIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MembershipOptions {
    /// The role's privileges, without SET ROLE.
    pub inherit: bool,
    /// SET ROLE.
    pub set: bool,
}

/// A setting that sessions of a role, or of a database, begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The role; none: every role, in this database.
    pub role: Option<String>,
    /// The parameter.
    pub name: String,
    /// Its value, as the catalog has it.
    pub value: String,
}

/// The cluster's roles, by name.
///
/// # Errors
/// When the server does not answer.
pub async fn roles(client: &SideClient) -> Result<Vec<Role>, Error> {
    let sql = Sql::new(
        "SELECT rolname::text AS name, oid = 10 AS bootstrap, rolsuper, rolinherit, rolcreaterole, rolcreatedb, \
         rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil::text AS valid_until, \
         shobj_description(oid, 'pg_authid') AS comment, pg_has_role(oid, 'USAGE') AS inherited, ",
    )
    .text(dialect(client).await?.assumable())
    .text(" AS assumable FROM pg_roles ORDER BY rolname");
    let rows = ask::rows(client, "the roles", &sql, &[]).await?;
    let role = |row: &ask::Answer| {
        Ok(Role {
            name: row.get("name")?,
            bootstrap: row.get("bootstrap")?,
            superuser: row.get("rolsuper")?,
            inherit: row.get("rolinherit")?,
            create_role: row.get("rolcreaterole")?,
            create_db: row.get("rolcreatedb")?,
            login: row.get("rolcanlogin")?,
            replication: row.get("rolreplication")?,
            bypass_rls: row.get("rolbypassrls")?,
            connection_limit: row.get("rolconnlimit")?,
            valid_until: row.get("valid_until")?,
            comment: row.get("comment")?,
            inherited: row.get("inherited")?,
            assumable: row.get("assumable")?,
        })
    };
    rows.iter().map(role).collect()
}

/// The name of the current user.
///
/// # Errors
/// When the server does not answer.
pub async fn current_user(client: &SideClient) -> Result<String, Error> {
    let sql = Sql::new("SELECT current_user::text AS name");
    ask::row(client, "the current user", &sql, &[]).await?.get("name")
}

/// What lets the current user read the hashes of passwords, as a superuser's `psql` takes it, and in which database: catalogs
/// that are shared have privileges in each.
///
/// # Errors
/// When the server does not answer.
pub async fn password_grant(client: &SourceClient) -> Result<(String, Sql), Error> {
    let sql = Sql::new("SELECT current_user::text AS name, current_database()::text AS database");
    let row = ask::row(client, "the current user", &sql, &[]).await?;
    let user: String = row.get("name")?;
    Ok((row.get("database")?, Sql::new("GRANT SELECT ON pg_catalog.pg_authid TO ").ident(&user).text(";")))
}

/// Which roles are members of which, by their names.
///
/// # Errors
/// When the server does not answer.
pub async fn memberships(client: &SideClient) -> Result<Vec<Membership>, Error> {
    let sql = Sql::new(
        "SELECT r.rolname::text AS role, u.rolname::text AS member, bool_or(m.admin_option) AS admin, ",
    )
    .text(dialect(client).await?.membership_options())
    .text(
        " FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN pg_roles u ON u.oid = m.member \
         GROUP BY 1, 2 ORDER BY 1, 2",
    );
    let rows = ask::rows(client, "the memberships of roles", &sql, &[]).await?;
    let membership = |row: &ask::Answer| {
        let options: (Option<bool>, Option<bool>) = (row.get("inherit")?, row.get("set")?);
        Ok(Membership {
            role: row.get("role")?,
            member: row.get("member")?,
            admin: row.get("admin")?,
            options: options.0.zip(options.1).map(|(inherit, set)| MembershipOptions { inherit, set }),
        })
    };
    rows.iter().map(membership).collect()
}

/// What sessions of each role begin with, in whatever database.
///
/// # Errors
/// When the server does not answer.
pub async fn role_settings(client: &SideClient) -> Result<Vec<Setting>, Error> {
    let sql =
        Sql::new(SETTINGS).text(" WHERE s.setdatabase = 0 AND r.oid IS NOT NULL ORDER BY r.rolname, c.n");
    settings(client, &sql).await
}

/// What sessions begin with in the current database: every role's, and some roles'.
///
/// # Errors
/// When the server does not answer.
pub async fn database_settings(client: &SideClient) -> Result<Vec<Setting>, Error> {
    let sql = Sql::new(SETTINGS).text(
        " WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND (s.setrole = 0 OR r.oid IS NOT NULL) ORDER BY r.rolname NULLS FIRST, c.n",
    );
    settings(client, &sql).await
}

/// The roles' passwords as the server keeps them, none for a role without one; nothing where the current user may not
/// read them. Some providers show asterisks: those roles are left out.
///
/// # Errors
/// When the server does not answer.
pub async fn password_hashes(
    client: &SourceClient,
) -> Result<Option<HashMap<String, Option<Secret>>>, Error> {
    let question = "the roles' passwords";
    let sql = Sql::new(
        "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS all_roles, \
         has_table_privilege('pg_catalog.pg_shadow', 'SELECT') AS login_roles",
    );
    let may = ask::row(client, question, &sql, &[]).await?;
    let sql = if may.get("all_roles")? {
        Sql::new("SELECT rolname::text AS name, rolpassword AS password FROM pg_catalog.pg_authid")
    } else if may.get("login_roles")? {
        Sql::new("SELECT usename::text AS name, passwd AS password FROM pg_catalog.pg_shadow")
    } else {
        return Ok(None);
    };
    let mut found = HashMap::new();
    for row in ask::rows(client, question, &sql, &[]).await? {
        let password: Option<String> = row.get("password")?;
        if password.as_deref().is_none_or(is_hash) {
            found.insert(row.get("name")?, password.map(Secret::new));
        }
    }
    Ok(Some(found))
}

/// Whether it is a password as servers keep it, which they take back as it is: `md5` and 32 digits, or SCRAM's parts.
fn is_hash(text: &str) -> bool {
    let md5 = text.strip_prefix("md5").is_some_and(|rest| {
        rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    md5 || text.starts_with("SCRAM-SHA-256$")
}

async fn settings(client: &SideClient, sql: &Sql) -> Result<Vec<Setting>, Error> {
    let rows = ask::rows(client, "the settings of roles and databases", sql, &[]).await?;
    let setting = |row: &ask::Answer| {
        Ok(Setting { role: row.get("role")?, name: row.get("name")?, value: row.get("value")? })
    };
    rows.iter().map(setting).collect()
}

const SETTINGS: &str = "SELECT r.rolname::text AS role, split_part(c.setting, '=', 1) AS name, \
    substr(c.setting, strpos(c.setting, '=') + 1) AS value FROM pg_db_role_setting s \
    CROSS JOIN LATERAL unnest(s.setconfig) WITH ORDINALITY AS c(setting, n) LEFT JOIN pg_roles r ON r.oid = s.setrole";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        let check = |text: &str, expected: bool| assert_eq!(is_hash(text), expected, "{text}");
        check("md5c4ca4238a0b923820dcc509a6f75849b", true);
        check("SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy", true);
        check("********", false);
        check("md5", false);
        check("hunter2", false);
        check("", false);
    }
}
