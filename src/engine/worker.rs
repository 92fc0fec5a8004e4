//! The apply task: takes what is to be done in its order, plans and sends it while what was sent before is executed.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::apply::{Applier, ApplyError, Done};
use crate::pg::EndLsn;
use crate::plan::Batch;

/// The task, from outside. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Worker {
    task: JoinSet<Applier>,
    asked: mpsc::UnboundedSender<Ask>,
    done: mpsc::UnboundedReceiver<Result<(Done, Duration), ApplyError>>,
}

/// What is to be done. Whoever asks has a bound on how much is under way.
#[derive(Debug)]
enum Ask {
    Apply(Batch),
    Store { previous: EndLsn, to: EndLsn },
    Abandon,
    Flush,
}

impl Worker {
    pub(super) fn start(applier: Applier) -> Self {
        let (asked, asks) = mpsc::unbounded_channel();
        let (results, done) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(work(applier, asks, results).in_current_span());
        Self { task, asked, done }
    }

    pub(super) fn apply(&self, batch: Batch) {
        self.ask(Ask::Apply(batch));
    }

    pub(super) fn store(&self, previous: EndLsn, to: EndLsn) {
        self.ask(Ask::Store { previous, to });
    }

    pub(super) fn abandon(&self) {
        self.ask(Ask::Abandon);
    }

    pub(super) fn flush(&self) {
        self.ask(Ask::Flush);
    }

    /// The next thing that is done, and how long it took; after an error nothing comes any more. Giving up the wait loses
    /// nothing.
    pub(super) async fn done(&mut self) -> Result<(Done, Duration), ApplyError> {
        match self.done.recv().await {
            Some(done) => done,
            None => self.panicked().await,
        }
    }

    /// Ends the task, when nothing is under way.
    pub(super) async fn end(self) -> Applier {
        let Self { mut task, asked, done } = self;
        drop((asked, done));
        let joined = task.join_next().await.expect("there is one task");
        // It is never cancelled while it is waited for: a panic there is a panic here.
        joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    fn ask(&self, ask: Ask) {
        // A task that ended has said why, or panics in whoever waits for it.
        let _ = self.asked.send(ask);
    }

    async fn panicked(&mut self) -> ! {
        match self.task.join_next().await {
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            // The error was taken already, and whoever took it goes.
            Some(Ok(_)) | None => std::future::pending().await,
        }
    }
}

async fn work(
    mut applier: Applier,
    mut asks: mpsc::UnboundedReceiver<Ask>,
    results: mpsc::UnboundedSender<Result<(Done, Duration), ApplyError>>,
) -> Applier {
    let mut began: VecDeque<Instant> = VecDeque::new();
    let mut failed = None;
    loop {
        let asked = tokio::select! {
            biased;
            () = applier.replied(), if applier.under_way() > 0 => None,
            asked = asks.recv(), if failed.is_none() => match asked {
                Some(asked) => Some(asked),
                None => return applier,
            },
        };
        if let Some(asked) = asked {
            began.push_back(Instant::now());
            let sent = match asked {
                Ask::Apply(batch) => applier.send(batch).await,
                Ask::Store { previous, to } => applier.send_store(previous, to).map_err(Into::into),
                Ask::Abandon => applier.send_abandon().map_err(Into::into),
                Ask::Flush => applier.send_flush().map_err(Into::into),
            };
            failed = sent.err();
        } else {
            let done = applier.complete().await;
            let took = began.pop_front().map_or(Duration::ZERO, |began| began.elapsed());
            let ends = done.is_err();
            if results.send(done.map(|done| (done, took))).is_err() || ends {
                return applier;
            }
        }
        // What was sent before the failure is done first.
        if applier.under_way() == 0
            && let Some(error) = failed.take()
        {
            let _ = results.send(Err(error));
            return applier;
        }
    }
}
