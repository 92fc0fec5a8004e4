//! Publications of the source, by their names.

use super::{Error, SourceClient, ask};
use crate::pg::Sql;

/// The names of `wanted` that there are; where it is empty, of all publications that match `pattern`.
///
/// # Errors
/// When the server does not answer.
pub async fn publications(
    client: &SourceClient,
    wanted: &[String],
    pattern: &str,
) -> Result<Vec<String>, Error> {
    let sql = Sql::new(
        "SELECT pubname::text AS name FROM pg_publication WHERE CASE WHEN cardinality($1::text[]) > 0 \
         THEN pubname = ANY ($1) ELSE pubname ~ $2::text END ORDER BY 1",
    );
    let rows = ask::rows(client, "the publications", &sql, &[&wanted, &pattern]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}
