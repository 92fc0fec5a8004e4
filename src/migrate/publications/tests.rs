use super::*;
use crate::catalog::{ExtensionTable, Persistence};
use crate::pg::ServerVersion;

/// A table such as `public.t`; with `partition_of` a leaf of that one; identified by `id` or by nothing.
fn table(name: &str, kind: TableKind, partition_of: Option<&str>, identified: bool) -> Table {
    Table {
        kind,
        partition_of: partition_of.map(|root| QualifiedName::new("public", root)),
        identity_columns: if identified { vec!["id".to_owned()] } else { Vec::new() },
        ..Table::example(name)
    }
}

fn check(tables: &[Table], identified: &[&str], inserts_only: &[&str]) {
    check_on(13, tables, identified, inserts_only);
}

fn check_on(major: u32, tables: &[Table], identified: &[&str], inserts_only: &[&str]) {
    let publications = Publications::of(tables, Dialect::new(ServerVersion::new(major * 10_000)));
    let names = |list: &[QualifiedName]| list.iter().map(|name| name.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&publications.identified), identified);
    assert_eq!(names(&publications.inserts_only), inserts_only);
}

#[test]
fn a_table_without_identity_is_published_apart() {
    use TableKind::Plain;
    check(&[table("a", Plain, None, true), table("b", Plain, None, false)], &["a"], &["b"]);
    let unlogged = Table { persistence: Persistence::Unlogged, ..table("u", Plain, None, true) };
    check(&[unlogged], &[], &[]);
}

#[test]
fn of_an_extension_are_published_the_tables_that_are_wanted_whole() {
    let of = |condition: &str, owned_by_me: bool, identified: bool| Table {
        extension: Some(ExtensionTable { name: "ext".to_owned(), condition: condition.to_owned() }),
        owned_by_me,
        ..table("t", TableKind::Plain, None, identified)
    };
    check(&[of("", true, true)], &["t"], &[]);
    check(&[of("", true, false)], &[], &[]);
    check(&[of("", false, true)], &[], &[]);
    check(&[of("WHERE id > 5", true, true)], &[], &[]);
}

#[test]
fn partitions_go_by_their_own_names() {
    use TableKind::{Partitioned, Plain};
    let root = table("p", Partitioned, None, true);
    let (one, two) = (table("p1", Plain, Some("p"), true), table("p2", Plain, Some("p"), true));
    for major in [12, 13, 18] {
        check_on(major, &[root.clone(), one.clone(), two.clone()], &["p1", "p2"], &[]);
    }
    let keyless = table("p2", Plain, Some("p"), false);
    check(&[root, one, keyless], &["p1"], &["p2"]);
}
