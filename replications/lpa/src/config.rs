//! `configs/<scale>.toml`: every experiment at a scale as data. A study is a list of variants that are
//! trained alike; what is not said in a variant is the study's.

use std::collections::BTreeMap;

use replica_core::claim::Direction;
use replica_core::plan::Metric;
use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{Digest, Experiment, Plan, Scale, Variant};
use replica_datasets::{TokenizerSpec, catalogue};
use replica_train::{Recipe, Search};
use serde::{Deserialize, Serialize};

use crate::model::{ModelConfig, Setting};
use crate::projection::PairInit;

/// A configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Trained comparisons.
    #[serde(default)]
    study: Vec<Study>,
    /// Time and memory of a training step.
    cost: Option<Cost>,
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
    /// Data set of the catalogue.
    text: Option<String>,
    tokenizer: Option<TokenizerSpec>,
    model: Option<Shape>,
    recipe: Option<Recipe>,
    tuning: Option<Search>,
    seeds: Vec<u64>,
    variants: Vec<Variation>,
}

/// A model's shape but for what varies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    setting: Setting,
    hidden_size: usize,
    ffn_size: usize,
    num_heads: usize,
    head_dim: usize,
    num_layers: usize,
    /// The tokenizer's without.
    vocab_size: Option<usize>,
    #[serde(default)]
    dropout: f64,
    #[serde(default)]
    post_norm: bool,
}

/// What a variant changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variation {
    id: String,
    label: String,
    description: String,
    attention_rank: Option<usize>,
    #[serde(default = "all_projections")]
    low_projections: String,
    ffn_rank: Option<usize>,
    #[serde(default)]
    pair_init: PairInit,
    head_dim: Option<usize>,
    ffn_size: Option<usize>,
    num_layers: Option<usize>,
}

fn all_projections() -> String {
    "qkvo".to_owned()
}

/// Time and memory of training steps.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    /// Study whose model and recipe are timed.
    like: String,
    /// Its variants.
    variants: Vec<String>,
    /// How often each is timed.
    repetitions: u64,
    /// Steps timed each time.
    steps: u64,
}

/// What one trial does: the variant's config in its spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TrialConfig {
    /// Trains and evaluates.
    Train(Training),
    /// Times training steps.
    Cost(Training),
    /// Counts parameters and operations.
    Account {
        /// The model.
        model: ModelConfig,
    },
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Data set of the catalogue.
    pub text: String,
    /// Its tokenizer.
    pub tokenizer: TokenizerSpec,
    /// The model.
    pub model: ModelConfig,
    /// How it is trained.
    #[serde(flatten)]
    pub recipe: Recipe,
}

/// The published shapes, counted at every scale.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    model: Vec<PublishedModel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedModel {
    id: String,
    label: String,
    description: String,
    config: ModelConfig,
}

/// The experiments of a scale.
///
/// # Errors
/// An unknown key, or a value that makes no sense: the message names file, study, variant and key.
pub fn plan(scale: Scale, given: Option<&ConfigFile>) -> Result<Plan, PlanError> {
    let builtin = [
        include_str!("../configs/smoke.toml"),
        include_str!("../configs/small.toml"),
        include_str!("../configs/gpu.toml"),
        include_str!("../configs/paper.toml"),
    ];
    let file = ConfigFile::of_scale("lpa", scale, given, builtin);
    let error = |problem: String| PlanError::Config { path: file.path.clone(), problem };
    let config: Config = toml::from_str(&file.text).map_err(|e| error(e.to_string()))?;
    let mut studies: Vec<Study> = Vec::new();
    for study in config.study {
        let base = match &study.like {
            Some(id) => Some(studies.iter().find(|s| s.id == *id).ok_or_else(|| {
                error(format!("study `{}`: like = \"{id}\" names no earlier study", study.id))
            })?),
            None => None,
        };
        studies.push(study.completed(base));
    }
    let mut experiments = Vec::new();
    for study in &studies {
        experiments.push(study.experiment().map_err(|p| error(format!("study `{}`: {p}", study.id)))?);
    }
    experiments.push(accounting()?);
    if let Some(cost) = &config.cost {
        experiments.push(cost.experiment(&studies).map_err(|p| error(format!("cost: {p}")))?);
    }
    Ok(Plan { scale, config_file: file.path.clone(), experiments })
}

impl Study {
    fn completed(self, base: Option<&Study>) -> Study {
        let Some(base) = base else { return self };
        Study {
            text: self.text.or_else(|| base.text.clone()),
            tokenizer: self.tokenizer.or_else(|| base.tokenizer.clone()),
            model: self.model.or_else(|| base.model.clone()),
            recipe: self.recipe.or_else(|| base.recipe.clone()),
            tuning: self.tuning.or_else(|| base.tuning.clone()),
            ..self
        }
    }

    fn training(&self, variation: &Variation) -> Result<Training, String> {
        fn given<T: Clone>(value: &Option<T>, key: &str) -> Result<T, String> {
            value
                .clone()
                .ok_or_else(|| format!("{key} is missing; give it, or name a study with like = \"...\""))
        }
        let (shape, recipe) = (given(&self.model, "model")?, given(&self.recipe, "recipe")?);
        let tokenizer = given(&self.tokenizer, "tokenizer")?;
        let model = ModelConfig {
            setting: shape.setting,
            vocab_size: shape.vocab_size.unwrap_or_else(|| tokenizer.vocab_size()),
            hidden_size: shape.hidden_size,
            ffn_size: variation.ffn_size.unwrap_or(shape.ffn_size),
            num_heads: shape.num_heads,
            head_dim: variation.head_dim.unwrap_or(shape.head_dim),
            num_layers: variation.num_layers.unwrap_or(shape.num_layers),
            seq_len: recipe.seq_len,
            attention_rank: variation.attention_rank,
            low_projections: variation.low_projections.clone(),
            ffn_rank: variation.ffn_rank,
            pair_init: variation.pair_init,
            post_norm: shape.post_norm,
            dropout: shape.dropout,
        };
        match recipe.problem().or_else(|| model.problem()) {
            Some(problem) => Err(problem),
            None => Ok(Training { text: given(&self.text, "text")?, tokenizer, model, recipe }),
        }
    }

    fn experiment(&self) -> Result<Experiment, String> {
        if self.variants.is_empty() || self.seeds.is_empty() {
            return Err("at least one variant and one seed are expected".to_owned());
        }
        let variant = |v: &Variation| {
            let training = self.training(v).map_err(|p| format!("variant `{}`: {p}", v.id))?;
            Variant::new(&v.id, &v.label, &v.description, &TrialConfig::Train(training))
        };
        let variants = self.variants.iter().map(variant).collect::<Result<Vec<_>, String>>()?;
        let text = self.text.clone().unwrap_or_default();
        Ok(Experiment {
            id: self.id.clone(),
            title: self.title.clone(),
            method: self.method.clone(),
            metrics: vec![
                Metric::new("test_perplexity", "test perplexity", "", Some(Direction::Lower), 3),
                Metric::new("test_bits_per_byte", "test bits per byte", "", Some(Direction::Lower), 4),
                Metric::new("valid_loss", "validation loss", "nats", Some(Direction::Lower), 4),
                Metric::new("train_loss", "training loss", "nats", Some(Direction::Lower), 4),
                Metric::new("parameters", "parameters", "", None, 0),
                Metric::new("forward_flops", "forward operations a token", "", None, 0),
                Metric::new("epochs", "epochs", "", None, 2),
            ],
            variants,
            seeds: self.seeds.clone(),
            tuning: self
                .tuning
                .as_ref()
                .zip(self.recipe.as_ref())
                .map(|(search, recipe)| search.tuning(recipe))
                .transpose()?,
            data: published_digests(&text)?,
            exclusive: false,
            on_request: self.on_request,
        })
    }
}

impl Cost {
    fn experiment(&self, studies: &[Study]) -> Result<Experiment, String> {
        let study = studies.iter().find(|s| s.id == self.like);
        let study = study.ok_or_else(|| format!("like = \"{}\" names no study", self.like))?;
        let variants = self.variants.iter().map(|id| {
            let variation = study.variants.iter().find(|v| v.id == *id);
            let v = variation.ok_or_else(|| format!("`{id}` is no variant of study `{}`", study.id))?;
            let mut training = study.training(v)?;
            training.recipe.steps = self.steps;
            training.recipe.warmup_steps = 0;
            training.recipe.eval_every = self.steps;
            Variant::new(&v.id, &v.label, &v.description, &TrialConfig::Cost(training))
        });
        Ok(Experiment {
            id: "cost".to_owned(),
            title: "Time and memory of a training step".to_owned(),
            method: format!(
                "{} training steps of the shapes of `{}`, with nothing else running; the median step counts. \
                 Repetitions take the place of seeds. On a processor small matrices hide what larger ones \
                 would show, so the claim is judged on a GPU only.",
                self.steps, self.like
            ),
            metrics: vec![
                Metric::new("step_ms", "median step", "ms", Some(Direction::Lower), 2),
                Metric::new("tokens_per_second", "tokens a second", "1/s", Some(Direction::Higher), 0),
                Metric::new(
                    "peak_memory_mb",
                    "peak memory of model and training",
                    "MB",
                    Some(Direction::Lower),
                    1,
                ),
                Metric::new("forward_flops", "forward operations a token", "", None, 0),
                Metric::new("parameters", "parameters", "", None, 0),
            ],
            variants: variants.collect::<Result<_, String>>()?,
            seeds: (1..=self.repetitions).collect(),
            tuning: None,
            data: published_digests(study.text.as_deref().unwrap_or_default())?,
            exclusive: true,
            on_request: study.on_request,
        })
    }
}

/// Parameters and operations of the published shapes (paper card, section 2.6).
fn accounting() -> Result<Experiment, PlanError> {
    let path = "replications/lpa/configs/published.toml";
    let error = |problem: String| PlanError::Config { path: path.to_owned(), problem };
    let published: Published =
        toml::from_str(include_str!("../configs/published.toml")).map_err(|e| error(e.to_string()))?;
    let variants = published
        .model
        .into_iter()
        .map(|m| Variant::new(&m.id, &m.label, &m.description, &TrialConfig::Account { model: m.config }));
    Ok(Experiment {
        id: "accounting".to_owned(),
        title: "Parameters and operations of the published shapes".to_owned(),
        method: "Counted with the constructors that build the models, without training: exact numbers. \
                 Operations are those of a forward pass a token: products with weights, and attention scores \
                 over the full sequence. Memory is weights, gradients and AdamW's two moments in float32."
            .to_owned(),
        metrics: vec![
            Metric::new("parameters", "parameters", "", None, 0),
            Metric::new("tensors", "tensors", "", None, 0),
            Metric::new("forward_flops", "forward operations a token", "", None, 0),
            Metric::new("state_mb", "weights, gradients, moments", "MB", None, 1),
        ],
        variants: variants.collect::<Result<_, String>>().map_err(error)?,
        seeds: vec![0],
        tuning: None,
        data: BTreeMap::new(),
        exclusive: false,
        on_request: false,
    })
}

/// Digests of a data set's files, as far as they are published; the others are recorded at their first download.
fn published_digests(text: &str) -> Result<BTreeMap<String, Digest>, String> {
    let entry = catalogue().text(text).map_err(|e| format!("text: {e}"))?;
    Ok(entry.files.iter().filter_map(|file| Some((file.name.clone(), file.sha256.clone()?))).collect())
}
