//! What changes on the source, as JSON: one line a message, for people and their programs to look at.
//!
//! A temporary slot begins now and goes with the connection. Nothing else is made on the source, and the target is not
//! asked: the publications are those of the migration, or named ones. Transactions come whole, when they commit.
//!
//! Values are what the source sends: text, or null. Bytes that are not UTF-8 (of a SQL_ASCII database) come as
//! `{"hex": "…"}`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::catalog::{self, SourceClient};
use crate::error::{Definite, Failure, Result, Side, Transient};
use crate::limits::STATUS_INTERVAL;
use crate::pg::{PgTimestamp, QualifiedName, Relation, RelationId, SlotName, SourceLsn};
use crate::proto::{
    DecodeError, Layout, LogicalMessage, Message, OldTuple, ReplicationFrame, StandbyStatusUpdate, Tuple,
    TupleValue,
};
use crate::source::replication::StreamOptions;
use crate::wire::{ConnInfo, CopyBothWriter};

use super::snapshot;

/// Prints to `out` what commits on the source from now on, until `stop` becomes true or `out` takes no more.
///
/// `publications`: which; when empty, those of the migration `name`.
///
/// # Errors
/// A definite failure without a publication, and where the source lets us make no slot; a transient one when the
/// connection breaks.
pub async fn tail(
    source: &ConnInfo,
    name: &str,
    publications: &[String],
    mut stop: watch::Receiver<bool>,
    mut out: impl FnMut(&str) -> io::Result<()>,
) -> Result<()> {
    let client = SourceClient::connect(source, "walferry tail").await?;
    let publications = known(&client, name, publications).await?;
    let slot = SlotName::new(&format!("walferry_tail_{:08x}", rand::random::<u32>()));
    let slot = slot.map_err(|error| Definite::new(error.to_string()))?;
    let snapshot = snapshot::create(source, &client, &slot, true).await?;
    let from = snapshot.consistent_point;
    let options = StreamOptions { messages: true, ..StreamOptions::default() };
    let started = snapshot.into_session().start(&slot, from, &publications, options).await;
    let (mut reader, mut writer) = started?;
    tracing::info!(%from, publications = publications.join(","), "tailing");
    let mut lines = Lines::new(from);
    let mut tick = tokio::time::interval(STATUS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let payload = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            _ = tick.tick() => {
                report(&mut writer, lines.seen).await?;
                continue;
            }
            received = reader.next() => received.map_err(|error| error.into_failure(Side::Source))?,
        };
        let Some(payload) = payload else {
            return Err(Transient::new(Side::Source, "the source ended the stream").into());
        };
        let (line, reply) = lines.take(payload).map_err(undecodable)?;
        if let Some(line) = line {
            match out(&format!("{line}\n")) {
                Ok(()) => {}
                // Who closes the pipe early has read enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(Definite::new("cannot write").detail(error.to_string()).into()),
            }
        }
        if reply {
            report(&mut writer, lines.seen).await?;
        }
    }
}

/// The publications that there are.
async fn known(client: &SourceClient, name: &str, wanted: &[String]) -> Result<Vec<String>> {
    let of_migration = format!("^walferry_{name}_[0-9a-f]{{8}}(_ins)?$");
    let found = catalog::publications(client, wanted, &of_migration).await?;
    let hint =
        "name one that there is with --publication, or make one: CREATE PUBLICATION tail FOR TABLE orders";
    if let Some(missing) = wanted.iter().find(|name| !found.contains(name)) {
        return Err(Definite::usage(format!("publication {missing:?} does not exist on the source"))
            .hint(hint)
            .into());
    }
    if found.is_empty() {
        let cause = format!("migration {name:?} has no publication on the source");
        return Err(Definite::usage(cause).hint(hint).into());
    }
    Ok(found)
}

async fn report(writer: &mut CopyBothWriter, seen: SourceLsn) -> Result<()> {
    let update = StandbyStatusUpdate {
        written: seen,
        flushed: seen,
        applied: seen,
        sent_at: PgTimestamp::from_unix_micros(jiff::Timestamp::now().as_microsecond()),
        reply_requested: false,
    };
    let mut message = BytesMut::new();
    update.encode(&mut message);
    writer.send(&message).await.map_err(|error| error.into_failure(Side::Source))
}

fn undecodable(error: DecodeError) -> Failure {
    Definite::new("the source sent a message that cannot be decoded")
        .detail(error.to_string())
        .hint("report this with the source's version")
        .into()
}

/// Messages as lines.
#[derive(Debug)]
struct Lines {
    relations: HashMap<RelationId, Relation>,
    xid: Option<u32>,
    /// Everything that ends before it has been printed.
    seen: SourceLsn,
}

impl Lines {
    fn new(from: SourceLsn) -> Self {
        Self { relations: HashMap::new(), xid: None, seen: from }
    }

    /// The line that a frame makes, if it makes one, and whether the source wants an answer.
    fn take(&mut self, payload: Bytes) -> Result<(Option<Value>, bool), DecodeError> {
        match ReplicationFrame::decode(payload)? {
            // Before 14, a server sends nothing in place of an Origin whose name it cannot find.
            ReplicationFrame::XLogData(data) if data.payload.is_empty() => Ok((None, false)),
            ReplicationFrame::XLogData(data) => {
                let (_, message) = Message::decode(data.payload, Layout::PLAIN)?;
                Ok((self.line(message), false))
            }
            ReplicationFrame::PrimaryKeepalive(keepalive) => {
                if self.xid.is_none() {
                    self.seen = self.seen.max(keepalive.wal_end);
                }
                Ok((None, keepalive.reply_requested))
            }
        }
    }

    fn line(&mut self, message: Message) -> Option<Value> {
        let xid = self.xid;
        Some(match message {
            Message::Begin(begin) => {
                self.xid = Some(begin.xid.get());
                let (lsn, time) = (begin.final_lsn.to_string(), time(begin.commit_time));
                json!({"kind": "begin", "xid": begin.xid.get(), "commit_lsn": lsn, "commit_time": time})
            }
            Message::Commit(commit) => {
                self.xid = None;
                self.seen = self.seen.max(commit.end_lsn.position());
                let (lsn, end) = (commit.commit_lsn.to_string(), commit.end_lsn.to_string());
                let time = time(commit.commit_time);
                json!({"kind": "commit", "xid": xid, "commit_lsn": lsn, "end_lsn": end, "commit_time": time})
            }
            Message::Origin(origin) => json!({"kind": "origin", "xid": xid, "name": origin.name}),
            Message::Message(message) => logical(&message, xid.filter(|_| message.transactional)),
            Message::Relation(relation) => {
                let columns = relation.columns.iter().map(|column| {
                    json!({"name": column.name, "type_oid": column.type_oid.get(), "type_modifier": column.type_modifier,
                           "key": column.key})
                });
                let columns: Vec<Value> = columns.collect();
                let QualifiedName { schema, name } = &relation.name;
                let line = json!({"kind": "relation", "xid": xid, "schema": schema, "table": name, "columns": columns});
                self.relations.insert(relation.id, relation);
                line
            }
            Message::Insert(insert) => self.change("insert", insert.relation, None, Some(&insert.new)),
            Message::Update(update) => {
                self.change("update", update.relation, update.old.as_ref(), Some(&update.new))
            }
            Message::Delete(delete) => self.change("delete", delete.relation, Some(&delete.old), None),
            Message::Truncate(truncate) => {
                let table = |id| match self.relations.get(id) {
                    Some(Relation { name, .. }) => json!({"schema": name.schema, "table": name.name}),
                    None => Value::Null,
                };
                let tables: Vec<Value> = truncate.relations.iter().map(table).collect();
                json!({"kind": "truncate", "xid": xid, "tables": tables, "cascade": truncate.cascade,
                       "restart_identity": truncate.restart_identity})
            }
            Message::Type(_) => return None,
            // Neither transactions in progress nor prepared ones were asked for.
            Message::StreamStart(_)
            | Message::StreamStop
            | Message::StreamCommit(_)
            | Message::StreamAbort(_)
            | Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_)
            | Message::StreamPrepare(_) => return None,
        })
    }

    fn change(&self, kind: &str, id: RelationId, old: Option<&OldTuple>, new: Option<&Tuple>) -> Value {
        let Some(relation) = self.relations.get(&id) else {
            return json!({"kind": kind, "xid": self.xid, "relation": id.get()});
        };
        let QualifiedName { schema, name } = &relation.name;
        let mut line = json!({"kind": kind, "xid": self.xid, "schema": schema, "table": name});
        match old {
            None => {}
            Some(OldTuple::Key(key)) => line["key"] = row(relation, key, |index| relation.columns[index].key),
            Some(OldTuple::Full(old)) => line["old"] = row(relation, old, |_| true),
        }
        if let Some(new) = new {
            line["new"] = row(relation, new, |_| true);
            let unchanged = new.columns().zip(&relation.columns);
            let unchanged = unchanged.filter(|(value, _)| matches!(value, TupleValue::Unchanged));
            let unchanged: Vec<&str> = unchanged.map(|(_, column)| column.name.as_str()).collect();
            if !unchanged.is_empty() {
                line["unchanged"] = json!(unchanged);
            }
        }
        line
    }
}

/// A row by its columns' names; those that were not sent are left out.
fn row(relation: &Relation, tuple: &Tuple, wanted: impl Fn(usize) -> bool) -> Value {
    let mut row = Map::new();
    for (index, (column, value)) in relation.columns.iter().zip(tuple.columns()).enumerate() {
        match value {
            TupleValue::Unchanged => {}
            TupleValue::Null if wanted(index) => {
                row.insert(column.name.clone(), Value::Null);
            }
            TupleValue::Text(bytes) | TupleValue::Binary(bytes) if wanted(index) => {
                row.insert(column.name.clone(), text(bytes));
            }
            TupleValue::Null | TupleValue::Text(_) | TupleValue::Binary(_) => {}
        }
    }
    Value::Object(row)
}

fn logical(message: &LogicalMessage, xid: Option<u32>) -> Value {
    let LogicalMessage { transactional, lsn, prefix, content } = message;
    json!({"kind": "message", "xid": xid, "transactional": transactional, "lsn": lsn.to_string(), "prefix": prefix,
           "content": text(content)})
}

fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => {
            let mut hex = String::with_capacity(bytes.len() * 2);
            for byte in bytes {
                // Writing to a String cannot fail.
                let _ = write!(hex, "{byte:02x}");
            }
            json!({"hex": hex})
        }
    }
}

fn time(time: PgTimestamp) -> Value {
    match jiff::Timestamp::from_microsecond(time.unix_micros()) {
        Ok(time) => Value::String(time.to_string()),
        Err(_) => Value::Null,
    }
}
