//! Which tables are meant: patterns `[database.]schema.table`.
//!
//! `*` stands for any characters, `?` for one. What stands in double quotes stands for itself, dots and stars too. Case
//! counts, with quotes and without: a pattern is what a catalog shows, not SQL.

use std::fmt;

use crate::pg::QualifiedName;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    text: String,
    database: Option<Part>,
    schema: Part,
    table: Part,
}

/// The tables that are moved: all, or those with a match, less those that are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableFilter {
    with: Vec<TablePattern>,
    skip: Vec<TablePattern>,
}

/// One name of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Part(Vec<Piece>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// This character.
    Char(char),
    /// `?`
    One,
    /// `*`
    Any,
}

impl TablePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = vec![Part::default()];
        let mut chars = text.chars().peekable();
        let mut quoted = false;
        while let Some(c) = chars.next() {
            let piece = match c {
                '"' if quoted && chars.next_if_eq(&'"').is_some() => Piece::Char('"'),
                '"' => {
                    quoted = !quoted;
                    continue;
                }
                '.' if !quoted => {
                    parts.push(Part::default());
                    continue;
                }
                '*' if !quoted => Piece::Any,
                '?' if !quoted => Piece::One,
                c => Piece::Char(c),
            };
            parts.last_mut().expect("there is one from the start").0.push(piece);
        }
        if quoted {
            return Err(format!("a quote is not closed in {text:?}"));
        }
        if parts.iter().any(|part| part.0.is_empty()) {
            return Err(format!("{text:?} has an empty name"));
        }
        let text = text.to_owned();
        match <[Part; 3]>::try_from(parts) {
            Ok([database, schema, table]) => Ok(Self { text, database: Some(database), schema, table }),
            Err(parts) => match <[Part; 2]>::try_from(parts) {
                Ok([schema, table]) => Ok(Self { text, database: None, schema, table }),
                Err(_) => Err(format!("{text:?} is neither schema.table nor database.schema.table")),
            },
        }
    }

    /// Whether it may mean tables of that database.
    pub fn concerns(&self, database: &str) -> bool {
        self.database.as_ref().is_none_or(|part| part.matches(database))
    }

    /// Whether it means that table of that database.
    pub fn matches(&self, database: &str, table: &QualifiedName) -> bool {
        self.concerns(database) && self.schema.matches(&table.schema) && self.table.matches(&table.name)
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TableFilter {
    /// Of the patterns of `--with-table` and of `--skip-table`.
    ///
    /// # Errors
    /// Why one of them is no pattern.
    pub fn new(with: &[String], skip: &[String]) -> Result<Self, String> {
        let parse = |list: &[String]| -> Result<Vec<_>, String> {
            list.iter().map(|text| TablePattern::parse(text)).collect()
        };
        Ok(Self { with: parse(with)?, skip: parse(skip)? })
    }

    /// Whether it takes every table of every database.
    pub fn takes_all(&self) -> bool {
        self.with.is_empty() && self.skip.is_empty()
    }

    /// Whether databases without a match are left out.
    pub fn has_with(&self) -> bool {
        !self.with.is_empty()
    }

    /// Whether one of the patterns of `--with-table` means that table.
    pub fn means(&self, database: &str, table: &QualifiedName) -> bool {
        self.with.iter().any(|pattern| pattern.matches(database, table))
    }

    /// Whether it takes a table that goes by these names: its own, and that of the table that it is a partition of.
    pub fn takes<'a>(
        &self,
        database: &str,
        names: impl IntoIterator<Item = &'a QualifiedName> + Clone,
    ) -> bool {
        let any = |patterns: &[TablePattern]| {
            let mut names = names.clone().into_iter();
            names.any(|name| patterns.iter().any(|pattern| pattern.matches(database, name)))
        };
        (self.with.is_empty() || any(&self.with)) && !any(&self.skip)
    }

    /// Each pattern with its option.
    pub fn patterns(&self) -> impl Iterator<Item = (&'static str, &TablePattern)> {
        let with = self.with.iter().map(|pattern| ("--with-table", pattern));
        with.chain(self.skip.iter().map(|pattern| ("--skip-table", pattern)))
    }
}

impl Part {
    /// Greedy, and back to the last star where that fails: at most the product of both lengths.
    fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut in_name) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match self.0.get(at) {
                Some(Piece::Any) => {
                    star = Some((at, in_name));
                    at += 1;
                }
                Some(Piece::One) => (at, in_name) = (at + 1, in_name + 1),
                Some(Piece::Char(c)) if *c == name[in_name] => (at, in_name) = (at + 1, in_name + 1),
                Some(Piece::Char(_)) | None => match &mut star {
                    Some((after, taken)) => {
                        *taken += 1;
                        (at, in_name) = (*after + 1, *taken);
                    }
                    None => return false,
                },
            }
        }
        self.0[at..].iter().all(|piece| *piece == Piece::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern: &str, database: &str, schema: &str, table: &str, expected: bool| {
            let parsed = TablePattern::parse(pattern).expect(pattern);
            let name = QualifiedName::new(schema, table);
            assert_eq!(parsed.matches(database, &name), expected, "{pattern} {database} {name}");
        };
        check("public.orders", "any", "public", "orders", true);
        check("public.orders", "any", "public", "Orders", false);
        check("public.Orders", "any", "public", "Orders", true);
        check("public.orders", "any", "public", "orders2", false);
        check("shop.public.orders", "shop", "public", "orders", true);
        check("shop.public.orders", "shop2", "public", "orders", false);
        check("*.public.orders", "shop2", "public", "orders", true);
        check("public.*", "any", "public", "a.b", true);
        check("public.log_*_old", "any", "public", "log_a_old_b_old", true);
        check("public.log_*_old", "any", "public", "log_old", false);
        check("public.m?", "any", "public", "m1", true);
        check("public.m?", "any", "public", "m", false);
        check("public.m?*", "any", "public", "mé12", true);
        check(r#""My-App".public."a.b*""#, "My-App", "public", "a.b*", true);
        check(r#""My-App".public."a.b*""#, "My-App", "public", "a.bc", false);
        check(r#"public."say ""hi""""#, "any", "public", r#"say "hi""#, true);
        check(r#"public."a?"*"#, "any", "public", "a?b", true);
        check("*.*", "any", "s", "t", true);
    }

    #[test]
    fn mistakes() {
        let check = |pattern: &str, part: &str| {
            let error = TablePattern::parse(pattern).expect_err(pattern);
            assert!(error.contains(part), "{pattern}: {error}");
        };
        check("orders", "neither schema.table nor");
        check("a.b.c.d", "neither schema.table nor");
        check("public.", "empty name");
        check("", "empty name");
        check(r#"public."a"#, "not closed");
    }

    #[test]
    fn filters() {
        let check = |with: &[&str], skip: &[&str], database: &str, names: &[&str], expected: bool| {
            let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            let filter = TableFilter::new(&own(with), &own(skip)).expect("patterns");
            let names: Vec<_> = names.iter().map(|name| QualifiedName::new("public", *name)).collect();
            assert_eq!(filter.takes(database, &names), expected, "{with:?} {skip:?} {names:?}");
        };
        check(&[], &[], "d", &["a"], true);
        check(&["public.a"], &[], "d", &["a"], true);
        check(&["public.a"], &[], "d", &["b"], false);
        check(&["e.public.a"], &[], "d", &["a"], false);
        check(&[], &["public.a"], "d", &["a"], false);
        check(&["public.*"], &["public.a"], "d", &["a"], false);
        // A partition goes by its root's name, too.
        check(&["public.root"], &[], "d", &["leaf", "root"], true);
        check(&["public.root"], &["public.leaf"], "d", &["leaf", "root"], false);
    }
}
