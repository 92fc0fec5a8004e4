//! Authentication. Manual: "Start-up", "SASL Authentication", "Password Authentication".
//!
//! Methods: trust, cleartext, MD5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS. Not here: GSSAPI, SSPI, OAuth.

use postgres_protocol::message::frontend;

use super::body::Body;
use super::channel::Channel;
use super::conninfo::{ChannelBinding, RequireAuth, Secret};
use super::error::{AuthenticationError, Error, Result};
use super::scram::{Binding, First};

/// What we can show for ourselves.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: Option<&'a RequireAuth>,
    /// Whether nobody else can read what is sent.
    pub(super) private: bool,
    /// Whether there is TLS, and if so the certificate's hash, where it has one.
    pub(super) tls: bool,
    pub(super) server_end_point: Option<Vec<u8>>,
}

const PLUS: &str = "SCRAM-SHA-256-PLUS";
const PLAIN: &str = "SCRAM-SHA-256";

/// Answers the server until it lets us in.
pub(super) async fn authenticate(channel: &mut Channel, credentials: &Credentials<'_>) -> Result<()> {
    let (mut bound, mut answered) = (false, false);
    loop {
        let (code, rest) = next_request(channel).await?;
        if code != 10 && !bound && credentials.channel_binding == ChannelBinding::Require {
            let what = "the server's way to authenticate does not include it";
            return Err(AuthenticationError::ChannelBinding(what).into());
        }
        if !answered {
            credentials.check_allowed(code)?;
        }
        // Once is enough: whoever asks again would have the same password in another form.
        if code != 0 && std::mem::replace(&mut answered, true) {
            return Err(AuthenticationError::Again.into());
        }
        match code {
            0 => {
                channel.inbox.bounds.authenticated();
                return Ok(());
            }
            3 => send_password(channel, credentials.password()?.0.as_bytes())?,
            5 => {
                let salt = Body::new(&rest, "AuthenticationMD5Password").array()?;
                let password = credentials.password()?.0.as_bytes();
                let hash =
                    postgres_protocol::authentication::md5_hash(credentials.user.as_bytes(), password, salt);
                send_password(channel, hash.as_bytes())?;
            }
            10 => bound = scram(channel, credentials, &rest).await?,
            2 => return Err(AuthenticationError::Unsupported("Kerberos V5").into()),
            7 | 8 => return Err(AuthenticationError::Unsupported("GSSAPI").into()),
            9 => return Err(AuthenticationError::Unsupported("SSPI").into()),
            _ => return Err(AuthenticationError::Unsupported("an unknown kind of").into()),
        }
    }
}

/// The code of the next authentication request, and what follows it.
async fn next_request(channel: &mut Channel) -> Result<(i32, Vec<u8>)> {
    match channel.next_tag().await? {
        b'R' => {
            let mut body = Body::new(channel.inbox.body(), "Authentication");
            let request = (body.i32()?, body.rest().to_vec());
            channel.inbox.skip();
            Ok(request)
        }
        b'E' => Err(channel.take_error()?.into()),
        // A newer minor protocol than the server has; with 3.0 it does not come.
        tag => Err(Error::Unexpected { tag: tag.into(), doing: "authenticating" }),
    }
}

fn send_password(channel: &mut Channel, password: &[u8]) -> Result<()> {
    frontend::password_message(password, &mut channel.output)
        .map_err(|_| Error::Unsendable("a password with a zero byte"))
}

/// The whole SCRAM exchange; whether it was bound to the TLS session.
async fn scram(channel: &mut Channel, credentials: &Credentials<'_>, offer: &[u8]) -> Result<bool> {
    let (mechanism, binding) = credentials.choose(offer)?;
    let password = credentials.password()?;
    let first = First::new(binding);
    frontend::sasl_initial_response(mechanism, first.message().as_bytes(), &mut channel.output)
        .map_err(|_| Error::Unsendable("the SCRAM message"))?;
    let server_first = expect(channel, 11).await?;
    let (message, last) = first.answer(&server_first, &password.0).await?;
    frontend::sasl_response(message.as_bytes(), &mut channel.output)
        .map_err(|_| Error::Unsendable("the SCRAM message"))?;
    last.check(&expect(channel, 12).await?)?;
    Ok(mechanism == PLUS)
}

async fn expect(channel: &mut Channel, wanted: i32) -> Result<Vec<u8>> {
    let (code, rest) = next_request(channel).await?;
    if code == wanted {
        Ok(rest)
    } else {
        Err(AuthenticationError::Scram("the server left the exchange").into())
    }
}

impl Credentials<'_> {
    /// Whether the server may ask for this, or let us in without asking.
    fn check_allowed(&self, code: i32) -> Result<(), AuthenticationError> {
        let method = match code {
            0 => "none",
            3 => "password",
            5 => "md5",
            7 | 8 => "gss",
            9 => "sspi",
            10 => "scram-sha-256",
            // Not known, and so refused.
            _ => return Ok(()),
        };
        if self.require_auth.is_some_and(|require| !require.allows(method)) {
            return Err(AuthenticationError::NotAllowed(method));
        }
        if code == 3 && !self.private && !self.require_auth.is_some_and(|require| require.names(method)) {
            return Err(AuthenticationError::ClearText);
        }
        Ok(())
    }

    fn password(&self) -> Result<&Secret, AuthenticationError> {
        self.password.ok_or(AuthenticationError::NoPassword)
    }

    /// Chooses among the mechanisms that AuthenticationSASL lists.
    fn choose(&self, offer: &[u8]) -> Result<(&'static str, Binding)> {
        let mut body = Body::new(offer, "AuthenticationSASL");
        let (mut plain, mut plus) = (false, false);
        loop {
            match &*body.text()? {
                "" => break,
                PLAIN => plain = true,
                PLUS => plus = true,
                _ => {}
            }
        }
        if plus && !self.tls {
            return Err(AuthenticationError::Scram("the server offers channel binding without TLS").into());
        }
        let able = self.server_end_point.clone().filter(|_| self.channel_binding != ChannelBinding::Disable);
        let required = self.channel_binding == ChannelBinding::Require;
        let impossible = |why| Err(AuthenticationError::ChannelBinding(why).into());
        match able {
            Some(hash) if plus => Ok((PLUS, Binding::ServerEndPoint(hash))),
            None if required && !self.tls => impossible("the connection has no TLS"),
            None if required => {
                impossible("the server's certificate is signed by an algorithm without a hash")
            }
            Some(_) if required => impossible("the server does not offer it"),
            _ if !plain => Err(AuthenticationError::Unsupported("an unknown kind of SASL").into()),
            Some(_) => Ok((PLAIN, Binding::NotOffered)),
            None => Ok((PLAIN, Binding::None)),
        }
    }
}
