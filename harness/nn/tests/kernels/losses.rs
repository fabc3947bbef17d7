//! Cross-entropy, distillation, the gradient norm, AdamW.

use candle_core::{Device, Tensor};
use replica_nn::ops::IGNORE;

use crate::emulator::{Emulator, NULL, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, elementwise, hash, numbers, unwritten, wide,
};

fn cross_entropy<T: Number>(cuda: &Emulator) {
    for (rows, vocab) in [(1, 2), (13, 37), (9, 1000), (3, 5003)] {
        let spread = |v: &f32| T::from_f32(8.0 * v);
        let logits: Vec<T> = numbers::<f32>(rows * vocab, 1).iter().map(spread).collect();
        let label = |i: u64| if i % 4 == 1 { IGNORE } else { (hash(i, 2) % vocab as u64) as i64 };
        let labels: Vec<i64> = (0..rows as u64).map(label).collect();
        let tensor = Tensor::from_vec(labels.clone(), rows, &Device::Cpu).unwrap();
        let (loss, gradients) =
            differentiate(&[(&[rows, vocab], wide(&logits))], None, |x, _| x[0].cross_entropy(&tensor));
        let what = format!("cross-entropy {rows} x {vocab}");
        let name = |pass: &str| format!("cross_entropy_{pass}_{}", T::SUFFIX);

        let (mut lse, mut losses) = (unwritten::<f32>(rows), unwritten::<f32>(rows));
        let (mut scale, mut mean) = (unwritten::<f32>(1), unwritten::<f32>(1));
        launch!(cuda, "cross_entropy_count", (1, 1, 1), 256, 0; &labels, &mut scale, rows as i64);
        launch!(cuda, name("forward"), (rows, 1, 1), 256, 0;
            &logits, &labels, &mut lse, &mut losses, rows as i64, vocab as i32);
        launch!(cuda, "cross_entropy_mean_f32", (1, 1, 1), 256, 0; &losses, &scale, &mut mean, rows as i64);
        assert_near(&what, &mean, &loss, 1e-5);

        let mut dlogits = unwritten::<T>(rows * vocab);
        launch!(cuda, name("backward"), (rows, 1, 1), 256, 0;
            &logits, &mut dlogits, &labels, &lse, &scale, &vec![0.5f32], rows as i64, vocab as i32);
        let half: Vec<f64> = gradients[0].iter().map(|g| 0.5 * g).collect();
        assert_near(&format!("{what}: dlogits"), &dlogits, &half, T::TOLERANCE);

        let mut fused = logits.clone();
        let mut losses = unwritten::<f32>(rows);
        launch!(cuda, name("fused"), (rows, 1, 1), 256, 0;
            &mut fused, &labels, &mut losses, &scale, rows as i64, vocab as i32);
        launch!(cuda, "cross_entropy_mean_f32", (1, 1, 1), 256, 0; &losses, &scale, &mut mean, rows as i64);
        assert_near(&format!("{what}, fused"), &mean, &loss, 1e-5);
        assert_near(&format!("{what}, fused: dlogits"), &fused, &gradients[0], T::TOLERANCE);
    }
    // a label that is no class, and a mean over nothing, are seen as NaN
    let (mut lse, mut losses) = (unwritten::<f32>(2), vec![0f32; 2]);
    launch!(cuda, format!("cross_entropy_forward_{}", T::SUFFIX), (2, 1, 1), 256, 0;
        &numbers::<T>(6, 1), &vec![3i64, 2], &mut lse, &mut losses, 2i64, 3);
    assert!(losses[0].is_nan() && losses[1].is_finite());
    let (mut scale, mut mean) = (vec![0f32], vec![0f32]);
    launch!(cuda, "cross_entropy_count", (1, 1, 1), 256, 0; &vec![IGNORE; 3], &mut scale, 3i64);
    launch!(cuda, "cross_entropy_mean_f32", (1, 1, 1), 256, 0; &vec![0f32; 3], &scale, &mut mean, 3i64);
    assert!(mean[0].is_nan());
}

#[test]
fn cross_entropy_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        cross_entropy::<f32>(cuda);
        cross_entropy::<Bf16>(cuda);
    });
}

fn distillation<T: Number>(cuda: &Emulator) {
    for (rows, vocab) in [(1usize, 2usize), (5, 37), (3, 1000)] {
        let student: Vec<T> = numbers::<f32>(rows * vocab, 1).iter().map(|v| T::from_f32(8.0 * v)).collect();
        // many tokens of the teacher are equally likely, of both signs
        let teacher: Vec<T> = numbers::<f32>(rows * vocab, 2)
            .iter()
            .map(|v| T::from_f32((8.0 * v).round() / 2.0 + 0.25))
            .collect();
        let likely = Tensor::from_vec(wide(&teacher), (rows, vocab), &Device::Cpu).unwrap();
        for top_p in [None, Some(0.03), Some(0.7), Some(0.999)] {
            let (loss, gradients) = differentiate(&[(&[rows, vocab], wide(&student))], None, |x, _| {
                x[0].distillation(&likely, top_p)
            });
            let what = format!("distillation {rows} x {vocab}, {top_p:?}");
            let (mut losses, mut dx) = (unwritten::<f32>(rows), unwritten::<T>(rows * vocab));
            let name = format!("distillation_{}", T::SUFFIX);
            let (p, share) = (top_p.unwrap_or(1.0) as f32, 1.0 / rows as f32);
            launch!(cuda, name, (rows, 1, 1), 256, 0;
                &student, &teacher, &mut dx, &mut losses, vocab as i32, p, share);
            let mean = losses.iter().sum::<f32>() * share;
            assert_near(&what, &[mean], &loss, 1e-5);
            assert_near(&format!("{what}: gradient"), &dx, &gradients[0], T::TOLERANCE);
            let mut alone = unwritten::<f32>(rows);
            launch!(cuda, name, (rows, 1, 1), 256, 0;
                &student, &teacher, NULL, &mut alone, vocab as i32, p, share);
            assert_eq!(alone, losses);
        }
    }
}

#[test]
fn distillation_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        distillation::<f32>(cuda);
        distillation::<Bf16>(cuda);
    });
}

/// Norm, clipping and three steps against the formulas of `replica-train`'s AdamW in double precision.
#[test]
fn adamw_takes_the_steps_of_the_cpu() {
    Emulator::in_both_orders(|cuda| {
        let (beta1, beta2, eps, lr, decay, clip) = (0.9f64, 0.95f64, 1e-5f64, 0.01f64, 0.1f64, 1.0f64);
        for n in [5usize, 6003] {
            let mut w = numbers::<f32>(n, 1);
            let (mut m, mut v) = (vec![0f32; n], vec![0f32; n]);
            let mut copy = unwritten::<Bf16>(n);
            let (mut w64, mut m64, mut v64) = (wide(&w), vec![0f64; n], vec![0f64; n]);
            for step in 1..=3 {
                let g = numbers::<f32>(n, 10 + step as u64);
                let blocks = 3;
                let (mut parts, mut state) = (unwritten::<f32>(blocks), unwritten::<f32>(3));
                launch!(cuda, "sum_squares_f32", (blocks, 1, 1), 256, 0; &g, n as i64, &mut parts);
                launch!(cuda, "clip_f32", (1, 1, 1), 256, 0; &parts, blocks as i32, clip as f32, &mut state);
                let norm = wide(&g).iter().map(|g| g * g).sum::<f64>().sqrt();
                let factor = (clip / (norm + 1e-6)).min(1.0);
                assert_near("norm, factor and flag", &state, &[norm, factor, 1.0], 1e-6);

                let correction = |beta: f64| 1.0 - beta.powi(step);
                let hyper = [lr / correction(beta1), 1.0 / correction(beta2).sqrt(), 1.0 - lr * decay];
                let hyper = hyper.map(|h| h as f32).to_vec();
                launch!(cuda, "adamw_f32", elementwise(n), 256, 0; &mut w, &mut m, &mut v, &g, &mut copy,
                    n as i64, &hyper, &state, beta1 as f32, beta2 as f32, eps as f32);
                for i in 0..n {
                    let g = f64::from(g[i]) * factor;
                    m64[i] = beta1 * m64[i] + (1.0 - beta1) * g;
                    v64[i] = beta2 * v64[i] + (1.0 - beta2) * g * g;
                    let denominator = (v64[i] / correction(beta2)).sqrt() + eps;
                    w64[i] = w64[i] * (1.0 - lr * decay) - lr / correction(beta1) * m64[i] / denominator;
                }
                assert_near("weights", &w, &w64, 1e-5);
                let rounded: Vec<Bf16> = w.iter().map(|w| Bf16::from_f32(*w)).collect();
                assert_eq!(copy, rounded);
            }
            // what is not finite changes nothing
            let (before, mut state) = (w.clone(), unwritten::<f32>(3));
            launch!(cuda, "clip_f32", (1, 1, 1), 256, 0; &vec![1f32, f32::INFINITY], 2, 1f32, &mut state);
            assert_eq!(state[2], 0.0);
            launch!(cuda, "adamw_f32", elementwise(n), 256, 0; &mut w, &mut m, &mut v, &before, NULL,
                n as i64, &vec![1f32, 1.0, 1.0], &state, 0.9f32, 0.9f32, 1e-8f32);
            assert_eq!(w, before);
        }
    });
}
