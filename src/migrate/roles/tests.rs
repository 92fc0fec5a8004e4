use super::*;
use crate::source::catalog::MembershipOptions;

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
    let check = |wanted: Membership, found: &[Membership], expected: &[&str]| {
        let there = [role("a"), role("b c"), role("pg_monitor"), Role { superuser: true, ..role("root") }];
        let wanted_roles = [role("a"), role("b c"), role("root"), role("not there")];
        let statements = memberships(&wanted_roles, &[wanted], &there, found);
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
