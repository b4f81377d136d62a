//! Reads of a device: from offsets to blocks, from blocks to locators, and what is done where a
//! block moved meanwhile.

use super::{EXTENTS, Result, VolumeDevice};
use crate::EngineError;
use crate::map::Extent;
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64, Lent, Locator};

/// Longer reads are copied: what is lent should be sent before it leaves the processor's caches.
const LENT_BYTES_MAX: usize = 1 << 20;

impl VolumeDevice {
    /// See `BlockDevice::read`.
    pub(super) fn read_any(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<()> {
        self.engine.log.check_open()?;
        self.check_living()?;
        self.check_range(offset_bytes, buffer.len() as u64)?;
        if offset_bytes.is_multiple_of(BLOCK_BYTES_U64) && buffer.len().is_multiple_of(BLOCK_BYTES)
        {
            return self.read_blocks(offset_bytes / BLOCK_BYTES_U64, buffer);
        }
        let mut block = [0; BLOCK_BYTES];
        let (mut at, mut rest) = (offset_bytes, buffer);
        while !rest.is_empty() {
            let index = at / BLOCK_BYTES_U64;
            let skip = usize::try_from(at % BLOCK_BYTES_U64).expect("below a block");
            let whole = if skip == 0 { rest.len() / BLOCK_BYTES * BLOCK_BYTES } else { 0 };
            let taken = if whole > 0 {
                self.read_blocks(index, &mut rest[..whole])?;
                whole
            } else {
                self.read_blocks(index, &mut block)?;
                let length = rest.len().min(BLOCK_BYTES - skip);
                rest[..length].copy_from_slice(&block[skip..skip + length]);
                length
            };
            at += taken as u64;
            rest = &mut rest[taken..];
        }
        Ok(())
    }

    /// See `BlockDevice::read_lent`.
    pub(super) fn lend_any(
        &self,
        offset_bytes: u64,
        buffer: &mut [u8],
        lent: &mut Vec<Lent>,
    ) -> Result<()> {
        let whole = offset_bytes.is_multiple_of(BLOCK_BYTES_U64)
            && buffer.len().is_multiple_of(BLOCK_BYTES);
        if !whole || buffer.len() > LENT_BYTES_MAX {
            return self.read_any(offset_bytes, buffer);
        }
        self.engine.log.check_open()?;
        self.check_living()?;
        self.check_range(offset_bytes, buffer.len() as u64)?;
        self.lend_blocks(offset_bytes / BLOCK_BYTES_U64, buffer, lent)
    }

    /// Read whole blocks.
    pub(super) fn read_blocks(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        let count = (buffer.len() / BLOCK_BYTES) as u64;
        self.with_extents(first, count, |extents| {
            self.read_extents(extents, buffer, |_, locator, block, part| {
                self.engine.log.read(locator, block, part)
            })
        })
    }

    /// As `read_blocks`, lending what can be lent.
    fn lend_blocks(&self, first: u64, buffer: &mut [u8], lent: &mut Vec<Lent>) -> Result<()> {
        let (count, before) = ((buffer.len() / BLOCK_BYTES) as u64, lent.len());
        let read = self.with_extents(first, count, |extents| {
            // It may be another try.
            lent.truncate(before);
            self.read_extents(extents, buffer, |place, locator, block, part| {
                self.engine.log.read_lent(locator, block, part, (place, lent))
            })
        });
        if read.is_err() {
            lent.truncate(before);
        }
        read
    }

    /// Find out where blocks are and have `read` read them there, again where it failed and they
    /// are not there any more.
    fn with_extents(
        &self,
        first: u64,
        count: u64,
        mut read: impl FnMut(&[Extent]) -> Result<()>,
    ) -> Result<()> {
        EXTENTS.with_borrow_mut(|extents| {
            loop {
                self.look_up(first, count, extents)?;
                let Err(error) = read(extents) else { return Ok(()) };
                // What was overwritten meanwhile may be given back: only a block that is still
                // where it was is damaged.
                let before = std::mem::take(extents);
                self.look_up(first, count, extents)?;
                self.check_living()?;
                if *extents == before {
                    return Err(error);
                }
            }
        })
    }

    pub(crate) fn look_up(&self, first: u64, count: u64, extents: &mut Vec<Extent>) -> Result<()> {
        self.engine.nodes.with(|| {
            extents.clear();
            self.object.head.map().lookup(first, count, extents)
        })
    }

    /// `read_run`: place in the buffer, where it is, which block, part of the buffer.
    fn read_extents(
        &self,
        extents: &[Extent],
        buffer: &mut [u8],
        mut read_run: impl FnMut(usize, Locator, u64, &mut [u8]) -> ramet_log::Result<()>,
    ) -> Result<()> {
        // A deleted object's map is taken away inside the gate after it is marked: checked
        // after the look-up, holes of a map that is gone are never served.
        self.check_living()?;
        let (mut rest, mut place) = (buffer, 0);
        for extent in extents.iter() {
            let length =
                usize::try_from(extent.count).expect("bounded by the buffer") * BLOCK_BYTES;
            let (part, after) = rest.split_at_mut(length);
            match extent.locator {
                Some(locator) => read_run(place, locator, extent.first, part)
                    .map_err(|error| self.name_block(error.into(), extent.first))?,
                None => part.fill(0),
            }
            (rest, place) = (after, place + length);
        }
        Ok(())
    }

    fn name_block(&self, error: EngineError, block: u64) -> EngineError {
        let text = format!(
            "reading '{}' from byte {}: {}",
            self.object.name(),
            block * BLOCK_BYTES_U64,
            error.text
        );
        EngineError { text, ..error }
    }
}
