//! From fields to bytes, for what the encoders share.
//!
//! What is written is ours, so a value that the format cannot hold is a bug and panics.

use byteorder::{BigEndian, ByteOrder as _};
use bytes::{BufMut, BytesMut};

/// Appends an Int16.
pub(super) fn put_i16(out: &mut BytesMut, value: i16) {
    let mut bytes = [0; 2];
    BigEndian::write_i16(&mut bytes, value);
    out.put_slice(&bytes);
}

/// Appends an Int32.
pub(super) fn put_i32(out: &mut BytesMut, value: i32) {
    let mut bytes = [0; 4];
    BigEndian::write_i32(&mut bytes, value);
    out.put_slice(&bytes);
}

/// Appends an Int32 that the server holds unsigned.
pub(super) fn put_u32(out: &mut BytesMut, value: u32) {
    let mut bytes = [0; 4];
    BigEndian::write_u32(&mut bytes, value);
    out.put_slice(&bytes);
}

/// Appends an Int64.
pub(super) fn put_i64(out: &mut BytesMut, value: i64) {
    let mut bytes = [0; 8];
    BigEndian::write_i64(&mut bytes, value);
    out.put_slice(&bytes);
}

/// Appends an Int64 that the server holds unsigned.
pub(super) fn put_u64(out: &mut BytesMut, value: u64) {
    let mut bytes = [0; 8];
    BigEndian::write_u64(&mut bytes, value);
    out.put_slice(&bytes);
}

/// Appends text and the zero byte that ends it.
///
/// # Panics
/// If `text` holds a zero byte.
pub(super) fn put_c_string(out: &mut BytesMut, text: &str) {
    assert!(!text.as_bytes().contains(&0), "a C string holds no zero byte");
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

/// Appends an Int16 count.
///
/// # Panics
/// If `count` is above `i16::MAX`.
pub(super) fn put_count_i16(out: &mut BytesMut, count: usize) {
    put_i16(out, i16::try_from(count).expect("an Int16 holds the count"));
}

/// Appends an Int32 count.
///
/// # Panics
/// If `count` is above `i32::MAX`.
pub(super) fn put_count_i32(out: &mut BytesMut, count: usize) {
    put_i32(out, i32::try_from(count).expect("an Int32 holds the count"));
}

/// Appends an Int32 length and the bytes.
///
/// # Panics
/// If `bytes` is longer than `i32::MAX`.
pub(super) fn put_counted(out: &mut BytesMut, bytes: &[u8]) {
    put_count_i32(out, bytes.len());
    out.put_slice(bytes);
}
