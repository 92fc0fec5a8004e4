//! Changes in, SQL text and parameters out. That PostgreSQL understands the text as it is meant is proven in
//! `tests/plan_sql.rs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::limits::UPDATE_FORMS_MAX;
use crate::pg::{Column, EndLsn, Oid, PgTimestamp, RelationId, ReplicaIdentity, SourceLsn, Xid};

/// Where the tests' transactions commit, and from where their tables take changes.
const COMMIT: u64 = 0x200;
const COPIED: u64 = 0x100;

/// `"a* b"`: columns, those with a star in the key.
fn relation(identity: ReplicaIdentity, columns: &str) -> Arc<Relation> {
    named(1, QualifiedName::new("public", "t"), identity, columns)
}

fn named(id: u32, name: QualifiedName, identity: ReplicaIdentity, columns: &str) -> Arc<Relation> {
    let column = |text: &str| Column {
        name: text.trim_end_matches('*').to_owned(),
        type_oid: Oid::new(25),
        type_modifier: -1,
        type_name: None,
        key: text.ends_with('*') || identity == ReplicaIdentity::Full,
    };
    let columns = columns.split_whitespace().map(column).collect();
    Arc::new(Relation { id: RelationId::new(id), name, identity, columns })
}

/// `"a* b:generated c:identity d:incomparable"`: the target's columns, those with a star in its key.
fn target(columns: &str) -> TargetTable {
    target_named(QualifiedName::new("public", "t"), columns)
}

fn target_named(name: QualifiedName, columns: &str) -> TargetTable {
    let mut table = TargetTable {
        name,
        columns: vec![],
        key: vec![],
        key_deferrable: false,
        copy_lsn: SourceLsn::new(COPIED),
        has_triggers: false,
    };
    for text in columns.split_whitespace() {
        let (name, what) = text.split_once(':').unwrap_or((text, ""));
        let column = name.trim_end_matches('*').to_owned();
        if name.ends_with('*') {
            table.key.push(column.clone());
        }
        let schema = if what == "citext" { "public" } else { "pg_catalog" };
        table.columns.push(TargetColumn {
            name: column,
            of: TargetType {
                oid: Oid::new(if what == "int" { 23 } else { 25 }),
                name: QualifiedName::new("pg_catalog", "text"),
                modifier: -1,
                base: None,
            },
            required: what == "required",
            generated: what == "generated",
            identity_always: what == "identity",
            equality: (what != "incomparable").then(|| QualifiedName::new(schema, "=")),
            cast: (what == "composite").then(|| QualifiedName::new("public", "part")),
            carried: match what {
                "array" => Carried::AsText,
                "alone" => Carried::Alone,
                _ => Carried::InArrays,
            },
        });
    }
    table
}

/// `"1 - ~"`: values; `-` is NULL, `~` an unchanged one, `!` one in binary format.
fn tuple(values: &str) -> Tuple {
    Tuple::from_values(values.split_whitespace().map(|text| match text {
        "-" => TupleValue::Null,
        "~" => TupleValue::Unchanged,
        "!" => TupleValue::Binary(b"!"),
        text => TupleValue::Text(text.as_bytes()),
    }))
}

fn key(values: &str) -> OldTuple {
    OldTuple::Key(tuple(values))
}

fn full(values: &str) -> OldTuple {
    OldTuple::Full(tuple(values))
}

fn insert(relation: &Arc<Relation>, new: &str) -> Change {
    Change::Insert { relation: Arc::clone(relation), new: tuple(new) }
}

fn update(relation: &Arc<Relation>, old: Option<OldTuple>, new: &str) -> Change {
    Change::Update { relation: Arc::clone(relation), old, new: tuple(new) }
}

fn delete(relation: &Arc<Relation>, old: OldTuple) -> Change {
    Change::Delete { relation: Arc::clone(relation), old }
}

fn truncate(relations: &[&Arc<Relation>], restart_identity: bool) -> Change {
    let relations = relations.iter().map(|relation| Arc::clone(relation)).collect();
    Change::Truncate { relations, cascade: true, restart_identity }
}

fn segment_at(commit_lsn: u64, changes: Vec<Change>) -> Segment {
    Segment {
        xid: Xid::new(1),
        commit_lsn: CommitLsn::new(commit_lsn),
        commit_time: PgTimestamp::default(),
        ahead: false,
        comes_again: true,
        first: true,
        changes,
        cost: 0,
        end: Some(EndLsn::new(commit_lsn + 1)),
    }
}

fn segment(changes: Vec<Change>) -> Segment {
    segment_at(COMMIT, changes)
}

/// Knows the tables as those of relations 1, 2, …
fn planner(tables: impl IntoIterator<Item = TargetTable>) -> Planner {
    let mut planner = Planner::new();
    (1..).zip(tables).for_each(|(id, table)| planner.learn(RelationId::new(id), table));
    planner
}

fn plan(planner: &mut Planner, segment: &Segment) -> Result<Vec<Step>, PlanError> {
    plan_as(planner, Form::Ordered, &[segment]).map(|plan| plan.steps)
}

fn plan_as(planner: &mut Planner, form: Form, segments: &[&Segment]) -> Result<Plan, PlanError> {
    planner.begin(form);
    for segment in segments {
        planner.plan(segment, &mut 0)?;
    }
    planner.finish()
}

/// `SQL | parameters`, with `-` for NULL.
fn text(step: &Step) -> String {
    let param = |param: &Option<Bytes>| {
        param.as_ref().map_or("-".to_owned(), |bytes| String::from_utf8(bytes.to_vec()).unwrap())
    };
    let params: Vec<String> = match &step.input {
        Input::Params(params) => params.iter().map(param).collect(),
        Input::Copy(rows) => {
            vec![String::from_utf8(rows.to_vec()).unwrap().replace('\n', ";").replace('\t', ",")]
        }
    };
    format!("{} | {}", step.statement.sql, params.join(" ")).trim_end().to_owned()
}

/// Plans one change; expects its text, or its error.
#[track_caller]
fn check(target: &str, change: Change, expected: Result<&str, &str>) {
    let mut planner = planner([self::target(target)]);
    let planned = plan(&mut planner, &segment(vec![change]));
    let planned = planned.map(|steps| steps.iter().map(text).collect::<Vec<_>>().join("; "));
    assert_eq!(
        planned.map_err(|error| error.to_string()),
        match expected {
            Ok(text) => Ok(text.to_owned()),
            Err(text) => Err(text.to_owned()),
        }
    );
}

#[test]
fn default_identity() {
    let t = relation(ReplicaIdentity::Default, "id* a b");
    let columns = "id* a b";
    check(
        columns,
        insert(&t, "1 x -"),
        Ok(
            r#"INSERT INTO "public"."t" ("id", "a", "b") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3) | 1 x -"#,
        ),
    );
    check(
        columns,
        update(&t, None, "1 x -"),
        Ok(
            r#"UPDATE ONLY "public"."t" SET "a" = $1, "b" = $2 WHERE "id" OPERATOR("pg_catalog".=) $3 | x - 1"#,
        ),
    );
    check(
        columns,
        update(&t, Some(key("1 - -")), "2 x -"),
        Ok(
            r#"UPDATE ONLY "public"."t" SET "id" = $1, "a" = $2, "b" = $3 WHERE "id" OPERATOR("pg_catalog".=) $4 | 2 x - 1"#,
        ),
    );
    check(
        columns,
        delete(&t, key("1 - -")),
        Ok(r#"DELETE FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 1"#),
    );
}

#[test]
fn several_key_columns_and_an_operator_of_an_extension() {
    for identity in [ReplicaIdentity::Default, ReplicaIdentity::Index] {
        let t = relation(identity, "a k2* b k1*");
        check(
            "k1:citext k2 a b",
            update(&t, None, "x 2 y 1"),
            Ok(
                r#"UPDATE ONLY "public"."t" SET "a" = $1, "b" = $2 WHERE "k2" OPERATOR("pg_catalog".=) $3 AND "k1" OPERATOR("public".=) $4 | x y 2 1"#,
            ),
        );
        check(
            "k1:citext k2 a b",
            delete(&t, key("- 2 - 1")),
            Ok(
                r#"DELETE FROM ONLY "public"."t" WHERE "k2" OPERATOR("pg_catalog".=) $1 AND "k1" OPERATOR("public".=) $2 | 2 1"#,
            ),
        );
    }
    check(
        "k:composite a",
        delete(&relation(ReplicaIdentity::Default, "k* a"), key("1 -")),
        Ok(
            r#"DELETE FROM ONLY "public"."t" WHERE "k"::"public"."part" OPERATOR("pg_catalog".=) $1::"public"."part" | 1"#,
        ),
    );
}

#[test]
fn full_identity_with_a_key_on_the_target() {
    let t = relation(ReplicaIdentity::Full, "a id");
    check(
        "id* a",
        update(&t, Some(full("x 1")), "y 1"),
        Ok(
            r#"UPDATE ONLY "public"."t" SET "a" = $1, "id" = $2 WHERE "id" OPERATOR("pg_catalog".=) $3 | y 1 1"#,
        ),
    );
    check(
        "id* a",
        delete(&t, full("- 1")),
        Ok(r#"DELETE FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 1"#),
    );
}

/// In the middle of a transaction several rows may have the key.
#[test]
fn full_identity_with_a_deferrable_key_on_the_target() {
    let t = relation(ReplicaIdentity::Full, "a id");
    let deferrable = TargetTable { key_deferrable: true, ..target("id* a") };
    let mut planner = planner([deferrable]);
    let changes = vec![update(&t, Some(full("x 1")), "x 2"), delete(&t, full("- 2"))];
    for form in [Form::Ordered, Form::Set] {
        let plan = plan_as(&mut planner, form, &[&segment(changes.clone())]).unwrap();
        let steps: Vec<String> = plan.steps.iter().map(text).collect();
        let row = |first: u32| {
            let a = SAME_A.replace("$N", &format!("${first}"));
            format!(
                r#" WHERE ctid = (SELECT ctid FROM ONLY "public"."t" WHERE {a} AND "id" OPERATOR("pg_catalog".=) ${} LIMIT 1)"#,
                first + 1
            )
        };
        let update = format!(r#"UPDATE ONLY "public"."t" SET "a" = $1, "id" = $2{} | x 2 x 1"#, row(3));
        assert_eq!(steps, [update, format!(r#"DELETE FROM ONLY "public"."t"{} | - 2"#, row(1))]);
        assert_eq!(plan.ordered, (form == Form::Set).then_some(Reason::Identity));
    }
}

/// Column `a` is as parameter `$N` says.
const SAME_A: &str = r#"CASE WHEN "a" IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', "a") END COLLATE "C" IS NOT DISTINCT FROM (SELECT CASE WHEN given IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', given) END FROM (SELECT CASE WHEN false THEN "a" ELSE $N END AS given) old)"#;

#[test]
fn full_identity_without_a_key() {
    let t = relation(ReplicaIdentity::Full, "a b");
    let both = |first: u32| {
        let a = SAME_A.replace("$N", &format!("${first}"));
        let b = SAME_A.replace("\"a\"", "\"b\"").replace("$N", &format!("${}", first + 1));
        format!(r#" WHERE ctid = (SELECT ctid FROM ONLY "public"."t" WHERE {a} AND {b} LIMIT 1)"#)
    };
    // The target's key does not serve: the source does not send all of it.
    for columns in ["a b", "a* b other*"] {
        let sql = format!(r#"DELETE FROM ONLY "public"."t"{} | 1 -"#, both(1));
        check(columns, delete(&t, full("1 -")), Ok(&sql));
        let sql = format!(r#"UPDATE ONLY "public"."t" SET "a" = $1, "b" = $2{} | 1 2 1 -"#, both(3));
        check(columns, update(&t, Some(full("1 -")), "1 2"), Ok(&sql));
        let sql = format!(r#"UPDATE ONLY "public"."t" SET "b" = $1{} | 2 1 -"#, both(2));
        check(columns, update(&t, Some(full("1 -")), "~ 2"), Ok(&sql));
    }
    // What the target computes identifies nothing.
    let sql = format!(
        r#"DELETE FROM ONLY "public"."t" WHERE ctid = (SELECT ctid FROM ONLY "public"."t" WHERE {} LIMIT 1) | 1"#,
        SAME_A.replace("$N", "$1")
    );
    check("a b:generated", delete(&t, full("1 2")), Ok(&sql));
    // A type without equality can be compared by its text.
    let sql = format!(r#"DELETE FROM ONLY "public"."t"{} | 1 2"#, both(1));
    check("a b:incomparable", delete(&t, full("1 2")), Ok(&sql));
}

#[test]
fn unchanged_toast_values_are_left_out() {
    let t = relation(ReplicaIdentity::Default, "id* a b");
    let columns = "id* a b";
    for (new, set) in [
        ("1 ~ y", r#"SET "b" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | y 1"#),
        ("1 x ~", r#"SET "a" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | x 1"#),
    ] {
        check(columns, update(&t, None, new), Ok(&format!(r#"UPDATE ONLY "public"."t" {set}"#)));
    }
    // Nothing is left to set: the row must be there all the same.
    check(
        columns,
        update(&t, None, "1 ~ ~"),
        Ok(r#"SELECT FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 1"#),
    );
    // A large key that did not change is found in the old one.
    check(
        columns,
        update(&t, Some(key("1 - -")), "~ x ~"),
        Ok(r#"UPDATE ONLY "public"."t" SET "a" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | x 1"#),
    );
    let missing = r#"came without the value of column "id""#;
    check(columns, update(&t, None, "~ x y"), Err(&format!("update of table public.t at 0/200 {missing}")));
    check(columns, insert(&t, "~ x y"), Err(&format!("insert of table public.t at 0/200 {missing}")));
    for old in ["- - -", "~ - -"] {
        let error = format!("delete of table public.t at 0/200 {missing}");
        check(columns, delete(&t, key(old)), Err(&error));
    }
    let only_key = relation(ReplicaIdentity::Default, "id*");
    check(
        "id*",
        update(&only_key, None, "1"),
        Ok(r#"SELECT FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 1"#),
    );
}

#[test]
fn statements_are_made_once_and_their_number_is_bounded() {
    let columns: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let all = format!("id* {}", columns.join(" "));
    let t = relation(ReplicaIdentity::Default, &all);
    let mut planner = planner([target(&all)]);
    let form = |number: usize| {
        let value = |bit: usize| if number & (1 << bit) == 0 { "~" } else { "x" };
        format!("1 {}", (0..10).map(value).collect::<Vec<_>>().join(" "))
    };
    let mut ids = HashSet::new();
    for number in 0..1_024 {
        let same = || update(&t, None, &form(number));
        let steps = plan(&mut planner, &segment(vec![same(), same()])).unwrap();
        assert_eq!(steps[0].statement.id, steps[1].statement.id);
        assert_eq!(text(&steps[0]), text(&steps[1]));
        assert!(ids.insert(steps[0].statement.id), "two forms, one statement");
        assert!(planner.shapes[&t.id].update_forms() <= UPDATE_FORMS_MAX);
    }
    let others = || vec![insert(&t, &form(1_023)), delete(&t, key(&form(0)))];
    let ids = |steps: Vec<Step>| steps.iter().map(|step| step.statement.id).collect::<Vec<_>>();
    let first = ids(plan(&mut planner, &segment(others())).unwrap());
    assert_eq!(first, ids(plan(&mut planner, &segment(others())).unwrap()));
}

#[test]
fn generated_columns_are_never_written() {
    let t = relation(ReplicaIdentity::Default, "id* a sum");
    let columns = "id* a sum:generated";
    check(
        columns,
        insert(&t, "1 x 5"),
        Ok(r#"INSERT INTO "public"."t" ("id", "a") OVERRIDING SYSTEM VALUE VALUES ($1, $2) | 1 x"#),
    );
    check(
        columns,
        update(&t, None, "1 x 5"),
        Ok(r#"UPDATE ONLY "public"."t" SET "a" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | x 1"#),
    );
    // Only what the target computes has changed.
    let t = relation(ReplicaIdentity::Default, "id* sum");
    check(
        "id* sum:generated",
        update(&t, None, "1 5"),
        Ok(r#"SELECT FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $1 | 1"#),
    );
    // Nothing to write.
    let t = relation(ReplicaIdentity::Default, "sum");
    check("sum:generated", insert(&t, "5"), Ok(r#"INSERT INTO "public"."t" DEFAULT VALUES |"#));
    let t = relation(ReplicaIdentity::Default, "");
    check("", insert(&t, ""), Ok(r#"INSERT INTO "public"."t" DEFAULT VALUES |"#));
}

#[test]
fn identity_columns_in_the_key() {
    let t = relation(ReplicaIdentity::Default, "id* a");
    let columns = "more extra:generated a id*:identity";
    check(
        columns,
        insert(&t, "1 x"),
        Ok(r#"INSERT INTO "public"."t" ("id", "a") OVERRIDING SYSTEM VALUE VALUES ($1, $2) | 1 x"#),
    );
    check(
        columns,
        update(&t, None, "1 x"),
        Ok(r#"UPDATE ONLY "public"."t" SET "a" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | x 1"#),
    );
    // UPDATE cannot set it: the row is replaced, with what only the target has, and what was not sent.
    let replace = |new: &str, values: &str, kept: &str, old: &str, last: u32| {
        format!(
            r#"WITH old AS (DELETE FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) ${last} RETURNING {kept}) INSERT INTO "public"."t" ({new}) OVERRIDING SYSTEM VALUE SELECT {values}, {old} FROM old"#,
        )
    };
    let sql = replace(r#""id", "a", "more""#, "$1, $2", r#""more""#, r#"old."more""#, 3);
    check(columns, update(&t, Some(key("1 -")), "2 x"), Ok(&format!("{sql} | 2 x 1")));
    let sql = replace(r#""id", "more", "a""#, "$1", r#""more", "a""#, r#"old."more", old."a""#, 2);
    check(columns, update(&t, Some(key("1 -")), "2 ~"), Ok(&format!("{sql} | 2 1")));
    check(
        "a id*:identity",
        update(&t, Some(key("1 -")), "2 x"),
        Ok(
            r#"WITH old AS (DELETE FROM ONLY "public"."t" WHERE "id" OPERATOR("pg_catalog".=) $3 RETURNING 1) INSERT INTO "public"."t" ("id", "a") OVERRIDING SYSTEM VALUE SELECT $1, $2 FROM old | 2 x 1"#,
        ),
    );
    // Another column of the key has changed, or none.
    let t = relation(ReplicaIdentity::Default, "id* k* a");
    check(
        "id*:identity k* a",
        update(&t, Some(key("1 2 -")), "1 3 x"),
        Ok(
            r#"UPDATE ONLY "public"."t" SET "k" = $1, "a" = $2 WHERE "id" OPERATOR("pg_catalog".=) $3 AND "k" OPERATOR("pg_catalog".=) $4 | 3 x 1 2"#,
        ),
    );
    let t = relation(ReplicaIdentity::Full, "id a");
    check(
        "id*:identity a",
        update(&t, Some(full("1 x")), "1 y"),
        Ok(r#"UPDATE ONLY "public"."t" SET "a" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | y 1"#),
    );
}

#[test]
fn identity_columns_outside_the_key() {
    let t = relation(ReplicaIdentity::Default, "k* n a");
    let columns = "k* n:identity a";
    // It may have changed, and nothing says that it has not.
    for (old, new) in [(None, "1 2 x"), (Some(key("1 - -")), "1 2 x")] {
        check(
            columns,
            update(&t, old, new),
            Ok(
                r#"WITH old AS (DELETE FROM ONLY "public"."t" WHERE "k" OPERATOR("pg_catalog".=) $4 RETURNING 1) INSERT INTO "public"."t" ("k", "n", "a") OVERRIDING SYSTEM VALUE SELECT $1, $2, $3 FROM old | 1 2 x 1"#,
            ),
        );
    }
    let t = relation(ReplicaIdentity::Full, "k n a");
    check(
        columns,
        update(&t, Some(full("1 2 x")), "1 2 y"),
        Ok(
            r#"UPDATE ONLY "public"."t" SET "k" = $1, "a" = $2 WHERE "k" OPERATOR("pg_catalog".=) $3 | 1 y 1"#,
        ),
    );
    check(
        columns,
        update(&t, Some(full("1 2 x")), "1 3 ~"),
        Ok(
            r#"WITH old AS (DELETE FROM ONLY "public"."t" WHERE "k" OPERATOR("pg_catalog".=) $3 RETURNING "a") INSERT INTO "public"."t" ("k", "n", "a") OVERRIDING SYSTEM VALUE SELECT $1, $2, old."a" FROM old | 1 3 1"#,
        ),
    );
}

#[test]
fn names_are_quoted() {
    let name = QualifiedName::new("My schema", "Tä\"ble;");
    let t = named(1, name.clone(), ReplicaIdentity::Default, "Id* \"q\" größe");
    let mut planner = planner([target_named(name, "größe \"q\" Id* Other")]);
    let changes = vec![insert(&t, "1 2 3"), update(&t, None, "1 2 3"), delete(&t, key("1 - -"))];
    let steps = plan(&mut planner, &segment(changes)).unwrap();
    let expected = [
        r#"INSERT INTO "My schema"."Tä""ble;" ("Id", """q""", "größe") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3) | 1 2 3"#,
        r#"UPDATE ONLY "My schema"."Tä""ble;" SET """q""" = $1, "größe" = $2 WHERE "Id" OPERATOR("pg_catalog".=) $3 | 2 3 1"#,
        r#"DELETE FROM ONLY "My schema"."Tä""ble;" WHERE "Id" OPERATOR("pg_catalog".=) $1 | 1"#,
    ];
    assert_eq!(steps.iter().map(text).collect::<Vec<_>>(), expected);
    assert_eq!(steps.iter().map(|step| step.kind).collect::<Vec<_>>(), Kind::ALL[..3]);
}

#[test]
fn tables_that_do_not_fit() {
    let t = relation(ReplicaIdentity::Default, "id* a");
    let no_column = r#"table public.t has no column "a" on the target"#;
    for change in [insert(&t, "1 2"), update(&t, None, "1 2"), delete(&t, key("1 -")), truncate(&[&t], false)]
    {
        check("id* A b", change, Err(no_column));
    }
    let no_equality =
        r#"column "id" of the replica identity of table public.t has a type without equality on the target"#;
    check("id:incomparable a", insert(&t, "1 2"), Err(no_equality));
    check(
        "id a:incomparable",
        update(&t, None, "1 2"),
        Ok(r#"UPDATE ONLY "public"."t" SET "a" = $1 WHERE "id" OPERATOR("pg_catalog".=) $2 | 2 1"#),
    );
    for (identity, old) in [(ReplicaIdentity::Nothing, key("1 -")), (ReplicaIdentity::Default, key("1 -"))] {
        let t = relation(identity, "id a");
        let error = |kind| format!("{kind} of table public.t, which has no replica identity");
        check("id* a", update(&t, None, "1 2"), Err(&error("update")));
        check("id* a", delete(&t, old), Err(&error("delete")));
        check(
            "id* a",
            insert(&t, "1 2"),
            Ok(r#"INSERT INTO "public"."t" ("id", "a") OVERRIDING SYSTEM VALUE VALUES ($1, $2) | 1 2"#),
        );
    }
    let binary = Err("table public.t came in binary format, which was not asked for");
    check("id* a", insert(&t, "1 !"), binary);
    check("id* a", update(&t, None, "! 1"), binary);
    check("id* a", delete(&t, key("! -")), binary);
    let error = plan(&mut Planner::new(), &segment(vec![insert(&t, "1 2")])).unwrap_err();
    assert_eq!(error, PlanError::UnknownTable(QualifiedName::new("public", "t")));
}

#[test]
fn after_a_failure_that_was_mended_it_goes_on() {
    let t = relation(ReplicaIdentity::Default, "id* a");
    let changes = vec![insert(&t, "1 2"), insert(&t, "2 ~"), insert(&t, "3 4")];
    for form in [Form::Ordered, Form::Set] {
        let (mut planner, mut next) = (planner([target("id* a")]), 0);
        planner.begin(form);
        planner.plan(&segment(changes.clone()), &mut next).unwrap_err();
        assert_eq!(next, 1);
        next += 1;
        planner.plan(&segment(changes.clone()), &mut next).unwrap();
        let plan = planner.finish().unwrap();
        assert_eq!((plan.steps.len(), plan.changes), (2, [2, 0, 0, 0]));
        // What is left over from one that was given up does not come back.
        planner.begin(form);
        planner.plan(&segment(changes[..1].to_vec()), &mut 0).unwrap();
        planner.begin(form);
        assert!(planner.finish().unwrap().steps.is_empty());
    }
}

#[test]
fn what_the_copy_holds_is_dropped() {
    let t = relation(ReplicaIdentity::Default, "id* a");
    // It was announced otherwise before the copy: this does not matter, nor what was sent.
    let before = relation(ReplicaIdentity::Nothing, "id gone");
    let other = named(2, QualifiedName::new("public", "other"), ReplicaIdentity::Default, "id*");
    let mut planner = planner([target("id* a"), target_named(QualifiedName::new("public", "other"), "id*")]);
    for (commit_lsn, kept) in [(0, 0), (COPIED - 1, 0), (COPIED, 3), (COPIED + 1, 3), (COPIED - 1, 0)] {
        let mut changes = vec![insert(&t, "1 x"), update(&t, None, "1 y"), delete(&t, key("1 -"))];
        if kept == 0 {
            changes.extend([
                insert(&before, "1 x"),
                update(&before, None, "~ ~"),
                delete(&before, key("- -")),
            ]);
            changes.push(truncate(&[&before, &other], false));
        }
        let segment = segment_at(commit_lsn, changes);
        let steps = plan(&mut planner, &segment).unwrap();
        assert_eq!(steps.len(), kept, "{commit_lsn}");
        assert!(steps.iter().all(|step| step.commit_lsn == segment.commit_lsn && step.relation == t));
    }
    // The table is copied again, later.
    let again = TargetTable { copy_lsn: SourceLsn::new(COMMIT + 1), ..target("id* a") };
    planner.learn(RelationId::new(1), again);
    let mut count =
        |commit_lsn| plan(&mut planner, &segment_at(commit_lsn, vec![insert(&t, "1 x")])).unwrap().len();
    assert_eq!((count(COMMIT), count(COMMIT + 1)), (0, 1));
}

#[test]
fn unknown_tables() {
    let table =
        |id, name: &str| named(id, QualifiedName::new("public", name), ReplicaIdentity::Default, "id*");
    let (a, b, c) = (table(1, "a"), table(2, "b"), table(3, "c"));
    let known = |name: &str| target_named(QualifiedName::new("public", name), "id*");
    let mut planner = Planner::new();
    let check = |planner: &mut Planner, changes: &dyn Fn() -> Vec<Change>, expected: &[&str]| {
        let unknown = planner.unknown(&segment(changes()));
        assert_eq!(unknown.iter().map(|relation| relation.name.name.as_str()).collect::<Vec<_>>(), expected);
        unknown.iter().for_each(|relation| planner.learn(relation.id, known(&relation.name.name)));
        // Once is enough, before and after planning.
        assert_eq!(planner.unknown(&segment(changes())), []);
        plan(planner, &segment(changes())).unwrap();
        assert_eq!(planner.unknown(&segment(changes())), []);
    };
    check(&mut planner, &Vec::new, &[]);
    let changes = || vec![insert(&b, "1"), insert(&a, "1"), insert(&b, "2"), delete(&b, key("1"))];
    check(&mut planner, &changes, &["b", "a"]);
    check(&mut planner, &|| vec![truncate(&[&a, &c, &b], false), insert(&c, "1")], &["c"]);
    // The same announcement again, as after a reconnect.
    check(&mut planner, &|| vec![insert(&table(1, "a"), "1")], &[]);
    // Renamed on the source.
    check(&mut planner, &|| vec![insert(&table(1, "d"), "1")], &["d"]);
}

#[test]
fn a_relation_in_another_shape() {
    let narrow = relation(ReplicaIdentity::Default, "id* a");
    let wide = relation(ReplicaIdentity::Default, "id* a b");
    let mut planner = planner([target("id* a")]);
    let first = || segment(vec![insert(&narrow, "1 x")]);
    let statement = |steps: Vec<Step>| steps[0].statement.id;
    let before = statement(plan(&mut planner, &first()).unwrap());
    // Announced again as it was: the statement stays.
    let again = relation(ReplicaIdentity::Default, "id* a");
    assert_eq!(statement(plan(&mut planner, &segment(vec![insert(&again, "1 x")])).unwrap()), before);

    // The new column was added on the target first. What is known of it is old, so it is asked for.
    let (name, id) = (QualifiedName::new("public", "t"), RelationId::new(1));
    let both = || segment(vec![insert(&narrow, "1 x"), insert(&wide, "1 x y"), update(&wide, None, "1 x y")]);
    assert_eq!(planner.unknown(&both()), std::slice::from_ref(&wide));
    planner.learn(id, target("id* a b"));
    assert_eq!(planner.unknown(&both()), []);
    let steps: Vec<String> = plan(&mut planner, &both()).unwrap().iter().map(text).collect();
    assert_eq!(
        steps,
        [
            r#"INSERT INTO "public"."t" ("id", "a") OVERRIDING SYSTEM VALUE VALUES ($1, $2) | 1 x"#,
            r#"INSERT INTO "public"."t" ("id", "a", "b") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3) | 1 x y"#,
            r#"UPDATE ONLY "public"."t" SET "a" = $1, "b" = $2 WHERE "id" OPERATOR("pg_catalog".=) $3 | x y 1"#,
        ]
    );

    // It was not: an error, until it is added.
    let wider = relation(ReplicaIdentity::Default, "id* a b c");
    let next = || segment(vec![insert(&wider, "1 x y z")]);
    for columns in ["id* a b", "id* a b other"] {
        assert_eq!(planner.unknown(&next()), std::slice::from_ref(&wider));
        planner.learn(id, target(columns));
        let error = ShapeError::NoColumn { table: name.clone(), column: "c".to_owned() };
        let error = PlanError::Shape { relation: Arc::clone(&wider), error };
        assert_eq!(plan(&mut planner, &next()).unwrap_err(), error);
        planner.forget(id);
    }
    assert_eq!(planner.unknown(&next()), std::slice::from_ref(&wider));
    planner.learn(id, target("id* a b c"));
    assert_eq!(plan(&mut planner, &next()).unwrap().len(), 1);
}

/// A definition that changes within a transaction that changed the table before.
#[test]
fn changed_before_in_the_transaction() {
    let narrow = relation(ReplicaIdentity::Default, "id* a");
    let wide = relation(ReplicaIdentity::Default, "id* a b");
    let id = RelationId::new(1);
    let mut planner = planner([target("id* a")]);
    let parts = |first, last, changes| {
        let mut segment = segment(changes);
        (segment.first, segment.end) = (first, segment.end.filter(|_| last));
        segment
    };
    let mut check = |segment: &Segment, planned: usize, expected: bool| {
        let mut next = 0;
        planner.begin(Form::Ordered);
        let outcome = planner.plan(segment, &mut next);
        assert_eq!(next, planned, "{outcome:?}");
        assert_eq!(planner.changed_before(segment, next, id), expected);
    };
    check(&parts(true, true, vec![insert(&wide, "1 x y")]), 0, false);
    check(&parts(true, true, vec![insert(&narrow, "1 x"), insert(&wide, "2 x y")]), 1, true);
    check(&parts(true, true, vec![insert(&wide, "1 x y")]), 0, false);
    // In segments.
    check(&parts(true, false, vec![insert(&narrow, "1 x")]), 1, true);
    check(&parts(false, true, vec![insert(&wide, "2 x y")]), 0, true);
    check(&parts(true, true, vec![insert(&wide, "1 x y")]), 0, false);

    // Mended, it goes on from there.
    let segment = segment(vec![insert(&narrow, "1 x"), insert(&wide, "2 x y"), insert(&wide, "3 x y")]);
    for form in [Form::Ordered, Form::Set] {
        planner.learn(id, target("id* a"));
        planner.begin(form);
        let mut next = 0;
        planner.plan(&segment, &mut next).unwrap_err();
        planner.push(Step::alter(Sql::new("ALTER"), &wide, segment.commit_lsn)).unwrap();
        planner.learn(id, target("id* a b"));
        planner.plan(&segment, &mut next).unwrap();
        let kinds: Vec<_> = planner.finish().unwrap().steps.iter().map(|step| step.kind).collect();
        assert_eq!(kinds, [Kind::Insert, Kind::Alter, Kind::Insert, Kind::Insert]);
    }
}

#[test]
fn definitions_that_do_not_fit() {
    let t = relation(ReplicaIdentity::Default, "id* a");
    let check = |target: &str, expected: Option<&str>| {
        let planned = plan(&mut planner([self::target(target)]), &segment(vec![insert(&t, "1 x")]));
        assert_eq!(planned.err().map(|error| error.to_string()).as_deref(), expected, "{target}");
    };
    check("id* a other", None);
    check("other a id*", None);
    check(
        "id* a:int",
        Some(r#"column "a" of table public.t has another type on the source than on the target"#),
    );
    let gone = r#"column "b" of table public.t is not on the source any more, and NOT NULL on the target"#;
    check("id* a b:required", Some(gone));
    check("id* a:required", None);
    check("id*", Some(r#"table public.t has no column "a" on the target"#));
}

mod resolve;
mod set;
mod truncate;
