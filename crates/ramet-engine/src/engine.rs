//! A pool while it is open: the log, the objects, their heads, the tree of lineage. Open, look up,
//! background steps, close.
//!
//! Calls the log; called by front ends and the binding. Invariant: the table shows durable objects
//! only.

use crate::changes::Replayer;
use crate::checkpoint::load::{self, Reached, remove_orphans};
use crate::checkpoint::{Aim, Checkpoints};
use crate::command::Prepared;
use crate::figures::Figures;
use crate::hashes::Hashes;
use crate::head::{Heads, InGate};
use crate::locks::Now;
use crate::loss::{Acceptance, LossReport};
use crate::map::LEAF_BLOCKS;
use crate::nodes::{NodeFiles, Nodes};
use crate::object::{Changed, Object, ObjectInfo, Table};
use crate::reclaim::Reclaim;
use crate::record::Record;
use crate::reserve::Reserve;
use crate::space::Space;
use crate::volume::VolumeDevice;
use crate::{BlockDevice, EngineError, Kind};
use parking_lot::{Mutex, RwLock};
use ramet_log::format::descriptor::Descriptor;
use ramet_log::format::node::NodeFileKind;
use ramet_log::format::segment::LogEnd;
use ramet_log::format::superblock::Commit;
use ramet_log::{
    Accept, BLOCK_BYTES_U64, Bell, Known, Log, LogError, Loss, ObjectId, Position, Replay,
    SEGMENT_BYTES_DEFAULT, SegmentId,
};
use ramet_store::{FileStore, LimitStore, Store};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Nodes and runs that one background step looks at: about a millisecond.
const STEP_BUDGET: u64 = 4096;

/// An open pool.
pub struct Engine {
    pub(crate) log: Log,
    pub(crate) log_uuid: Uuid,
    pub(crate) table: RwLock<Table>,
    pub(crate) heads: Arc<Heads>,
    pub(crate) space: Space,
    pub(crate) commands: Mutex<Commands>,
    /// Held for reading while something is attached, for writing while a command ends or replaces
    /// objects.
    pub(crate) attaching: RwLock<()>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) changed: Changed,
    pub(crate) checkpoints: Mutex<Checkpoints>,
    pub(crate) reclaim: Reclaim,
    pub(crate) reserve: Reserve,
    pub(crate) figures: Figures,
    pub(crate) hashes: Hashes,
    pub(crate) limited: Arc<LimitStore>,
    pub(crate) settings: Settings,
    pub(crate) counters: EngineCounters,
}

/// How a pool is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Memory for map nodes and pages of slot tables.
    pub node_budget_bytes: u64,
    /// A checkpoint is due when so many bytes of log were written since the last one.
    pub checkpoint_log_bytes: u64,
    /// A writer writes one itself after so many batches: for tests.
    pub checkpoint_batches: u64,
    /// Or when so much time has passed and something changed.
    pub checkpoint_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            node_budget_bytes: 256 << 20,
            checkpoint_log_bytes: 512 << 20,
            checkpoint_batches: u64::MAX,
            checkpoint_every: Duration::from_secs(30),
        }
    }
}

/// How the engine has worked since the pool was opened.
#[derive(Default)]
pub(crate) struct EngineCounters {
    pub(crate) checkpoints: AtomicU64,
    /// The last sequence that the last checkpoint shows.
    pub(crate) checkpointed: AtomicU64,
    /// Units of node files in use.
    pub(crate) node_units: AtomicU64,
    /// Lock secrets that were given and are not the pool's.
    pub(crate) wrong_secrets: AtomicU64,
}

impl EngineCounters {
    fn opened(cut: LogEnd, node_files: &BTreeMap<SegmentId, u32>) -> Self {
        let node_units = node_files.values().map(|units| u64::from(*units)).sum();
        let counters = EngineCounters::default();
        counters.checkpointed.store(cut.sequence.0, Ordering::Relaxed);
        counters.node_units.store(node_units, Ordering::Relaxed);
        counters
    }
}

/// What commands need one after the other.
#[derive(Default)]
pub(crate) struct Commands {
    epoch: u64,
    ordinal: u64,
    last: Position,
}

/// What never changes about the pool, if this engine can read its maps.
fn read_descriptor(store: &dyn Store) -> Result<Descriptor, EngineError> {
    let descriptor = ramet_log::read_descriptor(store)?;
    if u64::from(descriptor.leaf_blocks) != LEAF_BLOCKS {
        let text = format!("leaves of {} blocks are not known here", descriptor.leaf_blocks);
        return Err(LogError::Unsupported { reason: text }.into());
    }
    Ok(descriptor)
}

/// Bits of an object's id below its epoch.
const ORDINAL_BITS: u32 = 28;

impl Commands {
    pub(crate) fn next_id(&mut self, epoch: u64) -> ObjectId {
        if epoch != self.epoch {
            (self.epoch, self.ordinal) = (epoch, 0);
        }
        assert!(self.ordinal < 1 << ORDINAL_BITS, "object ids of an epoch are used up");
        let id = ObjectId((epoch << ORDINAL_BITS) | self.ordinal);
        self.ordinal += 1;
        id
    }

    pub(crate) fn note(&mut self, position: Position) {
        assert!(position > self.last, "commands pass the gate in order");
        self.last = position;
    }
}

impl Engine {
    /// Make an empty pool in the directory `path`; 0: segments of the default size.
    ///
    /// # Errors
    /// `Conflict` where the directory is not empty; `Invalid` for a segment size; `Full`;
    /// `Unavailable` where it cannot be written.
    ///
    /// # Durability
    /// Durable on return.
    pub fn create(path: &Path, segment_bytes: u64) -> Result<(), EngineError> {
        Self::create_in(&FileStore::new(path), segment_bytes)
    }

    /// `create` in any store.
    ///
    /// # Errors
    /// As `create`.
    pub fn create_in(store: &dyn Store, segment_bytes: u64) -> Result<(), EngineError> {
        let segment_bytes = if segment_bytes == 0 { SEGMENT_BYTES_DEFAULT } else { segment_bytes };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let leaf_blocks = u32::try_from(LEAF_BLOCKS).expect("a small constant");
        Ok(Log::create(store, segment_bytes, leaf_blocks, created_ns)?)
    }

    /// Open the pool in the directory `path`.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Busy` where somebody else has it; `Invalid` for an unknown
    /// format; `Corrupt` where something durable is damaged.
    pub fn open(
        path: &Path,
        read_only: bool,
        settings: Settings,
    ) -> Result<Arc<Engine>, EngineError> {
        Self::open_in(Arc::new(FileStore::new(path)), read_only, settings)
    }

    /// `open` in any store.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_in(
        store: Arc<dyn Store>,
        read_only: bool,
        settings: Settings,
    ) -> Result<Arc<Engine>, EngineError> {
        Self::open_how(store, read_only, settings, None).map(|(engine, _)| engine)
    }

    /// `open_in`; where loss is accepted, also what was lost.
    pub(crate) fn open_how(
        store: Arc<dyn Store>,
        read_only: bool,
        settings: Settings,
        acceptance: Option<&Acceptance>,
    ) -> Result<(Arc<Engine>, Option<LossReport>), EngineError> {
        let limited = Arc::new(LimitStore::new(store));
        let store: Arc<dyn Store> = limited.clone();
        let seed = read_descriptor(&*store)?.seed;
        let files = |kind| NodeFiles::new(store.clone(), seed, kind);
        // A quarter for pages of slot tables: a page speaks for more blocks than a leaf.
        let pages_bytes = settings.node_budget_bytes / 4;
        let nodes_bytes = settings.node_budget_bytes - pages_bytes;
        let nodes = Arc::new(Nodes::new(files(NodeFileKind::Nodes), nodes_bytes));
        let table_nodes = files(NodeFileKind::Tables);
        let opening = RefCell::new(Opening::new(nodes.clone()));
        let mut start = |newest: &Commit, older: Option<&Commit>| {
            // Going back to before damage is not to fail for want of room.
            crate::limit::begin(&limited, newest, acceptance.is_none())?;
            acceptance.inspect(|how| how.note_terms(newest));
            opening.borrow_mut().start_with(&table_nodes, newest, older, acceptance)
        };
        let mut apply = |said: Replay<'_>| opening.borrow_mut().replay(said);
        let log = if let Some(acceptance) = acceptance {
            let mut describe = |loss: &Loss| {
                let Opening { table, nodes, .. } = &*opening.borrow();
                acceptance.describe(loss, table, nodes)
            };
            let store = store.clone();
            let accept = Accept { describe: &mut describe, limit: &acceptance.limit };
            Log::open_accepting_loss(store, pages_bytes, &mut start, &mut apply, accept)
        } else {
            Log::open_from(store.clone(), read_only, pages_bytes, &mut start, &mut apply)
                .map(|log| (log, None))
        };
        let mut opened = opening.into_inner();
        // It was a node that could not be read: the log is well.
        let refused = acceptance.and_then(Acceptance::refused);
        let (log, loss) = log.map_err(|it| refused.or(opened.unread.take()).unwrap_or(it))?;
        log.lock_clock_was(opened.lock_clock_ns);
        let loss = loss.zip(acceptance).map(|(loss, how)| how.report(&loss, &opened.table));
        if let (Some(older), None, false) = (&opened.older, &loss, read_only) {
            remove_orphans(&log, &[&opened.reached, older]);
        }
        crate::limit::begin(&limited, &log.newest_commit(), true)?;
        let Reached { roots, table_files, node_files } = opened.reached;
        let counters = EngineCounters::opened(opened.cut, &node_files);
        let checkpoints = Checkpoints::new(table_nodes, roots, opened.cut, table_files, node_files);
        let engine = Engine {
            reserve: Reserve::new(log.descriptor().segment_bytes),
            log_uuid: Uuid::from_bytes(log.uuid()),
            log,
            table: RwLock::new(opened.table),
            heads: opened.heads,
            space: opened.space,
            commands: Mutex::new(Commands { last: opened.last, ..Commands::default() }),
            attaching: RwLock::new(()),
            nodes,
            changed: opened.changed,
            checkpoints: Mutex::new(checkpoints),
            reclaim: Reclaim::default(),
            figures: Figures::default(),
            hashes: Hashes::new(settings.node_budget_bytes),
            limited,
            settings,
            counters,
        };
        engine.finish_losses()?;
        Ok((Arc::new(engine), loss))
    }

    /// The UUID of the pool in the directory `path`, which need not be well, nor free.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Invalid` for an unknown format; `Corrupt`.
    pub fn uuid_at(path: &Path) -> Result<Uuid, EngineError> {
        Ok(Uuid::from_bytes(read_descriptor(&FileStore::new(path))?.pool))
    }

    /// The pool's UUID.
    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.log.descriptor().pool)
    }

    /// Whether it was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.log.read_only()
    }

    /// The failure after which writes are refused; empty: none.
    pub fn poisoned(&self) -> &str {
        self.log.poisoned().unwrap_or_default()
    }

    /// Refuse what comes after `close`.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn check_open(&self) -> Result<(), EngineError> {
        Ok(self.log.check_open()?)
    }

    /// All objects, sorted by name.
    pub fn list(&self) -> Vec<ObjectInfo> {
        let now = &self.lock_now();
        let table = self.table.read();
        table.by_name().into_iter().map(|object| self.info_in(&table, object, now)).collect()
    }

    /// One object, by name or UUID.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find(&self, name: &str) -> Result<ObjectInfo, EngineError> {
        let object = self.find_object(name)?;
        Ok(self.info(&object))
    }

    /// Several objects, each by name or UUID, in the order asked for.
    ///
    /// # Errors
    /// `NotFound` for the first that is missing.
    pub fn find_many(&self, names: &[String]) -> Result<Vec<ObjectInfo>, EngineError> {
        names.iter().map(|name| self.find(name)).collect()
    }

    /// Those of `names` that are in use.
    pub fn taken(&self, names: &[String]) -> Vec<String> {
        let table = self.table.read();
        names.iter().filter(|name| table.is_taken(name)).cloned().collect()
    }

    /// Open an object for use in this process; it does not count as attached.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn device(self: &Arc<Self>, name: &str) -> Result<Arc<dyn BlockDevice>, EngineError> {
        let object = self.find_object(name)?;
        Ok(Arc::new(VolumeDevice::new(self.clone(), object, false)))
    }

    /// Make everything durable.
    ///
    /// # Errors
    /// `Unavailable` when poisoned.
    pub fn flush(&self) -> Result<(), EngineError> {
        Ok(self.log.flush()?)
    }

    /// Background work; called a few times a second by whoever holds the pool. Result: whether more
    /// is waiting.
    ///
    /// # Errors
    /// `Unavailable` where a write or sync fails.
    pub fn step(&self, now: Instant) -> Result<bool, EngineError> {
        let walking = self.step_space(STEP_BUDGET);
        // Closing holds it to its end: no commit comes after the pool was given back.
        if let Some(_open) = self.checkpoints.try_lock()
            && self.log.check_writable().is_ok()
        {
            self.save_lock_clock(false)?;
        }
        Ok(self.log.step(now)? || walking)
    }

    /// More background work, in steps that may take long: a checkpoint, where one is due. Called
    /// from a thread of its own, so that `step` goes on meanwhile. Result: whether one was written.
    ///
    /// # Errors
    /// `Unavailable` where a write or sync fails.
    pub fn step_checkpoint(&self, now: Instant) -> Result<bool, EngineError> {
        let idle = self.log.read_only() || self.log.poisoned().is_some();
        if idle || self.log.check_open().is_err() {
            return Ok(false);
        }
        self.step_hashes(now);
        let emptied = self.step_trash();
        let written = self.checkpoint_where_due(now)?;
        emptied.map(|()| written)
    }

    /// Rung when `step_write_out` has something to do: for a thread of its own, which then keeps
    /// writers from waiting for files.
    pub fn bell(&self) -> Arc<Bell> {
        self.log.bell()
    }

    /// Hand to the files what writers left in memory, and allocate what they will need.
    ///
    /// # Errors
    /// `Unavailable` where a write or sync fails.
    pub fn step_write_out(&self) -> Result<(), EngineError> {
        self.log.write_out()?;
        // What comes back on a full disk is for the reserve first.
        if self.reserve.is_whole() { Ok(self.log.make_room_ahead()?) } else { Ok(()) }
    }

    /// Flush, seal, give the lock back. Idempotent; later calls give `Unavailable`.
    ///
    /// # Errors
    /// `Unavailable` where the last writes fail; the lock is given back all the same.
    pub fn close(&self) -> Result<(), EngineError> {
        // Held to the end: no checkpoint is under way, and nothing is given back, when somebody
        // else may open the pool.
        let checkpoints = &mut *self.checkpoints.lock();
        let _stepping = self.reclaim.stepping.lock();
        let writes = !self.log.read_only() && self.log.poisoned().is_none();
        let closing = if writes && self.log.check_open().is_ok() {
            self.close_writing(checkpoints)
        } else {
            Ok(())
        };
        self.close_hashes();
        self.log.close()?;
        closing
    }

    fn close_writing(&self, checkpoints: &mut Checkpoints) -> Result<(), EngineError> {
        self.log.seal()?;
        match self.with_reserve(|| self.write_checkpoint(checkpoints, Aim::Usual)) {
            // The log holds everything: the next opening replays more of it.
            Err(error) if error.kind == Kind::Full => self.log.note_durable()?,
            other => drop(other?),
        }
        self.save_lock_clock(true)
    }

    pub(crate) fn find_object(&self, name: &str) -> Result<Arc<Object>, EngineError> {
        let not_found = || {
            EngineError::new(
                Kind::NotFound,
                "object_not_found",
                format!(
                    "nothing is named '{name}'; \
                     hint: `ramet volume list` and `ramet snapshot list` show what there is"
                ),
            )
        };
        self.table.read().find(name).cloned().ok_or_else(not_found)
    }

    pub(crate) fn info(&self, object: &Object) -> ObjectInfo {
        let now = &self.lock_now();
        self.info_in(&self.table.read(), object, now)
    }

    pub(crate) fn info_in(&self, table: &Table, object: &Object, now: &Now) -> ObjectInfo {
        let fields = &object.fixed;
        let mut above = self.space.living_ancestor(object.place());
        let parent = loop {
            let parent = above.and_then(|place| table.get(ObjectId(place)));
            match parent.filter(|parent| !parent.is_live()) {
                // What is in the trash lives, and nobody sees it.
                Some(hidden) => above = self.space.living_ancestor(hidden.place()),
                None => break parent,
            }
        };
        ObjectInfo {
            id: fields.id,
            uuid: fields.uuid,
            name: object.name(),
            kind: object.kind(),
            size_bytes: object.size_bytes(),
            mapped_bytes: object.head.map().mapped() * BLOCK_BYTES_U64,
            created_ns: fields.created_ns,
            parent: parent.map(|parent| parent.fixed.uuid),
            source: (!fields.origin_object.is_nil()).then_some(fields.origin_object),
            batch: fields.batch,
            attached_count: object.attached.load(Ordering::Acquire),
            lock: object.lock().and_then(|lock| lock.info(now)),
            attributes: object.attributes(),
        }
    }
}

/// The pool's content while it is opened: read from the checkpoint, then replayed.
struct Opening {
    table: Table,
    heads: Arc<Heads>,
    space: Space,
    changed: Changed,
    nodes: Arc<Nodes>,
    last: Position,
    /// The highest lock clock that a record tells of.
    lock_clock_ns: u64,
    cut: LogEnd,
    reached: Reached,
    older: Option<Reached>,
    /// Why a node could not be read that replay needs.
    unread: Option<EngineError>,
}

impl Opening {
    fn new(nodes: Arc<Nodes>) -> Self {
        Opening {
            table: Table::default(),
            heads: Arc::new(Heads::default()),
            space: Space::new(nodes.clone()),
            changed: Changed::default(),
            nodes,
            last: Position::ZERO,
            lock_clock_ns: 0,
            cut: LogEnd::default(),
            reached: Reached::default(),
            older: None,
            unread: None,
        }
    }

    /// As `start`; where loss is accepted the older checkpoint will do as well.
    fn start_with(
        &mut self,
        table_nodes: &NodeFiles,
        newest: &Commit,
        older: Option<&Commit>,
        acceptance: Option<&Acceptance>,
    ) -> Result<Known, EngineError> {
        let started = self.start(table_nodes, newest, older);
        match (started, acceptance, older.filter(|older| older.log == newest.log)) {
            (Err(error), Some(how), Some(older)) if error.kind == Kind::Corrupt => {
                *self = Opening::new(self.nodes.clone());
                let Ok(known) = self.start(table_nodes, older, None) else { return Err(error) };
                how.note_older_used(&error);
                Ok(Known { from_older: true, ..known })
            }
            (started, ..) => started,
        }
    }

    fn start(
        &mut self,
        table_nodes: &NodeFiles,
        newest: &Commit,
        older: Option<&Commit>,
    ) -> Result<Known, EngineError> {
        let (reached, known, dead) = load::files(table_nodes, newest)?;
        if reached.objects_fill_nodes() {
            self.nodes.files.read_ahead(reached.node_files.keys().copied());
        }
        load::objects(&self.nodes, newest, dead, &mut self.table, &self.heads, &self.space)?;
        // What the older slot reaches is only looked at to know what nobody does.
        self.older = older.and_then(|older| Some(load::files(table_nodes, older).ok()?.0));
        (self.reached, self.cut, self.last) = (reached, newest.cut, newest.cut.position);
        Ok(known)
    }

    fn replay(&mut self, said: Replay<'_>) -> Result<(), String> {
        let Opening { table, heads, space, changed, nodes, unread, .. } = self;
        let mut note = |error: EngineError| {
            let text = format!("replaying the log: {}", error.text);
            unread.insert(EngineError { text, ..error }).text.clone()
        };
        let mut replayer = Replayer { table, space, nodes, changed, note: &mut note };
        match said {
            Replay::Write { object, first, count, locator } => {
                replayer.write(object, first, count, locator)
            }
            Replay::Clear { object, first, count, position } => {
                replayer.clear(object, first, count, position)
            }
            Replay::Record { payload, position } => {
                // Its bytes verified: it is not damage, which could be accepted as a loss.
                let record = Record::decode(payload)
                    .map_err(|reason| note(LogError::Unsupported { reason }.into()))?;
                let clocks = record.items.iter().map(|item| item.object.lock_clock_ns);
                self.lock_clock_ns = clocks.fold(self.lock_clock_ns, u64::max);
                let mut prepared = Prepared::new(&record, table, heads)?;
                nodes.with(|| prepared.ready()).map_err(note)?;
                space.reserve(prepared.places());
                prepared.enact(InGate::replaying(), space, nodes, position);
                prepared.settle(space, position);
                prepared.publish(table, changed);
                self.last = position;
                Ok(())
            }
        }
    }
}
