//! TLS as libpq's `sslmode` has it. Manual: "SSL Support".
//!
//! - The certificate is checked in any mode if a root certificate is there, so `require` with one acts like `verify-ca`;
//!   `verify-ca` and `verify-full` without one are an error.
//! - A host name is compared with the certificate's alternative names, and with its common name only if there are none.
//! - A certificate that is itself in the root file is trusted, as with OpenSSL: many servers have a self-signed one.
//! - The handshake's signature is verified in every mode, since channel binding relies on it.
//!
//! - With a list of revoked certificates (`sslcrl`) every certificate of the chain must be covered by one that is not over.
//!
//! Not here: directories of such lists, encrypted keys, TLS before 1.2, OpenSSL engines.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_rustls::client::TlsStream;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;

use super::conninfo::{ClientCert, Crl, Host, RootCert, SslMode, SslNegotiation, TlsOptions};
use super::tcp::Tcp;
use super::verifier::{Roots, Verifier};
use crate::limits::TLS_READ_BYTES;

/// Why there is no TLS session.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server has TLS switched off.
    #[error("the server does not offer TLS, but sslmode is {0}")]
    NotOffered(&'static str),
    /// The answer to the request for TLS is neither yes nor no.
    #[error("the server answered the request for TLS with byte {0:#04x}")]
    Answer(u8),
    /// Nothing to check the certificate against.
    #[error("sslmode is {mode}, but there is no root certificate file{}", at(file))]
    NoRoot {
        /// The mode asked for.
        mode: &'static str,
        /// Where it was looked for.
        file: Option<PathBuf>,
    },
    /// A file cannot be used.
    #[error("{what} file \"{file}\" cannot be used: {reason}", file = file.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What answered does not say that it speaks PostgreSQL's protocol.
    #[error("sslnegotiation is direct, but the server does not agree on the protocol (ALPN)")]
    NoProtocol,
    /// `verify-full` needs a name to compare.
    #[error("sslmode is verify-full, but no host name was given (host)")]
    NoHostName,
    /// TLS itself failed.
    #[error("TLS failed: {0}")]
    Session(rustls::Error),
    /// The connection broke during the handshake.
    #[error("connection lost during the TLS handshake: {0}")]
    Io(io::Error),
}

fn at(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| format!(" (\"{}\" does not exist)", file.display())).unwrap_or_default()
}

impl TlsError {
    /// Takes out the TLS error that rustls hides in an I/O error; gives back any other.
    pub(super) fn from_io(error: io::Error) -> Result<Self, io::Error> {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Ok(Self::Session(inner.clone())),
            None => Err(error),
        }
    }

    pub(super) const fn is_transient(&self) -> bool {
        matches!(self, Self::Io(_))
    }

    pub(super) fn cause(&self) -> &'static str {
        use CertificateError as C;
        match self {
            Self::NotOffered(_) => "server offers no TLS",
            Self::NoRoot { .. } => "root certificate missing",
            Self::File { .. } => "certificate or key file unusable",
            Self::Session(rustls::Error::InvalidCertificate(error)) => match error {
                C::UnknownIssuer | C::BadSignature => "server's certificate is not trusted",
                C::NotValidForName | C::NotValidForNameContext { .. } => {
                    "server's certificate is for another host"
                }
                C::Expired | C::ExpiredContext { .. } => "server's certificate has expired",
                C::Revoked => "server's certificate is revoked",
                C::UnknownRevocationStatus
                | C::ExpiredRevocationList
                | C::ExpiredRevocationListContext { .. } => "server's certificate may be revoked",
                C::NotValidYet | C::NotValidYetContext { .. } => "server's certificate is not valid yet",
                _ => "server's certificate is not valid",
            },
            Self::Session(rustls::Error::AlertReceived(_)) => "server refused the TLS session",
            Self::NoProtocol => "server does not begin with TLS",
            Self::NoHostName | Self::Session(_) | Self::Answer(_) | Self::Io(_) => "no TLS session",
        }
    }

    pub(super) fn hint(&self, conninfo: &str) -> String {
        use CertificateError as C;
        match self {
            Self::NotOffered(_) => {
                format!("switch ssl on at the server, or set a lower sslmode in {conninfo}")
            }
            // Another authority of the same name shows as a bad signature.
            Self::NoRoot { .. }
            | Self::Session(rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature)) => {
                format!("set sslrootcert in {conninfo} to the file of the server's certificate authority")
            }
            Self::Session(rustls::Error::InvalidCertificate(
                C::NotValidForName | C::NotValidForNameContext { .. },
            )) => format!("use a host name that the certificate has, or sslmode=verify-ca, in {conninfo}"),
            // A clock that is slow is the likelier fault: certificates begin when they are made.
            Self::Session(rustls::Error::InvalidCertificate(
                C::NotValidYet | C::NotValidYetContext { .. },
            )) => {
                format!(
                    "look at this machine's clock (`date -u` says {}): set it if it is slow; if it is right, the server \
                     has a certificate that begins later: have it made anew",
                    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC")
                )
            }
            Self::Session(rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. })) => {
                format!(
                    "renew the server's certificate, or set this machine's clock if it is fast (`date -u` says {}); or \
                     set a lower sslmode in {conninfo}",
                    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC")
                )
            }
            Self::Session(rustls::Error::InvalidCertificate(C::Revoked)) => {
                "whoever answers may not be the server: have its certificate and key made anew".to_owned()
            }
            Self::Session(rustls::Error::InvalidCertificate(
                C::UnknownRevocationStatus
                | C::ExpiredRevocationList
                | C::ExpiredRevocationListContext { .. },
            )) => {
                format!("renew the file that sslcrl names in {conninfo}: it needs a list of each authority")
            }
            Self::NoProtocol => format!(
                "leave sslnegotiation out in {conninfo}: servers before 17, and proxies, do not know direct TLS"
            ),
            Self::Session(rustls::Error::InvalidCertificate(_)) => {
                format!("renew the server's certificate, or set a lower sslmode in {conninfo}")
            }
            Self::Session(rustls::Error::AlertReceived(_)) => {
                format!("check sslcert and sslkey in {conninfo}: the server may want a client certificate")
            }
            _ => String::new(),
        }
    }
}

/// Asks the server for TLS. Exactly one byte is read: whatever comes behind it belongs to the handshake, and would be
/// plain text injected by somebody else if it were kept (CVE-2021-23222).
pub(super) async fn request(stream: &mut Tcp) -> Result<bool, TlsError> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    stream.write_all(&SSL_REQUEST).await.map_err(TlsError::Io)?;
    match stream.read_u8().await.map_err(TlsError::Io)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        other => Err(TlsError::Answer(other)),
    }
}

/// Makes the TLS session that the server agreed to.
pub(super) async fn handshake(
    stream: Tcp,
    options: &TlsOptions,
    host: &Host,
) -> Result<TlsStream<BufReader<Tcp>>, TlsError> {
    let name = ServerName::try_from(host.name.as_str()).map(|name| name.to_owned());
    let (name, named) = match (name, host.address, stream.peer_addr()) {
        (Ok(name), _, _) => (name, true),
        (Err(_), Some(address), _) => (ServerName::from(address), false),
        (Err(_), None, Ok(peer)) => (ServerName::from(peer.ip()), false),
        (Err(_), None, Err(error)) => return Err(TlsError::Io(error)),
    };
    if options.mode == SslMode::VerifyFull && !named {
        return Err(TlsError::NoHostName);
    }
    let config = client_config(options)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(name, BufReader::with_capacity(TLS_READ_BYTES, stream.encrypted()))
        .await
        .map_err(|error| TlsError::from_io(error).unwrap_or_else(TlsError::Io))?;
    let agreed = stream.get_ref().1.alpn_protocol().is_some();
    if options.negotiation == SslNegotiation::Direct && !agreed {
        Err(TlsError::NoProtocol)
    } else {
        Ok(stream)
    }
}

/// What is spoken on the TLS session, by its registered name.
const PROTOCOL: &[u8] = b"postgresql";

/// What `tls-server-end-point` channel binding sends: the hash of the server's certificate, by the hash of the
/// certificate's own signature, but SHA-256 in place of MD5 and SHA-1 (RFC 5929, section 4.1). `None` if the
/// signature has no hash of its own, as Ed25519.
pub(super) fn server_end_point(stream: &TlsStream<BufReader<Tcp>>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    end_point_hash(certificate)
}

fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let mut oid = algorithm.oid;
    if oid == RSASSA_PSS {
        oid = pss_hash(algorithm.parameters.as_ref())?;
    }
    let hash = HASHES.iter().find_map(|(known, hash)| (*known == oid).then_some(hash))?;
    Some(match hash {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// The hash named in RSASSA-PSS parameters: `SEQUENCE { [0] SEQUENCE { OID … } … }`, SHA-1 when left out.
fn pss_hash(parameters: Option<&x509_cert::der::Any>) -> Option<ObjectIdentifier> {
    use x509_cert::der::asn1::{AnyRef, ContextSpecific};
    use x509_cert::der::{Reader, SliceReader};
    let mut sequence = SliceReader::new(parameters?.value()).ok()?;
    if sequence.is_finished() {
        return Some(SHA1);
    }
    let hash: Option<ContextSpecific<AnyRef<'_>>> =
        ContextSpecific::decode_explicit(&mut sequence, x509_cert::der::TagNumber::N0).ok()?;
    match hash {
        None => Some(SHA1),
        Some(hash) => SliceReader::new(hash.value.value()).ok()?.decode().ok(),
    }
}

#[derive(Clone, Copy)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

/// Signature algorithms, and the bare hashes that RSASSA-PSS names, with the hash for channel binding.
const HASHES: [(ObjectIdentifier, Hash); 17] = {
    const fn oid(text: &str) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(text)
    }
    [
        (oid("1.2.840.113549.1.1.4"), Hash::Sha256),
        (oid("1.2.840.113549.1.1.5"), Hash::Sha256),
        (oid("1.2.840.113549.1.1.14"), Hash::Sha224),
        (oid("1.2.840.113549.1.1.11"), Hash::Sha256),
        (oid("1.2.840.113549.1.1.12"), Hash::Sha384),
        (oid("1.2.840.113549.1.1.13"), Hash::Sha512),
        (oid("1.2.840.10045.4.1"), Hash::Sha256),
        (oid("1.2.840.10045.4.3.1"), Hash::Sha224),
        (oid("1.2.840.10045.4.3.2"), Hash::Sha256),
        (oid("1.2.840.10045.4.3.3"), Hash::Sha384),
        (oid("1.2.840.10045.4.3.4"), Hash::Sha512),
        (SHA1, Hash::Sha256),
        (oid("2.16.840.1.101.3.4.2.4"), Hash::Sha224),
        (oid("2.16.840.1.101.3.4.2.1"), Hash::Sha256),
        (oid("2.16.840.1.101.3.4.2.2"), Hash::Sha384),
        (oid("2.16.840.1.101.3.4.2.3"), Hash::Sha512),
        (oid("1.2.840.113549.2.5"), Hash::Sha256),
    ]
};

fn client_config(options: &TlsOptions) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let revoked = revoked(options.crl.as_ref())?;
    let verifier = Verifier::new(roots(options)?, revoked, options.mode == SslMode::VerifyFull, &provider)
        .map_err(|reason| crl_error(options.crl.as_ref(), reason))?;
    let versions: &[_] = match (options.versions.tls12, options.versions.tls13) {
        (true, true) => &[&rustls::version::TLS13, &rustls::version::TLS12],
        (true, false) => &[&rustls::version::TLS12],
        (false, _) => &[&rustls::version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(TlsError::Session)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client_identity(options.client.as_ref())? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(TlsError::Session)?,
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = options.sni;
    if options.negotiation == SslNegotiation::Direct {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
    }
    Ok(config)
}

/// What certificates are checked against; `None` if they are not.
fn roots(options: &TlsOptions) -> Result<Option<Roots>, TlsError> {
    let missing = |file: Option<&Path>| match options.mode {
        SslMode::VerifyCa | SslMode::VerifyFull => {
            Err(TlsError::NoRoot { mode: options.mode.as_str(), file: file.map(Path::to_owned) })
        }
        SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => Ok(None),
    };
    match &options.root {
        RootCert::System => {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() { missing(None) } else { Ok(Some(Roots { store, exact: Vec::new() })) }
        }
        RootCert::Nowhere => missing(None),
        RootCert::File(file) if !file.exists() => missing(Some(file)),
        RootCert::File(file) => {
            let exact = certificates("root certificate", file)?;
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(exact.iter().cloned());
            Ok(Some(Roots { store, exact }))
        }
    }
}

/// The lists of revoked certificates.
fn revoked(crl: Option<&Crl>) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    // As with libpq, its default need not exist.
    let Some(Crl { file, .. }) = crl.filter(|crl| crl.named || crl.file.exists()) else {
        return Ok(Vec::new());
    };
    let lists =
        CertificateRevocationListDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match lists {
        Ok(lists) if lists.is_empty() => Err(file_error(CRL, file, "there is no list in it")),
        lists => lists.map_err(|error| file_error(CRL, file, error)),
    }
}

fn crl_error(crl: Option<&Crl>, reason: impl std::fmt::Display) -> TlsError {
    file_error(CRL, crl.map_or(Path::new(""), |crl| &crl.file), reason)
}

const CRL: &str = "revocation list";

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_identity(client: Option<&ClientCert>) -> Result<Option<Identity>, TlsError> {
    let Some(client) = client else { return Ok(None) };
    // libpq goes without when the certificate does not exist, named or not; the server then says what it misses.
    if !client.cert.exists() && !client.named {
        return Ok(None);
    }
    let chain = certificates("client certificate", &client.cert)?;
    check_key_permissions(&client.key)?;
    let key = PrivateKeyDer::from_pem_file(&client.key)
        .map_err(|error| file_error("private key", &client.key, error))?;
    Ok(Some((chain, key)))
}

/// libpq's rule: a key of our own is for us alone; one of root's may be read by its group.
fn check_key_permissions(key: &Path) -> Result<(), TlsError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(key).map_err(|error| file_error("private key", key, error))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        let reason = "group or others have access; run chmod 0600 on it (0640 if root owns it)";
        return Err(file_error("private key", key, reason));
    }
    Ok(())
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| file_error(what, file, error))?;
    if certificates.is_empty() {
        return Err(file_error(what, file, "no certificate in it"));
    }
    Ok(certificates)
}

fn file_error(what: &'static str, file: &Path, reason: impl ToString) -> TlsError {
    TlsError::File { what, file: file.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_name_this_machines_clock() {
        let today = jiff::Timestamp::now().strftime("%Y-").to_string();
        for (error, cause) in [
            (CertificateError::NotValidYet, "server's certificate is not valid yet"),
            (CertificateError::Expired, "server's certificate has expired"),
        ] {
            let error = TlsError::Session(rustls::Error::InvalidCertificate(error));
            let hint = error.hint("--source");
            assert_eq!(error.cause(), cause);
            assert!(hint.contains("this machine's clock") && hint.contains(&today), "{hint}");
        }
    }
}
