//! Tables that the stream lacks, wholly or in part, kept from being written to from the carry to `done`.
//!
//! The stream says nothing of who writes to them. So one session locks them on the source in SHARE mode before they are
//! read: nobody writes to them from then on, and whoever wants to waits for the lock, which everybody may see. Somebody
//! who waits at the end writes after the fence, and the cutover is given up.
//!
//! A role that may read a table alone may not lock it: an extension's, or one that `aiven_extras` published. Of such a table
//! the rows and who wrote them are summed up before they are read, and again at the end, when nobody may be writing to it.
//! That proves what the stream proves of the others: nothing came after the fence, up to that moment.
//!
//! As long as the locks are held, the stream brings nothing of these tables while they are replaced on the target. So when
//! a cutover is given up then, what was replaced fits the stream that runs on, and so does what was not.

use std::collections::HashSet;

use tokio::time::timeout;

use crate::catalog::{self, SourceClient};
use crate::error::{Failure, Result};
use crate::limits::FENCE_LOCK_TIMEOUT;
use crate::migrate::uncarried::Again;
use crate::pg::{Oid, QualifiedName, Sql};
use crate::wire::ConnInfo;

use super::fence::connect_as;
use super::sessions::{first_names, named};
use super::written;

/// The `application_name` of the session that holds them.
pub(super) const HOLDING: &str = "walferry hold";

/// The locks, held until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    client: SourceClient,
    /// Of the tables that are locked those of which something is in the stream.
    streamed: HashSet<QualifiedName>,
    /// Those that this role may not lock.
    open: Vec<Open>,
}

/// A table that is not locked.
#[derive(Debug)]
struct Open {
    oid: Oid,
    name: QualifiedName,
    /// Its rows before they were read.
    rows: String,
}

impl Held {
    /// Locks the tables.
    ///
    /// # Errors
    /// When somebody writes to one of them and does not end, or the source does not answer.
    pub(super) async fn lock(source: &ConnInfo, again: &Again) -> Result<Self> {
        let client = connect_as(source, HOLDING).await?;
        client.batch_execute("BEGIN").await.map_err(failed)?;
        let (mut streamed, mut open) = (again.streamed.clone(), Vec::new());
        for table in &again.tables {
            let lock = Sql::new("SAVEPOINT one; LOCK TABLE ONLY ").name(&table.name);
            let lock = lock.text(" IN SHARE MODE; RELEASE SAVEPOINT one");
            let Err(error) = client.batch_execute(lock.as_str()).await else { continue };
            match error.code().map(tokio_postgres::error::SqlState::code) {
                Some("42501") => {
                    client.batch_execute("ROLLBACK TO SAVEPOINT one").await.map_err(failed)?;
                    streamed.remove(&table.name);
                    let rows = rows(&client, &table.name).await?;
                    open.push(Open { oid: table.oid, name: table.name.clone(), rows });
                }
                Some("55P03") => {
                    let name = &table.name;
                    return Err(written(&format!("open transactions write to table {name}, or change it")));
                }
                _ => return Err(failed(error)),
            }
        }
        Ok(Self { client, streamed, open })
    }

    /// Refuses to go on where somebody waits for one of the tables, has written to one that is not locked, or where they are
    /// not held any more.
    ///
    /// # Errors
    /// Who it is, or which table.
    pub(super) async fn refuse_written(&self) -> Result<()> {
        let waiting = catalog::waiting_for_me(&self.client).await?;
        if !waiting.is_empty() {
            let who = first_names(&named(&waiting));
            return Err(written(&format!(
                "sessions that wait to write to tables which are copied at cutover: {who}"
            )));
        }
        for Open { oid, name, rows: before } in &self.open {
            let writing = catalog::writing_to(&self.client, *oid).await?;
            if !writing.is_empty() {
                let who = first_names(&named(&writing));
                return Err(written(&format!("sessions that write to table {name}: {who}")));
            }
            if rows(&self.client, name).await? != *before {
                return Err(written(&format!("rows of table {name} are others than when they were copied")));
            }
        }
        Ok(())
    }

    /// Lets writers go on. Gives the tables of which the stream has brought nothing since they were locked; none where it is
    /// not known whether the locks were held up to now.
    pub(super) async fn release(self) -> Vec<QualifiedName> {
        let released = timeout(FENCE_LOCK_TIMEOUT, self.client.batch_execute("COMMIT")).await;
        if matches!(released, Ok(Ok(()))) { self.streamed.into_iter().collect() } else { Vec::new() }
    }
}

/// The rows of a table, summed up, with the transaction that wrote each: one that is written again as it was is another.
///
/// Not by a cast: its owner may have made one from the row's type to text, which would run here in our name.
async fn rows(client: &SourceClient, table: &QualifiedName) -> Result<String> {
    let sql = Sql::new(
        "SELECT count(*) || ' ' || coalesce(sum(('x' || substr(md5(r.xmin::text || ' ' || format('%s', r.*)), 1, 16))::bit(64)::bigint), 0) \
         FROM ONLY ",
    )
    .name(table)
    .text(" AS r");
    let row = client.query_one(sql.as_str(), &[]).await.map_err(failed)?;
    row.try_get(0).map_err(failed)
}

fn failed(error: tokio_postgres::Error) -> Failure {
    catalog::Error::new(crate::error::Side::Source, "locks on tables that are copied at cutover", error)
        .into()
}
