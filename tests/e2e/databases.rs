//! Whole databases that others made, moved while somebody writes.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use walferry::demo::{
    APP_OWNER, PgBinaries, TriggerControl, WriterOptions, Writers, compare_servers, load_shop,
};

use super::harness::{DATABASE, Pair, data};

/// What a rental shop does, written so that any row will do.
const SAKILA: [&str; 7] = [
    "INSERT INTO rental (rental_date, inventory_id, customer_id, staff_id)
     SELECT clock_timestamp() + random() * interval '1 year',
            (SELECT inventory_id FROM inventory ORDER BY random() LIMIT 1),
            (SELECT customer_id FROM customer ORDER BY random() LIMIT 1), 1",
    "UPDATE rental SET return_date = now() WHERE rental_id = (SELECT max(rental_id) FROM rental)",
    "INSERT INTO payment (customer_id, staff_id, rental_id, amount, payment_date)
     SELECT customer_id, staff_id, rental_id, round((random() * 10)::numeric, 2),
            timestamp '2005-06-01' + random() * interval '60 days' FROM rental ORDER BY random() LIMIT 3",
    "UPDATE payment SET amount = amount + 1 WHERE payment_id = (SELECT max(payment_id) FROM payment)",
    "DELETE FROM payment WHERE payment_id = (SELECT payment_id FROM payment ORDER BY random() LIMIT 1)",
    "UPDATE customer SET email = md5(random()::text) || '@example.com', activebool = NOT activebool
     WHERE customer_id = (SELECT customer_id FROM customer ORDER BY random() LIMIT 1)",
    "UPDATE film SET description = description || ' new', rental_rate = rental_rate + 0.01,
                     special_features = special_features || 'Trailers'::text
     WHERE film_id = (SELECT film_id FROM film ORDER BY random() LIMIT 1)",
];

/// What a music shop does.
const CHINOOK: [&str; 5] = [
    "UPDATE track SET unit_price = unit_price + 0.01 WHERE track_id = (1 + random() * 3000)::int",
    "INSERT INTO playlist_track SELECT 1 + (random() * 17)::int, 1 + (random() * 3500)::int
     ON CONFLICT DO NOTHING",
    "DELETE FROM playlist_track WHERE (playlist_id, track_id) = (
         SELECT playlist_id, track_id FROM playlist_track ORDER BY random() LIMIT 1)",
    "UPDATE customer SET company = md5(random()::text) WHERE customer_id = 1 + (random() * 58)::int",
    "INSERT INTO invoice (invoice_id, customer_id, invoice_date, total)
     SELECT max(invoice_id) + 1, 1, now(), 9.99 FROM invoice",
];

/// One session that writes as the owner does.
struct Scribe {
    stop: watch::Sender<bool>,
    task: JoinHandle<u32>,
}

impl Scribe {
    async fn start(pair: &Pair, statements: &'static [&'static str]) -> Self {
        let client = pair.owner().await;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut written = 0;
            while !*stopped.borrow() {
                for statement in statements {
                    client.batch_execute(statement).await.unwrap_or_else(|e| panic!("{e:?}: {statement}"));
                    written += 1;
                }
                sleep(Duration::from_millis(10)).await;
            }
            written
        });
        Self { stop, task }
    }

    async fn stop(self) -> u32 {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

/// Loads as the owner, who may not give anything to another role, nor switch the triggers of foreign keys.
async fn load(pair: &Pair, text: &str) {
    let superusers =
        |line: &&str| line.ends_with(" OWNER TO postgres;") || line.ends_with("ABLE TRIGGER ALL;");
    let kept = text.lines().filter(|line| !superusers(line));
    let text = kept.collect::<Vec<_>>().join("\n") + "\n";
    let mut psql = pair.cluster.source.superuser_tool("psql", DATABASE);
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .env("PGOPTIONS", format!("-c session_replication_role=replica -c role={APP_OWNER}"));
    psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    let mut stdin = psql.stdin.take().unwrap();
    let written = stdin.write_all(text.as_bytes()).await;
    drop(stdin);
    let output = psql.wait_with_output().await.unwrap();
    assert!(output.status.success() && written.is_ok(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn moved(files: &[&str], statements: &'static [&'static str]) {
    let pair = Pair::start().await;
    for file in files {
        let Some(text) = data(file) else {
            eprintln!("skipped: {file} is not here; WALFERRY_TEST_DATA can say where the samples are");
            return;
        };
        load(&pair, &text).await;
    }
    let scribe = Scribe::start(&pair, statements).await;
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_written(&mut engine, 300).await;
    let written = scribe.stop().await;
    pair.assert_ends_equal(engine).await;
    let comparison = pair.compare().await;
    eprintln!("{}: {written} statements; {comparison}", files[0]);
    assert!(comparison.rows_source() > 10_000, "{comparison}");
    same_objects(&pair).await;
    pair.assert_removes().await;
}

/// Both sides have the same indexes, constraints, views, triggers and functions.
async fn same_objects(pair: &Pair) {
    let objects = "
        SELECT 'index', indexdef FROM pg_indexes WHERE schemaname !~ '^pg_|^walferry'
        UNION ALL SELECT 'constraint', conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace::regnamespace::text !~ '^pg_|^walferry|^information'
        UNION ALL SELECT 'trigger', pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT 'view', viewname || definition FROM pg_views WHERE schemaname !~ '^pg_|^information'
        UNION ALL SELECT 'matview', matviewname || definition || ispopulated FROM pg_matviews
        UNION ALL SELECT 'function', pg_get_functiondef(p.oid) FROM pg_proc p
            WHERE prokind <> 'a' AND pronamespace::regnamespace::text !~ '^pg_|^information|^aiven_extras'
        UNION ALL SELECT 'comment', description FROM pg_description d WHERE objoid > 16384
        ORDER BY 1, 2";
    let (source, target) = (pair.source(objects).await, pair.target(objects).await);
    let difference = source.iter().find(|object| !target.contains(object));
    assert_eq!(difference, None, "missing on the target");
    assert_eq!(source.len(), target.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sakila() {
    moved(&["sakila/schema.sql", "sakila/data.sql"], &SAKILA).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chinook() {
    moved(&["chinook/chinook.sql"], &CHINOOK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shop_with_the_functions_of_aiven_extras() {
    let pair = Pair::with(|options| options.triggers = TriggerControl::AivenExtras).await;
    let source = &pair.cluster.source;
    load_shop(source, DATABASE).await.unwrap();
    let writers = Writers::start(source, DATABASE, WriterOptions::default()).await.unwrap();
    let ended = pair.migrate().arguments(&["--until", "copied"]).run().await;
    ended.assert(0, &["table copied"]);
    let ended = pair.migrate().arguments(&["--until", "synced"]).run().await;
    ended.assert(0, &["streaming"]);
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let counts = writers.stop().await;
    assert_eq!(counts.errors, 0, "{counts:?}");
    pair.assert_ends_equal(engine).await;
    same_objects(&pair).await;
    let status = pair.command("status").arguments(&["--json"]).run().await;
    status.assert(0, &["\"phase\": \"stopped\"", "replication slot walferry_default_"]);
    pair.assert_removes().await;
}

/// The target offers the extension, which its administrator alone may make: only what needs it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_aiven_extras_that_may_not_be_made() {
    let files = tempfile::tempdir().unwrap();
    let extensions = files.path().join("extension");
    std::fs::create_dir(&extensions).unwrap();
    let control = "default_version = '1.0'\nrelocatable = false\nschema = aiven_extras\n";
    std::fs::write(extensions.join("aiven_extras.control"), control).unwrap();
    let script = include_str!("../../src/demo/sample/aiven_extras.sql").replace("CREATE SCHEMA", "-- ");
    std::fs::write(extensions.join("aiven_extras--1.0.sql"), script).unwrap();
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let eighteen = PgBinaries::find(Some(18)).await.unwrap();
    let path = format!("{}:$system", files.path().display());
    let pair = Pair::of(eighteen.clone(), eighteen, |options| {
        options.databases = ["plain", "bound", DATABASE].map(str::to_owned).to_vec();
        options.target_databases = false;
        options.triggers = TriggerControl::None;
        options.target_options = options.target_options.clone().setting("extension_control_path", &path);
    })
    .await;
    let source = &pair.cluster.source;
    let tables = "SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)";
    source.sql("plain", tables).await.unwrap();
    source.sql("bound", tables).await.unwrap();
    source.sql("bound", "SET ROLE app_owner; CREATE TABLE u (a int REFERENCES t)").await.unwrap();

    let ended = pair.migrate().arguments(&["--database", "plain", "--until", "synced"]).run().await;
    ended.assert(0, &["the extension aiven_extras is not made", "streaming"]);
    let comparison = compare_servers(source, &pair.cluster.target, "plain").await.unwrap();
    assert!(comparison.equal(), "{comparison}");

    let other = pair.migrate().arguments(&["--name", "other", "--database", "bound", "--until", "synced"]);
    let ended = other.run().await;
    ended.assert(3, &["the extension aiven_extras is not made", "CREATE EXTENSION aiven_extras CASCADE;"]);
    // Its administrator obeys.
    pair.cluster.target.sql("bound", "CREATE EXTENSION aiven_extras CASCADE").await.unwrap();
    other.run().await.assert(0, &["streaming"]);
    let comparison = compare_servers(source, &pair.cluster.target, "bound").await.unwrap();
    assert!(comparison.equal(), "{comparison}");
}
