-- A source: an application that owns its tables, and the role that Walferry uses.
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE ROLE walferry LOGIN REPLICATION PASSWORD 'walferry';
GRANT CREATE ON DATABASE shop TO walferry, app;
GRANT app TO walferry;
SET ROLE app;
CREATE SCHEMA shop;
CREATE TABLE shop.customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
CREATE TABLE shop.purchase (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES shop.customer,
    amount numeric(12, 2) NOT NULL
);
INSERT INTO shop.customer (name) SELECT 'customer ' || i FROM generate_series(1, 10000) i;
INSERT INTO shop.purchase (customer_id, amount) SELECT i % 10000 + 1, i * 0.01 FROM generate_series(1, 100000) i;
