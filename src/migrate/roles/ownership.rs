//! Who owns what. Everything was made by the target's user; here each object gets the owner that it has on the source.
//!
//! To give an object to a role, one must be able to SET ROLE to it, and the role needs CREATE on the object's schema. So
//! the target's user becomes a member of every role that is to own something. It stays one: that is what lets it write to
//! tables which are not its own any more, until the cutover and after it. No object is given to a role whose privileges
//! it would not have.
//!
//! Objects get their owners before code that hangs on them can run: the server runs the functions of an index as the owner of
//! the table, and fills a materialised view as its owner. Made by us and not given away, they would run as us.
//!
//! An object stays with the target's user where its owner is reserved or left out. Its owner's privileges are then
//! granted like anybody's, if the owner is on the target.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::statements::{Refused, Within, execute, log_refused};
use super::{carried, grants, on_both};
use crate::catalog::{self, Object, ObjectKind, Owned, SourceClient, TargetClient};
use crate::error::Result;
use crate::pg::Sql;

/// Gives what is there to the owners that it has on the source: before the functions of indexes run.
///
/// # Errors
/// When a side does not answer. What the target refuses is said by [`carry_objects`], which does what is left.
pub async fn carry_owners(source: &SourceClient, target: &TargetClient, ignored: &[String]) -> Result<()> {
    let parties = Parties::meet(source, target, ignored).await?;
    give(source, target, parties, &BTreeSet::new()).await.map(|_| ())
}

/// Makes owners, privileges and default privileges of the target's database what they are on the source.
///
/// For the end of the schema's making: what the target's objects have beyond the source's is revoked, from PUBLIC and
/// from roles that both sides have.
///
/// # Errors
/// When a side does not answer. What the target refuses is a warning, with the statement to run.
pub async fn carry_objects(
    source: &SourceClient,
    target: &TargetClient,
    ignored: &[String],
) -> Result<Vec<Refused>> {
    let parties = Parties::meet(source, target, ignored).await?;
    let defaults = catalog::default_privileges(source).await?;
    let of_defaults: BTreeSet<&str> = defaults.iter().map(|entry| entry.role.as_str()).collect();
    let (parties, wanted, mut refused) = give(source, target, parties, &of_defaults).await?;
    let mut found = owners_on(target).await?;
    let of_source: HashSet<&Object> = wanted.iter().map(|owned| &owned.object).collect();
    found.retain(|object, _| of_source.contains(object));
    parties.say_who_stays(&wanted, &found);
    refused.extend(grants::carry(source, target, &parties, &found).await?);
    refused.extend(grants::carry_defaults(target, &parties, &defaults).await?);
    log_refused(&refused);
    Ok(refused)
}

/// Joins the owners, and `more` roles, and gives the objects away; says what was wanted and what was refused.
async fn give(
    source: &SourceClient,
    target: &TargetClient,
    parties: Parties,
    more: &BTreeSet<&str>,
) -> Result<(Parties, Vec<Owned>, Vec<Refused>)> {
    let (wanted, found) = tokio::try_join!(catalog::owners(source), owners_on(target))?;
    let mut refused = Vec::new();
    let owners = wanted.iter().filter(|owned| owned.alterable).map(|owned| owned.owner.as_str());
    let needed: BTreeSet<&str> = owners.chain(more.iter().copied()).collect();
    let parties = parties.join(target, &needed, &mut refused).await?;
    for statements in parties.transfers(&wanted, &found) {
        refused.extend(execute(target, &statements, Within::Session).await?);
    }
    Ok((parties, wanted, refused))
}

async fn owners_on(target: &TargetClient) -> Result<HashMap<Object, String>, catalog::Error> {
    let owned = catalog::owners(target).await?;
    Ok(owned.into_iter().map(|owned| (owned.object, owned.owner)).collect())
}

/// Which roles there are to speak of.
#[derive(Debug, Clone)]
pub(super) struct Parties {
    /// The target's user.
    pub(super) me: String,
    /// Roles that are carried and that the target has.
    pub(super) both: BTreeSet<String>,
    /// Of the target's roles, those that its user can make owners without losing anything.
    pub(super) able: BTreeSet<String>,
}

impl Parties {
    /// Looks at both sides.
    pub(super) async fn meet(
        source: &SourceClient,
        target: &TargetClient,
        ignored: &[String],
    ) -> Result<Self> {
        let wanted = carried(source, ignored).await?;
        let there = catalog::roles(target).await?;
        let me = catalog::current_user(target).await?;
        let able = there.iter().filter(|role| role.inherited && role.assumable);
        let able = able.map(|role| role.name.clone()).collect();
        Ok(Self { me, both: on_both(&wanted, &there), able })
    }

    /// Makes the target's user a member of those of `owners` that both sides have.
    pub(super) async fn join(
        mut self,
        target: &TargetClient,
        owners: &BTreeSet<&str>,
        refused: &mut Vec<Refused>,
    ) -> Result<Self> {
        let options = catalog::dialect(target).await?.self_grant();
        let missing = owners.iter().filter(|owner| self.both.contains(**owner) && !self.may_own(owner));
        let missing: Vec<&str> = missing.copied().collect();
        if missing.is_empty() {
            return Ok(self);
        }
        let join = |owner: &&str| Sql::new("GRANT ").ident(owner).text(" TO ").ident(&self.me).text(options);
        let statements: Vec<Sql> = missing.iter().map(join).collect();
        let said = execute(target, &statements, Within::Session).await?;
        let there = catalog::roles(target).await?;
        let able = there.into_iter().filter(|role| role.inherited && role.assumable);
        self.able = able.map(|role| role.name).collect();
        // Another session of ours, for another database, may have done the same meanwhile, and been in the way.
        let still = missing.iter().zip(&statements).filter(|(owner, _)| !self.may_own(owner));
        let still: Vec<&Sql> = still.map(|(_, statement)| statement).collect();
        refused.extend(said.into_iter().filter(|refused| still.contains(&&refused.statement)));
        Ok(self)
    }

    /// Whether objects can be given to this role.
    pub(super) fn may_own(&self, role: &str) -> bool {
        self.both.contains(role) && self.able.contains(role)
    }

    /// The statements that give objects to their owners; each list needs what the ones before it did.
    fn transfers(&self, wanted: &[Owned], found: &HashMap<Object, String>) -> [Vec<Sql>; 3] {
        let (mut schemas, mut others, mut creates) = (Vec::new(), Vec::new(), BTreeSet::new());
        let owner = |object: &Object| found.get(object);
        let move_it = |owned: &&Owned| {
            owned.alterable
                && self.may_own(&owned.owner)
                && owner(&owned.object).is_some_and(|owner| *owner != owned.owner)
        };
        for owned in wanted.iter().filter(move_it) {
            let sql = Sql::new("ALTER ").text(owned.object.kind.as_str()).text(" ");
            let sql = sql.catalog(&owned.object.identity).text(" OWNER TO ").ident(&owned.owner);
            if owned.object.kind == ObjectKind::Schema { &mut schemas } else { &mut others }.push(sql);
            creates.extend(owned.schema.as_ref().map(|schema| (schema, &owned.owner)));
        }
        // Taken away again with what else the source does not have.
        let create = |(schema, owner): (&String, &String)| {
            Sql::new("GRANT CREATE ON SCHEMA ").ident(schema).text(" TO ").ident(owner)
        };
        [schemas, creates.into_iter().map(create).collect(), others]
    }

    /// Counts what cannot be given to its owner.
    fn say_who_stays(&self, wanted: &[Owned], found: &HashMap<Object, String>) {
        let mut staying: BTreeMap<&str, usize> = BTreeMap::new();
        let stays = |owned: &&Owned| {
            owned.alterable
                && !self.may_own(&owned.owner)
                && owned.owner != self.me
                && found.get(&owned.object) == Some(&self.me)
        };
        for owned in wanted.iter().filter(stays) {
            *staying.entry(&owned.owner).or_default() += 1;
        }
        for (owner, objects) in staying {
            let stay_with = &self.me;
            tracing::warn!(
                owner,
                objects,
                stay_with,
                "objects whose owner is not carried, or cannot be given any"
            );
        }
    }
}
