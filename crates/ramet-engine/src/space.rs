//! What is let go of: from the write path, through the tree of lineage, to the slots that are dead.
//!
//! Invariants: inside the gate only a list grows; the tree is changed under its own lock, and what
//! was let go of before a command reaches it before the command does; what cannot be read frees
//! nothing. Slots are only counted dead here: giving bytes back is not part of this version.

use crate::EngineError;
use crate::head::{HeadRef, Parent};
use crate::ids::IdMap;
use crate::lineage::{Lineage, PlaceId, PlaceImage, Shed};
use crate::map::{self, Map, Missing, Node};
use crate::nodes::Nodes;
use crate::object::Object;
use parking_lot::Mutex;
use ramet_log::{Locator, Position, SegmentEntry, SegmentId, SlotSet};
use ramet_store::locks;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Entries that may wait before a writer sees to them itself.
const PENDING_MAX: usize = 65_536;
/// Entries that a list has room for: one that somebody else reads may grow beyond `PENDING_MAX`.
const PENDING_ROOM: usize = 2 * PENDING_MAX;
/// Entries at which a writer waits for whoever is at the tree.
const PENDING_LIMIT: usize = 16 * PENDING_MAX;
/// Nodes that are looked at before others may take nodes out of memory again.
const NODES_AT_ONCE: u64 = 256;
/// What loading a node counts as, in nodes looked at.
const LOAD_COST: u64 = 16;

/// A new place.
pub(crate) struct Birth<'a> {
    pub(crate) object: &'a Arc<Object>,
    pub(crate) parent: PlaceId,
}

/// A place that begins to die.
pub(crate) struct Death {
    pub(crate) place: PlaceId,
    pub(crate) map: Map,
    pub(crate) position: Position,
}

enum Pending {
    Dead(Locator, u64),
    Shed(Shed),
    Detached { place: PlaceId, parent: PlaceId, position: Position, first: u64, piece: Arc<Node> },
}

/// What was let go of and is not in the tree yet, and an empty list to go on with. Entries come
/// from inside the gate: where a list grew there, all would wait for the allocator.
struct PendingLists {
    list: Vec<Pending>,
    /// Whoever has the state may take it, and gives one back before he lets go of that.
    spare: Vec<Pending>,
}

impl PendingLists {
    fn new() -> Self {
        let room = || Vec::with_capacity(PENDING_ROOM);
        PendingLists { list: room(), spare: room() }
    }

    fn take(&mut self) -> Vec<Pending> {
        std::mem::replace(&mut self.list, std::mem::take(&mut self.spare))
    }
}

/// See the head of this file.
pub(crate) struct Space {
    nodes: Arc<Nodes>,
    pending: locks::Mutex<PendingLists>,
    state: Mutex<State>,
}

/// What a checkpoint keeps of all this.
pub(crate) struct SpaceImage {
    /// Places that changed; `Err` with the number of one that went.
    pub(crate) places: Vec<Result<PlaceImage, u32>>,
    /// Segments that changed, or have more dead slots than before.
    pub(crate) segments: Vec<SegmentEntry>,
    /// Dead slots of each of them: how many, and which.
    pub(crate) dead: HashMap<SegmentId, (u32, SlotSet)>,
    /// Those of them in which nothing lives any more: they leave the file table.
    pub(crate) dropped: Vec<SegmentId>,
}

#[derive(Default)]
struct State {
    lineage: Lineage,
    /// Heads of living places.
    heads: IdMap<PlaceId, HeadRef>,
    dead: Dead,
    /// What waits for a command under way, in order.
    waiting: Vec<Pending>,
    commands_under_way: u32,
    /// Something ended since the last checkpoint.
    ended: bool,
    /// Something ended since nodes were counted.
    ended_since_count: bool,
}

/// Dead slots of one segment.
#[derive(Clone, Default)]
struct DeadSlots {
    count: u32,
    bits: SlotSet,
}

/// Dead slots of each segment.
#[derive(Default)]
struct Dead {
    segments: HashMap<SegmentId, DeadSlots>,
    /// Segments with more of them than the last checkpoint knows.
    changed: HashSet<SegmentId>,
}

impl Dead {
    /// Marking twice is harmless.
    fn mark(&mut self, locator: Locator, count: u64) {
        let DeadSlots { count: known, bits } = self.segments.entry(locator.segment()).or_default();
        for slot in u64::from(locator.slot())..u64::from(locator.slot()) + count {
            let (word, bit) = (usize::try_from(slot / 64).expect("few slots"), 1u64 << (slot % 64));
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            if bits[word] & bit == 0 {
                bits[word] |= bit;
                *known += 1;
            }
        }
        self.changed.insert(locator.segment());
    }

    fn image(&self, segment: SegmentId) -> (u32, SlotSet) {
        let DeadSlots { count, bits } = self.segments.get(&segment).cloned().unwrap_or_default();
        (count, bits)
    }
}

/// Takes what a volume lets go of, inside the gate.
pub(crate) struct LetGo<'a> {
    space: &'a Space,
    place: PlaceId,
    parent: &'a Parent,
    position: Position,
}

impl<'a> LetGo<'a> {
    /// `position`: of the trim, where it is one.
    pub(crate) fn new(
        space: &'a Space,
        place: PlaceId,
        parent: &'a Parent,
        position: Position,
    ) -> Self {
        LetGo { space, place, parent, position }
    }
}

impl map::LetGo for LetGo<'_> {
    fn run(&mut self, first: u64, count: u64, locator: Locator) {
        let parent = self.parent;
        let pending = if parent.place == 0 || locator.position() >= parent.position {
            // Nobody else can hold it. (A run never spans its parent's position: a record lies
            // between two batches.)
            Pending::Dead(locator, count)
        } else if parent.is_living() {
            return; // The parent holds it: nothing is asked.
        } else {
            Pending::Shed(Shed { place: self.place, parent: parent.place, first, count, locator })
        };
        self.space.pending.lock().list.push(pending);
    }

    fn subtree(&mut self, first: u64, piece: Arc<Node>) {
        let (place, parent, position) = (self.place, self.parent.place, self.position);
        let pending = Pending::Detached { place, parent, position, first, piece };
        self.space.pending.lock().list.push(pending);
    }
}

impl Space {
    pub(crate) fn new(nodes: Arc<Nodes>) -> Self {
        Space { nodes, pending: locks::Mutex::new(PendingLists::new()), state: Mutex::default() }
    }

    /// Put back what a checkpoint kept, into an empty space.
    pub(crate) fn restore(
        &self,
        lineage: Lineage,
        heads: IdMap<PlaceId, HeadRef>,
        dead: impl Iterator<Item = (SegmentId, SlotSet)>,
    ) {
        let state = &mut *self.state.lock();
        (state.lineage, state.heads) = (lineage, heads);
        for (segment, bits) in dead {
            let count = bits.iter().map(|word| word.count_ones()).sum();
            state.dead.segments.insert(segment, DeadSlots { count, bits });
        }
    }

    /// Close the gate with `cut`, and take what changed up to that moment and nothing after it. No
    /// command is under way. `list` adds to the segments with more dead slots those that changed
    /// otherwise: an entry says all of a segment, its dead slots too.
    pub(crate) fn image<T>(
        &self,
        cut: impl FnOnce() -> (T, PendingAtCut),
        list: impl FnOnce(&T, &HashSet<SegmentId>) -> Vec<SegmentEntry>,
    ) -> (T, SpaceImage) {
        let mut state = self.state.lock();
        let (told, PendingAtCut(before)) = cut();
        self.take_in(&mut state, before);
        assert!(state.waiting.is_empty(), "no command is under way");
        let places = state.lineage.take_changes();
        let changed = std::mem::take(&mut state.dead.changed);
        state.ended = false;
        let segments = list(&told, &changed);
        // A walk that is taken again may tell slots of a segment that was dropped.
        let listed: HashSet<SegmentId> = segments.iter().map(|entry| entry.id).collect();
        for gone in changed.difference(&listed) {
            state.dead.segments.remove(gone);
        }
        // As of the cut: while the state is locked nothing that was let go of after it is marked.
        let dead: HashMap<SegmentId, (u32, SlotSet)> =
            segments.iter().map(|entry| (entry.id, state.dead.image(entry.id))).collect();
        (told, SpaceImage { places, segments, dead, dropped: Vec::new() })
    }

    /// A checkpoint without these segments is written.
    pub(crate) fn dropped(&self, segments: &[SegmentId]) {
        let mut state = self.state.lock();
        for segment in segments {
            state.dead.segments.remove(segment);
        }
    }

    /// Whether something ended since the last checkpoint, and nothing more of it is to be found
    /// out.
    pub(crate) fn deaths_are_answered(&self) -> bool {
        let state = self.caught_up();
        state.ended && !state.lineage.has_turns()
    }

    /// How many slots of each segment are dead.
    pub(crate) fn dead_counts(&self) -> HashMap<SegmentId, u32> {
        let state = self.caught_up();
        state.dead.segments.iter().map(|(id, dead)| (*id, dead.count)).collect()
    }

    /// Whether something ended since nodes were counted, and nothing more of it is to be found
    /// out. `counting`: they are counted now.
    pub(crate) fn deaths_since_count(&self, counting: bool) -> bool {
        let mut state = self.caught_up();
        let ended = state.ended_since_count && !state.lineage.has_turns();
        state.ended_since_count &= !counting;
        ended
    }

    /// What deleting these places would free, in blocks, whatever still waits to be answered.
    ///
    /// # Errors
    /// `Corrupt` and `Unavailable` where a node cannot be read.
    pub(crate) fn frees(&self, set: &HashSet<PlaceId>) -> Result<u64, EngineError> {
        let state = &*self.caught_up();
        assert_eq!(state.commands_under_way, 0, "heads are where the tree is");
        let living = |place: PlaceId| state.heads.get(&place).map(|head| head.map().clone());
        let mut blocks = 0;
        let mut load = |missing: &Missing| self.nodes.load(missing);
        state.lineage.frees(set, &living, &mut load, &mut |_, count, _| blocks += count)?;
        Ok(blocks)
    }

    /// Blocks that a living place maps, and those of them that nobody else holds, both of one map.
    ///
    /// # Errors
    /// As `frees`.
    pub(crate) fn of_one(&self, place: PlaceId) -> Result<(u64, u64), EngineError> {
        let state = &*self.caught_up();
        assert_eq!(state.commands_under_way, 0, "heads are where the tree is");
        let map = state.heads[&place].map().clone();
        let living = |other: PlaceId| {
            let current = || state.heads.get(&other).map(|head| head.map().clone());
            if other == place { Some(map.clone()) } else { current() }
        };
        let mut exclusive = 0;
        let mut load = |missing: &Missing| self.nodes.load(missing);
        let set = HashSet::from([place]);
        state.lineage.frees(&set, &living, &mut load, &mut |_, count, _| exclusive += count)?;
        Ok((map.mapped(), exclusive))
    }

    /// Inside the gate: what was let go of so far.
    pub(crate) fn at_cut(&self) -> PendingAtCut {
        PendingAtCut(self.pending.lock().take())
    }

    /// A checkpoint that took these changes came to nothing: the next one takes them again.
    pub(crate) fn unimage(
        &self,
        places: impl Iterator<Item = u32>,
        dead: impl Iterator<Item = SegmentId>,
    ) {
        let mut state = self.state.lock();
        state.lineage.mark_changed(places);
        state.dead.changed.extend(dead);
    }

    /// Whether a checkpoint would find anything here.
    pub(crate) fn has_changed(&self) -> bool {
        let state = self.caught_up();
        state.lineage.has_changed() || !state.dead.changed.is_empty()
    }

    /// Name places before the gate, so that what is shed under them meanwhile waits.
    ///
    /// From here to `settled` (or `unreserve`) nothing is answered: heads are ahead of the tree
    /// then, and a walk would miss holders that are not hung yet.
    pub(crate) fn reserve(&self, ids: impl Iterator<Item = PlaceId>) {
        let mut state = self.state.lock();
        state.commands_under_way += 1;
        state.lineage.reserve(ids);
    }

    /// The command came to nothing.
    pub(crate) fn unreserve(&self, ids: impl Iterator<Item = PlaceId>) {
        self.state.lock().lineage.unreserve(ids);
        self.settled();
    }

    /// The tree is where the heads are.
    pub(crate) fn settled(&self) {
        let mut state = self.state.lock();
        assert!(state.commands_under_way > 0, "a command settles once");
        state.commands_under_way -= 1;
    }

    pub(crate) fn born<'a>(&self, births: impl Iterator<Item = Birth<'a>>) {
        let state = &mut *self.caught_up();
        for Birth { object, parent } in births {
            state.lineage.born(object.place(), parent);
            state.heads.insert(object.place(), object.head.clone());
        }
    }

    pub(crate) fn snapped<'a>(
        &self,
        pairs: impl Iterator<Item = (PlaceId, &'a Arc<Object>)>,
        position: Position,
    ) {
        let state = &mut *self.caught_up();
        for (volume, snapshot) in pairs {
            state.lineage.instant(volume, snapshot.place(), position, true);
            state.heads.insert(snapshot.place(), snapshot.head.clone());
        }
    }

    /// A volume stopped moving.
    pub(crate) fn frozen(&self, place: PlaceId, position: Position) {
        self.caught_up().lineage.frozen(place, position);
    }

    /// A nameless instant.
    pub(crate) fn passed(&self, volume: PlaceId, instant: PlaceId, position: Position) {
        self.caught_up().lineage.instant(volume, instant, position, false);
    }

    pub(crate) fn reverted(
        &self,
        volume: &Arc<Object>,
        place: PlaceId,
        parent: PlaceId,
        position: Position,
        map: Map,
    ) {
        let state = &mut *self.caught_up();
        (state.ended, state.ended_since_count) = (true, true);
        state.lineage.reverted(volume.place(), place, parent, position, map);
        state.heads.remove(&volume.place());
        state.heads.insert(place, volume.head.clone());
    }

    pub(crate) fn ended(&self, deaths: impl Iterator<Item = Death>) {
        let state = &mut *self.caught_up();
        (state.ended, state.ended_since_count) = (true, true);
        for Death { place, map, position } in deaths {
            state.lineage.ended(place, position, map);
            state.heads.remove(&place);
        }
    }

    /// Of every one of `places`, whether it is in the family of `place`.
    pub(crate) fn in_family(
        &self,
        place: PlaceId,
        places: impl Iterator<Item = PlaceId>,
    ) -> Vec<bool> {
        let state = self.state.lock();
        let family = state.lineage.family(place);
        places.map(|other| family.is_some() && state.lineage.family(other) == family).collect()
    }

    pub(crate) fn living_ancestor(&self, place: PlaceId) -> Option<PlaceId> {
        self.state.lock().lineage.living_ancestor(place)
    }

    /// Places that wait to be answered.
    pub(crate) fn dying_count(&self) -> u64 {
        self.caught_up().lineage.counts().1 as u64
    }

    /// Called by writers after the gate: keep the list short.
    pub(crate) fn relieve(&self) {
        let waiting = self.pending.lock().list.len();
        if waiting > PENDING_LIMIT {
            drop(self.caught_up());
        } else if waiting > PENDING_MAX
            // A dry run may have it for a while: the next writer tries again.
            && let Some(mut state) = self.state.try_lock()
        {
            let fresh = self.pending.lock().take();
            self.take_in(&mut state, fresh);
        }
    }

    /// Nodes that were looked at to answer what was dying, since the pool was opened.
    pub(crate) fn nodes_visited(&self) -> u64 {
        self.state.lock().lineage.nodes_visited
    }

    /// Answer some of what is dying. Result: whether more waits.
    pub(crate) fn step(&self, budget: u64) -> bool {
        let mut spent = 0;
        let mut unread: Option<Missing> = None;
        while spent < budget {
            match self.answer(budget - spent) {
                Ok(0) => return self.state.lock().lineage.has_turns(),
                Ok(cost) => spent += cost,
                Err(missing) => {
                    spent += LOAD_COST;
                    let again = unread.take().is_some_and(|node| node.is(&missing));
                    match self.nodes.load(&missing) {
                        Ok(()) => {}
                        // Fail closed: nothing of this walk is freed.
                        Err(_) if again => self.state.lock().lineage.give_up_turn(),
                        // It may have been replaced meanwhile, and given back.
                        Err(_) => unread = Some(missing),
                    }
                }
            }
        }
        self.state.lock().lineage.has_turns()
    }

    fn answer(&self, budget: u64) -> Result<u64, Missing> {
        let State { lineage, heads, dead, commands_under_way, .. } = &mut *self.caught_up();
        if *commands_under_way > 0 {
            return Ok(0);
        }
        let living = |place: PlaceId| heads.get(&place).map(|head| head.map().clone());
        let _hold = self.nodes.hold();
        let mut tell = |_, count, locator| dead.mark(locator, count);
        let answered = lineage.step(&living, budget.min(NODES_AT_ONCE), &mut tell);
        self.nodes.dirtied(std::mem::take(&mut lineage.dirtied_bytes));
        answered
    }

    /// The state, after everything that was let go of before has reached it.
    fn caught_up(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let fresh = self.pending.lock().take();
        self.take_in(&mut state, fresh);
        state
    }

    fn take_in(&self, state: &mut State, mut fresh: Vec<Pending>) {
        let mut all = std::mem::take(&mut state.waiting);
        all.append(&mut fresh);
        if fresh.capacity() > PENDING_ROOM {
            // A crowd made it large.
            fresh = Vec::with_capacity(PENDING_ROOM);
        }
        self.pending.lock().spare = fresh;
        if all.is_empty() {
            return;
        }
        let mut all = all.into_iter().peekable();
        while let Some(next) = all.peek() {
            let parent = match next {
                Pending::Dead(..) => 0,
                Pending::Shed(shed) => shed.parent,
                Pending::Detached { parent, .. } => *parent,
            };
            if state.lineage.is_reserved(parent) {
                break;
            }
            match all.next().expect("peeked") {
                Pending::Dead(locator, count) => state.dead.mark(locator, count),
                Pending::Shed(shed) => self.take_in_shed(state, &shed),
                Pending::Detached { place, parent, position, first, piece } => {
                    let mut pieces = vec![(first, piece)];
                    let same = |next: &Pending| match next {
                        Pending::Detached { place: other, position: when, .. } => {
                            *other == place && *when == position
                        }
                        Pending::Dead(..) | Pending::Shed(_) => false,
                    };
                    while let Some(Pending::Detached { first, piece, .. }) = all.next_if(same) {
                        pieces.push((first, piece));
                    }
                    (state.ended, state.ended_since_count) = (true, true);
                    state.lineage.detached(place, parent, position, pieces);
                }
            }
        }
        state.waiting = all.collect();
        self.nodes.dirtied(std::mem::take(&mut state.lineage.dirtied_bytes));
    }

    fn take_in_shed(&self, state: &mut State, shed: &Shed) {
        let taken = self.nodes.with(|| {
            let _hold = self.nodes.hold();
            state.lineage.shed(shed)
        });
        // Where the map of what was shed before cannot be read these blocks stay: fail closed.
        if let Ok(Some((locator, count))) = taken {
            state.dead.mark(locator, count);
        }
    }
}

/// See `Space::at_cut`.
pub(crate) struct PendingAtCut(Vec<Pending>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::LetGo as _;
    use crate::nodes::NodeFiles;
    use ramet_log::format::node::NodeFileKind;
    use ramet_store::MemoryStore;

    /// A writer that waited at the gate goes on before the list of what was let go of is read: no
    /// test can bring that about from outside. What the checkpoint's maps hold is not dead in it.
    #[test]
    fn what_is_let_go_of_behind_the_cut_is_told_to_the_next_checkpoint() {
        let files = NodeFiles::new(Arc::new(MemoryStore::new()), 0, NodeFileKind::Nodes);
        let space = Space::new(Arc::new(Nodes::new(files, 1 << 20)));
        let (segment, parent) = (SegmentId::new(1, 1), Parent::default());
        let let_go = |slot: u32, count| {
            LetGo::new(&space, 1, &parent, Position::ZERO).run(0, count, segment.slot(slot));
        };
        let image = |behind: &dyn Fn()| {
            let cut = || {
                let at_cut = space.at_cut();
                behind();
                ((), at_cut)
            };
            let entry = |id: &SegmentId| SegmentEntry::begun(*id, 256, 0);
            let image = space.image(cut, |(), changed| changed.iter().map(entry).collect()).1;
            image.dead[&segment].clone()
        };
        let_go(3, 2);
        assert_eq!(image(&|| let_go(7, 4)), (2, vec![0b11 << 3]));
        assert_eq!(image(&|| ()), (6, vec![0b1111 << 7 | 0b11 << 3]));
    }

    /// Who lets go of something is inside the gate.
    #[test]
    fn what_is_let_go_of_between_two_steps_finds_memory_that_is_there() {
        let files = NodeFiles::new(Arc::new(MemoryStore::new()), 0, NodeFileKind::Nodes);
        let space = Space::new(Arc::new(Nodes::new(files, 1 << 20)));
        let parent = Parent::default();
        let mut places =
            (1..).flat_map(|id| (1..256).map(move |slot| SegmentId::new(1, id).slot(slot)));
        let mut let_go_of = |count: usize| {
            for locator in places.by_ref().take(count) {
                LetGo::new(&space, 1, &parent, Position::ZERO).run(0, 1, locator);
            }
        };
        let room = || space.pending.lock().list.capacity();
        for round in 0..4 {
            let_go_of(PENDING_MAX + 1);
            assert_eq!(room(), PENDING_ROOM, "round {round}");
            drop(space.caught_up());
        }
        let_go_of(PENDING_ROOM + 1);
        assert!(room() > PENDING_ROOM, "a crowd loses nothing");
        for round in 0..4 {
            drop(space.caught_up());
            assert_eq!(room(), PENDING_ROOM, "round {round} after a crowd");
        }
    }
}
