//! A store with a limit: what it refuses, what it counts, and what comes back at once.

use ramet_store::{LimitStore, MemoryStore, Store, StoreError};
use std::sync::Arc;

const PAGE: u64 = 4096;
const FILES: u64 = 4;

fn limited(pages: u64) -> LimitStore {
    let store = LimitStore::new(Arc::new(MemoryStore::new()));
    store.set_limit(Some(pages * PAGE));
    store
}

fn is_full<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Full { .. }))
}

#[test]
fn growing_beyond_the_limit_is_refused_and_changes_nothing() {
    let store = limited(4);
    let file = store.create("a").expect("created");
    file.allocate(0, 3 * PAGE).expect("room");
    assert!(is_full(file.allocate(3 * PAGE, 2 * PAGE)));
    assert!(is_full(file.write_at(&[1; 8192], 3 * PAGE)));
    assert_eq!(file.length_bytes().expect("a length"), 3 * PAGE);
    assert_eq!(store.taken_bytes(), 3 * PAGE);
    // A byte takes a page, the rest of that page nothing.
    file.write_at(&[1], 3 * PAGE).expect("the last page");
    file.write_at(&[2; 100], 3 * PAGE + 1).expect("in the same page");
    assert!(is_full(store.create("b").expect("a name takes nothing").write_at(&[1], 0)));
    assert_eq!(store.space_bytes().expect("told"), (0, 4 * PAGE));
}

#[test]
fn what_was_allocated_can_be_written_though_the_pool_is_full() {
    let store = limited(4);
    let file = store.create("a").expect("created");
    file.allocate(0, 4 * PAGE).expect("room");
    file.write_at(&[7; 16384], 0).expect("allocated");
    let again = store.open("a", true).expect("opened");
    again.write_at(&[8; 16384], 0).expect("allocated");
    file.allocate(PAGE, 2 * PAGE).expect("it is there");
}

#[test]
fn what_is_given_back_can_be_taken_at_once() {
    let store = limited(4);
    let file = store.create("a").expect("created");
    let other = store.create("b").expect("created");
    file.allocate(0, 4 * PAGE).expect("room");
    assert!(is_full(other.allocate(0, PAGE)));
    assert!(file.punch(PAGE, PAGE).expect("punched"));
    other.allocate(0, PAGE).expect("what was punched");
    assert!(is_full(file.write_at(&[1; 4096], PAGE)), "the hole was taken by the other");
    file.set_length(3 * PAGE).expect("cut");
    file.write_at(&[1; 4096], PAGE).expect("what was cut off");
    assert_eq!(store.taken_bytes(), 4 * PAGE);
    store.rename("b", "a").expect("renamed");
    assert_eq!(store.taken_bytes(), PAGE, "the one that had the name is gone");
    // Those that have it open may still do something to it: it counts no more.
    file.set_length(PAGE).expect("cut");
    assert_eq!(store.taken_bytes(), PAGE);
    store.remove("a").expect("removed");
    assert_eq!(store.taken_bytes(), 0);
}

#[test]
fn what_is_there_counts_from_the_beginning_and_a_limit_below_it_is_refused() {
    let inner = Arc::new(MemoryStore::new());
    inner.create_directory("segments").expect("made");
    inner.create("pool").expect("created").allocate(0, PAGE).expect("room");
    inner.create("segments/1").expect("created").allocate(0, 2 * PAGE).expect("room");
    let store = LimitStore::new(inner);
    store.count(&["", "segments", "absent"]).expect("counted");
    assert_eq!(store.taken_bytes(), 3 * PAGE);
    assert_eq!(store.try_set_limit(Some(3 * PAGE - 1)), Err(3 * PAGE));
    assert_eq!(store.limit_bytes(), None);
    assert_eq!(store.try_set_limit(Some(3 * PAGE)), Ok(None));
    let file = store.open("segments/1", true).expect("opened");
    assert!(is_full(file.allocate(2 * PAGE, PAGE)));
    assert_eq!(store.try_set_limit(None), Ok(Some(3 * PAGE)));
    file.allocate(2 * PAGE, PAGE).expect("no limit any more");
}

#[test]
fn threads_that_fill_a_store_together_never_take_more_than_there_is() {
    let store = limited(1000);
    std::thread::scope(|scope| {
        for number in 0..FILES {
            let store = &store;
            scope.spawn(move || {
                let file = store.create(&format!("{number}")).expect("created");
                let full = (0..=1000).find(|page| is_full(file.allocate(page * PAGE, PAGE)));
                assert!(full.is_some());
            });
        }
    });
    let sum = (0..FILES).map(|number| store.open(&format!("{number}"), false).expect("opened"));
    let sum: u64 = sum.map(|file| file.allocated_bytes().expect("told")).sum();
    assert_eq!(sum, store.taken_bytes());
    assert_eq!(sum, 1000 * PAGE);
}

#[test]
fn files_that_exchange_their_names_go_on_counting_what_each_of_them_takes() {
    let store = limited(10);
    store.create_directory("").expect("made");
    store.create("a").expect("created").allocate(0, 2 * 4096).expect("room");
    store.create("b").expect("created").allocate(0, 5 * 4096).expect("room");
    store.exchange("a", "b").expect("exchanged");
    store.remove("a").expect("removed");
    assert_eq!(store.taken_bytes(), 2 * 4096);
    store.remove("b").expect("removed");
    assert_eq!(store.taken_bytes(), 0);
}

#[test]
fn what_a_directory_takes_is_told() {
    let inner = Arc::new(MemoryStore::new());
    inner.create_directory("one").expect("made");
    inner.create("one/old").expect("created").write_at(&[1; 5000], 0).expect("written");
    let store = LimitStore::new(inner);
    store.create_directory("one/more").expect("made");
    assert_eq!(store.taken_in("one"), 0, "nobody looked yet");
    store.count(&["one"]).expect("counted");
    assert_eq!(store.taken_in("one"), 2 * PAGE);
    for (path, pages) in [("one/new", 3), ("oneself", 5), ("one/more/new", 7)] {
        store.create(path).expect("created").allocate(0, pages * PAGE).expect("room");
    }
    assert_eq!(store.taken_in("one"), 5 * PAGE, "nothing below it, and nothing beside");
    store.remove("one/old").expect("removed");
    assert_eq!((store.taken_in("one"), store.taken_in("more")), (3 * PAGE, 0));
}
