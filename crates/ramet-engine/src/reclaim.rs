//! Giving space back: what checkpoints found dead, removed or thinned once both slots say so.
//!
//! Calls the log; its steps run on a thread of their own, under no lock that a reader or writer
//! takes. Invariant: nothing is given back that the checkpoint of either slot reaches.
//! See docs/internals/reclaim.md.

use crate::EngineError;
use crate::checkpoint::Aim;
use crate::engine::Engine;
use crate::nodes::count::{self, Counted, PageRuns, bytes_of};
use crate::object::Object;
use crate::reuse::RENEWABLE_MAX;
use parking_lot::Mutex;
use ramet_log::format::node::{NodeFileKind, UNIT_BYTES};
use ramet_log::{BLOCK_BYTES_U64, LogError, Removal, SegmentEntry, SegmentId, SlotSet, Thinned};
use ramet_store::StoreError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A segment is thinned when this part of it would come back.
const WASTE_PART: u32 = 8;
/// Files removed in one step.
const REMOVED_AT_ONCE: usize = 16;
/// Nodes are counted when their files take this much more than twice what was reached before.
const NODES_SLACK_BYTES: u64 = 8 << 20;
/// After deletes nodes are counted, this long after the last time,
const COUNT_WAIT: Duration = Duration::from_secs(5);
/// or this many times as long as it took, whichever is longer.
const COUNT_WAIT_TIMES: u32 = 20;
/// Nodes and runs that `reclaim` looks at before it says how far it is.
const ANSWERED_AT_ONCE: u64 = 65_536;

type Result<T> = std::result::Result<T, EngineError>;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Reclaim {
    pub(crate) due: Mutex<Due>,
    /// Who walks maps that may end meanwhile: nothing is given back while one does.
    pins: AtomicUsize,
    /// Who reads the files beside the engine: the same, until space is wanted. True while it holds.
    holds: Mutex<BTreeMap<u64, bool>>,
    pub(crate) given_back_bytes: AtomicU64,
    /// Set once the medium turned out to keep no holes.
    no_holes: AtomicBool,
    /// One gives back at a time: who waits for it has waited for all.
    pub(crate) stepping: Mutex<()>,
    counting: Mutex<Counting>,
}

/// When nodes were counted, and what came of it.
struct Counting {
    at: Instant,
    took: Duration,
    reached_bytes: Option<u64>,
    /// Pages that were given back since the pool was opened.
    given: BTreeMap<SegmentId, BTreeSet<u64>>,
}

impl Default for Counting {
    fn default() -> Self {
        let given = BTreeMap::new();
        Counting { at: Instant::now(), took: Duration::ZERO, reached_bytes: None, given }
    }
}

/// How far giving back is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reclaimed {
    /// Bytes that came back since it was asked for.
    pub given_back_bytes: u64,
    /// Bytes that are dead and still wait.
    pub waiting_bytes: u64,
    /// Places that are not answered yet.
    pub dying_count: u64,
    /// Whether all was done that could be.
    pub is_done: bool,
}

/// What one object takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectSpace {
    /// Bytes of all blocks that it maps.
    pub mapped_bytes: u64,
    /// Bytes of those of them that no other object holds: what deleting it alone frees.
    pub exclusive_bytes: u64,
    /// The last batch that had begun when this was looked at.
    pub sequence: u64,
}

/// What the checkpoints of both slots allow.
#[derive(Default)]
pub(crate) struct Due {
    pub(crate) remove: Vec<SegmentId>,
    remove_nodes: Vec<SegmentId>,
    pub(crate) thin: BTreeMap<SegmentId, SlotSet>,
    /// Those that somebody was sending blocks of.
    busy: BTreeMap<SegmentId, SlotSet>,
    /// Those of them whose files may be used again.
    pub(crate) renew: BTreeMap<SegmentId, SlotSet>,
    nodes: BTreeMap<SegmentId, PageRuns>,
    /// Files of nodes that the next checkpoint is to leave out.
    dead_node_files: BTreeSet<SegmentId>,
}

impl Due {
    /// What was busy is due again, unless more of it is by now.
    fn try_again(&mut self) {
        for (id, dead) in std::mem::take(&mut self.busy) {
            self.thin.entry(id).or_insert(dead);
        }
    }
}

/// Holds everything back while it lives.
pub(crate) struct Pin<'a>(&'a Reclaim);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a checkpoint found that may go once both slots hold it.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) dropped: Vec<SegmentId>,
    pub(crate) thinned: Vec<(SegmentId, SlotSet)>,
    pub(crate) renewable: Vec<(SegmentId, SlotSet)>,
    /// Whether more of what is found may wait.
    pub(crate) is_patient: bool,
    pub(crate) node_files: BTreeSet<SegmentId>,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        let none = self.dropped.is_empty() && self.node_files.is_empty();
        none && self.thinned.is_empty() && self.renewable.is_empty()
    }
}

impl Reclaim {
    /// Hold back everything for a while.
    pub(crate) fn pin(&self) -> Pin<'_> {
        self.pins.fetch_add(1, Ordering::AcqRel);
        Pin(self)
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0 || self.holds.lock().values().any(|holds| *holds)
    }

    /// There was no space for somebody: who reads beside has to begin again.
    pub(crate) fn break_holds(&self) {
        self.holds.lock().values_mut().for_each(|holds| *holds = false);
    }

    pub(crate) fn holes_supported(&self) -> bool {
        !self.no_holes.load(Ordering::Relaxed)
    }

    /// Whether it pays to give back what of a segment is dead.
    pub(crate) fn pays(&self, entry: &SegmentEntry, dead: u32, all: bool) -> bool {
        let waste = entry.waste(dead);
        let enough = u64::from(waste) * u64::from(WASTE_PART) >= u64::from(entry.used);
        self.holes_supported() && waste > 0 && (all || enough)
    }

    /// Both slots hold the checkpoint that found this.
    pub(crate) fn allow(&self, found: Found) {
        let mut due = self.due.lock();
        due.remove.extend(found.dropped);
        for id in &found.node_files {
            due.nodes.remove(id);
            due.dead_node_files.remove(id);
        }
        due.remove_nodes.extend(found.node_files);
        due.renew.extend(found.renewable);
        for (id, dead) in found.thinned {
            // More of it is dead than was when it began to wait.
            match due.renew.get_mut(&id) {
                Some(before) => *before = dead,
                None => drop(due.thin.insert(id, dead)),
            }
        }
        if !found.is_patient {
            due.stop_renewing();
        }
    }

    /// Pages of node files that no map of either slot's checkpoint reaches; `whole`: files of which
    /// nothing is reached.
    fn allow_nodes(&self, counted: Counted, given: &mut BTreeMap<SegmentId, BTreeSet<u64>>) {
        given.retain(|id, _| !counted.whole.contains(id));
        let mut due = self.due.lock();
        for (id, runs) in counted.pages {
            let before = given.entry(id).or_default();
            let mut fresh = PageRuns::new();
            for page in runs.iter().flat_map(|(first, count)| *first..first + count) {
                match fresh.last_mut() {
                    _ if !before.insert(page) => {}
                    Some((first, count)) if *first + *count == page => *count += 1,
                    _ => fresh.push((page, 1)),
                }
            }
            if !fresh.is_empty() {
                // What an earlier count found, and was not given back yet, is as free as then.
                due.nodes.entry(id).or_default().extend(fresh);
            }
        }
        due.dead_node_files = counted.whole;
    }

    pub(crate) fn dead_node_files(&self) -> BTreeSet<SegmentId> {
        self.due.lock().dead_node_files.clone()
    }

    /// Whether anything may be given back now.
    pub(crate) fn is_due(&self) -> bool {
        let due = self.due.lock();
        let none = due.remove.is_empty() && due.remove_nodes.is_empty();
        let may_wait = due.renew.len() <= RENEWABLE_MAX;
        !(none && due.thin.is_empty() && may_wait && due.nodes.is_empty())
    }
}

/// What a step of reclaim sees to.
pub(crate) enum Work {
    Remove(Vec<SegmentId>),
    RemoveNodes(Vec<SegmentId>),
    Thin(SegmentId, SlotSet),
    Renew(SegmentId, SlotSet),
    Nodes(SegmentId, PageRuns),
}

impl Engine {
    /// Give back some of what may be. Result: whether to call again at once, which is never so.
    ///
    /// # Errors
    /// `Unavailable` where the medium fails. What could not be given back is tried again after the
    /// pool was opened anew; nothing is lost.
    pub fn step_reclaim(&self, now: Instant) -> Result<bool> {
        if !self.may_reclaim() {
            return Ok(false);
        }
        if self.count_is_due(now) {
            self.count_nodes()?;
        }
        self.reclaim.due.lock().try_again();
        self.see_to_spares()?;
        self.give_some_back()?;
        // One at a time, with time between: a file that shrinks makes the file system write its
        // journal, which the flushes of clients wait for.
        Ok(false)
    }

    /// Give nothing back from here on, so that the pool's files can be read beside the engine as
    /// the newest checkpoint says. Ends with `let_go`, or when somebody finds no space.
    pub fn hold_space(&self) -> u64 {
        let number = {
            let mut holds = self.reclaim.holds.lock();
            let number = holds.last_key_value().map_or(1, |(last, _)| last + 1);
            holds.insert(number, true);
            number
        };
        // What is under way ends first.
        drop(self.reclaim.stepping.lock());
        number
    }

    /// Where there is no space nobody may hold any.
    pub(crate) fn note_full(&self, error: LogError) -> EngineError {
        if matches!(error, LogError::Store(StoreError::Full { .. })) {
            self.reclaim.break_holds();
            self.want_no_hashes();
        }
        error.into()
    }

    /// Whether a hold was not broken.
    pub fn still_holds(&self, number: u64) -> bool {
        self.reclaim.holds.lock().get(&number).copied().unwrap_or(false)
    }

    /// End a hold.
    pub fn let_go(&self, number: u64) {
        self.reclaim.holds.lock().remove(&number);
    }

    pub(crate) fn may_reclaim(&self) -> bool {
        !self.log.read_only() && self.log.poisoned().is_none() && self.log.check_open().is_ok()
    }

    /// Give back all that is dead, where it pays, or `all` of it and what is allocated ahead:
    /// answer what is dying, write a checkpoint, give back. `tell` hears now and then how far that
    /// is, and says whether to go on.
    ///
    /// # Errors
    /// `Full` where there is no room for a checkpoint; `Unavailable`.
    pub fn reclaim(
        &self,
        all: bool,
        tell: &mut dyn FnMut(&Reclaimed) -> bool,
    ) -> Result<Reclaimed> {
        let before = self.reclaim.given_back_bytes.load(Ordering::Relaxed);
        let so_far = || {
            let now = self.reclaim.given_back_bytes.load(Ordering::Relaxed);
            let (waiting_bytes, dying_count) = (self.waiting_bytes(), self.space.dying_count());
            Reclaimed { given_back_bytes: now - before, waiting_bytes, dying_count, is_done: false }
        };
        let aim = if all { Aim::AllDead } else { Aim::Deaths };
        while self.step_space(ANSWERED_AT_ONCE) {
            self.log.rest();
            if !tell(&so_far()) {
                return Ok(so_far());
            }
        }
        let mut appended = None;
        for counts in [false, true] {
            if counts {
                appended = self.log.open_segment();
                self.count_nodes()?;
            }
            if self.log.is_filled(Instant::now()) && self.reserve.is_whole() {
                self.log.prepare_to_seal()?;
            }
            self.checkpoint_for(aim)?;
            self.reclaim.due.lock().try_again();
            while self.give_some_back()? {
                if !tell(&so_far()) {
                    return Ok(so_far());
                }
            }
        }
        let now = self.log.open_segment();
        // Who writes meanwhile would have to make it all again.
        if !(self.log.is_filled(Instant::now()) && now.is_some() && now != appended) {
            self.give_kept_back(all)?;
        }
        Ok(Reclaimed { is_done: true, ..so_far() })
    }

    /// Give back what is kept for those who write: spare files, or `all` of it.
    fn give_kept_back(&self, all: bool) -> Result<()> {
        {
            let _stepping = self.reclaim.stepping.lock();
            self.stop_renewing()?;
        }
        if all && !self.reclaim.is_pinned() {
            let bytes = self.log.give_room_back()? + self.log.cut_tails()?;
            self.reclaim.given_back_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Answer some of what is dying. Result: whether there is more.
    pub(crate) fn step_space(&self, budget: u64) -> bool {
        self.space.step(budget)
    }

    /// Bytes that deleting these objects, all of them together, would free: of blocks that no other
    /// object holds.
    ///
    /// # Errors
    /// `NotFound` where one is missing; `Corrupt` and `Unavailable` where a map cannot be read.
    pub fn frees(&self, names: &[String]) -> Result<u64> {
        // No command changes the tree meanwhile, and no node that the maps show now goes away.
        let _commands = self.commands.lock();
        let _pin = self.reclaim.pin();
        let objects = names.iter().map(|name| self.find_object(name));
        let objects: Vec<Arc<Object>> = objects.collect::<Result<_>>()?;
        let places = objects.iter().map(|object| object.place()).collect();
        Ok(self.space.frees(&places)? * BLOCK_BYTES_U64)
    }

    /// What one object takes, and what deleting it alone would free.
    ///
    /// # Errors
    /// As `frees`.
    pub fn object_space(&self, name: &str) -> Result<ObjectSpace> {
        let _commands = self.commands.lock();
        self.space_of_held(&*self.find_object(name)?)
    }

    /// Bytes of segments that are dead and wait to be given back, headers of batches included.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        let dead = self.space.dead_counts();
        let waste =
            |entry: SegmentEntry| u64::from(entry.waste(dead.get(&entry.id).copied().unwrap_or(0)));
        self.log.all_segments().into_iter().map(waste).sum::<u64>() * BLOCK_BYTES_U64
    }

    /// Bytes of blocks that somebody holds, each counted once.
    pub(crate) fn living_bytes(&self) -> u64 {
        let blocks = self.log.blocks_counts();
        let dead = self.space.dead_counts();
        let living = |(id, blocks): (SegmentId, u32)| {
            u64::from(blocks.saturating_sub(dead.get(&id).copied().unwrap_or(0)))
        };
        blocks.into_iter().map(living).sum::<u64>() * BLOCK_BYTES_U64
    }

    /// Bytes of files of nodes that are in use, whether anything reaches them or not.
    pub(crate) fn node_file_bytes(&self) -> u64 {
        let units = self.counters.node_units.load(Ordering::Relaxed);
        let counting = self.reclaim.counting.lock();
        let given: usize = counting.given.values().map(BTreeSet::len).sum();
        (units * UNIT_BYTES).saturating_sub(given as u64 * BLOCK_BYTES_U64)
    }

    fn count_is_due(&self, now: Instant) -> bool {
        let bytes = self.node_file_bytes();
        let (since, wait, reached) = {
            let mut counting = self.reclaim.counting.lock();
            // After opening all is taken for reached, until it was counted.
            let reached = *counting.reached_bytes.get_or_insert(bytes);
            let wait = COUNT_WAIT.max(counting.took * COUNT_WAIT_TIMES);
            (now.saturating_duration_since(counting.at), wait, reached)
        };
        let grown = bytes > 2 * reached + NODES_SLACK_BYTES;
        since >= wait && (grown || self.space.deaths_since_count(false))
    }

    /// Find out which nodes the newest checkpoint reaches, and allow the room of others to go.
    fn count_nodes(&self) -> Result<()> {
        let began = Instant::now();
        self.space.deaths_since_count(true);
        let (roots, files, target) = {
            let state = self.checkpoints.lock();
            (state.roots(), state.node_files.clone(), state.newest_node_file())
        };
        let counted = count::count(&self.nodes, &roots, &files, target, &|| self.log.rest());
        {
            let mut counting = self.reclaim.counting.lock();
            (counting.at, counting.took) = (Instant::now(), began.elapsed());
            let reached = counted.as_ref().map(|counted| counted.reached_bytes);
            counting.reached_bytes = reached.ok().or(counting.reached_bytes);
        }
        let counted = counted?;
        let free = counted.pages.values().map(bytes_of).sum::<u64>();
        if free == 0 && counted.whole.is_empty() {
            return Ok(());
        }
        // Later checkpoints reach what this one does, and what was written since. With the newest
        // one in both slots no older one is left.
        let state = self.checkpoints.lock();
        self.log.commit_again()?;
        drop(state);
        self.reclaim.allow_nodes(counted, &mut self.reclaim.counting.lock().given);
        Ok(())
    }

    fn give_some_back(&self) -> Result<bool> {
        let reclaim = &self.reclaim;
        let _stepping = reclaim.stepping.lock();
        if reclaim.is_pinned() || !self.may_reclaim() {
            return Ok(false);
        }
        let Some(work) = self.next_work() else { return Ok(false) };
        self.give_back(work)?;
        // The first that comes back is kept for the next time.
        let _ = self.fill_reserve();
        Ok(self.reclaim.is_due())
    }

    fn next_work(&self) -> Option<Work> {
        let due = &mut *self.reclaim.due.lock();
        let take = |list: &mut Vec<SegmentId>| {
            let from = list.len().saturating_sub(REMOVED_AT_ONCE);
            list.split_off(from)
        };
        if !due.remove.is_empty() {
            return Some(Work::Remove(take(&mut due.remove)));
        }
        if !due.remove_nodes.is_empty() {
            return Some(Work::RemoveNodes(take(&mut due.remove_nodes)));
        }
        if let Some((id, dead)) = due.thin.pop_first() {
            return Some(Work::Thin(id, dead));
        }
        if due.renew.len() > RENEWABLE_MAX {
            return due.renew.pop_first().map(|(id, dead)| Work::Thin(id, dead));
        }
        due.nodes.pop_first().map(|(id, pages)| Work::Nodes(id, pages))
    }

    pub(crate) fn give_back(&self, work: Work) -> Result<()> {
        let reclaim = &self.reclaim;
        let came_back = |bytes| reclaim.given_back_bytes.fetch_add(bytes, Ordering::Relaxed);
        match work {
            Work::Remove(ids) => {
                came_back(self.log.remove_segments(&ids)?);
                self.drop_hashes(&ids);
            }
            Work::RemoveNodes(ids) => {
                let kind = NodeFileKind::Nodes;
                let removal = |id: &SegmentId| Removal { path: kind.path(*id), is_lent: false };
                ids.iter().for_each(|id| self.nodes.files.close(*id));
                let removals = ids.iter().map(removal).collect();
                came_back(self.log.remove_files(kind.directory(), removals)?);
                self.drop_hashes(&ids);
            }
            Work::Renew(id, dead) => {
                if self.log.renew(id, &dead)? {
                    self.thin_hashes(id, &dead);
                } else {
                    reclaim.due.lock().thin.insert(id, dead);
                }
            }
            Work::Thin(id, dead) => match self.log.thin(id, &dead)? {
                Thinned::Bytes(bytes) => {
                    came_back(bytes);
                    self.thin_hashes(id, &dead);
                }
                Thinned::Busy => drop(reclaim.due.lock().busy.insert(id, dead)),
                Thinned::NoHoles => reclaim.no_holes.store(true, Ordering::Relaxed),
            },
            Work::Nodes(id, pages) => {
                came_back(punch_nodes(&self.log, id, &pages)?);
            }
        }
        Ok(())
    }
}

/// Give pages of a node file back: first page and count each.
fn punch_nodes(log: &ramet_log::Log, id: SegmentId, pages: &PageRuns) -> Result<u64> {
    let failed = |error| EngineError::from(ramet_log::LogError::from(error));
    let file = match log.store().open(&NodeFileKind::Nodes.path(id), true) {
        Err(StoreError::NotFound { .. }) => return Ok(0),
        file => file.map_err(failed)?,
    };
    let before = file.allocated_bytes().map_err(failed)?;
    for (first, count) in pages {
        log.rest();
        let punched = file.punch(first * BLOCK_BYTES_U64, count * BLOCK_BYTES_U64);
        if !punched.map_err(failed)? {
            return Ok(0);
        }
        log.note_freed(&*file, 1)?;
    }
    Ok(before.saturating_sub(file.allocated_bytes().map_err(failed)?))
}
