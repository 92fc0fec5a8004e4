//! The table of contents of an archive that `pg_dump --format=custom --schema-only` wrote: each object's definition, with
//! kind, schema and name apart, and what it depends on. Source: `ReadHead` and `ReadToc` in `pg_backup_archiver.c`.
//!
//! ```text
//! "PGDMP", version (3 bytes), bytes of an integer, bytes of an offset, format (1: custom)
//! compression (an integer; from 1.15 on a byte), time (7 integers), database, server's version, pg_dump's version
//! number of entries, then each:
//!     identifier, whether it has data, catalog, object, tag, kind, section, definition, DROP, COPY, schema, tablespace,
//!     access method (1.14), relation kind (1.16), owner, "true" where it has OIDs, dependencies up to a NULL, an offset
//!
//! integer    a byte that is 1 where it is negative, then its bytes, the lowest first
//! text       its length, -1 for NULL, then its bytes
//! ```
//!
//! `pg_restore --list` shows the same in lines of words that cannot be told apart: a schema may be named `CONSTRAINT APP`.

/// One object, or what hangs on one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TocEntry {
    /// Its number in this archive.
    pub id: i32,
    /// The catalog's OID; `0` where it has no row of its own.
    pub catalog: String,
    /// The object's OID in it; `0` likewise.
    pub object: String,
    /// Its name; with its table's before it where it belongs to one, with its kind where it is a comment's.
    pub tag: String,
    /// `TABLE`, `FK CONSTRAINT`, `COMMENT`, …
    pub kind: String,
    /// Which part of the schema it belongs to.
    pub section: Section,
    /// The statements that make it.
    pub definition: String,
    /// Its schema; empty where it is in none.
    pub schema: String,
    /// The table access method; empty where it has none.
    pub access_method: String,
    /// It is a partitioned table.
    pub partitioned: bool,
    /// Whose it is.
    pub owner: String,
    /// Entries that come before it.
    pub needs: Vec<i32>,
}

/// Which part of the schema an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Section {
    /// To that of the entry before it.
    #[default]
    None,
    /// Before the rows.
    PreData,
    /// Rows.
    Data,
    /// After the rows.
    PostData,
}

/// Why an archive cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TocError {
    /// It does not begin as one.
    #[error("it is no archive of pg_dump in the custom format")]
    NotAnArchive,
    /// Its layout is not known.
    #[error("its format is {0}.{1}, and only 1.12 to 1.16 are known")]
    Version(u8, u8),
    /// It ends early, or holds what cannot be.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads the entries, in the archive's order.
///
/// # Errors
/// When it is none, of an unknown version, or damaged.
pub fn read(archive: &[u8]) -> Result<Vec<TocEntry>, TocError> {
    let rest = archive.strip_prefix(b"PGDMP").ok_or(TocError::NotAnArchive)?;
    let mut reader = Reader { rest, integer: 0, offset: 0 };
    let (major, minor, _revision) =
        (reader.byte("version")?, reader.byte("version")?, reader.byte("version")?);
    if major != 1 || !(12..=16).contains(&minor) {
        return Err(TocError::Version(major, minor));
    }
    reader.integer = reader.byte("size of an integer")?.into();
    reader.offset = reader.byte("size of an offset")?.into();
    if !(1..=8).contains(&reader.integer) || !(1..=8).contains(&reader.offset) {
        return Err(TocError::Damaged("sizes"));
    }
    if reader.byte("format")? != CUSTOM {
        return Err(TocError::NotAnArchive);
    }
    if minor >= 15 {
        reader.byte("compression")?;
    } else {
        reader.integer("compression")?;
    }
    for _ in 0..7 {
        reader.integer("time")?;
    }
    for field in ["database", "server's version", "pg_dump's version"] {
        reader.text(field)?;
    }
    let count = usize::try_from(reader.integer("number of entries")?);
    let count = count.map_err(|_| TocError::Damaged("number of entries"))?;
    // Each takes more than a byte.
    if count > reader.rest.len() {
        return Err(TocError::Damaged("number of entries"));
    }
    (0..count).map(|_| entry(&mut reader, minor)).collect()
}

fn entry(reader: &mut Reader<'_>, minor: u8) -> Result<TocEntry, TocError> {
    let id = reader.integer("identifier")?;
    reader.integer("whether it has data")?;
    let (catalog, object) = (reader.text("catalog")?, reader.text("object")?);
    let (tag, kind) = (reader.text("tag")?, reader.text("kind")?);
    let section = match reader.integer("section")? {
        1 => Section::None,
        2 => Section::PreData,
        3 => Section::Data,
        4 => Section::PostData,
        _ => return Err(TocError::Damaged("section")),
    };
    let definition = reader.text("definition")?;
    for field in ["DROP", "COPY"] {
        reader.text(field)?;
    }
    let schema = reader.text("schema")?;
    reader.text("tablespace")?;
    let access_method = if minor >= 14 { reader.text("access method")? } else { String::new() };
    let relation_kind = if minor >= 16 { reader.integer("relation kind")? } else { 0 };
    let owner = reader.text("owner")?;
    reader.text("OIDs")?;
    let mut needs = Vec::new();
    while let Some(needed) = reader.nullable("dependency")? {
        needs.push(needed.parse().map_err(|_| TocError::Damaged("dependency"))?);
    }
    reader.byte("offset")?;
    reader.take(reader.offset, "offset")?;
    let partitioned = relation_kind == i32::from(b'p');
    Ok(TocEntry {
        id,
        catalog,
        object,
        tag,
        kind,
        section,
        definition,
        schema,
        access_method,
        partitioned,
        owner,
        needs,
    })
}

struct Reader<'a> {
    rest: &'a [u8],
    integer: usize,
    offset: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], TocError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(TocError::Damaged(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, TocError> {
        self.take(1, field).map(|taken| taken[0])
    }

    fn integer(&mut self, field: &'static str) -> Result<i32, TocError> {
        let negative = self.byte(field)? != 0;
        let bytes = self.take(self.integer, field)?;
        let value = bytes.iter().rev().fold(0_i128, |value, byte| value << 8 | i128::from(*byte));
        i32::try_from(if negative { -value } else { value }).map_err(|_| TocError::Damaged(field))
    }

    fn nullable(&mut self, field: &'static str) -> Result<Option<String>, TocError> {
        let Ok(length) = usize::try_from(self.integer(field)?) else { return Ok(None) };
        let text = self.take(length, field)?.to_vec();
        String::from_utf8(text).map(Some).map_err(|_| TocError::Damaged(field))
    }

    fn text(&mut self, field: &'static str) -> Result<String, TocError> {
        self.nullable(field).map(Option::unwrap_or_default)
    }
}

/// The format's number: a table of contents, then data.
const CUSTOM: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes as `pg_dump` does, with integers of 4 and offsets of 8 bytes.
    fn write(minor: u8, entries: &[TocEntry]) -> Vec<u8> {
        let mut out = b"PGDMP\x01".to_vec();
        out.extend([minor, 0, 4, 8, CUSTOM]);
        if minor >= 15 {
            out.push(0)
        } else {
            integer(&mut out, -1)
        }
        (0..7).for_each(|field| integer(&mut out, field));
        ["a database", "15.18", "16.15"].iter().for_each(|field| text(&mut out, Some(field)));
        integer(&mut out, i32::try_from(entries.len()).expect("few"));
        for entry in entries {
            integer(&mut out, entry.id);
            integer(&mut out, 0);
            for field in [&entry.catalog, &entry.object, &entry.tag, &entry.kind] {
                text(&mut out, Some(field));
            }
            let section = match entry.section {
                Section::None => 1,
                Section::PreData => 2,
                Section::Data => 3,
                Section::PostData => 4,
            };
            integer(&mut out, section);
            for field in [Some(entry.definition.as_str()), Some("DROP"), None, Some(&entry.schema), None] {
                text(&mut out, field);
            }
            if minor >= 14 {
                text(&mut out, Some(&entry.access_method));
            }
            if minor >= 16 {
                integer(&mut out, if entry.partitioned { i32::from(b'p') } else { 0 });
            }
            text(&mut out, Some(&entry.owner));
            text(&mut out, Some("false"));
            entry.needs.iter().for_each(|needed| text(&mut out, Some(&needed.to_string())));
            text(&mut out, None);
            out.extend([3, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        out
    }

    fn integer(out: &mut Vec<u8>, value: i32) {
        out.push(u8::from(value < 0));
        out.extend(value.unsigned_abs().to_le_bytes());
    }

    fn text(out: &mut Vec<u8>, value: Option<&str>) {
        integer(out, value.map_or(-1, |value| i32::try_from(value.len()).expect("short")));
        out.extend(value.unwrap_or_default().as_bytes());
    }

    /// Names that words separated by spaces cannot tell apart, and any other.
    fn a_name() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("public x".to_owned()),
            Just("FK CONSTRAINT".to_owned()),
            Just("- ; 1 2 INDEX".to_owned()),
            Just("APP\nTABLE".to_owned()),
            any::<String>(),
        ]
    }

    fn an_entry() -> impl Strategy<Value = TocEntry> {
        let sections = [Section::None, Section::PreData, Section::Data, Section::PostData].map(Just).to_vec();
        let words = (any::<i32>(), a_name(), a_name(), a_name(), a_name(), a_name());
        let rest = (proptest::strategy::Union::new(sections), any::<bool>(), any::<Vec<i32>>());
        (words, rest).prop_map(
            |((id, tag, kind, schema, owner, definition), (section, partitioned, needs))| {
                let (catalog, object, access_method) =
                    ("1259".to_owned(), "16400".to_owned(), "heap".to_owned());
                TocEntry {
                    id,
                    catalog,
                    object,
                    tag,
                    kind,
                    section,
                    definition,
                    schema,
                    access_method,
                    partitioned,
                    owner,
                    needs,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in prop::collection::vec(an_entry(), 0..4)) {
            prop_assert_eq!(read(&write(16, &entries)), Ok(entries.clone()));
            let older = |entry: &TocEntry| TocEntry { partitioned: false, ..entry.clone() };
            let older: Vec<_> = entries.iter().map(older).collect();
            prop_assert_eq!(read(&write(14, &entries)), Ok(older.clone()));
            prop_assert_eq!(read(&write(15, &entries)), Ok(older.clone()));
            let oldest = |entry: TocEntry| TocEntry { access_method: String::new(), ..entry };
            let oldest: Vec<_> = older.into_iter().map(oldest).collect();
            prop_assert_eq!(read(&write(12, &entries)), Ok(oldest));
        }
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let entry = TocEntry { id: 7, tag: "a table".to_owned(), needs: vec![1, 2], ..TocEntry::default() };
        let whole = write(16, &[entry]);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length} bytes of {}", whole.len());
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let mut newer = write(16, &[]);
        newer[6] = 17;
        assert_eq!(read(&newer), Err(TocError::Version(1, 17)));
        assert_eq!(read(b"PGDM"), Err(TocError::NotAnArchive));
        let mut many = write(16, &[]);
        let end = many.len();
        many[end - 4..].copy_from_slice(&i32::MAX.to_le_bytes());
        assert_eq!(read(&many), Err(TocError::Damaged("number of entries")));
    }
}
