//! Files as memory, for reading.
//!
//! Invariant: a medium that fails under a mapping never ends the process: the page reads as zeros
//! from then on, and the mapping says that it failed. Whoever reads through one asks it after.
//! See docs/internals/lending.md.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings of the process at once. Each may cost page tables of a 512th of its length.
const MAPPINGS_MAX: usize = 1024;
const FREE: usize = 0;
/// No mapping starts here.
const CLAIMED: usize = 1;

/// Where a mapping is, for the handler of a signal: it may take no lock and follow no pointer that
/// somebody frees.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
    failed: AtomicBool,
}

static PLACES: [Place; MAPPINGS_MAX] = [const {
    Place {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
    }
}; MAPPINGS_MAX];

/// The first bytes of a file as memory.
pub struct Mapping {
    start: NonNull<u8>,
    length_bytes: usize,
    place: &'static Place,
}

// SAFETY: the memory is only read, and mapped for as long as the value lives.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map a file that is open for reading; `None` where the system cannot, or has enough.
    pub(crate) fn new(file: BorrowedFd<'_>, length_bytes: u64) -> Option<Self> {
        let length_bytes = usize::try_from(length_bytes).ok().filter(|length| *length > 0)?;
        if !handler::is_installed() {
            return None;
        }
        let free = |place: &&'static Place| {
            place.start.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let place = PLACES.iter().find(free)?;
        // SAFETY: a new mapping wherever there is room touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length_bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            place.start.store(FREE, Ordering::Release);
            return None;
        }
        let start = NonNull::new(start.cast::<u8>()).expect("no mapping starts at zero");
        place.failed.store(false, Ordering::Relaxed);
        place.end.store(start.addr().get() + length_bytes, Ordering::Relaxed);
        place.start.store(start.addr().get(), Ordering::Release);
        Some(Mapping { start, length_bytes, place })
    }

    /// Bytes of the file, which must be in it, and stay as they are while they are borrowed.
    ///
    /// Whoever uses what they say asks `has_failed` afterwards: only then they were the file's.
    ///
    /// # Panics
    /// Where the range is not mapped.
    pub fn bytes(&self, at_bytes: usize, length_bytes: usize) -> &[u8] {
        let end = at_bytes.checked_add(length_bytes).filter(|end| *end <= self.length_bytes);
        assert!(end.is_some(), "{length_bytes} bytes at {at_bytes} are not all mapped");
        // SAFETY: mapped, as was checked, for as long as `self`; nobody writes them through memory.
        // Where the medium fails the handler puts zeros there, which are bytes too.
        unsafe { std::slice::from_raw_parts(self.start.add(at_bytes).as_ptr(), length_bytes) }
    }

    /// Whether the medium failed under any byte of it.
    pub fn has_failed(&self) -> bool {
        self.place.failed.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First, so that whatever is mapped here next is not taken for this one.
        self.place.start.store(CLAIMED, Ordering::Release);
        self.place.end.store(0, Ordering::Release);
        // SAFETY: mapped by `new` with this length, and nobody has a reference any more.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length_bytes) };
        assert_eq!(unmapped, 0, "what was mapped can be unmapped");
        self.place.start.store(FREE, Ordering::Release);
    }
}

/// What happens where a medium fails under a mapping.
mod handler {
    use super::{CLAIMED, Once, Ordering, PLACES, Place};
    use std::cell::UnsafeCell;
    use std::mem::MaybeUninit;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    static BEFORE: Before = Before(UnsafeCell::new(MaybeUninit::uninit()));

    /// What was done about the signal before.
    struct Before(UnsafeCell<MaybeUninit<libc::sigaction>>);

    // SAFETY: written once, before the handler that reads it is there.
    unsafe impl Sync for Before {}

    /// Install the handler with the first mapping. Result: whether it is there, and nobody put
    /// another in its place.
    pub(super) fn is_installed() -> bool {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: numbers in, a number out.
            let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            let Ok(page_bytes) = usize::try_from(page_bytes) else { return };
            PAGE_BYTES.store(page_bytes, Ordering::Relaxed);
            // SAFETY: all zeros is a valid action; it is filled in before it is used.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = address_of_handler();
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let before = BEFORE.0.get().cast::<libc::sigaction>();
            // SAFETY: asks only, and writes to memory of this type that nobody else looks at yet.
            let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), before) };
            // SAFETY: the action is whole, and the handler keeps to what a handler may do.
            let set = || unsafe {
                libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
            };
            INSTALLED.store(asked == 0 && set() == 0, Ordering::Release);
        });
        INSTALLED.load(Ordering::Acquire) && is_ours()
    }

    fn is_ours() -> bool {
        let mut now = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks only, and writes to memory of this type.
        let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), now.as_mut_ptr()) };
        // SAFETY: it was filled in.
        asked == 0 && unsafe { now.assume_init() }.sa_sigaction == address_of_handler()
    }

    fn address_of_handler() -> libc::sighandler_t {
        let on_fault: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_fault;
        on_fault as libc::sighandler_t
    }

    extern "C" fn on_fault(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: the system hands over a valid record, and the thread has a place for `errno`.
        let (address, errno) = unsafe { ((*info).si_addr() as usize, libc::__errno_location()) };
        // SAFETY: as above.
        let (errno_before, is_fault) = unsafe { (*errno, (*info).si_code > 0) };
        // One that somebody sent has no address.
        let mended =
            is_fault && PLACES.iter().any(|place| is_in(place, address) && mend(place, address));
        // SAFETY: as above.
        unsafe { *errno = errno_before };
        if !mended {
            leave_to_others(signal, info, context);
        }
    }

    fn is_in(place: &Place, address: usize) -> bool {
        let start = place.start.load(Ordering::Acquire);
        let end = place.end.load(Ordering::Acquire);
        // The same before and after: both are of one mapping.
        start > CLAIMED
            && (start..end).contains(&address)
            && place.start.load(Ordering::Acquire) == start
    }

    /// Put a page of zeros where the medium failed, and say so.
    fn mend(place: &Place, address: usize) -> bool {
        place.failed.store(true, Ordering::Release);
        let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
        let page = address / page_bytes * page_bytes;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: replaces a page of a mapping of ours, from which somebody just reads.
        let put = unsafe {
            libc::mmap(page as *mut libc::c_void, page_bytes, libc::PROT_READ, flags, -1, 0)
        };
        put != libc::MAP_FAILED
    }

    fn leave_to_others(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: written before this handler was installed, and never again.
        let before = unsafe { (*BEFORE.0.get()).assume_init_ref() };
        // SAFETY: the system hands over a valid record.
        let is_fault = unsafe { (*info).si_code > 0 };
        match before.sa_sigaction {
            libc::SIG_IGN if !is_fault => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                // The access is repeated, or the signal sent again, and ends the process as it
                // would have without us.
                // SAFETY: restores what was there, and sends a signal to this thread.
                unsafe {
                    libc::sigaction(signal, before, std::ptr::null_mut());
                    if !is_fault {
                        libc::raise(signal);
                    }
                }
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                // SAFETY: somebody installed a function of this type.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            }
            handler => {
                // SAFETY: as above.
                let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}
