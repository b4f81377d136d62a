//! A scrub, in steps.

use crate::call::{Owner, call};
use parking_lot::Mutex;
use pyo3::prelude::*;
use ramet_engine::{Damage, Engine};
use std::sync::Arc;

/// What is damaged: code, text, ranges of objects (name, first byte, length), how many there are.
type Finding = (String, String, Vec<(String, u64, u64)>, u64);

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct Scrub {
    scrub: Mutex<ramet_engine::Scrub>,
    owner: Owner,
}

impl Scrub {
    pub fn new(engine: Arc<Engine>, owner: Owner) -> Self {
        Scrub { scrub: Mutex::new(ramet_engine::Scrub::new(engine)), owner }
    }
}

#[pymethods]
impl Scrub {
    fn step(&self, py: Python<'_>, budget_bytes: u64) -> PyResult<u64> {
        call(py, self.owner, || self.scrub.lock().step(budget_bytes))
    }

    /// Bytes read, and to be read; how many findings there are.
    fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64, u64)> {
        call(py, self.owner, || {
            let scrub = self.scrub.lock();
            let (read_bytes, all_bytes) = scrub.progress_bytes();
            Ok((read_bytes, all_bytes, scrub.findings_count()))
        })
    }

    fn findings(&self, py: Python<'_>) -> PyResult<Vec<Finding>> {
        call(py, self.owner, || Ok(self.scrub.lock().findings().iter().map(finding).collect()))
    }
}

fn finding(damage: &Damage) -> Finding {
    let holders = damage.holders.iter();
    let holders = holders.map(|it| (it.name.clone(), it.offset_bytes, it.length_bytes));
    (damage.code.into(), damage.text.clone(), holders.collect(), damage.holders_count)
}
