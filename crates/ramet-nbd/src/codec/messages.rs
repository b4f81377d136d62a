//! Messages of the transmission phase: requests and simple replies.
//!
//! Source: NBD protocol, "Request message", "Simple reply message"; its extension
//! `EXTENDED_HEADERS`.

use super::CodecError;
use super::values::{
    CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
};

/// Length of a request with a 32-bit length before its payload.
pub const REQUEST_BYTES: usize = 28;
/// Length of a request with extended headers before its payload.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Length of a simple reply before its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Command flags, as sent.
    pub flags: u16,
    /// Command, as sent.
    pub command: u16,
    /// Opaque; returned in the reply.
    pub cookie: u64,
    /// First byte concerned.
    pub offset_bytes: u64,
    /// Bytes concerned; where extended headers carry a payload, the bytes of that.
    pub length_bytes: u64,
    /// Bytes that follow the header.
    pub payload_bytes: u64,
}

impl Request {
    /// Decode the header of a request with a 32-bit length.
    ///
    /// # Errors
    /// `Magic` when the stream is out of step.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, CodecError> {
        expect_magic(be_u32(bytes, 0), REQUEST_MAGIC)?;
        let length_bytes = u64::from(be_u32(bytes, 24));
        let mut request = Request::decode_start(bytes, length_bytes);
        request.payload_bytes = if request.command == CMD_WRITE { length_bytes } else { 0 };
        Ok(request)
    }

    /// Decode the header of a request with extended headers.
    ///
    /// # Errors
    /// `Magic` when the stream is out of step.
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<Self, CodecError> {
        expect_magic(be_u32(bytes, 0), EXTENDED_REQUEST_MAGIC)?;
        let length_bytes = be_u64(bytes, 24);
        let mut request = Request::decode_start(bytes, length_bytes);
        let carries = request.flags & CMD_FLAG_PAYLOAD_LEN != 0;
        request.payload_bytes = if carries { length_bytes } else { 0 };
        Ok(request)
    }

    /// What both kinds of header have in the same places.
    fn decode_start<const N: usize>(bytes: &[u8; N], length_bytes: u64) -> Self {
        Request {
            flags: u16::from_be_bytes([bytes[4], bytes[5]]),
            command: u16::from_be_bytes([bytes[6], bytes[7]]),
            cookie: be_u64(bytes, 8),
            offset_bytes: be_u64(bytes, 16),
            length_bytes,
            payload_bytes: 0,
        }
    }

    /// Encode as a client does, with a 32-bit length.
    ///
    /// # Errors
    /// `Length` when the length needs extended headers.
    pub fn encode(&self) -> Result<[u8; REQUEST_BYTES], CodecError> {
        let length = u32::try_from(self.length_bytes)
            .map_err(|_| CodecError::Length { length_bytes: self.length_bytes })?;
        let mut bytes = [0; REQUEST_BYTES];
        self.encode_start(&mut bytes, REQUEST_MAGIC);
        bytes[24..].copy_from_slice(&length.to_be_bytes());
        Ok(bytes)
    }

    /// Encode as a client does, with extended headers.
    #[must_use]
    pub fn encode_extended(&self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let mut bytes = [0; EXTENDED_REQUEST_BYTES];
        self.encode_start(&mut bytes, EXTENDED_REQUEST_MAGIC);
        bytes[24..].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }

    fn encode_start(&self, bytes: &mut [u8], magic: u32) {
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
    }
}

/// A reply without structure; the payload of a successful read follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or an error value of the protocol.
    pub error: u32,
    /// The cookie of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Encode the reply.
    #[must_use]
    pub fn encode(self) -> [u8; SIMPLE_REPLY_BYTES] {
        let mut bytes = [0; SIMPLE_REPLY_BYTES];
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }

    /// Decode as a client does.
    ///
    /// # Errors
    /// `Magic` when the stream is out of step.
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Result<Self, CodecError> {
        expect_magic(be_u32(bytes, 0), SIMPLE_REPLY_MAGIC)?;
        Ok(SimpleReply { error: be_u32(bytes, 4), cookie: be_u64(bytes, 8) })
    }
}

fn expect_magic(found: u32, expected: u32) -> Result<(), CodecError> {
    if found == expected {
        return Ok(());
    }
    Err(CodecError::Magic { found: u64::from(found), expected: u64::from(expected) })
}

fn be_u32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|index| bytes[at + index]))
}

fn be_u64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|index| bytes[at + index]))
}
