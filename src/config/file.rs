//! The configuration file (TOML), and `-c KEY=VALUE`, which overrides one key of it.
//!
//! Keys are called as the options are; of the source's there are Aiven's names too, `migration.host` and so on, which
//! make up its connection string. A flag beats `-c`, which beats the environment, which beats the file. Errors name
//! keys, and lines of the file, and never a value: any of them may be a password.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::secret::{Secret, has_password};
use super::{Conninfo, RawConfig};
use crate::error::Definite;

/// A raw configuration whose gaps are filled, and what the two sides are.
pub(super) struct Merged {
    pub(super) raw: RawConfig,
    pub(super) source: Option<Conninfo>,
    pub(super) target: Option<Conninfo>,
}

/// Where a key's value goes.
enum Field<'a> {
    Text(&'a mut Option<String>),
    /// A list with commas.
    Names(&'a mut Vec<String>),
    Patterns(&'a mut Vec<String>),
    Switch(&'a mut bool),
}

/// The place of a key's value.
type Place = fn(&mut RawConfig) -> Field<'_>;

/// All keys but those that the connection strings are made of.
const FIELDS: [(&str, Place); 34] = [
    ("name", |raw| Field::Text(&mut raw.name)),
    ("method", |raw| Field::Text(&mut raw.method)),
    ("migration.method", |raw| Field::Text(&mut raw.method)),
    ("database", |raw| Field::Names(&mut raw.databases)),
    ("ignore-dbs", |raw| Field::Names(&mut raw.ignore_dbs)),
    ("dump-db", |raw| Field::Names(&mut raw.dump_dbs)),
    ("migration.ignore_dbs", |raw| Field::Names(&mut raw.ignore_dbs)),
    ("ignore-roles", |raw| Field::Names(&mut raw.ignore_roles)),
    ("migration.ignore_roles", |raw| Field::Names(&mut raw.ignore_roles)),
    ("grant-existing-roles", |raw| Field::Names(&mut raw.grant_existing_roles)),
    ("with-table", |raw| Field::Patterns(&mut raw.with_tables)),
    ("skip-table", |raw| Field::Patterns(&mut raw.skip_tables)),
    ("no-createdb", |raw| Field::Switch(&mut raw.no_createdb)),
    ("replica-identity-full", |raw| Field::Switch(&mut raw.replica_identity_full)),
    ("ignore-keyless", |raw| Field::Switch(&mut raw.ignore_keyless)),
    ("excluded-extensions", |raw| Field::Names(&mut raw.excluded_extensions)),
    ("jobs", |raw| Field::Text(&mut raw.jobs)),
    ("listen", |raw| Field::Text(&mut raw.listen)),
    ("listen-token-file", |raw| Field::Text(&mut raw.listen_token_file)),
    ("listen-insecure", |raw| Field::Switch(&mut raw.listen_insecure)),
    ("listen-cert", |raw| Field::Text(&mut raw.listen_cert)),
    ("listen-key", |raw| Field::Text(&mut raw.listen_key)),
    ("max-lag", |raw| Field::Text(&mut raw.max_lag)),
    ("until", |raw| Field::Text(&mut raw.until)),
    ("confirm-delay", |raw| Field::Text(&mut raw.confirm_delay)),
    ("spill-dir", |raw| Field::Text(&mut raw.spill_dir)),
    ("spill-max", |raw| Field::Text(&mut raw.spill_max)),
    ("ddl", |raw| Field::Text(&mut raw.ddl)),
    ("open-target", |raw| Field::Switch(&mut raw.open_target)),
    ("passwords-file", |raw| Field::Text(&mut raw.passwords_file)),
    ("fence-command", |raw| Field::Text(&mut raw.fence_command)),
    ("unfence-command", |raw| Field::Text(&mut raw.unfence_command)),
    ("on-conflict", |raw| Field::Text(&mut raw.on_conflict)),
    ("log-format", |raw| Field::Text(&mut raw.log_format)),
];

/// Connection strings, whole.
const SIDES: [&str; 2] = ["source", "target"];

/// The parts of the source's connection string: Aiven's name, and libpq's.
const PARTS: [(&str, &str); 6] = [
    ("migration.host", "host"),
    ("migration.port", "port"),
    ("migration.dbname", "dbname"),
    ("migration.username", "user"),
    ("migration.password", "password"),
    ("migration.ssl", "sslmode"),
];

/// Every cluster has it; libpq would take the user's name.
const DBNAME_DEFAULT: &str = "postgres";

/// Keys and their values, from one place.
#[derive(Default)]
struct Settings {
    /// For errors: `-c`, or the file.
    place: String,
    values: BTreeMap<String, Vec<Given>>,
}

/// One value.
#[derive(Clone)]
enum Given {
    Text(String),
    /// An item of a list: it has no commas that separate anything.
    Item(String),
}

/// Fills what the flags leave open.
pub(super) fn merged(raw: &RawConfig) -> Result<Merged, Definite> {
    let typed = Settings::typed(&raw.settings)?;
    let file = raw.file.as_ref().map(|(path, text)| Settings::of_file(path, text)).transpose()?;
    let file = file.unwrap_or_default();
    let mut merged = raw.clone();
    for (key, field) in FIELDS {
        for settings in [&typed, &file] {
            settings.fill(key, field(&mut merged))?;
        }
    }
    let source = typed.source(Some(&file))?.map(|text| Conninfo { text, typed_as: typed.shown_password() });
    let file_source = file.source(None)?.map(Conninfo::unseen);
    let target = typed.side("target").map(|text| Conninfo { text, typed_as: Some("-c target") });
    let file_target = file.side("target").map(Conninfo::unseen);
    Ok(Merged {
        source: side("--source", &raw.source, source, &raw.environment.source, file_source)?,
        target: side("--target", &raw.target, target, &raw.environment.target, file_target)?,
        raw: merged,
    })
}

/// The first that is given.
fn side(
    option: &'static str,
    flag: &Option<Secret>,
    typed: Option<Conninfo>,
    environment: &Option<Secret>,
    file: Option<Conninfo>,
) -> Result<Option<Conninfo>, Definite> {
    if let Some(text) = flag {
        if text.expose().trim().is_empty() {
            return Err(Definite::usage(format!("invalid {option}: it is empty")));
        }
        return Ok(Some(Conninfo { text: text.clone(), typed_as: Some(option) }));
    }
    // A variable that is set to nothing is one that is not set.
    let environment = environment.as_ref().filter(|text| !text.expose().trim().is_empty());
    Ok(typed.or_else(|| environment.cloned().map(Conninfo::unseen)).or(file))
}

impl Settings {
    fn typed(settings: &[Secret]) -> Result<Self, Definite> {
        let mut typed = Self { place: "-c".to_owned(), values: BTreeMap::new() };
        for setting in settings {
            let (key, value) = setting.expose().split_once('=').ok_or_else(|| {
                Definite::usage("invalid -c: it is not KEY=VALUE")
                    .hint("for example: -c migration.host=old.example.com")
            })?;
            typed.add(key.trim(), vec![Given::Text(value.to_owned())])?;
        }
        Ok(typed)
    }

    fn of_file(path: &str, text: &Secret) -> Result<Self, Definite> {
        let text = text.expose();
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line =
                error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Definite::usage(format!("{path} is not TOML: line {line}"))
        })?;
        let mut file = Self { place: path.to_owned(), values: BTreeMap::new() };
        for (key, value) in table {
            match value {
                Value::Table(table) => {
                    for (inner, value) in table {
                        let key = format!("{key}.{inner}");
                        file.add(&key, file.given(&key, value)?)?;
                    }
                }
                value => file.add(&key, file.given(&key, value)?)?,
            }
        }
        Ok(file)
    }

    fn given(&self, key: &str, value: Value) -> Result<Vec<Given>, Definite> {
        let wrong = || {
            Definite::usage(format!(
                "{}: {key} is neither text, a number, true or false, nor a list of texts",
                self.place
            ))
        };
        match value {
            Value::Array(items) => {
                let text =
                    |item| if let Value::String(text) = item { Ok(Given::Item(text)) } else { Err(wrong()) };
                items.into_iter().map(text).collect()
            }
            Value::String(text) => Ok(vec![Given::Text(text)]),
            Value::Integer(number) => Ok(vec![Given::Text(number.to_string())]),
            Value::Boolean(switch) => Ok(vec![Given::Text(switch.to_string())]),
            Value::Float(_) | Value::Datetime(_) | Value::Table(_) => Err(wrong()),
        }
    }

    fn add(&mut self, key: &str, values: Vec<Given>) -> Result<(), Definite> {
        let known = || {
            let fields = FIELDS.iter().map(|(name, _)| *name);
            fields.chain(SIDES).chain(PARTS.iter().map(|(name, _)| *name))
        };
        if !known().any(|name| name == key) {
            // What stands where a key should may be anything.
            let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            let shown = if plain { format!(" {key:?}") } else { String::new() };
            let names: Vec<&str> = known().collect();
            return Err(Definite::usage(format!("{}: unknown key{shown}", self.place))
                .hint(format!("known are {}", names.join(", "))));
        }
        self.values.entry(key.to_owned()).or_default().extend(values);
        Ok(())
    }

    /// The last value of a key that has one.
    fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.last().map(|given| match given {
            Given::Text(text) | Given::Item(text) => text.as_str(),
        })
    }

    fn side(&self, key: &str) -> Option<Secret> {
        self.text(key).map(Secret::new)
    }

    fn fill(&self, key: &str, field: Field<'_>) -> Result<(), Definite> {
        let Some(values) = self.values.get(key) else { return Ok(()) };
        match field {
            Field::Text(text) => {
                text.get_or_insert_with(|| self.text(key).unwrap_or_default().to_owned());
            }
            Field::Switch(switch) => *switch |= self.switch(key)?.unwrap_or(false),
            Field::Names(names) if names.is_empty() => {
                names.extend(values.iter().map(|given| match given {
                    Given::Text(text) => text.clone(),
                    Given::Item(name) => format!("\"{}\"", name.replace('"', "\"\"")),
                }));
            }
            Field::Patterns(patterns) if patterns.is_empty() => {
                patterns.extend(values.iter().map(|given| match given {
                    Given::Text(text) | Given::Item(text) => text.clone(),
                }));
            }
            Field::Names(_) | Field::Patterns(_) => {}
        }
        Ok(())
    }

    fn switch(&self, key: &str) -> Result<Option<bool>, Definite> {
        self.text(key)
            .map(|text| match text {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(Definite::usage(format!("{}: {key} is neither true nor false", self.place))),
            })
            .transpose()
    }

    /// The source's connection string: as it is, or made of its parts, those of `below` where this place has none.
    fn source(&self, below: Option<&Self>) -> Result<Option<Secret>, Definite> {
        let part = PARTS.iter().find(|(key, _)| self.values.contains_key(*key)).map(|(key, _)| *key);
        let Some(part) = part else { return Ok(self.side("source")) };
        if self.values.contains_key("source") {
            return Err(Definite::usage(format!("{}: source and {part} exclude each other", self.place)));
        }
        let places = || std::iter::once(self).chain(below);
        let mut conninfo = String::new();
        for (key, keyword) in PARTS {
            let given = places().find_map(|place| place.text(key));
            let value = match (key, given) {
                ("migration.host", None) => {
                    return Err(Definite::usage(format!("{}: migration.host is missing", self.place))
                        .hint(format!("{part} is given, so the source is made of the keys migration.*")));
                }
                ("migration.dbname", None) => DBNAME_DEFAULT,
                ("migration.ssl", _) => {
                    let switches = places().map(|place| place.switch(key)).collect::<Result<Vec<_>, _>>()?;
                    if switches.into_iter().flatten().next().unwrap_or(true) { "require" } else { "disable" }
                }
                (_, None) => continue,
                (_, Some(value)) => value,
            };
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            conninfo.push_str(&format!("{keyword}='{value}' "));
        }
        Ok(Some(Secret::new(conninfo)))
    }

    /// What of `-c` holds a password that others can see.
    fn shown_password(&self) -> Option<&'static str> {
        if self.values.contains_key("migration.password") {
            return Some("-c migration.password");
        }
        self.text("source").filter(|text| has_password(text)).map(|_| "-c source")
    }
}

impl Conninfo {
    /// One that no other user of the machine sees.
    fn unseen(text: Secret) -> Self {
        Self { text, typed_as: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::Exit;

    fn raw(file: &str, settings: &[&str]) -> RawConfig {
        RawConfig {
            file: Some(("walferry.toml".to_owned(), Secret::new(file))),
            settings: settings.iter().map(|setting| Secret::new(*setting)).collect(),
            ..RawConfig::default()
        }
    }

    #[test]
    fn flags_beat_c_beats_environment_beats_file() {
        let file = "source = 'host=file'\ntarget = 'host=file2'\njobs = 3\nname = 'file'\nno-createdb = true";
        let check = |change: &dyn Fn(&mut RawConfig), source: &str, target: &str, jobs: usize, name: &str| {
            let mut raw = raw(file, &[]);
            change(&mut raw);
            let config = Config::resolve(&raw).expect("it is right");
            assert_eq!(config.source().map(Secret::expose), Ok(source));
            assert_eq!(config.target().map(Secret::expose), Ok(target));
            assert_eq!((config.jobs, config.name.as_str(), config.creates_databases), (jobs, name, false));
        };
        let typed = |raw: &mut RawConfig| {
            raw.settings = ["source=host=c", "target=host=c2", "jobs=4"].map(Secret::new).to_vec();
        };
        let environment = |raw: &mut RawConfig| {
            raw.environment.source = Some(Secret::new("host=env"));
            raw.environment.target = Some(Secret::new("host=env2"));
        };
        check(&|_| {}, "host=file", "host=file2", 3, "file");
        check(&environment, "host=env", "host=env2", 3, "file");
        check(&typed, "host=c", "host=c2", 4, "file");
        let all = |raw: &mut RawConfig| {
            environment(raw);
            typed(raw);
        };
        check(&all, "host=c", "host=c2", 4, "file");
        let flags = |raw: &mut RawConfig| {
            all(raw);
            raw.source = Some(Secret::new("host=flag"));
            raw.jobs = Some("5".to_owned());
            raw.name = Some("flag".to_owned());
        };
        check(&flags, "host=flag", "host=c2", 5, "flag");
    }

    #[test]
    fn the_names_of_aiven() {
        let check = |file: &str, settings: &[&str], expected: &str| {
            let mut raw = raw(file, settings);
            raw.environment.source = Some(Secret::new("host=env"));
            let config = Config::resolve(&raw).expect(expected);
            assert_eq!(config.source().map(|text| text.expose().trim_end()), Ok(expected));
        };
        let file =
            "[migration]\nhost = 'old'\nport = 5433\nusername = 'app'\npassword = \"it's\"\nssl = false";
        check(file, &[], "host=env");
        check(
            file,
            &["migration.host=other"],
            "host='other' port='5433' dbname='postgres' user='app' password='it\\'s' sslmode='disable'",
        );
        check(
            "",
            &["migration.host=h", "migration.dbname=My-App", "migration.password=a\\b=c"],
            "host='h' dbname='My-App' password='a\\\\b=c' sslmode='require'",
        );
        let config = Config::resolve(&raw(file, &["migration.ignore_dbs=a,b"])).expect("it is right");
        assert_eq!(config.selection.ignored_databases, ["a", "b"]);
        assert!(config.source().expect("made of the file").expose().starts_with("host='old'"));
    }

    #[test]
    fn lists() {
        let file = "database = ['a,b', 'say \"hi\"']\nwith-table = ['public.a', 'public.b']\nignore-dbs = 'x, y'\ndump-db = 'c'";
        let selection = Config::resolve(&raw(file, &[])).expect("it is right").selection;
        assert_eq!(selection.databases, ["a,b", "say \"hi\""]);
        assert_eq!(selection.ignored_databases, ["x", "y"]);
        assert_eq!(selection.dumped_databases, ["c"]);
        assert_eq!(selection.with_tables, ["public.a", "public.b"]);
        let typed = ["with-table=public.c", "with-table=public.d", "database=z"];
        let selection = Config::resolve(&raw(file, &typed)).expect("it is right").selection;
        assert_eq!(selection.databases, ["z"]);
        assert_eq!(selection.with_tables, ["public.c", "public.d"]);
    }

    #[test]
    fn mistakes_name_the_key_and_show_no_value() {
        let check = |file: &str, settings: &[&str], expected: &str| {
            let error = Config::resolve(&raw(file, settings)).expect_err(expected);
            assert_eq!((error.exit, error.cause.as_str()), (Exit::Usage, expected));
            assert!(!error.to_string().contains("hunter2"), "{error}");
        };
        check("sorce = 'hunter2'", &[], "walferry.toml: unknown key \"sorce\"");
        check("[migration]\nhots = 'hunter2'", &[], "walferry.toml: unknown key \"migration.hots\"");
        check("", &["migration.hots=hunter2"], "-c: unknown key \"migration.hots\"");
        check("", &["postgres://u:hunter2@h/?a=b"], "-c: unknown key");
        check("", &["hunter2"], "invalid -c: it is not KEY=VALUE");
        check("a = 'b'\npassword = hunter2", &[], "walferry.toml is not TOML: line 2");
        check(
            "jobs = 1.5",
            &[],
            "walferry.toml: jobs is neither text, a number, true or false, nor a list of texts",
        );
        check("jobs = 99", &[], "invalid --jobs: \"99\" is not a number from 1 to 32");
        check("no-createdb = 'hunter2'", &[], "walferry.toml: no-createdb is neither true nor false");
        check("", &["migration.port=1"], "-c: migration.host is missing");
        check(
            "",
            &["migration.host=a", "migration.ssl=hunter2"],
            "-c: migration.ssl is neither true nor false",
        );
        check("", &["source=host=a", "migration.host=b"], "-c: source and migration.host exclude each other");
    }

    #[test]
    fn typed_passwords_are_warned_of() {
        let check = |file: &str, settings: &[&str], expected: Option<&str>| {
            let warnings = Config::resolve(&raw(file, settings)).expect("it is right").warnings();
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
            let shown = warnings
                .iter()
                .all(|text| text.contains(expected.unwrap_or_default()) && !text.contains("hunter2"));
            assert!(shown, "{warnings:?}");
        };
        check("", &["migration.host=a", "migration.password=hunter2"], Some("-c migration.password"));
        check("", &["target=postgres://u:hunter2@h"], Some("-c target"));
        check("", &["source=host=h"], None);
        check("[migration]\nhost = 'a'\npassword = 'hunter2'", &["migration.port=1"], None);
    }
}
