//! A store that fails on purpose, the same way for the same seed: it loses any subset of what was
//! not synced, tears writes, flips bits, fails any operation, runs full.
//!
//! For tests of every layer above. Calls nothing. Invariants: without a planned fault it behaves as
//! `FileStore` does; what was synced, contents by `sync` and names by `sync_directory`, survives
//! every power loss; a store whose power went fails every call from then on.

mod disk;
mod random;

pub use disk::Kept;

use crate::memory::{Locks, SPACE_BYTES, failed};
use crate::{File, Lock, LockMode, Moment, Result, Store, StoreError};
use disk::{Disk, Inode};
use parking_lot::Mutex;
use random::Random;
use rustix::io::Errno;
use std::sync::Arc;

/// What a store is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `Store::create`, and a lock's file where it was missing.
    Create,
    /// `Store::open`.
    Open,
    /// `Store::list`.
    List,
    /// `Store::create_directory`, where one was missing.
    CreateDirectory,
    /// `Store::rename`.
    Rename,
    /// `Store::exchange`.
    Exchange,
    /// `Store::remove`.
    Remove,
    /// `Store::sync_directory`.
    SyncDirectory,
    /// `File::read_at`.
    Read,
    /// `File::write_at`.
    Write,
    /// `File::allocate`.
    Allocate,
    /// `File::punch`.
    Punch,
    /// `File::sync`.
    Sync,
    /// `File::set_length`.
    SetLength,
}

const OPERATIONS: usize = Operation::SetLength as usize + 1;

impl Operation {
    /// Whether it can make a difference to what survives a power loss.
    fn is_change(self) -> bool {
        !matches!(self, Operation::Open | Operation::List | Operation::Read)
    }
}

/// When a fault strikes: once, at an operation, counted from 0 since the store was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The operation of this number among those that change something.
    Change(u64),
    /// The operation of this number of its kind.
    Nth(Operation, u64),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes while the operation is under way: it fails, and so does everything after it.
    PowerOff,
    /// An input/output error. A write may have been done in part; a failed `sync` leaves nothing
    /// dirty, as on Linux: what did not get to the medium then never will, though it is still read.
    Error,
    /// No space. Out of a sync it is an `Error`.
    Full,
    /// A bit of what is read, or of what is written, turns over without a word.
    FlipBit,
}

/// See the head of this file.
pub struct FaultStore {
    world: Arc<Mutex<World>>,
    locks: Locks,
}

/// All there is between two power losses.
struct World {
    disk: Disk,
    random: Random,
    off: bool,
    capacity_bytes: Option<u64>,
    planned: Vec<(When, Fault)>,
    counts: [u64; OPERATIONS],
    changes_count: u64,
    moment: Moment,
}

struct FaultFile {
    world: Arc<Mutex<World>>,
    path: String,
    inode: Inode,
    writable: bool,
}

impl FaultStore {
    /// An empty store without faults; `seed` says all that is left to chance.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(Disk::new(&format!("fault-{seed}:")), seed, None, Moment::default())
    }

    fn with(disk: Disk, seed: u64, capacity_bytes: Option<u64>, moment: Moment) -> Self {
        let world = World {
            disk,
            random: Random(seed),
            off: false,
            capacity_bytes,
            planned: Vec::new(),
            counts: [0; OPERATIONS],
            changes_count: 0,
            moment,
        };
        FaultStore { world: Arc::new(Mutex::new(world)), locks: Locks::default() }
    }

    /// Let something go wrong.
    pub fn plan(&self, when: When, fault: Fault) {
        self.world.lock().planned.push((when, fault));
    }

    /// Have room for this many bytes of files, in whole pages, and no more.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.world.lock().capacity_bytes = capacity_bytes;
    }

    /// Say what the machine's clocks say, until this is called again.
    pub fn set_moment(&self, moment: Moment) {
        self.world.lock().moment = moment;
    }

    /// Operations so far that change something.
    #[must_use]
    pub fn changes_count(&self) -> u64 {
        self.world.lock().changes_count
    }

    /// Operations of one kind so far.
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        self.world.lock().counts[operation as usize]
    }

    /// Turn the power off, and give the store that comes up again: with what was synced, and
    /// `kept` of what was not. Everything that was opened here fails from now on. May be called
    /// again, for another fate of the same moment.
    #[must_use]
    pub fn crash(&self, kept: Kept) -> FaultStore {
        let mut world = self.world.lock();
        world.off = true;
        let disk = world.disk.after_power_loss(kept);
        let seed = match kept {
            Kept::Random(seed) => seed,
            Kept::Nothing | Kept::Everything => 0,
        };
        Self::with(disk, seed, world.capacity_bytes, world.moment)
    }

    /// Damage one bit (0 to 7) of a byte of a file, durably.
    ///
    /// # Errors
    /// `NotFound`; `ShortRead` where the file ends before.
    pub fn flip_bit(&self, path: &str, offset_bytes: u64, bit: u32) -> Result<()> {
        let mut world = self.world.lock();
        let inode = world.disk.names.find_file(path, "damage")?;
        if offset_bytes >= world.disk.contents(inode).length_bytes() {
            let path = world.disk.names.full(path);
            return Err(StoreError::ShortRead { path, end_bytes: offset_bytes + 1 });
        }
        world.disk.flip(inode, offset_bytes, bit);
        Ok(())
    }

    /// An operation on names.
    fn perform<T>(
        &self,
        operation: Operation,
        action: &'static str,
        path: &str,
        apply: impl FnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        let mut world = self.world.lock();
        let full = world.disk.names.full(path);
        match world.begin(operation, action, &full)? {
            Manner::Plain | Manner::Flipped => apply(&mut world),
            Manner::PowerGoes => {
                let _ = apply(&mut world);
                Err(world.turn_off(action, &full))
            }
            Manner::Fails => Err(failed(action, &full, Errno::IO)),
        }
    }

    fn file(&self, path: String, inode: Inode, writable: bool) -> Arc<dyn File> {
        Arc::new(FaultFile { world: self.world.clone(), path, inode, writable })
    }
}

/// How an operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Plain,
    Flipped,
    /// It is under way: of what it changes, anything may survive.
    PowerGoes,
    Fails,
}

impl World {
    /// Count an operation, and say how it goes.
    fn begin(&mut self, operation: Operation, action: &'static str, path: &str) -> Result<Manner> {
        self.check_power(action, path)?;
        let nth = self.counts[operation as usize];
        self.counts[operation as usize] += 1;
        let change = operation.is_change().then_some(self.changes_count);
        self.changes_count += u64::from(operation.is_change());
        let strikes = |(when, _): &(When, Fault)| match when {
            When::Change(number) => change == Some(*number),
            When::Nth(kind, number) => *kind == operation && *number == nth,
        };
        let Some(index) = self.planned.iter().position(strikes) else {
            return Ok(Manner::Plain);
        };
        let is_sync = matches!(operation, Operation::Sync | Operation::SyncDirectory);
        match self.planned.swap_remove(index).1 {
            Fault::PowerOff => Ok(Manner::PowerGoes),
            Fault::FlipBit => Ok(Manner::Flipped),
            Fault::Full if !is_sync => Err(StoreError::Full { action, path: path.to_string() }),
            Fault::Full | Fault::Error => Ok(Manner::Fails),
        }
    }

    fn check_power(&self, action: &'static str, path: &str) -> Result<()> {
        if self.off { Err(power_is_off(action, path)) } else { Ok(()) }
    }

    fn turn_off(&mut self, action: &'static str, path: &str) -> StoreError {
        self.off = true;
        power_is_off(action, path)
    }

    /// Whether a range of a file may take the room it does not have yet.
    fn check_room(
        &self,
        inode: Inode,
        (offset_bytes, length_bytes): (u64, u64),
        action: &'static str,
        path: &str,
    ) -> Result<()> {
        let Some(capacity_bytes) = self.capacity_bytes else {
            return Ok(());
        };
        let wanted = self.disk.contents(inode).room_wanted(offset_bytes, length_bytes);
        if wanted == 0 || self.disk.used_bytes() + wanted <= capacity_bytes {
            return Ok(());
        }
        Err(StoreError::Full { action, path: path.to_string() })
    }
}

fn power_is_off(action: &'static str, path: &str) -> StoreError {
    let source = std::io::Error::other("the power is off");
    StoreError::Io { action, path: path.to_string(), source }
}

fn flip_some_bit(bytes: &mut [u8], random: &mut Random) {
    if !bytes.is_empty() {
        let at = usize::try_from(random.below(bytes.len() as u64)).expect("an index");
        bytes[at] ^= 1 << random.below(8);
    }
}

impl Store for FaultStore {
    fn describe(&self) -> String {
        self.world.lock().disk.names.full("")
    }

    fn create(&self, path: &str) -> Result<Arc<dyn File>> {
        self.perform(Operation::Create, "create", path, |world| {
            world.disk.names.check_new(path)?;
            let inode = world.disk.create(path);
            Ok(self.file(world.disk.names.full(path), inode, true))
        })
    }

    fn open(&self, path: &str, writable: bool) -> Result<Arc<dyn File>> {
        self.perform(Operation::Open, "open", path, |world| {
            let inode = world.disk.names.find_file(path, "open")?;
            Ok(self.file(world.disk.names.full(path), inode, writable))
        })
    }

    fn exists(&self, path: &str) -> Result<bool> {
        let world = self.world.lock();
        world.check_power("look at", path)?;
        Ok(world.disk.names.exists(path))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        self.perform(Operation::List, "list", directory, |world| world.disk.names.list(directory))
    }

    fn create_directory(&self, directory: &str) -> Result<()> {
        let missing = {
            let world = self.world.lock();
            world.check_power("create", directory)?;
            world.disk.names.missing_directories(directory)?
        };
        for path in missing {
            self.perform(Operation::CreateDirectory, "create", &path, |world| {
                world.disk.create_directory(&path);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.perform(Operation::Rename, "rename", from, |world| {
            let inode = world.disk.names.check_rename(from, to)?;
            world.disk.rename(from, to, inode);
            Ok(())
        })
    }

    fn exchange(&self, one: &str, other: &str) -> Result<bool> {
        self.perform(Operation::Exchange, "exchange", one, |world| {
            let inodes = world.disk.names.check_exchange(one, other)?;
            world.disk.exchange(one, other, inodes);
            Ok(true)
        })
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.perform(Operation::Remove, "remove", path, |world| {
            world.disk.names.find_file(path, "remove")?;
            world.disk.remove(path);
            Ok(())
        })
    }

    fn sync_directory(&self, directory: &str) -> Result<()> {
        let mut world = self.world.lock();
        let full = world.disk.names.full(directory);
        match world.begin(Operation::SyncDirectory, "sync", &full)? {
            Manner::Plain | Manner::Flipped => {
                world.disk.names.check_directory(directory)?;
                world.disk.sync_directory(directory);
                Ok(())
            }
            Manner::PowerGoes => Err(world.turn_off("sync", &full)),
            Manner::Fails => {
                let World { disk, random, .. } = &mut *world;
                disk.sync_directory_failed(directory, random);
                Err(failed("sync", &full, Errno::IO))
            }
        }
    }

    fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        if mode == LockMode::Exclusive && !self.exists("lock")? {
            self.create("lock")?;
        }
        let world = self.world.lock();
        world.check_power("lock", "lock")?;
        world.disk.names.find_file("lock", "lock")?;
        self.locks.take(mode, world.disk.names.full(""))
    }

    fn space_bytes(&self) -> Result<(u64, u64)> {
        let world = self.world.lock();
        world.check_power("look at", "")?;
        let all = world.capacity_bytes.unwrap_or(SPACE_BYTES);
        Ok((all.saturating_sub(world.disk.used_bytes()), all))
    }

    fn moment(&self) -> Moment {
        self.world.lock().moment
    }
}

impl FaultFile {
    /// An operation that changes the file; `fail` does what is left of one that fails.
    fn change(
        &self,
        operation: Operation,
        action: &'static str,
        apply: impl FnOnce(&mut World, bool) -> Result<()>,
        fail: impl FnOnce(&mut World),
    ) -> Result<()> {
        if !self.writable {
            return Err(failed(action, &self.path, Errno::BADF));
        }
        let mut world = self.world.lock();
        match world.begin(operation, action, &self.path)? {
            Manner::Plain => apply(&mut world, false),
            Manner::Flipped => apply(&mut world, true),
            Manner::PowerGoes => {
                let _ = apply(&mut world, false);
                Err(world.turn_off(action, &self.path))
            }
            Manner::Fails => {
                fail(&mut world);
                Err(failed(action, &self.path, Errno::IO))
            }
        }
    }
}

impl File for FaultFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()> {
        let mut world = self.world.lock();
        let manner = world.begin(Operation::Read, "read", &self.path)?;
        let end_bytes = offset_bytes + buffer.len() as u64;
        match manner {
            Manner::PowerGoes => return Err(world.turn_off("read", &self.path)),
            Manner::Fails => return Err(failed("read", &self.path, Errno::IO)),
            Manner::Plain | Manner::Flipped => {}
        }
        if !world.disk.contents(self.inode).read(buffer, offset_bytes) {
            return Err(StoreError::ShortRead { path: self.path.clone(), end_bytes });
        }
        if manner == Manner::Flipped {
            flip_some_bit(buffer, &mut world.random);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let range = (offset_bytes, bytes.len() as u64);
        let apply = |world: &mut World, flipped: bool| {
            world.check_room(self.inode, range, "write", &self.path)?;
            let mut bytes = std::borrow::Cow::Borrowed(bytes);
            if flipped {
                flip_some_bit(bytes.to_mut(), &mut world.random);
            }
            world.disk.write(self.inode, &bytes, offset_bytes);
            Ok(())
        };
        let fail = |world: &mut World| {
            let World { disk, random, .. } = world;
            disk.write_some(self.inode, bytes, offset_bytes, random);
        };
        self.change(Operation::Write, "write", apply, fail)
    }

    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        if length_bytes == 0 {
            return Ok(());
        }
        let apply = |world: &mut World, _| {
            let range = (offset_bytes, length_bytes);
            world.check_room(self.inode, range, "allocate", &self.path)?;
            world.disk.allocate(self.inode, offset_bytes, length_bytes);
            Ok(())
        };
        self.change(Operation::Allocate, "allocate", apply, |_| {})
    }

    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool> {
        let apply = |world: &mut World, _| {
            world.disk.punch(self.inode, offset_bytes, length_bytes);
            Ok(())
        };
        self.change(Operation::Punch, "give back room of", apply, |_| {})?;
        Ok(true)
    }

    fn sync(&self) -> Result<()> {
        let mut world = self.world.lock();
        match world.begin(Operation::Sync, "sync", &self.path)? {
            Manner::Plain | Manner::Flipped => {
                world.disk.sync(self.inode);
                Ok(())
            }
            Manner::PowerGoes => Err(world.turn_off("sync", &self.path)),
            Manner::Fails => {
                let World { disk, random, .. } = &mut *world;
                disk.sync_failed(self.inode, random);
                Err(failed("sync", &self.path, Errno::IO))
            }
        }
    }

    /// A hint: what it would do, a power loss does at random.
    fn start_writeback(&self, _offset_bytes: u64, _length_bytes: u64) {}

    fn set_length(&self, length_bytes: u64) -> Result<()> {
        let apply = |world: &mut World, _| {
            world.check_room(self.inode, (length_bytes, 0), "cut", &self.path)?;
            world.disk.set_length(self.inode, length_bytes);
            Ok(())
        };
        self.change(Operation::SetLength, "cut", apply, |_| {})
    }

    fn length_bytes(&self) -> Result<u64> {
        let world = self.world.lock();
        world.check_power("look at", &self.path)?;
        Ok(world.disk.contents(self.inode).length_bytes())
    }

    fn allocated_bytes(&self) -> Result<u64> {
        let world = self.world.lock();
        world.check_power("look at", &self.path)?;
        Ok(world.disk.contents(self.inode).room_bytes())
    }
}
