//! The store on a file system.
//!
//! Invariants: every error names the file; "no space" out of a sync is a failed sync, never a full
//! medium.

use crate::memory::whole_pages;
use crate::{File, Lock, LockMode, Mapping, Moment, Result, Store, StoreError};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that one call of the system writes: how long a call is others may wait
/// (docs/internals/latency.md).
const WRITTEN_AT_ONCE_BYTES: usize = 128 * 1024;

/// A pool's directory on a file system.
pub struct FileStore {
    root: PathBuf,
}

struct OpenFile {
    path: String,
    fd: OwnedFd,
}

/// The lock is given back when the descriptor is closed.
struct FileLock {
    _fd: OwnedFd,
}

impl Lock for FileLock {}

fn failure(action: &'static str, path: &Path, errno: Errno) -> StoreError {
    let path = path.display().to_string();
    match errno {
        Errno::NOENT => StoreError::NotFound { path },
        Errno::EXIST => StoreError::Exists { path },
        Errno::NOSPC | Errno::DQUOT => StoreError::Full { action, path },
        Errno::ROFS | Errno::ACCESS | Errno::PERM => {
            StoreError::ReadOnly { action, path, reason: std::io::Error::from(errno).to_string() }
        }
        other => StoreError::Io { action, path, source: other.into() },
    }
}

/// A failed sync says nothing about space, whatever its number.
fn sync_failure(path: &Path, errno: Errno) -> StoreError {
    StoreError::Io { action: "sync", path: path.display().to_string(), source: errno.into() }
}

fn retried<T>(
    mut call: impl FnMut() -> std::result::Result<T, Errno>,
) -> std::result::Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

impl FileStore {
    /// The store in directory `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        FileStore { root: root.into() }
    }

    fn full(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn open_with(&self, path: &str, flags: OFlags, action: &'static str) -> Result<OpenFile> {
        let full = self.full(path);
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = retried(|| rustix::fs::open(&full, flags | OFlags::CLOEXEC, mode))
            .map_err(|errno| failure(action, &full, errno))?;
        // Nobody asks when a file was read, and to note it takes time. Only the owner may say so.
        let _ = rustix::fs::fcntl_setfl(&fd, OFlags::NOATIME);
        Ok(OpenFile { path: full.display().to_string(), fd })
    }

    fn sync_path(path: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = retried(|| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(|errno| failure("open", path, errno))?;
        retried(|| rustix::fs::fsync(&fd)).map_err(|errno| sync_failure(path, errno))
    }
}

impl FileStore {
    /// Make the name of a directory durable, where the one above may be read.
    fn sync_name(path: &Path) -> Result<()> {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        match Self::sync_path(above.unwrap_or(Path::new("."))) {
            // Out of opening it.
            Err(StoreError::ReadOnly { .. }) => Ok(()),
            other => other,
        }
    }
}

impl OpenFile {
    fn failure(&self, action: &'static str, errno: Errno) -> StoreError {
        failure(action, Path::new(&self.path), errno)
    }
}

impl File for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()> {
        let (mut done, end_bytes) = (0, offset_bytes + buffer.len() as u64);
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            match retried(|| rustix::io::pread(&self.fd, &mut *rest, offset_bytes + done as u64)) {
                Ok(0) => {
                    return Err(StoreError::ShortRead { path: self.path.clone(), end_bytes });
                }
                Ok(count) => done += count,
                Err(errno) => return Err(self.failure("read", errno)),
            }
        }
        Ok(())
    }

    fn map(&self, length_bytes: u64) -> Option<Mapping> {
        Mapping::new(self.fd.as_fd(), length_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let piece = &bytes[done..bytes.len().min(done + WRITTEN_AT_ONCE_BYTES)];
            done += retried(|| rustix::io::pwrite(&self.fd, piece, offset_bytes + done as u64))
                .map_err(|errno| self.failure("write", errno))?;
        }
        Ok(())
    }

    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        if length_bytes == 0 {
            return Ok(());
        }
        let allocated = retried(|| {
            rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), offset_bytes, length_bytes)
        });
        match allocated {
            Err(Errno::OPNOTSUPP) => self.allocate_by_writing(offset_bytes, length_bytes),
            other => other.map_err(|errno| self.failure("allocate", errno)),
        }
    }

    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (start, end) = whole_pages(offset_bytes, length_bytes);
        if start >= end {
            return Ok(true);
        }
        match retried(|| rustix::fs::fallocate(&self.fd, flags, start, end - start)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(self.failure("give back room of", errno)),
        }
    }

    fn sync(&self) -> Result<()> {
        retried(|| rustix::fs::fdatasync(&self.fd))
            .map_err(|errno| sync_failure(Path::new(&self.path), errno))
    }

    fn start_writeback(&self, offset_bytes: u64, length_bytes: u64) {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset_bytes), i64::try_from(length_bytes))
        else {
            return;
        };
        // A hint: what it does not do, the next sync will, so its result says nothing.
        // SAFETY: the call takes numbers only, and the descriptor is open as long as `self`.
        let _ = unsafe {
            libc::sync_file_range(self.fd.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE)
        };
    }

    fn will_be_read(&self) {
        // A hint: without it the bytes are read one by one.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::WillNeed);
    }

    fn read_ahead(&self, offset_bytes: u64, length_bytes: u64) {
        // A hint, as above; a length of zero would mean all of the file.
        if let Some(length) = std::num::NonZeroU64::new(length_bytes) {
            let advice = rustix::fs::Advice::WillNeed;
            let _ = rustix::fs::fadvise(&self.fd, offset_bytes, Some(length), advice);
        }
    }

    fn set_length(&self, length_bytes: u64) -> Result<()> {
        retried(|| rustix::fs::ftruncate(&self.fd, length_bytes))
            .map_err(|errno| self.failure("cut", errno))
    }

    fn length_bytes(&self) -> Result<u64> {
        let stat = retried(|| rustix::fs::fstat(&self.fd))
            .map_err(|errno| self.failure("look at", errno))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn allocated_bytes(&self) -> Result<u64> {
        let stat = retried(|| rustix::fs::fstat(&self.fd))
            .map_err(|errno| self.failure("look at", errno))?;
        // The system counts in units of 512 bytes, whatever the file system's are.
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }
}

impl OpenFile {
    /// For file systems without fallocate: zeros beyond the end; what is below it is there already.
    fn allocate_by_writing(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        let zeros = vec![0; 1 << 20];
        let end = offset_bytes + length_bytes;
        let mut at = offset_bytes.max(self.length_bytes()?);
        while at < end {
            let length =
                usize::try_from((end - at).min(zeros.len() as u64)).expect("bounded by the buffer");
            self.write_at(&zeros[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }
}

impl Store for FileStore {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self, path: &str) -> Result<Arc<dyn File>> {
        Ok(Arc::new(self.open_with(
            path,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            "create",
        )?))
    }

    fn open(&self, path: &str, writable: bool) -> Result<Arc<dyn File>> {
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(Arc::new(self.open_with(path, flags, "open")?))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        let full = self.full(path);
        match retried(|| rustix::fs::stat(&full)) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(failure("look at", &full, errno)),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let full = self.full(directory);
        let failed = |error: std::io::Error| {
            failure("list", &full, Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&full).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_directory(&self, directory: &str) -> Result<()> {
        let full = self.full(directory);
        let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
        let mut made: Vec<&Path> = full.ancestors().take_while(missing).collect();
        if !made.is_empty() {
            std::fs::create_dir_all(&full).map_err(|error| {
                failure("create", &full, Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })?;
        }
        if directory.is_empty() {
            // The root's name is outside of the store: nobody could sync it later. One that was
            // there already may be as fresh.
            if made.is_empty() {
                made.push(&full);
            }
            made.into_iter().try_for_each(Self::sync_name)?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.full(from), self.full(to));
        retried(|| rustix::fs::rename(&from, &to)).map_err(|errno| failure("rename", &from, errno))
    }

    fn exchange(&self, one: &str, other: &str) -> Result<bool> {
        let (one, other) = (self.full(one), self.full(other));
        let (here, flags) = (rustix::fs::CWD, RenameFlags::EXCHANGE);
        match retried(|| rustix::fs::renameat_with(here, &one, here, &other, flags)) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(failure("exchange", &one, errno)),
        }
    }

    fn remove(&self, path: &str) -> Result<()> {
        let full = self.full(path);
        retried(|| rustix::fs::unlink(&full)).map_err(|errno| failure("remove", &full, errno))
    }

    fn sync_directory(&self, directory: &str) -> Result<()> {
        Self::sync_path(&self.full(directory))
    }

    fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        let (flags, operation) = match mode {
            LockMode::Exclusive => {
                (OFlags::RDWR | OFlags::CREATE, FlockOperation::NonBlockingLockExclusive)
            }
            LockMode::Shared => (OFlags::RDONLY, FlockOperation::NonBlockingLockShared),
        };
        let opened = self.open_with("lock", flags, "lock")?;
        match retried(|| rustix::fs::flock(&opened.fd, operation)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let path = self.describe();
                return Err(StoreError::Locked { path, holder: holder(opened.fd) });
            }
            Err(errno) => return Err(opened.failure("lock", errno)),
        }
        if mode == LockMode::Exclusive {
            let mut file = std::fs::File::from(opened.fd);
            // Only for messages, so a failure to write it does no harm.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            return Ok(Box::new(FileLock { _fd: file.into() }));
        }
        Ok(Box::new(FileLock { _fd: opened.fd }))
    }

    fn space_bytes(&self) -> Result<(u64, u64)> {
        let stat = retried(|| rustix::fs::statvfs(&self.root))
            .map_err(|errno| failure("look at", &self.root, errno))?;
        Ok((
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ))
    }

    fn moment(&self) -> Moment {
        Moment::now()
    }
}

fn holder(fd: OwnedFd) -> String {
    let mut text = String::new();
    let read = std::fs::File::from(fd).take(32).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(process)) => format!("process {process}"),
        _ => "another process".into(),
    }
}
