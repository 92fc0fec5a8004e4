//! An answer that takes a while to make, made once for all who wait for it.
//!
//! Whoever asks gets what was true when he asked, or later. One is made at a time, on a thread of its own: however many
//! ask, neither the migration nor `/healthz` waits for it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

/// The last one.
#[derive(Debug, Clone, Default)]
pub(super) struct Rendered(Arc<Mutex<Option<(Instant, Bytes)>>>);

impl Rendered {
    /// The last one that was begun after this call, or one that `make` makes.
    ///
    /// # Errors
    /// What `make` says; the next who asks tries again.
    pub async fn get<E>(
        &self,
        make: impl FnOnce() -> Result<Vec<u8>, E> + Send + 'static,
    ) -> Result<Bytes, String>
    where
        E: Display + 'static,
    {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.0).lock_owned().await;
        if let Some((begun, bytes)) = &*last
            && *begun > asked
        {
            return Ok(bytes.clone());
        }
        // It is made to its end even if nobody waits for it any more: so there is never a second one beside it.
        let made = spawn_blocking(move || {
            let begun = Instant::now();
            let bytes = make().map(Bytes::from).map_err(|error| error.to_string())?;
            *last = Some((begun, bytes.clone()));
            Ok(bytes)
        });
        made.await.map_err(|error| error.to_string())?
    }
}
