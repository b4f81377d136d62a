//! What the engine can fail with, by what the caller does about it.
//!
//! Codes are stable and listed in docs/reference/errors.md; texts are for people and may change.

use thiserror::Error;

/// What the caller does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fix the call.
    Invalid,
    /// The object may not be changed (a snapshot, a read-only pool).
    Forbidden,
    /// Look for another name.
    NotFound,
    /// Retry, or choose another name.
    Conflict,
    /// Wait until somebody else is done.
    Busy,
    /// Retry later, or reopen the pool.
    Unavailable,
    /// Free space.
    Full,
    /// Restore from elsewhere; do not retry.
    Corrupt,
    /// Report a bug.
    Internal,
}

/// An error with a stable code and a text that says what failed, the values, and the remedy.
#[derive(Clone, Debug, Error)]
#[error("{code}: {text}")]
pub struct EngineError {
    /// What the caller does about it.
    pub kind: Kind,
    /// Stable, in snake case.
    pub code: &'static str,
    /// Lower case: what failed, then values, then the remedy.
    pub text: String,
}

impl EngineError {
    /// Make an error of `kind`.
    pub fn new(kind: Kind, code: &'static str, text: impl Into<String>) -> Self {
        EngineError { kind, code, text: text.into() }
    }
}
