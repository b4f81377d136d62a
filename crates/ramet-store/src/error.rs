//! What a store can fail with. Owns no policy: whoever calls decides whether a failure poisons the
//! pool.

use thiserror::Error;

/// A failure of a store, by what the caller can do about it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No such file or directory.
    #[error("no file '{path}'")]
    NotFound {
        /// The file, with the store's root.
        path: String,
    },
    /// The name is taken.
    #[error("file '{path}' exists already")]
    Exists {
        /// The file, with the store's root.
        path: String,
    },
    /// No room on the medium.
    #[error("no space left to {action} '{path}'")]
    Full {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file, with the store's root.
        path: String,
    },
    /// The file system or the permissions do not allow writing.
    #[error("cannot {action} '{path}': {reason}")]
    ReadOnly {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file, with the store's root.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// The file ended before all asked bytes.
    #[error("'{path}' ends before byte {end_bytes}")]
    ShortRead {
        /// The file, with the store's root.
        path: String,
        /// The end of the range that was asked for.
        end_bytes: u64,
    },
    /// Somebody else holds the lock.
    #[error("'{path}' is in use by {holder}")]
    Locked {
        /// The store's root.
        path: String,
        /// Who holds it, as far as known: "process 4711" or "another process".
        holder: String,
    },
    /// The system failed in another way.
    #[error("cannot {action} '{path}': {source}")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file, with the store's root.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
}
