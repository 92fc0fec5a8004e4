//! What a run of changes to one table comes to, row by row.
//!
//! ```text
//!              insert      update      delete
//! (not seen)   Inserted    Updated     Deleted
//! Inserted     -           Inserted    Gone
//! Updated      -           Updated     Deleted
//! Deleted      Replaced    -           -
//! Replaced     -           Replaced    Deleted
//! Gone         Inserted    -           -
//! ```
//!
//! A row is known by the text of its key. Two texts that are equal for the index (1.0 and 1.00) are two rows here; since
//! the index is unique, one of them is gone before the other comes, and deletes go before everything else.
//!
//! What stands at `-` cannot come from a source whose key is unique: it is refused, and left to the source's order.

use std::hash::{BuildHasher, Hash as _, Hasher as _, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::proto::{Tuple, TupleValue};

/// The rows since the table's last barrier.
#[derive(Default)]
pub(super) struct Net {
    /// The columns that a row is known by, ascending.
    key: Vec<usize>,
    rows: Vec<Row>,
    /// Where in `rows` the row of a key is. It holds no keys: each would be one more reference to its message's buffer,
    /// counted while another core counts there, too.
    places: HashTable<usize>,
    hashes: RandomState,
}

/// What becomes of one row.
#[derive(Debug)]
pub(super) enum Row {
    /// It is new.
    Inserted(Tuple),
    /// It was there, and is there. Unchanged values are what they were.
    Updated(Tuple),
    /// It was there; this has its key.
    Deleted(Tuple),
    /// It was deleted and inserted again.
    Replaced(Tuple),
    /// It came and went; this has its key.
    Gone(Tuple),
}

/// The change does not follow from what came before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DoesNotFollow;

/// Without the keys.
impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Net({} rows)", self.rows.len())
    }
}

impl Row {
    fn tuple(&self) -> &Tuple {
        match self {
            Self::Inserted(it)
            | Self::Updated(it)
            | Self::Deleted(it)
            | Self::Replaced(it)
            | Self::Gone(it) => it,
        }
    }
}

impl Net {
    /// For rows that are known by these columns, ascending.
    pub(super) fn new(key: Vec<usize>) -> Self {
        Self { key, ..Self::default() }
    }

    /// The values that a row is known by.
    pub(super) fn key_of<'t>(&self, tuple: &'t Tuple) -> impl Iterator<Item = TupleValue<'t>> {
        key_of(&self.key, tuple)
    }

    /// Whether the tuple has its whole key, as text.
    pub(super) fn has_key(&self, tuple: &Tuple) -> bool {
        self.key_of(tuple).filter(|value| matches!(value, TupleValue::Text(_))).count() == self.key.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes all rows, in the order in which they came first.
    pub(super) fn take(&mut self) -> Vec<Row> {
        self.places.clear();
        std::mem::take(&mut self.rows)
    }

    /// A new row of a table whose rows are not told apart.
    pub(super) fn append(&mut self, new: &Tuple) {
        self.rows.push(Row::Inserted(new.clone()));
    }

    /// A new row. Here and below, the tuple must have its whole key: see [`Net::has_key`].
    pub(super) fn insert(&mut self, new: &Tuple) -> Result<(), DoesNotFollow> {
        let Some(row) = self.row_or(new, Row::Inserted) else { return Ok(()) };
        *row = match row {
            Row::Deleted(_) => Row::Replaced(new.clone()),
            Row::Gone(_) => Row::Inserted(new.clone()),
            Row::Inserted(_) | Row::Updated(_) | Row::Replaced(_) => return Err(DoesNotFollow),
        };
        Ok(())
    }

    pub(super) fn update(&mut self, new: &Tuple) -> Result<(), DoesNotFollow> {
        let Some(row) = self.row_or(new, Row::Updated) else { return Ok(()) };
        match row {
            Row::Inserted(tuple) | Row::Updated(tuple) | Row::Replaced(tuple) => {
                *tuple = merged(tuple, new);
                Ok(())
            }
            Row::Deleted(_) | Row::Gone(_) => Err(DoesNotFollow),
        }
    }

    pub(super) fn delete(&mut self, old: &Tuple) -> Result<(), DoesNotFollow> {
        let Some(row) = self.row_or(old, Row::Deleted) else { return Ok(()) };
        *row = match row {
            Row::Inserted(_) => Row::Gone(old.clone()),
            Row::Updated(_) | Row::Replaced(_) => Row::Deleted(old.clone()),
            Row::Deleted(_) | Row::Gone(_) => return Err(DoesNotFollow),
        };
        Ok(())
    }

    /// The row of this key that was seen before; where there was none, it is now what `becomes` makes of the tuple.
    fn row_or(&mut self, tuple: &Tuple, becomes: impl FnOnce(Tuple) -> Row) -> Option<&mut Row> {
        debug_assert!(self.has_key(tuple), "a row is looked for by its whole key");
        let (key, rows, hashes) = (&self.key, &mut self.rows, &self.hashes);
        let same = |place: &usize| key_of(key, rows[*place].tuple()).eq(key_of(key, tuple));
        let again = |place: &usize| hash_of(hashes, key, rows[*place].tuple());
        match self.places.entry(hash_of(hashes, key, tuple), same, again) {
            Entry::Occupied(place) => Some(&mut rows[*place.get()]),
            Entry::Vacant(place) => {
                place.insert(rows.len());
                rows.push(becomes(tuple.clone()));
                None
            }
        }
    }
}

fn key_of<'t>(key: &[usize], tuple: &'t Tuple) -> impl Iterator<Item = TupleValue<'t>> {
    let mut wanted = key.iter().copied().peekable();
    let last = key.last().map_or(0, |last| last + 1);
    let values = tuple.columns().take(last).enumerate();
    values.filter_map(move |(index, value)| wanted.next_if_eq(&index).map(|_| value))
}

fn hash_of(hashes: &RandomState, key: &[usize], tuple: &Tuple) -> u64 {
    let mut hasher = hashes.build_hasher();
    for value in key_of(key, tuple) {
        value.bytes().hash(&mut hasher);
    }
    hasher.finish()
}

/// The later tuple, with the earlier one's values where it has none.
fn merged(earlier: &Tuple, later: &Tuple) -> Tuple {
    if !later.has_unchanged() {
        return later.clone();
    }
    Tuple::from_values(earlier.columns().zip(later.columns()).map(|(earlier, later)| match later {
        TupleValue::Unchanged => earlier,
        TupleValue::Null | TupleValue::Text(_) | TupleValue::Binary(_) => later,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(values: &str) -> Tuple {
        Tuple::from_values(values.split(' ').map(|text| match text {
            "-" => TupleValue::Null,
            "~" => TupleValue::Unchanged,
            text => TupleValue::Text(text.as_bytes()),
        }))
    }

    fn show(row: &Row) -> String {
        let values = |tuple: &Tuple| {
            let text = |value: TupleValue<'_>| match value {
                TupleValue::Null => "-".to_owned(),
                TupleValue::Unchanged => "~".to_owned(),
                TupleValue::Text(text) | TupleValue::Binary(text) => {
                    String::from_utf8_lossy(text).into_owned()
                }
            };
            tuple.columns().map(text).collect::<Vec<_>>().join(" ")
        };
        match row {
            Row::Inserted(tuple) => format!("inserted {}", values(tuple)),
            Row::Updated(tuple) => format!("updated {}", values(tuple)),
            Row::Deleted(tuple) => format!("deleted {}", values(tuple)),
            Row::Replaced(tuple) => format!("replaced {}", values(tuple)),
            Row::Gone(_) => "gone".to_owned(),
        }
    }

    /// `+1 a`, `=1 b`, `-1`: changes of the row with that key, in order; what the rows come to, or the place of the
    /// change that does not follow.
    #[track_caller]
    fn check(changes: &[&str], expected: Result<&[&str], usize>) {
        let mut net = Net::new(vec![0]);
        for (place, change) in changes.iter().enumerate() {
            let (what, row) = change.split_at(1);
            let taken = match what {
                "+" => net.insert(&tuple(row)),
                "=" => net.update(&tuple(row)),
                _ => net.delete(&tuple(row)),
            };
            if taken.is_err() {
                assert_eq!(expected, Err(place), "{changes:?}");
                return;
            }
        }
        let rows: Vec<String> = net.take().iter().map(show).collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        assert_eq!(expected, Ok(&rows[..]), "{changes:?}");
        assert!(net.is_empty());
    }

    #[test]
    fn one_row() {
        check(&["+1 a"], Ok(&["inserted 1 a"]));
        check(&["+1 a", "=1 b"], Ok(&["inserted 1 b"]));
        check(&["+1 a", "-1"], Ok(&["gone"]));
        check(&["+1 a", "-1", "+1 b", "=1 c"], Ok(&["inserted 1 c"]));
        check(&["=1 a", "=1 b"], Ok(&["updated 1 b"]));
        check(&["=1 a", "-1"], Ok(&["deleted 1"]));
        check(&["-1", "+1 a"], Ok(&["replaced 1 a"]));
        check(&["-1", "+1 a", "=1 b"], Ok(&["replaced 1 b"]));
        check(&["-1", "+1 a", "-1"], Ok(&["deleted 1"]));
        check(&["=1 a", "-1", "+1 b", "-1", "+1 c"], Ok(&["replaced 1 c"]));
    }

    #[test]
    fn what_does_not_follow() {
        check(&["+1 a", "+1 b"], Err(1));
        check(&["=1 a", "+1 b"], Err(1));
        check(&["-1", "=1 b"], Err(1));
        check(&["-1", "-1"], Err(1));
        check(&["+1 a", "-1", "=1 b"], Err(2));
        check(&["+1 a", "-1", "-1"], Err(2));
        check(&["-1", "+1 a", "+1 b"], Err(2));
    }

    #[test]
    fn holes_keep_what_came_before() {
        check(&["=1 a ~", "=1 ~ b"], Ok(&["updated 1 a b"]));
        check(&["=1 a ~", "=1 b ~"], Ok(&["updated 1 b ~"]));
        check(&["=1 a -", "=1 b ~"], Ok(&["updated 1 b -"]));
        check(&["+1 a b", "=1 - ~"], Ok(&["inserted 1 - b"]));
        check(&["-1", "+1 a b", "=1 c ~"], Ok(&["replaced 1 c b"]));
    }

    #[test]
    fn keys_of_several_columns() {
        let mut net = Net::new(vec![0, 2]);
        for n in 0..1_000 {
            assert_eq!(net.insert(&tuple(&format!("a x {n}"))), Ok(()));
            assert_eq!(net.insert(&tuple(&format!("a{n} x -{n}"))), Ok(()));
        }
        assert_eq!(net.update(&tuple("a y 999")), Ok(()));
        assert_eq!(net.insert(&tuple("a z 999")), Err(DoesNotFollow));
        assert_eq!(net.delete(&tuple("a9 - -9")), Ok(()));
        let rows: Vec<String> = net.take().iter().map(show).collect();
        assert_eq!((rows.len(), &*rows[1_998], &*rows[19]), (2_000, "inserted a y 999", "gone"));
        assert!(
            !net.has_key(&tuple("a - ~")) && !net.has_key(&tuple("- x 1")) && net.has_key(&tuple("a ~ 1"))
        );
    }

    #[test]
    fn rows_stay_in_their_order() {
        check(&["+2 a", "=1 b", "-3", "=2 c"], Ok(&["inserted 2 c", "updated 1 b", "deleted 3"]));
    }
}
