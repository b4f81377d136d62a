//! The walk of a dying map beside its neighbors: what of it does nobody else hold?
//!
//! Pure. Invariants: the walk stops at every node a neighbor shares; a block is told only when
//! every neighbor that may share it was asked at the same index; what lies before the block a walk
//! ends at is answered for good.

use super::leaf::{Leaf, Run};
use super::node::{self, Body, Node, same, slots};
use super::{Map, Missing};
use ramet_log::{Locator, Position};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The neighbors of a dying map, looked up one after the other and only as far as they are asked.
pub trait Beside {
    /// The neighbor of this number, and its `shared_before`: what was born at or after that
    /// position it cannot hold. `None` behind the last one. Positions never rise from one neighbor
    /// to the next.
    fn neighbor(&mut self, number: usize) -> Option<(&Map, Position)>;
}

/// Neighbors that are at hand.
pub struct Listed<'a>(pub &'a [&'a Map]);

impl Beside for Listed<'_> {
    fn neighbor(&mut self, number: usize) -> Option<(&Map, Position)> {
        self.0.get(number).map(|map| (*map, Position(u64::MAX)))
    }
}

/// How far a walk came.
#[derive(Clone, Debug)]
pub struct Walked {
    /// Everything before this block is answered; `None`: the whole map is.
    pub answered: Option<u64>,
    /// Nodes that it is done with, the neighbors' leaves among them. One that a walk comes to again
    /// because something below it had to be loaded first counts once.
    pub visited: u64,
    /// The number of the neighbor that said yes last.
    pub yes: usize,
    /// What has to be loaded before the walk can go on.
    pub missing: Option<Missing>,
}

/// Why a walk ended early: the block before which all is answered, and what was missing.
struct Stopped {
    answered: u64,
    missing: Option<Missing>,
}

/// Tell `dead` the runs (first block, count, locator) of `dying` from block `from` on that no
/// neighbor has at the same index. Ends after about `budget` nodes, and after one leaf at the
/// earliest. The neighbor that said yes last is asked first, number 0 at the start.
pub fn walk_unheld(
    dying: &Map,
    from: u64,
    budget: u64,
    neighbors: &mut impl Beside,
    dead: &mut impl FnMut(u64, u64, Locator),
) -> Walked {
    let mut walk = Walk {
        from,
        budget,
        visited: 0,
        answered_leaf: false,
        yes: 0,
        changes: 0,
        neighbors,
        dead,
    };
    let stopped = dying.root.as_ref().and_then(|root| {
        let beside = match walk.look_beside(0, root.height) {
            Ok(beside) => beside,
            Err(missing) => return Some(Stopped { answered: from, missing: Some(missing) }),
        };
        walk.walk(root, 0, beside.as_ref()).break_value()
    });
    let (answered, missing) = match stopped {
        Some(Stopped { answered, missing }) => (Some(answered), missing),
        None => (None, None),
    };
    Walked { answered, visited: walk.visited, yes: walk.yes, missing }
}

struct Walk<'a> {
    from: u64,
    budget: u64,
    visited: u64,
    answered_leaf: bool,
    /// The number of the neighbor that said yes last, and how often that changed.
    yes: usize,
    changes: u64,
    neighbors: &'a mut dyn Beside,
    dead: &'a mut dyn FnMut(u64, u64, Locator),
}

impl Walk<'_> {
    /// What the neighbor that said yes last has beside a node.
    fn look_beside(&mut self, base: u64, height: u8) -> Result<Option<Arc<Node>>, Missing> {
        match self.neighbors.neighbor(self.yes) {
            Some((map, _)) => map.beside(base, height),
            None => Ok(None),
        }
    }

    /// Breaks when the budget is spent, or where a node is not in memory.
    fn walk(
        &mut self,
        node: &Arc<Node>,
        base: u64,
        beside: Option<&Arc<Node>>,
    ) -> ControlFlow<Stopped> {
        if base + node.span() <= self.from || same(Some(node), beside) {
            return ControlFlow::Continue(());
        }
        if self.answered_leaf && self.visited >= self.budget {
            return ControlFlow::Break(Stopped { answered: base.max(self.from), missing: None });
        }
        let stop = |missing| {
            ControlFlow::Break(Stopped { answered: base.max(self.from), missing: Some(missing) })
        };
        let body = match node.look() {
            Ok(body) => body,
            Err(missing) => return stop(missing),
        };
        match &*body {
            Body::Leaf(leaf) => {
                if let Err(missing) = self.walk_leaf(leaf, node, base, beside) {
                    return ControlFlow::Break(Stopped {
                        answered: base.max(self.from),
                        missing: Some(missing),
                    });
                }
                self.answered_leaf = true;
            }
            Body::Inner(_) => self.walk_children(node, &body, base, beside)?,
        }
        self.visited += 1;
        ControlFlow::Continue(())
    }

    fn walk_children(
        &mut self,
        node: &Arc<Node>,
        body: &Body,
        base: u64,
        beside: Option<&Arc<Node>>,
    ) -> ControlFlow<Stopped> {
        let Body::Inner(inner) = body else { unreachable!("a leaf has no children") };
        let mut beside = beside.cloned();
        let mut changes = self.changes;
        for (index, child) in inner.indexes(u64::MAX).zip(inner.children()) {
            let child_base = node.child_base(base, index);
            let stop = |missing, from: u64| Stopped {
                answered: child_base.max(from),
                missing: Some(missing),
            };
            if changes != self.changes {
                changes = self.changes;
                beside = match self.look_beside(base, node.height) {
                    Ok(beside) => beside,
                    Err(missing) => return ControlFlow::Break(stop(missing, self.from)),
                };
                if same(Some(node), beside.as_ref()) {
                    break;
                }
            }
            let looked = match node::Beside::look(beside.as_ref(), node.height) {
                Ok(looked) => looked,
                Err(missing) => return ControlFlow::Break(stop(missing, self.from)),
            };
            self.walk(child, child_base, looked.child(index))?;
        }
        ControlFlow::Continue(())
    }

    /// Nothing is told where a node is missing.
    fn walk_leaf(
        &mut self,
        leaf: &Leaf,
        node: &Arc<Node>,
        base: u64,
        beside: Option<&Arc<Node>>,
    ) -> Result<(), Missing> {
        let (from, to) = slots(base, self.from, base + node.span());
        let mut left: Vec<Run> = leaf.runs(from, to).collect();
        if let Some(beside) = beside {
            subtract(&mut left, beside)?;
        }
        let (asked, mut looked_into) = (self.yes, 0);
        for number in (0..).filter(|number| *number != asked) {
            if left.is_empty() {
                break;
            }
            let Some((map, shared_before)) = self.neighbors.neighbor(number) else {
                break;
            };
            if left.iter().all(|run| run.locator.position() >= shared_before) {
                break;
            }
            looked_into += 1;
            let found = map.find(base, 0)?;
            if let Some(found) = found
                && take_held(&mut left, node, &found)?
            {
                self.yes = number;
                self.changes += 1;
            }
        }
        self.visited += looked_into;
        for run in left {
            (self.dead)(base + run.start() as u64, run.length() as u64, run.locator);
        }
        Ok(())
    }
}

/// Take out of `left`, runs of `node`, what the leaf `found` holds too. Result: whether there was
/// any.
fn take_held(left: &mut Vec<Run>, node: &Arc<Node>, found: &Arc<Node>) -> Result<bool, Missing> {
    if Arc::ptr_eq(node, found) {
        left.clear();
        return Ok(true);
    }
    subtract(left, found)
}

fn subtract(left: &mut Vec<Run>, held: &Arc<Node>) -> Result<bool, Missing> {
    let held = held.look()?;
    let Body::Leaf(held) = &*held else { unreachable!("a leaf lies beside a leaf") };
    let mut rest = Vec::with_capacity(left.len());
    let mut any = false;
    for run in &*left {
        let mut at = run.start();
        for same in held.runs(run.start(), run.end()) {
            // Both run on slot by slot, so that what is equal at its first block is equal to its
            // last.
            if same.locator.0 == run.locator.0 + (same.start() - run.start()) as u64 {
                rest.extend(run.clip(at, same.start()));
                at = same.end();
                any = true;
            }
        }
        rest.extend(run.clip(at, run.end()));
    }
    *left = rest;
    Ok(any)
}
