//! What models are trained and tested on, as batches of one form.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rand::Rng;
use replica_core::Seed;
use replica_datasets::{Coding, Inputs, SequenceTask, Sequences, Split};
use replica_nn::Staging;
use replica_train::{Blocks, Examples, Recipe};
use serde::{Deserialize, Serialize};

use crate::signals::Signals;

/// Some sequences on the device.
#[derive(Clone)]
pub struct Batch {
    /// Ids `[rows, l]`, or numbers `[rows, l, channels]`.
    pub inputs: Tensor,
    /// True length of every row.
    pub lengths: Vec<usize>,
    /// Sampling intervals `[rows, l]` that lead to each input, in units of that of training, where the data knows them.
    pub intervals: Option<Tensor>,
    /// What is to be said.
    pub targets: Targets,
}

/// What a model is to say about a batch.
#[derive(Clone)]
pub enum Targets {
    /// Classes `[items]`, or next tokens `[rows, l]`, i64.
    Classes(Tensor),
    /// Numbers `[rows, l]`.
    Values(Tensor),
}

/// Another resolution than that of training for sequences of pixels: position k of a test sequence is read at
/// `k stride + jitter stride u` with u uniform on [-1, 1), between pixels by linear interpolation. The model is not told
/// unless it is one that is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resampling {
    /// Part of the metric's name.
    pub id: String,
    /// For people.
    pub label: String,
    /// Distance of positions in pixels.
    pub stride: f64,
    /// Largest shift of a position in strides.
    #[serde(default)]
    pub jitter: f64,
}

impl Resampling {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        if !(self.stride.is_finite() && self.stride > 0.0) {
            return Some(format!("stride = {}: a finite number above 0 is expected", self.stride));
        }
        (!(0.0..=0.5).contains(&self.jitter))
            .then(|| format!("jitter = {}: a number in [0, 0.5] is expected", self.jitter))
    }

    /// Positions read in a sequence of so many pixels; the same for every model.
    fn positions(&self, pixels: usize, item: usize) -> Vec<f64> {
        let mut rng = Seed(0).named_stream("resampling", &format!("{} {item}", self.id));
        let last = (pixels - 1) as f64;
        let count = (last / self.stride).floor() as usize + 1;
        let shift = |rng: &mut dyn Rng| 2.0 * unit(rng) - 1.0;
        (0..count)
            .map(|k| (self.stride * (k as f64 + self.jitter * shift(&mut rng))).clamp(0.0, last))
            .collect()
    }
}

/// Uniform on [0, 1).
pub fn unit(rng: &mut (impl Rng + ?Sized)) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Intervals between given positions in units of `step`; the first is 1.
pub fn intervals(positions: &[f64], step: f64) -> impl Iterator<Item = f32> {
    std::iter::once(1.0).chain(positions.windows(2).map(move |pair| ((pair[1] - pair[0]) / step) as f32))
}

/// One split of a classification task.
#[derive(Clone)]
pub struct TaskSplit {
    task: Arc<SequenceTask>,
    split: Split,
    resampling: Option<Resampling>,
}

impl TaskSplit {
    /// As it is.
    pub fn new(task: Arc<SequenceTask>, split: Split) -> Self {
        Self { task, split, resampling: None }
    }

    /// At another resolution.
    #[must_use]
    pub fn resampled(mut self, resampling: &Resampling) -> Self {
        self.resampling = Some(resampling.clone());
        self
    }

    fn sequences(&self) -> &Sequences {
        match self.split {
            Split::Train => &self.task.train,
            Split::Valid => &self.task.valid,
            Split::Test => &self.task.test,
        }
    }

    /// At most `limit` of its items, evenly spread, in batches; all of them for 0.
    pub fn chunks(&self, limit: usize, size: usize) -> Vec<Vec<usize>> {
        let n = self.sequences().len();
        let kept = if limit == 0 { n } else { limit.min(n) };
        let items: Vec<usize> = (0..kept).map(|i| i * n / kept).collect();
        items.chunks(size).map(<[usize]>::to_vec).collect()
    }
}

impl Examples for TaskSplit {
    type Batch = Batch;
    const UNIT: &'static str = "sequences";

    fn count(&self) -> usize {
        self.sequences().len()
    }

    fn units_a_step(&self, recipe: &Recipe) -> u64 {
        recipe.batch_size as u64
    }

    fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Batch> {
        let batch = self.sequences().batch(indices, None);
        let labels: Vec<i64> = batch.labels.iter().map(|label| i64::from(*label)).collect();
        let targets = Targets::Classes(staging.send(labels, indices.len())?);
        let (rows, width) = (batch.rows, batch.width);
        let values = match batch.inputs {
            Inputs::Tokens(ids) => {
                let inputs = staging.send(ids, (rows, width))?;
                return Ok(Batch { inputs, lengths: batch.lengths, intervals: None, targets });
            }
            Inputs::Values(values) => values,
        };
        let Some(resampling) = &self.resampling else {
            let intervals = staging.send(vec![1f32; rows * width], (rows, width))?;
            let inputs = staging.send(values, (rows, width, 1))?;
            return Ok(Batch { inputs, lengths: batch.lengths, intervals: Some(intervals), targets });
        };
        // pixels of every image of a task are equally many
        let (mut read, mut gaps) = (Vec::new(), Vec::new());
        for (row, pixels) in values.chunks_exact(width).enumerate() {
            let positions = resampling.positions(width, indices[row % indices.len()]);
            read.extend(positions.iter().map(|at| {
                let (left, share) = (at.floor() as usize, at.fract() as f32);
                let right = (left + 1).min(width - 1);
                pixels[left] * (1.0 - share) + pixels[right] * share
            }));
            gaps.extend(intervals(&positions, 1.0));
        }
        let l = read.len() / rows;
        Ok(Batch {
            inputs: staging.send(read, (rows, l, 1))?,
            lengths: vec![l; rows],
            intervals: Some(staging.send(gaps, (rows, l))?),
            targets,
        })
    }
}

/// What a training run sees.
pub enum TrainingData {
    /// A task's training split.
    Task(TaskSplit),
    /// Generated signals.
    Signals(Signals),
    /// Text in blocks.
    Text(Blocks),
    /// The same batch at every step, for timing.
    Fixed(Batch),
}

impl Examples for TrainingData {
    type Batch = Batch;
    const UNIT: &'static str = "sequences";

    fn count(&self) -> usize {
        match self {
            Self::Task(data) => data.count(),
            Self::Signals(data) => data.count(),
            Self::Text(data) => data.count(),
            Self::Fixed(batch) => batch.lengths.len(),
        }
    }

    fn units_a_step(&self, recipe: &Recipe) -> u64 {
        recipe.batch_size as u64
    }

    fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Batch> {
        match self {
            Self::Task(data) => data.staged(indices, staging),
            Self::Signals(data) => data.staged(indices, staging),
            Self::Text(data) => Ok(text_batch(data.staged(indices, staging)?)),
            Self::Fixed(batch) => Ok(batch.clone()),
        }
    }
}

/// Blocks of text as a batch.
pub fn text_batch(batch: replica_train::Batch) -> Batch {
    Batch { inputs: batch.ids, lengths: Vec::new(), intervals: None, targets: Targets::Classes(batch.labels) }
}

/// What a model must read for a task.
pub fn encoder(task: &SequenceTask) -> crate::model::Encoder {
    match task.train.coding() {
        Coding::Tokens { vocab, .. } => crate::model::Encoder::Tokens(vocab),
        Coding::Pixels { .. } => crate::model::Encoder::Values(1),
    }
}
