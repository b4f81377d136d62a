//! The server: accepts connections, closes those of some objects, closes all.
//!
//! Owns the listening threads and the registry. Invariant: after `close` no new connection is
//! served, and every session has ended or is reported.

use crate::address::{self, Address};
use crate::crowd::Crowd;
use crate::error::NbdError;
use crate::large::LargeMemory;
use crate::registry::{Membership, Registry};
use crate::session;
use crate::slice;
use crate::tls::{Policy, Tls};
use crate::transport::{Accepted, Listener, Transport};
use parking_lot::Mutex;
use ramet_engine::Exports;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Connections that a server takes unless told otherwise: each costs a thread.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long `close` lets sessions answer what they have received.
const CLOSE_ANSWER: Duration = Duration::from_secs(5);
/// How long `close` waits for sessions that were cut off after that.
const CLOSE_CUT_OFF: Duration = Duration::from_secs(2);
/// What large messages of all connections may hold at once: thirty of the largest.
const LARGE_BYTES_MAX: usize = 1 << 30;
/// How long a connection may hold some of that without a byte sent or received, while others wait.
const LARGE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take: a few answers of the client, of some kilobytes.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// So many flushes under way at once are a crowd: with fewer, threads of their own are as good.
const CROWD_FLUSHES_MIN: usize = 8;
/// Pause after an accept that failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Further connections are closed as soon as they are accepted, unless one that came over a
    /// network and has not chosen an export can make way.
    pub connections_max: usize,
    /// Bytes that large messages of all connections may hold at once, beyond 2 MiB for each buffer.
    pub large_bytes_max: usize,
    /// How long a connection may hold some of these without a byte sent or received, while others
    /// wait; then it is ended.
    pub large_patience: Duration,
    /// How long [`NbdServer::close`] lets sessions answer what they have received.
    pub close_answer: Duration,
    /// How long it then waits for sessions that were cut off.
    pub close_cut_off: Duration,
    /// So many flushes under way at once make connections that write little and flush often share
    /// a thread.
    pub crowd_flushes_min: usize,
    /// How long a TLS handshake may take in all, from the request for it on.
    pub tls_handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: CONNECTIONS_MAX,
            large_bytes_max: LARGE_BYTES_MAX,
            large_patience: LARGE_PATIENCE,
            close_answer: CLOSE_ANSWER,
            close_cut_off: CLOSE_CUT_OFF,
            crowd_flushes_min: CROWD_FLUSHES_MIN,
            tls_handshake: TLS_HANDSHAKE,
        }
    }
}

/// Where and how a server listens.
#[derive(Default)]
pub struct Listening {
    /// At least one.
    pub addresses: Vec<Address>,
    /// TLS of TCP connections: every one needs it, unless `plain_tcp`. Unix sockets do without.
    pub tls: Option<Arc<Tls>>,
    /// TCP connections may do without TLS, those of other machines too.
    pub plain_tcp: bool,
}

/// A running server. Dropping it closes it.
pub struct NbdServer {
    registry: Arc<Registry>,
    crowd: Arc<Crowd>,
    listeners: Vec<Arc<dyn Listener>>,
    /// Taken by the first `close`.
    accepting: Mutex<Option<Vec<JoinHandle<()>>>>,
    limits: Limits,
    process_id: u32,
}

impl NbdServer {
    /// Serve `exports` on a unix socket at `path`, which only the owner can connect to.
    ///
    /// A socket file that nobody answers on is replaced.
    ///
    /// # Errors
    /// `InUse` when somebody answers there; `NotASocket`; `PathTooLong`; `Io`.
    pub fn start_unix(
        path: &Path,
        exports: Arc<dyn Exports>,
        limits: Limits,
    ) -> Result<NbdServer, NbdError> {
        let listening = Listening { addresses: vec![Address::unix(path)], ..Listening::default() };
        Self::start(listening, exports, limits)
    }

    /// Serve `exports` at several addresses, at all of them or not at all.
    ///
    /// # Errors
    /// `NbdError`, of the first address that cannot be had.
    pub fn start(
        listening: Listening,
        exports: Arc<dyn Exports>,
        limits: Limits,
    ) -> Result<NbdServer, NbdError> {
        let Listening { addresses, tls, plain_tcp } = listening;
        let registry = Arc::new(Registry::new(
            limits.connections_max,
            LargeMemory::new(limits.large_bytes_max, limits.large_patience),
        ));
        let crowd = Crowd::new(limits.crowd_flushes_min).map_err(|source| {
            let path = PathBuf::from("eventfd");
            NbdError::Io { doing: "make", path, source }
        })?;
        let server = NbdServer {
            registry,
            crowd: Arc::new(crowd),
            listeners: address::listen(addresses, plain_tcp || tls.is_some())?,
            accepting: Mutex::new(Some(Vec::new())),
            limits,
            process_id: std::process::id(),
        };
        for listener in &server.listeners {
            let tls = tls.clone().filter(|_| listener.network_address().is_some());
            let policy =
                tls.map(|tls| Policy { tls, required: !plain_tcp, patience: limits.tls_handshake });
            let accepting =
                server.spawn_accepting(listener, &exports, policy).map_err(|source| {
                    let path = PathBuf::from(listener.address());
                    NbdError::Io { doing: "start a thread for", path, source }
                })?;
            server.accepting.lock().get_or_insert_default().push(accepting);
        }
        Ok(server)
    }

    fn spawn_accepting(
        &self,
        listener: &Arc<dyn Listener>,
        exports: &Arc<dyn Exports>,
        policy: Option<Policy>,
    ) -> io::Result<JoinHandle<()>> {
        let (listener, registry) = (Arc::clone(listener), Arc::clone(&self.registry));
        let shared =
            Shared { exports: Arc::clone(exports), policy, crowd: Arc::clone(&self.crowd) };
        Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_connections(&*listener, &registry, &shared))
    }

    /// Where it listens, in the order in which that was asked for: `unix:PATH`, `tcp:HOST:PORT`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.address()).collect()
    }

    /// Connections that are open now, negotiating ones included.
    #[must_use]
    pub fn connections_count(&self) -> usize {
        self.registry.connections_count()
    }

    /// Connections that share a thread now, because many flush at once.
    #[must_use]
    pub fn crowd_count(&self) -> usize {
        self.crowd.guests_count()
    }

    /// Refuse `objects` from now on, end their connections, and wait until the last of these has
    /// let go of its device: no request of theirs lands after the return.
    ///
    /// Requests that have not reached the device are dropped unanswered. Each call is undone by
    /// one call of [`NbdServer::allow_connections`]; where two overlap, both must be. The wait has
    /// no limit, for only its end makes the promise true: the caller may hold nothing that a
    /// device call or `Exports::open` waits for.
    ///
    /// Result: how many connections were ended.
    pub fn close_connections(&self, objects: &[u64]) -> usize {
        self.registry.refuse(objects)
    }

    /// Undo one [`NbdServer::close_connections`] of each of `objects`; the others are not changed.
    pub fn allow_connections(&self, objects: &[u64]) {
        self.registry.allow(objects);
    }

    /// Stop accepting, let what was received be answered, and end all sessions.
    ///
    /// The socket file is removed first, if it is still ours. Takes at most the two times of
    /// [`Limits`]. Calling it again is harmless.
    ///
    /// # Durability
    /// None: the owner flushes afterwards.
    ///
    /// # Errors
    /// `CloseTimeout` when the device holds sessions longer than that; they end when it lets go.
    pub fn close(&self) -> Result<(), NbdError> {
        // A forked child shares the sockets but has no threads: closing would end its parent's.
        if std::process::id() != self.process_id {
            return Ok(());
        }
        self.registry.begin_closing();
        if let Some(accepting) = self.accepting.lock().take() {
            for listener in &self.listeners {
                listener.stop();
            }
            for accepting in accepting {
                // It has no way to panic, and nothing could be done about it here.
                let _ = accepting.join();
            }
        }
        self.crowd.end();
        match self.registry.drain(self.limits.close_answer, self.limits.close_cut_off) {
            0 => Ok(()),
            connections_count => Err(NbdError::CloseTimeout { connections_count }),
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        // Who wants to know calls `close`.
        let _ = self.close();
    }
}

/// What the sessions of a listener share.
#[derive(Clone)]
struct Shared {
    exports: Arc<dyn Exports>,
    policy: Option<Policy>,
    crowd: Arc<Crowd>,
}

fn accept_connections(listener: &dyn Listener, registry: &Arc<Registry>, shared: &Shared) {
    let uncertain = listener.network_address().is_some();
    while !registry.is_closing() {
        match listener.accept() {
            Ok(accepted) => {
                let Accepted { transport, hangup } = accepted;
                if let Some(membership) = registry.join(hangup, uncertain) {
                    start_session(transport, membership, shared.clone());
                }
            }
            Err(error) if is_transient(&error) => {}
            // Out of files or memory: others must end first. Closing ends the pause.
            Err(_) => registry.wait_for_closing(ACCEPT_PAUSE),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// Start a thread for a connection; without room for it the connection is dropped, which ends it.
fn start_session(transport: Box<dyn Transport>, membership: Membership, shared: Shared) {
    // Detached: the registry counts sessions, and an unjoined thread would keep its stack.
    let _ = Builder::new().name("nbd-session".to_owned()).spawn(move || {
        slice::begin();
        let Shared { exports, policy, crowd } = shared;
        session::serve(transport, membership, &*exports, policy.as_ref(), &crowd);
    });
}
