//! The connection service file: `[name]`, then `keyword=value` lines, up to the next name. Manual: "The Connection Service
//! File".
//!
//! The user's own comes first (`PGSERVICEFILE`, else `~/.pg_service.conf`), then the system's (in `PGSYSCONFDIR`, else
//! where Debian has it). A service is looked for in the second one where the first does not have it. Not here: LDAP.

use std::path::{Path, PathBuf};

use super::environment::Environment;

/// The keywords and values of the service `name`, in their order.
pub(super) fn look_up(name: &str, environment: &Environment) -> Result<Vec<(String, String)>, String> {
    let own = match environment.get("PGSERVICEFILE").filter(|file| !file.is_empty()) {
        Some(file) => {
            let file = PathBuf::from(file);
            if !file.exists() {
                return Err(format!("service file \"{}\" does not exist", file.display()));
            }
            Some(file)
        }
        None => environment.in_home(".pg_service.conf"),
    };
    let directory = environment.get("PGSYSCONFDIR").filter(|directory| !directory.is_empty());
    let system = Path::new(directory.unwrap_or(SYSTEM_DIRECTORY)).join("pg_service.conf");
    for file in own.into_iter().chain([system]).filter(|file| file.exists()) {
        let text = std::fs::read_to_string(&file);
        let text = text.map_err(|error| format!("service file \"{}\": {error}", file.display()))?;
        let found = find(&text, name).map_err(|why| format!("service file \"{}\": {why}", file.display()))?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Err(format!("definition of service {name:?} not found"))
}

const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// `None` where there is no such service. Errors name lines, not what is in them: one may be a password.
fn find(text: &str, name: &str) -> Result<Option<Vec<(String, String)>>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let header = format!("[{name}]");
    let mut found = None;
    for (number, line) in lines {
        if line.starts_with('[') {
            if found.is_some() {
                break;
            }
            found = (line == header).then(Vec::new);
            continue;
        }
        let Some(options) = &mut found else { continue };
        if line.starts_with("ldap:") {
            return Err(format!("line {number}: services in LDAP are not supported by Walferry"));
        }
        match line.split_once('=') {
            Some(("service", _)) => return Err(format!("line {number}: a service cannot name another one")),
            // The first value counts.
            Some((keyword, value)) => options.push((keyword.to_owned(), value.to_owned())),
            None => return Err(format!("line {number}: missing \"=\"")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections() {
        let text = "# mine\n[a]\nhost=x\n  port=1\n\n#host=z\n[b]\nhost=y=z \nservice=a\n[c]\nword\n[d]\n[e]\nldap://x\n";
        let found = |name| find(text, name).map(|found| found.map(|options| format!("{options:?}")));
        assert_eq!(found("a"), Ok(Some(r#"[("host", "x"), ("port", "1")]"#.to_owned())));
        assert_eq!(found("d"), Ok(Some("[]".to_owned())));
        assert_eq!(found("z"), Ok(None));
        assert!(found("b").is_err_and(|why| why.contains("line 9")));
        assert!(found("c").is_err_and(|why| why == "line 11: missing \"=\""));
        assert!(found("e").is_err_and(|why| why.contains("LDAP")));
    }

    #[test]
    fn files() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("own"), "[a]\nhost=own\n")?;
        std::fs::write(path("pg_service.conf"), "[a]\nhost=system\n[b]\nhost=system\n")?;
        let environment = Environment::from_map([("PGSERVICEFILE", path("own")), ("PGSYSCONFDIR", path(""))]);
        let host = |name| look_up(name, &environment).map(|options| options[0].1.clone());
        assert_eq!((host("a").as_deref(), host("b").as_deref()), (Ok("own"), Ok("system")));
        assert!(host("c").is_err_and(|why| why.contains("definition of service \"c\" not found")));
        let missing = Environment::from_map([("PGSERVICEFILE", path("none"))]);
        assert!(look_up("a", &missing).is_err_and(|why| why.contains("does not exist")));
        Ok(())
    }
}
