//! Opening a GPU, and what operations need of it: kernels by name, uninitialised tensors, addresses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::cudarc::cublas::CudaBlas;
use candle_core::cuda::cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda::{CudaDevice, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

use super::kernels::MODULES;

/// Opens GPU `ordinal`: a stream of its own, on which all work of the device's tensors runs in the order in
/// which it was asked for.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    // candle's default is the calling thread's stream, which means another stream on every thread
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: every access to this device's tensors is on its one stream, so events that order streams are
    // not needed; recording them would cost more than many a kernel.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    set_pool(stream.context(), sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    Ok(Device::Cuda(device))
}

/// The pool that tensors come from.
fn pool(context: &CudaContext) -> Result<sys::CUmemoryPool> {
    context.bind_to_thread().w()?;
    // SAFETY: the context's own device.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.w()
}

/// Sets an attribute of the pool. The threshold's default, 0, gives all memory back at every synchronisation.
fn set_pool(context: &CudaContext, attribute: sys::CUmemPool_attribute, mut value: u64) -> Result<()> {
    let pool = pool(context)?;
    // SAFETY: the attributes used here are 64-bit numbers.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast()) }.w()
}

/// Bytes the pool handed out at most.
pub(crate) fn peak_memory(device: &CudaDevice) -> Result<u64> {
    let stream = device.cuda_stream();
    let pool = pool(stream.context())?;
    let mut bytes = 0u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the attribute is a 64-bit number.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.w()?;
    Ok(bytes)
}

/// Starts a new measurement of [`peak_memory`].
pub(crate) fn reset_peak_memory(device: &CudaDevice) {
    let stream = device.cuda_stream();
    // the only value it can be set to is 0; a pool that refuses leaves the old peak, which is an upper bound
    let _ = set_pool(stream.context(), sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0);
}

/// Dynamic shared memory that a kernel gets without its consent (CUDA programming guide).
const SHARED: usize = 48 * 1024;

/// Kernels by device ordinal and name. All contexts on a device share its primary context, so a module is
/// loaded once a process; the list is never dropped, because at exit the driver may be gone before it.
static FUNCTIONS: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// The kernels of one device.
struct Loaded {
    ordinal: usize,
    /// With the bytes of dynamic shared memory each may ask for.
    functions: HashMap<String, (CudaFunction, usize)>,
    modules: HashMap<&'static str, Arc<candle_core::cuda::cudarc::driver::CudaModule>>,
}

/// The device that an operation's tensors are on.
pub(crate) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks in x, y and z.
    pub(crate) blocks: (usize, usize, usize),
    /// Threads a block.
    pub(crate) threads: usize,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
}

/// A kernel's argument: the bits of a number, low bytes first as the driver reads them, and its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument {
    bits: u64,
    kind: Kind,
}

/// The types of arguments as PTX tells them apart: pointers and `long long` are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Long,
    Int,
    Float,
    Double,
}

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        address.0.into()
    }
}

impl From<u64> for Argument {
    fn from(n: u64) -> Self {
        Self { bits: n, kind: Kind::Long }
    }
}

/// Sizes; kernels take them as `long long`.
impl From<usize> for Argument {
    fn from(n: usize) -> Self {
        (n as u64).into()
    }
}

impl From<u32> for Argument {
    fn from(n: u32) -> Self {
        Self { bits: n.into(), kind: Kind::Int }
    }
}

impl From<i32> for Argument {
    fn from(n: i32) -> Self {
        (n as u32).into()
    }
}

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self { bits: x.to_bits().into(), kind: Kind::Float }
    }
}

impl From<f64> for Argument {
    fn from(x: f64) -> Self {
        Self { bits: x.to_bits(), kind: Kind::Double }
    }
}

/// The arguments that a kernel's PTX declares.
fn signature(ptx: &str, name: &str) -> Option<Vec<Kind>> {
    let (_, rest) = ptx.split_once(&format!(".entry {name}("))?;
    let (declared, _) = rest.split_once(')')?;
    let kind = |declared: &str| match declared.split_whitespace().next() {
        Some(".u64" | ".b64" | ".s64") => Some(Kind::Long),
        Some(".u32" | ".b32" | ".s32") => Some(Kind::Int),
        Some(".f32") => Some(Kind::Float),
        Some(".f64") => Some(Kind::Double),
        _ => None,
    };
    declared.split(".param ").skip(1).map(kind).collect()
}

/// Where a tensor's elements lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// For an optional array that is not there.
    pub(crate) const NULL: Self = Self(0);

    /// `count` elements of `size` bytes further on.
    pub(crate) fn offset(self, count: usize, size: usize) -> Self {
        Self(self.0 + (count * size) as u64)
    }
}

/// Calls a kernel: `launch!(gpu, "module", "function", grid, argument, ...)`.
macro_rules! launch {
    ($gpu:expr, $module:expr, $function:expr, $grid:expr, $($argument:expr),* $(,)?) => {
        // SAFETY: the arguments are those of the kernel's signature, in its order, and their arrays are as long
        // as it expects; the operation's shape checks come before.
        unsafe {
            $gpu.launch($module, $function, $grid, &[$($crate::ops::cuda::device::Argument::from($argument)),*])
        }
    };
}
pub(crate) use launch;

impl From<&CudaDevice> for Gpu {
    fn from(device: &CudaDevice) -> Self {
        Self { stream: device.cuda_stream(), device: device.clone() }
    }
}

impl Gpu {
    /// The device of a tensor.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        Ok(tensor.device().as_cuda_device()?.into())
    }

    /// cuBLAS on this stream, with the device's context bound to the calling thread.
    pub(crate) fn blas(&self) -> Result<Arc<CudaBlas>> {
        self.stream.context().bind_to_thread().w()?;
        Ok(self.device.cublas_handle())
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.device.id()
    }

    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    /// A tensor whose elements the next kernel writes before anything reads them.
    pub(crate) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        // SAFETY: callers let a kernel write every element next, on the one stream of the device.
        unsafe { Tensor::empty(shape, dtype, &self.device()) }
    }

    /// As [`Gpu::empty`], all zeros.
    pub(crate) fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let tensor = self.empty(shape, dtype)?;
        self.clear(&tensor)?;
        Ok(tensor)
    }

    /// Sets all elements to zero, in the stream's order.
    pub(crate) fn clear(&self, tensor: &Tensor) -> Result<()> {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        let address = address(tensor)?;
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: the tensor's own memory; zero bits are a valid number of every type.
        unsafe { result::memset_d8_async(address.0, 0, bytes, self.stream.cu_stream()) }.w()
    }

    /// Copies the elements of `from` to `to`, which has as many of the same type, in the stream's order.
    pub(crate) fn copy(&self, from: &Tensor, to: Address) -> Result<()> {
        let bytes = from.elem_count() * from.dtype().size_in_bytes();
        let from = address(from)?;
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: callers name a destination of that many bytes.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream.cu_stream()) }.w()
    }

    /// Writes 32-bit words to a place of as many, in the stream's order. The words travel inside the commands:
    /// no host memory has to stay as it is until the device comes round to it.
    pub(crate) fn write(&self, to: Address, words: &[u32]) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        for (i, word) in words.iter().enumerate() {
            let place = to.offset(i, size_of::<u32>());
            // SAFETY: callers name a place of as many words, which is a multiple of four bytes.
            unsafe { sys::cuMemsetD32Async(place.0, *word, 1, self.stream.cu_stream()) }.result().w()?;
        }
        Ok(())
    }

    /// A 64-bit number on the device.
    pub(crate) fn number(&self, n: u64) -> Result<Tensor> {
        let tensor = self.empty((), DType::I64)?;
        self.write(address(&tensor)?, &[n as u32, (n >> 32) as u32])?;
        Ok(tensor)
    }

    /// Launches `function` of `module`.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and its arrays are as long as it expects.
    pub(crate) unsafe fn launch(
        &self,
        module: &'static str,
        function: &str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        let config = LaunchConfig {
            grid_dim: (dim(grid.blocks.0)?, dim(grid.blocks.1)?, dim(grid.blocks.2)?),
            block_dim: (dim(grid.threads)?, 1, 1),
            shared_mem_bytes: dim(grid.shared)?,
        };
        let kernel = self.function(module, function, grid.shared, arguments)?;
        let mut builder = self.stream.launch_builder(&kernel);
        for argument in arguments {
            builder.arg(&argument.bits);
        }
        // SAFETY: passed on to the caller.
        match unsafe { builder.launch(config) } {
            Ok(_) => Ok(()),
            Err(e) => bail!("kernel {function} with {grid:?}: {e}"),
        }
    }

    /// A kernel, loaded at its first use. Its arguments are checked against its PTX then, and it is allowed as
    /// much dynamic shared memory as it asks for.
    fn function(
        &self,
        module: &'static str,
        name: &str,
        shared: usize,
        arguments: &[Argument],
    ) -> Result<CudaFunction> {
        let mut devices = FUNCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let context = self.stream.context();
        let ordinal = context.ordinal();
        let at = devices.iter().position(|d| d.ordinal == ordinal).unwrap_or_else(|| {
            devices.push(Loaded { ordinal, functions: HashMap::new(), modules: HashMap::new() });
            devices.len() - 1
        });
        let loaded = &mut devices[at];
        if let Some((function, allowed)) = loaded.functions.get_mut(name) {
            if shared > *allowed {
                allow(function, shared)?;
                *allowed = shared;
            }
            return Ok(function.clone());
        }
        let Some((_, ptx)) = MODULES.iter().find(|(have, _)| *have == module) else {
            bail!("this build has no kernels called `{module}`")
        };
        let given: Vec<Kind> = arguments.iter().map(|a| a.kind).collect();
        let declared = signature(ptx, name);
        if declared.as_ref() != Some(&given) {
            bail!("kernel {name} takes {declared:?}, it is called with {given:?}");
        }
        if !loaded.modules.contains_key(module) {
            match context.load_module((*ptx).into()) {
                Ok(made) => loaded.modules.insert(module, made),
                Err(e) => bail!("the driver does not load the kernels `{module}`: {e}; see `replica doctor`"),
            };
        }
        let function = match loaded.modules[module].load_function(name) {
            Ok(function) => function,
            Err(e) => bail!("kernels `{module}` have no `{name}`: {e}"),
        };
        if shared > SHARED {
            allow(&function, shared)?;
        }
        loaded.functions.insert(name.to_owned(), (function.clone(), shared.max(SHARED)));
        Ok(function)
    }
}

/// Lets a kernel ask for `shared` bytes of dynamic shared memory.
fn allow(function: &CudaFunction, shared: usize) -> Result<()> {
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, dim(shared)? as i32).w()
}

/// A size as the driver wants it.
fn dim(n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => bail!("{n} is too large for a kernel's launch"),
    }
}

/// A size as kernels and cuBLAS want it.
pub(crate) fn int(n: usize) -> Result<i32> {
    match i32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => bail!("{n} is too large for a kernel, which counts in 32 bits"),
    }
}

/// Where the elements of a contiguous CUDA tensor lie.
pub(crate) fn address(tensor: &Tensor) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    if !layout.is_contiguous() {
        bail!("a contiguous tensor is expected, got {:?} with strides {:?}", layout.dims(), layout.stride());
    }
    let Storage::Cuda(cuda) = &*storage else {
        bail!("a CUDA tensor is expected, got one on {:?}", tensor.device().location())
    };
    let stream = cuda.device.cuda_stream();
    let start = match &cuda.slice {
        CudaStorageSlice::U8(data) => data.device_ptr(&stream).0,
        CudaStorageSlice::U32(data) => data.device_ptr(&stream).0,
        CudaStorageSlice::I64(data) => data.device_ptr(&stream).0,
        CudaStorageSlice::BF16(data) => data.device_ptr(&stream).0,
        CudaStorageSlice::F32(data) => data.device_ptr(&stream).0,
        _ => bail!("CUDA kernels take u8, u32, i64, bf16 and f32, got {:?}", tensor.dtype()),
    };
    Ok(Address(start).offset(layout.start_offset(), tensor.dtype().size_in_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_from_ptx() {
        let ptx = ".visible .entry other_f32(\n.param .u32 a\n)\n.visible .entry scale_f32(\n\
                   \t.param .u64 .ptr .align 1 scale_f32_param_0,\n\t.param .u64 scale_f32_param_1,\n\
                   \t.param .f32 scale_f32_param_2,\n\t.param .u32 scale_f32_param_3\n)\n.maxntid 256\n{ )";
        let expected = vec![Kind::Long, Kind::Long, Kind::Float, Kind::Int];
        assert_eq!(signature(ptx, "scale_f32"), Some(expected));
        assert_eq!(signature(ptx, "scale"), None);
    }

    /// Every kernel of this build can be read.
    #[test]
    fn all_kernels_have_a_signature() {
        for (module, ptx) in MODULES {
            let names: Vec<&str> =
                ptx.split(".entry ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
            assert!(!names.is_empty(), "{module}");
            for name in names {
                assert!(signature(ptx, name).is_some_and(|s| !s.is_empty()), "{name}");
            }
        }
    }
}
