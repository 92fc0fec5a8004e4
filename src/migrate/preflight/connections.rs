//! Findings about the way to both servers: whether a connection pooler is in it, and whether the source lets us stream.

use tokio::time::timeout;

use super::{Finding, Report};
use crate::config::Method;
use crate::error::Side;
use crate::limits::CONTROL_PATIENCE;
use crate::pg::Sql;
use crate::source::replication::ReplicationSession;
use crate::wire::{self, ConnInfo, Session, SessionOptions};

/// Connects to each side as the migration will, by the method that the report has come to.
pub async fn connections(report: &mut Report, source: &ConnInfo, target: &ConnInfo) {
    let streams = async {
        match report.method {
            Method::Replication => Some(replication(source).await),
            Method::PgDump => None,
        }
    };
    let (source_pooled, target_pooled, streams) = tokio::join!(is_pooled(source), is_pooled(target), streams);
    for (side, pooled) in [(Side::Source, source_pooled), (Side::Target, target_pooled)] {
        let id = match side {
            Side::Source => "source-pooler",
            Side::Target => "target-pooler",
        };
        report.push(match pooled {
            Ok(false) => Finding::ok(id, side.as_str(), "nobody between us and the server"),
            Ok(true) => {
                Finding::fail(id, side.as_str(), "a connection pooler answers, not the server itself").hint(
                    "give the server's own host and port: neither replication nor our locks pass a pooler",
                )
            }
            Err(error) => Finding::unreachable(side, &error.into_failure(side)),
        });
    }
    streams.into_iter().for_each(|finding| report.push(finding));
}

/// A server tells at the start which process it is; a pooler makes a number up.
async fn is_pooled(info: &ConnInfo) -> Result<bool, wire::Error> {
    let mut session = Session::connect(info, &SessionOptions::new("walferry check")).await?;
    let (asked, after) = (Sql::new("SELECT pg_backend_pid()"), CONTROL_PATIENCE);
    let silent = |_| wire::Error::Silent { question: "its process", after };
    let rows = timeout(after, session.query(&asked)).await.map_err(silent)??;
    let pid = rows.first().and_then(|row| row.text(0)).and_then(|text| text.parse::<i32>().ok());
    Ok(pid != Some(session.process_id()))
}

async fn replication(source: &ConnInfo) -> Finding {
    let (id, subject) = ("source-replication-connection", "replication connection");
    let failure = match ReplicationSession::connect(source, "walferry check").await {
        Ok(mut session) => match timeout(CONTROL_PATIENCE, session.identify()).await {
            Ok(Ok(_)) => return Finding::ok(id, subject, "the source lets us stream"),
            Ok(Err(error)) => error.into(),
            Err(_) => {
                let (question, after) = ("its position", CONTROL_PATIENCE);
                wire::Error::Silent { question, after }.into_failure(Side::Source)
            }
        },
        Err(error) => error.into_failure(Side::Source),
    };
    let unreachable = Finding::unreachable(Side::Source, &failure);
    Finding { id, subject: subject.to_owned(), ..unreachable }
}
