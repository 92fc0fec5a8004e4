//! Owners of the source's tables write code that will run on the target: what they get by it.

use walferry::demo::PgBinaries;
use walferry::wire::{ConnInfo, Environment, control};

use super::harness::{DATABASE, Launch, PATIENCE, Pair, wait_for};
use super::roles::{may_log_in, passwords};
use super::versions::asked_pairs;

/// Whether the owner of the source's databases may log in on the target, as its catalog has it.
const LOGIN: &str = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'app_owner'";

/// Mallory's schema, with what notes who runs it, and tries to become what he is.
const MALLORY: &str = "
    CREATE ROLE mallory LOGIN PASSWORD 'm'; GRANT mallory TO app_owner; CREATE SCHEMA m AUTHORIZATION mallory;
    SET ROLE mallory; GRANT USAGE ON SCHEMA m TO PUBLIC; CREATE TABLE m.seen (place text, who text, reads bool);
    CREATE FUNCTION m.note(place text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        DECLARE us CONSTANT bool := current_user NOT IN ('mallory', 'postgres');
        BEGIN
            RAISE LOG '% ran as %', place, current_user;
            INSERT INTO m.seen SELECT place, current_user, us AND EXISTS (SELECT FROM pg_namespace
                WHERE nspname = 'walferry' AND has_schema_privilege(oid, 'USAGE'));
            IF us THEN EXECUTE format('GRANT %I TO mallory', current_user); END IF;
        EXCEPTION WHEN OTHERS THEN NULL;
        END $$;
    CREATE FUNCTION m.f(a int, place text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(place); RETURN a; END'";

/// Who ran what of hers, but herself and superusers.
const RAN: &str =
    "SELECT coalesce(string_agg(DISTINCT concat_ws(' ', place, who, reads), ', '), '') FROM m.seen
    WHERE who NOT IN ('mallory', 'postgres') AND place <> 'check'";

/// What goes by the name of the server's own, for whoever has this schema in his path.
const SHADOWS: &str = "
    CREATE FUNCTION m.to_regclass(pg_catalog.text) RETURNS pg_catalog.regclass LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''function''); RETURN pg_catalog.to_regclass($1); END';
    CREATE FUNCTION m.hashtext(pg_catalog.text) RETURNS int LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''function''); RETURN pg_catalog.hashtext($1); END';
    CREATE FUNCTION m.pg_has_role(pg_catalog.oid, pg_catalog.oid, pg_catalog.text) RETURNS bool LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''function''); RETURN true; END';
    CREATE FUNCTION m.equal(pg_catalog.text, pg_catalog.text) RETURNS bool LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''operator''); RETURN $1 OPERATOR(pg_catalog.=) $2; END';
    CREATE FUNCTION m.equal(pg_catalog.name, pg_catalog.text) RETURNS bool LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''operator''); RETURN $1 OPERATOR(pg_catalog.=) $2; END';
    CREATE FUNCTION m.equal(pg_catalog.oid, pg_catalog.oid) RETURNS bool LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''operator''); RETURN $1 OPERATOR(pg_catalog.=) $2; END';
    CREATE OPERATOR m.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = m.equal);
    CREATE OPERATOR m.= (leftarg = pg_catalog.name, rightarg = pg_catalog.text, function = m.equal);
    CREATE OPERATOR m.= (leftarg = pg_catalog.oid, rightarg = pg_catalog.oid, function = m.equal);
    CREATE TYPE m.mine AS (a int); CREATE FUNCTION m.cast(m.mine) RETURNS pg_catalog.text LANGUAGE plpgsql AS
        'BEGIN PERFORM m.note(''cast''); RETURN 1; END';
    CREATE CAST (m.mine AS pg_catalog.text) WITH FUNCTION m.cast(m.mine) AS IMPLICIT;
    CREATE TABLE m.casts (id int PRIMARY KEY, v m.mine, w pg_catalog.text); INSERT INTO m.casts VALUES (1, '(1)', 'x');
    CREATE TYPE m.row AS (a pg_catalog.text); CREATE DOMAIN m.rows AS m.row;
    CREATE FUNCTION m.cast(pg_catalog.text, int, bool) RETURNS m.row LANGUAGE plpgsql AS
        'DECLARE r m.row; BEGIN PERFORM m.note(''cast''); r.a := $1; RETURN r; END';
    CREATE FUNCTION m.array(pg_catalog.text, int, bool) RETURNS m.row[] LANGUAGE plpgsql AS
        'DECLARE r m.row[]; BEGIN PERFORM m.note(''cast''); EXECUTE pg_catalog.format(''SELECT %L::m.row[]'', $1) INTO r;
        RETURN r; END';
    CREATE CAST (pg_catalog.text AS m.row) WITH FUNCTION m.cast(pg_catalog.text, int, bool) AS IMPLICIT;
    CREATE CAST (pg_catalog.text AS m.row[]) WITH FUNCTION m.array(pg_catalog.text, int, bool) AS IMPLICIT;
    CREATE TABLE m.of_rows (k int PRIMARY KEY, v m.row, w m.rows);
    CREATE TABLE m.of_arrays (k m.row[] PRIMARY KEY, a int, v m.row[]);
    INSERT INTO m.of_rows SELECT g, ROW(g)::m.row, ROW(g)::m.row FROM generate_series(1, 900) g;
    INSERT INTO m.of_arrays SELECT ARRAY[ROW(g)::m.row], g, ARRAY[ROW(g)::m.row] FROM generate_series(1, 900) g;
    CREATE DOMAIN m.int8 AS pg_catalog.int8 CHECK (m.f(1, 'type') > 0);
    CREATE DOMAIN m.text AS pg_catalog.text CHECK (m.f(1, 'type') > 0)";

/// Code in indexes and views runs as its owner, and what has the name of the server's own is not run at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn their_code_runs_as_them() {
    for (source, target) in asked_pairs().await {
        // Statistics of expressions.
        if source.major() < 14 {
            continue;
        }
        runs_as_them(Pair::of(source, target, |_| {}).await).await;
    }
}

async fn runs_as_them(pair: Pair) {
    pair.source(MALLORY).await;
    pair.source(&format!("SET ROLE mallory; {SHADOWS}")).await;
    pair.source(
        "SET ROLE mallory; CREATE TABLE m.t (a int PRIMARY KEY); INSERT INTO m.t SELECT generate_series(1, 9);
         CREATE INDEX by_f ON m.t (m.f(a, 'index')); CREATE STATISTICS m.of_f ON (m.f(a, 'statistics')), a FROM m.t;
         CREATE MATERIALIZED VIEW m.v AS SELECT m.f(a, 'view') FROM m.t;
         CREATE TABLE m.c (a int PRIMARY KEY, CHECK (m.f(a, 'check') > 0));
         RESET ROLE; SET ROLE app_owner; CREATE FUNCTION public.helper(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS
             'BEGIN RETURN true; END'; RESET ROLE; SET ROLE mallory;
         CREATE TABLE m.helped (a int PRIMARY KEY, CONSTRAINT rewritten CHECK (public.helper(a) AND ts_rewrite('a',
             $$SELECT 'b'::tsquery, 'c'::tsquery WHERE m.f(1, 'check') > 0$$) IS NOT NULL)); INSERT INTO m.helped VALUES (1);
         CREATE FUNCTION m.apart(int, int) RETURNS float8 IMMUTABLE LANGUAGE sql AS 'SELECT 1.0::float8';
         CREATE TYPE m.range AS RANGE (subtype = int, subtype_diff = m.apart);
         CREATE TABLE m.ranges (a int PRIMARY KEY, r m.range, CONSTRAINT far EXCLUDE USING gist (r WITH &&));
         CREATE FUNCTION m.part(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
         CREATE TABLE m.parts (a int) PARTITION BY LIST (m.part(a));
         CREATE FUNCTION m.given() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
         CREATE DOMAIN m.filled AS int DEFAULT m.given()",
    )
    .await;
    let path = "SET search_path = m, pg_catalog, public";
    pair.source(&format!("ALTER DATABASE defaultdb {path}; ALTER ROLE app_owner {path}")).await;
    pair.target(&format!("ALTER DATABASE defaultdb {path}; ALTER ROLE avnadmin {path}")).await;

    // Not even to find out what they name.
    let check = pair.command("check").arguments(&["--json"]).run().await;
    let said = [
        "target-owner-code",
        "m.f(integer,text) of mallory",
        "pg_catalog.ts_rewrite of mallory (constraint rewritten on table m.helped)",
        "m.apart(integer,integer) of mallory (index m.far)",
        "m.part(integer) of mallory (table m.parts)",
        "m.given() of mallory (type m.filled)",
        "source-search-path-untried",
        "by_f",
    ];
    check.assert(0, &said);
    let said = ["whose owners are not carried: m.f(integer,text) of mallory (", " and 1 more)"];
    pair.command("check").arguments(&["--json", "--ignore-roles", "mallory"]).run().await.assert(0, &said);
    let log = pair.cluster.source.log_tail(100_000);
    assert!(!log.contains("ran as app_owner"), "{log}");
    // It would run as the target's user, as is said above.
    pair.source("DELETE FROM m.helped").await;

    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.source("UPDATE m.casts SET w = 'y'; INSERT INTO m.casts VALUES (2, '(2)', 'z')").await;
    // In both directions, and by statements that take many rows in arrays.
    pair.source(
        "UPDATE m.of_rows SET v = ROW(k + 1), w = ROW(k + 2) WHERE k < 600; DELETE FROM m.of_rows WHERE k > 300;
         UPDATE m.of_arrays SET v = v || v WHERE a < 600; DELETE FROM m.of_arrays WHERE a > 300",
    )
    .await;
    engine.wait_drained(&pair).await;
    assert_eq!(pair.target_value(RAN).await, "");
    // Nor in what was rolled back.
    let log = pair.cluster.target.log_tail(100_000);
    assert!(!log.contains("ran as avnadmin"), "{log}");
    let changed = "SELECT concat_ws(' ', (SELECT string_agg(v::text || w::text, '' ORDER BY k) FROM m.of_rows WHERE k < 3),
                   (SELECT count(*) FROM m.of_rows), (SELECT count(*) FROM m.of_arrays WHERE v = k || k))";
    assert_eq!(pair.target_value(changed).await, "(2)(3)(3)(4) 300 300");
    let theirs = "SELECT string_agg(DISTINCT place, ' ' ORDER BY place) FROM m.seen
                  WHERE who = 'mallory' AND place <> 'check'";
    assert_eq!(pair.target_value(theirs).await, "index statistics view", "they ran at all");
    let becomes = "SELECT pg_has_role('mallory', 'avnadmin', 'MEMBER')";
    assert_eq!(pair.target_value(becomes).await, "f");
    let cutover = pair.command("cutover").run().await;
    cutover.assert(0, &["done"]);
    engine.wait_exit(0, PATIENCE).await;
    assert_eq!(pair.source_value(RAN).await, "");
    let log = pair.cluster.source.log_tail(100_000);
    assert!(!log.contains("ran as app_owner"), "{log}");
}

/// Any role that may connect to the target can take any advisory lock, and see which ones are held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_keeps_the_engine_out() {
    let pair = Pair::start().await;
    pair.target("CREATE ROLE mallory LOGIN PASSWORD 'm'").await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY)").await;
    let mallory = pair.cluster.target.uri("mallory", "m", DATABASE);
    let mallory = ConnInfo::parse(&mallory, &Environment::default()).unwrap();
    let mallory = control(&mallory, "mallory").await.unwrap();
    for name in ["walferry default", "walferry default at work", "walferry unchecked"] {
        mallory.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&name]).await.unwrap();
        mallory
            .execute("SELECT pg_advisory_lock(hashtext($1), g) FROM generate_series(1, 99) g", &[&name])
            .await
            .unwrap();
    }
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;

    // Whoever waits for its very lock gets it, and is of no matter.
    let held = "SELECT classid::int8, objid::int8 FROM pg_locks WHERE locktype = 'advisory' AND granted
                AND pid IN (SELECT pid FROM pg_stat_activity WHERE usename = 'avnadmin')";
    let held = mallory.query(held, &[]).await.unwrap();
    assert!(!held.is_empty());
    let after = tokio::spawn(async move {
        for lock in held {
            let sql = "SELECT pg_advisory_lock($1::int8::bit(32)::int, $2::int8::bit(32)::int)";
            mallory.execute(sql, &[&lock.get::<_, i64>(0), &lock.get::<_, i64>(1)]).await.unwrap();
        }
        mallory
    });
    engine.kill9().await;
    let _mallory = after.await.unwrap();
    let asked = pair.command("cutover").run().await;
    asked.assert(5, &["no engine runs this migration"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.assert_cuts_over(engine).await;
}

/// Where nothing lasts, as in a container, passwords that are made have to go somewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_without_a_home() {
    let pair = Pair::start().await;
    let homeless = |launch: Launch| launch.variable("HOME", "/nonexistent");
    let words = ["source-role-passwords", "there is no home directory", "give --passwords-file"];
    homeless(pair.command("check").arguments(&["--json"])).run().await.assert(3, &words);
    let refused = homeless(pair.migrate()).run().await;
    refused.assert(3, &["there is no home directory"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    let given = pair.migrate().arguments(&["--passwords-file", file.to_str().unwrap(), "--until", "copied"]);
    homeless(given).run().await.assert(0, &[]);
    assert_eq!(passwords(&file).len(), 1);
}

/// Takes the name of a sequence for a view while somebody who has looked the name up waits to read it: the owner's function
/// must not run as him.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_a_sequence_is_not_read_as_a_view() {
    for (source, target) in asked_pairs().await {
        becomes_a_view(Pair::of(source, target, |_| {}).await).await;
    }
}

async fn becomes_a_view(pair: Pair) {
    pair.source(
        "CREATE ROLE mallory; GRANT mallory TO app_owner; CREATE SCHEMA m AUTHORIZATION mallory; SET ROLE mallory;
         CREATE TABLE m.t (a int PRIMARY KEY); CREATE SEQUENCE m.s;
         CREATE FUNCTION m.steal() RETURNS bigint LANGUAGE plpgsql AS
             'BEGIN CREATE TABLE m.stolen AS SELECT current_user; RETURN 1; END'",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let mallory = pair.cluster.source.client(DATABASE).await.unwrap();
    mallory
        .batch_execute(
            "SET ROLE mallory; BEGIN; ALTER SEQUENCE m.s RENAME TO was;
             CREATE VIEW m.s AS SELECT m.steal() AS last_value, true AS is_called, 0 AS log_cnt;
             GRANT SELECT ON m.s TO app_owner",
        )
        .await
        .unwrap();
    let cutover = tokio::spawn(pair.command("cutover").process().output());
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'm.was'::regclass";
    let looks = pair.cluster.source.client(DATABASE).await.unwrap();
    let waits = async || mallory.query_one(waits, &[]).await.unwrap().get::<_, bool>(0);
    wait_for("somebody to read the sequence", PATIENCE, waits).await;
    mallory.batch_execute("COMMIT").await.unwrap();
    let output = cutover.await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let stolen = "SELECT count(*) FROM pg_class WHERE relname = 'stolen'";
    assert_eq!(
        looks.query_one(stolen, &[]).await.unwrap().get::<_, i64>(0),
        0,
        "mallory's function ran as ours"
    );
    // Whoever owns what is read can only have it left out.
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
}

/// Two databases; the one that is begun first has the only role that is made.
async fn two_databases(source: PgBinaries, target: PgBinaries) -> (Pair, Launch, tempfile::TempDir) {
    let pair = Pair::of(source, target, |options| {
        options.databases = ["defaultdb", "zoo"].map(str::to_owned).to_vec()
    })
    .await;
    for name in [DATABASE, "zoo"] {
        let table = "SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)";
        pair.cluster.source.sql(name, table).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    let launch = pair.migrate().arguments(&["--passwords-file", file.to_str().unwrap()]);
    (pair, launch, directory)
}

/// Nobody whom the migration made gets in before its last database is done; and then everybody does, whenever the engine is
/// killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_is_shut_until_all_is_done() {
    for (source, target) in asked_pairs().await {
        is_shut(two_databases(source, target).await).await;
    }
}

async fn is_shut((pair, launch, directory): (Pair, Launch, tempfile::TempDir)) {
    pair.source("CREATE ROLE nobody; CREATE ROLE earlier LOGIN").await;
    pair.target("CREATE ROLE earlier").await;
    let mut engine = launch.start();
    let sync = |detail: &serde_json::Value| detail["phase"] == "syncing";
    engine.wait_details("both sync", |all| all.len() == 2 && all.values().all(sync)).await;
    let password = passwords(&directory.path().join("passwords"))["app_owner"].clone();
    assert!(!may_log_in(&pair, "app_owner", &password).await, "the target is open while rows are applied");
    let shut = engine.details().await.into_values().map(|detail| detail["roles_shut"].to_string());
    assert!(shut.collect::<String>().contains("app_owner"));
    let status = pair.command("status").run().await;
    status.assert(0, &["NOLOGIN until all is done", "app_owner"]);

    // One of both alone would be of no use to its application.
    let one = pair.command("cutover").arguments(&["--database", "zoo"]).run().await;
    one.assert(
        5,
        &[
            "only when all databases of the migration are done",
            "NOLOGIN until then: app_owner",
            "--open-target",
        ],
    );
    let given_up = pair.command("cutover").arguments(&["--timeout", "1ms"]).run().await;
    given_up.assert(5, &["it took longer"]);
    assert_eq!(pair.target_value(LOGIN).await, "f", "open though the source may be written to");

    // A kill between the end and their LOGIN: whoever holds a row of it keeps the engine from that.
    let recorded = "SELECT count(*) FROM walferry.role WHERE shut";
    let mut holders = Vec::new();
    for name in [DATABASE, "zoo"] {
        let holder = pair.cluster.target.client(name).await.unwrap();
        holder.batch_execute("BEGIN; LOCK TABLE walferry.role IN EXCLUSIVE MODE").await.unwrap();
        holders.push(holder);
    }
    let cutover = tokio::spawn(pair.command("cutover").process().output());
    for name in [DATABASE, "zoo"] {
        let phase = "SELECT phase = 'done' FROM walferry.migration";
        let done = async || pair.cluster.target.sql(name, phase).await.unwrap()[0][0].as_deref() == Some("t");
        wait_for("done", PATIENCE, done).await;
    }
    engine.kill9().await;
    drop(holders);
    assert_eq!(pair.target_value(LOGIN).await, "f");
    launch.run().await.assert(0, &["the target is open", "app_owner"]);
    assert!(may_log_in(&pair, "app_owner", &password).await);
    assert_eq!(pair.target_value("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'nobody'").await, "f");
    // The command has waited for that.
    let output = cutover.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("app_owner"), "{said}");
    // It had one of them before, as a migration leaves it that is removed before its end.
    assert!(said.contains(r#"ALTER ROLE "earlier" LOGIN;"#), "{said}");
    assert_eq!(pair.target_value(recorded).await, "0");
}

/// Who wants it open has it open from then on. What is given up stays shut, and that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_is_opened_on_request() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let (pair, launch, _directory) = two_databases(binaries.clone(), binaries).await;
    let launch = launch.arguments(&["--until", "synced"]);
    launch.run().await.assert(0, &["made NOLOGIN", "app_owner"]);
    assert_eq!(pair.target_value(LOGIN).await, "f");
    launch.arguments(&["--open-target"]).run().await.assert(0, &["the target is open"]);
    assert_eq!(pair.target_value(LOGIN).await, "t");

    pair.target("ALTER ROLE app_owner NOLOGIN").await;
    for name in [DATABASE, "zoo"] {
        pair.cluster.target.sql(name, "UPDATE walferry.role SET shut = true").await.unwrap();
    }
    let given_up = pair.command("remove").run().await;
    given_up.assert(0, &["left NOLOGIN on the target", r#"ALTER ROLE "app_owner" LOGIN;"#]);
    assert_eq!(pair.target_value(LOGIN).await, "f");
}

/// What Mallory has in a database of the target that is hers: something that goes by the name of our own.
const THEIRS: &str = "
    SET ROLE mallory; CREATE TABLE public.seen (who text); GRANT INSERT ON public.seen TO PUBLIC;
    CREATE FUNCTION public.note(a text) RETURNS text LANGUAGE plpgsql AS
        'BEGIN INSERT INTO public.seen VALUES (current_user); RETURN a; END';
    CREATE SCHEMA walferry; GRANT USAGE ON SCHEMA walferry TO PUBLIC;
    CREATE TABLE walferry.forged AS SELECT text 'default' AS name, 1 AS format, text 'defaultdb' AS dbname,
        text 'PHASE' AS phase, text '' AS ended, 0::int8 AS attempt, text 'replication' AS method, text '' AS error,
        text '1' AS system_id, text 'walferry_default_0' AS slot_name, '{}'::text[] AS publications,
        now() AS started_at, now() AS updated_at;
    CREATE TABLE walferry.role AS SELECT text 'default' AS migration, text 'sleeper' AS name, true AS shut;
    GRANT ALL ON walferry.role, walferry.forged TO PUBLIC;";

/// A schema of our name is read where nobody else owns it, or anything in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_schema_of_our_name_is_not_read() {
    const AS_VIEW: &str = "CREATE VIEW walferry.migration AS SELECT public.note(name) AS name, format, dbname, phase, ended,
        attempt, method, error, system_id, slot_name, publications, started_at, updated_at FROM walferry.forged;
        GRANT SELECT ON walferry.migration TO PUBLIC";
    const AS_TABLE: &str = "ALTER TABLE walferry.forged RENAME TO migration";
    let pair = Pair::start().await;
    pair.target("CREATE ROLE mallory; CREATE ROLE sleeper").await;
    pair.target("GRANT CREATE ON DATABASE defaultdb TO mallory; GRANT CREATE ON SCHEMA public TO mallory")
        .await;
    let sql = async |database: &str, sql: &str| pair.cluster.target.sql(database, sql).await.unwrap();
    let mut theirs = vec![(DATABASE, "syncing", AS_VIEW)];
    theirs.extend([
        ("viewed", "syncing", AS_VIEW),
        ("shut", "syncing", AS_TABLE),
        ("opened", "done", AS_TABLE),
    ]);
    for (database, phase, last) in theirs {
        if database != DATABASE {
            pair.target(&format!("CREATE DATABASE {database} OWNER mallory")).await;
        }
        sql(database, &THEIRS.replace("PHASE", phase)).await;
        sql(database, &format!("SET ROLE mallory; {last}")).await;
    }
    // The schema was made by who may, and is given away: what is in it is not.
    sql("viewed", "ALTER SCHEMA walferry OWNER TO avnadmin").await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY)").await;

    let not_read = ["viewed", "shut", "opened"].map(|name| format!("database \"{name}\" of the target"));
    let mut words: Vec<&str> = not_read.iter().map(String::as_str).collect();
    words.push("\"mallory\"");
    let drop = "DROP SCHEMA walferry CASCADE;";
    let check = pair.command("check").run().await;
    check.assert(3, &[words.as_slice(), &["belongs to mallory", drop]].concat());
    pair.migrate().run().await.assert(5, &[words.as_slice(), &["belongs to mallory", drop]].concat());
    let status = pair.command("status").run().await;
    status.assert(5, &[words.as_slice(), &["no migration \"default\" has been begun"]].concat());
    for word in &not_read {
        assert_eq!(status.stderr.matches(word).count(), 1, "{}", status.stderr);
    }
    let noted = async |database: &str| sql(database, "SELECT who FROM public.seen").await;
    assert!(noted(DATABASE).await.is_empty(), "her function ran as ours");

    pair.target(&format!("{drop} DROP TABLE seen; DROP FUNCTION note")).await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.command("status").run().await.assert(0, &words);
    pair.assert_cuts_over(engine).await;
    assert_eq!(pair.target_value(LOGIN).await, "t", "a row of hers kept it shut");
    let sleeper = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'sleeper'";
    assert_eq!(pair.target_value(sleeper).await, "f", "a row of hers opened it");
    pair.assert_removes().await;
    assert!(noted("viewed").await.is_empty(), "her function ran as ours");
    for (database, phase) in [("shut", "syncing"), ("opened", "done")] {
        let row = sql(
            database,
            "SELECT phase || ended || (SELECT count(*) FROM walferry.role WHERE shut)
            FROM walferry.migration",
        )
        .await;
        assert_eq!(row, [[Some(format!("{phase}1"))]], "{database} is left as it is");
    }
}

/// The roles that the run of one database made are those of the whole migration: also when that database is done, is not of
/// the run at hand, or was removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_done_opens_the_target_too() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let (pair, launch, _directory) = two_databases(binaries.clone(), binaries).await;
    let first = launch.clone().arguments(&["--database", DATABASE, "--dump-db", DATABASE]);
    first.run().await.assert(0, &["the target is open"]);
    // As if the other one had been begun by then.
    let shut = async || {
        let shut =
            "ALTER ROLE app_owner NOLOGIN; UPDATE walferry.role SET shut = true WHERE name = 'app_owner'";
        pair.target(shut).await;
    };
    shut().await;
    pair.source("CREATE ROLE later LOGIN; GRANT app_owner TO later").await;
    let both = first.clone().arguments(&["--database", "zoo"]);
    both.clone().arguments(&["--until", "synced"]).run().await.assert(0, &["until these databases are done"]);
    assert_eq!(pair.target_value(LOGIN).await, "f");
    let member = "SELECT pg_has_role('later', 'app_owner', 'MEMBER')";
    assert_eq!(pair.target_value(member).await, "t", "the first one's run made app_owner");

    let opening = both.arguments(&["--open-target"]);
    let mut engine = opening.start();
    let open = async || pair.target_value(LOGIN).await == "t";
    wait_for("the target is open", PATIENCE, open).await;
    engine.terminate(0).await;
    shut().await;
    let opening = launch.arguments(&["--database", "zoo", "--open-target", "--until", "synced"]);
    opening.run().await.assert(0, &["the target is open"]);
    assert_eq!(pair.target_value(LOGIN).await, "t");

    shut().await;
    let remove = pair.command("remove").arguments(&["--database", DATABASE]);
    let words = ["wait for their LOGIN: nothing is dropped", "until database \"zoo\" is done", "app_owner"];
    remove.run().await.assert(5, &words);
    let forced = remove.arguments(&["--force"]).run().await;
    forced.assert(0, &["NOLOGIN on the target until this database is done", "app_owner"]);
    assert_eq!(pair.target_value(LOGIN).await, "f");
    let handed_over = "SELECT shut FROM walferry.role WHERE name = 'app_owner'";
    assert_eq!(pair.cluster.target.sql("zoo", handed_over).await.unwrap()[0][0].as_deref(), Some("t"));
}

/// What Mallory's function tries wherever it runs as somebody else: what went well is in `m.won`.
const ATTACK: &str = r"
    CREATE ROLE mallory; CREATE ROLE victim; GRANT mallory, victim TO app_owner; CREATE SCHEMA m AUTHORIZATION mallory;
    CREATE TABLE public.others (a int PRIMARY KEY); ALTER TABLE public.others OWNER TO app_owner; SET ROLE mallory;
    CREATE TABLE m.won (stage text, what text, who text, session text);
    CREATE FUNCTION m.attack(a int) RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog AS $f$
        DECLARE sql text; stage text := CASE WHEN a > 100 THEN 'stream' ELSE 'copy' END;
        BEGIN
            IF current_user IN ('mallory', 'postgres') THEN RETURN true; END IF;
            INSERT INTO m.won VALUES (stage, 'ran', current_user, session_user);
            FOREACH sql IN ARRAY ARRAY['SET SESSION AUTHORIZATION avnadmin', 'SET ROLE avnadmin', 'GRANT avnadmin TO mallory',
                'ALTER ROLE mallory LOGIN', 'CREATE ROLE of_mallory', format('GRANT %I TO mallory', session_user),
                'SELECT FROM walferry.migration', 'SELECT FROM walferry.apply_role', 'DELETE FROM walferry.conflict',
                $$UPDATE walferry.progress SET end_lsn = 'FFFFFFFF/0'$$, $$UPDATE walferry.relation SET state = 'waiting'$$,
                $$SELECT walferry.move_progress('', 'default', end_lsn, 'FFFFFFFF/0', NULL, NULL, NULL, NULL, NULL)
                    FROM (SELECT 'FFFFFFFF/0'::pg_lsn AS end_lsn) p$$,
                'CREATE TABLE walferry.mine ()', $$SET session_replication_role = 'origin'$$, 'DROP SCHEMA walferry CASCADE',
                $$COPY m.won FROM PROGRAM 'id'$$, 'CREATE TRIGGER mine BEFORE INSERT ON kept.t EXECUTE FUNCTION
                    suppress_redundant_updates_trigger()']
            LOOP
                BEGIN
                    RESET ROLE;
                    EXECUTE sql;
                    INSERT INTO m.won VALUES (stage, sql, current_user, session_user);
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
            INSERT INTO m.won SELECT stage, statement, current_user, session_user FROM pg_prepared_statements
                WHERE statement ~ 'COMMIT|walferry';
            INSERT INTO m.won SELECT stage, query, current_user, session_user FROM pg_stat_activity
                WHERE query ~ 'record_copy.*''|move_progress.*''|PASSWORD';
            IF a = 102 THEN
                EXECUTE format('ALTER ROLE %I PASSWORD ''known''', session_user);
                EXECUTE format('ALTER ROLE %I IN DATABASE %I SET default_transaction_read_only = on', session_user,
                    current_database());
                EXECUTE format('ALTER TABLE m.won OWNER TO %I', session_user);
            END IF;
            RETURN true;
        END $f$;
    CREATE TABLE m.t (a int PRIMARY KEY, CHECK (m.attack(a))); INSERT INTO m.t SELECT generate_series(1, 3)";

/// Functions that are called for each row run as a role that may write rows, and cannot become more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rows_call_runs_as_a_role_that_may_less() {
    for (source, target) in asked_pairs().await {
        may_less(Pair::of(source, target, |_| {}).await).await;
    }
}

async fn may_less(pair: Pair) {
    pair.source(ATTACK).await;
    // What stays with the target's user, since its owner is not carried, is written to all the same.
    pair.source(
        "CREATE ROLE keeper CREATEROLE; GRANT keeper TO app_owner; CREATE SCHEMA kept AUTHORIZATION keeper; SET ROLE keeper;
         CREATE TABLE kept.t (a int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY); INSERT INTO kept.t VALUES (1)",
    )
    .await;
    let check = pair.command("check").arguments(&["--json"]).run().await;
    check
        .assert(0, &["target-owner-code", "as a role that is made for that", "m.attack(integer) of mallory"]);
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.source(
        "INSERT INTO m.t VALUES (101), (102); UPDATE m.t SET a = a + 200 WHERE a < 3; INSERT INTO others VALUES (1);
         INSERT INTO kept.t VALUES (2); TRUNCATE kept.t RESTART IDENTITY; INSERT INTO kept.t VALUES (3)",
    )
    .await;
    engine.wait_drained(&pair).await;
    let role = pair.target_value("SELECT slot_name FROM walferry.migration").await;
    let ran =
        "SELECT string_agg(DISTINCT concat_ws(' ', stage, who, session), ', ') FROM m.won WHERE what = 'ran'";
    assert_eq!(pair.target_value(ran).await, format!("copy {role} {role}, stream {role} {role}"));
    let won = "SELECT coalesce(string_agg(DISTINCT what, '; '), '') FROM m.won WHERE what <> 'ran'";
    assert_eq!(pair.target_value(won).await, "");

    // A password that it gave itself is of no use, and does not keep the engine out.
    assert!(!may_log_in(&pair, &role, "known").await);
    pair.target(&format!("ALTER ROLE {role} LOGIN VALID UNTIL 'infinity'")).await;
    assert!(may_log_in(&pair, &role, "known").await, "it did");
    let (before, key) = (engine.log(), pair.target_value("SELECT key FROM walferry.apply_role").await);
    engine.kill9().await;
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    assert_ne!(pair.target_value("SELECT key FROM walferry.apply_role").await, key);
    pair.source("INSERT INTO m.t VALUES (103); DELETE FROM m.t WHERE a = 3").await;
    engine.wait_drained(&pair).await;
    assert_eq!(pair.target_value(won).await, "");
    let log = format!("{before}{}{}", engine.log(), pair.cluster.target.log_tail(1_000_000));
    assert!(!log.contains(&key) && !log.contains("PASSWORD"), "{log}");
    pair.assert_cuts_over(engine).await;
    let owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'm.won'::regclass";
    assert_eq!(pair.target_value(owner).await, role);
    pair.assert_removes().await;
    assert_eq!(pair.target_value("SELECT count(*) FROM pg_roles WHERE rolname ~ '^walferry'").await, "0");
    assert_eq!(pair.target_value(owner).await, "avnadmin", "what was given to the role is not dropped");
}

/// A table of Mallory's, with a function that says who writes to it.
const FITS: &str = "
    CREATE ROLE mallory; GRANT mallory TO app_owner; CREATE SCHEMA m AUTHORIZATION mallory; SET ROLE mallory;
    CREATE FUNCTION m.fits(int) RETURNS bool LANGUAGE plpgsql AS
        'BEGIN RAISE LOG ''wrote as %'', session_user; RETURN true; END';
    CREATE TABLE m.t (a int PRIMARY KEY CHECK (m.fits(a))); INSERT INTO m.t VALUES (1)";

/// Whom `pg_hba.conf` of the target lets in, from now on: a superuser over the socket, and these with a password.
async fn lets_in(pair: &Pair, roles: &str) {
    let file = pair.target_value("SHOW hba_file").await;
    let lines = format!("('local all postgres trust'), ('hostssl all {roles} all scram-sha-256')");
    pair.target(&format!("COPY (VALUES {lines}) TO '{file}'; SELECT pg_reload_conf()")).await;
    // The server takes the file when it gets round to it.
    let all = roles == "all";
    wait_for("pg_hba.conf to count", PATIENCE, async || may_log_in(pair, "probe", "p").await == all).await;
}

/// A target that does not let a new role in is written to by its user, and that is said; once the role was in, nothing goes
/// back to that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_log_in() {
    let pair = Pair::start().await;
    pair.target("CREATE ROLE probe LOGIN PASSWORD 'p'").await;
    pair.source(FITS).await;
    let roles = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^walferry'";
    let said = "run in the name of the target's user";
    lets_in(&pair, "avnadmin").await;
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    assert!(engine.log().contains(said), "{}", engine.log());
    assert_eq!(pair.target_value(roles).await, "0", "it is of no use");
    engine.terminate(0).await;

    lets_in(&pair, "all").await;
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    assert!(!engine.log().contains(said), "{}", engine.log());
    pair.source("INSERT INTO m.t VALUES (2)").await;
    engine.wait_drained(&pair).await;
    let role = pair.target_value("SELECT slot_name FROM walferry.migration").await;
    let log = pair.cluster.target.log_tail(100_000);
    assert!(log.contains(&format!("wrote as {role}")), "{log}");
    engine.terminate(0).await;

    lets_in(&pair, "avnadmin").await;
    pair.source("INSERT INTO m.t VALUES (3)").await;
    let refused = launch.run().await;
    refused.assert(5, &["the role that writes the rows cannot be used any more", "pg_hba.conf"]);
    assert_eq!(pair.target_value("SELECT count(*) FROM m.t").await, "2");
    lets_in(&pair, "all").await;
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.assert_cuts_over(engine).await;
    pair.assert_removes().await;
    assert_eq!(pair.target_value(roles).await, "0");
}

/// A target's user that may make no roles: that is said before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_make_no_roles() {
    let pair = Pair::start().await;
    pair.target("ALTER ROLE avnadmin NOCREATEROLE; CREATE ROLE mallory; GRANT mallory TO avnadmin").await;
    pair.source(FITS).await;
    let check = pair.command("check").arguments(&["--json"]).run().await;
    check.assert(
        0,
        &["run on the target in the name of avnadmin", "m.fits(integer) of mallory", "(CREATEROLE)"],
    );
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert!(engine.log().contains("run in the name of the target's user"), "{}", engine.log());
    pair.source("INSERT INTO m.t VALUES (2)").await;
    pair.assert_cuts_over(engine).await;
}

/// The other method writes rows as that role, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_is_restored_by_a_role_that_may_less() {
    let pair = Pair::start().await;
    pair.source(FITS).await;
    let moved = pair.migrate().arguments(&["--method", "pg_dump"]).run().await;
    moved.assert(0, &["rows are written by a role made for that"]);
    let log = pair.cluster.target.log_tail(100_000);
    assert!(log.contains("wrote as walferry_default_") && !log.contains("wrote as avnadmin"), "{log}");
    pair.command("remove").run().await.assert(0, &["dropped role walferry_default_"]);
}

/// A table whose rows the role would not see: that is known before, and nobody is kept from migrating.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_only_their_owner_sees() {
    let pair = Pair::start().await;
    pair.source(FITS).await;
    pair.source(
        "CREATE ROLE keeper CREATEROLE; GRANT keeper TO app_owner; CREATE SCHEMA kept AUTHORIZATION keeper; SET ROLE keeper;
         CREATE TABLE kept.t (a int PRIMARY KEY); ALTER TABLE kept.t ENABLE ROW LEVEL SECURITY; INSERT INTO kept.t VALUES (1)",
    )
    .await;
    let check = pair.command("check").arguments(&["--json"]).run().await;
    check.assert(
        0,
        &["run on the target in the name of avnadmin", "rows of kept.t, which have row-level security"],
    );
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let said = "the target's user cannot give it what table kept.t wants";
    assert!(engine.log().contains(said), "{}", engine.log());
    pair.source("UPDATE kept.t SET a = 2; INSERT INTO m.t VALUES (2)").await;
    pair.assert_cuts_over(engine).await;
}

/// Each database has a role of its own, and `remove` of one leaves the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_have_two_roles() {
    let binaries = PgBinaries::find(None).await.unwrap();
    let (pair, launch, _directory) = two_databases(binaries.clone(), binaries).await;
    pair.source(FITS).await;
    let zoo = FITS.replace("CREATE ROLE mallory; GRANT mallory TO app_owner;", "");
    pair.cluster.source.sql("zoo", &zoo).await.unwrap();
    let roles = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^walferry_default_'";
    for round in 0..2 {
        let mut engine = launch.start();
        let sync = |detail: &serde_json::Value| detail["phase"] == "syncing";
        engine.wait_details("both sync", |all| all.len() == 2 && all.values().all(sync)).await;
        assert_eq!(pair.target_value(roles).await, "2");
        if round == 0 {
            engine.kill9().await;
        } else {
            engine.terminate(0).await;
        }
    }
    let one = pair.command("remove").arguments(&["--database", "zoo"]).run().await;
    one.assert(0, &["dropped role walferry_default_"]);
    assert_eq!(pair.target_value(roles).await, "1");
    pair.command("remove").run().await.assert(0, &["dropped role walferry_default_"]);
    assert_eq!(pair.target_value(roles).await, "0");
}
