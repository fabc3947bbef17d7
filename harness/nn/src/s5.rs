//! The S5 state-space model (Smith et al. 2023): one diagonal model with many inputs and outputs, its modes those of
//! HiPPO-N, a step of its own for each.

use std::cell::LazyCell;

use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use rustfft::num_complex::Complex64;

use crate::hippo::NormalPart;
use crate::init;
use crate::ops::{DiagonalScan, Discretisation};
use crate::tape::Value;

/// Initial values of C. The paper truncates its normal distributions; here they are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputInit {
    /// Variance 1 / (state size x width): LeCun's for the whole of C.
    Lecun,
    /// Variance 1 / state size: LeCun's for every output.
    Outputs,
    /// Variance 1/2; forward and backward modes in one parameter.
    ComplexNormal,
}

/// What an S5 model is made of.
#[derive(Clone, Copy, Debug)]
pub struct S5Config {
    /// Inputs and outputs.
    pub width: usize,
    /// Size of the state; modes come in conjugate pairs, so half of them are kept.
    pub state: usize,
    /// HiPPO matrices on the diagonal of the initial state matrix.
    pub blocks: usize,
    /// Smallest and largest initial step.
    pub steps: (f64, f64),
    /// Initial values of C.
    pub output: OutputInit,
    /// How the model becomes discrete.
    pub discretisation: Discretisation,
    /// Whether a second scan runs from the end.
    pub bidirectional: bool,
    /// Whether real parts of Lambda are clipped to at most -1e-4.
    pub clip: bool,
}

/// A model with the parameter names of the authors' code: `Lambda_re`, `Lambda_im`, `B`, `C` (or `C1` and `C2`), `D`,
/// `log_step`.
#[derive(Clone)]
pub struct S5 {
    scan: DiagonalScan,
}

impl S5 {
    /// A new model.
    ///
    /// # Errors
    /// `state` is not an even multiple of `blocks`, or the builder has other shapes.
    pub fn new(config: S5Config, vb: VarBuilder) -> Result<Self> {
        let S5Config { width, state, blocks, .. } = config;
        if blocks == 0 || state == 0 || !state.is_multiple_of(2 * blocks) {
            bail!("S5: a state of {state} cannot be cut into {blocks} blocks of even size");
        }
        let (size, p) = (state / blocks, state / 2);
        // found only where there are parameters to fill
        let part = LazyCell::new(|| NormalPart::new(size));
        // the half with negative imaginary parts, for every block
        let mode = |i: usize| part.eigenvalues[i % (size / 2)];
        let zero = candle_nn::init::ZERO;
        let normal = |variance: f64| Init::Randn { mean: 0.0, stdev: variance.sqrt() };
        let c_init = normal(match config.output {
            OutputInit::Lecun => 1.0 / (state * width) as f64,
            OutputInit::Outputs => 1.0 / state as f64,
            OutputInit::ComplexNormal => 0.5,
        });
        // a unitary change of basis leaves the distribution of a complex normal C as it is
        let c = match (config.bidirectional, config.output) {
            (false, _) => vec![vb.get_with_hints((width, p, 2), "C", c_init)?],
            (true, OutputInit::ComplexNormal) => vec![vb.get_with_hints((width, 2 * p, 2), "C", c_init)?],
            (true, _) => ["C1", "C2"]
                .into_iter()
                .map(|name| vb.get_with_hints((width, p, 2), name, c_init))
                .collect::<Result<_>>()?,
        };
        Ok(Self {
            scan: DiagonalScan {
                lambda_re: init::computed(&vb, p, "Lambda_re", zero, |_| {
                    (0..p).map(|i| mode(i).re).collect()
                })?,
                lambda_im: init::computed(&vb, p, "Lambda_im", zero, |_| {
                    (0..p).map(|i| mode(i).im).collect()
                })?,
                log_step: vb.get_with_hints(
                    (p, 1),
                    "log_step",
                    Init::Uniform { lo: config.steps.0.ln(), up: config.steps.1.ln() },
                )?,
                b: init::computed(&vb, (p, width, 2), "B", normal(1.0 / state as f64), |drawn| {
                    input_vectors(&part, &drawn, width, blocks)
                })?,
                c,
                skip: vb.get_with_hints(width, "D", normal(1.0))?,
                discretisation: config.discretisation,
                bidirectional: config.bidirectional,
                conjugate_pairs: true,
                clip: config.clip,
                rate: 1.0,
            },
        })
    }

    /// The same model for inputs sampled at `rate` times the interval of training.
    #[must_use]
    pub fn at_rate(mut self, rate: f64) -> Self {
        self.scan.rate = rate;
        self
    }

    /// `[batch, l, width]` to the same.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, u: &Value) -> Result<Value> {
        u.diagonal_scan(&self.scan, None)
    }

    /// As [`S5::forward`] for irregular sampling: `intervals` `[batch, l]` lead to each input, in units of that of
    /// training.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn forward_irregular(&self, u: &Value, intervals: &Tensor) -> Result<Value> {
        u.diagonal_scan(&self.scan, Some(intervals))
    }
}

/// `V^* B` for a real B `[state, width]` given as `drawn`, rows of the kept modes of every block, as (re, im) pairs.
fn input_vectors(part: &NormalPart, drawn: &[f64], width: usize, blocks: usize) -> Vec<f64> {
    let size = part.eigenvalues.len();
    let mut b = Vec::with_capacity(drawn.len());
    for block in drawn.chunks_exact(size * width).take(blocks) {
        for k in 0..size / 2 {
            for input in 0..width {
                let element: Complex64 =
                    (0..size).map(|i| part.vectors[i * size + k].conj() * block[i * width + input]).sum();
                b.extend([element.re, element.im]);
            }
        }
    }
    b
}
