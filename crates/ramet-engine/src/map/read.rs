//! Looking things up in a map.
//!
//! Invariant: extents are maximal: two that touch are never one run of one segment, nor both holes.

use super::leaf::continues;
use super::{BLOCKS_MAX, LEAF_BLOCKS, Map};
use crate::map::node::Body;
use ramet_log::Locator;
use std::ops::ControlFlow;

/// Runs an iterator over extents takes out of the tree at a time.
const EXTENTS_AHEAD: usize = 256;

/// Consecutive blocks: a hole, or in consecutive slots of one segment from `locator` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Index of the first block.
    pub first: u64,
    /// Number of blocks.
    pub count: u64,
    /// Where the first block is; `None` for a hole.
    pub locator: Option<Locator>,
}

impl Extent {
    /// The index behind the last block.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Take `next` in where it goes on where this one ends.
    pub(super) fn merge(&mut self, next: &Extent) -> bool {
        let goes_on = match (self.locator, next.locator) {
            (Some(own), Some(next)) => continues(own, self.count, next),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let merged = goes_on && self.end() == next.first;
        if merged {
            self.count += next.count;
        }
        merged
    }
}

impl Map {
    /// Where one block is; `None` for a hole.
    pub fn get(&self, index: u64) -> Option<Locator> {
        let leaf = self.find(index - index % LEAF_BLOCKS, 0)?;
        let Body::Leaf(body) = &leaf.body else { unreachable!("height 0 is a leaf") };
        body.get(usize::try_from(index % LEAF_BLOCKS).expect("below 512"))
    }

    /// Append to `extents` what covers the `count` blocks from `first` on exactly, in order, holes
    /// included.
    pub fn lookup(&self, first: u64, count: u64, extents: &mut Vec<Extent>) {
        let end = first + count;
        let own = extents.len();
        let mut at = first;
        let mut push = |extent: Extent| {
            if extent.count > 0
                && !extents[own..].last_mut().is_some_and(|last| last.merge(&extent))
            {
                extents.push(extent);
            }
        };
        self.visit(first, end, &mut |run_first, run_count, locator| {
            push(Extent { first: at, count: run_first - at, locator: None });
            push(Extent { first: run_first, count: run_count, locator: Some(locator) });
            at = run_first + run_count;
            ControlFlow::Continue(())
        });
        push(Extent { first: at, count: end - at, locator: None });
    }

    /// Whether no block of the range is mapped.
    pub fn is_empty_between(&self, first: u64, count: u64) -> bool {
        !self.root.as_ref().is_some_and(|root| root.maps_any(0, first, first.saturating_add(count)))
    }

    /// The mapped extents from block `from` on, in order.
    pub fn extents(&self, from: u64) -> Extents<'_> {
        Extents { map: self, from, ahead: Vec::new(), next: 0 }
    }

    fn visit(&self, from: u64, to: u64, see: &mut dyn FnMut(u64, u64, Locator) -> ControlFlow<()>) {
        if let Some(root) = &self.root {
            let _stopped = root.visit(0, from, to, see);
        }
    }
}

/// See `Map::extents`.
pub struct Extents<'a> {
    map: &'a Map,
    from: u64,
    ahead: Vec<Extent>,
    next: usize,
}

impl Extents<'_> {
    fn refill(&mut self) {
        self.ahead.clear();
        self.next = 0;
        let ahead = &mut self.ahead;
        self.map.visit(self.from, BLOCKS_MAX, &mut |first, count, locator| {
            let extent = Extent { first, count, locator: Some(locator) };
            if ahead.last_mut().is_some_and(|last: &mut Extent| last.merge(&extent)) {
                return ControlFlow::Continue(());
            }
            // The last one is whole only when something else follows it.
            if ahead.len() == EXTENTS_AHEAD {
                return ControlFlow::Break(());
            }
            ahead.push(extent);
            ControlFlow::Continue(())
        });
        self.from = ahead.last().map_or(BLOCKS_MAX, Extent::end);
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.next == self.ahead.len() {
            self.refill();
        }
        let extent = self.ahead.get(self.next).copied();
        self.next += usize::from(extent.is_some());
        extent
    }
}
