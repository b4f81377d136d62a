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
use crate::space::SpaceImage;
use crate::{EngineError, Kind};
use ramet_log::format::node::NodeFileKind;
use ramet_log::format::segment::LogEnd;
use ramet_log::format::superblock::NodeReference;
use ramet_log::{ObjectId, SegmentId};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Kinds of roots in a commit record.
pub(crate) const ROOT_OBJECTS: u16 = 1;
pub(crate) const ROOT_LINEAGE: u16 = 2;
pub(crate) const ROOT_FILES: u16 = 3;

/// Bytes that table files may take beyond three times what is live in them.
const TABLE_SLACK_BYTES: u64 = 1 << 20;

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
        }
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
        let state = &mut *self.checkpoints.lock();
        self.write_checkpoint(state)
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
        match self.write_checkpoint(state) {
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
        let due = log_bytes >= settings.checkpoint_log_bytes
            || self.nodes.dirty_bytes() >= self.nodes.budget_bytes() / 2
            || now.saturating_duration_since(state.at) >= settings.checkpoint_every;
        if !due {
            return Ok(false);
        }
        match self.write_checkpoint(&mut state) {
            // Tried again when more has changed, or later.
            Err(error) if error.kind == Kind::Full => {
                state.at = now;
                Ok(false)
            }
            other => other,
        }
    }

    pub(crate) fn write_checkpoint(&self, state: &mut Checkpoints) -> Result<bool> {
        self.log.check_writable()?;
        state.at = Instant::now();
        state.log_bytes = self.log.counters.written_bytes.load(Ordering::Relaxed);
        if self.log.appended() == state.cut.sequence
            && self.changed.is_empty()
            && !self.space.has_changed()
        {
            return Ok(false);
        }
        let capture = self.capture();
        match self.write_capture(state, &capture) {
            Ok(()) => {
                self.nodes.cleaned(capture.dirty_bytes);
                drop(capture);
                self.nodes.evict();
                self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) => {
                self.give_back(capture);
                Err(error)
            }
        }
    }

    /// The cut: no command is under way, and the gate is closed while the roots are taken.
    fn capture(&self) -> Capture {
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
        let (at_cut, space) = self
            .space
            .image(close_gate, |at_cut, with_dead| self.log.segment_entries(with_dead, at_cut.0));
        let ((cut, _), objects, maps, gone, dirty_bytes) = at_cut;
        let objects = objects
            .into_iter()
            .zip(maps)
            .filter(|(object, _)| !object.is_deleted())
            .map(|(object, map)| {
                let (fields, place) = (object.fields_now(), object.place());
                ObjectAtCut { object, map, fields, place }
            })
            .collect();
        drop(commands);
        Capture { cut, objects, gone, space, dirty_bytes }
    }

    fn give_back(&self, capture: Capture) {
        capture.objects.iter().for_each(|at_cut| self.changed.note(&at_cut.object));
        capture.gone.iter().for_each(|id| self.changed.note_gone(*id));
        let numbers = capture.space.places.iter();
        let numbers = numbers.map(|place| place.as_ref().map_or_else(|gone| *gone, |it| it.number));
        self.space.unimage(numbers, capture.space.dead.keys().copied());
    }

    fn write_capture(&self, state: &mut Checkpoints, capture: &Capture) -> Result<()> {
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
        let files = image::files(&capture.space, state.nodes.grown());
        let old_tables = self.write_file_table(state, &mut roots, files)?;
        state.nodes.sync(&self.log)?;
        state.tables.sync(&self.log)?;
        let listed = image::roots(&roots);
        self.log.commit_checkpoint(capture.cut, &listed, state.tables.newest())?;
        state.nodes.forget_grown();
        (state.roots, state.cut) = (roots, capture.cut);
        self.counters.checkpointed.store(capture.cut.sequence.0, Ordering::Relaxed);
        self.unlink_retired(state);
        // The older slot reaches them still.
        state.retired = old_tables.unwrap_or_default();
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
        for id in std::mem::take(&mut state.retired) {
            // What cannot be removed now is removed at the next open.
            let _ = self.log.store().remove(&NodeFileKind::Tables.path(id));
        }
    }
}
