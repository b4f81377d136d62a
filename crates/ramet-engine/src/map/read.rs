//! Looking things up in a map.
//!
//! Invariant: extents are maximal: two that touch are never one run of one segment, nor both holes.

use super::leaf::continues;
use super::node::{Body, Seen, finish};
use super::{BLOCKS_MAX, LEAF_BLOCKS, Map, Missing};
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
    pub(crate) fn merge(&mut self, next: &Extent) -> bool {
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
    ///
    /// # Errors
    /// `Missing`.
    pub fn get(&self, index: u64) -> Result<Option<Locator>, Missing> {
        let Some(leaf) = self.find(index - index % LEAF_BLOCKS, 0)? else { return Ok(None) };
        let body = leaf.look()?;
        let Body::Leaf(body) = &*body else { unreachable!("height 0 is a leaf") };
        Ok(body.get(usize::try_from(index % LEAF_BLOCKS).expect("below 512")))
    }

    /// Append to `extents` what covers the `count` blocks from `first` on exactly, in order, holes
    /// included.
    ///
    /// # Errors
    /// `Missing`; `extents` is then of no use.
    pub fn lookup(&self, first: u64, count: u64, extents: &mut Vec<Extent>) -> Result<(), Missing> {
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
        finish(self.visit(first, end, &mut |run_first, run_count, locator| {
            push(Extent { first: at, count: run_first - at, locator: None });
            push(Extent { first: run_first, count: run_count, locator: Some(locator) });
            at = run_first + run_count;
            ControlFlow::Continue(())
        }))?;
        push(Extent { first: at, count: end - at, locator: None });
        Ok(())
    }

    /// Whether no block of the range is mapped.
    ///
    /// # Errors
    /// `Missing`.
    pub fn is_empty_between(&self, first: u64, count: u64) -> Result<bool, Missing> {
        let Some(root) = &self.root else { return Ok(true) };
        Ok(!root.maps_any(0, first, first.saturating_add(count))?)
    }

    /// Tell `see` the runs of `from..to`, first block and count, in order, until it breaks.
    ///
    /// # Errors
    /// `Missing`; what lies before it was told.
    pub fn runs(
        &self,
        from: u64,
        to: u64,
        see: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), Missing> {
        finish(self.visit(from, to, &mut |first, count, _| match see(first, count) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(()) => ControlFlow::Break(None),
        }))
    }

    /// The mapped extents from block `from` on, in order.
    pub fn extents(&self, from: u64) -> Extents<'_> {
        Extents { map: self, from, ahead: Vec::new(), next: 0 }
    }

    fn visit(&self, from: u64, to: u64, see: &mut dyn FnMut(u64, u64, Locator) -> Seen) -> Seen {
        match &self.root {
            Some(root) => root.visit(0, from, to, see),
            None => ControlFlow::Continue(()),
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
    fn refill(&mut self) -> Result<(), Missing> {
        self.ahead.clear();
        self.next = 0;
        let ahead = &mut self.ahead;
        let seen = self.map.visit(self.from, BLOCKS_MAX, &mut |first, count, locator| {
            let extent = Extent { first, count, locator: Some(locator) };
            if ahead.last_mut().is_some_and(|last: &mut Extent| last.merge(&extent)) {
                return ControlFlow::Continue(());
            }
            // The last one is whole only when something else follows it.
            if ahead.len() == EXTENTS_AHEAD {
                return ControlFlow::Break(None);
            }
            ahead.push(extent);
            ControlFlow::Continue(())
        });
        if let Err(missing) = finish(seen) {
            ahead.clear();
            return Err(missing);
        }
        self.from = ahead.last().map_or(BLOCKS_MAX, Extent::end);
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, Missing>;

    /// After `Missing` it goes on where it was.
    fn next(&mut self) -> Option<Result<Extent, Missing>> {
        if self.next == self.ahead.len()
            && let Err(missing) = self.refill()
        {
            return Some(Err(missing));
        }
        let extent = self.ahead.get(self.next).copied();
        self.next += usize::from(extent.is_some());
        extent.map(Ok)
    }
}
