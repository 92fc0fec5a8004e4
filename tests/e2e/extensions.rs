//! Extensions: made by Walferry, made beforehand by an administrator, and made in another schema than on the source.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use walferry::demo::{ClusterOptions, PgBinaries};

use super::harness::{DATABASE, Engine, Pair};

/// How the target comes to have what the source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// By Walferry, whose role may make any.
    ByUs,
    /// By an administrator, in the same schemas.
    Beforehand,
    /// By an administrator, without a thought of schemas; what `check` says then is done.
    Elsewhere,
}

const EACH: [Made; 3] = [Made::ByUs, Made::Beforehand, Made::Elsewhere];

/// What a phase may take, on a machine busy with other things.
const PATIENCE: Duration = Duration::from_secs(600);

/// Of contrib, for each run: types, operator classes, dictionaries, a foreign data wrapper, one that needs another.
const SOME: [&str; 7] = ["hstore", "citext", "pg_trgm", "unaccent", "file_fdw", "cube", "earthdistance"];

/// What Debian has besides; `postgis_tiger_geocoder` and `postgis_topology` have schemas of their own.
const PACKAGES: [&str; 10] = [
    "fuzzystrmatch",
    "postgis",
    "postgis_raster",
    "postgis_topology",
    "postgis_tiger_geocoder",
    "pg_partman",
    "vector",
    "hypopg",
    "pg_repack",
    "plperl",
];

/// A table of every type that an extension brings.
const TABLES: &str = "
    SELECT format('CREATE TABLE public.%I (id int PRIMARY KEY, %s); INSERT INTO public.%1$I VALUES (1), (2)', 'types of ' || e.extname,
        string_agg(format('%I %s', t.typname, format_type(t.oid, NULL)), ', ' ORDER BY t.typname))
    FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
        AND d.classid = 'pg_type'::regclass JOIN pg_type t ON t.oid = d.objid
    WHERE t.typtype IN ('b', 'd', 'e') AND t.typcategory <> 'A' GROUP BY e.extname";

/// What some scripts need are found by the database's search path alone (`postgis_topology` 3.3 resets its own).
const IN_PATH: &str = "ALTER DATABASE defaultdb SET search_path = \"$user\", public, \"The extensions\"";

/// A table of an extension, in a schema that is not ours to use.
const HIDDEN: &str =
    "CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int); ALTER EXTENSION plpgsql ADD TABLE hidden.t";

/// A sequence of an extension, as `pg_extension_config_dump` marks it in a script.
const COUNTER: &str = "
    CREATE SEQUENCE counter; ALTER EXTENSION plpgsql ADD SEQUENCE counter;
    UPDATE pg_extension SET extconfig = ARRAY['counter'::regclass::oid], extcondition = ARRAY[''] WHERE extname = 'plpgsql'";

/// The source's search path, for the target.
const PATH: &str = "
    SELECT format('ALTER DATABASE %I SET search_path = %s', current_database(), substr(setting, length('search_path=') + 1))
    FROM pg_db_role_setting, unnest(setconfig) setting WHERE setrole = 0 AND setting LIKE 'search_path=%'";

const EXTENSIONS: &str = "
    SELECT string_agg(format('%s %s in %s', extname, extversion, extnamespace::regnamespace), ', ' ORDER BY extname) FROM pg_extension";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_are_made_beforehand_or_elsewhere() {
    let binaries = PgBinaries::find(None).await.unwrap();
    for made in [Made::Beforehand, Made::Elsewhere] {
        move_with(&binaries, &SOME, made).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn all_of_contrib() {
    let packages: BTreeSet<String> = PACKAGES.into_iter().map(str::to_owned).collect();
    let binaries = PgBinaries::find(None).await.unwrap();
    let pair = Pair::of(binaries.clone(), binaries.clone(), |_| {}).await;
    // What comes with PostgreSQL is of no other version than itself: its files name none of a package.
    let names =
        "SELECT name FROM pg_available_extensions WHERE name NOT IN ('plpgsql', 'pg_cron', 'postgis_sfcgal')
        AND name !~ '^(address_standardizer|postgis|walferry|bool_pl|jsonb_pl|hstore_pl|ltree_pl|plp|pltcl)'";
    let names: Vec<String> = pair.source(names).await.into_iter().flatten().flatten().collect();
    drop(pair);
    let names: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !packages.contains(*name)).collect();
    for made in EACH {
        move_with(&binaries, &names, made).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn of_packages() {
    let binaries = with_packages().await;
    for made in EACH {
        move_with(&binaries, &PACKAGES, made).await;
    }
}

/// PostgreSQL with Debian's packages of extensions: unpacked beside the servers of other versions, where there is apt; else
/// what is installed.
pub async fn with_packages() -> PgBinaries {
    let installed = PgBinaries::find(None).await.unwrap();
    let major = installed.major();
    let target = Path::new(env!("CARGO_BIN_EXE_walferry")).ancestors().nth(2).unwrap();
    let unpacked = target.join(format!("postgresql/debian-{major}"));
    if !unpacked.exists() {
        std::fs::create_dir_all(target.join("postgresql")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/extensions.sh");
        let output = Command::new(script).arg(major.to_string()).arg(&unpacked).output().await.unwrap();
        if !output.status.success() {
            eprintln!("not unpacked: {}", String::from_utf8_lossy(&output.stderr));
            return installed;
        }
    }
    let bin = unpacked.join(format!("usr/lib/postgresql/{major}/bin"));
    PgBinaries::unpacked(&bin, &unpacked.join("lib")).await.unwrap()
}

async fn move_with(binaries: &PgBinaries, names: &[&str], made: Made) {
    let pair = Pair::of(binaries.clone(), binaries.clone(), |_| {}).await;
    let there = available(&pair).await;
    let (names, missing): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| there.contains(**name));
    if !missing.is_empty() {
        eprintln!("skipped: the server has no {}", missing.join(", "));
    }
    pair.source("CREATE SCHEMA \"The extensions\"; GRANT ALL ON SCHEMA \"The extensions\" TO app_owner")
        .await;
    for name in &names {
        create(&pair, name).await;
    }
    let owner = pair.owner().await;
    for statement in pair.source(TABLES).await.into_iter().flatten().flatten() {
        owner.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{error:?}: {statement}"));
    }
    drop(owner);
    match made {
        Made::ByUs => drop(pair.target("ALTER ROLE avnadmin SUPERUSER").await),
        Made::Beforehand => beforehand(&pair).await,
        Made::Elsewhere => {
            for name in &names {
                pair.target(&format!("CREATE EXTENSION IF NOT EXISTS \"{name}\" CASCADE")).await;
            }
        }
    }
    obey(&pair).await;
    // On Aiven, what was dropped for another's sake is ours to make.
    let count = "SELECT count(*) FROM pg_extension";
    if made == Made::Elsewhere && pair.target_value(count).await != pair.source_value(count).await {
        pair.target("ALTER ROLE avnadmin SUPERUSER").await;
    }
    let mut engine = pair.migrate().start();
    let syncing = |detail: &Value| detail["phase"] == "syncing";
    engine.wait_until_within(PATIENCE, "syncing", syncing).await;
    for table in pair
        .source("SELECT oid::regclass FROM pg_class WHERE relname LIKE 'types of %' AND relkind = 'r'")
        .await
    {
        pair.source(&format!("INSERT INTO {} VALUES (3)", table[0].as_deref().unwrap())).await;
    }
    cut_over(&pair, &mut engine, &[]).await;
    let comparison = pair.compare().await;
    assert!(comparison.equal(), "{made:?}: {comparison}\n{}", engine.log());
    // Where nothing depends on one by name, another schema is as good.
    let asked = match made {
        Made::Elsewhere => {
            "SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY extname) FROM pg_extension"
        }
        Made::ByUs | Made::Beforehand => EXTENSIONS,
    };
    let (source, target) = (pair.source_value(asked).await, pair.target_value(asked).await);
    assert_eq!(source, target, "{made:?}");
    eprintln!("{made:?}: {source}");
}

async fn cut_over(pair: &Pair, engine: &mut Engine, arguments: &[&str]) {
    let ended = pair.command("cutover").arguments(arguments).run_for(PATIENCE).await;
    ended.assert(0, &["done: the target has all that was written to the source"]);
    engine.wait_exit(0, PATIENCE).await;
}

async fn available(pair: &Pair) -> BTreeSet<String> {
    pair.source("SELECT name FROM pg_available_extensions").await.into_iter().flatten().flatten().collect()
}

/// On the source, as its administrator, in a schema of its own where it takes one.
async fn create(pair: &Pair, name: &str) {
    let create = format!("CREATE EXTENSION IF NOT EXISTS \"{name}\"");
    let there = format!("{create} SCHEMA \"The extensions\" CASCADE");
    let own = format!("{create} CASCADE");
    for statement in [&there, &own] {
        if pair.cluster.source.sql(DATABASE, statement).await.is_ok() {
            return;
        }
    }
    pair.source(IN_PATH).await;
    pair.source(&own).await;
}

async fn beforehand(pair: &Pair) {
    pair.target(HIDDEN).await;
    let create = "SELECT format('CREATE SCHEMA IF NOT EXISTS %I; GRANT ALL ON SCHEMA %1$I TO avnadmin', n.nspname),
            format('CREATE EXTENSION IF NOT EXISTS %I SCHEMA %I', e.extname, n.nspname), format('CREATE EXTENSION IF NOT EXISTS %I', e.extname)
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql' ORDER BY e.oid";
    for statement in pair.source(PATH).await.into_iter().flatten().flatten() {
        pair.target(&statement).await;
    }
    for row in pair.source(create).await {
        let [schema, there, own] = &row[..] else { panic!("{row:?}") };
        // One that makes its schema wants to do that itself.
        if pair.cluster.target.sql(DATABASE, own.as_deref().unwrap()).await.is_ok()
            && pair.target_value(EXTENSIONS).await == pair.source_value(EXTENSIONS).await
        {
            continue;
        }
        let name = own.as_deref().unwrap().rsplit(' ').next().unwrap();
        let same = format!(
            "SELECT (SELECT extnamespace::regnamespace::text FROM pg_extension WHERE quote_ident(extname) = '{name}')"
        );
        if pair.target_value(&same).await == pair.source_value(&same).await {
            continue;
        }
        pair.target(&format!("DROP EXTENSION IF EXISTS {name} CASCADE")).await;
        pair.target(schema.as_deref().unwrap()).await;
        pair.target(there.as_deref().unwrap()).await;
    }
}

/// Runs on the target, as a superuser, what `check` says about extensions, until it has nothing more to say.
async fn obey(pair: &Pair) {
    for _ in 0..4 {
        let check = pair.command("check").arguments(&["--json"]).run_for(PATIENCE).await;
        let report: Value = serde_json::from_str(&check.stdout).unwrap();
        let failed =
            report["findings"].as_array().unwrap().iter().filter(|found| found["severity"] == "fail");
        let hints: Vec<&str> = failed.filter_map(|found| found["hint"].as_str()).collect();
        if hints.is_empty() {
            assert_eq!(check.status.code(), Some(0), "{}", check.stdout);
            return;
        }
        for command in hints.iter().flat_map(|hint| hint.lines()).filter(|line| line.ends_with(';')) {
            eprintln!("{command}");
            pair.target(command).await;
        }
    }
    panic!("{}", pair.command("check").run().await.stdout);
}

/// A script may find what it needs by the path that RESET gives, which the application's database has for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn their_scripts_find_the_source_databases_path() {
    let pair = Pair::start().await;
    pair.source("CREATE SCHEMA app; CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO app_owner")
        .await;
    pair.source("ALTER DATABASE defaultdb SET search_path = \"$user\", public, app").await;
    // A sequence that the extension has for its users' values, and that our role may not read.
    pair.source(COUNTER).await;
    pair.command("check").run().await.assert(0, &[]);
    pair.target(
        "CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS $$
         DECLARE path text := (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path');
         BEGIN
             IF current_setting('application_name') = 'walferry schema' AND path <> '\"$user\", public, app' THEN
                 RAISE 'by the path %', path;
             END IF;
         END $$;
         CREATE EVENT TRIGGER look ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION look()",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;
}

/// Jobs run where they are: on the target, not before the cutover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn jobs_of_pg_cron_come_at_cutover() {
    let binaries = with_packages().await;
    let pair = Pair::of(binaries.clone(), binaries.clone(), |_| {}).await;
    if !available(&pair).await.contains("pg_cron") {
        eprintln!("skipped: the server has no pg_cron");
        return;
    }
    drop(pair);
    let cron = |options: walferry::demo::ServerOptions| {
        options.setting("shared_preload_libraries", "pg_cron").setting("cron.database_name", DATABASE)
    };
    let with_cron = |options: &mut ClusterOptions| {
        options.source_options = cron(options.source_options.clone());
        options.target_options = cron(options.target_options.clone());
    };
    let pair = Pair::of(binaries.clone(), binaries, with_cron).await;
    pair.source("CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO app_owner; CREATE TABLE ticks (id serial PRIMARY KEY); ALTER TABLE ticks OWNER TO app_owner").await;
    let owner = pair.owner().await;
    owner
        .batch_execute("SELECT cron.schedule('tick', '0 0 1 1 *', 'INSERT INTO ticks DEFAULT VALUES')")
        .await
        .unwrap();
    drop(owner);
    pair.target("CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO avnadmin").await;

    // Rows that we may not all see are left, and nothing else is.
    let migrate = pair.migrate().arguments(&["--until", "synced"]).run_for(PATIENCE).await;
    migrate.assert(0, &["their rows are not carried: cron.job", "cron.schedule"]);
    pair.command("remove").run().await.assert(0, &["dropped replication slot"]);
    pair.target("DROP TABLE ticks").await;

    pair.source("ALTER ROLE app_owner BYPASSRLS; GRANT SELECT ON ALL TABLES IN SCHEMA cron TO app_owner")
        .await;
    pair.target("ALTER ROLE avnadmin BYPASSRLS; GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA cron TO avnadmin").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert_eq!(pair.target_value("SELECT count(*) FROM cron.job").await, "0");
    // Its launcher is seen to be one, and stays.
    pair.source("GRANT pg_read_all_stats TO app_owner").await;
    cut_over(&pair, &mut engine, &[]).await;
    assert_eq!(
        pair.target_value("SELECT jobname || ' ' || command FROM cron.job").await,
        "tick INSERT INTO ticks DEFAULT VALUES"
    );
}
