//! The threads that do an open pool's background work.
//!
//! Invariant: none keeps the pool open; they end with it, or when they are told to.

use parking_lot::{Condvar, Mutex};
use ramet_engine::{Bell, Engine, EngineError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Background steps while there is nothing to do.
const STEP_EVERY: Duration = Duration::from_millis(100);
/// Between two steps while there is much to do, so that clients come first.
const STEP_PAUSE: Duration = Duration::from_millis(1);

/// Tells the threads of a pool to end.
#[derive(Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn stop(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }

    /// Wait; true once stopped.
    fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        if !*stopped {
            self.changed.wait_for(&mut stopped, time);
        }
        *stopped
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.lock()
    }
}

type Step = fn(&Engine, Instant) -> Result<bool, EngineError>;

fn housekeeping(engine: &Weak<Engine>, stop: &Stop, step: Step) {
    let mut pause = STEP_EVERY;
    while !stop.wait(pause) {
        let Some(engine) = engine.upgrade() else {
            return;
        };
        // A failed step has poisoned the pool: every caller is told, and `stats` says why.
        pause = match step(&engine, Instant::now()) {
            Ok(true) => STEP_PAUSE,
            Ok(false) | Err(_) => STEP_EVERY,
        };
    }
}

/// Beside the writers, so that they need not wait for files.
fn writing_out(engine: &Weak<Engine>, stop: &Stop, bell: &Bell) {
    while !stop.is_stopped() {
        bell.wait(STEP_EVERY);
        let Some(engine) = engine.upgrade() else { break };
        // A failed write has poisoned the pool: every caller is told, and `stats` says why.
        let _ = engine.step_write_out();
    }
    bell.leave();
}

/// Start them. Result: what ends them.
///
/// # Errors
/// Where the system has no threads left.
pub fn start(engine: &Arc<Engine>) -> std::io::Result<Arc<Stop>> {
    let stop = Arc::new(Stop::default());
    let steps: [(&str, Step); 3] = [
        ("ramet-steps", Engine::step),
        ("ramet-checkpoint", Engine::step_checkpoint),
        ("ramet-reclaim", Engine::step_reclaim),
    ];
    for (name, step) in steps {
        let (weak, stopped) = (Arc::downgrade(engine), stop.clone());
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || housekeeping(&weak, &stopped, step))?;
    }
    let (weak, stopped, bell) = (Arc::downgrade(engine), stop.clone(), engine.bell());
    std::thread::Builder::new()
        .name("ramet-write-out".into())
        .spawn(move || writing_out(&weak, &stopped, &bell))?;
    Ok(stop)
}
