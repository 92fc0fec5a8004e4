//! Where a source's timelines were left, as TIMELINE_HISTORY says. Manual: "Streaming Replication Protocol".
//!
//! The file has a line for each earlier timeline, oldest first: its number, the position where the next one begins, and a
//! reason, with tabs between them. Blank lines and those that begin with `#` say nothing (`readTimeLineHistory`).

use crate::pg::{SourceLsn, TimelineId};

/// The earlier timelines, each with where it was left: what lies beyond belongs to no ancestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory(Vec<(TimelineId, SourceLsn)>);

impl TimelineHistory {
    /// Reads the file; `None` where it is not as it should be.
    pub fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let left = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let timeline = words.next()?.parse().ok().map(TimelineId::new)?;
            Some((timeline, words.next()?.parse().ok()?))
        };
        lines.map(left).collect::<Option<_>>().map(Self)
    }

    /// Where that timeline was left; `None` if it is no ancestor.
    pub fn left(&self, timeline: TimelineId) -> Option<SourceLsn> {
        self.0.iter().find(|(earlier, _)| *earlier == timeline).map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_servers() {
        let check = |text: &str, timeline: u32, expected: Option<Option<&str>>| {
            let left = TimelineHistory::parse(text).map(|history| history.left(TimelineId::new(timeline)));
            assert_eq!(
                left.map(|left| left.map(|at| at.to_string())),
                expected.map(|at| at.map(str::to_owned))
            );
        };
        let text =
            "1\t0/30000A0\tno recovery target specified\n\n# of ours\n2\t1/5000000\tbefore 2026-01-01\n";
        check(text, 1, Some(Some("0/30000A0")));
        check(text, 2, Some(Some("1/5000000")));
        check(text, 3, Some(None));
        check("", 1, Some(None));
        check("1", 1, None);
        check("one\t0/1\tx", 1, None);
        check("1\tthere\tx", 1, None);
    }
}
