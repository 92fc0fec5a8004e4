use super::*;
use crate::catalog::MembershipOptions;

fn role(name: &str) -> Role {
    Role {
        name: name.to_owned(),
        bootstrap: false,
        superuser: false,
        inherit: true,
        create_role: false,
        create_db: false,
        login: false,
        replication: false,
        bypass_rls: false,
        connection_limit: -1,
        valid_until: None,
        comment: None,
        inherited: false,
        assumable: false,
    }
}

#[test]
fn reserved() {
    let check = |name: &str, expected: bool| assert_eq!(is_reserved(&role(name)), expected, "{name}");
    for name in ["pg_monitor", "rdsadmin", "rds_superuser", "cloudsqladmin", "azuresu", "azure_pg_admin"] {
        check(name, true);
    }
    for name in ["app", "avnadmin", "postgres", "pgbouncer", "rds", "rdsadmin2", "PG_x"] {
        check(name, false);
    }
    assert!(is_reserved(&Role { bootstrap: true, ..role("admin") }));
}

#[test]
fn memberships_that_are_missing() {
    let of = |role: &str, member: &str, admin: bool, options: Option<(bool, bool)>| Membership {
        role: role.to_owned(),
        member: member.to_owned(),
        admin,
        options: options.map(|(inherit, set)| MembershipOptions { inherit, set }),
    };
    let ours = BTreeSet::from(["a", "b c", "pg_monitor", "root", "not there"]);
    let check = |wanted: Membership, found: &[Membership], expected: &[&str]| {
        let there = [role("a"), role("b c"), role("pg_monitor"), Role { superuser: true, ..role("root") }];
        let wanted_roles = [role("a"), role("b c"), role("root"), role("not there")];
        let (statements, left_out) = memberships(&wanted_roles, &[wanted], (&there, found), &ours);
        assert_eq!(left_out, []);
        let statements: Vec<&str> = statements.iter().map(Sql::as_str).collect();
        assert_eq!(statements, expected);
    };
    check(of("a", "b c", false, None), &[], &[r#"GRANT "a" TO "b c""#]);
    check(of("a", "b c", true, None), &[], &[r#"GRANT "a" TO "b c" WITH ADMIN OPTION"#]);
    check(of("a", "b c", false, None), &[of("a", "b c", true, Some((false, false)))], &[]);
    check(
        of("a", "b c", true, None),
        &[of("a", "b c", false, Some((true, true)))],
        &[r#"GRANT "a" TO "b c" WITH ADMIN OPTION"#],
    );
    let options = r#"GRANT "a" TO "b c" WITH ADMIN FALSE, INHERIT TRUE, SET FALSE"#;
    check(
        of("a", "b c", false, Some((true, false))),
        &[of("a", "b c", true, Some((false, true)))],
        &[options],
    );
    check(of("a", "b c", false, Some((true, false))), &[of("a", "b c", false, Some((true, true)))], &[]);
    check(of("pg_monitor", "a", false, None), &[], &[r#"GRANT "pg_monitor" TO "a""#]);
    check(of("pg_none", "a", false, None), &[], &[]);
    check(of("root", "a", false, None), &[], &[]);
    check(of("a", "root", false, None), &[], &[]);
    check(of("a", "not there", false, None), &[], &[]);
}

#[test]
fn memberships_of_roles_that_were_there_are_left_out() {
    let check = |granted: &str, member: &str, ours: &[&str], existing: &[&str]| {
        let roles = [role("app"), role("team"), role("avnadmin"), role("pg_execute_server_program")];
        let grant =
            Membership { role: granted.to_owned(), member: member.to_owned(), admin: false, options: None };
        let ours = ours.iter().copied().collect();
        let (statements, left_out) = memberships(&roles, &[grant], (&roles, &[]), &ours);
        let found: Vec<&str> = left_out.iter().flat_map(|it| &it.existing).map(String::as_str).collect();
        assert_eq!((statements.is_empty(), found.as_slice()), (!existing.is_empty(), existing));
    };
    check("team", "app", &["team", "app"], &[]);
    check("avnadmin", "app", &["app"], &["avnadmin"]);
    check("team", "app", &["app"], &["team"]);
    check("team", "app", &["team"], &["app"]);
    check("team", "avnadmin", &["app"], &["team", "avnadmin"]);
    check("pg_execute_server_program", "app", &["app"], &["pg_execute_server_program"]);
    check("pg_execute_server_program", "app", &["app", "pg_execute_server_program"], &[]);
}
