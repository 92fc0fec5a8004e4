//! What a server says when it refuses: an ErrorResponse's fields. Manual: "Error and Notice Message Fields",
//! "PostgreSQL Error Codes".
//!
//! A server's message may quote a row: `invalid input syntax for type integer: "…"`. Here is where that stops. Neither
//! `Display` nor `Debug` shows the message of classes that quote values, nor the detail of any class that describes
//! rows; the SQLSTATE, its condition's name and the names of the objects at hand say what went wrong instead.

use std::fmt;

use super::body::{Body, Malformed};
use super::sqlstate;
use crate::error::Side;

/// An ErrorResponse.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    severity: String,
    sqlstate: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    schema: Option<String>,
    table: Option<String>,
    column: Option<String>,
    constraint: Option<String>,
    data_type: Option<String>,
}

impl ServerError {
    /// Decodes an ErrorResponse's or NoticeResponse's body: a field's type byte and its text, until a zero byte.
    pub(super) fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut error = Self::default();
        let mut body = Body::new(body, "ErrorResponse");
        loop {
            let field = body.u8()?;
            if field == 0 {
                return Ok(error);
            }
            let text = body.text()?.into_owned();
            match field {
                // `S` is translated; `V` (from 9.6 on) is not, and comes after it.
                b'S' | b'V' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b's' => error.schema = Some(text),
                b't' => error.table = Some(text),
                b'c' => error.column = Some(text),
                b'n' => error.constraint = Some(text),
                b'd' => error.data_type = Some(text),
                // The manual asks that unknown fields be ignored; the others describe the server's inside.
                _ => {}
            }
        }
    }

    /// The same from tokio-postgres's own type, so that both kinds of connection report alike.
    pub fn from_db_error(error: &tokio_postgres::error::DbError) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            severity: error.severity().to_owned(),
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: owned(error.detail()),
            hint: owned(error.hint()),
            schema: owned(error.schema()),
            table: owned(error.table()),
            column: owned(error.column()),
            constraint: owned(error.constraint()),
            data_type: owned(error.datatype()),
        }
    }

    /// One of which only the code is known.
    #[cfg(test)]
    pub(crate) fn with_sqlstate(sqlstate: &str) -> Self {
        Self::of(sqlstate, "", None)
    }

    #[cfg(test)]
    pub(crate) fn of(sqlstate: &str, message: &str, hint: Option<&str>) -> Self {
        let (sqlstate, message) = (sqlstate.to_owned(), message.to_owned());
        Self { sqlstate, message, hint: hint.map(str::to_owned), ..Self::default() }
    }

    /// `ERROR`, `FATAL` or `PANIC`.
    pub fn severity(&self) -> &str {
        &self.severity
    }

    /// The five-character code.
    pub fn sqlstate(&self) -> &str {
        &self.sqlstate
    }

    /// The code's first two characters.
    pub fn class(&self) -> &str {
        self.sqlstate.get(..2).unwrap_or_default()
    }

    /// The schema that the error is about.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table that the error is about.
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// The column that the error is about.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// The constraint that was violated.
    pub fn constraint(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    /// The message, where it cannot hold a row's value.
    pub fn message(&self) -> Option<&str> {
        self.message_is_safe().then_some(self.message.as_str())
    }

    /// The detail, where it cannot hold a row's value.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref().filter(|_| self.message_is_safe() && self.class() != "23")
    }

    /// The hint, where it cannot hold a row's value.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().filter(|_| self.message_is_safe())
    }

    /// Whether it comes from a connection pooler that does not pass on what we say at the start.
    pub fn is_poolers(&self) -> bool {
        self.class() == "08" && self.message.starts_with("unsupported startup parameter")
    }

    /// Ours, in the server's place: what it says is not believed any more.
    pub(super) fn excess(excess: &dyn fmt::Display) -> Vec<u8> {
        Self::fatal(EXCESS_STATE, &format!("{excess}{EXCESS_MARK}"))
    }

    /// An ErrorResponse's body.
    pub(super) fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
        format!("SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0").into_bytes()
    }

    /// Whether it is one of [`Self::excess`].
    pub(super) fn is_excess(&self) -> bool {
        self.sqlstate == EXCESS_STATE && self.message.ends_with(EXCESS_MARK)
    }

    /// Whether the same thing, tried again, may succeed.
    pub fn is_transient(&self) -> bool {
        // No code passes on one side and stays on the other.
        !self.is_poolers() && sqlstate::judge(self, Side::Target).transient
    }

    /// Whether the server has no room for more locks, which no waiting mends; memory comes back.
    pub fn lacks_locks(&self) -> bool {
        sqlstate::lacks_locks(self)
    }

    /// Whether it says nothing of the rows at hand: the server's state brings it about, or another session.
    pub fn is_of_the_server(&self) -> bool {
        sqlstate::is_of_the_server(self)
    }

    /// Whether the server ends the session after this.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// Class 22 quotes the value it could not take, and functions raise (P0) what they like, also under codes of
    /// their own making. Class 23 names constraints only; its detail is what shows the row.
    fn message_is_safe(&self) -> bool {
        const STANDARD: &str = "00 01 02 03 08 09 0A 0B 0F 0L 0P 0Z 20 21 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F \
                                40 42 44 53 54 55 57 58 F0 HV XX";
        STANDARD.split(' ').any(|class| class == self.class())
    }
}

/// `protocol_violation`.
const EXCESS_STATE: &str = "08P01";

const EXCESS_MARK: &str = ", and is not listened to any more";

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sqlstate)?;
        if let Some(name) = condition_name(&self.sqlstate) {
            write!(f, " ({name})")?;
        }
        if let Some(message) = self.message() {
            return write!(f, ": {message}");
        }
        let names = [("table", &self.table), ("column", &self.column), ("type", &self.data_type)];
        for (label, name) in names.into_iter().chain([("constraint", &self.constraint)]) {
            match (label, name, &self.schema) {
                ("table", Some(name), Some(schema)) => write!(f, ", table {schema}.{name}")?,
                (_, Some(name), _) => write!(f, ", {label} {name}")?,
                (_, None, _) => {}
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerError({self})")
    }
}

impl std::error::Error for ServerError {}

/// The manual's name for a code, for the classes whose message is not shown and a few more.
fn condition_name(sqlstate: &str) -> Option<&'static str> {
    let found = CONDITIONS.binary_search_by_key(&sqlstate, |(code, _)| code);
    found.ok().map(|index| CONDITIONS[index].1)
}

const CONDITIONS: &[(&str, &str)] = &[
    ("08P01", "protocol_violation"),
    ("22000", "data_exception"),
    ("22001", "string_data_right_truncation"),
    ("22002", "null_value_no_indicator_parameter"),
    ("22003", "numeric_value_out_of_range"),
    ("22004", "null_value_not_allowed"),
    ("22007", "invalid_datetime_format"),
    ("22008", "datetime_field_overflow"),
    ("22009", "invalid_time_zone_displacement_value"),
    ("2200B", "escape_character_conflict"),
    ("2200G", "most_specific_type_mismatch"),
    ("2200H", "sequence_generator_limit_exceeded"),
    ("2200M", "invalid_xml_document"),
    ("2200N", "invalid_xml_content"),
    ("22012", "division_by_zero"),
    ("22018", "invalid_character_value_for_cast"),
    ("22021", "character_not_in_repertoire"),
    ("22023", "invalid_parameter_value"),
    ("22025", "invalid_escape_sequence"),
    ("22026", "string_data_length_mismatch"),
    ("2202E", "array_subscript_error"),
    ("22030", "duplicate_json_object_key_value"),
    ("22032", "invalid_json_text"),
    ("22P01", "floating_point_exception"),
    ("22P02", "invalid_text_representation"),
    ("22P03", "invalid_binary_representation"),
    ("22P04", "bad_copy_file_format"),
    ("22P05", "untranslatable_character"),
    ("23000", "integrity_constraint_violation"),
    ("23001", "restrict_violation"),
    ("23502", "not_null_violation"),
    ("23503", "foreign_key_violation"),
    ("23505", "unique_violation"),
    ("23514", "check_violation"),
    ("23P01", "exclusion_violation"),
    ("28000", "invalid_authorization_specification"),
    ("28P01", "invalid_password"),
    ("3D000", "invalid_catalog_name"),
    ("40001", "serialization_failure"),
    ("40P01", "deadlock_detected"),
    ("42501", "insufficient_privilege"),
    ("42601", "syntax_error"),
    ("42703", "undefined_column"),
    ("42704", "undefined_object"),
    ("42883", "undefined_function"),
    ("42P01", "undefined_table"),
    ("53100", "disk_full"),
    ("53200", "out_of_memory"),
    ("53300", "too_many_connections"),
    ("55000", "object_not_in_prerequisite_state"),
    ("55006", "object_in_use"),
    ("55P03", "lock_not_available"),
    ("57014", "query_canceled"),
    ("57P01", "admin_shutdown"),
    ("57P02", "crash_shutdown"),
    ("57P03", "cannot_connect_now"),
    ("57P05", "idle_session_timeout"),
    ("P0001", "raise_exception"),
    ("P0002", "no_data_found"),
    ("P0003", "too_many_rows"),
    ("P0004", "assert_failure"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(fields: &[(u8, &str)]) -> ServerError {
        let mut body = Vec::new();
        for (field, text) in fields {
            body.push(*field);
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        ServerError::decode(&body).expect("well formed")
    }

    #[test]
    fn no_value_of_a_row_is_shown() {
        #[track_caller]
        fn check(sqlstate: &str, expected: &str) {
            let error = decode(&[
                (b'S', "FEHLER"),
                (b'V', "ERROR"),
                (b'C', sqlstate),
                (b'M', "the message"),
                (b'D', "Key (id)=(secret) already exists."),
                (b's', "public"),
                (b't', "item"),
                (b'n', "item_pkey"),
            ]);
            assert_eq!(error.to_string(), expected);
            assert_eq!(format!("{error:?}"), format!("ServerError({expected})"));
            assert_eq!(error.severity(), "ERROR");
        }
        check("22P02", "22P02 (invalid_text_representation), table public.item, constraint item_pkey");
        check("P0001", "P0001 (raise_exception), table public.item, constraint item_pkey");
        check("WF001", "WF001, table public.item, constraint item_pkey");
        check("23505", "23505 (unique_violation): the message");
        check("42P01", "42P01 (undefined_table): the message");
        check("57P03", "57P03 (cannot_connect_now): the message");
    }

    #[test]
    fn a_pooler_is_known_by_what_it_refuses() {
        let error = |message| decode(&[(b'C', "08P01"), (b'M', message)]);
        let pooler = error("unsupported startup parameter: options");
        assert!(pooler.is_poolers() && !pooler.is_transient());
        let other = error("query_wait_timeout");
        assert!(!other.is_poolers() && other.is_transient());
    }

    #[test]
    fn conditions_are_sorted() {
        assert!(CONDITIONS.is_sorted_by_key(|(code, _)| code));
    }

    #[test]
    fn a_cut_off_body_is_an_error() {
        let whole = b"SERROR\0C42P01\0Mtext\0\0";
        for length in 0..whole.len() {
            assert!(ServerError::decode(&whole[..length]).is_err(), "{length}");
        }
        assert!(ServerError::decode(whole).is_ok());
    }
}
