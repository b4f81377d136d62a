//! From the log's errors to the engine's: every one is named here, so that a new one cannot pass
//! unnoticed.

use crate::{EngineError, Kind};
use ramet_log::LogError;
use ramet_store::StoreError;

impl From<LogError> for EngineError {
    fn from(error: LogError) -> Self {
        let text = error.to_string();
        let (kind, code, hint) = match error {
            LogError::Store(error) => return store_error(&error),
            LogError::Poisoned { .. } => (
                Kind::Unavailable,
                "pool_poisoned",
                "writes are refused since this failure; reopen the pool once its disk is well",
            ),
            LogError::Closed => (Kind::Unavailable, "pool_closed", "open it again"),
            LogError::ReadOnly => (Kind::Forbidden, "pool_read_only", "open it for writing"),
            LogError::Checksum { .. } => (
                Kind::Corrupt,
                "block_checksum",
                "overwrite the block or restore it; other blocks are not affected",
            ),
            LogError::Lost { .. } => {
                (Kind::Corrupt, "block_lost", "restore the object from a copy")
            }
            LogError::Damaged { .. } => (
                Kind::Corrupt,
                "log_damaged",
                "nothing was changed; restore the file, or the pool from a copy, \
                 or go back to before the damage with `ramet check --accept-loss`",
            ),
            LogError::NotAPool { .. } => {
                (Kind::NotFound, "pool_not_found", "`ramet init` makes one")
            }
            LogError::NotEmpty { .. } => {
                (Kind::Conflict, "pool_directory_not_empty", "choose an empty or a new directory")
            }
            LogError::Foundation { .. } => {
                (Kind::Corrupt, "pool_damaged", "nothing was changed; restore the file from a copy")
            }
            LogError::Unsupported { .. } => (
                Kind::Invalid,
                "pool_format_unsupported",
                "use the version of ramet that wrote it, or a later one",
            ),
            LogError::TooLarge { .. } => (Kind::Invalid, "too_large", "ask for less at once"),
        };
        EngineError::new(kind, code, format!("{text}; hint: {hint}"))
    }
}

fn store_error(error: &StoreError) -> EngineError {
    let (kind, code, hint) = match error {
        StoreError::NotFound { .. } => {
            (Kind::Corrupt, "pool_file_missing", "restore the file from a copy")
        }
        StoreError::Exists { .. } => {
            (Kind::Conflict, "pool_file_exists", "choose an empty or a new directory")
        }
        StoreError::Full { .. } => (
            Kind::Full,
            "pool_full",
            "delete what is not needed, free space on the file system that holds the pool, \
             or raise its limit, if it has one (`ramet stats`)",
        ),
        StoreError::ReadOnly { .. } => (
            Kind::Unavailable,
            "pool_not_writable",
            "check permissions and mount options, or open it for reading only",
        ),
        StoreError::ShortRead { .. } => {
            (Kind::Corrupt, "pool_file_short", "restore the file from a copy")
        }
        StoreError::Locked { .. } => {
            (Kind::Busy, "pool_in_use", "wait for it, or use the service that holds the pool")
        }
        StoreError::Io { .. } => {
            (Kind::Unavailable, "pool_io_failed", "check the disk that holds the pool")
        }
    };
    EngineError::new(kind, code, format!("{error}; hint: {hint}"))
}
