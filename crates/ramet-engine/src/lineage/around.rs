//! The neighbors of a place: the nearest holders upward, downward, and sideways through what is
//! looked through.
//!
//! Invariants: found one after the other, only as far as they are asked for; children before
//! parents, so that what the neighbors may share ends at ever earlier positions.

use super::LivingMaps;
use super::tree::{Place, Seat, State, Tree};
use crate::map::{Beside, Map};
use ramet_log::Position;

/// Bounds nothing.
const ALWAYS: Position = Position(u64::MAX);

enum Step {
    /// From a place to its parent.
    Up { place: Seat, from: Seat },
    /// A child and its siblings behind it, but for the one we came from.
    Along { child: Seat, from: Option<Seat>, shared_before: Position },
}

/// Says which places hold: nobody looks through those.
pub(super) type Holds<'a> = &'a dyn Fn(Seat, &Place) -> bool;

/// The nearest holders around a place.
struct Around<'a> {
    tree: &'a Tree,
    holds: Holds<'a>,
    steps: Vec<Step>,
}

impl<'a> Around<'a> {
    fn new(tree: &'a Tree, seat: Seat, holds: Holds<'a>) -> Self {
        let mut around = Around { tree, holds, steps: Vec::new() };
        around.push_up(seat);
        around.push_along(tree.first_child(seat), None, ALWAYS);
        around
    }

    fn push_up(&mut self, from: Seat) {
        self.steps.extend(self.tree.parent(from).map(|place| Step::Up { place, from }));
    }

    fn push_along(&mut self, child: Option<Seat>, from: Option<Seat>, shared_before: Position) {
        self.steps.extend(child.map(|child| Step::Along { child, from, shared_before }));
    }
}

impl Iterator for Around<'_> {
    type Item = (Seat, Position);

    fn next(&mut self) -> Option<(Seat, Position)> {
        loop {
            let (seat, shared_before) = match self.steps.pop()? {
                Step::Along { child, from, shared_before } => {
                    self.push_along(self.tree.next(child), from, shared_before);
                    if Some(child) == from {
                        continue;
                    }
                    (child, shared_before)
                }
                Step::Up { place, from } => {
                    // What two branches of an instant share was born before it.
                    let position =
                        self.tree.place(place).position.expect("what has children is an instant");
                    if !(self.holds)(place, self.tree.place(place)) {
                        self.push_up(place);
                        self.push_along(self.tree.first_child(place), Some(from), position);
                        continue;
                    }
                    (place, position)
                }
            };
            if (self.holds)(seat, self.tree.place(seat)) {
                return Some((seat, shared_before));
            }
            self.push_along(self.tree.first_child(seat), None, shared_before);
        }
    }
}

/// The maps of the neighbors of a place, in the order they are asked.
pub(super) struct Neighbors<'a> {
    tree: &'a Tree,
    maps: &'a LivingMaps<'a>,
    around: Around<'a>,
    first: Option<Seat>,
    known: Vec<(Seat, Map, Position)>,
}

impl<'a> Neighbors<'a> {
    /// `first` is asked first: any holder may be, neighbor or not, since a yes is a yes.
    pub(super) fn new(
        tree: &'a Tree,
        seat: Seat,
        holds: Holds<'a>,
        maps: &'a LivingMaps<'a>,
        first: Option<Seat>,
    ) -> Self {
        let first = first.filter(|first| *first != seat && holds(*first, tree.place(*first)));
        let around = Around::new(tree, seat, holds);
        let mut neighbors = Neighbors { tree, maps, around, first, known: Vec::new() };
        if let Some(first) = first {
            neighbors.know(first, ALWAYS);
        }
        neighbors
    }

    fn know(&mut self, seat: Seat, shared_before: Position) {
        let place = self.tree.place(seat);
        let map = match &place.state {
            State::Living => (self.maps)(place.id).expect("what lives has a map"),
            State::Dying(map) => map.clone(),
            State::Gone => unreachable!("what is gone holds nothing"),
        };
        self.known.push((seat, map, shared_before));
    }

    /// The place of a neighbor that was asked.
    pub(super) fn seat(&self, number: usize) -> Option<Seat> {
        self.known.get(number).map(|(seat, _, _)| *seat)
    }
}

impl Beside for Neighbors<'_> {
    fn neighbor(&mut self, number: usize) -> Option<(&Map, Position)> {
        while self.known.len() <= number {
            let (seat, shared_before) = self.around.next()?;
            if Some(seat) != self.first {
                self.know(seat, shared_before);
            }
        }
        self.known.get(number).map(|(_, map, shared_before)| (map, *shared_before))
    }
}
