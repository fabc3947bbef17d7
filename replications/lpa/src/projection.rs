//! The low-dimensional module (paper section 2.1 of the card; the authors' `nn.Sequential(Linear, Linear)`).

use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use replica_nn::ops::Activation;
use replica_nn::{Linear, Value, init};
use serde::{Deserialize, Serialize};

/// A projection: one full weight, or two through a bottleneck of width r with nothing between them.
#[derive(Clone)]
pub enum Projection {
    /// `y = x W^T (+ b)`.
    Full(Linear),
    /// `h = x A^T (+ a)`, `y = h B^T (+ b)`; A is `[r, d_in]`, B `[d_out, r]`.
    Low(Linear, Linear),
}

/// Where a projection has its bias.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// Nowhere (setting 2).
    None,
    /// It reads the residual stream: a low-dimensional pair has its bias on the first factor, of size r.
    Reads,
    /// It writes to the residual stream: a pair has its bias on the last factor, of size d_out.
    Writes,
}

/// How a low-dimensional pair starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairInit {
    /// PyTorch's default for both factors, as the authors have it. The product then starts with output
    /// variance 1/9 where a full layer has 1/3.
    #[default]
    Torch,
    /// B times sqrt(3), so that the product starts with a full layer's variance (our control).
    Matched,
}

impl Projection {
    /// A full layer, named `weight` and `bias`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn full(d_in: usize, d_out: usize, bias: Bias, vb: VarBuilder) -> Result<Self> {
        Linear::new(d_in, d_out, bias != Bias::None, init::linear, vb).map(Self::Full)
    }

    /// A pair of rank `r`, whose factors are built under the given names.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn low(
        (d_in, rank, d_out): (usize, usize, usize),
        bias: Bias,
        pair_init: PairInit,
        first: VarBuilder,
        last: VarBuilder,
    ) -> Result<Self> {
        let gain = match pair_init {
            PairInit::Torch => 1.0,
            PairInit::Matched => 3f64.sqrt(),
        };
        let scaled = |fan_in: usize| match init::linear(fan_in) {
            Init::Uniform { lo, up } => Init::Uniform { lo: gain * lo, up: gain * up },
            other => other,
        };
        let a = Linear::new(d_in, rank, bias == Bias::Reads, init::linear, first)?;
        let b = Linear::new(rank, d_out, bias == Bias::Writes, scaled, last)?;
        Ok(Self::Low(a, b))
    }

    /// Full without a rank, else a pair named `0` and `1`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(
        (d_in, d_out): (usize, usize),
        rank: Option<usize>,
        bias: Bias,
        pair_init: PairInit,
        vb: VarBuilder,
    ) -> Result<Self> {
        match rank {
            None => Self::full(d_in, d_out, bias, vb),
            Some(r) => Self::low((d_in, r, d_out), bias, pair_init, vb.pp("0"), vb.pp("1")),
        }
    }

    /// `[.., d_in]` to `[.., d_out]`.
    ///
    /// # Errors
    /// The last dimension is not `d_in`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        match self {
            Self::Full(w) => w.forward(x),
            Self::Low(a, b) => b.forward(&a.forward(x)?),
        }
    }

    /// `f` of that, elementwise.
    ///
    /// # Errors
    /// As [`Projection::forward`].
    pub fn activated(&self, x: &Value, f: Activation) -> Result<Value> {
        match self {
            Self::Full(w) => w.activated(x, f),
            Self::Low(a, b) => b.activated(&a.forward(x)?, f),
        }
    }
}
