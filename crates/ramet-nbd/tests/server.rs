//! The socket file, the connection limit, and what silent clients cost.

use crate::common::memory::{MemoryDevice, MemoryExports};
use crate::common::raw::{Client, FLUSH, READ, WRITE, request};
use crate::common::{Directory, Served, VOLUME};
use ramet_engine::Kind;
use ramet_nbd::{Limits, NbdError, NbdServer};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn start(path: &Path) -> Result<NbdServer, NbdError> {
    let exports = Arc::new(MemoryExports::default());
    exports.add("volume", VOLUME, MemoryDevice::new(4096));
    NbdServer::start_unix(path, exports, Limits::default())
}

#[test]
fn the_socket_is_for_its_owner_only_and_nothing_else_is_left_in_the_directory() {
    let served = Served::new();
    let mode = std::fs::metadata(&served.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let names: Vec<_> = std::fs::read_dir(&served.directory.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["nbd.sock"]);
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = start(&path).unwrap();
    let mut client = Client::connect(&path);
    client.greet(3);
    client.go("volume");
    assert_eq!(server.connections_count(), 1);
}

#[test]
fn a_socket_that_somebody_answers_on_is_left_alone() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    let first = start(&path).unwrap();
    let second = start(&path).err().unwrap();
    assert!(matches!(second, NbdError::InUse { .. }), "{second}");
    assert_eq!((second.kind(), second.code()), (Kind::Busy, "nbd_socket_in_use"));
    let mut client = Client::connect(&path);
    client.greet(3);
    client.go("volume");
    drop(first);
    start(&path).unwrap();
}

#[test]
fn a_socket_of_another_type_is_left_alone() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(start(&path), Err(NbdError::InUse { .. })));
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    std::fs::write(&path, b"precious").unwrap();
    let refused = start(&path).err().unwrap();
    assert!(matches!(refused, NbdError::NotASocket { .. }), "{refused}");
    let link = directory.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(start(&link), Err(NbdError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_path_that_no_client_can_use_is_refused_and_the_longest_works() {
    let directory = Directory::new();
    let room = 107 - directory.0.as_os_str().len() - 1;
    let server = start(&directory.path(&"s".repeat(room))).unwrap();
    drop(server);
    let shorter = directory.path("a");
    std::fs::create_dir(&shorter).unwrap();
    let deep = shorter.join("d".repeat(room - 5));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("s");
    let server = start(&path).unwrap();
    Client::connect(&path).greet(3);
    drop(server);
    let refused = start(&directory.path(&"s".repeat(room + 1))).err().unwrap();
    assert!(matches!(refused, NbdError::PathTooLong { length_bytes: 108, .. }), "{refused}");
}

#[test]
fn a_directory_that_is_missing_is_an_error_with_the_path() {
    let directory = Directory::new();
    let refused = start(&directory.path("missing").join("nbd.sock")).err().unwrap();
    assert!(matches!(refused, NbdError::Io { .. }), "{refused}");
    assert!(refused.to_string().contains("missing/nbd.sock"), "{refused}");
}

#[test]
fn a_socket_file_that_was_replaced_by_another_server_is_not_removed() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    let first = start(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = start(&path).unwrap();
    drop(first);
    let mut client = Client::connect(&path);
    client.greet(3);
    client.go("volume");
}

#[test]
fn connections_beyond_the_limit_are_closed_and_room_is_made_by_leaving() {
    let served = Served::with_limits(Limits { connections_max: 2, ..Limits::default() });
    let first = served.attach("volume");
    let mut second = served.attach("volume");
    let mut third = served.connect();
    third.expect_end();
    assert_eq!(served.server.connections_count(), 2);
    drop(first);
    // The second's answers go on while the first one's place becomes free.
    while served.server.connections_count() > 1 {
        assert_eq!(second.read(0, 1), [0]);
    }
    served.attach("volume");
}

fn scarce(patience: Duration) -> Limits {
    Limits { large_bytes_max: 40 << 20, large_patience: patience, ..Limits::default() }
}

/// A client in the middle of the longest write: it holds memory for all of it.
fn hold_memory(served: &Served) -> Client {
    let mut client = served.attach("volume");
    client.send_request(0, WRITE, 1, (0, 32 << 20));
    client.send(&vec![1; 20 << 20]);
    client
}

/// A slow client must not keep the memory that another one needs, nor hold up small requests.
#[test]
fn who_holds_much_memory_and_does_nothing_is_ended_when_others_wait_for_it() {
    let served = Served::with_limits(scarce(Duration::from_millis(500)));
    let mut idle = hold_memory(&served);
    let mut unhurried = served.attach("volume");
    assert_eq!(unhurried.write(0, 0, &vec![2; 1 << 20]), 0, "needs none of it");
    let mut other = served.attach("volume");
    assert_eq!(other.write(0, 0, &vec![3; 32 << 20]), 0);
    idle.expect_end();
    assert_eq!(unhurried.read(0, 1), [3]);
    assert_eq!(other.read(0, 32 << 20), vec![3; 32 << 20]);
}

/// A byte now and then is no progress: 34 such clients would hold all memory for hours.
#[test]
fn who_holds_much_memory_and_sends_a_byte_now_and_then_is_ended_too() {
    let served = Served::with_limits(scarce(Duration::from_millis(500)));
    let mut trickling = hold_memory(&served);
    let is_served = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_served.load(Ordering::SeqCst) && trickling.stream.write_all(&[1]).is_ok() {
                std::thread::yield_now();
            }
        });
        let mut other = served.attach("volume");
        assert_eq!(other.write(0, 0, &vec![3; 32 << 20]), 0);
        is_served.store(true, Ordering::SeqCst);
    });
    trickling.expect_end();
}

#[test]
fn large_messages_take_turns_and_nobody_who_goes_on_is_ended() {
    let served = Served::with_limits(scarce(Duration::from_secs(20)));
    std::thread::scope(|scope| {
        for number in 0..6_u8 {
            let mut client = served.attach("volume");
            scope.spawn(move || {
                for _ in 0..3 {
                    assert_eq!(client.write(0, 0, &vec![number; 32 << 20]), 0);
                    assert_eq!(client.read(0, 32 << 20).len(), 32 << 20);
                }
            });
        }
    });
}

#[test]
fn who_waits_for_the_device_is_not_taken_for_idle() {
    let served = Served::with_limits(scarce(Duration::from_millis(50)));
    let mut stalled = served.attach("volume");
    let mut other = served.attach("volume");
    served.volume.write_gate.close();
    stalled.send_request(0, WRITE, 1, (0, 32 << 20));
    stalled.send(&vec![1; 32 << 20]);
    served.volume.write_gate.wait_for_caller();
    other.send_request(0, READ, 2, (0, 32 << 20));
    other.expect_silence();
    served.volume.write_gate.open();
    assert_eq!(stalled.reply(), (0, 1));
    // It gives the memory back with the next look at its socket.
    assert_eq!(stalled.read(0, 1), [1]);
    assert_eq!(other.reply(), (0, 2));
    assert_eq!(other.receive(32 << 20), vec![1; 32 << 20]);
}

#[test]
fn closing_ends_who_waits_for_memory() {
    let limits = Limits {
        close_answer: Duration::from_millis(10),
        close_cut_off: Duration::from_secs(20),
        ..scarce(Duration::from_secs(1))
    };
    let served = Served::with_limits(limits);
    let _holding = hold_memory(&served);
    let mut waiting = served.attach("volume");
    waiting.send_request(0, READ, 1, (0, 32 << 20));
    served.server.close().unwrap();
}

/// Announcing a payload is free for the client, so it must be for the server.
#[test]
fn clients_that_announce_much_and_send_nothing_do_not_hold_others_up() {
    let served = Served::new();
    let silent: Vec<_> = (0..100)
        .map(|_| {
            let mut client = served.attach("volume");
            client.send_request(0, WRITE, 1, (0, 32 << 20));
            client
        })
        .collect();
    let mut client = served.attach("volume");
    assert_eq!(client.write(0, 0, b"x"), 0);
    assert_eq!(served.server.connections_count(), 101);
    drop(silent);
}

/// A connection is waited for by a thread of its own, which then holds nothing that others need.
#[test]
fn who_stops_in_a_payload_or_takes_no_replies_holds_up_no_other_volume() {
    const READS_COUNT: u64 = 50;
    let served = Served::new();
    served.exports.add("other", 9, MemoryDevice::new(1 << 20));
    let mut half = served.attach("volume");
    half.send_request(0, WRITE, 1, (0, 1 << 20));
    half.send(&vec![1; 1 << 19]);
    let mut deaf = served.attach("volume");
    let reads: Vec<u8> =
        (0..READS_COUNT).flat_map(|cookie| request(0, READ, cookie, (0, 1 << 20))).collect();
    deaf.send(&reads);
    // The first reply is more than its socket holds.
    while served.volume.reads.lock().is_empty() {
        std::thread::yield_now();
    }
    for mut other in [served.attach("other"), served.attach("other")] {
        assert_eq!(other.write(0, 0, &vec![2; 1 << 20]), 0);
        assert_eq!(other.ask(0, FLUSH, (0, 0)), 0);
        assert_eq!(other.read(0, 1 << 20), vec![2; 1 << 20]);
    }
    assert!(served.volume.reads.lock().len() < 10, "its replies wait for it to take them");
    half.send(&vec![1; 1 << 19]);
    assert_eq!(half.reply(), (0, 1));
    for cookie in 0..READS_COUNT {
        assert_eq!(deaf.reply(), (0, cookie));
        deaf.receive(1 << 20);
    }
}
