//! The TCP listener.

use crate::error::NbdError;
use crate::socket::{BACKLOG, Kind, accepted};
use crate::transport::{Accepted, Listener};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// A listening TCP socket.
pub(crate) struct TcpListener {
    socket: OwnedFd,
    address: SocketAddr,
}

impl TcpListener {
    /// Listen at `address`; port 0 takes any that is free.
    ///
    /// # Errors
    /// `AddressInUse`, `Address`.
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, NbdError> {
        let failed = |doing: &'static str| {
            move |errno: Errno| match errno {
                Errno::ADDRINUSE => NbdError::AddressInUse { address: text_of(&address) },
                _ => NbdError::Address { doing, address: text_of(&address), source: errno.into() },
            }
        };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(failed("make a socket for"))?;
        // Else a server that is started anew would wait for its old connections to be forgotten.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed("prepare"))?;
        rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
        let bound = rustix::net::getsockname(&socket).map_err(failed("look at"))?;
        Ok(TcpListener { socket, address: SocketAddr::try_from(bound).unwrap_or(address) })
    }
}

impl Listener for TcpListener {
    fn accept(&self) -> io::Result<Accepted> {
        accepted(rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)?, Kind::Tcp)
    }

    fn stop(&self) {
        // Wakes a blocked accept, and fails only where the socket is not listening any more.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    fn address(&self) -> String {
        text_of(&self.address)
    }

    fn network_address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }
}

/// As it is written on a command line.
pub(crate) fn text_of(address: &SocketAddr) -> String {
    format!("tcp:{address}")
}
