//! The body of a leaf: which of its blocks are mapped, and where they are.
//!
//! Pure. Invariants: runs are sorted, never empty, do not overlap, and no two neighbors could be
//! one; a dense body is used only where runs would take more bytes, and counts the runs it stands
//! for.

use super::BLOCKS_PER_LEAF;
use ramet_log::Locator;

/// Runs a leaf may have before it turns dense: 16 bytes each, as many bytes as the dense array.
const RUNS_MAX: usize = 256;
/// Runs below which a dense leaf turns back: half, so that a leaf at the limit does not flip with
/// every write.
const RUNS_BACK: usize = RUNS_MAX / 2;
/// What one change leaves where it happened: the rest before, the new run, the rest behind.
const PARTS_MAX: usize = 3;

/// Consecutive blocks in consecutive slots of one segment; `start` counts from the leaf's first
/// block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(super) locator: Locator,
    start: u16,
    length: u16,
}

impl Run {
    fn new(start: usize, length: usize, locator: Locator) -> Self {
        let short = |value: usize| u16::try_from(value).expect("a leaf has 512 blocks");
        Run { locator, start: short(start), length: short(length) }
    }

    pub(super) fn start(self) -> usize {
        usize::from(self.start)
    }

    pub(super) fn length(self) -> usize {
        usize::from(self.length)
    }

    pub(super) fn end(self) -> usize {
        self.start() + self.length()
    }

    /// What lies in `from..to` of it.
    pub(super) fn clip(self, from: usize, to: usize) -> Option<Run> {
        let (start, end) = (self.start().max(from), self.end().min(to));
        let skipped = |start: usize| (start - self.start()) as u64;
        (start < end).then(|| Run::new(start, end - start, self.locator.offset(skipped(start))))
    }

    /// Whether `next` goes on where this run ends, in blocks and in slots.
    fn continues(self, next: Run) -> bool {
        self.end() == next.start() && continues(self.locator, u64::from(self.length), next.locator)
    }
}

/// Whether `next` is `count` slots behind `locator`, in the same segment.
pub(super) fn continues(locator: Locator, count: u64, next: Locator) -> bool {
    locator.0 + count == next.0 && locator.segment() == next.segment()
}

/// One locator for each block of a leaf.
#[derive(Clone)]
pub(crate) struct Dense {
    locators: [Locator; BLOCKS_PER_LEAF],
    runs_count: usize,
}

/// The body of a leaf.
#[derive(Clone)]
pub(crate) enum Leaf {
    Runs(Vec<Run>),
    Dense(Box<Dense>),
}

impl Default for Leaf {
    fn default() -> Self {
        Leaf::Runs(Vec::new())
    }
}

impl Leaf {
    pub(super) fn get(&self, slot: usize) -> Option<Locator> {
        match self {
            Leaf::Runs(_) => self.runs(slot, slot + 1).next().map(|run| run.locator),
            Leaf::Dense(dense) => dense.get(slot),
        }
    }

    /// Bring what a change from `slot` on will look at into the processor's cache; a slot beyond
    /// the leaf is none.
    pub(super) fn touch(&self, slot: usize) {
        if let Leaf::Dense(dense) = self {
            std::hint::black_box(dense.locators.get(slot).copied());
        }
    }

    /// The runs in `from..to`, clipped to it, in order.
    pub(super) fn runs(&self, from: usize, to: usize) -> Runs<'_> {
        let next = match self {
            Leaf::Runs(runs) => runs.partition_point(|run| run.end() <= from),
            Leaf::Dense(_) => from,
        };
        Runs { leaf: self, next, from, to }
    }

    /// Give `from..to` consecutive slots starting at `locator`, or nothing. Result: how many blocks
    /// were mapped there; `was` is told their runs before.
    pub(super) fn replace(
        &mut self,
        from: usize,
        to: usize,
        locator: Option<Locator>,
        was: &mut dyn FnMut(Run),
    ) -> u64 {
        assert!(from < to && to <= BLOCKS_PER_LEAF, "blocks {from}..{to} of a leaf");
        let mut replaced = 0;
        for run in self.runs(from, to) {
            replaced += u64::from(run.length);
            was(run);
        }
        match self {
            Leaf::Runs(runs) => replace_runs(runs, from, to, locator),
            Leaf::Dense(dense) => dense.replace(from, to, locator),
        }
        self.fit();
        replaced
    }

    /// Change to the smaller of the two bodies.
    fn fit(&mut self) {
        match self {
            Leaf::Runs(runs) if runs.len() > RUNS_MAX => {
                let mut dense =
                    Dense { locators: [Locator::NONE; BLOCKS_PER_LEAF], runs_count: runs.len() };
                runs.iter().for_each(|run| dense.fill(*run));
                *self = Leaf::Dense(Box::new(dense));
            }
            Leaf::Dense(dense) if dense.runs_count < RUNS_BACK => {
                let mut runs = Vec::with_capacity(dense.runs_count);
                runs.extend(self.runs(0, BLOCKS_PER_LEAF));
                *self = Leaf::Runs(runs);
            }
            Leaf::Runs(_) | Leaf::Dense(_) => {}
        }
    }

    /// Bytes on the heap beside the node itself, and the number of allocations.
    pub(super) fn heap_bytes(&self) -> (usize, usize) {
        match self {
            Leaf::Runs(runs) => (runs.capacity() * size_of::<Run>(), usize::from(!runs.is_empty())),
            Leaf::Dense(_) => (size_of::<Dense>(), 1),
        }
    }

    /// Number of runs, and whether the body is dense.
    pub(super) fn shape(&self) -> (usize, bool) {
        match self {
            Leaf::Runs(runs) => (runs.len(), false),
            Leaf::Dense(dense) => (dense.runs_count, true),
        }
    }

    /// A leaf of these runs (start, length, locator); `None` where an invariant does not hold.
    pub(super) fn of_runs(parts: impl Iterator<Item = (u16, u16, Locator)>) -> Option<Self> {
        let mut runs: Vec<Run> = Vec::with_capacity(parts.size_hint().0);
        for (start, length, locator) in parts {
            let run = Run { locator, start, length };
            let after =
                runs.last().is_none_or(|last| last.end() <= run.start() && !last.continues(run));
            let slots_end = u64::from(locator.slot()) + u64::from(length);
            let sane = length > 0 && run.end() <= BLOCKS_PER_LEAF && locator != Locator::NONE;
            if !after || !sane || slots_end > u64::from(ramet_log::SLOTS_MAX) {
                return None;
            }
            runs.push(run);
        }
        (runs.len() <= RUNS_MAX).then_some(Leaf::Runs(runs))
    }

    /// A leaf with one locator for each block, zero for holes.
    pub(super) fn of_locators(locators: [Locator; BLOCKS_PER_LEAF]) -> Self {
        let mut dense = Dense { locators, runs_count: 0 };
        dense.runs_count = dense.starts_count(0, BLOCKS_PER_LEAF);
        Leaf::Dense(Box::new(dense))
    }

    /// Hold the body against its invariants. Result: blocks mapped.
    pub(super) fn check(&self) -> u64 {
        let runs: Vec<Run> = self.runs(0, BLOCKS_PER_LEAF).collect();
        for (run, next) in runs.iter().zip(runs.iter().skip(1)) {
            assert!(run.end() <= next.start() && !run.continues(*next), "{run:?} then {next:?}");
        }
        match self {
            Leaf::Runs(own) => assert!(*own == runs && own.len() <= RUNS_MAX, "{own:?}"),
            Leaf::Dense(dense) => {
                assert_eq!(dense.runs_count, runs.len(), "runs counted");
                assert!(runs.len() >= RUNS_BACK, "{} runs kept dense", runs.len());
            }
        }
        runs.iter().map(|run| u64::from(run.length)).sum()
    }
}

impl Dense {
    fn get(&self, slot: usize) -> Option<Locator> {
        let locator = self.locators[slot];
        (locator != Locator::NONE).then_some(locator)
    }

    fn fill(&mut self, run: Run) {
        for (offset, locator) in (0u64..).zip(&mut self.locators[run.start()..run.end()]) {
            *locator = run.locator.offset(offset);
        }
    }

    fn replace(&mut self, from: usize, to: usize, locator: Option<Locator>) {
        // A change can start and end runs inside itself and right behind it, nowhere else.
        let before = self.starts_count(from, to);
        match locator {
            Some(locator) => self.fill(Run::new(from, to - from, locator)),
            None => self.locators[from..to].fill(Locator::NONE),
        }
        self.runs_count = self.runs_count + self.starts_count(from, to) - before;
    }

    /// Runs that start in `from..=to`.
    fn starts_count(&self, from: usize, to: usize) -> usize {
        (from..(to + 1).min(BLOCKS_PER_LEAF)).filter(|slot| self.is_start(*slot)).count()
    }

    fn is_start(&self, slot: usize) -> bool {
        let Some(locator) = self.get(slot) else {
            return false;
        };
        let before = slot.checked_sub(1).and_then(|before| self.get(before));
        !before.is_some_and(|before| continues(before, 1, locator))
    }
}

fn replace_runs(runs: &mut Vec<Run>, from: usize, to: usize, locator: Option<Locator>) {
    // Runs that only touch are taken too: the new one may continue them.
    let low = runs.partition_point(|run| run.end() < from);
    let high = runs.partition_point(|run| run.start() <= to).max(low);
    let touched = &runs[low..high];
    let before = touched.first().and_then(|run| run.clip(0, from));
    let behind = touched.last().and_then(|run| run.clip(to, BLOCKS_PER_LEAF));
    let new = locator.map(|locator| Run::new(from, to - from, locator));
    let mut parts = [Run::default(); PARTS_MAX];
    let mut count = 0;
    for part in [before, new, behind].into_iter().flatten() {
        match parts[..count].last_mut() {
            Some(last) if last.continues(part) => last.length += part.length,
            Some(_) | None => {
                parts[count] = part;
                count += 1;
            }
        }
    }
    let length = runs.len() - (high - low) + count;
    if length > runs.capacity() {
        // Grow by an eighth, not to twice the size: many leaves hold three or four runs for ever.
        runs.reserve_exact(length - runs.len() + length / 8);
    }
    runs.splice(low..high, parts[..count].iter().copied());
}

/// See `Leaf::runs`.
pub(super) struct Runs<'a> {
    leaf: &'a Leaf,
    next: usize,
    from: usize,
    to: usize,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        match self.leaf {
            Leaf::Runs(runs) => {
                let run = runs.get(self.next)?;
                self.next += 1;
                run.clip(self.from, self.to)
            }
            Leaf::Dense(dense) => {
                while self.next < self.to && dense.get(self.next).is_none() {
                    self.next += 1;
                }
                let start = self.next;
                let locator = (start < self.to).then(|| dense.get(start)).flatten()?;
                self.next += 1;
                while self.next < self.to
                    && !dense.is_start(self.next)
                    && dense.get(self.next).is_some()
                {
                    self.next += 1;
                }
                Some(Run::new(start, self.next - start, locator))
            }
        }
    }
}
