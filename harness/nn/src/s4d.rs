//! S4D (Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models"): every channel
//! is convolved with the impulse response of a diagonal state-space model, then channels are mixed by a gated layer.
//! And S4 (Gu et al. 2022, "Efficiently Modeling Long Sequences with Structured State Spaces"), whose state matrix is
//! diagonal minus a rank-one term.

use std::cell::LazyCell;
use std::f64::consts::PI;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use crate::hippo::NormalPart;
use crate::init;
use crate::layers::Linear;
use crate::ops::{Activation, DiagonalKernel, Discretisation, Dropout, LowRankKernel, StepTransform};
use crate::tape::Value;

/// Initial values of A; its real part is -1/2 but for `Real`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// Imaginary parts `pi n`.
    Lin,
    /// Imaginary parts `(N / pi) (N / (2n + 1) - 1)` with N = state size.
    Inv,
    /// Eigenvalues of the normal part of HiPPO-LegS.
    Legs,
    /// Real: `-(n + 1)`.
    Real,
}

/// What an S4D layer is made of.
#[derive(Clone, Copy, Debug)]
pub struct S4dConfig {
    /// Channels.
    pub width: usize,
    /// N, the size of the state; modes come in conjugate pairs, so N / 2 are kept.
    pub state: usize,
    /// Independent sets of A and B; channel i uses set i mod `copies`.
    pub copies: usize,
    /// Initial values of A.
    pub modes: Modes,
    /// Smallest and largest initial step.
    pub steps: (f64, f64),
    /// How steps are kept positive.
    pub transform: StepTransform,
    /// How the model becomes discrete.
    pub discretisation: Discretisation,
    /// Whether a second kernel looks ahead.
    pub bidirectional: bool,
    /// Probability of dropout after the activation.
    pub dropout: f64,
    /// Whether a channel is dropped at all steps of a sequence or at none.
    pub tied_dropout: bool,
}

/// A layer of the full form, with the parameter names of S4's code: `kernel.{A_real, A_imag, B, C, inv_dt}`, `D`,
/// `output_linear.0`; or of the minimal form, `kernel.{log_A_real, A_imag, C, log_dt}`, `D`, `output_linear.0`. S4 has
/// `kernel.P` as well.
#[derive(Clone)]
pub struct S4d {
    kernel: Kernel,
    skip: Tensor,
    /// The convolution alone without.
    output: Option<Output>,
    dropout: f64,
    tied_dropout: bool,
}

#[derive(Clone)]
enum Kernel {
    Diagonal(DiagonalKernel),
    /// With the length its C belongs to.
    LowRank(LowRankKernel, usize),
}

#[derive(Clone)]
enum Output {
    Linear(Linear),
    /// The minimal form writes it as a convolution with one tap.
    Conv {
        weight: Tensor,
        bias: Tensor,
    },
}

impl S4d {
    /// The full form, as in the Long Range Arena recipes.
    ///
    /// # Errors
    /// `state` is odd, `copies` does not divide `width`, or the builder has other shapes.
    pub fn new(config: S4dConfig, vb: VarBuilder) -> Result<Self> {
        let kernel = Kernel::Diagonal(diagonal(config, &vb.pp("kernel"))?);
        Self::around(kernel, config, true, vb)
    }

    /// S4: the HiPPO-LegS matrix itself, bilinear, its kernel trained for sequences of `length`; on longer ones it is
    /// that long. `modes` and `discretisation` of the config are not used.
    ///
    /// # Errors
    /// As [`S4d::new`], or length 0.
    pub fn low_rank(config: S4dConfig, length: usize, vb: VarBuilder) -> Result<Self> {
        Self::low_rank_with(config, length, true, vb)
    }

    /// As [`S4d::low_rank`], but for activation and output layer: its forward pass is the convolution alone, as SPADE
    /// has it.
    ///
    /// # Errors
    /// As [`S4d::low_rank`].
    pub fn bare_low_rank(config: S4dConfig, length: usize, vb: VarBuilder) -> Result<Self> {
        Self::low_rank_with(config, length, false, vb)
    }

    fn low_rank_with(config: S4dConfig, length: usize, output: bool, vb: VarBuilder) -> Result<Self> {
        let (names, n) = (vb.pp("kernel"), config.state / 2);
        let config = S4dConfig { modes: Modes::Legs, discretisation: Discretisation::Bilinear, ..config };
        let drawn = !names.contains_tensor("C");
        let diagonal = diagonal(config, &names)?;
        let p = init::computed(&names, (1, config.copies, n, 2), "P", candle_nn::init::ZERO, |_| {
            let root: Vec<f64> = (0..config.state).map(|i| (i as f64 + 0.5).sqrt()).collect();
            let p = NormalPart::new(config.state).project(&root);
            p[..n].iter().flat_map(|p| [p.re, p.im]).collect::<Vec<f64>>().repeat(config.copies)
        })?;
        let kernel = LowRankKernel { diagonal, p };
        // a builder that only counts hands out zeros that take no memory
        if drawn && kernel.diagonal.c.is_contiguous() {
            let on_host = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
            let host = LowRankKernel { diagonal: kernel.diagonal.map(on_host)?, p: on_host(&kernel.p)? };
            init::overwrite(&names, "C", &kernel.diagonal.c, &host.trained_c(length)?)?;
        }
        Self::around(Kernel::LowRank(kernel, length), config, output, vb)
    }

    fn around(kernel: Kernel, config: S4dConfig, output: bool, vb: VarBuilder) -> Result<Self> {
        let S4dConfig { width, dropout, tied_dropout, .. } = config;
        let linear = || Linear::new(width, 2 * width, true, init::linear, vb.pp("output_linear.0"));
        Ok(Self {
            kernel,
            skip: vb.get_with_hints((1, width), "D", Init::Randn { mean: 0.0, stdev: 1.0 })?,
            output: output.then(|| linear().map(Output::Linear)).transpose()?,
            dropout,
            tied_dropout,
        })
    }

    /// The minimal form of S4's repository: S4D-Lin, zero-order hold, B = 1, own modes for every channel.
    ///
    /// # Errors
    /// `state` is odd, or the builder has other shapes.
    pub fn minimal(width: usize, state: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        if state == 0 || !state.is_multiple_of(2) {
            bail!("S4D: the state size must be even, got {state}");
        }
        let n = state / 2;
        let kernel = vb.pp("kernel");
        let output = vb.pp("output_linear.0");
        Ok(Self {
            kernel: Kernel::Diagonal(DiagonalKernel {
                step: kernel.get_with_hints(width, "log_dt", log_uniform((1e-3, 1e-1)))?,
                a_real: kernel.get_with_hints((width, n), "log_A_real", Init::Const(0.5f64.ln()))?,
                a_imag: init::computed(&kernel, (width, n), "A_imag", candle_nn::init::ZERO, |_| {
                    (0..width * n).map(|i| PI * (i % n) as f64).collect()
                })?,
                b: None,
                c: kernel.get_with_hints((width, n, 2), "C", complex_normal())?,
                transform: StepTransform::Exp,
                conjugate: false,
                discretisation: Discretisation::ZeroOrderHold,
                rate: 1.0,
            }),
            skip: vb.get_with_hints(width, "D", Init::Randn { mean: 0.0, stdev: 1.0 })?,
            output: Some(Output::Conv {
                weight: output.get_with_hints((2 * width, width, 1), "weight", init::linear(width))?,
                bias: output.get_with_hints(2 * width, "bias", init::linear(width))?,
            }),
            dropout,
            tied_dropout: false,
        })
    }

    /// The same layer for inputs sampled at `rate` times the interval of training: all steps are multiplied by it.
    #[must_use]
    pub fn at_rate(mut self, rate: f64) -> Self {
        match &mut self.kernel {
            Kernel::Diagonal(kernel) => kernel.rate = rate,
            Kernel::LowRank(kernel, _) => kernel.diagonal.rate = rate,
        }
        self
    }

    /// The convolution with its skip, without activation and output layer: `[batch, l, width]` to the same.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn convolution(&self, x: &Value) -> Result<Value> {
        self.channels_first(x)?.transpose()
    }

    fn channels_first(&self, x: &Value) -> Result<Value> {
        let (_, l, _) = x.tensor().dims3()?;
        let taps = match &self.kernel {
            Kernel::Diagonal(kernel) => kernel.taps(l, x)?,
            Kernel::LowRank(kernel, length) => kernel.taps(*length, x)?,
        };
        x.transpose()?.causal_convolution(&taps, &self.skip)
    }

    /// `[batch, l, width]` to the same: convolution, GELU, dropout, and a gated linear unit.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Value, masks: Option<&Dropout>) -> Result<Value> {
        let Some(output) = &self.output else { return self.convolution(x) };
        let y = self.channels_first(x)?.activate(Activation::Gelu)?.transpose()?;
        let y = match self.tied_dropout {
            true => y.tied_dropout(self.dropout, masks)?,
            false => y.dropout(self.dropout, masks)?,
        };
        match output {
            Output::Linear(linear) => linear.forward(&y)?.glu(),
            Output::Conv { weight, bias } => y.causal_conv1d(weight, Some(bias))?.glu(),
        }
    }
}

/// The parameters of a kernel of the full form.
fn diagonal(config: S4dConfig, kernel: &VarBuilder) -> Result<DiagonalKernel> {
    let S4dConfig { width, state, copies, .. } = config;
    if state == 0 || !state.is_multiple_of(2) || copies == 0 || !width.is_multiple_of(copies) {
        bail!("S4D: state {state} must be even, {copies} sets of modes must divide {width} channels");
    }
    let (n, kernels) = (state / 2, if config.bidirectional { 2 } else { 1 });
    // found only where there are parameters to fill: a builder that only counts asks for none
    let modes = LazyCell::new(|| initial_modes(config.modes, state));
    let inverse = move |step: f64| match config.transform {
        StepTransform::Exp => step.ln(),
        StepTransform::Softplus => step.max(1e-4).exp_m1().ln(),
    };
    let filled = |name: &str, shape: &[usize], values: &dyn Fn() -> Vec<f64>| {
        init::computed(kernel, shape, name, candle_nn::init::ZERO, |_| values().repeat(copies))
    };
    Ok(DiagonalKernel {
        step: init::computed(kernel, (width, 1), "inv_dt", log_uniform(config.steps), |u| {
            u.into_iter().map(|u| inverse(u.exp())).collect()
        })?,
        a_real: filled("A_real", &[copies, n], &|| modes.0.iter().map(|r| (-r).ln()).collect())?,
        // stored positive, and at least 1e-4 as in S4's code
        a_imag: filled("A_imag", &[copies, n], &|| modes.1.iter().map(|v| v.max(1e-4)).collect())?,
        b: Some(filled("B", &[1, copies, n, 2], &|| modes.2.iter().flat_map(|b| [*b, 0.0]).collect())?),
        c: kernel.get_with_hints((kernels, width, n, 2), "C", complex_normal())?,
        transform: config.transform,
        conjugate: true,
        discretisation: config.discretisation,
        rate: 1.0,
    })
}

/// log(step) of steps between two bounds.
fn log_uniform((least, most): (f64, f64)) -> Init {
    Init::Uniform { lo: least.ln(), up: most.ln() }
}

/// Real and imaginary parts of variance 1/2 each.
fn complex_normal() -> Init {
    Init::Randn { mean: 0.0, stdev: 0.5f64.sqrt() }
}

/// Real parts, negated imaginary parts and B of the N / 2 modes of a state of size N.
pub fn initial_modes(modes: Modes, state: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let n = state / 2;
    let size = state as f64;
    let by_index = |f: &dyn Fn(f64) -> f64| (0..n).map(|i| f(i as f64)).collect::<Vec<f64>>();
    let constant = |value: f64| vec![value; n];
    match modes {
        Modes::Lin => (constant(-0.5), by_index(&|i| PI * i), constant(1.0)),
        Modes::Inv => {
            (constant(-0.5), by_index(&|i| size / PI * (size / (2.0 * i + 1.0) - 1.0)), constant(1.0))
        }
        Modes::Legs => {
            let part = NormalPart::new(state);
            let (_, b) = crate::hippo::legs(state);
            let real = part.eigenvalues[..n].iter().map(|l| l.re).collect();
            let imaginary = part.eigenvalues[..n].iter().map(|l| -l.im).collect();
            (real, imaginary, part.project(&b)[..n].iter().map(|b| b.re).collect())
        }
        Modes::Real => (by_index(&|i| -(i + 1.0)), constant(0.0), constant(1.0)),
    }
}
