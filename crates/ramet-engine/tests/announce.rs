//! Reads that are announced: a hint, which changes nothing wherever it points.

use ramet_engine::{Engine, Settings};
use ramet_store::MemoryStore;
use std::sync::Arc;

const BLOCK_BYTES: u64 = 4096;
const SIZE_BYTES: u64 = 16 * BLOCK_BYTES - 512;

#[test]
fn announcing_a_read_is_harmless_wherever_it_points() {
    let store = Arc::new(MemoryStore::new());
    Engine::create_in(&*store, 1 << 20).expect("created");
    let engine = Engine::open_in(store, false, Settings::default()).expect("opened");
    engine.create_volumes(&["volume".into()], SIZE_BYTES, &[]).expect("made");
    let device = engine.device("volume").expect("found");
    let bytes = vec![7; usize::try_from(2 * BLOCK_BYTES).expect("small")];
    device.write(BLOCK_BYTES, &bytes, true).expect("written");
    let ends = [0, 1, BLOCK_BYTES, 2 * BLOCK_BYTES, SIZE_BYTES, SIZE_BYTES + 1, 1 << 62, u64::MAX];
    for offset_bytes in ends {
        for length_bytes in ends {
            device.will_read(offset_bytes, length_bytes);
        }
    }
    let mut found = vec![0; bytes.len()];
    device.read(BLOCK_BYTES, &mut found).expect("read");
    assert_eq!(found, bytes);
    engine.close().expect("closed");
    device.will_read(0, BLOCK_BYTES);
}
