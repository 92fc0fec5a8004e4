//! What the stream never brings: indexes, constraints, defaults, views, functions and triggers of the source that were made,
//! changed or dropped since the start.

use serde_json::Value;
use walferry::demo::PgBinaries;

use super::harness::{DATABASE, PATIENCE, Pair, wait_for};
use super::versions::{asked_for, asked_pairs, asked_pairs_and};

/// Before the start: of each kind one that stays, one to be changed, one to be dropped.
const BEFORE: &str = r#"
    CREATE SCHEMA "Odd ""s";
    SET search_path = "Odd ""s";
    CREATE TYPE mood AS ENUM ('sad', 'it''s ok');
    CREATE TABLE "Tab le" (id int PRIMARY KEY, n int DEFAULT 1, "odd 'c'" text DEFAULT 'it''s; \', m mood DEFAULT 'sad',
        gone int DEFAULT 7, CONSTRAINT "changed (c)" CHECK (n < 100), CONSTRAINT "dropped;c" CHECK (n > -5));
    INSERT INTO "Tab le" SELECT g, g FROM generate_series(1, 50) g;
    CREATE TABLE other (id int PRIMARY KEY, t int CONSTRAINT kept_fkey REFERENCES "Tab le");
    CREATE TABLE parted (id int, v text DEFAULT 'x', PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
    CREATE INDEX kept ON "Tab le" (n);
    CREATE INDEX "changed ON ONLY x" ON "Tab le" (n, id);
    CREATE UNIQUE INDEX dropped ON "Tab le" (id, n);
    CREATE FUNCTION kept(a int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION "Changed f"(a mood, b int DEFAULT 2) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION retyped(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION dropped(a mood[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE proc(INOUT a int) LANGUAGE plpgsql AS $$BEGIN a := 1; END$$;
    CREATE FUNCTION kept_mood(a mood, b mood) RETURNS mood LANGUAGE sql AS 'SELECT $2';
    CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN new; END$$;
    CREATE DOMAIN dom AS int CONSTRAINT "changed d" CHECK (VALUE < 100) CONSTRAINT dropped CHECK (VALUE <> 50);
    CREATE DOMAIN "Bare d" AS text;
    CREATE AGGREGATE joined(text) (SFUNC = textcat, STYPE = text, INITCOND = 'it''s');
    CREATE AGGREGATE summed(int) (SFUNC = int4pl, STYPE = int);
    CREATE AGGREGATE dropped(mood) (SFUNC = kept_mood, STYPE = mood);
    CREATE VIEW kept_view AS SELECT n FROM "Tab le";
    CREATE VIEW longer AS SELECT n FROM "Tab le";
    CREATE VIEW shorter AS SELECT n, id FROM "Tab le";
    CREATE TRIGGER on_view INSTEAD OF INSERT ON shorter FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE VIEW dropped_view AS SELECT n FROM "Tab le";
    CREATE MATERIALIZED VIEW sums AS SELECT sum(n) FROM "Tab le";
    CREATE INDEX on_sums ON sums (sum);
    CREATE SEQUENCE numbers INCREMENT 2; CREATE SEQUENCE kept_numbers;
    CREATE RULE "dropped r" AS ON DELETE TO other WHERE false DO NOTHING;
    CREATE RULE changed AS ON DELETE TO other WHERE false DO NOTHING;
    CREATE TRIGGER kept BEFORE UPDATE ON "Tab le" FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE TRIGGER "Changed;t" BEFORE UPDATE ON "Tab le" FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE TRIGGER disabled BEFORE UPDATE ON "Tab le" FOR EACH ROW EXECUTE FUNCTION fire();
    CREATE TRIGGER dropped BEFORE UPDATE ON "Tab le" FOR EACH ROW EXECUTE FUNCTION fire();
"#;

/// On the source, since the start: what is said of it, where `@` stands for the schema, and what is done.
const SINCE: &[(&[&str], &str)] = &[
    (
        &[r#"function @."new f"(@.mood) made"#],
        r#"CREATE FUNCTION "new f"(a mood) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 4711'"#,
    ),
    (
        &[r#"index @."new i" made"#],
        r#"CREATE INDEX "new i" ON "Tab le" ("new f"(m)) WHERE "odd 'c'" <> 'it''s'"#,
    ),
    (
        &[r#"index @."changed ON ONLY x" changed"#],
        r#"DROP INDEX "changed ON ONLY x"; CREATE INDEX "changed ON ONLY x" ON "Tab le" (id, n)"#,
    ),
    (&["index @.dropped dropped"], "DROP INDEX dropped"),
    (&[r#"index @."parted ON ONLY" made"#], r#"CREATE UNIQUE INDEX "parted ON ONLY" ON parted (id, v)"#),
    (
        &[r#"constraint "new u" of @."Tab le" made"#, r#"constraint "new fk" of @.other made"#],
        r#"ALTER TABLE "Tab le" ADD CONSTRAINT "new u" UNIQUE (n, id);
           ALTER TABLE other ADD CONSTRAINT "new fk" FOREIGN KEY (id) REFERENCES "Tab le" NOT VALID"#,
    ),
    (
        &[r#"constraint "changed (c)" of @."Tab le" changed"#],
        r#"ALTER TABLE "Tab le" DROP CONSTRAINT "changed (c)", ADD CONSTRAINT "changed (c)" CHECK (n < 200)"#,
    ),
    (
        &[r#"constraint "dropped;c" of @."Tab le" dropped"#],
        r#"ALTER TABLE "Tab le" DROP CONSTRAINT "dropped;c""#,
    ),
    (
        &[
            r#"default of column id of @."Tab le" made"#,
            r#"default of column "odd 'c'" of @."Tab le" changed"#,
            r#"default of column gone of @."Tab le" dropped"#,
        ],
        r#"ALTER TABLE "Tab le" ALTER id SET DEFAULT 5, ALTER "odd 'c'" SET DEFAULT 'she''s', ALTER gone DROP DEFAULT"#,
    ),
    (&["default of column v of @.parted changed"], "ALTER TABLE parted ALTER v SET DEFAULT 'y'"),
    (
        &["view @.new_view made"],
        r#"CREATE VIEW new_view WITH (security_barrier) AS SELECT kept(n) AS "K" FROM "Tab le""#,
    ),
    (
        &["view @.longer changed"],
        r#"CREATE OR REPLACE VIEW longer AS SELECT n, "new f"(m) AS f FROM "Tab le""#,
    ),
    (
        &["view @.shorter changed"],
        r#"DROP VIEW shorter; CREATE VIEW shorter AS SELECT id FROM "Tab le";
           CREATE TRIGGER on_view INSTEAD OF INSERT ON shorter FOR EACH ROW EXECUTE FUNCTION fire()"#,
    ),
    (&["view @.dropped_view dropped"], "DROP VIEW dropped_view"),
    (
        &["materialized view @.sums changed"],
        r#"DROP MATERIALIZED VIEW sums; CREATE MATERIALIZED VIEW sums AS SELECT sum(n), count(*) FROM "Tab le";
           CREATE INDEX on_sums ON sums (sum)"#,
    ),
    (
        &["materialized view @.counts made", "index @.on_counts made"],
        "CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM new_view; CREATE UNIQUE INDEX on_counts ON counts (count)",
    ),
    (
        &[r#"function @."Changed f"(@.mood, integer) changed"#],
        r#"CREATE OR REPLACE FUNCTION "Changed f"(a mood, b int DEFAULT 2) RETURNS int LANGUAGE sql AS 'SELECT 2; -- ;'"#,
    ),
    (
        &["function @.retyped(integer) changed"],
        "DROP FUNCTION retyped(int); CREATE FUNCTION retyped(b int) RETURNS text LANGUAGE sql AS $$SELECT '2'$$",
    ),
    (&["function @.dropped(@.mood[]) dropped"], "DROP FUNCTION dropped(mood[])"),
    (
        &["function @.proc(integer) changed"],
        "CREATE OR REPLACE PROCEDURE proc(INOUT a int) LANGUAGE plpgsql AS $$BEGIN a := 2; END$$",
    ),
    (
        &[r#"trigger "new t" of @."Tab le" made"#],
        r#"CREATE TRIGGER "new t" BEFORE UPDATE OF n ON "Tab le" FOR EACH ROW WHEN (new.n > 7) EXECUTE FUNCTION fire('it''s')"#,
    ),
    (
        &[r#"trigger "Changed;t" of @."Tab le" changed"#],
        r#"DROP TRIGGER "Changed;t" ON "Tab le";
           CREATE TRIGGER "Changed;t" AFTER INSERT ON "Tab le" FOR EACH ROW EXECUTE FUNCTION fire()"#,
    ),
    (&[r#"trigger disabled of @."Tab le" changed"#], r#"ALTER TABLE "Tab le" DISABLE TRIGGER disabled"#),
    (
        &["sequence @.numbers changed", "sequence @.\"New s\" made", "default of column t of @.other made"],
        r#"ALTER SEQUENCE numbers INCREMENT 3 CYCLE; CREATE SEQUENCE "New s" AS int MINVALUE -7 START 0;
           ALTER TABLE other ALTER t SET DEFAULT nextval('"New s"')"#,
    ),
    (
        &[
            r#"rule "dropped r" of @.other dropped"#,
            "rule changed of @.other changed",
            r#"rule "new r" of @.other made"#,
        ],
        r#"DROP RULE "dropped r" ON other; DROP RULE changed ON other;
           CREATE RULE changed AS ON DELETE TO other WHERE old.id < 0 DO NOTHING;
           CREATE RULE "new r" AS ON UPDATE TO other WHERE new.id < 0 DO ALSO SELECT 'it''s'"#,
    ),
    (&[r#"trigger dropped of @."Tab le" dropped"#], r#"DROP TRIGGER dropped ON "Tab le""#),
    (
        &[
            r#"domain constraint "changed d" of @.dom changed"#,
            "domain constraint dropped of @.dom dropped",
            r#"domain constraint "new; d" of @."Bare d" made"#,
        ],
        r#"ALTER DOMAIN dom DROP CONSTRAINT "changed d"; ALTER DOMAIN dom ADD CONSTRAINT "changed d" CHECK (VALUE < 200) NOT VALID;
           ALTER DOMAIN dom DROP CONSTRAINT dropped; ALTER DOMAIN "Bare d" ADD CONSTRAINT "new; d" CHECK (VALUE <> 'it''s')"#,
    ),
    (
        &["domain @.fresh made", "domain constraint fresh_check of @.fresh made"],
        r#"CREATE DOMAIN fresh AS varchar(7) CHECK (VALUE > 'a')"#,
    ),
    (&["enum label \"it's new\" of @.mood made"], "ALTER TYPE mood ADD VALUE 'it''s new' AFTER 'sad'"),
    (&["enum label first of @.mood made"], "ALTER TYPE mood ADD VALUE 'first' BEFORE 'sad'"),
    (&["enum label last of @.mood made"], "ALTER TYPE mood ADD VALUE 'last'"),
    (&["enum label \"Renamed l\" of @.mood made"], "ALTER TYPE mood RENAME VALUE 'it''s ok' TO 'Renamed l'"),
    (
        &["enum @.\"New e\" made", "enum label a of @.\"New e\" made", "enum label b of @.\"New e\" made"],
        "CREATE TYPE \"New e\" AS ENUM ('a', 'b')",
    ),
    (
        &["function @.joined(text) changed"],
        "CREATE OR REPLACE AGGREGATE joined(text) (SFUNC = textcat, STYPE = text, INITCOND = 'she''s', PARALLEL = SAFE)",
    ),
    (
        &["function @.summed(integer) changed"],
        "DROP AGGREGATE summed(int); CREATE AGGREGATE summed(int) (SFUNC = int84pl, STYPE = int8, FINALFUNC = int8up, INITCOND = '0',
             MSFUNC = int84pl, MINVFUNC = int84mi, MSTYPE = int8, MSSPACE = 8, MINITCOND = '0')",
    ),
    (&["function @.dropped(@.mood) dropped"], "DROP AGGREGATE dropped(mood)"),
    (
        &["function @.\"New a\"() made", "function @.greatest_text(text) made", "function @.middle(double precision, double precision) made"],
        r#"CREATE AGGREGATE "New a"(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0');
           CREATE AGGREGATE greatest_text(text) (SFUNC = text_larger, STYPE = text, SORTOP = OPERATOR(pg_catalog.>));
           CREATE AGGREGATE middle(float8 ORDER BY float8) (SFUNC = float8pl, STYPE = float8,
               FINALFUNC = float8pl)"#,
    ),
];

/// All of one side, as its server describes it.
const ALL: &str = r"
    SELECT string_agg(text, E'\n' ORDER BY text) FROM (
        SELECT indexdef FROM pg_indexes WHERE schemaname LIKE 'Odd%'
        UNION ALL SELECT conrelid::regclass::text || ' ' || conname || pg_get_constraintdef(oid) FROM pg_constraint
            WHERE conrelid <> 0 AND connamespace::regnamespace::text LIKE '%Odd%'
        UNION ALL SELECT adrelid::regclass::text || ' ' || adnum || pg_get_expr(adbin, adrelid) FROM pg_attrdef
            WHERE adrelid::regclass::text LIKE '%Odd%'
        UNION ALL SELECT oid::regclass::text || coalesce(array_to_string(reloptions, ','), '') || pg_get_viewdef(oid) FROM pg_class
            WHERE relkind IN ('v', 'm') AND relnamespace::regnamespace::text LIKE '%Odd%'
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE prokind <> 'a' AND pronamespace::regnamespace::text LIKE '%Odd%'
        UNION ALL SELECT concat_ws(' ', aggfnoid::regprocedure, aggtransfn, aggtranstype::regtype, aggfinalfn, agginitval, aggmtransfn,
            aggminvtransfn, aggmtransspace, aggminitval, aggsortop::regoperator, aggkind, aggfinalmodify, aggmfinalmodify, aggfinalextra)
            FROM pg_aggregate WHERE aggfnoid::regproc::text LIKE '%Odd%'
        UNION ALL SELECT contypid::regtype || conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid <> 0
            AND connamespace::regnamespace::text LIKE '%Odd%'
        UNION ALL SELECT enumtypid::regtype || string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum GROUP BY enumtypid
        UNION ALL SELECT pg_get_triggerdef(oid) || tgenabled::text FROM pg_trigger
            WHERE NOT tgisinternal AND tgrelid::regclass::text LIKE '%Odd%'
        UNION ALL SELECT pg_get_ruledef(oid) FROM pg_rewrite WHERE ev_class::regclass::text LIKE '%Odd%'
        UNION ALL SELECT seqrelid::regclass::text || seqincrement || seqmin || seqcycle FROM pg_sequence
            WHERE seqrelid::regclass::text LIKE '%Odd%'
    ) all_of_it (text)";

async fn on_target(pair: &Pair, statements: &str) {
    let client = pair.cluster.target.client(DATABASE).await.unwrap();
    client.batch_execute("SET ROLE avnadmin").await.unwrap();
    client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}

/// The entries of `status --json`: what is said, and the statement.
async fn in_status(pair: &Pair) -> Vec<(String, String)> {
    let ended = pair.command("status").arguments(&["--json"]).run().await;
    ended.assert(0, &[]);
    let status: Value = serde_json::from_str(&ended.stdout).unwrap();
    let text = |drift: &Value, key: &str| drift[key].as_str().unwrap().to_owned();
    let said = |drift: &Value| format!("{} {}", text(drift, "object"), text(drift, "change"));
    let drift = status["migration_detail"][0]["schema_drift"].as_array().unwrap();
    drift.iter().map(|drift| (said(drift), text(drift, "statement"))).collect()
}

/// The warnings of `check --json`.
async fn in_check(pair: &Pair) -> Vec<String> {
    let ended = pair.command("check").arguments(&["--json"]).run().await;
    ended.assert(0, &["source-schema-drift"]);
    let check: Value = serde_json::from_str(&ended.stdout).unwrap();
    let findings = check["findings"].as_array().unwrap().iter();
    let drift = findings.filter(|it| it["id"] == "source-schema-drift" && it["severity"] == "warning");
    drift
        .map(|it| format!("{}: {}", it["subject"].as_str().unwrap(), it["cause"].as_str().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind() {
    let binaries = PgBinaries::find(None).await.unwrap();
    named_and_done(binaries.clone(), binaries).await;
}

/// Servers of different versions word views in two ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_versions() {
    let pairs =
        if asked_for() { asked_pairs().await } else { asked_pairs_and(&[(14, 17)]).await.split_off(1) };
    for (source, target) in pairs {
        eprintln!("{} to {}", source.version(), target.version());
        named_and_done(source, target).await;
    }
}

/// Each is named by all three, with a statement that does it; then nothing is left, and the cutover ends.
async fn named_and_done(source: PgBinaries, target: PgBinaries) {
    let (major, same_words) = (source.major(), source.major() == target.major());
    let since = SINCE.iter().filter(|(_, sql)| {
        major >= 11 || !["PROCEDURE proc", "INDEX \"parted"].iter().any(|it| sql.contains(it))
    });
    // 10 has neither procedures nor keys of partitioned tables.
    let of_version = |sql: &str| match major {
        10 => sql
            .replace("CREATE PROCEDURE proc(INOUT a int) LANGUAGE plpgsql AS $$BEGIN a := 1; END$$;", "")
            .replace(", PRIMARY KEY (id)) PARTITION", ") PARTITION")
            .replace("EXECUTE FUNCTION", "EXECUTE PROCEDURE"),
        _ => sql.to_owned(),
    };
    let pair = Pair::of(source, target, |_| {}).await;
    let owner = pair.owner().await;
    owner.batch_execute(&of_version(BEFORE)).await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    assert_eq!(in_check(&pair).await, [""; 0]);
    for (_, statement) in since.clone() {
        owner
            .batch_execute(&of_version(statement))
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    // The fence ends no session of a superuser.
    drop(owner);
    let mut said: Vec<String> =
        since.flat_map(|(said, _)| *said).map(|said| said.replace('@', r#""Odd ""s""#)).collect();
    said.sort();

    let mut checked = in_check(&pair).await;
    checked.iter_mut().for_each(|text| *text = text.replace(" on the source since", "").replace(": ", " "));
    let checked: Vec<&str> = checked.iter().map(|text| text.split(" the start").next().unwrap()).collect();
    let mut checked: Vec<String> = checked.into_iter().map(str::to_owned).collect();
    checked.sort();
    assert_eq!(checked, said);

    let refused = pair.command("cutover").arguments(&["--json"]).run().await;
    refused.assert(5, &["the source's schema has changed since the start", "--accept-drift"]);
    let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
    let error = &answer["databases"][0]["error"];
    let mut listed: Vec<String> = in_status(&pair).await.into_iter().map(|(said, _)| said).collect();
    listed.sort();
    assert_eq!(listed, said);
    for part in &said {
        assert!(error["detail"].as_str().unwrap().contains(part), "no {part} in {error:#}");
    }
    let shown = pair.command("status").run().await;
    shown.assert(0, &["not on the target", "CREATE INDEX \"new i\"", "SELECT 2; -- ;"]);
    assert!(engine.log().contains("the source's schema has changed since the start"), "{}", engine.log());

    // As pasted.
    let hint = error["hint"].as_str().unwrap();
    let statements = hint.strip_prefix("on the target run: ").unwrap().split("; then run `walferry cutover`");
    on_target(&pair, statements.into_iter().next().unwrap()).await;
    if same_words {
        assert_eq!(pair.target_value(ALL).await, pair.source_value(ALL).await);
    }
    assert_eq!(in_check(&pair).await, [""; 0]);
    pair.assert_cuts_over(engine).await;
    assert_eq!(in_status(&pair).await, []);
    let sums = r#"SELECT sum || ' ' || count FROM "Odd ""s".sums"#;
    assert_eq!(pair.target_value(sums).await, "1275 50");
}

/// The running engine finds it by itself; what the target has by then is what counts afterwards; and one may go on without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn found_by_the_engine_and_accepted() {
    let pair = Pair::start().await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT 'a')").await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    engine.terminate(0).await;
    pair.source("SET ROLE app_owner; CREATE INDEX by_v ON t (v); ALTER TABLE t ALTER v SET DEFAULT 'b'")
        .await;
    engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let drifts = |detail: &Value| detail["schema_drift"].as_array().unwrap().len();
    let detail = engine.wait_until("two drift", |detail| drifts(detail) == 2).await;
    assert!(!detail.to_string().contains("CREATE INDEX"), "a statement may hold a secret: {detail:#}");
    assert_eq!(in_status(&pair).await.len(), 2);
    on_target(&pair, "CREATE INDEX by_v ON public.t (v)").await;
    let refused = pair.command("cutover").run().await;
    refused.assert(5, &[r#"ALTER TABLE "public"."t" ALTER COLUMN "v" SET DEFAULT 'b'::text"#]);
    assert!(!refused.stderr.contains("by_v"), "{}", refused.stderr);

    // It was made on both sides, and the source has dropped it since.
    pair.source("DROP INDEX by_v").await;
    let refused = pair.command("cutover").run().await;
    refused.assert(5, &["index public.by_v dropped", r#"DROP INDEX "public"."by_v""#]);
    let accepted = pair.command("cutover").arguments(&["--accept-drift"]).run().await;
    let left =
        ["left as it is on the target: index public.by_v dropped", "default of column v of public.t changed"];
    accepted.assert(0, &left);
    engine.wait_exit(0, PATIENCE).await;
    assert_eq!(in_status(&pair).await.len(), 2);
}

/// While the fence goes up: it is given up, and the fence is down again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_behind_the_check() {
    let pair = Pair::start().await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let directory = tempfile::tempdir().unwrap();
    let (going_up, may_stand) = (directory.path().join("going-up"), directory.path().join("may-stand"));
    let (up, stand) = (going_up.display(), may_stand.display());
    let up = format!("touch '{up}'; while ! [ -e '{stand}' ]; do sleep 0.05; done");
    let fence = ["--fence-command", &up, "--unfence-command", "true"];
    let mut engine = pair.migrate().arguments(&fence).start();
    engine.wait_phase("syncing").await;
    let cutover = pair.command("cutover").arguments(&["--fence", "command", "--json"]);
    let meanwhile = async {
        wait_for("the fence", PATIENCE, async || going_up.exists()).await;
        pair.source("SET ROLE app_owner; CREATE INDEX late ON t (v)").await;
        std::fs::write(&may_stand, "").unwrap();
    };
    let (refused, ()) = tokio::join!(cutover.run(), meanwhile);
    refused
        .assert(5, &["index public.late made", "CREATE INDEX late ON public.t", "\"state\": \"given_up\""]);
    engine.wait_phase("syncing").await;
    on_target(&pair, "CREATE INDEX late ON public.t (v)").await;
    pair.command("cutover").arguments(&["--fence", "command"]).run().await.assert(0, &["done"]);
    engine.wait_exit(0, PATIENCE).await;
}

/// What another run than the first dumps of the schema's rest is held against the target itself; and an older Walferry
/// recorded nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dumped_by_another_run_and_not_recorded() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE INDEX one ON t (v);
             INSERT INTO t SELECT g, repeat('v', 100) FROM generate_series(1, 300000) g",
        )
        .await
        .unwrap();
    let engine = pair.migrate().start();
    let made = "SELECT FROM pg_class WHERE oid = to_regclass('public.t')";
    wait_for("the schema", PATIENCE, async || !pair.target(made).await.is_empty()).await;
    engine.kill9().await;
    owner
        .batch_execute("DROP INDEX one; CREATE INDEX one ON t (id, v); CREATE VIEW w AS SELECT 1 AS one")
        .await
        .unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    owner.batch_execute("DROP INDEX one; CREATE INDEX one ON t (v)").await.unwrap();
    drop(owner);
    let refused = pair.command("cutover").run().await;
    refused.assert(5, &["index public.one changed", "view public.w made"]);
    pair.target("UPDATE walferry.migration SET definitions_at = NULL").await;
    let check = pair.command("check").arguments(&["--json"]).run().await;
    check.assert(0, &["an older Walferry began this migration"]);
    pair.command("cutover").run().await.assert(0, &["done", "an older Walferry began this migration"]);
    engine.wait_exit(0, PATIENCE).await;
}
