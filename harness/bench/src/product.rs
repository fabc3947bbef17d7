//! How fast the engine's matrix products are on this machine: what a training step can be measured against.

use std::time::Instant;

use replica_nn::ops::{matmul_nn, matmul_nt, matmul_tn};
use serde::{Deserialize, Serialize};

/// The three products of a linear layer's training step: `[rows, inputs]` to `[rows, outputs]`, the gradient by
/// the input, and the gradient by the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// Rows of the input: tokens.
    pub rows: usize,
    /// Width of the result.
    pub outputs: usize,
    /// Width of the input.
    pub inputs: usize,
}

/// Large enough for the fastest rate that the products reach, small enough for a fraction of a second.
pub const LARGE: Product = Product { rows: 1536, outputs: 1536, inputs: 1536 };

/// A product with its memory, which is touched before anything is timed.
pub struct Rate {
    product: Product,
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

impl Product {
    /// Operations of the three products together.
    pub fn flops(self) -> f64 {
        6.0 * (self.rows * self.outputs * self.inputs) as f64
    }

    /// Memory for measuring it.
    pub fn rate(self) -> Rate {
        let Self { rows, outputs, inputs } = self;
        let numbers = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        Rate {
            product: self,
            x: numbers(rows * inputs),
            w: numbers(outputs * inputs),
            y: vec![0.0; rows * outputs],
            dx: vec![0.0; rows * inputs],
            dw: vec![0.0; outputs * inputs],
        }
    }
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} x {}", self.rows, self.outputs, self.inputs)
    }
}

impl Rate {
    /// Operations a second of the three products, one after the other, with the threads of the pool that
    /// this is called in.
    pub fn measure(&mut self) -> f64 {
        let Product { rows, outputs, inputs } = self.product;
        let size = (rows, outputs, inputs);
        let started = Instant::now();
        matmul_nt(&mut self.y, false, &self.x, &self.w, size);
        matmul_nn(&mut self.dx, false, &self.y, &self.w, size);
        matmul_tn(&mut self.dw, false, &self.y, &self.x, size);
        self.product.flops() / started.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_products_are_a_layers() {
        let mut rate = Product { rows: 3, outputs: 2, inputs: 4 }.rate();
        assert!(rate.measure() > 0.0);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert!((rate.y[3] - dot(&rate.x[4..8], &rate.w[4..8])).abs() < 1e-5, "y[1, 1]");
        let dx = rate.y[2] * rate.w[0] + rate.y[3] * rate.w[4];
        assert!((rate.dx[4] - dx).abs() < 1e-5, "dx[1, 0]");
        let dw = (0..3).map(|r| rate.y[2 * r + 1] * rate.x[4 * r]).sum::<f32>();
        assert!((rate.dw[4] - dw).abs() < 1e-5, "dw[1, 0]");
    }

    #[test]
    fn operations_are_counted_by_hand() {
        assert_eq!(Product { rows: 2, outputs: 3, inputs: 5 }.flops(), 180.0);
    }
}
