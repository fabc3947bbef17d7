//! `configs/<scale>.toml`: every experiment at a scale as data. A study is trained in several hosts, each in several
//! variants that are defined once for the file; each host of a study is an experiment of its own.

use std::collections::BTreeMap;

use replica_core::claim::Direction;
use replica_core::plan::Metric;
use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{Digest, Experiment, Plan, Scale, Variant};
use replica_datasets::{TaskSpec, TokenizerSpec, expected_digests};
use replica_train::{Precision, Recipe, Search};
use serde::{Deserialize, Serialize};

use crate::data::Resampling;
use crate::host::HostConfig;
use crate::model::{Encoder, Head, ModelConfig, Shape};
use crate::replay::ReplayConfig;
use crate::signals::SignalSpec;
use crate::state_error::StateError;

/// A configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Hosts by id.
    hosts: BTreeMap<String, NamedHost>,
    /// What is done to a host, by id, beside what `variants.toml` has.
    #[serde(default)]
    variants: BTreeMap<String, Variation>,
    /// The Non-Stable State in numbers.
    #[serde(default)]
    state_error: Vec<StateErrorStudy>,
    /// Trained comparisons.
    #[serde(default)]
    study: Vec<Study>,
    /// Time and memory over the length of sequences.
    cost: Option<Cost>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedHost {
    label: String,
    model: HostConfig,
}

/// What a variant changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variation {
    /// Label for people; `{host}` stands for the host's.
    label: String,
    description: String,
    /// SMR, or a control in its place.
    replay: Option<ReplayConfig>,
    /// Instead of the host.
    host: Option<HostConfig>,
    /// Widen the model until it has as many parameters as this variant.
    parameters_of: Option<String>,
    /// Tell the model the true sampling intervals.
    #[serde(default)]
    told: bool,
}

/// A trained comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Study {
    id: String,
    title: String,
    method: String,
    /// Take what is missing here from an earlier study.
    like: Option<String>,
    /// Run only when named.
    #[serde(default)]
    on_request: bool,
    data: Option<DataSpec>,
    model: Option<Shape>,
    recipe: Option<Recipe>,
    tuning: Option<Search>,
    seeds: Vec<u64>,
    runs: Vec<Run>,
}

/// A host of a study and what is done to it, the baseline first.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    host: String,
    /// What the experiment's id calls the host, if not its id.
    name: Option<String>,
    variants: Vec<String>,
    /// Instead of the study's.
    model: Option<Shape>,
    /// Instead of the study's.
    recipe: Option<Recipe>,
}

/// Variants of one system on the same inputs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateErrorStudy {
    id: String,
    title: String,
    method: String,
    seeds: Vec<u64>,
    variants: Vec<NamedStateError>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedStateError {
    id: String,
    label: String,
    description: String,
    system: StateError,
}

/// Time and memory of training steps.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    model: Shape,
    hosts: Vec<String>,
    variants: Vec<String>,
    /// Lengths of sequences, ascending.
    lengths: Vec<usize>,
    batch_size: usize,
    /// Steps timed at each length; the first three do not count.
    steps: u64,
    /// How often each is timed.
    repetitions: u64,
}

/// What a model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataSpec {
    /// Classification of sequences.
    Task {
        /// Which.
        task: TaskSpec,
        /// What is read, as the task must have it.
        encoder: Encoder,
        /// What is said, as the task must have it.
        head: Head,
        /// Other resolutions the test is repeated at.
        #[serde(default)]
        resampled: Vec<Resampling>,
    },
    /// The toy regression.
    Signals {
        /// Its parameters.
        signals: SignalSpec,
    },
    /// Language modelling.
    Text {
        /// Data set of the catalogue.
        text: String,
        /// Its tokenizer.
        tokenizer: TokenizerSpec,
    },
}

/// What one trial does: the variant's config in its spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TrialConfig {
    /// Trains and evaluates.
    Train(Box<Training>),
    /// Times training steps over lengths.
    Cost(Timing),
    /// Computes state errors.
    StateError {
        /// The systems.
        system: StateError,
    },
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// What it is trained on.
    pub data: DataSpec,
    /// The model.
    pub model: ModelConfig,
    /// How it is trained.
    #[serde(flatten)]
    pub recipe: Recipe,
}

/// Training steps to be timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The model, but for its length.
    pub model: ModelConfig,
    /// Lengths of sequences.
    pub lengths: Vec<usize>,
    /// Sequences a step.
    pub batch_size: usize,
    /// Steps at each length.
    pub steps: u64,
}

impl Timing {
    /// Steps without evaluation.
    pub fn recipe(&self, length: usize) -> Recipe {
        Recipe {
            dtype: Precision::F32,
            steps: self.steps,
            batch_size: self.batch_size,
            micro_batches: 1,
            seq_len: length,
            learning_rate: 1e-3,
            warmup_steps: 0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            groups: Vec::new(),
            eval_every: self.steps,
            patience: None,
            eval_blocks: 0,
        }
    }

    /// What is fed.
    pub fn signals(&self, length: usize) -> SignalSpec {
        SignalSpec {
            step: 0.05,
            mixed_steps: None,
            length,
            components: 4,
            frequencies: (0.1, 1.6),
            tau: 0.3,
            skip: 0,
            test: 1,
            grids: Vec::new(),
        }
    }
}

/// The experiments of a scale.
///
/// # Errors
/// An unknown key, or a value that makes no sense: the message names file, study, host, variant and key.
pub fn plan(scale: Scale, given: Option<&ConfigFile>) -> Result<Plan, PlanError> {
    let builtin = [
        include_str!("../configs/smoke.toml"),
        include_str!("../configs/small.toml"),
        include_str!("../configs/gpu.toml"),
        include_str!("../configs/paper.toml"),
    ];
    let file = ConfigFile::of_scale("smr", scale, given, builtin);
    let error = |problem: String| PlanError::Config { path: file.path.clone(), problem };
    let mut config: Config = toml::from_str(&file.text).map_err(|e| error(e.to_string()))?;
    let path = "replications/smr/configs/variants.toml";
    let shared: BTreeMap<String, Variation> = toml::from_str(include_str!("../configs/variants.toml"))
        .map_err(|e| PlanError::Config { path: path.to_owned(), problem: e.to_string() })?;
    for (id, variation) in shared {
        config.variants.entry(id).or_insert(variation);
    }
    let mut studies: Vec<Study> = Vec::new();
    for study in std::mem::take(&mut config.study) {
        let base = match &study.like {
            Some(id) => Some(studies.iter().find(|s| s.id == *id).ok_or_else(|| {
                error(format!("study `{}`: like = \"{id}\" names no earlier study", study.id))
            })?),
            None => None,
        };
        studies.push(study.completed(base));
    }
    let mut experiments = Vec::new();
    for study in &config.state_error {
        experiments.push(study.experiment().map_err(|p| error(format!("state_error `{}`: {p}", study.id)))?);
    }
    for study in &studies {
        for run in &study.runs {
            let made = study.experiment(run, &config);
            let place = |p| error(format!("study `{}`, host `{}`: {p}", study.id, run.host));
            experiments.push(made.map_err(place)?);
        }
    }
    if let Some(cost) = &config.cost {
        experiments.push(cost.experiment(&config).map_err(|p| error(format!("cost: {p}")))?);
    }
    Ok(Plan { scale, config_file: file.path.clone(), experiments })
}

impl Config {
    fn host(&self, id: &str) -> Result<&NamedHost, String> {
        let known = || self.hosts.keys().cloned().collect::<Vec<_>>().join(", ");
        self.hosts.get(id).ok_or_else(|| format!("`{id}` is no host; known: {}", known()))
    }

    fn variation(&self, id: &str) -> Result<&Variation, String> {
        let known = || self.variants.keys().cloned().collect::<Vec<_>>().join(", ");
        self.variants.get(id).ok_or_else(|| format!("`{id}` is no variant; known: {}", known()))
    }

    /// The model of a variant on a host.
    fn model(
        &self,
        id: &str,
        host: &NamedHost,
        shape: Shape,
        (encoder, head): (Encoder, Head),
        length: usize,
    ) -> Result<ModelConfig, String> {
        let variation = self.variation(id)?;
        let of_width = |width: usize| ModelConfig {
            encoder,
            head,
            shape: Shape { width, ..shape },
            host: variation.host.unwrap_or(host.model),
            replay: variation.replay,
            length,
            told: variation.told,
        };
        let model = of_width(shape.width);
        if let Some(problem) = model.problem() {
            return Err(problem);
        }
        let Some(other) = &variation.parameters_of else { return Ok(model) };
        if self.variation(other)?.parameters_of.is_some() {
            return Err(format!("parameters_of = \"{other}\": a variant of the given width is expected"));
        }
        let count = |model: &ModelConfig| model.parameters().map_err(|e| e.to_string());
        let wanted = count(&self.model(other, host, shape, (encoder, head), length)?)?;
        // the smallest width with as many parameters, or the one before it if that is nearer
        let (mut low, mut high) = (shape.width, 16 * shape.width);
        while low < high {
            let middle = low + (high - low) / 2;
            (low, high) = if count(&of_width(middle))? < wanted { (middle + 1, high) } else { (low, middle) };
        }
        let nearest = [low.saturating_sub(1).max(shape.width), low]
            .map(|width| Ok::<_, String>((count(&of_width(width))?.abs_diff(wanted), width)));
        let [before, after] = nearest;
        let (_, width) = before?.min(after?);
        let wide = of_width(width);
        wide.problem().map_or(Ok(wide), Err)
    }
}

impl Study {
    fn completed(self, base: Option<&Study>) -> Study {
        let Some(base) = base else { return self };
        Study {
            data: self.data.or_else(|| base.data.clone()),
            model: self.model.or(base.model),
            recipe: self.recipe.or_else(|| base.recipe.clone()),
            tuning: self.tuning.or_else(|| base.tuning.clone()),
            ..self
        }
    }

    fn experiment(&self, run: &Run, config: &Config) -> Result<Experiment, String> {
        fn given<T: Clone>(value: Option<&T>, key: &str) -> Result<T, String> {
            let hint = "give it, or name a study with like = \"...\"";
            value.cloned().ok_or_else(|| format!("{key} is missing; {hint}"))
        }
        if run.variants.is_empty() || self.seeds.is_empty() {
            return Err("at least one variant and one seed are expected".to_owned());
        }
        let (host, data) = (config.host(&run.host)?, given(self.data.as_ref(), "data")?);
        let shape = given(run.model.as_ref().or(self.model.as_ref()), "model")?;
        let recipe = given(run.recipe.as_ref().or(self.recipe.as_ref()), "recipe")?;
        if let Some(problem) = recipe.problem().or_else(|| data.problem()) {
            return Err(problem);
        }
        let variant = |id: &String| {
            let model = config
                .model(id, host, shape, data.ends(), recipe.seq_len)
                .map_err(|p| format!("variant `{id}`: {p}"))?;
            let training = Training { data: data.clone(), model, recipe: recipe.clone() };
            let variation = config.variation(id)?;
            Variant::new(
                id,
                &variation.label.replace("{host}", &host.label),
                &variation.description,
                &TrialConfig::Train(Box::new(training)),
            )
        };
        let variants: Vec<Variant> = run.variants.iter().map(variant).collect::<Result<_, String>>()?;
        Ok(Experiment {
            id: format!("{}-{}", self.id, run.name.as_ref().unwrap_or(&run.host)),
            title: format!("{}: {}", self.title, host.label),
            method: self.method.clone(),
            metrics: data.metrics(matches!(host.model, HostConfig::S5 { .. })),
            variants,
            seeds: self.seeds.clone(),
            tuning: self.tuning.as_ref().map(|search| search.tuning(&recipe)).transpose()?,
            data: data.digests(),
            exclusive: false,
            on_request: self.on_request,
        })
    }
}

impl DataSpec {
    fn problem(&self) -> Option<String> {
        match self {
            Self::Task { resampled, .. } => resampled.iter().find_map(Resampling::problem),
            Self::Signals { signals } => signals.problem(),
            Self::Text { .. } => None,
        }
    }

    /// What a model reads and says.
    fn ends(&self) -> (Encoder, Head) {
        match self {
            Self::Task { encoder, head, .. } => (*encoder, *head),
            Self::Signals { .. } => (Encoder::Values(1), Head::Regression),
            Self::Text { tokenizer, .. } => {
                let ids = tokenizer.vocab_size();
                (Encoder::Tokens(ids), Head::NextToken(ids))
            }
        }
    }

    fn digests(&self) -> BTreeMap<String, Digest> {
        match self {
            // a file without a published digest is held to that of its first download
            Self::Task { task, .. } => task.expected_digests().unwrap_or_default(),
            Self::Text { text, .. } => expected_digests(text).unwrap_or_default(),
            Self::Signals { .. } => BTreeMap::new(),
        }
    }

    fn metrics(&self, modes_may_grow: bool) -> Vec<Metric> {
        let mut metrics = match self {
            Self::Task { resampled, .. } => {
                let mut metrics =
                    vec![Metric::new("test_accuracy", "test accuracy", "%", Some(Direction::Higher), 2)];
                for at in resampled {
                    let (accuracy, kept) = (format!("accuracy_{}", at.id), format!("kept_{}", at.id));
                    let label = format!("accuracy, {}", at.label);
                    metrics.push(Metric::new(&accuracy, &label, "%", Some(Direction::Higher), 2));
                    let label = format!("share of accuracy kept, {}", at.label);
                    metrics.push(Metric::new(&kept, &label, "", Some(Direction::Higher), 3));
                }
                metrics.push(Metric::new("majority", "majority class", "%", None, 2));
                metrics
            }
            Self::Signals { signals } => {
                let lower = Some(Direction::Lower);
                let mut metrics = vec![
                    Metric::new("off_grid_ratio", "error off the grid over error on it", "", lower, 3),
                    Metric::new("off_grid_rmse", "RMSE off the grid (geometric mean)", "", lower, 4),
                    Metric::new("rmse", "RMSE at the step of training", "", lower, 4),
                ];
                for grid in &signals.grids {
                    let label = format!("RMSE, {}", grid.label);
                    metrics.push(Metric::new(&format!("rmse_{}", grid.id), &label, "", lower, 4));
                }
                for grid in &signals.grids {
                    let label = format!("ratio, {}", grid.label);
                    metrics.push(Metric::new(&format!("ratio_{}", grid.id), &label, "", lower, 3));
                }
                if modes_may_grow {
                    metrics.push(Metric::new("growing_modes", "modes beyond the unit circle", "%", None, 1));
                }
                metrics
            }
            Self::Text { .. } => {
                let lower = Some(Direction::Lower);
                vec![
                    Metric::new("test_bits_per_byte", "test bits per byte", "", lower, 4),
                    Metric::new("test_perplexity", "test perplexity per token", "", lower, 3),
                ]
            }
        };
        metrics.extend([
            Metric::new("valid_loss", "validation loss", "", Some(Direction::Lower), 4),
            Metric::new("train_loss", "training loss", "", Some(Direction::Lower), 4),
            Metric::new("parameters", "parameters", "", None, 0),
        ]);
        metrics
    }
}

impl StateErrorStudy {
    fn experiment(&self) -> Result<Experiment, String> {
        if self.variants.is_empty() || self.seeds.is_empty() {
            return Err("at least one variant and one seed are expected".to_owned());
        }
        let one = |v: &NamedStateError| {
            if let Some(problem) = v.system.problem() {
                return Err(format!("variant `{}`: {problem}", v.id));
            }
            let config = TrialConfig::StateError { system: v.system.clone() };
            Variant::new(&v.id, &v.label, &v.description, &config)
        };
        let lower = Some(Direction::Lower);
        Ok(Experiment {
            id: self.id.clone(),
            title: self.title.clone(),
            method: self.method.clone(),
            metrics: vec![
                Metric::new("relative_error", "state error over state", "", lower, 4),
                Metric::new("state_error", "state error", "", lower, 4),
                Metric::new("growth_rate", "growth of the error a step (log)", "", None, 5),
                Metric::new("log_radius", "log of the spectral radius", "", None, 5),
                Metric::new("error_over_bound", "largest error over bound", "", None, 4),
                Metric::new("rate_off", "largest difference of growth and log radius above 0", "", None, 5),
            ],
            variants: self.variants.iter().map(one).collect::<Result<_, _>>()?,
            seeds: self.seeds.clone(),
            tuning: None,
            data: BTreeMap::new(),
            exclusive: false,
            on_request: false,
        })
    }
}

impl Cost {
    fn experiment(&self, config: &Config) -> Result<Experiment, String> {
        if self.steps < 4 {
            return Err(format!(
                "steps = {}: above 3 is expected, as the first three do not count",
                self.steps
            ));
        }
        if self.batch_size == 0 || !self.lengths.is_sorted() || self.lengths.first().is_none_or(|l| *l < 2) {
            return Err("batch_size is at least 1, lengths are ascending and at least 2".to_owned());
        }
        let mut variants = Vec::new();
        for host_id in &self.hosts {
            let host = config.host(host_id)?;
            for id in &self.variants {
                let ends = (Encoder::Values(1), Head::Regression);
                let model = config.model(id, host, self.model, ends, 2)?;
                let variation = config.variation(id)?;
                let timing = Timing {
                    model,
                    lengths: self.lengths.clone(),
                    batch_size: self.batch_size,
                    steps: self.steps,
                };
                variants.push(Variant::new(
                    &format!("{host_id}_{id}"),
                    &variation.label.replace("{host}", &host.label),
                    &variation.description,
                    &TrialConfig::Cost(timing),
                )?);
            }
        }
        let longest = self.lengths.last().copied().unwrap_or_default();
        Ok(Experiment {
            id: "cost".to_owned(),
            title: "Time and memory of a training step".to_owned(),
            method: format!(
                "{} training steps (forward, backward, optimiser) of {} sequences at each length, with nothing else \
                 running; the median step counts. Tables are about length {longest}; the exponent is fitted through \
                 all lengths, 1 is linear. Repetitions take the place of seeds.",
                self.steps, self.batch_size
            ),
            metrics: vec![
                Metric::new("step_ms", "median step", "ms", Some(Direction::Lower), 2),
                Metric::new("steps_per_second", "steps a second", "1/s", Some(Direction::Higher), 1),
                Metric::new("exponent", "exponent of time in length", "", None, 2),
                Metric::new(
                    "peak_memory_mb",
                    "peak memory of model and training",
                    "MB",
                    Some(Direction::Lower),
                    1,
                ),
                Metric::new("parameters", "parameters", "", None, 0),
            ],
            variants,
            seeds: (1..=self.repetitions).collect(),
            tuning: None,
            data: BTreeMap::new(),
            exclusive: true,
            on_request: false,
        })
    }
}
