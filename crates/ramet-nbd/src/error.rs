//! What starting and closing the server can fail with.

use ramet_engine::Kind;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// The server could not start, or not end in time.
#[derive(Debug, Error)]
pub enum NbdError {
    /// Somebody answers on the socket.
    #[error(
        "nbd_socket_in_use: a server answers on {path:?}; hint: stop it, or choose another socket"
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("nbd_socket_name_taken: {path:?} is not a socket; hint: choose another path")]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// No client could connect to it.
    #[error(
        "nbd_socket_path_too_long: {path:?} needs {length_bytes} bytes, at most \
         {length_bytes_max} fit; hint: choose a shorter path"
    )]
    PathTooLong {
        /// Where.
        path: PathBuf,
        /// What it needs.
        length_bytes: usize,
        /// What the system allows.
        length_bytes_max: usize,
    },
    /// The system refused.
    #[error("nbd_socket_failed: cannot {doing} {path:?}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Connections whose requests did not end in time; their threads go on until they do.
    #[error("nbd_close_timeout: {connections_count} connections still wait for the device")]
    CloseTimeout {
        /// How many.
        connections_count: usize,
    },
}

impl NbdError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            NbdError::InUse { .. } => Kind::Busy,
            NbdError::NotASocket { .. } => Kind::Conflict,
            NbdError::PathTooLong { .. } => Kind::Invalid,
            NbdError::Io { .. } | NbdError::CloseTimeout { .. } => Kind::Unavailable,
        }
    }

    /// The stable code that the text starts with.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            NbdError::InUse { .. } => "nbd_socket_in_use",
            NbdError::NotASocket { .. } => "nbd_socket_name_taken",
            NbdError::PathTooLong { .. } => "nbd_socket_path_too_long",
            NbdError::Io { .. } => "nbd_socket_failed",
            NbdError::CloseTimeout { .. } => "nbd_close_timeout",
        }
    }
}
