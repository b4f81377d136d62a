//! A process that may be killed at any operation of its store. The store goes on: what was written
//! is still read, synced or not, until the power goes.

use ramet_store::{FaultStore, File, Lock, LockMode, Moment, Result, Store, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A store as one process sees it.
pub struct Process {
    store: Arc<FaultStore>,
    life: Arc<Life>,
}

/// Changes of the store that are still made.
pub struct Life(AtomicU64);

struct ProcessFile {
    file: Arc<dyn File>,
    life: Arc<Life>,
}

impl Life {
    /// One that does not end.
    pub fn new() -> Arc<Self> {
        Arc::new(Life(AtomicU64::new(u64::MAX)))
    }

    /// Be killed when so many more changes were made.
    pub fn end_after(&self, changes: u64) {
        self.0.store(changes, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn look(&self) -> Result<()> {
        if self.is_over() { Err(killed()) } else { Ok(()) }
    }

    fn change(&self) -> Result<()> {
        self.look()?;
        self.0.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

fn killed() -> StoreError {
    let source = std::io::Error::other("the process was killed");
    StoreError::Io { action: "do anything with", path: String::new(), source }
}

impl Process {
    pub fn new(store: Arc<FaultStore>, life: Arc<Life>) -> Self {
        Process { store, life }
    }

    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(ProcessFile { file, life: self.life.clone() })
    }
}

impl Store for Process {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn create(&self, path: &str) -> Result<Arc<dyn File>> {
        self.life.change()?;
        Ok(self.file(self.store.create(path)?))
    }

    fn open(&self, path: &str, writable: bool) -> Result<Arc<dyn File>> {
        self.life.look()?;
        Ok(self.file(self.store.open(path, writable)?))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.life.look()?;
        self.store.exists(path)
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        self.life.look()?;
        self.store.list(directory)
    }

    fn create_directory(&self, directory: &str) -> Result<()> {
        self.life.change()?;
        self.store.create_directory(directory)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.life.change()?;
        self.store.rename(from, to)
    }

    fn exchange(&self, one: &str, other: &str) -> Result<bool> {
        self.life.change()?;
        self.store.exchange(one, other)
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.life.change()?;
        self.store.remove(path)
    }

    fn sync_directory(&self, directory: &str) -> Result<()> {
        self.life.change()?;
        self.store.sync_directory(directory)
    }

    fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        self.store.lock(mode)
    }

    fn space_bytes(&self) -> Result<(u64, u64)> {
        self.life.look()?;
        self.store.space_bytes()
    }

    fn moment(&self) -> Moment {
        self.store.moment()
    }
}

impl File for ProcessFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.life.look()?;
        self.file.read_at(buffer, offset_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        self.life.change()?;
        self.file.write_at(bytes, offset_bytes)
    }

    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        self.life.change()?;
        self.file.allocate(offset_bytes, length_bytes)
    }

    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool> {
        self.life.change()?;
        self.file.punch(offset_bytes, length_bytes)
    }

    fn sync(&self) -> Result<()> {
        self.life.change()?;
        self.file.sync()
    }

    fn start_writeback(&self, offset_bytes: u64, length_bytes: u64) {
        self.file.start_writeback(offset_bytes, length_bytes);
    }

    fn set_length(&self, length_bytes: u64) -> Result<()> {
        self.life.change()?;
        self.file.set_length(length_bytes)
    }

    fn length_bytes(&self) -> Result<u64> {
        self.life.look()?;
        self.file.length_bytes()
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.life.look()?;
        self.file.allocated_bytes()
    }
}
