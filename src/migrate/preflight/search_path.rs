//! Functions that find what they name by the `search_path` of whoever calls them.
//!
//! Indexes are built, rows are written and columns are added under an empty one, as `pg_restore` does it: there such a
//! function fails, however well it works for the application. Each expression is tried, since only the server knows what its
//! functions will name; but not where that would run code of others as us.

use std::collections::BTreeMap;

use super::report::{counted, listed};
use super::{Finding, Sides};
use crate::catalog::{self, Error};
use crate::pg::Sql;

pub(super) async fn functions(sides: &Sides<'_>) -> Result<Option<Finding>, Error> {
    let mut commands: BTreeMap<String, String> = BTreeMap::new();
    let (mut found, mut untried) = (Vec::new(), Vec::new());
    for expression in catalog::expressions(sides.source).await? {
        let Some(said) = catalog::not_found(sides.source, &expression, &[]).await? else {
            if !expression.is_tried() {
                untried.push(expression.of);
            }
            continue;
        };
        let mut path = expression.schemas.clone();
        path.push("public".to_owned());
        path.sort();
        path.dedup();
        let mends = catalog::not_found(sides.source, &expression, &path).await?.is_none();
        for function in &expression.functions {
            let alter = Sql::new("ALTER FUNCTION ").catalog(function).text(" SET search_path = ");
            let alter = match mends {
                true => super::hints::command(alter.list(&path, ", ", |sql, schema| sql.ident(schema))),
                false => format!("{}…; -- the schemas of all that it names", alter.as_str()),
            };
            commands.insert(function.clone(), alter);
        }
        found.push(format!("{} ({said})", expression.of));
    }
    let not_tried = format!(
        "not tried, since code of others would run as the source's user, or a default would write; `migrate` stops where it \
         names things without their schemas: {}",
        listed(&untried)
    );
    if found.is_empty() {
        let subject = counted(untried.len(), "expression");
        let info = || Finding::info("source-search-path-untried", subject, not_tried);
        return Ok((!untried.is_empty()).then(info));
    }
    let subject = counted(commands.len(), "function");
    let cause = format!(
        "names what is found by the application's search_path alone; so the target cannot make, or not fill: {}",
        listed(&found)
    );
    let cause = if untried.is_empty() { cause } else { format!("{cause}; {not_tried}") };
    let commands: Vec<String> = commands.into_values().collect();
    let hint =
        format!("on the source now, or on the target when `migrate` stops there:\n{}", commands.join("\n"));
    Ok(Some(Finding::warning("source-search-path", subject, cause).hint(hint)))
}
