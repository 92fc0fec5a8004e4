//! Who may do what: privileges on objects and columns, and default privileges.
//!
//! What both sides have is compared, defaults spelt out, and the difference granted or revoked. A privilege that was
//! granted by somebody with the grant option comes from the owner then. An owner's own privileges go with the ownership:
//! one that took some from himself has them on the target, since Walferry writes there with them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::ownership::Parties;
use super::statements::{Refused, Within, execute};
use crate::catalog::{self, DefaultPrivilege, Object, Privilege, SourceClient, TargetClient};
use crate::error::Result;
use crate::pg::Sql;
use crate::source::Dialect;

/// Makes the privileges on the target's objects what they are on the source: on those that `owners` has the target's
/// owner of, which must be on both sides. The source may have one without any privilege.
pub(super) async fn carry(
    source: &SourceClient,
    target: &TargetClient,
    parties: &Parties,
    owners: &HashMap<Object, String>,
) -> Result<Vec<Refused>> {
    let (wanted, found) = tokio::try_join!(catalog::privileges(source), catalog::privileges(target))?;
    let dialect = catalog::dialect(source).await?;
    let refused =
        execute(target, &difference(parties, owners, &wanted, &found, dialect), Within::Session).await?;
    // Of a GRANT by somebody who has no grant option, a server makes a notice.
    let found = catalog::privileges(target).await?;
    Ok(still(difference(parties, owners, &wanted, &found, dialect), refused))
}

/// The same for the database itself.
pub(super) async fn carry_on_database(
    parties: &Parties,
    source: (&SourceClient, &Object),
    target: (&TargetClient, &Object),
) -> Result<Vec<Refused>> {
    let dialect = catalog::dialect(source.0).await?;
    let (_, mut wanted) = catalog::database_privileges(source.0).await?;
    wanted.iter_mut().for_each(|privilege| privilege.object.clone_from(target.1));
    let (owned, before) = catalog::database_privileges(target.0).await?;
    let owners = HashMap::from([(owned.object, owned.owner)]);
    let statements = difference(parties, &owners, &wanted, &before, dialect);
    let refused = execute(target.0, &statements, Within::Session).await?;
    let (_, after) = catalog::database_privileges(target.0).await?;
    Ok(still(difference(parties, &owners, &wanted, &after, dialect), refused))
}

/// Makes the target's default privileges what they are on the source; what it has beyond them stays.
pub(super) async fn carry_defaults(
    target: &TargetClient,
    parties: &Parties,
    wanted: &[DefaultPrivilege],
) -> Result<Vec<Refused>> {
    let found = catalog::default_privileges(target).await?;
    let known = |entry: &&DefaultPrivilege| {
        let grantee = entry.grantee.as_ref().is_none_or(|grantee| parties.both.contains(grantee));
        parties.both.contains(&entry.role) && grantee
    };
    let missing = wanted.iter().filter(known).filter(|entry| !found.contains(entry));
    let statements: Vec<Sql> = missing.filter_map(default_privilege).collect();
    execute(target, &statements, Within::Session).await
}

/// What is left to do, with what the target said about it.
fn still(left: Vec<Sql>, refused: Vec<Refused>) -> Vec<Refused> {
    let said: HashMap<&str, &str> =
        refused.iter().map(|refused| (refused.statement.as_str(), refused.reason.as_str())).collect();
    let reason = |statement: &Sql| said.get(statement.as_str()).copied().unwrap_or("it has no effect there");
    left.iter()
        .map(|statement| Refused { statement: statement.clone(), reason: reason(statement).to_owned() })
        .collect()
}

/// The statements that make what was `found` what is `wanted`.
fn difference(
    parties: &Parties,
    owners: &HashMap<Object, String>,
    wanted: &[Privilege],
    found: &[Privilege],
    source: Dialect,
) -> Vec<Sql> {
    // The owner of an object on the target has all of them.
    let concerned = |privilege: &&Privilege| match (owners.get(&privilege.object), &privilege.grantee) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(owner), Some(grantee)) => grantee != owner && parties.both.contains(grantee),
    };
    let has: HashMap<Key<'_>, bool> = found.iter().map(|found| (key(found), found.grantable)).collect();
    let lacks = |wanted: &&Privilege| match has.get(&key(wanted)) {
        None => true,
        Some(grantable) => wanted.grantable && !grantable,
    };
    let grants = Gathered::of(wanted.iter().filter(concerned).filter(lacks));
    let had: HashSet<Key<'_>> = wanted.iter().map(key).collect();
    let too_much = |found: &&Privilege| {
        !had.contains(&key(found))
            && found.grantee.as_ref() != Some(&parties.me)
            && (found.privilege != "MAINTAIN" || source.has_maintain())
    };
    let revokes = Gathered::of(found.iter().filter(concerned).filter(too_much));
    revokes.statements(false).into_iter().chain(grants.statements(true)).collect()
}

type Key<'a> = (&'a Object, Option<&'a str>, Option<&'a str>, &'a str);

fn key(privilege: &Privilege) -> Key<'_> {
    (&privilege.object, privilege.column.as_deref(), privilege.grantee.as_deref(), &privilege.privilege)
}

/// Privileges by what one statement can say: an object, somebody, with or without the grant option.
struct Gathered<'a>(BTreeMap<Place<'a>, BTreeSet<(&'a str, Option<&'a str>)>>);

/// On what, to whom, whether with the grant option.
type Place<'a> = (&'a Object, Option<&'a str>, bool);

impl<'a> Gathered<'a> {
    fn of(privileges: impl Iterator<Item = &'a Privilege>) -> Self {
        let mut gathered: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for found in privileges {
            let place = (&found.object, found.grantee.as_deref(), found.grantable);
            gathered.entry(place).or_default().insert((found.privilege.as_str(), found.column.as_deref()));
        }
        Self(gathered)
    }

    fn statements(&self, grant: bool) -> Vec<Sql> {
        let statement = |(place, privileges): (&Place<'_>, &BTreeSet<_>)| {
            let (object, grantee, grantable) = *place;
            let sql = Sql::new(if grant { "GRANT " } else { "REVOKE " }).list(privileges, ", ", privilege);
            let sql = sql.text(" ON ").text(object.kind.granted_on()).text(" ").catalog(&object.identity);
            let sql = somebody(sql.text(if grant { " TO " } else { " FROM " }), grantee);
            if grant && grantable { sql.text(" WITH GRANT OPTION") } else { sql }
        };
        self.0.iter().map(statement).collect()
    }
}

fn privilege(sql: Sql, (name, column): &(&str, Option<&str>)) -> Sql {
    let sql = sql.catalog(name);
    match column {
        Some(column) => sql.text(" (").ident(column).text(")"),
        None => sql,
    }
}

fn somebody(sql: Sql, grantee: Option<&str>) -> Sql {
    match grantee {
        Some(grantee) => sql.ident(grantee),
        None => sql.text("PUBLIC"),
    }
}

/// None for a kind that this version does not know.
fn default_privilege(entry: &DefaultPrivilege) -> Option<Sql> {
    let objects = match entry.kind.as_str() {
        "r" => "TABLES",
        "S" => "SEQUENCES",
        "f" => "ROUTINES",
        "T" => "TYPES",
        "n" => "SCHEMAS",
        "L" => "LARGE OBJECTS",
        _ => return None,
    };
    let mut sql = Sql::new("ALTER DEFAULT PRIVILEGES FOR ROLE ").ident(&entry.role);
    if let Some(schema) = &entry.schema {
        sql = sql.text(" IN SCHEMA ").ident(schema);
    }
    let sql = sql.text(if entry.granted { " GRANT " } else { " REVOKE " }).catalog(&entry.privilege);
    let sql = sql.text(" ON ").text(objects).text(if entry.granted { " TO " } else { " FROM " });
    let sql = somebody(sql, entry.grantee.as_deref());
    Some(if entry.granted && entry.grantable { sql.text(" WITH GRANT OPTION") } else { sql })
}
