//! Whether two databases hold the same rows, fast enough to ask after every run.
//!
//! Counts and two sums of hashes for each table. The row-by-row comparison of `walferry::demo` sorts all of it, and so is
//! left for the end of a bench.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use walferry::demo::Server;

use super::Result;

/// Each table's count and sums.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows(BTreeMap<String, String>);

impl Rows {
    /// What the tables of a database's schema `public` hold.
    pub async fn of(server: &Server, database: &str) -> Result<Self> {
        let client = server.client(database).await?;
        client.batch_execute(SAME_HASHES).await?;
        let mut rows = BTreeMap::new();
        for table in names(&client).await? {
            // The name comes quoted from `format`.
            let sql = format!(
                "SELECT concat_ws(' ', count(*), sum(hashtextextended(t::text, 0)), sum(hashtextextended(t::text, 1))) \
                 FROM {table} t"
            );
            let sums = client.query_one(&sql, &[]).await?.get(0);
            rows.insert(table, sums);
        }
        Ok(Self(rows))
    }

    /// The tables that differ.
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let names = self.0.keys().chain(other.0.keys());
        let mut differing: Vec<_> = names.filter(|name| self.0.get(*name) != other.0.get(*name)).collect();
        differing.dedup();
        differing.into_iter().cloned().collect()
    }
}

/// `float8` is the one type of pgbench's and these tables' that has settings; rows on several cores.
const SAME_HASHES: &str = "SET extra_float_digits = 3; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'";

async fn names(client: &Client) -> Result<Vec<String>> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relkind = 'r' ORDER BY 1";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}
