//! Text that must not be shown.

use std::fmt;

/// Text that holds, or may hold, a password. It has no `Display`, and its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the parser of connection strings, and for nobody who writes a log or an error.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Whether connection string `text` seems to hold a password. In doubt it does.
pub fn has_password(text: &str) -> bool {
    let in_user_part = text.split_once("://").is_some_and(|(_, rest)| {
        let host_starts = rest.find(['/', '?']).map_or(rest, |end| &rest[..end]).rfind('@');
        // A password with an unescaped slash or question mark is a mistake, but it is still a password.
        let user_ends = host_starts.or_else(|| rest.rfind('@'));
        user_ends.is_some_and(|end| rest[..end].contains(':'))
    });
    let lower = text.to_ascii_lowercase();
    let as_keyword = lower.match_indices("password").any(|(at, word)| {
        let value = lower[at + word.len()..].trim_start().strip_prefix('=');
        value.is_some_and(|value| !value.trim_start().is_empty())
    });
    in_user_part || as_keyword
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("postgres://u:hunter2@h")), "Secret(…)");
    }

    #[test]
    fn passwords_are_seen() {
        let check = |text: &str, expected: bool| assert_eq!(has_password(text), expected, "{text:?}");
        check("postgres://u:pw@h/db", true);
        check("postgresql://u:p/w@h/db", true);
        check("postgres://h/db?user=u&password=pw", true);
        check("host=h password=pw", true);
        check("host=h PASSWORD = 'p w'", true);
        check("host=h sslpassword=pw", true);
        check("postgres://u@h:5432/db", false);
        check("postgres://h:5432/db?sslmode=require", false);
        check("postgres://h1:5432,h2:5433/db", false);
        check("host=h user=u passfile=/home/u/.pgpass", false);
        check("host=h password=", false);
        check("service=prod", false);
        check("", false);
    }
}
