//! Ending connections: of some objects by force, of all when the server closes.

use crate::common::memory::MemoryDevice;
use crate::common::raw::{
    ERR_SHUTDOWN, ERR_UNKNOWN, FLUSH, READ, WRITE, error_of, info_data, request,
};
use crate::common::{SNAPSHOT, Served, VOLUME};
use ramet_engine::Kind;
use ramet_nbd::{Limits, NbdError};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

const EXPORT_NAME: u32 = 1;
const GO: u32 = 7;
const ESHUTDOWN: u32 = 108;

/// Spin until nobody listens: `close` has begun.
fn wait_until_nobody_listens(served: &Served) {
    while UnixStream::connect(&served.socket).is_ok() {
        std::thread::yield_now();
    }
}

/// The story: a write stalled in the device, its connection was closed by force, the volume was
/// reverted and written anew, and then the stalled write landed on top.
#[test]
fn close_connections_returns_after_a_stalled_write_has_landed() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut bystander = served.attach("snapshot");
    served.volume.write_gate.close();
    let mut bytes = request(0, WRITE, 1, (0, 4));
    bytes.extend(b"old!");
    bytes.extend(request(0, WRITE, 2, (0, 4)));
    bytes.extend(b"late");
    client.send(&bytes);
    served.volume.write_gate.wait_for_caller();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| {
            let ended_count = served.server.close_connections(&[VOLUME]);
            (ended_count, served.exports.attached_count(), served.volume.bytes()[..4].to_vec())
        });
        // The end of the stream tells that closing has begun, while the write is still held up.
        client.expect_end();
        assert_eq!(served.volume.changes_count.load(SeqCst), 0);
        served.volume.write_gate.open();
        let (ended_count, attached_count, bytes) = closing.join().unwrap();
        assert_eq!((ended_count, attached_count), (1, 1), "only the bystander is attached");
        assert_eq!(bytes, b"old!", "the stalled write landed before, the one behind it never");
    });
    assert_eq!(bystander.read(0, 1), [0x5a]);
    assert_eq!(served.volume.changes_count.load(SeqCst), 1);
}

/// The story: a client died while its write was stalled in the server, and started anew; the new
/// connection wrote, was answered, and then the stalled write of the old one landed on top.
#[test]
fn a_stalled_write_of_a_dead_connection_lands_before_its_successor_is_served() {
    let served = Served::new();
    let mut bystander = served.attach("volume");
    let mut dying = served.attach("volume");
    served.volume.write_gate.close();
    let mut bytes = request(0, WRITE, 1, (0, 4));
    bytes.extend(b"old!");
    bytes.extend(request(0, WRITE, 2, (0, 4)));
    bytes.extend(b"late");
    dying.send(&bytes);
    served.volume.write_gate.wait_for_caller();
    drop(dying);
    for option in [GO, EXPORT_NAME] {
        let mut successor = served.connect();
        successor.greet(3);
        let name = info_data("volume", &[]);
        successor.send_option(option, if option == GO { &name } else { b"volume" });
        successor.expect_silence();
        if option == GO {
            // Dead as well; who comes next waits for both.
            continue;
        }
        served.volume.write_gate.open();
        successor.receive(10);
        assert_eq!(successor.write(0, 0, b"new!"), 0);
        assert_eq!(bystander.read(0, 4), b"new!", "whose client lives is not concerned");
        assert_eq!(served.volume.changes_count.load(SeqCst), 2, "the late one was canceled");
        assert_eq!(served.exports.attached_count(), 2);
    }
}

/// It may have sent all that it wanted to, and wait for the answers.
#[test]
fn a_client_that_is_half_closed_is_not_gone_for_its_successor() {
    let served = Served::new();
    let mut half = served.attach("volume");
    served.volume.write_gate.close();
    let mut bytes = request(0, WRITE, 1, (0, 4));
    bytes.extend(b"half");
    bytes.extend(request(0, READ, 2, (0, 4)));
    half.send(&bytes);
    served.volume.write_gate.wait_for_caller();
    half.stream.shutdown(Shutdown::Write).unwrap();
    let mut successor = served.attach("volume");
    assert_eq!(successor.read(0, 4), [0; 4], "served while the other's write is held up");
    served.volume.write_gate.open();
    assert_eq!(half.reply(), (0, 1));
    assert_eq!(half.reply(), (0, 2));
    assert_eq!(half.receive(4), b"half");
    half.expect_end();
    assert_eq!(successor.read(0, 4), b"half");
}

#[test]
fn a_snapshot_or_another_volume_does_not_wait_for_a_dead_connection() {
    let served = Served::new();
    let mut dying = served.attach("volume");
    served.volume.write_gate.close();
    dying.send_request(0, WRITE, 1, (0, 1));
    dying.send(b"x");
    served.volume.write_gate.wait_for_caller();
    drop(dying);
    assert_eq!(served.attach("snapshot").read(0, 1), [0x5a]);
    served.volume.write_gate.open();
}

#[test]
fn closing_does_not_wait_for_a_successor_that_waits() {
    let limits = Limits {
        close_answer: Duration::from_millis(10),
        close_cut_off: Duration::from_millis(200),
        ..Limits::default()
    };
    let served = Served::with_limits(limits);
    let mut dying = served.attach("volume");
    served.volume.write_gate.close();
    dying.send_request(0, WRITE, 1, (0, 1));
    dying.send(b"x");
    served.volume.write_gate.wait_for_caller();
    drop(dying);
    let mut successor = served.connect();
    successor.greet(3);
    successor.send_option(GO, &info_data("volume", &[]));
    served.exports.wait_until_attached(2);
    let closed = served.server.close();
    let only_the_stalled = NbdError::CloseTimeout { connections_count: 1 };
    assert_eq!(closed.unwrap_err().to_string(), only_the_stalled.to_string());
    served.volume.write_gate.open();
}

#[test]
fn a_refused_object_cannot_be_attached_until_it_is_allowed() {
    let served = Served::new();
    assert_eq!(served.server.close_connections(&[VOLUME]), 0);
    let mut client = served.connect();
    client.greet(3);
    assert_eq!(client.option(GO, &info_data("volume", &[])), ERR_UNKNOWN);
    assert_eq!(served.exports.attached_count(), 0);
    let mut old_client = served.connect();
    old_client.greet(3);
    old_client.send_option(1, b"volume");
    old_client.expect_end();
    served.server.allow_connections(&[VOLUME]);
    client.go("volume");
    assert_eq!(client.write(0, 0, b"x"), 0);
}

#[test]
fn two_closings_of_one_object_need_two_allowings() {
    let served = Served::new();
    served.server.close_connections(&[VOLUME, VOLUME]);
    served.server.close_connections(&[VOLUME]);
    served.server.allow_connections(&[VOLUME]);
    let mut client = served.connect();
    client.greet(3);
    assert_eq!(client.option(GO, &info_data("volume", &[])), ERR_UNKNOWN);
    served.server.allow_connections(&[VOLUME, SNAPSHOT]);
    client.go("volume");
}

/// A connection that has its device but is not in transmission must not slip through.
#[test]
fn a_connection_in_the_middle_of_opening_does_not_slip_through() {
    let served = Served::new();
    served.exports.add("canary", 9, MemoryDevice::new(4096));
    let mut canary = served.attach("canary");
    served.exports.open_gate.close();
    let mut client = served.connect();
    client.greet(3);
    client.send_option(GO, &info_data("volume", &[]));
    served.exports.open_gate.wait_for_caller();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| {
            let ended_count = served.server.close_connections(&[VOLUME, 9]);
            (ended_count, served.exports.attached_count())
        });
        // Both objects are refused in one step: the canary's end tells that it was taken.
        canary.expect_end();
        served.exports.wait_until_attached(1);
        // Only the device that is being opened is left, and closing must wait for it. Yielding
        // gives a closing that does not wait the time to return.
        for _ in 0..1000 {
            std::thread::yield_now();
            assert!(!closing.is_finished(), "closing returned while a device was being opened");
        }
        served.exports.open_gate.open();
        assert_eq!(closing.join().unwrap(), (1, 0));
    });
    assert_eq!(client.option_reply().reply, ERR_UNKNOWN);
}

#[test]
fn close_answers_what_was_received_and_then_ends() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut negotiating = served.connect();
    negotiating.greet(3);
    served.volume.write_gate.close();
    let mut bytes = request(0, WRITE, 1, (0, 4));
    bytes.extend(b"data");
    bytes.extend(request(0, FLUSH, 2, (0, 0)));
    bytes.extend(request(0, READ, 3, (0, 4)));
    bytes.extend(&request(0, WRITE, 4, (0, 4))[..20]);
    client.send(&bytes);
    served.volume.write_gate.wait_for_caller();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| served.server.close());
        wait_until_nobody_listens(&served);
        served.volume.write_gate.open();
        assert_eq!(client.reply(), (0, 1));
        assert_eq!(client.reply(), (0, 2));
        assert_eq!(client.reply(), (0, 3));
        assert_eq!(client.receive(4), b"data");
        client.expect_end();
        negotiating.expect_end();
        closing.join().unwrap().unwrap();
    });
    assert_eq!((served.server.connections_count(), served.exports.attached_count()), (0, 0));
    assert!(!served.socket.exists());
}

#[test]
fn a_device_that_becomes_unavailable_while_closing_is_eshutdown() {
    for structured in [false, true] {
        let served = Served::new();
        let mut client = if structured {
            served.attach_structured("volume", &[])
        } else {
            served.attach("volume")
        };
        served.volume.write_gate.close();
        client.send_request(0, WRITE, 1, (0, 1));
        client.send(b"x");
        served.volume.write_gate.wait_for_caller();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| served.server.close());
            wait_until_nobody_listens(&served);
            served.volume.fail_with(Some(Kind::Unavailable));
            served.volume.write_gate.open();
            let error = if structured { error_of(&client.chunk()) } else { client.reply().0 };
            assert_eq!(error, ESHUTDOWN);
            closing.join().unwrap().unwrap();
        });
    }
}

#[test]
fn an_option_that_is_in_progress_while_closing_is_told_of_the_shutdown() {
    let served = Served::new();
    served.exports.open_gate.close();
    let mut client = served.connect();
    client.greet(3);
    client.send_option(GO, &info_data("volume", &[]));
    client.send_option(3, b"");
    served.exports.open_gate.wait_for_caller();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| served.server.close());
        wait_until_nobody_listens(&served);
        served.exports.open_gate.open();
        assert_eq!(client.option_reply().reply, ERR_SHUTDOWN);
        assert_eq!(client.option_reply().reply, ERR_SHUTDOWN);
        client.expect_end();
        closing.join().unwrap().unwrap();
    });
    assert_eq!(served.exports.attached_count(), 0);
}

#[test]
fn close_is_bounded_when_the_device_never_answers() {
    let short = Duration::from_millis(1);
    let limits = Limits { close_answer: short, close_cut_off: short, ..Limits::default() };
    let served = Served::with_limits(limits);
    let mut client = served.attach("volume");
    served.volume.write_gate.close();
    client.send_request(0, WRITE, 1, (0, 1));
    client.send(b"x");
    served.volume.write_gate.wait_for_caller();
    let closed = served.server.close();
    assert!(matches!(closed, Err(NbdError::CloseTimeout { connections_count: 1 })), "{closed:?}");
    served.volume.write_gate.open();
    served.exports.wait_until_attached(0);
}

#[test]
fn close_is_bounded_when_a_client_never_reads() {
    let limits = Limits { close_answer: Duration::from_millis(1), ..Limits::default() };
    let served = Served::with_limits(limits);
    let mut client = served.attach("volume");
    let mut bytes = Vec::new();
    for cookie in 0..20 {
        bytes.extend(request(0, READ, cookie, (0, 32 << 20)));
    }
    client.send(&bytes);
    served.server.close().unwrap();
    assert_eq!(served.exports.attached_count(), 0);
}

#[test]
fn close_twice_and_drop_are_harmless() {
    let served = Served::new();
    let mut client = served.attach("volume");
    served.server.close().unwrap();
    served.server.close().unwrap();
    client.expect_end();
    drop(served.server);
    assert!(!served.socket.exists());
}
