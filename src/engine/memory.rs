//! Memory for what is received and not yet applied: a guard is taken before a segment is handed on, travels with it, and
//! gives the memory back when it is dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::QUEUE_COST_MAX;

/// What one pipeline may hold.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    permits: Arc<Semaphore>,
    bytes_max: usize,
}

/// Memory that is held.
#[derive(Debug)]
pub struct Held(OwnedSemaphorePermit);

impl Memory {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// Waits until there is room for so many bytes.
    pub(super) async fn hold(&self, bytes: usize) -> Held {
        let permits = Arc::clone(&self.permits);
        Held(permits.acquire_many_owned(self.permits_for(bytes)).await.expect("it is never closed"))
    }

    /// One row may be larger than the bound: it then has the memory to itself.
    fn permits_for(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.bytes_max)).unwrap_or(u32::MAX)
    }
}

impl Held {
    /// Holds the memory of both from now on.
    pub(super) fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

#[cfg(test)]
impl Memory {
    /// There is room.
    pub(super) fn hold_now(&self, bytes: usize) -> Held {
        let permits = Arc::clone(&self.permits);
        Held(permits.try_acquire_many_owned(self.permits_for(bytes)).expect("there is room"))
    }

    pub(super) fn held(&self) -> usize {
        self.bytes_max - self.permits.available_permits()
    }
}

const _: () = assert!(QUEUE_COST_MAX <= u32::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_with_its_guard() {
        let memory = Memory::new(100);
        let mut batch = memory.hold_now(30);
        let other = memory.hold_now(50);
        assert_eq!(memory.held(), 80);
        batch.merge(memory.hold_now(20));
        assert_eq!(memory.held(), 100);
        drop(other);
        assert_eq!(memory.held(), 50);
        drop(batch);
        // One that is larger than the bound has it all.
        let huge = memory.hold_now(usize::MAX);
        assert_eq!(memory.held(), 100);
        drop(huge);
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test]
    async fn who_wants_more_than_there_is_waits() {
        let memory = Memory::new(100);
        let first = memory.hold(60).await;
        let waiting = memory.hold(50);
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there was no room"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        drop(waiting.await);
        assert_eq!(memory.held(), 0);
    }
}
