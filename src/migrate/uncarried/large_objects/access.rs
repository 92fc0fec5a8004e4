//! Who owns a large object, and who else may do what with it.
//!
//! Roles are known by their names. What is given to one that the target lacks cannot be given there, and an owner must
//! be a role that we may give something to. What the owner may do itself is left as it is by default.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Row;

use super::QUESTION;
use crate::catalog::{self, TargetClient};
use crate::error::Result;
use crate::pg::{ServerVersion, Sql};

/// `pg_largeobject_metadata m`: its owner, and what others may do: privilege, `*` with GRANT OPTION, a space, the role's
/// name, which is empty for all.
pub const COLUMNS: &str = "pg_get_userbyid(m.lomowner)::text, ARRAY(SELECT a.privilege_type || \
     CASE WHEN a.is_grantable THEN '*' ELSE '' END || ' ' || CASE a.grantee WHEN 0 THEN '' ELSE \
     pg_get_userbyid(a.grantee)::text END FROM aclexplode(m.lomacl) a WHERE a.grantee <> m.lomowner)";

/// Whose a large object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    owner: String,
    grants: BTreeSet<Grant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    /// Empty: everybody.
    role: String,
    privilege: Privilege,
    grantable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Privilege {
    Select,
    Update,
}

/// The target's roles.
#[derive(Debug, Clone)]
pub struct Roles {
    /// The current one.
    pub me: String,
    /// Each with whether something can be given to it, and is still ours to change then.
    can_own: HashMap<String, bool>,
}

impl Access {
    /// That of what `owner` has just made.
    pub fn new(owner: &str) -> Self {
        Self { owner: owner.to_owned(), grants: BTreeSet::new() }
    }

    /// From [`COLUMNS`], the first of which is `column`.
    pub fn of(row: &Row, column: usize) -> Self {
        let grants: Vec<String> = row.get(column + 1);
        Self { owner: row.get(column), grants: grants.iter().filter_map(|text| Grant::parse(text)).collect() }
    }
}

impl Grant {
    fn parse(text: &str) -> Option<Self> {
        let (privilege, role) = text.split_once(' ')?;
        let grantable = privilege.ends_with('*');
        let privilege = match privilege.trim_end_matches('*') {
            "SELECT" => Privilege::Select,
            "UPDATE" => Privilege::Update,
            _ => return None,
        };
        Some(Self { role: role.to_owned(), privilege, grantable })
    }
}

impl Roles {
    /// Reads them.
    ///
    /// # Errors
    /// When the target does not answer.
    pub async fn read(target: &TargetClient) -> Result<Self> {
        let version = catalog::server_version(target).await;
        let version: ServerVersion = version?;
        // To give something away takes SET (16), before that membership; to change it afterwards, what it inherits.
        let set =
            if version.major() >= 16 { "pg_has_role(oid, 'SET')" } else { "pg_has_role(oid, 'MEMBER')" };
        let sql = Sql::new("SELECT rolname::text, pg_has_role(oid, 'USAGE') AND ")
            .text(set)
            .text(", rolname = current_user FROM pg_roles");
        let rows = target.query(sql.as_str(), &[]).await.map_err(target.failed(QUESTION))?;
        let me = rows.iter().find(|row| row.get(2)).map(|row| row.get(0)).unwrap_or_default();
        Ok(Self { me, can_own: rows.iter().map(|row| (row.get(0), row.get(1))).collect() })
    }

    /// What gives the target's `id`, which `has` its owner and grants, those that are `wanted`; and the roles that are
    /// missed for that.
    pub fn statements(&self, id: u32, wanted: &Access, has: &Access) -> (Option<Sql>, Vec<String>) {
        let mut missing = Vec::new();
        let mut sql = Sql::default();
        let object = |sql: Sql| sql.text(" LARGE OBJECT ").number(id);
        let owner = if self.can_own.get(&wanted.owner) == Some(&true) { &wanted.owner } else { &has.owner };
        if *owner != wanted.owner {
            missing.push(wanted.owner.clone());
        }
        if *owner != has.owner {
            sql = object(sql.text("ALTER")).text(" OWNER TO ").ident(owner).text("; ");
        }
        let mut grants = BTreeSet::new();
        for grant in wanted.grants.iter().filter(|grant| grant.role != *owner) {
            if grant.role.is_empty() || self.can_own.contains_key(&grant.role) {
                grants.insert(grant.clone());
            } else {
                missing.push(grant.role.clone());
            }
        }
        let given: BTreeSet<&Grant> = has.grants.iter().filter(|grant| grant.role != *owner).collect();
        if given != grants.iter().collect() {
            // Who is a member of several roles that may do it gives and takes as any of them, and what another one has
            // given stays: so it is done as the owner.
            let as_owner = *owner != self.me && self.can_own.get(owner) == Some(&true);
            if as_owner {
                sql = sql.text("SET LOCAL ROLE ").ident(owner).text("; ");
            }
            let roles: BTreeSet<&str> = given.iter().map(|grant| grant.role.as_str()).collect();
            for role in roles {
                sql = to(object(sql.text("REVOKE ALL ON")).text(" FROM "), role).text(" CASCADE; ");
            }
            for Grant { role, privilege, grantable } in &grants {
                let privilege = match privilege {
                    Privilege::Select => "GRANT SELECT ON",
                    Privilege::Update => "GRANT UPDATE ON",
                };
                sql = to(object(sql.text(privilege)).text(" TO "), role);
                sql = sql.text(if *grantable { " WITH GRANT OPTION; " } else { "; " });
            }
            if as_owner {
                sql = sql.text("RESET ROLE; ");
            }
        }
        (Some(sql).filter(|sql| !sql.as_str().is_empty()), missing)
    }
}

fn to(sql: Sql, role: &str) -> Sql {
    if role.is_empty() { sql.text("PUBLIC") } else { sql.ident(role) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_given_and_no_more() {
        let roles = Roles {
            me: "me".to_owned(),
            can_own: [("me", true), ("app", true), ("other", false)].map(|(n, o)| (n.to_owned(), o)).into(),
        };
        let access = |owner: &str, grants: &[&str]| Access {
            owner: owner.to_owned(),
            grants: grants.iter().filter_map(|text| Grant::parse(text)).collect(),
        };
        let check = |wanted: &Access, has: &Access, expected: &str, missed: &[&str]| {
            let (sql, missing) = roles.statements(7, wanted, has);
            let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
            assert_eq!((sql.unwrap_or_default().as_str(), &missing[..]), (expected, missed));
        };
        check(&access("me", &[]), &access("me", &[]), "", &[]);
        check(&access("app", &[]), &access("me", &[]), "ALTER LARGE OBJECT 7 OWNER TO \"app\"; ", &[]);
        check(&access("other", &[]), &access("me", &[]), "", &["other"]);
        check(&access("gone", &["SELECT nobody"]), &access("me", &[]), "", &["gone", "nobody"]);
        let given = "GRANT SELECT ON LARGE OBJECT 7 TO PUBLIC; \
                     GRANT UPDATE ON LARGE OBJECT 7 TO \"other\" WITH GRANT OPTION; ";
        let wanted = access("me", &["SELECT ", "UPDATE* other"]);
        check(&wanted, &access("me", &[]), given, &[]);
        check(&wanted, &wanted, "", &[]);
        let revoked = format!("REVOKE ALL ON LARGE OBJECT 7 FROM \"app\" CASCADE; {given}");
        check(&wanted, &access("me", &["SELECT app"]), &revoked, &[]);
        check(&access("app", &["SELECT app"]), &access("app", &[]), "", &[]);
        let as_owner = "SET LOCAL ROLE \"app\"; REVOKE ALL ON LARGE OBJECT 7 FROM \"other\" CASCADE; \
                        GRANT SELECT ON LARGE OBJECT 7 TO \"other\" WITH GRANT OPTION; RESET ROLE; ";
        let wanted = access("app", &["SELECT* other"]);
        check(&wanted, &access("app", &["SELECT* other", "UPDATE* other"]), as_owner, &[]);
        let given_away = format!("ALTER LARGE OBJECT 7 OWNER TO \"app\"; {as_owner}");
        check(&wanted, &access("me", &["UPDATE other"]), &given_away, &[]);
    }
}
