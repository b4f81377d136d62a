//! The tree of places itself: seats, links, contraction. Knows nothing of turns.
//!
//! Invariants: a place that joins branches has a position; a place that is gone joins two branches
//! at least; nothing recurses, so that depth costs nothing; hanging and contracting touch a place
//! and its siblings next to it only.

use super::{NONE, PlaceId};
use crate::map::Map;
use ramet_log::Position;
use std::collections::HashMap;
use std::num::NonZeroU32;

/// Where a place is kept; used again when the place is taken out of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Seat(NonZeroU32);

/// A seat as of one place: does not find a later one in the same seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    seat: Seat,
    generation: u32,
}

/// Whether a place holds blocks.
pub(super) enum State {
    /// A volume or snapshot; the map is with its owner.
    Living,
    /// Waits for its turn, or is being answered: then what was answered is cut from the map.
    Dying(Map),
    /// Without a map.
    Gone,
}

/// A volume's moving end, an instant that no longer changes, or what is left of one.
pub(super) struct Place {
    /// Zero for what was shed or detached: nobody speaks of it.
    pub(super) id: PlaceId,
    /// The parent as the owner was told it; zero for none. Contraction does not change it.
    pub(super) told: PlaceId,
    /// Places that hang together have the same one.
    pub(super) family: u64,
    /// `None`: a volume's moving end.
    pub(super) position: Option<Position>,
    pub(super) state: State,
    /// The dying place that takes what this volume sheds.
    pub(super) shed: Option<Ticket>,
    generation: u32,
    parent: Option<Seat>,
    first_child: Option<Seat>,
    next: Option<Seat>,
    previous: Option<Seat>,
}

/// All places of a pool.
#[derive(Default)]
pub(super) struct Tree {
    places: Vec<Place>,
    free: Vec<Seat>,
    seats: HashMap<PlaceId, Seat>,
    families_last: u64,
}

impl Seat {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl Tree {
    /// Places in the tree.
    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The seat of a place.
    ///
    /// # Panics
    /// Where it is not in the tree.
    pub(super) fn seat(&self, id: PlaceId) -> Seat {
        self.find(id).unwrap_or_else(|| panic!("place {:#x} is not in the tree of lineage", id))
    }

    pub(super) fn find(&self, id: PlaceId) -> Option<Seat> {
        self.seats.get(&id).copied()
    }

    pub(super) fn place(&self, seat: Seat) -> &Place {
        &self.places[seat.index()]
    }

    pub(super) fn place_mut(&mut self, seat: Seat) -> &mut Place {
        &mut self.places[seat.index()]
    }

    pub(super) fn parent(&self, seat: Seat) -> Option<Seat> {
        self.place(seat).parent
    }

    pub(super) fn first_child(&self, seat: Seat) -> Option<Seat> {
        self.place(seat).first_child
    }

    pub(super) fn next(&self, seat: Seat) -> Option<Seat> {
        self.place(seat).next
    }

    pub(super) fn ticket(&self, seat: Seat) -> Ticket {
        Ticket { seat, generation: self.place(seat).generation }
    }

    /// The seat of a ticket whose place is still there.
    pub(super) fn redeem(&self, ticket: Ticket) -> Option<Seat> {
        (self.place(ticket.seat).generation == ticket.generation).then_some(ticket.seat)
    }

    /// Take in a new place under `parent`.
    pub(super) fn add(&mut self, id: PlaceId, parent: Option<Seat>, state: State) -> Seat {
        let family = parent.map(|parent| self.place(parent).family);
        let family = family.unwrap_or_else(|| {
            self.families_last += 1;
            self.families_last
        });
        let told = parent.map_or(NONE, |parent| self.place(parent).id);
        let mut place = Place {
            id,
            told,
            family,
            position: None,
            state,
            shed: None,
            generation: 0,
            parent: None,
            first_child: None,
            next: None,
            previous: None,
        };
        let seat = match self.free.pop() {
            Some(seat) => {
                place.generation = self.place(seat).generation;
                *self.place_mut(seat) = place;
                seat
            }
            None => {
                self.places.push(place);
                let number = u32::try_from(self.places.len()).ok().and_then(NonZeroU32::new);
                Seat(number.expect("fewer than 2^32 places"))
            }
        };
        if id != NONE {
            let before = self.seats.insert(id, seat);
            assert!(before.is_none(), "place {:#x} is in the tree already", id);
        }
        self.hang(seat, parent);
        seat
    }

    /// Hang a place, with all that hangs below it, under another one.
    pub(super) fn hang(&mut self, seat: Seat, parent: Option<Seat>) {
        self.unhang(seat);
        if let Some(parent) = parent {
            let head = self.place_mut(parent).first_child.replace(seat);
            if let Some(head) = head {
                self.place_mut(head).previous = Some(seat);
            }
            let place = self.place_mut(seat);
            (place.parent, place.next) = (Some(parent), head);
        }
    }

    fn unhang(&mut self, seat: Seat) {
        let place = self.place_mut(seat);
        let (parent, next, previous) =
            (place.parent.take(), place.next.take(), place.previous.take());
        if let Some(next) = next {
            self.place_mut(next).previous = previous;
        }
        match (previous, parent) {
            (Some(previous), _) => self.place_mut(previous).next = next,
            (None, Some(parent)) => self.place_mut(parent).first_child = next,
            (None, None) => {}
        }
    }

    /// Take out what is gone and joins fewer than two branches: `seat`, then what is above it.
    pub(super) fn contract(&mut self, seat: Seat) {
        let mut at = Some(seat);
        while let Some(seat) = at {
            let child = self.first_child(seat);
            let branches = child.is_some_and(|child| self.next(child).is_some());
            if branches || !matches!(self.place(seat).state, State::Gone) {
                return;
            }
            at = self.parent(seat);
            if let Some(child) = child {
                self.hang(child, at);
            }
            self.unhang(seat);
            let place = self.place_mut(seat);
            place.generation = place.generation.wrapping_add(1);
            let id = std::mem::replace(&mut place.id, NONE);
            self.seats.remove(&id);
            self.free.push(seat);
        }
    }
}
