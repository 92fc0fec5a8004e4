//! TRUNCATE, and DELETE where it may not.

use super::*;

/// Tables 1 to 3 are emptied, those in `copied_later` before their copy; `references` are `from to`. Expects the steps, each
/// with its table.
#[track_caller]
fn check(copied_later: &[&str], references: &[&str], restart_identity: bool, expected: &[(&str, &str)]) {
    let table = |id, name: &str| named(id, QualifiedName::new("S", name), ReplicaIdentity::Default, "id*");
    let (a, b, c) = (table(1, "a"), table(2, "b"), table(3, "c"));
    let mut planner = planner(["a", "b", "c"].map(|name| {
        let mut table = target_named(QualifiedName::new("S", name), "id*");
        if copied_later.contains(&name) {
            table.copy_lsn = SourceLsn::new(COMMIT + 1);
        }
        table
    }));
    let segment = segment(vec![truncate(&[&a, &b, &c], restart_identity)]);
    let mut emptied = planner.emptied(&segment);
    emptied.sort();
    assert_eq!(emptied, ["a", "b", "c"].map(|name| QualifiedName::new("S", name)));
    let reference = |text: &&str| {
        let (from, to) = text.split_once(' ').unwrap();
        TableReference { from: QualifiedName::new("S", from), to: QualifiedName::new("S", to) }
    };
    planner.learn_references(references.iter().map(reference).collect());
    let steps = plan(&mut planner, &segment).unwrap();
    assert!(steps.iter().all(|step| step.kind == Kind::Truncate));
    let steps: Vec<_> = steps.iter().map(|step| (text(step), step.relation.name.name.as_str())).collect();
    let expected: Vec<_> = expected.iter().map(|(sql, first)| (format!("{sql} |"), *first)).collect();
    assert_eq!(steps, expected);
}

#[test]
fn at_once_where_nobody_else_refers_to_them() {
    let all = r#"TRUNCATE ONLY "S"."a", ONLY "S"."b", ONLY "S"."c""#;
    check(&[], &[], false, &[(all, "a")]);
    check(&[], &["b a", "c b", "a c"], false, &[(all, "a")]);
    let two = r#"TRUNCATE ONLY "S"."a", ONLY "S"."c" RESTART IDENTITY"#;
    check(&["b"], &[], true, &[(two, "a")]);
    check(&["a", "b"], &["a b"], false, &[(r#"TRUNCATE ONLY "S"."c""#, "c")]);
    check(&["a", "b", "c"], &[], true, &[]);
}

#[test]
fn by_delete_where_others_do() {
    let delete = |name| format!(r#"DELETE FROM ONLY "S"."{name}""#);
    let (a, b, c) = (delete("a"), delete("b"), delete("c"));
    let rest = r#"TRUNCATE ONLY "S"."b", ONLY "S"."c" RESTART IDENTITY"#;
    // One that is not published.
    check(&[], &["other a"], true, &[(&a, "a"), (rest, "b")]);
    // One whose copy holds it already.
    check(&["b"], &["b a"], false, &[(&a, "a"), (r#"TRUNCATE ONLY "S"."c""#, "c")]);
    // What is not truncated may not refer to what is.
    check(&[], &["other a", "a b"], false, &[(&a, "a"), (&b, "b"), (r#"TRUNCATE ONLY "S"."c""#, "c")]);
    check(&[], &["other a", "a b", "b c"], true, &[(&a, "a"), (&b, "b"), (&c, "c")]);
}
