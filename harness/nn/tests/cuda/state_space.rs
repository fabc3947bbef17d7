//! Convolutions, kernels and scans.

use candle_core::Tensor;
use replica_nn::ops::{
    Activation, DiagonalKernel, DiagonalScan, Discretisation, LowRankKernel, SelectiveScan, StepTransform,
};

use crate::compared::{LENGTHS, check};

#[test]
fn short_convolutions() {
    for l in LENGTHS {
        for taps in [1, 4] {
            let shapes: [&[usize]; 3] = [&[2, l, 5], &[6, 5, taps], &[6]];
            check("causal_conv1d", &shapes, &|x, w| x[0].causal_conv1d(&w[1], Some(&w[2])));
            check("causal_conv1d without bias", &shapes[..2], &|x, w| {
                // twice: the second gradient is added to the first
                x[0].causal_conv1d(&w[1], None)?.add(&x[0].causal_conv1d(&w[1], None)?)
            });
        }
        for (channels, taps) in [(5, 4), (130, 7)] {
            for silu in [false, true] {
                let shapes: [&[usize]; 3] = [&[2, l, channels], &[channels, 1, taps], &[channels]];
                check("depthwise_conv1d", &shapes, &|x, w| x[0].depthwise_conv1d(&w[1], Some(&w[2]), silu));
                check("depthwise_conv1d without bias", &shapes[..2], &|x, w| {
                    x[0].depthwise_conv1d(&w[1], None, silu)
                });
            }
        }
    }
}

#[test]
fn long_convolutions() {
    for (batch, h, l, taps, sides) in [
        (1, 1, 1, 1, 1),
        (3, 2, 2, 5, 2),
        (2, 3, 7, 7, 2),
        (11, 2, 64, 64, 1),
        (3, 1, 1000, 1000, 2),
        (3, 1, 1000, 30, 1),
        (3, 1, 5000, 5000, 1),
        (1, 1, 16384, 16384, 2),
    ] {
        check("causal_convolution", &[&[batch, h, l], &[sides, h, taps], &[h]], &|x, w| {
            // taps get smaller, as those of a model do, so that sums do not lose digits in either order
            x[0].causal_convolution(&x[1].scale(1.0 / taps as f64)?, &w[2])
        });
    }
}

/// Parameters of diagonal kernels in the order of [`diagonal`]: steps, A, B, C.
fn kernel_shapes(kernels: usize, copies: usize, h: usize, n: usize) -> [Vec<usize>; 5] {
    [vec![h], vec![copies, n], vec![copies, n], vec![1, copies, n, 2], vec![kernels, h, n, 2]]
}

fn diagonal(w: &[Tensor], discretisation: Discretisation, length: usize) -> DiagonalKernel {
    DiagonalKernel {
        step: w[0].clone(),
        a_real: w[1].clone(),
        a_imag: w[2].clone(),
        b: Some(w[3].clone()),
        c: w[4].clone(),
        transform: if length == 64 { StepTransform::Exp } else { StepTransform::Softplus },
        conjugate: length != 2,
        discretisation,
        // modes live on over a good part of the sequence
        rate: 3.0 / length as f64,
    }
}

#[test]
fn kernels_of_state_space_models() {
    for length in [1, 2, 7, 64, 1000, 1021] {
        for (kernels, copies, h, n) in [(1, 1, 1, 1), (2, 2, 6, 3), (1, 2, 2, 33)] {
            let mut shapes = kernel_shapes(kernels, copies, h, n).to_vec();
            for discretisation in [Discretisation::ZeroOrderHold, Discretisation::Bilinear] {
                let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
                check("diagonal kernel", &views, &|x, w| {
                    diagonal(w, discretisation, length).taps(length, &x[0])
                });
            }
            shapes.push(vec![1, copies, n, 2]);
            let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            check("low-rank kernel", &views, &|x, w| {
                let diagonal = diagonal(w, Discretisation::Bilinear, length);
                LowRankKernel { diagonal, p: w[5].clone() }.taps(length, &x[0])
            });
        }
    }
}

#[test]
fn diagonal_scans() {
    for l in LENGTHS {
        for (bidirectional, whole, varying, discretisation) in [
            (false, true, false, Discretisation::ZeroOrderHold),
            (false, true, true, Discretisation::ZeroOrderHold),
            (true, true, false, Discretisation::Bilinear),
            (true, false, true, Discretisation::Bilinear),
        ] {
            let (batch, h, p) = (2, 3, 70);
            let modes = if bidirectional && whole { 2 * p } else { p };
            let (input, lambda, step, b, d) = ([batch, l, h], [p], [p, 1], [p, h, 2], [h]);
            let c: &[usize] = &[h, modes, 2];
            let mut shapes: Vec<&[usize]> = vec![&input, &lambda, &lambda, &step, &b, &d, c];
            if bidirectional && !whole {
                shapes.push(c);
            }
            check("diagonal_scan", &shapes, &|x, w| {
                let intervals: Vec<f32> = (0..batch * l).map(|i| 0.25 + (i % 7) as f32 / 8.0).collect();
                let intervals = Tensor::from_vec(intervals, (batch, l), w[0].device())?;
                let model = DiagonalScan {
                    lambda_re: w[1].clone(),
                    lambda_im: w[2].clone(),
                    log_step: w[3].clone(),
                    b: w[4].clone(),
                    c: w[6..].to_vec(),
                    skip: w[5].clone(),
                    discretisation,
                    bidirectional,
                    conjugate_pairs: l != 7,
                    clip: true,
                    rate: 2.0 / l as f64,
                };
                x[0].diagonal_scan(&model, varying.then_some(&intervals))
            });
        }
    }
}

#[test]
fn selective_scans() {
    // five chunks, the last one not full; all of them by the thousand take minutes on an emulated device, and Mamba's
    // layer below has a thousand steps
    for l in [1, 2, 7, 64, 133] {
        for (batch, d, n, softplus) in [(1, 1, 1, true), (2, 37, 16, true), (2, 5, 3, false)] {
            let (inputs, modes, a, channel) = ([batch, l, d], [batch, l, n], [d, n], [d]);
            let mut shapes: Vec<&[usize]> = vec![&inputs, &inputs, &modes, &modes, &a, &channel];
            if softplus {
                shapes.push(&channel);
            }
            check("selective_scan", &shapes, &|x, w| {
                let weights = SelectiveScan {
                    a_log: w[4].clone(),
                    skip: Some(w[5].clone()),
                    delta_bias: w.get(6).cloned(),
                    softplus,
                };
                // steps are positive without softplus too
                let delta = if softplus { x[1].clone() } else { x[1].activate(Activation::Sigmoid)? };
                x[0].selective_scan(&delta, &x[2], &x[3], &weights)
            });
        }
    }
}
