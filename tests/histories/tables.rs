//! The tables that histories work on, and the values that they are given.

/// One table: how it is made, and what may be written to it.
pub struct Table {
    pub name: &'static str,
    /// Makes it on the source, and on the targets unless `target` says otherwise.
    pub sql: &'static str,
    pub target: Option<&'static str>,
    /// Those that are written; others are only compared.
    pub columns: &'static [Column],
}

/// A column, with the SQL expressions that it is given: few, so that a history comes back to the same rows.
pub struct Column {
    pub name: &'static str,
    pub values: &'static [&'static str],
    /// Rows are found by it and the other columns of the key.
    pub key: bool,
    /// Can be compared, and its values are moved from row to row.
    pub moved: bool,
    /// GENERATED ALWAYS AS IDENTITY: inserted with any value, updated only to its next one.
    pub always: bool,
}

const fn key(name: &'static str, values: &'static [&'static str]) -> Column {
    Column { name, values, key: true, moved: true, always: false }
}

const fn moved(name: &'static str, values: &'static [&'static str]) -> Column {
    Column { name, values, key: false, moved: true, always: false }
}

const fn plain(name: &'static str, values: &'static [&'static str]) -> Column {
    Column { name, values, key: false, moved: false, always: false }
}

const fn always(name: &'static str, values: &'static [&'static str], key: bool) -> Column {
    Column { name, values, key, moved: false, always: true }
}

/// What the tables need, on every side.
pub const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'Ok', 'very happy');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN short AS varchar(5) CHECK (value <> 'bad');
    CREATE DOMAIN pairs AS pair[]";

/// For servers that know it.
pub const SINCE_15: &str = "CREATE UNIQUE INDEX ON partial (u) NULLS NOT DISTINCT";

/// For servers with ICU.
pub const ICU: &str =
    "CREATE COLLATION loose_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TABLE alike_text (k text COLLATE loose_case PRIMARY KEY, v int)";

const IDS: &[&str] = &["1", "2", "3", "4", "5", "6"];
/// What a sequence gives next is among them.
const SERIAL: &[&str] = &["1", "2", "3", "4", "10", "11", "12", "13"];
const SMALL: &[&str] = &["NULL", "0", "1", "2"];
const TEXTS: &[&str] = &["NULL", "''", "'a'", "'NULL'", r"E'a\tb\n\\.\n'"];
/// Those of some length are stored out of line, and not sent when an update leaves them alone.
const BIG: &[&str] =
    &["NULL", "''", "'small'", "repeat('x', 3000)", "repeat('y', 3000)", "repeat(E'\\\\\"{,\\n', 800)"];
const WORDS: &[&str] = &[
    "''",
    "' '",
    "'NULL'",
    "'null'",
    r"E'\\N'",
    r"E'\\.'",
    r#"E'"\'\\'"#,
    "'{a,b}'",
    "','",
    r"E'\t\r\n'",
    "'(1,\"x\")'",
    "'größe ☃ 𝄞'",
    "repeat('k', 2500)",
];

pub const TABLES: &[Table] = &[
    Table {
        name: "plain",
        sql: "CREATE TABLE plain (id bigint PRIMARY KEY, a int, b text, big text, more text);
            ALTER TABLE plain ALTER big SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL",
        target: None,
        columns: &[key("id", IDS), plain("a", SMALL), plain("b", TEXTS), plain("big", BIG), plain("more", BIG)],
    },
    Table {
        name: "composite",
        sql: "CREATE TABLE composite (v int, b text, w text, a int, PRIMARY KEY (a, b))",
        target: None,
        columns: &[
            key("a", &["1", "2", "3"]),
            key("b", &["''", "'x'", "'a,b'"]),
            plain("v", SMALL),
            plain("w", TEXTS),
        ],
    },
    Table {
        name: "only_key",
        sql: "CREATE TABLE only_key (id int PRIMARY KEY)",
        target: None,
        columns: &[key("id", IDS)],
    },
    Table {
        name: "alike_numeric",
        sql: "CREATE TABLE alike_numeric (k numeric PRIMARY KEY, n numeric, v text)",
        target: None,
        columns: &[
            key("k", &["1", "1.0", "1.00", "2.50", "2.5", "0", "0.000", "'NaN'"]),
            plain("n", &["NULL", "1.0", "1.00", "'NaN'"]),
            plain("v", TEXTS),
        ],
    },
    Table {
        name: "alike_float",
        sql: "CREATE TABLE alike_float (k float8 PRIMARY KEY, v float8)",
        target: None,
        columns: &[
            key("k", &["'0'", "'-0'", "'NaN'", "'1.5'", "'-Infinity'"]),
            plain("v", &["NULL", "'0'", "'-0'", "0.1::float8 + 0.2"]),
        ],
    },
    Table {
        name: "alike_document",
        sql: "CREATE TABLE alike_document (k jsonb, i interval, v int, PRIMARY KEY (k, i))",
        target: None,
        columns: &[
            key("k", &[r#"'{"a": 1.0}'"#, r#"'{"a": 1.00}'"#, "'null'", r#"'"\"x\\y"'"#]),
            key("i", &["'1 day'", "'24 hours'", "'1 month'"]),
            plain("v", SMALL),
        ],
    },
    Table {
        name: "uniq",
        sql: "CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, v text)",
        // Another table refers to it, so that it cannot be truncated.
        target: Some(
            "CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, v text);
            CREATE TABLE only_on_target (id int REFERENCES uniq)",
        ),
        columns: &[key("id", IDS), moved("u", &["NULL", "1", "2", "3", "4"]), plain("v", TEXTS)],
    },
    Table {
        name: "partial",
        sql: "CREATE TABLE partial (id int PRIMARY KEY, u int, kind text);
            CREATE UNIQUE INDEX ON partial (kind) WHERE u > 1",
        target: None,
        columns: &[key("id", IDS), moved("u", &["NULL", "1", "2", "3"]), moved("kind", &["NULL", "'a'", "'b'"])],
    },
    Table {
        name: "by_index",
        sql: "CREATE TABLE by_index (a int NOT NULL, v text, b text NOT NULL, big text);
            ALTER TABLE by_index ALTER big SET STORAGE EXTERNAL;
            CREATE UNIQUE INDEX by_index_key ON by_index (b, a);
            ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key",
        target: None,
        columns: &[key("a", &["1", "2", "3"]), key("b", &["''", "'NULL'"]), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "full_keyed",
        sql: "CREATE TABLE full_keyed (id int PRIMARY KEY, v text, big text);
            ALTER TABLE full_keyed ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL",
        target: None,
        columns: &[key("id", IDS), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "full_loose",
        sql: "CREATE TABLE full_loose (n int, v text, big text);
            ALTER TABLE full_loose ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL",
        target: None,
        columns: &[moved("n", SMALL), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "full_deferred",
        sql: "CREATE TABLE full_deferred (v text, pos int, big text,
                PRIMARY KEY (pos) DEFERRABLE INITIALLY DEFERRED);
            ALTER TABLE full_deferred ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL",
        target: None,
        columns: &[key("pos", IDS), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "full_deferred_unique",
        sql: "CREATE TABLE full_deferred_unique (n int UNIQUE DEFERRABLE, v text);
            ALTER TABLE full_deferred_unique REPLICA IDENTITY FULL",
        target: None,
        columns: &[moved("n", &["NULL", "1", "2", "3", "4"]), plain("v", TEXTS)],
    },
    Table {
        name: "loose_types",
        sql: "CREATE TABLE loose_types (n numeric, b box, j json, p pair, c char(5));
            ALTER TABLE loose_types REPLICA IDENTITY FULL",
        target: None,
        columns: &[
            moved("n", &["NULL", "1.0", "1.00"]),
            plain("b", &["NULL", "'(1,1),(0,0)'", "'(2,0.5),(0,0)'"]),
            plain("j", &["NULL", r#"'{"a":1}'"#, r#"'{"a": 1}'"#, "'null'"]),
            plain("p", &["NULL", "ROW(NULL, NULL)", r#"ROW(1, 'x, "y"')"#]),
            plain("c", &["NULL", "''", "'ab'", "'ab c'"]),
        ],
    },
    Table {
        name: "deferred",
        sql: "CREATE TABLE deferred (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text)",
        target: None,
        columns: &[key("id", IDS), moved("u", &["NULL", "1", "2", "3", "4"]), plain("v", TEXTS)],
    },
    Table {
        name: "rooms",
        sql: "CREATE TABLE rooms (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))",
        target: None,
        columns: &[
            key("id", IDS),
            moved("r", &["NULL", "'[1,5)'", "'[5,9)'", "'[3,7)'", "'empty'", "'[20,)'"]),
        ],
    },
    Table {
        name: "identity_key",
        sql: "CREATE TABLE identity_key (id int GENERATED ALWAYS AS IDENTITY (START 10) PRIMARY KEY, v text, big text,
                twice int GENERATED ALWAYS AS (length(v) * 2) STORED);
            ALTER TABLE identity_key ALTER big SET STORAGE EXTERNAL",
        target: None,
        columns: &[always("id", SERIAL, true), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "identity_beside",
        sql: "CREATE TABLE identity_beside (k int PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY (START 10) UNIQUE,
                v text, big text);
            ALTER TABLE identity_beside ALTER big SET STORAGE EXTERNAL",
        target: None,
        columns: &[key("k", IDS), always("id", SERIAL, false), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "identity_full",
        sql: "CREATE TABLE identity_full (k int, id int GENERATED ALWAYS AS IDENTITY (START 10), v text, big text,
                twice int GENERATED ALWAYS AS (k * 2) STORED);
            ALTER TABLE identity_full ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL",
        target: None,
        columns: &[moved("k", SMALL), always("id", SERIAL, false), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "only_there",
        sql: "CREATE TABLE only_there (id int GENERATED BY DEFAULT AS IDENTITY (START 10) PRIMARY KEY, v text, big text);
            ALTER TABLE only_there ALTER big SET STORAGE EXTERNAL",
        target: Some(
            "CREATE TABLE only_there (more int NOT NULL DEFAULT 5, big text, v text, note text DEFAULT 'note',
                id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
                twice int GENERATED ALWAYS AS (length(v) * 2) STORED)",
        ),
        columns: &[key("id", SERIAL), plain("v", TEXTS), plain("big", BIG)],
    },
    Table {
        name: "words",
        sql: "CREATE TABLE words (k text PRIMARY KEY, v text); ALTER TABLE words ALTER k SET STORAGE EXTERNAL",
        target: None,
        columns: &[key("k", WORDS), plain("v", WORDS)],
    },
    Table {
        name: "types",
        sql: "CREATE TABLE types (id int PRIMARY KEY, ints int[], texts text[], j jsonb, b bytea, t timestamptz, x box,
                xs box[], m mood, ms mood[], s short, p pair, ps pairs, c char(5), f float4, o bool, n numeric(9,2)[])",
        target: None,
        columns: &[
            key("id", IDS),
            plain("ints", &["NULL", "'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'"]),
            plain(
                "texts",
                &[
                    "NULL",
                    "'{}'",
                    r#"ARRAY['a,b', '{}', 'NULL', NULL, '', '"', E'\\', E'\t\n', ' ']"#,
                    "'[2:3]={a,b}'",
                    "'{{a,b},{c,NULL}}'",
                ],
            ),
            plain("j", &["NULL", "'null'", r#"'{"a": [1.0, "x\ny"]}'"#, r#"'"\\"'"#]),
            plain("b", &["NULL", "''", r"'\x005c2e0a09ff'", r"'\x5c'"]),
            plain("t", &["NULL", "'2024-02-29 12:00:00.000001+02'", "'-infinity'", "'0044-03-15 BC'"]),
            plain("x", &["NULL", "'(1,1),(0,0)'"]),
            plain("xs", &["NULL", "'{}'", "ARRAY['(1,1),(0,0)'::box, NULL, '(2,0.5),(0,0)'::box]"]),
            plain("m", &["NULL", "'sad'", "'very happy'"]),
            plain("ms", &["NULL", "'{sad,NULL,very happy}'"]),
            plain("s", &["NULL", "''", "'abcde'"]),
            plain("p", &["NULL", "ROW(NULL, NULL)", r#"ROW(1, E'x, "y"\\')"#]),
            plain("ps", &["NULL", r#"ARRAY[ROW(1, 'a,"b"')::pair, NULL]"#]),
            plain("c", &["NULL", "''", "'ab'"]),
            plain("f", &["NULL", "0.1", "'-0'", "'NaN'"]),
            plain("o", &["NULL", "true", "false"]),
            plain("n", &["NULL", "'{1.50,NaN}'"]),
        ],
    },
    Table {
        name: "parts",
        sql: "CREATE TABLE parts (id int, part text, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
            CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
            CREATE TABLE parts_rest PARTITION OF parts DEFAULT",
        target: None,
        columns: &[key("id", &["1", "2", "3"]), key("part", &["'a'", "'b'", "'c'"]), plain("v", TEXTS)],
    },
    Table {
        name: "parent",
        sql: "CREATE TABLE parent (id int PRIMARY KEY, v text)",
        target: None,
        columns: &[key("id", IDS), plain("v", TEXTS)],
    },
    Table {
        name: "child",
        sql: "CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE,
                v text)",
        target: None,
        columns: &[key("id", IDS), plain("parent", &["NULL", "1", "2", "3"]), plain("v", TEXTS)],
    },
];

/// Made by [`ICU`].
pub const ALIKE_TEXT: Table = Table {
    name: "alike_text",
    sql: ICU,
    target: None,
    columns: &[key("k", &["'a'", "'A'", "'Á'", "'b'", "'B'"]), plain("v", SMALL)],
};

impl Table {
    pub fn keys(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| column.key).collect()
    }

    /// The key, where it is any number.
    pub fn numbered(&self) -> Option<&Column> {
        self.columns.iter().find(|column| column.key && column.values == IDS)
    }

    /// The columns whose values go from row to row.
    pub fn moved(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| column.moved).collect()
    }

    /// The columns that no row is found by.
    pub fn others(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| !column.key).collect()
    }
}
