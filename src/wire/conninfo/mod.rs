//! Where and how to connect: a libpq URI or keyword/value string with the environment's defaults filled in.
//!
//! Everything is understood as libpq understands it (manual: "Database Connection Control Functions"), so that a string
//! that works for `psql` works here. Beyond libpq: `connect_timeout`, `tcp_user_timeout` and TCP keepalives have
//! defaults that notice a dead peer within a minute.
//!
//! Not here: reading files that depend on the moment of connecting (password file, certificates) and resolving names.
//! A password never shows in `Debug`, `Display` or an error.

mod keywords;
mod parse;
mod require_auth;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use self::keywords::Options;
pub(super) use self::require_auth::RequireAuth;
use super::{Environment, passfile};
use crate::error::Definite;
use crate::limits;

const PORT_DEFAULT: u16 = 5432;

/// The directories in which distributions and source builds put the server's socket.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// A connection string that cannot be used. The text says which option and why, without its value where that may be
/// secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConnInfoError(String);

/// Everything needed to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnInfo {
    hosts: Vec<Host>,
    user: String,
    dbname: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    pub(super) options: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) connect_timeout: Duration,
    pub(super) socket: SocketOptions,
    pub(super) tls: TlsOptions,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: Option<RequireAuth>,
    pub(super) target_session_attrs: TargetSessionAttrs,
    /// Sessions may write though the server's settings, or the database's, would make them read only.
    pub(super) writable: bool,
    /// What the server may take for one answer on a control connection.
    pub(super) statement_max: Duration,
    /// See [`ConnInfo::tables_only`].
    pub(super) tables_only: bool,
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name, an address, or the directory of a Unix-domain socket. Empty when only `hostaddr` was given.
    pub name: String,
    /// `hostaddr`: where to connect without asking the resolver.
    pub address: Option<IpAddr>,
    /// The TCP port, or the number in the socket's name.
    pub port: u16,
}

/// A password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) String);

/// Options of the TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SocketOptions {
    pub(super) keepalives: bool,
    pub(super) keepalives_idle: Duration,
    pub(super) keepalives_interval: Duration,
    pub(super) keepalives_count: u32,
    pub(super) user_timeout: Option<Duration>,
}

/// Options of the TLS session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsOptions {
    pub(super) mode: SslMode,
    pub(super) root: RootCert,
    /// Certificate and key; whether the files were named by the user or are libpq's defaults, which need not exist.
    pub(super) client: Option<ClientCert>,
    pub(super) versions: TlsVersions,
    pub(super) sni: bool,
    pub(super) negotiation: SslNegotiation,
    pub(super) crl: Option<Crl>,
}

/// Where trusted certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RootCert {
    /// `sslrootcert=system`: what the operating system trusts.
    System,
    /// A PEM file.
    File(PathBuf),
    /// No file was named and there is no home to look in.
    Nowhere,
}

/// The client's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientCert {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) named: bool,
}

/// Certificates that are revoked: a PEM file; whether the user named it, or it is libpq's default, which need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crl {
    pub(super) file: PathBuf,
    pub(super) named: bool,
}

/// Which of the two TLS versions may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TlsVersions {
    pub(super) tls12: bool,
    pub(super) tls13: bool,
}

/// Turns words of a connection string into an enum's values and back.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $keyword:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            const KEYWORD: &'static str = $keyword;

            /// The word as a connection string has it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            fn from_options(options: &Options) -> Result<Option<Self>, ConnInfoError> {
                match options.get(Self::KEYWORD) {
                    None => Ok(None),
                    $(Some($word) => Ok(Some(Self::$variant)),)*
                    Some(other) => Err(ConnInfoError::new(format!(
                        "invalid {} value: \"{other}\" (one of {})", Self::KEYWORD, [$($word),*].join(", ")
                    ))),
                }
            }
        }
    };
}

words! {
    /// How much TLS is asked for, from least to most.
    SslMode: "sslmode" {
        /// Never.
        Disable = "disable",
        /// Only if the server refuses to go without.
        Allow = "allow",
        /// If the server can.
        Prefer = "prefer",
        /// Always; the certificate is checked only if there is a root certificate.
        Require = "require",
        /// Always, with a certificate that a trusted authority signed.
        VerifyCa = "verify-ca",
        /// Always, with a trusted certificate made out to this host.
        VerifyFull = "verify-full",
    }
}

words! {
    /// How TLS begins.
    SslNegotiation: "sslnegotiation" {
        /// After the server was asked for it.
        Postgres = "postgres",
        /// At once: servers from 17 on.
        Direct = "direct",
    }
}

words! {
    /// Whether the SCRAM exchange is tied to the TLS session.
    ChannelBinding: "channel_binding" {
        /// Never.
        Disable = "disable",
        /// Where both ends can.
        Prefer = "prefer",
        /// Always, else no connection.
        Require = "require",
    }
}

words! {
    /// Which kind of server is good enough.
    TargetSessionAttrs: "target_session_attrs" {
        /// Any.
        Any = "any",
        /// One where sessions can write.
        ReadWrite = "read-write",
        /// One where sessions cannot write.
        ReadOnly = "read-only",
        /// One that is not in recovery.
        Primary = "primary",
        /// One that is in recovery.
        Standby = "standby",
        /// One that is in recovery, else any.
        PreferStandby = "prefer-standby",
    }
}

/// What lets a session write where a default keeps it from that.
pub(super) const WRITABLE: (&str, &str) = ("default_transaction_read_only", "off");

impl ConnInfo {
    /// Parses a libpq URI or keyword/value string, with defaults from `environment`.
    ///
    /// # Errors
    /// When the string is malformed, an option is unknown or its value is not valid.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, ConnInfoError> {
        let options = parse::parse(text)?.with_defaults(environment)?;
        let user = options.get("user").or(environment.os_user()).map(str::to_owned);
        let user = user.ok_or_else(|| ConnInfoError::new("no user name given (user, or PGUSER)"))?;
        let passfile = options.get("passfile").map(PathBuf::from).or_else(|| environment.in_home(".pgpass"));
        Ok(Self {
            hosts: hosts(&options)?,
            dbname: options.get("dbname").unwrap_or(&user).to_owned(),
            user,
            password: options.get("password").map(|password| Secret(password.to_owned())),
            passfile,
            options: options.get("options").map(str::to_owned),
            application_name: options.get("application_name").map(str::to_owned),
            connect_timeout: seconds(&options, "connect_timeout")?.unwrap_or(limits::CONNECT_TIMEOUT),
            socket: socket_options(&options)?,
            tls: tls_options(&options, environment)?,
            channel_binding: ChannelBinding::from_options(&options)?.unwrap_or(ChannelBinding::Prefer),
            require_auth: options.get("require_auth").map(RequireAuth::parse).transpose()?,
            target_session_attrs: TargetSessionAttrs::from_options(&options)?
                .unwrap_or(TargetSessionAttrs::Any),
            writable: false,
            statement_max: limits::CONTROL_STATEMENT_MAX,
            tables_only: false,
        })
    }

    /// The role to connect as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database to connect to.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The same servers and credentials, for another database.
    #[must_use]
    pub fn with_dbname(&self, dbname: &str) -> Self {
        Self { dbname: dbname.to_owned(), ..self.clone() }
    }

    /// The same servers and database, for another role.
    #[must_use]
    pub fn with_login(&self, user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: Some(Secret(password.to_owned())), ..self.clone() }
    }

    /// The same, for sessions that may write though `default_transaction_read_only` is set for the server, the database or
    /// the role. So `target_session_attrs=read-write` finds a primary that is fenced by that, too, but no standby.
    #[must_use]
    pub fn writable(self) -> Self {
        Self { writable: true, ..self }
    }

    /// The same, for control connections that ask what is answered soon, if at all.
    #[must_use]
    pub fn with_statement_max(self, statement_max: Duration) -> Self {
        Self { statement_max, ..self }
    }

    /// Sessions read no view and no foreign table of users: what was a table when its name was looked up may be one when it
    /// is read, and would run its owner's functions as us.
    #[must_use]
    pub fn tables_only(self) -> Self {
        Self { tables_only: true, ..self }
    }

    /// The servers to try, in this order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// How much TLS is asked for.
    pub fn sslmode(&self) -> SslMode {
        self.tls.mode
    }

    /// The password for `host`: the one given, else the password file's.
    pub(super) fn password(&self, host: &Host) -> Option<Secret> {
        self.password.clone().or_else(|| {
            let path = self.passfile.as_deref()?;
            passfile::look_up(path, &host.passfile_name(), host.port, &self.dbname, &self.user).map(Secret)
        })
    }

    /// A keyword string with what libpq knows no environment variable for: how it notices a dead peer.
    pub fn libpq_keepalives(&self) -> String {
        let SocketOptions {
            keepalives,
            keepalives_idle,
            keepalives_interval,
            keepalives_count,
            user_timeout,
        } = &self.socket;
        format!(
            "keepalives={} keepalives_idle={} keepalives_interval={} keepalives_count={keepalives_count} \
             tcp_user_timeout={}",
            u8::from(*keepalives),
            keepalives_idle.as_secs(),
            keepalives_interval.as_secs(),
            user_timeout.map_or(0, |timeout| timeout.as_millis()),
        )
    }

    /// Environment variables that make libpq's programs connect as this does, so that `pg_dump` and its kin need no
    /// secret among their arguments. Variables that are not listed should be taken out of the child's environment
    /// where they start with `PG`.
    ///
    /// `private`: a session like this was found to be one that nobody else can listen to. Theirs must then be so, too; and
    /// where it was not, no password may go over it in clear text, as here.
    pub fn libpq_environment(&self, private: bool) -> Vec<(&'static str, String)> {
        let mode = match self.tls.mode {
            SslMode::Allow | SslMode::Prefer if private => SslMode::Require,
            mode => mode,
        };
        let not_in_clear = (!private && mode < SslMode::Require).then(|| "!password".to_owned());
        let require_auth = self.require_auth.as_ref().map(ToString::to_string).or(not_in_clear);
        let join = |each: &dyn Fn(&Host) -> String| self.hosts.iter().map(each).collect::<Vec<_>>().join(",");
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut variables = vec![
            ("PGHOST", join(&|host| host.name.clone())),
            ("PGPORT", join(&|host| host.port.to_string())),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.dbname.clone()),
            ("PGSSLMODE", mode.as_str().to_owned()),
            ("PGSSLNEGOTIATION", self.tls.negotiation.as_str().to_owned()),
            ("PGGSSENCMODE", "disable".to_owned()),
            ("PGSSLSNI", u8::from(self.tls.sni).to_string()),
            ("PGCHANNELBINDING", self.channel_binding.as_str().to_owned()),
            ("PGTARGETSESSIONATTRS", self.target_session_attrs.as_str().to_owned()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().to_string()),
        ];
        if self.hosts.iter().any(|host| host.address.is_some()) {
            let address = |host: &Host| host.address.map(|address| address.to_string()).unwrap_or_default();
            variables.push(("PGHOSTADDR", join(&address)));
        }
        match (&self.password, &self.passfile) {
            (Some(password), _) => variables.push(("PGPASSWORD", password.0.clone())),
            (None, Some(file)) => variables.push(("PGPASSFILE", path(file))),
            (None, None) => {}
        }
        match &self.tls.root {
            RootCert::System => variables.push(("PGSSLROOTCERT", "system".to_owned())),
            RootCert::File(file) => variables.push(("PGSSLROOTCERT", path(file))),
            RootCert::Nowhere => {}
        }
        variables.extend(require_auth.map(|methods| ("PGREQUIREAUTH", methods)));
        if let Some(crl) = self.tls.crl.as_ref().filter(|crl| crl.named) {
            variables.push(("PGSSLCRL", path(&crl.file)));
        }
        if !self.tls.versions.tls12 {
            variables.push(("PGSSLMINPROTOCOLVERSION", "TLSv1.3".to_owned()));
        }
        if !self.tls.versions.tls13 {
            variables.push(("PGSSLMAXPROTOCOLVERSION", "TLSv1.2".to_owned()));
        }
        if self.tls.client.is_none() {
            variables.push(("PGSSLCERTMODE", "disable".to_owned()));
        }
        if let Some(client) = self.tls.client.as_ref().filter(|client| client.named) {
            variables.extend([("PGSSLCERT", path(&client.cert)), ("PGSSLKEY", path(&client.key))]);
        }
        let writable = self.writable.then(|| format!("-c {}={}", WRITABLE.0, WRITABLE.1));
        let options: Vec<String> = self.options.iter().cloned().chain(writable).collect();
        if !options.is_empty() {
            variables.push(("PGOPTIONS", options.join(" ")));
        }
        variables
    }
}

impl Host {
    /// The Unix-domain socket's path, where this is one.
    pub fn socket_path(&self) -> Option<PathBuf> {
        let local = self.address.is_none() && self.name.starts_with('/');
        local.then(|| PathBuf::from(&self.name).join(format!(".s.PGSQL.{}", self.port)))
    }

    /// What the password file's first field is compared with.
    fn passfile_name(&self) -> String {
        match self.address {
            Some(address) if self.name.is_empty() => address.to_string(),
            _ if SOCKET_DIRS.contains(&self.name.as_str()) => "localhost".to_owned(),
            _ => self.name.clone(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) if self.name.is_empty() => write!(f, "{address} port {}", self.port),
            Some(address) => write!(f, "{} ({address}) port {}", self.name, self.port),
            None => write!(f, "{} port {}", self.name, self.port),
        }
    }
}

impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |each: &dyn Fn(&Host) -> String| self.hosts.iter().map(each).collect::<Vec<_>>().join(",");
        let name = |host: &Host| match host.address {
            Some(address) if host.name.is_empty() => address.to_string(),
            _ => host.name.clone(),
        };
        let (hosts, ports) = (join(&name), join(&|host| host.port.to_string()));
        let sslmode = self.tls.mode.as_str();
        write!(f, "host={hosts} port={ports} dbname={} user={} sslmode={sslmode}", self.dbname, self.user)
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnInfo({self})")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl ConnInfoError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<ConnInfoError> for Definite {
    fn from(error: ConnInfoError) -> Self {
        Self::usage(format!("invalid connection string: {error}"))
    }
}

fn hosts(options: &Options) -> Result<Vec<Host>, ConnInfoError> {
    let split =
        |name: &str| options.get(name).map(|list| list.split(',').collect::<Vec<_>>()).unwrap_or_default();
    let (names, addresses, ports) = (split("host"), split("hostaddr"), split("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        let (names, addresses) = (names.len(), addresses.len());
        return Err(ConnInfoError::new(format!("{names} host names for {addresses} hostaddr values")));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ConnInfoError::new(format!("{} port numbers for {count} hosts", ports.len())));
    }
    let host = |index: usize| {
        let address = match addresses.get(index).copied().unwrap_or_default() {
            "" => None,
            text => {
                Some(text.parse().map_err(|_| ConnInfoError::new(format!("invalid hostaddr: \"{text}\"")))?)
            }
        };
        let name = match names.get(index).copied().unwrap_or_default() {
            "" if address.is_none() => default_host(),
            // Such a name would be resolved, and shown when that fails.
            name if name.contains('@') => {
                return Err(ConnInfoError::new(
                    "invalid host name: it has an \"@\" (in a password, write it as %40)",
                ));
            }
            name => name.to_owned(),
        };
        let port =
            match ports.get(if ports.len() == 1 { 0 } else { index }).copied().unwrap_or_default().trim() {
                "" => PORT_DEFAULT,
                text => text.parse().ok().filter(|&port| port != 0).ok_or_else(|| invalid_port(text))?,
            };
        Ok(Host { name, address, port })
    };
    (0..count).map(host).collect()
}

/// What stands where a port should may be the rest of a password with a `/` in it.
fn invalid_port(text: &str) -> ConnInfoError {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return ConnInfoError::new(format!("invalid port number: \"{text}\""));
    }
    ConnInfoError::new("invalid port number: not a number (in a URI's password, write \"/\" as %2F)")
}

/// libpq has its socket directory compiled in; here it is the first of the usual ones that exists.
fn default_host() -> String {
    let found = SOCKET_DIRS.iter().find(|directory| std::path::Path::new(directory).is_dir());
    (*found.unwrap_or(&SOCKET_DIRS[0])).to_owned()
}

fn integer(options: &Options, name: &'static str) -> Result<Option<i32>, ConnInfoError> {
    let parse = |text: &str| text.trim().parse().ok();
    options.get(name).map_or(Ok(None), |text| match parse(text) {
        Some(value) => Ok(Some(value)),
        None => Err(ConnInfoError::new(format!(
            "invalid integer value \"{text}\" for connection option \"{name}\""
        ))),
    })
}

/// A time of whole seconds; zero and less mean the default, as nothing given does.
fn seconds(options: &Options, name: &'static str) -> Result<Option<Duration>, ConnInfoError> {
    let positive =
        integer(options, name)?.and_then(|value| u64::try_from(value).ok()).filter(|&value| value > 0);
    Ok(positive.map(Duration::from_secs))
}

fn socket_options(options: &Options) -> Result<SocketOptions, ConnInfoError> {
    let count = integer(options, "keepalives_count")?.and_then(|value| u32::try_from(value).ok());
    let user_timeout = match integer(options, "tcp_user_timeout")? {
        None => Some(limits::USER_TIMEOUT),
        // As with libpq, zero and less mean the system's default.
        Some(value) => u64::try_from(value).ok().filter(|&value| value > 0).map(Duration::from_millis),
    };
    Ok(SocketOptions {
        keepalives: integer(options, "keepalives")? != Some(0),
        keepalives_idle: seconds(options, "keepalives_idle")?.unwrap_or(limits::KEEPALIVES_IDLE),
        keepalives_interval: seconds(options, "keepalives_interval")?.unwrap_or(limits::KEEPALIVES_INTERVAL),
        keepalives_count: count.filter(|&count| count > 0).unwrap_or(limits::KEEPALIVES_COUNT),
        user_timeout,
    })
}

fn tls_options(options: &Options, environment: &Environment) -> Result<TlsOptions, ConnInfoError> {
    let root = match options.get("sslrootcert") {
        Some("system") => RootCert::System,
        Some(file) => RootCert::File(PathBuf::from(file)),
        None => environment.in_home(".postgresql/root.crt").map_or(RootCert::Nowhere, RootCert::File),
    };
    let given = SslMode::from_options(options)?;
    let mode = match (&root, given) {
        (RootCert::System, None) => SslMode::VerifyFull,
        (RootCert::System, Some(mode)) if mode < SslMode::VerifyFull => {
            let mode = mode.as_str();
            return Err(ConnInfoError::new(format!(
                "weak sslmode \"{mode}\" may not be used with sslrootcert=system (use verify-full)"
            )));
        }
        (_, given) => given.unwrap_or(SslMode::Prefer),
    };
    let negotiation = SslNegotiation::from_options(options)?.unwrap_or(SslNegotiation::Postgres);
    if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
        let mode = mode.as_str();
        return Err(ConnInfoError::new(format!(
            "weak sslmode \"{mode}\" may not be used with sslnegotiation=direct (use require, verify-ca, or verify-full)"
        )));
    }
    let crl = match options.get("sslcrl") {
        Some(file) => Some(Crl { file: PathBuf::from(file), named: true }),
        None => environment.in_home(".postgresql/root.crl").map(|file| Crl { file, named: false }),
    };
    let sni = options.get("sslsni").is_none_or(|value| value != "0");
    Ok(TlsOptions {
        mode,
        root,
        client: client_cert(options, environment)?,
        versions: tls_versions(options)?,
        sni,
        negotiation,
        crl,
    })
}

fn client_cert(options: &Options, environment: &Environment) -> Result<Option<ClientCert>, ConnInfoError> {
    if options.get("sslcertmode") == Some("disable") {
        return Ok(None);
    }
    let named = options.get("sslcert").is_some();
    let file = |option: &str, default: &str| {
        options.get(option).map(PathBuf::from).or_else(|| environment.in_home(default))
    };
    let (cert, key) =
        (file("sslcert", ".postgresql/postgresql.crt"), file("sslkey", ".postgresql/postgresql.key"));
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(ClientCert { cert, key, named })),
        (Some(_), None) => Err(ConnInfoError::new("sslcert is given without sslkey")),
        (None, _) => Ok(None),
    }
}

fn tls_versions(options: &Options) -> Result<TlsVersions, ConnInfoError> {
    let version = |name: &'static str, default: u8| match options.get(name) {
        None => Ok(default),
        Some("TLSv1") => Ok(0),
        Some("TLSv1.1") => Ok(1),
        Some("TLSv1.2") => Ok(2),
        Some("TLSv1.3") => Ok(3),
        Some(other) => Err(ConnInfoError::new(format!("invalid {name} value: \"{other}\""))),
    };
    let (min, max) = (version("ssl_min_protocol_version", 2)?, version("ssl_max_protocol_version", 3)?);
    if max < min || max < 2 {
        return Err(ConnInfoError::new("no TLS version is left: 1.2 and 1.3 are supported"));
    }
    Ok(TlsVersions { tls12: min <= 2, tls13: max >= 3 })
}
