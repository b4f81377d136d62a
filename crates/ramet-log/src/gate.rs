//! The gate: one short critical section in which slots are assigned and maps are changed.
//!
//! Invariants: log order is the order of passing the gate; nothing in it waits for a file. Writers
//! give way as soon as a command waits: whoever comes after it waits until it is in.

use crate::error::{LogError, Result};
use crate::format::segment::LogEnd;
use crate::log::Log;
use crate::staging::{Slot, behind_header};
use crate::tail::Tail;
use crate::types::{ObjectId, Position, SegmentId, Sequence};
use ramet_store::locks::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

/// A writer that meets another one looks again, after a little longer each time,
const SPINS: u32 = 3;
/// lets others run, the one inside among them, and only then sleeps: who sleeps has to be woken by
/// whoever leaves, and where many do that costs a quarter of all writes and more.
const YIELDS: u32 = 7;

/// The mutex, and who gets it next.
pub(crate) struct Gate<T = Tail> {
    tail: Mutex<T>,
    commands_waiting: AtomicU32,
    /// Of the command that waits for the tail; writers that come later wait for it.
    turn: Mutex<()>,
    /// A command is inside, which takes long. A hint: who misses it waits a little longer.
    is_commanded: AtomicBool,
}

/// The closed gate's inside.
#[must_use]
pub(crate) struct Held<'a, T = Tail> {
    tail: MutexGuard<'a, T>,
    /// Of the gate, where a command holds it.
    is_commanded: Option<&'a AtomicBool>,
}

impl<T> Gate<T> {
    pub(crate) fn new(tail: T) -> Self {
        Gate {
            tail: Mutex::new(tail),
            commands_waiting: AtomicU32::new(0),
            turn: Mutex::new(()),
            is_commanded: AtomicBool::new(false),
        }
    }

    /// Pass as a writer.
    pub(crate) fn lock(&self) -> Held<'_, T> {
        for round in 0..SPINS + YIELDS {
            self.give_way();
            if let Some(tail) = self.tail.try_lock() {
                return Held { tail, is_commanded: None };
            }
            if self.is_commanded.load(Ordering::Relaxed) {
                break;
            }
            if round < SPINS {
                (0..2 << round).for_each(|_| std::hint::spin_loop());
            } else {
                std::thread::yield_now();
            }
        }
        self.give_way();
        Held { tail: self.tail.lock(), is_commanded: None }
    }

    /// Let a command that waits in first.
    fn give_way(&self) {
        if self.commands_waiting.load(Ordering::Relaxed) > 0 {
            drop(self.turn.lock());
        }
    }

    /// Pass as a command: writers give way.
    pub(crate) fn lock_command(&self) -> Held<'_, T> {
        self.commands_waiting.fetch_add(1, Ordering::Relaxed);
        let turn = self.turn.lock();
        let tail = self.tail.lock();
        self.is_commanded.store(true, Ordering::Relaxed);
        drop(turn);
        self.commands_waiting.fetch_sub(1, Ordering::Relaxed);
        Held { tail, is_commanded: Some(&self.is_commanded) }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        if let Some(is_commanded) = self.is_commanded {
            is_commanded.store(false, Ordering::Relaxed);
        }
    }
}

impl<T> std::ops::Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.tail
    }
}

impl<T> std::ops::DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.tail
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_waits_for_each_writer_once_at_most() {
        const WRITERS: usize = 8;
        let (gate, is_over) = (Gate::new(Vec::new()), AtomicBool::new(false));
        let writer = || {
            while !is_over.load(Ordering::Relaxed) {
                gate.lock().push("writer");
            }
        };
        std::thread::scope(|scope| {
            let closed = gate.lock();
            (0..WRITERS).for_each(|_| drop(scope.spawn(writer)));
            let command = scope.spawn(|| gate.lock_command().push("command"));
            while gate.commands_waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(closed);
            command.join().expect("passed");
            is_over.store(true, Ordering::Relaxed);
        });
        let before = gate.lock().iter().position(|it| *it == "command");
        assert!(before.expect("passed") <= WRITERS, "{before:?} passed before the command");
    }
}
