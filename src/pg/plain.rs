//! Text of others as a person may read it: names, errors and notices of a server can hold what moves a terminal's cursor,
//! writes to its clipboard, begins a line that looks like one of ours, or turns the order of what follows around.
//!
//! Whatever is written for people goes through here; so does JSON, which has escapes of its own for the same characters.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// `text` in one line, with escapes for what would not be seen, or do something: `\n`, `\u{1b}`, `\u{202e}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, acts, |out, c| write!(out, "{}", c.escape_default()))
}

/// The same of a text that has lines of its own.
pub fn plain_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && acts(c), |out, c| write!(out, "{}", c.escape_default()))
}

/// The same of a text that stands among lines of ours: all lines but the first are set in by `indent`, so that none of them
/// can look like one of these.
pub fn plain_under(text: &str, indent: &str) -> String {
    plain_lines(text).lines().collect::<Vec<_>>().join(&format!("\n{indent}"))
}

/// JSON text that means the same, without such characters: JSON itself escapes the first 32 alone.
pub fn plain_json(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| c != '\n' && acts(c),
        |out, c| c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
    )
}

/// Writes what it is given as [`plain`].
pub struct Plain<'a, W>(pub &'a mut W);

impl<W: Write> Write for Plain<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&plain(text))
    }
}

fn escaped(
    text: &str,
    is_escaped: impl Fn(char) -> bool,
    escape: impl Fn(&mut String, char) -> fmt::Result,
) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            // Writing to a String cannot fail.
            let _ = escape(&mut out, c);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal does something at this character, or shows nothing for it. Unicode: categories Cc, Zl, Zp; the
/// controls of the bidirectional algorithm; tags, and the byte order mark.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_shown() {
        let check = |text: &str, one: &str, lines: &str| {
            assert_eq!(plain(text), one);
            assert_eq!(plain_lines(text), lines);
        };
        check("a table", "a table", "a table");
        check("ü \"ж\" 表 \\ 👩\u{200d}🚀", "ü \"ж\" 表 \\ 👩\u{200d}🚀", "ü \"ж\" 表 \\ 👩\u{200d}🚀");
        check("\x1b]52;c;eA==\x07", r"\u{1b}]52;c;eA==\u{7}", r"\u{1b}]52;c;eA==\u{7}");
        check("a\nb\r\tc\x7f", r"a\nb\r\tc\u{7f}", "a\nb\\r\\tc\\u{7f}");
        check(
            "\u{9b}31m\u{202e}x\u{2066}y\u{2028}",
            r"\u{9b}31m\u{202e}x\u{2066}y\u{2028}",
            r"\u{9b}31m\u{202e}x\u{2066}y\u{2028}",
        );
        check(
            "\u{feff}\u{e0041}\u{61c}\u{200f}",
            r"\u{feff}\u{e0041}\u{61c}\u{200f}",
            r"\u{feff}\u{e0041}\u{61c}\u{200f}",
        );
        assert_eq!(plain_under("a\n\nhint: b\x1b", "    "), "a\n    \n    hint: b\\u{1b}");
        let mut out = String::new();
        write!(Plain(&mut out), "{}\n2", 1).expect("memory");
        assert_eq!(out, "1\\n2");
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({"a\u{9b}": "\x1b\u{202e}\u{e0041}\u{7f}é\n", "b": 1});
        for text in [value.to_string(), format!("{value:#}")] {
            let plain = plain_json(&text);
            assert!(!plain.chars().any(|c| c != '\n' && acts(c)), "{plain}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).expect("JSON"), value);
        }
    }
}
