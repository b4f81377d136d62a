//! A disk behind a volatile cache: what everybody sees now, what is durable, and the changes
//! between the two.
//!
//! Pure. Invariants: what is durable is what was synced, and nothing else, until the power goes;
//! then any subset of the changes may have got there as well, each write by itself, torn at
//! sectors, each name by itself. A rename or an exchange is one change: no file ever has two names
//! by it, nor none.

use super::random::Random;
use crate::memory::{Contents, Entry, Names, PAGE_BYTES, parent};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What a medium writes whole.
const SECTOR_BYTES: usize = 512;

/// A file, whatever its name.
pub(super) type Inode = u64;

/// See the head of this file.
pub(super) struct Disk {
    pub(super) names: Names<Inode>,
    durable_names: Names<Inode>,
    name_changes: Vec<NameChange>,
    files: BTreeMap<Inode, DiskFile>,
    next: Inode,
}

#[derive(Default)]
struct DiskFile {
    seen: Contents,
    durable: Contents,
    changes: Vec<Change>,
}

/// A change of a file that no sync has covered.
#[derive(Clone)]
enum Change {
    Write {
        offset_bytes: u64,
        bytes: Arc<[u8]>,
    },
    /// The file has room for a range: its length may get there before or without its bytes.
    Allocate {
        offset_bytes: u64,
        length_bytes: u64,
    },
    /// Pages of the range are given back: each may be, or not.
    Punch {
        offset_bytes: u64,
        length_bytes: u64,
    },
    SetLength(u64),
}

/// A change of a name that no sync of its directory has covered.
#[derive(Clone)]
enum NameChange {
    Directory {
        path: String,
    },
    Link {
        path: String,
        inode: Inode,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        inode: Inode,
    },
    /// `inodes` as they were before.
    Exchange {
        one: String,
        other: String,
        inodes: (Inode, Inode),
    },
}

impl NameChange {
    /// The name it changes; for a rename the new one, so that it counts to the directory that the
    /// file moves into.
    fn path(&self) -> &str {
        match self {
            NameChange::Directory { path }
            | NameChange::Link { path, .. }
            | NameChange::Unlink { path }
            | NameChange::Rename { to: path, .. }
            | NameChange::Exchange { other: path, .. } => path,
        }
    }

    /// The other name it changes.
    fn path_before(&self) -> Option<&str> {
        match self {
            NameChange::Rename { from: path, .. } | NameChange::Exchange { one: path, .. } => {
                Some(path)
            }
            NameChange::Directory { .. } | NameChange::Link { .. } | NameChange::Unlink { .. } => {
                None
            }
        }
    }

    fn apply(&self, names: &mut Names<Inode>) {
        match self {
            NameChange::Directory { path } => names.insert(path, Entry::Directory),
            NameChange::Link { path, inode } => names.insert(path, Entry::File(*inode)),
            NameChange::Unlink { path } => names.remove(path),
            NameChange::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to, Entry::File(*inode));
            }
            NameChange::Exchange { one, other, inodes } => {
                names.insert(one, Entry::File(inodes.1));
                names.insert(other, Entry::File(inodes.0));
            }
        }
    }
}

/// Which of `changes` get to the medium, where `wanted` do: those, and what happened to the same
/// names before. So each name is by itself at some point of its history, and no file is lost
/// because its name was given to another before its own move got there.
fn settled(changes: &[NameChange], mut wanted: impl FnMut(&NameChange) -> bool) -> Vec<bool> {
    let mut needed: HashSet<&str> = HashSet::new();
    let mut settled = vec![false; changes.len()];
    for (change, settles) in changes.iter().zip(&mut settled).rev() {
        let mut paths = std::iter::once(change.path()).chain(change.path_before());
        *settles = wanted(change) || paths.any(|path| needed.contains(path));
        if *settles {
            needed.extend(std::iter::once(change.path()).chain(change.path_before()));
        }
    }
    settled
}

/// What of the unsynced changes survives a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Only what was synced.
    Nothing,
    /// All of it, as after a kill of the process.
    Everything,
    /// A subset that this seed says; sectors of a write, too.
    Random(u64),
}

/// `Kept`, at work.
enum Fate {
    Same(bool),
    Drawn { random: Random, changes_of_8: u64, names_of_8: u64, torn_of_8: u64 },
}

impl Fate {
    fn new(kept: Kept) -> Self {
        match kept {
            Kept::Nothing => Fate::Same(false),
            Kept::Everything => Fate::Same(true),
            Kept::Random(seed) => {
                let mut random = Random(seed);
                // Nearly nothing and nearly everything are as likely as half: a single write that
                // is missing, or there, is what finds most.
                let changes_of_8 = random.pick(&[1, 4, 7]);
                let names_of_8 = random.pick(&[0, 1, 4, 7, 8]);
                let torn_of_8 = random.pick(&[0, 1, 4]);
                Fate::Drawn { random, changes_of_8, names_of_8, torn_of_8 }
            }
        }
    }

    fn keeps_name(&mut self) -> bool {
        match self {
            Fate::Same(kept) => *kept,
            Fate::Drawn { random, names_of_8, .. } => random.below(8) < *names_of_8,
        }
    }

    fn apply(&mut self, change: &Change, contents: &mut Contents) {
        match self {
            Fate::Same(false) => {}
            Fate::Same(true) => change.apply(contents),
            Fate::Drawn { random, changes_of_8, torn_of_8, .. } => {
                if random.below(8) < *torn_of_8 {
                    change.apply_torn(contents, random);
                } else if random.below(8) < *changes_of_8 {
                    change.apply(contents);
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, contents: &mut Contents) {
        match self {
            Change::Write { offset_bytes, bytes } => contents.write(bytes, *offset_bytes),
            Change::Allocate { offset_bytes, length_bytes } => {
                contents.allocate(*offset_bytes, *length_bytes);
            }
            Change::Punch { offset_bytes, length_bytes } => {
                contents.punch(*offset_bytes, *length_bytes);
            }
            Change::SetLength(length_bytes) => contents.set_length(*length_bytes),
        }
    }

    /// Some sectors of a write, some pages of a punch; anything else is done or not.
    fn apply_torn(&self, contents: &mut Contents, random: &mut Random) {
        if let Change::Punch { offset_bytes, length_bytes } = self {
            let page = PAGE_BYTES as u64;
            for at in (*offset_bytes..offset_bytes + length_bytes).step_by(PAGE_BYTES) {
                if random.below(2) == 0 {
                    contents.punch(at, page.min(offset_bytes + length_bytes - at));
                }
            }
            return;
        }
        let Change::Write { offset_bytes, bytes } = self else {
            if random.below(2) == 0 {
                self.apply(contents);
            }
            return;
        };
        for part in sectors(*offset_bytes, bytes.len()) {
            if random.below(2) == 0 {
                contents.write(&bytes[part.clone()], *offset_bytes + part.start as u64);
            }
        }
    }
}

/// The parts of a write that lie in one sector each.
fn sectors(offset_bytes: u64, length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let sector = SECTOR_BYTES as u64;
    let before = usize::try_from(offset_bytes % sector).expect("below a sector");
    let end = before + length;
    (0..end.div_ceil(SECTOR_BYTES)).map(move |index| {
        let (from, to) = (index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
        from.max(before) - before..to.min(end) - before
    })
}

impl Disk {
    pub(super) fn new(root: &str) -> Self {
        Disk {
            names: Names::new(root),
            durable_names: Names::new(root),
            name_changes: Vec::new(),
            files: BTreeMap::new(),
            next: 1,
        }
    }

    pub(super) fn contents(&self, inode: Inode) -> &Contents {
        &self.file(inode).seen
    }

    fn file(&self, inode: Inode) -> &DiskFile {
        self.files.get(&inode).expect("files are kept as long as the disk")
    }

    fn file_mut(&mut self, inode: Inode) -> &mut DiskFile {
        self.files.get_mut(&inode).expect("files are kept as long as the disk")
    }

    /// What the files that have a name take.
    pub(super) fn used_bytes(&self) -> u64 {
        self.names.files().map(|inode| self.contents(*inode).room_bytes()).sum()
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    pub(super) fn create(&mut self, path: &str) -> Inode {
        let inode = self.next;
        self.next += 1;
        self.files.insert(inode, DiskFile::default());
        self.change_names(NameChange::Link { path: path.to_string(), inode });
        inode
    }

    pub(super) fn create_directory(&mut self, path: &str) {
        self.change_names(NameChange::Directory { path: path.to_string() });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, inode: Inode) {
        let (from, to) = (from.to_string(), to.to_string());
        self.change_names(NameChange::Rename { from, to, inode });
    }

    pub(super) fn exchange(&mut self, one: &str, other: &str, inodes: (Inode, Inode)) {
        let (one, other) = (one.to_string(), other.to_string());
        self.change_names(NameChange::Exchange { one, other, inodes });
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.change_names(NameChange::Unlink { path: path.to_string() });
    }

    fn change(&mut self, inode: Inode, change: Change) {
        let file = self.file_mut(inode);
        change.apply(&mut file.seen);
        file.changes.push(change);
    }

    pub(super) fn write(&mut self, inode: Inode, bytes: &[u8], offset_bytes: u64) {
        let end = offset_bytes + bytes.len() as u64;
        if self.contents(inode).length_bytes() < end {
            self.allocate(inode, offset_bytes, bytes.len() as u64);
        }
        self.change(inode, Change::Write { offset_bytes, bytes: bytes.into() });
    }

    /// A write that failed: any of its sectors were written.
    pub(super) fn write_some(
        &mut self,
        inode: Inode,
        bytes: &[u8],
        offset_bytes: u64,
        random: &mut Random,
    ) {
        for part in sectors(offset_bytes, bytes.len()) {
            if random.below(2) == 0 {
                self.write(inode, &bytes[part.clone()], offset_bytes + part.start as u64);
            }
        }
    }

    pub(super) fn allocate(&mut self, inode: Inode, offset_bytes: u64, length_bytes: u64) {
        self.change(inode, Change::Allocate { offset_bytes, length_bytes });
    }

    pub(super) fn punch(&mut self, inode: Inode, offset_bytes: u64, length_bytes: u64) {
        self.change(inode, Change::Punch { offset_bytes, length_bytes });
    }

    pub(super) fn set_length(&mut self, inode: Inode, length_bytes: u64) {
        self.change(inode, Change::SetLength(length_bytes));
    }

    pub(super) fn sync(&mut self, inode: Inode) {
        let file = self.file_mut(inode);
        for change in std::mem::take(&mut file.changes) {
            change.apply(&mut file.durable);
        }
    }

    /// What a failed fsync does on Linux: some pages got there, all are clean from now on. They are
    /// still seen, but no later sync will write them.
    pub(super) fn sync_failed(&mut self, inode: Inode, random: &mut Random) {
        let mut fate = Fate::new(Kept::Random(random.next()));
        let file = self.file_mut(inode);
        for change in std::mem::take(&mut file.changes) {
            fate.apply(&change, &mut file.durable);
        }
    }

    pub(super) fn sync_directory(&mut self, directory: &str) {
        self.settle_names(|change| parent(change.path()) == directory);
    }

    /// Names go through a journal, which keeps them dirty: a later sync can still make them
    /// durable.
    pub(super) fn sync_directory_failed(&mut self, directory: &str, random: &mut Random) {
        self.settle_names(|change| parent(change.path()) == directory && random.below(2) == 0);
    }

    fn settle_names(&mut self, wanted: impl FnMut(&NameChange) -> bool) {
        let settled = settled(&self.name_changes, wanted);
        let changes = std::mem::take(&mut self.name_changes);
        for (change, settles) in changes.into_iter().zip(settled) {
            if settles {
                change.apply(&mut self.durable_names);
            } else {
                self.name_changes.push(change);
            }
        }
    }

    /// Damage a bit, in the cache and on the medium.
    pub(super) fn flip(&mut self, inode: Inode, offset_bytes: u64, bit: u32) {
        let file = self.file_mut(inode);
        for contents in [&mut file.seen, &mut file.durable] {
            let mut byte = [0];
            if contents.read(&mut byte, offset_bytes) {
                contents.write(&[byte[0] ^ (1 << bit)], offset_bytes);
            }
        }
    }

    /// The disk after a power loss now.
    pub(super) fn after_power_loss(&self, kept: Kept) -> Disk {
        let mut fate = Fate::new(kept);
        let mut names = self.durable_names.clone();
        let settled = settled(&self.name_changes, |_| fate.keeps_name());
        for (change, settles) in self.name_changes.iter().zip(settled) {
            if settles {
                change.apply(&mut names);
            }
        }
        drop_unreachable(&mut names);
        let mut files = BTreeMap::new();
        for inode in names.files() {
            let file = self.file(*inode);
            let mut contents = file.durable.clone();
            for change in &file.changes {
                fate.apply(change, &mut contents);
            }
            let (seen, durable) = (contents.clone(), contents);
            files.insert(*inode, DiskFile { seen, durable, changes: Vec::new() });
        }
        let (durable_names, name_changes) = (names.clone(), Vec::new());
        Disk { names, durable_names, name_changes, files, next: self.next }
    }
}

/// What lies in a directory that is not there is not there either.
fn drop_unreachable(names: &mut Names<Inode>) {
    let mut directories: HashSet<String> = HashSet::from([String::new()]);
    // Sorted: a directory comes before what is in it.
    for (path, entry) in names.entries() {
        if *entry == Entry::Directory && directories.contains(parent(path)) {
            directories.insert(path.clone());
        }
    }
    names.retain(|path, _| directories.contains(parent(path)));
}
