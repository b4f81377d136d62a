//! Unix sockets: the listener that replaces a stale socket file, and its connections.
//!
//! Invariants: the file is never open to others than its owner, not for a moment; a file that is
//! no socket, or a socket that somebody answers on, is left alone; only our own file is removed.

use crate::error::NbdError;
use crate::transport::{Accepted, Hangup, Listener, Received, Transport};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest path of a unix socket: `sun_path` is 108 bytes with its NUL.
const PATH_BYTES_MAX: usize = 107;
/// Connections that wait to be accepted; the kernel may hold it lower.
const BACKLOG: i32 = 4096;
/// A connection that sends nothing for so long gives its buffers back.
const SILENCE: Duration = Duration::from_secs(1);
/// Only the owner may connect.
const SOCKET_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A listening unix socket with a file.
pub(crate) struct UnixListener {
    socket: OwnedFd,
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl UnixListener {
    /// Listen at `path`, replacing a socket file that nobody answers on.
    ///
    /// # Errors
    /// `InUse`, `NotASocket`, `PathTooLong`, `Io`.
    pub(crate) fn bind(path: &Path) -> Result<Self, NbdError> {
        let failed = |doing: &'static str| {
            move |errno: Errno| NbdError::Io { doing, path: path.to_owned(), source: errno.into() }
        };
        let length_bytes = path.as_os_str().len();
        if length_bytes > PATH_BYTES_MAX {
            return Err(NbdError::PathTooLong {
                path: path.to_owned(),
                length_bytes,
                length_bytes_max: PATH_BYTES_MAX,
            });
        }
        refuse_unless_stale(path)?;
        let socket = new_socket(SocketFlags::CLOEXEC).map_err(failed("make a socket for"))?;
        // Set before the file exists: the kernel gives the file this mode, a umask only takes away.
        rustix::fs::fchmod(&socket, SOCKET_MODE).map_err(failed("set the mode of"))?;
        let private = PrivateName::bind(&socket, path)?;
        rustix::fs::chmod(&private.0, SOCKET_MODE).map_err(failed("set the mode of"))?;
        let stat = lstat(&private.0).map_err(failed("look at"))?;
        // Listen before the name is public: who sees the file can connect.
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
        rustix::fs::rename(&private.0, path).map_err(failed("put in place"))?;
        let (device, inode) = (stat.st_dev, stat.st_ino);
        Ok(UnixListener { socket, path: path.to_owned(), device, inode })
    }
}

impl Listener for UnixListener {
    fn accept(&self) -> io::Result<Accepted> {
        let socket = Arc::new(rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)?);
        sockopt::set_socket_timeout(&*socket, sockopt::Timeout::Recv, Some(SILENCE))?;
        let hangup = Box::new(UnixHangup(Arc::clone(&socket)));
        Ok(Accepted { transport: Box::new(UnixTransport { socket, silent: false }), hangup })
    }

    fn stop(&self) {
        // The file goes first: a client that comes now finds no server rather than a dead one.
        let ours = lstat(&self.path)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.device, self.inode));
        if ours {
            // A file that somebody removed in between is what was wanted.
            let _ = rustix::fs::unlink(&self.path);
        }
        // Wakes a blocked accept, and fails only where the socket is not listening any more.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

/// The name that a socket is bound under until it is renamed; removed when that did not happen.
struct PrivateName(PathBuf);

impl PrivateName {
    fn bind(socket: &OwnedFd, path: &Path) -> Result<Self, NbdError> {
        /// Keeps servers of one process apart.
        static BOUND_COUNT: AtomicU64 = AtomicU64::new(0);
        let failed = |errno: Errno| NbdError::Io {
            doing: "bind",
            path: path.to_owned(),
            source: errno.into(),
        };
        let number = BOUND_COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".nbd-{}-{number}", std::process::id());
        let private = path.with_file_name(&name);
        // Left by an earlier process with our id that died between bind and rename.
        match rustix::fs::unlink(&private) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        if let Ok(address) = SocketAddrUnix::new(&private) {
            rustix::net::bind(socket, &address).map_err(failed)?;
        } else {
            // The final name fits and this one does not: take a short way to the directory.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = path.parent().unwrap_or(Path::new("."));
            let directory = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed)?;
            let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            let address = SocketAddrUnix::new(short.as_str()).map_err(failed)?;
            rustix::net::bind(socket, &address).map_err(failed)?;
        }
        Ok(PrivateName(private))
    }
}

impl Drop for PrivateName {
    fn drop(&mut self) {
        // After the rename there is nothing under this name.
        let _ = rustix::fs::unlink(&self.0);
    }
}

fn new_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn lstat(path: &Path) -> rustix::io::Result<Stat> {
    rustix::fs::lstat(path)
}

/// Succeed when nothing is at `path`, or a socket that nobody answers on.
fn refuse_unless_stale(path: &Path) -> Result<(), NbdError> {
    let failed = |errno: Errno| NbdError::Io {
        doing: "look at",
        path: path.to_owned(),
        source: errno.into(),
    };
    let stat = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(NbdError::NotASocket { path: path.to_owned() });
    }
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    // Nonblocking: a server with a full backlog would hold us, and is a server all the same.
    let probe = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(failed)?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // EAGAIN is a full backlog, EPROTOTYPE a socket of another type: both are somebody's.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            Err(NbdError::InUse { path: path.to_owned() })
        }
        Err(errno) => Err(failed(errno)),
    }
}

struct UnixTransport {
    socket: Arc<OwnedFd>,
    silent: bool,
}

impl UnixTransport {
    /// While silent, wait without a limit: an idle server must not wake up.
    fn set_silent(&mut self, silent: bool) -> io::Result<()> {
        let timeout = if silent { None } else { Some(SILENCE) };
        sockopt::set_socket_timeout(&*self.socket, sockopt::Timeout::Recv, timeout)?;
        self.silent = silent;
        Ok(())
    }
}

impl Transport for UnixTransport {
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
            Received::Silence => self.set_silent(true)?,
            Received::Bytes(_) if self.silent => self.set_silent(false)?,
            Received::Bytes(_) | Received::End => {}
        }
        Ok(received)
    }

    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::net::send(&*self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(length_bytes) => rest = &rest[length_bytes..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

struct UnixHangup(Arc<OwnedFd>);

impl Hangup for UnixHangup {
    fn stop_receiving(&self) {
        // Fails only where the peer is gone, which is what was wanted.
        let _ = rustix::net::shutdown(&*self.0, Shutdown::Read);
    }

    fn is_peer_gone(&self) -> bool {
        // Half-closed is not gone: such a peer still reads what it is answered.
        let mut polled = [PollFd::new(&*self.0, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::HUP | PollFlags::ERR;
        rustix::event::poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
    }

    fn hang_up(&self) {
        let _ = rustix::net::shutdown(&*self.0, Shutdown::Both);
    }
}
