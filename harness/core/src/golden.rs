//! Goldens: reviewed snapshots of what this code produces, one file an experiment, scale and backend.
//!
//! `check` compares the mean over seeds of each metric with the golden's, within the metric's band, and the
//! digests of data and configs exactly. `propose` makes a new golden from records; the bands of the old one are
//! kept. The files are sorted and rounded, so that a change is a small diff that a person can review.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::atomic;
use crate::digest::Digest;
use crate::evidence::Evidence;
use crate::plan::{Experiment, Scale};
use crate::record::Record;
use crate::statistics::mean;

/// Seeds below which a trained experiment's numbers are not worth a review, at `small` and above.
pub const FEWEST_SEEDS: usize = 3;

/// Significant digits kept of a number that is not whole: more than any band resolves.
const DIGITS: usize = 7;

/// What one experiment is expected to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Paper id.
    pub paper: String,
    /// Experiment id.
    pub experiment: String,
    /// Scale.
    pub scale: Scale,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// Seeds of the main trials.
    pub seeds: Vec<u64>,
    /// Data by name.
    pub data: BTreeMap<String, Digest>,
    /// How far a metric's mean may move; for people to edit.
    pub bands: BTreeMap<String, Band>,
    /// Results by variant.
    pub variants: BTreeMap<String, GoldenVariant>,
}

/// How far a metric may move: by `relative` x its size plus `absolute`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// Fraction of the golden's value.
    pub relative: f64,
    /// In the metric's unit.
    pub absolute: f64,
}

/// Results of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenVariant {
    /// Digest of its config, with the selected value of what is tuned.
    pub config: Digest,
    /// What tuning selected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selected: BTreeMap<String, f64>,
    /// Results by metric.
    pub metrics: BTreeMap<String, GoldenMetric>,
}

/// Results of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenMetric {
    /// Mean over seeds.
    pub mean: f64,
    /// Value by seed.
    pub seeds: BTreeMap<u64, f64>,
}

/// A difference between a golden and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A mean left its band.
    Moved {
        /// Variant id.
        variant: String,
        /// Metric name.
        metric: String,
        /// Mean of the golden.
        golden: f64,
        /// Mean over the same seeds.
        measured: f64,
        /// Largest difference allowed.
        allowed: f64,
    },
    /// Other data than the golden's.
    Data {
        /// Data name.
        name: String,
        /// Digest in the golden, if it knows the data.
        golden: Option<Digest>,
        /// Digest used now, if it is used.
        measured: Option<Digest>,
    },
    /// Other hyper-parameters than the golden's.
    Config {
        /// Variant id.
        variant: String,
        /// In words.
        what: String,
    },
    /// Something the golden has was not measured.
    Missing {
        /// In words.
        what: String,
    },
    /// Something was measured that the golden does not have: no failure, but something to bless.
    Added {
        /// In words.
        what: String,
    },
}

impl Change {
    /// Whether a check fails because of it.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Added { .. })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |d: &Option<Digest>| d.as_ref().map_or("absent".to_owned(), |d| d.short().to_owned());
        match self {
            Self::Moved { variant, metric, golden, measured, allowed } => write!(
                f,
                "{variant}: {metric} moved from {golden} to {} (by {}; {} is allowed)",
                round(*measured),
                significant(measured - golden, 2),
                significant(*allowed, 2)
            ),
            Self::Data { name, golden, measured } => {
                write!(f, "data {name}: sha256 changed from {} to {}", short(golden), short(measured))
            }
            Self::Config { variant, what } => write!(f, "{variant}: {what}"),
            Self::Missing { what } => write!(f, "{what} was not measured"),
            Self::Added { what } => write!(f, "{what} is not in the golden yet"),
        }
    }
}

/// Why there is no golden.
#[derive(Debug, Error)]
pub enum GoldenError {
    /// The file cannot be read or written.
    #[error("{path}: {source}; {}", atomic::advice(.source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not a golden.
    #[error("{path}: {source}; restore it from version control or bless it again")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and key.
        source: serde_json::Error,
    },
    /// What was measured may not become a golden.
    #[error("{experiment}: not blessed: {problem}")]
    Unfit {
        /// Experiment id.
        experiment: String,
        /// Why, and what to do.
        problem: String,
    },
}

impl Golden {
    /// Where the golden of an experiment lies below the folder `golden`.
    pub fn path(root: &Path, paper: &str, experiment: &str, scale: Scale, backend: &str) -> PathBuf {
        root.join(paper).join(format!("{experiment}.{scale}.{backend}.json"))
    }

    /// Reads a golden; nothing if there is none.
    ///
    /// # Errors
    /// The file cannot be read or is not a golden.
    pub fn read(path: &Path) -> Result<Option<Self>, GoldenError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(GoldenError::Io { path: path.to_owned(), source }),
        };
        let parse = serde_json::from_str(&text);
        parse.map(Some).map_err(|source| GoldenError::Syntax { path: path.to_owned(), source })
    }

    /// Writes the golden.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), GoldenError> {
        let failed = |source| GoldenError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        atomic::write(path, self.to_text().as_bytes()).map_err(failed)
    }

    /// The file's content.
    pub fn to_text(&self) -> String {
        // a value's keys are sorted in any order of insertion; numbers are rounded already
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        json + "\n"
    }

    /// A golden from what was measured of an experiment. `previous` lends its bands.
    ///
    /// # Errors
    /// Trials that have not run, too few seeds, unverified data, or values that are not numbers.
    pub fn propose(
        evidence: &Evidence,
        experiment: &Experiment,
        previous: Option<&Self>,
    ) -> Result<Self, GoldenError> {
        let unfit = |problem: String| Err(GoldenError::Unfit { experiment: experiment.id.clone(), problem });
        let scale = evidence.plan.scale;
        if scale >= Scale::Small && !is_fact(experiment) && experiment.seeds.len() < FEWEST_SEEDS {
            return unfit(format!(
                "{} seeds are planned; at scale {scale} at least {FEWEST_SEEDS} are needed, see --seeds",
                experiment.seeds.len()
            ));
        }
        let mut golden = Self {
            paper: evidence.paper.id.clone(),
            experiment: experiment.id.clone(),
            scale,
            backend: evidence.backend.clone(),
            seeds: experiment.seeds.clone(),
            data: BTreeMap::new(),
            bands: BTreeMap::new(),
            variants: BTreeMap::new(),
        };
        for variant in &experiment.variants {
            let records = evidence.records(&experiment.id, &variant.id);
            let run: BTreeSet<u64> = records.iter().map(|r| r.spec.seed).collect();
            if let Some(seed) = experiment.seeds.iter().find(|s| !run.contains(s)) {
                let name = format!("{}/{}/{}", golden.paper, experiment.id, variant.id);
                return unfit(format!(
                    "seed {seed} of {} has not been run; `replica run {name}`",
                    variant.id
                ));
            }
            for data in records.iter().flat_map(|r| &r.measurements.data) {
                if !data.verified {
                    return unfit(format!(
                        "{} was read from {} without a known digest; put its sha256 in the catalogue",
                        data.name, data.source
                    ));
                }
            }
            golden.data.append(&mut data_of(&records));
            let measured = measured(experiment, &records);
            for (metric, values) in &measured.metrics {
                if let Some((seed, value)) = values.seeds.iter().find(|(_, v)| !v.is_finite()) {
                    return unfit(format!("{metric} of {} is {value} for seed {seed}", variant.id));
                }
                let band = previous.and_then(|p| p.bands.get(metric)).copied();
                golden.bands.insert(metric.clone(), band.unwrap_or_else(|| default_band(experiment, metric)));
            }
            golden.variants.insert(variant.id.clone(), measured);
        }
        Ok(golden)
    }

    /// What was measured differently from the golden.
    pub fn check(&self, evidence: &Evidence) -> Vec<Change> {
        let mut changes = Vec::new();
        let missing = |what: String| Change::Missing { what };
        let Some(experiment) = evidence.plan.experiment(&self.experiment) else {
            return vec![missing(format!("experiment {}", self.experiment))];
        };
        let mut data = BTreeMap::new();
        let mut any_record = false;
        for (id, golden) in &self.variants {
            let records = evidence.records(&self.experiment, id);
            if records.is_empty() {
                changes.push(missing(format!("variant {id}")));
                continue;
            }
            any_record = true;
            data.append(&mut data_of(&records));
            let measured = measured(experiment, &records);
            changes.extend(config_change(id, golden, &measured));
            let run: BTreeSet<u64> = records.iter().map(|r| r.spec.seed).collect();
            for seed in self.seeds.iter().filter(|s| !run.contains(s)) {
                changes.push(missing(format!("seed {seed} of {id}")));
            }
            for (metric, expected) in &golden.metrics {
                changes.extend(self.metric_change(id, metric, expected, measured.metrics.get(metric)));
            }
            for metric in measured.metrics.keys().filter(|m| !golden.metrics.contains_key(*m)) {
                changes.push(Change::Added { what: format!("{metric} of {id}") });
            }
        }
        for variant in experiment.variants.iter().filter(|v| !self.variants.contains_key(&v.id)) {
            changes.push(Change::Added { what: format!("variant {}", variant.id) });
        }
        if any_record {
            let names: BTreeSet<&String> = self.data.keys().chain(data.keys()).collect();
            for name in names {
                let (golden, measured) = (self.data.get(name).cloned(), data.get(name).cloned());
                if golden != measured {
                    changes.push(Change::Data { name: name.clone(), golden, measured });
                }
            }
        }
        changes
    }

    fn metric_change(
        &self,
        variant: &str,
        metric: &str,
        golden: &GoldenMetric,
        measured: Option<&GoldenMetric>,
    ) -> Option<Change> {
        let values = measured.map(|m| &m.seeds);
        let both: Vec<(f64, f64)> =
            golden.seeds.iter().filter_map(|(seed, g)| Some((*g, *values?.get(seed)?))).collect();
        if both.is_empty() {
            return Some(Change::Missing { what: format!("{metric} of {variant}") });
        }
        let expected = mean(&both.iter().map(|(g, _)| *g).collect::<Vec<_>>());
        let measured = mean(&both.iter().map(|(_, m)| *m).collect::<Vec<_>>());
        let band = self.bands.get(metric).copied().unwrap_or(Band { relative: 0.0, absolute: 0.0 });
        // whole numbers are kept exactly, others to `DIGITS` digits
        let rounding = if expected.fract() == 0.0 { 0.0 } else { 10f64.powi(1 - DIGITS as i32) };
        let allowed = band.absolute + (band.relative + rounding) * expected.abs();
        // a NaN is outside every band
        let inside = (measured - expected).abs() <= allowed;
        (!inside).then(|| Change::Moved {
            variant: variant.to_owned(),
            metric: metric.to_owned(),
            golden: round(expected),
            measured,
            allowed,
        })
    }
}

/// Experiments with a single seed compute facts, such as parameter counts, that no seed changes.
fn is_fact(experiment: &Experiment) -> bool {
    experiment.seeds.len() == 1
}

/// Our choice: facts must not move; training may move by 2 %, which is what another processor's rounding does to
/// a short run; times and memory differ between machines and are only watched for being off by half.
fn default_band(experiment: &Experiment, metric: &str) -> Band {
    // a metric of which neither direction is better is a fact, such as a parameter count
    let fact = experiment.metrics.iter().any(|m| m.name == metric && m.better.is_none());
    let relative = match () {
        () if fact => 0.0,
        () if experiment.exclusive => 0.5,
        () if is_fact(experiment) => 0.0,
        () => 0.02,
    };
    Band { relative, absolute: 0.0 }
}

fn data_of(records: &[&Record]) -> BTreeMap<String, Digest> {
    let used = records.iter().flat_map(|r| &r.measurements.data).map(|d| (d.name.clone(), d.sha256.clone()));
    records.iter().flat_map(|r| r.spec.data.clone()).chain(used).collect()
}

fn measured(experiment: &Experiment, records: &[&Record]) -> GoldenVariant {
    let config = records.first().map(|r| r.spec.config.clone()).unwrap_or(Value::Null);
    let selected = experiment.tuning.iter().filter_map(|tuning| {
        let value = config.get(&tuning.parameter)?.as_f64()?;
        Some((tuning.parameter.clone(), value))
    });
    let metrics = experiment.metrics.iter().filter_map(|metric| {
        let value = |r: &&Record| Some((r.spec.seed, round(*r.measurements.metrics.get(&metric.name)?)));
        let seeds: BTreeMap<u64, f64> = records.iter().filter_map(value).collect();
        let values: Vec<f64> = seeds.values().copied().collect();
        (!values.is_empty())
            .then(|| (metric.name.clone(), GoldenMetric { mean: round(mean(&values)), seeds }))
    });
    GoldenVariant {
        selected: selected.collect(),
        metrics: metrics.collect(),
        config: Digest::of_json(&config),
    }
}

fn config_change(variant: &str, golden: &GoldenVariant, measured: &GoldenVariant) -> Option<Change> {
    if golden.config == measured.config {
        return None;
    }
    let selected: Vec<String> = golden
        .selected
        .iter()
        .filter_map(|(parameter, old)| {
            let new = measured.selected.get(parameter)?;
            (new != old).then(|| format!("tuning selected {parameter} {new} instead of {old}"))
        })
        .collect();
    let what = if selected.is_empty() {
        let (old, new) = (golden.config.short(), measured.config.short());
        format!("config changed (digest {old} before, {new} now)")
    } else {
        selected.join(", ")
    };
    Some(Change::Config { variant: variant.to_owned(), what })
}

fn round(x: f64) -> f64 {
    if x.fract() == 0.0 { x } else { significant(x, DIGITS) }
}

fn significant(x: f64, digits: usize) -> f64 {
    format!("{x:.*e}", digits - 1).parse().unwrap_or(x)
}
