//! Zeroed memory for the buffers of connections.
//!
//! Invariant: from a page on, a buffer is mapped by itself and goes back to the system with its
//! end. The allocator would keep it: each of its arenas holds on to what a crowd of connections
//! once needed, which is megabytes each.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// From so many bytes on a buffer is mapped.
const MAPPED_BYTES_MIN: usize = 4096;
/// Where in its first page a mapped buffer begins: a cache line behind the start. The kernel copies
/// whole pages of files there, and to fewer than 32 bytes behind the start of a page, where the
/// payload behind a header would lie, that took twice as long on an AMD processor.
const MAPPED_AT_BYTES: usize = 64;

/// Bytes that are zero at first.
pub(crate) struct Buffer(Kind);

enum Kind {
    Allocated(Box<[u8]>),
    Mapped(Mapping),
}

struct Mapping {
    start: NonNull<u8>,
    mapped_bytes: usize,
}

// SAFETY: the memory belongs to this value alone, as that of a Box does.
unsafe impl Send for Mapping {}

impl Buffer {
    /// No bytes.
    pub(crate) fn empty() -> Self {
        Buffer(Kind::Allocated(Box::default()))
    }

    /// # Panics
    /// When the system has no memory.
    pub(crate) fn zeroed(length_bytes: usize) -> Self {
        Buffer(if length_bytes < MAPPED_BYTES_MIN {
            Kind::Allocated(vec![0; length_bytes].into_boxed_slice())
        } else {
            Kind::Mapped(Mapping::zeroed(length_bytes))
        })
    }
}

impl Mapping {
    fn zeroed(length_bytes: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let mapped_bytes = MAPPED_AT_BYTES + length_bytes;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping wherever there is room touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), mapped_bytes, access, MapFlags::PRIVATE)
        };
        let start = start.expect("the system has memory for a buffer").cast();
        Mapping { start: NonNull::new(start).expect("no mapping starts at zero"), mapped_bytes }
    }

    fn first(&self) -> *mut u8 {
        // SAFETY: at least so many bytes are mapped.
        unsafe { self.start.as_ptr().add(MAPPED_AT_BYTES) }
    }

    fn length_bytes(&self) -> usize {
        self.mapped_bytes - MAPPED_AT_BYTES
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `zeroed` with this length, and nobody has a reference any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped_bytes) };
        unmapped.expect("what was mapped can be unmapped");
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Kind::Allocated(bytes) => bytes,
            // SAFETY: so many bytes are mapped, zeroed by the system, and borrowed with `self`.
            Kind::Mapped(mapping) => unsafe {
                std::slice::from_raw_parts(mapping.first(), mapping.length_bytes())
            },
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Kind::Allocated(bytes) => bytes,
            // SAFETY: as for `deref`, and `self` is borrowed for writing.
            Kind::Mapped(mapping) => unsafe {
                std::slice::from_raw_parts_mut(mapping.first(), mapping.length_bytes())
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The story: payloads lay 16 bytes into a page, and more than a third of the time of a
    /// sequential read went into a copy that takes half of that elsewhere.
    #[test]
    fn a_payload_behind_a_header_is_not_at_the_very_start_of_a_page() {
        for length_bytes in [MAPPED_BYTES_MIN, 64 << 10, (128 << 10) + 16] {
            let mut buffer = Buffer::zeroed(length_bytes);
            assert!(buffer.len() == length_bytes && buffer.iter().all(|byte| *byte == 0));
            buffer.fill(0xff);
            for header_bytes in [16, 28, 40] {
                let place = buffer[header_bytes..].as_ptr().addr() % 4096;
                assert!(place >= 32, "a payload at {place} is copied slowly");
            }
        }
    }
}
