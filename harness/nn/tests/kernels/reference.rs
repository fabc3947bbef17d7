//! Numbers for kernels, and what the CPU operations make of them in double precision.

use candle_core::{Device, Result, Tensor, Var};
use replica_nn::{Gradients, Tape, Value};

use crate::emulator::{Emulator, launch};

/// A number type of kernels.
pub trait Number: Copy + Send + Sync + 'static {
    /// Ending of the kernels' names.
    const SUFFIX: &'static str;
    /// Largest error of a result, relative to the scale of the results.
    const TOLERANCE: f64;
    /// Rounded to nearest even.
    fn from_f32(v: f32) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    const SUFFIX: &'static str = "f32";
    const TOLERANCE: f64 = 1e-5;
    fn from_f32(v: f32) -> Self {
        v
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

/// bfloat16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bf16(pub u16);

impl Number for Bf16 {
    const SUFFIX: &'static str = "bf16";
    // half a unit in the last of 8 bits is 2^-9; results of several rounded numbers may be off by a few of them
    const TOLERANCE: f64 = 8e-3;
    fn from_f32(v: f32) -> Self {
        let bits = v.to_bits();
        if v.is_nan() {
            return Self(0x7fff);
        }
        Self(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }
    fn to_f64(self) -> f64 {
        f64::from(f32::from_bits(u32::from(self.0) << 16))
    }
}

/// Numbers on [-1, 1) from a hash of their position.
pub fn numbers<T: Number>(n: usize, salt: u64) -> Vec<T> {
    (0..n as u64).map(|i| T::from_f32((hash(i, salt) >> 40) as f32 / 8_388_608.0 - 1.0)).collect()
}

/// 64 bits for a position.
pub fn hash(i: u64, salt: u64) -> u64 {
    let x = (i ^ salt.wrapping_mul(0xd6e8_feb8_6659_fd93)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// NaN everywhere: an element that is not written is found.
pub fn unwritten<T: Number>(n: usize) -> Vec<T> {
    vec![T::from_f32(f32::NAN); n]
}

/// Exact.
pub fn wide<T: Number>(data: &[T]) -> Vec<f64> {
    data.iter().map(|v| v.to_f64()).collect()
}

/// Every element within `tolerance` of the expected one, relative to the largest expected one.
pub fn assert_near<T: Number>(what: &str, got: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let scale = expected.iter().fold(0f64, |top, v| top.max(v.abs())).max(1e-6);
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let got = got.to_f64();
        let near = (got - expected).abs() <= tolerance * scale;
        assert!(near, "{what} ({}): element {i} is {got}, expected {expected}", T::SUFFIX);
    }
}

/// `y = f(inputs)` and the gradients of `sum(y * dy)` by all inputs, on the tape in double precision. Inputs
/// are given twice, as values and as the tensors behind them.
pub fn differentiate(
    inputs: &[(&[usize], Vec<f64>)],
    dy: Option<&[f64]>,
    f: impl Fn(&[Value], &[Tensor]) -> Result<Value>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let variable = |(shape, data): &(&[usize], Vec<f64>)| {
        let tensor = Tensor::from_vec(data.clone(), *shape, &Device::Cpu).unwrap();
        Var::from_tensor(&tensor).unwrap().as_tensor().clone()
    };
    let tensors: Vec<Tensor> = inputs.iter().map(variable).collect();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let values: Vec<Value> = tensors.iter().map(|t| tape.variable(t).unwrap()).collect();
    let y = f(&values, &tensors).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    match dy {
        Some(dy) => {
            let dy = Tensor::from_slice(dy, y.tensor().shape(), &Device::Cpu).unwrap();
            tape.backward_from(&y, dy).unwrap();
        }
        None => tape.backward(&y).unwrap(),
    }
    let gradient = |t: &Tensor| gradients.tensor(t).map_or_else(Vec::new, |g| flat(&g));
    (flat(y.tensor()), tensors.iter().map(gradient).collect())
}

/// Blocks of an elementwise kernel.
pub fn elementwise(n: usize) -> (usize, usize, usize) {
    (n.div_ceil(2048).clamp(1, 65536), 1, 1)
}

/// Adds parts to a gradient that holds ones.
pub fn sum_parts(cuda: &Emulator, parts: &[f32], n: usize) -> Vec<f32> {
    let mut total = vec![1f32; n];
    let count = (parts.len() / n) as i32;
    launch!(cuda, "sum_parts_f32", (n.div_ceil(32), 1, 1), 256, 0; parts, &mut total, count, n as i64, 1);
    total
}

/// What [`sum_parts`] makes of a gradient.
pub fn with_ones(gradient: &[f64]) -> Vec<f64> {
    gradient.iter().map(|g| g + 1.0).collect()
}
