//! Every type that a column can have, moved by copy, insert, update, delete and key update.

use super::samples::{BUILTIN, EXTENSIONS, MADE, MADE_VALUES, MODIFIED, NEWER, NO_INPUT};
use tokio_postgres::Client;

use crate::harness::{DATABASE, Pair};
use crate::versions::asked_pairs;

/// A type, and values of it.
struct Subject {
    /// What its tables are called after.
    name: String,
    sql: String,
    /// What its array type is, where it has one.
    array: Option<String>,
    values: Vec<Sample>,
}

/// An expression that makes a value.
struct Sample {
    sql: String,
    in_key: bool,
}

impl Subject {
    fn new(name: &str, sql: &str, has_array: bool, values: &[&str]) -> Self {
        let sample = |value: &&str| match value.split_at_checked(1) {
            Some(("=", sql)) => Sample { sql: sql.to_owned(), in_key: true },
            Some(("!", sql)) => Sample { sql: sql.to_owned(), in_key: false },
            _ => Sample {
                sql: format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''")),
                in_key: true,
            },
        };
        let mut values: Vec<Sample> = values.iter().map(sample).collect();
        for value in &mut values {
            value.sql = format!("({})::{sql}", value.sql);
        }
        let array = has_array.then(|| format!("{sql}[]"));
        Self { name: name.replace('"', ""), sql: sql.to_owned(), array, values }
    }

    /// The values are in the first table before the copy, their arrays of another kind in each row. The second has
    /// no key, and each row twice; the third has both as its key, where they can be one. One has no arrays, and so is
    /// copied in binary where its type allows. All names need quotes.
    fn tables(&self) -> String {
        let array_type = self.array.as_deref().unwrap_or("int[]");
        let rows = self.values.iter().zip(1..).map(|(value, id)| {
            let Sample { sql: value, in_key } = value;
            let null = format!("NULL::{}", self.sql);
            let array = match (&self.array, id % 5) {
                (None, _) | (_, 0) => "NULL".to_owned(),
                (_, 1) => format!("ARRAY[{value}, {null}]"),
                (_, 2) => format!("array_fill({value}, ARRAY[2, 1], ARRAY[-2, 7])"),
                (_, 3) => format!("ARRAY[[{value}, {null}], [{null}, {value}]]"),
                (_, _) => "'{}'".to_owned(),
            };
            format!("({id}, {value}, {array}, {in_key})")
        });
        let rows: Vec<String> = rows.chain(["(999, NULL, NULL, false)".to_owned()]).collect();
        let (name, sql, rows) = (&self.name, &self.sql, rows.join(", "));
        let copied = self.values.len() / 2 + 1;
        format!(
            r#"CREATE TABLE "v {name}" (id int PRIMARY KEY, v {sql}, a {array_type}, in_key bool);
            INSERT INTO "v {name}" VALUES {rows};
            INSERT INTO "v {name}" SELECT id + 2000 FROM "v {name}";
            CREATE TABLE "f {name}" (n int, v {sql}, a {array_type});
            ALTER TABLE "f {name}" REPLICA IDENTITY FULL;
            INSERT INTO "f {name}" SELECT id, v, a FROM "v {name}", generate_series(1, 2) WHERE id < 1000;
            CREATE TABLE "b {name}" (id int PRIMARY KEY, v {sql}, at timestamptz);
            INSERT INTO "b {name}" SELECT id, v, 'epoch' FROM "v {name}";
            DO $$ BEGIN
                CREATE TABLE "k {name}" (n int, v {sql}, a {array_type}, PRIMARY KEY (a, v));
                INSERT INTO "k {name}" SELECT id, v, coalesce(a, '{{}}') FROM "v {name}" WHERE in_key ORDER BY id
                    LIMIT {copied} ON CONFLICT DO NOTHING;
            EXCEPTION WHEN undefined_object OR undefined_function THEN NULL; -- no operator class, or none within
            END $$;"#
        )
    }

    /// The statements of one step; `keyed` where the type can be a key.
    fn statements(&self, step: &Step, keyed: bool) -> String {
        let keyed = if keyed { step.keyed } else { "" };
        format!("{};{keyed};", step.every).replace('$', &self.name)
    }
}

/// What is done to each type's tables, in one transaction for all of them.
struct Step {
    name: &'static str,
    every: &'static str,
    keyed: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        name: "insert",
        every: r#"INSERT INTO "v $" SELECT id + 1000, v, a, in_key FROM "v $" WHERE id < 1000;
            INSERT INTO "f $" SELECT id, v, a FROM "v $" WHERE id < 1000"#,
        keyed: r#"INSERT INTO "k $" SELECT id, v, coalesce(a, '{}') FROM "v $" WHERE id < 999 AND in_key ORDER BY id
            ON CONFLICT DO NOTHING"#,
    },
    Step {
        name: "update",
        every: r#"UPDATE "v $" t SET v = s.v, a = s.a FROM "v $" s WHERE t.id = s.id + 2000 AND s.id < 1000;
            UPDATE "v $" SET v = NULL WHERE id BETWEEN 1001 AND 1002;
            UPDATE "f $" SET n = -n WHERE ctid IN (SELECT min(ctid) FROM "f $" GROUP BY n);
            UPDATE "f $" SET v = NULL WHERE ctid IN (SELECT max(ctid) FROM "f $" GROUP BY n HAVING n % 2 = 0)"#,
        keyed: r#"UPDATE "k $" SET n = n + 1000"#,
    },
    Step {
        name: "key update",
        every: r#"UPDATE "v $" SET id = id + 7000 WHERE id BETWEEN 2001 AND 2002;
            UPDATE "v $" SET id = id + 9000, a = NULL WHERE id BETWEEN 1001 AND 1002"#,
        keyed: r#"DELETE FROM "k $" WHERE n = 1001;
            UPDATE "k $" SET v = s.v, a = s.a, n = 1 FROM "v $" s
                WHERE s.id = 1 AND s.a IS NOT NULL AND n = (SELECT min(n) FROM "k $")"#,
    },
    Step {
        name: "delete",
        every: r#"DELETE FROM "v $" WHERE id % 7 = 5;
            DELETE FROM "f $" WHERE ctid IN (SELECT min(ctid) FROM "f $" WHERE n > 0 GROUP BY n);
            DELETE FROM "f $" WHERE n IS NOT NULL AND v IS NULL"#,
        keyed: r#"DELETE FROM "k $" WHERE n % 2 = 1"#,
    },
    Step {
        name: "delete all",
        every: r#"DELETE FROM "v $" WHERE id > 1000; DELETE FROM "f $""#,
        keyed: r#"DELETE FROM "k $""#,
    },
];

/// Settings that change what values look like, or what is made of them: none of them may matter.
const SETTINGS_SOURCE: &[(&str, &str)] = &[
    ("datestyle", "'SQL, DMY'"),
    ("intervalstyle", "'sql_standard'"),
    ("timezone", "'Asia/Kathmandu'"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("quote_all_identifiers", "on"),
    ("xmlbinary", "hex"),
    ("search_path", "\"my types\", public"),
];
const SETTINGS_TARGET: &[(&str, &str)] = &[
    ("datestyle", "German"),
    ("intervalstyle", "iso_8601"),
    ("timezone", "'America/New_York'"),
    ("array_nulls", "off"),
    ("xmloption", "document"),
    ("default_text_search_config", "german"),
    ("search_path", "\"no such schema\""),
];

async fn settings(pair: &Pair) {
    for (name, value) in SETTINGS_SOURCE {
        pair.source(&format!("ALTER DATABASE {DATABASE} SET {name} = {value}")).await;
    }
    for (name, value) in SETTINGS_TARGET {
        pair.target(&format!("ALTER DATABASE {DATABASE} SET {name} = {value}")).await;
    }
}

/// What the source has, and this knows values of.
async fn subjects(pair: &Pair, owner: &Client) -> Vec<Subject> {
    let mut subjects = Vec::new();
    let version: u32 = pair.source_value("SHOW server_version_num").await.parse().unwrap();
    let types = "SELECT n.nspname, t.typname, t.typarray <> 0 FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE typtype IN ('b', 'r', 'm', 'd') AND typisdefined AND n.nspname IN ('pg_catalog', 'information_schema')
        AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)";
    for row in pair.source(types).await {
        let [schema, name, has_array] =
            [0, 1, 2].map(|column: usize| row[column].clone().unwrap_or_default());
        let values = BUILTIN.iter().find(|(known, _)| *known == name).map(|(_, values)| *values);
        let values = values.or_else(|| NO_INPUT.contains(&name.as_str()).then_some(&[][..]));
        let values = values.unwrap_or_else(|| panic!("no values of type {name} are known"));
        if name == "xml" && owner.simple_query("SELECT '<a/>'::xml").await.is_err() {
            eprintln!("skipped: this server is built without XML");
            continue;
        }
        let newer = NEWER.iter().filter(|(since, of, _)| version >= *since && *of == name);
        let values =
            [values].into_iter().chain(newer.map(|(.., values)| *values)).collect::<Vec<_>>().concat();
        subjects.push(Subject::new(&name, &format!("{schema}.\"{name}\""), has_array == "t", &values));
    }
    for (name, values) in MODIFIED.iter().chain(MADE_VALUES) {
        subjects.push(Subject::new(name, name, true, values));
    }
    for (extension, schema, types) in EXTENSIONS {
        let available = format!(
            "SELECT count(*) FROM pg_available_extension_versions WHERE name = '{extension}' AND trusted"
        );
        if pair.source_value(&available).await == "0" {
            eprintln!("skipped: this server has no extension {extension}");
            continue;
        }
        let schema = schema.unwrap_or("public");
        let create = format!(
            "CREATE SCHEMA IF NOT EXISTS \"{schema}\"; CREATE EXTENSION {extension} SCHEMA \"{schema}\""
        );
        owner.batch_execute(&create).await.unwrap();
        subjects.extend(types.iter().map(|(name, values)| Subject::new(name, name, true, values)));
    }
    subjects
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type() {
    for (source, target) in asked_pairs().await {
        let pair = Pair::of(source, target, |_| {}).await;
        every_type_of(&pair).await;
    }
}

async fn every_type_of(pair: &Pair) {
    settings(pair).await;
    let owner = pair.owner().await;
    owner.batch_execute("SET search_path = public").await.unwrap();
    owner.batch_execute(MADE).await.unwrap();
    let subjects = subjects(pair, &owner).await;
    for subject in &subjects {
        let tables = subject.tables();
        owner.batch_execute(&tables).await.unwrap_or_else(|error| panic!("{error:?}: {tables}"));
    }
    let keyed = pair
        .source("SELECT substr(relname, 3) FROM pg_class WHERE relname LIKE 'k %' AND relkind = 'r'")
        .await;
    let keyed: Vec<String> = keyed.into_iter().flatten().flatten().collect();
    eprintln!("{} types, {} of them as keys", subjects.len(), keyed.len());
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let mut wrong = Vec::new();
    check("copy", pair, &mut wrong).await;
    let log = engine.log();
    let binary =
        log.lines().filter(|line| line.contains(" copying ") && line.contains("binary=true")).count();
    // One of each type on the short list, and of those with a length or precision.
    assert!((20..40).contains(&binary), "{binary} tables copied in binary");
    for step in STEPS {
        let statements = |subject: &Subject| subject.statements(step, keyed.contains(&subject.name));
        let text: String = subjects.iter().map(statements).collect();
        owner.batch_execute(&text).await.unwrap_or_else(|error| panic!("{}: {error:?}", step.name));
        engine.wait_drained(pair).await;
        check(step.name, pair, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), engine.log());
    engine.terminate(0).await;
    differences_show(pair).await;
}

async fn check(what: &str, pair: &Pair, wrong: &mut Vec<String>) {
    let comparison = pair.compare().await;
    eprintln!("{what}: {} rows in {} tables", comparison.rows_source(), comparison.tables.len());
    if !comparison.tables_equal() {
        wrong.push(format!("{what}: {comparison}"));
    }
}

/// Values that are equal to PostgreSQL's operators, and are not the same.
async fn differences_show(pair: &Pair) {
    let changes = [
        ("numeric", "1.10", "1.1"),
        ("float8", "-0", "0"),
        ("interval", "-1 year -2 mons +3 days", "-1 year -2 mons +2 days 24:00"),
        ("bpchar", "a   ", "a    "),
        ("citext", "Ab", "aB"),
        ("json", "{\"a\" :  1, \"a\":2}", "{\"a\" : 1, \"a\":2}"),
    ];
    for (name, from, to) in changes {
        let change =
            format!("UPDATE \"v {name}\" SET v = '{to}' WHERE v::text = '{from}'::{name}::text RETURNING id");
        let target = pair.cluster.target.client(DATABASE).await.unwrap();
        target.batch_execute("SET search_path = public").await.unwrap();
        target.batch_execute(&change).await.unwrap();
    }
    let comparison = pair.compare().await;
    let seen: Vec<String> =
        comparison.tables.iter().filter(|table| !table.equal()).map(|table| table.name.to_string()).collect();
    let wanted = ["bpchar", "citext", "float8", "interval", "json", "numeric"];
    let wanted: Vec<String> = wanted.iter().map(|name| format!("public.\"v {name}\"")).collect();
    assert_eq!(seen, wanted);
}
