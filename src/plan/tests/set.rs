//! Set form: what a batch's changes come to.

use super::*;
use crate::limits::{
    COPY_ROWS_MIN, FAILING_FORGOTTEN_AFTER, FAILING_TIMES_MAX, SET_ROW_BYTES_MAX, SORT_ROWS_MIN,
};

/// Plans the changes as one batch, in set form; expects the steps, and why some went row by row.
#[track_caller]
fn check(target: &str, changes: Vec<Change>, expected: &[&str], ordered: Option<Reason>) {
    let mut planner = planner([self::target(target)]);
    let count = changes.len();
    let plan = plan_as(&mut planner, Form::Set, &[&segment(changes)]).unwrap();
    assert_eq!(plan.steps.iter().map(text).collect::<Vec<_>>(), expected);
    assert_eq!(plan.ordered, ordered);
    assert_eq!(plan.changes.iter().sum::<u64>(), count as u64);
}

const INSERT: &str =
    r#"INSERT INTO "public"."t" ("id", "a", "b") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3)"#;
const DELETE: &str = r#"WITH gone AS (DELETE FROM ONLY "public"."t" t USING unnest($1::"pg_catalog"."text"[]) AS n (c1) WHERE t."id" OPERATOR("pg_catalog".=) n.c1 RETURNING 1) SELECT 1 / (count(*) = $2)::int4 FROM gone"#;
const UPDATE: &str = r#"WITH changed AS (UPDATE ONLY "public"."t" t SET "a" = n.c1, "b" = n.c2 FROM unnest($1::"pg_catalog"."text"[], $2::"pg_catalog"."text"[], $3::"pg_catalog"."text"[]) AS n (c1, c2, c3) WHERE t."id" OPERATOR("pg_catalog".=) n.c3 RETURNING 1) SELECT 1 / (count(*) = $4)::int4 FROM changed"#;

fn t() -> Arc<Relation> {
    relation(ReplicaIdentity::Default, "id* a b")
}

#[test]
fn deletes_then_updates_then_inserts() {
    let t = t();
    let changes = vec![
        insert(&t, "1 x -"),
        update(&t, None, "2 y z"),
        delete(&t, key("3 - -")),
        update(&t, None, "1 x w"),
        update(&t, None, "4 - v"),
        update(&t, None, "2 u z"),
        delete(&t, key("5 - -")),
    ];
    let delete = format!("{DELETE} | {{3,5}} 2");
    let update = format!("{UPDATE} | {{\"u\",NULL}} {{\"z\",\"v\"}} {{2,4}} 2");
    let insert = format!("{INSERT} | 1 x w");
    check("id* a b", changes, &[&delete, &update, &insert], None);
}

#[test]
fn many_inserts_are_copied() {
    let t = t();
    let rows = |count: usize| (0..count).map(|n| insert(&t, &format!("{n} x -"))).collect::<Vec<_>>();
    let single: Vec<String> = (1..COPY_ROWS_MIN).map(|n| format!("{INSERT} | {} x -", n - 1)).collect();
    check("id* a b", rows(COPY_ROWS_MIN - 1), &single.iter().map(String::as_str).collect::<Vec<_>>(), None);
    let copied: String = (0..COPY_ROWS_MIN).map(|n| format!("{n},x,\\N;")).collect();
    let copy = format!(r#"COPY "public"."t" ("id", "a", "b") FROM STDIN | {copied}"#);
    check("id* a b", rows(COPY_ROWS_MIN), &[&copy], None);
    // Also where rows cannot be found again.
    let t = relation(ReplicaIdentity::Nothing, "id a b");
    let same = (0..COPY_ROWS_MIN).map(|n| insert(&t, &format!("{n} x -"))).collect();
    check("id* a b", same, &[&copy], None);
}

#[test]
fn updates_go_by_the_columns_that_they_give() {
    let t = t();
    let changes = vec![
        update(&t, None, "1 ~ y"),
        update(&t, None, "2 x ~"),
        update(&t, None, "3 ~ z"),
        update(&t, None, "2 ~ w"),
        update(&t, None, "4 ~ ~"),
    ];
    let only_b = r#"WITH changed AS (UPDATE ONLY "public"."t" t SET "b" = n.c1 FROM unnest($1::"pg_catalog"."text"[], $2::"pg_catalog"."text"[]) AS n (c1, c2) WHERE t."id" OPERATOR("pg_catalog".=) n.c2 RETURNING 1) SELECT 1 / (count(*) = $3)::int4 FROM changed | {"y","z"} {1,3} 2"#;
    let both = format!("{UPDATE} | {{\"x\"}} {{\"w\"}} {{2}} 1");
    let touch = r#"SELECT 1 / (count(*) = $2)::int4 FROM ONLY "public"."t" t, unnest($1::"pg_catalog"."text"[]) AS n (c1) WHERE t."id" OPERATOR("pg_catalog".=) n.c1 | {4} 1"#;
    check("id* a b", changes, &[only_b, &both, touch], None);
}

#[test]
fn many_rows_go_in_the_order_of_their_keys() {
    let t = t();
    let numbers = |numbers: &mut dyn Iterator<Item = usize>| {
        numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(",")
    };
    for (count, sorted) in [(SORT_ROWS_MIN, true), (SORT_ROWS_MIN - 1, false)] {
        let keys = if sorted { numbers(&mut (1..=count)) } else { numbers(&mut (1..=count).rev()) };
        let backwards = || (1..=count).rev();
        let changes = backwards().map(|n| delete(&t, key(&format!("{n} - -")))).collect();
        check("id* a b", changes, &[&format!("{DELETE} | {{{keys}}} {count}")], None);
        let changes = backwards().map(|n| update(&t, None, &format!("{n} {n} {n}"))).collect();
        let update = format!("{UPDATE} | {{{keys}}} {{{keys}}} {{{keys}}} {count}");
        check("id* a b", changes, &[&update], None);
    }
}

#[test]
fn a_key_that_is_not_unique_on_the_target_goes_row_by_row() {
    let t = t();
    let mut planner = planner([target("id a b")]);
    let changes = vec![update(&t, None, "1 x y"), delete(&t, key("2 - -"))];
    let plan = plan_as(&mut planner, Form::Set, &[&segment(changes)]).unwrap();
    assert_eq!((plan.steps.len(), plan.ordered), (2, Some(Reason::Identity)));
}

#[test]
fn a_row_deleted_and_inserted_again() {
    let t = t();
    let changes = || vec![delete(&t, key("1 - -")), insert(&t, "1 x -")];
    let update = format!("{UPDATE} | {{\"x\"}} {{NULL}} {{1}} 1");
    check("id* a b", changes(), &[&update], None);
    // A column that only the target has gets its default, as it would.
    let (delete, insert) = (format!("{DELETE} | {{1}} 1"), format!("{INSERT} | 1 x -"));
    check("id* a b own", changes(), &[&delete, &insert], None);
    // An identity column in the key is not set, and need not be.
    check("id*:identity a b", changes(), &[&update], None);
}

#[test]
fn values_that_do_not_go_into_arrays_of_their_type() {
    let t = t();
    let sql = UPDATE.replacen(r#"$1::"pg_catalog"."text"[]"#, "$1::text[]", 1);
    let sql = sql.replacen(r#""a" = n.c1"#, r#""a" = n.c1::"pg_catalog"."text""#, 1);
    check(
        "id* a:array b",
        vec![update(&t, None, "1 {1} x")],
        &[&format!("{sql} | {{\"{{1}}\"}} {{\"x\"}} {{1}} 1")],
        None,
    );
    let ordered =
        r#"UPDATE ONLY "public"."t" SET "a" = $1, "b" = $2 WHERE "id" OPERATOR("pg_catalog".=) $3 | y x 1"#;
    check("id* a:alone b", vec![update(&t, None, "1 y x")], &[ordered], Some(Reason::Values));
    check("id* a:alone b", vec![delete(&t, key("1 - -"))], &[&format!("{DELETE} | {{1}} 1")], None);
}

#[test]
fn what_goes_row_by_row() {
    let t = t();
    let changed = r#"UPDATE ONLY "public"."t" SET "id" = $1, "a" = $2, "b" = $3 WHERE "id" OPERATOR("pg_catalog".=) $4 | 2 x y 1"#;
    let first = format!("{UPDATE} | {{\"v\"}} {{\"w\"}} {{1}} 1");
    let last = format!("{UPDATE} | {{\"r\"}} {{\"s\"}} {{2}} 1");
    let changes =
        vec![update(&t, None, "1 v w"), update(&t, Some(key("1 - -")), "2 x y"), update(&t, None, "2 r s")];
    check("id* a b", changes, &[&first, changed, &last], Some(Reason::KeyChange));
    // A large key comes along although it did not change.
    let same = format!("{UPDATE} | {{\"v\"}} {{\"w\"}} {{1}} 1");
    check("id* a b", vec![update(&t, Some(key("1 - -")), "1 v w")], &[&same], None);

    let full = relation(ReplicaIdentity::Full, "id a b");
    let by_key = r#"DELETE FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 1"#;
    check("id* a b", vec![delete(&full, super::full("1 x y"))], &[by_key], Some(Reason::Identity));

    let large = "x".repeat(SET_ROW_BYTES_MAX);
    let inserted = format!("{INSERT} | 1 {large} -");
    check("id* a b", vec![insert(&t, &format!("1 {large} -"))], &[&inserted], Some(Reason::Large));

    // What cannot come is left to the target to refuse.
    let inserted = [format!("{INSERT} | 1 x -"), format!("{INSERT} | 1 y -")];
    let changes = vec![insert(&t, "1 x -"), insert(&t, "1 y -")];
    check("id* a b", changes, &[&inserted[0], &inserted[1]], Some(Reason::Sequence));
}

#[test]
fn keys_of_several_columns_are_not_mixed_up() {
    let t = relation(ReplicaIdentity::Default, "k1* k2*");
    let changes = vec![insert(&t, "1 11"), insert(&t, "11 1"), delete(&t, key("1 11"))];
    let insert = r#"INSERT INTO "public"."t" ("k1", "k2") OVERRIDING SYSTEM VALUE VALUES ($1, $2) | 11 1"#;
    check("k1* k2*", changes, &[insert], None);
}

#[test]
fn barriers() {
    let t = t();
    let other = named(2, QualifiedName::new("public", "other"), ReplicaIdentity::Default, "id*");
    let mut planner = planner([target("id* a b"), target_named(other.name.clone(), "id*")]);
    let changes = vec![
        insert(&t, "1 x -"),
        insert(&other, "1"),
        truncate(&[&other], false),
        insert(&other, "2"),
        delete(&t, key("1 - -")),
    ];
    let plan = plan_as(&mut planner, Form::Set, &[&segment(changes)]).unwrap();
    let kinds: Vec<_> = plan.steps.iter().map(|step| (step.kind, step.relation.id.get())).collect();
    let expected =
        [(Kind::Insert, 1), (Kind::Insert, 2), (Kind::Truncate, 2), (Kind::Insert, 2), (Kind::Delete, 1)];
    assert_eq!(kinds, expected);
    assert!(plan.steps.iter().all(|step| step.rows.is_none()));

    // A table in another shape: what came before it goes by the old one.
    let wider = relation(ReplicaIdentity::Default, "id* a b c");
    let (before, after) = (segment(vec![insert(&t, "1 x -")]), segment(vec![insert(&wider, "2 x - y")]));
    planner.begin(Form::Set);
    planner.plan(&before, &mut 0).unwrap();
    assert_eq!(planner.unknown(&after).len(), 1);
    planner.learn(t.id, target("id* a b c"));
    planner.plan(&after, &mut 0).unwrap();
    let steps: Vec<_> = planner.finish().unwrap().steps.iter().map(text).collect();
    let wide = INSERT.replace(r#""b")"#, r#""b", "c")"#).replace("$3)", "$3, $4)");
    assert_eq!(steps, [format!("{INSERT} | 1 x -"), format!("{wide} | 2 x - y")]);
}

#[test]
fn a_table_that_goes_on_failing_is_ordered_for_a_while() {
    let t = t();
    let mut planner = planner([target("id* a b")]);
    let ordered = |planner: &mut Planner| {
        let plan = plan_as(planner, Form::Set, &[&segment(vec![update(&t, None, "1 x y")])]).unwrap();
        assert!(plan.ordered.is_none() || plan.ordered == Some(Reason::Failing));
        plan.ordered.is_some()
    };
    let run = |planner: &mut Planner| (0..).take_while(|_| ordered(planner)).count();
    assert_eq!(run(&mut planner), 0);
    for expected in [0, 1, 3, 7, 15] {
        planner.failed(t.id);
        assert_eq!(run(&mut planner), expected);
    }
    for _ in 0..20 {
        planner.failed(t.id);
    }
    assert_eq!(run(&mut planner), (1 << (FAILING_TIMES_MAX - 1)) - 1);
    for _ in 0..FAILING_FORGOTTEN_AFTER {
        assert!(!ordered(&mut planner));
    }
    planner.failed(t.id);
    assert_eq!(run(&mut planner), 0);
}
