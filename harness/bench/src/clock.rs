//! How long something takes: on the wall, and on the processor by all threads of this process.

use std::time::Instant;

/// A running measurement.
pub(crate) struct Clock {
    started: Instant,
    cpu: f64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), cpu: cpu_seconds() }
    }

    /// Seconds on the wall and on the processor since the start.
    pub(crate) fn seconds(&self) -> (f64, f64) {
        (self.started.elapsed().as_secs_f64(), cpu_seconds() - self.cpu)
    }
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec. It cannot fail for this clock, and would leave 0.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time() {
        let clock = Clock::start();
        let sum = (0..1_000_000u64).fold(0, |sum, i| std::hint::black_box(sum + i));
        let (wall, cpu) = clock.seconds();
        assert!(sum > 0 && wall > 0.0 && cpu > 0.0, "{wall} {cpu}");
    }
}
