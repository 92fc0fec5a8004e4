//! What is asked for, and what became of it, as `walferry.request` holds it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Config, FenceKind};
use crate::error::{Definite, Failure};
use crate::limits::CUTOVER_TIMEOUT_MAX;

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CutoverRequest {
    /// What keeps the source from being written to.
    pub fence: FenceKind,
    /// It is refused when the target is further behind, in bytes of WAL.
    pub lag_bytes_max: u64,
    /// It is given up when it takes longer, in milliseconds.
    pub timeout_ms: u64,
    /// What the target's schema lacks of the source's, views and indexes say, is left so.
    #[serde(default)]
    pub accept_drift: bool,
    /// Somebody has changed their mind.
    #[serde(default)]
    pub given_up: bool,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct CutoverStatus {
    /// Where it is.
    pub state: CutoverState,
    /// The steps that are done.
    pub steps: Vec<DoneStep>,
    /// The source's position just after the fence: the target has all that committed before it.
    pub source_lsn: Option<String>,
    /// How long the source could not be written to, until it was `done` or the fence was down again.
    pub fenced_seconds: Option<f64>,
    /// The fence, while it is up.
    pub fence: Option<Fence>,
    /// What somebody should know.
    pub warnings: Vec<String>,
    /// Why it was given up, or refused.
    pub error: Option<CutoverError>,
}

/// Where a cutover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutoverState {
    /// Under way.
    #[default]
    Running,
    /// Not begun: nothing was changed.
    Refused,
    /// Given up: the fence is down, and the target follows as before.
    GivenUp,
    /// The target is what the source was; the source stays fenced.
    Done,
}

/// A step of a cutover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutoverStep {
    /// It can be done.
    Check,
    /// Nobody writes to the source any more.
    Fence,
    /// All that was written is applied.
    Drain,
    /// What replication does not carry is brought up to date.
    Carry,
    /// Nothing came after the fence.
    Prove,
}

/// A step that is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DoneStep {
    /// Which.
    pub step: CutoverStep,
    /// What it took.
    pub seconds: f64,
}

/// What is put up, with all that it takes to take it down again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// What it is.
    pub kind: FenceKind,
    /// What the database had for `default_transaction_read_only` before.
    pub previous: Option<String>,
    /// When, by the source's clock: sessions that begin later may be read only for as long as they live.
    pub since: String,
}

/// Why a cutover was given up, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutoverError {
    /// Short.
    pub cause: String,
    /// What was found where; may be empty.
    pub detail: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl CutoverRequest {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        Self {
            fence: config.fence,
            lag_bytes_max: config.lag_bytes_max,
            timeout_ms: u64::try_from(config.cutover_timeout.as_millis()).unwrap_or(u64::MAX),
            accept_drift: config.accept_drift,
            given_up: false,
        }
    }

    /// How long it may take: within what the configuration allows, whoever has written the request.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms).min(CUTOVER_TIMEOUT_MAX)
    }
}

impl CutoverStatus {
    /// One that was not begun.
    pub fn refused(error: &Definite) -> Self {
        Self { state: CutoverState::Refused, error: Some(error.into()), ..Self::default() }
    }

    /// What is shown of it, for one database: all but what only the engine needs.
    pub fn shown(&self, database: &str) -> Value {
        json!({
            "database": database, "state": self.state, "steps": self.steps, "source_lsn": self.source_lsn,
            "fenced_seconds": self.fenced_seconds, "warnings": self.warnings, "error": self.error,
        })
    }
}

impl CutoverStep {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "ready to cut over",
            Self::Fence => "source fenced",
            Self::Drain => "all changes applied",
            Self::Carry => "sequences and the rest brought up to date",
            Self::Prove => "nothing was written after the fence",
        }
    }
}

impl From<&Definite> for CutoverError {
    fn from(error: &Definite) -> Self {
        Self { cause: error.cause.clone(), detail: error.detail.clone(), hint: error.hint.clone() }
    }
}

impl From<&Failure> for CutoverError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Definite(definite) => definite.into(),
            Failure::Transient(transient) => Self {
                cause: format!("{}: {}", transient.side, transient.cause),
                detail: transient.detail.clone(),
                hint: "run `walferry cutover` again once it has passed".to_owned(),
            },
        }
    }
}

impl From<CutoverError> for Definite {
    fn from(error: CutoverError) -> Self {
        Self::new(error.cause).detail(error.detail).hint(error.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_again() {
        let fence =
            Fence { kind: FenceKind::ReadOnly, previous: Some("off".to_owned()), since: "now".to_owned() };
        let status = CutoverStatus {
            steps: vec![DoneStep { step: CutoverStep::Fence, seconds: 0.25 }],
            source_lsn: Some("0/1D2A3F8".to_owned()),
            fence: Some(fence),
            error: Some((&Definite::new("no").hint("do this")).into()),
            ..CutoverStatus::default()
        };
        let stored = serde_json::to_value(&status).expect("it can be written");
        assert_eq!(serde_json::from_value::<CutoverStatus>(stored).expect("it can be read"), status);
        let shown = status.shown("shop");
        assert_eq!((&shown["state"], &shown["steps"][0]["step"]), (&json!("running"), &json!("fence")));
        assert_eq!((&shown["error"]["cause"], shown.get("fence")), (&json!("no"), None));
    }

    #[test]
    fn what_an_operator_wants_is_read_again() {
        let wanted = CutoverRequest {
            fence: FenceKind::None,
            lag_bytes_max: 7,
            timeout_ms: 1_500,
            accept_drift: true,
            given_up: false,
        };
        let stored = serde_json::to_value(&wanted).expect("it can be written");
        assert_eq!(stored["fence"], "none");
        assert_eq!(serde_json::from_value::<CutoverRequest>(stored).expect("it can be read"), wanted);
        assert_eq!(wanted.timeout(), Duration::from_millis(1_500));
        assert_eq!(CutoverRequest { timeout_ms: u64::MAX, ..wanted }.timeout(), CUTOVER_TIMEOUT_MAX);
    }
}
