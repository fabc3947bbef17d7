//! What the trace of a run costs: bits of loss and gradient norm of every step, kept and written to checkpoints.

use std::time::Instant;

use replica_core::record::Trace;
use serde::Serialize;

use crate::spread::Spread;

/// Steps of the run whose trace is measured. The cost a step does not depend on it, as checkpoints are a
/// twentieth of the run apart.
const STEPS: usize = 20_000;

/// Checkpoints of a run in `replica_train::train`.
const CHECKPOINTS: usize = 20;

/// Seconds a training step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TraceCost {
    /// Appending, and each step's share of writing the trace as JSON into all checkpoints of its run.
    pub seconds: f64,
    /// Steps of the measured run.
    pub steps: usize,
    /// Checkpoints of it.
    pub checkpoints: usize,
}

/// Measures a whole run's trace a few times and takes the median. The norm itself is not part of it: clipping needs
/// it anyway.
pub fn measure() -> TraceCost {
    let runs: Vec<f64> = (0..5).map(|_| run() / STEPS as f64).collect();
    TraceCost { seconds: Spread::of(&runs).median, steps: STEPS, checkpoints: CHECKPOINTS }
}

fn run() -> f64 {
    let started = Instant::now();
    let mut trace = Trace::default();
    let mut written = 0;
    for step in 0..STEPS {
        trace.push(8.0 - step as f32 * 1e-4, 1.0 + step as f32 * 1e-6);
        if (step + 1).is_multiple_of(STEPS / CHECKPOINTS) {
            written += serde_json::to_vec(&trace).map_or(0, |json| json.len());
        }
    }
    std::hint::black_box(written);
    started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_writes_what_a_checkpoint_holds() {
        let cost = measure();
        assert!(cost.seconds > 0.0);
        assert_eq!(STEPS % CHECKPOINTS, 0, "the last checkpoint is the whole run");
    }
}
