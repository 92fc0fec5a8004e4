//! What somebody did to a publication and undid again.
//!
//! A table that was taken out of a publication and put back looks as before, and so does a publication whose operations
//! were changed and changed back; but what was written meanwhile is missed. The catalog keeps that it happened: another
//! row stands for the same thing, with another identifier or another `xmin`. So what stands for each table, and for each
//! publication, is remembered on the target, and compared whenever the source's tables are looked at.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{self, SourceClient};
use crate::error::{Result, Side};
use crate::store::{PublishedRow, Store};

/// Stands for a publication itself, among its tables' identifiers: no table has it.
const ITSELF: u32 = 0;

/// Which tables were published otherwise for a while.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interrupted {
    /// `pg_class.oid` of each.
    pub tables: BTreeSet<u32>,
    /// Something is not as it is remembered.
    pub differs: bool,
}

/// The rows of the catalog that stand for the publications and their tables now.
///
/// # Errors
/// When the source does not answer.
pub async fn rows(client: &SourceClient, names: &[String]) -> Result<Vec<PublishedRow>> {
    let sql = "SELECT pubname::text, 0::oid, oid::text || ':' || xmin::text FROM pg_publication WHERE pubname = ANY ($1)
               UNION ALL SELECT p.pubname::text, r.prrelid, r.oid::text || ':' || r.xmin::text
               FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = ANY ($1)";
    let rows = client.query(sql, &[&names]).await;
    let rows = rows
        .map_err(|error| catalog::Error::new(Side::Source, "what stands for the published tables", error))?;
    let row = |row: &tokio_postgres::Row| PublishedRow {
        publication: row.get(0),
        table: row.get(1),
        version: row.get(2),
    };
    Ok(rows.iter().map(row).collect())
}

/// Remembers what stands for the publications now, and for these tables in them; for all where `only` is `None`.
///
/// # Errors
/// When a side does not answer.
pub async fn remember(
    source: &SourceClient,
    names: &[String],
    store: &Store<'_>,
    only: Option<&BTreeSet<u32>>,
) -> Result<()> {
    let mut found = rows(source, names).await?;
    found.retain(|row| only.is_none_or(|only| only.contains(&row.table)));
    store.remember_published(&found).await
}

/// What is published now by another row than the one that is remembered. A migration that remembers nothing was begun by
/// an older Walferry: what was before is not known.
pub fn interrupted(remembered: &[PublishedRow], now: &[PublishedRow]) -> Interrupted {
    if remembered.is_empty() {
        return Interrupted { tables: BTreeSet::new(), differs: true };
    }
    let versions: BTreeMap<(&str, u32), &str> =
        remembered.iter().map(|row| ((row.publication.as_str(), row.table), row.version.as_str())).collect();
    let other = |row: &&PublishedRow| {
        versions.get(&(row.publication.as_str(), row.table)) != Some(&row.version.as_str())
    };
    let publications: BTreeSet<&str> = now
        .iter()
        .filter(|row| row.table == ITSELF)
        .filter(other)
        .map(|row| row.publication.as_str())
        .collect();
    let affected = |row: &&PublishedRow| {
        row.table != ITSELF && (publications.contains(row.publication.as_str()) || other(row))
    };
    let tables = now.iter().filter(affected).map(|row| row.table).collect();
    Interrupted { tables, differs: now.iter().any(|row| other(&row)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_interrupted() {
        let rows = |rows: &[(&str, u32, &str)]| {
            let row = |(publication, table, version): &(&str, u32, &str)| PublishedRow {
                publication: (*publication).to_owned(),
                table: *table,
                version: (*version).to_owned(),
            };
            rows.iter().map(row).collect::<Vec<_>>()
        };
        let remembered =
            rows(&[("p", 0, "1:1"), ("p", 7, "2:1"), ("p", 8, "3:1"), ("i", 0, "4:1"), ("i", 9, "5:1")]);
        let check = |now: &[(&str, u32, &str)], expected: &[u32]| {
            let found = interrupted(&remembered, &rows(now));
            assert_eq!(found.tables.into_iter().collect::<Vec<_>>(), expected, "{now:?}");
        };
        check(&[("p", 0, "1:1"), ("p", 7, "2:1"), ("p", 8, "3:1"), ("i", 0, "4:1"), ("i", 9, "5:1")], &[]);
        // Taken out, which is seen elsewhere; put back; and one that was never there.
        check(&[("p", 0, "1:1"), ("p", 7, "2:1"), ("i", 0, "4:1"), ("i", 9, "5:1")], &[]);
        check(&[("p", 0, "1:1"), ("p", 7, "6:9"), ("p", 8, "3:1")], &[7]);
        check(&[("p", 0, "1:1"), ("p", 7, "2:1"), ("p", 10, "7:9")], &[10]);
        check(&[("p", 0, "1:9"), ("p", 7, "2:1"), ("i", 0, "4:1"), ("i", 9, "5:1")], &[7]);
        assert!(interrupted(&[], &rows(&[("p", 7, "2:1")])).tables.is_empty());
    }
}
