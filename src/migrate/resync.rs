//! Tables that are to be copied afresh: marked here, copied by the next `migrate` while the others are followed.
//!
//! With the migration's lock in hand no engine is at work. What commits before the new copy's snapshot is in the copy,
//! and is dropped from the stream; so nothing has to be known of what the table holds now.

use std::collections::BTreeMap;

use crate::apply::TargetSession;
use crate::catalog::TargetClient;
use crate::error::{Definite, Result};
use crate::pg::QualifiedName;
use crate::store::{RelationRow, Store};

use super::select::databases_begun;
use super::{Phase, Sides};

/// A database with its lock, and what is to be marked there.
struct Found {
    database: String,
    target: TargetClient,
    lock: TargetSession,
    tables: Vec<QualifiedName>,
}

/// Marks tables, each given as `[database.]schema.table`, parts quoted where psql needs it; of a partitioned one its
/// partitions. Without a database the migration has to be one of a single database, or `only` to name one. Says which, each
/// with its database.
///
/// # Errors
/// A usage error when one of them is no table of the migration; then none is marked. When an engine is at work, or the
/// first copy is not complete.
pub async fn resync(
    sides: &Sides,
    only: &[String],
    tables: &[String],
) -> Result<Vec<(String, QualifiedName)>> {
    let databases = databases_begun(sides, only).await?;
    let mut texts: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for text in tables {
        texts.entry(database_of(text, &databases)?).or_default().push(text);
    }
    let mut all = Vec::new();
    for (database, texts) in texts {
        all.push(find(&sides.database(database), &texts).await?);
    }
    let mut marked = Vec::new();
    for Found { database, target, lock, tables } in all {
        let store = Store::new(&target, &sides.name);
        for name in tables {
            store.copy_again(&name).await?;
            marked.push((database.clone(), name));
        }
        drop(lock);
    }
    Ok(marked)
}

fn database_of<'a>(text: &str, databases: &'a [String]) -> Result<&'a String> {
    match (parts(text).as_deref(), databases) {
        (Some([database, _, _]), _) => databases.iter().find(|it| *it == database).ok_or_else(|| {
            let list = databases.join(", ");
            Definite::usage(format!("{database:?} is no database of the migration: {text}"))
                .hint(format!("its databases: {list}"))
                .into()
        }),
        (_, [database]) => Ok(database),
        _ => Err(Definite::usage(format!("the migration has several databases: whose is {text}?"))
            .hint(format!("write database.schema.table; its databases: {}", databases.join(", ")))
            .into()),
    }
}

/// What the texts mean in one database; nothing is marked yet.
async fn find(sides: &Sides, texts: &[&String]) -> Result<Found> {
    let target = sides.target_client().await?;
    let store = Store::new(&target, &sides.name);
    let row = store.migration().await?;
    let row = row.ok_or_else(|| Definite::new("the migration was removed meanwhile"))?;
    let phase = row.phase;
    if phase == Phase::Done {
        return Err(Definite::new("the migration is done: nothing is copied any more")
            .detail(format!("database {:?}", row.dbname))
            .hint("copy what differs by hand, or start afresh: `walferry remove`, an empty database, `walferry migrate`")
            .into());
    }
    if !matches!(phase, Phase::CatchingUp | Phase::Syncing) {
        return Err(Definite::new(format!("the first copy is not complete: the phase is {phase}"))
            .hint("run `walferry migrate` until it follows; then stop it, and run this again")
            .into());
    }
    let lock = TargetSession::connect(&sides.target, &sides.name, None).await?;
    let relations = store.relations().await?;
    let mut tables = Vec::new();
    for text in texts {
        for name in named(&target, &relations, text).await? {
            if !tables.contains(&name) {
                tables.push(name);
            }
        }
    }
    Ok(Found { database: row.dbname, target, lock, tables })
}

/// The tables of the migration that a name means.
async fn named(target: &TargetClient, relations: &[RelationRow], text: &str) -> Result<Vec<QualifiedName>> {
    let name = match parts(text).as_deref() {
        Some([schema, table]) => QualifiedName::new(schema, table),
        Some([_, schema, table]) => QualifiedName::new(schema, table),
        _ => {
            return Err(Definite::usage(format!("{text} is no name of a table"))
                .hint(
                    "give schema.table, each part in double quotes where it has capitals or other characters",
                )
                .into());
        }
    };
    if relations.iter().any(|relation| relation.name == name) {
        return Ok(vec![name]);
    }
    let mut leaves = leaves(target, &name).await?;
    leaves.retain(|leaf| relations.iter().any(|relation| relation.name == *leaf));
    if leaves.is_empty() { Err(unknown(&name, relations).into()) } else { Ok(leaves) }
}

/// The partitions of the target's table that hold rows.
async fn leaves(target: &TargetClient, name: &QualifiedName) -> Result<Vec<QualifiedName>> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace
               CROSS JOIN LATERAL pg_partition_tree(r.oid) t JOIN pg_class c ON c.oid = t.relid
               JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE s.nspname = $1 AND r.relname = $2 AND r.relkind = 'p' AND t.isleaf ORDER BY 1, 2";
    let rows = target.query(sql, &[&name.schema, &name.name]).await;
    let rows = rows.map_err(target.failed("a table's partitions"))?;
    let name =
        |row: &tokio_postgres::Row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(name).collect())
}

fn unknown(name: &QualifiedName, relations: &[RelationRow]) -> Definite {
    let mut near: Vec<(usize, String)> = relations
        .iter()
        .map(|relation| {
            let same_name = relation.name.name == name.name;
            let distance = if same_name { 0 } else { distance(&relation.name.name, &name.name) };
            (distance, relation.name.to_string())
        })
        .filter(|(distance, _)| *distance <= 1 + name.name.len() / 4)
        .collect();
    near.sort();
    let near: Vec<String> = near.into_iter().take(NEAR_SHOWN).map(|(_, name)| name).collect();
    let hint = if near.is_empty() {
        "`walferry status` lists its tables".to_owned()
    } else {
        format!("did you mean {}? `walferry status` lists its tables", near.join(", "))
    };
    Definite::usage(format!("table {name} is not part of the migration")).hint(hint)
}

/// How many alike names an error lists: what fits into a line.
const NEAR_SHOWN: usize = 5;

/// The parts of a dotted name: folded to lower case unless quoted, as PostgreSQL does. `None` if it is none.
fn parts(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => until_quote(quoted)?,
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                let part = &rest[..end];
                let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
                if !part.chars().all(plain) {
                    return None;
                }
                (part.to_lowercase(), &rest[end..])
            }
        };
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None => return after.is_empty().then_some(parts),
        }
    }
}

/// A quoted part without its quotes, and what comes after it.
fn until_quote(quoted: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut rest = quoted;
    loop {
        let (text, after) = rest.split_once('"')?;
        part.push_str(text);
        match after.strip_prefix('"') {
            Some(next) => {
                part.push('"');
                rest = next;
            }
            None => return Some((part, after)),
        }
    }
}

/// How many characters must be put in, left out or replaced to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |text: &str, expected: Option<&[&str]>| {
            let expected = expected.map(|parts| parts.iter().map(|part| (*part).to_owned()).collect());
            assert_eq!(parts(text), expected, "{text}");
        };
        check("public.Item", Some(&["public", "item"]));
        check(r#"shop."My ""odd"" schema"."A.b""#, Some(&["shop", "My \"odd\" schema", "A.b"]));
        check("item", Some(&["item"]));
        for wrong in ["", ".", "a.", ".a", "a..b", "a b.c", r#""a"#, r#""a"b.c"#, r#"a."""#, "a.b;"] {
            check(wrong, None);
        }
    }

    #[test]
    fn distances() {
        let check = |a: &str, b: &str, expected: usize| assert_eq!(distance(a, b), expected, "{a} {b}");
        check("orders", "orders", 0);
        check("orders", "order", 1);
        check("ordres", "orders", 2);
        check("", "abc", 3);
    }
}
