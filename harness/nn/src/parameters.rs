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
///
/// A model in bfloat16 computes with copies of the parameters; what is trained, stored and loaded are masters in
/// float32, which the optimiser rounds to the copies in every step.
#[derive(Clone)]
pub struct Parameters(Arc<Shared>);

/// A parameter and what a model computes with.
#[derive(Clone)]
pub struct Parameter {
    /// Its name in checkpoints.
    pub name: String,
    /// The number that is trained, in float32 (or float64 in tests).
    pub master: Var,
    /// What the model computes with; the master itself unless that is bfloat16.
    pub variable: Var,
}

impl Parameter {
    /// The copy in another number type that follows the master, if there is one.
    pub fn copy(&self) -> Option<&Tensor> {
        (self.variable.id() != self.master.id()).then(|| self.variable.as_tensor())
    }

    /// A parameter with these values, computed with in `dtype`; running statistics, which move by small steps outside
    /// the optimiser, in the masters' type.
    fn new(name: String, values: &Tensor, dtype: DType, device: &Device) -> Result<Self> {
        let dtype = if is_trained(&name) { dtype } else { master_type(dtype) };
        let values = values.to_dtype(master_type(dtype))?;
        let master = Var::from_tensor(&values.to_device(device)?)?;
        let variable = match values.dtype() == dtype {
            true => master.clone(),
            false => Var::from_tensor(&values.to_dtype(dtype)?.to_device(device)?)?,
        };
        Ok(Self { name, master, variable })
    }

    fn set(&self, values: &Tensor) -> Result<()> {
        let values = values.to_dtype(self.master.dtype())?;
        self.master.set(&values.to_device(self.master.device())?)?;
        match self.copy() {
            Some(copy) => self.variable.set(&values.to_dtype(copy.dtype())?.to_device(copy.device())?),
            None => Ok(()),
        }
    }
}

/// Whether the parameter of this name is trained; running statistics are not.
pub(crate) fn is_trained(name: &str) -> bool {
    !matches!(name.rsplit('.').next(), Some("running_mean" | "running_var"))
}

/// bfloat16 has too few digits to add small updates to.
fn master_type(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}

struct Shared {
    /// Where new parameters are drawn from; nothing if all must be given.
    seed: Option<Seed>,
    dtype: DType,
    device: Device,
    parameters: Mutex<BTreeMap<String, Parameter>>,
}

impl Parameters {
    /// No parameters yet.
    pub fn new(seed: Seed, dtype: DType, device: &Device) -> Self {
        Self::with(Some(seed), dtype, device)
    }

    fn with(seed: Option<Seed>, dtype: DType, device: &Device) -> Self {
        Self(Arc::new(Shared { seed, dtype, device: device.clone(), parameters: Mutex::default() }))
    }

    /// Trainable copies of given tensors. A name that is not among them is an error when a model asks for it.
    ///
    /// # Errors
    /// A device failed.
    pub fn from_tensors(tensors: HashMap<String, Tensor>, dtype: DType, device: &Device) -> Result<Self> {
        let made = tensors
            .into_iter()
            .map(|(name, t)| Ok((name.clone(), Parameter::new(name, &t, dtype, device)?)))
            .collect::<Result<_>>()?;
        let parameters = Self::with(None, dtype, device);
        *parameters.lock() = made;
        Ok(parameters)
    }

    /// Where a model gets its tensors.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), self.0.dtype, self.0.device.clone())
    }

    /// All parameters in the precision they are trained in, sorted by name.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().values().map(|p| (p.name.clone(), p.master.clone())).collect()
    }

    /// All parameters that an optimiser changes, with what the model computes with, sorted by name. The others are
    /// statistics of batch norm.
    pub fn trained(&self) -> Vec<Parameter> {
        self.lock().values().filter(|p| is_trained(&p.name)).cloned().collect()
    }

    /// What the model computes with under a name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.lock().get(name).map(|p| p.variable.as_tensor().clone())
    }

    /// Number of scalars that are trained.
    pub fn count(&self) -> usize {
        self.trained().iter().map(|p| p.master.elem_count()).sum()
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Overwrites all parameters, e.g. from a checkpoint.
    ///
    /// # Errors
    /// A name is missing, left over, or of another shape.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let parameters = self.lock();
        if let Some(name) = tensors.keys().find(|name| !parameters.contains_key(*name)) {
            bail!("the model has no parameter `{name}`");
        }
        for (name, parameter) in parameters.iter() {
            match tensors.get(name) {
                Some(t) => parameter.set(t)?,
                None => bail!("parameter `{name}` is missing"),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Parameter>> {
        self.0.parameters.lock().unwrap_or_else(PoisonError::into_inner)
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
        Tensor::from_vec(data, shape.clone(), &Device::Cpu)
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
    /// What the model computes with; the master if its type is asked for.
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let of = |p: &Parameter| match p.master.dtype() == dtype {
            true => p.master.as_tensor().clone(),
            false => p.variable.as_tensor().clone(),
        };
        let existing = self.lock().get(name).map(of);
        if let Some(existing) = existing {
            if existing.shape() != &shape {
                bail!("parameter `{name}` has shape {:?}, the model expects {shape:?}", existing.shape());
            }
            return Ok(existing);
        }
        let values = self.draw(name, &shape, init)?;
        let parameter = Parameter::new(name.to_owned(), &values, self.0.dtype, &self.0.device)?;
        let tensor = of(&parameter);
        self.lock().insert(name.to_owned(), parameter);
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
