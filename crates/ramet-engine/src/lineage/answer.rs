//! Answering for what is dying, and the dry run of deletes.
//!
//! Invariant: holders are the living, and the dying whose turn has not come; the place being
//! answered, and what is gone, are looked through. So no walk meets what another has freed.

use super::around::Neighbors;
use super::tree::{Place, Seat, State};
use super::{Lineage, LivingMaps, PlaceId};
use crate::map::{Map, Missing, Walked, walk_unheld};
use ramet_log::Locator;
use std::collections::{HashMap, HashSet};

impl Lineage {
    /// One turn: answer some of the family's oldest dying place whose turn it is; `dead` is told
    /// the runs (first block, count, locator) that nobody holds. What is answered is cut from the
    /// dying map. Result: what it cost, in nodes; 0 when nothing is dying, or a command is under
    /// way: the maps of the living are then ahead of the tree.
    ///
    /// # Errors
    /// `Missing`: the turn is to be taken again with that node in memory. What was answered before
    /// it is answered.
    pub fn step(
        &mut self,
        living: &LivingMaps<'_>,
        budget: u64,
        dead: &mut impl FnMut(u64, u64, Locator),
    ) -> Result<u64, Missing> {
        if !self.reserved.is_empty() {
            return Ok(0);
        }
        let Some(family) = self.turns.front().copied() else { return Ok(0) };
        let visited = self.answer_first(family, budget, living, dead)?;
        self.turns.pop_front();
        if self.families.contains_key(&family) {
            self.turns.push_back(family);
        }
        Ok(visited + 1)
    }

    /// Give the family whose turn it is up: a node that its walk needs cannot be read, and nothing
    /// more of it is freed until the pool is opened again.
    pub fn give_up_turn(&mut self) {
        self.turns.pop_front();
    }

    /// One walk of the place whose turn it is in its family. Result: nodes visited.
    fn answer_first(
        &mut self,
        id: u64,
        budget: u64,
        living: &LivingMaps<'_>,
        dead: &mut impl FnMut(u64, u64, Locator),
    ) -> Result<u64, Missing> {
        let family = &self.families[&id];
        let seat = *family.queue.front().expect("a family without work is dropped");
        let first = family.yes.and_then(|ticket| self.tree.redeem(ticket));
        let State::Dying(map) = &mut self.tree.place_mut(seat).state else {
            unreachable!("it waits")
        };
        let map = std::mem::take(map);
        let holds =
            |other: Seat, place: &Place| other != seat && !matches!(place.state, State::Gone);
        let mut neighbors = Neighbors::new(&self.tree, seat, &holds, living, first);
        let walked = walk_unheld(&map, 0, budget, &mut neighbors, dead);
        let yes = neighbors.seat(walked.yes).map(|seat| self.tree.ticket(seat));
        let Walked { answered, visited, missing, .. } = walked;
        self.nodes_visited += visited;
        let (map, cut) = match answered {
            Some(end) => cut_answered(map, end),
            None => (Map::default(), Ok(0)),
        };
        let done = map.is_empty();
        self.tree.place_mut(seat).state = if done { State::Gone } else { State::Dying(map) };
        let family = self.families.get_mut(&id).expect("looked at above");
        family.yes = yes;
        self.dirtied_bytes += cut?;
        if done {
            family.queue.pop_front();
            self.dying_count -= 1;
            if family.queue.is_empty() {
                self.families.remove(&id);
            }
            self.tree.contract(seat);
        }
        match missing {
            Some(missing) if !done => Err(missing),
            Some(_) | None => Ok(visited),
        }
    }

    /// What deleting these objects would free, exact, whatever still waits in the queue. Every run
    /// is told once, also where several of the objects have it. Not in steps: for large sets it
    /// takes its time; `load` gets what is not in memory.
    ///
    /// # Errors
    /// What `load` fails with.
    ///
    /// # Panics
    /// Where a place is not living.
    pub fn frees<E>(
        &self,
        set: &HashSet<PlaceId>,
        living: &LivingMaps<'_>,
        load: &mut impl FnMut(&Missing) -> Result<(), E>,
        freed: &mut impl FnMut(u64, u64, Locator),
    ) -> Result<(), E> {
        // As if they died in this order: what several of them hold is told by the last one.
        let mut order: Vec<Seat> = set.iter().map(|place| self.tree.seat(*place)).collect();
        order.sort_unstable();
        let ranks: HashMap<Seat, usize> = order.iter().copied().zip(0..).collect();
        let mut yes = None;
        for (rank, seat) in order.into_iter().enumerate() {
            let place = self.tree.place(seat);
            assert!(
                matches!(place.state, State::Living),
                "a dry run of what ended: {:#x}",
                place.id
            );
            let holds = |other: Seat, place: &Place| {
                matches!(place.state, State::Living)
                    && ranks.get(&other).is_none_or(|later| *later > rank)
            };
            let map = living(place.id).expect("what lives has a map");
            let mut from = Some(0);
            while let Some(start) = from {
                let mut neighbors = Neighbors::new(&self.tree, seat, &holds, living, yes);
                let walked = walk_unheld(&map, start, u64::MAX, &mut neighbors, freed);
                yes = neighbors.seat(walked.yes);
                from = walked.answered;
                walked.missing.as_ref().map_or(Ok(()), &mut *load)?;
            }
        }
        Ok(())
    }
}

/// Forget what a walk has answered. Where that needs a node that just left memory the map stays as
/// it is, and is answered again: a slot may be told dead twice.
fn cut_answered(mut map: Map, end: u64) -> (Map, Result<u64, Missing>) {
    let cut = map.cut(end);
    (map, cut)
}
