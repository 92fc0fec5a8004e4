//! Something that goes on beside a loop, which waits for other things as well.

use std::future::{Future, pending};
use std::pin::Pin;

use crate::error::Result;

/// At most one such thing. Dropped, it is given up.
pub(super) struct Beside<'a, T>(Option<Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>>);

impl<'a, T> Beside<'a, T> {
    pub(super) const fn idle() -> Self {
        Self(None)
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Begins; it goes on whenever [`Beside::done`] is waited for.
    pub(super) fn start(&mut self, work: impl Future<Output = Result<T>> + Send + 'a) {
        self.0 = Some(Box::pin(work));
    }

    /// What came of it; never while there is nothing. To give up the wait loses nothing.
    pub(super) async fn done(&mut self) -> Result<T> {
        let Some(work) = &mut self.0 else { return pending().await };
        let done = work.await;
        self.0 = None;
        done
    }
}
