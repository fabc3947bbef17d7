//! Whether the device that was asked for can be used, and how a record names it.

use replica_core::trial::Device;
use replica_nn::accelerator::{cuda_version, needs, survey};

use crate::failure::Failure;

/// Checks a device before anything is run on it. The name of the accelerator, for records.
pub(crate) fn check(device: Device) -> Result<Option<String>, Failure> {
    let Device::Cuda(ordinal) = device else { return Ok(None) };
    let refuse =
        |problem: &str| Failure::environment(format!("device {device}: {problem}; or use --device cpu"));
    let Some(needs) = needs() else {
        return Err(refuse(
            "this program was built without CUDA; build it with `--features cuda` (README, GPUs)",
        ));
    };
    let survey = survey();
    if let Some(problem) = survey.problem_with(ordinal, needs) {
        return Err(refuse(&problem));
    }
    let name = survey.gpus.get(ordinal).map_or_else(|| device.to_string(), |gpu| gpu.name.clone());
    let driver = survey.driver.map(cuda_version).unwrap_or_default();
    Ok(Some(format!("{name} ({device}, driver CUDA {driver})")))
}
