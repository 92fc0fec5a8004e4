use std::fs::{self, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const TOP: Xid = Xid::new(700);

fn directory(bytes_max: u64) -> (tempfile::TempDir, SpillDir) {
    let parent = tempfile::tempdir().expect("a directory");
    let spill = SpillDir::create(parent.path(), "pipeline", bytes_max).expect("a spill directory");
    (parent, spill)
}

/// Messages of all sizes, the smallest and one above the buffer's included.
fn messages() -> Vec<(Xid, Vec<u8>)> {
    let sizes = [0, 1, 7, 300, 70_000, 600_000, 12];
    let message = |(n, size): (u8, usize)| (Xid::new(700 + u32::from(n)), vec![n; size]);
    (0..).zip(sizes.into_iter().cycle().take(40)).map(message).collect()
}

fn written(spill: &SpillDir) -> Spool {
    let mut spool = spill.spool(TOP).expect("a spool");
    for (n, (xid, message)) in messages().iter().enumerate() {
        spool.append(*xid, message).expect("room");
        if n % 11 == 0 {
            spool.end_block().expect("room");
        }
    }
    spool.end_block().expect("room");
    spool
}

fn read(spool: Spool) -> Result<Vec<(Xid, Vec<u8>)>, SpillError> {
    let mut reader = spool.into_reader(TOP)?;
    let mut read = Vec::new();
    while let Some((xid, message)) = reader.read()? {
        read.push((xid, message.to_vec()));
    }
    Ok(read)
}

#[test]
fn what_is_written_is_read() {
    let (_parent, spill) = directory(u64::MAX);
    let spool = written(&spill);
    assert_eq!(spill.used(), fs::metadata(spool.path()).expect("a file").len());
    assert_eq!(read(spool).expect("undamaged"), messages());
    assert_eq!(spill.used(), 0);
    assert_eq!(fs::read_dir(&spill.0.path).expect("a directory").count(), 0);
}

#[test]
fn nobody_else_may_read() {
    let (_parent, spill) = directory(u64::MAX);
    let spool = written(&spill);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&spill.0.path), mode(spool.path())), (0o700, 0o600));
}

#[test]
fn what_a_dead_run_left_is_removed() {
    let (parent, spill) = directory(u64::MAX);
    std::mem::forget((written(&spill), spill));
    let spill = SpillDir::create(parent.path(), "pipeline", 1).expect("a spill directory");
    assert_eq!(fs::read_dir(&spill.0.path).expect("a directory").count(), 0);
    assert_eq!(spill.used(), 0);
}

#[test]
fn the_bound_holds_and_is_given_back() {
    let (_parent, spill) = directory(1 << 20);
    let mut one = spill.spool(TOP).expect("a spool");
    one.append(TOP, &[1; 700_000]).expect("room");
    let mut other = spill.spool(Xid::new(701)).expect("a spool");
    let error = other.append(TOP, &[1; 700_000]).expect_err("no room");
    assert!(matches!(error, SpillError::Full { max: 1_048_576, .. }), "{error}");
    drop(one);
    other.append(TOP, &[2; 1]).expect("room");
    other.end_block().expect("room");
    assert!(spill.used() > 700_000 && spill.used() <= 1 << 20);
}

/// Any byte that is another, any end that is missing, and anything that is too much is noticed.
#[test]
fn damage_is_noticed() {
    let (_parent, spill) = directory(u64::MAX);
    let small = || {
        let mut spool = spill.spool(TOP).expect("a spool");
        for n in 0..5 {
            spool.append(Xid::new(701), &[n; 9]).expect("room");
        }
        spool.end_block().expect("room");
        spool
    };
    let length = fs::metadata(small().path()).expect("a file").len();
    for at in 0..length {
        for bit in [0x01, 0x80] {
            let spool = small();
            let mut bytes = fs::read(spool.path()).expect("a file");
            bytes[usize::try_from(at).expect("small")] ^= bit;
            fs::write(spool.path(), bytes).expect("room");
            let error = read(spool).expect_err("damaged");
            assert!(matches!(error, SpillError::Damaged { .. }), "byte {at}: {error}");
        }
        let spool = small();
        OpenOptions::new().write(true).open(spool.path()).and_then(|f| f.set_len(at)).expect("shorter");
        assert!(matches!(read(spool), Err(SpillError::Damaged { .. })), "cut to {at}");
    }
    let spool = small();
    let mut file = OpenOptions::new().write(true).open(spool.path()).expect("a file");
    file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&[0])).expect("room");
    assert!(matches!(read(spool), Err(SpillError::Damaged { .. })));
    let gone = small();
    fs::remove_file(gone.path()).expect("it was there");
    assert!(matches!(read(gone), Err(SpillError::Io { .. })));
}
