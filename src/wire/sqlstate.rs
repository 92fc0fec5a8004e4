//! What a server's SQLSTATE means for a migration: whether it may pass, in which words, and what is to be done.
//!
//! Pure, and the only place where codes are sorted. A code that is not here is definite: somebody has to look. Manual:
//! "PostgreSQL Error Codes".
//!
//! A few codes stand for two things. Their messages may be translated, names of settings in a hint are not.

use super::server_error::ServerError;
use crate::error::Side;

/// How a server's error is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Tried again, it may succeed.
    pub(super) transient: bool,
    /// Short, lower case.
    pub(super) cause: &'static str,
    /// What to do; may be empty, and then the server's own hint is shown.
    pub(super) hint: &'static str,
}

/// The verdict on a server that sends what none does.
pub(super) const EXCESS: Verdict = definite(
    "the server sends more than a server has to say",
    "look who answers at that address: a PostgreSQL server does this only where an error quotes a value of more than 1 MiB",
);

/// Judges `error`, which came from `side`.
pub(super) fn judge(error: &ServerError, side: Side) -> Verdict {
    match error.sqlstate() {
        _ if error.is_excess() => EXCESS,
        "0A000" => definite("the server does not support this", ""),
        "25006" => read_only(side),
        "25P03" => transient(
            "the server ended a session that was idle in a transaction",
            "look who set idle_in_transaction_session_timeout; it goes on by itself",
        ),
        "25P04" => transient(
            "the server ended a long transaction",
            "look who set transaction_timeout; it goes on by itself",
        ),
        "3D000" => definite("database does not exist", ""),
        "40001" => transient("a transaction got into another one's way", ""),
        "40P01" => transient("a deadlock with another session", ""),
        "42501" => definite("privilege missing", ""),
        "53100" => transient("the server's disk is full", "make room there: it goes on by itself"),
        "53200" if lacks_locks(error) => definite(
            "the server has no room for more locks",
            "raise max_locks_per_transaction there and restart it, then run the same command again",
        ),
        "53200" => transient(
            "the server is out of memory",
            "free memory there, or give it more: it goes on by itself",
        ),
        "53300" => transient("too many connections", "free some, or raise max_connections"),
        "53400" => transient("a limit of the server's configuration is reached", ""),
        "55000" => definite("something on the server is not in the state that this needs", ""),
        "55006" => {
            transient("somebody uses what is to be changed", "end that session, or wait: it is tried again")
        }
        "55P03" => {
            transient("a lock was not to be had in time", "end who holds it, or wait: it is tried again")
        }
        "57014" => transient(
            "somebody cancelled the statement",
            "it is tried again; if this comes again and again, look who uses pg_cancel_backend there",
        ),
        "57P01" => transient("somebody ended the session, or the server is shutting down", ""),
        "57P02" => {
            transient("the server crashed", "it goes on when the server is there again; its log says why")
        }
        "57P03" => transient("server does not accept connections now", ""),
        "57P04" => definite("the database was dropped", "give one that is there, or start afresh"),
        "57P05" => transient("the server ended an idle session", "look who set idle_session_timeout"),
        "58030" => transient(
            "the server cannot read or write its disk",
            "look at its log and its disk: it goes on by itself once that is mended",
        ),
        "XX000" if is_a_race(error) => transient("somebody changed the same object at the same time", ""),
        "XX001" | "XX002" => definite(
            "the server found damaged data",
            "its log says where: mend that (REINDEX, or a backup), then run the same command again",
        ),
        _ if error.class() == "08" => transient("the server lost the connection", ""),
        _ if error.class() == "53" => transient("the server lacks resources", ""),
        _ => definite("server reported an error", ""),
    }
}

/// Whether the state of the server, of our session or of somebody else's brings about such errors, whatever the rows are.
pub(super) fn is_of_the_server(error: &ServerError) -> bool {
    const CLASSES: [&str; 7] = ["08", "25", "28", "40", "53", "57", "58"];
    // What else is internal an extension may say of a row.
    const CODES: [&str; 4] = ["55006", "55P03", "XX001", "XX002"];
    CLASSES.contains(&error.class()) || CODES.contains(&error.sqlstate()) || is_a_race(error)
}

const fn transient(cause: &'static str, hint: &'static str) -> Verdict {
    Verdict { transient: true, cause, hint }
}

const fn definite(cause: &'static str, hint: &'static str) -> Verdict {
    Verdict { transient: false, cause, hint }
}

const fn read_only(side: Side) -> Verdict {
    match side {
        Side::Target => transient(
            "the target takes no writes: it is read only",
            "a managed service does that while its disk is nearly full: make room, or enlarge it; else look who set \
             default_transaction_read_only; it goes on by itself",
        ),
        Side::Source => transient(
            "the source takes no writes: it is read only, or a standby",
            "nothing of the migration's can be made there now; it goes on by itself",
        ),
    }
}

/// `out of shared memory`, with a hint that names the setting; `out of memory` has none.
pub(super) fn lacks_locks(error: &ServerError) -> bool {
    let hint = error.hint().unwrap_or_default();
    let about_locks =
        hint.contains("_locks_per_transaction") || error.message() == Some("out of shared memory");
    error.sqlstate() == "53200" && about_locks
}

/// Internal errors, which are never translated, that only tell of somebody who was faster.
fn is_a_race(error: &ServerError) -> bool {
    error.message().is_some_and(|message| message.starts_with("tuple concurrently "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Definite, Failure, Transient};
    use crate::wire::error::Error;

    const MAY_PASS: bool = true;
    const STAYS: bool = false;

    /// Whether it may pass, in which words, and with which hint; without one the server's own is shown.
    const VERDICTS: &[(&str, bool, &str, &str)] = &[
        ("08000", MAY_PASS, "the server lost the connection", ""),
        ("08006", MAY_PASS, "the server lost the connection", ""),
        ("08P01", MAY_PASS, "the server lost the connection", ""),
        ("0A000", STAYS, "the server does not support this", "the server's own"),
        ("23505", STAYS, "server reported an error", "the server's own"),
        (
            "25006",
            MAY_PASS,
            "the target takes no writes: it is read only",
            "a managed service does that while its disk is nearly full: make room, or enlarge it; else look who set \
             default_transaction_read_only; it goes on by itself",
        ),
        ("25P02", STAYS, "server reported an error", "the server's own"),
        (
            "25P03",
            MAY_PASS,
            "the server ended a session that was idle in a transaction",
            "look who set idle_in_transaction_session_timeout; it goes on by itself",
        ),
        (
            "25P04",
            MAY_PASS,
            "the server ended a long transaction",
            "look who set transaction_timeout; it goes on by itself",
        ),
        (
            "28000",
            STAYS,
            "role may not log in",
            "check the user in --target (TARGET_SERVICE_URI), and that it has LOGIN",
        ),
        (
            "28P01",
            STAYS,
            "wrong password or user",
            "check user and password in --target (TARGET_SERVICE_URI)",
        ),
        ("3D000", STAYS, "database does not exist", "check the database in --target (TARGET_SERVICE_URI)"),
        ("40001", MAY_PASS, "a transaction got into another one's way", ""),
        ("40002", STAYS, "server reported an error", "the server's own"),
        ("40P01", MAY_PASS, "a deadlock with another session", ""),
        ("42501", STAYS, "privilege missing", "the server's own"),
        ("42P01", STAYS, "server reported an error", "the server's own"),
        ("53000", MAY_PASS, "the server lacks resources", ""),
        ("53100", MAY_PASS, "the server's disk is full", "make room there: it goes on by itself"),
        (
            "53200",
            MAY_PASS,
            "the server is out of memory",
            "free memory there, or give it more: it goes on by itself",
        ),
        ("53300", MAY_PASS, "too many connections", "free some, or raise max_connections"),
        ("53400", MAY_PASS, "a limit of the server's configuration is reached", ""),
        ("55000", STAYS, "something on the server is not in the state that this needs", "the server's own"),
        (
            "55006",
            MAY_PASS,
            "somebody uses what is to be changed",
            "end that session, or wait: it is tried again",
        ),
        (
            "55P03",
            MAY_PASS,
            "a lock was not to be had in time",
            "end who holds it, or wait: it is tried again",
        ),
        (
            "57014",
            MAY_PASS,
            "somebody cancelled the statement",
            "it is tried again; if this comes again and again, look who uses pg_cancel_backend there",
        ),
        ("57P01", MAY_PASS, "somebody ended the session, or the server is shutting down", ""),
        (
            "57P02",
            MAY_PASS,
            "the server crashed",
            "it goes on when the server is there again; its log says why",
        ),
        ("57P03", MAY_PASS, "server does not accept connections now", ""),
        ("57P04", STAYS, "the database was dropped", "give one that is there, or start afresh"),
        ("57P05", MAY_PASS, "the server ended an idle session", "look who set idle_session_timeout"),
        (
            "58030",
            MAY_PASS,
            "the server cannot read or write its disk",
            "look at its log and its disk: it goes on by itself once that is mended",
        ),
        ("58P01", STAYS, "server reported an error", "the server's own"),
        ("XX000", STAYS, "server reported an error", "the server's own"),
        (
            "XX001",
            STAYS,
            "the server found damaged data",
            "its log says where: mend that (REINDEX, or a backup), then run the same command again",
        ),
        (
            "XX002",
            STAYS,
            "the server found damaged data",
            "its log says where: mend that (REINDEX, or a backup), then run the same command again",
        ),
    ];

    /// What an operator is shown: whether it is tried again, the cause, and what to do.
    fn shown(error: ServerError, side: Side) -> (bool, String, String) {
        let said = error.to_string();
        match Error::from(error).into_failure(side) {
            Failure::Definite(Definite { cause, detail, hint, .. }) => {
                assert_eq!(detail, said);
                (STAYS, cause.strip_prefix(&format!("{side}: ")).unwrap_or(&cause).to_owned(), hint)
            }
            Failure::Transient(Transient { cause, detail, .. }) => {
                let hint = detail.strip_prefix(&said).expect("what the server said comes first");
                (MAY_PASS, cause, hint.trim_start_matches("; ").to_owned())
            }
        }
    }

    #[test]
    fn each_code_has_its_verdict() {
        for &(code, passes, cause, hint) in VERDICTS {
            let of_the_server = is_of_the_server(&ServerError::of(code, "", None));
            assert!(of_the_server || !passes, "{code} may pass, and would count as a conflict");
            let (passed, said, advised) =
                shown(ServerError::of(code, "", Some("the server's own")), Side::Target);
            assert_eq!((passed, said.as_str()), (passes, cause), "{code}");
            // What passes by itself needs no hint of the server's.
            let expected = if passes && hint.is_empty() { "the server's own" } else { hint };
            assert_eq!(advised, expected, "{code}");
        }
        // One that no server says.
        assert_eq!(
            judge(&ServerError::of("", "", None), Side::Target),
            definite("server reported an error", "")
        );
    }

    #[test]
    fn who_may_not_log_in_is_told_why() {
        let shown = |message| shown(ServerError::of("28000", message, None), Side::Source);
        for (message, cause, hint) in [
            (
                "no pg_hba.conf entry for host \"10.0.0.1\"",
                "server does not let us in from here",
                "add this machine and role to the server's pg_hba.conf, or to the service's allowed addresses; a \
                 replication connection may need a line of its own, and sslmode matters",
            ),
            (
                "connection requires a valid client certificate",
                "server wants a client certificate",
                "set sslcert and sslkey in --source (SOURCE_SERVICE_URI)",
            ),
            (
                "role \"me\" is not permitted to log in",
                "role may not log in",
                "check the user in --source (SOURCE_SERVICE_URI), and that it has LOGIN",
            ),
        ] {
            assert_eq!(shown(message), (STAYS, cause.to_owned(), hint.to_owned()));
        }
    }

    #[test]
    fn codes_that_stand_for_two_things() {
        let cause = |code, message, hint| judge(&ServerError::of(code, message, hint), Side::Source).cause;
        let locks = "You might need to increase max_locks_per_transaction.";
        assert_eq!(
            cause("53200", "out of shared memory", Some(locks)),
            "the server has no room for more locks"
        );
        let german = "Sie müssen möglicherweise »max_locks_per_transaction« erhöhen.";
        assert_eq!(
            cause("53200", "Shared Memory aufgebraucht", Some(german)),
            "the server has no room for more locks"
        );
        let predicates = "You might need to increase \"max_pred_locks_per_transaction\".";
        assert_eq!(
            cause("53200", "out of shared memory", Some(predicates)),
            "the server has no room for more locks"
        );
        assert_eq!(cause("53200", "out of memory", None), "the server is out of memory");
        assert_eq!(
            cause("XX000", "tuple concurrently updated", None),
            "somebody changed the same object at the same time"
        );
        assert_eq!(cause("25006", "", None), "the source takes no writes: it is read only, or a standby");
    }
}
