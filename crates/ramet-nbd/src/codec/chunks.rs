//! Chunks of structured and of extended replies, written into a reply buffer.
//!
//! Source: NBD protocol, "Structured reply chunk message", "Structured reply types"; its extension
//! `EXTENDED_HEADERS`.

use super::values::{
    EXTENDED_REPLY_MAGIC, REPLY_BLOCK_STATUS, REPLY_BLOCK_STATUS_EXT, REPLY_ERROR,
    REPLY_ERROR_OFFSET, REPLY_FLAG_DONE, REPLY_NONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE,
    STRUCTURED_REPLY_MAGIC,
};

/// Length of a structured reply's chunk before its payload.
const STRUCTURED_CHUNK_BYTES: usize = 20;
/// Length of an extended reply's chunk before its payload.
const EXTENDED_CHUNK_BYTES: usize = 32;
/// What precedes the bytes of a data chunk: their offset.
const DATA_PREFIX_BYTES: usize = 8;
/// Payload of a hole chunk: offset and length.
const HOLE_BYTES: usize = 12;
/// Longest text of an error chunk; the protocol allows 4096.
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;

/// How a connection is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyStyle {
    /// Simple replies only.
    #[default]
    Simple,
    /// Chunks where there is more to say than "done".
    Chunks(ChunkStyle),
}

/// The headers of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkStyle {
    /// Lengths of 32 bits.
    Structured,
    /// Lengths of 64 bits, in requests too.
    Extended,
}

/// The chunks that answer one request.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    /// Which headers.
    pub style: ChunkStyle,
    /// The cookie of the request.
    pub cookie: u64,
    /// The offset of the request.
    pub offset_bytes: u64,
}

impl Chunks {
    /// Room for a data chunk beside its bytes.
    #[must_use]
    pub const fn data_room(&self) -> usize {
        self.header_bytes() + DATA_PREFIX_BYTES
    }

    /// Room for a hole chunk.
    #[must_use]
    pub const fn hole_room(&self) -> usize {
        self.header_bytes() + HOLE_BYTES
    }

    /// Room for an error chunk with any text.
    #[must_use]
    pub const fn error_room(&self) -> usize {
        self.header_bytes() + 6 + ERROR_TEXT_BYTES_MAX + 8
    }

    /// Room for the status of so many extents.
    #[must_use]
    pub const fn status_room(&self, extents_count: usize) -> usize {
        let (prefix, each) = self.status_bytes();
        self.header_bytes() + prefix + each * extents_count
    }

    /// Nothing more: the request is done. Result: bytes written.
    ///
    /// # Panics
    /// As every function here: where `room` is smaller than its own function says.
    #[must_use]
    pub fn none(&self, room: &mut [u8]) -> usize {
        self.header(room, REPLY_NONE, true, 0)
    }

    /// The header of a data chunk for bytes at `at`, which follow it. Result: bytes written.
    #[must_use]
    pub fn data(&self, room: &mut [u8], at: u64, length_bytes: usize, done: bool) -> usize {
        let payload_bytes = DATA_PREFIX_BYTES + length_bytes;
        let mut writer = self.start(room, REPLY_OFFSET_DATA, done, payload_bytes);
        writer.put(&at.to_be_bytes());
        writer.written
    }

    /// Zeros at `at`. Result: bytes written.
    #[must_use]
    pub fn hole(&self, room: &mut [u8], at: u64, length_bytes: u32, done: bool) -> usize {
        let mut writer = self.start(room, REPLY_OFFSET_HOLE, done, HOLE_BYTES);
        writer.put(&at.to_be_bytes());
        writer.put(&length_bytes.to_be_bytes());
        writer.written
    }

    /// The request failed, at an offset if so; the last chunk. Result: bytes written.
    #[must_use]
    pub fn error(&self, room: &mut [u8], errno: u32, text: &str, at: Option<u64>) -> usize {
        let text = clip(text, ERROR_TEXT_BYTES_MAX).as_bytes();
        let text_bytes = u16::try_from(text.len()).expect("was clipped");
        let kind = if at.is_some() { REPLY_ERROR_OFFSET } else { REPLY_ERROR };
        let payload_bytes = 6 + text.len() + if at.is_some() { 8 } else { 0 };
        let mut writer = self.start(room, kind, true, payload_bytes);
        writer.put(&errno.to_be_bytes());
        writer.put(&text_bytes.to_be_bytes());
        writer.put(text);
        if let Some(at) = at {
            writer.put(&at.to_be_bytes());
        }
        writer.written
    }

    /// Extents of one metadata context: length and flags. Result: bytes written.
    ///
    /// # Panics
    /// Where a length needs 64 bits and the headers have 32: the request could not ask for it.
    #[must_use]
    pub fn status(
        &self,
        room: &mut [u8],
        context: u32,
        extents: impl ExactSizeIterator<Item = (u64, u32)>,
        done: bool,
    ) -> usize {
        let count = extents.len();
        let (prefix, each) = self.status_bytes();
        let kind = match self.style {
            ChunkStyle::Structured => REPLY_BLOCK_STATUS,
            ChunkStyle::Extended => REPLY_BLOCK_STATUS_EXT,
        };
        let mut writer = self.start(room, kind, done, prefix + each * count);
        writer.put(&context.to_be_bytes());
        if self.style == ChunkStyle::Extended {
            writer.put(&u32::try_from(count).expect("a reply is bounded").to_be_bytes());
        }
        for (length_bytes, flags) in extents {
            match self.style {
                ChunkStyle::Structured => {
                    let length_bytes = u32::try_from(length_bytes).expect("as the request's");
                    writer.put(&length_bytes.to_be_bytes());
                    writer.put(&flags.to_be_bytes());
                }
                ChunkStyle::Extended => {
                    writer.put(&length_bytes.to_be_bytes());
                    writer.put(&u64::from(flags).to_be_bytes());
                }
            }
        }
        writer.written
    }

    const fn status_bytes(&self) -> (usize, usize) {
        match self.style {
            ChunkStyle::Structured => (4, 8),
            ChunkStyle::Extended => (8, 16),
        }
    }

    const fn header_bytes(&self) -> usize {
        match self.style {
            ChunkStyle::Structured => STRUCTURED_CHUNK_BYTES,
            ChunkStyle::Extended => EXTENDED_CHUNK_BYTES,
        }
    }

    fn start<'a>(
        &self,
        room: &'a mut [u8],
        kind: u16,
        done: bool,
        payload_bytes: usize,
    ) -> Writer<'a> {
        let written = self.header(room, kind, done, payload_bytes);
        Writer { room, written }
    }

    fn header(&self, room: &mut [u8], kind: u16, done: bool, payload_bytes: usize) -> usize {
        let payload_bytes = u32::try_from(payload_bytes).expect("the server bounds its replies");
        let flags = if done { REPLY_FLAG_DONE } else { 0 };
        let mut writer = Writer { room, written: 0 };
        let magic = match self.style {
            ChunkStyle::Structured => STRUCTURED_REPLY_MAGIC,
            ChunkStyle::Extended => EXTENDED_REPLY_MAGIC,
        };
        writer.put(&magic.to_be_bytes());
        writer.put(&flags.to_be_bytes());
        writer.put(&kind.to_be_bytes());
        writer.put(&self.cookie.to_be_bytes());
        match self.style {
            ChunkStyle::Structured => writer.put(&payload_bytes.to_be_bytes()),
            ChunkStyle::Extended => {
                writer.put(&self.offset_bytes.to_be_bytes());
                writer.put(&u64::from(payload_bytes).to_be_bytes());
            }
        }
        writer.written
    }
}

struct Writer<'a> {
    room: &'a mut [u8],
    written: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.room[self.written..self.written + bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len();
    }
}

/// The longest start of `text` of at most so many bytes.
pub(super) fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
