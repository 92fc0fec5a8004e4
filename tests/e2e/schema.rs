//! The schema, object by object: every kind that `pg_dump` writes, under awkward names, with all that hangs on it.

use std::collections::BTreeSet;

use tokio::time::{sleep, timeout};

use super::harness::{DATABASE, PATIENCE, POLL, Pair, wait_for};

/// Kinds of objects as an archive of `pg_dump` names them, and what makes one. `{n}` is an awkward name in quotes, which
/// every object has; `COMMENT` and `GRANT` say the object that gets one.
const KINDS: [(&str, &str); 39] = [
    ("SCHEMA", "COMMENT SCHEMA {n}; GRANT USAGE ON SCHEMA {n}"),
    ("TYPE", "CREATE TYPE {n}.enum AS ENUM ('a', 'FK CONSTRAINT'); COMMENT TYPE {n}.enum; GRANT USAGE ON TYPE {n}.enum"),
    ("TYPE", "CREATE TYPE {n}.composite AS (a int, {n} text); COMMENT TYPE {n}.composite; COMMENT COLUMN {n}.composite.{n}"),
    ("TYPE", "CREATE TYPE {n}.ranged AS RANGE (SUBTYPE = float8)"),
    ("DOMAIN", "CREATE DOMAIN {n}.dom AS int CONSTRAINT {n} CHECK (VALUE > 0); COMMENT DOMAIN {n}.dom;
                COMMENT CONSTRAINT {n} ON DOMAIN {n}.dom; GRANT USAGE ON TYPE {n}.dom"),
    ("FUNCTION", "CREATE FUNCTION {n}.{n}(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
                  COMMENT FUNCTION {n}.{n}(int); GRANT EXECUTE ON FUNCTION {n}.{n}(int)"),
    ("FUNCTION", "CREATE FUNCTION {n}.odd_body() RETURNS text LANGUAGE sql AS $a$ SELECT '
--
-- TOC entry 215 (class 1259 OID 16390)
-- Name: x; Type: TABLE; Schema: public; Owner: -
--
\\restrict x
SET statement_timeout = 0;' $a$"),
    ("FUNCTION", "CREATE FUNCTION {n}.fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"),
    ("PROCEDURE", "CREATE PROCEDURE {n}.{n}() LANGUAGE sql AS 'SELECT 1'; COMMENT PROCEDURE {n}.{n}();
                   GRANT EXECUTE ON PROCEDURE {n}.{n}()"),
    ("AGGREGATE", "CREATE AGGREGATE {n}.{n}(text) (SFUNC = textcat, STYPE = text); COMMENT AGGREGATE {n}.{n}(text)"),
    ("OPERATOR", "CREATE FUNCTION {n}.op(text, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
                  CREATE OPERATOR {n}.### (FUNCTION = {n}.op, LEFTARG = text, RIGHTARG = int);
                  COMMENT OPERATOR {n}.### (text, int)"),
    ("CAST", "CREATE FUNCTION {n}.as_int({n}.composite) RETURNS int LANGUAGE sql AS 'SELECT 1';
              CREATE CAST ({n}.composite AS int) WITH FUNCTION {n}.as_int({n}.composite);
              COMMENT CAST ({n}.composite AS int)"),
    ("COLLATION", "CREATE COLLATION {n}.{n} FROM \"C\"; COMMENT COLLATION {n}.{n}"),
    ("CONVERSION", "CREATE CONVERSION {n}.{n} FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8; COMMENT CONVERSION {n}.{n}"),
    ("TEXT SEARCH DICTIONARY", "CREATE TEXT SEARCH DICTIONARY {n}.{n} (TEMPLATE = simple); COMMENT TEXT SEARCH DICTIONARY {n}.{n}"),
    ("TEXT SEARCH CONFIGURATION", "CREATE TEXT SEARCH CONFIGURATION {n}.{n} (COPY = simple); COMMENT TEXT SEARCH CONFIGURATION {n}.{n}"),
    ("SEQUENCE", "CREATE SEQUENCE {n}.seq; COMMENT SEQUENCE {n}.seq; GRANT USAGE ON SEQUENCE {n}.seq"),
    ("TABLE", "CREATE TABLE {n}.{n} (id serial, {n} text DEFAULT 'FK CONSTRAINT', no int NOT NULL, r int4range,
                   total int GENERATED ALWAYS AS (no * 2) STORED, kind {n}.enum, d {n}.dom, vec tsvector);
               INSERT INTO {n}.{n} (no, {n}) SELECT g, g FROM generate_series(1, 5) g;
               COMMENT TABLE {n}.{n}; COMMENT COLUMN {n}.{n}.{n}; GRANT SELECT ON {n}.{n}; GRANT UPDATE ({n}) ON {n}.{n}"),
    ("DEFAULT", "ALTER TABLE {n}.{n} ALTER no SET DEFAULT {n}.{n}(7)"),
    ("CONSTRAINT", "ALTER TABLE {n}.{n} ADD CONSTRAINT prim PRIMARY KEY (no); COMMENT CONSTRAINT prim ON {n}.{n}"),
    ("CONSTRAINT", "ALTER TABLE {n}.{n} ADD CONSTRAINT uniq UNIQUE (id) DEFERRABLE; COMMENT CONSTRAINT uniq ON {n}.{n};
                    COMMENT INDEX {n}.uniq"),
    ("CONSTRAINT", "ALTER TABLE {n}.{n} ADD CONSTRAINT excl EXCLUDE USING gist (r WITH &&); COMMENT CONSTRAINT excl ON {n}.{n}"),
    ("CONSTRAINT", "ALTER TABLE {n}.{n} ADD CONSTRAINT checked CHECK (no > 0); COMMENT CONSTRAINT checked ON {n}.{n}"),
    ("CHECK CONSTRAINT", "ALTER TABLE {n}.{n} ADD CONSTRAINT later CHECK (no < 4) NOT VALID; COMMENT CONSTRAINT later ON {n}.{n}"),
    ("INDEX", "CREATE INDEX index ON {n}.{n} ((no + 1), {n}); COMMENT INDEX {n}.index; ALTER TABLE {n}.{n} CLUSTER ON index;
               ALTER INDEX {n}.index ALTER COLUMN 1 SET STATISTICS 500"),
    ("INDEX", "CREATE UNIQUE INDEX identity ON {n}.{n} (no); ALTER TABLE {n}.{n} REPLICA IDENTITY USING INDEX identity"),
    ("STATISTICS", "CREATE STATISTICS {n}.{n} ON no, {n} FROM {n}.{n}; COMMENT STATISTICS {n}.{n};
                    ALTER STATISTICS {n}.{n} SET STATISTICS 7"),
    ("FK CONSTRAINT", "CREATE TABLE {n}.child (id int PRIMARY KEY, no int); INSERT INTO {n}.child VALUES (1, 1);
                       ALTER TABLE {n}.child ADD CONSTRAINT {n} FOREIGN KEY (no) REFERENCES {n}.{n} (no);
                       COMMENT CONSTRAINT {n} ON {n}.child"),
    ("TABLE ATTACH", "CREATE TABLE {n}.parted (a int, b int) PARTITION BY LIST (a); COMMENT TABLE {n}.parted;
                      CREATE TABLE {n}.\"part ONE\" PARTITION OF {n}.parted FOR VALUES IN (1);
                      COMMENT TABLE {n}.\"part ONE\"; INSERT INTO {n}.parted VALUES (1, 1)"),
    ("INDEX ATTACH", "ALTER TABLE {n}.parted ADD CONSTRAINT \"parted INDEX\" PRIMARY KEY (a, b);
                      CREATE INDEX \"B of parted\" ON {n}.parted (b); COMMENT INDEX {n}.\"B of parted\";
                      ALTER TABLE {n}.parted ADD CONSTRAINT \"parted FK\" FOREIGN KEY (b) REFERENCES {n}.child (id);
                      COMMENT CONSTRAINT \"parted FK\" ON {n}.parted"),
    ("VIEW", "CREATE VIEW {n}.view AS SELECT * FROM {n}.{n}; COMMENT VIEW {n}.view; GRANT SELECT ON {n}.view;
              ALTER VIEW {n}.view ALTER COLUMN no SET DEFAULT 5; COMMENT COLUMN {n}.view.no;
              CREATE VIEW {n}.grouped AS SELECT no, {n} FROM {n}.{n} GROUP BY no; COMMENT VIEW {n}.grouped;
              CREATE VIEW {n}.of_grouped AS SELECT * FROM {n}.grouped"),
    ("MATERIALIZED VIEW", "CREATE MATERIALIZED VIEW {n}.mat AS SELECT no, {n} FROM {n}.{n} GROUP BY no;
                           COMMENT MATERIALIZED VIEW {n}.mat; CREATE UNIQUE INDEX ON {n}.mat (no);
                           CREATE INDEX mat_index ON {n}.mat ({n}); COMMENT INDEX {n}.mat_index; GRANT SELECT ON {n}.mat"),
    ("TRIGGER", "CREATE TRIGGER {n} BEFORE INSERT ON {n}.{n} FOR EACH ROW EXECUTE FUNCTION {n}.fire();
                 COMMENT TRIGGER {n} ON {n}.{n}; ALTER TABLE {n}.child ADD COLUMN more int;
                 CREATE TRIGGER off BEFORE INSERT ON {n}.child FOR EACH ROW EXECUTE FUNCTION {n}.fire();
                 ALTER TABLE {n}.child DISABLE TRIGGER off"),
    ("RULE", "CREATE RULE {n} AS ON DELETE TO {n}.view DO INSTEAD NOTHING; COMMENT RULE {n} ON {n}.view"),
    ("POLICY", "ALTER TABLE {n}.child ENABLE ROW LEVEL SECURITY; CREATE POLICY {n} ON {n}.child USING (true);
                COMMENT POLICY {n} ON {n}.child"),
    ("SEQUENCE OWNED BY", "ALTER SEQUENCE {n}.seq OWNED BY {n}.child.id; COMMENT COLUMN {n}.child.id"),
    ("DEFAULT ACL", "ALTER DEFAULT PRIVILEGES IN SCHEMA {n} GRANT SELECT ON TABLES TO \"Reader\""),
    ("SERVER", "CREATE SERVER {n} FOREIGN DATA WRAPPER file_fdw; COMMENT SERVER {n}; GRANT USAGE ON FOREIGN SERVER {n}"),
    ("FOREIGN TABLE", "CREATE FOREIGN TABLE {n}.far (id int, {n} text) SERVER {n} OPTIONS (filename '/nowhere');
                       COMMENT FOREIGN TABLE {n}.far; COMMENT COLUMN {n}.far.{n}; GRANT SELECT ON {n}.far"),
];

/// What hangs on others or comes with them.
const HANGING: [&str; 3] = ["COMMENT", "ACL", "ROW SECURITY"];

/// The other kinds that `pg_dump` writes, and why nothing in [`KINDS`] makes one.
const LEFT_OUT: [(&str, &[&str]); 8] = [
    ("settings of the archive's own session", &["ENCODING", "STDSTRINGS", "SEARCHPATH"]),
    (
        "rows, which are copied: not in a dump of the schema",
        &["TABLE DATA", "MATERIALIZED VIEW DATA", "SEQUENCE SET", "STATISTICS DATA"],
    ),
    (
        "large objects with their comments and grants, carried at cutover: `uncarried::large_objects`",
        &["BLOB", "BLOBS", "BLOB METADATA"],
    ),
    (
        "of the source's own replication, and left there: `--no-publications`, `--no-subscriptions`",
        &[
            "PUBLICATION",
            "PUBLICATION TABLE",
            "PUBLICATION TABLES IN SCHEMA",
            "SUBSCRIPTION",
            "SUBSCRIPTION TABLE",
        ],
    ),
    ("made before the schema: `databases`", &["DATABASE", "DATABASE PROPERTIES"]),
    ("each with its own ways: `extensions`", &["EXTENSION"]),
    (
        "a superuser's alone, which the target's user cannot be: `check` names them, or the object at which it stops",
        &[
            "ACCESS METHOD",
            "EVENT TRIGGER",
            "FOREIGN DATA WRAPPER",
            "OPERATOR CLASS",
            "OPERATOR FAMILY",
            "PROCEDURAL LANGUAGE",
            "SHELL TYPE",
            "TEXT SEARCH PARSER",
            "TEXT SEARCH TEMPLATE",
            "TRANSFORM",
        ],
    ),
    ("options of a login, or a provider that has to be loaded", &["USER MAPPING", "SECURITY LABEL"]),
];

/// Schemas that a list without quotes makes one want to read otherwise.
const NAMES: [&str; 4] = ["FK CONSTRAINT APP", "public x", "INDEX ATTACH - \"q\"", "APP"];

/// The statements that make one object of each kind in the schema `name`.
fn statements(name: &str) -> String {
    let mut text = "CREATE SCHEMA {n};\n".to_owned();
    for (_, sql) in KINDS {
        for statement in sql.split("; ").flat_map(|part| part.split(";\n")) {
            let statement = statement.trim();
            let statement = match (statement.strip_prefix("COMMENT "), statement.strip_prefix("GRANT ")) {
                (Some(object), _) => format!("COMMENT ON {object} IS 'of {{n}}'"),
                (_, Some(grant)) => format!("GRANT {grant} TO \"Reader\""),
                _ => statement.to_owned(),
            };
            text.push_str(&statement);
            text.push_str(";\n");
        }
    }
    text.replace("'of {n}'", "'it''s of'").replace("{n}", &format!("\"{}\"", name.replace('"', "\"\"")))
}

/// The definition of each object, heading and all.
async fn definitions(server: &walferry::demo::Server) -> BTreeSet<String> {
    definitions_by(server.superuser_tool("pg_dump", DATABASE)).await
}

/// The same with a `pg_dump` that is told what to read.
pub async fn definitions_by(mut pg_dump: tokio::process::Command) -> BTreeSet<String> {
    let output =
        pg_dump.args(["--schema-only", "--exclude-schema=walferry", "--no-publications"]).output().await;
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // Up to 14, it is the administrator's, and open to all.
    let public = ["SCHEMA public; Type: ACL", "public; Type: SCHEMA; Schema: -; Owner: postgres"];
    let ours = |entry: &&str| !public.iter().any(|heading| entry.starts_with(heading));
    let entries = text.split("\n--\n-- Name: ").skip(1).filter(ours);
    entries
        .map(|entry| {
            let entry = entry.split("\n--\n-- PostgreSQL database dump complete").next().unwrap().trim();
            if !entry.lines().next().is_some_and(|heading| heading.contains("; Type: ACL;")) {
                return entry.to_owned();
            }
            // Whose grant comes first says nothing.
            let mut grants: Vec<&str> = entry.lines().collect();
            grants[1..].sort_unstable();
            grants.join("\n")
        })
        .collect()
}

async fn assert_same_definitions(pair: &Pair) {
    let (source, target) = (definitions(&pair.cluster.source).await, definitions(&pair.cluster.target).await);
    let (missing, more): (Vec<_>, Vec<_>) =
        (source.difference(&target).collect(), target.difference(&source).collect());
    assert!(missing.is_empty() && more.is_empty(), "missing: {missing:#?}\nnot on the source: {more:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_with_what_hangs_on_it() {
    let pair = Pair::start().await;
    pair.source("CREATE ROLE \"Reader\"").await;
    // As an administrator does it beforehand.
    let wrapper = "CREATE EXTENSION file_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER file_fdw TO PUBLIC";
    pair.source(wrapper).await;
    pair.source("GRANT pg_read_server_files TO app_owner").await;
    pair.target(wrapper).await;
    pair.target("GRANT pg_read_server_files TO avnadmin").await;
    let owner = pair.owner().await;
    for name in NAMES {
        owner.batch_execute(&statements(name)).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    let headings = definitions(&pair.cluster.source).await;
    let kind = |entry: &String| {
        let heading = entry.lines().next().unwrap_or_default();
        let (_, kind) = heading.rsplit_once("; Type: ").unwrap_or_else(|| panic!("{entry}"));
        kind.split("; Schema: ").next().unwrap_or_default().to_owned()
    };
    let found: BTreeSet<String> = headings.iter().map(kind).filter(|kind| kind != "EXTENSION").collect();
    let made = KINDS.iter().map(|(kind, _)| *kind).chain(HANGING);
    let made: BTreeSet<String> = made.map(str::to_owned).collect();
    assert_eq!(found, made);
    let left_out: Vec<&str> = LEFT_OUT.iter().flat_map(|(_, kinds)| kinds.iter().copied()).collect();
    assert_eq!(left_out.iter().find(|kind| made.contains(**kind)), None);
    // What stays behind, and what hangs on it.
    pair.source(
        "CREATE FUNCTION told() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
         ALTER FUNCTION told() OWNER TO app_owner; CREATE EVENT TRIGGER told ON sql_drop EXECUTE FUNCTION told();
         COMMENT ON EVENT TRIGGER told IS 'stays behind'; COMMENT ON DATABASE defaultdb IS 'of the source'",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
    pair.source("DROP EVENT TRIGGER told").await;
    assert_same_definitions(&pair).await;
}

/// A row without its parent, an index that the target refuses at first, views that the target cannot fill, or not before
/// their owner has them.
fn violations(source_port: &str) -> String {
    format!(
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);
         CREATE TABLE mended (id int PRIMARY KEY, p int CONSTRAINT mended_p REFERENCES parent);
         CREATE TABLE violated (id int PRIMARY KEY, p int CONSTRAINT violated_p REFERENCES parent);
         COMMENT ON CONSTRAINT violated_p ON violated IS 'stays';
         CREATE INDEX refused_at_first ON mended (p);
         CREATE MATERIALIZED VIEW unfillable AS SELECT 1 / (current_setting('port') = '{source_port}')::int AS one;
         CREATE MATERIALIZED VIEW reads_it AS SELECT * FROM unfillable;
         CREATE MATERIALIZED VIEW of_its_owner AS SELECT 1 / (current_user = 'app_owner')::int AS one"
    )
}

const REFUSE: &str = "
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE EXCEPTION 'not today' USING ERRCODE = 'insufficient_privilege'; END$$;
    CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION refuse()";

/// Functions that the application's search path alone lets find what they name.
const UNQUALIFIED: &str = "
    CREATE SCHEMA library; CREATE FUNCTION library.known(text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT length($1) > 0';
    CREATE FUNCTION library.is_kind(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN known($1); END';
    CREATE FUNCTION lowered(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT own_lower($1)';
    CREATE FUNCTION own_lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
    CREATE FUNCTION public.qualified(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT public.own_lower($1)';
    CREATE FUNCTION made() RETURNS text LANGUAGE sql STABLE AS 'SELECT own_lower(''M'')';
    CREATE FUNCTION written() RETURNS bigint LANGUAGE sql AS 'SELECT nextval(''counted'')'; CREATE SEQUENCE counted;
    CREATE TABLE things (id int PRIMARY KEY, kind text CHECK (library.is_kind(kind)), low text GENERATED ALWAYS AS (qualified(kind)) STORED,
        made text DEFAULT made(), written bigint DEFAULT written());
    INSERT INTO things VALUES (1, 'One'); CREATE INDEX by_lowered ON things (lowered(kind));
    CREATE EXTENSION unaccent; CREATE FUNCTION plain(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT unaccent($1)';
    CREATE INDEX by_plain ON things (plain(kind));
    CREATE FUNCTION is_word(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN own_lower($1) IS NOT NULL; END';
    CREATE DOMAIN word AS text CHECK (is_word(VALUE)); CREATE TABLE words (id int PRIMARY KEY, \"Word\" word); INSERT INTO words VALUES (1, 'a');
    CREATE FUNCTION half(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN own_half($1); END';
    CREATE FUNCTION own_half(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 / 2';
    CREATE TABLE halves (id int) PARTITION BY LIST (half(id)); CREATE TABLE half_1 PARTITION OF halves FOR VALUES IN (1);
    INSERT INTO halves VALUES (2)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_that_name_things_without_their_schema() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute("SET search_path = public, library; SET check_function_bodies = off").await.unwrap();
    owner.batch_execute(UNQUALIFIED).await.unwrap();
    let mended = [
        "library.is_kind(text) SET search_path = \"library\", \"public\";",
        "public.half(integer) SET search_path = \"public\";",
        "public.is_word(text) SET search_path = \"public\";",
        "public.lowered(text) SET search_path = \"public\";",
        "public.made() SET search_path = \"public\";",
        "public.plain(text) SET search_path = \"public\";",
        "public.written() SET search_path = \"public\";",
    ]
    .map(|rest| format!("ALTER FUNCTION {rest}"));
    let check = pair.command("check").arguments(&["--json"]).run().await;
    let report: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
    let found =
        report["findings"].as_array().unwrap().iter().find(|found| found["id"] == "source-search-path");
    let hint = found.unwrap_or_else(|| panic!("{}", check.stdout))["hint"].as_str().unwrap();
    let commands: Vec<&str> = hint.lines().filter(|line| line.starts_with("ALTER")).collect();
    assert_eq!(commands, mended);

    // Each is mended on the target alone, when it stops there: at rows, then at indexes.
    for (stopped_at, commands) in [("table", &mended[..3]), ("INDEX public.by_", &mended[3..])] {
        let mut engine = pair.migrate().start();
        let log = engine.wait_exit(5, PATIENCE).await;
        for part in [stopped_at, "42883", "SET search_path"] {
            assert!(log.contains(part), "no {part:?} in\n{log}");
        }
        pair.target(&commands.join("")).await;
    }
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    owner.batch_execute("INSERT INTO things VALUES (2, 'Two')").await.unwrap();
    engine.wait_drained(&pair).await;
    let rows = "SELECT string_agg(low, ' ' ORDER BY id) FROM things";
    assert_eq!(pair.target_value(rows).await, "one two");
    engine.terminate(0).await;
    // Or on the source: then nothing is found.
    for command in mended {
        pair.source(&command).await;
    }
    let check = pair.command("check").arguments(&["--json"]).run().await;
    assert!(!check.stdout.contains("source-search-path"), "{}", check.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rows_or_the_target_refuse() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    let port = pair.source_value("SHOW port").await;
    owner.batch_execute(&violations(&port)).await.unwrap();
    pair.source(
        "SET session_replication_role = replica; INSERT INTO mended VALUES (1, 98); INSERT INTO violated VALUES (1, 99)",
    )
    .await;
    pair.target(REFUSE).await;

    // The object is named, with what helps against what the target said.
    let mut engine = pair.migrate().start();
    let log = engine.wait_exit(5, PATIENCE).await;
    for part in ["INDEX public.refused_at_first: 42501", "grant the target's user what it lacks"] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    assert!(!log.contains("(extension, privilege, role)"), "{log}");

    owner.batch_execute("DELETE FROM mended; INSERT INTO mended VALUES (2, 1)").await.unwrap();
    pair.target("DROP EVENT TRIGGER refuse; DROP FUNCTION refuse()").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let validated = "SELECT string_agg(conname || ' ' || convalidated, ', ' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'
                     AND connamespace = 'public'::regnamespace";
    assert_eq!(pair.target_value(validated).await, "mended_p true, violated_p false");
    let log = engine.log();
    let find = "WHERE f.\"p\" IS NOT NULL AND NOT EXISTS (SELECT FROM \"public\".\"parent\" r WHERE r.\"id\" = f.\"p\")";
    for part in [
        "FK CONSTRAINT public.violated violated_p",
        "stays NOT VALID",
        find,
        "cannot be filled",
        "public.unfillable",
    ] {
        assert!(log.contains(part) || log.contains(&part.replace('"', "\\\"")), "no {part:?} in\n{log}");
    }
    assert!(!log.contains("98") || !log.contains("Key (p)"), "no row value: {log}");
    // What is printed works as it is pasted.
    let line = log.lines().find(|line| line.contains("find=") && line.contains("violated_p")).unwrap();
    let (find, then) = line.split_once("find=").unwrap().1.split_once(" then=").unwrap();
    assert_eq!(pair.target(find).await.len(), 1);
    let line = log.lines().find(|line| line.contains("cannot be filled")).unwrap();
    let refresh = &line[line.find("REFRESH MATERIALIZED VIEW").expect("what to run then")..];
    let error =
        pair.cluster.target.sql(DATABASE, refresh).await.expect_err("the cause is still there").to_string();
    assert!(!error.contains("syntax"), "{refresh}: {error}");
    let filled =
        "SELECT string_agg(matviewname || ' ' || ispopulated, ', ' ORDER BY matviewname) FROM pg_matviews";
    assert_eq!(pair.target_value(filled).await, "of_its_owner true, reads_it false, unfillable false");
    pair.assert_follows(&mut engine).await;
    // The user's rows are held to it all the same.
    let refused = pair.cluster.target.sql(DATABASE, "INSERT INTO violated VALUES (3, 97)").await;
    assert!(refused.is_err());
    owner.batch_execute("DELETE FROM violated").await.unwrap();
    engine.wait_drained(&pair).await;
    pair.target(then).await;
    assert_eq!(pair.target_value(validated).await, "mended_p true, violated_p true");
    engine.terminate(0).await;
}

const OURS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walferry%' AND pid <> pg_backend_pid()";

/// Some five locks each.
const TABLES: &str =
    "SELECT format('CREATE TABLE t%s (id serial PRIMARY KEY, body text)', i) FROM generate_series(1, 700) i";

/// One statement that takes more locks than there are: no waiting helps, and the object is named with what does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_the_target_has_no_locks_for() {
    // The server has room for so many locks for each backend that there may be, and for some hundreds more.
    let few = |options: &mut walferry::demo::ClusterOptions| {
        let settings = options.target_options.clone().setting("max_locks_per_transaction", "10");
        let settings = settings.setting("max_connections", "20").setting("max_worker_processes", "1");
        options.target_options =
            settings.setting("autovacuum_max_workers", "1").setting("max_wal_senders", "0");
    };
    let pair = Pair::with(few).await;
    let owner = pair.owner().await;
    let create = "DO $$ DECLARE branches text; BEGIN
            FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE t%s (id int)', i); END LOOP;
            SELECT string_agg(format('SELECT id FROM t%s', i), ' UNION ALL ') INTO branches FROM generate_series(1, 1000) i;
            EXECUTE 'CREATE VIEW of_all AS ' || branches; END $$";
    owner.batch_execute(create).await.unwrap();
    let mut engine = pair.migrate().start();
    let log = engine.wait_exit(5, PATIENCE * 3).await;
    for part in ["VIEW public.of_all: 53200", "on the target: raise max_locks_per_transaction"] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_tables_than_the_target_has_locks_for() {
    let few = |options: &mut walferry::demo::ClusterOptions| {
        options.target_options = options.target_options.clone().setting("max_locks_per_transaction", "10");
    };
    let pair = Pair::with(few).await;
    let owner = pair.owner().await;
    let create = owner.query(TABLES, &[]).await.unwrap();
    let create: Vec<String> = create.iter().map(|row| row.get(0)).collect();
    owner.batch_execute(&create.join(";")).await.unwrap();
    owner.batch_execute("INSERT INTO t1 DEFAULT VALUES; INSERT INTO t700 DEFAULT VALUES").await.unwrap();
    let mut engine = pair.migrate().start();
    let made = async || {
        let there = pair.target_value("SELECT to_regclass('walferry.made') IS NOT NULL").await == "t";
        there && pair.target_value("SELECT count(*) > 0 FROM walferry.made").await == "t"
    };
    let part = async {
        while !made().await {
            engine.assert_lives("a part of the schema");
            sleep(POLL).await;
        }
    };
    timeout(PATIENCE * 3, part).await.expect("a part of the schema");
    engine.kill9().await;
    // What the server has begun for it goes on for a while, and holds as many locks as one transaction may.
    let ended = async || pair.target_value(OURS).await == "0";
    wait_for("the end of the killed engine's sessions", PATIENCE, ended).await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;
    assert!(!engine.log().contains("53200 ("), "{}", engine.log());
    let twice = "SELECT count(*) FROM pg_class WHERE relkind = 'i' AND relname LIKE 't%\\_pkey%'";
    assert_eq!(pair.target_value(twice).await, "700");
    engine.terminate(0).await;
    assert_same_definitions(&pair).await;
}
