//! One S4D layer without its output projection (Gu et al. 2022): the kernel of a diagonal state-space model, a long
//! convolution, and the skip connection.

use std::collections::HashMap;

use candle_core::{Result, Tensor, Var};
use candle_nn::{Init, VarBuilder};
use replica_nn::ops::{DiagonalKernel, Discretisation, StepTransform};
use replica_nn::{Tape, Value};
use serde::Serialize;

use crate::product::Product;
use crate::workload::{Model, Workload, draw_normal, take};

/// The sizes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct S4d {
    channels: usize,
    /// Pairs of conjugate modes: half of the state's size.
    modes: usize,
    length: usize,
    batch_size: usize,
}

impl S4d {
    pub(crate) const LONG: Self = Self { channels: 128, modes: 32, length: 1024, batch_size: 16 };
}

impl Workload for S4d {
    fn name(&self) -> &'static str {
        "s4d"
    }

    fn about(&self) -> String {
        let Self { channels, modes, length, batch_size } = self;
        let state = 2 * modes;
        format!("S4D layer, state {state}, width {channels}, L {length}, batch {batch_size}")
    }

    fn twin(&self) -> &'static str {
        "s4d.py"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn data(&self) -> Result<HashMap<String, Tensor>> {
        let shape = (self.batch_size, self.channels, self.length);
        let u = draw_normal("s4d input", shape)?;
        // partly the input itself, so that the loss is no sum that cancels
        let cotangent = (&u + draw_normal("s4d cotangent", shape)?)?;
        Ok(HashMap::from([("u".to_owned(), u), ("cotangent".to_owned(), cotangent)]))
    }

    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>> {
        let (h, n) = (self.channels, self.modes);
        // the authors' ranges; they space the frequencies evenly where we draw them
        let steps = Init::Uniform { lo: 1e-3f64.ln(), up: 1e-1f64.ln() };
        let frequencies = Init::Uniform { lo: 0.0, up: std::f64::consts::PI * n as f64 };
        let normal = Init::Randn { mean: 0.0, stdev: 0.5f64.sqrt() };
        Ok(Box::new(Layer {
            kernel: DiagonalKernel {
                step: vb.get_with_hints(h, "log_dt", steps)?,
                a_real: vb.get_with_hints((h, n), "log_A_real", Init::Const(0.5f64.ln()))?,
                a_imag: vb.get_with_hints((h, n), "A_imag", frequencies)?,
                b: None,
                c: vb.get_with_hints((h, n, 2), "C", normal)?,
                transform: StepTransform::Exp,
                conjugate: false,
                discretisation: Discretisation::ZeroOrderHold,
                rate: 1.0,
            },
            skip: vb.get_with_hints(h, "D", Init::Const(1.0))?,
            u: Var::from_tensor(&take(data, "u")?)?,
            cotangent: take(data, "cotangent")?,
            length: self.length,
        }))
    }

    fn tokens(&self) -> usize {
        self.batch_size * self.length
    }

    /// Forward: the kernel as a sum of complex products, real Fourier transforms of twice the length by
    /// 2.5 n log2 n, and products of spectra; three times that with the backward pass.
    fn flops(&self) -> f64 {
        let (h, l, b) = (self.channels as f64, self.length as f64, self.batch_size as f64);
        let transform = 2.5 * 2.0 * l * (2.0 * l).log2();
        3.0 * h * (8.0 * l * self.modes as f64 + (2.0 * b + 1.0) * transform + 6.0 * b * l)
    }

    fn dominating(&self) -> Option<Product> {
        None
    }
}

struct Layer {
    kernel: DiagonalKernel,
    skip: Tensor,
    /// `[batch, channels, length]`; it gets a gradient, as inside a model, but no update.
    u: Var,
    cotangent: Tensor,
    length: usize,
}

impl Model for Layer {
    fn forward(&self, tape: &Tape) -> Result<Value> {
        let u = tape.variable(self.u.as_tensor())?;
        u.causal_convolution(&self.kernel.taps(self.length, &u)?, &self.skip)
    }

    fn cotangent(&self) -> Option<&Tensor> {
        Some(&self.cotangent)
    }
}
