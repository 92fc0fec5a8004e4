//! Who is connected, and who has to go when there are too many.
//!
//! Each connection has a seat from the moment that it is accepted. It waits until its request has been read whole and its
//! answer is made; then it is answered. Where a seat is wanted and none is free, the oldest that still waits has to go:
//! whoever has something to ask does so at once, and reads what he is told. So clients that say nothing, or read nothing,
//! keep nobody out, however many they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::limits::{HTTP_ANSWERS_MAX, HTTP_CONNECTIONS_MAX};

/// All seats.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Seats>>);

/// By the order in which they came. Who drops the sender ends the connection.
#[derive(Debug, Default)]
struct Seats {
    came: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    answered: BTreeMap<u64, oneshot::Sender<()>>,
}

/// One connection's, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    connections: Connections,
}

impl Connections {
    /// A seat, and what completes when it is taken away.
    pub fn seat(&self) -> (Seat, oneshot::Receiver<()>) {
        let (stay, leave) = oneshot::channel();
        let mut seats = self.lock();
        if seats.waiting.len() + seats.answered.len() >= HTTP_CONNECTIONS_MAX
            && seats.waiting.pop_first().is_none()
        {
            seats.answered.pop_first();
        }
        let number = seats.came;
        seats.came += 1;
        seats.waiting.insert(number, stay);
        (Seat { number, connections: self.clone() }, leave)
    }

    /// Frees the oldest seat of those that wait.
    pub fn free_one(&self) {
        self.lock().waiting.pop_first();
    }

    /// Frees the seats of all that wait.
    pub fn free_waiting(&self) {
        self.lock().waiting.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Its answer is there, and is kept until it is read.
    pub fn is_answered(&self) {
        let mut seats = self.connections.lock();
        if seats.answered.len() >= HTTP_ANSWERS_MAX {
            seats.answered.pop_first();
        }
        if let Some(stay) = seats.waiting.remove(&self.number) {
            seats.answered.insert(self.number, stay);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.connections.lock();
        seats.waiting.remove(&self.number);
        seats.answered.remove(&self.number);
    }
}
