//! Who may ask: by the name that he asked for, and by a token.
//!
//! - On a loopback address only names of this machine are answered. A web page of somebody else's whose name leads to
//!   127.0.0.1 (DNS rebinding) runs in the operator's own browser, and would be allowed to read what it gets.
//! - The token comes as `Authorization: Bearer TOKEN`; as `aivenv1 TOKEN`, as Aiven's client sends it; or as the password
//!   of `Basic`, which is how a browser asks for one. It is not kept: only its keyed hash is, and compared in constant time.
//! - `/healthz` says nothing but that the process lives, and is open to load balancers without it.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::SystemRandom;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::Definite;
use crate::limits::{HTTP_SECRET_FILE_BYTES_MAX, HTTP_TOKEN_CHARS_MIN};

/// What an address asks of whoever comes to it.
#[derive(Clone, Default)]
pub struct Access {
    /// What has to be known; `None`: nothing.
    pub token: Option<Token>,
    /// The certificate and its key; `None`: the connection is not encrypted.
    pub tls: Option<TlsAcceptor>,
}

/// A secret that both sides know.
#[derive(Clone)]
pub struct Token {
    key: hmac::Key,
    hash: hmac::Tag,
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// A usage error where one of them cannot be used, or could be read by others.
    pub fn read(token: Option<&Path>, tls: Option<(&Path, &Path)>) -> Result<Self, Definite> {
        let read = |path: &Path| {
            Token::read(path).map_err(|reason| {
                unusable("--listen-token-file", path, &reason)
                    .hint(format!("make one with: (umask 077 && openssl rand -hex 32 > {})", path.display()))
            })
        };
        Ok(Self {
            token: token.map(read).transpose()?,
            tls: tls.map(|(certificate, key)| read_tls(certificate, key)).transpose()?,
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("token", &self.token).field("tls", &self.tls.is_some()).finish()
    }
}

impl Token {
    fn read(path: &Path) -> Result<Self, String> {
        let text = read_secret(path)?;
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < HTTP_TOKEN_CHARS_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "it is not one line of {HTTP_TOKEN_CHARS_MIN} or more printable ASCII characters without spaces"
            ));
        }
        Self::new(token).ok_or_else(|| "this machine gives no random numbers".to_owned())
    }

    fn new(token: &str) -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        let hash = hmac::sign(&key, token.as_bytes());
        Some(Self { key, hash })
    }

    fn matches(&self, given: &[u8]) -> bool {
        hmac::verify(&self.key, given, self.hash.as_ref()).is_ok()
    }

    /// Whether one of the forms that it comes in has it.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes) else { return false };
        let Some(space) = value.iter().position(|&byte| byte == b' ') else { return false };
        let (scheme, given) = (&value[..space], value[space..].trim_ascii());
        if scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"aivenv1") {
            return self.matches(given);
        }
        let decoded = STANDARD.decode(given).ok().filter(|_| scheme.eq_ignore_ascii_case(b"basic"));
        let password = |text: Vec<u8>| text.splitn(2, |&byte| byte == b':').nth(1).map(<[u8]>::to_vec);
        decoded.and_then(password).is_some_and(|password| self.matches(&password))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is asked of each request.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    token: Option<Token>,
    /// Only names of this machine are answered.
    local: bool,
}

impl Gate {
    pub fn new(address: SocketAddr, token: Option<Token>) -> Arc<Self> {
        Arc::new(Self { token, local: is_loopback(address.ip()) })
    }

    /// The answer to a request that is not let in.
    pub fn refuses(&self, request: &Request) -> Option<Response> {
        if let Err(status) = self.host(request) {
            return Some((status, "not a name of this server\n").into_response());
        }
        let open = request.uri().path() == "/healthz";
        match &self.token {
            Some(token) if !open && !token.is_in(request.headers()) => Some(unauthorized()),
            _ => None,
        }
    }

    fn host(&self, request: &Request) -> Result<(), StatusCode> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            // Load balancers that still speak HTTP/1.0. No browser does.
            (None, _) if request.version() < Version::HTTP_11 => return Ok(()),
            (Some(host), None) => host,
            _ => return Err(StatusCode::BAD_REQUEST),
        };
        let named = [request.uri().authority().cloned(), Authority::try_from(host.as_bytes()).ok()];
        if !self.local {
            return Ok(());
        }
        let [asked, host] = named.map(|authority| authority.as_ref().map(is_ours));
        if asked.unwrap_or(true) && host.unwrap_or(false) {
            Ok(())
        } else {
            Err(StatusCode::MISDIRECTED_REQUEST)
        }
    }
}

/// A name that leads to this machine wherever it is looked up.
fn is_ours(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let ours = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback);
    ours && !authority.as_str().contains('@')
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn unauthorized() -> Response {
    let mut response = (StatusCode::UNAUTHORIZED, "a token is needed\n").into_response();
    let challenges: [(HeaderName, _); 2] = [
        (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"walferry\"")),
        (header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"walferry\"")),
    ];
    response.headers_mut().extend(challenges.map(|(name, value)| (Some(name), value)));
    response
}

fn read_tls(certificate: &Path, key: &Path) -> Result<TlsAcceptor, Definite> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unusable("--listen-cert", certificate, &error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable("--listen-cert", certificate, "it has none"));
    }
    let text = read_secret(key).map_err(|reason| unusable("--listen-key", key, &reason))?;
    let loaded = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| unusable("--listen-key", key, &error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("--listen-cert", certificate, &error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, loaded)
        .map_err(|error| unusable("--listen-key", key, &error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A file's text that only we know. One that cannot be had is waited for by nobody: it has to be a plain file.
fn read_secret(path: &Path) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    private(&fs::metadata(path).map_err(said)?)?;
    let file = File::open(path).map_err(said)?;
    private(&file.metadata().map_err(said)?)?;
    let mut text = String::new();
    file.take(HTTP_SECRET_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(said)?;
    if text.len() as u64 > HTTP_SECRET_FILE_BYTES_MAX {
        return Err(format!("it is larger than {HTTP_SECRET_FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// Ours and nobody else's, or root's and a group's to read: as libpq wants a key to be.
fn private(metadata: &Metadata) -> Result<(), String> {
    if !metadata.is_file() {
        return Err("it is not a plain file".to_owned());
    }
    let mode = metadata.permissions().mode() & 0o777;
    // Where the system does not say who we are, the mode must do.
    let own = fs::metadata("/proc/self").map_or(true, |me| me.uid() == metadata.uid());
    match (own, metadata.uid() == 0) {
        (true, _) if mode & 0o077 == 0 => Ok(()),
        (_, true) if mode & 0o037 == 0 => Ok(()),
        (false, false) => Err("it belongs to another user".to_owned()),
        _ => Err("others have access: run chmod 0600 on it".to_owned()),
    }
}

fn unusable(option: &str, path: &Path, reason: &str) -> Definite {
    Definite::usage(format!("the file of {option} cannot be used"))
        .detail(format!("{}: {reason}", path.display()))
}
