//! State-space operations in float32 against vectors computed in float64
//! (golden/reference/smr/README.md, whose tolerances these are).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use replica_nn::ops::{
    Activation, DiagonalKernel, DiagonalScan, Discretisation, LowRankKernel, SelectiveScan, StepTransform,
};
use replica_nn::s4d::{Modes, initial_modes};
use replica_nn::s5::OutputInit;
use replica_nn::{
    BatchNorm, Gradients, Mamba, MambaConfig, Parameters, S4d, S4dConfig, S5, S5Config, Tape, Value, hippo,
};
use replica_oracle::{Case, Tally, Tolerance, cases, files, folder, stem, within};

#[test]
fn oracle() {
    let mut tally = Tally::default();
    for path in files(&folder("smr"), "safetensors") {
        let test: fn(&Pass, &mut Tally) = match stem(&path) {
            "causal_conv" => convolution,
            "s4d_standalone" => s4d,
            "s4d_kernel_diag" => diagonal_kernel,
            "s4_kernel_dplr" => low_rank_kernel,
            "s5_ssm" | "s5_varstep" => s5,
            "mamba_scan" => mamba_scan,
            "s4_block" => s4d_block,
            "s4_inits" => s4_initial_values,
            "s5_init" => s5_initial_values,
            "s5_layer" => s5_layer,
            "mamba_block" => mamba_block,
            _ => continue, // of the replication, not of these operations
        };
        for case in cases(&path) {
            let pass = Pass::new(case);
            test(&pass, &mut tally);
            pass.assert_all_gradients_compared();
        }
    }
    tally.finish();
}

/// One case: its inputs as variables, a tape, and which gradients have been compared.
struct Pass {
    case: Case,
    gradients: Gradients,
    tape: Tape,
    variables: RefCell<BTreeMap<String, Var>>,
    compared: RefCell<Vec<String>>,
    /// Time steps, which the tolerance depends on.
    l: usize,
}

impl Pass {
    fn new(case: Case) -> Self {
        let gradients = Gradients::default();
        let l =
            case.name.split(['/', '_']).find_map(|part| part.strip_prefix('L')?.parse().ok()).unwrap_or(0);
        let tape = Tape::new(&gradients);
        Self { case, gradients, tape, variables: RefCell::default(), compared: RefCell::default(), l }
    }

    /// An input as a weight.
    fn weight(&self, name: &str) -> Tensor {
        self.weight_from(name, self.case.tensor(name))
    }

    /// As [`Pass::weight`], of another shape or value than the file's.
    fn weight_from(&self, name: &str, tensor: &Tensor) -> Tensor {
        let mut variables = self.variables.borrow_mut();
        let variable = variables.entry(name.to_owned()).or_insert_with(|| Var::from_tensor(tensor).unwrap());
        variable.as_tensor().clone()
    }

    /// An input as a value.
    fn value(&self, name: &str) -> Value {
        self.tape.variable(&self.weight(name)).unwrap()
    }

    fn tolerance(&self, expected: &Tensor, gradient: bool) -> Tolerance {
        let flat = expected.abs().unwrap().flatten_all().unwrap();
        let scale = flat.max(0).unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap().max(1.0);
        match (gradient, self.l > 64) {
            (false, false) => within(1e-5 * scale, 1e-4),
            (false, true) => within(5e-5 * scale, 1e-4),
            (true, false) => within(5e-5 * scale, 5e-4),
            (true, true) => within(3e-4 * scale, 1e-3),
        }
    }

    /// Compares a result.
    fn result(&self, tally: &mut Tally, name: &str, got: &Tensor) {
        let expected = self.case.tensor(name);
        tally.tensor(&self.case.name, name, got, expected, self.tolerance(expected, false));
    }

    fn gradient(&self, tally: &mut Tally, name: &str, got: &Tensor) {
        let name = format!("d_{name}");
        let expected = self.case.tensor(&name);
        tally.tensor(&self.case.name, &name, got, expected, self.tolerance(expected, true));
        self.compared.borrow_mut().push(name);
    }

    /// Compares the gradients of sum(y * cotangent) by all inputs that were asked for.
    fn backward(&self, tally: &mut Tally, y: &Value, cotangent: &str) {
        let cotangent = self.case.tensor(cotangent).reshape(y.tensor().shape()).unwrap();
        self.tape.backward_from(y, cotangent).unwrap();
        for name in self.variables.borrow().keys() {
            self.gradient(tally, name, &self.gradient_of(name));
        }
    }

    fn gradient_of(&self, name: &str) -> Tensor {
        let variable = &self.variables.borrow()[name];
        self.gradients
            .tensor(variable)
            .unwrap_or_else(|| panic!("{}: `{name}` got no gradient", self.case.name))
    }

    /// Every gradient in the file has been compared.
    fn assert_all_gradients_compared(&self) {
        let given = self.case.names().into_iter().filter(|name| name.starts_with("d_"));
        for name in given {
            assert!(
                self.compared.borrow().iter().any(|c| c == name),
                "{}: {name} not compared",
                self.case.name
            );
        }
    }
}

fn convolution(pass: &Pass, tally: &mut Tally) {
    let y = pass.value("u").causal_convolution(&pass.value("k"), &pass.weight("D")).unwrap();
    pass.result(tally, "out", y.tensor());
    pass.backward(tally, &y, "grad_out");
}

/// The minimal S4D layer, channel-major.
fn s4d(pass: &Pass, tally: &mut Tally) {
    let u = pass.value("u");
    let kernel = DiagonalKernel {
        step: pass.weight("log_dt"),
        a_real: pass.weight("log_A_real"),
        a_imag: pass.weight("A_imag"),
        b: None,
        c: pass.weight("C"),
        transform: StepTransform::Exp,
        conjugate: false,
        discretisation: Discretisation::ZeroOrderHold,
        rate: 1.0,
    };
    let taps = kernel.taps(u.tensor().dim(2).unwrap(), &u).unwrap();
    let y = u.causal_convolution(&taps, &pass.weight("D")).unwrap();
    pass.result(tally, "kernel", taps.tensor());
    pass.result(tally, "ssm_out", y.tensor());
    let weight = pass.weight_from("glu_weight", &pass.case.tensor("glu_weight").squeeze(2).unwrap());
    let y = y.activate(Activation::Gelu).unwrap().transpose().unwrap();
    let y = y.linear(&weight, Some(&pass.weight("glu_bias"))).unwrap().glu().unwrap().transpose().unwrap();
    pass.result(tally, "out", y.tensor());
    pass.backward(tally, &y, "grad_out");
}

/// S4's parameters; `c` is the name of C in the file.
fn kernel_parameters(pass: &Pass, c: &str) -> DiagonalKernel {
    let exp = pass.case.name.ends_with("exp");
    DiagonalKernel {
        step: pass.weight("inv_dt"),
        a_real: pass.weight("A_real"),
        a_imag: pass.weight("A_imag"),
        b: Some(pass.weight("B")),
        c: pass.weight_from(c, &pass.case.tensor(c).to_dtype(DType::F32).unwrap()),
        transform: if exp { StepTransform::Exp } else { StepTransform::Softplus },
        conjugate: true,
        discretisation: discretisation(&pass.case),
        rate: 1.0,
    }
}

fn kernel_case(pass: &Pass, tally: &mut Tally, taps: impl Fn(usize, &Value) -> candle_core::Result<Value>) {
    let length = pass.case.tensor("kernel").dim(2).unwrap();
    // nothing but the tape is needed of it
    let beside = pass.tape.constant(Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    let y = taps(length, &beside).unwrap();
    pass.result(tally, "kernel", y.tensor());
    pass.backward(tally, &y, "grad_kernel");
}

fn diagonal_kernel(pass: &Pass, tally: &mut Tally) {
    let kernel = kernel_parameters(pass, "C");
    kernel_case(pass, tally, |length, beside| kernel.taps(length, beside));
}

fn low_rank_kernel(pass: &Pass, tally: &mut Tally) {
    let diagonal =
        DiagonalKernel { discretisation: Discretisation::Bilinear, ..kernel_parameters(pass, "C_tilde") };
    let kernel = LowRankKernel { diagonal, p: pass.weight("P") };
    // the trained C from the one that was drawn
    let l = pass.case.tensor("kernel").dim(2).unwrap();
    let diagonal = DiagonalKernel { c: pass.case.tensor("C_orig").clone(), ..kernel.diagonal.clone() };
    let drawn = LowRankKernel { diagonal, p: kernel.p.clone() };
    pass.result(tally, "C_tilde", &drawn.trained_c(l).unwrap());
    kernel_case(pass, tally, |length, beside| kernel.taps(length, beside));
}

fn discretisation(case: &Case) -> Discretisation {
    if case.name.contains("bilinear") { Discretisation::Bilinear } else { Discretisation::ZeroOrderHold }
}

fn s5(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let p = case.tensor("Lambda_re").dim(0).unwrap();
    let c: Vec<Tensor> =
        ["C", "C1", "C2"].into_iter().filter(|name| case.has(name)).map(|name| pass.weight(name)).collect();
    let model = DiagonalScan {
        lambda_re: pass.weight("Lambda_re"),
        lambda_im: pass.weight("Lambda_im"),
        log_step: pass.weight("log_step"),
        b: pass.weight("B"),
        bidirectional: c.iter().map(|c| c.dim(1).unwrap()).sum::<usize>() == 2 * p,
        c,
        skip: pass.weight("D"),
        discretisation: discretisation(case),
        conjugate_pairs: true,
        clip: case.name.contains("clip"),
        rate: if case.has("step_rescale") {
            case.tensor("step_rescale").to_vec1::<f64>().unwrap()[0]
        } else {
            1.0
        },
    };
    let u = pass.weight_from("u", &case.tensor("u").unsqueeze(0).unwrap());
    // the first step has interval 1
    let intervals = case.has("gaps").then(|| {
        let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
        let gaps = case.tensor("gaps");
        let all = if gaps.elem_count() == 0 { one } else { Tensor::cat(&[&one, gaps], 0).unwrap() };
        all.unsqueeze(0).unwrap()
    });
    let y = pass.tape.variable(&u).unwrap().diagonal_scan(&model, intervals.as_ref()).unwrap();
    pass.result(tally, "out", y.tensor());
    pass.backward(tally, &y, "grad_out");
}

/// The file is channel-major and holds A, of which the operation takes the logarithm.
fn mamba_scan(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let a = case.tensor("A");
    let optional = |name: &str| case.has(name).then(|| pass.weight(name));
    let weights = SelectiveScan {
        a_log: pass.weight_from("A", &a.neg().unwrap().log().unwrap()),
        skip: optional("D"),
        delta_bias: optional("delta_bias"),
        softplus: case.has("delta_bias"),
    };
    let [u, delta] = ["u", "delta"].map(|name| pass.value(name).transpose().unwrap());
    let per_step = |name: &str| pass.value(name).transpose().unwrap();
    if case.tensor("B").rank() == 2 {
        return constant_projections(pass, tally, &weights);
    }
    let mut y = u.selective_scan(&delta, &per_step("B"), &per_step("C"), &weights).unwrap();
    if case.has("z") {
        y = pass.value("z").transpose().unwrap().gate(&y, Activation::Silu).unwrap();
    }
    let y = y.transpose().unwrap();
    pass.result(tally, "out", y.tensor());
    let cotangent = case.tensor("grad_out");
    pass.tape.backward_from(&y, cotangent.clone()).unwrap();
    mamba_gradients(pass, tally);
}

/// Every channel has its own B and C, the same at all steps: one scan a channel.
fn constant_projections(pass: &Pass, tally: &mut Tally, weights: &SelectiveScan) {
    let case = &pass.case;
    let (batch, d, l) = case.tensor("u").dims3().unwrap();
    let expected = case.tensor("out");
    let (b, c) = (pass.weight("B"), pass.weight("C"));
    for channel in 0..d {
        let row = |t: &Tensor| Var::from_tensor(&t.narrow(0, channel, 1).unwrap()).unwrap();
        let [a_log, skip, bias] =
            [&weights.a_log, weights.skip.as_ref().unwrap(), weights.delta_bias.as_ref().unwrap()].map(row);
        let weights = SelectiveScan {
            a_log: a_log.as_tensor().clone(),
            skip: Some(skip.as_tensor().clone()),
            delta_bias: Some(bias.as_tensor().clone()),
            softplus: true,
        };
        let tape = Tape::new(&pass.gradients);
        let [u, delta] = ["u", "delta"].map(|name| {
            let value = tape.variable(&pass.weight(name)).unwrap().transpose().unwrap();
            value.columns(channel..channel + 1).unwrap()
        });
        let ids = Tensor::full(channel as u32, (batch, l), &Device::Cpu).unwrap();
        let [b, c] = [&b, &c].map(|table| u.constant_beside(ids.clone()).embedding(table).unwrap());
        let y = u.selective_scan(&delta, &b, &c, &weights).unwrap().transpose().unwrap();
        let channel_of = |t: &Tensor| t.narrow(1, channel, 1).unwrap().contiguous().unwrap();
        let tolerance = pass.tolerance(expected, false);
        tally.tensor(&case.name, &format!("out of {channel}"), y.tensor(), &channel_of(expected), tolerance);
        tape.backward_from(&y, channel_of(case.tensor("grad_out"))).unwrap();
        for (name, var) in [("D", &skip), ("delta_bias", &bias)] {
            let expected = case.tensor(&format!("d_{name}"));
            let got = pass.gradients.tensor(var).unwrap();
            let tolerance = pass.tolerance(expected, true);
            tally.tensor(
                &case.name,
                &format!("d_{name}[{channel}]"),
                &got,
                &expected.narrow(0, channel, 1).unwrap(),
                tolerance,
            );
        }
        let expected = case.tensor("d_A");
        let by_log = pass.gradients.tensor(&a_log).unwrap();
        let got = (by_log / case.tensor("A").narrow(0, channel, 1).unwrap()).unwrap();
        let tolerance = pass.tolerance(expected, true);
        tally.tensor(
            &case.name,
            &format!("d_A[{channel}]"),
            &got,
            &expected.narrow(0, channel, 1).unwrap(),
            tolerance,
        );
    }
    for name in ["u", "delta", "B", "C"] {
        pass.gradient(tally, name, &pass.gradient_of(name));
    }
    pass.compared.borrow_mut().extend(["d_A", "d_D", "d_delta_bias"].map(str::to_owned));
}

fn mamba_gradients(pass: &Pass, tally: &mut Tally) {
    let names: Vec<String> = pass.variables.borrow().keys().cloned().collect();
    for name in names {
        let mut got = pass.gradient_of(&name);
        if name == "A" {
            got = (got / pass.case.tensor("A")).unwrap();
        }
        pass.gradient(tally, &name, &got);
    }
}

/// The inputs of a layer's case as parameters; `rename` gives the layer's name for one of the file.
fn layer_parameters(case: &Case, rename: impl Fn(&str) -> String) -> Parameters {
    let given: HashMap<String, Tensor> = case
        .names()
        .into_iter()
        .filter(|name| case.has(&format!("d_{name}")) || ["running_mean", "running_var"].contains(name))
        .map(|name| (rename(name), transposed_kernel(name, case.tensor(name))))
        .collect();
    Parameters::from_tensors(given, DType::F32, &Device::Cpu).unwrap()
}

/// flax keeps a layer's weight as `kernel` `[in, out]`; this turns it into `[out, in]` and back.
fn transposed_kernel(name: &str, tensor: &Tensor) -> Tensor {
    if name.ends_with(".kernel") { tensor.t().unwrap().contiguous().unwrap() } else { tensor.clone() }
}

/// Compares the result, and the gradients of all parameters that have one in the file.
fn layer_backward(
    pass: &Pass,
    tally: &mut Tally,
    y: &Value,
    parameters: &Parameters,
    rename: impl Fn(&str) -> String,
) {
    pass.result(tally, "out", y.tensor());
    pass.tape.backward_from(y, pass.case.tensor("grad_out").clone()).unwrap();
    let names = pass.case.names().into_iter().filter_map(|name| name.strip_prefix("d_"));
    for name in names {
        let parameter = parameters.get(&rename(name)).unwrap();
        let got = pass.gradients.tensor(&parameter);
        let got = got.unwrap_or_else(|| panic!("{}: `{name}` got no gradient", pass.case.name));
        pass.gradient(tally, name, &transposed_kernel(name, &got));
    }
}

fn s4d_block(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let rename = |name: &str| name.replace("C_param", "C");
    let parameters = layer_parameters(case, rename);
    let (copies, n) = case.tensor("kernel.A_real").dims2().unwrap();
    let config = S4dConfig {
        width: case.tensor("u").dim(2).unwrap(),
        state: 2 * n,
        copies,
        modes: Modes::Lin,
        steps: (1e-3, 1e-1),
        transform: StepTransform::Softplus,
        discretisation: Discretisation::ZeroOrderHold,
        bidirectional: case.name.contains("bidir"),
        dropout: 0.0,
        tied_dropout: false,
    };
    let layer = if case.name.contains("s4_dplr") {
        S4d::low_rank(config, case.tensor("u").dim(1).unwrap(), parameters.builder()).unwrap()
    } else {
        S4d::new(config, parameters.builder()).unwrap()
    };
    let u = pass.tape.variable(&parameters.get("u").unwrap()).unwrap();
    let y = layer.forward(&u, None).unwrap();
    layer_backward(pass, tally, &y, &parameters, rename);
}

fn mamba_block(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let parameters = layer_parameters(case, str::to_owned);
    let (inner, state) = case.tensor("A_log").dims2().unwrap();
    let width = case.tensor("x").dim(2).unwrap();
    let config = MambaConfig { expand: inner / width, state, ..MambaConfig::new(width) };
    let block = Mamba::new(config, 1, parameters.builder()).unwrap();
    let x = pass.tape.variable(&parameters.get("x").unwrap()).unwrap();
    let y = block.forward(&x).unwrap();
    layer_backward(pass, tally, &y, &parameters, str::to_owned);
}

/// The layer around the model: norm, tanh GELU, gate, residual.
fn s5_layer(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let rename = |name: &str| match name.strip_prefix("running_") {
        Some(statistic) => format!("norm.running_{statistic}"),
        None => name.replace("seq.", "").replace("norm.scale", "norm.weight"),
    };
    let parameters = layer_parameters(case, rename);
    let weight = |name: &str| parameters.get(name).unwrap();
    let (p, width, _) = case.tensor("seq.B").dims3().unwrap();
    let config = S5Config {
        width,
        state: 2 * p,
        blocks: 1,
        steps: (1e-3, 1e-1),
        output: OutputInit::Lecun,
        discretisation: Discretisation::ZeroOrderHold,
        bidirectional: true,
        clip: false,
    };
    let model = S5::new(config, parameters.builder()).unwrap();
    let x = pass.tape.variable(&weight("x")).unwrap();
    let batch_norm = case
        .has("running_mean")
        .then(|| BatchNorm::new(width, 1e-5, 0.05, false, parameters.builder().pp("norm")).unwrap());
    let norm = |x: &Value| match &batch_norm {
        None => x.layer_norm(&weight("norm.weight"), &weight("norm.bias"), 1e-6).unwrap(),
        Some(norm) => norm.forward(x, case.name.ends_with("_train")).unwrap(),
    };
    let post = case.name.contains("_post_");
    let g = model.forward(&if post { x.clone() } else { norm(&x) }).unwrap();
    let mut y = g.activate(Activation::GeluTanh).unwrap();
    let dense = |y: &Value, name: &str| {
        y.linear(&weight(&format!("{name}.kernel")), Some(&weight(&format!("{name}.bias")))).unwrap()
    };
    if case.name.contains("full_glu") {
        y = dense(&y, "out2").gate(&dense(&y, "out1"), Activation::Sigmoid).unwrap();
    } else if case.name.contains("half_glu") {
        let gated = if case.name.contains("half_glu1") { &y } else { &g };
        y = dense(&y, "out2").gate(gated, Activation::Sigmoid).unwrap();
    }
    let mut y = y.add(&x).unwrap();
    if post {
        y = norm(&y);
    }
    for name in ["running_mean", "running_var"].into_iter().filter(|n| case.has(&format!("{n}_after"))) {
        pass.result(tally, &format!("{name}_after"), &weight(&format!("norm.{name}")));
    }
    layer_backward(pass, tally, &y, &parameters, rename);
}

fn s4_initial_values(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let n: usize = case.name.rsplit('N').next().unwrap().parse().unwrap();
    let exact = |tally: &mut Tally, name: &str, got: Vec<f64>| {
        let expected: Vec<f64> = case.tensor(name).flatten_all().unwrap().to_vec1().unwrap();
        tally.numbers(&case.name, name, &got, &expected, within(1e-9, 1e-8));
    };
    let (a, b) = hippo::legs(n);
    exact(tally, "hippo_legs_A", a);
    exact(tally, "hippo_legs_B", b.clone());
    let part = hippo::NormalPart::new(n);
    let p: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5).sqrt()).collect();
    let (p, b) = (part.project(&p), part.project(&b));
    let kept = n / 2;
    exact(tally, "nplr_W_re", part.eigenvalues[..kept].iter().map(|l| l.re).collect());
    exact(tally, "nplr_W_im", part.eigenvalues[..kept].iter().map(|l| l.im).collect());
    exact(tally, "nplr_absP", p[..kept].iter().map(|p| p.norm()).collect());
    exact(tally, "nplr_absB_unclipped", b[..kept].iter().map(|b| b.norm()).collect());
    exact(tally, "nplr_conjP_B_re", p.iter().zip(&b).take(kept).map(|(p, b)| (p.conj() * b).re).collect());
    exact(tally, "nplr_conjP_B_im", p.iter().zip(&b).take(kept).map(|(p, b)| (p.conj() * b).im).collect());
    // stored in float32
    let rounded = |tally: &mut Tally, name: &str, got: Vec<f64>| {
        let expected: Vec<f64> = case.tensor(name).flatten_all().unwrap().to_vec1().unwrap();
        tally.numbers(&case.name, name, &got, &expected, within(1e-6, 1e-6));
    };
    for (name, modes) in
        [("lin", Modes::Lin), ("inv", Modes::Inv), ("legs", Modes::Legs), ("real", Modes::Real)]
    {
        let (re, im, _) = initial_modes(modes, n);
        rounded(tally, &format!("s4d_{name}_A_re"), re);
        rounded(tally, &format!("s4d_{name}_A_im"), im.iter().map(|v| -v).collect());
    }
}

fn s5_initial_values(pass: &Pass, tally: &mut Tally) {
    let case = &pass.case;
    let n: usize = case.name.rsplit('N').next().unwrap().parse().unwrap();
    let part = hippo::NormalPart::new(n);
    let exact = |tally: &mut Tally, name: &str, got: Vec<f64>| {
        let expected: Vec<f64> = case.tensor(name).flatten_all().unwrap().to_vec1().unwrap();
        tally.numbers(&case.name, name, &got, &expected, within(1e-9, 1e-8));
    };
    exact(tally, "hippo", hippo::legs(n).0);
    exact(tally, "Lambda_re", part.eigenvalues.iter().map(|l| l.re).collect());
    exact(tally, "Lambda_im", part.eigenvalues.iter().map(|l| l.im).collect());
    let column = |i: usize, k: usize| part.vectors[i * n + k];
    let element = |i: usize, j: usize| -> f64 {
        (0..n).map(|k| (column(i, k) * part.eigenvalues[k] * column(j, k).conj()).re).sum()
    };
    exact(tally, "VLVh_re", (0..n * n).map(|k| element(k / n, k % n)).collect());
}
