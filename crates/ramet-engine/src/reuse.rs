//! Which segments wait until nearly nothing lives in them, so that their files can be used again.
//!
//! Called by reclaim and by checkpoints. Invariant: something waits only while the log is filled
//! and there is room; what may be given back by then is given back like everything else.
//! See docs/internals/reclaim.md, "Files that are used again".

use crate::EngineError;
use crate::engine::Engine;
use crate::reclaim::{Due, Work};
use ramet_log::{BLOCK_BYTES_U64, SegmentEntry};
use std::sync::atomic::Ordering;

/// A segment's file is used again when no more than this part of it lives, which is moved.
const RENEWED_PART: u32 = 8;
/// What is dead in segments that wait for that at most, in bytes,
const PUT_OFF_BYTES: u64 = 4 << 30;
/// and as a part of what is free.
const PUT_OFF_PART: u64 = 4;
/// Segments that are nearly dead and wait until a file is wanted.
pub(crate) const RENEWABLE_MAX: usize = 32;

/// What is to be done about a segment in which something is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waste {
    /// Make holes.
    Thin,
    /// Move what lives, and keep the file.
    Renew,
    /// Look again at the next checkpoint.
    Wait,
}

/// Judges segments for one checkpoint.
pub(crate) struct Patience {
    /// Dead bytes that may wait; `None` where nothing does.
    left_bytes: Option<u64>,
    segment_slots: u64,
}

impl Patience {
    pub(crate) fn is_some(&self) -> bool {
        self.left_bytes.is_some()
    }

    pub(crate) fn judge(&mut self, entry: &SegmentEntry, dead: u32) -> Waste {
        let is_large = u64::from(entry.used) >= self.segment_slots / 4 * 3;
        let is_whole = entry.sealed && !entry.thinned && entry.given_back == 0 && is_large;
        let Some(left_bytes) = self.left_bytes.as_mut().filter(|_| is_whole) else {
            return Waste::Thin;
        };
        if entry.living(dead) <= entry.used / RENEWED_PART {
            return Waste::Renew;
        }
        let waste_bytes = u64::from(entry.waste(dead)) * BLOCK_BYTES_U64;
        match left_bytes.checked_sub(waste_bytes) {
            Some(less) => {
                *left_bytes = less;
                Waste::Wait
            }
            None => Waste::Thin,
        }
    }
}

impl Due {
    /// What waited for a file to be wanted waits no more.
    pub(crate) fn stop_renewing(&mut self) {
        self.thin.append(&mut self.renew);
    }
}

impl Engine {
    /// While the log is filled, keep files that it may use again.
    pub(crate) fn see_to_spares(&self) -> Result<(), EngineError> {
        let reclaim = &self.reclaim;
        let _stepping = reclaim.stepping.lock();
        if !self.log.keeps_spares() {
            self.stop_renewing()?;
        }
        while self.log.wants_spares() && !reclaim.is_pinned() && self.may_reclaim() {
            let next = {
                let due = &mut *reclaim.due.lock();
                let removed = due.remove.pop().map(|id| Work::Remove(vec![id]));
                removed.or_else(|| due.renew.pop_first().map(|(id, dead)| Work::Renew(id, dead)))
            };
            let Some(work) = next else { break };
            self.give_back(work)?;
        }
        Ok(())
    }

    /// Give files that were kept back, and what was put off for them; the caller steps.
    pub(crate) fn stop_renewing(&self) -> Result<(), EngineError> {
        self.reclaim.due.lock().stop_renewing();
        let bytes = self.log.drop_spares()?;
        self.reclaim.given_back_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// How much that is dead may wait until the segments it is in are nearly dead: nothing, unless
    /// the log is being filled.
    pub(crate) fn patience(&self) -> Patience {
        let free = self.log.store().space_bytes();
        let free_bytes = free.map_or(0, |(free_bytes, _)| free_bytes);
        let most = PUT_OFF_BYTES.min(free_bytes / PUT_OFF_PART);
        let waits = self.log.keeps_spares() && self.reclaim.holes_supported();
        let segment_slots = self.log.descriptor().segment_bytes / BLOCK_BYTES_U64;
        Patience { left_bytes: waits.then_some(most), segment_slots }
    }

    /// Give the files up that are kept, where there is no room for something else. Result: whether
    /// there was one.
    pub(crate) fn release_spares(&self) -> bool {
        self.log.drop_spares().is_ok_and(|bytes| bytes > 0)
    }
}
