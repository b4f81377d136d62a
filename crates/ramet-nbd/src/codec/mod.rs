//! The messages of the NBD protocol as values, to and from bytes.
//!
//! Pure: no I/O, no state, no panic on any bytes. All integers on the wire are big-endian.

mod chunks;
mod contexts;
mod handshake;
mod messages;
pub mod values;

pub use chunks::{ChunkStyle, Chunks, ERROR_TEXT_BYTES_MAX, ReplyStyle};
pub use contexts::{ContextRequest, StatusPayload, meta_context};
pub use handshake::{
    ClientFlags, GREETING_BYTES, InfoRequest, OPTION_HEADER_BYTES, OptionHeader, WantedInfos,
    clip_text, decode_name, greeting, info_block_size, info_export, info_text, option_reply,
    server_entry,
};
pub use messages::{
    EXTENDED_REQUEST_BYTES, REQUEST_BYTES, Request, SIMPLE_REPLY_BYTES, SimpleReply,
};

use thiserror::Error;

/// Bytes that are not the message they should be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// The stream is out of step, or the peer speaks something else: drop the connection.
    #[error("nbd_magic: found magic {found:#x}, expected {expected:#x}")]
    Magic {
        /// What was there.
        found: u64,
        /// What should be there.
        expected: u64,
    },
    /// The client set flags that were not offered: drop the connection.
    #[error("nbd_client_flags: client flags {found:#x} hold bits that were not offered")]
    ClientFlags {
        /// All flags of the client.
        found: u32,
    },
    /// The data of an option does not hold what its lengths say: answer `ERR_INVALID`.
    #[error("nbd_option_data: {what}")]
    OptionData {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A value does not fit the field of the message.
    #[error("nbd_length: {length_bytes} bytes do not fit a 32-bit length")]
    Length {
        /// The value.
        length_bytes: u64,
    },
}
