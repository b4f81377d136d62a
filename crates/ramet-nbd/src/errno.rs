//! Error values of the protocol, and which one each engine error becomes.
//!
//! Pure. Invariant: no engine error is lost in a general one where the protocol has its own.

use ramet_engine::Kind;

/// Error values that the protocol defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// The export may not be written.
    NotPermitted = 1,
    /// Reading or writing failed.
    InputOutput = 5,
    /// The request is wrong.
    Invalid = 22,
    /// No space, or a write past the end.
    NoSpace = 28,
    /// The request asks for more than one reply holds.
    Overflow = 75,
    /// It could not be fast.
    NotSupported = 95,
    /// The server is closing.
    Shutdown = 108,
}

impl Errno {
    /// The value on the wire.
    #[must_use]
    pub const fn value(self) -> u32 {
        self as u32
    }

    /// What a client shows to people where there is nothing more precise.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Errno::NotPermitted => "the export may not be written",
            Errno::InputOutput => "reading or writing failed",
            Errno::Invalid => "the request is malformed or goes past the end",
            Errno::NoSpace => "there is no space, or the write goes past the end",
            Errno::Overflow => "the request asks for more than one reply holds",
            Errno::NotSupported => "a range without a whole block is zeroed as slowly as written",
            Errno::Shutdown => "the server is closing",
        }
    }
}

/// The error value that tells a client about an engine error; `closing` while the server closes.
pub(crate) fn errno_of(kind: Kind, closing: bool) -> Errno {
    match kind {
        Kind::Invalid => Errno::Invalid,
        Kind::Forbidden => Errno::NotPermitted,
        Kind::Full => Errno::NoSpace,
        Kind::Unavailable if closing => Errno::Shutdown,
        Kind::Unavailable
        | Kind::Corrupt
        | Kind::NotFound
        | Kind::Conflict
        | Kind::Busy
        | Kind::Internal => Errno::InputOutput,
    }
}
