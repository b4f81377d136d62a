//! The two superblock slots: read at opening, written for each epoch and at a clean close.
//!
//! Invariant: the slot that is written is never the one that holds the newest commit.

use crate::error::{LogError, Result};
use crate::format::segment::LogEnd;
use crate::format::superblock::{Commit, LockTerms, Root};
use crate::log::Log;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, SegmentId};
use ramet_store::Store;

const PATH: &str = "superblock";

/// What the slots hold.
pub(crate) struct Slots {
    /// The newest commit.
    pub(crate) newest: Commit,
    /// The other one, where it verifies.
    pub(crate) older: Option<Commit>,
    newest_page: Vec<u8>,
    newest_slot: u64,
    other_valid: bool,
}

/// Write both slots of a new pool.
pub(crate) fn create(store: &dyn Store, commit: &Commit, seed: u64) -> Result<()> {
    let file = if store.exists(PATH)? { store.open(PATH, true)? } else { store.create(PATH)? };
    let page = commit.encode(seed);
    file.allocate(0, 2 * BLOCK_BYTES_U64)?;
    file.write_at(&page, 0)?;
    file.write_at(&page, BLOCK_BYTES_U64)?;
    file.sync()?;
    Ok(())
}

/// Read both slots.
pub(crate) fn read(store: &dyn Store, seed: u64) -> Result<Slots> {
    let foundation = |reason: &str| LogError::Foundation { file: PATH, reason: reason.into() };
    if !store.exists(PATH)? {
        return Err(foundation("it is missing"));
    }
    let file = store.open(PATH, false)?;
    let mut pages = [vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]];
    for (slot, page) in (0u64..).zip(&mut pages) {
        match file.read_at(page, slot * BLOCK_BYTES_U64) {
            Ok(()) | Err(ramet_store::StoreError::ShortRead { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    let (first, second) = (Commit::decode(&pages[0], seed), Commit::decode(&pages[1], seed));
    let other_valid = first.is_some() && second.is_some();
    let (newest_slot, newest, older) = match (first, second) {
        (Some(first), Some(second)) if second.number > first.number => (1, second, Some(first)),
        (Some(first), second) => (0, first, second),
        (None, Some(second)) => (1, second, None),
        (None, None) => return Err(foundation("neither of its slots verifies")),
    };
    let [first, second] = pages;
    let newest_page = if newest_slot == 0 { first } else { second };
    Ok(Slots { newest, older, newest_page, newest_slot, other_valid })
}

impl Slots {
    /// Go on from the older commit's checkpoint: nothing that came after it was given back as long
    /// as a slot named it, so the log has the rest. Whoever calls has seen that there is one.
    pub(crate) fn fall_back(&mut self) {
        let Some(older) = self.older.take() else { return };
        // The next commit goes over the one that cannot be used, not over the one that is.
        let skipped = u64::from((self.newest.number + 1) % 2 != self.newest_slot);
        self.newest = Commit {
            number: self.newest.number + skipped,
            cut: older.cut,
            roots: older.roots,
            table_file: older.table_file,
            ..self.newest.clone()
        };
    }

    /// Make the newer slot durable as it was read; then give an invalid one a copy of it. (A valid
    /// older one was durable before the newer was written.)
    pub(crate) fn make_durable(&self, store: &dyn Store) -> Result<()> {
        let file = store.open(PATH, true)?;
        file.write_at(&self.newest_page, self.newest_slot * BLOCK_BYTES_U64)?;
        file.sync()?;
        if !self.other_valid {
            file.write_at(&self.newest_page, (1 - self.newest_slot) * BLOCK_BYTES_U64)?;
            file.sync()?;
        }
        Ok(())
    }
}

impl Log {
    /// Write the older slot: this epoch, this incarnation, what is durable now.
    ///
    /// # Durability
    /// Durable on return.
    pub(crate) fn commit_superblock(&self, epoch: u64) -> Result<()> {
        self.write_commit(&mut |next| next.epoch = epoch)
    }

    /// Write the older slot: a checkpoint, whose nodes are durable.
    ///
    /// # Errors
    /// `Poisoned` where the write or the sync fails.
    ///
    /// # Durability
    /// Durable on return.
    pub fn commit_checkpoint(
        &self,
        cut: LogEnd,
        roots: &[Root],
        table_file: Option<SegmentId>,
    ) -> Result<()> {
        assert!(cut.sequence <= self.durable(), "the log is synced up to the cut first");
        self.write_commit(&mut |next| {
            next.cut = cut;
            next.roots = roots.to_vec();
            next.table_file = table_file.map_or(0, |id| id.0);
        })
    }

    /// Write the newest checkpoint to the other slot too: from then on nothing that only an older
    /// one reaches is needed any more.
    ///
    /// # Errors
    /// As `commit_checkpoint`.
    ///
    /// # Durability
    /// As `commit_checkpoint`.
    pub fn commit_again(&self) -> Result<()> {
        self.write_commit(&mut |_| {})
    }

    /// Write the older slot: bytes that the pool may take; 0: no limit. The store holds to it.
    ///
    /// # Errors
    /// As `commit_checkpoint`.
    ///
    /// # Durability
    /// As `commit_checkpoint`.
    pub fn commit_limit(&self, limit_bytes: u64) -> Result<()> {
        self.write_commit(&mut |next| next.limit_bytes = limit_bytes)
    }

    /// Write the older slot: other terms for locks.
    ///
    /// # Errors
    /// As `commit_checkpoint`.
    ///
    /// # Durability
    /// As `commit_checkpoint`.
    pub fn commit_lock_terms(&self, terms: &LockTerms) -> Result<()> {
        self.write_commit(&mut |next| next.lock_terms = *terms)
    }

    /// Write the older slot: seconds for which deleted objects can be restored; 0: not at all.
    ///
    /// # Errors
    /// As `commit_checkpoint`.
    ///
    /// # Durability
    /// As `commit_checkpoint`.
    pub fn commit_trash(&self, seconds: u64) -> Result<()> {
        self.write_commit(&mut |next| next.trash_seconds = seconds)
    }

    /// Write the older slot, where it would say more than before of what is durable: for a log that
    /// is closed without a checkpoint, so that damage at its end is not taken for a torn tail.
    ///
    /// # Errors
    /// As `commit_checkpoint`.
    ///
    /// # Durability
    /// As `commit_checkpoint`.
    pub fn note_durable(&self) -> Result<()> {
        let noted = self.superblock.lock().durable;
        if noted < self.durable() { self.write_commit(&mut |_| {}) } else { Ok(()) }
    }

    pub(crate) fn write_commit(&self, change: &mut dyn FnMut(&mut Commit)) -> Result<()> {
        let mut current = self.superblock.lock();
        self.check_writable()?;
        let (_, incarnation) = self.identity();
        let mut next = Commit {
            number: current.number + 1,
            number_before: current.number,
            incarnation,
            durable: self.durable(),
            lock_clock: self.lock_clock.reading(self.store().moment()),
            ..current.clone()
        };
        change(&mut next);
        let page = next.encode(self.seed());
        let slot = next.number % 2;
        let file = self.store().open(PATH, true)?;
        let written = file.write_at(&page, slot * BLOCK_BYTES_U64).and_then(|()| file.sync());
        if let Err(error) = written {
            return Err(self.poison(&error.to_string()));
        }
        *self.lock_terms.write() = next.lock_terms;
        *current = next;
        Ok(())
    }
}
