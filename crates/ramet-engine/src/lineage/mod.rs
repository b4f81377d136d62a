//! Lineage: the tree of instants that says who may share a block, and the queue of what is dying.
//!
//! Pure; owns the maps of dying places only, those of the living are asked for. Called by the
//! engine, one call at a time, in the order in which commands and let-goes passed the gate.
//! Invariants: a block's holders are connected on the tree; within a family dying places are
//! answered strictly one after the other; a place once answered for a block no longer holds it.

mod answer;
mod around;
mod image;
mod tree;

pub(crate) use image::{LivingPlace, PlaceImage, PlaceState};

use crate::map::{Map, Missing, Node};
use ramet_log::{Locator, Position};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use tree::{Seat, State, Ticket, Tree};

/// A place's id: opaque, never used twice; 0 stands for none.
pub type PlaceId = u64;

/// No place.
const NONE: PlaceId = 0;

/// Maps of living places.
pub type LivingMaps<'a> = dyn Fn(PlaceId) -> Option<Map> + 'a;

/// What a volume overwrote or trimmed, while its parent of that moment was not living.
#[derive(Clone, Debug)]
pub struct Shed {
    /// The volume's place.
    pub place: PlaceId,
    /// Its parent of that moment, as the volume was told it.
    pub parent: PlaceId,
    /// Blocks, in consecutive slots.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Where the first one is.
    pub locator: Locator,
}

/// The dying places of a family, in the order in which they began to die.
#[derive(Default)]
struct Family {
    queue: VecDeque<Seat>,
    /// Who said yes last: asked first.
    yes: Option<Ticket>,
}

/// The tree, and the queues of all families.
#[derive(Default)]
pub struct Lineage {
    tree: Tree,
    /// Places that commands under way are about to make.
    reserved: HashSet<PlaceId>,
    /// Families with something dying only.
    families: HashMap<u64, Family>,
    /// Whose turn is next.
    turns: VecDeque<u64>,
    dying_count: usize,
    orders_last: u64,
    /// Bytes of map nodes that changes made here, and that are nowhere else.
    pub dirtied_bytes: u64,
    /// Nodes that walks have looked at.
    pub nodes_visited: u64,
}

impl Lineage {
    /// Say that a command is about to make these places, so that what refers to them meanwhile
    /// waits.
    pub fn reserve(&mut self, ids: impl Iterator<Item = PlaceId>) {
        for id in ids {
            let new = id != NONE && self.tree.find(id).is_none() && self.reserved.insert(id);
            assert!(new, "place {id:#x} is made twice");
        }
    }

    /// A command that reserved places came to nothing.
    pub fn unreserve(&mut self, ids: impl Iterator<Item = PlaceId>) {
        for id in ids {
            self.reserved.remove(&id);
        }
    }

    /// Whether a place is reserved only.
    #[must_use]
    pub fn is_reserved(&self, id: PlaceId) -> bool {
        self.reserved.contains(&id)
    }

    /// A new volume under `parent`, an instant (0: none).
    ///
    /// # Panics
    /// Where `id` is known already, or `parent` is unknown or a volume's moving end.
    pub fn born(&mut self, id: PlaceId, parent: PlaceId) {
        let parent = (parent != NONE).then(|| self.tree.seat(parent));
        if let Some(parent) = parent {
            let position = self.tree.place(parent).position;
            assert!(position.is_some(), "place {id:#x} hung under a moving end");
        }
        self.add(id, parent, State::Living);
    }

    /// An instant of `volume`: it takes over the volume's parent and becomes the volume's parent.
    /// Nameless ones are gone at once; the clones are to be born under them before anything else
    /// happens.
    ///
    /// # Panics
    /// Where `volume` is not a moving end, or positions go backwards.
    pub fn instant(&mut self, volume: PlaceId, id: PlaceId, position: Position, living: bool) {
        let end = self.moving_end(volume);
        let parent = self.tree.parent(end);
        let earlier = parent.and_then(|parent| self.tree.place(parent).position);
        assert!(
            earlier.is_none_or(|earlier| earlier <= position),
            "instant {id:#x} before its parent"
        );
        let seat = self.add(id, parent, if living { State::Living } else { State::Gone });
        // Without a parent the instant would found a family of its own, and the volume's would be
        // answered beside it.
        let family = self.tree.place(end).family;
        let place = self.tree.place_mut(seat);
        (place.family, place.position) = (family, Some(position));
        self.tree.hang(end, Some(seat));
        self.tree.place_mut(end).told = id;
    }

    /// A volume goes on in the place `id` under `parent`; its old content ends in its old place.
    ///
    /// # Panics
    /// As `born` and `ended`.
    pub fn reverted(
        &mut self,
        old: PlaceId,
        id: PlaceId,
        parent: PlaceId,
        position: Position,
        map: Map,
    ) {
        self.born(id, parent);
        self.ended(old, position, map);
    }

    /// A volume stops moving.
    ///
    /// # Panics
    /// Where `id` is not a moving end.
    pub fn frozen(&mut self, id: PlaceId, position: Position) {
        let seat = self.moving_end(id);
        self.tree.place_mut(seat).position = Some(position);
    }

    /// An object is deleted, with the map it had: its place begins to die.
    ///
    /// # Panics
    /// Where the place is not living.
    pub fn ended(&mut self, id: PlaceId, position: Position, map: Map) {
        let seat = self.tree.seat(id);
        let place = self.tree.place_mut(seat);
        assert!(matches!(place.state, State::Living), "place {id:#x} ends twice");
        place.position.get_or_insert(position);
        place.shed = None;
        if map.is_empty() {
            place.state = State::Gone;
            self.tree.contract(seat);
            return;
        }
        place.state = State::Dying(map);
        self.wait(seat);
    }

    /// Take in what a volume let go of while its parent was not living. To be called in the order
    /// of the gate, before any other change of the tree. Result: a run that nobody can hold, dead
    /// at once.
    ///
    /// # Errors
    /// `Missing`; nothing was taken in then.
    ///
    /// # Panics
    /// Where the parent was never in the tree: its command is to be settled first.
    pub fn shed(&mut self, shed: &Shed) -> Result<Option<(Locator, u64)>, Missing> {
        let Some(parent) = self.parent_of_that_moment(shed.place, shed.parent) else {
            return Ok(Some((shed.locator, shed.count)));
        };
        let shared_before =
            self.tree.place(parent).position.expect("what has children is an instant");
        // Slots of one run are born one after the other: the older ones may be shared, the others
        // are the volume's own.
        let shared = shared_before.0.saturating_sub(shed.locator.0).min(shed.count);
        if shared > 0 && !matches!(self.tree.place(parent).state, State::Living) {
            let seat = self.shed_place(shed.place, parent);
            let State::Dying(map) = &mut self.tree.place_mut(seat).state else {
                unreachable!("just looked at")
            };
            let newest = shed.locator.offset(shared - 1).position();
            self.dirtied_bytes +=
                map.write(shed.first, shared, shed.locator, newest, &mut |index, _, _| {
                    panic!("block {index} is shed twice");
                })?;
        }
        Ok((shared < shed.count).then(|| (shed.locator.offset(shared), shed.count - shared)))
    }

    /// Hang subtrees that a trim detached, blocks of any age, under the volume's parent of that
    /// moment. As for `shed`.
    ///
    /// # Panics
    /// As `shed`.
    pub fn detached(
        &mut self,
        volume: PlaceId,
        parent: PlaceId,
        position: Position,
        pieces: Vec<(u64, Arc<Node>)>,
    ) {
        let parent = self.parent_of_that_moment(volume, parent);
        let mut map = Map::default();
        for (first, piece) in pieces {
            // Of two trims at one position the second may detach what the first left above its own.
            if !map.is_free(first, piece.height()) {
                self.hang_detached(parent, position, std::mem::take(&mut map));
            }
            map.graft(first, piece);
        }
        if !map.is_empty() {
            self.hang_detached(parent, position, map);
        }
    }

    fn hang_detached(&mut self, parent: Option<Seat>, position: Position, map: Map) {
        let seat = self.add(NONE, parent, State::Dying(map));
        self.tree.place_mut(seat).position = Some(position);
        self.wait(seat);
    }

    /// The parent a volume had, or what stands there since that was taken out: the one above it.
    fn parent_of_that_moment(&self, volume: PlaceId, parent: PlaceId) -> Option<Seat> {
        if parent == NONE {
            return None;
        }
        self.tree.find(parent).or_else(|| {
            let seat = self.moving_end(volume);
            let told = self.tree.place(seat).told;
            assert!(
                told == parent,
                "place {volume:#x} let go under {parent:#x}, but was told {told:#x}"
            );
            self.tree.parent(seat)
        })
    }

    /// The place that takes what the volume sheds, under the parent of this moment: an instant that
    /// came between would hide other holders from it.
    fn shed_place(&mut self, volume: PlaceId, parent: Seat) -> Seat {
        let volume = self.tree.find(volume);
        let before = volume.and_then(|volume| self.tree.place(volume).shed);
        let before = before.and_then(|ticket| self.tree.redeem(ticket));
        if let Some(seat) = before.filter(|seat| self.tree.parent(*seat) == Some(parent)) {
            return seat;
        }
        let seat = self.add(NONE, Some(parent), State::Dying(Map::default()));
        let ticket = self.tree.ticket(seat);
        if let Some(volume) = volume {
            self.tree.place_mut(volume).shed = Some(ticket);
        }
        self.wait(seat);
        seat
    }

    fn add(&mut self, id: PlaceId, parent: Option<Seat>, state: State) -> Seat {
        self.reserved.remove(&id);
        self.tree.add(id, parent, state)
    }

    fn wait(&mut self, seat: Seat) {
        self.orders_last += 1;
        self.tree.place_mut(seat).order = self.orders_last;
        let id = self.tree.place(seat).family;
        let family = self.families.entry(id).or_insert_with(|| {
            self.turns.push_back(id);
            Family::default()
        });
        family.queue.push_back(seat);
        self.dying_count += 1;
    }

    fn moving_end(&self, volume: PlaceId) -> Seat {
        let seat = self.tree.seat(volume);
        let place = self.tree.place(seat);
        let moves = matches!(place.state, State::Living) && place.position.is_none();
        assert!(moves, "place {volume:#x} is not a volume's moving end");
        seat
    }

    /// The number of the tree that a place is in.
    #[must_use]
    pub fn family(&self, id: PlaceId) -> Option<u64> {
        Some(self.tree.place(self.tree.find(id)?).family)
    }

    /// The nearest living place above.
    #[must_use]
    pub fn living_ancestor(&self, id: PlaceId) -> Option<PlaceId> {
        let parent = self.tree.parent(self.tree.find(id)?);
        let above = std::iter::successors(parent, |seat| self.tree.parent(*seat));
        let mut above = above.map(|seat| self.tree.place(seat));
        above.find(|place| matches!(place.state, State::Living)).map(|place| place.id)
    }

    /// Places in the tree, and places that wait to be answered.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.tree.count() + self.reserved.len(), self.dying_count)
    }
}
