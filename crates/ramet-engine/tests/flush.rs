//! What a flush makes durable, and what it does not wait for.

use ramet_engine::{BlockDevice, Engine, EngineError, Settings};
use ramet_store::MemoryStore;
use std::sync::Arc;

const BLOCK: [u8; 4096] = [7; 4096];
const SIZE_BYTES: u64 = 1 << 20;

struct Scene {
    engine: Arc<Engine>,
    one: Arc<dyn BlockDevice>,
    /// Another handle of the same volume.
    one_again: Arc<dyn BlockDevice>,
    other: Arc<dyn BlockDevice>,
}

impl Scene {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        Engine::create_in(&*store, 1 << 20).expect("created");
        let engine = Engine::open_in(store, false, Settings::default()).expect("opened");
        engine.create_volumes(&["one".into(), "other".into()], SIZE_BYTES, &[]).expect("made");
        let device = |name| engine.device(name).expect("found");
        let (one, one_again, other) = (device("one"), device("one"), device("other"));
        Scene { engine, one, one_again, other }
    }

    /// Syncs that a call took.
    fn syncs(&self, call: impl FnOnce() -> Result<(), EngineError>) -> u64 {
        let count = || self.engine.stats().expect("looked at").syncs_count;
        let before = count();
        call().expect("done");
        count() - before
    }
}

#[test]
fn a_flush_covers_every_kind_of_change_on_every_handle_and_volume() {
    let scene = Scene::new();
    let changes = |device: &dyn BlockDevice, number| match number {
        0 => device.write(0, &BLOCK, false),
        1 => device.write(100, &BLOCK[..7], false),
        2 => device.write_zeroes(4000, 9000, false),
        _ => device.trim(0, SIZE_BYTES, false),
    };
    for number in 0..4 {
        changes(&*scene.one, number).expect("done");
        let handles = [&scene.one, &scene.one_again, &scene.other];
        assert!(handles.iter().all(|device| !device.is_durable()));
        assert_eq!(scene.syncs(|| handles[number % 3].flush()), 1);
        assert!(handles.iter().all(|device| device.is_durable()));
        let stats = scene.engine.stats().expect("looked at");
        assert_eq!(stats.durable_sequence, stats.appended_sequence);
        handles.iter().for_each(|device| assert_eq!(scene.syncs(|| device.flush()), 0));
    }
}

/// The story: of 64 clients that write and flush each waited in its flush also for what the others
/// had written since it asked, and with them for one more sync.
#[test]
fn a_flush_up_to_a_mark_does_not_wait_for_what_came_after_it() {
    let scene = Scene::new();
    scene.one.write(0, &BLOCK, false).expect("written");
    let completed = scene.one.completed();
    assert_eq!(scene.syncs(|| scene.one.flush_up_to(completed)), 1);
    scene.other.write(0, &BLOCK, false).expect("written");
    assert!(scene.other.completed() > completed);
    assert_eq!(scene.syncs(|| scene.one.flush_up_to(completed)), 0);
    assert!(!scene.one.is_durable() && !scene.other.is_durable());
    assert_eq!(scene.syncs(|| scene.one.flush()), 1);
    assert!(scene.other.is_durable());
}

#[test]
fn a_write_with_fua_leaves_nothing_to_flush() {
    let scene = Scene::new();
    assert_eq!(scene.syncs(|| scene.one.write(0, &BLOCK, true)), 1);
    assert!(scene.one.is_durable());
    assert_eq!(scene.syncs(|| scene.one.flush()), 0);
}
