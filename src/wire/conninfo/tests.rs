use std::time::Duration;

use super::{ConnInfo, SslMode};
use crate::wire::Environment;

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<ConnInfo, String> {
    let environment = Environment::from_map(variables.iter().copied());
    ConnInfo::parse(text, &environment).map_err(|error| error.to_string())
}

/// `host:port,… dbname user password options`, with `-` for what is not there.
fn summary(conninfo: &ConnInfo) -> String {
    let host = |host: &super::Host| match host.address {
        Some(address) => format!("{}={address}:{}", host.name, host.port),
        None => format!("{}:{}", host.name, host.port),
    };
    let hosts: Vec<_> = conninfo.hosts().iter().map(host).collect();
    let password = conninfo.password.as_ref().map_or("-", |password| &password.0);
    let options = conninfo.options.as_deref().unwrap_or("-");
    format!("{} {} {} {password} {options}", hosts.join(","), conninfo.dbname(), conninfo.user())
}

#[test]
fn strings_that_libpq_accepts() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = parse(text, &[("USER", "me")]).map(|conninfo| summary(&conninfo));
        assert_eq!(found.as_deref(), Ok(expected), "{text}");
    }
    check("postgresql://h", "h:5432 me me - -");
    check("postgres://ann:pw@h:6000/shop", "h:6000 shop ann pw -");
    check("postgresql://ann@h/", "h:5432 ann ann - -");
    check("postgresql://ann:p%40ss%2Fw%25@h/s%20p", "h:5432 s p ann p@ss/w% -");
    check("postgresql://ann:a+b:c@h", "h:5432 ann ann a+b:c -");
    check("postgresql://a,b:1,c/d", "a:5432,b:1,c:5432 d me - -");
    check("postgresql://a:1,b:2/d", "a:1,b:2 d me - -");
    check("postgresql://[::1]:6000/d", "::1:6000 d me - -");
    check("postgresql://[2001:db8::1],h/d", "2001:db8::1:5432,h:5432 d me - -");
    check("postgresql://%2Fvar%2Frun/d", "/var/run:5432 d me - -");
    check("postgresql:///d?host=/tmp&port=7", "/tmp:7 d me - -");
    check("postgresql://h/d?user=other&password=x%26y", "h:5432 d other x&y -");
    check("postgresql://u@h?options=-c%20geqo%3Doff", "h:5432 u u - -c geqo=off");
    check("postgresql://h/d?hostaddr=10.0.0.1", "h=10.0.0.1:5432 d me - -");
    check("postgresql://h:/d", "h:5432 d me - -");
    check("postgresql://h/d?", "h:5432 d me - -");
    check("postgresql://h/a/b", "h:5432 a/b me - -");
    check("host=h port=1 user=u dbname=d password=p", "h:1 d u p -");
    check("  host = h   user= u ", "h:5432 u u - -");
    check("host=h password='a b\\'c\\\\d' user=u", "h:5432 u u a b'c\\d -");
    check(r"host=h password=a\ b\'c user=u", "h:5432 u u a b'c -");
    check("host=h user='u'dbname='d'", "h:5432 d u - -");
    check("host=h user=''", "h:5432 me me - -");
    check("host=h host=i", "i:5432 me me - -");
    check("host=a,b port=7", "a:7,b:7 me me - -");
    check("host=a,b port=7,", "a:7,b:5432 me me - -");
    check("host=a,b hostaddr=10.0.0.1,::1", "a=10.0.0.1:5432,b=::1:5432 me me - -");
    check("hostaddr=10.0.0.1 port=7", "=10.0.0.1:7 me me - -");
    check("host=h options='-c a=b -c c=d'", "h:5432 me me - -c a=b -c c=d");
    check("host=h gssencmode=prefer sslcompression=0 krbsrvname=x client_encoding=auto", "h:5432 me me - -");
}

#[test]
fn strings_that_it_does_not() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = parse(text, &[("USER", "me")]).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("s3cret"), "{text}: {error}");
    }
    check("s3cret", "missing \"=\" after the word at character 1");
    check("host=h password=my s3cret", "missing \"=\" after the word at character 20");
    check("password=a s3cret=b", "unknown connection option at character 12");
    check("host=h sslmod=require", "unknown connection option \"sslmod\"");
    check("host=h password='s3cret", "unterminated quoted value");
    check("postgresql://h/d?nonsense=1", "unknown connection option \"nonsense\" in the URI");
    check("postgresql://h/d?sslmode", "missing \"=\" in URI parameter 1");
    check("postgresql://h/d?sslmode=a=b", "extra \"=\" in URI parameter \"sslmode\"");
    check("postgresql://u:s3cret%zz@h", "invalid percent-encoding in password");
    check("postgresql://u:s3cret%4@h", "invalid percent-encoding in password");
    check("postgresql://u:s3cret%00@h", "forbidden %00 in password");
    check("postgresql://u:s3cret%ff@h", "password is not UTF-8");
    check("postgresql://[::1", "missing \"]\"");
    check("postgresql://[]", "IPv6 address in the URI is empty");
    check("postgresql://[::1]x", "unexpected character after \"]\"");
    check("postgresql://u:s3cret/x@h", "invalid port number");
    check("host=h port=0", "invalid port number: \"0\"");
    check("host=h port=65536", "invalid port number: \"65536\"");
    check("host=h port=x", "invalid port number: not a number");
    check("postgresql://u:p@s3cret@h", "invalid host name: it has an \"@\"");
    check("host=a,b,c port=1,2", "2 port numbers for 3 hosts");
    check("host=a,b hostaddr=10.0.0.1", "2 host names for 1 hostaddr values");
    check("hostaddr=h", "invalid hostaddr: \"h\"");
    check("host=h sslmode=verify", "invalid sslmode value: \"verify\" (one of disable, allow");
    check("host=h channel_binding=yes", "invalid channel_binding value");
    check("host=h target_session_attrs=master", "invalid target_session_attrs value");
    check(
        "host=h connect_timeout=1s",
        "invalid integer value \"1s\" for connection option \"connect_timeout\"",
    );
    check("host=h sslrootcert=system sslmode=require", "weak sslmode \"require\"");
    check("host=h service=x", "definition of service \"x\" not found");
    check(
        "host=h sslnegotiation=direct",
        "weak sslmode \"prefer\" may not be used with sslnegotiation=direct",
    );
    check("host=h require_auth=scram", "invalid require_auth value: \"scram\"");
    check("host=h sslpassword=s3cret", "connection option sslpassword is not supported");
    check("host=h sslcertmode=require", "connection option sslcertmode=require is not supported");
    check("host=h replication=database", "connection option replication=database is set by Walferry");
    check("host=h requirepeer=x", "connection option requirepeer is not supported");
    check("host=h gssencmode=require", "connection option gssencmode=require needs GSSAPI");
    check("host=h ssl_max_protocol_version=TLSv1.1", "no TLS version is left");
}

#[test]
fn the_environment_fills_in() {
    let variables = [
        ("PGHOST", "envhost"),
        ("PGPORT", "7"),
        ("PGUSER", "envuser"),
        ("PGDATABASE", "envdb"),
        ("PGPASSWORD", "envpw"),
        ("PGOPTIONS", "-c x=y"),
        ("PGSSLMODE", "require"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("USER", "me"),
    ];
    let conninfo = parse("", &variables).expect("valid");
    assert_eq!(summary(&conninfo), "envhost:7 envdb envuser envpw -c x=y");
    assert_eq!((conninfo.sslmode(), conninfo.connect_timeout), (SslMode::Require, Duration::from_secs(3)));
    let options = |conninfo: &ConnInfo| {
        let variables = conninfo.libpq_environment(true);
        variables.into_iter().find(|(name, _)| *name == "PGOPTIONS").map(|(_, value)| value)
    };
    assert_eq!(options(&conninfo).as_deref(), Some("-c x=y"));
    let writable = Some("-c x=y -c default_transaction_read_only=off");
    assert_eq!(options(&conninfo.writable()).as_deref(), writable);
    let conninfo = parse("postgresql://u:p@h:1/d?sslmode=disable", &variables).expect("valid");
    assert_eq!(summary(&conninfo), "h:1 d u p -c x=y");
    assert_eq!(conninfo.sslmode(), SslMode::Disable);
    let error = parse("host=h", &[("PGSSLCRLDIR", "x"), ("USER", "me")]).expect_err("refused");
    assert!(error.contains("PGSSLCRLDIR"), "{error}");
    assert!(parse("host=h", &[]).expect_err("no user").contains("no user name given"));
}

#[test]
fn defaults_and_units() {
    let conninfo = parse("host=h tcp_user_timeout=1500 keepalives=0 user=u", &[]).expect("valid");
    assert_eq!(conninfo.socket.user_timeout, Some(Duration::from_millis(1500)));
    assert!(!conninfo.socket.keepalives);
    assert_eq!(
        conninfo.libpq_keepalives(),
        "keepalives=0 keepalives_idle=10 keepalives_interval=5 keepalives_count=6 tcp_user_timeout=1500"
    );
    let silent = parse("host=h user=u", &[]).expect("valid");
    assert_eq!(silent.socket.user_timeout, Some(crate::limits::USER_TIMEOUT));
    let systems = parse("host=h user=u tcp_user_timeout=0", &[]).expect("valid");
    assert_eq!(systems.socket.user_timeout, None);
    assert_eq!(
        (conninfo.sslmode(), conninfo.connect_timeout),
        (SslMode::Prefer, crate::limits::CONNECT_TIMEOUT)
    );
    let system = parse("host=h user=u sslrootcert=system", &[]).expect("valid");
    assert_eq!(system.sslmode(), SslMode::VerifyFull);
    let jdbc = parse("postgresql://u@h/d?ssl=true", &[]).expect("valid");
    assert_eq!(jdbc.sslmode(), SslMode::Require);
}

#[test]
fn no_text_shows_the_password() {
    let conninfo = parse("postgresql://ann:s3cret@a:1,b/shop?sslmode=require", &[]).expect("valid");
    assert_eq!(conninfo.to_string(), "host=a,b port=1,5432 dbname=shop user=ann sslmode=require");
    assert!(
        !format!(
            "{conninfo:?} {:?} {:#?}",
            conninfo.password,
            Environment::from_map([("PGPASSWORD", "s3cret")])
        )
        .contains("s3cret")
    );
    let other = conninfo.with_dbname("other");
    assert_eq!((other.dbname(), other.user()), ("other", "ann"));
}

#[test]
fn the_password_file_goes_by_host_and_database() -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("pgpass");
    std::fs::write(
        &file,
        "a:*:*:*:for a\nlocalhost:*:*:*:for here\n10.0.0.1:*:*:*:for ten\n*:*:two:*:for two\n",
    )?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    let check = |text: &str, expected: Option<&str>| {
        let conninfo = parse(&format!("{text} user=u passfile={}", file.display()), &[]).expect("valid");
        let password = conninfo.password(&conninfo.hosts()[0]);
        assert_eq!(password.map(|password| password.0).as_deref(), expected, "{text}");
        let named =
            |(name, value): &(&str, String)| *name == "PGPASSFILE" && *value == file.to_string_lossy();
        assert_eq!(conninfo.libpq_environment(true).iter().any(named), !text.contains("password="));
    };
    check("host=a", Some("for a"));
    check("host=a hostaddr=10.0.0.1", Some("for a"));
    check("hostaddr=10.0.0.1", Some("for ten"));
    check("host=/tmp", Some("for here"));
    check("host=b dbname=two", Some("for two"));
    check("host=b dbname=one", None);
    check("host=a password=given", Some("given"));
    Ok(())
}

/// All that libpq 18 knows (`PQconndefaults`): what becomes of a value that asks something of us.
#[test]
fn each_of_libpqs_parameters() {
    enum Then {
        /// It does what it says, or its absence costs comfort alone.
        Taken,
        Refused(&'static str),
    }
    use Then::{Refused, Taken};
    let lacks = Refused("is not supported by Walferry");
    let table = [
        ("service", "mine", Taken),
        ("user", "u", Taken),
        ("password", "p", Taken),
        ("passfile", "/f", Taken),
        ("channel_binding", "require", Taken),
        ("connect_timeout", "3", Taken),
        ("dbname", "d", Taken),
        ("host", "h", Taken),
        ("hostaddr", "10.0.0.1", Taken),
        ("port", "1", Taken),
        ("client_encoding", "LATIN1", Taken),
        ("options", "-c a=b", Taken),
        ("application_name", "a", Taken),
        ("fallback_application_name", "a", Taken),
        ("keepalives", "1", Taken),
        ("keepalives_idle", "1", Taken),
        ("keepalives_interval", "1", Taken),
        ("keepalives_count", "1", Taken),
        ("tcp_user_timeout", "1", Taken),
        ("sslmode", "verify-full", Taken),
        ("sslnegotiation", "postgres", Taken),
        ("sslcompression", "1", Taken),
        ("sslcert", "/f", Taken),
        ("sslkey", "/f", Taken),
        ("sslcertmode", "disable", Taken),
        ("sslcertmode", "require", Refused("sslcertmode=require is not supported by Walferry")),
        ("sslpassword", "p", Refused("give the key unencrypted")),
        ("sslrootcert", "system", Taken),
        ("sslcrl", "/f", Taken),
        ("sslcrldir", "/d", Refused("name it by sslcrl")),
        ("sslsni", "0", Taken),
        ("requirepeer", "postgres", lacks),
        ("require_auth", "scram-sha-256", Taken),
        ("min_protocol_version", "3.2", Refused("min_protocol_version=3.2 is not supported by Walferry")),
        ("max_protocol_version", "3.2", Taken),
        ("ssl_min_protocol_version", "TLSv1.3", Taken),
        ("ssl_max_protocol_version", "TLSv1.2", Taken),
        ("gssencmode", "require", Refused("needs GSSAPI")),
        ("krbsrvname", "k", Taken),
        ("gsslib", "gssapi", Taken),
        ("gssdelegation", "0", Taken),
        ("replication", "true", Refused("is set by Walferry")),
        ("target_session_attrs", "primary", Taken),
        ("load_balance_hosts", "random", Refused("load_balance_hosts=random is not supported by Walferry")),
        ("scram_client_key", "k", Refused("give the password")),
        ("scram_server_key", "k", Refused("give the password")),
        ("oauth_issuer", "i", Refused("needs OAuth")),
        ("oauth_client_id", "i", Refused("needs OAuth")),
        ("oauth_client_secret", "s", Refused("needs OAuth")),
        ("oauth_scope", "s", Refused("needs OAuth")),
        ("sslkeylogfile", "/f", Taken),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let services = directory.path().join("services");
    std::fs::write(&services, "[mine]\nhost=theirs\nport=7\nuser=its\n").expect("written");
    let services = services.to_string_lossy();
    let variables = [
        ("USER", "me"),
        ("HOME", "/nowhere"),
        ("PGSERVICEFILE", &services),
        ("PGPORT", "8"),
        ("PGDATABASE", "env"),
    ];
    for (name, value, then) in table {
        let found = parse(&format!("host=h {name}='{value}'"), &variables);
        match then {
            Taken => assert!(found.is_ok(), "{name}: {found:?}"),
            Refused(why) => {
                let error = found.expect_err(name);
                assert!(error.contains(name) && error.contains(why), "{error}");
            }
        }
    }
    // What is given wins over the service, and that over the environment.
    let conninfo = parse("service=mine user=given", &variables).expect("valid");
    assert_eq!(summary(&conninfo), "theirs:7 env given - -");
    let variables = [variables.as_slice(), &[("PGSERVICE", "mine")]].concat();
    assert_eq!(summary(&parse("", &variables).expect("valid")), "theirs:7 env its - -");
    std::fs::write(&*services, "[mine]\nnonsense=1\n").expect("written");
    assert!(parse("", &variables).expect_err("refused").contains("\"nonsense\" of a service"));
}

/// What a session of ours holds to, `pg_dump` must hold to.
#[test]
fn other_programs_are_as_careful() {
    let check = |text: &str, private: bool, expected: &[(&str, Option<&str>)]| {
        let variables =
            parse(&format!("host=h user=u {text}"), &[]).expect("valid").libpq_environment(private);
        for (name, value) in expected {
            let found = variables.iter().find(|(variable, _)| variable == name);
            assert_eq!(found.map(|(_, value)| value.as_str()), *value, "{text} {name}");
        }
    };
    check("", true, &[("PGSSLMODE", Some("require")), ("PGREQUIREAUTH", None)]);
    check("", false, &[("PGSSLMODE", Some("prefer")), ("PGREQUIREAUTH", Some("!password"))]);
    check("sslmode=disable", true, &[("PGSSLMODE", Some("disable")), ("PGREQUIREAUTH", None)]);
    check("sslmode=verify-ca", true, &[("PGSSLMODE", Some("verify-ca")), ("PGREQUIREAUTH", None)]);
    check("require_auth=md5,password", false, &[("PGREQUIREAUTH", Some("md5,password"))]);
    check(
        "sslcrl=/crl ssl_min_protocol_version=TLSv1.3 sslcertmode=disable sslmode=require sslnegotiation=direct sslsni=0",
        true,
        &[
            ("PGSSLCRL", Some("/crl")),
            ("PGSSLMINPROTOCOLVERSION", Some("TLSv1.3")),
            ("PGSSLMAXPROTOCOLVERSION", None),
            ("PGSSLCERTMODE", Some("disable")),
            ("PGSSLNEGOTIATION", Some("direct")),
            ("PGSSLSNI", Some("0")),
        ],
    );
}
