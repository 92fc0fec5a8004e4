//! Which table is a partition of which, on one side.

use std::collections::{HashMap, HashSet};

use crate::catalog::SideClient;
use crate::error::Result;
use crate::pg::QualifiedName;

/// A partition, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// The table right above it.
    pub parent: QualifiedName,
    /// `FOR VALUES …` or `DEFAULT`, as the server writes it.
    pub bound: String,
}

/// The partitions of one side, by their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Hierarchy(HashMap<QualifiedName, Partition>);

impl Hierarchy {
    /// All partitions of the database.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(super) async fn read(client: &SideClient) -> Result<Self> {
        let sql = "SELECT n.nspname::text, c.relname::text, pn.nspname::text, p.relname::text,
                       pg_get_expr(c.relpartbound, c.oid)
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_inherits i ON i.inhrelid = c.oid
                   JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
                   WHERE c.relispartition";
        let rows = client.query(sql, &[]).await;
        let rows = rows.map_err(client.failed("the partitions"))?;
        let name = |row: &tokio_postgres::Row, at: usize| {
            QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
        };
        let partition = |row: &tokio_postgres::Row| {
            let bound: Option<String> = row.get(4);
            Some((name(row, 0), Partition { parent: name(row, 2), bound: bound? }))
        };
        Ok(Self(rows.iter().filter_map(partition).collect()))
    }

    /// The partitions, whatever they are partitions of.
    pub(super) fn into_names(self) -> HashSet<QualifiedName> {
        self.0.into_keys().collect()
    }

    pub(super) fn get(&self, name: &QualifiedName) -> Option<&Partition> {
        self.0.get(name)
    }

    pub(super) fn parent(&self, name: &QualifiedName) -> Option<&QualifiedName> {
        self.get(name).map(|partition| &partition.parent)
    }

    /// The partitions right below a table.
    pub(super) fn below<'a>(&'a self, parent: &'a QualifiedName) -> impl Iterator<Item = &'a QualifiedName> {
        self.0.iter().filter(move |(_, partition)| partition.parent == *parent).map(|(name, _)| name)
    }

    /// The table itself, what it is a partition of, and so on to the topmost.
    pub(super) fn upwards(&self, name: &QualifiedName) -> Vec<QualifiedName> {
        let mut path = vec![name.clone()];
        while let Some(parent) = path.last().and_then(|name| self.parent(name)) {
            path.push(parent.clone());
        }
        path
    }
}

#[cfg(test)]
impl Hierarchy {
    /// From `(partition, parent)` pairs, all in `public`.
    pub(super) fn example(pairs: &[(&str, &str)]) -> Self {
        let name = |name: &str| QualifiedName::new("public", name);
        let partition = |(of, parent): &(&str, &str)| {
            (name(of), Partition { parent: name(parent), bound: "DEFAULT".to_owned() })
        };
        Self(pairs.iter().map(partition).collect())
    }
}
