//! Zeroed memory for the buffers of connections.
//!
//! Invariant: from a page on, a buffer is mapped by itself and goes back to the system with its
//! end. The allocator would keep it: each of its arenas holds on to what a crowd of connections
//! once needed, which is megabytes each.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// From so many bytes on a buffer is mapped.
const MAPPED_BYTES_MIN: usize = 4096;

/// Bytes that are zero at first.
pub(crate) struct Buffer(Kind);

enum Kind {
    Allocated(Box<[u8]>),
    Mapped(Mapping),
}

struct Mapping {
    start: NonNull<u8>,
    length_bytes: usize,
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
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping wherever there is room touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length_bytes, access, MapFlags::PRIVATE)
        };
        let start = start.expect("the system has memory for a buffer").cast();
        Mapping { start: NonNull::new(start).expect("no mapping starts at zero"), length_bytes }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `zeroed` with this length, and nobody has a reference any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length_bytes) };
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
                std::slice::from_raw_parts(mapping.start.as_ptr(), mapping.length_bytes)
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
                std::slice::from_raw_parts_mut(mapping.start.as_ptr(), mapping.length_bytes)
            },
        }
    }
}
