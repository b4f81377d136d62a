//! The store that fails on purpose: what survives a power loss, what a fault does, and that both
//! are the same for the same seed.

use ramet_store::{Fault, FaultStore, File, Kept, Operation, Store, StoreError, When};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Fates of one moment that are looked at.
const SEEDS: u64 = 400;

/// A store with a durable file of zeros.
fn with_zeros(length: usize) -> (FaultStore, Arc<dyn File>) {
    let store = FaultStore::new(1);
    let file = store.create("a").expect("created");
    file.write_at(&vec![0; length], 0).expect("written");
    file.sync().expect("synced");
    store.sync_directory("").expect("synced");
    (store, file)
}

fn content(store: &FaultStore, path: &str) -> Vec<u8> {
    let file = store.open(path, false).expect("opened");
    let length = file.length_bytes().expect("a length");
    let mut bytes = vec![0; usize::try_from(length).expect("small")];
    file.read_at(&mut bytes, 0).expect("read");
    bytes
}

fn is_io<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Io { .. }))
}

#[test]
fn only_what_was_synced_is_sure_to_survive() {
    let (store, file) = with_zeros(100);
    file.write_at(&[1; 100], 0).expect("written");
    assert_eq!(content(&store.crash(Kept::Nothing), "a"), [0; 100]);
    assert_eq!(content(&store.crash(Kept::Everything), "a"), [1; 100]);
}

#[test]
fn a_sync_covers_what_other_handles_wrote() {
    let (store, file) = with_zeros(100);
    store.open("a", true).expect("opened").write_at(&[1; 100], 0).expect("written");
    file.sync().expect("synced");
    assert_eq!(content(&store.crash(Kept::Nothing), "a"), [1; 100]);
}

#[test]
fn any_subset_of_unsynced_writes_may_survive() {
    let (store, file) = with_zeros(3 * 4096);
    for page in 0..3 {
        file.write_at(&[1; 4096], page * 4096).expect("written");
    }
    let mut seen = HashSet::new();
    for seed in 0..SEEDS {
        let bytes = content(&store.crash(Kept::Random(seed)), "a");
        let whole = |page: &[u8]| page.iter().all(|byte| *byte == 1);
        seen.insert(bytes.chunks(4096).map(whole).collect::<Vec<_>>());
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
}

#[test]
fn a_write_tears_at_sectors_of_512_bytes() {
    let (store, file) = with_zeros(4096);
    file.write_at(&[1; 2000], 300).expect("written");
    let mut torn = 0;
    for seed in 0..SEEDS {
        let bytes = content(&store.crash(Kept::Random(seed)), "a");
        let sectors: Vec<_> = (0..5)
            .map(|sector| bytes[(sector * 512).max(300)..((sector + 1) * 512).min(2300)].to_vec())
            .collect();
        assert!(sectors.iter().all(|part| part.iter().all(|byte| *byte == part[0])), "seed {seed}");
        torn += u64::from(sectors.iter().any(|part| part[0] != sectors[0][0]));
    }
    assert!(torn > SEEDS / 20, "{torn} of {SEEDS}");
}

#[test]
fn a_file_may_be_longer_than_what_was_written_to_it() {
    let (store, file) = with_zeros(0);
    file.write_at(&[1; 512], 0).expect("written");
    let found: HashSet<Vec<u8>> =
        (0..SEEDS).map(|seed| content(&store.crash(Kept::Random(seed)), "a")).collect();
    assert_eq!(found, HashSet::from([vec![], vec![0; 512], vec![1; 512]]));
}

#[test]
fn names_survive_each_by_itself_once_their_directory_was_not_synced() {
    let (store, _) = with_zeros(1);
    store.create_directory("d").expect("made");
    store.sync_directory("").expect("synced");
    for path in ["d/x", "d/y", "z"] {
        store.create(path).expect("created").sync().expect("synced");
    }
    store.sync_directory("").expect("synced");
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let after = store.crash(Kept::Random(seed));
        assert_eq!(after.list("").expect("a list"), ["a", "z"]);
        seen.insert(after.list("d").expect("a list"));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_name_in_a_directory_that_was_lost_is_lost() {
    let store = FaultStore::new(1);
    store.create_directory("d/e").expect("made");
    store.create("d/e/x").expect("created");
    store.sync_directory("d/e").expect("synced");
    store.sync_directory("d").expect("synced");
    let after = store.crash(Kept::Nothing);
    assert!(!after.exists("d/e/x").expect("looked"));
    assert!(!after.exists("d/e").expect("looked"));
}

#[test]
fn a_rename_survives_whole_or_not_at_all() {
    let (store, _) = with_zeros(1);
    store.create("b").expect("created").write_at(&[7], 0).expect("written");
    store.open("b", false).expect("opened").sync().expect("synced");
    store.sync_directory("").expect("synced");
    store.rename("b", "a").expect("renamed");
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let after = store.crash(Kept::Random(seed));
        seen.insert((after.list("").expect("a list"), content(&after, "a")));
    }
    let before = (vec!["a".to_string(), "b".to_string()], vec![0]);
    assert_eq!(seen, BTreeSet::from([before, (vec!["a".to_string()], vec![7])]));
}

#[test]
fn an_exchange_survives_whole_or_not_at_all() {
    let (store, _) = with_zeros(1);
    store.create_directory("d").expect("made");
    store.create("d/b").expect("created").write_at(&[7], 0).expect("written");
    store.open("d/b", false).expect("opened").sync().expect("synced");
    store.sync_directory("").expect("synced");
    store.sync_directory("d").expect("synced");
    store.exchange("a", "d/b").expect("exchanged");
    let contents = |kept| {
        let after = store.crash(kept);
        (content(&after, "a"), content(&after, "d/b"))
    };
    let seen: BTreeSet<_> = (0..SEEDS).map(|seed| contents(Kept::Random(seed))).collect();
    assert_eq!(seen, BTreeSet::from([(vec![0], vec![7]), (vec![7], vec![0])]));
}

#[test]
fn a_sync_of_the_directory_of_its_second_name_keeps_an_exchange() {
    let (store, _) = with_zeros(1);
    store.create_directory("d").expect("made");
    store.create("d/b").expect("created").write_at(&[7], 0).expect("written");
    store.open("d/b", false).expect("opened").sync().expect("synced");
    store.sync_directory("").expect("synced");
    store.exchange("a", "d/b").expect("exchanged");
    store.sync_directory("d").expect("synced");
    let after = store.crash(Kept::Nothing);
    assert_eq!((content(&after, "a"), content(&after, "d/b")), (vec![7], vec![0]));
}

#[test]
fn a_removal_may_be_undone_and_never_takes_another_file() {
    let (store, _) = with_zeros(1);
    store.rename("a", "b").expect("renamed");
    store.create("a").expect("created");
    store.remove("a").expect("removed");
    for seed in 0..SEEDS {
        let after = store.crash(Kept::Random(seed));
        let names = after.list("").expect("a list");
        let kept = names.iter().filter(|name| content(&after, name) == [0]).count();
        assert_eq!(kept, 1, "{names:?} with seed {seed}");
    }
}

#[test]
fn the_same_seed_keeps_the_same() {
    let (store, file) = with_zeros(40_000);
    for part in 0..40 {
        file.write_at(&[1; 1000], part * 1000).expect("written");
    }
    for seed in 0..20 {
        let again = content(&store.crash(Kept::Random(seed)), "a");
        assert_eq!(content(&store.crash(Kept::Random(seed)), "a"), again);
    }
}

#[test]
fn after_the_power_went_everything_fails() {
    let (store, file) = with_zeros(10);
    let after = store.crash(Kept::Everything);
    assert!(is_io(file.write_at(&[1], 0)) && is_io(file.read_at(&mut [0], 0)));
    assert!(is_io(file.sync()) && is_io(file.length_bytes()));
    assert!(is_io(store.create("b")) && is_io(store.exists("a")) && is_io(store.list("")));
    assert_eq!(content(&after, "a"), [0; 10]);
}

#[test]
fn the_power_goes_at_every_operation() {
    let script = |store: &FaultStore| -> Result<(), StoreError> {
        store.create_directory("d")?;
        let file = store.create("d/x")?;
        file.allocate(0, 8192)?;
        file.write_at(&[1; 4096], 0)?;
        file.sync()?;
        file.set_length(4096)?;
        store.rename("d/x", "d/y")?;
        store.sync_directory("d")?;
        store.remove("d/y")
    };
    let whole = FaultStore::new(1);
    script(&whole).expect("no fault");
    assert_eq!(whole.changes_count(), 9);
    for change in 0..whole.changes_count() {
        let store = FaultStore::new(1);
        store.plan(When::Change(change), Fault::PowerOff);
        assert!(is_io(script(&store)), "change {change}");
        assert_eq!(store.changes_count(), change + 1);
        let after = store.crash(Kept::Everything);
        let file = ["d/x", "d/y"].into_iter().find(|path| after.exists(path).expect("looked"));
        // The one that was under way may have got there.
        assert_eq!(
            file,
            [None, Some("d/x"), Some("d/y"), None][match change {
                0 => 0,
                1..=5 => 1,
                6..=7 => 2,
                _ => 3,
            }]
        );
    }
}

#[test]
fn what_a_failed_sync_left_behind_is_read_but_never_written_again() {
    let mut lost = 0;
    for seed in 0..100 {
        let store = FaultStore::new(seed);
        let file = store.create("a").expect("created");
        store.sync_directory("").expect("synced");
        file.write_at(&[1; 512], 0).expect("written");
        store.plan(When::Nth(Operation::Sync, 0), Fault::Error);
        assert!(is_io(file.sync()));
        assert_eq!(content(&store, "a"), [1; 512]);
        file.sync().expect("nothing is dirty");
        lost += u64::from(content(&store.crash(Kept::Everything), "a") != [1; 512]);
    }
    assert!((20..80).contains(&lost), "{lost} of 100");
}

#[test]
fn the_same_bytes_written_again_after_a_failed_sync_are_durable() {
    let (store, file) = with_zeros(512);
    file.write_at(&[1; 512], 0).expect("written");
    store.plan(When::Nth(Operation::Sync, 1), Fault::Full);
    assert!(is_io(file.sync()), "no space out of a sync is a failed sync");
    file.write_at(&[1; 512], 0).expect("written again");
    file.sync().expect("synced");
    assert_eq!(content(&store.crash(Kept::Nothing), "a"), [1; 512]);
}

#[test]
fn a_failed_operation_fails_once() {
    let (store, file) = with_zeros(512);
    store.plan(When::Nth(Operation::Read, 0), Fault::Error);
    store.plan(When::Nth(Operation::Create, 1), Fault::Full);
    store.plan(When::Change(store.changes_count() + 1), Fault::Error);
    assert!(is_io(file.read_at(&mut [0], 0)));
    file.read_at(&mut [0], 0).expect("read");
    assert!(matches!(store.create("b"), Err(StoreError::Full { .. })));
    assert!(is_io(store.remove("a")));
    assert_eq!(store.list("").expect("a list"), ["a"]);
    assert_eq!(store.count(Operation::Create), 2);
}

#[test]
fn a_full_store_refuses_to_grow_and_goes_on_with_what_it_has() {
    let (store, file) = with_zeros(4096);
    store.set_capacity(Some(3 * 4096));
    file.allocate(4096, 4096).expect("room");
    assert_eq!(store.space_bytes().expect("space"), (4096, 3 * 4096));
    let refused = file.allocate(0, 3 * 4096 + 1);
    assert!(matches!(refused, Err(StoreError::Full { action: "allocate", .. })));
    assert!(matches!(file.write_at(&[1; 4096], 3 * 4096 - 1), Err(StoreError::Full { .. })));
    file.write_at(&[1; 4096], 4096).expect("allocated before");
    let other = store.create("b").expect("a name takes nothing");
    other.write_at(&[1], 0).expect("the last page");
    assert!(matches!(other.set_length(4097), Err(StoreError::Full { .. })));
    store.remove("a").expect("removed");
    other.set_length(3 * 4096).expect("what was given back");
}

#[test]
fn bits_flip_where_they_are_told_to() {
    let (store, file) = with_zeros(100);
    let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    store.plan(When::Nth(Operation::Read, 0), Fault::FlipBit);
    let mut buffer = [0; 100];
    file.read_at(&mut buffer, 0).expect("read");
    assert_eq!(ones(&buffer), 1);
    assert_eq!(ones(&content(&store, "a")), 0);
    store.flip_bit("a", 70, 3).expect("damaged");
    assert_eq!(content(&store, "a")[70], 8);
    assert_eq!(content(&store.crash(Kept::Nothing), "a")[70], 8);
}

#[test]
fn a_flipped_write_is_stored_as_it_was_flipped() {
    let (store, file) = with_zeros(100);
    store.plan(When::Nth(Operation::Write, 1), Fault::FlipBit);
    file.write_at(&[0; 100], 0).expect("written");
    assert_eq!(content(&store, "a").iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    assert!(matches!(store.flip_bit("a", 100, 0), Err(StoreError::ShortRead { .. })));
}
