//! What the documents give to be pasted.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use walferry::demo::Server;
use walferry::wire::{ConnInfo, Environment, control};

use super::super::harness::{DATABASE, Pair};

/// `compare.sql`, run on both sides as docs/cutover.md says, has to find them equal.
pub async fn assert_compare_sql_finds_them_equal(pair: &Pair) {
    let document = include_str!("../../../docs/cutover.md");
    let from = document.split("`compare.sql` counts").nth(1).and_then(|rest| rest.split("```sql\n").nth(1));
    let script = from.and_then(|rest| rest.split("```").next()).expect("the script");
    let source = run(&pair.cluster.source, script).await;
    assert!(source.contains("public.orders|"), "{source}");
    assert_eq!(source, run(&pair.cluster.target, script).await);
}

/// What docs/failures.md says to start afresh, with this database for its own: the statements that empty the target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starting_afresh() {
    let pair = Pair::start().await;
    pair.source("SET ROLE app_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    pair.migrate().arguments(&["--until", "synced"]).run().await.assert(0, &["streaming"]);
    let document = include_str!("../../../docs/failures.md");
    let block =
        document.split("\n## Start afresh\n").nth(1).and_then(|rest| rest.split("```sh\n").nth(1)).unwrap();
    let lines: Vec<&str> = block.split("```").next().unwrap().lines().collect();
    let [remove, psql, migrate] = lines[..] else { panic!("{lines:?}") };
    assert_eq!((remove, migrate), ("walferry remove --force --database shop", "walferry migrate"));
    let remove = pair.command("remove").arguments(&["--force", "--database", DATABASE]).run().await;
    remove.assert(0, &["dropped replication slot"]);
    let statements: Vec<&str> = psql.split('\'').skip(1).step_by(2).collect();
    assert_eq!(statements.len(), 2, "{psql}");
    let client = pair.cluster.target_login.uri(&pair.cluster.target, DATABASE);
    let info = ConnInfo::parse(&client, &Environment::default()).unwrap();
    let client = control(&info, "psql").await.unwrap();
    for statement in statements {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    pair.assert_follows(&mut engine).await;
}

async fn run(server: &Server, script: &str) -> String {
    let mut psql = server.superuser_tool("psql", DATABASE);
    psql.args(["-XAt", "-v", "ON_ERROR_STOP=1"]).stdin(Stdio::piped());
    let mut psql = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    psql.stdin.take().unwrap().write_all(script.as_bytes()).await.unwrap();
    let output = psql.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
