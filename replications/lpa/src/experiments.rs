//! What a trial does: train and evaluate, time steps, or count.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::Device;
use replica_core::trial::Silent;
use replica_core::{Measurements, Seed, TrialContext, TrialError, TrialSpec, memory};
use replica_datasets::{Sources, TokenizedText, TokenizerSpec};
use replica_nn::{Parameters, accelerator};
use replica_train::{Blocks, Log, Perplexity, evaluate, train};

use crate::config::{Training, TrialConfig};
use crate::model::{LanguageModel, ModelConfig};

/// Runs one trial.
///
/// # Errors
/// See [`TrialError`].
pub fn run(spec: &TrialSpec, context: &TrialContext, corpora: &Corpora) -> Result<Measurements, TrialError> {
    let device = || accelerator::open(context.device).map_err(|e| TrialError::Device(e.to_string()));
    match serde_json::from_value(spec.config.clone()).map_err(TrialError::failed)? {
        TrialConfig::Train(training) => {
            Run::prepare(&training, Seed(spec.seed), corpora, &device()?)?.measure(context)
        }
        TrialConfig::Cost(training) => {
            // the text is no part of what training costs
            corpora.get(&training.text, &training.tokenizer)?;
            let device = device()?;
            let before = memory::live();
            memory::reset_peak();
            accelerator::reset_peak_memory(&device);
            Run::prepare(&training, Seed(spec.seed), corpora, &device)?.time(context, before)
        }
        TrialConfig::Account { model } => account(&model),
    }
}

/// Counts a model without building it.
fn account(model: &ModelConfig) -> Result<Measurements, TrialError> {
    let shapes = model.shapes().map_err(TrialError::failed)?;
    let parameters = shapes.count(|_| true) as f64;
    let flops = model.forward_flops().map_err(TrialError::failed)? as f64;
    let metrics = [
        ("parameters", parameters),
        ("tensors", shapes.all().len() as f64),
        ("forward_flops", flops),
        // weight, gradient, two moments of four bytes each
        ("state_mb", parameters * 16.0 / 1e6),
    ];
    Ok(Measurements { metrics: named(metrics), ..Measurements::default() })
}

fn named<const N: usize>(metrics: [(&str, f64); N]) -> BTreeMap<String, f64> {
    metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A model, its data and its recipe, ready to train.
struct Run<'a> {
    training: &'a Training,
    seed: Seed,
    corpus: Arc<TokenizedText>,
    parameters: Parameters,
    model: LanguageModel,
    train_blocks: Blocks,
}

impl<'a> Run<'a> {
    fn prepare(
        training: &'a Training,
        seed: Seed,
        corpora: &Corpora,
        device: &Device,
    ) -> Result<Self, TrialError> {
        let corpus = corpora.get(&training.text, &training.tokenizer)?;
        if corpus.vocab_size > training.model.vocab_size {
            return Err(TrialError::failed(format!(
                "the tokenizer has {} tokens, the model {}",
                corpus.vocab_size, training.model.vocab_size
            )));
        }
        let dtype = training.recipe.dtype.on(device).map_err(TrialError::Device)?;
        let parameters = Parameters::new(seed, dtype, device);
        let model = LanguageModel::new(&training.model, parameters.builder()).map_err(TrialError::failed)?;
        let train_blocks = Blocks::new(corpus.train.clone(), training.recipe.seq_len);
        if train_blocks.is_empty() {
            return Err(TrialError::failed("the training text is shorter than one sequence"));
        }
        Ok(Self { training, seed, corpus, parameters, model, train_blocks })
    }

    /// Nats a token on at most `eval_blocks` blocks of a token stream.
    fn evaluate(&self, tokens: &Arc<[u32]>) -> candle_core::Result<Perplexity> {
        let recipe = &self.training.recipe;
        let blocks = Blocks::new(tokens.clone(), recipe.seq_len).spread(recipe.eval_blocks);
        evaluate(&blocks, recipe.batch_size, self.parameters.device(), |ids, labels| {
            self.model.loss(ids, labels, None)
        })
    }

    fn train(&self, context: &TrialContext) -> Result<Log, TrialError> {
        train(
            &self.parameters,
            &self.training.recipe,
            &self.train_blocks,
            self.seed,
            context,
            |tape, batch, dropout| self.model.loss(&tape.constant(batch.ids), &batch.labels, Some(dropout)),
            || Ok(vec![("valid_loss", self.evaluate(&self.corpus.valid)?.mean_nll)]),
        )
    }

    fn facts(&self) -> Result<[(&'static str, f64); 2], TrialError> {
        let flops = self.training.model.forward_flops().map_err(TrialError::failed)? as f64;
        Ok([("parameters", self.parameters.count() as f64), ("forward_flops", flops)])
    }

    /// Trains, then evaluates on the test split: the model at the end of training, as in the paper.
    fn measure(&self, context: &TrialContext) -> Result<Measurements, TrialError> {
        let log = self.train(context)?;
        let test = self.evaluate(&self.corpus.test).map_err(TrialError::failed)?;
        let last = |curve: &str| {
            let value = log.curves.get(curve).and_then(|c| c.y.last()).copied();
            value.ok_or_else(|| TrialError::failed(format!("no point on curve `{curve}`")))
        };
        let seen = (self.training.recipe.steps * self.training.recipe.batch_size as u64) as f64;
        let mut metrics = named([
            ("test_loss", test.mean_nll),
            ("test_perplexity", test.perplexity()),
            ("test_bits_per_byte", test.bits_per_byte(self.corpus.test_bytes_per_token)),
            ("valid_loss", last("valid_loss")?),
            ("train_loss", last("train_loss")?),
            ("epochs", seen / self.train_blocks.len() as f64),
        ]);
        metrics.extend(named(self.facts()?));
        let mut notes = vec![format!(
            "perplexity is per token of the {} tokenizer (SHA-256 {}), {:.3} bytes a test token",
            self.corpus.tokenizer_name, self.corpus.tokenizer_digest, self.corpus.test_bytes_per_token
        )];
        notes.extend(self.training.model.useless_rank());
        Ok(Measurements {
            metrics,
            curves: log.curves,
            data: self.corpus.data_use(),
            trace: log.trace,
            notes,
            ..Measurements::default()
        })
    }

    /// Times training steps; the loss plays no role. `before` is the memory in use before the model was built.
    fn time(&self, context: &TrialContext, before: Option<u64>) -> Result<Measurements, TrialError> {
        let silent = TrialContext {
            device: context.device,
            progress: &Silent,
            cancel: context.cancel,
            checkpoints: None,
        };
        let log = self.train(&silent)?;
        // on a GPU the device's memory counts
        let on_device = accelerator::peak_memory(self.parameters.device());
        let (peak, before) =
            if on_device.is_some() { (on_device, Some(0)) } else { (memory::peak(), before) };
        let Some(step) = log.median_step_seconds() else {
            return Err(TrialError::failed("cost: steps must be above 3, the first ones do not count"));
        };
        let recipe = &self.training.recipe;
        let mut metrics = named([
            ("step_ms", step * 1e3),
            ("tokens_per_second", (recipe.batch_size * recipe.seq_len) as f64 / step),
        ]);
        // the test programs do not count memory
        let bytes = peak.zip(before).map(|(peak, before)| peak.saturating_sub(before));
        metrics.extend(bytes.map(|bytes| ("peak_memory_mb".to_owned(), bytes as f64 / 1e6)));
        metrics.extend(named(self.facts()?));
        Ok(Measurements { metrics, data: self.corpus.data_use(), ..Measurements::default() })
    }
}

/// Tokenized texts, made once for all trials.
pub struct Corpora {
    sources: Arc<Sources>,
    made: Mutex<HashMap<String, Slot>>,
}

/// Filled by whichever trial comes first; the others wait for it.
type Slot = Arc<OnceLock<Result<Arc<TokenizedText>, String>>>;

impl Corpora {
    /// None yet; texts come from `sources`.
    pub fn new(sources: Arc<Sources>) -> Self {
        Self { sources, made: Mutex::default() }
    }

    fn get(&self, text: &str, tokenizer: &TokenizerSpec) -> Result<Arc<TokenizedText>, TrialError> {
        let key = format!("{text} {tokenizer:?}");
        let slot = self.made.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        let made = slot.get_or_init(|| {
            TokenizedText::make(text, tokenizer, &self.sources).map(Arc::new).map_err(|e| e.to_string())
        });
        made.clone().map_err(|e| TrialError::Data(e.into()))
    }
}
