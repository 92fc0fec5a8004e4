//! The statements' text: those of ordered mode first, those of set form after them.
//!
//! Parameters carry no cast where it can be helped: the server infers each one's type from the column that it is
//! assigned to or compared with, and applies the column's own modifier on assignment. (An explicit cast to
//! `varchar(2)` would truncate without a word.) Where an operator compares values as another type than the column's,
//! both sides are cast to the column's bare type. Operators are named with their schema, so that an index of an
//! extension's type is used under the pinned `search_path`.

use crate::pg::{QualifiedName, Sql};

/// How one column of the row to change or delete is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    /// By its type's equality operator, which is named; both sides are cast where the operator is another type's.
    Equal { operator: QualifiedName, cast: Option<QualifiedName> },
    /// By its text, NULL included: for whole rows, whose types need not have an equality, or one that is too wide
    /// (1.0 = 1.00).
    SameText,
}

/// `INSERT` of a row, with values for identity columns as the source has them.
pub(super) fn insert(table: &QualifiedName, columns: &[&str]) -> Sql {
    if columns.is_empty() {
        return Sql::new("INSERT INTO ").name(table).text(" DEFAULT VALUES");
    }
    Sql::new("INSERT INTO ")
        .name(table)
        .text(" (")
        .list(columns, ", ", |sql, column| sql.ident(column))
        .text(") OVERRIDING SYSTEM VALUE VALUES (")
        .list(1..=columns.len(), ", ", param)
        .text(")")
}

/// `UPDATE` of `set` to the first parameters, of the row that the next ones identify.
pub(super) fn update(table: &QualifiedName, set: &[&str], key: &[(&str, Match)]) -> Sql {
    let sql = Sql::new("UPDATE ONLY ").name(table).text(" SET ").list(
        set.iter().zip(1..),
        ", ",
        |sql, (column, n)| param(sql.ident(column).text(" = "), n),
    );
    condition(sql, table, key, set.len() + 1)
}

/// An update of the row that exists and must not be changed: nothing to SET, and the row must still be there.
pub(super) fn touch(table: &QualifiedName, key: &[(&str, Match)]) -> Sql {
    condition(Sql::new("SELECT FROM ONLY ").name(table), table, key, 1)
}

/// The row that the parameters identify, as it is; of several, one.
pub(super) fn look_up(table: &QualifiedName, columns: &[&str], key: &[(&str, Match)]) -> Sql {
    let sql = Sql::new("SELECT ").list(columns, ", ", |sql, column| sql.ident(column));
    condition(sql.text(" FROM ONLY ").name(table), table, key, 1).text(" LIMIT 1")
}

/// `DELETE` of the row that the parameters identify.
pub(super) fn delete(table: &QualifiedName, key: &[(&str, Match)]) -> Sql {
    condition(Sql::new("DELETE FROM ONLY ").name(table), table, key, 1)
}

/// A row replaced: for columns that `UPDATE` refuses (GENERATED ALWAYS AS IDENTITY). `new` are the columns given
/// anew, `kept` those that stay as they are.
pub(super) fn replace(table: &QualifiedName, new: &[&str], kept: &[&str], key: &[(&str, Match)]) -> Sql {
    let old = condition(Sql::new("WITH old AS (DELETE FROM ONLY ").name(table), table, key, new.len() + 1);
    let columns = new.iter().chain(kept);
    let old = old.text(" RETURNING ");
    let old =
        if kept.is_empty() { old.text("1") } else { old.list(kept, ", ", |sql, column| sql.ident(column)) };
    let sql = old
        .text(") INSERT INTO ")
        .name(table)
        .text(" (")
        .list(columns, ", ", |sql, column| sql.ident(column))
        .text(") OVERRIDING SYSTEM VALUE SELECT ")
        .list(1..=new.len(), ", ", param);
    let sql = kept.iter().fold(sql, |sql, column| sql.text(", old.").ident(column));
    sql.text(" FROM old")
}

/// `TRUNCATE` of all tables at once. Never CASCADE: the source names every table that it reached.
pub(super) fn truncate(tables: &[&QualifiedName], restart_identity: bool) -> Sql {
    let sql = Sql::new("TRUNCATE ").list(tables, ", ", |sql, table| sql.text("ONLY ").name(table));
    if restart_identity { sql.text(" RESTART IDENTITY") } else { sql }
}

/// A table emptied where TRUNCATE may not: other tables refer to it.
pub(super) fn delete_all(table: &QualifiedName) -> Sql {
    Sql::new("DELETE FROM ONLY ").name(table)
}

fn condition(sql: Sql, table: &QualifiedName, key: &[(&str, Match)], first_param: usize) -> Sql {
    let whole_row = key.iter().any(|(_, by)| *by == Match::SameText);
    if !whole_row {
        return conjunction(sql.text(" WHERE "), key, first_param);
    }
    // Of several equal rows exactly one is meant, whichever.
    let inner = sql.text(" WHERE ctid = (SELECT ctid FROM ONLY ").name(table).text(" WHERE ");
    conjunction(inner, key, first_param).text(" LIMIT 1)")
}

fn conjunction(sql: Sql, key: &[(&str, Match)], first_param: usize) -> Sql {
    sql.list(key.iter().zip(first_param..), " AND ", |sql, ((column, by), n)| match by {
        Match::Equal { operator, cast } => {
            equal(sql, |sql| sql.ident(column), operator, cast.as_ref(), |sql| param(sql, n))
        }
        // `format` prints a value by its type's output function, as the source does; a cast to text would not
        // (boolean, char(n), inet). `IS NULL` holds for a row of NULLs too, which is not NULL. The parameter goes in
        // and out of the column's type as well, since versions print alike values differently (before 12, floating
        // point); it gets that type in a CASE, and is printed once, not for each row, in a SELECT of its own.
        Match::SameText => {
            let sql = sql
                .text("CASE WHEN ")
                .ident(column)
                .text(" IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', ")
                .ident(column)
                .text(") END COLLATE \"C\" IS NOT DISTINCT FROM (SELECT CASE WHEN given IS NOT DISTINCT FROM NULL THEN NULL ")
                .text("ELSE format('%s', given) END FROM (SELECT CASE WHEN false THEN ")
                .ident(column)
                .text(" ELSE ");
            param(sql, n).text(" END AS given) old)")
        }
    })
}

/// An array of values that is a parameter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Array<'a> {
    /// The column's bare type.
    pub(super) of: &'a QualifiedName,
    /// The array is one of text, and its elements are cast.
    pub(super) as_text: bool,
}

/// `COPY` of rows into the table.
pub(super) fn copy(table: &QualifiedName, columns: &[&str]) -> Sql {
    let sql = Sql::new("COPY ").name(table).text(" (");
    sql.list(columns, ", ", |sql, column| sql.ident(column)).text(") FROM STDIN")
}

/// `UPDATE` of `set` by the first arrays, of the rows that the last ones identify.
pub(super) fn update_set(
    table: &QualifiedName,
    set: &[&str],
    arrays: &[Array<'_>],
    key: &[(&str, Match)],
) -> Sql {
    let sql = Sql::new("WITH changed AS (UPDATE ONLY ").name(table).text(" t SET ");
    let sql = sql.list(set.iter().zip(1..), ", ", |sql, (column, n)| {
        let sql = element(sql.ident(column).text(" = "), n);
        cast_element(sql, arrays[n - 1])
    });
    let sql = joined(sql.text(" FROM "), arrays, key);
    counted(sql.text(" RETURNING 1) SELECT "), arrays).text(" FROM changed")
}

/// Updates with nothing to SET: the rows must be there.
pub(super) fn touch_set(table: &QualifiedName, arrays: &[Array<'_>], key: &[(&str, Match)]) -> Sql {
    let sql = counted(Sql::new("SELECT "), arrays).text(" FROM ONLY ").name(table).text(" t, ");
    joined(sql, arrays, key)
}

/// `DELETE` of the rows that the arrays identify.
pub(super) fn delete_set(table: &QualifiedName, arrays: &[Array<'_>], key: &[(&str, Match)]) -> Sql {
    let sql = Sql::new("WITH gone AS (DELETE FROM ONLY ").name(table).text(" t USING ");
    let sql = joined(sql, arrays, key);
    counted(sql.text(" RETURNING 1) SELECT "), arrays).text(" FROM gone")
}

/// `unnest(…) AS n (c1, …) WHERE t.key = n.c…`; the key is in the last arrays.
fn joined(sql: Sql, arrays: &[Array<'_>], key: &[(&str, Match)]) -> Sql {
    // Without a schema: only then does the grammar take several arrays.
    let sql = sql.text("unnest(").list(arrays.iter().zip(1..), ", ", |sql, (array, n)| {
        let sql = param(sql, n).text("::");
        if array.as_text { sql.text("text[]") } else { sql.name(array.of).text("[]") }
    });
    let sql = sql.text(") AS n (").list(1..=arrays.len(), ", ", column).text(") WHERE ");
    let first = arrays.len() - key.len() + 1;
    sql.list(key.iter().zip(first..), " AND ", |sql, ((name, by), n)| match by {
        Match::Equal { operator, cast } => equal(
            sql,
            |sql| sql.text("t.").ident(name),
            operator,
            cast.as_ref(),
            |sql| cast_element(element(sql, n), arrays[n - 1]),
        ),
        Match::SameText => unreachable!("whole rows are looked for one by one"),
    })
}

/// Division by zero unless as many rows are counted as the parameter after the arrays says.
fn counted(sql: Sql, arrays: &[Array<'_>]) -> Sql {
    param(sql.text("1 / (count(*) = "), arrays.len() + 1).text(")::int4")
}

fn element(sql: Sql, n: usize) -> Sql {
    column(sql.text("n."), n)
}

fn column(sql: Sql, n: usize) -> Sql {
    sql.text("c").page(n as u64)
}

fn cast_element(sql: Sql, array: Array<'_>) -> Sql {
    if array.as_text { sql.text("::").name(array.of) } else { sql }
}

/// `left OPERATOR(schema.=) right`, both cast where that is needed.
fn equal(
    sql: Sql,
    left: impl FnOnce(Sql) -> Sql,
    operator: &QualifiedName,
    cast: Option<&QualifiedName>,
    right: impl FnOnce(Sql) -> Sql,
) -> Sql {
    let cast = |sql: Sql| cast.into_iter().fold(sql, |sql, cast| sql.text("::").name(cast));
    let sql = cast(left(sql)).text(" OPERATOR(").ident(&operator.schema).text(".");
    cast(right(sql.operator(&operator.name).text(") ")))
}

fn param(sql: Sql, n: usize) -> Sql {
    sql.param(n)
}
