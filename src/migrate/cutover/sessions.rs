//! Who is in the source's database when it is fenced, and what becomes of them.
//!
//! | session that began before the fence | what becomes of it |
//! |---|---|
//! | one that we may end | ended |
//! | a parallel worker | nothing: it cannot write, and goes with its leader |
//! | a background worker of a superuser, at rest | nothing: it stays, and is named |
//! | any other: of a superuser, of a role that is not ours, in a transaction | it has to end by itself, or nothing is fenced |
//!
//! The third are schedulers: of `pg_cron`, of `TimescaleDB`. Nobody but a superuser may end them, and nobody should: one
//! that is ended without a failure is not started again before the server is. Their jobs run in sessions of their own,
//! which begin later and are read only. What such a worker writes itself counts as anybody's writes after the fence; since
//! the fence does not reach it, that is watched for as if there were none.
//!
//! One that applies what another server sends is no scheduler: it is at rest only until the next change comes.

use crate::catalog::{self, OtherSession};
use crate::error::Definite;
use crate::limits::CUTOVER_NAMES_MAX;
use crate::pg::Sql;

/// What becomes of a session that began before the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is ours to end.
    Ended,
    /// It cannot write.
    Harmless,
    /// It stays, and somebody should know.
    Stays,
    /// It could go on writing, and is not ours to end.
    InTheWay,
}

impl Fate {
    pub(super) fn of(session: &OtherSession) -> Self {
        let worker = match session.backend_type.as_deref() {
            Some("parallel worker") => return Self::Harmless,
            Some("client backend" | "walsender") | None => false,
            Some(_) => true,
        };
        if worker && session.superuser {
            let at_rest = !session.in_transaction && !applies(session);
            if at_rest { Self::Stays } else { Self::InTheWay }
        } else if session.mine_to_end {
            Self::Ended
        } else {
            Self::InTheWay
        }
    }
}

/// Whether a background worker is one of logical replication, or of an extension for it.
fn applies(session: &OtherSession) -> bool {
    const WORDS: [&str; 5] = ["apply", "sync", "replication", "receiver", "writer"];
    let named = [session.backend_type.as_deref().unwrap_or_default(), &session.application_name];
    named.iter().any(|name| WORDS.iter().any(|word| name.to_lowercase().contains(word)))
}

/// Those that something becomes of.
pub(super) fn with(fate: Fate, sessions: &[OtherSession]) -> Vec<OtherSession> {
    sessions.iter().filter(|session| Fate::of(session) == fate).cloned().collect()
}

pub(super) fn pids(sessions: &[OtherSession]) -> Vec<i32> {
    sessions.iter().map(|session| session.pid).collect()
}

/// What somebody should know of those that stay.
pub(super) fn staying(sessions: &[OtherSession]) -> Option<String> {
    (!sessions.is_empty()).then(|| {
        format!(
            "background workers of the source stay, and the fence does not reach them: what they write from now on stays \
             there: {}",
            first_names(&named(sessions))
        )
    })
}

/// Why nothing can be fenced, to the role `me`.
pub(super) fn not_ended(left: &[OtherSession], me: &str) -> Definite {
    const AGAIN: &str = "then run `walferry cutover` again; or stop all writers and use --fence none";
    let hint = if left.iter().any(|session| session.superuser && session.backend_type.is_none()) {
        let grant = Sql::new("GRANT pg_read_all_stats TO ").ident(me);
        format!(
            "as an administrator: {grant}; it shows what they are, and a background worker that is at rest may stay; {AGAIN}"
        )
    } else if left.iter().all(applies) {
        format!("disable the subscriptions that they work for, {AGAIN}")
    } else {
        let end = catalog::end_by_hand(&pids(left));
        format!("have them end, as their role or as an administrator: {end} {AGAIN}")
    };
    Definite::new("sessions of the source cannot be ended: they could go on writing")
        .detail(first_names(&named(left)))
        .hint(hint)
}

/// Each with its process, its user, and what is shown of what it is.
pub(super) fn named(sessions: &[OtherSession]) -> Vec<String> {
    sessions.iter().map(name).collect()
}

fn name(session: &OtherSession) -> String {
    let kind = session.backend_type.as_deref().filter(|kind| *kind != "client backend");
    let application = Some(session.application_name.as_str()).filter(|name| Some(*name) != kind);
    let what: Vec<&str> = kind.into_iter().chain(application).filter(|what| !what.is_empty()).collect();
    let what = if what.is_empty() { String::new() } else { format!(" ({})", what.join(", ")) };
    format!("server process {} of {}{what}", session.pid, session.user)
}

/// The first of some names.
pub(super) fn first_names(names: &[String]) -> String {
    let more = names.len().saturating_sub(CUTOVER_NAMES_MAX);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As servers 13 to 18 show it.
    fn shown(user: &str, backend_type: Option<&str>, application_name: &str) -> OtherSession {
        OtherSession {
            pid: 7,
            user: user.to_owned(),
            superuser: user == "postgres",
            application_name: application_name.to_owned(),
            backend_type: backend_type.map(str::to_owned),
            in_transaction: false,
            mine_to_end: user == "clerk",
        }
    }

    #[test]
    fn fates() {
        let check = |session: OtherSession, expected, expected_in_transaction| {
            assert_eq!(Fate::of(&session), expected, "{session:?}");
            let session = OtherSession { in_transaction: true, ..session };
            assert_eq!(Fate::of(&session), expected_in_transaction, "{session:?}");
        };
        let both = |session, expected| check(session, expected, expected);
        // To everybody, of a role that is not theirs.
        both(shown("postgres", None, "pg_cron scheduler"), Fate::InTheWay);
        both(shown("postgres", None, "psql"), Fate::InTheWay);
        both(shown("landlord", None, "psql"), Fate::InTheWay);
        both(shown("clerk", None, ""), Fate::Ended);
        // To members of pg_read_all_stats.
        both(shown("clerk", Some("client backend"), "till"), Fate::Ended);
        both(shown("landlord", Some("client backend"), "till"), Fate::InTheWay);
        both(shown("postgres", Some("client backend"), "psql"), Fate::InTheWay);
        both(shown("postgres", Some("parallel worker"), "psql"), Fate::Harmless);
        for (backend_type, application) in [
            ("pg_cron launcher", "pg_cron scheduler"),
            ("TimescaleDB Background Worker Scheduler", "TimescaleDB Background Worker Scheduler"),
            ("background worker", "pg_cron scheduler"),
            ("worker_spi", ""),
            ("pg_cron", ""),
        ] {
            check(shown("postgres", Some(backend_type), application), Fate::Stays, Fate::InTheWay);
            both(shown("clerk", Some(backend_type), application), Fate::Ended);
        }
        for (backend_type, application) in [
            ("logical replication worker", ""),
            ("logical replication apply worker", ""),
            ("logical replication tablesync worker", ""),
            ("pglogical apply 16384:2875150205", "pglogical apply 16384:2875150205"),
            ("background worker", "pglogical apply 16384:2875150205"),
        ] {
            both(shown("postgres", Some(backend_type), application), Fate::InTheWay);
        }
        // A superuser may end everybody.
        let mine = |session| OtherSession { mine_to_end: true, ..session };
        both(mine(shown("postgres", Some("client backend"), "psql")), Fate::Ended);
        let launcher = shown("postgres", Some("pg_cron launcher"), "pg_cron scheduler");
        check(mine(launcher), Fate::Stays, Fate::InTheWay);
    }

    #[test]
    fn what_is_said() {
        let launcher = shown("postgres", Some("pg_cron launcher"), "pg_cron scheduler");
        let check = |session: OtherSession, name: &str, hint: &str| {
            let refusal = not_ended(std::slice::from_ref(&session), "mover");
            assert_eq!(refusal.detail, format!("server process 7 of {name}"));
            assert!(refusal.hint.starts_with(hint), "{}", refusal.hint);
        };
        let end = "have them end, as their role or as an administrator: \
                   SELECT pg_terminate_backend(pid) FROM unnest('{7}'::int[]) pid; then";
        check(launcher, "postgres (pg_cron launcher, pg_cron scheduler)", end);
        check(shown("postgres", Some("worker"), "worker"), "postgres (worker)", end);
        check(shown("postgres", Some("client backend"), ""), "postgres", end);
        check(shown("landlord", None, "psql"), "landlord (psql)", end);
        let grant = "as an administrator: GRANT pg_read_all_stats TO \"mover\"; it";
        check(shown("postgres", None, "pg_cron scheduler"), "postgres (pg_cron scheduler)", grant);
        let apply = shown("postgres", Some("logical replication worker"), "");
        check(apply, "postgres (logical replication worker)", "disable the subscriptions that they work for");
    }
}
