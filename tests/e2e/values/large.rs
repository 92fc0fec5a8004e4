//! Values of 100 MB.

use std::time::Instant;

use crate::harness::Pair;

/// Text, and bytes, which are twice as long on their way. Both compress: that spares the disk, and nothing else.
const TABLES: &str = "
CREATE TABLE large (id int PRIMARY KEY, t text, b bytea, n int);
INSERT INTO large VALUES (1, repeat(md5('1'), 3276800), NULL, 0),
    (2, NULL, decode(repeat(md5('2'), 6553600), 'hex'), 0), (3, repeat(E'\\\\.\\n\\t', 100000), '', 0)";

const WRITES: [(&str, &str); 5] = [
    ("insert text", "INSERT INTO large VALUES (4, repeat(E'ä\\\\.\\t', 20971520), NULL, 0)"),
    ("insert bytes", "INSERT INTO large VALUES (5, NULL, decode(repeat(md5('5'), 6553600), 'hex'), 0)"),
    ("update beside them", "UPDATE large SET n = n + 1; UPDATE large SET t = 'x' WHERE t IS NULL"),
    ("update of keys", "UPDATE large SET id = id + 10 WHERE id IN (1, 4)"),
    ("delete", "DELETE FROM large WHERE id IN (2, 11)"),
];

const LOOK: &str = "SELECT id, n, octet_length(t), md5(t), octet_length(b), md5(b) FROM large ORDER BY id";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_100_megabytes() {
    let pair = Pair::start().await;
    let owner = pair.owner().await;
    owner.batch_execute(TABLES).await.unwrap();
    let mut engine = pair.migrate().start();
    let mut began = Instant::now();
    engine.wait_phase("syncing").await;
    for (what, write) in [("copy", "")].into_iter().chain(WRITES) {
        owner.batch_execute(write).await.unwrap();
        engine.wait_drained(&pair).await;
        let (took, resident) = (began.elapsed(), engine.resident_max() >> 20);
        eprintln!("{what}: {took:.1?}, resident at most {resident} MiB");
        let (source, target) = tokio::join!(pair.source(LOOK), pair.target(LOOK));
        assert_eq!(source, target, "{what}");
        began = Instant::now();
    }
    engine.terminate(0).await;
}
