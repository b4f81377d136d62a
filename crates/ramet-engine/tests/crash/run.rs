//! A pool and its model: every step is done to both, and what is there after a fault is held
//! against what may be.
//!
//! Invariant: what the pool holds is the model after one atom, at or after the last that was
//! promised to be durable; nothing that is read is called damaged.

use super::Random;
use super::model::{
    Atom, BLOCK_BYTES, Block, HIDDEN, Pool, SECTOR_BYTES, TRASHED, Thing, is_hidden, is_trashed,
};
use super::process::{Life, Process};
use super::script::{EMPTY, Script, Step, create, write};
use ramet_engine::{
    BlockDevice, Engine, EngineError, Incoming, Kind, LockMode, ObjectKind, Settings, Stats,
};
use ramet_store::{FaultStore, Kept};
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

type Result<T> = std::result::Result<T, EngineError>;

/// Background steps until nothing is left to do, at most.
const WALKS_MAX: usize = 10_000;
/// Blocks of a volume of which every other one is written: leaves of 512 places each.
const WIDE_BLOCKS: u64 = 40 * 256;

/// The hash of the secret that releases locks.
pub const SECRET: [u8; 32] = [7; 32];
const DAY_SECONDS: u64 = 24 * 3600;

/// What the pool may hold.
#[derive(Clone)]
pub struct History {
    /// What is durable for certain.
    base: Pool,
    /// What came after, done or begun.
    atoms: Vec<Atom>,
    /// How many of them are done.
    done: usize,
    pub now: Pool,
}

impl History {
    fn settle(&mut self, pool: Pool) {
        (self.base, self.now) = (pool.clone(), pool);
        self.atoms.clear();
        self.done = 0;
    }

    fn begin(&mut self, atoms: Vec<Atom>) {
        self.atoms.truncate(self.done);
        self.atoms.extend(atoms);
    }

    fn finish(&mut self) {
        for atom in &self.atoms[self.done..] {
            self.now.apply(atom);
        }
        self.done = self.atoms.len();
    }

    /// The moments at which the model looked like `found`; `live`: since the step under way began.
    fn moments(&self, found: &Pool, live: bool) -> Vec<Pool> {
        let (mut pool, atoms) = match live {
            true => (self.now.clone(), &self.atoms[self.done..]),
            false => (self.base.clone(), &self.atoms[..]),
        };
        let wanted = found.fingerprint();
        let mut moments = Vec::new();
        if pool.fingerprint() == wanted {
            moments.push(pool.clone());
        }
        for atom in atoms {
            pool.apply(atom);
            if pool.fingerprint() == wanted {
                moments.push(pool.clone());
            }
        }
        moments
    }
}

/// How a pool has worked, over all its openings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub checkpoints: u64,
    pub evicted: u64,
    pub loaded: u64,
    pub sealed: u64,
    pub replayed: u64,
    pub given_back_bytes: u64,
    pub reused: u64,
}

impl Totals {
    pub fn add(&mut self, stats: &Stats) {
        self.checkpoints += stats.checkpoints_count;
        self.evicted += stats.nodes_evicted_count;
        self.loaded += stats.nodes_loaded_count;
        self.sealed += stats.sealed_count;
        self.replayed += stats.replayed_count;
        self.reused += stats.reused_count;
    }
}

impl Totals {
    pub fn merge(&mut self, other: &Totals) {
        self.checkpoints += other.checkpoints;
        self.evicted += other.evicted;
        self.loaded += other.loaded;
        self.sealed += other.sealed;
        self.replayed += other.replayed;
        self.given_back_bytes += other.given_back_bytes;
        self.reused += other.reused;
    }
}

/// See the head of this file.
pub struct Run {
    pub store: Arc<FaultStore>,
    pub engine: Option<Arc<Engine>>,
    pub history: History,
    pub script: Script,
    pub settings: Settings,
    pub totals: Totals,
    /// Whether the pool was opened and not looked at yet.
    fresh: bool,
    /// Whether the pool is asked for no figures between steps: before it answers it takes in what
    /// was let go of, and here that has to wait for the next command, or for the background.
    blind: bool,
    clock: Instant,
    /// Of the process that has the pool open.
    pub life: Arc<Life>,
    /// Names script and moment when something is wrong.
    pub context: String,
}

/// What scripts are played with: checkpoints and evictions come often, and not by the clock.
pub fn settings(seed: u64) -> Settings {
    let mut random = Random(seed.wrapping_add(1 << 40));
    Settings {
        node_budget_bytes: random.pick(&[2 << 10, 2 << 10, 8 << 10, 64 << 10]),
        checkpoint_log_bytes: random.pick(&[300 << 10, 1 << 20, 1 << 30]),
        checkpoint_batches: random.pick(&[7, 20, 100, 1 << 20]),
        checkpoint_every: Duration::from_secs(1 << 20),
    }
}

impl Run {
    /// A fresh pool with the volume `EMPTY`, for a story told step by step: checkpoints come when
    /// they are asked for.
    pub fn quiet(seed: u64) -> Self {
        let batches = Settings { checkpoint_batches: u64::MAX, ..settings(0) };
        Self::with(
            seed,
            Settings { node_budget_bytes: 1 << 20, checkpoint_log_bytes: 1 << 30, ..batches },
        )
    }

    /// As `quiet`, but a checkpoint is due after each segment, and files of dead ones are used
    /// again.
    pub fn filling(seed: u64) -> Self {
        let batches = Settings { checkpoint_batches: u64::MAX, ..settings(0) };
        Self::with(
            seed,
            Settings { node_budget_bytes: 1 << 20, checkpoint_log_bytes: 1 << 20, ..batches },
        )
    }

    /// A pool with more nodes than its budget holds, for a long script: 64 KiB, and a checkpoint
    /// every 100 batches.
    pub fn long(seed: u64) -> Self {
        let batches = Settings { checkpoint_batches: 100, ..settings(0) };
        let mut run = Self::with(
            seed,
            Settings { node_budget_bytes: 64 << 10, checkpoint_log_bytes: 1 << 30, ..batches },
        );
        run.steps(&[create("wide", WIDE_BLOCKS)]);
        for at in (0..WIDE_BLOCKS).step_by(2) {
            run.steps(&[write("wide", at, 1, 8 * at + (1 << 40))]);
        }
        run.steps(&[Step::Checkpoint]);
        run
    }

    /// A fresh pool for the script of this seed.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, settings(seed))
    }

    fn with(seed: u64, settings: Settings) -> Self {
        let store = Arc::new(FaultStore::new(seed));
        Engine::create_in(&*store, 1 << 20).expect("created");
        let history =
            History { base: Pool::default(), atoms: Vec::new(), done: 0, now: Pool::default() };
        let mut run = Run {
            store,
            engine: None,
            history,
            script: Script::new(seed),
            settings,
            totals: Totals::default(),
            fresh: true,
            blind: seed % 2 == 1,
            clock: Instant::now(),
            life: Life::new(),
            context: format!("script {seed}"),
        };
        run.reopen().expect("opened");
        run.engine().set_lock_secret(SECRET, None).expect("set");
        run.engine().set_trash_seconds(DAY_SECONDS).expect("set");
        run.step(&Step::Create { name: EMPTY.into(), sectors: 1 }).expect("created");
        run
    }

    /// The same moment, in a store that came up again.
    pub fn survivor(&self, store: FaultStore, context: &str) -> Self {
        Run {
            store: Arc::new(store),
            engine: None,
            history: self.history.clone(),
            script: self.script.fork(1),
            settings: self.settings.clone(),
            totals: Totals::default(),
            fresh: true,
            blind: self.blind,
            clock: self.clock,
            life: Life::new(),
            context: format!("{}, {context}", self.context),
        }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("the pool is open")
    }

    /// Steps that must succeed.
    pub fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step).unwrap_or_else(|error| panic!("{}: {step:?}: {error}", self.context));
        }
    }

    /// Steps as the script draws them, until one fails.
    pub fn play(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let step = self.script.next(&self.history.now);
            self.step(&step)?;
        }
        Ok(())
    }

    pub fn step(&mut self, step: &Step) -> Result<()> {
        self.history.begin(step.atoms(&self.history.now));
        self.perform(step)?;
        if matches!(step, Step::Close | Step::Kill) {
            return Ok(());
        }
        self.history.finish();
        self.note_durable(step)
    }

    fn note_durable(&mut self, step: &Step) -> Result<()> {
        let durable = if self.blind {
            step.promises()
        } else {
            let stats = self.engine().stats()?;
            stats.durable_sequence == stats.appended_sequence
        };
        assert!(durable || !step.promises(), "{}: {step:?} is not durable", self.context);
        if durable {
            let now = self.history.now.clone();
            self.history.settle(now);
        }
        Ok(())
    }

    fn perform(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Close => {
                self.engine().close()?;
                let now = self.history.now.clone();
                self.history.settle(now);
                return self.reopen();
            }
            Step::Kill => return self.reopen(),
            _ => {}
        }
        let engine = self.engine().clone();
        let one = |name: &String| vec![name.clone()];
        match step {
            Step::Create { name, sectors } => {
                engine.create_volumes(&one(name), sectors * SECTOR_BYTES, &[]).map(drop)
            }
            Step::Write { name, range, stamp, fua } => {
                let stamps = (*stamp..).take(usize::try_from(range.count).expect("small"));
                let bytes: Vec<u8> =
                    stamps.flat_map(|stamp| stamp.to_le_bytes().repeat(64)).collect();
                device(&engine, name)?.write(range.first * SECTOR_BYTES, &bytes, *fua)
            }
            Step::Clear { name, range, trim, fua, .. } => {
                let device = device(&engine, name)?;
                let clear = if *trim { BlockDevice::trim } else { BlockDevice::write_zeroes };
                clear(&*device, range.first * SECTOR_BYTES, range.count * SECTOR_BYTES, *fua)
            }
            Step::Flush => engine.flush(),
            Step::Snapshot { names } => {
                let (volumes, names): (Vec<String>, Vec<String>) = names.iter().cloned().unzip();
                engine.snapshot(&volumes, &names, &[]).map(drop)
            }
            Step::Clone { source, names, sectors } => {
                engine.clone_object(source, names, Some(sectors * SECTOR_BYTES), &[]).map(drop)
            }
            Step::Revert { name, snapshot, keep, take_size } => {
                let (volume, snapshot, keep) = (one(name), one(snapshot), keep.as_ref().map(one));
                engine.revert(&volume, &snapshot, keep.as_deref(), *take_size).map(drop)
            }
            Step::Freeze { name } => engine.freeze(&one(name)).map(drop),
            Step::Resize { name, sectors, .. } => {
                engine.resize(name, sectors * SECTOR_BYTES, true).map(drop)
            }
            Step::Rename { name, new } => engine.rename(name, new).map(drop),
            Step::Delete { names } => engine.delete(names).map(drop),
            Step::Trash { .. } | Step::Restore { .. } | Step::Empty { .. } => {
                perform_trashing(&engine, step)
            }
            Step::Lock { .. } | Step::Unlock { .. } => perform_locking(&engine, step),
            Step::Receive { .. } | Step::Admit { .. } | Step::Abandon { .. } => {
                perform_receiving(&engine, step)
            }
            Step::Checkpoint => engine.checkpoint().map(drop),
            Step::Idle { times } => (0..*times).try_for_each(|_| {
                self.clock += Duration::from_secs(2);
                engine.step(self.clock)?;
                engine.step_checkpoint(self.clock)?;
                engine.step_reclaim(self.clock).map(drop)
            }),
            Step::Reclaim { all } => {
                self.totals.given_back_bytes += super::reclaim(&engine, *all)?.given_back_bytes;
                Ok(())
            }
            Step::Close | Step::Kill => unreachable!("seen to above"),
        }
    }

    /// Forget the engine that is open, if any: it ends without a word.
    pub fn kill(&mut self) {
        if let Some(engine) = self.engine.take() {
            if let Ok(stats) = engine.stats() {
                self.totals.add(&stats);
            }
            assert_eq!(Arc::strong_count(&engine), 1, "{}: somebody holds it", self.context);
        }
    }

    /// Open what is there, and hold it against what may be there.
    pub fn reopen(&mut self) -> Result<()> {
        self.kill();
        self.fresh = true;
        let process = Process::new(self.store.clone(), self.life.clone());
        self.engine = Some(Engine::open_in(Arc::new(process), false, self.settings.clone())?);
        self.resync()
    }

    /// Hold the pool against what may be there, also after a step that failed: what of it was done?
    pub fn resync(&mut self) -> Result<()> {
        if !self.fresh {
            self.engine().flush()?;
        }
        let found = look(self.engine())?;
        self.settle(&found)
    }

    fn settle(&mut self, found: &Pool) -> Result<()> {
        let moments = self.history.moments(found, !self.fresh);
        if moments.is_empty() {
            self.panic_about(found);
        }
        let counts: HashSet<u64> = moments.iter().map(Pool::living_count).collect();
        let living = self.walk()?;
        let living = living.unwrap_or_else(|| moments[0].living_count());
        assert!(counts.contains(&living), "{}: {living} living, not {counts:?}", self.context);
        let moment = moments.into_iter().find(|moment| moment.living_count() == living);
        self.history.settle(moment.expect("looked at just now"));
        self.fresh = false;
        Ok(())
    }

    /// Count what lives, once everything that waits is answered; `None` where something cannot
    /// be.
    pub fn walk(&mut self) -> Result<Option<u64>> {
        let engine = self.engine().clone();
        for _ in 0..WALKS_MAX {
            let stats = engine.stats()?;
            if stats.dying_count == 0 {
                return Ok(Some(stats.living_bytes / BLOCK_BYTES));
            }
            if !engine.step(self.clock)? && engine.stats()?.dying_count > 0 {
                return Ok(None);
            }
        }
        panic!("{}: walks do not end", self.context);
    }

    fn panic_about(&self, found: &Pool) -> ! {
        let durable = found.differences(&self.history.base);
        let last = found.differences(&self.history.now);
        panic!(
            "{}: what is there was never there\nfound and durable: {durable}\nfound and last: \
             {last}",
            self.context
        );
    }

    /// Turn the power off, keep what the medium kept, open that.
    pub fn lose_power(&mut self, kept: Kept) -> Result<()> {
        let store = self.store.crash(kept);
        self.kill();
        self.store = Arc::new(store);
        self.reopen()
    }
}

fn perform_locking(engine: &Arc<Engine>, step: &Step) -> Result<()> {
    match step {
        Step::Lock { names, days } => {
            let time = Duration::from_secs(days * DAY_SECONDS);
            engine.lock(names, time, LockMode::Governance).map(drop)
        }
        Step::Unlock { names } => engine.unlock(names, Some(SECRET)).map(drop),
        _ => unreachable!("the others are done by `perform`"),
    }
}

fn perform_trashing(engine: &Arc<Engine>, step: &Step) -> Result<()> {
    let had = |name: &String| name[TRASHED.len()..].to_string();
    match step {
        Step::Trash { names } => engine.trash(names).map(drop),
        Step::Restore { names } => {
            let (trashed, names): (Vec<String>, Vec<String>) = names.iter().cloned().unzip();
            let keys: Vec<String> = trashed.iter().map(had).collect();
            engine.restore(&keys, Some(&names)).map(drop)
        }
        Step::Empty { names } if names.is_empty() => engine.empty_trash(None).map(drop),
        Step::Empty { names } => {
            let keys: Vec<String> = names.iter().map(had).collect();
            engine.empty_trash(Some(&keys)).map(drop)
        }
        _ => unreachable!("the others are done by `perform`"),
    }
}

fn perform_receiving(engine: &Arc<Engine>, step: &Step) -> Result<()> {
    match step {
        Step::Receive { name, base, sectors, .. } => {
            let incoming = Incoming {
                uuid: uuid_of(name),
                batch: uuid_of(name),
                source: Uuid::nil(),
                created_ns: 1,
                size_bytes: sectors * SECTOR_BYTES,
                attributes: Vec::new(),
            };
            engine.begin_receiving(&incoming, base.as_deref()).map(drop)
        }
        Step::Admit { names } => {
            let (hidden, names): (Vec<String>, Vec<String>) = names.iter().cloned().unzip();
            let uuids: Vec<Uuid> = hidden.iter().map(|name| uuid_of(name)).collect();
            engine.admit(&uuids, &names, &vec![Vec::new(); names.len()]).map(drop)
        }
        Step::Abandon { name } => engine.abandon(&[uuid_of(name)]),
        _ => unreachable!("the others are done by `perform`"),
    }
}

/// The UUID of something that is received.
fn uuid_of(name: &str) -> Uuid {
    let number = name.rsplit('-').next().and_then(|number| number.parse().ok());
    Uuid::from_u128((1 << 127) + number.unwrap_or(0_u128))
}

fn device(engine: &Arc<Engine>, name: &str) -> Result<Arc<dyn BlockDevice>> {
    if is_hidden(name) { engine.receiving_device(uuid_of(name)) } else { engine.device(name) }
}

/// What is mapped: first bytes and lengths.
fn mapped(device: &dyn BlockDevice) -> Result<Vec<(u64, u64)>> {
    let (mut at, mut ranges) = (0, Vec::new());
    while at < device.size_bytes() {
        device.extents(at, device.size_bytes() - at, &mut |length, mapped| {
            if mapped {
                ranges.push((at, length));
            }
            at += length;
            ControlFlow::Continue(())
        })?;
    }
    Ok(ranges)
}

/// Everything the pool holds, what is being received too.
pub fn look(engine: &Arc<Engine>) -> Result<Pool> {
    let mut pool = Pool::default();
    for mut info in engine.list().into_iter().chain(engine.receiving()) {
        if info.name.is_empty() {
            let number = info.uuid.as_u128() - (1 << 127);
            info.name = format!("{HIDDEN}it-{number}");
        }
        let is_volume = info.kind == ObjectKind::Volume;
        let mut thing = Thing::new(is_volume, info.size_bytes);
        let remaining_ns = info.lock.map_or(0, |lock| lock.remaining_ns);
        thing.locked_days = Duration::from_nanos(remaining_ns).as_secs() / DAY_SECONDS;
        let device = device(engine, &info.name)?;
        let ranges = match is_hidden(&info.name) {
            true => mapped(&*device)?,
            false => {
                let extents = engine.diff(EMPTY, &info.name)?.into_iter();
                extents.filter(|it| it.2).map(|it| (it.0, it.1)).collect()
            }
        };
        for (offset, length) in ranges {
            let mut bytes = vec![0; usize::try_from(length).expect("small")];
            device.read(offset, &mut bytes)?;
            for (index, block) in (offset / BLOCK_BYTES..).zip(bytes.chunks(4096)) {
                thing.set(index, Block { version: 0, sectors: sectors_of(block) });
            }
        }
        let mapped_bytes = thing.blocks.len() as u64 * BLOCK_BYTES;
        assert_eq!(mapped_bytes, info.mapped_bytes, "what '{}' says it maps", info.name);
        pool.things.insert(info.name, Arc::new(thing));
    }
    for info in engine.trashed().into_iter().map(|trashed| trashed.object) {
        let mut thing = Thing::new(info.kind == ObjectKind::Volume, info.size_bytes);
        for index in 0..info.mapped_bytes / BLOCK_BYTES {
            thing.set(index, Block { version: 0, sectors: [0; 8] });
        }
        pool.things.insert(format!("{TRASHED}{}", info.name), Arc::new(thing));
    }
    Ok(pool)
}

/// The numbers that fill a block's sectors.
pub fn sectors_of(block: &[u8]) -> [u64; 8] {
    let mut sectors = [0; 8];
    for (sector, bytes) in sectors.iter_mut().zip(block.chunks(512)) {
        let mut words = bytes.chunks_exact(8).map(|word| {
            word.iter().rev().fold(0u64, |number, byte| (number << 8) | u64::from(*byte))
        });
        *sector = words.next().expect("a sector has words");
        assert!(words.all(|word| word == *sector), "a sector is torn");
    }
    sectors
}

/// Whether an error only says that the store failed.
pub fn is_unavailable(error: &EngineError) -> bool {
    matches!(error.kind, Kind::Unavailable | Kind::Full)
}

/// Read everything block by block: it is right, or it is called damaged. Result: which blocks of
/// which objects are.
pub fn look_at_what_is_readable(
    engine: &Arc<Engine>,
    wanted: &Pool,
    context: &str,
) -> BTreeSet<(String, u64)> {
    let names: Vec<String> = engine.list().into_iter().map(|info| info.name).collect();
    let there: Vec<String> = wanted.visible().cloned().collect();
    assert_eq!(names, there, "{context}");
    let mut damaged = BTreeSet::new();
    for (name, thing) in wanted.things.iter().filter(|(name, _)| !is_trashed(name)) {
        let device = device(engine, name).expect("it is there");
        assert_eq!(device.size_bytes(), thing.size_bytes, "{context}: size of {name}");
        let holes = thing.blocks.keys().map(|index| index + 1);
        let holes = holes.filter(|index| (index + 1) * BLOCK_BYTES <= thing.size_bytes);
        for index in thing.blocks.keys().copied().chain(holes) {
            let length = BLOCK_BYTES.min(thing.size_bytes - index * BLOCK_BYTES);
            let mut block = vec![0; usize::try_from(length).expect("small")];
            match device.read(index * BLOCK_BYTES, &mut block) {
                Ok(()) => {
                    let found = sectors_of(&block);
                    assert_eq!(found, thing.sectors(index), "{context}: {name}, block {index}");
                }
                Err(error) if error.kind == Kind::Corrupt => {
                    damaged.insert((name.clone(), index));
                }
                Err(error) => panic!("{context}: {name}, block {index}: {error}"),
            }
        }
    }
    damaged
}
