//! The root hash is what docs/internals/root-hash.md says: held against the recursion written down
//! as it stands there. tests/test_root_hash.py has a second one, with a BLAKE3 of its own.

use proptest::prelude::*;
use ramet_engine::RootHasher;
use std::collections::BTreeMap;

type Hash = [u8; 32];

fn node(blocks: &BTreeMap<u64, Vec<u8>>, level: u32, index: u64, zeros: &[Hash]) -> Hash {
    let span = 1_u64 << (3 * level);
    let first = index * span;
    if blocks.range(first..first + span).next().is_none() {
        return zeros[level as usize];
    }
    if level == 0 {
        return *blake3::hash(&blocks[&index]).as_bytes();
    }
    let children: Vec<Hash> =
        (0..8).map(|child| node(blocks, level - 1, 8 * index + child, zeros)).collect();
    *blake3::hash(children.as_flattened()).as_bytes()
}

fn root(blocks: &BTreeMap<u64, Vec<u8>>, size_bytes: u64) -> Hash {
    let mut zeros = vec![*blake3::hash(&[0; 4096]).as_bytes()];
    for level in 0..12 {
        zeros.push(*blake3::hash(&zeros[level].repeat(8)).as_bytes());
    }
    let top = node(blocks, 12, 0, &zeros);
    *blake3::hash(&[b"RAMETRT1", &size_bytes.to_le_bytes()[..], &top].concat()).as_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn root_is_that_of_the_recursion(
        // Near each other, far apart, and at the very end of the largest size.
        indices in prop::collection::btree_set(
            prop_oneof![0..70_u64, 0..600_u64, 0..(1_u64 << 36), (1_u64 << 36) - 9..1 << 36],
            0..40,
        ),
        together in any::<bool>(),
        fill in any::<u8>(),
    ) {
        let size_bytes = 1 << 48;
        let block = |index: &u64| [&index.to_le_bytes()[..], &[fill; 4088]].concat();
        let blocks: BTreeMap<u64, Vec<u8>> =
            indices.iter().map(|index| (*index, block(index))).collect();
        let mut hasher = RootHasher::new(size_bytes);
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (index, bytes) in &blocks {
            match runs.last_mut() {
                Some((first, run)) if together && *first + run.len() as u64 / 4096 == *index => {
                    run.extend(bytes);
                }
                _ => runs.push((*index, bytes.clone())),
            }
        }
        for (first, run) in &runs {
            prop_assert!(hasher.takes(*first, run.len()));
            hasher.add(*first, run);
            prop_assert!(!hasher.takes(*first, run.len()), "a block is given once");
        }
        prop_assert_eq!(hasher.finish(), root(&blocks, size_bytes));
    }
}

#[test]
fn zeros_and_holes_are_the_same_and_a_part_of_a_block_is_filled_up() {
    let size_bytes = 4096 * 10 + 512;
    let mut given = RootHasher::new(size_bytes);
    given.add(3, &[0; 4096]);
    given.add(10, &[7; 512]);
    let mut last = vec![7; 512];
    last.resize(4096, 0);
    let blocks = BTreeMap::from([(10, last)]);
    assert_eq!(given.finish(), root(&blocks, size_bytes));
    assert_ne!(root(&blocks, size_bytes), root(&blocks, size_bytes + 512), "the size counts");
}

#[test]
fn blocks_beyond_the_size_or_out_of_order_are_not_taken() {
    let mut hasher = RootHasher::new(4096 * 4);
    assert!(!hasher.takes(4, 1) && !hasher.takes(3, 4097) && !hasher.takes(u64::MAX, 4096));
    hasher.add(2, &[1; 4096]);
    assert!(!hasher.takes(2, 1) && hasher.takes(3, 4096));
}
