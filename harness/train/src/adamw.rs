//! AdamW (Loshchilov and Hutter 2019) as in PyTorch, with the clipping of the global gradient norm in the
//! same pass over the parameters.

use std::collections::HashMap;

use candle_core::{Result, Tensor, Var, bail};
use rayon::prelude::*;
use replica_nn::{Gradients, Parameters, slice, slice_mut};

/// Elements a task works on; fixes the order of the norm's partial sums.
const CHUNK: usize = 16 * 1024;

/// The optimiser and its state: two moments of every parameter.
pub struct AdamW {
    parameters: Vec<(String, Var)>,
    /// First and second moments in the order of `parameters`.
    moments: Vec<(Vec<f32>, Vec<f32>)>,
    /// Steps taken.
    step: u64,
    options: Options,
}

/// What stays the same over a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, after bias correction.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm.
    pub clip_norm: f64,
}

/// What an optimiser step saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The parameters were updated; the norm is the one before clipping.
    Taken {
        /// Global gradient norm.
        gradient_norm: f32,
    },
    /// The gradient is not finite; nothing was changed.
    NonFinite {
        /// The first parameter, by name, whose gradient is not finite.
        parameter: String,
        /// Global gradient norm.
        gradient_norm: f32,
    },
}

impl AdamW {
    /// Zero moments for all parameters.
    pub fn new(parameters: &Parameters, options: Options) -> Self {
        let parameters = parameters.all();
        let zeros = |(_, var): &(String, Var)| (vec![0.0; var.elem_count()], vec![0.0; var.elem_count()]);
        Self { moments: parameters.iter().map(zeros).collect(), parameters, step: 0, options }
    }

    /// One step: norm, clipping, update. The gradients are cleared.
    ///
    /// # Errors
    /// A parameter has no gradient: it is cut off from the loss.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<Step> {
        let gradient = |(name, var): &(String, Var)| match gradients.tensor(var) {
            Some(g) => Ok(g),
            None => bail!("parameter `{name}` got no gradient: the loss does not depend on it"),
        };
        let grads: Vec<Tensor> = self.parameters.iter().map(gradient).collect::<Result<_>>()?;
        let squares: Vec<f64> = grads.iter().map(sum_of_squares).collect::<Result<_>>()?;
        let norm = squares.iter().sum::<f64>().sqrt();
        let gradient_norm = norm as f32;
        if !gradient_norm.is_finite() {
            let bad = squares.iter().position(|s| !s.is_finite()).unwrap_or_default();
            return Ok(Step::NonFinite { parameter: self.parameters[bad].0.clone(), gradient_norm });
        }
        self.step += 1;
        // torch.nn.utils.clip_grad_norm_
        let clip = (self.options.clip_norm / (norm + 1e-6)).min(1.0);
        let update = Update::new(self.options, learning_rate, self.step, clip);
        for (((_, var), grad), (m, v)) in self.parameters.iter().zip(&grads).zip(&mut self.moments) {
            slice::<f32, _>(grad, |g| slice_mut::<f32>(var, |p| update.apply(p, g, m, v)))??;
        }
        gradients.clear();
        Ok(Step::Taken { gradient_norm })
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The state, named `m.<parameter>` and `v.<parameter>`.
    ///
    /// # Errors
    /// A device failed.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::with_capacity(2 * self.parameters.len());
        for ((name, var), (m, v)) in self.parameters.iter().zip(&self.moments) {
            for (prefix, data) in [("m", m), ("v", v)] {
                let data = Tensor::from_slice(data, var.shape(), &candle_core::Device::Cpu)?;
                state.push((format!("{prefix}.{name}"), data));
            }
        }
        Ok(state)
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// A tensor is missing or of another size.
    pub fn restore(&mut self, step: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        for ((name, var), (m, v)) in self.parameters.iter().zip(&mut self.moments) {
            for (prefix, data) in [("m", m), ("v", v)] {
                match state.get(&format!("{prefix}.{name}")) {
                    Some(t) if t.shape() == var.shape() => *data = t.flatten_all()?.to_vec1()?,
                    _ => bail!("the optimiser state of `{name}` is missing or of another shape"),
                }
            }
        }
        self.step = step;
        Ok(())
    }
}

fn sum_of_squares(gradient: &Tensor) -> Result<f64> {
    slice::<f32, _>(gradient, |g| {
        // eight independent sums a chunk, in double precision, combined in a fixed order
        let part = |chunk: &[f32]| {
            let mut lanes = [0f64; 8];
            for block in chunk.chunks(8) {
                block.iter().zip(&mut lanes).for_each(|(v, lane)| *lane += f64::from(*v) * f64::from(*v));
            }
            lanes.iter().sum::<f64>()
        };
        let parts: Vec<f64> = g.par_chunks(CHUNK).map(part).collect();
        parts.iter().sum()
    })
}

/// The constants of one step.
struct Update {
    beta1: f32,
    beta2: f32,
    /// 1 / sqrt(1 - beta2^t)
    inverse_root_correction: f32,
    /// learning_rate / (1 - beta1^t)
    step_size: f32,
    eps: f32,
    decay: f32,
    clip: f32,
}

impl Update {
    fn new(options: Options, learning_rate: f64, step: u64, clip: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            beta1: options.beta1 as f32,
            beta2: options.beta2 as f32,
            inverse_root_correction: (1.0 / correction(options.beta2).sqrt()) as f32,
            step_size: (learning_rate / correction(options.beta1)) as f32,
            eps: options.eps as f32,
            decay: (1.0 - learning_rate * options.weight_decay) as f32,
            clip: clip as f32,
        }
    }

    fn apply(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        p.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(moments).for_each(|((p, g), (m, v))| {
            replica_nn::vectorised(
                #[inline(always)]
                || {
                    for i in 0..p.len() {
                        let g = g[i] * self.clip;
                        m[i] = self.beta1 * m[i] + (1.0 - self.beta1) * g;
                        v[i] = self.beta2 * v[i] + (1.0 - self.beta2) * g * g;
                        let denominator = v[i].sqrt() * self.inverse_root_correction + self.eps;
                        p[i] = p[i] * self.decay - self.step_size * m[i] / denominator;
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use replica_nn::Tape;

    fn parameters() -> Parameters {
        let w = Tensor::new(&[[1f32, -2.0]], &Device::Cpu).unwrap();
        Parameters::from_tensors(HashMap::from([("w".to_owned(), w)]), DType::F32, &Device::Cpu).unwrap()
    }

    fn gradients(parameters: &Parameters, x: [f32; 2]) -> Gradients {
        let gradients = Gradients::default();
        let tape = Tape::new(&gradients);
        let x = tape.constant(Tensor::new(&[x], &Device::Cpu).unwrap());
        let loss = x.linear(&parameters.get("w").unwrap(), None).unwrap().sum().unwrap();
        tape.backward(&loss).unwrap();
        gradients
    }

    fn options() -> Options {
        Options { beta1: 0.9, beta2: 0.95, eps: 1e-5, weight_decay: 0.1, clip_norm: 1.0 }
    }

    /// In the first step m / sqrt(v) is the gradient's sign, so the update is known in closed form.
    #[test]
    fn first_step_in_closed_form() {
        let parameters = parameters();
        let mut optimiser = AdamW::new(&parameters, options());
        let taken = optimiser.step(&gradients(&parameters, [3.0, -4.0]), 0.01).unwrap();
        assert_eq!(taken, Step::Taken { gradient_norm: 5.0 });
        let clip = 1.0 / 5.0;
        let w: Vec<f32> = parameters.get("w").unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (w, (old, g)) in w.iter().zip([(1.0, 3.0), (-2.0, -4.0)]) {
            let g: f64 = g * clip;
            let expected = old * (1.0 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-5);
            assert!((f64::from(*w) - expected).abs() < 1e-6, "{w} against {expected}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing_and_is_named() {
        let parameters = parameters();
        let mut optimiser = AdamW::new(&parameters, options());
        let step = optimiser.step(&gradients(&parameters, [f32::NAN, 0.0]), 0.01).unwrap();
        assert!(matches!(step, Step::NonFinite { parameter, .. } if parameter == "w"));
        assert_eq!(optimiser.steps(), 0);
        let w = parameters.get("w").unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(w, [[1.0, -2.0]]);
    }

    #[test]
    fn a_parameter_without_gradient_is_an_error() {
        let parameters = parameters();
        let error = AdamW::new(&parameters, options()).step(&Gradients::default(), 0.01).unwrap_err();
        assert!(error.to_string().contains("`w` got no gradient"), "{error}");
    }
}
