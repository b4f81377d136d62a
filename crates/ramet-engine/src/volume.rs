//! Block I/O on one volume or snapshot: the only place where offsets become blocks and blocks
//! become locators.
//!
//! Invariants: a write of up to 1 MiB changes the map in one hold of the gate; a partial block
//! takes effect only if the block it was merged from is still the current one; every byte returned
//! was verified by the log or is a hole's zero.

use crate::changes::{clear_map, write_map};
use crate::engine::Engine;
use crate::head::InGate;
use crate::map::{Extent, Missing};
use crate::object::{Object, ObjectKind};
use crate::{BlockDevice, EngineError, ExtentSink, Kind, extents};
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64, GateGuard, Lent, Locator, Sequence, crc_blocks};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

mod reads;

/// Bytes of a write that are in a snapshot whole or not at all; longer ones are several writes.
const ATOMIC_BYTES: usize = 1 << 20;
/// Of a read that is announced, as much is fetched ahead.
const ANNOUNCED_BYTES_MAX: u64 = 1 << 20;
const ZEROS: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

type Result<T> = std::result::Result<T, EngineError>;

thread_local! {
    /// Extents of a read and checksums of a write, kept so that requests allocate nothing.
    static EXTENTS: RefCell<Vec<Extent>> = const { RefCell::new(Vec::new()) };
    static CHECKSUMS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn object_deleted(object: &Object) -> EngineError {
    let text = format!("'{}' was deleted; hint: open another object", object.name());
    EngineError::new(Kind::NotFound, "object_deleted", text)
}

/// A volume or snapshot, open.
pub(crate) struct VolumeDevice {
    engine: Arc<Engine>,
    object: Arc<Object>,
    attached: bool,
    /// Used by a command under way, which a checkpoint would wait for.
    in_command: bool,
}

impl VolumeDevice {
    pub(crate) fn new(engine: Arc<Engine>, object: Arc<Object>, attached: bool) -> Self {
        if attached {
            object.attached.fetch_add(1, Ordering::AcqRel);
        }
        VolumeDevice { engine, object, attached, in_command: false }
    }

    /// For a command under way.
    pub(crate) fn in_command(engine: Arc<Engine>, object: Arc<Object>) -> Self {
        VolumeDevice { engine, object, attached: false, in_command: true }
    }

    pub(crate) fn object(&self) -> &Arc<Object> {
        &self.object
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn check_range(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        let size_bytes = self.object.size_bytes();
        if offset_bytes.checked_add(length_bytes).is_some_and(|end| end <= size_bytes) {
            return Ok(());
        }
        let text = format!(
            "{length_bytes} bytes at {offset_bytes} of '{}' go past its end at {size_bytes}; \
             hint: stay inside",
            self.object.name()
        );
        Err(EngineError::new(Kind::Invalid, "range_past_end", text))
    }

    pub(crate) fn check_living(&self) -> Result<()> {
        if self.object.is_deleted() {
            return Err(object_deleted(&self.object));
        }
        Ok(())
    }

    fn check_write(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        if self.read_only() {
            let text = format!(
                "'{}' cannot be written to: it is a snapshot, or the pool is open for reading; \
                 hint: clone it",
                self.object.name()
            );
            return Err(EngineError::new(Kind::Forbidden, "read_only", text));
        }
        self.check_living()?;
        self.check_range(offset_bytes, length_bytes)
    }

    /// One write, at most 1 MiB and the partial blocks around it, in one hold of the gate.
    fn write_piece(&self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<()> {
        let range = (offset_bytes, bytes.len() as u64);
        let first = offset_bytes / BLOCK_BYTES_U64;
        if offset_bytes.is_multiple_of(BLOCK_BYTES_U64) && bytes.len().is_multiple_of(BLOCK_BYTES) {
            self.append(range, &[(first, bytes)], &[], None, fua)?;
            return Ok(());
        }
        loop {
            let merged = self.merge(offset_bytes, bytes)?;
            if self.append(range, &[(first, &merged.bytes)], &merged.edges, None, fua)? {
                return Ok(());
            }
        }
    }

    /// Put `bytes` into the blocks they lie in.
    fn merge(&self, offset_bytes: u64, bytes: &[u8]) -> Result<Merged> {
        let end_bytes = offset_bytes + bytes.len() as u64;
        let first = offset_bytes / BLOCK_BYTES_U64;
        let last = (end_bytes - 1) / BLOCK_BYTES_U64;
        let at = usize::try_from(offset_bytes % BLOCK_BYTES_U64).expect("below a block");
        let blocks = usize::try_from(last - first + 1).expect("bounded by the piece");
        let mut merged =
            Merged { bytes: vec![0; blocks * BLOCK_BYTES], edges: Vec::with_capacity(2) };
        let partial_first = at != 0 || end_bytes < (first + 1) * BLOCK_BYTES_U64;
        let partial_last = !end_bytes.is_multiple_of(BLOCK_BYTES_U64) && last != first;
        for (index, partial) in [(first, partial_first), (last, partial_last)] {
            if partial {
                let locator = self.engine.nodes.with(|| self.object.head.map().get(index))?;
                let from =
                    usize::try_from(index - first).expect("bounded by the piece") * BLOCK_BYTES;
                let block = &mut merged.bytes[from..from + BLOCK_BYTES];
                if locator.is_some() {
                    self.read_blocks(index, block)?;
                }
                // Where another write came between, this one will find that out in the gate.
                merged.edges.push((index, locator));
            }
        }
        self.check_living()?;
        merged.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(merged)
    }

    /// Append runs of blocks and clear a range, in one hold of the gate; false where a block of
    /// `edges` is not what it was.
    fn append(
        &self,
        range: (u64, u64),
        runs: &[(u64, &[u8])],
        edges: &[(u64, Option<Locator>)],
        clear: Option<Clear>,
        fua: bool,
    ) -> Result<bool> {
        let log = &self.engine.log;
        let blocks_count: usize = runs.iter().map(|(_, bytes)| bytes.len() / BLOCK_BYTES).sum();
        let needs = runs.iter().map(|(first, bytes)| (*first, (bytes.len() / BLOCK_BYTES) as u64));
        if !self.in_command {
            self.engine.make_room_for_nodes()?;
        }
        // What only clears may help to make room, so it gets what little it needs.
        let clears = runs.is_empty();
        if !clears {
            self.engine.fill_reserve()?;
        }
        let sequence = CHECKSUMS.with_borrow_mut(|checksums| -> Result<_> {
            // Outside the gate first, so that few are sent back; before the checksums, so that what
            // it brings into the processor's caches comes meanwhile.
            self.engine.nodes.with(|| self.ready(needs.clone(), clear))?;
            checksums.clear();
            for (_, bytes) in runs {
                crc_blocks(bytes, checksums);
            }
            loop {
                let enter = || {
                    let entered = log.enter_write(blocks_count as u64);
                    entered.map_err(|error| self.engine.note_full(error))
                };
                let mut gate = if clears { self.engine.with_reserve(enter)? } else { enter()? };
                // Again: the object may have ended, frozen or shrunk since it was checked.
                self.check_write(range.0, range.1)?;
                let hold = self.engine.nodes.hold();
                let token = InGate::closed(&gate);
                let ready = self.ready(needs.clone(), clear);
                let missing = match ready.and_then(|()| self.edges_hold(token, edges)) {
                    Ok(false) => return Ok(None),
                    Ok(true) => {
                        let mut rest = &checksums[..];
                        for (first, bytes) in runs {
                            let (own, after) = rest.split_at(bytes.len() / BLOCK_BYTES);
                            self.append_run(&mut gate, *first, bytes, own);
                            rest = after;
                        }
                        if let Some(clear) = clear {
                            self.append_clear(&mut gate, clear);
                        }
                        return Ok(Some(gate.sequence()));
                    }
                    Err(missing) => missing,
                };
                // No file is read inside the gate.
                drop((hold, gate));
                self.engine.nodes.load(&missing)?;
            }
        })?;
        let Some(sequence) = sequence else {
            return Ok(false);
        };
        log.relieve()?;
        self.engine.space.relieve();
        if fua {
            log.commit(sequence)?;
        }
        Ok(true)
    }

    /// Whether the map has in memory what these changes need.
    fn ready(
        &self,
        writes: impl Iterator<Item = (u64, u64)>,
        clear: Option<Clear>,
    ) -> std::result::Result<(), Missing> {
        let map = self.object.head.map();
        for (first, count) in writes {
            map.ready(first, count, false)?;
        }
        clear.map_or(Ok(()), |clear| map.ready(clear.first, clear.count, true))
    }

    fn edges_hold(
        &self,
        _gate: InGate<'_>,
        edges: &[(u64, Option<Locator>)],
    ) -> std::result::Result<bool, Missing> {
        if edges.is_empty() {
            return Ok(true);
        }
        let map = self.object.head.map();
        for (index, locator) in edges {
            if map.get(*index)? != *locator {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn append_run(&self, gate: &mut GateGuard<'_>, first: u64, bytes: &[u8], checksums: &[u32]) {
        let object = &*self.object;
        let mut placed = Placed::default();
        gate.write(object.id(), first, bytes, checksums, |first, count, locator| {
            placed.push(first, count, locator)
        });
        let token = InGate::closed(gate);
        self.engine.changed.note(&self.object);
        let mut map = object.head.map_mut(token);
        for (first, count, locator) in placed.iter() {
            let space = &self.engine.space;
            let dirtied = write_map(&mut map, object, space, token, first, count, locator);
            self.engine.nodes.dirtied(dirtied);
        }
    }

    fn append_clear(&self, gate: &mut GateGuard<'_>, clear: Clear) {
        let object = &*self.object;
        let Clear { trim, first, count } = clear;
        let empty = object.head.map().is_empty_between(first, count);
        if count == 0 || empty.expect("was found ready, and held") {
            return;
        }
        let position = gate.clear(trim, object.id(), first, count);
        let token = InGate::closed(gate);
        self.engine.changed.note(&self.object);
        let dirtied = clear_map(object, &self.engine.space, token, first, count, position)
            .expect("was found ready, and held");
        self.engine.nodes.dirtied(dirtied);
    }

    /// Zero a range: whole blocks are cleared, partial ones at the edges are written.
    fn clear(&self, offset_bytes: u64, length_bytes: u64, trim: bool, fua: bool) -> Result<()> {
        self.check_write(offset_bytes, length_bytes)?;
        if length_bytes == 0 {
            return Ok(());
        }
        let end_bytes = offset_bytes + length_bytes;
        let first = offset_bytes.div_ceil(BLOCK_BYTES_U64);
        // The last block of a volume may be partial; nobody can see what lies behind the end.
        let end = if end_bytes == self.object.size_bytes() {
            end_bytes.div_ceil(BLOCK_BYTES_U64)
        } else {
            end_bytes / BLOCK_BYTES_U64
        };
        if first >= end {
            let length = usize::try_from(length_bytes).expect("less than two blocks");
            return self.zero_inside_blocks(offset_bytes, length, fua);
        }
        loop {
            let mut edges = Vec::with_capacity(2);
            let head =
                usize::try_from(first * BLOCK_BYTES_U64 - offset_bytes).expect("below a block");
            let tail = usize::try_from(end_bytes.saturating_sub(end * BLOCK_BYTES_U64))
                .expect("below a block");
            let before =
                if head > 0 { self.merge_zeros(offset_bytes, head, &mut edges)? } else { None };
            let after = if tail > 0 {
                self.merge_zeros(end * BLOCK_BYTES_U64, tail, &mut edges)?
            } else {
                None
            };
            let mut runs: Vec<(u64, &[u8])> = Vec::with_capacity(2);
            runs.extend(before.as_deref().map(|bytes| (first - 1, bytes)));
            runs.extend(after.as_deref().map(|bytes| (end, bytes)));
            let whole = Clear { trim, first, count: end - first };
            if self.append((offset_bytes, length_bytes), &runs, &edges, Some(whole), fua)? {
                return Ok(());
            }
        }
    }

    /// Zero a range that covers no whole block: parts of one block, or of two.
    fn zero_inside_blocks(&self, offset_bytes: u64, length: usize, fua: bool) -> Result<()> {
        let range = (offset_bytes, length as u64);
        let first = offset_bytes / BLOCK_BYTES_U64;
        loop {
            let mut edges = Vec::with_capacity(2);
            let Some(bytes) = self.merge_zeros(offset_bytes, length, &mut edges)? else {
                // The hole may be there since a trim that is not durable.
                return if fua { self.flush() } else { Ok(()) };
            };
            if self.append(range, &[(first, &bytes)], &edges, None, fua)? {
                return Ok(());
            }
        }
    }

    /// A block with some of its bytes made zero; `None` where it is a hole and may stay one.
    fn merge_zeros(
        &self,
        offset_bytes: u64,
        length: usize,
        edges: &mut Vec<(u64, Option<Locator>)>,
    ) -> Result<Option<Vec<u8>>> {
        let merged = self.merge(offset_bytes, &ZEROS[..length])?;
        let hole = merged.edges.iter().all(|(_, locator)| locator.is_none());
        edges.extend(merged.edges);
        Ok((!hole).then_some(merged.bytes))
    }
}

impl Drop for VolumeDevice {
    fn drop(&mut self) {
        if self.attached {
            self.object.attached.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl BlockDevice for VolumeDevice {
    fn size_bytes(&self) -> u64 {
        self.object.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.object.kind() == ObjectKind::Snapshot || self.engine.read_only()
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_any(offset_bytes, buffer)
    }

    fn read_lent(&self, offset_bytes: u64, buffer: &mut [u8], lent: &mut Vec<Lent>) -> Result<()> {
        self.lend_any(offset_bytes, buffer, lent)
    }

    fn will_read(&self, offset_bytes: u64, length_bytes: u64) {
        let length_bytes = length_bytes.min(ANNOUNCED_BYTES_MAX);
        let Some(end_bytes) = offset_bytes.checked_add(length_bytes) else { return };
        let first = offset_bytes / BLOCK_BYTES_U64;
        let end = end_bytes.min(self.object.size_bytes()).div_ceil(BLOCK_BYTES_U64);
        if first >= end || self.engine.log.check_open().is_err() {
            return;
        }
        EXTENTS.with_borrow_mut(|extents| {
            extents.clear();
            // Where a node is missing the read itself loads it.
            if self.object.head.map().lookup(first, end - first, extents).is_ok() {
                let mapped = extents.iter().filter_map(|it| Some((it.locator?, it.count)));
                mapped.for_each(|(locator, count)| self.engine.log.will_read(locator, count));
            }
        });
    }

    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<()> {
        self.engine.log.check_open()?;
        self.check_range(offset_bytes, length_bytes)?;
        extents::tell_mapped(self, offset_bytes, length_bytes, sink)?;
        // After the look: holes of a map that was taken away are never served.
        self.check_living()
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<()> {
        self.check_write(offset_bytes, bytes.len() as u64)?;
        let (mut at, mut rest) = (offset_bytes, bytes);
        while !rest.is_empty() {
            // Pieces end on a block, so that only the first and the last have partial blocks.
            let skip = usize::try_from(at % BLOCK_BYTES_U64).expect("below a block");
            let length = if rest.len() <= ATOMIC_BYTES { rest.len() } else { ATOMIC_BYTES - skip };
            let (piece, after) = rest.split_at(length);
            self.write_piece(at, piece, fua && after.is_empty())?;
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<()> {
        self.clear(offset_bytes, length_bytes, true, fua)
    }

    fn write_zeroes(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<()> {
        self.clear(offset_bytes, length_bytes, false, fua)
    }

    fn completed(&self) -> u64 {
        self.engine.log.appended().0
    }

    fn flush_up_to(&self, completed: u64) -> Result<()> {
        self.engine.check_open()?;
        Ok(self.engine.log.commit(Sequence(completed))?)
    }

    fn will_flush(&self) {
        if self.engine.check_open().is_ok() {
            // Where it fails the log is poisoned, and the flush says so.
            let _ = self.engine.log.begin_commit();
        }
    }

    fn is_durable(&self) -> bool {
        self.engine.log.durable() >= self.engine.log.appended()
    }
}

/// A range to be cleared.
#[derive(Clone, Copy)]
struct Clear {
    trim: bool,
    first: u64,
    count: u64,
}

/// A partial write, filled up to whole blocks.
struct Merged {
    bytes: Vec<u8>,
    /// The blocks that were filled up, and what they were filled up from.
    edges: Vec<(u64, Option<Locator>)>,
}

/// Where the blocks of a write came to lie: a few runs, mostly one.
#[derive(Default)]
struct Placed {
    first: Option<(u64, u64, Locator)>,
    more: Vec<(u64, u64, Locator)>,
}

impl Placed {
    fn push(&mut self, first: u64, count: u64, locator: Locator) {
        match self.first {
            None => self.first = Some((first, count, locator)),
            Some(_) => self.more.push((first, count, locator)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u64, Locator)> + '_ {
        self.first.iter().chain(&self.more).copied()
    }
}
