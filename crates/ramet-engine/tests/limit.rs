//! A pool with a limit of its own behaves as on a full medium: it refuses writes, takes deletes,
//! uses what comes back, over openings, and never takes more.

mod crash;

use crash::run::Run;
use crash::script::{Step, create, delete, write};
use ramet_engine::Kind;
use ramet_store::Store;

const LIMIT_BYTES: u64 = 8 << 20;

/// What all files of the pool take.
fn taken_bytes(run: &Run) -> u64 {
    let mut bytes = 0;
    for directory in ["", "segments", "nodes", "tables", "spare"] {
        for name in run.store.list(directory).expect("listed") {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let file = run.store.open(&path, false).expect("opened");
            bytes += file.allocated_bytes().expect("looked");
        }
    }
    bytes
}

fn assert_held(run: &Run, what: &str) {
    let stats = run.engine().stats().expect("figures");
    assert_eq!(stats.limit_bytes, LIMIT_BYTES, "{what}");
    assert_eq!(stats.taken_bytes, taken_bytes(run), "{what}");
    assert!(stats.taken_bytes <= LIMIT_BYTES, "{what}: {}", stats.taken_bytes);
    assert_eq!(stats.space_free_bytes, LIMIT_BYTES - stats.taken_bytes, "{what}");
}

#[test]
fn a_pool_at_its_limit_takes_deletes_and_has_room_afterwards() {
    let mut run = Run::quiet(3);
    run.steps(&[create("a", 4096), create("b", 4096), write("b", 0, 10, 1)]);
    run.engine().set_limit(Some(LIMIT_BYTES)).expect("room enough");
    for round in 0..6u64 {
        let mut written = 0;
        let full = (0..64).any(|piece| {
            let done = run.step(&write("a", 60 * piece, 60, 100_000 * (round + 1) + 1000 * piece));
            written += u64::from(done.is_ok());
            done.is_err_and(|error| error.kind == Kind::Full)
        });
        assert!(full && written > 10, "round {round}: {written} writes had room");
        assert_held(&run, &format!("round {round}, full"));
        run.resync().expect("looked at");
        match round % 3 {
            0 => run.steps(&[Step::Kill]),
            1 => run.steps(&[Step::Close]),
            _ => {}
        }
        assert_held(&run, &format!("round {round}, opened"));
        run.steps(&[delete("a"), Step::Reclaim { all: true }, create("a", 4096)]);
        assert_held(&run, &format!("round {round}, given back"));
    }
}

#[test]
fn a_limit_below_what_is_taken_is_refused_and_none_ends_it() {
    let mut run = Run::quiet(4);
    run.steps(&[create("a", 4096), write("a", 0, 1000, 1), Step::Flush]);
    let taken = run.engine().stats().expect("figures").taken_bytes;
    assert_eq!(taken, taken_bytes(&run));
    for limit in [0, taken - 1] {
        let refused = run.engine().set_limit(Some(limit)).expect_err("it takes more");
        assert_eq!((refused.kind, refused.code), (Kind::Invalid, "limit_below_use"));
    }
    assert_eq!(run.engine().stats().expect("figures").limit_bytes, 0);
    run.engine().set_limit(Some(taken)).expect("just enough");
    run.steps(&[Step::Kill]);
    assert_eq!(run.engine().stats().expect("figures").limit_bytes, taken);
    let full = |run: &mut Run| {
        (0..10).any(|piece| run.step(&write("a", 1500, 200, 5_000 + 1000 * piece)).is_err())
    };
    assert!(full(&mut run));
    run.resync().expect("looked at");
    run.engine().set_limit(None).expect("none");
    run.steps(&[write("a", 1500, 200, 90_000), Step::Close]);
    assert_eq!(run.engine().stats().expect("figures").limit_bytes, 0);
}
