//! Fuzz targets of what others wrote, beside the stream: connection strings, archives of `pg_dump`, spools on disk, and
//! what a server says in a session.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt::{Debug, Display};
use std::fs;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use walferry::migrate::dump::{Archive, Wave, toc};
use walferry::pg::{Sql, Xid};
use walferry::spill::{SpillDir, SpillError, SpoolReader};
use walferry::wire::{ConnInfo, Environment, Pipeline, Session, SessionOptions};

use crate::session::messages;

const SECRET: &str = "Zt7qPw0Xk3";

/// Reads `bytes` as a connection string; a password that is put to it is in nothing that is shown.
///
/// # Panics
/// If it is.
pub fn fuzz_conninfo(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.contains(SECRET) {
        return;
    }
    let environment = Environment::from_map([("USER", "ann"), ("HOME", "/nonexistent")]);
    let Ok(read) = ConnInfo::parse(text, &environment) else { return };
    assert!(!read.hosts().is_empty(), "there is always a host to try");
    let Some(between) = before_another(text) else { return };
    match ConnInfo::parse(&format!("{text}{between}password={SECRET}"), &environment) {
        Ok(read) => unseen(&read, &read.libpq_keepalives()),
        Err(error) => unseen(&error, &""),
    }
}

/// What has to come between `text`, which is right, and another option; `None` where that would be part of a value.
fn before_another(text: &str) -> Option<&'static str> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
        return (!text.ends_with('\\') && !text.trim_end().ends_with('=')).then_some(" ");
    }
    // A user, and what is taken for an address, may have a question mark.
    match (text.contains('?'), text.contains(['@', '['])) {
        (false, _) => Some("?"),
        (true, false) => Some("&"),
        (true, true) => None,
    }
}

fn unseen(shown: &(impl Display + Debug), more: &impl Display) {
    let text = format!("{shown} {shown:?} {more}");
    assert!(!text.contains(SECRET), "the password is in {text:?}");
}

/// Reads `bytes` as an archive; what is accepted holds no more than was given.
///
/// # Panics
/// If it does.
pub fn fuzz_archive(bytes: &[u8]) {
    let Ok(entries) = toc::read(bytes) else { return };
    let texts = entries.iter().flat_map(|entry| {
        [&entry.tag, &entry.kind, &entry.schema, &entry.owner, &entry.definition].map(|text| text.len())
    });
    assert!(texts.sum::<usize>() <= bytes.len() && entries.len() <= bytes.len());
    let archive = Archive::read(bytes).expect("it was read");
    let waves = [Wave::PreData, Wave::Indexes, Wave::Rest, Wave::ForeignKeys, Wave::AfterForeignKeys];
    let made: Vec<_> = waves.iter().flat_map(|wave| archive.of(*wave)).collect();
    assert!(made.len() <= entries.len());
    let keys: HashSet<_> = made.iter().map(|entry| &entry.key).collect();
    assert_eq!(keys.len(), made.len(), "each is made once");
}

/// Writes a spool of some records, changes its file, and reads it: it is what was written, or damaged.
///
/// The first byte is the number of changes, of four bytes each; the rest are the records, as a session's.
///
/// # Panics
/// If it is neither.
pub fn fuzz_spool(bytes: &[u8]) {
    thread_local! {
        static PLACE: OnceCell<(tempfile::TempDir, SpillDir)> = const { OnceCell::new() };
    }
    let Some((&count, rest)) = bytes.split_first() else { return };
    let edits = usize::from(count % 8).min(rest.len() / 4);
    let (edits, rest) = rest.split_at(edits * 4);
    let written: Vec<(Xid, Bytes)> =
        messages(rest).into_iter().zip(7_u32..).map(|(message, xid)| (Xid::new(xid), message)).collect();

    let mut spool = PLACE.with(|place| {
        let (_, directory) = place.get_or_init(|| {
            let parent = tempfile::tempdir().expect("a temporary directory");
            let spill = SpillDir::create(parent.path(), "fuzz", u64::MAX).expect("a directory");
            (parent, spill)
        });
        directory.spool(Xid::new(7)).expect("the last one is gone")
    });
    for (xid, message) in &written {
        spool.append(*xid, message).expect("there is room");
    }
    spool.end_block().expect("there is room");
    let path = spool.path().to_owned();
    let whole = fs::read(&path).expect("it was written");
    let mut file = whole.clone();
    let mut forged = false;
    for edit in edits.chunks_exact(4) {
        forged |= change(&mut file, edit[0], usize::from(edit[1]) << 8 | usize::from(edit[2]), edit[3]);
    }
    fs::write(&path, &file).expect("there is room");
    let read = spool.into_reader(Xid::new(7)).and_then(read_all);
    let (records, end) = match read {
        Ok(read) => read,
        Err(error) => (Vec::new(), Err(error)),
    };
    assert!(records.len() <= written.len());
    if !forged {
        assert_eq!(records, written[..records.len()], "what is not as it was written");
        assert_eq!(end.is_ok(), file == whole, "{end:?}");
    }
    assert!(end.is_ok() || matches!(end, Err(SpillError::Damaged { .. })), "{end:?}");
}

type Read = (Vec<(Xid, Bytes)>, Result<(), SpillError>);

fn read_all(mut reader: SpoolReader) -> Result<Read, SpillError> {
    let mut records = Vec::new();
    loop {
        match reader.read() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => return Ok((records, Ok(()))),
            Err(error) => return Ok((records, Err(error))),
        }
    }
}

/// Whether the checksums were made to fit again.
fn change(file: &mut Vec<u8>, kind: u8, at: usize, value: u8) -> bool {
    let at = at % (file.len() + 1);
    match kind % 6 {
        0 => file.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= value),
        1 => file.truncate(at),
        2 => file.insert(at, value),
        3 => file.extend(std::iter::repeat_n(value, at % 64)),
        4 => file.iter_mut().skip(at).take(4).for_each(|byte| *byte = value),
        _ => {
            seal(file);
            return true;
        }
    }
    false
}

/// Computes every checksum anew, as far as the lengths lead.
fn seal(file: &mut [u8]) {
    const HEADER: usize = 20;
    let mut rest = file;
    let mut length = HEADER - 4;
    while rest.len() >= length + 4 {
        let (record, after) = rest.split_at_mut(length + 4);
        let crc = crc32fast::hash(&record[..length]);
        record[length..].copy_from_slice(&crc.to_be_bytes());
        rest = after;
        let Some(next) = rest.first_chunk() else { return };
        length = (u32::from_be_bytes(*next) as usize).saturating_add(8);
    }
}

/// Lets a server say `bytes` but the first, which chooses what is asked of it. Whatever comes, it ends, and no answer is
/// more than was said.
///
/// # Panics
/// If one is.
pub fn fuzz_server(bytes: &[u8]) {
    thread_local! {
        static PLACE: OnceCell<(Runtime, tempfile::TempDir, UnixListener)> = const { OnceCell::new() };
    }
    let Some((&asked, said)) = bytes.split_first() else { return };
    PLACE.with(|place| {
        let (runtime, directory, listener) = place.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            let directory = tempfile::tempdir().expect("a temporary directory");
            let path = directory.path().join(".s.PGSQL.5432");
            let listener = runtime.block_on(async { UnixListener::bind(path).expect("a socket") });
            (runtime, directory, listener)
        });
        let conninfo = format!("host={} user=ann password=b sslmode=disable", directory.path().display());
        let conninfo = ConnInfo::parse(&conninfo, &Environment::default()).expect("it is right");
        runtime.block_on(async {
            tokio::select! {
                () = serve(listener, said) => {}
                () = ask(&conninfo, asked, said.len()) => {}
            }
        });
    });
}

/// Says the same to whoever comes.
async fn serve(listener: &UnixListener, said: &[u8]) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        // Who is gone before it is said has heard enough.
        if stream.write_all(said).await.is_ok() && stream.shutdown().await.is_ok() {
            let mut heard = [0; 4096];
            while stream.read(&mut heard).await.is_ok_and(|count| count > 0) {}
        }
    }
}

async fn ask(conninfo: &ConnInfo, asked: u8, said: usize) {
    let options = SessionOptions { replication: asked & 8 != 0, ..SessionOptions::new("fuzz") };
    let mut session = match Session::connect(conninfo, &options).await {
        Ok(session) => session,
        Err(error) => return drop(format!("{error} {error:?}")),
    };
    let sql = Sql::new("SELECT 1");
    match asked % 5 {
        0 => {
            for row in session.query(&sql).await.unwrap_or_default() {
                let values = (0..row.len()).filter_map(|index| row.bytes(index));
                assert!(values.map(|value| value.len()).sum::<usize>() <= said);
                drop((row.named("a").map(str::to_owned), format!("{row:?}")));
            }
        }
        1 => {
            let Ok(mut copy) = session.copy_out(&sql).await else { return };
            let mut sum = 0;
            while let Ok(Some(frames)) = copy.next_frames().await {
                sum += frames.len();
            }
            assert!(sum <= said);
        }
        2 => {
            let mut pipeline = Pipeline::new();
            for _ in 0..2 {
                pipeline.parse("", &sql).expect("short");
                pipeline.execute("", [Some(b"1".as_slice()), None]).expect("short");
                pipeline.sync();
            }
            match session.run(&mut pipeline).await {
                Ok(outcome) => assert_eq!(outcome.affected.len(), 2, "each execute is answered"),
                Err(error) => assert!(error.execute.is_none_or(|place| place <= 2), "{error}"),
            }
        }
        3 => {
            let Ok((mut reader, _writer)) = session.copy_both(&sql).await else { return };
            let mut sum = 0;
            while let Ok(Some(payload)) = reader.next().await {
                sum += payload.len();
            }
            assert!(sum <= said);
        }
        _ => {
            let done = session.execute(&sql).await;
            drop((done.map_err(|error| format!("{error} {error:?}")), session.query(&sql).await));
        }
    }
}
