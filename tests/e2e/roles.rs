//! Roles, and what is theirs, between servers whose users are no superusers.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walferry::catalog::{SourceClient, TargetClient};
use walferry::migrate::roles::{RolesOptions, carry_database, carry_objects, carry_roles};
use walferry::pg::Sql;
use walferry::wire::{ConnInfo, Environment, control};

use super::harness::{DATABASE, Launch, Pair};
use super::versions::{asked_pairs, asked_pairs_and};

/// The first version whose statements these are.
const FIRST: u32 = 12;

/// As a superuser: roles of all kinds.
const ROLES: &str = r#"
    CREATE ROLE "Reader Role"; CREATE ROLE team; CREATE ROLE unwanted LOGIN; CREATE ROLE rds_something LOGIN;
    CREATE ROLE "o'dd ""one"": a\b" LOGIN NOINHERIT CREATEDB CONNECTION LIMIT 3 VALID UNTIL '2091-02-03 04:05:06.5+02';
    CREATE ROLE lead LOGIN CREATEROLE PASSWORD 'lead''s own';
    CREATE ROLE power LOGIN SUPERUSER REPLICATION BYPASSRLS; CREATE ROLE already LOGIN PASSWORD 'of the source';
    GRANT "Reader Role" TO team; GRANT team TO lead WITH ADMIN OPTION; GRANT lead TO "o'dd ""one"": a\b", already;
    GRANT team, lead, unwanted, already TO app_owner; GRANT unwanted TO lead;
    ALTER ROLE lead SET search_path = "$user", "My ""schema""", public; ALTER ROLE lead SET my.own = E'it''s \\ "so"';
    ALTER ROLE lead SET work_mem = '64MB'; ALTER ROLE team SET log_statement = 'none';
    ALTER ROLE lead IN DATABASE defaultdb SET statement_timeout = '5s';
    COMMENT ON ROLE team IS 'it''s the team';
    ALTER DATABASE defaultdb SET TimeZone = 'Europe/Helsinki';
    ALTER DATABASE defaultdb SET default_transaction_read_only = off;
    ALTER DATABASE defaultdb CONNECTION LIMIT 77; COMMENT ON DATABASE defaultdb IS 'it''s the shop';
    REVOKE ALL ON DATABASE defaultdb FROM PUBLIC; GRANT CONNECT ON DATABASE defaultdb TO team, already, power, "o'dd ""one"": a\b";
    GRANT CREATE ON DATABASE defaultdb TO lead WITH GRANT OPTION"#;

/// As the owner: objects of all kinds, theirs and others'.
const OBJECTS: &str = r#"
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO "Reader Role" WITH GRANT OPTION;
    ALTER DEFAULT PRIVILEGES FOR ROLE team REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    ALTER DEFAULT PRIVILEGES FOR ROLE team GRANT USAGE ON SEQUENCES TO lead;
    CREATE SCHEMA "My ""schema"""; CREATE SCHEMA bare; GRANT USAGE ON SCHEMA "My ""schema""" TO PUBLIC;
    CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b mood); CREATE DOMAIN small AS int CHECK (VALUE < 9);
    CREATE TYPE span AS RANGE (subtype = float8);
    REVOKE USAGE ON TYPE mood FROM PUBLIC; GRANT USAGE ON TYPE mood TO team;
    CREATE TABLE t (id int PRIMARY KEY, hidden text, "Shown" text, m mood);
    GRANT SELECT (id, "Shown"), UPDATE ("Shown") ON t TO lead; GRANT INSERT, DELETE ON t TO lead WITH GRANT OPTION;
    ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY of_lead ON t TO lead, "Reader Role" USING (id > 1);
    CREATE STATISTICS of_t ON id, "Shown" FROM t;
    CREATE TABLE "My ""schema"""."T" (id serial PRIMARY KEY, r span); CREATE SEQUENCE s; GRANT USAGE ON SEQUENCE s TO team;
    GRANT SELECT ON SEQUENCE "My ""schema"""."T_id_seq" TO "Reader Role";
    CREATE TABLE bare.parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE bare.leaf PARTITION OF bare.parted DEFAULT; CREATE TABLE bare.refers (id int PRIMARY KEY REFERENCES t);
    CREATE TABLE left_alone (id int PRIMARY KEY); GRANT SELECT ON left_alone TO unwanted;
    CREATE VIEW v AS SELECT id FROM t; GRANT SELECT ON v TO PUBLIC;
    CREATE MATERIALIZED VIEW mv AS SELECT count(*) AS n FROM t;
    CREATE FUNCTION f(int, mood) RETURNS int LANGUAGE sql AS 'SELECT $1'; REVOKE EXECUTE ON FUNCTION f FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION f TO team; CREATE FUNCTION f(text) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION nobody() RETURNS int LANGUAGE sql AS 'SELECT 1'; REVOKE ALL ON FUNCTION nobody() FROM PUBLIC, app_owner;
    CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'; CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int);
    CREATE AGGREGATE rows(*) (sfunc = int8inc, stype = int8, initcond = '0');
    CREATE OPERATOR === (leftarg = int, rightarg = int, function = int4eq);
    INSERT INTO t VALUES (1, 'a', 'b', 'sad'), (2, 'c', 'd', 'happy'); INSERT INTO bare.parted VALUES (1);
    INSERT INTO bare.refers VALUES (1); INSERT INTO "My ""schema"""."T" (r) VALUES ('[1,2]')"#;

/// As a superuser, which may give anything to anybody.
const OWNERS: &str = r#"
    ALTER SCHEMA bare OWNER TO team; ALTER TABLE "My ""schema"""."T" OWNER TO lead; ALTER TABLE bare.leaf OWNER TO lead;
    ALTER TABLE bare.parted OWNER TO team; ALTER TABLE left_alone OWNER TO unwanted; ALTER VIEW v OWNER TO team;
    ALTER MATERIALIZED VIEW mv OWNER TO lead; ALTER TABLE bare.refers OWNER TO already; ALTER FUNCTION f(text) OWNER TO team;
    ALTER AGGREGATE total(int) OWNER TO team; ALTER PROCEDURE p() OWNER TO lead; ALTER TYPE pair OWNER TO team;
    ALTER DOMAIN small OWNER TO lead; ALTER SEQUENCE s OWNER TO lead; ALTER OPERATOR === (int, int) OWNER TO team;
    ALTER STATISTICS of_t OWNER TO team; ALTER TYPE span OWNER TO lead;
    SET SESSION AUTHORIZATION lead; GRANT INSERT ON public.t TO team"#;

/// What the target's user may give: neither a superuser's settings, nor ones that no library knows.
const ROLES_OF: &str = "
    SELECT r.rolname, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolconnlimit, r.rolvaliduntil,
           shobj_description(r.oid, 'pg_authid'), d.datname, string_agg(c.setting, ' ' ORDER BY c.setting)
    FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid LEFT JOIN pg_database d ON d.oid = s.setdatabase
    LEFT JOIN LATERAL unnest(s.setconfig) c(setting) ON c.setting !~ '^(log_statement|my.own)='
    WHERE r.rolname !~ '^pg_|^rds_' AND r.rolname NOT IN ('postgres', 'avnadmin', 'unwanted', 'root')
        AND (s.setrole IS NULL OR c.setting IS NOT NULL OR s.setdatabase = 0) GROUP BY r.oid, 1, 2, 3, 4, 5, 6, 7, d.datname
    ORDER BY 1, d.datname";

/// Whoever granted it: on the target that is another one.
const MEMBERS: &str = "
    SELECT m.roleid::regrole::text, m.member::regrole::text, bool_or(m.admin_option) FROM pg_auth_members m
    WHERE m.member::regrole::text <> 'avnadmin' AND m.roleid >= 16384 AND 'unwanted'::text NOT IN
        (m.roleid::regrole::text, m.member::regrole::text) GROUP BY 1, 2 ORDER BY 1, 2";

/// Owners, and who may do what; what belongs to `unwanted` aside, and types and routines that follow from other objects
/// and that not every version has.
const PRIVILEGES: &str = "
    WITH object AS (
        SELECT 'schema' AS kind, oid::regnamespace::text AS name, nspowner AS owner,
               coalesce(nspacl, acldefault('n', nspowner)) AS acl, nspname AS schema FROM pg_namespace
        UNION ALL SELECT relkind::text, oid::regclass::text, relowner, coalesce(relacl,
               acldefault((CASE relkind WHEN 'S' THEN 's' ELSE 'r' END)::\"char\", relowner)),
               relnamespace::regnamespace::text FROM pg_class WHERE relkind <> 'i'
        UNION ALL SELECT 'column', c.oid::regclass || '.' || a.attname, c.relowner, a.attacl, c.relnamespace::regnamespace::text
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        UNION ALL SELECT 'routine', oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner)),
               pronamespace::regnamespace::text FROM pg_proc WHERE proname NOT IN ('span_multirange', 'nobody')
        UNION ALL SELECT 'type', oid::regtype::text, typowner, coalesce(typacl, acldefault('T', typowner)),
               typnamespace::regnamespace::text FROM pg_type WHERE typtype <> 'm' AND typcategory <> 'A'
                   AND typrelid NOT IN (SELECT oid FROM pg_class WHERE relkind = 'S')
        UNION ALL SELECT 'operator', oid::regoperator::text, oprowner, NULL, oprnamespace::regnamespace::text FROM pg_operator
        UNION ALL SELECT 'statistics', stxname, stxowner, NULL, stxnamespace::regnamespace::text FROM pg_statistic_ext
        UNION ALL SELECT 'database', datname, datdba, coalesce(datacl, acldefault('d', datdba)), ''
            FROM pg_database WHERE datname = current_database())
    SELECT kind, name, CASE WHEN name NOT IN ('public', 'left_alone') THEN owner::regrole::text END,
           CASE WHEN x.grantee <> 0 THEN x.grantee::regrole::text END, x.privilege_type, bool_or(x.is_grantable)
    FROM object LEFT JOIN LATERAL aclexplode(acl) x ON true
    WHERE schema !~ '^pg_|^information_schema|^walferry' AND (kind <> 'column' OR acl IS NOT NULL)
        AND (x.grantee IS NULL OR x.grantee = 0 OR x.grantee <> owner AND x.grantee::regrole::text <> 'unwanted')
    GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5";

const DEFAULTS: &str = "
    SELECT defaclrole::regrole::text, defaclnamespace::regnamespace::text, defaclobjtype, x.grantee::regrole::text,
           x.privilege_type, x.is_grantable FROM pg_default_acl, aclexplode(defaclacl) x ORDER BY 1, 2, 3, 4, 5";

const DATABASE_PROPERTIES: &str = "
    SELECT datconnlimit, shobj_description(oid, 'pg_database'), array_remove(s.setconfig, 'default_transaction_read_only=off')
    FROM pg_database d
    LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0 WHERE datname = current_database()";

/// Rows of the catalogs that a second run must not even write.
const UNTOUCHED: &str = "
    SELECT 'role', oid::text, xmin::text, rolpassword FROM pg_authid
    UNION ALL SELECT 'member', roleid || ' ' || member, xmin::text, NULL FROM pg_auth_members
    UNION ALL SELECT 'class', oid::text, xmin::text, relacl::text FROM pg_class WHERE relkind <> 'i' AND oid >= 16384
        AND relnamespace::regnamespace::text NOT IN ('walferry', 'pg_toast')
    UNION ALL SELECT 'schema', oid::text, xmin::text, nspacl::text FROM pg_namespace
    UNION ALL SELECT 'routine', oid::text, xmin::text, proacl::text FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'type', oid::text, xmin::text, typacl::text FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'default', oid::text, xmin::text, defaclacl::text FROM pg_default_acl
    UNION ALL SELECT 'setting', setdatabase || ' ' || setrole, xmin::text, setconfig::text FROM pg_db_role_setting
    UNION ALL SELECT 'database', oid::text, xmin::text, datacl::text FROM pg_database ORDER BY 1, 2, 3";

async fn load(pair: &Pair) {
    pair.source(ROLES).await;
    pair.owner().await.batch_execute(OBJECTS).await.unwrap();
    pair.source(OWNERS).await;
    pair.target(
        "CREATE ROLE already LOGIN PASSWORD 'of the target'; GRANT already TO avnadmin WITH ADMIN OPTION",
    )
    .await;
}

/// Both sides say the same about roles and what is theirs.
async fn assert_same(pair: &Pair) {
    for question in [ROLES_OF, MEMBERS, PRIVILEGES, DEFAULTS, DATABASE_PROPERTIES] {
        let (source, target) = (pair.source(question).await, pair.target(question).await);
        assert!(source.iter().any(|row| row.len() > 1), "{question}");
        let missing: Vec<_> = source.iter().filter(|row| !target.contains(row)).collect();
        let added: Vec<_> = target.iter().filter(|row| !source.contains(row)).collect();
        assert!(missing.is_empty() && added.is_empty(), "missing {missing:?}, added {added:?} of {question}");
    }
}

pub async fn may_log_in(pair: &Pair, role: &str, password: &str) -> bool {
    let uri = pair.cluster.target.uri(role, password, DATABASE);
    let info = ConnInfo::parse(&uri, &Environment::default()).unwrap();
    match control(&info, "test").await {
        Ok(client) => client.simple_query("SELECT 1").await.is_ok(),
        Err(_) => false,
    }
}

pub fn passwords(path: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap();
    let entry = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["role"].as_str().unwrap().to_owned(), line["password"].as_str().unwrap().to_owned())
    };
    text.lines().map(entry).collect()
}

/// `migrate`, with the file for passwords.
fn migrate(pair: &Pair, directory: &tempfile::TempDir) -> (Launch, PathBuf) {
    let path = directory.path().join("passwords");
    let file = path.to_str().unwrap();
    let launch = pair.migrate().arguments(&["--passwords-file", file, "--ignore-roles", "unwanted,nobody"]);
    (launch.arguments(&["--grant-existing-roles", "already", "--open-target"]), path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_new_passwords() {
    // From 16 on, who makes a role has the right to grant it, and not its privileges.
    for (source, target) in asked_pairs_and(&[(14, 17)]).await {
        if source.major() < FIRST {
            continue;
        }
        let pair = Pair::of(source, target, |_| {}).await;
        new_passwords(&pair).await;
    }
}

async fn new_passwords(pair: &Pair) {
    load(pair).await;
    let check = pair.command("check").arguments(&["--json", "--ignore-roles", "unwanted"]).run().await;
    check.assert(
        0,
        &[
            "source-role-passwords",
            "GRANT SELECT ON pg_catalog.pg_authid",
            "target-roles-existing",
            "power (SUPERUSER",
        ],
    );
    let directory = tempfile::tempdir().unwrap();
    let (launch, path) = migrate(pair, &directory);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    assert_same(pair).await;
    let log = engine.log();
    for part in [
        r#"ALTER ROLE "team" SET "log_statement" TO …"#,
        r#"ALTER ROLE "lead" SET "my.own" TO …"#,
        r#"ALTER ROLE "power" SUPERUSER"#,
        "default_transaction_read_only",
        "it would hinder the migration",
        "owner=\"unwanted\" objects=1",
    ] {
        assert!(log.contains(part), "no {part} in {log}");
    }
    assert!(!log.contains("so\\\"") && !log.contains("GRANT SELECT ON TABLE"), "{log}");

    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let made = passwords(&path);
    let roles: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(roles, ["app_owner", "lead", "o'dd \"one\": a\\b", "power"]);
    for (role, password) in &made {
        assert!(may_log_in(pair, role, password).await, "{role}");
        assert!(!may_log_in(pair, role, "another").await, "{role}");
        assert!(!log.contains(password.as_str()), "a new password is in the log");
    }
    assert!(may_log_in(pair, "already", "of the target").await);
    let nobody = "SELECT has_function_privilege('lead', 'public.nobody()', 'EXECUTE')";
    assert_eq!(pair.target_value(nobody).await, "f");
    let names =
        "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname IN ('unwanted', 'rds_something')";
    assert_eq!(pair.target_value(names).await, "");
    assert_eq!(
        pair.target_value("SELECT tableowner FROM pg_tables WHERE tablename = 'left_alone'").await,
        "avnadmin"
    );

    // Tables that belong to others now are written to, emptied and changed.
    pair.source("TRUNCATE bare.parted; INSERT INTO bare.parted SELECT generate_series(1, 9)").await;
    pair.source("UPDATE t SET hidden = 'new'; INSERT INTO left_alone VALUES (1); DELETE FROM bare.refers")
        .await;
    pair.assert_follows(&mut engine).await;
    pair.assert_ends_equal(engine).await;
    run_again(pair, &path).await;
    pair.assert_removes().await;
    at_the_same_time(pair, &path).await;
}

/// By the functions themselves: nothing is written, and nothing more is said.
async fn run_again(pair: &Pair, path: &Path) {
    let (before, file) = (pair.target(UNTOUCHED).await, passwords(path));
    let (source, target) = sessions(pair).await;
    let ignored = vec!["unwanted".to_owned()];
    let granted = vec!["already".to_owned()];
    let options = options(ignored.clone(), granted, path);
    let report = carry_roles(&source, &target, &options).await.unwrap();
    assert_eq!(
        (report.made.len(), report.new_passwords.len(), report.refused.len()),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.existing.len(), 7, "{report:?}");
    assert_eq!(carry_database(&source, &target, &ignored, 0).await.unwrap(), []);
    assert_eq!(carry_objects(&source, &target, &ignored).await.unwrap(), []);
    assert_eq!(pair.target(UNTOUCHED).await, before);
    assert_eq!(passwords(path), file);
}

fn options(ignored: Vec<String>, granted: Vec<String>, file: &Path) -> RolesOptions {
    RolesOptions { ignored, granted, passwords_file: Some(file.to_owned()), migration: None, open: true }
}

/// As users of both sides.
async fn sessions(pair: &Pair) -> (SourceClient, TargetClient) {
    let info = |uri: &str| ConnInfo::parse(uri, &Environment::default()).unwrap();
    let source = SourceClient::connect(&info(&pair.cluster.source_uri(DATABASE)), "test").await.unwrap();
    let target = TargetClient::connect(&info(&pair.cluster.target_uri(DATABASE)), "test").await.unwrap();
    (source, target)
}

/// Two databases of a cluster are moved side by side: each role is made once, with the password that is written.
async fn at_the_same_time(pair: &Pair, path: &Path) {
    let before = passwords(path);
    for role in ["power", r#""o'dd ""one"": a\b""#] {
        pair.target(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }
    std::fs::remove_file(path).unwrap();
    let (one, other) = (sessions(pair).await, sessions(pair).await);
    let (ignored, granted) = (vec!["unwanted".to_owned()], vec!["already".to_owned()]);
    let options = options(ignored, granted, path);
    let (one, other) =
        tokio::join!(carry_roles(&one.0, &one.1, &options), carry_roles(&other.0, &other.1, &options));
    let made = [one.unwrap().made, other.unwrap().made].concat();
    let again = passwords(path);
    assert_eq!(made, again.keys().map(String::as_str).collect::<Vec<_>>());
    for role in made {
        assert!(again[&role] != before[&role] && !may_log_in(pair, &role, &before[&role]).await, "{role}");
        pair.target(&format!("GRANT CONNECT ON DATABASE {DATABASE} TO {}", Sql::default().ident(&role)))
            .await;
        assert!(may_log_in(pair, &role, &again[&role]).await, "{role}");
    }
}

/// A source whose user may read passwords, and a target whose user may not make roles until it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_old_passwords() {
    for (source, target) in asked_pairs().await {
        if source.major() < FIRST {
            continue;
        }
        let pair = Pair::of(source, target, |_| {}).await;
        old_passwords(&pair).await;
    }
}

async fn old_passwords(pair: &Pair) {
    load(pair).await;
    pair.source("SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD 'hunter2'").await;
    pair.source("CREATE ROLE root LOGIN SUPERUSER PASSWORD 'the root'").await;
    let directory = tempfile::tempdir().unwrap();
    let (launch, path) = migrate(pair, &directory);
    let source = pair.cluster.source.uri("root", "the root", DATABASE);
    let launch = launch.source(&source).secret("the root").secret("hunter2").secret("lead's own");

    pair.target("ALTER ROLE avnadmin NOCREATEROLE").await;
    let check = pair.command("check").source(&source).arguments(&["--json"]).run().await;
    check.assert(0, &["target-roles", "may not make roles", r#"ALTER ROLE \"avnadmin\" CREATEROLE;"#]);
    // The schema has a policy for one of them.
    let ended = launch.clone().arguments(&["--until", "copied"]).run().await;
    ended.assert(
        5,
        &["CREATE ROLE \"lead\" LOGIN", "POLICY public.t of_lead", "role \"Reader Role\" does not exist"],
    );
    pair.target("ALTER ROLE avnadmin CREATEROLE").await;
    let ended = launch.clone().arguments(&["--until", "synced"]).run().await;
    ended.assert(0, &["roles carried"]);
    assert_same(pair).await;
    assert!(!path.exists());
    assert!(may_log_in(pair, "lead", "lead's own").await);
    assert!(may_log_in(pair, "already", "of the target").await);
    assert!(!may_log_in(pair, "already", "of the source").await);
    let hash = "SELECT rolpassword FROM pg_authid WHERE rolname = 'old'";
    assert_eq!(pair.source_value(hash).await, pair.target_value(hash).await);
    let none = "SELECT count(*) FROM pg_authid WHERE rolname IN ('power', 'team') AND rolpassword IS NULL";
    assert_eq!(pair.target_value(none).await, "2");
}

/// On the source anybody may have been made a member of roles that are called as the target's own, or that are the server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_alone_give_nothing() {
    let pair = Pair::start().await;
    pair.source(
        "CREATE ROLE avnadmin; CREATE ROLE billing; CREATE ROLE mallory LOGIN PASSWORD 'm'; CREATE ROLE crew",
    )
    .await;
    pair.source("GRANT avnadmin, billing, crew, pg_execute_server_program, pg_read_all_data TO mallory")
        .await;
    pair.source("GRANT crew TO billing").await;
    pair.target("CREATE ROLE billing; GRANT billing TO avnadmin WITH ADMIN OPTION").await;
    pair.target("GRANT pg_execute_server_program, pg_read_all_data TO avnadmin WITH ADMIN OPTION").await;
    pair.source("CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t OWNER TO app_owner").await;

    let check = pair.command("check").arguments(&["--json"]).run().await;
    let left_out = [
        "billing in crew",
        "mallory in avnadmin",
        "mallory in billing",
        "mallory in pg_execute_server_program",
        "--grant-existing-roles avnadmin,billing,pg_execute_server_program,pg_read_all_data",
    ];
    check.assert(0, &left_out);
    // What helps where the file cannot be written, as its reader pastes it.
    let nowhere = pair.migrate().arguments(&["--passwords-file", "/no/such/directory/passwords"]).run().await;
    nowhere.assert(5, &["the file for new passwords cannot be used", "of the source, in database defaultdb"]);
    let grant =
        nowhere.stderr.split("in database defaultdb: ").nth(1).and_then(|rest| rest.split(';').next());
    pair.source(grant.unwrap()).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    let launch = pair.migrate().arguments(&["--passwords-file", file.to_str().unwrap()]);
    launch
        .arguments(&["--until", "copied"])
        .run()
        .await
        .assert(0, &["not carried, since the target had a role of that name", "mallory in avnadmin"]);
    assert!(!file.exists());
    let members = "SELECT string_agg(roleid::regrole || ' ' || member::regrole, ', ' ORDER BY roleid::regrole::text)
                   FROM pg_auth_members WHERE 'mallory'::regrole IN (roleid, member) AND member::regrole <> 'avnadmin'::regrole";
    assert_eq!(pair.target_value(members).await, "crew mallory");

    // One that is made later becomes a member of one that was made before; and what is named is carried.
    pair.source("CREATE ROLE late; GRANT crew TO late").await;
    let made = pair.target_value("SELECT string_agg(name, ',' ORDER BY name) FROM walferry.role").await;
    assert_eq!(made, "app_owner,crew,mallory");
    let granted = made.split(',').chain(["pg_read_all_data"]).map(str::to_owned).collect();
    let (source, target) = sessions(&pair).await;
    let options = options(Vec::new(), granted, &file);
    carry_roles(&source, &target, &options).await.unwrap();
    assert_eq!(pair.target_value(members).await, "crew mallory, pg_read_all_data mallory");
    let late =
        "SELECT count(*) FROM pg_auth_members WHERE roleid = 'crew'::regrole AND member = 'late'::regrole";
    assert_eq!(pair.target_value(late).await, "1");
}
