//! Values as COPY's text format and as array literals have them. Manual: "COPY", "File Formats"; "Arrays", "Array Input
//! and Output Syntax".
//!
//! The bytes of a value stay what the source sent; only what would mean something else is escaped.

use bytes::{BufMut, Bytes, BytesMut};

/// Rows in COPY's text format.
#[derive(Default)]
pub(super) struct CopyText {
    out: BytesMut,
    columns: usize,
}

/// Array literals, filled side by side.
pub(super) struct Arrays {
    arrays: Vec<BytesMut>,
}

impl CopyText {
    pub(super) fn push(&mut self, value: Option<&[u8]>) {
        if self.columns > 0 {
            self.out.put_u8(b'\t');
        }
        self.columns += 1;
        match value {
            None => self.out.put_slice(b"\\N"),
            Some(value) => self.escaped(value),
        }
    }

    pub(super) fn end_row(&mut self) {
        self.out.put_u8(b'\n');
        self.columns = 0;
    }

    pub(super) fn finish(self) -> Bytes {
        self.out.freeze()
    }

    fn escaped(&mut self, mut rest: &[u8]) {
        let special = |byte: &u8| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r');
        while let Some(at) = rest.iter().position(special) {
            self.out.put_slice(&rest[..at]);
            self.out.put_slice(match rest[at] {
                b'\t' => b"\\t",
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                _ => b"\\\\",
            });
            rest = &rest[at + 1..];
        }
        self.out.put_slice(rest);
    }
}

impl Arrays {
    pub(super) fn new(count: usize) -> Self {
        Self { arrays: vec![BytesMut::from(&b"{"[..]); count] }
    }

    /// Appends an element to one of the arrays.
    pub(super) fn push(&mut self, array: usize, value: Option<&[u8]>) {
        let out = &mut self.arrays[array];
        if out.len() > 1 {
            out.put_u8(b',');
        }
        match value {
            None => out.put_slice(b"NULL"),
            Some(value) if is_plain(value) => out.put_slice(value),
            Some(value) => quoted(out, value),
        }
    }

    pub(super) fn finish(self) -> Vec<Option<Bytes>> {
        let end = |mut array: BytesMut| {
            array.put_u8(b'}');
            Some(array.freeze())
        };
        self.arrays.into_iter().map(end).collect()
    }
}

/// Whether an element means itself without quotes. One that begins as a number does is not NULL.
fn is_plain(value: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'+');
    value.first().is_some_and(|first| first.is_ascii_digit() || *first == b'-') && value.iter().all(plain)
}

fn quoted(out: &mut BytesMut, mut rest: &[u8]) {
    out.put_u8(b'"');
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        out.put_slice(&rest[..at]);
        out.put_slice(&[b'\\', rest[at]]);
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_text() {
        #[track_caller]
        fn check(rows: &[&[Option<&str>]], expected: &str) {
            let mut text = CopyText::default();
            for row in rows {
                row.iter().for_each(|value| text.push(value.map(str::as_bytes)));
                text.end_row();
            }
            assert_eq!(text.finish(), expected.as_bytes());
        }
        check(&[&[Some("1"), None, Some("")], &[Some("2"), Some("x"), Some(" y ")]], "1\t\\N\t\n2\tx\t y \n");
        check(&[&[Some("a\tb\nc\rd\\e")]], "a\\tb\\nc\\rd\\\\e\n");
        check(&[&[Some("\\N")], &[Some("\\.")], &[None]], "\\\\N\n\\\\.\n\\N\n");
        check(&[&[Some("\\\\")]], "\\\\\\\\\n");
    }

    #[test]
    fn array_literals() {
        #[track_caller]
        fn check(values: &[Option<&str>], expected: &str) {
            let mut arrays = Arrays::new(1);
            values.iter().for_each(|value| arrays.push(0, value.map(str::as_bytes)));
            assert_eq!(arrays.finish(), [Some(Bytes::copy_from_slice(expected.as_bytes()))]);
        }
        check(&[], "{}");
        check(
            &[Some("1"), Some("-2.5"), None, Some("2026-01-02T03:04:05")],
            "{1,-2.5,NULL,2026-01-02T03:04:05}",
        );
        check(&[Some("NULL"), Some("null"), Some("")], r#"{"NULL","null",""}"#);
        check(
            &[Some("2026-01-02 03:04:05+00"), Some("1,2"), Some("{}")],
            r#"{"2026-01-02 03:04:05+00","1,2","{}"}"#,
        );
        check(&[Some(r#"a"b\c"#), Some("\\"), Some(" x ")], r#"{"a\"b\\c","\\"," x "}"#);
        check(&[Some("1 "), Some("1\n"), Some("1;"), Some("1é")], "{\"1 \",\"1\n\",\"1;\",\"1é\"}");
    }
}
