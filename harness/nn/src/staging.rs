//! Host arrays on their way to a device.

use candle_core::{Device, Result, Shape, Tensor, WithDType};

/// Sends arrays to a device without waiting for it: on a GPU through page-locked memory, of which a ring of
/// places is reused as soon as the device has read them.
pub struct Staging {
    device: Device,
    #[cfg(feature = "cuda")]
    ring: crate::ops::cuda::staging::Ring,
}

impl Staging {
    /// For tensors on `device`.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            ring: crate::ops::cuda::staging::Ring::default(),
        }
    }

    /// A tensor of `data`, which has as many elements as `shape`.
    ///
    /// # Errors
    /// It has not, or a device failed.
    pub fn send<T: WithDType>(&mut self, data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.device {
            return self.ring.send(device, &data, shape.into());
        }
        Tensor::from_vec(data, shape.into(), &self.device)
    }
}
