//! Uploads through page-locked memory: see `staging.rs`.

use candle_core::cuda::cudarc::driver::{CudaEvent, PinnedHostSlice, result};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{Result, Shape, Tensor, WithDType, bail};

use super::device::{Gpu, address};

/// Uploads under way at most before one is waited for: two arrays a step, sixteen steps.
const PLACES: usize = 32;

/// Places in page-locked memory, used in turn.
#[derive(Default)]
pub(crate) struct Ring {
    places: Vec<Place>,
    next: usize,
}

struct Place {
    memory: PinnedHostSlice<u8>,
    /// Recorded after the copy out of it.
    read: CudaEvent,
}

impl Drop for Place {
    fn drop(&mut self) {
        // the driver must be done with the memory before it goes; an error has been reported by then
        let _ = self.read.synchronize();
    }
}

impl Ring {
    pub(crate) fn send<T: WithDType>(
        &mut self,
        device: &CudaDevice,
        data: &[T],
        shape: Shape,
    ) -> Result<Tensor> {
        if shape.elem_count() != data.len() {
            bail!("{} elements for a tensor of shape {shape:?}", data.len());
        }
        let gpu = Gpu::from(device);
        let tensor = gpu.empty(shape, T::DTYPE)?;
        // SAFETY: the number types of tensors are plain memory.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
        let place = self.place(&gpu, bytes.len())?;
        place.read.synchronize().w()?;
        let memory = &mut place.memory.as_mut_slice().w()?[..bytes.len()];
        memory.copy_from_slice(bytes);
        // SAFETY: the destination has as many bytes, and the source stays as it is until `read` has happened.
        unsafe { result::memcpy_htod_async(address(&tensor)?.0, memory, gpu.stream().cu_stream()) }.w()?;
        place.read.record(gpu.stream()).w()?;
        Ok(tensor)
    }

    /// The next place, of at least `len` bytes.
    fn place(&mut self, gpu: &Gpu, len: usize) -> Result<&mut Place> {
        let context = gpu.stream().context();
        let make = || {
            Ok::<_, candle_core::Error>(Place {
                // SAFETY: every byte that is copied is written first.
                memory: unsafe { context.alloc_pinned(len.max(4096)) }.w()?,
                read: context.new_event(None).w()?,
            })
        };
        let at = self.next;
        self.next = (self.next + 1) % PLACES;
        if at == self.places.len() {
            self.places.push(make()?);
        } else if self.places[at].memory.len() < len {
            self.places[at] = make()?;
        }
        Ok(&mut self.places[at])
    }
}
