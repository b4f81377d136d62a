//! A pool on a store that fails on purpose, beside a plain model of it: for tests that ask what is
//! left after a fault.
//!
//! `model` knows no engine, `script` draws what is done, `run` does it to both and compares.

// Every test file uses a part of this.
#![allow(dead_code)]

use ramet_engine::{Engine, EngineError, Reclaimed};
use ramet_store::{FaultStore, Store};
use std::time::Duration;

pub mod model;
pub mod process;
pub mod run;
pub mod script;

/// Numbers that look random, the same for a seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        model::mix(self.0) % bound
    }

    pub fn small(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("small")
    }

    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.small(items.len())].clone()
    }
}

/// Damage the newer slot of the superblock, as a torn write would.
pub fn damage_newer_slot(store: &FaultStore) {
    let file = store.open("superblock", false).expect("opened");
    let number = |slot: u64| {
        let mut bytes = [0; 8];
        // The commit's number: docs/internals/format.md, "The superblock".
        file.read_at(&mut bytes, slot * 4096 + 24).expect("read");
        u64::from_le_bytes(bytes)
    };
    let newer = u64::from(number(1) > number(0));
    store.flip_bit("superblock", newer * 4096 + 300, 3).expect("flipped");
}

/// About `count` of the numbers of a range, all where they are few.
pub fn sampled(range: std::ops::Range<u64>, count: u64, seed: u64) -> Vec<u64> {
    let (mut random, all) = (Random(seed), range.end - range.start);
    range.filter(|_| all <= count || random.below(all) < count).collect()
}

/// Give back what is dead; all of it as if there were a thread beside the writers, which makes them
/// prepare their next segment.
pub fn reclaim(engine: &Engine, all: bool) -> Result<Reclaimed, EngineError> {
    let bell = engine.bell();
    if all {
        bell.wait(Duration::ZERO);
    }
    let reclaimed = engine.reclaim(all, &mut |_| true);
    bell.leave();
    reclaimed
}
