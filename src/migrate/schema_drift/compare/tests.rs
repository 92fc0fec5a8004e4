use super::*;
use crate::catalog::TableColumn;
use crate::pg::Oid;

use crate::store::SchemaChange;
use SchemaChange::{Changed, Dropped, Made};
use SchemaObjectKind::{
    Constraint, Default as OfColumn, Domain, DomainConstraint, Enum, EnumLabel, Function, Index,
    MaterializedView, Rule, Sequence, Trigger, View,
};

fn name(name: &str) -> QualifiedName {
    QualifiedName::new("public", name)
}

/// On a table, or, where that is empty, by itself.
fn key(kind: SchemaObjectKind, of: &str, object: &str) -> SchemaObjectKey {
    SchemaObjectKey { kind, of: name(of), name: object.to_owned() }
}

fn object(kind: SchemaObjectKind, of: &str, object: &str, text: &str) -> SchemaObject {
    let (shape, statement) = text.split_once('|').unwrap_or(("", text));
    let (shape, statement) = (shape.to_owned(), statement.to_owned());
    SchemaObject { key: key(kind, of, object), oid: Oid::new(1), shape, statement }
}

fn recorded(objects: &[SchemaObject]) -> Vec<RecordedObject> {
    objects.iter().map(RecordedObject::from).collect()
}

fn table(of: &str, oid: u32, parents: &[u32]) -> Table {
    Table {
        oid: Oid::new(oid),
        name: name(of),
        parents: parents.iter().copied().map(Oid::new).collect(),
        columns: vec![TableColumn::example(1, "a", 23)],
        ..Table::example(of)
    }
}

fn shown(outcome: &Outcome) -> Vec<(SchemaChange, &str)> {
    outcome.drift.iter().map(|drift| (drift.change, drift.statement.as_str())).collect()
}

/// `?`: recorded, but it is not certain as what. `same`: both servers are of one version.
fn check(
    kind: SchemaObjectKind,
    [then, now, there]: [Option<&str>; 3],
    same: bool,
    expected: Option<(SchemaChange, &str)>,
) {
    let of = if matches!(kind, View | MaterializedView | Function) { "" } else { "t" };
    let one = |text: Option<&str>| -> Vec<SchemaObject> {
        text.map(|text| object(kind, of, "x", text)).into_iter().collect()
    };
    let mut recorded = recorded(&one(then));
    if then == Some("?") {
        recorded[0].statement = None;
    }
    let (now, there, tables) = (one(now), one(there), [table("t", 1, &[])]);
    let compared = Compared {
        then: &recorded,
        now: &now,
        there: &there,
        tables: &tables,
        tables_there: &tables,
        same_words: same,
        ..Compared::default()
    };
    let outcome = compared.outcome();
    let context = format!("{kind:?} {then:?} {now:?} {there:?}");
    assert_eq!(shown(&outcome), expected.into_iter().collect::<Vec<_>>(), "{context}");
    let as_recorded = differing(&recorded, &now).is_empty();
    let settled = !as_recorded && expected.is_none();
    assert_eq!(outcome.taken.len() + outcome.gone.len() > 0, settled, "{context}");
}

#[test]
fn then_now_there() {
    let (a, b, unknown) = (Some("A"), Some("B"), Some("?"));
    let dropped = Some((Dropped, "DROP INDEX \"public\".\"x\";"));
    let remade = |change| Some((change, "DROP INDEX \"public\".\"x\"; B;"));
    // Nothing happened, whatever the target has.
    check(Index, [a, a, a], true, None);
    check(Index, [a, a, None], true, None);
    check(Index, [a, a, b], true, None);
    // Made.
    check(Index, [None, a, None], true, Some((Made, "A;")));
    check(Index, [None, a, a], true, None);
    check(Index, [None, b, a], true, remade(Made));
    check(Index, [None, b, a], false, None);
    // Changed.
    check(Index, [a, b, a], true, remade(Changed));
    check(Index, [a, b, a], false, remade(Changed));
    check(Index, [a, b, b], false, None);
    check(Index, [a, b, None], true, Some((Changed, "B;")));
    // Dropped.
    check(Index, [a, None, a], true, dropped);
    check(Index, [a, None, b], false, dropped);
    check(Index, [a, None, None], true, None);
    // Nobody knows what the target has of it: look there.
    check(Index, [unknown, a, a], true, None);
    check(Index, [unknown, b, a], false, remade(Changed));
    check(Index, [unknown, a, None], true, Some((Made, "A;")));
    check(Index, [unknown, None, a], true, dropped);
    check(Index, [unknown, None, None], true, None);
}

#[test]
fn statements() {
    let changed = |kind, now, there, expected| {
        check(kind, [Some("OLD"), Some(now), Some(there)], true, Some((Changed, expected)));
    };
    changed(Constraint, "A", "B", "ALTER TABLE \"public\".\"t\" DROP CONSTRAINT \"x\"; A;");
    changed(Constraint, "A", "A NOT VALID", "ALTER TABLE \"public\".\"t\" VALIDATE CONSTRAINT \"x\";");
    changed(Trigger, "A", "B", "DROP TRIGGER \"x\" ON \"public\".\"t\"; A;");
    changed(Rule, "A", "B", "DROP RULE \"x\" ON \"public\".\"t\"; A;");
    changed(Sequence, "CREATE SEQUENCE x A", "B", "ALTER SEQUENCE x A;");
    changed(View, "a int\nb int\n|A", "a int\n|B", "A;");
    changed(View, "a int\n|A", "a int\nb int\n|B", "DROP VIEW \"public\".\"x\"; A;");
    changed(MaterializedView, "a int\n|A", "a int\n|B", "DROP MATERIALIZED VIEW \"public\".\"x\"; A;");
    changed(Function, "f int\n|A", "f int\n|B", "A;");
    changed(Function, "f int\n|A", "f text\n|B", "DROP ROUTINE \"public\".x; A;");
    check(Rule, [Some("A"), None, Some("A")], true, Some((Dropped, "DROP RULE \"x\" ON \"public\".\"t\";")));
    check(Function, [Some("A"), None, Some("A")], true, Some((Dropped, "DROP ROUTINE \"public\".x;")));
}

/// What a column of the target may need stays, and a label stays what it is by another name.
#[test]
fn domains_and_enums() {
    let t = "\"public\".\"t\"";
    let remade = format!("ALTER DOMAIN {t} DROP CONSTRAINT \"x\"; B;");
    check(DomainConstraint, [Some("A"), Some("B"), Some("A")], true, Some((Changed, &remade)));
    let dropped = format!("ALTER DOMAIN {t} DROP CONSTRAINT \"x\";");
    check(DomainConstraint, [Some("A"), None, Some("A")], true, Some((Dropped, &dropped)));
    let labels = |names: &[(&str, &str, u32)]| -> Vec<SchemaObject> {
        let label = |&(name, text, oid): &(&str, &str, u32)| SchemaObject {
            oid: Oid::new(oid),
            ..object(EnumLabel, "mood", name, text)
        };
        names.iter().map(label).collect()
    };
    let then = labels(&[("sad", "A", 1), ("it's ok", "B AFTER 'sad'", 2)]);
    let now = labels(&[("sad", "A", 1), ("fine", "F AFTER 'sad'", 2), ("new", "N AFTER 'fine'", 3)]);
    let there = labels(&[("sad", "A", 11), ("it's ok", "B AFTER 'sad'", 12)]);
    let found = outcome(&then, &now, &there, &[]);
    let renamed = "ALTER TYPE \"public\".\"mood\" RENAME VALUE 'it''s ok' TO 'fine';";
    assert_eq!(shown(&found), [(Made, renamed), (Made, "N AFTER 'fine';")]);
    // Done there; where the new one stands is said in other words.
    let there = labels(&[("sad", "A", 11), ("fine", "F AFTER 'sad'", 12), ("new", "N AFTER 'sad'", 13)]);
    let found = outcome(&then, &now, &there, &[]);
    assert_eq!((shown(&found), found.taken.len(), found.gone.len()), (vec![], 2, 1));
    // The whole type is dropped.
    let [domain, whole] = [object(Domain, "", "dom", "D"), object(Enum, "", "mood", "E")];
    let then: Vec<SchemaObject> = then.into_iter().chain([domain, whole]).collect();
    assert_eq!(shown(&outcome(&then, &[], &then, &[])), []);
}

fn outcome(then: &[SchemaObject], now: &[SchemaObject], there: &[SchemaObject], tables: &[Table]) -> Outcome {
    let then = recorded(then);
    let compared = Compared {
        then: &then,
        now,
        there,
        tables,
        tables_there: tables,
        same_words: true,
        ..Compared::default()
    };
    compared.outcome()
}

#[test]
fn what_is_on_a_view_goes_with_it() {
    let then = [
        object(View, "", "v", "a\n|V"),
        object(Trigger, "v", "g", "G"),
        object(Trigger, "v", "h", "H"),
        object(View, "", "w", "W"),
        object(Trigger, "w", "g", "G"),
    ];
    let now = [object(View, "", "v", "b\n|V2"), object(Trigger, "v", "g", "G2")];
    let found = outcome(&then, &now, &then, &[]);
    let expected =
        [(Changed, "DROP VIEW \"public\".\"v\"; V2; G2;"), (Dropped, "DROP VIEW \"public\".\"w\";")];
    assert_eq!(shown(&found), expected);
    // A materialised one in place of another.
    let now = [object(MaterializedView, "", "v", "a\n|M"), object(Index, "v", "i", "I")];
    let found = outcome(&then[..1], &now, &then[..1], &[]);
    assert_eq!(shown(&found), [(Changed, "DROP VIEW \"public\".\"v\"; M; I;")]);
    let found = outcome(&then[..1], &now, &now, &[]);
    assert_eq!((found.drift.len(), &found.gone[..]), (0, &[then[0].key.clone()][..]));
}

#[test]
fn order() {
    let then = [object(Function, "", "f()", "F"), object(Index, "t", "i", "I"), object(View, "", "v", "V")];
    let now = [object(Function, "", "g()", "G"), object(Constraint, "t", "i", "C")];
    let found = outcome(&then, &now, &then, &[table("t", 1, &[])]);
    let statements: Vec<&str> = found.drift.iter().map(|drift| drift.statement.as_str()).collect();
    assert_eq!(statements[..3], ["DROP INDEX \"public\".\"i\";", "G;", "C;"]);
    assert!(
        statements[3..].contains(&"DROP VIEW \"public\".\"v\";") && statements.len() == 5,
        "{statements:?}"
    );
}

#[test]
fn defaults_of_partitions() {
    let tables = [table("p", 1, &[]), table("p1", 2, &[1]), table("p11", 3, &[2]), table("q", 4, &[])];
    let of = |table: &str, text: &str| object(OfColumn, table, "a", &format!("{text}|{table} {text}"));
    let check = |now: &[SchemaObject], expected: &[&str]| {
        let then = [of("p", "1"), of("p1", "1"), of("p11", "1")];
        let found = outcome(&then, now, &then, &tables);
        let mut said: Vec<String> =
            found.drift.iter().map(|drift| drift.statement.replace("\"public\".", "")).collect();
        said.sort();
        assert_eq!(said, expected);
    };
    check(
        &[of("p", "2"), of("p1", "2"), of("p11", "2")],
        &["ALTER TABLE \"p\" ALTER COLUMN \"a\" SET DEFAULT 2;"],
    );
    check(&[], &["ALTER TABLE \"p\" ALTER COLUMN \"a\" DROP DEFAULT;"]);
    check(
        &[of("p", "1"), of("p1", "2"), of("p11", "2")],
        &["ALTER TABLE \"p1\" ALTER COLUMN \"a\" SET DEFAULT 2;"],
    );
    check(
        &[of("p", "2"), of("p1", "1"), of("p11", "1")],
        &["ALTER TABLE ONLY \"p\" ALTER COLUMN \"a\" SET DEFAULT 2;"],
    );
    check(
        &[of("p", "2"), of("p1", "3"), of("p11", "3")],
        &[
            "ALTER TABLE \"p1\" ALTER COLUMN \"a\" SET DEFAULT 3;",
            "ALTER TABLE ONLY \"p\" ALTER COLUMN \"a\" SET DEFAULT 2;",
        ],
    );
    check(
        &[of("p", "1"), of("p1", "1"), of("p11", "1"), of("q", "9")],
        &["ALTER TABLE \"q\" ALTER COLUMN \"a\" SET DEFAULT 9;"],
    );
}

/// Tables and columns that one side lacks, and what is not moved, are no business of this.
#[test]
fn what_is_not_meant() {
    let (here, both) = ([table("new", 1, &[]), table("t", 2, &[])], [table("t", 2, &[])]);
    let now = [
        object(Index, "new", "i", "I"),
        object(Index, "t", "i", "I"),
        object(OfColumn, "t", "b", "1|D"),
        object(Constraint, "t", "fk", "K"),
        object(View, "", "v", "V"),
        object(Index, "v", "i", "VI"),
    ];
    let gone = recorded(&[object(Index, "gone", "i", "I")]);
    let there = [object(Index, "gone", "i", "I")];
    let check = |left_out: LeftOut, tables_there: &[Table], expected: &[&str]| {
        let compared = Compared {
            then: &gone,
            now: &now,
            there: &there,
            tables: &here,
            tables_there,
            left_out,
            same_words: true,
            ..Compared::default()
        };
        let found = compared.outcome();
        let said: Vec<&str> = found.drift.iter().map(|drift| drift.statement.as_str()).collect();
        assert_eq!(said, expected);
    };
    check(LeftOut::default(), &both, &["I;", "K;", "V;", "VI;"]);
    let keys = HashSet::from([(name("t"), "fk".to_owned())]);
    check(LeftOut { constraints: keys, ..LeftOut::default() }, &both, &["I;", "V;", "VI;"]);
    check(LeftOut { tables: HashSet::from([name("t")]), ..LeftOut::default() }, &both, &["V;", "VI;"]);
    let attached = [Table { bounds: Some("DEFAULT".to_owned()), ..table("t", 2, &[1]) }];
    check(LeftOut::default(), &attached, &["V;", "VI;"]);
}

#[test]
fn what_changed_while_it_was_dumped() {
    let before = [
        object(Index, "t", "same", "A"),
        object(Index, "t", "changed", "A"),
        object(Index, "t", "gone", "A"),
    ];
    let after =
        [object(Index, "t", "same", "A"), object(Index, "t", "changed", "B"), object(Index, "t", "new", "A")];
    let mut found: Vec<(String, Option<String>)> =
        certain(&before, &after).into_iter().map(|object| (object.key.name, object.statement)).collect();
    found.sort();
    let expected = [("changed", None), ("gone", None), ("new", None), ("same", Some("A"))];
    assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.map(str::to_owned))));
}
