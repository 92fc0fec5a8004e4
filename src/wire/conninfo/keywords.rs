//! libpq's connection keywords: which exist, which environment variable stands behind each, and what Walferry does
//! with it. Manual: "Parameter Key Words", "Environment Variables".
//!
//! A keyword whose absence only costs comfort is accepted and ignored. One that would make a connection safer than
//! Walferry can is refused, never ignored.

use std::collections::BTreeMap;

use super::ConnInfoError;
use crate::wire::{Environment, service};

/// The values that were given, by keyword.
#[derive(Default)]
pub(super) struct Options(BTreeMap<&'static str, String>);

struct Keyword {
    name: &'static str,
    variable: Option<&'static str>,
    use_: Use,
}

enum Use {
    Honoured,
    /// Accepted, of no effect here.
    Ignored,
    /// Accepted with one of these values only, with the reason.
    Only(&'static [&'static str], &'static str),
}

const fn keyword(name: &'static str, variable: &'static str, use_: Use) -> Keyword {
    let variable = if variable.is_empty() { None } else { Some(variable) };
    Keyword { name, variable, use_ }
}

const KEYWORDS: &[Keyword] = {
    use Use::{Honoured, Ignored, Only};
    const NOT_HERE: &str = "is not supported by Walferry";
    const OAUTH: &str = "needs OAuth, which Walferry lacks";
    const KEYS: &str = "is not supported by Walferry: give the password";
    &[
        keyword("application_name", "PGAPPNAME", Honoured),
        keyword("channel_binding", "PGCHANNELBINDING", Honoured),
        keyword("client_encoding", "", Ignored),
        keyword("connect_timeout", "PGCONNECT_TIMEOUT", Honoured),
        keyword("dbname", "PGDATABASE", Honoured),
        keyword("fallback_application_name", "", Ignored),
        keyword("gssdelegation", "", Ignored),
        keyword(
            "gssencmode",
            "PGGSSENCMODE",
            Only(&["disable", "prefer"], "needs GSSAPI, which Walferry lacks"),
        ),
        keyword("gsslib", "", Ignored),
        keyword("host", "PGHOST", Honoured),
        keyword("hostaddr", "PGHOSTADDR", Honoured),
        keyword("keepalives", "", Honoured),
        keyword("keepalives_count", "", Honoured),
        keyword("keepalives_idle", "", Honoured),
        keyword("keepalives_interval", "", Honoured),
        keyword("krbsrvname", "", Ignored),
        keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Only(&["disable"], NOT_HERE)),
        keyword("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
        keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"], NOT_HERE)),
        keyword("oauth_client_id", "", Only(&[], OAUTH)),
        keyword("oauth_client_secret", "", Only(&[], OAUTH)),
        keyword("oauth_issuer", "", Only(&[], OAUTH)),
        keyword("oauth_scope", "", Only(&[], OAUTH)),
        keyword("options", "PGOPTIONS", Honoured),
        keyword("passfile", "PGPASSFILE", Honoured),
        keyword("password", "PGPASSWORD", Honoured),
        keyword("port", "PGPORT", Honoured),
        keyword(
            "replication",
            "",
            Only(&["false", "off", "no", "0"], "is set by Walferry where it is needed"),
        ),
        keyword("require_auth", "PGREQUIREAUTH", Honoured),
        keyword("requirepeer", "PGREQUIREPEER", Only(&[], NOT_HERE)),
        keyword("scram_client_key", "", Only(&[], KEYS)),
        keyword("scram_server_key", "", Only(&[], KEYS)),
        keyword("service", "PGSERVICE", Honoured),
        keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Honoured),
        keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Honoured),
        keyword("sslcert", "PGSSLCERT", Honoured),
        keyword("sslcertmode", "PGSSLCERTMODE", Only(&["allow", "disable"], NOT_HERE)),
        keyword("sslcompression", "", Ignored),
        keyword("sslcrl", "PGSSLCRL", Honoured),
        keyword(
            "sslcrldir",
            "PGSSLCRLDIR",
            Only(&[], "is not supported by Walferry: put the lists into one file, and name it by sslcrl"),
        ),
        keyword("sslkey", "PGSSLKEY", Honoured),
        keyword("sslkeylogfile", "", Ignored),
        keyword("sslmode", "PGSSLMODE", Honoured),
        keyword("sslnegotiation", "PGSSLNEGOTIATION", Honoured),
        keyword(
            "sslpassword",
            "",
            Only(&[], "is not supported: give the key unencrypted, in a file of mode 0600"),
        ),
        keyword("sslrootcert", "PGSSLROOTCERT", Honoured),
        keyword("sslsni", "PGSSLSNI", Honoured),
        keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Honoured),
        keyword("tcp_user_timeout", "", Honoured),
        keyword("user", "PGUSER", Honoured),
    ]
};

impl Options {
    /// Takes one value; a later one for the same keyword wins, as with libpq. `false` for an unknown keyword.
    pub(super) fn set(&mut self, name: &str, value: String) -> bool {
        let known = KEYWORDS.iter().find(|keyword| keyword.name == name);
        if let Some(keyword) = known {
            self.0.insert(keyword.name, value);
        }
        known.is_some()
    }

    /// Fills in what was not given: from the service that is named, then from the environment. Refuses what cannot be
    /// honoured.
    pub(super) fn with_defaults(mut self, environment: &Environment) -> Result<Self, ConnInfoError> {
        let service = self.0.get("service").map(String::as_str).or(environment.get("PGSERVICE"));
        if let Some(name) = service.filter(|name| !name.is_empty()) {
            for (name, value) in service::look_up(name, environment).map_err(ConnInfoError::new)? {
                if !KEYWORDS.iter().any(|keyword| keyword.name == name) {
                    return Err(ConnInfoError::new(format!(
                        "unknown connection option {name:?} of a service"
                    )));
                }
                if !self.0.contains_key(name.as_str()) {
                    self.set(&name, value);
                }
            }
        }
        for keyword in KEYWORDS {
            let variable = keyword.variable.and_then(|name| Some((name, environment.get(name)?)));
            if let (false, Some((_, value))) = (self.0.contains_key(keyword.name), variable) {
                self.0.insert(keyword.name, value.to_owned());
            }
            if let (Use::Only(allowed, reason), Some(value)) = (&keyword.use_, self.get(keyword.name))
                && !allowed.contains(&value)
            {
                // One that is never allowed may be a secret.
                let shown = if allowed.is_empty() { String::new() } else { format!("={value}") };
                let subject = match variable {
                    Some((variable, _)) => format!("{}{shown} ({variable})", keyword.name),
                    None => format!("{}{shown}", keyword.name),
                };
                return Err(ConnInfoError::new(format!("connection option {subject} {reason}")));
            }
        }
        Ok(self)
    }

    /// A value that was given and is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(KEYWORDS.iter().any(|keyword| keyword.name == name), "{name}");
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}
