//! Schema walferry: begun by one release, gone on with by the next.

use super::harness::{DATABASE, PATIENCE, Pair};

/// As releases before its versions were counted left it.
const UNCOUNTED: &str = include_str!("../../fixtures/schema/1.sql");

/// All that the tables are made of.
const SHAPE: &str = "
    SELECT string_agg(line, E'\n' ORDER BY line) FROM (
        SELECT concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
            pg_get_expr(d.adbin, d.adrelid)) AS line
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
        WHERE c.relnamespace = 'walferry'::regnamespace AND c.relkind = 'r'
        UNION ALL SELECT concat_ws(' ', c.relname, k.conname, pg_get_constraintdef(k.oid))
        FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid WHERE c.relnamespace = 'walferry'::regnamespace
        UNION ALL SELECT concat_ws(' ', c.relname, c.reloptions) FROM pg_class c
        WHERE c.relnamespace = 'walferry'::regnamespace AND c.relkind = 'r') shape";

const VERSION: &str =
    "SELECT concat_ws(' ', number, (SELECT format FROM walferry.migration)) FROM walferry.version";

/// What is remembered, in the tables of a release before: with its columns alone.
async fn as_the_last_release_left_it(pair: &Pair) {
    let client = pair.cluster.target.client(DATABASE).await.unwrap();
    let user = &pair.cluster.target_login.role;
    client.batch_execute(&format!("SET SESSION AUTHORIZATION {user}")).await.unwrap();
    client.batch_execute("ALTER SCHEMA walferry RENAME TO walferry_later").await.unwrap();
    client.batch_execute(UNCOUNTED).await.unwrap();
    let moved = "DO $$ DECLARE t text; columns text; BEGIN
        FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'walferry'::regnamespace AND relkind = 'r'
            ORDER BY relname <> 'migration', relname
        LOOP
            SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
                WHERE attrelid = format('walferry.%I', t)::regclass AND attnum > 0;
            EXECUTE format('INSERT INTO walferry.%1$I (%2$s) OVERRIDING SYSTEM VALUE SELECT %2$s FROM walferry_later.%1$I',
                t, columns);
        END LOOP;
        UPDATE walferry.migration SET format = 1;
    END $$; DROP SCHEMA walferry_later CASCADE";
    client.batch_execute(moved).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_of_the_last_release() {
    let pair = Pair::start().await;
    pair.source(
        "CREATE TABLE public.t (id int PRIMARY KEY, v text); ALTER TABLE public.t OWNER TO app_owner;
         INSERT INTO public.t SELECT g, g FROM generate_series(1, 100) g",
    )
    .await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    let (shape, version) = (pair.target_value(SHAPE).await, pair.target_value(VERSION).await);
    pair.source("INSERT INTO public.t SELECT g, g FROM generate_series(101, 200) g; DELETE FROM public.t WHERE id = 7")
        .await;
    as_the_last_release_left_it(&pair).await;
    let older = pair.target_value(SHAPE).await;
    assert_ne!(older, shape);

    // Whoever only reads changes nothing.
    let status = pair.command("status").run().await;
    status.assert(0, &["stopped", "replication"]);
    pair.command("check").run().await.assert(0, &[]);
    assert_eq!(pair.target_value(SHAPE).await, older);

    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert_eq!(pair.target_value(SHAPE).await, shape, "what is upgraded is what is made");
    assert_eq!(pair.target_value(VERSION).await, version);
    pair.source("UPDATE public.t SET v = 'again' WHERE id > 50").await;
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;

    // A later release: nothing of it is understood, and nothing is changed.
    let state = "SELECT concat_ws(' ', phase, attempt, ended, error, updated_at) FROM walferry.migration";
    pair.target("UPDATE walferry.version SET number = 99; UPDATE walferry.migration SET format = 99").await;
    let before = (pair.target_value(state).await, pair.target_value(SHAPE).await);
    let refused: [&str; 3] =
        ["begun by another version of walferry", "schema walferry is of version 99", "or a later one"];
    pair.migrate().run_for(PATIENCE).await.assert(5, &refused);
    pair.command("status").run().await.assert(5, &refused);
    pair.command("cutover").run().await.assert(5, &refused);
    // One that a release before began there, too: another migration of the database has taken the schema on.
    pair.target("UPDATE walferry.migration SET format = 1").await;
    pair.migrate().run_for(PATIENCE).await.assert(5, &refused);
    assert_eq!((pair.target_value(state).await, pair.target_value(SHAPE).await), before);
    assert_eq!(pair.target_value(VERSION).await, "99 1");

    pair.target("UPDATE walferry.version SET number = 2; UPDATE walferry.migration SET format = 2").await;
    let engine = pair.migrate().start();
    pair.assert_ends_equal(engine).await;
    pair.assert_removes().await;
}
