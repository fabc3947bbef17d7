//! SMR as a plug-in: the composite is the composition, outputs do not see later inputs, gates only shrink.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use rand::Rng;
use replica_core::Seed;
use replica_nn::ops::Dropout;
use replica_nn::{Parameters, Value};
use replica_smr::host::{InitialModes, S5Activation, S5Output, Surroundings};
use replica_smr::replay::{Channels, Place};
use replica_smr::{Host, HostConfig, Replay, ReplayConfig};

fn replay(taps: usize, place: Place) -> ReplayConfig {
    ReplayConfig { taps, channels: Channels::Dense, linear: false, gate: true, bias: None, place }
}

fn hosts(bidirectional: bool) -> Vec<HostConfig> {
    let steps = (1e-3, 1e-1);
    let mut hosts = vec![
        HostConfig::S4d { state: 8, sets: None, modes: InitialModes::Lin, steps, bidirectional },
        HostConfig::S4 { state: 4, sets: Some(1), steps, bidirectional },
        HostConfig::S5 {
            state: 8,
            blocks: 2,
            steps,
            output: S5Output::Lecun,
            activation: S5Activation::FullGlu,
            bidirectional,
            clip: false,
        },
    ];
    if !bidirectional {
        hosts.extend([HostConfig::None {}, HostConfig::Mamba { state: 4, expand: 2, taps: 4 }]);
    }
    hosts
}

/// Hosts of which a part sees SMR's result.
fn hosts_with_attention(bidirectional: bool) -> [HostConfig; 2] {
    let chunk = Some(5);
    let steps = (1e-3, 1e-1);
    [
        HostConfig::Mega { shared: 3, state: 2, expand: 2, truncation: Some(9), chunk, bidirectional },
        HostConfig::Spade { state: 4, sets: None, steps, heads: 2, radius: 3, expand: 2, bidirectional },
    ]
}

const WIDTH: usize = 6;

fn around(length: usize) -> Surroundings {
    Surroundings { width: WIDTH, layers: 2, index: 0, length, dropout: 0.0, tied_dropout: false }
}

fn parameters(seed: u64) -> Parameters {
    Parameters::new(Seed(seed), DType::F32, &Device::Cpu)
}

fn input(seed: u64, batch: usize, l: usize) -> Vec<f32> {
    let mut rng = Seed(seed).stream("input");
    (0..batch * l * WIDTH).map(|_| rng.next_u32() as f32 / 2f32.powi(31) - 1.0).collect()
}

fn value(data: &[f32], batch: usize, l: usize) -> Value {
    Value::from(Tensor::from_slice(data, (batch, l, WIDTH), &Device::Cpu).unwrap())
}

fn output(y: &Value) -> Vec<f32> {
    y.tensor().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference over steps before `t` of the first sequence.
fn difference_before(a: &[f32], b: &[f32], t: usize) -> f32 {
    a[..t * WIDTH].iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// `host(smr(x))`, to the bit: no host is changed by what stands before it.
    #[test]
    fn the_composite_is_the_composition(l in 1usize..20, taps in 1usize..9, seed: u64) {
        for bidirectional in [false, true] {
            for config in hosts(bidirectional) {
                let parameters = parameters(seed);
                let vb = parameters.builder();
                let both = Host::new(config, Some(replay(taps, Place::Input)), around(l), vb.clone()).unwrap();
                let host = Host::new(config, None, around(l), vb.clone()).unwrap();
                let module = Replay::new(replay(taps, Place::Input), WIDTH, vb.pp("smr")).unwrap();
                let x = value(&input(seed, 2, l), 2, l);
                let composite = both.forward(&x, &x, None, None).unwrap();
                let composition = host.forward(&module.forward(&x).unwrap(), &x, None, None).unwrap();
                prop_assert_eq!(output(&composite), output(&composition), "{:?}", config);
            }
        }
    }

    /// A change of one input changes no earlier output, whatever the place of the module. A convolution by FFT leaves
    /// rounding.
    #[test]
    fn outputs_do_not_see_later_inputs(l in 1usize..24, place in 0usize..24, taps in 1usize..9, seed: u64) {
        let t = place % l;
        let cases = hosts(false).into_iter().chain(hosts_with_attention(false)).map(|host| (host, Place::Input));
        let scan = (HostConfig::Mamba { state: 4, expand: 2, taps: 4 }, Place::Scan);
        for (config, place) in cases.chain([scan]) {
            prop_assert!(config.is_causal());
            let parameters = parameters(seed);
            let host = Host::new(config, Some(replay(taps, place)), around(l), parameters.builder()).unwrap();
            let before = input(seed, 1, l);
            let mut after = before.clone();
            after[t * WIDTH..(t + 1) * WIDTH].iter_mut().for_each(|x| *x = 3.0 - *x);
            let run = |x: &[f32]| {
                let x = value(x, 1, l);
                output(&host.forward(&x, &x, None, None).unwrap())
            };
            let (before, after) = (run(&before), run(&after));
            let leak = difference_before(&before, &after, t);
            prop_assert!(leak <= 1e-5, "{:?}, step {}: {}", config, t, leak);
            prop_assert!(difference_before(&before[t * WIDTH..], &after[t * WIDTH..], 1) > 1e-4, "{:?}", config);
        }
    }

    /// A gate lies between 0 and 1: it neither flips nor amplifies; with K = 1 it sees its own step only.
    #[test]
    fn gates_shrink(l in 1usize..12, taps in 1usize..6, seed: u64) {
        for channels in [Channels::Dense, Channels::Depthwise] {
            for linear in [false, true] {
                let config = ReplayConfig { channels, linear, ..replay(taps, Place::Input) };
                let parameters = parameters(seed);
                let module = Replay::new(config, WIDTH, parameters.builder()).unwrap();
                let x = input(seed, 1, l);
                let y = output(&module.forward(&value(&x, 1, l)).unwrap());
                prop_assert!(x.iter().zip(&y).all(|(x, y)| y.abs() <= x.abs() && x * y >= 0.0));
            }
        }
    }
}

#[test]
fn a_bidirectional_host_sees_later_inputs() {
    for config in hosts(true).into_iter().chain(hosts_with_attention(true)) {
        assert!(!config.is_causal());
        let parameters = parameters(1);
        let host = Host::new(config, None, around(8), parameters.builder()).unwrap();
        let before = input(1, 1, 8);
        let mut after = before.clone();
        // not all channels alike, which a layer norm would take out
        after[7 * WIDTH..].iter_mut().enumerate().for_each(|(i, x)| *x += 10.0 * i as f32);
        let run = |x: &[f32]| {
            let x = value(x, 1, 8);
            output(&host.forward(&x, &x, None, None).unwrap())
        };
        assert!(difference_before(&run(&before), &run(&after), 7) > 1e-3, "{config:?}");
    }
}

/// In Mega and SPADE only the moving average, or S4, sees SMR's result: gates that are constant are the same as smaller
/// weights on the inputs of these, the residual of the average and the skip D included. Every channel has another gate: a
/// common one would be taken out by the norm behind S4.
#[test]
fn hosts_with_attention_see_the_module_where_their_memory_is() {
    let bias = |channel: usize| 0.8 * channel as f32 - 2.0;
    let gate = |channel: usize| 1.0 / (1.0 + (-bias(channel)).exp());
    for bidirectional in [false, true] {
        for config in hosts_with_attention(bidirectional) {
            let parameters = parameters(3);
            let vb = parameters.builder();
            let with = |replay| Host::new(config, replay, around(12), vb.clone()).unwrap();
            let (plain, gated) = (with(None), with(Some(replay(1, Place::Input))));
            let x = value(&input(2, 2, 12), 2, 12);
            let run = |host: &Host| output(&host.forward(&x, &x, None, None).unwrap());
            let before = run(&plain);
            let change = |name: &str, f: &dyn Fn(usize, f32) -> f32| {
                let (_, var) = parameters.all().into_iter().find(|(n, _)| n == name).unwrap();
                let old: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
                let new: Vec<f32> = old.iter().enumerate().map(|(i, v)| f(i, *v)).collect();
                var.set(&Tensor::from_vec(new, var.shape(), &Device::Cpu).unwrap()).unwrap();
            };
            change("smr.conv.weight", &|_, _| 0.0);
            change("smr.conv.bias", &|i, _| bias(i));
            let gated = run(&gated);
            // numbers of a channel, which lie side by side, and channels
            let (of_inputs, skip, each) = match config {
                HostConfig::Mega { state, .. } => ("move.beta", "move.omega", state),
                _ => ("s4_module.s4.kernel.B", "s4_module.s4.D", 4),
            };
            change(of_inputs, &|i, v| v * gate(i / each % WIDTH));
            change(skip, &|i, v| v * gate(i));
            let after = run(&plain);
            let apart = |a: &[f32]| difference_before(a, &gated, 24);
            assert!(apart(&after) < 1e-4, "{config:?}: {}", apart(&after));
            assert!(apart(&before) > 1e-3, "{config:?}: {}", apart(&before));
        }
    }
}

/// Tied over the steps of a sequence, dropout leaves a channel of a layer's output out or leaves it as it is.
#[test]
fn tied_dropout_drops_whole_channels() {
    let (batch, l) = (3, 10);
    for config in hosts(true).into_iter().chain(hosts(false)).chain(hosts_with_attention(false)) {
        for tied_dropout in [false, true] {
            let around = Surroundings { dropout: 0.5, tied_dropout, ..around(l) };
            let parameters = parameters(1);
            let host = Host::new(config, None, around, parameters.builder()).unwrap();
            let x = value(&input(1, batch, l), batch, l);
            if tied_dropout && !config.can_tie_dropout() {
                continue;
            }
            let y = output(&host.forward(&x, &x, None, Some(&Dropout::new(1, 1))).unwrap());
            let dropped = |b: usize, c: usize| (0..l).filter(|t| y[(b * l + t) * WIDTH + c] == 0.0).count();
            let counts: Vec<usize> = (0..batch * WIDTH).map(|i| dropped(i / WIDTH, i % WIDTH)).collect();
            let whole = counts.iter().all(|n| [0, l].contains(n));
            assert_eq!(whole && counts.contains(&l), tied_dropout, "{config:?}: {counts:?}");
        }
    }
}

/// Parameters of a layer as the paper card counts them: K H^2 + H dense, K H + H depthwise.
#[test]
fn parameters_are_counted() {
    let count = |config| {
        let parameters = parameters(1);
        Replay::new(config, 256, parameters.builder()).unwrap();
        parameters.count()
    };
    let dense = replay(4, Place::Input);
    assert_eq!(count(dense), 262_400);
    assert_eq!(count(ReplayConfig { linear: true, ..dense }), 262_400 + 256 * 256 + 256);
    assert_eq!(count(ReplayConfig { channels: Channels::Depthwise, ..dense }), 4 * 256 + 256);
}

/// Lengths at and beside the usual pitfalls, forward and backward.
#[test]
fn any_length_works() {
    for l in [1, 2, 7, 64, 1000] {
        for config in
            hosts(false).into_iter().chain(hosts_with_attention(false)).chain(hosts_with_attention(true))
        {
            let parameters = parameters(1);
            let host =
                Host::new(config, Some(replay(4, Place::Input)), around(l), parameters.builder()).unwrap();
            let gradients = replica_nn::Gradients::default();
            let tape = replica_nn::Tape::new(&gradients);
            let x = tape.constant(value(&input(1, 1, l), 1, l).tensor().clone());
            tape.backward(&host.forward(&x, &x, None, None).unwrap().sum().unwrap()).unwrap();
            for parameter in parameters.trained() {
                let g = gradients.tensor(parameter.variable.as_tensor()).unwrap();
                let g: Vec<f32> = g.flatten_all().unwrap().to_vec1().unwrap();
                assert!(g.iter().all(|g| g.is_finite()), "{config:?}, {l} steps: {}", parameter.name);
            }
        }
    }
}
