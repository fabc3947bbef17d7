//! One test in a process of its own: the counter sees every thread's allocations.

use std::alloc::System;
use std::hint::black_box;

use replica_core::memory::{Counting, live, peak, reset_peak};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const MIB: u64 = 1 << 20;

#[test]
fn peak_and_live_bytes_follow_allocations() {
    let start = live().unwrap();
    reset_peak();
    let kept = black_box(vec![1u8; 3 << 20]);
    drop(black_box(vec![0u8; 5 << 20]));
    let (now, most) = (live().unwrap() - start, peak().unwrap() - start);
    assert!((3 * MIB..4 * MIB).contains(&now), "{now}");
    assert!((8 * MIB..9 * MIB).contains(&most), "{most}");

    let mut grown = black_box(Vec::<u8>::with_capacity(1 << 20));
    grown.reserve_exact(2 << 20);
    let now = live().unwrap() - start;
    assert!((5 * MIB..6 * MIB).contains(&now), "a moved block counts once: {now}");
    drop(grown);
    drop(kept);

    reset_peak();
    assert!(peak().unwrap() - start < MIB, "a new measurement starts from what is live");
}
