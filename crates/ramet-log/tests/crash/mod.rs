//! A log on a store that fails on purpose, beside a plain list of what it was told: for tests that
//! ask what is left after a fault.

// Every test file uses a part of this.
#![allow(dead_code)]

use ramet_log::{
    BLOCK_BYTES, Locator, Log, LogError, ObjectId, PreparedRecord, Replay, SEGMENT_BYTES_MIN,
    crc_blocks,
};
use ramet_store::{FaultStore, Kept};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps of a script: enough for several segments, openings and idle moments.
const STEPS: usize = 60;

/// Numbers that look random, the same for a seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn small(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).expect("small")
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Write {
        object: u64,
        first: u64,
        count: usize,
    },
    Clear {
        object: u64,
        first: u64,
        count: u64,
    },
    Record {
        length: usize,
    },
    Flush,
    /// More than a second goes by, twice.
    Idle,
    /// The thread beside the writers comes.
    Help,
    /// The open segment is ended, and the next one is there already.
    Seal,
    Close,
    /// The process ends without a word, the machine goes on.
    Kill,
}

pub fn script(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    let step = |_| {
        let (object, first) = (1 + random.below(3), random.below(1000));
        match random.below(44) {
            0..=20 => Step::Write { object, first, count: 1 + random.small(100) },
            21..=24 => Step::Clear { object, first, count: 1 + random.below(100) },
            25..=27 => Step::Record { length: 1 + random.small(10_000) },
            28..=29 => Step::Record { length: 1 + random.small(300_000) },
            30..=34 => Step::Flush,
            35..=36 => Step::Idle,
            37..=38 => Step::Close,
            39 => Step::Kill,
            40..=41 => Step::Seal,
            _ => Step::Help,
        }
    };
    (0..STEPS).map(step).collect()
}

/// One thing the log was told or tells; a write as single blocks, so that it does not show how
/// they were put together.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Block(u64, u64, Locator),
    Clear(u64, u64, u64, u64),
    Record(Vec<u8>, u64),
}

/// A log under test, and what it was told.
pub struct Run {
    pub store: Arc<FaultStore>,
    pub log: Option<Log>,
    pub said: Vec<Said>,
    /// How much of that must survive.
    pub durable: usize,
    /// The number that fills each block.
    pub stamps: HashMap<Locator, u64>,
    /// Names script and moment when something is wrong.
    pub context: String,
}

pub fn open(store: &Arc<FaultStore>) -> Result<(Log, Vec<Said>), LogError> {
    let mut said = Vec::new();
    let log = Log::open(store.clone(), false, &mut |entry| {
        match entry {
            Replay::Write { object, first, count, locator } => said.extend(
                (0..count).map(|index| Said::Block(object.0, first + index, locator.offset(index))),
            ),
            Replay::Clear { object, first, count, position } => {
                said.push(Said::Clear(object.0, first, count, position.0));
            }
            Replay::Record { payload, position } => {
                said.push(Said::Record(payload.to_vec(), position.0));
            }
        }
        Ok(())
    })?;
    Ok((log, said))
}

pub fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let store = Arc::new(FaultStore::new(seed));
        Log::create(&*store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
        let (log, _) = open(&store).expect("opened");
        Run {
            store,
            log: Some(log),
            said: Vec::new(),
            durable: 0,
            stamps: HashMap::new(),
            context: format!("script {seed}"),
        }
    }

    pub fn log(&self) -> &Log {
        self.log.as_ref().expect("the log is open")
    }

    /// Play until something fails; result: the step after the last that was done.
    pub fn play(&mut self, script: &[Step]) -> Result<(), (usize, LogError)> {
        for (index, step) in script.iter().enumerate() {
            self.step(step).map_err(|error| (index, error))?;
        }
        Ok(())
    }

    pub fn step(&mut self, step: &Step) -> Result<(), LogError> {
        match step {
            Step::Write { object, first, count } => self.write(*object, *first, *count),
            Step::Clear { object, first, count } => {
                let id = ObjectId(*object);
                let position = self.log().enter_write(0)?.clear(true, id, *first, *count);
                self.said.push(Said::Clear(*object, *first, *count, position.0));
                Ok(())
            }
            Step::Record { length } => {
                let byte = u8::try_from(self.said.len() % 256).expect("a byte");
                let payload = vec![byte; *length];
                let record = PreparedRecord::new(payload.clone()).expect("small");
                let position = self.log().enter_command(&record)?.record(record);
                self.said.push(Said::Record(payload, position.0));
                Ok(())
            }
            Step::Flush => {
                self.log().flush()?;
                self.durable = self.said.len();
                Ok(())
            }
            Step::Idle => {
                let now = Instant::now();
                self.log().step(now)?;
                self.log().step(now + Duration::from_secs(2))?;
                self.log().step(now + Duration::from_secs(4))?;
                Ok(())
            }
            Step::Help => {
                self.log().write_out()?;
                self.log().make_room_ahead()
            }
            Step::Seal => {
                self.log().prepare_to_seal()?;
                self.log().seal()?;
                self.durable = self.said.len();
                Ok(())
            }
            Step::Close => {
                // No log: closing went well, opening failed, and the step is tried again.
                if let Some(log) = &self.log {
                    log.seal()?;
                    log.note_durable()?;
                    log.close()?;
                    self.durable = self.said.len();
                }
                self.reopen()
            }
            Step::Kill => self.reopen(),
        }
    }

    pub fn write(&mut self, object: u64, first: u64, count: usize) -> Result<(), LogError> {
        let stamp = self.said.len() as u64 + 1;
        let data: Vec<u8> = (0..count as u64).flat_map(|index| block_of(stamp + index)).collect();
        let mut crcs = Vec::new();
        crc_blocks(&data, &mut crcs);
        let mut placed = Vec::new();
        let mut gate = self.log().enter_write(count as u64)?;
        gate.write(ObjectId(object), first, &data, &crcs, |first, count, locator| {
            placed.extend((0..count).map(|index| (first + index, locator.offset(index))));
        });
        drop(gate);
        for (stamp, (block, locator)) in (stamp..).zip(placed) {
            self.said.push(Said::Block(object, block, locator));
            self.stamps.insert(locator, stamp);
        }
        self.log().relieve()
    }

    /// Open what is there; what was told and is not there any more is forgotten.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.log = None;
        let (log, said) = open(&self.store)?;
        self.check(&log, &said);
        self.said.truncate(said.len());
        // Opening made it so.
        self.durable = said.len();
        self.log = Some(log);
        Ok(())
    }

    /// What a log tells and reads, against what was told: P1 and P3.
    pub fn check(&self, log: &Log, said: &[Said]) {
        let context = &self.context;
        assert!(said.len() <= self.said.len(), "{context}: more than was appended");
        let differs = said.iter().zip(&self.said).position(|(found, told)| found != told);
        assert_eq!(differs, None, "{context}: it is not what was appended");
        let (found, durable) = (said.len(), self.durable);
        assert!(found >= durable, "{context}: {found} of {durable} that were flushed");
        for entry in said {
            if let Said::Block(_, block, locator) = entry {
                let mut buffer = vec![0; BLOCK_BYTES];
                log.read(*locator, *block, &mut buffer)
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert!(buffer == block_of(self.stamps[locator]), "{context}: {locator} is wrong");
            }
        }
    }

    /// The same, and further: what opening found stays, and the log can be appended to.
    pub fn check_survivor(&self, store: FaultStore, fate: &str) {
        let context = &format!("{}, {fate}", self.context);
        let mut survivor = Run {
            store: Arc::new(store),
            log: None,
            said: self.said.clone(),
            durable: self.durable,
            stamps: self.stamps.clone(),
            context: format!("{context}, opened after it"),
        };
        survivor.reopen().unwrap_or_else(|error| panic!("{context}: {error}"));
        survivor.lose_power();
        for step in [
            Step::Record { length: 100 },
            Step::Write { object: 9, first: 0, count: 20 },
            Step::Flush,
        ] {
            survivor.step(&step).unwrap_or_else(|error| panic!("{context}: {error}"));
        }
        survivor.context = format!("{context}, opened and appended to");
        survivor.lose_power();
    }

    /// Keep only what is durable, and open that.
    pub fn lose_power(&mut self) {
        let expected = self.durable;
        self.store = Arc::new(self.store.crash(Kept::Nothing));
        self.reopen().unwrap_or_else(|error| panic!("{}: {error}", self.context));
        assert_eq!(self.said.len(), expected, "{}: opening gave something else", self.context);
    }
}
