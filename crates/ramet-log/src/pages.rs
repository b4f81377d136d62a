//! Pages of slot tables in memory, under one budget for the log.
//!
//! Invariant: a page is kept only after it verified.

use crate::types::{BLOCK_BYTES_U64, SegmentId};
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Pages that stay whatever the budget says.
const PAGES_MIN: usize = 8;

/// A page of a checksum column.
pub(crate) struct Page {
    pub(crate) checksums: Vec<u32>,
    index: u32,
    used: AtomicBool,
}

/// The pages of one segment that are in memory.
#[derive(Default)]
pub(crate) struct Pages {
    own: Arc<RwLock<Vec<Option<Arc<Page>>>>>,
}

/// Where a page is kept, and by whom.
type Kept = (Weak<RwLock<Vec<Option<Arc<Page>>>>>, Arc<Page>);

/// All pages of a log that are in memory, oldest first.
pub(crate) struct PageCache {
    kept: Mutex<VecDeque<Kept>>,
    pages_max: usize,
}

impl Page {
    pub(crate) fn new(_segment: SegmentId, index: u32, checksums: Vec<u32>) -> Self {
        Page { checksums, index, used: AtomicBool::new(true) }
    }
}

impl Pages {
    pub(crate) fn get(&self, index: u32) -> Option<Arc<Page>> {
        let page = self.own.read().get(index as usize)?.clone()?;
        if !page.used.load(Ordering::Relaxed) {
            page.used.store(true, Ordering::Relaxed);
        }
        Some(page)
    }
}

impl PageCache {
    /// Keep at most this many bytes of pages.
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let pages_max = usize::try_from(budget_bytes / BLOCK_BYTES_U64).unwrap_or(usize::MAX);
        PageCache { kept: Mutex::new(VecDeque::new()), pages_max: pages_max.max(PAGES_MIN) }
    }

    /// Keep a page with its segment's; others may go for it. Result: the one that is kept.
    pub(crate) fn keep(&self, pages: &Pages, page: Arc<Page>) -> Arc<Page> {
        {
            let mut own = pages.own.write();
            let index = page.index as usize;
            if own.len() <= index {
                own.resize(index + 1, None);
            }
            if let Some(before) = &own[index] {
                return before.clone();
            }
            own[index] = Some(page.clone());
        }
        let mut kept = self.kept.lock();
        kept.push_back((Arc::downgrade(&pages.own), page.clone()));
        let mut chances = kept.len();
        while kept.len() > self.pages_max && chances > 0 {
            chances -= 1;
            let Some((owner, page)) = kept.pop_front() else { break };
            if page.used.swap(false, Ordering::Relaxed) && chances > 0 {
                kept.push_back((owner, page));
            } else if let Some(owner) = owner.upgrade() {
                owner.write()[page.index as usize] = None;
            }
        }
        page
    }
}
