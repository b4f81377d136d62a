//! Flushes that are done before they are asked for, because the client has flushed each of its
//! writes: durable is what was promised, and to expect wrongly costs little.

use crate::common::memory::MemoryDevice;
use crate::common::raw::{Client, FLUSH, READ, WRITE, request};
use crate::common::{Served, VOLUME};
use ramet_engine::{BlockDevice, Kind};
use std::sync::atomic::Ordering::SeqCst;

const EIO: u32 = 5;
const BLOCK: [u8; 4096] = [0xb1; 4096];
/// As many pairs of a write and a flush until the next flush is expected.
const PAIRS: usize = 8;

fn pair(client: &mut Client) {
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
}

/// A client whose next flush is expected.
fn attach(served: &Served) -> Client {
    let mut client = served.attach("volume");
    (0..PAIRS).for_each(|_| pair(&mut client));
    client
}

fn syncs_count(device: &MemoryDevice) -> usize {
    device.syncs_count.load(SeqCst)
}

/// Spin until nothing is left for a flush to do.
fn wait_until_durable(device: &MemoryDevice) {
    while !device.is_durable() {
        std::thread::yield_now();
    }
}

#[test]
fn a_flush_that_is_expected_is_done_before_it_is_asked_for_and_once() {
    let served = Served::new();
    let mut client = attach(&served);
    assert_eq!(syncs_count(&served.volume), PAIRS);
    for count in PAIRS..3 * PAIRS {
        assert_eq!(client.write(0, 4096, &BLOCK), 0, "answered before it is durable, or after");
        wait_until_durable(&served.volume);
        assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
        assert_eq!(syncs_count(&served.volume), count + 1);
    }
}

#[test]
fn the_write_is_answered_before_the_flush_that_is_expected() {
    let served = Served::new();
    let mut client = attach(&served);
    served.volume.flush_gate.close();
    assert_eq!(served.volume.announced_flushes_count.load(SeqCst), 0);
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    assert_eq!(served.volume.announced_flushes_count.load(SeqCst), 1, "and announced before that");
    served.volume.flush_gate.wait_for_caller();
    client.send_request(0, FLUSH, 3, (0, 0));
    client.expect_silence();
    served.volume.flush_gate.open();
    assert_eq!(client.reply(), (0, 3));
    assert_eq!(syncs_count(&served.volume), PAIRS + 1);
}

#[test]
fn a_client_that_flushes_no_more_pays_for_a_sync_and_one_that_keeps_changing_for_a_few() {
    let served = Served::new();
    let mut client = attach(&served);
    let (mut asked_count, rounds) = (PAIRS, 40);
    for round in 0..rounds {
        let before = syncs_count(&served.volume);
        (0..100).for_each(|_| assert_eq!(client.write(0, 0, &BLOCK), 0));
        // One behind which something else comes: by then a flush that was expected is done.
        client.read(0, 1);
        assert!(syncs_count(&served.volume) <= before + 1, "round {round}");
        (0..2 * PAIRS).for_each(|_| pair(&mut client));
        asked_count += 2 * PAIRS;
    }
    let unasked_count = syncs_count(&served.volume) - asked_count;
    assert_eq!(unasked_count, 2, "after {rounds} rounds");
}

#[test]
fn no_flush_is_expected_while_requests_wait_behind_a_write() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for count in 0..3 * PAIRS {
        let mut bytes = request(0, WRITE, 1, (0, 4096));
        bytes.extend(BLOCK);
        bytes.extend(request(0, FLUSH, 2, (0, 0)));
        client.send(&bytes);
        assert_eq!((client.reply(), client.reply()), ((0, 1), (0, 2)));
        assert_eq!(syncs_count(&served.volume), count + 1);
    }
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    assert_eq!(client.ask(0, READ, (0, 0)), 0);
    assert_eq!(syncs_count(&served.volume), 3 * PAIRS);
}

/// A log that failed to sync is poisoned, so the flush that is asked for fails as well: a device
/// says so by failing again.
#[test]
fn what_fails_before_it_is_asked_for_is_told_when_it_is() {
    let served = Served::new();
    let mut client = attach(&served);
    served.volume.flush_gate.close();
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    served.volume.flush_gate.wait_for_caller();
    served.volume.fail_with(Some(Kind::Unavailable));
    served.volume.flush_gate.open();
    assert_eq!(client.ask(0, FLUSH, (0, 0)), EIO);
    served.volume.fail_with(None);
    assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(syncs_count(&served.volume), PAIRS + 1, "no flush was answered without a sync");
}

/// P1 is about all connections of a volume: what came in between is covered too.
#[test]
fn a_flush_covers_what_another_connection_wrote_after_it_was_expected() {
    let served = Served::new();
    let mut client = attach(&served);
    let mut other = served.attach("volume");
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    wait_until_durable(&served.volume);
    assert_eq!(other.write(0, 8192, &BLOCK), 0);
    assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(syncs_count(&served.volume), PAIRS + 2);
    // There were two syncs for one flush: it is not expected again so soon.
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    client.read(0, 1);
    assert_eq!(syncs_count(&served.volume), PAIRS + 2);
}

/// The promise of `closing`: a flush that nobody asked for is waited for like any other call.
#[test]
fn close_connections_waits_for_a_flush_that_was_expected() {
    let served = Served::new();
    let mut client = attach(&served);
    served.volume.flush_gate.close();
    assert_eq!(client.write(0, 0, &BLOCK), 0);
    served.volume.flush_gate.wait_for_caller();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| {
            let ended_count = served.server.close_connections(&[VOLUME]);
            (ended_count, served.exports.attached_count())
        });
        client.expect_end();
        assert_eq!(served.exports.attached_count(), 1, "its device is in use");
        served.volume.flush_gate.open();
        assert_eq!(closing.join().unwrap(), (1, 0));
    });
}
