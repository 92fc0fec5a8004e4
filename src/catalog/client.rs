//! Sessions that know their side: what a question is asked of is in its signature, and in its error.
//!
//! A question that makes sense on one side alone takes a [`SourceClient`] or a [`TargetClient`], so that the two are never
//! mixed up; one for either side takes a [`SideClient`], which both lend.

use std::ops::Deref;

use tokio::sync::mpsc;
use tokio_postgres::{Client, Notification};

use super::Error;
use crate::error::{Result, Side};
use crate::pg::Sql;
use crate::wire::{ConnInfo, control, control_listening};

/// A session on the source.
#[derive(Debug)]
pub struct SourceClient(SideClient);

/// A session on the target.
#[derive(Debug)]
pub struct TargetClient(SideClient);

/// A session on either side.
#[derive(Debug)]
pub struct SideClient {
    client: Client,
    side: Side,
}

impl SourceClient {
    /// A session that is open already.
    pub fn new(client: Client) -> Self {
        Self(SideClient { client, side: Side::Source })
    }

    /// Opens a session on the source, which lives as long as this does.
    ///
    /// # Errors
    /// When the source cannot be reached, or refuses the session.
    pub async fn connect(info: &ConnInfo, application_name: &str) -> Result<Self> {
        let connected = control(info, application_name).await;
        connected.map(Self::new).map_err(|error| error.into_failure(Side::Source))
    }
}

impl TargetClient {
    /// A session that is open already.
    pub fn new(client: Client) -> Self {
        Self(SideClient { client, side: Side::Target })
    }

    /// Opens a session on the target, which lives as long as this does.
    ///
    /// # Errors
    /// When the target cannot be reached, or refuses the session.
    pub async fn connect(info: &ConnInfo, application_name: &str) -> Result<Self> {
        let connected = control(info, application_name).await;
        connected.map(Self::new).map_err(|error| error.into_failure(Side::Target))
    }

    /// As [`TargetClient::connect`], with the notifications of the channels that the session LISTENs on.
    ///
    /// # Errors
    /// When the target cannot be reached, or refuses the session.
    pub async fn listening(
        info: &ConnInfo,
        application_name: &str,
    ) -> Result<(Self, mpsc::Receiver<Notification>)> {
        let connected = control_listening(info, application_name).await;
        let (client, heard) = connected.map_err(|error| error.into_failure(Side::Target))?;
        Ok((Self::new(client), heard))
    }
}

impl SideClient {
    /// Where the session is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Executes `sql`, several statements too, for the sake of `what`: `an owner`.
    ///
    /// # Errors
    /// When the server refuses it, or does not answer.
    pub async fn run(&self, what: &'static str, sql: &Sql) -> Result<(), Error> {
        self.client.batch_execute(sql.as_str()).await.map_err(self.failed(what))
    }

    /// Makes the error of a question to this side.
    pub(crate) fn failed(&self, question: &'static str) -> impl Fn(tokio_postgres::Error) -> Error + use<> {
        let side = self.side;
        move |cause| Error::new(side, question, cause)
    }
}

impl Deref for SourceClient {
    type Target = SideClient;

    fn deref(&self) -> &SideClient {
        &self.0
    }
}

impl Deref for TargetClient {
    type Target = SideClient;

    fn deref(&self) -> &SideClient {
        &self.0
    }
}

impl Deref for SideClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
