//! Connections that share a thread because many flush at once: nothing a client sees may tell, and
//! nothing a client does may hold up another.

use crate::common::memory::MemoryDevice;
use crate::common::raw::{Client, FLUSH, WRITE, info_data, request};
use crate::common::{Served, VOLUME};
use ramet_engine::Kind;
use ramet_nbd::Limits;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

const FUA: u16 = 1;
const GO: u32 = 7;
const EIO: u32 = 5;
const BLOCK: [u8; 4096] = [0xb1; 4096];
/// As many flushes in a crowd take a connection into it.
const FLUSHES: usize = 16;

/// A server where a single flush is a crowd.
fn served() -> Served {
    Served::with_limits(Limits { crowd_flushes_min: 1, ..Limits::default() })
}

/// Spin until so many connections share a thread.
fn wait_for_crowd(served: &Served, count: usize) {
    while served.server.crowd_count() != count {
        std::thread::yield_now();
    }
}

/// A client that has just been taken into the crowd, the `count`th.
fn attach(served: &Served, count: usize) -> Client {
    let mut client = served.attach("volume");
    for _ in 0..FLUSHES {
        assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    }
    wait_for_crowd(served, count);
    client
}

fn write_request(flags: u16, cookie: u64, offset_bytes: u64, payload: &[u8]) -> Vec<u8> {
    let length_bytes = u32::try_from(payload.len()).unwrap();
    let mut bytes = request(flags, WRITE, cookie, (offset_bytes, length_bytes));
    bytes.extend(payload);
    bytes
}

#[test]
fn a_lone_connection_keeps_its_thread_however_often_it_flushes() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for _ in 0..4 * FLUSHES {
        assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    }
    assert_eq!(served.server.crowd_count(), 0);
}

#[test]
fn writes_and_flushes_in_a_crowd_do_what_they_do_elsewhere() {
    let served = served();
    let mut clients = [attach(&served, 1), attach(&served, 2)];
    let syncs_count = served.volume.syncs_count.load(SeqCst);
    for (client, offset_bytes) in clients.iter_mut().zip([4096, 8192]) {
        assert_eq!(client.write(0, offset_bytes, &BLOCK), 0);
        assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    }
    assert_eq!(served.volume.syncs_count.load(SeqCst), syncs_count + 2);
    assert_eq!(clients[1].write(FUA, 12288, &BLOCK), 0);
    assert_eq!(served.volume.syncs_count.load(SeqCst), syncs_count + 3, "FUA is durable");
    assert_eq!(served.server.crowd_count(), 2, "all this is for a crowd");
    assert_eq!(served.volume.bytes()[4096..16384], BLOCK.repeat(3));
}

/// The story: of those who waited in a batch each had the log synced once more, for what the others
/// wrote while the one before was flushed.
#[test]
fn a_flush_of_a_crowd_waits_for_nothing_that_was_written_after_it_was_asked_for() {
    let served = served();
    let [mut first, mut second, mut other] = [1, 2, 3].map(|count| attach(&served, count));
    let syncs_count = served.volume.syncs_count.load(SeqCst);
    assert_eq!(first.write(0, 0, &BLOCK), 0);
    assert_eq!(second.write(0, 4096, &BLOCK), 0);
    served.volume.flush_gate.close();
    first.send_request(0, FLUSH, 1, (0, 0));
    served.volume.flush_gate.wait_for_caller();
    let marks_count = served.volume.marks_count.load(SeqCst);
    second.send_request(0, FLUSH, 2, (0, 0));
    while served.volume.marks_count.load(SeqCst) == marks_count {
        std::thread::yield_now();
    }
    assert_eq!(other.write(0, 8192, &BLOCK), 0);
    served.volume.flush_gate.open();
    assert_eq!((first.reply(), second.reply()), ((0, 1), (0, 2)));
    assert_eq!(served.volume.syncs_count.load(SeqCst), syncs_count + 1);
    assert_eq!(other.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(served.volume.syncs_count.load(SeqCst), syncs_count + 2);
}

#[test]
fn whatever_else_is_asked_is_served_by_the_thread_of_the_connection() {
    let served = served();
    let past_end = u64::try_from(crate::common::VOLUME_BYTES).unwrap();
    let others: [fn(&mut Client, u64); 5] = [
        |client, _| assert_eq!(client.read(4096, 4096), BLOCK),
        |client, _| assert_eq!(client.write(0, 100, b"a part of a block"), 0),
        |client, _| assert_eq!(client.write(0, 1 << 20, &BLOCK.repeat(64)), 0),
        |client, past_end| assert_eq!(client.write(0, past_end, &BLOCK), 28, "ENOSPC"),
        |client, _| assert_eq!(client.ask(1 << 9, FLUSH, (0, 0)), 22, "EINVAL"),
    ];
    for other in others {
        let mut client = attach(&served, 1);
        assert_eq!(client.write(0, 4096, &BLOCK), 0);
        other(&mut client, past_end);
        wait_for_crowd(&served, 0);
        assert_eq!(client.ask(0, FLUSH, (0, 0)), 0, "the stream is in step");
    }
    assert_eq!(served.volume.bytes()[100..117], *b"a part of a block");
}

#[test]
fn requests_that_come_together_are_answered_in_their_order() {
    let served = served();
    let mut client = attach(&served, 1);
    let mut bytes = Vec::new();
    for cookie in 0..40_u8 {
        bytes.extend(write_request(0, u64::from(cookie), 4096, &[cookie; 4096]));
        bytes.extend(request(0, FLUSH, 100 + u64::from(cookie), (0, 0)));
    }
    client.send(&bytes);
    for cookie in 0..40 {
        assert_eq!(client.reply(), (0, cookie));
        assert_eq!(client.reply(), (0, 100 + cookie));
    }
    assert_eq!(client.read(4096, 4096), [39; 4096]);
}

#[test]
fn who_sends_half_a_request_or_takes_no_reply_holds_nobody_up() {
    let served = served();
    let (mut half, mut deaf) = (attach(&served, 1), attach(&served, 2));
    let mut other = attach(&served, 3);
    let whole = write_request(0, 5, 0, &BLOCK);
    half.send(&whole[..2000]);
    // Flushes whose replies fill the socket; what does not fit into it waits at our end.
    deaf.stream.set_nonblocking(true).unwrap();
    let flush = request(0, FLUSH, 6, (0, 0));
    while std::io::Write::write(&mut deaf.stream, &flush).is_ok() {
        assert_eq!(other.ask(0, FLUSH, (0, 0)), 0);
    }
    assert_eq!(other.write(0, 4096, &BLOCK), 0);
    assert_eq!(served.volume.bytes()[..4096], [0; 4096], "half a write has not happened");
    half.send(&whole[2000..]);
    assert_eq!(half.reply(), (0, 5));
    assert_eq!(served.volume.bytes()[..4096], BLOCK);
}

#[test]
fn a_flush_that_fails_is_answered_and_the_connection_goes_on() {
    let served = served();
    let mut client = attach(&served, 1);
    served.volume.fail_with(Some(Kind::Unavailable));
    assert_eq!(client.ask(0, FLUSH, (0, 0)), EIO);
    assert_eq!(client.write(FUA, 0, &BLOCK), EIO);
    served.volume.fail_with(None);
    assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(served.server.crowd_count(), 1);
}

/// The promise of `closing`, for those who share a thread: a flush under way is waited for.
#[test]
fn close_connections_returns_after_a_flush_of_the_crowd_has_ended() {
    let served = served();
    let mut client = attach(&served, 1);
    served.volume.flush_gate.close();
    client.send_request(0, FLUSH, 1, (0, 0));
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
    assert_eq!(served.server.crowd_count(), 0);
}

/// The story of `closing`: a stalled write of a client that died, and its successor's.
#[test]
fn a_stalled_write_in_a_crowd_lands_before_its_successor_is_served() {
    let served = served();
    let mut dying = attach(&served, 1);
    served.volume.write_gate.close();
    let mut bytes = write_request(0, 1, 0, &[b'o'; 4096]);
    bytes.extend(write_request(0, 2, 0, &[b'l'; 4096]));
    dying.send(&bytes);
    served.volume.write_gate.wait_for_caller();
    drop(dying);
    let mut successor = served.connect();
    successor.greet(3);
    successor.send_option(GO, &info_data("volume", &[]));
    successor.expect_silence();
    let changes_count = served.volume.changes_count.load(SeqCst);
    served.volume.write_gate.open();
    successor.option_reply();
    successor.option_reply();
    assert_eq!(served.volume.changes_count.load(SeqCst), changes_count + 1, "the second never");
    assert_eq!(successor.write(0, 0, &BLOCK), 0);
    assert_eq!(served.volume.bytes()[..4096], BLOCK);
}

#[test]
fn a_panic_ends_one_connection_of_the_crowd() {
    let served = served();
    let (mut client, mut other) = (attach(&served, 1), attach(&served, 2));
    *served.volume.panic_offset_bytes.lock() = Some(8192);
    client.send(&write_request(0, 1, 8192, &BLOCK));
    client.expect_end();
    wait_for_crowd(&served, 1);
    served.exports.wait_until_attached(1);
    assert_eq!(other.write(FUA, 4096, &BLOCK), 0);
}

#[test]
fn who_says_nothing_gets_its_thread_back() {
    let served = served();
    let mut client = attach(&served, 1);
    wait_for_crowd(&served, 0);
    assert_eq!(client.write(FUA, 0, &BLOCK), 0);
}

#[test]
fn closing_ends_the_crowd_after_what_was_received() {
    let limits =
        Limits { crowd_flushes_min: 1, close_answer: Duration::from_secs(30), ..Limits::default() };
    let served = Served::with_limits(limits);
    let mut clients = [attach(&served, 1), attach(&served, 2)];
    served.volume.flush_gate.close();
    for client in &mut clients {
        client.send_request(0, FLUSH, 9, (0, 0));
    }
    served.volume.flush_gate.wait_for_caller();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| served.server.close());
        while served.socket.exists() {
            std::thread::yield_now();
        }
        served.volume.flush_gate.open();
        for client in &mut clients {
            assert_eq!(client.reply(), (0, 9));
            client.expect_end();
        }
        closing.join().unwrap().unwrap();
    });
    assert_eq!((served.server.crowd_count(), served.exports.attached_count()), (0, 0));
}

#[test]
fn connections_of_several_volumes_flush_each_its_own() {
    let served = served();
    let other = served.exports.add("other", 9, MemoryDevice::new(1 << 20));
    let _first = attach(&served, 1);
    let mut second = served.attach("other");
    for _ in 0..FLUSHES {
        assert_eq!(second.ask(0, FLUSH, (0, 0)), 0);
    }
    wait_for_crowd(&served, 2);
    let syncs_count = other.syncs_count.load(SeqCst);
    assert_eq!(second.write(0, 0, &BLOCK), 0);
    assert_eq!(second.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(other.syncs_count.load(SeqCst), syncs_count + 1);
    assert_eq!(other.bytes()[..4096], BLOCK);
}
