//! Where a server listens: what is asked for, and the listeners that it becomes.
//!
//! Invariant: nothing that other machines can reach is served unencrypted unless that was asked
//! for.

use crate::error::NbdError;
use crate::given::GivenListener;
use crate::tcp::TcpListener;
use crate::transport::Listener;
use crate::unix::UnixListener;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The mode of a socket file unless told otherwise: only the owner may connect.
pub const SOCKET_MODE: u32 = 0o600;

/// A unix socket with a file. One that nobody answers on is replaced.
#[derive(Clone, Debug)]
pub struct UnixAddress {
    /// Where; at most 107 bytes.
    pub path: PathBuf,
    /// Who may connect: permission bits of the file.
    pub mode: u32,
    /// The file's group; nothing: the process's.
    pub group: Option<u32>,
}

/// One place to listen at.
#[derive(Debug)]
pub enum Address {
    /// A unix socket.
    Unix(UnixAddress),
    /// A TCP port; 0 takes any that is free.
    Tcp(SocketAddr),
    /// A stream socket that listens already, unix or TCP. It is not shut down at the end.
    Given(OwnedFd),
}

impl Address {
    /// A unix socket at `path` for its owner alone.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Address::Unix(UnixAddress { path: path.into(), mode: SOCKET_MODE, group: None })
    }

    fn listen(self) -> Result<Arc<dyn Listener>, NbdError> {
        Ok(match self {
            Address::Unix(address) => Arc::new(UnixListener::bind(&address)?),
            Address::Tcp(address) => Arc::new(TcpListener::bind(address)?),
            Address::Given(socket) => Arc::new(GivenListener::new(socket)?),
        })
    }
}

/// Listen at all of `addresses`, or at none.
///
/// `plain_tcp`: other machines may connect without TLS.
///
/// # Errors
/// `NbdError`, of the first that fails.
pub(crate) fn listen(
    addresses: Vec<Address>,
    plain_tcp: bool,
) -> Result<Vec<Arc<dyn Listener>>, NbdError> {
    let mut listeners: Vec<Arc<dyn Listener>> = Vec::new();
    for address in addresses {
        // Before it can be reached; of a given one only the socket itself knows where it is.
        let asked = if let Address::Tcp(address) = &address { Some(*address) } else { None };
        let listening = refuse_insecure(asked, plain_tcp).and_then(|()| {
            let listener = address.listen()?;
            refuse_insecure(listener.network_address(), plain_tcp).map(|()| listener)
        });
        match listening {
            Ok(listener) => listeners.push(listener),
            Err(error) => {
                listeners.iter().for_each(|listener| listener.stop());
                return Err(error);
            }
        }
    }
    Ok(listeners)
}

fn refuse_insecure(address: Option<SocketAddr>, plain_tcp: bool) -> Result<(), NbdError> {
    match address {
        Some(address) if !plain_tcp && !address.ip().to_canonical().is_loopback() => {
            Err(NbdError::Insecure { address: crate::tcp::text_of(&address) })
        }
        Some(_) | None => Ok(()),
    }
}
