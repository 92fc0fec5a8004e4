//! How far the target is behind, in bytes and in seconds.
//!
//! Bytes are easy: the source's WAL position less the applied one. Seconds need the time at which the source reached
//! the position that the target is about to reach. Two things tell it: samples of the source's WAL position, taken
//! about once a second on our own monotonic clock; and the commit time of the oldest transaction that was received and
//! not applied, on the source's clock. Each can only understate the lag, so the greater of the two counts.
//!
//! - Idle source: the applied position follows the keepalives, nothing is missing, the lag is 0.
//! - Other databases of the source write: the same; between two keepalives the lag is their distance at most.
//! - Target away: what was received waits, and both ages grow.
//! - Source away: no samples come any more, and what is missing ages with our clock. What it has written since is not
//!   known, so soon no number of bytes is given any more, and the seconds are at least those since it was last heard.
//!
//! No clock and no I/O: time is an argument. Memory is bounded: when the samples fill their ring, every other one goes
//! and only every 2nd (4th, 8th, …) is taken from then on, until the ring has room again. The error that this makes is
//! within two parts in [`LAG_SAMPLES_MAX`] of the longest time that the ring spans.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{LAG_KNOWN_FOR, LAG_SAMPLES_MAX};
use crate::pg::{PgTimestamp, SourceLsn};

/// Measures one pipeline's lag. All times are since one start, on a monotonic clock.
#[derive(Debug, Clone)]
pub struct LagClock {
    applied: Option<SourceLsn>,
    /// The greatest position known of the source, with the time at which it was first seen.
    newest: Option<Sample>,
    /// When the source last said where it is.
    heard: Duration,
    /// Samples beyond `applied`, oldest first; both fields strictly ascend.
    samples: VecDeque<Sample>,
    samples_max: usize,
    /// One sample of so many is kept.
    stride: u32,
    /// Samples that were not kept since the last one that was.
    passed_over: u32,
    oldest_unapplied: Option<PgTimestamp>,
}

/// How far the target is behind.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lag {
    /// Bytes of WAL; `None` until both positions are known, and while the source does not say where it is.
    pub bytes: Option<u64>,
    /// Seconds; `None` until both positions are known.
    pub seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Duration,
    lsn: SourceLsn,
}

impl LagClock {
    /// A clock that knows nothing yet.
    pub fn new() -> Self {
        Self::with_samples_max(LAG_SAMPLES_MAX)
    }

    fn with_samples_max(samples_max: usize) -> Self {
        Self {
            applied: None,
            newest: None,
            heard: Duration::ZERO,
            samples: VecDeque::new(),
            samples_max,
            stride: 1,
            passed_over: 0,
            oldest_unapplied: None,
        }
    }

    /// The source's WAL has reached `lsn` at `now`. To be told about once a second.
    pub fn source_wal(&mut self, now: Duration, lsn: SourceLsn) {
        let mut at = now;
        self.heard = now;
        if let Some(newest) = self.newest {
            if newest.lsn == lsn {
                return;
            }
            // A position that goes back is a source that lost WAL. What is missing keeps its age.
            while let Some(beyond) = self.samples.back().filter(|sample| sample.lsn >= lsn) {
                at = beyond.at;
                self.samples.pop_back();
            }
        }
        let sample = Sample { at, lsn };
        self.newest = Some(sample);
        if self.applied.is_some_and(|applied| lsn <= applied) {
            return;
        }
        self.keep(sample);
    }

    /// The target has everything up to `lsn`: transactions, or a keepalive when nothing was missing before it.
    pub fn applied(&mut self, lsn: SourceLsn) {
        self.applied = Some(lsn);
        while self.samples.front().is_some_and(|sample| sample.lsn <= lsn) {
            self.samples.pop_front();
        }
    }

    /// The commit time of the oldest transaction that was received and is not applied; `None` if there is none.
    pub fn oldest_unapplied(&mut self, commit_time: Option<PgTimestamp>) {
        self.oldest_unapplied = commit_time;
    }

    /// The lag at `now`, when the source's clock is believed to show `source_now` (`None`: not known). The belief has to
    /// go on with our clock while the source is away.
    pub fn lag(&self, now: Duration, source_now: Option<PgTimestamp>) -> Lag {
        let (Some(applied), Some(newest)) = (self.applied, self.newest) else {
            return Lag::default();
        };
        let by_commit_time = match (source_now, self.oldest_unapplied) {
            (Some(source_now), Some(committed)) => source_now.seconds_since(committed).max(0.0),
            _ => 0.0,
        };
        let bytes = newest.lsn.bytes_since(applied);
        let by_sample = if bytes == 0 {
            0.0
        } else {
            let oldest_missing = self.samples.front().unwrap_or(&newest);
            now.saturating_sub(oldest_missing.at).as_secs_f64()
        };
        let silence = now.saturating_sub(self.heard);
        if silence > LAG_KNOWN_FOR {
            let seconds = by_sample.max(by_commit_time).max(silence.as_secs_f64());
            return Lag { bytes: None, seconds: Some(seconds) };
        }
        Lag { bytes: Some(bytes), seconds: Some(by_sample.max(by_commit_time)) }
    }

    fn keep(&mut self, sample: Sample) {
        if self.samples.len() < self.samples_max / 4 {
            self.stride = (self.stride / 2).max(1);
        }
        if !self.samples.is_empty() && self.passed_over + 1 < self.stride {
            self.passed_over += 1;
            return;
        }
        self.passed_over = 0;
        self.samples.push_back(sample);
        if self.samples.len() >= self.samples_max {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride = self.stride.saturating_mul(2);
        }
    }
}

impl Default for LagClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Observed {
        /// Seconds, source's WAL position.
        Wal(u64, u64),
        Applied(u64),
        /// The source's clock in seconds at which the oldest unapplied transaction committed.
        Unapplied(Option<i64>),
        /// At so many seconds (the source's clock shows the same): bytes and seconds.
        Lag(u64, Option<u64>, Option<f64>),
        /// The same where the source's clock is not known.
        LagWithoutClock(u64, Option<u64>, Option<f64>),
    }

    use Observed::*;

    fn source_clock(seconds: i64) -> PgTimestamp {
        PgTimestamp::from_micros(seconds * 1_000_000)
    }

    #[track_caller]
    fn check(steps: impl IntoIterator<Item = Observed>) {
        let mut clock = LagClock::new();
        for (index, step) in steps.into_iter().enumerate() {
            match step {
                Wal(at, lsn) => clock.source_wal(Duration::from_secs(at), SourceLsn::new(lsn)),
                Applied(lsn) => clock.applied(SourceLsn::new(lsn)),
                Unapplied(committed) => clock.oldest_unapplied(committed.map(source_clock)),
                Lag(at, bytes, seconds) => {
                    let lag = clock.lag(Duration::from_secs(at), Some(source_clock(at as i64)));
                    assert_eq!((lag.bytes, lag.seconds), (bytes, seconds), "step {index}");
                }
                LagWithoutClock(at, bytes, seconds) => {
                    let lag = clock.lag(Duration::from_secs(at), None);
                    assert_eq!((lag.bytes, lag.seconds), (bytes, seconds), "step {index}");
                }
            }
        }
    }

    #[test]
    fn unknown_until_both_positions_are_known() {
        check([
            Lag(0, None, None),
            Wal(0, 100),
            Lag(1, None, None),
            Applied(100),
            Lag(2, Some(0), Some(0.0)),
        ]);
        check([Applied(100), Lag(1, None, None), Wal(1, 150), Lag(1, Some(50), Some(0.0))]);
    }

    #[test]
    fn idle_source() {
        check([
            Wal(0, 100),
            Applied(100),
            Wal(1, 100),
            Wal(2, 100),
            Wal(3600, 100),
            Lag(3600, Some(0), Some(0.0)),
            // Then one write, applied two seconds later.
            Wal(3601, 150),
            Lag(3602, Some(50), Some(1.0)),
            Lag(3603, Some(50), Some(2.0)),
            Applied(150),
            Lag(3603, Some(0), Some(0.0)),
        ]);
    }

    #[test]
    fn an_idle_source_does_not_rejuvenate_what_is_missing() {
        check([Applied(100), Wal(1, 150), Wal(2, 150), Wal(10, 150), Lag(10, Some(50), Some(9.0))]);
    }

    #[test]
    fn busy_source_with_a_steady_lag() {
        let mut steps = vec![Applied(0)];
        for second in 1..=1000 {
            steps.push(Wal(second, second * 1000));
            if second > 5 {
                steps.push(Applied((second - 5) * 1000));
                steps.push(Lag(second, Some(5000), Some(4.0)));
                steps.push(Unapplied(Some(second as i64 - 5)));
                steps.push(Lag(second, Some(5000), Some(5.0)));
                steps.push(Unapplied(None));
            }
        }
        check(steps);
    }

    #[test]
    fn applied_beyond_the_last_sample() {
        check([
            Wal(0, 100),
            Applied(180),
            Lag(1, Some(0), Some(0.0)),
            // What was received after the sample still has its commit time.
            Unapplied(Some(-2)),
            Lag(1, Some(0), Some(3.0)),
            Unapplied(None),
            Wal(1, 200),
            Lag(2, Some(20), Some(1.0)),
        ]);
    }

    #[test]
    fn target_away() {
        check([
            Wal(0, 100),
            Applied(100),
            Wal(1, 200),
            Unapplied(Some(1)),
            Wal(2, 300),
            Wal(3, 400),
            Wal(60, 400),
            Lag(60, Some(300), Some(59.0)),
            // It is back: half is applied, then all.
            Applied(200),
            Unapplied(Some(2)),
            Lag(61, Some(200), Some(59.0)),
            Applied(400),
            Unapplied(None),
            Lag(62, Some(0), Some(0.0)),
        ]);
    }

    #[test]
    fn source_away() {
        check([
            Wal(0, 100),
            Applied(100),
            Lag(5, Some(0), Some(0.0)),
            Lag(6, None, Some(6.0)),
            Lag(600, None, Some(600.0)),
            Wal(601, 100),
            Lag(601, Some(0), Some(0.0)),
        ]);
        check([Wal(0, 100), Applied(100), Wal(1, 200), LagWithoutClock(600, None, Some(599.0))]);
    }

    #[test]
    fn other_databases_write() {
        let mut steps = Vec::new();
        for second in 0..100_u64 {
            steps.push(Wal(second, 1000 + second * 10));
            // A keepalive each ten seconds carries the applied position to the end of WAL.
            if second % 10 == 0 {
                steps.push(Applied(1000 + second * 10));
            }
            let since = second % 10;
            steps.push(Lag(second, Some(since * 10), Some(since.saturating_sub(1) as f64)));
        }
        check(steps);
    }

    #[test]
    fn clocks_that_disagree_never_make_a_lag_negative() {
        check([Wal(0, 100), Applied(50), Unapplied(Some(500)), Lag(3, Some(50), Some(3.0))]);
    }

    #[test]
    fn a_source_position_that_goes_back_keeps_the_age() {
        check([
            Applied(100),
            Wal(1, 200),
            Wal(2, 300),
            Wal(10, 150),
            Lag(11, Some(50), Some(10.0)),
            Applied(150),
            Lag(11, Some(0), Some(0.0)),
        ]);
    }

    #[test]
    fn memory_is_bounded_and_the_lag_stays_about_right() {
        let mut clock = LagClock::with_samples_max(64);
        let at = |second: u64| Duration::from_secs(second);
        clock.applied(SourceLsn::new(0));
        let outage = 100_000;
        for second in 1..=outage {
            clock.source_wal(at(second), SourceLsn::new(second));
            assert!(clock.samples.len() < 64);
            assert_eq!(clock.lag(at(second), None).seconds, Some((second - 1) as f64));
        }
        // Catching up at ten times the speed: the measured lag may be short by the distance between two samples.
        let mut second = outage;
        let mut applied = 0;
        while applied < second {
            second += 1;
            applied = (applied + 10).min(second);
            clock.source_wal(at(second), SourceLsn::new(second));
            clock.applied(SourceLsn::new(applied));
            let lag = clock.lag(at(second), None).seconds.expect("both positions are known");
            let truth = (second - applied) as f64;
            assert!(lag <= truth, "{second}: {lag} of {truth}");
            assert!(lag >= truth - 2.0 * outage as f64 / 32.0, "{second}: {lag} of {truth}");
        }
        assert_eq!(clock.lag(at(second), None).seconds, Some(0.0));
        // With nothing missing, the resolution comes back.
        for _ in 0..20 {
            second += 1;
            clock.source_wal(at(second), SourceLsn::new(second));
            clock.applied(SourceLsn::new(second - 1));
        }
        assert_eq!(clock.stride, 1);
    }
}
