//! A client that only reads: what a walsender takes to send a backlog, whoever applies it.

use std::time::Instant;

use tokio::time::timeout;
use walferry::pg::{SlotName, SourceLsn};
use walferry::proto::{Layout, Message, ReplicationFrame};
use walferry::source::replication::{ReplicationSession, StreamOptions};
use walferry::wire::{ConnInfo, Environment, Pace};

use crate::common::peers::PUBLICATIONS;
use crate::common::{Bench, PATIENCE, Result};

/// The slot that is only read.
pub const READING: &str = "reading";

/// A page of WAL: the position where the next record will stand is after the page's header, the last one's end before it.
const PAGE_BYTES: u64 = 8192;

/// Reads all that there is in gulps, as the engine does when it is behind, and throws it away. Gives the seconds.
pub async fn read(bench: &Bench) -> Result<f64> {
    let end: SourceLsn = bench.ask("SELECT pg_current_wal_insert_lsn()").await?.parse()?;
    let from = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{READING}'");
    let from: SourceLsn = bench.ask(&from).await?.parse()?;
    let publications: Vec<String> = PUBLICATIONS.split(", ").map(str::to_owned).collect();
    let source = ConnInfo::parse(&bench.source_uri(), &Environment::default())?;
    let began = Instant::now();
    let session = ReplicationSession::connect(&source, READING).await?;
    let slot = SlotName::new(READING)?;
    // Large transactions in progress, as the engine takes them.
    let options = StreamOptions { streaming: true, ..StreamOptions::default() };
    let (mut reader, mut writer) = session.start(&slot, from, &publications, options).await?;
    reader.set_pace(Pace::Behind);
    loop {
        let payload = timeout(PATIENCE, reader.next()).await??.ok_or("the source ended the stream")?;
        match ReplicationFrame::decode(payload)? {
            ReplicationFrame::XLogData(data) if Message::is_of_stream(&data.payload) => {
                let (_, message) = Message::decode(data.payload, Layout::PLAIN)?;
                let begins = matches!(message, Message::StreamStart(_));
                reader.set_pace(if begins { Pace::Large } else { Pace::Behind });
            }
            ReplicationFrame::XLogData(_) => {}
            // Sent when there is nothing more, as far as the walsender knows: at its start that is not far.
            ReplicationFrame::PrimaryKeepalive(keepalive)
                if keepalive.wal_end.get() + PAGE_BYTES >= end.get() =>
            {
                break;
            }
            ReplicationFrame::PrimaryKeepalive(_) => {}
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    writer.done().await?;
    timeout(PATIENCE, reader.finish(writer)).await??;
    Ok(seconds)
}
