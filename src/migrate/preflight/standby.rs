//! `synchronous_standby_names`, as far as needed to see whether an application name is in it.
//!
//! Manual: "synchronous_standby_names". `FIRST n (a, b)`, `ANY n (a, b)`, `n (a, b)` or `a, b`; names are compared
//! without regard to case, may be in double quotes, and `*` matches every name.

/// Whether a standby of that name would be waited for.
pub(super) fn matches(setting: &str, application_name: &str) -> bool {
    let names = match setting.split_once('(') {
        Some((_, rest)) => rest.rsplit_once(')').map_or(rest, |(names, _)| names),
        None => setting,
    };
    split(names).iter().any(|name| name == "*" || name.eq_ignore_ascii_case(application_name))
}

/// The names of a list, without their quotes.
fn split(list: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            c if c.is_whitespace() && !quoted => {}
            c => {
                if let Some(name) = names.last_mut() {
                    name.push(c);
                }
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for setting in [
            "walferry",
            "*",
            "a, WalFerry",
            "FIRST 2 (a, walferry)",
            "ANY 1(*)",
            "1 (\"walferry\")",
            " \"walferry\" ",
        ] {
            assert!(matches(setting, "walferry"), "{setting}");
        }
        for setting in ["", "a, b", "FIRST 1 (a)", "walferry2", "ANY 1 (\"a,walferry\")"] {
            assert!(!matches(setting, "walferry"), "{setting}");
        }
    }
}
