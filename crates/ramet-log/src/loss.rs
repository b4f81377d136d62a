//! A damaged log, opened with loss accepted: it ends at the last batch that can be followed, what
//! lies beyond is set aside, and a new stretch begins there.
//!
//! Calls the store. Invariants: no byte is removed, only moved or copied; what is beyond the end is
//! set aside before the end is named; until the end is named the pool is refused as before, or ends
//! at the same place. See docs/internals/format.md, "Accepting a loss".

use crate::chain::{Chain, checksums_of_batches};
use crate::error::{LogError, Result};
use crate::format::batch::{Entry, Kind};
use crate::format::footer::JournalBatch;
use crate::format::segment::LogEnd;
use crate::log::Log;
use crate::recovery::{Known, Opening};
use crate::replay::Source;
use crate::segment::{Segment, SegmentEntry, segment_path};
use crate::tail::blocks_of;
use crate::types::{BLOCK_BYTES_U64, SLOTS_MAX, SegmentId, Sequence};
use ramet_store::{Store, StoreError};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

/// Where lost parts of logs are kept, in a directory for each time.
pub const LOST_DIRECTORY: &str = "lost";
/// Beside such a directory, after its name: what whoever opens the pool next has to do.
pub const UNFINISHED: &str = ".unfinished";
/// Times that a loss can be accepted.
const LOSSES_MAX: u32 = 10_000;
/// Slots that a mark asks for.
const MARK_SLOTS: u32 = 4;
/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Kept beside what is set aside, from before the log looks as if it ended earlier.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// A text for people.
    pub report: String,
    /// See `UNFINISHED`.
    pub unfinished: Vec<u8>,
}

/// Gives what is to be kept; `None`: the loss is not to be accepted.
pub type Describe<'a> = dyn FnMut(&Loss) -> Option<Beside> + 'a;

/// How a loss is accepted.
pub struct Accept<'a, 'b> {
    /// See `Describe`.
    pub describe: &'a mut Describe<'b>,
    /// The log ends at this batch at the latest. Set where what comes after it cannot be applied:
    /// open once more then, from nothing.
    pub limit: &'a Cell<Option<Sequence>>,
}

/// A batch behind the end, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostBatch {
    /// Its number.
    pub sequence: Sequence,
    /// Where it is.
    pub segment: SegmentId,
    /// The slot of its header.
    pub slot: u32,
    /// What it did.
    pub entries: Vec<Entry>,
    /// Its record, where it has one that verifies.
    pub record: Option<Vec<u8>>,
}

/// What was lost.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// What is damaged.
    pub damage: String,
    /// The last batch that is kept.
    pub end: LogEnd,
    /// The last batch that was durable for certain.
    pub durable: Sequence,
    /// Batches behind the end, in their order, as far as their headers can be read.
    pub batches: Vec<LostBatch>,
    /// Segments up to the end whose file is missing: blocks in them cannot be read.
    pub missing: Vec<SegmentId>,
    /// All slots up to the end in which no block can be read.
    pub unreadable: Vec<(SegmentId, Range<u32>)>,
    /// Where the rest is kept; empty: there is none.
    pub directory: String,
    /// The files in it.
    pub files: Vec<String>,
    /// What goes with them.
    pub beside: Beside,
}

impl Opening<'_> {
    /// Decide where the log ends, given what reading it came to; nothing is written. `None`: there
    /// is nothing to accept.
    pub(crate) fn accept(
        &mut self,
        chain: &Chain,
        known: &Known,
        complete: Result<()>,
        read: Result<()>,
    ) -> Result<Option<Loss>> {
        let damage = match (&read, &complete) {
            // What was told of it is in part done: who calls begins anew, with a limit.
            (Err(_), _) if self.contradicts => return read.map(|()| None),
            (Err(error @ LogError::Damaged { .. }), _) | (Ok(()), Err(error)) => error.to_string(),
            (Ok(()), Ok(())) if known.from_older => "the newest checkpoint cannot be read".into(),
            (Ok(()), Ok(())) => return Ok(None),
            (Err(_), _) => return read.map(|()| None),
        };
        let mut loss = Loss {
            damage,
            end: self.end,
            durable: self.durable,
            missing: chain.missing().to_vec(),
            unreadable: chain.missing().iter().map(|id| (*id, 0..SLOTS_MAX)).collect(),
            ..Loss::default()
        };
        if read.is_err() {
            self.end_here(chain, known)?;
            loss.batches = self.lost_batches(chain)?;
            loss.unreadable.extend(self.unknown_slots(chain)?);
        }
        let last = loss.batches.last().map_or(self.end.sequence, |batch| batch.sequence);
        loss.durable = loss.durable.max(last);
        Ok(Some(loss))
    }

    /// The last segment that is kept.
    fn last_kept(&self) -> SegmentId {
        self.end.position.locator().segment()
    }

    /// Keep what is up to the end, and nothing else.
    fn end_here(&mut self, chain: &Chain, known: &Known) -> Result<()> {
        let (last, end) = (self.last_kept(), self.end.sequence);
        self.segments.retain(|id, _| *id <= last && end != Sequence(0));
        self.footer = self.footer.take().filter(|part| part.segment <= last);
        self.tail.retain(|part| part.segment <= last);
        for entry in known.segments.iter().filter(|entry| entry.id <= last) {
            // It was appended to at the cut, and could not be followed: its entry has the nonce.
            self.segments.entry(entry.id).or_insert_with(|| Arc::new(Segment::known(entry)));
        }
        if let Some(segment) = self.segments.get(&last).cloned() {
            self.end_inside(chain, &segment)?;
        }
        self.previous = self.segments.keys().max().copied();
        Ok(())
    }

    /// Say how much counts of the segment in which the log ends, where nothing else does, or its
    /// footer tells of more.
    fn end_inside(&mut self, chain: &Chain, segment: &Segment) -> Result<()> {
        let loaded = chain.load(self.store, segment.id)?;
        let end = self.end.sequence;
        let all = || loaded.batches.iter().chain(&loaded.beyond);
        let SegmentEntry { sealed, used, .. } = segment.entry();
        let tells_more = all().any(|batch| batch.sequence > end);
        if if sealed { !tells_more } else { used != 0 } {
            return Ok(());
        }
        let (slots_count, nonce) = (segment.slots_count, segment.nonce);
        let ended = Segment::known(&SegmentEntry::begun(segment.id, slots_count, nonce));
        let last = loaded.batches.iter().find(|batch| batch.sequence == end);
        ended.set_blocks(match last {
            Some(_) => blocks_of(loaded.batches.iter().filter(|batch| batch.sequence <= end)),
            None => SegmentEntry::NOT_COUNTED,
        });
        // The batch at the end cannot be read: all that may be its.
        let last = all().find(|batch| batch.sequence == end);
        let used = last.map_or(slots_count, |batch| batch.header_slot + batch.slots_count);
        ended.set_ended(used, false);
        self.segments.insert(segment.id, Arc::new(ended));
        Ok(())
    }

    /// Slots of the last segment whose batches' headers do not verify: blocks in them have no
    /// checksum.
    fn unknown_slots(&self, chain: &Chain) -> Result<Vec<(SegmentId, Range<u32>)>> {
        let last = self.last_kept();
        let Some(segment) = self.segments.get(&last) else { return Ok(Vec::new()) };
        let entry = segment.entry();
        if entry.sealed || chain.missing().contains(&last) {
            return Ok(Vec::new());
        }
        let file = self.store.open(&segment.path, false)?;
        let (_, unknown) = checksums_of_batches(&*file, last, entry.nonce, entry.used)?;
        Ok(unknown.into_iter().map(|slots| (last, slots)).collect())
    }

    /// Batches behind the end, as far as they can be read.
    fn lost_batches(&self, chain: &Chain) -> Result<Vec<LostBatch>> {
        let mut found = Vec::new();
        let last = self.last_kept();
        let ends = chain.ends();
        for id in chain.ids().filter(|id| *id >= last) {
            let loaded = chain.load(self.store, id)?;
            let discarded = |batch: &JournalBatch| {
                let at = id.slot(batch.header_slot).position();
                ends.iter().any(|(opens, by)| id < *by && at > opens.position)
            };
            let nonce = chain.header(id).map_or(0, |header| header.nonce);
            let source =
                Source { store: self.store, seed: self.descriptor.seed, segment: id, nonce };
            let all = loaded.batches.iter().chain(&loaded.beyond);
            for batch in all.filter(|batch| batch.sequence > self.end.sequence) {
                if discarded(batch) {
                    continue;
                }
                found.push(LostBatch {
                    sequence: batch.sequence,
                    segment: id,
                    slot: batch.header_slot,
                    entries: batch.entries.clone(),
                    record: record_of(&source, batch),
                });
            }
        }
        found.sort_by_key(|batch| (batch.sequence, batch.segment, batch.slot));
        Ok(found)
    }
}

fn record_of(source: &Source<'_>, batch: &JournalBatch) -> Option<Vec<u8>> {
    let entry = batch.entries.iter().find(|entry| entry.kind == Kind::Record)?;
    source.read_record(batch.header_slot, entry.first, entry.count).ok()
}

impl Log {
    /// Set aside what is behind the end, and begin a stretch that names it.
    pub(crate) fn begin_after_loss(
        &self,
        loss: &mut Loss,
        noted: Sequence,
        chain: &Chain,
    ) -> Result<()> {
        let epoch = self.room.lock().epoch;
        // The names that are about to go say which ids were used. What is durable stays as it was
        // noted: until all is set aside, the log must not look as if it ended here.
        self.write_commit(&mut |next| (next.epoch, next.durable) = (epoch, noted))?;
        for id in &loss.missing {
            // Its blocks stay lost; that it has a file says that somebody knows.
            match self.store().create(&segment_path(*id)) {
                Ok(_) => {}
                // A file of another pool has the name: nothing of it is read.
                Err(StoreError::Exists { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        self.set_aside(loss, chain)?;
        // With the name of the first segment of the new stretch those above are durable too.
        self.make_room(MARK_SLOTS, false)?;
        // The other slot too: each must say what is there.
        let epoch = self.room.lock().epoch;
        self.commit_superblock(epoch)?;
        // A batch behind the end, so that the next checkpoint has something to show.
        self.mark()
    }

    fn set_aside(&self, loss: &mut Loss, chain: &Chain) -> Result<()> {
        let store = self.store();
        let beyond: Vec<SegmentId> = {
            let known = self.segments.read();
            chain.ids().filter(|id| !known.contains_key(id)).collect()
        };
        store.create_directory(LOST_DIRECTORY)?;
        let free = (1..=LOSSES_MAX).map(|number| format!("{LOST_DIRECTORY}/{number}"));
        for path in free {
            if !store.exists(&path)? && !store.exists(&format!("{path}{UNFINISHED}"))? {
                loss.directory = path;
                break;
            }
        }
        assert!(!loss.directory.is_empty(), "a loss was accepted {LOSSES_MAX} times");
        let directory = &loss.directory;
        store.create_directory(directory)?;
        loss.files = copy_tail(store, self, loss.end, directory)?.into_iter().collect();
        let Beside { report, unfinished } = &loss.beside;
        for (name, bytes) in [("/report.txt", report.as_bytes()), (UNFINISHED, unfinished)] {
            let file = store.create(&format!("{directory}{name}"))?;
            file.write_at(bytes, 0)?;
            file.sync()?;
        }
        store.sync_directory("")?;
        // From the first rename on the log may look whole: what is unfinished is durable before it.
        store.sync_directory(LOST_DIRECTORY)?;
        // From the older to the newer: while a later one is there, the log is seen to be damaged.
        for id in beyond {
            let name = format!("{id}.seg");
            store.rename(&segment_path(id), &format!("{directory}/{name}"))?;
            loss.files.push(name);
        }
        Ok(store.sync_directory(directory)?)
    }
}

/// Copy what is behind the end in its own segment. Result: the copy's name, if there is any.
fn copy_tail(store: &dyn Store, log: &Log, end: LogEnd, directory: &str) -> Result<Option<String>> {
    let id = end.position.locator().segment();
    let Some(segment) = log.segments.read().get(&id).cloned() else { return Ok(None) };
    if !store.exists(&segment.path)? {
        return Ok(None);
    }
    let file = store.open(&segment.path, false)?;
    let first = end.position.locator().slot();
    let (mut at, length) = (u64::from(first) * BLOCK_BYTES_U64, file.length_bytes()?);
    if at >= length {
        return Ok(None);
    }
    let name = format!("{id}.from-slot-{first}");
    let copy = store.create(&format!("{directory}/{name}"))?;
    copy.set_length(length)?;
    let mut buffer = vec![0; COPY_BYTES];
    while at < length {
        let piece = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_at(&mut buffer[..piece], at)?;
        if buffer[..piece].iter().any(|byte| *byte != 0) {
            copy.write_at(&buffer[..piece], at)?;
        }
        at += piece as u64;
    }
    copy.sync()?;
    Ok(Some(name))
}
