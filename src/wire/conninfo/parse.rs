//! Connection strings to keywords and values. Manual: "Connection Strings".
//!
//! Two forms, told apart by the URI's scheme as libpq does. Errors name keywords and positions, not the text at hand:
//! a stray space in an unquoted password would otherwise put half of it into a log.

use super::ConnInfoError;
use super::keywords::Options;

type Result<T> = std::result::Result<T, ConnInfoError>;

/// Parses a libpq URI or a keyword/value string.
pub(super) fn parse(text: &str) -> Result<Options> {
    match ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => parse_uri(rest),
        None => parse_keywords(text),
    }
}

/// `keyword = 'value' …`: a value with spaces is quoted; in both forms a backslash takes the next character as it is.
fn parse_keywords(text: &str) -> Result<Options> {
    let mut options = Options::default();
    let mut rest = text.trim_start();
    let mut previous = String::new();
    while !rest.is_empty() {
        let at = text.len() - rest.len() + 1;
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let name = &rest[..end];
        let Some(value) = rest[end..].trim_start().strip_prefix('=') else {
            return Err(ConnInfoError::new(format!(
                "missing \"=\" after the word at character {at} of the connection string \
                 (a value that has spaces needs single quotes)"
            )));
        };
        let (value, after) = keyword_value(value.trim_start())?;
        if !options.set(name, value) {
            let secret = previous == "password" || !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let shown = if secret { format!("at character {at}") } else { format!("\"{name}\"") };
            return Err(ConnInfoError::new(format!("unknown connection option {shown}")));
        }
        name.clone_into(&mut previous);
        rest = after.trim_start();
    }
    Ok(options)
}

/// One value, and what comes after it.
fn keyword_value(text: &str) -> Result<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        Err(ConnInfoError::new("unterminated quoted value in the connection string"))
    } else {
        Ok((value, ""))
    }
}

/// `[user[:password]@][host[:port][,…]][/dbname][?keyword=value[&…]]`, behind the scheme.
fn parse_uri(text: &str) -> Result<Options> {
    let mut options = Options::default();
    let mut set = |name: &'static str, value: &str| -> Result<()> {
        if !value.is_empty() {
            options.set(name, decode(name, value)?);
        }
        Ok(())
    };
    let mut rest = text;
    if let Some(at) = text.find(['@', '/']).filter(|&at| text.as_bytes()[at] == b'@') {
        let (user, password) = text[..at].split_once(':').unwrap_or((&text[..at], ""));
        set("user", user)?;
        set("password", password)?;
        rest = &text[at + 1..];
    }
    let (hosts, ports, mut rest) = uri_hosts(rest)?;
    set("host", &hosts)?;
    if ports.bytes().any(|b| b != b',') {
        set("port", &ports)?;
    }
    if let Some(path) = rest.strip_prefix('/') {
        let end = path.find('?').unwrap_or(path.len());
        set("dbname", &path[..end])?;
        rest = &path[end..];
    }
    if let Some(query) = rest.strip_prefix('?') {
        uri_parameters(query, &mut options)?;
    }
    Ok(options)
}

/// The hosts and ports as comma-separated lists, and what comes after them.
fn uri_hosts(mut rest: &str) -> Result<(String, String, &str)> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        if let Some(bracketed) = rest.strip_prefix('[') {
            let end = bracketed
                .find(']')
                .ok_or_else(|| ConnInfoError::new("missing \"]\" after an IPv6 address in the URI"))?;
            if end == 0 {
                return Err(ConnInfoError::new("the IPv6 address in the URI is empty"));
            }
            hosts.push_str(&bracketed[..end]);
            rest = &bracketed[end + 1..];
            if !rest.is_empty() && !rest.starts_with([':', '/', '?', ',']) {
                return Err(ConnInfoError::new(
                    "unexpected character after \"]\" in the URI (expected \":\", \"/\", \"?\" or \",\")",
                ));
            }
        } else {
            let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            hosts.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        if let Some(port) = rest.strip_prefix(':') {
            let end = port.find(['/', '?', ',']).unwrap_or(port.len());
            ports.push_str(&port[..end]);
            rest = &port[end..];
        }
        let Some(more) = rest.strip_prefix(',') else { return Ok((hosts, ports, rest)) };
        hosts.push(',');
        ports.push(',');
        rest = more;
    }
}

fn uri_parameters(query: &str, options: &mut Options) -> Result<()> {
    for (index, pair) in query.split('&').enumerate().filter(|(_, pair)| !pair.is_empty()) {
        let number = index + 1;
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| ConnInfoError::new(format!("missing \"=\" in URI parameter {number}")))?;
        let name = decode("a parameter's name", name)?;
        if value.contains('=') {
            return Err(ConnInfoError::new(format!(
                "extra \"=\" in URI parameter \"{name}\" (write it as %3D)"
            )));
        }
        let value = decode(&name, value)?;
        // A courtesy to JDBC's URIs that libpq has too.
        let (name, value) = if name == "ssl" && value == "true" {
            ("sslmode".to_owned(), "require".to_owned())
        } else {
            (name, value)
        };
        if !options.set(&name, value) {
            return Err(ConnInfoError::new(format!("unknown connection option \"{name}\" in the URI")));
        }
    }
    Ok(())
}

/// Undoes percent-encoding; `+` stays a plus sign.
fn decode(what: &str, text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (Some(high), Some(low)) = (hex(tail.first()), hex(tail.get(1))) else {
            return Err(ConnInfoError::new(format!(
                "invalid percent-encoding in {what} (a \"%\" is written %25)"
            )));
        };
        bytes.push(high * 16 + low);
        rest = &tail[2..];
    }
    if bytes.contains(&0) {
        return Err(ConnInfoError::new(format!("forbidden %00 in {what}")));
    }
    String::from_utf8(bytes).map_err(|_| ConnInfoError::new(format!("{what} is not UTF-8 once decoded")))
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    let value = char::from(*digit?).to_digit(16)?;
    u8::try_from(value).ok()
}
