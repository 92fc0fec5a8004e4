//! Values that name objects: they go by name, and stop where the target has no such object, until it has.

use crate::harness::{PATIENCE, Pair};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_what_the_target_lacks() {
    let pair = Pair::start().await;
    pair.source("CREATE ROLE first; CREATE ROLE second").await;
    let owner = pair.owner().await;
    owner
        .batch_execute(
            "CREATE TABLE roles (a regrole PRIMARY KEY, acl aclitem[]); INSERT INTO roles VALUES ('first', NULL);
             CREATE TABLE functions (a int PRIMARY KEY, f regproc);
             CREATE FUNCTION one(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
             CREATE FUNCTION one(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        )
        .await
        .unwrap();
    // Not there, as roles that the target refuses.
    let launch = pair.migrate().arguments(&["--ignore-roles", "first,second"]);
    let ended = launch.run().await;
    ended.assert(5, &["table public.roles cannot be copied", "role \"first\" does not exist"]);
    pair.target("CREATE ROLE first").await;

    for (change, parts, mend) in [
        (
            "INSERT INTO roles VALUES ('second', NULL)",
            ["in table public.roles", "role \"second\" does not exist"],
            "CREATE ROLE second",
        ),
        (
            "UPDATE roles SET acl = '{third=r/first}' WHERE a = 'second'::regrole",
            ["in table public.roles", "role \"third\" does not exist"],
            "CREATE ROLE third",
        ),
        (
            "INSERT INTO functions VALUES (1, 'one(int)'::regprocedure::oid)",
            ["in table public.functions", "more than one function named \"public.one\""],
            "DROP FUNCTION public.one(text)",
        ),
    ] {
        let mut engine = launch.start();
        engine.wait_phase("syncing").await;
        if change.contains("third") {
            pair.source("CREATE ROLE third").await;
        }
        owner.batch_execute(change).await.unwrap();
        let log = engine.wait_exit(5, PATIENCE).await;
        assert!(parts.iter().all(|part| log.contains(part)), "{log}");
        pair.target(mend).await;
    }
    let mut engine = launch.start();
    engine.wait_phase("syncing").await;
    pair.source("ALTER ROLE first RENAME TO \"The First\"").await;
    pair.target("ALTER ROLE first RENAME TO \"The First\"").await;
    owner
        .batch_execute("DELETE FROM roles WHERE a = '\"The First\"'::regrole; UPDATE roles SET acl = NULL")
        .await
        .unwrap();
    pair.assert_follows(&mut engine).await;
    assert_eq!(pair.target_value("SELECT string_agg(a::text, ' ') FROM roles").await, "second");
    engine.terminate(0).await;
}
