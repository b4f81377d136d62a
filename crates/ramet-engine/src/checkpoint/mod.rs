//! Checkpoints: the maps, objects, lineage and file table written out up to a cut, so that opening
//! replays only what came after.
//!
//! Called by the engine's step, at close, and by writers who find too much waiting. Invariants: the
//! log is synced up to the cut and every node is durable before the superblock names them; a
//! checkpoint that came to nothing leaves everything to the next one. See
//! docs/internals/format.md, "Checkpoint".

mod image;
pub(crate) mod load;

use crate::engine::Engine;
use crate::map::Map;
use crate::nodes::tree::{self, Change};
use crate::nodes::{NodeFiles, NodeWriter, WriterState};
use crate::object::{Object, ObjectFields};
use crate::reclaim::Found;
use crate::reuse::{Patience, Waste};
use crate::space::SpaceImage;
use crate::{EngineError, Kind};
use ramet_log::format::node::NodeFileKind;
use ramet_log::format::segment::LogEnd;
use ramet_log::format::superblock::NodeReference;
use ramet_log::{ObjectId, SegmentId, Sequence};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Kinds of roots in a commit record.
pub(crate) const ROOT_OBJECTS: u16 = 1;
pub(crate) const ROOT_LINEAGE: u16 = 2;
pub(crate) const ROOT_FILES: u16 = 3;

/// Bytes that table files may take beyond three times what is live in them.
const TABLE_SLACK_BYTES: u64 = 1 << 20;

/// After deletes were answered a checkpoint gives them back, when nothing happened for this long,
const DEATHS_WAIT: Duration = Duration::from_secs(1);
/// or after this long.
const DEATHS_WAIT_MAX: Duration = Duration::from_secs(5);
/// Nodes that are worth a checkpoint where space is short,
const SHORT_DIRTY_BYTES: u64 = 1 << 20;
/// that is where less is free than so many times of them.
const SHORT_TIMES: u64 = 16;
/// Dead slots for which the segment that is appended to is ended: 1 MiB.
const OPEN_DEAD_MIN: u32 = 256;

type Result<T> = std::result::Result<T, EngineError>;

/// The pool's trees.
#[derive(Clone, Copy, Default)]
pub(crate) struct Roots {
    pub(crate) objects: Option<NodeReference>,
    pub(crate) lineage: Option<NodeReference>,
    pub(crate) files: Option<NodeReference>,
}

/// What one checkpoint remembers for the next.
pub(crate) struct Checkpoints {
    nodes: WriterState,
    tables: WriterState,
    table_nodes: NodeFiles,
    roots: Roots,
    cut: LogEnd,
    /// Table files that the roots reach.
    table_files: BTreeSet<SegmentId>,
    /// What the file table took when it was last written as a whole, and `written_bytes` then.
    table_whole: (u64, u64),
    /// Table files that the newest commit does not reach, but the one before it.
    retired: BTreeSet<SegmentId>,
    at: Instant,
    log_bytes: u64,
    /// The last batch that was appended when somebody looked, and since when that is so.
    quiet: (Sequence, Instant),
    /// When answered deaths were first seen.
    deaths_at: Option<Instant>,
    /// Segments that the next checkpoint has to look at again.
    look_again: HashSet<SegmentId>,
    /// Those among them in which something is dead that is not given back while the log is filled.
    put_off: HashSet<SegmentId>,
    /// Units in use of every node file that the roots may reach.
    pub(crate) node_files: BTreeMap<SegmentId, u32>,
}

/// Why a checkpoint is written, as far as that changes what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Shorten the next opening, or make room for nodes: segments keep what is dead in them.
    Usual,
    /// Time has passed: give back what is dead, where it pays.
    Time,
    /// Give back what was just found dead, where it pays.
    Deaths,
    /// Give back whatever is dead.
    AllDead,
}

/// An object as of the cut.
struct ObjectAtCut {
    object: Arc<Object>,
    map: Map,
    fields: ObjectFields,
    place: u64,
}

/// Everything that changed up to the cut.
struct Capture {
    cut: LogEnd,
    objects: Vec<ObjectAtCut>,
    gone: Vec<ObjectId>,
    space: SpaceImage,
    dirty_bytes: u64,
}

impl Checkpoints {
    pub(crate) fn new(
        table_nodes: NodeFiles,
        roots: Roots,
        cut: LogEnd,
        table_files: BTreeSet<SegmentId>,
        node_files: BTreeMap<SegmentId, u32>,
    ) -> Self {
        Checkpoints {
            nodes: WriterState::new(NodeFileKind::Nodes),
            tables: WriterState::new(NodeFileKind::Tables),
            table_nodes,
            roots,
            cut,
            table_files,
            table_whole: (0, 0),
            retired: BTreeSet::new(),
            at: Instant::now(),
            log_bytes: 0,
            quiet: (Sequence(0), Instant::now()),
            deaths_at: None,
            look_again: HashSet::new(),
            put_off: HashSet::new(),
            node_files,
        }
    }

    pub(crate) fn roots(&self) -> Roots {
        self.roots
    }

    /// The file that nodes are appended to.
    pub(crate) fn newest_node_file(&self) -> Option<SegmentId> {
        self.nodes.newest()
    }
}

impl Engine {
    /// Write a checkpoint, unless nothing changed since the last one. Result: whether one was
    /// written.
    ///
    /// # Errors
    /// `Full` where there is no room: nothing is lost, the log stays as long as it is.
    /// `Unavailable` where a write or sync fails.
    ///
    /// # Durability
    /// On return everything up to some moment during the call is durable.
    pub fn checkpoint(&self) -> Result<bool> {
        self.checkpoint_for(Aim::Usual)
    }

    pub(crate) fn checkpoint_for(&self, aim: Aim) -> Result<bool> {
        let state = &mut *self.checkpoints.lock();
        self.with_reserve(|| self.write_checkpoint(state, aim))
    }

    /// Where nodes that are nowhere else fill the budget, or there are as many batches as may be:
    /// write a checkpoint before more are made.
    pub(crate) fn make_room_for_nodes(&self) -> Result<()> {
        let budget = self.nodes.budget_bytes();
        let fits = || {
            let cut = self.counters.checkpointed.load(Ordering::Relaxed);
            self.nodes.dirty_bytes() <= budget
                && self.log.appended().0.saturating_sub(cut) < self.settings.checkpoint_batches
        };
        if fits() {
            return Ok(());
        }
        let state = &mut *self.checkpoints.lock();
        if fits() {
            return Ok(());
        }
        match self.write_checkpoint(state, Aim::Usual) {
            Err(error) if error.kind == Kind::Full => {
                if self.nodes.dirty_bytes() > 2 * budget {
                    Err(error)
                } else {
                    Ok(())
                }
            }
            other => other.map(drop),
        }
    }

    /// A checkpoint, where one is due. Result: whether one was written.
    pub(crate) fn checkpoint_where_due(&self, now: Instant) -> Result<bool> {
        let Some(mut state) = self.checkpoints.try_lock() else { return Ok(false) };
        let settings = &self.settings;
        let log_bytes = self.log.counters.written_bytes.load(Ordering::Relaxed) - state.log_bytes;
        let elapsed = now.saturating_duration_since(state.at);
        let due = log_bytes >= settings.checkpoint_log_bytes
            || self.nodes.dirty_bytes() >= self.nodes.budget_bytes() / 2
            || elapsed >= settings.checkpoint_every
            || self.space_is_short()
            || self.put_off_is_over(&state) && elapsed >= DEATHS_WAIT_MAX;
        // Deletes are given back soon, without anybody asking: at once where nothing else happens.
        let deaths = self.deaths_are_due(&mut state, now);
        if !due && deaths.is_none() {
            return Ok(false);
        }
        let aim = deaths.unwrap_or(Aim::Time);
        match self.with_reserve(|| self.write_checkpoint(&mut state, aim)) {
            // Tried again when more has changed, or later.
            Err(error) if error.kind == Kind::Full => {
                state.at = now;
                Ok(false)
            }
            other => other,
        }
    }

    pub(crate) fn write_checkpoint(&self, state: &mut Checkpoints, aim: Aim) -> Result<bool> {
        self.log.check_writable()?;
        if matches!(aim, Aim::Deaths | Aim::AllDead) {
            self.end_segment_with_dead(aim)?;
        }
        if aim == Aim::AllDead {
            let dead = self.space.dead_counts();
            let wasted = self.log.all_segments().into_iter().filter(|entry| {
                self.reclaim.pays(entry, dead.get(&entry.id).copied().unwrap_or(0), true)
            });
            state.look_again.extend(wasted.map(|entry| entry.id));
        }
        let gone_nodes = self.reclaim.dead_node_files();
        state.at = Instant::now();
        state.log_bytes = self.log.counters.written_bytes.load(Ordering::Relaxed);
        if self.log.appended() == state.cut.sequence
            && self.changed.is_empty()
            && !self.space.has_changed()
            && (aim == Aim::Usual || !self.put_off_is_over(state))
            && (aim != Aim::AllDead || state.look_again.is_empty() && gone_nodes.is_empty())
        {
            return Ok(false);
        }
        let mut capture = self.capture(&state.look_again);
        let found = self.find_dead(state, &mut capture, aim);
        match self.write_capture(state, &capture, &gone_nodes) {
            Ok(()) => {
                self.allow_reclaim(Found { node_files: gone_nodes, ..found })?;
                self.nodes.cleaned(capture.dirty_bytes);
                drop(capture);
                self.nodes.evict();
                self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) => {
                self.put_back(capture);
                Err(error)
            }
        }
    }

    /// Whether answered deaths call for a checkpoint. A segment that is appended to is not ended
    /// for them while others write: many small ones would come of that.
    fn deaths_are_due(&self, state: &mut Checkpoints, now: Instant) -> Option<Aim> {
        let appended = self.log.appended();
        if state.quiet.0 != appended {
            state.quiet = (appended, now);
        }
        if !self.space.deaths_are_answered() {
            state.deaths_at = None;
            return None;
        }
        let since = |then| now.saturating_duration_since(then);
        let first = *state.deaths_at.get_or_insert(now);
        if since(state.quiet.1) >= DEATHS_WAIT {
            return Some(Aim::Deaths);
        }
        (since(first) >= DEATHS_WAIT_MAX && since(state.at) >= DEATHS_WAIT_MAX).then_some(Aim::Time)
    }

    /// Whether something was put off for a log that is filled no more.
    fn put_off_is_over(&self, state: &Checkpoints) -> bool {
        !state.put_off.is_empty() && !self.patience().is_some()
    }

    /// Whether nodes that are nowhere else could soon find no room.
    fn space_is_short(&self) -> bool {
        let dirty_bytes = self.nodes.dirty_bytes();
        // Looked at ten times a second: the system is asked only where the answer can matter.
        dirty_bytes >= SHORT_DIRTY_BYTES && {
            let free = self.log.store().space_bytes();
            free.is_ok_and(|(free_bytes, _)| free_bytes < SHORT_TIMES * dirty_bytes)
        }
    }

    /// The cut: no command is under way, and the gate is closed while the roots are taken.
    fn capture(&self, look_again: &HashSet<SegmentId>) -> Capture {
        // Before the lock, so that no command waits for it.
        self.changed.warm();
        let commands = self.commands.lock();
        let close_gate = || {
            let mut gate = self.log.enter();
            let cut = gate.cut();
            let (objects, gone) = self.changed.take();
            let token = crate::head::InGate::closed(&gate);
            let maps: Vec<Map> =
                objects.iter().map(|object| object.head.share_map(token)).collect();
            let dirty_bytes = self.nodes.dirty_bytes();
            ((cut, objects, maps, gone, dirty_bytes), self.space.at_cut())
        };
        let (at_cut, space) = self.space.image(close_gate, |at_cut, with_dead| {
            let also = with_dead.union(look_again).copied().collect();
            self.log.segment_entries(&also, at_cut.0)
        });
        let ((cut, _), objects, maps, gone, dirty_bytes) = at_cut;
        // In one piece: there may be thousands, and most are there.
        let mut captured = Vec::with_capacity(objects.len());
        let there = objects.into_iter().zip(maps).filter(|(object, _)| !object.is_gone());
        captured.extend(there.map(|(object, map)| {
            let (fields, place) = (object.fields_now(), object.place());
            ObjectAtCut { object, map, fields, place }
        }));
        drop(commands);
        Capture { cut, objects: captured, gone, space, dirty_bytes }
    }

    /// Say what of the segments that changed is dead as of the cut, and how they leave.
    fn find_dead(&self, state: &mut Checkpoints, capture: &mut Capture, aim: Aim) -> Found {
        let at_cut = capture.cut.position.locator().segment();
        let mut found = Found::default();
        let (mut again, mut put_off) = (HashSet::new(), HashSet::new());
        let mut patience = (aim == Aim::Time).then(|| self.patience());
        found.is_patient = aim == Aim::Usual || patience.as_ref().is_some_and(Patience::is_some);
        for entry in &mut capture.space.segments {
            let (dead, slots) = &capture.space.dead[&entry.id];
            let empty = entry.used != 0 && entry.living(*dead) == 0;
            // Opening begins in the segment that holds the cut.
            if empty && entry.id < at_cut {
                found.dropped.push(entry.id);
                continue;
            }
            if empty {
                again.insert(entry.id);
            }
            if aim == Aim::Usual || !self.reclaim.pays(entry, *dead, aim == Aim::AllDead) {
                continue;
            }
            let into = match patience.as_mut().map(|it| it.judge(entry, *dead)) {
                None | Some(Waste::Thin) => &mut found.thinned,
                Some(Waste::Renew) => &mut found.renewable,
                Some(Waste::Wait) => {
                    put_off.insert(entry.id);
                    continue;
                }
            };
            entry.thinned = true;
            into.push((entry.id, slots.clone()));
        }
        let leave = found.thinned.iter().chain(&found.renewable);
        self.log.set_thinned(leave.map(|(id, _)| *id));
        capture.space.dropped.clone_from(&found.dropped);
        if aim == Aim::Usual {
            put_off.clone_from(&state.put_off);
            put_off.retain(|id| !found.dropped.contains(id));
        }
        again.extend(&put_off);
        (state.look_again, state.put_off) = (again, put_off);
        found
    }

    /// The checkpoint is written: once the other slot holds it too, what it found may go.
    fn allow_reclaim(&self, found: Found) -> Result<()> {
        self.log.forget_segments(&found.dropped);
        self.space.dropped(&found.dropped);
        if !found.is_empty() {
            self.log.commit_again()?;
            self.reclaim.allow(found);
        }
        Ok(())
    }

    /// Nothing of a segment can be given back while it is appended to: begin another one where
    /// that pays.
    fn end_segment_with_dead(&self, aim: Aim) -> Result<()> {
        let Some((open, blocks)) = self.log.open_segment() else { return Ok(()) };
        let dead = self.space.dead_counts().get(&open).copied().unwrap_or(0);
        let enough = match aim {
            Aim::Usual | Aim::Time => false,
            Aim::Deaths => dead >= OPEN_DEAD_MIN || dead > 0 && dead >= blocks / 2,
            Aim::AllDead => dead > 0 || blocks == 0,
        };
        if enough { Ok(self.log.seal()?) } else { Ok(()) }
    }

    fn put_back(&self, capture: Capture) {
        capture.objects.iter().for_each(|at_cut| self.changed.note(&at_cut.object));
        capture.gone.iter().for_each(|id| self.changed.note_gone(*id));
        let numbers = capture.space.places.iter();
        let numbers = numbers.map(|place| place.as_ref().map_or_else(|gone| *gone, |it| it.number));
        self.space.unimage(numbers, capture.space.dead.keys().copied());
    }

    fn write_capture(
        &self,
        state: &mut Checkpoints,
        capture: &Capture,
        gone_nodes: &BTreeSet<SegmentId>,
    ) -> Result<()> {
        // Footers too, for what the file table calls sealed must be: a footer is synced with the
        // batch that comes next, or by `Log::seal`.
        self.log.commit(capture.cut.sequence)?;
        let nodes = &*self.nodes;
        let mut roots = state.roots;
        let mut writer = NodeWriter::new(&self.log, &mut state.nodes);
        let objects = image::objects(&mut writer, nodes, &capture.objects, &capture.gone)?;
        let places = image::places(&mut writer, nodes, &capture.space.places)?;
        let read = |reference: &NodeReference| nodes.files.read(reference);
        // Trees are read as they are on disk, so what was appended has to be there.
        writer.flush(nodes)?;
        for (root, changes) in [(&mut roots.objects, objects), (&mut roots.lineage, places)] {
            let mut write = |bytes: &[u8], entries| writer.write_tree_node(nodes, bytes, entries);
            *root = tree::update(&read, &mut write, root.as_ref(), &changes)?;
            writer.flush(nodes)?;
        }
        let files = image::files(&capture.space, state.nodes.grown(), gone_nodes);
        let old_tables = self.write_file_table(state, &mut roots, files)?;
        state.nodes.sync(&self.log)?;
        state.tables.sync(&self.log)?;
        let listed = image::roots(&roots);
        self.log.commit_checkpoint(capture.cut, &listed, state.tables.newest())?;
        state.node_files.extend(state.nodes.grown().iter().map(|(id, (_, units))| (*id, *units)));
        state.node_files.retain(|id, _| !gone_nodes.contains(id));
        let units = state.node_files.values().map(|units| u64::from(*units)).sum();
        self.counters.node_units.store(units, Ordering::Relaxed);
        state.nodes.forget_grown();
        (state.roots, state.cut) = (roots, capture.cut);
        self.counters.checkpointed.store(capture.cut.sequence.0, Ordering::Relaxed);
        self.unlink_retired(state);
        // The older slot reaches them still.
        state.retired.extend(old_tables.unwrap_or_default());
        Ok(())
    }

    /// Update the file table; where its files hold little but old nodes, write it anew as a whole.
    /// Result: files that are left then.
    fn write_file_table(
        &self,
        state: &mut Checkpoints,
        roots: &mut Roots,
        changes: Vec<Change>,
    ) -> Result<Option<BTreeSet<SegmentId>>> {
        let (whole_bytes, whole_at) = state.table_whole;
        let grown_bytes = state.tables.written_bytes - whole_at;
        let anew = whole_at == 0 || grown_bytes > 2 * whole_bytes + TABLE_SLACK_BYTES;
        let Checkpoints { tables, table_nodes, .. } = state;
        let read = |reference: &NodeReference| table_nodes.read(reference);
        let mut all = changes;
        let mut before = roots.files;
        if anew {
            if let Some(root) = before.take() {
                let mut kept: Vec<Change> = Vec::new();
                tree::scan(&read, &root, &mut |_| {}, &mut |key, value| {
                    kept.push((key, Some(value.to_vec())));
                    Ok(())
                })?;
                let fresh: HashSet<u64> = all.iter().map(|(key, _)| *key).collect();
                all.extend(kept.into_iter().filter(|(key, _)| !fresh.contains(key)));
                all.sort_unstable_by_key(|(key, _)| *key);
            }
            tables.leave_file();
        }
        let begun_bytes = tables.written_bytes;
        let mut writer = NodeWriter::new(&self.log, tables);
        let mut write = |bytes: &[u8], entries| writer.write_tree_node(&self.nodes, bytes, entries);
        roots.files = tree::update(&read, &mut write, before.as_ref(), &all)?;
        writer.flush(&self.nodes)?;
        let used: BTreeSet<SegmentId> = tables.take_grown().into_keys().collect();
        if anew {
            let whole_bytes = state.tables.written_bytes - begun_bytes;
            state.table_whole = (whole_bytes, state.tables.written_bytes);
            return Ok(Some(std::mem::replace(&mut state.table_files, used)));
        }
        state.table_files.extend(used);
        Ok(None)
    }

    /// Remove table files that neither slot's checkpoint reaches any more.
    fn unlink_retired(&self, state: &mut Checkpoints) {
        if self.reclaim.is_pinned() {
            return;
        }
        for id in std::mem::take(&mut state.retired) {
            // What cannot be removed now is removed at the next open.
            let _ = self.log.store().remove(&NodeFileKind::Tables.path(id));
        }
    }
}
