//! The replication as a whole at scale `smoke`: against its golden, over thread counts, killed and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use replica_core::expansion::Selection;
use replica_core::gather::gather;
use replica_core::golden::Golden;
use replica_core::replication::ConfigFile;
use replica_core::runner::{Options, Runner};
use replica_core::store::RunStore;
use replica_core::trial::{Device, Progress, Role, Silent};
use replica_core::{Measurements, Plan, Replication, Scale, TrialContext, TrialError, TrialSpec};
use replica_datasets::Sources;
use replica_smr::Smr;

fn smr() -> Smr {
    Smr::new(Arc::new(Sources::from_environment()))
}

fn plan() -> Plan {
    smr().plan(Scale::Smoke, None).unwrap()
}

/// A trial of the plan, with the recipe's learning rate.
fn spec(plan: &Plan, experiment: &str, variant: &str, seed: u64) -> TrialSpec {
    let experiment = plan.experiment(experiment).unwrap();
    TrialSpec {
        paper: "smr".to_owned(),
        experiment: experiment.id.clone(),
        variant: variant.to_owned(),
        scale: plan.scale,
        role: Role::Main,
        seed,
        backend: "cpu".to_owned(),
        dtype: "f32".to_owned(),
        config: experiment.variant(variant).unwrap().config.clone(),
        data: experiment.data.clone(),
        code: smr().code(),
    }
}

fn run(
    spec: &TrialSpec,
    threads: usize,
    checkpoints: Option<&Path>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Measurements, TrialError> {
    let context =
        TrialContext { device: Device::Cpu, progress, cancel, checkpoints: checkpoints.map(Path::to_owned) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let smr = smr();
    // the pool's threads need the context, which borrows `progress`
    std::thread::scope(|_| pool.install(|| smr.run(spec, &context)))
}

fn run_silently(spec: &TrialSpec, threads: usize) -> Measurements {
    run(spec, threads, None, &Silent, &AtomicBool::new(false)).unwrap()
}

#[test]
fn smoke_agrees_with_its_golden() {
    let (smr, plan) = (smr(), plan());
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let cancel = AtomicBool::new(false);
    let options = Options { jobs: 2, ..Options::default() };
    let runner =
        Runner { replication: &smr, plan: &plan, store: &store, observer: &(), cancel: &cancel, options };
    let summary = runner.run(&Selection::default()).unwrap();
    assert!(summary.failed.is_empty() && summary.blocked == 0, "{:?}", summary.failed);
    let evidence = gather(&smr, &plan, "cpu", &store).unwrap().evidence;
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    for experiment in plan.experiments.iter().filter(|e| !e.exclusive) {
        let path = Golden::path(&goldens, "smr", &experiment.id, plan.scale, "cpu");
        let golden = Golden::read(&path).unwrap().unwrap_or_else(|| panic!("{} is missing", path.display()));
        let failures: Vec<String> =
            golden.check(&evidence).iter().filter(|c| c.is_failure()).map(|c| c.to_string()).collect();
        assert!(failures.is_empty(), "{}:\n{}", path.display(), failures.join("\n"));
    }
    for verdict in &evidence.verdicts {
        println!("{}: {:?} ({})", verdict.claim, verdict.outcome, verdict.reason);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let plan = plan();
    for (experiment, variant) in [
        ("sampling-s4d", "smr"),
        ("sampling-s5", "told"),
        ("sampling-mamba", "smr_scan"),
        ("image-s4d", "wide"),
        ("listops-s4d", "bag"),
        ("language-mamba", "none"),
    ] {
        let spec = spec(&plan, experiment, variant, 1);
        let one = run_silently(&spec, 1);
        println!("{variant}: trace {}", one.trace.digest());
        for threads in [2, 3] {
            let more = run_silently(&spec, threads);
            assert_eq!(one.trace.first_difference(&more.trace), None, "{variant} with {threads} threads");
            assert_eq!(one.metrics, more.metrics, "{variant} with {threads} threads");
        }
    }
}

#[test]
fn seeds_and_variants_share_data_order_and_start() {
    let plan = plan();
    let first_loss = |variant, seed| {
        f32::from_bits(run_silently(&spec(&plan, "listops-s4d", variant, seed), 1).trace.0[0].0)
    };
    assert_ne!(first_loss("none", 1), first_loss("none", 2));
    // SMR changes the inputs of the state-space models only
    assert!((first_loss("none", 1) - first_loss("smr", 1)).abs() < 0.3);
}

/// Stops after so many steps, by the cancel flag or by dying.
struct StopAt<'a> {
    step: u64,
    cancel: &'a AtomicBool,
    die: bool,
}

impl Progress for StopAt<'_> {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        if done == self.step {
            if self.die {
                // no destructor runs, nothing is flushed: as after SIGKILL
                std::process::abort();
            }
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn interrupted_and_resumed_runs_have_the_same_bits() {
    let spec = spec(&plan(), "sampling-s4d", "smr", 1);
    let whole = run_silently(&spec, 1);
    let folder = tempfile::tempdir().unwrap();
    let cancel = AtomicBool::new(false);
    let stop = StopAt { step: 13, cancel: &cancel, die: false };
    assert!(matches!(run(&spec, 1, Some(folder.path()), &stop, &cancel), Err(TrialError::Interrupted)));
    cancel.store(false, Ordering::Relaxed);
    let resumed = run(&spec, 2, Some(folder.path()), &FirstStepIs(14), &cancel).unwrap();
    assert_eq!(whole, resumed);
}

/// Fails if the first step it hears of is another one.
struct FirstStepIs(u64);

impl Progress for FirstStepIs {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        assert!(done >= self.0, "step {done} was done again");
    }
}

const VICTIM: &str = "REPLICA_SMR_TEST_VICTIM";

/// Kills a process in the middle of training (this test, run again as a child) and goes on from what it left.
#[test]
fn killed_and_resumed_runs_have_the_same_bits() {
    let spec = spec(&plan(), "listops-s4d", "smr", 2);
    if let Some(folder) = std::env::var_os(VICTIM) {
        let cancel = AtomicBool::new(false);
        let _ = run(
            &spec,
            1,
            Some(Path::new(&folder)),
            &StopAt { step: 17, cancel: &cancel, die: true },
            &cancel,
        );
        unreachable!("the process died at step 17");
    }
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["killed_and_resumed_runs_have_the_same_bits", "--exact", "--nocapture"])
        .env(VICTIM, folder.path())
        .output()
        .unwrap()
        .status;
    assert!(!status.success() && status.code().is_none(), "the child should die by a signal: {status}");
    // the last checkpoint is that of step 10
    let resumed = run(&spec, 1, Some(folder.path()), &FirstStepIs(11), &AtomicBool::new(false)).unwrap();
    let whole = run_silently(&spec, 1);
    println!("trace {}", whole.trace.digest());
    assert_eq!(whole, resumed);
}

#[test]
fn divergence_is_stopped_and_named() {
    let mut spec = spec(&plan(), "sampling-s4d", "none", 1);
    spec.config["learning_rate"] = 1e12.into();
    let error = run(&spec, 1, None, &Silent, &AtomicBool::new(false)).unwrap_err();
    let TrialError::NonFinite { step, .. } = &error else { panic!("{error}") };
    assert!((0..30).contains(step));
    let text = error.to_string();
    assert!(text.contains("training diverged; lower learning_rate"), "{text}");
}

#[test]
fn every_scale_has_a_plan_and_its_claims_name_what_exists() {
    let smr = smr();
    for scale in Scale::ALL {
        let plan = smr.plan(scale, None).unwrap();
        plan.check().unwrap();
        for experiment in &plan.experiments {
            let ids: std::collections::HashSet<_> = experiment.variants.iter().map(|v| &v.id).collect();
            assert_eq!(ids.len(), experiment.variants.len(), "{scale}: {}", experiment.id);
        }
    }
    for claim in &smr.paper().claims {
        let replica_core::claim::Test::Paired { comparisons } = &claim.test else { continue };
        for scale in &claim.scales {
            let plan = smr.plan(*scale, None).unwrap();
            for c in comparisons {
                let place = format!("{scale}, {}: {}", claim.id, c.experiment);
                let experiment = plan.experiment(&c.experiment).unwrap_or_else(|| panic!("{place}"));
                assert!(experiment.metrics.iter().any(|m| m.name == c.metric), "{place}: {}", c.metric);
                for variant in [&c.treatment, &c.control] {
                    assert!(experiment.variant(variant).is_some(), "{place}: {variant}");
                }
            }
        }
    }
}

/// Mega and SPADE have no place at scale smoke: they train on a task of it all the same.
#[test]
fn hosts_with_attention_learn() {
    let text = [
        include_str!("../configs/smoke.toml"),
        r#"
[hosts.mega]
label = "Mega"
model = { kind = "mega", shared = 8, state = 4, chunk = 16, truncation = 24 }

[hosts.spade]
label = "SPADE"
model = { kind = "spade", state = 4, heads = 2, radius = 7 }

[[study]]
id = "attention"
title = "Hosts with attention"
method = "The toy regression."
like = "sampling"
seeds = [1]
model = { width = 8, layers = 2, norm = "layer", norm_place = "pre", dropout = 0.1 }
runs = [
    { host = "mega", variants = ["none", "smr", "wide"] },
    { host = "spade", variants = ["none", "smr", "wide"] },
]
"#,
    ]
    .concat();
    let config = ConfigFile { path: "my.toml".to_owned(), text };
    let plan = smr().plan(Scale::Smoke, Some(&config)).unwrap();
    for experiment in ["attention-mega", "attention-spade"] {
        for variant in ["none", "smr", "wide"] {
            let mut spec = spec(&plan, experiment, variant, 1);
            spec.config["steps"] = 100.into();
            spec.config["learning_rate"] = 0.01.into();
            let measured = run_silently(&spec, 2);
            let losses = &measured.curves["valid_loss"].y;
            let (first, last) = (losses[0], losses[losses.len() - 1]);
            println!("{experiment}, {variant}: {first} to {last}");
            assert!(last < 0.7 * first, "{experiment}, {variant}: {losses:?}");
        }
    }
}

/// What a user reads who mistypes a configuration.
#[test]
fn configuration_errors_name_file_key_and_allowed_values() {
    let text = include_str!("../configs/smoke.toml");
    let error = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let config = ConfigFile { path: "my.toml".to_owned(), text: text.replacen(from, to, 1) };
        smr().plan(Scale::Smoke, Some(&config)).unwrap_err().to_string()
    };
    let errors = [
        error("width = 8", "widht = 8"),
        error("learning_rates = [0.003, 0.01]", "learning_rates = [0.003, -0.01]"),
        error("kind = \"s4d\", state = 8", "kind = \"s4d\", state = 7"),
        error("kind = \"s5\", state = 8, blocks = 1", "kind = \"s5\", state = 8, blocks = 3"),
        error("host = \"mamba\"", "host = \"rwkv\""),
        error("variants = [\"none\", \"smr\"", "variants = [\"none\", \"srm\""),
        error("\"smr_scan\"", "\"told\""),
        error("jitter = 0.3", "jitter = 3.0"),
        error("skip = 8", "skip = 32"),
        error("task = { kind = \"digits\"", "task = { kind = \"digit\""),
        error("stride = 2.0", "stride = 0.0"),
        error("norm = \"layer\"", "norm = \"group\""),
    ];
    insta::assert_snapshot!(errors.join("\n----\n"));
}

/// The same model three times: with as many parameters as SMR, or as near as a whole width gets.
#[test]
fn wide_hosts_have_as_many_parameters_as_with_smr() {
    let plan = smr().plan(Scale::Small, None).unwrap();
    let mut compared = 0;
    for experiment in &plan.experiments {
        let parameters = |id: &str| {
            let config = experiment.variant(id)?.config.clone();
            let model: replica_smr::ModelConfig = serde_json::from_value(config["model"].clone()).unwrap();
            Some((model.parameters().unwrap() as f64, model.shape.width))
        };
        let (Some((none, _)), Some((smr, _)), Some((wide, width))) =
            (parameters("none"), parameters("smr"), parameters("wide"))
        else {
            continue;
        };
        println!("{:<16} {none} plain, {smr} with SMR, {wide} of width {width}", experiment.id);
        // half the step from one width to the next
        assert!((wide / smr - 1.0).abs() < 1.2 / width as f64, "{}: {wide} against {smr}", experiment.id);
        assert!(wide > none);
        compared += 1;
    }
    assert!(compared > 0);
}

/// A layer that forgets its input, or a weight that is never used, would show here.
#[test]
fn every_parameter_of_every_variant_gets_a_gradient() {
    use candle_core::{DType, Device, Tensor};
    use replica_nn::{Gradients, Parameters, Tape};
    use replica_smr::config::TrialConfig;
    use replica_smr::data::{Batch, Targets};
    use replica_smr::model::{Encoder, Head};
    for scale in Scale::ALL {
        for experiment in smr().plan(scale, None).unwrap().experiments {
            for variant in &experiment.variants {
                let TrialConfig::Train(training) = serde_json::from_value(variant.config.clone()).unwrap()
                else {
                    continue;
                };
                let mut config = training.model;
                // the published widths take long, and change nothing here
                config.shape.width = config.shape.width.min(8);
                config.shape.layers = 2;
                config.length = 8;
                let parameters = Parameters::new(replica_core::Seed(1), DType::F32, &Device::Cpu);
                let model = replica_smr::Model::new(&config, parameters.builder())
                    .unwrap_or_else(|e| panic!("{scale}: {}/{}: {e}", experiment.id, variant.id));
                let gradients = Gradients::default();
                let tape = Tape::new(&gradients);
                let (rows, l) = (4, 8);
                let tensor = |shape: &[usize]| {
                    let n: usize = shape.iter().product();
                    let data = (0..n).map(|i| (i * 37 % 23) as f32 / 11.0 - 1.0).collect();
                    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
                };
                let classes = |n: usize, among: usize| {
                    let data: Vec<i64> = (0..n).map(|i| (i * 53 % among) as i64).collect();
                    Tensor::from_vec(data, n, &Device::Cpu).unwrap()
                };
                let inputs = match config.encoder {
                    Encoder::Tokens(n) => {
                        let data: Vec<u32> = (0..rows * l).map(|i| (i * 37 % n) as u32).collect();
                        Tensor::from_vec(data, (rows, l), &Device::Cpu).unwrap()
                    }
                    Encoder::Values(channels) => tensor(&[rows, l, channels]),
                };
                let targets = match config.head {
                    Head::Classes(n) => Targets::Classes(classes(rows, n)),
                    Head::PairClasses(n) => Targets::Classes(classes(rows / 2, n)),
                    Head::NextToken(n) => Targets::Classes(classes(rows * l, n).reshape((rows, l)).unwrap()),
                    Head::Regression => Targets::Values(tensor(&[rows, l])),
                };
                let intervals = Some(tensor(&[rows, l]).abs().unwrap());
                let batch = Batch { inputs, lengths: vec![l; rows], intervals, targets };
                let loss = model.loss(&tape.constant(batch.inputs.clone()), &batch, None).unwrap();
                tape.backward(&loss).unwrap();
                for parameter in parameters.trained() {
                    let place = format!("{scale}: {}/{}: {}", experiment.id, variant.id, parameter.name);
                    let g =
                        gradients.tensor(parameter.variable.as_tensor()).unwrap_or_else(|| panic!("{place}"));
                    let g: Vec<f32> = g.flatten_all().unwrap().to_vec1().unwrap();
                    assert!(g.iter().all(|v| v.is_finite()) && g.iter().any(|v| *v != 0.0), "{place}");
                }
            }
        }
    }
}
