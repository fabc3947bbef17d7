//! An operation on the GPU beside the same on the CPU: values and gradients, in float32 and in bfloat16.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use replica_core::Seed;
use replica_nn::ops::IGNORE;
use replica_nn::{Gradients, Tape, Value, accelerator};

/// Lengths of sequences: single steps, less than a chunk, several chunks.
pub const LENGTHS: [usize; 5] = [1, 2, 7, 64, 1000];

/// Numbers on [-1, 1) that keep away from 0 and are exact in bfloat16, so that rounding of inputs plays no role.
pub fn numbers(n: usize, rng: &mut impl Rng) -> Vec<f32> {
    (0..n)
        .map(|_| {
            let x = (1 + rng.next_u32() % 127) as f32 / 128.0;
            if rng.next_u32().is_multiple_of(2) { x } else { -x }
        })
        .collect()
}

/// A tensor of another type elsewhere. It is converted on the host, so that nothing but our own kernels runs.
pub fn sent(tensor: &Tensor, dtype: DType, device: &Device) -> Tensor {
    tensor.to_dtype(dtype).unwrap().to_device(device).unwrap()
}

pub type Operation<'a> = &'a dyn Fn(&[Value], &[Tensor]) -> Result<Value>;

/// Values and the gradients of sum(f(inputs) * cotangent) by all inputs, in float32 on the host.
fn run(
    inputs: &[(Vec<f32>, Vec<usize>)],
    seed: u64,
    device: &Device,
    dtype: DType,
    f: Operation,
) -> Vec<Vec<f32>> {
    let variables: Vec<Var> = inputs
        .iter()
        .map(|(data, shape)| {
            let tensor = Tensor::from_slice(data, shape.as_slice(), &Device::Cpu).unwrap();
            Var::from_tensor(&sent(&tensor, dtype, device)).unwrap()
        })
        .collect();
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let values: Vec<Value> = tensors.iter().map(|t| tape.variable(t).unwrap()).collect();
    let y = f(&values, &tensors).unwrap();
    let cotangent = numbers(y.tensor().elem_count(), &mut Seed(seed).stream("cotangent"));
    let cotangent = Tensor::from_vec(cotangent, y.tensor().shape(), &Device::Cpu).unwrap();
    tape.backward_from(&y, sent(&cotangent, y.tensor().dtype(), device)).unwrap();
    let host = |t: &Tensor| {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let gradient = |t: &Tensor| host(&gradients.tensor(t).expect("every input has a gradient"));
    std::iter::once(host(y.tensor())).chain(tensors.iter().map(gradient)).collect()
}

/// Compares an operation on the GPU with the CPU. The error is relative to the largest number of each result.
pub fn check(name: &str, shapes: &[&[usize]], f: Operation) {
    check_numbers(name, shapes, numbers, |_| 0.0, f);
}

/// As [`check`] for what has a kink at a sum of a product and a bias. Products are rounded to bfloat16 before the bias is
/// added, which may move a sum to the other side of the kink, and then the slope there is another one. Sums of few
/// halves and ones are not rounded.
pub fn check_kink(name: &str, shapes: &[&[usize]], f: Operation) {
    let halves = |n: usize, rng: &mut ChaCha8Rng| {
        numbers(n, rng).into_iter().map(|x| if x.abs() < 0.5 { 0.5f32 } else { 1.0 }.copysign(x)).collect()
    };
    check_numbers(name, shapes, halves, |_| 0.0, f);
}

/// As [`check`] for a sum of the inputs, or of what is no larger: of terms that cancel nothing may be left but their
/// rounding errors, which are as large as the terms are.
pub fn check_sum(name: &str, n: usize, f: Operation) {
    check_numbers(name, &[&[n]], numbers, |x| x.iter().map(|x| x.abs()).sum(), f);
}

/// As [`check`] on inputs that `draw` makes, with the errors of the value relative to `scale(first input)` if that is
/// larger.
fn check_numbers(
    name: &str,
    shapes: &[&[usize]],
    draw: impl Fn(usize, &mut ChaCha8Rng) -> Vec<f32>,
    scale: impl Fn(&[f32]) -> f32,
    f: Operation,
) {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let seed = 7;
    let mut rng = Seed(seed).stream(name);
    let inputs: Vec<(Vec<f32>, Vec<usize>)> =
        shapes.iter().map(|shape| (draw(shape.iter().product(), &mut rng), shape.to_vec())).collect();
    let expected = run(&inputs, seed, &Device::Cpu, DType::F32, f);
    // float32 differs by the order of sums; bfloat16 has 8 binary digits, and results pass through it several times
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 3e-2)] {
        let got = run(&inputs, seed, &gpu, dtype, f);
        for (which, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert_eq!(expected.len(), got.len(), "{name}");
            let beside = if which == 0 { scale(&inputs[0].0) } else { 0.0 };
            let largest = expected.iter().fold(beside.max(1e-6), |a, x| a.max(x.abs()));
            for (i, (a, b)) in expected.iter().zip(got).enumerate() {
                let error = (a - b).abs() / largest;
                let part = if which == 0 { "value".to_owned() } else { format!("gradient {which}") };
                assert!(
                    error < tolerance,
                    "{name} in {dtype:?}, {shapes:?}, {part}[{i}]: {b}, {a} on the CPU"
                );
            }
        }
    }
}

pub fn labels(n: usize, classes: usize, device: &Device) -> Tensor {
    let mut rng = Seed(3).stream("labels");
    let label = |i: usize| if i % 5 == 4 { IGNORE } else { i64::from(rng.next_u32()) % classes as i64 };
    Tensor::from_vec((0..n).map(label).collect::<Vec<_>>(), n, device).unwrap()
}
