//! Layers with parameters, named and initialised as in PyTorch.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops::{Activation, Moments};
use crate::tape::Value;

/// `y = x W^T + b`.
#[derive(Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Parameters `weight` `[d_out, d_in]` and, if wanted, `bias` `[d_out]`, both drawn from `init(d_in)`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(
        d_in: usize,
        d_out: usize,
        bias: bool,
        init: impl Fn(usize) -> Init,
        vb: VarBuilder,
    ) -> Result<Self> {
        Self::drawn(d_in, d_out, init(d_in), bias.then(|| init(d_in)), vb)
    }

    /// As [`Linear::new`], where weight and bias do not start alike.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn drawn(
        d_in: usize,
        d_out: usize,
        weight: Init,
        bias: Option<Init>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get_with_hints((d_out, d_in), "weight", weight)?;
        let bias = bias.map(|bias| vb.get_with_hints(d_out, "bias", bias)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `[.., d_in]` to `[.., d_out]`.
    ///
    /// # Errors
    /// The last dimension is not `d_in`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// `f(x W^T + b)`.
    ///
    /// # Errors
    /// The last dimension is not `d_in`.
    pub fn activated(&self, x: &Value, activation: Activation) -> Result<Value> {
        x.linear_activation(&self.weight, self.bias.as_ref(), activation)
    }

    /// Mean cross-entropy of this layer's output as logits, which are never kept whole.
    ///
    /// # Errors
    /// See [`Value::linear_cross_entropy`].
    pub fn cross_entropy(&self, x: &Value, labels: &Tensor) -> Result<Value> {
        x.linear_cross_entropy(&self.weight, self.bias.as_ref(), labels)
    }
}

/// Root-mean-square norm with a learned scale.
#[derive(Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Parameter `weight` `[width]`, initially 1.
    ///
    /// # Errors
    /// The builder has another shape under this name.
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(width, "weight", candle_nn::init::ONE)?, eps })
    }

    /// Normalises the last dimension.
    ///
    /// # Errors
    /// It is not `width`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        x.rms_norm(&self.weight, self.eps)
    }
}

/// Layer norm with learned scale and shift.
#[derive(Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Parameters `weight` and `bias` `[width]`, initially 1 and 0.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(width, "weight", candle_nn::init::ONE)?;
        let bias = vb.get_with_hints(width, "bias", candle_nn::init::ZERO)?;
        Ok(Self { weight, bias, eps })
    }

    /// Normalises the last dimension.
    ///
    /// # Errors
    /// It is not `width`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        x.layer_norm(&self.weight, &self.bias, self.eps)
    }
}

/// Batch norm with learned scale and shift, and statistics that follow the batches of training.
#[derive(Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: f64,
    momentum: f64,
    unbiased: bool,
}

impl BatchNorm {
    /// Parameters `weight` and `bias` `[width]`, initially 1 and 0, and statistics `running_mean` and `running_var`,
    /// which no optimiser trains. A batch replaces the share `momentum` of them; PyTorch corrects its variance for
    /// the number of samples (`unbiased`), flax does not.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(width: usize, eps: f64, momentum: f64, unbiased: bool, vb: VarBuilder) -> Result<Self> {
        let filled = |name: &str, value| vb.get_with_hints(width, name, value);
        Ok(Self {
            weight: filled("weight", candle_nn::init::ONE)?,
            bias: filled("bias", candle_nn::init::ZERO)?,
            mean: filled("running_mean", candle_nn::init::ZERO)?,
            variance: filled("running_var", candle_nn::init::ONE)?,
            eps,
            momentum,
            unbiased,
        })
    }

    /// Normalises the last dimension over all others: in training by the batch, whose statistics are taken in;
    /// otherwise by the running ones.
    ///
    /// # Errors
    /// It is not `width`.
    pub fn forward(&self, x: &Value, train: bool) -> Result<Value> {
        let running = Moments { mean: self.mean.clone(), variance: self.variance.clone(), count: 0 };
        if !train {
            return x.batch_norm(&running, false, &self.weight, &self.bias, self.eps);
        }
        let batch = x.column_moments()?;
        let n = batch.count as f64;
        let correction = if self.unbiased { n / (n - 1.0).max(1.0) } else { 1.0 };
        batch.mix_into(&running, self.momentum, correction)?;
        x.batch_norm(&batch, true, &self.weight, &self.bias, self.eps)
    }
}

macro_rules! impl_module {
    ($($layer:ty),*) => {$(
        /// Inference on plain tensors.
        impl candle_nn::Module for $layer {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                Ok(<$layer>::forward(self, &Value::from(xs.contiguous()?))?.tensor().clone())
            }
        }
    )*};
}
impl_module!(Linear, RmsNorm, LayerNorm);
