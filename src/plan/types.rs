//! Whether a column of the target has the type of a column of the source, or one that keeps all its values as they are.
//!
//! Values go to the target as text. A column of another type may take that text and keep less of it without a word: a
//! `timestamp` drops the zone of a `timestamptz`, a `numeric(10,2)` rounds. So the types must be the same. There is a
//! short list of types that hold every text of another unchanged; but a target's wider type may also mean that the
//! source narrowed its own, and rewrote its rows without sending them: whoever asks must know that it did not.
//!
//! Builtin types have the same identifiers on all servers. Others are known by their names: the one that the source's
//! catalog has for the identifier now, and the one that the stream said (for a domain, its base type's).

use crate::pg::{Column, Oid, QualifiedName};

/// The type of a target's column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetType {
    /// `pg_type.oid` on the target.
    pub oid: Oid,
    /// Schema and name.
    pub name: QualifiedName,
    /// `atttypmod`; -1 for none.
    pub modifier: i32,
    /// Of a domain: the type below it, and its modifier.
    pub base: Option<(QualifiedName, i32)>,
}

impl TargetType {
    /// Whether it is the type of `column`; `current` is the name that the source's catalog has for that type, unless it
    /// is builtin or gone.
    pub fn same_as(&self, column: &Column, current: Option<&QualifiedName>) -> bool {
        let same = if is_builtin(column.type_oid) {
            self.oid == column.type_oid
        } else {
            // A type that is gone from the source is known by what the stream said alone.
            current.or(column.type_name.as_ref()) == Some(&self.name)
        };
        (same && self.modifier == column.type_modifier) || (current.is_none() && self.is_domain_over(column))
    }

    /// Whether it is a domain, without a length or precision, over the type that the stream said: all that is known of
    /// a domain that is gone from the source.
    fn is_domain_over(&self, column: &Column) -> bool {
        let base = self.base.as_ref().filter(|(_, modifier)| *modifier == -1);
        !is_builtin(column.type_oid) && base.is_some_and(|(name, _)| Some(name) == column.type_name.as_ref())
    }

    /// Whether it keeps every value of `column` as it is sent.
    pub fn keeps(&self, column: &Column, current: Option<&QualifiedName>) -> bool {
        let same_modifier = self.modifier == column.type_modifier || self.modifier == -1;
        if is_builtin(column.type_oid) {
            return (self.oid == column.type_oid && same_modifier)
                || (is_builtin(self.oid) && self.is_wider(column.type_oid, column.type_modifier));
        }
        let announced = column.type_name.as_ref();
        if [announced, current].into_iter().flatten().any(|name| *name == self.name) {
            return same_modifier;
        }
        current.is_none() && self.is_domain_over(column)
    }

    /// The short list.
    fn is_wider(&self, from: Oid, from_modifier: i32) -> bool {
        match (from.get(), self.oid.get()) {
            (INT2, INT4 | INT8) | (INT4, INT8) => true,
            (INT2 | INT4 | INT8, NUMERIC) => self.modifier == -1,
            (VARCHAR, TEXT) => true,
            (TEXT, VARCHAR) => self.modifier == -1,
            (VARCHAR, VARCHAR) => from_modifier != -1 && from_modifier <= self.modifier,
            (NUMERIC, NUMERIC) => numeric_is_wider(from_modifier, self.modifier),
            _ => false,
        }
    }
}

/// Whether the type has the same identifier on every server: below `FirstGenbkiObjectId`.
pub const fn is_builtin(oid: Oid) -> bool {
    oid.get() < 10_000
}

/// More digits, and as many of them after the point: another number of those would add or drop zeros.
fn numeric_is_wider(from: i32, to: i32) -> bool {
    const HEADER: i32 = 4;
    let parts = |modifier: i32| (modifier.wrapping_sub(HEADER) >> 16, modifier.wrapping_sub(HEADER) & 0xffff);
    let ((from_precision, from_scale), (precision, scale)) = (parts(from), parts(to));
    from != -1 && scale == from_scale && precision >= from_precision
}

/// `pg_type.oid`.
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;

#[cfg(test)]
mod tests {
    use super::*;

    const FLOAT4: u32 = 700;
    const FLOAT8: u32 = 701;
    const BPCHAR: u32 = 1042;
    const TIMESTAMP: u32 = 1114;
    const TIMESTAMPTZ: u32 = 1184;
    const MOOD: u32 = 16_400;

    fn numeric(precision: i32, scale: i32) -> i32 {
        (precision << 16 | scale) + 4
    }

    fn name(text: &str) -> QualifiedName {
        let (schema, name) = text.split_once('.').unwrap_or(("pg_catalog", text));
        QualifiedName::new(schema, name)
    }

    fn column(oid: u32, modifier: i32, type_name: Option<&str>) -> Column {
        Column {
            name: "c".to_owned(),
            type_oid: Oid::new(oid),
            type_modifier: modifier,
            type_name: type_name.map(name),
            key: false,
        }
    }

    fn target(oid: u32, modifier: i32, named: &str, base: Option<(&str, i32)>) -> TargetType {
        let base = base.map(|(base, modifier)| (name(base), modifier));
        TargetType { oid: Oid::new(oid), name: name(named), modifier, base }
    }

    #[test]
    fn builtin_types() {
        #[track_caller]
        fn check(from: (u32, i32), to: (u32, i32), expected: bool) {
            let (column, target) = (column(from.0, from.1, None), target(to.0, to.1, "t", None));
            assert_eq!(target.keeps(&column, None), expected, "{from:?} in {to:?}");
            assert_eq!(target.same_as(&column, None), from == to, "{from:?} and {to:?}");
        }
        for oid in [INT2, INT4, INT8, TEXT, VARCHAR, NUMERIC, FLOAT4, FLOAT8, BPCHAR, TIMESTAMP, 1007, 3802] {
            check((oid, -1), (oid, -1), true);
            check((oid, 9), (oid, 9), true);
            check((oid, 9), (oid, -1), true);
        }
        check((INT2, -1), (INT4, -1), true);
        check((INT4, -1), (INT8, -1), true);
        check((INT8, -1), (INT4, -1), false);
        check((INT4, -1), (INT2, -1), false);
        check((INT8, -1), (NUMERIC, -1), true);
        check((INT8, -1), (NUMERIC, numeric(30, 0)), false);
        check((NUMERIC, -1), (INT8, -1), false);
        check((INT4, -1), (TEXT, -1), false);
        check((INT4, -1), (FLOAT8, -1), false);
        check((FLOAT4, -1), (FLOAT8, -1), false);
        check((FLOAT8, -1), (FLOAT4, -1), false);
        check((VARCHAR, 14), (VARCHAR, 14), true);
        check((VARCHAR, 14), (VARCHAR, 24), true);
        check((VARCHAR, 24), (VARCHAR, 14), false);
        check((VARCHAR, -1), (VARCHAR, 14), false);
        check((VARCHAR, 14), (TEXT, -1), true);
        check((TEXT, -1), (VARCHAR, -1), true);
        check((TEXT, -1), (VARCHAR, 14), false);
        check((BPCHAR, 14), (BPCHAR, 24), false);
        check((BPCHAR, 14), (TEXT, -1), false);
        check((NUMERIC, numeric(10, 2)), (NUMERIC, numeric(12, 2)), true);
        check((NUMERIC, numeric(12, 2)), (NUMERIC, numeric(10, 2)), false);
        check((NUMERIC, numeric(10, 4)), (NUMERIC, numeric(10, 2)), false);
        check((NUMERIC, numeric(10, 2)), (NUMERIC, numeric(10, 4)), false);
        check((NUMERIC, -1), (NUMERIC, numeric(10, 4)), false);
        check((TIMESTAMPTZ, -1), (TIMESTAMP, -1), false);
        check((TIMESTAMP, -1), (TIMESTAMPTZ, -1), false);
        check((TIMESTAMP, -1), (TIMESTAMP, 3), false);
        check((TEXT, -1), (MOOD, -1), false);
    }

    #[test]
    fn types_known_by_name() {
        #[track_caller]
        fn check(announced: &str, current: Option<&str>, to: &TargetType, (is, keeps): (bool, bool)) {
            let (column, current) = (column(MOOD, -1, Some(announced)), current.map(name));
            assert_eq!(to.same_as(&column, current.as_ref()), is, "{announced} {current:?} and {to:?}");
            assert_eq!(to.keeps(&column, current.as_ref()), keeps, "{announced} {current:?} in {to:?}");
        }
        let (same, kept, neither) = ((true, true), (false, true), (false, false));
        let mood = target(20_000, -1, "public.mood", None);
        check("public.mood", Some("public.mood"), &mood, same);
        check("public.mood", None, &mood, same);
        check("public.mood", Some("public.feeling"), &mood, kept);
        check("public.feeling", Some("public.mood"), &mood, same);
        check("public.feeling", Some("public.feeling"), &mood, neither);
        check("other.mood", Some("other.mood"), &mood, neither);
        check("other.mood", None, &mood, neither);
        // Domains: the stream says the base type's name.
        let domain = target(20_001, -1, "public.amount", Some(("numeric", numeric(10, 2))));
        check("numeric", Some("public.amount"), &domain, same);
        check("numeric", Some("public.precise"), &domain, neither);
        check("numeric", None, &domain, neither);
        let whole = target(20_002, -1, "public.whole", Some(("int4", -1)));
        check("int4", None, &whole, same);
        check("int4", Some("public.other"), &whole, neither);
        check("int4", Some("public.other"), &target(INT4, -1, "int4", None), kept);
        check("numeric", Some("public.precise"), &target(NUMERIC, numeric(10, 2), "numeric", None), neither);
        check("numeric", Some("public.precise"), &target(NUMERIC, -1, "numeric", None), kept);
        // A modifier of a type that is not builtin.
        let point = target(20_003, 1_107, "public.geometry", None);
        let check = |modifier, expected| {
            let sent = column(MOOD, modifier, Some("public.geometry"));
            assert_eq!(point.keeps(&sent, Some(&name("public.geometry"))), expected, "{modifier}");
        };
        check(1_107, true);
        check(-1, false);
        check(1_111, false);
    }
}
