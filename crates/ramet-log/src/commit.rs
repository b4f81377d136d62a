//! From the gate to the medium: the write-out, group commit, sealing, and what is durable.
//!
//! Invariants: jobs are written in log order; a flush syncs every file that holds bytes since the
//! last one; after a failed write or sync the log is poisoned and nothing is retried.

use crate::error::Result;
use crate::format::footer::{self, JournalBatch};
use crate::log::Log;
use crate::segment::Segment;
use crate::staging::Chunk;
use crate::tail::Job;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, Sequence};
use parking_lot::MutexGuard;
use ramet_store::{File, StoreError};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Complete slots that wait in memory before a writer starts writing them out.
const WRITE_OUT_BYTES: u64 = 1 << 20;
/// Complete slots that may wait before writers have to wait for the write-out.
const STAGED_BYTES_MAX: u64 = 8 << 20;
/// A range this long is handed to the medium at once, so that a flush need not wait for a flood.
const WRITEBACK_BYTES: u64 = 256 << 10;

/// A commit of at most this much is small,
const SMALL_BYTES: u64 = 64 << 10;
/// and after so many of them in a row zeros are written ahead of the log.
const SMALL_COMMITS_MIN: u32 = 8;
/// So many slots at a time, 1 MiB,
const AHEAD_SLOTS: u32 = 256;
/// or this part of a small segment.
const AHEAD_PART: u32 = 8;
static ZEROS: [u8; AHEAD_SLOTS as usize * BLOCK_BYTES] = [0; AHEAD_SLOTS as usize * BLOCK_BYTES];

/// What the write-out remembers. Locked while jobs are written.
#[derive(Default)]
pub(crate) struct WriteOut {
    /// Files with bytes that no sync has covered yet, as they were written through: another
    /// descriptor would not be told of a failure.
    dirty: Vec<Arc<dyn File>>,
    /// Bytes written since the last commit.
    uncommitted_bytes: u64,
    small_commits_count: u32,
    /// A commit comes soon: the medium may begin.
    is_urgent: bool,
    end: Option<End>,
}

/// How far the file that is appended to was written.
struct End {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    /// Slots below this hold what they will hold,
    slot: u32,
    /// and slots below this were written, if only with zeros.
    ahead_slot: u32,
}

/// Who syncs. One thread syncs for all that wait.
#[derive(Default)]
pub(crate) struct CommitState {
    syncing: bool,
}

/// Neighboring ranges of one chunk, handed to the file at once.
struct Run {
    segment: Arc<Segment>,
    chunk: Arc<Chunk>,
    first_slot: u32,
    end_slot: u32,
}

impl Log {
    /// Make everything up to `sequence` durable. Concurrent calls share one sync.
    ///
    /// # Errors
    /// `Poisoned` where a write or sync fails, now or before; `Closed`.
    ///
    /// # Durability
    /// On return every batch up to `sequence` survives a power loss.
    pub fn commit(&self, sequence: Sequence) -> Result<()> {
        loop {
            if self.durable() >= sequence {
                return Ok(());
            }
            self.check_writable()?;
            if self.lead(sequence) {
                self.sync_as_leader()?;
            }
        }
    }

    /// Become the one who syncs; false where another's sync, waited for, may have been enough.
    fn lead(&self, sequence: Sequence) -> bool {
        let mut state = self.commit.lock();
        if self.durable() >= sequence {
            return false;
        }
        if state.syncing {
            drop(self.commit_done.wait(state));
            return false;
        }
        state.syncing = true;
        true
    }

    fn sync_as_leader(&self) -> Result<()> {
        let result = self.sync_all();
        self.commit.lock().syncing = false;
        self.commit_done.notify_all();
        result
    }

    /// Make everything durable that was handed to files before the call, a footer too that no batch
    /// follows.
    pub(crate) fn sync_footers(&self) -> Result<()> {
        if let Some(reason) = self.poisoned() {
            return Err(self.poison(reason));
        }
        // Whoever syncs now may have begun before the last footer was written.
        let mut state = self.commit.lock();
        while state.syncing {
            state = self.commit_done.wait(state);
        }
        state.syncing = true;
        drop(state);
        self.sync_as_leader()
    }

    /// Make everything that was appended durable.
    ///
    /// # Errors
    /// As `commit`.
    ///
    /// # Durability
    /// As `commit`.
    pub fn flush(&self) -> Result<()> {
        self.commit(self.appended())
    }

    /// Have the medium begin with what was appended, and wait for nothing: a commit comes soon.
    ///
    /// # Errors
    /// `Poisoned` where a write fails.
    pub fn begin_commit(&self) -> Result<()> {
        self.gate.lock().close_batch(self);
        // Whoever writes out now, or commits, does it for this one too.
        let Some(mut out) = self.write_out.try_lock() else { return Ok(()) };
        out.is_urgent = true;
        let written = self.write_jobs(&mut out);
        out.is_urgent = false;
        written
    }

    fn sync_all(&self) -> Result<()> {
        let (target, wants_room) = {
            let mut held = self.gate.lock();
            held.close_batch(self);
            (held.last_sequence(), held.wants_room())
        };
        if wants_room {
            self.bell.ring();
        }
        let mut out = self.write_out.lock();
        self.write_jobs(&mut out)?;
        self.write_ahead(&mut out)?;
        let dirty = std::mem::take(&mut out.dirty);
        drop(out);
        for file in dirty {
            if let Err(error) = file.sync() {
                return Err(self.poison(&error.to_string()));
            }
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        }
        self.set_durable(target);
        Ok(())
    }

    /// Where small commits follow each other, write zeros where the next ones will come to lie.
    ///
    /// To sync bytes in room that was only allocated, a file system has to note that they are
    /// written; to sync what overwrites other bytes it does not, and is half as fast again.
    fn write_ahead(&self, out: &mut WriteOut) -> Result<()> {
        let bytes = std::mem::take(&mut out.uncommitted_bytes);
        let is_small = bytes <= SMALL_BYTES;
        out.small_commits_count = if is_small { out.small_commits_count + 1 } else { 0 };
        let Some(end) = out.end.as_mut() else { return Ok(()) };
        if out.small_commits_count < SMALL_COMMITS_MIN || end.slot < end.ahead_slot {
            return Ok(());
        }
        let allocated = end.segment.allocated.load(Ordering::Acquire);
        let count = AHEAD_SLOTS.min(end.segment.slots_count / AHEAD_PART);
        let to = end.slot.saturating_add(count).min(allocated);
        if to <= end.slot {
            return Ok(());
        }
        // Jobs are written in log order: nothing lies there yet.
        let zeros = &ZEROS[..(to - end.slot) as usize * BLOCK_BYTES];
        if let Err(error) = end.file.write_at(zeros, u64::from(end.slot) * BLOCK_BYTES_U64) {
            return Err(self.poison(&error.to_string()));
        }
        end.ahead_slot = to;
        Ok(())
    }

    pub(crate) fn push_job(&self, job: Job) {
        if let Job::Range { first_slot, end_slot, .. } = &job {
            let bytes = u64::from(end_slot - first_slot) * BLOCK_BYTES_U64;
            self.staged_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.jobs.lock().push_back(job);
    }

    /// Called by writers after the gate: write out what is complete, wait where too much is.
    ///
    /// # Errors
    /// `Poisoned` where a write fails.
    pub fn relieve(&self) -> Result<()> {
        let staged = self.staged_bytes.load(Ordering::Relaxed);
        if staged < WRITE_OUT_BYTES {
            return Ok(());
        }
        if staged > STAGED_BYTES_MAX {
            let mut out = self.write_out.lock();
            return self.write_jobs(&mut out);
        }
        // A file system may take long, and this writer has nothing to wait for.
        if self.bell.ring() {
            return Ok(());
        }
        match self.write_out.try_lock() {
            Some(mut out) => self.write_jobs(&mut out),
            None => Ok(()),
        }
    }

    /// Hand all complete slots to the files, without a sync.
    ///
    /// # Errors
    /// `Poisoned` where a write fails, now or before: what was taken and not written is gone, and
    /// whoever comes after finds nothing to write and must not call it durable.
    pub(crate) fn write_jobs(&self, out: &mut MutexGuard<'_, WriteOut>) -> Result<()> {
        if let Some(reason) = self.poisoned() {
            return Err(self.poison(reason));
        }
        self.write_all_jobs(out).map_err(|error| self.poison(&error.to_string()))
    }

    fn write_all_jobs(&self, out: &mut MutexGuard<'_, WriteOut>) -> Result<()> {
        let mut run: Option<Run> = None;
        loop {
            let job = self.jobs.lock().pop_front();
            match (job, &mut run) {
                (Some(Job::Range { chunk, first_slot, end_slot, .. }), Some(run))
                    if Arc::ptr_eq(&chunk, &run.chunk) && run.end_slot == first_slot =>
                {
                    run.end_slot = end_slot;
                }
                (Some(Job::Range { segment, chunk, first_slot, end_slot }), _) => {
                    self.finish_run(
                        out,
                        run.replace(Run { segment, chunk, first_slot, end_slot }),
                    )?;
                }
                (Some(Job::Seal { segment, slots_count, journal }), _) => {
                    self.finish_run(out, run.take())?;
                    self.add_footer(out, &segment, slots_count, &journal.batches())?;
                }
                (None, _) => return self.finish_run(out, run),
            }
        }
    }

    fn finish_run(&self, out: &mut MutexGuard<'_, WriteOut>, run: Option<Run>) -> Result<()> {
        let Some(Run { segment, chunk, first_slot, end_slot }) = run else {
            return Ok(());
        };
        let file = segment.file(self.store())?;
        let offset = u64::from(first_slot) * BLOCK_BYTES_U64;
        let length = u64::from(end_slot - first_slot) * BLOCK_BYTES_U64;
        // SAFETY: the job was queued after the slots were filled and the batch closed: they are
        // published.
        let bytes = unsafe { chunk.bytes(first_slot, end_slot - first_slot) };
        if let Err(error) = file.write_at(bytes, offset) {
            return Err(self.poison(&error.to_string()));
        }
        if length >= WRITEBACK_BYTES || out.is_urgent {
            file.start_writeback(offset, length);
        }
        self.staged_bytes.fetch_sub(length, Ordering::Relaxed);
        self.counters.written_bytes.fetch_add(length, Ordering::Relaxed);
        drop(chunk);
        for done in segment.set_written(end_slot, false) {
            self.chunks.put_back(done);
        }
        out.uncommitted_bytes += length;
        mark_dirty(out, file.clone());
        out.note_end(segment, file, end_slot);
        Ok(())
    }

    /// Add the footer. Where there is no room for it the segment stays unsealed: it is then read
    /// batch by batch.
    fn add_footer(
        &self,
        out: &mut MutexGuard<'_, WriteOut>,
        segment: &Arc<Segment>,
        slots_count: u32,
        journal: &[JournalBatch],
    ) -> Result<()> {
        for done in segment.set_written(slots_count, true) {
            self.chunks.put_back(done);
        }
        out.end = None;
        let file = segment.file(self.store())?;
        let checksums = segment.checksums(slots_count);
        let bytes = footer::encode(segment.nonce, segment.id, &checksums, journal, self.durable());
        let start = u64::from(slots_count) * BLOCK_BYTES_U64;
        let length = bytes.len() as u64;
        match file.allocate(start, length) {
            Ok(()) => {}
            Err(StoreError::Full { .. }) => {
                segment.set_ended(slots_count, false);
                return Ok(());
            }
            Err(error) => return Err(self.poison(&error.to_string())),
        }
        let written = file.write_at(&bytes, start).and_then(|()| file.set_length(start + length));
        if let Err(error) = written {
            return Err(self.poison(&error.to_string()));
        }
        segment.set_ended(slots_count, true);
        self.counters.sealed.fetch_add(1, Ordering::Relaxed);
        mark_dirty(out, file);
        self.note_open_file(segment);
        Ok(())
    }
}

impl WriteOut {
    fn note_end(&mut self, segment: Arc<Segment>, file: Arc<dyn File>, slot: u32) {
        match &mut self.end {
            Some(end) if end.segment.id == segment.id => {
                end.slot = slot;
            }
            end => {
                let ahead_slot = segment.filled.load(Ordering::Acquire).max(slot);
                *end = Some(End { segment, file, slot, ahead_slot });
            }
        }
    }
}

fn mark_dirty(out: &mut MutexGuard<'_, WriteOut>, file: Arc<dyn File>) {
    if !out.dirty.iter().any(|known| Arc::ptr_eq(known, &file)) {
        out.dirty.push(file);
    }
}

#[cfg(test)]
mod tests;
