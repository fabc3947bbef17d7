//! The selective scan of a Mamba block (Gu and Dao 2023), against the loop over time that its authors give as the
//! reference.

use std::collections::HashMap;

use candle_core::{Result, Tensor, Var};
use candle_nn::{Init, VarBuilder};
use replica_nn::ops::SelectiveScan;
use replica_nn::{Tape, Value};
use serde::Serialize;

use crate::product::Product;
use crate::workload::{Model, Workload, draw_normal, take};

/// The sizes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Selective {
    channels: usize,
    modes: usize,
    length: usize,
    batch_size: usize,
}

impl Selective {
    pub(crate) const LONG: Self = Self { channels: 256, modes: 16, length: 1024, batch_size: 4 };
}

impl Workload for Selective {
    fn name(&self) -> &'static str {
        "selective-scan"
    }

    fn about(&self) -> String {
        let Self { channels, modes, length, batch_size } = self;
        format!("selective scan, state {modes}, width {channels}, L {length}, batch {batch_size}")
    }

    fn twin(&self) -> &'static str {
        "selective_scan.py"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn data(&self) -> Result<HashMap<String, Tensor>> {
        let (b, l, d, n) = (self.batch_size, self.length, self.channels, self.modes);
        let draw = |name: &str, width: usize| draw_normal(&format!("scan {name}"), (b, l, width));
        let u = draw("u", d)?;
        // partly the input itself, so that the loss is no sum that cancels
        let cotangent = (&u + draw("cotangent", d)?)?;
        Ok(HashMap::from([
            ("u".to_owned(), u),
            ("delta".to_owned(), draw("delta", d)?),
            ("B".to_owned(), draw("B", n)?),
            ("C".to_owned(), draw("C", n)?),
            ("cotangent".to_owned(), cotangent),
        ]))
    }

    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>> {
        let (d, n) = (self.channels, self.modes);
        // decays as the authors', -1 to -n, drawn; steps around their 0.001 to 0.1
        let decays = Init::Uniform { lo: 0.0, up: (n as f64).ln() };
        let steps = Init::Uniform { lo: 1e-3f64.ln(), up: 1e-1f64.ln() };
        let input = |name: &str| Var::from_tensor(&take(data, name)?);
        Ok(Box::new(Scan {
            weights: SelectiveScan {
                a_log: vb.get_with_hints((d, n), "A_log", decays)?,
                skip: Some(vb.get_with_hints(d, "D", Init::Const(1.0))?),
                delta_bias: Some(vb.get_with_hints(d, "delta_bias", steps)?),
                softplus: true,
            },
            inputs: [input("u")?, input("delta")?, input("B")?, input("C")?],
            cotangent: take(data, "cotangent")?,
        }))
    }

    fn tokens(&self) -> usize {
        self.batch_size * self.length
    }

    /// Forward, for every channel, mode and step: the decay's product and exponential (as one operation each), the
    /// state's update, the input's product, and the output's sum; three times that with the backward pass.
    fn flops(&self) -> f64 {
        3.0 * 7.0 * (self.tokens() * self.channels * self.modes) as f64
    }

    fn dominating(&self) -> Option<Product> {
        None
    }
}

struct Scan {
    weights: SelectiveScan,
    /// u and delta `[batch, length, channels]`, B and C `[batch, length, modes]`; they get gradients, as inside a
    /// model, but no update.
    inputs: [Var; 4],
    cotangent: Tensor,
}

impl Model for Scan {
    fn forward(&self, tape: &Tape) -> Result<Value> {
        let value = |input: &Var| tape.variable(input.as_tensor());
        let [u, delta, b, c] = &self.inputs;
        value(u)?.selective_scan(&value(delta)?, &value(b)?, &value(c)?, &self.weights)
    }

    fn cotangent(&self) -> Option<&Tensor> {
        Some(&self.cotangent)
    }
}
