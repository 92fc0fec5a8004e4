//! The password file: `host:port:database:user:password`, one entry a line. Manual: "The Password File".
//!
//! A field is literal or `*`; a backslash takes the next character as it is; the first line that matches wins. A file that
//! others may read is ignored with a warning, as libpq does, and so is one that is no plain file.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The password that the file at `path` has for this connection.
pub(super) fn look_up(path: &Path, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let shown = path.display();
    if !metadata.is_file() {
        tracing::warn!(file = %shown, "password file is ignored: it is not a plain file");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %shown, "password file is ignored: group or others have access; run chmod 0600 on it");
        return None;
    }
    let text = std::fs::read(path).ok()?;
    find(&String::from_utf8_lossy(&text), [host, &port.to_string(), dbname, user])
}

fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| password(line, wanted))
}

/// The line's password, if its first four fields match.
fn password(line: &str, wanted: [&str; 4]) -> Option<String> {
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = split_field(rest)?;
        if field != "*" && unescape(field) != wanted {
            return None;
        }
        rest = after;
    }
    let password = split_field(rest).map_or(rest, |(password, _)| password);
    let password = unescape(password.trim_end_matches('\r'));
    (!password.is_empty()).then_some(password)
}

/// Splits at the first colon that no backslash precedes.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    let colon = text.char_indices().find(|&(_, c)| {
        let found = c == ':' && !escaped;
        escaped = c == '\\' && !escaped;
        found
    });
    colon.map(|(at, _)| (&text[..at], &text[at + 1..]))
}

fn unescape(field: &str) -> String {
    let mut chars = field.chars();
    let mut out = String::with_capacity(field.len());
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_matches_wins() {
        #[track_caller]
        fn check(file: &str, expected: Option<&str>) {
            assert_eq!(find(file, ["db.example", "5432", "shop", "ann"]).as_deref(), expected, "{file}");
        }
        check("db.example:5432:shop:ann:pw", Some("pw"));
        check("*:*:*:*:pw", Some("pw"));
        check("# *:*:*:*:no\nother:5432:shop:ann:no\ndb.example:*:shop:ann:yes\n*:*:*:*:late", Some("yes"));
        check("db.example:5433:shop:ann:pw", None);
        check("db.example:5432:shop:bob:pw", None);
        check("db.example:5432:replication:ann:pw", None);
        check(r"*:*:*:*:a\:b\\c", Some(r"a:b\c"));
        check(r"db\.example:*:sho\p:ann:pw", Some("pw"));
        check("*:*:*:*:with space ", Some("with space "));
        check("*:*:*:*:crlf\r\n", Some("crlf"));
        check("*:*:*:*:", None);
        check("*:*:*:pw", None);
        check("", None);
        check(":::::", None);
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:pw\n")?;
        for (mode, expected) in [(0o600, Some("pw")), (0o400, Some("pw")), (0o640, None), (0o604, None)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            assert_eq!(look_up(&path, "h", 1, "d", "u").as_deref(), expected, "{mode:o}");
        }
        assert_eq!(look_up(directory.path(), "h", 1, "d", "u"), None);
        assert_eq!(look_up(&directory.path().join("none"), "h", 1, "d", "u"), None);
        Ok(())
    }
}
