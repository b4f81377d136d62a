//! Connections over a stream socket of the system, unix and TCP alike.
//!
//! Invariant: a peer counts as gone only where it will see no answer; see [`Kind`] for TCP.

use crate::transport::{Accepted, Hangup, PARTS_WAIT, Received, Transport};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Connections that wait to be accepted; the kernel may hold it lower.
pub(crate) const BACKLOG: i32 = 4096;
/// A connection that sends nothing for so long gives its buffers back.
const SILENCE: Duration = Duration::from_secs(1);
/// A TCP peer that says nothing for so long is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// And again, so often at most.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;
/// What was sent to a TCP peer and is not confirmed after so long ends the connection: as long as
/// the keepalives take.
const CONFIRM_MS_MAX: u32 = 60_000;

/// What the peer's end of a connection looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Closing one direction and closing both are told apart.
    Unix,
    /// Both look alike from here, and a peer that died closes both: who sends no more counts as
    /// gone when a successor comes, so that nothing of it lands over what the successor writes.
    Tcp,
}

/// Make a connection of an accepted socket.
///
/// # Errors
/// `ConnectionAborted` where it has ended already.
pub(crate) fn accepted(socket: OwnedFd, kind: Kind) -> io::Result<Accepted> {
    prepare(&socket, kind).map_err(|_| io::ErrorKind::ConnectionAborted)?;
    let socket = Arc::new(socket);
    let hangup = Box::new(SocketHangup { socket: Arc::clone(&socket), kind });
    Ok(Accepted { transport: Box::new(SocketTransport::new(socket)), hangup })
}

fn prepare(socket: &OwnedFd, kind: Kind) -> rustix::io::Result<()> {
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(SILENCE))?;
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(PARTS_WAIT))?;
    if kind == Kind::Tcp {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT)?;
        sockopt::set_tcp_user_timeout(socket, CONFIRM_MS_MAX)?;
    }
    Ok(())
}

struct SocketTransport {
    socket: Arc<OwnedFd>,
    silent: bool,
    every_silence: bool,
}

impl SocketTransport {
    fn new(socket: Arc<OwnedFd>) -> Self {
        SocketTransport { socket, silent: false, every_silence: false }
    }

    /// While silent, wait without a limit: an idle server must not wake up.
    fn set_silent(&mut self, silent: bool) -> io::Result<()> {
        let timeout = if silent { None } else { Some(SILENCE) };
        sockopt::set_socket_timeout(&*self.socket, sockopt::Timeout::Recv, timeout)?;
        self.silent = silent;
        Ok(())
    }
}

impl Transport for SocketTransport {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let received = loop {
            match rustix::net::recv(&*self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => break Received::End,
                Ok((length_bytes, _)) => break Received::Bytes(length_bytes),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Received::Silence,
                Err(errno) => return Err(errno.into()),
            }
        };
        match received {
            Received::Silence if !self.every_silence => self.set_silent(true)?,
            Received::Bytes(_) if self.silent => self.set_silent(false)?,
            Received::Silence | Received::Bytes(_) | Received::End => {}
        }
        Ok(received)
    }

    fn tell_every_silence(&mut self, every: bool) {
        self.every_silence = every;
    }

    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::net::send(&*self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(length_bytes) => rest = &rest[length_bytes..],
                // The peer may take its time.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn takes_parts(&self) -> bool {
        true
    }

    fn send_parts(&mut self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let mut nothing = SendAncillaryBuffer::default();
        match rustix::net::sendmsg(&*self.socket, parts, &mut nothing, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    fn socket(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.socket))
    }

    fn receive_now(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let received = rustix::net::recv(&*self.socket, buffer, RecvFlags::DONTWAIT);
        unless_too_early(received.map(|(length_bytes, _)| Some(length_bytes)), None)
    }

    fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        unless_too_early(rustix::net::send(&*self.socket, bytes, flags), 0)
    }
}

fn unless_too_early<T>(result: rustix::io::Result<T>, early: T) -> io::Result<T> {
    match result {
        Err(Errno::AGAIN | Errno::INTR) => Ok(early),
        other => Ok(other?),
    }
}

struct SocketHangup {
    socket: Arc<OwnedFd>,
    kind: Kind,
}

impl Hangup for SocketHangup {
    fn stop_receiving(&self) {
        // Fails only where the peer is gone, which is what was wanted. Over TCP what arrives later
        // is still received for as long as there is no gap.
        let _ = rustix::net::shutdown(&*self.socket, Shutdown::Read);
    }

    fn is_peer_gone(&self) -> bool {
        // Half-closed is not gone: such a peer still reads what it is answered.
        let gone = match self.kind {
            Kind::Unix => PollFlags::HUP | PollFlags::ERR,
            Kind::Tcp => PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP,
        };
        let mut polled = [PollFd::new(&*self.socket, gone)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
    }

    fn hang_up(&self) {
        let _ = rustix::net::shutdown(&*self.socket, Shutdown::Both);
    }
}
