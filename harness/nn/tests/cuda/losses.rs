//! Losses.

use candle_core::{Device, Tensor};
use replica_core::Seed;

use crate::compared::{check, labels, numbers, sent};

#[test]
fn losses() {
    for (n, k, vocab) in [(1, 3, 2), (40, 16, 301), (700, 64, 5000)] {
        check("cross_entropy", &[&[n, vocab]], &|x, _| {
            x[0].cross_entropy(&labels(n, vocab, x[0].tensor().device()))
        });
        check("linear_cross_entropy", &[&[n, k], &[vocab, k], &[vocab]], &|x, w| {
            x[0].linear_cross_entropy(&w[1], Some(&w[2]), &labels(n, vocab, w[1].device()))
        });
    }
}

/// Of all tokens, and of a nucleus of several and of one.
#[test]
fn distillation() {
    for (n, vocab) in [(1, 2), (40, 301), (3, 5000)] {
        for top_p in [None, Some(1e-5), Some(0.7)] {
            check("distillation", &[&[n, vocab]], &|x, _| {
                let teacher = numbers(n * vocab, &mut Seed(3).stream("teacher"));
                let teacher = Tensor::from_vec(teacher, (n, vocab), &Device::Cpu)?;
                let teacher = sent(&teacher, x[0].tensor().dtype(), x[0].tensor().device());
                x[0].distillation(&teacher, top_p)
            });
        }
    }
}

/// More rows than fit in one group of logits.
#[test]
fn a_loss_in_several_groups() {
    let (n, k, vocab) = (1300, 4, 60_000);
    check("linear_cross_entropy", &[&[n, k], &[vocab, k]], &|x, w| {
        x[0].linear_cross_entropy(&w[1], None, &labels(n, vocab, w[1].device()))
    });
}
