//! The replication as a whole at scale `smoke`: against its golden, over thread counts, killed and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use replica_core::replication::ConfigFile;
use replica_core::trial::{Device, Silent};
use replica_core::{Plan, Replication, Scale, TrialContext, TrialSpec, conformance};
use replica_datasets::{Sources, catalogue};
use replica_pad::Pad;
use replica_pad::exec::WorkerCommand;

fn pad() -> Pad {
    let worker = WorkerCommand { program: env!("CARGO_BIN_EXE_pad-worker").into(), arguments: Vec::new() };
    Pad::new(Arc::new(Sources::from_environment()), worker)
}

fn plan() -> Plan {
    pad().plan(Scale::Smoke, None).unwrap()
}

/// A trial of the plan, with the recipe's learning rate.
fn spec(plan: &Plan, experiment: &str, variant: &str, seed: u64) -> TrialSpec {
    conformance::spec(&pad(), plan, experiment, variant, seed)
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

#[test]
fn smoke_agrees_with_its_golden() {
    let plan = plan();
    let evidence = conformance::assert_agrees_with_goldens(&pad(), &plan, &goldens());
    // training does something, and every variant leaves examples that a reader can check
    for variant in &plan.experiment("arithmetic").unwrap().variants {
        for record in evidence.records("arithmetic", &variant.id) {
            let curve = &record.measurements.curves["valid_loss"];
            assert!(curve.y.last().unwrap() < &(curve.y[0] - 0.1), "{}", variant.id);
            assert!(!record.measurements.transcripts.is_empty(), "{}", variant.id);
        }
    }
}

#[test]
fn published_problems_are_part_of_scale_small_where_they_are_at_hand() {
    let cache = tempfile::tempdir().unwrap();
    let on_request = |sources: Sources| {
        let worker = WorkerCommand { program: PathBuf::new(), arguments: Vec::new() };
        let plan = Pad::new(Arc::new(sources), worker).plan(Scale::Small, None).unwrap();
        ["arithmetic", "several", "templates"].map(|id| plan.experiment(id).unwrap().on_request)
    };
    let nowhere = Sources::offline(cache.path());
    assert_eq!(on_request(nowhere.clone()), [false, true, true]);

    // a damaged file must not make the experiment disappear: whoever reads it says what is wrong
    let folder = tempfile::tempdir().unwrap();
    let write = |set: &str| {
        for file in &catalogue().get(set).unwrap().files {
            let path = folder.path().join(file.folder.as_ref().unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "damaged").unwrap();
        }
    };
    let with_folder = || Sources { folder: Some(folder.path().to_owned()), ..nowhere.clone() };
    write("svamp");
    assert_eq!(on_request(with_folder()), [false, true, true], "MAWPS and MultiArith are missing");
    write("mawps-asdiv");
    write("multiarith");
    assert_eq!(on_request(with_folder()), [false, true, false]);
}

#[test]
fn a_student_shared_by_trials_has_the_bits_of_one_of_its_own() {
    let (plan, school) = (plan(), pad());
    let cancel = AtomicBool::new(false);
    let context = TrialContext { device: Device::Cpu, progress: &Silent, cancel: &cancel, checkpoints: None };
    let shared = |variant| school.run(&spec(&plan, "decoding", variant, 1), &context).unwrap();
    let first = shared("beams");
    for variant in ["verified", "random", "beams"] {
        let (again, alone) =
            (shared(variant), conformance::run_silently(&pad(), &spec(&plan, "decoding", variant, 1), 1));
        assert_eq!(again.trace.first_difference(&first.trace), None);
        assert_eq!(again, alone, "{variant}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let plan = plan();
    for (experiment, variant) in [("refinement", "refined"), ("decoding", "verified")] {
        conformance::assert_independent_of_threads(pad, &spec(&plan, experiment, variant, 1));
    }
}

#[test]
fn interrupted_and_resumed_runs_have_the_same_bits() {
    conformance::assert_resumes(pad, &spec(&plan(), "arithmetic", "program", 1), 23);
}

/// Kills a process in the middle of training (this test, run again as a child) and goes on from what it left.
#[test]
fn killed_and_resumed_runs_have_the_same_bits() {
    let test = "killed_and_resumed_runs_have_the_same_bits";
    // the last checkpoint is that of step 20
    conformance::assert_survives_a_kill(pad, &spec(&plan(), "arithmetic", "program", 1), (27, 21), test);
}

/// A trial that stops early, with a validation every third step. Its learning rate makes validation worse soon.
fn stopped_early() -> TrialSpec {
    let mut spec = spec(&plan(), "arithmetic", "program", 1);
    spec.config["patience"] = 2.into();
    spec.config["eval_every"] = 3.into();
    spec.config["learning_rate"] = 0.3.into();
    spec
}

#[test]
fn early_stopping_ends_before_the_last_step_and_leaves_the_best() {
    let spec = stopped_early();
    let measured = conformance::run_silently(&pad(), &spec, 1);
    let steps = measured.metrics["steps"];
    assert!(
        steps > 22.0 && steps < 40.0,
        "{steps}: the tests below interrupt it before its end and after a checkpoint"
    );
    assert_eq!(measured.metrics["best_step"], steps - 6.0);
    let valid = &measured.curves["valid_loss"].y;
    assert_eq!(measured.metrics["valid_loss"], valid[valid.len() - 3]);
}

#[test]
fn interrupted_early_stopping_has_the_same_bits() {
    conformance::assert_resumes(pad, &stopped_early(), 22);
}

#[test]
fn killed_early_stopping_has_the_same_bits() {
    conformance::assert_survives_a_kill(
        pad,
        &stopped_early(),
        (22, 21),
        "killed_early_stopping_has_the_same_bits",
    );
}

#[test]
fn divergence_is_stopped_and_named() {
    conformance::assert_divergence_is_named(&pad(), spec(&plan(), "arithmetic", "program", 1), 0..40);
}

#[test]
fn every_scale_has_a_plan_and_its_claims_name_what_exists() {
    conformance::assert_plans_are_sound(&pad());
}

#[test]
fn configuration_errors_name_file_key_and_allowed_values() {
    let smoke = include_str!("../configs/smoke.toml");
    let error = |from: &str, to: &str| {
        let text = smoke.replacen(from, to, 1);
        assert_ne!(text, smoke, "{from}");
        let file = ConfigFile { path: "my.toml".to_owned(), text };
        pad().plan(Scale::Smoke, Some(&file)).unwrap_err().to_string()
    };
    let errors = [
        error("questions = 64", "question = 64"),
        error("questions = 64", "questions = 0"),
        error("heads = 2", "heads = 3"),
        error("learning_rate = 0.01", "learning_rate = -1"),
        error("like = \"arithmetic\"", "like = \"arithmetics\""),
        error("only = [\"boxes\", \"age\"]", "only = [\"boxes\", \"ages\"]"),
        error("retry = \"candidate\"", "retry = \"again\""),
        error("rounds = 1, retry", "rounds = 2, retry"),
        error("weight = 1.0", "weight = -1.0"),
        error("target = \"chain\"", "target = \"chain\", corrupted = 0.1"),
        error("kind = \"templates\"", "kind = \"template\""),
        error("count = 8", "count = 0"),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}
