//! What a trial does: train and evaluate, time steps, or compute state errors.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Device, Result as CandleResult};
use replica_core::record::{Curve, DataUse};
use replica_core::trial::Silent;
use replica_core::{Measurements, Seed, TrialContext, TrialError, TrialSpec, memory};
use replica_datasets::{
    DataFile, SequenceTask, Sources, Split, TaskSpec, TokenizedText, TokenizerSpec, catalogue,
};
use replica_nn::ops::Dropout;
use replica_nn::{Parameters, Staging, Tape, Value, accelerator};
use replica_train::{Blocks, Examples, Log, Perplexity, Recipe, evaluate, train};

use crate::config::{DataSpec, Timing, Training, TrialConfig};
use crate::data::{Batch, Resampling, Targets, TaskSplit, TrainingData, encoder, text_batch};
use crate::model::{Head, Model, ModelConfig};
use crate::signals::{Grid, SignalSpec, Signals};
use crate::state_error;

/// Runs one trial.
///
/// # Errors
/// See [`TrialError`].
pub fn run(spec: &TrialSpec, context: &TrialContext, library: &Library) -> Result<Measurements, TrialError> {
    let device = || accelerator::open(context.device).map_err(|e| TrialError::Device(e.to_string()));
    let seed = Seed(spec.seed);
    match serde_json::from_value(spec.config.clone()).map_err(TrialError::failed)? {
        TrialConfig::Train(training) => {
            let data = Data::prepare(&training, seed, library)?;
            Run::prepare(&training, seed, data, &device()?)?.measure(context)
        }
        TrialConfig::Cost(timing) => time(&timing, seed, context, &device()?),
        TrialConfig::StateError { system } => state_error::measure(&system, seed).map_err(TrialError::failed),
    }
}

/// What a trial reads.
enum Data {
    Task(Arc<SequenceTask>, Vec<Resampling>),
    Signals(SignalSpec),
    Text(Arc<TokenizedText>),
}

impl Data {
    fn prepare(
        training: &Training,
        seed: Seed,
        library: &Library,
    ) -> Result<(Self, TrainingData), TrialError> {
        let (model, recipe) = (&training.model, &training.recipe);
        match &training.data {
            DataSpec::Task { task, resampled, .. } => {
                let task = library.task(task)?;
                let head = match task.documents {
                    1 => Head::Classes(task.classes),
                    _ => Head::PairClasses(task.classes),
                };
                if (encoder(&task), head) != (model.encoder, model.head) {
                    return Err(TrialError::failed(format!(
                        "data: {} has encoder {:?} and head {head:?}, the configuration says {:?} and {:?}",
                        task.title,
                        encoder(&task),
                        model.encoder,
                        model.head
                    )));
                }
                if task.max_len > recipe.seq_len {
                    return Err(TrialError::failed(format!(
                        "seq_len = {}: at least {} is expected, the longest sequence of {}",
                        recipe.seq_len, task.max_len, task.title
                    )));
                }
                let split = TaskSplit::new(task.clone(), Split::Train);
                Ok((Self::Task(task, resampled.clone()), TrainingData::Task(split)))
            }
            DataSpec::Signals { signals } => {
                if signals.length != recipe.seq_len {
                    return Err(TrialError::failed(format!(
                        "seq_len = {}: {} is expected, as the signals have",
                        recipe.seq_len, signals.length
                    )));
                }
                // every signal is seen once
                let count = recipe.steps as usize * recipe.batch_size;
                let data = TrainingData::Signals(Signals::training(signals, seed, count));
                Ok((Self::Signals(signals.clone()), data))
            }
            DataSpec::Text { text, tokenizer } => {
                let text = library.text(text, tokenizer)?;
                if Head::NextToken(text.vocab_size.max(tokenizer.vocab_size())) != model.head {
                    return Err(TrialError::failed(format!(
                        "the tokenizer has {} tokens, the model's head is {:?}",
                        text.vocab_size, model.head
                    )));
                }
                let blocks = Blocks::new(text.train.clone(), recipe.seq_len);
                if blocks.is_empty() {
                    return Err(TrialError::failed("the training text is shorter than one sequence"));
                }
                Ok((Self::Text(text), TrainingData::Text(blocks)))
            }
        }
    }
}

fn named<const N: usize>(metrics: [(&str, f64); N]) -> BTreeMap<String, f64> {
    metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A model, its data and its recipe, ready to train.
struct Run<'a> {
    recipe: &'a Recipe,
    seed: Seed,
    data: Data,
    training: TrainingData,
    parameters: Parameters,
    model: Model,
}

impl<'a> Run<'a> {
    fn prepare(
        training: &'a Training,
        seed: Seed,
        (data, seen): (Data, TrainingData),
        device: &Device,
    ) -> Result<Self, TrialError> {
        let dtype = training.recipe.dtype.on(device).map_err(TrialError::Device)?;
        let parameters = Parameters::new(seed, dtype, device);
        let model = Model::new(&training.model, parameters.builder()).map_err(TrialError::failed)?;
        Ok(Self { recipe: &training.recipe, seed, data, training: seen, parameters, model })
    }

    fn train(&self, context: &TrialContext) -> Result<Log, TrialError> {
        train(
            &self.parameters,
            self.recipe,
            &self.training,
            self.seed,
            context,
            |tape, batch, masks| self.model.loss(&tape.constant(batch.inputs.clone()), &batch, Some(masks)),
            || self.validate(),
        )
    }

    /// Points on the curves of training.
    fn validate(&self) -> CandleResult<Vec<(&'static str, f64)>> {
        match &self.data {
            Data::Task(task, _) => {
                let (loss, accuracy) = self.classify(&TaskSplit::new(task.clone(), Split::Valid))?;
                Ok(vec![("valid_loss", loss), ("valid_accuracy", accuracy)])
            }
            Data::Signals(spec) => {
                let rmse = self.regress(spec, &Signals::validation(spec))?;
                Ok(vec![("valid_loss", rmse * rmse), ("valid_rmse", rmse)])
            }
            Data::Text(text) => Ok(vec![("valid_loss", self.read(&text.valid)?.mean_nll)]),
        }
    }

    /// Mean cross-entropy and accuracy in percent on at most `eval_blocks` items of a split.
    fn classify(&self, split: &TaskSplit) -> CandleResult<(f64, f64)> {
        let mut staging = Staging::new(self.parameters.device());
        let (mut loss, mut right, mut items) = (0.0, 0usize, 0usize);
        for indices in split.chunks(self.recipe.eval_blocks, self.recipe.batch_size) {
            let batch = split.staged(&indices, &mut staging)?;
            let logits = self.model.outputs(&Value::from(batch.inputs.clone()), &batch, None)?;
            let Targets::Classes(classes) = &batch.targets else {
                candle_core::bail!("a classification task has classes")
            };
            let mean = logits.cross_entropy(classes)?.tensor().to_scalar::<f32>()?;
            loss += f64::from(mean) * indices.len() as f64;
            let said = logits.tensor().argmax(1)?.to_vec1::<u32>()?;
            let wanted = classes.to_vec1::<i64>()?;
            right += said.iter().zip(&wanted).filter(|(a, b)| i64::from(**a) == **b).count();
            items += indices.len();
        }
        Ok((loss / items as f64, 100.0 * right as f64 / items as f64))
    }

    /// Root mean squared error behind the first `skip` samples.
    fn regress(&self, spec: &SignalSpec, signals: &Signals) -> CandleResult<f64> {
        let mut staging = Staging::new(self.parameters.device());
        let (mut squares, mut count) = (0.0, 0usize);
        let items: Vec<usize> = (0..signals.count()).collect();
        for indices in items.chunks(self.recipe.batch_size) {
            let batch = signals.staged(indices, &mut staging)?;
            let said = self.model.outputs(&Value::from(batch.inputs.clone()), &batch, None)?;
            let said = said.tensor().squeeze(2)?.to_vec2::<f32>()?;
            let Targets::Values(wanted) = &batch.targets else {
                candle_core::bail!("signals have responses")
            };
            for (said, wanted) in said.iter().zip(wanted.to_vec2::<f32>()?) {
                for (a, b) in said.iter().zip(&wanted).skip(spec.skip) {
                    squares += f64::from(a - b).powi(2);
                    count += 1;
                }
            }
        }
        Ok((squares / count as f64).sqrt())
    }

    /// Nats a token on at most `eval_blocks` blocks.
    fn read(&self, tokens: &Arc<[u32]>) -> CandleResult<Perplexity> {
        let blocks = Blocks::new(tokens.clone(), self.recipe.seq_len).spread(self.recipe.eval_blocks);
        evaluate(&blocks, self.recipe.batch_size, self.parameters.device(), |ids, labels| {
            let batch = replica_train::Batch { ids: ids.tensor().clone(), labels: labels.clone() };
            self.model.loss(ids, &text_batch(batch), None)
        })
    }

    /// Trains, then evaluates on the test split: the model at the end of training.
    fn measure(&self, context: &TrialContext) -> Result<Measurements, TrialError> {
        let log = self.train(context)?;
        let last = |curve: &str| {
            let value = log.curves.get(curve).and_then(|c| c.y.last()).copied();
            value.ok_or_else(|| TrialError::failed(format!("no point on curve `{curve}`")))
        };
        let mut metrics = named([
            ("valid_loss", last("valid_loss")?),
            ("train_loss", last("train_loss")?),
            ("parameters", self.parameters.count() as f64),
        ]);
        let mut measured = Measurements { curves: log.curves, trace: log.trace, ..Measurements::default() };
        self.test(&mut metrics, &mut measured).map_err(TrialError::failed)?;
        measured.metrics = metrics;
        Ok(measured)
    }

    fn test(&self, metrics: &mut BTreeMap<String, f64>, measured: &mut Measurements) -> CandleResult<()> {
        match &self.data {
            Data::Task(task, resampled) => {
                let split = TaskSplit::new(task.clone(), Split::Test);
                let (_, accuracy) = self.classify(&split)?;
                metrics.insert("test_accuracy".to_owned(), accuracy);
                metrics.insert("majority".to_owned(), 100.0 * task.test.majority());
                for at in resampled {
                    let (_, other) = self.classify(&split.clone().resampled(at))?;
                    metrics.insert(format!("accuracy_{}", at.id), other);
                    metrics.insert(format!("kept_{}", at.id), other / accuracy);
                }
                measured.data = task_data(task);
            }
            Data::Signals(spec) => self.test_grids(spec, metrics, measured)?,
            Data::Text(text) => {
                let test = self.read(&text.test)?;
                metrics.extend(named([
                    ("test_perplexity", test.perplexity()),
                    ("test_bits_per_byte", test.bits_per_byte(text.test_bytes_per_token)),
                ]));
                measured.data = text.data_use();
                measured.notes.push(format!(
                    "perplexity is per token of the {} tokenizer (SHA-256 {}), {:.3} bytes a test token",
                    text.tokenizer_name, text.tokenizer_digest, text.test_bytes_per_token
                ));
            }
        }
        Ok(())
    }

    /// Errors on the grid of training and on the others.
    fn test_grids(
        &self,
        spec: &SignalSpec,
        metrics: &mut BTreeMap<String, f64>,
        measured: &mut Measurements,
    ) -> CandleResult<()> {
        let error = |grid: &Grid| self.regress(spec, &Signals::test(spec, grid));
        let on_grid = error(&spec.training_grid())?;
        metrics.insert("rmse".to_owned(), on_grid);
        let mut uniform = vec![(spec.step, on_grid)];
        let mut off = Vec::new();
        for grid in &spec.grids {
            let rmse = error(grid)?;
            metrics.insert(format!("rmse_{}", grid.id), rmse);
            metrics.insert(format!("ratio_{}", grid.id), rmse / on_grid);
            if grid.jitter == 0.0 && !grid.random {
                uniform.push((grid.step, rmse));
            }
            if grid.off {
                off.push(rmse.ln());
            }
        }
        if !off.is_empty() {
            let mean = (off.iter().sum::<f64>() / off.len() as f64).exp();
            metrics.extend(named([("off_grid_rmse", mean), ("off_grid_ratio", mean / on_grid)]));
        }
        uniform.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (x, y) = uniform.into_iter().unzip();
        let curve = Curve { x_label: "test step in seconds".to_owned(), x, y };
        measured.curves.insert("rmse_by_step".to_owned(), curve);
        if let Some(share) = self.growing_modes()? {
            metrics.insert("growing_modes".to_owned(), share);
        }
        Ok(())
    }

    /// Percentage of S5's modes whose real part is positive, so that their discrete form lies beyond the unit circle.
    fn growing_modes(&self) -> CandleResult<Option<f64>> {
        let is_real_part = |name: &str| name.ends_with("Lambda_re");
        let parts = self.parameters.all().into_iter().filter(|(name, _)| is_real_part(name));
        let values: Vec<Vec<f32>> =
            parts.map(|(_, var)| var.as_tensor().to_vec1()).collect::<CandleResult<_>>()?;
        let all: Vec<f32> = values.concat();
        let growing = all.iter().filter(|re| **re > 0.0).count();
        Ok((!all.is_empty()).then(|| 100.0 * growing as f64 / all.len() as f64))
    }
}

/// Times training steps at every length, on one batch of signals; the loss plays no role.
fn time(
    timing: &Timing,
    seed: Seed,
    context: &TrialContext,
    device: &Device,
) -> Result<Measurements, TrialError> {
    let silent =
        TrialContext { device: context.device, progress: &Silent, cancel: context.cancel, checkpoints: None };
    let (mut points, mut metrics) = (Vec::new(), BTreeMap::new());
    for length in &timing.lengths {
        let recipe = timing.recipe(*length);
        let signals = Signals::training(&timing.signals(*length), seed, timing.batch_size);
        let indices: Vec<usize> = (0..timing.batch_size).collect();
        let batch = signals.staged(&indices, &mut Staging::new(device)).map_err(TrialError::failed)?;
        let before = memory::live();
        memory::reset_peak();
        accelerator::reset_peak_memory(device);
        let parameters = Parameters::new(seed, DType::F32, device);
        let config = ModelConfig { length: *length, ..timing.model.clone() };
        let model = Model::new(&config, parameters.builder()).map_err(TrialError::failed)?;
        let loss = |tape: &Tape, batch: Batch, masks: &Dropout| {
            model.loss(&tape.constant(batch.inputs.clone()), &batch, Some(masks))
        };
        let fixed = TrainingData::Fixed(batch);
        let log = train(&parameters, &recipe, &fixed, seed, &silent, loss, || Ok(Vec::new()))?;
        let Some(step) = log.median_step_seconds() else {
            return Err(TrialError::failed("cost: steps must be above 3, the first ones do not count"));
        };
        // on a GPU the device's memory counts
        let on_device = accelerator::peak_memory(device);
        let (peak, before) =
            if on_device.is_some() { (on_device, Some(0)) } else { (memory::peak(), before) };
        points.push((*length as f64, step));
        metrics = named([
            ("step_ms", step * 1e3),
            ("steps_per_second", 1.0 / step),
            ("parameters", parameters.count() as f64),
        ]);
        // the test programs do not count memory
        let bytes = peak.zip(before).map(|(peak, before)| peak.saturating_sub(before));
        metrics.extend(bytes.map(|bytes| ("peak_memory_mb".to_owned(), bytes as f64 / 1e6)));
    }
    if points.len() > 1 {
        let logarithms: Vec<(f64, f64)> = points.iter().map(|(l, t)| (l.ln(), t.ln())).collect();
        metrics.insert("exponent".to_owned(), state_error::slope(&logarithms));
    }
    let (x, y) = points.into_iter().map(|(length, step)| (length, step * 1e3)).unzip();
    let curve = Curve { x_label: "length of sequences".to_owned(), x, y };
    let curves = BTreeMap::from([("step_ms".to_owned(), curve)]);
    Ok(Measurements { metrics, curves, ..Measurements::default() })
}

/// The files of a task, for a record.
fn task_data(task: &SequenceTask) -> Vec<DataUse> {
    let licence = |file: &DataFile| {
        let dataset = file.name.split('/').next().unwrap_or_default();
        let entry = [task.name, dataset].into_iter().find_map(|name| catalogue().get(name).ok());
        entry.map_or("generated", |entry| &entry.licence)
    };
    task.files.iter().map(|file| file.data_use(licence(file))).collect()
}

/// Tasks and texts, made once for all trials.
pub struct Library {
    sources: Arc<Sources>,
    tasks: Shelf<SequenceTask>,
    texts: Shelf<TokenizedText>,
}

/// By configuration; filled by whichever trial comes first, the others wait for it.
type Shelf<T> = Mutex<HashMap<String, Arc<OnceLock<Result<Arc<T>, String>>>>>;

impl Library {
    /// Empty; data comes from `sources`.
    pub fn new(sources: Arc<Sources>) -> Self {
        Self { sources, tasks: Mutex::default(), texts: Mutex::default() }
    }

    fn task(&self, spec: &TaskSpec) -> Result<Arc<SequenceTask>, TrialError> {
        take(&self.tasks, format!("{spec:?}"), || spec.load(&self.sources))
    }

    fn text(&self, text: &str, tokenizer: &TokenizerSpec) -> Result<Arc<TokenizedText>, TrialError> {
        let key = format!("{text} {tokenizer:?}");
        take(&self.texts, key, || TokenizedText::make(text, tokenizer, &self.sources))
    }
}

fn take<T>(
    shelf: &Shelf<T>,
    key: String,
    make: impl FnOnce() -> Result<T, replica_datasets::Error>,
) -> Result<Arc<T>, TrialError> {
    let slot = shelf.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
    let made = slot.get_or_init(|| make().map(Arc::new).map_err(|e| e.to_string()));
    made.clone().map_err(|e| TrialError::Data(e.into()))
}
