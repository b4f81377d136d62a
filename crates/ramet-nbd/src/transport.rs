//! What the server needs of a listening socket and of a connection, whatever kind they are.
//!
//! Owns the traits only; nothing above this file knows what kind it is.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How long what is lent may wait for a peer.
pub(crate) const PARTS_WAIT: Duration = Duration::from_millis(100);

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The peer has been silent for a while: give up memory, then receive again.
    Silence,
    /// The peer will send nothing more.
    End,
}

/// The byte stream of one connection; belongs to its session alone.
pub(crate) trait Transport: Send {
    /// Receive into `buffer`, which is not empty. Blocks.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Whether a long silence is told again and again, rather than once at its beginning.
    fn tell_every_silence(&mut self, _every: bool) {}

    /// Send all of `bytes`. Blocks.
    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Whether `send_parts` works.
    fn takes_parts(&self) -> bool {
        false
    }

    /// Send some of `parts`, at least a byte; nothing where the peer took none for [`PARTS_WAIT`].
    fn send_parts(&mut self, _parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The socket, where the two calls below are of use: to wait for several of them at once.
    fn socket(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// Receive what is there; zero bytes are the end, nothing is for who comes too early.
    fn receive_now(&mut self, _buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Send what there is room for. Result: how much that was.
    fn send_now(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Stands where a transport was.
pub(crate) struct NoTransport;

impl Transport for NoTransport {
    fn receive(&mut self, _buffer: &mut [u8]) -> io::Result<Received> {
        Err(io::ErrorKind::NotConnected.into())
    }

    fn send_all(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// Ends a connection from another thread; never blocks.
pub(crate) trait Hangup: Send + Sync {
    /// The session gets what was received already, then the end; it can still answer.
    fn stop_receiving(&self);

    /// The peer has closed the connection: it will see no answer, and nobody waits for one.
    fn is_peer_gone(&self) -> bool;

    /// Every receive and send of the session fails from now on, blocked ones included.
    fn hang_up(&self);
}

/// A new connection.
pub(crate) struct Accepted {
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) hangup: Box<dyn Hangup>,
}

/// A listening socket.
pub(crate) trait Listener: Send + Sync {
    /// Wait for a connection.
    fn accept(&self) -> io::Result<Accepted>;

    /// Make this and every later `accept` fail, and give up the address.
    fn stop(&self);

    /// Where it listens, as on a command line: `unix:PATH`, `tcp:HOST:PORT`.
    fn address(&self) -> String;

    /// Where it listens, if that is a network.
    fn network_address(&self) -> Option<SocketAddr>;
}
