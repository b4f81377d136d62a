//! What a checkpoint says of segments, while the log goes on.

use ramet_log::{Log, LogError, ObjectId, SEGMENT_BYTES_MIN, crc_blocks};
use ramet_store::MemoryStore;
use std::collections::HashSet;
use std::sync::Arc;

fn write(log: &Log, blocks: usize) -> Result<(), LogError> {
    let data = vec![7; blocks * 4096];
    let mut crcs = Vec::new();
    crc_blocks(&data, &mut crcs);
    log.enter_write(blocks as u64)?.write(ObjectId(1), 0, &data, &crcs, |_, _, _| {});
    Ok(())
}

/// Between a checkpoint's cut and its list of segments others went on writing. The segments they
/// filled were listed as sealed, so that replay after a crash passed over batches after the cut
/// that had been flushed; and one that was just begun was listed too, and missing at the opening
/// after the next, when no batch of it had survived and it had been removed.
#[test]
fn segments_begun_after_the_cut_are_left_to_the_next_checkpoint() -> Result<(), LogError> {
    let store = Arc::new(MemoryStore::new());
    Log::create(&*store, SEGMENT_BYTES_MIN, 512, 0)?;
    let log = Log::open(store, false, &mut |_| Ok(()))?;
    write(&log, 10)?;
    let cut = log.enter().cut();
    let open = cut.1.expect("a segment is open");
    for _ in 0..10 {
        write(&log, 100)?;
    }
    log.seal()?;
    assert!(log.sizes().0 > 3, "too little was written");
    let entries = log.segment_entries(&HashSet::new(), cut);
    let said: Vec<_> = entries.iter().map(|entry| (entry.id, entry.sealed, entry.used)).collect();
    assert_eq!(said, [(open, false, 0)]);
    let next = log.segment_entries(&HashSet::new(), log.enter().cut());
    assert_eq!(next.len(), log.sizes().0);
    assert!(next.iter().all(|entry| entry.sealed && entry.used > 0), "{next:?}");
    Ok(())
}
