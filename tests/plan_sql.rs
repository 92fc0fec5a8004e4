//! The planner's statements, proven on a real server: what one database decodes is applied to another, each statement
//! must touch exactly one row, and in the end both hold the same.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};
use walferry::assemble::{Assembler, Segment};
use walferry::demo::{PgBinaries, Server, ServerOptions};
use walferry::pg::{Oid, QualifiedName, Relation, SourceLsn};
use walferry::plan::{Carried, Form, Input, Kind, Planner, Step, TargetColumn, TargetTable, TargetType};

/// Two databases of one server.
struct World {
    source: Client,
    target: Client,
    _server: Server,
}

/// What became of a history.
#[derive(Debug, Default)]
struct Followed {
    steps: Vec<Step>,
    /// SQLSTATE and message of the step that failed, which is the one after `steps`.
    error: Option<(String, String)>,
}

/// A parameter as the source sent it: in text format, whatever its type.
#[derive(Debug)]
struct Text(Option<Bytes>);

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        Ok(self.0.as_ref().map_or(IsNull::Yes, |bytes| {
            out.extend_from_slice(bytes);
            IsNull::No
        }))
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

const PINNED: &str = "SET search_path = pg_catalog; SET DateStyle = ISO; SET IntervalStyle = postgres;
    SET extra_float_digits = 3; SET TimeZone = UTC; SET bytea_output = hex";

impl World {
    async fn start() -> Self {
        let binaries = PgBinaries::find(None).await.unwrap();
        let server = Server::start(&binaries, ServerOptions::default()).await.unwrap();
        for database in ["source", "target"] {
            let create = server.client("postgres").await.unwrap();
            create.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        }
        let source = server.client("source").await.unwrap();
        let target = server.client("target").await.unwrap();
        for client in [&source, &target] {
            client.batch_execute(PINNED).await.unwrap();
        }
        target.batch_execute("SET session_replication_role = replica").await.unwrap();
        source.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await.unwrap();
        Self { source, target, _server: server }
    }

    /// Both databases get the same.
    async fn both(&self, sql: &str) {
        for client in [&self.source, &self.target] {
            run(client, sql).await;
        }
    }

    /// Runs the transactions on the source, and what comes of them on the target.
    async fn follow(&self, transactions: &[&str]) -> Followed {
        let make = "SELECT pg_create_logical_replication_slot('s', 'pgoutput', true)";
        run(&self.source, make).await;
        for sql in transactions {
            run(&self.source, sql).await;
        }
        let decode = "SELECT data FROM pg_logical_slot_get_binary_changes('s', NULL, NULL,
            'proto_version', '1', 'publication_names', 'everything')";
        let rows = self.source.query(decode, &[]).await.unwrap();
        run(&self.source, "SELECT pg_drop_replication_slot('s')").await;

        let (mut assembler, mut planner) = (Assembler::new(), Planner::new());
        let mut followed = Followed::default();
        for row in rows {
            let bytes = Bytes::from(row.get::<_, Vec<u8>>(0));
            let segment = assembler.take(bytes).unwrap();
            if let Some(segment) = segment {
                self.apply(&mut planner, &segment, &mut followed).await;
                if followed.error.is_some() {
                    break;
                }
            }
        }
        followed
    }

    async fn apply(&self, planner: &mut Planner, segment: &Segment, followed: &mut Followed) {
        for relation in planner.unknown(segment) {
            planner.learn(relation.id, self.table(&relation).await);
        }
        planner.begin(Form::Ordered);
        planner.plan(segment, &mut 0).unwrap();
        for step in planner.finish().unwrap().steps {
            let sql = step.statement.sql.as_str();
            let Input::Params(params) = &step.input else { panic!("ordered mode copies nothing") };
            let params: Vec<Text> = params.iter().cloned().map(Text).collect();
            let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
            let touched = match self.target.prepare(sql).await {
                Ok(statement) => self.target.execute(&statement, &params).await,
                Err(error) => Err(error),
            };
            match touched {
                Ok(rows) if step.kind == Kind::Truncate => assert_eq!(rows, 0, "{sql}"),
                Ok(rows) => assert_eq!(rows, 1, "{sql} with {:?}", step.input),
                Err(error) => {
                    let error = error.as_db_error().unwrap_or_else(|| unreachable!("{sql}: {error}"));
                    followed.error = Some((error.code().code().to_owned(), error.message().to_owned()));
                    return;
                }
            }
            followed.steps.push(step);
        }
    }

    async fn table(&self, relation: &Relation) -> TargetTable {
        let name = relation.name.clone();
        let sql = "SELECT a.attname, a.attgenerated <> '', a.attidentity = 'a', e.schema, e.operator,
                coalesce(a.attnum = ANY (i.indkey), false)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
            JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
            LEFT JOIN LATERAL (
                SELECT n.nspname AS schema, o.oprname AS operator FROM pg_opclass k
                JOIN pg_amop p ON p.amopfamily = k.opcfamily AND p.amopstrategy = 3
                    AND p.amoplefttype = k.opcintype AND p.amoprighttype = k.opcintype
                JOIN pg_operator o ON o.oid = p.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
                WHERE k.opcdefault AND k.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree')
                    AND k.opcintype = CASE
                        WHEN t.typelem <> 0 AND t.typlen = -1 THEN 'anyarray'::regtype
                        WHEN t.typtype = 'e' THEN 'anyenum'::regtype
                        WHEN t.typtype = 'r' THEN 'anyrange'::regtype
                        WHEN t.typtype = 'c' THEN 'record'::regtype
                        WHEN 'varchar'::regtype IN (t.oid, t.typbasetype) THEN 'text'::regtype
                        WHEN t.oid = 'cidr'::regtype THEN 'inet'::regtype
                        ELSE t.oid END) e ON true
            WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let rows = self.target.query(sql, &[&name.schema, &name.name]).await.unwrap();
        let (mut columns, mut key) = (Vec::new(), Vec::new());
        for row in rows {
            let column: String = row.get(0);
            if row.get(5) {
                key.push(column.clone());
            }
            let operator = row.get::<_, Option<String>>(3).zip(row.get::<_, Option<String>>(4));
            columns.push(TargetColumn {
                of: type_of(relation, &column),
                name: column,
                required: false,
                generated: row.get(1),
                identity_always: row.get(2),
                equality: operator.map(|(schema, name)| QualifiedName::new(schema, name)),
                cast: None,
                carried: Carried::InArrays,
            });
        }
        TargetTable {
            name,
            columns,
            key,
            key_deferrable: false,
            copy_lsn: SourceLsn::ZERO,
            has_triggers: false,
        }
    }

    /// Both databases answer the same; gives the answer.
    async fn same(&self, query: &str) -> Vec<String> {
        let source = answer(&self.source, query).await;
        assert_eq!(source, answer(&self.target, query).await, "{query}");
        source
    }

    /// Follows the transactions, and compares the table in the end.
    async fn check(&self, table: &str, transactions: &[&str]) -> Followed {
        let followed = self.follow(transactions).await;
        assert_eq!(followed.error, None, "{transactions:?}");
        self.same(&format!("SELECT t FROM {table} t ORDER BY t::text")).await;
        followed
    }
}

/// The type that the source announced: what the planner refuses must be refused by the server, too.
fn type_of(relation: &Relation, column: &str) -> TargetType {
    let announced = relation.columns.iter().find(|announced| announced.name == column);
    let (oid, modifier) =
        announced.map_or((Oid::new(25), -1), |column| (column.type_oid, column.type_modifier));
    let name = announced.and_then(|column| column.type_name.clone());
    let name = name.unwrap_or_else(|| QualifiedName::new("pg_catalog", "text"));
    TargetType { oid, name, modifier, base: None }
}

impl Followed {
    /// The statements, with what they are told by at their start, each once and in order.
    fn forms(&self, starts: &[&'static str]) -> Vec<&'static str> {
        let form = |step: &Step| {
            let sql = step.statement.sql.as_str();
            *starts.iter().find(|start| sql.starts_with(**start)).unwrap_or_else(|| unreachable!("{sql}"))
        };
        self.steps.iter().map(form).collect()
    }
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| unreachable!("{sql}: {error:?}"));
}

async fn answer(client: &Client, query: &str) -> Vec<String> {
    let messages =
        client.simple_query(query).await.unwrap_or_else(|error| unreachable!("{query}: {error:?}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

const TYPES: &str = "CREATE TYPE public.mood AS ENUM ('sad', 'Ok', 'very happy');
    CREATE TYPE public.pair AS (a int, b text);
    CREATE DOMAIN public.short AS varchar(5) CHECK (value <> 'bad');
    CREATE DOMAIN public.pairs AS public.pair[]";

/// Types with three values each: the first two are different, and where it is possible they are equal or look alike.
const VALUES: &[(&str, [&str; 3])] = &[
    ("bool", ["true", "false", "true"]),
    ("int2", ["1", "-32768", "32767"]),
    ("int8", ["1", "-9223372036854775808", "0"]),
    ("numeric", ["1.00", "1.0", "'NaN'"]),
    ("numeric(10,2)", ["1.5", "2", "'NaN'"]),
    ("float4", ["0.1", "'-0'", "'NaN'"]),
    ("float8", ["0.1::float8 + 0.2", "0.3", "'-Infinity'"]),
    ("text", ["''", "' '", "E'a\\\\b\\'\\n'"]),
    ("varchar(5)", ["'a'", "'a '", "'äöüß€'"]),
    ("char(5)", ["'a'", "'b'", "''"]),
    ("\"char\"", ["'a'", "'b'", "''"]),
    ("name", ["'a'", "'b'", "''"]),
    ("bytea", ["'\\x00ff'", "''", "'\\x5c'"]),
    ("date", ["'2024-02-29'", "'0044-03-15 BC'", "'infinity'"]),
    ("timestamptz", ["'2024-02-29 12:00:00.000001+02'", "'-infinity'", "'0001-01-01 BC'"]),
    ("time(3)", ["'23:59:59.999'", "'24:00:00'", "'00:00'"]),
    ("timetz", ["'12:00+01'", "'11:00+00'", "'00:00+14:59'"]),
    ("interval", ["'1 month'", "'30 days'", "'-1 year 2 days -03:04:05.6'"]),
    ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'", "NULL"]),
    ("inet", ["'10.0.0.1'", "'10.0.0.1/24'", "'::1'"]),
    ("cidr", ["'10.0.0.0/8'", "'10.0.0.0/9'", "'::/0'"]),
    ("macaddr", ["'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'", "NULL"]),
    ("bit(3)", ["B'101'", "B'000'", "NULL"]),
    ("varbit", ["B'1'", "B'10'", "B''"]),
    ("text[]", ["'{}'", "'{NULL,\"NULL\",\"a,b\"}'", "'[2:3]={a,b}'"]),
    ("int[]", ["'{{1,2},{3,4}}'", "'{1}'", "NULL"]),
    ("int4range", ["'[1,5)'", "'empty'", "'(,)'"]),
    ("jsonb", ["'{\"a\": 1.0}'", "'null'", "'\"\"'"]),
    ("public.mood", ["'very happy'", "'Ok'", "NULL"]),
    ("public.short", ["'a'", "'abcde'", "NULL"]),
    ("oid", ["1", "4294967295", "0"]),
    ("pg_lsn", ["'16/B374D848'", "'0/0'", "NULL"]),
    ("tsvector", ["'a:1 b:2A'", "''", "NULL"]),
];

/// Types that no index can identify rows by, or that Walferry cannot compare in a key.
const MORE_VALUES: &[(&str, [&str; 3])] = &[
    ("json", ["'{\"a\":1}'", "'{\"a\": 1}'", "'null'"]),
    ("point", ["'(1,2)'", "'(1,2.0000001)'", "NULL"]),
    ("box", ["'(1,1),(0,0)'", "'(2,0.5),(0,0)'", "NULL"]),
    // A row of NULLs is not NULL, though IS NULL says so.
    ("public.pair", ["(NULL,NULL)", "(1,'x, \"y\"')", "NULL"]),
    ("public.pairs", ["ARRAY[(1,'a')::public.pair]", "'{}'", "NULL"]),
];

#[tokio::test]
async fn keys_of_every_type() {
    let world = World::start().await;
    world.both(TYPES).await;
    for (type_, [a, b, c]) in VALUES {
        eprintln!("{type_}");
        world.both(&format!("CREATE TABLE public.t (k {type_} PRIMARY KEY, v {type_})")).await;
        let insert = format!("INSERT INTO public.t VALUES ({a}, {a}), ({b}, NULL)");
        let update = format!("UPDATE public.t SET v = {b} WHERE k = ({a})::{type_}");
        let change = format!("DELETE FROM public.t WHERE k = ({b})::{type_}; UPDATE public.t SET k = {b}");
        let delete = "DELETE FROM public.t";
        let followed = if world.distinct(type_, a, b).await {
            world.check("public.t", &[&insert, &update, &change, delete]).await
        } else {
            // Equal, though they do not look alike: one row alone, which changes from one form to the other.
            let insert = format!("INSERT INTO public.t VALUES ({a}, {c})");
            let change = format!("UPDATE public.t SET k = {b}");
            world.check("public.t", &[&insert, &update, &change, delete]).await
        };
        assert!(followed.steps.len() >= 4, "{type_}");
        world.both("DROP TABLE public.t").await;
    }
}

impl World {
    async fn distinct(&self, type_: &str, a: &str, b: &str) -> bool {
        answer(&self.source, &format!("SELECT ({a})::{type_} <> ({b})::{type_}")).await == ["t"]
    }
}

#[tokio::test]
async fn whole_rows_of_every_type() {
    let world = World::start().await;
    world.both(TYPES).await;
    for (type_, [a, b, c]) in VALUES.iter().chain(MORE_VALUES) {
        eprintln!("{type_}");
        world
            .both(&format!(
                "CREATE TABLE public.t (v {type_}, n int); ALTER TABLE public.t REPLICA IDENTITY FULL"
            ))
            .await;
        let insert = format!(
            "INSERT INTO public.t VALUES ({a}, 1), ({a}, 1), ({a}, 1), ({b}, 1), ({c}, 1), (NULL, 1), (NULL, NULL)"
        );
        // One of several equal rows, and each that is not.
        let one = "DELETE FROM public.t WHERE ctid = (SELECT min(ctid) FROM public.t)";
        let each = "UPDATE public.t SET n = n + 1";
        let value = format!("UPDATE public.t SET v = {b} WHERE v IS NOT DISTINCT FROM NULL");
        let followed = world.check("public.t", &[&insert, one]).await;
        assert_eq!(followed.steps.len(), 8, "{type_}");
        assert_eq!(world.same("SELECT count(*) FROM public.t").await, ["6"]);
        world.check("public.t", &[each, one, &value, each]).await;
        world.check("public.t", &["DELETE FROM public.t"]).await;
        world.both("DROP TABLE public.t").await;
    }
}

#[tokio::test]
async fn tables_of_every_kind() {
    let world = World::start().await;
    identities(&world).await;
    other_columns(&world).await;
    toast(&world).await;
    modifiers(&world).await;
    inheritance_and_names(&world).await;
    truncates(&world).await;
    extension(&world).await;
    deferrable(&world).await;
    collation(&world).await;
    other_text(&world).await;
}

/// Random statements over a table with a key and one whose rows are not even different. `SEED` replays one.
#[tokio::test]
async fn random_histories() {
    let seed = std::env::var("SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    eprintln!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::start().await;
    world
        .both(
            "CREATE TABLE public.keyed (id int GENERATED ALWAYS AS IDENTITY, k int, a text, b text, n int, PRIMARY KEY (id, k));
             CREATE TABLE public.loose (id int, k int, a text, b text, n int);
             ALTER TABLE public.loose REPLICA IDENTITY FULL;
             ALTER TABLE public.keyed ALTER a SET STORAGE EXTERNAL; ALTER TABLE public.loose ALTER a SET STORAGE EXTERNAL",
        )
        .await;
    for _ in 0..25 {
        let transactions: Vec<String> = (0..rng.random_range(1..6))
            .map(|_| {
                let statements: Vec<String> =
                    (0..rng.random_range(1..5)).map(|_| random_statement(&mut rng)).collect();
                format!("BEGIN; {}; COMMIT", statements.join("; "))
            })
            .collect();
        let transactions: Vec<&str> = transactions.iter().map(String::as_str).collect();
        world.check("public.keyed", &transactions).await;
        world.same("SELECT t FROM public.loose t ORDER BY t::text").await;
    }
}

fn random_statement(rng: &mut StdRng) -> String {
    let table = ["keyed", "loose"][rng.random_range(0..2)];
    let value = |rng: &mut StdRng| match rng.random_range(0..5) {
        0 => "NULL".to_owned(),
        1 => "''".to_owned(),
        2 => format!("repeat('{}', 5000)", rng.random_range(0..3)),
        n => format!("'{n}'"),
    };
    let condition = format!("k % {} = {}", rng.random_range(1..4), rng.random_range(0..2));
    let (a, b, n) = (value(rng), value(rng), rng.random_range(0..3));
    match rng.random_range(0..20) {
        0 => format!("TRUNCATE public.{table}"),
        1..=6 => format!(
            "INSERT INTO public.{table} (k, a, b, n) SELECT g % 3, {a}, {b}, {n} FROM generate_series(1, {}) g",
            rng.random_range(1..5)
        ),
        7..=8 => format!("DELETE FROM public.{table} WHERE {condition} AND n = {n}"),
        9 => format!(
            "DELETE FROM public.{table} WHERE ctid IN (SELECT ctid FROM public.{table} WHERE {condition} LIMIT 1)"
        ),
        10..=12 => format!("UPDATE public.{table} SET a = {a} WHERE {condition}"),
        13..=14 => format!("UPDATE public.{table} SET b = {b}, n = {n} WHERE {condition}"),
        15 => format!("UPDATE public.{table} SET id = DEFAULT, b = {b} WHERE {condition}"),
        16..=17 => format!("UPDATE public.{table} SET k = k + 1 WHERE {condition}"),
        _ => format!("UPDATE public.{table} SET n = n + 1"),
    }
}

const INSERT: &str = "INSERT INTO";
const UPDATE: &str = "UPDATE ONLY";
const TOUCH: &str = "SELECT FROM ONLY";
const DELETE: &str = "DELETE FROM ONLY";
const REPLACE: &str = "WITH old AS (DELETE FROM ONLY";
const STARTS: &[&str] = &[INSERT, UPDATE, TOUCH, DELETE, REPLACE];

/// GENERATED ALWAYS AS IDENTITY in the key, outside of it, and with the whole old row.
async fn identities(world: &World) {
    for (key, identity, expected) in [
        ("id", "DEFAULT", [UPDATE, REPLACE]),
        ("k", "DEFAULT", [REPLACE, REPLACE]),
        ("k", "FULL", [UPDATE, REPLACE]),
        ("", "FULL", [UPDATE, REPLACE]),
    ] {
        let primary = if key.is_empty() { String::new() } else { format!(", PRIMARY KEY ({key})") };
        world
            .both(&format!(
                "CREATE TABLE public.t (id int GENERATED ALWAYS AS IDENTITY, k text, big text,
                     twice int GENERATED ALWAYS AS (length(k) * 2) STORED{primary});
                 ALTER TABLE public.t ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY {identity}"
            ))
            .await;
        run(&world.target, "ALTER TABLE public.t ADD only_here int DEFAULT 5").await;
        let insert = "INSERT INTO public.t (k, big) VALUES ('a', repeat('x', 100000)), ('b', NULL)";
        let change = if key == "id" { "big = ''" } else { "k = k" };
        let update = format!("UPDATE public.t SET {change} WHERE k = 'b'");
        // UPDATE can only give it its next value.
        let next = "UPDATE public.t SET id = DEFAULT WHERE k = 'a'";
        let followed = world.follow(&[insert, &update, next]).await;
        assert_eq!(followed.error, None);
        let forms = followed.forms(STARTS);
        assert_eq!(forms, [&[INSERT, INSERT], &expected[..]].concat(), "key {key:?}, identity {identity}");
        let rows = "SELECT (id, k, md5(big), twice) FROM public.t ORDER BY 1";
        assert_eq!(world.same(rows).await.len(), 2);
        let only_here = "SELECT DISTINCT only_here FROM public.t";
        assert_eq!(answer(&world.target, only_here).await, ["5"]);
        // What only the target has is kept when the row is replaced.
        run(&world.target, "UPDATE public.t SET only_here = 7").await;
        world.follow(&["UPDATE public.t SET id = DEFAULT, k = 'c' WHERE k = 'b'"]).await;
        world.same(rows).await;
        assert_eq!(answer(&world.target, only_here).await, ["7"]);
        world.both("DROP TABLE public.t").await;
    }
}

/// Another order, columns of the target's own, no column at all, nothing but the key.
async fn other_columns(world: &World) {
    run(&world.source, "CREATE TABLE public.t (a text, k2 int, b text, k1 int, PRIMARY KEY (k1, k2))").await;
    run(
        &world.target,
        "CREATE TABLE public.t (more text DEFAULT 'm', k1 int, b text, k2 int, a text, PRIMARY KEY (k2, k1),
             c text GENERATED ALWAYS AS (a || b) STORED, n int GENERATED BY DEFAULT AS IDENTITY)",
    )
    .await;
    let followed = world
        .follow(&[
            "INSERT INTO public.t VALUES ('a', 1, 'b', 2), ('c', 2, NULL, 1)",
            "UPDATE public.t SET a = b, b = a; UPDATE public.t SET k1 = 7, a = 'z' WHERE k2 = 2",
            "DELETE FROM public.t WHERE k2 = 1",
        ])
        .await;
    assert_eq!(followed.error, None);
    world.same("SELECT (a, k2, b, k1) FROM public.t ORDER BY 1").await;
    assert_eq!(answer(&world.target, "SELECT (more, c, n) FROM public.t").await, ["(m,zc,2)"]);
    world.both("DROP TABLE public.t").await;

    world.both("CREATE TABLE public.t (id int PRIMARY KEY)").await;
    let changes =
        ["INSERT INTO public.t VALUES (1)", "UPDATE public.t SET id = id", "UPDATE public.t SET id = 2"];
    let followed = world.check("public.t", &changes).await;
    assert_eq!(followed.forms(STARTS), [INSERT, TOUCH, UPDATE]);
    world.both("DROP TABLE public.t; CREATE TABLE public.t ()").await;
    world.follow(&["INSERT INTO public.t DEFAULT VALUES"]).await;
    assert_eq!(world.same("SELECT count(*) FROM public.t").await, ["1"]);
    world.both("DROP TABLE public.t").await;
}

async fn toast(world: &World) {
    world
        .both(
            "CREATE TABLE public.t (id int PRIMARY KEY, a text, b text, n int);
             CREATE TABLE public.k (k text PRIMARY KEY, n int);
             ALTER TABLE public.t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
             ALTER TABLE public.k ALTER k SET STORAGE EXTERNAL",
        )
        .await;
    let followed = world
        .check(
            "public.t",
            &[
                "INSERT INTO public.t VALUES (1, repeat('a', 10000), repeat('b', 10000), 1), (2, NULL, '', NULL)",
                "UPDATE public.t SET n = 2",
                "UPDATE public.t SET a = repeat('c', 10000)",
                "UPDATE public.t SET b = NULL, id = id + 10",
                "UPDATE public.t SET id = id",
            ],
        )
        .await;
    let forms: HashSet<u64> = followed.steps.iter().map(|step| step.statement.id).collect();
    assert!(forms.len() >= 5, "{forms:?}");
    // The largest key that an index takes is TOASTed all the same.
    let insert = "INSERT INTO public.k VALUES (repeat('k', 2500), 1)";
    let changes =
        [insert, "UPDATE public.k SET n = 2", "UPDATE public.k SET k = 'small'", "DELETE FROM public.k"];
    world.check("public.k", &changes).await;
    world.both("DROP TABLE public.t, public.k").await;
}

/// A value that is too long for the target is an error, not a shorter value.
async fn modifiers(world: &World) {
    for (wide, narrow, long, code) in [
        ("varchar(9)", "varchar(2)", "'abc'", "22001"),
        ("char(9)", "char(2)", "'abc'", "22001"),
        ("bit(9)", "bit(2)", "B'101010101'", "22026"),
        ("varbit(9)", "varbit(2)", "B'101'", "22001"),
        ("numeric(9,2)", "numeric(3,2)", "100", "22003"),
    ] {
        for (key, update) in [("GENERATED ALWAYS AS IDENTITY", "id = DEFAULT"), ("DEFAULT 1", "id = id")] {
            let table = |type_| format!("CREATE TABLE public.t (id int {key} PRIMARY KEY, v {type_})");
            let (short, long_insert) = (
                "INSERT INTO public.t VALUES (DEFAULT, NULL)",
                format!("INSERT INTO public.t (v) VALUES ({long})"),
            );
            let long_update = format!("UPDATE public.t SET v = {long}, {update}");
            run(&world.source, &table(wide)).await;
            run(&world.target, &table(narrow)).await;
            let followed = world.follow(&[&long_insert]).await;
            assert_eq!(followed.error.map(|(code, _)| code).as_deref(), Some(code), "{wide} {key}");
            run(&world.source, "TRUNCATE public.t").await;
            let followed = world.follow(&[short, &long_update]).await;
            assert_eq!(followed.steps.len(), 1);
            assert_eq!(followed.error.map(|(code, _)| code).as_deref(), Some(code), "{wide} {key}");
            world.both("DROP TABLE public.t").await;
        }
    }
}

async fn inheritance_and_names(world: &World) {
    world
        .both(
            "CREATE SCHEMA \"My schema\"; CREATE TABLE \"My schema\".\"Tä\"\"b;le\" (\"Id\" int PRIMARY KEY, \"select\" text, größe text);
             CREATE TABLE public.parent (id int PRIMARY KEY, v text);
             CREATE TABLE public.child (PRIMARY KEY (id)) INHERITS (public.parent);
             CREATE TABLE public.same (id int, v text); CREATE TABLE public.same_child () INHERITS (public.same);
             ALTER TABLE public.same REPLICA IDENTITY FULL; ALTER TABLE public.same_child REPLICA IDENTITY FULL",
        )
        .await;
    let odd = "\"My schema\".\"Tä\"\"b;le\"";
    world
        .check(
            odd,
            &[
                &format!("INSERT INTO {odd} VALUES (1, 'a', 'b'), (2, 'c', 'd')"),
                &format!("UPDATE {odd} SET größe = 'x'; UPDATE {odd} SET \"Id\" = 3 WHERE \"Id\" = 2"),
                &format!("DELETE FROM {odd} WHERE \"Id\" = 1"),
            ],
        )
        .await;
    // The same keys and rows in parent and child.
    for (parent, child) in [("public.parent", "public.child"), ("public.same", "public.same_child")] {
        let insert = format!(
            "INSERT INTO {parent} VALUES (1, 'a'), (2, 'b'); INSERT INTO {child} VALUES (1, 'a'), (2, 'b')"
        );
        let update =
            format!("UPDATE ONLY {parent} SET v = 'x' WHERE id = 1; UPDATE {child} SET v = 'y' WHERE id = 2");
        let delete = format!("DELETE FROM ONLY {parent} WHERE id = 2; DELETE FROM {child} WHERE id = 1");
        world.follow(&[&insert, &update, &delete]).await;
        let rows = world.same(&format!("SELECT (tableoid::regclass, t.*) FROM {parent} t ORDER BY 1")).await;
        assert_eq!(rows.len(), 2, "{rows:?}");
    }
}

async fn truncates(world: &World) {
    world
        .both(
            "CREATE TABLE public.a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
             CREATE TABLE public.b (a int REFERENCES public.a, n int PRIMARY KEY);
             CREATE TABLE public.c (id int PRIMARY KEY);
             INSERT INTO public.a SELECT FROM generate_series(1, 3); INSERT INTO public.b VALUES (1, 1);
             INSERT INTO public.c VALUES (1)",
        )
        .await;
    let counts = "SELECT (SELECT count(*) FROM public.a) || ' ' || (SELECT count(*) FROM public.b) || ' ' ||
        (SELECT count(*) FROM public.c) || ' ' || (SELECT last_value FROM public.a_id_seq)";
    world.follow(&["TRUNCATE public.c"]).await;
    assert_eq!(
        world.same(counts).await,
        ["1 0 3".split(' ').rev().collect::<Vec<_>>().join(" ")].map(|_| "3 1 0 3".to_owned())
    );
    // CASCADE reached the second table, which the stream names too.
    let followed = world.follow(&["TRUNCATE public.a RESTART IDENTITY CASCADE"]).await;
    assert_eq!((followed.error, followed.steps.len()), (None, 1));
    assert_eq!(world.same(counts).await, ["0 0 0 1"]);
    world.both("DROP TABLE public.a, public.b, public.c").await;
}

/// An extension's equality is found though its schema is not on the search path.
async fn extension(world: &World) {
    let available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'";
    if answer(&world.source, available).await != ["1"] {
        eprintln!("citext is not available here");
        return;
    }
    world
        .both("CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TABLE public.t (k ext.citext PRIMARY KEY, v ext.citext)")
        .await;
    // The old key comes along as it was written: here it was written otherwise on the target.
    let insert = "INSERT INTO public.t VALUES ('Abc', 'x'), ('D', 'y')";
    world.check("public.t", &[insert, "UPDATE public.t SET v = 'Y'"]).await;
    run(&world.target, "UPDATE public.t SET k = upper(k::text)::ext.citext").await;
    world.check("public.t", &["UPDATE public.t SET k = lower(k::text)::ext.citext"]).await;
    let followed = world.check("public.t", &["DELETE FROM public.t"]).await;
    assert!(followed.steps[0].statement.sql.as_str().contains(r#"OPERATOR("ext".=)"#));
    world.both("DROP TABLE public.t").await;
}

/// Two rows swap what must be unique by the end of the statement: row by row it is not, in between.
async fn deferrable(world: &World) {
    world.both("CREATE TABLE public.t (id int PRIMARY KEY, u int UNIQUE DEFERRABLE)").await;
    let swap = "UPDATE public.t SET u = 3 - u";
    world.check("public.t", &["INSERT INTO public.t VALUES (1, 1), (2, 2)", swap]).await;
    world.both("DROP TABLE public.t").await;
}

/// Rows that are equal only to a collation are not the same, and a key that is equal only to its collation is.
async fn collation(world: &World) {
    let available = "SELECT count(*) > 0 FROM pg_collation WHERE collprovider = 'i'";
    if answer(&world.source, available).await != ["t"] {
        eprintln!("ICU is not available here");
        return;
    }
    world
        .both(
            "CREATE COLLATION public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE public.loose (v text COLLATE public.ci); ALTER TABLE public.loose REPLICA IDENTITY FULL;
             CREATE TABLE public.keyed (k text COLLATE public.ci PRIMARY KEY, n int)",
        )
        .await;
    let delete = "DELETE FROM public.loose WHERE v COLLATE \"C\" = 'A'";
    world.check("public.loose", &["INSERT INTO public.loose VALUES ('a'), ('A'), ('a')", delete]).await;
    world.check("public.keyed", &["INSERT INTO public.keyed VALUES ('a', 1)"]).await;
    run(&world.target, "UPDATE public.keyed SET k = 'A'").await;
    world
        .check("public.keyed", &["UPDATE public.keyed SET k = 'Á', n = 2", "DELETE FROM public.keyed"])
        .await;
    world.both("DROP TABLE public.loose, public.keyed").await;
}

/// Whole rows are found though the target prints their values otherwise than the source, as versions do: those before
/// 12 print floating point with all digits.
async fn other_text(world: &World) {
    world
        .both(
            "CREATE TABLE public.printed (f float8, r real, p point, a float8[]);
             ALTER TABLE public.printed REPLICA IDENTITY FULL",
        )
        .await;
    run(&world.target, "SET extra_float_digits = 0").await;
    let insert = "INSERT INTO public.printed SELECT n + 0.1 + 0.2, n + 0.7, point(n + 0.1 + 0.2, n), ARRAY[n + 0.1 + 0.2, NULL]
        FROM (VALUES (0::float8), (1)) v (n)";
    let update = "UPDATE public.printed SET r = r + 1";
    let delete = "DELETE FROM public.printed WHERE f < 1";
    let followed = world.follow(&[insert, update, delete]).await;
    assert_eq!(followed.steps.len(), 5, "{:?}", followed.error);
    run(&world.target, "SET extra_float_digits = 3").await;
    assert_eq!(world.same("SELECT f, r FROM public.printed").await.len(), 1);
}
