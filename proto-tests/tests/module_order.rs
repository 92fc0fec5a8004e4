//! Data flows one way: a module imports only what stands below it, and what is pure stays so.
//!
//! A plain scan of the text: comments are left out, `crate::name` and `crate::{name, …}` count wherever they stand.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From top to bottom. `cli` (with `main`) may import all that stands below it, which is everything.
const ORDER: &[&str] = &[
    "cli", "demo", "migrate", "engine", "status", "apply", "store", "catalog", "plan", "assemble", "spill",
    "source", "wire", "proto", "config", "pg",
];

/// These may be imported by all, and import only each other.
const SHARED: &[&str] = &["error", "limits"];

/// No socket, clock, environment or async, and no configuration.
const PURE: &[&str] = &["plan", "assemble", "proto", "pg"];

const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "std::net",
    "std::time::Instant",
    "Instant::now",
    "SystemTime",
    "std::env",
    "std::fs",
    "async fn",
];

#[test]
fn modules_import_downwards() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let code = without_comments(&text);
        if place(&module).is_none() {
            faults.push(format!("{}: {module} has no place in the order", path.display()));
        }
        if code.contains("super::super::") {
            faults.push(format!("{}: super::super:: hides where it leads, write crate::", path.display()));
        }
        for import in imports(&code) {
            if let Some(fault) = import_fault(&module, &import) {
                faults.push(format!("{}: {fault}", path.display()));
            }
        }
        let impure =
            IMPURE_WORDS.iter().filter(|word| PURE.contains(&module.as_str()) && code.contains(**word));
        faults.extend(impure.map(|word| format!("{}: {word} in a pure module", path.display())));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn edges() {
    let check = |module: &str, import: &str, allowed: bool| {
        assert_eq!(import_fault(module, import).is_none(), allowed, "{module} -> {import}");
    };
    check("cli", "demo", true);
    check("cli", "config", true);
    check("demo", "cli", false);
    check("migrate", "engine", true);
    check("engine", "migrate", false);
    check("status", "engine", false);
    check("proto", "proto", true);
    check("proto", "pg", true);
    check("proto", "wire", false);
    check("wire", "config", true);
    check("plan", "config", false);
    check("proto", "config", false);
    check("pg", "error", true);
    check("error", "limits", true);
    check("error", "pg", false);
    check("pg", "nowhere", false);
    check("util", "pg", false);
}

#[test]
fn scan() {
    let check = |text: &str, expected: &[&str]| {
        let found: Vec<_> = imports(&without_comments(text)).into_iter().collect();
        assert_eq!(found, expected, "{text}");
    };
    check("use crate::pg::Oid;", &["pg"]);
    check("use crate::pg;", &["pg"]);
    check("use crate::{\n    pg::{self, Oid},\n    wire::Conn, limits,\n};", &["limits", "pg", "wire"]);
    check("pub(in crate::proto) fn f(x: crate::wire::Conn) {}", &["proto", "wire"]);
    check("//! [`crate::wire`]\n/// crate::apply\nlet x = 1; // crate::plan", &[]);
    check("let url = \"postgres://x\"; crate::wire::go(url)", &["wire"]);
    check("use mycrate::wire; use walferry::engine::Run;", &["engine"]);
}

/// The module that a file under `src/` belongs to; none for `lib.rs`, which only lists them.
fn module_of(path: &Path) -> Option<String> {
    let first = path.iter().next()?.to_str()?;
    match first.strip_suffix(".rs").unwrap_or(first) {
        "lib" => None,
        "main" => Some("cli".to_owned()),
        name => Some(name.to_owned()),
    }
}

/// How far down `module` stands.
fn place(module: &str) -> Option<usize> {
    let shared = || SHARED.contains(&module).then_some(ORDER.len());
    ORDER.iter().position(|m| *m == module).or_else(shared)
}

/// Why `module` may not import `import`, if it may not.
fn import_fault(module: &str, import: &str) -> Option<String> {
    if module == import {
        return None;
    }
    let (Some(from), Some(to)) = (place(module), place(import)) else {
        return Some(format!("{module} imports {import}: one of them has no place in the order"));
    };
    if to < from {
        return Some(format!("{module} imports {import}, which stands above it"));
    }
    (import == "config" && PURE.contains(&module)).then(|| format!("{module} is pure and imports config"))
}

/// The modules that `code` names after `crate::` or `walferry::`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate::", "walferry::"] {
        for (at, _) in code.match_indices(root) {
            let inside_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if inside_word {
                continue;
            }
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_items(group)),
                None => found.extend(identifier(rest)),
            }
        }
    }
    found
}

/// The first identifier of each item, up to the brace that closes the group.
fn group_items(group: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut depth = 0;
    let mut at_start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && !c.is_whitespace() => {
                items.extend(identifier(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    items
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// Drops what follows `//`, unless it is part of a URL.
fn without_comments(text: &str) -> String {
    let code = |line: &str| {
        let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
        comment.map_or(line, |(at, _)| &line[..at]).to_owned() + "\n"
    };
    text.lines().map(code).collect()
}

/// Every Rust file under `src/`, by its path there.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut directories = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!files.is_empty(), "no sources under {}", root.display());
    files
}
