//! What the log writes, byte by byte: the code of docs/internals/format.md.
//!
//! Pure: encodes to and decodes from byte slices. Invariant: decoding never panics, whatever the
//! bytes, and accepts nothing whose checksum, magic or bounds are wrong.

pub mod batch;
pub mod descriptor;
pub mod footer;
pub mod hashes;
pub mod node;
pub mod segment;
pub mod superblock;

/// Version of every structure here. What changes how a pool is read gets a feature bit, not another
/// version: docs/internals/format.md, "Versions and features".
pub const VERSION: u32 = 1;

/// A cursor over bytes from a medium.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Start at byte `at`.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Reader { bytes, at }
    }

    /// The next `count` bytes; `None` past the end, as for all of these.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let part = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    /// The next two bytes, little-endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next four bytes, little-endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Pass over `count` bytes.
    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }
}

/// A cursor that fills a fixed page of zeros.
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Start at byte `at`.
    pub fn new(bytes: &'a mut [u8], at: usize) -> Self {
        Writer { bytes, at }
    }

    /// Put bytes.
    pub fn put(&mut self, part: &[u8]) {
        self.bytes[self.at..self.at + part.len()].copy_from_slice(part);
        self.at += part.len();
    }

    /// Put a byte.
    pub fn u8(&mut self, value: u8) {
        self.put(&value.to_le_bytes());
    }

    /// Put two bytes, little-endian.
    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// Put four bytes, little-endian.
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Put eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Leave `count` bytes as they are.
    pub fn skip(&mut self, count: usize) {
        self.at += count;
    }
}
