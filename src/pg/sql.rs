//! SQL text, built from static pieces, quoted names and quoted literals only.

use std::fmt;

use super::{QualifiedName, SourceLsn};

/// A statement's text. Whatever is not known when Walferry is compiled goes in quoted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Sql(String);

impl Sql {
    /// Starts from static text.
    pub fn new(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// Takes a script that `pg_dump` or `pg_restore` wrote, which is the one text that comes ready-made.
    pub fn from_dump(script: String) -> Self {
        Self(script)
    }

    /// Appends an expression, a type or a collation as a server's catalog spells it: `pg_get_expr`, `format_type`.
    #[must_use]
    pub fn catalog(mut self, text: &str) -> Self {
        self.0.push_str(text);
        self
    }

    /// Appends static text.
    #[must_use]
    pub fn text(mut self, text: &'static str) -> Self {
        self.0.push_str(text);
        self
    }

    /// Appends a quoted identifier.
    #[must_use]
    pub fn ident(mut self, name: &str) -> Self {
        self.push_quoted(name, '"');
        self
    }

    /// Appends `"schema"."name"`.
    #[must_use]
    pub fn name(self, name: &QualifiedName) -> Self {
        self.ident(&name.schema).text(".").ident(&name.name)
    }

    /// Appends a quoted literal that means the same whatever `standard_conforming_strings` is.
    #[must_use]
    pub fn literal(mut self, value: &str) -> Self {
        if value.contains('\\') {
            self.0.push_str(" E");
            let doubled = value.replace('\\', "\\\\");
            self.push_quoted(&doubled, '\'');
        } else {
            self.push_quoted(value, '\'');
        }
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn number(mut self, value: impl Into<i64>) -> Self {
        self.0.push_str(&value.into().to_string());
        self
    }

    /// Appends the parameter `$n`; the first is 1.
    #[must_use]
    pub fn param(mut self, n: usize) -> Self {
        self.0.push('$');
        self.0.push_str(&n.to_string());
        self
    }

    /// Appends an operator's name, which cannot be quoted: characters that no operator may have are left out.
    #[must_use]
    pub fn operator(mut self, name: &str) -> Self {
        self.0.extend(name.chars().filter(|c| "+-*/<>=~!@#%^&|`?".contains(*c)));
        self
    }

    /// Appends a page's number.
    #[must_use]
    pub fn page(mut self, page: u64) -> Self {
        self.0.push_str(&page.to_string());
        self
    }

    /// Appends a position without quotes, as replication commands have it.
    #[must_use]
    pub fn position(mut self, at: SourceLsn) -> Self {
        self.0.push_str(&at.to_string());
        self
    }

    /// Appends a literal for a replication command, whose grammar knows doubled quotes and no backslash escapes.
    #[must_use]
    pub fn replication_literal(mut self, value: &str) -> Self {
        self.push_quoted(value, '\'');
        self
    }

    /// Appends another statement's text.
    #[must_use]
    pub fn sql(mut self, other: &Self) -> Self {
        self.0.push_str(&other.0);
        self
    }

    /// Appends `each` of the items, with `separator` between two.
    #[must_use]
    pub fn list<T>(
        mut self,
        items: impl IntoIterator<Item = T>,
        separator: &'static str,
        mut each: impl FnMut(Self, T) -> Self,
    ) -> Self {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.0.push_str(separator);
            }
            self = each(self, item);
        }
        self
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn push_quoted(&mut self, text: &str, quote: char) {
        self.0.push(quote);
        for c in text.chars() {
            if c == quote {
                self.0.push(quote);
            }
            self.0.push(c);
        }
        self.0.push(quote);
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_static_is_quoted() {
        let name = QualifiedName::new("My \"odd\" schema", "select");
        let sql = Sql::new("SELECT ").literal("it's").text(", ").literal("a\\b").text(" FROM ").name(&name);
        assert_eq!(sql.as_str(), r#"SELECT 'it''s',  E'a\\b' FROM "My ""odd"" schema"."select""#);
    }

    #[test]
    fn lists() {
        let sql = Sql::new("(").list(["a", "B"], ", ", Sql::ident).text(")");
        assert_eq!(sql.as_str(), r#"("a", "B")"#);
    }
}
