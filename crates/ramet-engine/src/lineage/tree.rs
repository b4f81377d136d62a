//! The tree of places itself: seats, links, contraction. Knows nothing of turns.
//!
//! Invariants: a place that joins branches has a position; a place that is gone joins two branches
//! at least; nothing recurses, so that depth costs nothing; hanging and contracting touch a place
//! and its siblings next to it only.

use super::{NONE, PlaceId};
use crate::ids::IdMap;
use crate::map::Map;
use ramet_log::Position;
use std::collections::HashSet;
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
    /// When it began to die, counted over all places; 0 unless dying.
    pub(super) order: u64,
    generation: u32,
    parent: Option<Seat>,
    first_child: Option<Seat>,
    next: Option<Seat>,
    previous: Option<Seat>,
}

impl Place {
    /// Nobody's.
    fn free() -> Self {
        Place {
            id: NONE,
            told: NONE,
            family: 0,
            position: None,
            state: State::Gone,
            shed: None,
            order: 0,
            generation: 0,
            parent: None,
            first_child: None,
            next: None,
            previous: None,
        }
    }
}

/// All places of a pool.
#[derive(Default)]
pub(super) struct Tree {
    places: Vec<Place>,
    free: Vec<Seat>,
    seats: IdMap<PlaceId, Seat>,
    families_last: u64,
    /// Seats whose places changed since this was last asked.
    changed: HashSet<Seat>,
}

impl Seat {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// From 1.
    pub(super) fn number(self) -> u32 {
        self.0.get()
    }

    pub(super) fn of_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Seat)
    }
}

impl Tree {
    /// Seats there are, taken or not.
    pub(super) fn seats_count(&self) -> usize {
        self.places.len()
    }

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

    /// To change what is kept of a place.
    pub(super) fn place_mut(&mut self, seat: Seat) -> &mut Place {
        self.changed.insert(seat);
        self.links_mut(seat)
    }

    /// To change its links but the parent: they are derived.
    fn links_mut(&mut self, seat: Seat) -> &mut Place {
        &mut self.places[seat.index()]
    }

    /// The seats whose places changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> Vec<Seat> {
        std::mem::take(&mut self.changed).into_iter().collect()
    }

    pub(super) fn mark_changed(&mut self, seats: impl Iterator<Item = Seat>) {
        self.changed.extend(seats);
    }

    pub(super) fn mark_all_changed(&mut self) {
        let last = u32::try_from(self.places.len()).expect("fewer than 2^32 places");
        self.changed.extend((1..=last).filter_map(Seat::of_number));
    }

    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether somebody sits there.
    pub(super) fn is_taken(&self, seat: Seat) -> bool {
        self.place(seat).family != 0
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
        let mut place = Place { id, told, family, state, ..Place::free() };
        let seat = match self.free.pop() {
            Some(seat) => {
                place.generation = self.place(seat).generation;
                *self.place_mut(seat) = place;
                seat
            }
            None => {
                self.places.push(place);
                let number = u32::try_from(self.places.len()).ok().and_then(Seat::of_number);
                number.expect("fewer than 2^32 places")
            }
        };
        self.changed.insert(seat);
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
            self.link_below(seat, parent);
            self.changed.insert(seat);
        }
    }

    /// Make what hangs nowhere the first child of `parent`.
    fn link_below(&mut self, seat: Seat, parent: Seat) {
        let head = self.links_mut(parent).first_child.replace(seat);
        if let Some(head) = head {
            self.links_mut(head).previous = Some(seat);
        }
        let place = self.links_mut(seat);
        (place.parent, place.next) = (Some(parent), head);
    }

    fn unhang(&mut self, seat: Seat) {
        let place = self.place_mut(seat);
        let (parent, next, previous) =
            (place.parent.take(), place.next.take(), place.previous.take());
        if let Some(next) = next {
            self.links_mut(next).previous = previous;
        }
        match (previous, parent) {
            (Some(previous), _) => self.links_mut(previous).next = next,
            (None, Some(parent)) => self.links_mut(parent).first_child = next,
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
            place.family = 0;
            let id = std::mem::replace(&mut place.id, NONE);
            self.seats.remove(&id);
            self.free.push(seat);
        }
    }

    /// Put a place back into its seat; `hang_all` is to follow when all of them are there.
    /// False where the seat is taken, or the id is.
    pub(super) fn restore(&mut self, seat: Seat, place: Place, parent: Option<Seat>) -> bool {
        while self.places.len() <= seat.index() {
            self.places.push(Place::free());
        }
        if self.is_taken(seat) || place.family == 0 {
            return false;
        }
        self.families_last = self.families_last.max(place.family);
        let fresh = place.id == NONE || self.seats.insert(place.id, seat).is_none();
        *self.links_mut(seat) = Place { parent, ..place };
        fresh
    }

    /// Link what was restored. False where a place hangs under none, or in a circle.
    pub(super) fn hang_all(&mut self) -> bool {
        let all: Vec<Seat> = (1..=self.places.len())
            .filter_map(|n| Seat::of_number(u32::try_from(n).ok()?))
            .collect();
        for seat in all.iter().copied() {
            if !self.is_taken(seat) {
                self.free.push(seat);
                continue;
            }
            let Some(parent) = self.links_mut(seat).parent.take() else { continue };
            if parent.index() >= self.places.len() || !self.is_taken(parent) {
                return false;
            }
            self.link_below(seat, parent);
            let told = self.place(parent).id;
            self.links_mut(seat).told = told;
        }
        // What hangs in a circle is not reached from above.
        let taken = all.iter().filter(|seat| self.is_taken(**seat)).count();
        let mut reached = 0;
        let mut stack: Vec<Seat> = all
            .into_iter()
            .filter(|seat| self.is_taken(*seat) && self.parent(*seat).is_none())
            .collect();
        while let Some(seat) = stack.pop() {
            reached += 1;
            let mut child = self.first_child(seat);
            if child.is_some() && self.place(seat).position.is_none() {
                return false;
            }
            while let Some(next) = child {
                stack.push(next);
                child = self.next(next);
            }
        }
        reached == taken
    }

    /// Make room for so many, at once.
    pub(super) fn reserve(&mut self, count: usize) {
        self.places.reserve(count);
        self.seats.reserve(count);
    }

    pub(super) fn restored(
        id: PlaceId,
        family: u64,
        position: Option<Position>,
        state: State,
        order: u64,
    ) -> Place {
        Place { id, family, position, state, order, ..Place::free() }
    }
}
