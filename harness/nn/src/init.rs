//! PyTorch's default initialisers as candle [`Init`]s. candle's own `linear` draws from Kaiming's normal
//! distribution, 2.45 times wider.

use candle_nn::Init;

/// `nn.Linear`, weight and bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
pub fn linear(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// `nn.Embedding`: N(0, 1).
pub fn embedding() -> Init {
    Init::Randn { mean: 0.0, stdev: 1.0 }
}
