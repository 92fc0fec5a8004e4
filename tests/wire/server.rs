//! A throwaway PostgreSQL server with TLS and every way to authenticate.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
    date_time_ymd,
};
use walferry::demo::PgBinaries;
use walferry::wire::{ConnInfo, Environment};

/// A running server; stopped and removed when dropped.
pub struct Server {
    directory: tempfile::TempDir,
    binaries: PgBinaries,
    pub port: u16,
}

const ROLES: &str = "
    SET password_encryption = 'scram-sha-256';
    CREATE ROLE scram LOGIN REPLICATION SUPERUSER PASSWORD 'pass word';
    CREATE ROLE patient LOGIN PASSWORD
        'SCRAM-SHA-256$250000:MDEyMzQ1Njc4OWFiY2RlZg==$FMXP93KjtmjOO0SoXxWuupl174C26erWXVSlOg21JwU=:hIRh3LpnuMBdYvgK9yMQsVHcY5+ofFDGGXSp6BeycE8=';
    CREATE ROLE plain LOGIN PASSWORD 'clear';
    CREATE ROLE cert LOGIN;
    CREATE ROLE tlsonly LOGIN PASSWORD 'x';
    CREATE ROLE notls LOGIN PASSWORD 'x';
    SET password_encryption = 'md5';
    CREATE ROLE md5 LOGIN PASSWORD 'five';
";

const HBA: &str = "
local   all all                trust
hostssl all cert    all        cert
hostssl all tlsonly all        scram-sha-256
hostnossl all notls all        scram-sha-256
host    all plain   all        password
host    all md5     all        md5
host    all scram,patient all  scram-sha-256
";

impl Server {
    /// Starts a server whose certificate is signed by `algorithm`.
    pub fn start(algorithm: &'static SignatureAlgorithm) -> Self {
        Self::of(binaries().clone(), algorithm)
    }

    /// The same of this major version.
    pub fn start_version(major: u32, algorithm: &'static SignatureAlgorithm) -> Self {
        Self::of(PgBinaries::find_blocking(Some(major)).expect("PostgreSQL"), algorithm)
    }

    fn of(binaries: PgBinaries, algorithm: &'static SignatureAlgorithm) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let server = Self { directory, binaries, port };
        let root = server.directory.path();
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        write_certificates(root, algorithm);
        for path in [root.to_owned(), root.join("server.key"), root.join("server.crt"), root.join("ca.crt")] {
            PgBinaries::give_to_server(&path).expect("chown");
        }
        let data = server.path("data");
        server.run("initdb", &["-D", &data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"]);
        let conf = format!(
            "port = {port}\nunix_socket_directories = '{dir}'\nlisten_addresses = '127.0.0.1'\nssl = on\n\
             ssl_cert_file = '{dir}/server.crt'\nssl_key_file = '{dir}/server.key'\nssl_ca_file = '{dir}/ca.crt'\n\
             wal_level = logical\nfsync = off\nlogging_collector = off\nmax_wal_senders = 5\n",
            dir = root.display()
        );
        std::fs::write(root.join("data/postgresql.conf"), conf).expect("postgresql.conf");
        std::fs::write(root.join("data/pg_hba.conf"), HBA).expect("pg_hba.conf");
        server.run("pg_ctl", &["-D", &data, "-w", "-l", &server.path("log"), "start"]);
        server.run(
            "psql",
            &["-h", &server.path(""), "-p", &port.to_string(), "-U", "postgres", "-qc", ROLES, "postgres"],
        );
        server
    }

    /// Replaces the server's certificate by one of X.509 version 1, as PostgreSQL's manual has it made.
    pub fn use_version_1_certificate(&self) {
        let (key, request) = (self.path("server.key"), self.path("server.csr"));
        let (own, out) = (self.path("own.crt"), self.path("data/v1.crt"));
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).output().expect("openssl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        openssl(&["req", "-new", "-nodes", "-key", &key, "-subj", "/CN=localhost", "-out", &request]);
        openssl(&["x509", "-req", "-in", &request, "-days", "30", "-signkey", &key, "-out", &own]);
        std::fs::copy(&own, out).expect("copy");
        let conf = self.path("data/postgresql.auto.conf");
        std::fs::write(conf, "ssl_cert_file = 'v1.crt'\n").expect("write");
        self.run("pg_ctl", &["-D", &self.path("data"), "reload"]);
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    /// A conninfo for the scram role over TCP, with more options.
    pub fn conninfo(&self, more: &str) -> ConnInfo {
        let text = format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres {more}", self.port);
        ConnInfo::parse(&text, &Environment::default()).expect("valid")
    }

    pub fn scram(&self, more: &str) -> ConnInfo {
        self.conninfo(&format!("user=scram password='pass word' {more}"))
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.binaries.server_command(program).expect("an account for the server");
        let log = std::fs::File::create(self.directory.path().join(format!("{program}.out"))).expect("log");
        let status = command
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("log")))
            .stderr(Stdio::from(log))
            .status()
            .expect("PostgreSQL 15 is installed");
        let output = std::fs::read_to_string(self.path(&format!("{program}.out"))).unwrap_or_default();
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.success(), "{program}: {output}{log}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() || Path::new(&self.path("data/postmaster.pid")).exists() {
            self.run("pg_ctl", &["-D", &self.path("data"), "-m", "immediate", "stop"]);
        }
    }
}

fn binaries() -> &'static PgBinaries {
    static BINARIES: OnceLock<PgBinaries> = OnceLock::new();
    BINARIES.get_or_init(|| PgBinaries::find_blocking(None).expect("PostgreSQL"))
}

/// The server's certificate among those of its authority.
const SERVER_SERIAL: u64 = 4711;

/// `ca.crt`, its lists of revoked certificates (`none.crl`; `revoked.crl`, in which is the server's; `over.crl`, which is
/// out of date), `server.*` for localhost, `client.*` for role `cert`, and `other.crt`, an authority that signed nothing.
fn write_certificates(root: &Path, algorithm: &'static SignatureAlgorithm) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).expect("key"))
            .expect("certificate")
    };
    let write = |name: &str, text: String| {
        std::fs::write(root.join(name), text).expect("write");
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(0o600)).expect("chmod");
    };
    let ca = authority("ca");
    write("ca.crt", ca.pem());
    write("other.crt", authority("other").pem());
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(SERVER_SERIAL),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    for (file, until, revoked_certs) in
        [("none.crl", 2100, vec![]), ("revoked.crl", 2100, vec![revoked]), ("over.crl", 2021, vec![])]
    {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        write(file, list.signed_by(&ca).expect("list").pem().expect("PEM"));
    }
    for (file, name) in [("server", "localhost"), ("client", "cert")] {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.subject_alt_names =
            vec![SanType::DnsName(name.try_into().expect("name")), SanType::IpAddress([127, 0, 0, 2].into())];
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(if file == "server" { SERVER_SERIAL } else { 1 }));
        let key = KeyPair::generate().expect("key");
        write(&format!("{file}.crt"), params.signed_by(&key, &ca).expect("certificate").pem());
        write(&format!("{file}.key"), key.serialize_pem());
    }
}
