//! Data to migrate: the shop that Walferry ships, and pgbench's bank.

use super::cluster::APP_OWNER;
use super::{Result, Server};
use crate::pg::Sql;

const SHOP: &str = include_str!("sample/shop.sql");

/// What a server older than the number cannot do: the shop's text, and what stands there instead.
const NOT_BEFORE: [(u32, &str, &str); 12] = [
    (12, " GENERATED ALWAYS AS (lower(full_name)) STORED", ""),
    (12, " GENERATED ALWAYS AS (round(price * (1 + tax_percent / 100), 2)) STORED", ""),
    (12, " GENERATED ALWAYS AS (price * quantity) STORED", ""),
    (
        12,
        "reason text,\n    FOREIGN KEY (payment_id, paid_at) REFERENCES shop.payment (id, paid_at)\n",
        "reason text\n",
    ),
    (
        11,
        "order_id bigint NOT NULL REFERENCES shop.\"Order\" ON DELETE CASCADE,\n    amount",
        "order_id bigint NOT NULL,\n    amount",
    ),
    (11, "'card',\n    PRIMARY KEY (id, paid_at)\n", "'card'\n"),
    (
        11,
        "'CREATE TABLE shop.%I PARTITION OF shop.payment FOR",
        "'CREATE TABLE shop.%I PARTITION OF shop.payment (PRIMARY KEY (id, paid_at)) FOR",
    ),
    (
        11,
        "CREATE TABLE shop.payment_other PARTITION OF shop.payment DEFAULT;",
        "CREATE TABLE shop.payment_early PARTITION OF shop.payment (PRIMARY KEY (id, paid_at))
            FOR VALUES FROM (MINVALUE) TO ('2024-01-01 00:00:00+00');
         CREATE TABLE shop.payment_other PARTITION OF shop.payment (PRIMARY KEY (id, paid_at))
            FOR VALUES FROM ('2026-01-01 00:00:00+00') TO (MAXVALUE);",
    ),
    (
        11,
        "ON shop.customer_address (customer_id) INCLUDE (country);",
        "ON shop.customer_address (customer_id);",
    ),
    (11, "CREATE INDEX payment_order ON shop.payment (order_id);", ""),
    (11, "EXECUTE FUNCTION shop.note_status()", "EXECUTE PROCEDURE shop.note_status()"),
    (11, "EXECUTE FUNCTION stock.touch()", "EXECUTE PROCEDURE stock.touch()"),
];

/// Functions that a server older than the number lacks. Not those algorithms: values that differ as much.
const FUNCTIONS_NOT_BEFORE: [(u32, &str); 3] = [
    (
        13,
        "CREATE FUNCTION pg_catalog.gen_random_uuid() RETURNS uuid LANGUAGE sql
         AS 'SELECT md5(random()::text || clock_timestamp()::text)::uuid'",
    ),
    (
        11,
        "CREATE FUNCTION pg_catalog.sha256(bytea) RETURNS bytea LANGUAGE sql
         AS $$ SELECT decode(md5($1) || md5($1 || '-'), 'hex') $$",
    ),
    (
        11,
        "CREATE FUNCTION pg_catalog.sha512(bytea) RETURNS bytea LANGUAGE sql
         AS $$ SELECT decode(md5($1) || md5($1 || '-') || md5($1 || '+') || md5($1 || '='), 'hex') $$",
    ),
];

/// The tables of the shop that lack a replica identity: only their inserts and truncations can be replicated. Writers
/// only insert into them.
pub const SHOP_KEYLESS: [&str; 2] = ["shop.audit", "shop.click"];

/// Loads the shop into an empty database, as [`APP_OWNER`]: about 100,000 rows in a few seconds.
///
/// # Errors
/// When the server refuses a statement, for one because the role or the database is missing.
pub async fn load_shop(server: &Server, database: &str) -> Result<()> {
    let client = server.client(database).await?;
    let major = server.binaries().major();
    for (since, function) in FUNCTIONS_NOT_BEFORE {
        if major < since {
            client.batch_execute(function).await?;
        }
    }
    become_owner(&client).await?;
    client.batch_execute(&shop(major)).await?;
    Ok(())
}

/// The shop as a server of this version can have it.
fn shop(major: u32) -> String {
    let lacking = NOT_BEFORE.iter().filter(|(since, ..)| major < *since);
    lacking.fold(SHOP.to_owned(), |text, (_, present, instead)| text.replace(present, instead))
}

/// Loads pgbench's tables (100,000 accounts per `scale`, with primary and foreign keys) as [`APP_OWNER`].
///
/// # Errors
/// When pgbench fails.
pub async fn load_pgbench(server: &Server, database: &str, scale: u32) -> Result<()> {
    let mut pgbench = server.superuser_tool("pgbench", database);
    pgbench.env("PGOPTIONS", format!("-c role={APP_OWNER}"));
    pgbench.args(["--initialize", "--quiet", "--foreign-keys", "--scale", &scale.to_string()]);
    super::endpoint::output(&mut pgbench).await?;
    Ok(())
}

/// Makes a superuser's session one of [`APP_OWNER`], with no more rights than that role has.
pub(super) async fn become_owner(client: &tokio_postgres::Client) -> Result<()> {
    let become_owner = Sql::new("SET SESSION AUTHORIZATION ").ident(APP_OWNER);
    client.batch_execute(become_owner.as_str()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_servers_lack_is_in_the_shop_once() {
        for (_, present, _) in NOT_BEFORE {
            assert_eq!(SHOP.matches(present).count(), 1, "{present}");
        }
        assert_eq!(shop(13), SHOP);
        assert!(!shop(11).contains(") STORED"));
    }
}
