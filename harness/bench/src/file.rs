//! The file that both sides start from: weights by name, data by name with `_` in front, and the workload's
//! configuration as JSON under the metadata key `config`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use replica_core::Seed;
use replica_nn::Parameters;

use crate::error::BenchError;
use crate::workload::Workload;

/// Weights and data.
pub type Contents = (HashMap<String, Tensor>, HashMap<String, Tensor>);

/// Draws the initial weights of a workload and writes them with its data. The same bytes every time. Returns the
/// number of parameters.
///
/// # Errors
/// The file cannot be written.
pub fn write(workload: &dyn Workload, path: &Path) -> Result<usize, BenchError> {
    let engine = BenchError::engine(workload.name());
    let data = workload.data().map_err(&engine)?;
    let parameters = Parameters::new(Seed(0), DType::F32, &Device::Cpu);
    drop(workload.model(parameters.builder(), &data).map_err(&engine)?);
    let weights = parameters.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone()));
    let data = data.into_iter().map(|(name, tensor)| (format!("_{name}"), tensor));
    let metadata = HashMap::from([("config".to_owned(), workload.config().to_string())]);
    let bytes = safetensors::serialize(weights.chain(data).collect::<Vec<_>>(), Some(metadata))
        .map_err(|e| BenchError::File { path: path.to_owned(), problem: e.to_string() })?;
    fs::write(path, bytes).map_err(BenchError::io(path))?;
    Ok(parameters.count())
}

/// Reads weights and data.
///
/// # Errors
/// The file cannot be read, or is no safetensors file.
pub fn read(path: &Path) -> Result<Contents, BenchError> {
    let bytes = fs::read(path).map_err(BenchError::io(path))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| BenchError::File { path: path.to_owned(), problem: e.to_string() })?;
    let (data, weights): (HashMap<_, _>, HashMap<_, _>) =
        tensors.into_iter().partition(|(name, _)| name.starts_with('_'));
    Ok((weights, data.into_iter().map(|(name, t)| (name[1..].to_owned(), t)).collect()))
}
