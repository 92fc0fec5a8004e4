//! What can be done about a change that does not fit.

use super::*;

/// Plans one change and gives what `of` makes of it.
#[track_caller]
fn resolved<T>(target: &str, change: &Change, of: impl FnOnce(&mut Resolver<'_>) -> T) -> T {
    let mut planner = planner([self::target(target)]);
    let plan = plan_as(&mut planner, Form::Traced, &[&segment(vec![change.clone()])]).unwrap();
    let [step] = &plan.steps[..] else { panic!("{:?}", plan.steps) };
    assert_eq!(step.rows, Some(1));
    of(&mut planner.resolver(step).expect("it has its change"))
}

fn shown(step: Option<Step>) -> Option<String> {
    step.as_ref().map(text)
}

const LOOK: &str = r#"SELECT "id", "a", "b" FROM ONLY "public"."t" WHERE "#;

#[test]
fn steps_are_those_of_ordered_mode() {
    let t = relation(ReplicaIdentity::Default, "id* a b");
    let changes =
        || vec![insert(&t, "1 x -"), update(&t, Some(key("1 - -")), "2 ~ y"), delete(&t, key("2 - -"))];
    let mut planner = planner([target("id* a b")]);
    let texts = |plan: &Plan| plan.steps.iter().map(text).collect::<Vec<_>>();
    let ordered = plan_as(&mut planner, Form::Ordered, &[&segment(changes())]).unwrap();
    let traced = plan_as(&mut planner, Form::Traced, &[&segment(changes())]).unwrap();
    assert_eq!(texts(&traced), texts(&ordered));
    assert!(traced.steps.iter().all(|step| step.change.is_some()));
    assert!(ordered.steps.iter().all(|step| step.change.is_none() && planner.resolver(step).is_none()));
}

#[test]
fn an_insert_overwrites() {
    let t = relation(ReplicaIdentity::Default, "id* a b");
    resolved("id* a b", &insert(&t, "1 x -"), |resolver| {
        assert!(resolver.is_keyed());
        let update = r#"UPDATE ONLY "public"."t" SET "a" = $1, "b" = $2 WHERE "id" OPERATOR("pg_catalog".=) $3 | x - 1"#;
        assert_eq!(shown(resolver.overwrite()).as_deref(), Some(update));
        let (look, columns) = resolver.look_up(Which::New).unwrap();
        assert_eq!(text(&look), format!(r#"{LOOK}"id" OPERATOR("pg_catalog".=) $1 LIMIT 1 | 1"#));
        assert_eq!(columns, ["id", "a", "b"]);
        assert!(resolver.look_up(Which::Old).is_none());
        let (look, _) = resolver.look_up_by(&["a".to_owned()]).unwrap();
        assert_eq!(text(&look), format!(r#"{LOOK}"a" OPERATOR("pg_catalog".=) $1 LIMIT 1 | x"#));
        assert!(resolver.look_up_by(&["b".to_owned()]).is_none(), "NULL is in nobody's way");
    });
    // A column that UPDATE cannot set.
    let t = relation(ReplicaIdentity::Default, "id* n");
    resolved("id* n:identity", &insert(&t, "1 5"), |resolver| {
        let replaced = shown(resolver.overwrite()).unwrap();
        assert!(replaced.starts_with("WITH old AS (DELETE FROM ONLY"), "{replaced}");
    });
}

#[test]
fn an_update_becomes_an_insert_where_all_is_known() {
    let t = relation(ReplicaIdentity::Default, "id* a b");
    let insert = |values: &str| {
        format!(
            r#"INSERT INTO "public"."t" ("id", "a", "b") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3) | {values}"#
        )
    };
    resolved("id* a b", &update(&t, Some(key("1 - -")), "2 x y"), |resolver| {
        assert!(resolver.changes_key());
        assert_eq!(shown(resolver.insert()), Some(insert("2 x y")));
        let room = r#"DELETE FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 2"#;
        assert_eq!(shown(resolver.make_room()).as_deref(), Some(room));
    });
    resolved("id* a b", &update(&t, None, "1 ~ y"), |resolver| {
        assert!(!resolver.changes_key());
        assert!(resolver.insert().is_none() && resolver.overwrite().is_none(), "a value was not sent");
        let names = |values: NamedValues| values.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(resolver.row()), ["id", "b"]);
        assert_eq!(names(resolver.key(Which::Old)), ["id"]);
    });
    let whole = relation(ReplicaIdentity::Full, "id a b");
    resolved("id* a b", &update(&whole, Some(full("1 x -")), "1 ~ y"), |resolver| {
        assert_eq!(shown(resolver.insert()), Some(insert("1 x y")), "the old row came along");
    });
    // Nothing is known by all its columns: such rows may be many.
    resolved("id a b", &update(&whole, Some(full("1 x -")), "1 ~ y"), |resolver| {
        assert!(!resolver.is_keyed() && resolver.look_up(Which::Old).is_none());
        assert!(resolver.overwrite().is_none() && resolver.make_room().is_none());
        assert!(resolver.insert().is_some());
    });
}
