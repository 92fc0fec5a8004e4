//! `ALTER … SET`, as a catalog's `name=value` says it.
//!
//! A value may be somebody's secret (`app.key`), so no log has it.

use super::statements::{Refused, Within, execute};
use crate::catalog::{Setting, TargetClient};
use crate::error::Result;
use crate::pg::Sql;

/// Parameters whose value is a list of quoted names: taken as one literal, it would become a list of one. Extensions
/// cannot have such.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Sets each of `settings` by the ALTER that comes with it; returns those that the target refuses.
pub(super) async fn set_all(
    target: &TargetClient,
    settings: &[(Sql, &Setting)],
    within: Within,
) -> Result<Vec<Refused>> {
    let statements: Vec<Sql> =
        settings.iter().map(|(alter, setting)| set_to(alter.clone(), setting)).collect();
    let mut refused = execute(target, &statements, within).await?;
    for refused in &mut refused {
        let of = statements.iter().zip(settings).find(|(statement, _)| **statement == refused.statement);
        if let Some((_, (alter, setting))) = of {
            refused.statement = shown(alter, setting);
        }
    }
    Ok(refused)
}

/// The statement, fit for a log.
pub(super) fn shown(alter: &Sql, setting: &Setting) -> Sql {
    alter.clone().text(" SET ").ident(&setting.name).text(" TO …")
}

/// Appends ` SET "name" TO value`.
fn set_to(alter: Sql, setting: &Setting) -> Sql {
    let sql = alter.text(" SET ").ident(&setting.name).text(" TO ");
    if LISTS.contains(&setting.name.to_ascii_lowercase().as_str()) {
        let elements = elements(&setting.value);
        return match &elements[..] {
            [] => sql.literal(""),
            elements => sql.list(elements, ", ", |sql, element| sql.literal(element)),
        };
    }
    sql.literal(&setting.value)
}

/// The names of a list: separated by commas, in double quotes where they are not plain.
fn elements(list: &str) -> Vec<String> {
    let mut elements = Vec::new();
    let mut rest = list.trim_start();
    while !rest.is_empty() {
        let (element, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim_end().to_owned(), &rest[end..])
            }
        };
        elements.push(element);
        let after = after.trim_start();
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
    }
    elements
}

/// What stands before the closing quote, and what after it.
fn unquoted(text: &str) -> (String, &str) {
    let mut element = String::new();
    let mut rest = text;
    while let Some(end) = rest.find('"') {
        element.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                element.push('"');
                rest = after;
            }
            None => return (element, rest),
        }
    }
    element.push_str(rest);
    (element, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements() {
        let check = |name: &str, value: &str, expected: &str| {
            let setting = Setting { role: None, name: name.to_owned(), value: value.to_owned() };
            assert_eq!(set_to(Sql::new("ALTER ROLE a"), &setting).as_str(), expected);
        };
        check("work_mem", "64MB", r#"ALTER ROLE a SET "work_mem" TO '64MB'"#);
        check("my.own", "it's a, \"b\"", r#"ALTER ROLE a SET "my.own" TO 'it''s a, "b"'"#);
        check("search_path", r#""$user", public"#, r#"ALTER ROLE a SET "search_path" TO '$user', 'public'"#);
        check(
            "search_path",
            r#""My ""odd"", one",b ,c"#,
            r#"ALTER ROLE a SET "search_path" TO 'My "odd", one', 'b', 'c'"#,
        );
        check("search_path", r#""""#, r#"ALTER ROLE a SET "search_path" TO ''"#);
        check("search_path", "", r#"ALTER ROLE a SET "search_path" TO ''"#);
        check("search_path", r#""unclosed"#, r#"ALTER ROLE a SET "search_path" TO 'unclosed'"#);
    }
}
