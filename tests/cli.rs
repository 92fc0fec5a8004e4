//! The program as it is started from a shell: mistakes, exit codes, the environment, help.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn walferry(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    for name in ["SOURCE_SERVICE_URI", "TARGET_SERVICE_URI", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

#[track_caller]
fn check(arguments: &[&str], environment: &[(&str, &str)], code: i32, stderr_part: &str) -> Ended {
    let ended = walferry(arguments, environment);
    assert_eq!(ended.code, Some(code), "{arguments:?}\n{}", ended.stderr);
    assert!(ended.stderr.contains(stderr_part), "{arguments:?}: no {stderr_part:?} in\n{}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{arguments:?}\n{}", ended.stderr);
    ended
}

#[test]
fn mistakes_end_with_2_and_a_reason() {
    check(&[], &[], 2, "Usage: walferry");
    check(&["migarte"], &[], 2, "unrecognized subcommand 'migarte'");
    check(&["migrate", "--nonsense"], &[], 2, "unexpected argument '--nonsense'");
    check(&["check"], &[], 2, "walferry: no source given\n  hint: set SOURCE_SERVICE_URI");
    check(&["check", "-s", "host=a"], &[], 2, "walferry: no target given\n  hint: set TARGET_SERVICE_URI");
    check(&["status"], &[], 2, "no target given");
    check(&["resync"], &[], 2, "<TABLE>");
    check(&["resync", "public.t"], &[], 2, "no source given");
    check(&["remove", "-t", "host=b"], &[], 2, "no source given");
    check(&["migrate", "--confirm-delay", "30"], &[], 2, "\"30\" has no unit");
    check(&["migrate", "--jobs", "99"], &[], 2, "invalid --jobs");
    check(&["migrate", "--on-conflict", "last"], &[], 2, "give stop, source-wins or skip");
    check(&["status", "--json", "--avn"], &[], 2, "exclude each other");
    check(&["migrate", "--database", "a,,b"], &[], 2, "invalid --database: \"a,,b\" has an empty name");
    check(&["migrate", "--with-table", "orders"], &[], 2, "invalid --with-table: \"orders\" is neither");
    check(&["check", "--config", "/nonexistent.toml"], &[], 2, "cannot read the configuration file");
    check(&["check", "-c", "migration.hots=a"], &[], 2, "-c: unknown key \"migration.hots\"");
    check(&["migrate", "--log-format", "xml"], &[], 2, "neither text nor json");
    check(&["check"], &[("RUST_LOG", "walferry=loud")], 2, "invalid RUST_LOG");
    check(&["migrate", "--listen", "0.0.0.0:0"], &[], 2, "can be reached by others");
    check(&["check", "-c", "listen=[::]:0"], &[], 2, "can be reached by others");
    check(&["migrate", "--listen-cert", "a"], &[], 2, "--listen-cert and --listen-key go together");
    let sides = ["migrate", "-s", "host=a", "-t", "host=b", "--listen", "127.0.0.1:0"];
    let file = [&sides[..], &["--listen-token-file", "/dev/null"]].concat();
    check(&file, &[], 2, "/dev/null: it is not a plain file");
}

#[test]
fn a_flag_beats_the_environment() {
    let same = "source and target are the same";
    check(&["check"], &[("SOURCE_SERVICE_URI", "host=b"), ("TARGET_SERVICE_URI", "host=b")], 2, same);
    let different = [("SOURCE_SERVICE_URI", "host=a"), ("TARGET_SERVICE_URI", "host=b")];
    check(&["check", "--source", "host=b"], &different, 2, same);
    check(&["check", "--target", "host=a"], &different, 2, same);
    check(&["check"], &[("SOURCE_SERVICE_URI", "")], 2, "no source given");
}

#[test]
fn passwords_are_warned_of_and_never_shown() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let target = ("TARGET_SERVICE_URI", "postgres://u:hunter2@b/db");
    let typed = ["migrate", "-s", "postgres://u:hunter2@a/db", "--listen", &address];
    let ended = check(&typed, &[target], 5, "use SOURCE_SERVICE_URI or PGPASSFILE");
    assert!(!ended.stderr.contains("use TARGET_SERVICE_URI"), "{}", ended.stderr);
    let typed = ["-c", "migration.host=a", "-c", "migration.password=hunter2", "--listen", &address];
    check(&[&["migrate"], &typed[..]].concat(), &[target], 5, "the password in -c migration.password");
    check(&["migrate", "migration.password=hunter2"], &[], 2, "unexpected argument '<connection string>'");
    check(&["migrate", "postgres://u:hunter2@a/db"], &[], 2, "unexpected argument '<connection string>'");
}

#[test]
fn an_address_in_use_ends_with_5_before_any_work() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let sides = [("SOURCE_SERVICE_URI", "host=a"), ("TARGET_SERVICE_URI", "host=b")];
    let ended =
        check(&["migrate", "--listen", &address], &sides, 5, &format!("walferry: {address} is in use\n"));
    assert!(ended.stderr.contains("hint: choose another address with --listen"), "{}", ended.stderr);

    let ended = check(&["migrate", "--listen", &address, "--log-format", "json"], &sides, 5, "is in use");
    let lines: Vec<Value> =
        ended.stderr.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let last = lines.last().expect("the failure");
    assert_eq!((&last["exit_code"], &last["class"]), (&Value::from(5), &Value::from("definite")));
    assert_eq!(last["cause"], Value::from(format!("{address} is in use")));
}

/// The options and the configuration file reach the server: it asks for the token from its first answer on.
#[test]
fn the_status_asks_for_the_token() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").expect("written");
    std::fs::set_permissions(&token, Permissions::from_mode(0o600)).expect("ours");
    let config = directory.path().join("walferry.toml");
    let text = format!("listen = \"127.0.0.1:0\"\nlisten-token-file = {:?}\n", token.display().to_string());
    std::fs::write(&config, text).expect("written");
    // A server that takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("an address").port();
    let side = |name: &str| format!("host=127.0.0.1 port={port} user={name} sslmode=disable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    command.args(["migrate", "--log-format", "json", "--config"]).arg(&config).env_remove("RUST_LOG");
    command.env("SOURCE_SERVICE_URI", side("a")).env("TARGET_SERVICE_URI", side("b"));
    let mut engine = command.stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(engine.stderr.take().expect("it is piped")).lines();
    let address = lines.find_map(|line| {
        let line: Value = serde_json::from_str(&line.expect("UTF-8")).expect("a line of JSON");
        line["address"].as_str().map(str::to_owned)
    });
    let address = address.expect("it says where");
    let ask = |headers: &str| {
        let mut stream = TcpStream::connect(&address).expect("it listens");
        write!(stream, "GET /status HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let (without, with) = (ask(""), ask("Authorization: Bearer 0123456789abcdef\r\n"));
    engine.kill().and_then(|()| engine.wait()).expect("it ends");
    assert!(without.starts_with("HTTP/1.1 401 "), "{without}");
    assert!(with.starts_with("HTTP/1.1 200 ") && with.contains("migration_detail"), "{with}");
}

#[test]
fn mistakes_are_json_where_that_is_asked_for() {
    let ended = check(&["check", "--log-format", "json"], &[], 2, "no source given");
    let line: Value = serde_json::from_str(&ended.stderr).expect("one line of JSON");
    assert_eq!((&line["level"], &line["exit_code"]), (&Value::from("ERROR"), &Value::from(2)));
}

#[test]
fn help_answers_on_standard_output() {
    let check = |arguments: &[&str], parts: &[&str]| {
        let ended = walferry(arguments, &[("SOURCE_SERVICE_URI", "postgres://u:hunter2@a/db")]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        for part in parts {
            assert!(ended.stdout.contains(part), "{arguments:?}: no {part:?} in\n{}", ended.stdout);
        }
        assert!(!ended.stdout.contains("hunter2"), "{arguments:?}");
    };
    check(&["--version"], &[concat!("walferry ", env!("CARGO_PKG_VERSION"))]);
    check(
        &["--help"],
        &["check", "migrate", "status", "remove", "demo", "SOURCE_SERVICE_URI", "PGPASSFILE", "Exit codes"],
    );
    check(
        &["migrate", "--help"],
        &[
            "Example",
            "--confirm-delay",
            "--until",
            "--jobs",
            "--listen",
            "--max-lag",
            "with ps",
            "--log-format",
        ],
    );
    check(&["check", "--help"], &["Example", "--json"]);
    check(&["status", "--help"], &["Example", "--json", "--avn"]);
    check(&["remove", "--help"], &["Example", "--force", "--name"]);
    check(&["demo", "--help"], &["Example", "--keep"]);
}
