//! The words of the log as types: epochs, segments, slots, locators, sequences.
//!
//! Pure. Invariant: a locator of zero is never issued, so it can stand for "no block".

use std::fmt;

/// Bytes of a block of a volume and of a slot in a segment.
pub const BLOCK_BYTES: usize = 4096;
/// `BLOCK_BYTES` for arithmetic on offsets.
pub const BLOCK_BYTES_U64: u64 = 4096;
/// `BLOCK_BYTES` as formats store it.
pub(crate) const BLOCK_BYTES_U32: u32 = 4096;
/// Bits of a locator that say the slot.
pub const SLOT_BITS: u32 = 16;
/// Bits of a locator that say the segment's counter within its epoch.
pub const COUNTER_BITS: u32 = 12;
/// Bits of a locator that say the epoch.
pub const EPOCH_BITS: u32 = 36;
/// Slots a segment can have at most.
pub const SLOTS_MAX: u32 = 1 << SLOT_BITS;
/// Segments an epoch can have at most.
pub const COUNTERS_MAX: u32 = 1 << COUNTER_BITS;
/// Epochs start at 1, so that no locator is zero.
pub const EPOCH_MAX: u64 = (1 << EPOCH_BITS) - 1;

/// A segment's id: epoch and counter. Ordered by birth; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u64);

/// Where a block's bytes are: segment and slot. Ordered by birth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locator(pub u64);

/// A point in the log, with the layout of a locator: the slot of a batch's header or of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// The number of a batch in its log, counted from 1 without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Sequence(pub u64);

/// An object's id as stored: epoch 36 | ordinal 28. Opaque here; zero is "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ObjectId(pub u64);

impl SegmentId {
    /// Put an id together.
    ///
    /// # Panics
    /// Where a part is out of its bits: ids from disk are checked before.
    pub fn new(epoch: u64, counter: u32) -> Self {
        assert!(
            epoch <= EPOCH_MAX && counter < COUNTERS_MAX,
            "segment id {epoch}.{counter} out of range"
        );
        SegmentId((epoch << COUNTER_BITS) | u64::from(counter))
    }

    /// The epoch the segment was opened in.
    pub fn epoch(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// The segment's number within its epoch, from 0.
    pub fn counter(self) -> u32 {
        u32::try_from(self.0 & u64::from(COUNTERS_MAX - 1)).expect("masked to 12 bits")
    }

    /// The locator of `slot` in this segment.
    pub fn slot(self, slot: u32) -> Locator {
        assert!(slot < SLOTS_MAX, "slot {slot} out of range");
        Locator((self.0 << SLOT_BITS) | u64::from(slot))
    }
}

impl Locator {
    /// Stands for "no block"; never issued.
    pub const NONE: Locator = Locator(0);

    /// The segment part.
    pub fn segment(self) -> SegmentId {
        SegmentId(self.0 >> SLOT_BITS)
    }

    /// The slot part.
    pub fn slot(self) -> u32 {
        u32::try_from(self.0 & u64::from(SLOTS_MAX - 1)).expect("masked to 16 bits")
    }

    /// The locator `count` slots further on in the same segment.
    pub fn offset(self, count: u64) -> Locator {
        debug_assert!(
            u64::from(self.slot()) + count < u64::from(SLOTS_MAX),
            "offset leaves the segment"
        );
        Locator(self.0 + count)
    }

    /// The moment the block was born.
    pub fn position(self) -> Position {
        Position(self.0)
    }
}

impl Position {
    /// Before everything.
    pub const ZERO: Position = Position(0);

    /// The epoch the position lies in.
    pub fn epoch(self) -> u64 {
        self.0 >> (COUNTER_BITS + SLOT_BITS)
    }

    /// The same place as a locator.
    pub fn locator(self) -> Locator {
        Locator(self.0)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:012x}", self.0)
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "segment {} slot {}", self.segment(), self.slot())
    }
}

impl fmt::Debug for Locator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.segment(), self.slot())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}
