//! Which parts of a range are mapped, and which changed since a snapshot: from maps alone.
//!
//! Reads no data. Invariants: extents are told in order, without gaps, cut to the range; the map's
//! lock is held for a bounded number of runs; one call does a bounded amount of work and tells one
//! extent at least.

use crate::device::Changes;
use crate::engine::Engine;
use crate::map::{Extent, Map, Missing, diff};
use crate::volume::{VolumeDevice, object_deleted};
use crate::{EngineError, ExtentSink};
use ramet_log::BLOCK_BYTES_U64;
use std::ops::ControlFlow;

/// Runs looked at in one hold of the map's lock.
const RUNS_AT_ONCE: usize = 1024;
/// Runs that one call looks at: about a millisecond.
const RUNS_MAX: usize = 64 << 10;
/// Nodes that one call reads from the medium, once it has something to tell.
const LOADS_MAX: usize = 256;
/// Blocks compared at a time at first: 64 leaves.
const WINDOW_BLOCKS: u64 = 32 << 10;
/// The next time so many times as many, where few nodes differed.
const WINDOW_GROWTH: u64 = 8;
/// What counts as few.
const NODES_FEW: u64 = 64;
/// Nodes that one call compares.
const NODES_MAX: u64 = 16 << 10;
/// Times that a map which changed under the look is looked at anew.
const FRESH_MAX: usize = 8;

type Result<T> = std::result::Result<T, EngineError>;

/// Blocks in, extents in bytes out: joined where they touch, cut to the range.
struct Teller<'a, 'b> {
    sink: &'a mut ExtentSink<'b>,
    /// Everything before this byte was told to us.
    at: u64,
    end: u64,
    /// What is not told on yet: first byte, and whether it is marked.
    open: Option<(u64, bool)>,
    stopped: bool,
    told: bool,
}

impl<'a, 'b> Teller<'a, 'b> {
    fn new(offset_bytes: u64, length_bytes: u64, sink: &'a mut ExtentSink<'b>) -> Self {
        let end = offset_bytes + length_bytes;
        Teller { sink, at: offset_bytes, end, open: None, stopped: false, told: false }
    }

    /// The first block that is not told about.
    fn block(&self) -> u64 {
        self.at / BLOCK_BYTES_U64
    }

    fn end_block(&self) -> u64 {
        self.end.div_ceil(BLOCK_BYTES_U64)
    }

    fn is_done(&self) -> bool {
        self.stopped || self.at == self.end
    }

    /// Everything up to this block is so.
    fn until(&mut self, block: u64, marked: bool) -> ControlFlow<()> {
        let to = block.saturating_mul(BLOCK_BYTES_U64).min(self.end);
        if self.stopped {
            return ControlFlow::Break(());
        }
        if to <= self.at {
            return ControlFlow::Continue(());
        }
        match self.open {
            Some((_, before)) if before == marked => {}
            Some(_) | None => {
                self.tell();
                self.open = Some((self.at, marked));
            }
        }
        self.at = to;
        if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Tell on what is open.
    fn tell(&mut self) {
        let Some((from, marked)) = self.open.take() else { return };
        self.told = true;
        self.stopped |= (self.sink)(self.at - from, marked).is_break();
    }

    /// Everything between is not marked, then `count` blocks are.
    fn marked(&mut self, first: u64, count: u64) -> ControlFlow<()> {
        self.until(first, false)?;
        self.until(first + count, true)
    }

    fn finish(mut self) {
        if !self.stopped {
            self.tell();
        }
    }
}

/// See `BlockDevice::extents`.
pub(crate) fn tell_mapped(
    device: &VolumeDevice,
    offset_bytes: u64,
    length_bytes: u64,
    sink: &mut ExtentSink<'_>,
) -> Result<()> {
    // Nodes that a write replaces meanwhile stay until they were looked into.
    let _pin = device.engine().reclaim.pin();
    let mut teller = Teller::new(offset_bytes, length_bytes, sink);
    let (mut runs, mut loads) = (0, 0);
    while !teller.is_done() && runs < RUNS_MAX {
        let most = runs + RUNS_AT_ONCE;
        let end = teller.end_block();
        let seen = device.object().head.map().runs(teller.block(), end, &mut |first, count| {
            runs += 1;
            teller.marked(first, count)?;
            if runs < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        match seen {
            // The end was reached: what follows the last run is a hole.
            Ok(()) if runs < most => {
                // Broken or not, the teller knows.
                let _ = teller.until(end, false);
            }
            Ok(()) => {}
            Err(missing) => {
                loads += 1;
                if loads > LOADS_MAX && (teller.told || teller.open.is_some()) {
                    break;
                }
                device.engine().nodes.load(&missing)?;
            }
        }
    }
    teller.finish();
    Ok(())
}

/// Blocks: the first, how many, and whether anything is mapped there.
pub type ChangedRun = (u64, u64, bool);

impl Engine {
    /// Tell what differs between two objects from block `first` on, up to the second's end; without
    /// `before`, what is mapped. Result: runs in order, and the block before which all was told.
    ///
    /// A part of it: to be called again until that block is the end. The work of one call is
    /// bounded, and follows what differs.
    ///
    /// # Errors
    /// `NotFound`, also where one is deleted meanwhile; `Corrupt` where a map is damaged.
    pub fn changed_runs(
        &self,
        before: Option<&str>,
        after: &str,
        first: u64,
    ) -> Result<(Vec<ChangedRun>, u64)> {
        let before = before.map(|name| self.find_object(name)).transpose()?;
        let after = self.find_object(after)?;
        let _pin = self.reclaim.pin();
        let map_before = before.as_ref().map_or_else(Map::default, |it| it.head.map().clone());
        let map_after = after.head.map().clone();
        let mut runs: Vec<ChangedRun> = Vec::new();
        let mut tell = |extent: Extent| {
            let mapped = extent.locator.is_some();
            match runs.last_mut() {
                Some(last) if last.0 + last.1 == extent.first && last.2 == mapped => {
                    last.1 += extent.count;
                }
                _ => runs.push((extent.first, extent.count, mapped)),
            }
        };
        let end = after.size_bytes().div_ceil(BLOCK_BYTES_U64);
        let (mut at, mut window, mut visited) = (first, WINDOW_BLOCKS, 0);
        while at < end && visited < NODES_FEW {
            let to = end.min(at.saturating_add(window));
            match diff(&map_before, &map_after, at, to - at, &mut tell) {
                Ok(nodes) => {
                    at = to;
                    visited += nodes;
                    window = window.saturating_mul(WINDOW_GROWTH);
                }
                Err((told, missing)) => {
                    at = told;
                    self.nodes.load(&missing)?;
                }
            }
        }
        // After the look: maps of what was deleted are empty.
        match before.iter().chain([&after]).find(|object| object.is_deleted()) {
            Some(gone) => Err(object_deleted(gone)),
            None => Ok((runs, at)),
        }
    }
}

/// What changed in `after` since the snapshot `base`.
pub(crate) struct ChangesSince {
    /// Attached for as long as this is.
    pub(crate) base: VolumeDevice,
    /// Attached by who asks.
    pub(crate) after: VolumeDevice,
}

impl Changes for ChangesSince {
    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<()> {
        self.after.engine().check_open()?;
        self.after.check_range(offset_bytes, length_bytes)?;
        self.tell_changed(&mut Teller::new(offset_bytes, length_bytes, sink))?;
        // After the look: maps of what was deleted are empty.
        self.base.check_living()?;
        self.after.check_living()
    }
}

impl ChangesSince {
    fn tell_changed(&self, teller: &mut Teller<'_, '_>) -> Result<()> {
        let (mut window, mut visited, mut loads, mut fresh) = (WINDOW_BLOCKS, 0, 0, 0);
        while !teller.is_done() && visited < NODES_MAX {
            let at = teller.block();
            let end = teller.end_block().min(at.saturating_add(window));
            let before = self.base.object().head.map().clone();
            let after = self.after.object().head.map().clone();
            let compared = diff(&before, &after, at, end - at, &mut |extent| {
                // Broken or not, the teller knows.
                let _ = teller.marked(extent.first, extent.count);
            });
            match compared {
                Ok(nodes) => {
                    let _ = teller.until(end, false);
                    visited += nodes;
                    if nodes <= NODES_FEW {
                        window = window.saturating_mul(WINDOW_GROWTH);
                    }
                }
                Err((told, missing)) => {
                    let _ = teller.until(told, false);
                    loads += 1;
                    if loads > LOADS_MAX && (teller.told || teller.open.is_some()) {
                        break;
                    }
                    // A node of a map that is history may have left the medium.
                    let is_history = !self.after.object().head.map().is_same(&after);
                    match self.load(&missing) {
                        Err(_) if is_history && fresh < FRESH_MAX => fresh += 1,
                        loaded => loaded?,
                    }
                }
            }
        }
        if !teller.stopped {
            teller.tell();
        }
        Ok(())
    }

    fn load(&self, missing: &Missing) -> Result<()> {
        let engine: &Engine = self.after.engine();
        engine.nodes.load(missing)
    }
}
