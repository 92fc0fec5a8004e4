//! `require_auth`: which ways to authenticate are good enough. Manual: "Parameter Key Words".

use std::fmt;

use super::ConnInfoError;

/// A list of methods, or of those that are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::wire) struct RequireAuth {
    listed: Vec<&'static str>,
    negated: bool,
}

const METHODS: [&str; 7] = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"];

impl RequireAuth {
    pub(super) fn parse(text: &str) -> Result<Self, ConnInfoError> {
        let negated = text.starts_with('!');
        let mut listed = Vec::new();
        for word in text.split(',') {
            let name = word.strip_prefix('!');
            if name.is_some() != negated {
                return Err(ConnInfoError::new(
                    "require_auth: methods with \"!\" cannot be mixed with others",
                ));
            }
            let name = name.unwrap_or(word);
            let known = METHODS.iter().find(|method| **method == name).ok_or_else(|| {
                let methods = METHODS.join(", ");
                ConnInfoError::new(format!("invalid require_auth value: {word:?} (of {methods})"))
            })?;
            if listed.contains(known) {
                return Err(ConnInfoError::new(format!("require_auth names {name:?} more than once")));
            }
            listed.push(*known);
        }
        Ok(Self { listed, negated })
    }

    /// Whether this method is good enough.
    pub(in crate::wire) fn allows(&self, method: &str) -> bool {
        self.listed.contains(&method) != self.negated
    }

    /// Whether this method is asked for by its name.
    pub(in crate::wire) fn names(&self, method: &str) -> bool {
        !self.negated && self.listed.contains(&method)
    }
}

/// As it was given.
impl fmt::Display for RequireAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.negated { "!" } else { "" };
        for (index, method) in self.listed.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{sign}{method}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let check = |text: &str, expected: &[&str]| {
            let found = RequireAuth::parse(text).expect(text);
            let allowed: Vec<&str> = METHODS.into_iter().filter(|method| found.allows(method)).collect();
            assert_eq!(allowed, expected, "{text}");
            assert_eq!(found.to_string(), text);
        };
        check("scram-sha-256", &["scram-sha-256"]);
        check("password,none", &["password", "none"]);
        check("!password,!none", &["md5", "gss", "sspi", "scram-sha-256", "oauth"]);
        let refused = |text: &str, expected: &str| {
            let error = RequireAuth::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        refused("scram", "invalid require_auth value: \"scram\"");
        refused("md5,", "invalid require_auth value: \"\"");
        refused("md5,md5", "more than once");
        refused("md5,!password", "cannot be mixed");
        refused("!md5,password", "cannot be mixed");
        let named = |text: &str| RequireAuth::parse(text).expect(text).names("password");
        assert!(named("md5,password") && !named("!md5"));
    }
}
