//! What every store has to do, held against each of them alike: the file system, memory, one with a
//! limit, and the one that fails on purpose as long as it is not asked to.

use ramet_store::{
    FaultStore, File, FileStore, LimitStore, LockMode, MemoryStore, Store, StoreError,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory that goes when the test is through.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("ramet-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Scratch(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn with_file_store(case: impl FnOnce(&dyn Store)) {
    let scratch = Scratch::new();
    case(&FileStore::new(&scratch.0));
}

fn with_memory_store(case: impl FnOnce(&dyn Store)) {
    case(&MemoryStore::new());
}

fn with_fault_store(case: impl FnOnce(&dyn Store)) {
    case(&FaultStore::new(1));
}

fn with_limit_store(case: impl FnOnce(&dyn Store)) {
    let store = LimitStore::new(Arc::new(MemoryStore::new()));
    store.set_limit(Some(64 << 20));
    case(&store);
}

/// Each case is a test of each store.
macro_rules! conformance {
    ($($case:ident)*) => {
        mod file {
            $(#[test] fn $case() { super::with_file_store(super::$case); })*
        }
        mod memory {
            $(#[test] fn $case() { super::with_memory_store(super::$case); })*
        }
        mod limit {
            $(#[test] fn $case() { super::with_limit_store(super::$case); })*
        }
        mod fault {
            $(#[test] fn $case() { super::with_fault_store(super::$case); })*
        }
    };
}

conformance! {
    what_was_written_is_read_at_any_offset
    a_gap_reads_as_zeros
    a_read_past_the_end_is_an_error
    an_empty_write_changes_nothing
    every_handle_sees_every_write
    a_handle_for_reading_refuses_to_change_the_file
    allocation_grows_and_keeps_what_is_there
    a_cut_file_grows_again_with_zeros
    whole_pages_are_given_back_and_taken_again
    a_name_is_created_once_and_in_a_directory_that_is_there
    what_is_not_there_is_not_found
    directories_are_made_with_those_above_them_and_again
    a_list_has_the_files_right_there_sorted
    a_rename_replaces_what_has_the_name
    an_exchange_gives_two_files_each_others_name
    a_removed_file_is_read_on_by_those_that_have_it_open
    syncs_succeed
    one_writer_excludes_everybody
    readers_exclude_the_writer_only
    a_shared_lock_needs_the_file_of_the_lock
    space_is_told
    two_hundred_random_operations_do_what_they_do_in_memory
}

fn root(store: &dyn Store) -> &dyn Store {
    store.create_directory("").expect("the root");
    store
}

fn new_file(store: &dyn Store, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = root(store).create(path).expect("created");
    file.write_at(bytes, 0).expect("written");
    file
}

fn read(file: &dyn File, offset_bytes: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    file.read_at(&mut buffer, offset_bytes).expect("read");
    buffer
}

fn content(store: &dyn Store, path: &str) -> Vec<u8> {
    let file = store.open(path, false).expect("opened");
    read(&*file, 0, usize::try_from(file.length_bytes().expect("a length")).expect("small"))
}

/// An error by its kind, which is what callers decide by.
fn kind<T>(result: Result<T, StoreError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(StoreError::NotFound { .. }) => "not found",
        Err(StoreError::Exists { .. }) => "exists",
        Err(StoreError::Full { .. }) => "full",
        Err(StoreError::ReadOnly { .. }) => "read only",
        Err(StoreError::ShortRead { .. }) => "short read",
        Err(StoreError::Locked { .. }) => "locked",
        Err(StoreError::Io { .. }) => "io",
    }
}

fn what_was_written_is_read_at_any_offset(store: &dyn Store) {
    let bytes: Vec<u8> = (0..20_000u32).map(|at| u8::try_from(at % 251).expect("a byte")).collect();
    let file = new_file(store, "a", &[]);
    file.write_at(&bytes, 4_090).expect("written");
    assert_eq!(read(&*file, 4_090, 20_000), bytes);
    assert_eq!(read(&*file, 8_191, 2), bytes[4_101..4_103]);
    file.write_at(&[7; 3], 8_191).expect("overwritten");
    assert_eq!(read(&*file, 8_190, 5), [bytes[4_100], 7, 7, 7, bytes[4_104]]);
    assert_eq!(file.length_bytes().expect("a length"), 24_090);
}

fn a_gap_reads_as_zeros(store: &dyn Store) {
    let file = new_file(store, "a", &[1]);
    file.write_at(&[2], 10_000).expect("written");
    assert_eq!(read(&*file, 1, 9_999), vec![0; 9_999]);
}

fn a_read_past_the_end_is_an_error(store: &dyn Store) {
    let file = new_file(store, "a", &[1; 100]);
    let mut buffer = [0; 10];
    assert_eq!(kind(file.read_at(&mut buffer, 91)), "short read");
    assert_eq!(kind(file.read_at(&mut buffer, 5_000)), "short read");
    assert_eq!(kind(file.read_at(&mut buffer, 90)), "ok");
    assert_eq!(kind(file.read_at(&mut [], 5_000)), "ok");
}

fn an_empty_write_changes_nothing(store: &dyn Store) {
    let file = new_file(store, "a", &[1; 100]);
    file.write_at(&[], 5_000).expect("written");
    assert_eq!(file.length_bytes().expect("a length"), 100);
}

fn every_handle_sees_every_write(store: &dyn Store) {
    let first = new_file(store, "a", &[1; 100]);
    let second = store.open("a", true).expect("opened");
    second.write_at(&[2; 10], 95).expect("written");
    assert_eq!(read(&*first, 94, 11), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
}

fn a_handle_for_reading_refuses_to_change_the_file(store: &dyn Store) {
    new_file(store, "a", &[1; 100]);
    let file = store.open("a", false).expect("opened");
    assert_eq!(kind(file.write_at(&[2], 0)), "io");
    assert_eq!(kind(file.set_length(1)), "io");
    assert_eq!(kind(file.allocate(0, 8_192)), "io");
    assert_eq!(kind(file.sync()), "ok");
    assert_eq!(content(store, "a"), [1; 100]);
}

fn allocation_grows_and_keeps_what_is_there(store: &dyn Store) {
    let file = new_file(store, "a", &[1; 100]);
    file.allocate(4_096, 4_096).expect("allocated");
    assert_eq!(file.length_bytes().expect("a length"), 8_192);
    assert_eq!(read(&*file, 99, 2), [1, 0]);
    assert_eq!(read(&*file, 8_000, 192), [0; 192]);
    file.allocate(0, 1_000).expect("allocated");
    file.allocate(1 << 30, 0).expect("nothing");
    assert_eq!(file.length_bytes().expect("a length"), 8_192);
    assert_eq!(read(&*file, 0, 100), [1; 100]);
}

fn a_cut_file_grows_again_with_zeros(store: &dyn Store) {
    let file = new_file(store, "a", &[1; 10_000]);
    file.set_length(5_000).expect("cut");
    assert_eq!(kind(file.read_at(&mut [0], 5_000)), "short read");
    file.set_length(9_000).expect("extended");
    assert_eq!(read(&*file, 4_999, 4_001), [&[1][..], &[0; 4_000]].concat());
    assert_eq!(file.length_bytes().expect("a length"), 9_000);
}

fn a_name_is_created_once_and_in_a_directory_that_is_there(store: &dyn Store) {
    new_file(store, "a", &[1]);
    store.create_directory("d").expect("made");
    assert_eq!(kind(store.create("a")), "exists");
    assert_eq!(kind(store.create("d")), "exists");
    assert_eq!(kind(store.create("none/a")), "not found");
    assert_eq!(kind(store.create("d/a")), "ok");
    assert_eq!(content(store, "a"), [1]);
}

fn what_is_not_there_is_not_found(store: &dyn Store) {
    root(store);
    assert_eq!(kind(store.open("a", false)), "not found");
    assert_eq!(kind(store.open("a", true)), "not found");
    assert_eq!(kind(store.remove("a")), "not found");
    assert_eq!(kind(store.rename("a", "b")), "not found");
    assert_eq!(kind(store.list("d")), "not found");
    assert_eq!(kind(store.sync_directory("d")), "not found");
    assert!(!store.exists("a").expect("looked"));
    assert!(!store.exists("d/a").expect("looked"));
}

fn directories_are_made_with_those_above_them_and_again(store: &dyn Store) {
    new_file(store, "a", &[1]);
    store.create_directory("d/e/f").expect("made");
    store.create_directory("d/e").expect("there");
    assert!(store.exists("").expect("looked"));
    assert!(store.exists("d").expect("looked"));
    assert!(store.exists("d/e/f").expect("looked"));
    assert_eq!(kind(store.create_directory("a")), "exists");
}

fn a_list_has_the_files_right_there_sorted(store: &dyn Store) {
    store.create_directory("d/e").expect("made");
    for path in ["d/b", "d/a", "d/a-1", "d/e/x", "c"] {
        new_file(store, path, &[]);
    }
    assert_eq!(store.list("d").expect("a list"), ["a", "a-1", "b"]);
    assert_eq!(store.list("").expect("a list"), ["c"]);
    assert_eq!(store.list("d/e").expect("a list"), ["x"]);
}

fn a_rename_replaces_what_has_the_name(store: &dyn Store) {
    store.create_directory("d").expect("made");
    let moved = new_file(store, "a", &[1; 10]);
    let replaced = new_file(store, "d/b", &[2; 10]);
    store.rename("a", "d/b").expect("renamed");
    assert!(!store.exists("a").expect("looked"));
    assert_eq!(content(store, "d/b"), [1; 10]);
    assert_eq!(read(&*replaced, 0, 10), [2; 10]);
    moved.write_at(&[3], 0).expect("written");
    assert_eq!(content(store, "d/b")[..2], [3, 1]);
    assert_eq!(kind(store.rename("d/b", "none/b")), "not found");
    assert_eq!(kind(store.rename("d/b", "d")), "io");
    store.rename("d/b", "d/b").expect("nothing to do");
    assert_eq!(content(store, "d/b")[..2], [3, 1]);
}

fn an_exchange_gives_two_files_each_others_name(store: &dyn Store) {
    store.create_directory("d").expect("made");
    let first = new_file(store, "a", &[1; 10]);
    let second = new_file(store, "d/b", &[2; 9000]);
    assert!(store.exchange("a", "d/b").expect("exchanged"));
    assert_eq!((content(store, "a"), content(store, "d/b")), (vec![2; 9000], vec![1; 10]));
    first.write_at(&[3], 0).expect("written");
    second.write_at(&[4], 0).expect("written");
    assert_eq!((content(store, "a")[0], content(store, "d/b")[0]), (4, 3));
    assert_eq!(kind(store.exchange("a", "none")), "not found");
    assert_eq!(kind(store.exchange("none", "a")), "not found");
    assert_eq!(content(store, "a")[..2], [4, 2]);
}

fn a_removed_file_is_read_on_by_those_that_have_it_open(store: &dyn Store) {
    let before = new_file(store, "a", &[1; 10]);
    store.remove("a").expect("removed");
    assert!(!store.exists("a").expect("looked"));
    assert_eq!(kind(store.open("a", false)), "not found");
    new_file(store, "a", &[2; 10]);
    assert_eq!(read(&*before, 0, 10), [1; 10]);
    assert_eq!(content(store, "a"), [2; 10]);
}

fn syncs_succeed(store: &dyn Store) {
    store.create_directory("d").expect("made");
    let file = new_file(store, "d/a", &[1; 10]);
    file.start_writeback(0, 10);
    file.sync().expect("synced");
    store.sync_directory("d").expect("synced");
    store.sync_directory("").expect("synced");
    assert_eq!(content(store, "d/a"), [1; 10]);
}

fn one_writer_excludes_everybody(store: &dyn Store) {
    let held = root(store).lock(LockMode::Exclusive).expect("the lock");
    assert_eq!(store.list("").expect("a list"), ["lock"]);
    let refused = store.lock(LockMode::Exclusive).err().expect("refused");
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())));
    assert_eq!(kind(store.lock(LockMode::Shared)), "locked");
    drop(held);
    assert_eq!(kind(store.lock(LockMode::Exclusive)), "ok");
}

fn readers_exclude_the_writer_only(store: &dyn Store) {
    drop(root(store).lock(LockMode::Exclusive).expect("the lock"));
    let first = store.lock(LockMode::Shared).expect("shared");
    let second = store.lock(LockMode::Shared).expect("shared");
    assert_eq!(kind(store.lock(LockMode::Exclusive)), "locked");
    drop(first);
    assert_eq!(kind(store.lock(LockMode::Exclusive)), "locked");
    drop(second);
    assert_eq!(kind(store.lock(LockMode::Exclusive)), "ok");
}

fn a_shared_lock_needs_the_file_of_the_lock(store: &dyn Store) {
    assert_eq!(kind(root(store).lock(LockMode::Shared)), "not found");
}

fn space_is_told(store: &dyn Store) {
    let (free, all) = root(store).space_bytes().expect("space");
    assert!(0 < free && free <= all);
    assert!(!store.describe().is_empty());
}

/// Numbers that look random, the same for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// One random operation; the answer says all that a caller could see of it.
fn operate(store: &dyn Store, random: &mut Random) -> String {
    const PATHS: [&str; 5] = ["a", "b", "d/a", "d/b", "none/a"];
    let mut path = || PATHS[usize::try_from(random.below(5)).expect("an index")];
    let (path, other) = (path(), path());
    let (at, length) = (random.below(20_000), random.below(9_000));
    let byte = u8::try_from(random.below(255)).expect("a byte") + 1;
    let bytes = vec![byte; usize::try_from(random.below(5_000)).expect("small")];
    match random.below(10) {
        0 => kind(store.create(path)).into(),
        1 => kind(store.remove(path)).into(),
        2 => kind(store.rename(path, other)).into(),
        3 => format!("{:?}", store.list("d").expect("a list")),
        4 => format!("{}", store.exists(path).expect("looked")),
        5 => kind(store.open(path, true).and_then(|file| file.set_length(at))).into(),
        6 => kind(store.open(path, true).and_then(|file| file.allocate(at, length))).into(),
        7 => kind(store.open(path, true).and_then(|file| file.write_at(&bytes, at))).into(),
        8 => kind(store.open(path, true).and_then(|file| file.punch(at, length))).into(),
        _ => match store.open(path, false) {
            Ok(_) => format!("{:?}", content(store, path)),
            Err(error) => kind::<()>(Err(error)).into(),
        },
    }
}

fn whole_pages_are_given_back_and_taken_again(store: &dyn Store) {
    let file = root(store).create("a").expect("made");
    file.write_at(&[7; 5 * 4096], 0).expect("written");
    file.sync().expect("synced");
    let all = file.allocated_bytes().expect("looked");
    // The pages at both ends are not wholly in the range.
    if !file.punch(4096 - 1, 2 * 4096 + 2).expect("given back") {
        return;
    }
    assert_eq!(file.length_bytes().expect("looked"), 5 * 4096);
    let mut bytes = vec![1; 5 * 4096];
    file.read_at(&mut bytes, 0).expect("read");
    let mut expected = vec![7; 5 * 4096];
    expected[4096..3 * 4096].fill(0);
    assert!(bytes == expected, "other bytes are gone");
    assert_eq!(file.allocated_bytes().expect("looked"), all - 2 * 4096);
    file.allocate(4096, 4096).expect("taken again");
    assert_eq!(file.allocated_bytes().expect("looked"), all - 4096);
    file.read_at(&mut bytes, 0).expect("read");
    assert!(bytes == expected, "room that is taken again reads as zeros");
}

fn two_hundred_random_operations_do_what_they_do_in_memory(store: &dyn Store) {
    let memory = MemoryStore::new();
    for seed in 0..20 {
        let (mut random, mut again) = (Random(seed), Random(seed));
        store.create_directory("d").expect("made");
        memory.create_directory("d").expect("made");
        for step in 0..200 {
            let (expected, found) = (operate(&memory, &mut random), operate(store, &mut again));
            assert_eq!(found, expected, "step {step}; rerun with seed {seed}");
        }
    }
}

/// The story: each read asked whether its time was to be noted, and the first one after a write put
/// the file into the file system's journal again, for a time that nobody looks at.
#[test]
fn the_file_store_leaves_no_note_of_reads() {
    let scratch = Scratch::new();
    let store = FileStore::new(&scratch.0);
    let made = new_file(root(&store), "a", &[7; 4096]);
    let path = scratch.0.join("a");
    let times = std::fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH);
    let opened = std::fs::File::options().write(true).open(&path).expect("it is there");
    opened.set_times(times).expect("it is ours");
    for file in [made, store.open("a", false).expect("opened")] {
        assert_eq!(read(&*file, 0, 4096), [7; 4096]);
        let accessed = std::fs::metadata(&path).and_then(|it| it.accessed());
        assert_eq!(accessed.expect("its time"), std::time::UNIX_EPOCH);
    }
}

/// Calls to write that this thread made.
#[cfg(target_os = "linux")]
fn writes_count() -> Option<usize> {
    let told = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    told.lines().find_map(|line| line.strip_prefix("syscw: "))?.parse().ok()
}

/// Nobody else gets the processor while one lasts, where the kernel does not preempt itself.
#[cfg(target_os = "linux")]
#[test]
fn the_file_store_writes_much_in_short_calls() {
    let scratch = Scratch::new();
    let store = FileStore::new(&scratch.0);
    store.create_directory("").expect("the root");
    let file = store.create("long").expect("a file");
    let bytes: Vec<u8> = (0..=250).cycle().take((1 << 20) + 1).collect();
    let before = writes_count();
    file.write_at(&bytes, 4096).expect("room");
    match before.zip(writes_count()) {
        Some((before, after)) => {
            assert!((9..40).contains(&(after - before)), "{} calls for a MiB", after - before);
        }
        None => eprintln!("not counted: the kernel has no /proc/thread-self/io"),
    }
    let mut read = vec![0; bytes.len()];
    file.read_at(&mut read, 4096).expect("what was written");
    assert!(read == bytes, "something else was written");
}
