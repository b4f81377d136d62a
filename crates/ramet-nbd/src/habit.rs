//! Whether a connection had better be served together with others: it writes and flushes, one
//! request at a time, while many others flush too.
//!
//! Pure counting; what comes of it is decided in `crowd`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Flushes in a row, each in a crowd, before a connection is served with others.
const FLUSHES_MIN: u32 = 16;
/// As many at most, for one that comes and goes.
const FLUSHES_MAX: u32 = 4096;

/// Flushes of all connections of a server that are under way.
pub(crate) struct Flushes {
    count: AtomicUsize,
    crowd_min: usize,
}

impl Flushes {
    /// `crowd_min`: so many at once are a crowd.
    pub(crate) fn new(crowd_min: usize) -> Self {
        Flushes { count: AtomicUsize::new(0), crowd_min }
    }

    /// One begins. Result: whether they are a crowd, itself included.
    pub(crate) fn begin(self: &Arc<Self>) -> (bool, UnderWay) {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        (before + 1 >= self.crowd_min, UnderWay(Arc::clone(self)))
    }

    /// Whether those under way are far from a crowd.
    pub(crate) fn are_few(&self) -> bool {
        self.count.load(Ordering::Relaxed) < self.crowd_min.div_ceil(2)
    }
}

/// A flush counts until this is dropped.
pub(crate) struct UnderWay(Arc<Flushes>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How one connection went lately.
pub(crate) struct Habit {
    flushes: Arc<Flushes>,
    crowded_count: u32,
    wanted_count: u32,
}

impl Habit {
    pub(crate) fn new(flushes: Arc<Flushes>) -> Self {
        Habit { flushes, crowded_count: 0, wanted_count: FLUSHES_MIN }
    }

    /// A flush begins; `is_last`: nothing was received behind it.
    pub(crate) fn flush(&mut self, is_last: bool) -> UnderWay {
        let (is_crowd, under_way) = self.flushes.begin();
        self.crowded_count = if is_crowd && is_last { self.crowded_count + 1 } else { 0 };
        under_way
    }

    /// The client asked for something else than to write and to flush.
    pub(crate) fn break_off(&mut self) {
        self.crowded_count = 0;
    }

    /// The connection is served by itself again, and has to prove itself for longer.
    pub(crate) fn leave(&mut self) {
        self.crowded_count = 0;
        self.wanted_count = (self.wanted_count * 2).min(FLUSHES_MAX);
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded_count >= self.wanted_count
    }
}
