//! A block device and a namespace in memory, with gates to hold calls up and errors to order.

use parking_lot::{Condvar, Mutex, RwLock};
use ramet_engine::{BlockDevice, EngineError, Export, Exports, Kind};
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
    /// A read of this offset panics.
    pub panic_offset_bytes: Mutex<Option<u64>>,
    /// Calls that changed something and returned.
    pub changes_count: AtomicUsize,
    /// Flushes, and changes with FUA.
    pub syncs_count: AtomicUsize,
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
        self.changes_count.fetch_add(1, Ordering::SeqCst);
        self.syncs_count.fetch_add(usize::from(fua), Ordering::SeqCst);
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

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        self.check()?;
        assert_ne!(*self.panic_offset_bytes.lock(), Some(offset_bytes), "the test ordered it");
        let start = index_of(offset_bytes);
        buffer.copy_from_slice(&self.bytes.read()[start..start + buffer.len()]);
        Ok(())
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<(), EngineError> {
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

    fn flush(&self) -> Result<(), EngineError> {
        self.check()?;
        self.syncs_count.fetch_add(1, Ordering::SeqCst);
        Ok(())
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
        *self.attached.count.lock() += 1;
        let attached = Arc::clone(&self.attached);
        let device: Arc<dyn BlockDevice> = Arc::new(AttachedDevice { device, attached });
        self.open_gate.pass();
        Ok((Export { name: name.to_owned(), object }, device))
    }
}

/// Counts as attached until it is dropped.
struct AttachedDevice {
    device: Arc<MemoryDevice>,
    attached: Arc<Attached>,
}

impl Drop for AttachedDevice {
    fn drop(&mut self) {
        *self.attached.count.lock() -= 1;
        self.attached.changed.notify_all();
    }
}

impl BlockDevice for AttachedDevice {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        self.device.read(offset_bytes, buffer)
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

    fn flush(&self) -> Result<(), EngineError> {
        self.device.flush()
    }
}
