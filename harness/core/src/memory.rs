//! Counts what is allocated, so that peak memory is a measurement and not an estimate.
//!
//! A binary installs the counter around its allocator:
//! ```
//! use replica_core::memory::Counting;
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);
//!
//! replica_core::memory::reset_peak();
//! let before = replica_core::memory::peak().unwrap();
//! drop(vec![0u8; 1 << 20]);
//! assert!(replica_core::memory::peak().unwrap() >= before + (1 << 20));
//! ```
//! Two relaxed additions a call: not measurable beside a training step, which allocates large blocks.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicI64, Ordering};

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);
static CEILING: AtomicI64 = AtomicI64::new(i64::MAX);

/// Exit code of a process that went over its ceiling.
pub const CEILING_EXIT: i32 = 65;

/// An allocator that counts live bytes and their peak over the whole process.
pub struct Counting<A>(pub A);

// SAFETY: every call is passed on unchanged; only sizes are counted.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the inner allocator's.
        let block = unsafe { self.0.alloc(layout) };
        count(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the inner allocator's.
        let block = unsafe { self.0.alloc_zeroed(layout) };
        count(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's contract is the inner allocator's.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the inner allocator's.
        let moved = unsafe { self.0.realloc(block, layout, size) };
        if !moved.is_null() {
            LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        }
        count(moved, size);
        moved
    }
}

fn count(block: *mut u8, size: usize) {
    if block.is_null() {
        if CEILING.load(Ordering::Relaxed) < i64::MAX {
            end();
        }
        return;
    }
    let live = LIVE.fetch_add(size as i64, Ordering::Relaxed) + size as i64;
    // the load spares most calls the write, which would bounce between cores
    if live > PEAK.load(Ordering::Relaxed) {
        PEAK.fetch_max(live, Ordering::Relaxed);
        if live > CEILING.load(Ordering::Relaxed) {
            end();
        }
    }
}

/// Not a panic, whose machinery allocates.
#[cold]
fn end() -> ! {
    // what runs on the way out may allocate
    CEILING.store(i64::MAX, Ordering::Relaxed);
    std::process::exit(CEILING_EXIT)
}

/// From now on the process ends with [`CEILING_EXIT`] when more than this many bytes are allocated at once, or when the
/// system refuses some: for processes whose work may be lost. Starts a new measurement of the peak. Without a
/// [`Counting`] allocator nothing happens.
pub fn set_ceiling(bytes: Option<u64>) {
    CEILING.store(bytes.map_or(i64::MAX, |b| i64::try_from(b).unwrap_or(i64::MAX)), Ordering::Relaxed);
    reset_peak();
}

/// Bytes allocated now, if a [`Counting`] allocator is installed.
pub fn live() -> Option<u64> {
    // a program that runs has allocated something: a peak of 0 means that nobody counts
    (PEAK.load(Ordering::Relaxed) > 0).then(|| LIVE.load(Ordering::Relaxed).max(0) as u64)
}

/// Most bytes allocated at once since the last [`reset_peak`], if a [`Counting`] allocator is installed.
pub fn peak() -> Option<u64> {
    Some(PEAK.load(Ordering::Relaxed)).filter(|p| *p > 0).map(|p| p as u64)
}

/// Starts a new measurement of the peak, from what is live now.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}
