//! A connection pooler where the server itself should be.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use super::harness::{PATIENCE, Pair, wait_for};

/// PgBouncer before the source. Dropped, it ends.
struct PgBouncer {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl PgBouncer {
    /// The program, where there is one: `WALFERRY_TEST_PGBOUNCER`, or on the path.
    fn program() -> Option<OsString> {
        let given = std::env::var_os("WALFERRY_TEST_PGBOUNCER").unwrap_or_else(|| "pgbouncer".into());
        let found = Command::new(&given).arg("--version").stdout(Stdio::null()).status();
        found.is_ok_and(|status| status.success()).then_some(given)
    }

    async fn start(program: &OsString, pair: &Pair, ignored: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let login = &pair.cluster.source_login;
        let (users, config) = (directory.path().join("users"), directory.path().join("config"));
        fs::write(&users, format!("\"{}\" \"{}\"\n", login.role, login.password)).unwrap();
        let settings = format!(
            "[databases]\n* = host=localhost port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = plain\nauth_file = {}\nserver_tls_sslmode = require\npool_mode = transaction\nunix_socket_dir =\n\
             {ignored}\n",
            pair.cluster.source.port(),
            users.display()
        );
        fs::write(&config, settings).unwrap();
        // It does not run as root.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(program);
        command.args(["-q", "-u", "nobody"]).arg(&config).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let answers = async || TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        wait_for("PgBouncer", PATIENCE, answers).await;
        Self { child, port, _directory: directory }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Skipped where there is no PgBouncer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_is_found_out() {
    let Some(program) = PgBouncer::program() else {
        return eprintln!("pgbouncer_is_found_out: skipped, there is no PgBouncer");
    };
    let pair = Pair::start().await;
    let direct = pair.command("check");
    direct.run().await.assert(0, &[]);
    let through = |pooler: &PgBouncer| {
        let uri = direct.source.split('?').next().unwrap();
        let uri = uri.replace(&pair.cluster.source.port().to_string(), &pooler.port.to_string());
        format!("{uri}?sslmode=disable")
    };
    let hint = "give the server's own host and port";
    // As it is out of the box, it refuses what every session of ours says at the start.
    let pooler = PgBouncer::start(&program, &pair, "").await;
    let said = ["source-reachable", "a connection pooler answers", hint];
    pair.command("check").source(through(&pooler)).run().await.assert(3, &said);
    drop(pooler);
    // Told to ignore that, it lets us in.
    let ignored = "ignore_startup_parameters = IntervalStyle, extra_float_digits, bytea_output, array_nulls, lc_monetary, \
                   quote_all_identifiers, xmloption, search_path, row_security, statement_timeout, lock_timeout, \
                   idle_in_transaction_session_timeout";
    let pooler = PgBouncer::start(&program, &pair, ignored).await;
    let said = ["source-pooler", "a connection pooler answers", "source-replication-connection", hint];
    pair.command("check").source(through(&pooler)).run().await.assert(3, &said);
    pair.migrate().source(through(&pooler)).run().await.assert(3, &["a connection pooler answers"]);
}
