//! Room for what is appended: made once, whatever was prepared before.

use ramet_log::{Log, ObjectId, PreparedRecord, Replay, SEGMENT_BYTES_MIN, crc_blocks};
use ramet_store::{MemoryStore, Store};
use std::sync::Arc;
use std::time::Instant;

/// The segment that was prepared ahead was too small for a record, and stayed the next one: more
/// and more segments were prepared behind it, until the medium was full.
#[test]
fn a_record_larger_than_the_prepared_segment_finds_room() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    Log::create(&*store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    let log = Log::open(store.clone(), false, &mut |_| Ok(())).expect("opened");
    let block = vec![7; 4096];
    let mut crcs = Vec::new();
    crc_blocks(&block, &mut crcs);
    log.enter_write(1).expect("room").write(ObjectId(1), 0, &block, &crcs, |_, _, _| {});
    log.step(Instant::now()).expect("prepared ahead");
    let payload = vec![9; 3 << 20];
    let record = PreparedRecord::new(payload.clone()).expect("small enough");
    log.enter_command(&record).expect("room").record(record);
    log.seal().expect("sealed");
    log.close().expect("closed");
    assert!(store.list("segments").expect("a list").len() <= 4);
    let mut told = 0;
    Log::open(store, true, &mut |said| {
        if let Replay::Record { payload: found, .. } = said {
            assert!(found == payload, "another record");
            told += 1;
        }
        Ok(())
    })
    .expect("opened again");
    assert_eq!(told, 1);
}
