//! Replica identities that the source would reject its own writes for.

use super::harness::{PATIENCE, Pair, wait_for};
use super::versions::asked_pairs_and;

/// Identities with a generated column.
const TABLES: &str = "
    CREATE TABLE whole (a int, b int, g int GENERATED ALWAYS AS (a * 2) STORED);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE in_key (a int, b int, g int GENERATED ALWAYS AS (b % 3) STORED, PRIMARY KEY (a, g));
    CREATE TABLE key_alone (a int, b int, g int GENERATED ALWAYS AS (a * 2) STORED, PRIMARY KEY (g));
    CREATE TABLE by_index (a int, b int, g int GENERATED ALWAYS AS (a * 2) STORED NOT NULL);
    CREATE UNIQUE INDEX by_g ON by_index (g); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_g;
    CREATE TABLE beside (a int PRIMARY KEY, b int, g int GENERATED ALWAYS AS (a * 2) STORED);
    CREATE TABLE keyless (a int, b int, g int GENERATED ALWAYS AS (a * 2) STORED)";

const NAMES: [&str; 6] = ["whole", "in_key", "key_alone", "by_index", "beside", "keyless"];

/// The source can go on writing, whatever is published, and the target has it all in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_in_identities() {
    for (source, target) in asked_pairs_and(&[(18, 18)]).await {
        let pair = Pair::of(source, target, |_| {}).await;
        let major = pair.cluster.source.binaries().major();
        let owner = pair.owner().await;
        owner.batch_execute(TABLES).await.unwrap();
        let mut names = NAMES.to_vec();
        if major >= 18 {
            let table = "CREATE TABLE virtual (a int, b int, g int GENERATED ALWAYS AS (a * 2) VIRTUAL);
                         ALTER TABLE virtual REPLICA IDENTITY FULL";
            owner.batch_execute(table).await.unwrap();
            names.push("virtual");
        }
        for name in &names {
            let rows = format!("INSERT INTO {name} SELECT g, g FROM generate_series(1, 20) g");
            owner.batch_execute(&rows).await.unwrap();
        }
        owner.batch_execute("INSERT INTO in_key VALUES (1, 2), (1, 3)").await.unwrap();
        for options in [&[][..], &["--replica-identity-full"]] {
            let mut engine = pair.migrate().arguments(options).start();
            engine.wait_phase("syncing").await;
            for name in &names {
                let writes = format!(
                    "UPDATE {name} SET b = b + 3 WHERE a < 9; DELETE FROM {name} WHERE a = 11;
                     INSERT INTO {name} VALUES (11, 11), (30, 30); UPDATE {name} SET a = 31 WHERE a = 30;
                     DELETE FROM {name} WHERE a = 31"
                );
                owner
                    .batch_execute(&writes)
                    .await
                    .unwrap_or_else(|error| panic!("{major} {name}: {error:?}"));
            }
            engine.wait_drained(&pair).await;
            let warned = ["whole", "in_key", "key_alone", "by_index", "keyless"].map(|name| {
                engine.log().contains(&format!("public.{name} (its replica identity has a generated column)"))
            });
            assert_eq!(warned, [major >= 18, true, true, true, false], "{}", engine.log());
            let ended = pair.command("cutover").arguments(&["--fence", "none"]).run().await;
            ended.assert(0, &["done"]);
            engine.wait_exit(0, PATIENCE).await;
            let comparison = pair.compare().await;
            assert!(comparison.tables_equal(), "{major} {options:?}: {comparison}\n{}", engine.log());
            pair.assert_removes().await;
            pair.target(&format!("DROP TABLE public.{}", names.join(", public."))).await;
        }
    }
}

/// Identities that a generated column may be added to.
const WITHOUT_YET: &str = "
    CREATE TABLE plain (a int, b int); ALTER TABLE plain REPLICA IDENTITY FULL; INSERT INTO plain VALUES (1, 1);
    CREATE TABLE parted (a int, b int) PARTITION BY LIST (a); CREATE TABLE part PARTITION OF parted FOR VALUES IN (1);
    ALTER TABLE part REPLICA IDENTITY FULL; INSERT INTO parted VALUES (1, 1); CREATE SEQUENCE held";

const ADD: &str = "ALTER TABLE plain ADD g int GENERATED ALWAYS AS (a * 2) STORED;
                   ALTER TABLE parted ADD g int GENERATED ALWAYS AS (a * 2) STORED";

const WRITE: &str = "UPDATE plain SET b = b + 1; UPDATE parted SET b = b + 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_column_added_meanwhile() {
    let pairs = asked_pairs_and(&[(18, 18)]).await;
    for (source, target) in pairs.into_iter().filter(|(source, _)| source.major() >= 18) {
        added_meanwhile(&Pair::of(source, target, |_| {}).await).await;
    }
}

/// The source can write again before anything else: before a look that a lock holds up, and before a gap is refused.
async fn added_meanwhile(pair: &Pair) {
    let owner = pair.owner().await;
    owner.batch_execute(WITHOUT_YET).await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    let holder = pair.owner().await;
    holder.batch_execute("BEGIN; ALTER SEQUENCE held RENAME TO held_too").await.unwrap();
    owner.batch_execute(ADD).await.unwrap();
    let writes = async || owner.batch_execute(WRITE).await.is_ok();
    wait_for("writes that the source takes", PATIENCE, writes).await;
    let log = engine.wait_exit(5, PATIENCE).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    let hint = log.split("on the source run: ").nth(1).unwrap_or_else(|| panic!("{log}"));
    let statements = hint.split("; then run").next().unwrap().replace("\\\"", "\"");
    assert_eq!(statements.matches("ADD TABLE ONLY").count(), 2, "{log}");

    // As its reader does it.
    owner.batch_execute("ALTER TABLE plain DROP g; ALTER TABLE parted DROP g").await.unwrap();
    owner.batch_execute(&statements).await.unwrap();
    let mut engine = pair.migrate().start();
    engine.wait_phase("syncing").await;
    owner.batch_execute(WRITE).await.unwrap();
    pair.assert_follows(&mut engine).await;
    engine.terminate(0).await;

    owner.batch_execute(ADD).await.unwrap();
    pair.source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    assert!(owner.batch_execute(WRITE).await.is_err());
    let log = pair.migrate().start().wait_exit(5, PATIENCE).await;
    assert!(log.contains("lost its replica identity on the source"), "{log}");
    owner.batch_execute(WRITE).await.unwrap();
}
