//! Which tables are copied in binary: those whose columns are all of a few builtin types, where that is cheaper.
//!
//! Binary rows pass from one server to the other unseen, and the one that reads them checks little but lengths. So the
//! column has to be of the same type on both sides, and the type one whose binary form is the same in every supported
//! version. Not on the list, though builtin: what holds identifiers of objects, which differ between clusters (`oid`,
//! `regclass`, …); `interval`, whose infinity (17) older servers take for a number; `money` and `xml`, whose values
//! depend on settings; arrays and ranges, which hold other types; what is rare. No type of a user or an extension is on
//! it, a domain or enum no more than others.
//!
//! Text is converted between encodings in either form, but a side of encoding SQL_ASCII converts nothing: there the
//! copy stays text.

use crate::catalog::{Generated, Table, TableColumn, TargetTable};
use crate::pg::{Oid, Sql};
use crate::wire::{self, Session};

/// Whether to copy `source` to `target` in binary.
pub fn pays(source: &Table, target: &TargetTable) -> bool {
    let mut columns = source.columns.iter().filter(|column| column.generated == Generated::No).peekable();
    if columns.peek().is_none() {
        return false;
    }
    let gains = columns.map(|column| {
        let same = target.column(&column.name).is_some_and(|there| {
            there.column.type_oid == column.type_oid && there.column.type_modifier == column.type_modifier
        });
        if same { gain(column.type_oid) } else { None }
    });
    gains.sum::<Option<i32>>().is_some_and(|gain| gain > 0)
}

/// Whether this server converts text to what the session asks for.
pub fn converts(session: &Session) -> bool {
    session.parameter("server_encoding") != Some("SQL_ASCII")
}

/// Whether the table's columns have, in the session's snapshot, the types that they are known by: what was sent as
/// another type would be read without a word where the lengths fit.
///
/// A table that was rewritten since the snapshot shows no rows to it; a type that is changed without that stays the same
/// in its bytes.
pub async fn is_as_known(session: &mut Session, table: &Table) -> Result<bool, wire::Error> {
    let sql = Sql::new(
        "SELECT attname, atttypid FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped AND attrelid = ",
    )
    .number(table.oid.get());
    let rows = session.query(&sql).await?;
    let as_now = |column: &TableColumn| {
        let oid = column.type_oid.to_string();
        rows.iter().any(|row| row.text(0) == Some(&column.name) && row.text(1) == Some(&oid))
    };
    Ok(table.columns.iter().all(as_now))
}

/// What one value of a type gains in binary: nanoseconds of both servers' CPU together, less 3 for each byte that it is
/// longer on the wire. Measured on PostgreSQL 15 with a million rows of four values each, as the mean of short and long
/// values where these differ. `None` for a type that is not to be copied in binary.
///
/// | | text | binary | bytes, text and binary |
/// |---|---|---|---|
/// | `int8`: 100,000, 10^18 | 122, 242 | 105, 148 | 6, 20; 12.5 |
/// | `numeric`: 10^6, 30 digits | 222, 338 | 218, 182 | 10, 37; 18.5, 20.5 |
/// | `text` of 5, 32, 100 | 152, 235, 570 | 142, 242, 372 | 3.5 more |
/// | `bytea` of 100 | 1130 | 295 | 196; 100.5 |
/// | `timestamptz` | 612 | 165 | 26; 12.5 |
const fn gain(type_oid: Oid) -> Option<i32> {
    Some(match type_oid.get() {
        BOOL => -30,
        NUMERIC => -20,
        INT2 => 5,
        TEXT | BPCHAR | VARCHAR => 20,
        INT4 | INT8 => 50,
        INET | CIDR => 75,
        JSON | JSONB => 100,
        FLOAT4 => 120,
        TIME => 160,
        DATE => 180,
        FLOAT8 => 220,
        TIMESTAMP => 360,
        UUID => 400,
        TIMESTAMPTZ => 480,
        BYTEA => 1_000,
        _ => return None,
    })
}

// `pg_type.oid`: never changed since 7.3, or since the type was new.
const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const JSON: u32 = 114;
const CIDR: u32 = 650;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const INET: u32 = 869;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const DATE: u32 = 1082;
const TIME: u32 = 1083;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
const NUMERIC: u32 = 1700;
const UUID: u32 = 2950;
const JSONB: u32 = 3802;
