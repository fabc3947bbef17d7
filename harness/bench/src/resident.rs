//! Memory as the system counts it: pages of the process that are in memory.

use std::fs;

/// Megabytes (10^6 bytes) of this process in memory now, where the system tells.
pub fn now_mb() -> Option<f64> {
    field("VmRSS:")
}

/// The most there have been.
pub fn peak_mb() -> Option<f64> {
    field("VmHWM:")
}

fn field(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    // the system writes "kB" and means 1024 bytes
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn a_large_block_shows() {
        let before = super::now_mb().unwrap();
        let block = std::hint::black_box(vec![1u8; 100_000_000]);
        assert!(super::now_mb().unwrap() > before + 90.0);
        drop(block);
        assert!(super::peak_mb().unwrap() > before + 90.0);
    }
}
