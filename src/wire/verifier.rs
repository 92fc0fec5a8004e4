//! The check of a server's certificate, by libpq's rules rather than a browser's.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Version;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What is trusted.
#[derive(Debug)]
pub(super) struct Roots {
    pub(super) store: RootCertStore,
    /// The root file's certificates themselves: one of them may be the server's own.
    pub(super) exact: Vec<CertificateDer<'static>>,
}

/// Checks chain and name as far as `sslmode` asks, and the handshake's signature always.
#[derive(Debug)]
pub(super) struct Verifier {
    roots: Option<Roots>,
    /// What checks that no certificate of the chain is revoked. It checks the name, too, after all else.
    revocation: Option<Arc<WebPkiServerVerifier>>,
    check_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// `revoked`: lists of revoked certificates, if any are to be looked at.
    pub(super) fn new(
        roots: Option<Roots>,
        revoked: Vec<CertificateRevocationListDer<'static>>,
        check_name: bool,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let revocation = match &roots {
            Some(roots) if !revoked.is_empty() => {
                let store = Arc::new(roots.store.clone());
                let verifier = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider));
                Some(verifier.with_crls(revoked).enforce_revocation_expiration().build()?)
            }
            Some(_) | None => None,
        };
        Ok(Self { roots, revocation, check_name, algorithms: provider.signature_verification_algorithms })
    }

    /// webpki refuses certificates of X.509 version 1 unread, and `openssl x509 -req` as in PostgreSQL's manual long made
    /// those. Their key is good enough to check who holds it.
    fn or_by_bare_key(
        &self,
        verified: Result<HandshakeSignatureValid, Error>,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The reason has no kind of its own in rustls's error.
        let Err(error @ Error::InvalidCertificate(CertificateError::Other(_))) = verified else {
            return verified;
        };
        let parsed = parse(cert)?;
        if parsed.tbs_certificate.version != Version::V1 {
            return Err(error);
        }
        let bad_encoding = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let info = &parsed.tbs_certificate.subject_public_key_info;
        let key_algorithm = info.algorithm.to_der().map_err(bad_encoding)?;
        let key_algorithm = AnyRef::from_der(&key_algorithm).map_err(bad_encoding)?;
        let candidates = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
        let valid = candidates.flat_map(|(_, algorithms)| algorithms.iter()).any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key_algorithm.value()
                && algorithm
                    .verify_signature(info.subject_public_key.raw_bytes(), message, dss.signature())
                    .is_ok()
        });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        if roots.exact.iter().any(|root| root.as_ref() == end_entity.as_ref()) {
            check_dates(end_entity, now)?;
        } else {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            let all = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, all)?;
            let revoked = self.revocation.as_ref().map(|revocation| {
                revocation.verify_server_cert(end_entity, intermediates, server_name, &[], now)
            });
            match revoked {
                None | Some(Ok(_)) => {}
                // All else was found to be right; whether the name counts is for us to say.
                Some(Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ))) => {}
                Some(Err(error)) => return Err(error),
            }
        }
        if self.check_name {
            check_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, cert, dss, &self.algorithms);
        self.or_by_bare_key(verified, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, cert, dss, &self.algorithms);
        self.or_by_bare_key(verified, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<x509_cert::Certificate, Error> {
    x509_cert::Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// A certificate that is trusted as such has only its dates left to check.
fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = parse(certificate)?.tbs_certificate.validity;
    let now = now.as_secs();
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

/// The alternative names count; the common name does only where there is no alternative name of a kind that could match.
fn check_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let mismatch = Error::InvalidCertificate(CertificateError::NotValidForName);
    if has_alternative_names(&parsed)? {
        return verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    }
    let common_name = common_name(&parsed).ok_or_else(|| mismatch.clone())?;
    if name_matches(&common_name, &name.to_str()) { Ok(()) } else { Err(mismatch) }
}

fn has_alternative_names(certificate: &x509_cert::Certificate) -> Result<bool, Error> {
    let extension = certificate.tbs_certificate.get::<SubjectAltName>();
    let extension = extension.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let named = |name: &GeneralName| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_));
    Ok(extension.is_some_and(|(_, names)| names.0.iter().any(named)))
}

fn common_name(certificate: &x509_cert::Certificate) -> Option<String> {
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    let parts = certificate.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let value = &parts.into_iter().find(|attribute| attribute.oid == COMMON_NAME)?.value;
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
    utf8.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned())).ok()
}

/// libpq's match: without regard to case; a leading `*.` stands for one label.
fn name_matches(pattern: &str, host: &str) -> bool {
    let wildcard = || {
        let suffix =
            pattern.strip_prefix('*').filter(|suffix| suffix.starts_with('.') && suffix.len() > 1)?;
        let (_, rest) = host.split_at_checked(host.find('.')?)?;
        Some(rest.eq_ignore_ascii_case(suffix) && !host.starts_with('.'))
    };
    pattern.eq_ignore_ascii_case(host) || wildcard().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::name_matches;

    #[test]
    fn common_names() {
        for (pattern, host, expected) in [
            ("db.example", "db.example", true),
            ("DB.Example", "db.example", true),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*", "db", false),
            ("d*.example", "db.example", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("", "db.example", false),
        ] {
            assert_eq!(name_matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
