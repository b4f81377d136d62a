//! What is lent stays as it is, whatever happens to its segment, and a medium that fails is
//! an error like any other.

use super::*;
use crate::error::LogError;
use crate::log::Log;
use crate::spare::tests::{append, block, dead_but, nearly_dead_in, read, reused};
use crate::thin::Thinned;
use crate::types::{BLOCK_BYTES, Locator};
use ramet_store::FileStore;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

/// A directory that goes when the test is through.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ramet-lending-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    fn log(&self) -> (Arc<Log>, Locator) {
        nearly_dead_in(Arc::new(FileStore::new(&self.0)))
    }

    fn segment(&self, at: Locator) -> std::fs::File {
        let path = self.0.join(format!("segments/{}.seg", at.segment()));
        std::fs::File::options().write(true).open(path).expect("the segment's file")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Read blocks from `first` on, which lies at `at`. Result: what was lent, and what was copied.
fn lend(log: &Log, at: Locator, first: u64, count: usize) -> (Vec<Lent>, Vec<u8>) {
    let (mut lent, mut buffer) = (Vec::new(), vec![0; count * BLOCK_BYTES]);
    log.read_lent(at, first, &mut buffer, (7, &mut lent)).expect("they are there");
    (lent, buffer)
}

#[test]
fn blocks_in_a_file_are_lent_and_others_copied() {
    let scratch = Scratch::new();
    let (log, first) = scratch.log();
    let (lent, _) = lend(&log, first, 0, 3);
    assert_eq!((lent.len(), lent[0].place), (1, 7));
    assert_eq!(lent[0].bytes(), [block(0), block(1), block(2)].concat());
    let staged = {
        let (bytes, mut crcs, mut place) = (block(300), Vec::new(), None);
        crate::crc_blocks(&bytes, &mut crcs);
        let mut gate = log.enter_write(1).expect("room");
        gate.write(crate::ObjectId(1), 300, &bytes, &crcs, |_, _, at| place = Some(at));
        place.expect("it was placed")
    };
    let (lent, copied) = lend(&log, staged, 300, 1);
    assert!(lent.is_empty() && copied == block(300), "no file has it yet");
    log.flush().expect("flushed");
    assert_eq!(lend(&log, staged, 300, 1).0[0].bytes(), block(300));
}

#[test]
fn a_block_of_another_place_is_refused_as_by_a_copy() {
    let scratch = Scratch::new();
    let (log, first) = scratch.log();
    let (mut lent, mut buffer) = (Vec::new(), vec![0; BLOCK_BYTES]);
    let read = log.read_lent(first, 1, &mut buffer, (0, &mut lent));
    assert!(matches!(read, Err(LogError::Checksum { .. })) && lent.is_empty());
    assert_eq!(lend(&log, first, 0, 1).0.len(), 1, "others are lent as before");
}

#[test]
fn no_hole_is_made_where_somebody_may_be_sending() {
    let scratch = Scratch::new();
    let (log, living) = scratch.log();
    let (lent, _) = lend(&log, living, 0, 2);
    let dead = dead_but(living);
    let thin = || log.thin(living.segment(), &dead).expect("no fault");
    assert_eq!(thin(), Thinned::Busy);
    assert_eq!(lent[0].bytes(), [block(0), block(1)].concat());
    drop(lent);
    assert!(matches!(thin(), Thinned::Bytes(1..)));
    assert_eq!(lend(&log, living, 0, 1).0[0].bytes(), block(0), "what lives is lent again");
    let gone = log.read(Locator(living.0 + 1), 1, &mut [0; BLOCK_BYTES]);
    assert!(matches!(gone, Err(LogError::Checksum { .. })));
}

#[test]
fn a_file_that_is_lent_from_is_not_renewed() {
    let scratch = Scratch::new();
    let (log, living) = scratch.log();
    let (lent, _) = lend(&log, living, 0, 2);
    let renew = || log.renew(living.segment(), &dead_but(living)).expect("no fault");
    assert!(!renew());
    drop(lent);
    assert!(renew());
    let (lent, _) = lend(&log, living, 0, 1);
    assert_eq!(log.views.lock().len(), 1, "it counts once");
    append(&log, 300..1200);
    assert_eq!(reused(&log), 1, "nothing is lent from the old file");
    assert_eq!(lent[0].bytes(), block(0));
    assert_eq!(read(&log, living), block(0));
}

#[test]
fn the_file_of_a_dead_segment_is_not_used_again_while_it_is_lent_from() {
    let scratch = Scratch::new();
    let (log, dead) = scratch.log();
    let (lent, _) = lend(&log, dead, 0, 2);
    log.forget_segments(&[dead.segment()]);
    assert_eq!(log.remove_segments(&[dead.segment()]).expect("no fault"), 0, "it is kept");
    append(&log, 300..900);
    assert_eq!(reused(&log), 0);
    assert_eq!(lent[0].bytes(), [block(0), block(1)].concat());
    drop(lent);
    append(&log, 900..1500);
    assert_eq!(reused(&log), 1);
}

#[test]
fn what_is_being_sent_stays_when_its_file_is_removed() {
    let scratch = Scratch::new();
    let (log, first) = scratch.log();
    // The first block's bytes are zeros, as what was given back reads.
    let living = Locator(first.0 + 1);
    let thinned = log.thin(living.segment(), &dead_but(living));
    assert!(matches!(thinned, Ok(Thinned::Bytes(1..))));
    let (lent, _) = lend(&log, living, 1, 1);
    log.forget_segments(&[living.segment()]);
    assert!(log.remove_segments(&[living.segment()]).expect("no fault") > 0);
    assert!(lent[0].bytes() == block(1) && !lent[0].has_failed());
}

/// The story: a file that is cut off under a mapping gives `SIGBUS`, which ends the process.
#[test]
fn a_medium_that_fails_is_an_error_and_is_not_lent_from_again() {
    let scratch = Scratch::new();
    let (log, first) = scratch.log();
    let last = Locator(first.0 + 200);
    let (kept, _) = lend(&log, first, 0, 1);
    assert!(kept.len() == 1 && !kept[0].has_failed());
    scratch.segment(first).set_len(100 * BLOCK_BYTES as u64).expect("cut");
    let (mut lent, mut buffer) = (Vec::new(), vec![0; BLOCK_BYTES]);
    let read = log.read_lent(last, 200, &mut buffer, (0, &mut lent));
    assert!(matches!(read, Err(LogError::Lost { .. })) && lent.is_empty());
    assert!(kept[0].has_failed(), "nobody knows whether zeros were put there, too");
    let (lent, copied) = lend(&log, first, 0, 1);
    assert!(lent.is_empty() && copied == block(0), "what is there is still read");
}

#[test]
fn what_nobody_reads_is_unmapped_and_mapped_again() {
    let scratch = Scratch::new();
    let (log, first) = scratch.log();
    let (kept, _) = lend(&log, first, 0, 1);
    let segment = log.segments.read()[&first.segment()].clone();
    assert!(segment.lending.end_if_unused(), "the first use does not count");
    assert_eq!(kept[0].bytes(), block(0), "who has it keeps it");
    let (_second, _third) = (lend(&log, first, 0, 1), lend(&log, first, 0, 1));
    assert!(!segment.lending.end_if_unused(), "it was used");
    assert!(segment.lending.end_if_unused(), "and then not");
    assert!(segment.lending.pause(true).is_none(), "one is still lent");
    drop((kept, _second, _third));
    assert!(segment.lending.pause(false).is_some());
}

#[test]
fn so_many_files_are_mapped_at_once_and_others_copied() {
    let scratch = Scratch::new();
    let (log, _) = scratch.log();
    let first = |number: u64| (1000 * number, append(&log, 1000 * number..1000 * number + 400));
    let segments: Vec<_> = (1..=VIEWS_MAX as u64 + 2).map(first).collect();
    let is_lent = |(index, at): &(u64, Locator)| !lend(&log, *at, *index, 1).0.is_empty();
    let lent = || segments.iter().filter(|it| is_lent(it)).count();
    assert_eq!(lent(), VIEWS_MAX);
    assert_eq!(lent(), VIEWS_MAX, "those that are mapped stay so");
    // All were used; from then on two are not, and one goes with each step.
    let step = |_| _ = log.step(Instant::now()).expect("no fault");
    (0..VIEWS_MAX).for_each(step);
    segments[2..VIEWS_MAX].iter().for_each(|it| assert!(is_lent(it)));
    (0..VIEWS_MAX).for_each(step);
    assert_eq!(log.views.lock().len(), VIEWS_MAX - 2);
    assert!(segments[VIEWS_MAX..].iter().all(is_lent), "there is room for them");
    assert!(!is_lent(&segments[0]));
}
