//! Opening: find the end of the log, tell a torn tail from damage, replay, make durable what was
//! read.
//!
//! Calls the store and the formats. Invariants: nothing is written before the whole log was read;
//! an end is only ever accepted after the last durable sequence. See docs/internals/format.md,
//! "Opening".

use crate::chain::{Chain, Loaded, Stretch, epoch_of_nodes};
use crate::error::{LogError, Result};
use crate::format::descriptor::{Descriptor, Refused};
use crate::format::footer::JournalBatch;
use crate::format::segment::LogEnd;
use crate::format::superblock::Commit;
use crate::log::{Log, Recovered};
use crate::loss::{Accept, Loss};
use crate::replay::{Apply, Replay, Source};
use crate::reread::{Unsynced, make_durable};
use crate::room::RoomState;
use crate::segment::{Segment, SegmentEntry, segment_path};
use crate::superblock::{self, Slots};
use crate::tail::blocks_of;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, Position, SegmentId, Sequence};
use ramet_store::{Lock, LockMode, Store, StoreError};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is known of the log up to a checkpoint's cut: its segments.
#[derive(Default)]
pub struct Known {
    /// All of them, up to the one that holds the cut.
    pub segments: Vec<SegmentEntry>,
    /// Whether the older commit's checkpoint was read, because the newest's cannot be.
    pub from_older: bool,
}

/// Reads a checkpoint: the newest commit, and the older one where it verifies.
pub type Start<'a, E> = dyn FnMut(&Commit, Option<&Commit>) -> std::result::Result<Known, E> + 'a;

impl Log {
    /// Open the pool in `store`, and tell `apply` everything the log says from its start on.
    ///
    /// # Errors
    /// `Store(Locked)` where somebody else has it; `NotAPool`, `Foundation`, `Unsupported`;
    /// `Damaged` where a batch that was durable cannot be read (nothing was written then).
    ///
    /// # Durability
    /// On return everything that was replayed is durable (unless read only).
    pub fn open(store: Arc<dyn Store>, read_only: bool, apply: &mut Apply<'_>) -> Result<Log> {
        let mut start = |newest: &Commit, _: Option<&Commit>| match newest.cut.sequence {
            Sequence(0) => Ok(Known::default()),
            _ => Err(LogError::Unsupported { reason: "the pool holds a checkpoint".into() }),
        };
        Self::open_from(store, read_only, 0, &mut start, apply)
    }

    /// As `open`; `start` reads the checkpoint, and `apply` is told what came after its cut. Pages
    /// of slot tables may take `pages_bytes` of memory.
    ///
    /// # Errors
    /// As `open`, and what `start` fails with.
    ///
    /// # Durability
    /// As `open`.
    pub fn open_from<E: From<LogError>>(
        store: Arc<dyn Store>,
        read_only: bool,
        pages_bytes: u64,
        start: &mut Start<'_, E>,
        apply: &mut Apply<'_>,
    ) -> std::result::Result<Log, E> {
        let how = How { read_only, pages_bytes, accept: None };
        Self::open_how(store, how, start, apply).map(|(log, _)| log)
    }

    /// As `open_from`, for writing; but where the log is damaged it ends at the last batch that can
    /// be followed: docs/internals/format.md, "Accepting a loss". Result: also what was lost, if
    /// anything was.
    ///
    /// # Errors
    /// As `open_from`; where `apply` fails, the limit is set to the batch before.
    ///
    /// # Durability
    /// As `open`. Nothing is written before everything was read.
    pub fn open_accepting_loss<E: From<LogError>>(
        store: Arc<dyn Store>,
        pages_bytes: u64,
        start: &mut Start<'_, E>,
        apply: &mut Apply<'_>,
        accept: Accept<'_, '_>,
    ) -> std::result::Result<(Log, Option<Loss>), E> {
        let how = How { read_only: false, pages_bytes, accept: Some(accept) };
        Self::open_how(store, how, start, apply)
    }

    fn open_how<E: From<LogError>>(
        store: Arc<dyn Store>,
        how: How<'_, '_>,
        start: &mut Start<'_, E>,
        apply: &mut Apply<'_>,
    ) -> std::result::Result<(Log, Option<Loss>), E> {
        let read_only = how.read_only;
        read_descriptor(&*store)?;
        let mode = if read_only { LockMode::Shared } else { LockMode::Exclusive };
        let lock = store.lock(mode).map_err(LogError::from)?;
        // Again: whoever had the lock before may have given the pool a feature.
        let descriptor = read_descriptor(&*store)?;
        if !read_only && descriptor.read_only_features() != 0 {
            let reason = format!(
                "feature bits {:#x} forbid writing here; open it for reading only",
                descriptor.read_only_features()
            );
            return Err(LogError::Unsupported { reason }.into());
        }
        let mut slots = superblock::read(&*store, descriptor.seed)?;
        let known = start(&slots.newest, slots.older.as_ref())?;
        if known.from_older {
            slots.fall_back();
        }
        Ok(Self::recover(store, lock, descriptor, slots, known, how, apply)?)
    }

    fn recover(
        store: Arc<dyn Store>,
        lock: Box<dyn Lock>,
        descriptor: Descriptor,
        slots: Slots,
        known: Known,
        how: How<'_, '_>,
        apply: &mut Apply<'_>,
    ) -> Result<(Log, Option<Loss>)> {
        let How { read_only, pages_bytes, accept } = how;
        let cut = slots.newest.cut;
        let chain = Chain::read(&*store, descriptor.seed, &slots.newest, &known)?;
        let mut opening = Opening::new(&*store, &descriptor, slots.newest.durable, cut);
        opening.accepting = accept.is_some();
        let limit = accept.as_ref().and_then(|accept| accept.limit.get());
        opening.limit = limit.unwrap_or(Sequence(u64::MAX));
        opening.know(&chain, &known);
        let complete = chain.complete();
        let mut loss = None;
        match accept {
            None => {
                complete?;
                opening.read(&chain, apply)?;
            }
            Some(Accept { describe, limit }) => {
                let read = opening.read(&chain, apply);
                if opening.contradicts {
                    limit.set(Some(opening.end.sequence));
                }
                loss = opening.accept(&chain, &known, complete, read)?;
                if let Some(loss) = &mut loss {
                    let refused = || LogError::Unsupported { reason: "it was refused".into() };
                    loss.beside = describe(loss).ok_or_else(refused)?;
                }
            }
        }
        let Opening { segments, end, last_slot, previous, tail, footer, replayed, .. } = opening;
        let clean = tail.is_empty();
        if !read_only {
            make_durable(&*store, footer.iter().chain(&tail))?;
            slots.make_durable(&*store)?;
        }
        let noted = slots.newest.durable;
        let epoch =
            slots.newest.epoch.max(chain.epoch_max()).max(epoch_of_nodes(&*store, &slots.newest)?);
        let room = RoomState { epoch, counter: None, previous, end, opened: false };
        let log = Log::new(Recovered {
            store,
            lock,
            descriptor,
            superblock: slots.newest,
            segments,
            room,
            position: last_slot,
            replayed,
            read_only,
            pages_bytes,
        });
        if !read_only {
            crate::spare::remove_left(log.store(), log.seed(), log.uuid());
        }
        match &mut loss {
            Some(loss) => log.begin_after_loss(loss, noted, &chain)?,
            None if read_only => {}
            None => log.begin_epoch(clean, &chain)?,
        }
        Ok((log, loss))
    }

    /// After a crash: an epoch of its own names where the log ended; then what lies beyond is
    /// removed.
    fn begin_epoch(&self, clean: bool, chain: &Chain) -> Result<()> {
        let beyond: Vec<SegmentId> = {
            let known = self.segments.read();
            let unknown = chain.ids().filter(|id| !known.contains_key(id));
            unknown.chain(chain.stale().iter().copied()).collect()
        };
        if clean && beyond.is_empty() {
            return Ok(());
        }
        match self.make_room(2, false) {
            Ok(()) => {}
            // A full medium opens for reading; the first write asks for room again.
            Err(LogError::Store(StoreError::Full { .. })) => return Ok(()),
            Err(other) => return Err(other),
        }
        for id in beyond {
            self.store().remove(&segment_path(id))?;
        }
        Ok(())
    }
}

/// What never changes about the pool in `store`; takes no lock.
///
/// # Errors
/// `NotAPool`, `Foundation`, `Unsupported`, `Store`.
pub fn read_descriptor(store: &dyn Store) -> Result<Descriptor> {
    let not_a_pool =
        |reason: &str| LogError::NotAPool { path: store.describe(), reason: reason.into() };
    let file = match store.open("pool", false) {
        Ok(file) => file,
        Err(StoreError::NotFound { .. }) => return Err(not_a_pool("it has no file 'pool'")),
        Err(other) => return Err(other.into()),
    };
    let mut page = vec![0; BLOCK_BYTES];
    match file.read_at(&mut page, 0) {
        Ok(()) => {}
        Err(StoreError::ShortRead { .. }) => {
            return Err(LogError::Foundation { file: "pool", reason: "it is too short".into() });
        }
        Err(other) => return Err(other.into()),
    }
    Descriptor::decode(&page).map_err(|refused| match refused {
        Refused::Damaged(reason) => LogError::Foundation { file: "pool", reason },
        Refused::Unsupported(reason) => LogError::Unsupported { reason },
    })
}

/// How a pool is opened.
struct How<'a, 'b> {
    read_only: bool,
    pages_bytes: u64,
    /// Where a damaged log is taken as far as it goes.
    accept: Option<Accept<'a, 'b>>,
}

/// The state of reading the log.
pub(crate) struct Opening<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) segments: HashMap<SegmentId, Arc<Segment>>,
    /// The checkpoint's cut: batches up to it are not told.
    pub(crate) cut: LogEnd,
    /// The last batch replayed, its last slot, and the segment it is in.
    pub(crate) end: LogEnd,
    pub(crate) last_slot: Position,
    pub(crate) previous: Option<SegmentId>,
    /// The highest sequence known to be durable.
    pub(crate) durable: Sequence,
    pub(crate) tail: Vec<Unsynced>,
    /// The footer behind the last durable batch: no batch says that it is durable.
    pub(crate) footer: Option<Unsynced>,
    replayed: u64,
    /// Whether what can be followed is told though more is missing.
    accepting: bool,
    /// No batch behind this one is told.
    limit: Sequence,
    /// Whether a batch says what cannot be.
    pub(crate) contradicts: bool,
}

/// A place where the log could not be followed.
struct Stop {
    segment: SegmentId,
    slot: u32,
    reason: String,
}

impl<'a> Opening<'a> {
    fn new(
        store: &'a dyn Store,
        descriptor: &'a Descriptor,
        durable: Sequence,
        cut: LogEnd,
    ) -> Self {
        Opening {
            store,
            descriptor,
            segments: HashMap::new(),
            cut,
            end: cut,
            last_slot: cut.position,
            previous: None,
            durable,
            tail: Vec::new(),
            footer: None,
            replayed: 0,
            accepting: false,
            limit: Sequence(u64::MAX),
            contradicts: false,
        }
    }

    /// Take in the segments that need not be read.
    fn know(&mut self, chain: &Chain, known: &Known) {
        for entry in known.segments.iter().filter(|entry| entry.used != 0) {
            self.segments.insert(entry.id, Arc::new(Segment::known(entry)));
        }
        // What follows them says so itself. One before the segment that holds the cut may have been
        // given back.
        let at_cut = self.cut.position.locator().segment();
        let before = chain.first().and_then(|header| Some((header.segment, header.previous?)));
        self.previous = match before {
            Some((first, before)) => {
                Some(before).filter(|id| first <= at_cut || self.segments.contains_key(id))
            }
            None => self.segments.keys().max().copied().filter(|_| chain.first().is_none()),
        };
    }

    fn read(&mut self, chain: &Chain, apply: &mut Apply<'_>) -> Result<()> {
        for stretch in chain.stretches(self.cut)? {
            let continues = stretch.opens.sequence == self.end.sequence
                // The segment that holds the cut may have begun its stretch.
                || self.end == self.cut && stretch.opens.sequence < self.cut.sequence;
            if !continues {
                let reason = format!(
                    "it continues after batch {}, but the log before it ends at batch {}: \
                     segments are missing",
                    stretch.opens.sequence.0, self.end.sequence.0
                );
                return Err(LogError::Damaged { segment: stretch.segments[0], slot: 0, reason });
            }
            match stretch.ends {
                Some(end) => self.read_to(&stretch, end.sequence, chain, apply)?,
                None => self.read_last(&stretch, chain, apply)?,
            }
        }
        if self.end.sequence < self.durable {
            let segment = self.previous.unwrap_or_default();
            let reason = format!(
                "the log ends at batch {}, but batch {} was durable: segments are missing",
                self.end.sequence.0, self.durable.0
            );
            return Err(LogError::Damaged {
                segment,
                slot: self.last_slot.locator().slot(),
                reason,
            });
        }
        Ok(())
    }

    /// A stretch whose end is known: everything up to it must be there.
    fn read_to(
        &mut self,
        stretch: &Stretch,
        end: Sequence,
        chain: &Chain,
        apply: &mut Apply<'_>,
    ) -> Result<()> {
        let stop = self.follow(stretch, end, chain, apply)?;
        if self.end.sequence == end {
            return Ok(());
        }
        Err(damaged(stop.unwrap_or_else(|| self.stop_here()), end))
    }

    /// The last stretch: find its end first, then replay up to it.
    fn read_last(&mut self, stretch: &Stretch, chain: &Chain, apply: &mut Apply<'_>) -> Result<()> {
        let (candidate, stop, is_whole) = self.survey(stretch, chain)?;
        if candidate < self.durable || !is_whole {
            if self.accepting {
                let end = self.verify_tail(stretch, candidate, chain)?;
                self.follow(stretch, end, chain, apply)?;
            }
            return Err(if is_whole { damaged(stop, self.durable) } else { stop.into() });
        }
        let end = self.verify_tail(stretch, candidate, chain)?;
        self.follow(stretch, end, chain, apply)?;
        if self.end.sequence == end { Ok(()) } else { Err(damaged(stop, end)) }
    }

    /// How far batches follow each other, and the highest durable sequence that any header names.
    /// Result: also whether no segment's header is damaged.
    fn survey(&mut self, stretch: &Stretch, chain: &Chain) -> Result<(Sequence, Stop, bool)> {
        let mut is_whole = true;
        let mut last = self.end.sequence;
        let mut previous = self.previous;
        let mut stop: Option<Stop> = None;
        let mut footers = Vec::new();
        let segment = stretch.segments.last().copied().unwrap_or_default();
        // Where the next batch should be.
        let mut next = (segment, 0);
        for id in &stretch.segments {
            if let Some(reason) = chain.damage(*id)
                && is_whole
            {
                is_whole = false;
                stop = stop.or(Some(Stop { segment: *id, slot: 0, reason }));
            }
            let loaded = chain.load(self.store, *id)?;
            self.durable = self.durable.max(loaded.durable);
            footers.extend(footer_of(*id, &loaded));
            if stop.is_some() {
                continue;
            }
            if let Err(reason) = chain.follows(*id, previous) {
                stop = Some(Stop { segment: *id, slot: 0, reason });
                continue;
            }
            for batch in loaded.batches.iter().filter(|batch| batch.sequence > self.cut.sequence) {
                if batch.sequence.0 != last.0 + 1 {
                    let reason = format!("batch {} follows batch {}", batch.sequence.0, last.0);
                    stop = Some(Stop { segment: next.0, slot: next.1, reason });
                    break;
                }
                last = batch.sequence;
            }
            next = (*id, loaded.ends_at());
            previous = Some(*id);
        }
        // A footer lies behind the last batch of its segment, and is synced with what comes next in
        // the log. So those before the last durable batch are durable; one right behind it may only
        // have been read from a cache.
        let durable = self.durable;
        self.footer = footers.into_iter().find(|(last, _)| *last == durable).map(|(_, part)| part);
        let reason = "no batch follows".into();
        let stop = stop.unwrap_or(Stop { segment: next.0, slot: next.1, reason });
        Ok((last, stop, is_whole))
    }

    /// Payloads after the last durable sequence are verified: the first bad one ends the log.
    fn verify_tail(
        &mut self,
        stretch: &Stretch,
        candidate: Sequence,
        chain: &Chain,
    ) -> Result<Sequence> {
        let mut good = self.durable.max(self.end.sequence);
        if candidate <= good {
            return Ok(candidate);
        }
        for id in &stretch.segments {
            let loaded = chain.load(self.store, *id)?;
            let fresh = loaded
                .batches
                .iter()
                .filter(|batch| batch.sequence > good && batch.sequence <= candidate);
            let mut part: Option<Unsynced> = None;
            for batch in fresh.cloned().collect::<Vec<_>>() {
                if batch.sequence.0 != good.0 + 1
                    || !self.source(chain, *id).payload_verifies(&batch)?
                {
                    self.tail.extend(part);
                    return Ok(good);
                }
                good = batch.sequence;
                let to_bytes = u64::from(batch.header_slot + batch.slots_count) * BLOCK_BYTES_U64;
                let from_bytes = u64::from(batch.header_slot) * BLOCK_BYTES_U64;
                let fresh = Unsynced { segment: *id, from_bytes, to_bytes, is_sealed: false };
                part.get_or_insert(fresh).to_bytes = to_bytes;
            }
            if let (Some(part), Some(footer_end)) = (&mut part, loaded.sealed_bytes) {
                (part.to_bytes, part.is_sealed) = (footer_end, true);
            }
            self.tail.extend(part);
        }
        Ok(good)
    }

    fn follow(
        &mut self,
        stretch: &Stretch,
        end: Sequence,
        chain: &Chain,
        apply: &mut Apply<'_>,
    ) -> Result<Option<Stop>> {
        let end = end.min(self.limit);
        let at_cut = self.cut.position.locator().segment();
        for id in &stretch.segments {
            // Segments up to the cut are taken in though nothing in them is told: maps refer to
            // them.
            if self.end.sequence == end && *id > at_cut {
                return Ok(None);
            }
            if let Err(reason) = chain.follows(*id, self.previous) {
                let stop = Stop { segment: *id, slot: 0, reason };
                let needed = *id <= at_cut;
                return if needed { Err(damaged(stop, self.cut.sequence)) } else { Ok(Some(stop)) };
            }
            let loaded = chain.load_until(self.store, *id, end)?;
            let shows = |batch: &JournalBatch| batch.sequence == self.cut.sequence;
            if *id == at_cut && !loaded.batches.iter().any(shows) {
                let slot = self.cut.position.locator().slot();
                let reason = "its batches end before the checkpoint's cut".into();
                return Err(LogError::Damaged { segment: *id, slot, reason });
            }
            let header = chain.header(*id).expect("follows looked at it");
            let used = loaded.trailer.map(|trailer| trailer.slots_count);
            let segment = Arc::new(Segment::known(&SegmentEntry {
                sealed: used.is_some(),
                used: used.unwrap_or(0),
                ..SegmentEntry::begun(*id, header.slots_count, header.nonce)
            }));
            segment.changed.store(true, Ordering::Release);
            if used.is_none() {
                let table = segment.table();
                for (slot, crc) in &loaded.checksums {
                    table[*slot as usize].store(*crc, Ordering::Relaxed);
                }
            }
            self.segments.insert(*id, segment.clone());
            self.previous = Some(*id);
            let source = self.source(chain, *id);
            let replayed = self.replay_segment(&source, &loaded, end, apply);
            // Whatever came of it: a segment that says that it holds no block is given back.
            let counts = |batch: &&JournalBatch| batch.sequence <= self.end.sequence;
            segment.set_blocks(blocks_of(loaded.batches.iter().filter(counts)));
            if used.is_none() {
                // Nothing will be appended to it any more.
                let last = loaded.batches.iter().rfind(|batch| batch.sequence <= self.end.sequence);
                let used = last.map_or(1, |batch| batch.header_slot + batch.slots_count);
                segment.set_ended(used, false);
            }
            if let Some(stop) = replayed? {
                return Ok(Some(stop));
            }
        }
        Ok(Some(self.stop_here()))
    }

    fn stop_here(&self) -> Stop {
        let segment = self.previous.unwrap_or_default();
        Stop { segment, slot: self.last_slot.locator().slot(), reason: "no batch follows".into() }
    }

    fn source(&self, chain: &Chain, segment: SegmentId) -> Source<'a> {
        let nonce = chain.header(segment).map_or(0, |header| header.nonce);
        Source { store: self.store, seed: self.descriptor.seed, segment, nonce }
    }

    fn replay_segment(
        &mut self,
        source: &Source<'_>,
        loaded: &Loaded,
        end: Sequence,
        apply: &mut Apply<'_>,
    ) -> Result<Option<Stop>> {
        let id = source.segment;
        for batch in loaded.batches.iter().filter(|batch| batch.sequence > self.cut.sequence) {
            if self.end.sequence == end {
                return Ok(None);
            }
            if batch.sequence.0 != self.end.sequence.0 + 1 {
                let reason =
                    format!("batch {} follows batch {}", batch.sequence.0, self.end.sequence.0);
                return Ok(Some(Stop { segment: id, slot: batch.header_slot, reason }));
            }
            let mut contradicts = false;
            let mut told = |said: Replay<'_>| apply(said).inspect_err(|_| contradicts = true);
            let replayed = source.replay(batch, &mut told);
            self.contradicts |= contradicts;
            replayed?;
            self.end = LogEnd {
                position: id.slot(batch.header_slot).position(),
                sequence: batch.sequence,
            };
            self.last_slot = id.slot(batch.header_slot + batch.slots_count - 1).position();
            self.replayed += 1;
        }
        Ok(None)
    }
}

/// The footer of a sealed segment, and its last batch.
fn footer_of(segment: SegmentId, loaded: &Loaded) -> Option<(Sequence, Unsynced)> {
    let (from_bytes, to_bytes) = (loaded.trailer.as_ref()?.checksums_at, loaded.sealed_bytes?);
    let part = Unsynced { segment, from_bytes, to_bytes, is_sealed: true };
    Some((loaded.batches.last()?.sequence, part))
}

impl From<Stop> for LogError {
    fn from(stop: Stop) -> Self {
        LogError::Damaged { segment: stop.segment, slot: stop.slot, reason: stop.reason }
    }
}

fn damaged(stop: Stop, needed: Sequence) -> LogError {
    let reason = format!("{}; batch {} was durable", stop.reason, needed.0);
    LogError::Damaged { segment: stop.segment, slot: stop.slot, reason }
}
