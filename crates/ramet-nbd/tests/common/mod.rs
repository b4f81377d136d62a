//! What the tests stand on: devices in memory, a served directory, a client of raw bytes.

pub mod memory;
pub mod raw;

use memory::{MemoryDevice, MemoryExports};
use ramet_engine::Kind;
use ramet_nbd::{Limits, NbdServer};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of the volume that most tests use.
pub const VOLUME_BYTES: usize = 64 << 20;
/// Object id of that volume.
pub const VOLUME: u64 = 7;
/// Object id of the snapshot beside it.
pub const SNAPSHOT: u64 = 8;

/// Every kind of engine error, and its errno on the wire.
pub const ENGINE_ERRORS: [(Kind, u32); 9] = [
    (Kind::Invalid, 22),
    (Kind::Forbidden, 1),
    (Kind::Full, 28),
    (Kind::Corrupt, 5),
    (Kind::Unavailable, 5),
    (Kind::NotFound, 5),
    (Kind::Conflict, 5),
    (Kind::Busy, 5),
    (Kind::Internal, 5),
];

/// A directory that is removed when the test ends.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ramet-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server with the volume `volume` and the snapshot `snapshot`, whose bytes are all 0x5a.
pub struct Served {
    pub server: NbdServer,
    pub exports: Arc<MemoryExports>,
    pub volume: Arc<MemoryDevice>,
    pub snapshot: Arc<MemoryDevice>,
    pub socket: PathBuf,
    pub directory: Directory,
}

impl Served {
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        let directory = Directory::new();
        let exports = Arc::new(MemoryExports::default());
        let volume = exports.add("volume", VOLUME, MemoryDevice::new(VOLUME_BYTES));
        let bytes = vec![0x5a; 1 << 20];
        let snapshot = exports.add("snapshot", SNAPSHOT, MemoryDevice::snapshot_of(bytes));
        let socket = directory.path("nbd.sock");
        let server = NbdServer::start_unix(&socket, exports.clone(), limits).unwrap();
        Served { server, exports, volume, snapshot, socket, directory }
    }

    /// A client that has done nothing yet.
    pub fn connect(&self) -> raw::Client {
        raw::Client::connect(&self.socket)
    }

    /// A client in transmission with `export`.
    pub fn attach(&self, export: &str) -> raw::Client {
        let mut client = self.connect();
        client.greet(3);
        client.go(export);
        client
    }

    /// A client in transmission with `export`, by structured replies, with these contexts.
    pub fn attach_structured(&self, export: &str, contexts: &[&str]) -> raw::Client {
        self.attach_with(raw::STRUCTURED_REPLY, export, contexts)
    }

    /// The same with extended headers.
    pub fn attach_extended(&self, export: &str, contexts: &[&str]) -> raw::Client {
        self.attach_with(raw::EXTENDED_HEADERS, export, contexts)
    }

    fn attach_with(&self, option: u32, export: &str, contexts: &[&str]) -> raw::Client {
        let mut client = self.connect();
        client.greet(3);
        assert_eq!(client.option(option, b""), raw::ACK);
        if !contexts.is_empty() {
            assert_eq!(client.set_contexts(export, contexts).len(), contexts.len());
        }
        client.go(export);
        client
    }
}
