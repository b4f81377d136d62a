//! The log as a whole: what is shared between the gate, the write-out, readers and recovery;
//! create, close, background steps.
//!
//! Invariants: `durable <= appended`; once poisoned or closed nothing is appended or written.

use crate::clock::LockClock;
use crate::commit::{CommitState, WriteOut};
use crate::error::{LogError, Result};
use crate::format::descriptor::Descriptor;
use crate::format::segment::LogEnd;
use crate::format::superblock::{Commit, LockTerms};
use crate::gate::Gate;
use crate::helper::Bell;
use crate::lending::{Lent, Pin, VIEWS_MAX};
use crate::pages::PageCache;
use crate::room::RoomState;
use crate::segment::{Segment, SegmentEntry};
use crate::spare::Spares;
use crate::staging::ChunkPool;
use crate::tail::Job;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, Locator, Position, SegmentId, Sequence};
use parking_lot::{Mutex, RwLock};
use ramet_store::{Lock, Store, locks};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Segment files kept open for reading.
const OPEN_FILES_MAX: usize = 512;
/// An idle log says in itself what is durable after this long, and commits by itself as often.
const IDLE: Duration = Duration::from_secs(1);

/// How the log has worked since it was opened.
#[derive(Default)]
pub struct Counters {
    /// Syncs of segment files.
    pub syncs: AtomicU64,
    /// Bytes handed to segment files.
    pub written_bytes: AtomicU64,
    /// Segments begun, and those of them in the file of a dead one.
    pub begun: AtomicU64,
    /// See `begun`.
    pub reused: AtomicU64,
    /// Segments sealed.
    pub sealed: AtomicU64,
    /// Batches replayed at opening.
    pub replayed: AtomicU64,
    /// Times that long work rested for those who write.
    pub rests: AtomicU64,
    /// Longest time a command closed the gate, in nanoseconds.
    pub gate_closed_ns_max: AtomicU64,
    /// Time the last command closed the gate, in nanoseconds.
    pub gate_closed_ns_last: AtomicU64,
}

/// The log of one pool directory.
pub struct Log {
    store: Arc<dyn Store>,
    /// Given back when the log is closed.
    lock: Mutex<Option<Box<dyn Lock>>>,
    descriptor: Descriptor,
    log_uuid: [u8; 16],
    incarnation: [u8; 16],
    read_only: bool,
    pub(crate) superblock: Mutex<Commit>,
    /// What the newest commit says of locks: whoever looks waits for no sync.
    pub(crate) lock_terms: RwLock<LockTerms>,
    pub(crate) lock_clock: LockClock,
    pub(crate) gate: Gate,
    pub(crate) segments: RwLock<HashMap<SegmentId, Arc<Segment>>>,
    pub(crate) chunks: ChunkPool,
    pub(crate) jobs: locks::Mutex<VecDeque<Job>>,
    pub(crate) staged_bytes: AtomicU64,
    pub(crate) write_out: Mutex<WriteOut>,
    pub(crate) commit: locks::Mutex<CommitState>,
    pub(crate) commit_done: locks::Condvar,
    pub(crate) room: Mutex<RoomState>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) pages: PageCache,
    pub(crate) spares: Spares,
    /// Segments with an open file, oldest first.
    open_files: Mutex<VecDeque<Weak<Segment>>>,
    /// Segments that are mapped.
    pub(crate) views: Mutex<VecDeque<Weak<Segment>>>,
    /// Of segments that were forgotten and have a file.
    pub(crate) lent: Mutex<HashMap<SegmentId, Pin>>,
    /// Runs of blocks given back that no journal has freed yet, see `note_freed`.
    pub(crate) freed_runs: AtomicU64,
    /// How the log has worked.
    pub counters: Counters,
    appended: AtomicU64,
    durable: AtomicU64,
    /// The highest durable sequence that a batch header names.
    named: AtomicU64,
    closed: AtomicBool,
    poisoned: OnceLock<String>,
    idle_since: Mutex<(Sequence, Instant)>,
}

/// What recovery found; from it the log is made.
pub(crate) struct Recovered {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lock: Box<dyn Lock>,
    pub(crate) descriptor: Descriptor,
    pub(crate) superblock: Commit,
    pub(crate) segments: HashMap<SegmentId, Arc<Segment>>,
    pub(crate) room: RoomState,
    pub(crate) position: Position,
    pub(crate) replayed: u64,
    pub(crate) read_only: bool,
    pub(crate) pages_bytes: u64,
}

impl Log {
    pub(crate) fn new(found: Recovered) -> Self {
        let last = found.room.end.sequence;
        let lock_clock = LockClock::new(found.superblock.lock_clock, found.store.moment());
        Log {
            lock_terms: RwLock::new(found.superblock.lock_terms),
            lock_clock,
            store: found.store,
            lock: Mutex::new(Some(found.lock)),
            log_uuid: found.superblock.log,
            incarnation: random_uuid(),
            descriptor: found.descriptor,
            read_only: found.read_only,
            superblock: Mutex::new(found.superblock),
            gate: Gate::new(crate::tail::Tail::new(found.room.end, found.position)),
            segments: RwLock::new(found.segments),
            chunks: ChunkPool::default(),
            jobs: locks::Mutex::new(VecDeque::new()),
            staged_bytes: AtomicU64::new(0),
            write_out: Mutex::new(WriteOut::default()),
            commit: locks::Mutex::new(CommitState::default()),
            commit_done: locks::Condvar::new(),
            room: Mutex::new(found.room),
            bell: Arc::default(),
            pages: PageCache::new(found.pages_bytes),
            spares: Spares::default(),
            open_files: Mutex::new(VecDeque::new()),
            views: Mutex::default(),
            lent: Mutex::default(),
            freed_runs: AtomicU64::new(0),
            counters: Counters { replayed: AtomicU64::new(found.replayed), ..Counters::default() },
            appended: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            named: AtomicU64::new(last.0),
            closed: AtomicBool::new(false),
            poisoned: OnceLock::new(),
            idle_since: Mutex::new((last, Instant::now())),
        }
    }

    /// What never changes about the pool.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The log's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        self.log_uuid
    }

    /// Refuse what comes after `close`.
    ///
    /// # Errors
    /// `Closed`.
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(LogError::Closed) } else { Ok(()) }
    }

    /// The store the log lies in.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Whether the log was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Why nothing is written any more, if so.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// The highest batch begun.
    pub fn appended(&self) -> Sequence {
        Sequence(self.appended.load(Ordering::Acquire))
    }

    /// The highest batch that survives a power loss.
    pub fn durable(&self) -> Sequence {
        Sequence(self.durable.load(Ordering::Acquire))
    }

    /// The last slot assigned.
    pub fn position(&self) -> Position {
        self.gate.lock().position()
    }

    /// The nonce of a segment's file; `None` where there is no such segment.
    pub fn nonce(&self, id: SegmentId) -> Option<u64> {
        self.segments.read().get(&id).map(|segment| segment.nonce)
    }

    /// The segment that is appended to, and how many of its slots hold blocks.
    pub fn open_segment(&self) -> Option<(SegmentId, u32)> {
        self.gate.lock().open_segment()
    }

    /// How many slots of each segment hold blocks, also while it is appended to, or waits in memory
    /// for its footer.
    pub fn blocks_counts(&self) -> Vec<(SegmentId, u32)> {
        let open = self.open_segment();
        let count = |segment: &Segment| match open {
            // What ended meanwhile counts itself.
            Some((id, blocks)) if id == segment.id => blocks.max(segment.blocks()),
            Some(_) | None => segment.blocks(),
        };
        self.segments.read().values().map(|segment| (segment.id, count(segment))).collect()
    }

    /// Segments of the log, and bytes of log that wait in memory.
    pub fn sizes(&self) -> (usize, u64) {
        (self.segments.read().len(), self.staged_bytes.load(Ordering::Relaxed))
    }

    /// Read and verify consecutive blocks of one segment.
    ///
    /// `buffer` is whole blocks; `block_index` the first one's index in the object that holds it.
    ///
    /// # Errors
    /// `Checksum` and `Lost` name segment and slot; `Store` where the medium fails. The buffer's
    /// content is then undefined.
    pub fn read(&self, locator: Locator, block_index: u64, buffer: &mut [u8]) -> Result<()> {
        assert!(buffer.len().is_multiple_of(BLOCK_BYTES), "reads are whole blocks");
        let segment = self.segments.read().get(&locator.segment()).cloned();
        let lost = || LogError::Lost { locator, reason: "its segment is missing".into() };
        let segment = segment.ok_or_else(lost)?;
        if !segment.has_file() {
            self.note_open_file(&segment);
        }
        let (store, seed) = (self.store(), self.descriptor.seed);
        segment.read(store, &self.pages, seed, locator.slot(), block_index, buffer)
    }

    /// As `read`; what can be lent is not copied, but added to `lent`, with its place in `buffer`
    /// counted from `place`.
    ///
    /// # Errors
    /// As `read`. What was lent stays in `lent`.
    pub fn read_lent(
        &self,
        locator: Locator,
        block_index: u64,
        buffer: &mut [u8],
        (place, lent): (usize, &mut Vec<Lent>),
    ) -> Result<()> {
        assert!(buffer.len().is_multiple_of(BLOCK_BYTES), "reads are whole blocks");
        let segment = self.segments.read().get(&locator.segment()).cloned();
        if let Some(segment) = segment {
            let from = (self.store(), &self.pages, self.descriptor.seed);
            let (what, target) = ((locator.slot(), block_index), (place, buffer.len()));
            if let Some(found) = segment.lend(from, what, target, || self.note_view(&segment)) {
                lent.push(found);
                return Ok(());
            }
        }
        self.read(locator, block_index, buffer)
    }

    /// A segment is about to be mapped for the first time, or again. Result: whether it may be.
    fn note_view(&self, segment: &Arc<Segment>) -> bool {
        let mut views = self.views.lock();
        let free = views.len() < VIEWS_MAX;
        if free {
            views.push_back(Arc::downgrade(segment));
        }
        free
    }

    /// Where much is mapped, unmap some that nobody read of lately.
    fn end_unused_views(&self) {
        // Taken out first: who maps a segment holds its lock, and waits for this one.
        let mut some = {
            let mut views = self.views.lock();
            let many = views.len() >= VIEWS_MAX / 4 * 3;
            let count = if many { VIEWS_MAX / 16 } else { 0 };
            views.drain(..count).collect::<Vec<_>>()
        };
        let is_mapped = |it: &Weak<Segment>| {
            it.upgrade().is_some_and(|segment| !segment.lending.end_if_unused())
        };
        some.retain(is_mapped);
        self.views.lock().extend(some);
    }

    /// Have consecutive blocks of a segment fetched by the medium; returns before they are.
    pub fn will_read(&self, locator: Locator, count: u64) {
        let segment = self.segments.read().get(&locator.segment()).cloned();
        // Who reads the file first opens it.
        if let Some(file) = segment.and_then(|segment| segment.file_of_written(locator.slot())) {
            let offset_bytes = u64::from(locator.slot()) * BLOCK_BYTES_U64;
            file.read_ahead(offset_bytes, count * BLOCK_BYTES_U64);
        }
    }

    /// A segment's file is about to be opened: close another one's where too many are open.
    pub(crate) fn note_open_file(&self, segment: &Arc<Segment>) {
        let mut open = self.open_files.lock();
        open.push_back(Arc::downgrade(segment));
        if open.len() > OPEN_FILES_MAX
            && let Some(segment) = open.pop_front().and_then(|oldest| oldest.upgrade())
        {
            segment.close_file();
        }
    }

    /// What a checkpoint keeps of the segments that changed since this was last asked, and of those
    /// in `also`, as of `cut`. The one in `open` counts as appended to, whatever it is by now; one
    /// that came later belongs to the next checkpoint.
    pub fn segment_entries(
        &self,
        also: &HashSet<SegmentId>,
        (cut, open): (LogEnd, Option<SegmentId>),
    ) -> Vec<SegmentEntry> {
        let segments = self.segments.read();
        let last = open.unwrap_or_else(|| cut.position.locator().segment());
        let entry = |segment: &Arc<Segment>| {
            let mut entry = segment.entry();
            if Some(segment.id) == open {
                // What is sealed by now is told by the next checkpoint.
                segment.changed.store(true, Ordering::Release);
                entry = SegmentEntry::begun(entry.id, entry.slots_count, entry.nonce);
            }
            entry
        };
        let wanted = |segment: &&Arc<Segment>| {
            // Replay has to read what came after the cut: a segment that the table calls sealed is
            // not looked at, and one that the table names must be there.
            segment.id <= last
                && (segment.changed.swap(false, Ordering::AcqRel) || also.contains(&segment.id))
        };
        segments.values().filter(wanted).map(entry).collect()
    }

    /// The newest commit record.
    pub fn newest_commit(&self) -> Commit {
        self.superblock.lock().clone()
    }

    /// What the newest commit says of locks.
    pub fn lock_terms(&self) -> LockTerms {
        *self.lock_terms.read()
    }

    /// Random bits.
    pub fn random(&self) -> u64 {
        random_u64()
    }

    /// Background work, called by the log's owner a few times a second: prepare the next segment,
    /// commit by itself every second, say what is durable. Result: whether more is waiting.
    ///
    /// # Errors
    /// `Poisoned` where a write or sync fails.
    pub fn step(&self, now: Instant) -> Result<bool> {
        self.end_unused_views();
        if self.read_only || self.closed.load(Ordering::Acquire) || self.poisoned.get().is_some() {
            return Ok(false);
        }
        // Where no segment can be prepared, what was written is committed all the same.
        let more = self.prepare_ahead();
        let (appended, durable) = (self.appended(), self.durable());
        let mut idle = self.idle_since.lock();
        if idle.0 != appended {
            *idle = (appended, now);
        }
        let begun = self.counters.begun.load(Ordering::Relaxed);
        self.spares.note_pace(now, begun, now.duration_since(idle.1));
        if now.duration_since(idle.1) >= IDLE {
            if durable < appended {
                drop(idle);
                self.commit(appended)?;
            } else if self.named.load(Ordering::Acquire) < appended.0 {
                drop(idle);
                self.mark()?;
            }
        }
        more
    }

    /// Whether somebody listens to the bell and something was appended lately: since the last
    /// `step`, or less than a second before it. Then room that is allocated ahead is wanted.
    pub fn is_filled(&self, now: Instant) -> bool {
        let idle = self.idle_since.lock();
        let lately = now.saturating_duration_since(idle.1) < IDLE;
        self.bell.is_heard() && (lately || idle.0 != self.appended())
    }

    pub(crate) fn mark(&self) -> Result<()> {
        let appended = self.appended();
        {
            let slots = 4;
            let mut held = self.gate.lock();
            if held.last_sequence() != appended || !held.room_for_blocks(slots) {
                return Ok(());
            }
            held.mark(self);
            // A mark is not something to mark again.
            self.named.store(held.last_sequence().0, Ordering::Release);
        }
        self.commit(self.appended())
    }

    /// End the open segment and make everything durable, footers too: what comes before the last
    /// checkpoint. Whoever writes afterwards begins another segment.
    ///
    /// # Errors
    /// `Poisoned` where a write or sync fails.
    pub fn seal(&self) -> Result<()> {
        self.check_writable()?;
        self.gate.lock().close_segment(self);
        self.sync_footers()
    }

    /// Refuse everything from now on and give the lock back; what was prepared and not used is
    /// removed. Idempotent. Nothing is made durable: see `seal`.
    ///
    /// # Errors
    /// `Store` where a file cannot be removed; the lock is given back all the same.
    pub fn close(&self) -> Result<()> {
        let room = self.room.lock();
        let unused = {
            let mut held = self.gate.lock();
            if self.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
            held.take_prepared()
        };
        let removes = !self.read_only && self.poisoned.get().is_none();
        let removed = unused
            .iter()
            .filter(|_| removes)
            .try_for_each(|segment| self.store.remove(&segment.path))
            .map_err(LogError::from)
            .and_then(|()| if removes { self.drop_spares().map(drop) } else { Ok(()) });
        drop(room);
        for segment in self.views.lock().drain(..).filter_map(|it| it.upgrade()) {
            segment.lending.end();
        }
        *self.lock.lock() = None;
        removed
    }

    /// Refuse where nothing may be written.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`, `ReadOnly`.
    pub fn check_writable(&self) -> Result<()> {
        if let Some(reason) = self.poisoned.get() {
            return Err(LogError::Poisoned { reason: reason.clone() });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(LogError::Closed);
        }
        if self.read_only { Err(LogError::ReadOnly) } else { Ok(()) }
    }

    /// Refuse all writing from now on.
    pub fn poison(&self, reason: &str) -> LogError {
        let reason = self.poisoned.get_or_init(|| reason.to_string()).clone();
        LogError::Poisoned { reason }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.descriptor.seed
    }

    /// The UUIDs of the log and of this opening.
    pub fn identity(&self) -> ([u8; 16], [u8; 16]) {
        (self.log_uuid, self.incarnation)
    }

    pub(crate) fn insert_segment(&self, segment: Arc<Segment>) {
        self.segments.write().insert(segment.id, segment);
    }

    pub(crate) fn set_appended(&self, sequence: Sequence) {
        self.appended.store(sequence.0, Ordering::Release);
    }

    pub(crate) fn set_durable(&self, sequence: Sequence) {
        self.durable.fetch_max(sequence.0, Ordering::AcqRel);
    }

    pub(crate) fn note_gate_closed(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counters.gate_closed_ns_last.store(ns, Ordering::Relaxed);
        self.counters.gate_closed_ns_max.fetch_max(ns, Ordering::Relaxed);
    }
}

/// Random bits from the operating system.
pub(crate) fn random_u64() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = random_uuid();
    let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let [.., a, b, c, d, e, f, g, h] = random_uuid();
    low ^ u64::from_le_bytes([a, b, c, d, e, f, g, h]).rotate_left(17)
}

/// A random UUID's bytes.
pub(crate) fn random_uuid() -> [u8; 16] {
    *uuid::Uuid::new_v4().as_bytes()
}
