use super::pieces::{Emptied, Manner, pieces, statements};
use crate::catalog::{ExtensionTable, Generated, Table, TableColumn, TargetColumn, TargetTable};
use crate::limits::{COPY_FREEZE_BYTES_MIN, COPY_PIECE_BYTES_MIN, COPY_SHARED_BYTES_MIN};
use crate::pg::Oid;

const PAGE: u64 = 8192;
const GIB: u64 = 1 << 30;

/// A column of a type and a modifier, named after both and its place.
fn column(number: usize, type_oid: u32, type_modifier: i32) -> TableColumn {
    let number = i16::try_from(number).expect("few columns");
    TableColumn { type_modifier, ..TableColumn::example(number, &format!("c{number}"), type_oid) }
}

fn table(bytes: u64, types: &[u32]) -> Table {
    let columns = types.iter().enumerate().map(|(index, oid)| column(index, *oid, -1)).collect();
    Table { columns, pages: bytes / PAGE, bytes, ..Table::example("t") }
}

/// The table as it is on the target.
fn there(table: &Table) -> TargetTable {
    let column =
        |column: &TableColumn| TargetColumn { column: column.clone(), equality_operator: None, cast: None };
    TargetTable {
        oid: Oid::new(2),
        name: table.name.clone(),
        kind: table.kind,
        columns: table.columns.iter().map(column).collect(),
        key: Vec::new(),
        key_deferrable: false,
        has_replica_triggers: false,
        has_origin_triggers: false,
        is_referenced: false,
        condition: None,
        writable: true,
    }
}

const BOOL: u32 = 16;
const NAME: u32 = 19;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const OID: u32 = 26;
const MONEY: u32 = 790;
const INT4_ARRAY: u32 = 1007;
const TIMESTAMPTZ: u32 = 1184;
const INTERVAL: u32 = 1186;
const NUMERIC: u32 = 1700;
const REGCLASS: u32 = 2205;
const OF_A_USER: u32 = 16_400;

#[test]
fn binary_where_every_type_allows_and_it_pays() {
    let check = |types: &[u32], expected: bool| {
        let table = table(PAGE, types);
        assert_eq!(Manner::of(&table, Some(&there(&table))).binary, expected, "{types:?}");
    };
    check(&[INT4, TEXT], true);
    check(&[BOOL, NUMERIC, TIMESTAMPTZ], true);
    check(&[BOOL, NUMERIC], false);
    check(&[INT4, NUMERIC, NUMERIC, NUMERIC], false);
    check(&[], false);
    for other in [NAME, OID, MONEY, INT4_ARRAY, INTERVAL, REGCLASS, OF_A_USER] {
        check(&[INT4, TIMESTAMPTZ, other], false);
    }
}

#[test]
fn binary_between_equal_columns_alone() {
    let source = table(PAGE, &[INT4, NUMERIC, TIMESTAMPTZ]);
    let check = |change: fn(&mut TargetTable), expected: bool| {
        let mut target = there(&source);
        change(&mut target);
        assert_eq!(Manner::of(&source, Some(&target)).binary, expected);
    };
    check(|_| {}, true);
    check(|target| target.columns.reverse(), true);
    check(|target| target.columns[0].column.type_oid = Oid::new(TIMESTAMPTZ), false);
    check(|target| target.columns[1].column.type_modifier = 786_438, false);
    check(|target| target.columns[2].column.name.push('x'), false);
    check(|target| drop(target.columns.pop()), false);
    assert_eq!(Manner::of(&source, None), Manner::default());
    // What is computed on the target is not sent.
    let mut source = source;
    source.columns.push(TableColumn { generated: Generated::Stored, ..column(3, OF_A_USER, -1) });
    assert!(Manner::of(&source, Some(&there(&source))).binary);
}

#[test]
fn frozen_where_nothing_stands_in_the_way() {
    let check = |bytes: u64, change: fn(&mut TargetTable), expected: bool| {
        let source = table(bytes, &[INT4]);
        let mut target = there(&source);
        change(&mut target);
        assert_eq!(Manner::of(&source, Some(&target)).freeze, expected);
    };
    check(COPY_FREEZE_BYTES_MIN, |_| {}, true);
    check(COPY_FREEZE_BYTES_MIN - 1, |_| {}, false);
    check(GIB, |target| target.has_origin_triggers = true, false);
    check(GIB, |target| target.has_replica_triggers = true, false);
}

#[test]
fn statements_as_they_are_sent() {
    let check = |pages: Option<(u64, Option<u64>)>, binary: bool, freeze: bool, from: &str, to: &str| {
        let table = table(PAGE, &[INT4, TEXT]);
        let mut piece = pieces(std::slice::from_ref(&table), true, 2).remove(0);
        piece.pages = pages;
        let manner = Manner { binary, freeze, ..Manner::default() };
        let (out, into) = statements(&table, &piece, &manner);
        assert_eq!((out.as_str(), into.as_str()), (from, to));
    };
    let (out, into) =
        (r#"COPY "public"."t" ("c0", "c1") TO STDOUT"#, r#"COPY "public"."t" ("c0", "c1") FROM STDIN"#);
    check(None, false, false, out, &format!("BEGIN; {into}"));
    check(None, true, false, &format!("{out} (FORMAT binary)"), &format!("BEGIN; {into} (FORMAT binary)"));
    let emptied = format!(r#"BEGIN; TRUNCATE ONLY "public"."t"; {into}"#);
    check(None, false, true, out, &format!("{emptied} (FREEZE)"));
    check(None, true, true, &format!("{out} (FORMAT binary)"), &format!("{emptied} (FORMAT binary, FREEZE)"));
    // A range never empties the table, nor freezes.
    let select = r#"COPY (SELECT "c0", "c1" FROM ONLY "public"."t" WHERE ctid >= '"#;
    let first = format!("{select}(0,0)'::tid AND ctid < '(7,0)'::tid) TO STDOUT (FORMAT binary)");
    check(Some((0, Some(7))), true, true, &first, &format!("BEGIN; {into} (FORMAT binary)"));
    check(
        Some((7, None)),
        false,
        true,
        &format!("{select}(7,0)'::tid) TO STDOUT"),
        &format!("BEGIN; {into}"),
    );
}

#[test]
fn what_is_replaced_goes_in_the_same_transaction() {
    let check = |change: fn(&mut TargetTable), emptied: &str| {
        let table = table(GIB, &[INT4]);
        let piece = pieces(std::slice::from_ref(&table), false, 2).remove(0);
        let mut target = there(&table);
        change(&mut target);
        let manner = Manner { emptied: Emptied::again(Some(&target)), ..Manner::default() };
        let (_, into) = statements(&table, &piece, &manner);
        assert_eq!(into.as_str(), format!("BEGIN; {emptied}COPY \"public\".\"t\" (\"c0\") FROM STDIN"));
    };
    check(|_| {}, "TRUNCATE ONLY \"public\".\"t\"; ");
    check(|target| target.is_referenced = true, "DELETE FROM ONLY \"public\".\"t\"; ");
    let of_extension = |target: &mut TargetTable| target.condition = Some("WHERE a > 1".to_owned());
    check(of_extension, "DELETE FROM ONLY \"public\".\"t\" WHERE a > 1; ");
    check(|target| (target.condition, target.writable) = (Some(String::new()), false), "");
}

#[test]
fn of_an_extension_come_the_rows_of_its_users() {
    let of = |condition: &str| {
        let extension = Some(ExtensionTable { name: "ext".to_owned(), condition: condition.to_owned() });
        let table = Table { extension, ..table(10 * GIB, &[INT4]) };
        let [piece] = &pieces(std::slice::from_ref(&table), true, 8)[..] else { panic!("in one piece") };
        statements(&table, piece, &Manner::default()).0.to_string()
    };
    assert_eq!(of(""), r#"COPY "public"."t" ("c0") TO STDOUT"#);
    assert_eq!(of("WHERE a > 1"), r#"COPY (SELECT "c0" FROM ONLY "public"."t" WHERE a > 1) TO STDOUT"#);
}

#[test]
fn pieces_cover_every_page_once_and_are_even() {
    for (bytes, jobs) in [(2 * GIB, 2), (10 * GIB, 2), (10 * GIB, 8), (1000 * GIB, 32), (GIB, 2)] {
        let table = table(bytes, &[INT4]);
        let mut pieces = pieces(std::slice::from_ref(&table), true, jobs);
        pieces.sort_by_key(|piece| piece.pages);
        let mut next = 0;
        let mut steps = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let (start, end) = piece.pages.expect("a range");
            assert_eq!(start, next);
            assert_eq!(end.is_none(), index + 1 == pieces.len(), "the last has no end, and no other");
            next = end.unwrap_or(table.pages);
            steps.push(next - start);
        }
        assert_eq!(next, table.pages);
        let (most, least) = (steps.iter().max().expect("some"), steps.iter().min().expect("some"));
        assert!(most - least <= steps.len() as u64, "{steps:?}");
        assert!(steps.len() >= jobs, "{bytes} bytes for {jobs} jobs: {}", steps.len());
        assert!(most * PAGE <= (bytes / (jobs as u64 * 16)).max(COPY_PIECE_BYTES_MIN) * 2);
    }
}

#[test]
fn whole_where_ranges_gain_nothing() {
    let whole = |tables: &[Table], ranges: bool, jobs: usize| {
        pieces(tables, ranges, jobs).iter().map(|piece| piece.pages.is_none()).collect::<Vec<_>>()
    };
    let large = table(10 * GIB, &[INT4]);
    assert_eq!(whole(std::slice::from_ref(&large), false, 4), [true], "before 14");
    assert_eq!(whole(std::slice::from_ref(&large), true, 1), [true], "one job");
    assert_eq!(whole(&[table(GIB, &[])], true, 4), [true], "no columns");
    assert_eq!(whole(&[table(COPY_SHARED_BYTES_MIN - PAGE, &[INT4])], true, 2), [true], "small");
    // Most of a table's bytes may be outside its pages.
    assert_eq!(whole(&[Table { pages: 2, ..large.clone() }], true, 2), [true], "all in TOAST");
    // Among many tables of its size, a table is one piece.
    let many = vec![table(GIB, &[INT4]); 40];
    assert_eq!(whole(&many, true, 2), [true; 40]);
}

#[test]
fn the_largest_first() {
    let tables: Vec<Table> = [1, 3, 2].map(|n| table(n << 20, &[INT4])).into();
    let order: Vec<usize> = pieces(&tables, true, 2).iter().map(|piece| piece.table).collect();
    assert_eq!(order, [1, 2, 0]);
}
