//! Both sides in alternating turns, and what came out.
//!
//! A turn is one untimed step, which warms the caches that the other side has used, and then the timed ones. All
//! sides have a turn in every round and take turns at going first; each round gives one ratio of medians, so a machine that is
//! slower in one minute than in the next is slower for both. While one side works the others wait for input.

use std::path::PathBuf;
use std::process::Command;

use replica_core::memory;
use serde::Serialize;

use crate::error::BenchError;
use crate::file;
use crate::product::{self, Product, Rate};
use crate::python::{self, Python};
use crate::spread::{Estimate, Spread};
use crate::trainer::Trainer;
use crate::twin::{Memory, Turn, Twin};
use crate::workload::Workload;

/// Steps after which the losses of both sides are compared; they also warm both up.
pub const COMPARED_STEPS: usize = 10;

/// Largest difference of two losses, relative to the twin's.
pub const LOSS_TOLERANCE: f64 = 1e-4;

/// Seconds a turn should take at least, if the number of steps is left to us (our choice).
const TURN_SECONDS: f64 = 1.0;

/// How to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads of every side.
    pub threads: usize,
    /// Rounds: at least 6 for an interval.
    pub rounds: usize,
    /// Timed steps a turn; as many as fill a second if left out.
    pub steps: Option<usize>,
    /// The interpreter for the twins; without one this engine is measured alone.
    pub python: Option<Python>,
    /// Also against `torch.compile`.
    pub compile: bool,
    /// This program, to measure its memory in a process of its own as `PROGRAM bench NAME --serve`.
    pub own_program: Option<PathBuf>,
}

/// A workload as measured.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Name of the workload.
    pub workload: String,
    /// Model and sizes.
    pub about: String,
    /// Scalars that are trained.
    pub parameters: usize,
    /// Tokens a step.
    pub tokens: usize,
    /// Floating-point operations a step.
    pub flops: f64,
    /// Threads of every side.
    pub threads: usize,
    /// Timed steps a turn.
    pub steps: usize,
    /// Rounds.
    pub rounds: usize,
    /// This engine.
    pub engine: Side,
    /// Most bytes that this engine had allocated at once, beyond what was allocated before it built the model;
    /// only under a counting allocator.
    pub engine_peak_bytes: Option<u64>,
    /// The machine's matrix products: the large one, and the one that dominates the workload, if one does.
    pub products: Vec<ProductRate>,
    /// PyTorch, in all its ways.
    pub twins: Vec<TwinResult>,
}

/// One program's times and memory.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// What it is.
    pub program: String,
    /// Seconds of the timed steps, a list a round.
    pub seconds: Vec<Vec<f64>>,
    /// Processor seconds of the same steps, over all threads; of threads that wait for others too.
    pub cpu_seconds: Vec<Vec<f64>>,
    /// Losses of the first steps.
    pub losses: Vec<f64>,
    /// Memory of a process that did nothing else.
    pub memory: Option<Memory>,
}

/// A twin's result.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TwinResult {
    /// It ran.
    Measured {
        /// Its times.
        side: Side,
        /// This engine's step time over the twin's, of every round.
        ratios: Vec<f64>,
        /// Their median.
        ratio: Estimate,
        /// The same of processor times.
        cpu_ratio: Option<Estimate>,
        /// Largest relative difference of the first losses.
        loss_difference: f64,
    },
    /// It did not.
    Failed {
        /// What it is.
        program: String,
        /// Why.
        problem: String,
    },
}

/// A matrix product beside the steps.
#[derive(Clone, Debug, Serialize)]
pub struct ProductRate {
    /// Its sizes.
    pub product: Product,
    /// Operations a second.
    pub flops_per_second: Spread,
    /// Operations a second of this engine's step as a share of it, by rounds.
    pub share: Estimate,
}

impl Side {
    fn new(program: &str, losses: Vec<f64>) -> Self {
        Self { program: program.to_owned(), seconds: vec![], cpu_seconds: vec![], losses, memory: None }
    }

    /// Keeps a turn but for its first step.
    fn add(&mut self, turn: Turn) {
        self.seconds.push(turn.seconds[1..].to_vec());
        self.cpu_seconds.push(turn.cpu_seconds.get(1..).unwrap_or_default().to_vec());
    }

    /// Seconds a step, over all rounds.
    pub fn step_seconds(&self) -> Spread {
        Spread::of(&self.seconds.concat())
    }

    /// Processor seconds a step, over all rounds; nothing where they are not measured.
    pub fn step_cpu_seconds(&self) -> Option<Spread> {
        let all = self.cpu_seconds.concat();
        (!all.is_empty()).then(|| Spread::of(&all))
    }

    /// The fastest step.
    pub fn fastest_seconds(&self) -> f64 {
        self.seconds.iter().flatten().copied().fold(f64::INFINITY, f64::min)
    }
}

impl TwinResult {
    /// Whether its losses agree with this engine's.
    pub fn agrees(&self) -> bool {
        // NaN agrees with nothing
        matches!(self, Self::Measured { loss_difference, .. } if *loss_difference <= LOSS_TOLERANCE)
    }
}

/// Median of each turn.
fn medians(turns: &[Vec<f64>]) -> impl Iterator<Item = f64> + '_ {
    turns.iter().map(|turn| Spread::of(turn).median)
}

/// Ratios of the turns' medians by rounds.
fn ratios(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> Vec<f64> {
    medians(ours).zip(medians(theirs)).map(|(a, b)| a / b).collect()
}

/// Largest difference of paired losses, relative to the second one; infinite if one is not a number.
pub fn loss_difference(ours: &[f64], theirs: &[f64]) -> f64 {
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs() / b.abs().max(f64::MIN_POSITIVE));
    differences.fold(0.0, |largest, d| if d.is_nan() { f64::INFINITY } else { largest.max(d) })
}

/// A twin that runs, or why it does not.
struct Opponent {
    program: String,
    running: Result<(Twin, Side), BenchError>,
}

impl Opponent {
    fn turn(&mut self, steps: usize) {
        let Ok((twin, side)) = &mut self.running else { return };
        match twin.step(steps + 1) {
            Ok(turn) => side.add(turn),
            Err(error) => self.running = Err(error),
        }
    }
}

/// Measures a workload. Call it inside a pool of `options.threads` threads; `tell` hears what is going on.
///
/// # Errors
/// This engine fails. A twin that fails is part of the result.
pub fn compare(
    workload: &dyn Workload,
    options: &Options,
    tell: &mut dyn FnMut(&str),
) -> Result<Comparison, BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::io(&std::env::temp_dir()))?;
    let weights = folder.path().join("weights.safetensors");
    let parameters = file::write(workload, &weights)?;
    python::write_scripts(folder.path())?;

    let live = memory::live();
    memory::reset_peak();
    let mut trainer = Trainer::load(workload, &weights)?;
    tell(&format!("{COMPARED_STEPS} steps from equal weights"));
    let first = trainer.turn(COMPARED_STEPS)?;
    let engine_peak_bytes = memory::peak().zip(live).map(|(peak, live)| peak.saturating_sub(live));
    let mut engine = Side::new("replica", first.losses);

    let mut opponents = Vec::new();
    if let Some(python) = &options.python {
        let mut ways: Vec<(&str, &[&str])> = vec![("eager", &[]), ("eager, fused AdamW", &["--fused-adamw"])];
        if options.compile {
            ways.push(("compiled", &["--compile"]));
        }
        for (way, arguments) in ways {
            let program = format!("torch {way}");
            tell(&format!("{program}: the same {COMPARED_STEPS} steps"));
            let command = python.command(folder.path(), workload.twin(), arguments);
            let running = Twin::start(&program, command, &weights, options.threads).and_then(|mut twin| {
                let turn = twin.step(COMPARED_STEPS)?;
                Ok((twin, Side::new(&program, turn.losses)))
            });
            opponents.push(Opponent { program, running });
        }
    }

    let typical = Spread::of(&first.seconds).median;
    let steps = options.steps.unwrap_or(((TURN_SECONDS / typical).ceil() as usize).clamp(2, 50));
    tell(&format!("{} rounds of {steps} timed steps a side", options.rounds));
    let sizes: Vec<Product> = std::iter::once(product::LARGE).chain(workload.dominating()).collect();
    let mut rates: Vec<Rate> = sizes.iter().map(|size| size.rate()).collect();
    let mut measured = vec![Vec::new(); sizes.len()];
    for round in 0..options.rounds {
        for position in 0..=opponents.len() {
            match (round + position) % (opponents.len() + 1) {
                0 => {
                    engine.add(trainer.turn(steps + 1)?);
                    for (rate, measured) in rates.iter_mut().zip(&mut measured) {
                        let three: Vec<f64> = (0..4).map(|_| rate.measure()).skip(1).collect();
                        measured.push(Spread::of(&three).median);
                    }
                }
                opponent => opponents[opponent - 1].turn(steps),
            }
        }
    }
    let flops = workload.flops();
    let products = sizes.into_iter().zip(measured).map(|(product, rates)| {
        let shares: Vec<f64> =
            medians(&engine.seconds).zip(&rates).map(|(s, rate)| flops / s / rate).collect();
        ProductRate { product, flops_per_second: Spread::of(&rates), share: Estimate::of(&shares) }
    });
    let products = products.collect();
    let twins = opponents.into_iter().map(|opponent| finish(opponent, &engine)).collect();
    drop(trainer);
    if let Some(program) = &options.own_program {
        tell("memory, in a process of its own");
        let mut command = Command::new(program);
        command.args(["bench", workload.name(), "--serve"]);
        let mut own = Twin::start("replica", command, &weights, options.threads)?;
        own.step(COMPARED_STEPS)?;
        engine.memory = Some(own.quit()?);
    }
    Ok(Comparison {
        workload: workload.name().to_owned(),
        about: workload.about(),
        parameters,
        tokens: workload.tokens(),
        flops,
        threads: options.threads,
        steps,
        rounds: options.rounds,
        engine,
        engine_peak_bytes,
        products,
        twins,
    })
}

fn finish(opponent: Opponent, engine: &Side) -> TwinResult {
    let measured = opponent.running.and_then(|(twin, mut side)| {
        side.memory = Some(twin.quit()?);
        Ok(side)
    });
    match measured {
        Err(error) => TwinResult::Failed { program: opponent.program, problem: error.to_string() },
        Ok(side) => {
            let ratios_of_wall = ratios(&engine.seconds, &side.seconds);
            let measured = side.step_cpu_seconds().and(engine.step_cpu_seconds()).is_some();
            let of_cpu = || Estimate::of(&ratios(&engine.cpu_seconds, &side.cpu_seconds));
            TwinResult::Measured {
                ratio: Estimate::of(&ratios_of_wall),
                ratios: ratios_of_wall,
                cpu_ratio: measured.then(of_cpu),
                loss_difference: loss_difference(&engine.losses, &side.losses),
                side,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_compared_relative_to_the_twins() {
        assert_eq!(loss_difference(&[8.0, 4.0], &[8.0, 4.0]), 0.0);
        assert_eq!(loss_difference(&[8.0, 5.0], &[8.0, 4.0]), 0.25);
        assert_eq!(loss_difference(&[f64::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
    }
}
