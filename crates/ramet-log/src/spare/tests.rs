//! Old bytes in a file that is used again: no header among them verifies, and nobody who still has
//! the file open takes them for what was there.

use super::*;
use crate::checksum::crc_blocks;
use crate::format::batch::BatchHeader;
use crate::types::{Locator, ObjectId, Sequence};
use crate::{SEGMENT_BYTES_MIN, SlotSet};
use ramet_store::{Lock, LockMode, MemoryStore, Moment};

type Stored<T> = ramet_store::Result<T>;
type Hook = Box<dyn FnOnce() + Send>;

/// A nonce that seeds the checksums of `id` as `before` seeds its own: with 32 bits to choose from
/// there is one.
fn colliding_nonce(id: SegmentId, before: (SegmentId, u64)) -> u64 {
    let seeded = |(id, nonce): (SegmentId, u64)| page_crc(&[0; 16], 12, nonce, id.slot(0).0);
    let mut rows: Vec<(u32, u64)> =
        (0..32).map(|bit| (seeded((id, 1 << bit)) ^ seeded((id, 0)), 1 << bit)).collect();
    let (mut wanted, mut nonce) = (seeded(before) ^ seeded((id, 0)), 0);
    for bit in 0..32 {
        let Some(at) = rows.iter().position(|row| row.0 & (1 << bit) != 0) else { continue };
        let (pivot, made_of) = rows.swap_remove(at);
        for row in rows.iter_mut().filter(|row| row.0 & (1 << bit) != 0) {
            *row = (row.0 ^ pivot, row.1 ^ made_of);
        }
        if wanted & (1 << bit) != 0 {
            (wanted, nonce) = (wanted ^ pivot, nonce ^ made_of);
        }
    }
    assert_eq!(wanted, 0, "32 bits reach every checksum");
    nonce
}

#[test]
fn a_nonce_under_which_old_headers_would_verify_is_told_from_others() {
    let (old, new) = (SegmentId::new(3, 7), SegmentId::new(5, 1));
    let before = (old, 0x1234_5678_9abc_def0);
    let bad = colliding_nonce(new, before);
    let header = BatchHeader { sequence: Sequence(9), slots_count: 1, ..BatchHeader::default() };
    for slot in [1, 77, 16_383] {
        let mut page = [0; BLOCK_BYTES];
        header.encode_into(&mut page, before.1, old.slot(slot));
        assert!(BatchHeader::decode(&page, bad, new.slot(slot)).is_some(), "slot {slot}");
        assert!(BatchHeader::decode(&page, bad ^ 1, new.slot(slot)).is_none(), "slot {slot}");
    }
    assert!(old_headers_verify((new, bad), before));
    assert!(!old_headers_verify((new, bad ^ 1), before));
}

/// A store in memory in which something happens between the opening of a file and a read of it, and
/// which notes what writeback is begun of: where, and how many bytes.
#[derive(Default)]
struct Hooked {
    inner: MemoryStore,
    hook: Arc<Mutex<Option<Hook>>>,
    begun: Arc<Mutex<Vec<(u64, u64)>>>,
}

struct HookedFile {
    inner: Arc<dyn File>,
    hook: Arc<Mutex<Option<Hook>>>,
    begun: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Hooked {
    fn file(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HookedFile { inner, hook: self.hook.clone(), begun: self.begun.clone() })
    }
}

impl File for HookedFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Stored<()> {
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        self.inner.read_at(buffer, offset_bytes)
    }
    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Stored<()> {
        self.inner.write_at(bytes, offset_bytes)
    }
    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Stored<()> {
        self.inner.allocate(offset_bytes, length_bytes)
    }
    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Stored<bool> {
        self.inner.punch(offset_bytes, length_bytes)
    }
    fn sync(&self) -> Stored<()> {
        self.inner.sync()
    }
    fn start_writeback(&self, offset_bytes: u64, length_bytes: u64) {
        self.begun.lock().push((offset_bytes, length_bytes));
        self.inner.start_writeback(offset_bytes, length_bytes);
    }
    fn set_length(&self, length_bytes: u64) -> Stored<()> {
        self.inner.set_length(length_bytes)
    }
    fn length_bytes(&self) -> Stored<u64> {
        self.inner.length_bytes()
    }
    fn allocated_bytes(&self) -> Stored<u64> {
        self.inner.allocated_bytes()
    }
}

impl Store for Hooked {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn create(&self, path: &str) -> Stored<Arc<dyn File>> {
        Ok(self.file(self.inner.create(path)?))
    }
    fn open(&self, path: &str, writable: bool) -> Stored<Arc<dyn File>> {
        Ok(self.file(self.inner.open(path, writable)?))
    }
    fn exists(&self, path: &str) -> Stored<bool> {
        self.inner.exists(path)
    }
    fn list(&self, directory: &str) -> Stored<Vec<String>> {
        self.inner.list(directory)
    }
    fn create_directory(&self, directory: &str) -> Stored<()> {
        self.inner.create_directory(directory)
    }
    fn rename(&self, from: &str, to: &str) -> Stored<()> {
        self.inner.rename(from, to)
    }
    fn exchange(&self, one: &str, other: &str) -> Stored<bool> {
        self.inner.exchange(one, other)
    }
    fn remove(&self, path: &str) -> Stored<()> {
        self.inner.remove(path)
    }
    fn sync_directory(&self, directory: &str) -> Stored<()> {
        self.inner.sync_directory(directory)
    }
    fn lock(&self, mode: LockMode) -> Stored<Box<dyn Lock>> {
        self.inner.lock(mode)
    }
    fn moment(&self) -> Moment {
        self.inner.moment()
    }
    fn space_bytes(&self) -> Stored<(u64, u64)> {
        self.inner.space_bytes()
    }
}

pub(crate) fn block(index: u64) -> Vec<u8> {
    index.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

/// Append blocks, and give the place of the first.
pub(crate) fn append(log: &Log, indexes: std::ops::Range<u64>) -> Locator {
    let mut first = None;
    for index in indexes {
        let (bytes, mut crcs) = (block(index), Vec::new());
        crc_blocks(&bytes, &mut crcs);
        let mut gate = log.enter_write(1).expect("room");
        gate.write(ObjectId(1), index, &bytes, &crcs, |_, _, at| {
            let _ = first.get_or_insert(at);
        });
    }
    log.flush().expect("flushed");
    first.expect("a block")
}

/// A log with a sealed segment of which only the first block, number 0, lives by what both slots
/// say; and that block's place.
fn nearly_dead() -> (Arc<Log>, Arc<Mutex<Option<Hook>>>, Locator) {
    let hook = Arc::default();
    let store = Arc::new(Hooked { hook: Arc::clone(&hook), ..Hooked::default() });
    let (log, living) = nearly_dead_in(store);
    (log, hook, living)
}

/// As `nearly_dead`, in a store that is empty.
pub(crate) fn nearly_dead_in(store: Arc<dyn Store>) -> (Arc<Log>, Locator) {
    Log::create(&*store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    let log = Arc::new(Log::open(store, false, &mut |_| Ok(())).expect("opened"));
    let living = append(&log, 0..300);
    log.set_thinned(std::iter::once(living.segment()));
    log.spares.note_pace(Instant::now(), 1, Duration::ZERO);
    (log, living)
}

/// All slots but the header's and that of the one living block.
pub(crate) fn dead_but(living: Locator) -> SlotSet {
    let mut dead: SlotSet = vec![u64::MAX; 4];
    dead[0] &= !(1 << living.slot() | 1);
    dead
}

fn renew(log: &Log, living: Locator) {
    let dead = dead_but(living);
    assert!(log.renew(living.segment(), &dead).expect("no fault"), "it is whole");
}

pub(crate) fn read(log: &Log, living: Locator) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    log.read(living, 0, &mut bytes).expect("it lives");
    bytes
}

pub(crate) fn reused(log: &Log) -> u64 {
    log.counters.reused.load(Ordering::Relaxed)
}

#[test]
fn a_file_that_somebody_reads_is_not_used_again_before_that_is_over() {
    let (log, hook, living) = nearly_dead();
    let own = log.clone();
    *hook.lock() = Some(Box::new(move || {
        renew(&own, living);
        append(&own, 300..900);
        assert_eq!(reused(&own), 0, "a read has it open");
    }));
    assert_eq!(read(&log, living), block(0));
    assert!(hook.lock().is_none(), "the read was held up");
    append(&log, 900..1500);
    assert_eq!(reused(&log), 1);
    assert_eq!(read(&log, living), block(0));
}

/// Files are closed where many are open: then nobody knows who still reads through one.
#[test]
fn a_read_whose_file_was_used_again_meanwhile_is_done_again() {
    let (log, hook, living) = nearly_dead();
    let own = log.clone();
    *hook.lock() = Some(Box::new(move || {
        own.segments.read()[&living.segment()].close_file();
        renew(&own, living);
        append(&own, 300..1200);
        assert_eq!(reused(&own), 1, "nobody is known to have it open");
    }));
    assert_eq!(read(&log, living), block(0));
    assert!(hook.lock().is_none(), "the read was held up");
}

/// A sync of a file with thousands of pieces was one call of some milliseconds.
#[test]
fn what_is_moved_goes_to_the_medium_bit_by_bit_before_the_sync() {
    let store = Arc::new(Hooked::default());
    let begun = store.begun.clone();
    let (log, living) = nearly_dead_in(store);
    begun.lock().clear();
    let every_second = vec![0xaaaa_aaaa_aaaa_aaaa; 4];
    assert!(log.renew(living.segment(), &every_second).expect("no fault"), "it is whole");
    let begun = begun.lock();
    assert!(begun.len() > 2, "{begun:?}");
    let mut at = 0;
    for (offset_bytes, length_bytes) in &*begun {
        assert_eq!(*offset_bytes, at, "nothing is left out");
        assert!((128 << 10..512 << 10).contains(length_bytes), "{begun:?}");
        at += length_bytes;
    }
}
