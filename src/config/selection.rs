//! Which databases and tables are meant.

use serde::{Deserialize, Serialize};

use super::tables::TableFilter;

/// What is moved, as the user chose it. Remembered with the migration: who gives none later goes on with this one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// `--database`: these; empty: all.
    pub databases: Vec<String>,
    /// `--ignore-dbs`: but not these.
    pub ignored_databases: Vec<String>,
    /// `--dump-db`: of these, dumped once by method `pg_dump` while the others are followed.
    pub dumped_databases: Vec<String>,
    /// `--with-table`: patterns of these tables; empty: all.
    pub with_tables: Vec<String>,
    /// `--skip-table`: patterns of tables whose rows are not moved.
    pub skip_tables: Vec<String>,
}

impl Selection {
    /// Whether it says anything of databases.
    pub fn names_databases(&self) -> bool {
        !self.databases.is_empty() || !self.ignored_databases.is_empty()
    }

    /// Whether it says anything of tables.
    pub fn names_tables(&self) -> bool {
        !self.with_tables.is_empty() || !self.skip_tables.is_empty()
    }

    /// Whether it means the same tables.
    pub fn same_tables(&self, other: &Self) -> bool {
        (&self.with_tables, &self.skip_tables) == (&other.with_tables, &other.skip_tables)
    }

    /// The patterns, read.
    ///
    /// # Errors
    /// Why one is none: those that a user gave were checked.
    pub fn tables(&self) -> Result<TableFilter, String> {
        TableFilter::new(&self.with_tables, &self.skip_tables)
    }

    /// Whether it takes the database of that name.
    pub fn takes_database(&self, name: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|other| other == name);
        (self.databases.is_empty() || listed(&self.databases)) && !listed(&self.ignored_databases)
    }
}

/// The names of a list with commas. One that has a comma, a quote at its start, or a space at an end is quoted: `"a,b"`,
/// with its quotes doubled.
pub(super) fn names(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut rest = text;
    loop {
        let (name, after) =
            name(rest.trim_start()).ok_or_else(|| format!("a quote is not closed in {text:?}"))?;
        if name.is_empty() {
            return Err(format!("{text:?} has an empty name"));
        }
        if !names.contains(&name) {
            names.push(name);
        }
        match after.trim_start().strip_prefix(',') {
            Some(more) => rest = more,
            None if after.trim().is_empty() => return Ok(names),
            None => return Err(format!("a comma is missing after a quoted name in {text:?}")),
        }
    }
}

/// One name, and what comes after it.
fn name(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim_end().to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        match rest[end + 1..].strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, &rest[end + 1..])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names() {
        let check = |text: &str, expected: Result<&[&str], &str>| match (names(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
            (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
        };
        check("shop", Ok(&["shop"]));
        check("shop, My-App ,select,shop", Ok(&["shop", "My-App", "select"]));
        check("with space,100%", Ok(&["with space", "100%"]));
        check(r#""a,b","say ""hi"""," x ""#, Ok(&["a,b", r#"say "hi""#, " x "]));
        check(r#"say "hi""#, Ok(&[r#"say "hi""#]));
        check("", Err("empty name"));
        check("a,,b", Err("empty name"));
        check("a,", Err("empty name"));
        check(r#""a"#, Err("not closed"));
        check(r#""a"b"#, Err("comma is missing"));
    }

    #[test]
    fn databases_taken() {
        let check = |only: &[&str], ignored: &[&str], name: &str, expected: bool| {
            let own = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
            let (databases, ignored_databases) = (own(only), own(ignored));
            let selection = Selection { databases, ignored_databases, ..Selection::default() };
            assert_eq!(selection.takes_database(name), expected, "{selection:?} {name}");
        };
        check(&[], &[], "a", true);
        check(&["a"], &[], "a", true);
        check(&["a"], &[], "A", false);
        check(&[], &["a"], "a", false);
        check(&["a", "b"], &["a"], "b", true);
        check(&["a", "b"], &["a"], "a", false);
    }
}
