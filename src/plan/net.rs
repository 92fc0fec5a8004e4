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

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;

use crate::proto::{Tuple, TupleValue};

/// The rows since the table's last barrier.
#[derive(Default)]
pub(super) struct Net {
    rows: Vec<Row>,
    places: HashMap<Bytes, usize>,
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
    /// It came and went.
    Gone,
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

impl Net {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes all rows, in the order in which they came first.
    pub(super) fn take(&mut self) -> Vec<Row> {
        self.places.clear();
        std::mem::take(&mut self.rows)
    }

    /// A new row of a table whose rows have no key.
    pub(super) fn append(&mut self, new: &Tuple) {
        self.rows.push(Row::Inserted(new.clone()));
    }

    pub(super) fn insert(&mut self, key: Bytes, new: &Tuple) -> Result<(), DoesNotFollow> {
        let Some(row) = self.row_or(key, || Row::Inserted(new.clone())) else { return Ok(()) };
        *row = match row {
            Row::Deleted(_) => Row::Replaced(new.clone()),
            Row::Gone => Row::Inserted(new.clone()),
            Row::Inserted(_) | Row::Updated(_) | Row::Replaced(_) => return Err(DoesNotFollow),
        };
        Ok(())
    }

    pub(super) fn update(&mut self, key: Bytes, new: &Tuple) -> Result<(), DoesNotFollow> {
        let Some(row) = self.row_or(key, || Row::Updated(new.clone())) else { return Ok(()) };
        match row {
            Row::Inserted(tuple) | Row::Updated(tuple) | Row::Replaced(tuple) => {
                *tuple = merged(tuple, new);
                Ok(())
            }
            Row::Deleted(_) | Row::Gone => Err(DoesNotFollow),
        }
    }

    pub(super) fn delete(&mut self, key: Bytes, old: &Tuple) -> Result<(), DoesNotFollow> {
        let Some(row) = self.row_or(key, || Row::Deleted(old.clone())) else { return Ok(()) };
        *row = match row {
            Row::Inserted(_) => Row::Gone,
            Row::Updated(_) | Row::Replaced(_) => Row::Deleted(old.clone()),
            Row::Deleted(_) | Row::Gone => return Err(DoesNotFollow),
        };
        Ok(())
    }

    /// The row that was seen before; where there was none, it is now `new`.
    fn row_or(&mut self, key: Bytes, new: impl FnOnce() -> Row) -> Option<&mut Row> {
        match self.places.entry(key) {
            Entry::Occupied(place) => Some(&mut self.rows[*place.get()]),
            Entry::Vacant(place) => {
                place.insert(self.rows.len());
                self.rows.push(new());
                None
            }
        }
    }
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
            Row::Gone => "gone".to_owned(),
        }
    }

    /// `+1 a`, `=1 b`, `-1`: changes of the row with that key, in order; what the rows come to, or the place of the
    /// change that does not follow.
    #[track_caller]
    fn check(changes: &[&str], expected: Result<&[&str], usize>) {
        let mut net = Net::default();
        for (place, change) in changes.iter().enumerate() {
            let (what, row) = change.split_at(1);
            let key = Bytes::copy_from_slice(row.split(' ').next().unwrap_or_default().as_bytes());
            let taken = match what {
                "+" => net.insert(key, &tuple(row)),
                "=" => net.update(key, &tuple(row)),
                _ => net.delete(key, &tuple(row)),
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
    fn rows_stay_in_their_order() {
        check(&["+2 a", "=1 b", "-3", "=2 c"], Ok(&["inserted 2 c", "updated 1 b", "deleted 3"]));
    }
}
