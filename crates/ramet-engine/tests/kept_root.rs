//! Roots from kept hashes are those of reading everything, whatever became of the files that the
//! hashes are kept in; and those files are no more than a cache.

mod crash;

use crash::Random;
use crash::model::BLOCK_BYTES;
use crash::run::Run;
use crash::script::{Step, create, delete, snapshot_of, write};
use ramet_engine::{BlockDevice, Engine, Kind, ObjectKind, RootHasher, hash_stored};
use ramet_store::{Fault, Kept, Operation, Store, When};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SCRIPTS: u64 = 16;
const ROUNDS: usize = 8;
const STEPS: usize = 15;

type Hash = [u8; 32];

/// Of all that is stored.
fn root_by_reading(device: &dyn BlockDevice) -> Hash {
    let mut hasher = RootHasher::new(device.size_bytes());
    let (mut block, end) = (0, device.size_bytes().div_ceil(BLOCK_BYTES));
    while block < end {
        block = hash_stored(device, &mut hasher, block, 1000).expect("read");
    }
    hasher.finish()
}

/// From kept hashes, a few blocks at a time.
fn kept_root(engine: &Arc<Engine>, name: &str, blocks_max: u64) -> Hash {
    let mut reader = engine.hashed_reader(name).expect("there");
    loop {
        if let Some(root) = reader.step(blocks_max).expect("computed") {
            return root;
        }
    }
}

/// All roots of what has one. Result: how many.
fn compare_all(run: &Run, random: &mut Random) -> usize {
    let engine = run.engine();
    let mut compared = 0;
    for info in engine.list().into_iter().filter(|it| it.kind == ObjectKind::Snapshot) {
        if random.below(3) == 0 {
            // As sending does, of a part.
            let reader = engine.hashed_reader(&info.name).expect("there");
            let blocks = info.size_bytes / BLOCK_BYTES;
            let first = random.below(blocks + 1);
            let count = random.below(blocks - first + 1);
            let mut buffer = vec![0; usize::try_from(count * BLOCK_BYTES).expect("small")];
            reader.read(first, &mut buffer).expect("read");
        }
        let wanted = root_by_reading(&*engine.device(&info.name).expect("there"));
        let found = kept_root(engine, &info.name, random.pick(&[1, 20, 1 << 20]));
        assert_eq!(found, wanted, "{}: {}", run.context, info.name);
        compared += 1;
    }
    for info in engine.receiving() {
        let wanted = root_by_reading(&*engine.receiving_device(info.uuid).expect("there"));
        let found = kept_root(engine, &info.uuid.to_string(), 20);
        assert_eq!(found, wanted, "{}: {} is received", run.context, info.uuid);
        compared += 1;
    }
    compared
}

/// Do something to the hash files that nobody would expect to do no harm.
fn spoil(run: &Run, random: &mut Random, before: &mut Vec<(String, Vec<u8>)>) {
    let names = run.store.list("hashes").unwrap_or_default();
    for name in names {
        let path = format!("hashes/{name}");
        let file = run.store.open(&path, true).expect("opened");
        let length = file.length_bytes().expect("looked");
        let mut bytes = vec![0; usize::try_from(length).expect("small")];
        file.read_at(&mut bytes, 0).expect("read");
        before.push((path.clone(), bytes));
        if length == 0 {
            continue;
        }
        let sector = random.below(length / 512) * 512;
        match random.below(8) {
            0 => run.store.remove(&path).expect("removed"),
            1 => file.set_length(sector).expect("cut"),
            2 => run.store.flip_bit(&path, random.below(length), 5).expect("flipped"),
            3 => file.write_at(&[0; 512], sector).expect("written"),
            4 => {
                // An older version, or what stood beside another file.
                let (_, other) = random.pick(before);
                file.write_at(&other, 0).expect("written");
            }
            5 => {
                let (_, other) = random.pick(before);
                let sector = sector.min(other.len() as u64 / 512 * 512 - 512);
                let at = usize::try_from(sector).expect("small");
                file.write_at(&other[at..at + 512], sector).expect("written");
            }
            _ => {}
        }
    }
}

#[test]
fn roots_are_those_of_reading_everything_whatever_happened_to_hash_files() {
    let (mut compared, mut spoiled) = (0, 0);
    for seed in 0..SCRIPTS {
        let mut run = Run::new(9000 + seed);
        let mut random = Random(seed);
        let mut before = Vec::new();
        for round in 0..ROUNDS {
            run.play(STEPS).expect("nothing fails");
            compared += compare_all(&run, &mut random);
            // Ten seconds pass, so that hashes are written.
            run.steps(&[Step::Idle { times: 6 }, Step::Reclaim { all: round % 2 == 0 }]);
            match random.below(4) {
                0 => run.lose_power(Kept::Random(random.below(1 << 40))).expect("opened"),
                1 => run.steps(&[Step::Close]),
                2 => {
                    run.kill();
                    spoil(&run, &mut random, &mut before);
                    spoiled = before.len();
                    run.reopen().expect("opened");
                }
                _ => {}
            }
            compared += compare_all(&run, &mut random);
        }
        run.kill();
    }
    assert!(compared > 700 && spoiled > 0, "{compared} roots, {spoiled} files");
}

/// A volume over several segments, with a snapshot.
fn story(seed: u64) -> Run {
    let mut run = Run::quiet(seed);
    run.steps(&[create("a", 6 * 512 * 8)]);
    for piece in 0..12 {
        run.steps(&[write("a", 800 * piece, 700, 100_000 * (piece + 1))]);
    }
    run.steps(&[snapshot_of("a", "a-1"), Step::Checkpoint]);
    run
}

fn hash_files(run: &Run) -> Vec<String> {
    run.store.list("hashes").unwrap_or_default()
}

/// What `stats` says is what is there.
fn assert_bytes_are_told(run: &Run) -> u64 {
    let allocated = |name: &String| {
        let file = run.store.open(&format!("hashes/{name}"), false).expect("opened");
        file.allocated_bytes().expect("looked")
    };
    let bytes: u64 = hash_files(run).iter().map(allocated).sum();
    assert_eq!(run.engine().stats().expect("figures").hashes_bytes, bytes);
    bytes
}

#[test]
fn the_next_root_reads_what_changed_and_no_more() {
    let mut run = story(1);
    let first = kept_root(run.engine(), "a-1", 1 << 20);
    run.steps(&[write("a", 16, 8, 5_000_000), snapshot_of("a", "a-2"), Step::Close]);
    // From the first step on the files are known.
    run.steps(&[Step::Idle { times: 1 }]);
    let bytes = assert_bytes_are_told(&run);
    assert!((8400 * 32..8400 * 64).contains(&bytes), "{bytes} bytes for 8400 blocks");
    let reads = |run: &Run| run.store.count(Operation::Read);
    let before = reads(&run);
    let second = kept_root(run.engine(), "a-2", 1 << 20);
    let took = reads(&run) - before;
    assert_eq!(second, root_by_reading(&*run.engine().device("a-2").expect("there")));
    let before = reads(&run);
    assert_eq!(kept_root(run.engine(), "a-2", 1 << 20), second);
    assert!(reads(&run) - before < 5, "all of it is known");
    assert!(took < 40, "{took} reads: hashes of one leaf, one block, and nodes");
    // The blocks themselves are not looked at: that is what makes it cheap.
    for name in run.store.list("segments").expect("listed") {
        let path = format!("segments/{name}");
        let length = run.store.open(&path, false).expect("opened").length_bytes().expect("looked");
        for at in (4096 * 5..length / 2).step_by(4096) {
            run.store.flip_bit(&path, at + 17, 3).expect("flipped");
        }
    }
    assert_eq!(kept_root(run.engine(), "a-1", 1 << 20), first);
    let device = run.engine().device("a-1").expect("there");
    let mut hasher = RootHasher::new(device.size_bytes());
    let damaged = hash_stored(&*device, &mut hasher, 0, 1 << 20).expect_err("damaged");
    assert_eq!(damaged.kind, Kind::Corrupt, "verifying reads");
    drop(device);
    run.kill();
}

#[test]
fn a_pool_whose_roots_nobody_asks_for_has_no_hash_files() {
    let mut run = story(2);
    run.steps(&[Step::Idle { times: 20 }, Step::Close]);
    assert!(run.store.list("hashes").is_err(), "no directory either");
    run.kill();
}

#[test]
fn hash_files_go_with_what_they_stand_beside() {
    let mut run = story(3);
    kept_root(run.engine(), "a-1", 1 << 20);
    run.steps(&[Step::Idle { times: 12 }]);
    assert!(hash_files(&run).len() > 6 && assert_bytes_are_told(&run) > 0);
    // Another one stands beside nothing: a crash came between.
    run.store.create("hashes/00000fff0001.hsh").expect("made");
    run.store.create("hashes/of-somebody-else").expect("made");
    run.steps(&[delete("a"), delete("a-1"), Step::Reclaim { all: true }]);
    run.steps(&[Step::Close, Step::Reclaim { all: true }, Step::Idle { times: 1 }]);
    let mut left = hash_files(&run);
    assert_eq!(left.pop().as_deref(), Some("of-somebody-else"), "what is not ours stays");
    assert!(left.len() <= 2, "{left:?}");
    for id in left.iter().map(|name| &name[..12]) {
        let path = [format!("segments/{id}.seg"), format!("nodes/{id}.map")];
        assert!(path.iter().any(|path| run.store.exists(path).expect("looked")), "{id}");
    }
    run.kill();
}

#[test]
fn pages_of_dead_slots_go_when_a_segment_is_thinned() {
    let mut run = story(4);
    kept_root(run.engine(), "a-1", 1 << 20);
    run.steps(&[Step::Close, Step::Idle { times: 1 }]);
    let before = assert_bytes_are_told(&run);
    // Of each segment a few blocks stay.
    run.steps(&[delete("a-1")]);
    for piece in 0..12 {
        run.steps(&[write("a", 800 * piece, 640, 7_000_000 + 10_000 * piece)]);
    }
    run.steps(&[Step::Reclaim { all: true }]);
    let after = assert_bytes_are_told(&run);
    assert!(after < before / 2, "{after} of {before} bytes");
    run.steps(&[snapshot_of("a", "a-2")]);
    let root = root_by_reading(&*run.engine().device("a-2").expect("there"));
    assert_eq!(kept_root(run.engine(), "a-2", 1 << 20), root);
    run.kill();
}

#[test]
fn a_medium_that_fails_on_hashes_harms_nothing_else() {
    for fault in [Fault::Error, Fault::Full] {
        for operation in [Operation::Create, Operation::Write, Operation::CreateDirectory] {
            let mut run = story(5);
            run.steps(&[Step::Idle { times: 1 }, Step::Flush]);
            let root = kept_root(run.engine(), "a-1", 1 << 20);
            for next in 0..3 {
                let nth = run.store.count(operation) + 2 * next;
                run.store.plan(When::Nth(operation, nth), fault);
            }
            let now = Instant::now() + Duration::from_secs(3600);
            run.engine().step_checkpoint(now).expect("it is only a cache");
            assert_eq!(run.engine().poisoned(), "", "{operation:?} {fault:?}");
            assert_eq!(kept_root(run.engine(), "a-1", 1 << 20), root);
            run.kill();
        }
    }
}

#[test]
fn hashes_make_way_when_somebody_finds_no_space() {
    const LIMIT_BYTES: u64 = 128 << 20;
    let mut run = story(6);
    run.engine().set_limit(Some(LIMIT_BYTES)).expect("room enough");
    let root = kept_root(run.engine(), "a-1", 1 << 20);
    run.steps(&[Step::Close, Step::Idle { times: 1 }, create("big", 1 << 20)]);
    assert!(assert_bytes_are_told(&run) > 0);
    let mut rounds = 0_u64;
    let full = loop {
        rounds += 1;
        let bytes = (rounds << 32..).take(32_768).flat_map(u64::to_le_bytes);
        let device = run.engine().device("big").expect("there");
        match device.write((rounds << 18) - (1 << 18), &bytes.collect::<Vec<u8>>(), false) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind, Kind::Full);
    run.engine().step_checkpoint(Instant::now()).expect("nothing fails");
    assert_eq!(assert_bytes_are_told(&run), 0);
    assert_eq!(kept_root(run.engine(), "a-1", 1 << 20), root);
    let now = Instant::now() + Duration::from_secs(3600);
    run.engine().step_checkpoint(now).expect("nothing fails");
    assert_eq!(assert_bytes_are_told(&run), 0, "nor are others made");
    let stats = run.engine().stats().expect("figures");
    assert!(stats.taken_bytes <= LIMIT_BYTES);
    run.kill();
}

#[test]
fn roots_of_all_heights_of_maps_are_right() {
    let mut run = Run::quiet(7);
    for (number, blocks) in
        [1, 512, 513, 1 << 15, 1 << 21, 1 << 27, 1 << 33, 1 << 36].iter().enumerate()
    {
        let name = format!("v{number}");
        run.steps(&[create(&name, *blocks)]);
        for (at, stamp) in [(0, 1), (blocks / 2, 2), (blocks - 1, 3)] {
            run.steps(&[write(&name, at, 1, 1000 * (number as u64 + 1) + 10 * stamp)]);
        }
        let snapshot = format!("s{number}");
        run.steps(&[snapshot_of(&name, &snapshot)]);
        for again in 0..2 {
            let engine = run.engine();
            let root = root_by_reading(&*engine.device(&snapshot).expect("there"));
            assert_eq!(kept_root(engine, &snapshot, 1), root, "{blocks} blocks, {again}");
            // Now its nodes have addresses.
            run.steps(&[Step::Checkpoint]);
        }
        assert_eq!(kept_root(run.engine(), &snapshot, 1), kept_root(run.engine(), &snapshot, 100));
    }
    run.kill();
}

/// Hash files, with their bytes.
fn hash_contents(run: &Run) -> Vec<(String, Vec<u8>)> {
    let content = |name: String| {
        let file = run.store.open(&format!("hashes/{name}"), false).expect("opened");
        let length = file.length_bytes().expect("looked");
        let mut bytes = vec![0; usize::try_from(length).expect("small")];
        file.read_at(&mut bytes, 0).expect("read");
        (name, bytes)
    };
    hash_files(run).into_iter().map(content).collect()
}

/// What could not be read was taken for an empty page: what was computed anew went into it, and the
/// page was written over all the good hashes that it had.
#[test]
fn hashes_that_cannot_be_read_are_not_written_over() {
    let mut failed = [0, 0];
    for (at, operation) in [Operation::Open, Operation::Read].into_iter().enumerate() {
        for nth in 0.. {
            let mut run = story(8);
            let root = kept_root(run.engine(), "a-1", 1 << 20);
            run.steps(&[Step::Close, Step::Idle { times: 1 }]);
            let before = hash_contents(&run);
            // Its leaves are new ones, and hold blocks that share pages with those of others.
            for piece in 0..3 {
                run.steps(&[write("a", 1000 + 600 * piece, 1, 5_000_000 + piece)]);
            }
            run.steps(&[snapshot_of("a", "a-2"), Step::Checkpoint]);
            let wanted = root_by_reading(&*run.engine().device("a-2").expect("there"));
            let planned = run.store.count(operation) + nth;
            run.store.plan(When::Nth(operation, planned), Fault::Error);
            let mut reader = run.engine().hashed_reader("a-2").expect("there");
            // What fails may be a node or a segment too.
            match reader.step(1 << 20) {
                Ok(found) => assert_eq!(found, Some(wanted)),
                Err(error) => assert_eq!(error.kind, Kind::Unavailable, "{error:?}"),
            }
            drop(reader);
            if run.store.count(operation) <= planned {
                run.kill();
                break;
            }
            failed[at] += 1;
            assert_eq!(kept_root(run.engine(), "a-2", 1 << 20), wanted);
            run.steps(&[Step::Idle { times: 12 }, Step::Close]);
            assert_holds_all(&hash_contents(&run), &before, &format!("{operation:?} {nth}"));
            assert_eq!(kept_root(run.engine(), "a-1", 1 << 20), root);
            run.kill();
        }
    }
    assert!(failed[0] > 1 && failed[1] > 1, "{failed:?} faults");
}

/// No hash that there was is missing.
fn assert_holds_all(after: &[(String, Vec<u8>)], before: &[(String, Vec<u8>)], context: &str) {
    for (name, old) in before {
        let (_, new) = after.iter().find(|it| it.0 == *name).expect("the file is there");
        assert!(new.len() >= old.len(), "{context}: {name} is shorter");
        for (at, (old, new)) in old.chunks(32).zip(new.chunks(32)).enumerate() {
            // The first of each page is its header.
            let kept = at % 128 == 0 || *old == [0; 32] || old == new;
            assert!(kept, "{context}: {name} lost the hash at {}", at * 32);
        }
    }
}

#[test]
fn what_was_hashed_before_is_neither_written_nor_read_again() {
    let mut run = story(9);
    let send = |run: &Run| {
        let reader = run.engine().hashed_reader("a-1").expect("there");
        let mut buffer = vec![0; usize::try_from(reader.size_bytes()).expect("small")];
        reader.read(0, &mut buffer).expect("read");
    };
    // From the first step on the files are known.
    run.steps(&[Step::Idle { times: 1 }]);
    send(&run);
    let root = kept_root(run.engine(), "a-1", 1 << 20);
    let writes = |run: &Run| run.store.count(Operation::Write);
    let before = writes(&run);
    run.steps(&[Step::Idle { times: 6 }]);
    let (took, files) = (writes(&run) - before, hash_files(&run).len() as u64);
    assert!(files > 8 && took < 2 * files, "{took} writes: pages side by side are one");
    let reads = run.store.count(Operation::Read);
    assert_eq!(kept_root(run.engine(), "a-1", 1 << 20), root);
    assert_eq!(run.store.count(Operation::Read), reads, "what is written stays in memory");
    let before = writes(&run);
    send(&run);
    run.steps(&[Step::Idle { times: 12 }]);
    assert_eq!(writes(&run), before, "it is the same");
    // Nobody looked for a while.
    run.steps(&[Step::Idle { times: 24 }]);
    let reads = run.store.count(Operation::Read);
    assert_eq!(kept_root(run.engine(), "a-1", 1 << 20), root);
    assert!(run.store.count(Operation::Read) > reads, "memory comes back");
    run.kill();
}
