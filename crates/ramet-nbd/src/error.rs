//! What starting and closing the server can fail with.
//!
//! Texts are without the code: whoever shows an error puts it in front.

use ramet_engine::Kind;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// The server could not start, or not end in time.
#[derive(Debug, Error)]
pub enum NbdError {
    /// Somebody answers on the socket.
    #[error("a server answers on {path:?}; hint: stop it, or choose another socket")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{path:?} is not a socket; hint: choose another path")]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// No client could connect to it.
    #[error(
        "{path:?} needs {length_bytes} bytes, at most {length_bytes_max} fit; \
         hint: choose a shorter path"
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
    #[error("cannot {doing} {path:?}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("somebody listens at {address}; hint: choose another port")]
    AddressInUse {
        /// Where.
        address: String,
    },
    /// The system refused a network address.
    #[error(
        "cannot {doing} {address}: {source}; hint: an address of this machine, and a port that \
         its user may take"
    )]
    Address {
        /// What was being done.
        doing: &'static str,
        /// To what.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Anybody on the network could read and write every volume.
    #[error(
        "other machines can reach {address}, and nothing is encrypted; hint: a loopback \
         address, TLS, or --plain-tcp"
    )]
    Insecure {
        /// Where.
        address: String,
    },
    /// A socket that was passed on is of no use.
    #[error("file descriptor {number} {what}; hint: pass a listening stream socket")]
    Unusable {
        /// Which one.
        number: i32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file that TLS needs is of no use.
    #[error("{path:?}: {what}; hint: PEM files of certificates and of the key")]
    Tls {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Connections whose requests did not end in time; their threads go on until they do.
    #[error("{connections_count} connections still wait for the device")]
    CloseTimeout {
        /// How many.
        connections_count: usize,
    },
}

impl NbdError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind_and_code().0
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind_and_code().1
    }

    fn kind_and_code(&self) -> (Kind, &'static str) {
        match self {
            NbdError::InUse { .. } => (Kind::Busy, "nbd_socket_in_use"),
            NbdError::NotASocket { .. } => (Kind::Conflict, "nbd_socket_name_taken"),
            NbdError::PathTooLong { .. } => (Kind::Invalid, "nbd_socket_path_too_long"),
            NbdError::Io { .. } => (Kind::Unavailable, "nbd_socket_failed"),
            NbdError::AddressInUse { .. } => (Kind::Busy, "nbd_address_in_use"),
            NbdError::Address { .. } => (Kind::Unavailable, "nbd_address_failed"),
            NbdError::Insecure { .. } => (Kind::Invalid, "nbd_address_insecure"),
            NbdError::Unusable { .. } => (Kind::Invalid, "nbd_socket_unusable"),
            NbdError::Tls { .. } => (Kind::Invalid, "nbd_tls_file"),
            NbdError::CloseTimeout { .. } => (Kind::Unavailable, "nbd_close_timeout"),
        }
    }
}
