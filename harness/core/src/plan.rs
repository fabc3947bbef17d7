//! The experiments of a paper at a scale: variants, seeds, tuning and data, before anything runs.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::claim::Direction;
use crate::digest::Digest;
use crate::replication::PlanError;

/// How much is spent on a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Seconds; checks the machinery, never a claim.
    Smoke,
    /// Minutes on two CPU cores.
    Small,
    /// Ten to twenty minutes on one data-centre GPU.
    Gpu,
    /// The published recipe.
    Paper,
}

impl Scale {
    /// All scales, the cheapest first.
    pub const ALL: [Self; 4] = [Self::Smoke, Self::Small, Self::Gpu, Self::Paper];

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Small => "small",
            Self::Gpu => "gpu",
            Self::Paper => "paper",
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|scale| scale.name() == s)
            .ok_or_else(|| format!("unknown scale `{s}`; one of smoke, small, gpu, paper is expected"))
    }
}

/// Everything a paper's crate would run at one scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The scale.
    pub scale: Scale,
    /// The file the hyper-parameters come from, e.g. `replications/lpa/configs/small.toml`.
    pub config_file: String,
    /// The experiments, in the order of the report.
    pub experiments: Vec<Experiment>,
}

impl Plan {
    /// The experiment with this id.
    pub fn experiment(&self, id: &str) -> Option<&Experiment> {
        self.experiments.iter().find(|e| e.id == id)
    }

    /// The plan with another number of seeds: the first `n`, or the given ones and those that follow the
    /// largest, leaving out tuning seeds. Experiments with a single seed are facts that no seed changes.
    #[must_use]
    pub fn with_seeds(mut self, n: usize) -> Self {
        for experiment in self.experiments.iter_mut().filter(|e| e.seeds.len() > 1) {
            let tuning: &[u64] = experiment.tuning.as_ref().map_or(&[], |t| &t.seeds);
            let mut next = experiment.seeds.iter().max().map_or(1, |s| s + 1);
            experiment.seeds.truncate(n);
            while experiment.seeds.len() < n {
                if !tuning.contains(&next) {
                    experiment.seeds.push(next);
                }
                next += 1;
            }
        }
        self
    }

    /// Checks what no single value shows: names used twice, seeds that both tune and measure, a tuned
    /// parameter that a variant does not have.
    ///
    /// # Errors
    /// [`PlanError::Config`] naming the experiment.
    pub fn check(&self) -> Result<(), PlanError> {
        let repeated = |ids: Vec<String>| {
            let mut seen = HashSet::new();
            ids.into_iter().find(|id| !seen.insert(id.clone()))
        };
        let problem = |problem: String| Err(PlanError::Config { path: self.config_file.clone(), problem });
        if let Some(id) = repeated(self.experiments.iter().map(|e| e.id.clone()).collect()) {
            return problem(format!("two experiments are called `{id}`; ids must be distinct"));
        }
        for experiment in &self.experiments {
            let id = &experiment.id;
            if let Some(v) = repeated(experiment.variants.iter().map(|v| v.id.clone()).collect()) {
                return problem(format!(
                    "experiment `{id}`: two variants are called `{v}`; ids must be distinct"
                ));
            }
            if experiment.seeds.is_empty() {
                return problem(format!("experiment `{id}`: seeds is empty; at least one is needed"));
            }
            if let Some(seed) = repeated(experiment.seeds.iter().map(u64::to_string).collect()) {
                return problem(format!("experiment `{id}`: seed {seed} is listed twice"));
            }
            let Some(tuning) = &experiment.tuning else { continue };
            let parameter = &tuning.parameter;
            if tuning.values.is_empty() || tuning.values.iter().any(|v| !v.is_finite()) {
                return problem(format!(
                    "experiment `{id}`: tuning of `{parameter}` needs at least one finite value"
                ));
            }
            if tuning.seeds.is_empty() {
                return problem(format!(
                    "experiment `{id}`: tuning of `{parameter}` needs at least one seed"
                ));
            }
            if let Some(seed) = tuning.seeds.iter().find(|s| experiment.seeds.contains(s)) {
                return problem(format!(
                    "experiment `{id}`: seed {seed} both tunes and measures; choose other tuning seeds"
                ));
            }
            if let Some(v) = experiment.variants.iter().find(|v| v.config.get(parameter).is_none()) {
                return problem(format!(
                    "experiment `{id}`: variant `{}` has no `{parameter}` that could be tuned",
                    v.id
                ));
            }
        }
        Ok(())
    }
}

/// One table or figure of a paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// Unique within the paper, e.g. `placement`.
    pub id: String,
    /// Title for people.
    pub title: String,
    /// How the experiment tests the paper, in a paragraph.
    pub method: String,
    /// What is measured; the first one is the primary metric.
    pub metrics: Vec<Metric>,
    /// Methods and baselines, the baseline first.
    pub variants: Vec<Variant>,
    /// Seeds of the main trials. The same for every variant, so that differences are paired.
    pub seeds: Vec<u64>,
    /// The search each variant gets before its main trials; the same budget for all.
    pub tuning: Option<Tuning>,
    /// Data by name, with the digest it must have.
    pub data: BTreeMap<String, Digest>,
    /// Whether its trials must have the machine for themselves, because they measure time or memory.
    pub exclusive: bool,
    /// Whether it runs only when named on the command line, because it is not in the scale's budget.
    pub on_request: bool,
}

impl Experiment {
    /// The variant with this id.
    pub fn variant(&self, id: &str) -> Option<&Variant> {
        self.variants.iter().find(|v| v.id == id)
    }
}

/// A measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Key in a record's metrics, e.g. `test_perplexity`.
    pub name: String,
    /// Label for people, e.g. `test perplexity`.
    pub label: String,
    /// Unit, or empty.
    pub unit: String,
    /// Which direction is better; nothing for a plain fact such as a parameter count.
    pub better: Option<Direction>,
    /// Digits after the decimal point in tables.
    pub digits: usize,
}

impl Metric {
    /// A metric's facts in the order of the fields.
    pub fn new(name: &str, label: &str, unit: &str, better: Option<Direction>, digits: usize) -> Self {
        Self { name: name.to_owned(), label: label.to_owned(), unit: unit.to_owned(), better, digits }
    }

    /// Unit of a difference between two of its values, or empty: 55 % is 10 points more than 45 %, not 10 % more.
    pub fn unit_of_differences(&self) -> &str {
        if self.unit == "%" { "points" } else { &self.unit }
    }
}

/// A method or baseline within an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Unique within the experiment, e.g. `low_attn`.
    pub id: String,
    /// Label for people.
    pub label: String,
    /// What it is, in a sentence.
    pub description: String,
    /// Every hyper-parameter that determines the result.
    pub config: serde_json::Value,
}

impl Variant {
    /// With a configuration that the replication can read back from a trial's spec.
    ///
    /// # Errors
    /// The configuration has no JSON form.
    pub fn new(id: &str, label: &str, description: &str, config: &impl Serialize) -> Result<Self, String> {
        Ok(Self {
            id: id.to_owned(),
            label: label.to_owned(),
            description: description.to_owned(),
            config: serde_json::to_value(config).map_err(|e| e.to_string())?,
        })
    }
}

/// A grid search over one hyper-parameter, judged on validation data, before the main trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// Top-level key of the variant's config that is searched, e.g. `learning_rate`.
    pub parameter: String,
    /// Values tried, for every variant.
    pub values: Vec<f64>,
    /// Seeds of the tuning trials; disjoint from the main seeds.
    pub seeds: Vec<u64>,
    /// Metric that selects, lowest wins; measured on validation data.
    pub metric: String,
    /// Config keys that differ from the main trials, e.g. a shorter run.
    pub overrides: serde_json::Map<String, serde_json::Value>,
}
