//! The segments of a log as they lie in the directory: which follow which, and what batches each
//! holds.
//!
//! Reads only. A *stretch* is what was written between one opening and the next; the first segment
//! of a stretch names where the log before it ended, and that clips everything older.

use crate::error::{LogError, Result};
use crate::format::batch::BatchHeader;
use crate::format::footer::{
    CHECKSUMS_PER_PAGE, Column, JournalBatch, OWNERS_PER_PAGE, Trailer, decode_journal, decode_page,
};
use crate::format::node::NodeFileKind;
use crate::format::segment::{LogEnd, SegmentHeader};
use crate::format::superblock::Commit;
use crate::recovery::Known;
use crate::segment::{segment_of_name, segment_path};
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, SegmentId, Sequence};
use ramet_store::{File, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// Slots read at a time where each of them may be a header: 256 KiB.
const WINDOW_SLOTS: u32 = 64;

/// All segments of a log, by id.
pub(crate) struct Chain {
    found: BTreeMap<SegmentId, std::result::Result<SegmentHeader, HeaderFault>>,
    /// Files from before the cut that no checkpoint knows: nothing is in them.
    stale: Vec<SegmentId>,
    /// Segments that the checkpoint knows and that have no file.
    missing: Vec<SegmentId>,
    /// Files of other pools or logs: not read, not removed.
    foreign: BTreeSet<SegmentId>,
    epoch_max: u64,
}

/// Why a segment file has no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// It was never written: the file's creation was cut short before anything could be in the
    /// segment.
    Blank,
    /// It is whole, and of another pool or log.
    Foreign,
    /// It was written once. A header is durable before its segment is used, so this is damage,
    /// never a torn tail.
    Damaged(String),
}

/// See the head of this file.
pub(crate) struct Stretch {
    /// In log order.
    pub(crate) segments: Vec<SegmentId>,
    /// Where the log before it ended.
    pub(crate) opens: LogEnd,
    /// Where it ended itself; `None` for the last one.
    pub(crate) ends: Option<LogEnd>,
}

/// What a segment holds.
pub(crate) struct Loaded {
    pub(crate) batches: Vec<JournalBatch>,
    /// The highest durable sequence that any header of it names.
    pub(crate) durable: Sequence,
    pub(crate) trailer: Option<Trailer>,
    /// The file's length, where it is sealed.
    pub(crate) sealed_bytes: Option<u64>,
    /// Slots and their checksums, where it is not.
    pub(crate) checksums: Vec<(u32, u32)>,
    /// Batches whose headers verify behind a place that does not: they count for what they name.
    pub(crate) beyond: Vec<JournalBatch>,
}

impl Loaded {
    /// The slot behind the last batch that can be followed.
    pub(crate) fn ends_at(&self) -> u32 {
        self.batches.last().map_or(1, |batch| batch.header_slot + batch.slots_count)
    }
}

impl Chain {
    /// Look at the headers of the segments from the one that holds the cut on.
    pub(crate) fn read(
        store: &dyn Store,
        seed: u64,
        newest: &Commit,
        known: &Known,
    ) -> Result<Self> {
        let cut = newest.cut;
        let mut this = Chain {
            found: BTreeMap::new(),
            stale: Vec::new(),
            missing: Vec::new(),
            foreign: BTreeSet::new(),
            epoch_max: 0,
        };
        let mut known: HashMap<SegmentId, bool> =
            known.segments.iter().map(|entry| (entry.id, entry.used != 0)).collect();
        for name in store.list("segments")? {
            let Some(id) = segment_of_name(&name) else {
                continue;
            };
            let expected = known.get(&id).copied();
            if expected == Some(true) {
                // It is not read until something in it is.
                known.remove(&id);
                continue;
            }
            let file = store.open(&segment_path(id), false)?;
            let mut page = vec![0; BLOCK_BYTES];
            let header = match read_whole(&*file, &mut page, 0)? {
                true => check_header(&page, id, seed, newest.log),
                false => Err(HeaderFault::Blank),
            };
            if header == Err(HeaderFault::Foreign) {
                this.foreign.insert(id);
                continue;
            }
            known.remove(&id);
            // Without a header the name alone says whether it can be ours: an epoch is in a slot
            // before a file is made in it, and the other slot may be one ahead.
            if header.is_ok() || id.epoch() <= newest.epoch + 1 {
                this.epoch_max = this.epoch_max.max(id.epoch());
            }
            if expected.is_some() || id >= cut.position.locator().segment() {
                this.found.insert(id, header);
            } else if !matches!(header, Err(HeaderFault::Damaged(_))) {
                // Whose a damaged one is cannot be seen: it stays.
                this.stale.push(id);
            }
        }
        this.missing = known.into_keys().collect();
        this.missing.sort_unstable();
        Ok(this)
    }

    /// Whether every segment that the checkpoint knows has a file.
    pub(crate) fn complete(&self) -> Result<()> {
        match self.missing.first() {
            None => Ok(()),
            Some(missing) => {
                let reason = match self.foreign.contains(missing) {
                    true => "a file of another pool or log has its name".into(),
                    false => "the segment is missing".into(),
                };
                Err(LogError::Damaged { segment: *missing, slot: 0, reason })
            }
        }
    }

    pub(crate) fn missing(&self) -> &[SegmentId] {
        &self.missing
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.found.keys().copied()
    }

    /// Where the log ended whenever a stretch was begun, and the segment that says so.
    pub(crate) fn ends(&self) -> Vec<(LogEnd, SegmentId)> {
        let header = |(id, header): (&SegmentId, &std::result::Result<SegmentHeader, _>)| {
            header.as_ref().ok().and_then(|header| header.opens).map(|opens| (opens, *id))
        };
        self.found.iter().filter_map(header).collect()
    }

    pub(crate) fn stale(&self) -> &[SegmentId] {
        &self.stale
    }

    /// The header of the first segment that was read.
    pub(crate) fn first(&self) -> Option<&SegmentHeader> {
        self.found.values().next()?.as_ref().ok()
    }

    /// The highest epoch that any file name shows: even a file without a header has used its id.
    pub(crate) fn epoch_max(&self) -> u64 {
        self.epoch_max
    }

    pub(crate) fn header(&self, id: SegmentId) -> Option<&SegmentHeader> {
        self.found.get(&id)?.as_ref().ok()
    }

    /// What is wrong with a segment's header, if it is damage.
    pub(crate) fn damage(&self, id: SegmentId) -> Option<String> {
        match self.found.get(&id) {
            Some(Err(HeaderFault::Damaged(reason))) => Some(reason.clone()),
            Some(Ok(_) | Err(HeaderFault::Blank | HeaderFault::Foreign)) | None => None,
        }
    }

    /// Whether `id` is the segment after `previous`; else what is wrong.
    pub(crate) fn follows(
        &self,
        id: SegmentId,
        previous: Option<SegmentId>,
    ) -> std::result::Result<(), String> {
        match self.found.get(&id) {
            None | Some(Err(HeaderFault::Foreign)) => Err("the segment is missing".into()),
            Some(Err(HeaderFault::Blank)) => Err("its header was never written".into()),
            Some(Err(HeaderFault::Damaged(reason))) => Err(reason.clone()),
            // An opening names the end of the log instead: what lies between was discarded.
            Some(Ok(header)) if header.opens.is_some() || header.previous == previous => Ok(()),
            Some(Ok(header)) => Err(match header.previous {
                Some(missing) if self.foreign.contains(&missing) => {
                    format!("a file of another pool or log has the name of {missing}")
                }
                Some(missing) => format!("the segment before it, {missing}, is missing"),
                None => "it says that it is the first".into(),
            }),
        }
    }

    /// The stretches from the cut on, in log order.
    pub(crate) fn stretches(&self, cut: LogEnd) -> Result<Vec<Stretch>> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut opened = self.found.values().filter_map(|header| header.as_ref().ok()?.opens);
        let starts_later = opened.next().is_some_and(|opens| opens.sequence == Sequence(0));
        for (id, header) in &self.found {
            let opens = header.as_ref().ok().and_then(|header| header.opens);
            match (opens, stretches.last_mut()) {
                (Some(opens), last) => {
                    if let Some(last) = last {
                        last.ends = Some(opens);
                    }
                    stretches.push(Stretch { segments: vec![*id], opens, ends: None });
                }
                (None, Some(last)) => last.segments.push(*id),
                // The cut lies in the midst of a stretch.
                (None, None) if cut.sequence != Sequence(0) => {
                    stretches.push(Stretch { segments: vec![*id], opens: cut, ends: None });
                }
                // The first segment's creation was cut short.
                (None, None) if *header == Err(HeaderFault::Blank) => {}
                // Left of a stretch of which nothing was durable: the removal of its first segment
                // got to the medium, and that of this one did not.
                (None, None) if starts_later => {}
                (None, None) => {
                    let reason = match header {
                        Err(HeaderFault::Damaged(reason)) => reason.clone(),
                        Ok(_) | Err(HeaderFault::Blank | HeaderFault::Foreign) => {
                            "the segments before it are missing".to_string()
                        }
                    };
                    return Err(LogError::Damaged { segment: *id, slot: 0, reason });
                }
            }
        }
        Ok(stretches)
    }

    /// What a segment holds: by its journal where it is sealed, else batch by batch. A segment
    /// without a header holds nothing.
    pub(crate) fn load(&self, store: &dyn Store, id: SegmentId) -> Result<Loaded> {
        let mut loaded = Loaded {
            batches: Vec::new(),
            durable: Sequence(0),
            trailer: None,
            sealed_bytes: None,
            checksums: Vec::new(),
            beyond: Vec::new(),
        };
        let Some(header) = self.header(id) else {
            return Ok(loaded);
        };
        let file = store.open(&segment_path(id), false)?;
        let length = file.length_bytes()?;
        if let Some((trailer, batches)) = load_sealed(&*file, length, header)? {
            loaded.durable = batches
                .iter()
                .map(|batch| batch.durable)
                .max()
                .unwrap_or_default()
                .max(trailer.durable);
            (loaded.trailer, loaded.batches, loaded.sealed_bytes) =
                (Some(trailer), batches, Some(length));
            return Ok(loaded);
        }
        scan(&*file, length, header, &mut loaded)?;
        Ok(loaded)
    }

    /// As `load`; a footer that tells of batches behind `end` does not count: these were discarded.
    pub(crate) fn load_until(
        &self,
        store: &dyn Store,
        id: SegmentId,
        end: Sequence,
    ) -> Result<Loaded> {
        let mut loaded = self.load(store, id)?;
        let tells_more = loaded.batches.last().is_some_and(|batch| batch.sequence > end);
        if let Some(header) = self.header(id)
            && loaded.trailer.is_some()
            && tells_more
        {
            let file = store.open(&segment_path(id), false)?;
            (loaded.checksums, _) =
                checksums_of_batches(&*file, id, header.nonce, loaded.ends_at())?;
            (loaded.trailer, loaded.sealed_bytes) = (None, None);
        }
        Ok(loaded)
    }
}

/// The highest epoch that the name of a node or table file shows, which may be of another pool: an
/// epoch is in a slot before a file is made in it, and the other slot may be one ahead.
pub(crate) fn epoch_of_nodes(store: &dyn Store, newest: &Commit) -> Result<u64> {
    let mut epoch = 0;
    for kind in [NodeFileKind::Nodes, NodeFileKind::Tables] {
        let names = match store.list(kind.directory()) {
            Err(StoreError::NotFound { .. }) => continue,
            names => names?,
        };
        let ids = names.iter().filter_map(|name| kind.id_of_name(name));
        let epochs = ids.map(SegmentId::epoch).filter(|epoch| *epoch <= newest.epoch + 1);
        epoch = epochs.max().unwrap_or(0).max(epoch);
    }
    Ok(epoch)
}

pub(crate) fn check_header(
    page: &[u8],
    id: SegmentId,
    seed: u64,
    log: [u8; 16],
) -> std::result::Result<SegmentHeader, HeaderFault> {
    // All fields lie in the first sector, so a torn header is a blank one.
    if page[..512].iter().all(|byte| *byte == 0) {
        return Err(HeaderFault::Blank);
    }
    let header = SegmentHeader::decode(page).map_err(HeaderFault::Damaged)?;
    if header.seed != seed || header.log != log {
        return Err(HeaderFault::Foreign);
    }
    if header.segment != id || header.file != id {
        return Err(HeaderFault::Damaged(format!("the file holds segment {}", header.segment)));
    }
    Ok(header)
}

/// Fill `buffer`; false where the file ends first. A medium that fails is an error and never an
/// end: what could not be read may have been flushed.
pub(crate) fn read_whole(file: &dyn File, buffer: &mut [u8], offset_bytes: u64) -> Result<bool> {
    match file.read_at(buffer, offset_bytes) {
        Ok(()) => Ok(true),
        Err(StoreError::ShortRead { .. }) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

/// The footer, where all of it is there: a power loss may have kept any part of one that was not
/// synced, and the batches tell the same.
pub(crate) fn load_sealed(
    file: &dyn File,
    length: u64,
    header: &SegmentHeader,
) -> Result<Option<(Trailer, Vec<JournalBatch>)>> {
    let mut page = vec![0; BLOCK_BYTES];
    let Some(last_page) = length.checked_sub(BLOCK_BYTES_U64) else {
        return Ok(None);
    };
    if !read_whole(file, &mut page, last_page)? {
        return Ok(None);
    }
    let trailer = Trailer::decode(&page, header.nonce, header.segment);
    let sane = |trailer: &Trailer| trailer.slots_count <= header.slots_count;
    let Some(trailer) = trailer.filter(sane) else {
        return Ok(None);
    };
    let parts = footer_parts(&trailer, last_page);
    let Some((columns, journal)) = parts else {
        return Ok(None);
    };
    let mut bytes = vec![0; columns + journal];
    if !read_whole(file, &mut bytes, trailer.checksums_at)? {
        return Ok(None);
    }
    let (columns, journal) = bytes.split_at(columns);
    if !columns_verify(columns, &trailer, header.nonce) {
        return Ok(None);
    }
    let journal = decode_journal(journal, header.nonce, header.segment);
    Ok(journal.map(|journal| (trailer, journal)))
}

/// Bytes of the columns, and of the journal right behind them; `None` where the trailer says what
/// cannot be.
fn footer_parts(trailer: &Trailer, last_page: u64) -> Option<(usize, usize)> {
    let pages = trailer.slots_count.div_ceil(CHECKSUMS_PER_PAGE);
    let pages = pages + trailer.slots_count.div_ceil(OWNERS_PER_PAGE);
    let columns = u64::from(pages) * BLOCK_BYTES_U64;
    let in_order = trailer.checksums_at.checked_add(columns)? == trailer.journal_at;
    let end = trailer.journal_at.checked_add(trailer.journal_bytes)?;
    let parts = (usize::try_from(columns).ok()?, usize::try_from(trailer.journal_bytes).ok()?);
    (in_order && end <= last_page).then_some(parts)
}

fn columns_verify(columns: &[u8], trailer: &Trailer, nonce: u64) -> bool {
    let checksums = trailer.slots_count.div_ceil(CHECKSUMS_PER_PAGE);
    let owners = trailer.slots_count.div_ceil(OWNERS_PER_PAGE);
    let expected = (0..checksums)
        .map(|index| (Column::Checksums, index))
        .chain((0..owners).map(|index| (Column::Owners, index)));
    columns.chunks_exact(BLOCK_BYTES).zip(expected).all(|(page, (column, index))| {
        decode_page(page, nonce, trailer.segment, column, u64::from(index)).is_some()
    })
}

/// Slots of a file that were read together.
#[derive(Default)]
struct Window {
    first_slot: u32,
    bytes: Vec<u8>,
}

impl Window {
    /// A slot's page, which is read with those behind it, `count` in all; `None` where the file
    /// ends before.
    fn page(&mut self, file: &dyn File, slot: u32, count: u32) -> Result<Option<&[u8]>> {
        let at = |first: u32| (slot - first) as usize * BLOCK_BYTES;
        if slot < self.first_slot || at(self.first_slot) >= self.bytes.len() {
            self.first_slot = slot;
            self.bytes.resize(count as usize * BLOCK_BYTES, 0);
            if !read_whole(file, &mut self.bytes, u64::from(slot) * BLOCK_BYTES_U64)? {
                self.bytes.clear();
                return Ok(None);
            }
        }
        let at = at(self.first_slot);
        Ok(self.bytes.get(at..at + BLOCK_BYTES))
    }
}

/// Follow the headers from slot 1; after a bad place every slot is tried, for what it says is
/// durable.
fn scan(file: &dyn File, length: u64, header: &SegmentHeader, loaded: &mut Loaded) -> Result<()> {
    let slots = header.slots_count.min(u32::try_from(length / BLOCK_BYTES_U64).unwrap_or(u32::MAX));
    let mut window = Window::default();
    let (mut slot, mut broken) = (1, false);
    while slot < slots {
        // Behind a bad place all slots are looked at: in a file that was used before, many.
        let count = if broken { WINDOW_SLOTS.min(slots - slot) } else { 1 };
        let page = window.page(file, slot, count)?;
        let batch = page
            .and_then(|page| BatchHeader::decode(page, header.nonce, header.segment.slot(slot)));
        let Some(batch) = batch.filter(|batch| batch.slots_count <= slots - slot) else {
            broken = true;
            slot += 1;
            continue;
        };
        loaded.durable = loaded.durable.max(batch.durable);
        let BatchHeader { sequence, durable, slots_count, entries, checksums } = batch;
        let into = if broken { &mut loaded.beyond } else { &mut loaded.batches };
        if !broken {
            note_checksums(slot, &entries, &checksums, &mut loaded.checksums);
        }
        let header_slot = slot;
        into.push(JournalBatch { sequence, durable, header_slot, slots_count, entries });
        slot += slots_count;
    }
    Ok(())
}

/// Slots and their checksums; and slots of which nothing is known.
pub(crate) type Scanned = (Vec<(u32, u32)>, Vec<Range<u32>>);

/// Slots and their checksums out of the headers of a segment's batches, below slot `used`; and the
/// slots of batches whose headers do not verify.
pub(crate) fn checksums_of_batches(
    file: &dyn File,
    segment: SegmentId,
    nonce: u64,
    used: u32,
) -> Result<Scanned> {
    let mut page = vec![0; BLOCK_BYTES];
    let (mut found, mut unknown) = (Vec::new(), Vec::<Range<u32>>::new());
    let mut slot = 1;
    while slot < used {
        let read = read_whole(file, &mut page, u64::from(slot) * BLOCK_BYTES_U64)?;
        let batch = read.then(|| BatchHeader::decode(&page, nonce, segment.slot(slot))).flatten();
        let Some(batch) = batch.filter(|batch| batch.slots_count <= used - slot) else {
            // Any slot may be the next header.
            match unknown.last_mut() {
                Some(last) if last.end == slot => last.end += 1,
                _ => unknown.push(slot..slot + 1),
            }
            slot += 1;
            continue;
        };
        note_checksums(slot, &batch.entries, &batch.checksums, &mut found);
        slot += batch.slots_count;
    }
    Ok((found, unknown))
}

fn note_checksums(
    header_slot: u32,
    entries: &[crate::format::batch::Entry],
    checksums: &[u32],
    out: &mut Vec<(u32, u32)>,
) {
    let mut slot = header_slot + 1;
    let mut rest = checksums.iter();
    for entry in entries {
        let slots = u32::try_from(entry.slots_count()).expect("checked against the header");
        if entry.checksums_count() == entry.slots_count() {
            out.extend((slot..slot + slots).zip(rest.by_ref().copied()));
        } else {
            let _ = rest
                .by_ref()
                .take(usize::try_from(entry.checksums_count()).expect("at most one"))
                .count();
        }
        slot += slots;
    }
}
