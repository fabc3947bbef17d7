//! The module, heads and state errors in float32 against vectors computed in float64
//! (golden/reference/smr/README.md, whose tolerances these are). The hosts are compared in `replica-nn`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use replica_nn::ops::{Activation, Discretisation};
use replica_nn::{Complex64, Gradients, Parameters, S4d, Tape, Value};
use replica_oracle::{Case, Tally, Tolerance, cases, files, folder, stem, within};
use replica_smr::replay::{Channels, Place};
use replica_smr::state_error::{Input, distances, states};
use replica_smr::{Replay, ReplayConfig};

#[test]
fn oracle() {
    let mut tally = Tally::default();
    for path in files(&folder("smr"), "safetensors") {
        let test: fn(&Case, &mut Tally) = match stem(&path) {
            "smr_module" => module,
            "smr_s4d_block" => in_front_of_s4d,
            "heads" => heads,
            "nss_toy" => state_errors,
            _ => continue, // of the hosts
        };
        cases(&path).iter().for_each(|case| test(case, &mut tally));
    }
    phi(&mut tally);
    tally.finish();
}

fn tolerance(case: &Case, expected: &Tensor, gradient: bool) -> Tolerance {
    let flat = expected.abs().unwrap().flatten_all().unwrap();
    let scale = flat.max(0).unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap().max(1.0);
    match (gradient, case.name.contains("_L1000")) {
        (false, false) => within(1e-5 * scale, 1e-4),
        (false, true) => within(5e-5 * scale, 1e-4),
        (true, false) => within(5e-5 * scale, 5e-4),
        (true, true) => within(3e-4 * scale, 1e-3),
    }
}

/// The inputs that have a gradient, as parameters under the names of this crate.
fn parameters(case: &Case, names: &[(&str, &str)]) -> Parameters {
    let given: HashMap<String, Tensor> = names
        .iter()
        .filter(|(theirs, _)| case.has(theirs))
        .map(|(theirs, ours)| ((*ours).to_owned(), case.tensor(theirs).clone()))
        .collect();
    Parameters::from_tensors(given, DType::F32, &Device::Cpu).unwrap()
}

/// Compares the gradients of sum(y * grad_out) by everything the file has one for.
fn backward(
    case: &Case,
    tally: &mut Tally,
    (y, tape, gradients): (&Value, &Tape, &Gradients),
    parameters: &Parameters,
    names: &[(&str, &str)],
) {
    tape.backward_from(y, case.tensor("grad_out").clone()).unwrap();
    for name in case.names().into_iter().filter_map(|name| name.strip_prefix("d_")) {
        let ours = names.iter().find(|(theirs, _)| *theirs == name);
        let (_, ours) = ours.unwrap_or_else(|| panic!("{}: d_{name} is not compared", case.name));
        let got = gradients.tensor(&parameters.get(ours).unwrap());
        let got = got.unwrap_or_else(|| panic!("{}: `{name}` got no gradient", case.name));
        let expected = case.tensor(&format!("d_{name}"));
        tally.tensor(&case.name, &format!("d_{name}"), &got, expected, tolerance(case, expected, true));
    }
}

fn result(case: &Case, tally: &mut Tally, name: &str, got: &Value) {
    let expected = case.tensor(name);
    tally.tensor(&case.name, name, got.tensor(), expected, tolerance(case, expected, false));
}

fn config(case: &Case, weight: &str) -> ReplayConfig {
    let depthwise = case.name.contains("depthwise");
    ReplayConfig {
        taps: case.tensor(weight).dim(2).unwrap(),
        channels: if depthwise { Channels::Depthwise } else { Channels::Dense },
        linear: case.has("lin_weight"),
        gate: true,
        bias: None,
        place: Place::Input,
    }
}

/// The files are channel-major, the module is time-major.
fn module(case: &Case, tally: &mut Tally) {
    const NAMES: [(&str, &str); 5] = [
        ("x", "x"),
        ("conv_weight", "conv.weight"),
        ("conv_bias", "conv.bias"),
        ("lin_weight", "linear.weight"),
        ("lin_bias", "linear.bias"),
    ];
    let parameters = parameters(case, &NAMES);
    let width = case.tensor("x").dim(1).unwrap();
    let module = Replay::new(config(case, "conv_weight"), width, parameters.builder()).unwrap();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let x = tape.variable(&parameters.get("x").unwrap()).unwrap().transpose().unwrap();
    let factor = module.factor(&x.detach()).unwrap().transpose().unwrap();
    result(case, tally, "factor", &factor);
    let y = module.forward(&x).unwrap().transpose().unwrap();
    result(case, tally, "out", &y);
    backward(case, tally, (&y, &tape, &gradients), &parameters, &NAMES);
}

fn in_front_of_s4d(case: &Case, tally: &mut Tally) {
    const NAMES: [(&str, &str); 10] = [
        ("u", "u"),
        ("smr_weight", "smr.conv.weight"),
        ("smr_bias", "smr.conv.bias"),
        ("log_dt", "kernel.log_dt"),
        ("log_A_real", "kernel.log_A_real"),
        ("A_imag", "kernel.A_imag"),
        ("C", "kernel.C"),
        ("D", "D"),
        ("glu_weight", "output_linear.0.weight"),
        ("glu_bias", "output_linear.0.bias"),
    ];
    let parameters = parameters(case, &NAMES);
    let (width, n) = case.tensor("A_imag").dims2().unwrap();
    let module = Replay::new(config(case, "smr_weight"), width, parameters.builder().pp("smr")).unwrap();
    let host = S4d::minimal(width, 2 * n, 0.0, parameters.builder()).unwrap();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let u = tape.variable(&parameters.get("u").unwrap()).unwrap().transpose().unwrap();
    let v = module.forward(&u).unwrap();
    result(case, tally, "smr_out", &v.transpose().unwrap());
    let y = host.forward(&v, None).unwrap().transpose().unwrap();
    result(case, tally, "out", &y);
    backward(case, tally, (&y, &tape, &gradients), &parameters, &NAMES);
}

fn heads(case: &Case, tally: &mut Tally) {
    let lengths: Vec<usize> =
        case.tensor("lengths").to_vec1::<i64>().unwrap().into_iter().map(|n| n as usize).collect();
    let mean = Value::from(case.tensor("x").clone()).mean_of_first(&lengths).unwrap();
    result(case, tally, "masked_mean", &mean);
    let features = mean.pair_features().unwrap();
    result(case, tally, "retrieval_features", &features);
    let hidden = features.linear(case.tensor("W1"), Some(case.tensor("b1"))).unwrap();
    for (name, gelu) in [
        ("retrieval_logits_exact_gelu", Activation::Gelu),
        ("retrieval_logits_tanh_gelu", Activation::GeluTanh),
    ] {
        let y = hidden.activate(gelu).unwrap().linear(case.tensor("W2"), Some(case.tensor("b2"))).unwrap();
        result(case, tally, name, &y);
    }
}

fn numbers(case: &Case, name: &str) -> Vec<f64> {
    case.tensor(name).to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Within 1e-4 of the largest entry, as the file's README says.
fn state_errors(case: &Case, tally: &mut Tally) {
    let compare = |tally: &mut Tally, name: &str, got: &[f64]| {
        let expected = numbers(case, name);
        let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        tally.numbers(&case.name, name, got, &expected, within(1e-4 * largest, 0.0));
    };
    let waves = numbers(case, "amp").into_iter().zip(numbers(case, "freq")).zip(numbers(case, "phase"));
    let input = Input { waves: waves.map(|((a, f), phase)| (a, f, phase)).collect() };
    let lambda: Vec<Complex64> = numbers(case, "A_re")
        .into_iter()
        .zip(numbers(case, "A_im"))
        .map(|(re, im)| Complex64::new(re, im))
        .collect();
    let step = numbers(case, "delta")[0];
    let fed = |times: &str| -> Vec<f64> { numbers(case, times).iter().map(|t| input.at(*t)).collect() };
    let (uniform, jittered) = (fed("t_uniform"), fed("t_jittered"));
    compare(tally, "u_uniform", &uniform);
    compare(tally, "u_jittered", &jittered);
    let times = numbers(case, "t_jittered");
    let gap = |k: usize| if k == 0 { step } else { times[k] - times[k - 1] };
    let runs = [
        ("uniform", states(&lambda, &uniform, |_| step)),
        ("jittered", states(&lambda, &jittered, |_| step)),
        ("varstep", states(&lambda, &jittered, gap)),
    ];
    for (name, x) in &runs {
        let last = x.last().unwrap();
        compare(tally, &format!("x_{name}_last_re"), &last.iter().map(|x| x.re).collect::<Vec<_>>());
        compare(tally, &format!("x_{name}_last_im"), &last.iter().map(|x| x.im).collect::<Vec<_>>());
    }
    compare(tally, "err_norm", &distances(&runs[1].1, &runs[0].1));
}

/// `(exp(z) - 1) / z`, which is what zero-order hold makes of a step of 1; the file has no cases.
fn phi(tally: &mut Tally) {
    let path = folder("smr").join("phi1.safetensors");
    let file = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let column = |name: &str| -> Vec<f64> {
        file[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let z: Vec<Complex64> =
        column("z_re").into_iter().zip(column("z_im")).map(|(re, im)| Complex64::new(re, im)).collect();
    let got: Vec<Complex64> = z.iter().map(|z| Discretisation::ZeroOrderHold.of(*z, 1.0).1).collect();
    let (re, im) = (column("phi1_re"), column("phi1_im"));
    for (i, got) in got.iter().enumerate() {
        let size = re[i].hypot(im[i]);
        let name = format!("phi1[{i}]");
        tally.numbers("phi1", &name, &[got.re, got.im], &[re[i], im[i]], within(2e-6 * size, 0.0));
    }
}
