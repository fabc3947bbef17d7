//! Slices behind candle tensors.

use std::cell::Cell;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

use crate::real::Real;

/// Calls `f` with the elements of a contiguous CPU tensor.
///
/// # Errors
/// The tensor is strided, of another type, or not on the CPU.
pub fn slice<T: candle_core::WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    slices([tensor], |[elements]| f(elements))
}

/// As [`slice()`], for several tensors at once.
///
/// # Errors
/// As [`slice()`].
pub fn slices<T: candle_core::WithDType, R, const N: usize>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&storages) {
        let Some((start, end)) = layout.contiguous_offsets() else {
            let (dims, stride) = (layout.dims(), layout.stride());
            bail!("a contiguous tensor is expected, got {dims:?} with strides {stride:?}");
        };
        *slice = match &**storage {
            Storage::Cpu(cpu) => &T::cpu_storage_as_slice(cpu)?[start..end],
            _ => bail!("a CPU tensor is expected, got one on {:?}", storage.device().location()),
        };
    }
    Ok(f(slices))
}

/// Calls `f` with the elements of a contiguous CPU tensor for writing. The caller makes sure that nobody
/// else relies on the old values.
///
/// # Errors
/// As [`slice()`].
pub fn slice_mut<T: Real>(tensor: &Tensor, f: impl FnOnce(&mut [T])) -> Result<()> {
    tensor.inplace_op1(&InPlace { f: Cell::new(Some(f)), _type: std::marker::PhantomData::<T> })
}

struct InPlace<T, F> {
    f: Cell<Option<F>>,
    _type: std::marker::PhantomData<T>,
}

impl<T: Real, F: FnOnce(&mut [T])> InplaceOp1 for InPlace<T, F> {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a contiguous tensor is expected, got strides {:?}", layout.stride());
        };
        // candle hands out no typed mutable slice: take the vector out and put it back
        let mut data = T::cpu_storage_data(std::mem::replace(storage, CpuStorage::U8(Vec::new())))?;
        if let Some(f) = self.f.take() {
            f(&mut data[start..end]);
        }
        *storage = T::to_cpu_storage_owned(data);
        Ok(())
    }
}

/// A vector for an operation that writes every element before any is read. Clearing such memory first
/// costs as much as the operation itself.
pub(crate) fn buffer<T: Real>(len: usize) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    // SAFETY: the capacity is `len`, T is f32 or f64 for which every bit pattern is valid and which has no
    // destructor, and callers write each element before it is read.
    #[allow(clippy::uninit_vec)]
    unsafe {
        data.set_len(len);
    }
    data
}

/// A CPU tensor that owns `data`.
pub(crate) fn tensor<T: Real>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// A raw pointer that tasks writing to disjoint places share.
pub(crate) struct SharedMut<T>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: it is only a number; whoever dereferences it makes sure that tasks touch disjoint elements.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// For data that all tasks only read.
    pub(crate) fn reading(data: &[T]) -> Self {
        Self(data.as_ptr().cast_mut())
    }

    pub(crate) fn at(data: *mut T) -> Self {
        Self(data)
    }

    pub(crate) fn ptr(self) -> *mut T {
        self.0
    }
}
