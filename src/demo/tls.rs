//! A certificate authority and a server's certificate, made for one server and thrown away with it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::account::Account;
use super::{DemoError, Result};

/// Names that a server's certificate is valid for.
const SUBJECT_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Writes `ca.crt`, `server.crt` and `server.key` into `directory`, the key for `account` alone.
pub(super) fn write_certificates(directory: &Path, account: Account) -> Result<()> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name.push(DnType::CommonName, "Walferry demo CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;

    let mut server = CertificateParams::new(SUBJECT_NAMES.map(str::to_owned))?;
    server.distinguished_name.push(DnType::CommonName, "localhost");
    server.use_authority_key_identifier_extension = true;
    let server_key = KeyPair::generate()?;
    let certificate = server.signed_by(&server_key, &Issuer::new(ca, ca_key))?;

    let write = |name: &str, text: String, mode| -> Result<()> {
        let path = directory.join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
            .map_err(DemoError::io(format!("write {name}")))?;
        account.own(&path)
    };
    write("ca.crt", ca_certificate.pem(), 0o644)?;
    write("server.crt", certificate.pem(), 0o644)?;
    write("server.key", server_key.serialize_pem(), 0o600)
}
