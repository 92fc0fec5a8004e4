//! From a conninfo to a session: hosts in order, TLS by `sslmode`, authentication, settings.
//!
//! As libpq: the next host is tried when there is no connection, when the server is not of the kind asked for, and when it
//! says that it cannot take connections now (57P03); any other refusal ends the matter. `allow` tries with TLS after it was
//! refused without, `prefer` without after it failed with; but not after a wrong password, which would only be sent
//! twice.
//!
//! The settings of every session (design §3.9) are sent in the startup message, where they win over the `options`, over
//! those of role and database, and hold on walsender connections too. Settings that only newer servers have are set
//! after the server's version is known.

use std::net::SocketAddr;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::net::UnixStream;

use super::auth::{self, Credentials};
use super::body::Body;
use super::channel::Channel;
use super::conninfo::{ConnInfo, Host, SslMode, SslNegotiation, TargetSessionAttrs, WRITABLE};
use super::error::{Error, Result};
use super::session::{Session, TransactionStatus};
use super::stream::{Stream, connect_tcp};
use super::tls::{self, TlsError};
use crate::pg::{ServerVersion, Sql};

/// What a session is for.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Whether this is a walsender (`replication=database`).
    pub replication: bool,
    /// More settings, which win over those of every session.
    pub settings: Vec<(&'static str, String)>,
    /// `search_path` is set when the session has begun: scripts of extensions read what RESET would make of it, and would
    /// make that the database's own.
    pub search_path_late: bool,
}

impl SessionOptions {
    /// A plain session that shows itself as `application_name`.
    pub fn new(application_name: impl Into<String>) -> Self {
        Self { application_name: application_name.into(), ..Self::default() }
    }
}

/// Settings of every session, known to every supported server. Nobody reads what a server says besides (a trigger may say
/// something of each row), and so a flood of it is not an honest server's. Without a word of warning, `array_nulls = off` makes
/// texts of an array's NULLs, and another `lc_monetary` other amounts of money.
///
/// The server is to notice within a minute that our machine is gone, too: the session of a COPY that died with it keeps its
/// locks until then (the kernel's own time is two hours). Not by `tcp_user_timeout`: that ends a connection also where the other
/// side lives and has not read for as long, as an engine does whose target is busy.
const SETTINGS: [(&str, &str); 21] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "error"),
    ("bytea_output", "hex"),
    ("array_nulls", "on"),
    ("lc_monetary", "C"),
    ("quote_all_identifiers", "off"),
    ("xmloption", "content"),
    ("search_path", SEARCH_PATH),
    ("row_security", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "6"),
];

/// Where names without a schema are looked for. Unless it is named, the schema of temporary tables comes first: code of the
/// target's owners that runs for a row could put a table of its own there, in place of a catalog.
const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// Settings of every session that servers have from this major version on.
const NEWER_SETTINGS: [(u32, &str); 2] = [(14, "idle_session_timeout"), (17, "transaction_timeout")];

/// Refuses to read views and foreign tables of users, where the server knows how (12.20, 13.16, 14.13, 15.8, 16.4, 17).
const TABLES_ONLY: &str = "SELECT pg_catalog.set_config(name, 'view, foreign-table', false) FROM pg_catalog.pg_settings \
     WHERE name = 'restrict_nonsystem_relation_kind'";

/// Connects to the first host that will do.
pub(super) async fn connect(conninfo: &ConnInfo, options: &SessionOptions) -> Result<Session> {
    let wanted = conninfo.target_session_attrs;
    let first = connect_any(conninfo, options, wanted).await;
    match first {
        Err(_) if wanted == TargetSessionAttrs::PreferStandby => {
            connect_any(conninfo, options, TargetSessionAttrs::Any).await
        }
        first => first,
    }
}

async fn connect_any(
    conninfo: &ConnInfo,
    options: &SessionOptions,
    wanted: TargetSessionAttrs,
) -> Result<Session> {
    let mut last = Error::Closed;
    for host in conninfo.hosts() {
        for address in addresses(host).await.unwrap_or_else(|error| {
            last = error;
            Vec::new()
        }) {
            let attempt = Attempt { conninfo, options, host, address, wanted };
            let limit = conninfo.connect_timeout;
            let timeout = |_| Error::Timeout { host: host.to_string(), after: limit };
            match tokio::time::timeout(limit, attempt.run()).await.map_err(timeout).and_then(|result| result)
            {
                Ok(session) => return Ok(session),
                Err(error) if tries_next_host(&error) => {
                    tracing::debug!(%host, %error, "host is not usable");
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(last)
}

fn tries_next_host(error: &Error) -> bool {
    match error {
        Error::Server(error) => error.sqlstate() == "57P03",
        Error::Resolve { .. } | Error::Connect { .. } | Error::Timeout { .. } => true,
        Error::Silent { .. } => true,
        Error::SessionAttributes { .. } | Error::Io(_) | Error::Closed => true,
        Error::Tls(error) => error.is_transient(),
        Error::Authentication(_) | Error::Malformed(_) | Error::Unexpected { .. } | Error::Excess(_) => false,
        Error::Unsendable(_) | Error::Busy => false,
    }
}

/// The host's TCP addresses; `None` stands for a Unix-domain socket.
async fn addresses(host: &Host) -> Result<Vec<Option<SocketAddr>>> {
    if host.socket_path().is_some() {
        return Ok(vec![None]);
    }
    if let Some(address) = host.address {
        return Ok(vec![Some(SocketAddr::new(address, host.port))]);
    }
    let found = tokio::net::lookup_host((host.name.as_str(), host.port)).await;
    match found {
        Ok(found) => Ok(found.map(Some).collect()),
        Err(source) => Err(Error::Resolve { host: host.name.clone(), source }),
    }
}

/// One address of one host.
struct Attempt<'a> {
    conninfo: &'a ConnInfo,
    options: &'a SessionOptions,
    host: &'a Host,
    address: Option<SocketAddr>,
    wanted: TargetSessionAttrs,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Session> {
        let mode = self.conninfo.tls.mode;
        let mut session = match self.address {
            None => self.start(false).await?,
            Some(_) => match (self.start(mode > SslMode::Allow).await, mode) {
                (Err(error), SslMode::Allow) if is_refusal(&error) => {
                    self.start(true).await.map_err(|second| telling(error, second))?
                }
                (Err(error), SslMode::Prefer) if is_refusal(&error) || matches!(error, Error::Tls(_)) => {
                    tracing::debug!(host = %self.host, %error, "trying without tls");
                    self.start(false).await.map_err(|second| telling(error, second))?
                }
                (result, _) => result?,
            },
        };
        let tables_only = self.conninfo.tables_only && !self.options.replication;
        session.pin_newer_settings(tables_only).await?;
        if self.options.search_path_late {
            session.execute(&Sql::new("SET search_path = ").text(SEARCH_PATH)).await?;
        }
        if self.wanted != TargetSessionAttrs::Any && !session.suits(self.wanted).await? {
            let wanted = self.wanted.as_str();
            return Err(Error::SessionAttributes { host: self.host.to_string(), wanted });
        }
        Ok(session)
    }

    /// Connects, and gets to the first ReadyForQuery.
    async fn start(&self, with_tls: bool) -> Result<Session> {
        let stream = self.stream(with_tls).await?;
        let (tls, server_end_point) = match &stream {
            Stream::Tls(stream) => (true, tls::server_end_point(stream)),
            Stream::Tcp(_) | Stream::Unix(_) => (false, None),
        };
        let mut channel = Channel::new(stream);
        self.startup_message(&mut channel.output)?;
        let password = self.conninfo.password(self.host);
        let credentials = Credentials {
            user: self.conninfo.user(),
            password: password.as_ref(),
            channel_binding: self.conninfo.channel_binding,
            require_auth: self.conninfo.require_auth.as_ref(),
            private: tls || self.address.is_none(),
            tls,
            server_end_point,
        };
        auth::authenticate(&mut channel, &credentials).await?;
        finish_startup(channel).await
    }

    async fn stream(&self, with_tls: bool) -> Result<Stream> {
        let failed = |source| Error::Connect { host: self.host.to_string(), source };
        let Some(address) = self.address else {
            let path = self.host.socket_path().unwrap_or_default();
            return Ok(Stream::Unix(UnixStream::connect(path).await.map_err(failed)?));
        };
        let (options, replication) = (&self.conninfo.socket, self.options.replication);
        let mut stream = connect_tcp(address, options, replication).await.map_err(failed)?;
        if !with_tls {
            return Ok(Stream::Tcp(stream));
        }
        let direct = self.conninfo.tls.negotiation == SslNegotiation::Direct;
        if direct || tls::request(&mut stream).await? {
            let stream = tls::handshake(stream, &self.conninfo.tls, self.host).await?;
            return Ok(Stream::Tls(Box::new(stream)));
        }
        match self.conninfo.tls.mode {
            SslMode::Disable | SslMode::Allow | SslMode::Prefer => Ok(Stream::Tcp(stream)),
            mode @ (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
                Err(TlsError::NotOffered(mode.as_str()).into())
            }
        }
    }

    fn startup_message(&self, output: &mut BytesMut) -> Result<()> {
        let (conninfo, options) = (self.conninfo, self.options);
        let name = Some(&options.application_name).filter(|name| !name.is_empty());
        let name = name.or(conninfo.application_name.as_ref()).map_or("walferry", String::as_str);
        let mut parameters =
            vec![("user", conninfo.user()), ("database", conninfo.dbname()), ("application_name", name)];
        parameters.extend(options.replication.then_some(("replication", "database")));
        parameters.extend(conninfo.options.as_deref().map(|options| ("options", options)));
        let replaced =
            |name: &str| options.settings.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        let late = |name: &str| options.search_path_late && name == "search_path";
        parameters.extend(SETTINGS.into_iter().filter(|(name, _)| !replaced(name) && !late(name)));
        parameters.extend(conninfo.writable.then_some(WRITABLE));
        parameters.extend(options.settings.iter().map(|(name, value)| (*name, value.as_str())));
        frontend::startup_message(parameters, output)
            .map_err(|_| Error::Unsendable("a connection option with a zero byte"))
    }
}

/// Whether the server may think otherwise of a connection with, or without, TLS.
fn is_refusal(error: &Error) -> bool {
    error.server().is_some_and(|error| error.class() == "28" && error.sqlstate() != "28P01")
}

/// Of two failed ways, the one that got further tells more: a wrong password more than a missing pg_hba.conf line.
fn telling(first: Error, second: Error) -> Error {
    if is_refusal(&second) { first } else { second }
}

/// Reads from AuthenticationOk to ReadyForQuery.
async fn finish_startup(mut channel: Channel) -> Result<Session> {
    let mut key = (0, 0);
    loop {
        match channel.next_tag().await? {
            b'K' => {
                let mut body = Body::new(channel.inbox.body(), "BackendKeyData");
                key = (body.i32()?, body.i32().unwrap_or_default());
                channel.inbox.skip();
            }
            b'Z' => break,
            b'E' => return Err(channel.take_error()?.into()),
            tag => return Err(Error::Unexpected { tag: tag.into(), doing: "starting up" }),
        }
    }
    let status = TransactionStatus::decode(channel.inbox.body())?;
    channel.inbox.skip();
    let version = channel.inbox.parameter("server_version").and_then(parse_version);
    let version = version.ok_or(Error::Malformed("server_version ParameterStatus"))?;
    Ok(Session::new(channel, version, key, status))
}

/// `15.18 (Debian …)`, `18beta1`, `9.6.24` to the number that `server_version_num` has. A server may say anything.
fn parse_version(text: &str) -> Option<ServerVersion> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (major, rest) = text.split_at(digits(text));
    let major: u32 = major.parse().ok()?;
    let minor = |rest: &str| rest.strip_prefix('.').and_then(|rest| rest[..digits(rest)].parse::<u32>().ok());
    let number = major.checked_mul(10_000)?;
    if major >= 10 {
        return number.checked_add(minor(rest).unwrap_or(0)).map(ServerVersion::new);
    }
    let middle = minor(rest)?.checked_mul(100)?;
    let rest = &rest[1 + digits(&rest[1..])..];
    let number = number.checked_add(middle)?.checked_add(minor(rest).unwrap_or(0));
    number.map(ServerVersion::new)
}

impl Session {
    async fn pin_newer_settings(&mut self, tables_only: bool) -> Result<()> {
        let major = self.server_version().major();
        let newer = NEWER_SETTINGS.iter().filter(|(since, _)| major >= *since).map(|(_, name)| name);
        let sql = newer.fold(Sql::default(), |sql, name| sql.text("SET ").text(name).text(" = 0;"));
        // Such a database takes any bytes for text. It would refuse to send those that are not UTF-8, without a word
        // about where they are; so they go as they are, and a target that wants UTF-8 says which table's they were.
        let raw = self.parameter("server_encoding") == Some("SQL_ASCII");
        let sql = if raw { sql.text("SET client_encoding = SQL_ASCII;") } else { sql };
        let sql = if tables_only { sql.text(TABLES_ONLY) } else { sql };
        if sql == Sql::default() { Ok(()) } else { self.execute(&sql).await }
    }

    async fn suits(&mut self, wanted: TargetSessionAttrs) -> Result<bool> {
        let read_only = Sql::new("SHOW transaction_read_only");
        let recovery = Sql::new("SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'on' ELSE 'off' END");
        let (sql, expected) = match wanted {
            TargetSessionAttrs::Any => return Ok(true),
            TargetSessionAttrs::ReadWrite => (read_only, "off"),
            TargetSessionAttrs::ReadOnly => (read_only, "on"),
            TargetSessionAttrs::Primary => (recovery, "off"),
            TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby => (recovery, "on"),
        };
        let rows = self.query(&sql).await?;
        Ok(rows.first().and_then(|row| row.text(0)) == Some(expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, expected) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("18beta1", Some(180_000)),
            ("16rc1", Some(160_000)),
            ("1.144444444", None),
            ("1.1.4294967295", None),
            ("10.4294967295", None),
            ("429496.1", Some(4_294_960_001)),
            ("429497.1", None),
            ("17.2", Some(170_002)),
            ("9.6.24", Some(90_624)),
            ("", None),
            ("devel", None),
            ("99999999999", None),
        ] {
            assert_eq!(parse_version(text).map(ServerVersion::get), expected, "{text}");
        }
    }
}
