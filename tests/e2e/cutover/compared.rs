//! The comparison that README offers.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use walferry::demo::Server;

use super::super::harness::{DATABASE, Pair};

/// `compare.sql`, run on both sides as README says, has to find them equal.
pub async fn assert_readme_finds_them_equal(pair: &Pair) {
    let readme = include_str!("../../../README.md");
    let from = readme.split("`compare.sql` counts").nth(1).and_then(|rest| rest.split("```sql\n").nth(1));
    let script = from.and_then(|rest| rest.split("```").next()).expect("README has the script");
    let source = run(&pair.cluster.source, script).await;
    assert!(source.contains("public.orders|"), "{source}");
    assert_eq!(source, run(&pair.cluster.target, script).await);
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
