//! Goldens: what they keep, what fails a check, and what may not be blessed.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use replica_core::expansion::Selection;
use replica_core::fixture::Toy;
use replica_core::golden::{Band, Change, Golden, GoldenError};
use replica_core::runner::Options;
use replica_core::{Digest, Evidence, Record, Replication, RunStore, Runner, Scale, gather};

fn evidence(scale: Scale, seeds: usize) -> Evidence {
    let (folder, toy) = (tempfile::tempdir().unwrap(), Toy::default());
    let plan = toy.plan(scale, None).unwrap().with_seeds(seeds);
    let store = RunStore::open(folder.path()).unwrap();
    let cancel = AtomicBool::new(false);
    let runner = Runner {
        replication: &toy,
        plan: &plan,
        store: &store,
        observer: &(),
        cancel: &cancel,
        options: Options::default(),
    };
    runner.run(&Selection::default()).unwrap();
    gather(&toy, &plan, "cpu", &store).unwrap().evidence
}

fn propose(evidence: &Evidence, experiment: &str) -> Result<Golden, GoldenError> {
    Golden::propose(evidence, evidence.plan.experiment(experiment).unwrap(), None)
}

fn changed(evidence: &Evidence, change: impl Fn(&mut Record)) -> Evidence {
    let mut evidence = evidence.clone();
    evidence.trials.iter_mut().filter_map(|t| t.record.as_mut()).for_each(change);
    evidence
}

fn said(golden: &Golden, evidence: &Evidence) -> Vec<String> {
    let changes = golden.check(evidence);
    assert!(changes.iter().all(Change::is_failure));
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_golden_reads_well_and_round_trips() {
    let evidence = evidence(Scale::Small, 3);
    let golden = propose(&evidence, "placement").unwrap();
    insta::assert_snapshot!(golden.to_text());
    let folder = tempfile::tempdir().unwrap();
    let path = Golden::path(folder.path(), "toy", "placement", Scale::Small, "cpu");
    assert!(path.ends_with("toy/placement.small.cpu.json"));
    assert_eq!(Golden::read(&path).unwrap(), None);
    golden.write(&path).unwrap();
    assert_eq!(Golden::read(&path).unwrap().as_ref(), Some(&golden));
    assert!(golden.check(&evidence).is_empty());
    std::fs::write(&path, golden.to_text().replace("\"bands\"", "\"band\"")).unwrap();
    assert!(Golden::read(&path).unwrap_err().to_string().contains("unknown field `band`"));
}

#[test]
fn a_metric_outside_its_band_fails() {
    let evidence = evidence(Scale::Small, 3);
    let golden = propose(&evidence, "placement").unwrap();
    let scaled = |factor: f64| {
        changed(&evidence, |r| {
            if r.spec.variant == "better" {
                r.measurements.metrics.entry("test_loss".into()).and_modify(|v| *v *= factor);
            }
        })
    };
    assert!(said(&golden, &scaled(1.019)).is_empty());
    assert!(said(&golden, &scaled(0.981)).is_empty());
    let moved = said(&golden, &scaled(1.021));
    assert_eq!(moved.len(), 1);
    assert!(moved[0].starts_with("better: test_loss moved from 1.918 to 1.958278"), "{moved:?}");
    assert_eq!(said(&golden, &scaled(0.979)).len(), 1);
    assert_eq!(said(&golden, &scaled(f64::NAN)).len(), 1, "NaN is outside every band");
    // facts may not move at all
    let facts = propose(&evidence, "facts").unwrap();
    let off = changed(&evidence, |r| {
        r.measurements.metrics.entry("parameters".into()).and_modify(|v| *v += 1.0);
    });
    assert!(said(&facts, &evidence).is_empty());
    assert_eq!(said(&facts, &off).len(), 2);
}

#[test]
fn numbers_are_rounded_without_failing_an_exact_band() {
    let evidence = changed(&evidence(Scale::Small, 3), |r| {
        r.measurements.metrics.insert("parameters".into(), 1.0 / 3.0 + r.spec.seed as f64);
        r.measurements.metrics.insert("test_loss".into(), 368_925_952.0);
    });
    let facts = propose(&evidence, "facts").unwrap();
    assert_eq!(facts.variants["base"].metrics["parameters"].mean, 0.333_333_3);
    assert!(said(&facts, &evidence).is_empty());
    assert_eq!(
        propose(&evidence, "placement").unwrap().variants["base"].metrics["test_loss"].mean,
        368_925_952.0
    );
}

#[test]
fn changed_data_and_configs_fail() {
    let evidence = evidence(Scale::Small, 3);
    let golden = propose(&evidence, "placement").unwrap();
    let data = changed(&evidence, |r| {
        r.measurements.data.iter_mut().for_each(|d| d.sha256 = Digest::of(b"other"));
    });
    let other = Digest::of(b"other");
    let expected =
        format!("data toy/train: sha256 changed from {} to {}", Toy::data().short(), other.short());
    assert_eq!(said(&golden, &data), [expected]);
    let config = changed(&evidence, |r| {
        r.spec.config["steps"] = 5.into();
    });
    assert!(said(&golden, &config)[0].starts_with("base: config changed (digest "));
    let selected = changed(&evidence, |r| {
        r.spec.config["learning_rate"] = 0.5.into();
    });
    assert_eq!(said(&golden, &selected)[0], "base: tuning selected learning_rate 0.5 instead of 0.1");
}

#[test]
fn what_is_missing_fails_and_what_is_new_does_not() {
    let full = evidence(Scale::Small, 3);
    let golden = propose(&full, "placement").unwrap();
    let without = |f: &dyn Fn(&Record) -> bool| {
        let mut evidence = full.clone();
        evidence.trials.retain(|t| t.record.as_ref().is_none_or(|r| !f(r)));
        evidence
    };
    let seed = without(&|r| r.spec.variant == "base" && r.spec.seed == 2);
    assert_eq!(said(&golden, &seed), ["seed 2 of base was not measured"]);
    assert_eq!(said(&golden, &without(&|r| r.spec.variant == "base")), ["variant base was not measured"]);
    let metric = changed(&full, |r| {
        r.measurements.metrics.remove("test_loss");
    });
    assert_eq!(said(&golden, &metric).len(), 2);
    let mut small = golden.clone();
    small.variants.remove("base");
    small.variants.get_mut("better").unwrap().metrics.clear();
    let changes = small.check(&full);
    assert_eq!(changes.len(), 2);
    assert!(changes.iter().all(|c| !c.is_failure()), "{changes:?}");
}

#[test]
fn bands_are_kept() {
    let evidence = evidence(Scale::Small, 3);
    let mut golden = propose(&evidence, "placement").unwrap();
    let wide = Band { relative: 0.5, absolute: 1.0 };
    golden.bands = BTreeMap::from([("test_loss".to_owned(), wide)]);
    let experiment = evidence.plan.experiment("placement").unwrap();
    let again = Golden::propose(&evidence, experiment, Some(&golden)).unwrap();
    assert_eq!(again.bands["test_loss"], wide);
    assert_eq!(propose(&evidence, "speed").unwrap().bands["step_ms"].relative, 0.5);
}

#[test]
fn what_may_not_be_blessed() {
    let refused =
        |evidence: &Evidence, experiment: &str| propose(evidence, experiment).unwrap_err().to_string();
    let two = evidence(Scale::Small, 2);
    assert!(refused(&two, "placement").contains("at least 3 are needed"));
    assert!(propose(&two, "facts").is_ok(), "a fact needs one seed");
    assert!(propose(&evidence(Scale::Smoke, 2), "placement").is_ok(), "smoke runs may have fewer");
    let three = evidence(Scale::Small, 3);
    assert!(refused(&three, "extra").contains("`replica run toy/extra/base`"));
    let unverified = changed(&three, |r| r.measurements.data.iter_mut().for_each(|d| d.verified = false));
    assert!(refused(&unverified, "placement").contains("without a known digest"));
    let infinite = changed(&three, |r| {
        r.measurements.metrics.insert("test_loss".into(), f64::INFINITY);
    });
    assert!(refused(&infinite, "placement").contains("test_loss of base is inf for seed 1"));
}
