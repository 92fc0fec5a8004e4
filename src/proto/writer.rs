//! From fields to bytes, for what the encoders share.
//!
//! What is written is ours, so a value that the format cannot hold is a bug and panics.

use bytes::{BufMut, BytesMut};

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
    out.put_i16(i16::try_from(count).expect("an Int16 holds the count"));
}

/// Appends an Int32 count.
///
/// # Panics
/// If `count` is above `i32::MAX`.
pub(super) fn put_count_i32(out: &mut BytesMut, count: usize) {
    out.put_i32(i32::try_from(count).expect("an Int32 holds the count"));
}

/// Appends an Int32 length and the bytes.
///
/// # Panics
/// If `bytes` is longer than `i32::MAX`.
pub(super) fn put_counted(out: &mut BytesMut, bytes: &[u8]) {
    put_count_i32(out, bytes.len());
    out.put_slice(bytes);
}
