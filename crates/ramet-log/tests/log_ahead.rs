//! Zeros ahead of the log: where small commits follow each other, the next ones overwrite bytes and
//! need nothing noted by the file system. See docs/internals/format.md, "Segments".

mod crash;

use crash::{Run, Step};
use ramet_store::{Fault, Kept, Operation, When};

const BLOCKS_FEW: usize = 1;
/// More than a small commit has.
const BLOCKS_MANY: usize = 20;

/// Writes of so many blocks, each with a flush.
fn commits(count: u64, blocks: usize) -> Vec<Step> {
    let each = |index| {
        [Step::Write { object: 1, first: index * blocks as u64, count: blocks }, Step::Flush]
    };
    (0..count).flat_map(each).collect()
}

/// Writes of files that these steps make, beside one for each commit.
fn writes_ahead(run: &mut Run, count: u64, blocks: usize) -> u64 {
    let before = run.store.count(Operation::Write);
    run.play(&commits(count, blocks)).expect("without a fault nothing fails");
    run.store.count(Operation::Write) - before - count
}

#[test]
fn small_commits_in_a_row_find_written_room() {
    let mut run = Run::new(0);
    // Not before it is seen that they follow each other. The first makes its segment.
    assert_eq!(writes_ahead(&mut run, 7, BLOCKS_FEW), 1 + 1, "an epoch and a header");
    // A segment of 1 MiB has 32 slots written ahead, and a commit of a block takes two.
    assert_eq!(writes_ahead(&mut run, 1, BLOCKS_FEW), 1);
    assert_eq!(writes_ahead(&mut run, 15, BLOCKS_FEW), 0);
    assert_eq!(writes_ahead(&mut run, 1, BLOCKS_FEW), 1);
}

#[test]
fn large_commits_write_nothing_ahead() {
    let mut run = Run::new(0);
    run.play(&commits(1, BLOCKS_FEW)).expect("written");
    assert_eq!(writes_ahead(&mut run, 9, BLOCKS_MANY), 0);
    // One of them is enough to stop it.
    run.play(&commits(7, BLOCKS_FEW)).expect("written");
    run.play(&commits(1, BLOCKS_MANY)).expect("written");
    assert_eq!(writes_ahead(&mut run, 7, BLOCKS_FEW), 0);
}

#[test]
fn a_power_loss_at_any_operation_of_small_commits_keeps_what_was_flushed() {
    // Three segments: zeros end where a segment does, and begin again in the next.
    let story: Vec<Step> = commits(340, BLOCKS_FEW);
    let mut whole = Run::new(0);
    let first = whole.store.changes_count();
    whole.play(&story).expect("without a fault nothing fails");
    let last = whole.store.changes_count();
    // Around every write ahead, and elsewhere now and then.
    for change in (first..last).filter(|change| *change < first + 60 || change % 13 == 0) {
        let mut run = Run::new(0);
        run.store.plan(When::Change(change), Fault::PowerOff);
        assert!(run.play(&story).is_err(), "change {change}");
        run.log = None;
        run.context = format!("change {change}");
        for kept in [Kept::Nothing, Kept::Everything, Kept::Random(change)] {
            run.check_survivor(run.store.crash(kept), &format!("{kept:?}"));
        }
    }
}
