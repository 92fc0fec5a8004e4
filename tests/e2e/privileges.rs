//! Roles that may do no more than Aiven, or a source's owner, lets them.

use walferry::demo::TriggerControl;

use super::harness::{DATABASE, PATIENCE, Pair, wait_for};

const AIVEN_EXTRAS: &str = include_str!("../../src/demo/sample/aiven_extras.sql");
const AIVEN_LIMITS: &str = include_str!("../../fixtures/aiven/limits.sql");

/// Triggers and foreign keys that would leave traces if they fired on the target, too.
const TABLES: &str = "
    CREATE EXTENSION citext; CREATE EXTENSION pg_trgm;
    CREATE SCHEMA extensions; COMMENT ON SCHEMA extensions IS 'not ours'; CREATE EXTENSION hstore SCHEMA extensions;
    CREATE TABLE attributes (id int PRIMARY KEY, h extensions.hstore); INSERT INTO attributes VALUES (1, 'a => b');
    CREATE TYPE mood AS ENUM ('well', 'ill'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name citext UNIQUE, mood mood, orders int DEFAULT 0);
    CREATE INDEX ON customer USING gin ((name::text) gin_trgm_ops);
    CREATE TABLE bill (id serial PRIMARY KEY, customer int REFERENCES customer ON DELETE CASCADE, amount positive,
        changed int NOT NULL DEFAULT 0);
    CREATE TABLE audit (n bigserial, what text); ALTER TABLE audit REPLICA IDENTITY FULL;
    CREATE FUNCTION notes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit (what) VALUES (TG_OP || ' ' || TG_TABLE_NAME); RETURN NULL; END $$;
    CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed := OLD.changed + 1; RETURN NEW; END $$;
    CREATE FUNCTION orders() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE customer SET orders = orders + 1 WHERE id = NEW.customer; RETURN NULL; END $$;
    CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON bill FOR EACH ROW EXECUTE FUNCTION notes();
    CREATE TRIGGER counted BEFORE UPDATE ON bill FOR EACH ROW EXECUTE FUNCTION counts();
    CREATE TRIGGER ordered AFTER INSERT ON bill FOR EACH ROW EXECUTE FUNCTION orders();
    CREATE VIEW unwell AS SELECT * FROM customer WHERE mood = 'ill';
    CREATE MATERIALIZED VIEW total AS SELECT customer, sum(amount) FROM bill GROUP BY 1;
    INSERT INTO customer (name, mood) SELECT 'customer ' || n, 'well' FROM generate_series(1, 50) n;
    INSERT INTO bill (customer, amount) SELECT 1 + n % 50, n FROM generate_series(1, 500) n;";

/// Each would change other tables a second time, if triggers or foreign keys acted on the target.
const WRITES: &str = "
    INSERT INTO bill (customer, amount) SELECT 5 + n % 40, n FROM generate_series(1, 100) n;
    UPDATE bill SET amount = amount + 1 WHERE id % 7 = 0; DELETE FROM customer WHERE id IN (3, 4);
    INSERT INTO customer (name, mood) VALUES ('new', 'ill')";

/// A role that may not do it: the server must say so, or the test proves nothing.
async fn refused(pair: &Pair, statements: &[&str]) {
    let client = pair.cluster.target.client(DATABASE).await.unwrap();
    client.batch_execute("SET SESSION AUTHORIZATION avnadmin").await.unwrap();
    for statement in statements {
        let error = client.batch_execute(statement).await.expect_err(statement);
        assert_eq!(error.code().map(|code| code.code().to_owned()).as_deref(), Some("42501"), "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_as_on_aiven() {
    let pair = Pair::with(|options| options.triggers = TriggerControl::None).await;
    let target = &pair.cluster.target;
    let owner = pair.owner().await;
    owner.batch_execute(TABLES).await.unwrap();

    // Without the functions there is no way to switch triggers off, and the check says which there are.
    let check = pair.command("check");
    check.run().await.assert(3, &["target-replication-role", "GRANT SET ON PARAMETER", "public.bill"]);
    target.sql(DATABASE, AIVEN_EXTRAS).await.unwrap();
    target.sql(DATABASE, AIVEN_LIMITS).await.unwrap();
    // Made beforehand by somebody else.
    let beforehand = "CREATE SCHEMA extensions; GRANT USAGE ON SCHEMA extensions TO PUBLIC; CREATE EXTENSION hstore SCHEMA extensions";
    target.sql(DATABASE, beforehand).await.unwrap();
    refused(
        &pair,
        &[
            "SET session_replication_role = replica",
            "SELECT FROM pg_authid",
            "SELECT pg_replication_origin_create('walferry')",
            "CREATE EXTENSION pageinspect",
            "ALTER SCHEMA public OWNER TO avnadmin",
        ],
    )
    .await;
    check.run().await.assert(0, &[]);

    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    owner.batch_execute(WRITES).await.unwrap();
    pair.assert_follows(&mut engine).await;
    // Row by row, too.
    owner
        .batch_execute("UPDATE bill SET id = id + 100000 WHERE id < 20; DELETE FROM audit WHERE n < 5")
        .await
        .unwrap();
    pair.assert_follows(&mut engine).await;
    engine.kill9().await;
    owner.batch_execute(WRITES.split_once(';').unwrap().0).await.unwrap();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    let counts = "SELECT concat_ws(' ', (SELECT count(*) FROM audit), (SELECT sum(changed) FROM bill), \
                  (SELECT sum(orders) FROM customer), (SELECT count(*) FROM bill))";
    engine.wait_drained(&pair).await;
    assert_eq!(pair.source_value(counts).await, pair.target_value(counts).await);
    engine.terminate(0).await;

    // A table of its own snapshot is copied where triggers are already.
    pair.command("resync").arguments(&["public.bill"]).run().await.assert(0, &["public.bill"]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.assert_ends_equal(engine).await;
    assert_eq!(
        target
            .sql(DATABASE, "SELECT FROM pg_trigger WHERE tgname IN ('noted', 'counted', 'ordered')")
            .await
            .unwrap()
            .len(),
        3
    );
    pair.assert_removes().await;
}

/// Tables of a role that the migrating one is no member of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_of_others() {
    let pair = Pair::start().await;
    let source = &pair.cluster.source;
    source
        .sql(
            DATABASE,
            r#"CREATE ROLE others; CREATE TABLE "Theirs" (a int PRIMARY KEY, b text); CREATE TABLE keyless (a int);
               CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (b int) INHERITS (parent);
               ALTER TABLE "Theirs" OWNER TO others; ALTER TABLE keyless OWNER TO others; ALTER TABLE parent OWNER TO others;
               ALTER TABLE child OWNER TO others; REVOKE CREATE ON DATABASE defaultdb FROM app_owner;
               ALTER DATABASE defaultdb OWNER TO postgres;
               GRANT SELECT ON ALL TABLES IN SCHEMA public TO app_owner; INSERT INTO "Theirs" VALUES (1, 'x');
               INSERT INTO keyless VALUES (1)"#,
        )
        .await
        .unwrap();
    let check = pair.command("check").arguments(&["--json", "--method", "replication"]);
    let words =
        ["source-publication-privilege", r#"GRANT CREATE ON DATABASE \"defaultdb\" TO \"app_owner\";"#];
    check.run().await.assert(3, &words);
    check.run().await.assert(3, &[r#"public.\"Theirs\""#, r#"GRANT \"others\" TO \"app_owner\";"#]);

    source.sql(DATABASE, "ALTER ROLE app_owner NOREPLICATION").await.unwrap();
    let words = [
        "source-replication-privilege",
        "source-replication-connection",
        "ALTER ROLE \\\"app_owner\\\" REPLICATION;",
    ];
    check.run().await.assert(3, &words);
    source.sql(DATABASE, "ALTER ROLE app_owner REPLICATION").await.unwrap();

    // Whoever may create a schema may call his function as the extension's is called: it is not run.
    let made_up = "GRANT CREATE ON DATABASE defaultdb TO others; SET ROLE others; CREATE SCHEMA aiven_extras;
        GRANT USAGE ON SCHEMA aiven_extras TO PUBLIC; CREATE FUNCTION aiven_extras.pg_create_publication(
            arg_publication_name text, arg_publish text, VARIADIC arg_tables text[]) RETURNS void
        LANGUAGE plpgsql AS 'BEGIN CREATE TABLE public.owned AS SELECT current_user; END'";
    source.sql(DATABASE, made_up).await.unwrap();
    check.run().await.assert(3, &["source-publication-privilege"]);
    source
        .sql(DATABASE, "DROP SCHEMA aiven_extras CASCADE; REVOKE CREATE ON DATABASE defaultdb FROM others")
        .await
        .unwrap();

    // The functions publish a child with its parent, which has an identity where the child has none.
    source.sql(DATABASE, AIVEN_EXTRAS).await.unwrap();
    check.run().await.assert(3, &["aiven_extras cannot publish these apart", "public.child"]);
    source.sql(DATABASE, "ALTER TABLE child ADD PRIMARY KEY (a)").await.unwrap();
    check.run().await.assert(0, &["aiven_extras.pg_create_publication()"]);

    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    source
        .sql(
            DATABASE,
            r#"INSERT INTO "Theirs" VALUES (2, 'y'); UPDATE "Theirs" SET b = 'z' WHERE a = 1; INSERT INTO keyless VALUES (2);
               INSERT INTO child VALUES (1, 2); UPDATE child SET b = 3; INSERT INTO parent VALUES (7); DELETE FROM parent WHERE a = 7"#,
        )
        .await
        .unwrap();
    pair.assert_follows(&mut engine).await;
    // What is not published with updates may still be updated at its home.
    source.sql(DATABASE, "UPDATE keyless SET a = a").await.unwrap();
    let operations = "SELECT string_agg(concat_ws(',', pubinsert, pubupdate, pubdelete, pubtruncate), ' ' ORDER BY pubname)
                      FROM pg_publication WHERE pubowner = 'app_owner'::regrole";
    assert_eq!(pair.source_value(operations).await, "t,t,t,t t,f,f,t");
    // A table that loses its identity is taken out by the owner of the publication.
    source.sql(DATABASE, r#"ALTER TABLE "Theirs" DROP CONSTRAINT "Theirs_pkey""#).await.unwrap();
    let writable = async || source.sql(DATABASE, r#"UPDATE "Theirs" SET b = b"#).await.is_ok();
    wait_for("the source may write to it again", PATIENCE, writable).await;
    engine.wait_exit(5, PATIENCE).await;
    pair.command("remove").run().await.assert(0, &["dropped replication slot", "dropped publication"]);
}

/// What somebody did to the target's tables since the migration began is found before a row meets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_the_target_that_were_taken_away() {
    let pair = Pair::start().await;
    for table in ["given", "secured", "revoked"] {
        pair.source(&format!("CREATE TABLE public.{table} (id int PRIMARY KEY)")).await;
        pair.source(&format!("ALTER TABLE public.{table} OWNER TO app_owner")).await;
    }
    let launch = pair.migrate();
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    let check = pair.command("check").arguments(&["--json"]);
    check.run().await.assert(0, &[]);
    pair.target("CREATE ROLE other; ALTER TABLE public.given OWNER TO other").await;
    pair.target("ALTER TABLE public.secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY").await;
    pair.target("REVOKE INSERT ON public.revoked FROM app_owner, avnadmin").await;
    let statements = [
        r#"GRANT "other" TO "avnadmin";"#,
        r#"ALTER TABLE "public"."secured" NO FORCE ROW LEVEL SECURITY;"#,
        r#"GRANT SELECT, INSERT, UPDATE, DELETE ON "public"."revoked" TO "avnadmin";"#,
    ];
    let told = statements.map(|statement| statement.replace('"', "\\\""));
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    let refused = check.run().await;
    refused.assert(3, &told);
    refused.assert(3, &["public.given, public.revoked, public.secured"]);
    for statement in statements {
        pair.target(statement).await;
    }
    check.run().await.assert(0, &[]);
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    for table in ["given", "secured", "revoked"] {
        pair.source(&format!("INSERT INTO public.{table} VALUES (1)")).await;
    }
    pair.assert_follows(&mut engine).await;
}
