//! Sessions on the target that outlived their engine.

use super::{Store, failure};
use crate::error::Result;

impl Store<'_> {
    /// Ends what engines before this one have left at work on this migration's tables; says how many. The migration's lock
    /// must be held: then whatever copies its tables, or makes their indexes, is of an engine that is gone.
    ///
    /// The server may not have heard that it is gone: a network that swallows packets, or a proxy that keeps its side open,
    /// leaves a COPY waiting for rows, with its locks.
    pub async fn end_leftovers(&self) -> Result<usize> {
        let sql = "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
                   WHERE a.datname = current_database() AND (a.usename = current_user OR a.usename = (SELECT slot_name FROM walferry.migration WHERE name = $1))
                       AND a.pid <> pg_backend_pid()
                       AND a.application_name IN ('walferry copy', 'walferry schema')
                       AND EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                           JOIN pg_namespace n ON n.oid = c.relnamespace
                           JOIN walferry.relation r ON (r.schema_name, r.table_name) = (n.nspname, c.relname)
                           WHERE l.pid = a.pid AND l.locktype = 'relation' AND r.migration = $1)";
        Ok(self.client.query(sql, &[&self.name]).await.map_err(failure)?.len())
    }
}
