//! Histories out of a seed.
//!
//! The generator knows nothing of what the tables hold: what a statement finds is left to chance, which few values
//! make likely, and what the source refuses is taken back.

use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::tables::{Column, Table};

/// Transactions, in order.
#[derive(Clone, Default)]
pub struct History {
    pub transactions: Vec<Transaction>,
}

/// What one transaction does.
#[derive(Clone)]
pub struct Transaction {
    pub steps: Vec<Step>,
    pub commits: bool,
    /// A savepoint before each statement even where none is needed: its changes then are a subtransaction's.
    pub nested: bool,
}

/// A part of a transaction.
#[derive(Clone)]
pub enum Step {
    /// A statement.
    Do(String),
    /// Statements that are rolled back to a savepoint.
    Undo(Vec<String>),
}

impl History {
    /// As in the tests' tables: a transaction each, its statements set apart by `;`.
    pub fn of(transactions: &[&str]) -> Self {
        let transaction = |sql: &&str| {
            let statements = sql.split(';').map(str::trim).filter(|sql| !sql.is_empty());
            let steps = statements.map(|sql| Step::Do(sql.to_owned())).collect();
            Transaction { steps, commits: true, nested: false }
        };
        Self { transactions: transactions.iter().map(transaction).collect() }
    }

    /// Some tables are written more than the others, another one by each seed.
    pub fn random(seed: u64, tables: &[&Table]) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let count = tables.len() as u64;
        let mut hot = vec![tables[(seed % count) as usize]];
        hot.extend((0..rng.random_range(0..3)).map(|_| *one(rng, tables)));
        let transactions = rng.random_range(15..45);
        Self { transactions: (0..transactions).map(|_| transaction(rng, &hot, tables)).collect() }
    }
}

fn transaction(rng: &mut StdRng, hot: &[&Table], tables: &[&Table]) -> Transaction {
    let count = match rng.random_range(0..10) {
        0 => rng.random_range(10..25),
        1..4 => rng.random_range(3..8),
        _ => rng.random_range(1..4),
    };
    let mut steps = Vec::new();
    for _ in 0..count {
        let table = if rng.random_range(0..10) < 8 { one(rng, hot) } else { one(rng, tables) };
        add(rng, table, tables, &mut steps);
    }
    Transaction { steps, commits: rng.random_range(0..20) > 0, nested: rng.random_range(0..3) == 0 }
}

fn add(rng: &mut StdRng, table: &Table, tables: &[&Table], steps: &mut Vec<Step>) {
    let statements = statements(rng, table, tables);
    match rng.random_range(0..25) {
        0 => steps.push(Step::Undo(statements)),
        _ => steps.extend(statements.into_iter().map(Step::Do)),
    }
}

/// One statement, or several that belong together.
fn statements(rng: &mut StdRng, table: &Table, tables: &[&Table]) -> Vec<String> {
    match rng.random_range(0..100) {
        0..20 => vec![insert(rng, table, 1)],
        20..28 => {
            let rows = rng.random_range(2..13);
            vec![insert(rng, table, rows)]
        }
        28..32 => vec![upsert(rng, table)],
        32..52 => {
            let condition = condition(rng, table);
            vec![update(rng, table, &condition)]
        }
        52..55 => vec![touch(rng, table)],
        55..78 => {
            let moves = match rng.random_range(0..4) {
                0 => move_value(rng, table, 1),
                1 => move_value(rng, table, 2),
                _ => swap(rng, table),
            };
            between_updates(rng, table, moves)
        }
        78..85 => vec![delete(rng, table)],
        85..89 => {
            let replaced = replace(rng, table);
            between_updates(rng, table, replaced)
        }
        89..91 => {
            let row = row(rng, table);
            vec![insert_rows(table, std::slice::from_ref(&row)), row.delete(table)]
        }
        91..95 => hot(rng, table),
        95..97 => vec![truncate(rng, table, tables)],
        _ => bulk(rng, table),
    }
}

/// A row's values, in the order of its table's columns.
struct Row(Vec<String>);

fn row(rng: &mut StdRng, table: &Table) -> Row {
    let sparse = rng.random_range(0..8) == 0;
    let value = |column: &Column| {
        let null = sparse && !column.key && column.values[0] == "NULL";
        match () {
            () if null => "NULL",
            // What the sequence gives.
            () if column.always && rng.random_range(0..3) == 0 => "DEFAULT",
            () => any(rng, column),
        }
    };
    Row(table.columns.iter().map(value).map(str::to_owned).collect())
}

impl Row {
    /// The statement that deletes it, however it came about.
    fn delete(&self, table: &Table) -> String {
        let values = table.columns.iter().zip(&self.0);
        let (keys, all): (Vec<_>, Vec<_>) = (
            values.clone().filter(|(column, _)| column.key).collect(),
            values.filter(|(column, _)| column.moved).collect(),
        );
        let by = if keys.is_empty() { all } else { keys };
        let equal = |(column, value): &(&Column, &String)| match value.as_str() {
            "DEFAULT" => "true".to_owned(),
            value => equals(column, value),
        };
        format!("DELETE FROM {} WHERE {}", table.name, by.iter().map(equal).collect::<Vec<_>>().join(" AND "))
    }
}

fn any(rng: &mut StdRng, column: &Column) -> &'static str {
    one::<&str>(rng, column.values)
}

fn equals(column: &Column, value: &str) -> String {
    format!("{} IS NOT DISTINCT FROM {value}", column.name)
}

fn insert(rng: &mut StdRng, table: &Table, rows: usize) -> String {
    let rows: Vec<Row> = (0..rows).map(|_| row(rng, table)).collect();
    // Of several rows some may be there already: the others are to get in.
    let skip = if rows.len() > 1 { " ON CONFLICT DO NOTHING" } else { "" };
    insert_rows(table, &rows) + skip
}

fn insert_rows(table: &Table, rows: &[Row]) -> String {
    let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let rows: Vec<String> = rows.iter().map(|row| format!("({})", row.0.join(", "))).collect();
    let always = table.columns.iter().any(|column| column.always);
    let overriding = if always { " OVERRIDING SYSTEM VALUE" } else { "" };
    format!("INSERT INTO {} ({}){overriding} VALUES {}", table.name, names.join(", "), rows.join(", "))
}

fn upsert(rng: &mut StdRng, table: &Table) -> String {
    let keys: Vec<&str> = table.keys().iter().map(|column| column.name).collect();
    let set: Vec<String> = table
        .others()
        .iter()
        .filter(|column| !column.always)
        .map(|column| format!("{0} = excluded.{0}", column.name))
        .collect();
    let row = insert(rng, table, 1);
    if keys.is_empty() || set.is_empty() {
        return row;
    }
    format!("{row} ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), set.join(", "))
}

/// Mostly one row, by its key.
fn condition(rng: &mut StdRng, table: &Table) -> String {
    let keys = table.keys();
    let some = if keys.is_empty() { table.moved() } else { keys };
    match rng.random_range(0..20) {
        0 => "true".to_owned(),
        1..4 => {
            let moved = table.moved();
            let column = one(rng, if moved.is_empty() { &some } else { &moved });
            equals(column, any(rng, column))
        }
        // One of several equal rows.
        4..10 if table.keys().is_empty() => {
            let column = one(rng, &some);
            let equals = equals(column, any(rng, column));
            format!("ctid = (SELECT min(ctid) FROM {} WHERE {equals})", table.name)
        }
        _ => {
            let each: Vec<String> = some.iter().map(|column| equals(column, any(rng, column))).collect();
            each.join(" AND ")
        }
    }
}

/// Sets some columns that are not the key.
fn update(rng: &mut StdRng, table: &Table, condition: &str) -> String {
    let mut columns = table.others();
    if columns.is_empty() {
        return format!("UPDATE {0} SET {1} = {1} WHERE {condition}", table.name, table.columns[0].name);
    }
    let kept = if rng.random_range(0..4) == 0 { columns.len() } else { rng.random_range(1..3) };
    while columns.len() > kept {
        columns.remove(rng.random_range(0..columns.len()));
    }
    let set: Vec<String> = columns.iter().map(|column| assigned(rng, column)).collect();
    format!("UPDATE {} SET {} WHERE {condition}", table.name, set.join(", "))
}

fn assigned(rng: &mut StdRng, column: &Column) -> String {
    let value = if column.always { "DEFAULT" } else { any(rng, column) };
    format!("{} = {value}", column.name)
}

/// An update that changes nothing.
fn touch(rng: &mut StdRng, table: &Table) -> String {
    let columns: Vec<&Column> = table.columns.iter().filter(|column| !column.always).collect();
    let column = one(rng, &columns).name;
    format!("UPDATE {} SET {column} = {column} WHERE {}", table.name, condition(rng, table))
}

/// A column of one row, or of several, from value to value: 1 → 2, 1 → 2 → 3. What else the update sets comes along.
fn move_value(rng: &mut StdRng, table: &Table, times: usize) -> Vec<String> {
    let columns: Vec<&Column> = table.columns.iter().filter(|c| c.moved || c.always).collect();
    let column = *one(rng, &columns);
    let more = table.others().into_iter().find(|other| other.name != column.name && !other.always);
    let mut from = any(rng, column);
    let mut statements = Vec::new();
    for _ in 0..times {
        let to = any(rng, column);
        let mut set = if column.always { assigned(rng, column) } else { format!("{} = {to}", column.name) };
        if let Some(more) = more.filter(|_| rng.random_range(0..3) == 0) {
            set = format!("{set}, {}", assigned(rng, more));
        }
        statements.push(format!("UPDATE {} SET {set} WHERE {}", table.name, equals(column, from)));
        from = to;
    }
    statements
}

/// The same columns updated before and after: it may have become another row.
fn between_updates(rng: &mut StdRng, table: &Table, statements: Vec<String>) -> Vec<String> {
    let others: Vec<&Column> = table.others().into_iter().filter(|column| !column.always).collect();
    let keys = table.keys();
    if others.is_empty() || keys.len() != 1 || rng.random_range(0..3) == 0 {
        return statements;
    }
    let column = *one(rng, &others);
    let mut update = || {
        let (set, equals) = (assigned(rng, column), equals(keys[0], any(rng, keys[0])));
        format!("UPDATE {} SET {set} WHERE {equals}", table.name)
    };
    let (before, after) = ([update(), update()], [update(), update()]);
    before.into_iter().chain(statements).chain(after).collect()
}

/// Two rows take each other's value: through a third, or at once where that is allowed.
fn swap(rng: &mut StdRng, table: &Table) -> Vec<String> {
    let moved = table.moved();
    if moved.is_empty() {
        return vec![delete(rng, table)];
    }
    let column = *one(rng, &moved);
    let [a, b, between] = [0; 3].map(|_| any(rng, column));
    let name = column.name;
    if rng.random_range(0..4) == 0 {
        let condition = format!("{} OR {}", equals(column, a), equals(column, b));
        let case = format!("CASE WHEN {} THEN {b} ELSE {a} END", equals(column, a));
        return vec![format!("UPDATE {} SET {name} = {case} WHERE {condition}", table.name)];
    }
    let step = |from, to| format!("UPDATE {} SET {name} = {to} WHERE {}", table.name, equals(column, from));
    vec![step(a, between), step(b, a), step(between, b)]
}

fn delete(rng: &mut StdRng, table: &Table) -> String {
    format!("DELETE FROM {} WHERE {}", table.name, condition(rng, table))
}

/// A row deleted, and one with its key inserted.
fn replace(rng: &mut StdRng, table: &Table) -> Vec<String> {
    let row = row(rng, table);
    vec![row.delete(table), insert_rows(table, &[row])]
}

/// One row again and again, also under its next keys.
fn hot(rng: &mut StdRng, table: &Table) -> Vec<String> {
    let condition = condition(rng, table);
    let mut statements = Vec::new();
    for _ in 0..rng.random_range(2..9) {
        statements.push(update(rng, table, &condition));
    }
    if rng.random_range(0..3) == 0 {
        statements.push(format!("DELETE FROM {} WHERE {condition}", table.name));
    }
    statements
}

fn truncate(rng: &mut StdRng, table: &Table, tables: &[&Table]) -> String {
    let mut names = vec![table.name];
    for _ in 0..rng.random_range(0..3) {
        names.push(one(rng, tables).name);
    }
    let restart = if rng.random_range(0..2) == 0 { " RESTART IDENTITY" } else { "" };
    format!("TRUNCATE {}{restart} CASCADE", names.join(", "))
}

/// Many rows of one table, enough that an applier may choose another way to write them.
fn bulk(rng: &mut StdRng, table: &Table) -> Vec<String> {
    let (name, from, count) = (table.name, rng.random_range(1..40), rng.random_range(20..100));
    let mut rows: Vec<Row> = (0..count).map(|_| row(rng, table)).collect();
    let Some(key) = table.numbered() else {
        return vec![insert_rows(table, &rows) + " ON CONFLICT DO NOTHING"];
    };
    for (row, id) in rows.iter_mut().zip(from..) {
        for (value, column) in row.0.iter_mut().zip(table.columns) {
            match () {
                () if column.key => *value = id.to_string(),
                () if column.always => "DEFAULT".clone_into(value),
                () => {}
            }
        }
    }
    let key = key.name;
    let range = format!("{key} BETWEEN {from} AND {}", from + count);
    let mut all = vec![
        insert_rows(table, &rows) + " ON CONFLICT DO NOTHING",
        update(rng, table, &format!("{range} AND {key} % 2 = 0")),
        update(rng, table, &format!("{range} AND {key} % 5 < 3")),
        format!("UPDATE {name} SET {key} = {key} + 1000 WHERE {range} AND {key} % 9 = 0"),
        format!("DELETE FROM {name} WHERE {range} AND {key} % 3 = 0"),
        format!("DELETE FROM {name} WHERE {key} > 6"),
    ];
    for _ in 0..rng.random_range(1..4) {
        all.remove(rng.random_range(1..all.len()));
    }
    all
}

fn one<'a, T>(rng: &mut StdRng, all: &'a [T]) -> &'a T {
    &all[rng.random_range(0..all.len())]
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for transaction in &self.transactions {
            writeln!(f, "BEGIN;")?;
            for step in &transaction.steps {
                match step {
                    Step::Do(sql) if transaction.nested => writeln!(f, "  SAVEPOINT s; {sql};")?,
                    Step::Do(sql) => writeln!(f, "  {sql};")?,
                    Step::Undo(all) => writeln!(f, "  SAVEPOINT s; {}; ROLLBACK TO s;", all.join("; "))?,
                }
            }
            writeln!(f, "{}", if transaction.commits { "COMMIT;" } else { "ROLLBACK;" })?;
        }
        Ok(())
    }
}
