//! Each finding of `walferry check`, caused for real.

#![allow(clippy::unwrap_used)]

mod server;

use server::Server;
use walferry::catalog::{SourceClient, TargetClient};
use walferry::config::Method;
use walferry::migrate::preflight::{self, CheckOptions, PreflightInput, Report, Severity};
use walferry::pg::SlotName;

/// The finding `id` has this severity, and its text and hint hold these words.
fn check(report: &Report, id: &str, severity: Severity, words: &[&str]) {
    let finding = report.get(id).unwrap_or_else(|| panic!("no finding {id}: {report:#?}"));
    assert_eq!(finding.severity, severity, "{finding:#?}");
    let text = format!("{} {} {}", finding.subject, finding.cause, finding.hint);
    for word in words {
        assert!(text.contains(word), "no {word:?} in {finding:#?}");
    }
}

const NOT_GOOD: [Severity; 2] = [Severity::Warning, Severity::Fail];

fn not_good(report: &Report) -> Vec<&'static str> {
    report.findings.iter().filter(|f| NOT_GOOD.contains(&f.severity)).map(|f| f.id).collect()
}

async fn report(
    source: (&Server, &str, &str),
    target: (&Server, &str, &str),
    input: &PreflightInput,
) -> Report {
    let source = SourceClient::new(source.0.connect(source.1, source.2).await);
    let target = TargetClient::new(target.0.connect(target.1, target.2).await);
    preflight::run(&source, &target, input).await
}

#[tokio::test]
async fn a_source_made_for_it() {
    let source = Server::start(&["wal_level=logical", "max_prepared_transactions=2"]);
    let target = Server::start(&[]);
    let input = PreflightInput { databases: vec!["app".to_owned()], ..PreflightInput::default() };
    for server in [&source, &target] {
        server.script("postgres", "CREATE ROLE mover LOGIN REPLICATION").await;
        server.script("postgres", "CREATE DATABASE app OWNER mover").await;
    }
    target.script("app", "GRANT SET ON PARAMETER session_replication_role TO mover").await;
    source
        .session("mover", "app", "")
        .await
        .batch_execute("CREATE TABLE t (a int PRIMARY KEY)")
        .await
        .unwrap();

    let run = || report((&source, "mover", "app"), (&target, "mover", "app"), &input);
    let found = run().await;
    assert_eq!(not_good(&found), [""; 0], "{found:#?}");
    assert!(!found.failed());
    assert!(found.render_table(100).contains("checks passed: ok"));
    check(&found, "source-reachable", Severity::Ok, &["PostgreSQL", "database app"]);
    check(&found, "target-replication-role", Severity::Ok, &["may set"]);

    fence(&source, &target).await;
    slots(&source, &target).await;
    transactions(&source, &target).await;
    awkward_tables(&source, &target).await;
    target_side(&source, &target).await;
    lost_connection(&source, &target).await;
    same_server(&source).await;
}

/// What keeps the source from being fenced at cutover, mended as its hints say.
async fn fence(source: &Server, target: &Server) {
    let run = async |fence_commands| {
        let input = PreflightInput { fence_commands, ..PreflightInput::default() };
        report((source, "mover", "app"), (target, "mover", "app"), &input).await
    };
    check(&run(false).await, "source-fence", Severity::Ok, &["read only at cutover"]);
    source.script("postgres", "CREATE ROLE landlord; CREATE ROLE till LOGIN").await;
    source
        .script("postgres", "ALTER DATABASE app OWNER TO landlord; GRANT CREATE ON DATABASE app TO mover")
        .await;
    let session = source.session("till", "app", "").await;
    let found = run(false).await;
    let words = [
        "the database's owner landlord; those to end sessions of till",
        "GRANT \"landlord\" TO \"mover\";",
        "GRANT \"pg_signal_backend\" TO \"mover\";",
        "--fence none",
    ];
    check(&found, "source-fence", Severity::Warning, &words);
    assert!(run(true).await.get("source-fence").is_none());
    obey(source, "app", &found, "source-fence").await;
    check(&run(false).await, "source-fence", Severity::Ok, &[]);
    drop(session);

    // Nobody is told to become a superuser.
    source.script("postgres", "ALTER DATABASE app OWNER TO postgres").await;
    let found = run(false).await;
    check(&found, "source-fence", Severity::Warning, &["the database's owner postgres"]);
    assert!(!found.get("source-fence").unwrap().hint.contains("GRANT"));
    source.script("postgres", "ALTER DATABASE app OWNER TO mover; REVOKE pg_signal_backend FROM mover").await;
    source.script("postgres", "DROP ROLE landlord, till").await;
}

async fn slots(source: &Server, target: &Server) {
    source.script("app", "SELECT pg_create_logical_replication_slot('walferry_app', 'pgoutput')").await;
    let slot = SlotName::new("walferry_app").unwrap();
    let input = PreflightInput { slots: vec![slot], ..PreflightInput::default() };
    let found = report((source, "mover", "app"), (target, "mover", "app"), &input).await;
    check(&found, "source-slot-name", Severity::Fail, &["pg_drop_replication_slot('walferry_app')"]);
    let fresh = input.clone();
    let input = PreflightInput { resuming: true, ..input };
    let resumed = report((source, "mover", "app"), (target, "mover", "app"), &input).await;
    assert_eq!(not_good(&resumed), [""; 0]);
    check(&resumed, "source-slots", Severity::Ok, &["1 of 10 in use, 0 more needed"]);
    obey(source, "app", &found, "source-slot-name").await;
    let found = report((source, "mover", "app"), (target, "mover", "app"), &fresh).await;
    assert_eq!(not_good(&found), [""; 0]);
}

async fn transactions(source: &Server, target: &Server) {
    source.script("postgres", "BEGIN; CREATE TABLE p (a int); PREPARE TRANSACTION 'it''s'").await;
    let writer = source.session("postgres", "postgres", "").await;
    writer.batch_execute("BEGIN; CREATE TABLE w (a int)").await.unwrap();
    let prepared =
        report((source, "mover", "app"), (target, "mover", "app"), &PreflightInput::default()).await;
    check(
        &prepared,
        "source-prepared-transactions",
        Severity::Warning,
        &["ROLLBACK PREPARED 'it''s'; -- in postgres"],
    );
    check(&prepared, "source-long-transactions", Severity::Info, &["1 session of other roles"]);
    let found =
        report((source, "postgres", "app"), (target, "mover", "app"), &PreflightInput::default()).await;
    check(&found, "source-long-transactions", Severity::Ok, &["none older than 30 s"]);
    writer.batch_execute("ROLLBACK").await.unwrap();
    obey(source, "app", &prepared, "source-prepared-transactions").await;
    source.script("postgres", "SELECT 1 / (SELECT count(*) = 0 FROM pg_prepared_xacts)::int").await;
}

async fn awkward_tables(source: &Server, target: &Server) {
    let script = r#"
        CREATE TABLE keyless (a int); CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE);
        CREATE TABLE "Uni" (a int NOT NULL UNIQUE); CREATE TABLE nothing (a int PRIMARY KEY);
        ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE UNLOGGED TABLE unlogged (a int); CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a;
        CREATE TABLE parted (a int) PARTITION BY LIST (a); CREATE TABLE part PARTITION OF parted DEFAULT;
        SELECT lo_create(0);"#;
    source.session("mover", "app", "").await.batch_execute(script).await.unwrap();
    source
        .script(
            "app",
            "CREATE ROLE other; CREATE TABLE theirs (a int PRIMARY KEY); CREATE SEQUENCE hidden; ALTER TABLE theirs OWNER TO other",
        )
        .await;
    source.script("app", "ALTER TABLE theirs ENABLE ROW LEVEL SECURITY").await;
    let found = report((source, "mover", "app"), (target, "mover", "app"), &PreflightInput::default()).await;
    let words = [
        "5 tables without",
        "public.keyless, public.nothing (REPLICA IDENTITY NOTHING)",
        "public.deferred (its primary key is DEFERRABLE)",
        "public.part",
        "only inserts and truncates are replicated, updates and deletes are not",
        "ALTER TABLE \"public\".\"keyless\" REPLICA IDENTITY FULL;",
        "ALTER TABLE \"public\".\"Uni\" REPLICA IDENTITY USING INDEX \"Uni_a_key\";",
        "ALTER TABLE \"public\".\"nothing\" REPLICA IDENTITY USING INDEX \"nothing_pkey\";",
    ];
    check(&found, "source-replica-identity", Severity::Warning, &words);
    let finding = found.get("source-replica-identity").unwrap();
    assert!(!finding.cause.contains("unlogged") && !finding.cause.contains("parted"));
    let identities = finding.hint.clone();
    check(&found, "source-replica-identity-full", Severity::Info, &["public.whole"]);
    check(&found, "source-table-owners", Severity::Fail, &["public.theirs", "GRANT \"other\" TO \"mover\";"]);
    check(
        &found,
        "source-select",
        Severity::Fail,
        &["public.theirs", "GRANT SELECT ON ALL TABLES IN SCHEMA \"public\""],
    );
    check(
        &found,
        "source-row-security",
        Severity::Fail,
        &["public.theirs", "ALTER ROLE \"mover\" BYPASSRLS;"],
    );
    let hint = "GRANT SELECT ON ALL SEQUENCES IN SCHEMA \"public\" TO \"mover\";";
    check(&found, "source-sequences", Severity::Fail, &["public.hidden", hint]);
    check(&found, "source-unlogged-tables", Severity::Info, &["1 unlogged table", "public.unlogged"]);
    check(&found, "source-materialized-views", Severity::Info, &["public.mv"]);
    check(
        &found,
        "source-large-objects",
        Severity::Info,
        &["1 large object", "brought up to date at cutover"],
    );
    let input = PreflightInput { replica_identity_full: true, ..PreflightInput::default() };
    let full = report((source, "mover", "app"), (target, "mover", "app"), &input).await;
    check(&full, "source-replica-identity", Severity::Info, &["until the migration is removed"]);

    // What the hints say, done, leaves nothing to say.
    source.script("app", &identities).await;
    for id in ["source-table-owners", "source-select", "source-sequences", "source-row-security"] {
        obey(source, "app", &found, id).await;
    }
    let found = report((source, "mover", "app"), (target, "mover", "app"), &PreflightInput::default()).await;
    assert_eq!(not_good(&found), ["target-roles"]);
    check(&found, "target-roles", Severity::Warning, &["other", "ALTER ROLE \"mover\" CREATEROLE;"]);
}

async fn target_side(source: &Server, target: &Server) {
    let input = PreflightInput { databases: vec!["app".to_owned()], ..PreflightInput::default() };
    target.script("postgres", "CREATE ROLE poor LOGIN").await;
    let run = || report((source, "mover", "app"), (target, "poor", "app"), &input);
    let found = run().await;
    check(&found, "target-create", Severity::Fail, &["GRANT CREATE ON DATABASE \"app\" TO \"poor\";"]);
    check(
        &found,
        "target-schema-public",
        Severity::Fail,
        &["GRANT USAGE, CREATE ON SCHEMA public TO \"poor\";"],
    );
    let grant = "GRANT SET ON PARAMETER session_replication_role TO \"poor\";";
    check(&found, "target-replication-role", Severity::Warning, &[grant, "no triggers"]);
    for id in ["target-create", "target-schema-public"] {
        obey(target, "app", &found, id).await;
        check(&run().await, id, Severity::Ok, &[]);
    }
    // Of two ways, the one that every server has.
    let hint = &found.get("target-replication-role").unwrap().hint;
    target.script("app", hint.lines().find(|line| *line == grant).unwrap()).await;
    check(&run().await, "target-replication-role", Severity::Ok, &[]);
    let revoke = "REVOKE CREATE ON DATABASE app FROM poor; REVOKE USAGE, CREATE ON SCHEMA public FROM poor;
        REVOKE SET ON PARAMETER session_replication_role FROM poor";
    target.script("app", revoke).await;
    source
        .script(
            "app",
            "CREATE TABLE child (a int PRIMARY KEY REFERENCES t); ALTER TABLE child OWNER TO mover",
        )
        .await;
    let found = run().await;
    check(&found, "target-replication-role", Severity::Fail, &[grant, "aiven_extras", "public.child"]);
    assert!(!found.only_replication_fails());
    let extras = "CREATE SCHEMA aiven_extras;
        CREATE FUNCTION aiven_extras.session_replication_role(arg text) RETURNS text LANGUAGE sql AS 'SELECT $1'";
    target.script("app", extras).await;
    check(&run().await, "target-replication-role", Severity::Fail, &[grant]);
    target.script("app", "GRANT USAGE ON SCHEMA aiven_extras TO poor").await;
    // It only has the name; then it is one of the extension, and not a superuser's.
    check(&run().await, "target-replication-role", Severity::Fail, &[grant]);
    target.script("app", "DROP SCHEMA aiven_extras CASCADE").await;
    target.script("app", include_str!("../src/demo/sample/aiven_extras.sql")).await;
    let give = "ALTER FUNCTION aiven_extras.session_replication_role OWNER TO";
    target.script("app", &format!("CREATE ROLE eve; {give} eve")).await;
    check(&run().await, "target-replication-role", Severity::Fail, &[grant]);
    target.script("app", &format!("{give} CURRENT_USER")).await;
    check(&run().await, "target-replication-role", Severity::Ok, &["aiven_extras"]);
    target.script("app", "ALTER ROLE poor SET default_transaction_read_only = on").await;
    let found = run().await;
    check(&found, "target-read-only", Severity::Fail, &["default_transaction_read_only = off;"]);
    obey(target, "app", &found, "target-read-only").await;
    assert!(run().await.get("target-read-only").is_none());
    target.script("app", "ALTER ROLE poor RESET ALL").await;

    target.script("app", "CREATE ROLE mallory; CREATE SCHEMA walferry AUTHORIZATION mallory").await;
    let statements = ["DROP SCHEMA walferry CASCADE;", "ALTER SCHEMA walferry OWNER TO \"poor\";"];
    check(&run().await, "target-walferry-schema", Severity::Fail, &["belongs to mallory"]);
    check(&run().await, "target-walferry-schema", Severity::Fail, &statements);
    for statement in statements.iter().rev() {
        target.script("app", statement).await;
        assert!(run().await.get("target-walferry-schema").is_none());
    }

    target.script("app", "CREATE TABLE mine (a int)").await;
    check(&run().await, "target-empty", Severity::Warning, &["public.mine", "all empty"]);
    target.script("app", "CREATE TABLE t (a int)").await;
    check(&run().await, "target-empty", Severity::Fail, &["1 table of the source already: public.t"]);
    target.script("app", "INSERT INTO mine VALUES (1)").await;
    check(&run().await, "target-empty", Severity::Fail, &["has data in 1 table: public.mine"]);

    unlike_extensions(source, target, &input).await;
    extensions_that_need_another(source, target, &input).await;
    source.script("app", "CREATE EXTENSION citext; CREATE EXTENSION pageinspect").await;
    let found = run().await;
    check(
        &found,
        "target-extension-privilege",
        Severity::Fail,
        &["pageinspect", "\nCREATE EXTENSION \"pageinspect\" SCHEMA \"public\";"],
    );
    source.script("app", "UPDATE pg_extension SET extversion = '99.1' WHERE extname = 'citext'").await;
    source.script("app", "UPDATE pg_extension SET extname = 'secret' WHERE extname = 'pageinspect'").await;
    let found = run().await;
    check(&found, "target-extensions", Severity::Fail, &["secret", "drop them on the source"]);
    check(&found, "target-extension-version", Severity::Warning, &["citext", "version 99.1 on the source"]);
    let without = PreflightInput { excluded_extensions: vec!["secret".to_owned()], ..input.clone() };
    let found = report((source, "mover", "app"), (target, "poor", "app"), &without).await;
    check(&found, "target-extensions", Severity::Ok, &[]);

    let two = PreflightInput { databases: vec!["app".to_owned(), "extra".to_owned()], ..input.clone() };
    let found = report((source, "mover", "app"), (target, "poor", "app"), &two).await;
    check(&found, "source-databases", Severity::Fail, &["extra", "it has app, postgres"]);
    check(
        &found,
        "target-databases",
        Severity::Fail,
        &["ALTER ROLE \"poor\" CREATEDB;", "CREATE DATABASE \"extra\";"],
    );
    let made = report((source, "mover", "app"), (target, "postgres", "app"), &two).await;
    check(&made, "target-databases", Severity::Ok, &["extra will be created"]);
    obey(target, "postgres", &found, "target-databases").await;
    let found = report((source, "mover", "app"), (target, "poor", "app"), &two).await;
    check(&found, "target-databases", Severity::Ok, &[]);

    target.script("postgres", "CREATE DATABASE turkish TEMPLATE template0 LC_COLLATE 'C'").await;
    target.script("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'").await;
    let found = report((source, "mover", "app"), (target, "postgres", "turkish"), &input).await;
    check(&found, "target-locale", Severity::Warning, &["collate C,", "may sort otherwise"]);
    let found = report((source, "mover", "app"), (target, "postgres", "latin"), &input).await;
    check(&found, "target-locale", Severity::Fail, &["LATIN1", "cannot hold all of it"]);
    let elsewhere = PreflightInput { target_database_exists: false, ..input };
    let found = report((source, "mover", "app"), (target, "postgres", "latin"), &elsewhere).await;
    assert!(found.get("target-locale").is_none() && found.get("target-empty").is_none());
}

/// What an administrator made beforehand, and made elsewhere; and what only a superuser may make.
async fn unlike_extensions(source: &Server, target: &Server, input: &PreflightInput) {
    let run = || report((source, "mover", "app"), (target, "poor", "app"), input);
    let tables = "CREATE SCHEMA extensions; CREATE EXTENSION hstore SCHEMA extensions; CREATE EXTENSION seg SCHEMA extensions;
        CREATE TABLE attributes (id int PRIMARY KEY, h extensions.hstore); ALTER TABLE attributes OWNER TO mover;
        CREATE TABLE forced (id int PRIMARY KEY); ALTER TABLE forced OWNER TO mover;
        ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE FUNCTION loose(cstring) RETURNS int LANGUAGE c AS '$libdir/hstore', 'hstore_in'";
    source.script("app", tables).await;
    target.script("app", "CREATE EXTENSION hstore; CREATE EXTENSION seg").await;
    let found = run().await;
    let words = ["hstore", "made in schema public", "\"hstore\" SET SCHEMA \"extensions\";"];
    check(&found, "target-extension-schema", Severity::Fail, &words);
    check(&found, "target-c-functions", Severity::Fail, &["1 function", "public.loose(cstring)"]);
    let words = ["role poor", "public.forced", "ALTER ROLE \"poor\" BYPASSRLS;"];
    check(&found, "target-row-security", Severity::Fail, &words);
    obey(target, "app", &found, "target-extension-schema").await;
    target.script("app", "ALTER ROLE poor BYPASSRLS").await;
    source.script("app", "DROP FUNCTION loose(cstring)").await;
    let found = run().await;
    // Nothing on the source needs the other one.
    check(&found, "target-extension-schema", Severity::Info, &["seg", "nothing depends on it"]);
    for id in ["target-c-functions", "target-row-security"] {
        assert!(found.get(id).is_none(), "{:#?}", found.get(id));
    }
    source
        .script("app", "DROP TABLE attributes, forced; DROP EXTENSION hstore, seg; DROP SCHEMA extensions")
        .await;
    target
        .script("app", "DROP EXTENSION hstore, seg; DROP SCHEMA extensions; ALTER ROLE poor NOBYPASSRLS")
        .await;
}

/// One that cannot be moved is made again, and what needs it on the target goes with it.
async fn extensions_that_need_another(source: &Server, target: &Server, input: &PreflightInput) {
    let run = || report((source, "mover", "app"), (target, "poor", "app"), input);
    let script = "CREATE SCHEMA \"E\"; CREATE EXTENSION cube SCHEMA \"E\"; CREATE EXTENSION earthdistance SCHEMA \"E\";
        CREATE EXTENSION pageinspect SCHEMA \"E\"; CREATE TABLE places (id int PRIMARY KEY, p \"E\".earth)";
    source.script("app", script).await;
    target.script("app", "CREATE EXTENSION earthdistance CASCADE").await;
    target.script("app", "UPDATE pg_extension SET extrelocatable = false").await;
    let found = run().await;
    let words =
        ["cube", "DROP EXTENSION \"earthdistance\", \"cube\";", "CREATE EXTENSION \"cube\" SCHEMA \"E\";"];
    check(&found, "target-extension-schema", Severity::Fail, &words);
    obey(target, "app", &found, "target-extension-schema").await;
    let found = run().await;
    let words = [
        "earthdistance, pageinspect",
        "SCHEMA IF NOT EXISTS \"E\";",
        "EXTENSION \"pageinspect\" SCHEMA \"E\";",
    ];
    check(&found, "target-extension-privilege", Severity::Fail, &words);
    obey(target, "app", &found, "target-extension-privilege").await;
    let found = run().await;
    for id in ["target-extension-schema", "target-extension-privilege"] {
        assert!(found.get(id).is_none(), "{:#?}", found.get(id));
    }
    source
        .script(
            "app",
            "DROP TABLE places; DROP EXTENSION earthdistance, cube, pageinspect; DROP SCHEMA \"E\"",
        )
        .await;
    target.script("app", "DROP EXTENSION earthdistance, cube, pageinspect; DROP SCHEMA \"E\"").await;
}

async fn lost_connection(source: &Server, target: &Server) {
    let client = SourceClient::new(source.connect("mover", "app").await);
    let other = TargetClient::new(target.connect("postgres", "app").await);
    source
        .script("app", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'mover'")
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let found = preflight::run(&client, &other, &PreflightInput::default()).await;
    check(&found, "source-reachable", Severity::Fail, &["the connection was lost"]);
    check(&found, "target-reachable", Severity::Ok, &[]);
    assert_eq!(found.findings.len(), 2);
}

#[tokio::test]
async fn a_standby() {
    let standby = Server::start_standby(&["wal_level=logical"]);
    let target = Server::start(&[]);
    let input = PreflightInput::default();
    let found = report((&standby, "postgres", "postgres"), (&target, "postgres", "postgres"), &input).await;
    check(&found, "source-recovery", Severity::Fail, &["is a standby", "connect to the primary"]);
    check(&found, "target-recovery", Severity::Ok, &[]);
    let found = report((&target, "postgres", "postgres"), (&standby, "postgres", "postgres"), &input).await;
    check(&found, "target-recovery", Severity::Fail, &["is a standby"]);
}

async fn same_server(source: &Server) {
    let input = PreflightInput::default();
    let found = report((source, "mover", "app"), (source, "mover", "app"), &input).await;
    check(&found, "same-cluster", Severity::Fail, &["both are database app of one server"]);
    let found = report((source, "mover", "app"), (source, "postgres", "postgres"), &input).await;
    check(&found, "same-cluster", Severity::Warning, &["both are databases of one server"]);
}

#[tokio::test]
async fn a_source_not_made_for_it() {
    let settings = [
        "wal_level=replica",
        "max_replication_slots=1",
        "max_wal_senders=1",
        "max_slot_wal_keep_size=64MB",
        "synchronous_standby_names=walferry",
        "synchronous_commit=local",
    ];
    let source = Server::start(&settings);
    let target = Server::start(&[]);
    source
        .script("postgres", "CREATE ROLE poor LOGIN; SELECT pg_create_physical_replication_slot('taken')")
        .await;
    let input = PreflightInput { slots_needed: 2, ..PreflightInput::default() };
    let run = || report((&source, "poor", "postgres"), (&target, "postgres", "postgres"), &input);
    let found = run().await;
    let hint = "ALTER SYSTEM SET wal_level = 'logical';";
    check(
        &found,
        "source-wal-level",
        Severity::Fail,
        &["replica, but logical is needed", hint, "restart the server"],
    );
    let hint = "ALTER SYSTEM SET max_replication_slots = '10';";
    check(&found, "source-slots", Severity::Fail, &["1 of 1 in use, 2 more needed", hint]);
    check(&found, "source-wal-senders", Severity::Fail, &["0 of 1 in use, 2 more needed", "max_wal_senders"]);
    check(&found, "source-replication-privilege", Severity::Fail, &["ALTER ROLE \"poor\" REPLICATION;"]);
    let hint = "GRANT CREATE ON DATABASE \"postgres\" TO \"poor\";";
    check(&found, "source-publication-privilege", Severity::Fail, &[hint]);
    check(&found, "source-slot-retention", Severity::Warning, &["64.0 MiB", "max_slot_wal_keep_size = '-1'"]);
    check(&found, "source-synchronous-standbys", Severity::Warning, &["walferry matches walferry"]);
    // Nobody is connected to it: a backup's, or a standby's that is gone.
    assert!(found.get("source-failover").is_none(), "{found:#?}");
    assert!(found.failed() && found.only_replication_fails(), "{:?}", not_good(&found));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["result"], "fail");
    methods(&source, &target).await;
    assert_eq!(json["findings"][0]["id"], "source-reachable");
    let table = found.render_table(100);
    assert!(table.lines().count() < 60 && table.contains("source-wal-level"), "{table}");

    // Each provider's roles give it away, and its own way is told.
    for (role, words) in [
        ("rds_replication", ["rds.logical_replication", "GRANT rds_replication TO \"poor\";"]),
        ("cloudsqlsuperuser", ["cloudsql.logical_decoding=on", "ALTER USER \"poor\" WITH REPLICATION;"]),
        ("azure_pg_admin", ["azure.replication_support = logical", "ALTER ROLE \"poor\" REPLICATION;"]),
        ("avnadmin", ["ask Aiven's support", "use avnadmin"]),
    ] {
        source.script("postgres", &format!("CREATE ROLE {role}")).await;
        let found = run().await;
        check(&found, "source-wal-level", Severity::Fail, &words[..1]);
        check(&found, "source-replication-privilege", Severity::Fail, &words[1..]);
        if role == "rds_replication" {
            source.script("postgres", "GRANT rds_replication TO poor").await;
            check(&run().await, "source-replication-privilege", Severity::Ok, &[]);
        }
        source.script("postgres", &format!("DROP ROLE {role}")).await;
    }
    // Self-hosted, as its reader pastes it; the settings count after a restart.
    let found = run().await;
    for id in [
        "source-replication-privilege",
        "source-publication-privilege",
        "source-wal-level",
        "source-slots",
        "source-wal-senders",
        "source-slot-retention",
    ] {
        obey(&source, "postgres", &found, id).await;
    }
    let found = run().await;
    check(&found, "source-replication-privilege", Severity::Ok, &[]);
    check(&found, "source-publication-privilege", Severity::Ok, &[]);
    let set = "SELECT 1 / (count(*) = 4)::int FROM pg_file_settings WHERE sourcefile ~ 'auto.conf'
        AND name IN ('wal_level', 'max_replication_slots', 'max_wal_senders', 'max_slot_wal_keep_size')";
    source.script("postgres", set).await;
}

/// The same source, when nobody forces replication.
async fn methods(source: &Server, target: &Server) {
    let run = async |method| {
        let input = PreflightInput { slots_needed: 2, method, ..PreflightInput::default() };
        report((source, "poor", "postgres"), (target, "postgres", "postgres"), &input).await
    };
    let found = run(None).await;
    let reason = "wal_level: replica, but logical is needed";
    check(&found, "method", Severity::Warning, &["falls back to pg_dump", "NOT carried", reason]);
    for id in ["source-wal-level", "source-slots", "source-wal-senders", "source-replication-privilege"] {
        check(&found, id, Severity::Warning, &["falls back to method pg_dump"]);
    }
    assert!(!found.failed() && found.method == Method::PgDump, "{:?}", not_good(&found));
    assert_eq!(found.method_reason, reason);
    let found = run(Some(Method::PgDump)).await;
    assert_eq!(not_good(&found), ["method"]);
    assert_eq!((found.method, found.method_reason.as_str()), (Method::PgDump, ""));
}

/// Runs the statements of a finding's hint, each by itself, in the database that it names.
async fn obey(server: &Server, database: &str, report: &Report, id: &str) {
    let hint = &report.get(id).unwrap_or_else(|| panic!("no finding {id}: {report:#?}")).hint;
    let mut obeyed = 0;
    for line in hint.lines() {
        let (statement, database) = line.split_once(" -- in ").unwrap_or((line, database));
        if statement.ends_with(';') {
            server.script(database, statement).await;
            obeyed += 1;
        }
    }
    assert!(obeyed > 0, "no statement in {id}: {hint}");
}

#[tokio::test]
async fn what_stands_around_the_tables() {
    let source = Server::start(&["wal_level=logical", "allow_in_place_tablespaces=on"]);
    let target = Server::start(&["max_connections=6"]);
    source.script("postgres", "CREATE ROLE mover LOGIN REPLICATION CONNECTION LIMIT 5").await;
    let database = "CREATE DATABASE app TEMPLATE template0 LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de'";
    for server in [&source, &target] {
        server.script("postgres", database).await;
    }
    source.script("postgres", "ALTER DATABASE app OWNER TO mover").await;
    source.script("postgres", r#"CREATE TABLESPACE "Fast" LOCATION ''"#).await;
    let tables = r#"SET ROLE mover;
        CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE keyless (a int); CREATE TABLE "Sorted" (a text);
        RESET ROLE; ALTER TABLE t SET TABLESPACE "Fast";
        CREATE COLLATION german (provider = icu, locale = 'de'); ALTER TABLE "Sorted" ALTER a TYPE text COLLATE german;
        UPDATE pg_collation SET collversion = '1' WHERE collname = 'german';
        UPDATE pg_database SET datcollversion = '1' WHERE datname = 'app';
        CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE FUNCTION quiet() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
        CREATE TRIGGER always AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION nothing();
        ALTER TABLE t ENABLE ALWAYS TRIGGER always;
        CREATE RULE "On copies" AS ON DELETE TO keyless DO ALSO NOTHING; ALTER TABLE keyless ENABLE REPLICA RULE "On copies";
        CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION quiet();
        CREATE LANGUAGE odd HANDLER plpgsql_call_handler;
        CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER far FOREIGN DATA WRAPPER nowhere;
        CREATE USER MAPPING FOR mover SERVER far OPTIONS (password 'hidden');
        INSERT INTO pg_seclabel VALUES ('t'::regclass, 'pg_class'::regclass, 0, 'test', 'hidden');
        CREATE PUBLICATION everything FOR ALL TABLES;
        CREATE SUBSCRIPTION feed CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE)"#;
    source.script("app", tables).await;
    target
        .script(
            "app",
            r#"CREATE TABLE mine (a int); CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
               CREATE TRIGGER here AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION nothing();
               ALTER TABLE mine ENABLE REPLICA TRIGGER here;
               CREATE SUBSCRIPTION old CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE)"#,
        )
        .await;
    let input = PreflightInput::default();
    let run = || report((&source, "mover", "app"), (&target, "postgres", "app"), &input);
    let found = run().await;
    assert!(!format!("{found:?}").contains("hidden"));
    check(&found, "source-size", Severity::Info, &["3 tables of "]);
    let words =
        ["always on public.t", "\"public\".\"t\" ENABLE TRIGGER \"always\";", "DISABLE RULE \"On copies\";"];
    check(&found, "source-replica-triggers", Severity::Warning, &words);
    check(
        &found,
        "target-replica-triggers",
        Severity::Warning,
        &["public.mine", "DISABLE TRIGGER \"here\";"],
    );
    let words = ["of database app, public.german", "REINDEX DATABASE \"app\";"];
    check(&found, "source-collation-versions", Severity::Warning, &words);
    check(&found, "source-event-triggers", Severity::Info, &["1 event trigger", "watch"]);
    check(&found, "target-languages", Severity::Fail, &["odd", "drop the functions"]);
    let words = [
        "1 foreign server",
        "far",
        "1 user mapping",
        "ALTER USER MAPPING FOR \"mover\" SERVER \"far\" OPTIONS (ADD user",
    ];
    check(&found, "source-foreign-servers", Severity::Warning, &words);
    check(&found, "source-tablespaces", Severity::Info, &["Fast"]);
    check(&found, "source-security-labels", Severity::Info, &["1 security label"]);
    check(&found, "source-subscriptions", Severity::Warning, &["feed", "not"]);
    check(
        &found,
        "source-publications",
        Severity::Warning,
        &["everything is FOR ALL TABLES", "public.keyless"],
    );
    check(&found, "target-subscriptions", Severity::Warning, &["ALTER SUBSCRIPTION \"old\" DISABLE;"]);
    let words = ["CONNECTION LIMIT 5, 1 in use, 5 more", "ALTER ROLE \"mover\" CONNECTION LIMIT 6;"];
    check(&found, "source-connections", Severity::Fail, &words);
    check(
        &found,
        "target-connections",
        Severity::Warning,
        &["1 of 3 connections in use, 4 more", "max_connections"],
    );

    for id in ["source-replica-triggers", "source-collation-versions", "source-replica-identity"] {
        obey(&source, "app", &found, id).await;
    }
    obey(&source, "app", &found, "source-connections").await;
    source.script("app", "REINDEX TABLE \"Sorted\"").await;
    obey(&target, "app", &found, "target-subscriptions").await;
    obey(&target, "app", &found, "target-replica-triggers").await;
    target.script("app", "CREATE LANGUAGE odd HANDLER plpgsql_call_handler").await;
    let found = run().await;
    for id in [
        "source-replica-triggers",
        "target-replica-triggers",
        "source-collation-versions",
        "target-languages",
    ] {
        assert!(found.get(id).is_none(), "{:#?}", found.get(id));
    }
    check(&found, "source-connections", Severity::Ok, &[]);
    check(&found, "source-publications", Severity::Info, &["everything", "after the cutover"]);
    let wanted = CheckOptions { total_bytes_max: Some(1 << 20), ..CheckOptions::default() };
    let small = PreflightInput { wanted, ..PreflightInput::default() };
    let found = report((&source, "mover", "app"), (&target, "postgres", "app"), &small).await;
    check(
        &found,
        "source-size",
        Severity::Fail,
        &["more than 1.0 MiB are not wanted", "--dbs-max-total-size"],
    );
}

/// `pg_dump` fails where there is no room for all its locks, and whoever else wants one meanwhile.
#[tokio::test]
async fn more_tables_than_the_source_has_locks_for() {
    // With what the server has besides: 10 for each of 20 + 8 + 3 + 10 + 1 sessions.
    let source = Server::start(&[
        "wal_level=logical",
        "max_locks_per_transaction=10",
        "max_connections=20",
        "max_worker_processes=8",
        "autovacuum_max_workers=3",
        "max_wal_senders=10",
    ]);
    let target = Server::start(&[]);
    let make = |count: usize| {
        let tables =
            (0..count).map(|number| format!("CREATE TABLE \"T {count} {number}\" (a int PRIMARY KEY);"));
        tables.collect::<Vec<_>>()
    };
    let input = PreflightInput::default();
    let run = || report((&source, "postgres", "postgres"), (&target, "postgres", "postgres"), &input);
    for (tables, severity, words) in [
        (420, Severity::Ok, &["420 tables at once; 10 for each of 42 sessions make 420"][..]),
        (80, Severity::Warning, &["500 tables", "make 420:", "SET max_locks_per_transaction = '64';"]),
    ] {
        for some in make(tables).chunks(20) {
            source.script("postgres", &some.concat()).await;
        }
        let found = run().await;
        check(&found, "source-locks", severity, words);
        if severity == Severity::Warning {
            obey(&source, "postgres", &found, "source-locks").await;
        }
    }
}
