//! The trainable tensors of a model, by the names the original checkpoints use.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use rand::Rng;
use replica_core::Seed;

/// Variables by name. A model asks for them through [`Parameters::builder`]; those that do not exist yet
/// are drawn from the seed's `init` stream for their name, so the values of one do not depend on which
/// others exist.
#[derive(Clone)]
pub struct Parameters(Arc<Shared>);

struct Shared {
    /// Where new parameters are drawn from; nothing if all must be given.
    seed: Option<Seed>,
    dtype: DType,
    device: Device,
    variables: Mutex<BTreeMap<String, Var>>,
}

impl Parameters {
    /// No parameters yet.
    pub fn new(seed: Seed, dtype: DType, device: &Device) -> Self {
        Self::with(Some(seed), dtype, device)
    }

    fn with(seed: Option<Seed>, dtype: DType, device: &Device) -> Self {
        Self(Arc::new(Shared { seed, dtype, device: device.clone(), variables: Mutex::default() }))
    }

    /// Trainable copies of given tensors. A name that is not among them is an error when a model asks for it.
    ///
    /// # Errors
    /// A device failed.
    pub fn from_tensors(tensors: HashMap<String, Tensor>, dtype: DType, device: &Device) -> Result<Self> {
        let variables = tensors
            .into_iter()
            .map(|(name, t)| Ok((name, Var::from_tensor(&t.to_dtype(dtype)?.to_device(device)?)?)))
            .collect::<Result<_>>()?;
        let parameters = Self::with(None, dtype, device);
        *parameters.lock() = variables;
        Ok(parameters)
    }

    /// Where a model gets its tensors.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), self.0.dtype, self.0.device.clone())
    }

    /// All parameters, sorted by name.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// One parameter.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.lock().get(name).map(|var| var.as_tensor().clone())
    }

    /// Number of scalars.
    pub fn count(&self) -> usize {
        self.lock().values().map(|var| var.elem_count()).sum()
    }

    /// Overwrites all parameters, e.g. from a checkpoint.
    ///
    /// # Errors
    /// A name is missing, left over, or of another shape.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let variables = self.lock();
        if let Some(name) = tensors.keys().find(|name| !variables.contains_key(*name)) {
            bail!("the model has no parameter `{name}`");
        }
        for (name, var) in variables.iter() {
            match tensors.get(name) {
                Some(t) => var.set(&t.to_dtype(var.dtype())?.to_device(var.device())?)?,
                None => bail!("parameter `{name}` is missing"),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        self.0.variables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, name: &str, shape: &Shape, init: Init) -> Result<Tensor> {
        let Some(seed) = self.0.seed else { bail!("no parameter `{name}` among the given tensors") };
        let mut rng = seed.named_stream("init", name);
        let n = shape.elem_count();
        let data: Vec<f32> = match init {
            Init::Const(c) => vec![c as f32; n],
            Init::Uniform { lo, up } => (0..n).map(|_| (lo + (up - lo) * unit(&mut rng)) as f32).collect(),
            Init::Randn { mean, stdev } => {
                (0..n).map(|_| (mean + stdev * standard_normal(&mut rng)) as f32).collect()
            }
            Init::Kaiming { .. } => {
                bail!("`{name}`: give the bounds of the initial values as Init::Uniform or Init::Randn")
            }
        };
        Tensor::from_vec(data, shape.clone(), &Device::Cpu)?.to_dtype(self.0.dtype)?.to_device(&self.0.device)
    }
}

/// Uniform on [0, 1) with 53 bits.
fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// N(0, 1) by Box and Muller; one of the two numbers is thrown away, which keeps draws independent of parity.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

impl SimpleBackend for Parameters {
    fn get(&self, shape: Shape, name: &str, init: Init, _: DType, _: &Device) -> Result<Tensor> {
        if let Some(existing) = Parameters::get(self, name) {
            if existing.shape() != &shape {
                bail!("parameter `{name}` has shape {:?}, the model expects {shape:?}", existing.shape());
            }
            return Ok(existing);
        }
        let var = Var::from_tensor(&self.draw(name, &shape, init)?)?;
        let tensor = var.as_tensor().clone();
        self.lock().insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match Parameters::get(self, name) {
            Some(tensor) => Ok(tensor),
            None => bail!("no parameter `{name}`"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}
