//! Lineage as checkpoints keep it: what changed since the last one, and all of it put back.
//!
//! Invariant: what is put back answers every question as what was taken did.

use super::tree::{Seat, State, Tree};
use super::{Family, Lineage, PlaceId};
use crate::map::Map;
use ramet_log::Position;

/// Whether a place holds blocks.
pub(crate) enum PlaceState {
    /// The map is with its owner.
    Living,
    /// What is not answered yet.
    Dying(Map),
    /// Without a map.
    Gone,
}

/// A place, by numbers.
pub(crate) struct PlaceImage {
    pub(crate) number: u32,
    pub(crate) id: PlaceId,
    pub(crate) family: u64,
    /// `None`: a volume's moving end.
    pub(crate) position: Option<Position>,
    /// When it began to die; 0 unless dying.
    pub(crate) order: u64,
    /// The number of its parent's place; 0 for none.
    pub(crate) parent: u32,
    pub(crate) state: PlaceState,
}

/// See `Lineage::living`.
pub(crate) struct LivingPlace {
    pub(crate) number: u32,
    /// `None`: a volume's moving end.
    pub(crate) position: Option<Position>,
    /// Its parent: number, id, position.
    pub(crate) parent: Option<(u32, PlaceId, Position)>,
    pub(crate) has_children: bool,
}

impl Lineage {
    /// Places that changed since this was last asked; `Err` with the number of one that went.
    pub(crate) fn take_changes(&mut self) -> Vec<Result<PlaceImage, u32>> {
        let changed = self.tree.take_changed();
        changed.into_iter().map(|seat| self.image(seat).ok_or(seat.number())).collect()
    }

    /// These are to be taken again.
    pub(crate) fn mark_changed(&mut self, numbers: impl Iterator<Item = u32>) {
        self.tree.mark_changed(numbers.filter_map(Seat::of_number));
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.tree.has_changed()
    }

    /// Whether any family's turn can come.
    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    fn image(&self, seat: Seat) -> Option<PlaceImage> {
        let place = self.tree.is_taken(seat).then(|| self.tree.place(seat))?;
        let state = match &place.state {
            State::Living => PlaceState::Living,
            State::Dying(map) => PlaceState::Dying(map.clone()),
            State::Gone => PlaceState::Gone,
        };
        Some(PlaceImage {
            number: seat.number(),
            id: place.id,
            family: place.family,
            position: place.position,
            order: if matches!(state, PlaceState::Dying(_)) { place.order } else { 0 },
            parent: self.tree.parent(seat).map_or(0, Seat::number),
            state,
        })
    }

    /// Put back what was taken. `None` where it cannot have been.
    ///
    /// What volumes shed from here on goes to dying places of its own.
    pub(crate) fn restore(images: Vec<PlaceImage>) -> Option<Self> {
        let mut this = Lineage::default();
        this.tree.reserve(images.len());
        let mut dying = Vec::new();
        for image in images {
            let seat = Seat::of_number(image.number)?;
            let state = match image.state {
                PlaceState::Living => State::Living,
                PlaceState::Dying(map) => {
                    dying.push((image.order, seat, image.family));
                    State::Dying(map)
                }
                PlaceState::Gone => State::Gone,
            };
            let place = Tree::restored(image.id, image.family, image.position, state, image.order);
            if !this.tree.restore(seat, place, Seat::of_number(image.parent)) {
                return None;
            }
        }
        if !this.tree.hang_all() {
            return None;
        }
        dying.sort_unstable();
        for (order, seat, family) in dying {
            this.orders_last = order;
            let queue = this.families.entry(family).or_insert_with(|| {
                this.turns.push_back(family);
                Family::default()
            });
            queue.queue.push_back(seat);
            this.dying_count += 1;
        }
        Some(this)
    }

    /// The same lineage, taken as a checkpoint takes it and put back: for tests. Volumes are to be
    /// told their parents anew.
    ///
    /// # Panics
    /// Where it cannot be put back.
    #[must_use]
    pub fn rebuilt(mut self) -> Self {
        self.tree.mark_all_changed();
        let images = self.take_changes().into_iter().filter_map(Result::ok).collect();
        let reserved = std::mem::take(&mut self.reserved);
        let mut rebuilt = Lineage::restore(images).expect("what was taken can be put back");
        rebuilt.reserved = reserved;
        rebuilt
    }

    /// The parent of a place: its id, its position, whether it is living.
    #[must_use]
    pub fn parent_of(&self, id: PlaceId) -> Option<(PlaceId, Position, bool)> {
        let parent = self.tree.place(self.tree.parent(self.tree.find(id)?)?);
        let living = matches!(parent.state, State::Living);
        Some((parent.id, parent.position?, living))
    }

    /// A living place, as its object has to know it; `None` where it is not living.
    pub(crate) fn living(&self, id: PlaceId) -> Option<LivingPlace> {
        let seat = self.tree.find(id)?;
        let place = self.tree.place(seat);
        let parent = self.tree.parent(seat).map(|parent| {
            let place = self.tree.place(parent);
            (parent.number(), place.id, place.position.unwrap_or_default())
        });
        let number = seat.number();
        let has_children = self.tree.first_child(seat).is_some();
        let living = matches!(place.state, State::Living);
        living.then_some(LivingPlace { number, position: place.position, parent, has_children })
    }

    /// Numbers of places are below this.
    pub(crate) fn numbers_end(&self) -> usize {
        self.tree.seats_count() + 1
    }
}
