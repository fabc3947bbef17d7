//! Continuing sequences with a trained model: greedy, sampling, beam search, beam search that something guides.
//!
//! Log-probabilities are computed from the logits in double precision. Among equal ones the lower token id comes
//! first, in beam search the better beam before that.

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use replica_core::Seed;
use replica_nn::t5::Decoding;
use replica_nn::{KeyValueCache, Value};
use thiserror::Error;

/// A model that continues a batch of sequences, which it remembers.
pub trait Continue {
    /// Logits `[batch, vocab]` of the token after ids `[batch, n]`, which follow all ids given before.
    ///
    /// # Errors
    /// The model cannot go on: a sequence too long, or an id it does not know.
    fn next_logits(&mut self, ids: &Tensor) -> candle_core::Result<Tensor>;

    /// Goes on with row `rows[i]` as row i; rows may be dropped, repeated and reordered.
    ///
    /// # Errors
    /// A row that the batch does not have.
    fn select(&mut self, rows: &[u32]) -> candle_core::Result<()>;
}

/// A decoder with a key-value cache. `next_logits(ids, cache)` returns `[batch, vocab]`.
pub struct Cached<F> {
    next_logits: F,
    cache: KeyValueCache,
}

impl<F: Fn(&Value, &mut KeyValueCache) -> candle_core::Result<Value>> Cached<F> {
    /// Nothing seen yet.
    pub fn new(next_logits: F) -> Self {
        Self { next_logits, cache: KeyValueCache::default() }
    }
}

impl<F: Fn(&Value, &mut KeyValueCache) -> candle_core::Result<Value>> Continue for Cached<F> {
    fn next_logits(&mut self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Ok((self.next_logits)(&Value::from(ids.clone()), &mut self.cache)?.tensor().clone())
    }

    fn select(&mut self, rows: &[u32]) -> candle_core::Result<()> {
        self.cache.select(rows)
    }
}

impl Continue for Decoding<'_> {
    fn next_logits(&mut self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Decoding::next_logits(self, ids)
    }

    fn select(&mut self, rows: &[u32]) -> candle_core::Result<()> {
        Decoding::select(self, rows)
    }
}

/// When a continuation ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// Most tokens to generate, the end token included.
    pub max_new_tokens: usize,
    /// The token after which nothing follows.
    pub end: Option<u32>,
}

/// How tokens are drawn: logits are divided by the temperature, then `top_k` and after it `top_p` cut the
/// distribution, and what is left is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Above 0; 1 leaves the distribution as it is.
    pub temperature: f64,
    /// Only the k most likely tokens.
    pub top_k: Option<usize>,
    /// Only the smallest number of most likely tokens whose probabilities sum to at least p (nucleus sampling,
    /// Holtzman et al. 2020).
    pub top_p: Option<f64>,
}

/// How beam search ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beams {
    /// Hypotheses kept.
    pub beams: usize,
    /// Exponent of the length that divides the sum of log-probabilities; 0 ranks by the sum alone, larger numbers
    /// favour longer sequences.
    pub length_penalty: f64,
    /// When a prompt's search is over.
    pub stopping: Stopping,
    /// What counts as length.
    pub length: Length,
}

/// When the search after a prompt is over, once `beams` hypotheses are finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stopping {
    /// When the best pair of a step would not beat the worst of them if it ended now (`early_stopping=False`).
    #[default]
    Unpromising,
    /// At once (`early_stopping=True`).
    Filled,
    /// When the best pair of a step would not beat the worst of them at any length (`early_stopping="never"`).
    Hopeless,
}

/// The length that the sum of log-probabilities is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Length {
    /// Generated tokens, the end token included.
    #[default]
    Generated,
    /// All tokens but the end token, the prompt included, as transformers did until 4.35.
    Whole,
}

/// What takes part in a beam search beside the model.
pub trait Guide {
    /// Changes the log-probabilities of the next token after a beam; a token of negative infinity is not taken.
    fn allow(&mut self, _log_probabilities: &mut [f64]) {}

    /// Adds to [`Continuation::guidance`] of the beams that go on after a step. `open[i]` are those of prompt i, best
    /// first; none if its search is over.
    fn judge(&mut self, _open: &mut [&mut [Continuation]]) {}
}

/// Leaves everything to the model.
struct Unguided;

impl Guide for Unguided {}

/// What was generated after a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// The tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Whether the end token came.
    pub ended: bool,
    /// Sum of the model's log-probabilities (nats) of the generated tokens, the end token included.
    pub log_probability: f64,
    /// What a [`Guide`] added to it for ranking.
    pub guidance: f64,
}

impl Continuation {
    /// Generated tokens, the end token included.
    pub fn generated(&self) -> usize {
        self.tokens.len() + usize::from(self.ended)
    }

    /// What beam search ranks by, after a prompt of `prompt` tokens: log-probability and guidance divided by a power
    /// of the length.
    pub fn score(&self, beams: Beams, prompt: usize) -> f64 {
        beams.score(self.sum(), self.length(beams, prompt))
    }

    fn sum(&self) -> f64 {
        self.log_probability + self.guidance
    }

    fn length(&self, beams: Beams, prompt: usize) -> usize {
        match beams.length {
            Length::Generated => self.generated(),
            Length::Whole => prompt + self.tokens.len(),
        }
    }

    fn empty() -> Self {
        Self { tokens: Vec::new(), ended: false, log_probability: 0.0, guidance: 0.0 }
    }

    /// One token longer.
    fn push(&mut self, token: u32, log_probability: f64, end: Option<u32>) {
        self.log_probability += log_probability;
        if end == Some(token) {
            self.ended = true;
        } else {
            self.tokens.push(token);
        }
    }
}

/// Why nothing was generated.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// An option makes no sense: "key = value: what is allowed".
    #[error("{0}")]
    Option(String),
    /// The prompts are not `[batch, n]` of u32 with at least one token each.
    #[error("prompts {shape:?} of {dtype:?}: [batch, n] of U32 with n of at least 1 is expected")]
    Prompts {
        /// Their shape.
        shape: Vec<usize>,
        /// Their number type.
        dtype: DType,
    },
    /// The model returned logits that define no distribution.
    #[error("the logits after {generated} generated tokens {problem}; was the model trained to the end?")]
    Logits {
        /// Tokens generated before.
        generated: usize,
        /// What is wrong with them.
        problem: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] candle_core::Error),
}

impl Stop {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        (self.max_new_tokens == 0).then(|| "max_new_tokens = 0: at least 1 is expected".to_owned())
    }
}

impl Sampling {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            let t = self.temperature;
            return Some(format!(
                "temperature = {t}: a finite number above 0 is expected; 0 is greedy search"
            ));
        }
        if self.top_k == Some(0) {
            return Some("top_k = 0: at least 1 is expected; leave it out to keep all tokens".to_owned());
        }
        let p = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0))?;
        Some(format!("top_p = {p}: a number in (0, 1] is expected"))
    }

    /// The token at `u`, uniform in [0, 1), of the inverse distribution function over the tokens that are left, most
    /// likely first.
    fn draw(&self, log_probabilities: &[f64], u: f64) -> usize {
        let mut tokens: Vec<usize> = (0..log_probabilities.len()).collect();
        tokens.sort_by(|a, b| log_probabilities[*b].total_cmp(&log_probabilities[*a]));
        tokens.truncate(self.top_k.unwrap_or(usize::MAX));
        let top = log_probabilities[tokens[0]];
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = tokens
            .iter()
            .map(|token| {
                sum += ((log_probabilities[*token] - top) / self.temperature).exp();
                sum
            })
            .collect();
        if let Some(p) = self.top_p {
            let kept = cumulative.partition_point(|c| *c < p * sum) + 1;
            cumulative.truncate(kept);
        }
        let last = cumulative.len() - 1;
        let at = u * cumulative[last];
        tokens[cumulative.partition_point(|c| *c <= at).min(last)]
    }
}

impl Beams {
    /// Beam search as transformers does it by default.
    pub fn new(beams: usize, length_penalty: f64) -> Self {
        Self { beams, length_penalty, stopping: Stopping::default(), length: Length::default() }
    }

    fn score(&self, sum: f64, length: usize) -> f64 {
        sum / (length as f64).powf(self.length_penalty)
    }

    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        if self.beams == 0 {
            return Some("beams = 0: at least 1 is expected".to_owned());
        }
        let penalty = self.length_penalty;
        (!penalty.is_finite()).then(|| format!("length_penalty = {penalty}: a finite number is expected"))
    }
}

/// The most likely token at every step, after each of the prompts `[batch, n]` (u32).
///
/// # Errors
/// See [`GenerateError`].
pub fn greedy(
    model: &mut impl Continue,
    prompts: &Tensor,
    stop: Stop,
) -> Result<Vec<Continuation>, GenerateError> {
    one_by_one(model, prompts, stop, |_, log_probabilities| most_likely(log_probabilities))
}

/// Tokens drawn after each of the prompts `[batch, n]` (u32). Row i of the batch draws from a stream of its own, so
/// its tokens depend neither on when other rows end nor on the number of threads.
///
/// # Errors
/// See [`GenerateError`].
pub fn sample(
    model: &mut impl Continue,
    prompts: &Tensor,
    stop: Stop,
    sampling: Sampling,
    seed: Seed,
) -> Result<Vec<Continuation>, GenerateError> {
    sampling.problem().map_or(Ok(()), |problem| Err(GenerateError::Option(problem)))?;
    let batch = prompts.dims().first().copied().unwrap_or(0);
    let mut streams: Vec<_> = (0..batch).map(|row| seed.named_stream("sampling", &row.to_string())).collect();
    one_by_one(model, prompts, stop, |row, log_probabilities| {
        let u = (streams[row].next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        sampling.draw(log_probabilities, u)
    })
}

/// Beam search after each of the prompts `[batch, n]` (u32), as Hugging Face's `generate` does it. For each prompt returns at most `beams` continuations, best score first.
///
/// At every step, for each prompt still searched:
/// 1. All (beam, token) pairs are ranked by the sum of log-probabilities; the best `2 * beams` are looked at. A
///    pair of probability 0 is none.
/// 2. One whose token is `end` is a finished hypothesis if its rank is below `beams`, and is dropped otherwise. Of
///    the finished ones the `beams` best by [`Continuation::score`] are kept.
/// 3. The best `beams` of the others are the beams of the next step.
/// 4. The prompt is done if `beams` hypotheses are finished and [`Beams::stopping`] says so, or if no beam is left.
///
/// After `max_new_tokens`, the beams of prompts that are not done count as finished hypotheses.
/// The search starts from one beam; transformers starts from `beams` equal ones of which all but one have the
/// log-probability -1e9, which is the same while there are enough pairs.
///
/// # Errors
/// See [`GenerateError`].
pub fn beam_search(
    model: &mut impl Continue,
    prompts: &Tensor,
    stop: Stop,
    beams: Beams,
) -> Result<Vec<Vec<Continuation>>, GenerateError> {
    guided_beam_search(model, prompts, stop, beams, &mut Unguided)
}

/// As [`beam_search`], with a guide that is asked after every step.
///
/// # Errors
/// See [`GenerateError`].
pub fn guided_beam_search(
    model: &mut impl Continue,
    prompts: &Tensor,
    stop: Stop,
    beams: Beams,
    guide: &mut impl Guide,
) -> Result<Vec<Vec<Continuation>>, GenerateError> {
    beams.problem().map_or(Ok(()), |problem| Err(GenerateError::Option(problem)))?;
    let batch = check(prompts, stop)?;
    let prompt = prompts.dims()[1];
    let mut searches: Vec<Search> = (0..batch).map(|_| Search::new(beams, prompt, stop)).collect();
    let mut ids = prompts.clone();
    for generated in 0..stop.max_new_tokens {
        let mut rows = log_probabilities(&model.next_logits(&ids)?, generated)?;
        rows.iter_mut().for_each(|row| guide.allow(row));
        let (mut origins, mut tokens) = (Vec::new(), Vec::new());
        let mut first = 0;
        for search in &mut searches {
            let count = search.open.len();
            for (beam, token) in search.step(&rows[first..first + count]) {
                origins.push((first + beam) as u32);
                tokens.push(token);
            }
            first += count;
        }
        let mut open: Vec<&mut [Continuation]> = searches.iter_mut().map(|s| s.open.as_mut_slice()).collect();
        guide.judge(&mut open);
        if tokens.is_empty() || generated + 1 == stop.max_new_tokens {
            break;
        }
        model.select(&origins)?;
        ids = next_ids(tokens, prompts.device())?;
    }
    Ok(searches.into_iter().map(Search::finish).collect())
}

/// Beam search after one prompt.
struct Search {
    beams: Beams,
    /// Tokens of the prompt.
    prompt: usize,
    stop: Stop,
    /// Beams that go on, best first.
    open: Vec<Continuation>,
    /// Finished hypotheses, best score first, at most `beams`.
    finished: Vec<Continuation>,
}

impl Search {
    fn new(beams: Beams, prompt: usize, stop: Stop) -> Self {
        Self { beams, prompt, stop, open: vec![Continuation::empty()], finished: Vec::new() }
    }

    fn score(&self, hypothesis: &Continuation) -> f64 {
        hypothesis.score(self.beams, self.prompt)
    }

    /// Whether nothing that starts with this step's best pair, of this sum and length, is worth waiting for.
    fn is_over(&self, sum: f64, length: usize) -> bool {
        let Some(worst) = self.finished.get(self.beams.beams - 1) else { return false };
        let longest = match self.beams.length {
            Length::Generated => self.stop.max_new_tokens,
            Length::Whole => self.prompt + self.stop.max_new_tokens,
        };
        let best = match self.beams.stopping {
            Stopping::Filled => return true,
            Stopping::Hopeless if self.beams.length_penalty > 0.0 => self.beams.score(sum, longest),
            Stopping::Hopeless | Stopping::Unpromising => self.beams.score(sum, length),
        };
        self.score(worst) >= best
    }

    fn add_finished(&mut self, hypothesis: Continuation) {
        let score = self.score(&hypothesis);
        let place = self.finished.partition_point(|other| self.score(other) >= score);
        self.finished.insert(place, hypothesis);
        self.finished.truncate(self.beams.beams);
    }

    /// Beams and tokens that the next step's beams come from; none if the search is done. `rows` are the
    /// log-probabilities after each open beam.
    fn step(&mut self, rows: &[Vec<f64>]) -> Vec<(usize, u32)> {
        let width = self.beams.beams;
        let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
        for (beam, row) in rows.iter().enumerate() {
            let before = self.open[beam].sum();
            let possible = row.iter().enumerate().filter(|(_, p)| **p > f64::NEG_INFINITY);
            pairs.extend(possible.map(|(token, p)| (before + p, beam, token)));
        }
        // the sort is stable: equal sums stay in the order of beams, then tokens
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        pairs.truncate(2 * width);
        let (mut open, mut origins) = (Vec::new(), Vec::new());
        let best =
            pairs.first().map(|(sum, beam, _)| (*sum, self.open[*beam].length(self.beams, self.prompt) + 1));
        for (rank, (_, beam, token)) in pairs.into_iter().enumerate() {
            let mut longer = self.open[beam].clone();
            longer.push(token as u32, rows[beam][token], self.stop.end);
            if !longer.ended {
                if open.len() < width {
                    open.push(longer);
                    origins.push((beam, token as u32));
                }
            } else if rank < width {
                self.add_finished(longer);
            }
        }
        if best.is_some_and(|(sum, length)| self.is_over(sum, length)) {
            open.clear();
            origins.clear();
        }
        self.open = open;
        origins
    }

    fn finish(mut self) -> Vec<Continuation> {
        for hypothesis in std::mem::take(&mut self.open) {
            self.add_finished(hypothesis);
        }
        self.finished
    }
}

/// Extends every row by the token `choose(row, log-probabilities)` until it ends; rows that ended leave the batch.
fn one_by_one(
    model: &mut impl Continue,
    prompts: &Tensor,
    stop: Stop,
    mut choose: impl FnMut(usize, &[f64]) -> usize,
) -> Result<Vec<Continuation>, GenerateError> {
    let batch = check(prompts, stop)?;
    let mut continuations = vec![Continuation::empty(); batch];
    let mut open: Vec<usize> = (0..batch).collect();
    let mut ids = prompts.clone();
    for generated in 0..stop.max_new_tokens {
        let rows = log_probabilities(&model.next_logits(&ids)?, generated)?;
        let (mut origins, mut tokens, mut still_open) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (row, log_probabilities)) in open.iter().zip(&rows).enumerate() {
            let token = choose(*row, log_probabilities);
            continuations[*row].push(token as u32, log_probabilities[token], stop.end);
            if !continuations[*row].ended {
                origins.push(i as u32);
                tokens.push(token as u32);
                still_open.push(*row);
            }
        }
        if still_open.is_empty() || generated + 1 == stop.max_new_tokens {
            break;
        }
        if still_open.len() < open.len() {
            model.select(&origins)?;
        }
        open = still_open;
        ids = next_ids(tokens, prompts.device())?;
    }
    Ok(continuations)
}

/// The number of prompts.
fn check(prompts: &Tensor, stop: Stop) -> Result<usize, GenerateError> {
    stop.problem().map_or(Ok(()), |problem| Err(GenerateError::Option(problem)))?;
    match (prompts.dims(), prompts.dtype()) {
        ([batch, n], DType::U32) if *batch > 0 && *n > 0 => Ok(*batch),
        (shape, dtype) => Err(GenerateError::Prompts { shape: shape.to_vec(), dtype }),
    }
}

/// `[rows, 1]`.
fn next_ids(tokens: Vec<u32>, device: &Device) -> candle_core::Result<Tensor> {
    let rows = tokens.len();
    Tensor::from_vec(tokens, (rows, 1), device)
}

/// log softmax of every row.
fn log_probabilities(logits: &Tensor, generated: usize) -> Result<Vec<Vec<f64>>, GenerateError> {
    let mut rows = logits.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    for row in &mut rows {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !top.is_finite() || row.iter().any(|v| v.is_nan()) {
            let problem =
                if row.iter().any(|v| v.is_nan()) { "contain NaN" } else { "have no finite maximum" };
            return Err(GenerateError::Logits { generated, problem: problem.to_owned() });
        }
        let log_sum_exp = top + row.iter().map(|v| (v - top).exp()).sum::<f64>().ln();
        row.iter_mut().for_each(|v| *v -= log_sum_exp);
    }
    Ok(rows)
}

/// The first token of the highest log-probability.
fn most_likely(log_probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (token, p) in log_probabilities.iter().enumerate() {
        if *p > log_probabilities[best] {
            best = token;
        }
    }
    best
}
