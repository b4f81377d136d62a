//! Opening: find the end of the log, tell a torn tail from damage, replay, make durable what was
//! read.
//!
//! Calls the store and the formats. Invariants: nothing is written before the whole log was read;
//! an end is only ever accepted after the last durable sequence. See docs/internals/format.md,
//! "Opening".

use crate::chain::{Chain, Loaded, Stretch};
use crate::error::{LogError, Result};
use crate::format::descriptor::{Descriptor, Refused};
use crate::format::footer::JournalBatch;
use crate::format::node::NodeFileKind;
use crate::format::segment::LogEnd;
use crate::format::superblock::Commit;
use crate::log::{Log, Recovered};
use crate::replay::{Apply, Source};
use crate::room::RoomState;
use crate::segment::{Segment, SegmentEntry, segment_path};
use crate::superblock::{self, Slots};
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
        let descriptor = read_descriptor(&*store)?;
        let mode = if read_only { LockMode::Shared } else { LockMode::Exclusive };
        let lock = store.lock(mode).map_err(LogError::from)?;
        if !read_only && descriptor.read_only_features() != 0 {
            let reason = format!(
                "feature bits {:#x} forbid writing here; open it for reading only",
                descriptor.read_only_features()
            );
            return Err(LogError::Unsupported { reason }.into());
        }
        let slots = superblock::read(&*store, descriptor.seed)?;
        let known = start(&slots.newest, slots.older.as_ref())?;
        Ok(Self::recover(store, lock, descriptor, slots, known, (read_only, pages_bytes), apply)?)
    }

    fn recover(
        store: Arc<dyn Store>,
        lock: Box<dyn Lock>,
        descriptor: Descriptor,
        slots: Slots,
        known: Known,
        (read_only, pages_bytes): (bool, u64),
        apply: &mut Apply<'_>,
    ) -> Result<Log> {
        let cut = slots.newest.cut;
        let chain = Chain::read(&*store, descriptor.seed, slots.newest.log, &known, cut)?;
        let mut opening = Opening::new(&*store, &descriptor, slots.newest.durable, cut);
        opening.know(&chain, known);
        opening.read(&chain, apply)?;
        let Opening { segments, end, last_slot, previous, tail, footer, replayed, .. } = opening;
        let clean = tail.is_empty();
        if !read_only {
            make_durable(&*store, footer.iter().chain(&tail))?;
            slots.make_durable(&*store)?;
        }
        let epoch = slots.newest.epoch.max(chain.epoch_max()).max(epoch_of_nodes(&*store)?);
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
            log.begin_epoch(clean, &chain)?;
        }
        Ok(log)
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

/// The highest epoch that the name of a node or table file shows.
fn epoch_of_nodes(store: &dyn Store) -> Result<u64> {
    let mut epoch = 0;
    for kind in [NodeFileKind::Nodes, NodeFileKind::Tables] {
        let names = match store.list(kind.directory()) {
            Err(StoreError::NotFound { .. }) => continue,
            names => names?,
        };
        let ids = names.iter().filter_map(|name| kind.id_of_name(name));
        epoch = ids.map(SegmentId::epoch).max().unwrap_or(0).max(epoch);
    }
    Ok(epoch)
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

/// Bytes of a segment file that were read but may not be durable.
struct Unsynced {
    segment: SegmentId,
    from_bytes: u64,
    to_bytes: u64,
    /// It ends with the footer: the file ends there too.
    is_sealed: bool,
}

fn make_durable<'a>(store: &dyn Store, parts: impl Iterator<Item = &'a Unsynced>) -> Result<()> {
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return Ok(());
    }
    let mut buffer = vec![0; 1 << 20];
    for part in parts {
        let file = store.open(&segment_path(part.segment), true)?;
        let mut at = part.from_bytes;
        while at < part.to_bytes {
            let length = usize::try_from((part.to_bytes - at).min(buffer.len() as u64))
                .expect("bounded by the buffer");
            file.read_at(&mut buffer[..length], at)?;
            // The same bytes in the same place: a page that a failed write left clean in the cache
            // becomes dirty again.
            file.write_at(&buffer[..length], at)?;
            at += length as u64;
        }
        if part.is_sealed {
            file.set_length(part.to_bytes)?;
        }
        file.sync()?;
    }
    store.sync_directory("segments")?;
    Ok(())
}

/// The state of reading the log.
struct Opening<'a> {
    store: &'a dyn Store,
    descriptor: &'a Descriptor,
    segments: HashMap<SegmentId, Arc<Segment>>,
    /// The checkpoint's cut: batches up to it are not told.
    cut: LogEnd,
    /// The last batch replayed, its last slot, and the segment it is in.
    end: LogEnd,
    last_slot: Position,
    previous: Option<SegmentId>,
    /// The highest sequence known to be durable.
    durable: Sequence,
    tail: Vec<Unsynced>,
    /// The footer behind the last durable batch: no batch says that it is durable.
    footer: Option<Unsynced>,
    replayed: u64,
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
        }
    }

    /// Take in the segments that need not be read.
    fn know(&mut self, chain: &Chain, known: Known) {
        for entry in known.segments.iter().filter(|entry| entry.used != 0) {
            self.segments.insert(entry.id, Arc::new(Segment::known(entry)));
        }
        // What follows them says so itself.
        let before = chain.first().and_then(|header| header.previous);
        self.previous = match before {
            Some(before) => Some(before).filter(|id| self.segments.contains_key(id)),
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
        Err(damaged(stop.expect("the stretch ended early"), end))
    }

    /// The last stretch: find its end first, then replay up to it.
    fn read_last(&mut self, stretch: &Stretch, chain: &Chain, apply: &mut Apply<'_>) -> Result<()> {
        let (candidate, stop) = self.survey(stretch, chain)?;
        if candidate < self.durable {
            return Err(damaged(stop, self.durable));
        }
        let end = self.verify_tail(stretch, candidate, chain)?;
        self.follow(stretch, end, chain, apply)?;
        if self.end.sequence == end { Ok(()) } else { Err(damaged(stop, end)) }
    }

    /// How far batches follow each other, and the highest durable sequence that any header names.
    fn survey(&mut self, stretch: &Stretch, chain: &Chain) -> Result<(Sequence, Stop)> {
        let mut last = self.end.sequence;
        let mut previous = self.previous;
        let mut stop: Option<Stop> = None;
        let mut footers = Vec::new();
        for id in &stretch.segments {
            if let Some(reason) = chain.damage(*id) {
                return Err(LogError::Damaged { segment: *id, slot: 0, reason });
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
                    stop = Some(Stop { segment: *id, slot: batch.header_slot, reason });
                    break;
                }
                last = batch.sequence;
            }
            previous = Some(*id);
        }
        // A footer lies behind the last batch of its segment, and is synced with what comes next in
        // the log. So those before the last durable batch are durable; one right behind it may only
        // have been read from a cache.
        let durable = self.durable;
        self.footer = footers.into_iter().find(|(last, _)| *last == durable).map(|(_, part)| part);
        let segment = stretch.segments.last().copied().unwrap_or_default();
        let stop = stop.unwrap_or(Stop { segment, slot: 0, reason: "no batch follows".into() });
        Ok((last, stop))
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
            let loaded = chain.load(self.store, *id)?;
            let shows = |batch: &JournalBatch| batch.sequence == self.cut.sequence;
            if *id == at_cut && !loaded.batches.iter().any(shows) {
                let slot = self.cut.position.locator().slot();
                let reason = "its batches end before the checkpoint's cut".into();
                return Err(LogError::Damaged { segment: *id, slot, reason });
            }
            let header = chain.header(*id).expect("follows looked at it");
            let used = loaded.trailer.map(|trailer| trailer.slots_count);
            let segment = Arc::new(Segment::known(&SegmentEntry {
                id: *id,
                sealed: used.is_some(),
                used: used.unwrap_or(0),
                slots_count: header.slots_count,
                nonce: header.nonce,
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
            let stopped = self.replay_segment(&source, &loaded, end, apply)?;
            if used.is_none() {
                // Nothing will be appended to it any more.
                let last = loaded.batches.iter().rfind(|batch| batch.sequence <= self.end.sequence);
                let used = last.map_or(1, |batch| batch.header_slot + batch.slots_count);
                segment.set_ended(used, false);
            }
            if let Some(stop) = stopped {
                return Ok(Some(stop));
            }
        }
        let segment = self.previous.unwrap_or_default();
        Ok(Some(Stop {
            segment,
            slot: self.last_slot.locator().slot(),
            reason: "no batch follows".into(),
        }))
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
            source.replay(batch, apply)?;
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

fn damaged(stop: Stop, needed: Sequence) -> LogError {
    let reason = format!("{}; batch {} was durable", stop.reason, needed.0);
    LogError::Damaged { segment: stop.segment, slot: stop.slot, reason }
}
