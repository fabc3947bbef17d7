//! AdamW (Loshchilov and Hutter 2019) as in PyTorch, with the clipping of the global gradient norm in the
//! same pass over the parameters.
//!
//! On a GPU a step is queued and nothing waits for it: what it saw is asked for later, for several steps at once.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use replica_nn::{Gradients, Parameter, Parameters, slice, slice_mut};

/// Elements a task works on; fixes the order of the norm's partial sums.
const CHUNK: usize = 16 * 1024;

/// Steps on a GPU whose outcome is read at once: few enough that a loss that is not finite is seen soon, enough
/// that the processor stays ahead of the device (our choice).
#[cfg(feature = "cuda")]
const WINDOW: usize = 16;

/// The optimiser and its state: two moments of every parameter.
pub struct AdamW {
    parameters: Vec<Parameter>,
    /// Which group each of them is in; groups begin with the one of all that no other names.
    membership: Vec<usize>,
    state: State,
    /// Steps taken.
    step: u64,
    options: Options,
}

enum State {
    Host {
        /// First and second moments in the order of the parameters.
        moments: Vec<(Vec<f32>, Vec<f32>)>,
        unread: Vec<Outcome>,
    },
    #[cfg(feature = "cuda")]
    Device(replica_nn::adamw::DeviceAdamW),
}

/// What stays the same over a run.
#[derive(Clone, Debug)]
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
    /// Parameters that are trained in another way; the first group that names one counts.
    pub groups: Vec<Group>,
}

/// Parameters with a learning rate or a decay of their own.
#[derive(Clone, Debug)]
pub struct Group {
    /// Parts between the dots of their names, e.g. `bias`.
    pub parameters: Vec<String>,
    /// Their learning rate as a multiple of the others'.
    pub relative_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Options {
    /// The group of a parameter: 0 for what no group names, else a number counted from 1.
    fn group_of(&self, name: &str) -> usize {
        let named = |group: &Group| name.split('.').any(|part| group.parameters.iter().any(|p| p == part));
        self.groups.iter().position(named).map_or(0, |place| place + 1)
    }

    /// Relative learning rate and decay of every group, beginning with the one of all others.
    fn rates(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let others = std::iter::once((1.0, self.weight_decay));
        others.chain(self.groups.iter().map(|group| (group.relative_rate, group.weight_decay)))
    }
}

/// What an optimiser step saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The loss.
    pub loss: f32,
    /// Global gradient norm, before clipping. If it is not finite, the step changed nothing.
    pub gradient_norm: f32,
    /// The first parameter, by name, whose gradient is not finite.
    pub not_finite: Option<String>,
}

impl AdamW {
    /// Zero moments for all parameters, where they are.
    ///
    /// # Errors
    /// A device has no memory for them.
    pub fn new(parameters: &Parameters, options: Options) -> Result<Self> {
        let all = parameters.trained();
        let state = match parameters.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                let groups = options.groups.len() + 1;
                State::Device(replica_nn::adamw::DeviceAdamW::new(all.clone(), groups, WINDOW)?)
            }
            _ => {
                let zeros =
                    |p: &Parameter| (vec![0.0; p.master.elem_count()], vec![0.0; p.master.elem_count()]);
                State::Host { moments: all.iter().map(zeros).collect(), unread: Vec::new() }
            }
        };
        let membership = all.iter().map(|p| options.group_of(&p.name)).collect();
        Ok(Self { parameters: all, membership, state, step: 0, options })
    }

    /// One step: norm, clipping, update. The gradients are cleared. `loss` is what they are the gradients of.
    ///
    /// # Errors
    /// A parameter has no gradient: it is cut off from the loss. Or [`AdamW::due`] was not heeded.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64, loss: &Tensor) -> Result<()> {
        let gradient = |p: &Parameter| match gradients.tensor(p.variable.as_tensor()) {
            Some(g) => Ok(g),
            None => bail!("parameter `{}` got no gradient: the loss does not depend on it", p.name),
        };
        let grads: Vec<Tensor> = self.parameters.iter().map(gradient).collect::<Result<_>>()?;
        gradients.clear();
        match &mut self.state {
            State::Host { moments, unread } => {
                let squares: Vec<f64> = grads.iter().map(sum_of_squares).collect::<Result<_>>()?;
                let norm = squares.iter().sum::<f64>().sqrt();
                let mut outcome =
                    Outcome { loss: loss.to_scalar()?, gradient_norm: norm as f32, not_finite: None };
                if outcome.gradient_norm.is_finite() {
                    self.step += 1;
                    // torch.nn.utils.clip_grad_norm_
                    let clip = (self.options.clip_norm / (norm + 1e-6)).min(1.0);
                    let updates = Update::of_groups(&self.options, learning_rate, self.step, clip);
                    let members = self.parameters.iter().zip(&self.membership);
                    for (((p, group), grad), (m, v)) in members.zip(&grads).zip(moments) {
                        let update = &updates[*group];
                        slice::<f32, _>(grad, |g| {
                            slice_mut::<f32>(&p.master, |p| update.apply(p, g, m, v))
                        })??;
                    }
                } else {
                    let bad = squares.iter().position(|s| !s.is_finite()).unwrap_or_default();
                    outcome.not_finite = Some(self.parameters[bad].name.clone());
                }
                unread.push(outcome);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            State::Device(device) => {
                self.step += 1;
                let updates = Update::of_groups(&self.options, learning_rate, self.step, 1.0);
                let rates = |update: &Update| replica_nn::adamw::Rates {
                    step_size: update.step_size,
                    inverse_root_correction: update.inverse_root_correction,
                    decay: update.decay,
                };
                let rates: Vec<_> = updates.iter().map(rates).collect();
                let constants = replica_nn::adamw::Constants {
                    beta1: self.options.beta1 as f32,
                    beta2: self.options.beta2 as f32,
                    eps: self.options.eps as f32,
                    clip_norm: self.options.clip_norm as f32,
                };
                device.step(&grads, loss, &self.membership, &rates, constants)
            }
        }
    }

    /// Whether [`AdamW::outcomes`] should be asked before the next step.
    pub fn due(&self) -> bool {
        match &self.state {
            State::Host { unread, .. } => !unread.is_empty(),
            #[cfg(feature = "cuda")]
            State::Device(device) => device.unread() == WINDOW,
        }
    }

    /// What the steps since the last call saw, in their order; waits for a GPU.
    ///
    /// # Errors
    /// A device failed.
    pub fn outcomes(&mut self) -> Result<Vec<Outcome>> {
        match &mut self.state {
            State::Host { unread, .. } => Ok(std::mem::take(unread)),
            #[cfg(feature = "cuda")]
            State::Device(device) => {
                let named = |o: replica_nn::adamw::Outcome| Outcome {
                    loss: o.loss,
                    gradient_norm: o.gradient_norm,
                    not_finite: o.not_finite.map(|place| self.parameters[place].name.clone()),
                };
                Ok(device.outcomes()?.into_iter().map(named).collect())
            }
        }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The state in host memory, named `m.<parameter>` and `v.<parameter>`.
    ///
    /// # Errors
    /// A device failed.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let moments: Vec<(Tensor, Tensor)> = match &self.state {
            State::Host { moments, .. } => {
                let tensor =
                    |data: &[f32], p: &Parameter| Tensor::from_slice(data, p.master.shape(), &Device::Cpu);
                let both =
                    |(p, (m, v)): (&Parameter, &(Vec<f32>, Vec<f32>))| Ok((tensor(m, p)?, tensor(v, p)?));
                self.parameters.iter().zip(moments).map(both).collect::<Result<_>>()?
            }
            #[cfg(feature = "cuda")]
            State::Device(device) => device.moments()?,
        };
        let named = |(p, (m, v)): (&Parameter, (Tensor, Tensor))| {
            [(format!("m.{}", p.name), m), (format!("v.{}", p.name), v)]
        };
        Ok(self.parameters.iter().zip(moments).flat_map(named).collect())
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// A tensor is missing or of another size.
    pub fn restore(&mut self, step: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        for (place, parameter) in self.parameters.iter().enumerate() {
            let moment = |prefix: &str| match state.get(&format!("{prefix}.{}", parameter.name)) {
                Some(t) if t.shape() == parameter.master.shape() => Ok(t),
                _ => bail!("the optimiser state of `{}` is missing or of another shape", parameter.name),
            };
            let (first, second) = (moment("m")?, moment("v")?);
            match &mut self.state {
                State::Host { moments, .. } => {
                    let data = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
                    moments[place] = (data(first)?, data(second)?);
                }
                #[cfg(feature = "cuda")]
                State::Device(device) => device.restore(place, first, second)?,
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
    /// Of every group.
    fn of_groups(options: &Options, learning_rate: f64, step: u64, clip: f64) -> Vec<Self> {
        let new = |(relative_rate, weight_decay): (f64, f64)| {
            Self::new(options, learning_rate * relative_rate, weight_decay, step, clip)
        };
        options.rates().map(new).collect()
    }

    fn new(options: &Options, learning_rate: f64, weight_decay: f64, step: u64, clip: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            beta1: options.beta1 as f32,
            beta2: options.beta2 as f32,
            inverse_root_correction: (1.0 / correction(options.beta2).sqrt()) as f32,
            step_size: (learning_rate / correction(options.beta1)) as f32,
            eps: options.eps as f32,
            decay: (1.0 - learning_rate * weight_decay) as f32,
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
    use candle_core::DType;
    use replica_nn::Tape;

    fn parameters() -> Parameters {
        let w = Tensor::new(&[[1f32, -2.0]], &Device::Cpu).unwrap();
        Parameters::from_tensors(HashMap::from([("w".to_owned(), w)]), DType::F32, &Device::Cpu).unwrap()
    }

    /// A step on the loss w . x.
    fn step(optimiser: &mut AdamW, parameters: &Parameters, x: [f32; 2]) -> Outcome {
        let gradients = Gradients::default();
        let tape = Tape::new(&gradients);
        let x = tape.constant(Tensor::new(&[x], &Device::Cpu).unwrap());
        let loss = x.linear(&parameters.get("w").unwrap(), None).unwrap().sum().unwrap();
        tape.backward(&loss).unwrap();
        assert!(!optimiser.due());
        optimiser.step(&gradients, 0.01, loss.tensor()).unwrap();
        assert!(optimiser.due());
        optimiser.outcomes().unwrap().remove(0)
    }

    fn options() -> Options {
        Options { beta1: 0.9, beta2: 0.95, eps: 1e-5, weight_decay: 0.1, clip_norm: 1.0, groups: vec![] }
    }

    /// The first step moves every weight by its group's learning rate and decay.
    #[test]
    fn a_group_has_its_own_rate_and_decay() {
        let parameters = parameters();
        let group = Group { parameters: vec!["w".into()], relative_rate: 0.5, weight_decay: 0.0 };
        let options = Options { groups: vec![group], ..options() };
        assert_eq!(["w", "layer.w.part", "layer.weight"].map(|n| options.group_of(n)), [1, 1, 0]);
        let mut optimiser = AdamW::new(&parameters, options).unwrap();
        step(&mut optimiser, &parameters, [3.0, -4.0]);
        let w: Vec<f32> = parameters.get("w").unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!((w[0] - 0.995).abs() < 1e-6 && (w[1] + 1.995).abs() < 1e-6, "{w:?}");
    }

    /// In the first step m / sqrt(v) is the gradient's sign, so the update is known in closed form.
    #[test]
    fn first_step_in_closed_form() {
        let parameters = parameters();
        let mut optimiser = AdamW::new(&parameters, options()).unwrap();
        let outcome = step(&mut optimiser, &parameters, [3.0, -4.0]);
        assert_eq!(outcome, Outcome { loss: 11.0, gradient_norm: 5.0, not_finite: None });
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
        let mut optimiser = AdamW::new(&parameters, options()).unwrap();
        let outcome = step(&mut optimiser, &parameters, [f32::NAN, 0.0]);
        assert_eq!(outcome.not_finite.as_deref(), Some("w"));
        assert_eq!(optimiser.steps(), 0);
        let w = parameters.get("w").unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(w, [[1.0, -2.0]]);
    }

    #[test]
    fn a_parameter_without_gradient_is_an_error() {
        let parameters = parameters();
        let loss = Tensor::new(1f32, &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new(&parameters, options()).unwrap();
        let error = optimiser.step(&Gradients::default(), 0.01, &loss).unwrap_err();
        assert!(error.to_string().contains("`w` got no gradient"), "{error}");
    }
}
