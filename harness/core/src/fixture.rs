//! A paper in memory, for tests of everything that runs, stores and shows papers (feature `fixture`).
//!
//! `toy` claims that `better` has a lower loss than `base`, and it has. Its training is arithmetic, so that a
//! trial takes no time; seams let a test watch it, stop it and break it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use rand::Rng;
use serde::Deserialize;
use serde_json::json;

use crate::claim::Direction;
use crate::digest::Digest;
use crate::paper::Paper;
use crate::plan::{Experiment, Metric, Plan, Scale, Tuning, Variant};
use crate::record::{Curve, DataUse, Measurements};
use crate::replication::{ConfigFile, PlanError, Replication};
use crate::seed::Seed;
use crate::trial::{TrialContext, TrialError, TrialSpec};

/// Called before every step.
pub type Hook = Box<dyn Fn(&TrialSpec, u64) -> Result<(), TrialError> + Send + Sync>;

/// The paper.
pub struct Toy {
    paper: Paper,
    code: Digest,
    hook: Hook,
    steps: Mutex<Vec<(TrialSpec, u64)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    steps: u64,
    learning_rate: f64,
}

const PAPER: &str = r#"
id = "toy"
title = "A toy paper"
short_title = "Toy"
authors = ["A. Author"]
venue = "Nowhere"
year = 2024
url = "https://example.org"
summary = "Better is better."
method = "Arithmetic."

[[claims]]
id = "lower-loss"
statement = "Better has a lower loss than base."
source = "Table 1"
reported = "?"
scales = ["small", "gpu"]
test = { kind = "paired", comparisons = [{ experiment = "placement", metric = "test_loss", treatment = "better", control = "base", direction = "lower", effect = "relative", minimum_effect = 0.01 }] }

[[claims]]
id = "parameters"
statement = "Better has 80 parameters."
source = "Table 2"
reported = "80"
scales = ["smoke", "small"]
test = { kind = "exact", experiment = "facts", variant = "better", metric = "parameters", expected = 80.0, tolerance = 0.0 }

[[claims]]
id = "downstream"
statement = "Better helps downstream."
source = "Table 3"
reported = "?"
scales = []
test = { kind = "untested", reason = "the data is not public" }
"#;

impl Default for Toy {
    fn default() -> Self {
        Self::with_hook(Box::new(|_, _| Ok(())))
    }
}

impl Toy {
    /// A paper whose training is watched.
    ///
    /// # Panics
    /// Never: the facts are well-formed.
    pub fn with_hook(hook: Hook) -> Self {
        let paper = Paper::parse(PAPER, "toy/paper.toml").expect("the facts are well-formed");
        Self { paper, code: Digest::of(b"toy"), hook, steps: Mutex::default() }
    }

    /// The same paper after a change of its code.
    #[must_use]
    pub fn edited(mut self, code: &str) -> Self {
        self.code = Digest::of(code.as_bytes());
        self
    }

    /// Every step that was run, in order.
    pub fn steps(&self) -> Vec<(TrialSpec, u64)> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every trial that was started, in order; one that was resumed counts again.
    pub fn starts(&self) -> Vec<TrialSpec> {
        let mut starts: Vec<TrialSpec> = Vec::new();
        for (spec, _) in self.steps() {
            if !starts.contains(&spec) {
                starts.push(spec);
            }
        }
        starts
    }

    /// Digest of the data it pretends to read.
    pub fn data() -> Digest {
        Digest::of(b"toy data")
    }
}

impl Replication for Toy {
    fn paper(&self) -> &Paper {
        &self.paper
    }

    fn code(&self) -> Digest {
        self.code.clone()
    }

    fn plan(&self, scale: Scale, config: Option<&ConfigFile>) -> Result<Plan, PlanError> {
        if scale == Scale::Paper {
            return Err(PlanError::NoScale { paper: self.paper.id.clone(), scale });
        }
        let (path, text) = match config {
            Some(file) => (file.path.clone(), file.text.clone()),
            None => (format!("toy/{scale}.toml"), "steps = 4\nlearning_rate = 0.05".to_owned()),
        };
        let wrong = |problem: String| PlanError::Config { path: path.clone(), problem };
        let config: Config = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if config.learning_rate <= 0.0 {
            let rate = config.learning_rate;
            return Err(wrong(format!("learning_rate = {rate}: a number above 0 is expected")));
        }
        let metric = |name: &str, digits, better| Metric {
            name: name.into(),
            label: name.replace('_', " "),
            unit: String::new(),
            better,
            digits,
        };
        let variant = |id: &str, label: &str| Variant {
            id: id.into(),
            label: label.into(),
            description: format!("The {id} method."),
            config: json!({"steps": config.steps, "learning_rate": config.learning_rate, "method": id}),
        };
        let experiment = |id: &str, metric: Metric, seeds: Vec<u64>| Experiment {
            id: id.into(),
            title: id.into(),
            method: format!("We measure {id}."),
            metrics: vec![metric],
            variants: vec![variant("base", "Base"), variant("better", "Better")],
            seeds,
            tuning: None,
            data: BTreeMap::from([("toy/train".to_owned(), Self::data())]),
            exclusive: false,
            on_request: false,
        };
        let placement =
            experiment("placement", metric("test_loss", 3, Some(Direction::Lower)), vec![1, 2, 3]);
        let tuning = Tuning {
            parameter: "learning_rate".into(),
            values: vec![0.01, 0.1, 1.0, 10.0],
            seeds: vec![100],
            metric: "valid_loss".into(),
            overrides: serde_json::Map::from_iter([("steps".to_owned(), json!(2))]),
        };
        Ok(Plan {
            scale,
            config_file: path.clone(),
            experiments: vec![
                Experiment { tuning: Some(tuning), ..placement },
                experiment("facts", metric("parameters", 0, None), vec![0]),
                Experiment {
                    exclusive: true,
                    ..experiment("speed", metric("step_ms", 1, Some(Direction::Lower)), vec![1, 2, 3])
                },
                Experiment {
                    on_request: true,
                    ..experiment("extra", metric("parameters", 0, None), vec![0])
                },
            ],
        })
    }

    fn run(&self, spec: &TrialSpec, context: &TrialContext) -> Result<Measurements, TrialError> {
        let steps = spec.config["steps"].as_u64().unwrap_or(1);
        let rate = spec.config["learning_rate"].as_f64().unwrap_or(f64::NAN);
        let better = spec.variant == "better";
        let checkpoint = context.checkpoints.as_ref().map(|folder| folder.join("step"));
        let read = |path| fs::read_to_string(path).ok()?.parse().ok();
        let first: u64 = checkpoint.as_ref().and_then(read).unwrap_or(0);
        let mut measurements = Measurements::default();
        // the trace of a resumed run is that of an uninterrupted one
        let mut noise = Seed(spec.seed).stream("data-order");
        for step in 0..steps {
            let loss = 2.0 + f64::from(noise.next_u32()) / f64::from(u32::MAX) * 0.01 - 0.1 * step as f64;
            measurements.trace.push(loss as f32, 1.0);
            if step < first {
                continue;
            }
            context.check_cancelled()?;
            (self.hook)(spec, step)?;
            self.steps.lock().unwrap_or_else(PoisonError::into_inner).push((spec.clone(), step));
            if rate >= 10.0 {
                return Err(TrialError::NonFinite {
                    step,
                    what: "loss".into(),
                    value: f32::NAN,
                    learning_rate: rate,
                });
            }
            context.progress.step(step + 1, steps, loss as f32, 100 * (step + 1));
            if let Some(path) = &checkpoint {
                fs::write(path, (step + 1).to_string()).map_err(TrialError::failed)?;
            }
        }
        // at 0.01 and 0.1 `better` ties; `base` prefers 0.1
        let valid = match (better, rate) {
            (true, r) if r <= 0.1 => 0.5,
            (false, 0.1) => 0.4,
            _ => 0.9,
        };
        let seed = 0.01 * (spec.seed % 7) as f64;
        let loss = if better { 1.9 + 0.9 * seed } else { 2.0 + seed };
        let mut add = |name: &str, value: f64| measurements.metrics.insert(name.into(), value);
        add("valid_loss", valid);
        add("test_loss", loss);
        add("parameters", if better { 80.0 } else { 100.0 });
        add("step_ms", if better { 8.0 } else { 10.0 } + seed);
        let curve = Curve { x_label: "step".into(), x: vec![0.0, 1.0], y: vec![loss + 1.0, loss] };
        measurements.curves.insert("valid_loss".into(), curve);
        measurements.data.push(DataUse {
            name: "toy/train".into(),
            sha256: Self::data(),
            bytes: 8,
            source: "embedded".into(),
            licence: "CC0-1.0".into(),
            verified: true,
        });
        Ok(measurements)
    }
}
