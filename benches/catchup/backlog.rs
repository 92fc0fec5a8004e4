//! The backlogs, and how each is written.

use walferry::demo::Server;

use crate::common::{DB, Result};

/// What is written on the source while nobody follows.
pub struct Backlog {
    /// `a`, `b` or `c`.
    pub name: &'static str,
    /// Rows changed, at scale 1.
    pub changes: u64,
    /// Tables that it needs; pgbench's are made by pgbench.
    pub tables: &'static str,
    write: Write,
}

/// How it is written.
enum Write {
    /// By so many clients of pgbench.
    Pgbench { clients: u64, changes: u64 },
    /// By one statement, `{changes}` standing for their number.
    Sql(&'static str),
}

impl Backlog {
    /// Whether it is pgbench's.
    pub fn is_pgbench(&self) -> bool {
        matches!(self.write, Write::Pgbench { .. })
    }

    /// Writes it, and a row of `marker` after it; gives that row's number.
    pub async fn write(&self, source: &Server, changes: u64) -> Result<i64> {
        match &self.write {
            Write::Pgbench { clients, changes: each } => {
                let (clients, each) = (clients.to_string(), (changes / each / clients).max(1).to_string());
                source.pgbench(DB, &["-n", "-c", &clients, "-j", "2", "-t", &each]).await?;
            }
            Write::Sql(sql) => {
                let sql = sql.replace("{changes}", &changes.to_string());
                source.client(DB).await?.batch_execute(&sql).await?;
            }
        }
        let client = source.client(DB).await?;
        Ok(client.query_one("INSERT INTO marker DEFAULT VALUES RETURNING id", &[]).await?.get(0))
    }
}

/// All of them.
pub const BACKLOGS: [Backlog; 3] = [
    Backlog { name: "a", changes: 400_000, tables: "", write: Write::Pgbench { clients: 4, changes: 4 } },
    Backlog {
        name: "b",
        changes: 1_000_000,
        tables: "CREATE TABLE wide (id bigint PRIMARY KEY, n int, t text);",
        write: Write::Sql(
            "INSERT INTO wide SELECT coalesce((SELECT max(id) FROM wide), 0) + n, n, repeat(md5(n::text), 2)::char(60) \
             FROM generate_series(1, {changes}) n",
        ),
    },
    Backlog {
        name: "c",
        changes: 200_000,
        tables: "CREATE TABLE narrow (id bigint PRIMARY KEY, n int);",
        write: Write::Sql(
            "DO $$ DECLARE base bigint := (SELECT coalesce(max(id), 0) FROM narrow); BEGIN FOR n IN 1..{changes} LOOP \
             INSERT INTO narrow VALUES (base + n, n); COMMIT; END LOOP; END $$",
        ),
    },
];
