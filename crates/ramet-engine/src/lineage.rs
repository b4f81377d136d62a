//! The tree of lineage: who was taken from whom, who still holds what, and the one queue of what is
//! dying.
//!
//! Pure: living maps are asked for through a closure. Invariants: the tree is stored child to
//! parent, the children are an index; a place that is gone stays only while it joins two or more
//! branches; dying places are answered strictly one after the other, each to its end, in the order
//! in which they began to die. docs/concepts/lineage.md gives the reasons.

use crate::map::{Listed, Map, Node, walk_unheld};
use ramet_log::{Locator, Position};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// A place's id; 0 stands for none.
pub type PlaceId = u64;

/// Ids of places that no record names (what was shed or detached) have this bit.
const UNNAMED: PlaceId = 1 << 63;

/// What is left of a place.
#[derive(Clone)]
enum State {
    /// Named by a command that is under way.
    Reserved,
    /// Its object lives; its map is the object's.
    Living,
    /// It waits to be answered, or is being answered from `answered_to` on.
    Dying { map: Map, answered_to: u64 },
    /// Without a map; joins branches.
    Gone,
}

#[derive(Clone)]
struct Place {
    parent: PlaceId,
    children: HashSet<PlaceId>,
    /// The instant it shows; `None` for a volume's moving end.
    position: Option<Position>,
    state: State,
    /// Where what this volume sheds is collected.
    shed: PlaceId,
}

/// See the head of this file.
#[derive(Default)]
pub struct Lineage {
    places: HashMap<PlaceId, Place>,
    queue: VecDeque<PlaceId>,
    unnamed_last: PlaceId,
    /// Nodes that walks have looked at.
    pub nodes_visited: u64,
}

/// What a volume overwrote or trimmed, while its parent of that moment was not living.
#[derive(Clone, Debug)]
pub struct Shed {
    /// The volume's place.
    pub place: PlaceId,
    /// Its parent of that moment.
    pub parent: PlaceId,
    /// Blocks, in consecutive slots.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Where the first one is.
    pub locator: Locator,
}

/// Maps of living places.
pub type LivingMaps<'a> = dyn Fn(PlaceId) -> Option<Map> + 'a;

impl Lineage {
    /// Say that a command is about to make these places, so that what refers to them meanwhile
    /// waits.
    pub fn reserve(&mut self, ids: impl Iterator<Item = PlaceId>) {
        for id in ids {
            self.insert(id, 0, None, State::Reserved);
        }
    }

    /// A command that reserved places came to nothing.
    pub fn unreserve(&mut self, ids: impl Iterator<Item = PlaceId>) {
        for id in ids {
            self.places.remove(&id);
        }
    }

    /// Whether a place is reserved only.
    #[must_use]
    pub fn is_reserved(&self, id: PlaceId) -> bool {
        self.places.get(&id).is_some_and(|place| matches!(place.state, State::Reserved))
    }

    /// A new volume under `parent` (0: none).
    pub fn born(&mut self, id: PlaceId, parent: PlaceId) {
        self.insert(id, 0, None, State::Living);
        self.hang(id, parent);
    }

    /// An instant of `volume`: it takes over the volume's parent and becomes the volume's parent.
    /// Nameless ones are gone at once.
    pub fn instant(&mut self, volume: PlaceId, id: PlaceId, position: Position, living: bool) {
        let parent = self.places[&volume].parent;
        self.insert(id, 0, Some(position), if living { State::Living } else { State::Gone });
        self.hang(id, parent);
        self.hang(volume, id);
    }

    /// A volume goes on in the place `id` under `parent`; its old content ends in its old place.
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
    pub fn frozen(&mut self, id: PlaceId, position: Position) {
        self.place_mut(id).position = Some(position);
    }

    /// An object is deleted: its place begins to die.
    pub fn ended(&mut self, id: PlaceId, position: Position, map: Map) {
        let place = self.place_mut(id);
        place.position.get_or_insert(position);
        place.state = State::Dying { map, answered_to: 0 };
        self.queue.push_back(id);
    }

    /// Hang what a volume let go of under its parent of that moment. Result: a run that is dead at
    /// once instead.
    pub fn shed(&mut self, shed: &Shed) -> Option<(Locator, u64)> {
        let (mut parent, known) = (shed.parent, self.places.contains_key(&shed.parent));
        if !known {
            // The parent was contracted since: it joined nothing any more, so the one above it is
            // asked.
            parent = self.places.get(&shed.place).map_or(0, |place| place.parent);
        }
        match self.places.get(&parent) {
            None => return Some((shed.locator, shed.count)),
            Some(above)
                if above.position.is_some_and(|position| shed.locator.position() >= position) =>
            {
                return Some((shed.locator, shed.count));
            }
            Some(above) if matches!(above.state, State::Living) && !known => return None,
            Some(_) => {}
        }
        let id = self.shed_place(shed.place, parent, shed.locator.position());
        if let State::Dying { map, .. } = &mut self.place_mut(id).state {
            let newest = shed.locator.offset(shed.count - 1).position();
            map.write(shed.first, shed.count, shed.locator, newest, &mut |index, _, _| {
                panic!("block {index} is shed twice");
            });
        }
        None
    }

    /// The place that collects what a volume sheds under `parent`, as long as nobody has begun to
    /// answer it.
    fn shed_place(&mut self, volume: PlaceId, parent: PlaceId, position: Position) -> PlaceId {
        let open = self.places.get(&volume).map_or(0, |place| place.shed);
        let usable = |place: &Place| {
            place.parent == parent && matches!(place.state, State::Dying { answered_to: 0, .. })
        };
        if self.queue.front() != Some(&open) && self.places.get(&open).is_some_and(usable) {
            return open;
        }
        let id = self.dying_child(parent, position, Map::default());
        if let Some(place) = self.places.get_mut(&volume) {
            place.shed = id;
        }
        id
    }

    /// Hang subtrees that a trim detached under the volume's parent of that moment.
    pub fn detached(
        &mut self,
        volume: PlaceId,
        parent: PlaceId,
        position: Position,
        pieces: Vec<(u64, Arc<Node>)>,
    ) {
        let known = parent == 0 || self.places.contains_key(&parent);
        let parent =
            if known { parent } else { self.places.get(&volume).map_or(0, |place| place.parent) };
        let mut map = Map::default();
        for (first, piece) in pieces {
            map.graft(first, piece);
        }
        self.dying_child(parent, position, map);
    }

    fn dying_child(&mut self, parent: PlaceId, position: Position, map: Map) -> PlaceId {
        self.unnamed_last += 1;
        let id = UNNAMED | self.unnamed_last;
        self.insert(id, 0, Some(position), State::Dying { map, answered_to: 0 });
        self.hang(id, parent);
        self.queue.push_back(id);
        id
    }

    /// Answer some of the oldest dying place: `dead` is told what no neighbor holds. Result: what
    /// it cost, in nodes and neighbors; 0 when nothing is dying.
    pub fn step(
        &mut self,
        living: &LivingMaps<'_>,
        budget: u64,
        dead: &mut impl FnMut(u64, u64, Locator),
    ) -> u64 {
        let Some(&id) = self.queue.front() else {
            return 0;
        };
        let neighbors: Vec<Map> = self
            .neighbors(id, None)
            .into_iter()
            .filter_map(|other| self.map_of(other, living))
            .collect();
        let State::Dying { map, answered_to } = &mut self.place_mut(id).state else {
            unreachable!("the queue holds the dying")
        };
        let neighbors: Vec<&Map> = neighbors.iter().collect();
        let neighbors_count = neighbors.len() as u64;
        let walked = walk_unheld(map, *answered_to, budget, &mut Listed(&neighbors), dead);
        match walked.answered {
            Some(block) => *answered_to = block,
            None => {
                self.place_mut(id).state = State::Gone;
                self.queue.pop_front();
                self.contract(id);
            }
        }
        self.nodes_visited += walked.visited;
        walked.visited + neighbors_count + 1
    }

    /// What deleting these objects would free, exact, whatever still waits in the queue. Each run
    /// is told once for each map that has it: blocks that two of the objects share are told twice.
    pub fn frees(
        &self,
        set: &HashSet<PlaceId>,
        living: &LivingMaps<'_>,
        freed: &mut impl FnMut(u64, u64, Locator),
    ) {
        for id in set {
            let neighbors: Vec<Map> = self
                .neighbors(*id, Some(set))
                .into_iter()
                .filter_map(|other| self.map_of(other, living))
                .collect();
            let neighbors: Vec<&Map> = neighbors.iter().collect();
            if let Some(map) = self.map_of(*id, living) {
                walk_unheld(&map, 0, u64::MAX, &mut Listed(&neighbors), freed);
            }
        }
    }

    /// Nearest holders upward, downward, and sideways through what is gone; with a set, through the
    /// dying and the set too.
    fn neighbors(&self, id: PlaceId, without: Option<&HashSet<PlaceId>>) -> Vec<PlaceId> {
        let (mut found, mut seen, mut stack) = (Vec::new(), HashSet::from([0, id]), Vec::new());
        let around = |place: &Place, stack: &mut Vec<PlaceId>| {
            stack.push(place.parent);
            stack.extend(&place.children);
        };
        around(&self.places[&id], &mut stack);
        while let Some(next) = stack.pop() {
            if !seen.insert(next) {
                continue;
            }
            let place = &self.places[&next];
            let holds = match place.state {
                State::Living => without.is_none_or(|set| !set.contains(&next)),
                State::Dying { .. } => without.is_none(),
                State::Gone | State::Reserved => false,
            };
            if holds { found.push(next) } else { around(place, &mut stack) }
        }
        found
    }

    fn map_of(&self, id: PlaceId, living: &LivingMaps<'_>) -> Option<Map> {
        match &self.places.get(&id)?.state {
            State::Living => living(id),
            State::Dying { map, .. } => Some(map.clone()),
            State::Gone | State::Reserved => None,
        }
    }

    /// The nearest living place above.
    #[must_use]
    pub fn living_ancestor(&self, id: PlaceId) -> Option<PlaceId> {
        let mut at = self.places.get(&id)?.parent;
        while let Some(place) = self.places.get(&at) {
            if matches!(place.state, State::Living) {
                return Some(at);
            }
            at = place.parent;
        }
        None
    }

    /// Places in the tree, and places that wait to be answered.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.places.len(), self.queue.len())
    }

    fn insert(&mut self, id: PlaceId, parent: PlaceId, position: Option<Position>, state: State) {
        let before = self
            .places
            .insert(id, Place { parent, children: HashSet::new(), position, state, shed: 0 });
        assert!(
            before.is_none_or(|place| matches!(place.state, State::Reserved)),
            "place {id:#x} is made twice"
        );
    }

    fn place_mut(&mut self, id: PlaceId) -> &mut Place {
        self.places.get_mut(&id).expect("a place that was made and is not gone")
    }

    fn hang(&mut self, id: PlaceId, parent: PlaceId) {
        let before = std::mem::replace(&mut self.place_mut(id).parent, parent);
        if let Some(place) = self.places.get_mut(&before) {
            place.children.remove(&id);
        }
        if let Some(place) = self.places.get_mut(&parent) {
            place.children.insert(id);
        }
    }

    /// Take out what is gone and joins fewer than two branches, upward from `id`.
    fn contract(&mut self, id: PlaceId) {
        let mut at = id;
        while let Some(place) = self.places.get(&at) {
            if !matches!(place.state, State::Gone) || place.children.len() > 1 {
                return;
            }
            let (parent, only_child) = (place.parent, place.children.iter().next().copied());
            if let Some(child) = only_child {
                self.hang(child, parent);
            }
            self.hang(at, 0);
            self.places.remove(&at);
            at = parent;
        }
    }
}
