//! PostgreSQL's timestamps.

/// A point in time as the replication protocol has it: microseconds since 2000-01-01 00:00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PgTimestamp(i64);

/// Microseconds from 1970-01-01 to 2000-01-01, both UTC.
const UNIX_TO_POSTGRES_MICROS: i64 = 946_684_800_000_000;

impl PgTimestamp {
    /// The point `micros` microseconds after 2000-01-01 00:00:00 UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 2000-01-01 00:00:00 UTC.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The point `micros` microseconds after 1970-01-01 00:00:00 UTC.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(UNIX_TO_POSTGRES_MICROS))
    }

    /// Microseconds since 1970-01-01 00:00:00 UTC.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_TO_POSTGRES_MICROS)
    }

    /// Seconds from `earlier` to here; negative where `earlier` is later (two clocks seldom agree).
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }
}
