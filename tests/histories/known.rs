//! Histories that are hard by design.

/// Transactions, their statements set apart by `;`.
pub const KNOWN: &[&[&str]] = &[
    // Keys along a chain, in one transaction and in several.
    &[
        "INSERT INTO plain (id, a) VALUES (1, 1)",
        "UPDATE plain SET id = 2 WHERE id = 1; UPDATE plain SET id = 3 WHERE id = 2",
        "UPDATE plain SET id = 4, a = 9 WHERE id = 3",
        "INSERT INTO plain (id, a) VALUES (3, 3); UPDATE plain SET id = 1 WHERE id = 4",
    ],
    // Two rows take each other's key.
    &[
        "INSERT INTO plain (id, a) VALUES (1, 1), (2, 2)",
        "UPDATE plain SET id = 9 WHERE id = 1; UPDATE plain SET id = 1 WHERE id = 2; UPDATE plain SET id = 2 WHERE id = 9",
        "UPDATE plain SET a = 3 WHERE id = 2; DELETE FROM plain WHERE id = 1",
    ],
    // A row comes and goes, and comes back.
    &[
        "INSERT INTO plain (id, a) VALUES (1, 1); DELETE FROM plain WHERE id = 1; INSERT INTO plain (id, b) VALUES (1, 'b')",
        "DELETE FROM plain WHERE id = 1; INSERT INTO plain (id, a) VALUES (1, 2)",
        "DELETE FROM plain WHERE id = 1",
        "INSERT INTO plain (id, b) VALUES (1, 'c'); UPDATE plain SET a = 4",
        "INSERT INTO plain (id) VALUES (2); UPDATE plain SET a = 5 WHERE id = 2; DELETE FROM plain WHERE id = 2",
    ],
    // An update of another row with the same key, and of another life of the same row.
    &[
        "INSERT INTO plain (id, a) VALUES (1, 1), (3, 3); UPDATE plain SET a = 2",
        "DELETE FROM plain WHERE id = 1; INSERT INTO plain (id) VALUES (1); UPDATE plain SET a = 4 WHERE id = 1",
        "UPDATE plain SET id = 2 WHERE id = 1; UPDATE plain SET id = 1 WHERE id = 3; UPDATE plain SET a = 5 WHERE id = 1",
    ],
    // What is not sent is what the batch had before, or what the target has.
    &[
        "INSERT INTO plain VALUES (1, 1, 'b', repeat('x', 5000), repeat('y', 5000)), (2, 2, 'b', repeat('z', 5000), NULL)",
        "UPDATE plain SET a = 2",
        "UPDATE plain SET big = repeat('n', 5000) WHERE id = 1; UPDATE plain SET a = 3",
        "UPDATE plain SET more = repeat('m', 5000) WHERE id = 2; UPDATE plain SET a = 4; UPDATE plain SET big = NULL",
        "UPDATE plain SET b = 'c'; UPDATE plain SET more = 'short' WHERE id = 1",
    ],
    // The same while the key changes.
    &[
        "INSERT INTO plain VALUES (1, 1, 'b', repeat('x', 5000), repeat('y', 5000)), (2, 2, 'b', repeat('z', 5000), NULL)",
        "UPDATE plain SET id = 3, a = 2 WHERE id = 1; UPDATE plain SET a = 5 WHERE id = 3",
        "UPDATE plain SET id = 9 WHERE id = 2; UPDATE plain SET id = 2 WHERE id = 3; UPDATE plain SET id = 3 WHERE id = 9",
        "UPDATE plain SET more = repeat('w', 5000) WHERE id = 3; UPDATE plain SET id = 7 WHERE id = 3",
        "DELETE FROM plain WHERE id = 2; UPDATE plain SET id = 2 WHERE id = 7",
    ],
    // A row replaced by one with as many unchanged values.
    &[
        "INSERT INTO plain VALUES (1, 1, 'b', repeat('x', 5000), 'm')",
        "DELETE FROM plain; INSERT INTO plain VALUES (1, 2, NULL, repeat('y', 5000), NULL); UPDATE plain SET a = 7",
        "UPDATE plain SET b = 'd'",
    ],
    // Equal keys that do not look alike.
    &[
        "INSERT INTO alike_numeric VALUES (1.0, 1.0, 'a')",
        "UPDATE alike_numeric SET k = 1.00",
        "UPDATE alike_numeric SET v = 'b' WHERE k = 1",
        "DELETE FROM alike_numeric; INSERT INTO alike_numeric VALUES (1, 1, 'c')",
        "DELETE FROM alike_numeric; INSERT INTO alike_numeric VALUES (1.000, 1, 'd')",
    ],
    &[
        "INSERT INTO alike_float VALUES ('0', '0'); UPDATE alike_float SET k = '-0', v = '-0'",
        "DELETE FROM alike_float; INSERT INTO alike_float VALUES ('0', 1)",
    ],
    &[
        "INSERT INTO alike_document VALUES ('{\"a\": 1.0}', '1 day', 1)",
        "UPDATE alike_document SET i = '24 hours', v = 2",
        "DELETE FROM alike_document; INSERT INTO alike_document VALUES ('{\"a\": 1.00}', '1 day', 3)",
    ],
    // Values of a unique column that go from row to row.
    &[
        "INSERT INTO uniq VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')",
        "UPDATE uniq SET u = 9 WHERE id = 1; UPDATE uniq SET u = 1 WHERE id = 2; UPDATE uniq SET u = 2 WHERE id = 1",
        "DELETE FROM uniq WHERE id = 1; INSERT INTO uniq VALUES (4, 2, 'd')",
        "UPDATE uniq SET u = NULL WHERE id = 3; UPDATE uniq SET u = 3, v = 'e' WHERE id = 4; UPDATE uniq SET v = 'f' WHERE id = 3",
        "UPDATE uniq SET u = 8 WHERE id = 4; INSERT INTO uniq VALUES (5, 3, 'g')",
    ],
    &[
        "INSERT INTO partial VALUES (1, 1, 'a'), (2, 2, 'a'), (3, NULL, 'b')",
        "UPDATE partial SET u = 3 WHERE id = 3; UPDATE partial SET u = NULL WHERE id = 2; UPDATE partial SET u = 2 WHERE id = 1",
        "DELETE FROM partial WHERE id = 2; INSERT INTO partial VALUES (4, NULL, 'a')",
    ],
    &[
        "INSERT INTO deferred VALUES (1, 1, 'a'), (2, 2, 'b')",
        "UPDATE deferred SET u = 3 - u",
        "INSERT INTO deferred VALUES (3, 1, 'c'); UPDATE deferred SET v = 'x'; DELETE FROM deferred WHERE id = 2",
        "UPDATE deferred SET u = 2 WHERE id = 3; UPDATE deferred SET u = 1 WHERE id = 1",
    ],
    &[
        "INSERT INTO rooms VALUES (1, '[1,5)'), (2, '[5,9)')",
        "UPDATE rooms SET r = '[20,30)' WHERE id = 1; UPDATE rooms SET r = '[3,9)' WHERE id = 2",
        "UPDATE rooms SET r = 'empty' WHERE id = 2; INSERT INTO rooms VALUES (3, '[1,9)')",
        "DELETE FROM rooms WHERE id = 3; UPDATE rooms SET r = '[4,6)' WHERE id = 2",
    ],
    // Columns that an UPDATE may not set.
    &[
        "INSERT INTO identity_key (v, big) VALUES ('a', repeat('x', 5000)), ('b', NULL)",
        "UPDATE identity_key SET id = DEFAULT WHERE v = 'a'",
        "UPDATE identity_key SET v = 'aa' WHERE v = 'a'; UPDATE identity_key SET id = DEFAULT, v = 'c' WHERE v = 'b'",
        "DELETE FROM identity_key WHERE v = 'c'; INSERT INTO identity_key (id, v) OVERRIDING SYSTEM VALUE VALUES (10, 'd')",
    ],
    &[
        "INSERT INTO identity_beside (k, v, big) VALUES (1, 'a', repeat('x', 5000)), (2, 'b', NULL)",
        "UPDATE identity_beside SET v = 'c' WHERE k = 1; UPDATE identity_beside SET id = DEFAULT WHERE k = 1",
        "UPDATE identity_beside SET id = DEFAULT, big = repeat('y', 5000); UPDATE identity_beside SET k = 5 WHERE k = 2",
        "UPDATE identity_beside SET v = 'z'",
    ],
    &[
        "INSERT INTO identity_full (k, v, big) VALUES (1, 'a', repeat('x', 5000)), (NULL, NULL, NULL), (NULL, NULL, NULL)",
        "UPDATE identity_full SET v = 'c'; UPDATE identity_full SET id = DEFAULT WHERE k = 1",
        "DELETE FROM identity_full WHERE k = 1; UPDATE identity_full SET k = 4, id = DEFAULT",
    ],
    // Of equal rows as many as there are.
    &[
        "INSERT INTO full_loose VALUES (1, 'a', NULL), (1, 'a', NULL), (1, 'a', NULL), (NULL, NULL, NULL), (NULL, NULL, NULL)",
        "DELETE FROM full_loose WHERE ctid = (SELECT min(ctid) FROM full_loose)",
        "UPDATE full_loose SET v = 'b' WHERE ctid = (SELECT max(ctid) FROM full_loose)",
        "INSERT INTO full_loose VALUES (1, 'a', repeat('x', 5000)); UPDATE full_loose SET n = 2; DELETE FROM full_loose WHERE v = 'a'",
        "INSERT INTO full_loose VALUES (2, NULL, NULL); DELETE FROM full_loose WHERE v IS NULL",
    ],
    // Keys that several rows have until the transaction, or the statement, ends.
    &[
        "INSERT INTO full_deferred VALUES ('a', 1, NULL), ('b', 2, repeat('x', 5000)), (NULL, 3, repeat('y', 5000)), (NULL, 4, NULL)",
        "UPDATE full_deferred SET pos = pos + 1",
        "UPDATE full_deferred SET pos = pos - 1, v = NULL; UPDATE full_deferred SET pos = 5 - pos",
        "INSERT INTO full_deferred VALUES ('c', 2, NULL); UPDATE full_deferred SET pos = 7 WHERE v IS NULL AND pos = 2; UPDATE full_deferred SET v = 'd' WHERE pos = 2",
        "UPDATE full_deferred SET pos = 1 WHERE pos = 2; DELETE FROM full_deferred WHERE pos = 1 AND v = 'd'",
    ],
    &[
        "INSERT INTO full_deferred_unique VALUES (1, 'a'), (2, 'a'), (3, NULL), (NULL, NULL), (NULL, NULL)",
        "UPDATE full_deferred_unique SET n = n + 1",
        "UPDATE full_deferred_unique SET n = NULL WHERE n = 2; UPDATE full_deferred_unique SET n = n - 2; DELETE FROM full_deferred_unique WHERE n IS NULL AND v = 'a'",
    ],
    &[
        "INSERT INTO loose_types VALUES (1.0, '(1,1),(0,0)', '{}', ROW(NULL, NULL), ''), (1.00, NULL, NULL, NULL, NULL)",
        "UPDATE loose_types SET j = '{ }'; DELETE FROM loose_types WHERE b IS NULL",
    ],
    // Emptied between changes, alone and with others.
    &[
        "INSERT INTO plain (id) VALUES (1), (2); INSERT INTO uniq VALUES (1, 1, 'a'); TRUNCATE plain; INSERT INTO plain (id, a) VALUES (1, 5)",
        "UPDATE plain SET a = 6; TRUNCATE uniq, plain; INSERT INTO uniq VALUES (2, 1, 'b'); INSERT INTO plain (id) VALUES (2)",
        "DELETE FROM plain; INSERT INTO identity_key (v) VALUES ('a'); TRUNCATE identity_key RESTART IDENTITY; INSERT INTO identity_key (v) VALUES ('b')",
    ],
    &[
        "INSERT INTO parent VALUES (1, 'a'), (2, 'b'); INSERT INTO child VALUES (1, 1, 'x'), (2, 1, 'y'), (3, 2, 'z')",
        "DELETE FROM parent WHERE id = 1; UPDATE parent SET id = 5; INSERT INTO child VALUES (1, 5, 'again')",
        "TRUNCATE parent CASCADE; INSERT INTO parent VALUES (1, 'c'); INSERT INTO child VALUES (1, 1, 'w')",
    ],
    // From one partition to another, and back.
    &[
        "INSERT INTO parts VALUES (1, 'a', 'v'), (2, 'b', 'v')",
        "UPDATE parts SET part = 'b' WHERE id = 1; UPDATE parts SET part = 'a', v = 'w' WHERE id = 2",
        "UPDATE parts SET part = 'c' WHERE id = 1; UPDATE parts SET part = 'a' WHERE id = 1; DELETE FROM parts WHERE id = 2",
        "TRUNCATE parts_a; INSERT INTO parts VALUES (1, 'a', 'x')",
    ],
    // Columns of the target's own.
    &[
        "INSERT INTO only_there VALUES (1, 'a', repeat('x', 5000)), (2, NULL, NULL)",
        "UPDATE only_there SET v = 'bb'; UPDATE only_there SET id = 3 WHERE id = 1",
        "DELETE FROM only_there WHERE id = 2; INSERT INTO only_there VALUES (2, 'c', NULL)",
    ],
    // One row again and again, by different columns.
    &[
        "INSERT INTO plain (id) VALUES (1)",
        "UPDATE plain SET a = 1; UPDATE plain SET b = 'b'; UPDATE plain SET big = repeat('x', 5000); UPDATE plain SET a = 2",
        "UPDATE plain SET a = 3; UPDATE plain SET more = repeat('y', 5000), b = NULL; UPDATE plain SET big = 'x'; UPDATE plain SET a = a",
    ],
    &[
        "INSERT INTO only_key VALUES (1), (2); UPDATE only_key SET id = id; UPDATE only_key SET id = 3 WHERE id = 1",
        "UPDATE only_key SET id = id; DELETE FROM only_key WHERE id = 2",
    ],
    &[
        "INSERT INTO words VALUES ('NULL', 'null'), ('', ''), (E'a\\tb\\n\\\\.\\n', E'\\\\N'), ('{\"x\",y}', '(1,\"x\")'), (repeat('k', 2500), NULL)",
        "UPDATE words SET v = k; UPDATE words SET k = 'null' WHERE k = 'NULL'",
        "UPDATE words SET k = E'\\\\.' WHERE k = ''; DELETE FROM words WHERE v = 'NULL'",
        "UPDATE words SET v = NULL; UPDATE words SET k = 'NULL' WHERE k LIKE 'kk%'",
    ],
    // More rows than fit into one statement of any kind.
    &[
        "INSERT INTO plain SELECT g, g, 'b', repeat('x', 2500), NULL FROM generate_series(1, 300) g",
        "UPDATE plain SET a = a + 1; UPDATE plain SET b = NULL WHERE id % 2 = 0; DELETE FROM plain WHERE id % 3 = 0",
        "INSERT INTO plain (id) SELECT g * 3 FROM generate_series(1, 100) g; UPDATE plain SET id = id + 1000 WHERE id % 5 = 0",
    ],
];
