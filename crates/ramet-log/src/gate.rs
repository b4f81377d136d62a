//! The gate: one short critical section in which slots are assigned and maps are changed.
//!
//! Invariants: log order is the order of passing the gate; nothing in it waits for a file. It is
//! fair as soon as a command waits: then every holder hands it to the one that has waited longest
//! (see docs/internals/format.md, "Order").

use crate::error::{LogError, Result};
use crate::format::segment::LogEnd;
use crate::log::Log;
use crate::staging::{Slot, behind_header};
use crate::tail::Tail;
use crate::types::{ObjectId, Position, SegmentId, Sequence};
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// The mutex with its fairness.
pub(crate) struct Gate {
    tail: Mutex<Tail>,
    commands_waiting: AtomicU32,
}

impl Gate {
    pub(crate) fn new(tail: Tail) -> Self {
        Gate { tail: Mutex::new(tail), commands_waiting: AtomicU32::new(0) }
    }

    /// Pass as a writer.
    pub(crate) fn lock(&self) -> Held<'_> {
        Held { tail: Some(self.tail.lock()), gate: self }
    }

    /// Pass as a command: writers give way.
    pub(crate) fn lock_command(&self) -> Held<'_> {
        self.commands_waiting.fetch_add(1, Ordering::Relaxed);
        let tail = self.tail.lock();
        self.commands_waiting.fetch_sub(1, Ordering::Relaxed);
        Held { tail: Some(tail), gate: self }
    }
}

/// The closed gate's inside.
pub(crate) struct Held<'a> {
    tail: Option<MutexGuard<'a, Tail>>,
    gate: &'a Gate,
}

impl std::ops::Deref for Held<'_> {
    type Target = Tail;
    fn deref(&self) -> &Tail {
        self.tail.as_ref().expect("held until dropped")
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Tail {
        self.tail.as_mut().expect("held until dropped")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(tail) = self.tail.take()
            && self.gate.commands_waiting.load(Ordering::Relaxed) > 0
        {
            MutexGuard::unlock_fair(tail);
        }
    }
}

/// The closed gate, with room for what was asked. Dropping it opens the gate; nothing is durable by
/// that.
pub struct GateGuard<'a> {
    log: &'a Log,
    held: Held<'a>,
    closed_at: Option<Instant>,
}

/// A command's record, made outside the gate. At most `RECORD_BYTES_MAX` bytes.
pub struct PreparedRecord {
    pub(crate) payload: Payload,
    pub(crate) slots_count: u32,
    pub(crate) length_bytes: usize,
    pub(crate) crc: u32,
}

/// A record's bytes, padded to slots.
pub(crate) enum Payload {
    /// Few enough to be copied inside the gate.
    Small(Vec<u8>),
    /// Laid out as a chunk already, behind room for the header.
    Large(Box<[Slot]>),
}

/// Slots of a record that are copied inside the gate (a few microseconds) rather than made a chunk
/// of their own.
const SMALL_SLOTS_MAX: usize = 16;

// SAFETY: the cells of a large payload are owned by this value alone until the log adopts them.
unsafe impl Sync for PreparedRecord {}

impl GateGuard<'_> {
    /// Append blocks of `object` from `first`, and say where each run of them lies.
    ///
    /// `data` is whole blocks; `crcs` the CRC-32C of each block's bytes. `placed(first, count,
    /// locator)` is called for runs of consecutive slots, in order.
    ///
    /// # Panics
    /// Where `data` and `crcs` disagree, or more is written than the gate was entered for.
    ///
    /// # Durability
    /// None before `Log::commit`.
    pub fn write(
        &mut self,
        object: ObjectId,
        first: u64,
        data: &[u8],
        crcs: &[u32],
        placed: impl FnMut(u64, u64, crate::Locator),
    ) {
        self.held.write(self.log, object, first, data, crcs, placed);
    }

    /// Append that a range reads as zeros from now on; result: the position it counts as.
    pub fn clear(&mut self, trim: bool, object: ObjectId, first: u64, count: u64) -> Position {
        self.held.clear(self.log, trim, object, first, count)
    }

    /// Append a command's record, as a batch of its own; result: its position.
    pub fn record(&mut self, record: PreparedRecord) -> Position {
        self.held.record(self.log, record)
    }

    /// End the open batch. Result: the last batch of the log, and the segment that is appended to.
    pub fn cut(&mut self) -> (LogEnd, Option<SegmentId>) {
        self.held.close_batch(self.log);
        self.held.end()
    }

    /// The batch that a commit has to reach for everything appended so far to be durable.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.log.appended()
    }
}

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        if let Some(closed_at) = self.closed_at {
            self.log.note_gate_closed(closed_at.elapsed());
        }
    }
}

impl Log {
    /// Close the gate as a writer of `blocks_count` blocks.
    ///
    /// # Errors
    /// `Store(Full)` where no room can be made; `Poisoned`; `Closed`; `ReadOnly`.
    pub fn enter_write(&self, blocks_count: u64) -> Result<GateGuard<'_>> {
        let slots = slots_for_blocks(blocks_count);
        loop {
            self.check_writable()?;
            let held = self.gate.lock();
            if held.room_for_blocks(slots) {
                return Ok(GateGuard { log: self, held, closed_at: None });
            }
            drop(held);
            self.make_room(slots, false)?;
        }
    }

    /// Close the gate as a command with `record`; writers give way.
    ///
    /// # Errors
    /// As `enter_write`.
    pub fn enter_command(&self, record: &PreparedRecord) -> Result<GateGuard<'_>> {
        let slots = record.slots_count;
        loop {
            self.check_writable()?;
            let held = self.gate.lock_command();
            if held.room_for_record(slots) {
                return Ok(GateGuard { log: self, held, closed_at: Some(Instant::now()) });
            }
            drop(held);
            self.make_room(slots, true)?;
        }
    }

    /// Close the gate to look at something, or to change what is not in the log; writers give way.
    pub fn enter(&self) -> GateGuard<'_> {
        let held = self.gate.lock_command();
        GateGuard { log: self, held, closed_at: Some(Instant::now()) }
    }
}

/// Slots that `blocks_count` blocks take at most in one segment, headers of batches included.
fn slots_for_blocks(blocks_count: u64) -> u32 {
    u32::try_from(blocks_count + blocks_count / 64 + 4).unwrap_or(u32::MAX)
}

/// Bytes of a record at most.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

impl PreparedRecord {
    /// Pad and checksum a record's bytes.
    ///
    /// # Errors
    /// `TooLarge` over `RECORD_BYTES_MAX`.
    pub fn new(mut payload: Vec<u8>) -> Result<Self> {
        let length_bytes = payload.len();
        if length_bytes > RECORD_BYTES_MAX {
            let (size, limit) = (length_bytes as u64, RECORD_BYTES_MAX as u64);
            return Err(LogError::TooLarge { what: "bytes of a record", size, limit });
        }
        payload.resize(length_bytes.next_multiple_of(crate::types::BLOCK_BYTES), 0);
        let crc = crate::checksum::crc(&payload);
        let slots = payload.len() / crate::types::BLOCK_BYTES;
        let slots_count = u32::try_from(slots).expect("bounded above");
        let large = slots > SMALL_SLOTS_MAX;
        let payload =
            if large { Payload::Large(behind_header(&payload)) } else { Payload::Small(payload) };
        Ok(PreparedRecord { payload, slots_count, length_bytes, crc })
    }
}
