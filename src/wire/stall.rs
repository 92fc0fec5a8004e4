//! A peer that takes no data is not a dead one.
//!
//! `TCP_USER_TIMEOUT` bounds two things alike: what was sent and is not acknowledged, and what cannot be sent since the
//! peer's window is closed. The first is a peer that is gone. The second may be a server in the middle of a long statement,
//! with the next ones waiting in its buffers and ours: given up and sent again, that statement would never come to its end.
//! The kernel knows the difference. It asks into a closed window, and counts the questions that were not answered:
//! `/proc/net/tcp` has the timer (4: such a question is next) and the count. While the peer answers, the bound is moved
//! on; from its last answer on, it stands.
//!
//! Where there is no such file the bound is the kernel's, and the statement is tried again.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::STALL_LOOK;

/// Looks now and then, while nothing is heard of what was sent.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// `TCP_USER_TIMEOUT`, where there is one.
    user_timeout: Option<Duration>,
    /// Something was sent since something was read.
    unanswered: bool,
    next: Option<Pin<Box<Sleep>>>,
    /// When the window was first seen closed, of those looks on end that have seen it so.
    since: Option<Instant>,
}

impl Stall {
    pub(super) fn new(user_timeout: Option<Duration>) -> Self {
        Self { user_timeout, ..Self::default() }
    }

    pub(super) fn wrote(&mut self) {
        self.unanswered = true;
    }

    pub(super) fn read(&mut self) {
        self.unanswered = false;
    }

    /// To be called whenever the connection is waited for: it then wakes the waiting task for the next look.
    pub(super) fn look(&mut self, stream: &TcpStream, cx: &mut Context<'_>) {
        let Some(user_timeout) = self.user_timeout.filter(|_| cfg!(target_os = "linux")) else { return };
        let next = self.next.get_or_insert_with(|| Box::pin(sleep(STALL_LOOK)));
        while next.as_mut().poll(cx).is_ready() {
            next.as_mut().reset(Instant::now() + STALL_LOOK);
            if !self.unanswered && self.since.is_none() {
                continue;
            }
            let closed = waits_for_window(stream);
            let bound = match (closed, self.since) {
                (false, None) => continue,
                (false, Some(_)) => {
                    self.since = None;
                    user_timeout
                }
                (true, since) => since.map_or(Duration::ZERO, |since| since.elapsed()) + user_timeout,
            };
            if closed {
                self.since.get_or_insert_with(Instant::now);
            }
            set_user_timeout(stream, bound);
        }
    }
}

#[cfg(target_os = "linux")]
fn set_user_timeout(stream: &TcpStream, bound: Duration) {
    // One that is closed meanwhile says so to whoever reads it.
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(bound));
}

#[cfg(not(target_os = "linux"))]
fn set_user_timeout(_: &TcpStream, _: Duration) {}

/// Whether the peer's window is closed, and the peer answers.
#[cfg(target_os = "linux")]
fn waits_for_window(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", stream.as_raw_fd()));
    let link = link.unwrap_or_default();
    let Some(inode) = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')) else {
        return false;
    };
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(std::fs::read_to_string);
    tables.iter().flatten().any(|table| asks_into_closed_window(table, inode))
}

#[cfg(not(target_os = "linux"))]
fn waits_for_window(_: &TcpStream) -> bool {
    false
}

/// Whether a table like `/proc/net/tcp` says of the socket that its next timer is that of a question into a closed window,
/// and that none is unanswered.
///
/// ```text
/// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
/// ```
fn asks_into_closed_window(table: &str, inode: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, _, timer, _, _, unanswered, found, ..] = fields[..] else { return false };
        found == inode && timer.starts_with("04:") && unanswered == "0"
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_the_kernel_says() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        for (timer, unanswered, expected) in [
            ("04:0000001F", "0", true),
            ("04:0000001F", "1", false),
            ("01:0000001F", "0", false),
            ("00:00000000", "0", false),
        ] {
            let line = format!(
                "   0: 0100007F:1538 0100007F:9C40 01 00012345:00000000 {timer} 00000000   107        {unanswered} 22233 2 0000 20 4\n"
            );
            let table = format!("{table}{line}");
            assert_eq!(asks_into_closed_window(&table, "22233"), expected, "{timer} {unanswered}");
            assert!(!asks_into_closed_window(&table, "2223"), "another socket");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_peer_that_does_not_read() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        let (ours, (theirs, _)) = (ours.unwrap(), theirs.unwrap());
        assert!(!waits_for_window(&ours));
        let began = Instant::now();
        // The kernel takes its time until it asks.
        while !waits_for_window(&ours) {
            let _ = ours.try_write(&[0; 65_536]);
            assert!(began.elapsed() < Duration::from_secs(30), "its window does not close");
            sleep(Duration::from_millis(10)).await;
        }
        let mut buffer = vec![0; 1 << 20];
        while waits_for_window(&ours) {
            let _ = theirs.try_read(&mut buffer);
            assert!(began.elapsed() < Duration::from_secs(60), "its window does not open");
            sleep(Duration::from_millis(10)).await;
        }
    }
}
