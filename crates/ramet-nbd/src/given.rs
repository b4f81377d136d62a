//! A listening socket that somebody else made and passed on, such as systemd.
//!
//! Invariant: it is never shut down and its file is left alone, for it is not ours: who connects
//! while nobody accepts waits for the next server that gets it.

use crate::error::NbdError;
use crate::socket::{Kind, accepted};
use crate::tcp;
use crate::transport::{Accepted, Listener};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// A socket that listened before we had it.
pub(crate) struct GivenListener {
    socket: OwnedFd,
    stopped: OwnedFd,
    address: SocketAddrAny,
}

impl GivenListener {
    /// Take a socket over.
    ///
    /// # Errors
    /// `Unusable`.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, NbdError> {
        let number = socket.as_raw_fd();
        let unusable = |what: &'static str| NbdError::Unusable { number, what };
        let failed = |_: Errno| unusable("is no socket");
        let listens = sockopt::socket_acceptconn(&socket).map_err(failed)?;
        let kind = sockopt::socket_type(&socket).map_err(failed)?;
        let family = sockopt::socket_domain(&socket).map_err(failed)?;
        if kind != SocketType::STREAM {
            return Err(unusable("is no stream socket"));
        }
        if ![AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6].contains(&family) {
            return Err(unusable("is neither a unix nor a TCP socket"));
        }
        if !listens {
            return Err(unusable("does not listen"));
        }
        let address = rustix::net::getsockname(&socket).map_err(failed)?;
        // Another process may take a connection first: then accepting must not wait for the next.
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(failed)?;
        let stopped = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|_| unusable("cannot be waited for"))?;
        Ok(GivenListener { socket, stopped, address })
    }
}

impl Listener for GivenListener {
    fn accept(&self) -> io::Result<Accepted> {
        let mut polled =
            [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
        rustix::event::poll(&mut polled, None)?;
        if !polled[1].revents().is_empty() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let socket = match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Err(Errno::AGAIN) => return Err(io::ErrorKind::Interrupted.into()),
            taken => taken?,
        };
        let kind = if self.network_address().is_some() { Kind::Tcp } else { Kind::Unix };
        accepted(socket, kind)
    }

    fn stop(&self) {
        // Cannot fail: the counter has room for one.
        let _ = rustix::io::write(&self.stopped, &1_u64.to_ne_bytes());
    }

    fn address(&self) -> String {
        if let Some(address) = self.network_address() {
            return tcp::text_of(&address);
        }
        let unix = SocketAddrUnix::try_from(self.address.clone()).ok();
        let path = unix.as_ref().and_then(|unix| unix.path_bytes());
        format!("unix:{}", String::from_utf8_lossy(path.unwrap_or_default()))
    }

    fn network_address(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(self.address.clone()).ok()
    }
}
