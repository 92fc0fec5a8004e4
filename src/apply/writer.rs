//! Who writes rows on the target: its user, or a role that was made for this and has next to no other rights.
//!
//! Rows may have functions of their tables' owners called, and those run as whoever writes. No SET ROLE holds them: a
//! function may undo it. So the session itself has to be one of a role that may less, from its login on.
//!
//! - A role may give itself another password, which such a function could make known. So each session has a password of its
//!   own, that nobody else knows, and once the session is there the role is NOLOGIN again: that, a role cannot change of
//!   itself. Where an engine is killed in between, the password ends by itself.
//! - The role has no rights on what a migration remembers. What a batch or a copy must write there goes through functions
//!   that want a key ([`crate::store::apply_role`]), which such a code has no way to see: it is a parameter, never text, since
//!   text is shown to other sessions of the same role; and never one of a named statement, which could be swapped for another
//!   of its name.

use std::sync::Arc;

use postgres_protocol::password;
use rand::RngExt;
use rand::distr::Alphanumeric;
use tokio::sync::Mutex;

use crate::catalog::TargetClient;
use crate::config::Secret;
use crate::error::{Result, Side};
use crate::limits::WRITER_PASSWORD_LIFE;
use crate::pg::Sql;
use crate::wire::{self, ConnInfo, Session, SessionOptions};

/// How sessions that write rows log in.
#[derive(Debug, Clone)]
pub struct Writer {
    target: ConnInfo,
    role: Option<Arc<Role>>,
}

#[derive(Debug)]
struct Role {
    name: String,
    key: Secret,
    /// One login at a time: each has another password.
    turn: Mutex<()>,
}

impl Writer {
    /// As the target's user.
    pub const fn user(target: ConnInfo) -> Self {
        Self { target, role: None }
    }

    /// As the role `name`, whose writes in schema `walferry` have this `key`. The user of `target` may alter it.
    pub fn role(target: ConnInfo, name: &str, key: Secret) -> Self {
        Self { target, role: Some(Arc::new(Role { name: name.to_owned(), key, turn: Mutex::default() })) }
    }

    /// What writes in schema `walferry` need where a role was made for them.
    pub fn key(&self) -> Option<&Secret> {
        self.role.as_ref().map(|role| &role.key)
    }

    /// A session that may write rows.
    ///
    /// # Errors
    /// As any connection.
    pub async fn connect(&self, options: &SessionOptions) -> Result<Session> {
        // Large, and far from the task's beginning.
        Box::pin(self.log_in(options)).await?.map_err(|error| error.into_failure(Side::Target))
    }

    /// The same, or how the login failed.
    ///
    /// # Errors
    /// When the role cannot be made to log in, or kept from it afterwards.
    pub async fn log_in(&self, options: &SessionOptions) -> Result<Result<Session, wire::Error>> {
        let Some(role) = &self.role else { return Ok(Session::connect(&self.target, options).await) };
        let _turn = role.turn.lock().await;
        const WHAT: &str = "the login of the role that writes";
        let client = TargetClient::connect(&self.target, "walferry login").await?;
        let sql = "SELECT (pg_catalog.now() + pg_catalog.make_interval(secs => $1))::pg_catalog.text";
        let life = WRITER_PASSWORD_LIFE.as_secs_f64();
        let until: String = client.query_one(sql, &[&life]).await.map_err(client.failed(WHAT))?.get(0);
        let password = random_secret();
        // As the server keeps it: so it is in none of its logs.
        let verifier = password::scram_sha_256(password.expose().as_bytes());
        let alter = || Sql::new("ALTER ROLE ").ident(&role.name);
        let open = alter().text(" LOGIN PASSWORD ").literal(&verifier).text(" VALID UNTIL ").literal(&until);
        // Code that ran as it may have given it settings that no session would begin with.
        let here = alter().text(" IN DATABASE ").ident(self.target.dbname()).text(" RESET ALL");
        client.run(WHAT, &alter().text(" RESET ALL; ").sql(&here)).await?;
        client.run(WHAT, &open).await?;
        let session = Session::connect(&self.target.with_login(&role.name, password.expose()), options).await;
        client.run(WHAT, &alter().text(" NOLOGIN")).await?;
        Ok(session)
    }
}

/// Text that nobody can guess.
pub fn random_secret() -> Secret {
    let characters = rand::rng().sample_iter(Alphanumeric).take(SECRET_CHARS).map(char::from);
    Secret::new(characters.collect::<String>())
}

/// Of 62 characters each: more than 256 bits.
const SECRET_CHARS: usize = 43;
