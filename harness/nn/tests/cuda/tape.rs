//! What the tape and the way to the device promise: accumulation, recomputation, values out of range, uploads.

use candle_core::{DType, Device, Tensor, Var};
use replica_nn::ops::{Activation, IGNORE};
use replica_nn::{Gradients, Staging, Tape, Value, accelerator, checkpoint};

use crate::compared::{check, sent};

/// Gradients add up over backward passes in the same buffer until they are cleared; frozen weights get none.
#[test]
fn gradients_accumulate_in_place() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let tensor = |data: Vec<f32>, shape: (usize, usize)| {
        sent(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap(), DType::BF16, &gpu)
    };
    let x = tensor(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], (3, 2));
    let w = Var::from_tensor(&tensor(vec![1.0; 4], (2, 2))).unwrap();
    let gradients = Gradients::default();
    let pass = || {
        let tape = Tape::new(&gradients);
        let y = tape.constant(x.clone()).linear(&w, None).unwrap().sum().unwrap();
        tape.backward(&y).unwrap();
        gradients.tensor(&w).unwrap()
    };
    let once = pass();
    assert_eq!(once.dtype(), DType::F32);
    assert_eq!(once.to_vec2::<f32>().unwrap(), [[9.0, 12.0]; 2]);
    assert_eq!(pass().to_vec2::<f32>().unwrap(), [[18.0, 24.0]; 2]);
    gradients.clear();
    assert_eq!(pass().to_vec2::<f32>().unwrap(), [[9.0, 12.0]; 2]);
    // one buffer all the time
    assert_eq!(once.to_vec2::<f32>().unwrap(), [[9.0, 12.0]; 2]);
}

/// A part that is computed again in the backward pass.
#[test]
fn checkpoints() {
    check("checkpoint", &[&[5, 16], &[16, 16]], &|x, w| {
        let weight = w[1].clone();
        let part = move |x: &[Value]| x[0].linear(&weight, None)?.activate(Activation::Silu)?.add(&x[0]);
        checkpoint(&[&x[0]], part)?.add(&x[0])
    });
}

/// What the host cannot look at without waiting gives NaN, and writes nowhere it should not.
#[test]
fn ids_and_labels_out_of_range_make_the_loss_nan() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let table =
        Var::from_tensor(&sent(&Tensor::ones((4, 8), DType::F32, &Device::Cpu).unwrap(), DType::F32, &gpu))
            .unwrap();
    let gradients = Gradients::default();
    let loss = |ids: &[u32], labels: &[i64]| {
        let tape = Tape::new(&gradients);
        let ids = tape.constant(Tensor::from_slice(ids, ids.len(), &gpu).unwrap());
        let labels = Tensor::from_slice(labels, labels.len(), &gpu).unwrap();
        let loss = ids.embedding(&table).unwrap().linear_cross_entropy(&table, None, &labels).unwrap();
        tape.backward(&loss).unwrap();
        loss.tensor().to_scalar::<f32>().unwrap()
    };
    assert!(loss(&[0, 3], &[1, 2]).is_finite());
    assert!(loss(&[0, 4], &[1, 2]).is_nan());
    assert!(loss(&[0, u32::MAX], &[1, 2]).is_nan());
    assert!(loss(&[0, 3], &[1, 4]).is_nan());
    assert!(loss(&[0, 3], &[IGNORE, IGNORE]).is_nan());
}

/// More uploads than there are places: none is overwritten before the device has read it.
#[test]
fn uploads_arrive_unharmed() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let mut staging = Staging::new(&gpu);
    let data = |i: u32| (0..5000 + 100 * i).map(|j| i ^ j).collect::<Vec<u32>>();
    let sent: Vec<Tensor> = (0..100).map(|i| staging.send(data(i), data(i).len()).unwrap()).collect();
    for (i, tensor) in sent.iter().enumerate() {
        assert_eq!(tensor.to_vec1::<u32>().unwrap(), data(i as u32));
    }
}
