//! What a busy shop does to its database: one script a kind of transaction, each run as one simple query.
//!
//! Scripts choose their rows by `random()`, so that any number of clients can run them at once. A deadlock or a row
//! that moved meanwhile ends one with an error that a shop would repeat; nothing else should.

/// One kind of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShopWrite {
    /// What it is called in options and counts.
    pub name: &'static str,
    /// How often it is chosen, against the others' weights.
    pub weight: u32,
    /// Its statements, transaction control included.
    pub sql: &'static str,
}

const fn write(name: &'static str, weight: u32, sql: &'static str) -> ShopWrite {
    ShopWrite { name, weight, sql }
}

/// Every kind of transaction that the shop knows.
pub const SHOP_WRITES: [ShopWrite; 19] = [
    write("place order", 20, PLACE_ORDER),
    write("pay order", 12, PAY_ORDER),
    write("delete order", 4, DELETE_ORDER),
    write("change prices", 4, CHANGE_PRICES),
    write("count stock", 1, COUNT_STOCK),
    write("change customer key", 2, CHANGE_CUSTOMER_KEY),
    write("swap emails", 1, SWAP_EMAILS),
    write("new letter", 2, NEW_LETTER),
    write("keep letter", 6, KEEP_LETTER),
    write("vouchers", 4, VOUCHERS),
    write("move payments", 4, MOVE_PAYMENTS),
    write("truncate staging", 1, TRUNCATE_STAGING),
    write("savepoints", 4, SAVEPOINTS),
    write("roll back", 3, ROLL_BACK),
    write("web sessions", 8, WEB_SESSIONS),
    write("measurements", 6, MEASUREMENTS),
    write("all types", 4, ALL_TYPES),
    write("quoted names", 4, QUOTED_NAMES),
    write("dock bookings", 3, DOCK_BOOKINGS),
];

/// What version 10 cannot do: it moves no row to another partition, and its TRUNCATE is not replicated.
pub(super) const NOT_ON_10: [&str; 2] = ["move payments", "truncate staging"];

const PLACE_ORDER: &str = r#"
BEGIN;
WITH buyer AS (
    SELECT id FROM shop.customer WHERE id >= (SELECT (1 + random() * 9000)::bigint) ORDER BY id LIMIT 1
), placed AS (
    INSERT INTO shop."Order" (customer_id, "Delivery Note")
    SELECT id, CASE WHEN random() < 0.2 THEN E'ring\ttwice\n\\N' END FROM buyer RETURNING id
), picked AS (
    SELECT 100 + 3 * floor(random() * 2000)::integer AS product, n AS line
    FROM generate_series(1, 1 + floor(random() * 5)::integer) n
)
INSERT INTO shop.order_line (order_id, line, product, quantity, price)
SELECT placed.id, picked.line, p.id, 1 + p.id % 3, p.price
FROM placed, picked JOIN stock.product p ON p.id = picked.product;
UPDATE stock.level SET quantity = quantity - 1, counted_at = clock_timestamp() AT TIME ZONE 'UTC'
WHERE warehouse = 'Helsinki' AND quantity > 0 AND product IN (
    SELECT product FROM shop.order_line WHERE order_id = currval('shop."Order_id_seq"') ORDER BY product);
INSERT INTO shop.click (at, page) VALUES (clock_timestamp(), '/thanks');
COMMIT"#;

const PAY_ORDER: &str = r#"
BEGIN;
WITH due AS (
    SELECT id FROM shop."Order" WHERE status = 'new' ORDER BY id DESC
    OFFSET floor(random() * 20) LIMIT 1 FOR UPDATE SKIP LOCKED
), paid AS (
    UPDATE shop."Order" o SET status = 'paid', history = history || 'paid'::shop.order_status
    FROM due WHERE o.id = due.id RETURNING o.id
)
INSERT INTO shop.payment (paid_at, order_id, amount)
SELECT timestamptz '2025-11-01 00:00:00+00' + random() * interval '120 days', id, round((random() * 900)::numeric, 3)
FROM paid;
COMMIT"#;

const DELETE_ORDER: &str = r#"
DELETE FROM shop."Order" WHERE id = (
    SELECT id FROM shop."Order" o
    WHERE id >= (SELECT (1 + random() * 14000)::bigint)
      AND NOT EXISTS (SELECT FROM shop.payment p JOIN shop.refund r ON r.payment_id = p.id WHERE p.order_id = o.id)
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"#;

const CHANGE_PRICES: &str = "
UPDATE stock.product SET price = CASE WHEN price > 900 THEN 9.99 ELSE round(price * 1.03, 2) END
WHERE id IN (SELECT id FROM stock.product WHERE category = (SELECT (1 + random() * 47)::smallint) ORDER BY id FOR UPDATE)";

const COUNT_STOCK: &str = "
UPDATE stock.level SET quantity = (quantity + 5) % 1000 WHERE (warehouse, product) IN (
    SELECT warehouse, product FROM stock.level WHERE warehouse = 'Oulu' ORDER BY product FOR UPDATE)";

const CHANGE_CUSTOMER_KEY: &str = "
UPDATE shop.customer SET id = DEFAULT WHERE id = (
    SELECT id FROM shop.customer WHERE id >= (SELECT (1 + random() * 10000)::bigint) ORDER BY id LIMIT 1)";

const SWAP_EMAILS: &str = "
BEGIN;
CREATE TEMPORARY TABLE pair ON COMMIT DROP AS
    SELECT id, email FROM shop.customer WHERE id >= (SELECT (1 + random() * 9000)::bigint) ORDER BY id LIMIT 2 FOR UPDATE;
UPDATE shop.customer SET email = 'nobody' || id || '@example.com' WHERE id = (SELECT max(id) FROM pair);
UPDATE shop.customer SET email = (SELECT email FROM pair ORDER BY id DESC LIMIT 1) WHERE id = (SELECT min(id) FROM pair);
UPDATE shop.customer SET email = (SELECT email FROM pair ORDER BY id LIMIT 1) WHERE id = (SELECT max(id) FROM pair);
COMMIT";

const NEW_LETTER: &str = "
UPDATE shop.customer SET letter = CASE WHEN random() < 0.8 THEN
    (SELECT string_agg(encode(sha512((random() + n)::text::bytea), 'base64'), '') FROM generate_series(1, 150) n) END
WHERE id = (SELECT id FROM shop.customer WHERE id >= (SELECT (1 + random() * 9000)::bigint) ORDER BY id LIMIT 1)";

const KEEP_LETTER: &str = "
UPDATE shop.customer SET credit = credit + 1, preferences = preferences || '{\"seen\": true}' WHERE id IN (
    SELECT id FROM shop.customer WHERE letter IS NOT NULL AND id >= (SELECT (1 + random() * 9000)::bigint)
    ORDER BY id LIMIT 3 FOR UPDATE)";

const VOUCHERS: &str = "
BEGIN;
UPDATE shop.voucher SET code = 'V-' || upper(substr(md5(random()::text), 1, 12)) WHERE code = (
    SELECT code FROM shop.voucher WHERE terms IS NOT NULL OFFSET floor(random() * 50) LIMIT 1 FOR UPDATE SKIP LOCKED);
DELETE FROM shop.voucher WHERE code = (
    SELECT code FROM shop.voucher WHERE terms IS NULL OFFSET floor(random() * 900) LIMIT 1 FOR UPDATE SKIP LOCKED);
INSERT INTO shop.voucher VALUES ('N-' || upper(substr(md5(random()::text), 1, 12)), NULL, 10, '[2025-01-01 00:00:00+00,)');
COMMIT";

const MOVE_PAYMENTS: &str = "
BEGIN;
WITH moving AS (
    SELECT id, paid_at FROM shop.payment_other WHERE isfinite(paid_at) AND paid_at > '2026-01-01 00:00:00+00'
    LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE shop.payment p SET paid_at = timestamptz '2025-12-01 00:00:00+00' + random() * interval '30 days'
FROM moving m WHERE p.id = m.id AND p.paid_at = m.paid_at;
WITH moving AS (
    SELECT id, paid_at FROM shop.payment_2025_11 t
    WHERE NOT EXISTS (SELECT FROM shop.refund r WHERE r.payment_id = t.id) LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE shop.payment p SET paid_at = timestamptz '2026-02-01 00:00:00+00' + random() * interval '300 days', method = 'late'
FROM moving m WHERE p.id = m.id AND p.paid_at = m.paid_at;
COMMIT";

const TRUNCATE_STAGING: &str = "
BEGIN;
TRUNCATE stock.staging;
INSERT INTO stock.staging SELECT n, 'SKU-' || n, n % 5, CASE WHEN n % 7 = 0 THEN 'late' END
FROM generate_series(1, (20 + random() * 80)::integer) n;
UPDATE stock.staging SET delta = -delta WHERE line % 3 = 0;
COMMIT";

const SAVEPOINTS: &str = "
BEGIN;
INSERT INTO shop.note SELECT coalesce(max(id), 0) + 1 + floor(random() * 1000000)::integer, 'kept' FROM shop.note
WHERE id < 1000000 ON CONFLICT DO NOTHING;
SAVEPOINT once;
UPDATE shop.note SET body = 'never seen' WHERE id <= 20;
DELETE FROM ONLY shop.note WHERE id BETWEEN 21 AND 40;
ROLLBACK TO once;
SAVEPOINT twice;
UPDATE shop.note SET body = body || '.' WHERE id = (SELECT (1 + random() * 699)::integer);
UPDATE shop.urgent_note SET due = due + 1 WHERE id = (SELECT (501 + random() * 199)::integer);
RELEASE twice;
COMMIT";

const ROLL_BACK: &str = "
BEGIN;
UPDATE stock.level SET quantity = 0 WHERE warehouse = 'São Paulo' AND product = 100 + 3 * (SELECT (random() * 1999)::integer);
INSERT INTO shop.click (at, page) VALUES (clock_timestamp(), '/never');
ROLLBACK";

const WEB_SESSIONS: &str = r#"
BEGIN;
INSERT INTO shop.web_session VALUES (gen_random_uuid(), NULL, '2001:db8::1/64', '{"cart": [1,  2]}');
UPDATE shop.web_session SET data = '{"cart": []}' WHERE token = (
    SELECT token FROM shop.web_session WHERE token >= gen_random_uuid() ORDER BY token LIMIT 1 FOR UPDATE SKIP LOCKED);
UPDATE shop.web_session SET token = gen_random_uuid(), data = NULL WHERE token = (
    SELECT token FROM shop.web_session WHERE token >= gen_random_uuid() ORDER BY token LIMIT 1 FOR UPDATE SKIP LOCKED);
DELETE FROM shop.web_session WHERE token = (
    SELECT token FROM shop.web_session WHERE token >= gen_random_uuid() ORDER BY token LIMIT 1 FOR UPDATE SKIP LOCKED);
COMMIT"#;

const MEASUREMENTS: &str = "
BEGIN;
INSERT INTO public.measurement
SELECT 100 + n, clock_timestamp(), CASE WHEN n = 3 THEN 'NaN' ELSE random() END, random()::real, random()::numeric, NULL, NULL
FROM generate_series(1, 12) n;
UPDATE public.measurement SET remark = 'seen', exact = exact * 2 WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM public.measurement WHERE remark IS NULL AND sensor >= 100 LIMIT 4 FOR UPDATE SKIP LOCKED));
DELETE FROM public.measurement WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM public.measurement WHERE sensor >= 100 LIMIT 8 FOR UPDATE SKIP LOCKED));
COMMIT";

const ALL_TYPES: &str = r#"
UPDATE public."AllTypes" SET
    yes = NOT yes, fixed = substr(md5(random()::text), 1, (random() * 8)::integer), clock = localtime,
    f8 = CASE WHEN random() < 0.1 THEN 'Infinity' ELSE random() END, bits = ~bits, bytes = sha256(random()::text::bytea),
    doc_b = jsonb_build_object('n', random()), numbers = ARRAY[[NULL, (random() * 99)::integer]], texts = texts || E'\\"{,}'::text,
    statuses = '{"it''s lost",NULL}', places = places || ROW('x', '"', NULL, 'infinity')::shop.address,
    days = daterange('-infinity', date '2025-01-01' + (random() * 400)::integer)
WHERE id = (SELECT (random() * 300)::integer) AND coalesce(array_length(texts, 1), 0) < 40"#;

const QUOTED_NAMES: &str = r#"
BEGIN;
UPDATE "Büro & Co"."Größen ""Tabelle""" SET "日本" = '語' || coalesce("日本", ''), "a.b" = NOT "a.b", "select" = NULL
WHERE "Schlüssel" = (SELECT (1 + random() * 599)::integer) AND length("日本") < 100;
INSERT INTO "Büro & Co"."Größen ""Tabelle""" VALUES ((1000 + random() * 1000000000)::integer, 'neu', 0.10, '', NULL)
ON CONFLICT DO NOTHING;
DELETE FROM "Büro & Co"."Größen ""Tabelle""" WHERE "Schlüssel" = (
    SELECT "Schlüssel" FROM "Büro & Co"."Größen ""Tabelle""" WHERE "Schlüssel" >= 1000 OFFSET 5 LIMIT 1 FOR UPDATE SKIP LOCKED);
COMMIT"#;

const DOCK_BOOKINGS: &str = "
BEGIN;
WITH old AS (
    DELETE FROM stock.dock_booking WHERE id = (
        SELECT id FROM stock.dock_booking WHERE id >= (SELECT (random() * 700)::integer) ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *
)
SELECT set_config('demo.dock', dock::text, true), set_config('demo.during', during::text, true) FROM old;
INSERT INTO stock.dock_booking
SELECT (100000 + random() * 1000000000)::integer, nullif(current_setting('demo.dock', true), '')::int4range,
       nullif(current_setting('demo.during', true), '')::tsrange
WHERE nullif(current_setting('demo.dock', true), '') IS NOT NULL
ON CONFLICT DO NOTHING;
COMMIT";
