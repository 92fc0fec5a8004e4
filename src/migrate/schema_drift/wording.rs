//! Views of servers of different versions, which word one query in two ways: the target is asked for its own wording.

use std::collections::HashSet;

use tokio_postgres::SimpleQueryMessage;

use crate::catalog::{SchemaObject, SchemaObjectKey, SchemaObjectKind, TargetClient};
use crate::error::Result;
use crate::pg::Sql;

/// Those of the pairs, a source's view and the target's, that are the same view. The target makes each for a moment, as a
/// temporary view; one that it refuses is not the same.
///
/// # Errors
/// When the target does not answer.
pub(super) async fn same_views<'a>(
    target: &TargetClient,
    pairs: impl Iterator<Item = (&'a SchemaObject, &'a SchemaObject)>,
) -> Result<HashSet<SchemaObjectKey>> {
    let mut same = HashSet::new();
    for (now, there) in pairs {
        let (Some((head, query)), Some((head_there, query_there))) = (parts(now), parts(there)) else {
            continue;
        };
        if head == head_there && in_words_of(target, query).await?.as_deref() == Some(query_there) {
            same.insert(now.key.clone());
        }
    }
    Ok(same)
}

/// What stands before the query, and the query.
fn parts(view: &SchemaObject) -> Option<(&str, &str)> {
    let text = match view.key.kind {
        SchemaObjectKind::View => view.statement.as_str(),
        SchemaObjectKind::MaterializedView => view.statement.strip_suffix("\n WITH NO DATA")?,
        _ => return None,
    };
    text.split_once(" AS\n")
}

async fn in_words_of(target: &TargetClient, query: &str) -> Result<Option<String>> {
    let sql = Sql::new("CREATE TEMPORARY VIEW walferry_wording AS ").catalog(query).text(
        "; SELECT rtrim(pg_get_viewdef('pg_temp.walferry_wording'::regclass), ';'); \
         DROP VIEW pg_temp.walferry_wording",
    );
    worded(target, &sql).await
}

/// What the target answers to statements that make something for a moment and ask how it is worded; `None` where it does
/// not take them. Several at once are one transaction.
///
/// # Errors
/// When it does not answer.
pub(in crate::migrate) async fn worded(target: &TargetClient, sql: &Sql) -> Result<Option<String>> {
    let answer = match target.simple_query(sql.as_str()).await {
        Ok(answer) => answer,
        Err(error) if error.as_db_error().is_some() => {
            tracing::debug!(%error, "the target does not take a definition of the source");
            return Ok(None);
        }
        Err(error) => return Err(target.failed("a wording")(error).into()),
    };
    Ok(answer.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
