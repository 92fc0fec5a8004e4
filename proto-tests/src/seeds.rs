//! Where fuzzing begins, for what others wrote beside the stream: one of each kind.

use bytes::Bytes;

use crate::session::{Record, session};

/// Connection strings in both forms.
pub fn conninfo() -> Vec<Vec<u8>> {
    [
        "",
        "host=localhost port=5432 dbname=mydb connect_timeout=10",
        "host=a,b,[::1] port=1,,65535 hostaddr=127.0.0.1,::1,10.0.0.1 user=u",
        "user = 'it\\'s me' password='a b\\\\c' options='-c geqo=off'",
        "host=/var/run/postgresql sslmode=verify-full sslrootcert=/a sslcert=/b sslkey=/c",
        "sslmode=require channel_binding=require target_session_attrs=read-write",
        "keepalives=1 keepalives_idle=20 keepalives_interval=5 keepalives_count=6 tcp_user_timeout=30000",
        "ssl_min_protocol_version=TLSv1.2 ssl_max_protocol_version=TLSv1.3 sslsni=1 passfile=/p",
        "postgresql://",
        "postgresql://localhost",
        "postgresql://user:secret@localhost:5433/mydb",
        "postgres://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
        "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=my%20app",
        "postgresql:///mydb?host=localhost&port=5433&ssl=true",
        "postgresql://[2001:db8::1234]/database",
        "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
        "postgres://u%3Aser:p%40ss%25@h/d%20b?sslmode=disable&options=-c%20a%3Db",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Archives of each layout.
pub fn archive() -> Vec<Vec<u8>> {
    let with_entries = [12, 14, 15, 16].map(|minor| {
        let mut out = archive_head(minor, 5);
        entry(&mut out, minor, ["0", "0", "STDSTRINGS", "STDSTRINGS", "SET a = 'on';\n", ""], 2, &[]);
        entry(&mut out, minor, ["2615", "1", "app", "SCHEMA", "CREATE SCHEMA app;\n", ""], 2, &[]);
        entry(
            &mut out,
            minor,
            ["1259", "2", "t", "TABLE", "CREATE TABLE app.t (a int);\n", "app"],
            2,
            &["2"],
        );
        entry(
            &mut out,
            minor,
            ["0", "0", "TABLE t", "COMMENT", "COMMENT ON TABLE app.t IS 'x';\n", "app"],
            1,
            &["3"],
        );
        let key = "ALTER TABLE ONLY app.t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES app.t(a);\n";
        entry(&mut out, minor, ["2606", "3", "t k", "FK CONSTRAINT", key, "app"], 4, &["3", "4"]);
        out
    });
    with_entries.into_iter().chain([archive_head(16, 0)]).collect()
}

fn archive_head(minor: u8, entries: i32) -> Vec<u8> {
    let mut out = b"PGDMP\x01".to_vec();
    out.extend([minor, 0, 4, 8, 1]);
    if minor >= 15 {
        out.push(0);
    } else {
        integer(&mut out, -1);
    }
    (0..7).for_each(|field| integer(&mut out, field));
    ["shop", "15.18", "16.15"].iter().for_each(|field| text(&mut out, Some(field)));
    integer(&mut out, entries);
    out
}

/// `fields` are catalog, object, tag, kind, definition and schema.
fn entry(out: &mut Vec<u8>, minor: u8, fields: [&str; 6], section: i32, needs: &[&str]) {
    let [catalog, object, tag, kind, definition, schema] = fields;
    integer(out, i32::try_from(out.len()).expect("short") % 7);
    integer(out, 0);
    [catalog, object, tag, kind].iter().for_each(|field| text(out, Some(field)));
    integer(out, section);
    [Some(definition), Some("DROP"), None, Some(schema), None].iter().for_each(|field| text(out, *field));
    if minor >= 14 {
        text(out, Some("heap"));
    }
    if minor >= 16 {
        integer(out, i32::from(b'p'));
    }
    text(out, Some("ann"));
    text(out, Some("false"));
    needs.iter().for_each(|needed| text(out, Some(needed)));
    text(out, None);
    out.extend([3, 0, 0, 0, 0, 0, 0, 0, 0]);
}

fn integer(out: &mut Vec<u8>, value: i32) {
    out.push(u8::from(value < 0));
    out.extend(value.unsigned_abs().to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: Option<&str>) {
    integer(out, value.map_or(-1, |value| i32::try_from(value.len()).expect("short")));
    out.extend(value.unwrap_or_default().as_bytes());
}

/// Records, and each kind of change to their file.
pub fn spool() -> Vec<Vec<u8>> {
    let record = |bytes: &'static [u8]| Record::Message(Bytes::from_static(bytes));
    let records = [record(b"I"), record(b""), record(b"one that is longer"), Record::Again(3)];
    let edits: [&[[u8; 4]]; 9] = [
        &[],
        &[[0, 0, 9, 1]],
        &[[0, 0, 22, 255]],
        &[[1, 0, 25, 0]],
        &[[2, 0, 30, 7]],
        &[[3, 0, 40, 0]],
        &[[4, 0, 20, 255]],
        &[[0, 0, 10, 1], [5, 0, 0, 0]],
        &[[4, 0, 20, 0], [0, 0, 23, 200], [5, 0, 0, 0]],
    ];
    let input = |edits: &[[u8; 4]]| {
        let count = u8::try_from(edits.len()).expect("few");
        [vec![count], edits.concat(), session(&records)].concat()
    };
    edits.map(input).to_vec()
}

/// What a server says to each of what is asked.
pub fn server() -> Vec<Vec<u8>> {
    let message = |tag: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).expect("short");
        [&[tag][..], &length.to_be_bytes(), body].concat()
    };
    let error = message(b'E', b"SERROR\0VERROR\0C22P02\0Mno such number\0DKey (a)=(1)\0st\0tt\0cc\0nk\0\0");
    let fatal = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mgoing down\0\0");
    let ready = message(b'Z', b"I");
    let parameter = |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
    let welcome = |version: &str| {
        [
            message(b'R', &[0; 4]),
            parameter("server_version", version),
            parameter("in_hot_standby", "off"),
            message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]),
            ready.clone(),
        ]
        .concat()
    };
    let done = |tag: &str| message(b'C', format!("{tag}\0").as_bytes());
    // After 14 and 17 there is a setting more each, in one answer.
    let set = [done("SET"), ready.clone()].concat();
    let columns = message(b'T', &[&[0, 2][..], b"a\0", &[0; 18], b"b\0", &[0; 18]].concat());
    let row = message(b'D', &[0, 2, 0, 0, 0, 1, b'1', 255, 255, 255, 255]);
    let rows = [columns, row.clone(), message(b'N', b"SNOTICE\0C00000\0Mhm\0\0"), done("SELECT 1")].concat();
    let copy = |tag: u8| {
        let data = message(b'd', b"1\t2\n");
        [message(tag, &[0, 0, 1, 0, 0]), data.clone(), data, message(b'c', b""), done("COPY 2")].concat()
    };
    let execute = [message(b'1', b""), message(b'2', b""), row, done("INSERT 0 5"), ready.clone()].concat();
    let refused = [error.clone(), ready.clone()].concat();
    let mut seeds = vec![
        [vec![0], message(b'R', &[0, 0, 0, 3]), message(b'R', &[0; 4])].concat(),
        [vec![0], message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]), error].concat(),
        [vec![0], message(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")].concat(),
        [vec![0], message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), message(b'R', b"\0\0\0\x0br=x,s=YQ==,i=1")]
            .concat(),
        [vec![0], fatal.clone()].concat(),
    ];
    for version in ["13.23", "15.4 (Debian 15.4-1)", "18beta1"] {
        for answer in [&[], &set[..]] {
            let begin = [welcome(version), answer.to_vec()].concat();
            let say = |asked: u8, said: &[&[u8]]| [&[asked][..], &begin, &said.concat()].concat();
            seeds.extend([
                say(0, &[&rows, &ready]),
                say(0, &[&refused]),
                say(1, &[&copy(b'H'), &ready]),
                say(2, &[&execute, &execute]),
                say(2, &[&execute, &refused]),
                say(11, &[&copy(b'W'), &ready]),
                say(11, &[&fatal]),
                say(4, &[&done("BEGIN"), &message(b'Z', b"T"), &rows, &message(b'Z', b"E")]),
            ]);
        }
    }
    seeds
}
