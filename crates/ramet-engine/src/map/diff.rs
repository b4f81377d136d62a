//! What differs between two maps. Cost follows what differs: a subtree that both share is one
//! comparison.
//!
//! Pure. Invariant: every block whose locator differs is told once, in order; a block whose locator
//! is the same never.

use super::leaf::{Leaf, Run};
use super::node::{Beside, Bits, Node, same, slots, span};
use super::{Extent, Map, Missing};
use ramet_log::Locator;
use std::sync::Arc;

/// Tell `sink` every extent of the `count` blocks from `first` on that differs between `before` and
/// `after`, as it is in `after`, in order and maximal. Result: nodes visited.
///
/// A block that was rewritten with the same bytes differs: locators are compared.
///
/// # Errors
/// `Missing`, and the block before which everything was told: to go on from.
pub fn diff(
    before: &Map,
    after: &Map,
    first: u64,
    count: u64,
    sink: &mut impl FnMut(Extent),
) -> Result<u64, (u64, Missing)> {
    let (before, after) = (before.root.as_ref(), after.root.as_ref());
    let height = before.iter().chain(&after).map(|root| root.height).max().unwrap_or_default();
    let end = first.saturating_add(count);
    let mut differ = Differ { first, end, told: first, last: None, visited: 0, sink };
    let compared = differ.compare(before, after, 0, height);
    if let Some(last) = differ.last.take() {
        (differ.sink)(last);
    }
    compared.map(|()| differ.visited).map_err(|missing| (differ.told, missing))
}

struct Differ<'a> {
    first: u64,
    end: u64,
    /// Everything before this block was compared.
    told: u64,
    last: Option<Extent>,
    visited: u64,
    sink: &'a mut dyn FnMut(Extent),
}

impl Differ<'_> {
    fn compare(
        &mut self,
        before: Option<&Arc<Node>>,
        after: Option<&Arc<Node>>,
        base: u64,
        height: u8,
    ) -> Result<(), Missing> {
        if same(before, after) {
            return Ok(());
        }
        self.visited += 1;
        let (before, after) = (Beside::look(before, height)?, Beside::look(after, height)?);
        if height == 0 {
            self.compare_leaves(before.leaf(), after.leaf(), base);
            self.told = self.told.max(base + span(0));
            return Ok(());
        }
        let child_span = span(height - 1);
        for index in Bits(before.bitmap() | after.bitmap()) {
            let child_base = base + u64::from(index) * child_span;
            if child_base < self.end && self.first < child_base + child_span {
                self.told = self.told.max(child_base);
                self.compare(before.child(index), after.child(index), child_base, height - 1)?;
            }
        }
        Ok(())
    }

    fn compare_leaves(&mut self, before: Option<&Leaf>, after: Option<&Leaf>, base: u64) {
        let (mut at, end) = slots(base, self.first, self.end);
        let mut before = Cursor::new(before, at, end);
        let mut after = Cursor::new(after, at, end);
        while at < end {
            let (was, was_end) = before.state(at);
            let (is, is_end) = after.state(at);
            let next = was_end.min(is_end);
            if was != is {
                self.tell(Extent {
                    first: base + at as u64,
                    count: (next - at) as u64,
                    locator: is,
                });
            }
            at = next;
        }
    }

    fn tell(&mut self, extent: Extent) {
        if self.last.as_mut().is_some_and(|last| last.merge(&extent)) {
            return;
        }
        if let Some(whole) = self.last.replace(extent) {
            (self.sink)(whole);
        }
    }
}

/// The runs of a leaf, looked at from one block after the other.
struct Cursor<'a> {
    runs: Option<super::leaf::Runs<'a>>,
    run: Option<Run>,
    end: usize,
}

impl<'a> Cursor<'a> {
    fn new(leaf: Option<&'a Leaf>, from: usize, to: usize) -> Self {
        let mut runs = leaf.map(|leaf| leaf.runs(from, to));
        let run = runs.as_mut().and_then(Iterator::next);
        Cursor { runs, run, end: to }
    }

    /// What is at block `at`, and the block before which that goes on.
    fn state(&mut self, at: usize) -> (Option<Locator>, usize) {
        while self.run.is_some_and(|run| run.end() <= at) {
            self.run = self.runs.as_mut().and_then(Iterator::next);
        }
        match self.run {
            Some(run) if run.start() <= at => {
                (Some(run.locator.offset((at - run.start()) as u64)), run.end())
            }
            Some(run) => (None, run.start()),
            None => (None, self.end),
        }
    }
}
