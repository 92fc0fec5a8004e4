//! Values of every type: the smallest, the largest, the odd ones.
//!
//! A value is text that the type's input function takes. One that begins with `=` is an expression instead; so is one
//! that begins with `!`, which moreover is too large for a key, or equal to another one.

/// Types by name, with their values.
pub type Types = &'static [(&'static str, &'static [&'static str])];

/// Types of `pg_catalog` whose input function takes nothing: a column can have them, and holds NULL.
pub const NO_INPUT: [&str; 7] = [
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
];

/// By the name in `pg_type`: every base, range and multirange type of `pg_catalog`, every domain of
/// `information_schema`.
pub const BUILTIN: Types = &[
    ("aclitem", &["postgres=arwdDxt/postgres", "='=r/postgres'", "postgres=r*/postgres"]),
    ("bit", &["101", "0", "=repeat('10', 500)::pg_catalog.\"bit\""]),
    ("bool", &["true", "false"]),
    ("box", &["(1,1),(0,0)", "(Infinity,1e308),(-Infinity,-1e-307)"]),
    ("bpchar", &["", "a   ", "trailing  blanks  ", "\t", "ß"]),
    (
        "bytea",
        &[
            "",
            "\\x00",
            "\\x5c",
            "\\x2e0a5c2e0a",
            "=(SELECT string_agg(decode(lpad(to_hex(g), 2, '0'), 'hex'), '' ORDER BY g) FROM generate_series(0, 255) g)",
            "=(SELECT string_agg(decode(lpad(to_hex(g), 2, '0'), 'hex'), '' ORDER BY g DESC) FROM generate_series(0, 255) g)",
        ],
    ),
    ("char", &["", "a", "\\", "'", "\n", "=(' '::text)::\"char\""]),
    ("cid", &["0", "4294967295"]),
    ("cidr", &["10.0.0.0/8", "::/0", "2001:db8::/32", "0.0.0.0/32"]),
    ("circle", &["<(0,0),0>", "<(1e-300,-0),1e308>"]),
    ("date", &["4714-11-24 BC", "5874897-12-31", "infinity", "-infinity", "0001-12-31 BC", "2000-02-29"]),
    ("datemultirange", &["{}", "{[2020-01-01,2020-02-01),[2021-01-01,infinity)}", "{(,)}"]),
    ("daterange", &["empty", "(,)", "[2020-01-01,infinity]", "[4714-11-24 BC,5874897-12-31)"]),
    (
        "float4",
        &[
            "0",
            "!'-0'::float4",
            "NaN",
            "Infinity",
            "-Infinity",
            "3.4028235e38",
            "-3.4028235e38",
            "1e-45",
            "0.1",
            "16777217",
        ],
    ),
    (
        "float8",
        &[
            "0",
            "!'-0'::float8",
            "NaN",
            "Infinity",
            "-Infinity",
            "1.7976931348623157e308",
            "5e-324",
            "0.1",
            "0.30000000000000004",
            "9007199254740993",
            "1e22",
            "1e-7",
        ],
    ),
    ("inet", &["10.1.2.3/8", "10.1.2.3", "::1", "::ffff:1.2.3.4/96", "0.0.0.0/0", "::/0"]),
    ("int2", &["-32768", "32767", "0"]),
    ("int2vector", &["1 2 3", "", "-32768 32767"]),
    ("int4", &["-2147483648", "2147483647", "0"]),
    ("int4multirange", &["{}", "{[1,2),[5,9)}", "{(,)}", "{(,-3),[7,)}"]),
    ("int4range", &["empty", "[1,5)", "(,)", "[,3)", "[-2147483648,2147483647)"]),
    ("int8", &["-9223372036854775808", "9223372036854775807", "0"]),
    ("int8multirange", &["{}", "{[-9223372036854775808,0),[5,9)}"]),
    ("int8range", &["empty", "[-9223372036854775808,9223372036854775807)", "(,)"]),
    (
        "interval",
        &[
            "0",
            "178000000 years",
            "-178000000 years",
            "1 mon -1 days +00:00:01",
            "-1 mon +1 days -00:00:00.000001",
            "2147483647 days",
            "-2147483648 days",
            "596523:14:07.999999",
            "-1 year -2 mons +3 days",
        ],
    ),
    (
        "json",
        &[
            "{\"a\" :  1, \"a\":2}",
            "[1,\t 2 ]",
            "\"\\u0041\\n\"",
            "null",
            "\"\\\\ \\\" / é\"",
            "1.10e5",
            "{}",
            "!E'{\\n\\t\"x\": \"\\\\\\\\.\"\\r\\n}'::json",
        ],
    ),
    ("jsonb", &["{\"b\": 1, \"a\": [2, null]}", "1.10", "\"\\u00e9\\n\\\\\"", "{}", "[]", "null", "1e1000"]),
    ("jsonpath", &["$.a[*] ? (@ > 1)", "strict $", "$.\"a b\".size() + 1"]),
    ("line", &["{1,-1,0}", "{0.1,1e100,Infinity}"]),
    ("lseg", &["[(0,0),(1,1)]", "[(NaN,-0),(1e308,-1e308)]"]),
    ("macaddr", &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"]),
    ("money", &["-92233720368547758.08", "92233720368547758.07", "0", "-1234.5"]),
    ("name", &["", "x", "=repeat('n', 63)::name", "ünïcode \"quoted\""]),
    ("nummultirange", &["{}", "{[1.0,2.00),(5,)}"]),
    (
        "numeric",
        &[
            "0",
            "!'0.000'::numeric",
            "1.10",
            "!'1.1000'::numeric",
            "-1e-16383",
            "1e131071",
            "NaN",
            "Infinity",
            "-Infinity",
            "12345678901234567890.123456789012345678901234567890",
            "!repeat('9', 131072)::numeric",
            "!(repeat('9', 131072) || '.' || repeat('7', 16383))::numeric",
        ],
    ),
    ("numrange", &["empty", "[1.0,2.00]", "(NaN,NaN]", "[-Infinity,Infinity)", "(,)"]),
    ("oid", &["0", "4294967295", "1259"]),
    ("oidvector", &["1 2 3", "", "4294967295"]),
    ("path", &["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]", "[(1e-300,-0)]"]),
    ("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    ("pg_snapshot", &["1:1:", "10:20:10,14,15"]),
    ("point", &["(0,0)", "(1e-300,-0)", "(NaN,Infinity)", "(0.1,0.30000000000000004)"]),
    ("polygon", &["((0,0),(1,1),(2,0))", "((1e308,-1e308))"]),
    ("refcursor", &["", "a cursor \\ \"x\""]),
    ("regclass", &["pg_class", "public.target_of_names", "\"my types\".\"a seq\"", "-", "4294967294"]),
    ("regcollation", &["\"C\"", "\"my types\".\"my C\"", "-", "4294967294"]),
    ("regconfig", &["english", "\"my types\".conf", "-", "4294967294"]),
    ("regdictionary", &["simple", "\"my types\".dict", "-", "4294967294"]),
    ("regnamespace", &["pg_catalog", "\"my types\"", "-", "4294967294"]),
    ("regoper", &["||/", "\"my types\".++|", "0", "4294967294"]),
    ("regoperator", &["+(integer,integer)", "\"my types\".++|(text,text)", "0", "4294967294"]),
    ("regproc", &["now", "public.join_twice", "-", "4294967294"]),
    ("regprocedure", &["abs(integer)", "public.join_twice(text,text)", "-", "4294967294"]),
    ("regrole", &["postgres", "pg_monitor", "-", "4294967294"]),
    ("regtype", &["integer", "\"my types\".mood", "\"char\"", "\"my types\".mood[]", "-", "4294967294"]),
    (
        "text",
        &[
            "",
            " ",
            "\\",
            "\\.",
            "\\N",
            "\\n",
            "NULL",
            "'",
            "\"",
            "{}",
            "\t",
            "\n",
            "\r",
            "\r\n",
            "\u{b}\u{8}\u{c}\u{7f}\u{1}",
            "a\tb\nc\\d\\.\n\\.\n",
            "ünïcödé 日本語 \u{1F600} \u{10FFFF}",
            "e\u{301}",
            "é",
            "$1",
            "%s",
            "!repeat('long \\. ', 100000)",
        ],
    ),
    ("tid", &["(0,0)", "(4294967295,65535)"]),
    ("time", &["00:00:00", "24:00:00", "23:59:59.999999", "12:00:00.1"]),
    (
        "timestamp",
        &[
            "4714-11-24 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "infinity",
            "-infinity",
            "2020-02-29 12:34:56.7",
            "0001-12-31 23:59:59 BC",
        ],
    ),
    (
        "timestamptz",
        &[
            "4714-11-24 00:00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "infinity",
            "-infinity",
            "2020-06-30 23:59:59.000001+05:45",
            "1900-01-01 00:00:00+00",
        ],
    ),
    ("timetz", &["00:00:00+15:59:59", "24:00:00-15:59:59", "12:34:56.789+05:45:30", "00:00:00+00"]),
    ("tsmultirange", &["{}", "{[2020-01-01 00:00,2020-02-01 00:00),[2021-01-01 00:00,infinity)}"]),
    ("tsquery", &["'a' & !'b':*A | 'c' <2> 'd'", "", "'it''s \\\\ x'"]),
    ("tsrange", &["empty", "[2020-01-01 00:00,infinity)", "(,\"4714-11-24 00:00:00 BC\"]"]),
    ("tstzmultirange", &["{}", "{[\"2020-01-01 00:00+00\",\"2020-02-01 00:00+05:45\")}"]),
    ("tstzrange", &["empty", "[\"2020-01-01 00:00+00\",infinity]", "[-infinity,)"]),
    ("tsvector", &["'a':1A 'b c':2B,3 'it''s' 'x\\\\y'", "", "'z'"]),
    ("txid_snapshot", &["1:1:", "10:20:10,14,15"]),
    ("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    ("varbit", &["", "0", "1", "=repeat('101', 1001)::varbit"]),
    ("varchar", &["", "a  ", "\\.", "日本"]),
    ("xid", &["0", "4294967295"]),
    ("xid8", &["0", "18446744073709551615"]),
    (
        "xml",
        &[
            "<a>x</a>",
            "text  <b/> &lt; &amp;",
            "<?xml version=\"1.0\"?><a  b='c'/>",
            "",
            "<a>\n\t\\.\n</a>",
            "<!-- c --><é>ü</é>",
        ],
    ),
    ("cardinal_number", &["0", "2147483647"]),
    ("character_data", &["", "x\\"]),
    ("sql_identifier", &["", "a \"name\""]),
    ("time_stamp", &["2020-01-02 03:04:05.67+00"]),
    ("yes_or_no", &["YES", "NO"]),
];

/// Values that only servers from this version on know.
pub const NEWER: &[(u32, &str, &[&str])] = &[(170_000, "interval", &["infinity", "-infinity"])];

/// With a modifier, where a value might be cut or rounded on its way.
pub const MODIFIED: Types = &[
    ("char(5)", &["", "a", "abcde", " b"]),
    ("varchar(3)", &["", "a  ", "日本語"]),
    ("bit(3)", &["101", "000"]),
    ("varbit(5)", &["", "10101"]),
    ("numeric(10,2)", &["0.00", "-99999999.99", "NaN"]),
    ("numeric(1000,999)", &["=('1.' || repeat('7', 999))::numeric(1000,999)", "-0.1"]),
    ("timestamp(0)", &["2020-01-01 00:00:01", "infinity"]),
    ("timestamptz(3)", &["2020-01-01 00:00:01.123+00"]),
    ("time(2)", &["23:59:59.99", "24:00:00"]),
    ("interval year to month", &["1 year 2 mons", "-5 mons"]),
    ("interval(0)", &["00:00:01"]),
];

/// Types of the database's own.
pub const MADE: &str = r#"
CREATE SCHEMA "my types";
CREATE TYPE "my types".mood AS ENUM ('sad', 'ok', 'very "happy"', 'comma, it''s \', '');
CREATE TYPE pair AS (a int, "B b" text);
CREATE TYPE nested AS (p pair, "ps" pair[], m "my types".mood, f float8, r int4range);
CREATE TYPE unequal AS (a int, j json, p point);
CREATE TYPE empty AS ();
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN small AS positive CHECK (VALUE < 1000);
CREATE DOMAIN ints AS int[];
CREATE DOMAIN small_ints AS small[];
CREATE DOMAIN short AS varchar(3);
CREATE DOMAIN moods_domain AS "my types".mood;
CREATE DOMAIN "my types"."pair domain" AS pair CHECK ((VALUE).a > 0);
CREATE DOMAIN pair_domain_2 AS "my types"."pair domain";
CREATE DOMAIN span AS int4range;
CREATE TYPE with_domain AS (d small, s short, ps "my types"."pair domain"[]);
CREATE TYPE "my types"."float range" AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE mood_range AS RANGE (subtype = "my types".mood);
CREATE TYPE text_range AS RANGE (subtype = text, collation = "C");
CREATE TABLE target_of_names (a int PRIMARY KEY, "B" pair);
CREATE SEQUENCE "my types"."a seq";
CREATE COLLATION "my types"."my C" FROM "C";
CREATE TEXT SEARCH DICTIONARY "my types".dict (TEMPLATE = simple);
CREATE TEXT SEARCH CONFIGURATION "my types".conf (COPY = simple);
CREATE FUNCTION join_twice(text, text) RETURNS text LANGUAGE sql AS 'SELECT $1 || $2 || $2';
CREATE OPERATOR "my types".++| (FUNCTION = join_twice, LEFTARG = text, RIGHTARG = text);
"#;

/// Their values.
pub const MADE_VALUES: Types = &[
    ("\"my types\".mood", &["sad", "very \"happy\"", "comma, it's \\", ""]),
    ("pair", &["(1,x)", "(,)", "(1,\"\")", "(2,\"a \"\"q\"\" \\\\ , ()\")", "(3,\" \n\t\")"]),
    (
        "nested",
        &[
            "(\"(1,x)\",\"{\"\"(1,\\\\\"\"a b\\\\\"\")\"\",NULL}\",\"very \"\"happy\"\"\",NaN,\"[1,5)\")",
            "(,,,,)",
            "=ROW(ROW(1, 'é\\'), ARRAY[ROW(2, E'\\n')::pair, NULL], 'ok', '-0', 'empty')::nested",
        ],
    ),
    ("unequal", &["(1,\"{\"\"a\"\":  1}\",\"(1,-0)\")", "(,,)"]),
    ("empty", &["()"]),
    ("positive", &["1", "2147483647"]),
    ("small", &["1", "999"]),
    ("ints", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[-1:0]={5,6}"]),
    ("small_ints", &["{}", "{1,NULL,999}"]),
    ("short", &["", "abc", "a  "]),
    ("moods_domain", &["ok", "sad"]),
    ("\"my types\".\"pair domain\"", &["(1,x)", "(2,)"]),
    ("pair_domain_2", &["(1,x)", "(2,\"a,b\")"]),
    ("span", &["[1,5)", "empty"]),
    ("with_domain", &["(1,abc,\"{\"\"(1,x)\"\"}\")", "(,,)"]),
    ("\"my types\".\"float range\"", &["[0.1,0.30000000000000004)", "[-0,NaN]", "empty"]),
    ("mood_range", &["[sad,ok]", "(,)"]),
    ("text_range", &["[\"a\\\\\",\"b \"\",\"\"\")", "empty", "[,\"\"]", "[\"\",\"\"]"]),
    ("target_of_names", &["(1,\"(1,\"\"a b\"\")\")", "(,)"]),
];

/// By the extension; in a schema of its own where the second says so.
pub const EXTENSIONS: &[(&str, Option<&str>, Types)] = &[
    ("citext", None, &[("citext", &["", "Ab", "!'aB'::citext", "é\\"])]),
    (
        "hstore",
        Some("my ext"),
        &[(
            "\"my ext\".hstore",
            &["", "\"a\"=>\"1\", \"b\"=>NULL", "\"q \\\" \\\\\"=>\"\", \"NULL\"=>\"NULL\""],
        )],
    ),
    (
        "ltree",
        Some("my ext"),
        &[
            ("\"my ext\".ltree", &["", "Top.Science.Astronomy", "a_b.1"]),
            ("\"my ext\".lquery", &["*.Astro*@.!pizza.*{1,2}", "a|b"]),
            ("\"my ext\".ltxtquery", &["Europe & Russia*@ & !Transportation"]),
        ],
    ),
    ("cube", None, &[("cube", &["(1, 2, 3)", "(0, 0),(1e-300, -1)", "()", "(0.1),(0.30000000000000004)"])]),
    ("seg", None, &[("seg", &["1.50", "~0.1", "1 .. 2.500", "< 4"])]),
    (
        "isn",
        Some("my ext"),
        &[
            ("\"my ext\".isbn13", &["978-0-393-04002-9"]),
            ("\"my ext\".isbn", &["0-393-04002-X"]),
            ("\"my ext\".issn", &["1436-4522"]),
            ("\"my ext\".ean13", &["978-0-11-000533-1"]),
        ],
    ),
    ("intarray", None, &[("query_int", &["1&(2|3)&!4"])]),
    (
        "postgis",
        None,
        &[
            ("geometry", &["SRID=4326;POINT Z (1 2 3)", "POINT EMPTY", "POLYGON((0 0,1 0.1,1 1,0 0))"]),
            ("geography", &["POINT(-122.3 47.6)"]),
        ],
    ),
];
