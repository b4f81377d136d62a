//! A block device and a namespace in memory, with gates to hold calls up and errors to order.

use parking_lot::{Condvar, Mutex, RwLock};
use ramet_engine::{BlockDevice, Changes, EngineError, Export, Exports, ExtentSink, Kind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Holds callers up while it is closed.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    waiting_count: usize,
}

impl Gate {
    pub fn close(&self) {
        self.state.lock().closed = true;
    }

    pub fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    /// Wait until somebody is held up.
    pub fn wait_for_caller(&self) {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.waiting_count == 0);
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.waiting_count += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| state.closed);
        state.waiting_count -= 1;
    }
}

/// A device whose bytes are one array.
#[derive(Default)]
pub struct MemoryDevice {
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
    failure: Mutex<Option<Kind>>,
    /// Every write waits here.
    pub write_gate: Gate,
    /// And every read here.
    pub read_gate: Gate,
    /// And every flush.
    pub flush_gate: Gate,
    /// Ranges of reads that were announced.
    pub announced: Mutex<Vec<(u64, u64)>>,
    /// Where was read, and how many reads were announced by then.
    pub reads: Mutex<Vec<(u64, usize)>>,
    /// Reads of the block that this byte lies in fail as damaged.
    pub damaged_offset_bytes: Mutex<Option<u64>>,
    /// A read or write of this offset panics.
    pub panic_offset_bytes: Mutex<Option<u64>>,
    /// Calls that changed something and returned.
    pub changes_count: AtomicUsize,
    /// Flushes that had something to do, and changes with FUA.
    pub syncs_count: AtomicUsize,
    /// Of the changes, so many are durable.
    pub durable_count: AtomicUsize,
    /// Flushes that were announced.
    pub announced_flushes_count: AtomicUsize,
    /// Marks that were asked for.
    pub marks_count: AtomicUsize,
    /// Calls of any kind.
    pub calls_count: AtomicUsize,
}

impl MemoryDevice {
    pub fn new(size_bytes: usize) -> Self {
        MemoryDevice { bytes: RwLock::new(vec![0; size_bytes]), ..MemoryDevice::default() }
    }

    pub fn snapshot_of(bytes: Vec<u8>) -> Self {
        MemoryDevice { bytes: RwLock::new(bytes), read_only: true, ..MemoryDevice::default() }
    }

    /// Every call fails so from now on.
    pub fn fail_with(&self, kind: Option<Kind>) {
        *self.failure.lock() = kind;
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }

    fn check(&self) -> Result<(), EngineError> {
        self.calls_count.fetch_add(1, Ordering::SeqCst);
        self.fail_if_ordered()
    }

    fn fail_if_ordered(&self) -> Result<(), EngineError> {
        match *self.failure.lock() {
            Some(kind) => Err(EngineError::new(kind, "ordered", "the test ordered it")),
            None => Ok(()),
        }
    }

    fn change(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        fua: bool,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), EngineError> {
        self.write_gate.pass();
        self.check()?;
        let start = index_of(offset_bytes);
        let end = start + index_of(length_bytes);
        change(&mut self.bytes.write()[start..end]);
        let changes_count = self.changes_count.fetch_add(1, Ordering::SeqCst) + 1;
        if fua {
            self.syncs_count.fetch_add(1, Ordering::SeqCst);
            self.durable_count.fetch_max(changes_count, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        bytes_of(self.bytes.read().len())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn will_read(&self, offset_bytes: u64, length_bytes: u64) {
        self.announced.lock().push((offset_bytes, length_bytes));
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        self.read_gate.pass();
        self.check()?;
        self.reads.lock().push((offset_bytes, self.announced.lock().len()));
        assert_ne!(*self.panic_offset_bytes.lock(), Some(offset_bytes), "the test ordered it");
        let end = offset_bytes + bytes_of(buffer.len());
        if let Some(damaged) = *self.damaged_offset_bytes.lock() {
            let block = damaged / BLOCK_BYTES * BLOCK_BYTES;
            if offset_bytes < block + BLOCK_BYTES && block < end {
                return Err(EngineError::new(Kind::Corrupt, "damaged", "segment 7 at slot 3"));
            }
        }
        let start = index_of(offset_bytes);
        buffer.copy_from_slice(&self.bytes.read()[start..start + buffer.len()]);
        Ok(())
    }

    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<(), EngineError> {
        self.fail_if_ordered()?;
        let bytes = self.bytes.read();
        tell(offset_bytes, length_bytes, sink, |block| bytes[block].iter().any(|byte| *byte != 0));
        Ok(())
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<(), EngineError> {
        assert_ne!(*self.panic_offset_bytes.lock(), Some(offset_bytes), "the test ordered it");
        let length_bytes = bytes_of(bytes.len());
        self.change(offset_bytes, length_bytes, fua, |room| room.copy_from_slice(bytes))
    }

    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<(), EngineError> {
        self.change(offset_bytes, length_bytes, fua, |room| room.fill(0))
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        fua: bool,
    ) -> Result<(), EngineError> {
        self.change(offset_bytes, length_bytes, fua, |room| room.fill(0))
    }

    fn completed(&self) -> u64 {
        let changes_count = self.changes_count.load(Ordering::SeqCst);
        self.marks_count.fetch_add(1, Ordering::SeqCst);
        bytes_of(changes_count)
    }

    fn flush_up_to(&self, completed: u64) -> Result<(), EngineError> {
        // As in a log: what is changed while the medium syncs is not covered.
        let changes_count = self.changes_count.load(Ordering::SeqCst);
        let nothing_left = self.durable_count.load(Ordering::SeqCst) >= index_of(completed);
        self.flush_gate.pass();
        self.check()?;
        if !nothing_left {
            self.durable_count.fetch_max(changes_count, Ordering::SeqCst);
            self.syncs_count.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn will_flush(&self) {
        self.announced_flushes_count.fetch_add(1, Ordering::SeqCst);
    }

    fn is_durable(&self) -> bool {
        self.durable_count.load(Ordering::SeqCst) >= self.changes_count.load(Ordering::SeqCst)
    }
}

/// A block of zeros is a hole.
const BLOCK_BYTES: u64 = 4096;

/// Tell extents block by block, joined where they are marked alike.
fn tell(
    offset_bytes: u64,
    length_bytes: u64,
    sink: &mut ExtentSink<'_>,
    marked: impl Fn(std::ops::Range<usize>) -> bool,
) {
    let end = offset_bytes + length_bytes;
    let (mut at, mut open) = (offset_bytes, None);
    while at < end {
        let next = (at / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES).min(end);
        let is = marked(index_of(at)..index_of(next));
        open = match open {
            Some((length, before)) if before == is => Some((length + next - at, is)),
            Some((length, before)) if sink(length, before).is_break() => return,
            Some(_) | None => Some((next - at, is)),
        };
        at = next;
    }
    if let Some((length, is)) = open {
        // It was the last one anyway.
        let _ = sink(length, is);
    }
}

fn index_of(offset_bytes: u64) -> usize {
    usize::try_from(offset_bytes).expect("memory is addressed by usize")
}

fn bytes_of(length: usize) -> u64 {
    u64::try_from(length).expect("memory is at most 64 bits")
}

/// A namespace that counts what is attached.
#[derive(Default)]
pub struct MemoryExports {
    devices: Mutex<BTreeMap<String, (u64, Arc<MemoryDevice>)>>,
    /// Every open waits here, after the device was found.
    pub open_gate: Gate,
    attached: Arc<Attached>,
}

#[derive(Default)]
struct Attached {
    count: Mutex<usize>,
    changed: Condvar,
}

impl MemoryExports {
    pub fn add(&self, name: &str, object: u64, device: MemoryDevice) -> Arc<MemoryDevice> {
        let device = Arc::new(device);
        self.devices.lock().insert(name.to_owned(), (object, Arc::clone(&device)));
        device
    }

    pub fn attached_count(&self) -> usize {
        *self.attached.count.lock()
    }

    /// Wait until `attached_count` devices are attached.
    pub fn wait_until_attached(&self, attached_count: usize) {
        let mut count = self.attached.count.lock();
        self.attached.changed.wait_while(&mut count, |count| *count != attached_count);
    }
}

impl Exports for MemoryExports {
    fn list(&self) -> Vec<Export> {
        let devices = self.devices.lock();
        devices
            .iter()
            .map(|(name, (object, _))| Export { name: name.clone(), object: *object })
            .collect()
    }

    fn open(&self, name: &str) -> Result<(Export, Arc<dyn BlockDevice>), EngineError> {
        let found = self.devices.lock().get(name).cloned();
        let Some((object, device)) = found else {
            return Err(EngineError::new(Kind::NotFound, "not_found", "no such export"));
        };
        self.attached.enter();
        let attached = Arc::clone(&self.attached);
        let device: Arc<dyn BlockDevice> = Arc::new(AttachedDevice { device, attached });
        self.open_gate.pass();
        Ok((Export { name: name.to_owned(), object }, device))
    }

    fn bases(&self, object: u64) -> Vec<Export> {
        let devices = self.devices.lock();
        let snapshots = devices.iter().filter(|(_, (id, it))| it.read_only && *id != object);
        snapshots
            .map(|(name, (object, _))| Export { name: name.clone(), object: *object })
            .collect()
    }

    fn open_changes(
        &self,
        object: u64,
        base: &str,
    ) -> Result<(Export, Arc<dyn Changes>), EngineError> {
        let found = self.bases(object).into_iter().find(|it| it.name == base);
        let Some(export) = found else {
            return Err(EngineError::new(Kind::NotFound, "not_found", "no such snapshot"));
        };
        let devices = self.devices.lock();
        let by_id = |object| {
            let found = devices.values().find(|(id, _)| *id == object);
            Arc::clone(&found.expect("was found or is attached").1)
        };
        let (before, after) = (by_id(export.object), by_id(object));
        self.attached.enter();
        let attached = Arc::clone(&self.attached);
        Ok((export, Arc::new(Differs { before, after, attached })))
    }
}

/// What differs between two devices.
struct Differs {
    before: Arc<MemoryDevice>,
    after: Arc<MemoryDevice>,
    attached: Arc<Attached>,
}

impl Drop for Differs {
    fn drop(&mut self) {
        self.attached.leave();
    }
}

impl Changes for Differs {
    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<(), EngineError> {
        self.after.fail_if_ordered()?;
        let (before, after) = (self.before.bytes.read(), self.after.bytes.read());
        tell(offset_bytes, length_bytes, sink, |block| {
            let after = &after[block.clone()];
            before.get(block).map_or(after.iter().any(|byte| *byte != 0), |bytes| bytes != after)
        });
        Ok(())
    }
}

impl Attached {
    fn enter(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    fn leave(&self) {
        *self.count.lock() -= 1;
        self.changed.notify_all();
    }
}

/// Counts as attached until it is dropped.
struct AttachedDevice {
    device: Arc<MemoryDevice>,
    attached: Arc<Attached>,
}

impl Drop for AttachedDevice {
    fn drop(&mut self) {
        self.attached.leave();
    }
}

impl BlockDevice for AttachedDevice {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn will_read(&self, offset_bytes: u64, length_bytes: u64) {
        self.device.will_read(offset_bytes, length_bytes);
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        self.device.read(offset_bytes, buffer)
    }

    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<(), EngineError> {
        self.device.extents(offset_bytes, length_bytes, sink)
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<(), EngineError> {
        self.device.write(offset_bytes, bytes, fua)
    }

    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<(), EngineError> {
        self.device.trim(offset_bytes, length_bytes, fua)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        fua: bool,
    ) -> Result<(), EngineError> {
        self.device.write_zeroes(offset_bytes, length_bytes, fua)
    }

    fn completed(&self) -> u64 {
        self.device.completed()
    }

    fn flush_up_to(&self, completed: u64) -> Result<(), EngineError> {
        self.device.flush_up_to(completed)
    }

    fn will_flush(&self) {
        self.device.will_flush();
    }

    fn is_durable(&self) -> bool {
        self.device.is_durable()
    }
}
