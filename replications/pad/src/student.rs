//! A student: a T5 that reads questions and writes programs, chains of thought or answers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use replica_core::record::DataUse;
use replica_core::{Digest, Seed, TrialContext, TrialError};
use replica_datasets::{Sources, catalogue};
use replica_nn::ops::Dropout;
use replica_nn::t5::{FeedForwardForm, T5, T5Config};
use replica_nn::{Parameters, Staging, Tape, Value};
use replica_train::generate::{Beams, Continuation, GenerateError, Stop};
use replica_train::generate::{beam_search, greedy, guided_beam_search};
use replica_train::{Examples, Log, Recipe, train};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::lesson::{Batch, Encoded, Lengths, Pair, Prepared, padded};
use crate::tokens::Tokens;
use crate::verify::{Scorer, StepVerifier, Verification, sentences};
use crate::vocabulary::{END, PAD};

/// Questions decoded at once.
const DECODED_AT_ONCE: usize = 64;

/// What a student is before its lessons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Start {
    /// New weights.
    Scratch(Shape),
    /// A pre-trained model.
    Checkpoint(Pretrained),
}

/// A pre-trained student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// Name of the checkpoint in the catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Folder of the checkpoint, as the hub has it, instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Where it is in none of the places, because the hub cannot be reached, trials are left out with a note.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// Most tokens of a source.
    pub source_tokens: usize,
    /// Without lessons: what the checkpoint can do by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untaught: bool,
}

impl Start {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Scratch(shape) => shape.problem(),
            Self::Checkpoint(Pretrained { source_tokens: tokens @ (0 | 1), .. }) => {
                Some(format!("source_tokens = {tokens}: at least 2 is expected"))
            }
            Self::Checkpoint(Pretrained { model: Some(model), path: None, .. }) => {
                catalogue().model(model).err().map(|e| format!("model: {e}"))
            }
            Self::Checkpoint(Pretrained { model: None, path: Some(_), .. }) => None,
            Self::Checkpoint(_) => Some(
                "student: one of model (a checkpoint of the catalogue) and path (a folder) is expected"
                    .to_owned(),
            ),
        }
    }

    /// Ready to be taught.
    ///
    /// # Errors
    /// A checkpoint that cannot be had or read.
    pub fn open(&self, sources: &Sources) -> Result<Beginner, CheckpointError> {
        let checkpoint = match self {
            Self::Scratch(shape) => return Ok(Beginner::New(*shape)),
            Self::Checkpoint(Pretrained { model: Some(model), .. }) => Checkpoint::fetch(model, sources)?,
            Self::Checkpoint(Pretrained { path, .. }) => {
                Checkpoint::read(path.as_deref().unwrap_or(Path::new("")))?
            }
        };
        Ok(Beginner::Pretrained(Box::new(checkpoint)))
    }

    /// Files of the checkpoint by name, with the digest they must have, as far as that is known.
    pub fn digests(&self) -> BTreeMap<String, Digest> {
        let Self::Checkpoint(Pretrained { model: Some(model), .. }) = self else { return BTreeMap::new() };
        let files = catalogue().model(model).map_or(&[][..], |entry| &entry.files);
        files.iter().filter_map(|file| Some((file.name.clone(), file.sha256.clone()?))).collect()
    }

    fn source_tokens(&self) -> usize {
        match self {
            Self::Scratch(shape) => shape.source_tokens,
            Self::Checkpoint(pretrained) => pretrained.source_tokens,
        }
    }
}

/// A student's shape. Encoder and decoder have as many layers; the head is the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Layers of the encoder, and of the decoder.
    pub layers: usize,
    /// Width of the states.
    pub width: usize,
    /// Heads of every attention, of `width / heads` each.
    pub heads: usize,
    /// Inner width of the feed-forward layers.
    pub inner: usize,
    /// Probability of dropping an element in training.
    pub dropout: f64,
    /// Occurrences in the training texts from which on a piece of text is a token.
    pub fewest: usize,
    /// Most tokens of a source.
    pub source_tokens: usize,
}

impl Shape {
    fn config(&self, vocabulary: usize) -> T5Config {
        T5Config {
            vocab_size: vocabulary,
            d_model: self.width,
            d_kv: self.width / self.heads,
            d_ff: self.inner,
            num_layers: self.layers,
            num_decoder_layers: None,
            num_heads: self.heads,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: FeedForwardForm::Relu,
            tie_word_embeddings: true,
            dropout_rate: self.dropout,
            decoder_start_token_id: PAD,
            pad_token_id: PAD,
            eos_token_id: END,
        }
    }

    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return Some(format!("heads = {}: a divisor of width = {} is expected", self.heads, self.width));
        }
        if self.source_tokens < 2 {
            return Some(format!("source_tokens = {}: at least 2 is expected", self.source_tokens));
        }
        self.config(1).problem()
    }
}

/// What a student is made from.
pub enum Beginner {
    /// New weights of a shape.
    New(Shape),
    /// Weights and tokens of a checkpoint.
    Pretrained(Box<Checkpoint>),
}

/// A trained student.
pub struct Student {
    tokens: Arc<Tokens>,
    parameters: Parameters,
    model: T5,
    lengths: Lengths,
}

/// What is left of a training run: enough to have the student back.
pub struct Trained {
    /// Its tokens.
    tokens: Arc<Tokens>,
    config: T5Config,
    lengths: Lengths,
    /// Its weights, on the CPU.
    weights: HashMap<String, Tensor>,
    /// Curves and trace.
    pub log: Log,
    /// Means over the validation set at the end: nats a token, nats an example.
    pub valid: (f64, f64),
    /// Mean tokens of a target, and how many were cut.
    pub targets: (f64, usize),
    /// The checkpoint's files, if it started from one.
    pub checkpoint: Vec<DataUse>,
}

impl Trained {
    /// Number of its scalars.
    pub fn parameters(&self) -> usize {
        self.weights.values().map(Tensor::elem_count).sum()
    }
}

/// Trains a student, made from what its start opened, on prepared lessons.
///
/// # Errors
/// A checkpoint of another form than its configuration says; see [`train`].
pub fn teach(
    start: &Start,
    beginner: Beginner,
    recipe: &Recipe,
    lessons: &Prepared,
    seed: Seed,
    context: &TrialContext,
    device: &Device,
) -> Result<Trained, TrialError> {
    let dtype = recipe.dtype.on(device).map_err(TrialError::Device)?;
    let lengths = Lengths { source: start.source_tokens(), target: recipe.seq_len };
    let (student, checkpoint) = match beginner {
        Beginner::New(shape) => {
            let vocabulary = lessons.vocabulary(shape.fewest);
            let config = shape.config(vocabulary.size());
            let parameters = Parameters::new(seed, dtype, device);
            let tokens = Arc::new(Tokens::Words(vocabulary));
            (Student::build(&config, tokens, parameters, lengths).map_err(TrialError::failed)?, Vec::new())
        }
        Beginner::Pretrained(checkpoint) => {
            let Checkpoint { config, weights, tokens, used } = *checkpoint;
            let parameters = Parameters::from_tensors(weights, dtype, device).map_err(TrialError::failed)?;
            let student = Student::build(&config, Arc::new(tokens), parameters, lengths);
            (student.map_err(TrialError::failed)?, used)
        }
    };
    let (pairs, valid) = (student.encoded(&lessons.pairs), student.encoded(&lessons.valid));
    let validate = || Ok(vec![("valid_loss", student.measure(&valid, recipe.batch_size)?.0)]);
    let log = if matches!(start, Start::Checkpoint(Pretrained { untaught: true, .. })) {
        Log::default()
    } else {
        let loss = |tape: &Tape, batch: Batch, masks: &Dropout| student.loss(Some(tape), &batch, Some(masks));
        train(&student.parameters, recipe, &pairs, seed, context, loss, validate)?
    };
    let valid = student.measure(&valid, recipe.batch_size).map_err(TrialError::failed)?;
    let weights = student.parameters.all().into_iter();
    let weights = weights.map(|(name, var)| Ok((name, var.as_tensor().to_device(&Device::Cpu)?)));
    Ok(Trained {
        tokens: student.tokens.clone(),
        config: student.model.config().clone(),
        lengths,
        weights: weights.collect::<CandleResult<_>>().map_err(TrialError::failed)?,
        log,
        valid,
        targets: (pairs.mean_target(), pairs.cut),
        checkpoint,
    })
}

impl Student {
    fn build(
        config: &T5Config,
        tokens: Arc<Tokens>,
        parameters: Parameters,
        lengths: Lengths,
    ) -> CandleResult<Self> {
        let model = T5::new(config, parameters.builder())?;
        Ok(Self { tokens, parameters, model, lengths })
    }

    /// The student that a training run left.
    ///
    /// # Errors
    /// A device failed.
    pub fn restored(recipe: &Recipe, trained: &Trained, device: &Device) -> Result<Self, TrialError> {
        let dtype = recipe.dtype.on(device).map_err(TrialError::Device)?;
        let restore = || {
            let weights = trained.weights.iter();
            let weights = weights.map(|(name, t)| Ok((name.clone(), t.to_device(device)?)));
            let weights = weights.collect::<CandleResult<_>>()?;
            let parameters = Parameters::from_tensors(weights, dtype, device)?;
            Self::build(&trained.config, trained.tokens.clone(), parameters, trained.lengths)
        };
        restore().map_err(TrialError::failed)
    }

    fn encoded(&self, pairs: &[Pair]) -> Encoded {
        Encoded::new(pairs, &self.tokens, self.lengths)
    }

    /// Mean cross-entropy over the target tokens of a batch.
    fn loss(&self, tape: Option<&Tape>, batch: &Batch, masks: Option<&Dropout>) -> CandleResult<Value> {
        let value = |ids: &Tensor| match tape {
            Some(tape) => tape.constant(ids.clone()),
            None => Value::from(ids.clone()),
        };
        let states = self.model.encode(&value(&batch.ids), Some(&batch.mask), masks)?;
        let source = self.model.source(&states, Some(&batch.mask))?;
        let states = self.model.decode(&value(&batch.inputs), &source, None, masks)?;
        self.model.loss(&states, &batch.labels)
    }

    /// Nats a token and nats an example over a set.
    fn measure(&self, examples: &Encoded, batch_size: usize) -> CandleResult<(f64, f64)> {
        let mut staging = Staging::new(self.parameters.device());
        let (mut nats, mut tokens) = (0.0, 0);
        let all: Vec<usize> = (0..examples.count()).collect();
        for indices in all.chunks(batch_size) {
            let batch = examples.staged(indices, &mut staging)?;
            let mean = self.loss(None, &batch, None)?.tensor().to_scalar::<f32>()?;
            nats += f64::from(mean) * batch.tokens as f64;
            tokens += batch.tokens;
        }
        Ok((nats / tokens as f64, nats / all.len() as f64))
    }

    /// What is written for every source; with beams the candidates, best first.
    ///
    /// # Errors
    /// A device failed, or logits that define no distribution.
    pub fn write(&self, sources: &[Vec<String>], beams: usize) -> Result<Vec<Vec<String>>, TrialError> {
        let mut written = Vec::new();
        for sources in sources.chunks(DECODED_AT_ONCE) {
            let (mut decoding, prompts) = self.decoding(sources).map_err(TrialError::failed)?;
            let found: Result<Vec<Vec<Continuation>>, GenerateError> = match beams {
                1 => greedy(&mut decoding, &prompts, self.stop())
                    .map(|found| found.into_iter().map(|one| vec![one]).collect()),
                _ => beam_search(&mut decoding, &prompts, self.stop(), Beams::new(beams, 1.0)),
            };
            written.extend(found.map_err(TrialError::failed)?);
        }
        Ok(written.iter().map(|candidates| candidates.iter().map(|c| self.text(c)).collect()).collect())
    }

    /// As [`Student::write`] for one question at a time, in a beam search whose lines are scored against it.
    ///
    /// # Errors
    /// As [`Student::write`].
    pub fn write_verified(
        &self,
        sources: &[Vec<String>],
        beams: usize,
        weight: f64,
        scorer: &mut impl Scorer,
    ) -> Result<Vec<Vec<String>>, TrialError> {
        let decode = |ids: &[u32]| self.tokens.decode(ids);
        let write = |source: &Vec<String>| {
            let contexts = [sentences(source.first().map_or("", String::as_str))];
            let options = Verification { weight, ..Verification::default() };
            let mut guide =
                StepVerifier::new(&mut *scorer, &contexts, &decode, &[self.tokens.pad()], options);
            let one = std::slice::from_ref(source);
            let (mut decoding, prompts) = self.decoding(one).map_err(TrialError::failed)?;
            let beams = Beams::new(beams, 1.0);
            let found = guided_beam_search(&mut decoding, &prompts, self.stop(), beams, &mut guide);
            let found = found.map_err(TrialError::failed)?;
            Ok(found.iter().flatten().map(|candidate| self.text(candidate)).collect())
        };
        sources.iter().map(write).collect()
    }

    /// The mean of the encoder's states over a text: a frozen sentence encoder.
    ///
    /// # Errors
    /// A device failed.
    pub fn embedding(&self, text: &str) -> CandleResult<Vec<f64>> {
        let (ids, _) = self.tokens.sequence(&[text], self.lengths.source);
        let ids = Tensor::new(vec![ids], self.parameters.device())?;
        let states = self.model.encode(&Value::from(ids), None, None)?;
        states.tensor().to_dtype(DType::F64)?.mean(1)?.squeeze(0)?.to_vec1()
    }

    fn stop(&self) -> Stop {
        Stop { max_new_tokens: self.lengths.target, end: Some(self.tokens.end()) }
    }

    fn text(&self, written: &Continuation) -> String {
        self.tokens.decode(&written.tokens)
    }

    fn decoding(&self, sources: &[Vec<String>]) -> CandleResult<(replica_nn::t5::Decoding<'_>, Tensor)> {
        let device = self.parameters.device();
        let encode = |parts: &Vec<String>| {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            self.tokens.sequence(&parts, self.lengths.source).0
        };
        let encoded: Vec<Vec<u32>> = sources.iter().map(encode).collect();
        let pad = self.tokens.pad();
        let (ids, mask) = padded(encoded.iter().map(Vec::as_slice), pad, &mut Staging::new(device))?;
        let prompts = Tensor::full(pad, (sources.len(), 1), device)?;
        Ok((self.model.decoding(&ids, Some(&mask))?, prompts))
    }
}
