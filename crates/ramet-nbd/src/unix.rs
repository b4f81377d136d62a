//! The unix listener, which replaces a stale socket file.
//!
//! Invariants: the file is never open to others than it will be, not for a moment; a file that is
//! no socket, or a socket that somebody answers on, is left alone; only our own file is removed.

use crate::address::UnixAddress;
use crate::error::NbdError;
use crate::socket::{BACKLOG, Kind, accepted};
use crate::transport::{Accepted, Listener};
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest path of a unix socket: `sun_path` is 108 bytes with its NUL.
const PATH_BYTES_MAX: usize = 107;
/// Until a socket has its group: only the owner may connect.
const PRIVATE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A listening unix socket with a file.
pub(crate) struct UnixListener {
    socket: OwnedFd,
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl UnixListener {
    /// Listen at a path, replacing a socket file that nobody answers on.
    ///
    /// # Errors
    /// `InUse`, `NotASocket`, `PathTooLong`, `Io`.
    pub(crate) fn bind(address: &UnixAddress) -> Result<Self, NbdError> {
        let path = address.path.as_path();
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
        rustix::fs::fchmod(&socket, PRIVATE_MODE).map_err(failed("set the mode of"))?;
        let private = PrivateName::bind(&socket, path)?;
        if let Some(group) = address.group {
            let group = Some(Gid::from_raw(group));
            rustix::fs::chown(&private.0, None, group).map_err(failed("set the group of"))?;
        }
        let mode = Mode::from_bits_truncate(address.mode);
        rustix::fs::chmod(&private.0, mode).map_err(failed("set the mode of"))?;
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
        accepted(rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)?, Kind::Unix)
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

    fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    fn network_address(&self) -> Option<SocketAddr> {
        None
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
