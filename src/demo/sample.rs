//! Data to migrate: the shop that Walferry ships, and pgbench's bank.

use super::cluster::APP_OWNER;
use super::{Result, Server};
use crate::pg::Sql;

const SHOP: &str = include_str!("sample/shop.sql");

/// The tables of the shop that lack a replica identity: only their inserts and truncations can be replicated. Writers
/// only insert into them.
pub const SHOP_KEYLESS: [&str; 2] = ["shop.audit", "shop.click"];

/// Loads the shop into an empty database, as [`APP_OWNER`]: about 100,000 rows in a few seconds.
///
/// # Errors
/// When the server refuses a statement, for one because the role or the database is missing.
pub async fn load_shop(server: &Server, database: &str) -> Result<()> {
    let client = server.client(database).await?;
    become_owner(&client).await?;
    client.batch_execute(SHOP).await?;
    Ok(())
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
