//! Reading everything that is held, each stored byte once, to find what is damaged before somebody
//! needs it.
//!
//! Calls maps and the log, holds no lock while it reads. Invariants: a step reads little more than
//! it was told to; what a living object held when the scrub began, and still holds, is read before
//! it ends; a block is reported only where an object still has it there.

use crate::EngineError;
use crate::engine::Engine;
use crate::map::Missing;
use crate::map::fresh::{Fresh, Marks, runs_of};
use crate::object::Object;
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64, Locator, LogError, ObjectId, SegmentId, SlotSet};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Blocks read at once: 256 KiB.
const PIECE_BLOCKS: u64 = 64;
/// What reading a node counts as.
const NODE_COST_BYTES: u64 = BLOCK_BYTES_U64;
/// Nodes looked into in memory that count as one read.
const LOOKS_PER_READ: u64 = 64;
/// What beginning with an object counts as.
const OBJECT_COST_BYTES: u64 = NODE_COST_BYTES / LOOKS_PER_READ;
/// Findings that are kept; the others are only counted.
const FINDINGS_MAX: usize = 1000;
/// Ranges of objects that one finding names; the others are only counted.
const HOLDERS_MAX: usize = 10;

type Result<T> = std::result::Result<T, EngineError>;

/// A range of an object that needs what is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageHolder {
    /// The object's name.
    pub name: String,
    /// First byte in the object.
    pub offset_bytes: u64,
    /// How many.
    pub length_bytes: u64,
}

/// Something that cannot be read.
#[derive(Clone, Debug)]
pub struct Damage {
    /// As an error for a reader would have it.
    pub code: &'static str,
    /// What is wrong, and where.
    pub text: String,
    /// Who needs it: the first ten.
    pub holders: Vec<DamageHolder>,
    /// How many there are.
    pub holders_count: u64,
}

impl Damage {
    fn new(error: EngineError) -> Self {
        Damage { code: error.code, text: error.text, holders: Vec::new(), holders_count: 0 }
    }

    fn hold(&mut self, object: &Object, first: u64, count: u64) {
        self.holders_count += 1;
        if self.holders.len() < HOLDERS_MAX {
            let offset_bytes = first * BLOCK_BYTES_U64;
            // A node may stand for more than there is.
            let end_bytes = (first + count).saturating_mul(BLOCK_BYTES_U64);
            let length_bytes = end_bytes.min(object.size_bytes()).saturating_sub(offset_bytes);
            self.holders.push(DamageHolder { name: object.name(), offset_bytes, length_bytes });
        }
    }
}

/// Blocks in consecutive slots.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    count: u64,
    locator: Locator,
}

/// Slots that were read: one bit each.
#[derive(Default)]
struct Slots(HashMap<SegmentId, SlotSet>);

impl Slots {
    fn add(&mut self, run: Run) {
        let set = self.0.entry(run.locator.segment()).or_default();
        for slot in u64::from(run.locator.slot())..u64::from(run.locator.slot()) + run.count {
            let word = usize::try_from(slot / 64).expect("few slots");
            if set.len() <= word {
                set.resize(word + 1, 0);
            }
            set[word] |= 1 << (slot % 64);
        }
    }

    /// The parts of a run that were not read yet, in pieces.
    fn left(&self, run: Run, into: &mut VecDeque<Run>) {
        let set = self.0.get(&run.locator.segment()).map_or(&[][..], Vec::as_slice);
        let slot = u64::from(run.locator.slot());
        let is_read = |index: u64| {
            let (word, bit) = ((slot + index) / 64, (slot + index) % 64);
            let word = set.get(usize::try_from(word).expect("few slots"));
            word.is_some_and(|word| word & (1 << bit) != 0)
        };
        let mut at = 0;
        while at < run.count {
            let most = run.count.min(at + PIECE_BLOCKS);
            let end = (at..most).find(|index| is_read(*index)).unwrap_or(most);
            if end > at {
                let (first, locator) = (run.first + at, run.locator.offset(at));
                into.push_back(Run { first, count: end - at, locator });
            }
            at = end.max(at + 1);
        }
    }
}

/// A scrub under way. See the head of this file.
pub struct Scrub {
    engine: Arc<Engine>,
    marks: Marks,
    slots: Slots,
    /// Objects to come, by place, and the last place that there was.
    objects: VecDeque<ObjectId>,
    last: u64,
    /// Whose map is read, its place when that began, and up to which block it was.
    object: Option<(Arc<Object>, u64)>,
    at: u64,
    /// Of the leaf that is read: its address (0: it is not on disk), what is left of it, and
    /// whether all of it was there.
    leaf: u64,
    runs: VecDeque<Run>,
    whole: bool,
    /// The address of the node that could not be read the last time.
    unread: Option<u64>,
    buffer: Vec<u8>,
    read_bytes: u64,
    findings: Vec<Damage>,
    findings_count: u64,
}

impl Scrub {
    /// Begin.
    pub fn new(engine: Arc<Engine>) -> Self {
        Scrub {
            engine,
            marks: Marks::default(),
            slots: Slots::default(),
            objects: VecDeque::new(),
            last: 0,
            object: None,
            at: 0,
            leaf: 0,
            runs: VecDeque::new(),
            whole: true,
            unread: None,
            buffer: vec![0; usize::try_from(PIECE_BLOCKS).expect("few") * BLOCK_BYTES],
            read_bytes: 0,
            findings: Vec::new(),
            findings_count: 0,
        }
    }

    /// Bytes of blocks that were read so far, and about how many there are.
    pub fn progress_bytes(&self) -> (u64, u64) {
        (self.read_bytes, self.engine.living_bytes().max(self.read_bytes))
    }

    /// What was found so far: the first thousand.
    pub fn findings(&self) -> &[Damage] {
        &self.findings
    }

    /// How many were found.
    pub fn findings_count(&self) -> u64 {
        self.findings_count
    }

    /// Read about so many bytes. Result: what was read, nodes included; 0 when nothing is left.
    ///
    /// # Errors
    /// `Unavailable` once the pool is closed. What is damaged is a finding, not an error.
    pub fn step(&mut self, budget_bytes: u64) -> Result<u64> {
        let mut spent = 0;
        while spent < budget_bytes.max(1) {
            self.engine.check_open()?;
            spent += match self.runs.pop_front() {
                Some(run) => self.verify(run),
                None => match self.advance() {
                    Some(cost_bytes) => cost_bytes,
                    None => break,
                },
            };
        }
        Ok(spent)
    }

    /// Find what is to be read next. Result: what that cost; `None` at the end.
    fn advance(&mut self) -> Option<u64> {
        if self.leaf != 0 && self.whole {
            self.marks.set_done(self.leaf);
        }
        (self.leaf, self.whole) = (0, true);
        let (object, place) = match &self.object {
            Some((object, place)) => (object.clone(), *place),
            None => return self.next_object(),
        };
        if object.place() != place {
            // It was reverted: what it has now was not looked at.
            (self.object, self.at) = (Some((object.clone(), object.place())), 0);
        }
        let mut looked = 0;
        let next = object.head.map().next_fresh(self.at, &mut self.marks, &mut looked);
        let cost = (looked / LOOKS_PER_READ + 1) * NODE_COST_BYTES;
        match next {
            Ok(None) => self.object = None,
            Ok(Some(Fresh::Unread(node))) => {
                let reference = node.reference().expect("it is on disk");
                match self.engine.nodes.files.read(&reference) {
                    Ok(_) => self.marks.set_read(&node),
                    Err(error) => self.note_unread(&Missing(node), error),
                }
            }
            Ok(Some(Fresh::Leaf(base, leaf))) => match runs_of(&leaf, base) {
                Ok(runs) => {
                    self.leaf = leaf.reference().map_or(0, |reference| reference.address);
                    self.at = base + leaf.span();
                    for (first, count, locator) in runs {
                        self.slots.left(Run { first, count, locator }, &mut self.runs);
                    }
                    self.runs.make_contiguous().sort_unstable_by_key(|run| run.locator);
                }
                Err(missing) => self.load(&missing),
            },
            Ok(Some(Fresh::Bad(base, node, finding))) => {
                if let Some(finding) = self.findings.get_mut(finding) {
                    finding.hold(&object, base, node.span());
                }
                self.at = base + node.span();
            }
            Err(missing) => self.load(&missing),
        }
        Some(cost)
    }

    /// Begin with the next object. New ones come last, and those that were reverted meanwhile: what
    /// they took over from others is theirs to hold, and a new place is higher than all before.
    fn next_object(&mut self) -> Option<u64> {
        if self.objects.is_empty() {
            let table = self.engine.table.read();
            let places = table.all().map(|object| (object.place(), object.id()));
            let mut places: Vec<_> = places.filter(|(place, _)| *place > self.last).collect();
            places.sort_unstable();
            self.last = places.last().map_or(self.last, |(place, _)| *place);
            self.objects = places.into_iter().map(|(_, id)| id).collect();
        }
        let id = self.objects.pop_front()?;
        let object = self.engine.table.read().get(id).cloned();
        self.object = object.map(|object| (object.clone(), object.place()));
        self.at = 0;
        Some(OBJECT_COST_BYTES)
    }

    fn load(&mut self, missing: &Missing) {
        if let Err(error) = self.engine.nodes.load(missing) {
            self.note_unread(missing, error);
        }
    }

    /// A node cannot be read. It may have been replaced after it was looked up, and given back:
    /// only what is still there the next time is damaged.
    fn note_unread(&mut self, missing: &Missing, error: EngineError) {
        let address = missing.0.reference().map(|reference| reference.address);
        if address.is_some() && self.unread == address {
            self.unread = None;
            self.marks.set_bad(&missing.0, self.findings.len());
            self.add(Damage::new(error));
        } else {
            self.unread = address;
        }
    }

    fn add(&mut self, damage: Damage) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(damage);
        }
    }

    /// Read a piece. Result: what it cost.
    fn verify(&mut self, run: Run) -> u64 {
        let bytes = run.count * BLOCK_BYTES_U64;
        let length = usize::try_from(bytes).expect("a piece is small");
        let read = self.engine.log.read(run.locator, run.first, &mut self.buffer[..length]);
        match read {
            Ok(()) => self.slots.add(run),
            Err(_) => self.verify_each(run),
        }
        self.read_bytes += bytes;
        bytes
    }

    /// Find the damaged blocks of a piece.
    fn verify_each(&mut self, run: Run) {
        let mut found: Vec<(Run, LogError)> = Vec::new();
        for index in 0..run.count {
            let (first, locator) = (run.first + index, run.locator.offset(index));
            let one = Run { first, count: 1, locator };
            match self.engine.log.read(locator, first, &mut self.buffer[..BLOCK_BYTES]) {
                Ok(()) => self.slots.add(one),
                Err(_) if !self.is_still_there(one) => self.whole = false,
                Err(error) => {
                    self.slots.add(one);
                    let same = |(last, before): &mut (Run, LogError)| {
                        let goes_on = last.first + last.count == first;
                        let alike =
                            std::mem::discriminant(before) == std::mem::discriminant(&error);
                        (goes_on && alike).then(|| last.count += 1)
                    };
                    if found.last_mut().and_then(same).is_none() {
                        found.push((one, error));
                    }
                }
            }
        }
        for (run, error) in found {
            let mut error = EngineError::from(error);
            if run.count > 1 {
                error.text = format!("{} blocks, the first: {}", run.count, error.text);
            }
            let mut damage = Damage::new(error);
            if self.findings.len() < FINDINGS_MAX {
                self.name_holders(run, &mut damage);
            }
            self.add(damage);
        }
    }

    /// Whether the object has the block there: it may have been overwritten and given back.
    fn is_still_there(&self, run: Run) -> bool {
        let Some((object, _)) = &self.object else { return false };
        let found = self.engine.nodes.with(|| object.head.map().get(run.first));
        found.is_ok_and(|found| found == Some(run.locator)) && !object.is_gone()
    }

    fn name_holders(&self, run: Run, damage: &mut Damage) {
        let table = self.engine.table.read();
        let all = table.by_name().into_iter().chain(table.trashed());
        let objects: Vec<Arc<Object>> = all.cloned().collect();
        drop(table);
        for object in objects {
            let found = self.engine.nodes.with(|| {
                let mut extents = Vec::new();
                object.head.map().lookup(run.first, run.count, &mut extents)?;
                Ok(extents)
            });
            // A map that cannot be read is a finding of its own.
            for extent in found.unwrap_or_default() {
                let wanted = run.locator.offset(extent.first - run.first);
                if extent.locator == Some(wanted) {
                    damage.hold(&object, extent.first, extent.count);
                }
            }
        }
    }
}

impl std::fmt::Debug for Scrub {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (read_bytes, findings) = (self.read_bytes, self.findings_count);
        write!(out, "Scrub({read_bytes} bytes, {findings} findings)")
    }
}
