//! What opening read and nobody knows to be durable is written again, the same bytes in the same
//! place, and synced. See docs/internals/format.md, O3.

use crate::error::Result;
use crate::segment::segment_path;
use crate::types::SegmentId;
use ramet_store::Store;

/// Bytes of a segment file that were read but may not be durable.
pub(crate) struct Unsynced {
    pub(crate) segment: SegmentId,
    pub(crate) from_bytes: u64,
    pub(crate) to_bytes: u64,
    /// It ends with the footer: the file ends there too.
    pub(crate) is_sealed: bool,
}

pub(crate) fn make_durable<'a>(
    store: &dyn Store,
    parts: impl Iterator<Item = &'a Unsynced>,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for part in parts {
        let file = store.open(&segment_path(part.segment), true)?;
        let mut at = part.from_bytes;
        while at < part.to_bytes {
            let length = usize::try_from((part.to_bytes - at).min(buffer.len() as u64))
                .expect("bounded by the buffer");
            file.read_at(&mut buffer[..length], at)?;
            // The same bytes in the same place: a page that a failed write left clean in the cache
            // becomes dirty again.
            file.write_at(&buffer[..length], at)?;
            at += length as u64;
        }
        if part.is_sealed {
            file.set_length(part.to_bytes)?;
        }
        // Names were durable before anything was written to the files.
        file.sync()?;
    }
    Ok(())
}
